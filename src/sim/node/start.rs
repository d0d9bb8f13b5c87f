//! How a switch starts: what `runtime::storage::open` does, on the fake disks.

use std::collections::{BTreeMap, VecDeque};

use super::super::dice::Dice;
use super::super::disk::{FakeDisk, Fate, Name};
use super::{Core, Env, Jobs, Process};
use crate::log::limits::SEGMENT_HEADER_BYTES;
use crate::log::{NodeIdentity, SegmentSize};
use crate::placement::{CoreId, HashKey, LogId, Placement};
use crate::planted::{self, Bug};
use crate::shard::ShardConfig;
use crate::store::recover::{Found, Known, RecoverError, Recovered, recover, shards_of_log};
use crate::store::salvage::salvage;
use crate::store::{Setup, Store};

/// How often a start is asked what it would have made of a lost end.
const LOST_ENDS_PERCENT: u64 = 25;

/// A switch, running or not, and what its superblock keeps.
pub struct Node {
    /// The process, while there is one.
    pub process: Option<Process>,
    life: u32,
    /// Counts the starts, durably.
    incarnation: u64,
    /// How far each log was durable at the last orderly stop.
    durable: Vec<u64>,
    cluster: [u8; 16],
    key: HashKey,
    logs: u16,
    shards: u16,
    size: SegmentSize,
    shard: ShardConfig,
    checkpoint_bytes: u64,
    clean_bytes_per_s: u64,
}

/// How a start ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// The switch is up.
    Up,
    /// It crashed on the way.
    Crashed,
    /// It does not start on these disks, and may say so.
    Refused,
}

impl Node {
    /// A switch that was never started.
    #[must_use]
    pub fn new(weather: &crate::sim::Weather, key: HashKey, size: SegmentSize) -> Self {
        Self {
            process: None,
            life: 0,
            incarnation: 0,
            durable: vec![0; usize::from(weather.logs)],
            cluster: [7; 16],
            key,
            logs: weather.logs,
            shards: weather.shards,
            size,
            shard: weather.shard,
            checkpoint_bytes: weather.checkpoint_bytes,
            clean_bytes_per_s: weather.clean_bytes_per_s,
        }
    }

    fn setup(&self, log: u16) -> Setup {
        let (cluster_id, node_id, number) = (self.cluster, 9, u32::from(log));
        Setup {
            identity: NodeIdentity {
                cluster_id,
                node_id,
                log: number,
            },
            incarnation: self.incarnation,
            size: self.size,
            key: self.key,
            shards_total: self.shards,
            shards: shards_of_log(log, self.logs, self.shards),
            shard: self.shard,
            checkpoint_bytes: self.checkpoint_bytes,
            clean_bytes_per_s: self.clean_bytes_per_s,
        }
    }

    /// Starts it on `cores` cores.
    pub fn start(&mut self, env: &mut Env<'_>, cores: u16) -> Started {
        self.life += 1;
        self.incarnation += 1;
        let life = self.life;
        env.world
            .note(|| format!("the switch starts, life {life}, {cores} cores"));
        let placement = Placement::new(self.key, self.shards, self.logs, cores);
        let mut stores = Vec::new();
        for log in 0..self.logs {
            match self.open(env, log) {
                Ok(Some(store)) => stores.push((usize::from(log), store)),
                Ok(None) => return Started::Crashed,
                Err(error) => {
                    env.world.note(|| format!("log {log}: {error}"));
                    if !self.may_refuse(env, log, &error) {
                        env.world
                            .fail(|| format!("log {log} does not start: {error}"));
                    }
                    return Started::Refused;
                }
            }
        }
        let mut process = Process {
            life,
            cores: (0..cores)
                .map(|core| self.core(CoreId(core), placement))
                .collect(),
            placement,
            jobs: (0..usize::from(self.logs))
                .map(|log| Jobs::new(log, life, self.size))
                .collect(),
            owners: BTreeMap::new(),
            accepts: 0,
        };
        for (log, store) in stores {
            let core = process.placement.core_of_log(LogId(log as u16));
            process.cores[usize::from(core.0)].stores.push((log, store));
        }
        for core in &mut process.cores {
            core.wake(env.world, 1);
        }
        self.process = Some(process);
        Started::Up
    }

