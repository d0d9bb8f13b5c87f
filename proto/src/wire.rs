//! What is inside a frame, read without copying and written straight into the send buffer.
//!
//! ```text
//!     frame bytes ─▶ decode_client ─▶ ClientFrameRef (to, body … point into the frame)
//!     Entry, Accepted … ─▶ encode_… ─▶ out: Vec<u8>, with its 4-byte length in front
//! ```
//!
//! Invariant: byte for byte what prost makes of the same schema, both ways, which the tests compare;
//! `docs/decisions/0001-hand-codec.md` has the numbers that justify a second codec. What a stranger
//! can send (Hello) and what comes per message (Send, Ack, Accepted, Entry, Gap, Ping, Pong) is done by
//! hand and takes no memory; the rare frames go through prost.
//! It does not know connections or order (see [`crate::frame`] and [`crate::client`]).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use prost::Message;

use crate::frame;
use crate::id::check_device;
use crate::limits::{CAPABILITIES_MAX, CAPABILITY_BYTES_MAX};
use crate::v2;

mod raw;
use raw::{Fields, Malformed, Value};

/// Why a frame could not be read, by what the receiver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes are not one frame. Say `Goodbye(BAD_FRAME)` and close.
    Malformed,
    /// The frame is of a kind that is not known here. A switch answers `Rejected(UNKNOWN_FRAME)` with
    /// this tag and goes on; a client goes on.
    UnknownFrame {
        /// The variant's field number; 0 when no variant is set at all.
        number: u32,
        /// The request's tag by the convention in `iris.proto`; 0 when it has none.
        tag: u64,
    },
    /// The frame is known, but one field is not allowed as it is. In Send and Fetch: answer
    /// `Rejected(BAD_FRAME)` with this tag and go on. In Hello: `Goodbye(BAD_FRAME)`.
    BadField {
        /// The request's tag; 0 when it has none.
        tag: u64,
        /// The field's name in `iris.proto`.
        field: &'static str,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the bytes are not an iris/2 frame"),
            Self::UnknownFrame { number, .. } => {
                write!(f, "frame variant {number} is not known here")
            }
            Self::BadField { field, .. } => {
                write!(f, "field `{field}` is missing or not allowed as it is")
            }
        }
    }
}

impl core::error::Error for DecodeError {}

impl From<Malformed> for DecodeError {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// A frame from a client, pointing into the bytes it was read from.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientFrameRef<'a> {
    /// The first frame.
    Hello(HelloRef<'a>),
    /// A message to store.
    Send(SendRef<'a>),
    /// Everything up to this seq is safe with the device.
    Ack(u64),
    /// A request for entries; its tag is not 0.
    Fetch(v2::Fetch),
    /// A nonce to send back.
    Ping(u64),
    /// The client is done.
    Goodbye(v2::Goodbye),
    /// A new token for the session; its tag is not 0. Not checked: the token.
    Reauth(v2::Reauth),
}

/// A frame from the switch, pointing into the bytes it was read from.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerFrameRef<'a> {
    /// The session has begun.
    Welcome(Box<v2::Welcome>),
    /// A Send is on stable storage.
    Accepted(v2::Accepted),
    /// A request was not carried out.
    Rejected(v2::Rejected),
    /// A message.
    Entry(EntryRef<'a>),
    /// A Fetch is complete.
    Fetched(v2::Fetched),
    /// A nonce come back.
    Pong(u64),
    /// The session is over.
    Goodbye(v2::Goodbye),
    /// Messages that do not exist any more. Not checked: that `first` and `last` make a range.
    Gap(v2::Gap),
    /// A new token was taken.
    Reauthed(v2::Reauthed),
    /// The session's token is about to end.
    Expiring(v2::Expiring),
}

/// See `Hello` in `iris.proto`. Checked: the device's characters, the epoch, the capabilities' count
/// and lengths. Not checked: the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloRef<'a> {
    /// The JWT; may be empty.
    pub token: &'a str,
    /// A valid device id, or empty.
    pub device: &'a str,
    /// Not 0.
    pub send_epoch: u64,
    /// The client's own position.
    pub resume_after: Option<u64>,
    /// Lowest version.
    pub version_min: u32,
    /// Highest version.
    pub version_max: u32,
    /// At most [`CAPABILITIES_MAX`] names of at most [`CAPABILITY_BYTES_MAX`] bytes.
    pub capabilities: Capabilities<'a>,
}

/// The capabilities of one Hello, read from its bytes each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities<'a>(&'a [u8]);

impl<'a> Capabilities<'a> {
    /// The names, in the order of the frame.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let mut fields = Fields(self.0);
        core::iter::from_fn(move || {
            loop {
                let (number, value) = fields.next().ok()??;
                if number == 7 {
                    return value.text().ok();
                }
            }
        })
    }
}

