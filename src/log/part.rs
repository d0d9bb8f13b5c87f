//! One segment's bytes as a scan looks at them: what can still be found where not all is whole.
//!
//! Nothing in here is believed for looking right. A frame's header must have its CRC, its position
//! and its segment's salt; a record's header has a CRC over salt and position. Both are unknown to
//! who sends messages, so the bytes of a message are never taken for part of the log.

use std::cell::OnceCell;
use std::ops::Range;

use super::format::{
    FrameHeader, RecordHeader, RecordKind, SegmentHeader, SegmentSize, align_up, u32_at, u64_at,
};
use super::items::items;
use super::limits::{ALIGN, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use super::recovery::{CUT_BLOCK_BYTES, Fault, Recovered};
use crate::planted::{self, Bug};

/// Comparing with it is the fastest way to know a block of zeros.
pub(super) static ZEROS: [u8; CUT_BLOCK_BYTES] = [0; CUT_BLOCK_BYTES];

/// Why there is no frame to be believed at a place; the frame, when its header is whole and its body is
/// not.
pub(super) type Stop = (Fault, Option<FrameHeader>);

/// A segment, perhaps not whole.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub index: u64,
    /// At most a segment's.
    pub bytes: &'a [u8],
    pub header: Result<SegmentHeader, Fault>,
    first_lsn: u64,
    size: SegmentSize,
    /// Looked for once, when the header does not say it.
    salt: OnceCell<Option<u64>>,
}

impl<'a> Part<'a> {
    pub fn new(
        size: SegmentSize,
        index: u64,
        bytes: &'a [u8],
        header: Result<SegmentHeader, Fault>,
    ) -> Self {
        Self {
            index,
            bytes: &bytes[..bytes.len().min(size.bytes() as usize)],
            header,
            first_lsn: size.first_lsn(index),
            size,
            salt: OnceCell::new(),
        }
    }

    /// Whether nothing but zeros is within these offsets.
    pub fn is_zero(&self, range: Range<usize>) -> bool {
        let end = range.end.min(self.bytes.len());
        let bytes = self.bytes.get(range.start..end).unwrap_or_default();
        bytes
            .chunks(ZEROS.len())
            .all(|chunk| *chunk == ZEROS[..chunk.len()])
    }

    /// Position behind the segment's last byte.
    pub fn end_lsn(&self) -> u64 {
        self.first_lsn + self.size.bytes()
    }

    /// Offset of a position that lies in this segment.
    pub fn offset_of(&self, lsn: u64) -> usize {
        self.size.offset_of(lsn)
    }

    /// The same segment with zeros from an offset on.
    pub fn before(&self, offset: usize) -> Self {
        let bytes = &self.bytes[..offset.min(self.bytes.len())];
        Self::new(self.size, self.index, bytes, self.header)
    }

    /// The salt of the frames: the header's; without a whole header that of the first frame;
    /// without that too, that of the longest row of whole frames, or else that of the first frame
    /// of which at least the header is whole. None: there is no frame.
    pub fn salt(&self) -> Option<u64> {
        match self.header {
            Ok(header) => Some(header.salt),
            Err(_) => *self.salt.get_or_init(|| self.common_salt()),
        }
    }

    fn common_salt(&self) -> Option<u64> {
        if let Some(first) = self.header_at(SEGMENT_HEADER_BYTES, None) {
            return Some(first.salt);
        }
        let (mut longest, mut salt) = (0, None);
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some(first) = self.find(at, None, |frame| self.is_whole(frame)) {
            let from = (first.lsn - self.first_lsn) as usize;
            at = from + first.frame_len();
            let mut last = first;
            while let Some(next) = self.header_at(at, Some(first.salt)) {
                if next.prev_crc != last.hdr_crc || !self.is_whole(&next) {
                    break;
                }
                at += next.frame_len();
                last = next;
            }
            if at - from > longest {
                (longest, salt) = (at - from, Some(first.salt));
            }
        }
        // A header alone is proof enough of what was before it, so it must be a place to go on, too.
        salt.or_else(|| Some(self.find(SEGMENT_HEADER_BYTES, None, |_| true)?.salt))
    }

