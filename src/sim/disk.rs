//! A disk that tells the truth about what a crash leaves: files, their names, a page cache.
//!
//! ```text
//!   write ──▶ cache ── sync ──▶ medium          a file's bytes, in sectors
//!   create, rename, unlink ──▶ now ── sync_dir ──▶ durable     a directory's names
//!
//!   power loss: each dirty sector is kept, dropped or torn; each name's change is kept or dropped
//!   a process dies: the cache stays, and what is dirty in it can still be lost
//!   a sync fails: what it should have written counts as clean and may be nowhere but in the cache
//! ```
//!
//! Everything happens at once here; how long it takes, and in which steps, is `sim::io`'s.

use std::collections::{BTreeMap, BTreeSet};

use super::dice::Dice;

/// Bytes that a medium writes together; a power loss may still tear them.
pub const SECTOR_BYTES: usize = 512;

/// What a file is called. Segments are in one directory, checkpoints in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A segment, by its number.
    Segment(u64),
    /// A checkpoint, by where a scan begins.
    Checkpoint(u64),
    /// A checkpoint in the making.
    Draft(u64),
}

impl Name {
    const fn directory(self) -> usize {
        match self {
            Self::Segment(_) => 0,
            Self::Checkpoint(_) | Self::Draft(_) => 1,
        }
    }
}

/// Why the disk did not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// There is no room.
    NoSpace,
    /// There is no such file.
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FileId(u64);

#[derive(Clone, Debug, Default)]
struct File {
    cache: Vec<u8>,
    /// What is on the medium; its length is the file's durable length.
    medium: Vec<u8>,
    /// Sectors whose cache must still go to the medium.
    dirty: BTreeSet<usize>,
    /// Sectors that a failed sync lost: the cache has them, nobody will write them.
    lost: BTreeSet<usize>,
}

impl File {
    fn sector_range(len: usize, sector: usize) -> std::ops::Range<usize> {
        let start = sector * SECTOR_BYTES;
        start.min(len)..(start + SECTOR_BYTES).min(len)
    }

    fn reach_medium(&mut self, sector: usize) {
        let range = Self::sector_range(self.cache.len(), sector);
        if self.medium.len() < range.end {
            self.medium.resize(range.end, 0);
        }
        self.medium[range.clone()].copy_from_slice(&self.cache[range]);
    }

    /// The fate of everything unsynced when the power goes.
    fn lose_power(&mut self, dice: &mut Dice, fate: Fate) {
        let grown = self.cache.len().saturating_sub(self.medium.len());
        let len = match fate {
            Fate::Kept => self.cache.len(),
            Fate::Dropped => self.medium.len(),
            Fate::Mixed { .. } => match dice.below(3) {
                0 => self.medium.len(),
                1 => self.cache.len(),
                _ => self.medium.len() + dice.index(grown + 1),
            },
        };
        for sector in std::mem::take(&mut self.dirty) {
            match fate.of_one(dice) {
                Kept::Yes => self.reach_medium(sector),
                Kept::No => {}
                Kept::Torn => {
                    let whole = Self::sector_range(self.cache.len(), sector);
                    let cut = whole.start + dice.index(whole.len() + 1);
                    let range = if dice.percent(50) {
                        whole.start..cut
                    } else {
                        cut..whole.end
                    };
                    if self.medium.len() < range.end {
                        self.medium.resize(range.end, 0);
                    }
                    self.medium[range.clone()].copy_from_slice(&self.cache[range]);
                }
            }
        }
        self.medium.resize(len, 0);
        self.lost.clear();
        self.cache.clone_from(&self.medium);
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Link(Name, FileId),
    Rename(Name, Name, FileId),
    Unlink(Name),
}

#[derive(Clone, Debug, Default)]
struct Directory {
    now: BTreeMap<Name, FileId>,
    durable: BTreeMap<Name, FileId>,
    pending: Vec<Change>,
}

impl Directory {
    fn apply(names: &mut BTreeMap<Name, FileId>, change: Change) {
        match change {
            Change::Link(name, file) => {
                names.insert(name, file);
            }
            Change::Rename(from, to, file) => {
                names.remove(&from);
                names.insert(to, file);
            }
            Change::Unlink(name) => {
                names.remove(&name);
            }
        }
    }
}

/// What a power loss does to unsynced things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All of it was written just in time.
    Kept,
    /// Nothing of it was written.
    Dropped,
    /// Each thing by itself.
    Mixed {
        /// Kept in so many of a hundred.
        kept: u64,
        /// Torn in so many of a hundred.
        torn: u64,
    },
}

