//! One thread of the generator: all of its connections on one private io_uring.
//!
//! ```text
//!   turn ─▶ open TLS ─▶ frames ─▶ Connection ─▶ Book
//!     ▲                                          │ now: new messages, retries, acknowledgements
//!   sleep ◀─ one seal and one send for each dirty connection ◀┘
//! ```
//! The generator shares the machine with the switch, so it is built like it: frames of one turn go out
//! in one TLS record and one send per connection, and a turn sleeps in the same system call that
//! submits. A plain thread: an executor would only add a second ring to wait for.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Sender;
use iris::runtime::stream::{Event, SocketId, Sockets, SocketsConfig};
use iris::runtime::tls::Tls;
use iris_proto::frame::Decoder;
use iris_proto::limits::FRAME_BYTES_MAX;
use iris_proto::wire;

use crate::connection::{ACK_DELAY_NS, Book, Connection, Step};
use crate::identity::Identity;
use crate::pattern::Pattern;
use crate::schedule::{Random, Schedule};
use crate::stats::{Ended, Shared, Snapshot};

/// Events that one turn takes.
const EVENTS_MAX: usize = 4096;
/// Handshakes under way at once, per thread.
const HANDSHAKES_MAX: usize = 32;
/// Longest sleep, so that the coordinator's wishes are seen.
const SLEEP_NS_MAX: u64 = 10_000_000;
/// First and longest pause before a lost connection is made again.
const RECONNECT_NS: (u64, u64) = (20_000_000, 2_000_000_000);
/// Random senders or recipients tried before a message waits for the next turn.
const DRAWS_MAX: usize = 8;
/// Time for the last bytes to leave at the end.
const FAREWELL_NS: u64 = 500_000_000;
/// Send buffers kept for reuse.
const BUFFERS_KEPT: usize = 4096;

/// How one thread drives its load.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of this thread, and of all.
    pub thread: u32,
    /// See `thread`.
    pub threads: u32,
    /// Where the switch is.
    pub address: SocketAddr,
    /// Messages per second in all; none: as many as the slots allow.
    pub rate: Option<f64>,
    /// Messages of one sender at each point of the schedule.
    pub burst: u32,
    /// Who sends to whom, and who is away.
    pub pattern: Pattern,
    /// See [`Pattern`].
    pub targets: u32,
    /// Slots per connection.
    pub in_flight: u16,
    /// Connect again when a connection is lost.
    pub reconnect: bool,
    /// For the random choices.
    pub seed: u64,
    /// The same for all threads, new for every run.
    pub send_epoch: u64,
}

/// A connection and what carries it.
struct Link {
    connection: Connection,
    socket: Option<SocketId>,
    tls: Option<Tls>,
    decoder: Decoder,
    /// Sealed bytes that wait for the socket.
    wire: Vec<u8>,
    dirty: bool,
    /// Position in `Worker::available`, or `u32::MAX`.
    available_at: u32,
    attempts: u32,
}

/// See the module's text.
pub struct Worker {
    plan: Plan,
    identity: Arc<Identity>,
    shared: Arc<Shared>,
    snapshots: Sender<Snapshot>,
    errors: Sender<String>,
    sockets: Sockets,
    book: Book,
    links: Vec<Link>,
    /// Socket slot → link.
    by_socket: Vec<u32>,
    /// Links with room for a message.
    available: Vec<u32>,
    dirty: Vec<u32>,
    to_connect: BinaryHeap<Reverse<(u64, u32)>>,
    handshakes: usize,
    ready: u64,
    lost: u64,
    /// The run is over and connections end as they should.
    is_leaving: bool,
    /// Links of those who are away until they are let in.
    away: Vec<u32>,
    /// Messages of the present burst that were sent.
    burst_sent: u32,
    retries: BinaryHeap<Reverse<(u64, u32, u16)>>,
    acks: VecDeque<(u64, u32)>,
    schedule: Option<Schedule>,
    load: (u64, u64),
    snapshot_at: u64,
    random: Random,
    plain: Vec<u8>,
    buffers: Vec<Vec<u8>>,
}

