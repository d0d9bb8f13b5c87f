//! The bytes of segment headers, frame headers and records. Little-endian throughout.
//!
//! Encoding writes into a slice and decoding reads from one; neither allocates. A CRC is CRC-32
//! (IEEE), the one of zlib. Decoding trusts no length before its CRC has been checked.

use super::limits::{
    ALIGN, FORMAT_VERSION, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, HEAD_BYTES, RECORD_HEADER_BYTES,
    SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES,
};

const SEGMENT_MAGIC: [u8; 8] = *b"IRIS-SEG";
/// Bytes of the segment header before its CRC; all in the first sector, so it is never torn.
const SEGMENT_HEADER_CRC_AT: usize = 76;
/// Where a record's header has its own CRC.
const RECORD_CRC_AT: usize = 12;
/// The shard of a record that belongs to no shard.
const NO_SHARD: u16 = 0xffff;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

pub(super) const fn align_up(len: usize) -> usize {
    (len + (ALIGN - 1)) & !(ALIGN - 1)
}

/// Size of every segment of a data directory: a power of two, so that a position splits by shift
/// and mask. Fixed when the directory is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSize {
    shift: u32,
}

impl SegmentSize {
    /// None unless `bytes` is a power of two from `SEGMENT_BYTES_MIN` to `SEGMENT_BYTES_MAX`.
    pub const fn new(bytes: u64) -> Option<Self> {
        if !bytes.is_power_of_two() || bytes < SEGMENT_BYTES_MIN || bytes > SEGMENT_BYTES_MAX {
            return None;
        }
        Some(Self {
            shift: bytes.trailing_zeros(),
        })
    }

    /// Any power of two that holds a header and a little more, so that a trial in memory rotates
    /// often.
    #[cfg(any(test, feature = "sim"))]
    pub const fn small(bytes: u64) -> Self {
        assert!(bytes.is_power_of_two() && bytes > SEGMENT_HEADER_BYTES as u64);
        Self {
            shift: bytes.trailing_zeros(),
        }
    }

    /// Bytes of a segment.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Number of the segment that holds `position`.
    pub const fn index_of(self, position: u64) -> u64 {
        position >> self.shift
    }

    /// Offset of `position` in its segment's file.
    pub const fn offset_of(self, position: u64) -> usize {
        (position & (self.bytes() - 1)) as usize
    }

    /// Whether a frame, or a segment, can begin at `position`.
    pub const fn is_place(self, position: u64) -> bool {
        let offset = self.offset_of(position);
        offset == 0 || offset >= SEGMENT_HEADER_BYTES && offset.is_multiple_of(ALIGN)
    }

    /// Position of the first byte of segment `index`.
    pub const fn first_lsn(self, index: u64) -> u64 {
        index << self.shift
    }
}

/// Whose log it is. A segment of another identity is refused, never cut or overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Drawn when the cluster's first data directory was formatted.
    pub cluster_id: [u8; 16],
    /// Drawn when this data directory was formatted.
    pub node_id: u64,
    /// Number of the log in the data directory.
    pub log: u32,
}

/// First bytes of a segment in use. A spare has zeros in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose log it is.
    pub identity: NodeIdentity,
    /// Start of the process that began the segment; counts up with each.
    pub incarnation: u64,
    /// Position of the segment's first byte.
    pub first_lsn: u64,
    /// Random at each use of a file; every frame repeats it, so stale frames never match.
    pub salt: u64,
    /// Bytes of the segment.
    pub segment_bytes: u64,
    /// Header CRC of the previous segment's last frame; 0 in the first segment of a log.
    pub prev_crc: u32,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Nothing but zeros: never written, or cut.
    Zero,
    /// No magic, or a bad CRC.
    Invalid,
    /// Whole, but of a format that this program does not know.
    Version(u32),
}

