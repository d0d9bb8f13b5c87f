//! One switch: the process, its cores, and how it starts.
//!
//! A simulated core does what `runtime::reactor` does, in the same order, on the same stores, shards and
//! sessions; only sockets, TLS, rings and files are the world's. A crash drops the process and leaves
//! the disks to their fate; a start reads them as a start does, and may itself be interrupted.

mod answers;
mod connection;
mod inbound;
mod outbound;
mod start;

use std::collections::{BTreeMap, VecDeque};

use iris_proto::id::SendNumber;
use iris_proto::v2::{GoodbyeReason, RejectCode};

use super::Weather;
use super::check::Check;
use super::disk::FakeDisk;
use super::io::{Done, Jobs};
use super::net::{ConnId, Net, Notice};
use super::world::{Event, World};
use crate::placement::{CoreId, Placement, ShardId, UserHash};
use crate::shard::user::UserSlot;
use crate::shard::{Effect, Input, ReplyTo, Shard};
use crate::store::{Io, Now, PENDING_BYTES_MAX, Store};
use connection::{Connection, Handoff, State};

/// After how many milliseconds a send refused by a full disk may be repeated.
const DISK_RETRY_MS: u64 = 200;
/// After how many milliseconds somebody whose shard is damaged may try again.
const DAMAGE_RETRY_MS: u64 = 500;
/// Cursors are gathered so long before they are proposed.
const ACK_GATHER_US: u64 = 200_000;
/// A device that acknowledged so many entries does not wait for the gathering.
const ACK_GATHER_ENTRIES: u64 = 32;
/// The grain of all deadlines.
const TICK_US: u64 = 20_000;
/// How long a login may take.
const HELLO_TIMEOUT_US: u64 = 5_000_000;
/// How long a peer may take to close after our Goodbye before we cut.
const CLOSING_MAX_US: u64 = 2_000_000;

/// The world around a core.
pub struct Env<'a> {
    /// Clock, chance, trace.
    pub world: &'a mut World,
    /// Connections.
    pub net: &'a mut Net,
    /// The disks, by log.
    pub disks: &'a mut [FakeDisk],
    /// Who watches.
    pub check: &'a mut Check,
    /// What goes wrong how often.
    pub weather: &'a Weather,
}

/// What cores send each other.
#[derive(Debug)]
enum Mail {
    Append {
        to: UserHash,
        reply: ReplyTo,
        command: Vec<u8>,
    },
    Accepted {
        reply: ReplyTo,
        n: SendNumber,
    },
    Rejected {
        reply: ReplyTo,
        code: RejectCode,
        expected: SendNumber,
        retry_after_ms: u64,
    },
    Connection(Box<Handoff>),
}

/// What a core finds at the beginning of a turn.
#[derive(Debug)]
enum Found {
    Accepted(ConnId),
    Received(ConnId),
    Ended(ConnId),
    Sent(ConnId),
    Pages(ConnId),
    Disk(usize, Done),
}

/// One core.
struct Core {
    id: CoreId,
    life: u32,
    cluster: [u8; 16],
    placement: Placement,
    /// By the number of their log.
    stores: Vec<(usize, Store)>,
    connections: BTreeMap<ConnId, Box<Connection>>,
    sessions: BTreeMap<(ShardId, UserSlot), Vec<ConnId>>,
    senders: BTreeMap<(u64, u64), ConnId>,
    dirty: Vec<ConnId>,
    retry: Vec<ConnId>,
    congested: Vec<ConnId>,
    gathering: Vec<ConnId>,
    greeting: VecDeque<(u64, ConnId)>,
    closing: VecDeque<(u64, ConnId)>,
    found: VecDeque<Found>,
    mail: VecDeque<Mail>,
    /// Mail to be published at the end of the turn, in order.
    outgoing: Vec<(usize, Mail)>,
    /// Connections to be read again in the next turn.
    later: Vec<ConnId>,
    /// Connections whose send was taken at once.
    sent: Vec<ConnId>,
    effects: VecDeque<(ShardId, Effect)>,
    next_tick_us: u64,
    next_gathering_us: u64,
    /// When the next turn is due.
    turn_at_us: Option<u64>,
    draining: bool,
    said_goodbye: bool,
}

