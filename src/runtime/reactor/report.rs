//! A core's report, made when the admin thread asks for one: a few reads, no loop over connections.

use super::Core;
use crate::placement::LogId;
use crate::runtime::report::{CoreReport, LogReport, Totals};
use crate::store::Status;

impl Core {
    /// This core as it is now.
    pub(super) fn report(&mut self) -> CoreReport {
        self.survey.want(self.now.monotonic);
        CoreReport {
            core: self.id.0,
            totals: self.totals(),
            at_us: self.now_us(),
            peaks: self.turns.peaks(self.now_us()),
            inboxes: self.survey.found(),
            connections: self.sockets.count() as u64,
            sessions: self.live_sessions,
            draining: self.draining.is_some(),
            strangers: self.strangers as u64,
            shed: self.ladder.shed() as u64,
            certificate: self.policy.validity,
            logs: self
                .lanes
                .statuses()
                .map(|(id, status, damaged)| log_report(id, &status, damaged))
                .collect(),
        }
    }

    /// One line with what it has done; all of it is in the last metrics that were asked for.
    pub(super) fn tell_the_end(&self) {
        let totals = self.totals();
        tracing::info!(
            core = self.id.0,
            turns = totals.turns,
            sleeps = totals.sleeps,
            events = totals.events,
            sends = totals.sends,
            logins = totals.logins,
            entries = totals.entries,
            commits = totals.commits,
            batches = totals.committed,
            "core stopped"
        );
    }

    /// What it has done, with what its lanes count.
    pub(super) fn totals(&self) -> Totals {
        let (commits, committed) = self.lanes.commits();
        Totals {
            commits,
            committed,
            ..self.totals
        }
    }
}

/// One log as it is now.
fn log_report(id: LogId, status: &Status, damaged_shards: Vec<u16>) -> LogReport {
    LogReport {
        log: id.0,
        end_lsn: status.end,
        durable_lsn: status.durable,
        space: status.space,
        segments: status.segments as u64,
        damaged_shards,
        checkpoint_lsn: status.checkpoint,
        checkpoint_failures: status.checkpoint_failures,
        live_bytes: status.live_bytes,
        used_bytes: status.used_bytes,
        damaged_entries: status.damaged,
    }
}
