//! A device and the program on it, as a person uses it: the real client session, driven the way a
//! program drives it.
//!
//! What a program has written to its own disk survives its restarts, nothing else does. It acknowledges
//! only what it has written there. How it behaves beyond that is its [`Habits`]: some acknowledge at
//! once, some late, some never until the end; some lose their file; some stay away for long.

use std::collections::BTreeMap;

use iris_proto::client::{
    Backoff, Config, Disconnect, End, Event as Happened, Session, Step, Ticket,
};
use iris_proto::id::{DeviceId, Seq, UserId};
use iris_proto::reject::GoodbyeReason;

use super::check::{Check, user_name};
use super::model::MessageNo;
use super::net::{ConnId, Net, Notice, Side};
use super::world::{Event, World};

/// Messages without an answer over which a user waits.
const UNANSWERED_MAX: usize = 40;

/// How a device behaves.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Microseconds between two things that its user does, at most.
    pub act_max_us: u64,
    /// Messages that its user sends at a time.
    pub burst_max: u64,
    /// Bytes of a body.
    pub body_max: u64,
    /// Of a hundred entries so many are written to its disk, and acknowledged, as they come.
    pub prompt_percent: u64,
    /// Whether it acknowledges before the end at all.
    pub acknowledges: bool,
    /// Of a hundred acts so many end the program.
    pub restart_percent: u64,
    /// Of a hundred acts so many cut its connection.
    pub cut_percent: u64,
    /// Microseconds that it stays away after it ended.
    pub away_max_us: u64,
    /// Of a hundred restarts so many find their file gone.
    pub forget_percent: u64,
    /// It only sends: it has no inbox.
    pub send_only: bool,
}

/// One device.
#[derive(Debug)]
pub struct Client {
    id: usize,
    user: usize,
    device: String,
    habits: Habits,
    /// Users there are.
    users: usize,
    session: Option<Session>,
    life: u32,
    conn: Option<ConnId>,
    is_connected: bool,
    /// What the session's Hello asked for.
    asked: Option<u64>,
    alarm: u64,
    messages: BTreeMap<Ticket, MessageNo>,
    fetched: Option<u64>,
    /// The program's position: what its session resumes after.
    position: Option<u64>,
    /// What is on the device's own disk.
    kept: Option<u64>,
    /// From now on it only receives and acknowledges.
    is_calm: bool,
}

/// What surrounds a client.
pub struct Around<'a> {
    /// Clock, chance, trace.
    pub world: &'a mut World,
    /// Connections.
    pub net: &'a mut Net,
    /// Who watches.
    pub check: &'a mut Check,
}

impl Client {
    /// A device whose program has never run.
    #[must_use]
    pub fn new(id: usize, user: usize, device: String, users: usize, habits: Habits) -> Self {
        Self {
            id,
            user,
            device,
            habits,
            users,
            session: None,
            life: 0,
            conn: None,
            is_connected: false,
            asked: None,
            alarm: 0,
            messages: BTreeMap::new(),
            fetched: None,
            position: None,
            kept: None,
            is_calm: false,
        }
    }

    /// The program starts, with what is on the device's disk.
    pub fn start(&mut self, around: &mut Around<'_>) {
        if self.session.is_some() {
            return;
        }
        self.life += 1;
        let Ok(device) = DeviceId::new(&self.device) else {
            unreachable!("device names are made here");
        };
        if around.world.dice.percent(self.habits.forget_percent) {
            self.kept = None;
        }
        self.position = self.kept;
        if let Some(kept) = self.kept {
            around.check.acknowledged(self.id, kept); // its session says so by itself
        }
        let (id, life, kept) = (self.id, self.life, self.kept);
        around
            .world
            .note(|| format!("client {id}: program {life} starts after {kept:?}"));
        self.session = Some(Session::new(Config {
            device: Some(device),
            resume_after: self.kept.map(Seq),
            cluster: None,
            send_only: self.habits.send_only,
            seed: around.world.dice.roll(),
            backoff: Backoff {
                base_ms: 20,
                max_ms: 1_000,
            },
        }));
        self.pump(around);
        self.act_later(around.world);
    }

    fn act_later(&self, world: &mut World) {
        let delay = world.dice.range(1_000, self.habits.act_max_us);
        world.after(delay, Event::Act(self.id));
    }

    /// The program ends at once, whatever it was at.
    fn stop(&mut self, around: &mut Around<'_>, away_us: u64) {
        let (id, life) = (self.id, self.life);
        around
            .world
            .note(|| format!("client {id}: program {life} ends"));
        self.session = None;
        self.let_go(around);
        around
            .check
            .abandoned(std::mem::take(&mut self.messages).into_values());
        self.fetched = None;
        around.world.after(away_us, Event::Program(self.id));
    }

    fn let_go(&mut self, around: &mut Around<'_>) {
        if let Some(conn) = self.conn.take() {
            around.net.close(around.world, conn, Side::Client);
        }
        self.is_connected = false;
    }

    /// From now on it behaves: it is there, reads, and acknowledges.
    pub fn calm(&mut self, around: &mut Around<'_>) {
        self.is_calm = true;
        self.habits.forget_percent = 0;
        self.start(around);
    }

