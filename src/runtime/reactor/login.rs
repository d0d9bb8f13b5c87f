//! From a stranger to a session: accepting, the TLS handshake's budget, Hello, the way to the user's core.
//!
//! ```text
//!   accept ─▶ room? ─▶ handshake, a few each turn ─▶ Hello ─▶ token ─▶ (ring) ─▶ device durable ─▶ Live
//!               └ no: closed, and counted               └ no: Goodbye, and counted
//! ```
//!
//! Strangers have room of their own, `limits.handshakes_per_core`: however many come, they take no place
//! of a session; and one address has a part of it, `limits.handshakes_per_address`. What they cost a core is
//! bounded: so many are accepted ([`ARRIVALS_AT_ONCE`]), let go
//! ([`DEPARTURES_PER_TURN`]), and one step of one handshake is done ([`HANDSHAKE_PAUSE_MAX`]), when nothing
//! else is to be done, or a millisecond after the last ones. Whoever comes beyond it waits in the kernel's
//! queue, or here with what it sent: so a storm takes the time that sessions leave.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iris_proto::id::Seq;
use iris_proto::limits::FRAME_BYTES_MAX;
use iris_proto::v2::{self, GoodbyeReason};
use iris_proto::wire::{self, HelloRef};

use super::Core;
use super::answers::{DISK_RETRY_MS, UNAVAILABLE_RETRY_MS};
use super::connection::{Connection, Handoff, Live, Login, Luggage, State};
use crate::auth::{Claims, claimed_user};
use crate::limit::Shed;
use crate::placement::ShardId;
use crate::runtime::admission::Guest;
use crate::runtime::stream::{SocketId, peer_of};
use crate::runtime::tls::{PARTIAL_BYTES_MAX, Tls};
use crate::session::login::{check_version, identify, welcome};
use crate::session::{Identity, Session};
use crate::shard::user::{Device, UserSlot};
use crate::shard::{Input, ReplyTo};
use crate::stamp::Stamp;

/// A step of a TLS handshake costs some 100 to 200 us (`docs/BENCHMARKS.md`), for which every session of
/// the core waits. So it is done in a turn that has nothing else to do, one each turn; but one is done
/// whatever there is, when the last one was so long ago: a busy core gives strangers a fifth of its time.
pub const HANDSHAKE_PAUSE_MAX: Duration = Duration::from_millis(1);
/// Connections that are accepted at once, by some 10 us each, also if they are only closed again. The next
/// ones are in a turn that has nothing else to do, or after [`ARRIVALS_PAUSE_MAX`].
pub const ARRIVALS_AT_ONCE: usize = 8;
/// So a busy core gives arrivals a tenth of its time.
pub const ARRIVALS_PAUSE_MAX: Duration = Duration::from_millis(1);
/// Connections that one turn lets go whose peers have ended them, by some 10 us each.
pub const DEPARTURES_PER_TURN: usize = 8;
/// How long a stranger may take to log in when others want his room.
pub const PATIENCE_WHEN_FULL: Duration = Duration::from_secs(1);
/// Bytes of a stranger that wait for his turn, once he was answered; of others it is what a handshake may
/// take. More: he is cut, if he was not answered yet; what comes right behind a Hello is not held back, the
/// step is done at once.
const WAITING_BYTES_MAX: usize = PARTIAL_BYTES_MAX;
/// Clients that find a core full come back within so many milliseconds, spread by jitter.
pub const FULL_RETRY_MS: u64 = 10_000;

/// Clients whose user has too many sessions come back after so many milliseconds.
const SESSIONS_RETRY_MS: u64 = 10_000;

/// Why, and after how many milliseconds to come back.
type Leave = (GoodbyeReason, u64);

impl Core {
    /// Lets some come if there is time, and lets some go whose peers are gone.
    pub(super) fn come_and_go(&mut self, is_idle: bool) {
        if is_idle || self.now.monotonic >= self.next_arrivals {
            self.next_arrivals = self.now.monotonic + ARRIVALS_PAUSE_MAX;
            self.sockets.accept_up_to(ARRIVALS_AT_ONCE);
        }
        for _ in 0..DEPARTURES_PER_TURN {
            let Some(id) = self.departures.pop_front() else {
                break;
            };
            self.drop_connection(id);
        }
    }

