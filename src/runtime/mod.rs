//! The shell: what runs the pure core on a machine.

#[forbid(unsafe_code)]
pub mod dev;
pub mod preflight;
pub mod stream;
pub mod tls;

use std::net::SocketAddr;

use crate::config::Config;

/// The switch listens: what its starter wants to know.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The address, with the port that was taken when 0 was asked for.
    pub addr: SocketAddr,
}

/// Why the switch did not start, or stopped other than by request.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The machine cannot run it as configured.
    #[error(transparent)]
    Preflight(#[from] preflight::PreflightError),
    /// A file that the configuration names is unusable.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// There is nothing to run yet.
    #[error("this build has no reactor; build one that has")]
    NoReactor,
}

/// Runs the switch until it is told to stop. `ready` is called once, when clients can connect.
pub fn serve(config: Config, ready: impl FnOnce(Ready)) -> Result<(), ServeError> {
    let _prepared = preflight::run(&config)?;
    let _keyring = config.keyring()?;
    drop(ready);
    Err(ServeError::NoReactor)
}
