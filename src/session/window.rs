//! The push window: how much may be on its way to a client that has not acknowledged it.
//!
//! Bounded in entries and in bytes, in O(1) memory: instead of the size of every entry under way, two
//! sums are kept, split at a mark.
//!
//! ```text
//!     acknowledged ─── older sum ─── mark ─── newer sum ─── pushed
//! ```
//!
//! An acknowledgement at or past the mark forgets the older sum and moves the mark to the end. The
//! sums are thus never too small, and too large by at most one acknowledgement.
//!
//! Entries need no sum while each has a position of its own: `pushed - acknowledged` is exact. A gap
//! takes many positions and counts as one entry, so the smaller of distance and sum holds.

use iris_proto::id::Seq;
use iris_proto::limits::{WINDOW_BYTES_MAX, WINDOW_ENTRIES_MAX};

/// Positions and sums of one session's push.
#[derive(Debug)]
pub struct Window {
    acknowledged: Seq,
    pushed: Seq,
    mark: Seq,
    older: Sum,
    newer: Sum,
}

/// What lies between two positions.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    /// Entries, and gaps as one each.
    entries: u64,
    bytes: u64,
}

impl Window {
    /// An empty window after `cursor`.
    #[must_use]
    pub fn new(cursor: Seq) -> Self {
        Self {
            acknowledged: cursor,
            pushed: cursor,
            mark: cursor,
            older: Sum::default(),
            newer: Sum::default(),
        }
    }

    /// The last acknowledged entry of this session.
    #[cfg(test)]
    pub fn acknowledged(&self) -> Seq {
        self.acknowledged
    }

    /// The last entry pushed.
    #[must_use]
    pub fn pushed(&self) -> Seq {
        self.pushed
    }

    /// Whether one more entry, of whatever size, may be pushed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let positions = self.pushed.0 - self.acknowledged.0;
        positions.min(self.older.entries + self.newer.entries) < u64::from(WINDOW_ENTRIES_MAX)
            && self.older.bytes + self.newer.bytes < WINDOW_BYTES_MAX
    }

    /// The entry after the last one is on its way.
    pub fn push(&mut self, seq: Seq, bytes: u64) {
        assert_eq!(seq.0, self.pushed.0 + 1, "an entry was pushed out of order");
        self.advance(seq, bytes);
    }

    /// The positions after the last one, `first` to `last`, are on their way as one gap.
    pub fn skip(&mut self, first: Seq, last: Seq) {
        assert_eq!(first.0, self.pushed.0 + 1, "a gap was pushed out of order");
        assert!(first <= last, "a gap ends before it begins");
        self.advance(last, 0);
    }

    fn advance(&mut self, seq: Seq, bytes: u64) {
        self.pushed = seq;
        self.newer.entries += 1;
        self.newer.bytes += bytes;
        if self.mark == self.acknowledged {
            // Nothing is older: from here on the older sum begins to be what it says.
            self.mark = seq;
            self.older = std::mem::take(&mut self.newer);
        }
    }

    /// The client has everything up to `seq`, clipped to what was pushed. Returns the new position
    /// when it moved.
    pub fn acknowledge(&mut self, seq: Seq) -> Option<Seq> {
        let seq = seq.min(self.pushed);
        if seq <= self.acknowledged {
            return None;
        }
        self.acknowledged = seq;
        if seq == self.pushed {
            *self = Self::new(seq);
        } else if seq >= self.mark {
            self.mark = self.pushed;
            self.older = std::mem::take(&mut self.newer);
        }
        assert!(self.acknowledged <= self.mark && self.mark <= self.pushed);
        Some(seq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_closes_at_its_entries_and_opens_with_an_acknowledgement() {
        let mut window = Window::new(Seq(0));
        for seq in 1..=u64::from(WINDOW_ENTRIES_MAX) {
            assert!(window.is_open());
            window.push(Seq(seq), 0);
        }
        assert!(!window.is_open());
        for acknowledged in 1..=3 {
            assert_eq!(
                window.acknowledge(Seq(acknowledged)),
                Some(Seq(acknowledged))
            );
            assert!(window.is_open());
            window.push(Seq(window.pushed().0 + 1), 0);
            assert!(!window.is_open(), "one for one");
        }
    }

    #[test]
    fn a_client_cannot_acknowledge_what_it_was_not_sent() {
        let mut window = Window::new(Seq(4));
        window.push(Seq(5), 1);
        assert_eq!(window.acknowledge(Seq(1_000)), Some(Seq(5)));
        assert_eq!(window.acknowledge(Seq(1_000)), None);
        assert_eq!(window.acknowledge(Seq(2)), None);
    }

    /// R: B-7, D-2
    #[test]
    fn a_gap_of_many_positions_counts_as_one_entry() {
        let mut window = Window::new(Seq(0));
        window.skip(Seq(1), Seq(10_000_000));
        for seq in 10_000_001..10_000_000 + u64::from(WINDOW_ENTRIES_MAX) {
            assert!(window.is_open());
            window.push(Seq(seq), 0);
        }
        assert!(!window.is_open());
        assert_eq!(window.acknowledge(Seq(500)), Some(Seq(500)));
        assert!(!window.is_open(), "the gap is still under way");
        window.acknowledge(Seq(10_000_000));
        assert!(window.is_open());
    }

    proptest! {
        /// R: B-7, D-2
        #[test]
        fn what_is_under_way_never_exceeds_the_bounds_by_more_than_one_entry_and_a_full_window_opens_again(
            steps in prop::collection::vec((0..8, 0u64..70_000), 1..500),
            scale in prop::sample::select(vec![1_u64, 70_000]),
        ) {
            let mut window = Window::new(Seq(0));
            let mut under_way: Vec<(u64, u64)> = Vec::new();
            for (step, amount) in steps {
                let next = window.pushed().0 + 1;
                match step {
                    0 => {
                        let seq = window.acknowledged().0 + amount % 700;
                        window.acknowledge(Seq(seq));
                        under_way.retain(|(pushed, _)| *pushed > seq);
                    }
                    1 if window.is_open() => {
                        window.skip(Seq(next), Seq(next + amount));
                        under_way.push((next + amount, 0));
                    }
                    _ => for seq in next..next + amount % 50 {
                        if window.is_open() {
                            window.push(Seq(seq), amount % scale);
                            under_way.push((seq, amount % scale));
                        }
                    },
                }
                let bytes: u64 = under_way.iter().map(|(_, bytes)| bytes).sum();
                prop_assert!(bytes < WINDOW_BYTES_MAX + 70_000);
                prop_assert!(bytes <= window.older.bytes + window.newer.bytes);
                prop_assert!(under_way.len() <= WINDOW_ENTRIES_MAX as usize);
                prop_assert!(under_way.len() as u64 <= window.older.entries + window.newer.entries);
                if under_way.is_empty() {
                    prop_assert!(window.is_open());
                }
            }
            let pushed = window.pushed();
            window.acknowledge(pushed);
            prop_assert!(window.is_open());
        }
    }
}
