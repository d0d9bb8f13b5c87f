//! Making tokens: for `iris token`, for tests, for the load generator.
//!
//! The switch never mints; whoever owns the users does. What is made here is what [`Keyring`] accepts,
//! and a request that it would refuse is refused here already. A [`SigningKey`] is read and proved
//! once; after that a token costs one signature and one parse of the key (Ed25519: 45 µs, measured on
//! one busy core), and threads may share the key.
//!
//! [`Keyring`]: super::Keyring

use std::fmt;

use iris_proto::id::{DeviceId, UserId};
use jsonwebtoken::{EncodingKey, Header, crypto, encode};
use serde::Serialize;

use super::keyring::{check_kid, check_secret, is_pem, is_private_pem};
use super::{Algorithm, KeyError, TOKEN_ID_BYTES_MAX, TOKEN_LIFE_S_MAX};

/// A key that signs tokens.
#[derive(Clone)]
pub struct SigningKey {
    kid: String,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish()
    }
}

/// Why no token was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The key id or the HS256 secret is unusable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A PEM file that holds no private key of a known kind.
    #[error(
        "the signing key is not a private key for EdDSA, ES256 or RS256 in PEM; give a PKCS#8 \
             `PRIVATE KEY` file, or a file of 32 or more random bytes for HS256"
    )]
    NotAPrivateKey,
    /// The time to live is zero or over the bound.
    #[error("a token may live for 1 s to 24 h, not {ttl_s} s")]
    BadLife {
        /// Seconds asked for.
        ttl_s: u64,
    },
    /// The `jti` is empty or too long.
    #[error("a `jti` has 1 to {TOKEN_ID_BYTES_MAX} bytes")]
    BadTokenId,
    /// The library could not sign with a key that it accepted before.
    #[error("signing failed ({0}); check the signing key")]
    Signing(String),
}

/// What a token shall say. See [`super::Claims`] for the meaning.
#[derive(Clone, Copy, Debug)]
pub struct MintRequest<'a> {
    /// The user (`sub`).
    pub user: &'a UserId,
    /// The only device that may use it (`device`), if it is bound to one.
    pub device: Option<&'a DeviceId>,
    /// Seconds that it lives, 1 to [`TOKEN_LIFE_S_MAX`].
    pub ttl_s: u64,
    /// Now, in seconds since the Unix epoch (`iat`; `exp` is this and `ttl_s`).
    pub now_s: u64,
    /// Who issues it (`iss`).
    pub issuer: Option<&'a str>,
    /// Whom it is for (`aud`).
    pub audience: &'a str,
    /// Its own id (`jti`).
    pub jti: Option<&'a str>,
}

#[derive(Serialize)]
struct Payload<'a> {
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    aud: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<&'a str>,
}

impl SigningKey {
    /// Reads a key file's bytes: a PEM private key (Ed25519, P-256 or RSA, PKCS#8), whose kind says
    /// the algorithm, or anything else as the secret of HS256.
    pub fn read(kid: &str, material: &[u8]) -> Result<Self, MintError> {
        check_kid(kid)?;
        if !is_pem(material) {
            check_secret(kid, material)?;
            let key = EncodingKey::from_secret(material);
            return Ok(Self {
                kid: kid.to_owned(),
                algorithm: Algorithm::Hs256,
                key,
            });
        }
        if !is_private_pem(material) {
            return Err(MintError::NotAPrivateKey);
        }
        let candidates = [
            (Algorithm::EdDsa, EncodingKey::from_ed_pem(material)),
            (Algorithm::Es256, EncodingKey::from_ec_pem(material)),
            (Algorithm::Rs256, EncodingKey::from_rsa_pem(material)),
        ];
        for (algorithm, key) in candidates {
            let Ok(key) = key else { continue };
            if crypto::sign(b"proof", &key, algorithm.jwt()).is_ok() {
                return Ok(Self {
                    kid: kid.to_owned(),
                    algorithm,
                    key,
                });
            }
        }
        Err(MintError::NotAPrivateKey)
    }

    /// The key id that its tokens carry.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The algorithm that it signs with.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// Makes one token.
pub fn mint(key: &SigningKey, request: &MintRequest<'_>) -> Result<String, MintError> {
    let ttl_s = request.ttl_s;
    if ttl_s == 0 || ttl_s > TOKEN_LIFE_S_MAX {
        return Err(MintError::BadLife { ttl_s });
    }
    if request
        .jti
        .is_some_and(|jti| jti.is_empty() || jti.len() > TOKEN_ID_BYTES_MAX)
    {
        return Err(MintError::BadTokenId);
    }
    let payload = Payload {
        sub: request.user.as_str(),
        device: request.device.map(DeviceId::as_str),
        iss: request.issuer,
        aud: request.audience,
        iat: request.now_s,
        exp: request.now_s.saturating_add(ttl_s),
        jti: request.jti,
    };
    let mut header = Header::new(key.algorithm.jwt());
    header.kid = Some(key.kid.clone());
    encode(&header, &payload, &key.key).map_err(|error| MintError::Signing(error.to_string()))
}
