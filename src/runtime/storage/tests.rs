//! Data directories and logs on real files, flushed with blocking calls.

use std::fs;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::spare::SpareMaker;
use super::*;
use crate::log::recovery::Fault;
use crate::log::{
    FrameBuilder, FrameKind, RecordHeader, RecordKind, SegmentSize, item_encode_into, items,
};

const SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
const FORMAT: Format = Format {
    logs: 2,
    shards: 64,
    segment_bytes: SEGMENT_BYTES,
};
/// How long a test waits for another thread or process before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> DataDir {
    DataDir::open(path, &FORMAT).unwrap_or_else(|error| panic!("{error}"))
}

fn entry(index: u64) -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Entry,
        flags: 0,
        shard: 3,
        term: 1,
        index,
        a: 5,
        b: 1,
    }
}

/// Payload number `number`: recognisable, and of varying length.
fn message(number: u64) -> Vec<u8> {
    (0..100 + number % 900)
        .map(|at| (number.wrapping_mul(31) + at) as u8)
        .collect()
}

/// Index and payload position of each record.
fn recover(data_dir: &DataDir) -> Result<(Log, Vec<(u64, u64)>), LogError> {
    let mut seen = Vec::new();
    let log = Log::recover(data_dir, 1, &mut |found| {
        let item = items(found.payload).next().unwrap().unwrap().1;
        assert_eq!(
            item,
            message(found.record.index),
            "record {}",
            found.record.index
        );
        seen.push((found.record.index, found.lsn_of_payload));
    })?;
    Ok((log, seen))
}

/// Places a frame, waiting for a spare as the reactor would.
fn place(log: &mut Log, frame: &mut FrameBuilder, kind: FrameKind) -> Flush {
    let (came, comes) = crossbeam_channel::unbounded();
    loop {
        match log.place(frame, kind) {
            Ok(flush) => return flush,
            Err(PlaceError::Full) => panic!("the disk of this machine is full"),
            Err(PlaceError::NoSpare) => {
                let came = came.clone();
                log.on_space_change(move || came.send(()).unwrap_or_default());
                // The spare may have come before the waker was set: then the next look finds it.
                let _ = comes.recv_timeout(Duration::from_millis(20));
            }
        }
    }
}

fn wait_for_spares(log: &mut Log) {
    while log.spares.len() < SPARES {
        assert_eq!(
            log.space(),
            Space::Enough,
            "the disk of this machine is full"
        );
        std::thread::yield_now();
    }
}

/// Appends a frame of one record; returns its index and position.
fn append(log: &mut Log, index: u64, filler: usize) -> (u64, u64) {
    let mut frame = FrameBuilder::new();
    let mut payload = Vec::new();
    item_encode_into(&mut payload, &message(index));
    item_encode_into(&mut payload, &vec![7; filler]);
    let at = frame.record(entry(index), &payload) as u64;
    let flush = place(log, &mut frame, FrameKind::Data);
    let position = flush.lsn + at;
    assert!(
        log.bytes_at(position, 1).is_none(),
        "visible before it is durable"
    );
    log.flush_blocking(flush).unwrap();
    (index, position)
}

fn seal(log: &mut Log) {
    assert!(log.seal_due());
    let flush = place(log, &mut FrameBuilder::new(), FrameKind::Seal);
    log.flush_blocking(flush).unwrap();
    assert!(!log.seal_due());
}

fn segment(path: &Path, index: u64) -> PathBuf {
    path.join(format!("log-01/{:016x}.seg", index * SEGMENT_BYTES))
}

/// Flips a bit of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

