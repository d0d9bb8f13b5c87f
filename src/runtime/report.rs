//! What a core says of itself when it is asked: plain numbers, copied out in its tick.
//!
//! ```text
//!   admin thread ── Control::Report(reply) ──▶ core, in its next tick ── CoreReport ──▶ admin thread
//! ```
//!
//! A report is a copy: nothing in it is shared, and a core that made one keeps nothing of it. What it
//! means (ready or not, which metric) is decided by who asked (`super::admin`).

use serde::{Deserialize, Serialize};

use super::certificate::Validity;
use super::storage::Space;

/// What a core has done since it started. Plain numbers of one thread; logged when it stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Turns of its loop.
    pub turns: u64,
    /// Times that it slept in its ring.
    pub sleeps: u64,
    /// Events taken from sockets, disks and jobs.
    pub events: u64,
    /// Sends submitted to sockets.
    pub sends: u64,
    /// Entries handed to sessions, repeated ones included.
    pub entries: u64,
    /// Syncs of its logs that returned.
    pub commits: u64,
    /// Batches of shards in them.
    pub committed: u64,
    /// Messages taken from sessions, whatever became of them.
    pub messages: u64,
    /// Messages whose senders were told that they are accepted.
    pub accepts: u64,
    /// Connections accepted, strangers of any kind.
    pub accepted: u64,
    /// Sessions begun.
    pub logins: u64,
    /// Tokens that were not taken, up to the rate.
    pub failed_logins: u64,
    /// Further tokens that were not taken, whose senders were told when to try again.
    pub refused_logins: u64,
    /// Good tokens that were not taken because they are revoked.
    pub revoked_logins: u64,
    /// Logins sent away because their user has as many sessions as it may.
    pub refused_sessions: u64,
    /// Sessions that ended because their tokens were revoked.
    pub revoked_sessions: u64,
    /// Handshakes that broke the rules of TLS.
    pub failed_handshakes: u64,
    /// Handshakes that waited for a later turn.
    pub deferred_handshakes: u64,
    /// Connections closed or sent away because the switch stops.
    pub refused_draining: u64,
    /// Connections closed or sent away because the core has as many sessions as it may.
    pub refused_full: u64,
    /// Connections closed because the core has as many strangers as it may.
    pub refused_handshakes: u64,
    /// Connections closed because their address has as many strangers on the core as it may.
    pub refused_crowd: u64,
    /// Connections closed because their address has as many as it may.
    pub refused_address: u64,
    /// Connections closed or sent away because the core was overloaded.
    pub shed_connections: u64,
    /// Messages refused because the core was overloaded.
    pub shed_sends: u64,
    /// Messages refused because the recipient's inbox was full.
    pub refused_inbox: u64,
    /// Messages refused because the disk was full.
    pub refused_disk: u64,
    /// Messages refused because their user had sent too many.
    pub limited_sends: u64,
    /// Times that a session was not read for a while because it talked too much.
    pub throttled: u64,
    /// Connections cut because the client did not read.
    pub write_timeouts: u64,
    /// Connections ended because a frame was not finished.
    pub frame_timeouts: u64,
    /// Connections ended because they sent far more TLS records than was in them.
    pub cut_for_records: u64,
}