impl Worker {
    /// Must be called on the thread that runs it.
    ///
    /// # Errors
    /// What io_uring said.
    pub fn new(
        plan: Plan,
        identity: Arc<Identity>,
        shared: Arc<Shared>,
        book: Book,
        snapshots: Sender<Snapshot>,
        errors: Sender<String>,
    ) -> Result<Self, String> {
        let sockets = Sockets::new(SocketsConfig::default()).map_err(|error| error.to_string())?;
        let links: Vec<Link> = (plan.thread..book.names.count())
            .step_by(plan.threads as usize)
            .map(|user| Link::new(Connection::new(user, plan.in_flight, plan.send_epoch)))
            .collect();
        let away_from = plan.pattern.away_from(book.names.count());
        let is_away = |link: &u32| links[*link as usize].connection.user >= away_from;
        let (away, present): (Vec<u32>, Vec<u32>) =
            (0..links.len() as u32).partition(|link| is_away(link));
        Ok(Self {
            random: Random::new(plan.seed ^ (u64::from(plan.thread) << 32)),
            to_connect: present.into_iter().map(|link| Reverse((0, link))).collect(),
            away,
            burst_sent: 0,
            links,
            plan,
            identity,
            shared,
            snapshots,
            errors,
            sockets,
            book,
            by_socket: Vec::new(),
            available: Vec::new(),
            dirty: Vec::new(),
            handshakes: 0,
            ready: 0,
            lost: 0,
            is_leaving: false,
            retries: BinaryHeap::new(),
            acks: VecDeque::new(),
            schedule: None,
            load: (u64::MAX, u64::MAX),
            snapshot_at: u64::MAX,
            plain: Vec::new(),
            buffers: Vec::new(),
        })
    }

    /// Runs until the coordinator says that it is enough.
    pub fn run(mut self) -> Ended {
        let mut events = Vec::new();
        while !self.shared.finish.load(Ordering::Relaxed) {
            self.turn(&mut events);
            let now = self.shared.now_ns();
            self.learn_the_times();
            self.take_snapshot(now);
            self.let_in();
            self.connect_some(now);
            self.send_new(now);
            self.send_refused(now);
            self.acknowledge(now);
            self.flush();
            self.show_progress();
            self.sleep();
        }
        self.say_goodbye(&mut events);
        Ended {
            snapshot: self.book.snapshot,
            counters: self.book.counters,
            sent: self.book.sent,
            received: self.book.received,
            violations: self.book.violations,
        }
    }

    fn turn(&mut self, events: &mut Vec<Event>) {
        self.sockets.turn(events, EVENTS_MAX);
        for event in events.drain(..) {
            match event {
                Event::Received { id, buffer } => {
                    let broken = self
                        .link_of(id)
                        .and_then(|link| self.received(link, &buffer));
                    self.sockets.release(buffer);
                    if let Some((link, why)) = broken {
                        self.lose(link, &why, 0);
                    }
                }
                Event::Sent {
                    id,
                    mut buffer,
                    result,
                } => {
                    if self.buffers.len() < BUFFERS_KEPT {
                        buffer.clear();
                        self.buffers.push(buffer);
                    }
                    if let (Some(link), Err(errno)) = (self.link_of(id), result) {
                        self.lose(link, &format!("sending failed, errno {errno}"), 0);
                    }
                }
                Event::Connected { id, result } => {
                    if let Some(link) = self.link_of(id) {
                        self.connected(link, result);
                    }
                }
                Event::Ended { id, reason } => {
                    if let Some(link) = self.link_of(id) {
                        self.lose(link, &format!("the switch ended it: {reason:?}"), 0);
                    }
                }
                Event::Accepted { .. }
                | Event::AcceptFailed { .. }
                | Event::Paused { .. }
                | Event::Detached { .. }
                | Event::Job { .. } => {}
            }
        }
    }

    /// The link whose present socket this is.
    fn link_of(&self, id: SocketId) -> Option<u32> {
        let link = *self.by_socket.get(id.slot as usize)?;
        (self.links.get(link as usize)?.socket == Some(id)).then_some(link)
    }

