//! What cleaning takes out of an arbitrary segment: `log::harvest`.
//!
//! Every item that it takes has its CRC and lies in a record whose header has its own, by the second
//! reading in [`super::segments`]; each once, in order; and a flipped bit is never taken along.

use super::Target;
use super::segments::{FRAMES_AT, RECORD_HEADER_BYTES, Segment, input, mend, pack, size, u32_at};
use super::writer::Log;
use crate::log::{harvest, item_at};
use crate::measure::measured;

/// See the module's text.
pub const HARVEST: Target = Target {
    name: "harvest",
    check,
    mend,
    seeds,
};

/// Bytes of memory for what is taken from so many: a copy of each item, and 24 bytes about it and its
/// 8-byte header at least; both vectors double as they grow, old and new held at the same time.
const fn harvest_bytes_max(len: usize) -> usize {
    16 * len + 1024
}

/// Where each item lies in the segment, and its bytes.
type Taken = Vec<(usize, Vec<u8>)>;

fn check(data: &[u8]) {
    let Some(input) = input(data) else { return };
    for segment in &input.segments {
        let taken = all(segment, 0, input.budget);
        judge(segment, &taken);
        all(segment, input.from, input.budget); // from any place, sensible or not
        let whole = all(segment, 0, usize::MAX);
        assert_eq!(whole, taken, "another budget, other items");
        judge_flip(segment, &taken, data);
    }
}

/// Everything of a segment from an offset on, `budget` bytes at a time.
fn all(segment: &Segment, from: usize, budget: usize) -> Taken {
    let mut taken = Taken::new();
    let mut at = from;
    loop {
        let call = || harvest(size(), segment.index, &segment.bytes, at, budget);
        let (found, held) = measured(call);
        let most = harvest_bytes_max(segment.bytes.len());
        assert!(held <= most, "{held} bytes held, {most} would do");
        for (position, range) in found.items {
            assert_eq!(size().index_of(position), segment.index);
            let bytes = found.bytes[range].to_vec();
            taken.push((size().offset_of(position), bytes));
        }
        match found.next {
            None => return taken,
            Some(next) => assert!(next > at, "no progress"),
        }
        at = found.next.unwrap_or_default();
    }
}

fn judge(segment: &Segment, taken: &Taken) {
    let salts = segment.salts();
    let mut behind = FRAMES_AT;
    for (offset, bytes) in taken {
        assert!(*offset >= behind, "items out of order, or one in the other");
        behind = offset + bytes.len();
        assert_eq!(segment.bytes.get(*offset..behind), Some(&bytes[..]));
        let (_, len) = item_at(bytes).expect("an item without its CRC");
        assert_eq!(len, bytes.len());
        // A record header before it, with its CRC, that reaches behind it.
        let mut starts = (FRAMES_AT..=offset.saturating_sub(RECORD_HEADER_BYTES)).step_by(8);
        let holds = |start: usize| {
            let payload = start + RECORD_HEADER_BYTES;
            payload + u32_at(&segment.bytes, start) as usize >= behind
                && segment.is_record(start, &salts)
        };
        assert!(starts.any(holds), "an item of no record");
    }
}

fn judge_flip(segment: &Segment, taken: &Taken, data: &[u8]) {
    if taken.is_empty() {
        return;
    }
    let chance = crc32fast::hash(data) as usize;
    let (offset, bytes) = &taken[chance % taken.len()];
    let bit = (chance >> 4) % (bytes.len() * 8);
    let at = offset + bit / 8;
    let mut hurt = segment.clone();
    hurt.bytes[at] ^= 1 << (bit % 8);
    let again = all(&hurt, 0, usize::MAX);
    assert!(
        !again.iter().any(|(position, _)| position == offset),
        "a flipped bit at {at:#x} was taken along"
    );
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut log = Log::new(0);
    log.data(&[(3, 1, &[b"one"]), (4, 1, &[b"two", b""])]);
    log.relocated(&[b"moved", &[9; 200]]);
    log.data(&[(3, 2, &[b"three"])]);
    log.end();
    log.segments.pop();
    let mut hurt = log.clone();
    hurt.segments[0][4096 + 48 + 40 + 8] ^= 1;
    let mut header = log.clone();
    header.segments[0][4] ^= 1;
    vec![
        ("whole", pack(0, 0, 0, 60_000, &log.segments)),
        ("in_steps", pack(0, 0, 0, 1, &log.segments)),
        ("from_inside", pack(0, 8, 520, 100, &log.segments)),
        ("hurt_item", pack(0, 0, 0, 60_000, &hurt.segments)),
        ("hurt_header", pack(0, 0, 0, 60_000, &header.segments)),
    ]
}
