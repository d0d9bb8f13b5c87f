//! Crashes, by the thousand: a writer in memory, a disk that keeps any subset of the sectors that
//! were not synced, and the rule that must neither lose what was acknowledged, nor invent, nor cry
//! damage where there is none. What rots is in `damage_trials`.
//!
//! One trial is a few lives of one log: frames, seals, rotations, a crash, recovery, on from there.
//! A trial is its seed; a failure prints it.

use super::limits::{SEGMENT_HEADER_BYTES, end_bytes};
use super::recovery::{Hole, Origin, ScanError, Seen, Tail, leftovers, scan};
use super::{
    FrameBuilder, FrameKind, NodeIdentity, Placement, RecordHeader, RecordKind, SegmentHeader,
    SegmentSize, heads, heads_encode, item_encode_into,
};

pub(super) const SIZE: SegmentSize = SegmentSize::small(16 * 1024);
pub(super) const SEGMENTS: usize = 4;
const SECTOR: usize = 512;
pub(super) const SHARDS: u16 = 3;
const ITEM_BYTES: [usize; 5] = [0, 21, 200, 700, 1200];
const IDENTITY: NodeIdentity = NodeIdentity {
    cluster_id: [3; 16],
    node_id: 5,
    log: 1,
};

/// SplitMix64: enough randomness for a test, and the same everywhere.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub(super) fn origin() -> Origin {
    Origin {
        size: SIZE,
        identity: IDENTITY,
        lsn: 0,
        prev_crc: 0,
        durable: 0,
        made: 0,
    }
}

fn fresh_tail() -> Tail {
    run_scan(&[]).unwrap().tail
}

/// An ENTRY: position of its payload, header, payload.
pub(super) type Written = (u64, RecordHeader, Vec<u8>);

/// What a scan has shown.
#[derive(Debug)]
pub(super) struct Scanned {
    pub tail: Tail,
    /// Entries, in order.
    pub entries: Vec<Written>,
    /// HEADS, with how many entries had been shown before.
    pub heads: Vec<(usize, Vec<(u16, u64)>)>,
    pub broken: Vec<(u64, RecordHeader)>,
    pub holes: Vec<Hole>,
}

pub(super) fn numbered(segments: &[Vec<u8>]) -> Vec<(u64, &[u8])> {
    (0..).zip(segments.iter().map(Vec::as_slice)).collect()
}

pub(super) fn run_scan(segments: &[Vec<u8>]) -> Result<Scanned, ScanError> {
    scan_from(&origin(), &numbered(segments))
}

pub(super) fn scan_from(origin: &Origin, segments: &[(u64, &[u8])]) -> Result<Scanned, ScanError> {
    let (mut entries, mut all_heads) = (Vec::new(), Vec::new());
    let (mut broken, mut holes) = (Vec::new(), Vec::new());
    let mut last = 0; // positions rise
    let tail = scan(origin, segments, &mut |seen| match seen {
        Seen::Record(found) => {
            assert!(found.lsn_of_payload > last, "out of order");
            last = found.lsn_of_payload;
            match found.record.kind {
                RecordKind::Heads => {
                    let heads = heads(found.payload).unwrap().collect();
                    all_heads.push((entries.len(), heads));
                }
                _ => entries.push((last, found.record, found.payload.to_vec())),
            }
        }
        Seen::Broken(found) => {
            assert!(found.lsn_of_payload > last, "out of order");
            last = found.lsn_of_payload;
            broken.push((last, found.record));
        }
        Seen::Hole(hole) => {
            assert!(hole.from >= last && hole.to >= hole.from, "out of order");
            let at_origin = hole.from == origin.lsn; // which is known to have been durable
            assert!(hole.proof_synced_lsn > hole.from || at_origin, "no proof");
            holes.push(hole);
        }
    })?;
    assert_eq!(tail.holes as usize, holes.len());
    Ok(Scanned {
        tail,
        entries,
        heads: all_heads,
        broken,
        holes,
    })
}

/// A frame or segment header that is durable: position, length that a CRC covers, watermark.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub lsn: u64,
    pub len: usize,
    pub synced_lsn: u64,
    pub kind: Option<FrameKind>,
}

