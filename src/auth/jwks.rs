//! Keys from a JSON Web Key Set (RFC 7517): the form in which login services publish theirs.
//!
//! ```text
//!   { "keys": [ { "kty": "OKP", "crv": "Ed25519", "kid": "2026-11", "alg": "EdDSA", "x": "…" }, … ] }
//!                                                                               ─▶ KeySet
//! ```
//!
//! A set may be shared with others, so what we have no use for (another kind of key, another algorithm,
//! a key for encryption) is passed over and named in [`KeySet::skipped`]. What claims to be for us and
//! cannot be believed is an error: a key without `kid` or `alg`, an algorithm of another kind of key, a
//! private key, one that is too short. `alg` is demanded because the algorithm comes from the key, and
//! an RSA key alone does not say it.

use std::fmt;

use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keyring::{Verifier, check_kid, check_secret};
use super::{Algorithm, KeyError};

/// Bytes of a key set, at most. Over it: [`JwksError::TooLarge`], nothing of it is read.
pub const JWKS_BYTES_MAX: usize = 64 * 1024;
/// Entries of a key set, those that are skipped included. More: [`JwksError::TooMany`].
pub const JWKS_ENTRIES_MAX: usize = 128;
/// Bits of an RSA modulus, at least. Under it: [`KeyError::ShortRsa`].
pub const RSA_BITS_MIN: usize = 2048;
/// Bits of an RSA modulus, at most: a longer one costs more to check than a login may.
pub const RSA_BITS_MAX: usize = 8192;
/// Characters of 32 bytes in base64url without padding.
const CHARS_OF_32_BYTES: usize = 43;

/// Why a text is no key set. One line: what, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Longer than [`JWKS_BYTES_MAX`].
    #[error("the key set has {len} bytes, at most {JWKS_BYTES_MAX} are read; remove old keys")]
    TooLarge {
        /// Bytes found.
        len: usize,
    },
    /// More entries than [`JWKS_ENTRIES_MAX`].
    #[error(
        "the key set has {found} entries, at most {JWKS_ENTRIES_MAX} are read; remove old keys"
    )]
    TooMany {
        /// Entries found.
        found: usize,
    },
    /// Not JSON of the form.
    #[error("this is not a JSON Web Key Set ({why}); it must be {{\"keys\": [ … ]}}")]
    NotASet {
        /// What the JSON reader said.
        why: String,
    },
    /// A key that nobody could ask for.
    #[error("entry {entry} has no `kid`; give it one, tokens ask for keys by it")]
    NoKid {
        /// Its place, from 1.
        entry: usize,
    },
    /// A key that does not say what it is for.
    #[error("key `{kid}` has no `alg`; add HS256, EdDSA, ES256 or RS256, whichever it is for")]
    NoAlgorithm {
        /// The key's id.
        kid: String,
    },
    /// The algorithm is not one of this kind of key.
    #[error("key `{kid}` is of kind {kty}, which is not for {algorithm}; correct its `alg`")]
    OtherKind {
        /// The key's id.
        kid: String,
        /// Its `kty`.
        kty: String,
        /// Its `alg`.
        algorithm: Algorithm,
    },
    /// The key's own parts are missing or wrong.
    #[error("key `{kid}` is not a key for {algorithm}: {why}")]
    BadKey {
        /// The key's id.
        kid: String,
        /// Its `alg`.
        algorithm: Algorithm,
        /// Which part.
        why: &'static str,
    },
    /// A key that breaks the rules for all keys.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// An entry that was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its place in the set, from 1.
    pub entry: usize,
    /// Its key id, if it has one; control characters are escaped.
    pub kid: String,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} (`{}`): {}", self.entry, self.kid, self.why)
    }
}

/// The usable keys of a set, proved to be keys.
#[derive(Default)]
pub struct KeySet {
    pub(super) verifiers: Vec<Verifier>,
    /// What was passed over, in order.
    pub skipped: Vec<Skipped>,
}

