//! What a store asks of its disk, done in the steps in which a disk does it, each taking its time.
//!
//! Between any two steps the switch can crash. A sync covers what was written before it began and may
//! fail. The order of steps is that of `runtime::storage`.

use std::collections::{BTreeMap, VecDeque};

use super::Weather;
use super::disk::{DiskError, FakeDisk, Name, Syncing};
use super::world::{Event, World};
use crate::log::{Harvest, SegmentSize, harvest};
use crate::planted::{self, Bug};
use crate::store::Io;

/// What became of something that was asked.
#[derive(Debug)]
pub enum Done {
    /// A flush is durable.
    Flushed,
    /// A spare segment is there.
    Spare {
        /// Its number.
        segment: u64,
        /// Its salt.
        salt: u64,
    },
    /// There is no room for a spare; it is tried again.
    NoSpare,
    /// A step of a checkpoint was done, or was not.
    Checkpointed(bool),
    /// Old messages were read.
    Harvested(Harvest),
    /// The disk failed in a way that ends the process.
    Fatal(&'static str),
}

#[derive(Debug)]
enum Step {
    Create(Name),
    Zero(Name, usize),
    Write(Name, usize, Vec<u8>),
    Sync(Name),
    /// A sync under way.
    Syncing(Name, Syncing),
    SyncDirectory(Name),
    Rename(Name, Name),
    Unlink(Name),
    /// Wait, then try a spare again.
    Pause,
    Read {
        segment: u64,
        from: usize,
        budget: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Flush,
    Spare(u64),
    Checkpoint,
    Silent,
    Harvest,
}

#[derive(Debug)]
struct Job {
    purpose: Purpose,
    steps: VecDeque<Step>,
}

/// The operations under way on one log's disk.
#[derive(Debug)]
pub struct Jobs {
    log: usize,
    life: u32,
    size: SegmentSize,
    next: u64,
    running: BTreeMap<u64, Job>,
    /// The checkpoint in the making: its position and how long it is.
    draft: (u64, usize),
}

impl Jobs {
    /// No operations, on the disk of log number `log`, in a life of the switch.
    #[must_use]
    pub const fn new(log: usize, life: u32, size: SegmentSize) -> Self {
        Self {
            log,
            life,
            size,
            next: 0,
            running: BTreeMap::new(),
            draft: (0, 0),
        }
    }

    /// Begins what a store asks for.
    pub fn begin(&mut self, world: &mut World, io: Io) {
        let log = self.log;
        world.note(|| format!("log {log}: {}", describe(&io)));
        let (purpose, steps) = self.steps(io);
        let job = self.next;
        self.next += 1;
        self.running.insert(job, Job { purpose, steps });
        let delay = world.dice.skewed(1, 50);
        world.after(
            delay,
            Event::Disk {
                life: self.life,
                log: self.log,
                job,
            },
        );
    }

    fn steps(&mut self, io: Io) -> (Purpose, VecDeque<Step>) {
        let mut steps = VecDeque::new();
        let purpose = match io {
            Io::Flush(flush) => {
                for write in flush.writes.into_iter().flatten() {
                    let name = Name::Segment(write.segment);
                    #[expect(clippy::cast_possible_truncation, reason = "below a segment's size")]
                    steps.push_back(Step::Write(name, write.offset as usize, write.bytes));
                    steps.push_back(Step::Sync(name));
                }
                Purpose::Flush
            }
            Io::PrepareSegment { segment } => {
                let name = Name::Segment(segment);
                steps.push_back(Step::Create(name));
                steps.push_back(Step::Zero(name, self.size.bytes() as usize));
                steps.push_back(Step::Sync(name));
                if !planted::is(Bug::SegmentDirSync) {
                    steps.push_back(Step::SyncDirectory(name));
                }
                Purpose::Spare(segment)
            }
            Io::RemoveSegment { segment } => {
                steps.push_back(Step::Unlink(Name::Segment(segment)));
                Purpose::Silent
            }
            Io::CheckpointBegin { lsn } => {
                self.draft = (lsn, 0);
                steps.push_back(Step::Create(Name::Draft(lsn)));
                steps.push_back(Step::Zero(Name::Draft(lsn), 0));
                Purpose::Checkpoint
            }
            Io::CheckpointChunk { bytes } => {
                let (lsn, at) = self.draft;
                self.draft.1 += bytes.len();
                steps.push_back(Step::Write(Name::Draft(lsn), at, bytes));
                Purpose::Checkpoint
            }
            Io::CheckpointEnd => {
                let (draft, name) = (Name::Draft(self.draft.0), Name::Checkpoint(self.draft.0));
                if !planted::is(Bug::CheckpointSync) {
                    steps.push_back(Step::Sync(draft));
                }
                steps.push_back(Step::Rename(draft, name));
                if !planted::is(Bug::CheckpointDirSync) {
                    steps.push_back(Step::SyncDirectory(name));
                }
                Purpose::Checkpoint
            }
            Io::RemoveCheckpoint { lsn } => {
                steps.push_back(Step::Unlink(Name::Checkpoint(lsn)));
                Purpose::Silent
            }
            Io::Harvest {
                segment,
                from,
                budget,
            } => {
                steps.push_back(Step::Read {
                    segment,
                    from,
                    budget,
                });
                Purpose::Harvest
            }
        };
        (purpose, steps)
    }

