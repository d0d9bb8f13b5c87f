//! Where the next frame goes: placing, rotating, sealing, and what is durable. No file.
//!
//! ```text
//!   place ──▶ Flush: writes in order, each followed by its sync ──▶ whoever has the files
//!                                                                    │
//!   place is possible again                     ◀── durable(end) ◀───┘
//! ```
//! **Invariant.** `durable ≤ end`; they differ only while one flush is under way. Nothing below
//! `durable` is written again. Behind every frame there is room for an END with the heads of all
//! shards of this log.
//!
//! Segments are opened from spares, which are zeroed files made ahead by whoever has the files:
//! [`Writer::wants_segment`] says which, [`Writer::spare_ready`] that one is there. A failed flush
//! has no way back in: the process ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::builder::FrameBuilder;
use super::format::{
    FrameKind, NodeIdentity, Placement, RecordHeader, SegmentHeader, SegmentSize, heads_encode,
};
use super::limits::{
    ALIGN, BUFFERS_KEPT, FRAME_BYTES_MAX, HEADS_MAX, SEGMENT_HEADER_BYTES, SPARES, end_bytes,
};
use crate::planted::{self, Bug};

/// One write, to be followed by a data sync of the same segment's file.
#[derive(Debug, PartialEq, Eq)]
pub struct Write {
    /// Number of the segment.
    pub segment: u64,
    /// Offset in its file.
    pub offset: u64,
    /// What to write; give the buffer back by [`Writer::recycle`].
    pub bytes: Vec<u8>,
}

/// One frame on its way to the disk.
///
/// The writes are to be done in order, each followed by a data sync of its file, and one only after
/// the sync before it succeeded (linked operations do that): the second write says that the first
/// is durable. Any failure, a short write too, ends the process.
#[derive(Debug, PartialEq, Eq)]
pub struct Flush {
    /// The frame; on rotation the old segment's END first.
    pub writes: [Option<Write>; 2],
    /// Position of the frame: a payload's position is this plus what `FrameBuilder::record` said.
    pub lsn: u64,
    /// Position behind the frame, for [`Writer::durable`].
    pub end: u64,
}

/// Why a frame got no place. The frame is unchanged; try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The segment is full and the next one is still being zeroed.
    #[error("the next log segment is not ready yet; try again when the spare thread has made one")]
    NoSpare,
    /// The segment is full and the next one cannot be made.
    #[error("the disk has no room for the next log segment; free space, the log goes on by itself")]
    Full,
}

/// How a log stands with its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// Spares are there or being made.
    Enough,
    /// No new spare can be made, at least one is left: refuse new sends, go on with the rest.
    Low,
    /// No spare can be made and none is left: what does not fit the open segment cannot be written.
    Full,
}

/// Where a log goes on: what a scan's `Tail` says, and whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterStart {
    /// Whose log it is.
    pub identity: NodeIdentity,
    /// Start of the process, for the headers of the segments that it opens.
    pub incarnation: u64,
    /// Size of the segments.
    pub size: SegmentSize,
    /// Position of the next frame; all below is durable.
    pub end: u64,
    /// Header CRC of the last frame.
    pub prev_crc: u32,
    /// Salt of the segment that `end` lies in; None when the next frame opens a segment.
    pub salt: Option<u64>,
    /// The last frame leaves something for a SEAL to cover.
    pub unsealed: bool,
    /// Shards of this log: END always has room for the heads of so many.
    pub heads_max: usize,
}

/// The segment that frames are appended to.
#[derive(Clone, Copy, Debug)]
struct Active {
    segment: u64,
    salt: u64,
}

/// The writing side of one log.
#[derive(Debug)]
pub struct Writer {
    identity: NodeIdentity,
    incarnation: u64,
    size: SegmentSize,
    /// Bytes kept free behind every frame.
    end_room: usize,
    heads_max: usize,
    /// None when the next frame opens a segment.
    active: Option<Active>,
    /// Number of the segment that is opened next.
    next: u64,
    /// Salts of the spares that are there, by segment.
    spares: BTreeMap<u64, u64>,
    /// Segments below this have been asked for.
    asked: u64,
    /// The last preparation of a spare failed.
    failing: bool,
    /// Where the next frame goes.
    end: u64,
    /// All below is durable.
    durable: u64,
    in_flight: bool,
    prev_crc: u32,
    /// The last frame leaves something for a SEAL to cover.
    unsealed: bool,
    buffers: Vec<Vec<u8>>,
}

