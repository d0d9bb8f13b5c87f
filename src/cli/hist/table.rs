//! Percentiles in columns.

use hdrhistogram::Histogram;

use crate::cli::output::{cells, columns};
use crate::measure::dump::Merged;
use crate::measure::plot::readable;

/// What is shown of each histogram between the least and the greatest.
pub(super) const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
];

/// What a histogram is called.
pub(super) fn name(merged: &Merged) -> String {
    match merged.label.as_str() {
        "" => merged.stage.clone(),
        label => format!("{} {label}", merged.stage),
    }
}

/// One line for each.
pub(super) fn table(all: &[Merged]) -> String {
    let mut rows = vec![cells(["stage", "count", "min"])];
    rows[0].extend(QUANTILES.map(|(name, _)| name.to_owned()));
    rows[0].push("max".to_owned());
    for merged in all {
        let mut row = vec![name(merged), merged.histogram.len().to_string()];
        row.extend(values(&merged.histogram));
        rows.push(row);
    }
    columns(&rows)
}

/// The least, the percentiles, the greatest; nothing of an empty one.
fn values(histogram: &Histogram<u64>) -> Vec<String> {
    if histogram.is_empty() {
        return vec!["-".to_owned(); QUANTILES.len() + 2];
    }
    let mut values = vec![readable(histogram.min())];
    let at = |(_, quantile)| readable(histogram.value_at_quantile(quantile));
    values.extend(QUANTILES.map(at));
    values.push(readable(histogram.max()));
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(stage: &str, values: &[u64]) -> Merged {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        values.iter().for_each(|ns| histogram.record(*ns).unwrap());
        Merged {
            stage: stage.to_owned(),
            label: String::new(),
            start_ms: 0,
            end_ms: 1_000,
            histogram,
        }
    }

    #[test]
    fn each_stage_has_a_line_with_readable_times_below_each_other() {
        let text = table(&[
            merged("sync", &[800, 180_000, 2_500_000]),
            merged("e2e", &[]),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].starts_with("sync   3      800 ns  180 µs"),
            "{text}"
        );
        assert!(lines[1].ends_with("2.50 ms"), "{text}");
        assert!(lines[2].starts_with("e2e    0      -"), "{text}");
        let column = |line: &str, what: &str| {
            let at = line.find(what).unwrap();
            line[..at].chars().count()
        };
        assert_eq!(column(lines[0], "p50"), column(lines[1], "180"), "{text}");
    }
}
