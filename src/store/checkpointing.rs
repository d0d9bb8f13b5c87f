//! Checkpoints: the state of the shards in a file, so that a start replays only what came after.
//!
//! ```text
//!   log   ───────────┬───────────────────────────▶
//!                    │ scan position: all frames before it are applied
//!   shard 3  ··········▲ written here, as of entry 17
//!   shard 7  ··············▲ and here, as of entry 40      one shard at a time: no turn is long
//! ```
//!
//! Each shard's part is of one exact instant, named by the index of the entry applied last, so a replay
//! from the scan position skips what the part has already. Between two parts the store goes on.
//!
//! The two newest are kept: should the newer one be unreadable, the older one and the log behind it give
//! the same state. Before the second checkpoint the beginning of the log takes that place. When the disk
//! is full the older one goes first.

use super::{Io, Now, Store};
use crate::log::{CheckpointHeader, CheckpointWriter, Space};

/// Microseconds after a checkpoint that could not be written before the next is tried.
pub const RETRY_AFTER_US: u64 = 5_000_000;

/// A place that a replay can begin at: a checkpoint, or the beginning of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Where the scan begins. Zero is the beginning of the log, which needs no file.
    pub lsn: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A checkpoint that is being written.
#[derive(Debug)]
struct Running {
    lsn: u64,
    /// `None` when all bytes have been handed over.
    writer: Option<CheckpointWriter>,
    /// Place of the next shard.
    next: usize,
    /// The shell has been asked for something.
    asked: bool,
    /// The file has been asked to be finished.
    is_ending: bool,
    bytes: u64,
    /// One shard's state; kept for the next one's.
    state: Vec<u8>,
}

/// Checkpoints there are, and the one in the making.
#[derive(Debug)]
pub(super) struct Checkpointing {
    /// One or two, oldest first; more after a start that found more, until its first poll.
    kept: Vec<Kept>,
    running: Option<Running>,
    retry_at_us: u64,
    failed: bool,
    failures: u64,
    /// One is wanted, however little the log has grown.
    wanted: bool,
}

impl Checkpointing {
    /// With what recovery found, oldest first.
    pub fn new(kept: Vec<Kept>) -> Self {
        assert!(!kept.is_empty(), "a replay can begin somewhere");
        Self {
            kept,
            running: None,
            retry_at_us: 0,
            failed: false,
            failures: 0,
            wanted: false,
        }
    }

    /// The lowest position that a replay may ever begin at.
    pub fn keep_from(&self) -> u64 {
        self.kept.first().map_or(0, |kept| kept.lsn)
    }

    /// Position of the newest checkpoint.
    pub fn newest(&self) -> Option<u64> {
        self.kept.last().map(|kept| kept.lsn).filter(|lsn| *lsn > 0)
    }

    pub fn failures(&self) -> u64 {
        self.failures
    }

    fn last(&self) -> Kept {
        self.kept
            .last()
            .copied()
            .unwrap_or(Kept { lsn: 0, bytes: 0 })
    }
}

