//! Segments of a log as an input of a fuzzer, and a second reading of their bytes, written from
//! `docs/LOG_FORMAT.md` alone.
//!
//! ```text
//!  input: count │ origin │ … │ lengths │ header, frames │ header, frames │ …
//! ```
//! The page of a segment's header is mostly zeros, so an input has its first bytes only.

use crate::log::recovery::Origin;
use crate::log::{NodeIdentity, SegmentSize};

pub const IDENTITY: NodeIdentity = NodeIdentity {
    cluster_id: [7; 16],
    node_id: 9,
    log: 1,
};
/// The smallest possible; inputs fill the front of such a segment, the rest counts as zeros.
pub const SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
/// Bytes of a segment header that mean anything.
pub const HEADER_BYTES: usize = 80;
/// Where frames begin.
pub const FRAMES_AT: usize = 4096;
pub const FRAME_HEADER_BYTES: usize = 48;
pub const RECORD_HEADER_BYTES: usize = 40;
/// Bytes at the front of an input, before the lengths.
const HEAD_BYTES: usize = 8;
const SEGMENTS_MAX: usize = 4;
/// Numbers of the first segment that an input may choose: the first of a log, some, and one so near the
/// last of all that the fourth segment is the one that must be refused, `ffffffffffe00000.seg`.
const FIRST_INDEXES: [u64; 4] = [0, 1, 1000, (u64::MAX >> 21) - 3];

pub fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT_BYTES).expect("a power of two")
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// One segment: its number and its bytes.
#[derive(Clone, Debug)]
pub struct Segment {
    pub index: u64,
    pub bytes: Vec<u8>,
}

/// What an input says.
#[derive(Clone, Debug)]
pub struct Input {
    pub origin: Origin,
    pub segments: Vec<Segment>,
    /// For a harvest: where to begin, and how much to read at once.
    pub from: usize,
    pub budget: usize,
}

/// Where the parts of an input lie in it: number of the segment, and its bytes.
fn places(data: &[u8]) -> Option<Vec<(u64, std::ops::Range<usize>)>> {
    let head = data.get(..HEAD_BYTES)?;
    let count = 1 + usize::from(head[0]) % SEGMENTS_MAX;
    let first = FIRST_INDEXES[usize::from(head[1]) % 4];
    let missing = head[7];
    let mut at = HEAD_BYTES + 2 * count;
    let mut places = Vec::with_capacity(count);
    for number in 0..count {
        let length = data.get(HEAD_BYTES + 2 * number..HEAD_BYTES + 2 * number + 2)?;
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        let end = match number + 1 == count {
            true => data.len(), // whatever is left, so that a mutated length loses nothing
            false => (at + length).min(data.len()),
        };
        if missing & (1 << number) == 0 {
            places.push((first + number as u64, at.min(end)..end));
        }
        at = end;
    }
    Some(places)
}

/// Reads an input. None: it is too short to say anything.
pub fn input(data: &[u8]) -> Option<Input> {
    let places = places(data)?;
    let head = &data[..HEAD_BYTES];
    let first = FIRST_INDEXES[usize::from(head[1]) % 4];
    let (flags, a, b) = (
        head[2],
        usize::from(u16::from_le_bytes([head[3], head[4]])),
        usize::from(u16::from_le_bytes([head[5], head[6]])),
    );
    let inside = FRAMES_AT + a % 2048 * 8;
    let origin = Origin {
        size: size(),
        identity: IDENTITY,
        lsn: size().first_lsn(first) + if flags & 1 != 0 { inside as u64 } else { 0 },
        prev_crc: if flags & 2 != 0 { a as u32 } else { 0 },
        durable: match flags & 4 != 0 {
            true => size().first_lsn(first).saturating_add(b as u64 * 64),
            false => 0,
        },
        made: match flags & 32 != 0 {
            true => size()
                .first_lsn(first)
                .saturating_add(b as u64 % 4 * size().bytes()),
            false => 0,
        },
    };
    let segments = places.into_iter().map(|(index, place)| {
        let packed = &data[place];
        let (header, frames) = packed.split_at(packed.len().min(HEADER_BYTES));
        let mut bytes = header.to_vec();
        if !frames.is_empty() {
            bytes.resize(FRAMES_AT, 0);
            bytes.extend_from_slice(frames);
        }
        // A segment has its full size from the beginning; zeros take time, so only some inputs have them.
        if !bytes.is_empty() && flags & 16 != 0 {
            bytes.resize(SEGMENT_BYTES as usize, 0);
        }
        Segment { index, bytes }
    });
    Some(Input {
        origin,
        segments: segments.collect(),
        from: if flags & 8 != 0 { a * 8 } else { 0 },
        budget: 1 + b,
    })
}

