//! What a session tells the program around it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use super::Ticket;
use crate::id::{MessageId, SendNumber, Seq, UserId};
use crate::reject::{GapReason, GoodbyeReason, RejectCode};
use crate::wire::EntryRef;

/// What the program does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// No connection: make one (TLS included) at this instant, then call [`Session::connected`](super::Session::connected) or
    /// [`Session::lost`](super::Session::lost).
    Connect {
        /// Not before this.
        at_ms: u64,
        /// To here instead of the usual address, this once.
        address: Option<Box<str>>,
    },
    /// Connected: exchange bytes, and call [`Session::tick`](super::Session::tick) at this instant.
    Run {
        /// When something is due by the clock.
        until_ms: u64,
    },
    /// It is over; there is nothing more to do.
    End(End),
}

/// Why a session is over for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// [`Session::close`](super::Session::close) was called, and everything was done.
    Closed,
    /// The switch said so, and connecting again would not help.
    Goodbye {
        /// Why.
        reason: GoodbyeReason,
        /// The switch's words for people.
        text: Box<str>,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the session was closed"),
            Self::Goodbye { reason, text } if text.is_empty() => write!(f, "{reason}"),
            Self::Goodbye { reason, text } => write!(f, "{reason} ({text})"),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection is up and the switch knows us.
    Welcomed(Box<Welcomed>),
    /// A message is on stable storage in the recipient's inbox.
    Accepted {
        /// Which one.
        ticket: Ticket,
        /// The recipient.
        to: UserId,
        /// Its number.
        n: SendNumber,
    },
    /// A message will not be sent (any more).
    Failed {
        /// Which one.
        ticket: Ticket,
        /// Why.
        reason: SendFailure,
    },
    /// A message from the inbox.
    Entry(Entry),
    /// A part of the answer to a fetch.
    FetchedEntry {
        /// Which fetch.
        ticket: Ticket,
        /// The message.
        entry: Entry,
    },
    /// Messages of the inbox that do not exist any more, in the place where they would have come: tell
    /// the user, then acknowledge `last` as if it were an entry.
    Gap {
        /// The first position.
        first: Seq,
        /// The last position; at least `first`.
        last: Seq,
        /// Why.
        reason: GapReason,
        /// Set: a part of the answer to this fetch, and nothing to acknowledge.
        ticket: Option<Ticket>,
    },
    /// The answer to a fetch is complete.
    Fetched {
        /// Which fetch.
        ticket: Ticket,
        /// The last seq that came, in an entry or a gap; what was asked for when none did.
        last: Seq,
        /// There is more after it.
        more: bool,
    },
    /// A fetch has no answer. Not connected, or the connection went: ask again when welcomed.
    FetchFailed {
        /// Which fetch.
        ticket: Ticket,
        /// The switch's reason; `None` when the connection ended first.
        code: Option<RejectCode>,
        /// With `ExpiredRange`: the oldest seq there is.
        oldest: Seq,
    },
    /// The session ends soon, with its token: give it a new one with
    /// [`Session::renew`](super::Session::renew). Else it ends, and another begins with the token that
    /// is given then.
    Expiring {
        /// Seconds until then.
        left_s: u64,
    },
    /// The session goes on with the new token.
    Renewed {
        /// Seconds until it ends.
        left_s: u64,
    },
    /// The new token was not taken; the session goes on with the one before.
    RenewFailed {
        /// Why. `UnknownFrame`: the switch is too old for this.
        code: RejectCode,
        /// Not 0: trying again sooner is of no use.
        retry_after_ms: u64,
    },
    /// The connection ended; another will be made.
    Disconnected(Disconnect),
}

/// A session has begun, again or for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcomed {
    /// The session's name in the switch's logs.
    pub session: u64,
    /// The user, as the token says.
    pub user: Box<str>,
    /// The device.
    pub device: Box<str>,
    /// The newest entry.
    pub head: Seq,
    /// Entries after this one come.
    pub cursor: Seq,
    /// The oldest entry that is kept.
    pub oldest: Seq,
    /// Entries up to here (after what was asked for) are gone: retention took them.
    pub lost_upto: Option<Seq>,
    /// The data's name, to be kept beside the cursor.
    pub cluster: Option<[u8; 16]>,
    /// The switch's clock, Unix milliseconds.
    pub server_time_ms: u64,
}

/// One message of the inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub seq: Seq,
    /// The sending user.
    pub from: Box<str>,
    /// The sending device.
    pub from_device: Box<str>,
    /// The sender's name for it.
    pub id: MessageId,
    /// When the switch took it, Unix milliseconds.
    pub time_ms: u64,
    /// The body.
    pub body: Vec<u8>,
}

impl From<EntryRef<'_>> for Entry {
    fn from(entry: EntryRef<'_>) -> Self {
        Self {
            seq: Seq(entry.seq),
            from: entry.from.into(),
            from_device: entry.from_device.into(),
            id: MessageId(entry.id),
            time_ms: entry.time_ms,
            body: entry.body.to_vec(),
        }
    }
}

/// Why a connection ended that another will follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The transport ended or could not be made.
    Lost,
    /// The switch did not answer in time.
    Silent,
    /// The switch said so.
    Goodbye(GoodbyeReason),
    /// The switch broke the protocol; this is how.
    Violation(&'static str),
    /// The switch forgot the send counters: a new send epoch begins.
    NewEpoch,
    /// The data behind the switch is not what the cursor came from: all positions begin anew.
    OtherCluster,
}

/// Why a message was not taken by [`Session::send`](super::Session::send).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Too much waits for an answer. Take events and try again.
    Full,
    /// The body is over the limit.
    BodyTooLarge {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The session is closing or over.
    Closed,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("too many messages wait for an answer; wait for some"),
            Self::BodyTooLarge { len, max } => {
                write!(f, "the body has {len} bytes; at most {max} are allowed")
            }
            Self::Closed => f.write_str("the session is closed; open another one"),
        }
    }
}

impl core::error::Error for SendError {}

/// Why a message that was taken did not get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendFailure {
    /// The switch refused it; it is stored nowhere.
    Refused {
        /// Why.
        code: RejectCode,
        /// The switch's hint when to try again; 0 when it gave none.
        retry_after_ms: u64,
        /// The switch's words for people.
        text: Box<str>,
    },
    /// It was sent and the switch has since forgotten the stream, or the session ended: it is stored
    /// once or not at all, and nobody can say which.
    InDoubt,
    /// The session ended before it was sent; it is stored nowhere.
    NotSent,
}

impl fmt::Display for SendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, text, .. } if text.is_empty() => write!(f, "{code}"),
            Self::Refused { code, text, .. } => write!(f, "{code} ({text})"),
            Self::InDoubt => f.write_str("it was sent, but whether it was stored is not known"),
            Self::NotSent => f.write_str("the session ended before it was sent"),
        }
    }
}

impl core::error::Error for SendFailure {}
