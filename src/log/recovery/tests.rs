//! The rule, case by case; `crash_trials` has it by the thousand.

use super::super::crash_trials::{
    Dice, Placed, SIZE, Scanned, World, cut, live, numbered, origin, run_scan, scan_from,
};
use super::super::limits::RECORD_HEADER_BYTES;
use super::super::{FrameBuilder, Placement};
use super::*;

fn written(seed: u64, frames: usize) -> World {
    let mut dice = Dice(seed);
    let mut world = World::new(&mut Dice(1)); // a seed whose files are not recycled or are: both do
    for _ in 0..frames {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
    }
    world
}

/// R: D-2
#[test]
fn torn_tail_is_cut_at_every_offset() {
    let world = written(11, 3);
    let last = *world.placed.last().unwrap();
    let segment = SIZE.index_of(last.lsn) as usize;
    let from = SIZE.offset_of(last.lsn);
    for kept in 0..last.len {
        let mut disk = world.disk.clone();
        disk[segment][from + kept..from + last.len].fill(0);
        if disk == world.disk {
            continue; // only zeros were lost
        }
        let scanned = run_scan(&disk).unwrap();
        assert_eq!(scanned.holes, [], "kept {kept} bytes of the last frame");
        assert_eq!(
            scanned.tail.end, last.lsn,
            "kept {kept} bytes of the last frame"
        );
        assert!(scanned.entries.iter().all(|entry| entry.0 < last.lsn));
    }
}

/// R: D-2
#[test]
fn a_hole_of_zeros_before_a_later_watermark_is_damage() {
    let world = written(12, 4);
    let hurt = *world
        .placed
        .iter()
        .find(|placed| placed.kind.is_some())
        .unwrap();
    let mut disk = world.disk.clone();
    let from = SIZE.offset_of(hurt.lsn);
    disk[0][from..from + hurt.len].fill(0);
    let scanned = run_scan(&disk).unwrap();
    let hole = scanned.holes[0];
    let end = hurt.lsn + hurt.len as u64;
    assert_eq!(
        (hole.from, hole.to, hole.fault),
        (hurt.lsn, end, Fault::Zero)
    );
    let mut expected = world.written.clone();
    expected.retain(|entry| entry.0 > end);
    assert_eq!(scanned.entries, expected);
}

/// R: D-2
#[test]
fn a_segment_lost_before_a_later_watermark_is_damage() {
    let mut dice = Dice(13);
    let mut world = World::new(&mut dice);
    while SIZE.index_of(world.placed.last().map_or(0, |placed| placed.lsn)) < 2 {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
    }
    assert!(world.append(&mut dice, FrameKind::Seal));
    world.sync();
    for lost in 0..2 {
        let mut disk = world.disk.clone();
        disk[lost].clear();
        let hole = run_scan(&disk).unwrap().holes[0];
        assert_eq!(
            (hole.from, hole.fault),
            (SIZE.first_lsn(lost as u64), Fault::SegmentUnused)
        );
    }
}

/// R: D-2. What is known of segments that were made tells a lost end from an earlier one.
#[test]
fn segments_that_were_made_and_are_gone_from_the_end_are_damage() {
    let mut dice = Dice(15);
    let mut world = World::new(&mut dice);
    while world
        .placed
        .last()
        .map_or(0, |placed| SIZE.index_of(placed.lsn))
        < 1
    {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
    }
    let size = SIZE.bytes();
    for (there, holes) in [(0, 3), (1, 2), (2, 0), (3, 0)] {
        let made = Origin {
            made: SIZE.first_lsn(3),
            ..origin()
        };
        let mut segments = numbered(&world.disk);
        segments.truncate(there);
        let scanned = scan_from(&made, &segments).unwrap();
        let found = scanned.holes.first().map(|hole| (hole.from, hole.fault));
        let missing = (SIZE.first_lsn(there as u64), Fault::SegmentUnused);
        assert_eq!(found, (holes > 0).then_some(missing), "{there} segments");
        let bytes: u64 = scanned.holes.iter().map(|hole| hole.to - hole.from).sum();
        assert_eq!(bytes, holes * size, "{there} segments");
    }
}

