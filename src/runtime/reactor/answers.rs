//! What the shards decided, carried to whom it concerns; and how sessions end.

use std::time::Instant;

use iris_proto::id::{DeviceId, SendEpoch, SendNumber};
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire;

use super::connection::{Connection, State};
use super::inbound::reject;
use super::{CLOSING_MAX, Core};
use crate::placement::ShardId;
use crate::runtime::mesh::{Message, messages};
use crate::runtime::stream::SocketId;
use crate::session::Identity;
use crate::shard::user::UserSlot;
use crate::shard::{Effect, Refusal, ReplyTo};
use crate::stamp::Stamp;

/// After how many milliseconds a send refused by a full disk may be repeated. A guess.
pub(super) const DISK_RETRY_MS: u64 = 5_000;

/// After how many milliseconds a client of a damaged shard may ask again: a person has to act. A guess.
pub(super) const UNAVAILABLE_RETRY_MS: u64 = 60_000;

impl Core {
    /// Carries out the effects of this core's shards, in order.
    pub(super) fn carry_out(&mut self) {
        while let Some((shard, effect)) = self.lanes.effects.pop_front() {
            match effect {
                Effect::Accepted { reply, n, at } => {
                    self.note_durable(shard, at, reply.read);
                    self.trace_durable(shard, at, reply.read);
                    self.answer(&Message::Accepted { reply, n });
                }
                Effect::Refused { reply, refusal } => self.refuse(reply, refusal),
                Effect::Registered { reply } => self.registered(&reply),
                Effect::Grown { user } => self.grown(shard, user),
            }
        }
    }

    fn refuse(&mut self, reply: ReplyTo, refusal: Refusal) {
        match refusal {
            Refusal::InboxFull => self.totals.refused_inbox += 1,
            Refusal::DiskFull => self.totals.refused_disk += 1,
            _ => {}
        }
        let (code, expected, retry_after_ms) = match refusal {
            Refusal::Gap { expected } => (RejectCode::Gap, expected, 0),
            Refusal::InboxFull => (RejectCode::InboxFull, SendNumber(0), 0),
            Refusal::DiskFull => (RejectCode::DiskFull, SendNumber(0), DISK_RETRY_MS),
            Refusal::Unavailable => (RejectCode::Unavailable, SendNumber(0), UNAVAILABLE_RETRY_MS),
            Refusal::Overloaded => (RejectCode::Overloaded, SendNumber(0), self.shed_retry_ms()),
            Refusal::TooManyDevices => {
                return self.say_goodbye(socket_of(&reply), GoodbyeReason::TooManyDevices, 0);
            }
        };
        self.answer(&Message::Rejected {
            reply,
            code,
            expected,
            retry_after_ms,
        });
    }

    /// Brings an answer to its session: on this core, or over the ring.
    pub(super) fn answer(&mut self, message: &Message<'_>) {
        let (Message::Accepted { reply, .. } | Message::Rejected { reply, .. }) = message else {
            unreachable!("an append is no answer");
        };
        if reply.core == self.id {
            self.answered(message);
        } else {
            self.mesh.send(reply.core, message);
        }
    }

    /// Reads a parcel from another core.
    pub(super) fn read_parcel(&mut self, parcel: &[u8], published: Stamp) {
        let mut count = 0;
        for message in messages(parcel) {
            count += 1;
            match message {
                Message::Append { reply, .. } => {
                    self.note_route(reply.read, published);
                    self.deliver(&message);
                }
                Message::Accepted { .. } | Message::Rejected { .. } => self.answered(&message),
            }
        }
        self.note_ring(published, count);
    }

    /// An answer has reached its session's core. The session may be gone; then nobody asks any more.
    fn answered(&mut self, message: &Message<'_>) {
        let (Message::Accepted { reply, .. } | Message::Rejected { reply, .. }) = message else {
            unreachable!("an append is no answer");
        };
        self.trace_answered(reply, matches!(message, Message::Accepted { .. }));
        let Some(mut connection) = self.connections.take(socket_of(reply)) else {
            return;
        };
        if let State::Live(live) = &mut connection.state {
            live.session.send_ended();
            match *message {
                Message::Rejected {
                    reply,
                    code,
                    expected,
                    retry_after_ms,
                } => {
                    let out = &mut connection.out;
                    reject(out, reply.tag, code, expected.0, retry_after_ms, "");
                }
                Message::Accepted { reply, n } => {
                    self.totals.accepts += 1;
                    wire::encode_accepted(&mut connection.out, reply.tag, n.0);
                    live.answers.note(reply.read);
                }
                Message::Append { .. } => unreachable!("an append is no answer"),
            }
            self.mark_dirty(&mut connection);
            self.retry_later(&mut connection);
        }
        self.connections.put_back(connection);
    }

    fn registered(&mut self, reply: &ReplyTo) {
        let Some(mut connection) = self.connections.take(socket_of(reply)) else {
            return;
        };
        if matches!(connection.state, State::Entering(_)) {
            self.go_live(&mut connection);
        }
        self.connections.put_back(connection);
    }

    /// An inbox has new entries: its sessions will pull them when this turn sends.
    fn grown(&mut self, shard: ShardId, user: UserSlot) {
        let Some(sessions) = self.sessions.get(&(shard, user)) else {
            return;
        };
        for id in sessions {
            if let Some(connection) = self.connections.get(*id)
                && !std::mem::replace(&mut connection.dirty, true)
            {
                self.dirty.push_back(*id);
            }
        }
    }

