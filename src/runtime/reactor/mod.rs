//! The reactor: what one core does, in the order in which it does it.
//!
//! ```text
//!   socket ─▶ frame ─▶ session ─▶ route ─▶ ring ─▶ shard ─▶ log ─▶ sync ─▶ committed ─▶ effects
//!   └──────── inbound ────────────────────┘ └ mesh ┘ └──────────── lanes ───────────────┘    │
//!   socket ◀─ seal ◀─ session pulls ◀────────────────────── answers ◀────────────────────────┘
//!   └──────── outbound ──────────────┘
//! ```
//!
//! One task, one loop, `Core::turn`; each step is bounded, so a turn is short and every source gets
//! its share. When a turn finds nothing to do the core sleeps in its ring, until a socket, a disk, another
//! core's doorbell or the clock wakes it.
//!
//! The executor has a known defect (it can park with runnable tasks when its preempt timer fires
//! early). It cannot strike here: the core sleeps in its own ring, [`SLEEP_MAX`] at the longest, and
//! never lets the executor park (`docs/decisions/0005-the-core-sleeps-in-its-own-ring.md`).

mod answers;
mod auditing;
mod connection;
mod drain;
mod expiry;
mod hooks;
mod inbound;
mod lanes;
mod login;
mod measuring;
mod outbound;
mod patience;
mod peaks;
mod report;
mod revoking;
mod survey;
mod tracer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use hashbrown::HashMap;
use iris_proto::id::SendEpoch;
use iris_proto::v2::GoodbyeReason;

use super::admission::{Admission, Crowds};
use super::audit::Queue;
use super::clock::Clock;
use super::mesh::{Mesh, Parcel};
use super::policy::Policy;
use super::report::{CoreReport, Totals};
use super::storage::Files;
use super::stream::{Event, SLEEP_MAX, SocketId, Sockets, wait};
use super::trace::{Noted, Watch};
use crate::auth::Revocations;
use crate::limit::{Buckets, Ladder, Rate, Shed};
use crate::measure::Histograms;
use crate::placement::{CoreId, LogId, Placement, ShardId, UserHash};
use crate::ring::Sleeper;
use crate::shard::user::UserSlot;
use crate::store::Store;
pub use connection::Handoff;
use connection::{Connections, State};
use drain::Draining;
pub use drain::{FAREWELL, Farewells, SHUTDOWN_RETRY_MS};
use expiry::Alarms;
pub use hooks::{Hooks, SyncGate};
use lanes::Lanes;
use measuring::Measuring;
use outbound::PageIns;
use patience::{IDLE_RECORDS_BURST, IDLE_RECORDS_PER_S, RECORD_RESTS_MAX, TALK_BURST, TALK_PER_S};
use peaks::Turns;
use revoking::Revoking;
use survey::Survey;
use tracer::Tracer;

/// Events taken from the sockets in one turn; the rest waits for the next.
pub const EVENTS_PER_TURN: usize = 512;
/// The grain of all deadlines.
pub const TICK: Duration = SLEEP_MAX;
/// Cursors are gathered so long before they are proposed: losing one in a crash only repeats
/// deliveries, which clients recognise by `seq`.
pub const ACK_GATHER: Duration = Duration::from_millis(200);
/// A device that acknowledged so many entries since its last proposed cursor does not wait for the
/// gathering, or a fast inbox would look full.
pub const ACK_GATHER_ENTRIES: u64 = 512;
/// How long a peer may take to close after our Goodbye before we cut.
pub const CLOSING_MAX: Duration = Duration::from_secs(2);

