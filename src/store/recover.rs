//! From what lies on the disk to a store that can go on, and the judgement of every shard (R: D-2).
//!
//! ```text
//!   newest whole checkpoint ─▶ shards ── scan from its position ─▶ entries, each the next of its shard
//!                                              │
//!                                        a hole: every shard is in doubt until
//!                                          its next entry follows the last one    nothing lost
//!                                          its next entry does not                damaged
//!                                          a HEADS record says its last index     one or the other
//!                                          the log ends                           damaged
//! ```
//!
//! A damaged shard is not served: it is quarantined, the others go on, and nothing is deleted. A torn
//! tail is no damage: nothing in it was ever promised (see `log::recovery`).
//!
//! This decides; writing (zeroing a torn tail, syncing) is the shell's.

use crate::log::recovery::{
    Hole, Origin, Recovered as Record, ScanError, Seen, Tail, leftovers, scan,
};
use crate::log::{
    CheckpointError, CheckpointHeader, CheckpointReader, FrameBuilder, FrameKind, RecordKind,
    SegmentHeader, Writer, WriterStart, heads, items,
};
use crate::placement::ShardId;
use crate::planted::{self, Bug};
use crate::shard::command::{self, Command};
use crate::shard::slot::POSITION_MAX;
use crate::shard::state::StateError;
use crate::shard::{ApplyError, Change, Effect, Entry, Shard};

use super::checkpointing::{Checkpointing, Kept};
use super::cleaning::Cleaning;
use super::ledger::Ledger;
use super::salvage::is_readable;
use super::{Quarantine, Setup, Store};

/// What lies on the disk.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Position and bytes of each checkpoint, oldest first.
    pub checkpoints: &'a [(u64, &'a [u8])],
    /// Number and bytes of each segment, in order; spares too.
    pub segments: &'a [(u64, &'a [u8])],
    /// What is known of it from elsewhere.
    pub known: Known,
}

/// What the superblock knows of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Position up to which it was durable at the last orderly stop; 0: nothing is known.
    pub durable_lsn: u64,
    /// Position behind the newest segment that was made, see [`Origin::made`].
    pub made_lsn: u64,
}

/// Bytes that must be zeroed before the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// In which segment.
    pub segment: u64,
    /// Where in it.
    pub offset: usize,
    /// How many.
    pub len: usize,
}

/// What recovery has to tell people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Position that the scan began at.
    pub scanned_from: u64,
    /// Where the log ends.
    pub end: u64,
    /// Frames scanned.
    pub frames: u64,
    /// Records scanned.
    pub records: u64,
    /// Parts of the log that cannot be believed.
    pub holes: Vec<Hole>,
    /// Checkpoints that cannot be used, and why. An older one was, or the log from its beginning.
    pub unusable_checkpoints: Vec<(u64, String)>,
    /// Entries of inboxes: all that are kept.
    pub entries: u64,
}

/// A store that can go on once the shell has done the rest.
#[derive(Debug)]
pub struct Recovered {
    /// The store.
    pub store: Store,
    /// The header that the segment of its position has lost and needs, written and synced before
    /// anything is zeroed: without it the next recovery would not find what this one has found.
    pub lost_header: Option<SegmentHeader>,
    /// What to zero.
    pub cuts: Vec<Cut>,
    /// Segments to sync before anything is served: what was read may be in the page cache only.
    pub unsynced: Vec<u64>,
    /// Segments behind the end: spares, or in the making.
    pub behind: Vec<u64>,
    /// What to say.
    pub report: Report,
}

/// Why a log cannot be used at all. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The log's bytes are not usable.
    #[error("{}", describe(.0))]
    Scan(ScanError),
    /// No checkpoint can be used, and the beginning of the log is gone.
    #[error("no checkpoint can be used ({}), and the log's beginning has been removed", reasons.join("; "))]
    NoCheckpoint {
        /// What is wrong with each.
        reasons: Vec<String>,
    },
    /// An entry passed all checks and makes no sense.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A record names a shard that is not one of this log.
    #[error("a record at position {position:#x} is of shard {shard}, which is not one of this log")]
    OtherShard {
        /// Where.
        position: u64,
        /// The shard.
        shard: u16,
    },
}

