//! The writer alone: what it writes is read back by eye, not by recovery.

use super::super::limits::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};
use super::super::{FrameHeader, RecordKind, heads, records};
use super::*;

const SIZE: SegmentSize = SegmentSize::small(16 * 1024);
const HEADS_MAX_HERE: usize = 40;
const START: WriterStart = WriterStart {
    identity: NodeIdentity {
        cluster_id: [1; 16],
        node_id: 2,
        log: 3,
    },
    incarnation: 4,
    size: SIZE,
    end: 0,
    prev_crc: 0,
    salt: None,
    unsealed: false,
    heads_max: HEADS_MAX_HERE,
};

fn entry(index: u64) -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Entry,
        flags: 0,
        shard: 1,
        term: 1,
        index,
        a: 0,
        b: 0,
    }
}

/// A frame of one record that is `len` long in all.
fn frame(writer: &Writer, len: usize) -> FrameBuilder {
    let mut frame = FrameBuilder::with_max(writer.frame_bytes_max());
    let payload = vec![7; len - FRAME_HEADER_BYTES - RECORD_HEADER_BYTES];
    frame.record(entry(1), &payload);
    frame
}

fn with_spares() -> Writer {
    let mut writer = Writer::new(START);
    make_spares(&mut writer);
    writer
}

fn make_spares(writer: &mut Writer) {
    while let Some(segment) = writer.wants_segment() {
        writer.spare_ready(segment, 100 + segment);
    }
}

fn place(writer: &mut Writer, len: usize, heads: &[(u16, u64)]) -> Flush {
    let flush = writer
        .place(&mut frame(writer, len), FrameKind::Data, heads)
        .unwrap();
    writer.durable(flush.end);
    make_spares(writer);
    flush
}

/// Header and body of the frame in `write`, behind a segment header if that comes first.
fn read(write: &Write) -> (FrameHeader, &[u8]) {
    let at = if write.offset == 0 {
        SEGMENT_HEADER_BYTES
    } else {
        0
    };
    let header = FrameHeader::decode(&write.bytes[at..]).unwrap();
    let body = &write.bytes[at + FRAME_HEADER_BYTES..];
    assert_eq!(body.len(), header.body_len as usize);
    assert_eq!(crc32fast::hash(body), header.body_crc);
    assert_eq!(
        SIZE.offset_of(header.lsn) as u64,
        write.offset + at as u64,
        "the frame says where it is"
    );
    assert_eq!(SIZE.index_of(header.lsn), write.segment);
    (header, body)
}

/// The heads in a frame that has nothing else.
fn heads_in(write: &Write) -> Vec<(u16, u64)> {
    let (header, body) = read(write);
    let mut found = Vec::new();
    records(&header, body, |record, _, payload| {
        assert_eq!(record.kind, RecordKind::Heads);
        found.push(heads(payload).unwrap().collect());
    })
    .unwrap();
    assert_eq!(found.len(), 1, "exactly one record of heads");
    found.remove(0)
}

#[test]
fn frames_chain_from_the_first_segment_header_on_and_say_what_was_durable() {
    let mut writer = with_spares();
    let first = place(&mut writer, 400, &[]);
    let write = first.writes[0].as_ref().unwrap();
    let segment = SegmentHeader::decode(&write.bytes).unwrap();
    assert_eq!(
        (segment.prev_crc, segment.salt, segment.first_lsn),
        (0, 100, 0)
    );
    assert_eq!((segment.incarnation, segment.identity), (4, START.identity));
    let (mut before, _) = read(write);
    assert_eq!((before.prev_crc, before.synced_lsn), (0, 0));
    assert!(first.writes[1].is_none());
    for round in 0..5 {
        let end = writer.end();
        let flush = place(&mut writer, 300 + round * 8, &[(1, 1)]);
        let (header, _) = read(flush.writes[0].as_ref().unwrap());
        assert_eq!((header.lsn, header.synced_lsn), (end, end));
        assert_eq!((flush.lsn, flush.end), (end, writer.end()));
        assert_eq!((header.prev_crc, header.salt), (before.hdr_crc, 100));
        assert_eq!(writer.prev_crc(), header.hdr_crc);
        before = header;
    }
    assert_eq!(writer.active_segment(), Some(0));
}

