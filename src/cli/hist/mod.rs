//! `iris hist`: how long each stage of a message's way takes.
//!
//! ```text
//!   running switches, files ─▶ rows: node, core, stage, histogram ─▶ table, plot, JSON, .hgrm, .hlog, SVG
//! ```
//!
//! Everything between is a [`Dump`], whose rows are put together as late as possible.

mod diff;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::remote::block_on;
use super::revoke::written;
use super::{DATA_DEFAULT, Failure, admin, output};
use crate::measure::dump::{Dump, Merged, Row, merge, since};
use crate::measure::plot::{self, Curve};
use crate::measure::text;
use crate::runtime::admin::{HISTOGRAMS_PATH, RESET_PATH};

/// Bytes of a dump that are read at most. One of a switch with 64 cores has less than four million.
const DUMP_BYTES_MAX: u64 = 256 << 20;
/// Seconds of an interval at most.
const INTERVAL_S_MAX: u64 = 24 * 60 * 60;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(long_about = "\
Show how long each stage of a message's way takes, as percentiles: of a running switch since it started or \
was last reset, of dumps that were kept, or of several of them together. Each core records each stage; \
values are within 1 %.

  handshake  a connection: accepted to the end of its TLS handshake; the client's network is in it
  auth       a session: Hello read to Welcome, with the sync that makes a new device known
  route      a message for another core: frame read to where the other core can see it
  ring       a message or an answer between two cores: published to taken
  batch      a message: proposed to its shard to the write of its batch
  sync       a batch of a log: write and sync
  apply      the same batch: what its commit changes in memory
  deliver    an entry for a session that is there: durable to its bytes going to the socket
  accept     a message: frame read to its Accepted going to the socket
  e2e        an entry for a session that is there: the sender's frame read to the recipient's
             acknowledgement read; the client and its network are in it

What waits for its recipient to come is in neither deliver nor e2e.")]
#[command(after_long_help = "\
Examples:
  iris hist                                        of the switch on ./iris-data
  iris hist --interval 5s --follow                 of each five seconds, until Ctrl-C
  iris hist --stage accept,e2e --plot              with the curve of the percentiles
  iris hist --format json > before.json            to be kept
  iris hist --reset > /dev/null                    begin anew
  iris hist diff before.json after.json            what has changed
  iris hist a.json b.json                          of two nodes together
  iris hist before.json after.json --stage e2e --per-source --svg e2e.svg
  iris hist --interval 1s --follow --format hlog > run.hlog
  iris hist --data /var/lib/iris --stage sync --format hgrm > sync.hgrm

Formats:
  table  for people
  json   a dump, which this command reads: each row's `hdr` is HdrHistogram V2, compressed, in base64
  hgrm   HdrHistogram's percentile distribution, in microseconds; of one histogram
  hlog   HdrHistogram's interval log 1.3, in nanoseconds; the tag is the stage

Exit codes:
  0  shown
  1  failed; standard error says why
  2  wrong usage, no switch runs there, or nothing is there to be shown")]
pub(super) struct HistArgs {
    #[command(subcommand)]
    command: Option<HistCommand>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Debug, Subcommand)]
