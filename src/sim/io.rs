//! What a store asks of its disk, done in the steps in which a disk does it, each taking its time.
//!
//! Between any two steps the switch can crash. A sync covers what was written before it began and may
//! fail. The order of steps is that of `runtime::storage`.

use std::collections::VecDeque;

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
    /// The superblock says that the segments before this position were made.
    Note(u64),
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

impl Purpose {
    /// Who does it: the log's own write and sync, the thread that makes spares, or the one that keeps
    /// the rest. Each does one thing at a time, in order.
    const fn hand(self) -> usize {
        match self {
            Self::Flush => 0,
            Self::Spare(_) => 1,
            Self::Checkpoint | Self::Silent | Self::Harvest => 2,
        }
    }
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
    hands: [VecDeque<Job>; 3],
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
            hands: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
            draft: (0, 0),
        }
    }

    /// Begins what a store asks for, or puts it behind what the same hand is at.
    pub fn begin(&mut self, world: &mut World, io: Io) {
        let log = self.log;
        world.note(|| format!("log {log}: {}", describe(&io)));
        let (purpose, steps) = self.steps(io);
        let hand = purpose.hand();
        self.hands[hand].push_back(Job { purpose, steps });
        if self.hands[hand].len() == 1 {
            self.go_on_in(world, hand, (1, 50));
        }
    }

    fn go_on_in(&self, world: &mut World, hand: usize, (min_us, max_us): (u64, u64)) {
        let delay = world.dice.skewed(min_us, max_us);
        let (life, log) = (self.life, self.log);
        world.after(delay, Event::Disk { life, log, hand });
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
                let note = Step::Note(self.size.first_lsn(segment + 1));
                steps.extend((!planted::is(Bug::SegmentUnnoted)).then_some(note));
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

    /// The time of a hand's next step has come. Says what became of a job when that was its last.
    pub fn go_on(
        &mut self,
        world: &mut World,
        disk: &mut FakeDisk,
        weather: &Weather,
        hand: usize,
    ) -> Option<Done> {
        let Job { purpose, mut steps } = self.hands[hand].pop_front()?;
        let mut harvested = None;
        let step = steps.pop_front();
        let done = match self.do_step(world, disk, weather, step, &mut steps, &mut harvested) {
            Err(refusal) => self.refused(world, disk, purpose, refusal),
            Ok(()) if !steps.is_empty() => {
                let spread = duration(weather, steps.front());
                self.hands[hand].push_front(Job { purpose, steps });
                self.go_on_in(world, hand, spread);
                return None;
            }
            Ok(()) => match purpose {
                Purpose::Flush => Some(Done::Flushed),
                Purpose::Spare(segment) => {
                    let salt = world.dice.roll();
                    Some(Done::Spare { segment, salt })
                }
                Purpose::Checkpoint => Some(Done::Checkpointed(true)),
                Purpose::Harvest => {
                    Some(harvested.map_or(Done::Fatal("no harvest"), Done::Harvested))
                }
                Purpose::Silent => None,
            },
        };
        if let Some(job) = self.hands[hand].front() {
            let spread = match job.steps.front() {
                Some(Step::Pause) => (20_000, 200_000),
                _ => (1, 300),
            };
            self.go_on_in(world, hand, spread);
        }
        done
    }

    fn do_step(
        &self,
        world: &mut World,
        disk: &mut FakeDisk,
        weather: &Weather,
        step: Option<Step>,
        steps: &mut VecDeque<Step>,
        harvested: &mut Option<Harvest>,
    ) -> Result<(), Refusal> {
        match step {
            None | Some(Step::Pause) => {}
            Some(Step::Sync(name)) => {
                let syncing = disk.sync_begins(name)?;
                steps.push_front(Step::Syncing(name, syncing));
            }
            Some(Step::Syncing(name, syncing)) => {
                if world.dice.ppm(weather.sync_fails_ppm) {
                    world.note(|| format!("log {}: the sync of {name:?} fails", self.log));
                    disk.sync_fails(&syncing, &mut world.dice);
                    if !planted::is(Bug::SyncIgnored) {
                        return Err(Refusal::Sync);
                    }
                } else {
                    disk.sync_ends(&syncing);
                }
            }
            Some(Step::Create(name)) => disk.create(name),
            Some(Step::Zero(name, len)) => disk.zero(name, len)?,
            Some(Step::Write(name, offset, bytes)) => disk.write(name, offset, &bytes)?,
            Some(Step::SyncDirectory(name)) => disk.sync_directory(name),
            Some(Step::Note(made_lsn)) => disk.made_lsn = disk.made_lsn.max(made_lsn),
            Some(Step::Rename(from, to)) => disk.rename(from, to)?,
            Some(Step::Unlink(name)) => disk.unlink(name),
            Some(Step::Read {
                segment,
                from,
                budget,
            }) => {
                let bytes = disk.read(Name::Segment(segment)).unwrap_or_default();
                *harvested = Some(harvest(self.size, segment, bytes, from, budget));
            }
        }
        Ok(())
    }

    /// The disk refused a step.
    fn refused(
        &mut self,
        world: &mut World,
        disk: &mut FakeDisk,
        purpose: Purpose,
        refusal: Refusal,
    ) -> Option<Done> {
        world.note(|| format!("log {}: {purpose:?} refused: {refusal:?}", self.log));
        match purpose {
            Purpose::Spare(segment) => {
                disk.empty(Name::Segment(segment)); // the blocks that it got are given back
                let (purpose, mut steps) = self.steps(Io::PrepareSegment { segment });
                steps.push_front(Step::Pause);
                self.hands[purpose.hand()].push_front(Job { purpose, steps });
                Some(Done::NoSpare)
            }
            Purpose::Checkpoint => {
                disk.unlink(Name::Draft(self.draft.0));
                Some(Done::Checkpointed(false))
            }
            Purpose::Flush => Some(Done::Fatal("a write or sync of the log failed")),
            Purpose::Silent | Purpose::Harvest => None,
        }
    }
}

/// Why a step was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Disk(DiskError),
    Sync,
}

impl From<DiskError> for Refusal {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Microseconds that a step takes, at least and at most.
const fn duration(weather: &Weather, step: Option<&Step>) -> (u64, u64) {
    match step {
        Some(Step::Syncing(..) | Step::SyncDirectory(_) | Step::Note(_)) => {
            (weather.sync_min_us, weather.sync_max_us)
        }
        Some(Step::Zero(..)) => (50, 5_000),
        _ => (1, 300),
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