    fn core(&self, id: CoreId, placement: Placement) -> Core {
        Core {
            id,
            life: self.life,
            cluster: self.cluster,
            placement,
            stores: Vec::new(),
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            senders: BTreeMap::new(),
            dirty: Vec::new(),
            retry: Vec::new(),
            congested: Vec::new(),
            gathering: Vec::new(),
            greeting: VecDeque::new(),
            closing: VecDeque::new(),
            found: VecDeque::new(),
            mail: VecDeque::new(),
            outgoing: Vec::new(),
            later: Vec::new(),
            sent: Vec::new(),
            effects: VecDeque::new(),
            next_tick_us: 0,
            next_gathering_us: 0,
            turn_at_us: None,
            draining: false,
            said_goodbye: false,
        }
    }

    /// A log without a whole checkpoint and without its beginning cannot start; that takes a checkpoint
    /// that rotted.
    fn may_refuse(&self, env: &Env<'_>, log: u16, error: &RecoverError) -> bool {
        matches!(error, RecoverError::NoCheckpoint { .. })
            && env.check.damage.is_hopeless(usize::from(log))
    }

    /// An operator salvages a log, offline: what is lost is set aside, the rest goes on. Says whether
    /// there was anything to be done.
    pub fn salvage(&self, env: &mut Env<'_>, log: u16) -> bool {
        let number = usize::from(log);
        let disk = &mut env.disks[number];
        disk.read_past_cache();
        // What the new checkpoint rests on must be on the medium before it is.
        for name in disk.names().collect::<Vec<_>>() {
            let _ = disk.sync(name);
            disk.sync_directory(name);
        }
        env.check.disk_moved(env.world, number, disk);
        let (checkpoints, segments) = files(disk);
        let found = Found {
            checkpoints: &checkpoints,
            segments: &segments,
            known: self.known(number, disk),
        };
        let salvaged = match salvage(&self.setup(log), found) {
            Ok(salvaged) => salvaged,
            Err(error) => {
                env.world
                    .note(|| format!("log {log} cannot be salvaged: {error}"));
                return false;
            }
        };
        if salvaged.is_sound() {
            return false;
        }
        let (draft, name) = (Name::Draft(salvaged.lsn), Name::Checkpoint(salvaged.lsn));
        disk.create(draft);
        let written = disk
            .zero(draft, 0)
            .and_then(|()| disk.write(draft, 0, &salvaged.checkpoint))
            .and_then(|()| disk.sync(draft))
            .and_then(|()| disk.rename(draft, name));
        if written.is_err() {
            disk.unlink(draft);
            return false;
        }
        disk.sync_directory(name);
        env.check.salvaged(env.world, number, &salvaged);
        true
    }

    /// Reads one log, does what recovery asks, and makes it durable. `None`: it crashed meanwhile.
    fn open(&self, env: &mut Env<'_>, log: u16) -> Result<Option<Store>, RecoverError> {
        let number = usize::from(log);
        if !planted::is(Bug::CacheBelieved) {
            env.disks[number].read_past_cache();
        }
        env.check
            .before_recovery(env.world, number, &env.disks[number]);
        let disk = &env.disks[number];
        let (checkpoints, segments) = files(disk);
        let found = Found {
            checkpoints: &checkpoints,
            segments: &segments,
            known: self.known(number, disk),
        };
        let mut recovered = recover(self.setup(log), found)?;
        self.lose_the_end(env, log);
        if !self.repair(env, number, &recovered) {
            return Ok(None);
        }
        env.check
            .recovered(env.world, number, &env.disks[number], &recovered);
        let mut whole = true;
        let mut newest = recovered.store.active_segment();
        for index in std::mem::take(&mut recovered.behind) {
            let len = env.disks[number]
                .read(Name::Segment(index))
                .map_or(0, <[u8]>::len);
            whole &= len as u64 == self.size.bytes();
            if whole {
                recovered.store.spare_ready(index, env.world.dice.roll());
                newest = Some(index);
            }
        }
        if crashes(env) {
            return Ok(None);
        }
        if let Some(newest) = newest.filter(|_| !planted::is(Bug::SegmentUnnoted)) {
            let made_lsn = &mut env.disks[number].made_lsn;
            *made_lsn = self.size.first_lsn(newest + 1).max(*made_lsn);
        }
        Ok(Some(recovered.store))
    }

    /// What the superblock says of a log.
    fn known(&self, log: usize, disk: &FakeDisk) -> Known {
        Known {
            durable_lsn: self.durable[log],
            made_lsn: disk.made_lsn,
        }
    }

