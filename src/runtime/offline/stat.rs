//! What a data directory holds, in numbers.

use std::cmp::Reverse;
use std::fs::File;

use serde::Serialize;

use crate::shard::user::User;
use crate::store::recover::{Found, Known, Recovered, recover};
use crate::store::salvage::counts;

use super::super::storage::{Access, DataView, Mapped, SegmentMap};
use super::snapshot::{self, Named, Snapshot};
use super::{OfflineError, logs};

/// Inboxes that are named.
const LARGEST: usize = 10;

/// What a data directory holds.
#[derive(Clone, Debug, Serialize)]
pub struct Stat {
    /// The directory.
    pub data: String,
    /// Whether a switch may have been running on it.
    pub running: bool,
    /// Its shards.
    pub shards: u32,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Starts so far.
    pub incarnation: u64,
    /// Its logs.
    pub logs: Vec<LogStat>,
    /// The largest inboxes, by bytes.
    pub largest: Vec<Inbox>,
}

/// What one log holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogStat {
    /// Its number.
    pub log: u32,
    /// Why it cannot be used; then the other numbers are zero.
    pub unusable: Option<String>,
    /// Segments in use.
    pub segments: u64,
    /// Segments made and not in use yet, or in the making.
    pub spares: u64,
    /// Bytes of the segments in use.
    pub used_bytes: u64,
    /// Bytes of messages that inboxes refer to.
    pub live_bytes: u64,
    /// Position of the first byte that is there.
    pub first_lsn: u64,
    /// Position behind the last frame.
    pub end_lsn: u64,
    /// Checkpoints.
    pub checkpoints: Vec<CheckpointStat>,
    /// Where a start begins to read.
    pub scanned_from: u64,
    /// Frames that it reads.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Users known.
    pub users: u64,
    /// Devices of them.
    pub devices: u64,
    /// Entries of inboxes that are kept.
    pub entries: u64,
    /// Entries that some device has not acknowledged.
    pub pending: u64,
    /// Entries whose messages were set aside.
    pub gaps: u64,
    /// Send streams remembered.
    pub pairs: u64,
    /// Shards that would not be served.
    pub damaged_shards: Vec<u16>,
}

/// One checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointStat {
    /// Its position.
    pub lsn: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// One inbox.
#[derive(Clone, Debug, Serialize)]
pub struct Inbox {
    /// Whose.
    pub user: String,
    /// Its shard.
    pub shard: u16,
    /// Entries kept.
    pub entries: u64,
    /// Entries that some device has not acknowledged.
    pub pending: u64,
    /// Bytes of the entries kept.
    pub bytes: u64,
    /// Devices.
    pub devices: u64,
}

/// Counts a data directory, or one log of it. With [`Access::MayRun`] the numbers are those of a moment.
///
/// # Errors
/// When it could not be looked at.
pub fn stat(view: &DataView, access: Access, only: Option<u32>) -> Result<Stat, OfflineError> {
    let super_block = view.super_block();
    let mut stat = Stat {
        data: view.path().display().to_string(),
        running: access == Access::MayRun,
        shards: super_block.shards,
        segment_bytes: super_block.segment_size.bytes(),
        incarnation: super_block.incarnation,
        logs: Vec::new(),
        largest: Vec::new(),
    };
    for log in logs(view, only)? {
        let known = Known::of(super_block, log);
        let counted = match access {
            Access::Stopped => {
                let mapped = Mapped::open(view.path(), log, super_block.segment_size, false)?;
                mapped.found(known, |found| count(view, log, found, &mut stat.largest))
            }
            Access::MayRun => {
                let snapshot = snapshot::take(view, log)?;
                let spares = snapshot.spares;
                let caught = Caught::new(view, snapshot)?;
                let counted =
                    caught.found(known, |found| count(view, log, found, &mut stat.largest));
                LogStat { spares, ..counted }
            }
        };
        stat.logs.push(counted);
        largest_first(&mut stat.largest);
    }
    Ok(stat)
}

/// A log of a running switch: what never changes is mapped.
struct Caught {
    checkpoints: Vec<(u64, SegmentMap)>,
    sealed: Vec<(u64, SegmentMap)>,
    newest: Option<(u64, Vec<u8>)>,
}

