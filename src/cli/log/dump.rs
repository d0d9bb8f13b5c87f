//! `iris log dump`.

use std::fmt::Write as _;

use clap::Args;

use super::super::Failure;
use super::super::output::Lines;
use super::{WhichArgs, position, refused, view_running};
use crate::runtime::offline::dump::{DumpError, Line, Request, dump, dump_checkpoint};

#[derive(Debug, Args)]
#[command(long_about = "\
Print what lies in the logs of a data directory, in order: segments, frames, records and commands, one \
line for each; or, with --checkpoint, what a checkpoint holds. It judges nothing: what is no frame is a \
line that says so. Nothing is written. With --running a switch may run meanwhile; what it is writing may \
then show as no frame.")]
#[command(after_long_help = "\
Examples:
  iris log dump --limit 100
  iris log dump --log 0 --from-lsn 0x201000 --json
  iris log dump --user bob --bodies        what concerns bob, with the bodies in hexadecimal
  iris log dump --checkpoint --user bob    bob's devices and inbox in the newest checkpoint

The JSON of each line is described in docs/LOG_FORMAT.md.

Exit codes:
  0  done, also when the reader of the output went away
  1  a file cannot be read; standard error says why
  2  wrong usage, no data directory, or a switch runs on it")]
pub(super) struct DumpArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Print nothing that begins before this position
    #[arg(long, value_name = "LSN", default_value = "0", value_parser = position)]
    from_lsn: u64,
    /// Print so many lines at most
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print only commands that concern this user, as recipient, sender or owner of a device
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Print bodies in hexadecimal, not just their length and CRC
    #[arg(long)]
    bodies: bool,
    /// Print a checkpoint: the newest, or that of a position
    #[arg(
        long,
        value_name = "LSN",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with_all = ["from_lsn", "bodies"],
        value_parser = position,
    )]
    checkpoint: Option<Option<u64>>,
    /// Look although a switch runs on the directory
    #[arg(long)]
    running: bool,
    /// Print one JSON object on each line
    #[arg(long)]
    json: bool,
}

/// Why no more lines are wanted.
enum Enough {
    Limit,
    Failure(Failure),
}

pub(super) fn run(args: &DumpArgs) -> Result<(), Failure> {
    let (view, _) = view_running(&args.which, args.running)?;
    let request = Request {
        log: args.which.log,
        from_lsn: args.from_lsn,
        user: args.user.clone(),
        bodies: args.bodies,
    };
    let mut lines = Lines::new();
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut take = |line: &Line<'_>| {
        let text = match args.json {
            true => serde_json::to_string(line).map_err(|error| Enough::Failure(error.into()))?,
            false => text(line),
        };
        left = left.checked_sub(1).ok_or(Enough::Limit)?;
        lines.line(&text).map_err(Enough::Failure)
    };
    let dumped = match args.checkpoint {
        Some(lsn) => dump_checkpoint(&view, &request, lsn, &mut take),
        None => dump(&view, &request, &mut take),
    };
    let result = match dumped {
        Ok(()) | Err(DumpError::Ended(Enough::Limit)) => Ok(()),
        Err(DumpError::Ended(Enough::Failure(failure))) => Err(failure),
        Err(DumpError::Offline(error)) => Err(refused(error)),
        Err(error) => Err(Failure::Told(error.to_string())),
    };
    lines.finish().and(result)
}

/// For people: the depth shows what belongs to what.
fn text(line: &Line<'_>) -> String {
    match line {
        Line::Segment {
            lsn,
            log,
            incarnation,
            salt,
            prev_crc,
            ..
        } => format!(
            "segment {lsn:#x} log {log}, opened by start {incarnation}, salt {salt}, after {prev_crc}"
        ),
        Line::Frame {
            lsn,
            bytes,
            kind,
            records,
            synced_lsn,
            crc,
            ..
        } => format!(
            "frame {lsn:#x} {kind}, {bytes} bytes, {records} records, durable to {synced_lsn:#x}, \
             crc {crc}"
        ),
        Line::Record { .. } => record_text(line),
        Line::Head { shard, index } => format!("    head of shard {shard}: {index}"),
        Line::Bad { lsn, to, fault } => format!("BAD {lsn:#x} to {to:#x}: {fault}"),
        Line::Checkpoint {
            lsn,
            log,
            incarnation,
            sections,
            bytes,
            prev_crc,
            ..
        } => format!(
            "checkpoint {lsn:#x} log {log}, written by start {incarnation}, {bytes} bytes, \
             {sections} shards, after {prev_crc}"
        ),
        Line::Section {
            shard,
            applied,
            bytes,
            crc,
            users,
            entries,
            pairs,
        } => format!(
            "  shard {shard} up to entry {applied}: {users} users, {entries} entries, {pairs} send \
             streams, {bytes} bytes, crc {crc}"
        ),
        Line::User {
            user, oldest, head, ..
        } => format!("    user {user}: entries {oldest} to {head}"),
        Line::Device { device, cursor } => format!("      device {device} has up to {cursor}"),
        Line::InboxEntry {
            seq,
            lsn,
            bytes,
            time_ms,
        } => match lsn {
            Some(lsn) => {
                format!("      entry {seq} at {lsn:#x}, about {bytes} bytes, ms {time_ms}")
            }
            None => format!("      entry {seq} was set aside, ms {time_ms}"),
        },
        command => command_text(command),
    }
}

fn record_text(line: &Line<'_>) -> String {
    let Line::Record {
        lsn,
        kind,
        shard,
        index,
        a,
        b,
        bytes,
        ..
    } = line
    else {
        return String::new();
    };
    let shard = shard.map_or_else(
        || "of no shard".to_owned(),
        |shard| format!("shard {shard}"),
    );
    let more = match *kind {
        "entry" => format!("{shard}, index {index}, ms {a}, {b} items"),
        "reloc" => format!("{b} items"),
        _ => format!("{shard}, index {index}, a {a}, b {b}"),
    };
    format!("  {kind} {lsn:#x} {more}, {bytes} bytes")
}

fn command_text(line: &Line<'_>) -> String {
    match line {
        Line::Append {
            lsn,
            to,
            seq,
            from,
            device,
            epoch,
            n,
            time_ms,
            id,
            body_bytes,
            body_crc,
            body_hex,
        } => {
            let mut text = format!(
                "    append {lsn:#x} {to} #{seq} from {from} {device}, epoch {epoch} n {n}, ms {time_ms}, \
                 id {id}, {body_bytes} bytes, crc {body_crc}"
            );
            if let Some(body) = body_hex {
                let _ = write!(text, ", body {body}");
            }
            text
        }
        Line::Register { lsn, user, device } => format!("    register {lsn:#x} {user} {device}"),
        Line::Cursor {
            lsn,
            user,
            device,
            seq,
        } => format!("    cursor {lsn:#x} {user} {device} has up to {seq}"),
        Line::Trim { lsn, user, oldest } => {
            format!("    trim {lsn:#x} {user} begins at {oldest}")
        }
        Line::Unknown { lsn } => format!("    UNKNOWN {lsn:#x}: no command"),
        _ => String::new(),
    }
}
