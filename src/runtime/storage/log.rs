//! One log as its core sees it: a place for the next frame, and bytes that are durable.
//!
//! ```text
//!   place ──▶ Flush: writes in order, each followed by its sync ──▶ kernel
//!                                                                    │
//!   bytes_at, item: positions below `durable`  ◀── durable(end) ◀────┘
//! ```
//! **Invariant.** `durable ≤ end`; they differ only while one flush is under way. Nothing below
//! `durable` is written again, and nothing at or above it is handed out.
//!
//! Nothing here blocks: files are made, zeroed and closed by the spare thread. A failed flush has
//! no way back in: the process ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::log::limits::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::log::recovery::{Fault, Recovered};
use crate::log::{
    FrameBuilder, FrameKind, ItemError, NodeIdentity, Placement, SegmentHeader, SegmentSize,
    item_at,
};

use super::data_dir::DataDir;
use super::limits::{BLOCK_BYTES, BUFFERS_KEPT, SPARES};
use super::mmap::SegmentMap;
use super::recover;
use super::spare::{Space, Spare, SpareMaker};

/// One write, to be followed by a data sync of the same file.
#[derive(Debug)]
pub struct Write {
    /// The segment's file; open until [`Log::durable`].
    pub fd: RawFd,
    /// Offset in the file.
    pub offset: u64,
    /// What to write; give the buffer back by [`Log::recycle`].
    pub bytes: Vec<u8>,
}

/// One frame on its way to the disk.
///
/// The writes are to be done in order, each followed by a data sync of its file, and one only after
/// the sync before it succeeded (linked operations do that): the second write says that the first
/// is durable. Any failure, a short write too, ends the process.
#[derive(Debug)]
pub struct Flush {
    /// The frame; on rotation the old segment's END first.
    pub writes: [Option<Write>; 2],
    /// Position of the frame: a payload's position is this plus what `FrameBuilder::record` said.
    pub lsn: u64,
    /// Position behind the frame, for [`Log::durable`].
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

/// Why there is no item at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nothing durable lies there.
    #[error("position {position} is outside of the log, which is durable up to {durable}")]
    Outside {
        /// Position asked for.
        position: u64,
        /// End of what may be read.
        durable: u64,
    },
    /// What lies there is not whole.
    #[error("log position {position}: {source}")]
    Item {
        /// Position asked for.
        position: u64,
        /// What is wrong.
        source: ItemError,
    },
}

/// Why a log cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes that had been durable are not what they were.
    #[error(
        "log segment {path} is damaged at byte {offset} (position {lsn:#x}): {fault}, but the \
         frame at position {proof_lsn:#x} says that the log was durable up to \
         {proof_synced_lsn:#x}; restore the data directory from a backup; \
         nothing was changed"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Offset of the frame in it.
        offset: u64,
        /// Position of the frame.
        lsn: u64,
        /// What is wrong with it.
        fault: Fault,
        /// Position of the later frame that proves it.
        proof_lsn: u64,
        /// What that frame says to have been durable.
        proof_synced_lsn: u64,
    },
    /// The log ends before what the superblock knows to have been durable.
    #[error(
        "log {path} ends at position {end:#x}, but was durable up to {known:#x} at the last stop; \
         restore the missing segments from a backup"
    )]
    Behind {
        /// The log's directory.
        path: PathBuf,
        /// Where it ends.
        end: u64,
        /// Where it ended before.
        known: u64,
    },
    /// A segment is not there although a later one is.
    #[error("log segment {path} is missing although later ones exist; restore it from a backup")]
    Missing {
        /// The segment.
        path: PathBuf,
    },
    /// A segment of another node, log, position or size.
    #[error(
        "log segment {path} belongs elsewhere (log {log}, position {first_lsn:#x}, node \
         {node_id:#018x}); put the segment of this data directory in its place"
    )]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// Log that it says it belongs to.
        log: u32,
        /// Position that it says it begins at.
        first_lsn: u64,
        /// Node that it says it belongs to.
        node_id: u64,
    },
    /// A segment of another version.
    #[error(
        "log segment {path} has format version {version}, which this program does not know; run \
         the program that wrote it"
    )]
    Version {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A whole frame that this program cannot read.
    #[error(
        "log segment {path} has at byte {offset} a whole frame that this program cannot read \
         ({reason}); run the program that wrote it"
    )]
    Malformed {
        /// The segment.
        path: PathBuf,
        /// Offset of the frame.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The system refused something.
    #[error("cannot {action} {path}: {source}; check the disk and the permissions")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What recovery found, for the log line and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Frames.
    pub frames: u64,
    /// Records.
    pub records: u64,
    /// Bytes that were zeroed behind the end; not 0 after a crash in the middle of a flush.
    pub cut_bytes: u64,
}

