//! The keys that may open a session, by key id.
//!
//! A keyring is made once (and again when keys are reloaded) and then only read, so cores share it
//! behind an `Arc`. It holds what verifies: public keys, and the secrets of HS256, which the library
//! wipes from memory when they go.

use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, crypto, dangerous, decode_header};

use super::claims::{self, Object};
use super::jwks::KeySet;
use super::{
    Algorithm, AuthError, Claims, KEYS_MAX, KID_BYTES_MAX, LEEWAY_S_MAX, Rules, SECRET_BYTES_MIN,
};
use iris_proto::limits::TOKEN_BYTES_MAX;
use zeroize::Zeroizing;

/// Bytes of a PKCS#1 public key with a modulus of 2048 bits, less slack for the encoding around it.
const RSA_2048_DER_BYTES_MIN: usize = 2048 / 8 + 4;

/// One key as it was configured, before it is proved to be one.
#[derive(Clone)]
pub struct Key {
    /// The name by which a token's header asks for it.
    pub kid: String,
    /// The only algorithm that it may be used with.
    pub algorithm: Algorithm,
    /// HS256: the secret itself. Else: the public key in PEM (`PUBLIC KEY` or `RSA PUBLIC KEY`).
    /// Wiped when it goes.
    pub material: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish()
    }
}

/// Why a set of keys cannot be a keyring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No key at all: nobody could log in.
    #[error("there is no key to verify tokens with; add one under [[auth.keys]] or in auth.jwks")]
    None,
    /// More than [`KEYS_MAX`].
    #[error("there are {found} keys, at most {KEYS_MAX} are held; remove those no longer used")]
    TooMany {
        /// Keys found.
        found: usize,
    },
    /// The key id is empty, too long, or has a control character.
    #[error("the key id `{kid}` must have 1 to {KID_BYTES_MAX} printable ASCII characters")]
    BadKid {
        /// The id, with control characters escaped.
        kid: String,
    },
    /// Two keys of the same id.
    #[error("the key id `{kid}` appears twice; give each key an id of its own")]
    Duplicate {
        /// The id.
        kid: String,
    },
    /// An HS256 secret that can be guessed.
    #[error(
        "the secret of key `{kid}` has {len} bytes, at least {SECRET_BYTES_MIN} are needed; make \
             one with `openssl rand -out FILE 32`"
    )]
    WeakSecret {
        /// The key's id.
        kid: String,
        /// Bytes found.
        len: usize,
    },
    /// A PEM file where a secret belongs: were it a public key, everyone could sign with it.
    #[error(
        "key `{kid}` is a PEM file, which is never an HS256 secret; set its `alg` to EdDSA, \
             ES256 or RS256, or give a file of random bytes"
    )]
    PemAsSecret {
        /// The key's id.
        kid: String,
    },
    /// A private key where a public one belongs.
    #[error(
        "key `{kid}` is a private key, which does not belong on the switch; give its public \
             half (`openssl pkey -in FILE -pubout`)"
    )]
    Private {
        /// The key's id.
        kid: String,
    },
    /// Not a public key of the algorithm.
    #[error(
        "key `{kid}` is not a public key for {algorithm} in PEM; give a `PUBLIC KEY` file of \
             that algorithm"
    )]
    NotAKey {
        /// The key's id.
        kid: String,
        /// The algorithm that it was configured with.
        algorithm: Algorithm,
    },
    /// An RSA key under 2048 bits.
    #[error("RSA key `{kid}` is shorter than 2048 bits; make a longer one")]
    ShortRsa {
        /// The key's id.
        kid: String,
    },
    /// The leeway is over its limit.
    #[error("a leeway of {leeway_s} s is over {LEEWAY_S_MAX} s; correct the clocks instead")]
    Leeway {
        /// Seconds configured.
        leeway_s: u64,
    },
}

/// A key that was proved to be one.
pub(super) struct Verifier {
    pub(super) kid: String,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// The keys and the rules by which a token becomes [`Claims`].
pub struct Keyring {
    /// 1 to [`KEYS_MAX`], searched in order: at most 32 short comparisons beside a signature check.
    verifiers: Vec<Verifier>,
    rules: Rules,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kids: Vec<_> = self.verifiers.iter().map(|one| &one.kid).collect();
        f.debug_struct("Keyring")
            .field("kids", &kids)
            .field("rules", &self.rules)
            .finish()
    }
}

impl Keyring {
    /// Checks every key, so that a bad one fails the start and not a login.
    pub fn from_keys(keys: Vec<Key>, rules: Rules) -> Result<Self, KeyError> {
        Self::new(keys, KeySet::default(), rules)
    }

    /// The same, with the keys of a set beside them. A key id is in one place only.
    pub fn new(keys: Vec<Key>, set: KeySet, rules: Rules) -> Result<Self, KeyError> {
        let found = keys.len() + set.verifiers.len();
        if found == 0 {
            return Err(KeyError::None);
        }
        if found > KEYS_MAX {
            return Err(KeyError::TooMany { found });
        }
        if rules.leeway_s > LEEWAY_S_MAX {
            return Err(KeyError::Leeway {
                leeway_s: rules.leeway_s,
            });
        }
        let mut verifiers = set.verifiers;
        for key in keys {
            check_kid(&key.kid)?;
            if verifiers.iter().any(|other| other.kid == key.kid) {
                return Err(KeyError::Duplicate { kid: key.kid });
            }
            let decoding = decoding_key(&key)?;
            verifiers.push(Verifier {
                kid: key.kid,
                algorithm: key.algorithm,
                key: decoding,
            });
        }
        Ok(Self { verifiers, rules })
    }