/// R: D-1, B-2
#[test]
fn what_was_flushed_is_there_after_a_reopen_at_the_same_positions() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("new/data");
    let mut expected = Vec::new();
    for round in 0..3 {
        let data_dir = open(&path);
        assert_eq!(data_dir.super_block().incarnation, round + 1);
        let (mut log, seen) = recover(&data_dir).unwrap();
        assert_eq!(seen, expected);
        for _ in 0..20 {
            expected.push(append(&mut log, expected.len() as u64 + 1, 10));
        }
        for (index, position) in &expected {
            assert_eq!(log.item(*position).unwrap(), message(*index));
        }
        assert!(matches!(
            log.item(log.durable_end()),
            Err(ReadError::Outside { .. })
        ));
        let wrong = log.item(expected[0].1 + 1);
        assert!(
            matches!(
                wrong,
                Err(ReadError::Item {
                    position: _,
                    source: _
                })
            ),
            "{wrong:?}"
        );
        seal(&mut log);
        data_dir.record_durable(&[0, log.durable_end()]).unwrap();
    }
}

/// R: D-1
#[test]
fn the_log_rotates_through_its_spares_and_reads_back_across_segments() {
    let temp = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    {
        let data_dir = open(temp.path());
        let (mut log, _) = recover(&data_dir).unwrap();
        while log.end() < 4 * SEGMENT_BYTES {
            let filler = (expected.len() * 7919) % 900_000;
            expected.push(append(&mut log, expected.len() as u64 + 1, filler));
        }
    }
    let data_dir = open(temp.path());
    let before = fs::read_dir(temp.path().join("log-01")).unwrap().count();
    let (mut log, seen) = recover(&data_dir).unwrap();
    assert_eq!(seen, expected);
    assert_eq!(log.found().cut_bytes, 0);
    for (index, position) in &expected {
        assert_eq!(log.item(*position).unwrap(), message(*index));
    }
    // Four full segments, the open one, and as many spares as there was time to make.
    assert!((5..=4 + 1 + SPARES).contains(&before), "{before} segments");
    let next = append(&mut log, expected.len() as u64 + 1, 0);
    assert!(next.1 > 4 * SEGMENT_BYTES);
}

/// R: D-1
#[test]
fn blocks_are_cold_until_written_or_marked_by_this_process() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let (mut log, _) = recover(&data_dir).unwrap();
    let (_, first) = append(&mut log, 1, 300_000);
    assert_eq!(log.cold_range(first, 300_000), None);
    drop(log);
    let (mut log, _) = recover(&data_dir).unwrap();
    let (address, len) = log.cold_range(first + 70_000, 100_000).unwrap();
    assert_eq!((address % 4096, len), (0, 2 * BLOCK_BYTES));
    log.mark_resident(first + 70_000, 1);
    assert_eq!(
        log.cold_range(first + 70_000, 100_000),
        Some((address + BLOCK_BYTES, BLOCK_BYTES))
    );
    log.mark_resident(first + 70_000, 100_000);
    assert_eq!(log.cold_range(first + 70_000, 100_000), None);
}

/// The image of a log whose last flush is under way: data directory, position of that flush.
fn with_a_last_flush(path: &Path) -> u64 {
    let data_dir = open(path);
    let (mut log, _) = recover(&data_dir).unwrap();
    for index in 1..=5 {
        append(&mut log, index, 3000);
    }
    let end = log.end();
    append(&mut log, 6, 9000);
    end
}

/// R: D-6, D-2
#[test]
fn a_last_flush_that_stopped_anywhere_is_cut_and_the_log_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let last = with_a_last_flush(temp.path()) as usize;
    let file = segment(temp.path(), 0);
    let image = fs::read(&file).unwrap();
    let len = 9000;
    for round in 0..24_usize {
        let mut torn = image.clone();
        match round % 3 {
            0 => torn[last + round * 350..last + len + 1000].fill(0),
            1 => torn[last + round * 350] ^= 0x10,
            _ => {
                torn[last + 512 * (round / 3)..last + len].rotate_left(round);
                torn.truncate(last + 4000);
            }
        }
        fs::write(&file, &torn).unwrap();
        let data_dir = open(temp.path());
        let (mut log, seen) = recover(&data_dir).unwrap();
        assert_eq!(seen.len(), 5, "round {round}");
        assert_eq!(log.end(), last as u64, "round {round}");
        append(&mut log, 6, 100);
        drop(log);
        let (log, seen) = recover(&data_dir).unwrap();
        assert_eq!((seen.len(), log.found().cut_bytes), (6, 0), "round {round}");
        drop(log);
        fs::write(&file, &image).unwrap();
    }
}

