//! Salvage of directories on real files, and what damage keeps from being removed.

use super::logs::{Rig, user};
use super::upkeep::four_checkpoints;
use super::*;
use crate::runtime::offline::salvage::{Listing, SetAside, list, set_aside};
use crate::runtime::offline::verify::verify;
use crate::runtime::storage::spare::{Home, SpareMaker};

fn listed(path: &Path) -> Listing {
    let view = DataView::open(path, Access::Stopped).unwrap();
    list(&view, None).unwrap()
}

fn salvaged(path: &Path) -> SetAside {
    let confirm = listed(path).confirm.unwrap();
    set_aside(path, &confirm).unwrap().unwrap()
}

fn is_sound(path: &Path) -> bool {
    let view = DataView::open(path, Access::Stopped).unwrap();
    verify(&view, None).unwrap().sound
}

/// Numbers of the entries of a user that lie in these segments of `rig`.
fn lie_in(rig: &Rig, segments: &[u64]) -> Vec<u64> {
    let seqs = 1..=rig.head(0);
    let is_there = |seq: &u64| segments.contains(&(rig.position(0, *seq) / SEGMENT_BYTES));
    seqs.filter(is_there).collect()
}

/// R: D-2. One hole from the end of one segment to the beginning of another.
#[test]
fn a_salvage_keeps_every_segment_of_a_hole_that_is_there_and_lists_exactly_what_they_held() {
    for gone in [&[][..], &[1], &[2], &[1, 2]] {
        let temp = tempfile::tempdir().unwrap();
        let (lost, kept, name) = {
            let data_dir = open(temp.path());
            let mut rig = Rig::open(&data_dir).unwrap();
            let mut n = 0;
            while rig.end() < 3 * SEGMENT_BYTES + SEGMENT_BYTES / 4 {
                n += 1;
                rig.send(0, n, 60_000);
            }
            rig.seal();
            let rest = lie_in(&rig, &[0, 3]);
            (lie_in(&rig, &[1, 2]), rest, user(rig.key, 0))
        };
        for index in [1, 2] {
            let path = segment(temp.path(), index);
            match gone.contains(&index) {
                true => fs::remove_file(path).unwrap(),
                false => fs::write(path, vec![0; SEGMENT_BYTES as usize]).unwrap(),
            }
        }
        let listing = listed(temp.path());
        let hurt = &listing.logs[1];
        let names: Vec<String> = [1, 2]
            .map(|index| format!("log-01/{:016x}.seg", index * SEGMENT_BYTES))
            .to_vec();
        assert_eq!(hurt.segments_damaged, names, "{gone:?} are gone");
        let of_user = hurt.losses.iter().filter(|lost| lost.user == name);
        let found: Vec<u64> = of_user.flat_map(|lost| lost.first..=lost.last).collect();
        assert_eq!(found, lost, "{gone:?} are gone");
        let aside = salvaged(temp.path());
        for (index, name) in [1, 2].into_iter().zip(&names) {
            let is_kept = aside.directory.join(name).exists();
            assert_eq!(is_kept, !gone.contains(&index), "{name}, {gone:?} are gone");
        }
        assert!(is_sound(temp.path()), "{gone:?} are gone");
        let rig = Rig::open(&open(temp.path())).unwrap();
        assert_eq!(rig.damaged(), vec![], "{gone:?} are gone");
        for seq in kept {
            assert!(rig.position(0, seq) > 0, "entry {seq}, {gone:?} are gone");
        }
    }
}

/// Four checkpoints, of which two are there; then a message that a start replays, whole or not. The path
/// of the older checkpoint that is there.
fn checkpoints_and_a_message(path: &Path, is_rotten: bool) -> PathBuf {
    let data_dir = open(path);
    let mut rig = Rig::open(&data_dir).unwrap();
    let written = four_checkpoints(&mut rig, path);
    rig.send(0, 5, 500);
    let position = rig.position(0, 5);
    rig.seal();
    drop(rig);
    if is_rotten {
        let offset = (position % SEGMENT_BYTES) as usize;
        flip(&segment(path, position / SEGMENT_BYTES), offset + 200);
    }
    written[2].1.clone()
}

/// R: D-2, D-3
#[test]
fn a_salvage_sets_a_damaged_checkpoint_aside_and_what_is_left_is_sound() {
    let temp = tempfile::tempdir().unwrap();
    let older = checkpoints_and_a_message(temp.path(), true);
    flip(&older, fs::metadata(&older).unwrap().len() as usize / 2);
    let image = fs::read(&older).unwrap();
    let name = older.file_name().unwrap();
    let listing = listed(temp.path());
    let listed = Path::new("ckpt-01").join(name);
    assert_eq!(
        listing.logs[1].checkpoints_damaged,
        [listed.to_str().unwrap()]
    );
    let aside = salvaged(temp.path());
    assert!(!older.exists(), "it is out of the way");
    let kept = aside.directory.join("log-01").join(name);
    assert_eq!(fs::read(kept).unwrap(), image, "and it is kept");
    assert!(is_sound(temp.path()));
    assert_eq!(Rig::open(&open(temp.path())).unwrap().damaged(), vec![]);
}

/// R: D-2, B-8. A full disk gives up the older checkpoint, but not while somebody may need it.
#[test]
fn a_full_disk_keeps_the_older_checkpoint_as_long_as_a_shard_is_damaged() {
    for is_damaged in [true, false] {
        let temp = tempfile::tempdir().unwrap();
        let older = checkpoints_and_a_message(temp.path(), is_damaged);
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        assert_eq!(rig.damaged().is_empty(), !is_damaged);
        rig.log.run_until(|log| log.files.spares() == 2).unwrap();
        let full = |_: &fs::File, _| Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let maker = SpareMaker::start_with(Home::of(&data_dir, 1), Box::new(full));
        rig.log.replace_maker(maker.unwrap());
        let mut n = 0;
        while rig.log.store.has_room() {
            n += 1;
            rig.send(1, n, 60_000);
            rig.log.poll().unwrap();
        }
        rig.log.poll().unwrap();
        rig.log.settle().unwrap();
        drop(rig); // waits for what was to be removed
        assert_eq!(older.exists(), is_damaged);
    }
}
