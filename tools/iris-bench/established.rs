//! Sessions that are there all the time and exchange messages at a fixed rate, while something is done to
//! the switch beside them: how long their messages take in each phase, and that none was lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::args::{PlaceArgs, RunArgs};
use crate::identity::Identity;
use crate::pattern::Pattern;
use crate::run::{self, LOOK, Team, instant, pause};
use crate::stats::{LATE_NS, Latency};
use crate::verify::{Violations, reconcile};

/// Seconds of load before the first phase.
const WARMUP: Duration = Duration::from_secs(1);
/// Seconds that the end may take.
const DRAIN_S: f64 = 20.0;

/// What one phase measured.
#[derive(Debug)]
pub struct Phase {
    /// From the intended time of sending until it was accepted.
    pub accept: Latency,
    /// Until the recipient had it.
    pub end_to_end: Latency,
    /// Messages that the generator itself sent over a millisecond late.
    pub late: u64,
}

impl Phase {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            accept: Latency::new(),
            end_to_end: Latency::new(),
            late: 0,
        }
    }

    /// A row for people: p50, p99, p99.9 until accepted and end to end, in microseconds.
    #[must_use]
    pub fn row(&self, name: &str) -> String {
        let mut row = format!("  {name:<34}");
        for latency in [&self.accept, &self.end_to_end] {
            for quantile in [0.5, 0.99, 0.999] {
                row.push_str(&format!("{:>9.0}", latency.micros(quantile)));
            }
            row.push_str("  ");
        }
        format!("{row}{:>8}{:>7}\n", self.accept.count(), self.late)
    }

    /// The head of such rows.
    #[must_use]
    pub fn head() -> String {
        let late_ms = LATE_NS / 1_000_000;
        format!(
            "  {:<34}{:>9}{:>9}{:>9}  {:>9}{:>9}{:>9}  {:>8}{:>7}\n",
            "microseconds",
            "acc p50",
            "p99",
            "p99.9",
            "e2e p50",
            "p99",
            "p99.9",
            "messages",
            format!(">{late_ms}ms")
        )
    }

    /// How many times as long the slowest of a hundred takes as in the other phase.
    #[must_use]
    pub fn ratio(&self, undisturbed: &Self) -> f64 {
        self.end_to_end.micros(0.99) / undisturbed.end_to_end.micros(0.99).max(1.0)
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let quantiles = |latency: &Latency| {
            json!({
                "p50": latency.micros(0.5), "p99": latency.micros(0.99),
                "p99.9": latency.micros(0.999), "max": latency.max_micros(),
            })
        };
        json!({
            "accept_us": quantiles(&self.accept), "end_to_end_us": quantiles(&self.end_to_end),
            "messages": self.accept.count(), "late": self.late,
        })
    }
}

/// See the module's text.
pub struct Established {
    team: Team,
    args: RunArgs,
    phases: Vec<Phase>,
}

impl Established {
    /// Logs them in and begins; phase 0 is the warm-up.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn start(place: &PlaceArgs, identity: &Arc<Identity>) -> Result<Self, String> {
        let args = place.as_run();
        let address = place.address()?;
        let mut established = Self {
            team: Team::start(&args, address, identity)?,
            args,
            phases: vec![Phase::new()],
        };
        if let Err(text) = established.team.connect(&established.args) {
            let _ = established.team.end(); // that one says why
            return Err(text);
        }
        let shared = Arc::clone(&established.team.shared);
        let from = shared.now_ns() + LOOK.as_nanos() as u64;
        shared.measure_from.store(from, Ordering::Relaxed);
        shared.measure_until.store(u64::MAX - 1, Ordering::Relaxed);
        shared.load_from.store(from, Ordering::Release);
        established.watch(WARMUP)?;
        Ok(established)
    }

    /// A further phase begins; its number.
    pub fn next_phase(&mut self) -> usize {
        self.phases.push(Phase::new());
        let number = self.phases.len() - 1;
        self.team
            .shared
            .phase
            .store(number as u32, Ordering::Relaxed);
        number
    }

    /// Gathers what was measured, for so long.
    ///
    /// # Errors
    /// A session was lost, or its thread has failed.
    pub fn watch(&mut self, time: Duration) -> Result<(), String> {
        let until = instant() + time;
        loop {
            self.gather();
            if self.team.has_failed() {
                let text = self.team.errors.recv_timeout(LOOK);
                return Err(text.unwrap_or_else(|_| "an established session failed".to_owned()));
            }
            if instant() >= until {
                return Ok(());
            }
            pause(LOOK);
        }
    }

    fn gather(&mut self) {
        while let Ok(snapshot) = self.team.snapshots.try_recv() {
            self.keep(&snapshot);
        }
    }

    fn keep(&mut self, snapshot: &crate::stats::Snapshot) {
        let Some(phase) = self.phases.get_mut(snapshot.phase as usize) else {
            return;
        };
        phase.accept.add(&snapshot.accept);
        phase.end_to_end.add(&snapshot.end_to_end);
        phase.late += snapshot.late;
    }

    /// Stops the load, waits until everything is answered and delivered, and verifies it.
    ///
    /// # Errors
    /// What was not as it should be.
    pub fn end(mut self) -> Result<Vec<Phase>, String> {
        self.next_phase();
        self.team.shared.stop.store(true, Ordering::Relaxed);
        self.watch(Duration::from_millis(100))?; // what was on its way out is counted as sent
        let drained = self.team.drain(&self.args).is_some();
        let ended = self.team.end()?;
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        let mut violations = Violations::default();
        for thread in ended {
            self.keep(&thread.snapshot);
            violations.merge(thread.violations);
            sent.push(thread.sent);
            received.push(thread.received);
        }
        reconcile(&sent, &received, &mut violations);
        if let Some(first) = violations.first().first() {
            return Err(format!(
                "{} violations of the established sessions' messages, such as: {first}",
                violations.count()
            ));
        }
        if !drained {
            return Err("not all of the established sessions' messages were delivered".to_owned());
        }
        self.phases.pop();
        Ok(self.phases)
    }
}

impl PlaceArgs {
    /// Where the switch is.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn address(&self) -> Result<std::net::SocketAddr, String> {
        run::target(&self.as_run(), &crate::local::Lock::read(&self.data))
    }

    /// The established sessions' run.
    fn as_run(&self) -> RunArgs {
        RunArgs {
            connections: self.established,
            in_flight: Some(16),
            size: 128,
            duration: 1.0,
            warmup: 0.0,
            rate: Some(self.rate),
            saturate: false,
            burst: 1,
            ramp: false,
            p99: Duration::from_millis(10),
            targets: 1,
            run_id: None,
            runs: 1,
            hdr: None,
            verify: true,
            pattern: Pattern::Online,
            addr: self.addr.clone(),
            server_name: self.server_name.clone(),
            data: self.data.clone(),
            threads: 1,
            cores: self.cores.clone(),
            seed: self.seed,
            json: None,
            reconnect: false,
            drain_timeout: DRAIN_S,
            connect_timeout: 30.0,
            quiet: true,
        }
    }
}
