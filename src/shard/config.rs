//! What is configured of a shard.

use iris_proto::limits::INBOX_ENTRIES_MAX;

use super::BATCH_BYTES_MAX;
use super::retention::Retention;

/// Bounds and retention of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    /// Unacknowledged entries of one inbox.
    pub inbox_entries_max: u64,
    /// Bytes of one batch, at most [`BATCH_BYTES_MAX`]. One command more may exceed it.
    pub batch_bytes_max: usize,
    /// How long acknowledged entries stay.
    pub retention: Retention,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            inbox_entries_max: INBOX_ENTRIES_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            retention: Retention::default(),
        }
    }
}
