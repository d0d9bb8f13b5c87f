//! The orderly end: everything that was read is answered, everybody is told when to come back, and the
//! core ends when no other one can ask it for anything any more.
//!
//! ```text
//!   order ─▶ nothing new is read ─▶ own sends answered ─▶ Goodbye, and told to the other cores ─▶
//!         ─▶ all cores have said it ─▶ logs quiet, sockets closed ─▶ end          (or the deadline)
//! ```
//!
//! A send may be answered by another core than the one that read it. So a core says its Goodbyes only
//! when all sends of its own sessions are answered, and ends only when all cores have said theirs: until
//! then one of them may still ask for a write. What waits for a disk without room is not waited for
//! beyond [`FAREWELL`] before the deadline: nothing was promised of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iris_proto::v2::GoodbyeReason;

use super::{CLOSING_MAX, Core, jitter_ms};

/// Clients that are sent away by a shutdown come back within so many milliseconds, spread by jitter.
pub const SHUTDOWN_RETRY_MS: u64 = 2_000;
/// So long before its deadline a core says Goodbye whatever waits, for clients to see it; half of the
/// time that it was given, if that is less.
pub const FAREWELL: Duration = CLOSING_MAX;

/// How many cores have said their Goodbyes: what the cores of a node share when they stop.
#[derive(Debug)]
pub struct Farewells {
    cores: usize,
    said: AtomicUsize,
}

impl Farewells {
    /// Of so many cores none.
    #[must_use]
    pub fn new(cores: usize) -> Arc<Self> {
        Arc::new(Self {
            cores,
            said: AtomicUsize::new(0),
        })
    }

    /// One more has. What it sent before over the rings was published before.
    fn say(&self) {
        self.said.fetch_add(1, Ordering::AcqRel);
    }

    fn all_said(&self) -> bool {
        self.said.load(Ordering::Acquire) >= self.cores
    }
}

/// A core that stops.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draining {
    /// What is still open then is cut.
    deadline: Instant,
    /// Goodbye is said at the latest then.
    farewell: Instant,
    has_said_goodbye: bool,
}

impl Core {
    /// The order to stop. A second one changes nothing.
    pub(super) fn drain(&mut self, deadline: Instant) {
        if self.draining.is_some() {
            return;
        }
        let given = deadline.saturating_duration_since(self.now.monotonic);
        self.draining = Some(Draining {
            deadline,
            farewell: deadline - FAREWELL.min(given / 2),
            has_said_goodbye: false,
        });
        self.sockets.stop_listening();
        self.lanes.rest();
        self.gather_cursors();
    }

    /// Once all that was read is answered, everybody is sent away.
    pub(super) fn send_away(&mut self) {
        let Some(draining) = self.draining.filter(|it| !it.has_said_goodbye) else {
            return;
        };
        let is_answered = self.lanes.is_quiet() && self.connections.are_answered();
        if !is_answered && self.now.monotonic < draining.farewell {
            return;
        }
        self.draining = Some(Draining {
            has_said_goodbye: true,
            ..draining
        });
        for (index, id) in self.connections.ids().into_iter().enumerate() {
            let jitter = jitter_ms(index as u64 ^ self.now.unix_ms, SHUTDOWN_RETRY_MS);
            self.say_goodbye(id, GoodbyeReason::ShuttingDown, jitter);
        }
        self.publish();
        self.farewells.say();
    }

    /// Whether the core may end.
    pub(super) fn is_drained(&mut self) -> bool {
        let Some(draining) = self.draining else {
            return false;
        };
        if self.now.monotonic >= draining.deadline {
            return !self.lanes.is_syncing(); // what waits for room on the disk was promised to nobody
        }
        draining.has_said_goodbye
            && self.farewells.all_said()
            && self.connections.is_empty()
            && !self.mesh.has_mail() // looked at behind the others' farewells
            && !self.mesh.is_dirty()
            && self.lanes.effects.is_empty()
            && self.lanes.is_quiet()
    }
}
