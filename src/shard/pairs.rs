//! The last number accepted from every active send stream: what makes a send exactly once.
//!
//! A *pair* is (sending device and its send epoch, recipient). All that must be remembered of it is
//! the last number accepted, because numbers are contiguous. The table keeps 20 bytes a pair:
//!
//! ```text
//!   fingerprint 96 bits (keyed SipHash-1-3-128 of the pair, cut) | day u16 << 48 | last number u48
//! ```
//!
//! and stays within 24 bytes a pair with its free slots (R: B-5): open addressing in order of the
//! fingerprint, filled between 6/7 and 9/10. Being ordered, it has one layout for one
//! content up to free slots, can be written out and compared as it lies, and grows in one streaming
//! pass.
//!
//! Two of 10⁸ pairs share a fingerprint with a probability below 10⁻¹³, and since the key is secret
//! nobody can look for such a pair. Pairs idle for seven days leave when the table would grow; time
//! comes with the entries, so every replay forgets the same pairs at the same entry.

use std::hash::Hasher;

use iris_proto::id::{SendEpoch, SendNumber};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::placement::HashKey;

/// Whole days after which an idle pair may be forgotten.
pub const PAIR_IDLE_DAYS: u16 = 7;
/// The highest number a stream can reach: 89 years at 100,000 a second.
pub const SEND_NUMBER_MAX: u64 = (1 << 48) - 1;
/// Slots beyond the home range, for the displaced ones of its end.
const TAIL_SLOTS: usize = 64;
/// Pairs for which the first allocation has room.
const PAIRS_MIN: usize = 8;

/// What stands for a pair. Never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint {
    high: u64,
    low: u32,
}

impl Fingerprint {
    /// The fingerprint of a pair under the data directory's key.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "96 of 128 bits are kept on purpose"
    )]
    pub fn of(key: HashKey, from: &str, device: &str, epoch: SendEpoch, to: &str) -> Self {
        let mut hasher = SipHasher13::new_with_key(&key.0);
        // Lengths first, so that no two different pairs feed the same bytes.
        hasher.write(&[from.len() as u8, device.len() as u8]);
        hasher.write_u64(epoch.0);
        hasher.write(from.as_bytes());
        hasher.write(device.as_bytes());
        hasher.write(to.as_bytes());
        let hash = hasher.finish128();
        Self {
            high: hash.h1,
            low: (hash.h2 as u32).max(1),
        }
    }

    /// 64 uniform bits of it, to key a map.
    #[must_use]
    pub fn low64(self) -> u64 {
        (self.high << 32) | u64::from(self.low)
    }
}

/// One slot as five words, so that it packs to 20 bytes: high (2), low, day and number (2).
type Slot = [u32; 5];
const EMPTY: Slot = [0; 5];
/// Bytes of one pair in a checkpoint.
pub const PAIR_BYTES: usize = size_of::<Slot>();

#[expect(
    clippy::cast_possible_truncation,
    reason = "splitting words is the purpose"
)]
fn slot_of(pair: Fingerprint, last: u64, day: u16) -> Slot {
    let value = (u64::from(day) << 48) | last;
    [
        (pair.high >> 32) as u32,
        pair.high as u32,
        pair.low,
        (value >> 32) as u32,
        value as u32,
    ]
}

fn pair_of(slot: &Slot) -> Fingerprint {
    Fingerprint {
        high: (u64::from(slot[0]) << 32) | u64::from(slot[1]),
        low: slot[2],
    }
}

fn last_of(slot: &Slot) -> u64 {
    ((u64::from(slot[3]) << 32) | u64::from(slot[4])) & SEND_NUMBER_MAX
}

fn day_of(slot: &Slot) -> u16 {
    (slot[3] >> 16) as u16
}

/// The table of one shard.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    slots: Vec<Slot>,
    /// Home positions: `slots` without its tail.
    homes: usize,
    len: usize,
}

impl Pairs {
    /// Pairs remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no pair is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory taken by the table.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    /// The last number accepted of a pair; zero when nothing is known of it.
    #[must_use]
    pub fn last(&self, pair: Fingerprint) -> SendNumber {
        match self.find(pair) {
            Ok(at) => SendNumber(last_of(&self.slots[at])),
            Err(_) => SendNumber(0),
        }
    }