    fn let_in(&mut self) {
        if !self.away.is_empty() && self.shared.let_in.load(Ordering::Relaxed) {
            let away = std::mem::take(&mut self.away);
            self.to_connect
                .extend(away.into_iter().map(|link| Reverse((0, link))));
        }
    }

    fn connect_some(&mut self, now: u64) {
        while self.handshakes < HANDSHAKES_MAX {
            match self.to_connect.peek() {
                Some(&Reverse((at, link))) if at <= now => {
                    self.to_connect.pop();
                    self.connect(link);
                }
                _ => return,
            }
        }
    }

    fn connect(&mut self, link: u32) {
        self.handshakes += 1;
        let id = match self.sockets.connect(self.plan.address) {
            Ok(id) => id,
            Err(error) => {
                let text = format!("cannot make a socket: {error}; raise ulimit -n");
                return self.lose(link, &text, 0);
            }
        };
        let slot = id.slot as usize;
        if self.by_socket.len() <= slot {
            self.by_socket.resize(slot + 1, u32::MAX);
        }
        self.by_socket[slot] = link;
        self.links[link as usize].socket = Some(id);
    }

    fn connected(&mut self, at: u32, result: Result<(), i32>) {
        if let Err(errno) = result {
            let error = std::io::Error::from_raw_os_error(errno);
            let text = format!("cannot connect to {}: {error}", self.plan.address);
            return self.lose(at, &text, 0);
        }
        let link = &mut self.links[at as usize];
        let started = self.identity.tls().and_then(|mut tls| {
            tls.start(&mut link.wire)
                .map_err(|error| error.to_string())?;
            Ok(tls)
        });
        match started {
            Ok(tls) => link.tls = Some(tls),
            Err(text) => return self.lose(at, &text, 0),
        }
        self.mark_dirty(at);
    }

    /// Opens what has arrived and takes the frames in it. Some: the connection is over, and why.
    fn received(
        &mut self,
        at: u32,
        buffer: &iris::runtime::stream::BufferId,
    ) -> Option<(u32, String)> {
        let now = self.shared.now_ns();
        let link = &mut self.links[at as usize];
        let tls = link.tls.as_mut()?;
        let was_handshaking = tls.is_handshaking();
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let opened = tls.open(self.sockets.data(buffer), &mut plain, &mut link.wire);
        let mut over = None;
        match opened {
            Err(error) => over = Some(error.to_string()),
            Ok(opened) => {
                if was_handshaking && !opened.handshaking {
                    match self
                        .identity
                        .token(self.book.names.name(link.connection.user))
                    {
                        Ok(token) => link.connection.hello(token),
                        Err(text) => over = Some(text),
                    }
                }
                over = over.or_else(|| self.frames(at, &plain, now));
                if opened.closed {
                    over = over.or_else(|| Some("the switch closed it".to_owned()));
                }
            }
        }
        self.plain = plain;
        let link = &self.links[at as usize];
        link.socket?; // none: a Goodbye has ended it already
        if !link.wire.is_empty() || !link.connection.out.is_empty() || link.connection.must_ack() {
            self.mark_dirty(at);
        }
        over.map(|text| (at, text))
    }

    fn frames(&mut self, at: u32, mut plain: &[u8], now: u64) -> Option<String> {
        loop {
            let link = &mut self.links[at as usize];
            let frame = match link.decoder.next(&mut plain) {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(error) => return Some(error.to_string()),
            };
            let frame = match wire::decode_server(frame) {
                Ok(frame) => frame,
                Err(error) => return Some(error.to_string()),
            };
            let step = link.connection.frame(frame, now, &mut self.book);
            match step {
                Step::Nothing => {}
                Step::Freed => self.make_available(at),
                Step::AckDue => self.acks.push_back((now + ACK_DELAY_NS, at)),
                Step::RetryAfter { slot, delay_ms } => {
                    self.retries
                        .push(Reverse((now + delay_ms * 1_000_000, at, slot)));
                }
                Step::Ready => self.logged_in(at),
                Step::Goodbye {
                    text,
                    retry_after_ms,
                } => {
                    self.lose(at, &format!("Goodbye {text}"), retry_after_ms);
                    return None;
                }
            }
        }
    }