/// A mapped segment and which of its blocks were read or written by this process.
#[derive(Debug)]
pub(super) struct Segment {
    pub map: SegmentMap,
    /// One bit per block of [`BLOCK_BYTES`].
    resident: Box<[u64]>,
}

impl Segment {
    pub fn new(map: SegmentMap, size: SegmentSize) -> Self {
        let blocks = size.bytes() as usize / BLOCK_BYTES;
        Self {
            map,
            resident: vec![0; blocks.div_ceil(64)].into_boxed_slice(),
        }
    }

    fn is_resident(&self, block: usize) -> bool {
        self.resident[block / 64] & (1 << (block % 64)) != 0
    }

    fn mark(&mut self, from: usize, to: usize) {
        for block in from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES) {
            self.resident[block / 64] |= 1 << (block % 64);
        }
    }
}

/// The segment that frames are appended to.
#[derive(Debug)]
pub(super) struct Active {
    pub file: File,
    pub salt: u64,
}

/// One log. Belongs to one core's thread.
#[derive(Debug)]
pub struct Log {
    pub(super) identity: NodeIdentity,
    pub(super) incarnation: u64,
    pub(super) size: SegmentSize,
    /// Number of the first of `segments`.
    pub(super) first_index: u64,
    /// All segments with frames, in order; the last one is the active one.
    pub(super) segments: Vec<Segment>,
    /// None when the next frame opens a segment.
    pub(super) active: Option<Active>,
    /// The segment before, until its END is durable.
    pub(super) retiring: Option<File>,
    /// In order; the first is the next segment.
    pub(super) spares: VecDeque<Spare>,
    pub(super) maker: SpareMaker,
    /// Segments below this have been asked for.
    pub(super) asked: u64,
    /// Where the next frame goes.
    pub(super) end: u64,
    /// All below is durable.
    pub(super) durable: u64,
    /// Position of the frame that is on its way.
    pub(super) in_flight: Option<u64>,
    pub(super) prev_crc: u32,
    /// The last frame leaves something for a SEAL to cover.
    pub(super) unsealed: bool,
    pub(super) buffers: Vec<Vec<u8>>,
    pub(super) found: Found,
}

