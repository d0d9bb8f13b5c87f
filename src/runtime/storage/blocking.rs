//! A store and its files driven with blocking calls: for tests, benchmarks and tools, which have no ring.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use crate::placement::ShardId;
use crate::shard::{Effect, Input};
use crate::store::{Now, Setup, Store};

use super::data_dir::DataDir;
use super::files::Files;
use super::open::{LogError, open_log};

/// How long one thing that a thread does may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// One log of a data directory, with blocking writes.
#[derive(Debug)]
pub struct BlockingLog {
    /// The store.
    pub store: Store,
    /// Its files.
    pub files: Files,
    /// What the shards want done, in order.
    pub effects: VecDeque<(ShardId, Effect)>,
    /// The time; moved by whoever drives.
    pub now: Now,
    woken: Receiver<()>,
    /// Since a thread was last heard of, while there was nothing else to do.
    waited: Duration,
}

impl BlockingLog {
    /// Opens a log.
    ///
    /// # Errors
    /// As [`open_log`].
    pub fn open(data_dir: &DataDir, log_no: u32, setup: Setup) -> Result<Self, LogError> {
        let (store, mut files) = open_log(data_dir, log_no, setup)?;
        let (wake, woken) = bounded(1);
        files.on_done(move || {
            let _ = wake.try_send(()); // one is enough
        });
        Ok(Self {
            store,
            files,
            effects: VecDeque::new(),
            now: Now::default(),
            woken,
            waited: Duration::ZERO,
        })
    }

    /// Puts another maker of spares in place.
    #[cfg(test)]
    pub(super) fn replace_maker(&mut self, maker: super::spare::SpareMaker) {
        self.files.replace_maker(maker);
        let (wake, woken) = bounded(1);
        self.files.on_done(move || {
            let _ = wake.try_send(());
        });
        self.woken = woken;
    }

    /// Gives a shard an input.
    pub fn step(&mut self, shard: ShardId, input: Input<'_>) {
        self.store.step(self.now, shard, input, &mut self.effects);
    }

    /// One look: takes what the threads have done, begins what can be begun, and writes and syncs a flush
    /// if there is one. Whether there was one.
    ///
    /// # Errors
    /// When a write or sync failed; the log must not be used any more then.
    pub fn poll(&mut self) -> io::Result<bool> {
        let mut wanted = Vec::new();
        self.files.take_done(&mut self.store, &mut wanted);
        self.store.poll(self.now, false, &mut wanted);
        let mut has_flushed = false;
        for io in wanted {
            let Some(flush) = self.files.carry_out(io) else {
                continue;
            };
            self.files.write_blocking(flush, &mut self.store)?;
            self.store.flushed(self.now, &mut self.effects);
            has_flushed = true;
            self.waited = Duration::ZERO;
        }
        // Nothing is paged in behind its back here: what was removed goes at once.
        self.files.unmap_removed();
        self.files.unmap_removed();
        Ok(has_flushed)
    }

    /// Writes and syncs until nothing that was proposed waits for the disk.
    ///
    /// # Errors
    /// When a write or sync failed, or the disk is full.
    pub fn settle(&mut self) -> io::Result<()> {
        loop {
            if !self.poll()? {
                if self.store.is_quiet() {
                    return Ok(());
                }
                if !self.store.has_room() {
                    return Err(io::Error::from(io::ErrorKind::StorageFull));
                }
                self.wait_for_threads()?;
            }
        }
    }

    /// Looks, and lets the threads work, until `is_done`.
    ///
    /// # Errors
    /// When a write or sync failed, or when it takes too long.
    pub fn run_until(&mut self, mut is_done: impl FnMut(&mut Self) -> bool) -> io::Result<()> {
        loop {
            let has_flushed = self.poll()?;
            if is_done(self) {
                return Ok(());
            }
            if !has_flushed {
                self.wait_for_threads()?;
            }
        }
    }

    /// Waits until a thread has done something, and no longer than `at_most`. Time is the caller's matter.
    pub fn wait(&mut self, at_most: Duration) {
        let _ = self.woken.recv_timeout(at_most); // that nothing came is no news
    }

    /// Waits a little for a thread to have done something; the clock goes on meanwhile.
    fn wait_for_threads(&mut self) -> io::Result<()> {
        const STEP: Duration = Duration::from_millis(5);
        self.now.monotonic_us += STEP.as_micros() as u64;
        if self.woken.recv_timeout(STEP).is_ok() {
            self.waited = Duration::ZERO;
            return Ok(());
        }
        self.waited += STEP;
        if self.waited >= PATIENCE {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        Ok(())
    }
}