/// A log in memory: what was written, and what the disk surely holds of it.
pub(super) struct World {
    pub memory: Vec<Vec<u8>>,
    pub disk: Vec<Vec<u8>>,
    /// Bytes written and not synced: segment, from, to.
    unsynced: Vec<(usize, usize, usize)>,
    end: u64,
    pub synced: u64,
    salt: Option<u64>,
    prev_crc: u32,
    /// Entries in order, and how many of them were acknowledged.
    pub written: Vec<Written>,
    pub acknowledged: usize,
    /// Last index of each shard.
    pub heads: [u64; SHARDS as usize],
    pub placed: Vec<Placed>,
}

impl World {
    pub fn new(dice: &mut Dice) -> Self {
        let mut memory = vec![vec![0; SIZE.bytes() as usize]; SEGMENTS];
        if dice.chance(50) {
            for segment in &mut memory {
                stale(dice, segment);
            }
        }
        let mut world = Self {
            disk: memory.clone(),
            memory,
            unsynced: Vec::new(),
            end: 0,
            synced: 0,
            salt: None,
            prev_crc: 0,
            written: Vec::new(),
            acknowledged: 0,
            heads: [0; SHARDS as usize],
            placed: Vec::new(),
        };
        world.adopt(&fresh_tail());
        world
    }

    fn adopt(&mut self, tail: &Tail) {
        self.end = tail.end;
        self.synced = tail.end;
        self.salt = tail.salt;
        self.prev_crc = tail.prev_crc;
    }

    /// The next frame or segment will not continue what is there.
    pub fn break_chain(&mut self) {
        self.prev_crc ^= 1;
    }

    /// The next frames carry another salt than their segment.
    pub fn break_salt(&mut self) {
        self.salt = self.salt.map(|salt| salt ^ 1);
    }

    fn write(&mut self, lsn: u64, bytes: &[u8]) {
        let (segment, from) = (SIZE.index_of(lsn) as usize, SIZE.offset_of(lsn));
        self.memory[segment][from..from + bytes.len()].copy_from_slice(bytes);
        self.unsynced.push((segment, from, from + bytes.len()));
    }

    pub fn sync(&mut self) {
        for (segment, from, to) in self.unsynced.drain(..) {
            self.disk[segment][from..to].copy_from_slice(&self.memory[segment][from..to]);
        }
        self.synced = self.end;
        self.acknowledged = self.written.len();
    }

    fn frame(&mut self, builder: &mut FrameBuilder, kind: FrameKind, out: &mut Vec<u8>) {
        let (lsn, synced_lsn) = (self.end, self.synced);
        let salt = self.salt.unwrap();
        let placement = Placement {
            kind,
            lsn,
            synced_lsn,
            salt,
            prev_crc: self.prev_crc,
        };
        let before = out.len();
        self.prev_crc = builder.finish_into(&placement, out);
        let len = out.len() - before;
        self.placed.push(Placed {
            lsn,
            len,
            synced_lsn,
            kind: Some(kind),
        });
        self.end += len as u64;
    }

    /// Writes one frame as the storage does; false when the last segment is full.
    pub fn append(&mut self, dice: &mut Dice, kind: FrameKind) -> bool {
        let before = self.heads;
        let mut builder = FrameBuilder::new();
        let mut entries = Vec::new();
        if kind == FrameKind::Data {
            for _ in 0..1 + dice.below(3) {
                let (record, payload) = self.entry(dice);
                entries.push((builder.record(record, &payload) as u64, record, payload));
            }
        } else {
            put_heads(&mut builder, &before);
        }
        let room = SIZE.bytes() as usize - SIZE.offset_of(self.end);
        if self.salt.is_none() || builder.len() + end_bytes(SHARDS as usize) > room {
            let next = SIZE.index_of(self.end) + u64::from(self.salt.is_some());
            if next as usize >= SEGMENTS {
                self.heads = before;
                return false;
            }
            self.open_segment(dice, next, &before);
        }
        let mut bytes = Vec::new();
        let lsn = self.end;
        self.frame(&mut builder, kind, &mut bytes);
        self.write(lsn, &bytes);
        let entries = entries.into_iter();
        let entries = entries.map(|(at, record, payload)| (lsn + at, record, payload));
        self.written.extend(entries);
        true
    }

