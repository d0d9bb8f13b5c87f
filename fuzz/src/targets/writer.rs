//! Logs for seeds, by the real encoders.

use super::segments::{IDENTITY, SEGMENT_BYTES, size};
use crate::log::{
    FrameBuilder, FrameKind, Placement, RecordHeader, RecordKind, SegmentHeader, heads_encode,
    item_encode_into,
};

/// Shard, index, items.
pub type Entry<'a> = (u16, u64, &'a [&'a [u8]]);

/// A log in memory, each of whose frames was synced before the next.
#[derive(Clone)]
pub struct Log {
    pub segments: Vec<Vec<u8>>,
    first_index: u64,
    prev_crc: u32,
    synced_lsn: u64,
    salt: u64,
}

impl Log {
    pub fn new(first_index: u64) -> Self {
        let mut log = Self {
            segments: Vec::new(),
            first_index,
            prev_crc: 0,
            synced_lsn: size().first_lsn(first_index),
            salt: 0x5a17_0000,
        };
        log.open();
        log
    }

    pub fn last(&mut self) -> &mut Vec<u8> {
        self.segments.last_mut().expect("there is one")
    }

    fn open(&mut self) {
        let index = self.first_index + self.segments.len() as u64;
        self.salt += 1;
        let header = SegmentHeader {
            identity: IDENTITY,
            incarnation: 1,
            first_lsn: size().first_lsn(index),
            salt: self.salt,
            segment_bytes: SEGMENT_BYTES,
            prev_crc: self.prev_crc,
        };
        let mut bytes = vec![0; 4096];
        header.encode(&mut bytes);
        self.segments.push(bytes);
    }

    fn place(&mut self, mut frame: FrameBuilder, kind: FrameKind) {
        let index = self.first_index + self.segments.len() as u64 - 1;
        let lsn = size().first_lsn(index) + self.last().len() as u64;
        let placement = Placement {
            kind,
            lsn,
            synced_lsn: self.synced_lsn,
            salt: self.salt,
            prev_crc: self.prev_crc,
        };
        let mut bytes = Vec::new();
        self.prev_crc = frame.finish_into(&placement, &mut bytes);
        self.synced_lsn = lsn + bytes.len() as u64;
        self.last().extend_from_slice(&bytes);
    }

    fn payload(items: &[&[u8]]) -> Vec<u8> {
        let mut payload = Vec::new();
        for item in items {
            item_encode_into(&mut payload, item);
        }
        payload
    }

    pub fn data(&mut self, entries: &[Entry<'_>]) {
        let mut frame = FrameBuilder::new();
        for &(shard, index, items) in entries {
            let header = RecordHeader {
                kind: RecordKind::Entry,
                flags: 0,
                shard,
                term: 1,
                index,
                a: 1_763_900_000_000,
                b: items.len() as u64,
            };
            frame.record(header, &Self::payload(items));
        }
        self.place(frame, FrameKind::Data);
    }

    pub fn relocated(&mut self, items: &[&[u8]]) {
        self.relocated_of(3, items);
    }

    pub fn relocated_of(&mut self, shard: u16, items: &[&[u8]]) {
        let mut frame = FrameBuilder::new();
        let header = RecordHeader {
            kind: RecordKind::Reloc,
            flags: 0,
            shard,
            term: 1,
            index: 0,
            a: 0,
            b: items.len() as u64,
        };
        frame.record(header, &Self::payload(items));
        self.place(frame, FrameKind::Data);
    }

    fn heads(heads: &[(u16, u64)]) -> FrameBuilder {
        let mut payload = Vec::new();
        heads_encode(heads.iter().copied(), &mut payload);
        let mut frame = FrameBuilder::new();
        frame.record(RecordHeader::heads(&payload), &payload);
        frame
    }

    pub fn seal(&mut self) {
        self.seal_with(&[(3, 2), (4, 1)]);
    }

    pub fn seal_with(&mut self, heads: &[(u16, u64)]) {
        self.place(Self::heads(heads), FrameKind::Seal);
    }

    /// Ends the segment and opens the next.
    pub fn end(&mut self) {
        self.end_with(&[(3, 2), (4, 1)]);
    }

    pub fn end_with(&mut self, heads: &[(u16, u64)]) {
        self.place(Self::heads(heads), FrameKind::End);
        self.open();
    }

    /// Where the next frame goes, and what it continues.
    pub fn place_behind(&self) -> (u64, u32) {
        let index = self.first_index + self.segments.len() as u64 - 1;
        let offset = self.segments.last().map_or(0, Vec::len) as u64;
        (size().first_lsn(index) + offset, self.prev_crc)
    }
}
