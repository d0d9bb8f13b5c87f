//! The audit log: what happened to whom may come in, as records that nobody changes unnoticed (R: A-10).
//!
//! ```text
//!   {"n":7,"time_ms":…,"event":"login","user":"ann",…,"hash":"9c1e…"}
//!   └──────────────────── text ─────────────────────┘         │
//!                     SHA-256(hash of record 6 ‖ text) ───────┘
//! ```
//!
//! Records are lines of JSON, numbered from 1 without a gap, each with the hash of the one before in its
//! own. So a changed, removed, added or moved record is found, and so is everything behind it, unless all
//! the rest is written anew. Files follow each other: the first record of each says the hash that it goes
//! on from. What a chain cannot show by itself is that its end is missing; the number and hash of the last
//! record, kept elsewhere, show it ([`verify`]).
//!
//! The same thing again and again is counted, not listed ([`repeats`]): a stranger cannot fill a disk, nor
//! make the history leave by being turned away.
//!
//! Pure: no file, no clock. Writing is `runtime::audit`'s.

pub mod repeats;
#[cfg(test)]
mod tests;
pub mod verify;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;

/// Bytes of a record with its newline. Events are made of names that have limits; a longer text is cut.
pub const RECORD_BYTES_MAX: usize = 4096;
/// Bytes of a text of ours in an event, such as why a reload failed. The rest is cut off.
pub const TEXT_BYTES_MAX: usize = 512;

/// SHA-256.
pub type Hash = [u8; 32];

/// Between a record's text and its hash.
const HASH_KEY: &str = ",\"hash\":\"";
/// Behind the hash.
const END: &str = "\"}";
/// Hexadecimal digits of a hash.
const HEX_LEN: usize = 64;

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first record of every file.
    Begin {
        /// Hash of the last record before, or zeros.
        prev: String,
        /// The records before are not whole: the chain begins anew.
        after_damage: bool,
    },
    /// The switch serves.
    Start {
        /// Of the program.
        version: String,
        /// Its process.
        pid: u32,
    },
    /// The switch has stopped in good order.
    Stop,
    /// A session began.
    Login {
        /// Who.
        user: String,
        /// With which device.
        device: String,
        /// From where.
        address: String,
        /// The end of its token, seconds since the Unix epoch.
        expires_s: u64,
        /// The token's own id.
        #[serde(skip_serializing_if = "Option::is_none")]
        jti: Option<String>,
    },
    /// A session goes on with another token.
    Renewed {
        /// Who.
        user: String,
        /// With which device.
        device: String,
        /// The end of the new token.
        expires_s: u64,
        /// The new token's own id.
        #[serde(skip_serializing_if = "Option::is_none")]
        jti: Option<String>,
    },
    /// Somebody was not let in, or a further token was not taken.
    Refused {
        /// Why, as one word.
        reason: &'static str,
        /// From where: one address of IPv4, or the first half of one of IPv6.
        address: String,
        /// Who it is, where a good token says so.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// A session ended because its token was revoked.
    Ended {
        /// Whose.
        user: String,
        /// Of which device.
        device: String,
    },
    /// Somebody asked to revoke tokens.
    Revoke {
        /// All of a user's.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Those issued before.
        #[serde(skip_serializing_if = "Option::is_none")]
        before_s: Option<u64>,
        /// One.
        #[serde(skip_serializing_if = "Option::is_none")]
        jti: Option<String>,
        /// `done`, or why not.
        outcome: String,
    },
    /// Certificate, keys and limits were read again.
    Reload {
        /// `done`, or why not.
        outcome: String,
    },
    /// What was listed once happened so many times more.
    Repeated {
        /// The event that was listed.
        what: &'static str,
        /// As there.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        /// As there.
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<String>,
        /// As there.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// As there.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// How many times more.
        count: u64,
        /// Since then.
        since_ms: u64,
    },
    /// So many happened that were not listed, because too many different ones did.
    Unlisted {
        /// The event.
        what: &'static str,
        /// Why, of refusals.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        /// How many.
        count: u64,
        /// Since then.
        since_ms: u64,
    },
    /// So many events are not here.
    Lost {
        /// Which; without it, any.
        #[serde(skip_serializing_if = "Option::is_none")]
        what: Option<&'static str>,
        /// How many.
        count: u64,
        /// `queue`: they came faster than they could be written. `disk`: it did not take them.
        why: &'static str,
    },
    /// The oldest records were removed, because the log had reached its size.
    Removed {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// What a crash had left of a record was cut off at the start.
    Cut {
        /// Its bytes.
        bytes: u64,
    },
}

/// What is counted apart of what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody was not let in.
    Refused,
    /// A session goes on with another token.
    Renewed,
    /// A session began.
    Login,
    /// A session ended because its token was revoked.
    Ended,
    /// Somebody asked to revoke tokens.
    Revoke,
    /// Certificate, keys and limits were read again.
    Reload,
    /// Of the switch and of the log itself.
    Other,
}