/// R: D-2
#[test]
fn an_end_with_the_heads_of_all_shards_fits_behind_frames_of_every_length() {
    let all: Vec<(u16, u64)> = (0..HEADS_MAX_HERE as u16)
        .map(|shard| (shard, u64::from(shard) + 9))
        .collect();
    for len in (96..3000).step_by(8) {
        let mut writer = with_spares();
        let end = loop {
            let before = writer.prev_crc();
            let flush = place(&mut writer, len, &all);
            if let [Some(end), Some(_)] = flush.writes {
                assert_eq!(read(&end).0.prev_crc, before);
                break end;
            }
        };
        let (header, _) = read(&end);
        assert_eq!(header.kind(), Some(FrameKind::End));
        assert_eq!(heads_in(&end), all, "frames of {len} bytes");
        assert!(end.offset + end.bytes.len() as u64 <= SIZE.bytes());
        let left = SIZE.bytes() - end.offset;
        assert!(
            left < (len + 2 * end_bytes(HEADS_MAX_HERE)) as u64,
            "room wasted"
        );
    }
}

/// R: D-2. Rotation: the second write is made after the sync of the first, and says so.
#[test]
fn the_frame_that_opens_a_segment_says_that_the_end_before_it_is_durable() {
    let mut writer = with_spares();
    let max = writer.frame_bytes_max();
    place(&mut writer, max, &[]);
    let flush = place(&mut writer, max, &[(1, 7)]);
    let [Some(end), Some(write)] = &flush.writes else {
        panic!("{flush:?}")
    };
    let (end_frame, _) = read(end);
    let (opening, _) = read(write);
    assert_eq!(opening.synced_lsn, end_frame.lsn + end.bytes.len() as u64);
    assert_eq!(opening.prev_crc, end_frame.hdr_crc);
    let segment = SegmentHeader::decode(&write.bytes).unwrap();
    assert_eq!((segment.prev_crc, segment.salt), (end_frame.hdr_crc, 101));
    assert_eq!((opening.salt, end_frame.salt), (101, 100));
    assert_eq!((end.segment, write.segment, write.offset), (0, 1, 0));
    assert_eq!(flush.lsn, SIZE.bytes() + SEGMENT_HEADER_BYTES as u64);
    assert_eq!(
        (flush.end, writer.active_segment()),
        (writer.end(), Some(1))
    );
    assert_eq!(heads_in(end), [(1, 7)], "the state before the frame");
}

#[test]
fn a_seal_carries_the_heads_and_is_due_once_after_each_frame() {
    let mut writer = with_spares();
    assert!(!writer.seal_due());
    let flush = writer
        .place(&mut frame(&writer, 200), FrameKind::Data, &[])
        .unwrap();
    assert!(writer.in_flight() && !writer.seal_due());
    assert_eq!(writer.durable_end(), 0);
    writer.durable(flush.end);
    assert!(writer.seal_due() && !writer.in_flight());
    let mut empty = FrameBuilder::new();
    let seal = writer
        .place(&mut empty, FrameKind::Seal, &[(1, 1), (4, 9)])
        .unwrap();
    writer.durable(seal.end);
    let write = seal.writes[0].as_ref().unwrap();
    assert_eq!(read(write).0.kind(), Some(FrameKind::Seal));
    assert_eq!(heads_in(write), [(1, 1), (4, 9)]);
    assert!(!writer.seal_due() && empty.is_empty());
    assert_eq!(writer.durable_end(), seal.end);
}

