//! `iris log`: looking into the logs of a data directory, and setting damage aside.
//!
//! `verify`, `stat`, `dump` and the listing of `salvage` write nothing, not even the lock file.

mod dump;
mod salvage;
mod stat;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::shell_word;
use super::{DATA_DEFAULT, Failure};
use crate::runtime::offline::OfflineError;
use crate::runtime::storage::{Access, DataDirError, DataView};

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Read everything and say whether it is as it was written
    Verify(verify::VerifyArgs),
    /// Count what there is
    Stat(stat::StatArgs),
    /// Print what lies in a log or a checkpoint, one line for each thing
    Dump(dump::DumpArgs),
    /// List what is lost of a damaged log, and set it aside
    Salvage(salvage::SalvageArgs),
}

pub(super) fn run(args: &LogArgs) -> Result<(), Failure> {
    match &args.command {
        LogCommand::Verify(args) => verify::run(args),
        LogCommand::Stat(args) => stat::run(args),
        LogCommand::Dump(args) => dump::run(args),
        LogCommand::Salvage(args) => salvage::run(args),
    }
}

/// What is looked at.
#[derive(Debug, Args)]
struct WhichArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// One log only, by its number
    #[arg(long, value_name = "K")]
    log: Option<u32>,
}

impl WhichArgs {
    fn view(&self, access: Access) -> Result<DataView, Failure> {
        DataView::open(&self.data, access).map_err(|error| refused(error.into()))
    }

    /// The directory as a shell reads it back.
    fn word(&self) -> String {
        shell_word(&self.data.to_string_lossy())
    }
}

/// Damage is exit code 1; nothing to look at, or a switch that has it, is 2.
fn refused(error: OfflineError) -> Failure {
    match error.is_damage() {
        true => Failure::told(error),
        false => Failure::Nothing(error.to_string()),
    }
}

/// For commands that may look while a switch runs, when they are told so.
fn view_running(which: &WhichArgs, running: bool) -> Result<(DataView, Access), Failure> {
    let access = match running {
        true => Access::MayRun,
        false => Access::Stopped,
    };
    match DataView::open(&which.data, access) {
        Ok(view) => Ok((view, access)),
        Err(error @ DataDirError::Locked { .. }) => Err(Failure::Nothing(format!(
            "{error}, or look at it as it runs, with --running"
        ))),
        Err(error) => Err(refused(error.into())),
    }
}

/// Decimal, or hexadecimal behind `0x`.
fn position(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "it must be a position such as 4096 or 0x1000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_decimal_or_hexadecimal() {
        assert_eq!(position("4096"), Ok(4096));
        assert_eq!(position("0x1000"), Ok(4096));
        for bad in ["", "0x", "x", "-1", "0xg"] {
            assert!(position(bad).is_err(), "{bad:?}");
        }
    }
}
