//! What is shed when a core cannot keep up, step by step.
//!
//! ```text
//!   congested without a break for     shed, beside what is above
//!      50 ms                          typing, presence and other signals
//!     200 ms                          fresh receipts: they wait and are told together
//!     500 ms                          new connections and logins: closed or sent away
//!   1,000 ms                          new sends: refused, to be repeated
//! ```
//!
//! Congested means: the log has as much as it may hold that is not on disk yet, or a ring to another core
//! is full; then a core reads no sockets, and bytes stay with whoever sends them. That is back-pressure and
//! costs nobody anything as long as it is short. What lasts is said, to those who can do something else.
//! What was accepted is never shed: nothing below ends with an `Accepted`.
//!
//! One moment without congestion and all is taken again.

/// What is shed; each step with those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shed {
    /// Nothing.
    #[default]
    Nothing,
    /// Signals that are never stored.
    Signals,
    /// The freshness of receipts.
    Receipts,
    /// New connections and logins.
    Connections,
    /// New sends.
    Sends,
}

/// After how many microseconds of congestion each step begins.
pub const STEPS_US: [(u64, Shed); 4] = [
    (50_000, Shed::Signals),
    (200_000, Shed::Receipts),
    (500_000, Shed::Connections),
    (1_000_000, Shed::Sends),
];

/// Where a core stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ladder {
    since_us: Option<u64>,
    shed: Shed,
}

impl Ladder {
    /// Looks once more; what is shed from now on.
    pub fn look(&mut self, is_congested: bool, now_us: u64) -> Shed {
        self.since_us = is_congested.then(|| self.since_us.unwrap_or(now_us));
        let congested_us = self
            .since_us
            .map_or(0, |since| now_us.saturating_sub(since));
        let steps = STEPS_US.iter().rev();
        let step = steps
            .copied()
            .find(|(after_us, _)| congested_us >= *after_us);
        self.shed = step.map_or(Shed::Nothing, |(_, shed)| shed);
        self.shed
    }

    /// What is shed.
    #[must_use]
    pub fn shed(&self) -> Shed {
        self.shed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R: C-3, A-6
    #[test]
    fn the_longer_a_core_is_congested_the_more_is_shed_and_one_free_moment_ends_it() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.look(true, 1_000), Shed::Nothing);
        for (after_us, shed) in STEPS_US {
            assert!(ladder.look(true, 999 + after_us) < shed);
            assert_eq!(ladder.look(true, 1_000 + after_us), shed);
        }
        assert_eq!(ladder.look(false, 5_000_000), Shed::Nothing);
        assert_eq!(
            ladder.look(true, 5_000_001),
            Shed::Nothing,
            "it begins anew"
        );
    }

    /// R: C-3
    #[test]
    fn congestion_with_breaks_sheds_nothing_however_long_it_lasts() {
        let mut ladder = Ladder::default();
        for turn in 0..10_000 {
            assert_eq!(ladder.look(turn % 4 != 0, turn * 10_000), Shed::Nothing);
        }
    }
}
