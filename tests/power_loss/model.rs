//! A directory as a power cut may leave it: a model of what a disk owes, and what it does not.
//!
//! ```text
//!   Events, in the order in which the shell issued them ──▶ Disk ──▶ crash(dice) ──▶ Image ──▶ files
//! ```
//! What is owed: the bytes and the length of a file as they were when its last sync began, if that sync
//! returned; the names in a directory, likewise. All else the disk decides:
//!
//! - Of what was written and not synced, each sector of 512 bytes is there or not, whole, in any
//!   combination, and of several writes to one sector any one may be the last that is there.
//! - A length that changed without a sync is the old one, the new one, or one between, in whole
//!   sectors; what it uncovers and nobody wrote reads as zeros.
//! - A name that was made, moved or removed without a sync of its directory is as it was or as it is;
//!   a move is done or not done, at both its ends. Changes of different names are independent of
//!   each other (journals keep their order, but not every file system has one), those of one name
//!   happen in order.
//!
//! It knows nothing of what the files mean. It assumes that sectors are written whole, that unwritten
//! blocks read as zeros and not as old data, and that a sync that returned kept its promise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A file, however it is called: chosen by whoever records, never used for another one.
pub type FileId = u64;

/// One step of a shell. Paths are relative to the recorded directory. A step is recorded before it
/// is issued, but for `Synced`, `DirSynced` and `Told`, which are recorded after it has succeeded. A
/// write must have completed before the `SyncBegins` that is to cover it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A directory was made.
    CreateDir { path: PathBuf },
    /// A file was made, empty.
    Create { file: FileId, path: PathBuf },
    /// A file that is there already gets its id.
    Open { file: FileId, path: PathBuf },
    /// Bytes were written.
    Write {
        file: FileId,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// The length was set: cut, or continued with zeros (as by a reservation of blocks).
    SetLen { file: FileId, len: u64 },
    /// fsync or fdatasync was issued.
    SyncBegins { file: FileId },
    /// It returned without an error.
    Synced { file: FileId },
    /// A name was moved within its directory, over one that may have been there.
    Rename { from: PathBuf, to: PathBuf },
    /// A name was removed.
    Unlink { path: PathBuf },
    /// fsync of a directory was issued.
    SyncDirBegins { path: PathBuf },
    /// It returned without an error.
    DirSynced { path: PathBuf },
    /// Something was promised to somebody. Means nothing to the disk; it stands at its place in the
    /// order, so that a test knows what had been promised at a crash.
    Told(u64),
}

/// Where a random choice comes from.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A change of a file that no sync covers.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

/// Numbers the changes, in order.
type Serial = u64;

/// A file's bytes.
#[derive(Clone, Debug, Default)]
struct Inode {
    /// What is owed.
    owed: Vec<u8>,
    pending: Vec<(Serial, Change)>,
    /// When the syncs under way began.
    syncs: VecDeque<Serial>,
}

impl Inode {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write {
                offset,
                bytes: written,
            } => {
                let end = offset + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(written);
            }
            Change::Len(len) => bytes.resize(*len, 0),
        }
    }

    /// One of the syncs under way has returned: which one is not said, so it was the oldest.
    fn synced(&mut self) {
        let began = self.syncs.pop_front().expect("a sync that began");
        let covered = self.pending.partition_point(|(serial, _)| *serial < began);
        for (_, change) in self.pending.drain(..covered) {
            Self::apply(&mut self.owed, &change);
        }
    }

    fn now(&self) -> Vec<u8> {
        let mut bytes = self.owed.clone();
        let changes = self.pending.iter();
        changes.for_each(|(_, change)| Self::apply(&mut bytes, change));
        bytes
    }

    /// All that may be there of what no sync covers.
    fn history(&self) -> History {
        let mut bytes = self.owed.clone();
        let mut history = History {
            lengths: vec![bytes.len()],
            sectors: BTreeMap::new(),
        };
        for (_, change) in &self.pending {
            let before = bytes.len();
            Self::apply(&mut bytes, change);
            history.lengths.push(bytes.len());
            let touched = match change {
                Change::Write {
                    offset,
                    bytes: written,
                } => *offset..offset + written.len(),
                Change::Len(len) => *len..before.max(*len),
            };
            if touched.is_empty() {
                continue;
            }
            for number in touched.start / SECTOR_BYTES..=(touched.end - 1) / SECTOR_BYTES {
                let versions = history.sectors.entry(number);
                let versions = versions.or_insert_with(|| vec![sector(&self.owed, number)]);
                versions.push(sector(&bytes, number));
            }
        }
        history
    }
}

