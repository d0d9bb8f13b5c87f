//! What keeps a log short, on real files: checkpoints, cleaning, removal, and the thread that does them.

use std::time::Duration;

use super::logs::{Rig, UPKEEP, body, user};
use super::*;
use crate::runtime::storage::keeper::{Done, Keeper, Places, REMOVALS_MAX, Task, checkpoint_path};
use crate::runtime::storage::mmap::drop_cache;
use crate::runtime::storage::open::read_log;
use crate::runtime::storage::spare::segment_path;
use crate::shard::ShardConfig;
use crate::store::recover::{Known, judge_checkpoint};

/// How long a test waits for another thread before it fails.
const PATIENCE: Duration = Duration::from_secs(60);
const OFTEN: Upkeep = Upkeep {
    checkpoint_bytes: SEGMENT_BYTES,
    ..UPKEEP
};

/// Messages that are acknowledged at once, until so many segments were removed; how many messages.
fn until_segments_go(rig: &mut Rig, segments: u64) -> u64 {
    let name = user(rig.key, 0);
    rig.register(&name);
    let mut n = rig.head(0);
    while rig.log.store.status().removed_segments < segments {
        n += 1;
        assert!(n < 2_000, "{:?}", rig.log.store.status());
        rig.send(0, n, 60_000);
        rig.acknowledge(0, n);
        rig.log.now.monotonic_us += 20_000;
        rig.log.settle().unwrap();
    }
    n
}

fn checkpoint_now(rig: &mut Rig) {
    let before = rig.log.store.status().checkpoint;
    rig.log.store.checkpoint_now();
    let is_done = |log: &mut BlockingLog| log.store.status().checkpoint > before;
    rig.log.run_until(is_done).unwrap();
}

/// Names of the files in a directory, in order.
fn names(path: &Path, directory: &str) -> Vec<String> {
    let files = fs::read_dir(path.join(directory)).unwrap();
    let mut names: Vec<_> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// R: D-5
#[test]
fn checkpoints_are_written_and_old_segments_removed_and_a_restart_reads_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open_with(&data_dir, OFTEN).unwrap();
    // Another user's message waits for a device for ever: it is to be moved.
    rig.send(1, 1, 60_000);
    until_segments_go(&mut rig, 4);
    let state = rig.state();
    drop(rig); // the threads finish what they were asked
    let first = segment(temp.path(), 0);
    assert!(!first.exists(), "the first segment is gone");
    let checkpoints = names(temp.path(), "ckpt-01");
    assert_eq!(checkpoints.len(), 2, "{checkpoints:?}");
    let rig = Rig::open_with(&data_dir, OFTEN).unwrap();
    assert_eq!(rig.state(), state);
    assert_eq!(rig.inbox(1), [(1, Ok(body(1, 60_000)))]);
    drop(rig);
    let newest = temp.path().join("ckpt-01").join(&checkpoints[1]);
    flip(&newest, fs::metadata(&newest).unwrap().len() as usize / 2);
    let rig = Rig::open_with(&data_dir, OFTEN).unwrap();
    assert_eq!(rig.state(), state, "from the older checkpoint");
}

/// R: D-5
#[test]
fn a_checkpoint_left_unfinished_by_a_killed_process_is_none_and_gives_way_to_the_next() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    fs::write(temp.path().join("ckpt-01/unfinished.tmp"), [7; 100_000]).unwrap();
    let mut rig = Rig::open(&data_dir).unwrap();
    assert_eq!(names(temp.path(), "ckpt-01"), ["unfinished.tmp"]);
    rig.send(0, 1, 0);
    checkpoint_now(&mut rig);
    let lsn = rig.log.store.status().checkpoint.unwrap();
    assert_eq!(names(temp.path(), "ckpt-01"), [format!("{lsn:016x}.ckpt")]);
    let path = checkpoint_path(&temp.path().join("ckpt-01"), lsn);
    let setup = data_dir.setup(1, ShardConfig::default(), UPKEEP);
    let bytes = fs::read(path).unwrap();
    assert_eq!(judge_checkpoint(&setup, lsn, &bytes), Ok(32));
}

