//! A log of a switch that may be running, as a crash at some moment could have left it.
//!
//! ```text
//!   1  list and open the checkpoints         an open file survives its removal
//!   2  list and open the segments            one that vanished before it was opened: from the beginning
//!   3  from the last one backwards: spares are passed over; the first with frames is the newest, and is
//!      read into memory and cut behind the last frame that continues the one before it
//! ```
//! Sealed segments never change, so they are copied as they are, later. The newest one grows while it is
//! read: a later frame may be seen whole behind an earlier one that was not there yet. Such a hole would
//! be damage to whoever recovers the copy, so it is read again; a hole that is still there had been there
//! before, and is damage indeed.
//!
//! Why that is consistent: the checkpoint came first, and whatever was removed since then was removed
//! because of frames that are in the log by now, in front of the cut.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::log::SegmentSize;
use crate::log::limits::SEGMENT_HEADER_BYTES;
use crate::log::survey::{Sight, survey};

use super::super::storage::{DataView, LogError};

/// How often the files are listed again because one has vanished. Each time the switch must have removed
/// one in between, which it does every few seconds at most.
const TRIES_MAX: u32 = 100;
/// How often the newest segment is read again while it grows.
const READS_MAX: u32 = 100;
/// Bytes of one read.
const READ_BYTES: usize = 1024 * 1024;

/// Why a log could not be caught.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The directory cannot be listed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Files vanish faster than they can be opened.
    #[error("the files of log {log} change faster than they can be opened; try again")]
    Restless {
        /// The log.
        log: u32,
    },
    /// A frame that had been durable is not whole.
    #[error(
        "{path} is damaged at byte {offset}; look with `iris log verify`, and let `iris log salvage` \
         list what is lost"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: usize,
    },
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

impl SnapshotError {
    /// Whether it is the data that is not whole.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io {
        action,
        path,
        source,
    }
}

/// An open file and what its name says: a checkpoint's position or a segment's number.
#[derive(Debug)]
pub struct Named {
    /// The position, or the number.
    pub number: u64,
    /// Where it was.
    pub path: PathBuf,
    /// The file.
    pub file: File,
}

/// A log as it could have been found after a crash.
#[derive(Debug)]
pub struct Snapshot {
    /// Its checkpoints, oldest first.
    pub checkpoints: Vec<Named>,
    /// Its sealed segments, in order.
    pub sealed: Vec<Named>,
    /// The newest segment: its number, where it was, and its bytes up to behind its last frame.
    pub newest: Option<(u64, PathBuf, Vec<u8>)>,
    /// Segments behind it that have nothing yet.
    pub spares: u64,
    /// Position behind the last frame.
    pub end: u64,
}

/// Catches log `log`.
pub fn take(view: &DataView, log: u32) -> Result<Snapshot, SnapshotError> {
    let size = view.super_block().segment_size;
    let (mut checkpoints, mut segments) = open_all(view, log)?;
    all_there(view, log, &segments)?;
    let (mut newest, mut spares) = (None, 0);
    while let Some(last) = segments.pop() {
        if let Some(bytes) = read_newest(size, &last)? {
            newest = Some((last.number, last.path, bytes));
            break;
        }
        spares += 1;
    }
    // An older checkpoint whose log is gone already has been replaced meanwhile.
    let numbers: Vec<u64> = segments.iter().map(|named| named.number).collect();
    let last = newest.as_ref().map(|(number, ..)| *number);
    let newest_checkpoint = checkpoints.pop();
    checkpoints.retain(|named| {
        let segment = size.index_of(named.number);
        numbers.contains(&segment) || last == Some(segment)
    });
    checkpoints.extend(newest_checkpoint);
    let end = newest.as_ref().map_or(0, |(number, _, bytes)| {
        size.first_lsn(*number) + bytes.len() as u64
    });
    Ok(Snapshot {
        checkpoints,
        sealed: segments,
        newest,
        spares,
        end,
    })
}

/// Checkpoints first, then segments: see above.
fn open_all(view: &DataView, log: u32) -> Result<(Vec<Named>, Vec<Named>), SnapshotError> {
    for _ in 0..TRIES_MAX {
        let checkpoints = open_each(view.checkpoint_files(log)?)?;
        let Some(checkpoints) = checkpoints else {
            continue;
        };
        if let Some(segments) = open_each(view.segment_files(log)?)? {
            return Ok((checkpoints, segments));
        }
    }
    Err(SnapshotError::Restless { log })
}