/// The states of a file since it was last synced, the owed one first.
struct History {
    lengths: Vec<usize>,
    /// Of the sectors that were written, by number; the others are as they are owed.
    sectors: BTreeMap<usize, Vec<[u8; SECTOR_BYTES]>>,
}

impl History {
    /// The lengths that the file may have: see the module's text.
    fn possible_lengths(&self) -> BTreeSet<usize> {
        let mut lengths: BTreeSet<usize> = self.lengths.iter().copied().collect();
        for pair in self.lengths.windows(2) {
            let sectors = pair[0] / SECTOR_BYTES + 1..=pair[1] / SECTOR_BYTES;
            lengths.extend(sectors.map(|number| number * SECTOR_BYTES));
        }
        lengths
    }
}

/// A sector of a file; zeros where that is shorter.
fn sector(bytes: &[u8], number: usize) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    let from = (number * SECTOR_BYTES).min(bytes.len());
    let to = (from + SECTOR_BYTES).min(bytes.len());
    sector[..to - from].copy_from_slice(&bytes[from..to]);
    sector
}

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Dir,
    File(usize),
}

type Names = BTreeMap<PathBuf, Node>;

/// A change of names that no sync covers. All its names are in one directory.
#[derive(Clone, Debug)]
enum Naming {
    Make(PathBuf, Node),
    Remove(PathBuf),
    Move { from: PathBuf, to: PathBuf },
}