impl SegmentHeader {
    /// Writes the header at the front of `out`, zeros behind it, [`SEGMENT_HEADER_BYTES`] in all.
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..SEGMENT_HEADER_BYTES];
        out.fill(0);
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.identity.log.to_le_bytes());
        out[16..32].copy_from_slice(&self.identity.cluster_id);
        out[32..40].copy_from_slice(&self.identity.node_id.to_le_bytes());
        out[40..48].copy_from_slice(&self.incarnation.to_le_bytes());
        out[48..56].copy_from_slice(&self.first_lsn.to_le_bytes());
        out[56..64].copy_from_slice(&self.salt.to_le_bytes());
        out[64..72].copy_from_slice(&self.segment_bytes.to_le_bytes());
        out[72..76].copy_from_slice(&self.prev_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..SEGMENT_HEADER_CRC_AT]);
        out[76..80].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the header at the front of `bytes`; a short slice counts as zeros beyond its end.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let page = &bytes[..bytes.len().min(SEGMENT_HEADER_BYTES)];
        if page.iter().all(|byte| *byte == 0) {
            return Err(HeaderFault::Zero);
        }
        if page.len() < SEGMENT_HEADER_CRC_AT + 4 || page[0..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Invalid);
        }
        let crc = crc32fast::hash(&page[..SEGMENT_HEADER_CRC_AT]);
        if u32_at(page, SEGMENT_HEADER_CRC_AT) != crc {
            return Err(HeaderFault::Invalid);
        }
        let version = u32_at(page, 8);
        if version != FORMAT_VERSION {
            return Err(HeaderFault::Version(version));
        }
        let mut cluster_id = [0; 16];
        cluster_id.copy_from_slice(&page[16..32]);
        Ok(Self {
            identity: NodeIdentity {
                cluster_id,
                node_id: u64_at(page, 32),
                log: u32_at(page, 12),
            },
            incarnation: u64_at(page, 40),
            first_lsn: u64_at(page, 48),
            salt: u64_at(page, 56),
            segment_bytes: u64_at(page, 64),
            prev_crc: u32_at(page, 72),
        })
    }
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// Records of shards.
    Data = 1,
    /// A HEADS record only: carries the watermark forward after a quiet moment.
    Seal = 2,
    /// A checkpoint's mark. Reserved: nothing writes it yet, recovery steps over it.
    Checkpoint = 3,
    /// A HEADS record only: the segment ends here, the log goes on in the next.
    End = 4,
}

impl FrameKind {
    const fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Seal),
            3 => Some(Self::Checkpoint),
            4 => Some(Self::End),
            _ => None,
        }
    }
}

/// What the log decides about a frame when it gets its place; the rest the frame knows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Position of its first byte.
    pub lsn: u64,
    /// Highest position known durable as the frame is written; never above `lsn`.
    pub synced_lsn: u64,
    /// Salt of its segment.
    pub salt: u64,
    /// Header CRC of the frame before it.
    pub prev_crc: u32,
}

/// A decoded frame header whose own CRC was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// CRC of the header's other bytes; it covers `body_crc` and so the whole frame.
    pub hdr_crc: u32,
    /// CRC of the body.
    pub body_crc: u32,
    /// Bytes of the body: a multiple of 8.
    pub body_len: u32,
    /// Kind, as written (see [`FrameHeader::kind`]).
    pub kind_code: u16,
    /// Records in the body.
    pub records: u16,
    /// Position of the frame's first byte.
    pub lsn: u64,
    /// Highest position known durable when the frame was written.
    pub synced_lsn: u64,
    /// Salt of its segment.
    pub salt: u64,
    /// Header CRC of the frame before it; of the first frame in a segment, the segment header's.
    pub prev_crc: u32,
}

