//! A damaged log made to go on, at a person's word: what is lost is known and told, and a checkpoint
//! behind the damage makes the next start begin there.
//!
//! ```text
//!   checkpoint ─▶ scan ─ hole ─ scan ─▶ end          every shard as far as it can be had
//!                   └ whole shards: as ever
//!                   └ damaged shards: leniently, see `shard::salvage`
//!   every message that an inbox refers to is read: one that is not whole becomes a gap
//!   ─▶ list of losses, and a checkpoint that begins at the end of the log
//! ```
//!
//! This decides and writes nothing; the shell writes the checkpoint once a person has agreed. The damaged
//! bytes stay where they are.

use std::ops::RangeInclusive;

use crate::log::recovery::{Hole, Origin, Recovered as Record, Seen, Tail, scan};
use crate::log::{CheckpointHeader, CheckpointWriter, RecordKind, heads, item_at, items};
use crate::placement::ShardId;
use crate::shard::Shard;
use crate::shard::command::{self, Command};
pub use crate::shard::salvage::{Certainty, Loss, LostDevice, Unnamed};
use crate::shard::salvage::{Doubt, Salvage};
use crate::shard::user::User;
use iris_proto::id::Seq;

use super::recover::{
    Found, RecoverError, Recovered, begin, entry_of, judge_checkpoint, recover, vouches,
};
use super::{Quarantine, Setup};

/// Segments that a salvage names as damaged by holes, at most. A log that misses more is no log that a
/// person goes through file by file.
const DAMAGED_SEGMENTS_MAX: usize = 4096;

/// What a salvage would do.
#[derive(Debug)]
pub struct Salvaged {
    /// Shards that are not served, and why.
    pub quarantined: Vec<Quarantine>,
    /// Entries that do not exist any more, by shard.
    pub losses: Vec<(ShardId, Vec<Loss>)>,
    /// What else may be missing, by shard; only of shards that miss something.
    pub unnamed: Vec<(ShardId, Unnamed)>,
    /// Segments with bytes that cannot be believed.
    pub damaged_segments: Vec<u64>,
    /// Checkpoints that cannot be used.
    pub damaged_checkpoints: Vec<u64>,
    /// Where the log ends, and the new checkpoint begins.
    pub lsn: u64,
    /// The new checkpoint's bytes.
    pub checkpoint: Vec<u8>,
}

impl Salvaged {
    /// Whether there is nothing to be done.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.quarantined.is_empty() && self.losses.iter().all(|(_, losses)| losses.is_empty())
    }
}

/// Finds out what is lost of a log, and makes the checkpoint with which the rest goes on.
///
/// # Errors
/// When the log cannot be used at all, as for [`recover`].
pub fn salvage(setup: &Setup, found: Found<'_>) -> Result<Salvaged, RecoverError> {
    let beginning = begin(setup, &found)?;
    let (lsn, prev_crc) = (beginning.lsn, beginning.prev_crc);
    let Recovered { store, report, .. } = recover(setup.clone(), found)?;
    let quarantined = store.quarantined().to_vec();
    let is_damaged = |id: ShardId| quarantined.iter().any(|one| one.shard == id);
    // Damaged shards begin again, leniently; the others stay as they were recovered.
    let beginnings = beginning.shards.into_iter();
    let mut shards: Vec<(bool, Salvage)> = beginnings
        .zip(store.into_shards())
        .map(|(beginning, recovered)| match recovered {
            Some(shard) => (false, Salvage::new(*shard)),
            None => (true, Salvage::new(beginning)),
        })
        .collect();
    assert!(
        shards
            .iter()
            .all(|(damaged, one)| *damaged == is_damaged(one.shard().id())),
        "the shards that are not there are those that are damaged"
    );
    let origin = Origin {
        size: setup.size,
        identity: setup.identity,
        lsn,
        prev_crc,
        durable: found.known.durable_lsn,
        made: found.known.made_lsn,
    };
    let first = setup.size.index_of(lsn);
    let start = found.segments.partition_point(|(index, _)| *index < first);
    let mut hole_end = 0;
    let tail = scan(&origin, &found.segments[start..], &mut |seen| {
        see(setup, &mut shards, &mut hole_end, &seen);
    })
    .map_err(RecoverError::Scan)?;
    let holes = report.holes.iter();
    let mut damaged: Vec<u64> = holes
        .flat_map(|hole| segments_of(setup, hole))
        .take(DAMAGED_SEGMENTS_MAX)
        .collect();
    for (_, shard) in &mut shards {
        drop_unreadable(setup, found, shard, &mut damaged);
    }
    damaged.sort_unstable();
    damaged.dedup();
    Ok(Salvaged {
        quarantined,
        damaged_segments: damaged,
        damaged_checkpoints: damaged_checkpoints(setup, &found),
        ..finish(setup, &tail, shards)
    })
}

/// All segments that a hole reaches into, those that are gone too.
fn segments_of(setup: &Setup, hole: &Hole) -> RangeInclusive<u64> {
    let last = hole.to.saturating_sub(1).max(hole.from);
    setup.size.index_of(hole.from)..=setup.size.index_of(last)
}

fn damaged_checkpoints(setup: &Setup, found: &Found<'_>) -> Vec<u64> {
    let checkpoints = found.checkpoints.iter();
    let damaged = checkpoints.filter(|(lsn, bytes)| judge_checkpoint(setup, *lsn, bytes).is_err());
    damaged.map(|(lsn, _)| *lsn).collect()
}

