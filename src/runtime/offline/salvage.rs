//! What is lost of a damaged data directory, and going on without it at a person's word.
//!
//! ```text
//!   list ─▶ which entries, of whom ─▶ a person gives the phrase that names how many
//!        ─▶ lock ─▶ sync what lies there ─▶ list again: still the same? ─▶ damaged segments and the checkpoints kept in salvaged-N
//!        ─▶ superblock: durable up to the end ─▶ the new checkpoint: the next start begins behind the damage
//!        ─▶ damaged checkpoints, which are in salvaged-N by now, leave
//! ```
//! Nothing is deleted. A crash in between leaves the directory as damaged as it was.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::log::SegmentSize;
use crate::shard::ShardConfig;
use crate::store::recover::Known;
use crate::store::salvage::{Certainty, Salvaged, salvage};

use super::super::storage::{
    Access, DataDir, DataView, Format, LogError, Mapped, SuperBlock, Upkeep,
};
use super::manifest::{ManifestError, copy_file, failed, sync_directory, write_new};
use super::verify::ShardVerdict;
use super::{OfflineError, inside, logs};

/// Why nothing was set aside.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The data directory cannot be looked at or locked.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// A log cannot be used at all.
    #[error("log {log} cannot be used at all: {reason}; restore the data directory from a backup")]
    Unusable {
        /// The log.
        log: u32,
        /// Why.
        reason: String,
    },
    /// The phrase is another one.
    #[error("the confirmation must read exactly \"{wanted}\"; nothing was changed")]
    Confirmation {
        /// What it must be.
        wanted: String,
    },
    /// It is not as it was listed.
    #[error("what is lost changed while it was looked at; list it again (nothing was changed)")]
    Changed,
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] ManifestError),
}

impl From<LogError> for SalvageError {
    fn from(error: LogError) -> Self {
        Self::Offline(error.into())
    }
}

/// What is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// The directory.
    pub data: String,
    /// Whether nothing is damaged.
    pub sound: bool,
    /// Entries that are lost or may be.
    pub entries: u64,
    /// Users whose entries these are.
    pub users: u64,
    /// What a person must say to set them aside; `None`: there is nothing to be set aside, or only one log
    /// was looked at.
    pub confirm: Option<String>,
    /// The logs.
    pub logs: Vec<LogListing>,
}

/// What is lost of one log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogListing {
    /// Its number.
    pub log: u32,
    /// Why nothing can be said of it.
    pub unusable: Option<String>,
    /// Shards that are not served.
    pub shards_damaged: Vec<ShardVerdict>,
    /// Segments with bytes that cannot be believed.
    pub segments_damaged: Vec<String>,
    /// Checkpoints that cannot be used.
    pub checkpoints_damaged: Vec<String>,
    /// Entries that do not exist any more.
    pub losses: Vec<Lost>,
    /// What else may be missing, of shards that may miss anything.
    pub unnamed: Vec<Unnamed>,
}

/// What may be missing of a shard beside entries of inboxes that are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unnamed {
    /// The shard.
    pub shard: u16,
    /// Entries that each inbox may have held of which nothing is left, not even the name; at most.
    pub entries: u64,
    /// Registrations of devices that may be lost beside those of `devices`; at most.
    pub registrations: u64,
    /// Registrations that are lost for certain: the device acknowledged later. It is known again.
    pub devices: Vec<LostDevice>,
}

/// A device whose registration is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostDevice {
    /// Whose device.
    pub user: String,
    /// Its name.
    pub device: String,
}

/// Entries of one inbox that are lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// The shard.
    pub shard: u16,
    /// Whose inbox.
    pub user: String,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Whether they surely existed, were kept, and are lost.
    pub proven: bool,
    /// What is known of them.
    pub certainty: Certain,
}

/// What is known of entries that are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Certain {
    /// They existed, were kept, and are lost.
    Proven,
    /// They existed; what would say that they had left by retention may be lost too.
    ExpiredOrLost,
    /// They may have existed; their numbers are skipped.
    Possible,
}

impl From<Certainty> for Certain {
    fn from(certainty: Certainty) -> Self {
        match certainty {
            Certainty::Proven => Self::Proven,
            Certainty::ExpiredOrLost => Self::ExpiredOrLost,
            Certainty::Possible => Self::Possible,
        }
    }
}

/// What was set aside, and where to.
#[derive(Clone, Debug)]
pub struct SetAside {
    /// What is lost.
    pub listing: Listing,
    /// Where the damaged segments are.
    pub directory: PathBuf,
}

/// Lists what is lost. Changes nothing.
///
/// # Errors
/// When the directory cannot be looked at.
pub fn list(view: &DataView, only: Option<u32>) -> Result<Listing, OfflineError> {
    let mut found = Vec::new();
    for log in logs(view, only)? {
        view.forget_cache(log)?;
        found.push((log, judge(view.path(), view.super_block(), log)?));
    }
    let mut listing = listing(view.path(), view.super_block().segment_size, &found);
    if only.is_some() {
        listing.confirm = None; // all logs are set aside at once
    }
    Ok(listing)
}