/// Refuses a log whose last segments, which the superblock says were made before this, are gone or
/// shorter. Else it would be copied as one that ended earlier.
fn all_there(view: &DataView, log: u32, segments: &[Named]) -> Result<(), SnapshotError> {
    let (super_block, size) = (view.super_block(), view.super_block().segment_size);
    let made = super_block.made_lsn[log as usize] / size.bytes();
    let damaged = |path: PathBuf, offset: u64| SnapshotError::Damaged {
        path,
        offset: offset as usize,
    };
    for named in segments.iter().filter(|named| named.number < made) {
        let metadata = named.file.metadata();
        let len = metadata.map_err(failed("look at", &named.path))?.len();
        if len < size.bytes() {
            return Err(damaged(named.path.clone(), len));
        }
    }
    let next = segments.last().map_or(0, |named| named.number + 1);
    if next < made {
        return Err(damaged(view.segment_file(log, next), 0));
    }
    Ok(())
}

/// `None`: one has vanished since it was listed.
fn open_each(files: Vec<(u64, PathBuf)>) -> Result<Option<Vec<Named>>, SnapshotError> {
    let mut opened = Vec::with_capacity(files.len());
    for (number, path) in files {
        match File::open(&path) {
            Ok(file) => opened.push(Named { number, path, file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        }
    }
    Ok(Some(opened))
}

/// The bytes of the last segment up to behind its last frame; `None` when it has none.
fn read_newest(size: SegmentSize, segment: &Named) -> Result<Option<Vec<u8>>, SnapshotError> {
    let path = &segment.path;
    if is_zero(&segment.file).map_err(failed("read", path))? {
        return Ok(None);
    }
    let read = || read_all(&segment.file, size);
    match settle(size, segment.number, read).map_err(failed("read", path))? {
        Settled::Whole(bytes) => Ok((!bytes.is_empty()).then_some(bytes)),
        Settled::Damaged(offset) => Err(SnapshotError::Damaged {
            path: path.clone(),
            offset,
        }),
    }
}

/// What came of reading a segment until it made sense.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    /// Its bytes up to behind its last frame; none when it has none.
    Whole(Vec<u8>),
    /// Something that had been durable at this offset is not whole.
    Damaged(usize),
}

/// Reads until what is read could have been found after a crash, or a hole stays. Had a hole been a frame
/// on its way, it would have come before the one that was seen behind it, and so before the next reading.
fn settle(
    size: SegmentSize,
    index: u64,
    mut read: impl FnMut() -> io::Result<Vec<u8>>,
) -> io::Result<Settled> {
    let mut doubted = None;
    for _ in 0..READS_MAX {
        let mut bytes = read()?;
        match whole_part(size, index, &bytes) {
            Ok(end) => {
                bytes.truncate(end);
                return Ok(Settled::Whole(bytes));
            }
            Err(offset) if doubted == Some(offset) => return Ok(Settled::Damaged(offset)),
            Err(offset) => doubted = Some(offset),
        }
    }
    Err(io::Error::from(io::ErrorKind::TimedOut))
}

/// Offset behind the frames that continue one another from the first one on. `Err`: the offset of
/// something that is not whole and had been durable, by what a frame behind it says.
fn whole_part(size: SegmentSize, index: u64, bytes: &[u8]) -> Result<usize, usize> {
    let (mut end, mut bad, mut is_proven) = (0, None, false);
    survey(size, index, bytes, None, &mut |sight| match (sight, bad) {
        (Sight::Header(_), _) => {}
        (Sight::Bad { from, .. }, None) => bad = Some(from),
        (Sight::Bad { .. }, Some(_)) => {}
        (Sight::Frame(frame, _), None) => end = size.offset_of(frame.lsn) + frame.frame_len(),
        (Sight::Frame(frame, _), Some(from)) => {
            is_proven |= frame.synced_lsn > size.first_lsn(index) + from as u64;
        }
    });
    match bad {
        Some(from) if is_proven => Err(from),
        _ => Ok(end),
    }
}

/// Whether a file has nothing but zeros, looked at a little at a time: spares are large.
fn is_zero(file: &File) -> io::Result<bool> {
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let count = file.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok(true);
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        offset += count as u64;
    }
}

