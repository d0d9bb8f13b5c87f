//! The store on a disk in memory: what is written is there, nothing fails, and a restart reads it back.

use std::collections::{BTreeMap, VecDeque};

use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};

use super::recover::{Found, Known, Recovered, judge_checkpoint, recover, shards_of_log};
use super::salvage::{Certainty, Salvaged, salvage};
use super::*;

mod lost;

use crate::log::{CheckpointHeader, CheckpointWriter, harvest, item_at};
use crate::placement::{CoreId, UserHash};
use crate::shard::ReplyTo;
use crate::shard::command::{Append, Command, decode};
use crate::shard::retention::Retention;
use crate::stamp::Stamp;

const SIZE: SegmentSize = SegmentSize::small(32 * 1024);
const KEY: HashKey = HashKey([5; 16]);
const SHARDS: u16 = 8;
const SECOND_US: u64 = 1_000_000;

fn setup() -> Setup {
    Setup {
        identity: NodeIdentity {
            cluster_id: [1; 16],
            node_id: 2,
            log: 0,
        },
        incarnation: 3,
        size: SIZE,
        key: KEY,
        shards_total: SHARDS,
        shards: shards_of_log(0, 1, SHARDS),
        shard: ShardConfig {
            inbox_entries_max: 10_000,
            batch_bytes_max: 4 * 1024,
            retention: Retention {
                entries: 20,
                ..Retention::default()
            },
        },
        checkpoint_bytes: 64 * 1024,
        clean_bytes_per_s: 1024 * 1024,
    }
}

/// A store and the disk that the test plays for it.
struct World {
    store: Store,
    segments: BTreeMap<u64, Vec<u8>>,
    checkpoints: BTreeMap<u64, Vec<u8>>,
    unfinished: (u64, Vec<u8>),
    effects: VecDeque<(ShardId, Effect)>,
    now: Now,
    sent: BTreeMap<(String, String), u64>,
    checkpoints_fail: bool,
}

impl World {
    fn new() -> Self {
        Self::start(BTreeMap::new(), BTreeMap::new())
    }

    fn start(segments: BTreeMap<u64, Vec<u8>>, checkpoints: BTreeMap<u64, Vec<u8>>) -> Self {
        let Recovered {
            mut store,
            cuts,
            behind,
            ..
        } = with_found(&segments, &checkpoints, |found| recover(setup(), found)).unwrap();
        assert_eq!(cuts, [], "nothing is torn on this disk");
        behind
            .iter()
            .for_each(|segment| store.spare_ready(*segment, segment + 77));
        Self {
            store,
            segments,
            checkpoints,
            unfinished: (0, Vec::new()),
            effects: VecDeque::new(),
            now: Now {
                unix_ms: 1_790_000_000_000,
                monotonic_us: SECOND_US,
            },
            sent: BTreeMap::new(),
            checkpoints_fail: false,
        }
    }

    fn restart(self) -> Self {
        let mut again = Self::start(self.segments, self.checkpoints);
        again.sent = self.sent;
        again
    }

    fn send(&mut self, from: &str, to: &str, body: &[u8]) {
        let n = self.sent.entry((from.into(), to.into())).or_default();
        *n += 1;
        let append = Append {
            to,
            from,
            device: "phone",
            epoch: SendEpoch(9),
            n: SendNumber(*n),
            time_ms: self.now.unix_ms,
            seq: Seq(0),
            id: MessageId([4; 16]),
            body,
        };
        let mut command = Vec::new();
        append.encode(&mut command);
        let to = user_hash(KEY, to);
        let input = Input::Append {
            to,
            command: &command,
            room: true,
            reply: reply(*n),
        };
        self.step(to, input);
    }

    fn step(&mut self, user: UserHash, input: Input<'_>) {
        let shard = ShardId((user.0 % u64::from(SHARDS)) as u16);
        self.store.step(self.now, shard, input, &mut self.effects);
    }