    /// The time of a job's next step has come. Says what became of the job when that was its last.
    pub fn go_on(
        &mut self,
        world: &mut World,
        disk: &mut FakeDisk,
        weather: &Weather,
        job: u64,
    ) -> Option<Done> {
        let Job { purpose, mut steps } = self.running.remove(&job)?;
        let mut harvested = None;
        let result = match steps.pop_front() {
            None => Ok(()),
            Some(Step::Sync(name)) => match disk.sync_begins(name) {
                Ok(syncing) => {
                    steps.push_front(Step::Syncing(name, syncing));
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Some(Step::Syncing(name, syncing)) => {
                if world.dice.ppm(weather.sync_fails_ppm) {
                    world.note(|| format!("log {}: the sync of {name:?} fails", self.log));
                    disk.sync_fails(&syncing, &mut world.dice);
                    if !planted::is(Bug::SyncIgnored) {
                        return Some(self.sync_failed(world, purpose));
                    }
                } else {
                    disk.sync_ends(&syncing);
                }
                Ok(())
            }
            Some(Step::Create(name)) => {
                disk.create(name);
                Ok(())
            }
            Some(Step::Zero(name, len)) => disk.zero(name, len),
            Some(Step::Write(name, offset, bytes)) => disk.write(name, offset, &bytes),
            Some(Step::SyncDirectory(name)) => {
                disk.sync_directory(name);
                Ok(())
            }
            Some(Step::Rename(from, to)) => disk.rename(from, to),
            Some(Step::Unlink(name)) => {
                disk.unlink(name);
                Ok(())
            }
            Some(Step::Pause) => Ok(()),
            Some(Step::Read {
                segment,
                from,
                budget,
            }) => {
                let (bytes, size) = (disk.read(Name::Segment(segment)), self.size);
                harvested = bytes.map(|bytes| harvest(size, segment, bytes, from, budget));
                Ok(())
            }
        };
        if let Err(error) = result {
            return self.refused(world, disk, purpose, error);
        }
        if !steps.is_empty() {
            let delay = duration(world, weather, steps.front());
            self.running.insert(job, Job { purpose, steps });
            world.after(
                delay,
                Event::Disk {
                    life: self.life,
                    log: self.log,
                    job,
                },
            );
            return None;
        }
        match purpose {
            Purpose::Flush => Some(Done::Flushed),
            Purpose::Spare(segment) => Some(Done::Spare {
                segment,
                salt: world.dice.roll(),
            }),
            Purpose::Checkpoint => Some(Done::Checkpointed(true)),
            Purpose::Harvest => Some(harvested.map_or(Done::Fatal("no segment"), Done::Harvested)),
            Purpose::Silent => None,
        }
    }

    /// The disk refused a step.
    fn refused(
        &mut self,
        world: &mut World,
        disk: &mut FakeDisk,
        purpose: Purpose,
        error: DiskError,
    ) -> Option<Done> {
        world.note(|| format!("log {}: {purpose:?} refused: {error:?}", self.log));
        match purpose {
            Purpose::Spare(segment) => {
                disk.empty(Name::Segment(segment)); // the blocks that it got are given back
                self.prepare_later(world, segment);
                Some(Done::NoSpare)
            }
            Purpose::Checkpoint => {
                disk.unlink(Name::Draft(self.draft.0));
                Some(Done::Checkpointed(false))
            }
            Purpose::Flush => Some(Done::Fatal("a write into a segment was refused")),
            Purpose::Silent | Purpose::Harvest => None,
        }
    }

    fn sync_failed(&mut self, world: &mut World, purpose: Purpose) -> Done {
        match purpose {
            Purpose::Spare(segment) => {
                self.prepare_later(world, segment);
                Done::NoSpare
            }
            Purpose::Checkpoint => Done::Checkpointed(false),
            _ => Done::Fatal("a sync failed"),
        }
    }

    /// A preparation that failed is repeated from its beginning.
    fn prepare_later(&mut self, world: &mut World, segment: u64) {
        let (purpose, mut steps) = self.steps(Io::PrepareSegment { segment });
        steps.push_front(Step::Pause);
        let job = self.next;
        self.next += 1;
        self.running.insert(job, Job { purpose, steps });
        let delay = world.dice.range(20_000, 200_000);
        world.after(
            delay,
            Event::Disk {
                life: self.life,
                log: self.log,
                job,
            },
        );
    }
}

/// Microseconds until a step is done.
fn duration(world: &mut World, weather: &Weather, step: Option<&Step>) -> u64 {
    match step {
        Some(Step::Syncing(..) | Step::SyncDirectory(_)) => {
            world.dice.skewed(weather.sync_min_us, weather.sync_max_us)
        }
        Some(Step::Zero(..)) => world.dice.skewed(50, 5_000),
        _ => world.dice.skewed(1, 300),
    }
}

fn describe(io: &Io) -> String {
    match io {
        Io::Flush(flush) => {
            let writes: Vec<String> = flush
                .writes
                .iter()
                .flatten()
                .map(|write| format!("{}@{}+{}", write.segment, write.offset, write.bytes.len()))
                .collect();
            format!(
                "flush lsn {:#x} to {:#x}: {}",
                flush.lsn,
                flush.end,
                writes.join(", ")
            )
        }
        Io::CheckpointChunk { bytes } => format!("checkpoint chunk of {} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}