/// R: D-2, D-3
#[test]
fn a_rotten_bit_is_reported_with_file_and_offset_and_nothing_is_changed() {
    let temp = tempfile::tempdir().unwrap();
    let last = with_a_last_flush(temp.path());
    let file = segment(temp.path(), 0);
    let frame = 4096; // the first one
    flip(&file, frame + 100);
    let image = fs::read(&file).unwrap();
    let data_dir = open(temp.path());
    let error = recover(&data_dir).map(|_| ()).unwrap_err();
    let text = error.to_string();
    let LogError::Damaged {
        path,
        offset,
        fault,
        proof_synced_lsn,
        ..
    } = error
    else {
        panic!("{text}")
    };
    assert_eq!((path, offset), (file.clone(), frame as u64));
    assert!(matches!(fault, Fault::Body { .. }), "{fault:?}");
    assert!(proof_synced_lsn > offset && proof_synced_lsn <= last);
    assert!(
        text.contains("restore") && text.contains("byte 4096"),
        "{text}"
    );
    assert_eq!(fs::read(&file).unwrap(), image);
}

/// R: D-2
#[test]
fn a_seal_puts_even_the_last_data_frame_beyond_doubt() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let (mut log, _) = recover(&data_dir).unwrap();
    let (_, position) = append(&mut log, 1, 100);
    seal(&mut log);
    drop(log);
    flip(&segment(temp.path(), 0), position as usize + 9);
    assert!(matches!(
        recover(&data_dir),
        Err(LogError::Damaged { offset: 4096, .. })
    ));
}

/// R: D-2. The first frame of a segment vouches for the END before it, written after its sync.
#[test]
fn a_rotten_end_is_damage_even_when_one_frame_only_came_after_it() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let (mut log, _) = recover(&data_dir).unwrap();
    let mut end = 0;
    for index in 1.. {
        append(&mut log, index, 500_000);
        if log.end() > SEGMENT_BYTES {
            break;
        }
        end = log.end();
    }
    drop(log);
    flip(&segment(temp.path(), 0), end as usize + 20);
    let found = recover(&data_dir).map(|_| ());
    assert!(
        matches!(found, Err(LogError::Damaged { lsn, .. }) if lsn == end),
        "{found:?}"
    );
}

/// R: D-2, D-3
#[test]
fn a_log_that_lost_its_end_or_a_segment_does_not_start() {
    let temp = tempfile::tempdir().unwrap();
    {
        let data_dir = open(temp.path());
        let (mut log, _) = recover(&data_dir).unwrap();
        append(&mut log, 1, 100);
        wait_for_spares(&mut log); // a later segment, so that the first can be missed
        data_dir.record_durable(&[0, log.durable_end()]).unwrap();
    }
    let file = segment(temp.path(), 0);
    let image = fs::read(&file).unwrap();
    fs::write(&file, vec![0; image.len()]).unwrap();
    assert!(matches!(
        recover(&open(temp.path())),
        Err(LogError::Behind { end: 0, .. })
    ));
    fs::remove_file(&file).unwrap();
    let missing = recover(&open(temp.path())).map(|_| ());
    assert!(
        matches!(&missing, Err(LogError::Missing { path }) if *path == file),
        "{missing:?}"
    );
    fs::write(&file, image).unwrap();
    assert_eq!(recover(&open(temp.path())).unwrap().1.len(), 1);
    fs::remove_dir_all(temp.path().join("log-00")).unwrap();
    let opened = DataDir::open(temp.path(), &FORMAT);
    assert!(matches!(opened, Err(DataDirError::LogMissing { .. })));
}