impl KeySet {
    /// Whether something in it signs tokens: then nobody else may read its file.
    #[must_use]
    pub fn has_secrets(&self) -> bool {
        let mut all = self.verifiers.iter();
        all.any(|one| one.algorithm == Algorithm::Hs256)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kids: Vec<_> = self.verifiers.iter().map(|one| &one.kid).collect();
        f.debug_struct("KeySet")
            .field("kids", &kids)
            .field("skipped", &self.skipped)
            .finish()
    }
}

/// The members that we know of any kind of key. Unknown ones are ignored; one that comes twice counts
/// as its last value.
#[derive(Deserialize)]
struct RawKey {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    k: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
}

/// What only a private key has (RFC 7518, sections 6.2.2 and 6.3.2).
const PRIVATE_MEMBERS: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "oth"];

impl KeySet {
    /// Reads a key set.
    pub fn read(text: &[u8]) -> Result<Self, JwksError> {
        if text.len() > JWKS_BYTES_MAX {
            return Err(JwksError::TooLarge { len: text.len() });
        }
        let mut set: Map<String, Value> = serde_json::from_slice(text).map_err(not_a_set)?;
        let Some(Value::Array(keys)) = set.remove("keys") else {
            return Err(JwksError::NotASet {
                why: "`keys` is no list".to_owned(),
            });
        };
        if keys.len() > JWKS_ENTRIES_MAX {
            return Err(JwksError::TooMany { found: keys.len() });
        }
        let mut set = Self::default();
        for (index, value) in keys.into_iter().enumerate() {
            let entry = index + 1;
            let private = PRIVATE_MEMBERS.iter().any(|name| value.get(name).is_some());
            // A list would be taken as the members in their order here.
            let raw: RawKey = match value {
                Value::Object(_) => serde_json::from_value(value).map_err(not_a_set)?,
                _ => {
                    return Err(JwksError::NotASet {
                        why: format!("entry {entry} is no object"),
                    });
                }
            };
            let algorithm = match purpose(&raw) {
                Ok(algorithm) => algorithm,
                Err(why) => {
                    let kid = raw.kid.as_deref().unwrap_or_default();
                    let kid = kid.escape_default().take(super::KID_BYTES_MAX).collect();
                    set.skipped.push(Skipped { entry, kid, why });
                    continue;
                }
            };
            let kid = raw.kid.clone().ok_or(JwksError::NoKid { entry })?;
            check_kid(&kid)?;
            if set.verifiers.iter().any(|other| other.kid == kid) {
                return Err(KeyError::Duplicate { kid }.into());
            }
            let Some(algorithm) = algorithm else {
                return Err(JwksError::NoAlgorithm { kid });
            };
            if private {
                return Err(KeyError::Private { kid }.into());
            }
            let key = decoding_key(&raw, &kid, algorithm)?;
            set.verifiers.push(Verifier {
                kid,
                algorithm,
                key,
            });
        }
        Ok(set)
    }

    /// Keys in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.verifiers.len()
    }

    /// Whether it has no key that we could use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.verifiers.is_empty()
    }
}

/// The JSON reader repeats values that it stumbles over, and one could be a secret: only the place of
/// the error is passed on.
fn not_a_set(error: serde_json::Error) -> JwksError {
    let why = match error.line() {
        0 => "a member of a key has the wrong type or is missing".to_owned(),
        line => format!("line {line}, column {}", error.column()),
    };
    JwksError::NotASet { why }
}

