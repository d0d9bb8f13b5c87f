//! How near the switch comes to what its machinery can do: the bare relay and the switch in turn, on the same
//! core, under the same generator on another one.
//!
//! ```text
//!   round 1:  relay: saturation, half load    switch: saturation, half load
//!   round 2:  switch: …                       relay: …                        and so on
//! ```
//! Each gets a fresh data directory each time. Two ratios are told: of the throughput, which is bounded by
//! the generator as soon as that is the slower one, and of the processor time of the serving process per
//! message, which is not. Half load is an open loop; its bursts are as long as what is in flight on each
//! connection at saturation, so both have the same shape.

use std::fmt::Write;
use std::path::Path;

use clap::Parser;
use serde_json::{Value, json};

use crate::args::{Cli, Command, Cores, LimitArgs, RunArgs};
use crate::child::{Kind, Served};
use crate::local;
use crate::report::Outcome;
use crate::run;

/// A rate at which half of all messages take longer than this is no half load: it is halved again.
const HALF_LOAD_P50_US: f64 = 20_000.0;
/// How often.
const HALVINGS_MAX: usize = 4;

/// What one of both did in one round.
#[derive(Debug)]
struct Turn {
    kind: Kind,
    saturated: Outcome,
    half: Outcome,
}

/// What was measured.
#[derive(Debug)]
pub struct Limit {
    args: LimitArgs,
    half_rate: f64,
    turns: Vec<Turn>,
}

/// Measures.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &LimitArgs) -> Result<Limit, String> {
    let half_rate = match args.half_rate {
        Some(rate) => rate,
        None => find_half_rate(args)?,
    };
    let mut limit = Limit {
        args: args.clone(),
        half_rate,
        turns: Vec::new(),
    };
    for round in 0..args.rounds {
        let order = match round % 2 {
            0 => [Kind::Relay, Kind::Switch],
            _ => [Kind::Switch, Kind::Relay],
        };
        for kind in order {
            let turn = take_turn(args, kind, half_rate)?;
            eprintln!("  round {}: {}", round + 1, turn.row());
            limit.turns.push(turn);
        }
    }
    Ok(limit)
}

/// Half of what the switch does at saturation, or half of that again, until it is a load that it carries.
fn find_half_rate(args: &LimitArgs) -> Result<f64, String> {
    let served = start(args, Kind::Switch)?;
    let saturated = measure(args, served.data(), None)?;
    let mut rate = saturated.accepted_per_s() / 2.0;
    for _ in 0..HALVINGS_MAX {
        let half = measure(args, served.data(), Some(rate))?;
        let carries = half.shortfall().is_none() && half.accept.micros(0.5) < HALF_LOAD_P50_US;
        if carries {
            break;
        }
        eprintln!(
            "  {rate:.0} messages/s in an open loop is more than the switch carries; half of it"
        );
        rate /= 2.0;
    }
    Ok(rate.round().max(1.0))
}

fn start(args: &LimitArgs, kind: Kind) -> Result<Served, String> {
    let cores = Cores(vec![args.server_core]);
    Served::start(kind, args.iris.as_deref(), &args.scratch, &cores)
        .map_err(|error| format!("the {}: {error}", kind.name()))
}

fn take_turn(args: &LimitArgs, kind: Kind, half_rate: f64) -> Result<Turn, String> {
    let served = start(args, kind)?;
    let saturated = measure(args, served.data(), None)?;
    let half = measure(args, served.data(), Some(half_rate))?;
    Ok(Turn {
        kind,
        saturated,
        half,
    })
}

fn measure(args: &LimitArgs, data: &Path, rate: Option<f64>) -> Result<Outcome, String> {
    let Command::Run(defaults) = Cli::parse_from(["iris-bench", "run", "--quiet"]).command else {
        unreachable!("run was asked for");
    };
    let burst = if rate.is_some() { args.in_flight } else { 1 };
    run::run(&RunArgs {
        connections: args.connections,
        in_flight: rate.is_none().then_some(args.in_flight),
        size: args.size,
        duration: args.duration,
        warmup: args.warmup,
        rate,
        burst,
        data: data.to_owned(),
        cores: Some(Cores(vec![args.client_core])),
        ..defaults
    })
}

impl Turn {
    fn is_good(&self) -> bool {
        self.saturated.is_good() && self.half.is_good() && self.half.shortfall().is_none()
    }

    fn row(&self) -> String {
        let us = |value: Option<f64>| value.unwrap_or(f64::NAN);
        format!(
            "{:<10} {:>9.0}/s, server {:>5.2} client {:>5.2} us CPU/message; half load: accept p50 {:>6.0} \
             p99 {:>7.0} us, server {:>5.2} us CPU/message{}",
            self.kind.name(),
            self.saturated.accepted_per_s(),
            us(self.saturated.server_us_per_message()),
            us(self.saturated.client_us_per_message()),
            self.half.accept.micros(0.5),
            self.half.accept.micros(0.99),
            us(self.half.server_us_per_message()),
            if self.is_good() { "" } else { "  FAILED" },
        )
    }
}

/// The switch beside the bare relay.
struct Shares {
    throughput: f64,
    cpu: f64,
    added_us: [f64; 2],
}

/// The medians over the rounds of one of both.
struct Medians {
    throughput: f64,
    server_us: f64,
    client_us: f64,
    half_server_us: f64,
    accept: [f64; 2],
    end_to_end: [f64; 2],
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => values[(count - 1) / 2].midpoint(values[count / 2]),
    }
}

