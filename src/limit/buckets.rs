//! A bucket for each of many keys.

use std::hash::Hash;

use hashbrown::HashMap;

use super::{Bucket, Rate};

/// Keys remembered by one [`Buckets`], in each of its two halves; what they take is some 64 MiB at most.
/// A further key is refused for as long as a refill takes.
pub const BUCKETS_MAX: usize = 1 << 20;

/// Buckets of one rate. One that is full is forgotten: a key that is not here has a full one.
///
/// There are two halves, and every refill's time the older one is let go: what was not used since then is
/// full. So forgetting costs no search.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    young: HashMap<K, Bucket>,
    old: HashMap<K, Bucket>,
    turn_at_us: u64,
}

impl<K: Eq + Hash> Buckets<K> {
    /// All full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            young: HashMap::new(),
            old: HashMap::new(),
            turn_at_us: 0,
        }
    }

    /// Another rate from now on. What was taken stays taken.
    pub fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// The rate.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one from a key's bucket.
    ///
    /// # Errors
    /// Nothing is left: milliseconds until something is, at least 1.
    pub fn take(&mut self, key: K, now_us: u64) -> Result<(), u64> {
        self.turn(now_us);
        if let Some(bucket) = self.young.get_mut(&key) {
            return bucket.take(&self.rate, now_us);
        }
        if self.young.len() >= BUCKETS_MAX {
            return Err(self.rate.refill_us().div_ceil(super::US_PER_MS));
        }
        let mut bucket = self.old.get(&key).copied().unwrap_or_default();
        let taken = bucket.take(&self.rate, now_us);
        if taken.is_ok() {
            self.young.insert(key, bucket);
        }
        taken
    }

    /// Keys whose buckets may not be full.
    #[must_use]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether all are full for certain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn turn(&mut self, now_us: u64) {
        if now_us < self.turn_at_us {
            return;
        }
        let is_long_ago = now_us >= self.turn_at_us + self.rate.refill_us();
        self.old = std::mem::take(&mut self.young);
        if is_long_ago {
            self.old = HashMap::new();
        }
        self.turn_at_us = now_us + self.rate.refill_us();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// R: A-6
    #[test]
    fn each_key_has_a_bucket_of_its_own() {
        let mut buckets = Buckets::new(Rate::new(1, 1, 2).unwrap());
        for key in ["ann", "bob"] {
            assert_eq!(buckets.take(key, 5), Ok(()));
            assert_eq!(buckets.take(key, 5), Ok(()));
            assert_eq!(buckets.take(key, 5), Err(1_000));
        }
    }

    /// R
    #[test]
    fn keys_that_were_silent_for_two_refills_take_no_memory() {
        let rate = Rate::new(1, 1, 3).unwrap();
        let mut buckets = Buckets::new(rate);
        (0..1_000).for_each(|key| buckets.take(key, 10).unwrap());
        assert_eq!(buckets.len(), 1_000);
        buckets.take(1_000, 10 + rate.refill_us()).unwrap();
        buckets.take(1_001, 10 + 2 * rate.refill_us()).unwrap();
        assert_eq!(buckets.len(), 2);
    }

    /// R: A-5
    #[test]
    fn at_the_bound_strangers_are_refused_and_those_who_are_known_go_on() {
        let mut buckets = Buckets::new(Rate::new(1, 1, 2).unwrap());
        (0..BUCKETS_MAX).for_each(|key| buckets.take(key, 10).unwrap());
        assert_eq!(buckets.take(BUCKETS_MAX, 10), Err(2_000));
        assert_eq!(buckets.take(7, 10), Ok(()));
        assert_eq!(buckets.len(), BUCKETS_MAX);
    }

    proptest! {
        /// R: A-6
        #[test]
        fn forgetting_full_buckets_changes_no_answer(
            count in 1..50_u64,
            burst in 1..20_u64,
            steps in proptest::collection::vec((0..4_u8, 0..400_000_u64), 1..300),
        ) {
            let rate = Rate::new(count, 1, burst).unwrap();
            let mut buckets = Buckets::new(rate);
            let mut kept = [Bucket::default(); 4];
            let mut now = 0;
            for (key, step) in steps {
                now += step;
                prop_assert_eq!(buckets.take(key, now), kept[key as usize].take(&rate, now));
            }
        }
    }
}