    fn logged_in(&mut self, at: u32) {
        self.handshakes -= 1;
        self.ready += 1;
        self.links[at as usize].attempts = 0;
        self.make_available(at);
    }

    fn make_available(&mut self, at: u32) {
        let (plan, users) = (&self.plan, self.book.names.count());
        let link = &mut self.links[at as usize];
        let sends = plan
            .pattern
            .sends(link.connection.user, users, plan.targets);
        if sends && link.available_at == u32::MAX && link.connection.has_room() {
            link.available_at = self.available.len() as u32;
            self.available.push(at);
        }
    }

    fn make_unavailable(&mut self, at: u32) {
        let position = std::mem::replace(&mut self.links[at as usize].available_at, u32::MAX);
        if position == u32::MAX {
            return;
        }
        self.available.swap_remove(position as usize);
        if let Some(&moved) = self.available.get(position as usize) {
            self.links[moved as usize].available_at = position;
        }
    }

    fn mark_dirty(&mut self, at: u32) {
        let link = &mut self.links[at as usize];
        if !link.dirty {
            link.dirty = true;
            self.dirty.push(at);
        }
    }

    /// The connection is over. Fails the run, or comes back later.
    fn lose(&mut self, at: u32, why: &str, retry_after_ms: u64) {
        self.make_unavailable(at);
        let link = &mut self.links[at as usize];
        if let Some(id) = link.socket.take() {
            self.sockets.close(id);
        }
        if link.connection.is_ready() {
            self.ready -= 1;
            if !self.is_leaving {
                self.lost += 1;
                self.book.counters.lost += 1;
            }
        } else {
            self.handshakes -= 1;
        }
        link.connection.lost();
        link.tls = None;
        link.wire.clear();
        link.decoder = Decoder::new(FRAME_BYTES_MAX);
        if !self.plan.reconnect && !self.is_leaving {
            let name = self.book.names.name(link.connection.user);
            let _ = self
                .errors
                .try_send(format!("connection of {name} lost: {why}"));
            self.shared.failed.store(true, Ordering::Relaxed);
            return;
        }
        let (first, longest) = RECONNECT_NS;
        let most = (first << link.attempts.min(20)).min(longest);
        link.attempts += 1;
        let jitter = (u64::from(self.random.below(1 << 16)) * most) >> 16;
        let at_ns = self.shared.now_ns() + retry_after_ms * 1_000_000 + jitter;
        self.to_connect.push(Reverse((at_ns, at)));
    }

    /// Takes over the times that the coordinator has set.
    fn learn_the_times(&mut self) {
        let from = self.shared.load_from.load(Ordering::Acquire);
        if self.load.0 != u64::MAX || from == u64::MAX {
            return;
        }
        let measure = &self.shared.measure_from;
        self.book.window = (
            measure.load(Ordering::Relaxed),
            self.shared.measure_until.load(Ordering::Relaxed),
        );
        self.load = (from, self.book.window.1);
        self.snapshot_at = (from + SECOND_NS).min(self.book.window.0);
        self.schedule = self.plan.rate.map(|rate| {
            let (thread, threads) = (u64::from(self.plan.thread), u64::from(self.plan.threads));
            let rate = rate / f64::from(self.plan.burst);
            Schedule::new(rate, self.load.0, self.load.1, thread, threads)
        });
    }

    /// Hands over the latencies of the second that has passed.
    fn take_snapshot(&mut self, now: u64) {
        let phase = self.shared.phase.load(Ordering::Relaxed);
        let is_due = now >= self.snapshot_at;
        if !is_due && phase == self.book.snapshot.phase {
            return;
        }
        let warmup = now < self.book.window.0;
        let full = std::mem::replace(&mut self.book.snapshot, Snapshot::new(warmup, phase));
        // Bounded by the seconds and phases of a run; the coordinator reads it all the time.
        let _ = self.snapshots.send(full);
        if !is_due {
            return;
        }
        self.snapshot_at += SECOND_NS;
        if warmup {
            self.snapshot_at = self.snapshot_at.min(self.book.window.0);
        }
    }

