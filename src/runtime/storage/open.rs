//! Start-up of one log: map what is there, let the store judge it, do what it asks, make the spares.
//!
//! Nothing is written before the store has decided that the log can be used, and no data is
//! ever deleted. What was read is made durable before this returns: a process that was killed between write
//! and sync leaves frames in the page cache only.
//!
//! What a replay reads is read past the page cache: after a failed sync the kernel may hold pages there
//! as if they were on the disk. Dropping them first shows what the disk has (R: D-4).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use crate::log::limits::SEGMENT_HEADER_BYTES;
use crate::log::recovery::{CUT_BLOCK_BYTES, ScanError};
use crate::log::{SegmentHeader, SegmentSize};
use crate::shard::slot::POSITION_MAX;
use crate::store::Setup;
use crate::store::recover::{Cut, Found, Known, RecoverError, Recovered, recover};

use super::data_dir::{DataDir, DataDirError};
use super::files::{Files, Opened};
use super::keeper::{Keeper, Places, checkpoint_path};
use super::mmap::{SegmentMap, drop_cache};
use super::record::{self, Step};
use super::spare::{Home, Spare, SpareMaker, draw_salt, segment_path};
use super::super_block::SuperBlock;

/// Why a log cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log cannot be used as it is.
    #[error("log {path}: {source}; {advice} (nothing was changed)")]
    Unusable {
        /// The log's directory, or one file in it.
        path: PathBuf,
        /// Why.
        source: Box<RecoverError>,
        /// What to do.
        advice: &'static str,
    },
    /// The superblock could not be written before the log is changed.
    #[error(transparent)]
    Noting(Box<DataDirError>),
    /// The system refused something.
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

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        action,
        path,
        source,
    }
}

impl Known {
    /// What a superblock says of a log.
    ///
    /// # Panics
    /// When the directory has no such log.
    #[must_use]
    pub fn of(super_block: &SuperBlock, log_no: u32) -> Self {
        Self {
            durable_lsn: super_block.durable_lsn[log_no as usize],
            made_lsn: super_block.made_lsn[log_no as usize],
        }
    }
}

/// What lies in the directories of one log, mapped.
#[derive(Debug)]
pub struct Mapped {
    /// Number and bytes of each segment, in order.
    pub segments: Vec<(u64, SegmentMap)>,
    /// Position and bytes of each checkpoint, oldest first.
    pub checkpoints: Vec<(u64, SegmentMap)>,
    /// Segments from this number on were dropped from the page cache before they were mapped.
    past_cache_from: u64,
    places: Places,
}

/// What is dropped from the page cache before it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PastCache {
    /// Nothing: to look on only.
    Nothing,
    /// What a replay from the newest checkpoint reads, and all checkpoints.
    Expected,
    /// Everything.
    Everything,
}

impl Mapped {
    /// Maps all of a log's files. With `past_cache`, what a replay from the newest checkpoint reads is
    /// dropped from the page cache first.
    ///
    /// # Errors
    /// When the system refuses; nothing is changed in any case.
    pub fn open(
        data_dir: &Path,
        log_no: u32,
        size: SegmentSize,
        past_cache: bool,
    ) -> Result<Self, LogError> {
        let past_cache = match past_cache {
            true => PastCache::Expected,
            false => PastCache::Nothing,
        };
        Self::open_past(data_dir, log_no, size, past_cache)
    }