impl Log {
    /// Reads log `log_no` from its beginning, shows each record to `visit` in order, cuts a torn
    /// tail, and makes all that it showed durable. Blocks; for start-up.
    ///
    /// # Errors
    /// Nothing has been changed then, and what `visit` saw must not be served.
    pub fn recover(
        data_dir: &DataDir,
        log_no: u32,
        visit: &mut dyn FnMut(Recovered<'_>),
    ) -> Result<Self, LogError> {
        recover::recover(data_dir, log_no, visit)
    }

    /// Gives a frame its place and takes it out of `frame`, which is empty afterwards. A frame of
    /// kind Data has records, one of kind Seal has none.
    ///
    /// # Panics
    /// While another flush is under way.
    pub fn place(
        &mut self,
        frame: &mut FrameBuilder,
        kind: FrameKind,
    ) -> Result<Flush, PlaceError> {
        assert!(self.in_flight.is_none(), "one flush at a time");
        assert_eq!(
            self.durable, self.end,
            "nothing is in flight, so all is durable"
        );
        assert_eq!(
            kind == FrameKind::Data,
            !frame.is_empty(),
            "only data frames have records"
        );
        self.take_spares();
        let room = match self.active {
            Some(_) => self.size.bytes() - self.size.offset_of(self.end) as u64,
            None => 0,
        };
        // Behind every frame there is room for END.
        let flush = if (frame.len() + FRAME_HEADER_BYTES) as u64 <= room {
            self.append(frame, kind)
        } else {
            self.rotate(frame, kind)?
        };
        assert!(flush.end > self.durable);
        self.in_flight = Some(flush.lsn);
        self.end = flush.end;
        self.unsealed = kind != FrameKind::Seal;
        Ok(flush)
    }

    /// The flush that ends at `upto` is durable: its sync returned without an error.
    ///
    /// # Panics
    /// When `upto` is not the end of the flush under way.
    pub fn durable(&mut self, upto: u64) {
        assert_eq!(upto, self.end, "the end of the flush under way");
        let lsn = self.in_flight.take();
        assert!(lsn.is_some(), "durable without a flush");
        self.durable = upto;
        let lsn = lsn.unwrap_or(upto);
        self.mark_resident(lsn, (upto - lsn) as usize);
        if let Some(file) = self.retiring.take() {
            self.maker.close(file);
        }
    }

    /// Gives the buffer of a finished write back for the next frames.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < BUFFERS_KEPT {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// The bytes at a position, when they are durable and lie in one segment.
    pub fn bytes_at(&self, position: u64, len: usize) -> Option<&[u8]> {
        let rest = self.rest_at(position)?;
        rest.get(..len)
    }

    /// The payload of the item whose header is at `position`. The CRC is checked at every read.
    pub fn item(&self, position: u64) -> Result<&[u8], ReadError> {
        let outside = ReadError::Outside {
            position,
            durable: self.durable,
        };
        let rest = self.rest_at(position).ok_or(outside)?;
        match item_at(rest) {
            Ok((payload, _)) => Ok(payload),
            Err(source) => Err(ReadError::Item { position, source }),
        }
    }

    /// From `position` to the end of its segment or of what is durable.
    fn rest_at(&self, position: u64) -> Option<&[u8]> {
        if position >= self.durable {
            return None;
        }
        let index = self.size.index_of(position);
        let segment = self
            .segments
            .get(index.checked_sub(self.first_index)? as usize)?;
        let readable = (self.durable - self.size.first_lsn(index)).min(self.size.bytes()) as usize;
        segment
            .map
            .bytes()
            .get(self.size.offset_of(position)..readable)
    }

    /// None when the blocks of these bytes are known to be in memory, having been written or
    /// populated by this process. Otherwise the page-aligned part of the map, address and length,
    /// to be populated (`MADV_POPULATE_READ`) off the core before it is read; then
    /// [`Log::mark_resident`]. A guide, not a promise: under memory pressure pages leave again.
    pub fn cold_range(&self, position: u64, len: usize) -> Option<(usize, usize)> {
        let index = self.size.index_of(position).checked_sub(self.first_index)? as usize;
        let segment = self.segments.get(index)?;
        let from = self.size.offset_of(position);
        // What is not durable is not read; its blocks are those being written, and in memory.
        let readable = self
            .durable
            .saturating_sub(self.size.first_lsn(self.size.index_of(position)));
        let to = (from + len)
            .min(segment.map.bytes().len())
            .min(readable as usize);
        let cold = |block: &usize| !segment.is_resident(*block);
        let mut blocks = from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES);
        let first = blocks.find(cold)?;
        let last = blocks.rev().find(cold).unwrap_or(first);
        let end = ((last + 1) * BLOCK_BYTES).min(segment.map.bytes().len());
        let len = end - first * BLOCK_BYTES;
        Some((segment.map.address() + first * BLOCK_BYTES, len))
    }

    /// Notes that the blocks of these bytes are in memory.
    pub fn mark_resident(&mut self, position: u64, len: usize) {
        let Some(index) = self.size.index_of(position).checked_sub(self.first_index) else {
            return;
        };
        let from = self.size.offset_of(position);
        let to = (from + len).min(self.size.bytes() as usize);
        if let Some(segment) = self.segments.get_mut(index as usize) {
            segment.mark(from, to);
        }
    }

    /// Whether a SEAL frame would carry the watermark forward. After `SEAL_AFTER_MS` without a
    /// write, when this holds, place an empty frame of kind Seal.
    pub fn seal_due(&self) -> bool {
        self.unsealed && self.in_flight.is_none()
    }

    /// How the log stands with its disk. Below [`Space::Enough`] new sends are to be refused.
    pub fn space(&mut self) -> Space {
        self.take_spares();
        match (self.maker.failing(), self.spares.is_empty()) {
            (false, _) => Space::Enough,
            (true, false) => Space::Low,
            (true, true) => Space::Full,
        }
    }

    /// Sets what is called, on another thread, when a spare came or could not be made: the moment
    /// to try again after a [`PlaceError`] and to ask for [`Log::space`].
    pub fn on_space_change(&mut self, wake: impl Fn() + Send + 'static) {
        self.maker.on_change(Box::new(wake));
    }

    /// Position behind the last frame placed.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Position up to which all is durable.
    pub fn durable_end(&self) -> u64 {
        self.durable
    }

    /// Segments with frames.
    pub fn segment_count(&self) -> u64 {
        self.segments.len() as u64
    }

    /// Bytes of the segments with frames.
    pub fn used_bytes(&self) -> u64 {
        self.segment_count() * self.size.bytes()
    }

