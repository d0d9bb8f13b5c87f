//! A whole log out of arbitrary files: `store::recover`, over a checkpoint and segments.
//!
//! ```text
//!  input: which checkpoint │ its length │ its bytes │ segments, as in `segments`
//! ```
//! Whatever was there, what is served is true: without a checkpoint, every entry of every inbox that is
//! served can be read where it is said to lie, and is that entry of that inbox. And it stays so:
//! with the tail cut, as the shell does it, the next start finds the same.

use super::segments::{IDENTITY, Input, Segment, input, mend as mend_segments, pack, put, size};
use super::shard_state::{KEY, SHARDS, append, config, encoded, story, user_of, written};
use super::writer::Log;
use super::{Target, checkpoint};
use crate::log::{CheckpointHeader, CheckpointReader, CheckpointWriter, item_at};
use crate::measure::measured;
use crate::placement::ShardId;
use crate::shard::command::{Command, decode};
use crate::store::Setup;
use crate::store::recover::{Found, Known, RecoverError, Recovered, recover, shards_of_log};

/// See the module's text.
pub const RECOVER: Target = Target {
    name: "recover",
    check,
    mend,
    seeds,
};

/// Bytes of an input before its checkpoint.
const HEAD_BYTES: usize = 3;

/// Bytes of memory for files of so many: users, devices and slots, the hash tables that hold them, and
/// what is left of the tables that they outgrew; and the store's own buffers.
const fn recover_bytes_max(len: usize) -> usize {
    256 * len + 2 * 1024 * 1024
}

/// Files as they lie on a disk.
#[derive(Clone)]
struct Files {
    checkpoint: Option<(u64, Vec<u8>)>,
    input: Input,
}

fn files(data: &[u8]) -> Option<Files> {
    let (head, rest) = data.split_at_checked(HEAD_BYTES)?;
    let len = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
    let (checkpoint, rest) = rest.split_at(len);
    let mut input = input(rest)?;
    input.origin.lsn = size().first_lsn(input.segments.first().map_or(0, |one| one.index));
    let checkpoint = (head[0] & 1 != 0).then(|| (scan_lsn(checkpoint), checkpoint.to_vec()));
    Some(Files { checkpoint, input })
}

/// What the file is called by: the position that it says, where there is one.
fn scan_lsn(file: &[u8]) -> u64 {
    let bytes = file.get(8 + 56..8 + 64);
    bytes.map_or(0, |bytes| {
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    })
}

fn setup() -> Setup {
    Setup {
        identity: IDENTITY,
        incarnation: 3,
        size: size(),
        key: KEY,
        shards_total: SHARDS,
        shards: shards_of_log(0, 1, SHARDS),
        shard: config(),
        checkpoint_bytes: 1 << 20,
        clean_bytes_per_s: 1 << 20,
    }
}

fn run(files: &Files) -> Result<Recovered, RecoverError> {
    let checkpoints = files.checkpoint.iter();
    let checkpoints: Vec<_> = checkpoints.map(|(lsn, bytes)| (*lsn, &bytes[..])).collect();
    let segments = files.input.segments.iter();
    let segments: Vec<_> = segments.map(|one| (one.index, &one.bytes[..])).collect();
    let found = Found {
        checkpoints: &checkpoints,
        segments: &segments,
        known: Known {
            durable_lsn: files.input.origin.durable,
            made_lsn: files.input.origin.made,
        },
    };
    let lengths = checkpoints
        .iter()
        .chain(&segments)
        .map(|(_, bytes)| bytes.len());
    let most = recover_bytes_max(lengths.sum());
    let (recovered, held) = measured(|| recover(setup(), found));
    assert!(held <= most, "{held} bytes held, {most} would do");
    recovered
}

fn check(data: &[u8]) {
    let Some(files) = files(data) else { return };
    // Positions reach to 2^64 only here: a log takes no messages long before that.
    if files.input.segments.iter().any(|one| one.index > 1 << 40) {
        return;
    }
    let Ok(recovered) = run(&files) else { return };
    match &files.checkpoint {
        None => judge_entries(&files.input.segments, &recovered),
        Some((_, file)) => judge_checkpoint(file, &recovered),
    }
    judge_next_start(&files, recovered);
}

/// A checkpoint of another log is not used.
fn judge_checkpoint(file: &[u8], recovered: &Recovered) {
    let opened = CheckpointReader::open(file);
    let is_ours = opened.is_ok_and(|(header, _)| {
        header.identity == IDENTITY && header.segment_bytes == size().bytes()
    });
    assert!(
        is_ours || !recovered.report.unusable_checkpoints.is_empty(),
        "another log's"
    );
}

/// Every entry that is served lies where it is said to, and is what it is said to be.
fn judge_entries(segments: &[Segment], recovered: &Recovered) {
    for id in recovered.store.shards() {
        let Some(shard) = recovered.store.shard(*id) else {
            continue;
        };
        for user in shard.users().iter() {
            for (seq, slot) in user.slots() {
                let Some(position) = slot.position() else {
                    continue; // a gap, which is told
                };
                let index = size().index_of(position);
                let segment = segments.iter().find(|segment| segment.index == index);
                let segment = segment.expect("a segment that is there");
                let bytes = segment.bytes.get(size().offset_of(position)..);
                let item = item_at(bytes.unwrap_or_default());
                let (item, _) = item.expect("an entry that can be read");
                let Ok(Command::Append(append)) = decode(item) else {
                    panic!("an entry that is no message");
                };
                assert_eq!((append.to, append.seq), (user.name(), seq), "another entry");
            }
        }
    }
}

