//! A shell that records: does steps for real, and notes them for the model.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::model::{Dice, Event, FileId};

/// Steps done below `root`, which was empty, and their record.
pub struct Recorder {
    root: PathBuf,
    pub events: Vec<Event>,
    files: BTreeMap<FileId, File>,
    /// Where the names that are there lead.
    names: BTreeMap<PathBuf, FileId>,
    next: FileId,
    /// Syncs are done, too, and not only noted: needed only where a real cut follows.
    syncs: bool,
}

impl Recorder {
    pub fn new(root: PathBuf, syncs: bool) -> Self {
        Self {
            syncs,
            root,
            events: Vec::new(),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            next: 1,
        }
    }

    fn create_dir(&mut self, path: PathBuf) {
        fs::create_dir(self.root.join(&path)).unwrap();
        self.events.push(Event::CreateDir { path });
    }

    fn create(&mut self, path: PathBuf) {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true);
        let opened = options.open(self.root.join(&path)).unwrap();
        let file = self.next;
        self.next += 1;
        self.files.insert(file, opened);
        self.names.insert(path.clone(), file);
        self.events.push(Event::Create { file, path });
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: Vec<u8>) {
        self.files[&file].write_all_at(&bytes, offset).unwrap();
        self.events.push(Event::Write {
            file,
            offset,
            bytes,
        });
    }

    fn set_len(&mut self, file: FileId, len: u64) {
        self.files[&file].set_len(len).unwrap();
        self.events.push(Event::SetLen { file, len });
    }

    fn sync(&mut self, file: FileId, only_data: bool) {
        self.events.push(Event::SyncBegins { file });
        match (self.syncs, only_data) {
            (false, _) => {}
            (true, true) => self.files[&file].sync_data().unwrap(),
            (true, false) => self.files[&file].sync_all().unwrap(),
        }
        self.events.push(Event::Synced { file });
    }

    fn rename(&mut self, from: PathBuf, to: PathBuf) {
        fs::rename(self.root.join(&from), self.root.join(&to)).unwrap();
        let file = self.names.remove(&from).unwrap();
        self.names.insert(to.clone(), file);
        self.events.push(Event::Rename { from, to });
    }

    fn unlink(&mut self, path: PathBuf) {
        fs::remove_file(self.root.join(&path)).unwrap();
        self.names.remove(&path);
        self.events.push(Event::Unlink { path });
    }

    fn sync_dir(&mut self, path: PathBuf) {
        self.events
            .push(Event::SyncDirBegins { path: path.clone() });
        if self.syncs {
            let directory = File::open(self.root.join(&path)).unwrap();
            directory.sync_all().unwrap();
        }
        self.events.push(Event::DirSynced { path });
    }
}

/// One of few names in one of two directories, so that steps meet.
fn some_path(dice: &mut Dice) -> PathBuf {
    let name = ["a", "b", "c", "d"][dice.below(4) as usize];
    match dice.below(2) {
        0 => PathBuf::from(name),
        _ => PathBuf::from("dir").join(name),
    }
}

/// Some step that is possible now.
pub fn random_step(recorder: &mut Recorder, dice: &mut Dice) {
    if !recorder.root.join("dir").exists() {
        recorder.create_dir(PathBuf::from("dir"));
    }
    let path = some_path(dice);
    let Some(&file) = recorder.names.get(&path) else {
        return recorder.create(path);
    };
    match dice.below(12) {
        0..5 => {
            let offset = dice.below(6_000);
            let len = [1, 100, 512, 4096, 5000][dice.below(5) as usize];
            let byte = dice.next() as u8;
            recorder.write(file, offset, vec![byte; len]);
        }
        5 => recorder.set_len(file, dice.below(9_000)),
        6..8 => recorder.sync(file, dice.chance(50)),
        8 => {
            let to = path.with_file_name(["a", "b", "c", "d"][dice.below(4) as usize]);
            if to != path {
                recorder.rename(path, to);
            }
        }
        9 => recorder.unlink(path),
        _ => recorder.sync_dir(path.parent().unwrap().to_owned()),
    }
}
