//! How long a message takes on its way, stage by stage: what a core records while it works.
//!
//! ```text
//!   frame read ─route─▶ published ─ring─▶ taken ─▶ proposed ─batch─▶ written ─sync─▶ durable ─apply─▶
//!   ├──────────────────────── accept ───────────────────────────────────────────────▶ Accepted leaves
//!   │                                                          durable ─────deliver──▶ entry leaves
//!   └──────────────────────── e2e ──────────────────────────────────────────────────▶ acknowledged
//! ```
//!
//! Each core has one [`Histograms`], which nobody else touches: recording is a few adds, without a lock
//! and without memory being asked for. An instant rides along as a [`Stamp`](crate::stamp::Stamp), six bytes that fit where
//! nothing was; what cannot carry one is found by its place in the log ([`Places`]).
//!
//! Who reads a clock is the shell. Nothing here does.

pub mod dump;
mod places;
pub mod plot;
pub mod text;
mod waits;

use hdrhistogram::Histogram;

pub use places::{PLACE_BYTES, PLACES, Places};
pub use waits::{INSTANTS_MAX, Waits};

/// Nanoseconds beyond which everything is recorded as this: two minutes.
pub const RECORDED_NS_MAX: u64 = 120_000_000_000;
/// Significant digits: what is read out is at most 1 % beside what was recorded. A third digit would take
/// eight times the memory, and with it the cores' caches.
const DIGITS: u8 = 2;

/// A part of the way whose time is recorded. The names are those of dumps and of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A connection: accepted to the end of the TLS handshake. The client's network is in it.
    Handshake,
    /// A session: its Hello read to its Welcome, with the token's signature, the way to the user's core and
    /// the sync that makes a new device known.
    Auth,
    /// A message for another core: its frame read to where the other core can see it.
    Route,
    /// A message or an answer between two cores: published to taken.
    Ring,
    /// A message: proposed to its shard to the write of its batch.
    Batch,
    /// A batch of a log: its write and its sync.
    Sync,
    /// The same batch: what its commit changes in memory.
    Apply,
    /// An entry for a session that was there: durable to its bytes going to the socket.
    Deliver,
    /// A message: its frame read to the bytes of its Accepted going to the socket.
    Accept,
    /// An entry for a session that was there: the sender's frame read to the recipient's acknowledgement read.
    E2e,
}

/// Number of stages.
pub const STAGES: usize = 10;

impl Stage {
    /// All of them, in the order of the way.
    pub const ALL: [Self; STAGES] = [
        Self::Handshake,
        Self::Auth,
        Self::Route,
        Self::Ring,
        Self::Batch,
        Self::Sync,
        Self::Apply,
        Self::Deliver,
        Self::Accept,
        Self::E2e,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Auth => "auth",
            Self::Route => "route",
            Self::Ring => "ring",
            Self::Batch => "batch",
            Self::Sync => "sync",
            Self::Apply => "apply",
            Self::Deliver => "deliver",
            Self::Accept => "accept",
            Self::E2e => "e2e",
        }
    }
}

/// One core's histograms, of nanoseconds.
#[derive(Clone, Debug)]
pub struct Histograms {
    stages: [Histogram<u64>; STAGES],
    /// When they were empty, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// Up to when they are filled; 0 while they still are.
    pub end_ms: u64,
}

impl Histograms {
    /// Empty ones.
    #[must_use]
    pub fn new(start_ms: u64) -> Self {
        let stages = [(); STAGES].map(|()| empty());
        Self {
            stages,
            start_ms,
            end_ms: 0,
        }
    }

    /// Something took so many nanoseconds.
    #[inline]
    pub fn record(&mut self, stage: Stage, ns: u64) {
        self.stages[stage as usize].saturating_record(ns);
    }

    /// The same of several.
    #[inline]
    pub fn record_n(&mut self, stage: Stage, ns: u64, count: u64) {
        self.stages[stage as usize].saturating_record_n(ns, count);
    }

    /// What a stage took.
    #[must_use]
    pub fn of(&self, stage: Stage) -> &Histogram<u64> {
        &self.stages[stage as usize]
    }

    /// Adds what others have; these began when the earlier ones did.
    pub fn add(&mut self, others: &Self) {
        for (own, other) in self.stages.iter_mut().zip(&others.stages) {
            let added = own.add(other);
            assert!(added.is_ok(), "histograms of one kind hold the same values");
        }
        self.start_ms = self.start_ms.min(others.start_ms);
    }

    /// Fills these, which are empty, with what the others have: a copy of memory.
    pub fn copy_from(&mut self, others: &Self) {
        for (own, other) in self.stages.iter_mut().zip(&others.stages) {
            let copied = own.set_to(other);
            assert!(
                copied.is_ok(),
                "histograms of one kind hold the same values"
            );
        }
        self.start_ms = others.start_ms;
        self.end_ms = others.end_ms;
    }
}

fn empty() -> Histogram<u64> {
    #[expect(
        clippy::expect_used,
        reason = "the bounds are constants that a test uses"
    )]
    Histogram::new_with_bounds(1, RECORDED_NS_MAX, DIGITS).expect("valid bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_its_own_place_and_name() {
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, number);
            let same = |other: &&Stage| other.name() == stage.name();
            assert_eq!(Stage::ALL.iter().filter(same).count(), 1);
        }
    }

    /// R: E-1
    #[test]
    fn what_is_recorded_is_read_out_within_one_percent_and_never_lost() {
        let mut all = Histograms::new(1);
        for ns in [1, 999, 12_345, 1_000_000, 61_000_000_000] {
            all.record(Stage::Sync, ns);
            let read = all.of(Stage::Sync).max();
            assert!(read.abs_diff(ns) * 100 <= ns, "{ns} read as {read}");
        }
        all.record_n(Stage::Sync, u64::MAX, 3);
        all.record(Stage::Sync, 0);
        assert_eq!(all.of(Stage::Sync).len(), 9);
        assert!(all.of(Stage::Sync).max() >= RECORDED_NS_MAX);
        assert_eq!(all.of(Stage::Batch).len(), 0);
    }

    #[test]
    fn a_copy_has_the_same_counts_and_times() {
        let mut all = Histograms::new(7);
        all.record_n(Stage::Accept, 250_000, 4);
        let mut copy = Histograms::new(9);
        copy.copy_from(&all);
        assert_eq!(copy.of(Stage::Accept), all.of(Stage::Accept));
        assert_eq!((copy.start_ms, copy.end_ms), (7, 0));
    }
}
