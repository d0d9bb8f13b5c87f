//! A data directory that is only looked at: nothing in it is written, not even its lock file.
//!
//! Unless a switch may run meanwhile, the lock is held *shared*: many may look at once, and a switch that
//! is started meanwhile is refused instead of changing what is being judged.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::shard::ShardConfig;
use crate::store::Setup;

use super::data_dir::{
    DataDirError, Upkeep, checkpoints_path, failed, locked, log_path, look, newest_super,
    read_super_files,
};
use super::keeper::checkpoint_path;
use super::mmap::drop_cache;
use super::open::{LogError, checkpoint_numbers, numbers};
use super::spare::segment_path;
use super::super_block::{SuperBlock, SuperFault};

const LOCK_NAME: &str = "LOCK";

/// Whether a switch may run on the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// None may, as long as the view lives.
    Stopped,
    /// One may: what is read changes.
    MayRun,
}

/// One superblock file, as found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuperState {
    /// Its name.
    pub file: &'static str,
    /// `whole`, `missing` or `damaged`.
    pub state: &'static str,
    /// Its number, of a whole one.
    pub sequence: Option<u64>,
}

/// A data directory, to be read.
#[derive(Debug)]
pub struct DataView {
    path: PathBuf,
    super_block: SuperBlock,
    supers: Vec<SuperState>,
    /// Held shared; `None` when a switch may run, or never did.
    _lock: Option<File>,
}

impl DataView {
    /// Reads what the directory at `path` is. Writes nothing.
    ///
    /// # Errors
    /// When it is no data directory, is not whole, or a switch runs on it that may not.
    pub fn open(path: &Path, access: Access) -> Result<Self, DataDirError> {
        let owned = || path.to_owned();
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(DataDirError::NotADirectory { path: owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataDirError::Absent { path: owned() });
            }
            Err(error) => return Err(failed("look at", path)(error)),
        }
        if !look(path)? {
            return Err(DataDirError::Empty { path: owned() });
        }
        let lock = match access {
            Access::Stopped => lock_shared(path)?,
            Access::MayRun => None,
        };
        let supers = read_super_files(path)?;
        let newest = newest_super(path, &supers)?;
        let super_block = newest.ok_or_else(|| DataDirError::SuperCorrupt { path: owned() })?;
        for log in 0..super_block.logs {
            let path = log_path(path, log);
            if !path.is_dir() {
                return Err(DataDirError::LogMissing { path });
            }
        }
        let supers = supers.iter().map(|(file, found)| SuperState {
            file,
            state: match found {
                Some(Ok(_)) => "whole",
                Some(Err(SuperFault::Corrupt | SuperFault::Version(_))) => "damaged",
                None => "missing",
            },
            sequence: match found {
                Some(Ok(found)) => Some(found.sequence),
                _ => None,
            },
        });
        Ok(Self {
            path: owned(),
            supers: supers.collect(),
            super_block,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its newest superblock that is whole.
    #[must_use]
    pub fn super_block(&self) -> &SuperBlock {
        &self.super_block
    }

    /// Both superblock files.
    #[must_use]
    pub fn supers(&self) -> &[SuperState] {
        &self.supers
    }

    /// What a log of it is read with.
    ///
    /// # Panics
    /// When the directory has no such log.
    #[must_use]
    pub fn setup(&self, log: u32) -> Setup {
        let (shard, upkeep) = (ShardConfig::default(), Upkeep::default());
        self.super_block.setup(log, shard, upkeep)
    }

    /// The directory of a log's segments.
    #[must_use]
    pub fn segments(&self, log: u32) -> PathBuf {
        log_path(&self.path, log)
    }

    /// The directory of a log's checkpoints.
    #[must_use]
    pub fn checkpoints(&self, log: u32) -> PathBuf {
        checkpoints_path(&self.path, log)
    }

    /// Where segment `index` of a log is, or would be.
    #[must_use]
    pub fn segment_file(&self, log: u32, index: u64) -> PathBuf {
        segment_path(&self.segments(log), self.super_block.segment_size, index)
    }

    /// Number and path of each segment of a log, in order.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn segment_files(&self, log: u32) -> Result<Vec<(u64, PathBuf)>, LogError> {
        let (directory, size) = (self.segments(log), self.super_block.segment_size);
        let found = numbers(&directory, ".seg")?.into_iter();
        let found = found.filter(|lsn| size.offset_of(*lsn) == 0);
        let found = found.map(|lsn| size.index_of(lsn));
        Ok(found
            .map(|index| (index, segment_path(&directory, size, index)))
            .collect())
    }

    /// Position and path of each checkpoint of a log, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn checkpoint_files(&self, log: u32) -> Result<Vec<(u64, PathBuf)>, LogError> {
        let directory = self.checkpoints(log);
        let found = checkpoint_numbers(&directory)?.into_iter();
        Ok(found
            .map(|lsn| (lsn, checkpoint_path(&directory, lsn)))
            .collect())
    }

