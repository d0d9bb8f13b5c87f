//! All chance of a simulated world, from one seed.
//!
//! SplitMix64 (Steele, Lea, Flood 2014): small, fast, the same on every machine. Parts of the world
//! that decide independently get a dice of their own by [`Dice::fork`], so that a change of one does
//! not shift all others.

/// A seeded source of chance.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// A dice that always rolls the same for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 uniform bits.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Another dice, for the part of the world called `label`.
    #[must_use]
    pub fn fork(&mut self, label: u64) -> Self {
        Self(self.roll() ^ label.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// 0 to `bound`, without `bound`; 0 when that is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        ((self.roll() as u128 * bound as u128) >> 64) as u64
    }

    /// The same for an index.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the result is below a usize"
    )]
    pub const fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    /// `low` to `high`, both possible.
    pub const fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in so many of a hundred.
    pub const fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// True in so many of a million.
    pub const fn ppm(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }

    /// `low` to `high`, mostly near `low`: how long things take in a world where some take long.
    pub const fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low) + 1;
        let mut spread = self.below(span);
        let mut halvings = 3;
        while halvings > 0 {
            let other = self.below(span);
            if other < spread {
                spread = other;
            }
            halvings -= 1;
        }
        low + spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_rolls_the_same_and_another_does_not() {
        let rolls = |seed| {
            let mut dice = Dice::new(seed);
            [
                dice.roll(),
                dice.below(10),
                dice.range(3, 5),
                dice.fork(1).roll(),
            ]
        };
        assert_eq!(rolls(7), rolls(7));
        assert_ne!(rolls(7)[0], rolls(8)[0]);
    }

    #[test]
    fn what_is_rolled_stays_within_its_bounds_and_reaches_them() {
        let mut dice = Dice::new(1);
        let mut seen = [false; 3];
        for _ in 0..1_000 {
            let value = dice.range(10, 12);
            seen[usize::try_from(value - 10).unwrap()] = true;
            assert!((5..=50).contains(&dice.skewed(5, 50)));
            assert_eq!(dice.below(0), 0);
        }
        assert_eq!(seen, [true; 3]);
        assert!(!dice.percent(0) && dice.percent(100));
    }
}
