//! Whom a switch lets in, and how many: what can be exchanged while it runs.
//!
//! ```text
//!   SIGHUP ─▶ configuration, key files, certificate ─▶ Policy ─▶ Control::Adopt ─▶ each core
//!                  │ any error
//!                  └─▶ one log line; nothing has changed
//! ```
//!
//! A policy is made whole, proved, and then only read: each core holds its own reference and is given
//! the next one through its control channel, so nothing on a message's way takes a lock. Whoever is
//! connected stays, whatever the new policy says: a session ends when its token does.
//!
//! A new certificate comes with new ticket keys, since a ticket would bring back sessions that were
//! begun under the old one; with the same certificate the TLS configuration stays, and its tickets with
//! it. The same holds for the authorities of clients. Ticket keys are replaced every 6 hours by rustls' rotator, whose lock a handshake meets and a
//! message never does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

use super::admission::FailureRates;
use super::certificate::{Validity, Watch};
use super::start::Running;
use super::tls::{
    HANDSHAKE_BYTES_MAX, PARTIAL_BYTES_MAX, TlsConfigError, certificates, server_config,
};
use crate::audit::{Event, short};
use crate::auth::Keyring;
use crate::config::{self, Config, ConfigError, KEY_FILE_BYTES_MAX, read_bounded, read_secret};
use crate::limit::Rate;

/// Why a policy cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The configuration, or a file that it names, is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificate or key is unusable.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
}

/// Certificate, keys and limits.
pub struct Policy {
    /// Certificate and protocol.
    pub tls: Arc<ServerConfig>,
    /// Bytes that are kept of a handshake: certificates of clients take more.
    pub handshake_bytes_max: usize,
    /// The keys that tokens are verified with.
    pub keyring: Keyring,
    /// How long a stranger may take to say a valid Hello.
    pub hello_timeout: Duration,
    /// Connections of one core with a session; more are sent away.
    pub connections_per_core_max: usize,
    /// How much of anything there may be.
    pub limits: Limits,
    /// When the certificate is valid; `None`: its dates cannot be read.
    pub validity: Option<Validity>,
    /// The certificates in `tls`, to see whether they changed.
    chain: Vec<CertificateDer<'static>>,
    /// The authorities whose clients alone are let in, if there are any.
    client_authorities: Option<Vec<CertificateDer<'static>>>,
}

/// Rates, room for strangers, and patience.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages of one user, all devices together; `None`: any number.
    pub messages: Option<Rate>,
    /// Connections of one address, on all cores; `None`: any number.
    pub connections_per_address: Option<u32>,
    /// Connections of one core that have no session yet; more are closed as they come.
    pub handshakes_per_core: usize,
    /// Those of them from one address; `None`: any number.
    pub handshakes_per_address: Option<usize>,
    /// Sessions of one user; one more is sent away.
    pub sessions_per_user: usize,
    /// How many logins may fail.
    pub failed_logins: FailureRates,
    /// How long one send to a client may take.
    pub write_timeout: Duration,
    /// How long a client may take from the first byte of a frame to its last.
    pub frame_timeout: Duration,
}

