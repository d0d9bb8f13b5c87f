//! Reads everything that a data directory holds, and judges it. Writes nothing.
//!
//! | what | how it is judged |
//! |---|---|
//! | superblocks | one is whole; a crash may tear the other while it is written, so that is a note |
//! | checkpoints | each block, each shard's state; those that a start could use |
//! | the log from the checkpoint on | by recovery itself: holes, and which shards would not be served |
//! | messages | every one that an inbox refers to is read: its CRC, its user, its seq |
//! | segments | every frame from the first one on, and that they chain |
//!
//! What nothing needs any more may rot: that is a note, not damage. Notes are about bytes that neither a
//! start nor a delivery reads.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use crate::log::recovery::{Fault, Hole};
use crate::log::survey::{Sight, survey};
use crate::store::recover::{Found, Known, Recovered, judge_checkpoint, recover};
use crate::store::salvage::unreadable;
use crate::store::{Setup, Store};

use super::super::storage::{DataView, Mapped, SuperState};
use super::{OfflineError, inside, logs};

/// Bytes of one read.
const READ_BYTES: usize = 1024 * 1024;
/// Checkpoints that a switch keeps; older ones that lie about are of no use to it.
const CHECKPOINTS_KEPT: usize = 2;

/// What a data directory is like.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The directory.
    pub data: String,
    /// Whether all is as it was written.
    pub sound: bool,
    /// Its superblock files.
    pub superblocks: Vec<SuperState>,
    /// What is not as it was written, and harms nobody.
    pub notes: Vec<String>,
    /// Its logs.
    pub logs: Vec<LogVerdict>,
}

/// What one log is like.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogVerdict {
    /// Its number.
    pub log: u32,
    /// Whether all that is needed of it is as it was written.
    pub sound: bool,
    /// Why it cannot be used at all.
    pub unusable: Option<String>,
    /// Where a start would begin to read.
    pub scanned_from: Option<u64>,
    /// Position behind its last frame.
    pub end: Option<u64>,
    /// Its segments, spares not counted.
    pub segments: u64,
    /// Whole frames in them.
    pub frames: u64,
    /// Messages that inboxes refer to and that were read.
    pub messages: u64,
    /// Its checkpoints.
    pub checkpoints: Vec<CheckpointVerdict>,
    /// Bytes that had been durable and are not what they were, where a start reads.
    pub holes: Vec<Place>,
    /// Shards that a start would serve.
    pub shards_served: u64,
    /// Shards that it would not.
    pub shards_damaged: Vec<ShardVerdict>,
    /// Entries whose messages cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// What is not as it was written, and harms nobody.
    pub notes: Vec<String>,
}

/// One checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointVerdict {
    /// The file.
    pub file: String,
    /// Where it lets a start begin.
    pub lsn: u64,
    /// Why it cannot be used; `None`: it is whole.
    pub damage: Option<String>,
}

/// A place in a log.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// Where in it.
    pub offset: usize,
    /// The same as a position in the log.
    pub lsn: u64,
    /// Position where it can be read again.
    pub to: u64,
    /// What is wrong.
    pub fault: String,
}

/// A shard that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardVerdict {
    /// Its number.
    pub shard: u16,
    /// What is missing.
    pub reason: String,
}

/// Entries of one inbox whose messages are not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The shard.
    pub shard: u16,
    /// Whose inbox.
    pub user: String,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Where the first should lie.
    pub lsn: u64,
}

/// Judges a data directory, or one log of it.
///
/// # Errors
/// When it could not be looked at. Damage is no error but a verdict.
pub fn verify(view: &DataView, only: Option<u32>) -> Result<Verdict, OfflineError> {
    let mut judged = Vec::new();
    for log in logs(view, only)? {
        judged.push(verify_log(view, log)?);
    }
    let superblocks = view.supers().to_vec();
    let damaged = superblocks.iter().filter(|one| one.state == "damaged");
    let note = |one: &SuperState| {
        format!(
            "{} is not whole: a crash stopped its writing, or it rotted. The other one is used, and the \
             next starts write both anew",
            one.file
        )
    };
    Ok(Verdict {
        data: view.path().display().to_string(),
        sound: judged.iter().all(|log| log.sound),
        notes: damaged.map(note).collect(),
        superblocks,
        logs: judged,
    })
}

