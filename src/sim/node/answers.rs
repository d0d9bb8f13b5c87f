//! What the shards decided, carried to whom it concerns; and how sessions end. As
//! `runtime::reactor::answers` does it.

use iris_proto::id::{DeviceId, SendNumber};
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire;

use super::connection::{Connection, State};
use super::inbound::reject;
use super::{CLOSING_MAX_US, Core, DAMAGE_RETRY_MS, DISK_RETRY_MS, Env, Mail};
use crate::placement::ShardId;
use crate::session::Identity;
use crate::shard::user::UserSlot;
use crate::shard::{Effect, Refusal, ReplyTo};
use crate::sim::net::{ConnId, Side};

impl Core {
    /// Carries out the effects of this core's shards, in order.
    pub(super) fn carry_out(&mut self, env: &mut Env<'_>) {
        while let Some((shard, effect)) = self.effects.pop_front() {
            match effect {
                Effect::Accepted { reply, n, .. } => self.answer(env, Mail::Accepted { reply, n }),
                Effect::Refused { reply, refusal } => self.refuse(env, reply, refusal),
                Effect::Registered { reply } => self.registered(env, &reply),
                Effect::Grown { user } => self.grown(shard, user),
            }
        }
    }

    fn refuse(&mut self, env: &mut Env<'_>, reply: ReplyTo, refusal: Refusal) {
        let (code, expected, retry_after_ms) = match refusal {
            Refusal::Gap { expected } => (RejectCode::Gap, expected, 0),
            Refusal::InboxFull => (RejectCode::InboxFull, SendNumber(0), 0),
            Refusal::DiskFull => (RejectCode::DiskFull, SendNumber(0), DISK_RETRY_MS),
            Refusal::Unavailable => (RejectCode::Unavailable, SendNumber(0), DAMAGE_RETRY_MS),
            Refusal::Overloaded => (RejectCode::Overloaded, SendNumber(0), DISK_RETRY_MS),
            Refusal::TooManyDevices => {
                return self.say_goodbye(env, ConnId(reply.slot), GoodbyeReason::TooManyDevices, 0);
            }
        };
        self.answer(
            env,
            Mail::Rejected {
                reply,
                code,
                expected,
                retry_after_ms,
            },
        );
    }

    /// Brings an answer to its session: on this core, or over the ring.
    pub(super) fn answer(&mut self, env: &mut Env<'_>, mail: Mail) {
        let (Mail::Accepted { reply, .. } | Mail::Rejected { reply, .. }) = &mail else {
            unreachable!("an append is no answer");
        };
        if reply.core == self.id {
            self.answered(env, &mail);
        } else {
            self.outgoing.push((usize::from(reply.core.0), mail));
        }
    }

    /// Reads what another core sent.
    pub(super) fn read_mail(&mut self, env: &mut Env<'_>, mail: Mail) {
        match mail {
            Mail::Append { .. } => self.deliver(env, mail),
            Mail::Accepted { .. } | Mail::Rejected { .. } => self.answered(env, &mail),
            Mail::Connection(handoff) => self.entered(env, *handoff),
        }
    }

    /// An answer has reached its session's core. The session may be gone; then nobody asks any more.
    fn answered(&mut self, env: &mut Env<'_>, mail: &Mail) {
        let (Mail::Accepted { reply, .. } | Mail::Rejected { reply, .. }) = mail else {
            unreachable!("an append is no answer");
        };
        let Some(mut connection) = self.connections.remove(&ConnId(reply.slot)) else {
            return;
        };
        if let State::Live(live) = &mut connection.state {
            live.session.send_ended();
            match *mail {
                Mail::Rejected {
                    reply,
                    code,
                    expected,
                    retry_after_ms,
                } => {
                    let out = &mut connection.out;
                    reject(out, reply.tag, code, expected.0, retry_after_ms, "");
                }
                Mail::Accepted { reply, n } => {
                    wire::encode_accepted(&mut connection.out, reply.tag, n.0);
                }
                Mail::Append { .. } | Mail::Connection(_) => unreachable!("no answers"),
            }
            self.mark_dirty(&mut connection);
            self.retry_later(&mut connection);
        }
        self.put_back(env, connection);
    }

    fn registered(&mut self, env: &mut Env<'_>, reply: &ReplyTo) {
        let Some(mut connection) = self.connections.remove(&ConnId(reply.slot)) else {
            return;
        };
        if matches!(connection.state, State::Entering(_)) {
            self.go_live(env, &mut connection);
        }
        self.put_back(env, connection);
    }