/// See `Send` in `iris.proto`. Checked: tag and n are not 0. Not checked: `to` and the body's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendRef<'a> {
    /// Echoed in the answer.
    pub tag: u64,
    /// The recipient, as sent; may be no valid user id.
    pub to: &'a str,
    /// The number in its stream.
    pub n: u64,
    /// The message's name.
    pub id: [u8; 16],
    /// The body.
    pub body: &'a [u8],
}

/// See `Entry` in `iris.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Position in the inbox.
    pub seq: u64,
    /// The sending user.
    pub from: &'a str,
    /// The sending device.
    pub from_device: &'a str,
    /// The message's name.
    pub id: [u8; 16],
    /// When the switch took it, Unix milliseconds.
    pub time_ms: u64,
    /// The body.
    pub body: &'a [u8],
    /// Not 0: part of the answer to that Fetch.
    pub fetch_tag: u64,
}

/// Reads one frame (without its length) that a client sent.
///
/// # Errors
/// By what to do next, see [`DecodeError`].
pub fn decode_client(bytes: &[u8]) -> Result<ClientFrameRef<'_>, DecodeError> {
    let (number, inner) = variant(bytes, 7)?;
    Ok(match number {
        1 => ClientFrameRef::Hello(hello(inner)?),
        2 => ClientFrameRef::Send(send(inner)?),
        3 => ClientFrameRef::Ack(single(inner, Value::varint)?),
        4 => {
            let fetch = rare::<v2::Fetch>(inner)?;
            require(fetch.tag != 0, 0, "tag")?;
            ClientFrameRef::Fetch(fetch)
        }
        5 => ClientFrameRef::Ping(single(inner, Value::fixed64)?),
        6 => ClientFrameRef::Goodbye(rare(inner)?),
        _ => {
            let reauth = rare::<v2::Reauth>(inner)?;
            require(reauth.tag != 0, 0, "tag")?;
            ClientFrameRef::Reauth(reauth)
        }
    })
}

/// Reads one frame (without its length) that the switch sent.
///
/// # Errors
/// By what to do next, see [`DecodeError`].
pub fn decode_server(bytes: &[u8]) -> Result<ServerFrameRef<'_>, DecodeError> {
    let (number, inner) = variant(bytes, 10)?;
    Ok(match number {
        1 => ServerFrameRef::Welcome(Box::new(rare(inner)?)),
        2 => ServerFrameRef::Accepted(accepted(inner)?),
        3 => ServerFrameRef::Rejected(rare(inner)?),
        4 => ServerFrameRef::Entry(entry(inner)?),
        5 => ServerFrameRef::Fetched(rare(inner)?),
        6 => ServerFrameRef::Pong(single(inner, Value::fixed64)?),
        7 => ServerFrameRef::Goodbye(rare(inner)?),
        8 => ServerFrameRef::Gap(gap(inner)?),
        9 => ServerFrameRef::Reauthed(rare(inner)?),
        _ => ServerFrameRef::Expiring(rare(inner)?),
    })
}

/// Finds the one variant, with numbers 1 to `known`, among the fields of a frame.
#[inline]
fn variant(bytes: &[u8], known: u32) -> Result<(u32, &[u8]), DecodeError> {
    let mut fields = Fields(bytes);
    let mut found = None;
    let mut unknown = None;
    while let Some((number, value)) = fields.next()? {
        if number > known {
            unknown.get_or_insert((number, value));
        } else if found.replace((number, value.bytes()?)).is_some() {
            return Err(DecodeError::Malformed); // exactly one variant
        }
    }
    found.ok_or_else(|| {
        let (number, tag) = unknown.map_or((0, 0), |(number, value)| (number, tag_of(value)));
        DecodeError::UnknownFrame { number, tag }
    })
}

/// The tag of a request of unknown kind: field 1, if it is a varint.
#[cold]
fn tag_of(value: Value<'_>) -> u64 {
    let mut fields = Fields(value.bytes().unwrap_or_default());
    while let Ok(Some((number, value))) = fields.next() {
        if number == 1 {
            return value.varint().unwrap_or(0);
        }
    }
    0
}

fn rare<M: Message + Default>(inner: &[u8]) -> Result<M, DecodeError> {
    M::decode(inner).map_err(|_| DecodeError::Malformed)
}

