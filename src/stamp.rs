//! An instant that travels with a message, for measuring; nothing is decided by it.

/// Bits of a stamp: nanoseconds come round after 78 hours.
const BITS: u32 = 48;
const MASK: u64 = (1 << BITS) - 1;

/// An instant in nanoseconds by the one clock of all cores, in six bytes. Two of them can be compared while
/// they are less than 39 hours apart. The default means that nobody noted one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp([u16; 3]);

impl Stamp {
    /// The instant `ns`.
    #[must_use]
    #[inline]
    pub fn of(ns: u64) -> Self {
        Self([ns as u16, (ns >> 16) as u16, (ns >> 32) as u16])
    }

    /// Whether nobody noted an instant.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// As a number below 2^48.
    #[must_use]
    #[inline]
    pub fn bits(self) -> u64 {
        let [low, middle, high] = self.0.map(u64::from);
        low | (middle << 16) | (high << 32)
    }

    /// Nanoseconds from it to `now_ns`; 0 when it is later, as it may be by what another core read.
    #[must_use]
    #[inline]
    pub fn elapsed(self, now_ns: u64) -> u64 {
        let passed = now_ns.wrapping_sub(self.bits()) & MASK;
        if passed >> (BITS - 1) == 0 { passed } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_from_a_stamp_also_where_it_comes_round() {
        for start in [1, 77, MASK - 5, MASK, MASK + 1, 5 * MASK] {
            for passed in [0, 1, 1_000, 60_000_000_000, 1 << 46] {
                assert_eq!(Stamp::of(start).elapsed(start + passed), passed, "{start}");
            }
        }
    }

    #[test]
    fn a_stamp_of_a_core_that_read_the_clock_later_is_no_time_ago() {
        assert_eq!(Stamp::of(1_000).elapsed(999), 0);
        assert_eq!(Stamp::of(MASK + 10).elapsed(MASK - 10), 0);
    }

    #[test]
    fn only_the_stamp_that_nobody_noted_is_none() {
        assert!(Stamp::default().is_none());
        assert!(!Stamp::of(1).is_none());
    }
}
