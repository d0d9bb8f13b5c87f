//! `iris doctor`: what this machine lacks.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{DATA_DEFAULT, Failure, output};
use crate::runtime::doctor::{Finding, Machine, SYSCTLS, Verdict, examine};

#[derive(Debug, Args)]
#[command(long_about = "\
Read this machine against kernel-tuning/README.md, and say what it lacks: what was found, what is wanted, \
why, and how to change it. Run it as the switch's user, with its limits, for a true answer.

Each row is ok, unknown (it cannot be seen from here), slow (the switch would be slower, or hold less), or \
BREAKS (it does not start there, or a message that is accepted would not be safe).

Nothing is changed; a file is made in the data directory and removed, to see whether one can be.")]
#[command(after_long_help = "\
Examples:
  iris doctor
  iris doctor --data /var/lib/iris --all
  sudo -u iris iris doctor --data /var/lib/iris --json

Exit codes:
  0  nothing breaks a promise; there may be rows that are slow
  1  something does
  2  wrong usage")]
pub(super) struct DoctorArgs {
    /// The data directory, as it is or will be
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// Explain the rows that are ok, too
    #[arg(long)]
    all: bool,
    /// Print everything as one JSON object
    #[arg(long, conflicts_with = "all")]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    rows: &'a [Finding],
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let findings = examine(&Machine::read(&args.data, &SYSCTLS));
    let healthy = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Breaks);
    let text = if args.json {
        let rows = findings.as_slice();
        serde_json::to_string_pretty(&Report { healthy, rows })?
    } else {
        told(&findings, args.all)
    };
    output::print(&text)?;
    if healthy {
        Ok(())
    } else {
        Err(Failure::Damaged)
    }
}

/// For people: one line for each row, and an explanation where there is something to explain.
fn told(findings: &[Finding], all: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding {
            knob,
            verdict,
            found,
            wanted,
            why,
            how,
        } = finding;
        let _ = writeln!(text, "{:<8} {knob}: {found}", verdict.word());
        if all || *verdict != Verdict::Ok {
            let _ = writeln!(text, "           wanted: {wanted}");
            let _ = writeln!(text, "           why:    {why}");
        }
        if matches!(verdict, Verdict::Slow | Verdict::Breaks) || all {
            let _ = writeln!(text, "           how:    {how}");
        }
    }
    let count = |verdict| {
        findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .count()
    };
    let (breaks, slow) = (count(Verdict::Breaks), count(Verdict::Slow));
    let _ = write!(
        text,
        "\n{} rows: {} ok, {slow} slow, {} unknown, {breaks} break a promise",
        findings.len(),
        count(Verdict::Ok),
        count(Verdict::Unknown)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_ok_is_explained() {
        let row = |knob, verdict| Finding {
            knob,
            verdict,
            found: "found".to_owned(),
            wanted: "wanted",
            why: "why",
            how: "how",
        };
        let rows = [row("a", Verdict::Ok), row("b", Verdict::Breaks)];
        assert_eq!(
            told(&rows, false),
            "ok       a: found\nBREAKS   b: found\n           wanted: wanted\n           why:    why\n           how:    how\n\
             \n2 rows: 1 ok, 0 slow, 0 unknown, 1 break a promise"
        );
        assert!(told(&rows, true).matches("wanted:").count() == 2);
    }
}
