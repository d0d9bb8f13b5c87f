//! The durable half of a core: its shards, and the logs that they share.
//!
//! ```text
//!   step(input) ─▶ shard's open batch ─┐
//!   step(input) ─▶ shard's open batch ─┼─▶ one frame ─▶ write ─▶ sync ─▶ Committed to each shard
//!   step(input) ─▶ shard's open batch ─┘     (one under way per log; the next one fills meanwhile)
//! ```
//!
//! Group commit needs no timer: while one sync is under way, everything that arrives waits for the
//! next, so the batch grows with the load and an idle switch commits at once. Under saturation a batch
//! also waits for the input that is there already, [`COMMIT_DELAY_MAX`] at the longest.
//!
//! Bounds: batches of all shards that wait for their log are at most [`PENDING_BYTES_MAX`] and one
//! turn's input; beyond it the core is congested and reads no sockets and no rings.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hooks::SyncGate;
use crate::log::limits::SEAL_AFTER_MS;
use crate::log::{FrameBuilder, FrameKind, RecordHeader, RecordKind};
use crate::placement::{LogId, Placement, ShardId};
use crate::runtime::clock::Clock;
use crate::runtime::storage::{Flush, Log, PlaceError, Space};
use crate::runtime::stream::Sockets;
use crate::shard::{Effect, Input, SINGLE_NODE_TERM, Shard};

/// Bytes of commands that may wait for the logs of one core. At the limit the core reads neither
/// sockets nor rings until a sync returns.
pub const PENDING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A log that wrote nothing for so long gets a SEAL frame, which proves what was durable.
pub const SEAL_AFTER: Duration = Duration::from_millis(SEAL_AFTER_MS);

/// How long a batch may wait for more while there is more to read. A core with input left is busy
/// anyway, and larger batches make its answers fewer and larger; one without commits at once.
pub const COMMIT_DELAY_MAX: Duration = Duration::from_millis(4);

/// A frame on its way to the disk.
struct Flight {
    end: u64,
    /// Whose batches it holds, in order, and where each one's items begin.
    batches: Vec<(ShardId, u64)>,
}

/// One log and what it is doing.
struct Lane {
    id: LogId,
    log: Log,
    frame: FrameBuilder,
    /// Whose batches `frame` holds, and where in it each one's items begin. Not empty after a turn
    /// only while the log has no segment for the frame.
    loaded: Vec<(ShardId, u64)>,
    /// Shards with a batch that is not in a frame yet; each at most once.
    ready: VecDeque<ShardId>,
    flight: Option<Flight>,
    /// A flight whose sync returned while a test holds it back.
    held: bool,
    last_write: Instant,
    /// When the first of what is waiting was proposed.
    waiting_since: Instant,
}

impl Lane {
    fn is_waiting(&self) -> bool {
        !self.ready.is_empty() || !self.loaded.is_empty()
    }
}

/// Shards and logs of one core.
pub(super) struct Lanes {
    placement: Placement,
    lanes: Vec<Lane>,
    /// By shard number; `None` for other cores' shards.
    shards: Vec<Option<Box<Shard>>>,
    is_ready: Vec<bool>,
    /// Bytes in open batches: what was proposed and not yet put into a frame.
    pending_bytes: usize,
    scratch: Vec<Effect>,
    /// What the shards want done, in order.
    pub(super) effects: VecDeque<(ShardId, Effect)>,
    gate: Option<Arc<SyncGate>>,
    commits: u64,
    committed: u64,
}

impl Lanes {
    pub(super) fn new(
        placement: Placement,
        logs: Vec<(LogId, Log)>,
        shards: Vec<Option<Box<Shard>>>,
        now: Instant,
        gate: Option<Arc<SyncGate>>,
    ) -> Self {
        let lane = |(id, log)| Lane {
            id,
            log,
            frame: FrameBuilder::new(),
            loaded: Vec::new(),
            ready: VecDeque::new(),
            flight: None,
            held: false,
            last_write: now,
            waiting_since: now,
        };
        Self {
            placement,
            lanes: logs.into_iter().map(lane).collect(),
            is_ready: vec![false; shards.len()],
            shards,
            pending_bytes: 0,
            scratch: Vec::new(),
            effects: VecDeque::new(),
            gate,
            commits: 0,
            committed: 0,
        }
    }