/// What the shards have lost, and a checkpoint of them as they go on.
fn finish(setup: &Setup, tail: &Tail, shards: Vec<(bool, Salvage)>) -> Salvaged {
    let mut writer = CheckpointWriter::new(&CheckpointHeader {
        identity: setup.identity,
        incarnation: setup.incarnation,
        segment_bytes: setup.size.bytes(),
        scan_lsn: tail.end,
        prev_crc: tail.prev_crc,
        sections: shards.len() as u32,
    });
    let (mut losses, mut unnamed) = (Vec::new(), Vec::new());
    for (_, one) in shards {
        let (shard, lost, more) = one.finish();
        let mut state = Vec::new();
        shard.write_state(&mut state);
        writer.section(shard.id().0, shard.applied(), state.len() as u64);
        writer.push(&state);
        losses.push((shard.id(), lost));
        if !more.is_empty() {
            unnamed.push((shard.id(), more));
        }
    }
    Salvaged {
        quarantined: Vec::new(),
        losses,
        unnamed,
        damaged_segments: Vec::new(),
        damaged_checkpoints: Vec::new(),
        lsn: tail.end,
        checkpoint: writer.finish(),
    }
}

/// Shows one thing of the log to the damaged shards.
fn see(setup: &Setup, shards: &mut [(bool, Salvage)], hole_end: &mut u64, seen: &Seen<'_>) {
    match seen {
        Seen::Hole(hole) if hole.records_missing != Some(0) => {
            *hole_end = hole.to;
            let doubt = Doubt::of_bytes(hole.to - hole.from);
            for (_, shard) in shards.iter_mut().filter(|(damaged, _)| *damaged) {
                shard.hole(doubt);
            }
        }
        Seen::Hole(_) => {}
        Seen::Record(record) | Seen::Broken(record) => {
            let inside = !vouches(setup, record, *hole_end);
            see_record(setup, shards, record, inside);
        }
    }
}

fn see_record(setup: &Setup, shards: &mut [(bool, Salvage)], record: &Record<'_>, inside: bool) {
    let place = |shard: u16| setup.shards.iter().position(|id| id.0 == shard);
    let header = &record.record;
    match header.kind {
        RecordKind::Entry => {
            if let Some((true, shard)) = place(header.shard).map(|place| &mut shards[place]) {
                shard.entry(&entry_of(record), header.b, inside);
            }
        }
        RecordKind::Reloc => {
            for item in items(record.payload) {
                let Ok((offset, bytes)) = item else { return };
                let Ok(Command::Append(append)) = command::decode(bytes) else {
                    continue;
                };
                let place = place(setup.shard_of(append.to).0);
                if let Some((true, shard)) = place.map(|place| &mut shards[place]) {
                    shard.relocate(&append, record.lsn_of_payload + offset as u64);
                }
            }
        }
        RecordKind::Heads => {
            for (shard, index) in heads(record.payload).into_iter().flatten() {
                if let Some((true, shard)) = place(shard).map(|place| &mut shards[place]) {
                    shard.seen(index, inside);
                }
            }
        }
        _ => {}
    }
}

/// Reads every message that the inboxes of a shard refer to; what cannot be read becomes a gap.
fn drop_unreadable(setup: &Setup, found: Found<'_>, shard: &mut Salvage, damaged: &mut Vec<u64>) {
    let mut lost: Vec<(String, Seq)> = Vec::new();
    for user in shard.shard().users().iter() {
        for (seq, position) in unreadable(setup, found, user) {
            lost.push((user.name().to_owned(), seq));
            let segment = setup.size.index_of(position);
            if found.segments.iter().any(|(index, _)| *index == segment) {
                damaged.push(segment);
            }
        }
    }
    for (user, seq) in lost {
        shard.unreadable(&user, seq);
    }
}

/// The entries of an inbox whose messages are not where they should be, or not whole, and where that is.
pub fn unreadable<'a>(
    setup: &'a Setup,
    found: Found<'a>,
    user: &'a User,
) -> impl Iterator<Item = (Seq, u64)> + 'a {
    user.slots().filter_map(move |(seq, slot)| {
        let position = slot.position()?;
        let is_whole = is_readable(setup, found, position, user.name(), seq);
        (!is_whole).then_some((seq, position))
    })
}

/// Whether the whole message of an entry lies at a position.
pub(super) fn is_readable(
    setup: &Setup,
    found: Found<'_>,
    position: u64,
    user: &str,
    seq: Seq,
) -> bool {
    let segment = setup.size.index_of(position);
    let segments = found.segments;
    let nth = segments.binary_search_by_key(&segment, |(index, _)| *index);
    let bytes = nth.ok().map(|nth| segments[nth].1);
    let rest = bytes.and_then(|bytes| bytes.get(setup.size.offset_of(position)..));
    rest.is_some_and(|rest| is_entry(rest, user, seq))
}

/// Whether the bytes begin with the whole message of this entry.
fn is_entry(bytes: &[u8], user: &str, seq: Seq) -> bool {
    let Ok((payload, _)) = item_at(bytes) else {
        return false;
    };
    let Ok(Command::Append(append)) = command::decode(payload) else {
        return false;
    };
    append.to == user && append.seq == seq
}

/// For the shell: a shard's number of users, entries, and pairs.
#[must_use]
pub fn counts(shard: &Shard) -> (usize, u64, usize) {
    let entries = shard.users().iter();
    let entries = entries
        .map(|user| user.head().0 + 1 - user.oldest().0)
        .sum();
    (shard.users().len(), entries, shard.pairs().len())
}
