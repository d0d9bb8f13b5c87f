//! The thread that writes a log's checkpoints, reads its old segments and removes what is not needed.
//!
//! All of it may take long and none of it may hold up a core, nor the thread that makes spares. Tasks
//! are done in order, one at a time; the store has at most one checkpoint task and one harvest under
//! way. Only removals can be many: those that find no room in the queue wait in front of it, so that
//! what the store waits for always finds some.
//!
//! A checkpoint is written under another name, synced a little at a time so that it never floods the
//! disk while a log waits for its own sync, renamed, and its directory synced. Until then it does not
//! exist. One that fails is removed: the log has everything.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::{info, warn};

use crate::log::{Harvest, SegmentSize, harvest};

use super::fatal::{is_lost, stop_at_once};
use super::limits::CHECKPOINT_SYNC_BYTES;
use super::mmap::SegmentMap;
use super::record::{self, Step};
use super::spare::segment_path;

/// Orders in the queue at most.
const ORDERS_MAX: usize = 64;
/// Removals among them at most. Further ones wait, no more than there are segments.
pub(super) const REMOVALS_MAX: usize = 56;
/// What else can be there: a checkpoint's task, a harvest, and a waker or two.
const _: () = assert!(REMOVALS_MAX + 4 <= ORDERS_MAX);
/// Name of a checkpoint that is not finished.
const UNFINISHED: &str = "unfinished.tmp";

/// What the thread can do.
#[derive(Debug)]
pub(super) enum Task {
    Begin {
        lsn: u64,
    },
    Chunk {
        bytes: Vec<u8>,
    },
    End,
    RemoveCheckpoint {
        lsn: u64,
    },
    RemoveSegment {
        segment: u64,
    },
    Harvest {
        segment: u64,
        from: usize,
        budget: usize,
    },
}

impl Task {
    fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::RemoveCheckpoint { .. } | Self::RemoveSegment { .. }
        )
    }
}

/// What it has done.
#[derive(Debug)]
pub(super) enum Done {
    Checkpoint(bool),
    Harvest(Harvest),
}

enum Order {
    Task(Task),
    Wake(Box<dyn Fn() + Send>),
}

/// The core's end of the thread.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: Option<Sender<Order>>,
    done: Receiver<Done>,
    /// Removals that found no room yet, in order.
    waiting: VecDeque<Task>,
    thread: Option<JoinHandle<()>>,
}

/// Where a log's segments and checkpoints are.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub segments: PathBuf,
    pub checkpoints: PathBuf,
    pub size: SegmentSize,
}

impl Keeper {
    pub fn start(places: &Places) -> io::Result<Self> {
        let (orders, received) = bounded(ORDERS_MAX);
        let (sender, done) = bounded(ORDERS_MAX);
        let worker = Worker {
            places: places.clone(),
            orders: received,
            done: sender,
            wake: None,
            checkpoint: None,
            open: None,
        };
        let thread = std::thread::Builder::new()
            .name("iris-keeper".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            orders: Some(orders),
            done,
            waiting: VecDeque::new(),
            thread: Some(thread),
        })
    }

    /// Hands over a task.
    ///
    /// # Panics
    /// When the store asks for more at once than it may.
    pub fn ask(&mut self, task: Task) {
        if task.is_removal() {
            self.waiting.push_back(task);
            self.hand_over();
        } else {
            self.order(Order::Task(task));
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let is_full = orders.try_send(order).is_err_and(|error| error.is_full());
            assert!(!is_full, "one checkpoint task and one harvest at a time");
        }
    }

    /// Puts removals that wait into the queue, as many as it has room for.
    fn hand_over(&mut self) {
        while self
            .orders
            .as_ref()
            .is_some_and(|orders| orders.len() < REMOVALS_MAX)
            && let Some(task) = self.waiting.pop_front()
        {
            self.order(Order::Task(task));
        }
    }

    /// Sets what is called, on the thread, when something was done.
    pub fn on_done(&self, wake: Box<dyn Fn() + Send>) {
        self.order(Order::Wake(wake));
    }

    /// Something that was done since, if any. Never blocks.
    pub fn take(&mut self) -> Option<Done> {
        self.hand_over();
        self.done.try_recv().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None; // ends the thread's wait
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been reported by itself
        }
    }
}

/// A checkpoint in the making.
struct Unfinished {
    lsn: u64,
    file: File,
    written: u64,
    unsynced: u64,
}

struct Worker {
    places: Places,
    orders: Receiver<Order>,
    done: Sender<Done>,
    wake: Option<Box<dyn Fn() + Send>>,
    checkpoint: Option<Unfinished>,
    /// The segment read last.
    open: Option<(u64, SegmentMap)>,
}

