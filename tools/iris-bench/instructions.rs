//! The parts of a message's way that are pure, each as a loop to count instructions of: `benches/instructions`
//! runs them under callgrind, twice with different numbers of turns, and compares the difference with what
//! was counted before.
//!
//! | work | one turn |
//! |---|---|
//! | `codec` | a Send encoded and decoded, its Accepted and its Entry encoded and decoded, 128-byte body |
//! | `ring` | a parcel of 64 bytes pushed, published and drained |
//! | `shard` | a message proposed, its batch of 16 taken and committed, which makes it an entry of its inbox |
//! | `log` | a message as an item of a record; of 16 such records a frame with its place in the log |
//!
//! Nothing here reads a clock or a file, and hashes have fixed keys, so a number is the same at every run of
//! the same program.

use std::hint::black_box;
use std::sync::Arc;

use iris::log::{
    FrameBuilder, FrameKind, NodeIdentity, RecordHeader, RecordKind, SegmentSize, Writer,
    WriterStart, item_encode_into,
};
use iris::placement::{HashKey, ShardId, user_hash};
use iris::ring::{Sleeper, link};
use iris::shard::command::Append;
use iris::shard::{Input, Shard, ShardConfig};
use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};
use iris_proto::wire::{self, EntryRef, SendRef};

use crate::args::{InstructionsArgs, Work};
use crate::traffic::reply;

/// Bytes of each body.
const BODY: [u8; 128] = [0x5a; 128];
/// Messages of a batch, and of a frame.
const BATCH: u64 = 16;
/// Users that the shard's messages go to.
const USERS: u64 = 64;
/// Entries that an inbox may hold.
const INBOX_ENTRIES: u64 = 1_000_000;
/// A day in the year 2026, in Unix milliseconds.
const TIME_MS: u64 = 1_790_000_000_000;

/// Does so many turns.
///
/// # Errors
/// The segment size of the log's writer would have to be none.
pub fn run(args: &InstructionsArgs) -> Result<(), String> {
    match args.work {
        Work::Codec => codec(args.turns),
        Work::Ring => ring(args.turns),
        Work::Shard => shard(args.turns),
        Work::Log => return log(args.turns),
    }
    Ok(())
}

fn codec(turns: u64) {
    let mut out = Vec::with_capacity(4096);
    for n in 1..=turns {
        out.clear();
        let send = SendRef {
            tag: n,
            to: "user-0042",
            n,
            id: [9; 16],
            body: black_box(&BODY),
        };
        wire::encode_send(&mut out, &send);
        assert!(wire::decode_client(black_box(&out[4..])).is_ok());
        out.clear();
        wire::encode_accepted(&mut out, n, n);
        assert!(wire::decode_server(black_box(&out[4..])).is_ok());
        out.clear();
        let entry = EntryRef {
            seq: n,
            from: "user-0042",
            from_device: "phone",
            id: [9; 16],
            time_ms: TIME_MS,
            body: black_box(&BODY),
            fetch_tag: 0,
        };
        wire::encode_entry(&mut out, &entry);
        assert!(wire::decode_server(black_box(&out[4..])).is_ok());
    }
}

fn ring(turns: u64) {
    let (mut producer, mut consumer) = link::<[u64; 8]>(Arc::new(Sleeper::new()));
    let mut sum = 0_u64;
    for n in 0..turns {
        assert!(producer.push(black_box([n; 8])).is_ok());
        producer.publish(|| ());
        consumer.drain(1, |message| sum = sum.wrapping_add(message[0]));
    }
    black_box(sum);
}

fn append<'a>(to: &'a str, n: u64, body: &'a [u8]) -> Append<'a> {
    Append {
        to,
        from: "user-0042",
        device: "phone",
        epoch: SendEpoch(7),
        n: SendNumber(n),
        time_ms: TIME_MS,
        seq: Seq(0),
        id: MessageId([1; 16]),
        body,
    }
}

fn shard(turns: u64) {
    let key = HashKey([5; 16]);
    let config = ShardConfig {
        inbox_entries_max: INBOX_ENTRIES,
        ..ShardConfig::default()
    };
    let mut shard = Shard::new(ShardId(0), key, config);
    let names: Vec<String> = (0..USERS).map(|user| format!("user-{user}")).collect();
    let hashes: Vec<_> = names.iter().map(|name| user_hash(key, name)).collect();
    let (mut effects, mut command) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        let (user, n) = ((turn % USERS) as usize, turn / USERS + 1);
        command.clear();
        append(&names[user], n, &BODY).encode(&mut command);
        let input = Input::Append {
            to: hashes[user],
            command: &command,
            room: true,
            reply: reply(n),
        };
        shard.step(TIME_MS, input, &mut effects);
        if turn % BATCH == BATCH - 1 {
            assert!(shard.take().is_some());
            let position = 4_096 * (turn + 1);
            shard.step(TIME_MS, Input::Committed { position }, &mut effects);
            shard.changes();
            black_box(effects.drain(..).count());
        }
    }
}

fn log(turns: u64) -> Result<(), String> {
    let size = SegmentSize::new(1 << 26).ok_or("no such segment size")?;
    let mut writer = Writer::new(WriterStart {
        identity: NodeIdentity {
            cluster_id: [1; 16],
            node_id: 1,
            log: 0,
        },
        incarnation: 1,
        size,
        end: 0,
        prev_crc: 0,
        salt: None,
        unsealed: false,
        heads_max: 1,
    });
    let mut frame = FrameBuilder::with_max(writer.frame_bytes_max());
    let (mut command, mut payload) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        command.clear();
        append("user-7", turn + 1, &BODY).encode(&mut command);
        item_encode_into(&mut payload, &command);
        if turn % BATCH != BATCH - 1 {
            continue;
        }
        let header = RecordHeader {
            kind: RecordKind::Entry,
            flags: 0,
            shard: 0,
            term: 1,
            index: turn / BATCH + 1,
            a: TIME_MS,
            b: BATCH,
        };
        frame.record(header, &payload);
        payload.clear();
        while let Some(segment) = writer.wants_segment() {
            writer.spare_ready(segment, segment + 1);
        }
        let flush = writer.place(&mut frame, FrameKind::Data, &[]);
        let flush = flush.map_err(|error| error.to_string())?;
        writer.durable(flush.end);
        for write in flush.writes.into_iter().flatten() {
            writer.recycle(black_box(write.bytes));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_does_its_turns() {
        for work in [Work::Codec, Work::Ring, Work::Shard, Work::Log] {
            let turns = 2_000;
            run(&InstructionsArgs { work, turns }).unwrap();
        }
    }
}