    /// Remembers `last` as the last number of a pair, on `day` (days since the Unix epoch).
    pub fn set(&mut self, pair: Fingerprint, last: SendNumber, day: u16) {
        assert!(
            last.0 > 0 && last.0 <= SEND_NUMBER_MAX,
            "a number outside 1 to 2^48-1 was accepted"
        );
        let slot = slot_of(pair, last.0, day);
        match self.find(pair) {
            Ok(at) => self.slots[at] = slot,
            Err(_) => {
                if (self.len + 1) * 10 > self.homes * 9 {
                    self.grow(day);
                }
                while !self.insert(slot) {
                    self.rebuild(self.homes + self.homes / 12 + 1, None);
                }
            }
        }
    }

    /// All pairs in order of their fingerprint, as 20 bytes each: the same content gives the same
    /// bytes, whatever its history. Before them the number of pairs, and how many homes the table has,
    /// which says when it will forget idle pairs.
    pub fn write_state(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len as u64).to_le_bytes());
        out.extend_from_slice(&(self.homes as u64).to_le_bytes());
        out.reserve(self.len * PAIR_BYTES);
        for slot in self.slots.iter().filter(|slot| **slot != EMPTY) {
            for word in slot {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// The table that [`Pairs::write_state`] wrote `len` pairs and `homes` of; `None` when they are not
    /// in order or the numbers contradict each other.
    #[must_use]
    pub fn read_state(len: usize, homes: usize, pairs: &[u8]) -> Option<Self> {
        let is_plausible = pairs.len() == len.checked_mul(PAIR_BYTES)?
            && len <= homes
            && homes <= (len + PAIRS_MIN) * 16;
        if homes == 0 && len == 0 {
            return Some(Self::default());
        }
        if !is_plausible {
            return None;
        }
        let mut slots = Vec::with_capacity(len);
        for bytes in pairs.chunks_exact(PAIR_BYTES) {
            let mut slot = EMPTY;
            for (word, bytes) in slot.iter_mut().zip(bytes.chunks_exact(4)) {
                *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            let follows = slots
                .last()
                .is_none_or(|last| pair_of(last) < pair_of(&slot));
            if slot == EMPTY || !follows {
                return None;
            }
            slots.push(slot);
        }
        let mut table = Self {
            slots,
            homes: 0,
            len,
        };
        table.rebuild(homes, None);
        Some(table)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the product's high half is below `homes`"
    )]
    fn home(&self, pair: Fingerprint) -> usize {
        ((u128::from(pair.high) * self.homes as u128) >> 64) as usize
    }

    /// Where the pair is, or else where it would be put.
    fn find(&self, pair: Fingerprint) -> Result<usize, usize> {
        let start = if self.homes == 0 { 0 } else { self.home(pair) };
        for (offset, slot) in self.slots[start..].iter().enumerate() {
            if *slot == EMPTY {
                return Err(start + offset);
            }
            match pair_of(slot).cmp(&pair) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Ok(start + offset),
                std::cmp::Ordering::Greater => return Err(start + offset),
            }
        }
        Err(self.slots.len())
    }

    /// Puts a new pair in its place; false when the tail has no room for the shift.
    fn insert(&mut self, slot: Slot) -> bool {
        let Err(at) = self.find(pair_of(&slot)) else {
            unreachable!("only pairs that are not in the table are inserted");
        };
        let Some(shift) = self.slots[at..].iter().position(|slot| *slot == EMPTY) else {
            return false;
        };
        self.slots.copy_within(at..at + shift, at + 1);
        self.slots[at] = slot;
        self.len += 1;
        true
    }

    /// Makes room for one more: by forgetting idle pairs where that helps, by growing else.
    fn grow(&mut self, day: u16) {
        let live = |slot: &Slot| day.saturating_sub(day_of(slot)) <= PAIR_IDLE_DAYS;
        let kept = self
            .slots
            .iter()
            .filter(|slot| **slot != EMPTY && live(slot))
            .count();
        let homes = ((kept + 1) * 7 / 6).max(PAIRS_MIN); // filled to 6/7, and to 9/10 before the next
        self.rebuild(homes, Some(day));
    }

    /// Lays the pairs out over `homes` or, should the tail not hold what the last homes push out, over
    /// a little more. So `homes` and the content alone say where everything lies, and a table that was
    /// read back grows when the one that was written would have.
    fn rebuild(&mut self, mut homes: usize, forget_on: Option<u16>) {
        let mut old = std::mem::take(&mut self.slots);
        old.retain(|slot| {
            let idle =
                forget_on.is_some_and(|day| day.saturating_sub(day_of(slot)) > PAIR_IDLE_DAYS);
            *slot != EMPTY && !idle
        });
        self.len = old.len();
        loop {
            self.homes = homes;
            self.slots = Vec::with_capacity(homes + TAIL_SLOTS);
            for slot in &old {
                // In order, so each goes behind the one before it: to its home or right after.
                let at = self.home(pair_of(slot)).max(self.slots.len());
                self.slots.resize(at, EMPTY);
                self.slots.push(*slot);
            }
            if self.slots.len() <= homes + TAIL_SLOTS {
                self.slots.resize(homes + TAIL_SLOTS, EMPTY);
                return;
            }
            homes += homes / 12 + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KEY: HashKey = HashKey([3; 16]);

    fn pair(i: u64) -> Fingerprint {
        Fingerprint::of(KEY, "ann", "phone", SendEpoch(i + 1), "ben")
    }

    #[test]
    fn what_makes_two_streams_different_makes_their_fingerprints_different() {
        let of = |from, device, epoch, to| Fingerprint::of(KEY, from, device, SendEpoch(epoch), to);
        let base = of("ann", "phone", 1, "ben");
        assert_ne!(base, of("ann", "phone", 2, "ben"));
        assert_ne!(base, of("annp", "hone", 1, "ben"));
        assert_ne!(base, of("ann", "phoneb", 1, "en"));
        assert_ne!(base, of("ann", "phone", 1, "bet"));
    }

    /// R: B-5
    #[test]
    fn a_pair_costs_at_most_24_bytes_once_there_are_many() {
        let mut pairs = Pairs::default();
        for i in 0..200_000 {
            pairs.set(pair(i), SendNumber(1), 20_000);
            if i >= 10_000 && i % 1_000 == 0 {
                let per_pair = pairs.bytes() as f64 / pairs.len() as f64;
                assert!(per_pair <= 24.0, "{per_pair} bytes a pair at {i}");
            }
        }
    }

    /// R: B-5
    #[test]
    fn pairs_idle_for_more_than_seven_days_leave_and_others_stay() {
        let mut pairs = Pairs::default();
        for i in 0..1_000 {
            pairs.set(pair(i), SendNumber(5), 100);
        }
        for i in 1_000..2_500 {
            pairs.set(pair(i), SendNumber(6), 107);
        }
        assert_eq!(
            (0..1_000).filter(|i| pairs.last(pair(*i)).0 == 5).count(),
            1_000
        );
        for i in 2_500..5_000 {
            pairs.set(pair(i), SendNumber(7), 108);
        }
        assert_eq!(
            (0..1_000).filter(|i| pairs.last(pair(*i)).0 != 0).count(),
            0
        );
        assert!((1_000..2_500).all(|i| pairs.last(pair(i)).0 == 6));
    }

    proptest! {
        #[test]
        fn the_table_answers_as_a_map_does(steps in prop::collection::vec((0u64..400, 1u64..1_000), 1..2_000)) {
            let (mut pairs, mut model) = (Pairs::default(), BTreeMap::new());
            for (i, last) in steps {
                pairs.set(pair(i), SendNumber(last), 1);
                model.insert(pair(i), last);
                prop_assert_eq!(pairs.len(), model.len());
            }
            for i in 0..400 {
                prop_assert_eq!(pairs.last(pair(i)).0, model.get(&pair(i)).copied().unwrap_or(0));
            }
            let mut state = Vec::new();
            pairs.write_state(&mut state);
            let again = Pairs::read_state(pairs.len(), pairs.homes, &state[16..]).unwrap();
            let mut twice = Vec::new();
            again.write_state(&mut twice);
            prop_assert_eq!(&twice, &state);
            for i in 0..400 {
                prop_assert_eq!(again.last(pair(i)), pairs.last(pair(i)));
            }
            let mut expected = (model.len() as u64).to_le_bytes().to_vec();
            expected.extend_from_slice(&(pairs.homes as u64).to_le_bytes());
            for (pair, last) in model {
                for word in slot_of(pair, last, 1) {
                    expected.extend_from_slice(&word.to_le_bytes());
                }
            }
            prop_assert_eq!(state, expected);
        }
    }
}
