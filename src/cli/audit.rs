//! `iris audit`: whether the audit log is as it was written.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{DATA_DEFAULT, Failure, output};
use crate::audit::verify::Verdict;
use crate::audit::{Chain, hex, unhex};
use crate::runtime::audit::{self, AuditError};

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Say whether every record is as it was written, and none is missing
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
#[command(long_about = "\
Read the audit log of a data directory (DATA/audit) from its first byte to its last, and say whether every \
record is as it was written. Each record has a hash over itself and the one before, so a record that was \
changed, removed, moved or added is found. Nothing is written, and a switch may run.

That the end is missing can only be found by who remembers it: DATA/audit/HEAD, which the switch keeps, and \
which whoever may write the records may write, too. So note the last line of this command elsewhere now and \
then, and give it back with --expect: then nothing up to there can have been written anew.")]
#[command(after_long_help = "\
Examples:
  iris audit verify --data /var/lib/iris
  iris audit verify --data /var/lib/iris --expect 1234:9c1e...
  jq -r 'select(.event == \"refused\")' /var/lib/iris/audit/*.jsonl

Exit codes:
  0  sound
  1  not sound; standard output says where
  2  wrong usage, or there is no audit log")]
struct VerifyArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// A record that was there, as this command printed it: its number and its hash
    #[arg(long, value_name = "N:HASH", value_parser = record)]
    expect: Option<Chain>,
    /// Print the verdict as one JSON object
    #[arg(long)]
    json: bool,
}

fn record(text: &str) -> Result<Chain, String> {
    let parts = text.split_once(':');
    let parsed = parts.and_then(|(last, hash)| {
        let (last, hash) = (last.parse().ok()?, unhex(hash)?);
        Some(Chain { last, hash })
    });
    parsed
        .ok_or_else(|| format!("`{text}` is no record; give its number, a colon and its 64 digits"))
}

pub(super) fn run(args: &AuditArgs) -> Result<(), Failure> {
    let AuditCommand::Verify(args) = &args.command;
    let verdict = match audit::verify(&args.data, args.expect) {
        Ok(verdict) => verdict,
        Err(error @ AuditError::Nothing { .. }) => return Err(Failure::Nothing(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    output::print(&if args.json {
        json(&verdict)
    } else {
        text(&verdict)
    })?;
    if verdict.is_sound() {
        Ok(())
    } else {
        Err(Failure::Damaged)
    }
}

fn last(verdict: &Verdict) -> Option<String> {
    let last = verdict.last?;
    Some(format!("{}:{}", last.last, hex(&last.hash)))
}

fn json(verdict: &Verdict) -> String {
    serde_json::json!({
        "sound": verdict.is_sound(),
        "records": verdict.records,
        "first": verdict.first,
        "last": last(verdict),
        "findings": verdict.findings,
        "more_findings": verdict.more,
        "notes": verdict.notes,
    })
    .to_string()
}

fn text(verdict: &Verdict) -> String {
    let mut lines = vec![if verdict.is_sound() {
        "sound".to_owned()
    } else {
        "NOT sound".to_owned()
    }];
    lines.extend(verdict.findings.iter().map(|line| format!("  {line}")));
    if verdict.more > 0 {
        lines.push(format!("  and {} more", verdict.more));
    }
    lines.extend(verdict.notes.iter().map(|line| format!("  note: {line}")));
    lines.push(format!("{} records are whole", verdict.records));
    if let Some(last) = last(verdict) {
        lines.push(format!("last: {last}"));
    }
    lines.join("\n")
}
