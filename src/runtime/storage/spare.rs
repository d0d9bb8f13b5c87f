//! The thread that keeps zeroed segments ahead of a log.
//!
//! A write into zeroed blocks changes no metadata, so its sync is one write of data. Zeroing takes
//! long and a disk may be full; neither may ever hold up a core. A spare has its final name from
//! the beginning and zeros for a header: opening it is the first write into it, and needs no
//! rename.
//! ```text
//!  core ── Prepare(index) ──▶ thread: reserve, zero in 4 KiB writes, sync file and directory, note
//!       ◀─── spare ─────────         on failure: give the blocks back, say so, wait, try again
//! ```
//! A spare holds no promise, so a failed preparation is repeated from its beginning. The core may write
//! into a spare as soon as it has it, so the superblock says before that that it was made: whoever finds
//! it missing or shorter later knows that this is no log that ended earlier.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tracing::{info, warn};

use crate::log::SegmentSize;
use crate::log::limits::{SEGMENT_HEADER_BYTES, SPARES};

use super::data_dir::{DataDir, DataDirError, Held, log_path};
use super::fatal::{is_lost, stop_at_once};
use super::limits::{SPARE_RETRY_MS, SPARE_RETRY_MS_MAX, ZERO_SYNC_BYTES, ZERO_WRITE_BYTES};
use super::mmap::{SegmentMap, reserve};
use super::record::{self, Step};

/// Requests under way to the thread. Full: a file is closed by the core, which is only slower.
const REQUESTS_MAX: usize = 64;
const _: () = assert!(SPARES < REQUESTS_MAX);

/// A zeroed segment, ready to be opened.
#[derive(Debug)]
pub(super) struct Spare {
    pub index: u64,
    pub file: File,
    pub map: SegmentMap,
    /// Random; the salt of this use of the file.
    pub salt: u64,
}

enum Request {
    Prepare(u64),
    Close(File),
    Wake(Box<dyn Fn() + Send>),
}

/// Reserves blocks for a file; a test puts a full disk in its place.
pub(super) type Reserve = Box<dyn Fn(&File, u64) -> io::Result<()> + Send>;

/// Whose segments are made.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// Where they lie.
    pub directory: PathBuf,
    /// How large each is.
    pub size: SegmentSize,
    /// The log's number.
    pub log_no: u32,
    /// The data directory, where what was made is noted.
    pub held: Arc<Held>,
}

impl Home {
    /// Of log `log_no` of a data directory.
    pub fn of(data_dir: &DataDir, log_no: u32) -> Self {
        Self {
            directory: log_path(data_dir.path(), log_no),
            size: data_dir.super_block().segment_size,
            log_no,
            held: Arc::clone(data_dir.held()),
        }
    }

    /// Notes durably that segment `index` was made, and so all before it.
    pub fn note_made(&self, index: u64) -> Result<(), DataDirError> {
        self.held
            .note_made(self.log_no, self.size.first_lsn(index + 1))
    }
}

/// The core's end of the thread.
#[derive(Debug)]
pub(super) struct SpareMaker {
    requests: Option<Sender<Request>>,
    ready: Receiver<Spare>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The last preparation failed.
    failing: AtomicBool,
    /// The log is gone; stop in the middle of a preparation.
    stop: AtomicBool,
}

impl SpareMaker {
    /// Starts the thread for the segments of a log.
    pub fn start(home: Home) -> io::Result<Self> {
        Self::start_with(home, Box::new(reserve))
    }

    /// The same with another way to reserve blocks.
    pub fn start_with(home: Home, reserve: Reserve) -> io::Result<Self> {
        let (requests, received) = bounded(REQUESTS_MAX);
        let (made, ready) = bounded(REQUESTS_MAX);
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            home,
            reserve,
            requests: received,
            ready: made,
            shared: Arc::clone(&shared),
            wanted: VecDeque::new(),
            retry_ms: 0,
            wake: None,
        };
        let name = "iris-spare".to_owned();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run())?;
        Ok(Self {
            requests: Some(requests),
            ready,
            shared,
            thread: Some(thread),
        })
    }

    fn request(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // Full only with files to close, which then happens here. At most SPARES segments are
            // wanted at once, so a Prepare finds room.
            let _ = requests.try_send(request);
        }
    }

    /// Asks for segment `index`.
    pub fn prepare(&self, index: u64) {
        self.request(Request::Prepare(index));
    }

    /// Closes a file whose writes are all durable, off the core's thread.
    pub fn close(&self, file: File) {
        self.request(Request::Close(file));
    }

    /// Sets what is called, on the thread, when a spare came or could not be made.
    pub fn on_change(&self, wake: Box<dyn Fn() + Send>) {
        self.request(Request::Wake(wake));
    }

    /// A spare that came since, if any. Never blocks.
    pub fn take(&self) -> Option<Spare> {
        self.ready.try_recv().ok()
    }

    /// Waits for a spare or for the news that there is none for now. For start-up only.
    pub fn wait(&self) -> Option<Spare> {
        loop {
            match self
                .ready
                .recv_timeout(Duration::from_millis(SPARE_RETRY_MS))
            {
                Ok(spare) => return Some(spare),
                Err(RecvTimeoutError::Timeout) if !self.failing() => {}
                Err(_) => return None,
            }
        }
    }

    /// Whether the last preparation failed.
    pub fn failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }
}

