//! A disk that is gone in the middle of the load: the process says so in one line and aborts, tells
//! nobody anything after it, and what it had accepted is there when the disk is back.
//!
//! The file system is shut down under the switch, which for the last kind of cut is a real power
//! cut: what had not been synced by then, and its metadata, is lost.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;

use super::harness::{Random, Server, Setup, iris, seed};
use super::load::{Ended, Load, Watch};
use super::small_disk::{Cut, SmallDisk};

/// Room for the segments that two logs keep ahead, and for what the load writes in all rounds.
const DISK_MIB: u64 = 64;

/// Rounds of each test, 5 unless `IRIS_CUT_ROUNDS` says another number.
fn rounds() -> u64 {
    std::env::var("IRIS_CUT_ROUNDS").map_or(5, |text| text.parse().unwrap())
}

/// One line, an error, which says what happened, why, and what to do. The audit log, a file beside, may
/// complain of the same disk.
fn assert_said_once(lines: &[String]) {
    let is_ours = |line: &&String| line.contains("ERROR") && !line.contains("iris::runtime::audit");
    let errors: Vec<_> = lines.iter().filter(is_ours).collect();
    assert_eq!(errors.len(), 1, "{lines:?}");
    let line = errors[0];
    for part in [
        "write or sync failed",
        "Input/output error",
        "check the disk",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!lines.iter().any(|line| line.contains("panicked")));
}

/// As long as the disk is gone, a start is refused in one line.
fn assert_refused(disk: &SmallDisk) {
    let mut command = iris();
    command.args(["serve", "--dev", "--log-level", "off", "--data"]);
    command.arg(disk.data()).args(["--listen", "127.0.0.1:0"]);
    let output = command.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
}

/// Cuts the disk off under load, again and again on the same data.
fn cut_off_under_load(cut: Cut) {
    let Some(mut disk) = SmallDisk::make(DISK_MIB) else {
        return;
    };
    let mut random = Random(seed());
    let mut load = Load {
        bytes_max: 8_000,
        ..Load::default()
    };
    for round in 0..rounds() {
        let server = Server::start_with(&disk.data(), &Setup::small_storage());
        let watch = Watch::default();
        let until = 1 + random.below(500);
        let ended = load.run(&server, &watch, &mut random, || {
            watch.until_accepted(until);
            disk.cut_off(cut);
            watch.disk_gone.store(true, Ordering::SeqCst);
        });
        assert!(!ended.contains(&Ended::Told), "round {round}: {ended:?}");
        let (status, lines) = server.ended();
        assert_eq!(
            status.signal(),
            Some(libc::SIGABRT),
            "round {round}: {lines:?}"
        );
        assert_said_once(&lines);
        assert_refused(&disk);
        disk.unmount();
        disk.mount();
        let server = Server::start_with(&disk.data(), &Setup::small_storage());
        load.settle(&server, &mut random);
        server.kill();
    }
    disk.unmount();
    println!("{cut:?}: {} messages accepted", load.accepted());
}

/// R: D-4, B-1
#[test]
fn a_failed_write_or_sync_is_said_in_one_line_and_aborts_and_nothing_is_accepted_after_it() {
    cut_off_under_load(Cut::FlushAll);
}

/// Whoever logs nothing is told why it ended all the same.
///
/// R: D-4
#[test]
fn the_reason_is_said_even_where_nothing_is_logged() {
    let Some(mut disk) = SmallDisk::make(DISK_MIB) else {
        return;
    };
    let mut setup = Setup::small_storage();
    setup
        .environment
        .push(("IRIS_LOG__LEVEL", "off".to_owned()));
    let server = Server::start_with(&disk.data(), &setup);
    let mut load = Load::default();
    let watch = Watch::default();
    load.run(&server, &watch, &mut Random(seed()), || {
        watch.until_accepted(10);
        disk.cut_off(Cut::FlushAll);
        watch.disk_gone.store(true, Ordering::SeqCst);
    });
    let (status, lines) = server.ended();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{lines:?}");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_said_once(&lines);
    disk.unmount();
}

/// R: D-4, D-6, B-1, B-2, B-5
#[test]
fn a_power_cut_under_load_loses_nothing_accepted_and_invents_nothing() {
    cut_off_under_load(Cut::Power);
}

/// R: D-4, D-6, B-1, B-2, B-5
#[test]
fn a_power_cut_that_keeps_the_journal_and_no_data_loses_nothing_accepted() {
    cut_off_under_load(Cut::FlushJournal);
}
