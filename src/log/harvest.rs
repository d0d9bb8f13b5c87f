//! What cleaning reads of an old segment: the commands of its messages, verified one by one.
//!
//! ```text
//!  segment ─▶ frames ─▶ ENTRY and RELOC records ─▶ items whose CRC is right: position and bytes
//! ```
//! Which of them still live is the shards' to say. What is damaged is skipped and counted; it was
//! told when the log was recovered, or it has rotted since.

use std::ops::Range;

use super::format::{FrameKind, RecordKind, SegmentHeader, SegmentSize};
use super::items::items;
use super::limits::{FRAME_HEADER_BYTES, ITEM_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use super::part::Part;
use super::recovery::{Fault, Recovered};

/// Some items of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    /// Number of the segment.
    pub segment: u64,
    /// Position of each item in the log, and where in `bytes` it is, its 8-byte header included.
    pub items: Vec<(u64, Range<usize>)>,
    /// The items, one behind another.
    pub bytes: Vec<u8>,
    /// Where to go on; None: the segment has no more.
    pub next: Option<usize>,
    /// Places where something could not be read: frame headers, record headers, items.
    pub damaged: u32,
}

/// Copies the items of a segment, from offset `from` on (0: the beginning) until about `budget`
/// bytes of the segment have been read; at least one frame. `bytes` are those of segment
/// `segment`; that it belongs to this log has been seen when it was opened.
pub fn harvest(
    size: SegmentSize,
    segment: u64,
    bytes: &[u8],
    from: usize,
    budget: usize,
) -> Harvest {
    let header = SegmentHeader::decode(bytes).map_err(|_| Fault::SegmentHeader);
    let part = Part::new(size, segment, bytes, header);
    let mut harvest = Harvest {
        segment,
        ..Harvest::default()
    };
    if from == 0 && header.is_err() {
        harvest.damaged += 1;
    }
    let Some(salt) = part.salt() else {
        return harvest; // no frame either
    };
    let start = from.max(SEGMENT_HEADER_BYTES);
    let stop = start.saturating_add(budget);
    let mut at = start;
    loop {
        let found = part.find(at, Some(salt), |_| true);
        let offset = found.map_or(bytes.len(), |frame| size.offset_of(frame.lsn));
        if offset > at && !part.is_zero(at..offset) {
            harvest.damaged = harvest.damaged.saturating_add(1);
            harvest.take_range(&part, at..offset);
        }
        let Some(frame) = found else { return harvest };
        let body = offset + FRAME_HEADER_BYTES..offset + frame.frame_len();
        let missing = u32::from(frame.records).saturating_sub(harvest.take_range(&part, body));
        harvest.damaged = harvest.damaged.saturating_add(missing);
        if frame.kind() == Some(FrameKind::End) {
            return harvest;
        }
        at = offset + frame.frame_len();
        if at >= stop {
            harvest.next = Some(at);
            return harvest;
        }
    }
}

impl Harvest {
    /// Takes the items of the records within these offsets, and counts the records. The CRC of a
    /// frame's body is not asked: what is taken has its own.
    fn take_range(&mut self, part: &Part<'_>, range: Range<usize>) -> u32 {
        let mut found: u32 = 0;
        part.survivors(range, &mut |record, _| {
            found += 1;
            self.take_record(&record);
        });
        found
    }

    fn take_record(&mut self, found: &Recovered<'_>) {
        if !matches!(found.record.kind, RecordKind::Entry | RecordKind::Reloc) {
            return;
        }
        let mut whole = 0;
        for item in items(found.payload) {
            let Ok((offset, payload)) = item else { break };
            let taken = offset..offset + ITEM_HEADER_BYTES + payload.len();
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&found.payload[taken]);
            let position = found.lsn_of_payload + offset as u64;
            self.items.push((position, start..self.bytes.len()));
            whole += 1;
        }
        self.damaged = self
            .damaged
            .saturating_add(u32::from(whole != found.record.b));
    }
}

#[cfg(test)]
mod tests {
    use super::super::crash_trials::{Dice, SIZE, World, live};
    use super::super::item_at;
    use super::super::limits::RECORD_HEADER_BYTES;
    use super::*;

    /// Position and bytes of each item.
    type Taken = Vec<(u64, Vec<u8>)>;

    /// Everything of a segment, `budget` at a time.
    fn all(segment: u64, bytes: &[u8], budget: usize) -> (Taken, u32) {
        let (mut taken, mut damaged, mut from) = (Vec::new(), 0, 0);
        loop {
            let found = harvest(SIZE, segment, bytes, from, budget);
            assert_eq!(found.segment, segment);
            for (position, range) in found.items {
                let item = &found.bytes[range];
                assert_eq!(item_at(item).unwrap().1, item.len());
                taken.push((position, item.to_vec()));
            }
            damaged += found.damaged;
            match found.next {
                Some(next) => assert!(next > from, "no progress"),
                None => return (taken, damaged),
            }
            from = found.next.unwrap();
        }
    }

