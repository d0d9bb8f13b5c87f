//! From received bytes to what they ask for: TLS, frames, login, and the frames of a session.
//!
//! Every frame passes one gate, [`Core::gate_is_open`]. Closed, the connection *stalls*: what came
//! already is kept, and its socket is not read until the gate opens again. So the whole back-pressure
//! of the switch, from a full ring, a busy disk, a client that reads no answers, or one that asks too
//! much at once, ends in the same place: bytes that stay with whoever sends them.

use std::os::fd::OwnedFd;

use iris_proto::frame::{Decoder, FrameError};
use iris_proto::id::{MessageId, SendNumber, Seq, check_user};
use iris_proto::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX};
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire::{self, ClientFrameRef, DecodeError, HelloRef, SendRef};

use super::Core;
use super::answers::{DISK_RETRY_MS, UNAVAILABLE_RETRY_MS};
use super::connection::{Connection, Handoff, Live, Login, State};
use crate::placement::ShardId;
use crate::runtime::mesh::Message;
use crate::runtime::stream::{BufferId, Ended, SocketId};
use crate::runtime::tls::Tls;
use crate::session::login::{check_version, identify, welcome};
use crate::session::{FetchRefusal, Identity, Session};
use crate::shard::command::Append;
use crate::shard::user::Device;
use crate::shard::{Effect, Input, Refusal, ReplyTo};

/// After how many milliseconds a refused Fetch may be repeated. A guess: a page takes less.
const FETCH_RETRY_MS: u64 = 100;

/// Why a connection is told Goodbye while its frames are processed.
type Leave = GoodbyeReason;

impl Core {
    pub(super) fn accepted(&mut self, socket: OwnedFd) {
        if self.draining.is_some() || self.sockets.count() >= self.policy.connections_per_core_max {
            return; // dropped, and so closed: before TLS nothing can be said
        }
        let tls = match Tls::server(self.policy.tls.clone()) {
            Ok(tls) => tls,
            Err(error) => {
                tracing::error!(core = self.id.0, %error, "no TLS session could be made");
                return;
            }
        };
        let id = self.sockets.adopt(socket);
        self.connections
            .insert(Box::new(Connection::greeting(id, tls)));
        self.greeting
            .push_back((self.now.monotonic + self.policy.hello_timeout, id));
    }

