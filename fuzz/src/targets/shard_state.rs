//! A shard's state out of arbitrary bytes: `Shard::read_state`, what a checkpoint's section holds.
//!
//! What is accepted is within the limits, and is written again to the same bytes.

use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};
use iris_proto::limits::{DEVICES_PER_USER_MAX, USER_ID_BYTES_MAX};

use super::{Target, nothing_to_mend};
use crate::measure::measured;
use crate::placement::{HashKey, ShardId, user_hash};
use crate::shard::command::{Append, Command};
use crate::shard::{Entry, Shard, ShardConfig};

/// See the module's text.
pub const SHARD_STATE: Target = Target {
    name: "shard_state",
    check,
    mend: nothing_to_mend,
    seeds,
};

pub const KEY: HashKey = HashKey([5; 16]);
/// Shards of the data directory that inputs are of; all of them in one log.
pub const SHARDS: u16 = 4;

/// Bytes of memory for a state of so many: a pair of 20 bytes may claim a table with 16 places for it,
/// and the smallest user, of 34 bytes, takes some hundred with its place in an index.
const fn state_bytes_max(len: usize) -> usize {
    32 * len + 16 * 1024
}

fn check(data: &[u8]) {
    let (shard, held) = measured(|| Shard::read_state(ShardId(0), KEY, config(), data));
    let most = state_bytes_max(data.len());
    assert!(held <= most, "{held} bytes held, {most} would do");
    let Ok(shard) = shard else { return };
    for user in shard.users().iter() {
        assert!(user.name().len() <= USER_ID_BYTES_MAX);
        assert!(user.devices().len() <= DEVICES_PER_USER_MAX);
        for device in user.devices() {
            assert!(device.cursor <= user.head() && device.cursor.0 + 1 >= user.oldest().0);
        }
    }
    assert!(written(&shard) == data, "other bytes say the same");
}

pub fn config() -> ShardConfig {
    ShardConfig::default()
}

pub fn written(shard: &Shard) -> Vec<u8> {
    let mut out = Vec::new();
    shard.write_state(&mut out);
    out
}

/// The shard of a user.
pub fn shard_of(user: &str) -> u16 {
    (user_hash(KEY, user).0 % u64::from(SHARDS)) as u16
}

/// The `nth` of the users that are of a shard.
pub fn user_of(shard: u16, nth: usize) -> String {
    let names = (0..).map(|number: u32| format!("u{number}"));
    let mut ours = names.filter(|name| shard_of(name) == shard);
    ours.nth(nth).expect("there are more")
}

/// Commands as a shard would have put them into one entry.
pub fn encoded(commands: &[Command<'_>]) -> Vec<Vec<u8>> {
    let encode = |command: &Command<'_>| {
        let mut out = Vec::new();
        command.encode(&mut out);
        out
    };
    commands.iter().map(encode).collect()
}

/// A message to a user, the `n`th of its sender to it and the `seq`th in its inbox.
pub fn append<'a>(to: &'a str, from: &'a str, n: u64, seq: u64, body: &'a [u8]) -> Command<'a> {
    Command::Append(Append {
        to,
        from,
        device: "phone",
        epoch: SendEpoch(7),
        n: SendNumber(n),
        time_ms: 1_763_900_000_000 + n,
        seq: Seq(seq),
        id: MessageId(*b"sixteen bytes id"),
        body,
    })
}

/// What happens to the users of a shard in the seeds: entry by entry.
pub fn story<'a>(one: &'a str, two: &'a str) -> Vec<Vec<Command<'a>>> {
    let device = "phone";
    vec![
        vec![
            Command::Register { user: one, device },
            append(one, "ann", 1, 1, b"one"),
        ],
        vec![
            append(two, "ann", 1, 1, b""),
            append(one, "ann", 2, 2, b"two"),
            append(one, "ben", 1, 3, &[9; 100]),
        ],
        vec![
            Command::Cursor {
                user: one,
                device,
                seq: Seq(2),
            },
            Command::Trim {
                user: one,
                oldest: Seq(2),
            },
        ],
    ]
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (one, two) = (user_of(0, 0), user_of(0, 1));
    // A name over the limit gets no further than the edge; a state with one is refused.
    let long = "x".repeat(USER_ID_BYTES_MAX + 1);
    vec![
        ("empty", told(Vec::new())),
        ("some", told(story(&one, &two))),
        ("name_too_long", told(story(&long, &two))),
    ]
}

/// The state of a shard after a story.
fn told(story: Vec<Vec<Command<'_>>>) -> Vec<u8> {
    let mut shard = Shard::new(ShardId(0), KEY, config());
    for (index, commands) in (1..).zip(story) {
        let mut payload = Vec::new();
        for item in encoded(&commands) {
            crate::log::item_encode_into(&mut payload, &item);
        }
        let entry = Entry {
            index,
            term: 1,
            time_ms: 1_763_900_000_000,
            position: 8_192 * index,
            payload: &payload,
        };
        shard
            .apply(&entry, &[], &mut Vec::new())
            .expect("a good story");
    }
    written(&shard)
}