impl Kind {
    /// All of them, by their number.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Renewed,
        Self::Login,
        Self::Ended,
        Self::Revoke,
        Self::Reload,
        Self::Other,
    ];

    /// As events are named in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Renewed => "renewed",
            Self::Login => "login",
            Self::Ended => "ended",
            Self::Revoke => "revoke",
            Self::Reload => "reload",
            Self::Other => "other",
        }
    }

    /// Whether anybody can bring it about as often as he likes, at the price of a knock.
    #[must_use]
    pub const fn is_cheap(self) -> bool {
        matches!(self, Self::Refused | Self::Renewed)
    }
}

impl Event {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Refused { .. } => Kind::Refused,
            Self::Renewed { .. } => Kind::Renewed,
            Self::Login { .. } => Kind::Login,
            Self::Ended { .. } => Kind::Ended,
            Self::Revoke { .. } => Kind::Revoke,
            Self::Reload { .. } => Kind::Reload,
            _ => Kind::Other,
        }
    }
}

/// The beginning of a text of ours, as much as a record takes.
#[must_use]
pub fn short(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A hash in hexadecimal.
#[must_use]
pub fn hex(hash: &Hash) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(HEX_LEN);
    for byte in hash {
        let _ = write!(text, "{byte:02x}"); // to a string: cannot fail
    }
    text
}

/// A hash out of 64 lower-case hexadecimal digits.
#[must_use]
pub fn unhex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != HEX_LEN || !text.bytes().all(is_hex) {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}

fn hash_of(prev: &Hash, text: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(prev);
    context.update(text);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The end of a chain: what the next record goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The number of the last record; 0: there is none.
    pub last: u64,
    /// Its hash; zeros: there is none.
    pub hash: Hash,
}

impl Chain {
    /// Before the first record.
    pub const EMPTY: Self = Self {
        last: 0,
        hash: [0; 32],
    };

    /// Appends a record to `out`, with its newline.
    pub fn append(&mut self, time_ms: u64, event: &Event, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Record<'a> {
            n: u64,
            time_ms: u64,
            #[serde(flatten)]
            event: &'a Event,
        }
        let n = self.last + 1;
        let record = Record { n, time_ms, event };
        #[expect(clippy::expect_used, reason = "strings and numbers are always JSON")]
        let mut text = serde_json::to_string(&record).expect("an event is JSON");
        text.pop(); // the closing brace comes behind the hash
        self.hash = hash_of(&self.hash, text.as_bytes());
        self.last = n;
        let line = text.len() + HASH_KEY.len() + HEX_LEN + END.len() + 1;
        assert!(line <= RECORD_BYTES_MAX, "an event of bounded texts");
        out.reserve(line);
        for part in [&text, HASH_KEY, &hex(&self.hash), END, "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}
