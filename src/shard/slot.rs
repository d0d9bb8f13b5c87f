//! What the index of an inbox keeps of one entry, in twelve bytes: where its message lies in the log,
//! about how large it is, and about when it came.
//!
//! ```text
//!   position 54 bits │ bytes 14 bits, in units of 8, rounded up │ time 28 bits, in units of 16 s
//! ```
//!
//! Size and time are for retention and for the accounts of cleaning, which need them without reading
//! the log. An entry whose message is lost for ever keeps its place as a *gap*: its device is told.
//! Entries that a salvage skips because they may have existed are one slot, a *run* of gaps:
//! ```text
//!   2^54 - 2 │ entries 42 bits
//! ```

use crate::log::limits::ITEM_HEADER_BYTES;

/// Positions end here: at 100 MB/s without a pause, after five years. A log that comes near takes no
/// new messages (see `store`).
pub const POSITION_MAX: u64 = (1 << 54) - 3;
const POSITION_BITS: u32 = 54;
const GAP: u64 = (1 << POSITION_BITS) - 1;
const RUN: u64 = GAP - 1;
/// Entries of one run of gaps.
pub const RUN_ENTRIES_MAX: u64 = (1 << (UNITS_BITS + TIME_BITS)) - 1;
const UNIT_BYTES: u64 = 8;
const UNITS_BITS: u32 = 14;
/// Milliseconds in a unit of time: 28 bits of them reach the year 2106.
const UNIT_MS: u64 = 16_000;
const TIME_BITS: u32 = 28;

/// Bytes of a slot in a checkpoint.
pub const SLOT_BYTES: usize = 12;

const _: () = {
    assert!(POSITION_BITS + UNITS_BITS + TIME_BITS == 96);
    // The largest message, with all its names, has a size that can be told.
    assert!(iris_proto::limits::FRAME_BYTES_MAX as u64 + 1024 < UNIT_BYTES << UNITS_BITS);
    assert!(ITEM_HEADER_BYTES == UNIT_BYTES as usize);
};

/// One entry of an inbox's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    words: [u32; 3],
}

impl Slot {
    /// A message of `item_bytes` bytes (with its item header) at `position`, taken at `time_ms`, Unix
    /// milliseconds.
    ///
    /// # Panics
    /// Beyond [`POSITION_MAX`], where the log takes nothing.
    #[must_use]
    pub fn message(position: u64, item_bytes: usize, time_ms: u64) -> Self {
        assert!(
            position <= POSITION_MAX,
            "a position beyond the end of all logs"
        );
        let units = (item_bytes as u64)
            .div_ceil(UNIT_BYTES)
            .min((1 << UNITS_BITS) - 1);
        Self::pack(
            position,
            units,
            (time_ms / UNIT_MS).min((1 << TIME_BITS) - 1),
        )
    }

    /// An entry whose message is lost.
    #[must_use]
    pub fn gap(time_ms: u64) -> Self {
        Self::pack(GAP, 0, (time_ms / UNIT_MS).min((1 << TIME_BITS) - 1))
    }