/// A running switch.
pub struct Process {
    life: u32,
    cores: Vec<Core>,
    placement: Placement,
    jobs: Vec<Jobs>,
    /// Which core has a connection; none while it is handed over.
    owners: BTreeMap<ConnId, Option<usize>>,
    accepts: usize,
}

/// What became of a turn or a disk operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Runs,
    /// The process has ended itself.
    Aborts(&'static str),
    /// It was asked to stop and has stopped.
    Stopped,
}

impl Core {
    fn store_mut(&mut self, shard: ShardId) -> Option<&mut Store> {
        let log = usize::from(self.placement.log_of(shard).0);
        self.stores
            .iter_mut()
            .find(|(id, _)| *id == log)
            .map(|(_, store)| store)
    }

    fn shard(&self, shard: ShardId) -> Option<&Shard> {
        let log = usize::from(self.placement.log_of(shard).0);
        let store = self.stores.iter().find(|(id, _)| *id == log);
        store.and_then(|(_, store)| store.shard(shard))
    }

    fn step(&mut self, env: &mut Env<'_>, shard: ShardId, input: Input<'_>) {
        let (now, mut effects) = (now(env.world), std::mem::take(&mut self.effects));
        if let Some(store) = self.store_mut(shard) {
            store.step(now, shard, input, &mut effects);
        }
        self.effects = effects;
    }

    /// Whether nothing more should be read from connections.
    fn is_congested(&self) -> bool {
        let pending: usize = self
            .stores
            .iter()
            .map(|(_, store)| store.pending_bytes())
            .sum();
        pending >= PENDING_BYTES_MAX
    }

    fn put_back(&mut self, _: &mut Env<'_>, connection: Box<Connection>) {
        let before = self.connections.insert(connection.id, connection);
        assert!(before.is_none(), "two connections with one number");
    }

    /// One turn, in the order of the real one. What the stores want of their disks is in `io`.
    fn turn(&mut self, env: &mut Env<'_>, io: &mut Vec<(usize, Io)>) -> Outcome {
        for id in std::mem::take(&mut self.later) {
            self.found.push_back(Found::Received(id));
        }
        while let Some(found) = self.found.pop_front() {
            match found {
                Found::Accepted(id) => self.accepted(env, id),
                Found::Received(id) => self.received(env, id),
                Found::Ended(id) => self.drop_connection(env, id),
                Found::Sent(id) => self.send_taken(id),
                Found::Pages(id) => self.populated(id),
                Found::Disk(log, done) => {
                    if let Done::Fatal(why) = done {
                        return Outcome::Aborts(why);
                    }
                    self.disk_done(env, log, done, io);
                }
            }
        }
        while !self.is_congested()
            && let Some(mail) = self.mail.pop_front()
        {
            self.read_mail(env, mail);
        }
        self.carry_out(env);
        self.retry_stalled(env);
        self.tick(env);
        let more_input = env.world.dice.percent(10);
        let time = now(env.world);
        for (log, store) in &mut self.stores {
            let mut wanted = Vec::new();
            store.poll(time, more_input, &mut wanted);
            io.extend(wanted.into_iter().map(|wanted| (*log, wanted)));
        }
        self.carry_out(env);
        self.send_dirty(env);
        for id in std::mem::take(&mut self.sent) {
            self.found.push_back(Found::Sent(id));
        }
        Outcome::Runs
    }