fn verify_log(view: &DataView, log: u32) -> Result<LogVerdict, OfflineError> {
    let mut verdict = LogVerdict {
        log,
        ..LogVerdict::default()
    };
    view.forget_cache(log)?;
    if let Err(reason) = read_through(view, log)? {
        verdict.unusable = Some(reason);
        return Ok(verdict);
    }
    let setup = view.setup(log);
    let mapped = Mapped::open(view.path(), log, setup.size, false)?;
    let known = Known::of(view.super_block(), log);
    mapped.found(known, |found| {
        let places = Places {
            view,
            log,
            setup: &setup,
        };
        judge_checkpoints(&places, found, &mut verdict);
        let mut read_from = u64::MAX; // without a recovery nothing else names bad places
        match recover(setup.clone(), found) {
            Ok(recovered) => {
                read_from = recovered.report.scanned_from;
                judge_recovery(&places, found, &recovered, &mut verdict);
            }
            Err(error) => verdict.unusable = Some(error.to_string()),
        }
        judge_segments(&places, found, read_from, &mut verdict);
    });
    verdict.sound = verdict.unusable.is_none()
        && verdict.checkpoints.iter().all(|one| one.damage.is_none())
        && verdict.holes.is_empty()
        && verdict.shards_damaged.is_empty()
        && verdict.unreadable.is_empty();
    Ok(verdict)
}

/// Where things of a log lie, for people.
struct Places<'a> {
    view: &'a DataView,
    log: u32,
    setup: &'a Setup,
}

impl Places<'_> {
    fn segment(&self, index: u64) -> String {
        let name = format!("{:016x}.seg", self.setup.size.first_lsn(index));
        inside(self.view.path(), &self.view.segments(self.log).join(name))
    }

    fn checkpoint(&self, lsn: u64) -> String {
        let name = format!("{lsn:016x}.ckpt");
        inside(
            self.view.path(),
            &self.view.checkpoints(self.log).join(name),
        )
    }

    fn place(&self, from: u64, to: u64, fault: &dyn std::fmt::Display) -> Place {
        Place {
            file: self.segment(self.setup.size.index_of(from)),
            offset: self.setup.size.offset_of(from),
            lsn: from,
            to,
            fault: fault.to_string(),
        }
    }
}

/// Reads all files once with plain reads: a sector that the disk cannot give is told, where a map would
/// end the process.
fn read_through(view: &DataView, log: u32) -> Result<Result<(), String>, OfflineError> {
    let files = [view.segment_files(log)?, view.checkpoint_files(log)?].concat();
    for (_, path) in files {
        if let Err((offset, error)) = read_file(&path) {
            let file = inside(view.path(), &path);
            return Ok(Err(format!(
                "{file} cannot be read at byte {offset}: {error}"
            )));
        }
    }
    Ok(Ok(()))
}

fn read_file(path: &Path) -> Result<(), (u64, std::io::Error)> {
    let mut offset = 0;
    let mut file = File::open(path).map_err(|error| (offset, error))?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => offset += count as u64,
            Err(error) => return Err((offset, error)),
        }
    }
}

fn judge_checkpoints(places: &Places<'_>, found: Found<'_>, verdict: &mut LogVerdict) {
    let old = found.checkpoints.len().saturating_sub(CHECKPOINTS_KEPT);
    for (nth, (lsn, bytes)) in found.checkpoints.iter().enumerate() {
        let damage = judge_checkpoint(places.setup, *lsn, bytes).err();
        let file = places.checkpoint(*lsn);
        match damage {
            Some(damage) if nth < old => verdict.notes.push(format!(
                "{file} is not whole ({damage}); two newer ones are there, so it may be deleted"
            )),
            damage => verdict.checkpoints.push(CheckpointVerdict {
                file,
                lsn: *lsn,
                damage,
            }),
        }
    }
}