const fn require(holds: bool, tag: u64, field: &'static str) -> Result<(), DecodeError> {
    if holds {
        Ok(())
    } else {
        Err(DecodeError::BadField { tag, field })
    }
}

/// A message whose only field is number 1.
fn single<'a>(
    inner: &'a [u8],
    read: impl Fn(Value<'a>) -> Result<u64, Malformed>,
) -> Result<u64, DecodeError> {
    let mut fields = Fields(inner);
    let mut found = 0;
    while let Some((number, value)) = fields.next()? {
        if number == 1 {
            found = read(value)?;
        }
    }
    Ok(found)
}

fn hello(inner: &[u8]) -> Result<HelloRef<'_>, DecodeError> {
    let mut hello = HelloRef {
        token: "",
        device: "",
        send_epoch: 0,
        resume_after: None,
        version_min: 0,
        version_max: 0,
        capabilities: Capabilities(inner),
    };
    let mut capabilities = 0;
    let mut capability_bytes = 0;
    let mut fields = Fields(inner);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => hello.token = value.text()?,
            2 => hello.device = value.text()?,
            3 => hello.send_epoch = value.fixed64()?,
            4 => hello.resume_after = Some(value.varint()?),
            5 => hello.version_min = value.varint32()?,
            6 => hello.version_max = value.varint32()?,
            7 => {
                capabilities += 1;
                capability_bytes = capability_bytes.max(value.text()?.len());
            }
            _ => {}
        }
    }
    require(
        hello.device.is_empty() || check_device(hello.device).is_ok(),
        0,
        "device",
    )?;
    require(hello.send_epoch != 0, 0, "send_epoch")?;
    require(
        capabilities <= CAPABILITIES_MAX && capability_bytes <= CAPABILITY_BYTES_MAX,
        0,
        "capabilities",
    )?;
    Ok(hello)
}

#[inline]
fn send(inner: &[u8]) -> Result<SendRef<'_>, DecodeError> {
    let mut send = SendRef {
        tag: 0,
        to: "",
        n: 0,
        id: [0; 16],
        body: &[],
    };
    let mut to = Ok("");
    let mut id: &[u8] = &[];
    let mut fields = Fields(inner);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => send.tag = value.varint()?,
            // The last one counts, but none may be anything but text.
            2 => to = to.and(core::str::from_utf8(value.bytes()?)),
            3 => send.n = value.varint()?,
            4 => id = value.bytes()?,
            5 => send.body = value.bytes()?,
            _ => {}
        }
    }
    let tag = send.tag;
    require(tag != 0, tag, "tag")?;
    require(send.n != 0, tag, "n")?;
    send.to = to.map_err(|_| DecodeError::BadField { tag, field: "to" })?;
    send.id = id
        .try_into()
        .map_err(|_| DecodeError::BadField { tag, field: "id" })?;
    Ok(send)
}

#[inline]
fn accepted(inner: &[u8]) -> Result<v2::Accepted, DecodeError> {
    let mut accepted = v2::Accepted::default();
    let mut fields = Fields(inner);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => accepted.tag = value.varint()?,
            2 => accepted.n = value.varint()?,
            _ => {}
        }
    }
    Ok(accepted)
}

#[inline]
fn entry(inner: &[u8]) -> Result<EntryRef<'_>, DecodeError> {
    let mut entry = EntryRef {
        seq: 0,
        from: "",
        from_device: "",
        id: [0; 16],
        time_ms: 0,
        body: &[],
        fetch_tag: 0,
    };
    let mut id: &[u8] = &[];
    let mut fields = Fields(inner);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => entry.seq = value.varint()?,
            2 => entry.from = value.text()?,
            3 => entry.from_device = value.text()?,
            4 => id = value.bytes()?,
            5 => entry.time_ms = value.varint()?,
            6 => entry.body = value.bytes()?,
            7 => entry.fetch_tag = value.varint()?,
            _ => {}
        }
    }
    require(entry.seq != 0, 0, "seq")?;
    entry.id = id.try_into().map_err(|_| DecodeError::BadField {
        tag: 0,
        field: "id",
    })?;
    Ok(entry)
}

fn gap(inner: &[u8]) -> Result<v2::Gap, DecodeError> {
    let mut gap = v2::Gap::default();
    let mut fields = Fields(inner);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => gap.first = value.varint()?,
            2 => gap.last = value.varint()?,
            3 => gap.reason = value.varint32()?.cast_signed(),
            4 => gap.fetch_tag = value.varint()?,
            _ => {}
        }
    }
    Ok(gap)
}

