use super::*;

const SEGMENT: Name = Name::Segment(0);

/// A durable file of four sectors of ones, with twos written over it.
fn overwritten() -> FakeDisk {
    let mut disk = FakeDisk::default();
    disk.create(SEGMENT);
    disk.write(SEGMENT, 0, &[1; 4 * SECTOR_BYTES]).unwrap();
    disk.sync(SEGMENT).unwrap();
    disk.sync_directory(SEGMENT);
    disk.write(SEGMENT, 0, &[2; 4 * SECTOR_BYTES]).unwrap();
    disk
}

fn sectors(disk: &FakeDisk) -> Vec<[usize; 2]> {
    let count = |sector: &[u8], wanted| sector.iter().filter(|byte| **byte == wanted).count();
    let bytes = disk.read(SEGMENT).unwrap();
    bytes
        .chunks(SECTOR_BYTES)
        .map(|sector| [count(sector, 1), count(sector, 2)])
        .collect()
}

#[test]
fn what_was_synced_survives_and_what_was_not_may_go_sector_by_sector() {
    let (mut kept, mut dropped, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let mut disk = overwritten();
        disk.lose_power(&mut Dice::new(seed), Fate::Mixed { kept: 50, torn: 20 });
        for sector in sectors(&disk) {
            assert_eq!(
                sector[0] + sector[1],
                SECTOR_BYTES,
                "seed {seed}: bytes of nobody"
            );
            match sector {
                [0, _] => kept += 1,
                [_, 0] => dropped += 1,
                _ => torn += 1,
            }
        }
        let mut disk = overwritten();
        disk.sync(SEGMENT).unwrap();
        disk.lose_power(&mut Dice::new(seed), Fate::Dropped);
        assert_eq!(sectors(&disk), [[0, SECTOR_BYTES]; 4], "seed {seed}");
    }
    assert!(
        kept > 100 && dropped > 100 && torn > 50,
        "{kept} {dropped} {torn}"
    );
}

#[test]
fn all_or_nothing_is_among_the_fates() {
    for (fate, wanted) in [
        (Fate::Kept, [0, SECTOR_BYTES]),
        (Fate::Dropped, [SECTOR_BYTES, 0]),
    ] {
        let mut disk = overwritten();
        disk.lose_power(&mut Dice::new(3), fate);
        assert_eq!(sectors(&disk), [wanted; 4]);
    }
}

#[test]
fn a_sync_covers_what_was_written_before_it_began() {
    let mut disk = overwritten();
    let syncing = disk.sync_begins(SEGMENT).unwrap();
    disk.write(SEGMENT, 5 * SECTOR_BYTES, &[2; SECTOR_BYTES])
        .unwrap();
    disk.sync_ends(&syncing);
    assert!(disk.is_durable(SEGMENT, 0..4 * SECTOR_BYTES));
    assert!(!disk.is_durable(SEGMENT, 0..6 * SECTOR_BYTES));
}

/// R: D-4
#[test]
fn after_a_failed_sync_the_cache_shows_what_the_medium_does_not_have() {
    let mut lost = 0;
    for seed in 0..50 {
        let mut disk = overwritten();
        let syncing = disk.sync_begins(SEGMENT).unwrap();
        disk.sync_fails(&syncing, &mut Dice::new(seed));
        assert_eq!(
            sectors(&disk),
            [[0, SECTOR_BYTES]; 4],
            "a program still reads its write"
        );
        disk.sync(SEGMENT).unwrap();
        let before = sectors(&disk);
        lost += usize::from(!disk.is_durable(SEGMENT, 0..4 * SECTOR_BYTES));
        disk.read_past_cache();
        let shown = sectors(&disk);
        disk.lose_power(&mut Dice::new(seed), Fate::Kept);
        assert_eq!(
            sectors(&disk),
            shown,
            "past the cache is what the medium has"
        );
        assert_eq!(
            before,
            [[0, SECTOR_BYTES]; 4],
            "a second sync has nothing to do"
        );
    }
    assert!(lost > 25, "{lost} of 50 failed syncs lost something");
}