/// What other threads may ask of a core.
#[derive(Clone, Debug)]
pub enum Control {
    /// Say how you are, in the next tick. The answer is not waited for: one that finds no room is lost.
    Report(Sender<CoreReport>),
    /// Say how long things took, in the next tick.
    Histograms {
        /// What is filled, and handed back; with `reset` what has been filled is handed over, and this takes
        /// its place.
        empty: Box<Histograms>,
        /// Whether to begin anew.
        reset: bool,
        /// Not waited for, as with `Report`.
        reply: Sender<Box<Histograms>>,
    },
    /// Watch these users from now on, and nobody else; say what was noted of those before.
    Trace {
        /// Whom, and up to when.
        watches: Vec<Watch>,
        /// Not waited for, as with `Report`.
        reply: Sender<Noted>,
    },
    /// From now on this certificate, these keys and these limits hold. Whoever is here stays.
    Adopt {
        /// What replaces the one before.
        policy: Arc<Policy>,
        /// Told when it is done.
        taken: Sender<()>,
    },
    /// From now on these tokens are refused, and whoever is here with one leaves.
    Revoke {
        /// What replaces the list before.
        list: Arc<Revocations>,
        /// Told when nobody is left whom it hits.
        taken: Sender<()>,
    },
    /// Say goodbye to everybody, finish what is under way, and end by this instant.
    Drain {
        /// What is still open then is cut.
        deadline: Instant,
    },
}

/// What a core is made from.
pub(super) struct CoreParts {
    pub id: CoreId,
    pub placement: Placement,
    pub policy: Arc<Policy>,
    pub revoked: Arc<Revocations>,
    pub audit: Queue,
    pub admission: Arc<Admission>,
    pub farewells: Arc<Farewells>,
    pub cluster: [u8; 16],
    pub logs: Vec<(LogId, Store, Files)>,
    pub mesh: Mesh,
    pub sleeper: Arc<Sleeper>,
    pub control: Receiver<Control>,
    pub hooks: Hooks,
}

/// One core's whole state. Belongs to its thread.
pub(super) struct Core {
    id: CoreId,
    placement: Placement,
    sockets: Sockets,
    /// Certificate, keys and limits. A core's own reference: a new one comes by its control channel.
    policy: Arc<Policy>,
    /// Tokens that are refused although they are good.
    revoking: Revoking,
    audit: Queue,
    /// What all cores know of addresses.
    admission: Arc<Admission>,
    /// What users may still send; `None`: as much as they like.
    rates: Option<Buckets<UserHash>>,
    talk_rate: Rate,
    /// Of records that bring nothing, and of rests for them.
    idle_rate: Rate,
    rest_rate: Rate,
    ladder: Ladder,
    /// Connections that count as strangers.
    strangers: usize,
    /// Them by their addresses.
    crowds: Crowds,
    /// Handshakes that wait for a turn with time for them.
    handshakes: VecDeque<SocketId>,
    /// One of them is done from then on, whatever else there is to do.
    next_handshake: Instant,
    /// The next connections are accepted from then on, whatever else there is to do.
    next_arrivals: Instant,
    /// Connections whose peers have ended them, to be let go; each once.
    departures: VecDeque<SocketId>,
    /// Sessions that talked too much and are not read until the next tick.
    resting: Vec<SocketId>,
    /// The place in the table that was looked at last.
    looked_at: usize,
    cluster: [u8; 16],
    lanes: Lanes,
    mesh: Mesh,
    sleeper: Arc<Sleeper>,
    control: Receiver<Control>,
    connections: Connections,
    /// Live sessions of each user that has any, for waking them.
    sessions: HashMap<(ShardId, UserSlot), Vec<SocketId>>,
    /// Live sessions that only send, of each user that has any, by send epoch.
    senders: HashMap<UserHash, Vec<(SendEpoch, SocketId)>>,
    /// Connections that are [`State::Live`].
    live_sessions: u64,
    /// Connections that may have something to send, longest waiting first; each once.
    dirty: VecDeque<SocketId>,
    /// What this turn has sent.
    sent_bytes: usize,
    /// Stalled connections whose own obstacle is gone.
    retry: Vec<SocketId>,
    /// Connections stalled because the core was congested.
    congested: Vec<SocketId>,
    /// Sessions whose cursor waits for the gathering.
    gathering: Vec<SocketId>,
    /// Those who have not said Hello, oldest first.
    greeting: VecDeque<(Instant, SocketId)>,
    /// Those who were told Goodbye, oldest first.
    closing: VecDeque<(Instant, SocketId)>,
    /// When sessions are to be warned or ended.
    alarms: Alarms,
    events: Vec<Event>,
    /// Plaintext of the connection at hand.
    plain: Vec<u8>,
    /// An encoded command on its way to a shard.
    command: Vec<u8>,
    /// Buffers for sealed bytes, kept small in number and size.
    buffers: Vec<Vec<u8>>,
    now: Clock,
    next_tick: Instant,
    next_gathering: Instant,
    draining: Option<Draining>,
    /// What all cores know of who has stopped.
    farewells: Arc<Farewells>,
    /// Page-ins under way, and those who wait for one of them to end.
    page_ins: PageIns,
    waiting_to_populate: Vec<SocketId>,
    totals: Totals,
    /// How full it was lately.
    turns: Turns,
    /// What its users' inboxes hold, looked at while somebody asks.
    survey: Survey,
    measuring: Measuring,
    tracer: Tracer,
}

