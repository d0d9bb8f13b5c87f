//! How long acknowledged entries stay: by age, by count, by size, whichever is over first (R: B-10).
//!
//! What may leave is a matter of configuration and of the clock, so it is decided once, where the
//! shard is led, and written as a TRIM command; a replay under another configuration lets the same
//! entries leave. Entries that some device has not acknowledged never leave.

/// Entries over a bound before an acknowledgement alone makes them leave: a command for each would be
/// more bytes than it frees. A sweep does not wait for so many.
pub const TRIM_ENTRIES_MIN: u64 = 64;

/// Bounds of one user's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Acknowledged entries.
    pub entries: u64,
    /// Bytes of all entries, those that wait for a device included; only acknowledged ones leave.
    pub bytes: u64,
    /// Milliseconds since the entry came.
    pub age_ms: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            entries: 10_000,
            bytes: 256 * 1024 * 1024,
            age_ms: 90 * 24 * 60 * 60 * 1_000,
        }
    }
}
