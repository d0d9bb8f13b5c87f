//! What a run says at its end: a table for people, JSON for programs.

use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::args::RunArgs;
use crate::local;
use crate::run::CaughtUp;
use crate::stats::{Counters, Latency};
use crate::verify::{VIOLATIONS_SHOWN, Violations};

/// What was written.
pub fn text(write: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
    let mut out = String::new();
    let _ = write(&mut out); // writing to a String cannot fail
    out
}

/// The quantiles of every report.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// Processor time and memory over a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the switch, if it is local.
    pub server_cpu_us: Option<u64>,
    /// Resident memory of the switch at the end.
    pub server_resident_bytes: Option<u64>,
    /// Of the generator itself.
    pub client_cpu_us: Option<u64>,
}

impl Usage {
    /// So far.
    #[must_use]
    pub fn now(server: Option<u32>) -> Self {
        Self {
            server_cpu_us: server.and_then(local::cpu_micros),
            server_resident_bytes: server.and_then(local::resident_bytes),
            client_cpu_us: local::cpu_micros(std::process::id()),
        }
    }

    /// From `before` until now.
    #[must_use]
    pub fn since(before: &Self, server: Option<u32>) -> Self {
        let now = Self::now(server);
        let spent = |now: Option<u64>, before: Option<u64>| now?.checked_sub(before?);
        Self {
            server_cpu_us: spent(now.server_cpu_us, before.server_cpu_us),
            server_resident_bytes: now.server_resident_bytes,
            client_cpu_us: spent(now.client_cpu_us, before.client_cpu_us),
        }
    }
}

/// Part of the scheduled messages that may stay unsent.
const UNSENT_MAX: f64 = 0.01;
/// Part of a thread's time beyond which it counts as fully busy.
const BUSY: f64 = 0.95;

/// Why a rate that was asked for has no result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shortfall {
    /// Every connection had as much in flight as it may.
    SwitchTooSlow {
        /// Messages per second that left.
        sent_per_s: f64,
    },
    /// The connections had room, and the generator did not get to it.
    GeneratorTooSlow {
        /// Messages per second that left.
        sent_per_s: f64,
    },
}

impl Shortfall {
    /// The word for programs.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::SwitchTooSlow { .. } => "switch_too_slow",
            Self::GeneratorTooSlow { .. } => "generator_too_slow",
        }
    }

    fn sentence(self, rate: f64, slots: u32) -> String {
        let reason = self.reason();
        match self {
            Self::SwitchTooSlow { sent_per_s } => format!(
                "{reason}: {rate} messages/s were asked for, {sent_per_s:.0} could leave: every \
                 connection had {slots} in flight; give a lower --rate, more --connections or --in-flight"
            ),
            Self::GeneratorTooSlow { sent_per_s } => format!(
                "{reason}: {rate} messages/s were asked for, {sent_per_s:.0} left: this program was \
                 too slow; give a lower --rate, more --threads, or --cores that nothing else uses"
            ),
        }
    }
}

/// Everything that a run found.
#[derive(Debug)]
pub struct Outcome {
    /// What was asked for.
    pub args: RunArgs,
    /// Where the switch was.
    pub address: SocketAddr,
    /// Part of the users' names.
    pub run_id: u32,
    /// Seconds until all were logged in.
    pub connect_s: f64,
    /// Seconds measured.
    pub measured_s: f64,
    /// Seconds from then until everything had arrived.
    pub drain_s: f64,
    /// Whether everything had arrived.
    pub drained: bool,
    /// How those who were away were served, when they were let in.
    pub caught_up: Option<CaughtUp>,
    /// Why the run ended early.
    pub failure: Option<String>,
    /// Entries that were checked, also those outside the measured time.
    pub verified: u64,
    /// Within the measured time.
    pub counters: Counters,
    /// Intended time to Accepted.
    pub accept: Latency,
    /// Intended time to the recipient's entry.
    pub end_to_end: Latency,
    /// What it cost.
    pub usage: Usage,
    /// What was wrong.
    pub violations: Violations,
}

