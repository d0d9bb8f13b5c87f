//! The data directory: found or formatted, locked, and identified.
//!
//! Opening never deletes anything. A directory is formatted only when nothing in it could be
//! somebody's data. The lock is taken before a superblock is believed or written.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use crate::log::limits::{SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::log::{NodeIdentity, SegmentSize};
use crate::placement::HashKey;
use crate::shard::ShardConfig;
use crate::store::Setup;
use crate::store::recover::shards_of_log;

use super::limits::{LOGS_MAX, SHARDS_DEFAULT, SHARDS_MAX};
use super::record::{self, Step};
use super::super_block::{SUPER_BYTES, SUPER_NAMES, SUPER_VERSION, SuperBlock, SuperFault};

const LOCK_NAME: &str = "LOCK";
/// What a directory may hold and still be formatted: our own beginnings, the development keys, and
/// what a file system puts into its root.
const NOT_DATA: [&str; 6] = [
    LOCK_NAME,
    "dev",
    "lost+found",
    "admin.sock",
    "SUPER.a.tmp",
    "SUPER.b.tmp",
];
/// Bytes of the lock file that are read: what we write, with room.
const LOCK_BYTES_MAX: u64 = 512;

/// Shape given to a new data directory. An existing one keeps its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Logs, 1 to [`LOGS_MAX`]: the cores at that time is a good number.
    pub logs: u32,
    /// Shards, 1 to [`SHARDS_MAX`].
    pub shards: u32,
    /// Bytes of a segment: a power of two from 2 MiB to 1 GiB.
    pub segment_bytes: u64,
}

impl Default for Format {
    fn default() -> Self {
        Self {
            logs: 1,
            shards: SHARDS_DEFAULT,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
        }
    }
}

/// How a log is kept short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// Bytes of the log between two checkpoints, at least.
    pub checkpoint_bytes: u64,
    /// Bytes a second that cleaning reads of old segments, beside twice what is appended.
    pub clean_bytes_per_s: u64,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            checkpoint_bytes: 256 * 1024 * 1024,
            clean_bytes_per_s: 4 * 1024 * 1024,
        }
    }
}

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it open.
    #[error(
        "data directory {path} is in use by process {pid} (listening on {address}); stop that \
         process or give another directory with --data"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Process id, as the holder wrote it; `unknown` when it had not yet.
        pid: String,
        /// Listen address, as the holder wrote it; `unknown` when it had not yet.
        address: String,
    },
    /// Written by another version of the program.
    #[error(
        "data directory {path} has format version {found}, this program knows version \
         {SUPER_VERSION}; run the program that wrote it, or give another directory with --data"
    )]
    OtherVersion {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// There is nothing.
    #[error("there is no data directory {path}; give another path with --data")]
    Absent {
        /// The path.
        path: PathBuf,
    },
    /// There is a directory, and nothing in it.
    #[error("{path} is no data directory: nothing is in it; give another path with --data")]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// The process may not write there.
    #[error(
        "data directory {path} cannot be written: {source}; make it writable for this user, or \
         give another directory with --data"
    )]
    NotWritable {
        /// What could not be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path names something else.
    #[error("data directory {path} is not a directory; give another path with --data")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It holds other things, and no superblock.
    #[error(
        "{path} is not a data directory and not empty (it holds {found:?}); give an empty or new \
         directory with --data"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One thing in it.
        found: String,
    },
    /// It holds logs, but no superblock.
    #[error(
        "data directory {path} holds logs but neither SUPER.a nor SUPER.b; restore one of them \
         from a backup (nothing was changed)"
    )]
    SuperMissing {
        /// The directory.
        path: PathBuf,
    },
    /// There are superblocks, none of them whole.
    #[error(
        "data directory {path} has no superblock that is whole (SUPER.a, SUPER.b); restore one of \
         them from a backup (nothing was changed)"
    )]
    SuperCorrupt {
        /// The directory.
        path: PathBuf,
    },
    /// A log's directory is gone.
    #[error(
        "data directory {path} is missing although the superblock names it; restore it from a \
         backup (nothing was changed)"
    )]
    LogMissing {
        /// The log's directory.
        path: PathBuf,
    },
    /// The shape asked for is impossible.
    #[error(
        "cannot format with {logs} logs, {shards} shards and segments of {segment_bytes} bytes; \
         possible are 1 to {LOGS_MAX} logs, 1 to {SHARDS_MAX} shards, and a power of two from \
         {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX} bytes"
    )]
    BadFormat {
        /// Logs asked for.
        logs: u32,
        /// Shards asked for.
        shards: u32,
        /// Bytes asked for.
        segment_bytes: u64,
    },
    /// The system refused something else.
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

