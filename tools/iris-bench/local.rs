//! What this machine says: processor time and memory of the switch and of ourselves, cores, clock.

use std::fs;
use std::path::Path;

/// What a running switch wrote into its LOCK file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// Its process id, if such a process runs.
    pub pid: Option<u32>,
    /// Where it listens.
    pub addr: Option<String>,
}

impl Lock {
    /// Reads `data/LOCK`. Whatever is missing is none.
    #[must_use]
    pub fn read(data: &Path) -> Self {
        Self::parse(&fs::read_to_string(data.join("LOCK")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
        Self {
            pid: field("pid=").and_then(|pid| pid.trim().parse().ok()),
            addr: field("addr=").map(|addr| addr.trim().to_owned()),
        }
    }
}

/// User and system time of a process so far, in microseconds.
#[must_use]
pub fn cpu_micros(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    cpu_ticks(&stat).map(|ticks| ticks * (1_000_000 / TICKS_PER_SECOND))
}

/// USER_HZ, which is 100 on every architecture that Linux has io_uring on.
const TICKS_PER_SECOND: u64 = 100;

fn cpu_ticks(stat: &str) -> Option<u64> {
    // The command's name, in parentheses, may contain anything; utime is field 14, stime 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of a process, in bytes.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// The commit that the present directory has checked out, if it is a checkout.
#[must_use]
pub fn commit() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Kernel release, cores and processor, in one line.
#[must_use]
pub fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    format!("Linux {}, {cores} cores, {model}", kernel.trim())
}

/// Seconds since the Unix epoch.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the generator's clock")]
pub fn unix_time_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Milliseconds since the Unix epoch.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the generator's clock")]
pub fn unix_time_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Asks a process of ours to end.
#[expect(
    unsafe_code,
    reason = "the kernel's interface; the standard library only kills"
)]
pub fn terminate(pid: i32) {
    // SAFETY: a system call without pointers. An error: it has ended.
    let _ = unsafe { libc::kill(pid, libc::SIGTERM) };
}

/// Memory of a process that is in no file, in bytes: what it has asked for and touched.
#[must_use]
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "RssAnon:")
}

/// Pins the calling thread to one core.
///
/// # Errors
/// What the kernel said.
#[expect(
    unsafe_code,
    reason = "the kernel's interface; no crate of ours offers it"
)]
pub fn pin(core: usize) -> Result<(), String> {
    // SAFETY: a plain structure of bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    assert!(
        core < libc::CPU_SETSIZE as usize,
        "checked when the arguments were read"
    );
    // SAFETY: `core` is within the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set outlives the call, and its size is given.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 {
        Ok(())
    } else {
        let error = std::io::Error::last_os_error();
        Err(format!(
            "cannot pin to core {core}: {error}; give --cores that exist"
        ))
    }
}

/// Makes the calling thread less eager than our others by so many steps of the kernel's scale, so that
/// they need not wait for it.
///
/// # Errors
/// What the kernel said.
#[expect(
    unsafe_code,
    reason = "the kernel's interface; no crate of ours offers it"
)]
pub fn yield_to_others(steps: i32) -> Result<(), String> {
    // SAFETY: plain numbers; 0 is the calling thread.
    let result = unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, now + steps)
    };
    match result {
        0 => Ok(()),
        _ => {
            let error = std::io::Error::last_os_error();
            Err(format!("cannot lower a thread's priority: {error}"))
        }
    }
}

/// Raises our limit of open files as far as it goes; what it is then.
///
/// # Errors
/// What the kernel said.
#[expect(
    unsafe_code,
    reason = "the kernel's interface; no crate of ours offers it"
)]
pub fn raise_open_files() -> Result<u64, String> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one `rlimit`, which outlives the call.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads one `rlimit`, which outlives the call.
    if read != 0 || unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("cannot raise the number of open files: {error}"));
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_tells_process_and_address() {
        let lock = Lock::parse("pid=4711\naddr=127.0.0.1:7447\n");
        assert_eq!(
            lock,
            Lock {
                pid: Some(4711),
                addr: Some("127.0.0.1:7447".to_owned())
            }
        );
        assert_eq!(Lock::parse(""), Lock::default());
        assert_eq!(Lock::parse("pid=x").pid, None);
    }

    #[test]
    fn processor_time_is_read_behind_any_command_name() {
        let stat = "12 (a) b (c) S 1 1 1 0 -1 4194560 900 0 0 0 321 123 0 0 20 0 8 0 5 1 1";
        assert_eq!(cpu_ticks(stat), Some(444));
        assert_eq!(cpu_ticks("nonsense"), None);
    }

    #[test]
    fn our_own_process_has_time_and_memory() {
        let own = std::process::id();
        assert!(cpu_micros(own).is_some());
        assert!(resident_bytes(own).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
