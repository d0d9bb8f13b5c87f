//! The Protobuf encoding as far as this protocol needs it: varints, keys, values.
//!
//! Reading borrows from the input and takes no memory. Groups are malformed here (see `iris.proto`).

use alloc::vec::Vec;

/// The bytes are not a Protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// One field's value, by wire type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Value<'a> {
    #[inline]
    pub(super) const fn varint(self) -> Result<u64, Malformed> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(Malformed),
        }
    }

    /// As Protobuf wants it for `uint32`: the low 32 bits.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "Protobuf's rule for uint32"
    )]
    #[inline]
    pub(super) const fn varint32(self) -> Result<u32, Malformed> {
        match self {
            Self::Varint(value) => Ok(value as u32),
            _ => Err(Malformed),
        }
    }

    #[inline]
    pub(super) const fn fixed64(self) -> Result<u64, Malformed> {
        match self {
            Self::Fixed64(value) => Ok(value),
            _ => Err(Malformed),
        }
    }

    #[inline]
    pub(super) const fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(value) => Ok(value),
            _ => Err(Malformed),
        }
    }

    #[inline]
    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        core::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }
}

/// Walks over the fields of one message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next field's number and value.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        let number = key >> 3;
        if number == 0 {
            return Err(Malformed);
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            5 => {
                self.array::<4>()?;
                Value::Fixed32
            }
            _ => return Err(Malformed),
        };
        Ok(Some((number, value)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*array)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        if let Some((&byte, rest)) = self.0.split_first()
            && byte < 0x80
        {
            self.0 = rest;
            return Ok(u64::from(byte));
        }
        let mut value = 0;
        for (at, &byte) in self.0.iter().take(10).enumerate() {
            if at == 9 && byte > 1 {
                return Err(Malformed); // more than 64 bits
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }
}

/// Bytes of `value` as a varint: 1 to 10.
#[inline]
pub(super) const fn varint_len(value: u64) -> usize {
    ((64 - (value | 1).leading_zeros()) as usize).div_ceil(7)
}

/// Bytes of a varint field (number below 16) that is left out when 0.
#[inline]
pub(super) const fn uint_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

/// Bytes of a length-delimited field (number below 16) that is left out when empty.
#[inline]
pub(super) const fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() {
        return 0;
    }
    1 + varint_len(value.len() as u64) + value.len()
}

/// Bytes of a fixed64 field (number below 16) that is left out when 0.
#[inline]
pub(super) const fn fixed64_len(value: u64) -> usize {
    if value == 0 { 0 } else { 9 }
}

#[expect(clippy::cast_possible_truncation, reason = "7 bits at a time")]
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
pub(super) fn put_uint(out: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        out.push(number << 3);
        put_varint(out, value);
    }
}

#[inline]
pub(super) fn put_fixed64(out: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        out.push(number << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

#[inline]
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    if !value.is_empty() {
        out.push(number << 3 | 2);
        put_varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}
