//! What was done to the disks by the world, and what follows from it: for which shards a switch may
//! refuse to serve, and which entries it may call lost.
//!
//! A bit is turned only where it can be judged: in a frame of a sealed segment, of which the original
//! is known, or in a checkpoint. What the frame held decides who may suffer. Before the end of a run
//! every bit is turned back, as a restored backup would do it, and then nothing may be missing.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use crate::log::limits::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::log::{FrameHeader, FrameKind, RecordKind, SegmentSize, items, records};
use crate::placement::ShardId;
use crate::shard::command::{self, Command};
use crate::sim::dice::Dice;
use crate::sim::disk::{FakeDisk, Name, Rot};
use crate::sim::model::{MessageNo, message_no};
use crate::sim::world::World;

/// One turned bit and who may suffer from it.
#[derive(Clone, Debug)]
struct Hurt {
    log: usize,
    rot: Rot,
    reach: Reach,
}

/// What a turned bit can reach.
#[derive(Clone, Debug, Default)]
struct Reach {
    /// Shards that may lose something.
    shards: BTreeSet<u16>,
    /// Messages that may be lost.
    messages: BTreeSet<MessageNo>,
}

/// All damage that was done.
#[derive(Clone, Debug, Default)]
pub struct Damage {
    hurts: Vec<Hurt>,
    done: bool,
    /// Logs that cannot be had whole: the only checkpoint that leads to the end has rotted.
    hopeless: BTreeSet<usize>,
    /// Bits that a salvage has gone around. They stay.
    settled: Vec<Hurt>,
    /// A salvage was done.
    salvaged: bool,
    /// Bits that were turned back.
    healed: Vec<Hurt>,
    /// Entries that a salvage gave up, by user.
    lost: BTreeMap<String, BTreeSet<u64>>,
}

impl Damage {
    /// Whether any was done, even if it was turned back since.
    #[must_use]
    pub const fn was_done(&self) -> bool {
        self.done
    }

    /// Whether bits are turned now.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        !self.hurts.is_empty()
    }

    /// Whether a start may find a log unusable.
    #[must_use]
    pub fn is_hopeless(&self, log: usize) -> bool {
        self.hopeless.contains(&log)
    }

    /// Whether a shard may be found damaged.
    #[must_use]
    pub fn may_quarantine(&self, log: usize, shard: ShardId) -> bool {
        let is_hurt = |hurt: &Hurt| hurt.log == log && hurt.reach.shards.contains(&shard.0);
        self.is_hopeless(log) || self.hurts.iter().any(is_hurt)
    }

    /// Whether an entry may be called lost.
    #[must_use]
    pub fn is_lost(&self, user: &str, seq: u64) -> bool {
        self.lost.get(user).is_some_and(|lost| lost.contains(&seq))
    }

    /// Whether a message may be called lost.
    #[must_use]
    pub fn may_lose(&self, no: MessageNo) -> bool {
        let mut hurts = self.hurts.iter().chain(&self.settled).chain(&self.healed);
        hurts.any(|hurt| hurt.reach.messages.contains(&no))
    }

    /// Whether a salvage was done.
    #[must_use]
    pub const fn was_salvaged(&self) -> bool {
        self.salvaged
    }

    /// The logs that have a turned bit in a segment.
    #[must_use]
    pub fn logs(&self) -> BTreeSet<usize> {
        let in_segment = |hurt: &&Hurt| matches!(hurt.rot.name, Name::Segment(_));
        self.hurts
            .iter()
            .filter(in_segment)
            .map(|hurt| hurt.log)
            .collect()
    }

    /// A log has gone around its damage: what is lost is lost.
    pub(super) fn settle(&mut self, log: usize) {
        self.salvaged = true; // its bits may have been turned back by the time this is known
        let (settled, there) = std::mem::take(&mut self.hurts)
            .into_iter()
            .partition(|hurt| hurt.log == log);
        self.hurts = there;
        self.settled.extend::<Vec<Hurt>>(settled);
    }

    /// An entry is lost, or was given up because it may have been.
    pub(super) fn lose(&mut self, user: &str, seq: u64) {
        self.lost.entry(user.to_owned()).or_default().insert(seq);
    }

    /// Whether a turned bit is what makes an item at a position unreadable.
    #[must_use]
    pub fn hits(&self, size: SegmentSize, segment: Name, position: u64) -> bool {
        let offset = size.offset_of(position);
        let near = |rot: &Rot| rot.name == segment && rot.offset >= offset;
        let mut hurts = self.hurts.iter().chain(&self.settled);
        hurts.any(|hurt| near(&hurt.rot))
    }

    /// Turns all bits back.
    pub fn heal(&mut self, disks: &mut [FakeDisk]) {
        for hurt in self.hurts.drain(..) {
            disks[hurt.log].rot(hurt.rot);
            self.healed.push(hurt);
        }
    }
}

