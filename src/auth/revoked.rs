//! Tokens that are refused although they are good: revoked ones (R: A-3).
//!
//! ```text
//!   revoke user U, issued before T ─▶ U: T  ┐
//!                                           ├ Revocations ─▶ hits(token)? ─▶ refused, session ended
//!   revoke token J ─────────────────▶ J     ┘      │
//!                                                  └─ text with a CRC, and back
//! ```
//!
//! **By user**: everything of the user that may have been issued before the instant. An issuer's clock
//! may be ahead by the leeway, so `iat` must be the instant *and the leeway* or later. A token without
//! `iat` could be of any time, and is always hit. **By token**: the one with this `jti`; one without
//! `jti` can only be hit by its user.
//!
//! An entry leaves when no token that it hits can be valid any more: a token with `iat` lives for 24
//! hours from it at most (`claims`), and so does an entry, with every leeway added. (A token without
//! `iat`, issued for longer than that, is refused for its length meanwhile and would be taken in its last
//! 24 hours, if its entry is gone by then. Who wants revocation issues tokens with `iat`.)
//!
//! A list is a value: a further revocation makes another one, which replaces it whole, on disk and in
//! every core. The text says how many entries it has and their CRC, so a list that was damaged or cut is
//! known for that; it is never read in part.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iris_proto::id::UserId;
use serde::{Deserialize, Serialize};

use super::{Claims, LEEWAY_S_MAX, TOKEN_ID_BYTES_MAX, TOKEN_LIFE_S_MAX};

/// Entries of a list. More: [`RevokeError::TooMany`], and nothing has changed.
pub const REVOCATIONS_MAX: usize = 10_000;
/// Bytes of a list's text. Longer: [`ListFault::TooLong`].
pub const REVOCATIONS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Seconds for which an entry is kept: 24 hours of a token's life, and the leeway where it was issued,
/// where it is at its end, and in the bound between the two.
pub const REVOCATION_KEPT_S: u64 = TOKEN_LIFE_S_MAX + 3 * LEEWAY_S_MAX;
/// Seconds ahead of now that the instant of a revocation may be. Over it: [`RevokeError::TooFarAhead`].
pub const REVOKE_AHEAD_S_MAX: u64 = TOKEN_LIFE_S_MAX;
/// Bytes of an entry's line, with every character of its id escaped.
const LINE_BYTES_MAX: usize = 6 * TOKEN_ID_BYTES_MAX + 16;
const _: () = assert!(REVOCATIONS_MAX * LINE_BYTES_MAX <= REVOCATIONS_BYTES_MAX);

const HEAD: &str = "iris revocations 1";

/// What is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoke {
    /// All tokens of a user that were issued before an instant.
    User {
        /// Whose.
        user: UserId,
        /// The instant, in seconds since the Unix epoch.
        before_s: u64,
    },
    /// One token.
    Token {
        /// Its `jti`.
        jti: String,
    },
}

/// Why a revocation is not taken. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// The list is full.
    #[error(
        "{REVOCATIONS_MAX} revocations are held, which is the limit; the next leaves in {frees_in_s} s. \
         If this cannot wait, remove the key that signed the tokens and restart the switch"
    )]
    TooMany {
        /// Seconds until an entry leaves.
        frees_in_s: u64,
    },
    /// The instant is in a future that no token reaches.
    #[error(
        "the instant is {ahead_s} s ahead, at most {REVOKE_AHEAD_S_MAX} are taken; give an earlier one"
    )]
    TooFarAhead {
        /// Seconds ahead.
        ahead_s: u64,
    },
    /// No token has such an id.
    #[error(
        "a token's id has 1 to {TOKEN_ID_BYTES_MAX} bytes; no token with another is ever taken"
    )]
    BadTokenId,
}

/// Why a text is no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListFault {
    /// It does not begin as a list does.
    #[error("it does not begin with `{HEAD}`")]
    NotAList,
    /// It is longer than any list.
    #[error("it is longer than {REVOCATIONS_BYTES_MAX} bytes")]
    TooLong,
    /// Its last line, with count and CRC, is missing.
    #[error("its end is missing")]
    Cut,
    /// The CRC, or the count, is not that of what is there.
    #[error("its CRC is not that of its content")]
    Damaged,
    /// A line is no entry although the CRC holds: another program wrote it.
    #[error("line {line} is no revocation")]
    BadEntry {
        /// The line, from 1.
        line: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Before {
    before_s: u64,
    until_s: u64,
}

/// The revocations in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    users: BTreeMap<String, Before>,
    /// `jti`, and until when its entry is kept.
    pub(super) tokens: BTreeMap<String, u64>,
}

/// One line of the text. Names are short: a list can be long.
#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    User {
        user: String,
        before: u64,
        until: u64,
    },
    Token {
        jti: String,
        until: u64,
    },
}

impl Revocations {
    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len() + self.tokens.len()
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a token is revoked. Its issuer's clock may be `leeway_s` ahead.
    #[must_use]
    pub fn hits(&self, user: &str, issued_s: u64, jti: Option<&str>, leeway_s: u64) -> bool {
        let by_user = self.users.get(user);
        by_user.is_some_and(|entry| issued_s < entry.before_s.saturating_add(leeway_s))
            || jti.is_some_and(|jti| self.tokens.contains_key(jti))
    }

