//! Log recovery over arbitrary segments: `log::recovery::scan`.
//!
//! The second opinion is [`super::segments`]: whatever the scan shows as a record has, by the
//! specification, a CRC for its header that knows its place, and a payload proven by its frame's CRC or
//! by its own. Besides: a bit flipped in it makes it no record, what was cut stays cut, and
//! nothing that the cut takes away proves that it had been durable.

use super::Target;
use super::segments::{
    Frame, IDENTITY, Input, RECORD_HEADER_BYTES, Segment, header_salt, input, mend, pack, put,
    size, u32_at,
};
use super::writer::Log;
use crate::log::limits::HOLES_MAX;
use crate::log::recovery::{Hole, Recovered, ScanError, Seen, Tail, leftovers, scan};
use crate::log::{RecordKind, SegmentHeader, item_at};
use crate::measure::measured;

/// See the module's text.
pub const LOG_SCAN: Target = Target {
    name: "log_scan",
    check,
    mend,
    seeds,
};

/// Bytes of memory for a scan of so many segments: a note about each, and the vector of them doubles
/// as it grows. Nothing for what is in them.
const fn scan_bytes_max(segments: usize) -> usize {
    1024 * segments + 1024
}

/// What a scan showed, without its lifetime.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    /// Position of the payload, its length, how sure it is, and shard and index.
    Record(u64, usize, Surety, u16, u64),
    Hole(u64, u64),
}

/// Scans; the result, and all that was shown.
fn run(input: &Input) -> (Result<Tail, ScanError>, Vec<Seen<'_>>) {
    let segments: Vec<_> = input
        .segments
        .iter()
        .map(|segment| (segment.index, segment.bytes.as_slice()))
        .collect();
    let bytes: usize = input.segments.iter().map(|one| one.bytes.len()).sum();
    let shown_max = bytes / RECORD_HEADER_BYTES + HOLES_MAX as usize + 2;
    let mut seen = Vec::with_capacity(shown_max); // so that the scan's own memory is what is counted
    let mut is_too_much = false;
    let (result, held) = measured(|| {
        scan(
            &input.origin,
            &segments,
            &mut |one| match seen.len() < shown_max {
                true => seen.push(one),
                false => is_too_much = true,
            },
        )
    });
    assert!(!is_too_much, "more is shown than there can be");
    let most = scan_bytes_max(segments.len());
    assert!(held <= most, "{held} bytes held, {most} would do");
    (result, seen)
}

/// How sure a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Surety {
    /// It was shown as broken.
    Broken,
    /// It was shown as whole, which only its frame can say.
    ByItsFrame,
    /// It was shown as whole, and its own CRCs say so.
    ByItself,
}

fn shown(input: &Input) -> (Result<Tail, ScanError>, Vec<Shown>) {
    let (result, seen) = run(input);
    let record = |found: Recovered<'_>, whole| {
        let surety = match whole {
            false => Surety::Broken,
            true if is_proven(&found) => Surety::ByItself,
            true => Surety::ByItsFrame,
        };
        Shown::Record(
            found.lsn_of_payload,
            found.payload.len(),
            surety,
            found.record.shard,
            found.record.index,
        )
    };
    let shown = seen.into_iter().map(|one| match one {
        Seen::Record(found) => record(found, true),
        Seen::Broken(found) => record(found, false),
        Seen::Hole(hole) => Shown::Hole(hole.from, hole.to),
    });
    (result, shown.collect())
}

fn check(data: &[u8]) {
    let Some(input) = input(data) else { return };
    let judges: Vec<Judge<'_>> = input.segments.iter().map(Judge::new).collect();
    let (result, seen) = run(&input);
    let mut last = input.origin.lsn;
    for one in &seen {
        let judged = match one {
            Seen::Record(found) => judge_record(&judges, found, true, &mut last),
            Seen::Broken(found) => judge_record(&judges, found, false, &mut last),
            Seen::Hole(hole) => judge_hole(hole, &mut last),
        };
        assert_eq!(judged, Ok(()), "{one:?}");
    }
    let (again, all) = shown(&input);
    assert_eq!(again, result, "the same bytes, another result");
    if let Ok(tail) = &result {
        judge_tail(&input, tail);
        judge_cut(&input, tail, &all);
    }
    judge_flip(&input, &all, data);
}

/// A segment, and what is known of it before anything is judged.
struct Judge<'a> {
    segment: &'a Segment,
    salts: Vec<u64>,
    frames: Vec<Frame>,
}

impl<'a> Judge<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self {
            segment,
            salts: segment.salts(),
            frames: segment.frames(),
        }
    }
}

