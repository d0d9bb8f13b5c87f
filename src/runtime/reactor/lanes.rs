//! The durable half of a core: its logs, each with its shards and its files.
//!
//! ```text
//!   step(input) ─▶ store ── Io ──▶ files ─▶ ring of the core: write, sync ─▶ synced ─▶ store ─▶ effects
//!                              └─▶ their threads: spares, checkpoints, cleaning
//! ```
//!
//! What is decided is decided in `crate::store`; here its requests meet the files.
//!
//! Bounds: batches of all shards that wait for their log are at most [`PENDING_BYTES_MAX`] and one
//! turn's input; beyond it the core is congested and reads no sockets and no rings.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::hooks::SyncGate;
use crate::measure::{Histograms, Stage};
use crate::placement::{LogId, Placement, ShardId};
use crate::runtime::clock::Clock;
use crate::runtime::storage::{Files, stop_at_once};
use crate::runtime::stream::Sockets;
use crate::shard::{Effect, Input, Shard};
pub use crate::store::PENDING_BYTES_MAX;
use crate::store::{Io, Now, Status, Store};

/// Different instants of proposals that are kept for one write. Further ones count as the last of these, so
/// that what they wait seems longer than it was, never shorter.
const INSTANTS_PROPOSED_MAX: usize = 1_024;

/// One log and what it is doing.
struct Lane {
    id: LogId,
    store: Store,
    files: Files,
    /// A flush whose sync returned while a test holds it back.
    held: bool,
    /// Since when proposed messages wait for their write, and how many of each instant; oldest first.
    proposed: VecDeque<(u64, u64)>,
    /// When the write under way began, and when the last one was durable, in nanoseconds.
    written_ns: u64,
    durable_ns: u64,
}

impl Lane {
    /// A message waits for its write.
    fn proposes(&mut self, now_ns: u64) {
        let is_full = self.proposed.len() >= INSTANTS_PROPOSED_MAX;
        match self.proposed.back_mut() {
            Some((since, count)) if *since == now_ns || is_full => *count += 1,
            _ => self.proposed.push_back((now_ns, 1)),
        }
    }

    /// A write begins. When it holds all that was proposed these are its messages; when it does not, the
    /// oldest ones count as its own, as many as it has commands.
    fn written(&mut self, now_ns: u64, set: &mut Histograms) {
        self.written_ns = now_ns;
        let mut left = match self.store.pending_bytes() {
            0 => u64::MAX,
            _ => self.store.items_under_way() as u64,
        };
        while left > 0
            && let Some((since, count)) = self.proposed.front_mut()
        {
            let taken = left.min(*count);
            set.record_n(Stage::Batch, now_ns.saturating_sub(*since), taken);
            left -= taken;
            *count -= taken;
            if *count == 0 {
                self.proposed.pop_front();
            }
        }
    }
}

/// Shards and logs of one core.
pub(super) struct Lanes {
    placement: Placement,
    lanes: Vec<Lane>,
    /// What the shards want done, in order.
    pub(super) effects: VecDeque<(ShardId, Effect)>,
    io: Vec<Io>,
    /// The stores count their time from here.
    began: Instant,
    gate: Option<Arc<SyncGate>>,
}

impl Lanes {
    pub(super) fn new(
        placement: Placement,
        logs: Vec<(LogId, Store, Files)>,
        now: Instant,
        gate: Option<Arc<SyncGate>>,
    ) -> Self {
        let lane = |(id, store, files)| Lane {
            id,
            store,
            files,
            held: false,
            proposed: VecDeque::new(),
            written_ns: 0,
            durable_ns: 0,
        };
        Self {
            placement,
            lanes: logs.into_iter().map(lane).collect(),
            effects: VecDeque::new(),
            io: Vec::new(),
            began: now,
            gate,
        }
    }

