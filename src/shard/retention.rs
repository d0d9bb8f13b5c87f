//! How long acknowledged entries stay: by age, by count, by size, whichever is over first (R: B-10).
//!
//! What may leave is a matter of configuration and of the clock, so it is decided once, where the
//! shard is led, and written as a TRIM command; a replay under another configuration lets the same
//! entries leave. Entries that some device has not acknowledged never leave.

use iris_proto::id::Seq;

use super::command::Command;
use super::user::UserSlot;
use super::{Change, Shard};
use crate::placement::user_hash;

/// Entries over a bound before an acknowledgement alone makes them leave: a command for each would be
/// more bytes than it frees. A sweep does not wait for so many.
pub const TRIM_ENTRIES_MIN: u64 = 64;

/// Bounds of one user's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Acknowledged entries.
    pub entries: u64,
    /// Bytes of all entries, those that wait for a device included; only acknowledged ones leave.
    pub bytes: u64,
    /// Milliseconds since the entry came.
    pub age_ms: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            entries: 10_000,
            bytes: 256 * 1024 * 1024,
            age_ms: 90 * 24 * 60 * 60 * 1_000,
        }
    }
}

impl Shard {
    /// Looks at the next `users` users and lets go what their history has too much.
    pub(super) fn sweep(&mut self, now_ms: u64, users: usize) {
        for _ in 0..users.min(self.users.len()) {
            if self.swept >= self.users.len() {
                self.swept = 0;
            }
            let slot = self.users.slot(self.swept);
            self.swept += 1;
            self.propose_trim(now_ms, slot, 1);
        }
    }

    /// Proposes that at least `entries_min` entries of history leave, if so many are over the bounds.
    pub(super) fn propose_trim(&mut self, now_ms: u64, slot: UserSlot, entries_min: u64) {
        let user = self.users.get(slot);
        let retention = &self.config.retention;
        let history = (user.floor().0 + 1).saturating_sub(user.oldest().0);
        if entries_min > 1
            && history < retention.entries.saturating_add(entries_min)
            && user.bytes() <= retention.bytes
        {
            return; // the usual case, without a look at the entries
        }
        let oldest = user.surplus(retention, now_ms);
        let oldest = oldest.filter(|oldest| oldest.0 >= user.oldest().0 + entries_min);
        let Some(oldest) = oldest else { return };
        let name = user.name().to_owned();
        let user = &name;
        self.propose_command(now_ms, None, &Command::Trim { user, oldest });
    }

    /// Lets entries leave, and notes that their messages are not needed any more.
    pub(super) fn apply_trim(&mut self, user: &str, oldest: Seq) {
        let Some(slot) = self.users.find(user, user_hash(self.key, user)) else {
            return;
        };
        let changes = &mut self.changes;
        self.users.get_mut(slot).trim(oldest, |slot| {
            let bytes = -slot.bytes().cast_signed();
            changes.extend(slot.position().map(|position| Change { position, bytes }));
        });
    }
}