#[test]
fn a_seal_that_does_not_fit_any_more_opens_the_next_segment() {
    let mut writer = with_spares();
    let max = writer.frame_bytes_max();
    place(&mut writer, max, &[]);
    let seal = writer
        .place(&mut FrameBuilder::new(), FrameKind::Seal, &[(1, 1)])
        .unwrap();
    let [Some(end), Some(write)] = &seal.writes else {
        panic!("{seal:?}")
    };
    assert_eq!(
        (heads_in(end), heads_in(write)),
        (vec![(1, 1)], vec![(1, 1)])
    );
    assert_eq!(read(write).0.kind(), Some(FrameKind::Seal));
}

#[test]
fn two_spares_are_wanted_ahead_and_each_is_asked_for_once() {
    let mut writer = Writer::new(START);
    writer.spare_ready(0, 50); // found at start-up
    assert_eq!(writer.wants_segment(), Some(1));
    assert_eq!(writer.wants_segment(), None);
    let max = writer.frame_bytes_max();
    let flush = writer
        .place(&mut frame(&writer, max), FrameKind::Data, &[])
        .unwrap();
    writer.durable(flush.end);
    assert_eq!(writer.wants_segment(), Some(2));
    assert_eq!(writer.wants_segment(), None);
    writer.spare_ready(2, 52); // they may come in any order
    writer.spare_ready(1, 51);
    assert_eq!(writer.wants_segment(), None);
}

/// R: B-8
#[test]
fn a_frame_refused_for_want_of_a_segment_is_kept_and_placed_when_there_is_one() {
    let mut writer = Writer::new(START);
    assert_eq!(writer.wants_segment(), Some(0));
    let mut refused = frame(&writer, 200);
    let none = writer.place(&mut refused, FrameKind::Data, &[]);
    assert_eq!(none, Err(PlaceError::NoSpare));
    assert_eq!(writer.space(), Space::Enough);
    writer.spare_failed();
    let full = writer.place(&mut refused, FrameKind::Data, &[]);
    assert_eq!((full, writer.space()), (Err(PlaceError::Full), Space::Full));
    let mut empty = FrameBuilder::new();
    let full = writer.place(&mut empty, FrameKind::Seal, &[(1, 1)]);
    assert_eq!((full, empty.is_empty()), (Err(PlaceError::Full), true));
    assert_eq!(
        (refused.records(), writer.end(), writer.prev_crc()),
        (1, 0, 0)
    );
    writer.spare_ready(0, 9);
    assert_eq!(writer.space(), Space::Enough);
    writer.spare_failed();
    assert_eq!(writer.space(), Space::Low);
    assert!(writer.place(&mut refused, FrameKind::Data, &[]).is_ok());
}

#[test]
fn a_log_goes_on_inside_the_segment_where_recovery_left_it() {
    let mut writer = Writer::new(WriterStart {
        end: SIZE.first_lsn(3) + 5000,
        prev_crc: 8,
        salt: Some(6),
        unsealed: true,
        ..START
    });
    assert!(writer.seal_due());
    assert_eq!(
        (writer.active_segment(), writer.wants_segment()),
        (Some(3), Some(4))
    );
    writer.recycle(vec![1; 10]); // what is in an old buffer is not written
    let flush = place(&mut writer, 200, &[]);
    let write = flush.writes[0].as_ref().unwrap();
    assert_eq!(
        (write.segment, write.offset, write.bytes.len()),
        (3, 5000, 200)
    );
    let (header, _) = read(write);
    assert_eq!((header.salt, header.prev_crc), (6, 8));
    assert_eq!(header.synced_lsn, header.lsn);
}

#[test]
#[should_panic(expected = "one flush at a time")]
fn a_second_flush_before_the_first_is_durable_is_a_bug() {
    let mut writer = with_spares();
    for _ in 0..2 {
        let _ = writer.place(&mut frame(&writer, 200), FrameKind::Data, &[]);
    }
}