impl Limits {
    fn of(limits: &config::Limits) -> Self {
        let rate = |count: u64, period_s, burst: u64| Rate::new(count, period_s, burst.max(1));
        let failures = |per_minute| rate(per_minute, 60, per_minute);
        let connections = u32::try_from(limits.connections_per_address).unwrap_or(u32::MAX);
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            messages: rate(limits.messages_per_s, 1, limits.messages_burst),
            connections_per_address: (connections > 0).then_some(connections),
            handshakes_per_core: count(limits.handshakes_per_core),
            handshakes_per_address: (limits.handshakes_per_address > 0)
                .then_some(count(limits.handshakes_per_address)),
            sessions_per_user: count(limits.sessions_per_user),
            failed_logins: FailureRates {
                of_address: failures(limits.failed_logins_per_minute),
                of_user: failures(limits.failed_logins_per_user_per_minute),
            },
            write_timeout: Duration::from_millis(limits.write_timeout_ms),
            frame_timeout: Duration::from_millis(limits.frame_timeout_ms),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("keyring", &self.keyring)
            .field("hello_timeout", &self.hello_timeout)
            .field("connections_per_core_max", &self.connections_per_core_max)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// Reads the files that the configuration names. What has not changed since `before` is kept.
    pub fn read(config: &Config, before: Option<&Self>) -> Result<Self, PolicyError> {
        let certificate = read_bounded(&config.tls.certificate, KEY_FILE_BYTES_MAX)?;
        let key = read_secret(&config.tls.key)?;
        let chain = certificates(&certificate)?;
        let client_authorities = client_authorities(config)?;
        let mut tls = server_config(&certificate, &key, client_authorities.as_deref())?;
        let is_same = |before: &&Self| {
            before.chain == chain && before.client_authorities == client_authorities
        };
        if let Some(before) = before.filter(is_same) {
            tls = Arc::clone(&before.tls); // the key belongs to the certificate, so it is the same one
        }
        for exposed in config.exposed() {
            tracing::warn!("{exposed}");
        }
        let (keyring, skipped) = config.keyring()?;
        for one in skipped {
            tracing::warn!(
                entry = one.entry,
                kid = one.kid,
                "a key of auth.jwks is passed over: {}",
                one.why
            );
        }
        let handshake_bytes_max = match client_authorities {
            None => HANDSHAKE_BYTES_MAX,
            Some(_) => PARTIAL_BYTES_MAX,
        };
        Ok(Self {
            tls,
            handshake_bytes_max,
            keyring,
            hello_timeout: Duration::from_millis(config.limits.hello_timeout_ms),
            connections_per_core_max: usize::try_from(config.limits.connections_per_core)
                .unwrap_or(usize::MAX),
            limits: Limits::of(&config.limits),
            validity: Validity::of_chain(&chain),
            chain,
            client_authorities,
        })
    }
}

/// The certificates of `tls.client_ca`, if it is set.
fn client_authorities(
    config: &Config,
) -> Result<Option<Vec<CertificateDer<'static>>>, PolicyError> {
    let Some(path) = &config.tls.client_ca else {
        return Ok(None);
    };
    let text = read_bounded(path, KEY_FILE_BYTES_MAX)?;
    let read = certificates(&text);
    let read = read.map_err(|error| TlsConfigError::ClientAuthority(error.to_string()))?;
    Ok(Some(read))
}

/// What a reload starts from.
pub(super) struct Reloading<R> {
    /// What the switch was started with: what cannot be exchanged is still that.
    started: Config,
    policy: Arc<Policy>,
    reread: R,
    drain_timeout: Duration,
    certificate: Watch,
}

impl<R: Fn() -> Result<Config, ConfigError>> Reloading<R> {
    /// `policy` is the one in use; `reread` reads the configuration once more.
    pub fn new(started: Config, policy: Arc<Policy>, reread: R) -> Self {
        let drain_timeout = Duration::from_millis(started.server.drain_timeout_ms);
        Self {
            started,
            certificate: Watch::start(policy.validity),
            policy,
            reread,
            drain_timeout,
        }
    }

    /// How long a stop waits for clients, by the configuration last taken.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// Reads everything once more and gives it to the cores. Whatever fails, nothing has changed.
    pub fn reload(&mut self, running: &mut Running) {
        let read = (self.reread)().map_err(PolicyError::from);
        let made = read.and_then(|config| {
            let policy = Policy::read(&config, Some(&self.policy))?;
            Ok((config, Arc::new(policy)))
        });
        let adopted = made.map_err(|error| error.to_string());
        let adopted = adopted.and_then(|(config, policy)| {
            let silent = running.adopt(&policy).map_err(|error| error.to_string())?;
            Ok((config, policy, silent))
        });
        let (config, policy, silent) = match adopted {
            Ok(adopted) => adopted,
            Err(why) => {
                tracing::error!("SIGHUP: nothing was changed: {why}");
                let outcome = short(&why);
                running.audit(Event::Reload { outcome });
                return;
            }
        };
        if !silent.is_empty() {
            tracing::warn!(cores = ?silent, "SIGHUP: these cores are busy and will reload when they go on");
        }
        let fixed = self.started.fixed_changes(&config);
        if !fixed.is_empty() {
            tracing::warn!(settings = ?fixed, "SIGHUP: these settings have changed, too, and need a restart");
        }
        let renewed = !Arc::ptr_eq(&self.policy.tls, &policy.tls);
        tracing::info!(
            certificate = if renewed { "new" } else { "as before" },
            keys = ?policy.keyring.kids().collect::<Vec<_>>(),
            hello_timeout_ms = config.limits.hello_timeout_ms,
            connections_per_core = config.limits.connections_per_core,
            "SIGHUP: reloaded"
        );
        let outcome = "done".to_owned();
        running.audit(Event::Reload { outcome });
        running.reconfigured(config.to_string());
        self.certificate.renew(policy.validity);
        self.drain_timeout = Duration::from_millis(config.server.drain_timeout_ms);
        self.policy = policy;
    }
}
