//! The files of one log: maps to read from, descriptors to write to, and two threads that do what may
//! take long.
//!
//! ```text
//!   store ── Io ──▶ Files ──▶ ring of the core   Flush: write, data sync
//!                      ├────▶ spare thread        segments of zeros, ahead of need
//!                      └────▶ keeper thread       checkpoints, old segments: reading and removing
//! ```
//! A [`Files`] belongs to one core's thread and never blocks it. **Invariant.** A map is read only below
//! the durable end that the store knows, and is unmapped only when no page-in of the core is under way that began
//! before it was removed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::log::{ItemError, SegmentSize, item_at};
use crate::store::{Io, Store};

use super::keeper::{Done, Keeper, Task};
use super::limits::BLOCK_BYTES;
use super::mmap::SegmentMap;
use super::record::{self, Step};
use super::spare::{Spare, SpareMaker, segment_path};

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

/// A mapped segment and which of its blocks were read or written by this process.
#[derive(Debug)]
struct Segment {
    map: SegmentMap,
    /// One bit per block of [`BLOCK_BYTES`].
    resident: Box<[u64]>,
}

impl Segment {
    fn new(map: SegmentMap, size: SegmentSize) -> Self {
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

/// One write as the kernel takes it.
#[derive(Debug)]
pub struct FileWrite {
    /// The segment's number.
    pub segment: u64,
    /// The segment's file; open until the flush has ended.
    pub fd: RawFd,
    /// Offset in the file.
    pub offset: u64,
    /// What to write.
    pub bytes: Vec<u8>,
}

/// The files of one log.
#[derive(Debug)]
pub struct Files {
    /// Where the segments are.
    directory: PathBuf,
    size: SegmentSize,
    /// Number of the first of `segments`.
    first: u64,
    /// Segments in use by number; `None` where one was removed.
    segments: VecDeque<Option<Segment>>,
    /// Removed from use since [`Files::unmap_removed`] was called last, and before.
    doomed: [Vec<Segment>; 2],
    /// The segment that is written, and during a rotation the one before it.
    writing: BTreeMap<u64, File>,
    /// Made and not yet written.
    spares: BTreeMap<u64, Spare>,
    maker: SpareMaker,
    keeper: Keeper,
    /// What the flush under way writes: where it begins and ends.
    in_flight: (u64, u64),
    /// All below may be read.
    durable: u64,
}

/// What [`Files::new`] puts together.
pub(super) struct Opened {
    pub directory: PathBuf,
    pub size: SegmentSize,
    pub segments: Vec<(u64, SegmentMap)>,
    pub active: Option<(u64, File)>,
    pub spares: Vec<Spare>,
    pub maker: SpareMaker,
    pub keeper: Keeper,
    pub durable: u64,
}

impl Files {
    pub(super) fn new(opened: Opened) -> Self {
        let size = opened.size;
        let first = opened.segments.first().map_or_else(
            || opened.spares.first().map_or(0, |spare| spare.index),
            |(index, _)| *index,
        );
        let mut files = Self {
            directory: opened.directory,
            size,
            first,
            segments: VecDeque::new(),
            doomed: [Vec::new(), Vec::new()],
            writing: opened.active.into_iter().collect(),
            spares: BTreeMap::new(),
            maker: opened.maker,
            keeper: opened.keeper,
            in_flight: (opened.durable, opened.durable),
            durable: opened.durable,
        };
        for (index, map) in opened.segments {
            files.insert(index, map);
        }
        for spare in opened.spares {
            files.spares.insert(spare.index, spare);
        }
        files
    }

    /// Asks for a segment of zeros.
    pub(super) fn prepare(&self, segment: u64) {
        self.maker.prepare(segment);
    }

    #[cfg(test)]
    pub(super) fn replace_maker(&mut self, maker: SpareMaker) {
        self.maker = maker;
    }

    /// Segments of zeros that are there.
    pub(super) fn spares(&self) -> usize {
        self.spares.len()
    }

    /// Waits for a spare or for the news that there is none for now. For start-up only.
    pub(super) fn wait_for_spare(&mut self, store: &mut Store) {
        match self.maker.wait() {
            Some(spare) => {
                store.spare_ready(spare.index, spare.salt);
                self.spares.insert(spare.index, spare);
            }
            None => store.spare_failed(),
        }
    }

    fn insert(&mut self, index: u64, map: SegmentMap) {
        if self.segments.is_empty() {
            self.first = index;
        }
        while self.first + (self.segments.len() as u64) < index {
            self.segments.push_back(None);
        }
        assert_eq!(self.first + self.segments.len() as u64, index, "in order");
        self.segments.push_back(Some(Segment::new(map, self.size)));
    }

    fn segment(&self, index: u64) -> Option<&Segment> {
        let nth = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.segments.get(nth)?.as_ref()
    }

    fn segment_mut(&mut self, index: u64) -> Option<&mut Segment> {
        let nth = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.segments.get_mut(nth)?.as_mut()
    }

    /// Sets what is called, on another thread, when something was done that [`Files::take_done`] takes.
    pub fn on_done(&mut self, wake: impl Fn() + Send + Sync + 'static) {
        let wake = Arc::new(wake);
        let same = Arc::clone(&wake);
        self.maker.on_change(Box::new(move || wake()));
        self.keeper.on_done(Box::new(move || same()));
    }

    /// Tells the store what the threads have done since; what it wants next is appended to `io`.
    pub fn take_done(&mut self, store: &mut Store, io: &mut Vec<Io>) {
        while let Some(spare) = self.maker.take() {
            store.spare_ready(spare.index, spare.salt);
            self.spares.insert(spare.index, spare);
        }
        if self.maker.failing() {
            store.spare_failed();
        }
        while let Some(done) = self.keeper.take() {
            match done {
                Done::Checkpoint(done) => store.checkpointed(done, io),
                Done::Harvest(harvest) => store.harvested(harvest),
            }
        }
    }

    /// Does what the store wants, or hands it to a thread. A flush comes back, to be written through the
    /// core's ring.
    pub fn carry_out(&mut self, io: Io) -> Option<crate::log::Flush> {
        match io {
            Io::Flush(flush) => return Some(flush),
            Io::PrepareSegment { segment } => self.maker.prepare(segment),
            Io::RemoveSegment { segment } => self.remove(segment),
            Io::CheckpointBegin { lsn } => self.keeper.ask(Task::Begin { lsn }),
            Io::CheckpointChunk { bytes } => self.keeper.ask(Task::Chunk { bytes }),
            Io::CheckpointEnd => self.keeper.ask(Task::End),
            Io::RemoveCheckpoint { lsn } => self.keeper.ask(Task::RemoveCheckpoint { lsn }),
            Io::Harvest {
                segment,
                from,
                budget,
            } => self.keeper.ask(Task::Harvest {
                segment,
                from,
                budget,
            }),
        }
        None
    }

    /// The flush as writes to files. A spare that is written for the first time comes into use.
    ///
    /// # Panics
    /// When a segment was never made.
    pub fn writes(&mut self, flush: &mut crate::log::Flush) -> [Option<FileWrite>; 2] {
        self.in_flight = (flush.lsn, flush.end);
        flush.writes.each_mut().map(|write| {
            let write = write.take()?;
            if let Some(spare) = self.spares.remove(&write.segment) {
                self.insert(spare.index, spare.map);
                self.writing.insert(spare.index, spare.file);
            }
            let Some(file) = self.writing.get(&write.segment) else {
                unreachable!("segment {} is written and was never made", write.segment);
            };
            Some(FileWrite {
                segment: write.segment,
                fd: file.as_raw_fd(),
                offset: write.offset,
                bytes: write.bytes,
            })
        })
    }

    /// Does a flush with blocking calls. For tests and tools; then [`Store::flushed`].
    ///
    /// # Errors
    /// When a write or sync failed: the log must not be used any more.
    pub fn write_blocking(
        &mut self,
        mut flush: crate::log::Flush,
        store: &mut Store,
    ) -> std::io::Result<()> {
        for write in self.writes(&mut flush).into_iter().flatten() {
            let file = self
                .writing
                .values()
                .find(|file| file.as_raw_fd() == write.fd);
            let Some(file) = file else {
                unreachable!("the files that are written are open");
            };
            let path = segment_path(&self.directory, self.size, write.segment);
            record::note(&path, Step::Write(write.offset, &write.bytes));
            file.write_all_at(&write.bytes, write.offset)?;
            record::note(&path, Step::SyncBegins);
            file.sync_data()?;
            record::note(&path, Step::Synced);
            store.recycle(write.bytes);
        }
        self.flushed();
        Ok(())
    }

    /// The flush under way is durable.
    pub fn flushed(&mut self) {
        let (lsn, end) = self.in_flight;
        self.durable = end;
        self.mark_resident(lsn, (end - lsn) as usize);
        while self.writing.len() > 1 {
            if let Some((_, file)) = self.writing.pop_first() {
                self.maker.close(file);
            }
        }
    }

    fn remove(&mut self, index: u64) {
        if let Some(nth) = index.checked_sub(self.first)
            && let Some(slot) = self.segments.get_mut(nth as usize)
        {
            self.doomed[0].extend(slot.take());
        }
        while self.segments.len() > 1 && self.segments.front().is_some_and(Option::is_none) {
            self.segments.pop_front();
            self.first += 1;
        }
        self.keeper.ask(Task::RemoveSegment { segment: index });
    }

    /// Unmaps what was removed before the last call. All page-ins of this core that began before that call
    /// must have ended.
    pub fn unmap_removed(&mut self) {
        self.doomed[1].clear();
        self.doomed.swap(0, 1);
    }

    /// The payload of the item whose header is at `position`. The CRC is checked at every read.
    ///
    /// # Errors
    /// When nothing durable lies there, or not what was written.
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
        let segment = self.segment(index)?;
        let readable = (self.durable - self.size.first_lsn(index)).min(self.size.bytes()) as usize;
        let bytes = segment.map.bytes();
        bytes.get(self.size.offset_of(position)..readable.min(bytes.len()))
    }

    /// None when the blocks of these bytes are known to be in memory, having been written or
    /// populated by this process. Otherwise the page-aligned part of the map, address and length,
    /// to be populated (`MADV_POPULATE_READ`) off the core before it is read; then
    /// [`Files::mark_resident`]. A guide, not a promise: under memory pressure pages leave again.
    pub fn cold_range(&self, position: u64, len: usize) -> Option<(usize, usize)> {
        let index = self.size.index_of(position);
        let segment = self.segment(index)?;
        let from = self.size.offset_of(position);
        // What is not durable is not read; its blocks are those being written, and in memory.
        let readable = self.durable.saturating_sub(self.size.first_lsn(index));
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
        let from = self.size.offset_of(position);
        let to = (from + len).min(self.size.bytes() as usize);
        if let Some(segment) = self.segment_mut(self.size.index_of(position)) {
            segment.mark(from, to);
        }
    }
}
