//! `iris status`: asks the switch of this machine how it is.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::output::{cells, columns};
use super::{DATA_DEFAULT, Failure, admin, output};
use crate::runtime::admin::{STATUS_PATH, Status};
use crate::runtime::report::{CoreReport, LogReport};
use crate::runtime::storage::Space;

#[derive(Debug, Args)]
#[command(long_about = "\
Ask the switch that serves a data directory whether it is ready, and print why not, and a short table. \
Ready means that everything is served as it should be. It asks over the socket DATA/admin.sock, which \
belongs to the switch's user: run it as that user, or as root.

The socket speaks HTTP for other programs: GET /healthz, /readyz, /metrics (Prometheus), /status (JSON).")]
#[command(after_long_help = "\
Examples:
  iris status
  iris status --data /var/lib/iris --json
  curl --unix-socket iris-data/admin.sock http://iris/metrics

Exit codes:
  0  ready
  1  not ready; the reasons are on standard output. Or no sensible answer: standard error says why
  2  wrong usage, or no switch runs on that directory")]
pub(super) struct StatusArgs {
    /// The data directory of the switch
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// Print everything as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let body = match admin::get(&args.data, STATUS_PATH)? {
        (200, body) => body,
        (code, _) => return Err(admin::no_sense(&args.data, &code)),
    };
    let status: Status =
        serde_json::from_str(&body).map_err(|error| admin::no_sense(&args.data, &error))?;
    let text = if args.json {
        body.trim_end().to_owned()
    } else {
        table(&status)
    };
    output::print(&text)?;
    if status.ready {
        Ok(())
    } else {
        Err(Failure::NotReady)
    }
}

/// For people.
fn table(status: &Status) -> String {
    let mut text = String::from(if status.ready {
        "ready\n"
    } else {
        "not ready\n"
    });
    for reason in &status.reasons {
        let _ = writeln!(text, "  {reason}");
    }
    for note in &status.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    let _ = writeln!(
        text,
        "\niris {}, process {}, on {}\n",
        status.version, status.pid, status.address
    );
    let mut cores = vec![cells([
        "core",
        "connections",
        "sessions",
        "commits",
        "entries sent",
    ])];
    cores.extend(status.cores.iter().map(core_row));
    text.push_str(&columns(&cores));
    let mut of_logs: Vec<&LogReport> = status.cores.iter().flat_map(|core| &core.logs).collect();
    of_logs.sort_by_key(|log| log.log);
    let mut logs = vec![cells([
        "log",
        "durable",
        "not yet",
        "segments",
        "used bytes",
        "space",
        "damaged shards",
    ])];
    logs.extend(of_logs.into_iter().map(log_row));
    text.push('\n');
    text.push_str(&columns(&logs));
    text.trim_end().to_owned()
}

fn core_row(core: &CoreReport) -> Vec<String> {
    vec![
        core.core.to_string(),
        core.connections.to_string(),
        core.sessions.to_string(),
        core.totals.commits.to_string(),
        core.totals.entries.to_string(),
    ]
}

fn log_row(log: &LogReport) -> Vec<String> {
    let space = match log.space {
        Space::Enough => "enough",
        Space::Low => "low",
        Space::Full => "full",
    };
    let damaged: Vec<String> = log.damaged_shards.iter().map(u16::to_string).collect();
    vec![
        log.log.to_string(),
        log.durable_lsn.to_string(),
        log.end_lsn.saturating_sub(log.durable_lsn).to_string(),
        log.segments.to_string(),
        log.used_bytes.to_string(),
        space.to_owned(),
        if damaged.is_empty() {
            "none".to_owned()
        } else {
            damaged.join(",")
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let log = LogReport {
            durable_lsn: 4_096,
            end_lsn: 5_096,
            segments: 1,
            used_bytes: 67_108_864,
            ..LogReport::new(0)
        };
        Status {
            version: "1.2.3".to_owned(),
            pid: 7,
            address: "127.0.0.1:7447".parse().unwrap(),
            admin: None,
            ready: true,
            reasons: Vec::new(),
            notes: Vec::new(),
            latencies: Vec::new(),
            cores: vec![CoreReport {
                connections: 1_000,
                logs: vec![log],
                ..CoreReport::default()
            }],
        }
    }

    #[test]
    fn the_table_stands_in_columns() {
        assert_eq!(
            table(&status()),
            "ready\n\
             \n\
             iris 1.2.3, process 7, on 127.0.0.1:7447\n\
             \n\
             core  connections  sessions  commits  entries sent\n\
             0     1000         0         0        0\n\
             \n\
             log  durable  not yet  segments  used bytes  space   damaged shards\n\
             0    4096     1000     1         67108864    enough  none"
        );
    }

    #[test]
    fn reasons_come_first() {
        let mut status = status();
        status.ready = false;
        status.reasons = vec!["one".to_owned(), "two".to_owned()];
        status.notes = vec!["three".to_owned()];
        status.cores[0].logs[0].damaged_shards = vec![3, 17];
        let text = table(&status);
        assert!(
            text.starts_with("not ready\n  one\n  two\n  note: three\n\n"),
            "{text}"
        );
        assert!(text.ends_with("3,17"), "{text}");
    }
}