/// R: D-2. A segment has its full size before anything is written to it.
#[test]
fn a_segment_in_use_that_was_cut_short_is_damage_wherever_it_was_cut() {
    let mut dice = Dice(16);
    let mut world = World::new(&mut dice);
    for _ in 0..4 {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
    }
    let last = *world.placed.last().unwrap();
    let end = SIZE.offset_of(last.lsn) + last.len;
    for cut in (0..SIZE.bytes() as usize).step_by(104).chain([end]) {
        for made in [0, SIZE.first_lsn(1)] {
            let mut disk = world.disk.clone();
            disk[0].truncate(cut);
            let known = Origin { made, ..origin() };
            let scanned = scan_from(&known, &numbered(&disk)).unwrap();
            let is_seen = scanned.holes.last().map(|hole| hole.to) == Some(SIZE.first_lsn(1));
            // Of a file that has nothing left, only what was noted says that it was in use.
            assert_eq!(
                is_seen,
                cut >= 80 || made > 0,
                "cut at {cut}, made {made:#x}"
            );
        }
    }
    let mut disk = world.disk.clone();
    disk[1].truncate(100);
    let known = Origin {
        made: SIZE.first_lsn(2),
        ..origin()
    };
    let scanned = scan_from(&known, &numbered(&disk)).unwrap();
    assert_eq!(scanned.holes, [], "a spare behind the end holds nothing");
}

#[test]
fn rotation_goes_on_across_segments_and_every_position_is_where_it_says() {
    let mut dice = Dice(14);
    let mut world = World::new(&mut dice);
    while world.append(&mut dice, FrameKind::Data) {
        world.sync();
    }
    let scanned = run_scan(&world.disk).unwrap();
    assert_eq!(SIZE.index_of(scanned.tail.end), 3);
    assert_eq!(scanned.entries, world.written);
    for (lsn, _, payload) in &scanned.entries {
        let (segment, at) = (SIZE.index_of(*lsn) as usize, SIZE.offset_of(*lsn));
        assert_eq!(&world.disk[segment][at..at + payload.len()], payload);
    }
}

#[test]
fn a_rotation_that_stopped_after_end_goes_on_in_the_next_segment() {
    let mut dice = Dice(15);
    let mut world = World::new(&mut dice);
    while SIZE.index_of(world.placed.last().map_or(0, |placed| placed.lsn)) < 1 {
        assert!(world.append(&mut dice, FrameKind::Data)); // the last one is not synced
        if SIZE.index_of(world.placed.last().unwrap().lsn) < 1 {
            world.sync();
        }
    }
    let scanned = run_scan(&world.disk).unwrap();
    let tail = scanned.tail;
    assert_eq!((tail.end, tail.salt), (SIZE.first_lsn(1), None));
    assert_eq!(tail.last_kind, Some(FrameKind::End));
    assert_eq!(scanned.entries.len(), world.acknowledged);
}

/// R: D-2. The frame that opens a segment vouches for the END before it.
#[test]
fn a_flipped_bit_in_end_is_damage_as_soon_as_the_next_segment_is_open() {
    let mut dice = Dice(16);
    let mut world = World::new(&mut dice);
    while SIZE.index_of(world.placed.last().map_or(0, |placed| placed.lsn)) < 1 {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
    }
    let end = end_of_first_segment(&world);
    let mut disk = world.disk.clone();
    disk[0][SIZE.offset_of(end.lsn) + 20] ^= 1;
    let scanned = run_scan(&disk).unwrap();
    let hole = scanned.holes[0];
    assert_eq!((hole.from, hole.to), (end.lsn, SIZE.first_lsn(1)));
    assert_eq!(scanned.entries, world.written);
    assert_eq!(
        scanned.heads.len(),
        1,
        "its heads are proven by their own crc"
    );
}

