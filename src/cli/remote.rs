//! What `send`, `recv` and `chat` share: where the switch is, whom to trust, who we are.
//!
//! Each answer comes from its flag, and without the flag from the data directory of a local switch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use iris_proto::id::{DeviceId, UserId};
use iris_proto::limits::TOKEN_BYTES_MAX;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{ADDRESS_DEFAULT, DATA_DEFAULT, Failure};
use crate::auth::{MintRequest, mint};
use crate::client::{ConnectOptions, TokenError, TokenSource};
use crate::runtime::dev;

/// Seconds that a development token lives; each connection gets a new one.
const TOKEN_LIFE_S: u64 = 3_600;
/// Bytes of a LOCK file that are read at most.
const LOCK_BYTES_MAX: usize = 4_096;
/// How long a command that is done waits for its goodbye.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// Where the switch is and how to log in.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct RemoteArgs {
    /// The token to log in with, or @FILE to read it from a file (so that `ps` does not show it)
    /// [default: one signed with the development key in DATA]
    #[arg(long, value_name = "TOKEN|@FILE")]
    token: Option<String>,
    /// Where the switch listens [default: the address in DATA/LOCK, else 127.0.0.1:7447]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,
    /// The certificates to trust, as PEM [default: DATA/dev/ca.pem]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The device to be [default: the token's, else `main`]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<DeviceId>,
    /// The data directory of a local switch, for what the flags above do not say
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
}

pub(super) fn user(text: &str) -> Result<UserId, String> {
    UserId::new(text).map_err(|error| format!("the user {error}"))
}

fn device(text: &str) -> Result<DeviceId, String> {
    DeviceId::new(text).map_err(|error| format!("the device {error}"))
}

impl RemoteArgs {
    /// How to connect as `user`.
    pub(super) fn options(&self, user: &UserId) -> Result<ConnectOptions, Failure> {
        let addr = match &self.addr {
            Some(addr) => addr.clone(),
            None => local_address(&self.data).unwrap_or_else(|| ADDRESS_DEFAULT.to_owned()),
        };
        let ca = match &self.ca {
            Some(ca) => ca.clone(),
            None => dev::load(&self.data)?.ca,
        };
        let token = match &self.token {
            Some(token) => fixed_token(token)?,
            None => dev_token(&self.data, user, self.device.as_ref())?,
        };
        let mut options = ConnectOptions::new(&addr, Arc::new(roots(&ca)?), user.clone(), token);
        options.device = self.device.clone();
        Ok(options)
    }
}

/// The address that a running switch wrote into its data directory. Listening on every address of the
/// machine, it is reached through loopback.
fn local_address(data: &Path) -> Option<String> {
    let lock = std::fs::read(data.join("LOCK")).ok()?;
    let text = std::str::from_utf8(lock.get(..lock.len().min(LOCK_BYTES_MAX))?).ok()?;
    let addr = text
        .lines()
        .find_map(|line| line.strip_prefix("addr="))?
        .trim();
    let (host, port) = addr.rsplit_once(':')?;
    Some(match host {
        "0.0.0.0" | "[::]" => format!("127.0.0.1:{port}"),
        _ => addr.to_owned(),
    })
}

fn roots(path: &Path) -> Result<RootCertStore, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::Told(format!(
            "cannot use the CA certificates in {} ({error}); give a PEM file with --ca",
            path.display()
        ))
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"it has no certificate"));
    }
    Ok(roots)
}

/// A token given on the command line. It is never repeated in a message.
fn fixed_token(given: &str) -> Result<TokenSource, Failure> {
    let token = match given.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::Told(format!(
                "cannot read the token file {path} ({error}); check its path"
            ))
        })?,
        None => given.to_owned(),
    };
    let token = token.trim().to_owned();
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        let len = token.len();
        return Err(Failure::Told(format!(
            "the token has {len} bytes, it must have 1 to {TOKEN_BYTES_MAX}; get one with `iris token`"
        )));
    }
    Ok(Arc::new(move || Ok(token.clone())))
}

/// Tokens signed with the development key, a fresh one for each connection.
fn dev_token(
    data: &Path,
    user: &UserId,
    device: Option<&DeviceId>,
) -> Result<TokenSource, Failure> {
    let key = dev::load(data)?.signing_key()?;
    let (user, device) = (user.clone(), device.cloned());
    Ok(Arc::new(move || {
        let request = MintRequest {
            user: &user,
            device: device.as_ref(),
            ttl_s: TOKEN_LIFE_S,
            now_s: now_s()?,
            issuer: Some(dev::ISSUER),
            audience: "iris",
            jti: None,
        };
        mint(&key, &request).map_err(|error| TokenError(error.to_string()))
    }))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client on a thread of its own asks the clock"
)]
fn now_s() -> Result<u64, TokenError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .map(|since| since.as_secs())
        .map_err(|_| TokenError("the clock says a time before 1970; set it".to_owned()))
}

/// Where cursors are kept when `--state` does not say: by the XDG Base Directory specification.
pub(super) fn state_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("iris"))
        .ok_or_else(|| Failure::told("there is no HOME to keep the cursor in; give --state DIR"))
}

/// Runs a client's work on this thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// Text from somebody else, safe to show on a terminal: control characters are written out.
pub(super) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && letter != '\t' {
            safe.extend(letter.escape_default());
        } else {
            safe.push(letter);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_a_local_switch_is_read_from_its_lock() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(local_address(data.path()), None);
        for (lock, addr) in [
            ("pid=7\naddr=127.0.0.1:9\n", Some("127.0.0.1:9")),
            ("pid=7\naddr=0.0.0.0:9\n", Some("127.0.0.1:9")),
            ("pid=7\n", None),
        ] {
            std::fs::write(data.path().join("LOCK"), lock).unwrap();
            assert_eq!(local_address(data.path()).as_deref(), addr);
        }
    }

    #[test]
    fn control_characters_of_others_do_not_reach_the_terminal() {
        assert_eq!(
            printable("a\tb\u{1b}[2Jc\nd\u{9b}ö"),
            "a\tb\\u{1b}[2Jc\\nd\\u{9b}ö"
        );
    }

    #[test]
    fn token_is_never_in_a_message() {
        let Err(Failure::Told(text)) = fixed_token(&"secret".repeat(1_000)) else {
            panic!()
        };
        assert!(!text.contains("secret"));
    }
}
