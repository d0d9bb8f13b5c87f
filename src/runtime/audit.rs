//! The audit log on disk: `audit/` in the data directory (R: A-10).
//!
//! ```text
//!   core, admin, signals ─ Queue::put ─▶ bounded queue ─▶ one thread ─▶ repeats ─▶ chain ─▶ file ─▶ sync
//!                            └ full: counted, and the count is a record       a second later at the most ┘
//! ```
//!
//! **No core ever waits.** The thread looks into the queues; nobody has to wake it, so putting an event is
//! a few writes to memory. What finds no room, and what the disk does not take, is counted, by kind, and the
//! count becomes a record as soon as one can be written: nothing is missing in silence.
//!
//! **Noise does not displace what matters.** Refusals and renewals, of which anybody can make as many as he
//! likes, find room in the first half of a queue only ([`CHEAP_EVENTS_MAX`]); the other half is for logins,
//! ends, revocations and what operators do.
//!
//! A file is named by its first record, and has [`FILE_BYTES_MAX`] and a batch at most; of the files the
//! newest [`FILES_MAX`] are kept, and a removal is a record. `HEAD` names the last record that is durable:
//! a log that ends before it has lost its end. It is there, durable and as long as it will ever be, before
//! the first record is, and is written in place, within one sector: no crash takes it away, so a log without
//! it is damaged. What a crash left of a record is cut at the start, which is
//! a record, too; damage is left as it is, and a new chain begins behind it, which says so.
//!
//! Nothing of this keeps a switch from serving.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use thiserror::Error;

use super::clock::Clock;
use crate::audit::repeats::Repeats;
use crate::audit::verify::{Tail, Verdict, Verifier};
use crate::audit::{Chain, Event, Kind, hex, unhex};

/// Name of the directory.
pub const NAME: &str = "audit";
/// Events that wait in one queue. Full: counted.
pub const QUEUE_EVENTS: usize = 1024;
/// As many wait already: refusals and renewals are counted.
pub const CHEAP_EVENTS_MAX: usize = QUEUE_EVENTS / 2;
/// Bytes after which the next file begins.
pub const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Files that are kept. More: the oldest is removed.
pub const FILES_MAX: usize = 32;
/// How often the queues are looked into.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a record may be written and not synced, and a disk that failed is left alone.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a file that are read: more has none of ours.
const READ_BYTES_MAX: u64 = 4 * FILE_BYTES_MAX;
const HEAD: &str = "HEAD";
/// Its name before it is whole.
const HEAD_NEW: &str = "HEAD.new";
/// How often it is read until it is whole: a switch may be writing it.
const HEAD_READS_MAX: usize = 3;
const SUFFIX: &str = ".jsonl";
/// Only the switch's user reads who came from where.
const MODE: u32 = 0o600;

/// Why there is nothing to verify.
#[derive(Debug, Error)]
pub enum AuditError {
    /// There are no files.
    #[error("there is no audit log in {path}; give a data directory that a switch has served")]
    Nothing {
        /// The directory.
        path: PathBuf,
    },
    /// They cannot be read.
    #[error("cannot read {path}: {source}; check the path and the permissions")]
    Unreadable {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the audit thread: {source}; check the limit of threads (`ulimit -u`)")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
}

/// How many events there were, by kind, since the start. Touched when somebody comes or goes, never on a
/// message's way.
#[derive(Debug, Default)]
pub struct Counts {
    taken: [AtomicU64; Kind::ALL.len()],
    lost: [AtomicU64; Kind::ALL.len()],
    lost_by_disk: AtomicU64,
}

impl Counts {
    /// Events of a kind that found room in a queue.
    #[must_use]
    pub fn taken(&self, kind: Kind) -> u64 {
        self.taken[kind as usize].load(Ordering::Relaxed)
    }

    /// Events of a kind that found none.
    #[must_use]
    pub fn lost(&self, kind: Kind) -> u64 {
        self.lost[kind as usize].load(Ordering::Relaxed)
    }