    fn open_past(
        data_dir: &Path,
        log_no: u32,
        size: SegmentSize,
        past_cache: PastCache,
    ) -> Result<Self, LogError> {
        let places = Places {
            segments: super::data_dir::log_path(data_dir, log_no),
            checkpoints: super::data_dir::checkpoints_path(data_dir, log_no),
            size,
        };
        let mut checkpoints = Vec::new();
        for lsn in checkpoint_numbers(&places.checkpoints)? {
            let path = checkpoint_path(&places.checkpoints, lsn);
            let map = map(&path, u64::MAX, past_cache != PastCache::Nothing)?;
            checkpoints.push((lsn, map));
        }
        let newest = checkpoints.last().map_or(0, |(lsn, _)| size.index_of(*lsn));
        let past_cache_from = match past_cache {
            PastCache::Nothing => u64::MAX,
            PastCache::Expected => newest,
            PastCache::Everything => 0,
        };
        let mut segments = Vec::new();
        for lsn in numbers(&places.segments, ".seg")? {
            let index = size.index_of(lsn);
            if size.offset_of(lsn) != 0 {
                warn!(path = %segment_path(&places.segments, size, index).display(), "not a log segment, left alone");
                continue;
            }
            let path = segment_path(&places.segments, size, index);
            let map = map(&path, size.bytes(), index >= past_cache_from)?;
            segments.push((index, map));
        }
        Ok(Self {
            segments,
            checkpoints,
            past_cache_from,
            places,
        })
    }

    #[cfg(test)]
    pub(super) fn past_cache_from(&self) -> u64 {
        self.past_cache_from
    }

    /// Calls `take` with everything, as recovery wants it.
    pub fn found<R>(&self, known: Known, take: impl FnOnce(Found<'_>) -> R) -> R {
        let segments = slices(&self.segments);
        let checkpoints = slices(&self.checkpoints);
        take(Found {
            checkpoints: &checkpoints,
            segments: &segments,
            known,
        })
    }
}

fn slices(files: &[(u64, SegmentMap)]) -> Vec<(u64, &[u8])> {
    files
        .iter()
        .map(|(number, map)| (*number, map.bytes()))
        .collect()
}

/// Opens log `log_no` of a data directory. Blocks; for start-up.
///
/// # Errors
/// See [`LogError`]: nothing has been changed then.
pub fn open_log(
    data_dir: &DataDir,
    log_no: u32,
    setup: Setup,
) -> Result<(crate::store::Store, Files), LogError> {
    let size = setup.size;
    let known = Known::of(data_dir.super_block(), log_no);
    let (mapped, recovered) = read_log(data_dir.path(), log_no, setup, known)?;
    let directory = mapped.places.segments.clone();
    report(log_no, &directory, size, &recovered);
    if !recovered.report.holes.is_empty() && !recovered.cuts.is_empty() {
        data_dir
            .note_durable(log_no, recovered.report.end)
            .map_err(|source| LogError::Noting(Box::new(source)))?;
    }
    cut(&directory, size, &recovered)?;
    sync_names(&mapped.places)?;
    let Recovered {
        mut store, behind, ..
    } = recovered;
    let home = Home::of(data_dir, log_no);
    let mut opened = Opened {
        directory: directory.clone(),
        size,
        segments: Vec::new(),
        active: None,
        spares: Vec::new(),
        maker: SpareMaker::start(home.clone()).map_err(failed("prepare", &directory))?,
        keeper: Keeper::start(&mapped.places).map_err(failed("prepare", &directory))?,
        durable: store.durable_end(),
    };
    let active = store.active_segment();
    let mut spares_whole = true;
    for (index, map) in mapped.segments {
        let path = segment_path(&directory, size, index);
        let is_whole = map.bytes().len() as u64 == size.bytes();
        map.read_normally();
        if !behind.contains(&index) {
            if Some(index) == active {
                assert!(is_whole, "a segment that goes on has its full size");
                opened.active = Some((index, open_for_writing(&path)?));
            }
            opened.segments.push((index, map));
        } else if is_whole && spares_whole {
            let file = open_for_writing(&path)?;
            let salt = draw_salt().map_err(failed("draw a salt for", &path))?;
            store.spare_ready(index, salt);
            opened.spares.push(Spare {
                index,
                file,
                map,
                salt,
            });
        } else {
            spares_whole = false; // in the making: the thread makes it, and those behind it, anew
        }
    }
    note_made(&home, active, &opened.spares)?;
    let mut files = Files::new(opened);
    prepare(&mut store, &mut files);
    Ok((store, files))
}

/// Maps a log and judges it. All that the replay reads is read past the page cache: should it begin
/// before the newest checkpoint, everything is read once more.
pub(super) fn read_log(
    data_dir: &Path,
    log_no: u32,
    setup: Setup,
    known: Known,
) -> Result<(Mapped, Recovered), LogError> {
    let size = setup.size;
    let read = |setup: Setup, past_cache| {
        let mapped = Mapped::open_past(data_dir, log_no, size, past_cache)?;
        for (_, map) in &mapped.segments {
            map.read_sequentially();
        }
        let recovered = mapped.found(known, |found| recover(setup, found));
        let explained = |error| explain(error, &mapped.places.segments, size);
        let recovered = recovered.map_err(explained)?;
        Ok((mapped, recovered))
    };
    let (mapped, recovered) = read(setup.clone(), PastCache::Expected)?;
    if size.index_of(recovered.report.scanned_from) >= mapped.past_cache_from {
        return Ok((mapped, recovered));
    }
    drop((mapped, recovered)); // the kernel does not let go of pages that are mapped
    read(setup, PastCache::Everything)
}

/// What may be written to from now on is noted first: a crash can have come before that was done.
fn note_made(home: &Home, active: Option<u64>, spares: &[Spare]) -> Result<(), LogError> {
    let spares = spares.iter().map(|spare| spare.index);
    let Some(newest) = active.into_iter().chain(spares).max() else {
        return Ok(());
    };
    let noted = home.note_made(newest);
    noted.map_err(|source| LogError::Noting(Box::new(source)))
}

/// A process that was killed may have left a segment's or checkpoint's name in the page cache only.
fn sync_names(places: &Places) -> Result<(), LogError> {
    for directory in [&places.segments, &places.checkpoints] {
        record::note(directory, Step::SyncDirBegins);
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("sync", directory))?;
        record::note(directory, Step::DirSynced);
    }
    Ok(())
}