enum HistCommand {
    /// Compare two: the ratio of each percentile
    Diff(diff::DiffArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Dumps, or data directories of running switches [default: DATA]
    #[arg(value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// The data directory of a running switch, when no SOURCE is given
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// Only these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    stage: Vec<String>,
    /// Each core for itself
    #[arg(long)]
    per_core: bool,
    /// Each source for itself instead of all together
    #[arg(long)]
    per_source: bool,
    /// Begin anew: what is shown is handed over and counted no more
    #[arg(long, conflicts_with_all = ["interval", "follow"])]
    reset: bool,
    /// What happens within this time from now on, such as 5s; nothing is reset
    #[arg(long, value_name = "TIME", value_parser = interval)]
    interval: Option<u64>,
    /// Go on with further intervals
    #[arg(long, requires = "interval")]
    follow: bool,
    /// How to print it
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Draw the percentile curves below the table
    #[arg(long)]
    plot: bool,
    /// Write the percentile curves into this file, too
    #[arg(long, value_name = "FILE", conflicts_with = "follow")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Hgrm,
    Hlog,
}

/// Seconds of a time such as `5s` or `2m`.
fn interval(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    seconds
        .filter(|seconds| (1..=INTERVAL_S_MAX).contains(seconds))
        .ok_or_else(|| "give a time from 1s to 24 hours, as 5s or 2m".to_owned())
}

/// A row and the source that it came from.
type Sourced = (String, Row);

pub(super) fn run(args: &HistArgs) -> Result<(), Failure> {
    match &args.command {
        Some(HistCommand::Diff(diff)) => diff::run(diff),
        None => show(&args.show),
    }
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let mut printer = Printer {
        args,
        hlog_start_ms: None,
    };
    let Some(seconds) = args.interval else {
        return printer.print(&collect(args)?);
    };
    let mut before = collect(args)?;
    loop {
        block_on(async {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(())
        })?;
        let after = collect(args)?;
        printer.print(&between(&before, &after)?)?;
        if !args.follow {
            return Ok(());
        }
        before = after;
    }
}

/// What came to each row of `after` since `before`.
fn between(before: &[Sourced], after: &[Sourced]) -> Result<Vec<Sourced>, Failure> {
    let came = |(source, later): &Sourced| {
        let earlier = before.iter().find(|(from, row)| {
            from == source
                && row.node == later.node
                && row.core == later.core
                && row.stage == later.stage
        });
        let row = match earlier {
            Some((_, earlier)) => since(later, earlier)?,
            None => later.clone(),
        };
        Ok((source.clone(), row))
    };
    after.iter().map(came).collect()
}

/// The rows of all sources, of the stages that are wanted.
fn collect(args: &ShowArgs) -> Result<Vec<Sourced>, Failure> {
    let default = [args.data.clone()];
    let sources = match args.sources.as_slice() {
        [] => default.as_slice(),
        sources => sources,
    };
    let is_live = args.reset || args.interval.is_some();
    if let Some(file) = sources.iter().find(|source| is_live && !source.is_dir()) {
        return Err(Failure::Told(format!(
            "{} is no data directory of a running switch; --reset and --interval ask running ones only",
            file.display()
        )));
    }
    let mut rows = Vec::new();
    for source in sources {
        let name = source.display().to_string();
        let dump = load(source, args.reset)?;
        rows.extend(dump.histograms.into_iter().map(|row| (name.clone(), row)));
    }
    wanted(rows, &args.stage)
}

/// The rows of these stages; of all, when none is named.
fn wanted(rows: Vec<Sourced>, stages: &[String]) -> Result<Vec<Sourced>, Failure> {
    let mut there: Vec<&str> = Vec::new();
    for (_, row) in &rows {
        if !there.contains(&row.stage.as_str()) {
            there.push(&row.stage);
        }
    }
    let unknown = stages.iter().find(|stage| !there.contains(&stage.as_str()));
    if there.is_empty() || unknown.is_some() {
        let stage = unknown.map_or("any", String::as_str);
        let there = there.join(", ");
        return Err(Failure::Nothing(format!(
            "there is no histogram of stage {stage:?}; there are: {there}"
        )));
    }
    let is_wanted = |row: &Row| stages.is_empty() || stages.contains(&row.stage);
    Ok(rows.into_iter().filter(|(_, row)| is_wanted(row)).collect())
}

/// What a source has recorded. A directory is a running switch's, a file a dump.
fn load(source: &Path, reset: bool) -> Result<Dump, Failure> {
    if !source.is_dir() && source.exists() {
        return read(source);
    }
    let answer = match reset {
        true => admin::post(source, RESET_PATH, ""),
        false => admin::get(source, HISTOGRAMS_PATH),
    };
    let body = match answer? {
        (200, body) => body,
        (404, _) => {
            return Err(Failure::Told(format!(
                "the switch on {} records no histograms; it is older than this program",
                source.display()
            )));
        }
        (code, _) => return Err(admin::no_sense(source, &code)),
    };
    let dump = Dump::parse(&body).map_err(|error| admin::no_sense(source, &error))?;
    for core in &dump.silent {
        output::complain(&format!(
            "core {core} of the switch on {} did not answer; what it recorded is left out",
            source.display()
        ));
    }
    Ok(dump)
}

fn read(file: &Path) -> Result<Dump, Failure> {
    let place = file.display();
    let unreadable = |error: std::io::Error| {
        Failure::Told(format!("cannot read {place} ({error}); check its path"))
    };
    let bytes = std::fs::metadata(file).map_err(unreadable)?.len();
    if bytes > DUMP_BYTES_MAX {
        return Err(Failure::Told(format!(
            "{place} has {bytes} bytes, at most {DUMP_BYTES_MAX} are read; it is no dump of histograms, or \
             must be split"
        )));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    Dump::parse(&text).map_err(|error| Failure::Told(format!("{place}: {error}")))
}

/// Prints one result after the other.
struct Printer<'a> {
    args: &'a ShowArgs,
    /// When the interval log began that is being written.
    hlog_start_ms: Option<u64>,
}

impl Printer<'_> {
    fn print(&mut self, rows: &[Sourced]) -> Result<(), Failure> {
        let text = match self.args.format {
            Format::Table => self.table(rows)?,
            Format::Json => Dump {
                histograms: rows.iter().map(|(_, row)| row.clone()).collect(),
                ..Dump::default()
            }
            .to_text(),
            Format::Hgrm => hgrm(&self.merged(rows)?)?,
            Format::Hlog => self.hlog(rows)?,
        };
        let gap = match self.args.follow && self.args.format == Format::Table {
            true => "\n",
            false => "",
        };
        output::print(&format!("{}{gap}", text.trim_end()))?;
        match &self.args.svg {
            Some(file) => self.svg(rows, file),
            None => Ok(()),
        }
    }

