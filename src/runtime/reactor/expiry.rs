//! When sessions end: with their tokens. They are warned ahead, and a Reauth carries them on.
//!
//! Every live session has one alarm, `Live::alarm_s`: first to warn it, then to end it. A new token sets
//! it anew. What the heap holds beside that is stale and passed over when its time comes.

use std::cmp::Reverse;
use std::time::Duration;

use iris_proto::limits::REAUTH_PAUSE_MS;
use iris_proto::v2::server_frame::Frame;
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire;

use super::connection::{Connection, Live, State};
use super::inbound::reject;
use super::{Core, EXPIRING_SLACK};
use crate::runtime::stream::SocketId;
use crate::session::Token;
use crate::session::login::{first_alarm_s, may_renew};

impl Core {
    /// Sets the alarm of a session whose token was just taken.
    pub(super) fn set_alarm(&mut self, live: &mut Live, id: SocketId) {
        let end_s = live.session.identity.token.expires_s;
        live.alarm_s = first_alarm_s(end_s, self.now.unix_s());
        self.alarm_later(live.alarm_s, id);
    }

    /// Stale alarms leave the heap when they are the most of it.
    fn alarm_later(&mut self, at_s: u64, id: SocketId) {
        if self.expiring.len() > 2 * self.sockets.count() + EXPIRING_SLACK {
            let connections = &mut self.connections;
            self.expiring.retain(|Reverse((at_s, id))| {
                let live = connections.get(*id).and_then(Connection::live);
                live.is_some_and(|live| live.alarm_s == *at_s)
            });
        }
        self.expiring.push(Reverse((at_s, id)));
    }

    /// Warns and ends the sessions whose time has come.
    pub(super) fn expire_sessions(&mut self) {
        let now_s = self.now.unix_s();
        while let Some(Reverse((at_s, id))) = self.expiring.peek().copied() {
            if at_s > now_s {
                return;
            }
            self.expiring.pop();
            if let Some(mut connection) = self.connections.take(id) {
                self.alarm(&mut connection, at_s, now_s);
                self.connections.put_back(connection);
            }
        }
    }

    fn alarm(&mut self, connection: &mut Connection, at_s: u64, now_s: u64) {
        let Some(live) = connection.live().filter(|live| live.alarm_s == at_s) else {
            return; // it has another token by now
        };
        let end_s = live.session.identity.token.expires_s;
        if end_s <= now_s {
            return self.leave(connection, GoodbyeReason::TokenExpired, 0);
        }
        live.alarm_s = end_s;
        self.alarm_later(end_s, connection.id);
        let seconds_left = end_s - now_s;
        let expiring = v2::Expiring { seconds_left };
        wire::encode_server(&mut connection.out, Frame::Expiring(expiring));
        self.mark_dirty(connection);
    }

    /// A session brings a further token.
    pub(super) fn reauth(&mut self, connection: &mut Connection, reauth: &v2::Reauth) {
        let State::Live(live) = &mut connection.state else {
            unreachable!("live frames only")
        };
        let (tag, now) = (reauth.tag, self.now.monotonic);
        let pause = live.reauth_from.saturating_duration_since(now);
        if !pause.is_zero() {
            let retry_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) + 1;
            let text = "one token a second";
            let out = &mut connection.out;
            return reject(out, tag, RejectCode::Overloaded, 0, retry_ms, text);
        }
        live.reauth_from = now + Duration::from_millis(REAUTH_PAUSE_MS);
        let now_s = self.now.unix_s();
        let keyring = &self.policy.keyring;
        let verified = keyring.verify(&reauth.token, now_s);
        let judged = verified.map_err(|error| error.word()).and_then(|claims| {
            if !may_renew(&live.session.identity, &claims) {
                return Err("other_user_or_device");
            }
            if self.revoking.list().hit(&claims, keyring.leeway_s()) {
                return Err("revoked");
            }
            Ok(Token::of(&claims))
        });
        let token = match judged {
            Ok(token) => token,
            Err(why) => {
                tracing::debug!(core = self.id.0, why, "a further token was refused");
                let user = live.session.identity.user.as_str();
                self.audit_refusal(why, connection.address, Some(user));
                return reject(&mut connection.out, tag, RejectCode::BadToken, 0, 0, "");
            }
        };
        let expires_s = token.expires_s;
        live.session.identity.token = token;
        self.set_alarm(live, connection.id);
        self.audit_renewal(&live.session.identity);
        let expires_in_s = expires_s.saturating_sub(now_s);
        let reauthed = v2::Reauthed { tag, expires_in_s };
        wire::encode_server(&mut connection.out, Frame::Reauthed(reauthed));
    }
}