/// R: D-2. A segment header is written after the END before it was synced.
#[test]
fn a_segment_header_alone_proves_the_segment_before_it() {
    let mut dice = Dice(21);
    let mut world = World::new(&mut dice);
    while SIZE.index_of(world.placed.last().map_or(0, |placed| placed.lsn)) < 1 {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
    }
    let end = end_of_first_segment(&world);
    let mut disk = world.disk.clone();
    disk[0][SIZE.offset_of(end.lsn) + 20] ^= 1;
    disk[1][SEGMENT_HEADER_BYTES..].fill(0);
    let scanned = run_scan(&disk).unwrap();
    assert_eq!((scanned.holes.len(), scanned.holes[0].from), (1, end.lsn));
    let salt = scanned.tail.salt;
    let next = SIZE.first_lsn(1) + SEGMENT_HEADER_BYTES as u64;
    assert_eq!((scanned.tail.end, salt.is_some()), (next, true));
}

/// R: D-2
#[test]
fn a_segment_without_its_header_is_read_by_the_salt_of_its_frames() {
    let mut dice = Dice(22);
    let mut world = World::new(&mut dice);
    while world.append(&mut dice, FrameKind::Data) {
        world.sync();
    }
    for (hurt, more) in [(4096, 0), (4096, FRAME_HEADER_BYTES)] {
        let mut disk = world.disk.clone();
        disk[1][..hurt + more].fill(0);
        let scanned = run_scan(&disk).unwrap();
        let hole = scanned.holes[0];
        let first = SIZE.first_lsn(1);
        assert_eq!((hole.from, hole.fault), (first, Fault::SegmentUnused));
        assert_eq!(hole.records_missing, (more == 0).then_some(0));
        assert_eq!(
            scanned.entries, world.written,
            "records stand for themselves"
        );
    }
}

/// A log of two segments and more of which the second has lost its header and all but the header of
/// its second frame, whose body a crash tore; where that frame is.
fn headless(seed: u64, lost: usize) -> (World, Vec<Vec<u8>>, Placed) {
    let mut dice = Dice(seed);
    let mut world = World::new(&mut dice);
    let mut here = Vec::new();
    while here.len() < 2 {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
        let frames = world.placed.iter().filter(|placed| placed.kind.is_some());
        here = frames.copied().collect();
        here.retain(|placed: &Placed| SIZE.index_of(placed.lsn) == 1);
    }
    let last = here[1];
    let mut disk = world.disk.clone();
    disk[1][..SEGMENT_HEADER_BYTES + lost].fill(0xee);
    disk[1][SIZE.offset_of(last.lsn) + 60] ^= 1;
    (world, disk, last)
}

/// What a start does behind a scan, and what the superblock knows then.
fn mended(disk: &[Vec<u8>], scanned: &Scanned) -> (Origin, Vec<Vec<u8>>) {
    let known = Origin {
        durable: scanned.tail.end,
        ..origin()
    };
    let mut disk = disk.to_vec();
    cut(&mut disk, &scanned.tail);
    (known, disk)
}

/// R: D-2. A lone frame header behind a damaged segment header, of which nothing else is whole, still
/// proves what was before it, and the scan goes on there instead of anywhere before.
#[test]
fn where_only_the_header_of_a_frame_is_left_of_a_segment_the_scan_still_goes_forward() {
    for seed in 30..40 {
        let (_, mut disk, last) = headless(seed, FRAME_HEADER_BYTES);
        disk[1][SEGMENT_HEADER_BYTES + 60] ^= 1;
        let end = SIZE.bytes() as usize;
        disk[1][SIZE.offset_of(last.lsn) + last.len..end].fill(0);
        disk[0][SIZE.bytes() as usize - 700..].fill(0);
        let scanned = run_scan(&disk).unwrap();
        assert!(
            scanned.holes.iter().all(|hole| hole.to >= hole.from),
            "{seed}"
        );
        assert_eq!(scanned.tail.end, last.lsn, "{seed}");
    }
}