    fn expected(world: &World, segment: u64) -> Taken {
        let mut expected = Vec::new();
        for (lsn, _, payload) in &world.written {
            if SIZE.index_of(*lsn) != segment {
                continue;
            }
            for item in items(payload) {
                let (offset, item) = item.unwrap();
                let bytes = payload[offset..offset + ITEM_HEADER_BYTES + item.len()].to_vec();
                expected.push((lsn + offset as u64, bytes));
            }
        }
        expected
    }

    fn full(seed: u64) -> World {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        while world.append(&mut dice, FrameKind::Data) {
            world.sync();
        }
        world
    }

    /// R: D-5
    #[test]
    fn every_item_of_a_segment_is_taken_once_whatever_the_budget() {
        for seed in 0..40 {
            let world = full(seed);
            for segment in 0..3 {
                for budget in [0, 1, 3000, usize::MAX] {
                    let (taken, damaged) = all(segment, &world.disk[segment as usize], budget);
                    let context = format!("seed {seed} segment {segment} budget {budget}");
                    assert!(taken == expected(&world, segment), "{context}");
                    assert_eq!(damaged, 0, "{context}");
                }
            }
        }
    }

    /// R: D-5. One call reads about as much as it was told.
    #[test]
    fn a_small_budget_takes_one_frame_and_a_large_one_all() {
        let world = full(3);
        let first = world.placed.iter().find(|placed| placed.kind.is_some());
        let found = harvest(SIZE, 0, &world.disk[0], 0, 1);
        let first = first.unwrap();
        assert_eq!(found.next, Some(SIZE.offset_of(first.lsn) + first.len));
        let found = harvest(SIZE, 0, &world.disk[0], 0, SIZE.bytes() as usize);
        assert_eq!(
            (found.next, found.items.len()),
            (None, expected(&world, 0).len())
        );
    }

    /// R: D-2, D-5
    #[test]
    fn one_flipped_bit_costs_at_most_its_record_and_is_counted() {
        let mut hits = 0;
        for seed in 0..1500 {
            let mut dice = Dice(seed);
            let world = full(seed % 40);
            let frames: Vec<_> = world
                .placed
                .iter()
                .filter(|placed| placed.lsn < SIZE.first_lsn(3))
                .collect();
            let hurt = frames[dice.below(frames.len())];
            let (at, segment) = (
                hurt.lsn + dice.below(hurt.len) as u64,
                SIZE.index_of(hurt.lsn),
            );
            let mut bytes = world.disk[segment as usize].clone();
            bytes[SIZE.offset_of(at)] ^= 1 << dice.below(8);
            let (taken, damaged) = all(segment, &bytes, 2000);
            let hit = world.written.iter().find(|(lsn, _, payload)| {
                let end = lsn + payload.len() as u64;
                (lsn - RECORD_HEADER_BYTES as u64..end).contains(&at)
            });
            let mut must = expected(&world, segment);
            if let Some((lsn, _, payload)) = hit {
                must.retain(|item| !(*lsn..lsn + payload.len() as u64).contains(&item.0));
                hits += 1;
            }
            let padding = hit.is_none() && at >= hurt.lsn + FRAME_HEADER_BYTES as u64;
            assert!(
                damaged == 1 || padding && damaged == 0,
                "seed {seed}: {damaged} counted"
            );
            let mut sound = expected(&world, segment).into_iter();
            assert!(
                taken.iter().all(|item| sound.any(|one| one == *item)),
                "seed {seed}"
            );
            assert!(
                must.iter().all(|item| taken.contains(item)),
                "seed {seed}: lost"
            );
        }
        assert!(hits > 500, "{hits} hits");
    }

    #[test]
    fn garbage_in_any_place_never_panics_and_always_ends() {
        for seed in 0..300 {
            let mut dice = Dice(seed);
            let mut world = World::new(&mut dice);
            live(&mut world, &mut dice, 1, true);
            let mut bytes = world.disk[0].clone();
            for _ in 0..dice.below(6) {
                let from = dice.below(bytes.len());
                let len = dice.below(3000).min(bytes.len() - from);
                let garbage = dice.bytes(len);
                bytes[from..from + len].copy_from_slice(&garbage);
            }
            bytes.truncate(dice.below(SIZE.bytes() as usize + 1));
            all(0, &bytes, 1 + dice.below(5000));
            let from = dice.below(2 * SIZE.bytes() as usize);
            let _ = harvest(SIZE, 0, &bytes, from, 100);
        }
    }
}
