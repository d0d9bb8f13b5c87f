//! Items: the pieces of an ENTRY record's payload, each with its own length and CRC.
//! ```text
//! len u32 │ crc u32 of (len bytes, payload) │ payload       no padding
//! ```
//! An item can be found by its position alone and verified alone, which is how a message is served
//! from the log long after its frame was checked.

use super::format::u32_at;
use super::limits::{ITEM_HEADER_BYTES, ITEM_PAYLOAD_BYTES_MAX};

/// Why bytes are not an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// The bytes end inside the header or the payload.
    #[error(
        "an item needs {needed} bytes here, {available} are there; the position is wrong or the \
         log is damaged: stop the node and run recovery on a copy"
    )]
    Short {
        /// Bytes that the item would take.
        needed: usize,
        /// Bytes up to the end of what may be read.
        available: usize,
    },
    /// The length is over the limit.
    #[error(
        "an item claims {len} bytes, at most {ITEM_PAYLOAD_BYTES_MAX} are possible; the position \
         is wrong or the log is damaged: stop the node and run recovery on a copy"
    )]
    Length {
        /// Bytes claimed.
        len: u32,
    },
    /// The CRC does not fit.
    #[error(
        "an item has stored crc {stored:#010x}, computed {computed:#010x}; the position is wrong \
         or the log is damaged: stop the node and run recovery on a copy"
    )]
    Crc {
        /// CRC found.
        stored: u32,
        /// CRC of the bytes.
        computed: u32,
    },
}

fn crc_of(len: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(payload);
    hasher.finalize()
}

/// Appends one item.
///
/// # Panics
/// When the payload is over [`ITEM_PAYLOAD_BYTES_MAX`]: commands have limits far below it.
pub fn item_encode_into(out: &mut Vec<u8>, payload: &[u8]) {
    assert!(
        payload.len() <= ITEM_PAYLOAD_BYTES_MAX,
        "an item over the limit"
    );
    let len = (payload.len() as u32).to_le_bytes();
    out.extend_from_slice(&len);
    out.extend_from_slice(&crc_of(len, payload).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Appends one item whose payload `fill` writes behind what is there.
///
/// # Panics
/// As [`item_encode_into`].
pub fn item_encode_with(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; ITEM_HEADER_BYTES]);
    fill(out);
    let payload = &out[at + ITEM_HEADER_BYTES..];
    assert!(
        payload.len() <= ITEM_PAYLOAD_BYTES_MAX,
        "an item over the limit"
    );
    let len = (payload.len() as u32).to_le_bytes();
    let crc = crc_of(len, payload).to_le_bytes();
    out[at..at + 4].copy_from_slice(&len);
    out[at + 4..at + 8].copy_from_slice(&crc);
}

/// Reads and verifies the item at the front of `bytes`: its payload, and the bytes it takes in all.
pub fn item_at(bytes: &[u8]) -> Result<(&[u8], usize), ItemError> {
    let available = bytes.len();
    let Some((header, rest)) = bytes.split_at_checked(ITEM_HEADER_BYTES) else {
        return Err(ItemError::Short {
            needed: ITEM_HEADER_BYTES,
            available,
        });
    };
    let len = u32_at(header, 0);
    if len as usize > ITEM_PAYLOAD_BYTES_MAX {
        return Err(ItemError::Length { len });
    }
    let needed = ITEM_HEADER_BYTES + len as usize;
    let Some(payload) = rest.get(..len as usize) else {
        return Err(ItemError::Short { needed, available });
    };
    let (stored, computed) = (u32_at(header, 4), crc_of(len.to_le_bytes(), payload));
    if stored != computed {
        return Err(ItemError::Crc { stored, computed });
    }
    Ok((payload, needed))
}

/// Items of an ENTRY record's payload, in order.
pub fn items(payload: &[u8]) -> Items<'_> {
    Items { payload, at: 0 }
}

/// Iterator over items: the offset of each item's header in the record's payload, and the item's
/// payload. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<(usize, &'a [u8]), ItemError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        if at >= self.payload.len() {
            return None;
        }
        match item_at(&self.payload[at..]) {
            Ok((item, taken)) => {
                self.at = at + taken;
                Some(Ok((at, item)))
            }
            Err(error) => {
                self.at = self.payload.len();
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// R: D-1
        #[test]
        fn items_come_back_in_order_with_their_offsets(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)
        ) {
            let mut out = Vec::new();
            let mut offsets = Vec::new();
            for payload in &payloads {
                offsets.push(out.len());
                item_encode_into(&mut out, payload);
            }
            let found: Vec<_> = items(&out).map(|item| item.unwrap()).collect();
            prop_assert_eq!(found.len(), payloads.len());
            for ((at, item), (offset, payload)) in found.iter().zip(offsets.iter().zip(&payloads)) {
                prop_assert_eq!(at, offset);
                prop_assert_eq!(*item, payload.as_slice());
            }
        }

        /// R: D-1
        #[test]
        fn one_flipped_bit_anywhere_in_an_item_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8u32,
        ) {
            let mut out = Vec::new();
            item_encode_into(&mut out, &payload);
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            prop_assert!(item_at(&out).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = item_at(&bytes);
            let _ = items(&bytes).count();
        }
    }

    #[test]
    fn zeros_are_not_an_item() {
        assert!(matches!(item_at(&[0; 64]), Err(ItemError::Crc { .. })));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_else() {
        let mut bytes = vec![0; 16];
        bytes[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(item_at(&bytes), Err(ItemError::Length { len: u32::MAX }));
    }
}