    pub(super) fn accepted(&mut self, socket: OwnedFd) {
        // Before TLS nothing can be said: a socket that is dropped is closed.
        let address = peer_of(&socket).map(|peer| peer.ip());
        let Some(guest) = self.admit(address) else {
            return;
        };
        let mut tls = match Tls::server(self.policy.tls.clone()) {
            Ok(tls) => tls,
            Err(error) => {
                tracing::error!(core = self.id.0, %error, "no TLS session could be made");
                return;
            }
        };
        tls.bound_handshake(self.policy.handshake_bytes_max);
        self.totals.accepted += 1;
        self.strangers += 1;
        self.crowds.enter(address);
        let id = self.sockets.adopt(socket);
        self.connections.insert(Box::new(Connection::greeting(
            id,
            tls,
            (address, guest),
            Stamp::of(self.now.ns),
        )));
        self.greeting
            .push_back((self.now.monotonic + self.policy.hello_timeout, id));
    }

    /// Whether there is room for one more stranger, and for one from there; if not, it is counted.
    fn admit(&mut self, address: Option<IpAddr>) -> Option<Option<Guest>> {
        self.make_room();
        let limits = &self.policy.limits;
        let refused = if self.draining.is_some() {
            &mut self.totals.refused_draining
        } else if self.ladder.shed() >= Shed::Connections {
            &mut self.totals.shed_connections
        } else if self.strangers >= limits.handshakes_per_core {
            &mut self.totals.refused_handshakes
        } else if self.sockets.count() - self.strangers >= self.policy.connections_per_core_max {
            &mut self.totals.refused_full
        } else if limits
            .handshakes_per_address
            .is_some_and(|max| self.crowds.of(address) >= max)
        {
            &mut self.totals.refused_crowd
        } else {
            let Some((address, max)) = address.zip(limits.connections_per_address) else {
                return Some(None);
            };
            let guest = self.admission.enter(address, max);
            if guest.is_none() {
                self.totals.refused_address += 1;
            }
            return guest.map(Some);
        };
        *refused += 1;
        None
    }

    /// When strangers have no room left, those go who came first and have not logged in within
    /// [`PATIENCE_WHEN_FULL`]: else who says nothing would keep out who does.
    fn make_room(&mut self) {
        while self.strangers >= self.policy.limits.handshakes_per_core
            && let Some((deadline, id)) = self.greeting.front().copied()
        {
            let came = deadline.checked_sub(self.policy.hello_timeout);
            let is_old = came.is_some_and(|came| came + PATIENCE_WHEN_FULL <= self.now.monotonic);
            match self.connections.get(id) {
                Some(connection) if connection.is_stranger => {
                    if !is_old {
                        return;
                    }
                    self.totals.refused_handshakes += 1;
                    self.drop_connection(id);
                }
                Some(connection) if matches!(connection.state, State::Entering(_)) => return,
                _ => {} // it is gone, or in: its deadline is nobody's
            }
            self.greeting.pop_front();
        }
    }

    /// Keeps what a stranger sent until a turn has time for his handshake. False: it is too much.
    pub(super) fn wait_for_handshake(&mut self, connection: &mut Connection, data: &[u8]) -> bool {
        let max = match connection.answered {
            false => self.policy.handshake_bytes_max,
            true => WAITING_BYTES_MAX,
        };
        if connection.backlog.len() + data.len() > max {
            return false;
        }
        connection.backlog.extend_from_slice(data);
        if !std::mem::replace(&mut connection.shaking, true) {
            self.totals.deferred_handshakes += u64::from(!self.handshakes.is_empty());
            self.handshakes.push_back(connection.id);
        }
        true
    }

    /// Goes on with a handshake that waits, if the turn has nothing else to do or it is time.
    pub(super) fn shake_hands(&mut self, is_idle: bool) {
        if !is_idle && self.now.monotonic < self.next_handshake {
            return;
        }
        while let Some(id) = self.handshakes.pop_front() {
            let Some(mut connection) = self.connections.take(id) else {
                continue;
            };
            let was_waiting = std::mem::take(&mut connection.shaking);
            if !was_waiting || matches!(connection.state, State::Closing) {
                self.connections.put_back(connection);
                continue; // its step was done, or it was waited for too long
            }
            self.take_step(connection, &[]);
            self.next_handshake = self.now.monotonic + HANDSHAKE_PAUSE_MAX;
            return;
        }
    }

    /// Opens what waits of a connection, and `more` behind it.
    pub(super) fn take_step(&mut self, mut connection: Box<Connection>, more: &[u8]) {
        connection.shaking = false;
        self.now.touch();
        let mut data = std::mem::take(&mut connection.backlog);
        data.extend_from_slice(more);
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let opened = connection
            .tls
            .open(&mut data, &mut plain, &mut connection.wire);
        connection.answered |= !connection.wire.is_empty();
        self.opened(connection, opened, plain);
    }

