//! Latencies as an HdrHistogram log, which its public tools read: two histograms for each run, tagged.

use std::io::BufWriter;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::local;
use crate::report::Outcome;

/// What a log's "max" is divided by: nanoseconds to milliseconds.
const MAX_DIVISOR: f64 = 1e6;

/// Writes the latencies of these runs.
///
/// # Errors
/// A sentence for people.
pub fn write(path: &Path, outcomes: &[Outcome]) -> Result<(), String> {
    let failed = |what: &dyn std::fmt::Display| {
        format!(
            "cannot write {}: {what}; give another --hdr",
            path.display()
        )
    };
    let file = std::fs::File::create(path).map_err(|error| failed(&error))?;
    let mut file = BufWriter::new(file);
    let mut serializer = V2DeflateSerializer::new();
    let ended = SystemTime::UNIX_EPOCH + Duration::from_secs(local::unix_time_s());
    let whole: f64 = outcomes.iter().map(|outcome| outcome.measured_s).sum();
    let began = ended - Duration::from_secs_f64(whole);
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("iris-bench: nanoseconds from the intended time of sending")
        .with_base_time(began)
        .with_start_time(began)
        .with_max_value_divisor(MAX_DIVISOR)
        .begin_log_with(&mut file, &mut serializer)
        .map_err(|error| failed(&error))?;
    let mut at = 0.0;
    for outcome in outcomes {
        let span = Duration::from_secs_f64(outcome.measured_s);
        for (name, latency) in [
            ("accept", &outcome.accept),
            ("end-to-end", &outcome.end_to_end),
        ] {
            let from = Duration::from_secs_f64(at);
            log.write_histogram(latency.histogram(), from, span, Tag::new(name))
                .map_err(|error| failed(&format!("{error:?}")))?;
        }
        at += outcome.measured_s;
    }
    drop(log);
    std::io::Write::flush(&mut file).map_err(|error| failed(&error))
}
