//! Commands: what may change a shard, as the bytes that lie in the log and cross the rings.
//!
//! A command is encoded once, on the core that read it from a socket, and never again: the same bytes
//! cross the ring, enter the batch, lie in the log, and are what an entry is served from. All integers
//! are little-endian.
//!
//! ```text
//!   APPEND    1 | to_len u8 | from_len u8 | device_len u8 | body_len u32 | epoch u64 | n u64
//!               | time_ms u64 | seq u64 | id 16 | to | from | device | body
//!   REGISTER  2 | user_len u8 | device_len u8 | 0 u8 | user | device
//!   CURSOR    3 | user_len u8 | device_len u8 | 0 u8 | 0 u32 | seq u64 | user | device
//!   TRIM      4 | user_len u8 | 0 u8 | 0 u8 | 0 u32 | oldest u64 | user
//! ```
//!
//! Only `seq` is written later: by the shard, when it knows the message's place in the inbox. So what
//! lies in the log says by itself whose entry it is, and which.
//!
//! Decoding checks every length, because a log may be read by another version than wrote it; text is
//! UTF-8 by its check at the edge and checked again here.

use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};
use thiserror::Error;

const KIND_APPEND: u8 = 1;
const KIND_REGISTER: u8 = 2;
const KIND_CURSOR: u8 = 3;
const KIND_TRIM: u8 = 4;

const APPEND_HEAD_BYTES: usize = 56;
/// Where in an APPEND its `seq` is.
const APPEND_SEQ_AT: usize = 32;
const REGISTER_HEAD_BYTES: usize = 4;
const CURSOR_HEAD_BYTES: usize = 16;
const TRIM_HEAD_BYTES: usize = 16;

/// A message for one inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append<'a> {
    /// The recipient.
    pub to: &'a str,
    /// The sender, as its token says.
    pub from: &'a str,
    /// The sender's device.
    pub device: &'a str,
    /// The sending device's send epoch.
    pub epoch: SendEpoch,
    /// Number within (device and epoch, recipient).
    pub n: SendNumber,
    /// When the switch read it, in milliseconds since the Unix epoch. For people; orders nothing.
    pub time_ms: u64,
    /// Its place in the recipient's inbox; zero until the recipient's shard has given it one.
    pub seq: Seq,
    /// The sender's name for the message.
    pub id: MessageId,
    /// Opaque content, at most `BODY_BYTES_MAX`.
    pub body: &'a [u8],
}

/// One change of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Store a message in an inbox.
    Append(Append<'a>),
    /// Make a device known and give it a cursor.
    Register {
        /// The device's user.
        user: &'a str,
        /// The device.
        device: &'a str,
    },
    /// Move a device's cursor forward.
    Cursor {
        /// The device's user.
        user: &'a str,
        /// The device.
        device: &'a str,
        /// Everything up to here is acknowledged.
        seq: Seq,
    },
    /// Let acknowledged entries leave an inbox.
    Trim {
        /// The inbox's user.
        user: &'a str,
        /// The first entry that stays.
        oldest: Seq,
    },
}

/// Why bytes are not a command. Met only on bytes that passed their CRC, so it means another version
/// or a bug, never a torn write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Fewer bytes than the lengths inside say, or more.
    #[error(
        "a command of {len} bytes contradicts the lengths in it; was the log written by another version?"
    )]
    Length {
        /// Bytes found.
        len: usize,
    },
    /// The first byte names no command.
    #[error("unknown command kind {kind}; the log was written by a newer version: start that one")]
    Kind {
        /// The byte found.
        kind: u8,
    },
    /// A name is not UTF-8.
    #[error("a name in a command is not UTF-8; was the log written by another version?")]
    Text,
}

impl Command<'_> {
    /// Appends the encoding to `out`. Names and body must be within the protocol's limits, which the
    /// edge has checked.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Command::Append(ref append) => append.encode(out),
            Command::Register { user, device } => {
                out.extend_from_slice(&[KIND_REGISTER, len_u8(user), len_u8(device), 0]);
                out.extend_from_slice(user.as_bytes());
                out.extend_from_slice(device.as_bytes());
            }
            Command::Cursor { user, device, seq } => {
                out.extend_from_slice(&[KIND_CURSOR, len_u8(user), len_u8(device), 0, 0, 0, 0, 0]);
                out.extend_from_slice(&seq.0.to_le_bytes());
                out.extend_from_slice(user.as_bytes());
                out.extend_from_slice(device.as_bytes());
            }
            Command::Trim { user, oldest } => {
                out.extend_from_slice(&[KIND_TRIM, len_u8(user), 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&oldest.0.to_le_bytes());
                out.extend_from_slice(user.as_bytes());
            }
        }
    }
}

/// Writes the place in the inbox into an encoded APPEND.
///
/// # Panics
/// When the bytes are too few for an APPEND.
pub fn set_seq(append: &mut [u8], seq: Seq) {
    append[APPEND_SEQ_AT..APPEND_SEQ_AT + 8].copy_from_slice(&seq.0.to_le_bytes());
}