    fn disk_done(&mut self, env: &mut Env<'_>, log: usize, done: Done, io: &mut Vec<(usize, Io)>) {
        let time = now(env.world);
        let mut effects = std::mem::take(&mut self.effects);
        let Some((_, store)) = self.stores.iter_mut().find(|(id, _)| *id == log) else {
            unreachable!("log {log} is of another core");
        };
        match done {
            Done::Flushed => {
                store.flushed(time, &mut effects);
                env.check.flushed(env.world, log, store);
            }
            Done::Spare { segment, salt } => {
                store.spare_ready(segment, salt);
                env.check.room(env.world, log, true);
            }
            Done::NoSpare => {
                store.spare_failed();
                env.check.room(env.world, log, false);
            }
            Done::Checkpointed(done) => {
                let mut wanted = Vec::new();
                store.checkpointed(done, &mut wanted);
                io.extend(wanted.into_iter().map(|wanted| (log, wanted)));
            }
            Done::Harvested(harvest) => store.harvested(harvest),
            Done::Fatal(_) => unreachable!("ends the process"),
        }
        self.effects = effects;
    }

    /// What happens by the clock.
    fn tick(&mut self, env: &mut Env<'_>) {
        let now_us = env.world.now_us();
        if now_us < self.next_tick_us {
            return;
        }
        self.next_tick_us = now_us + TICK_US;
        while let Some(id) = pop_due(&mut self.greeting, now_us) {
            let still = self.connections.get(&id).is_some_and(|connection| {
                matches!(connection.state, State::Greeting | State::Entering(_))
            });
            if still {
                self.say_goodbye(env, id, GoodbyeReason::HelloTimeout, 0);
            }
        }
        while let Some(id) = pop_due(&mut self.closing, now_us) {
            self.drop_connection(env, id);
        }
        let is_quiet = self.stores.iter().all(|(_, store)| store.is_quiet());
        if self.draining && is_quiet && !std::mem::replace(&mut self.said_goodbye, true) {
            for id in self.connections.keys().copied().collect::<Vec<_>>() {
                let retry_after_ms = env.world.dice.below(500);
                self.say_goodbye(env, id, GoodbyeReason::ShuttingDown, retry_after_ms);
            }
        }
        if now_us >= self.next_gathering_us {
            self.next_gathering_us = now_us + ACK_GATHER_US;
            self.gather_cursors(env);
        }
    }

    fn is_drained(&self) -> bool {
        self.said_goodbye
            && self.connections.is_empty()
            && self.stores.iter().all(|(_, store)| store.is_quiet())
            && self.mail.is_empty()
    }

    /// Microseconds until it must look again by itself.
    fn rest_us(&self, now_us: u64) -> u64 {
        let may_go_on = self.retry.is_empty() && self.congested.is_empty();
        let is_idle = self.found.is_empty()
            && self.dirty.is_empty()
            && self.later.is_empty()
            && (may_go_on || self.is_congested())
            && !self.stores.iter().any(|(_, store)| store.can_flush());
        match is_idle {
            true => self.next_tick_us.saturating_sub(now_us).max(1),
            false => 20,
        }
    }

    /// Sees to it that there is a turn in `delay_us` at the latest.
    fn wake(&mut self, world: &mut World, delay_us: u64) {
        let at_us = world.now_us() + delay_us;
        if self.turn_at_us.is_none_or(|turn| turn > at_us) {
            self.turn_at_us = Some(at_us);
            let core = usize::from(self.id.0);
            world.at(
                at_us,
                Event::Turn {
                    life: self.life,
                    core,
                },
            );
        }
    }
}

impl Process {
    /// Which life of the switch it is.
    #[must_use]
    pub const fn life(&self) -> u32 {
        self.life
    }

    /// The store of a log.
    pub fn stores(&self) -> impl Iterator<Item = (usize, &Store)> {
        let stores = self.cores.iter().flat_map(|core| &core.stores);
        stores.map(|(log, store)| (*log, store))
    }

    fn find(&mut self, world: &mut World, core: usize, found: Found) {
        self.cores[core].found.push_back(found);
        let delay = world.dice.skewed(1, 200);
        self.cores[core].wake(world, delay);
    }