impl Totals {
    /// Everything that was refused or cut, by reason.
    #[must_use]
    pub fn refusals(&self) -> [(&'static str, u64); 13] {
        [
            ("send: inbox full", self.refused_inbox),
            ("send: disk full", self.refused_disk),
            ("send: user's rate", self.limited_sends),
            ("send: overload", self.shed_sends),
            ("login: bad token", self.failed_logins),
            ("login: too many failed", self.refused_logins),
            ("connection: address", self.refused_address),
            ("connection: strangers", self.refused_handshakes),
            ("connection: core full", self.refused_full),
            ("connection: overload", self.shed_connections),
            ("connection: draining", self.refused_draining),
            ("cut: does not read", self.write_timeouts),
            ("cut: unfinished frame", self.frame_timeouts),
        ]
    }
}

/// One core at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // another version's may have fewer fields
pub struct CoreReport {
    /// Its number, from 0; not that of its processor.
    pub core: u16,
    /// What it has done.
    pub totals: Totals,
    /// Sockets of clients, strangers and closing ones included.
    pub connections: u64,
    /// Devices that are logged in here.
    pub sessions: u64,
    /// It stops: it takes no further connections.
    pub draining: bool,
    /// Connections of those sockets that have not logged in.
    pub strangers: u64,
    /// What it sheds: 0 nothing, then each step with those before: 1 signals, 2 fresh receipts, 3 new
    /// connections, 4 new sends.
    pub shed: u64,
    /// Microseconds since the switch started: when this was said.
    pub at_us: u64,
    /// How full it was lately.
    pub peaks: Peaks,
    /// Its users' inboxes. `None`: it has not looked at all of them since somebody asked.
    pub inboxes: Option<InboxReport>,
    /// When the certificate that it shows is valid. `None`: its dates cannot be read.
    pub certificate: Option<Validity>,
    /// Its logs, in order.
    pub logs: Vec<LogReport>,
}

/// The highest values of the last one to two seconds, whoever asks and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peaks {
    /// Parcels of other cores that waited in their rings for this one.
    pub ring_parcels: u64,
    /// Events of sockets, disks and jobs taken in one turn.
    pub turn_events: u64,
    /// Bytes of commands that waited for the logs.
    pub pending_bytes: u64,
}

/// Users named in each list of an [`InboxReport`].
pub const USERS_NAMED_MAX: usize = 10;

/// The inboxes of a core, or of all of them, as they were when they were last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InboxReport {
    /// Users that have an inbox.
    pub users: u64,
    /// Entries that some device has not acknowledged, of all of them.
    pub pending: u64,
    /// Milliseconds that looking at all of them took: how far apart two of these numbers may be.
    pub sweep_ms: u64,
    /// The users with the most such entries, most first, [`USERS_NAMED_MAX`] at most.
    pub backlogged: Vec<UserLine>,
    /// The users with a connected device that has left an entry unacknowledged for the longest, then with
    /// the most such entries; as many at most.
    pub slowest: Vec<UserLine>,
}

/// One user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserLine {
    /// Who.
    pub user: String,
    /// Where the inbox is.
    pub shard: u16,
    /// Sessions of this user's devices.
    pub sessions: u64,
    /// Entries that some device has not acknowledged, connected or not.
    pub pending: u64,
    /// Entries that some connected device has not acknowledged.
    pub behind: u64,
    /// Milliseconds that the oldest of those has waited, at least; an inbox knows it to 16 s.
    pub waiting_ms: u64,
}

impl InboxReport {
    /// Adds a user, whose name is made only if it is named.
    pub fn add(&mut self, line: UserLine, name: impl FnOnce() -> String) {
        self.users += 1;
        self.pending += line.pending;
        let is_backlogged = line.pending > 0 && has_place(&self.backlogged, &line, by_pending);
        let is_slow = line.behind > 0 && has_place(&self.slowest, &line, by_waiting);
        if !is_backlogged && !is_slow {
            return;
        }
        let line = UserLine {
            user: name(),
            ..line
        };
        if is_slow {
            insert(&mut self.slowest, line.clone(), by_waiting);
        }
        if is_backlogged {
            insert(&mut self.backlogged, line, by_pending);
        }
    }

    /// Both together.
    #[must_use]
    pub fn merged(mut self, other: &Self) -> Self {
        self.users += other.users;
        self.pending += other.pending;
        self.sweep_ms = self.sweep_ms.max(other.sweep_ms);
        for line in &other.backlogged {
            insert(&mut self.backlogged, line.clone(), by_pending);
        }
        for line in &other.slowest {
            insert(&mut self.slowest, line.clone(), by_waiting);
        }
        self
    }
}

/// What a list is ordered by, the highest first.
type Rank = (u64, u64);

fn by_pending(line: &UserLine) -> Rank {
    (line.pending, line.waiting_ms)
}

fn by_waiting(line: &UserLine) -> Rank {
    (line.waiting_ms, line.behind)
}

fn has_place(list: &[UserLine], line: &UserLine, by: fn(&UserLine) -> Rank) -> bool {
    list.len() < USERS_NAMED_MAX || list.last().is_some_and(|last| by(last) < by(line))
}