    /// Seconds that an issuer's clock may differ from ours.
    pub fn leeway_s(&self) -> u64 {
        self.rules.leeway_s
    }

    /// The ids of its keys.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.verifiers.iter().map(|one| one.kid.as_str())
    }

    /// Who `token` speaks for at `now_s` (seconds since the Unix epoch), or why for nobody.
    ///
    /// Costs one signature check for every token that is a JWT at all, also for those refused.
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Claims, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::TooLarge { len: token.len() });
        }
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        let header = decode_header(token).map_err(|error| match error.kind() {
            ErrorKind::Json(_) => AuthError::BadHeader,
            _ => AuthError::Malformed,
        })?;
        // `b64` changes what is signed (RFC 7797), also where nobody thought of `crit`.
        if header.crit.is_some() || header.extras.inner().contains_key("b64") {
            return Err(AuthError::CriticalExtension);
        }
        let found = self.find(header.kid.as_deref());
        let verifier = match found {
            Ok(verifier) => verifier,
            Err(_) => self.stand_in(header.alg),
        };
        // Always with the key's algorithm; the header's is only compared.
        let algorithm = verifier.algorithm;
        let genuine = crypto::verify(
            signature,
            message.as_bytes(),
            &verifier.key,
            algorithm.jwt(),
        )
        .map_err(|_| AuthError::Malformed)?;
        found?;
        if header.alg != algorithm.jwt() {
            return Err(AuthError::AlgorithmNotTheKeys { key: algorithm });
        }
        if !genuine {
            return Err(AuthError::BadSignature);
        }
        // "Insecure" only without the signature check above.
        let Object(raw) =
            dangerous::insecure_decode_claims(token).map_err(|error| AuthError::BadClaims {
                why: error.to_string(),
            })?;
        claims::check(raw, &self.rules, now_s)
    }

    fn find(&self, kid: Option<&str>) -> Result<&Verifier, AuthError> {
        match kid {
            Some(kid) => self
                .verifiers
                .iter()
                .find(|v| v.kid == kid)
                .ok_or(AuthError::UnknownKid),
            None if self.verifiers.len() == 1 => Ok(&self.verifiers[0]),
            None => Err(AuthError::KidMissing),
        }
    }

    /// A key to spend the time of a signature check on when the token's own is unknown: one of the
    /// algorithm that the header names, so that the clock does not tell which key ids exist.
    fn stand_in(&self, named: jsonwebtoken::Algorithm) -> &Verifier {
        let same = self
            .verifiers
            .iter()
            .find(|one| one.algorithm.jwt() == named);
        same.unwrap_or(&self.verifiers[0])
    }
}

/// Checks that `kid` can name a key.
pub(super) fn check_kid(kid: &str) -> Result<(), KeyError> {
    let printable = kid.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if kid.is_empty() || kid.len() > KID_BYTES_MAX || !printable {
        return Err(KeyError::BadKid {
            kid: kid.escape_default().take(KID_BYTES_MAX).collect(),
        });
    }
    Ok(())
}

/// Checks that `secret` can be an HS256 secret.
pub(super) fn check_secret(kid: &str, secret: &[u8]) -> Result<(), KeyError> {
    let kid = kid.to_owned();
    if is_pem(secret) {
        return Err(KeyError::PemAsSecret { kid });
    }
    if secret.len() < SECRET_BYTES_MIN {
        return Err(KeyError::WeakSecret {
            kid,
            len: secret.len(),
        });
    }
    Ok(())
}

pub(super) fn is_pem(material: &[u8]) -> bool {
    contains(material, b"-----BEGIN ")
}

pub(super) fn is_private_pem(material: &[u8]) -> bool {
    is_pem(material) && contains(material, b"PRIVATE KEY-----")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn decoding_key(key: &Key) -> Result<DecodingKey, KeyError> {
    let Key {
        kid,
        algorithm,
        material,
    } = key;
    if *algorithm == Algorithm::Hs256 {
        check_secret(kid, material)?;
        return Ok(DecodingKey::from_secret(material));
    }
    if is_private_pem(material) {
        return Err(KeyError::Private { kid: kid.clone() });
    }
    let decoding = match algorithm {
        Algorithm::EdDsa => DecodingKey::from_ed_pem(material),
        Algorithm::Es256 => DecodingKey::from_ec_pem(material),
        Algorithm::Rs256 | Algorithm::Hs256 => DecodingKey::from_rsa_pem(material),
    };
    let not_a_key = || KeyError::NotAKey {
        kid: kid.clone(),
        algorithm: *algorithm,
    };
    let decoding = decoding.map_err(|_| not_a_key())?;
    let raw = decoding.try_get_as_bytes().map_err(|_| not_a_key())?;
    match algorithm {
        Algorithm::EdDsa if raw.len() != 32 => Err(not_a_key()),
        // An uncompressed point of P-256; P-384 has 97 bytes.
        Algorithm::Es256 if raw.len() != 65 || raw[0] != 4 => Err(not_a_key()),
        Algorithm::Rs256 if raw.len() < RSA_2048_DER_BYTES_MIN => {
            Err(KeyError::ShortRsa { kid: kid.clone() })
        }
        _ => Ok(decoding),
    }
}

/// Whom a token says it is of, whoever wrote it; `None` when it says nothing that could be a user.
/// Proves nothing: for counting refusals.
#[must_use]
pub fn claimed_user(token: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Claimed {
        sub: String,
    }
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let claimed: Claimed = dangerous::insecure_decode_claims(token).ok()?;
    iris_proto::id::check_user(&claimed.sub).ok()?;
    Some(claimed.sub)
}