/// An input of these segments, numbered from the `first`th possible first index on.
pub fn pack(first: u8, flags: u8, a: u16, b: u16, segments: &[Vec<u8>]) -> Vec<u8> {
    let mut data = vec![segments.len() as u8 - 1, first, flags];
    data.extend_from_slice(&a.to_le_bytes());
    data.extend_from_slice(&b.to_le_bytes());
    data.push(0);
    let packed: Vec<Vec<u8>> = segments
        .iter()
        .map(|bytes| {
            let used = bytes.iter().rposition(|byte| *byte != 0);
            let used = used.map_or(0, |last| (last + 1).next_multiple_of(8));
            let (header, frames) = bytes[..used].split_at(HEADER_BYTES.min(used));
            let frames = frames.get(FRAMES_AT - HEADER_BYTES..).unwrap_or_default();
            [header, frames].concat()
        })
        .collect();
    for bytes in &packed {
        data.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    }
    packed
        .iter()
        .for_each(|bytes| data.extend_from_slice(bytes));
    data
}

/// The salt of a segment whose header has its CRC.
pub fn header_salt(bytes: &[u8]) -> Option<u64> {
    let header = bytes.get(..HEADER_BYTES)?;
    let whole = u32_at(header, 76) == crc32fast::hash(&header[..76]);
    (whole && header[..8] == *b"IRIS-SEG").then(|| u64_at(header, 56))
}

/// A frame whose header has its CRC and its place.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub offset: usize,
    pub len: usize,
    pub salt: u64,
    pub synced_lsn: u64,
    /// Its body is there and has its CRC.
    pub whole: bool,
}

impl Segment {
    pub fn first_lsn(&self) -> u64 {
        size().first_lsn(self.index)
    }

    /// The frame at an offset.
    pub fn frame_at(&self, offset: usize) -> Option<Frame> {
        let bytes = &self.bytes[..self.bytes.len().min(SEGMENT_BYTES as usize)];
        let header = bytes.get(offset..offset + FRAME_HEADER_BYTES)?;
        let body_len = u32_at(header, 8) as usize;
        let fits = u32_at(header, 0) == crc32fast::hash(&header[4..])
            && u64_at(header, 16) == self.first_lsn() + offset as u64
            && body_len.is_multiple_of(8)
            && FRAME_HEADER_BYTES + body_len <= 1 << 20
            && offset + FRAME_HEADER_BYTES + body_len <= SEGMENT_BYTES as usize;
        let body = offset + FRAME_HEADER_BYTES..offset + FRAME_HEADER_BYTES + body_len;
        fits.then(|| Frame {
            offset,
            len: FRAME_HEADER_BYTES + body_len,
            salt: u64_at(header, 32),
            synced_lsn: u64_at(header, 24),
            whole: bytes
                .get(body)
                .is_some_and(|body| crc32fast::hash(body) == u32_at(header, 4)),
        })
    }

    /// All frames at any place that frames may have, those inside of bodies, too.
    pub fn frames(&self) -> Vec<Frame> {
        let places = (FRAMES_AT..self.bytes.len()).step_by(8);
        places.filter_map(|offset| self.frame_at(offset)).collect()
    }

    /// Salts that frames of this segment may have.
    pub fn salts(&self) -> Vec<u64> {
        match header_salt(&self.bytes) {
            Some(salt) => vec![salt],
            None => self.frames().iter().map(|frame| frame.salt).collect(),
        }
    }

    /// Whether the record header at an offset has its CRC under one of these salts.
    pub fn is_record(&self, offset: usize, salts: &[u64]) -> bool {
        let Some(header) = self.bytes.get(offset..offset + RECORD_HEADER_BYTES) else {
            return false;
        };
        let lsn = self.first_lsn() + offset as u64;
        let stored = u32_at(header, 12);
        salts
            .iter()
            .any(|salt| record_crc(header, *salt, lsn) == stored)
    }
}

/// The CRC of a record's header, by the specification.
fn record_crc(header: &[u8], salt: u64, lsn: u64) -> u32 {
    let covered = [
        &salt.to_le_bytes()[..],
        &lsn.to_le_bytes(),
        &header[..12],
        &header[16..RECORD_HEADER_BYTES],
    ];
    crc32fast::hash(&covered.concat())
}

