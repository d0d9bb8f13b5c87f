//! What is counted while the load runs, on each thread alone, and what the others may see of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::verify::{Received, Sent, Violations};

/// Latencies beyond this many nanoseconds (ten minutes) are recorded as this.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Significant digits of the histograms: 0.1 % of the value.
const DIGITS: u8 = 3;

/// A message that leaves this long after its intended time is late.
pub const LATE_NS: u64 = 1_000_000;

/// A histogram of nanoseconds.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Latency {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the bounds are constants that a test uses"
        )]
        let histogram =
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("valid bounds");
        Self(histogram)
    }

    /// Records one.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Adds another one's.
    pub fn add(&mut self, other: &Self) {
        // The bounds are the same, so there is nothing that could not be added.
        let added = self.0.add(&other.0);
        assert!(added.is_ok(), "histograms of one kind add up");
    }

    /// The latency in microseconds that the part `quantile` of all stays within.
    #[must_use]
    pub fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The longest, in microseconds.
    #[must_use]
    pub fn max_micros(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    /// The histogram itself.
    #[must_use]
    pub const fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }
}

/// What one thread has counted within the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Accepted messages.
    pub accepted: u64,
    /// Entries received.
    pub delivered: u64,
    /// Messages that left over [`LATE_NS`] after their time.
    pub late: u64,
    /// Those of them that no connection had room for in time.
    pub held: u64,
    /// Messages of the schedule that were never sent.
    pub unsent: u64,
    /// Messages refused and sent again.
    pub refused: u64,
    /// Connections lost.
    pub lost: u64,
}

impl Counters {
    /// Adds another one's.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.late += other.late;
        self.held += other.held;
        self.unsent += other.unsent;
        self.refused += other.refused;
        self.lost += other.lost;
    }
}

/// The latencies of one second, or of what was left at an end.
#[derive(Debug)]
pub struct Snapshot {
    /// These were recorded before the measurement.
    pub warmup: bool,
    /// The phase in which they were recorded.
    pub phase: u32,
    /// Messages that left over [`LATE_NS`] after their time.
    pub late: u64,
    /// Send to Accepted.
    pub accept: Latency,
    /// Send to the recipient's entry.
    pub end_to_end: Latency,
}

impl Snapshot {
    /// An empty one.
    #[must_use]
    pub fn new(warmup: bool, phase: u32) -> Self {
        Self {
            warmup,
            phase,
            late: 0,
            accept: Latency::new(),
            end_to_end: Latency::new(),
        }
    }
}

/// What a thread leaves behind.
#[derive(Debug)]
pub struct Ended {
    /// The latencies since the last snapshot.
    pub snapshot: Snapshot,
    /// What it counted in the measured time.
    pub counters: Counters,
    /// For the final comparison.
    pub sent: Sent,
    /// For the final comparison.
    pub received: Received,
    /// What was found on the way.
    pub violations: Violations,
}

/// What a thread shows the coordinator while it runs. Written by the thread alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Progress {
    /// Connections that are logged in.
    pub ready: AtomicU64,
    /// Messages sent, since the beginning, without repetitions.
    pub sent: AtomicU64,
    /// Messages accepted.
    pub accepted: AtomicU64,
    /// Entries received.
    pub delivered: AtomicU64,
    /// Connections lost.
    pub lost: AtomicU64,
}

/// What all threads share with the coordinator.
#[derive(Debug)]
pub struct Shared {
    /// Time zero.
    began: Instant,
    /// The coordinator's: when load starts, the measurement starts, and both end. Nanoseconds;
    /// `u64::MAX` until known.
    pub load_from: AtomicU64,
    /// See `load_from`.
    pub measure_from: AtomicU64,
    /// See `load_from`.
    pub measure_until: AtomicU64,
    /// The coordinator's: to which part of a run latencies belong.
    pub phase: AtomicU32,
    /// Nothing new shall be sent.
    pub stop: AtomicBool,
    /// Those who were away may log in.
    pub let_in: AtomicBool,
    /// The threads shall end.
    pub finish: AtomicBool,
    /// A thread cannot go on.
    pub failed: AtomicBool,
    /// One per thread.
    pub progress: Vec<Progress>,
}

impl Shared {
    /// Before the connections are made.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            began: crate::run::instant(),
            load_from: AtomicU64::new(u64::MAX),
            measure_from: AtomicU64::new(u64::MAX),
            measure_until: AtomicU64::new(u64::MAX),
            phase: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            let_in: AtomicBool::new(false),
            finish: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            progress: (0..threads).map(|_| Progress::default()).collect(),
        }
    }

    /// Nanoseconds since time zero.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// The instant that is `ns` after time zero.
    #[must_use]
    pub fn instant(&self, ns: u64) -> Instant {
        self.began + Duration::from_nanos(ns)
    }

    /// The sum of one number over all threads.
    #[must_use]
    pub fn sum(&self, number: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.progress
            .iter()
            .map(|thread| number(thread).load(Ordering::Relaxed))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_keep_three_digits_and_add_up() {
        let (mut one, mut two) = (Latency::new(), Latency::new());
        one.record(1_500);
        two.record(1_000_000);
        two.record(u64::MAX);
        one.add(&two);
        assert_eq!(one.count(), 3);
        assert!((one.micros(0.3) - 1.5).abs() < 0.002, "{}", one.micros(0.3));
        assert!(
            (one.micros(0.5) - 1000.0).abs() < 1.0,
            "{}",
            one.micros(0.5)
        );
        assert!(one.max_micros() >= 6e8);
    }
}