    /// Of a device's connections the one whose Hello came last stays. Says goodbye to an older one;
    /// false when there is a newer one.
    pub(super) fn replace_older(
        &mut self,
        shard: ShardId,
        user: UserSlot,
        device: &DeviceId,
        at: Instant,
    ) -> bool {
        let Some(sessions) = self.sessions.get(&(shard, user)) else {
            return true;
        };
        let mut other = None;
        for id in sessions {
            let live = self.connections.get(*id).and_then(Connection::live);
            if let Some(live) = live.filter(|live| live.session.identity.device == *device) {
                other = Some((*id, live.at));
            }
        }
        match other {
            Some((_, newer)) if newer > at => return false,
            Some((older, _)) => self.say_goodbye(older, GoodbyeReason::Replaced, 0),
            None => {}
        }
        true
    }

    /// A session that only sends replaces none but itself: an older connection of the same send epoch,
    /// of which there may be sends to read that were repeated since on this one. Taken behind them they
    /// would count as what the client sent next. False when there is a newer one.
    pub(super) fn replace_older_sender(&mut self, identity: &Identity, at: Instant) -> bool {
        let older = self.senders.get(&identity.hash).and_then(|senders| {
            let same = |(epoch, _): &&(SendEpoch, SocketId)| *epoch == identity.epoch;
            senders.iter().find(same).map(|(_, older)| *older)
        });
        if let Some(older) = older {
            let live = self.connections.get(older).and_then(Connection::live);
            if live.is_some_and(|live| live.at > at) {
                return false;
            }
            self.say_goodbye(older, GoodbyeReason::Replaced, 0);
        }
        true
    }

    /// How many sessions a user has: all of them are on this core.
    pub(super) fn sessions_of(&self, shard: ShardId, identity: &Identity) -> usize {
        let users = self.lanes.shard(shard).map(|shard| shard.users());
        let slot = users.and_then(|users| users.find(identity.user.as_str(), identity.hash));
        let devices = slot.and_then(|slot| self.sessions.get(&(shard, slot)));
        let senders = self.senders.get(&identity.hash);
        devices.map_or(0, Vec::len) + senders.map_or(0, Vec::len)
    }

    pub(super) fn mark_dirty(&mut self, connection: &mut Connection) {
        if !std::mem::replace(&mut connection.dirty, true) {
            self.dirty.push_back(connection.id);
        }
    }

    /// Tells a connection Goodbye, if it is still there.
    pub(super) fn say_goodbye(&mut self, id: SocketId, reason: GoodbyeReason, retry_after_ms: u64) {
        let Some(mut connection) = self.connections.take(id) else {
            return;
        };
        self.leave(&mut connection, reason, retry_after_ms);
        self.connections.put_back(connection);
    }

    /// Ends a connection with a Goodbye, which is only possible once there are keys to seal it.
    pub(super) fn leave(
        &mut self,
        connection: &mut Connection,
        reason: GoodbyeReason,
        retry_after_ms: u64,
    ) {
        if matches!(connection.state, State::Closing | State::Leaving(..)) {
            return;
        }
        self.audit_goodbye(connection, reason);
        if !connection.tls.is_handshaking() {
            let goodbye = v2::Goodbye {
                reason: reason.into(),
                retry_after_ms,
                other_address: String::new(),
                text: reason.describe().to_owned(),
            };
            let frame = v2::server_frame::Frame::Goodbye(goodbye);
            wire::encode_server(&mut connection.out, frame);
        }
        self.begin_closing(connection);
    }

    /// From here on nothing is read; what waits is sent, and the connection closes when the peer has
    /// seen it, or after [`CLOSING_MAX`].
    pub(super) fn begin_closing(&mut self, connection: &mut Connection) {
        self.forget_session(connection);
        connection.state = State::Closing;
        connection.incomplete_since = None;
        connection.backlog = Vec::new();
        connection.sealed = Vec::new();
        if std::mem::take(&mut connection.stalled) {
            self.sockets.resume(connection.id); // to see the peer's end
        }
        self.closing
            .push_back((self.now.monotonic + CLOSING_MAX, connection.id));
        self.mark_dirty(connection);
    }

    /// Lets a connection go at once.
    pub(super) fn drop_connection(&mut self, id: SocketId) {
        if let Some(mut connection) = self.connections.take(id) {
            self.no_stranger(&mut connection);
            self.forget_session(&mut connection);
            self.sockets.close(id);
        }
    }

    /// Makes the cursor durable and stops waking the session.
    fn forget_session(&mut self, connection: &mut Connection) {
        let id = connection.id;
        let Some(live) = connection.live() else {
            return;
        };
        self.live_sessions -= 1;
        self.clear_alarm(live, id);
        self.propose_cursor(live);
        let identity = &live.session.identity;
        if identity.send_only
            && let Some(senders) = self.senders.get_mut(&identity.hash)
        {
            senders.retain(|(_, sender)| *sender != id);
            if senders.is_empty() {
                self.senders.remove(&identity.hash);
            }
        }
        let Some(user) = live.user else { return };
        let key = (live.shard, user);
        if let Some(sessions) = self.sessions.get_mut(&key) {
            sessions.retain(|session| *session != id);
            if sessions.is_empty() {
                self.sessions.remove(&key);
            }
        }
    }
}

fn socket_of(reply: &ReplyTo) -> SocketId {
    SocketId {
        slot: reply.slot,
        generation: reply.generation,
    }
}