    /// The next entry of some shard.
    fn entry(&mut self, dice: &mut Dice) -> (RecordHeader, Vec<u8>) {
        let shard = dice.below(SHARDS as usize);
        self.heads[shard] += 1;
        let (mut payload, items) = (Vec::new(), dice.below(4));
        for _ in 0..items {
            let len = ITEM_BYTES[dice.below(ITEM_BYTES.len())];
            item_encode_into(&mut payload, &dice.bytes(len));
        }
        let record = RecordHeader {
            kind: RecordKind::Entry,
            flags: 0,
            shard: shard as u16,
            term: 1,
            index: self.heads[shard],
            a: 2,
            b: items as u64,
        };
        (record, payload)
    }

    /// END and its sync, then the header, not yet synced.
    fn open_segment(&mut self, dice: &mut Dice, next: u64, heads: &[u64]) {
        if self.salt.is_some() {
            self.sync();
            let (mut bytes, lsn) = (Vec::new(), self.end);
            let mut end_frame = FrameBuilder::new();
            put_heads(&mut end_frame, heads);
            self.frame(&mut end_frame, FrameKind::End, &mut bytes);
            self.write(lsn, &bytes);
            self.sync();
        }
        let salt = dice.next();
        let first_lsn = SIZE.first_lsn(next);
        let header = SegmentHeader {
            identity: IDENTITY,
            incarnation: 1,
            first_lsn,
            salt,
            segment_bytes: SIZE.bytes(),
            prev_crc: self.prev_crc,
        };
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        header.encode(&mut bytes);
        self.write(first_lsn, &bytes);
        let synced_lsn = self.synced;
        self.placed.push(Placed {
            lsn: first_lsn,
            len: 80,
            synced_lsn,
            kind: None,
        });
        self.salt = Some(salt);
        self.end = first_lsn + SEGMENT_HEADER_BYTES as u64;
    }

    /// What is on the disk after a crash now: of what was not synced, any subset of the sectors,
    /// some of them torn.
    pub fn crash(&self, dice: &mut Dice) -> Vec<Vec<u8>> {
        let mut disk = self.disk.clone();
        for &(segment, from, to) in &self.unsynced {
            let mut at = from;
            while at < to {
                let end = ((at / SECTOR + 1) * SECTOR).min(to);
                if dice.chance(50) {
                    // Sectors are torn too, now and then: nothing rests on their being atomic.
                    let torn = if dice.chance(10) {
                        dice.below(end - at)
                    } else {
                        0
                    };
                    let kept = at..end - torn;
                    disk[segment][kept.clone()].copy_from_slice(&self.memory[segment][kept]);
                }
                at = end;
            }
        }
        disk
    }

    /// Goes on after a recovery: cut, and forget what was cut or lost.
    pub fn reborn(&mut self, mut disk: Vec<Vec<u8>>, scanned: &Scanned) {
        let tail = &scanned.tail;
        cut(&mut disk, tail);
        self.memory.clone_from(&disk);
        self.disk = disk;
        self.unsynced.clear();
        self.adopt(tail);
        self.written.clone_from(&scanned.entries);
        self.placed.retain(|placed| placed.lsn < tail.end);
        self.acknowledged = self.written.len();
        self.heads = [0; SHARDS as usize];
        for (_, record, _) in &self.written {
            self.heads[usize::from(record.shard)] = record.index;
        }
    }
}

/// What a start does with a disk: a header that the tail needs, and zeros behind the end.
pub(super) fn cut(disk: &mut [Vec<u8>], tail: &Tail) {
    let end_index = SIZE.index_of(tail.end) as usize;
    if let (Some(prev_crc), Some(salt)) = (tail.lost_header, tail.salt) {
        let header = SegmentHeader {
            identity: IDENTITY,
            incarnation: 2,
            first_lsn: SIZE.first_lsn(end_index as u64),
            salt,
            segment_bytes: SIZE.bytes(),
            prev_crc,
        };
        header.encode(&mut disk[end_index]);
    }
    for (number, segment) in disk.iter_mut().enumerate().skip(end_index) {
        let from = if number == end_index {
            SIZE.offset_of(tail.end)
        } else {
            0
        };
        let mut ranges = Vec::new();
        leftovers(segment, from, |at, len| ranges.push(at..at + len));
        for range in ranges {
            segment[range].fill(0);
        }
        segment.resize(SIZE.bytes() as usize, 0);
    }
}