impl Outcome {
    /// Every promise was kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && self.drained && self.violations.count() == 0
    }

    /// Why a rate that was asked for was not generated.
    #[must_use]
    pub fn shortfall(&self) -> Option<Shortfall> {
        let rate = self.args.rate?;
        let Counters {
            unsent, late, held, ..
        } = self.counters;
        let scheduled = rate * self.args.duration;
        if unsent as f64 <= scheduled * UNSENT_MAX {
            return None;
        }
        let sent_per_s = (scheduled - unsent as f64).max(0.0) / self.args.duration;
        Some(match held * 2 >= late {
            true => Shortfall::SwitchTooSlow { sent_per_s },
            false => Shortfall::GeneratorTooSlow { sent_per_s },
        })
    }

    /// What part of its threads' time the generator worked.
    fn busy(&self) -> Option<f64> {
        let threads = self.args.threads.min(self.args.connections);
        let whole_us = self.measured_s * 1e6 * f64::from(threads);
        Some(self.usage.client_cpu_us? as f64 / whole_us.max(1.0))
    }

    /// Messages accepted in a second.
    #[must_use]
    pub fn accepted_per_s(&self) -> f64 {
        self.per_second(self.counters.accepted)
    }

    /// Processor time of the switch for each message, in microseconds.
    #[must_use]
    pub fn server_us_per_message(&self) -> Option<f64> {
        self.per_message(self.usage.server_cpu_us)
    }

    /// Processor time of the generator for each message, in microseconds.
    #[must_use]
    pub fn client_us_per_message(&self) -> Option<f64> {
        self.per_message(self.usage.client_cpu_us)
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.measured_s.max(1e-9)
    }

    fn per_message(&self, cpu_us: Option<u64>) -> Option<f64> {
        // Those of offline are delivered when the measured time is over.
        let messages = match self.caught_up {
            Some(_) => self.counters.accepted,
            None => self.counters.delivered,
        };
        (messages > 0).then(|| Some(cpu_us? as f64 / messages as f64))?
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        crate::report::text(|out| self.write_table(out))
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let args = &self.args;
        let mode = args
            .rate
            .map_or("saturation".to_owned(), |rate| format!("{rate} messages/s"));
        writeln!(
            out,
            "{}, {mode}, {} connections, {} in flight, {} bytes, {:.1} s measured, {} thread(s), {}",
            args.pattern.name(),
            args.connections,
            args.slots(),
            args.size,
            self.measured_s,
            args.threads,
            self.address
        )?;
        writeln!(out, "{}", local::machine())?;
        if self.shortfall().is_none() {
            self.write_numbers(out)?;
        }
        self.write_costs(out)?;
        self.write_verdict(out)
    }

    fn write_numbers(&self, out: &mut String) -> std::fmt::Result {
        let accepted = self.per_second(self.counters.accepted);
        let delivered = self.per_second(self.counters.delivered);
        writeln!(out, "\n  accepted   {accepted:>12.0} messages/s")?;
        writeln!(out, "  delivered  {delivered:>12.0} messages/s")?;
        if let Some(caught_up) = &self.caught_up {
            let CaughtUp { messages, took_s } = *caught_up;
            let rate = messages as f64 / took_s.max(1e-9);
            writeln!(
                out,
                "  drained    {rate:>12.0} messages/s: {messages} in {took_s:.2} s, logins included\n  \
                 (the end to end below is from the sending on: the absence is in it)"
            )?;
        }
        writeln!(
            out,
            "\n  {:<12}{:>10}{:>10}{:>10}{:>10}{:>10}   microseconds",
            "", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, latency) in [("accept", &self.accept), ("end to end", &self.end_to_end)] {
            write!(out, "  {name:<12}")?;
            for (_, quantile) in QUANTILES {
                write!(out, "{:>10.0}", latency.micros(quantile))?;
            }
            writeln!(out, "{:>10.0}", latency.max_micros())?;
        }
        Ok(())
    }

    fn write_costs(&self, out: &mut String) -> std::fmt::Result {
        let number = |value: Option<f64>, unit: &str| {
            value.map_or("not local".to_owned(), |value| format!("{value:.2} {unit}"))
        };
        let usage = &self.usage;
        let resident = usage
            .server_resident_bytes
            .map(|bytes| bytes as f64 / (1 << 20) as f64);
        writeln!(
            out,
            "\n  server {} CPU/message, {} resident; client {} CPU/message",
            number(self.per_message(usage.server_cpu_us), "us"),
            number(resident, "MiB"),
            number(self.per_message(usage.client_cpu_us), "us"),
        )?;
        let busy = self.busy().unwrap_or(0.0);
        let Counters {
            late,
            held,
            unsent,
            refused,
            lost,
            ..
        } = self.counters;
        writeln!(
            out,
            "  generator {:.0} % busy; late sends {late} ({held} of them for want of room), unsent {unsent}",
            busy * 100.0
        )?;
        if busy > BUSY && self.args.rate.is_none() {
            writeln!(
                out,
                "  the generator was fully busy: the switch may be able to do more (--threads, --cores)"
            )?;
        }
        writeln!(
            out,
            "  refused and sent again {refused}, connections lost {lost}"
        )
    }

    fn write_verdict(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        if let Some(failure) = &self.failure {
            writeln!(out, "  FAILED: {failure}")?;
        }
        if !self.drained {
            writeln!(
                out,
                "  FAILED: not everything was answered and delivered at the end"
            )?;
        }
        let count = self.violations.count();
        if count > 0 {
            writeln!(
                out,
                "  FAILED: {count} violations; the first {VIOLATIONS_SHOWN} at most:"
            )?;
            for violation in self.violations.first() {
                writeln!(out, "    {violation}")?;
            }
        }
        if let (Some(shortfall), Some(rate)) = (self.shortfall(), self.args.rate) {
            let sentence = shortfall.sentence(rate, self.args.slots());
            writeln!(out, "  REFUSED, no result: {sentence}")?;
        }
        if self.is_good() && !self.args.verify {
            writeln!(out, "  NOT VERIFIED, as was asked for")?;
        } else if self.is_good() {
            writeln!(
                out,
                "  verified: {} messages, each delivered exactly once and in order",
                self.verified
            )?;
        }
        Ok(())
    }

    /// The same for programs. Latencies in microseconds.
    #[must_use]
    pub fn json(&self) -> Value {
        let args = &self.args;
        let refusal = self.shortfall().map(Shortfall::reason);
        let reported = refusal.is_none();
        let first: Vec<String> = self
            .violations
            .first()
            .iter()
            .map(ToString::to_string)
            .collect();
        json!({
            "ok": self.is_good() && refusal.is_none(),
            "is_verified": args.verify,
            "refusal": refusal,
            "delivered_per_s": reported.then(|| self.per_second(self.counters.delivered)),
            "accepted_per_s": reported.then(|| self.per_second(self.counters.accepted)),
            "accept_us": reported.then(|| latency(&self.accept)),
            "end_to_end_us": reported.then(|| latency(&self.end_to_end)),
            "drained_messages": self.caught_up.map(|it| it.messages),
            "drained_s": self.caught_up.map(|it| it.took_s),
            "server_cpu_us_per_message": self.per_message(self.usage.server_cpu_us),
            "server_resident_bytes": self.usage.server_resident_bytes,
            "client_cpu_us_per_message": self.per_message(self.usage.client_cpu_us),
            "client_busy": self.busy(),
            "late_sends": self.counters.late,
            "held_sends": self.counters.held,
            "unsent": self.counters.unsent,
            "refused": self.counters.refused,
            "connections_lost": self.counters.lost,
            "accepted": self.counters.accepted,
            "delivered": self.counters.delivered,
            "verified": self.verified,
            "violations": self.violations.count(),
            "first_violations": first,
            "drained": self.drained,
            "failure": self.failure,
            "connect_s": self.connect_s,
            "measured_s": self.measured_s,
            "drain_s": self.drain_s,
            "run": self.settings(),
            "version": env!("CARGO_PKG_VERSION"),
            "commit": local::commit(),
            "machine": local::machine(),
            "unix_time_s": local::unix_time_s(),
        })
    }

    /// What was asked for, with the defaults.
    fn settings(&self) -> Value {
        let args = &self.args;
        json!({
            "scenario": args.pattern.name(),
            "targets": args.targets,
            "burst": args.burst,
            "mode": if args.rate.is_some() { "rate" } else { "saturate" },
            "rate_per_s": args.rate,
            "connections": args.connections,
            "in_flight": args.slots(),
            "size": args.size,
            "duration_s": args.duration,
            "warmup_s": args.warmup,
            "threads": args.threads,
            "cores": args.cores.as_ref().map(|cores| &cores.0),
            "seed": args.seed,
            "reconnect": args.reconnect,
            "addr": self.address.to_string(),
            "run_id": format!("{:08x}", self.run_id),
        })
    }
}

