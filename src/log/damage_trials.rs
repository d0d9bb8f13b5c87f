//! Rotten bits, lost sectors and lost segments, by the thousand: what is outside of the damage is
//! still delivered, in order, and the damage is always told.

use super::crash_trials::{
    Dice, Placed, SEGMENTS, SIZE, Scanned, World, Written, live, numbered, origin, run_scan,
    scan_from,
};
use super::limits::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};
use super::recovery::{Fault, Hole, Origin};

/// Where a bit was flipped, and in what.
struct Hit {
    placed: Placed,
    /// Position of the byte.
    at: u64,
}

impl Hit {
    fn offset(&self) -> u64 {
        self.at - self.placed.lsn
    }

    fn in_header(&self) -> bool {
        self.placed.kind.is_none() || self.offset() < FRAME_HEADER_BYTES as u64
    }

    /// Whether the header of an entry was hit.
    fn heads(&self, entry: &Written) -> bool {
        (entry.0 - RECORD_HEADER_BYTES as u64..entry.0).contains(&self.at)
    }

    /// Whether the payload of an entry was hit.
    fn breaks(&self, entry: &Written) -> bool {
        (entry.0..entry.0 + entry.2.len() as u64).contains(&self.at)
    }
}

/// Everything that lies before the hit is proven durable by something that lies behind it.
fn is_proven(hit: &Hit, durable: &[Placed]) -> bool {
    durable.iter().any(|placed| match placed.kind {
        Some(_) => placed.synced_lsn > hit.placed.lsn,
        None => placed.lsn > hit.placed.lsn,
    })
}

fn durable(world: &World) -> Vec<Placed> {
    let durable = world.placed.iter();
    let durable = durable.filter(|placed| placed.lsn < world.synced);
    durable.copied().collect()
}

/// The one hole that a flipped bit makes.
fn check_hole(hole: &Hole, hit: &Hit, world: &World, seed: u64) {
    assert_eq!(hole.from, hit.placed.lsn, "seed {seed}: told elsewhere");
    let body = matches!(hole.fault, Fault::Body { .. });
    assert_eq!(body, !hit.in_header(), "seed {seed}: {hole:?}");
    let next = world
        .placed
        .iter()
        .map(|placed| placed.lsn)
        .find(|lsn| *lsn > hit.placed.lsn);
    match body {
        true => assert_eq!(hole.to, hole.from + hit.placed.len as u64, "seed {seed}"),
        false => assert_eq!(Some(hole.to), next, "seed {seed}: {hole:?}"),
    }
    let expected = match (body, hit.placed.kind) {
        (_, None) => Some(0),
        (false, Some(_)) => None,
        (true, Some(_)) => {
            let header_hit = world.written.iter().any(|entry| hit.heads(entry));
            Some(u32::from(header_hit))
        }
    };
    assert_eq!(hole.records_missing, expected, "seed {seed}: {hole:?}");
}

/// All but the record that was hit, in order.
fn check_entries(scanned: &Scanned, hit: &Hit, world: &World, seed: u64) {
    let kept = world.written.iter();
    let kept = kept.filter(|entry| !hit.heads(entry) && !hit.breaks(entry));
    let seen = scanned.entries.len();
    let kept: Vec<&Written> = kept.take(seen).collect();
    assert!(
        scanned.entries.iter().eq(kept.iter().copied()),
        "seed {seed}: invented, changed, lost or out of order"
    );
    let acknowledged = world.written[..world.acknowledged].iter();
    let lost = acknowledged.filter(|entry| hit.heads(entry) || hit.breaks(entry));
    assert!(
        seen + lost.count() >= world.acknowledged,
        "seed {seed}: lost what was not hit"
    );
    let broken = world.written.iter().filter(|entry| hit.breaks(entry));
    let broken: Vec<_> = broken.map(|entry| (entry.0, entry.1)).collect();
    assert!(
        scanned
            .broken
            .iter()
            .all(|found| { found.1.kind == super::RecordKind::Heads || broken.contains(found) }),
        "seed {seed}: {:?}",
        scanned.broken
    );
    let told = scanned.broken.iter().filter(|found| broken.contains(found));
    assert_eq!(told.count(), broken.len(), "seed {seed}: not told");
}