/// What a salvage of one log gives, or why nothing can be said.
type Found = Result<Salvaged, String>;

fn judge(data: &Path, super_block: &SuperBlock, log: u32) -> Result<Found, LogError> {
    // What was accepted is judged, and nothing new is: no limit and no retention plays a part.
    let setup = super_block.setup(log, ShardConfig::default(), Upkeep::default());
    let mapped = Mapped::open(data, log, setup.size, false)?;
    let known = Known::of(super_block, log);
    let salvaged = mapped.found(known, |found| salvage(&setup, found));
    Ok(salvaged.map_err(|error| error.to_string()))
}

fn segment_name(log: u32, size: SegmentSize, index: u64) -> String {
    format!("log-{log:02}/{:016x}.seg", size.first_lsn(index))
}

fn checkpoint_name(log: u32, lsn: u64) -> String {
    format!("ckpt-{log:02}/{lsn:016x}.ckpt")
}

fn listing(data: &Path, size: SegmentSize, found: &[(u32, Found)]) -> Listing {
    let logs: Vec<_> = found
        .iter()
        .map(|(log, found)| log_listing(*log, size, found))
        .collect();
    let losses = || logs.iter().flat_map(|log| &log.losses);
    let entries = losses().map(|lost| lost.last - lost.first + 1).sum();
    let users: BTreeSet<&str> = losses().map(|lost| lost.user.as_str()).collect();
    let users = users.len() as u64;
    let needed = logs
        .iter()
        .any(|log| !log.losses.is_empty() || !log.shards_damaged.is_empty());
    let sound = logs
        .iter()
        .all(|log| log.unusable.is_none() && log.segments_damaged.is_empty());
    Listing {
        data: data.display().to_string(),
        sound: sound && !needed,
        entries,
        users,
        confirm: needed.then(|| format!("set aside {entries} entries of {users} users")),
        logs,
    }
}

fn log_listing(log: u32, size: SegmentSize, found: &Found) -> LogListing {
    let mut listing = LogListing {
        log,
        unusable: found.as_ref().err().cloned(),
        shards_damaged: Vec::new(),
        segments_damaged: Vec::new(),
        checkpoints_damaged: Vec::new(),
        losses: Vec::new(),
        unnamed: Vec::new(),
    };
    let Ok(salvaged) = found else {
        return listing;
    };
    let damaged = salvaged.quarantined.iter().map(|one| ShardVerdict {
        shard: one.shard.0,
        reason: one.reason.clone(),
    });
    listing.shards_damaged.extend(damaged);
    let segments = salvaged.damaged_segments.iter();
    let segments = segments.map(|index| segment_name(log, size, *index));
    listing.segments_damaged.extend(segments);
    let checkpoints = salvaged.damaged_checkpoints.iter();
    let checkpoints = checkpoints.map(|lsn| checkpoint_name(log, *lsn));
    listing.checkpoints_damaged.extend(checkpoints);
    for (shard, losses) in &salvaged.losses {
        listing.losses.extend(losses.iter().map(|loss| Lost {
            shard: shard.0,
            user: loss.user.clone(),
            first: loss.first.0,
            last: loss.last.0,
            proven: loss.certainty == Certainty::Proven,
            certainty: loss.certainty.into(),
        }));
    }
    let unnamed = salvaged.unnamed.iter().map(|(shard, unnamed)| Unnamed {
        shard: shard.0,
        entries: unnamed.entries,
        registrations: unnamed.registrations,
        devices: unnamed
            .devices
            .iter()
            .map(|one| LostDevice {
                user: one.user.clone(),
                device: one.device.clone(),
            })
            .collect(),
    });
    listing.unnamed.extend(unnamed);
    listing
}

/// Sets aside what is lost, when `confirm` is the phrase of the listing. The logs that have lost nothing
/// are left alone. `Ok(None)`: nothing is to be set aside.
///
/// # Errors
/// See [`SalvageError`].
pub fn set_aside(data: &Path, confirm: &str) -> Result<Option<SetAside>, SalvageError> {
    let before = {
        let view = DataView::open(data, Access::Stopped).map_err(OfflineError::from)?;
        list(&view, None)?
    };
    if let Some(unusable) = unusable(&before) {
        return Err(unusable);
    }
    match &before.confirm {
        None => return Ok(None),
        Some(wanted) if wanted != confirm => {
            let wanted = wanted.clone();
            return Err(SalvageError::Confirmation { wanted });
        }
        Some(_) => {}
    }
    let held = DataDir::open(data, &Format::default()).map_err(OfflineError::from)?;
    let super_block = held.super_block();
    let mut found = Vec::new();
    for log in 0..super_block.logs {
        // What was read may be in the page cache only, and the new checkpoint rests on it.
        sync_all(data, log)?;
        found.push((log, judge(data, super_block, log)?));
    }
    let listing = listing(data, super_block.segment_size, &found);
    if listing != before {
        return Err(SalvageError::Changed);
    }
    let directory = keep(data, super_block.segment_size, &found, &listing)?;
    let mut durable = super_block.durable_lsn.clone();
    for (log, salvaged) in to_do(&found) {
        let known = &mut durable[log as usize];
        *known = salvaged.lsn.max(*known);
    }
    held.record_durable(&durable).map_err(OfflineError::from)?;
    for (log, salvaged) in to_do(&found) {
        write_checkpoint(&data.join(format!("ckpt-{log:02}")), salvaged)?;
        set_checkpoints_aside(data, log, salvaged)?;
    }
    Ok(Some(SetAside { listing, directory }))
}

