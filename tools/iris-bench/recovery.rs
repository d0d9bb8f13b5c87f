//! How long a start takes: a data directory with many entries is made, and opened as the switch does it.
//!
//! ```text
//!   │ entries up to the last checkpoint │ the tail that a start replays │
//!                                       └ just less than another checkpoint would take
//! ```
//!
//! The logs are filled without a network, by the switch's own store and files. The checkpoint's and the
//! tail's pages are dropped from the page cache at each start, as the switch does it.

use std::path::Path;
use std::time::Duration;

use iris::runtime::storage::{BlockingLog, DataDir, Format, Upkeep, open_log};
use iris::shard::ShardConfig;
use serde_json::{Value, json};

use crate::args::RecoveryArgs;
use crate::local;
use crate::run::instant;
use crate::traffic::{Scratch, TIME_MS, Traffic, on_all_logs};

/// Commands that are proposed before the log is written.
const COMMANDS_PER_FLUSH: usize = 4_000;
/// Bytes that the tail stays below another checkpoint.
const TAIL_MARGIN_BYTES: u64 = 4 * 1024 * 1024;
/// No inbox is full for this tool.
const INBOX_ENTRIES: u64 = 1_000_000;

/// What was measured.
#[derive(Debug)]
pub struct Recovery {
    entries: u64,
    users: u64,
    logs: u32,
    log_bytes: u64,
    checkpoint_bytes: u64,
    replayed_bytes: u64,
    fill_s: f64,
    starts_s: Vec<f64>,
}

/// Fills and measures.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &RecoveryArgs) -> Result<Recovery, String> {
    let scratch = Scratch::new(&args.data, "recovery")?;
    measure(args, scratch.path())
}

fn measure(args: &RecoveryArgs, path: &Path) -> Result<Recovery, String> {
    let format = Format {
        logs: args.logs,
        ..Format::default()
    };
    let data = DataDir::open(path, &format).map_err(|error| error.to_string())?;
    let began = instant();
    let filled = on_all_logs(args.logs, |log| fill(args, &data, log))?;
    let fill_s = began.elapsed().as_secs_f64();
    drop(data);
    let mut starts_s = Vec::new();
    let mut entries = 0;
    for _ in 0..args.starts {
        let began = instant();
        let data = DataDir::open(path, &format).map_err(|error| error.to_string())?;
        let found = on_all_logs(args.logs, |log| {
            let setup = data.setup(log, config(), Upkeep::default());
            let (store, files) = open_log(&data, log, setup).map_err(|error| error.to_string())?;
            let users = store.shards().iter().filter_map(|id| store.shard(*id));
            let heads = users.flat_map(|shard| shard.users().iter().map(|user| user.head().0));
            let entries: u64 = heads.sum();
            let took = began.elapsed();
            drop((store, files));
            Ok((entries, took))
        })?;
        let slowest = found.iter().map(|(_, took)| *took).max();
        starts_s.push(slowest.unwrap_or(Duration::ZERO).as_secs_f64());
        entries = found.iter().map(|(entries, _)| entries).sum();
    }
    if entries != args.entries {
        return Err(format!(
            "{entries} entries were recovered, {} written",
            args.entries
        ));
    }
    Ok(Recovery {
        entries,
        users: args.users,
        logs: args.logs,
        log_bytes: filled.iter().map(|(end, _)| end).sum(),
        checkpoint_bytes: checkpoint_bytes(path, args.logs),
        replayed_bytes: filled.iter().map(|(_, replayed)| replayed).sum(),
        fill_s,
        starts_s,
    })
}

fn config() -> ShardConfig {
    ShardConfig {
        inbox_entries_max: INBOX_ENTRIES,
        ..ShardConfig::default()
    }
}

fn checkpoint_bytes(path: &Path, logs: u32) -> u64 {
    let newest = (0..logs).filter_map(|log| {
        let files = std::fs::read_dir(path.join(format!("ckpt-{log:02}"))).ok()?;
        let files = files.filter_map(|file| Some((file.as_ref().ok()?.file_name(), file.ok()?)));
        let newest = files.max_by_key(|(name, _)| name.clone())?;
        Some(newest.1.metadata().ok()?.len())
    });
    newest.sum()
}

/// Writes this log's part of the entries; where it ends, and how much of it a start replays.
fn fill(args: &RecoveryArgs, data: &DataDir, log_no: u32) -> Result<(u64, u64), String> {
    let setup = data.setup(log_no, config(), Upkeep::default());
    let traffic = Traffic::new(data, args.body);
    let users = traffic.users_of(log_no, args.users);
    let mut log = BlockingLog::open(data, log_no, setup).map_err(|error| error.to_string())?;
    log.now.unix_ms = TIME_MS;
    let io = |error: std::io::Error| format!("cannot fill the log: {error}");
    let each = args.entries / args.users;
    // The last part is written when the checkpoint before it is complete.
    let total = each * users.len() as u64;
    let message_bytes = (args.body + 100) as u64;
    let due = Upkeep::default().checkpoint_bytes;
    let tail = (due - TAIL_MARGIN_BYTES) / message_bytes * 9 / 10;
    let (mut sent, mut in_flush) = (0, 0);
    for n in 1..=each {
        for user in &users {
            traffic.send(&mut log, *user, n);
            sent += 1;
            in_flush += 1;
            if in_flush >= COMMANDS_PER_FLUSH {
                log.settle().map_err(io)?;
                log.effects.clear();
                in_flush = 0;
            }
            if sent + tail == total {
                checkpoint(&mut log)?;
            }
        }
    }
    log.settle().map_err(io)?;
    let status = log.store.status();
    Ok((status.end, status.end - status.checkpoint.unwrap_or(0)))
}

/// Waits until a checkpoint is complete that began now.
fn checkpoint(log: &mut BlockingLog) -> Result<(), String> {
    let io = |error: std::io::Error| format!("cannot write a checkpoint: {error}");
    log.settle().map_err(io)?;
    log.store.checkpoint_now();
    let from = log.store.status().end;
    log.run_until(|log| log.store.status().checkpoint >= Some(from))
        .map_err(io)
}

impl Recovery {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let starts: Vec<String> = self.starts_s.iter().map(|s| format!("{s:.2}")).collect();
        format!(
            "{} entries of {} users in {} logs: {:.0} MiB of log, {:.0} MiB of checkpoints\n\
             start to served shards, {:.0} MiB replayed: {} s\n\
             (filled in {:.0} s)\n{}\n",
            self.entries,
            self.users,
            self.logs,
            mib(self.log_bytes),
            mib(self.checkpoint_bytes),
            mib(self.replayed_bytes),
            starts.join(", "),
            self.fill_s,
            local::machine(),
        )
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "entries": self.entries,
            "users": self.users,
            "logs": self.logs,
            "log_bytes": self.log_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
            "replayed_bytes": self.replayed_bytes,
            "starts_s": self.starts_s,
            "machine": local::machine(),
            "unix_time_s": local::unix_time_s(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_recovered_and_the_scratch_directory_removed() {
        let directory = tempfile::tempdir().unwrap();
        let args = RecoveryArgs {
            data: directory.path().to_owned(),
            entries: 2_000,
            users: 20,
            body: 64,
            logs: 2,
            starts: 1,
            json: None,
        };
        let recovery = run(&args).unwrap();
        assert_eq!((recovery.entries, recovery.starts_s.len()), (2_000, 1));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
