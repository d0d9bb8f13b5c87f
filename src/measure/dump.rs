//! Histograms as text: what the admin socket answers, what `iris hist` and `iris-bench` write and read.
//!
//! ```json
//! {"format":"iris-histograms/1","unit":"ns","silent":[],"histograms":[
//!   {"node":"host:7447","core":0,"stage":"sync","start_ms":…,"end_ms":…,"count":812,"hdr":"HISTFAAA…"}]}
//! ```
//!
//! `hdr` is HdrHistogram's V2 format, compressed, in base64: any of its public tools reads it. Each row
//! stands for itself, so the dumps of several nodes, or of several runs, are one dump when their rows are
//! put together. Fields that are not known are passed over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Histograms, Stage};

/// What the first field says.
pub const FORMAT: &str = "iris-histograms/1";
/// The unit of every value.
pub const UNIT: &str = "ns";
/// Histograms of one dump that are read. A node has ten for each core.
pub const ROWS_MAX: usize = 100_000;

/// Why a dump cannot be read, or written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DumpError {
    /// It is something else.
    #[error(
        "this is no dump of histograms ({0}); `iris hist --format json` and `iris-bench` write them"
    )]
    NotADump(String),
    /// A later version.
    #[error(
        "the dump is in format {found:?}, this program reads {FORMAT:?}; use the program that wrote it"
    )]
    Format {
        /// What it says.
        found: String,
    },
    /// Other values than times.
    #[error("the dump counts in {found:?}, and not in {UNIT:?}; write it again with this program")]
    Unit {
        /// What it says.
        found: String,
    },
    /// More rows than are read.
    #[error("the dump has {found} histograms, at most {ROWS_MAX} are read; split it")]
    TooMany {
        /// How many it has.
        found: usize,
    },
    /// A histogram is damaged.
    #[error(
        "the histogram of stage {stage:?} in the dump is damaged ({why}); write the dump again"
    )]
    Histogram {
        /// Whose.
        stage: String,
        /// What is wrong.
        why: String,
    },
}

/// One histogram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Who recorded it: a switch by host and port, or a program.
    pub node: String,
    /// On which of its cores, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u16>,
    /// What took so long.
    pub stage: String,
    /// When it was empty, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// Up to when it was filled.
    pub end_ms: u64,
    /// Values in it.
    pub count: u64,
    /// The histogram.
    pub hdr: String,
}

impl Row {
    /// A row of this histogram.
    ///
    /// # Errors
    /// When it cannot be written, which no histogram of times meets.
    pub fn new(
        node: &str,
        core: Option<u16>,
        stage: &str,
        (start_ms, end_ms): (u64, u64),
        histogram: &Histogram<u64>,
    ) -> Result<Self, DumpError> {
        let hdr = encode(histogram).map_err(|why| damaged(stage, &why))?;
        Ok(Self {
            node: node.to_owned(),
            core,
            stage: stage.to_owned(),
            start_ms,
            end_ms,
            count: histogram.len(),
            hdr,
        })
    }

    /// Its histogram.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn histogram(&self) -> Result<Histogram<u64>, DumpError> {
        let bytes = STANDARD
            .decode(&self.hdr)
            .map_err(|why| damaged(&self.stage, &why))?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|why| damaged(&self.stage, &why))
    }
}

fn damaged(stage: &str, why: &dyn std::fmt::Display) -> DumpError {
    DumpError::Histogram {
        stage: stage.to_owned(),
        why: why.to_string(),
    }
}

/// A histogram as HdrHistogram's tools read it.
fn encode(histogram: &Histogram<u64>) -> Result<String, impl std::fmt::Display + use<>> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .map(|_| STANDARD.encode(&bytes))
}

/// Histograms of any origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// [`FORMAT`].
    pub format: String,
    /// [`UNIT`].
    pub unit: String,
    /// Cores that did not answer; what they recorded is not in it.
    #[serde(default)]
    pub silent: Vec<u16>,
    /// The histograms.
    pub histograms: Vec<Row>,
}

impl Default for Dump {
    fn default() -> Self {
        Self {
            format: FORMAT.to_owned(),
            unit: UNIT.to_owned(),
            silent: Vec::new(),
            histograms: Vec::new(),
        }
    }
}

impl Dump {
    /// Reads one, without looking into its histograms.
    ///
    /// # Errors
    /// When it is none, or not of this version.
    pub fn parse(text: &str) -> Result<Self, DumpError> {
        let dump: Self =
            serde_json::from_str(text).map_err(|error| DumpError::NotADump(error.to_string()))?;
        if dump.format != FORMAT {
            return Err(DumpError::Format { found: dump.format });
        }
        if dump.unit != UNIT {
            return Err(DumpError::Unit { found: dump.unit });
        }
        if dump.histograms.len() > ROWS_MAX {
            let found = dump.histograms.len();
            return Err(DumpError::TooMany { found });
        }
        Ok(dump)
    }

