//! What a log holds after a crash: the scan, and the decision between a torn tail and damage.
//!
//! The scan walks frame by frame. At the first frame that cannot be believed, position x, all
//! rests on one question: *had x been durable?* Every frame says, in `synced_lsn`, how far the log
//! was durable when it was written. So the bytes behind x are searched, in 8-byte steps and through
//! all later segments, for an intact frame header that belongs there:
//! ```text
//!  … │ good │ bad at x │ ? ? ? │ frame with synced_lsn > x │      x had been durable: a hole
//!  … │ good │ bad at x │ ? ? ? │ only synced_lsn ≤ x …            torn tail: cut at x
//! ```
//! At or after the x of a torn tail nothing was ever promised. "Cut at the first bad CRC" without
//! the question silently drops everything behind one flipped bit.
//!
//! A hole is told to the visitor, and the scan goes on behind it, at the next header that can be
//! believed, to the true end. Inside a hole each record is judged alone: its header has a CRC that
//! knows its place, its items have theirs. Who applies the records decides what the hole means:
//! entry indexes are dense, so a shard whose next entry follows its last one lost nothing.
//!
//! A segment's header is written together with its first frame and is judged like a frame at the
//! segment's first position. It is written after the END before it was synced, so a whole segment
//! header proves all segments before it.
//!
//! This file decides; cutting (writing zeros, syncing) is the shell's.

use super::format::{
    FrameHeader, FrameKind, HeaderFault, NodeIdentity, RecordFault, RecordHeader, SegmentHeader,
    SegmentSize, records,
};
use super::limits::{ALIGN, FRAME_HEADER_BYTES, HOLES_MAX, SEGMENT_HEADER_BYTES};
use super::part::{Part, Stop, ZEROS};
use crate::planted::{self, Bug};

/// Bytes of the blocks in which leftovers behind a torn tail are found and zeroed.
pub const CUT_BLOCK_BYTES: usize = 4096;

/// Where a scan begins, and whose log it expects.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Size of the segments.
    pub size: SegmentSize,
    /// Whose log it is.
    pub identity: NodeIdentity,
    /// Where the scan begins: a segment's first position, or that of a frame inside a segment. All
    /// before it had been durable.
    pub lsn: u64,
    /// Header CRC of the frame before it; 0 at the beginning of a log.
    pub prev_crc: u32,
    /// All below is known to have been durable, from elsewhere (the superblock); 0: nothing is
    /// known. A log that ends before it has a hole at its end.
    pub durable: u64,
    /// The segments that begin below this are known to have been made, each at its full size, before
    /// anything was written to them; 0: nothing is known. One of them that is not there, or whose file
    /// is shorter, may have held anything.
    pub made: u64,
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
    /// The segment's file ends too early: it had its full size before it was first written to.
    SegmentShort,
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
    /// The body runs over the end of the segment, or of its file.
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
            Self::SegmentShort => write!(f, "the segment's file is shorter than it was made"),
            Self::SegmentHeader => write!(f, "the segment header's crc is wrong"),
            Self::SegmentChain => write!(f, "the segment does not continue the one before it"),
            Self::Zero => write!(f, "there are zeros in place of a frame"),
            Self::Header => write!(f, "the frame header's crc is wrong"),
            Self::Stale => write!(f, "the frame belongs to another place or use of the file"),
            Self::Length => write!(f, "the frame runs over the end of the segment or its file"),
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

/// What a scan shows, in the order of the log. A hole comes before the records in it and behind it.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// A record as it was written: of a whole frame, or in a hole and proven by its own CRCs (an
    /// ENTRY or RELOC all of whose `b` items are whole, a HEADS).
    Record(Recovered<'a>),
    /// A record in a hole: its header is as it was written, its payload is not, or cannot be proven.
    Broken(Recovered<'a>),
    /// Bytes that had been durable are not what they were.
    Hole(Hole),
}

/// Damage: bytes that had been durable and cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Position of the first frame, or segment header, that cannot be believed.
    pub from: u64,
    /// Position where the scan goes on. Equal to `from` when all bytes are whole, but what follows
    /// does not continue what was before.
    pub to: u64,
    /// What is wrong at `from`.
    pub fault: Fault,
    /// Position of the later header that proves it, or what was known to be durable.
    pub proof_lsn: u64,
    /// How far the log had been durable, by that proof.
    pub proof_synced_lsn: u64,
    /// Records that were in the hole and of which nothing is seen, not counting a HEADS; None:
    /// nobody knows how many.
    pub records_missing: Option<u32>,
}

