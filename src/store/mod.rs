//! The store: one log, the shards that share it, its checkpoints and its cleaning, as one state
//! machine without any I/O.
//!
//! ```text
//!   step(input) ─▶ shard's open batch ─┐                                        ┌─▶ Committed, per shard
//!   step(input) ─▶ shard's open batch ─┼─▶ one frame ─▶ Io::Flush ─▶ flushed() ─┤
//!   messages moved by cleaning ────────┘   (one under way; the next one fills)  └─▶ Relocated
//! ```
//!
//! What the disk must do comes out of [`Store::poll`] as [`Io`]; that it was done comes back as the
//! next input. So the real switch on real files and the simulator on a disk that loses what was not
//! synced run the same code.
//!
//! Group commit needs no timer: while one sync is under way, everything that arrives waits for the
//! next, so the batch grows with the load and an idle switch commits at once. Under saturation a batch
//! also waits for the input that is there already, [`COMMIT_DELAY_MAX_US`] at the longest.
//!
//! Invariants:
//! - a shard hears `Committed` only for what a finished sync covers;
//! - a segment is removed only when no inbox refers to it and no kept checkpoint would replay it;
//! - while a shard of the log is damaged, neither a checkpoint is written nor a segment removed.

mod checkpointing;
mod cleaning;
mod ledger;
pub mod recover;
pub mod salvage;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::log::limits::SEAL_AFTER_MS;
use crate::log::{
    Flush, FrameBuilder, FrameKind, NodeIdentity, RecordHeader, RecordKind, SegmentSize, Space,
    Writer,
};
use crate::placement::{HashKey, ShardId, user_hash};
use crate::planted::{self, Bug};
use crate::shard::slot::POSITION_MAX;
use crate::shard::user::UserSlot;
use crate::shard::{Effect, Input, SINGLE_NODE_TERM, Shard, ShardConfig};
use checkpointing::Checkpointing;
use cleaning::Cleaning;
use iris_proto::id::Seq;
use ledger::Ledger;

/// Bytes of commands that may wait for the logs of one core. At the limit the core reads neither
/// sockets nor rings until a sync returns.
pub const PENDING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Microseconds without a write after which a log gets a SEAL frame, which proves what was durable.
pub const SEAL_AFTER_US: u64 = SEAL_AFTER_MS * 1_000;
/// Microseconds that a batch may wait for more while there is more to read. A core with input left is
/// busy anyway, and larger batches make its answers fewer and larger; one without commits at once.
pub const COMMIT_DELAY_MAX_US: u64 = 4_000;
/// Microseconds between two looks for history that is due, each at one shard.
pub const SWEEP_EVERY_US: u64 = 50_000;
/// Users that such a look goes over.
pub const SWEEP_USERS: usize = 128;
/// A log that came so near to the end of all positions takes no new messages.
const POSITION_RESERVE: u64 = 1 << 40;
/// Shard number of a record that concerns no single shard.
pub const NO_SHARD: u16 = u16::MAX;

/// The time, as the shell reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the Unix epoch; may jump.
    pub unix_ms: u64,
    /// Microseconds from any fixed start; never goes back.
    pub monotonic_us: u64,
}

/// What a store is made for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Whose log it is.
    pub identity: NodeIdentity,
    /// Start of this process; counts up with each.
    pub incarnation: u64,
    /// Size of the segments.
    pub size: SegmentSize,
    /// Key of the data directory's hashes.
    pub key: HashKey,
    /// Shards of the data directory.
    pub shards_total: u16,
    /// The shards of this log.
    pub shards: Vec<ShardId>,
    /// What is configured of each shard.
    pub shard: ShardConfig,
    /// Bytes of the log between two checkpoints, at least; more when the last one was larger.
    pub checkpoint_bytes: u64,
    /// Bytes a second that cleaning reads of old segments, beside twice what is appended.
    pub clean_bytes_per_s: u64,
}

impl Setup {
    /// The place in `shards` of each shard of the data directory that is one of this log's.
    fn places(&self) -> Vec<Option<u16>> {
        let mut places = vec![None; usize::from(self.shards_total)];
        for (place, id) in (0..).zip(&self.shards) {
            places[usize::from(id.0)] = Some(place);
        }
        places
    }

