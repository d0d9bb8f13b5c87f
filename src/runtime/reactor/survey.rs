//! Which users hurt: a look at every inbox of the core, some at each tick, while somebody asks.
//!
//! ```text
//!   report asked for ─▶ wanted for a while ─▶ USERS_PER_TICK inboxes a tick ─▶ all seen: found, anew
//! ```
//!
//! A list of the worst that is kept up to date would cost every message something. This costs nothing
//! unless somebody has asked lately, and then a bounded piece of a turn, twenty times a second. What it
//! finds is as old as a whole look takes: 100,000 users of a core take 10 s. It says so.

use std::time::{Duration, Instant};

use iris_proto::id::Seq;

use super::Core;
use super::connection::Connections;
use crate::runtime::report::{InboxReport, UserLine};
use crate::runtime::stream::SocketId;
use crate::shard::user::User;

/// Inboxes that a tick looks at.
pub const USERS_PER_TICK: usize = 512;
/// For how long after a question the core goes on looking: whoever asks once a minute gets answers.
pub const WANTED_FOR: Duration = Duration::from_secs(90);
/// How early the time of an entry in an inbox may be.
const TIME_GRAIN_MS: u64 = 16_384;

/// Where the look around is.
#[derive(Debug)]
pub(super) struct Survey {
    wanted_until: Instant,
    began: Instant,
    /// The place in the core's shards, and in that shard's users.
    shard: usize,
    user: usize,
    finding: InboxReport,
    found: Option<InboxReport>,
}

impl Survey {
    pub fn new(now: Instant) -> Self {
        Self {
            wanted_until: now,
            began: now,
            shard: 0,
            user: 0,
            finding: InboxReport::default(),
            found: None,
        }
    }

    /// Somebody asks.
    pub fn want(&mut self, now: Instant) {
        self.wanted_until = now + WANTED_FOR;
    }

    /// What the last whole look found.
    pub fn found(&self) -> Option<InboxReport> {
        self.found.clone()
    }

    /// All inboxes were seen.
    fn finish(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.began);
        let mut found = std::mem::take(&mut self.finding);
        found.sweep_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.found = Some(found);
        self.restart(now);
    }

    fn restart(&mut self, now: Instant) {
        self.finding = InboxReport::default();
        (self.shard, self.user, self.began) = (0, 0, now);
    }
}

impl Core {
    /// Looks at the next inboxes, if somebody wants to know.
    pub(super) fn look_at_inboxes(&mut self) {
        let now = self.now.monotonic;
        if now >= self.survey.wanted_until {
            if self.survey.found.take().is_some() {
                self.survey.restart(now);
            }
            return;
        }
        let unix_ms = self.now.unix_ms;
        let mut left = USERS_PER_TICK;
        while left > 0 {
            let Some(shard) = self.lanes.shard_from(self.survey.shard) else {
                return self.survey.finish(now);
            };
            let users = shard.users();
            let (first, last) = (self.survey.user, users.len());
            let last = last.min(first + left);
            for nth in first..last {
                let slot = users.slot(nth);
                let (user, shard) = (users.get(slot), shard.id());
                let sessions = self.sessions.get(&(shard, slot));
                let mut line = line(user, unix_ms, sessions, &self.connections);
                line.shard = shard.0;
                self.survey.finding.add(line, || user.name().to_owned());
            }
            left -= (last - first).clamp(1, left); // an empty shard is work, too
            self.survey.user = last;
            if last == users.len() {
                (self.survey.shard, self.survey.user) = (self.survey.shard + 1, 0);
            }
        }
    }
}

/// What there is to say of one user.
fn line(
    user: &User,
    unix_ms: u64,
    sessions: Option<&Vec<SocketId>>,
    connections: &Connections,
) -> UserLine {
    let mut line = UserLine {
        pending: user.pending(),
        ..UserLine::default()
    };
    let Some(sessions) = sessions else {
        return line;
    };
    line.sessions = sessions.len() as u64;
    if line.pending == 0 {
        return line;
    }
    let live = sessions.iter().filter_map(|id| connections.live(*id));
    let slowest = live.map(|live| live.session.acknowledged()).min();
    let Some(slowest) = slowest else {
        return line;
    };
    line.behind = line.pending.min(user.head().0.saturating_sub(slowest.0));
    let next = Seq(slowest.0 + 1).max(user.oldest());
    let came_ms = user.slot(next).map_or(0, |slot| slot.time_ms());
    if line.behind > 0 && came_ms > 0 {
        line.waiting_ms = unix_ms.saturating_sub(came_ms + TIME_GRAIN_MS);
    }
    line
}
