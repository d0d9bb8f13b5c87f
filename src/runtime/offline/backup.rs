//! A copy of a data directory, also of one that a switch is serving, without stopping it.
//!
//! Each log is copied as a crash at one moment could have left it (see `snapshot`), so a start from
//! the copy recovers like a start after a crash: everything that was accepted before the backup began is
//! in it. Keys, the lock and sockets are not. The copy is judged like any data directory before its
//! MANIFEST is written: a backup that could not be restored is none.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::super::revocation::{self, RevocationFileError};
use super::super::storage::{Access, DataDirError, DataView};
use super::manifest::{
    Listed, LogPart, Manifest, ManifestError, copy_file, failed, sync_directory, write_new,
    write_padded,
};
use super::snapshot::{self, SnapshotError};
use super::verify::{Verdict, verify};
use super::{OfflineError, inside};

/// Why there is no backup, or no directory made of one.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The data directory, or the backup, cannot be looked at.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// A file could not be copied, or is not what was copied.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The list of revoked tokens is damaged or cannot be read.
    #[error(transparent)]
    Revocations(#[from] RevocationFileError),
    /// The target holds something.
    #[error("{path} is not empty; give a directory that is new or empty")]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// What was copied is damaged.
    #[error(
        "the data in {path} is damaged ({reason}), so {what}; look with `iris log verify --data {path}`"
    )]
    Damaged {
        /// Where.
        path: PathBuf,
        /// The first thing that is wrong.
        reason: String,
        /// What that means here.
        what: &'static str,
    },
}

impl From<DataDirError> for BackupError {
    fn from(error: DataDirError) -> Self {
        Self::Offline(error.into())
    }
}

impl From<SnapshotError> for BackupError {
    fn from(error: SnapshotError) -> Self {
        Self::Offline(error.into())
    }
}

/// What was copied.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Files, but for the manifest.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How far each log reaches.
    pub logs: Vec<LogPart>,
    /// Messages that were read and are whole.
    pub messages: u64,
}

/// Copies the data directory `data` into the directory `to`.
///
/// # Errors
/// See [`BackupError`]; `to` has no MANIFEST then, and is no backup.
pub fn backup(data: &Path, to: &Path) -> Result<Copied, BackupError> {
    // First of all: what it says of the logs is true of all that is copied after it.
    let view = DataView::open(data, Access::MayRun)?;
    make_empty(to)?;
    let mut manifest = Manifest::new();
    let mut super_block = view.super_block().clone();
    for log in 0..view.super_block().logs {
        super_block.made_lsn[log as usize] = copy_log(&view, log, to, &mut manifest)?;
    }
    copy_revocations(data, to, &mut manifest)?;
    let name = super_block.file_name();
    let bytes = super_block.encode();
    let listed = write_padded(&to.join(name), &bytes, bytes.len() as u64, name.to_owned())?;
    manifest.files.push(listed);
    sync_directory(to).map_err(failed("sync", to))?;
    let verdict = judge(to)?;
    if !verdict.sound {
        return Err(BackupError::Damaged {
            path: data.to_owned(),
            reason: first_reason(&verdict),
            what: "a copy of it could not be restored and is no backup",
        });
    }
    manifest.write(to)?;
    Ok(copied(&manifest, &verdict))
}

pub(super) fn copied(manifest: &Manifest, verdict: &Verdict) -> Copied {
    Copied {
        files: manifest.files.len(),
        bytes: manifest.bytes(),
        logs: manifest.logs.clone(),
        messages: verdict.logs.iter().map(|log| log.messages).sum(),
    }
}

/// Judges a copy as `iris log verify` does.
pub(super) fn judge(path: &Path) -> Result<Verdict, BackupError> {
    let view = DataView::open(path, Access::Stopped)?;
    Ok(verify(&view, None)?)
}

/// The first thing that is wrong, in words.
pub(super) fn first_reason(verdict: &Verdict) -> String {
    for log in &verdict.logs {
        let hole = log.holes.first();
        let checkpoint = log.checkpoints.iter().find_map(|one| one.damage.as_ref());
        let shard = log.shards_damaged.first();
        let message = log.unreadable.first();
        let reason = log
            .unusable
            .clone()
            .or(hole.map(|hole| format!("{} at byte {}: {}", hole.file, hole.offset, hole.fault)))
            .or(checkpoint.cloned())
            .or(shard.map(|shard| format!("shard {}: {}", shard.shard, shard.reason)))
            .or(message.map(|one| format!("entry {} of {} cannot be read", one.first, one.user)));
        if let Some(reason) = reason {
            return format!("log {}: {reason}", log.log);
        }
    }
    unreachable!("what is not sound has a reason")
}

/// Makes a directory that only its owner may read, or takes one that is empty.
pub(super) fn make_empty(path: &Path) -> Result<(), BackupError> {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(BackupError::NotEmpty {
                path: path.to_owned(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_directory(path)?;
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            sync_directory(parent).map_err(failed("sync", parent))?;
            Ok(())
        }
        Err(error) => Err(failed("list", path)(error).into()),
    }
}

pub(super) fn make_directory(path: &Path) -> Result<(), ManifestError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(failed("create", path))
}

/// The list of revoked tokens: replaced whole, so what is read is a whole one, unless it is damaged.
fn copy_revocations(data: &Path, to: &Path, manifest: &mut Manifest) -> Result<(), BackupError> {
    let from = data.join(revocation::NAME);
    let Some(list) = revocation::read(&from)? else {
        return Ok(());
    };
    let target = to.join(revocation::NAME);
    let text = list.encode();
    let (len, name) = (text.len() as u64, revocation::NAME.to_owned());
    manifest
        .files
        .push(write_padded(&target, text.as_bytes(), len, name)?);
    Ok(())
}

fn copy_log(
    view: &DataView,
    log: u32,
    to: &Path,
    manifest: &mut Manifest,
) -> Result<u64, BackupError> {
    let caught = snapshot::take(view, log)?;
    let newest = caught.checkpoints.last().map(|named| named.number);
    manifest.logs.push(LogPart {
        log,
        end: caught.end,
        checkpoint: newest,
    });
    let directories = [view.segments(log), view.checkpoints(log)];
    let directories = directories.map(|path| to.join(inside(view.path(), &path)));
    for directory in &directories {
        make_directory(directory)?;
    }
    for named in caught.checkpoints.iter().chain(&caught.sealed) {
        let name = inside(view.path(), &named.path);
        manifest.files.push(copy_open(&named.file, to, name)?);
    }
    if let Some((_, path, bytes)) = &caught.newest {
        let name = inside(view.path(), path);
        let len = view.super_block().segment_size.bytes();
        let listed = write_padded(&to.join(&name), bytes, len, name)?;
        manifest.files.push(listed);
    }
    for directory in &directories {
        sync_directory(directory).map_err(failed("sync", directory))?;
    }
    let size = view.super_block().segment_size;
    let behind = |(newest, ..): &(u64, PathBuf, Vec<u8>)| size.first_lsn(newest + 1);
    Ok(caught.newest.as_ref().map_or(0, behind)) // the spares are not copied
}

fn copy_open(from: &File, to: &Path, name: String) -> Result<Listed, ManifestError> {
    copy_file(from, &to.join(&name), name)
}

/// Writes the bytes of a superblock into a directory that has none yet.
pub(super) fn write_super(to: &Path, name: &str, bytes: &[u8]) -> Result<(), ManifestError> {
    let path = to.join(name);
    write_new(&path, bytes).map_err(failed("write", &path))?;
    sync_directory(to).map_err(failed("sync", to))
}