/// R: D-2
#[test]
fn one_flipped_bit_costs_the_record_that_it_hits_and_is_always_told() {
    let (mut proven, mut in_doubt, mut broken) = (0, 0, 0);
    for seed in 0..8000 {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        live(&mut world, &mut dice, 1, true);
        let durable = durable(&world);
        if durable.is_empty() {
            continue;
        }
        let mut disk = world.crash(&mut dice);
        let placed = durable[dice.below(durable.len())];
        let at = placed.lsn + dice.below(placed.len) as u64;
        let hit = Hit { placed, at };
        disk[SIZE.index_of(at) as usize][SIZE.offset_of(at)] ^= 1 << dice.below(8);
        let scanned = run_scan(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        if scanned.holes.is_empty() {
            assert!(
                !is_proven(&hit, &durable),
                "seed {seed}: cut as a torn tail"
            );
            assert_eq!(scanned.tail.end, placed.lsn, "seed {seed}: cut elsewhere");
            in_doubt += 1;
        } else {
            assert_eq!(scanned.holes.len(), 1, "seed {seed}: {:?}", scanned.holes);
            check_hole(&scanned.holes[0], &hit, &world, seed);
            check_entries(&scanned, &hit, &world, seed);
            assert!(
                scanned.tail.end >= world.synced,
                "seed {seed}: durable was cut"
            );
            proven += 1;
            broken += scanned.broken.len();
        }
        let known = Origin {
            durable: world.synced,
            ..origin()
        };
        let scanned = scan_from(&known, &numbered(&disk)).unwrap();
        assert_eq!(scanned.holes.len(), 1, "seed {seed}: silent");
        assert_eq!(scanned.holes[0].from, placed.lsn, "seed {seed}");
        check_entries(&scanned, &hit, &world, seed);
    }
    assert!(
        proven > in_doubt && broken > 500,
        "{proven} proven, {in_doubt} in doubt, {broken} broken: the trial tests too little"
    );
}

/// What a scan of a damaged log must hold to, whatever was done to it: nothing invented, all in
/// order, and what is not there lies in a hole.
fn check_honest(scanned: &Scanned, world: &World, seed: u64) {
    let mut written = world.written.iter();
    for entry in &scanned.entries {
        assert!(
            written.any(|candidate| candidate == entry),
            "seed {seed}: invented, changed or out of order"
        );
    }
    for entry in &world.written[..world.acknowledged] {
        if scanned.entries.contains(entry) {
            continue;
        }
        let covers = |hole: &Hole| hole.from <= entry.0 && entry.0 <= hole.to;
        assert!(
            scanned.holes.iter().any(covers),
            "seed {seed}: {entry:?} is lost in silence, {:?}",
            scanned.holes
        );
    }
    assert!(
        scanned.tail.end >= world.synced,
        "seed {seed}: durable was cut"
    );
}

/// Zeros, garbage or old bytes over a run of sectors, or a file cut short.
fn hurt(dice: &mut Dice, disk: &mut [Vec<u8>], upto: u64) {
    let segments = SIZE.index_of(upto - 1) as usize + 1;
    let segment = dice.below(segments);
    let end = match segment + 1 == segments {
        true => SIZE.offset_of(upto - 1) + 1,
        false => SIZE.bytes() as usize,
    };
    let from = (dice.below(end.div_ceil(512)) * 512).min(disk[segment].len());
    let len = (512 * (1 + dice.below(10))).min(disk[segment].len() - from);
    match dice.below(4) {
        0 => disk[segment].truncate(from),
        1 => {
            let garbage = dice.bytes(len);
            disk[segment][from..from + len].copy_from_slice(&garbage);
        }
        2 => disk[segment].clear(),
        _ => disk[segment][from..from + len].fill(0),
    }
}

/// From where to where nothing could be believed; holes that touch are one.
fn ranges(holes: &[Hole]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for hole in holes {
        match ranges.last_mut() {
            Some(last) if last.1 == hole.from => last.1 = hole.to,
            _ => ranges.push((hole.from, hole.to)),
        }
    }
    ranges
}

/// R: D-2
#[test]
fn lost_sectors_cost_what_they_held_and_the_log_goes_on_behind_them() {
    let (mut holes, mut lost) = (0, 0);
    for seed in 0..6000 {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        live(&mut world, &mut dice, 1, true);
        if world.synced == 0 {
            continue;
        }
        let mut disk = world.crash(&mut dice);
        for _ in 0..1 + dice.below(3) {
            hurt(&mut dice, &mut disk, world.synced);
        }
        let mut known = Origin {
            durable: world.synced,
            ..origin()
        };
        let scanned = scan_from(&known, &numbered(&disk)).unwrap();
        check_honest(&scanned, &world, seed);
        holes += scanned.holes.len();
        lost += world.acknowledged.saturating_sub(scanned.entries.len());
        // Another life behind the damage: the same holes, and all that it wrote.
        known.durable = scanned.tail.end;
        let mut history = std::mem::take(&mut world.written);
        history.retain(|entry| entry.0 <= scanned.tail.end); // it may be empty
        world.reborn(disk, &scanned);
        (world.acknowledged, world.written) = (history.len(), history);
        live(&mut world, &mut dice, 1, true);
        let disk = world.crash(&mut dice);
        let again = scan_from(&known, &numbered(&disk)).unwrap();
        let (left, right) = (ranges(&again.holes), ranges(&scanned.holes));
        assert_eq!(left, right, "seed {seed}");
        check_honest(&again, &world, seed);
    }
    assert!(
        holes > 3000 && lost > 1000,
        "{holes} holes, {lost} lost: tests too little"
    );
}

/// R: D-2
#[test]
fn a_missing_segment_is_one_hole_and_costs_what_it_held() {
    let mut trials = 0;
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        while world.append(&mut dice, super::FrameKind::Data) {
            world.sync();
        }
        let disk = world.crash(&mut dice);
        let missing = dice.below(SEGMENTS - 1) as u64;
        let mut segments = numbered(&disk);
        segments.retain(|(index, _)| *index != missing);
        let scanned = scan_from(&origin(), &segments).unwrap();
        let hole = scanned.holes[0];
        assert_eq!(scanned.holes.len(), 1, "seed {seed}");
        assert_eq!(hole.from, SIZE.first_lsn(missing), "seed {seed}");
        assert_eq!(hole.to, SIZE.first_lsn(missing + 1), "seed {seed}");
        assert_eq!(hole.fault, Fault::SegmentUnused, "seed {seed}");
        assert_eq!(hole.records_missing, None, "seed {seed}");
        let mut expected = world.written.clone();
        expected.retain(|entry| SIZE.index_of(entry.0) != missing);
        assert!(scanned.entries == expected, "seed {seed}");
        trials += 1;
    }
    assert_eq!(trials, 400);
}

