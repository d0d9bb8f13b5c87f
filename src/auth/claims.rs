//! The rules for a payload whose signature holds: times, issuer, audience, names.
//!
//! Everything here is a function of the payload, the rules and `now_s`. With leeway `l`, a token is
//! valid in `nbf - l ≤ now < exp + l`, and `exp` may be at most 24 h (and `l`) ahead, of now and of `iat`.

use std::fmt;

use iris_proto::id::{DeviceId, IdError, UserId};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{AuthError, Claims, TOKEN_ID_BYTES_MAX, TOKEN_LIFE_S_MAX};

/// What the operator demands of every token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `iss` must be exactly this; `None` accepts any issuer that has a key.
    pub issuer: Option<String>,
    /// `aud` must be or list this. Always demanded: a key that also signs tokens for other services
    /// must not open this one.
    pub audience: String,
    /// Seconds that the issuer's clock may be off; at most [`super::LEEWAY_S_MAX`].
    pub leeway_s: u64,
}

/// The claims that we know, as they come. Unknown ones are ignored; one that comes twice is an error.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RawClaims {
    #[serde(default)]
    sub: Option<String>,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    iss: Option<String>,
    #[serde(default)]
    aud: Option<Audience>,
    #[serde(default)]
    jti: Option<String>,
    #[serde(default, deserialize_with = "numeric_date")]
    exp: Option<u64>,
    #[serde(default, deserialize_with = "numeric_date")]
    nbf: Option<u64>,
    #[serde(default, deserialize_with = "numeric_date")]
    iat: Option<u64>,
}

/// Claims out of a JSON object. The derived reader alone would also take a list of values, in the order
/// of the fields.
pub(super) struct Object(pub(super) RawClaims);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = RawClaims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<RawClaims, A::Error> {
                RawClaims::deserialize(MapAccessDeserializer::new(members))
            }
        }
        from.deserialize_map(Members).map(Self)
    }
}

/// One audience or several (RFC 7519, section 4.1.3).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn lists(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Many(audiences) => audiences.iter().any(|audience| audience == wanted),
        }
    }
}

/// Seconds since the epoch; a fraction is cut off, a negative or absurd number is refused.
fn numeric_date<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: above it a float is no longer a second
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else {
        return Ok(None);
    };
    if let Some(whole) = number.as_u64() {
        return Ok(Some(whole));
    }
    match number.as_f64() {
        Some(seconds) if (0.0..EXACT).contains(&seconds) => Ok(Some(seconds as u64)),
        _ => Err(serde::de::Error::custom("a time is not seconds since 1970")),
    }
}

/// Turns a payload into [`Claims`], or says which rule it breaks.
pub(super) fn check(raw: RawClaims, rules: &Rules, now_s: u64) -> Result<Claims, AuthError> {
    let expires_s = check_expiry(raw.exp, raw.iat, rules.leeway_s, now_s)?;
    check_begun(raw.nbf, rules.leeway_s, now_s)?;
    // A token "from the future" would slip under a later "revoke everything issued before now".
    check_begun(raw.iat, rules.leeway_s, now_s)?;
    if rules.issuer.is_some() && raw.iss != rules.issuer {
        return Err(AuthError::WrongIssuer);
    }
    if !raw
        .aud
        .is_some_and(|audience| audience.lists(&rules.audience))
    {
        return Err(AuthError::WrongAudience);
    }
    let sub = raw.sub.ok_or(AuthError::BadUser(IdError::Empty))?;
    let user = UserId::new(&sub).map_err(AuthError::BadUser)?;
    let device = raw.device.as_deref().map(DeviceId::new).transpose();
    let device = device.map_err(AuthError::BadDevice)?;
    if raw
        .jti
        .as_ref()
        .is_some_and(|jti| jti.is_empty() || jti.len() > TOKEN_ID_BYTES_MAX)
    {
        return Err(AuthError::BadTokenId);
    }
    assert!(expires_s > now_s, "an expired token passed");
    Ok(Claims {
        user,
        device,
        expires_s,
        issued_s: raw.iat.unwrap_or(0),
        jti: raw.jti,
    })
}

/// The second at which the session ends.
fn check_expiry(
    exp: Option<u64>,
    iat: Option<u64>,
    leeway_s: u64,
    now_s: u64,
) -> Result<u64, AuthError> {
    let exp = exp.ok_or(AuthError::NoExpiry)?;
    let expires_s = exp.saturating_add(leeway_s);
    if expires_s <= now_s {
        return Err(AuthError::Expired {
            since_s: now_s - exp,
        });
    }
    // From `iat` too: one issued for a month would else be good on its last day, when nobody remembers
    // that it was revoked on its first.
    let ahead_s = exp.saturating_sub(iat.unwrap_or(now_s).min(now_s));
    if ahead_s > TOKEN_LIFE_S_MAX + leeway_s {
        return Err(AuthError::LivesTooLong { ahead_s });
    }
    Ok(expires_s)
}

fn check_begun(from: Option<u64>, leeway_s: u64, now_s: u64) -> Result<(), AuthError> {
    let wait_s = from.unwrap_or(0).saturating_sub(now_s);
    if wait_s > leeway_s {
        return Err(AuthError::NotYetValid { wait_s });
    }
    Ok(())
}
