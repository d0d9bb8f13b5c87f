//! From received bytes to what they ask for, as `runtime::reactor::inbound` does it, without TLS.

use iris_proto::frame::{Decoder, FrameError};
use iris_proto::id::{MessageId, SendNumber, Seq, UserId, check_user};
use iris_proto::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX, HELLO_FRAME_BYTES_MAX};
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire::{self, ClientFrameRef, DecodeError, HelloRef, SendRef};

use super::connection::{Connection, Handoff, Live, Login, State};
use super::{
    ACK_GATHER_ENTRIES, Core, DAMAGE_RETRY_MS, DISK_RETRY_MS, Env, Found, HELLO_TIMEOUT_US, Mail,
};
use crate::auth::Claims;
use crate::placement::ShardId;
use crate::planted::{self, Bug};
use crate::session::login::{check_version, identify, welcome};
use crate::session::{FetchRefusal, Identity, Session};
use crate::shard::command::Append;
use crate::shard::user::Device;
use crate::shard::{Effect, Input, Refusal, ReplyTo};
use crate::sim::net::{ConnId, Side};
use crate::stamp::Stamp;

/// After how many milliseconds a refused Fetch may be repeated.
const FETCH_RETRY_MS: u64 = 100;

impl Core {
    pub(super) fn accepted(&mut self, env: &mut Env<'_>, id: ConnId) {
        if self.draining {
            return env.net.close(env.world, id, Side::Switch);
        }
        let decoder = Decoder::new(HELLO_FRAME_BYTES_MAX);
        self.connections
            .insert(id, Box::new(Connection::new(id, decoder, Vec::new())));
        self.greeting
            .push_back((env.world.now_us() + HELLO_TIMEOUT_US, id));
    }

