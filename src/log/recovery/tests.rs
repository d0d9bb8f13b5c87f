//! The rule, case by case; `crash_trials` has it by the thousand.

use super::super::crash_trials::{Dice, SIZE, World, live, origin, run_scan};
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
        let (tail, seen) = run_scan(&disk).unwrap();
        assert_eq!(tail.end, last.lsn, "kept {kept} bytes of the last frame");
        assert!(seen.iter().all(|(lsn, _)| *lsn < last.lsn));
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
    let found = run_scan(&disk).map(|_| ());
    let Err(ScanError::Damaged { at, fault, .. }) = found else {
        panic!("{found:?}")
    };
    assert_eq!((at, fault), (hurt.lsn, Fault::Zero));
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
        let Err(ScanError::Damaged { at, fault, .. }) = run_scan(&disk) else {
            panic!()
        };
        assert_eq!(
            (at, fault),
            (SIZE.first_lsn(lost as u64), Fault::SegmentUnused)
        );
    }
}

#[test]
fn rotation_goes_on_across_segments_and_every_position_is_where_it_says() {
    let mut dice = Dice(14);
    let mut world = World::new(&mut dice);
    while world.append(&mut dice, FrameKind::Data) {
        world.sync();
    }
    let (tail, seen) = run_scan(&world.disk).unwrap();
    assert_eq!(SIZE.index_of(tail.end), 3);
    assert_eq!(seen, world.written);
    for (lsn, payload) in &seen {
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
    let (tail, seen) = run_scan(&world.disk).unwrap();
    assert_eq!((tail.end, tail.salt), (SIZE.first_lsn(1), None));
    assert_eq!(tail.last_kind, Some(FrameKind::End));
    assert_eq!(seen.len(), world.acknowledged);
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
    let is_end = |placed: &&super::super::crash_trials::Placed| placed.kind == Some(FrameKind::End);
    let end = *world.placed.iter().find(is_end).unwrap();
    let mut disk = world.disk.clone();
    disk[0][SIZE.offset_of(end.lsn) + 20] ^= 1;
    let Err(ScanError::Damaged { at, .. }) = run_scan(&disk) else {
        panic!()
    };
    assert_eq!(at, end.lsn);
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
    let (tail, _) = run_scan(&world.disk).unwrap();
    assert_eq!((tail.end, tail.fault), (end, Fault::Chain));
}

#[test]
fn a_segment_that_does_not_continue_the_one_before_it_is_not_believed() {
    let mut world = World::new(&mut Dice(19));
    world.break_chain();
    assert!(world.append(&mut Dice(19), FrameKind::Data));
    world.sync();
    let (tail, seen) = run_scan(&world.disk).unwrap();
    assert_eq!(
        (tail.end, tail.salt, tail.fault),
        (0, None, Fault::SegmentChain)
    );
    assert!(seen.is_empty());
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
    let (tail, _) = run_scan(&world.disk).unwrap();
    assert_eq!((tail.end, tail.fault), (end, Fault::Stale));
}

/// R: D-3
#[test]
fn a_segment_of_another_node_is_refused_and_not_taken_for_a_torn_one() {
    let world = written(17, 2);
    let slices: Vec<&[u8]> = world.disk.iter().map(Vec::as_slice).collect();
    let mut other = origin();
    other.identity.node_id += 1;
    let found = scan(&other, &slices, &mut |_| {});
    assert!(
        matches!(found, Err(ScanError::Foreign { at: 0, .. })),
        "{found:?}"
    );
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