fn describe(error: &ScanError) -> String {
    match error {
        ScanError::TooMuch { at } => {
            format!("too many places are damaged, the last at position {at:#x}")
        }
        ScanError::Foreign { at, found } => format!(
            "the segment at position {at:#x} belongs elsewhere (log {}, position {:#x}, node {:#018x})",
            found.identity.log, found.first_lsn, found.identity.node_id
        ),
        ScanError::Beyond { at } => {
            format!("the segment at position {at:#x} lies where no log ever gets")
        }
        ScanError::Version { at, version } => format!(
            "the segment at position {at:#x} has format version {version}, which this program does not know"
        ),
        ScanError::Malformed { at, fault } => format!(
            "the frame at position {at:#x} is whole and cannot be read by this program ({})",
            fault.map_or("its kind is unknown".to_owned(), |fault| format!(
                "{fault:?}"
            ))
        ),
    }
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error(transparent)]
    File(#[from] CheckpointError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("it is of another log, or not what its name says")]
    Foreign,
    #[error("it says that the log goes on at position {0:#x}, where no frame can be")]
    Place(u64),
    #[error("it does not hold each shard of the log once")]
    Shards,
}

/// What is known of a shard while the log is read.
#[derive(Debug)]
pub(super) enum Standing {
    /// All its entries so far are there.
    Whole,
    /// There was a hole that may have held an entry of it.
    InDoubt,
    /// Entries are missing; why.
    Damaged(String),
}

/// The shards while the log is read.
#[derive(Debug)]
pub(super) struct Replay<'a> {
    setup: &'a Setup,
    pub shards: Vec<Shard>,
    pub standing: Vec<Standing>,
    /// The place of each shard of the data directory that is one of this log's.
    places: Vec<Option<u16>>,
    had_hole: bool,
    /// Where the last hole ends that may have held records of which nothing is seen. What lies inside of
    /// it says nothing of the rest of it.
    hole_end: u64,
    holes: Vec<Hole>,
    error: Option<RecoverError>,
    effects: Vec<Effect>,
}

/// Where a replay begins, and with what.
#[derive(Debug)]
pub(super) struct Beginning {
    pub shards: Vec<Shard>,
    pub lsn: u64,
    pub prev_crc: u32,
    pub kept: Vec<Kept>,
    pub unusable: Vec<(u64, String)>,
}