/// Four checkpoints as they were written, one after the other, of which the last two are kept.
pub(super) fn four_checkpoints(rig: &mut Rig, path: &Path) -> Vec<(Vec<u8>, PathBuf)> {
    let mut written = Vec::new();
    for n in 1..=4 {
        rig.send(0, n, 0);
        checkpoint_now(rig);
        let lsn = rig.log.store.status().checkpoint.unwrap();
        let file = checkpoint_path(&path.join("ckpt-01"), lsn);
        written.push((fs::read(&file).unwrap(), file));
    }
    written
}

/// R: D-3, D-5. A power cut may undo a removal that was not synced, and a kill may come before it.
#[test]
fn checkpoints_whose_removal_did_not_last_go_with_the_start() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    let written = four_checkpoints(&mut rig, temp.path());
    drop(rig);
    assert_eq!(names(temp.path(), "ckpt-01").len(), 2);
    for (bytes, path) in &written[..2] {
        fs::write(path, bytes).unwrap();
    }
    let mut rig = Rig::open(&data_dir).unwrap();
    assert_eq!((rig.head(0), rig.damaged()), (4, vec![]));
    rig.log.settle().unwrap();
    drop(rig);
    let is_there = |(_, path): &(Vec<u8>, PathBuf)| path.exists();
    let left: Vec<bool> = written.iter().map(is_there).collect();
    assert_eq!(left, [false, false, true, true]);
}

/// R: D-2, D-3. Only what two whole checkpoints are newer than is needed by nobody.
#[test]
fn a_start_removes_no_checkpoint_that_might_be_needed_because_a_newer_one_is_damaged() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    let written = four_checkpoints(&mut rig, temp.path());
    drop(rig);
    for (hurt, expected) in [
        (&[2][..], [false, true, true, true]),
        (&[1, 2], [true, true, true, true]),
        (&[1, 2, 3], [true, true, true, true]),
    ] {
        for (number, (bytes, path)) in written.iter().enumerate() {
            fs::write(path, bytes).unwrap();
            if hurt.contains(&number) {
                flip(path, bytes.len() / 2);
            }
        }
        let mut rig = Rig::open(&data_dir).unwrap();
        assert_eq!((rig.head(0), rig.damaged()), (4, vec![]));
        rig.log.settle().unwrap();
        drop(rig);
        let is_there = |(_, path): &(Vec<u8>, PathBuf)| path.exists();
        let left: Vec<bool> = written.iter().map(is_there).collect();
        assert_eq!(left, expected, "{hurt:?} are damaged");
    }
}

/// R: D-5, B-1
#[test]
fn a_message_in_a_removed_segment_is_refused_and_not_something_else() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open_with(&data_dir, OFTEN).unwrap();
    until_segments_go(&mut rig, 0);
    rig.send(0, 1, 0);
    let gone = rig.position(0, 1);
    assert!(rig.log.files.item(gone).is_ok());
    until_segments_go(&mut rig, 3);
    for _ in 0..2 {
        let found = rig.log.files.item(gone);
        let refused =
            |found| matches!(found, Err(ReadError::Outside { position, .. }) if position == gone);
        assert!(refused(found), "{found:?}");
        assert_eq!(rig.log.files.cold_range(gone, 100), None);
        let newest = rig.inbox(0).pop().unwrap();
        assert_eq!(newest.1, Ok(body(newest.0, 60_000)));
        drop(rig);
        assert!(!segment(temp.path(), 0).exists());
        rig = Rig::open_with(&data_dir, OFTEN).unwrap();
    }
}

