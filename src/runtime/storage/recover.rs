//! Start-up of one log: map its segments, scan them, cut a torn tail, find the spares.
//!
//! Nothing is written before the scan has decided that the log can be used, and nothing is ever
//! deleted. What is shown to the visitor is made durable before this returns: a process that was
//! killed between write and sync leaves frames in the page cache only.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use tracing::{info, warn};

use crate::log::SegmentSize;
use crate::log::recovery::{
    CUT_BLOCK_BYTES, Hole, Origin, Recovered, ScanError, Seen, Tail, leftovers, scan,
};

use super::data_dir::DataDir;
use super::limits::BUFFERS_KEPT;
use super::log::{Active, Found, Log, LogError, Segment};
use super::mmap::SegmentMap;
use super::spare::{Spare, SpareMaker, draw_salt, segment_path, zero};

/// Number of a log's first segment, until cleaning removes segments.
const FIRST_INDEX: u64 = 0;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        action,
        path,
        source,
    }
}

pub(super) fn recover(
    data_dir: &DataDir,
    log_no: u32,
    visit: &mut dyn FnMut(Recovered<'_>),
) -> Result<Log, LogError> {
    let super_block = data_dir.super_block();
    assert!(
        log_no < super_block.logs,
        "a log that the superblock does not name"
    );
    let size = super_block.segment_size;
    let directory = data_dir.log_path(log_no);
    let maps = map_segments(&directory, size)?;
    let bytes: Vec<&[u8]> = maps.iter().map(SegmentMap::bytes).collect();
    let identity = data_dir.identity(log_no);
    let origin = Origin {
        size,
        identity,
        lsn: size.first_lsn(FIRST_INDEX),
        prev_crc: 0,
        durable: 0,
    };
    let tail = scan_undamaged(&origin, &bytes, &directory, visit)?;
    let (end, known) = (tail.end, super_block.durable_lsn[log_no as usize]);
    if end < known {
        let path = directory;
        return Err(LogError::Behind { path, end, known });
    }
    let cut_bytes = cut(&directory, size, &bytes, &tail)?;
    let found = Found {
        frames: tail.frames,
        records: tail.records,
        cut_bytes,
    };
    drop(bytes);
    let parts = open_parts(&directory, size, maps, &tail)?;
    let maker = SpareMaker::start(&directory, size).map_err(failed("prepare", &directory))?;
    let mut log = Log {
        identity,
        incarnation: super_block.incarnation,
        size,
        first_index: FIRST_INDEX,
        asked: FIRST_INDEX + (parts.segments.len() + parts.spares.len()) as u64,
        segments: parts.segments,
        active: parts.active,
        retiring: None,
        spares: parts.spares,
        maker,
        end: tail.end,
        durable: tail.end,
        in_flight: None,
        prev_crc: tail.prev_crc,
        unsealed: tail.watermark < tail.end && tail.last_kind.is_some_and(needs_seal),
        buffers: Vec::with_capacity(BUFFERS_KEPT),
        found,
    };
    log.ask_for_spares();
    if log.active.is_none() && log.spares.is_empty() {
        log.spares.extend(log.maker.wait());
    }
    info!(log = log_no, lsn = log.end, ?found, "log recovered");
    Ok(log)
}

/// Scans, and refuses a log with holes.
fn scan_undamaged(
    origin: &Origin,
    segments: &[&[u8]],
    directory: &Path,
    visit: &mut dyn FnMut(Recovered<'_>),
) -> Result<Tail, LogError> {
    let numbered: Vec<(u64, &[u8])> = (FIRST_INDEX..).zip(segments.iter().copied()).collect();
    let mut damage: Option<Hole> = None;
    let scanned = scan(origin, &numbered, &mut |seen| match seen {
        Seen::Record(record) => visit(record),
        Seen::Broken(_) => {}
        Seen::Hole(hole) => {
            damage.get_or_insert(hole);
        }
    });
    if let Some(hole) = damage {
        return Err(damaged(&hole, directory, origin.size));
    }
    scanned.map_err(|error| explain(error, directory, origin.size))
}

fn needs_seal(last: crate::log::FrameKind) -> bool {
    last != crate::log::FrameKind::Seal
}

/// Maps all segments, spares too, in order.
fn map_segments(directory: &Path, size: SegmentSize) -> Result<Vec<SegmentMap>, LogError> {
    let mut indexes = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let name = entry.map_err(failed("list", directory))?.file_name();
        match first_lsn_of(&name.to_string_lossy()) {
            Some(lsn) if size.offset_of(lsn) == 0 => indexes.push(size.index_of(lsn)),
            _ => warn!(path = %directory.join(name).display(), "not a log segment, left alone"),
        }
    }
    indexes.sort_unstable();
    let mut maps = Vec::with_capacity(indexes.len());
    for (expected, index) in (FIRST_INDEX..).zip(indexes) {
        if index != expected {
            return Err(LogError::Missing {
                path: segment_path(directory, size, expected),
            });
        }
        let path = segment_path(directory, size, index);
        let map = File::open(&path)
            .and_then(|file| {
                let len = file.metadata()?.len().min(size.bytes());
                SegmentMap::new(&file, len as usize)
            })
            .map_err(failed("map", &path))?;
        map.read_sequentially();
        maps.push(map);
    }
    Ok(maps)
}

fn first_lsn_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let lower = digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 16 || !lower {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

fn damaged(hole: &Hole, directory: &Path, size: SegmentSize) -> LogError {
    LogError::Damaged {
        path: segment_path(directory, size, size.index_of(hole.from)),
        offset: size.offset_of(hole.from) as u64,
        lsn: hole.from,
        fault: hole.fault,
        proof_lsn: hole.proof_lsn,
        proof_synced_lsn: hole.proof_synced_lsn,
    }
}

fn explain(error: ScanError, directory: &Path, size: SegmentSize) -> LogError {
    let place = |at: u64| -> (PathBuf, u64) {
        (
            segment_path(directory, size, size.index_of(at)),
            size.offset_of(at) as u64,
        )
    };
    match error {
        ScanError::TooMuch { at } => {
            let (path, offset) = place(at);
            let reason = "too many damaged places before it".to_owned();
            LogError::Malformed {
                path,
                offset,
                reason,
            }
        }
        ScanError::Foreign { at, found } => LogError::Foreign {
            path: place(at).0,
            log: found.identity.log,
            first_lsn: found.first_lsn,
            node_id: found.identity.node_id,
        },
        ScanError::Version { at, version } => LogError::Version {
            path: place(at).0,
            version,
        },
        ScanError::Malformed { at, fault } => {
            let (path, offset) = place(at);
            let reason = match fault {
                Some(fault) => format!("records: {fault:?}"),
                None => "an unknown kind of frame".to_owned(),
            };
            LogError::Malformed {
                path,
                offset,
                reason,
            }
        }
    }
}

/// Zeroes what an interrupted flush left behind the end, and syncs the segments that the last
/// flushes wrote. Returns the bytes zeroed.
fn cut(
    directory: &Path,
    size: SegmentSize,
    segments: &[&[u8]],
    tail: &Tail,
) -> Result<u64, LogError> {
    let mut total = 0;
    let zeros = [0; CUT_BLOCK_BYTES];
    let end_index = size.index_of(tail.end);
    // The segment before may have got its END just before the crash.
    let first = end_index.saturating_sub(1);
    for index in first..FIRST_INDEX + segments.len() as u64 {
        let path = segment_path(directory, size, index);
        let file = open_for_writing(&path)?;
        let bytes = segments[(index - FIRST_INDEX) as usize];
        let from = if index == end_index {
            size.offset_of(tail.end)
        } else {
            0
        };
        let mut result = Ok(());
        if index >= end_index {
            leftovers(bytes, from, |offset, len| {
                if result.is_ok() {
                    result = file.write_all_at(&zeros[..len], offset as u64);
                    total += len as u64;
                }
            });
        }
        result
            .and_then(|()| file.sync_all())
            .map_err(failed("cut", &path))?;
    }
    if total > 0 {
        let directory = directory.display();
        warn!(%directory, lsn = tail.end, bytes = total, fault = %tail.fault, "torn tail cut");
    }
    Ok(total)
}

struct Parts {
    segments: Vec<Segment>,
    active: Option<Active>,
    spares: VecDeque<Spare>,
}

/// Sorts the mapped files into segments with frames and spares.
fn open_parts(
    directory: &Path,
    size: SegmentSize,
    maps: Vec<SegmentMap>,
    tail: &Tail,
) -> Result<Parts, LogError> {
    let mut parts = Parts {
        segments: Vec::new(),
        active: None,
        spares: VecDeque::new(),
    };
    let end_index = size.index_of(tail.end);
    for (index, mut map) in (FIRST_INDEX..).zip(maps) {
        let path = segment_path(directory, size, index);
        let whole = map.bytes().len() as u64 == size.bytes();
        if index < end_index {
            map.read_normally();
            parts.segments.push(Segment::new(map, size));
        } else if let (Some(salt), true) = (tail.salt, index == end_index) {
            let file = open_for_writing(&path)?;
            if !whole {
                map = lengthen(&file, map, size).map_err(failed("lengthen", &path))?;
            }
            map.read_normally();
            parts.segments.push(Segment::new(map, size));
            parts.active = Some(Active { file, salt });
        } else if whole {
            map.read_normally();
            let file = open_for_writing(&path)?;
            let salt = draw_salt().map_err(failed("draw a salt for", &path))?;
            parts.spares.push_back(Spare {
                index,
                file,
                map,
                salt,
            });
        } else {
            break; // a spare in the making: the thread makes it, and those behind it, anew
        }
    }
    Ok(parts)
}

fn open_for_writing(path: &Path) -> Result<File, LogError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed("open", path))
}

/// A segment that lost its zeros at the end gets them back.
fn lengthen(file: &File, map: SegmentMap, size: SegmentSize) -> io::Result<SegmentMap> {
    let len = map.bytes().len() as u64;
    zero(file, len, size.bytes(), &AtomicBool::new(false))?;
    SegmentMap::new(file, size.bytes() as usize)
}
