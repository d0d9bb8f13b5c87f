//! Traces: every step of the messages of a few users, for as long as somebody asks.
//!
//! ```text
//!   `iris trace` ─▶ admin thread ── Control::Trace: whom to watch ──▶ every core
//!                                ◀── what was noted since ───────────┘
//! ```
//!
//! The name of a trace is the message's own id: sixteen bytes that the sender gives it, that lie in the log
//! and that every recipient gets. So a trace goes from client to client without a field of its own.
//!
//! A core that watches nobody pays one branch for each step. One that does notes what it can within the
//! bounds below, and counts the rest.

use std::time::{Duration, Instant};

use iris_proto::id::UserId;
use serde::{Deserialize, Serialize};

/// Users that are watched at a time.
pub const WATCHED_MAX: usize = 8;
/// How long a user is watched at most.
pub const WATCH_MAX: Duration = Duration::from_secs(600);
/// Steps that a core notes in a second; a guess at what is read by people and costs a busy core nothing.
pub const STEPS_PER_S_MAX: u32 = 2_000;
/// Steps that a core holds until they are asked for. More are counted and not noted.
pub const STEPS_HELD_MAX: usize = 4_096;
/// Messages whose answers a core can name. Of one more the oldest is forgotten.
pub const UNDER_WAY_MAX: usize = 1_024;

/// Somebody to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Whose messages, sent or received.
    pub user: UserId,
    /// Up to when.
    pub until: Instant,
}

/// What has happened to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Its frame was read.
    Received,
    /// It is on its way to the recipient's core.
    Routed,
    /// The recipient's shard has it: it waits for the log, or for another answer.
    Proposed,
    /// It is on disk.
    Durable,
    /// It is in the inbox.
    Applied,
    /// Its Accepted went to the sender's socket.
    Accepted,
    /// It was refused, and that is on its way to the sender.
    Refused,
    /// It went to the socket of a device.
    Pushed,
    /// A device has acknowledged it.
    Acknowledged,
}

/// One step of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The message's id, as hexadecimal digits in five groups.
    pub trace: String,
    /// What has happened.
    pub what: What,
    /// When, in microseconds since the Unix epoch.
    pub at_us: u64,
    /// The same by the clock that all cores of a process share, in nanoseconds.
    pub clock_ns: u64,
    /// Microseconds since its frame was read; nothing when that is not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_us: Option<u64>,
    /// On which core.
    pub core: u16,
    /// Who sent it.
    pub from: String,
    /// Whom to.
    pub to: String,
    /// Its number among those of this sender's device to this recipient.
    pub n: u64,
    /// Its place in the inbox, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The device: the sender's when it was received, accepted or refused, the recipient's when it was pushed
    /// or acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// What a core has noted since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Steps that were not noted, because there were too many.
    pub dropped: u64,
}