/// From front to back, as far as it goes.
fn read_all(file: &File, size: SegmentSize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size.bytes() as usize);
    let mut from_start = file.try_clone()?;
    io::Seek::rewind(&mut from_start)?;
    from_start.take(size.bytes()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

const _: () = assert!(READ_BYTES > SEGMENT_HEADER_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{
        FrameBuilder, FrameKind, NodeIdentity, RecordHeader, RecordKind, Writer, WriterStart,
    };

    const SIZE: SegmentSize = SegmentSize::small(1024 * 1024);

    /// A segment of `frames` frames, where each begins, and where the last one ends.
    fn segment(frames: usize) -> (Vec<u8>, Vec<usize>) {
        let mut writer = Writer::new(WriterStart {
            identity: NodeIdentity {
                cluster_id: [1; 16],
                node_id: 2,
                log: 0,
            },
            incarnation: 1,
            size: SIZE,
            end: 0,
            prev_crc: 0,
            salt: None,
            unsealed: false,
            heads_max: 1,
        });
        writer.spare_ready(0, 77);
        let mut bytes = vec![0; SIZE.bytes() as usize];
        let mut places = Vec::new();
        for index in 1..=frames as u64 {
            let mut frame = FrameBuilder::new();
            let header = RecordHeader {
                kind: RecordKind::Entry,
                flags: 0,
                shard: 0,
                term: 1,
                index,
                a: 0,
                b: 0,
            };
            frame.record(header, &[7; 100]);
            let flush = writer.place(&mut frame, FrameKind::Data, &[]).unwrap();
            for write in flush.writes.iter().flatten() {
                let at = write.offset as usize;
                bytes[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
            }
            places.push(SIZE.offset_of(flush.lsn));
            writer.durable(flush.end);
        }
        places.push(SIZE.offset_of(writer.end()));
        (bytes, places)
    }

    /// R: D-6
    #[test]
    fn what_was_seen_of_a_frame_on_its_way_is_cut_off() {
        let (bytes, places) = segment(5);
        assert_eq!(whole_part(SIZE, 0, &bytes), Ok(places[5]));
        for cut in places[4]..places[5] {
            let mut torn = bytes.clone();
            torn[cut..places[5]].fill(0);
            let end = whole_part(SIZE, 0, &torn).unwrap();
            let is_whole = torn == bytes; // the last bytes of a frame may be zeros anyhow
            assert!(end == places[4] || is_whole, "cut at {cut}");
        }
        assert_eq!(whole_part(SIZE, 0, &vec![0; SIZE.bytes() as usize]), Ok(0));
    }

    /// R: D-2
    #[test]
    fn a_hole_before_a_frame_that_proves_it_is_not_cut_off_in_silence() {
        let (bytes, places) = segment(5);
        for nth in 0..4 {
            let mut hole = bytes.clone();
            hole[places[nth]..places[nth + 1]].fill(0);
            assert_eq!(whole_part(SIZE, 0, &hole), Err(places[nth]), "frame {nth}");
        }
        let mut rotten = bytes;
        rotten[20] ^= 1;
        assert_eq!(whole_part(SIZE, 0, &rotten), Err(0), "the segment's header");
    }

    /// R: D-2, D-6
    #[test]
    fn a_hole_that_stays_is_damage_and_one_that_fills_is_not() {
        let (bytes, places) = segment(5);
        let hole = |nth: usize| {
            let mut hole = bytes.clone();
            hole[places[nth]..places[nth + 1]].fill(0);
            hole
        };
        let settled = |readings: &[Vec<u8>]| {
            let mut readings = readings.iter();
            let read = || Ok(readings.next().unwrap().clone());
            settle(SIZE, 0, read).unwrap()
        };
        let whole = Settled::Whole(bytes[..places[5]].to_vec());
        assert_eq!(settled(&[hole(2), hole(2)]), Settled::Damaged(places[2]));
        assert_eq!(settled(&[hole(2), bytes.clone()]), whole);
        assert_eq!(settled(&[hole(1), hole(3), bytes.clone()]), whole);
        let none = vec![0; SIZE.bytes() as usize];
        assert_eq!(settled(&[none]), Settled::Whole(Vec::new()));
    }

    /// R: D-6. Whatever is read of a segment that is being written is what had been written before some
    /// moment after the reading began.
    #[test]
    fn a_segment_that_grows_while_it_is_read_is_cut_between_two_frames() {
        const FRAMES: usize = 4_000;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0000000000000000.seg");
        std::fs::write(&path, vec![0; SIZE.bytes() as usize]).unwrap();
        let (bytes, places) = segment(FRAMES);
        let written = std::sync::atomic::AtomicUsize::new(0);
        let named = Named {
            number: 0,
            path: path.clone(),
            file: File::open(&path).unwrap(),
        };
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                for nth in 0..FRAMES {
                    // The segment's header comes with the first frame.
                    let from = if nth == 0 { 0 } else { places[nth] };
                    let frame = &bytes[from..places[nth + 1]];
                    file.write_all_at(frame, from as u64).unwrap();
                    written.store(nth + 1, order);
                }
            });
            let mut distinct = std::collections::BTreeSet::new();
            loop {
                let before = written.load(order);
                let found = read_newest(SIZE, &named).unwrap().unwrap_or_default();
                if !found.is_empty() {
                    assert!(places.contains(&found.len()), "cut inside a frame");
                    assert!(found[..] == bytes[..found.len()], "not what was written");
                    distinct.insert(found.len());
                }
                assert!(found.len() >= places[before] || before == 0, "too little");
                if before == FRAMES {
                    break;
                }
            }
            println!("{} different lengths were read", distinct.len());
        });
    }
}
