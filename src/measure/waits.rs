//! Since when several things wait for the same end: the answers in a connection's next send.

use crate::stamp::Stamp;

/// Different instants that are kept. What comes with one more counts as the last of these: longer ago than
/// it was, never shorter.
pub const INSTANTS_MAX: usize = 4;

/// How many wait since which instants, the oldest first. Small, so that it costs an idle session little.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    runs: [(Stamp, u16); INSTANTS_MAX],
    used: u8,
}

impl Waits {
    /// One more waits, since then.
    #[inline]
    pub fn note(&mut self, since: Stamp) {
        let used = usize::from(self.used);
        if used > 0 {
            let (last, count) = &mut self.runs[used - 1];
            if *last == since || used == INSTANTS_MAX {
                *count = count.saturating_add(1);
                return;
            }
        }
        self.runs[used] = (since, 1);
        self.used += 1;
    }

    /// Whether nothing waits.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The end has come for all: each instant, and how many.
    #[inline]
    pub fn end(&mut self, mut each: impl FnMut(Stamp, u64)) {
        for (since, count) in &self.runs[..usize::from(self.used)] {
            each(*since, u64::from(*count));
        }
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(waits: &mut Waits) -> Vec<(Stamp, u64)> {
        let mut all = Vec::new();
        waits.end(|since, count| all.push((since, count)));
        all
    }

    #[test]
    fn those_of_one_instant_are_counted_together() {
        let mut waits = Waits::default();
        assert!(waits.is_empty());
        for ns in [5, 5, 9, 5] {
            waits.note(Stamp::of(ns));
        }
        let expected = [(5, 2), (9, 1), (5, 1)].map(|(ns, count)| (Stamp::of(ns), count));
        assert_eq!(end(&mut waits), expected);
        assert!(waits.is_empty() && end(&mut waits).is_empty());
    }

    #[test]
    fn none_is_lost_beyond_the_instants_that_are_kept_and_none_seems_shorter() {
        let mut waits = Waits::default();
        for ns in 1..=100 {
            waits.note(Stamp::of(ns));
        }
        let all = end(&mut waits);
        assert_eq!(all.len(), INSTANTS_MAX);
        assert_eq!(all.iter().map(|(_, count)| count).sum::<u64>(), 100);
        assert_eq!(all[INSTANTS_MAX - 1], (Stamp::of(4), 97));
    }
}