/// Not a test of its own: the other process of the test below.
#[test]
fn holder_of_a_lock_for_another_test() {
    let Ok(path) = std::env::var("IRIS_TEST_HOLD") else {
        return;
    };
    let data_dir = open(Path::new(&path));
    data_dir.publish_address("127.0.0.1:7447").unwrap();
    println!("\nheld");
    io::stdout().flush().unwrap();
    let _ = io::stdin().read_line(&mut String::new()); // until the other side closes it
}

/// R: D-3
#[test]
fn a_directory_held_by_another_process_is_refused_with_its_pid_and_address() {
    let temp = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "runtime::storage::tests::holder_of_a_lock_for_another_test",
        ])
        .args(["--nocapture", "--test-threads=1"])
        .env("IRIS_TEST_HOLD", temp.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap() == "held"),
        "the other process did not get the lock"
    );
    let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
    let text = error.to_string();
    let DataDirError::Locked { pid, address, .. } = error else {
        panic!("{text}")
    };
    assert_eq!(pid, child.id().to_string());
    assert_eq!(address, "127.0.0.1:7447");
    assert!(
        text.contains(&pid) && text.contains("stop that process"),
        "{text}"
    );
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(open(temp.path()).super_block().incarnation, 2);
}

/// R: D-3
#[test]
fn another_version_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let mut super_block = open(temp.path()).super_block().clone();
    super_block.format_version = 9;
    fs::write(temp.path().join("SUPER.b"), super_block.encode()).unwrap();
    let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
    assert!(
        matches!(error, DataDirError::OtherVersion { found: 9, .. }),
        "{error}"
    );
}

/// R: D-3
#[test]
fn a_directory_that_is_not_ours_is_refused_and_untouched() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("thesis.txt"), "years of work").unwrap();
    let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
    assert!(matches!(&error, DataDirError::NotEmpty { found, .. } if found == "thesis.txt"));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    let file = temp.path().join("thesis.txt");
    let error = DataDir::open(&file, &FORMAT).unwrap_err();
    assert!(
        matches!(error, DataDirError::NotADirectory { .. }),
        "{error}"
    );
}

/// R: D-3
#[test]
fn logs_without_a_superblock_are_never_formatted_over() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    for name in ["SUPER.a", "SUPER.b"] {
        fs::remove_file(temp.path().join(name)).unwrap();
    }
    let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
    assert!(
        matches!(error, DataDirError::SuperMissing { .. }),
        "{error}"
    );
}

/// R: D-3
#[test]
fn one_corrupt_superblock_falls_back_to_the_other_and_two_are_an_error() {
    for corrupt in ["SUPER.a", "SUPER.b"] {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path()).super_block().clone();
        flip(&temp.path().join(corrupt), 40);
        let second = open(temp.path()).super_block().clone();
        assert!(
            second.incarnation > first.incarnation,
            "an incarnation was used twice"
        );
        assert_eq!(
            (second.hash_key, second.cluster_id),
            (first.hash_key, first.cluster_id)
        );
        assert_eq!(
            open(temp.path()).super_block().incarnation,
            second.incarnation + 1
        );
        flip(&temp.path().join("SUPER.a"), 40);
        flip(&temp.path().join("SUPER.b"), 40);
        let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
        assert!(
            matches!(error, DataDirError::SuperCorrupt { .. }),
            "{error}"
        );
    }
}

/// R: D-3
#[test]
fn the_shape_of_an_existing_directory_rules_and_an_impossible_one_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    let other = Format {
        logs: 7,
        shards: 8,
        segment_bytes: 2 * SEGMENT_BYTES,
    };
    let opened = DataDir::open(temp.path(), &other).unwrap();
    assert_eq!(
        (opened.super_block().logs, opened.super_block().shards),
        (2, 64)
    );
    assert_eq!(opened.super_block().segment_size.bytes(), SEGMENT_BYTES);
    let odd = Format {
        segment_bytes: 3 << 20,
        ..FORMAT
    };
    let error = DataDir::open(&temp.path().join("new"), &odd).unwrap_err();
    assert!(matches!(error, DataDirError::BadFormat { .. }), "{error}");
}