    /// An inbox has new entries: its sessions will pull them when this turn sends.
    fn grown(&mut self, shard: ShardId, user: UserSlot) {
        let Some(sessions) = self.sessions.get(&(shard, user)) else {
            return;
        };
        for id in sessions {
            if let Some(connection) = self.connections.get_mut(id)
                && !std::mem::replace(&mut connection.dirty, true)
            {
                self.dirty.push(*id);
            }
        }
    }

    /// Of a device's connections the one whose Hello came last stays.
    pub(super) fn replace_older(
        &mut self,
        env: &mut Env<'_>,
        shard: ShardId,
        user: UserSlot,
        device: &DeviceId,
        at_us: u64,
    ) -> bool {
        let Some(sessions) = self.sessions.get(&(shard, user)) else {
            return true;
        };
        let mut other = None;
        for id in sessions {
            let live = self
                .connections
                .get_mut(id)
                .and_then(|connection| connection.live());
            if let Some(live) = live.filter(|live| live.session.identity.device == *device) {
                other = Some((*id, live.at_us));
            }
        }
        match other {
            Some((_, newer)) if newer > at_us => return false,
            Some((older, _)) => self.say_goodbye(env, older, GoodbyeReason::Replaced, 0),
            None => {}
        }
        true
    }

    /// A session that only sends replaces none but an older connection of the same send epoch.
    pub(super) fn replace_older_sender(
        &mut self,
        env: &mut Env<'_>,
        id: ConnId,
        identity: &Identity,
        at_us: u64,
    ) -> bool {
        let key = (identity.hash.0, identity.epoch.0);
        if let Some(other) = self.senders.get(&key).copied() {
            let live = self
                .connections
                .get_mut(&other)
                .and_then(|connection| connection.live());
            if live.is_some_and(|live| live.at_us > at_us) {
                return false;
            }
            self.say_goodbye(env, other, GoodbyeReason::Replaced, 0);
        }
        self.senders.insert(key, id);
        true
    }

    pub(super) fn mark_dirty(&mut self, connection: &mut Connection) {
        if !std::mem::replace(&mut connection.dirty, true) {
            self.dirty.push(connection.id);
        }
    }

    /// Tells a connection Goodbye, if it is still there.
    pub(super) fn say_goodbye(
        &mut self,
        env: &mut Env<'_>,
        id: ConnId,
        reason: GoodbyeReason,
        retry_after_ms: u64,
    ) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        self.leave(env, &mut connection, reason, retry_after_ms);
        self.put_back(env, connection);
    }

    /// Ends a connection with a Goodbye.
    pub(super) fn leave(
        &mut self,
        env: &mut Env<'_>,
        connection: &mut Connection,
        reason: GoodbyeReason,
        retry_after_ms: u64,
    ) {
        if matches!(connection.state, State::Closing | State::Leaving(..)) {
            return;
        }
        let goodbye = v2::Goodbye {
            reason: reason.into(),
            retry_after_ms,
            other_address: String::new(),
            text: reason.describe().to_owned(),
        };
        wire::encode_server(
            &mut connection.out,
            v2::server_frame::Frame::Goodbye(goodbye),
        );
        self.forget_session(env, connection);
        connection.state = State::Closing;
        connection.backlog = Vec::new();
        connection.stalled = false;
        self.closing
            .push_back((env.world.now_us() + CLOSING_MAX_US, connection.id));
        self.mark_dirty(connection);
    }

    /// Lets a connection go at once.
    pub(super) fn drop_connection(&mut self, env: &mut Env<'_>, id: ConnId) {
        if let Some(mut connection) = self.connections.remove(&id) {
            self.forget_session(env, &mut connection);
            env.net.close(env.world, id, Side::Switch);
        }
    }

    /// Makes the cursor durable and stops waking the session.
    fn forget_session(&mut self, env: &mut Env<'_>, connection: &mut Connection) {
        let id = connection.id;
        let Some(live) = connection.live() else {
            return;
        };
        self.propose_cursor(env, live);
        let identity = &live.session.identity;
        let sender = (identity.hash.0, identity.epoch.0);
        if identity.send_only && self.senders.get(&sender) == Some(&id) {
            self.senders.remove(&sender);
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