    fn now(&self, clock: &Clock) -> Now {
        let since = clock.monotonic.saturating_duration_since(self.began);
        Now {
            unix_ms: clock.unix_ms,
            monotonic_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// A shard of this core; `None` when it is damaged and not served.
    pub(super) fn shard(&self, id: ShardId) -> Option<&Shard> {
        let log = self.placement.log_of(id);
        let lane = self.lanes.iter().find(|lane| lane.id == log);
        let Some(lane) = lane else {
            unreachable!("log {} belongs to another core", log.0);
        };
        lane.store.shard(id)
    }

    /// The files of the log that holds a shard's messages, to be read.
    pub(super) fn files(&self, id: ShardId) -> &Files {
        let log = self.placement.log_of(id);
        let Some(lane) = self.lanes.iter().find(|lane| lane.id == log) else {
            unreachable!("log {} belongs to another core", log.0);
        };
        &lane.files
    }

    /// The files of the log that holds a shard's messages.
    pub(super) fn files_mut(&mut self, id: ShardId) -> &mut Files {
        &mut self.lane_mut(id).files
    }

    fn lane_mut(&mut self, shard: ShardId) -> &mut Lane {
        let log = self.placement.log_of(shard);
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == log) else {
            unreachable!("log {} belongs to another core", log.0);
        };
        lane
    }

    /// Whether a shard's log takes new messages.
    pub(super) fn has_space(&mut self, shard: ShardId) -> bool {
        self.lane_mut(shard).store.has_room()
    }

    /// Whether so much waits for the disk that nothing more should be read.
    pub(super) fn is_congested(&self) -> bool {
        self.pending_bytes() >= PENDING_BYTES_MAX
    }

    /// Bytes of commands that wait for the logs.
    pub(super) fn pending_bytes(&self) -> usize {
        let pending = self.lanes.iter().map(|lane| lane.store.pending_bytes());
        pending.sum()
    }

    /// The shards of this core that are served, from the `nth` on.
    pub(super) fn shard_from(&self, nth: usize) -> Option<&Shard> {
        let shards = self.lanes.iter().flat_map(|lane| {
            let shards = lane.store.shards().iter();
            shards.filter_map(|id| lane.store.shard(*id))
        });
        shards.into_iter().nth(nth)
    }

    /// Gives a shard an input; what it wants done is appended to `effects`. False when the shard is
    /// damaged: then nothing was done.
    pub(super) fn step(&mut self, clock: &Clock, id: ShardId, input: Input<'_>) -> bool {
        let now = self.now(clock);
        let log = self.placement.log_of(id);
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == log) else {
            unreachable!("log {} belongs to another core", log.0);
        };
        let is_served = lane.store.shard(id).is_some();
        if is_served {
            let is_message = matches!(input, Input::Append { .. });
            let before = lane.store.pending_bytes();
            lane.store.step(now, id, input, &mut self.effects);
            if is_message && lane.store.pending_bytes() > before {
                lane.proposes(clock.ns);
            }
        }
        is_served
    }