enum Kept {
    Yes,
    No,
    Torn,
}

impl Fate {
    /// One for the next power loss.
    pub fn draw(dice: &mut Dice) -> Self {
        match dice.below(8) {
            0 => Self::Kept,
            1 | 2 => Self::Dropped,
            _ => Self::Mixed {
                kept: dice.range(5, 95),
                torn: if dice.percent(50) {
                    dice.range(1, 30)
                } else {
                    0
                },
            },
        }
    }

    fn of_one(self, dice: &mut Dice) -> Kept {
        match self {
            Self::Kept => Kept::Yes,
            Self::Dropped => Kept::No,
            Self::Mixed { kept, torn } => {
                if dice.percent(torn) {
                    Kept::Torn
                } else if dice.percent(kept) {
                    Kept::Yes
                } else {
                    Kept::No
                }
            }
        }
    }
}

/// One bit that turned on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rot {
    /// In which file.
    pub name: Name,
    /// At which byte.
    pub offset: usize,
    /// The bit.
    pub bit: u8,
}

/// What a sync will have written when it ends well.
#[derive(Clone, Debug)]
pub struct Syncing {
    file: FileId,
    sectors: Vec<usize>,
    len: usize,
}

/// The disk of one log.
#[derive(Clone, Debug)]
pub struct FakeDisk {
    files: BTreeMap<FileId, File>,
    directories: [Directory; 2],
    next_file: u64,
    /// What the superblock says of segments that were made: the position behind the newest. A write of
    /// the superblock is all or nothing, so it is no file here.
    pub made_lsn: u64,
    /// Bytes that all files together may have.
    pub capacity: u64,
}

impl Default for FakeDisk {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            directories: [Directory::default(), Directory::default()],
            next_file: 0,
            made_lsn: 0,
            capacity: u64::MAX,
        }
    }
}

impl FakeDisk {
    fn id(&self, name: Name) -> Result<FileId, DiskError> {
        let names = &self.directories[name.directory()].now;
        names.get(&name).copied().ok_or(DiskError::Missing)
    }

    fn file(&self, name: Name) -> Option<&File> {
        self.files.get(&self.id(name).ok()?)
    }

    fn file_mut(&mut self, name: Name) -> Result<&mut File, DiskError> {
        let id = self.id(name)?;
        self.files.get_mut(&id).ok_or(DiskError::Missing)
    }

    fn change(&mut self, directory: usize, change: Change) {
        let directory = &mut self.directories[directory];
        Directory::apply(&mut directory.now, change);
        directory.pending.push(change);
        self.let_go();
    }

    /// Files that no name leads to, now or after a crash, are gone.
    fn let_go(&mut self) {
        let directories = &self.directories;
        self.files.retain(|id, _| {
            directories.iter().any(|directory| {
                directory.now.values().any(|file| file == id)
                    || directory.durable.values().any(|file| file == id)
                    || directory.pending.iter().any(|change| match change {
                        Change::Link(_, file) | Change::Rename(_, _, file) => file == id,
                        Change::Unlink(_) => false,
                    })
            })
        });
    }

