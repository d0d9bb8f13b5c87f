//! What a log holds after a crash: the scan, and the decision between a torn tail and damage.
//!
//! The scan walks frame by frame. At the first frame that cannot be believed, position x, all
//! rests on one question: *had x been durable?* Every frame says, in `synced_lsn`, how far the log
//! was durable when it was written. So the bytes behind x are searched, in 8-byte steps and through
//! all later segments, for an intact frame header that belongs there:
//! ```text
//!  … │ good │ bad at x │ ? ? ? │ frame with synced_lsn > x │      x had been durable: damage
//!  … │ good │ bad at x │ ? ? ? │ only synced_lsn ≤ x …            torn tail: cut at x
//! ```
//! At or after the x of a torn tail nothing was ever promised. "Cut at the first bad CRC" without
//! the question silently drops everything behind one flipped bit.
//!
//! A segment's header is written together with its first frame and is judged like a frame at the
//! segment's first position. A frame that opens a segment carries the end of the END frame before
//! it as `synced_lsn`, for END is synced before it is written.
//!
//! This file decides; cutting (writing zeros, syncing) is the shell's.

use super::format::{
    FrameHeader, FrameKind, HeaderFault, NodeIdentity, RecordFault, RecordHeader, SegmentHeader,
    SegmentSize, records, u64_at,
};
use super::limits::{ALIGN, FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES};

/// Bytes of the blocks in which leftovers behind a torn tail are found and zeroed.
pub const CUT_BLOCK_BYTES: usize = 4096;
/// Comparing with it is the fastest way to know a block of zeros.
static ZEROS: [u8; CUT_BLOCK_BYTES] = [0; CUT_BLOCK_BYTES];

/// Where a scan begins, and whose log it expects.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Size of the segments.
    pub size: SegmentSize,
    /// Whose log it is.
    pub identity: NodeIdentity,
    /// Number of the first segment given to the scan.
    pub index: u64,
    /// Header CRC of the frame before it; 0 at the beginning of a log.
    pub prev_crc: u32,
}

/// One record, as found.
#[derive(Clone, Copy, Debug)]
pub struct Recovered<'a> {
    /// Position of the payload's first byte.
    pub lsn_of_payload: u64,
    /// The record's header.
    pub record: RecordHeader,
    /// The record's payload.
    pub payload: &'a [u8],
}

/// Why the bytes at a position cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The segment is missing, or has zeros instead of a header.
    SegmentUnused,
    /// The segment's header is not whole.
    SegmentHeader,
    /// The segment's header does not continue the segment before it.
    SegmentChain,
    /// No frame: zeros.
    Zero,
    /// The frame's header is not whole.
    Header,
    /// A whole header that belongs elsewhere: other salt or other position.
    Stale,
    /// The body runs over the end of the segment.
    Length,
    /// The body's CRC does not fit.
    Body {
        /// CRC in the header.
        stored: u32,
        /// CRC of the bytes.
        computed: u32,
    },
    /// A whole frame that does not continue the one before it.
    Chain,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SegmentUnused => write!(f, "the segment is missing or empty"),
            Self::SegmentHeader => write!(f, "the segment header's crc is wrong"),
            Self::SegmentChain => write!(f, "the segment does not continue the one before it"),
            Self::Zero => write!(f, "there are zeros in place of a frame"),
            Self::Header => write!(f, "the frame header's crc is wrong"),
            Self::Stale => write!(f, "the frame belongs to another place or use of the file"),
            Self::Length => write!(f, "the frame runs over the end of the segment"),
            Self::Body { stored, computed } => {
                write!(
                    f,
                    "the frame has stored crc {stored:#010x}, computed {computed:#010x}"
                )
            }
            Self::Chain => write!(f, "the frame does not continue the one before it"),
        }
    }
}

/// Why a log cannot be used as it is. Nothing may be cut or overwritten then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// Bytes that had been durable are not what they were.
    Damaged {
        /// Position of the first frame (or segment header) that cannot be believed.
        at: u64,
        /// What is wrong with it.
        fault: Fault,
        /// Position of the later frame that proves it.
        proof_lsn: u64,
        /// What that frame says to have been durable.
        proof_synced_lsn: u64,
    },
    /// A whole segment header of another node, log, position or segment size.
    Foreign {
        /// Position that the segment was expected to begin at.
        at: u64,
        /// What it says.
        found: SegmentHeader,
    },
    /// A segment of another format version.
    Version {
        /// Position of the segment.
        at: u64,
        /// Its version.
        version: u32,
    },
    /// A frame with good CRCs that this program cannot read.
    Malformed {
        /// Position of the frame.
        at: u64,
        /// What is wrong; None: the kind of the frame is unknown.
        fault: Option<RecordFault>,
    },
}