/// With the tail cut as the shell does it, the next start finds the same.
fn judge_next_start(files: &Files, recovered: Recovered) {
    let mut next = files.clone();
    let report = &recovered.report;
    if !report.holes.is_empty() {
        let durable = &mut next.input.origin.durable;
        *durable = (*durable).max(report.end); // the superblock is told before anything is cut
    }
    if let Some(header) = &recovered.lost_header {
        let index = size().index_of(header.first_lsn);
        let mut segments = next.input.segments.iter_mut();
        let segment = segments.find(|segment| segment.index == index);
        let segment = segment.expect("a segment that is there");
        header.encode(&mut segment.bytes); // and synced before anything is cut
    }
    for cut in &recovered.cuts {
        let mut segments = next.input.segments.iter_mut();
        let segment = segments.find(|segment| segment.index == cut.segment);
        let segment = segment.expect("a segment that is there");
        segment.bytes[cut.offset..cut.offset + cut.len].fill(0);
    }
    let again = run(&next).expect("what was recovered before");
    assert_eq!(again.cuts, [], "something is left to cut");
    for id in recovered.store.shards() {
        let state = |recovered: &Recovered| recovered.store.shard(*id).map(written);
        let (first, second) = (state(&recovered), state(&again));
        assert!(
            first == second,
            "shard {} (whole {}, then {}): {:?} {:?}, then {:?} {:?}",
            id.0,
            first.is_some(),
            second.is_some(),
            recovered.report,
            recovered.store.quarantined(),
            again.report,
            again.store.quarantined(),
        );
    }
}

fn mend(data: &mut [u8], seed: u64) -> usize {
    let Some((head, rest)) = data.split_at_mut_checked(HEAD_BYTES) else {
        return data.len();
    };
    let len = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
    let (file, segments) = rest.split_at_mut(len);
    (checkpoint::CHECKPOINT.mend)(file, seed);
    mend_segments(segments, seed.rotate_left(17));
    data.len()
}

/// An input of a checkpoint and segments.
fn packed(checkpoint: Option<&[u8]>, segments: &[u8]) -> Vec<u8> {
    let mut data = vec![u8::from(checkpoint.is_some()), 0, 0];
    let checkpoint = checkpoint.unwrap_or_default();
    put(&mut data, 1, (checkpoint.len() as u16).to_le_bytes());
    data.extend_from_slice(checkpoint);
    data.extend_from_slice(segments);
    data
}

/// Puts a story of each of two shards into a log.
fn tell(log: &mut Log, first_index: u64) {
    for shard in [0, 2] {
        let (one, two) = (user_of(shard, 0), user_of(shard, 1));
        for (index, commands) in (first_index..).zip(story(&one, &two)) {
            let items = encoded(&commands);
            let items: Vec<&[u8]> = items.iter().map(Vec::as_slice).collect();
            log.data(&[(shard, index, &items)]);
        }
    }
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut log = Log::new(0);
    tell(&mut log, 1);
    log.seal_with(&[(0, 3), (2, 3)]);
    let plain = log.clone();
    let receiver = user_of(0, 0);
    let moved = append(&receiver, "ben", 1, 3, &[9; 100]);
    let moved = encoded(&[moved]);
    log.end_with(&[(0, 3), (2, 3)]);
    log.relocated_of(0, &[&moved[0]]);
    log.seal_with(&[(0, 3), (2, 3)]);
    let mut hurt = log.clone();
    hurt.segments[0][4096 + 300] ^= 1;
    // The second segment has lost its header and that of its first frame, and its second one is torn.
    let mut headless = plain.clone();
    headless.end_with(&[(0, 3), (2, 3)]);
    for (shard, seq) in [(0, 4), (2, 1)] {
        let items = encoded(&[append(&user_of(shard, 0), "cat", 1, seq, &[7; 40])]);
        headless.data(&[(shard, 4, &[&items[0]])]);
    }
    headless.segments[1][60] ^= 1;
    headless.segments[1][4096 + 20] ^= 1;
    let torn = headless.last().len() - 48;
    headless.last().truncate(torn);
    let (lsn, prev_crc) = plain.place_behind();
    let before = files(&packed(None, &pack(0, 16, 0, 0, &plain.segments))).expect("long enough");
    let recovered = run(&before).expect("a good log");
    let header = CheckpointHeader {
        identity: IDENTITY,
        incarnation: 3,
        segment_bytes: size().bytes(),
        scan_lsn: lsn,
        prev_crc,
        sections: u32::from(SHARDS),
    };
    let mut writer = CheckpointWriter::new(&header);
    for id in (0..SHARDS).map(ShardId) {
        let shard = recovered.store.shard(id).expect("whole");
        let state = written(shard);
        writer.section(id.0, shard.applied(), state.len() as u64);
        writer.push(&state);
    }
    let checkpoint = writer.finish();
    let segments = |log: &Log| pack(0, 0, 0, 0, &log.segments);
    let mut without_first = segments(&log);
    without_first[7] = 1;
    vec![
        ("plain", packed(None, &segments(&plain))),
        ("moved", packed(None, &segments(&log))),
        ("hurt", packed(None, &segments(&hurt))),
        ("headless", packed(None, &segments(&headless))),
        ("checkpoint", packed(Some(&checkpoint), &segments(&log))),
        (
            "checkpoint_hurt",
            packed(Some(&checkpoint), &segments(&hurt)),
        ),
        ("first_removed", packed(Some(&checkpoint), &without_first)),
        ("nothing", packed(None, &pack(0, 0, 0, 0, &[Vec::new()]))),
    ]
}
