//! What a run says at its end: a table for people, JSON for programs.

use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::args::RunArgs;
use crate::local;
use crate::stats::{Counters, Latency};
use crate::verify::{VIOLATIONS_SHOWN, Violations};

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

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.measured_s.max(1e-9)
    }

    fn per_message(&self, cpu_us: Option<u64>) -> Option<f64> {
        (self.counters.delivered > 0)
            .then(|| Some(cpu_us? as f64 / self.counters.delivered as f64))?
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let args = &self.args;
        let mode = args
            .rate
            .map_or("saturation".to_owned(), |rate| format!("{rate} messages/s"));
        writeln!(
            out,
            "{mode}, {} connections, {} in flight, {} bytes, {:.1} s measured, {} thread(s), {}",
            args.connections,
            args.in_flight,
            args.size,
            self.measured_s,
            args.threads,
            self.address
        )?;
        writeln!(out, "{}", local::machine())?;
        writeln!(
            out,
            "\n  accepted   {:>12.0} messages/s",
            self.per_second(self.counters.accepted)
        )?;
        writeln!(
            out,
            "  delivered  {:>12.0} messages/s",
            self.per_second(self.counters.delivered)
        )?;
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
        let Counters {
            late,
            refused,
            lost,
            ..
        } = self.counters;
        writeln!(
            out,
            "  late sends {late}, refused and sent again {refused}, connections lost {lost}"
        )?;
        self.write_verdict(out)
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
        if self.is_good() {
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
        let first: Vec<String> = self
            .violations
            .first()
            .iter()
            .map(ToString::to_string)
            .collect();
        json!({
            "ok": self.is_good(),
            "delivered_per_s": self.per_second(self.counters.delivered),
            "accepted_per_s": self.per_second(self.counters.accepted),
            "accept_us": latency(&self.accept),
            "end_to_end_us": latency(&self.end_to_end),
            "server_cpu_us_per_message": self.per_message(self.usage.server_cpu_us),
            "server_resident_bytes": self.usage.server_resident_bytes,
            "client_cpu_us_per_message": self.per_message(self.usage.client_cpu_us),
            "late_sends": self.counters.late,
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
            "run": {
                "mode": if args.rate.is_some() { "rate" } else { "saturate" },
                "rate_per_s": args.rate,
                "connections": args.connections,
                "in_flight": args.in_flight,
                "size": args.size,
                "duration_s": args.duration,
                "warmup_s": args.warmup,
                "threads": args.threads,
                "cores": args.cores.as_ref().map(|cores| &cores.0),
                "seed": args.seed,
                "reconnect": args.reconnect,
                "addr": self.address.to_string(),
                "run_id": format!("{:08x}", self.run_id),
            },
            "version": env!("CARGO_PKG_VERSION"),
            "commit": local::commit(),
            "machine": local::machine(),
            "unix_time_s": local::unix_time_s(),
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