impl Worker {
    fn run(mut self) {
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Wake(wake) => self.wake = Some(wake),
                Order::Task(task) => self.task(task),
            }
        }
        if self.checkpoint.take().is_some() {
            let _ = fs::remove_file(self.places.checkpoints.join(UNFINISHED)); // begun anew next time
        }
    }

    fn task(&mut self, task: Task) {
        match task {
            Task::Begin { .. } | Task::Chunk { .. } | Task::End => {
                let result = self.write(task);
                if let Err(error) = &result {
                    if is_lost(error) {
                        stop_at_once(&self.places.checkpoints.display(), error);
                    }
                    let path = self.places.checkpoints.display();
                    warn!(%path, %error, "a checkpoint could not be written; the log keeps what it would replace, and another is tried soon");
                    self.checkpoint = None;
                    let _ = fs::remove_file(self.places.checkpoints.join(UNFINISHED));
                }
                self.tell(Done::Checkpoint(result.is_ok()));
            }
            Task::RemoveCheckpoint { lsn } => {
                self.remove(&checkpoint_path(&self.places.checkpoints, lsn));
                self.wake();
            }
            Task::RemoveSegment { segment } => {
                self.open.take_if(|(index, _)| *index == segment);
                let Places { segments, size, .. } = &self.places;
                self.remove(&segment_path(segments, *size, segment));
                self.wake();
            }
            Task::Harvest {
                segment,
                from,
                budget,
            } => {
                let harvest = self.harvest(segment, from, budget);
                self.tell(Done::Harvest(harvest));
            }
        }
    }

    fn tell(&self, done: Done) {
        let _ = self.done.send(done); // the log is gone: so is the thread, next
        self.wake();
    }

    /// Something was done, or there is room for more.
    fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake();
        }
    }

    fn write(&mut self, task: Task) -> io::Result<()> {
        let unfinished = self.places.checkpoints.join(UNFINISHED);
        match (task, &mut self.checkpoint) {
            (Task::Begin { lsn }, checkpoint) => {
                record::note(&unfinished, Step::Create);
                *checkpoint = Some(Unfinished {
                    lsn,
                    file: File::create(unfinished)?,
                    written: 0,
                    unsynced: 0,
                });
            }
            (Task::Chunk { bytes }, Some(checkpoint)) => {
                for piece in bytes.chunks(CHECKPOINT_SYNC_BYTES) {
                    record::note(&unfinished, Step::Write(checkpoint.written, piece));
                    checkpoint.written += piece.len() as u64;
                    checkpoint.file.write_all(piece)?;
                    checkpoint.unsynced += piece.len() as u64;
                    if checkpoint.unsynced >= CHECKPOINT_SYNC_BYTES as u64 {
                        record::note(&unfinished, Step::SyncBegins);
                        checkpoint.file.sync_data()?;
                        record::note(&unfinished, Step::Synced);
                        checkpoint.unsynced = 0;
                    }
                }
            }
            (Task::End, Some(checkpoint)) => {
                record::note(&unfinished, Step::SyncBegins);
                checkpoint.file.sync_all()?;
                record::note(&unfinished, Step::Synced);
                let path = checkpoint_path(&self.places.checkpoints, checkpoint.lsn);
                record::note(&unfinished, Step::Rename(&path));
                fs::rename(unfinished, &path)?;
                record::note(&self.places.checkpoints, Step::SyncDirBegins);
                File::open(&self.places.checkpoints)?.sync_all()?;
                record::note(&self.places.checkpoints, Step::DirSynced);
                info!(path = %path.display(), lsn = checkpoint.lsn, "checkpoint written");
                self.checkpoint = None;
            }
            _ => return Err(io::Error::other("no checkpoint is being written")),
        }
        Ok(())
    }

    fn remove(&self, path: &Path) {
        record::note(path, Step::Unlink);
        match fs::remove_file(path) {
            Ok(()) => info!(path = %path.display(), "not needed any more, removed"),
            Err(error) => {
                warn!(path = %path.display(), %error, "a file that is not needed any more could not be removed");
            }
        }
    }

    fn harvest(&mut self, segment: u64, from: usize, budget: usize) -> Harvest {
        let size = self.places.size;
        if self
            .open
            .as_ref()
            .is_none_or(|(index, _)| *index != segment)
        {
            let path = segment_path(&self.places.segments, size, segment);
            let map = File::open(&path).and_then(|file| {
                let len = file.metadata()?.len().min(size.bytes());
                SegmentMap::new(&file, len as usize)
            });
            match map {
                Ok(map) => {
                    map.read_sequentially();
                    self.open = Some((segment, map));
                }
                Err(error) => {
                    warn!(path = %path.display(), %error, "a segment could not be read for cleaning; it stays");
                    self.open = None;
                }
            }
        }
        let bytes = self.open.as_ref().map_or(&[][..], |(_, map)| map.bytes());
        let harvest = harvest(size, segment, bytes, from, budget);
        if harvest.next.is_none() {
            self.open = None;
        }
        harvest
    }
}

/// Where the checkpoint of a position lies.
pub(super) fn checkpoint_path(directory: &Path, lsn: u64) -> PathBuf {
    directory.join(format!("{lsn:016x}.ckpt"))
}