impl FrameHeader {
    /// Reads the header at the front of `bytes`; None when they are too few, the CRC is bad or the
    /// length is impossible.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES)?;
        let hdr_crc = u32_at(bytes, 0);
        if crc32fast::hash(&bytes[4..]) != hdr_crc {
            return None;
        }
        let body_len = u32_at(bytes, 8);
        let whole = (body_len as usize).checked_add(FRAME_HEADER_BYTES)?;
        if whole > FRAME_BYTES_MAX || !whole.is_multiple_of(ALIGN) {
            return None;
        }
        Some(Self {
            hdr_crc,
            body_crc: u32_at(bytes, 4),
            body_len,
            kind_code: u16_at(bytes, 12),
            records: u16_at(bytes, 14),
            lsn: u64_at(bytes, 16),
            synced_lsn: u64_at(bytes, 24),
            salt: u64_at(bytes, 32),
            prev_crc: u32_at(bytes, 40),
        })
    }

    /// Completes `frame`, whose first [`FRAME_HEADER_BYTES`] are reserved and whose body is final.
    /// Returns the header's CRC, which the next frame repeats.
    pub(super) fn seal(frame: &mut [u8], records: u16, placement: &Placement) -> u32 {
        seal_records(frame, placement);
        let (header, body) = frame.split_at_mut(FRAME_HEADER_BYTES);
        let body_len = body.len() as u32; // at most FRAME_BYTES_MAX, which the builder keeps
        header[4..8].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        header[8..12].copy_from_slice(&body_len.to_le_bytes());
        header[12..14].copy_from_slice(&(placement.kind as u16).to_le_bytes());
        header[14..16].copy_from_slice(&records.to_le_bytes());
        header[16..24].copy_from_slice(&placement.lsn.to_le_bytes());
        header[24..32].copy_from_slice(&placement.synced_lsn.to_le_bytes());
        header[32..40].copy_from_slice(&placement.salt.to_le_bytes());
        header[40..44].copy_from_slice(&placement.prev_crc.to_le_bytes());
        header[44..48].fill(0);
        let hdr_crc = crc32fast::hash(&header[4..]);
        header[0..4].copy_from_slice(&hdr_crc.to_le_bytes());
        hdr_crc
    }

    /// None when the frame is of a kind that this program does not know.
    pub const fn kind(&self) -> Option<FrameKind> {
        FrameKind::from_code(self.kind_code)
    }

    /// Bytes of header and body.
    pub const fn frame_len(&self) -> usize {
        FRAME_HEADER_BYTES + self.body_len as usize
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A batch of one shard's commands, each an item. `a` = unix milliseconds of the batch,
    /// `b` = items. One with index i cancels earlier ones of its shard with index ≥ i.
    Entry = 1,
    /// Term, vote and commit of a shard. Reserved for replication.
    HardState = 2,
    /// A shard's state. Reserved.
    Snapshot = 3,
    /// A shard's entries up to an index are no longer needed. Reserved.
    Compact = 4,
    /// Live messages moved by cleaning, each an item: the Append command as it first stood in an
    /// ENTRY. `index` = 0, `b` = items. Applying one twice changes nothing.
    Reloc = 5,
    /// Members of a shard's group. Reserved for replication.
    Conf = 6,
    /// The last ENTRY index of each shard placed so far: what proves, after damage, which shards
    /// lost nothing. Of no shard, `index` = 0, `a` = CRC-32 of the payload, `b` = shards.
    Heads = 7,
}

impl RecordKind {
    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Entry),
            2 => Some(Self::HardState),
            3 => Some(Self::Snapshot),
            4 => Some(Self::Compact),
            5 => Some(Self::Reloc),
            6 => Some(Self::Conf),
            7 => Some(Self::Heads),
            _ => None,
        }
    }
}

/// What stands before a record's payload, without the payload's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: RecordKind,
    /// Zero; for later.
    pub flags: u8,
    /// The shard that it belongs to.
    pub shard: u16,
    /// Replication term; 1 on a single node.
    pub term: u32,
    /// Dense per shard, from 1.
    pub index: u64,
    /// Meaning by kind.
    pub a: u64,
    /// Meaning by kind.
    pub b: u64,
}

impl RecordHeader {
    /// The header of a HEADS record with this payload.
    pub fn heads(payload: &[u8]) -> Self {
        Self {
            kind: RecordKind::Heads,
            flags: 0,
            shard: NO_SHARD,
            term: 0,
            index: 0,
            a: u64::from(crc32fast::hash(payload)),
            b: (payload.len() / HEAD_BYTES) as u64,
        }
    }

