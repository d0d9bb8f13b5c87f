//! What a core says of itself when it is asked: plain numbers, copied out in its tick.
//!
//! ```text
//!   admin thread ── Control::Report(reply) ──▶ core, in its next tick ── CoreReport ──▶ admin thread
//! ```
//!
//! A report is a copy: nothing in it is shared, and a core that made one keeps nothing of it. What it
//! means (ready or not, which metric) is decided by who asked (`super::admin`).

use serde::{Deserialize, Serialize};

use super::certificate::Validity;
use super::storage::Space;

/// What a core has done since it started. Plain numbers of one thread; logged when it stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Turns of its loop.
    pub turns: u64,
    /// Times that it slept in its ring.
    pub sleeps: u64,
    /// Events taken from sockets, disks and jobs.
    pub events: u64,
    /// Sends submitted to sockets.
    pub sends: u64,
    /// Entries handed to sessions, repeated ones included.
    pub entries: u64,
    /// Syncs of its logs that returned.
    pub commits: u64,
    /// Batches of shards in them.
    pub committed: u64,
    /// Connections accepted, strangers of any kind.
    pub accepted: u64,
    /// Sessions begun.
    pub logins: u64,
    /// Tokens that were not taken, up to the rate.
    pub failed_logins: u64,
    /// Further tokens that were not taken, whose senders were told when to try again.
    pub refused_logins: u64,
    /// Good tokens that were not taken because they are revoked.
    pub revoked_logins: u64,
    /// Logins sent away because their user has as many sessions as it may.
    pub refused_sessions: u64,
    /// Sessions that ended because their tokens were revoked.
    pub revoked_sessions: u64,
    /// Handshakes that broke the rules of TLS.
    pub failed_handshakes: u64,
    /// Handshakes that waited for a later turn.
    pub deferred_handshakes: u64,
    /// Connections closed or sent away because the switch stops.
    pub refused_draining: u64,
    /// Connections closed or sent away because the core has as many sessions as it may.
    pub refused_full: u64,
    /// Connections closed because the core has as many strangers as it may.
    pub refused_handshakes: u64,
    /// Connections closed because their address has as many strangers on the core as it may.
    pub refused_crowd: u64,
    /// Connections closed because their address has as many as it may.
    pub refused_address: u64,
    /// Connections closed or sent away because the core was overloaded.
    pub shed_connections: u64,
    /// Messages refused because the core was overloaded.
    pub shed_sends: u64,
    /// Messages refused because the recipient's inbox was full.
    pub refused_inbox: u64,
    /// Messages refused because the disk was full.
    pub refused_disk: u64,
    /// Messages refused because their user had sent too many.
    pub limited_sends: u64,
    /// Times that a session was not read for a while because it talked too much.
    pub throttled: u64,
    /// Connections cut because the client did not read.
    pub write_timeouts: u64,
    /// Connections ended because a frame was not finished.
    pub frame_timeouts: u64,
    /// Connections ended because they sent far more TLS records than was in them.
    pub cut_for_records: u64,
}

/// One core at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // another version's may have fewer fields
pub struct CoreReport {
    /// Its number, from 0; not that of its processor.
    pub core: u16,
    /// What it has done.
    pub totals: Totals,
    /// Sockets of clients, strangers and closing ones included.
    pub connections: u64,
    /// Devices that are logged in here.
    pub sessions: u64,
    /// It stops: it takes no further connections.
    pub draining: bool,
    /// Connections of those sockets that have not logged in.
    pub strangers: u64,
    /// What it sheds: 0 nothing, then each step with those before: 1 signals, 2 fresh receipts, 3 new
    /// connections, 4 new sends.
    pub shed: u64,
    /// When the certificate that it shows is valid. `None`: its dates cannot be read.
    pub certificate: Option<Validity>,
    /// Its logs, in order.
    pub logs: Vec<LogReport>,
}

/// One log at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogReport {
    /// Its number.
    pub log: u16,
    /// Position behind the last frame that was placed.
    pub end_lsn: u64,
    /// Position up to which all is durable.
    pub durable_lsn: u64,
    /// How it stands with its disk.
    pub space: Space,
    /// Segments with frames; spares are not counted.
    pub segments: u64,
    /// Shards that are not served because their data is damaged, in order.
    pub damaged_shards: Vec<u16>,
    /// Where recovery would begin to scan, by the last checkpoint. `None`: there is none.
    pub checkpoint_lsn: Option<u64>,
    /// Checkpoints that failed since the start.
    pub checkpoint_failures: u64,
    /// Bytes that messages which somebody may still want take in the log; 0 while not known.
    pub live_bytes: u64,
    /// Bytes of the segments with frames.
    pub used_bytes: u64,
    /// Entries that could not be read back as they were written, since the start.
    pub damaged_entries: u64,
}

impl Default for LogReport {
    fn default() -> Self {
        Self::new(0)
    }
}

impl LogReport {
    /// A log of which nothing is known yet.
    #[must_use]
    pub fn new(log: u16) -> Self {
        Self {
            log,
            end_lsn: 0,
            durable_lsn: 0,
            space: Space::Enough,
            segments: 0,
            damaged_shards: Vec::new(),
            checkpoint_lsn: None,
            checkpoint_failures: 0,
            live_bytes: 0,
            used_bytes: 0,
            damaged_entries: 0,
        }
    }
}