fn insert(list: &mut Vec<UserLine>, line: UserLine, by: fn(&UserLine) -> Rank) {
    let place = list.partition_point(|other| by(other) >= by(&line));
    if place < USERS_NAMED_MAX {
        list.insert(place, line);
        list.truncate(USERS_NAMED_MAX);
    }
}

/// One log at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogReport {
    /// Its number.
    pub log: u16,
    /// Position behind the last frame that was placed.
    pub end_lsn: u64,
    /// Position up to which all is durable.
    pub durable_lsn: u64,
    /// How it stands with its disk.
    pub space: Space,
    /// Segments with frames; spares are not counted.
    pub segments: u64,
    /// Shards that are not served because their data is damaged, in order.
    pub damaged_shards: Vec<u16>,
    /// Where recovery would begin to scan, by the last checkpoint. `None`: there is none.
    pub checkpoint_lsn: Option<u64>,
    /// Checkpoints that failed since the start.
    pub checkpoint_failures: u64,
    /// Bytes that messages which somebody may still want take in the log; 0 while not known.
    pub live_bytes: u64,
    /// Bytes of the segments with frames.
    pub used_bytes: u64,
    /// Entries that could not be read back as they were written, since the start.
    pub damaged_entries: u64,
}

impl Default for LogReport {
    fn default() -> Self {
        Self::new(0)
    }
}

impl LogReport {
    /// A log of which nothing is known yet.
    #[must_use]
    pub fn new(log: u16) -> Self {
        Self {
            log,
            end_lsn: 0,
            durable_lsn: 0,
            space: Space::Enough,
            segments: 0,
            damaged_shards: Vec::new(),
            checkpoint_lsn: None,
            checkpoint_failures: 0,
            live_bytes: 0,
            used_bytes: 0,
            damaged_entries: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pending: u64, behind: u64, waiting_ms: u64) -> UserLine {
        UserLine {
            pending,
            behind,
            waiting_ms,
            ..UserLine::default()
        }
    }

    fn names(list: &[UserLine]) -> Vec<&str> {
        list.iter().map(|line| line.user.as_str()).collect()
    }

    /// R: E-2
    #[test]
    fn the_worst_users_are_named_in_order_and_no_more_than_have_room() {
        let mut report = InboxReport::default();
        for user in 0..50_u64 {
            // 37 is a generator modulo 50's neighbour: every number once, in no order.
            let pending = user * 37 % 50;
            report.add(line(pending, pending % 2, 0), || format!("u{pending}"));
        }
        assert_eq!((report.users, report.pending), (50, 50 * 49 / 2));
        let wanted: Vec<String> = (40..50).rev().map(|user| format!("u{user}")).collect();
        assert_eq!(names(&report.backlogged), wanted);
        assert_eq!(report.slowest.len(), USERS_NAMED_MAX);
        assert!(report.slowest.iter().all(|line| line.behind == 1));
    }

    #[test]
    fn a_name_is_made_only_for_who_is_named() {
        let mut report = InboxReport::default();
        report.add(line(0, 0, 0), || panic!("nothing waits for this user"));
        report.add(line(9, 9, 9), || "a".to_owned());
        for _ in 1..USERS_NAMED_MAX {
            report.add(line(8, 8, 8), || "b".to_owned());
        }
        report.add(line(8, 8, 8), || panic!("who came first stays"));
        assert_eq!(report.users, 12);
    }

    #[test]
    fn two_cores_together_name_the_worst_of_both() {
        let (mut one, mut two) = (InboxReport::default(), InboxReport::default());
        one.add(line(5, 5, 0), || "far behind".to_owned());
        one.add(line(1, 1, 60_000), || "long ago".to_owned());
        two.add(line(7, 0, 90_000), || "not here".to_owned());
        two.add(line(2, 2, 30_000), || "a while".to_owned());
        let both = one.merged(&two);
        assert_eq!((both.users, both.pending), (4, 15));
        let backlogged = ["not here", "far behind", "a while", "long ago"];
        assert_eq!(names(&both.backlogged), backlogged);
        assert_eq!(names(&both.slowest), ["long ago", "a while", "far behind"]);
    }
}
