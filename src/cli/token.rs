//! `iris token`: makes a token.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use iris_proto::id::{DeviceId, UserId};

use super::{DATA_DEFAULT, Failure, output};
use crate::auth::{Algorithm, MintRequest, SigningKey, TOKEN_LIFE_S_MAX, mint};
use crate::config::{read_secret, strip_newline};
use crate::runtime::dev;

#[derive(Debug, Args)]
#[command(long_about = "\
Print a token (a JWT) with which a user logs in. Without --key it is signed with the development key \
that `iris serve --dev` made in --data. The kind of a --key file says the algorithm: a PEM private key \
(PKCS#8) of Ed25519, P-256 or RSA gives EdDSA, ES256 or RS256; anything else is an HS256 secret, whose \
one final newline does not count.")]
#[command(after_long_help = "\
Examples:
  iris token --user alice
  iris token --user alice --device phone --ttl 15m
  iris token --user alice --key signing.pem --kid 2026-11 --issuer login.example.org

Files:
  DATA/dev/token-signing.pem   the development key

Exit codes:
  0  the token is on standard output
  1  no token; standard error says why
  2  wrong usage")]
pub(super) struct TokenArgs {
    /// The user: 1 to 64 printable ASCII characters without spaces
    #[arg(long, value_name = "USER", value_parser = user)]
    user: UserId,
    /// Bind the token to one device of the user
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<DeviceId>,
    /// How long it is good for: a number with s, m, h or d; at most 24h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = life)]
    ttl: u64,
    /// The key file to sign with, instead of the development key
    #[arg(long, value_name = "FILE", requires = "kid")]
    key: Option<PathBuf>,
    /// The name of that key in the switch's configuration
    #[arg(long, value_name = "KID", requires = "key")]
    kid: Option<String>,
    /// Who issues it (`iss`) [default: iris-dev with the development key, else none]
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
    /// Whom it is for (`aud`)
    #[arg(long, value_name = "AUDIENCE", default_value = "iris")]
    audience: String,
    /// The token's own id (`jti`), by which it can be revoked [default: a new one]
    #[arg(long, value_name = "ID")]
    jti: Option<String>,
    /// Where the development key is
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
}

fn user(text: &str) -> Result<UserId, String> {
    UserId::new(text).map_err(|error| format!("the user {error}"))
}

fn device(text: &str) -> Result<DeviceId, String> {
    DeviceId::new(text).map_err(|error| format!("the device {error}"))
}

/// Seconds in `90s`, `15m`, `1h`, `1d`, or a bare number of seconds.
fn life(text: &str) -> Result<u64, String> {
    let (number, unit_s) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 60 * 60),
        Some(b'd') => (&text[..text.len() - 1], 24 * 60 * 60),
        _ => (text, 1),
    };
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = number
        .parse::<u64>()
        .ok()
        .filter(|_| digits)
        .and_then(|n| n.checked_mul(unit_s));
    match seconds {
        Some(seconds @ 1..=TOKEN_LIFE_S_MAX) => Ok(seconds),
        Some(_) => Err("it must be 1s to 24h".to_owned()),
        None => Err("it is not a time; write a number with s, m, h or d, such as 15m".to_owned()),
    }
}

pub(super) fn run(args: &TokenArgs) -> Result<(), Failure> {
    let (key, issuer) = signing_key(args)?;
    let jti = args.jti.clone();
    let jti = jti.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let request = MintRequest {
        user: &args.user,
        device: args.device.as_ref(),
        ttl_s: args.ttl,
        now_s: now_s()?,
        issuer: issuer.as_deref(),
        audience: &args.audience,
        jti: Some(&jti),
    };
    output::print(&mint(&key, &request)?)
}

fn signing_key(args: &TokenArgs) -> Result<(SigningKey, Option<String>), Failure> {
    let (Some(path), Some(kid)) = (&args.key, &args.kid) else {
        let issuer = args
            .issuer
            .clone()
            .unwrap_or_else(|| dev::ISSUER.to_owned());
        return Ok((dev::load(&args.data)?.signing_key()?, Some(issuer)));
    };
    let mut material = read_secret(path)?;
    let unusable = |error| Failure::Told(format!("{}: {error}", path.display()));
    let key = SigningKey::read(kid, &material).map_err(unusable)?;
    if key.algorithm() != Algorithm::Hs256 {
        return Ok((key, args.issuer.clone()));
    }
    strip_newline(&mut material);
    Ok((
        SigningKey::read(kid, &material).map_err(unusable)?,
        args.issuer.clone(),
    ))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a command line tool asks the clock once"
)]
fn now_s() -> Result<u64, Failure> {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Ok(since.as_secs()),
        Err(_) => Err(Failure::told("the clock says a time before 1970; set it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_a_number_and_a_unit() {
        for (text, seconds) in [
            ("90s", 90),
            ("15m", 900),
            ("1h", 3600),
            ("1d", 86400),
            ("7", 7),
        ] {
            assert_eq!(life(text), Ok(seconds));
        }
        for bad in [
            "",
            "h",
            "1.5h",
            "-1s",
            "+1s",
            "0",
            "25h",
            "2d",
            "1w",
            "1 h",
            "99999999999999999h",
        ] {
            assert!(life(bad).is_err(), "{bad:?}");
        }
    }
}
