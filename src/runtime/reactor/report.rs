//! A core's report, made when the admin thread asks for one: a few reads, no loop over connections.

use super::Core;
use crate::placement::LogId;
use crate::runtime::report::{CoreReport, LogReport, Totals};
use crate::runtime::storage::Log;

impl Core {
    /// This core as it is now.
    pub(super) fn report(&mut self) -> CoreReport {
        CoreReport {
            core: self.id.0,
            totals: self.totals(),
            connections: self.sockets.count() as u64,
            sessions: self.live_sessions,
            draining: self.draining.is_some(),
            logs: self
                .lanes
                .logs_mut()
                .map(|(id, log)| log_report(id, log))
                .collect(),
        }
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

/// One log as it is now. **The place to fill in** what a log comes to know about itself: damaged shards
/// and entries, checkpoints, live bytes. Until then they are what [`LogReport::new`] says.
fn log_report(id: LogId, log: &mut Log) -> LogReport {
    LogReport {
        end_lsn: log.end(),
        durable_lsn: log.durable_end(),
        space: log.space(),
        segments: log.segment_count(),
        used_bytes: log.used_bytes(),
        ..LogReport::new(id.0)
    }
}