#[test]
fn names_become_durable_by_their_directorys_sync_alone() {
    let (mut gone, mut there) = (0, 0);
    for seed in 0..100 {
        let mut disk = FakeDisk::default();
        disk.create(Name::Draft(7));
        disk.write(Name::Draft(7), 0, &[1; 100]).unwrap();
        disk.sync(Name::Draft(7)).unwrap();
        disk.rename(Name::Draft(7), Name::Checkpoint(7)).unwrap();
        assert!(!disk.is_durable(Name::Checkpoint(7), 0..100));
        let mut synced = disk.clone();
        disk.lose_power(&mut Dice::new(seed), Fate::Mixed { kept: 50, torn: 0 });
        match disk.read(Name::Checkpoint(7)) {
            None => gone += 1,
            Some(bytes) => {
                assert_eq!(bytes, [1; 100], "its bytes were synced");
                there += 1;
            }
        }
        synced.sync_directory(Name::Draft(7));
        synced.lose_power(&mut Dice::new(seed), Fate::Dropped);
        assert_eq!(synced.names().collect::<Vec<_>>(), [Name::Checkpoint(7)]);
    }
    assert!(gone > 20 && there > 20, "{gone} {there}");
}

#[test]
fn an_unlinked_file_may_come_back_with_what_it_had() {
    let mut disk = overwritten();
    disk.sync(SEGMENT).unwrap();
    disk.unlink(SEGMENT);
    assert_eq!((disk.read(SEGMENT), disk.used()), (None, 0));
    let mut synced = disk.clone();
    disk.lose_power(&mut Dice::new(1), Fate::Dropped);
    assert_eq!(sectors(&disk), [[0, SECTOR_BYTES]; 4]);
    synced.sync_directory(SEGMENT);
    synced.lose_power(&mut Dice::new(1), Fate::Dropped);
    assert_eq!(synced.read(SEGMENT), None);
}

#[test]
fn a_full_disk_refuses_what_grows_and_takes_what_overwrites() {
    let mut disk = overwritten();
    disk.capacity = 5 * SECTOR_BYTES as u64;
    disk.create(Name::Segment(1));
    assert_eq!(
        disk.zero(Name::Segment(1), 2 * SECTOR_BYTES),
        Err(DiskError::NoSpace)
    );
    assert_eq!(disk.zero(Name::Segment(1), SECTOR_BYTES), Ok(()));
    assert_eq!(disk.write(SEGMENT, 0, &[3; SECTOR_BYTES]), Ok(()));
    assert_eq!(
        disk.write(Name::Segment(1), SECTOR_BYTES, &[1]),
        Err(DiskError::NoSpace)
    );
    disk.unlink(SEGMENT);
    assert_eq!(disk.write(Name::Segment(1), SECTOR_BYTES, &[1]), Ok(()));
}

#[test]
fn a_file_that_is_zeroed_again_may_show_its_past_until_it_is_synced() {
    let mut disk = overwritten();
    disk.sync(SEGMENT).unwrap();
    disk.zero(SEGMENT, 4 * SECTOR_BYTES).unwrap();
    let mut synced = disk.clone();
    disk.lose_power(&mut Dice::new(1), Fate::Dropped);
    assert_eq!(sectors(&disk), [[0, SECTOR_BYTES]; 4]);
    synced.sync(SEGMENT).unwrap();
    synced.lose_power(&mut Dice::new(1), Fate::Dropped);
    assert_eq!(sectors(&synced), [[0, 0]; 4]);
}

/// R: D-2
#[test]
fn a_bit_that_rots_is_there_after_a_restart_and_can_be_turned_back() {
    let mut disk = overwritten();
    disk.sync(SEGMENT).unwrap();
    let rot = Rot {
        name: SEGMENT,
        offset: 700,
        bit: 3,
    };
    disk.rot(rot);
    disk.lose_power(&mut Dice::new(1), Fate::Dropped);
    assert_eq!(disk.read(SEGMENT).unwrap()[700], 2 ^ 8);
    disk.rot(rot);
    assert_eq!(sectors(&disk), [[0, SECTOR_BYTES]; 4]);
}