    /// The shard of a user, of this log or another.
    fn shard_of(&self, user: &str) -> ShardId {
        let hash = user_hash(self.key, user);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the remainder is below a u16"
        )]
        ShardId((hash.0 % u64::from(self.shards_total)) as u16)
    }
}

/// What the shell is asked to do.
#[derive(Debug)]
pub enum Io {
    /// Do the writes in order, each followed by a data sync of its segment, the second only after the
    /// first one's sync succeeded. Then [`Store::flushed`]. Any failure ends the process.
    Flush(Flush),
    /// Make a segment of zeros, durable with its name. Then [`Store::spare_ready`]; as long as that
    /// fails, [`Store::spare_failed`] and again.
    PrepareSegment {
        /// Its number.
        segment: u64,
    },
    /// Delete a segment: nothing refers to it any more.
    RemoveSegment {
        /// Its number.
        segment: u64,
    },
    /// Begin the checkpoint file of this position under another name. Then [`Store::checkpointed`].
    CheckpointBegin {
        /// Where recovery would scan from.
        lsn: u64,
    },
    /// Append to it. Then [`Store::checkpointed`].
    CheckpointChunk {
        /// What to append.
        bytes: Vec<u8>,
    },
    /// Sync it, give it its name, sync the directory. Then [`Store::checkpointed`].
    CheckpointEnd,
    /// Delete a checkpoint that newer ones have replaced.
    RemoveCheckpoint {
        /// Its position.
        lsn: u64,
    },
    /// Read messages of an old segment, by [`crate::log::harvest`]. Then [`Store::harvested`].
    Harvest {
        /// The segment.
        segment: u64,
        /// Where to go on in it.
        from: usize,
        /// About how many bytes to read.
        budget: usize,
    },
}

/// Why a shard is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The shard.
    pub shard: ShardId,
    /// What is missing, in words.
    pub reason: String,
}

/// What a store says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Position behind the last frame.
    pub end: u64,
    /// Position up to which all is durable.
    pub durable: u64,
    /// How the log stands with its disk.
    pub space: Space,
    /// Segments in use, spares not counted.
    pub segments: usize,
    /// Bytes of these segments.
    pub used_bytes: u64,
    /// Bytes of messages that inboxes refer to.
    pub live_bytes: u64,
    /// Bytes of those segments that a replay may need, which stay whatever is live in them.
    pub replay_bytes: u64,
    /// Bytes of messages in these that inboxes refer to.
    pub replay_live_bytes: u64,
    /// Position of the newest checkpoint.
    pub checkpoint: Option<u64>,
    /// Checkpoints that could not be written, since the start.
    pub checkpoint_failures: u64,
    /// Bytes of messages moved by cleaning, since the start.
    pub moved_bytes: u64,
    /// Segments removed, since the start.
    pub removed_segments: u64,
    /// Damaged places that cleaning met, since the start.
    pub damaged: u64,
}

/// One thing in a frame that is on its way to the disk.
#[derive(Debug)]
enum Part {
    /// A shard's batch, and where its items begin.
    Batch(ShardId, u64),
    /// Messages that were written again: whose, which, and where their items begin.
    Moved(Vec<Move>),
}

/// A message that is written again at `at`: an offset in its frame, later a position.
#[derive(Clone, Copy, Debug)]
struct Move {
    shard: ShardId,
    user: UserSlot,
    seq: Seq,
    at: u64,
}

/// A frame on its way to the disk.
#[derive(Debug)]
struct Flight {
    end: u64,
    /// Commands in its batches.
    items: usize,
    parts: Vec<Part>,
}

/// One log and its shards.
#[derive(Debug)]
pub struct Store {
    setup: Setup,
    writer: Writer,
    /// By place in `setup.shards`; `None` for one that is damaged.
    shards: Vec<Option<Box<Shard>>>,
    /// The place of each shard of the data directory that is one of this log's.
    places: Vec<Option<u16>>,
    quarantined: Vec<Quarantine>,
    /// Per shard, by place: number and the last index in a frame that has been placed.
    heads: Vec<(u16, u64)>,
    frame: FrameBuilder,
    /// Commands of shards in `frame`.
    loaded_items: usize,
    /// What `frame` holds. Not empty after a poll only while the log has no segment for the frame.
    loaded: Vec<Part>,
    /// Shards with a batch that is not in a frame yet; each at most once.
    ready: VecDeque<ShardId>,
    is_ready: Vec<bool>,
    /// Bytes in open batches: what was proposed and not yet put into a frame.
    pending_bytes: usize,
    flight: Option<Flight>,
    last_write_us: u64,
    /// When the first of what is waiting was proposed.
    waiting_since_us: u64,
    ledger: Ledger,
    checkpointing: Checkpointing,
    cleaning: Cleaning,
    /// When to sweep next, and the place of the shard to sweep.
    sweep_at_us: u64,
    sweep_place: usize,
    is_resting: bool,
    scratch: Vec<Effect>,
    commits: u64,
    committed: u64,
    /// What a planted mistake has to say later.
    #[cfg(feature = "sim")]
    early: VecDeque<(ShardId, Effect)>,
}

