//! Reject codes, goodbye and gap reasons: for each, its name on paper and the client's next step.
//!
//! The values and their full meaning are in `iris.proto`. Here is what a program decides by: may the
//! same request be repeated, may a client connect again by itself. After a gap a client goes on,
//! whatever its reason.

use core::fmt;

pub use crate::v2::{GapReason, GoodbyeReason, RejectCode};

/// What a client does about a rejected Send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReject {
    /// Send again from `expected` on.
    Rewind,
    /// Repeat it, no sooner than `retry_after_ms`.
    Repeat,
    /// Tell the application; it may try again as a new message.
    GiveUp,
}

impl RejectCode {
    /// The next step after this code.
    #[must_use]
    pub const fn next_step(self) -> AfterReject {
        match self {
            Self::Gap => AfterReject::Rewind,
            Self::Overloaded | Self::Unavailable => AfterReject::Repeat,
            Self::Unspecified
            | Self::BodyTooLarge
            | Self::BadRecipient
            | Self::InboxFull
            | Self::DiskFull
            | Self::BadFrame
            | Self::UnknownFrame
            | Self::NotFound
            | Self::ExpiredRange
            | Self::BadToken => AfterReject::GiveUp,
        }
    }

    /// One line for people.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Unspecified => "refused without a reason that this client knows",
            Self::Gap => "a message before this one is missing; send again from there",
            Self::BodyTooLarge => "the body is over the limit; make it smaller",
            Self::BadRecipient => "the recipient cannot be written to; check the name",
            Self::InboxFull => "the recipient's inbox is full; try again when it was read",
            Self::DiskFull => "the switch has no room on its disk; try again later",
            Self::Overloaded => "too much at once; try again later",
            Self::BadFrame => "a field of the request is not valid; this is a bug of the client",
            Self::UnknownFrame => "the switch does not know this request; it may be older",
            Self::NotFound => "what the request names does not exist",
            Self::BadToken => "the new token was refused; the session goes on with the one before",
            Self::ExpiredRange => "these entries are no longer kept; ask for later ones",
            Self::Unavailable => {
                "the recipient's data is damaged and not served now; try again later"
            }
        }
    }
}

impl fmt::Display for RejectCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// What a client does after a Goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterGoodbye {
    /// Connect again, with backoff and the frame's hints.
    Reconnect,
    /// Connect again with a new token, if it can get one by itself.
    RenewToken,
    /// Stop; a person or the application must change something first.
    Stop,
}

impl GoodbyeReason {
    /// The next step after this reason.
    #[must_use]
    pub const fn next_step(self) -> AfterGoodbye {
        match self {
            Self::TokenExpired | Self::Revoked => AfterGoodbye::RenewToken,
            Self::BadToken
            | Self::FrameTooLarge
            | Self::BadFrame
            | Self::Version
            | Self::DeviceMismatch
            | Self::TooManyDevices
            | Self::Replaced => AfterGoodbye::Stop,
            Self::Unspecified
            | Self::HelloTimeout
            | Self::ShuttingDown
            | Self::Overloaded
            | Self::Internal
            | Self::Normal
            | Self::Unavailable
            | Self::TooManySessions => AfterGoodbye::Reconnect,
        }
    }

    /// One line for people.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Unspecified => "the switch ended the session without a reason",
            Self::BadToken => "the token was refused; get a new one",
            Self::TokenExpired => "the token reached its end; get a new one",
            Self::FrameTooLarge => "a frame was over the limit; this is a bug of the client",
            Self::BadFrame => "a frame was not valid; this is a bug of the client",
            Self::HelloTimeout => "the login took too long; connect again",
            Self::Version => "no common protocol version; update the client",
            Self::DeviceMismatch => "the token is for another device; use that device's name",
            Self::TooManyDevices => "the user has too many devices; remove one first",
            Self::TooManySessions => {
                "the user has too many sessions; end one, or connect again later"
            }
            Self::Replaced => "the same device connected somewhere else; that connection stays",
            Self::ShuttingDown => "the switch is going down; connect again",
            Self::Overloaded => "the switch is busy; connect again later",
            Self::Internal => "something is wrong with the switch; connect again later",
            Self::Normal => "the session was ended in good order",
            Self::Revoked => "the token was revoked; get a new one",
            Self::Unavailable => {
                "the user's data is damaged and not served now; \
                 whoever runs the switch has to act (`iris status`), connect again later"
            }
        }
    }
}

impl fmt::Display for GoodbyeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

impl GapReason {
    /// One word for people and programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "gone",
            Self::Lost => "lost",
            Self::Expired => "expired",
        }
    }

    /// What happened to the messages, after "they were".
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Unspecified => "removed for a reason that this client does not know",
            Self::Lost => "damaged on the switch and set aside",
            Self::Expired => "removed by the rules of retention",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
