//! `[admin]`: where the switch can be asked over HTTP, and with which token.
//!
//! The Unix socket in the data directory needs no setting. This is the door for what cannot use it:
//! Prometheus, a browser. It is on loopback only, because what is said there is not encrypted, and every
//! process of the machine can reach it: whoever asks there shows a token.

use std::net::SocketAddr;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::settings::{Value, find};
use super::{Complaint, Config, ConfigError, Settled, Source, missing, read_secret, strip_newline};

/// Bytes of a token, at least: 16 random ones in hexadecimal.
pub const TOKEN_BYTES_MIN: usize = 32;
/// Bytes of a token, at most. It has to fit in a header.
pub const TOKEN_BYTES_MAX: usize = 256;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens: a loopback address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The token that who asks must show; one final newline does not count.
    pub token_file: PathBuf,
}

impl Admin {
    pub(super) fn settled(settled: &Settled) -> Result<Option<Self>, ConfigError> {
        let said = find("admin.listen").and_then(|index| settled.0[index].as_ref());
        let Some((Value::Address(listen), place)) = said else {
            return Ok(None);
        };
        if !listen.ip().is_loopback() {
            return Err(not_loopback(*listen, place.clone()));
        }
        let token_file = settled.optional_path("admin.token_file")?;
        Ok(Some(Self {
            listen: *listen,
            token_file: token_file.ok_or_else(|| missing("admin.token_file"))?,
        }))
    }
}

fn not_loopback(found: SocketAddr, place: Source) -> ConfigError {
    ConfigError::BadValue {
        place,
        key: "admin.listen".to_owned(),
        complaint: Complaint::NotLoopback { found },
    }
}

impl Config {
    /// Reads the token of the admin endpoint, if there is one.
    pub fn admin_token(&self) -> Result<Option<Zeroizing<Vec<u8>>>, ConfigError> {
        let Some(admin) = &self.admin else {
            return Ok(None);
        };
        let mut token = read_secret(&admin.token_file)?;
        strip_newline(&mut token);
        let len = token.len();
        let why = if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&len) {
            format!("must hold {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} bytes, it has {len}")
        } else if !token.iter().all(u8::is_ascii_graphic) {
            "must hold one word of printable ASCII".to_owned()
        } else {
            return Ok(Some(token));
        };
        Err(ConfigError::AdminToken {
            path: admin.token_file.clone(),
            why,
        })
    }
}