/// The end of a log that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Position behind the last frame; the next frame goes here. At a segment's first position: the
    /// next frame brings the segment's header along. Whatever lies behind must be zeroed.
    pub end: u64,
    /// Header CRC of the last frame.
    pub prev_crc: u32,
    /// Salt of the segment that `end` lies in; None when that segment has no header yet.
    pub salt: Option<u64>,
    /// Kind of the last frame; None when there is none.
    pub last_kind: Option<FrameKind>,
    /// Highest `synced_lsn` of any frame. Damage behind it cannot be told from a torn tail.
    pub watermark: u64,
    /// Frames found.
    pub frames: u64,
    /// Records found.
    pub records: u64,
    /// What stands at `end`. Only zeros there are no sign of a crash.
    pub fault: Fault,
}

/// Walks a log from `origin` to its end; `visit` sees each record in order. Records seen before an
/// error were good. `segments` are consecutive; a short or empty one counts as zeros past its end.
pub fn scan<'a>(
    origin: &Origin,
    segments: &[&'a [u8]],
    visit: &mut dyn FnMut(Recovered<'a>),
) -> Result<Tail, ScanError> {
    let headers = headers(origin, segments)?;
    let mut tail = Tail {
        end: origin.size.first_lsn(origin.index),
        prev_crc: origin.prev_crc,
        salt: None,
        last_kind: None,
        watermark: 0,
        frames: 0,
        records: 0,
        fault: Fault::SegmentUnused,
    };
    for (number, bytes) in segments.iter().enumerate() {
        let stopped = match headers[number] {
            Err(fault) => Some(fault),
            Ok(header) if header.prev_crc != tail.prev_crc => Some(Fault::SegmentChain),
            Ok(header) => scan_segment(origin.size, bytes, &header, &mut tail, visit)?,
        };
        let Some(fault) = stopped else { continue };
        tail.fault = fault;
        return match proof(origin, segments, &headers, number, &tail) {
            None => Ok(tail),
            Some(proof) => Err(ScanError::Damaged {
                at: tail.end,
                fault,
                proof_lsn: proof.lsn,
                proof_synced_lsn: proof.synced_lsn,
            }),
        };
    }
    Ok(tail)
}

/// All headers first: a foreign segment is refused wherever it stands.
fn headers(
    origin: &Origin,
    segments: &[&[u8]],
) -> Result<Vec<Result<SegmentHeader, Fault>>, ScanError> {
    let mut headers = Vec::with_capacity(segments.len());
    for (number, bytes) in segments.iter().enumerate() {
        let at = origin.size.first_lsn(origin.index + number as u64);
        headers.push(match SegmentHeader::decode(bytes) {
            Ok(found) => {
                let ours = found.identity == origin.identity
                    && found.first_lsn == at
                    && found.segment_bytes == origin.size.bytes();
                if !ours {
                    return Err(ScanError::Foreign { at, found });
                }
                Ok(found)
            }
            Err(HeaderFault::Zero) => Err(Fault::SegmentUnused),
            Err(HeaderFault::Invalid) => Err(Fault::SegmentHeader),
            Err(HeaderFault::Version(version)) => return Err(ScanError::Version { at, version }),
        });
    }
    Ok(headers)
}

/// Takes the good frames of one segment into `tail`. None: the segment is complete, its END found.
fn scan_segment<'a>(
    size: SegmentSize,
    bytes: &'a [u8],
    header: &SegmentHeader,
    tail: &mut Tail,
    visit: &mut dyn FnMut(Recovered<'a>),
) -> Result<Option<Fault>, ScanError> {
    let bytes = &bytes[..bytes.len().min(size.bytes() as usize)];
    tail.salt = Some(header.salt);
    tail.end = header.first_lsn + SEGMENT_HEADER_BYTES as u64;
    loop {
        let offset = (tail.end - header.first_lsn) as usize;
        let (frame, body) = match frame_at(bytes, offset, tail, header.salt) {
            Ok(found) => found,
            Err(fault) => return Ok(Some(fault)),
        };
        let at = tail.end;
        let malformed = |fault| ScanError::Malformed { at, fault };
        let kind = frame.kind().ok_or(malformed(None))?;
        if kind != FrameKind::Checkpoint {
            let body_lsn = at + FRAME_HEADER_BYTES as u64;
            records(&frame, body, |record, start, payload| {
                let lsn_of_payload = body_lsn + start as u64;
                visit(Recovered {
                    lsn_of_payload,
                    record,
                    payload,
                });
            })
            .map_err(|fault| malformed(Some(fault)))?;
            tail.records += u64::from(frame.records);
        }
        tail.end += frame.frame_len() as u64;
        tail.prev_crc = frame.hdr_crc;
        tail.last_kind = Some(kind);
        tail.watermark = tail.watermark.max(frame.synced_lsn);
        tail.frames += 1;
        if kind == FrameKind::End {
            tail.end = header.first_lsn + size.bytes();
            tail.salt = None;
            return Ok(None);
        }
    }
}

/// The frame at `tail.end`, if everything about it is right.
fn frame_at<'a>(
    bytes: &'a [u8],
    offset: usize,
    tail: &Tail,
    salt: u64,
) -> Result<(FrameHeader, &'a [u8]), Fault> {
    let rest = bytes.get(offset..).unwrap_or_default();
    let Some(frame) = FrameHeader::decode(rest) else {
        let header = &rest[..rest.len().min(FRAME_HEADER_BYTES)];
        let zero = header.iter().all(|byte| *byte == 0);
        return Err(if zero { Fault::Zero } else { Fault::Header });
    };
    if frame.salt != salt || frame.lsn != tail.end || frame.synced_lsn > frame.lsn {
        return Err(Fault::Stale);
    }
    let body = rest
        .get(FRAME_HEADER_BYTES..frame.frame_len())
        .ok_or(Fault::Length)?;
    let computed = crc32fast::hash(body);
    if computed != frame.body_crc {
        return Err(Fault::Body {
            stored: frame.body_crc,
            computed,
        });
    }
    if frame.prev_crc != tail.prev_crc {
        return Err(Fault::Chain);
    }
    Ok((frame, body))
}

