//! Revoked tokens, on one core: a list that replaces the one before, and whoever it hits leaves.
//!
//! ```text
//!   admin thread: file durable ──▶ Control::Revoke(list) ──▶ the core's list ──▶ asked at each login
//!                                                                └─▶ sweep, some connections a turn
//! ```
//!
//! A login is judged on its user's core, when it enters and again when it goes live, and there only: on
//! its way between two cores it is in nobody's table, and the list may change meanwhile.

use std::sync::Arc;

use crossbeam_channel::Sender;
use iris_proto::v2::GoodbyeReason;

use super::Core;
use super::connection::{Connection, State};
use crate::auth::Revocations;
use crate::session::Identity;

/// Connections looked at in one turn: a table of 100,000 is through within 100 turns, and a turn takes
/// no longer than for as many events.
const SWEEP_CONNECTIONS: usize = 1024;

/// What a core knows of revocations, and how far it has looked for whom they hit.
#[derive(Default)]
pub(super) struct Revoking {
    list: Arc<Revocations>,
    /// The next place of the table to look at.
    at: usize,
    /// Places that were not looked at with this list.
    left: usize,
    /// Who waits for the end.
    taken: Option<Sender<()>>,
}

impl Revoking {
    pub fn new(list: Arc<Revocations>) -> Self {
        Self {
            list,
            ..Self::default()
        }
    }

    pub fn is_sweeping(&self) -> bool {
        self.left > 0
    }

    pub fn list(&self) -> &Revocations {
        &self.list
    }
}

impl Core {
    /// From now on this list holds. `taken` is told when nobody is left whom it hits; who waited for
    /// another list before is told nothing, and sees the end of its channel.
    pub(super) fn revoke(&mut self, list: Arc<Revocations>, taken: Sender<()>) {
        self.revoking.list = list;
        self.revoking.at = 0;
        self.revoking.left = self.connections.places();
        self.revoking.taken = Some(taken);
    }

    /// Looks at some connections. Those that log in meanwhile have met the list already, also at places
    /// that were added to the table since.
    pub(super) fn sweep(&mut self) {
        for _ in 0..SWEEP_CONNECTIONS.min(self.revoking.left) {
            self.revoking.left -= 1;
            let at = self.revoking.at;
            self.revoking.at += 1;
            if let Some(mut connection) = self.connections.take_at(at) {
                let identity = match &connection.state {
                    State::Entering(login) => Some(&login.identity),
                    State::Live(live) => Some(&live.session.identity),
                    State::Greeting | State::Leaving(..) | State::Closing => None,
                };
                if let Some(user) = identity.filter(|one| self.is_revoked(one)) {
                    let retry_ms = self.revoked_retry_ms(user);
                    self.leave(&mut connection, GoodbyeReason::Revoked, retry_ms);
                }
                self.connections.put_back(connection);
            }
        }
        if self.revoking.left == 0
            && let Some(taken) = self.revoking.taken.take()
        {
            let _ = taken.try_send(()); // who sent the list may have given up waiting
        }
    }

    /// Sends a login away whose token is revoked. True: it has left.
    pub(super) fn turn_away(&mut self, connection: &mut Connection, identity: &Identity) -> bool {
        let is_revoked = self.is_revoked(identity);
        if is_revoked {
            tracing::debug!(core = self.id.0, user = %identity.user, "a login with a revoked token was refused");
            let retry_ms = self.revoked_retry_ms(identity);
            self.leave(connection, GoodbyeReason::Revoked, retry_ms);
        }
        is_revoked
    }

    fn is_revoked(&self, identity: &Identity) -> bool {
        let (user, token) = (identity.user.as_str(), &identity.token);
        let leeway_s = self.policy.keyring.leeway_s();
        let list = &self.revoking.list;
        list.hits(user, token.issued_s, token.jti.as_deref(), leeway_s)
    }

    /// When a token issued then is taken.
    fn revoked_retry_ms(&self, identity: &Identity) -> u64 {
        let leeway_s = self.policy.keyring.leeway_s();
        let list = &self.revoking.list;
        list.wait_ms(identity.user.as_str(), leeway_s, self.now.unix_s())
    }
}
