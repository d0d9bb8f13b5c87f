//! What the machine says of itself: files of `/proc` and `/sys` read once, and a few system calls.
//!
//! What cannot be read is `None`, and is told as unknown: a container hides much.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::preflight::{self, Limit};

/// The machine at one instant.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Major and minor version.
    pub kernel: Option<(u64, u64)>,
    /// The whole version.
    pub release: String,
    /// Whether a ring of the kind that the switch needs can be set up; `Err`: why not.
    pub ring: Option<Result<(), String>>,
    /// Processors that this process may use.
    pub processors: usize,
    /// Lockable memory, hard limit.
    pub memlock: Option<u64>,
    /// Open files, hard limit.
    pub open_files: Option<u64>,
    /// `/proc/sys`, as far as there is a row for it.
    pub sysctls: Vec<(&'static str, String)>,
    /// The clock that the kernel reads.
    pub clocksource: Option<String>,
    /// The chosen one of `always`, `madvise`, `never`.
    pub huge_pages: Option<String>,
    /// The frequency governor of the first processor; `None`: there is none, as in most virtual machines.
    pub governor: Option<String>,
    /// The kernel's command line.
    pub command_line: Option<String>,
    /// NUMA nodes with memory.
    pub nodes: Option<usize>,
    /// Bytes of swap in use, of all.
    pub swap: Option<(u64, u64)>,
    /// Interrupts of devices that each processor has taken.
    pub interrupts: Vec<u64>,
    /// Network devices: name, receive queues, whether the kernel spreads them (RPS).
    pub networks: Vec<(String, usize, bool)>,
    /// Where the data is.
    pub disk: Disk,
}

/// The file system under a data directory, and its device.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The directory that was looked at: the data directory, or the nearest one above it that exists.
    pub path: PathBuf,
    /// Its type.
    pub kind: Option<String>,
    /// Its mount options, of the mount and of the file system.
    pub options: Vec<String>,
    /// Bytes that the switch's user may still write.
    pub free_bytes: Option<u64>,
    /// Whether the directory can be written to by whoever runs this.
    pub writable: bool,
    /// The scheduler of its device.
    pub scheduler: Option<String>,
    /// Whether the device's own cache is volatile (`write back`).
    pub write_cache: Option<String>,
}