/// Makes a segmented input fit again after a mutation: headers, positions, salts, the chain, all
/// CRCs; one in eight is left as it is, as the seed says.
pub fn mend(data: &mut [u8], seed: u64) -> usize {
    let mut dice = seed | 1;
    let mut wants = || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        dice >> 61 != 0
    };
    if !wants() {
        return data.len(); // arbitrary bytes now and then
    }
    let mut prev_crc = 0;
    for (index, place) in places(data).unwrap_or_default() {
        let packed = &mut data[place];
        if packed.len() < HEADER_BYTES {
            continue;
        }
        let (header, frames) = packed.split_at_mut(HEADER_BYTES);
        let first_lsn = size().first_lsn(index);
        if wants() {
            mend_header(header, first_lsn, prev_crc);
        }
        let salt = u64_at(header, 56);
        let mut at = 0;
        while at + FRAME_HEADER_BYTES <= frames.len() {
            let len = FRAME_HEADER_BYTES + (u32_at(frames, at + 8) as usize & 0xffff8);
            let len = len.min((frames.len() - at) / 8 * 8);
            let lsn = first_lsn + (FRAMES_AT + at) as u64;
            if wants() {
                prev_crc = mend_frame(&mut frames[at..at + len], lsn, salt, prev_crc, &mut wants);
            }
            at += len;
        }
    }
    data.len()
}

fn mend_header(header: &mut [u8], first_lsn: u64, prev_crc: u32) {
    put(header, 0, *b"IRIS-SEG");
    put(header, 8, 2_u32.to_le_bytes());
    put(header, 12, IDENTITY.log.to_le_bytes());
    put(header, 16, IDENTITY.cluster_id);
    put(header, 32, IDENTITY.node_id.to_le_bytes());
    put(header, 48, first_lsn.to_le_bytes());
    put(header, 64, SEGMENT_BYTES.to_le_bytes());
    put(header, 72, prev_crc.to_le_bytes());
    let crc = crc32fast::hash(&header[..76]);
    put(header, 76, crc.to_le_bytes());
}

fn mend_frame(
    frame: &mut [u8],
    lsn: u64,
    salt: u64,
    prev_crc: u32,
    wants: &mut impl FnMut() -> bool,
) -> u32 {
    let body_len = frame.len() - FRAME_HEADER_BYTES;
    let (mut at, mut records) = (FRAME_HEADER_BYTES, 0_u16);
    while at + RECORD_HEADER_BYTES <= frame.len() {
        let left = frame.len() - at - RECORD_HEADER_BYTES;
        let len = (u32_at(frame, at) as usize & 0xfffff).min(left);
        put(frame, at, (len as u32).to_le_bytes());
        let payload = at + RECORD_HEADER_BYTES;
        mend_items(&mut frame[payload..payload + len], wants);
        if wants() {
            let header = &frame[at..at + RECORD_HEADER_BYTES];
            let crc = record_crc(header, salt, lsn + at as u64);
            put(frame, at + 12, crc.to_le_bytes());
        }
        at += RECORD_HEADER_BYTES + len.next_multiple_of(8);
        records += 1;
    }
    put(frame, 8, (body_len as u32).to_le_bytes());
    put(frame, 16, lsn.to_le_bytes());
    if wants() {
        put(frame, 14, records.to_le_bytes());
        put(frame, 32, salt.to_le_bytes());
        put(frame, 40, prev_crc.to_le_bytes());
    }
    if u64_at(frame, 24) > lsn {
        put(frame, 24, lsn.to_le_bytes());
    }
    if wants() {
        let crc = crc32fast::hash(&frame[FRAME_HEADER_BYTES..]);
        put(frame, 4, crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&frame[4..FRAME_HEADER_BYTES]);
    put(frame, 0, crc.to_le_bytes());
    crc
}

/// CRCs of items, as far as the bytes divide into some.
fn mend_items(payload: &mut [u8], wants: &mut impl FnMut() -> bool) {
    let mut at = 0;
    while at + 8 <= payload.len() {
        let len = u32_at(payload, at) as usize;
        let Some(end) = (at + 8)
            .checked_add(len)
            .filter(|end| *end <= payload.len())
        else {
            return;
        };
        if wants() {
            let crc = crc32fast::hash(&[&payload[at..at + 4], &payload[at + 8..end]].concat());
            put(payload, at + 4, crc.to_le_bytes());
        }
        at = end;
    }
}