fn judge_recovery(
    places: &Places<'_>,
    found: Found<'_>,
    recovered: &Recovered,
    verdict: &mut LogVerdict,
) {
    let (store, report) = (&recovered.store, &recovered.report);
    verdict.scanned_from = Some(report.scanned_from);
    verdict.end = Some(report.end);
    verdict.segments = store.status().segments as u64;
    let holes = report.holes.iter();
    let place = |hole: &Hole| places.place(hole.from, hole.to, &hole.fault);
    verdict.holes = holes.map(place).collect();
    let damaged = store.quarantined().iter().map(|one| ShardVerdict {
        shard: one.shard.0,
        reason: one.reason.clone(),
    });
    verdict.shards_damaged = damaged.collect();
    let cut: usize = recovered.cuts.iter().map(|cut| cut.len).sum();
    if cut > 0 {
        verdict.notes.push(format!(
            "behind the end lies what a write left that a crash interrupted; the next start zeroes it \
             ({cut} bytes, from position {:#x}). Nothing of it was ever accepted",
            report.end
        ));
    }
    read_messages(places.setup, found, store, verdict);
}

/// Reads every message that an inbox refers to.
fn read_messages(setup: &Setup, found: Found<'_>, store: &Store, verdict: &mut LogVerdict) {
    for id in store.shards() {
        let Some(shard) = store.shard(*id) else {
            continue; // it is not served; `salvage` says what is left of it
        };
        verdict.shards_served += 1;
        for user in shard.users().iter() {
            let slots = user.slots();
            verdict.messages += slots.filter(|(_, slot)| slot.position().is_some()).count() as u64;
            for (seq, lsn) in unreadable(setup, found, user) {
                add_unreadable(&mut verdict.unreadable, id.0, user.name(), seq.0, lsn);
            }
        }
    }
}

fn add_unreadable(all: &mut Vec<Unreadable>, shard: u16, user: &str, seq: u64, lsn: u64) {
    if let Some(last) = all.last_mut()
        && (last.shard, last.user.as_str(), last.last + 1) == (shard, user, seq)
    {
        last.last = seq;
        return;
    }
    all.push(Unreadable {
        shard,
        user: user.to_owned(),
        first: seq,
        last: seq,
        lsn,
    });
}

/// Every frame of every segment. What recovery reads it has judged; before that, nothing needs more of a
/// segment than the messages in it, and those were read.
fn judge_segments(places: &Places<'_>, found: Found<'_>, read_from: u64, verdict: &mut LogVerdict) {
    let size = places.setup.size;
    let mut before: Option<(u64, Option<u32>)> = None;
    for (index, bytes) in found.segments {
        let chain = before
            .filter(|(last, _)| last + 1 == *index)
            .and_then(|(_, crc)| crc);
        let first = size.first_lsn(*index);
        let mut bad: Vec<(u64, u64, Fault)> = Vec::new();
        let surveyed = survey(size, *index, bytes, chain, &mut |sight| match sight {
            Sight::Bad { from, to, fault } => {
                bad.push((first + from as u64, first + to as u64, fault));
            }
            Sight::Header(header) if header.identity != places.setup.identity => {
                bad.push((first, first, Fault::Stale));
            }
            Sight::Header(_) | Sight::Frame(..) => {}
        });
        for (from, to, fault) in bad.into_iter().filter(|(from, ..)| *from < read_from) {
            let place = places.place(from, to, &fault);
            verdict.notes.push(format!(
                "{} at byte {}: {} (to position {:#x}); no start reads it, and no message that an inbox \
                 refers to is hurt unless it is named above",
                place.file, place.offset, place.fault, place.to
            ));
        }
        verdict.frames += surveyed.frames;
        before = Some((*index, surveyed.last_crc.filter(|_| surveyed.is_sealed)));
    }
}