    /// As text, one histogram a line.
    #[must_use]
    pub fn to_text(&self) -> String {
        let rows = self.histograms.iter().map(json);
        let rows: Vec<String> = rows.collect();
        format!(
            "{{\"format\":{},\"unit\":{},\"silent\":{},\"histograms\":[\n{}\n]}}",
            json(&self.format),
            json(&self.unit),
            json(&self.silent),
            rows.join(",\n")
        )
    }

    /// Adds what a core recorded.
    ///
    /// # Errors
    /// As [`Row::new`].
    pub fn add_core(
        &mut self,
        node: &str,
        core: u16,
        recorded: &Histograms,
    ) -> Result<(), DumpError> {
        let span = (recorded.start_ms, recorded.end_ms);
        for stage in Stage::ALL {
            let of = recorded.of(stage);
            self.histograms
                .push(Row::new(node, Some(core), stage.name(), span, of)?);
        }
        Ok(())
    }

    /// Adds all that another one has.
    pub fn append(&mut self, mut other: Self) {
        self.silent.append(&mut other.silent);
        self.histograms.append(&mut other.histograms);
    }
}

/// Text and numbers have no form that JSON could not take.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// What came to `later` after `earlier` of the same core was copied from it. After a new beginning in
/// between, all of it.
///
/// # Errors
/// When a histogram is damaged.
pub fn since(later: &Row, earlier: &Row) -> Result<Row, DumpError> {
    if later.start_ms != earlier.start_ms {
        return Ok(later.clone());
    }
    let mut histogram = later.histogram()?;
    histogram
        .subtract(&earlier.histogram()?)
        .map_err(|why| damaged(&later.stage, &why))?;
    let span = (earlier.end_ms, later.end_ms);
    Row::new(&later.node, later.core, &later.stage, span, &histogram)
}

/// Several rows of one stage as one.
#[derive(Clone, Debug)]
pub struct Merged {
    /// What took so long.
    pub stage: String,
    /// What tells it from others of the stage, such as its core; empty without.
    pub label: String,
    /// The earliest beginning, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// The latest end.
    pub end_ms: u64,
    /// All values.
    pub histogram: Histogram<u64>,
}

