//! Who may speak: the rules by which a token becomes a user.
//!
//! ```text
//!  token ─▶ size ─▶ header ─▶ key by kid ─▶ signature ─▶ claims ─▶ Claims { user, device, … }
//!             │        │          │             │           │
//!             └────────┴──────────┴─────────────┴───────────┴──▶ AuthError, for our log only
//! ```
//!
//! A token is a JWT (RFC 7519) in compact form. Three rules carry the weight:
//!
//! - **The algorithm comes from the key, never from the token.** A token whose header names another
//!   algorithm than its key's is refused, so neither `none` nor a public key used as an HMAC secret
//!   gets anywhere.
//! - **Nothing of the payload is believed before the signature holds**, and a token with an unknown
//!   key id costs the same signature check as one with a bad signature.
//! - **Time is an argument.** `now_s` is seconds since the Unix epoch by the caller's clock; this
//!   module reads none, so every refusal is a unit test.
//!
//! A stranger must not learn which rule refused it: every [`AuthError`] becomes the same
//! `Goodbye(BAD_TOKEN)` on the wire, and its text goes to our log.
//!
//! This module does no I/O and draws no randomness. Reading key files is `config`'s work; making the
//! development key is `runtime::dev`'s. (Signing with ES256 or RS256 draws randomness inside the
//! cryptographic library; verifying never does, and the switch itself only verifies.)

mod claims;
mod jwks;
mod keyring;
mod mint;
mod revoked;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use iris_proto::id::{DeviceId, IdError, UserId};
use iris_proto::limits::TOKEN_BYTES_MAX;

pub use claims::Rules;
pub use jwks::{
    JWKS_BYTES_MAX, JWKS_ENTRIES_MAX, JwksError, KeySet, RSA_BITS_MAX, RSA_BITS_MIN, Skipped,
};
pub use keyring::{Key, KeyError, Keyring, claimed_user};
pub use mint::{MintError, MintRequest, SigningKey, mint};
pub use revoked::{
    ListFault, REVOCATION_KEPT_S, REVOCATIONS_BYTES_MAX, REVOCATIONS_MAX, REVOKE_AHEAD_S_MAX,
    Revocations, Revoke, RevokeError,
};

/// Seconds that a token may be valid ahead of now, and from `iat` on. Over it:
/// [`AuthError::LivesTooLong`].
pub const TOKEN_LIFE_S_MAX: u64 = 24 * 60 * 60;
/// Seconds that the issuer's clock may differ from ours, at most, however it is configured.
pub const LEEWAY_S_MAX: u64 = 300;
/// Keys that one keyring holds. More: [`KeyError::TooMany`].
pub const KEYS_MAX: usize = 32;
/// Bytes of a key id, in the keyring and in a token's header. More: [`KeyError::BadKid`] there,
/// an unknown key here.
pub const KID_BYTES_MAX: usize = 64;
/// Bytes of a token's own id (`jti`), which a revocation list has to hold.
/// Over it: [`AuthError::BadTokenId`].
pub const TOKEN_ID_BYTES_MAX: usize = 64;
/// Bytes of an HS256 secret, at least: the size of the hash (RFC 7518, section 3.2).
/// Under it: [`KeyError::WeakSecret`].
pub const SECRET_BYTES_MIN: usize = 32;

const _: () = {
    assert!(LEEWAY_S_MAX < TOKEN_LIFE_S_MAX); // leeway bends the bound, it does not replace it
    assert!(KID_BYTES_MAX + TOKEN_ID_BYTES_MAX < TOKEN_BYTES_MAX / 2); // room for the rest
};

/// How a token is signed. Exactly the four that the switch accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256: one secret both signs and verifies.
    Hs256,
    /// Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, 2048 bits at least.
    Rs256,
}

impl Algorithm {
    /// Every algorithm, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Hs256, Self::EdDsa, Self::Es256, Self::Rs256];

    /// The name that a token's header and the configuration use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }

    const fn jwt(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of an algorithm that the switch accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an algorithm for tokens; use HS256, EdDSA, ES256 or RS256")]
pub struct UnknownAlgorithm(pub String);

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| UnknownAlgorithm(text.to_owned()))
    }
}

