//! `iris log stat`.

use std::fmt::Write as _;

use clap::Args;

use super::super::output::{cells, columns};
use super::super::{Failure, output};
use super::{WhichArgs, refused, view_running};
use crate::runtime::offline::stat::{Inbox, LogStat, Stat, stat};

#[derive(Debug, Args)]
#[command(long_about = "\
Count what a data directory holds: segments, checkpoints, what a start would read, users, entries, and \
the ten largest inboxes. Nothing is written. With --running a switch may run meanwhile; the numbers are \
then those of a moment.")]
#[command(after_long_help = "\
Examples:
  iris log stat
  iris log stat --data /var/lib/iris --running --json

Exit codes:
  0  done
  1  damaged, so that there is nothing to count; standard error says why
  2  wrong usage, no data directory, or a switch runs on it")]
pub(super) struct StatArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Look although a switch runs on the directory
    #[arg(long)]
    running: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatArgs) -> Result<(), Failure> {
    let (view, access) = view_running(&args.which, args.running)?;
    let stat = stat(&view, access, args.which.log).map_err(refused)?;
    match args.json {
        true => output::print(&serde_json::to_string(&stat)?),
        false => output::print(&text(&stat)),
    }
}

/// For people.
fn text(stat: &Stat) -> String {
    let mut text = format!(
        "{}: {} logs, {} shards, segments of {} bytes, started {} times\n",
        stat.data,
        stat.logs.len(),
        stat.shards,
        stat.segment_bytes,
        stat.incarnation
    );
    for log in &stat.logs {
        text.push('\n');
        log_text(log, &mut text);
    }
    if !stat.largest.is_empty() {
        text.push_str("\nlargest inboxes\n");
        let mut rows = vec![cells([
            "user", "shard", "entries", "pending", "bytes", "devices",
        ])];
        rows.extend(stat.largest.iter().map(inbox_row));
        text.push_str(&columns(&rows));
    }
    text.trim_end().to_owned()
}

fn log_text(log: &LogStat, text: &mut String) {
    let _ = writeln!(text, "log {}", log.log);
    if let Some(reason) = &log.unusable {
        let _ = writeln!(text, "  it cannot be used at all: {reason}");
        return;
    }
    let _ = writeln!(
        text,
        "  positions    {:#x} to {:#x}",
        log.first_lsn, log.end_lsn
    );
    let _ = writeln!(
        text,
        "  segments     {} in use ({} bytes, {} of them live), {} spare",
        log.segments, log.used_bytes, log.live_bytes, log.spares
    );
    let checkpoints = log.checkpoints.iter();
    let checkpoints: Vec<String> = checkpoints
        .map(|one| format!("{:#x} ({} bytes)", one.lsn, one.bytes))
        .collect();
    let checkpoints = match checkpoints.is_empty() {
        true => "none".to_owned(),
        false => checkpoints.join(", "),
    };
    let _ = writeln!(text, "  checkpoints  {checkpoints}");
    let _ = writeln!(
        text,
        "  a start      reads from {:#x}: {} frames, {} records",
        log.scanned_from, log.frames, log.records
    );
    let _ = writeln!(
        text,
        "  users        {}, with {} devices and {} send streams",
        log.users, log.devices, log.pairs
    );
    let _ = writeln!(
        text,
        "  entries      {}, {} not acknowledged by some device, {} set aside",
        log.entries, log.pending, log.gaps
    );
    if !log.damaged_shards.is_empty() {
        let shards: Vec<_> = log.damaged_shards.iter().map(u16::to_string).collect();
        let _ = writeln!(
            text,
            "  DAMAGED      shards {}, which the numbers leave out; see `iris log verify`",
            shards.join(", ")
        );
    }
}

fn inbox_row(inbox: &Inbox) -> Vec<String> {
    vec![
        inbox.user.clone(),
        inbox.shard.to_string(),
        inbox.entries.to_string(),
        inbox.pending.to_string(),
        inbox.bytes.to_string(),
        inbox.devices.to_string(),
    ]
}
