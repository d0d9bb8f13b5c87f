//! Space comes back: messages that are still needed move out of segments that are mostly dead, and a
//! segment that nothing needs is removed (R: D-5).
//!
//! ```text
//!   victim ── Io::Harvest ──▶ its messages ── those an inbox refers to ──▶ RELOC record in the next frame
//!                                                                             │ durable
//!   segment removed ◀── nothing live in it, no checkpoint replays it ◀── entries refer to the new place
//! ```
//!
//! The pace follows the load: cleaning may read twice the bytes that were appended, and a little more
//! when nothing is; so it neither falls behind nor stands in the way of messages. At most one piece of
//! [`HARVEST_BYTES`] is in memory.
//!
//! A message that cannot be read any more is not moved: its segment stays, and the damage is counted.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use super::{Io, Move, Now, Store};
use crate::log::limits::{ALIGN, ITEM_HEADER_BYTES};
use crate::log::{FrameBuilder, Harvest, Space};
use crate::planted::{self, Bug};
use crate::shard::Change;
use crate::shard::command::{self, Command};

/// Bytes of a segment that are read at a time.
pub const HARVEST_BYTES: usize = 64 * 1024;
/// Bytes of messages moved by one frame.
pub const MOVED_BYTES_MAX: usize = 128 * 1024;
/// A segment with less than this part of it live, in percent, is worth cleaning in any case.
pub const LIVE_PERCENT_MIN: u64 = 30;
/// When the segments that may be cleaned hold more than so many percent of what is live in them, the
/// emptiest is cleaned whatever its part.
pub const USED_PERCENT_MAX: u64 = 150;
/// Microseconds between two looks for a segment to clean or to remove.
pub const LOOK_EVERY_US: u64 = 200_000;
/// Bytes of reading that can be saved up.
const CREDIT_MAX: u64 = 1024 * 1024;

/// What cleaning is at.
#[derive(Debug, Default)]
pub(super) struct Cleaning {
    victim: Option<Victim>,
    /// Bytes of segments that may be read now.
    credit: u64,
    earned_us: u64,
    look_at_us: u64,
    /// Segments with messages that could not be moved.
    stuck: BTreeSet<u64>,
    pub moved_bytes: u64,
    pub removed_segments: u64,
    pub damaged: u64,
}

/// A segment that is being cleaned.
#[derive(Debug)]
struct Victim {
    segment: u64,
    /// Where to go on reading; `None` at its end.
    next: Option<usize>,
    /// A piece has been asked for.
    asked: bool,
    /// The last piece, and the messages in it that are to be moved.
    bytes: Vec<u8>,
    queue: VecDeque<(Move, Range<usize>)>,
    /// Moves that are in a frame and not durable.
    under_way: usize,
}

/// Messages for one RELOC record; each `at` is an offset in the payload.
#[derive(Debug)]
pub(super) struct Moved {
    pub payload: Vec<u8>,
    pub moves: Vec<Move>,
}

impl Cleaning {
    /// So many more bytes may be read.
    pub fn earn(&mut self, bytes: u64) {
        self.credit = (self.credit + bytes).min(CREDIT_MAX);
    }

    /// Whether there are messages to be put into a frame.
    pub fn has_moves(&self) -> bool {
        self.victim
            .as_ref()
            .is_some_and(|victim| !victim.queue.is_empty())
    }

    /// Messages that fit into `frame`, if there are any to move.
    pub fn take_moves(&mut self, frame: &FrameBuilder) -> Option<Moved> {
        let victim = self.victim.as_mut()?;
        let mut moved = Moved {
            payload: Vec::new(),
            moves: Vec::new(),
        };
        while let Some((next, range)) = victim.queue.front() {
            let len = moved.payload.len() + range.len();
            let is_first = moved.moves.is_empty();
            if !frame.fits(len) || (!is_first && len > MOVED_BYTES_MAX) {
                break;
            }
            let at = moved.payload.len() as u64;
            moved.moves.push(Move { at, ..*next });
            moved
                .payload
                .extend_from_slice(&victim.bytes[range.clone()]);
            victim.queue.pop_front();
        }
        if moved.moves.is_empty() {
            return None;
        }
        victim.under_way += moved.moves.len();
        self.moved_bytes += moved.payload.len() as u64;
        Some(moved)
    }
}

impl Store {
    /// Goes on with cleaning: asks for the next piece, ends with a segment, chooses the next one.
    pub(super) fn clean(&mut self, now: Now, io: &mut Vec<Io>) {
        if self.is_resting || !self.quarantined.is_empty() {
            return; // what a salvage may need stays
        }
        let elapsed_us = now.monotonic_us - self.cleaning.earned_us;
        let earned = self.setup.clean_bytes_per_s.saturating_mul(elapsed_us) / 1_000_000;
        if earned > 0 {
            self.cleaning.earned_us = now.monotonic_us;
            self.cleaning.earn(earned);
        }
        self.end_victim();
        if now.monotonic_us >= self.cleaning.look_at_us {
            self.cleaning.look_at_us = now.monotonic_us + LOOK_EVERY_US;
            self.remove_dead(io);
            self.choose_victim();
        }
        let Some(victim) = &mut self.cleaning.victim else {
            return;
        };
        if let Some(from) = victim.next
            && !victim.asked
            && victim.queue.is_empty()
            && self.cleaning.credit >= HARVEST_BYTES as u64
        {
            self.cleaning.credit -= HARVEST_BYTES as u64;
            victim.asked = true;
            io.push(Io::Harvest {
                segment: victim.segment,
                from,
                budget: HARVEST_BYTES,
            });
        }
    }

