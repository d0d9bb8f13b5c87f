//! The rows, in the order of `kernel-tuning/README.md`, which a test compares with them.

use super::{Machine, Row, Verdict};
use crate::runtime::preflight::{MEMLOCK_BYTES_PER_CORE, OPEN_FILES_MIN};

/// Open files below which a busy switch runs out. A guess: a small town's worth of phones.
const OPEN_FILES_WANTED: u64 = 65_536;
/// Free bytes below which a fresh switch refuses messages: two segments of each of two logs.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// Free bytes below which it will soon.
const FREE_BYTES_WANTED: u64 = 4 << 30;
/// Device interrupts below which their spread means nothing.
const INTERRUPTS_MIN: u64 = 100_000;

/// File systems in memory, or over the network: what is synced there is not on a disk of this machine.
const NOT_A_DISK: [&str; 4] = ["tmpfs", "ramfs", "devtmpfs", "hugetlbfs"];
/// Those whose `fdatasync` depends on another machine, or on who wrote the layer.
const NOT_OURS: [&str; 7] = ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "overlay"];
/// Those that it was tried on.
const TRIED: [&str; 2] = ["ext4", "xfs"];

/// The sysctls that the rows read.
pub const SYSCTLS: [&str; 7] = [
    "kernel.io_uring_disabled",
    "fs.nr_open",
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_slow_start_after_idle",
    "vm.swappiness",
];

