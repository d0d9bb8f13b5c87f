//! The model of what a power cut leaves, and whether it can be trusted: see [`model`].
//!
//! Three things are shown of it. What is owed is there after every cut, and all that is not owed does
//! get lost in some. While nothing is cut, it is what a real file system makes of the same steps. And
//! what a real ext4 leaves after a real power cut is among what it admits.
//!
//! To test a program with it: record the steps that its shell issues as [`model::Event`]s, choose
//! a count of them and a seed, [`model::rebuild`] a directory, start there.

#![expect(
    clippy::disallowed_methods,
    reason = "a test waits for the event itself, with a deadline by the clock"
)]

mod model;
mod recorder;
#[expect(dead_code, reason = "nothing is filled up here")]
#[path = "../it/small_disk.rs"]
mod small_disk;

use std::collections::BTreeSet;
use std::path::PathBuf;

use model::{Dice, Disk, Event, Image, SECTOR_BYTES, read, rebuild, told};
use recorder::{Recorder, random_step};
use small_disk::{Cut, SmallDisk};

fn after(events: &[Event]) -> Disk {
    let mut disk = Disk::default();
    events.iter().for_each(|event| disk.apply(event));
    disk
}

/// All different outcomes of many cuts.
fn outcomes(events: &[Event]) -> BTreeSet<Image> {
    let disk = after(events);
    (0..2_000).map(|seed| disk.crash(&mut Dice(seed))).collect()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(name)
}

fn create(file: u64, name: &str) -> Event {
    let path = path(name);
    Event::Create { file, path }
}

fn write(file: u64, offset: usize, bytes: &[u8]) -> Event {
    let (offset, bytes) = (offset as u64, bytes.to_vec());
    Event::Write {
        file,
        offset,
        bytes,
    }
}

fn rename(from: &str, to: &str) -> Event {
    let (from, to) = (path(from), path(to));
    Event::Rename { from, to }
}

fn sync(file: u64) -> [Event; 2] {
    [Event::SyncBegins { file }, Event::Synced { file }]
}

fn sync_dir(name: &str) -> [Event; 2] {
    let path = path(name);
    [
        Event::SyncDirBegins { path: path.clone() },
        Event::DirSynced { path },
    ]
}

/// A file of three sectors of ones, all of it owed.
fn three_sectors() -> Vec<Event> {
    let begin = [create(1, "file"), write(1, 0, &[1; 3 * SECTOR_BYTES])];
    [&begin[..], &sync(1), &sync_dir("")].concat()
}

#[test]
fn what_a_sync_covers_is_there_after_every_cut() {
    let found = outcomes(&three_sectors());
    let owed = (path("file"), Some(vec![1; 3 * SECTOR_BYTES]));
    assert_eq!(found, BTreeSet::from([Image::from([owed])]));
}

#[test]
fn of_what_no_sync_covers_every_combination_of_sectors_is_left_by_some_cut() {
    let mut events = three_sectors();
    events.push(write(1, 0, &[2; 3 * SECTOR_BYTES]));
    events.push(write(1, SECTOR_BYTES, &[3; SECTOR_BYTES]));
    let combinations: BTreeSet<[u8; 3]> = outcomes(&events)
        .iter()
        .map(|image| {
            let bytes = image[&path("file")].as_ref().unwrap();
            assert_eq!(bytes.len(), 3 * SECTOR_BYTES);
            [0, 1, 2].map(|number| {
                let sector = &bytes[number * SECTOR_BYTES..][..SECTOR_BYTES];
                assert!(sector.iter().all(|byte| *byte == sector[0]), "torn inside");
                sector[0]
            })
        })
        .collect();
    assert_eq!(combinations.len(), 2 * 3 * 2, "{combinations:?}");
}

#[test]
fn a_write_in_the_middle_of_a_sector_takes_the_whole_sector_along() {
    let mut events = three_sectors();
    events.push(write(1, 100, &[2; 10]));
    let found = outcomes(&events);
    assert_eq!(found.len(), 2);
    for image in found {
        let bytes = image[&path("file")].as_ref().unwrap();
        assert_eq!((bytes[99], bytes[110]), (1, 1));
        assert_eq!(bytes[100], bytes[109]);
    }
}

#[test]
fn a_write_behind_the_beginning_of_a_sync_is_not_covered_by_it() {
    let mut events = three_sectors();
    events.push(write(1, 0, &[2]));
    events.push(Event::SyncBegins { file: 1 });
    events.push(write(1, SECTOR_BYTES, &[3]));
    events.push(Event::Synced { file: 1 });
    let firsts: BTreeSet<_> = outcomes(&events)
        .iter()
        .map(|image| {
            let bytes = image[&path("file")].as_ref().unwrap();
            (bytes[0], bytes[SECTOR_BYTES])
        })
        .collect();
    assert_eq!(firsts, BTreeSet::from([(2, 1), (2, 3)]));
}