    /// What recovery found.
    pub fn found(&self) -> Found {
        self.found
    }

    /// Does a flush with blocking calls and takes it as durable. For tests and offline tools.
    pub fn flush_blocking(&mut self, flush: Flush) -> io::Result<()> {
        for write in flush.writes.into_iter().flatten() {
            let files = [
                self.retiring.as_ref(),
                self.active.as_ref().map(|active| &active.file),
            ];
            let file = files
                .into_iter()
                .flatten()
                .find(|file| file.as_raw_fd() == write.fd);
            let file = file.ok_or_else(|| io::Error::other("a write of another log"))?;
            file.write_all_at(&write.bytes, write.offset)?;
            file.sync_data()?;
            self.recycle(write.bytes);
        }
        self.durable(flush.end);
        Ok(())
    }

    fn append(&mut self, frame: &mut FrameBuilder, kind: FrameKind) -> Flush {
        let lsn = self.end;
        let write = self.write_frame(frame, kind);
        let end = lsn + write.as_ref().map_or(0, |write| write.bytes.len() as u64);
        Flush {
            writes: [write, None],
            lsn,
            end,
        }
    }

    /// The write that appends a frame to the active segment.
    fn write_frame(&mut self, frame: &mut FrameBuilder, kind: FrameKind) -> Option<Write> {
        let active = self.active.as_ref()?;
        let placement = Placement {
            kind,
            lsn: self.end,
            synced_lsn: self.durable,
            salt: active.salt,
            prev_crc: self.prev_crc,
        };
        let (fd, offset) = (
            active.file.as_raw_fd(),
            self.size.offset_of(self.end) as u64,
        );
        let mut bytes = self.buffers.pop().unwrap_or_default();
        self.prev_crc = frame.finish_into(&placement, &mut bytes);
        Some(Write { fd, offset, bytes })
    }

    /// Ends the active segment, if there is one, and opens the next with this frame.
    fn rotate(&mut self, frame: &mut FrameBuilder, kind: FrameKind) -> Result<Flush, PlaceError> {
        let Some(spare) = self.spares.pop_front() else {
            let full = self.maker.failing();
            return Err(if full {
                PlaceError::Full
            } else {
                PlaceError::NoSpare
            });
        };
        assert_eq!(
            spare.index,
            self.first_index + self.segments.len() as u64,
            "the next segment"
        );
        let end_write = self.write_frame(&mut FrameBuilder::new(), FrameKind::End);
        // The new segment is written only after END was synced, so it may say so.
        let synced_lsn = self.end + end_write.as_ref().map_or(0, |end| end.bytes.len() as u64);
        let first_lsn = self.size.first_lsn(spare.index);
        let header = SegmentHeader {
            identity: self.identity,
            incarnation: self.incarnation,
            first_lsn,
            salt: spare.salt,
            segment_bytes: self.size.bytes(),
            prev_crc: self.prev_crc,
        };
        let lsn = first_lsn + SEGMENT_HEADER_BYTES as u64;
        let prev_crc = self.prev_crc;
        let placement = Placement {
            kind,
            lsn,
            synced_lsn,
            salt: spare.salt,
            prev_crc,
        };
        let mut bytes = self.buffers.pop().unwrap_or_default();
        bytes.resize(SEGMENT_HEADER_BYTES, 0);
        header.encode(&mut bytes);
        self.prev_crc = frame.finish_into(&placement, &mut bytes);
        let end = first_lsn + bytes.len() as u64;
        let write = Write {
            fd: spare.file.as_raw_fd(),
            offset: 0,
            bytes,
        };
        self.segments.push(Segment::new(spare.map, self.size));
        let old = self.active.replace(Active {
            file: spare.file,
            salt: spare.salt,
        });
        self.retiring = old.map(|old| old.file);
        self.ask_for_spares();
        let writes = match end_write {
            Some(end_write) => [Some(end_write), Some(write)],
            None => [Some(write), None],
        };
        Ok(Flush { writes, lsn, end })
    }

    fn take_spares(&mut self) {
        while let Some(spare) = self.maker.take() {
            self.spares.push_back(spare);
        }
    }

    /// Keeps [`SPARES`] segments ahead, made or asked for.
    pub(super) fn ask_for_spares(&mut self) {
        let next = self.first_index + self.segments.len() as u64;
        while self.asked < next + SPARES as u64 {
            self.maker.prepare(self.asked);
            self.asked += 1;
        }
    }
}