impl DataDirError {
    /// What the system said, for whoever makes no difference.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } | Self::NotWritable { source, .. } => source,
            other => io::Error::other(other),
        }
    }

    /// Whether something is gone that had been there, so that there is data and it is not whole.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::SuperMissing { .. } | Self::SuperCorrupt { .. } | Self::LogMissing { .. }
        )
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            DataDirError::NotWritable { path, source }
        }
        _ => DataDirError::Io {
            action,
            path,
            source,
        },
    }
}

/// Makes directories that only their owner may read: they hold everybody's messages.
fn create_private(path: &Path) -> Result<(), DataDirError> {
    record::note(path, Step::CreateDir);
    let mut builder = DirBuilder::new();
    let builder = builder.recursive(true).mode(0o700);
    builder.create(path).map_err(failed("create", path))
}

/// A data directory that this process holds. Dropping it, and all that makes segments in it, releases
/// the lock.
#[derive(Debug)]
pub struct DataDir {
    super_block: SuperBlock,
    held: Arc<Held>,
}

/// What may be written of a directory as long as its lock is held: also by the threads that make segments.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    pub(super) lock: File,
    /// The superblock on disk.
    written: Written,
}

#[expect(
    clippy::disallowed_types,
    reason = "starts, stops, and threads that make segments, never a turn of a core"
)]
type Written = std::sync::Mutex<SuperBlock>;

impl Drop for Held {
    /// Closing the file would not do if this process is just starting another one: until that runs, it
    /// holds the file, too, and with it the lock.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data directory's lock ends with this process");
        }
    }
}