    /// Lets the page cache forget a log's files, so that what is read next is what the disk has.
    ///
    /// # Errors
    /// When a file cannot be listed or opened.
    pub fn forget_cache(&self, log: u32) -> Result<(), LogError> {
        let files = [self.segment_files(log)?, self.checkpoint_files(log)?].concat();
        for (_, path) in files {
            drop_cache(&File::open(&path).map_err(super::open::failed("open", &path))?);
        }
        Ok(())
    }
}

/// `None`: no process ever had the directory.
fn lock_shared(directory: &Path) -> Result<Option<File>, DataDirError> {
    let path = directory.join(LOCK_NAME);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", &path)(error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(locked(directory, &mut file)),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataDir, Format};
    use super::*;

    fn bytes_of(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(directory).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let files = paths.filter(|path| path.is_file());
        let mut found: Vec<_> = files
            .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
            .collect();
        found.sort();
        found
    }

    /// R: D-3
    #[test]
    fn looking_changes_nothing_and_tells_what_the_directory_is() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let opened = DataDir::open(&data, &Format::default()).unwrap();
        let (incarnation, node) = {
            let found = opened.super_block();
            (found.incarnation, found.node_id)
        };
        drop(opened);
        let before = bytes_of(&data);
        let view = DataView::open(&data, Access::Stopped).unwrap();
        let second = DataView::open(&data, Access::Stopped).unwrap();
        let found = second.super_block();
        assert_eq!((found.incarnation, found.node_id), (incarnation, node));
        assert!(view.supers().iter().all(|one| one.state == "whole"));
        assert_eq!(bytes_of(&data), before);
        let refused = DataDir::open(&data, &Format::default());
        assert!(matches!(refused, Err(DataDirError::Locked { .. })));
    }

    /// R: D-3
    #[test]
    fn a_directory_in_use_is_looked_at_only_by_who_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let opened = DataDir::open(directory.path(), &Format::default()).unwrap();
        let refused = DataView::open(directory.path(), Access::Stopped);
        let pid = std::process::id().to_string();
        assert!(matches!(refused, Err(DataDirError::Locked { pid: found, .. }) if found == pid));
        assert!(DataView::open(directory.path(), Access::MayRun).is_ok());
        drop(opened);
        assert!(DataView::open(directory.path(), Access::Stopped).is_ok());
    }

    #[test]
    fn what_is_no_data_directory_is_told_from_one_that_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let error = |path: &Path| DataView::open(path, Access::Stopped).unwrap_err();
        assert!(matches!(
            error(&path.join("no")),
            DataDirError::Absent { .. }
        ));
        assert!(matches!(error(path), DataDirError::Empty { .. }));
        std::fs::write(path.join("x"), "x").unwrap();
        assert!(matches!(error(path), DataDirError::NotEmpty { .. }));
        std::fs::remove_file(path.join("x")).unwrap();
        drop(DataDir::open(path, &Format::default()).unwrap());
        std::fs::write(path.join("SUPER.a"), "x").unwrap();
        let view = DataView::open(path, Access::Stopped).unwrap();
        let states: Vec<_> = view.supers().iter().map(|one| one.state).collect();
        assert_eq!(states, ["damaged", "whole"]);
        drop(view);
        std::fs::write(path.join("SUPER.b"), "x").unwrap();
        assert!(error(path).is_damage());
    }
}