/// Appends length, variant key and inner length; the caller appends the `inner` bytes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a frame's parts are bounded far below 4 GiB"
)]
#[inline]
fn open(out: &mut Vec<u8>, number: u8, inner: usize) {
    let payload = 1 + raw::varint_len(inner as u64) + inner;
    debug_assert!(u32::try_from(payload).is_ok());
    out.reserve(frame::LENGTH_BYTES + payload);
    out.extend_from_slice(&(payload as u32).to_be_bytes());
    out.push(number << 3 | 2);
    raw::put_varint(out, inner as u64);
}

/// Appends a Send frame with its length.
pub fn encode_send(out: &mut Vec<u8>, send: &SendRef<'_>) {
    let inner = raw::uint_len(send.tag)
        + raw::bytes_len(send.to.as_bytes())
        + raw::uint_len(send.n)
        + raw::bytes_len(&send.id)
        + raw::bytes_len(send.body);
    open(out, 2, inner);
    raw::put_uint(out, 1, send.tag);
    raw::put_bytes(out, 2, send.to.as_bytes());
    raw::put_uint(out, 3, send.n);
    raw::put_bytes(out, 4, &send.id);
    raw::put_bytes(out, 5, send.body);
}

/// Appends an Ack frame with its length.
pub fn encode_ack(out: &mut Vec<u8>, seq: u64) {
    open(out, 3, raw::uint_len(seq));
    raw::put_uint(out, 1, seq);
}

/// Appends a Ping frame with its length.
pub fn encode_ping(out: &mut Vec<u8>, nonce: u64) {
    open(out, 5, raw::fixed64_len(nonce));
    raw::put_fixed64(out, 1, nonce);
}

/// Appends an Accepted frame with its length.
pub fn encode_accepted(out: &mut Vec<u8>, tag: u64, n: u64) {
    open(out, 2, raw::uint_len(tag) + raw::uint_len(n));
    raw::put_uint(out, 1, tag);
    raw::put_uint(out, 2, n);
}

/// Appends an Entry frame with its length.
pub fn encode_entry(out: &mut Vec<u8>, entry: &EntryRef<'_>) {
    let inner = raw::uint_len(entry.seq)
        + raw::bytes_len(entry.from.as_bytes())
        + raw::bytes_len(entry.from_device.as_bytes())
        + raw::bytes_len(&entry.id)
        + raw::uint_len(entry.time_ms)
        + raw::bytes_len(entry.body)
        + raw::uint_len(entry.fetch_tag);
    open(out, 4, inner);
    raw::put_uint(out, 1, entry.seq);
    raw::put_bytes(out, 2, entry.from.as_bytes());
    raw::put_bytes(out, 3, entry.from_device.as_bytes());
    raw::put_bytes(out, 4, &entry.id);
    raw::put_uint(out, 5, entry.time_ms);
    raw::put_bytes(out, 6, entry.body);
    raw::put_uint(out, 7, entry.fetch_tag);
}

/// Appends a Gap frame with its length.
pub fn encode_gap(out: &mut Vec<u8>, gap: v2::Gap) {
    let reason = i64::from(gap.reason).cast_unsigned(); // Protobuf's rule for enums
    let inner = raw::uint_len(gap.first)
        + raw::uint_len(gap.last)
        + raw::uint_len(reason)
        + raw::uint_len(gap.fetch_tag);
    open(out, 8, inner);
    raw::put_uint(out, 1, gap.first);
    raw::put_uint(out, 2, gap.last);
    raw::put_uint(out, 3, reason);
    raw::put_uint(out, 4, gap.fetch_tag);
}

/// Appends a Pong frame with its length.
pub fn encode_pong(out: &mut Vec<u8>, nonce: u64) {
    open(out, 6, raw::fixed64_len(nonce));
    raw::put_fixed64(out, 1, nonce);
}

/// Appends any frame of the switch with its length, through prost: for the rare ones.
pub fn encode_server(out: &mut Vec<u8>, frame: v2::server_frame::Frame) {
    let frame = v2::ServerFrame { frame: Some(frame) };
    frame::append(out, |out| frame.encode_raw(out));
}

/// Appends any frame of a client with its length, through prost: for the rare ones.
pub fn encode_client(out: &mut Vec<u8>, frame: v2::client_frame::Frame) {
    let frame = v2::ClientFrame { frame: Some(frame) };
    frame::append(out, |out| frame.encode_raw(out));
}