impl Machine {
    /// This machine, and what is under `data`.
    #[must_use]
    pub fn read(data: &Path, sysctls: &[&'static str]) -> Self {
        let limits = (preflight::memlock().ok(), preflight::open_files().ok());
        let hard = |limit: Option<Limit>| limit.map(|limit| limit.hard);
        let ring = preflight::ring().map_err(|error| error.to_string());
        Self {
            ring: Some(ring),
            processors: preflight::allowed_cores().map_or(1, |cores| cores.len()),
            memlock: hard(limits.0),
            open_files: hard(limits.1),
            disk: Disk::read(Path::new("/"), data),
            ..Self::read_files(Path::new("/"), sysctls)
        }
    }

    /// What the files below `root` say.
    pub(super) fn read_files(root: &Path, sysctls: &[&'static str]) -> Self {
        let release = text(&root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
        let cpu = root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let clock = root.join("sys/devices/system/clocksource/clocksource0/current_clocksource");
        let values = sysctls.iter().filter_map(|name| {
            let path = root.join("proc/sys").join(name.replace('.', "/"));
            Some((*name, text(&path)?))
        });
        Self {
            kernel: version(&release),
            release,
            sysctls: values.collect(),
            clocksource: text(&clock),
            huge_pages: chosen(&root.join("sys/kernel/mm/transparent_hugepage/enabled")),
            governor: text(&cpu),
            command_line: text(&root.join("proc/cmdline")),
            nodes: text(&root.join("sys/devices/system/node/has_memory"))
                .map(|text| preflight::parse_ranges(&text).len()),
            swap: text(&root.join("proc/meminfo")).and_then(|text| swap(&text)),
            interrupts: text(&root.join("proc/interrupts"))
                .map_or(Vec::new(), |text| interrupts(&text)),
            networks: networks(&root.join("sys/class/net")),
            ..Self::default()
        }
    }

    /// A sysctl's value.
    pub(super) fn sysctl(&self, name: &str) -> Option<&str> {
        let found = self.sysctls.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Disk {
    fn read(root: &Path, data: &Path) -> Self {
        let absolute = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
        let there = absolute.ancestors().find(|path| path.is_dir());
        let path = there.unwrap_or(Path::new("/"));
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mounts = text(&root.join("proc/self/mountinfo")).unwrap_or_default();
        let mount = mount_of(&mounts, &path);
        let queue = mount
            .as_ref()
            .and_then(|mount| queue_of(root, &mount.device));
        Self {
            kind: mount.as_ref().map(|mount| mount.kind.clone()),
            options: mount.map_or(Vec::new(), |mount| mount.options),
            free_bytes: preflight::free_bytes(&path).ok(),
            writable: is_writable(&path),
            scheduler: queue
                .as_ref()
                .and_then(|queue| chosen(&queue.join("scheduler"))),
            write_cache: queue.and_then(|queue| text(&queue.join("write_cache"))),
            path,
        }
    }
}

/// A file without its last newline.
fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

/// The word in brackets: `always [madvise] never`; or the only one.
fn chosen(path: &Path) -> Option<String> {
    let text = text(path)?;
    let inside = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    Some(inside.map_or(text.as_str(), |(word, _)| word).to_owned())
}

fn version(release: &str) -> Option<(u64, u64)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Bytes in use and of all, from `/proc/meminfo`.
fn swap(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    let (total, free) = (field("SwapTotal:")?, field("SwapFree:")?);
    Some((total.saturating_sub(free) * 1_024, total * 1_024))
}

/// By processor: the sum of the numbered lines, which are those of devices.
fn interrupts(text: &str) -> Vec<u64> {
    let mut lines = text.lines();
    let mut sums = vec![0; lines.next().unwrap_or_default().split_whitespace().count()];
    for line in lines {
        let Some((number, counts)) = line.split_once(':') else {
            continue;
        };
        if number.trim().parse::<u32>().is_err() {
            continue;
        }
        let counts = counts
            .split_whitespace()
            .map_while(|count| count.parse::<u64>().ok());
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    sums
}

/// Those with a device behind them.
fn networks(class: &Path) -> Vec<(String, usize, bool)> {
    let Ok(entries) = fs::read_dir(class) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        if !entry.path().join("device").exists() {
            continue;
        }
        let queues = fs::read_dir(entry.path().join("queues"));
        let queues = queues.into_iter().flatten().flatten();
        let queues: Vec<PathBuf> = queues
            .filter(|queue| queue.file_name().to_string_lossy().starts_with("rx-"))
            .map(|queue| queue.path())
            .collect();
        let is_spread = queues.iter().any(|queue| {
            let mask = text(&queue.join("rps_cpus")).unwrap_or_default();
            mask.contains(|digit: char| digit != '0' && digit != ',')
        });
        let name = entry.file_name().to_string_lossy().into_owned();
        found.push((name, queues.len(), is_spread));
    }
    found.sort();
    found
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    device: String,
    kind: String,
    options: Vec<String>,
}

/// The last mount with the longest path that leads to `path`.
fn mount_of(mounts: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<(usize, Mount)> = None;
    for line in mounts.lines() {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let (&[_, _, device, _, at, options, ..], &[kind, _, more, ..]) =
            (before.as_slice(), after.as_slice())
        else {
            continue;
        };
        let at = at.replace("\\040", " ");
        if !path.starts_with(&at) || best.as_ref().is_some_and(|(len, _)| *len > at.len()) {
            continue;
        }
        let options = options.split(',').chain(more.split(','));
        let mount = Mount {
            device: device.to_owned(),
            kind: kind.to_owned(),
            options: options.map(str::to_owned).collect(),
        };
        best = Some((at.len(), mount));
    }
    best.map(|(_, mount)| mount)
}

/// Where a block device's queue is: its own, or that of the disk that it is a part of.
fn queue_of(root: &Path, device: &str) -> Option<PathBuf> {
    let device = fs::canonicalize(root.join("sys/dev/block").join(device)).ok()?;
    let queues = [device.join("queue"), device.join("../queue")];
    queues.into_iter().find(|queue| queue.is_dir())
}

/// Tried, because permissions do not say it: a mount may be read-only, and root may write anywhere.
fn is_writable(directory: &Path) -> bool {
    let name = format!(".iris-doctor-{}", std::process::id());
    let probe = directory.join(name);
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe);
    let made: io::Result<()> = made.map(drop);
    let _ = fs::remove_file(&probe); // not there, or ours
    made.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,noatime shared:1 - ext4 /dev/vda rw,data=ordered
31 27 0:30 / /var/lib/my\\040data rw - tmpfs tmpfs rw,size=1g
";

    #[test]
    fn a_path_is_on_the_mount_that_is_nearest_to_it() {
        let kind = |path: &str| mount_of(MOUNTS, Path::new(path)).unwrap().kind;
        assert_eq!(kind("/var/lib/my data/iris"), "tmpfs");
        assert_eq!(kind("/var/lib/iris"), "ext4");
        let root = mount_of(MOUNTS, Path::new("/")).unwrap();
        assert_eq!(root.device, "254:0");
        assert_eq!(root.options, ["rw", "noatime", "rw", "data=ordered"]);
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("weird"), None);
        let text = "MemTotal: 9 kB\nSwapTotal:   100 kB\nSwapFree:     40 kB\n";
        assert_eq!(swap(text), Some((60 * 1_024, 100 * 1_024)));
        let text = "   CPU0  CPU1\n 24:  1  20  IO-APIC 5-edge x\n 25:  3  4  y\nLOC: 9 9 z\n";
        assert_eq!(interrupts(text), [4, 24]);
    }

    #[test]
    fn a_machine_that_says_nothing_is_unknown_and_no_reason_to_fail() {
        let empty = tempfile::tempdir().unwrap();
        let machine = Machine::read_files(empty.path(), &["net.core.somaxconn"]);
        assert_eq!(
            (machine.kernel, machine.swap, machine.nodes),
            (None, None, None)
        );
        assert_eq!(machine.sysctl("net.core.somaxconn"), None);
    }

    #[test]
    fn files_below_a_root_are_read_as_the_machines() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/sys/net/core/somaxconn", "4096\n");
        write("proc/sys/kernel/osrelease", "6.12.3\n");
        write(
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        );
        write("sys/class/net/eth0/device/x", "");
        write(
            "sys/class/net/eth0/queues/rx-0/rps_cpus",
            "00000000,00000003\n",
        );
        write("sys/class/net/lo/queues/rx-0/rps_cpus", "0\n");
        let machine = Machine::read_files(root.path(), &["net.core.somaxconn"]);
        assert_eq!(machine.sysctl("net.core.somaxconn"), Some("4096"));
        assert_eq!(machine.kernel, Some((6, 12)));
        assert_eq!(machine.huge_pages.as_deref(), Some("madvise"));
        assert_eq!(machine.networks, [("eth0".to_owned(), 1, true)]);
    }
}