    /// So many entries, one after another, that may have existed and are lost; at most
    /// [`RUN_ENTRIES_MAX`].
    ///
    /// # Panics
    /// For none, or more: that is our own mistake.
    #[must_use]
    pub fn run(entries: u64) -> Self {
        assert!(
            (1..=RUN_ENTRIES_MAX).contains(&entries),
            "a run without end"
        );
        Self::pack(
            RUN,
            entries & ((1 << UNITS_BITS) - 1),
            entries >> UNITS_BITS,
        )
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "packing words is the purpose"
    )]
    fn pack(position: u64, units: u64, time: u64) -> Self {
        let bits = u128::from(position)
            | u128::from(units) << POSITION_BITS
            | u128::from(time) << (POSITION_BITS + UNITS_BITS);
        Self {
            words: [bits as u32, (bits >> 32) as u32, (bits >> 64) as u32],
        }
    }

    fn bits(self) -> u128 {
        let [low, middle, high] = self.words.map(u128::from);
        low | middle << 32 | high << 64
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to its bits")]
    fn field(self, from: u32, bits: u32) -> u64 {
        (self.bits() >> from) as u64 & ((1 << bits) - 1)
    }

    /// Where its item begins in the log; `None` for gaps.
    #[must_use]
    pub fn position(self) -> Option<u64> {
        let position = self.field(0, POSITION_BITS);
        (position <= POSITION_MAX).then_some(position)
    }

    /// Whether it stands for a run of gaps.
    #[must_use]
    pub fn is_run(self) -> bool {
        self.field(0, POSITION_BITS) == RUN
    }

    /// Entries that it stands for: 1, but for a run of gaps. 0 only in bytes that nobody wrote.
    #[must_use]
    pub fn entries(self) -> u64 {
        match self.is_run() {
            true => self.field(POSITION_BITS, UNITS_BITS + TIME_BITS),
            false => 1,
        }
    }

    /// Bytes of its item, rounded up to a multiple of 8; 0 for a gap.
    #[must_use]
    pub fn bytes(self) -> u64 {
        if self.is_run() {
            return 0;
        }
        self.field(POSITION_BITS, UNITS_BITS) * UNIT_BYTES
    }

    /// When it came, in Unix milliseconds, up to 16 s early; 0 for a run of gaps.
    #[must_use]
    pub fn time_ms(self) -> u64 {
        if self.is_run() {
            return 0;
        }
        self.field(POSITION_BITS + UNITS_BITS, TIME_BITS) * UNIT_MS
    }

    /// The same message at another place.
    #[must_use]
    pub(super) fn moved(self, position: u64) -> Self {
        let (units, time) = (self.bytes() / UNIT_BYTES, self.time_ms() / UNIT_MS);
        Self::pack(position, units, time)
    }

    /// As a checkpoint holds it.
    #[must_use]
    pub(super) fn to_bytes(self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        for (bytes, word) in out.chunks_exact_mut(4).zip(self.words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads what [`Slot::to_bytes`] wrote.
    #[must_use]
    pub(super) fn from_bytes(bytes: [u8; SLOT_BYTES]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            words: [word(0), word(4), word(8)],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slot_gives_back_what_was_put_in(
            position in 0..=POSITION_MAX,
            bytes in 8usize..70_000,
            time_ms in 1_700_000_000_000u64..4_000_000_000_000,
            elsewhere in 0..=POSITION_MAX,
        ) {
            let slot = Slot::message(position, bytes, time_ms);
            prop_assert_eq!(slot.position(), Some(position));
            prop_assert!((bytes as u64..bytes as u64 + 8).contains(&slot.bytes()));
            prop_assert!((time_ms - UNIT_MS + 1..=time_ms).contains(&slot.time_ms()));
            let moved = slot.moved(elsewhere);
            prop_assert_eq!(moved.position(), Some(elsewhere));
            prop_assert_eq!((moved.bytes(), moved.time_ms()), (slot.bytes(), slot.time_ms()));
            prop_assert_eq!(Slot::from_bytes(slot.to_bytes()), slot);
        }
    }

    #[test]
    fn a_gap_has_no_position_and_no_bytes() {
        let gap = Slot::gap(1_790_000_000_000);
        assert_eq!((gap.position(), gap.bytes()), (None, 0));
        assert_eq!(size_of::<Slot>(), SLOT_BYTES);
    }

    #[test]
    fn a_run_of_gaps_is_one_slot_and_knows_how_many_it_stands_for() {
        for entries in [1, 2, 16_383, 16_384, 1_000_000, RUN_ENTRIES_MAX] {
            let run = Slot::from_bytes(Slot::run(entries).to_bytes());
            assert_eq!(run.entries(), entries);
            assert_eq!((run.position(), run.bytes(), run.time_ms()), (None, 0, 0));
        }
        assert_eq!(Slot::gap(1_790_000_000_000).entries(), 1);
        assert_eq!(Slot::message(POSITION_MAX, 100, 0).entries(), 1);
    }
}