impl Limit {
    /// Every promise was kept by the switch, and the relay did what it should.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.turns.iter().all(Turn::is_good)
    }

    fn medians(&self, kind: Kind) -> Medians {
        let of = |value: &dyn Fn(&Turn) -> f64| {
            let turns = self.turns.iter().filter(|turn| turn.kind == kind);
            median(turns.map(value).collect())
        };
        let us = |value: Option<f64>| value.unwrap_or(f64::NAN);
        Medians {
            throughput: of(&|turn| turn.saturated.accepted_per_s()),
            server_us: of(&|turn| us(turn.saturated.server_us_per_message())),
            client_us: of(&|turn| us(turn.saturated.client_us_per_message())),
            half_server_us: of(&|turn| us(turn.half.server_us_per_message())),
            accept: [0.5, 0.99].map(|part| of(&|turn| turn.half.accept.micros(part))),
            end_to_end: [0.5, 0.99].map(|part| of(&|turn| turn.half.end_to_end.micros(part))),
        }
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        crate::report::text(|out| self.write_table(out))
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let args = &self.args;
        writeln!(
            out,
            "{} connections x {} in flight, {} bytes, TLS, {} rounds of {} s; server on core {}, generator on {}",
            args.connections,
            args.in_flight,
            args.size,
            args.rounds,
            args.duration,
            args.server_core,
            args.client_core
        )?;
        writeln!(out, "{}\n", local::machine())?;
        for turn in &self.turns {
            writeln!(out, "  {}", turn.row())?;
        }
        self.write_medians(out)?;
        if !self.is_good() {
            writeln!(out, "\n  FAILED: at least one of the runs, see above")?;
        }
        Ok(())
    }

    fn write_medians(&self, out: &mut String) -> std::fmt::Result {
        let (relay, switch) = (self.medians(Kind::Relay), self.medians(Kind::Switch));
        let shares = self.shares();
        writeln!(out, "\n  medians{:>28}{:>14}", "bare relay", "switch")?;
        let row = |name: &str, of: fn(&Medians) -> f64| {
            format!("  {name:<23}{:>12.2}{:>14.2}\n", of(&relay), of(&switch))
        };
        out.push_str(&row("saturation, messages/s", |it| it.throughput));
        out.push_str(&row("server CPU us/message", |it| it.server_us));
        out.push_str(&row("client CPU us/message", |it| it.client_us));
        let (rate, burst) = (self.half_rate, self.args.in_flight);
        writeln!(
            out,
            "  half load: {rate:.0} messages/s in bursts of {burst}"
        )?;
        out.push_str(&row("accept p50 us", |it| it.accept[0]));
        out.push_str(&row("accept p99 us", |it| it.accept[1]));
        out.push_str(&row("end to end p50 us", |it| it.end_to_end[0]));
        out.push_str(&row("end to end p99 us", |it| it.end_to_end[1]));
        out.push_str(&row("server CPU us/message", |it| it.half_server_us));
        writeln!(
            out,
            "\n  within each round, the median of all rounds: the switch does {:.0} % of the bare relay's\n  \
             throughput (goal: 70 at least), by processor time of the server it could do {:.0} %; at half\n  \
             load it adds {:+.0} us to the p50 of accept (goal: below 30) and {:+.0} us to the p99",
            100.0 * shares.throughput,
            100.0 * shares.cpu,
            shares.added_us[0],
            shares.added_us[1],
        )
    }

    /// Each round by itself, for the machine may be another one in the next: the medians of the ratios.
    fn shares(&self) -> Shares {
        let of = |value: &dyn Fn(&Turn, &Turn) -> f64| {
            let rounds = self.turns.chunks_exact(2).map(|round| match round {
                [relay, switch] if relay.kind == Kind::Relay => value(relay, switch),
                [switch, relay] => value(relay, switch),
                _ => f64::NAN,
            });
            median(rounds.collect())
        };
        let us = |value: Option<f64>| value.unwrap_or(f64::NAN);
        let cpu = |turn: &Turn| us(turn.saturated.server_us_per_message());
        Shares {
            throughput: of(&|relay, switch| {
                switch.saturated.accepted_per_s() / relay.saturated.accepted_per_s()
            }),
            cpu: of(&|relay, switch| cpu(relay) / cpu(switch)),
            added_us: [0.5, 0.99].map(|part| {
                of(&|relay, switch| {
                    switch.half.accept.micros(part) - relay.half.accept.micros(part)
                })
            }),
        }
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let (relay, switch) = (self.medians(Kind::Relay), self.medians(Kind::Switch));
        let shares = self.shares();
        let medians = |it: &Medians| {
            json!({
                "accepted_per_s": it.throughput, "server_cpu_us_per_message": it.server_us,
                "client_cpu_us_per_message": it.client_us,
                "half_server_cpu_us_per_message": it.half_server_us,
                "half_accept_us": {"p50": it.accept[0], "p99": it.accept[1]},
                "half_end_to_end_us": {"p50": it.end_to_end[0], "p99": it.end_to_end[1]},
            })
        };
        let turns = self.turns.iter().map(|turn| {
            json!({
                "kind": turn.kind.name(), "saturated": turn.saturated.json(), "half": turn.half.json(),
            })
        });
        json!({
            "ok": self.is_good(),
            "throughput_share": shares.throughput,
            "cpu_share": shares.cpu,
            "added_accept_us": {"p50": shares.added_us[0], "p99": shares.added_us[1]},
            "half_rate_per_s": self.half_rate,
            "relay": medians(&relay), "switch": medians(&switch),
            "turns": turns.collect::<Vec<_>>(),
            "machine": local::machine(), "commit": local::commit(), "unix_time_s": local::unix_time_s(),
        })
    }
}