/// A new log waits for its first segment: a switch that is ready takes messages.
fn prepare(store: &mut crate::store::Store, files: &mut Files) {
    while let Some(segment) = store.wants_segment() {
        files.prepare(segment);
    }
    if store.active_segment().is_none() && files.spares() == 0 {
        files.wait_for_spare(store);
    }
}

/// Positions of the checkpoints in a directory, in order. It is made when the data directory is opened; a
/// copy that is only read may lack it.
pub(super) fn checkpoint_numbers(directory: &Path) -> Result<Vec<u64>, LogError> {
    match directory.is_dir() {
        true => numbers(directory, ".ckpt"),
        false => Ok(Vec::new()),
    }
}

/// The numbers in the names of files that end in `suffix`, in order.
pub(super) fn numbers(directory: &Path, suffix: &str) -> Result<Vec<u64>, LogError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let name = entry.map_err(failed("list", directory))?.file_name();
        match number_of(&name.to_string_lossy(), suffix) {
            Some(lsn) => found.push(lsn),
            None => {
                warn!(path = %directory.join(name).display(), "not a file of the log, left alone");
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn number_of(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    let lower = digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 16 || !lower {
        return None;
    }
    let lsn = u64::from_str_radix(digits, 16).ok()?;
    (lsn <= POSITION_MAX).then_some(lsn) // no log gets any further
}

fn map(path: &Path, bytes_max: u64, past_cache: bool) -> Result<SegmentMap, LogError> {
    let map = File::open(path).and_then(|file| {
        let len = file.metadata()?.len().min(bytes_max);
        if past_cache {
            drop_cache(&file);
        }
        SegmentMap::new(&file, len as usize)
    });
    map.map_err(failed("map", path))
}

fn explain(error: RecoverError, directory: &Path, size: SegmentSize) -> LogError {
    let at = match &error {
        RecoverError::Scan(
            ScanError::Foreign { at, .. }
            | ScanError::Beyond { at }
            | ScanError::Version { at, .. }
            | ScanError::Malformed { at, .. },
        ) => Some(*at),
        _ => None,
    };
    let advice = match &error {
        RecoverError::Scan(ScanError::Foreign { .. } | ScanError::Beyond { .. }) => {
            "put the segment of this data directory in its place"
        }
        RecoverError::Scan(ScanError::Version { .. } | ScanError::Malformed { .. })
        | RecoverError::Apply(_)
        | RecoverError::OtherShard { .. } => "run the program that wrote it",
        _ => "restore it from a backup",
    };
    let path = at.map_or_else(
        || directory.to_owned(),
        |at| segment_path(directory, size, size.index_of(at)),
    );
    LogError::Unusable {
        path,
        source: Box::new(error),
        advice,
    }
}

/// Says what was found, damage above all.
fn report(log_no: u32, directory: &Path, size: SegmentSize, recovered: &Recovered) {
    let found = &recovered.report;
    for (lsn, reason) in &found.unusable_checkpoints {
        warn!(log = log_no, lsn, %reason, "a checkpoint cannot be used; an older one or the log itself is");
    }
    for hole in &found.holes {
        let path = segment_path(directory, size, size.index_of(hole.from));
        error!(log = log_no, path = %path.display(), offset = size.offset_of(hole.from), lsn = hole.from, fault = %hole.fault, "log segment is damaged: bytes that had been durable are not what they were; nothing was changed");
    }
    for quarantine in recovered.store.quarantined() {
        error!(log = log_no, shard = quarantine.shard.0, reason = %quarantine.reason, "the shard is damaged and is not served, the others are; list what is lost with `iris log salvage`, or restore the data directory from a backup");
    }
    info!(
        log = log_no,
        lsn = found.end,
        scanned_from = found.scanned_from,
        frames = found.frames,
        records = found.records,
        entries = found.entries,
        "log recovered"
    );
}

/// Zeroes what an interrupted flush left behind the end, and syncs what was read.
fn cut(directory: &Path, size: SegmentSize, recovered: &Recovered) -> Result<(), LogError> {
    if let Some(header) = &recovered.lost_header {
        give_back(directory, size, header)?;
    }
    let zeros = [0; CUT_BLOCK_BYTES];
    for Cut {
        segment,
        offset,
        len,
    } in &recovered.cuts
    {
        let path = segment_path(directory, size, *segment);
        record::note(&path, Step::Write(*offset as u64, &zeros[..*len]));
        open_for_writing(&path)?
            .write_all_at(&zeros[..*len], *offset as u64)
            .map_err(failed("cut", &path))?;
    }
    for segment in &recovered.unsynced {
        let path = segment_path(directory, size, *segment);
        record::note(&path, Step::SyncBegins);
        open_for_writing(&path)?
            .sync_all()
            .map_err(failed("sync", &path))?;
        record::note(&path, Step::Synced);
    }
    let bytes: usize = recovered.cuts.iter().map(|cut| cut.len).sum();
    if bytes > 0 {
        let lsn = recovered.report.end;
        warn!(directory = %directory.display(), lsn, bytes, "torn tail cut");
    }
    Ok(())
}

/// Writes the header that a segment has lost, when what is to be cut is all that still tells its salt.
fn give_back(directory: &Path, size: SegmentSize, header: &SegmentHeader) -> Result<(), LogError> {
    let path = segment_path(directory, size, size.index_of(header.first_lsn));
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    header.encode(&mut bytes);
    let file = open_for_writing(&path)?;
    record::note(&path, Step::Write(0, &bytes));
    file.write_all_at(&bytes, 0)
        .map_err(failed("write the header of", &path))?;
    record::note(&path, Step::SyncBegins);
    file.sync_all().map_err(failed("sync", &path))?;
    record::note(&path, Step::Synced);
    warn!(path = %path.display(), "the segment's damaged header was written anew");
    Ok(())
}

fn open_for_writing(path: &Path) -> Result<File, LogError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed("open", path))
}
