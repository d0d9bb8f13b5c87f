//! The shard against its promises, with the log played by the test.

use iris_proto::id::{MessageId, SendEpoch};
use proptest::prelude::*;

use super::*;

const KEY: HashKey = HashKey([9; 16]);
const LOG_STRIDE: u64 = 1 << 20;

/// A shard and the log that the test plays for it.
struct World {
    shard: Shard,
    log: Vec<(u64, u64, Vec<u8>)>,
    effects: Vec<Effect>,
    room: bool,
    now_ms: u64,
}

fn reply(tag: u64) -> ReplyTo {
    ReplyTo {
        core: CoreId(0),
        slot: 1,
        generation: 1,
        tag,
        read: Stamp::default(),
    }
}

fn config(inbox_entries_max: u64) -> ShardConfig {
    ShardConfig {
        inbox_entries_max,
        ..ShardConfig::default()
    }
}

impl World {
    fn new(inbox_entries_max: u64) -> Self {
        let shard = Shard::new(ShardId(0), KEY, config(inbox_entries_max));
        Self {
            shard,
            log: Vec::new(),
            effects: Vec::new(),
            room: true,
            now_ms: 1_000,
        }
    }

    fn send(&mut self, from: &str, to: &str, n: u64, tag: u64) {
        let append = Append {
            to,
            from,
            device: "phone",
            epoch: SendEpoch(5),
            n: SendNumber(n),
            time_ms: 77,
            seq: Seq(0),
            id: MessageId([3; 16]),
            body: b"body",
        };
        let mut command = Vec::new();
        append.encode(&mut command);
        let to = user_hash(KEY, to);
        let input = Input::Append {
            to,
            command: &command,
            room: self.room,
            reply: reply(tag),
        };
        self.shard.step(self.now_ms, input, &mut self.effects);
    }

    fn register(&mut self, user: &str, device: &str, tag: u64) {
        let hash = user_hash(KEY, user);
        let input = Input::Register {
            hash,
            user,
            device,
            reply: reply(tag),
        };
        self.shard.step(self.now_ms, input, &mut self.effects);
    }

    fn acknowledge(&mut self, user: &str, device: &str, seq: u64) {
        let input = Input::Acknowledge {
            user,
            device,
            seq: Seq(seq),
        };
        self.shard.step(self.now_ms, input, &mut self.effects);
    }

    /// Writes the next batch; false when there is none.
    fn write(&mut self) -> bool {
        let Some(batch) = self.shard.take() else {
            return false;
        };
        self.log
            .push((batch.index(), batch.time_ms(), batch.payload().to_vec()));
        true
    }

    fn commit(&mut self, nth: usize) {
        let input = Input::Committed {
            position: nth as u64 * LOG_STRIDE,
        };
        self.shard.step(self.now_ms, input, &mut self.effects);
    }

    fn write_and_commit(&mut self) {
        let first = self.log.len();
        while self.write() {}
        (first..self.log.len()).for_each(|nth| self.commit(nth));
    }

    /// What the shard wanted done; where messages lie is left out.
    fn effects(&mut self) -> Vec<Effect> {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in &mut effects {
            if let Effect::Accepted { at, .. } = effect {
                *at = 0;
            }
        }
        effects
    }

    fn state(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.shard.write_state(&mut out);
        out
    }

    /// What a restart makes of the first `entries` entries of the log.
    fn replayed(&self, entries: usize) -> Vec<u8> {
        let mut again = Self::new(self.shard.config.inbox_entries_max);
        for (nth, (index, time_ms, payload)) in self.log.iter().take(entries).enumerate() {
            let position = nth as u64 * LOG_STRIDE;
            let entry = Entry {
                index: *index,
                term: 1,
                time_ms: *time_ms,
                payload,
                position,
            };
            again.shard.apply(&entry, &[], &mut again.effects).unwrap();
        }
        again.state()
    }

    fn head(&self, user: &str) -> u64 {
        let users = self.shard.users();
        users
            .find(user, user_hash(KEY, user))
            .map_or(0, |slot| users.get(slot).head().0)
    }
}

fn accepted(tag: u64, n: u64) -> Effect {
    Effect::Accepted {
        reply: reply(tag),
        n: SendNumber(n),
        at: 0,
    }
}

fn gap(tag: u64, expected: u64) -> Effect {
    let expected = SendNumber(expected);
    Effect::Refused {
        reply: reply(tag),
        refusal: Refusal::Gap { expected },
    }
}