    fn send_new(&mut self, now: u64) {
        let is_over = now >= self.load.1 && self.schedule.is_none();
        if now < self.load.0 || is_over || self.shared.stop.load(Ordering::Relaxed) {
            return;
        }
        if self.schedule.is_none() {
            return self.fill_all(now);
        }
        while let Some(intended) = self.schedule.as_ref().and_then(Schedule::peek) {
            if intended > now {
                self.book.is_held = false;
                return;
            }
            if now >= self.load.1.saturating_add(GRACE_NS) {
                return self.give_up();
            }
            if !self.send_burst(intended, now) {
                self.book.is_held = true;
                return; // no connection has room: the message keeps its time
            }
            if let Some(schedule) = &mut self.schedule {
                schedule.advance();
            }
        }
    }

    /// Keeps every slot of every connection in flight.
    fn fill_all(&mut self, now: u64) {
        let mut held_up = Vec::new();
        while let Some(&at) = self.available.last() {
            self.make_unavailable(at);
            while self.links[at as usize].connection.has_room() {
                if !self.send_from(at, now, now) {
                    held_up.push(at);
                    break;
                }
            }
        }
        for at in held_up {
            self.make_available(at);
        }
    }

    /// The time is over: what was not sent by now is not sent any more.
    fn give_up(&mut self) {
        let Some(mut schedule) = self.schedule.take() else {
            return;
        };
        let bursts = schedule.give_up(self.book.window.0);
        let all = bursts * u64::from(self.plan.burst);
        let unsent = all.saturating_sub(u64::from(self.burst_sent));
        self.book.counters.unsent += unsent;
        self.schedule = Some(schedule);
    }

    /// Sends one burst from a random connection that has room, or what is left of it from another one.
    fn send_burst(&mut self, intended: u64, now: u64) -> bool {
        for _ in 0..DRAWS_MAX {
            if self.available.is_empty() {
                return false;
            }
            let drawn = self.random.below(self.available.len() as u32);
            let at = self.available[drawn as usize];
            while self.burst_sent < self.plan.burst && self.send_from(at, intended, now) {
                self.burst_sent += 1;
            }
            if !self.links[at as usize].connection.has_room() {
                self.make_unavailable(at);
            }
            if self.burst_sent == self.plan.burst {
                self.burst_sent = 0;
                return true;
            }
        }
        false
    }

    /// Sends one message from this connection to a random recipient.
    fn send_from(&mut self, at: u32, intended: u64, now: u64) -> bool {
        let users = self.book.names.count();
        let (pattern, targets) = (self.plan.pattern, self.plan.targets);
        for _ in 0..DRAWS_MAX {
            let connection = &mut self.links[at as usize].connection;
            let to = pattern.recipient(&mut self.random, connection.user, users, targets);
            if connection.send(to, intended, now, &mut self.book) {
                self.mark_dirty(at);
                return true;
            }
        }
        false
    }

    fn send_refused(&mut self, now: u64) {
        while let Some(&Reverse((due, at, slot))) = self.retries.peek() {
            if due > now {
                return;
            }
            self.retries.pop();
            if self.links[at as usize]
                .connection
                .retry(slot, &mut self.book)
            {
                self.mark_dirty(at);
            } else {
                self.retries.push(Reverse((now + RETRY_AGAIN_NS, at, slot)));
            }
        }
    }

    fn acknowledge(&mut self, now: u64) {
        while let Some(&(due, at)) = self.acks.front() {
            if due > now {
                return;
            }
            self.acks.pop_front();
            self.links[at as usize].connection.ack_delay_passed();
            self.mark_dirty(at);
        }
    }

