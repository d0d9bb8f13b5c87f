//! Rates that are kept to: so much a second, and so much at once.
//!
//! ```text
//!   rate 5/s, burst 100:   ████████████████████ 100 at once, then one every 200 ms; 20 s of silence
//!                                               and it is 100 again
//! ```
//!
//! A [`Bucket`] is one number, the instant at which it will be full again, as in the generic cell rate
//! algorithm of ATM networks: no timer refills it. [`Buckets`] holds one for each of many keys and forgets
//! those that are full, so that it is as large as what happened lately and no larger.
//!
//! Pure: the caller says what time it is, in microseconds of a clock that does not go back.

mod buckets;
mod ladder;

pub use buckets::{BUCKETS_MAX, Buckets};
pub use ladder::{Ladder, STEPS_US, Shed};

const US_PER_S: u64 = 1_000_000;
const US_PER_MS: u64 = 1_000;

/// How much, and how much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Microseconds in which one is earned.
    interval_us: u64,
    /// What may come at once after a silence, as the microseconds in which it is earned.
    burst_us: u64,
}

impl Rate {
    /// `count` every `period_s` seconds, and `burst` at once; `None` when `count` is 0: no limit.
    ///
    /// # Panics
    /// When `period_s` or `burst` is 0, or a product of them with a second does not fit.
    #[must_use]
    pub fn new(count: u64, period_s: u64, burst: u64) -> Option<Self> {
        assert!(period_s > 0 && burst > 0, "a limit lets something through");
        let interval_us = (period_s * US_PER_S).checked_div(count)?.max(1);
        let burst_us = interval_us
            .checked_mul(burst)
            .expect("a burst of microseconds");
        Some(Self {
            interval_us,
            burst_us,
        })
    }

    /// How long an empty bucket takes to be full again, in microseconds.
    #[must_use]
    pub fn refill_us(&self) -> u64 {
        self.burst_us
    }
}

/// How much of a rate is left. The default is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it will be full, if nothing more is taken.
    full_at_us: u64,
}

impl Bucket {
    /// A bucket as [`Self::as_us`] wrote it.
    #[must_use]
    pub fn from_us(full_at_us: u64) -> Self {
        Self { full_at_us }
    }

    /// The instant at which it will be full.
    #[must_use]
    pub fn as_us(self) -> u64 {
        self.full_at_us
    }

    /// Whether something may be taken now.
    ///
    /// # Errors
    /// Milliseconds until something may be taken, at least 1.
    pub fn may_take(self, rate: &Rate, now_us: u64) -> Result<(), u64> {
        let after = self.full_at(rate, now_us) + rate.interval_us;
        match after.checked_sub(now_us + rate.burst_us) {
            None | Some(0) => Ok(()),
            Some(wait_us) => Err(wait_us.div_ceil(US_PER_MS)),
        }
    }

    /// Takes one.
    ///
    /// # Errors
    /// Nothing is left: milliseconds until something is, at least 1. The bucket is as before.
    pub fn take(&mut self, rate: &Rate, now_us: u64) -> Result<(), u64> {
        self.may_take(rate, now_us)?;
        self.full_at_us = self.full_at(rate, now_us) + rate.interval_us;
        Ok(())
    }

    /// Nobody waits longer than an empty bucket takes, whatever the rate was when something was taken.
    fn full_at(self, rate: &Rate, now_us: u64) -> u64 {
        self.full_at_us.clamp(now_us, now_us + rate.burst_us)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// R: A-6
    #[test]
    fn a_burst_passes_at_once_and_then_one_for_each_interval() {
        let rate = Rate::new(5, 1, 100).unwrap();
        let mut bucket = Bucket::default();
        let now = 1_000_000_000;
        for _ in 0..100 {
            assert_eq!(bucket.take(&rate, now), Ok(()));
        }
        assert_eq!(bucket.take(&rate, now), Err(200));
        assert_eq!(bucket.take(&rate, now + 199_000), Err(1));
        assert_eq!(bucket.take(&rate, now + 200_000), Ok(()));
        assert_eq!(bucket.take(&rate, now + 200_000), Err(200));
    }

    /// R: A-6
    #[test]
    fn a_silence_as_long_as_a_refill_gives_the_whole_burst_back_and_a_longer_one_no_more() {
        let rate = Rate::new(5, 1, 100).unwrap();
        let mut bucket = Bucket::default();
        let (now, much_later) = (50, 50 + 10 * rate.refill_us());
        while bucket.take(&rate, now).is_ok() {}
        let taken = (0..1_000)
            .filter(|_| bucket.take(&rate, much_later).is_ok())
            .count();
        assert_eq!(taken, 100);
    }

    /// R: A-6
    #[test]
    fn a_rate_that_is_changed_makes_nobody_wait_longer_than_the_new_one_says() {
        let (slow, fast) = (
            Rate::new(1, 1, 10_000).unwrap(),
            Rate::new(5, 1, 100).unwrap(),
        );
        let (mut bucket, now) = (Bucket::default(), 77);
        while bucket.take(&slow, now).is_ok() {}
        assert_eq!(bucket.take(&fast, now), Err(200));
    }

    #[test]
    fn a_count_of_zero_is_no_limit() {
        assert_eq!(Rate::new(0, 60, 1), None);
    }

    proptest! {
        /// R: A-6
        #[test]
        fn no_span_of_time_lets_more_through_than_its_burst_and_what_is_earned_in_it(
            count in 1..2_000_u64,
            burst in 1..500_u64,
            steps in proptest::collection::vec(0..50_000_u64, 1..500),
        ) {
            let rate = Rate::new(count, 1, burst).unwrap();
            let (mut bucket, mut now, mut passed) = (Bucket::default(), 7, Vec::new());
            for step in steps {
                now += step;
                match bucket.take(&rate, now) {
                    Ok(()) => passed.push(now),
                    Err(ms) => {
                        prop_assert!(ms >= 1);
                        prop_assert_eq!(bucket.may_take(&rate, now + ms * 1_000), Ok(()));
                    }
                }
            }
            for from in 0..passed.len() {
                for to in from..passed.len() {
                    let earned = (passed[to] - passed[from]) / rate.interval_us;
                    let more = (to - from) as u64;
                    prop_assert!(more <= burst + earned);
                }
            }
        }
    }
}