impl Check {
    /// Before a start: whether anything but a rotten checkpoint leads to the end of the log, `end`.
    pub(super) fn weigh_checkpoints(&mut self, log: usize, disk: &FakeDisk, end: u64) {
        let rotten = |name: Name| {
            let mut hurts = self.damage.hurts.iter();
            hurts.any(|hurt| hurt.log == log && hurt.rot.name == name)
        };
        let last = self.size.index_of(end.saturating_sub(1));
        let leads = |lsn: u64| {
            let mut needed = self.size.index_of(lsn)..=last;
            let mut settled = self.damage.settled.iter().filter(|hurt| hurt.log == log);
            let is_behind = |hurt: &Hurt| match hurt.rot.name {
                Name::Segment(index) => self.size.first_lsn(index) + hurt.rot.offset as u64 >= lsn,
                _ => false,
            };
            needed.all(|index| disk.read(Name::Segment(index)).is_some()) && !settled.any(is_behind)
        };
        let checkpoints = disk.names().filter_map(|name| match name {
            Name::Checkpoint(lsn) => Some((lsn, rotten(name))),
            _ => None,
        });
        let checkpoints: Vec<(u64, bool)> = checkpoints.collect();
        let has_way = leads(0)
            || checkpoints
                .iter()
                .any(|(lsn, is_rotten)| !is_rotten && leads(*lsn));
        let is_hurt = checkpoints.iter().any(|(_, is_rotten)| *is_rotten);
        if is_hurt && !has_way {
            self.damage.hopeless.insert(log);
        } else {
            self.damage.hopeless.remove(&log);
        }
    }

    /// A message could not be read for delivery.
    pub fn unreadable(&mut self, world: &mut World, _: &[FakeDisk], log: usize, position: u64) {
        let segment = Name::Segment(self.size.index_of(position));
        world.note(|| format!("log {log}: nothing whole at {position:#x}"));
        self.counts.unreadable += 1;
        if !self.damage.hits(self.size, segment, position) {
            world.fail(|| format!("log {log}: no whole item at {position:#x}, and nothing rotted"));
        }
    }

    /// Turns one bit of a log's disk, where it can be judged; says whether there was a place for it.
    pub fn do_damage(&mut self, world: &mut World, log: usize, disk: &mut FakeDisk) -> bool {
        let end = self.size.index_of(self.models[log].end());
        let names: Vec<Name> = disk
            .names()
            .filter(|name| match name {
                Name::Segment(index) => *index <= end,
                Name::Checkpoint(_) => disk.is_clean(*name),
                Name::Draft(_) => false,
            })
            .collect();
        if names.is_empty() {
            return false;
        }
        let name = *world.dice.pick(&names);
        let bytes = disk.read(name).unwrap_or_default();
        let Some((offset, reach)) = self.choose_victim(&mut world.dice, log, name, disk, bytes)
        else {
            return false;
        };
        let rot = Rot {
            name,
            offset,
            bit: world.dice.below(8) as u8,
        };
        world.note(|| format!("log {log}: {rot:?}; {reach:?} may suffer"));
        disk.rot(rot);
        self.damage.hurts.push(Hurt { log, rot, reach });
        self.damage.done = true;
        self.counts.rotted += 1;
        true
    }