impl Writer {
    /// A log that goes on at `start`. Spares that are there already are told by
    /// [`Writer::spare_ready`] before the first [`Writer::wants_segment`].
    ///
    /// # Panics
    /// When `start` is not where a log can go on.
    pub fn new(start: WriterStart) -> Self {
        assert!(start.heads_max <= HEADS_MAX, "more shards than a log has");
        assert!(
            start.end.is_multiple_of(ALIGN as u64),
            "frames begin at multiples of 8"
        );
        let (offset, index) = (
            start.size.offset_of(start.end),
            start.size.index_of(start.end),
        );
        let active = start.salt.map(|salt| Active {
            segment: index,
            salt,
        });
        match active {
            Some(_) => assert!(offset >= SEGMENT_HEADER_BYTES, "inside an open segment"),
            None => assert_eq!(offset, 0, "a new segment begins at its first position"),
        }
        let next = index + u64::from(active.is_some());
        Self {
            identity: start.identity,
            incarnation: start.incarnation,
            size: start.size,
            end_room: end_bytes(start.heads_max),
            heads_max: start.heads_max,
            active,
            next,
            spares: BTreeMap::new(),
            asked: next,
            failing: false,
            end: start.end,
            durable: start.end,
            in_flight: false,
            prev_crc: start.prev_crc,
            unsealed: start.unsealed,
            buffers: Vec::with_capacity(BUFFERS_KEPT),
        }
    }

    /// Bytes of the largest frame that every segment of this log takes: for
    /// [`FrameBuilder::with_max`].
    pub fn frame_bytes_max(&self) -> usize {
        let room = self.size.bytes() as usize - SEGMENT_HEADER_BYTES;
        assert!(
            room > self.end_room,
            "segments too small for their END frame"
        );
        FRAME_BYTES_MAX.min(room - self.end_room) / ALIGN * ALIGN
    }

    /// Gives a frame its place and takes it out of `frame`, which is empty afterwards. A frame of
    /// kind Data has records; for one of kind Seal `frame` is empty, and the HEADS record is put
    /// in here.
    ///
    /// `heads` are the last ENTRY indexes of the shards as placed in *earlier* frames, without
    /// those in this one: they go into the END before it, when this frame opens a segment, and into
    /// a Seal. A shard with no entry may be left out.
    ///
    /// # Panics
    /// While another flush is under way, for a frame over [`Writer::frame_bytes_max`], and for
    /// more heads than the log has shards.
    pub fn place(
        &mut self,
        frame: &mut FrameBuilder,
        kind: FrameKind,
        heads: &[(u16, u64)],
    ) -> Result<Flush, PlaceError> {
        assert!(!self.in_flight, "one flush at a time");
        assert_eq!(
            self.durable, self.end,
            "nothing is in flight, so all is durable"
        );
        assert!(heads.len() <= self.heads_max, "a head for each shard");
        match kind {
            FrameKind::Data => assert!(!frame.is_empty(), "a data frame has records"),
            FrameKind::Seal => assert!(frame.is_empty(), "a seal has its heads only"),
            FrameKind::End | FrameKind::Checkpoint => panic!("{kind:?} is not placed from outside"),
        }
        let len = match kind {
            FrameKind::Seal => end_bytes(heads.len()),
            _ => frame.len(),
        };
        assert!(len <= self.frame_bytes_max(), "a frame over the limit");
        let slip = if planted::is(Bug::SegmentEnd) {
            ALIGN
        } else {
            0
        };
        let flush = if (len + self.end_room - slip) as u64 <= self.room() {
            self.append(frame, kind, heads)
        } else {
            self.rotate(frame, kind, heads)?
        };
        assert!(flush.end > self.durable);
        assert!(
            self.room() >= self.end_room as u64,
            "room for END behind it"
        );
        self.in_flight = true;
        self.unsealed = kind != FrameKind::Seal;
        Ok(flush)
    }

    /// The flush that ends at `upto` is durable: its last sync returned without an error.
    ///
    /// # Panics
    /// When `upto` is not the end of the flush under way.
    pub fn durable(&mut self, upto: u64) {
        assert_eq!(upto, self.end, "the end of the flush under way");
        assert!(self.in_flight, "durable without a flush");
        self.in_flight = false;
        self.durable = upto;
    }

    /// Whether a flush is under way.
    pub fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Position behind the last frame placed.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Position up to which all is durable.
    pub fn durable_end(&self) -> u64 {
        self.durable
    }

    /// Header CRC of the last frame placed.
    pub fn prev_crc(&self) -> u32 {
        self.prev_crc
    }

    /// Number of the segment that frames are appended to; None when the next frame opens one.
    pub fn active_segment(&self) -> Option<u64> {
        self.active.map(|active| active.segment)
    }

    /// Whether a SEAL frame would carry the watermark forward. After `SEAL_AFTER_MS` without a
    /// write, when this holds, place an empty frame of kind Seal.
    pub fn seal_due(&self) -> bool {
        self.unsealed && !self.in_flight
    }

    /// The next segment to be made a spare, if there are fewer than [`SPARES`] ahead. Each is
    /// named once: who has the files repeats a preparation that failed.
    pub fn wants_segment(&mut self) -> Option<u64> {
        self.asked = self.asked.max(self.next);
        while self.spares.contains_key(&self.asked) {
            self.asked += 1;
        }
        let wanted = self.asked;
        if wanted >= self.next + SPARES as u64 {
            return None;
        }
        self.asked += 1;
        Some(wanted)
    }