fn judge_record(
    judges: &[Judge<'_>],
    found: &Recovered<'_>,
    is_whole: bool,
    last: &mut u64,
) -> Result<(), &'static str> {
    let index = size().index_of(found.lsn_of_payload);
    let judge = judges.iter().find(|judge| judge.segment.index == index);
    let judge = judge.ok_or("a record of no segment")?;
    let start = size().offset_of(found.lsn_of_payload);
    let (from, end) = (start - RECORD_HEADER_BYTES, start + found.payload.len());
    if judge.segment.bytes.get(start..end) != Some(found.payload) {
        return Err("a payload that does not lie where it is said to");
    }
    let position = judge.segment.first_lsn() + from as u64;
    if position < *last {
        return Err("records out of order, or one in the other");
    }
    *last = found.lsn_of_payload + found.payload.len() as u64;
    if !judge.segment.is_record(from, &judge.salts) {
        return Err("a record whose header has not its CRC");
    }
    if !is_encoded(found, &judge.segment.bytes[from..start]) {
        return Err("a record whose header says something else");
    }
    let inside =
        |frame: &Frame| frame.whole && frame.offset < from && end <= frame.offset + frame.len;
    if is_whole && !is_proven(found) && !judge.frames.iter().any(inside) {
        return Err("a record whose payload nothing proves");
    }
    Ok(())
}

/// Whether these are the bytes that encode such a record's header, but for its CRC.
fn is_encoded(found: &Recovered<'_>, header: &[u8]) -> bool {
    let record = &found.record;
    let mut expected = [0; RECORD_HEADER_BYTES];
    put(&mut expected, 0, (found.payload.len() as u32).to_le_bytes());
    put(&mut expected, 4, [record.kind as u8, record.flags]);
    put(&mut expected, 6, record.shard.to_le_bytes());
    put(&mut expected, 8, record.term.to_le_bytes());
    put(&mut expected, 12, u32_at(header, 12).to_le_bytes());
    put(&mut expected, 16, record.index.to_le_bytes());
    put(&mut expected, 24, record.a.to_le_bytes());
    put(&mut expected, 32, record.b.to_le_bytes());
    expected == *header
}

/// Whether the payload proves itself: as many items as are said, each with its CRC, or heads.
fn is_proven(found: &Recovered<'_>) -> bool {
    match found.record.kind {
        RecordKind::Heads => u64::from(crc32fast::hash(found.payload)) == found.record.a,
        RecordKind::Entry | RecordKind::Reloc => {
            let (mut rest, mut count) = (found.payload, 0);
            while !rest.is_empty() {
                let len = match rest.get(..8) {
                    Some(header) => u32_at(header, 0) as usize,
                    None => return false,
                };
                let Some(item) = rest.get(8..8 + len) else {
                    return false;
                };
                let crc = crc32fast::hash(&[&rest[..4], item].concat());
                if u32_at(rest, 4) != crc || item_at(rest) != Ok((item, 8 + len)) {
                    return false;
                }
                rest = &rest[8 + len..];
                count += 1;
            }
            count == found.record.b
        }
        _ => false,
    }
}

fn judge_hole(hole: &Hole, last: &mut u64) -> Result<(), &'static str> {
    if hole.from < *last || hole.to < hole.from {
        return Err("holes out of order");
    }
    if hole.proof_synced_lsn < hole.from {
        return Err("a hole that nothing proves");
    }
    *last = hole.from;
    Ok(())
}

/// Behind the end nothing says that the end, or more, had been durable.
fn judge_tail(input: &Input, tail: &Tail) {
    assert!(tail.end.is_multiple_of(8) && tail.end >= input.origin.lsn);
    assert!(tail.holes <= HOLES_MAX);
    assert!(
        tail.end >= input.origin.durable || tail.holes > 0,
        "known durable, and cut"
    );
    for segment in &input.segments {
        if segment.index < size().index_of(tail.end) {
            continue;
        }
        let is_later = segment.index > size().index_of(tail.end);
        let salt = header_salt(&segment.bytes);
        assert!(
            !(is_later && salt.is_some()),
            "a whole header behind the end"
        );
        let mut at = super::segments::FRAMES_AT;
        if !is_later {
            at = at.max(size().offset_of(tail.end));
        }
        while at < segment.bytes.len() {
            at += match segment.frame_at(at) {
                // Whose salt is unknown: the frame may be of an earlier use of the file.
                Some(frame)
                    if salt == Some(frame.salt) && frame.synced_lsn <= frame_lsn(segment, at) =>
                {
                    assert!(
                        frame.synced_lsn <= tail.end,
                        "a proof behind the end, and cut"
                    );
                    if frame.whole { frame.len } else { 8 }
                }
                _ => 8,
            };
        }
    }
}

fn frame_lsn(segment: &Segment, at: usize) -> u64 {
    segment.first_lsn() + at as u64
}

/// Writes the header of the segment of `end` as the shell does before it cuts.
fn give_back(segments: &mut [Segment], end: u64, salt: u64, prev_crc: u32) {
    let index = size().index_of(end);
    let segment = segments.iter_mut().find(|segment| segment.index == index);
    let segment = segment.expect("a salt is of a segment that is there");
    let header = SegmentHeader {
        identity: IDENTITY,
        incarnation: 3,
        first_lsn: segment.first_lsn(),
        salt,
        segment_bytes: size().bytes(),
        prev_crc,
    };
    header.encode(&mut segment.bytes);
}