/// Takes the damaged checkpoints out of a log that has a new one. They are kept in `salvaged-N`.
fn set_checkpoints_aside(data: &Path, log: u32, salvaged: &Salvaged) -> Result<(), ManifestError> {
    let damaged = salvaged.damaged_checkpoints.iter();
    // The new one may have the position, and so the name, of one of them.
    let damaged = damaged.filter(|lsn| **lsn != salvaged.lsn);
    for lsn in damaged {
        let path = data.join(checkpoint_name(log, *lsn));
        fs::remove_file(&path).map_err(failed("set aside", &path))?;
    }
    let directory = data.join(format!("ckpt-{log:02}"));
    sync_directory(&directory).map_err(failed("sync", &directory))
}

/// Makes the files of a log and their names durable as they are.
fn sync_all(data: &Path, log: u32) -> Result<(), ManifestError> {
    for directory in ["log", "ckpt"].map(|kind| data.join(format!("{kind}-{log:02}"))) {
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let path = entry.map_err(failed("list", &directory))?.path();
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(failed("sync", &path))?;
        }
        sync_directory(&directory).map_err(failed("sync", &directory))?;
    }
    Ok(())
}

fn unusable(listing: &Listing) -> Option<SalvageError> {
    listing.logs.iter().find_map(|log| {
        let reason = log.unusable.clone()?;
        Some(SalvageError::Unusable {
            log: log.log,
            reason,
        })
    })
}

/// The logs that have lost something.
fn to_do(found: &[(u32, Found)]) -> impl Iterator<Item = (u32, &Salvaged)> {
    let usable = found
        .iter()
        .filter_map(|(log, found)| Some((*log, found.as_ref().ok()?)));
    usable.filter(|(_, salvaged)| !salvaged.is_sound())
}

/// Keeps what a later look may need: the damaged segments, the checkpoints, and the list of losses.
fn keep(
    data: &Path,
    size: SegmentSize,
    found: &[(u32, Found)],
    listing: &Listing,
) -> Result<PathBuf, ManifestError> {
    let directory = new_directory(data)?;
    for (log, salvaged) in to_do(found) {
        let to = directory.join(format!("log-{log:02}"));
        fs::create_dir(&to).map_err(failed("create", &to))?;
        for index in &salvaged.damaged_segments {
            let from = data.join(segment_name(log, size, *index));
            if !from.exists() {
                continue; // that it is gone is the damage
            }
            // A segment that the switch goes on writing is copied, any other never changes.
            let is_written = *index >= size.index_of(salvaged.lsn);
            keep_file(&from, &to, is_written)?;
        }
        let checkpoints = data.join(format!("ckpt-{log:02}"));
        for entry in fs::read_dir(&checkpoints).map_err(failed("list", &checkpoints))? {
            let path = entry.map_err(failed("list", &checkpoints))?.path();
            if path.extension().is_some_and(|ending| ending == "ckpt") {
                keep_file(&path, &to, false)?;
            }
        }
        sync_directory(&to).map_err(failed("sync", &to))?;
    }
    let list = directory.join("losses.json");
    let text = serde_json::to_vec_pretty(listing).map_err(io::Error::from);
    text.and_then(|text| write_new(&list, &text))
        .map_err(failed("write", &list))?;
    for path in [directory.as_path(), data] {
        sync_directory(path).map_err(failed("sync", path))?;
    }
    Ok(directory)
}

/// The first of `salvaged-1`, `salvaged-2` … that is not there yet.
fn new_directory(data: &Path) -> Result<PathBuf, ManifestError> {
    for number in 1_u32.. {
        let path = data.join(format!("salvaged-{number}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create", &path)(error)),
        }
    }
    unreachable!("four billion directories")
}

fn keep_file(from: &Path, directory: &Path, copied: bool) -> Result<(), ManifestError> {
    let Some(name) = from.file_name() else {
        unreachable!("a file of a log has a name");
    };
    let to = directory.join(name);
    if copied {
        let file = File::open(from).map_err(failed("open", from))?;
        copy_file(&file, &to, inside(directory, &to))?;
        return Ok(());
    }
    fs::hard_link(from, &to).map_err(failed("link to", &to))
}

fn write_checkpoint(directory: &Path, salvaged: &Salvaged) -> Result<(), ManifestError> {
    let path = directory.join(format!("{:016x}.ckpt", salvaged.lsn));
    let unfinished = directory.join("salvaged.tmp");
    let write = || {
        if unfinished.exists() {
            fs::remove_file(&unfinished)?; // of a salvage that did not end
        }
        write_new(&unfinished, &salvaged.checkpoint)?;
        fs::rename(&unfinished, &path)?;
        sync_directory(directory)
    };
    write().map_err(failed("write", &path))
}
