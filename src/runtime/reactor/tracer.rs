//! What a core notes of the messages of users who are watched (`crate::runtime::trace`).
//!
//! Every hook looks at [`Tracer::on`] first and does nothing else while nobody is watched. When somebody is,
//! messages are decoded once more at each step to see whose they are; those in the log only where they lie
//! in memory for sure, which is where [`Places`](crate::measure::Places) knows them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use iris_proto::id::Seq;

use super::Core;
use super::connection::Live;
use crate::placement::ShardId;
use crate::runtime::stream::SocketId;
use crate::runtime::trace::{
    Noted, STEPS_HELD_MAX, STEPS_PER_S_MAX, Step, UNDER_WAY_MAX, Watch, What,
};
use crate::shard::ReplyTo;
use crate::shard::command::{self, Append, Command};
use crate::shard::slot::Slot;
use crate::stamp::Stamp;

/// So long after the last watch has ended what was noted is kept for whoever asks.
const KEPT: Duration = Duration::from_secs(10);

/// A core's part in traces.
pub(super) struct Tracer {
    /// Somebody is watched.
    pub on: bool,
    watches: Vec<Watch>,
    noted: Noted,
    /// When what was noted is let go.
    until: Instant,
    /// The second that is running, and the steps in it.
    second: u64,
    in_second: u32,
    /// Messages that were read here and have no answer yet: on which connection, with which tag.
    under_way: VecDeque<(SocketId, u64, Step)>,
    /// Steps that happen when a connection's next bytes go to its socket.
    unwritten: VecDeque<(SocketId, Stamp, Step)>,
}

impl Tracer {
    pub fn new(now: Instant) -> Self {
        Self {
            on: false,
            watches: Vec::new(),
            noted: Noted::default(),
            until: now,
            second: 0,
            in_second: 0,
            under_way: VecDeque::new(),
            unwritten: VecDeque::new(),
        }
    }

    fn watches(&self, append: &Append<'_>) -> bool {
        let is_of = |watch: &Watch| [append.from, append.to].contains(&watch.user.as_str());
        self.watches.iter().any(is_of)
    }

    /// Keeps a step until its connection's bytes go out; too many of them, and the oldest is lost.
    fn wait(&mut self, id: SocketId, read: Stamp, step: Step) {
        if self.unwritten.len() >= UNDER_WAY_MAX {
            self.unwritten.pop_front();
            self.noted.dropped += 1;
        }
        self.unwritten.push_back((id, read, step));
    }

    /// Notes a step, if there is room in this second and at all.
    fn note(&mut self, step: Step) {
        let second = step.clock_ns / 1_000_000_000;
        if second != self.second {
            (self.second, self.in_second) = (second, 0);
        }
        if self.in_second >= STEPS_PER_S_MAX || self.noted.steps.len() >= STEPS_HELD_MAX {
            self.noted.dropped += 1;
            return;
        }
        self.in_second += 1;
        self.noted.steps.push(step);
    }
}

impl Core {
    /// Watches these from now on, and nobody else; what was noted until now.
    pub(super) fn watch(&mut self, watches: Vec<Watch>) -> Noted {
        let last = watches.iter().map(|watch| watch.until).max();
        self.tracer.until = last.unwrap_or(self.now.monotonic) + KEPT;
        self.tracer.watches = watches;
        self.end_watches();
        std::mem::take(&mut self.tracer.noted)
    }

    /// Ends watches whose time is over, and forgets what nobody has asked for.
    pub(super) fn end_watches(&mut self) {
        let now = self.now.monotonic;
        let tracer = &mut self.tracer;
        tracer.watches.retain(|watch| watch.until > now);
        tracer.on = !tracer.watches.is_empty();
        if !tracer.on {
            tracer.under_way = VecDeque::new();
            tracer.unwritten = VecDeque::new();
            if tracer.until <= now {
                tracer.noted = Noted::default();
            }
        }
    }

    /// A step of this message, now.
    fn step_of(&self, append: &Append<'_>, what: What, read: Stamp) -> Step {
        Step {
            trace: uuid::Uuid::from_bytes(append.id.0).to_string(),
            what,
            at_us: self.now.unix_us(),
            clock_ns: self.now.ns,
            since_us: (!read.is_none()).then(|| read.elapsed(self.now.ns) / 1_000),
            core: self.id.0,
            from: append.from.to_owned(),
            to: append.to.to_owned(),
            n: append.n.0,
            seq: (append.seq != Seq(0)).then_some(append.seq.0),
            device: None,
        }
    }

    /// A message was read from a connection, and goes to another core or not.
    pub(super) fn trace_received(&mut self, append: &Append<'_>, reply: &ReplyTo, is_routed: bool) {
        if !self.tracer.on || !self.tracer.watches(append) {
            return;
        }
        let id = SocketId {
            slot: reply.slot,
            generation: reply.generation,
        };
        let mut step = self.step_of(append, What::Received, reply.read);
        step.device = Some(append.device.to_owned());
        if self.tracer.under_way.len() >= UNDER_WAY_MAX {
            self.tracer.under_way.pop_front();
        }
        self.tracer
            .under_way
            .push_back((id, reply.tag, step.clone()));
        self.tracer.note(step);
        if is_routed {
            self.now.touch();
            let step = self.step_of(append, What::Routed, reply.read);
            self.tracer.note(step);
        }
    }

    /// A message has come to its shard.
    pub(super) fn trace_proposed(&mut self, command: &[u8], reply: &ReplyTo) {
        if !self.tracer.on {
            return;
        }
        if let Ok(Command::Append(append)) = command::decode(command)
            && self.tracer.watches(&append)
        {
            self.now.touch();
            let step = self.step_of(&append, What::Proposed, reply.read);
            self.tracer.note(step);
        }
    }

