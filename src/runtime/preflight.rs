//! Looks before the leap: can this machine run the switch as configured?
//!
//! ```text
//!  probe the machine ─▶ decide (pure, tested) ─▶ raise what may be raised ─▶ Prepared, or one line
//! ```
//!
//! A failure here would otherwise surface later as a panic in an executor or as a connection refused
//! under load. Each error says what, why and what to do. Probes (the operating system) and decisions
//! (functions of what the probes found) are apart, so that every decision is a unit test.
//!
//! It does not judge speed ([`doctor`](super::doctor) does) and does not look at the data directory,
//! whose lock and format `storage` checks.

use std::ffi::CString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use io_uring::IoUring;

use crate::config::{Config, Cores};

/// Lockable memory that one executor needs: glommio's own check (its `uring.rs`).
pub const MEMLOCK_BYTES_PER_CORE: u64 = 512 * 1024;
/// Open files without which a switch is no use: its own and a few hundred connections.
pub const OPEN_FILES_MIN: u64 = 1_024;
/// Cores that `cores = "all"` takes at most: there are 64 shards.
const CORES_MAX: usize = crate::config::CORES_MAX;

/// The soft limit of core files: the kernel writes none, and hands none to a program that collects them
/// (`fs/coredump.c`: a limit of 1 byte is its own sign for that; 0 would stop files alone).
const CORE_BYTES: u64 = 1;

/// What the switch starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The processors to pin executors to: at least one, none twice.
    pub cores: Vec<usize>,
    /// Files that the process may have open now: the bound on connections.
    pub open_files: u64,
}

/// Why this machine cannot run the switch as configured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreflightError {
    /// The kernel has io_uring and someone forbids it.
    #[error("io_uring is forbidden here ({why}); {remedy}")]
    RingForbidden {
        /// Who forbids it.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel is too old for what the sockets need.
    #[error(
        "the kernel's io_uring lacks SINGLE_ISSUER and DEFER_TASKRUN (it says: {error}); run Linux \
             6.1 or newer"
    )]
    RingTooOld {
        /// What it said.
        error: String,
    },
    /// Another error of `io_uring_setup`.
    #[error("io_uring cannot be set up ({error}); free memory or raise the limit that it names")]
    RingFailed {
        /// What it said.
        error: String,
    },
    /// The limit of lockable memory is too small.
    #[error(
        "the limit of locked memory is {hard} bytes, {cores} cores need {needed}; raise it \
             (`LimitMEMLOCK=infinity` in the systemd unit, `--ulimit memlock=-1` for a container) or \
             use fewer cores"
    )]
    Memlock {
        /// What may be locked at most.
        hard: u64,
        /// What is needed.
        needed: u64,
        /// For so many cores.
        cores: usize,
    },
    /// The limit of open files is too small.
    #[error(
        "the limit of open files is {hard}, at least {OPEN_FILES_MIN} are needed; raise it \
             (`LimitNOFILE=1048576` in the systemd unit, `--ulimit nofile` for a container)"
    )]
    OpenFiles {
        /// What may be open at most.
        hard: u64,
    },
    /// A core that the machine does not have.
    #[error(
        "core {core} was asked for, and this machine has {online}; choose among those with --cores \
             or [server] cores"
    )]
    NoSuchCore {
        /// The core.
        core: usize,
        /// The cores there are, as ranges.
        online: String,
    },
    /// A core that this process may not use.
    #[error(
        "core {core} was asked for, and this process may use only {allowed}; choose among those \
             with --cores or [server] cores, or widen its cpuset (taskset, CPUAffinity=, --cpuset-cpus)"
    )]
    CoreForbidden {
        /// The core.
        core: usize,
        /// The cores it may use, as ranges.
        allowed: String,
    },
    /// Somebody else listens there.
    #[error(
        "port {port} on {ip} is taken by another process; stop it (`ss -ltnp sport = :{port}` names \
             it) or choose another address with --listen"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// The address.
        ip: String,
    },
    /// A privileged port.
    #[error(
        "this user may not listen on port {port}; choose one above 1023 with --listen, or grant \
             CAP_NET_BIND_SERVICE"
    )]
    PortForbidden {
        /// The port.
        port: u16,
    },
    /// The machine has no such address.
    #[error("{ip} is no address of this machine; see `ip address`, and choose one with --listen")]
    NoSuchAddress {
        /// The address.
        ip: String,
    },
    /// Another error of the operating system.
    #[error("cannot {doing} ({error}); check the permissions and limits of this process")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        error: String,
    },
}