    /// A shard of this core.
    pub(super) fn shard(&self, id: ShardId) -> &Shard {
        let Some(shard) = &self.shards[usize::from(id.0)] else {
            unreachable!("shard {} belongs to another core", id.0);
        };
        shard
    }

    /// The log that holds a shard's messages.
    pub(super) fn log_mut(&mut self, id: ShardId) -> &mut Log {
        &mut self.lane_mut(id).log
    }

    fn lane_mut(&mut self, shard: ShardId) -> &mut Lane {
        let log = self.placement.log_of(shard);
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == log) else {
            unreachable!("log {} belongs to another core", log.0);
        };
        lane
    }

    /// Whether a shard's log takes new messages. When the disk has no room for a further segment it
    /// does not: what is left is for cursors and whatever else makes room.
    pub(super) fn has_space(&mut self, shard: ShardId) -> bool {
        matches!(self.lane_mut(shard).log.space(), Space::Enough)
    }

    /// Whether so much waits for the disk that nothing more should be read.
    pub(super) fn is_congested(&self) -> bool {
        self.pending_bytes >= PENDING_BYTES_MAX
    }

    /// Gives a shard an input; what it wants done is appended to `effects`.
    pub(super) fn step(&mut self, now: &Clock, id: ShardId, input: Input<'_>) {
        let Some(shard) = &mut self.shards[usize::from(id.0)] else {
            unreachable!("shard {} belongs to another core", id.0);
        };
        let before = shard.open_bytes();
        shard.step(now.unix_ms, input, &mut self.scratch);
        self.pending_bytes += shard.open_bytes() - before; // a step only adds
        let is_ready = shard.ready_bytes().is_some();
        self.effects
            .extend(self.scratch.drain(..).map(|effect| (id, effect)));
        if is_ready && !std::mem::replace(&mut self.is_ready[usize::from(id.0)], true) {
            let lane = self.lane_mut(id);
            if !lane.is_waiting() {
                lane.waiting_since = now.monotonic;
            }
            lane.ready.push_back(id);
        }
    }

    /// Starts a write and sync on every log that has something and is not at it already. While there
    /// is more input to read, the batch may grow for up to [`COMMIT_DELAY_MAX`].
    pub(super) fn flush(&mut self, now: &Clock, more_input: bool, sockets: &mut Sockets) {
        for lane in &mut self.lanes {
            if lane.flight.is_some() {
                continue;
            }
            if more_input && now.monotonic - lane.waiting_since < COMMIT_DELAY_MAX {
                continue;
            }
            let seal = now.monotonic - lane.last_write >= SEAL_AFTER && lane.log.seal_due();
            if lane.is_waiting() {
                if lane.loaded.is_empty() {
                    let loaded = load(lane, &mut self.shards, &mut self.is_ready);
                    self.pending_bytes -= loaded;
                }
                launch(lane, FrameKind::Data, now, sockets);
            } else if seal {
                launch(lane, FrameKind::Seal, now, sockets);
            }
        }
    }

    /// A write and sync has returned: everything in it is durable, and the shards hear it.
    ///
    /// A failed one ends the process at once: after a failed fdatasync nobody knows what is on disk,
    /// and a second one that succeeds proves nothing (R: D-4).
    pub(super) fn synced(
        &mut self,
        job: u64,
        result: Result<(), i32>,
        buffers: Vec<Vec<u8>>,
        now: &Clock,
    ) {
        let Some(index) = self
            .lanes
            .iter()
            .position(|lane| u64::from(lane.id.0) == job)
        else {
            unreachable!("no log has number {job}");
        };
        if let Err(errno) = result {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::error!(log = job, %error, "a log write or sync failed; the process stops here because what is on disk is unknown; check the disk, then start again");
            std::process::abort();
        }
        let lane = &mut self.lanes[index];
        for buffer in buffers {
            lane.log.recycle(buffer);
        }
        if self.gate.as_ref().is_some_and(|gate| gate.holds()) {
            lane.held = true;
            return;
        }
        self.commit(index, now);
    }

    /// Lets go what a test held back, once the gate is open.
    pub(super) fn release_held(&mut self, now: &Clock) {
        if self.gate.as_ref().is_none_or(|gate| gate.is_closed()) {
            return;
        }
        for index in 0..self.lanes.len() {
            if std::mem::take(&mut self.lanes[index].held) {
                self.commit(index, now);
            }
        }
    }

    fn commit(&mut self, index: usize, now: &Clock) {
        let lane = &mut self.lanes[index];
        let Some(flight) = lane.flight.take() else {
            unreachable!("a sync returned that was not under way");
        };
        lane.log.durable(flight.end);
        self.commits += 1;
        self.committed += flight.batches.len() as u64;
        for (id, position) in flight.batches {
            self.step(now, id, Input::Committed { position });
        }
    }

    /// How far each log is durable.
    pub(super) fn durable_ends(&self) -> Vec<(LogId, u64)> {
        self.lanes
            .iter()
            .map(|lane| (lane.id, lane.log.durable_end()))
            .collect()
    }

    /// Syncs that have returned, and the batches in them.
    pub(super) fn commits(&self) -> (u64, u64) {
        (self.commits, self.committed)
    }

    /// Whether nothing waits for a disk.
    pub(super) fn is_quiet(&self) -> bool {
        self.lanes
            .iter()
            .all(|lane| lane.flight.is_none() && !lane.is_waiting())
    }

    /// Whether a sync is under way.
    pub(super) fn is_syncing(&self) -> bool {
        self.lanes.iter().any(|lane| lane.flight.is_some())
    }

    /// Whether a log has something to write and could begin, as far as is known. One that waits for
    /// its next segment is tried again every tick.
    pub(super) fn can_launch(&self) -> bool {
        let could = |lane: &Lane| lane.flight.is_none() && lane.loaded.is_empty();
        self.lanes
            .iter()
            .any(|lane| could(lane) && !lane.ready.is_empty())
    }
}