    /// Its user does something.
    pub fn act(&mut self, around: &mut Around<'_>) {
        if self.session.is_none() {
            return;
        }
        if self.is_calm {
            self.keep(around, self.position, true);
            self.pump(around);
            return around.world.after(50_000, Event::Act(self.id));
        }
        let roll = around.world.dice.below(100);
        let restarts = self.habits.restart_percent;
        if roll < restarts {
            let away_us = around.world.dice.skewed(1_000, self.habits.away_max_us);
            return self.stop(around, away_us);
        }
        if roll < restarts + self.habits.cut_percent {
            self.cut(around);
        } else if roll < 90 {
            self.send_some(around);
        } else if roll < 95 {
            self.fetch_some(around);
        } else {
            self.keep(around, self.position, self.habits.acknowledges);
        }
        self.pump(around);
        self.act_later(around.world);
    }

    fn cut(&mut self, around: &mut Around<'_>) {
        let Some(conn) = self.conn else { return };
        if around.world.dice.percent(50) {
            around.net.sever(around.world, conn);
        } else {
            let for_us = around.world.dice.skewed(1_000, 3_000_000);
            let side = if around.world.dice.percent(50) {
                Side::Client
            } else {
                Side::Switch
            };
            around.net.stall(around.world, conn, side, for_us);
        }
    }