/// Makes a store of what is found.
pub fn recover(setup: Setup, found: Found<'_>) -> Result<Recovered, RecoverError> {
    let beginning = begin(&setup, &found)?;
    let origin = Origin {
        size: setup.size,
        identity: setup.identity,
        lsn: beginning.lsn,
        prev_crc: beginning.prev_crc,
        durable: found.known.durable_lsn,
        made: found.known.made_lsn,
    };
    let first = setup.size.index_of(beginning.lsn);
    let start = found.segments.partition_point(|(index, _)| *index < first);
    let mut replay = Replay::new(&setup, beginning.shards);
    let scanned = &found.segments[start..];
    let tail = scan(&origin, scanned, &mut |seen| replay.see(seen)).map_err(RecoverError::Scan)?;
    if let Some(error) = replay.error {
        return Err(error);
    }
    replay.decide();
    let mut report = Report {
        scanned_from: beginning.lsn,
        end: tail.end,
        frames: tail.frames,
        records: tail.records,
        holes: std::mem::take(&mut replay.holes),
        unusable_checkpoints: beginning.unusable,
        entries: 0,
    };
    let end_index = setup.size.index_of(tail.end);
    let (mut cuts, mut unsynced, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    for (index, bytes) in scanned {
        let from = match *index == end_index {
            true => setup.size.offset_of(tail.end),
            false => 0,
        };
        if *index >= end_index {
            leftovers(bytes, from, |offset, len| {
                cuts.push(Cut {
                    segment: *index,
                    offset,
                    len,
                });
            });
        }
        unsynced.push(*index);
        if *index > end_index || (*index == end_index && tail.salt.is_none()) {
            behind.push(*index);
        }
    }
    let lost_header = lost_header(&setup, &tail);
    let used = found.segments.iter().map(|(index, _)| *index);
    let used = used.filter(|index| !behind.contains(index));
    let ledger = Ledger::new(setup.size, used);
    let judged = replay.shards.into_iter().zip(replay.standing).collect();
    let disk = (found, ledger);
    let store = Store::assemble(setup, &tail, disk, judged, beginning.kept, &mut report);
    Ok(Recovered {
        store,
        lost_header,
        cuts,
        unsynced,
        behind,
        report,
    })
}

fn lost_header(setup: &Setup, tail: &Tail) -> Option<SegmentHeader> {
    Some(SegmentHeader {
        identity: setup.identity,
        incarnation: setup.incarnation,
        first_lsn: setup.size.first_lsn(setup.size.index_of(tail.end)),
        salt: tail.salt?,
        segment_bytes: setup.size.bytes(),
        prev_crc: tail.lost_header?,
    })
}

/// The newest checkpoint that is whole, else the beginning of the log.
pub(super) fn begin(setup: &Setup, found: &Found<'_>) -> Result<Beginning, RecoverError> {
    let has_origin = found.segments.first().is_none_or(|(index, _)| *index == 0);
    let mut unusable = Vec::new();
    for (nth, (lsn, bytes)) in found.checkpoints.iter().enumerate().rev() {
        match load(setup, *lsn, bytes) {
            Ok((shards, header)) => {
                return Ok(Beginning {
                    shards,
                    lsn: header.scan_lsn,
                    prev_crc: header.prev_crc,
                    kept: kept(setup, &found.checkpoints[..=nth], has_origin),
                    unusable,
                });
            }
            Err(error) => unusable.push((*lsn, error.to_string())),
        }
    }
    if !has_origin {
        let reasons = unusable.into_iter().map(|(_, reason)| reason).collect();
        return Err(RecoverError::NoCheckpoint { reasons });
    }
    let shards = setup.shards.iter();
    Ok(Beginning {
        shards: shards
            .map(|id| Shard::new(*id, setup.key, setup.shard))
            .collect(),
        lsn: 0,
        prev_crc: 0,
        kept: vec![Kept { lsn: 0, bytes: 0 }],
        unusable,
    })
}

/// The places that a replay can begin at, the last of them the newest whole checkpoint; behind it the
/// one before it is the second choice, else the log's beginning. There are more when their removal did
/// not last. Those go, but only the ones that two whole checkpoints are newer than: a damaged one
/// between these two is nothing to count on, and nothing to take away.
fn kept(setup: &Setup, checkpoints: &[(u64, &[u8])], has_origin: bool) -> Vec<Kept> {
    let place = |(lsn, bytes): &(u64, &[u8])| Kept {
        lsn: *lsn,
        bytes: bytes.len() as u64,
    };
    let Some((newest, older)) = checkpoints.split_last() else {
        return Vec::new();
    };
    let is_whole = |(lsn, bytes): &(u64, &[u8])| load(setup, *lsn, bytes).is_ok();
    let second = match older.len() {
        0 | 1 => older.len(), // nothing is removed for its sake
        _ => older.iter().rposition(is_whole).map_or(0, |nth| nth + 1),
    };
    let origin = has_origin && second == 0;
    let origin = origin.then_some(Kept { lsn: 0, bytes: 0 });
    let older = older[..second].iter().map(place);
    let kept = origin.into_iter().chain(older);
    kept.chain([place(newest)]).collect()
}

/// Whether a checkpoint file of this position could be used: how many shards it has, or why not.
///
/// # Errors
/// What is wrong with it, in words.
pub fn judge_checkpoint(setup: &Setup, lsn: u64, bytes: &[u8]) -> Result<usize, String> {
    match load(setup, lsn, bytes) {
        Ok((shards, _)) => Ok(shards.len()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads one checkpoint: all its shards, in the order of the setup.
fn load(setup: &Setup, lsn: u64, bytes: &[u8]) -> Result<(Vec<Shard>, CheckpointHeader), Unusable> {
    let (header, mut reader) = CheckpointReader::open(bytes)?;
    let is_ours = header.identity == setup.identity
        && header.scan_lsn == lsn
        && header.segment_bytes == setup.size.bytes();
    if !is_ours {
        return Err(Unusable::Foreign);
    }
    if lsn > POSITION_MAX || !setup.size.is_place(lsn) {
        return Err(Unusable::Place(lsn));
    }
    let mut shards = Vec::with_capacity(setup.shards.len());
    while let Some(section) = reader.next_section()? {
        let id = *setup.shards.get(shards.len()).ok_or(Unusable::Shards)?;
        let shard = Shard::read_state(id, setup.key, setup.shard, &section.bytes)?;
        if section.shard != id.0 || shard.applied() != section.applied {
            return Err(Unusable::Shards);
        }
        shards.push(shard);
    }
    if shards.len() != setup.shards.len() {
        return Err(Unusable::Shards);
    }
    Ok((shards, header))
}

impl<'a> Replay<'a> {
    pub fn new(setup: &'a Setup, shards: Vec<Shard>) -> Self {
        let standing = shards.iter().map(|_| Standing::Whole).collect();
        Self {
            setup,
            places: setup.places(),
            shards,
            standing,
            had_hole: false,
            hole_end: 0,
            holes: Vec::new(),
            error: None,
            effects: Vec::new(),
        }
    }

    fn see(&mut self, seen: Seen<'_>) {
        if self.error.is_some() {
            return;
        }
        let result = match seen {
            Seen::Hole(hole) => {
                self.hole(hole);
                Ok(())
            }
            Seen::Broken(record) => {
                self.broken(&record);
                Ok(())
            }
            Seen::Record(record) => self.record(&record),
        };
        self.error = result.err();
    }

    fn hole(&mut self, hole: Hole) {
        self.had_hole = true;
        // When something is known of every record in it, these tell by themselves what is missing.
        if hole.records_missing != Some(0) {
            self.hole_end = hole.to;
            for standing in &mut self.standing {
                if matches!(standing, Standing::Whole) {
                    *standing = Standing::InDoubt;
                }
            }
        }
        self.holes.push(hole);
    }

    fn place_of(&self, shard: u16) -> Option<usize> {
        let place = self.places.get(usize::from(shard)).copied().flatten();
        place.map(usize::from)
    }

    fn place(&self, record: &Record<'_>) -> Result<usize, RecoverError> {
        let shard = record.record.shard;
        self.place_of(shard).ok_or(RecoverError::OtherShard {
            position: record.lsn_of_payload,
            shard,
        })
    }

    /// An entry whose own bytes are damaged: if its shard has not applied it already, that is the end.
    fn broken(&mut self, record: &Record<'_>) {
        if record.record.kind != RecordKind::Entry {
            return;
        }
        let Ok(place) = self.place(record) else {
            return;
        };
        let index = record.record.index;
        if index > self.shards[place].applied() {
            self.damage(place, format!("entry {index} is damaged"));
        }
    }

    /// A record says of a shard that nothing is missing of it so far.
    fn settle(&mut self, place: usize, record: &Record<'_>) {
        let standing = &mut self.standing[place];
        let vouches = vouches(self.setup, record, self.hole_end);
        if matches!(standing, Standing::InDoubt) && vouches {
            *standing = Standing::Whole;
        }
    }

    fn damage(&mut self, place: usize, reason: String) {
        if !matches!(self.standing[place], Standing::Damaged(_)) {
            self.standing[place] = Standing::Damaged(reason);
        }
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), RecoverError> {
        match record.record.kind {
            RecordKind::Entry => self.entry(record),
            RecordKind::Reloc => {
                self.relocated(record);
                Ok(())
            }
            RecordKind::Heads => {
                self.heads(record);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn entry(&mut self, record: &Record<'_>) -> Result<(), RecoverError> {
        let place = self.place(record)?;
        let (index, applied) = (record.record.index, self.shards[place].applied());
        if matches!(self.standing[place], Standing::Damaged(_)) {
            return Ok(());
        }
        if index <= applied {
            // What was in a hole before it has lower indexes, and is applied too.
            self.settle(place, record);
            return Ok(());
        }
        if index > applied + 1 && self.had_hole {
            let (first, last) = (applied + 1, index - 1);
            self.damage(place, format!("entries {first} to {last} are missing"));
            return Ok(());
        }
        let entry = entry_of(record);
        self.effects.clear();
        let shard = &mut self.shards[place];
        shard.apply(&entry, &[], &mut self.effects)?;
        shard.changes();
        let strayed = shard.strayed();
        self.settle(place, record);
        if strayed > 0 {
            let reason = "does not follow from what is before it: was it salvaged behind a checkpoint that is gone?";
            self.damage(place, format!("entry {index} {reason}"));
        }
        Ok(())
    }

    fn relocated(&mut self, record: &Record<'_>) {
        for item in items(record.payload) {
            let Ok((offset, bytes)) = item else { return };
            let Ok(Command::Append(append)) = command::decode(bytes) else {
                continue;
            };
            let Some(place) = self.place_of(self.setup.shard_of(append.to).0) else {
                continue;
            };
            let shard = &mut self.shards[place];
            let mut seq = append.seq;
            seq.0 += u64::from(planted::is(Bug::RelocationMisplaced));
            if let Some(user) = shard.find(append.to) {
                shard.relocate(user, seq, record.lsn_of_payload + offset as u64);
                shard.changes();
            }
        }
    }

    /// The last entry of each shard, as the writer knew it. After a hole this settles doubts.
    fn heads(&mut self, record: &Record<'_>) {
        let Ok(heads) = heads(record.payload) else {
            return;
        };
        for (shard, index) in heads {
            let Some(place) = self.place_of(shard) else {
                continue;
            };
            let applied = self.shards[place].applied();
            if index > applied {
                self.damage(
                    place,
                    format!("entries {} to {index} are missing", applied + 1),
                );
            } else {
                self.settle(place, record);
            }
        }
    }

    /// At the end of the log, what is still in doubt counts as damaged.
    fn decide(&mut self) {
        for standing in &mut self.standing {
            if matches!(standing, Standing::InDoubt) {
                let reason = "entries may be missing, and nothing behind proves that none is";
                *standing = Standing::Damaged(reason.to_owned());
            }
        }
    }
}

/// Whether a record tells what a hole that ends here held of its shard. One inside of it does not; but a
/// HEADS in a hole up to the end of a segment is that of the END, behind which there is nothing.
pub(super) fn vouches(setup: &Setup, record: &Record<'_>, hole_end: u64) -> bool {
    let is_end = record.record.kind == RecordKind::Heads && setup.size.offset_of(hole_end) == 0;
    record.lsn_of_payload >= hole_end || is_end
}

/// A record of kind Entry as the shard takes it.
pub(super) fn entry_of<'a>(record: &Record<'a>) -> Entry<'a> {
    Entry {
        index: record.record.index,
        term: record.record.term,
        time_ms: record.record.a,
        payload: record.payload,
        position: record.lsn_of_payload,
    }
}

/// The shards that are served, in their places, and those that are not. How far these went is not known.
fn part(judged: Vec<(Shard, Standing)>) -> (Vec<Option<Box<Shard>>>, Vec<Quarantine>) {
    let mut quarantined = Vec::new();
    let mut served = Vec::with_capacity(judged.len());
    for (shard, standing) in judged {
        if let Standing::Damaged(reason) = standing {
            let shard = shard.id();
            quarantined.push(Quarantine { shard, reason });
            served.push(None);
        } else {
            served.push(Some(Box::new(shard)));
        }
    }
    (served, quarantined)
}

impl Store {
    /// Puts a recovered store together. A shard whose messages lie in a segment that is not there is
    /// damaged too.
    fn assemble(
        setup: Setup,
        tail: &Tail,
        (found, mut ledger): (Found<'_>, Ledger),
        mut judged: Vec<(Shard, Standing)>,
        kept: Vec<Kept>,
        report: &mut Report,
    ) -> Self {
        for (shard, standing) in &mut judged {
            let missing = book(&setup, found, shard, &mut ledger, report);
            if missing > 0 && !matches!(standing, Standing::Damaged(_)) {
                *standing = Standing::Damaged(format!(
                    "{missing} messages lie in segments that are missing or where the log is damaged"
                ));
            }
        }
        let heads = judged.iter();
        let heads = heads.filter(|(_, standing)| !matches!(standing, Standing::Damaged(_)));
        let heads = heads
            .map(|(shard, _)| (shard.id().0, shard.applied()))
            .collect();
        let (served, quarantined) = part(judged);
        let is_sealed = tail.last_kind.is_none_or(|kind| kind == FrameKind::Seal);
        let writer = Writer::new(WriterStart {
            identity: setup.identity,
            incarnation: setup.incarnation,
            size: setup.size,
            end: tail.end,
            prev_crc: tail.prev_crc,
            salt: tail.salt,
            unsealed: tail.watermark < tail.end && !is_sealed,
            heads_max: setup.shards.len(),
        });
        Self {
            frame: FrameBuilder::with_max(writer.frame_bytes_max()),
            writer,
            is_ready: vec![false; served.len()],
            shards: served,
            places: setup.places(),
            quarantined,
            heads,
            loaded_items: 0,
            loaded: Vec::new(),
            ready: std::collections::VecDeque::new(),
            pending_bytes: 0,
            flight: None,
            last_write_us: 0,
            waiting_since_us: 0,
            ledger,
            checkpointing: Checkpointing::new(kept),
            cleaning: Cleaning::default(),
            sweep_at_us: 0,
            sweep_place: 0,
            is_resting: false,
            scratch: Vec::new(),
            commits: 0,
            committed: 0,
            #[cfg(feature = "sim")]
            early: std::collections::VecDeque::new(),
            setup,
        }
    }
}

/// Books where a shard's messages lie; how many are not there. Those that lie in a hole are read: a part
/// of a checkpoint may be younger than the hole, and a move that a hole swallowed shows in no index.
fn book(
    setup: &Setup,
    found: Found<'_>,
    shard: &Shard,
    ledger: &mut Ledger,
    report: &mut Report,
) -> u64 {
    let (mut missing, mut entries) = (0, 0);
    for user in shard.users().iter() {
        // Neighbours lie in one segment, mostly: whether it exists is asked once.
        let (mut last, mut exists) = (u64::MAX, false);
        let changes = user.slots().filter_map(|(seq, slot)| {
            entries += slot.entries();
            let position = slot.position()?;
            let segment = setup.size.index_of(position);
            if segment != last {
                (last, exists) = (segment, ledger.has(segment));
            }
            let mut holes = report.holes.iter();
            let in_hole = holes.any(|hole| (hole.from..hole.to).contains(&position));
            if !exists || (in_hole && !is_readable(setup, found, position, user.name(), seq)) {
                missing += 1;
                return None;
            }
            let bytes = slot.bytes().cast_signed();
            Some(Change { position, bytes })
        });
        let booked: Vec<Change> = changes.collect();
        ledger.book(booked);
    }
    report.entries += entries;
    missing
}

/// The shards of log `log`, when the data directory has `logs` logs and `shards` shards.
#[must_use]
pub fn shards_of_log(log: u16, logs: u16, shards: u16) -> Vec<ShardId> {
    (0..shards)
        .filter(|shard| shard % logs == log)
        .map(ShardId)
        .collect()
}