    pub(super) fn received(&mut self, env: &mut Env<'_>, id: ConnId) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        if connection.stalled {
            self.connections.insert(id, connection); // what has arrived stays with the socket
            return;
        }
        let bytes = env.net.receive(env.world, id, Side::Switch);
        if !matches!(connection.state, State::Closing) {
            self.process(env, &mut connection, &bytes);
        }
        self.put_back(env, connection);
    }

    /// Processes bytes that just came, behind what waits already.
    fn process(&mut self, env: &mut Env<'_>, connection: &mut Connection, bytes: &[u8]) {
        if !connection.backlog.is_empty() || !self.gate_is_open(connection) {
            connection.backlog.extend_from_slice(bytes);
            if !bytes.is_empty() {
                self.stall(connection);
            }
            return;
        }
        let rest = self.process_frames(env, connection, bytes).to_vec();
        if !rest.is_empty() {
            connection.backlog.extend_from_slice(&rest);
            self.stall(connection);
        }
    }

    fn gate_is_open(&self, connection: &Connection) -> bool {
        connection.may_process() && !self.is_congested() && !self.draining
    }

    fn process_frames<'a>(
        &mut self,
        env: &mut Env<'_>,
        connection: &mut Connection,
        bytes: &'a [u8],
    ) -> &'a [u8] {
        let mut input = bytes;
        let mut decoder = std::mem::replace(&mut connection.decoder, Decoder::new(0));
        while !input.is_empty() && self.gate_is_open(connection) {
            let outcome = match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => self.frame(env, connection, frame),
                Err(FrameError::TooLarge { .. }) => Err(GoodbyeReason::FrameTooLarge),
            };
            if let Err(reason) = outcome {
                self.leave(env, connection, reason, 0);
                return &[];
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

    fn frame(
        &mut self,
        env: &mut Env<'_>,
        connection: &mut Connection,
        frame: &[u8],
    ) -> Result<(), GoodbyeReason> {
        let decoded = wire::decode_client(frame);
        if matches!(connection.state, State::Greeting) {
            return match decoded {
                Ok(ClientFrameRef::Hello(hello)) => self.hello(env, connection, &hello),
                _ => Err(GoodbyeReason::BadFrame),
            };
        }
        let State::Live(live) = &mut connection.state else {
            unreachable!("the gate lets frames pass while greeting and while live");
        };
        match decoded {
            Ok(ClientFrameRef::Send(send)) => {
                self.send(env, connection, &send);
                return Ok(());
            }
            Ok(ClientFrameRef::Ack(seq)) => {
                if live.session.acknowledge(Seq(seq)).is_some() {
                    self.cursor_moved(env, connection);
                }
            }
            Ok(ClientFrameRef::Ping(nonce)) => wire::encode_pong(&mut connection.out, nonce),
            Ok(ClientFrameRef::Fetch(fetch)) => self.fetch(connection, &fetch),
            Ok(ClientFrameRef::Reauth(reauth)) => {
                // Tokens are not simulated, and do not end.
                let out = &mut connection.out;
                reject(out, reauth.tag, RejectCode::BadToken, 0, 0, "");
            }
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

    /// A token is the user's name here.
    fn hello(
        &mut self,
        env: &mut Env<'_>,
        connection: &mut Connection,
        hello: &HelloRef<'_>,
    ) -> Result<(), GoodbyeReason> {
        check_version(hello)?;
        let claims = Claims {
            user: UserId::new(hello.token).map_err(|_| GoodbyeReason::BadToken)?,
            device: None,
            expires_s: u64::MAX,
            issued_s: 0,
            jti: None,
        };
        let hash = self.placement.user_hash(claims.user.as_str());
        let login = Box::new(Login {
            identity: identify(claims, hello, hash)?,
            resume_after: hello.resume_after,
            session: env.world.dice.roll(),
            at_us: env.world.now_us(),
        });
        let home = self.placement.core_of(self.placement.shard_of(hash));
        if home == self.id {
            self.enter(env, connection, login);
        } else {
            connection.state = State::Leaving(login, usize::from(home.0));
            self.mark_dirty(connection); // once all is sent, it is detached
        }
        Ok(())
    }

    /// A leaving connection has nothing under way any more: it goes to its user's core.
    pub(super) fn detached(&mut self, connection: Connection) {
        let Connection {
            id,
            decoder,
            state,
            backlog,
            ..
        } = connection;
        if let State::Leaving(login, home) = state {
            let handoff = Handoff {
                id,
                decoder,
                login,
                backlog,
            };
            self.outgoing
                .push((home, Mail::Connection(Box::new(handoff))));
        }
    }

    /// A connection has come from another core.
    pub(super) fn entered(&mut self, env: &mut Env<'_>, handoff: Handoff) {
        let Handoff {
            id,
            decoder,
            login,
            backlog,
        } = handoff;
        if self.draining {
            return env.net.close(env.world, id, Side::Switch);
        }
        let mut connection = Box::new(Connection::new(id, decoder, backlog));
        self.enter(env, &mut connection, login);
        if !connection.backlog.is_empty() {
            self.stall(&mut connection);
        }
        self.put_back(env, connection);
        self.later.push(id); // bytes may have come while nobody looked
        if env.net.is_over(id, Side::Switch) {
            self.found.push_back(Found::Ended(id));
        }
    }

    /// The user lives on this core. A device must be known durably before its session begins.
    fn enter(&mut self, env: &mut Env<'_>, connection: &mut Connection, login: Box<Login>) {
        let identity = login.identity.clone();
        connection.state = State::Entering(login);
        let shard = self.placement.shard_of(identity.hash);
        if identity.send_only {
            return self.go_live(env, connection);
        }
        let Some(store) = self.store_mut(shard) else {
            return self.leave(env, connection, GoodbyeReason::Internal, 0);
        };
        if store.shard(shard).is_none() {
            return self.leave(env, connection, GoodbyeReason::Unavailable, DAMAGE_RETRY_MS);
        }
        if !store.has_room() && !self.is_known(&identity, shard) {
            return self.leave(env, connection, GoodbyeReason::Overloaded, DISK_RETRY_MS);
        }
        let deadline = env.world.now_us() + HELLO_TIMEOUT_US;
        self.greeting.push_back((deadline, connection.id));
        let reply = self.reply_to(connection.id, 0);
        let input = Input::Register {
            hash: identity.hash,
            user: identity.user.as_str(),
            device: identity.device.as_str(),
            reply,
        };
        self.step(env, shard, input);
    }

    fn reply_to(&self, id: ConnId, tag: u64) -> ReplyTo {
        ReplyTo {
            core: self.id,
            slot: id.0,
            generation: self.life,
            tag,
            read: Stamp::default(),
        }
    }

    fn is_known(&mut self, identity: &Identity, shard: ShardId) -> bool {
        let Some(shard) = self.store_mut(shard).and_then(|store| store.shard(shard)) else {
            return false;
        };
        let users = shard.users();
        let user = users.find(identity.user.as_str(), identity.hash);
        user.is_some_and(|user| users.get(user).device(identity.device.as_str()).is_some())
    }

    /// Turns an entering connection into a session and says Welcome.
    pub(super) fn go_live(&mut self, env: &mut Env<'_>, connection: &mut Connection) {
        let State::Entering(login) = std::mem::replace(&mut connection.state, State::Closing)
        else {
            unreachable!("only entering connections go live");
        };
        let Login {
            identity,
            resume_after,
            session,
            at_us,
        } = *login;
        let shard = self.placement.shard_of(identity.hash);
        let users = self.shard(shard).map(|shard| shard.users());
        let slot = users.and_then(|users| users.find(identity.user.as_str(), identity.hash));
        let user = slot.filter(|_| !identity.send_only);
        if user.is_some_and(|user| !self.replace_older(env, shard, user, &identity.device, at_us)) {
            return self.leave(env, connection, GoodbyeReason::Replaced, 0);
        }
        let is_sender = identity.send_only && !planted::is(Bug::SenderNotReplaced);
        if is_sender && !self.replace_older_sender(env, connection.id, &identity, at_us) {
            return self.leave(env, connection, GoodbyeReason::Replaced, 0);
        }
        let (head, oldest, cursor) = match (user, self.shard(shard)) {
            (Some(slot), Some(shard)) => {
                let user = shard.users().get(slot);
                let device = user.device(identity.device.as_str());
                (
                    user.head(),
                    user.oldest(),
                    device.map_or(Seq(0), Device::position),
                )
            }
            _ => (Seq(0), Seq(1), Seq(0)),
        };
        let start = Session::start(resume_after, cursor, oldest, head);
        let welcome = v2::Welcome {
            session,
            server_time_ms: env.world.unix_ms(),
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
        let (proposed, gathering) = (cursor, false);
        let live = Live {
            session,
            at_us,
            shard,
            user,
            proposed,
            gathering,
        };
        connection.state = State::Live(Box::new(live));
        self.mark_dirty(connection);
        if connection.stalled {
            self.retry_later(connection);
        }
    }

    fn send(&mut self, env: &mut Env<'_>, connection: &mut Connection, send: &SendRef<'_>) {
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
            return;
        }
        live.session.send_began();
        let identity = &live.session.identity;
        let append = Append {
            to: send.to,
            from: identity.user.as_str(),
            device: identity.device.as_str(),
            epoch: identity.epoch,
            n: SendNumber(send.n),
            time_ms: env.world.unix_ms(),
            seq: Seq(0),
            id: MessageId(send.id),
            body: send.body,
        };
        let mut command = Vec::new();
        append.encode(&mut command);
        let to = self.placement.user_hash(send.to);
        let reply = self.reply_to(connection.id, send.tag);
        let home = self.placement.core_of(self.placement.shard_of(to));
        let mail = Mail::Append { to, reply, command };
        if home == self.id {
            self.deliver(env, mail);
        } else {
            self.outgoing.push((usize::from(home.0), mail));
        }
    }

    /// Gives an append to its shard, which is of this core.
    pub(super) fn deliver(&mut self, env: &mut Env<'_>, mail: Mail) {
        let Mail::Append { to, reply, command } = mail else {
            unreachable!("only appends go to shards");
        };
        let shard = self.placement.shard_of(to);
        let Some(store) = self.store_mut(shard) else {
            unreachable!("the shard {shard:?} is of another core");
        };
        if store.shard(shard).is_none() {
            // As the switch does: with the shards' answers, when the sender's connection is in its place
            // again.
            let refusal = Refusal::Unavailable;
            self.effects
                .push_back((shard, Effect::Refused { reply, refusal }));
            return;
        }
        let room = store.has_room();
        self.step(
            env,
            shard,
            Input::Append {
                to,
                command: &command,
                room,
                reply,
            },
        );
    }

    fn fetch(&mut self, connection: &mut Connection, fetch: &v2::Fetch) {
        let State::Live(live) = &mut connection.state else {
            unreachable!("live frames only")
        };
        let out = &mut connection.out;
        let shard = self.shard(live.shard);
        let (Some(user), Some(shard)) = (live.user, shard) else {
            return reject(out, fetch.tag, RejectCode::NotFound, 0, 0, "no inbox");
        };
        let oldest = shard.users().get(user).oldest();
        match live
            .session
            .fetch(fetch.tag, Seq(fetch.after), fetch.limit, oldest)
        {
            Ok(()) => {}
            Err(FetchRefusal::Busy) => {
                reject(
                    out,
                    fetch.tag,
                    RejectCode::Overloaded,
                    0,
                    FETCH_RETRY_MS,
                    "",
                );
            }
            Err(FetchRefusal::Expired { oldest }) => {
                reject(out, fetch.tag, RejectCode::ExpiredRange, oldest.0, 0, "");
            }
        }
    }

    fn cursor_moved(&mut self, env: &mut Env<'_>, connection: &mut Connection) {
        let id = connection.id;
        let Some(live) = connection.live() else {
            return;
        };
        if live.session.acknowledged().0 >= live.proposed.0 + ACK_GATHER_ENTRIES {
            self.propose_cursor(env, live);
        } else if !std::mem::replace(&mut live.gathering, true) {
            self.gathering.push(id);
        }
    }

    pub(super) fn propose_cursor(&mut self, env: &mut Env<'_>, live: &mut Live) {
        let seq = live.session.acknowledged();
        if live.user.is_none() || seq <= live.proposed || self.shard(live.shard).is_none() {
            return;
        }
        live.proposed = seq;
        let (user, device) = (&live.session.identity.user, &live.session.identity.device);
        let input = Input::Acknowledge {
            user: user.as_str(),
            device: device.as_str(),
            seq,
        };
        self.step(env, live.shard, input);
    }

    pub(super) fn gather_cursors(&mut self, env: &mut Env<'_>) {
        for id in std::mem::take(&mut self.gathering) {
            let Some(mut connection) = self.connections.remove(&id) else {
                continue;
            };
            if let Some(live) = connection.live() {
                live.gathering = false;
                self.propose_cursor(env, live);
            }
            self.connections.insert(id, connection);
        }
    }

    /// Stops reading a connection until its gate opens.
    fn stall(&mut self, connection: &mut Connection) {
        if connection.stalled || matches!(connection.state, State::Leaving(..) | State::Closing) {
            return;
        }
        connection.stalled = true;
        self.wait_for_the_core(connection);
    }

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
    pub(super) fn retry_stalled(&mut self, env: &mut Env<'_>) {
        if self.is_congested() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.congested);
        waiting.append(&mut self.retry);
        for id in waiting {
            let Some(mut connection) = self.connections.remove(&id) else {
                continue;
            };
            connection.retrying = false;
            self.go_on(env, &mut connection);
            self.put_back(env, connection);
        }
    }

    fn go_on(&mut self, env: &mut Env<'_>, connection: &mut Connection) {
        if !connection.stalled || matches!(connection.state, State::Closing) {
            return;
        }
        connection.stalled = false;
        let backlog = std::mem::take(&mut connection.backlog);
        let rest = self.process_frames(env, connection, &backlog);
        if rest.is_empty() {
            self.later.push(connection.id);
        } else {
            connection.backlog = rest.to_vec();
            connection.stalled = true;
            self.wait_for_the_core(connection);
        }
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
