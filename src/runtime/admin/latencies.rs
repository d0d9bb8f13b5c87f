//! How long things took in the last seconds, and since the start as Prometheus wants it.
//!
//! Cores record from their start on. What somebody who watches wants is the last seconds: what is recorded
//! now less what was recorded then. Copies of then are kept here, few and of the stages that are shown, and
//! all who watch share them.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::gatherer::{Gather, Gathered};
use super::readiness::Latency;
use crate::measure::Stage;

/// The least that the last seconds are, once somebody has watched for so long.
pub const WINDOW_MIN: Duration = Duration::from_secs(5);
/// The stages that are shown.
const SHOWN: [Stage; 4] = [Stage::Sync, Stage::Accept, Stage::Deliver, Stage::E2e];
/// The metric's name.
const METRIC: &str = "iris_stage_duration_seconds";
/// Upper ends of its buckets, in nanoseconds, and as they are written.
#[rustfmt::skip] // pairs
const BUCKETS: [(u64, &str); 17] = [
    (10_000, "0.00001"), (25_000, "0.000025"), (50_000, "0.00005"), (100_000, "0.0001"),
    (250_000, "0.00025"), (500_000, "0.0005"), (1_000_000, "0.001"), (2_500_000, "0.0025"),
    (5_000_000, "0.005"), (10_000_000, "0.01"), (25_000_000, "0.025"), (50_000_000, "0.05"),
    (100_000_000, "0.1"), (250_000_000, "0.25"), (500_000_000, "0.5"), (1_000_000_000, "1"),
    (5_000_000_000, "5"),
];

/// Somebody who watches.
pub(super) type Look = oneshot::Sender<Vec<Latency>>;

/// What one core had recorded, by [`SHOWN`]; `None`: it did not say.
type Recorded = Option<Vec<Histogram<u64>>>;

/// Serves who watches until nobody can any more.
pub(super) async fn run(gathers: mpsc::Sender<Gather>, mut looks: mpsc::Receiver<Look>) {
    let mut window = Window::default();
    while let Some(look) = looks.recv().await {
        let Some(gathered) = gather(&gathers, false).await else {
            return;
        };
        let recorded = gathered.iter().map(|core| {
            let core = core.as_ref()?;
            Some(SHOWN.iter().map(|stage| core.of(*stage).clone()).collect())
        });
        let latencies = window.take(Instant::now(), recorded.collect());
        let _ = look.send(latencies); // it may have left
    }
}

/// What all cores have recorded. `None`: the thread is about to end.
pub(super) async fn gather(gathers: &mpsc::Sender<Gather>, reset: bool) -> Option<Gathered> {
    let (answer, gathered) = oneshot::channel();
    gathers.send(Gather { reset, answer }).await.ok()?;
    gathered.await.ok()
}

/// Copies of before: the first is what is subtracted.
#[derive(Default)]
struct Window {
    kept: VecDeque<(Instant, Vec<Recorded>)>,
}

impl Window {
    fn take(&mut self, now: Instant, recorded: Vec<Recorded>) -> Vec<Latency> {
        let is_old = |kept: &(Instant, Vec<Recorded>)| now.duration_since(kept.0) >= WINDOW_MIN;
        while self.kept.get(1).is_some_and(is_old) {
            self.kept.pop_front();
        }
        let before = self.kept.front().map(|(_, recorded)| recorded.as_slice());
        let latencies = latencies(before.unwrap_or_default(), &recorded);
        if self.kept.back().is_none_or(is_old) {
            self.kept.push_back((now, recorded));
        }
        latencies
    }
}

fn latencies(before: &[Recorded], now: &[Recorded]) -> Vec<Latency> {
    let mut list = Vec::new();
    for (nth, stage) in SHOWN.iter().enumerate() {
        let mut all: Option<Histogram<u64>> = None;
        for (core, recorded) in (0..).zip(now) {
            let Some(recorded) = recorded else { continue };
            let mut lately = recorded[nth].clone();
            if let Some(Some(before)) = before.get(usize::from(core)) {
                let less = lately.subtract(&before[nth]);
                if less.is_err() {
                    lately = recorded[nth].clone(); // they began anew since
                }
            }
            list.push(latency(*stage, Some(core), &lately));
            match &mut all {
                None => all = Some(lately),
                Some(all) => {
                    let added = all.add(&lately);
                    assert!(added.is_ok(), "all histograms have the same bounds");
                }
            }
        }
        list.extend(all.map(|all| latency(*stage, None, &all)));
    }
    list
}