    /// A byte of a file, and the shards that may suffer when it is not what it was.
    fn choose_victim(
        &self,
        dice: &mut Dice,
        log: usize,
        name: Name,
        disk: &FakeDisk,
        bytes: &[u8],
    ) -> Option<(usize, Reach)> {
        let Name::Segment(index) = name else {
            return (!bytes.is_empty()).then(|| (dice.index(bytes.len()), Reach::default()));
        };
        let frames = frames(bytes);
        if index < self.size.index_of(self.models[log].end()) && dice.percent(10) {
            // The segment's header: everything in the segment may be doubted.
            let mut reach = Reach::default();
            for (at, _) in &frames {
                self.reached_in(bytes, *at, &mut reach);
            }
            self.doubt(log, index, disk, SEGMENT_HEADER_BYTES, &mut reach.shards);
            return Some((dice.index(80), reach));
        }
        // Only where a durable frame proves that it was durable; else it may be cut as a torn tail.
        let proven = self.models[log]
            .watermark
            .saturating_sub(self.size.first_lsn(index));
        let proven: Vec<(usize, usize)> = frames
            .into_iter()
            .filter(|(at, len)| (at + len) as u64 <= proven)
            .collect();
        let (at, len) = *proven.get(dice.index(proven.len()))?;
        let mut reach = Reach::default();
        self.reached_in(bytes, at, &mut reach);
        self.doubt(log, index, disk, at + len, &mut reach.shards);
        Some((at + dice.index(len), reach))
    }

    /// Without a record of heads behind it, nobody can know who lost nothing.
    fn doubt(
        &self,
        log: usize,
        index: u64,
        disk: &FakeDisk,
        behind: usize,
        shards: &mut BTreeSet<u16>,
    ) {
        let mut from = behind;
        for later in index..=self.size.index_of(self.models[log].end()) {
            let bytes = disk.read(Name::Segment(later)).unwrap_or_default();
            let seals = |at: usize| {
                let frame = FrameHeader::decode(&bytes[at..]).and_then(|frame| frame.kind());
                matches!(frame, Some(FrameKind::Seal | FrameKind::End))
            };
            // One that is not durable may be gone when it is needed.
            let durable = self.models[log]
                .end()
                .saturating_sub(self.size.first_lsn(later));
            let sealed = |(at, len): &(usize, usize)| {
                *at >= from && (at + len) as u64 <= durable && seals(*at)
            };
            if frames(bytes).iter().any(sealed) {
                return;
            }
            from = 0;
        }
        let all = (0..self.placement.shards()).map(ShardId);
        let ours = all.filter(|shard| usize::from(self.placement.log_of(*shard).0) == log);
        shards.extend(ours.map(|shard| shard.0));
    }

    /// Adds what is in the frame at `at`.
    fn reached_in(&self, bytes: &[u8], at: usize, reach: &mut Reach) {
        let Some(frame) = FrameHeader::decode(&bytes[at..]) else {
            return;
        };
        let body = &bytes[at + FRAME_HEADER_BYTES..at + frame.frame_len()];
        let _ = records(&frame, body, |record, _, payload| {
            if record.kind == RecordKind::Entry {
                reach.shards.insert(record.shard);
            }
            if !matches!(record.kind, RecordKind::Entry | RecordKind::Reloc) {
                return;
            }
            for item in items(payload) {
                let Ok((_, bytes)) = item else { continue };
                if let Ok(Command::Append(append)) = command::decode(bytes) {
                    reach.shards.insert(self.shard_of(append.to).0);
                    reach.messages.extend(message_no(&append.id.0));
                }
            }
        });
    }
}

/// Where the frames of a segment are, and how long.
fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(frame) = bytes.get(at..).and_then(FrameHeader::decode) {
        found.push((at, frame.frame_len()));
        at += frame.frame_len();
    }
    found
}