    fn merged(&self, rows: &[Sourced]) -> Result<Vec<Merged>, Failure> {
        let several = rows.iter().any(|(_, row)| row.node != rows[0].1.node);
        let label = |(source, row): &Sourced| {
            let mut parts = Vec::new();
            if self.args.per_source {
                parts.push(source.clone());
            }
            if self.args.per_core {
                if several && !self.args.per_source {
                    parts.push(row.node.clone());
                }
                parts.push(
                    row.core
                        .map_or("no core".to_owned(), |core| format!("core {core}")),
                );
            }
            parts.join(" ")
        };
        Ok(merge(
            rows.iter().map(|sourced| (label(sourced), &sourced.1)),
        )?)
    }

    fn table(&self, rows: &[Sourced]) -> Result<String, Failure> {
        let merged = self.merged(rows)?;
        let mut text = self.heading(rows, &merged);
        text.push_str(&table::table(&merged));
        if self.args.plot {
            text.push('\n');
            text.push_str(&plot::terminal(&curves(&merged)));
        }
        Ok(text)
    }

    /// Whose it is, and of which time.
    fn heading(&self, rows: &[Sourced], merged: &[Merged]) -> String {
        let mut nodes: Vec<&str> = rows.iter().map(|(_, row)| row.node.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let start_ms = merged.iter().map(|one| one.start_ms).min().unwrap_or(0);
        let end_ms = merged.iter().map(|one| one.end_ms).max().unwrap_or(0);
        let took_s = end_ms.saturating_sub(start_ms) as f64 / 1e3;
        let (from, nodes) = (written(start_ms / 1_000), nodes.join(", "));
        format!("{nodes}, {took_s:.1} s from {from}\n\n")
    }

    fn hlog(&mut self, rows: &[Sourced]) -> Result<String, Failure> {
        let merged = self.merged(rows)?;
        let mut text = String::new();
        let first = merged.iter().map(|one| one.start_ms).min().unwrap_or(0);
        let start_ms = *self.hlog_start_ms.get_or_insert_with(|| {
            text.push_str(&text::hlog_head(first));
            first
        });
        for one in &merged {
            let span = (one.start_ms, one.end_ms);
            let row = Row::new("", None, &one.stage, span, &one.histogram)?;
            text.push_str(&text::hlog_line(start_ms, &row, &one.label)?);
        }
        Ok(text)
    }

    fn svg(&self, rows: &[Sourced], file: &Path) -> Result<(), Failure> {
        let merged = self.merged(rows)?;
        let title = self.heading(rows, &merged);
        let picture = plot::svg(title.trim_end(), &curves(&merged));
        std::fs::write(file, picture).map_err(|error| {
            Failure::Told(format!(
                "cannot write {} ({error}); check its directory",
                file.display()
            ))
        })
    }
}

fn hgrm(merged: &[Merged]) -> Result<String, Failure> {
    match merged {
        [one] => Ok(text::hgrm(&one.histogram)),
        several => Err(Failure::Told(format!(
            "a percentile distribution is of one histogram, and these are {}; choose one with --stage",
            several.len()
        ))),
    }
}

/// The curves of those that are not empty.
fn curves(merged: &[Merged]) -> Vec<Curve> {
    let curve = |one: &Merged| Curve::of(&table::name(one), &one.histogram);
    merged.iter().filter_map(curve).collect()
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;

    fn sourced(stage: &str) -> Sourced {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000, 2).unwrap();
        histogram.record(5).unwrap();
        let row = Row::new("a", Some(0), stage, (0, 1_000), &histogram).unwrap();
        ("file".to_owned(), row)
    }

    #[test]
    fn an_interval_is_a_number_and_a_unit() {
        for (text, seconds) in [("5s", 5), ("2m", 120), ("7", 7)] {
            assert_eq!(interval(text), Ok(seconds));
        }
        for bad in [
            "",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "2h",
            "1441m",
            "99999999999999999999s",
        ] {
            assert!(interval(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_wanted_stages_are_shown_and_one_that_is_not_there_is_named() {
        let rows = || vec![sourced("sync"), sourced("accept")];
        let names = |stages: &[&str]| {
            let stages: Vec<String> = stages.iter().map(|stage| (*stage).to_owned()).collect();
            let rows = wanted(rows(), &stages)?;
            Ok(rows
                .into_iter()
                .map(|(_, row)| row.stage)
                .collect::<Vec<_>>())
        };
        assert_eq!(names(&[]), Ok(vec!["sync".to_owned(), "accept".to_owned()]));
        assert_eq!(names(&["accept"]), Ok(vec!["accept".to_owned()]));
        let Err(Failure::Nothing(told)) = names(&["accpet"]) else {
            panic!("it is not there")
        };
        assert!(
            told.contains("\"accpet\"") && told.contains("sync, accept"),
            "{told}"
        );
    }

    #[test]
    fn a_percentile_distribution_of_several_histograms_is_refused() {
        let rows = [sourced("sync"), sourced("accept")];
        let merged = merge(rows.iter().map(|(source, row)| (source.clone(), row))).unwrap();
        assert!(hgrm(&merged[..1]).unwrap().contains("#[Max"));
        assert!(matches!(hgrm(&merged), Err(Failure::Told(told)) if told.contains("--stage")));
    }
}
