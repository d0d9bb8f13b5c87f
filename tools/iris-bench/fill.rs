//! A data directory with a past: users who have devices, inboxes and history before the switch starts, written
//! by the switch's own store and files, without a network.
//!
//! The users are those of a run with the same `--run-id`, and their device `bench` has acknowledged all, so
//! such a run goes on as if they had been there before. With `--pending` a second device has acknowledged
//! nothing: then the entries are an inbox's backlog, and else its history.

use iris::runtime::storage::{BlockingLog, DataDir, Format, Upkeep};
use iris::shard::ShardConfig;
use iris::shard::retention::Retention;
use serde_json::{Value, json};

use crate::args::FillArgs;
use crate::connection;
use crate::message::prefix;
use crate::run::instant;
use crate::traffic::{self, TIME_MS, Traffic, on_all_logs};

/// Commands that are proposed before the log is written.
const COMMANDS_PER_FLUSH: usize = 4_000;

/// Entries that an inbox of this tool may hold: as many as a switch can be told to let wait.
const INBOX_ENTRIES: u64 = 1_000_000;

/// What was written.
#[derive(Debug)]
pub struct Filled {
    users: u64,
    entries: u64,
    log_bytes: u64,
    took_s: f64,
}

/// Writes it.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &FillArgs) -> Result<Filled, String> {
    let began = instant();
    let format = Format {
        logs: args.logs,
        ..Format::default()
    };
    let data = DataDir::open(&args.data, &format).map_err(|error| error.to_string())?;
    let ends = on_all_logs(args.logs, |log| fill(args, &data, log))?;
    data.record_durable(&ends)
        .map_err(|error| error.to_string())?;
    Ok(Filled {
        users: args.users,
        entries: args.users * args.entries,
        log_bytes: ends.iter().sum(),
        took_s: began.elapsed().as_secs_f64(),
    })
}

/// Nothing is full, and nothing leaves.
fn config() -> ShardConfig {
    ShardConfig {
        inbox_entries_max: INBOX_ENTRIES,
        retention: Retention {
            entries: u64::MAX,
            bytes: u64::MAX,
            age_ms: u64::MAX,
        },
        ..ShardConfig::default()
    }
}

fn fill(args: &FillArgs, data: &DataDir, log_no: u32) -> Result<u64, String> {
    let setup = data.setup(log_no, config(), Upkeep::default());
    let traffic = Traffic::to(data, args.body, &prefix(args.run_id));
    let users = traffic.users_of(log_no, args.users);
    let mut log = BlockingLog::open(data, log_no, setup).map_err(|error| error.to_string())?;
    log.now.unix_ms = TIME_MS;
    let io = |error: std::io::Error| format!("cannot fill the log: {error}");
    let senders: Vec<String> = (0..args.senders).map(|at| format!("sender-{at}")).collect();
    let mut proposed = 0;
    let mut settle = |log: &mut BlockingLog, at_least: usize| -> std::io::Result<()> {
        proposed += 1;
        if proposed >= at_least {
            log.settle()?;
            log.effects.clear();
            proposed = 0;
        }
        Ok(())
    };
    for user in &users {
        traffic.register_device(&mut log, *user, connection::DEVICE);
        if args.pending {
            traffic.register_device(&mut log, *user, traffic::DEVICE);
        }
        settle(&mut log, COMMANDS_PER_FLUSH).map_err(io)?;
    }
    for number in 0..args.entries {
        let sender = &senders[(number % args.senders) as usize];
        for user in &users {
            traffic.send_from(&mut log, sender, *user, number / args.senders + 1);
            settle(&mut log, COMMANDS_PER_FLUSH).map_err(io)?;
        }
    }
    settle(&mut log, 1).map_err(io)?;
    for user in users.iter().filter(|_| args.entries > 0) {
        traffic.acknowledge_device(&mut log, *user, connection::DEVICE, args.entries);
        settle(&mut log, COMMANDS_PER_FLUSH).map_err(io)?;
    }
    settle(&mut log, 1).map_err(io)?;
    Ok(log.store.status().end)
}

impl Filled {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        format!(
            "{} users with {} entries in all, {:.0} MiB of log, in {:.1} s\n",
            self.users,
            self.entries,
            self.log_bytes as f64 / f64::from(1 << 20),
            self.took_s
        )
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "users": self.users, "entries": self.entries, "log_bytes": self.log_bytes,
            "took_s": self.took_s,
        })
    }
}