/// A later frame that says that `tail.end` had been durable, if there is one.
fn proof(
    origin: &Origin,
    segments: &[&[u8]],
    headers: &[Result<SegmentHeader, Fault>],
    stopped: usize,
    tail: &Tail,
) -> Option<FrameHeader> {
    for number in stopped..segments.len() {
        let first_lsn = origin.size.first_lsn(origin.index + number as u64);
        // A frame repeats the salt of its segment. Without the header any salt will do: the
        // position alone tells a frame that belongs here.
        let salt = headers[number].ok().map(|header| header.salt);
        let mut from = SEGMENT_HEADER_BYTES;
        if tail.end >= first_lsn + from as u64 {
            // The bad frame says nothing about itself: its synced_lsn is not above its lsn.
            from = (tail.end - first_lsn) as usize + ALIGN;
        }
        let found = search(segments[number], from, first_lsn, salt, tail.end);
        if found.is_some() {
            return found;
        }
    }
    None
}

fn search(
    bytes: &[u8],
    from: usize,
    first_lsn: u64,
    salt: Option<u64>,
    doubted: u64,
) -> Option<FrameHeader> {
    const LSN_AT: usize = 16;
    let mut at = from;
    while at + FRAME_HEADER_BYTES <= bytes.len() {
        // No frame has lsn 0, so zeros are skipped by the block.
        let skipped = bytes.get(at + LSN_AT..at + LSN_AT + ZEROS.len());
        if at.is_multiple_of(ZEROS.len()) && skipped == Some(&ZEROS[..]) {
            at += ZEROS.len();
            continue;
        }
        // One comparison rejects nearly every place before a CRC is computed.
        if u64_at(bytes, at + LSN_AT) == first_lsn + at as u64
            && let Some(frame) = FrameHeader::decode(&bytes[at..])
            && salt.is_none_or(|salt| salt == frame.salt)
        {
            if frame.synced_lsn > doubted {
                return Some(frame);
            }
            let body = bytes.get(at + FRAME_HEADER_BYTES..at + frame.frame_len());
            if body.is_some_and(|body| crc32fast::hash(body) == frame.body_crc) {
                at += frame.frame_len();
                continue;
            }
        }
        at += ALIGN;
    }
    None
}

/// Visits what a cut at offset `from` must zero: ranges `(offset, len)` within blocks of
/// [`CUT_BLOCK_BYTES`] that hold anything but zeros.
pub fn leftovers(bytes: &[u8], from: usize, mut visit: impl FnMut(usize, usize)) {
    let mut at = from;
    while at < bytes.len() {
        let block_end = (at / CUT_BLOCK_BYTES + 1) * CUT_BLOCK_BYTES;
        let end = block_end.min(bytes.len());
        if bytes[at..end] != ZEROS[..end - at] {
            visit(at, end - at);
        }
        at = end;
    }
}

#[cfg(test)]
mod tests;