    /// A connection attempt has come.
    pub fn connected(&mut self, world: &mut World, id: ConnId) {
        let core = self.accepts % self.cores.len();
        self.accepts += 1;
        self.owners.insert(id, Some(core));
        self.find(world, core, Found::Accepted(id));
    }

    /// Whether a connection is one of this process.
    #[must_use]
    pub fn owns(&self, id: ConnId) -> bool {
        self.owners.contains_key(&id)
    }

    /// A connection has news for the switch.
    pub fn notice(&mut self, world: &mut World, id: ConnId, notice: Notice) {
        let Some(Some(core)) = self.owners.get(&id).copied() else {
            return; // it is looked after when it has arrived at its core
        };
        let found = match notice {
            Notice::Readable => Found::Received(id),
            Notice::Writable => Found::Sent(id),
            Notice::Ended => Found::Ended(id),
        };
        self.find(world, core, found);
    }

    /// Pages are in memory.
    pub fn pages(&mut self, world: &mut World, id: ConnId) {
        if let Some(Some(core)) = self.owners.get(&id).copied() {
            self.find(world, core, Found::Pages(id));
        }
    }

    /// A step of a disk operation is done.
    pub fn disk(&mut self, env: &mut Env<'_>, log: usize, hand: usize) {
        let (disk, weather) = (&mut env.disks[log], env.weather);
        let done = self.jobs[log].go_on(env.world, disk, weather, hand);
        env.check.disk_moved(env.world, log, disk);
        if let Some(done) = done {
            let core = usize::from(
                self.placement
                    .core_of_log(crate::placement::LogId(log as u16))
                    .0,
            );
            self.find(env.world, core, Found::Disk(log, done));
        }
    }

    /// A core's turn has come.
    pub fn turn(&mut self, env: &mut Env<'_>, core: usize) -> Outcome {
        if self.cores[core].turn_at_us != Some(env.world.now_us()) {
            return Outcome::Runs; // an earlier one was wanted since
        }
        self.cores[core].turn_at_us = None;
        let mut io = Vec::new();
        let outcome = self.cores[core].turn(env, &mut io);
        if outcome != Outcome::Runs {
            return outcome;
        }
        for (log, io) in io {
            self.jobs[log].begin(env.world, io);
        }
        for (to, mail) in std::mem::take(&mut self.cores[core].outgoing) {
            match &mail {
                Mail::Connection(handoff) => self.owners.insert(handoff.id, Some(to)),
                _ => None,
            };
            self.cores[to].mail.push_back(mail);
            let delay = env.world.dice.skewed(1, 200);
            self.cores[to].wake(env.world, delay);
        }
        let rest_us = self.cores[core].rest_us(env.world.now_us());
        self.cores[core].wake(env.world, rest_us);
        if self.cores.iter().all(Core::is_drained) {
            return Outcome::Stopped;
        }
        Outcome::Runs
    }

    /// Asks it to stop in good order.
    pub fn drain(&mut self, env: &mut Env<'_>) {
        for core in &mut self.cores {
            core.draining = true;
            core.gather_cursors(env);
            core.wake(env.world, 1);
        }
    }

    /// How far each log is durable, as the process believes.
    #[must_use]
    pub fn durable_ends(&self) -> Vec<(usize, u64)> {
        self.stores()
            .map(|(log, store)| (log, store.durable_end()))
            .collect()
    }
}

fn pop_due(queue: &mut VecDeque<(u64, ConnId)>, now_us: u64) -> Option<ConnId> {
    if queue.front()?.0 > now_us {
        return None;
    }
    queue.pop_front().map(|(_, id)| id)
}

/// The time as the stores are told it.
#[must_use]
pub fn now(world: &World) -> Now {
    Now {
        unix_ms: world.unix_ms(),
        monotonic_us: world.now_us(),
    }
}

pub use start::{Node, Started};