    /// Takes what the logs' threads have done, and begins what can be begun: a write and sync on every
    /// log that has something and is not at it already. While there is more input to read, a batch may
    /// grow.
    pub(super) fn poll(
        &mut self,
        clock: &Clock,
        more_input: bool,
        sockets: &mut Sockets,
        set: &mut Histograms,
    ) {
        let now = self.now(clock);
        for lane in &mut self.lanes {
            lane.files.take_done(&mut lane.store, &mut self.io);
            lane.store.poll(now, more_input, &mut self.io);
            for io in self.io.drain(..) {
                let Some(mut flush) = lane.files.carry_out(io) else {
                    continue;
                };
                lane.written(clock.ns, set);
                let writes = lane.files.writes(&mut flush).into_iter().flatten();
                let writes = writes.map(|write| (write.fd, write.offset, write.bytes));
                // SAFETY: the files stay open until the flush has ended, and nobody holds a slice of
                // bytes that are not durable: positions become known by `Committed` only.
                unsafe { sockets.write_and_sync(u64::from(lane.id.0), writes) };
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
        clock: &mut Clock,
        set: &mut Histograms,
    ) {
        let lane = self
            .lanes
            .iter()
            .position(|lane| u64::from(lane.id.0) == job);
        let Some(index) = lane else {
            unreachable!("no log has number {job}");
        };
        if let Err(errno) = result {
            stop_at_once(&job, &std::io::Error::from_raw_os_error(errno));
        }
        let lane = &mut self.lanes[index];
        for buffer in buffers {
            lane.store.recycle(buffer);
        }
        set.record(Stage::Sync, clock.ns.saturating_sub(lane.written_ns));
        if self.gate.as_ref().is_some_and(|gate| gate.holds()) {
            lane.held = true;
            return;
        }
        self.commit(index, clock, set);
    }

    /// Lets go what a test held back, once the gate is open.
    pub(super) fn release_held(&mut self, clock: &mut Clock, set: &mut Histograms) {
        if self.gate.as_ref().is_none_or(|gate| gate.is_closed()) {
            return;
        }
        for index in 0..self.lanes.len() {
            if std::mem::take(&mut self.lanes[index].held) {
                self.commit(index, clock, set);
            }
        }
    }

    fn commit(&mut self, index: usize, clock: &mut Clock, set: &mut Histograms) {
        let now = self.now(clock);
        let lane = &mut self.lanes[index];
        lane.durable_ns = clock.ns;
        lane.files.flushed();
        lane.store.flushed(now, &mut self.effects);
        clock.touch();
        set.record(Stage::Apply, clock.ns - lane.durable_ns);
    }

    /// When the newest durable batch of a shard's log became so, in nanoseconds.
    pub(super) fn durable_ns(&mut self, shard: ShardId) -> u64 {
        self.lane_mut(shard).durable_ns
    }

    /// A shard's message was to be read and is not what was written.
    pub(super) fn met_damage(&mut self, shard: ShardId) {
        self.lane_mut(shard).store.met_damage();
    }

    /// The process ends soon: nothing is begun but what clients asked for.
    pub(super) fn rest(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.store.rest());
    }

    /// Unmaps segments that were removed before the last call, before which all page-ins must have begun
    /// that are under way: see [`super::outbound::PageIns`].
    pub(super) fn unmap_removed(&mut self) {
        self.lanes
            .iter_mut()
            .for_each(|lane| lane.files.unmap_removed());
    }

    /// Each log, how it stands, and its damaged shards.
    pub(super) fn statuses(&self) -> impl Iterator<Item = (LogId, Status, Vec<u16>)> + '_ {
        self.lanes.iter().map(|lane| {
            let damaged = lane.store.quarantined().iter();
            let damaged = damaged.map(|quarantine| quarantine.shard.0).collect();
            (lane.id, lane.store.status(), damaged)
        })
    }

    /// How far each log is durable.
    pub(super) fn durable_ends(&self) -> Vec<(LogId, u64)> {
        self.lanes
            .iter()
            .map(|lane| (lane.id, lane.store.durable_end()))
            .collect()
    }

    /// Syncs that have returned, and the batches in them.
    pub(super) fn commits(&self) -> (u64, u64) {
        let counts = self.lanes.iter().map(|lane| lane.store.commits());
        counts.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
    }

    /// Whether nothing waits for a disk.
    pub(super) fn is_quiet(&self) -> bool {
        self.lanes.iter().all(|lane| lane.store.is_quiet())
    }

    /// Whether a sync is under way.
    pub(super) fn is_syncing(&self) -> bool {
        self.lanes.iter().any(|lane| lane.store.is_flushing())
    }

    /// Whether a log has something to write and could begin, as far as is known. One that waits for
    /// its next segment is tried again every tick.
    pub(super) fn can_launch(&self) -> bool {
        self.lanes.iter().any(|lane| lane.store.can_flush())
    }
}