    /// Bytes of all files that have a name.
    #[must_use]
    pub fn used(&self) -> u64 {
        let names = self
            .directories
            .iter()
            .flat_map(|directory| directory.now.values());
        names
            .filter_map(|id| self.files.get(id))
            .map(|file| file.cache.len() as u64)
            .sum()
    }

    /// The files there are, in order.
    pub fn names(&self) -> impl Iterator<Item = Name> + '_ {
        self.directories
            .iter()
            .flat_map(|directory| directory.now.keys().copied())
    }

    /// A file as a program sees it.
    #[must_use]
    pub fn read(&self, name: Name) -> Option<&[u8]> {
        self.file(name).map(|file| file.cache.as_slice())
    }

    /// Makes an empty file, or opens the one that is there.
    pub fn create(&mut self, name: Name) {
        if self.id(name).is_ok() {
            return;
        }
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.files.insert(id, File::default());
        self.change(name.directory(), Change::Link(name, id));
    }

    /// Makes a file of `len` zeros of one that has whatever it has.
    pub fn zero(&mut self, name: Name, len: usize) -> Result<(), DiskError> {
        let free = self.capacity.saturating_sub(self.used());
        let file = self.file_mut(name)?;
        if len.saturating_sub(file.cache.len()) as u64 > free {
            return Err(DiskError::NoSpace);
        }
        file.cache.clear();
        file.cache.resize(len, 0);
        // Blocks that were never written read as zeros: only what was there must be overwritten.
        let old = file.medium.len().min(len).div_ceil(SECTOR_BYTES);
        let stale = |sector: &usize| {
            file.medium[File::sector_range(file.medium.len(), *sector)]
                .iter()
                .any(|byte| *byte != 0)
        };
        file.dirty = (0..old).filter(stale).collect();
        file.lost.clear();
        Ok(())
    }

    /// Cuts a file to nothing, which gives its blocks back.
    pub fn empty(&mut self, name: Name) {
        if let Ok(file) = self.file_mut(name) {
            *file = File::default();
        }
    }

    /// Writes into the cache; the file grows as needed.
    pub fn write(&mut self, name: Name, offset: usize, bytes: &[u8]) -> Result<(), DiskError> {
        let free = self.capacity.saturating_sub(self.used());
        let file = self.file_mut(name)?;
        let end = offset + bytes.len();
        if end > file.cache.len() {
            if (end - file.cache.len()) as u64 > free {
                return Err(DiskError::NoSpace);
            }
            file.cache.resize(end, 0);
        }
        file.cache[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            file.dirty.insert(sector);
            file.lost.remove(&sector);
        }
        Ok(())
    }

    /// A sync begins: it will cover what is dirty now.
    pub fn sync_begins(&self, name: Name) -> Result<Syncing, DiskError> {
        let id = self.id(name)?;
        let file = self.files.get(&id).ok_or(DiskError::Missing)?;
        let (sectors, len) = (file.dirty.iter().copied().collect(), file.cache.len());
        Ok(Syncing {
            file: id,
            sectors,
            len,
        })
    }

    /// A sync has ended well.
    pub fn sync_ends(&mut self, syncing: &Syncing) {
        let Some(file) = self.files.get_mut(&syncing.file) else {
            return;
        };
        for sector in &syncing.sectors {
            if file.dirty.remove(sector) {
                file.reach_medium(*sector);
            }
        }
        if file.medium.len() < syncing.len {
            file.medium.resize(syncing.len, 0);
        }
    }

    /// A sync has failed: what it should have written counts as clean, and some of it was not written.
    pub fn sync_fails(&mut self, syncing: &Syncing, dice: &mut Dice) {
        let Some(file) = self.files.get_mut(&syncing.file) else {
            return;
        };
        let written = dice.below(100);
        for sector in &syncing.sectors {
            if file.dirty.remove(sector) {
                if dice.percent(written) {
                    file.reach_medium(*sector);
                } else {
                    file.lost.insert(*sector);
                }
            }
        }
    }

    /// Begins and ends a sync.
    pub fn sync(&mut self, name: Name) -> Result<(), DiskError> {
        let syncing = self.sync_begins(name)?;
        self.sync_ends(&syncing);
        Ok(())
    }

    /// Gives a file another name in its directory, in the place of one that has it.
    pub fn rename(&mut self, from: Name, to: Name) -> Result<(), DiskError> {
        let id = self.id(from)?;
        self.change(from.directory(), Change::Rename(from, to, id));
        Ok(())
    }

    /// Takes a name away.
    pub fn unlink(&mut self, name: Name) {
        if self.id(name).is_ok() {
            self.change(name.directory(), Change::Unlink(name));
        }
    }

    /// Makes all names of the directory that `name` is in durable.
    pub fn sync_directory(&mut self, name: Name) {
        let directory = &mut self.directories[name.directory()];
        directory.durable.clone_from(&directory.now);
        directory.pending.clear();
        self.let_go();
    }

    /// Whether a power loss now would surely leave these bytes of a file as they are.
    #[must_use]
    pub fn is_durable(&self, name: Name, range: std::ops::Range<usize>) -> bool {
        let Ok(id) = self.id(name) else {
            return false;
        };
        if self.directories[name.directory()].durable.get(&name) != Some(&id) {
            return false;
        }
        let Some(file) = self.files.get(&id) else {
            return false;
        };
        let sectors = range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES);
        range.end <= file.medium.len()
            && file.dirty.range(sectors.clone()).next().is_none()
            && file.lost.range(sectors).next().is_none()
    }

    /// Whether a file's medium is what its cache is.
    #[must_use]
    pub fn is_clean(&self, name: Name) -> bool {
        let len = self.read(name).map_or(0, <[u8]>::len);
        self.is_durable(name, 0..len)
    }

    /// The power goes.
    pub fn lose_power(&mut self, dice: &mut Dice, fate: Fate) {
        let mut names = BTreeSet::new();
        for directory in &mut self.directories {
            // Most file systems keep the order of what was done to a directory; not all do.
            let in_order = dice.percent(50);
            let mut going_on = true;
            for change in std::mem::take(&mut directory.pending) {
                let kept = matches!(fate.of_one(dice), Kept::Yes);
                going_on &= kept;
                if if in_order { going_on } else { kept } {
                    Directory::apply(&mut directory.durable, change);
                }
            }
            directory.now.clone_from(&directory.durable);
            names.extend(directory.now.values().copied());
        }
        self.files.retain(|id, _| names.contains(id));
        for file in self.files.values_mut() {
            file.lose_power(dice, fate);
        }
    }

    /// Reads everything from the medium, as a program does that does not trust the cache after a
    /// failed sync. What is dirty stays: it is written out first.
    pub fn read_past_cache(&mut self) {
        for file in self.files.values_mut() {
            for sector in std::mem::take(&mut file.lost) {
                let range = File::sector_range(file.cache.len(), sector);
                let there = range.start.min(file.medium.len())..range.end.min(file.medium.len());
                let (start, end) = (range.start, range.start + there.len());
                file.cache[range].fill(0);
                file.cache[start..end].copy_from_slice(&file.medium[there]);
            }
        }
    }

    /// A file loses its end, on the medium.
    pub fn cut_short(&mut self, name: Name, len: usize) {
        if let Ok(file) = self.file_mut(name) {
            file.cache.truncate(len);
            file.medium.truncate(len);
        }
    }

    /// Turns a bit of a file that is wholly durable.
    pub fn rot(&mut self, rot: Rot) {
        if let Ok(file) = self.file_mut(rot.name)
            && rot.offset < file.medium.len()
        {
            file.medium[rot.offset] ^= 1 << rot.bit;
            file.cache[rot.offset] ^= 1 << rot.bit;
        }
    }
}

#[cfg(test)]
mod tests;