/// Why a log cannot be used as it is. Nothing may be cut or overwritten then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// Over [`HOLES_MAX`] holes: this is no rotten bit, but another file or a dying disk.
    TooMuch {
        /// Position of the hole that was one too many.
        at: u64,
    },
    /// A whole segment header of another node, log, position or segment size.
    Foreign {
        /// Position that the segment was expected to begin at.
        at: u64,
        /// What it says.
        found: SegmentHeader,
    },
    /// A segment that ends behind the last position of all; a log stops long before.
    Beyond {
        /// Position of the segment.
        at: u64,
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
    ///
    /// With holes: before anything is zeroed, the superblock must say that all up to here had been
    /// durable, for the frame that proves the last hole may be among what is zeroed.
    pub end: u64,
    /// Header CRC of the last frame.
    pub prev_crc: u32,
    /// Salt of the segment that `end` lies in; None when that segment has no header yet.
    pub salt: Option<u64>,
    /// Kind of the last frame; None when there is none.
    pub last_kind: Option<FrameKind>,
    /// Highest `synced_lsn` of any frame. Damage behind it cannot be told from a torn tail.
    pub watermark: u64,
    /// Whole frames found.
    pub frames: u64,
    /// Records found, those proven in holes included.
    pub records: u64,
    /// Holes found.
    pub holes: u32,
    /// What stands at `end`. Only zeros there are no sign of a crash.
    pub fault: Fault,
    /// The segment of `end` has no whole header, and once all behind `end` is zeroed nothing in it
    /// would tell its salt any more. It must get a header first, with this `prev_crc` and `salt`, and
    /// be synced: else the next scan would not find what this one has found.
    pub lost_header: Option<u32>,
}

/// Walks a log from `origin` to its end; `visit` sees all there is, in order.
///
/// `segments` are numbered, in rising order; those before the origin's are not looked at. One that
/// is missing where the log goes on is a hole when there is a later one, written or not, or when it is
/// known to have been made; one whose file ends there too early, when that or its bytes say that it was
/// in use.
///
/// # Panics
/// When the segments do not rise, or the origin is no place of a frame.
pub fn scan<'a>(
    origin: &Origin,
    segments: &[(u64, &'a [u8])],
    visit: &mut dyn FnMut(Seen<'a>),
) -> Result<Tail, ScanError> {
    assert!(
        origin.size.is_place(origin.lsn),
        "a scan begins with a segment or a frame"
    );
    let mut scan = Scan {
        size: origin.size,
        floor: origin.durable.max(origin.lsn),
        made: origin.made,
        parts: parts(origin, segments)?,
        proof: None,
        is_chained: true,
        tail: Tail {
            end: origin.lsn,
            prev_crc: origin.prev_crc,
            salt: None,
            last_kind: None,
            watermark: 0,
            frames: 0,
            records: 0,
            holes: 0,
            fault: Fault::SegmentUnused,
            lost_header: None,
        },
        opening_crc: origin.prev_crc,
        visit,
    };
    scan.run()?;
    scan.tail.lost_header = scan.is_headless().then_some(scan.opening_crc);
    Ok(scan.tail)
}

/// All headers first: a foreign segment is refused wherever it stands.
fn parts<'a>(origin: &Origin, segments: &[(u64, &'a [u8])]) -> Result<Vec<Part<'a>>, ScanError> {
    let rising = segments.windows(2).all(|pair| pair[0].0 < pair[1].0);
    assert!(rising, "segments in rising order");
    let mut parts = Vec::with_capacity(segments.len());
    for &(index, bytes) in segments {
        if index < origin.size.index_of(origin.lsn) {
            continue;
        }
        let at = origin.size.first_lsn(index);
        if index >= origin.size.index_of(u64::MAX) {
            return Err(ScanError::Beyond { at });
        }
        let header = match SegmentHeader::decode(bytes) {
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
        };
        parts.push(Part::new(origin.size, index, bytes, header));
    }
    Ok(parts)
}