/// R: D-2, D-6. What is cut may be all that told the salt of the segment.
#[test]
fn a_start_that_is_interrupted_anywhere_in_its_cut_is_followed_by_one_that_finds_the_same() {
    for seed in 40..60 {
        for lost in [0, FRAME_HEADER_BYTES] {
            let (_, disk, _) = headless(seed, lost);
            let first = run_scan(&disk).unwrap();
            let (known, whole) = mended(&disk, &first);
            let mut dice = Dice(seed);
            for tried in 0..20 {
                // What was written before the crash came: all of it, or some sectors of it.
                let mut interrupted = disk.clone();
                for (segment, bytes) in interrupted.iter_mut().enumerate() {
                    for at in (0..bytes.len()).step_by(512) {
                        if tried == 0 || dice.chance(50) {
                            let range = at..at + 512;
                            bytes[range.clone()].copy_from_slice(&whole[segment][range]);
                        }
                    }
                }
                // The header is synced before anything is cut.
                if first.tail.lost_header.is_some() {
                    interrupted[1][..SEGMENT_HEADER_BYTES]
                        .copy_from_slice(&whole[1][..SEGMENT_HEADER_BYTES]);
                }
                let again = scan_from(&known, &numbered(&interrupted)).unwrap();
                assert_eq!(again.tail.end, first.tail.end, "{seed} {lost} {tried}");
                assert_eq!(again.tail.salt, first.tail.salt, "{seed} {lost} {tried}");
                assert_eq!(again.entries, first.entries, "{seed} {lost} {tried}");
            }
        }
    }
}

/// R: D-2. What a sender put into a message is not taken for a record, even in a damaged frame.
#[test]
fn bytes_in_a_message_never_become_a_record() {
    let mut dice = Dice(23);
    let mut world = World::new(&mut dice);
    let copied = loop {
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
        if let Some(entry) = world.written.iter().find(|entry| entry.2.len() > 100) {
            let at = SIZE.offset_of(entry.0) - 40;
            break world.disk[0][at..at + 40 + entry.2.len().next_multiple_of(8)].to_vec();
        }
    };
    let target = loop {
        let count = world.written.len();
        assert!(world.append(&mut dice, FrameKind::Data));
        world.sync();
        let mut later = world.written[count..].iter();
        if let Some(entry) = later.find(|entry| entry.2.len() > copied.len() + 100) {
            break entry.clone();
        }
    };
    assert!(world.append(&mut dice, FrameKind::Seal));
    world.sync();
    let segment = SIZE.index_of(target.0) as usize;
    let mut disk = world.disk.clone();
    let at = SIZE.offset_of(target.0).next_multiple_of(8) + 16;
    disk[segment][at..at + copied.len()].copy_from_slice(&copied);
    disk[segment][SIZE.offset_of(target.0) - 40..SIZE.offset_of(target.0)].fill(0);
    let scanned = run_scan(&disk).unwrap();
    let mut expected = world.written.clone();
    expected.retain(|entry| entry.0 != target.0);
    assert_eq!((scanned.entries, scanned.broken.len()), (expected, 0));
    assert_eq!(scanned.holes[0].records_missing, Some(1));
}

/// One segment of `frames` small frames, each with one empty record and all before it durable.
fn many_frames(size: SegmentSize, frames: usize) -> Vec<u8> {
    let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
    let header = SegmentHeader {
        identity: origin().identity,
        incarnation: 1,
        first_lsn: 0,
        salt: 9,
        segment_bytes: size.bytes(),
        prev_crc: 0,
    };
    header.encode(&mut bytes);
    let (mut frame, mut prev_crc) = (FrameBuilder::new(), 0);
    for _ in 0..frames {
        let lsn = bytes.len() as u64;
        frame.record(RecordHeader::heads(&[]), &[]);
        let placement = Placement {
            kind: FrameKind::Data,
            lsn,
            synced_lsn: lsn,
            salt: 9,
            prev_crc,
        };
        prev_crc = frame.finish_into(&placement, &mut bytes);
    }
    bytes
}