impl Append<'_> {
    /// Appends the encoding to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let lens = [len_u8(self.to), len_u8(self.from), len_u8(self.device)];
        out.reserve(self.encoded_len());
        out.extend_from_slice(&[KIND_APPEND, lens[0], lens[1], lens[2]]);
        out.extend_from_slice(&len_u32(self.body).to_le_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.n.0.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.seq.0.to_le_bytes());
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(self.to.as_bytes());
        out.extend_from_slice(self.from.as_bytes());
        out.extend_from_slice(self.device.as_bytes());
        out.extend_from_slice(self.body);
    }

    /// Bytes of the encoding.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        APPEND_HEAD_BYTES + self.to.len() + self.from.len() + self.device.len() + self.body.len()
    }
}

/// Reads one command that fills `bytes` exactly.
pub fn decode(bytes: &[u8]) -> Result<Command<'_>, CommandError> {
    let mut rest = Reader { bytes, at: 0 };
    let [kind, a, b, c] = rest.array()?;
    let command = match kind {
        KIND_APPEND => {
            let body_len = u32::from_le_bytes(rest.array()?);
            let epoch = SendEpoch(u64::from_le_bytes(rest.array()?));
            let n = SendNumber(u64::from_le_bytes(rest.array()?));
            let time_ms = u64::from_le_bytes(rest.array()?);
            let seq = Seq(u64::from_le_bytes(rest.array()?));
            let id = MessageId(rest.array()?);
            let (to, from, device) = (rest.text(a)?, rest.text(b)?, rest.text(c)?);
            let body = rest.take(body_len as usize)?;
            Command::Append(Append {
                to,
                from,
                device,
                epoch,
                n,
                time_ms,
                seq,
                id,
                body,
            })
        }
        KIND_REGISTER => Command::Register {
            user: rest.text(a)?,
            device: rest.text(b)?,
        },
        KIND_CURSOR => {
            let _reserved: [u8; 4] = rest.array()?;
            let seq = Seq(u64::from_le_bytes(rest.array()?));
            Command::Cursor {
                user: rest.text(a)?,
                device: rest.text(b)?,
                seq,
            }
        }
        KIND_TRIM => {
            let _reserved: [u8; 4] = rest.array()?;
            let oldest = Seq(u64::from_le_bytes(rest.array()?));
            Command::Trim {
                user: rest.text(a)?,
                oldest,
            }
        }
        kind => return Err(CommandError::Kind { kind }),
    };
    if rest.at == bytes.len() {
        Ok(command)
    } else {
        Err(CommandError::Length { len: bytes.len() })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], CommandError> {
        let error = CommandError::Length {
            len: self.bytes.len(),
        };
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..len))
            .ok_or(error)?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CommandError> {
        let error = CommandError::Length {
            len: self.bytes.len(),
        };
        self.take(N)?.try_into().map_err(|_| error)
    }

    fn text(&mut self, len: u8) -> Result<&'a str, CommandError> {
        std::str::from_utf8(self.take(usize::from(len))?).map_err(|_| CommandError::Text)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "ids are bounded below 256 bytes at the edge"
)]
fn len_u8(text: &str) -> u8 {
    assert!(
        text.len() <= usize::from(u8::MAX),
        "an unchecked id reached the shard"
    );
    text.len() as u8
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "bodies are bounded at 64 KiB at the edge"
)]
fn len_u32(body: &[u8]) -> u32 {
    assert!(
        body.len() <= iris_proto::limits::BODY_BYTES_MAX,
        "an unchecked body reached the shard"
    );
    body.len() as u32
}

const _: () = {
    assert!(APPEND_HEAD_BYTES == 4 + 4 + 8 + 8 + 8 + 8 + 16);
    assert!(APPEND_SEQ_AT == 4 + 4 + 8 + 8 + 8);
    assert!(TRIM_HEAD_BYTES == 16);
    assert!(REGISTER_HEAD_BYTES == 4);
    assert!(CURSOR_HEAD_BYTES == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Command<'static>> {
        vec![
            Command::Append(Append {
                to: "ben",
                from: "ann",
                device: "phone",
                epoch: SendEpoch(0x0102_0304_0506_0708),
                n: SendNumber(9),
                time_ms: 1_790_000_000_000,
                seq: Seq(4),
                id: MessageId([0xab; 16]),
                body: b"hello",
            }),
            Command::Register {
                user: "ann",
                device: "phone",
            },
            Command::Cursor {
                user: "ann",
                device: "phone",
                seq: Seq(77),
            },
            Command::Trim {
                user: "ann",
                oldest: Seq(78),
            },
        ]
    }

    #[test]
    fn a_command_read_back_is_the_command_written() {
        for command in samples() {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            assert_eq!(decode(&bytes), Ok(command));
        }
    }

    #[test]
    fn a_command_cut_or_lengthened_anywhere_is_refused() {
        for command in samples() {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len]).is_err(), "{command:?} cut to {len}");
            }
            bytes.push(0);
            assert!(decode(&bytes).is_err(), "{command:?} with a byte more");
        }
    }

    #[test]
    fn the_place_in_the_inbox_can_be_written_into_an_encoded_append() {
        let Command::Append(append) = samples()[0] else {
            panic!("the first sample is an append");
        };
        let mut bytes = Vec::new();
        append.encode(&mut bytes);
        set_seq(&mut bytes, Seq(99));
        let seq = Seq(99);
        assert_eq!(
            decode(&bytes),
            Ok(Command::Append(Append { seq, ..append }))
        );
    }

    #[test]
    fn a_kind_of_a_newer_version_is_named() {
        assert_eq!(
            decode(&[200, 0, 0, 0]),
            Err(CommandError::Kind { kind: 200 })
        );
    }
}
