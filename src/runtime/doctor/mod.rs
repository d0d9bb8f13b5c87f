//! What this machine lacks: each row of `kernel-tuning/README.md` looked at, and told in words.
//!
//! ```text
//!   Machine::read (files, system calls) ─▶ one Row each (pure) ─▶ Finding: found, wanted, why, how
//! ```
//!
//! A machine below a row is either **slow** (or holds less), which is the owner's to decide, or it
//! **breaks** something that the switch promises: it does not start there, or `Accepted` would not mean
//! on disk. Only the second is a failure. What cannot be read is unknown, and neither.
//!
//! Nothing is changed, but for a file that is made in the data directory and removed, to see whether one
//! can be.

mod machine;
mod table;

use serde::Serialize;

pub use machine::{Disk, Machine};
pub use table::{ROWS, SYSCTLS};

/// One thing that is looked at.
pub struct Row {
    /// As `kernel-tuning/README.md` names it.
    pub knob: &'static str,
    /// What it should be.
    pub wanted: &'static str,
    /// What it is good for.
    pub why: &'static str,
    /// How to change it.
    pub how: &'static str,
    /// What this machine has, and what that means.
    pub look: fn(&Machine) -> (String, Verdict),
}

/// What a row says of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It cannot be seen from here.
    Unknown,
    /// Slower, or fewer connections, than it could be.
    Slow,
    /// The switch does not start, or cannot keep a promise.
    Breaks,
}

impl Verdict {
    /// As the first word of a line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Slow => "slow",
            Self::Breaks => "BREAKS",
        }
    }
}

/// A row looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// As `kernel-tuning/README.md` names it.
    pub knob: &'static str,
    /// What that means.
    pub verdict: Verdict,
    /// What this machine has.
    pub found: String,
    /// What it should have.
    pub wanted: &'static str,
    /// What it is good for.
    pub why: &'static str,
    /// How to change it.
    pub how: &'static str,
}

/// Looks at every row.
#[must_use]
pub fn examine(machine: &Machine) -> Vec<Finding> {
    let look = |row: &Row| {
        let (found, verdict) = (row.look)(machine);
        Finding {
            knob: row.knob,
            verdict,
            found,
            wanted: row.wanted,
            why: row.why,
            how: row.how,
        }
    };
    ROWS.iter().map(look).collect()
}