impl Store {
    /// The shards of this log.
    #[must_use]
    pub fn shards(&self) -> &[ShardId] {
        &self.setup.shards
    }

    /// A shard; `None` for one that is damaged and not served, or of another log.
    #[must_use]
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards[self.place(id)?].as_deref()
    }

    fn place(&self, id: ShardId) -> Option<usize> {
        let place = self.places.get(usize::from(id.0)).copied().flatten();
        place.map(usize::from)
    }

    /// The shards that are not served, and why.
    #[must_use]
    pub fn quarantined(&self) -> &[Quarantine] {
        &self.quarantined
    }

    /// The shards, in the order of the setup; `None` for a damaged one.
    #[must_use]
    pub fn into_shards(self) -> Vec<Option<Box<Shard>>> {
        self.shards
    }

    /// What there is to say of it.
    #[must_use]
    pub fn status(&self) -> Status {
        let replay_from = self.setup.size.index_of(self.checkpointing.keep_from());
        let (replay_bytes, replay_live_bytes) = self.ledger.since(replay_from);
        Status {
            end: self.writer.end(),
            durable: self.writer.durable_end(),
            space: self.writer.space(),
            segments: self.ledger.segments(),
            used_bytes: self.ledger.used_total(),
            live_bytes: self.ledger.live_total(),
            replay_bytes,
            replay_live_bytes,
            checkpoint: self.checkpointing.newest(),
            checkpoint_failures: self.checkpointing.failures(),
            moved_bytes: self.cleaning.moved_bytes,
            removed_segments: self.cleaning.removed_segments,
            damaged: self.cleaning.damaged,
        }
    }

    /// Whether the log takes new messages. When the disk has no room for a further segment it does not:
    /// what is left is for cursors and whatever else makes room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let has_space = self.writer.space() == Space::Enough || planted::is(Bug::FullDiskAccepts);
        has_space && self.writer.end() < POSITION_MAX - POSITION_RESERVE
    }

    /// Bytes of commands that wait for the log.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Position up to which all is durable.
    #[must_use]
    pub fn durable_end(&self) -> u64 {
        self.writer.durable_end()
    }

    /// Syncs that have returned, and the batches in them.
    #[must_use]
    pub fn commits(&self) -> (u64, u64) {
        (self.commits, self.committed)
    }

    /// Commands of shards in the write under way.
    #[must_use]
    pub fn items_under_way(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.items)
    }

    /// Whether a write and sync is under way.
    #[must_use]
    pub fn is_flushing(&self) -> bool {
        self.flight.is_some()
    }

    /// Whether no proposed command waits for the disk.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.flight.is_none() && !self.is_waiting()
    }

    /// Whether the next poll would begin a flush, as far as is known. A frame that waits for its next
    /// segment is tried again whenever there is a poll.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        self.flight.is_none()
            && self.loaded.is_empty()
            && (!self.ready.is_empty() || self.cleaning.has_moves())
    }

    fn is_waiting(&self) -> bool {
        !self.ready.is_empty() || !self.loaded.is_empty()
    }

    /// Gives a shard an input; what it wants done is appended to `effects`.
    ///
    /// # Panics
    /// When [`Store::shard`] has no such shard: ask it first.
    pub fn step(
        &mut self,
        now: Now,
        id: ShardId,
        input: Input<'_>,
        effects: &mut VecDeque<(ShardId, Effect)>,
    ) {
        let Some(place) = self.place(id) else {
            unreachable!("shard {} belongs to another log", id.0);
        };
        let Some(shard) = &mut self.shards[place] else {
            unreachable!("shard {} is damaged and was asked all the same", id.0);
        };
        let before = shard.open_bytes();
        shard.step(now.unix_ms, input, &mut self.scratch);
        self.pending_bytes += shard.open_bytes() - before; // a step only adds
        self.ledger.book(shard.changes());
        let is_ready = shard.ready_bytes().is_some();
        effects.extend(self.scratch.drain(..).map(|effect| (id, effect)));
        if is_ready && !std::mem::replace(&mut self.is_ready[place], true) {
            if !self.is_waiting() {
                self.waiting_since_us = now.monotonic_us;
            }
            self.ready.push_back(id);
        }
    }

    /// Begins what can be begun: a flush when none is under way, spare segments, a checkpoint,
    /// cleaning. While there is more input to read, a batch may grow for up to
    /// [`COMMIT_DELAY_MAX_US`].
    pub fn poll(&mut self, now: Now, more_input: bool, io: &mut Vec<Io>) {
        if !self.is_resting {
            self.sweep(now);
        }
        if self.flight.is_none() {
            if !planted::is(Bug::ScanTooLate) {
                self.begin_checkpoint(now, io);
            }
            self.begin_flush(now, more_input, io);
            if planted::is(Bug::ScanTooLate) {
                self.begin_checkpoint(now, io);
            }
        }
        while let Some(segment) = self.writer.wants_segment() {
            io.push(Io::PrepareSegment { segment });
        }
        self.go_on_with_checkpoint(io);
        self.clean(now, io);
    }

    /// The segment that frames are appended to; `None` when the next one opens a segment.
    #[must_use]
    pub fn active_segment(&self) -> Option<u64> {
        self.writer.active_segment()
    }

    /// The next segment to be prepared, each named once. For the start; later [`Store::poll`] asks.
    pub fn wants_segment(&mut self) -> Option<u64> {
        self.writer.wants_segment()
    }

    /// A spare segment is there.
    pub fn spare_ready(&mut self, segment: u64, salt: u64) {
        self.writer.spare_ready(segment, salt);
    }

    /// A spare segment could not be made; it is tried again.
    pub fn spare_failed(&mut self) {
        self.writer.spare_failed();
    }

    /// Gives the buffer of a finished write back for the next frames.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.writer.recycle(buffer);
    }

    /// The flush under way is durable: the shards hear it.
    pub fn flushed(&mut self, now: Now, effects: &mut VecDeque<(ShardId, Effect)>) {
        let Some(flight) = self.flight.take() else {
            unreachable!("a sync returned that was not under way");
        };
        self.writer.durable(flight.end);
        self.commits += 1;
        #[cfg(feature = "sim")]
        effects.append(&mut self.early);
        for part in flight.parts {
            match part {
                Part::Batch(id, position) => {
                    self.committed += 1;
                    self.step(now, id, Input::Committed { position }, effects);
                }
                Part::Moved(moves) => {
                    self.moved(&moves);
                    self.moves_ended(moves.len());
                }
            }
        }
    }

    fn moved(&mut self, moves: &[Move]) {
        for &Move {
            shard,
            user,
            seq,
            at,
        } in moves
        {
            let place = self.place(shard);
            let Some(shard) = place.and_then(|place| self.shards[place].as_mut()) else {
                unreachable!("messages of a damaged shard were moved");
            };
            shard.relocate(user, seq, at);
            self.ledger.book(shard.changes());
        }
    }

    fn begin_flush(&mut self, now: Now, more_input: bool, io: &mut Vec<Io>) {
        if self.is_waiting() {
            let waited = now.monotonic_us - self.waiting_since_us;
            if more_input && waited < COMMIT_DELAY_MAX_US {
                return;
            }
        }
        if self.loaded.is_empty() {
            self.load();
            self.load_moves();
        }
        let is_seal_due = now.monotonic_us - self.last_write_us >= SEAL_AFTER_US;
        if !self.loaded.is_empty() {
            self.launch(FrameKind::Data, now, io);
        } else if is_seal_due && self.writer.seal_due() {
            self.launch(FrameKind::Seal, now, io);
        }
    }

    /// Puts the batches of the shards into the frame, one of each shard in turn, as many as fit.
    fn load(&mut self) {
        while let Some(id) = self.ready.pop_front() {
            let place = self.place(id).unwrap_or(usize::MAX);
            let Some(Some(shard)) = self.shards.get_mut(place) else {
                unreachable!("a shard of another log became ready here");
            };
            let fits = |bytes| self.frame.fits(bytes);
            if !shard.ready_bytes().is_none_or(fits) {
                self.ready.push_front(id);
                return;
            }
            let Some(batch) = shard.take() else {
                unreachable!("a shard without a batch became ready");
            };
            let header = RecordHeader {
                kind: RecordKind::Entry,
                flags: 0,
                shard: id.0,
                term: SINGLE_NODE_TERM,
                index: batch.index(),
                a: batch.time_ms(),
                b: batch.items() as u64,
            };
            let offset = self.frame.record(header, batch.payload());
            self.pending_bytes -= batch.payload().len();
            self.loaded_items += batch.items();
            self.loaded.push(Part::Batch(id, offset as u64));
            if shard.ready_bytes().is_some() {
                self.ready.push_back(id);
            } else {
                self.is_ready[place] = false;
            }
        }
    }

    /// Puts messages that cleaning moves into the frame.
    fn load_moves(&mut self) {
        let Some(mut moved) = self.cleaning.take_moves(&self.frame) else {
            return;
        };
        let header = RecordHeader {
            kind: RecordKind::Reloc,
            flags: 0,
            shard: NO_SHARD,
            term: SINGLE_NODE_TERM,
            index: 0,
            a: 0,
            b: moved.moves.len() as u64,
        };
        let offset = self.frame.record(header, &moved.payload) as u64;
        moved.moves.iter_mut().for_each(|moved| moved.at += offset);
        self.loaded.push(Part::Moved(moved.moves));
    }

    /// Gives the frame its place in the log and asks for its write. Without a segment for it, it stays
    /// loaded.
    fn launch(&mut self, kind: FrameKind, now: Now, io: &mut Vec<Io>) {
        let Ok(flush) = self.writer.place(&mut self.frame, kind, &self.heads) else {
            return;
        };
        self.last_write_us = now.monotonic_us;
        let mut parts = std::mem::take(&mut self.loaded);
        for part in &mut parts {
            match part {
                Part::Batch(id, position) => {
                    *position += flush.lsn;
                    self.note_head(*id);
                }
                Part::Moved(moves) => moves.iter_mut().for_each(|moved| moved.at += flush.lsn),
            }
        }
        for write in flush.writes.iter().flatten() {
            self.ledger.open(write.segment);
            self.cleaning.earn(2 * write.bytes.len() as u64);
        }
        #[cfg(feature = "sim")]
        if planted::is(Bug::VisibleBeforeSync) {
            self.show_early(now, &mut parts);
        }
        self.flight = Some(Flight {
            end: flush.end,
            items: std::mem::take(&mut self.loaded_items),
            parts,
        });
        io.push(Io::Flush(flush));
    }

    /// A planted mistake: applies what is only written.
    #[cfg(feature = "sim")]
    fn show_early(&mut self, now: Now, parts: &mut Vec<Part>) {
        let mut early = std::mem::take(&mut self.early);
        for part in std::mem::take(parts) {
            match part {
                Part::Batch(id, position) => {
                    self.step(now, id, Input::Committed { position }, &mut early);
                }
                moved @ Part::Moved(_) => parts.push(moved),
            }
        }
        self.early = early;
    }

    /// One more batch of a shard has its place in the log.
    fn note_head(&mut self, id: ShardId) {
        if let Some(head) = self.heads.iter_mut().find(|(shard, _)| *shard == id.0) {
            head.1 += 1;
        }
    }

    /// Now and then lets one shard look for history that is due.
    fn sweep(&mut self, now: Now) {
        if now.monotonic_us < self.sweep_at_us || self.shards.is_empty() {
            return;
        }
        self.sweep_at_us = now.monotonic_us + SWEEP_EVERY_US;
        self.sweep_place = (self.sweep_place + 1) % self.shards.len();
        if self.shards[self.sweep_place].is_none() {
            return;
        }
        let id = self.setup.shards[self.sweep_place];
        let mut effects = VecDeque::new();
        let users = SWEEP_USERS;
        self.step(now, id, Input::Sweep { users }, &mut effects);
        assert!(effects.is_empty(), "a sweep answers nobody");
    }
}