fn grown(slot: u32) -> Effect {
    Effect::Grown {
        user: UserSlot(slot),
    }
}

/// R: B-1, B-2
#[test]
fn neither_acceptance_nor_entry_comes_before_the_batch_is_committed() {
    let mut world = World::new(100);
    world.send("ann", "ben", 1, 10);
    assert_eq!(world.effects(), []);
    world.write();
    assert_eq!(world.effects(), []);
    assert_eq!(world.head("ben"), 0);
    world.commit(0);
    assert_eq!(world.effects(), [accepted(10, 1), grown(0)]);
    assert_eq!(world.head("ben"), 1);
}

/// R: E-1
#[test]
fn an_answer_says_where_the_message_lies_that_has_just_become_durable_and_nothing_of_older_ones() {
    let mut world = World::new(100);
    for (n, tag) in [(1, 10), (2, 11)] {
        world.send("ann", "ben", n, tag);
    }
    world.write_and_commit();
    world.send("ann", "ben", 1, 12);
    let mut places = Vec::new();
    for effect in std::mem::take(&mut world.effects) {
        if let Effect::Accepted { reply, at, .. } = effect {
            places.push((reply.tag, at));
        }
    }
    let inbox = world.shard.users().get(world.shard.find("ben").unwrap());
    let lies = |seq| inbox.slot(Seq(seq)).unwrap().position().unwrap();
    assert_eq!(places, [(10, lies(1)), (11, lies(2)), (12, 0)]);
    assert!(
        lies(2) - lies(1) >= crate::measure::PLACE_BYTES,
        "two in one room"
    );
}

/// R: B-5
#[test]
fn a_repeated_send_is_accepted_again_and_stored_once() {
    let mut world = World::new(100);
    world.send("ann", "ben", 1, 10);
    world.write_and_commit();
    world.effects();
    world.send("ann", "ben", 1, 11);
    assert_eq!(world.effects(), [accepted(11, 1)]);
    assert!(!world.write(), "a repetition writes nothing");
    assert_eq!(world.head("ben"), 1);
}

/// R: B-1, B-5
#[test]
fn a_send_repeated_while_it_is_under_way_is_accepted_only_when_it_is_durable() {
    let mut world = World::new(100);
    world.send("ann", "ben", 1, 10);
    world.send("ann", "ben", 1, 11); // in the open batch
    world.write();
    world.send("ann", "ben", 1, 12); // in the batch being written
    assert_eq!(world.effects(), []);
    assert!(!world.write());
    world.commit(0);
    assert_eq!(
        world.effects(),
        [accepted(10, 1), grown(0), accepted(11, 1), accepted(12, 1)]
    );
    assert_eq!(world.head("ben"), 1);
}

/// R: B-4
#[test]
fn answers_to_repeated_sends_come_before_those_to_sends_behind_them_in_the_same_batch() {
    let mut world = World::new(10);
    world.send("ann", "ben", 1, 1);
    world.send("ann", "ben", 2, 2);
    // The connection ends, and the next one repeats what was not answered and goes on.
    world.send("ann", "ben", 1, 11);
    world.send("ann", "ben", 2, 12);
    world.send("ann", "ben", 3, 13);
    world.write_and_commit();
    let accepted = world
        .effects()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Accepted { reply, n, .. } => Some((reply.tag, n.0)),
            _ => None,
        });
    let expected = [(1, 1), (2, 2), (11, 1), (12, 2), (13, 3)];
    assert_eq!(accepted.collect::<Vec<_>>(), expected);
}

/// R: B-4
#[test]
fn a_skipped_number_is_refused_with_the_number_expected() {
    let mut world = World::new(100);
    world.send("ann", "ben", 2, 10);
    assert_eq!(world.effects(), [gap(10, 1)]);
    world.send("ann", "ben", 1, 11);
    world.send("ann", "ben", 3, 12);
    world.send("ann", "ben", 0, 13);
    assert_eq!(world.effects(), [], "answers keep the order of the sends");
    world.write_and_commit();
    assert_eq!(
        world.effects(),
        [accepted(11, 1), grown(0), gap(12, 2), gap(13, 2)]
    );
    assert_eq!(world.head("ben"), 1);
}

