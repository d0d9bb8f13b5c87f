//! What a salvage does about what nothing names any more: no number of it is given out again.

use super::*;
use crate::log::limits::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::shard::Shard;
use crate::shard::slot::Slot;

fn shard_of(user: &str) -> ShardId {
    ShardId((user_hash(KEY, user).0 % u64::from(SHARDS)) as u16)
}

impl World {
    fn shard(&self, user: &str) -> &Shard {
        self.store.shard(shard_of(user)).unwrap()
    }

    fn slots(&self, user: &str) -> Vec<(Seq, Slot)> {
        let shard = self.shard(user);
        let users = shard.users();
        users.get(shard.find(user).unwrap()).slots().collect()
    }

    /// What follows is durable, and of all shards but the user's: no head is told meanwhile.
    fn go_on_without(&mut self, user: &str) {
        for _ in 0..2 {
            for other in users() {
                if shard_of(&other) != shard_of(user) {
                    self.send("ann", &other, b"behind");
                }
            }
            self.run();
        }
    }

    /// Makes nonsense of a part of the log.
    fn spoil(&mut self, position: u64, len: usize) {
        let offset = SIZE.offset_of(position);
        let segment = self.segments.get_mut(&SIZE.index_of(position)).unwrap();
        segment[offset..offset + len].fill(0xee);
    }

    fn salvaged(mut self) -> (Self, Salvaged) {
        let found = self.salvage();
        self.checkpoints.insert(found.lsn, found.checkpoint.clone());
        let world = self.restart();
        assert_eq!(world.store.quarantined(), []);
        (world, found)
    }
}

/// The frame of an entry that is the first of its frame.
const BEFORE: u64 = (FRAME_HEADER_BYTES + RECORD_HEADER_BYTES) as u64;

/// R: D-2
#[test]
fn a_small_frame_that_is_lost_is_reckoned_with_all_the_messages_that_fit_into_it() {
    let mut world = world_with_a_tail();
    let user = users().remove(5);
    let before = world.slots(&user).len();
    (0..3).for_each(|_| world.send("a", &user, b""));
    world.run();
    let slots = world.slots(&user);
    let (head, applied) = (slots.last().unwrap().0, world.shard(&user).applied());
    let first = slots[before].1.position().unwrap();
    world.go_on_without(&user);
    world.spoil(first - BEFORE, 200);
    let world = world.restart();
    assert_eq!(world.store.quarantined().len(), 1);
    let (mut world, found) = world.salvaged();
    let shard = world.shard(&user);
    let inbox = shard.users().get(shard.find(&user).unwrap());
    assert!(inbox.head() >= head, "{:?} of {head:?}", inbox.head());
    assert!(shard.applied() >= applied, "an entry is written again");
    let losses = found.losses.iter().flat_map(|(_, losses)| losses);
    let possible = losses.filter(|loss| loss.certainty == Certainty::Possible);
    assert!(possible.count() >= 1);
    // Without the new checkpoint a start sees that something is missing.
    world.send("ann", &user, b"one more");
    world.run();
    world.checkpoints.remove(&found.lsn);
    let world = world.restart();
    let quarantined = world.store.quarantined().iter();
    let quarantined: Vec<ShardId> = quarantined.map(|one| one.shard).collect();
    assert_eq!(quarantined, [shard_of(&user)]);
}

/// R: D-2, B-6
#[test]
fn a_user_whose_name_is_lost_too_gets_no_number_that_it_may_have_had() {
    let mut world = world_with_a_tail();
    let user = "newcomer";
    world.register(user);
    (0..2).for_each(|_| world.send("ann", user, b"lost"));
    world.run();
    let first = world.slots(user)[0].1.position().unwrap();
    world.go_on_without(user);
    world.spoil(first - 30 - BEFORE, 60);
    let (mut world, found) = world.restart().salvaged();
    assert!(world.shard(user).find(user).is_none(), "its name is lost");
    let (shard, unnamed) = found.unnamed.first().unwrap();
    assert_eq!(*shard, shard_of(user));
    assert!(
        unnamed.entries >= 2 && unnamed.registrations >= 1,
        "{unnamed:?}"
    );
    world.register(user);
    world.send("ben", user, b"the first");
    world.run();
    let shard = world.shard(user);
    let inbox = shard.users().get(shard.find(user).unwrap());
    assert_eq!(inbox.head(), Seq(unnamed.entries + 1));
    assert_eq!(inbox.gap_end(Seq(1)), Some(Seq(unnamed.entries)));
    assert_eq!(inbox.device("phone").unwrap().cursor, Seq(unnamed.entries));
    let state = world.state();
    assert_eq!(world.restart().state(), state);
}

/// R: D-2, B-6
#[test]
fn a_lost_registration_is_told_and_the_device_goes_on_when_it_acknowledged_later() {
    let mut world = world_with_a_tail();
    let user = "newcomer";
    world.register(user);
    world.run();
    let end = world.store.durable_end();
    world.send("ann", user, b"one");
    world.run();
    world.acknowledge(user, 1);
    world.run_for(1);
    // A record with the registration, in a frame by itself, which is replayed.
    world.spoil(end - 40, 40);
    world.checkpoints.retain(|lsn, _| *lsn < end - 40);
    let world = world.restart();
    assert_eq!(world.store.quarantined().len(), 1);
    let (world, found) = world.salvaged();
    let devices = found.unnamed.iter().flat_map(|(_, one)| &one.devices);
    let devices: Vec<(&str, &str)> = devices
        .map(|one| (one.user.as_str(), one.device.as_str()))
        .collect();
    assert_eq!(devices, [(user, "phone")]);
    let shard = world.shard(user);
    let inbox = shard.users().get(shard.find(user).unwrap());
    assert_eq!(inbox.device("phone").unwrap().cursor, Seq(1));
}

/// R: D-2
#[test]
fn a_record_inside_of_a_hole_does_not_vouch_for_the_rest_of_the_hole() {
    let mut world = world_with_a_tail();
    let user = users().remove(5);
    let before = world.slots(&user).len();
    // Two entries of one shard in one frame.
    (0..30).for_each(|_| world.send("ann", &user, &[b'.'; 200]));
    world.run();
    let slots = world.slots(&user).split_off(before);
    let second = slots.windows(2).find_map(|two| {
        let (one, next) = (two[0].1, two[1].1);
        let (at, end) = (next.position()?, one.position()? + one.bytes());
        let is_record = at > end + 30 && at < end + 60;
        is_record.then_some(at)
    });
    let second = second.expect("two entries in one frame");
    world.go_on_without(&user);
    world.spoil(second - RECORD_HEADER_BYTES as u64, 8);
    let world = world.restart();
    let quarantined = world.store.quarantined().iter();
    let quarantined: Vec<ShardId> = quarantined.map(|one| one.shard).collect();
    assert_eq!(quarantined, [shard_of(&user)]);
    let head = slots.last().unwrap().0;
    let (world, _) = world.salvaged();
    let last = world.inbox(&user).last().unwrap().0;
    assert!(last >= head.0, "{last} of {head:?}");
}