    /// One seal and one send for each dirty connection that can send.
    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&at| {
            let waits = self.flush_one(at);
            self.links[at as usize].dirty = waits;
            waits
        });
        // Those that became dirty meanwhile (lost ones are not) stand behind.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// True: there is something to send, but the last send is still under way.
    fn flush_one(&mut self, at: u32) -> bool {
        let link = &mut self.links[at as usize];
        let (Some(id), Some(tls)) = (link.socket, link.tls.as_mut()) else {
            return false;
        };
        if !self.sockets.can_send(id) {
            return true;
        }
        link.connection.finish_turn();
        if !link.connection.out.is_empty() && !tls.is_handshaking() {
            if link.wire.capacity() == 0 {
                link.wire = self.buffers.pop().unwrap_or_default();
            }
            let sealed = tls.seal(&link.connection.out, &mut link.wire);
            link.connection.out.clear();
            if let Err(error) = sealed {
                self.lose(at, &error.to_string(), 0);
                return false;
            }
        }
        if !link.wire.is_empty() {
            self.sockets.send(id, std::mem::take(&mut link.wire));
        }
        false
    }

    fn show_progress(&self) {
        let mine = &self.shared.progress[self.plan.thread as usize];
        mine.ready.store(self.ready, Ordering::Relaxed);
        mine.sent.store(self.book.sent_ever, Ordering::Relaxed);
        mine.accepted
            .store(self.book.accepted_ever, Ordering::Relaxed);
        mine.delivered
            .store(self.book.delivered_ever, Ordering::Relaxed);
        mine.lost.store(self.lost, Ordering::Relaxed);
    }

    /// Until something arrives, or the next thing is due.
    fn sleep(&mut self) {
        let now = self.shared.now_ns();
        let mut until = now + SLEEP_NS_MAX;
        if self.handshakes < HANDSHAKES_MAX {
            until = self
                .to_connect
                .peek()
                .map_or(until, |&Reverse((due, _))| until.min(due));
        }
        until = self
            .retries
            .peek()
            .map_or(until, |&Reverse((due, _, _))| until.min(due));
        until = self.acks.front().map_or(until, |&(due, _)| until.min(due));
        if !self.available.is_empty() && !self.shared.stop.load(Ordering::Relaxed) {
            let next = self.schedule.as_ref().and_then(Schedule::peek);
            until = next.map_or(until, |intended| until.min(intended));
        }
        if now < self.load.0 {
            until = until.min(self.load.0);
        }
        if until > now {
            self.sockets.park(Duration::from_nanos(until - now));
        }
    }

    /// Acknowledges what is left, closes in order, and waits until that is out.
    fn say_goodbye(&mut self, events: &mut Vec<Event>) {
        for at in 0..self.links.len() as u32 {
            self.links[at as usize].connection.ack_delay_passed();
            self.mark_dirty(at);
        }
        let until = self.shared.now_ns() + FAREWELL_NS;
        let mut closed = false;
        while self.shared.now_ns() < until && !(closed && self.dirty.is_empty()) {
            self.flush();
            if self.dirty.is_empty() && !closed {
                closed = true;
                for at in 0..self.links.len() as u32 {
                    let link = &mut self.links[at as usize];
                    if let Some(tls) = &mut link.tls {
                        tls.close(&mut link.wire);
                        self.mark_dirty(at);
                    }
                }
            }
            self.sockets.park(Duration::from_millis(1));
            self.is_leaving = true; // from here on nobody is lost
            self.turn(events);
        }
        let ids: Vec<SocketId> = self
            .links
            .iter_mut()
            .filter_map(|it| it.socket.take())
            .collect();
        ids.into_iter().for_each(|id| self.sockets.close(id));
        self.turn(events);
    }
}

/// How long after the end what was due before it may still leave.
const GRACE_NS: u64 = 100_000_000;
/// A second.
const SECOND_NS: u64 = 1_000_000_000;
/// Pause before a refused message is looked at again that is not yet the next of its stream.
const RETRY_AGAIN_NS: u64 = 2_000_000;

impl Link {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            socket: None,
            tls: None,
            decoder: Decoder::new(FRAME_BYTES_MAX),
            wire: Vec::new(),
            dirty: false,
            available_at: u32::MAX,
            attempts: 0,
        }
    }
}