impl DataDir {
    /// Opens the data directory at `path`, creating and formatting it when it is absent or empty.
    /// Counts its incarnation up, on disk, before it returns.
    pub fn open(path: &Path, format: &Format) -> Result<Self, DataDirError> {
        create(path)?;
        let formatted = look(path)?;
        let lock = lock(path)?;
        let supers = read_super_files(path)?;
        let mut super_block = match newest_super(path, &supers)? {
            Some(found) => found,
            None if formatted => {
                return Err(DataDirError::SuperCorrupt {
                    path: path.to_owned(),
                });
            }
            None => new_super_block(path, format)?,
        };
        open_logs(path, &super_block)?;
        super_block.incarnation += 1;
        super_block.sequence += 1;
        write_super(path, &super_block)?;
        info!(
            path = %path.display(),
            incarnation = super_block.incarnation,
            logs = super_block.logs,
            shards = super_block.shards,
            "data directory opened"
        );
        let data_dir = Self {
            held: Arc::new(Held {
                path: path.to_owned(),
                lock,
                written: Written::new(super_block.clone()),
            }),
            super_block,
        };
        data_dir.publish_address("none yet")?;
        Ok(data_dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.held.path
    }

    /// What those who make segments in it share with it.
    pub(super) fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// The superblock as it was when this process opened the directory.
    pub fn super_block(&self) -> &SuperBlock {
        &self.super_block
    }

    /// Writes the listen address into LOCK, where tools find it: `pid=…\naddr=…\n`.
    pub fn publish_address(&self, address: &str) -> Result<(), DataDirError> {
        let text = format!("pid={}\naddr={address}\n", std::process::id());
        let path = self.path().join(LOCK_NAME);
        let lock = &self.held.lock;
        lock.write_all_at(text.as_bytes(), 0)
            .and_then(|()| lock.set_len(text.len() as u64))
            .map_err(failed("write", &path))
    }

    /// Notes per log how far it is known durable; a later start that finds less reports the loss.
    /// For an orderly stop.
    pub fn record_durable(&self, durable_lsn: &[u64]) -> Result<(), DataDirError> {
        assert_eq!(
            durable_lsn.len(),
            self.super_block.logs as usize,
            "one position per log"
        );
        self.held
            .write(|super_block| super_block.durable_lsn = durable_lsn.to_vec())
    }

    /// Notes that a log had been durable up to `lsn`. Before a torn tail of a damaged log is zeroed: the
    /// frame that proves the damage may be in it, and without a proof the next start would cut the log
    /// at the damage in silence.
    pub(super) fn note_durable(&self, log_no: u32, lsn: u64) -> Result<(), DataDirError> {
        self.held.write(|super_block| {
            let noted = &mut super_block.durable_lsn[log_no as usize];
            *noted = lsn.max(*noted);
        })
    }

    /// What the store of log `log_no` is made for. What belongs to no data directory is given.
    pub fn setup(&self, log_no: u32, shard: ShardConfig, upkeep: Upkeep) -> Setup {
        self.super_block.setup(log_no, shard, upkeep)
    }

    /// What the headers of the segments of log `log_no` say.
    pub fn identity(&self, log_no: u32) -> NodeIdentity {
        self.super_block.identity(log_no)
    }
}

impl SuperBlock {
    /// What the store of log `log_no` is made for.
    ///
    /// # Panics
    /// When there is no such log.
    #[must_use]
    pub fn setup(&self, log_no: u32, shard: ShardConfig, upkeep: Upkeep) -> Setup {
        assert!(log_no < self.logs, "a log that the directory has");
        // Both are below 65,536: a superblock with more is refused when it is read.
        let narrow = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let (shards, logs) = (narrow(self.shards), narrow(self.logs));
        Setup {
            identity: self.identity(log_no),
            incarnation: self.incarnation,
            size: self.segment_size,
            key: HashKey(self.hash_key),
            shards_total: shards,
            shards: shards_of_log(narrow(log_no), logs, shards),
            shard,
            checkpoint_bytes: upkeep.checkpoint_bytes,
            clean_bytes_per_s: upkeep.clean_bytes_per_s,
        }
    }
}

impl Held {
    /// Notes that all segments of a log that begin below `lsn` have been made, durably and at their full
    /// size. Before the newest of them can be written to: should it be gone or shorter one day, a start
    /// knows that it is no torn tail.
    pub fn note_made(&self, log_no: u32, lsn: u64) -> Result<(), DataDirError> {
        self.write(|super_block| {
            let noted = &mut super_block.made_lsn[log_no as usize];
            *noted = lsn.max(*noted);
        })
    }