/// What a valid token says. The user is the sender of everything its session sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The user (`sub`).
    pub user: UserId,
    /// The one device that may use the token (`device`); without it the client names its device.
    pub device: Option<DeviceId>,
    /// The second, by our clock, at which the session ends: `exp` and the leeway.
    pub expires_s: u64,
    /// When the token was issued (`iat`); 0 when it does not say, so that any revocation of older
    /// tokens covers it.
    pub issued_s: u64,
    /// The token's own id (`jti`), by which it can be revoked.
    pub jti: Option<String>,
}

/// Why a token was refused. For the switch's log: a client is told `BAD_TOKEN`, whichever it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Longer than [`TOKEN_BYTES_MAX`]; nothing of it was decoded.
    #[error("the token has {len} bytes, at most {TOKEN_BYTES_MAX} are read; issue shorter ones")]
    TooLarge {
        /// Bytes found.
        len: usize,
    },
    /// Not three base64url parts with a dot between each two.
    #[error("the token is not a JWT in compact form (header.payload.signature)")]
    Malformed,
    /// The header is not JSON, or names no algorithm, or one that nobody accepts (such as `none`).
    #[error("the token's header names no acceptable algorithm; sign with the key's algorithm")]
    BadHeader,
    /// The header demands an extension (`crit`, `b64`), and we implement none.
    #[error(
        "the token's header demands an extension (`crit`, `b64`) that is not supported; drop it"
    )]
    CriticalExtension,
    /// No key id, and more than one key.
    #[error("the token names no key (`kid`) and there are several; put the `kid` in its header")]
    KidMissing,
    /// The key id is not in the keyring.
    #[error(
        "the token's key (`kid`) is unknown; add the key to [[auth.keys]] or sign with one there"
    )]
    UnknownKid,
    /// The header's algorithm is not the key's.
    #[error("the token says another algorithm than its key's, {key}; sign with {key}")]
    AlgorithmNotTheKeys {
        /// The algorithm of the key.
        key: Algorithm,
    },
    /// The signature is not this key's over this text.
    #[error("the token's signature is not its key's; sign with the key that `kid` names")]
    BadSignature,
    /// The payload is not a JSON object whose known claims have the right types, each once.
    #[error("the token's payload is not valid claims ({why}); issue it again")]
    BadClaims {
        /// What the JSON reader said.
        why: String,
    },
    /// No `exp`.
    #[error("the token has no `exp`; issue it with one, at most 24 h ahead")]
    NoExpiry,
    /// `exp` has passed.
    #[error("the token expired {since_s} s ago; get a new one")]
    Expired {
        /// Seconds since then.
        since_s: u64,
    },
    /// `exp` is too far ahead.
    #[error(
        "the token lives for {ahead_s} s, at most {TOKEN_LIFE_S_MAX} are accepted; shorten `exp`"
    )]
    LivesTooLong {
        /// Seconds from now to `exp`.
        ahead_s: u64,
    },
    /// `nbf` or `iat` is in the future.
    #[error("the token is not valid for {wait_s} s yet; compare the clocks of issuer and switch")]
    NotYetValid {
        /// Seconds from now until then.
        wait_s: u64,
    },
    /// `iss` is absent or another one.
    #[error("the token's issuer (`iss`) is not the configured [auth] issuer")]
    WrongIssuer,
    /// `aud` is absent or does not list us.
    #[error("the token is not for this switch: `aud` does not list the configured [auth] audience")]
    WrongAudience,
    /// `sub` is absent or cannot name a user.
    #[error("the token's user (`sub`) {0}")]
    BadUser(IdError),
    /// `device` cannot name a device.
    #[error("the token's `device` {0}")]
    BadDevice(IdError),
    /// `jti` is empty or too long.
    #[error("the token's `jti` must have 1 to {TOKEN_ID_BYTES_MAX} bytes")]
    BadTokenId,
}

impl AuthError {
    /// The rule that was broken, as one word for records and counts.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Malformed => "malformed",
            Self::BadHeader => "bad_header",
            Self::CriticalExtension => "critical_extension",
            Self::KidMissing => "kid_missing",
            Self::UnknownKid => "unknown_kid",
            Self::AlgorithmNotTheKeys { .. } => "other_algorithm",
            Self::BadSignature => "bad_signature",
            Self::BadClaims { .. } => "bad_claims",
            Self::NoExpiry => "no_expiry",
            Self::Expired { .. } => "expired",
            Self::LivesTooLong { .. } => "lives_too_long",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::BadUser(_) => "bad_user",
            Self::BadDevice(_) => "bad_device",
            Self::BadTokenId => "bad_token_id",
        }
    }
}