    /// Events that the disk did not take.
    #[must_use]
    pub fn lost_by_disk(&self) -> u64 {
        self.lost_by_disk.load(Ordering::Relaxed)
    }
}

/// Where one thread puts what happened.
#[derive(Debug)]
pub struct Queue {
    sender: Sender<(u64, Event)>,
    counts: Arc<Counts>,
}

impl Queue {
    /// Hands over an event, or counts it. Never blocks.
    pub fn put(&mut self, now_ms: u64, event: Event) {
        let kind = event.kind();
        let has_room = !kind.is_cheap() || self.sender.len() < CHEAP_EVENTS_MAX;
        let is_taken = has_room && self.sender.try_send((now_ms, event)).is_ok();
        let counts = &self.counts;
        let count = if is_taken {
            &counts.taken
        } else {
            &counts.lost
        };
        count[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What all queues have taken and lost.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }
}

/// The writing thread. Dropping it writes what is in the queues, and syncs.
#[derive(Debug)]
pub struct Audit {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Audit {
    /// Starts the thread for a data directory, whose lock the caller holds for as long as this lives.
    ///
    /// # Errors
    /// When there can be no thread. That files cannot be written is none.
    pub fn start(data: &Path, queues: usize) -> Result<(Self, Vec<Queue>), AuditError> {
        let (stop, stopped) = bounded(0);
        let mut senders = Vec::new();
        let mut receivers = Vec::new();
        let counts = Arc::new(Counts::default());
        for _ in 0..queues {
            let (sender, receiver) = bounded(QUEUE_EVENTS);
            let counts = Arc::clone(&counts);
            senders.push(Queue { sender, counts });
            receivers.push(receiver);
        }
        let writer = Writer::new(data.join(NAME), receivers, counts);
        let thread = std::thread::Builder::new().name("iris-audit".to_owned());
        let thread = thread.spawn(move || writer.run(&stopped));
        let thread = thread.map_err(|source| AuditError::Thread { source })?;
        let audit = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((audit, senders))
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.stop = None; // ends the thread's wait
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been reported by itself
        }
    }
}

/// The file that is written.
#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
    chain: Chain,
    head: File,
}

struct Writer {
    directory: PathBuf,
    queues: Vec<Receiver<(u64, Event)>>,
    repeats: Repeats,
    /// Events to be written.
    pending: Vec<(u64, Event)>,
    counts: Arc<Counts>,
    /// How many of those that found no room a record says, by kind.
    told: [u64; Kind::ALL.len()],
    /// Events that the disk did not take.
    lost: u64,
    open: Option<Open>,
    /// Not tried again before.
    pause_until: Option<Instant>,
    unsynced_since: Option<Instant>,
}

impl Writer {
    fn new(directory: PathBuf, queues: Vec<Receiver<(u64, Event)>>, counts: Arc<Counts>) -> Self {
        Self {
            directory,
            queues,
            repeats: Repeats::default(),
            pending: Vec::new(),
            counts,
            told: [0; Kind::ALL.len()],
            lost: 0,
            open: None,
            pause_until: None,
            unsynced_since: None,
        }
    }

    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let is_last = stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Disconnected);
            self.turn(Clock::read(), is_last);
            if is_last {
                return;
            }
        }
    }

    fn turn(&mut self, now: Clock, is_last: bool) {
        for queue in &self.queues {
            for _ in 0..QUEUE_EVENTS {
                let Ok((time_ms, event)) = queue.try_recv() else {
                    break;
                };
                let listed = self.repeats.take(time_ms, event);
                self.pending.extend(listed.map(|event| (time_ms, event)));
            }
        }
        let due = self.repeats.due(now.unix_ms, is_last);
        self.pending
            .extend(due.into_iter().map(|event| (now.unix_ms, event)));
        self.tell_lost(now.unix_ms);
        let is_paused = self.pause_until.is_some_and(|until| now.monotonic < until);
        if is_paused && !is_last {
            self.lose();
        } else if (!self.pending.is_empty() || self.lost > 0)
            && let Err(error) = self.write(now)
        {
            self.failed(&error, now);
        }
        let since = self.unsynced_since;
        if since.is_some_and(|since| is_last || now.monotonic >= since + SYNC_EVERY)
            && let Err(error) = self.sync(is_last)
        {
            self.failed(&error, now);
        }
    }

    /// What found no room since it was said last: there is room again, the queues were just emptied.
    fn tell_lost(&mut self, now_ms: u64) {
        for kind in Kind::ALL {
            let lost = self.counts.lost(kind);
            let count = lost - std::mem::replace(&mut self.told[kind as usize], lost);
            if count > 0 {
                let (what, why) = (Some(kind.name()), "queue");
                let lost = Event::Lost { what, count, why };
                self.pending.push((now_ms, lost));
            }
        }
    }

    /// What waits is not written any more, but counted.
    fn lose(&mut self) {
        let count = self.pending.len() as u64;
        self.counts.lost_by_disk.fetch_add(count, Ordering::Relaxed);
        self.lost += count;
        self.pending.clear();
    }

    /// The events are lost, and counted; said once until it is better.
    fn failed(&mut self, error: &io::Error, now: Clock) {
        if self.lost == 0 {
            let path = self.directory.display();
            tracing::warn!(%path, %error, "the audit log cannot be written; events are counted until it can be, free space or mend the disk");
        }
        self.lose();
        self.open = None; // what is there is looked at again
        self.unsynced_since = None;
        self.pause_until = Some(now.monotonic + SYNC_EVERY);
    }

    fn write(&mut self, now: Clock) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open(now.unix_ms)?,
        };
        if open.len >= FILE_BYTES_MAX {
            open = self.rotate(open, now.unix_ms)?;
        }
        let (mut chain, mut bytes) = (open.chain, Vec::new());
        if self.lost > 0 {
            let (what, count, why) = (None, self.lost, "disk");
            let lost = Event::Lost { what, count, why };
            chain.append(now.unix_ms, &lost, &mut bytes);
        }
        for (time_ms, event) in &self.pending {
            chain.append(*time_ms, event, &mut bytes);
        }
        if let Err(error) = open.file.write_all_at(&bytes, open.len) {
            let _ = open.file.set_len(open.len); // else it is a torn record, which the next one cuts
            return Err(error);
        }
        open.len += bytes.len() as u64;
        open.chain = chain;
        self.open = Some(open);
        self.pending.clear();
        self.lost = 0;
        self.pause_until = None;
        self.unsynced_since.get_or_insert(now.monotonic);
        Ok(())
    }

    fn sync(&mut self, is_last: bool) -> io::Result<()> {
        self.unsynced_since = None;
        let Some(open) = &self.open else {
            return Ok(());
        };
        open.file.sync_data()?;
        open.write_head()?;
        if is_last {
            open.head.sync_all()?;
        }
        Ok(())
    }

    /// Goes on behind what is there.
    fn open(&mut self, now_ms: u64) -> io::Result<Open> {
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) => sync_directory(self.directory.parent().unwrap_or(Path::new(".")))?,
            Err(_) => {}
        }
        let mut files = list(&self.directory)?;
        let named = read_head(&self.directory)?;
        if named.is_none() {
            self.make_head()?;
        }
        let head_file = OpenOptions::new()
            .write(true)
            .open(self.directory.join(HEAD))?;
        if named.is_none()
            && let Some((first, path)) = files.last()
        {
            let lines = read_file(path)?;
            let lines = lines.iter().filter(|&&byte| byte == b'\n').count() as u64;
            return self.begin_anew(path, first + lines, now_ms, head_file);
        }
        let head = named.unwrap_or(Chain::EMPTY);
        let mut cut = 0;
        while let Some((first, path)) = files.pop() {
            let bytes = read_file(&path)?;
            // Nothing of it was ever whole, and nobody says that there was more.
            if !bytes.contains(&b'\n') && head.last < first {
                cut += bytes.len() as u64;
                fs::remove_file(&path)?;
                continue;
            }
            let mut verifier = Verifier::default();
            let tail = verifier.file(&path.display().to_string(), &bytes);
            let chain = verifier.chain().unwrap_or(Chain::EMPTY);
            let is_whole = match tail {
                Tail::Damaged => false,
                Tail::Whole | Tail::Torn { .. } => head.last < chain.last || head == chain,
            };
            if !is_whole {
                let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
                let last = head.last.max(chain.last).max(first + lines);
                return self.begin_anew(&path, last, now_ms, head_file);
            }
            let file = OpenOptions::new().write(true).open(&path)?;
            let mut len = bytes.len() as u64;
            if let Tail::Torn { good, bytes } = tail {
                file.set_len(good)?;
                len = good;
                cut += bytes;
            }
            if cut > 0 {
                tracing::warn!(path = %path.display(), bytes = cut, "an unfinished audit record was cut, as a crash leaves one");
                self.pending.insert(0, (now_ms, Event::Cut { bytes: cut }));
            }
            return Ok(Open {
                file,
                len,
                chain,
                head: head_file,
            });
        }
        if head.last > 0 {
            let path = self.directory.join(HEAD);
            return self.begin_anew(&path, head.last, now_ms, head_file);
        }
        self.begin(Chain::EMPTY, false, now_ms, head_file)
    }

    /// Makes the `HEAD` that names no record yet, durably.
    fn make_head(&self) -> io::Result<()> {
        let new = self.directory.join(HEAD_NEW);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(MODE);
        let file = options.open(&new)?;
        file.write_all_at(head_text(&Chain::EMPTY).as_bytes(), 0)?;
        file.sync_all()?;
        fs::rename(&new, self.directory.join(HEAD))?;
        sync_directory(&self.directory)
    }

    fn begin_anew(&self, path: &Path, last: u64, now_ms: u64, head: File) -> io::Result<Open> {
        tracing::error!(path = %path.display(), "the audit log is damaged or its end is missing; nothing of it is changed, and a new chain begins. Look with `iris audit verify`");
        let chain = Chain {
            last,
            ..Chain::EMPTY
        };
        self.begin(chain, true, now_ms, head)
    }

    /// Makes the file whose first record goes on from `chain`.
    fn begin(
        &self,
        mut chain: Chain,
        after_damage: bool,
        now_ms: u64,
        head: File,
    ) -> io::Result<Open> {
        let path = self
            .directory
            .join(format!("{:020}{SUFFIX}", chain.last + 1));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&path)?;
        let prev = hex(&chain.hash);
        let begin = Event::Begin { prev, after_damage };
        let mut bytes = Vec::new();
        chain.append(now_ms, &begin, &mut bytes);
        let written = file.write_all_at(&bytes, 0);
        if let Err(error) = written.and_then(|()| file.sync_all()) {
            let _ = fs::remove_file(&path); // else it is one without a record, which the next start removes
            return Err(error);
        }
        sync_directory(&self.directory)?;
        let open = Open {
            file,
            len: bytes.len() as u64,
            chain,
            head,
        };
        open.write_head()?;
        Ok(open)
    }

    /// Begins the next file, and removes the oldest ones that are too many.
    fn rotate(&mut self, before: Open, now_ms: u64) -> io::Result<Open> {
        before.file.sync_data()?;
        let Open { chain, head, .. } = before;
        let mut open = self.begin(chain, false, now_ms, head)?;
        let files = list(&self.directory)?;
        let too_many = files.len().saturating_sub(FILES_MAX);
        if too_many == 0 {
            return Ok(open);
        }
        // The record first: a removal that did not happen after all is seen, one without a record is damage.
        let (first, last) = (files[0].0, files[too_many].0 - 1);
        let mut bytes = Vec::new();
        let removed = Event::Removed { first, last };
        open.chain.append(now_ms, &removed, &mut bytes);
        open.file.write_all_at(&bytes, open.len)?;
        open.len += bytes.len() as u64;
        open.file.sync_data()?;
        open.write_head()?;
        for (_, path) in &files[..too_many] {
            fs::remove_file(path)?;
        }
        Ok(open)
    }
}

