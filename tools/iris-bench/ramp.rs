//! The search for the highest rate that keeps a promise about its p99: doubled until it does not hold, then
//! halved in between. Which rate comes next is pure; each step is a run of its own.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::args::RunArgs;
use crate::local;
use crate::report::Outcome;
use crate::run;

/// Messages per second to begin with, when nothing else was asked for.
const FIRST: f64 = 1_000.0;
/// The search ends when what holds and what does not are so near to each other.
const NEAR: f64 = 1.05;
/// Steps at most.
const STEPS_MAX: usize = 30;
/// Below this rate the search gives up.
const LEAST: f64 = 0.5;

/// Where the search is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    holds: Option<f64>,
    fails: Option<f64>,
    first: f64,
}

impl Search {
    /// From this rate on.
    #[must_use]
    pub const fn new(first: f64) -> Self {
        Self {
            holds: None,
            fails: None,
            first,
        }
    }

    /// The rate to try next; none when the search is over.
    #[must_use]
    pub fn next(&self) -> Option<f64> {
        match (self.holds, self.fails) {
            (None, None) => Some(self.first),
            (Some(holds), None) => Some(holds * 2.0),
            (None, Some(fails)) => Some(fails / 2.0).filter(|&rate| rate >= LEAST),
            (Some(holds), Some(fails)) => (fails / holds > NEAR).then(|| holds.midpoint(fails)),
        }
    }

    /// What came of a rate.
    pub const fn tried(&mut self, rate: f64, holds: bool) {
        if holds {
            self.holds = Some(rate);
        } else {
            self.fails = Some(rate);
        }
    }
}

/// What was found.
#[derive(Debug)]
pub struct Ramp {
    p99_us: f64,
    /// The highest rate that held.
    pub highest: Option<f64>,
    steps: Vec<(f64, Outcome)>,
    is_good: bool,
}

/// Searches.
///
/// # Errors
/// A sentence for people, when a step has no result at all.
pub fn run(args: &RunArgs) -> Result<Ramp, String> {
    let p99_us = args.p99.as_secs_f64() * 1e6;
    let mut search = Search::new(args.rate.unwrap_or(FIRST));
    let mut ramp = Ramp {
        p99_us,
        highest: None,
        steps: Vec::new(),
        is_good: true,
    };
    while let Some(rate) = search.next() {
        if ramp.steps.len() >= STEPS_MAX {
            break;
        }
        let mut step = args.clone();
        step.rate = Some(rate);
        let outcome = run::run(&step)?;
        // What an overloaded switch could not answer in time is no breach of a promise.
        let is_wrong = outcome.drained && !outcome.is_good();
        let holds = holds(&outcome, p99_us);
        if !args.quiet {
            eprintln!("  {}", row(rate, &outcome, holds));
        }
        search.tried(rate, holds);
        ramp.is_good &= !is_wrong;
        ramp.steps.push((rate, outcome));
        if is_wrong {
            break;
        }
    }
    ramp.highest = search.holds;
    Ok(ramp)
}

fn holds(outcome: &Outcome, p99_us: f64) -> bool {
    let in_time = outcome.accept.micros(0.99) <= p99_us;
    outcome.is_good() && outcome.shortfall().is_none() && in_time
}

fn row(rate: f64, outcome: &Outcome, holds: bool) -> String {
    format!(
        "{rate:>9.0}/s  accept p50 {:>8.0} p99 {:>8.0} us  server {:.2} us CPU/message  {}",
        outcome.accept.micros(0.5),
        outcome.accept.micros(0.99),
        outcome.server_us_per_message().unwrap_or(0.0),
        match (holds, outcome.shortfall()) {
            (true, _) => "holds",
            (false, Some(shortfall)) => shortfall.reason(),
            (false, None) => "does not hold",
        }
    )
}

impl Ramp {
    /// A rate was found, and no promise was broken on the way.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.is_good && self.highest.is_some()
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = format!("{}\n\n", local::machine());
        for (rate, outcome) in &self.steps {
            let holds = holds(outcome, self.p99_us);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {}", row(*rate, outcome, holds));
        }
        if !self.is_good
            && let Some((_, outcome)) = self.steps.last()
        {
            out.push_str(&outcome.table());
        }
        let p99_ms = self.p99_us / 1e3;
        let _ = match self.highest {
            Some(rate) => writeln!(
                out,
                "\n  highest rate with p99 of accept within {p99_ms} ms: {rate:.0} messages/s"
            ),
            None => writeln!(out, "\n  no rate had its p99 of accept within {p99_ms} ms"),
        };
        out
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let steps = self.steps.iter().map(|(rate, outcome)| {
            let mut step = outcome.json();
            step["rate_per_s"] = json!(rate);
            step["holds"] = json!(holds(outcome, self.p99_us));
            step
        });
        json!({
            "ok": self.is_good(),
            "p99_us": self.p99_us,
            "highest_rate_per_s": self.highest,
            "steps": steps.collect::<Vec<_>>(),
            "machine": local::machine(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches where everything up to `most` holds: what was found, and in how many steps.
    fn found(first: f64, most: f64) -> (Option<f64>, usize) {
        let (mut search, mut steps) = (Search::new(first), 0);
        while let Some(rate) = search.next() {
            search.tried(rate, rate <= most);
            steps += 1;
        }
        (search.holds, steps)
    }

    /// R: E-7
    #[test]
    fn the_search_ends_within_a_twentieth_below_the_highest_rate_that_holds() {
        for most in [1.5, 999.0, 1_000.0, 70_123.0, 5e6] {
            let (highest, steps) = found(1_000.0, most);
            let highest = highest.unwrap();
            assert!(
                highest <= most && highest * NEAR >= most,
                "{most}: {highest}"
            );
            assert!(steps < STEPS_MAX, "{steps}");
        }
        assert_eq!(found(1_000.0, 0.0).0, None, "nothing holds");
    }
}