impl Core {
    pub(super) fn new(parts: CoreParts, sockets: Sockets) -> Self {
        let now = Clock::read();
        Self {
            id: parts.id,
            placement: parts.placement,
            sockets,
            rates: parts.policy.limits.messages.map(Buckets::new),
            policy: parts.policy,
            revoking: Revoking::new(parts.revoked),
            audit: parts.audit,
            admission: parts.admission,
            talk_rate: Rate::new(TALK_PER_S, 1, TALK_BURST).expect("more than none"),
            idle_rate: Rate::new(IDLE_RECORDS_PER_S, 1, IDLE_RECORDS_BURST).expect("as above"),
            rest_rate: Rate::new(1, 1, RECORD_RESTS_MAX).expect("as above"),
            ladder: Ladder::default(),
            strangers: 0,
            crowds: Crowds::default(),
            handshakes: VecDeque::new(),
            next_handshake: now.monotonic,
            next_arrivals: now.monotonic,
            departures: VecDeque::new(),
            resting: Vec::new(),
            looked_at: 0,
            cluster: parts.cluster,
            lanes: Lanes::new(
                parts.placement,
                parts.logs,
                now.monotonic,
                parts.hooks.sync_gate,
            ),
            mesh: parts.mesh,
            sleeper: parts.sleeper,
            control: parts.control,
            connections: Connections::default(),
            sessions: HashMap::new(),
            senders: HashMap::new(),
            live_sessions: 0,
            dirty: VecDeque::new(),
            sent_bytes: 0,
            retry: Vec::new(),
            congested: Vec::new(),
            gathering: Vec::new(),
            greeting: VecDeque::new(),
            closing: VecDeque::new(),
            alarms: Alarms::default(),
            events: Vec::with_capacity(EVENTS_PER_TURN),
            plain: Vec::new(),
            command: Vec::new(),
            buffers: Vec::new(),
            now,
            next_tick: now.monotonic,
            next_gathering: now.monotonic,
            draining: None,
            farewells: parts.farewells,
            page_ins: PageIns::default(),
            waiting_to_populate: Vec::new(),
            totals: Totals::default(),
            turns: Turns::default(),
            survey: Survey::new(now.monotonic),
            measuring: Measuring::new(now.unix_ms),
            tracer: Tracer::new(now.monotonic),
        }
    }

    /// Starts to accept connections.
    pub(super) fn listen(&mut self, listener: std::net::TcpListener) {
        self.sockets.listen(listener);
    }

    /// Runs until it has been drained; how far each of its logs is durable then.
    pub(super) async fn run(mut self) -> Vec<(LogId, u64)> {
        while !self.turn() {
            if self.is_idle() {
                // Mail that would not be taken keeps nobody awake: the end of a flush does.
                let (mesh, takes_mail) = (&self.mesh, self.takes_mail());
                if self.sleeper.may_sleep(|| takes_mail && mesh.has_mail()) {
                    wait(&mut self.sockets).await;
                    self.sleeper.woke();
                    self.totals.sleeps += 1;
                }
            }
        }
        self.tell_the_end();
        // A bounded channel keeps what nobody will take: who asked shall not wait for an answer.
        drop(self.control.try_iter().last());
        self.lanes.durable_ends()
    }

