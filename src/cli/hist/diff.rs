//! `iris hist diff A B`: what has changed from one to the other.

use std::path::PathBuf;

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::table::QUANTILES;
use super::{Sourced, load, wanted};
use crate::cli::output::{cells, columns};
use crate::cli::{Failure, output};
use crate::measure::dump::{Merged, merge};
use crate::measure::plot::readable;

#[derive(Debug, Args)]
#[command(long_about = "\
Compare two dumps, or a dump with a running switch: of each stage the count and the percentiles of A and of \
B, and B divided by A. Above 1 it has become slower. A stage that one of them has nothing of has no ratio.")]
#[command(after_long_help = "\
Examples:
  iris hist diff before.json after.json
  iris hist diff before.json iris-data --stage accept,e2e
  iris hist diff before.json after.json --json | jq '.stages[] | [.stage, .ratio.p99]'

Exit codes:
  0  compared, whatever the outcome
  1  failed; standard error says why
  2  wrong usage, no switch runs there, or nothing is there to be compared")]
pub(super) struct DiffArgs {
    /// The first: a dump, or the data directory of a running switch
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The second
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Only these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    stage: Vec<String>,
    /// Print the comparison as one JSON object, in nanoseconds
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DiffArgs) -> Result<(), Failure> {
    let mut rows: Vec<Sourced> = Vec::new();
    for (name, source) in [("A", &args.a), ("B", &args.b)] {
        let dump = load(source, false)?;
        rows.extend(
            dump.histograms
                .into_iter()
                .map(|row| (name.to_owned(), row)),
        );
    }
    let rows = wanted(rows, &args.stage)?;
    let merged = merge(rows.iter().map(|(source, row)| (source.clone(), row)))?;
    let pairs = pairs(&merged);
    output::print(
        match args.json {
            true => as_json(&pairs).to_string(),
            false => table(&pairs),
        }
        .trim_end(),
    )
}

/// One stage of both.
struct Pair<'a> {
    stage: &'a str,
    a: Option<&'a Histogram<u64>>,
    b: Option<&'a Histogram<u64>>,
}

impl Pair<'_> {
    /// B divided by A, by what is asked of both.
    fn ratio(&self, of: impl Fn(&Histogram<u64>) -> f64) -> Option<f64> {
        let (a, b) = (self.a?, self.b?);
        let (a, b) = (of(a), of(b));
        (a > 0.0).then(|| b / a)
    }
}

fn pairs(merged: &[Merged]) -> Vec<Pair<'_>> {
    let of = |stage: &str, label: &str| {
        let found = merged
            .iter()
            .find(|one| one.stage == stage && one.label == label);
        let histogram = found.map(|one| &one.histogram);
        histogram.filter(|histogram| !histogram.is_empty())
    };
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for one in merged {
        let stage = one.stage.as_str();
        if pairs.iter().all(|pair| pair.stage != stage) {
            let (a, b) = (of(stage, "A"), of(stage, "B"));
            pairs.push(Pair { stage, a, b });
        }
    }
    pairs
}

fn table(pairs: &[Pair<'_>]) -> String {
    let mut rows = vec![cells(["stage", "", "count"])];
    rows[0].extend(QUANTILES.map(|(name, _)| name.to_owned()));
    rows[0].push("max".to_owned());
    for pair in pairs {
        for (stage, name, histogram) in [(pair.stage, "A", pair.a), ("", "B", pair.b)] {
            let mut row = cells([stage, name]);
            let Some(histogram) = histogram else {
                row.push("0".to_owned());
                rows.push(row);
                continue;
            };
            row.push(histogram.len().to_string());
            let at = |(_, quantile)| readable(histogram.value_at_quantile(quantile));
            row.extend(QUANTILES.map(at));
            row.push(readable(histogram.max()));
            rows.push(row);
        }
        let written =
            |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let mut row = cells(["", "B/A"]);
        row.push(written(pair.ratio(|one| one.len() as f64)));
        row.extend(QUANTILES.map(|(_, quantile)| {
            written(pair.ratio(|one| one.value_at_quantile(quantile) as f64))
        }));
        row.push(written(pair.ratio(|one| one.max() as f64)));
        rows.push(row);
    }
    columns(&rows)
}

fn as_json(pairs: &[Pair<'_>]) -> Value {
    let side = |histogram: Option<&Histogram<u64>>| {
        let Some(histogram) = histogram else {
            return json!({ "count": 0 });
        };
        let mut of = json!({ "count": histogram.len(), "max": histogram.max() });
        for (name, quantile) in QUANTILES {
            of[name] = histogram.value_at_quantile(quantile).into();
        }
        of
    };
    let stages = pairs.iter().map(|pair| {
        let mut ratio = json!({
            "count": pair.ratio(|one| one.len() as f64),
            "max": pair.ratio(|one| one.max() as f64),
        });
        for (name, quantile) in QUANTILES {
            ratio[name] = json!(pair.ratio(|one| one.value_at_quantile(quantile) as f64));
        }
        json!({ "stage": pair.stage, "a": side(pair.a), "b": side(pair.b), "ratio": ratio })
    });
    json!({ "unit": "ns", "stages": stages.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(stage: &str, label: &str, values: &[u64]) -> Merged {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        values.iter().for_each(|ns| histogram.record(*ns).unwrap());
        Merged {
            stage: stage.to_owned(),
            label: label.to_owned(),
            start_ms: 0,
            end_ms: 1_000,
            histogram,
        }
    }

    /// R: E-1
    #[test]
    fn what_took_twice_as_long_has_ratio_two_and_what_one_lacks_has_none() {
        let all = [
            merged("sync", "A", &[1_000, 1_000]),
            merged("sync", "B", &[2_000]),
            merged("e2e", "A", &[]),
            merged("e2e", "B", &[5]),
        ];
        let pairs = pairs(&all);
        let text = table(&pairs);
        let ratios: Vec<&str> = text.lines().filter(|line| line.contains("B/A")).collect();
        let first: Vec<&str> = ratios[0].split_whitespace().collect();
        assert_eq!(
            first,
            [
                "B/A", "0.50", "2.00", "2.00", "2.00", "2.00", "2.00", "2.00"
            ]
        );
        assert!(
            !ratios[1].contains(|letter: char| letter.is_ascii_digit()),
            "{text}"
        );
        let json = as_json(&pairs);
        assert_eq!(json["stages"][0]["ratio"]["count"], 0.5);
        assert_eq!(json["stages"][1]["ratio"]["p50"], Value::Null);
        assert_eq!(json["stages"][1]["b"]["count"], 1);
    }
}
