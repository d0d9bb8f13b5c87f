//! When sessions end: with their tokens. They are warned ahead, and a Reauth carries them on.
//!
//! Every live session has one alarm, `Live::alarm_s`: first to warn it, then to end it. A new token moves
//! it, and it goes with its session: however often tokens are renewed, there are as many alarms as
//! sessions.

use std::collections::BTreeSet;
use std::time::Duration;

use iris_proto::limits::REAUTH_PAUSE_MS;
use iris_proto::v2::server_frame::Frame;
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire;

use super::Core;
use super::connection::{Connection, Live, State};
use super::inbound::reject;
use crate::runtime::stream::SocketId;
use crate::session::Token;
use crate::session::login::{first_alarm_s, may_renew};

/// When sessions are to be warned or ended, in seconds since the Unix epoch. 0 is never.
#[derive(Debug, Default)]
pub(super) struct Alarms(BTreeSet<(u64, SocketId)>);

impl Alarms {
    /// Moves a session's alarm from when it was.
    fn put(&mut self, id: SocketId, was_s: u64, at_s: u64) {
        self.0.remove(&(was_s, id));
        if at_s > 0 {
            self.0.insert((at_s, id));
        }
    }

    /// The session whose alarm is due, if one is; its alarm is gone.
    fn due(&mut self, now_s: u64) -> Option<(u64, SocketId)> {
        if self.0.first()?.0 > now_s {
            return None;
        }
        self.0.pop_first()
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

impl Core {
    /// Sets the alarm of a session whose token was just taken.
    pub(super) fn set_alarm(&mut self, live: &mut Live, id: SocketId) {
        let end_s = live.session.identity.token.expires_s;
        let at_s = first_alarm_s(end_s, self.now.unix_s());
        self.move_alarm(live, id, at_s);
    }

    /// A session that ends has no alarm any more.
    pub(super) fn clear_alarm(&mut self, live: &mut Live, id: SocketId) {
        self.move_alarm(live, id, 0);
    }

    fn move_alarm(&mut self, live: &mut Live, id: SocketId, at_s: u64) {
        let was_s = std::mem::replace(&mut live.alarm_s, at_s);
        self.alarms.put(id, was_s, at_s);
    }

    /// Warns and ends the sessions whose time has come.
    pub(super) fn expire_sessions(&mut self) {
        assert!(
            self.alarms.len() == self.live_sessions,
            "one alarm for each session"
        );
        let now_s = self.now.unix_s();
        while let Some((at_s, id)) = self.alarms.due(now_s) {
            let Some(mut connection) = self.connections.take(id) else {
                unreachable!("an alarm goes with its session");
            };
            self.alarm(&mut connection, at_s, now_s);
            self.connections.put_back(connection);
        }
    }

    fn alarm(&mut self, connection: &mut Connection, at_s: u64, now_s: u64) {
        let id = connection.id;
        let Some(live) = connection.live().filter(|live| live.alarm_s == at_s) else {
            unreachable!("an alarm is its session's, and moves with its token");
        };
        let end_s = live.session.identity.token.expires_s;
        if end_s <= now_s {
            return self.leave(connection, GoodbyeReason::TokenExpired, 0);
        }
        self.move_alarm(live, id, end_s);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// R
    #[test]
    fn however_often_a_token_is_renewed_there_is_one_alarm_and_it_is_the_last() {
        let mut alarms = Alarms::default();
        let id = |slot| SocketId {
            slot,
            generation: 0,
        };
        alarms.put(id(1), 0, 50);
        let mut was_s = 0;
        for renewal in 0..10_000 {
            let at_s = 100 + renewal * 7 % 40; // to and fro, and the same again
            alarms.put(id(2), was_s, at_s);
            alarms.put(id(2), at_s, at_s);
            was_s = at_s;
        }
        assert_eq!(alarms.len(), 2);
        assert_eq!(alarms.due(49), None);
        assert_eq!(alarms.due(50), Some((50, id(1))));
        assert_eq!(alarms.due(u64::MAX), Some((was_s, id(2))));
        alarms.put(id(3), 0, 50);
        alarms.put(id(3), 50, 0);
        assert_eq!(alarms.due(u64::MAX), None);
    }
}