    /// Appends header, payload and padding; the header says how long the payload is. Its CRC is
    /// written when the frame's place is known.
    pub(super) fn encode_into(&self, payload: &[u8], out: &mut Vec<u8>) {
        let len = payload.len() as u32; // at most RECORD_PAYLOAD_BYTES_MAX, which the builder keeps
        let mut header = [0; RECORD_HEADER_BYTES];
        header[0..4].copy_from_slice(&len.to_le_bytes());
        header[4] = self.kind as u8;
        header[5] = self.flags;
        header[6..8].copy_from_slice(&self.shard.to_le_bytes());
        header[8..12].copy_from_slice(&self.term.to_le_bytes());
        header[16..24].copy_from_slice(&self.index.to_le_bytes());
        header[24..32].copy_from_slice(&self.a.to_le_bytes());
        header[32..40].copy_from_slice(&self.b.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        out.extend_from_slice(&[0; ALIGN][..align_up(payload.len()) - payload.len()]);
    }

    /// Reads the header of the record at position `lsn` of a segment with this salt: the header,
    /// and the bytes of the payload.
    pub(super) fn decode(bytes: &[u8], salt: u64, lsn: u64) -> Result<(Self, usize), RecordFault> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES).ok_or(RecordFault::Short)?;
        if u32_at(bytes, RECORD_CRC_AT) != record_crc(bytes, salt, lsn) {
            return Err(RecordFault::Header);
        }
        let kind = RecordKind::from_code(bytes[4]).ok_or(RecordFault::Kind(bytes[4]))?;
        let header = Self {
            kind,
            flags: bytes[5],
            shard: u16_at(bytes, 6),
            term: u32_at(bytes, 8),
            index: u64_at(bytes, 16),
            a: u64_at(bytes, 24),
            b: u64_at(bytes, 32),
        };
        Ok((header, u32_at(bytes, 0) as usize))
    }
}

/// CRC of a record's header: of the segment's salt, the record's position, and the header without
/// the CRC itself. Salt and position are what a sender of messages cannot know: bytes in a message
/// never pass for a record, even when a damaged body is searched for its records.
fn record_crc(header: &[u8], salt: u64, lsn: u64) -> u32 {
    let mut covered = [0; 16 + RECORD_HEADER_BYTES - 4];
    covered[0..8].copy_from_slice(&salt.to_le_bytes());
    covered[8..16].copy_from_slice(&lsn.to_le_bytes());
    covered[16..16 + RECORD_CRC_AT].copy_from_slice(&header[..RECORD_CRC_AT]);
    covered[16 + RECORD_CRC_AT..].copy_from_slice(&header[RECORD_CRC_AT + 4..RECORD_HEADER_BYTES]);
    crc32fast::hash(&covered)
}

/// Writes the CRCs of all record headers of a frame whose place is known.
fn seal_records(frame: &mut [u8], placement: &Placement) {
    let mut at = FRAME_HEADER_BYTES;
    while at < frame.len() {
        let header = &mut frame[at..at + RECORD_HEADER_BYTES];
        let crc = record_crc(header, placement.salt, placement.lsn + at as u64);
        header[RECORD_CRC_AT..RECORD_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        at += RECORD_HEADER_BYTES + align_up(u32_at(header, 0) as usize);
    }
    assert_eq!(at, frame.len(), "records fill their frame");
}

/// Why a body with a good CRC does not divide into records: it was written by another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// A header or payload runs past the end of the body.
    Short,
    /// A record's header does not have the CRC of its place.
    Header,
    /// A kind of record that this program does not know.
    Kind(u8),
    /// More or fewer records than the frame's header says.
    Count,
}

/// Visits the records in the `body` of a whole frame in order: header, offset of the payload in
/// the body, payload.
pub fn records<'a>(
    frame: &FrameHeader,
    body: &'a [u8],
    mut visit: impl FnMut(RecordHeader, usize, &'a [u8]),
) -> Result<(), RecordFault> {
    let body_lsn = frame.lsn.saturating_add(FRAME_HEADER_BYTES as u64);
    let mut at = 0;
    let mut found: u32 = 0;
    while at < body.len() {
        let lsn = body_lsn.saturating_add(at as u64);
        let (header, len) = RecordHeader::decode(&body[at..], frame.salt, lsn)?;
        let start = at + RECORD_HEADER_BYTES;
        let payload = body[start..].get(..len).ok_or(RecordFault::Short)?;
        visit(header, start, payload);
        at = start + align_up(len); // beyond the end only by padding that is missing
        found += 1;
    }
    if at != body.len() {
        return Err(RecordFault::Short);
    }
    if found != u32::from(frame.records) {
        return Err(RecordFault::Count);
    }
    Ok(())
}

/// A HEADS payload that is no whole number of entries: another program wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a record of shard heads has {len} bytes, which is no multiple of {HEAD_BYTES}; run the \
     program that wrote this log"
)]
pub struct HeadsError {
    /// Bytes of the payload.
    pub len: usize,
}

