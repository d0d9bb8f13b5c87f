//! How much of each segment is still needed: the accounts that cleaning goes by.
//!
//! ```text
//!   segment   0      1      2      3 …
//!   live      0 B    9 MB   58 MB  active
//!             └ removable    └ not worth moving
//! ```
//!
//! Live are the bytes of messages that an inbox refers to. Everything else in a segment (cursors,
//! headers, what has left) is needed only for a replay, and a checkpoint ends that need.

use std::collections::BTreeMap;

use crate::log::SegmentSize;
use crate::shard::Change;

/// Live bytes of every segment that exists.
#[derive(Debug)]
pub struct Ledger {
    size: SegmentSize,
    live: BTreeMap<u64, u64>,
}

impl Ledger {
    /// Accounts of the segments that exist, nothing live in them yet.
    pub fn new(size: SegmentSize, segments: impl IntoIterator<Item = u64>) -> Self {
        Self {
            size,
            live: segments.into_iter().map(|segment| (segment, 0)).collect(),
        }
    }

    /// A segment has come into use.
    pub fn open(&mut self, segment: u64) {
        self.live.entry(segment).or_insert(0);
    }

    /// A segment has been removed.
    pub fn close(&mut self, segment: u64) {
        let live = self.live.remove(&segment);
        assert_eq!(live, Some(0), "a segment was removed that is needed");
    }

    /// Whether a segment exists.
    #[must_use]
    pub fn has(&self, segment: u64) -> bool {
        self.live.contains_key(&segment)
    }

    /// Books changes. Those of one batch lie in one segment, mostly, and are booked together.
    pub fn book(&mut self, changes: impl IntoIterator<Item = Change>) {
        let (mut segment, mut bytes) = (0, 0);
        for change in changes {
            let next = self.size.index_of(change.position);
            if next != segment {
                self.book_one(segment, bytes);
                (segment, bytes) = (next, 0);
            }
            bytes += change.bytes;
        }
        self.book_one(segment, bytes);
    }

    fn book_one(&mut self, segment: u64, bytes: i64) {
        if bytes == 0 {
            return;
        }
        let Some(live) = self.live.get_mut(&segment) else {
            // Only of an entry whose segment was found missing, and whose shard is not served.
            return;
        };
        let booked = live.checked_add_signed(bytes);
        assert!(booked.is_some(), "more left a segment than was in it");
        *live = booked.unwrap_or(0);
    }

    /// Live bytes of a segment; 0 for one that does not exist.
    #[must_use]
    pub fn live(&self, segment: u64) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// Live bytes of all segments.
    #[must_use]
    pub fn live_total(&self) -> u64 {
        self.live.values().sum()
    }

    /// Bytes of all segments in use.
    #[must_use]
    pub fn used_total(&self) -> u64 {
        self.live.len() as u64 * self.size.bytes()
    }

    /// Segments in use.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.live.len()
    }

    /// Bytes of the segments from `bound` on, and those of them that are live.
    #[must_use]
    pub fn since(&self, bound: u64) -> (u64, u64) {
        let (mut segments, mut live) = (0, 0);
        for (_, bytes) in self.live.range(bound..) {
            segments += 1;
            live += bytes;
        }
        (segments * self.size.bytes(), live)
    }

    /// The segments before `bound` and what is live in them, in order.
    pub fn before(&self, bound: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.live
            .range(..bound)
            .map(|(segment, live)| (*segment, *live))
    }
}
