//! A log without a store: payloads go into frames, frames into zeroed segments, one flush at a time. For
//! the bare relay of `iris-bench`, which is the measure for what the switch costs beside its disk.
//!
//! ```text
//!   payload ──begin──▶ frame ──▶ writes for the core's ring ──(synced)──▶ ended ──▶ the next payload
//!                                 segments of zeros come from the same thread as the switch's
//! ```
//! The same frames, the same segments, the same preparation of spares as [`super::Files`]; no shards, no
//! inboxes, no checkpoints, no cleaning, and nothing is ever read or removed. It makes new logs only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::log::{FrameBuilder, FrameKind, RecordHeader, RecordKind, Writer, WriterStart};

use super::data_dir::DataDir;
use super::files::FileWrite;
use super::spare::{Home, Spare, SpareMaker};

/// Log 0 of a fresh data directory, as one record after the other.
#[derive(Debug)]
pub struct BareLog {
    writer: Writer,
    frame: FrameBuilder,
    maker: SpareMaker,
    spares: BTreeMap<u64, Spare>,
    /// Segments that are written, and their maps, as the switch keeps them.
    writing: BTreeMap<u64, (File, super::SegmentMap)>,
    /// Where the flush under way ends.
    end: u64,
    index: u64,
}

impl BareLog {
    /// Begins the log, once its first segment is there, as the switch does.
    ///
    /// # Errors
    /// What the kernel said when the thread that makes spares was started, or that there is no room.
    pub fn begin(data: &DataDir) -> io::Result<Self> {
        let super_block = data.super_block();
        let size = super_block.segment_size;
        let writer = Writer::new(WriterStart {
            identity: data.identity(0),
            incarnation: super_block.incarnation,
            size,
            end: 0,
            prev_crc: 0,
            salt: None,
            unsealed: false,
            heads_max: 1,
        });
        let frame = FrameBuilder::with_max(writer.frame_bytes_max());
        let maker = SpareMaker::start(Home::of(data, 0))?;
        let mut log = Self {
            writer,
            frame,
            maker,
            spares: BTreeMap::new(),
            writing: BTreeMap::new(),
            end: 0,
            index: 0,
        };
        log.look();
        let first = log.maker.wait();
        let first = first.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        log.writer.spare_ready(first.index, first.salt);
        log.spares.insert(first.index, first);
        Ok(log)
    }

    /// Sets what is called, on another thread, when a spare has come.
    pub fn on_done(&self, wake: impl Fn() + Send + 'static) {
        self.maker.on_change(Box::new(wake));
    }

    /// Takes spares that have come, and asks for those that are wanted.
    pub fn look(&mut self) {
        while let Some(spare) = self.maker.take() {
            self.writer.spare_ready(spare.index, spare.salt);
            self.spares.insert(spare.index, spare);
        }
        while let Some(segment) = self.writer.wants_segment() {
            self.maker.prepare(segment);
        }
    }

    /// Whether a payload of so many bytes still fits into one frame.
    #[must_use]
    pub fn fits(&self, payload_bytes: usize) -> bool {
        self.frame.fits(payload_bytes)
    }

    /// Whether a flush is under way.
    #[must_use]
    pub fn is_flushing(&self) -> bool {
        self.writer.in_flight()
    }

    /// One frame with this payload, as writes to be done in order, each followed by a data sync. `None`:
    /// the next segment is not ready yet, ask again.
    ///
    /// # Panics
    /// While a flush is under way, and for a payload that does not fit.
    pub fn write(&mut self, payload: &[u8], items: u64) -> Option<[Option<FileWrite>; 2]> {
        assert!(
            self.fits(payload.len()),
            "one frame holds the whole payload"
        );
        self.look();
        let header = RecordHeader {
            kind: RecordKind::Entry,
            flags: 0,
            shard: 0,
            term: 1,
            index: self.index + 1,
            a: 0,
            b: items,
        };
        self.frame.record(header, payload);
        let heads = [(0, self.index)];
        let placed = self.writer.place(&mut self.frame, FrameKind::Data, &heads);
        let Ok(mut flush) = placed else {
            self.frame.clear();
            return None;
        };
        self.index += 1;
        self.end = flush.end;
        Some(flush.writes.each_mut().map(|write| {
            let write = write.take()?;
            if let Some(spare) = self.spares.remove(&write.segment) {
                self.writing.insert(spare.index, (spare.file, spare.map));
            }
            let Some((file, _)) = self.writing.get(&write.segment) else {
                unreachable!("segment {} is written and was never made", write.segment);
            };
            Some(FileWrite {
                segment: write.segment,
                fd: file.as_raw_fd(),
                offset: write.offset,
                bytes: write.bytes,
            })
        }))
    }

    /// The flush under way is durable; its buffers come back.
    pub fn written(&mut self, buffers: Vec<Vec<u8>>) {
        self.writer.durable(self.end);
        for buffer in buffers {
            self.writer.recycle(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::item_encode_into;
    use crate::log::limits::SEGMENT_BYTES_MIN;
    use crate::log::recovery::{Origin, scan};
    use crate::runtime::storage::{Format, Mapped};
    use crate::store::recover::Known;
    use std::os::unix::fs::FileExt;

    /// The next frame's writes, as soon as a segment is there.
    fn write(log: &mut BareLog, payload: &[u8]) -> [Option<FileWrite>; 2] {
        loop {
            if let Some(writes) = log.write(payload, 1) {
                return writes;
            }
            std::thread::yield_now();
        }
    }

    /// R: H-2
    #[test]
    fn what_the_bare_relay_writes_is_a_log_like_the_switchs_over_several_segments() {
        let directory = tempfile::tempdir().unwrap();
        let format = Format {
            logs: 1,
            segment_bytes: SEGMENT_BYTES_MIN,
            ..Format::default()
        };
        let data = DataDir::open(directory.path(), &format).unwrap();
        let mut log = BareLog::begin(&data).unwrap();
        let mut payload = Vec::new();
        item_encode_into(&mut payload, &[7; 60_000]);
        for _ in 0..150 {
            let writes = write(&mut log, &payload);
            let mut buffers = Vec::new();
            for write in writes.into_iter().flatten() {
                let (file, _) = &log.writing[&write.segment];
                file.write_all_at(&write.bytes, write.offset).unwrap();
                buffers.push(write.bytes);
            }
            assert!(log.is_flushing());
            log.written(buffers);
        }
        assert!(log.writing.len() > 1, "it went over several segments");
        let size = data.super_block().segment_size;
        let mapped = Mapped::open(directory.path(), 0, size, false).unwrap();
        let origin = Origin {
            size,
            identity: data.identity(0),
            lsn: 0,
            durable: 0,
            prev_crc: 0,
            made: 0,
        };
        let known = Known::default();
        let tail = mapped.found(known, |found| scan(&origin, found.segments, &mut |_| {}));
        assert_eq!(tail.unwrap().end, log.end);
    }
}