    /// Whether the token with these claims is revoked.
    #[must_use]
    pub fn hit(&self, claims: &Claims, leeway_s: u64) -> bool {
        let user = claims.user.as_str();
        self.hits(user, claims.issued_s, claims.jti.as_deref(), leeway_s)
    }

    /// Milliseconds until a token of the user that is issued then is not hit any more; 0: one issued now
    /// is not.
    #[must_use]
    pub fn wait_ms(&self, user: &str, leeway_s: u64, now_s: u64) -> u64 {
        let from_s = self
            .users
            .get(user)
            .map_or(0, |entry| entry.before_s.saturating_add(leeway_s));
        from_s.saturating_sub(now_s).saturating_mul(1_000)
    }

    /// This list and one revocation more, less what nobody needs any more. An entry for the same user
    /// never becomes weaker.
    pub fn with(&self, revoke: &Revoke, now_s: u64) -> Result<Self, RevokeError> {
        let mut list = self.clone();
        list.expire(now_s);
        let full = list.full(now_s);
        match revoke {
            Revoke::User { user, before_s } => {
                let ahead_s = before_s.saturating_sub(now_s);
                if ahead_s > REVOKE_AHEAD_S_MAX {
                    return Err(RevokeError::TooFarAhead { ahead_s });
                }
                let until_s = now_s.max(*before_s).saturating_add(REVOCATION_KEPT_S);
                if let Some(entry) = list.users.get_mut(user.as_str()) {
                    entry.before_s = entry.before_s.max(*before_s);
                    entry.until_s = entry.until_s.max(until_s);
                } else {
                    full?;
                    let (user, before_s) = (user.as_str().to_owned(), *before_s);
                    list.users.insert(user, Before { before_s, until_s });
                }
            }
            Revoke::Token { jti } => {
                if jti.is_empty() || jti.len() > TOKEN_ID_BYTES_MAX {
                    return Err(RevokeError::BadTokenId);
                }
                let until_s = now_s.saturating_add(REVOCATION_KEPT_S);
                if let Some(until) = list.tokens.get_mut(jti) {
                    *until = until_s.max(*until);
                } else {
                    full?;
                    list.tokens.insert(jti.clone(), until_s);
                }
            }
        }
        assert!(
            list.len() <= REVOCATIONS_MAX,
            "the bound was asked for first"
        );
        Ok(list)
    }

    fn full(&self, now_s: u64) -> Result<(), RevokeError> {
        if self.len() < REVOCATIONS_MAX {
            return Ok(());
        }
        let users = self.users.values().map(|entry| entry.until_s);
        let next_s = users.chain(self.tokens.values().copied()).min();
        let frees_in_s = next_s.unwrap_or(now_s).saturating_sub(now_s) + 1;
        Err(RevokeError::TooMany { frees_in_s })
    }

    /// Lets go of entries that hit no token that could be valid.
    pub fn expire(&mut self, now_s: u64) {
        self.users.retain(|_, entry| entry.until_s >= now_s);
        self.tokens.retain(|_, until_s| *until_s >= now_s);
    }

    /// The list as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let users = self.users.iter().map(|(user, entry)| Line::User {
            user: user.clone(),
            before: entry.before_s,
            until: entry.until_s,
        });
        let tokens = self.tokens.iter().map(|(jti, &until)| Line::Token {
            jti: jti.clone(),
            until,
        });
        let mut text = format!("{HEAD}\n");
        for line in users.chain(tokens) {
            #[expect(clippy::expect_used, reason = "strings and numbers are always JSON")]
            text.push_str(&serde_json::to_string(&line).expect("an entry is JSON"));
            text.push('\n');
        }
        let crc = crc32fast::hash(text.as_bytes());
        let _ = writeln!(text, "end {} {crc:08x}", self.len()); // to a string: cannot fail
        text
    }

    /// A list out of its text, whole or not at all.
    pub fn decode(text: &[u8]) -> Result<Self, ListFault> {
        if text.len() > REVOCATIONS_BYTES_MAX {
            return Err(ListFault::TooLong);
        }
        if !text.starts_with(HEAD.as_bytes()) || text.get(HEAD.len()) != Some(&b'\n') {
            return Err(ListFault::NotAList);
        }
        let text = std::str::from_utf8(text).map_err(|_| ListFault::Damaged)?;
        let whole = text.strip_suffix('\n').ok_or(ListFault::Cut)?;
        let body_len = whole.rfind('\n').ok_or(ListFault::Cut)? + 1;
        let (body, end) = whole.split_at(body_len);
        if !end.starts_with("end ") {
            return Err(ListFault::Cut);
        }
        let mut list = Self::default();
        let lines = body.lines().count() - 1;
        let crc = crc32fast::hash(body.as_bytes());
        if end != format!("end {lines} {crc:08x}") {
            return Err(ListFault::Damaged);
        }
        for (index, line) in body.lines().enumerate().skip(1) {
            let line_no = index + 1;
            let bad = || ListFault::BadEntry { line: line_no };
            match serde_json::from_str(line).map_err(|_| bad())? {
                Line::User {
                    user,
                    before,
                    until,
                } => {
                    let (before_s, until_s) = (before, until);
                    list.users.insert(user, Before { before_s, until_s });
                }
                Line::Token { jti, until } => {
                    list.tokens.insert(jti, until);
                }
            }
        }
        if list.len() != lines || lines > REVOCATIONS_MAX {
            return Err(ListFault::BadEntry { line: lines + 1 });
        }
        Ok(list)
    }
}