/// Puts the batches of a lane's shards into its frame, one of each shard in turn, as many as fit;
/// their bytes.
fn load(lane: &mut Lane, shards: &mut [Option<Box<Shard>>], is_ready: &mut [bool]) -> usize {
    let mut loaded = 0;
    while let Some(id) = lane.ready.pop_front() {
        let Some(shard) = &mut shards[usize::from(id.0)] else {
            unreachable!("a shard of another core became ready here");
        };
        if shard
            .ready_bytes()
            .is_some_and(|bytes| !lane.frame.fits(bytes))
        {
            lane.ready.push_front(id);
            break;
        }
        let Some(batch) = shard.take() else {
            unreachable!("a shard without a batch became ready");
        };
        let header = RecordHeader {
            kind: RecordKind::Entry,
            flags: 0,
            shard: id.0,
            term: SINGLE_NODE_TERM as u32,
            index: batch.index(),
            a: batch.time_ms(),
            b: batch.items() as u64,
        };
        let offset = lane.frame.record(header, batch.payload());
        loaded += batch.payload().len();
        lane.loaded.push((id, offset as u64));
        if shard.ready_bytes().is_some() {
            lane.ready.push_back(id);
        } else {
            is_ready[usize::from(id.0)] = false;
        }
    }
    loaded
}

/// Gives the frame its place in the log and starts to write and sync it. Without a segment for it,
/// it stays loaded.
fn launch(lane: &mut Lane, kind: FrameKind, now: &Clock, sockets: &mut Sockets) {
    let Flush { writes, lsn, end } = match lane.log.place(&mut lane.frame, kind) {
        Ok(flush) => flush,
        Err(PlaceError::NoSpare | PlaceError::Full) => return,
    };
    lane.last_write = now.monotonic;
    let mut batches = std::mem::take(&mut lane.loaded);
    for (_, position) in &mut batches {
        *position += lsn;
    }
    lane.flight = Some(Flight { end, batches });
    let writes = writes.into_iter().flatten();
    let writes = writes.map(|write| (write.fd, write.offset, write.bytes));
    // SAFETY: the log keeps its segments open, and nobody holds a slice of bytes that are not
    // durable: positions become known by `Committed` only.
    unsafe { sockets.write_and_sync(u64::from(lane.id.0), writes) };
}
