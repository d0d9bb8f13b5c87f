//! HdrHistogram's own texts, which its public tools read: the percentile distribution (`.hgrm`), and the
//! interval log in version 1.3 (`.hlog`).
//!
//! Formats: <https://github.com/HdrHistogram/HdrHistogram>, `outputPercentileDistribution` and
//! `HistogramLogWriter`.

use std::fmt::Write;

use hdrhistogram::Histogram;

use super::dump::{DumpError, Row};

/// Lines of a percentile distribution for each halving of what is left to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// Nanoseconds in a microsecond, the unit of a percentile distribution.
const NS_PER_US: f64 = 1e3;
/// Nanoseconds in a millisecond, the unit of an interval log's column of maxima, which is for people.
const NS_PER_MS: f64 = 1e6;

/// A percentile distribution, in microseconds.
#[must_use]
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_US;
        let quantile = step.quantile_iterated_to();
        let _ = write!(text, "{value:12.3} {quantile:14.12} {total:10}");
        // The last line has no number there: nothing is left.
        let _ = match quantile < 1.0 {
            true => writeln!(text, " {:14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(text),
        };
    }
    let (mean, deviation) = (histogram.mean() / NS_PER_US, histogram.stdev() / NS_PER_US);
    let _ = writeln!(
        text,
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]"
    );
    let max = histogram.max() as f64 / NS_PER_US;
    let _ = writeln!(
        text,
        "#[Max     = {max:12.3}, Total count    = {:12}]",
        histogram.len()
    );
    let sub_buckets = 2 * 10_u64.pow(u32::from(histogram.sigfig()));
    let _ = writeln!(
        text,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        histogram.buckets(),
        sub_buckets.next_power_of_two()
    );
    text
}

/// The beginning of an interval log whose first interval began then, in milliseconds since the Unix epoch.
/// Times are counted from there.
#[must_use]
pub fn hlog_head(start_ms: u64) -> String {
    let seconds = seconds(start_ms);
    format!(
        "#[Logged with iris {}]\n\
         #[Histogram log format version 1.3]\n\
         #[BaseTime: {seconds:.3} (seconds since epoch)]\n\
         #[StartTime: {seconds:.3} (seconds since epoch)]\n\
         #[MaxValueDivisor: {NS_PER_MS:.1}]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// One interval of a log that began at `start_ms`, with the stage, and what else tells it apart, as its tag.
///
/// # Errors
/// When the histogram is damaged.
pub fn hlog_line(start_ms: u64, row: &Row, label: &str) -> Result<String, DumpError> {
    let max = row.histogram()?.max() as f64 / NS_PER_MS;
    let dot = if label.is_empty() { "" } else { "." };
    let tag: String = format!("{}{dot}{label}", row.stage);
    // What separates fields and lines has no place in a tag.
    let tag = tag.replace([',', ' ', '\n', '\r', '\t', '"'], "_");
    Ok(format!(
        "Tag={tag},{:.3},{:.3},{max:.3},{}\n",
        seconds(row.start_ms.saturating_sub(start_ms)),
        seconds(row.end_ms.saturating_sub(row.start_ms)),
        row.hdr
    ))
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    fn histogram() -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for us in 1..=1_000 {
            histogram.record(us * 1_000).unwrap();
        }
        histogram
    }

    /// R: E-1
    #[test]
    fn a_percentile_distribution_has_the_columns_of_hdrhistogram() {
        let text = hgrm(&histogram());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "       Value     Percentile TotalCount 1/(1-Percentile)"
        );
        assert_eq!(
            lines[2],
            "       1.000 0.000000000000          1           1.00"
        );
        let middle = lines.iter().find(|line| line.contains(" 0.500000000000 "));
        assert_eq!(middle.unwrap().split_whitespace().nth(3), Some("2.00"));
        let last = lines.iter().rfind(|line| !line.starts_with('#')).unwrap();
        let last: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(last[1..], ["1.000000000000", "1000"]);
        assert!(lines[lines.len() - 1].starts_with("#[Buckets ="), "{text}");
    }

    /// R: E-1
    #[test]
    fn an_interval_log_is_read_by_another_reader_of_the_format() {
        let row = Row::new("a", None, "sync", (12_500, 14_000), &histogram()).unwrap();
        let text = hlog_head(10_000) + &hlog_line(10_000, &row, "core 1,x").unwrap();
        let entries: Vec<_> = IntervalLogIterator::new(text.as_bytes())
            .map(Result::unwrap)
            .collect();
        assert_eq!(entries.len(), 3, "{entries:?}");
        let LogEntry::Interval(interval) = &entries[2] else {
            panic!("{entries:?}")
        };
        assert_eq!(interval.tag().unwrap().as_str(), "sync.core_1_x");
        assert_eq!(interval.start_timestamp().as_millis(), 2_500);
        assert_eq!(interval.duration().as_millis(), 1_500);
        assert!((interval.max() - 1.0).abs() < 0.001);
        assert_eq!(interval.encoded_histogram(), row.hdr);
    }
}