    fn write(&self, change: impl FnOnce(&mut SuperBlock)) -> Result<(), DataDirError> {
        // A thread that panicked ends the process.
        let mut written = self.written.lock().unwrap_or_else(|held| held.into_inner());
        let mut next = written.clone();
        change(&mut next);
        if next == *written {
            return Ok(());
        }
        next.sequence += 1;
        write_super(&self.path, &next)?;
        *written = next;
        Ok(())
    }
}

/// Directory of the segments of log `log_no`.
pub(super) fn log_path(path: &Path, log_no: u32) -> PathBuf {
    path.join(format!("log-{log_no:02}"))
}

/// Directory of the checkpoints of log `log_no`.
pub(super) fn checkpoints_path(path: &Path, log_no: u32) -> PathBuf {
    path.join(format!("ckpt-{log_no:02}"))
}

fn create(path: &Path) -> Result<(), DataDirError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(DataDirError::NotADirectory {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create_all(path),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// Whether there is a superblock; refuses a directory that has none and is not empty.
pub(super) fn look(path: &Path) -> Result<bool, DataDirError> {
    let mut other = None;
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let name = entry
            .map_err(failed("list", path))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if SUPER_NAMES.contains(&name.as_str()) {
            return Ok(true);
        }
        let is_told = other.as_deref().is_some_and(is_of_a_log);
        if !NOT_DATA.contains(&name.as_str()) && !is_told {
            other = Some(name);
        }
    }
    match other {
        None => Ok(false),
        Some(name) if is_of_a_log(&name) => {
            // A superblock is written before the first log, so one has been lost.
            Err(DataDirError::SuperMissing {
                path: path.to_owned(),
            })
        }
        Some(found) => Err(DataDirError::NotEmpty {
            path: path.to_owned(),
            found,
        }),
    }
}

fn is_of_a_log(name: &str) -> bool {
    name.starts_with("log-") || name.starts_with("ckpt-")
}

fn lock(directory: &Path) -> Result<File, DataDirError> {
    let path = directory.join(LOCK_NAME);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => {
            // What its last holder wrote is not true of this one, which has no address yet.
            file.set_len(0).map_err(failed("write", &path))?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        Err(TryLockError::WouldBlock) => Err(locked(directory, &mut file)),
    }
}

/// What the holder of the lock wrote into it.
pub(super) fn locked(directory: &Path, file: &mut File) -> DataDirError {
    let mut text = String::new();
    // What cannot be read is reported as unknown.
    let _ = file.take(LOCK_BYTES_MAX).read_to_string(&mut text);
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or("unknown").to_owned()
    };
    DataDirError::Locked {
        path: directory.to_owned(),
        pid: field("pid="),
        address: field("addr="),
    }
}

/// What lies in SUPER.a and SUPER.b; `None` for one that is not there.
pub(super) type Supers = [(&'static str, Option<Result<SuperBlock, SuperFault>>); 2];

/// Reads both superblock files.
pub(super) fn read_super_files(directory: &Path) -> Result<Supers, DataDirError> {
    let mut supers = SUPER_NAMES.map(|name| (name, None));
    for (name, found) in &mut supers {
        let path = directory.join(name);
        match read_bounded(&path) {
            Ok(bytes) => *found = Some(SuperBlock::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &path)(error)),
        }
    }
    Ok(supers)
}

/// The newest superblock that is whole. None: there are no superblock files, or none is whole.
pub(super) fn newest_super(
    directory: &Path,
    supers: &Supers,
) -> Result<Option<SuperBlock>, DataDirError> {
    let mut newest: Option<SuperBlock> = None;
    let mut corrupt = None;
    for (name, found) in supers {
        match found {
            Some(Ok(found)) => {
                let is_newer = |newest: &SuperBlock| newest.sequence < found.sequence;
                newest = match newest {
                    Some(newest) if !is_newer(&newest) => Some(newest),
                    _ => Some(found.clone()),
                };
            }
            Some(Err(SuperFault::Corrupt)) => corrupt = Some(directory.join(name)),
            Some(Err(SuperFault::Version(found))) => {
                return Err(DataDirError::OtherVersion {
                    path: directory.to_owned(),
                    found: *found,
                });
            }
            None => {}
        }
    }
    if let (Some(path), Some(newest)) = (corrupt, newest.as_mut()) {
        warn!(path = %path.display(), "superblock is corrupt, the other one is used");
        newest.incarnation += 1; // the corrupt one may have held the next; none is used twice
    }
    Ok(newest)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(SUPER_BYTES + 1);
    File::open(path)?
        .take(SUPER_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn new_super_block(path: &Path, format: &Format) -> Result<SuperBlock, DataDirError> {
    let Format {
        logs,
        shards,
        segment_bytes,
    } = *format;
    let in_range = (1..=LOGS_MAX).contains(&logs) && (1..=SHARDS_MAX).contains(&shards);
    let (Some(segment_size), true) = (SegmentSize::new(segment_bytes), in_range) else {
        return Err(DataDirError::BadFormat {
            logs,
            shards,
            segment_bytes,
        });
    };
    let mut random = [0; 40];
    getrandom::fill(&mut random)
        .map_err(io::Error::other)
        .map_err(failed("draw random numbers for", path))?;
    let (mut cluster_id, mut hash_key, mut node_id) = ([0; 16], [0; 16], [0; 8]);
    cluster_id.copy_from_slice(&random[..16]);
    hash_key.copy_from_slice(&random[16..32]);
    node_id.copy_from_slice(&random[32..]);
    let super_block = SuperBlock {
        format_version: SUPER_VERSION,
        cluster_id,
        node_id: u64::from_le_bytes(node_id),
        incarnation: 0,
        sequence: 1,
        shards,
        logs,
        segment_size,
        hash_key,
        data_id: [0; 16],
        durable_lsn: vec![0; logs as usize],
        made_lsn: vec![0; logs as usize],
    };
    // A process that was killed may have made the directory and not have synced its name. One that cannot
    // be synced was made by somebody else.
    let _ = sync_directory(parent_of(path));
    write_super(path, &super_block)?;
    info!(path = %path.display(), logs, shards, segment_bytes, "data directory formatted");
    Ok(super_block)
}

/// Creates the logs' directories at the first open; later they must be there.
fn open_logs(path: &Path, super_block: &SuperBlock) -> Result<(), DataDirError> {
    for log_no in 0..super_block.logs {
        let checkpoints = checkpoints_path(path, log_no);
        if !checkpoints.is_dir() {
            // Without its checkpoints a log is replayed from its beginning, or refused.
            create_private(&checkpoints)?;
        }
        let log = log_path(path, log_no);
        if log.is_dir() {
            continue;
        }
        if super_block.incarnation > 0 {
            return Err(DataDirError::LogMissing { path: log });
        }
        create_private(&log)?;
    }
    sync_directory(path)
}

/// Odd sequences go to SUPER.a, even ones to SUPER.b: the newest is never the one replaced. So the older
/// one may be overwritten where it lies, which needs no block on a full disk: should that stop half-way,
/// its CRC says so and the newest is still there.
fn write_super(directory: &Path, super_block: &SuperBlock) -> Result<(), DataDirError> {
    let name = super_block.file_name();
    let path = directory.join(name);
    let bytes = super_block.encode();
    let overwrite = || {
        let file = OpenOptions::new().write(true).open(&path)?;
        write_synced(&file, &path, &bytes)
    };
    match overwrite() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result.map_err(failed("write", &path)),
    }
    let unfinished = directory.join(format!("{name}.tmp"));
    let create = || {
        record::note(&unfinished, Step::Create);
        let file = File::create(&unfinished)?;
        write_synced(&file, &unfinished, &bytes)?;
        record::note(&unfinished, Step::Rename(&path));
        fs::rename(&unfinished, &path)
    };
    create().map_err(failed("write", &path))?;
    sync_directory(directory)
}

/// Makes `bytes` all that is in a file, durably.
fn write_synced(file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    record::note(path, Step::Write(0, bytes));
    file.write_all_at(bytes, 0)?;
    record::note(path, Step::Len(bytes.len() as u64));
    file.set_len(bytes.len() as u64)?;
    record::note(path, Step::SyncBegins);
    file.sync_all()?;
    record::note(path, Step::Synced);
    Ok(())
}

/// Makes what was created, renamed or removed in a directory durable.
fn sync_directory(path: &Path) -> Result<(), DataDirError> {
    record::note(path, Step::SyncDirBegins);
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", path))?;
    record::note(path, Step::DirSynced);
    Ok(())
}

/// Makes a directory and those above it that are missing, each durable before what it will hold.
fn create_all(path: &Path) -> Result<(), DataDirError> {
    let parent = parent_of(path);
    if !parent.exists() {
        create_all(parent)?;
    }
    create_private(path)?;
    sync_directory(parent)
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