    /// Segment `segment` is zeroed, durable and unused. `salt` is random.
    ///
    /// # Panics
    /// When the segment has been opened already, or is a spare already.
    pub fn spare_ready(&mut self, segment: u64, salt: u64) {
        assert!(
            segment >= self.next,
            "a spare lies ahead of what was opened"
        );
        let before = self.spares.insert(segment, salt);
        assert!(before.is_none(), "a segment is made once");
        self.failing = false;
    }

    /// A spare could not be made. It stays wanted.
    pub fn spare_failed(&mut self) {
        self.failing = true;
    }

    /// How the log stands with its disk. Below [`Space::Enough`] new sends are to be refused.
    pub fn space(&self) -> Space {
        match (self.failing, self.spares.contains_key(&self.next)) {
            (false, _) => Space::Enough,
            (true, true) => Space::Low,
            (true, false) => Space::Full,
        }
    }

    /// Gives the buffer of a finished write back for the next frames.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < BUFFERS_KEPT {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// Bytes left in the open segment.
    fn room(&self) -> u64 {
        match self.active {
            Some(_) => self.size.bytes() - self.size.offset_of(self.end) as u64,
            None => 0,
        }
    }

    fn append(&mut self, frame: &mut FrameBuilder, kind: FrameKind, heads: &[(u16, u64)]) -> Flush {
        if kind == FrameKind::Seal {
            put_heads(frame, heads);
        }
        let (lsn, write) = (self.end, self.write_frame(frame, kind));
        Flush {
            writes: [write, None],
            lsn,
            end: self.end,
        }
    }

    /// The write that appends a frame to the open segment.
    fn write_frame(&mut self, frame: &mut FrameBuilder, kind: FrameKind) -> Option<Write> {
        let active = self.active?;
        let placement = Placement {
            kind,
            lsn: self.end,
            synced_lsn: self.durable,
            salt: active.salt,
            prev_crc: self.prev_crc,
        };
        let offset = self.size.offset_of(self.end) as u64;
        let mut bytes = self.buffers.pop().unwrap_or_default();
        self.prev_crc = frame.finish_into(&placement, &mut bytes);
        self.end += bytes.len() as u64;
        Some(Write {
            segment: active.segment,
            offset,
            bytes,
        })
    }

    /// Ends the open segment, if there is one, and opens the next with this frame.
    fn rotate(
        &mut self,
        frame: &mut FrameBuilder,
        kind: FrameKind,
        heads: &[(u16, u64)],
    ) -> Result<Flush, PlaceError> {
        let segment = self.next;
        let Some(salt) = self.spares.remove(&segment) else {
            return Err(match self.failing {
                true => PlaceError::Full,
                false => PlaceError::NoSpare,
            });
        };
        let mut end_frame = FrameBuilder::new();
        put_heads(&mut end_frame, heads);
        let end_write = self.write_frame(&mut end_frame, FrameKind::End);
        if kind == FrameKind::Seal {
            put_heads(frame, heads);
        }
        let first_lsn = self.size.first_lsn(segment);
        assert!(self.end <= first_lsn, "END fits its segment");
        let header = SegmentHeader {
            identity: self.identity,
            incarnation: self.incarnation,
            first_lsn,
            salt,
            segment_bytes: self.size.bytes(),
            prev_crc: self.prev_crc,
        };
        let lsn = first_lsn + SEGMENT_HEADER_BYTES as u64;
        let placement = Placement {
            kind,
            lsn,
            synced_lsn: self.end, // this is written only after END was synced, so it may say so
            salt,
            prev_crc: self.prev_crc,
        };
        let mut bytes = self.buffers.pop().unwrap_or_default();
        bytes.resize(SEGMENT_HEADER_BYTES, 0);
        header.encode(&mut bytes);
        self.prev_crc = frame.finish_into(&placement, &mut bytes);
        self.end = first_lsn + bytes.len() as u64;
        self.active = Some(Active { segment, salt });
        self.next = segment + 1;
        let write = Some(Write {
            segment,
            offset: 0,
            bytes,
        });
        let writes = match end_write {
            Some(_) => [end_write, write],
            None => [write, None],
        };
        Ok(Flush {
            writes,
            lsn,
            end: self.end,
        })
    }
}

/// Puts the HEADS record into an empty frame.
fn put_heads(frame: &mut FrameBuilder, heads: &[(u16, u64)]) {
    let mut payload = Vec::with_capacity(end_bytes(heads.len()));
    heads_encode(heads.iter().copied(), &mut payload);
    frame.record(RecordHeader::heads(&payload), &payload);
}

#[cfg(test)]
mod tests;
