//! Tools that look into a data directory while no switch runs on it, and some that may while one does.
//!
//! ```text
//!   verify    reads everything and judges           never writes
//!   stat      counts                                never writes
//!   dump      shows what lies there                 never writes
//!   salvage   lists losses; sets them aside only at a person's word
//!   backup    copies a log as a crash could have left it
//!   restore   verifies a copy and makes a data directory of it
//! ```
//! What a log means is decided by the same functions as in a switch: `crate::store::recover` and
//! `crate::store::salvage`. These modules read files, ask them, and put what they say into plain structs;
//! printing is the command line's.

pub mod backup;
pub mod dump;
mod manifest;
pub mod restore;
pub mod salvage;
mod snapshot;
pub mod stat;
pub mod verify;

use std::path::{Path, PathBuf};

use super::storage::{DataDirError, DataView, LogError};

pub use manifest::ManifestError;
pub use snapshot::SnapshotError;

/// Why a data directory could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// It is none, or somebody has it.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A file of a log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It has fewer logs.
    #[error("data directory {path} has {logs} logs, numbered from 0; there is no log {log}")]
    NoLog {
        /// The directory.
        path: PathBuf,
        /// How many it has.
        logs: u32,
        /// The one asked for.
        log: u32,
    },
    /// A log of a running switch could not be caught.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl OfflineError {
    /// Whether there is data that is not whole, and not just nothing to look at.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::DataDir(error) => error.is_damage(),
            Self::Snapshot(error) => error.is_damage(),
            Self::Log(_) | Self::NoLog { .. } => false,
        }
    }
}

/// The logs to look at: all, or the one asked for.
fn logs(view: &DataView, only: Option<u32>) -> Result<std::ops::Range<u32>, OfflineError> {
    let logs = view.super_block().logs;
    match only {
        None => Ok(0..logs),
        Some(log) if log < logs => Ok(log..log + 1),
        Some(log) => Err(OfflineError::NoLog {
            path: view.path().to_owned(),
            logs,
            log,
        }),
    }
}

/// A path inside the data directory, as people are told of it: `log-00/0000000000000000.seg`.
fn inside(data: &Path, path: &Path) -> String {
    let inner = path.strip_prefix(data).unwrap_or(path);
    inner.display().to_string()
}