impl Store {
    /// Begins a checkpoint when the log has grown by enough. Only between two flushes: then all that was
    /// placed is applied. A frame that waits for a segment will be placed behind, and is replayed.
    pub(super) fn begin_checkpoint(&mut self, now: Now, io: &mut Vec<Io>) {
        let last = self.checkpointing.last();
        let grown = self.writer.end() - last.lsn;
        let is_short = self.writer.space() != Space::Enough;
        // On a full disk a checkpoint is what lets segments go.
        let due = match is_short {
            true => self.setup.size.bytes(),
            false => self.setup.checkpoint_bytes.max(last.bytes),
        };
        self.remove_stale(io);
        // Where something is damaged nothing goes that may help to salvage it.
        let may_go = self.quarantined.is_empty() && self.checkpointing.running.is_none();
        if is_short && may_go && self.checkpointing.kept.len() > 1 {
            self.remove_oldest(io);
        }
        let may = self.checkpointing.running.is_none()
            && !self.is_resting
            && self.quarantined.is_empty()
            && now.monotonic_us >= self.checkpointing.retry_at_us;
        let is_due = grown >= due || self.checkpointing.wanted;
        if !may || !is_due || grown == 0 {
            return;
        }
        let (lsn, header) = (
            self.writer.end(),
            CheckpointHeader {
                identity: self.setup.identity,
                incarnation: self.setup.incarnation,
                segment_bytes: self.setup.size.bytes(),
                scan_lsn: self.writer.end(),
                prev_crc: self.writer.prev_crc(),
                sections: self.shards.len() as u32,
            },
        );
        self.checkpointing.wanted = false;
        // Should it fail, the next is not tried at once.
        self.checkpointing.retry_at_us = now.monotonic_us + RETRY_AFTER_US;
        self.checkpointing.running = Some(Running {
            lsn,
            writer: Some(CheckpointWriter::new(&header)),
            next: 0,
            asked: true,
            is_ending: false,
            bytes: 0,
            state: Vec::new(),
        });
        io.push(Io::CheckpointBegin { lsn });
    }

    /// A checkpoint is begun with the next poll that can, however little the log has grown.
    pub fn checkpoint_now(&mut self) {
        self.checkpointing.wanted = true;
    }

    /// Hands over the next part of a checkpoint in the making, or asks for its end.
    pub(super) fn go_on_with_checkpoint(&mut self, io: &mut Vec<Io>) {
        let Some(running) = self.checkpointing.running.as_mut() else {
            return;
        };
        if running.asked {
            return;
        }
        running.asked = true;
        let Some(mut writer) = running.writer.take() else {
            running.is_ending = true;
            io.push(Io::CheckpointEnd);
            return;
        };
        // A shard, or as many small ones as fill a block.
        let mut bytes = None;
        while let (None, Some(shard)) = (&bytes, self.shards.get(running.next)) {
            let Some(shard) = shard else {
                unreachable!("no checkpoint is begun with a damaged shard");
            };
            running.state.clear();
            shard.write_state(&mut running.state);
            let len = running.state.len() as u64;
            writer.section(shard.id().0, shard.applied(), len);
            writer.push(&running.state);
            running.next += 1;
            bytes = writer.take_blocks();
        }
        let bytes = match bytes {
            Some(bytes) => {
                running.writer = Some(writer);
                bytes
            }
            None => writer.finish(),
        };
        running.bytes += bytes.len() as u64;
        io.push(Io::CheckpointChunk { bytes });
    }

    /// What was asked for a checkpoint was done, or was not. A failure costs nothing but time: the log
    /// has everything.
    pub fn checkpointed(&mut self, done: bool, io: &mut Vec<Io>) {
        let Some(running) = self.checkpointing.running.as_mut() else {
            unreachable!("a checkpoint was written that was not asked for");
        };
        running.asked = false;
        if !done {
            self.checkpointing.running = None;
            self.checkpointing.failures += 1;
            self.checkpointing.failed = true;
            return;
        }
        if !running.is_ending {
            return;
        }
        let (lsn, bytes) = (running.lsn, running.bytes);
        self.checkpointing.running = None;
        self.checkpointing.failed = false;
        self.checkpointing.retry_at_us = 0;
        self.checkpointing.kept.push(Kept { lsn, bytes });
        self.remove_stale(io);
    }

    /// Whether the last checkpoint that was tried could not be written.
    #[must_use]
    pub fn is_checkpoint_failing(&self) -> bool {
        self.checkpointing.failed
    }

    /// Removes those that two whole ones are newer than, but nothing that may help to salvage.
    fn remove_stale(&mut self, io: &mut Vec<Io>) {
        while self.checkpointing.kept.len() > 2 && self.quarantined.is_empty() {
            self.remove_oldest(io);
        }
    }

    fn remove_oldest(&mut self, io: &mut Vec<Io>) {
        let Kept { lsn, .. } = self.checkpointing.kept.remove(0);
        if lsn > 0 {
            io.push(Io::RemoveCheckpoint { lsn });
        }
    }
}