/// What says that a position had been durable.
#[derive(Clone, Copy)]
struct Proof {
    lsn: u64,
    synced_lsn: u64,
}

struct Scan<'a, 'v> {
    size: SegmentSize,
    /// All below is known to have been durable.
    floor: u64,
    /// Segments that begin below had been made, at their full size.
    made: u64,
    parts: Vec<Part<'a>>,
    /// The last proof found; it may serve for the next hole too.
    proof: Option<Proof>,
    /// The next frame must continue `tail.prev_crc`. Not behind a hole.
    is_chained: bool,
    /// `tail.end` is where the scan is.
    tail: Tail,
    /// `tail.prev_crc` as it was at the first position of the tail's segment.
    opening_crc: u32,
    visit: &'v mut dyn FnMut(Seen<'a>),
}

impl<'a> Scan<'a, '_> {
    /// Every turn passes a segment's END or a hole, or ends at the tail.
    fn run(&mut self) -> Result<(), ScanError> {
        loop {
            let number = self.number_of(self.tail.end);
            let (fault, frame) = match number {
                Some(number) => match self.walk(number)? {
                    Some((fault, frame)) => (self.note_short(number).unwrap_or(fault), frame),
                    None => continue,
                },
                None => {
                    self.note_missing();
                    (Fault::SegmentUnused, None)
                }
            };
            let Some(proof) = self.proven(self.tail.end) else {
                self.tail.fault = fault;
                return Ok(());
            };
            self.pass(fault, frame, proof)?;
        }
    }

    /// The log goes on in a segment that is not there, and a later one is or was made: then it was
    /// there, too, since segments are made in order, each durable before the next. What it held cannot
    /// be known.
    fn note_missing(&mut self) {
        let index = self.size.index_of(self.tail.end);
        let next = self.parts.iter().find(|part| part.index > index);
        let was_there = next.map_or(self.made, |part| self.size.first_lsn(part.index));
        if was_there > self.tail.end {
            self.floor = self.floor.max(was_there);
        }
    }

    /// The log goes on in a segment whose file ends too early. No crash does that to a segment that may
    /// have been written to: what is cut off cannot be known.
    fn note_short(&mut self, number: usize) -> Option<Fault> {
        let part = &self.parts[number];
        let is_short = (part.bytes.len() as u64) < self.size.bytes();
        if !is_short || part.end_lsn() > self.made && part.salt().is_none() {
            return None;
        }
        self.floor = self.floor.max(part.end_lsn());
        Some(Fault::SegmentShort)
    }

    /// Which of the parts is the segment of a position.
    fn number_of(&self, position: u64) -> Option<usize> {
        let index = self.size.index_of(position);
        let found = self.parts.binary_search_by_key(&index, |part| part.index);
        found.ok()
    }

    /// Takes the good frames of a segment into the tail. None: its END was found.
    fn walk(&mut self, number: usize) -> Result<Option<Stop>, ScanError> {
        if self.size.offset_of(self.tail.end) == 0 {
            self.opening_crc = self.tail.prev_crc;
            let header = match self.parts[number].header {
                Ok(header) => header,
                Err(fault) => return Ok(Some((fault, None))),
            };
            if self.is_chained && header.prev_crc != self.tail.prev_crc {
                return Ok(Some((Fault::SegmentChain, None)));
            }
            self.tail.prev_crc = header.prev_crc;
            self.is_chained = true;
            self.tail.end += SEGMENT_HEADER_BYTES as u64;
        }
        let Some(salt) = self.parts[number].salt() else {
            let fault = self.parts[number].header.err();
            return Ok(Some((fault.unwrap_or(Fault::SegmentHeader), None)));
        };
        self.tail.salt = Some(salt);
        loop {
            let (frame, body) = match self.frame_at(number, salt) {
                Ok(found) => found,
                Err(stop) => return Ok(Some(stop)),
            };
            self.take(&frame, body)?;
            self.behind(&frame);
            if frame.kind() == Some(FrameKind::End) {
                return Ok(None);
            }
        }
    }

    /// The frame at the tail, if everything about it is right.
    fn frame_at(&self, number: usize, salt: u64) -> Result<(FrameHeader, &'a [u8]), Stop> {
        let offset = self.size.offset_of(self.tail.end);
        let prev_crc = self.is_chained.then_some(self.tail.prev_crc);
        self.parts[number].frame_at(offset, salt, prev_crc)
    }

    /// Shows the records of a whole frame.
    fn take(&mut self, frame: &FrameHeader, body: &'a [u8]) -> Result<(), ScanError> {
        let at = frame.lsn;
        let malformed = |fault| ScanError::Malformed { at, fault };
        let kind = frame.kind().ok_or(malformed(None))?;
        if kind != FrameKind::Checkpoint {
            let body_lsn = at + FRAME_HEADER_BYTES as u64;
            records(frame, body, |record, start, payload| {
                let lsn_of_payload = body_lsn + start as u64;
                (self.visit)(Seen::Record(Recovered {
                    lsn_of_payload,
                    record,
                    payload,
                }));
            })
            .map_err(|fault| malformed(Some(fault)))?;
            self.tail.records += u64::from(frame.records);
        }
        self.tail.frames += 1;
        Ok(())
    }

    /// Goes behind a frame whose header is whole.
    fn behind(&mut self, frame: &FrameHeader) {
        self.tail.end = frame.lsn + frame.frame_len() as u64;
        self.tail.prev_crc = frame.hdr_crc;
        self.is_chained = true;
        self.tail.last_kind = frame.kind();
        self.tail.watermark = self.tail.watermark.max(frame.synced_lsn);
        if frame.kind() == Some(FrameKind::End) {
            self.tail.end = self.size.first_lsn(self.size.index_of(frame.lsn) + 1);
            self.tail.salt = None;
        }
    }

    /// Whether the tail's segment says its salt only with what is to be zeroed.
    fn is_headless(&self) -> bool {
        let offset = self.size.offset_of(self.tail.end);
        let number = self.number_of(self.tail.end);
        let part = number.map(|number| &self.parts[number]);
        part.is_some_and(|part| offset > 0 && part.before(offset).salt() != self.tail.salt)
    }

    /// What proves that `doubted` had been durable, if anything does.
    fn proven(&mut self, doubted: u64) -> Option<Proof> {
        // Where a scan begins inside a segment, the segment's header had been durable.
        let headless = self.size.offset_of(doubted) != 0 && self.tail.salt.is_none();
        if doubted < self.floor || headless && doubted == self.floor {
            return Some(Proof {
                lsn: self.floor,
                synced_lsn: self.floor,
            });
        }
        let serves = |proof: &Proof| proof.lsn > doubted && proof.synced_lsn > doubted;
        if !self.proof.as_ref().is_some_and(serves) {
            self.proof = self.search_proof(doubted);
        }
        self.proof
    }

    fn search_proof(&self, doubted: u64) -> Option<Proof> {
        if planted::is(Bug::DamageCut) {
            return None;
        }
        let index = self.size.index_of(doubted);
        for part in self.parts.iter().filter(|part| part.index >= index) {
            let first_lsn = self.size.first_lsn(part.index);
            if part.index > index && part.header.is_ok() {
                return Some(Proof {
                    lsn: first_lsn,
                    synced_lsn: first_lsn,
                });
            }
            let mut from = SEGMENT_HEADER_BYTES;
            if doubted >= first_lsn + from as u64 {
                // The bad frame says nothing about itself: its synced_lsn is not above its lsn.
                from = (doubted - first_lsn) as usize + ALIGN;
            }
            let salt = part.salt();
            let found = part.find(from, salt, |frame| frame.synced_lsn > doubted);
            if let Some(frame) = found {
                return Some(Proof {
                    lsn: frame.lsn,
                    synced_lsn: frame.synced_lsn,
                });
            }
        }
        None
    }

    /// Tells the hole at the tail, shows what is left in it, and goes behind it.
    fn pass(
        &mut self,
        fault: Fault,
        frame: Option<FrameHeader>,
        proof: Proof,
    ) -> Result<(), ScanError> {
        let from = self.tail.end;
        self.tail.holes += 1;
        if self.tail.holes > HOLES_MAX {
            return Err(ScanError::TooMuch { at: from });
        }
        let mut hole = Hole {
            from,
            to: from,
            fault,
            proof_lsn: proof.lsn,
            proof_synced_lsn: proof.synced_lsn,
            records_missing: None,
        };
        if let Some(frame) = frame {
            hole.to = from + frame.frame_len() as u64;
            hole.records_missing = Some(self.missing_in(&frame));
            (self.visit)(Seen::Hole(hole));
            self.show_survivors(from + FRAME_HEADER_BYTES as u64, hole.to);
            self.behind(&frame);
            self.is_chained = false; // an earlier recovery may have seen less of this frame
            return Ok(());
        }
        let mut header_only = false;
        if !matches!(fault, Fault::Chain | Fault::SegmentChain) {
            hole.to = self.next_believable(from);
            let behind_header = from + SEGMENT_HEADER_BYTES as u64;
            header_only = self.size.offset_of(from) == 0 && hole.to == behind_header;
            hole.records_missing = header_only.then_some(0);
        }
        (self.visit)(Seen::Hole(hole));
        self.show_survivors(from, hole.to);
        self.tail.end = hole.to;
        self.is_chained &= header_only; // then the first frame repeats what END had
        let inside = self.size.offset_of(hole.to) != 0;
        let part = self.number_of(hole.to).filter(|_| inside);
        self.tail.salt = part.and_then(|number| self.parts[number].salt());
        Ok(())
    }

    /// Records of a frame with a bad body of which not even the header is left.
    fn missing_in(&self, frame: &FrameHeader) -> u32 {
        if matches!(frame.kind(), Some(FrameKind::Seal | FrameKind::End)) {
            return 0; // only a HEADS
        }
        let mut seen: u32 = 0;
        let from = frame.lsn + FRAME_HEADER_BYTES as u64;
        let to = frame.lsn + frame.frame_len() as u64;
        survivors(&self.parts, self.size, from, to, &mut |_, _| seen += 1);
        u32::from(frame.records).saturating_sub(seen)
    }

    fn show_survivors(&mut self, from: u64, to: u64) {
        let mut proven = 0;
        let visit = &mut *self.visit;
        survivors(
            &self.parts,
            self.size,
            from,
            to,
            &mut |record, is_proven| {
                proven += u64::from(is_proven);
                visit(match is_proven {
                    true => Seen::Record(record),
                    false => Seen::Broken(record),
                });
            },
        );
        self.tail.records += proven;
    }

    /// The next position behind `from` where the log can be read again: a frame whose header is
    /// whole, a segment that has a header or such a frame, or else the end of what is known to have
    /// been durable.
    fn next_believable(&self, from: u64) -> u64 {
        let index = self.size.index_of(from);
        for part in self.parts.iter().filter(|part| part.index >= index) {
            let first_lsn = self.size.first_lsn(part.index);
            if part.index > index && part.header.is_ok() {
                return first_lsn;
            }
            let Some(salt) = part.salt() else { continue };
            let is_here = part.index == index;
            let offset = match is_here {
                true => SEGMENT_HEADER_BYTES.max(self.size.offset_of(from) + ALIGN),
                false => SEGMENT_HEADER_BYTES,
            };
            match part.find(offset, Some(salt), |_| true) {
                Some(frame) if is_here => return frame.lsn,
                Some(_) => return first_lsn, // its header is the next question
                None => {}
            }
        }
        let inside = self.size.offset_of(self.floor) >= SEGMENT_HEADER_BYTES;
        let part = self.number_of(self.floor).filter(|_| inside);
        let is_usable = part.is_some_and(|number| self.parts[number].salt().is_some());
        match is_usable || self.size.offset_of(self.floor) == 0 {
            true => self.floor,
            false => self.size.first_lsn(self.size.index_of(self.floor) + 1),
        }
    }
}

/// Shows the records between two positions: those in the segment of `from`, and in that of `to`.
/// A segment between them has nothing that could be believed.
fn survivors<'a>(
    parts: &[Part<'a>],
    size: SegmentSize,
    from: u64,
    to: u64,
    show: &mut dyn FnMut(Recovered<'a>, bool),
) {
    let (first, last) = (size.index_of(from), size.index_of(to));
    for part in parts {
        let start = match part.index == first {
            true => size.offset_of(from),
            false => 0,
        };
        if part.index == last {
            part.survivors(start..size.offset_of(to), show);
        } else if part.index == first {
            part.survivors(start..size.bytes() as usize, show);
        }
    }
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