    pub(super) fn received(&mut self, id: SocketId, buffer: BufferId) {
        let Some(mut connection) = self.connections.take(id) else {
            self.sockets.release(buffer);
            return;
        };
        if matches!(connection.state, State::Closing) {
            self.sockets.release(buffer); // what comes after our Goodbye is not read
            self.connections.put_back(connection);
            return;
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let data = self.sockets.data(&buffer);
        let opened = connection.tls.open(data, &mut plain, &mut connection.wire);
        self.sockets.release(buffer);
        if !connection.wire.is_empty() {
            self.mark_dirty(&mut connection);
        }
        match opened {
            Ok(opened) => {
                self.process(&mut connection, &plain);
                self.plain = plain;
                self.connections.put_back(connection);
                if opened.closed {
                    self.drop_connection(id);
                }
            }
            Err(error) => {
                tracing::debug!(core = self.id.0, %error, "a connection broke the rules of TLS");
                self.plain = plain;
                connection.out = Vec::new(); // nothing can be sealed any more
                self.begin_closing(&mut connection); // the alert in `wire` still goes out
                self.connections.put_back(connection);
            }
        }
    }

    /// Processes plaintext that just came, behind what waits already.
    fn process(&mut self, connection: &mut Connection, plain: &[u8]) {
        if !connection.backlog.is_empty() || !self.gate_is_open(connection) {
            connection.backlog.extend_from_slice(plain);
            if !plain.is_empty() {
                self.stall(connection);
            }
            return;
        }
        let rest = self.process_frames(connection, plain);
        if !rest.is_empty() {
            connection.backlog.extend_from_slice(rest);
            self.stall(connection);
        }
    }

    /// Whether the next frame of a connection may be processed.
    fn gate_is_open(&self, connection: &Connection) -> bool {
        connection.may_process() && !self.is_congested() && self.draining.is_none()
    }

    /// Processes frames while the gate is open; what is left of the input.
    fn process_frames<'a>(&mut self, connection: &mut Connection, plain: &'a [u8]) -> &'a [u8] {
        let mut input = plain;
        // Taken out, because a frame may point into it while the connection is changed.
        let mut decoder = std::mem::replace(&mut connection.decoder, Decoder::new(0));
        while !input.is_empty() && self.gate_is_open(connection) {
            let outcome = match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => self.frame(connection, frame),
                Err(FrameError::TooLarge { .. }) => Err(GoodbyeReason::FrameTooLarge),
            };
            match outcome {
                Ok(()) => {}
                Err(reason) => {
                    self.leave(connection, reason, 0);
                    return &[];
                }
            }
            if !matches!(connection.state, State::Greeting) {
                decoder.set_max(FRAME_BYTES_MAX);
            }
        }
        connection.decoder = decoder;
        if matches!(connection.state, State::Closing) {
            &[]
        } else {
            input
        }
    }

    fn frame(&mut self, connection: &mut Connection, frame: &[u8]) -> Result<(), Leave> {
        let decoded = wire::decode_client(frame);
        if matches!(connection.state, State::Greeting) {
            return match decoded {
                Ok(ClientFrameRef::Hello(hello)) => self.hello(connection, &hello),
                _ => Err(GoodbyeReason::BadFrame),
            };
        }
        let State::Live(live) = &mut connection.state else {
            unreachable!("the gate lets frames pass while greeting and while live");
        };
        match decoded {
            Ok(ClientFrameRef::Send(send)) => return self.send(connection, &send),
            Ok(ClientFrameRef::Ack(seq)) => {
                if live.session.acknowledge(Seq(seq)).is_some() {
                    self.cursor_moved(connection);
                }
            }
            Ok(ClientFrameRef::Ping(nonce)) => {
                wire::encode_pong(&mut connection.out, nonce);
            }
            Ok(ClientFrameRef::Fetch(fetch)) => self.fetch(connection, &fetch),
            Ok(ClientFrameRef::Reauth(reauth)) => self.reauth(connection, &reauth),
            Ok(ClientFrameRef::Goodbye(_)) => return Err(GoodbyeReason::Normal),
            Ok(ClientFrameRef::Hello(_)) | Err(DecodeError::Malformed) => {
                return Err(GoodbyeReason::BadFrame);
            }
            Err(DecodeError::UnknownFrame { tag, .. }) => {
                reject(&mut connection.out, tag, RejectCode::UnknownFrame, 0, 0, "");
            }
            Err(DecodeError::BadField { tag, field }) => {
                reject(&mut connection.out, tag, RejectCode::BadFrame, 0, 0, field);
            }
        }
        self.mark_dirty(connection);
        Ok(())
    }

    fn hello(&mut self, connection: &mut Connection, hello: &HelloRef<'_>) -> Result<(), Leave> {
        check_version(hello)?;
        let claims = self
            .policy
            .keyring
            .verify(hello.token, self.now.unix_s())
            .map_err(|error| {
                tracing::debug!(core = self.id.0, %error, "a login was refused");
                GoodbyeReason::BadToken
            })?;
        let hash = self.placement.user_hash(claims.user.as_str());
        let login = Box::new(Login {
            identity: identify(claims, hello, hash)?,
            resume_after: hello.resume_after,
            session: random_u64(),
            at: self.now.monotonic,
        });
        let home = self.placement.core_of(self.placement.shard_of(hash));
        if home == self.id {
            self.enter(connection, login);
        } else {
            connection.state = State::Leaving(login, home);
            self.mark_dirty(connection); // once all is sent, it is detached
        }
        Ok(())
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
            ..
        } = *connection;
        if let State::Leaving(login, home) = state {
            let handoff = Handoff {
                socket,
                tls,
                decoder,
                login,
                backlog,
            };
            self.mesh.hand_over(home, handoff);
        }
    }

    /// A connection has come from another core.
    pub(super) fn entered(&mut self, handoff: Handoff) {
        if self.draining.is_some() || self.sockets.count() >= self.policy.connections_per_core_max {
            return; // the client sees the end of the connection and comes back elsewhere
        }
        let Handoff {
            socket,
            tls,
            decoder,
            login,
            backlog,
        } = handoff;
        let id = self.sockets.adopt(socket);
        let mut connection = Box::new(Connection::entering(id, tls, decoder, backlog));
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
        let shard = self.placement.shard_of(identity.hash);
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

    /// Turns an entering connection into a session and says Welcome.
    pub(super) fn go_live(&mut self, connection: &mut Connection) {
        let State::Entering(login) = std::mem::replace(&mut connection.state, State::Closing)
        else {
            unreachable!("only entering connections go live");
        };
        let Login {
            identity,
            resume_after,
            session,
            at,
        } = *login;
        let shard = self.placement.shard_of(identity.hash);
        let users = self.lanes.shard(shard).map(|shard| shard.users());
        let slot = users.and_then(|users| users.find(identity.user.as_str(), identity.hash));
        let user = slot.filter(|_| !identity.send_only);
        // Replacing settles the cursor.
        if user.is_some_and(|user| !self.replace_older(shard, user, &identity.device, at)) {
            return self.leave(connection, GoodbyeReason::Replaced, 0);
        }
        if identity.send_only && !self.replace_older_sender(connection.id, &identity, at) {
            return self.leave(connection, GoodbyeReason::Replaced, 0);
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
        connection.decoder.set_max(FRAME_BYTES_MAX);
        let session = Session::new(identity, cursor, start);
        let mut live = Live::new(session, at, shard, user, cursor);
        self.set_alarm(&mut live, connection.id);
        connection.state = State::Live(Box::new(live));
        self.live_sessions += 1;
        self.mark_dirty(connection);
        if connection.stalled {
            self.retry_later(connection);
        }
    }

    fn send(&mut self, connection: &mut Connection, send: &SendRef<'_>) -> Result<(), Leave> {
        let State::Live(live) = &mut connection.state else {
            unreachable!("live frames only")
        };
        let refusal = if check_user(send.to).is_err() {
            Some((RejectCode::BadRecipient, "to"))
        } else if send.body.len() > BODY_BYTES_MAX {
            Some((RejectCode::BodyTooLarge, "body"))
        } else {
            None
        };
        if let Some((code, field)) = refusal {
            reject(&mut connection.out, send.tag, code, 0, 0, field);
            self.mark_dirty(connection);
            return Ok(());
        }
        live.session.send_began();
        let identity = &live.session.identity;
        let append = Append {
            to: send.to,
            from: identity.user.as_str(),
            device: identity.device.as_str(),
            epoch: identity.epoch,
            n: SendNumber(send.n),
            time_ms: self.now.unix_ms,
            seq: Seq(0), // the recipient's shard gives it one
            id: MessageId(send.id),
            body: send.body,
        };
        let mut command = std::mem::take(&mut self.command);
        command.clear();
        append.encode(&mut command);
        let to = self.placement.user_hash(send.to);
        let reply = ReplyTo {
            core: self.id,
            slot: connection.id.slot,
            generation: connection.id.generation,
            tag: send.tag,
        };
        let home = self.placement.core_of(self.placement.shard_of(to));
        let message = Message::Append {
            to,
            reply,
            command: &command,
        };
        if home == self.id {
            self.deliver(&message);
        } else {
            self.mesh.send(home, &message);
        }
        self.command = command;
        Ok(())
    }

    /// Gives an append to its shard, which is of this core.
    pub(super) fn deliver(&mut self, message: &Message<'_>) {
        let Message::Append { to, reply, command } = *message else {
            unreachable!("only appends go to shards");
        };
        let shard = self.placement.shard_of(to);
        let room = self.lanes.has_space(shard);
        let append = Input::Append {
            to,
            command,
            room,
            reply,
        };
        if !self.lanes.step(&self.now, shard, append) {
            // With the shards' answers, when the sender's connection is in its place again: it may be
            // the one whose frames are being read.
            let refusal = Refusal::Unavailable;
            let refused = Effect::Refused { reply, refusal };
            self.lanes.effects.push_back((shard, refused));
        }
    }

    fn fetch(&mut self, connection: &mut Connection, fetch: &v2::Fetch) {
        let State::Live(live) = &mut connection.state else {
            unreachable!("live frames only")
        };
        let Some(user) = live.user else {
            let text = "a session that only sends has no inbox";
            reject(
                &mut connection.out,
                fetch.tag,
                RejectCode::NotFound,
                0,
                0,
                text,
            );
            return;
        };
        let Some(shard) = self.lanes.shard(live.shard) else {
            unreachable!("a session with an inbox is of a shard that is served");
        };
        let oldest = shard.users().get(user).oldest();
        match live
            .session
            .fetch(fetch.tag, Seq(fetch.after), fetch.limit, oldest)
        {
            Ok(()) => {}
            Err(FetchRefusal::Busy) => {
                let (code, retry) = (RejectCode::Overloaded, FETCH_RETRY_MS);
                reject(
                    &mut connection.out,
                    fetch.tag,
                    code,
                    0,
                    retry,
                    "one fetch at a time",
                );
            }
            Err(FetchRefusal::Expired { oldest }) => {
                let code = RejectCode::ExpiredRange;
                reject(&mut connection.out, fetch.tag, code, oldest.0, 0, "");
            }
        }
    }

    fn cursor_moved(&mut self, connection: &mut Connection) {
        let id = connection.id;
        let Some(live) = connection.live() else {
            return;
        };
        if live.session.acknowledged().0 >= live.proposed.0 + super::ACK_GATHER_ENTRIES {
            self.propose_cursor(live);
        } else if !std::mem::replace(&mut live.gathering, true) {
            self.gathering.push(id);
        }
    }

    pub(super) fn propose_cursor(&mut self, live: &mut Live) {
        let seq = live.session.acknowledged();
        if live.user.is_none() || seq <= live.proposed {
            return;
        }
        live.proposed = seq;
        let (user, device) = (&live.session.identity.user, &live.session.identity.device);
        let input = Input::Acknowledge {
            user: user.as_str(),
            device: device.as_str(),
            seq,
        };
        self.lanes.step(&self.now, live.shard, input);
    }

    pub(super) fn gather_cursors(&mut self) {
        for id in std::mem::take(&mut self.gathering) {
            let Some(mut connection) = self.connections.take(id) else {
                continue;
            };
            if let Some(live) = connection.live() {
                live.gathering = false;
                self.propose_cursor(live);
            }
            self.connections.put_back(connection);
        }
    }

    /// Stops reading a connection until its gate opens.
    fn stall(&mut self, connection: &mut Connection) {
        if connection.stalled || matches!(connection.state, State::Leaving(..) | State::Closing) {
            return;
        }
        connection.stalled = true;
        self.sockets.pause(connection.id);
        self.wait_for_the_core(connection);
    }

    /// A stalled connection without an obstacle of its own goes on when the core can.
    fn wait_for_the_core(&mut self, connection: &mut Connection) {
        if connection.may_process() && !std::mem::replace(&mut connection.retrying, true) {
            self.congested.push(connection.id);
        }
    }

    /// A stalled connection's own obstacle may be gone.
    pub(super) fn retry_later(&mut self, connection: &mut Connection) {
        if connection.stalled && !std::mem::replace(&mut connection.retrying, true) {
            self.retry.push(connection.id);
        }
    }

    /// Goes on with connections that were stalled, as far as their gates are open.
    pub(super) fn retry_stalled(&mut self) {
        if self.is_congested() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.congested);
        waiting.append(&mut self.retry);
        for id in waiting {
            let Some(mut connection) = self.connections.take(id) else {
                continue;
            };
            connection.retrying = false;
            self.go_on(&mut connection);
            self.connections.put_back(connection);
        }
    }

    fn go_on(&mut self, connection: &mut Connection) {
        if !connection.stalled || matches!(connection.state, State::Closing) {
            return;
        }
        connection.stalled = false;
        let backlog = std::mem::take(&mut connection.backlog);
        let rest = self.process_frames(connection, &backlog);
        if rest.is_empty() {
            self.sockets.resume(connection.id);
        } else {
            connection.backlog = rest.to_vec();
            connection.stalled = true;
            self.wait_for_the_core(connection);
        }
    }

    pub(super) fn ended(&mut self, id: SocketId, reason: Ended) {
        tracing::debug!(
            core = self.id.0,
            slot = id.slot,
            ?reason,
            "a connection ended"
        );
        self.drop_connection(id);
    }
}

/// Appends a Rejected.
pub(super) fn reject(
    out: &mut Vec<u8>,
    tag: u64,
    code: RejectCode,
    expected: u64,
    retry_after_ms: u64,
    text: &str,
) {
    let rejected = v2::Rejected {
        tag,
        code: code.into(),
        expected,
        retry_after_ms,
        text: text.to_owned(),
    };
    wire::encode_server(out, v2::server_frame::Frame::Rejected(rejected));
}

/// A random name for a session; not a secret.
fn random_u64() -> u64 {
    getrandom::u64().unwrap_or_default()
}
