//! `iris trace`: every step of a user's messages, as they happen.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use iris_proto::id::UserId;
use serde::Serialize;

use super::remote::{block_on, printable, user};
use super::revoke::written;
use super::{DATA_DEFAULT, Failure, admin, output};
use crate::runtime::admin::{TRACE_NEXT_PATH, TRACE_PATH, TraceBegin, TraceNext, Traced};
use crate::runtime::trace::{Step, WATCH_MAX, What};

/// Between two questions.
const EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(long_about = "\
Show every step of the messages that a user sends or gets, as they happen, for a while; the switch that \
serves a data directory is told to note them, and notes nothing before and after. A trace has the name \
of its message: the id that `iris send --json` and `iris recv --json` print, which goes from the sender to \
every recipient. Times are counted from when the message's frame was read.

  received      its frame was read
  routed        it is on its way to the recipient's core
  proposed      the recipient's shard has it, and it waits for the log
  durable       it is on disk
  applied       it is in the inbox
  accepted      Accepted went to the sender's socket
  refused       it was refused, and the sender is told
  pushed        it went to the socket of a device
  acknowledged  a device has acknowledged it

At most 8 users are traced at a time, and 2,000 steps a second on each core; what is beyond is counted. \
Of a message that lay in the inbox before, nothing is shown but what the switch still has in memory.")]
#[command(after_long_help = "\
Examples:
  iris trace --user alice --for 60s
  iris trace --user alice --for 5m --json | jq 'select(.what == \"durable\") | .since_us'

Output, one line for each step:
  2026-11-24T16:20:01.503127Z 0193b2c4-… alice → bob 7  durable      +312 µs  core 1  seq 19
  with --json  {\"trace\":\"0193b2c4-…\",\"what\":\"durable\",\"at_us\":…,\"since_us\":312,…}

Exit codes:
  0  the time is over
  1  failed; standard error says why
  2  wrong usage, or no switch runs on that directory")]
pub(super) struct TraceArgs {
    /// Whose messages
    #[arg(long, value_name = "USER", value_parser = user)]
    user: UserId,
    /// For how long, such as 30s or 5m; ten minutes at most
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "60s")]
    time: Duration,
    /// The data directory of the switch
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// Print each step as one JSON object
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    seconds
        .map(Duration::from_secs)
        .filter(|time| !time.is_zero() && *time <= WATCH_MAX)
        .ok_or_else(|| "give a time from 1s to 10m, as 30s or 5m".to_owned())
}

pub(super) fn run(args: &TraceArgs) -> Result<(), Failure> {
    let begin = TraceBegin {
        user: args.user.as_str().to_owned(),
        for_ms: u64::try_from(args.time.as_millis()).unwrap_or(u64::MAX),
    };
    let watch = ask(args, TRACE_PATH, &begin)?.watch;
    loop {
        block_on(async {
            tokio::time::sleep(EVERY).await;
            Ok(())
        })?;
        let traced = ask(args, TRACE_NEXT_PATH, &TraceNext { watch })?;
        for step in &traced.steps {
            output::print(&match args.json {
                true => serde_json::to_string(step)?,
                false => sentence(step),
            })?;
        }
        if traced.dropped > 0 {
            let dropped = traced.dropped;
            output::complain(&format!("{dropped} steps were too many and are not shown"));
        }
        if traced.over {
            return Ok(());
        }
    }
}

fn ask(args: &TraceArgs, path: &str, question: &impl Serialize) -> Result<Traced, Failure> {
    match admin::post(&args.data, path, &serde_json::to_string(question)?)? {
        (200, body) => {
            serde_json::from_str(&body).map_err(|error| admin::no_sense(&args.data, &error))
        }
        (_, why) => Err(Failure::told(format!("not traced: {}", why.trim_end()))),
    }
}

/// For people.
fn sentence(step: &Step) -> String {
    let second = written(step.at_us / 1_000_000);
    let second = second.trim_end_matches('Z');
    let (from, to) = (printable(&step.from), printable(&step.to));
    let since = step
        .since_us
        .map_or_else(|| "?".to_owned(), |us| format!("+{us} µs"));
    let mut line = format!(
        "{second}.{:06}Z {} {from} → {to} {}  {:12} {since:>12}  core {}",
        step.at_us % 1_000_000,
        step.trace,
        step.n,
        word(step.what),
        step.core,
    );
    if let Some(seq) = step.seq {
        line.push_str(&format!("  seq {seq}"));
    }
    if let Some(device) = &step.device {
        line.push_str(&format!("  device {}", printable(device)));
    }
    line
}

fn word(what: What) -> &'static str {
    match what {
        What::Received => "received",
        What::Routed => "routed",
        What::Proposed => "proposed",
        What::Durable => "durable",
        What::Applied => "applied",
        What::Accepted => "accepted",
        What::Refused => "refused",
        What::Pushed => "pushed",
        What::Acknowledged => "acknowledged",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_with_its_time_and_its_message() {
        let step = Step {
            trace: "11111111-1111-1111-1111-111111111111".to_owned(),
            what: What::Pushed,
            at_us: 1_500_000,
            clock_ns: 7,
            since_us: Some(312),
            core: 1,
            from: "alice".to_owned(),
            to: "bob".to_owned(),
            n: 7,
            seq: Some(19),
            device: Some("phone".to_owned()),
        };
        assert_eq!(
            sentence(&step),
            "1970-01-01T00:00:01.500000Z 11111111-1111-1111-1111-111111111111 alice → bob 7  pushed      \
             \u{20}     +312 µs  core 1  seq 19  device phone"
        );
    }

    #[test]
    fn a_trace_lasts_ten_minutes_at_most() {
        assert_eq!(time("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(time("10m"), Ok(WATCH_MAX));
        for bad in ["", "0s", "11m", "601s", "-1s", "1h"] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }
}