impl Drop for SpareMaker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.requests = None; // ends the thread's wait
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been reported by itself
        }
    }
}

struct Worker {
    home: Home,
    reserve: Reserve,
    requests: Receiver<Request>,
    ready: Sender<Spare>,
    shared: Arc<Shared>,
    wanted: VecDeque<u64>,
    /// Milliseconds to wait before the next attempt; 0 when the last one succeeded.
    retry_ms: u64,
    wake: Option<Box<dyn Fn() + Send>>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let received = if self.wanted.is_empty() {
                self.requests
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.requests
                    .recv_timeout(Duration::from_millis(self.retry_ms))
            };
            match received {
                Ok(Request::Prepare(index)) => self.wanted.push_back(index),
                Ok(Request::Close(file)) => drop(file),
                Ok(Request::Wake(wake)) => self.wake = Some(wake),
                Err(RecvTimeoutError::Timeout) => self.attempt(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn attempt(&mut self) {
        let Some(&index) = self.wanted.front() else {
            return;
        };
        match self.make(index) {
            Ok(spare) => {
                self.wanted.pop_front();
                if self.retry_ms > 0 {
                    info!(directory = %self.home.directory.display(), "spare segments are made again");
                }
                self.retry_ms = 0;
                self.shared.failing.store(false, Ordering::Relaxed);
                let _ = self.ready.send(spare); // the log is gone: so is the thread, next
            }
            Err(error) if is_lost(&error) => stop_at_once(&self.home.directory.display(), &error),
            Err(_) if self.shared.stop.load(Ordering::Relaxed) => return,
            Err(error) => {
                if self.retry_ms == 0 {
                    let directory = self.home.directory.display();
                    warn!(%directory, %error, "no spare segment, new messages will be refused");
                }
                self.retry_ms = (self.retry_ms * 2).clamp(SPARE_RETRY_MS, SPARE_RETRY_MS_MAX);
                self.shared.failing.store(true, Ordering::Relaxed);
            }
        }
        if let Some(wake) = &self.wake {
            wake();
        }
    }

    fn make(&self, index: u64) -> io::Result<Spare> {
        let Home {
            directory, size, ..
        } = &self.home;
        let path = segment_path(directory, *size, index);
        record::note(&path, Step::Create);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let mut header = [0; SEGMENT_HEADER_BYTES];
        let found = file.read_at(&mut header, 0)?;
        if header[..found].iter().any(|byte| *byte != 0) {
            return Err(io::Error::other(format!(
                "{} is in use, not a spare",
                path.display()
            )));
        }
        record::note(&path, Step::Len(size.bytes()));
        record::note(&path, Step::SyncBegins);
        let zeroed = (self.reserve)(&file, size.bytes())
            .and_then(|()| zero(&file, 0, size.bytes(), &self.shared.stop));
        if let Err(error) = zeroed {
            record::note(&path, Step::Len(0));
            let _ = file.set_len(0); // give the blocks back to those who need them more
            return Err(error);
        }
        record::note(&path, Step::Synced);
        record::note(directory, Step::SyncDirBegins);
        File::open(directory)?.sync_all()?;
        record::note(directory, Step::DirSynced);
        self.home.note_made(index).map_err(DataDirError::into_io)?;
        let map = SegmentMap::new(&file, size.bytes() as usize)?;
        Ok(Spare {
            index,
            file,
            map,
            salt: draw_salt()?,
        })
    }
}

/// Where segment `index` lies.
pub(super) fn segment_path(directory: &Path, size: SegmentSize, index: u64) -> PathBuf {
    directory.join(format!("{:016x}.seg", size.first_lsn(index)))
}

/// Random bits for a new use of a file.
pub(super) fn draw_salt() -> io::Result<u64> {
    let mut salt = [0; 8];
    getrandom::fill(&mut salt).map_err(io::Error::other)?;
    Ok(u64::from_le_bytes(salt))
}

/// Writes zeros from `from` to `to` and syncs, a little at a time.
pub(super) fn zero(file: &File, from: u64, to: u64, stop: &AtomicBool) -> io::Result<()> {
    let zeros = [0; ZERO_WRITE_BYTES];
    let mut at = from;
    while at < to {
        let page_end = (at / ZERO_WRITE_BYTES as u64 + 1) * ZERO_WRITE_BYTES as u64;
        let end = page_end.min(to);
        file.write_all_at(&zeros[..(end - at) as usize], at)?;
        if end.is_multiple_of(ZERO_SYNC_BYTES) {
            file.sync_data()?;
            if stop.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
        }
        at = end;
    }
    file.sync_all()
}
