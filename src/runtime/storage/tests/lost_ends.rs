//! The end of a log that is lost after a kill: no torn tail, and never silent.

use super::super::super_block::SUPER_NAMES;
use super::logs::Rig;
use super::*;
use crate::runtime::offline::backup::backup;
use crate::runtime::offline::restore::restore;

/// What a killed process leaves that has written into its second segment: its data directory, and how
/// many messages were accepted.
fn killed_in_the_second_segment(path: &Path) -> u64 {
    let data_dir = open(path);
    let mut rig = Rig::open(&data_dir).unwrap();
    let mut n = 0;
    while rig.end() < SEGMENT_BYTES + SEGMENT_BYTES / 8 {
        n += 1;
        rig.send(0, n, 60_000);
    }
    rig.log.run_until(|log| log.files.spares() == 2).unwrap();
    n
}

fn segments(path: &Path) -> Vec<PathBuf> {
    let all = (0..8).map(|index| segment(path, index));
    all.filter(|path| path.exists()).collect()
}

fn damaged(path: &Path) -> usize {
    Rig::open(&open(path)).unwrap().damaged().len()
}

/// R: D-2. Neither the segment nor a spare behind it is there to tell.
#[test]
fn a_log_whose_newest_segment_is_gone_with_all_spares_is_damaged_also_after_a_kill() {
    let temp = tempfile::tempdir().unwrap();
    let sent = killed_in_the_second_segment(temp.path());
    let lost = segments(temp.path()).split_off(1);
    assert_eq!(lost.len(), 3, "one in use and two spares");
    let images: Vec<Vec<u8>> = lost.iter().map(|path| fs::read(path).unwrap()).collect();
    lost.iter().for_each(|path| fs::remove_file(path).unwrap());
    for round in 0..2 {
        assert_eq!(damaged(temp.path()), 32, "round {round}");
    }
    for (path, image) in lost.iter().zip(images) {
        fs::write(path, image).unwrap();
    }
    let rig = Rig::open(&open(temp.path())).unwrap();
    assert_eq!((rig.damaged(), rig.head(0)), (vec![], sent));
}

/// R: D-2. Everything is gone: what says that there was anything is the superblock alone.
#[test]
fn a_log_that_lost_all_its_segments_is_damaged_and_not_a_new_one() {
    let temp = tempfile::tempdir().unwrap();
    killed_in_the_second_segment(temp.path());
    for path in segments(temp.path()) {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(damaged(temp.path()), 32);
}

/// R: D-2
#[test]
fn a_newest_segment_that_was_cut_short_is_damaged_also_after_a_kill() {
    let temp = tempfile::tempdir().unwrap();
    let sent = killed_in_the_second_segment(temp.path());
    let file = segment(temp.path(), 1);
    let image = fs::read(&file).unwrap();
    for len in [0, 100, 4_096, 70_000, SEGMENT_BYTES as usize - 1] {
        fs::write(&file, &image[..len]).unwrap();
        for round in 0..2 {
            assert_eq!(damaged(temp.path()), 32, "{len} bytes, round {round}");
        }
        assert_eq!(fs::read(&file).unwrap(), image[..len], "it was changed");
    }
    fs::write(&file, image).unwrap();
    let rig = Rig::open(&open(temp.path())).unwrap();
    assert_eq!((rig.damaged(), rig.head(0)), (vec![], sent));
}

/// R: D-2. Nothing was written to them, so nothing is lost with them.
#[test]
fn spares_that_are_gone_or_cut_short_are_made_anew_and_nobody_is_alarmed() {
    let temp = tempfile::tempdir().unwrap();
    let sent = killed_in_the_second_segment(temp.path());
    for harm in 0..4 {
        let spares = segments(temp.path()).split_off(2);
        for path in &spares[harm % 2..] {
            match harm / 2 {
                0 => fs::remove_file(path).unwrap(),
                _ => fs::write(path, [0; 5_000]).unwrap(),
            }
        }
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        assert_eq!((rig.damaged(), rig.head(0)), (vec![], sent), "harm {harm}");
        rig.log.run_until(|log| log.files.spares() == 2).unwrap();
    }
}

/// R: D-2. A start that has spares which no note tells of notes them before it uses them: a crash came
/// before it was done, or a program that knew no notes made them.
#[test]
fn segments_that_nobody_noted_are_noted_by_the_next_start() {
    let temp = tempfile::tempdir().unwrap();
    killed_in_the_second_segment(temp.path());
    for round in 0..2 {
        let mut super_block = open(temp.path()).super_block().clone();
        assert_eq!(
            super_block.made_lsn,
            [0, 4 * SEGMENT_BYTES],
            "round {round}"
        );
        super_block.made_lsn = vec![0, 0];
        for _ in 0..2 {
            super_block.sequence += 1;
            let name = super_block.file_name();
            fs::write(temp.path().join(name), super_block.encode()).unwrap();
        }
        drop(Rig::open(&open(temp.path())).unwrap());
    }
    for path in segments(temp.path()).split_off(1) {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(damaged(temp.path()), 32);
}

/// R: D-2
#[test]
fn a_spare_is_noted_on_the_disk_before_anything_can_be_written_to_it() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    let made = || {
        let read = |name| SuperBlock::decode(&fs::read(temp.path().join(name)).ok()?).ok();
        let found = SUPER_NAMES.into_iter().filter_map(read);
        found.max_by_key(|found| found.sequence).unwrap().made_lsn[1]
    };
    for n in 1..100 {
        rig.send(0, n, 60_000);
        let newest = rig.log.store.active_segment().unwrap() + rig.log.files.spares() as u64;
        assert!(made() >= (newest + 1) * SEGMENT_BYTES, "message {n}");
    }
    assert!(rig.end() > 2 * SEGMENT_BYTES, "it goes on to new segments");
}

/// R: D-2, D-6. Spares are not copied, and that is no loss.
#[test]
fn a_backup_of_a_log_that_lost_its_end_is_refused_and_one_of_a_whole_log_can_be_restored() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    let sent = killed_in_the_second_segment(&data);
    let (copy, again) = (temp.path().join("copy"), temp.path().join("again"));
    backup(&data, &copy).unwrap();
    restore(&copy, &again).unwrap();
    let rig = Rig::open(&open(&again)).unwrap();
    assert_eq!((rig.damaged(), rig.head(0)), (vec![], sent));
    let file = segment(&data, 1);
    let image = fs::read(&file).unwrap();
    fs::write(&file, &image[..image.len() - 1]).unwrap();
    let refused = |to| {
        backup(&data, &temp.path().join(to))
            .unwrap_err()
            .to_string()
    };
    let told = refused("short");
    assert!(told.contains("is damaged at byte 2097151"), "{told}");
    for path in segments(&data).split_off(1) {
        fs::remove_file(path).unwrap();
    }
    let told = refused("gone");
    let named = format!("{} is damaged at byte 0", file.display());
    assert!(told.contains(&named), "{told}");
}
