//! The only place where the switch reads clocks, and everybody else is told: all of them once a turn, and
//! the one that measures a few times more.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// All cores count their nanoseconds from here, so that one can go on with what another began.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// What they count at that instant: 0 would be nobody's instant.
const BEGAN_NS: u64 = 1_000_000_000;

/// What time it was when the turn began, and a little later.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Never goes back; for deadlines.
    pub monotonic: Instant,
    /// Milliseconds since the Unix epoch; for people, tokens and the log. May jump.
    pub unix_ms: u64,
    /// Nanoseconds, the same on all cores, read again now and then within the turn; for measuring.
    pub ns: u64,
}

impl Clock {
    /// Reads both clocks.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn read() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let monotonic = Instant::now();
        Self {
            monotonic,
            unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            ns: ns_of(monotonic),
        }
    }

    /// Reads again what time it is for measuring; deadlines stay those of the turn.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn touch(&mut self) {
        self.ns = ns_of(Instant::now());
    }

    /// Microseconds since the Unix epoch, at the newest reading.
    #[must_use]
    pub fn unix_us(&self) -> u64 {
        self.unix_ms * 1_000 + self.ns.saturating_sub(ns_of(self.monotonic)) / 1_000
    }

    /// Seconds since the Unix epoch.
    #[must_use]
    pub fn unix_s(&self) -> u64 {
        self.unix_ms / 1_000
    }
}

/// An instant as nanoseconds.
fn ns_of(instant: Instant) -> u64 {
    let since = instant.saturating_duration_since(*BEGAN);
    BEGAN_NS + since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
}