/// Puts the rows of each stage with the same label together, in the order of the first of each.
///
/// # Errors
/// When a histogram is damaged.
pub fn merge<'a>(
    rows: impl IntoIterator<Item = (String, &'a Row)>,
) -> Result<Vec<Merged>, DumpError> {
    let mut all: Vec<Merged> = Vec::new();
    for (label, row) in rows {
        let histogram = row.histogram()?;
        let same = |merged: &&mut Merged| merged.stage == row.stage && merged.label == label;
        if let Some(merged) = all.iter_mut().find(same) {
            merged
                .histogram
                .add(&histogram)
                .map_err(|why| damaged(&row.stage, &why))?;
            merged.start_ms = merged.start_ms.min(row.start_ms);
            merged.end_ms = merged.end_ms.max(row.end_ms);
        } else {
            let mut histogram = histogram;
            histogram.auto(true); // another one's range may be larger
            all.push(Merged {
                stage: row.stage.clone(),
                label,
                start_ms: row.start_ms,
                end_ms: row.end_ms,
                histogram,
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(values: &[u64]) -> Histograms {
        let mut all = Histograms::new(1_000);
        all.end_ms = 2_000;
        values.iter().for_each(|ns| all.record(Stage::Sync, *ns));
        all
    }

    /// R: E-1
    #[test]
    fn a_dump_reads_back_as_it_was_written() {
        let mut dump = Dump::default();
        dump.add_core("a:1", 3, &recorded(&[5, 70_000, 70_000]))
            .unwrap();
        let again = Dump::parse(&dump.to_text()).unwrap();
        assert_eq!(again, dump);
        assert_eq!(again.histograms.len(), Stage::ALL.len());
        let sync = again.histograms.iter().find(|row| row.stage == "sync");
        let sync = sync.unwrap();
        assert_eq!((sync.core, sync.count), (Some(3), 3));
        let histogram = sync.histogram().unwrap();
        assert_eq!(histogram.len(), 3);
        assert_eq!(histogram.count_at(70_000), 2);
    }

    /// R: E-1
    #[test]
    fn histograms_of_several_nodes_and_of_other_kinds_are_put_together() {
        let mut dump = Dump::default();
        dump.add_core("a:1", 0, &recorded(&[10, 20])).unwrap();
        let mut other = Dump::default();
        other.add_core("b:1", 0, &recorded(&[1_000])).unwrap();
        dump.append(other);
        let mut fine = Histogram::new_with_bounds(1, 600_000_000_000, 3).unwrap();
        fine.record(500_000_000_000).unwrap();
        let row = Row::new("bench", None, "sync", (500, 5_000), &fine).unwrap();
        dump.histograms.push(row);
        let all = merge(dump.histograms.iter().map(|row| (String::new(), row))).unwrap();
        let sync = all.iter().find(|merged| merged.stage == "sync").unwrap();
        assert_eq!((sync.start_ms, sync.end_ms), (500, 5_000));
        assert_eq!(sync.histogram.len(), 4);
        assert!(sync.histogram.max() >= 500_000_000_000);
        let by_node = merge(dump.histograms.iter().map(|row| (row.node.clone(), row))).unwrap();
        let of = |node: &str| {
            let found = by_node
                .iter()
                .find(|one| one.stage == "sync" && one.label == node);
            found.unwrap().histogram.len()
        };
        assert_eq!((of("a:1"), of("b:1"), of("bench")), (2, 1, 1));
    }

    /// R: E-1
    #[test]
    fn what_came_between_two_copies_is_their_difference() {
        let row = |values: &[u64], start_ms, end_ms| {
            let mut all = Histograms::new(0);
            values.iter().for_each(|ns| all.record(Stage::Sync, *ns));
            Row::new(
                "a",
                Some(0),
                "sync",
                (start_ms, end_ms),
                all.of(Stage::Sync),
            )
            .unwrap()
        };
        let (earlier, later) = (row(&[5, 900], 1, 10), row(&[5, 7, 900], 1, 20));
        let between = since(&later, &earlier).unwrap();
        assert_eq!(
            (between.start_ms, between.end_ms, between.count),
            (10, 20, 1)
        );
        assert_eq!(between.histogram().unwrap().max(), 7);
        let anew = row(&[6], 15, 20);
        assert_eq!(since(&anew, &earlier).unwrap(), anew);
    }

    /// What the HdrHistogram of Python (PyPI `hdrhistogram` 0.10.8, `encode`) makes of 1 to 1,000 µs, one
    /// of each, and seven times 123.456789 ms, in nanoseconds.
    const BY_PYTHON: &str = concat!(
        "HISTFAAAAIx4nJNpmSzMwMB+jgECmKE0I4iwnnWKwf4DROA8P9NZfqapHExP2ZkWsjB9ZIai5UxM3xmx",
        "oJWMTNVMlXhwNpM1ENqCSfJoXSZpJlkgRJD05/Mz8TJxAzEEIljYRYerPDsTKxgyQ2lUSLzoqP6hr5+Z",
        "iRENYgjggkQrpIWZo5aPWj4yLP+YxwcATFtAkQ==",
    );

    /// R: E-1
    #[test]
    fn what_a_public_tool_wrote_is_read() {
        let row = Row {
            hdr: BY_PYTHON.to_owned(),
            ..Row::new("a", None, "sync", (0, 0), &Histogram::new(2).unwrap()).unwrap()
        };
        let histogram = row.histogram().unwrap();
        assert_eq!(histogram.len(), 1_007);
        assert_eq!(histogram.count_at(123_456_789), 7);
        assert!(histogram.value_at_quantile(0.5).abs_diff(504_000) < 1_000);
    }

    #[test]
    fn what_is_no_dump_is_refused_with_the_reason() {
        let text = Dump::default().to_text();
        let change = |from, to| Dump::parse(&text.replace(from, to)).unwrap_err();
        assert!(matches!(Dump::parse("[1,2]"), Err(DumpError::NotADump(_))));
        let later = change("histograms/1", "histograms/2");
        assert!(matches!(later, DumpError::Format { found } if found == "iris-histograms/2"));
        let unit = change("\"ns\"", "\"ms\"");
        assert!(matches!(unit, DumpError::Unit { found } if found == "ms"));
        for hdr in ["", "!", "aGVsbG8=", "HISTFAAAAAA="] {
            let row = Row {
                hdr: hdr.to_owned(),
                ..Row::new("a", None, "sync", (0, 0), &Histogram::new(2).unwrap()).unwrap()
            };
            assert!(
                matches!(row.histogram(), Err(DumpError::Histogram { .. })),
                "{hdr:?}"
            );
        }
    }
}
