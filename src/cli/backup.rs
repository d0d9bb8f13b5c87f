//! `iris backup` and `iris restore`.

use std::path::PathBuf;

use clap::Args;

use super::output::shell_word;
use super::{DATA_DEFAULT, Failure, output};
use crate::runtime::offline::ManifestError;
use crate::runtime::offline::backup::{BackupError, Copied, backup};
use crate::runtime::offline::restore::restore;

#[derive(Debug, Args)]
#[command(long_about = "\
Copy a data directory into a new one, also while a switch serves it, and without stopping it. \
Everything that was accepted before the backup began is in it. Each log is copied as a crash could have \
left it, and the copy is then read and judged as `iris log verify` does; its MANIFEST is written last, \
and without one it is no backup.

Keys, certificates and the configuration are not copied.")]
#[command(after_long_help = "\
Examples:
  iris backup --to /backup/iris-monday
  iris backup --data /var/lib/iris --to /backup/iris-monday

Exit codes:
  0  the backup is there, and durable
  1  there is none; standard error says why
  2  wrong usage, or no data directory")]
pub(super) struct BackupArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// Where to copy it: a directory that is new or empty
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Debug, Args)]
#[command(long_about = "\
Verify a backup, every file by its CRC and everything in them as `iris log verify` does, and make a data \
directory of it.

What was accepted after the backup is not in it. So the data gets a new id, by which clients notice: they \
forget their positions and start again. Never serve the old and the restored directory at the same time.")]
#[command(after_long_help = "\
Examples:
  iris restore --from /backup/iris-monday --data /var/lib/iris

Exit codes:
  0  the data directory is there, and durable
  1  nothing was restored; standard error says why
  2  wrong usage, or no backup")]
pub(super) struct RestoreArgs {
    /// The backup
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The data directory to make: new or empty
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
}

pub(super) fn run(args: &BackupArgs) -> Result<(), Failure> {
    let copied = backup(&args.data, &args.to).map_err(refused)?;
    let to = shell_word(&args.to.to_string_lossy());
    output::print(&format!(
        "Backed up to {to}: {}.\nRestore it with `iris restore --from {to} --data NEW`.",
        summary(&copied)
    ))
}

pub(super) fn run_restore(args: &RestoreArgs) -> Result<(), Failure> {
    let copied = restore(&args.from, &args.data).map_err(refused)?;
    output::print(&format!(
        "Restored to {}: {}. Clients will notice that their positions mean nothing any more.",
        shell_word(&args.data.to_string_lossy()),
        summary(&copied)
    ))
}

fn summary(copied: &Copied) -> String {
    let logs = copied.logs.iter();
    let ends: Vec<String> = logs
        .map(|log| format!("log {} up to {:#x}", log.log, log.end))
        .collect();
    format!(
        "{} files, {} bytes, {} messages read and whole; {}",
        copied.files,
        copied.bytes,
        copied.messages,
        ends.join(", ")
    )
}

fn refused(error: BackupError) -> Failure {
    match error {
        BackupError::Offline(error) if !error.is_damage() => Failure::Nothing(error.to_string()),
        BackupError::Manifest(error @ ManifestError::Missing { .. }) => {
            Failure::Nothing(error.to_string())
        }
        error => Failure::told(error),
    }
}
