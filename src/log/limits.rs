//! Every size of the log, by name. They are part of the format: changing one is a new version.

/// Version of segments, frames and records. A segment of another version is refused.
pub const FORMAT_VERSION: u32 = 2;
/// Bytes of a segment's header; frames start behind it. One page, so that a page never holds both.
pub const SEGMENT_HEADER_BYTES: usize = 4096;
/// Bytes of a segment unless the data directory was formatted with another size.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
/// Bytes of the smallest segment (tests rotate with it): the largest frame fits with room to spare.
pub const SEGMENT_BYTES_MIN: u64 = 2 * 1024 * 1024;
/// Bytes of the largest segment; also keeps offsets within 32 bits. A guess.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 48;
/// Bytes of a frame with its header. A batch that does not fit waits for the next frame.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 40;
/// Bytes of one shard's entry in a HEADS record.
pub const HEAD_BYTES: usize = 16;
/// Shards of one log at most: all those of a data directory. More: the log is not opened.
pub const HEADS_MAX: usize = 4096;
/// Frames and records begin at multiples of this.
pub const ALIGN: usize = 8;
/// Bytes of one record's payload: a frame that holds nothing else.
pub const RECORD_PAYLOAD_BYTES_MAX: usize =
    FRAME_BYTES_MAX - FRAME_HEADER_BYTES - RECORD_HEADER_BYTES;
/// Bytes before an item's payload: its length and its CRC.
pub const ITEM_HEADER_BYTES: usize = 8;
/// Bytes of one item's payload. A length over it is a bad item, found before the CRC is computed.
pub const ITEM_PAYLOAD_BYTES_MAX: usize = RECORD_PAYLOAD_BYTES_MAX - ITEM_HEADER_BYTES;
/// Version of checkpoint files. Another one is refused by name.
pub const CHECKPOINT_VERSION: u32 = 1;
/// Bytes of a checkpoint's block with its header; every block but the last is as long.
pub const CHECKPOINT_BLOCK_BYTES: usize = 64 * 1024;
/// Bytes of the stream in one block.
pub const CHECKPOINT_BLOCK_PAYLOAD_BYTES: usize = CHECKPOINT_BLOCK_BYTES - 8;
/// Holes that a scan goes over. More: the scan fails, and a person must look. A guess.
pub const HOLES_MAX: u32 = 4096;
/// Zeroed segments kept ahead of each log. Fewer on a full disk: new sends are refused.
pub const SPARES: usize = 2;
/// Buffers kept for reuse by each log: one in flight, one filling, and END frames.
pub const BUFFERS_KEPT: usize = 4;
/// Milliseconds without a write after which a SEAL frame carries the watermark forward, so that
/// only the very last flush is ever in doubt.
pub const SEAL_AFTER_MS: u64 = 50;

/// Bytes of an END or SEAL frame with the heads of so many shards.
pub const fn end_bytes(heads: usize) -> usize {
    FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + heads * HEAD_BYTES
}

const _: () = {
    assert!(SPARES >= 2); // one may be lost to a rotation while the other is made
    assert!(SEGMENT_BYTES_MIN.is_power_of_two()); // a position splits by shift and mask
    assert!(SEGMENT_BYTES_DEFAULT.is_power_of_two());
    assert!(SEGMENT_BYTES_MAX.is_power_of_two());
    // The largest frame and the largest END frame behind it fit into an empty segment.
    assert!(
        SEGMENT_HEADER_BYTES + FRAME_BYTES_MAX + end_bytes(HEADS_MAX) <= SEGMENT_BYTES_MIN as usize
    );
    assert!(end_bytes(HEADS_MAX) <= FRAME_BYTES_MAX); // SEAL and END are frames like others
    assert!(HEAD_BYTES.is_multiple_of(ALIGN));
    assert!(FRAME_HEADER_BYTES.is_multiple_of(ALIGN));
    assert!(RECORD_HEADER_BYTES.is_multiple_of(ALIGN));
    assert!(FRAME_BYTES_MAX.is_multiple_of(ALIGN)); // padding never carries a frame over the limit
    // The count of records in a frame fits its 16 bits.
    assert!(FRAME_BYTES_MAX / RECORD_HEADER_BYTES <= u16::MAX as usize);
};