impl Caught {
    fn new(view: &DataView, snapshot: Snapshot) -> Result<Self, OfflineError> {
        let size = view.super_block().segment_size;
        let map = |named: &Named, bytes_max: u64| -> Result<(u64, SegmentMap), OfflineError> {
            let mapped = map_file(&named.file, bytes_max);
            let mapped = mapped.map_err(|source| snapshot::SnapshotError::Io {
                action: "map",
                path: named.path.clone(),
                source,
            })?;
            Ok((named.number, mapped))
        };
        let checkpoints = snapshot.checkpoints.iter();
        let sealed = snapshot.sealed.iter();
        Ok(Self {
            checkpoints: checkpoints
                .map(|named| map(named, u64::MAX))
                .collect::<Result<_, _>>()?,
            sealed: sealed
                .map(|named| map(named, size.bytes()))
                .collect::<Result<_, _>>()?,
            newest: snapshot.newest.map(|(number, _, mut bytes)| {
                bytes.resize(size.bytes() as usize, 0); // what was cut behind the last frame
                (number, bytes)
            }),
        })
    }

    fn found<R>(&self, known: Known, take: impl FnOnce(Found<'_>) -> R) -> R {
        let checkpoints: Vec<(u64, &[u8])> = bytes_of(&self.checkpoints);
        let mut segments = bytes_of(&self.sealed);
        let newest = self.newest.as_ref();
        segments.extend(newest.map(|(number, bytes)| (*number, bytes.as_slice())));
        take(Found {
            checkpoints: &checkpoints,
            segments: &segments,
            known,
        })
    }
}

fn bytes_of(maps: &[(u64, SegmentMap)]) -> Vec<(u64, &[u8])> {
    let maps = maps.iter();
    maps.map(|(number, map)| (*number, map.bytes())).collect()
}

fn map_file(file: &File, bytes_max: u64) -> std::io::Result<SegmentMap> {
    let len = file.metadata()?.len().min(bytes_max);
    SegmentMap::new(file, len as usize)
}

fn count(view: &DataView, log: u32, found: Found<'_>, largest: &mut Vec<Inbox>) -> LogStat {
    let size = view.super_block().segment_size;
    let mut stat = LogStat {
        log,
        ..LogStat::default()
    };
    let checkpoints = found.checkpoints.iter();
    let checkpoints = checkpoints.map(|(lsn, bytes)| CheckpointStat {
        lsn: *lsn,
        bytes: bytes.len() as u64,
    });
    stat.checkpoints = checkpoints.collect();
    let first = found.segments.first();
    stat.first_lsn = first.map_or(0, |(index, _)| size.first_lsn(*index));
    match recover(view.setup(log), found) {
        Ok(recovered) => count_recovered(&recovered, &mut stat, largest),
        Err(error) => stat.unusable = Some(error.to_string()),
    }
    stat
}

fn count_recovered(recovered: &Recovered, stat: &mut LogStat, largest: &mut Vec<Inbox>) {
    let (store, report) = (&recovered.store, &recovered.report);
    let status = store.status();
    stat.segments = status.segments as u64;
    stat.spares = recovered.behind.len() as u64;
    stat.used_bytes = status.used_bytes;
    stat.live_bytes = status.live_bytes;
    stat.end_lsn = report.end;
    stat.scanned_from = report.scanned_from;
    stat.frames = report.frames;
    stat.records = report.records;
    let damaged = store.quarantined().iter();
    stat.damaged_shards = damaged.map(|one| one.shard.0).collect();
    for id in store.shards() {
        let Some(shard) = store.shard(*id) else {
            continue;
        };
        let (users, entries, pairs) = counts(shard);
        stat.users += users as u64;
        stat.entries += entries;
        stat.pairs += pairs as u64;
        for user in shard.users().iter() {
            let inbox = inbox(id.0, user);
            stat.devices += inbox.devices;
            stat.pending += inbox.pending;
            let gaps = user.slots().filter(|(_, slot)| slot.position().is_none());
            stat.gaps += gaps.map(|(_, slot)| slot.entries()).sum::<u64>();
            largest.push(inbox);
        }
        largest_first(largest);
    }
}

fn inbox(shard: u16, user: &User) -> Inbox {
    Inbox {
        user: user.name().to_owned(),
        shard,
        entries: user.head().0 + 1 - user.oldest().0,
        pending: user.pending(),
        bytes: user.bytes(),
        devices: user.devices().len() as u64,
    }
}

/// Keeps the largest ones.
fn largest_first(inboxes: &mut Vec<Inbox>) {
    let key = |inbox: &Inbox| (Reverse(inbox.bytes), inbox.user.clone());
    inboxes.sort_by_cached_key(key);
    inboxes.truncate(LARGEST);
}