/// R: D-5. Removals may be as many as there are segments.
#[test]
fn more_removals_than_the_keeper_has_room_for_are_all_done_and_hold_up_no_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let places = Places {
        segments: temp.path().join("log-00"),
        checkpoints: temp.path().join("ckpt-00"),
        size: crate::log::SegmentSize::new(SEGMENT_BYTES).unwrap(),
    };
    fs::create_dir(&places.segments).unwrap();
    fs::create_dir(&places.checkpoints).unwrap();
    let count = 3 * REMOVALS_MAX as u64;
    for index in 0..count {
        fs::write(segment_path(&places.segments, places.size, index), b"").unwrap();
    }
    let mut keeper = Keeper::start(&places).unwrap();
    let (hold, held) = crossbeam_channel::unbounded::<()>();
    let (woke, woken) = crossbeam_channel::unbounded();
    keeper.on_done(Box::new(move || {
        woke.send(()).unwrap_or_default();
        let _ = held.recv(); // until the other side lets go, and from then on at once
    }));
    let remove = |segment| Task::RemoveSegment { segment };
    keeper.ask(remove(0));
    woken.recv_timeout(PATIENCE).unwrap();
    (1..count).for_each(|segment| keeper.ask(remove(segment)));
    keeper.ask(Task::Begin { lsn: 8192 });
    keeper.ask(Task::Harvest {
        segment: 0,
        from: 0,
        budget: 1,
    });
    assert_eq!(
        fs::read_dir(&places.segments).unwrap().count() as u64,
        count - 1
    );
    drop(hold);
    let (mut begun, mut harvested) = (0, 0);
    loop {
        while let Some(done) = keeper.take() {
            match done {
                Done::Checkpoint(done) => begun += usize::from(done),
                Done::Harvest(_) => harvested += 1,
            }
        }
        let left = fs::read_dir(&places.segments).unwrap().count();
        if (begun, harvested, left) == (1, 1, 0) {
            break;
        }
        let again = woken.recv_timeout(PATIENCE);
        assert!(
            again.is_ok(),
            "begun {begun}, harvested {harvested}, {left} left"
        );
    }
}

/// Bytes of a file in the page cache, as `fincore` of util-linux says; `None` without it.
fn cached_bytes(path: &Path) -> Option<u64> {
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(path)
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// R: D-4. After a failed sync the kernel may hold pages that the disk has not.
#[test]
fn what_a_replay_reads_is_read_past_the_page_cache() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let size = data_dir.super_block().segment_size;
    let mut rig = Rig::open(&data_dir).unwrap();
    (1..=10).for_each(|n| rig.send(0, n, 60_000));
    checkpoint_now(&mut rig);
    let lsn = rig.log.store.status().checkpoint.unwrap();
    drop(rig);
    let checkpoint = checkpoint_path(&temp.path().join("ckpt-01"), lsn);
    let files = [segment(temp.path(), 0), checkpoint];
    // A file system in memory has no page cache to go past.
    let probe = temp.path().join("probe");
    fs::write(&probe, [1; 10_000]).unwrap();
    let file = fs::File::open(&probe).unwrap();
    file.sync_all().unwrap();
    drop_cache(&file);
    if cached_bytes(&probe) != Some(0) {
        eprintln!("skipped: no fincore, or a file system that is its own cache");
        return;
    }
    for file in &files {
        fs::read(file).unwrap();
    }
    drop(Mapped::open(temp.path(), 1, size, false).unwrap());
    let cached = files.each_ref().map(|file| cached_bytes(file).unwrap());
    assert!(cached.iter().all(|bytes| *bytes > 0), "{cached:?}");
    drop(Mapped::open(temp.path(), 1, size, true).unwrap());
    let cached = files.each_ref().map(|file| cached_bytes(file).unwrap());
    assert_eq!(cached, [0, 0]);
}

/// R: D-4. Where the newest checkpoint cannot be used, more is replayed than was expected.
#[test]
fn what_a_replay_from_an_older_checkpoint_reads_is_read_past_the_page_cache_too() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    rig.send(0, 1, 60_000);
    checkpoint_now(&mut rig);
    (2..=50).for_each(|n| rig.send(0, n, 60_000));
    checkpoint_now(&mut rig);
    drop(rig);
    let setup = || data_dir.setup(1, ShardConfig::default(), UPKEEP);
    let (mapped, recovered) = read_log(temp.path(), 1, setup(), Known::default()).unwrap();
    let scanned_from = recovered.report.scanned_from;
    assert!(
        scanned_from > SEGMENT_BYTES,
        "the first segment is not read"
    );
    assert_eq!(mapped.past_cache_from(), scanned_from / SEGMENT_BYTES);
    let newest = checkpoint_path(&temp.path().join("ckpt-01"), scanned_from);
    flip(&newest, fs::metadata(&newest).unwrap().len() as usize / 2);
    let (mapped, recovered) = read_log(temp.path(), 1, setup(), Known::default()).unwrap();
    assert!(recovered.report.scanned_from < SEGMENT_BYTES);
    assert_eq!(mapped.past_cache_from(), 0);
}