/// The algorithm that a key is for, if it names one, or why it is none of ours.
fn purpose(raw: &RawKey) -> Result<Option<Algorithm>, &'static str> {
    match (raw.kty.as_str(), raw.crv.as_deref()) {
        ("oct" | "RSA", _) | ("OKP", Some("Ed25519")) | ("EC", Some("P-256")) => {}
        ("OKP" | "EC", _) => return Err("its curve (`crv`) is not used here"),
        _ => return Err("its kind (`kty`) is not used here"),
    }
    if raw.purpose.as_deref().is_some_and(|it| it != "sig") {
        return Err("it is not for signatures (`use`)");
    }
    let verifies = |all: &Vec<String>| all.iter().any(|one| one == "verify");
    if raw.key_ops.as_ref().is_some_and(|all| !verifies(all)) {
        return Err("it is not for verifying (`key_ops`)");
    }
    match raw.alg.as_deref() {
        None => Ok(None),
        Some("Ed25519") => Ok(Some(Algorithm::EdDsa)), // its name since RFC 9864
        Some(name) => match name.parse() {
            Ok(algorithm) => Ok(Some(algorithm)),
            Err(_) => Err("its algorithm (`alg`) is not used here"),
        },
    }
}

fn decoding_key(raw: &RawKey, kid: &str, algorithm: Algorithm) -> Result<DecodingKey, JwksError> {
    let bad = |why| JwksError::BadKey {
        kid: kid.to_owned(),
        algorithm,
        why,
    };
    let of_32_bytes = |part: &Option<String>, why| match part {
        Some(text) if text.len() == CHARS_OF_32_BYTES => Ok(text.clone()),
        _ => Err(bad(why)),
    };
    match (raw.kty.as_str(), algorithm) {
        ("oct", Algorithm::Hs256) => {
            let text = raw.k.as_deref().ok_or_else(|| bad("`k` is missing"))?;
            // The library decodes base64url only on the way to a key; of which kind is no matter.
            let decoded = DecodingKey::from_ed_components(text);
            let decoded = decoded.map_err(|_| bad("`k` is not base64url without padding"))?;
            let secret = decoded
                .try_get_as_bytes()
                .map_err(|_| bad("`k` is no secret"))?;
            check_secret(kid, secret)?;
            Ok(DecodingKey::from_secret(secret))
        }
        ("OKP", Algorithm::EdDsa) => {
            let x = of_32_bytes(&raw.x, "`x` is not 32 bytes in base64url")?;
            DecodingKey::from_ed_components(&x).map_err(|_| bad("`x` is not base64url"))
        }
        ("EC", Algorithm::Es256) => {
            let x = of_32_bytes(&raw.x, "`x` is not 32 bytes in base64url")?;
            let y = of_32_bytes(&raw.y, "`y` is not 32 bytes in base64url")?;
            DecodingKey::from_ec_components(&x, &y).map_err(|_| bad("`x` or `y` is not base64url"))
        }
        ("RSA", Algorithm::Rs256) => rsa_key(raw, kid, bad),
        (kty, algorithm) => Err(JwksError::OtherKind {
            kid: kid.to_owned(),
            kty: kty.to_owned(),
            algorithm,
        }),
    }
}

fn rsa_key(
    raw: &RawKey,
    kid: &str,
    bad: impl Fn(&'static str) -> JwksError,
) -> Result<DecodingKey, JwksError> {
    let (Some(n), Some(e)) = (&raw.n, &raw.e) else {
        return Err(bad("`n` or `e` is missing"));
    };
    let key = DecodingKey::from_rsa_components(n, e)
        .map_err(|_| bad("`n` or `e` is not base64url without padding"))?;
    let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else {
        return Err(bad("`n` and `e` make no key"));
    };
    match bits(n) {
        0..RSA_BITS_MIN => {
            return Err(KeyError::ShortRsa {
                kid: kid.to_owned(),
            }
            .into());
        }
        RSA_BITS_MIN..=RSA_BITS_MAX => {}
        _ => return Err(bad("`n` has more than 8192 bits")),
    }
    let is_odd = e.last().is_some_and(|last| last & 1 == 1);
    if !is_odd || !(2..=33).contains(&bits(e)) {
        return Err(bad("`e` must be odd, 3 or more, and of 33 bits at most"));
    }
    Ok(key)
}

/// Bits of a number, most significant byte first, zeros in front not counted.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    match number[zeros..] {
        [] => 0,
        [first, ref rest @ ..] => rest.len() * 8 + (8 - first.leading_zeros() as usize),
    }
}