impl Naming {
    fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Make(path, _) | Self::Remove(path) => vec![path],
            Self::Move { from, to } => vec![from, to],
        }
    }

    fn directory(&self) -> &Path {
        let path = self.paths()[0];
        path.parent().unwrap_or(Path::new(""))
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Make(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Move { from, to } => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

/// A directory: what is there, and what is owed of it.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    files: BTreeMap<FileId, usize>,
    /// As the process sees it.
    names: Names,
    owed_names: Names,
    namings: Vec<(Serial, Naming)>,
    /// By directory: when the syncs under way began.
    syncs: BTreeMap<PathBuf, VecDeque<Serial>>,
    serial: Serial,
}

/// A directory as it was found or is to be: path, and the bytes of a file or None for a directory.
pub type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

impl Disk {
    /// All that is in an image, and all of it owed: how a recording begins.
    pub fn holding(image: &Image) -> Self {
        let mut disk = Self::default();
        for (path, bytes) in image {
            let node = match bytes {
                None => Node::Dir,
                Some(bytes) => {
                    disk.inodes.push(Inode {
                        owed: bytes.clone(),
                        ..Inode::default()
                    });
                    Node::File(disk.inodes.len() - 1)
                }
            };
            disk.names.insert(path.clone(), node);
        }
        disk.owed_names.clone_from(&disk.names);
        disk
    }

    /// The state after one more event. Panics at an event that no file system would have let happen.
    pub fn apply(&mut self, event: &Event) {
        self.serial += 1;
        let serial = self.serial;
        match event {
            Event::CreateDir { path } => self.name(Naming::Make(path.clone(), Node::Dir)),
            Event::Create { file, path } => {
                assert!(!self.names.contains_key(path), "{path:?} is there already");
                self.inodes.push(Inode::default());
                let inode = self.inodes.len() - 1;
                self.bind(*file, inode);
                self.name(Naming::Make(path.clone(), Node::File(inode)));
            }
            Event::Open { file, path } => {
                let Some(Node::File(inode)) = self.names.get(path) else {
                    panic!("there is no file {path:?}");
                };
                self.bind(*file, *inode);
            }
            Event::Write {
                file,
                offset,
                bytes,
            } => {
                let (offset, bytes) = (usize::try_from(*offset).unwrap(), bytes.clone());
                let change = Change::Write { offset, bytes };
                self.inode(*file).pending.push((serial, change));
            }
            Event::SetLen { file, len } => {
                let change = Change::Len(usize::try_from(*len).unwrap());
                self.inode(*file).pending.push((serial, change));
            }
            Event::SyncBegins { file } => self.inode(*file).syncs.push_back(serial),
            Event::Synced { file } => self.inode(*file).synced(),
            Event::Rename { from, to } => {
                assert!(self.names.contains_key(from), "{from:?} is not there");
                assert_eq!(from.parent(), to.parent(), "a move between directories");
                let (from, to) = (from.clone(), to.clone());
                self.name(Naming::Move { from, to });
            }
            Event::Unlink { path } => {
                assert!(self.names.contains_key(path), "{path:?} is not there");
                self.name(Naming::Remove(path.clone()));
            }
            Event::SyncDirBegins { path } => {
                self.syncs
                    .entry(path.clone())
                    .or_default()
                    .push_back(serial);
            }
            Event::DirSynced { path } => self.directory_synced(path),
            Event::Told(_) => {}
        }
    }

    fn bind(&mut self, file: FileId, inode: usize) {
        let before = self.files.insert(file, inode);
        assert!(before.is_none_or(|before| before == inode), "a file's id");
    }

    fn inode(&mut self, file: FileId) -> &mut Inode {
        let inode = *self.files.get(&file).expect("a file that was opened");
        &mut self.inodes[inode]
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.namings.push((self.serial, naming));
    }

    fn directory_synced(&mut self, path: &Path) {
        let syncs = self.syncs.get_mut(path).expect("a sync that began");
        let began = syncs.pop_front().expect("a sync that began");
        self.namings.retain(|(serial, naming)| {
            let is_covered = *serial < began && naming.directory() == path;
            if is_covered {
                naming.apply(&mut self.owed_names);
            }
            !is_covered
        });
    }

    /// What the process sees now.
    pub fn now(&self) -> Image {
        image(&self.names, |inode| self.inodes[inode].now())
    }

    /// What a power cut now leaves, as the dice say.
    pub fn crash(&self, dice: &mut Dice) -> Image {
        // Some cuts lose everything, some nothing, most something.
        let kept = [0, 100, 50, 10, 90][dice.below(5) as usize];
        let mut names = self.owed_names.clone();
        let mut lost: BTreeSet<PathBuf> = BTreeSet::new();
        for (_, naming) in &self.namings {
            let paths = naming.paths();
            if paths.iter().any(|path| lost.contains(*path)) || !dice.chance(kept) {
                lost.extend(paths.into_iter().map(Path::to_owned));
            } else {
                naming.apply(&mut names);
            }
        }
        let named: BTreeSet<&Node> = names.values().collect();
        let inodes = self.inodes.iter().enumerate();
        let mut inodes: Vec<Option<Vec<u8>>> = inodes
            .map(|(number, inode)| {
                let is_named = named.contains(&Node::File(number));
                is_named.then(|| crash_file(inode, kept, dice))
            })
            .collect();
        image(&names, |inode| inodes[inode].take().expect("one name"))
    }

    /// Whether a real disk may look like this after a power cut now; what speaks against it if not.
    pub fn admits(&self, found: &Image) -> Result<(), String> {
        let names: Vec<Names> = self.possible_names();
        let mut reasons = BTreeSet::new();
        for names in &names {
            match self.admits_with(names, found) {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.insert(reason),
            };
        }
        Err(reasons.into_iter().collect::<Vec<_>>().join("; "))
    }

    /// Every set of names that may be there. Takes as many steps as there are.
    fn possible_names(&self) -> Vec<Names> {
        let mut states = vec![(self.owed_names.clone(), BTreeSet::new())];
        for (_, naming) in &self.namings {
            let mut next = Vec::new();
            for (names, lost) in states {
                let paths: Vec<PathBuf> = naming.paths().into_iter().map(Path::to_owned).collect();
                if !paths.iter().any(|path| lost.contains(path)) {
                    let mut kept = names.clone();
                    naming.apply(&mut kept);
                    next.push((kept, lost.clone()));
                }
                let mut lost: BTreeSet<PathBuf> = lost;
                lost.extend(paths);
                next.push((names, lost));
            }
            next.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
            next.dedup();
            states = next;
        }
        states.into_iter().map(|(names, _)| names).collect()
    }

    fn admits_with(&self, names: &Names, found: &Image) -> Result<(), String> {
        let expected = image(names, |_| Vec::new());
        let (expected, there): (Vec<_>, Vec<_>) =
            (expected.keys().collect(), found.keys().collect());
        if expected != there {
            return Err(format!("names {there:?}"));
        }
        for (path, bytes) in found {
            match (names[path], bytes) {
                (Node::Dir, None) => {}
                (Node::File(inode), Some(bytes)) => {
                    admits_bytes(&self.inodes[inode], bytes)
                        .map_err(|reason| format!("{}: {reason}", path.display()))?;
                }
                _ => return Err(format!("{} is of another kind", path.display())),
            }
        }
        Ok(())
    }
}

/// Names and bytes together. What lies in a directory that is not there is not there.
fn image(names: &Names, mut bytes: impl FnMut(usize) -> Vec<u8>) -> Image {
    let mut image = Image::new();
    for (path, node) in names {
        let parent = path.parent().unwrap_or(Path::new(""));
        if !parent.as_os_str().is_empty() && image.get(parent) != Some(&None) {
            continue;
        }
        let bytes = match node {
            Node::Dir => None,
            Node::File(inode) => Some(bytes(*inode)),
        };
        image.insert(path.clone(), bytes);
    }
    image
}

fn crash_file(inode: &Inode, kept: u64, dice: &mut Dice) -> Vec<u8> {
    let history = inode.history();
    let mut bytes = inode.owed.clone();
    let newest = history.lengths[history.lengths.len() - 1];
    let len = match dice.chance(kept) {
        true => newest,
        false if dice.chance(50) => bytes.len(),
        false => {
            let lengths: Vec<usize> = history.possible_lengths().into_iter().collect();
            lengths[dice.below(lengths.len() as u64) as usize]
        }
    };
    bytes.resize(len, 0);
    for (number, versions) in history.sectors {
        let last = versions.len() as u64 - 1;
        let choice = match dice.chance(kept) {
            true => last,
            false => dice.below(last + 1),
        };
        let from = (number * SECTOR_BYTES).min(len);
        let to = (from + SECTOR_BYTES).min(len);
        bytes[from..to].copy_from_slice(&versions[choice as usize][..to - from]);
    }
    bytes
}

fn admits_bytes(inode: &Inode, found: &[u8]) -> Result<(), String> {
    let history = inode.history();
    if !history.possible_lengths().contains(&found.len()) {
        return Err(format!("{} bytes long", found.len()));
    }
    for (number, there) in found.chunks(SECTOR_BYTES).enumerate() {
        let owed = [sector(&inode.owed, number)];
        let versions = history.sectors.get(&number);
        let versions = versions.map_or(&owed[..], Vec::as_slice);
        if !versions.iter().any(|bytes| bytes[..there.len()] == *there) {
            return Err(format!("sector {number} is none that was written"));
        }
    }
    Ok(())
}

/// Reads a directory.
pub fn read(root: &Path) -> Image {
    let mut image = Image::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                image.insert(path.clone(), None);
                directories.push(path);
            } else {
                image.insert(path, Some(std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    image
}

/// Writes an image into an empty directory. Long runs of zeros become holes, which read the same.
pub fn write(image: &Image, root: &Path) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    for (path, bytes) in image {
        let Some(bytes) = bytes else {
            std::fs::create_dir(root.join(path)).unwrap();
            continue;
        };
        let file = std::fs::File::create(root.join(path)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (number, piece) in bytes.chunks(ZEROS.len()).enumerate() {
            if *piece != ZEROS[..piece.len()] {
                let at = (number * ZEROS.len()) as u64;
                file.write_all_at(piece, at).unwrap();
            }
        }
    }
}

/// All that had been promised by the end of these events.
pub fn told(events: &[Event]) -> Vec<u64> {
    let promise = |event: &Event| match event {
        Event::Told(what) => Some(*what),
        _ => None,
    };
    events.iter().filter_map(promise).collect()
}

/// Rebuilds in `root`, which is empty, what a power cut after the first `count` events may have left
/// of a directory that held `start` when the recording began. The same arguments give the same bytes.
pub fn rebuild(start: &Image, events: &[Event], count: usize, seed: u64, root: &Path) {
    let mut disk = Disk::holding(start);
    events[..count].iter().for_each(|event| disk.apply(event));
    write(&disk.crash(&mut Dice(seed)), root);
}