/// R: D-2
#[test]
fn a_message_that_does_not_follow_the_state_it_is_replayed_on_is_counted() {
    let mut world = World::new(100);
    for n in 1..=3 {
        world.send("ann", "ben", n, n);
        world.write_and_commit();
    }
    assert_eq!(world.shard.strayed(), 0);
    let mut replica = Shard::new(ShardId(0), KEY, config(100));
    for (index, nth) in [(1, 0), (2, 2)] {
        let entry = Entry {
            index,
            term: SINGLE_NODE_TERM,
            time_ms: 1_000,
            payload: &world.log[nth].2,
            position: 0,
        };
        replica.apply(&entry, &[], &mut Vec::new()).unwrap();
    }
    assert_eq!(replica.strayed(), 1, "number 3 behind number 1");
}

/// R: B-4
#[test]
fn numbers_of_different_streams_do_not_touch_each_other() {
    let mut world = World::new(100);
    for (tag, from, to) in [(1, "ann", "ben"), (2, "ann", "cat"), (3, "ben", "cat")] {
        world.send(from, to, 1, tag);
    }
    world.write_and_commit();
    let accepted_tags = world
        .effects()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Accepted { reply, .. } => Some(reply.tag),
            _ => None,
        });
    assert_eq!(accepted_tags.collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((world.head("ben"), world.head("cat")), (1, 2));
}

/// R: B-8
#[test]
fn a_full_inbox_refuses_and_takes_again_what_was_refused_once_it_is_acknowledged() {
    let mut world = World::new(3);
    world.register("ben", "phone", 1);
    (1..=3).for_each(|n| world.send("ann", "ben", n, n));
    world.send("ann", "ben", 4, 4);
    let full = Effect::Refused {
        reply: reply(4),
        refusal: Refusal::InboxFull,
    };
    world.write_and_commit();
    assert_eq!(
        world.effects().last(),
        Some(&full),
        "what was under way counted"
    );
    world.send("ann", "ben", 4, 5);
    let full = Effect::Refused {
        reply: reply(5),
        refusal: Refusal::InboxFull,
    };
    assert_eq!(world.effects(), [full]);
    world.acknowledge("ben", "phone", 2);
    world.write_and_commit();
    world.send("ann", "ben", 4, 6);
    world.write_and_commit();
    assert_eq!(world.effects(), [accepted(6, 4), grown(0)]);
}

/// R: B-7
#[test]
fn a_further_device_never_makes_an_inbox_hold_more_than_it_may_whatever_is_under_way() {
    let mut world = World::new(20);
    world.register("ben", "phone", 1);
    (1..=15).for_each(|n| world.send("ann", "ben", n, n));
    world.write_and_commit();
    world.acknowledge("ben", "phone", 15);
    world.write_and_commit();
    // Under way are 3 messages, then the device, then as many more as are taken.
    (16..=18).for_each(|n| world.send("ann", "ben", n, n));
    world.register("ben", "laptop", 2);
    world.effects();
    (19..=60).for_each(|n| world.send("ann", "ben", n, n));
    world.write_and_commit();
    let slot = world.shard.find("ben").unwrap();
    let ben = world.shard.users().get(slot);
    let laptop = ben.device("laptop").unwrap().cursor;
    assert_eq!(laptop, Seq(8), "half of a full inbox before the 18th");
    assert_eq!((ben.head(), ben.pending()), (Seq(28), 20));
    assert_eq!(world.replayed(world.log.len()), world.state());
}

/// R: B-6, B-7
#[test]
fn a_second_device_does_not_find_a_small_inbox_full_by_its_coming() {
    let mut world = World::new(20);
    world.register("ben", "phone", 1);
    (1..=20).for_each(|n| world.send("ann", "ben", n, n));
    world.write_and_commit();
    world.acknowledge("ben", "phone", 20);
    world.write_and_commit();
    world.register("ben", "laptop", 2);
    world.write_and_commit();
    world.effects();
    world.send("ann", "ben", 21, 21);
    world.write_and_commit();
    assert_eq!(world.effects(), [accepted(21, 21), grown(0)]);
}

/// R: B-3, B-5
#[test]
fn a_stream_that_is_forgotten_between_proposal_and_commit_goes_on() {
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    let mut world = World::new(100);
    world.send("ann", "ben", 1, 1);
    world.write_and_commit();
    let known = world.shard.pairs().len();
    // Eight days later: the next message of the stream is proposed behind others that make the table
    // grow, and so let idle streams leave.
    world.now_ms += 8 * DAY_MS;
    for sender in 0..20 {
        world.send(&format!("sender-{sender}"), "joe", 1, 100);
    }
    world.send("ann", "ben", 2, 2);
    world.send("ann", "ben", 3, 3);
    world.effects();
    world.write_and_commit();
    let effects = world.effects();
    assert_eq!(known, 1);
    assert!(effects.contains(&accepted(2, 2)), "{effects:?}");
    assert!(effects.contains(&accepted(3, 3)), "{effects:?}");
    assert_eq!((world.head("ben"), world.shard.strayed()), (3, 0));
}