    /// One turn. True when the core has been drained and may end.
    fn turn(&mut self) -> bool {
        self.now = Clock::read();
        self.totals.turns += 1;
        let (is_congested, now_us) = (self.is_congested(), self.now_us());
        self.ladder.look(is_congested, now_us);
        let is_idle = !self.take_events() & !self.take_mail();
        self.come_and_go(is_idle);
        self.shake_hands(is_idle);
        self.carry_out();
        self.retry_stalled();
        self.tick();
        self.sweep();
        let more_input = self.sockets.has_work();
        let pending = self.lanes.pending_bytes() as u64;
        self.turns.pending.note(now_us, pending);
        self.poll_lanes(more_input);
        self.carry_out();
        self.send_dirty();
        self.publish();
        self.is_drained()
    }

    /// Whether the next turn would find nothing to do. What is under way rings the eventfd.
    fn is_idle(&mut self) -> bool {
        let may_go_on = self.retry.is_empty() && self.congested.is_empty();
        self.dirty.is_empty()
            && self.handshakes.is_empty()
            && !self.sockets.may_accept_more(login::ARRIVALS_AT_ONCE)
            && self.departures.is_empty()
            && (may_go_on || self.is_congested() || self.draining.is_some())
            && self.lanes.effects.is_empty()
            && !self.revoking.is_sweeping()
            && !self.lanes.can_launch()
            && !self.mesh.is_dirty()
            && self.now.monotonic < self.next_tick
            && !self.sockets.has_work()
    }