fn latency(stage: Stage, core: Option<u16>, histogram: &Histogram<u64>) -> Latency {
    let us = |quantile| histogram.value_at_quantile(quantile) / 1_000;
    Latency {
        stage: stage.name().to_owned(),
        core,
        count: histogram.len(),
        p50_us: us(0.5),
        p99_us: us(0.99),
    }
}

/// The stages of all cores together as a histogram of Prometheus.
pub(super) fn render(gathered: &Gathered) -> String {
    let mut text = format!(
        "# HELP {METRIC} How long a stage of a message's way took, all cores together.\n\
         # TYPE {METRIC} histogram\n"
    );
    for stage in Stage::ALL {
        let cores = gathered.iter().flatten();
        let (mut counts, mut count, mut sum_ns) = ([0_u64; BUCKETS.len()], 0, 0.0);
        for recorded in cores {
            let histogram = recorded.of(stage);
            count += histogram.len();
            for value in histogram.iter_recorded() {
                let (ns, times) = (value.value_iterated_to(), value.count_at_value());
                sum_ns += ns as f64 * times as f64;
                let bucket = BUCKETS.partition_point(|(end, _)| *end < ns);
                if let Some(bucket) = counts.get_mut(bucket) {
                    *bucket += times;
                }
            }
        }
        let (name, mut below) = (stage.name(), 0);
        for ((_, end), times) in BUCKETS.iter().zip(counts) {
            below += times;
            let _ = writeln!(
                text,
                "{METRIC}_bucket{{stage=\"{name}\",le=\"{end}\"}} {below}"
            );
        }
        let _ = writeln!(
            text,
            "{METRIC}_bucket{{stage=\"{name}\",le=\"+Inf\"}} {count}"
        );
        let _ = writeln!(text, "{METRIC}_sum{{stage=\"{name}\"}} {}", sum_ns / 1e9);
        let _ = writeln!(text, "{METRIC}_count{{stage=\"{name}\"}} {count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Histograms;

    fn recorded(values_ns: &[u64]) -> Recorded {
        let mut histograms = Histograms::new(0);
        for ns in values_ns {
            histograms.record(Stage::Accept, *ns);
        }
        let all = SHOWN.iter().map(|stage| histograms.of(*stage).clone());
        Some(all.collect())
    }

    fn accept(latencies: &[Latency], core: Option<u16>) -> (u64, u64) {
        let is_it = |latency: &&Latency| latency.stage == "accept" && latency.core == core;
        let found = latencies.iter().find(is_it).unwrap();
        (found.count, found.p50_us / 100)
    }

    /// R: E-1, E-2
    #[test]
    fn what_was_recorded_before_the_window_does_not_count() {
        let ms = 1_000_000;
        let mut window = Window::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let first = window.take(at(0), vec![recorded(&[ms]), None]);
        assert_eq!(accept(&first, None), (1, 10), "since the start");
        let later = window.take(at(3), vec![recorded(&[ms, 9 * ms]), recorded(&[9 * ms])]);
        assert_eq!(accept(&later, Some(0)), (1, 90));
        assert_eq!(
            accept(&later, None),
            (2, 90),
            "and one core had not spoken before"
        );
        window.take(at(6), vec![recorded(&[ms, 9 * ms, 9 * ms])]);
        let last = window.take(at(12), vec![recorded(&[ms, 9 * ms, 9 * ms, ms])]);
        assert_eq!(accept(&last, None), (1, 10), "since the sixth second");
        let anew = window.take(at(13), vec![recorded(&[5 * ms])]);
        assert_eq!(accept(&anew, None), (1, 50), "they were reset");
    }

    /// R: E-2
    #[test]
    fn buckets_are_cumulative_and_end_with_all() {
        let (mut one, mut two) = (Histograms::new(0), Histograms::new(0));
        one.record(Stage::Sync, 900_000);
        two.record(Stage::Sync, 900_000);
        two.record(Stage::Sync, 60_000_000_000);
        let text = render(&vec![Some(Box::new(one)), None, Some(Box::new(two))]);
        for wanted in [
            "# TYPE iris_stage_duration_seconds histogram",
            "iris_stage_duration_seconds_bucket{stage=\"sync\",le=\"0.0005\"} 0",
            "iris_stage_duration_seconds_bucket{stage=\"sync\",le=\"0.001\"} 2",
            "iris_stage_duration_seconds_bucket{stage=\"sync\",le=\"5\"} 2",
            "iris_stage_duration_seconds_bucket{stage=\"sync\",le=\"+Inf\"} 3",
            "iris_stage_duration_seconds_count{stage=\"sync\"} 3",
            "iris_stage_duration_seconds_count{stage=\"e2e\"} 0",
        ] {
            assert!(text.lines().any(|line| line == wanted), "{wanted}:\n{text}");
        }
    }
}
