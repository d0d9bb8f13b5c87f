//! Repeatable chance: everything random in a client session comes from the seed it was given.

/// SplitMix64 (Steele, Lea, Flood 2014): every 64-bit state once per period, well mixed.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Never zero: a send epoch must not be.
    pub(super) const fn nonzero(&mut self) -> u64 {
        loop {
            let value = self.next();
            if value != 0 {
                return value;
            }
        }
    }

    /// 0 to `bound`, both possible.
    pub(super) const fn upto(&mut self, bound: u64) -> u64 {
        match bound.checked_add(1) {
            Some(choices) => self.next() % choices,
            None => self.next(),
        }
    }
}

/// When to connect again: the upper bound doubles with each vain attempt, and the delay is anywhere
/// between nothing and it (full jitter), so that clients which lost the same switch come back spread
/// out. A hint of the switch comes on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Milliseconds of the first upper bound.
    pub base_ms: u64,
    /// Milliseconds that the upper bound grows to.
    pub max_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base_ms: crate::limits::BACKOFF_BASE_MS,
            max_ms: crate::limits::BACKOFF_MAX_MS,
        }
    }
}

impl Backoff {
    /// Milliseconds to wait before attempt number `attempt` (0 is the first).
    pub(super) fn delay_ms(self, attempt: u32, hint_ms: u64, chance: &mut Chance) -> u64 {
        let bound = self
            .base_ms
            .saturating_mul(1 << attempt.min(32))
            .min(self.max_ms);
        hint_ms.saturating_add(chance.upto(bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R: G-1
    #[test]
    fn delay_grows_to_its_bound_is_spread_and_honours_the_hint() {
        let backoff = Backoff {
            base_ms: 100,
            max_ms: 1_000,
        };
        let mut chance = Chance::new(7);
        for (attempt, bound) in [(0, 100), (1, 200), (3, 800), (4, 1_000), (u32::MAX, 1_000)] {
            let mut delay = || backoff.delay_ms(attempt, 0, &mut chance);
            let delays: [u64; 200] = core::array::from_fn(|_| delay());
            assert!(
                delays.iter().all(|&delay| delay <= bound),
                "attempt {attempt}"
            );
            assert!(
                delays.iter().any(|&delay| delay < bound / 4),
                "attempt {attempt}"
            );
            assert!(
                delays.iter().any(|&delay| delay > bound / 4 * 3),
                "attempt {attempt}"
            );
        }
        assert!((500..=600).contains(&backoff.delay_ms(0, 500, &mut chance)));
        assert_eq!(backoff.delay_ms(0, u64::MAX, &mut chance), u64::MAX);
    }
}