#[test]
fn a_sync_that_has_not_returned_owes_nothing() {
    let mut events = three_sectors();
    events.push(write(1, 0, &[2]));
    events.push(Event::SyncBegins { file: 1 });
    assert_eq!(outcomes(&events).len(), 2);
}

#[test]
fn a_length_without_a_sync_is_old_or_new_or_between_and_reads_as_zeros() {
    let mut events = three_sectors();
    events.push(write(1, 3 * SECTOR_BYTES, &[2; SECTOR_BYTES + 10]));
    let mut lengths = BTreeSet::new();
    let mut has_zeros = false;
    for image in outcomes(&events) {
        let bytes = image[&path("file")].as_ref().unwrap();
        lengths.insert(bytes.len());
        assert!(bytes[..3 * SECTOR_BYTES].iter().all(|byte| *byte == 1));
        has_zeros |= bytes[3 * SECTOR_BYTES..].contains(&0);
    }
    let sectors = |count| count * SECTOR_BYTES;
    let expected = [sectors(3), sectors(4), sectors(4) + 10];
    assert_eq!(lengths, BTreeSet::from(expected));
    assert!(has_zeros);
}

#[test]
fn a_file_that_was_cut_short_without_a_sync_may_have_its_end_again() {
    let mut events = three_sectors();
    events.push(Event::SetLen { file: 1, len: 0 });
    let whole = Some(vec![1; 3 * SECTOR_BYTES]);
    let found = outcomes(&events);
    assert!(found.iter().any(|image| image[&path("file")] == whole));
    assert!(
        found
            .iter()
            .any(|image| image[&path("file")] == Some(Vec::new()))
    );
}

#[test]
fn a_name_moved_over_another_is_one_or_the_other_and_never_none() {
    let mut events = three_sectors();
    events.extend([create(2, "new"), write(2, 0, &[2])]);
    events.extend(sync(2));
    events.push(rename("new", "file"));
    let mut firsts = BTreeSet::new();
    for image in outcomes(&events) {
        let bytes = image[&path("file")].as_ref().expect("never none");
        firsts.insert((bytes[0], image.contains_key(&path("new"))));
    }
    // Old, with or without the new file beside it, or moved.
    assert_eq!(firsts, BTreeSet::from([(1, false), (1, true), (2, false)]));
    events.extend(sync_dir(""));
    let found = outcomes(&events);
    let owed = Image::from([(path("file"), Some(vec![2]))]);
    assert_eq!(found, BTreeSet::from([owed]));
}

#[test]
fn names_are_lost_out_of_order_but_one_name_in_order() {
    let events = [create(1, "a"), create(2, "b"), rename("b", "c")];
    let names: BTreeSet<Vec<String>> = outcomes(&events)
        .iter()
        .map(|image| {
            image
                .keys()
                .map(|path| path.display().to_string())
                .collect()
        })
        .collect();
    let expected = [&[][..], &["a"], &["b"], &["c"], &["a", "b"], &["a", "c"]];
    let owned = |names: &&[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, expected.iter().map(owned).collect());
}

#[test]
fn a_name_used_again_is_lost_together_with_the_move_that_made_room_for_it() {
    let mut events = three_sectors();
    events.extend(sync_dir(""));
    events.push(rename("file", "old"));
    events.push(create(2, "file"));
    let whole = Some(vec![1; 3 * SECTOR_BYTES]);
    let before = Image::from([(path("file"), whole.clone())]);
    let moved = Image::from([(path("old"), whole)]);
    let mut both = moved.clone();
    both.insert(path("file"), Some(Vec::new()));
    assert_eq!(outcomes(&events), BTreeSet::from([before, moved, both]));
}

#[test]
fn a_name_made_behind_the_beginning_of_a_sync_is_not_covered_by_it() {
    let begins = Event::SyncDirBegins { path: path("") };
    let returned = Event::DirSynced { path: path("") };
    let events = [create(1, "a"), begins, create(2, "b"), returned];
    let names = |image: &Image| image.keys().cloned().collect::<Vec<_>>();
    let found: BTreeSet<_> = outcomes(&events).iter().map(names).collect();
    let expected = [vec![path("a")], vec![path("a"), path("b")]];
    assert_eq!(found, BTreeSet::from(expected));
}

#[test]
fn a_name_that_was_removed_may_be_there_again_with_all_that_is_owed_of_it() {
    let mut events = three_sectors();
    events.push(Event::Unlink { path: path("file") });
    let whole = (path("file"), Some(vec![1; 3 * SECTOR_BYTES]));
    let expected = BTreeSet::from([Image::new(), Image::from([whole])]);
    assert_eq!(outcomes(&events), expected);
    events.extend(sync_dir(""));
    assert_eq!(outcomes(&events), BTreeSet::from([Image::new()]));
}