/// R: D-3
#[test]
fn a_directory_that_cannot_be_written_says_so() {
    let error = DataDir::open(Path::new("/sys/iris-data"), &FORMAT).unwrap_err();
    assert!(matches!(error, DataDirError::NotWritable { .. }), "{error}");
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o555)).unwrap();
    match DataDir::open(temp.path(), &FORMAT) {
        Err(error) => assert!(matches!(error, DataDirError::NotWritable { .. }), "{error}"),
        Ok(_) => eprintln!("skipped: this user (root) may write everywhere"),
    }
}

/// R: D-1. A spare that was interrupted, or that an interrupted rotation wrote into, is used again.
#[test]
fn unfinished_and_soiled_spares_are_zeroed_and_used() {
    let temp = tempfile::tempdir().unwrap();
    with_a_last_flush(temp.path());
    let mut soiled = vec![0; SEGMENT_BYTES as usize];
    soiled[5000..9000].fill(0xee);
    fs::write(segment(temp.path(), 1), soiled).unwrap();
    fs::write(segment(temp.path(), 2), vec![0; 12_345]).unwrap();
    let data_dir = open(temp.path());
    let (mut log, seen) = recover(&data_dir).unwrap();
    assert_eq!(seen.len(), 6);
    assert!(log.found().cut_bytes >= 4000);
    let mut index = 7;
    while log.end() < 3 * SEGMENT_BYTES {
        append(&mut log, index, 500_000);
        index += 1;
    }
    drop(log);
    assert_eq!(recover(&data_dir).unwrap().1.len() as u64, index - 1);
}

/// R: B-8. ENOSPC is reported at once, and space that returns is found without a restart.
#[test]
fn a_full_disk_is_reported_and_recovered_from() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let (mut log, _) = recover(&data_dir).unwrap();
    wait_for_spares(&mut log);
    let full = Arc::new(AtomicBool::new(true));
    let seen_by_thread = Arc::clone(&full);
    let reserve = Box::new(
        move |_: &fs::File, _| match seen_by_thread.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        },
    );
    let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    log.maker = SpareMaker::start_with(&temp.path().join("log-01"), size, reserve).unwrap();
    let (changed, change) = crossbeam_channel::unbounded();
    log.on_space_change(move || changed.send(()).unwrap_or_default());
    assert_eq!(log.space(), Space::Enough);
    let mut frame = FrameBuilder::new();
    let mut index = 1;
    let error = loop {
        frame.clear();
        let mut payload = Vec::new();
        item_encode_into(&mut payload, &message(index));
        payload.resize(1_000_000, 0);
        frame.record(entry(index), &payload);
        match log.place(&mut frame, FrameKind::Data) {
            Ok(flush) => log.flush_blocking(flush).unwrap(),
            Err(error) => break error,
        }
        if log.asked > 3 && index == 2 {
            change.recv_timeout(PATIENCE).unwrap();
            assert_eq!(log.space(), Space::Low);
        }
        index += 1;
    };
    while log.space() != Space::Full {
        change.recv_timeout(PATIENCE).unwrap();
    }
    assert!(
        matches!(error, PlaceError::Full | PlaceError::NoSpare),
        "{error}"
    );
    assert_eq!(
        log.place(&mut frame, FrameKind::Data).map(|_| ()),
        Err(PlaceError::Full)
    );
    assert_eq!(frame.records(), 1, "a refused frame is kept");
    full.store(false, Ordering::Relaxed);
    while log.space() != Space::Enough {
        change.recv_timeout(PATIENCE).unwrap();
    }
    let flush = place(&mut log, &mut frame, FrameKind::Data);
    log.flush_blocking(flush).unwrap();
    assert_eq!(log.bytes_at(log.durable_end() - 8, 8), Some(&[0; 8][..]));
}