    /// A message was to be read and is not what was written.
    pub fn met_damage(&mut self) {
        self.cleaning.damaged += 1;
    }

    /// From here on nothing is begun but what was proposed: the process ends soon.
    pub fn rest(&mut self) {
        self.is_resting = true;
    }

    /// Takes the messages of an old segment that an inbox still refers to.
    ///
    /// # Panics
    /// When they were not asked for.
    pub fn harvested(&mut self, harvest: Harvest) {
        let mut queue = VecDeque::new();
        for (position, range) in harvest.items {
            let item = &harvest.bytes[range.clone()];
            if let Some(found) = self.find_live(position, item) {
                if planted::is(Bug::RelocationDrops) && self.drop(&found, position) {
                    continue;
                }
                queue.push_back((found, range));
            }
        }
        let victim = self.cleaning.victim.as_mut();
        let Some(victim) = victim.filter(|victim| victim.asked) else {
            unreachable!("a piece of a segment came that was not asked for");
        };
        assert_eq!(victim.segment, harvest.segment, "another segment was read");
        victim.asked = false;
        victim.next = harvest.next;
        victim.bytes = harvest.bytes;
        victim.queue = queue;
        self.cleaning.damaged += u64::from(harvest.damaged);
    }

    /// A planted mistake: counts one message of a segment as moved that is not. Says whether it did.
    fn drop(&mut self, message: &Move, position: u64) -> bool {
        if !position.is_multiple_of(3) {
            return false;
        }
        let shard = self.shard(message.shard);
        let slot = shard.and_then(|shard| shard.users().get(message.user).slot(message.seq));
        let bytes = slot.map_or(0, |slot| slot.bytes().cast_signed());
        let bytes = -bytes;
        self.ledger.book([Change { position, bytes }]);
        true
    }

    /// A batch of moves has become durable.
    pub(super) fn moves_ended(&mut self, moves: usize) {
        if let Some(victim) = &mut self.cleaning.victim {
            victim.under_way -= moves;
        }
    }

    /// The entry that refers to the message at `position`.
    fn find_live(&self, position: u64, item: &[u8]) -> Option<Move> {
        let payload = item.get(ITEM_HEADER_BYTES..)?;
        let Ok(Command::Append(append)) = command::decode(payload) else {
            return None;
        };
        let shard = self.setup.shard_of(append.to);
        let user = self.shard(shard)?.entry_at(&append, position)?;
        Some(Move {
            shard,
            user,
            seq: append.seq,
            at: 0,
        })
    }

    /// Ends with a segment that has been read to its end and whose moves are durable.
    fn end_victim(&mut self) {
        let is_done = |victim: &mut Victim| {
            victim.next.is_none() && victim.queue.is_empty() && victim.under_way == 0
        };
        let Some(victim) = self.cleaning.victim.take_if(is_done) else {
            return;
        };
        self.cleaning.look_at_us = 0; // for the next one, at once: the pace is that of reading
        if self.ledger.live(victim.segment) > 0 {
            // Something in it cannot be read. It stays as it is: a person may still save it.
            self.cleaning.stuck.insert(victim.segment);
            self.cleaning.damaged += 1;
        }
    }

    /// Removes segments that no inbox and no replay needs.
    fn remove_dead(&mut self, io: &mut Vec<Io>) {
        let keep_from = match planted::is(Bug::SegmentTooEarly) {
            true => self.writer.end(),
            false => self.checkpointing.keep_from(),
        };
        let bound = self.setup.size.index_of(keep_from);
        let victim = self.cleaning.victim.as_ref().map(|victim| victim.segment);
        let dead = self.ledger.before(bound);
        let dead = dead.filter(|(segment, live)| *live == 0 && Some(*segment) != victim);
        let dead: Vec<u64> = dead.map(|(segment, _)| segment).collect();
        for segment in dead {
            self.ledger.close(segment);
            self.cleaning.removed_segments += 1;
            io.push(Io::RemoveSegment { segment });
        }
    }

    /// Chooses the segment with the least live bytes, if it is worth it.
    fn choose_victim(&mut self) {
        if self.cleaning.victim.is_some() || self.writer.space() == Space::Full {
            return;
        }
        let bound = self.setup.size.index_of(self.checkpointing.keep_from());
        let stuck = &self.cleaning.stuck;
        let (mut used, mut live_total, mut emptiest) = (0, 0, None);
        let size = self.setup.size.bytes();
        for (segment, live) in self.ledger.before(bound) {
            if live == 0 || stuck.contains(&segment) {
                continue;
            }
            used += size;
            live_total += live;
            if emptiest.is_none_or(|(_, least)| live < least) {
                emptiest = Some((segment, live));
            }
        }
        let Some((segment, live)) = emptiest else {
            return;
        };
        let is_mostly_dead = live * 100 < size * LIVE_PERCENT_MIN;
        let is_too_much = used * 100 > live_total * USED_PERCENT_MAX;
        if is_mostly_dead || is_too_much {
            self.cleaning.victim = Some(Victim {
                segment,
                next: Some(0),
                asked: false,
                bytes: Vec::new(),
                queue: VecDeque::new(),
                under_way: 0,
            });
        }
    }
}

const _: () = {
    assert!(MOVED_BYTES_MAX.is_multiple_of(ALIGN));
    assert!(USED_PERCENT_MAX > 100); // or the last live segment would be moved for ever
};