/// Everything that is looked at.
#[rustfmt::skip] // one row, one piece of a table
pub static ROWS: [Row; 22] = [
    Row { knob: "kernel", wanted: "6.1 or newer",
        why: "the sockets' ring needs SINGLE_ISSUER and DEFER_TASKRUN; without them the switch does not start",
        how: "install a newer kernel", look: kernel },
    Row { knob: "kernel.io_uring_disabled", wanted: "0, and a ring can be set up",
        why: "without io_uring the switch does not start",
        how: "sysctl kernel.io_uring_disabled=0; in a container allow io_uring in the seccomp profile", look: ring },
    Row { knob: "LimitMEMLOCK", wanted: "512 KiB for each core",
        why: "each core's executor refuses to start below that",
        how: "LimitMEMLOCK=infinity in the unit, --ulimit memlock=-1 for a container", look: memlock },
    Row { knob: "LimitNOFILE", wanted: "65536 or more",
        why: "one descriptor for each connection, some for the logs; at the limit new clients wait",
        how: "LimitNOFILE=1048576 in the unit, --ulimit nofile=1048576 for a container", look: open_files },
    Row { knob: "fs.nr_open", wanted: "1048576 or more",
        why: "bounds the open files of a process, whatever its limit says",
        how: "sysctl fs.nr_open=1048576", look: |machine| at_least(machine, "fs.nr_open", 1_048_576) },
    Row { knob: "net.core.somaxconn", wanted: "4096 or more",
        why: "a storm of reconnecting clients overflows a shorter queue, and each waits a second",
        how: "sysctl net.core.somaxconn=4096", look: |machine| at_least(machine, "net.core.somaxconn", 4_096) },
    Row { knob: "net.ipv4.tcp_max_syn_backlog", wanted: "4096 or more",
        why: "the same for connections that are half open",
        how: "kernel-tuning/apply", look: |machine| at_least(machine, "net.ipv4.tcp_max_syn_backlog", 4_096) },
    Row { knob: "net.ipv4.tcp_notsent_lowat", wanted: "131072 or less",
        why: "the kernel holds at most so much for a reader that does not read, beyond what is under way",
        how: "kernel-tuning/apply", look: notsent },
    Row { knob: "net.ipv4.tcp_slow_start_after_idle", wanted: "0",
        why: "a chat connection is idle between messages, and should not start anew each time",
        how: "kernel-tuning/apply", look: slow_start },
    Row { knob: "network queues", wanted: "as many as processors, or RPS",
        why: "with one queue one processor does the network's work for all cores",
        how: "ethtool -L DEVICE combined N, or a mask in /sys/class/net/DEVICE/queues/rx-0/rps_cpus", look: queues },
    Row { knob: "IRQ affinity", wanted: "no processor with 9 of 10 interrupts",
        why: "an interrupt in a turn delays all connections of that core",
        how: "irqbalance, or masks in /proc/irq/N/smp_affinity", look: interrupts },
    Row { knob: "isolcpus", wanted: "the switch's cores, where it has the machine to itself",
        why: "nothing else runs there, and no tick interrupts a turn",
        how: "isolcpus= and nohz_full= on the kernel's command line", look: isolated },
    Row { knob: "CPU governor", wanted: "performance",
        why: "a core that slept wakes at a low frequency",
        how: "cpupower frequency-set -g performance", look: governor },
    Row { knob: "transparent huge pages", wanted: "madvise or never",
        why: "collapsing pages in the background steals time; the switch asks for none",
        how: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled", look: huge_pages },
    Row { knob: "clocksource", wanted: "tsc, kvm-clock or arch_sys_counter",
        why: "the clock is read in every turn; others cost a system call and a slow register",
        how: "clocksource=tsc on the kernel's command line, if the hardware's is stable", look: clocksource },
    Row { knob: "NUMA", wanted: "one node, or the switch on one",
        why: "memory of another node is slower for every access",
        how: "choose [server] cores of one node, and AllowedMemoryNodes= in the unit", look: numa },
    Row { knob: "swap", wanted: "none in use",
        why: "a core that waits for a page from the disk serves nobody meanwhile",
        how: "swapoff -a, MemorySwapMax=0 in the unit, or sysctl vm.swappiness=1", look: swap },
    Row { knob: "file system", wanted: "ext4 or xfs on a disk of this machine, writable",
        why: "accepted means that fdatasync has returned; in memory, or elsewhere, that promises nothing",
        how: "put the data directory on a local disk (--data, [server] data)", look: file_system },
    Row { knob: "mount options", wanted: "barriers on; noatime",
        why: "without barriers a sync does not reach the disk; with atime a read writes",
        how: "remount without nobarrier or barrier=0, and with noatime or relatime", look: options },
    Row { knob: "free space", wanted: "4 GiB or more",
        why: "without room for a segment new messages are refused",
        how: "free space, or a larger disk; see \"Disk full\" in docs/OPERATIONS.md", look: free },
    Row { knob: "I/O scheduler", wanted: "none or mq-deadline",
        why: "one flush is under way for each core: there is nothing to reorder",
        how: "echo none > /sys/block/DEVICE/queue/scheduler", look: scheduler },
    Row { knob: "write cache", wanted: "write through, or one with power-loss protection",
        why: "a sync has to empty a volatile cache each time, and a drive that lies about it loses messages",
        how: "ask the drive's maker; nvme id-ctrl, hdparm -W", look: write_cache },
];

fn unknown() -> (String, Verdict) {
    ("cannot be seen from here".to_owned(), Verdict::Unknown)
}

fn judged(found: impl ToString, verdict: Verdict) -> (String, Verdict) {
    (found.to_string(), verdict)
}

/// As it should be, or the other thing.
fn either(found: impl ToString, is_ok: bool, otherwise: Verdict) -> (String, Verdict) {
    judged(found, if is_ok { Verdict::Ok } else { otherwise })
}

fn number(machine: &Machine, name: &str) -> Option<u64> {
    machine.sysctl(name)?.parse().ok()
}

fn at_least(machine: &Machine, name: &str, wanted: u64) -> (String, Verdict) {
    let found = number(machine, name);
    found.map_or_else(unknown, |found| {
        either(found, found >= wanted, Verdict::Slow)
    })
}

fn kernel(machine: &Machine) -> (String, Verdict) {
    let Some(version) = machine.kernel else {
        return unknown();
    };
    either(&machine.release, version >= (6, 1), Verdict::Breaks)
}

fn ring(machine: &Machine) -> (String, Verdict) {
    let sysctl = machine
        .sysctl("kernel.io_uring_disabled")
        .unwrap_or("absent");
    match &machine.ring {
        None => unknown(),
        Some(Ok(())) => judged(format!("{sysctl}, and a ring was set up"), Verdict::Ok),
        Some(Err(why)) => judged(format!("{sysctl}, and no ring: {why}"), Verdict::Breaks),
    }
}

fn limit(limit: u64) -> String {
    match limit {
        u64::MAX => "unlimited".to_owned(),
        limit => limit.to_string(),
    }
}

fn memlock(machine: &Machine) -> (String, Verdict) {
    let needed = MEMLOCK_BYTES_PER_CORE * machine.processors as u64;
    let found = machine.memlock.map(|found| {
        let text = format!("{} bytes for {} cores", limit(found), machine.processors);
        either(text, found >= needed, Verdict::Breaks)
    });
    found.unwrap_or_else(unknown)
}

fn open_files(machine: &Machine) -> (String, Verdict) {
    let Some(found) = machine.open_files else {
        return unknown();
    };
    let verdict = match found {
        0..OPEN_FILES_MIN => Verdict::Breaks,
        OPEN_FILES_MIN..OPEN_FILES_WANTED => Verdict::Slow,
        OPEN_FILES_WANTED.. => Verdict::Ok,
    };
    judged(limit(found), verdict)
}

fn notsent(machine: &Machine) -> (String, Verdict) {
    let found = number(machine, "net.ipv4.tcp_notsent_lowat");
    found.map_or_else(unknown, |found| {
        either(found, found <= 131_072, Verdict::Slow)
    })
}

fn slow_start(machine: &Machine) -> (String, Verdict) {
    let found = number(machine, "net.ipv4.tcp_slow_start_after_idle");
    found.map_or_else(unknown, |found| either(found, found == 0, Verdict::Slow))
}

fn queues(machine: &Machine) -> (String, Verdict) {
    if machine.networks.is_empty() {
        return unknown();
    }
    let is_narrow = |network: &&(String, usize, bool)| network.1 < machine.processors && !network.2;
    let said = machine.networks.iter().map(|(name, queues, is_spread)| {
        let rps = if *is_spread { ", RPS" } else { "" };
        format!("{name} {queues}{rps}")
    });
    let said = said.collect::<Vec<_>>().join("; ");
    let is_ok = !machine.networks.iter().any(|network| is_narrow(&network));
    either(
        format!("{said}; {} processors", machine.processors),
        is_ok,
        Verdict::Slow,
    )
}

fn interrupts(machine: &Machine) -> (String, Verdict) {
    let all: u64 = machine.interrupts.iter().sum();
    let most = machine.interrupts.iter().max().copied().unwrap_or(0);
    if machine.interrupts.len() < 2 {
        return judged("one processor", Verdict::Ok);
    }
    let counts: Vec<String> = machine
        .interrupts
        .iter()
        .take(8)
        .map(u64::to_string)
        .collect();
    let more = if machine.interrupts.len() > 8 {
        ", …"
    } else {
        ""
    };
    let said = format!("{}{more} since boot", counts.join(", "));
    let is_ok = all < INTERRUPTS_MIN || most * 10 < all * 9;
    either(said, is_ok, Verdict::Slow)
}

fn isolated(machine: &Machine) -> (String, Verdict) {
    let Some(line) = &machine.command_line else {
        return unknown();
    };
    let words = line.split_whitespace();
    let said: Vec<&str> = words
        .filter(|word| word.starts_with("isolcpus=") || word.starts_with("nohz_full="))
        .collect();
    match said.as_slice() {
        [] => judged("not set, as on any machine with other work", Verdict::Ok),
        said => judged(said.join(" "), Verdict::Ok),
    }
}

fn governor(machine: &Machine) -> (String, Verdict) {
    match &machine.governor {
        None => judged("none: the machine below decides, or nobody", Verdict::Ok),
        Some(found) => either(found, found == "performance", Verdict::Slow),
    }
}

fn huge_pages(machine: &Machine) -> (String, Verdict) {
    let found = machine.huge_pages.as_ref();
    found.map_or_else(unknown, |found| {
        either(found, found != "always", Verdict::Slow)
    })
}

fn clocksource(machine: &Machine) -> (String, Verdict) {
    const FAST: [&str; 5] = [
        "tsc",
        "kvm-clock",
        "arch_sys_counter",
        "hyperv_clocksource_tsc_page",
        "xen",
    ];
    let found = machine.clocksource.as_ref();
    found.map_or_else(unknown, |found| {
        either(found, FAST.contains(&found.as_str()), Verdict::Slow)
    })
}

fn numa(machine: &Machine) -> (String, Verdict) {
    let found = machine.nodes;
    found.map_or_else(unknown, |nodes| {
        either(format!("{nodes} with memory"), nodes <= 1, Verdict::Slow)
    })
}

fn swap(machine: &Machine) -> (String, Verdict) {
    let swappiness = machine.sysctl("vm.swappiness").unwrap_or("unknown");
    machine.swap.map_or_else(unknown, |(used, all)| {
        let mib = |bytes: u64| bytes >> 20;
        let said = format!(
            "{} of {} MiB in use, vm.swappiness {swappiness}",
            mib(used),
            mib(all)
        );
        either(said, used == 0, Verdict::Slow)
    })
}

fn file_system(machine: &Machine) -> (String, Verdict) {
    let disk = &machine.disk;
    let Some(kind) = &disk.kind else {
        return unknown();
    };
    let said = format!("{kind} at {}", disk.path.display());
    if !disk.writable {
        return judged(
            format!("{said}, not writable for this user"),
            Verdict::Breaks,
        );
    }
    if NOT_A_DISK.contains(&kind.as_str()) {
        return judged(
            format!("{said}: memory, gone with the power"),
            Verdict::Breaks,
        );
    }
    if NOT_OURS.contains(&kind.as_str()) || kind.starts_with("fuse.") {
        let text = format!("{said}: what a sync means there is not known");
        return judged(text, Verdict::Breaks);
    }
    if TRIED.contains(&kind.as_str()) {
        return judged(said, Verdict::Ok);
    }
    judged(format!("{said}: not tried"), Verdict::Unknown)
}

fn options(machine: &Machine) -> (String, Verdict) {
    let options = &machine.disk.options;
    if options.is_empty() {
        return unknown();
    }
    let has = |name: &str| options.iter().any(|option| option == name);
    let said = options.join(",");
    if has("nobarrier") || has("barrier=0") {
        return judged(said, Verdict::Breaks);
    }
    either(said, has("noatime") || has("relatime"), Verdict::Slow)
}

fn free(machine: &Machine) -> (String, Verdict) {
    let Some(found) = machine.disk.free_bytes else {
        return unknown();
    };
    let verdict = match found {
        0..FREE_BYTES_MIN => Verdict::Breaks,
        FREE_BYTES_MIN..FREE_BYTES_WANTED => Verdict::Slow,
        FREE_BYTES_WANTED.. => Verdict::Ok,
    };
    judged(format!("{} MiB", found >> 20), verdict)
}

fn scheduler(machine: &Machine) -> (String, Verdict) {
    let found = machine.disk.scheduler.as_ref();
    found.map_or_else(unknown, |found| {
        let is_ok = ["none", "mq-deadline"].contains(&found.as_str());
        either(found, is_ok, Verdict::Slow)
    })
}

fn write_cache(machine: &Machine) -> (String, Verdict) {
    let found = machine.disk.write_cache.as_deref();
    found.map_or_else(unknown, |found| match found {
        "write through" => judged(found, Verdict::Ok),
        _ => judged(
            format!("{found}: volatile, unless the drive protects it"),
            Verdict::Unknown,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::machine::Disk;
    use super::super::{Finding, examine};
    use super::*;

    /// A machine with nothing to complain of.
    fn good() -> Machine {
        let values = ["0", "1048576", "4096", "8192", "131072", "0", "60"];
        Machine {
            kernel: Some((6, 1)),
            release: "6.1.0".to_owned(),
            ring: Some(Ok(())),
            processors: 2,
            memlock: Some(u64::MAX),
            open_files: Some(1_048_576),
            sysctls: SYSCTLS.into_iter().zip(values.map(str::to_owned)).collect(),
            clocksource: Some("tsc".to_owned()),
            huge_pages: Some("madvise".to_owned()),
            governor: Some("performance".to_owned()),
            command_line: Some("root=/dev/vda quiet".to_owned()),
            nodes: Some(1),
            swap: Some((0, 0)),
            interrupts: vec![500_000, 400_000],
            networks: vec![("eth0".to_owned(), 2, false)],
            disk: Disk {
                path: "/var/lib/iris".into(),
                kind: Some("ext4".to_owned()),
                options: vec!["rw".to_owned(), "noatime".to_owned()],
                free_bytes: Some(100 << 30),
                writable: true,
                scheduler: Some("none".to_owned()),
                write_cache: Some("write through".to_owned()),
            },
        }
    }

    fn verdict(change: impl FnOnce(&mut Machine), knob: &str) -> Verdict {
        let mut machine = good();
        change(&mut machine);
        let findings = examine(&machine);
        let is_other = |finding: &&Finding| finding.knob != knob && finding.verdict != Verdict::Ok;
        assert_eq!(
            findings.iter().find(is_other),
            None,
            "only one thing is wrong"
        );
        let found = findings.iter().find(|finding| finding.knob == knob);
        found.unwrap().verdict
    }

    fn set(machine: &mut Machine, name: &str, value: &str) {
        let found = machine.sysctls.iter_mut().find(|(known, _)| *known == name);
        found.unwrap().1 = value.to_owned();
    }

    /// R: E-3
    #[test]
    fn what_breaks_a_promise_is_told_apart_from_what_is_slow() {
        use Verdict::{Breaks, Ok, Slow};
        assert_eq!(verdict(|_| (), "kernel"), Ok);
        assert_eq!(verdict(|m| m.kernel = Some((5, 19)), "kernel"), Breaks);
        let forbidden = |m: &mut Machine| m.ring = Some(Err("EPERM".to_owned()));
        assert_eq!(verdict(forbidden, "kernel.io_uring_disabled"), Breaks);
        assert_eq!(
            verdict(|m| m.memlock = Some(1 << 19), "LimitMEMLOCK"),
            Breaks
        );
        assert_eq!(
            verdict(|m| m.open_files = Some(1_000), "LimitNOFILE"),
            Breaks
        );
        assert_eq!(verdict(|m| m.open_files = Some(4_096), "LimitNOFILE"), Slow);
        let knob = "net.ipv4.tcp_slow_start_after_idle";
        assert_eq!(verdict(|m| set(m, knob, "1"), knob), Slow);
        let knob = "net.ipv4.tcp_notsent_lowat";
        assert_eq!(verdict(|m| set(m, knob, "4294967295"), knob), Slow);
        let knob = "net.core.somaxconn";
        assert_eq!(verdict(|m| set(m, knob, "128"), knob), Slow);
        assert_eq!(verdict(|m| m.networks[0].1 = 1, "network queues"), Slow);
        assert_eq!(verdict(|m| m.interrupts[1] = 1, "IRQ affinity"), Slow);
        let governor = |m: &mut Machine| m.governor = Some("powersave".to_owned());
        assert_eq!(verdict(governor, "CPU governor"), Slow);
        let always = |m: &mut Machine| m.huge_pages = Some("always".to_owned());
        assert_eq!(verdict(always, "transparent huge pages"), Slow);
        let hpet = |m: &mut Machine| m.clocksource = Some("hpet".to_owned());
        assert_eq!(verdict(hpet, "clocksource"), Slow);
        assert_eq!(verdict(|m| m.nodes = Some(2), "NUMA"), Slow);
        assert_eq!(verdict(|m| m.swap = Some((1 << 20, 1 << 30)), "swap"), Slow);
    }

    /// R: D-4, E-3
    #[test]
    fn a_data_directory_where_a_sync_promises_nothing_breaks() {
        use Verdict::{Breaks, Ok, Slow, Unknown};
        let on = |kind: &str| {
            let kind = kind.to_owned();
            verdict(move |machine| machine.disk.kind = Some(kind), "file system")
        };
        for kind in ["tmpfs", "ramfs", "nfs4", "overlay", "fuse.sshfs"] {
            assert_eq!(on(kind), Breaks, "{kind}");
        }
        assert_eq!((on("xfs"), on("btrfs")), (Ok, Unknown));
        assert_eq!(verdict(|m| m.disk.writable = false, "file system"), Breaks);
        let mounted = |with: &'static str| {
            let change = move |m: &mut Machine| m.disk.options = vec![with.to_owned()];
            verdict(change, "mount options")
        };
        assert_eq!(
            (mounted("barrier=0"), mounted("nobarrier")),
            (Breaks, Breaks)
        );
        assert_eq!((mounted("relatime"), mounted("strictatime")), (Ok, Slow));
        assert_eq!(
            verdict(|m| m.disk.free_bytes = Some(1 << 20), "free space"),
            Breaks
        );
        assert_eq!(
            verdict(|m| m.disk.free_bytes = Some(1 << 30), "free space"),
            Slow
        );
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_breaks_nothing() {
        let findings = examine(&Machine::default());
        let broken = findings
            .iter()
            .find(|finding| finding.verdict == Verdict::Breaks);
        assert_eq!(broken, None);
    }

    /// The first column of the README's tables, as far as it is about knobs.
    fn rows_of_readme() -> Vec<String> {
        let text = include_str!("../../../kernel-tuning/README.md");
        let mut rows = Vec::new();
        let mut is_inside = false;
        for line in text.lines() {
            if !line.starts_with('|') {
                is_inside = false;
            } else if line.starts_with("| knob |") {
                is_inside = true;
            } else if is_inside && !line.starts_with("|---") {
                let cell = line.split('|').nth(1).unwrap().trim();
                rows.push(cell.trim_matches('`').to_owned());
            }
        }
        rows
    }

    /// R: E-3
    #[test]
    fn the_readme_of_kernel_tuning_has_the_same_rows_in_the_same_order() {
        let rows: Vec<&str> = ROWS.iter().map(|row| row.knob).collect();
        assert_eq!(rows_of_readme(), rows);
    }

    /// R: E-3
    #[test]
    fn what_apply_sets_is_what_the_doctor_wants() {
        let text = include_str!("../../../kernel-tuning/sysctl.d/60-iris.conf");
        let mut machine = good();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut count = 0;
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(" = ").unwrap();
            set(&mut machine, name, value);
            count += 1;
        }
        assert!(count >= 3);
        assert!(
            examine(&machine)
                .iter()
                .all(|finding| finding.verdict == Verdict::Ok)
        );
    }
}