fn put_heads(builder: &mut FrameBuilder, heads: &[u64]) {
    let mut payload = Vec::new();
    heads_encode((0..).zip(heads.iter().copied()), &mut payload);
    builder.record(RecordHeader::heads(&payload), &payload);
}

/// Whole frames of the file's earlier use: another salt, other positions; no header.
fn stale(dice: &mut Dice, segment: &mut [u8]) {
    let mut at = SEGMENT_HEADER_BYTES;
    loop {
        let mut builder = FrameBuilder::new();
        let len = dice.below(600);
        builder.record(RecordHeader::heads(&[]), &dice.bytes(len));
        let lsn = (1 << 40) + at as u64;
        let placement = Placement {
            kind: FrameKind::Data,
            lsn,
            synced_lsn: lsn,
            salt: 1,
            prev_crc: 0,
        };
        let mut bytes = Vec::new();
        builder.finish_into(&placement, &mut bytes);
        let Some(place) = segment.get_mut(at..at + bytes.len()) else {
            return;
        };
        place.copy_from_slice(&bytes);
        at += bytes.len();
    }
}

/// A life: some flushes, `pipeline` of them unsynced at once, seals after quiet moments.
pub(super) fn live(world: &mut World, dice: &mut Dice, pipeline: usize, seal: bool) {
    let mut unsynced = 0;
    for _ in 0..1 + dice.below(10) {
        if !world.append(dice, FrameKind::Data) {
            break;
        }
        unsynced += 1;
        if unsynced >= pipeline || dice.chance(30) {
            if dice.chance(20) {
                break; // the crash comes before the sync
            }
            world.sync();
            unsynced = 0;
            if seal && dice.chance(50) && world.append(dice, FrameKind::Seal) {
                world.sync();
            }
        }
    }
}

fn crash_trial(seed: u64, pipeline: usize, seal: bool) {
    let mut dice = Dice(seed);
    let mut world = World::new(&mut dice);
    for life in 0..3 {
        live(&mut world, &mut dice, pipeline, seal);
        let disk = world.crash(&mut dice);
        let scanned = run_scan(&disk).unwrap_or_else(|error| {
            panic!("seed {seed} life {life}: {error:?}");
        });
        let (tail, count) = (scanned.tail, scanned.entries.len());
        assert_eq!(scanned.holes, [], "seed {seed} life {life}: false alarm");
        assert_eq!(scanned.broken, [], "seed {seed} life {life}: false alarm");
        assert!(
            tail.end >= world.synced,
            "seed {seed} life {life}: synced bytes were cut"
        );
        assert!(
            count >= world.acknowledged,
            "seed {seed} life {life}: acknowledged lost"
        );
        assert!(
            scanned.entries[..] == world.written[..count],
            "seed {seed} life {life}: invented, changed or out of order"
        );
        for (entries, heads) in &scanned.heads {
            let expected = heads_of(&world.written[..*entries]);
            assert_eq!(*heads, expected, "seed {seed} life {life}: heads");
        }
        let known = Origin {
            durable: world.synced,
            made: SIZE.first_lsn(disk.len() as u64),
            ..origin()
        };
        let known = scan_from(&known, &numbered(&disk)).unwrap();
        assert_eq!(
            (known.tail, known.holes),
            (tail, vec![]),
            "seed {seed} life {life}"
        );
        world.reborn(disk, &scanned);
        let again = run_scan(&world.disk).map(|again| (again.tail.end, again.entries.len()));
        assert_eq!(
            again,
            Ok((tail.end, count)),
            "seed {seed} life {life}: the cut changed it"
        );
    }
}

/// Last index of each shard among `entries`.
pub(super) fn heads_of(entries: &[Written]) -> Vec<(u16, u64)> {
    let last = |shard| {
        let mut of_shard = entries.iter().rev().filter(|entry| entry.1.shard == shard);
        of_shard.next().map_or(0, |entry| entry.1.index)
    };
    (0..SHARDS).map(|shard| (shard, last(shard))).collect()
}

/// R: D-6, D-2
#[test]
fn no_crash_loses_what_was_acknowledged_or_raises_a_false_alarm() {
    for (pipeline, seal) in [(1, false), (1, true), (3, false), (3, true)] {
        for seed in 0..2000 {
            crash_trial(seed, pipeline, seal);
        }
    }
}