/// Checks this machine against `config`, and raises the limits that may be raised.
pub fn run(config: &Config) -> Result<Prepared, PreflightError> {
    decide_ring(
        probe_ring(),
        read_number("/proc/sys/kernel/io_uring_disabled"),
    )?;
    let allowed = probe_allowed_cores()?;
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
    let online = online.map_or_else(|_| allowed.clone(), |text| parse_ranges(&text));
    let cores = decide_cores(&config.server.cores, &online, &allowed)?;

    let memlock = probe_limit(libc::RLIMIT_MEMLOCK)?;
    if let Some(raised) = decide_memlock(memlock, cores.len())? {
        set_limit(libc::RLIMIT_MEMLOCK, Limit::all(raised))?;
    }
    let files = probe_limit(libc::RLIMIT_NOFILE)?;
    if let Some(raised) = decide_open_files(files)? {
        set_limit(libc::RLIMIT_NOFILE, Limit::all(raised))?;
    }
    forbid_core_files()?;
    let listen = config.server.listen;
    probe_listen(listen).map_err(|error| decide_listen(listen, &error))?;
    Ok(Prepared {
        cores,
        open_files: files.hard,
    })
}

// ---- decisions -----------------------------------------------------------------------------------

/// A resource limit: what holds, and up to where it may be raised. `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub soft: u64,
    pub hard: u64,
}

impl Limit {
    /// Raised as far as it goes.
    fn all(hard: u64) -> Self {
        Self { soft: hard, hard }
    }
}

/// `disabled` is the sysctl `kernel.io_uring_disabled`, where there is one.
fn decide_ring(probe: io::Result<()>, disabled: Option<u64>) -> Result<(), PreflightError> {
    let Err(error) = probe else { return Ok(()) };
    let text = error.to_string();
    let sysctl = "run `sysctl kernel.io_uring_disabled=0` as root, or put the user into \
                  kernel.io_uring_group if it is 1";
    let container = "allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
                     seccomp profile (to try it: `--security-opt seccomp=unconfined`)";
    let (why, remedy) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM | libc::EACCES), Some(1..)) => {
            ("the sysctl kernel.io_uring_disabled is set", sysctl)
        }
        (Some(libc::EPERM | libc::EACCES), _) => (
            "EPERM: a seccomp filter, as containers have, or a security module",
            container,
        ),
        // A kernel with the sysctl has io_uring, so a filter answers in its place.
        (Some(libc::ENOSYS), Some(_)) => ("ENOSYS from a seccomp filter", container),
        (Some(libc::ENOSYS | libc::EINVAL), _) => {
            return Err(PreflightError::RingTooOld { error: text });
        }
        _ => return Err(PreflightError::RingFailed { error: text }),
    };
    Err(PreflightError::RingForbidden { why, remedy })
}

fn decide_cores(
    asked: &Cores,
    online: &[usize],
    allowed: &[usize],
) -> Result<Vec<usize>, PreflightError> {
    let cores = match asked {
        Cores::All => return Ok(allowed.iter().copied().take(CORES_MAX).collect()),
        Cores::List(cores) => cores,
    };
    for &core in cores {
        if !online.contains(&core) {
            return Err(PreflightError::NoSuchCore {
                core,
                online: ranges(online),
            });
        }
        if !allowed.contains(&core) {
            return Err(PreflightError::CoreForbidden {
                core,
                allowed: ranges(allowed),
            });
        }
    }
    Ok(cores.clone())
}

/// The limit to set, if it has to be raised.
fn decide_memlock(limit: Limit, cores: usize) -> Result<Option<u64>, PreflightError> {
    let needed = MEMLOCK_BYTES_PER_CORE * cores as u64;
    if limit.soft >= needed {
        return Ok(None);
    }
    if limit.hard < needed {
        return Err(PreflightError::Memlock {
            hard: limit.hard,
            needed,
            cores,
        });
    }
    Ok(Some(limit.hard))
}

/// The limit to set, if it can be raised.
fn decide_open_files(limit: Limit) -> Result<Option<u64>, PreflightError> {
    if limit.hard < OPEN_FILES_MIN {
        return Err(PreflightError::OpenFiles { hard: limit.hard });
    }
    Ok((limit.soft < limit.hard).then_some(limit.hard))
}

fn decide_listen(address: SocketAddr, error: &io::Error) -> PreflightError {
    let (port, ip) = (address.port(), address.ip().to_string());
    match error.kind() {
        io::ErrorKind::AddrInUse => PreflightError::PortTaken { port, ip },
        io::ErrorKind::PermissionDenied => PreflightError::PortForbidden { port },
        io::ErrorKind::AddrNotAvailable => PreflightError::NoSuchAddress { ip },
        _ => PreflightError::System {
            doing: "listen",
            error: error.to_string(),
        },
    }
}