    /// Takes what has come from sockets and disks; whether anything had.
    fn take_events(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.sockets.turn(&mut events, EVENTS_PER_TURN);
        self.totals.events += events.len() as u64;
        self.turns.events.note(self.now_us(), events.len() as u64);
        let has_come = !events.is_empty();
        for event in events.drain(..) {
            match event {
                Event::Accepted { socket } => self.accepted(socket),
                Event::AcceptFailed { errno } => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    tracing::warn!(core = self.id.0, %error, "a connection could not be accepted; accepting goes on after a pause");
                }
                Event::Received { id, buffer } => {
                    self.now.touch();
                    self.received(id, buffer);
                }
                Event::Ended { id, reason } => self.ended(id, reason),
                Event::Sent { id, buffer, result } => self.sent(id, buffer, result),
                Event::Detached { id, socket } => self.detached(id, socket),
                Event::Job {
                    job,
                    result,
                    buffers,
                } => self.job_done(job, result, buffers),
                Event::Paused { .. } => {}
                Event::Connected { .. } => unreachable!("a switch connects to nobody"),
            }
        }
        self.events = events;
        has_come
    }

    fn job_done(&mut self, job: u64, result: Result<(), i32>, buffers: Vec<Vec<u8>>) {
        match outbound::populated_for(job) {
            Some((id, page_in)) => self.populated(id, page_in, result),
            None => {
                self.now.touch();
                let set = &mut self.measuring.set;
                self.lanes.synced(job, result, buffers, &mut self.now, set);
            }
        }
    }

    /// Whether mail is taken now. Who sheds sends takes them, to say so.
    fn takes_mail(&self) -> bool {
        !self.lanes.is_congested() || self.ladder.shed() >= Shed::Sends
    }

    /// Takes what has come from other cores; whether anything had.
    fn take_mail(&mut self) -> bool {
        let now_us = self.now_us();
        self.turns.parcels.note(now_us, self.mesh.waiting() as u64);
        if !self.takes_mail() {
            return false; // the rings fill, and then the cores behind them stop reading
        }
        let mut mail = Vec::new();
        self.mesh.receive(|from, parcel| mail.push((from, parcel)));
        let has_come = !mail.is_empty();
        if has_come {
            self.now.touch();
        }
        for (from, parcel) in mail {
            match parcel {
                Parcel::Messages { bytes, published } => {
                    self.read_parcel(&bytes, published);
                    self.mesh.give_back(from, bytes);
                }
                Parcel::Connection(handoff) => self.entered(*handoff),
                Parcel::Empty(_) => {}
            }
        }
        has_come
    }

    /// What happens by the clock: every [`TICK`], or as soon after as the core gets to it.
    fn tick(&mut self) {
        if self.now.monotonic < self.next_tick {
            return;
        }
        self.next_tick = self.now.monotonic + TICK;
        let set = &mut self.measuring.set;
        self.lanes.release_held(&mut self.now, set);
        if self.page_ins.turn() {
            self.lanes.unmap_removed();
        }
        while let Ok(control) = self.control.try_recv() {
            match control {
                Control::Drain { deadline } => self.drain(deadline),
                Control::Adopt { policy, taken } => {
                    self.adopt(policy);
                    let _ = taken.try_send(()); // who sent it may have given up waiting
                }
                Control::Revoke { list, taken } => self.revoke(list, taken),
                Control::Histograms {
                    empty,
                    reset,
                    reply,
                } => {
                    let _ = reply.try_send(self.hand_over_histograms(empty, reset));
                }
                Control::Trace { watches, reply } => {
                    let _ = reply.try_send(self.watch(watches));
                }
                Control::Report(reply) => {
                    let _ = reply.try_send(self.report()); // who asked may have left
                }
            }
        }
        while let Some(id) = pop_due(&mut self.greeting, self.now.monotonic) {
            let still = self.connections.get(id).is_some_and(|connection| {
                matches!(connection.state, State::Greeting | State::Entering(_))
            });
            let is_mute = |connection: &mut connection::Connection| connection.tls.is_handshaking();
            if self.connections.get(id).is_some_and(is_mute) {
                self.drop_connection(id); // nothing can be said to it
            } else if still {
                self.say_goodbye(id, GoodbyeReason::HelloTimeout, 0);
            }
        }
        while let Some(id) = pop_due(&mut self.closing, self.now.monotonic) {
            self.drop_connection(id);
        }
        self.look_at_inboxes();
        self.end_watches();
        self.expire_sessions();
        self.end_rests();
        self.look_around();
        self.send_away();
        if self.now.monotonic >= self.next_gathering {
            self.next_gathering = self.now.monotonic + ACK_GATHER;
            self.gather_cursors();
        }
    }

    /// Takes a new policy. Handshakes and logins that have begun end by the one that they met, and nobody
    /// waits for a Hello longer than the new one says.
    fn adopt(&mut self, policy: Arc<Policy>) {
        let latest = self.now.monotonic + policy.hello_timeout;
        for (deadline, _) in &mut self.greeting {
            *deadline = latest.min(*deadline); // the queue stays in order
        }
        self.rates = match (self.rates.take(), policy.limits.messages) {
            (Some(mut rates), Some(rate)) => {
                rates.set_rate(rate); // what was taken stays taken
                Some(rates)
            }
            (_, rate) => rate.map(Buckets::new),
        };
        self.policy = policy;
    }

    /// The instant of this turn, for rates.
    fn now_us(&self) -> u64 {
        self.admission.us_of(self.now.monotonic)
    }

    /// Whether nothing more should be read from sockets.
    fn is_congested(&self) -> bool {
        self.lanes.is_congested() || self.mesh.is_congested()
    }
}

fn pop_due(queue: &mut VecDeque<(Instant, SocketId)>, now: Instant) -> Option<SocketId> {
    if queue.front()?.0 > now {
        return None;
    }
    queue.pop_front().map(|(_, id)| id)
}

/// A number below `below`, spread by an ordinary mixing function: jitter needs no secrecy.
fn jitter_ms(seed: u64, below: u64) -> u64 {
    let mixed = (seed ^ (seed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * u128::from(below)) >> 64) as u64
}
