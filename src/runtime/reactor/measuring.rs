//! What a core measures, and where: each stage of a message's way ends in one of these.
//!
//! The clock is read again where a stage begins or ends and many messages share the reading: for each
//! receive, for each parcel of another core, before a write, after a sync, for each send. A receive carries
//! one message or hundreds; they count from the same instant.
//!
//! What waits because a gate is closed, as of a client that asks too much at once, counts from when it is
//! processed: the wait is the client's to see.

use iris_proto::id::Seq;
use iris_proto::limits::WINDOW_ENTRIES_MAX;

use super::Core;
use super::connection::{Connection, Live};
use crate::measure::{Histograms, Places, Stage, Waits};
use crate::placement::ShardId;
use crate::shard::slot::Slot;
use crate::stamp::Stamp;

/// A core's histograms and what it needs to fill them.
pub(super) struct Measuring {
    pub set: Box<Histograms>,
    pub places: Places,
}

impl Measuring {
    pub fn new(now_ms: u64) -> Self {
        Self {
            set: Box::new(Histograms::new(now_ms)),
            places: Places::default(),
        }
    }
}

impl Core {
    /// Fills `empty`; or hands over what is filled, and goes on with `empty`. No memory is asked for.
    pub(super) fn hand_over_histograms(
        &mut self,
        mut empty: Box<Histograms>,
        reset: bool,
    ) -> Box<Histograms> {
        let now_ms = self.now.unix_ms;
        if reset {
            empty.start_ms = now_ms;
            std::mem::swap(&mut self.measuring.set, &mut empty);
        } else {
            empty.copy_from(&self.measuring.set);
        }
        empty.end_ms = now_ms;
        empty
    }

    /// Begins what the logs can begin.
    pub(super) fn poll_lanes(&mut self, more_input: bool) {
        if self.lanes.can_launch() {
            self.now.touch();
        }
        let (sockets, set) = (&mut self.sockets, &mut self.measuring.set);
        self.lanes.poll(&self.now, more_input, sockets, set);
    }

    /// Shows the other cores what this turn made.
    pub(super) fn publish(&mut self) {
        if self.mesh.is_dirty() {
            self.now.touch();
        }
        self.mesh.publish(Stamp::of(self.now.ns));
    }

    /// A connection's handshake may have ended with what came.
    pub(super) fn note_handshake(&mut self, connection: &mut Connection) {
        if !connection.came.is_none() && !connection.tls.is_handshaking() {
            self.now.touch();
            let came = std::mem::take(&mut connection.came);
            let took = came.elapsed(self.now.ns);
            self.measuring.set.record(Stage::Handshake, took);
        }
    }

    /// A session whose Hello was read then has its Welcome.
    pub(super) fn welcomed(&mut self, read: Stamp) {
        self.now.touch();
        let took = read.elapsed(self.now.ns);
        self.measuring.set.record(Stage::Auth, took);
    }

    /// A message of another core has come.
    pub(super) fn note_route(&mut self, read: Stamp, published: Stamp) {
        let took = read.elapsed(published.bits());
        self.measuring.set.record(Stage::Route, took);
    }

    /// So many messages and answers of one parcel have come.
    pub(super) fn note_ring(&mut self, published: Stamp, count: u64) {
        let took = published.elapsed(self.now.ns);
        self.measuring.set.record_n(Stage::Ring, took, count);
    }

    /// A message has become durable, and lies there; at 0 none has.
    pub(super) fn note_durable(&mut self, shard: ShardId, at: u64, read: Stamp) {
        if at != 0 {
            let (log, durable_ns) = (self.placement.log_of(shard), self.lanes.durable_ns(shard));
            self.measuring.places.put(log.0, at, read, durable_ns);
        }
    }

    /// The entry whose message lies there is in the session's next send.
    pub(super) fn note_pushed(&mut self, live: &Live, position: u64, entries: &mut Waits) {
        let log = self.placement.log_of(live.shard).0;
        if let Some((_, durable)) = self.measuring.places.get(log, position)
            && self.is_of(live, durable)
        {
            entries.note(durable);
        }
    }

    /// A connection's answers and these entries have gone to its socket, if there were any.
    pub(super) fn note_written(&mut self, connection: &mut Connection, mut entries: Waits) {
        self.trace_written(connection.id);
        let Some(live) = connection.live() else {
            return;
        };
        if live.answers.is_empty() && entries.is_empty() {
            return;
        }
        self.now.touch();
        let (now_ns, set) = (self.now.ns, &mut self.measuring.set);
        live.answers.end(|read, count| {
            set.record_n(Stage::Accept, read.elapsed(now_ns), count);
        });
        entries.end(|durable, count| {
            set.record_n(Stage::Deliver, durable.elapsed(now_ns), count);
        });
    }

    /// A session has acknowledged the entries after `before` up to `seq`.
    pub(super) fn note_acknowledged(&mut self, live: &Live, before: Seq, seq: Seq) {
        let Some((user, shard)) = live.user.zip(self.lanes.shard(live.shard)) else {
            return;
        };
        let inbox = shard.users().get(user);
        let log = self.placement.log_of(live.shard).0;
        let first = before
            .0
            .max(seq.0.saturating_sub(u64::from(WINDOW_ENTRIES_MAX)));
        for seq in first + 1..=seq.0 {
            let position = inbox.slot(Seq(seq)).and_then(Slot::position);
            let times = position.and_then(|position| self.measuring.places.get(log, position));
            if let Some((read, _)) = times
                && self.is_of(live, read)
            {
                let took = read.elapsed(self.now.ns);
                self.measuring.set.record(Stage::E2e, took);
            }
        }
        self.trace_acknowledged(live, first, seq.0);
    }

    /// Whether something is as young as a session: what came before it waited for nobody's speed.
    fn is_of(&self, live: &Live, instant: Stamp) -> bool {
        instant.elapsed(self.now.ns) <= live.since.elapsed(self.now.ns)
    }
}
