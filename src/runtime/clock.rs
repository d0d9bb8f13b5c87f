//! The only place where the switch reads clocks: once a turn, and everybody else is told.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What time it was when the turn began.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Never goes back; for deadlines.
    pub monotonic: Instant,
    /// Milliseconds since the Unix epoch; for people, tokens and the log. May jump.
    pub unix_ms: u64,
}

impl Clock {
    /// Reads both clocks.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn read() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self {
            monotonic: Instant::now(),
            unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Seconds since the Unix epoch.
    #[must_use]
    pub fn unix_s(&self) -> u64 {
        self.unix_ms / 1_000
    }
}
