//! The inboxes of all cores together, as `/debug/users` and `/status` say them.

use serde::{Deserialize, Serialize};

use super::asker::Answer;
use super::readiness::reports;
use crate::runtime::report::InboxReport;

/// What the cores found when they last looked at their users.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inboxes {
    /// Cores that have not finished looking, or did not answer: their users are missing below.
    pub cores_missing: usize,
    /// All that the others found.
    #[serde(flatten)]
    pub found: InboxReport,
}

impl Inboxes {
    pub(super) fn of(answers: &[Answer]) -> Self {
        let found: Vec<_> = reports(answers)
            .filter_map(|report| report.inboxes.as_ref())
            .collect();
        Self {
            cores_missing: answers.len() - found.len(),
            found: found
                .into_iter()
                .fold(InboxReport::default(), InboxReport::merged),
        }
    }
}