/// R: D-2. Without its header a segment has the salt of its first frame, whatever a message holds.
#[test]
fn frames_inside_a_message_do_not_give_a_segment_their_salt() {
    let mut bytes = many_frames(SIZE, 1);
    let lsn = bytes.len() as u64;
    let (mut forged, mut prev_crc) = (Vec::new(), 0);
    for _ in 0..20 {
        let lsn = lsn + (FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + forged.len()) as u64;
        let mut frame = FrameBuilder::new();
        frame.record(RecordHeader::heads(&[]), &[]);
        let placement = Placement {
            kind: FrameKind::Data,
            lsn,
            synced_lsn: lsn,
            salt: 5,
            prev_crc,
        };
        prev_crc = frame.finish_into(&placement, &mut forged);
    }
    let mut frame = FrameBuilder::new();
    frame.record(RecordHeader::heads(&forged), &forged);
    let placement = Placement {
        kind: FrameKind::Data,
        lsn,
        synced_lsn: lsn,
        salt: 9,
        prev_crc: 0,
    };
    frame.finish_into(&placement, &mut bytes);
    let end = bytes.len() as u64;
    bytes.resize(SIZE.bytes() as usize, 0);
    bytes[lsn as usize + 50] ^= 1; // the body is looked into
    bytes[..SEGMENT_HEADER_BYTES].fill(0);
    let known = Origin {
        durable: end,
        ..origin()
    };
    let scanned = scan_from(&known, &[(0, &bytes)]).unwrap();
    let found: Vec<_> = scanned
        .holes
        .iter()
        .map(|hole| (hole.from, hole.to))
        .collect();
    assert_eq!(found, [(0, SEGMENT_HEADER_BYTES as u64), (lsn, end)]);
    assert_eq!((scanned.tail.salt, scanned.tail.end), (Some(9), end));
    assert_eq!(scanned.tail.frames, 1);
}

/// R: D-2
#[test]
fn more_holes_than_anyone_believes_end_the_scan() {
    const FRAME_BYTES: usize = FRAME_HEADER_BYTES + RECORD_HEADER_BYTES;
    let size = SegmentSize::small(1024 * 1024);
    let holes = HOLES_MAX as usize;
    let mut bytes = many_frames(size, 2 * holes + 4);
    bytes.resize(size.bytes() as usize, 0);
    let from = Origin { size, ..origin() };
    for number in 0..holes {
        bytes[SEGMENT_HEADER_BYTES + 2 * number * FRAME_BYTES + 60] ^= 1;
    }
    let scanned = scan_from(&from, &[(0, &bytes)]).unwrap();
    assert_eq!(scanned.tail.holes, HOLES_MAX);
    assert_eq!(scanned.tail.frames as usize, holes + 4);
    let one_more = SEGMENT_HEADER_BYTES + 2 * holes * FRAME_BYTES;
    bytes[one_more + 60] ^= 1;
    let found = scan_from(&from, &[(0, &bytes)]).map(|scanned| scanned.tail);
    let at = one_more as u64;
    assert_eq!(found, Err(ScanError::TooMuch { at }));
}

#[test]
fn missing_segments_in_a_row_are_one_hole_however_many() {
    let far = 1 << 40;
    let known = Origin {
        durable: SIZE.first_lsn(far) + 5000,
        ..origin()
    };
    let scanned = scan_from(&known, &[(7, &[]), (far - 1, &[1, 2, 3])]).unwrap();
    let hole = scanned.holes[0];
    let end = SIZE.first_lsn(far + 1); // nothing tells the salt of that segment
    assert_eq!(
        (hole.from, hole.to, hole.fault),
        (0, end, Fault::SegmentUnused)
    );
    assert_eq!((scanned.tail.end, scanned.tail.salt), (end, None));
}

fn end_of_first_segment(world: &World) -> Placed {
    let is_end = |placed: &&Placed| placed.kind == Some(FrameKind::End);
    *world.placed.iter().find(is_end).unwrap()
}

