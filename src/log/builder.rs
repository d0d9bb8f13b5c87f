//! A frame while it is being filled.
//!
//! The builder owns one growing buffer that begins with room for the frame's header. Records are
//! appended as they come; the header is written once, when the log knows the frame's place. Offsets
//! that [`FrameBuilder::record`] returns are final: the position of a payload is the frame's lsn
//! plus its offset.

use super::format::{FrameHeader, Placement, RecordHeader, align_up};
use super::limits::{ALIGN, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};

/// One frame in the making. Reusable: taking the bytes leaves an empty builder.
#[derive(Debug)]
pub struct FrameBuilder {
    /// At least the reserved header; a multiple of 8 long.
    bytes: Vec<u8>,
    records: u16,
    /// Bytes of the frame at most; a multiple of 8.
    bytes_max: usize,
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameBuilder {
    /// An empty frame of at most [`FRAME_BYTES_MAX`].
    pub fn new() -> Self {
        Self::with_max(FRAME_BYTES_MAX)
    }

    /// An empty frame of at most `bytes`, for segments that hold no larger one.
    ///
    /// # Panics
    /// When `bytes` is over [`FRAME_BYTES_MAX`], or too few for a frame's header.
    pub fn with_max(bytes: usize) -> Self {
        assert!(bytes <= FRAME_BYTES_MAX, "a frame over the limit");
        assert!(bytes >= FRAME_HEADER_BYTES, "a frame without a header");
        Self {
            bytes: vec![0; FRAME_HEADER_BYTES],
            records: 0,
            bytes_max: bytes / ALIGN * ALIGN,
        }
    }

    /// No record yet.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes of the frame so far, with its header.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Records so far.
    pub fn records(&self) -> u16 {
        self.records
    }

    /// Whether a record with a payload of `payload_len` bytes still fits.
    pub fn fits(&self, payload_len: usize) -> bool {
        payload_len <= self.bytes_max
            && self.bytes.len() + RECORD_HEADER_BYTES + align_up(payload_len) <= self.bytes_max
    }

    /// Appends a record; returns the offset of the payload's first byte within the frame.
    ///
    /// # Panics
    /// When the record does not fit: ask [`FrameBuilder::fits`] first.
    pub fn record(&mut self, header: RecordHeader, payload: &[u8]) -> usize {
        assert!(
            self.fits(payload.len()),
            "a record that does not fit its frame"
        );
        let at = self.bytes.len() + RECORD_HEADER_BYTES;
        header.encode_into(payload, &mut self.bytes);
        self.records += 1; // fits: FRAME_BYTES_MAX / RECORD_HEADER_BYTES is below u16::MAX
        at
    }

    /// Drops all records, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.truncate(FRAME_HEADER_BYTES);
        self.records = 0;
    }

    /// Completes the frame and appends it to `out`, which gets the buffer itself when it is empty.
    /// The builder is empty afterwards. Returns the CRC that the next frame repeats.
    pub fn finish_into(&mut self, placement: &Placement, out: &mut Vec<u8>) -> u32 {
        let crc = FrameHeader::seal(&mut self.bytes, self.records, placement);
        if out.is_empty() {
            std::mem::swap(out, &mut self.bytes);
            self.bytes.resize(FRAME_HEADER_BYTES, 0);
        } else {
            out.extend_from_slice(&self.bytes);
        }
        self.clear();
        crc
    }
}

#[cfg(test)]
mod tests {
    use super::super::RecordKind;
    use super::*;

    #[test]
    fn a_frame_with_a_smaller_limit_takes_records_up_to_it() {
        let mut frame = FrameBuilder::with_max(FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + 23);
        assert!(frame.fits(16));
        assert!(!frame.fits(17), "padding counts");
        assert!(!frame.fits(usize::MAX));
        let header = RecordHeader {
            kind: RecordKind::Entry,
            flags: 0,
            shard: 0,
            term: 1,
            index: 1,
            a: 0,
            b: 0,
        };
        frame.record(header, &[7; 16]);
        assert!(!frame.fits(0));
        frame.clear();
        assert!(frame.fits(16) && frame.is_empty());
    }
}