impl Open {
    /// Names the last record, which is durable.
    fn write_head(&self) -> io::Result<()> {
        self.head.write_all_at(head_text(&self.chain).as_bytes(), 0)
    }
}

/// What is in a `HEAD`: always so many bytes.
fn head_text(Chain { last, hash }: &Chain) -> String {
    format!("{last:020} {}\n", hex(hash))
}

/// What `HEAD` names. One that is missing or not whole names nothing.
fn read_head(directory: &Path) -> io::Result<Option<Chain>> {
    for _ in 1..HEAD_READS_MAX {
        if let Some(head) = read_head_once(directory)? {
            return Ok(Some(head));
        }
    }
    read_head_once(directory)
}

fn read_head_once(directory: &Path) -> io::Result<Option<Chain>> {
    let mut text = String::new();
    match File::open(directory.join(HEAD)) {
        Ok(file) => match file.take(1_000).read_to_string(&mut text) {
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            _ => {}
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let parsed = || {
        let (last, hash) = text.strip_suffix('\n')?.split_once(' ')?;
        let (last, hash) = (last.parse().ok()?, unhex(hash)?);
        Some(Chain { last, hash })
    };
    Ok(parsed())
}

/// The files in order, by the number of their first record.
fn list(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            files.push((number, directory.join(name)));
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(READ_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Verifies the audit log of a data directory, also one that a switch is writing. `expected` is a record
/// that somebody remembers to have been the last.
///
/// # Errors
/// When there is nothing, or it cannot be read. What is wrong with what can be read is in the verdict.
pub fn verify(data: &Path, expected: Option<Chain>) -> Result<Verdict, AuditError> {
    let directory = data.join(NAME);
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        |source| AuditError::Unreadable { path, source }
    };
    if !directory.is_dir() {
        return Err(AuditError::Nothing { path: directory });
    }
    // First: what it names was durable before.
    let head = read_head(&directory).map_err(unreadable(&directory))?;
    let files = list(&directory).map_err(unreadable(&directory))?;
    if files.is_empty() && head.is_none_or(|head| head.last == 0) {
        return Err(AuditError::Nothing { path: directory });
    }
    let mut verifier = Verifier::default();
    let mut is_first = true;
    for (_, path) in &files {
        let bytes = match read_file(path) {
            // The switch removed its oldest while we looked; a record says so.
            Err(error) if is_first && error.kind() == io::ErrorKind::NotFound => continue,
            read => read.map_err(unreadable(path))?,
        };
        is_first = false;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        verifier.file(&name, &bytes);
    }
    let has_head = head.is_some();
    let head = head.map(|head| ("HEAD", head));
    let expected = expected.map(|expected| ("--expect", expected));
    let ends: Vec<_> = head.into_iter().chain(expected).collect();
    let mut verdict = verifier.finish(&ends);
    if !has_head {
        let text = "HEAD is missing or not whole, which no crash leaves: whether the end is here only --expect can say";
        verdict.findings.push(text.to_owned());
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests;