/// `0-2,5` from the kernel's notation; what cannot be read is left out.
pub(super) fn parse_ranges(text: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            numbers.extend(first..=last.min(libc::CPU_SETSIZE as usize));
        }
    }
    numbers
}

/// Sorted numbers in the kernel's notation.
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let part = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

// ---- probes --------------------------------------------------------------------------------------

/// Sets up the smallest ring of the kind that sockets use, and drops it.
fn probe_ring() -> io::Result<()> {
    <IoUring>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(2)
        .map(drop)
}

/// Whether such a ring can be set up.
pub(super) fn ring() -> io::Result<()> {
    probe_ring()
}

/// The limit of lockable memory.
pub(super) fn memlock() -> Result<Limit, PreflightError> {
    probe_limit(libc::RLIMIT_MEMLOCK)
}

/// The limit of open files.
pub(super) fn open_files() -> Result<Limit, PreflightError> {
    probe_limit(libc::RLIMIT_NOFILE)
}

/// The processors that this process may use.
pub(super) fn allowed_cores() -> Result<Vec<usize>, PreflightError> {
    probe_allowed_cores()
}

/// Bytes that an ordinary user may still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statvfs` is plain numbers, for which zeros are a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero, and the kernel writes one `statvfs` to `found`; both live until
    // after the call.
    let result = unsafe { libc::statvfs(path.as_ptr(), &mut found) };
    match result {
        0 => Ok(found.f_bavail.saturating_mul(found.f_frsize)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Binds as a listener without SO_REUSEPORT would, so that another switch of the same user counts as
/// taken too. The port is free again when this returns; whoever takes it then fails at the real bind.
fn probe_listen(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn system(doing: &'static str) -> PreflightError {
    PreflightError::System {
        doing,
        error: io::Error::last_os_error().to_string(),
    }
}

fn probe_allowed_cores() -> Result<Vec<usize>, PreflightError> {
    // SAFETY: `cpu_set_t` is a plain array of bits; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size_of_val(&set)` bytes to `set`, which lives until after
    // the call; 0 is this thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    if result != 0 {
        return Err(system("read the allowed processors"));
    }
    let limit = libc::CPU_SETSIZE as usize;
    // SAFETY: CPU_ISSET reads bit `core` of `set`, and `core` is below the number of its bits.
    Ok((0..limit)
        .filter(|core| unsafe { libc::CPU_ISSET(*core, &set) })
        .collect())
}

fn probe_limit(resource: libc::__rlimit_resource_t) -> Result<Limit, PreflightError> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one `rlimit` to `limit`, which lives until after the call.
    let result = unsafe { libc::getrlimit(resource, &mut limit) };
    if result != 0 {
        return Err(system("read a resource limit"));
    }
    Ok(Limit {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    })
}

/// No core files from here on: there are messages, tokens and keys in its memory. The hard limit stays,
/// so `prlimit --core=unlimited --pid PID` allows them in a process that is to be looked into.
fn forbid_core_files() -> Result<(), PreflightError> {
    let hard = probe_limit(libc::RLIMIT_CORE)?.hard;
    let soft = hard.min(CORE_BYTES);
    set_limit(libc::RLIMIT_CORE, Limit { soft, hard })
}

fn set_limit(resource: libc::__rlimit_resource_t, limit: Limit) -> Result<(), PreflightError> {
    let limit = libc::rlimit {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    // SAFETY: the kernel reads one `rlimit` from `limit`, which lives until after the call.
    let result = unsafe { libc::setrlimit(resource, &limit) };
    if result != 0 {
        return Err(system("set a resource limit"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32, sysctl: Option<u64>) -> String {
        let error = decide_ring(Err(io::Error::from_raw_os_error(errno)), sysctl).unwrap_err();
        let text = error.to_string();
        assert!(
            !text.contains('\n') && text.contains("; "),
            "no remedy: {text}"
        );
        text
    }

    #[test]
    fn a_ring_that_works_is_enough() {
        assert_eq!(decide_ring(Ok(()), Some(2)), Ok(()));
        assert_eq!(decide_ring(Ok(()), None), Ok(()));
    }

    #[test]
    fn who_forbids_io_uring_is_told_apart_from_an_old_kernel() {
        assert!(refused(libc::EPERM, Some(2)).contains("sysctl kernel.io_uring_disabled=0"));
        assert!(refused(libc::EPERM, Some(0)).contains("seccomp"));
        assert!(refused(libc::EPERM, None).contains("seccomp"));
        assert!(refused(libc::ENOSYS, Some(0)).contains("seccomp"));
        assert!(refused(libc::ENOSYS, None).contains("Linux 6.1"));
        assert!(refused(libc::EINVAL, Some(0)).contains("Linux 6.1"));
        assert!(refused(libc::ENOMEM, Some(0)).contains("cannot be set up"));
    }

    #[test]
    fn all_cores_are_those_that_the_process_may_use() {
        assert_eq!(
            decide_cores(&Cores::All, &[0, 1, 2, 3], &[1, 3]),
            Ok(vec![1, 3])
        );
        let many: Vec<usize> = (0..100).collect();
        assert_eq!(
            decide_cores(&Cores::All, &many, &many).unwrap().len(),
            CORES_MAX
        );
    }

    #[test]
    fn a_core_asked_for_must_exist_and_be_allowed() {
        let online = [0, 1, 2, 5];
        let decide = |core| decide_cores(&Cores::List(vec![2, core]), &online, &[0, 2]);
        assert_eq!(decide(0), Ok(vec![2, 0]));
        let missing = PreflightError::NoSuchCore {
            core: 3,
            online: "0-2,5".into(),
        };
        assert_eq!(decide(3), Err(missing));
        let forbidden = PreflightError::CoreForbidden {
            core: 5,
            allowed: "0,2".into(),
        };
        assert_eq!(decide(5), Err(forbidden));
    }

    #[test]
    fn locked_memory_is_raised_when_it_may_be_and_refused_when_not() {
        let limit = |soft, hard| Limit { soft, hard };
        let mib = 1024 * 1024;
        assert_eq!(decide_memlock(limit(mib, mib), 2), Ok(None));
        assert_eq!(
            decide_memlock(limit(mib - 1, 8 * mib), 2),
            Ok(Some(8 * mib))
        );
        assert_eq!(decide_memlock(limit(0, u64::MAX), 64), Ok(Some(u64::MAX)));
        let error = decide_memlock(limit(64, mib - 1), 2).unwrap_err();
        assert_eq!(
            error,
            PreflightError::Memlock {
                hard: mib - 1,
                needed: mib,
                cores: 2
            }
        );
        assert!(error.to_string().contains("LimitMEMLOCK=infinity"));
    }

    #[test]
    fn open_files_are_raised_to_what_is_allowed() {
        let limit = |soft, hard| Limit { soft, hard };
        assert_eq!(decide_open_files(limit(1_024, 20_000)), Ok(Some(20_000)));
        assert_eq!(decide_open_files(limit(20_000, 20_000)), Ok(None));
        let error = decide_open_files(limit(1_023, 1_023));
        assert_eq!(error, Err(PreflightError::OpenFiles { hard: 1_023 }));
    }

    #[test]
    fn an_address_that_cannot_be_listened_on_says_why() {
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        let say = |errno| decide_listen(address, &io::Error::from_raw_os_error(errno)).to_string();
        assert!(say(libc::EADDRINUSE).starts_with("port 443 on 127.0.0.1 is taken"));
        assert!(say(libc::EACCES).contains("CAP_NET_BIND_SERVICE"));
        assert!(say(libc::EADDRNOTAVAIL).contains("no address of this machine"));
        assert!(say(libc::EAFNOSUPPORT).starts_with("cannot listen"));
    }

    #[test]
    fn a_port_that_a_listener_holds_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = probe_listen(address).unwrap_err();
        assert!(matches!(
            decide_listen(address, &error),
            PreflightError::PortTaken { .. }
        ));
        drop(listener);
        probe_listen(address).unwrap();
    }

    #[test]
    fn the_probes_see_this_machine() {
        let allowed = probe_allowed_cores().unwrap();
        assert!(!allowed.is_empty());
        let online =
            parse_ranges(&std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap());
        assert!(
            allowed.iter().all(|core| online.contains(core)),
            "{allowed:?} {online:?}"
        );
        let files = probe_limit(libc::RLIMIT_NOFILE).unwrap();
        assert!(files.soft > 0 && files.soft <= files.hard);
    }

    #[test]
    fn ranges_read_as_they_are_written() {
        for text in ["0", "0-3", "0,2-3,7", "1-2,4-5"] {
            assert_eq!(ranges(&parse_ranges(text)), text);
        }
        assert_eq!(parse_ranges("x,3-,-,\n"), Vec::<usize>::new());
        assert_eq!(ranges(&[]), "");
    }
}
