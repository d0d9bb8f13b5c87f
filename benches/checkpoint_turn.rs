//! How long a core's turn is that writes one shard's part of a checkpoint, while nothing else goes on.
//!
//! Run with `cargo bench --bench checkpoint_turn`. The shard has 160,000 entries in the inboxes of 10,000
//! users with a device each, and 40,000 streams. The middle of many runs and the longest: the machine may
//! be shared, so the longest is an upper bound.
#![expect(clippy::disallowed_methods, reason = "a benchmark needs a clock")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use iris::log::{CheckpointHeader, CheckpointWriter, NodeIdentity, item_encode_into};
use iris::placement::{HashKey, ShardId};
use iris::shard::command::{Append, Command};
use iris::shard::{Entry, Shard, ShardConfig};
use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};

const USERS: u64 = 10_000;
const ENTRIES: u64 = 160_000;
/// Senders of each user's entries.
const SENDERS: u64 = 4;
const RUNS: usize = 300;
const TIME_MS: u64 = 1_790_000_000_000;

fn main() {
    let shard = shard();
    let mut state = Vec::new();
    let written = middle_and_longest(|| {
        state.clear();
        shard.write_state(black_box(&mut state));
    });
    let len = state.len() as u64;
    let packed = middle_and_longest(|| {
        let mut writer = CheckpointWriter::new(&header());
        writer.section(0, shard.applied(), len);
        writer.push(black_box(&state));
        black_box(writer.take_blocks());
    });
    println!("{ENTRIES} entries, {USERS} users, {len} bytes");
    print("state written", written);
    print("packed into blocks", packed);
}

fn print(what: &str, (middle, longest): (Duration, Duration)) {
    println!("{what:>20}: {middle:>10.1?} in the middle, {longest:>10.1?} at the longest");
}

fn middle_and_longest(mut run: impl FnMut()) -> (Duration, Duration) {
    run(); // buffers grow once
    let mut took: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed()
        })
        .collect();
    took.sort();
    (took[RUNS / 2], took[RUNS - 1])
}

fn shard() -> Shard {
    let mut shard = Shard::new(ShardId(0), HashKey([5; 16]), ShardConfig::default());
    let mut effects = Vec::new();
    for round in 0..ENTRIES / USERS {
        for user in 0..USERS {
            let (to, from) = (format!("user-{user}"), format!("from-{}", round % SENDERS));
            let append = Command::Append(Append {
                to: &to,
                from: &from,
                device: "phone",
                epoch: SendEpoch(7),
                n: SendNumber(1 + round / SENDERS),
                time_ms: TIME_MS,
                seq: Seq(round + 1),
                id: MessageId([1; 16]),
                body: b"hello",
            });
            let device = "phone";
            let register = Command::Register { user: &to, device };
            let commands = [register, append];
            let mut payload = Vec::new();
            for command in &commands[usize::from(round > 0)..] {
                let mut bytes = Vec::new();
                command.encode(&mut bytes);
                item_encode_into(&mut payload, &bytes);
            }
            let index = round * USERS + user + 1;
            let entry = Entry {
                index,
                term: 1,
                time_ms: TIME_MS,
                payload: &payload,
                position: 4_096 + 256 * index,
            };
            shard
                .apply(&entry, &[], &mut effects)
                .expect("entries in order");
            effects.clear();
            shard.changes();
        }
    }
    let entries: u64 = shard.users().iter().map(|user| user.head().0).sum();
    assert_eq!(entries, ENTRIES);
    shard
}

fn header() -> CheckpointHeader {
    CheckpointHeader {
        identity: NodeIdentity {
            cluster_id: [1; 16],
            node_id: 2,
            log: 0,
        },
        incarnation: 1,
        segment_bytes: 1 << 26,
        scan_lsn: 4_096,
        prev_crc: 0,
        sections: 1,
    }
}
