//! The push window: how much may be on its way to a client that has not acknowledged it.
//!
//! Bounded in entries and in bytes, in O(1) memory: instead of the size of every entry under way, a few
//! sums are kept, each of a row of neighbours.
//!
//! ```text
//!     acknowledged ─┐
//!          │ row 1  ▼  │ row 2 │ row 3 │ … │ row n, growing │ pushed
//! ```
//!
//! An acknowledgement forgets the rows that it covers; one that it ends within counts in full. A row takes
//! no more once it has a quarter of a bound. The sums are thus never too small, and too large by less
//! than a quarter and one entry: a window of which less than half is under way is open, whenever the
//! client acknowledges.
//!
//! Entries need no sum while each has a position of its own: `pushed - acknowledged` is exact. A gap
//! takes many positions and counts as one entry, so the smaller of distance and sum holds.

use iris_proto::id::Seq;
use iris_proto::limits::{BODY_BYTES_MAX, WINDOW_BYTES_MAX, WINDOW_ENTRIES_MAX};

/// Parts of each bound after which a row takes no more.
const PARTS: u64 = 4;
/// Rows at most: `PARTS` that are full by entries, as many by bytes, and the growing one.
const ROWS_MAX: usize = 2 * PARTS as usize + 1;

const _: () = {
    // What one row can be too large by leaves room for half of the window.
    assert!(WINDOW_BYTES_MAX / PARTS + BODY_BYTES_MAX as u64 <= WINDOW_BYTES_MAX / 2);
    // A row's bytes fit their 32 bits.
    assert!(WINDOW_BYTES_MAX + BODY_BYTES_MAX as u64 <= u32::MAX as u64);
};

/// Positions and sums of one session's push.
#[derive(Debug)]
pub struct Window {
    acknowledged: Seq,
    pushed: Seq,
    /// The first `used` are rows, oldest first; the last of them grows.
    rows: [Row; ROWS_MAX],
    used: usize,
}

/// Neighbours under way.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    last: Seq,
    /// Entries, and gaps as one each.
    entries: u32,
    bytes: u32,
}

impl Row {
    fn is_full(&self) -> bool {
        u64::from(self.entries) >= u64::from(WINDOW_ENTRIES_MAX) / PARTS
            || u64::from(self.bytes) >= WINDOW_BYTES_MAX / PARTS
    }
}

impl Window {
    /// An empty window after `cursor`.
    #[must_use]
    pub fn new(cursor: Seq) -> Self {
        Self {
            acknowledged: cursor,
            pushed: cursor,
            rows: [Row::default(); ROWS_MAX],
            used: 0,
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
        let (entries, bytes) = self.under_way();
        entries < u64::from(WINDOW_ENTRIES_MAX) && bytes < WINDOW_BYTES_MAX
    }

    /// Entries and bytes that were not acknowledged, at least.
    fn under_way(&self) -> (u64, u64) {
        let positions = self.pushed.0 - self.acknowledged.0;
        let rows = self.rows[..self.used].iter();
        let entries = rows.clone().map(|row| u64::from(row.entries)).sum();
        let bytes = rows.map(|row| u64::from(row.bytes)).sum();
        (positions.min(entries), bytes)
    }

    /// The entry after the last one is on its way.
    pub fn push(&mut self, seq: Seq, bytes: u32) {
        assert_eq!(seq.0, self.pushed.0 + 1, "an entry was pushed out of order");
        self.advance(seq, bytes);
    }

    /// The positions after the last one, `first` to `last`, are on their way as one gap.
    pub fn skip(&mut self, first: Seq, last: Seq) {
        assert_eq!(first.0, self.pushed.0 + 1, "a gap was pushed out of order");
        assert!(first <= last, "a gap ends before it begins");
        self.advance(last, 0);
    }

    fn advance(&mut self, seq: Seq, bytes: u32) {
        self.pushed = seq;
        if self.used == 0 || self.rows[self.used - 1].is_full() {
            assert!(self.used < ROWS_MAX, "a push into a closed window");
            self.rows[self.used] = Row::default();
            self.used += 1;
        }
        let row = &mut self.rows[self.used - 1];
        row.last = seq;
        row.entries += 1;
        row.bytes = row.bytes.saturating_add(bytes);
    }

    /// The client has everything up to `seq`, clipped to what was pushed. Returns the new position
    /// when it moved.
    pub fn acknowledge(&mut self, seq: Seq) -> Option<Seq> {
        let seq = seq.min(self.pushed);
        if seq <= self.acknowledged {
            return None;
        }
        self.acknowledged = seq;
        let rows = &mut self.rows[..self.used];
        let covered = rows.iter().take_while(|row| row.last <= seq).count();
        rows.copy_within(covered.., 0);
        self.used -= covered;
        assert!(self.acknowledged <= self.pushed);
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

    /// R: B-7
    #[test]
    fn a_client_that_acknowledges_each_quarter_of_the_window_and_nothing_else_gets_everything() {
        for body in [1, 700, 4_096, 5_000, 65_536] {
            let mut window = Window::new(Seq(0));
            let (mut received, mut unacknowledged) = (0, (0, 0));
            while received < 20_000 {
                assert!(
                    window.is_open(),
                    "shut for ever with bodies of {body} bytes"
                );
                while window.is_open() {
                    window.push(Seq(window.pushed().0 + 1), body);
                }
                while received < window.pushed().0 {
                    received += 1;
                    unacknowledged = (unacknowledged.0 + 1, unacknowledged.1 + u64::from(body));
                    if unacknowledged.0 >= WINDOW_ENTRIES_MAX / 4
                        || unacknowledged.1 >= WINDOW_BYTES_MAX / 4
                    {
                        window.acknowledge(Seq(received));
                        unacknowledged = (0, 0);
                    }
                }
            }
        }
    }

    proptest! {
        /// R: B-7, D-2
        #[test]
        fn what_is_under_way_never_exceeds_the_bounds_by_more_than_one_entry_and_under_half_of_them_it_is_open(
            steps in prop::collection::vec((0..8, 0u64..65_537), 1..500),
            scale in prop::sample::select(vec![1_u64, 65_537]),
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
                            window.push(Seq(seq), (amount % scale) as u32);
                            under_way.push((seq, amount % scale));
                        }
                    },
                }
                let bytes: u64 = under_way.iter().map(|(_, bytes)| bytes).sum();
                prop_assert!(bytes < WINDOW_BYTES_MAX + BODY_BYTES_MAX as u64);
                prop_assert!(under_way.len() <= WINDOW_ENTRIES_MAX as usize);
                let (entries_counted, bytes_counted) = window.under_way();
                prop_assert!(bytes <= bytes_counted);
                prop_assert!(under_way.len() as u64 <= entries_counted);
                if under_way.len() < WINDOW_ENTRIES_MAX as usize / 2 && bytes < WINDOW_BYTES_MAX / 2 {
                    prop_assert!(window.is_open());
                }
            }
            let pushed = window.pushed();
            window.acknowledge(pushed);
            prop_assert!(window.is_open());
        }
    }
}