    /// A connection is no stranger's any more, or no more.
    pub(super) fn no_stranger(&mut self, connection: &mut Connection) {
        if std::mem::take(&mut connection.is_stranger) {
            self.strangers -= 1;
            self.crowds.leave(connection.address);
        }
    }

    pub(super) fn hello(
        &mut self,
        connection: &mut Connection,
        hello: &HelloRef<'_>,
    ) -> Result<(), Leave> {
        let at_once = |reason| (reason, 0);
        check_version(hello).map_err(at_once)?;
        let claims = self.verify(connection.address, hello.token)?;
        let hash = self.placement.user_hash(claims.user.as_str());
        let login = Box::new(Login {
            identity: identify(claims, hello, hash).map_err(at_once)?,
            resume_after: hello.resume_after,
            session: random_u64(),
            at: self.now.monotonic,
            read: Stamp::of(self.now.ns),
        });
        let home = self.placement.core_of(self.placement.shard_of(hash));
        self.no_stranger(connection);
        if home == self.id {
            self.enter(connection, login);
        } else {
            connection.state = State::Leaving(login, home);
            self.mark_dirty(connection); // once all is sent, it is detached
        }
        Ok(())
    }

    /// Who a token speaks for. A good one is taken wherever it comes from, or one bad client would shut
    /// out all that share its address: the signature costs less than the handshake before it did. Who
    /// fails too often is told when to try again.
    fn verify(&mut self, address: Option<IpAddr>, token: &str) -> Result<Claims, Leave> {
        let verified = self.policy.keyring.verify(token, self.now.unix_s());
        let error = match verified {
            Ok(claims) => return Ok(claims),
            Err(error) => error,
        };
        tracing::debug!(core = self.id.0, %error, "a login was refused");
        self.audit_refusal(error.word(), address, None);
        if let Some(address) = address {
            let policy = Arc::clone(&self.policy);
            let (rates, now_us) = (&policy.limits.failed_logins, self.now_us());
            let user = claimed_user(token);
            let user = user.as_deref();
            if let Err(retry_ms) = self.admission.may_log_in(address, user, rates, now_us) {
                self.totals.refused_logins += 1;
                return Err((GoodbyeReason::Overloaded, retry_ms));
            }
            self.admission.log_in_failed(address, user, rates, now_us);
        }
        self.totals.failed_logins += 1;
        Err((GoodbyeReason::BadToken, 0))
    }

    /// The last completion of a leaving connection has come: it goes to its user's core, unless it
    /// broke the rules of TLS meanwhile.
    pub(super) fn detached(&mut self, id: SocketId, socket: OwnedFd) {
        let Some(connection) = self.connections.take(id) else {
            return; // it ended on the way; dropping the socket closes it
        };
        let Connection {
            tls,
            decoder,
            state,
            backlog,
            guest,
            address,
            ..
        } = *connection;
        if let State::Leaving(login, home) = state {
            let luggage = Luggage {
                tls,
                decoder,
                login,
                backlog,
                address,
                guest,
            };
            self.mesh.hand_over(home, Handoff { socket, luggage });
        }
    }

    /// A connection has come from another core.
    pub(super) fn entered(&mut self, handoff: Handoff) {
        if self.draining.is_some() {
            self.totals.refused_draining += 1;
            return; // the client sees the end of the connection and comes back elsewhere
        }
        let id = self.sockets.adopt(handoff.socket);
        let (connection, login) = Connection::entering(id, handoff.luggage);
        let mut connection = Box::new(connection);
        self.enter(&mut connection, login);
        if !connection.backlog.is_empty() {
            self.stall(&mut connection);
        }
        self.connections.insert(connection);
    }

    /// The user lives on this core. A device must be known durably before its session begins.
    fn enter(&mut self, connection: &mut Connection, login: Box<Login>) {
        let identity = login.identity.clone();
        connection.state = State::Entering(login);
        if self.turn_away(connection, &identity) {
            return;
        }
        let shard = self.placement.shard_of(identity.hash);
        // Itself included.
        let is_full = self.sockets.count() - self.strangers > self.policy.connections_per_core_max;
        let is_shed = self.ladder.shed() >= Shed::Connections;
        if is_full || is_shed {
            self.totals.refused_full += u64::from(is_full);
            self.totals.shed_connections += u64::from(!is_full);
            let seed = connection.id.slot as u64 ^ self.now.unix_ms;
            let retry_ms = super::jitter_ms(seed, FULL_RETRY_MS);
            self.leave(connection, GoodbyeReason::Overloaded, retry_ms);
            return;
        }
        if identity.send_only {
            self.go_live(connection);
            return;
        }
        if self.lanes.shard(shard).is_none() {
            self.leave(connection, GoodbyeReason::Unavailable, UNAVAILABLE_RETRY_MS);
            return;
        }
        if !self.lanes.has_space(shard) && !self.is_known(&identity, shard) {
            self.leave(connection, GoodbyeReason::Overloaded, DISK_RETRY_MS);
            return;
        }
        let deadline = self.now.monotonic + self.policy.hello_timeout;
        self.greeting.push_back((deadline, connection.id));
        let reply = ReplyTo {
            core: self.id,
            slot: connection.id.slot,
            generation: connection.id.generation,
            tag: 0,
            read: Stamp::default(),
        };
        let input = Input::Register {
            hash: identity.hash,
            user: identity.user.as_str(),
            device: identity.device.as_str(),
            reply,
        };
        self.lanes.step(&self.now, shard, input);
    }

