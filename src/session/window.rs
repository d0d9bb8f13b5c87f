//! The push window: how much may be on its way to a client that has not acknowledged it.
//!
//! Bounded in entries and in bytes, in O(1) memory: instead of the size of every entry under way, two
//! sums are kept, split at a mark.
//!
//! ```text
//!     acknowledged ─── older bytes ─── mark ─── newer bytes ─── pushed
//! ```
//!
//! An acknowledgement at or past the mark forgets the older sum and moves the mark to the end. The
//! sums are thus never too small, and too large by at most one acknowledgement.

use iris_proto::id::Seq;
use iris_proto::limits::{WINDOW_BYTES_MAX, WINDOW_ENTRIES_MAX};

/// Positions and sums of one session's push.
#[derive(Debug)]
pub struct Window {
    acknowledged: Seq,
    pushed: Seq,
    mark: Seq,
    older_bytes: u64,
    newer_bytes: u64,
}

impl Window {
    /// An empty window after `cursor`.
    #[must_use]
    pub fn new(cursor: Seq) -> Self {
        Self {
            acknowledged: cursor,
            pushed: cursor,
            mark: cursor,
            older_bytes: 0,
            newer_bytes: 0,
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
        self.pushed.0 - self.acknowledged.0 < u64::from(WINDOW_ENTRIES_MAX)
            && self.older_bytes + self.newer_bytes < WINDOW_BYTES_MAX
    }

    /// The entry after the last one is on its way.
    pub fn push(&mut self, seq: Seq, bytes: u64) {
        assert_eq!(seq.0, self.pushed.0 + 1, "an entry was pushed out of order");
        self.pushed = seq;
        self.newer_bytes += bytes;
        if self.mark == self.acknowledged {
            // Nothing is older: from here on the older sum begins to be what it says.
            self.mark = seq;
            self.older_bytes = std::mem::take(&mut self.newer_bytes);
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
            self.older_bytes = std::mem::take(&mut self.newer_bytes);
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
        assert_eq!(window.acknowledge(Seq(1)), Some(Seq(1)));
        assert!(window.is_open());
    }

    #[test]
    fn a_client_cannot_acknowledge_what_it_was_not_sent() {
        let mut window = Window::new(Seq(4));
        window.push(Seq(5), 1);
        assert_eq!(window.acknowledge(Seq(1_000)), Some(Seq(5)));
        assert_eq!(window.acknowledge(Seq(1_000)), None);
        assert_eq!(window.acknowledge(Seq(2)), None);
    }

    proptest! {
        /// R: B-7
        #[test]
        fn bytes_under_way_never_exceed_the_bound_by_more_than_one_entry_and_a_full_window_opens_again(
            steps in prop::collection::vec((any::<bool>(), 0u64..70_000), 1..500)
        ) {
            let mut window = Window::new(Seq(0));
            let mut under_way: Vec<(u64, u64)> = Vec::new();
            for (push, amount) in steps {
                if push && window.is_open() {
                    let seq = window.pushed().0 + 1;
                    window.push(Seq(seq), amount);
                    under_way.push((seq, amount));
                } else {
                    let seq = window.acknowledged().0 + amount % 7;
                    window.acknowledge(Seq(seq));
                    under_way.retain(|(pushed, _)| *pushed > seq);
                }
                let bytes: u64 = under_way.iter().map(|(_, bytes)| bytes).sum();
                prop_assert!(bytes < WINDOW_BYTES_MAX + 70_000);
                prop_assert!(bytes <= window.older_bytes + window.newer_bytes);
                if under_way.is_empty() {
                    prop_assert!(window.is_open());
                }
            }
        }
    }
}
