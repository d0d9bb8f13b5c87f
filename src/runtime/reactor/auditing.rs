//! What a core tells the audit log: who came in, who did not, and whom it threw out.

use std::net::IpAddr;

use iris_proto::v2::GoodbyeReason;

use super::Core;
use super::connection::{Connection, State};
use crate::audit::Event;
use crate::session::Identity;

impl Core {
    pub(super) fn audit(&mut self, event: Event) {
        self.audit.put(self.now.unix_ms, event);
    }

    pub(super) fn audit_login(&mut self, identity: &Identity, address: Option<IpAddr>) {
        let token = &identity.token;
        self.audit(Event::Login {
            user: identity.user.as_str().to_owned(),
            device: identity.device.as_str().to_owned(),
            address: network(address),
            expires_s: token.expires_s,
            jti: token.jti.as_deref().map(str::to_owned),
        });
    }

    pub(super) fn audit_renewal(&mut self, identity: &Identity) {
        let token = &identity.token;
        self.audit(Event::Renewed {
            user: identity.user.as_str().to_owned(),
            device: identity.device.as_str().to_owned(),
            expires_s: token.expires_s,
            jti: token.jti.as_deref().map(str::to_owned),
        });
    }

    pub(super) fn audit_refusal(
        &mut self,
        reason: &'static str,
        address: Option<IpAddr>,
        user: Option<&str>,
    ) {
        self.audit(Event::Refused {
            reason,
            address: network(address),
            user: user.map(str::to_owned),
        });
    }

    /// Whoever is told Goodbye before it is a session was refused.
    pub(super) fn audit_goodbye(&mut self, connection: &Connection, reason: GoodbyeReason) {
        let user = match &connection.state {
            State::Greeting => None,
            State::Entering(login) => Some(login.identity.user.as_str()),
            State::Live(live) if reason == GoodbyeReason::Revoked => {
                let identity = &live.session.identity;
                let (user, device) = (identity.user.as_str(), identity.device.as_str());
                let (user, device) = (user.to_owned(), device.to_owned());
                self.totals.revoked_sessions += 1;
                return self.audit(Event::Ended { user, device });
            }
            State::Live(_) | State::Leaving(..) | State::Closing => return,
        };
        self.totals.revoked_logins += u64::from(reason == GoodbyeReason::Revoked);
        match reason {
            // What was wrong with the token has been said; the others are no refusals.
            GoodbyeReason::BadToken
            | GoodbyeReason::ShuttingDown
            | GoodbyeReason::Normal
            | GoodbyeReason::Replaced => {}
            _ => {
                let name = reason.as_str_name();
                let name = name.strip_prefix("GOODBYE_REASON_").unwrap_or(name);
                self.audit_refusal(name, connection.address, user);
            }
        }
    }
}

/// What counts as one address: one of IPv4, or the first half of one of IPv6, which one host may have
/// all of.
fn network(address: Option<IpAddr>) -> String {
    match address.map(|address| address.to_canonical()) {
        None => "unknown".to_owned(),
        Some(IpAddr::V4(address)) => address.to_string(),
        Some(IpAddr::V6(address)) => {
            let half = u128::from(address) >> 64 << 64;
            format!("{}/64", std::net::Ipv6Addr::from(half))
        }
    }
}