#[test]
fn a_whole_frame_that_does_not_continue_the_one_before_it_is_not_believed() {
    let mut world = written(18, 2);
    let end = world
        .placed
        .last()
        .map_or(0, |placed| placed.lsn + placed.len as u64);
    world.break_chain();
    assert!(world.append(&mut Dice(1), FrameKind::Seal));
    world.sync();
    let scanned = run_scan(&world.disk).unwrap();
    assert_eq!((scanned.tail.end, scanned.tail.fault), (end, Fault::Chain));
    assert_eq!(scanned.holes, []);
}

#[test]
fn a_segment_that_does_not_continue_the_one_before_it_is_not_believed() {
    let mut world = World::new(&mut Dice(19));
    world.break_chain();
    assert!(world.append(&mut Dice(19), FrameKind::Data));
    world.sync();
    let scanned = run_scan(&world.disk).unwrap();
    let tail = scanned.tail;
    assert_eq!(
        (tail.end, tail.salt, tail.fault),
        (0, None, Fault::SegmentChain)
    );
    assert!(scanned.entries.is_empty() && scanned.holes.is_empty());
}

#[test]
fn frames_of_another_use_of_the_file_are_neither_believed_nor_proof() {
    let mut world = written(20, 2);
    let end = world
        .placed
        .last()
        .map_or(0, |placed| placed.lsn + placed.len as u64);
    world.break_salt();
    for _ in 0..2 {
        assert!(world.append(&mut Dice(1), FrameKind::Seal)); // the second vouches for the first
        world.sync();
    }
    let scanned = run_scan(&world.disk).unwrap();
    assert_eq!((scanned.tail.end, scanned.tail.fault), (end, Fault::Stale));
    assert_eq!(scanned.holes, []);
}

/// R: D-3
#[test]
fn a_segment_of_another_node_is_refused_and_not_taken_for_a_torn_one() {
    let world = written(17, 2);
    let mut other = origin();
    other.identity.node_id += 1;
    let found = scan(&other, &numbered(&world.disk), &mut |_| {});
    assert!(
        matches!(found, Err(ScanError::Foreign { at: 0, .. })),
        "{found:?}"
    );
}

#[test]
fn a_segment_behind_the_last_position_of_all_is_refused_and_the_one_before_it_is_read() {
    let last = SIZE.index_of(u64::MAX);
    let from = Origin {
        lsn: SIZE.first_lsn(last - 1),
        ..origin()
    };
    let segments = [(last - 1, &[1_u8; 100][..]), (last, &[1; 100][..])];
    let tail = scan_from(&from, &segments[..1]).map(|scanned| scanned.tail.end);
    assert_eq!(tail, Ok(from.lsn));
    let at = SIZE.first_lsn(last);
    let found = scan_from(&from, &segments).map(|scanned| scanned.tail.end);
    assert_eq!(found, Err(ScanError::Beyond { at }));
}

#[test]
fn leftovers_are_found_in_their_blocks_and_nothing_before_the_cut() {
    let mut bytes = vec![0; 3 * CUT_BLOCK_BYTES + 100];
    for at in [5, 4000, 2 * CUT_BLOCK_BYTES, 3 * CUT_BLOCK_BYTES + 99] {
        bytes[at] = 1;
    }
    let mut found = Vec::new();
    leftovers(&bytes, 8, |at, len| found.push((at, len)));
    let expected = [
        (8, CUT_BLOCK_BYTES - 8),
        (2 * CUT_BLOCK_BYTES, CUT_BLOCK_BYTES),
        (3 * CUT_BLOCK_BYTES, 100),
    ];
    assert_eq!(found, expected);
}

#[test]
fn garbage_in_any_place_never_panics() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        live(&mut world, &mut dice, 1, true);
        let mut disk = world.disk.clone();
        for _ in 0..1 + dice.below(5) {
            let segment = dice.below(disk.len());
            let from = dice.below(disk[segment].len());
            let len = dice.below(3000).min(disk[segment].len() - from);
            let garbage = dice.bytes(len);
            disk[segment][from..from + len].copy_from_slice(&garbage);
            if dice.chance(20) {
                let len = dice.below(disk[segment].len());
                disk[segment].truncate(len);
            }
        }
        let _ = run_scan(&disk);
    }
}