/// With everything behind the end zeroed, the same is found, and the same end.
fn judge_cut(input: &Input, tail: &Tail, all: &[Shown]) {
    let mut cut = input.clone();
    if tail.holes > 0 {
        cut.origin.durable = cut.origin.durable.max(tail.end); // as the superblock is told before
    }
    if let (Some(prev_crc), Some(salt)) = (tail.lost_header, tail.salt) {
        give_back(&mut cut.segments, tail.end, salt, prev_crc);
    }
    for segment in &mut cut.segments {
        let from = match segment.index.cmp(&size().index_of(tail.end)) {
            std::cmp::Ordering::Less => continue,
            std::cmp::Ordering::Equal => size().offset_of(tail.end),
            std::cmp::Ordering::Greater => 0,
        };
        let mut ranges = Vec::new();
        leftovers(&segment.bytes, from, |at, len| ranges.push(at..at + len));
        for range in ranges {
            segment.bytes[range].fill(0);
        }
    }
    let (result, again) = shown(&cut);
    let after = result.expect("what was read before");
    assert!(
        (after.end, after.salt, after.lost_header) == (tail.end, tail.salt, None),
        "the end moved: {after:?}, {tail:?} {all:?}, then {again:?}"
    );
    let records = |shown: &[Shown]| -> Vec<Shown> {
        let is_record = |one: &&Shown| matches!(one, Shown::Record(..));
        shown.iter().filter(is_record).cloned().collect()
    };
    assert_eq!(
        records(&again),
        records(all),
        "the cut changed what is found"
    );
}

/// One bit of a record whose own CRCs were right: it is not shown as whole any more. (One that they did
/// not prove, a bit may even mend.)
fn judge_flip(input: &Input, all: &[Shown], data: &[u8]) {
    let sure: Vec<_> = all
        .iter()
        .filter_map(|one| match one {
            Shown::Record(lsn, len, Surety::ByItself, ..) => Some((*lsn, *len)),
            _ => None,
        })
        .collect();
    if sure.is_empty() {
        return;
    }
    let chance = crc32fast::hash(data) as usize;
    let (lsn, len) = sure[chance % sure.len()];
    let bit = (chance >> 4) % ((RECORD_HEADER_BYTES + len) * 8);
    let at = lsn - RECORD_HEADER_BYTES as u64 + (bit / 8) as u64;
    let mut hurt = input.clone();
    let segment = hurt
        .segments
        .iter_mut()
        .find(|segment| segment.index == size().index_of(at))
        .expect("it was shown");
    segment.bytes[size().offset_of(at)] ^= 1 << (bit % 8);
    for one in shown(&hurt).1 {
        let is_whole = !matches!(one, Shown::Record(_, _, Surety::Broken, ..));
        let is_same = matches!(one, Shown::Record(position, ..) if position == lsn);
        assert!(
            !(is_same && is_whole),
            "a flipped bit at {at:#x}, and {one:?}"
        );
    }
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut plain = Log::new(0);
    plain.data(&[(3, 1, &[b"one"]), (4, 1, &[b"two", b""])]);
    plain.data(&[(3, 2, &[b"three"])]);
    plain.seal();
    let mut rotated = plain.clone();
    rotated.end();
    rotated.data(&[(4, 2, &[&[5; 300]])]);
    rotated.relocated(&[b"moved", b"moved too"]);
    rotated.seal();
    let mut torn = rotated.clone();
    torn.data(&[(3, 3, &[&[6; 700]])]);
    let cut = torn.last().len() - 512;
    torn.last().truncate(cut);
    let mut body = rotated.clone();
    body.segments[0][5 * 1024 - 900] ^= 1;
    let mut header = rotated.clone();
    header.segments[1][60] ^= 1;
    let mut frame = rotated.clone();
    frame.segments[0][4096 + 20] ^= 1;
    // Of the second segment only the header of its second frame is left whole.
    let mut headless = header.clone();
    headless.segments[1][4096 + 20] ^= 1;
    headless.segments[1].truncate(4096 + 400 + 48 + 40);
    let beyond = [1, 2, 3, 4].map(|byte| vec![byte; 4_200]);
    let mut late = Log::new(1000);
    late.data(&[(3, 9, &[b"late"])]);
    late.end();
    late.seal();
    let mut missing = pack(0, 0, 0, 0, &rotated.segments);
    missing[7] = 1;
    vec![
        ("plain", pack(0, 0, 0, 0, &plain.segments)),
        ("rotated", pack(0, 0, 0, 0, &rotated.segments)),
        ("torn", pack(0, 0, 0, 0, &torn.segments)),
        ("hurt_body", pack(0, 0, 0, 0, &body.segments)),
        ("hurt_header", pack(0, 0, 0, 0, &header.segments)),
        ("hurt_frame", pack(0, 0, 0, 0, &frame.segments)),
        ("headless", pack(0, 0, 0, 0, &headless.segments)),
        ("beyond", pack(3, 0, 0, 0, &beyond)),
        ("late", pack(2, 0, 0, 0, &late.segments)),
        ("known_durable", pack(0, 4, 0, 100, &torn.segments)),
        ("from_inside", pack(0, 1, 0, 0, &rotated.segments)),
        ("missing", missing),
    ]
}
