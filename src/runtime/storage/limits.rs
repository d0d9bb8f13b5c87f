//! Bounds of the data directory and its files.

/// Logs of a data directory: what the superblock's table holds.
pub const LOGS_MAX: u32 = 128;
/// Shards of a data directory; a record names its shard in 16 bits.
pub const SHARDS_MAX: u32 = 4096;
/// Shards unless formatted otherwise.
pub const SHARDS_DEFAULT: u32 = 64;
/// Bytes of one write that zeroes a spare. Larger ones give the page cache large folios, and one
/// dirty byte then writes a whole folio (measured).
pub const ZERO_WRITE_BYTES: usize = 4096;
/// Zeroed bytes between two syncs of a spare in the making, so that it never floods the disk while
/// a log waits for its own sync. A guess.
pub const ZERO_SYNC_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of a checkpoint between two syncs, for the same reason.
pub const CHECKPOINT_SYNC_BYTES: usize = 4 * 1024 * 1024;
/// Milliseconds before the first repetition of a failed preparation; doubles each time.
pub const SPARE_RETRY_MS: u64 = 100;
/// Milliseconds between repetitions at most: how late freed space is noticed.
pub const SPARE_RETRY_MS_MAX: u64 = 2_000;
/// Bytes of the blocks in which residency of the map is known, and in which cold ones are read.
pub const BLOCK_BYTES: usize = 64 * 1024;

const _: () = {
    assert!(SHARDS_MAX <= u16::MAX as u32 + 1);
    assert!(BLOCK_BYTES.is_power_of_two());
    assert!(crate::log::limits::SEGMENT_BYTES_MIN.is_multiple_of(BLOCK_BYTES as u64));
    assert!(BLOCK_BYTES.is_multiple_of(ZERO_WRITE_BYTES));
};