    /// Whether a device can begin without a write.
    fn is_known(&self, identity: &Identity, shard: ShardId) -> bool {
        let Some(shard) = self.lanes.shard(shard) else {
            return false;
        };
        let users = shard.users();
        let user = users.find(identity.user.as_str(), identity.hash);
        user.is_some_and(|user| users.get(user).device(identity.device.as_str()).is_some())
    }

    /// Ends the older session that a new one replaces, and sees whether its user may have one more.
    fn take_place(
        &mut self,
        identity: &Identity,
        shard: ShardId,
        user: Option<UserSlot>,
        at: Instant,
    ) -> Result<(), Leave> {
        let is_newest = match user {
            Some(user) => self.replace_older(shard, user, &identity.device, at),
            None => !identity.send_only || self.replace_older_sender(identity, at),
        };
        if !is_newest {
            return Err((GoodbyeReason::Replaced, 0));
        }
        if self.sessions_of(shard, identity) >= self.policy.limits.sessions_per_user {
            self.totals.refused_sessions += 1;
            return Err((GoodbyeReason::TooManySessions, SESSIONS_RETRY_MS));
        }
        Ok(())
    }

    /// Turns an entering connection into a session and says Welcome.
    pub(super) fn go_live(&mut self, connection: &mut Connection) {
        let State::Entering(login) = &connection.state else {
            unreachable!("only entering connections go live");
        };
        let (identity, at, read) = (login.identity.clone(), login.at, login.read);
        let (resume_after, session) = (login.resume_after, login.session);
        // Before it replaces one that may stay.
        if self.turn_away(connection, &identity) {
            return;
        }
        let shard = self.placement.shard_of(identity.hash);
        let users = self.lanes.shard(shard).map(|shard| shard.users());
        let slot = users.and_then(|users| users.find(identity.user.as_str(), identity.hash));
        let user = slot.filter(|_| !identity.send_only);
        // Replacing settles the cursor.
        if let Err((reason, retry_ms)) = self.take_place(&identity, shard, user, at) {
            return self.leave(connection, reason, retry_ms);
        }
        let inbox = user.zip(self.lanes.shard(shard));
        let (head, oldest, cursor) = inbox.map_or((Seq(0), Seq(1), Seq(0)), |(slot, shard)| {
            let user = shard.users().get(slot);
            let device = user.device(identity.device.as_str());
            (
                user.head(),
                user.oldest(),
                device.map_or(Seq(0), Device::position),
            )
        });
        let start = Session::start(resume_after, cursor, oldest, head);
        let welcome = v2::Welcome {
            session,
            server_time_ms: self.now.unix_ms,
            head_seq: head.0,
            cursor: start.0,
            oldest_seq: oldest.0,
            cluster: self.cluster.to_vec(),
            ..welcome(&identity)
        };
        let welcome = v2::server_frame::Frame::Welcome(welcome);
        wire::encode_server(&mut connection.out, welcome);
        if let Some(user) = user {
            self.sessions
                .entry((shard, user))
                .or_default()
                .push(connection.id);
        }
        if identity.send_only {
            let senders = self.senders.entry(identity.hash).or_default();
            senders.push((identity.epoch, connection.id));
        }
        connection.decoder.set_max(FRAME_BYTES_MAX);
        self.audit_login(&identity, connection.address);
        let session = Session::new(identity, cursor, start);
        let mut live = Live::new(session, (at, read), shard, user, cursor);
        self.set_alarm(&mut live, connection.id);
        connection.state = State::Live(Box::new(live));
        self.live_sessions += 1;
        self.totals.logins += 1;
        self.welcomed(read);
        self.mark_dirty(connection);
        if connection.stalled {
            self.retry_later(connection);
        }
    }
}

/// A random name for a session; not a secret.
fn random_u64() -> u64 {
    getrandom::u64().unwrap_or_default()
}