    /// A step of the message at a place in a shard's log that was written or delivered just now.
    fn step_at(&mut self, shard: ShardId, at: u64, what: What, read: Stamp) -> Option<Step> {
        let log = self.placement.log_of(shard).0;
        self.measuring.places.get(log, at)?; // it lies in memory
        let step = match self.lanes.files(shard).item(at).map(command::decode) {
            Ok(Ok(Command::Append(append))) if self.tracer.watches(&append) => {
                self.step_of(&append, what, read)
            }
            _ => return None,
        };
        Some(step)
    }

    /// A message has become durable at a place in the log, and is in its inbox.
    pub(super) fn trace_durable(&mut self, shard: ShardId, at: u64, read: Stamp) {
        if !self.tracer.on || at == 0 {
            return;
        }
        let Some(applied) = self.step_at(shard, at, What::Applied, read) else {
            return;
        };
        let durable_ns = self.lanes.durable_ns(shard);
        let earlier_us = applied.clock_ns.saturating_sub(durable_ns) / 1_000;
        let durable = Step {
            what: What::Durable,
            at_us: applied.at_us.saturating_sub(earlier_us),
            clock_ns: durable_ns,
            since_us: applied.since_us.map(|us| us.saturating_sub(earlier_us)),
            ..applied.clone()
        };
        self.tracer.note(durable);
        self.tracer.note(applied);
    }

    /// A send was answered: Accepted, to be written, or Rejected.
    pub(super) fn trace_answered(&mut self, reply: &ReplyTo, is_accepted: bool) {
        if !self.tracer.on {
            return;
        }
        let id = SocketId {
            slot: reply.slot,
            generation: reply.generation,
        };
        let mut under_way = self.tracer.under_way.iter();
        let Some(place) = under_way.position(|(on, tag, _)| (*on, *tag) == (id, reply.tag)) else {
            return;
        };
        let Some((_, _, received)) = self.tracer.under_way.remove(place) else {
            return;
        };
        let read = Stamp::of(received.clock_ns);
        if is_accepted {
            let what = What::Accepted;
            self.tracer.wait(id, read, Step { what, ..received });
        } else {
            let step = self.step_now(received, What::Refused, read);
            self.tracer.note(step);
        }
    }

    /// The same message, at another step, now.
    fn step_now(&self, step: Step, what: What, read: Stamp) -> Step {
        Step {
            what,
            at_us: self.now.unix_us(),
            clock_ns: self.now.ns,
            since_us: (!read.is_none()).then(|| read.elapsed(self.now.ns) / 1_000),
            ..step
        }
    }

    /// An entry is in a session's next send.
    pub(super) fn trace_pushed(&mut self, id: SocketId, live: &Live, position: u64) {
        if !self.tracer.on {
            return;
        }
        let log = self.placement.log_of(live.shard).0;
        let read = self.measuring.places.get(log, position);
        let read = read.map_or(Stamp::default(), |(read, _)| read);
        let Some(mut step) = self.step_at(live.shard, position, What::Pushed, read) else {
            return;
        };
        step.device = Some(live.session.identity.device.as_str().to_owned());
        self.tracer.wait(id, read, step);
    }

    /// A connection's bytes have gone to its socket.
    pub(super) fn trace_written(&mut self, id: SocketId) {
        if !self.tracer.on || self.tracer.unwritten.is_empty() {
            return;
        }
        self.now.touch();
        let unwritten = std::mem::take(&mut self.tracer.unwritten);
        for (on, read, step) in unwritten {
            if on != id {
                self.tracer.unwritten.push_back((on, read, step));
                continue;
            }
            let what = step.what;
            let step = self.step_now(step, what, read);
            self.tracer.note(step);
        }
    }

    /// A session has acknowledged the entries after `before` up to `last`.
    pub(super) fn trace_acknowledged(&mut self, live: &Live, before: u64, last: u64) {
        if !self.tracer.on {
            return;
        }
        let Some(user) = live.user else { return };
        let log = self.placement.log_of(live.shard).0;
        for seq in before + 1..=last {
            let inbox = self.lanes.shard(live.shard);
            let slot = inbox.and_then(|shard| shard.users().get(user).slot(Seq(seq)));
            let Some(position) = slot.and_then(Slot::position) else {
                continue;
            };
            let Some((read, _)) = self.measuring.places.get(log, position) else {
                continue;
            };
            if let Some(mut step) = self.step_at(live.shard, position, What::Acknowledged, read) {
                step.device = Some(live.session.identity.device.as_str().to_owned());
                self.tracer.note(step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(clock_ns: u64) -> Step {
        Step {
            trace: String::new(),
            what: What::Received,
            at_us: 0,
            clock_ns,
            since_us: None,
            core: 0,
            from: "ann".to_owned(),
            to: "ben".to_owned(),
            n: 1,
            seq: None,
            device: None,
        }
    }

    /// R: E-2
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_core_notes_so_many_steps_a_second_holds_so_many_and_counts_the_others() {
        let mut tracer = Tracer::new(Instant::now());
        let second = 1_000_000_000;
        for _ in 0..STEPS_PER_S_MAX + 5 {
            tracer.note(step(second));
        }
        assert_eq!(tracer.noted.steps.len(), STEPS_PER_S_MAX as usize);
        assert_eq!(tracer.noted.dropped, 5);
        for n in 0..2 * STEPS_HELD_MAX as u64 {
            tracer.note(step((2 + n) * second));
        }
        assert_eq!(tracer.noted.steps.len(), STEPS_HELD_MAX);
        let all = u64::from(STEPS_PER_S_MAX) + 5 + 2 * STEPS_HELD_MAX as u64;
        assert_eq!(tracer.noted.dropped + STEPS_HELD_MAX as u64, all);
    }
}
