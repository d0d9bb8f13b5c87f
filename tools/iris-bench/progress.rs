//! How a run goes on: one line that is written over on a terminal, one line each second elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;

use crate::stats::{Latency, Shared, Snapshot};

/// Characters of the bar.
const BAR: usize = 20;

/// What happened since the last line.
pub struct Line {
    at_ns: u64,
    accepted: u64,
    delivered: u64,
    accept: Latency,
    end_to_end: Latency,
}

impl Line {
    /// From now on.
    #[must_use]
    pub fn new(shared: &Shared) -> Self {
        Self {
            at_ns: shared.now_ns(),
            accepted: shared.sum(|thread| &thread.accepted),
            delivered: shared.sum(|thread| &thread.delivered),
            accept: Latency::new(),
            end_to_end: Latency::new(),
        }
    }

    /// From now on, again.
    pub fn reset(&mut self, shared: &Shared, now: u64) {
        *self = Self {
            at_ns: now,
            ..Self::new(shared)
        };
    }

    /// A thread's latencies.
    pub fn add(&mut self, snapshot: &Snapshot) {
        self.accept.add(&snapshot.accept);
        self.end_to_end.add(&snapshot.end_to_end);
    }

    /// Shows it. `until`: when all will be over.
    pub fn print(&self, shared: &Shared, load_from: u64, now: u64, until: u64) {
        let text = self.text(shared, load_from, now, until);
        let mut stderr = std::io::stderr().lock();
        // That nobody sees how it goes on is no reason to stop.
        let _ = match stderr.is_terminal() {
            true => write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush()),
            false => writeln!(stderr, "{text}"),
        };
    }

    /// The last line stays where it is.
    pub fn end() {
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
    }

    fn text(&self, shared: &Shared, load_from: u64, now: u64, until: u64) -> String {
        let accepted = shared.sum(|thread| &thread.accepted);
        let delivered = shared.sum(|thread| &thread.delivered);
        let span = seconds(now.saturating_sub(self.at_ns)).max(1e-9);
        let (passed, whole) = (
            seconds(now.saturating_sub(load_from)),
            seconds(until.saturating_sub(load_from)),
        );
        let phase = match now < shared.measure_from.load(Ordering::Relaxed) {
            true => " warm-up",
            false => "",
        };
        format!(
            "{} {passed:>4.0}/{whole:.0} s  accepted {:>7.0}/s  delivered {:>7.0}/s  accept p50 {:.2} \
             p99 {:.2} ms  end to end p50 {:.2} p99 {:.2} ms  in flight {}{phase}",
            bar(passed / whole.max(1e-9)),
            (accepted - self.accepted) as f64 / span,
            (delivered - self.delivered) as f64 / span,
            self.accept.micros(0.5) / 1e3,
            self.accept.micros(0.99) / 1e3,
            self.end_to_end.micros(0.5) / 1e3,
            self.end_to_end.micros(0.99) / 1e3,
            shared.sum(|thread| &thread.sent).saturating_sub(accepted),
        )
    }
}

fn bar(part: f64) -> String {
    let full = ((part.clamp(0.0, 1.0) * BAR as f64).round() as usize).min(BAR);
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR - full))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R: E-7
    #[test]
    fn the_progress_line_says_how_far_it_is_and_the_percentiles_of_its_second() {
        let shared = Shared::new(1);
        shared.measure_from.store(0, Ordering::Relaxed);
        let mut line = Line::new(&shared);
        let mut snapshot = Snapshot::new(false, 0);
        snapshot.accept.record(2_000_000);
        line.add(&snapshot);
        shared.progress[0].accepted.store(500, Ordering::Relaxed);
        line.at_ns = 0;
        let text = line.text(&shared, 0, 1_000_000_000, 4_000_000_000);
        assert!(
            text.starts_with("[#####...............]    1/4 s"),
            "{text}"
        );
        assert!(text.contains("accepted     500/s"), "{text}");
        assert!(text.contains("accept p50 2.00 p99 2.00 ms"), "{text}");
    }
}