/// Appends the payload of a HEADS record: shard and its last ENTRY index, of each shard.
pub fn heads_encode(heads: impl IntoIterator<Item = (u16, u64)>, out: &mut Vec<u8>) {
    for (shard, index) in heads {
        let mut head = [0; HEAD_BYTES];
        head[0..2].copy_from_slice(&shard.to_le_bytes());
        head[8..16].copy_from_slice(&index.to_le_bytes());
        out.extend_from_slice(&head);
    }
}

/// Shard and last ENTRY index of each shard in the payload of a HEADS record.
pub fn heads(payload: &[u8]) -> Result<impl Iterator<Item = (u16, u64)> + '_, HeadsError> {
    let len = payload.len();
    if !len.is_multiple_of(HEAD_BYTES) {
        return Err(HeadsError { len });
    }
    let heads = payload.chunks_exact(HEAD_BYTES);
    Ok(heads.map(|head| (u16_at(head, 0), u64_at(head, 8))))
}

#[cfg(test)]
mod tests {
    use super::super::FrameBuilder;
    use super::*;

    const PLACEMENT: Placement = Placement {
        kind: FrameKind::Data,
        lsn: 4096,
        synced_lsn: 4096,
        salt: 77,
        prev_crc: 5,
    };

    fn entry(index: u64) -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Entry,
            flags: 0,
            shard: 9,
            term: 1,
            index,
            a: 2,
            b: 3,
        }
    }

    fn frame() -> Vec<u8> {
        let mut builder = FrameBuilder::new();
        builder.record(entry(1), b"one");
        builder.record(entry(2), b"");
        let (mut payload, mut bytes) = (Vec::new(), Vec::new());
        heads_encode([(9, 2), (3, u64::MAX)], &mut payload);
        builder.record(RecordHeader::heads(&payload), &payload);
        builder.finish_into(&PLACEMENT, &mut bytes);
        bytes
    }

    #[test]
    fn records_come_back_as_they_were_put_in() {
        let bytes = frame();
        let header = FrameHeader::decode(&bytes).unwrap();
        let mut found = Vec::new();
        records(
            &header,
            &bytes[FRAME_HEADER_BYTES..],
            |header, at, payload| {
                assert_eq!(&bytes[FRAME_HEADER_BYTES + at..][..payload.len()], payload);
                found.push((header, payload));
            },
        )
        .unwrap();
        assert_eq!(found[..2], [(entry(1), &b"one"[..]), (entry(2), &b""[..])]);
        let all: Vec<_> = heads(found[2].1).unwrap().collect();
        assert_eq!(all, [(9, 2), (3, u64::MAX)]);
        assert_eq!((found[2].0.kind, found[2].0.b), (RecordKind::Heads, 2));
    }

    /// R: D-1
    #[test]
    fn one_flipped_bit_anywhere_in_a_record_header_is_noticed() {
        let mut bytes = frame();
        let lsn = PLACEMENT.lsn + FRAME_HEADER_BYTES as u64;
        for bit in 0..RECORD_HEADER_BYTES * 8 {
            bytes[FRAME_HEADER_BYTES + bit / 8] ^= 1 << (bit % 8);
            let found = RecordHeader::decode(&bytes[FRAME_HEADER_BYTES..], PLACEMENT.salt, lsn);
            assert_eq!(found, Err(RecordFault::Header), "bit {bit}");
            bytes[FRAME_HEADER_BYTES + bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// R: D-2. A message that contains a copied record never becomes one.
    #[test]
    fn a_record_is_none_at_another_place_or_under_another_salt() {
        let bytes = frame();
        let record = &bytes[FRAME_HEADER_BYTES..];
        let lsn = PLACEMENT.lsn + FRAME_HEADER_BYTES as u64;
        assert!(RecordHeader::decode(record, PLACEMENT.salt, lsn).is_ok());
        assert!(RecordHeader::decode(record, PLACEMENT.salt, lsn + 8).is_err());
        assert!(RecordHeader::decode(record, PLACEMENT.salt + 1, lsn).is_err());
    }

    #[test]
    fn heads_that_are_no_whole_number_of_entries_are_refused() {
        let refused = heads(&[0; 17]).map(Iterator::count);
        assert_eq!(refused, Err(HeadsError { len: 17 }));
        assert_eq!(heads(&[]).map(Iterator::count), Ok(0));
    }
}