    /// The frame at `offset` and its body, if everything about it is right. With a `prev_crc` it must
    /// continue the frame that has it.
    pub fn frame_at(
        &self,
        offset: usize,
        salt: u64,
        prev_crc: Option<u32>,
    ) -> Result<(FrameHeader, &'a [u8]), Stop> {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        let Some(frame) = FrameHeader::decode(rest) else {
            let header = &rest[..rest.len().min(FRAME_HEADER_BYTES)];
            let zero = header.iter().all(|byte| *byte == 0);
            return Err((if zero { Fault::Zero } else { Fault::Header }, None));
        };
        let lsn = self.first_lsn + offset as u64;
        if frame.salt != salt || frame.lsn != lsn || frame.synced_lsn > frame.lsn {
            return Err((Fault::Stale, None));
        }
        let Some(body) = rest.get(FRAME_HEADER_BYTES..frame.frame_len()) else {
            let fits = frame.lsn + frame.frame_len() as u64 <= self.end_lsn();
            return Err((Fault::Length, fits.then_some(frame))); // fits: the file is short
        };
        let (stored, computed) = (frame.body_crc, crc32fast::hash(body));
        if computed != stored && !planted::is(Bug::TornAccepted) {
            return Err((Fault::Body { stored, computed }, Some(frame)));
        }
        if prev_crc.is_some_and(|prev_crc| frame.prev_crc != prev_crc) {
            return Err((Fault::Chain, None));
        }
        Ok((frame, body))
    }

    /// The header of the frame at `offset`, if it is whole, belongs here and its body would fit.
    fn header_at(&self, offset: usize, salt: Option<u64>) -> Option<FrameHeader> {
        let frame = FrameHeader::decode(self.bytes.get(offset..)?)?;
        let belongs = frame.lsn == self.first_lsn + offset as u64
            && frame.synced_lsn <= frame.lsn
            && salt.is_none_or(|salt| salt == frame.salt)
            && (offset + frame.frame_len()) as u64 <= self.size.bytes();
        belongs.then_some(frame)
    }

    /// Whether the body of a frame that [`Part::header_at`] found has its CRC.
    fn is_whole(&self, frame: &FrameHeader) -> bool {
        let at = (frame.lsn - self.first_lsn) as usize;
        let body = self
            .bytes
            .get(at + FRAME_HEADER_BYTES..at + frame.frame_len());
        body.is_some_and(|body| crc32fast::hash(body) == frame.body_crc)
    }

    /// The first whole frame header from offset `from` on that belongs here and is `wanted`. The
    /// bodies of whole frames are not looked into. Without a salt any will do: the position alone
    /// tells a frame that belongs here from those of the file's earlier uses.
    pub fn find(
        &self,
        from: usize,
        salt: Option<u64>,
        wanted: impl Fn(&FrameHeader) -> bool,
    ) -> Option<FrameHeader> {
        const LSN_AT: usize = 16;
        let mut at = from;
        while at + FRAME_HEADER_BYTES <= self.bytes.len() {
            // No frame has lsn 0, so zeros are skipped by the block.
            let skipped = self.bytes.get(at + LSN_AT..at + LSN_AT + ZEROS.len());
            if at.is_multiple_of(ZEROS.len()) && skipped == Some(&ZEROS[..]) {
                at += ZEROS.len();
                continue;
            }
            // One comparison rejects nearly every place before a CRC is computed.
            if u64_at(self.bytes, at + LSN_AT) == self.first_lsn + at as u64
                && let Some(frame) = self.header_at(at, salt)
            {
                if wanted(&frame) {
                    return Some(frame);
                }
                if self.is_whole(&frame) {
                    at += frame.frame_len();
                    continue;
                }
            }
            at += ALIGN;
        }
        None
    }

    /// Shows the records within a range of offsets of which nothing is sure, in order, and whether
    /// the payload is proven too. Where no record header is whole, looks on in 8-byte steps.
    pub fn survivors(&self, range: Range<usize>, show: &mut dyn FnMut(Recovered<'a>, bool)) {
        let Some(salt) = self.salt() else { return };
        let end = range.end.min(self.bytes.len());
        let mut at = align_up(range.start.max(SEGMENT_HEADER_BYTES));
        while at + RECORD_HEADER_BYTES <= end {
            // No record is all zeros, so zeros are skipped by the block.
            let skipped = self.bytes.get(at..at + ZEROS.len());
            if at.is_multiple_of(ZEROS.len()) && skipped == Some(&ZEROS[..]) {
                at += ZEROS.len();
                continue;
            }
            match self.record_at(at, end, salt) {
                Some(found) => {
                    at += RECORD_HEADER_BYTES + align_up(found.payload.len());
                    show(found, is_proven(&found));
                }
                None => at += ALIGN,
            }
        }
    }

    /// The record at `offset`, if its header is whole and it ends before `end`.
    fn record_at(&self, offset: usize, end: usize, salt: u64) -> Option<Recovered<'a>> {
        let start = offset + RECORD_HEADER_BYTES;
        let len = u32_at(self.bytes, offset) as usize;
        if len > end - start {
            return None; // most places end here, before a CRC is computed
        }
        let lsn = self.first_lsn + offset as u64;
        let (record, len) = RecordHeader::decode(&self.bytes[offset..end], salt, lsn).ok()?;
        Some(Recovered {
            lsn_of_payload: self.first_lsn + start as u64,
            record,
            payload: &self.bytes[start..start + len],
        })
    }
}

/// Whether the payload of a record whose header is whole can be proven without its frame's CRC.
fn is_proven(found: &Recovered<'_>) -> bool {
    let (record, payload) = (&found.record, found.payload);
    match record.kind {
        RecordKind::Entry | RecordKind::Reloc => {
            let mut whole = 0;
            items(payload).all(|item| {
                whole += 1;
                item.is_ok()
            }) && whole == record.b
        }
        RecordKind::Heads => u64::from(crc32fast::hash(payload)) == record.a,
        _ => false,
    }
}