/// R: B-8
#[test]
fn without_room_on_the_disk_new_sends_are_refused_and_repeated_ones_accepted() {
    let mut world = World::new(100);
    world.send("ann", "ben", 1, 1);
    world.write_and_commit();
    world.effects();
    world.room = false;
    world.send("ann", "ben", 1, 2);
    world.send("ann", "ben", 2, 3);
    let full = Effect::Refused {
        reply: reply(3),
        refusal: Refusal::DiskFull,
    };
    assert_eq!(world.effects(), [accepted(2, 1), full]);
    assert!(!world.write());
}

/// R: B-9
#[test]
fn a_device_is_registered_once_it_is_durable_and_at_once_when_it_is_known() {
    let mut world = World::new(100);
    world.register("ben", "phone", 1);
    assert_eq!(world.effects(), []);
    world.write_and_commit();
    assert_eq!(world.effects(), [Effect::Registered { reply: reply(1) }]);
    world.register("ben", "phone", 2);
    assert_eq!(world.effects(), [Effect::Registered { reply: reply(2) }]);
    assert!(!world.write());
}

#[test]
fn an_entry_out_of_order_is_refused_on_replay() {
    let mut shard = Shard::new(ShardId(0), KEY, config(100));
    let entry = Entry {
        index: 2,
        term: 1,
        time_ms: 0,
        payload: &[],
        position: 0,
    };
    let refused = shard.apply(&entry, &[], &mut Vec::new());
    assert!(matches!(
        refused,
        Err(ApplyError::Order {
            applied: 0,
            index: 2,
            ..
        })
    ));
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        from: usize,
        to: usize,
        ahead: u64,
    },
    Register {
        user: usize,
        device: usize,
    },
    Acknowledge {
        user: usize,
        device: usize,
        seq: u64,
    },
    Write,
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4usize, 0..4usize, 0..3u64)
            .prop_map(|(from, to, ahead)| Step::Send { from, to, ahead }),
        1 => (0..4usize, 0..10usize).prop_map(|(user, device)| Step::Register { user, device }),
        2 => (0..4usize, 0..3usize, 0..30u64)
            .prop_map(|(user, device, seq)| Step::Acknowledge { user, device, seq }),
        2 => Just(Step::Write),
        2 => Just(Step::Commit),
    ];
    prop::collection::vec(step, 1..300)
}

const USERS: [&str; 4] = ["ann", "ben", "cat", "dan"];

proptest! {
    /// R: B-4, B-5, D-6
    #[test]
    fn every_replay_gives_the_same_state_byte_for_byte_and_every_stream_is_stored_once_in_order(
        steps in steps()
    ) {
        let mut world = World::new(20);
        let mut last = [[0u64; 4]; 4]; // as the senders count: what they were told is accepted
        let mut committed = 0;
        let mut tag = 0;
        let mut asked = Vec::new();
        for step in steps {
            match step {
                Step::Send { from, to, ahead } => {
                    // 0 repeats the last accepted, 1 is the next, 2 may be a gap.
                    let n = last[from][to] + ahead;
                    asked.push((from, to));
                    world.send(USERS[from], USERS[to], n, tag);
                    tag += 1;
                }
                Step::Register { user, device } => {
                    asked.push((user, user));
                    world.register(USERS[user], &format!("device-{device}"), tag);
                    tag += 1;
                }
                Step::Acknowledge { user, device, seq } => {
                    world.acknowledge(USERS[user], &format!("device-{device}"), seq);
                }
                Step::Write => { world.write(); }
                Step::Commit => if committed < world.log.len() {
                    world.commit(committed);
                    committed += 1;
                    prop_assert_eq!(world.state(), world.replayed(committed));
                },
            }
            for effect in world.effects() {
                if let Effect::Accepted { reply, n, .. } = effect {
                    let (from, to) = asked[usize::try_from(reply.tag).unwrap()];
                    last[from][to] = last[from][to].max(n.0);
                }
            }
        }
        let stored: u64 = USERS.iter().map(|user| world.head(user)).sum();
        prop_assert_eq!(stored, last.iter().flatten().sum::<u64>());
    }
}
