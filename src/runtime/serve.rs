//! One node from its configuration to its last core: checks, keys, signals.

use std::net::SocketAddr;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;

use super::notify::Notify;
use super::policy::{Policy, PolicyError, Reloading};
use super::preflight::{self, PreflightError};
use super::start::{NodeError, Options, start};
use super::storage::{DataDirError, Format, SHARDS_DEFAULT, Upkeep};
use crate::config::{Config, ConfigError};
use crate::shard::ShardConfig;

/// The switch listens: what its starter wants to know.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The address, with the port that was taken when 0 was asked for.
    pub addr: SocketAddr,
}

/// Why the switch did not start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The machine cannot run it as configured.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// A file that the configuration names is unusable.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A core did not start.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Signals cannot be listened for.
    #[error(
        "cannot listen for signals: {source}; without them the switch could not be stopped in order"
    )]
    Signals {
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Runs the switch until SIGTERM or SIGINT. `ready` is called once, when clients can connect; `reread`
/// at each SIGHUP, for the configuration as it is then.
pub fn serve(
    config: Config,
    reread: impl Fn() -> Result<Config, ConfigError>,
    ready: impl FnOnce(Ready),
) -> Result<(), ServeError> {
    stop_at_panics();
    // Before anything else, so that no signal after this line finds its default action.
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|source| ServeError::Signals { source })?;
    let prepared = preflight::run(&config)?;
    let options = options(&config, prepared.cores)?;
    let token = config.admin_token().map_err(PolicyError::from)?;
    let tcp = config.admin.as_ref().map(|admin| admin.listen).zip(token);
    let described = config.to_string();
    let mut reloading = Reloading::new(config, Arc::clone(&options.policy), reread);
    let mut running = start(options)?;
    running.publish_address()?;
    let notify = Notify::from_environment();
    if let Err(error) = running.open_admin(tcp, described, notify.clone()) {
        tracing::warn!(%error, "no admin thread: the switch serves, but cannot be asked how it is");
    }
    tracing::info!(address = %running.address(), "ready");
    ready(Ready {
        addr: running.address(),
    });
    if let Some(notify) = &notify {
        notify.ready(running.address());
    }
    for signal in signals.forever() {
        if signal == SIGHUP {
            reloading.reload(&mut running);
            continue;
        }
        tracing::info!(
            signal,
            "stopping: clients are sent away and what is under way is finished"
        );
        break;
    }
    if let Some(notify) = &notify {
        notify.stopping();
    }
    running.drain(reloading.drain_timeout());
    running.wait()?;
    tracing::info!("stopped");
    Ok(())
}

/// A panic anywhere is a bug, and what it leaves behind cannot be trusted: the process ends, and its
/// supervisor starts one whose state comes from the disk.
fn stop_at_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// What the configuration means for a node on these processors.
pub fn options(config: &Config, processors: Vec<usize>) -> Result<Options, ServeError> {
    let logs = u32::try_from(processors.len())
        .unwrap_or(SHARDS_DEFAULT)
        .min(SHARDS_DEFAULT);
    Ok(Options {
        listen: config.server.listen,
        processors,
        data: config.server.data.clone(),
        format: Format {
            logs,
            segment_bytes: config.storage.segment_bytes,
            ..Format::default()
        },
        policy: Arc::new(Policy::read(config, None)?),
        shard: ShardConfig {
            inbox_entries_max: config.limits.inbox_entries,
            retention: config.storage.retention,
            ..ShardConfig::default()
        },
        upkeep: Upkeep {
            checkpoint_bytes: config.storage.checkpoint_bytes,
            clean_bytes_per_s: config.storage.clean_bytes_per_s,
        },
        hooks: super::Hooks::default(),
    })
}
