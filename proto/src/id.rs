//! Identifiers: what they name, what they may contain, and what may be compared.

use alloc::boxed::Box;
use core::fmt;

use crate::limits::{DEVICE_ID_BYTES_MAX, USER_ID_BYTES_MAX};

/// Why a piece of text is not an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// It has no characters.
    Empty,
    /// It has more bytes than the limit.
    TooLong {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// It has a byte outside printable ASCII (`!` to `~`).
    BadByte {
        /// Offset of the first such byte.
        at: usize,
    },
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "is empty; give 1 or more printable ASCII characters"),
            Self::TooLong { len, max } => write!(f, "has {len} bytes; at most {max} are allowed"),
            Self::BadByte { at } => write!(
                f,
                "has a byte at offset {at} that is not printable ASCII ('!' to '~')"
            ),
        }
    }
}

impl core::error::Error for IdError {}

const fn check(text: &str, max: usize) -> Result<(), IdError> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err(IdError::Empty);
    }
    if bytes.len() > max {
        return Err(IdError::TooLong {
            len: bytes.len(),
            max,
        });
    }
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_graphic() {
            return Err(IdError::BadByte { at });
        }
        at += 1;
    }
    Ok(())
}

/// Checks that `text` can name a user: 1 to [`USER_ID_BYTES_MAX`] bytes of printable ASCII.
pub const fn check_user(text: &str) -> Result<(), IdError> {
    check(text, USER_ID_BYTES_MAX)
}

/// Checks that `text` can name a device: 1 to [`DEVICE_ID_BYTES_MAX`] bytes of printable ASCII.
pub const fn check_device(text: &str) -> Result<(), IdError> {
    check(text, DEVICE_ID_BYTES_MAX)
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks and copies `text`.
            pub fn new(text: &str) -> Result<Self, IdError> {
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A user: what a token's `sub` says, byte for byte. Two ids are the same user only when equal.
    UserId, check_user
}

text_id! {
    /// One device of a user. Means nothing without the user.
    DeviceId, check_device
}

/// The device of a client that names none, neither in its token nor in its Hello.
pub const DEVICE_DEFAULT: &str = "main";

const _: () = assert!(check_device(DEVICE_DEFAULT).is_ok());

/// Position in one user's inbox: starts at 1, gains 1 per stored message, is never reused.
/// Zero stands for "before the first". Comparing two users' values means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// Number of a message within one (sending device and send epoch, recipient): 1, 2, 3 …
/// Comparing values of two such streams means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendNumber(pub u64);

/// A random name that a device gives to one unbroken run of its send counters. Only equality means
/// anything. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendEpoch(pub u64);

/// The sender's name for a message (UUIDv7 by convention, any 16 bytes by rule). The switch carries
/// it and never orders or deduplicates by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(pub [u8; 16]);