    fn register(&mut self, user: &str) {
        let (hash, device) = (user_hash(KEY, user), "phone");
        let reply = reply(0);
        self.step(
            hash,
            Input::Register {
                hash,
                user,
                device,
                reply,
            },
        );
    }

    fn acknowledge(&mut self, user: &str, seq: u64) {
        let (device, seq) = ("phone", Seq(seq));
        self.step(
            user_hash(KEY, user),
            Input::Acknowledge { user, device, seq },
        );
    }

    /// Polls and does what is wanted, until there is nothing more for now.
    fn run(&mut self) {
        loop {
            let mut io = Vec::new();
            self.store.poll(self.now, false, &mut io);
            if io.is_empty() {
                return;
            }
            io.into_iter().for_each(|io| self.carry_out(io));
        }
    }

    /// Runs for so many seconds.
    fn run_for(&mut self, seconds: u64) {
        for _ in 0..seconds * 20 {
            self.now.monotonic_us += SECOND_US / 20;
            self.run();
        }
    }

    fn carry_out(&mut self, io: Io) {
        let mut more = Vec::new();
        match io {
            Io::Flush(flush) => {
                for write in flush.writes.into_iter().flatten() {
                    let segment = self.segments.get_mut(&write.segment).unwrap();
                    let at = write.offset as usize;
                    segment[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
                    self.store.recycle(write.bytes);
                }
                self.store.flushed(self.now, &mut self.effects);
            }
            Io::PrepareSegment { segment } => {
                let zeros = vec![0; SIZE.bytes() as usize];
                assert!(self.segments.insert(segment, zeros).is_none());
                self.store.spare_ready(segment, segment + 1_000);
            }
            Io::RemoveSegment { segment } => {
                assert!(self.segments.remove(&segment).is_some());
            }
            Io::CheckpointBegin { lsn } => {
                self.unfinished = (lsn, Vec::new());
                self.store.checkpointed(!self.checkpoints_fail, &mut more);
            }
            Io::CheckpointChunk { bytes } => {
                self.unfinished.1.extend_from_slice(&bytes);
                self.store.checkpointed(true, &mut more);
            }
            Io::CheckpointEnd => {
                let (lsn, bytes) = std::mem::take(&mut self.unfinished);
                self.checkpoints.insert(lsn, bytes);
                self.store.checkpointed(true, &mut more);
            }
            Io::RemoveCheckpoint { lsn } => {
                assert!(self.checkpoints.remove(&lsn).is_some());
            }
            Io::Harvest {
                segment,
                from,
                budget,
            } => {
                let bytes = &self.segments[&segment];
                let harvest = harvest(SIZE, segment, bytes, from, budget);
                self.store.harvested(harvest);
            }
        }
        more.into_iter().for_each(|io| self.carry_out(io));
    }

    fn state(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for shard in self.store.shards() {
            self.store.shard(*shard).unwrap().write_state(&mut out);
        }
        out
    }

    /// The bodies of an inbox, read where its index says; `None` for a gap.
    fn inbox(&self, user: &str) -> Vec<(u64, Option<Vec<u8>>)> {
        let shard = ShardId((user_hash(KEY, user).0 % u64::from(SHARDS)) as u16);
        let shard = self.store.shard(shard).unwrap();
        let Some(slot) = shard.find(user) else {
            return Vec::new();
        };
        let slots = shard.users().get(slot).slots();
        slots
            .flat_map(|(seq, slot)| {
                (seq.0..seq.0 + slot.entries()).map(move |seq| (Seq(seq), slot))
            })
            .map(|(seq, slot)| {
                let body = slot.position().map(|position| {
                    let segment = &self.segments[&SIZE.index_of(position)];
                    let (item, _) = item_at(&segment[SIZE.offset_of(position)..]).unwrap();
                    let Ok(Command::Append(append)) = decode(item) else {
                        panic!("an index points at what is no message");
                    };
                    assert_eq!((append.to, append.seq), (user, seq));
                    append.body.to_vec()
                });
                (seq.0, body)
            })
            .collect()
    }

    fn salvage(&self) -> Salvaged {
        with_found(&self.segments, &self.checkpoints, |found| {
            salvage(&setup(), found)
        })
        .unwrap()
    }
}

fn reply(tag: u64) -> ReplyTo {
    ReplyTo {
        core: CoreId(0),
        slot: 0,
        generation: 0,
        tag,
        read: Stamp::default(),
    }
}

fn with_found<R>(
    segments: &BTreeMap<u64, Vec<u8>>,
    checkpoints: &BTreeMap<u64, Vec<u8>>,
    take: impl FnOnce(Found<'_>) -> R,
) -> R {
    let segments: Vec<(u64, &[u8])> = segments.iter().map(|(n, bytes)| (*n, &bytes[..])).collect();
    let checkpoints: Vec<(u64, &[u8])> = checkpoints
        .iter()
        .map(|(n, bytes)| (*n, &bytes[..]))
        .collect();
    take(Found {
        checkpoints: &checkpoints,
        segments: &segments,
        known: Known::default(),
    })
}

fn body(user: &str, number: u64) -> Vec<u8> {
    let mut body = format!("{user} {number} ").into_bytes();
    body.resize(150 + (number as usize % 7) * 40, b'.');
    body
}

fn users() -> Vec<String> {
    (0..24).map(|i| format!("user-{i}")).collect()
}

/// Sends `rounds` messages to everybody; devices acknowledge all but the last one.
fn traffic(world: &mut World, from: u64, rounds: u64) {
    for round in from..from + rounds {
        for user in users() {
            world.send("ann", &user, &body(&user, round));
            if round > 1 {
                world.acknowledge(&user, round - 1);
            }
        }
        world.now.monotonic_us += 60_000;
        world.run();
    }
}

fn world_with_devices() -> World {
    let mut world = World::new();
    users().iter().for_each(|user| world.register(user));
    world.run();
    world
}

/// R: D-5, D-6
#[test]
fn a_restart_gives_the_same_state_byte_for_byte_whatever_checkpoints_there_are() {
    let mut world = world_with_devices();
    let mut with_checkpoint = 0;
    for part in 0..40 {
        traffic(&mut world, 1 + part * 3, 3);
        let before = world.state();
        world = world.restart();
        assert_eq!(world.state(), before, "part {part}");
        with_checkpoint += usize::from(world.store.status().checkpoint.is_some());
    }
    assert!(
        with_checkpoint > 20,
        "{with_checkpoint} starts from a checkpoint"
    );
}

/// R: D-5
#[test]
fn space_comes_back_and_stays_within_twice_what_is_live() {
    let mut world = world_with_devices();
    // One user's messages are never acknowledged, so every old segment has a few live ones.
    traffic(&mut world, 1, 200);
    world.run_for(20);
    let status = world.store.status();
    assert!(status.removed_segments > 10, "{status:?}");
    // What a replay may need stays: two checkpoints' worth of log and the open segment.
    let replay = status.end - world.store.checkpointing.keep_from();
    let cleanable = status.used_bytes - replay.next_multiple_of(SIZE.bytes());
    assert!(
        cleanable <= 2 * status.live_bytes + 2 * SIZE.bytes(),
        "{status:?}"
    );
    let again = world.restart();
    for user in users() {
        let inbox = again.inbox(&user);
        assert!(inbox.len() >= 20, "history of {user}: {}", inbox.len());
        for (seq, found) in inbox {
            assert_eq!(found, Some(body(&user, seq)));
        }
    }
}

/// R: D-5, B-6
#[test]
fn live_messages_move_out_of_mostly_dead_segments_and_read_the_same_afterwards() {
    let mut world = world_with_devices();
    for number in 1..=40 {
        for user in users().iter().take(3) {
            world.send("bob", &format!("quiet-{user}"), &body(user, number));
        }
        traffic(&mut world, (number - 1) * 4 + 1, 4);
    }
    world.run_for(20);
    let status = world.store.status();
    assert!(status.moved_bytes > 0, "{status:?}");
    assert!(
        !world.segments.contains_key(&0),
        "the first segment is gone"
    );
    let state = world.state();
    let world = world.restart();
    assert_eq!(world.state(), state);
    for user in users().iter().take(3) {
        let inbox = world.inbox(&format!("quiet-{user}"));
        assert_eq!(inbox.len(), 40);
        for (seq, found) in inbox {
            assert_eq!(found, Some(body(user, seq)));
        }
    }
}

/// R: D-5
#[test]
fn an_unreadable_checkpoint_costs_nothing_but_the_time_to_replay_from_the_one_before() {
    let mut world = world_with_devices();
    traffic(&mut world, 1, 120);
    assert_eq!(world.checkpoints.len(), 2);
    let state = world.state();
    let (_, newest) = world.checkpoints.iter_mut().next_back().unwrap();
    let middle = newest.len() / 2;
    newest[middle] ^= 4;
    let world = world.restart();
    assert_eq!(world.state(), state);
}

/// R: D-2. Its CRCs are right: something else wrote it, or for another log.
#[test]
fn a_whole_checkpoint_that_says_an_impossible_position_is_refused_and_the_one_before_it_used() {
    let mut world = world_with_devices();
    traffic(&mut world, 1, 120);
    let state = world.state();
    let newest = *world.checkpoints.keys().next_back().unwrap();
    for lsn in [newest + 4, (newest | 0x7fff) + 9, 1 << 54, u64::MAX - 7] {
        let header = CheckpointHeader {
            identity: setup().identity,
            incarnation: 3,
            segment_bytes: SIZE.bytes(),
            scan_lsn: lsn,
            prev_crc: 0,
            sections: u32::from(SHARDS),
        };
        let mut writer = CheckpointWriter::new(&header);
        for id in world.store.shards() {
            let shard = world.store.shard(*id).unwrap();
            let mut bytes = Vec::new();
            shard.write_state(&mut bytes);
            writer.section(id.0, shard.applied(), bytes.len() as u64);
            writer.push(&bytes);
        }
        let bytes = writer.finish();
        let reason = judge_checkpoint(&setup(), lsn, &bytes).unwrap_err();
        assert!(reason.contains("no frame can be"), "{reason}");
        world.checkpoints.insert(lsn, bytes);
        let again = World::start(world.segments.clone(), world.checkpoints.clone());
        assert_eq!(again.state(), state);
        world.checkpoints.remove(&lsn);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_tried_again_and_loses_nothing() {
    let mut world = world_with_devices();
    world.checkpoints_fail = true;
    traffic(&mut world, 1, 60);
    let status = world.store.status();
    assert_eq!((status.checkpoint, status.removed_segments), (None, 0));
    assert!(status.checkpoint_failures > 0);
    world.checkpoints_fail = false;
    world.run_for(10);
    assert!(world.store.status().checkpoint.is_some());
}

/// Traffic of which the last entries lie in the part of the log that a restart replays, before a SEAL.
fn world_with_a_tail() -> World {
    let mut world = world_with_devices();
    traffic(&mut world, 1, 30);
    world.run_for(20); // until cleaning and checkpoints have nothing to do
    // Two rounds more than the newest checkpoint, whose parts may be a little younger than its name.
    let checkpoint = world.store.status().checkpoint.unwrap();
    for round in 31.. {
        traffic(&mut world, round, 1);
        if world.store.status().checkpoint.unwrap() > checkpoint {
            traffic(&mut world, round + 1, 3);
            break;
        }
    }
    world.now.monotonic_us += SEAL_AFTER_US;
    world.run();
    world
}

/// Where the last message but one of a user lies.
fn message_in_the_tail(world: &World, user: &str) -> (u64, usize) {
    let shard = ShardId((user_hash(KEY, user).0 % u64::from(SHARDS)) as u16);
    let shard = world.store.shard(shard).unwrap();
    let inbox = shard.users().get(shard.find(user).unwrap());
    let slot = inbox.slot(Seq(inbox.head().0 - 1)).unwrap();
    let position = slot.position().unwrap();
    assert!(position > world.store.status().checkpoint.unwrap());
    (SIZE.index_of(position), SIZE.offset_of(position))
}

/// R: D-2
#[test]
fn one_rotten_message_stops_its_shard_alone_and_salvage_names_exactly_that_entry() {
    let mut world = world_with_a_tail();
    let before: Vec<_> = users().iter().map(|user| world.inbox(user)).collect();
    let victim = users().remove(5);
    let (segment, offset) = message_in_the_tail(&world, &victim);
    world.segments.get_mut(&segment).unwrap()[offset + 120] ^= 1;
    let damaged = ShardId((user_hash(KEY, &victim).0 % u64::from(SHARDS)) as u16);
    let mut world = world.restart();
    let quarantined: Vec<_> = world
        .store
        .quarantined()
        .iter()
        .map(|one| one.shard)
        .collect();
    assert_eq!(quarantined, [damaged]);
    // The others go on, also over a further restart.
    for (user, inbox) in users().iter().zip(&before) {
        let hash = user_hash(KEY, user);
        if ShardId((hash.0 % u64::from(SHARDS)) as u16) != damaged {
            assert_eq!(world.inbox(user), *inbox);
            world.send("ann", user, b"goes on");
        }
    }
    world.run_for(1);
    let mut world = world.restart();
    assert_eq!(
        world.store.quarantined().len(),
        1,
        "the damage is not forgotten"
    );
    let found = world.salvage();
    let losses: Vec<_> = found.losses.iter().flat_map(|(_, losses)| losses).collect();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert!(losses[0].user == victim && losses[0].first == losses[0].last);
    assert_eq!(losses[0].certainty, Certainty::Proven);
    let lost = losses[0].first.0;
    world.checkpoints.insert(found.lsn, found.checkpoint);
    let world = world.restart();
    assert_eq!(world.store.quarantined(), []);
    for (user, inbox) in users().iter().zip(&before) {
        // The oldest may have left meanwhile.
        let now: BTreeMap<_, _> = world.inbox(user).into_iter().collect();
        let (first, last) = (now.keys().next().unwrap(), now.keys().last().unwrap());
        assert!(*last >= inbox.last().unwrap().0);
        for (seq, was) in inbox.iter().filter(|(seq, _)| seq >= first) {
            let is_lost = *user == victim && *seq == lost;
            assert_eq!(now[seq], was.clone().filter(|_| !is_lost), "{user} {seq}");
        }
    }
}

/// R: D-2, B-6
#[test]
fn after_a_lost_frame_no_seq_is_given_out_twice() {
    let mut world = world_with_a_tail();
    let (segment, offset) = message_in_the_tail(&world, &users()[5]);
    let heads: Vec<_> = users()
        .iter()
        .map(|user| world.inbox(user).last().unwrap().0)
        .collect();
    let page = offset / 1024 * 1024;
    world.segments.get_mut(&segment).unwrap()[page..page + 1024].fill(0xee);
    let mut world = world.restart();
    assert!(!world.store.quarantined().is_empty());
    let found = world.salvage();
    world.checkpoints.insert(found.lsn, found.checkpoint);
    let world = world.restart();
    assert_eq!(world.store.quarantined(), []);
    for (user, head) in users().iter().zip(heads) {
        let inbox = world.inbox(user);
        assert!(
            inbox.last().unwrap().0 >= head,
            "{user} gives out {head} again"
        );
        for (seq, found) in inbox.iter().filter(|(_, found)| found.is_some()) {
            assert_eq!(found.as_deref(), Some(&body(user, *seq)[..]));
        }
    }
}