fn latency(latency: &Latency) -> Value {
    let mut object = serde_json::Map::new();
    for (name, quantile) in QUANTILES {
        object.insert(name.to_owned(), json!(latency.micros(quantile)));
    }
    object.insert("max".to_owned(), json!(latency.max_micros()));
    object.insert("count".to_owned(), json!(latency.count()));
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::verify::Violation;
    use clap::Parser;

    fn outcome() -> Outcome {
        let Command::Run(args) = Cli::parse_from(["iris-bench", "run"]).command else {
            unreachable!("run was asked for");
        };
        let mut accept = Latency::new();
        (1..=1000).for_each(|i| accept.record(i * 1000));
        Outcome {
            args,
            address: ([127, 0, 0, 1], 7447).into(),
            run_id: 0xabc,
            connect_s: 0.1,
            measured_s: 2.0,
            drain_s: 0.3,
            drained: true,
            caught_up: None,
            failure: None,
            verified: 1200,
            counters: Counters {
                accepted: 1000,
                delivered: 500,
                ..Counters::default()
            },
            end_to_end: accept.clone(),
            accept,
            usage: Usage {
                server_cpu_us: Some(2500),
                ..Usage::default()
            },
            violations: Violations::default(),
        }
    }

    #[test]
    fn the_json_has_rates_percentiles_and_costs() {
        let json = outcome().json();
        assert_eq!(json["ok"], true);
        assert_eq!(json["accepted_per_s"], 500.0);
        assert_eq!(json["delivered_per_s"], 250.0);
        assert_eq!(json["server_cpu_us_per_message"], 5.0);
        assert_eq!(json["client_cpu_us_per_message"], Value::Null);
        let p99 = json["accept_us"]["p99"].as_f64().unwrap();
        assert!((p99 - 990.0).abs() < 1.5, "{p99}");
        assert_eq!(json["run"]["run_id"], "00000abc");
    }

    /// R: E-7
    #[test]
    fn a_rate_that_was_not_generated_is_not_reported_and_the_reason_is_typed() {
        let mut outcome = outcome();
        outcome.args.rate = Some(1_000.0); // for ten seconds
        outcome.counters.unsent = 100;
        assert_eq!(outcome.shortfall(), None);
        (outcome.counters.unsent, outcome.counters.late) = (5_000, 4_000);
        assert_eq!(outcome.json()["refusal"], "generator_too_slow");
        outcome.counters.held = 3_000;
        assert_eq!(outcome.json()["refusal"], "switch_too_slow");
        assert_eq!(outcome.json()["accepted_per_s"], Value::Null);
        assert_eq!(outcome.json()["ok"], false);
        let table = outcome.table();
        assert!(
            table.contains("REFUSED, no result: switch_too_slow"),
            "{table}"
        );
        assert!(table.contains("500 could leave"), "{table}");
        assert!(!table.contains("p99"), "{table}");
    }

    #[test]
    fn a_run_that_was_not_to_be_verified_does_not_say_that_it_was() {
        let mut outcome = outcome();
        outcome.args.verify = false;
        assert!(outcome.table().contains("NOT VERIFIED"));
        assert_eq!(outcome.json()["is_verified"], false);
    }

    #[test]
    fn a_violation_a_failure_or_a_missing_message_is_no_success() {
        assert!(outcome().is_good());
        assert!(outcome().table().contains("verified: 1200 messages"));
        let mut wrong = outcome();
        wrong.violations.add(Violation::Seq {
            to: 1,
            seq: 2,
            expected: 3,
        });
        let mut failed = outcome();
        failed.failure = Some("lost".to_owned());
        let mut open = outcome();
        open.drained = false;
        for bad in [wrong, failed, open] {
            assert!(!bad.is_good());
            assert_eq!(bad.json()["ok"], false);
            assert!(bad.table().contains("FAILED"), "{}", bad.table());
            assert!(!bad.table().contains("verified"));
        }
    }
}