    fn send_some(&mut self, around: &mut Around<'_>) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.unanswered() > UNANSWERED_MAX {
            return;
        }
        let burst = around.world.dice.range(1, self.habits.burst_max);
        let mut to = around.world.dice.index(self.users);
        for _ in 0..burst {
            if around.world.dice.percent(30) {
                to = around.world.dice.index(self.users);
            }
            let Ok(name) = UserId::new(&user_name(to)) else {
                unreachable!("user names are made here");
            };
            let len = around.world.dice.skewed(0, self.habits.body_max) as usize;
            let (no, id, body) = around.check.new_message(self.id, self.life, to, len);
            match session.send(&name, id, body) {
                Ok(ticket) => {
                    self.messages.insert(ticket, no);
                }
                Err(_) => around.check.not_taken(no),
            }
        }
    }

    fn fetch_some(&mut self, around: &mut Around<'_>) {
        let Some(session) = &mut self.session else {
            return;
        };
        let after = around.world.dice.below(self.position.unwrap_or(0) + 3);
        let limit = around.world.dice.range(1, 20) as u32;
        if session.fetch(Seq(after), limit).is_some() {
            self.fetched = Some(after);
        }
    }

    /// Writes a position to the device's disk, and perhaps acknowledges it.
    fn keep(&mut self, around: &mut Around<'_>, seq: Option<u64>, acknowledge: bool) {
        let (Some(session), Some(seq)) = (&mut self.session, seq) else {
            return;
        };
        self.kept = Some(self.kept.unwrap_or(0).max(seq));
        if acknowledge && seq > 0 {
            session.ack(around.world.now_ms(), Seq(seq));
            around.check.acknowledged(self.id, seq);
        }
    }

    /// A connection attempt has succeeded, or not.
    pub fn connected(&mut self, around: &mut Around<'_>, conn: ConnId, is_up: bool) {
        if self.conn != Some(conn) {
            return;
        }
        let now_ms = around.world.now_ms();
        let Some(session) = &mut self.session else {
            return;
        };
        if is_up {
            self.is_connected = true;
            self.asked = self.position;
            session.connected(now_ms, &user_name(self.user));
        } else {
            self.conn = None;
            session.lost(now_ms);
        }
        self.pump(around);
    }

    /// Its connection has news.
    pub fn notice(&mut self, around: &mut Around<'_>, conn: ConnId, notice: Notice) {
        if self.conn != Some(conn) {
            return;
        }
        let now_ms = around.world.now_ms();
        let Some(session) = &mut self.session else {
            return;
        };
        match notice {
            Notice::Readable => {
                let bytes = around.net.receive(around.world, conn, Side::Client);
                session.received(now_ms, &bytes);
            }
            Notice::Writable => {}
            Notice::Ended => {
                self.let_go(around);
                if let Some(session) = &mut self.session {
                    session.lost(now_ms);
                }
            }
        }
        self.pump(around);
    }

    /// The alarm that its session asked for.
    pub fn alarm(&mut self, around: &mut Around<'_>, alarm: u64) {
        if alarm != self.alarm {
            return;
        }
        let now_ms = around.world.now_ms();
        if let Some(session) = &mut self.session {
            session.tick(now_ms);
        }
        self.pump(around);
    }

    fn wake_at(&mut self, world: &mut World, at_ms: u64) {
        self.alarm += 1;
        let at_us = at_ms.saturating_mul(1_000).max(world.now_us() + 1);
        world.at(
            at_us,
            Event::Client {
                client: self.id,
                alarm: self.alarm,
            },
        );
    }

    /// The loop of a program around its session.
    fn pump(&mut self, around: &mut Around<'_>) {
        loop {
            while let Some(happened) = self.session.as_mut().and_then(Session::event) {
                self.happened(around, happened);
            }
            let Some(session) = &mut self.session else {
                return;
            };
            match session.step() {
                Step::Connect { at_ms, .. } => {
                    if self.is_connected {
                        self.let_go(around);
                    }
                    if self.conn.is_some() {
                        return; // an attempt is under way
                    }
                    if at_ms > around.world.now_ms() {
                        return self.wake_at(around.world, at_ms);
                    }
                    self.conn = Some(around.net.connect(around.world, self.id));
                    return;
                }
                Step::Run { until_ms } => {
                    if !self.write(around) {
                        return self.wake_at(around.world, until_ms);
                    }
                }
                Step::End(end) => return self.ended(around, &end),
            }
        }
    }

    /// Writes what the session has; whether there was anything.
    fn write(&mut self, around: &mut Around<'_>) -> bool {
        let (Some(conn), Some(session)) = (self.conn, &mut self.session) else {
            return false;
        };
        if !around.net.can_send(conn, Side::Client) {
            return false;
        }
        let mut out = Vec::new();
        session.write(around.world.now_ms(), &mut out);
        if out.is_empty() {
            return false;
        }
        around.check.client_sends(around.world, conn, &out);
        around.net.send(around.world, conn, Side::Client, &out);
        true
    }

    fn ended(&mut self, around: &mut Around<'_>, end: &End) {
        let id = self.id;
        around
            .world
            .note(|| format!("client {id}: its session ended: {end}"));
        match end {
            End::Closed
            | End::Goodbye {
                reason: GoodbyeReason::Replaced,
                ..
            } => {}
            End::Goodbye { reason, .. } => {
                around
                    .world
                    .fail(|| format!("client {id}: its session ended by {reason:?}"));
            }
        }
        let away_us = around.world.dice.range(1_000, 500_000);
        self.stop(around, away_us);
    }

    fn happened(&mut self, around: &mut Around<'_>, happened: Happened) {
        let id = self.id;
        let world = &mut *around.world;
        match happened {
            Happened::Welcomed(_) if self.habits.send_only => {}
            Happened::Welcomed(welcome) => {
                around.check.welcomed(world, id, self.asked, &welcome);
                self.position = Some(welcome.cursor.0);
            }
            Happened::Accepted { ticket, .. } => {
                if let Some(no) = self.messages.remove(&ticket) {
                    around.check.accepted(world, no);
                }
            }
            Happened::Failed { ticket, reason } => {
                if let Some(no) = self.messages.remove(&ticket) {
                    world.note(|| format!("client {id}: message {no} failed: {reason}"));
                    around.check.failed(world, no, &reason);
                }
            }
            Happened::Entry(entry) => {
                let seq = entry.seq.0;
                let next = self.position.unwrap_or(0) + 1;
                if seq != next {
                    world.fail(|| format!("client {id} got {seq} and awaits {next}"));
                }
                self.position = Some(seq);
                around.check.delivered(world, id, &entry);
                if world.dice.percent(self.habits.prompt_percent) || self.is_calm {
                    self.keep(around, Some(seq), self.habits.acknowledges || self.is_calm);
                }
            }
            Happened::Gap {
                first,
                last,
                ticket,
                ..
            } => {
                let (first, last) = (first.0, last.0);
                let next = match ticket {
                    Some(_) => &mut self.fetched,
                    None => &mut self.position,
                };
                if first != next.unwrap_or(0) + 1 {
                    world.fail(|| format!("client {id} got a gap from {first} behind {next:?}"));
                }
                *next = Some(last);
                if ticket.is_none() {
                    around.check.gap(world, id, first, last);
                }
            }
            Happened::FetchedEntry { entry, .. } => {
                let after = self.fetched.unwrap_or(0);
                if entry.seq.0 != after + 1 {
                    let seq = entry.seq.0;
                    world.fail(|| format!("client {id} fetched {seq} behind {after}"));
                }
                self.fetched = Some(entry.seq.0);
                around.check.is_true(world, id, &entry);
            }
            Happened::Fetched { .. } | Happened::FetchFailed { .. } => {}
            Happened::Expiring { .. } | Happened::Renewed { .. } | Happened::RenewFailed { .. } => {
                world.fail(|| format!("client {id}: tokens do not end here"));
            }
            Happened::Disconnected(why) => self.disconnected(around, &why),
        }
    }

    fn disconnected(&mut self, around: &mut Around<'_>, why: &Disconnect) {
        let id = self.id;
        around
            .world
            .note(|| format!("client {id}: disconnected: {why:?}"));
        match why {
            Disconnect::Violation(what) => {
                around
                    .world
                    .fail(|| format!("client {id}: the switch broke the protocol: {what}"));
            }
            Disconnect::NewEpoch
                if around.check.damage.was_salvaged() || around.world.clock_was_set => {}
            Disconnect::NewEpoch => {
                around
                    .world
                    .fail(|| format!("client {id}: the switch forgot a stream"));
            }
            Disconnect::OtherCluster => {
                around
                    .world
                    .fail(|| format!("client {id}: the switch is another one"));
            }
            Disconnect::Lost | Disconnect::Silent | Disconnect::Goodbye(_) => {}
        }
    }
}