    /// Beside the world's course, on a copy of the disk: had the log's last segment been lost with all
    /// behind it, or its end, would a start have taken that for a log that ended earlier?
    fn lose_the_end(&self, env: &mut Env<'_>, log: u16) {
        let number = usize::from(log);
        // A dice of its own, that the course of the world stays what it is.
        let mut dice = Dice::new(env.world.now_us() ^ u64::from(log));
        let end = env.check.durable_end(number);
        if end == 0 || env.check.damage.was_done() || !dice.percent(LOST_ENDS_PERCENT) {
            return;
        }
        let mut disk = env.disks[number].clone();
        let last = self.size.index_of(end - 1);
        let cut = match dice.percent(50) {
            true => Some(dice.index(self.size.offset_of(end - 1) + 1)),
            false => None,
        };
        for name in disk.names().collect::<Vec<_>>() {
            match (name, cut) {
                (Name::Segment(index), Some(len)) if index == last => disk.cut_short(name, len),
                (Name::Segment(index), None) if index >= last => disk.unlink(name),
                _ => {}
            }
        }
        let (checkpoints, segments) = files(&disk);
        let found = Found {
            checkpoints: &checkpoints,
            segments: &segments,
            known: self.known(number, &disk),
        };
        if let Ok(recovered) = recover(self.setup(log), found) {
            let how = cut.map_or("gone".to_owned(), |len| format!("cut at {len}"));
            env.check
                .end_was_lost(env.world, number, &recovered.store, &how);
        }
    }

    /// Zeroes what is to be cut and syncs what was read; false when it crashed on the way.
    fn repair(&self, env: &mut Env<'_>, log: usize, recovered: &Recovered) -> bool {
        if let Some(header) = &recovered.lost_header {
            let mut bytes = [0; SEGMENT_HEADER_BYTES];
            header.encode(&mut bytes);
            let segment = Name::Segment(self.size.index_of(header.first_lsn));
            let _ = env.disks[log].write(segment, 0, &bytes);
            if crashes(env) {
                return false;
            }
            let _ = env.disks[log].sync(segment);
        }
        for cut in &recovered.cuts {
            let zeros = vec![0; cut.len];
            let _ = env.disks[log].write(Name::Segment(cut.segment), cut.offset, &zeros);
            if crashes(env) {
                return false;
            }
        }
        for index in &recovered.unsynced {
            if !planted::is(Bug::RecoveredUnsynced) {
                let _ = env.disks[log].sync(Name::Segment(*index));
            }
            if crashes(env) {
                return false;
            }
        }
        let disk: &mut FakeDisk = &mut env.disks[log];
        if !planted::is(Bug::StartDirSync) {
            disk.sync_directory(Name::Segment(0));
            disk.sync_directory(Name::Checkpoint(0));
        }
        let drafts: Vec<Name> = disk
            .names()
            .filter(|name| matches!(name, Name::Draft(_)))
            .collect();
        for draft in drafts {
            disk.unlink(draft);
        }
        true
    }

    /// The process is gone, from one event to the next.
    pub fn crash(&mut self, env: &mut Env<'_>) {
        if let Some(process) = self.process.take() {
            env.check.counts.kills += 1;
            for (_, store) in process.stores() {
                env.check.account(store);
            }
        }
        for id in env.net.ids() {
            env.net.sever(env.world, id);
        }
    }

    /// The power goes, with the process and whatever was not synced.
    pub fn lose_power(&mut self, env: &mut Env<'_>) {
        self.crash(env);
        env.check.counts.power_losses += 1;
        for disk in env.disks.iter_mut() {
            let fate = Fate::draw(&mut env.world.dice);
            disk.lose_power(&mut env.world.dice, fate);
        }
    }

    /// The process has stopped in good order: the superblock says how far all is durable.
    pub fn stopped(&mut self, env: &mut Env<'_>) {
        env.check.counts.stops += 1;
        if let Some(process) = &self.process {
            for (log, durable) in process.durable_ends() {
                self.durable[log] = durable;
            }
        }
        self.crash(env);
    }
}

/// Position or number, and bytes, of the files of a log.
type Files<'a> = Vec<(u64, &'a [u8])>;

/// The checkpoints and the segments of a disk.
fn files(disk: &FakeDisk) -> (Files<'_>, Files<'_>) {
    let (mut checkpoints, mut segments) = (Vec::new(), Vec::new());
    for name in disk.names() {
        let bytes = disk.read(name).unwrap_or_default();
        match name {
            Name::Segment(index) => segments.push((index, bytes)),
            Name::Checkpoint(lsn) => checkpoints.push((lsn, bytes)),
            Name::Draft(_) => {}
        }
    }
    (checkpoints, segments)
}

/// Whether a start is interrupted here.
fn crashes(env: &mut Env<'_>) -> bool {
    env.world.dice.ppm(env.weather.start_crash_ppm)
}