#[test]
fn a_directory_that_is_lost_takes_its_files_along() {
    let inside = path("dir/file");
    let begin = [Event::CreateDir { path: path("dir") }];
    let file = [
        Event::Create {
            file: 1,
            path: inside.clone(),
        },
        write(1, 0, &[1]),
    ];
    let mut events = [&begin[..], &file, &sync(1), &sync_dir("dir")].concat();
    let whole = Image::from([(path("dir"), None), (inside, Some(vec![1]))]);
    let expected = BTreeSet::from([Image::new(), whole.clone()]);
    assert_eq!(outcomes(&events), expected);
    events.extend(sync_dir(""));
    assert_eq!(outcomes(&events), BTreeSet::from([whole]));
}

#[test]
fn a_recording_may_begin_with_files_that_are_there() {
    let start = Image::from([(path("dir"), None), (path("dir/file"), Some(vec![1; 10]))]);
    let mut disk = Disk::holding(&start);
    let file = path("dir/file");
    disk.apply(&Event::Open {
        file: 7,
        path: file.clone(),
    });
    disk.apply(&write(7, 0, &[2]));
    let found: BTreeSet<_> = (0..100).map(|seed| disk.crash(&mut Dice(seed))).collect();
    assert_eq!(found.len(), 2);
    let firsts = found.iter().map(|image| image[&file].as_ref().unwrap()[0]);
    assert_eq!(firsts.collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn promises_stand_at_their_place_in_the_order_and_change_nothing() {
    let mut events = three_sectors();
    events.insert(1, Event::Told(5));
    events.push(Event::Told(6));
    assert_eq!((told(&events[..2]), told(&events)), (vec![5], vec![5, 6]));
    assert_eq!(outcomes(&events), outcomes(&three_sectors()));
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let first = std::env::var("IRIS_TEST_SEED").map_or(0, |text| text.parse().unwrap());
    first..first + count
}

/// A recording of random steps, done for real below `root`.
fn random_recording(seed: u64, steps: usize, root: PathBuf, syncs: bool) -> Recorder {
    let mut recorder = Recorder::new(root, syncs);
    let mut dice = Dice(seed);
    for _ in 0..steps {
        random_step(&mut recorder, &mut dice);
    }
    recorder
}

#[test]
fn while_nothing_is_cut_it_is_what_a_file_system_makes_of_the_same_steps() {
    for seed in seeds(100) {
        let scratch = tempfile::tempdir().unwrap();
        let recorder = random_recording(seed, 60, scratch.path().to_owned(), false);
        let disk = after(&recorder.events);
        assert!(disk.now() == read(scratch.path()), "seed {seed}");
    }
}

#[test]
fn every_cut_is_one_that_it_admits_and_the_same_seed_makes_the_same_files() {
    for seed in seeds(100) {
        let scratch = tempfile::tempdir().unwrap();
        let recorder = random_recording(seed, 25, scratch.path().to_owned(), false);
        let count = Dice(seed).below(recorder.events.len() as u64 + 1) as usize;
        let (once, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [&once, &again] {
            rebuild(&Image::new(), &recorder.events, count, seed, root.path());
        }
        let found = read(once.path());
        assert!(found == read(again.path()), "seed {seed}");
        let disk = after(&recorder.events[..count]);
        disk.admits(&found)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn what_cannot_be_is_not_admitted() {
    let mut events = three_sectors();
    events.push(write(1, 0, &[2]));
    let disk = after(&events);
    let with = |bytes: Vec<u8>| Image::from([(path("file"), Some(bytes))]);
    let owed = vec![1; 3 * SECTOR_BYTES];
    assert_eq!(disk.admits(&with(owed.clone())), Ok(()));
    let mut foreign = owed.clone();
    foreign[700] = 2;
    assert!(disk.admits(&with(foreign)).is_err());
    assert!(disk.admits(&with(owed[1..].to_vec())).is_err());
    assert!(disk.admits(&Image::new()).is_err());
    let mut more = with(owed);
    more.insert(path("other"), None);
    assert!(disk.admits(&more).is_err());
}

/// On a real ext4, by its shutdown.
///
/// R: D-6
#[test]
fn what_a_real_power_cut_leaves_is_admitted() {
    let Some(mut disk) = SmallDisk::make(32) else {
        return;
    };
    let mut lost = 0;
    for seed in seeds(20) {
        let root = disk.path().join(format!("{seed}"));
        std::fs::create_dir(&root).unwrap();
        std::fs::File::open(disk.path())
            .unwrap()
            .sync_all()
            .unwrap();
        let recorder = random_recording(seed, 40, root.clone(), true);
        let cut = [Cut::Power, Cut::FlushJournal][Dice(seed).below(2) as usize];
        disk.cut_off(cut);
        let events = recorder.events.clone();
        drop(recorder);
        disk.unmount();
        disk.mount();
        let (found, expected) = (read(&root), after(&events));
        let judged = expected.admits(&found);
        judged.unwrap_or_else(|why| panic!("seed {seed}, {cut:?}: {why}\n{events:?}"));
        lost += u64::from(found != expected.now());
    }
    println!("{lost} of 20 cuts lost something");
    assert!(lost > 0, "the trial loses too little");
}