/// R: D-2. A checkpoint says where to begin; what lies before it may be gone.
#[test]
fn a_scan_from_any_frame_shows_what_lies_behind_it() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        while world.append(&mut dice, super::FrameKind::Data) {
            world.sync();
        }
        let mut disk = world.crash(&mut dice);
        let frames: Vec<Placed> = durable(&world)
            .into_iter()
            .filter(|placed| placed.kind.is_some())
            .collect();
        let number = 1 + dice.below(frames.len() - 1);
        let (before, first) = (frames[number - 1], frames[number]);
        let at = SIZE.offset_of(before.lsn);
        let segment = &disk[SIZE.index_of(before.lsn) as usize];
        let mut from = Origin {
            lsn: first.lsn,
            prev_crc: u32::from_le_bytes(segment[at..at + 4].try_into().unwrap()),
            ..origin()
        };
        let index = SIZE.index_of(first.lsn);
        disk[..index as usize].fill(Vec::new());
        let mut segments = numbered(&disk);
        segments.retain(|(number, _)| *number >= index);
        let mut expected = world.written.clone();
        expected.retain(|entry| entry.0 > first.lsn);
        let scanned = scan_from(&from, &segments).unwrap();
        assert_eq!(scanned.holes, [], "seed {seed}");
        assert!(scanned.entries == expected, "seed {seed}");
        // With another predecessor it is a hole of nothing.
        from.prev_crc ^= 1;
        let scanned = scan_from(&from, &segments).unwrap();
        let is_last = number + 1 == frames.len();
        assert_eq!(scanned.holes.is_empty(), is_last, "seed {seed}");
        if let Some(hole) = scanned.holes.first() {
            assert_eq!(
                (hole.from, hole.to, hole.fault),
                (first.lsn, first.lsn, Fault::Chain)
            );
            assert!(scanned.entries == expected, "seed {seed}");
        }
        // The segment itself is gone: all of it behind the origin is a hole.
        segments.retain(|(number, _)| *number != index);
        let scanned = scan_from(&from, &segments).unwrap();
        let hole = scanned.holes[0];
        assert_eq!(
            (hole.from, hole.to),
            (first.lsn, SIZE.first_lsn(index + 1)),
            "seed {seed}"
        );
        expected.retain(|entry| SIZE.index_of(entry.0) > index);
        assert!(scanned.entries == expected, "seed {seed}");
    }
}
