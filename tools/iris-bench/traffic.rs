//! Messages put into logs without a network, by the switch's own store and files: for what is measured of
//! the disk alone.

use std::path::{Path, PathBuf};

use iris::placement::{CoreId, HashKey, ShardId, UserHash, user_hash};
use iris::runtime::storage::{BlockingLog, DataDir};
use iris::shard::command::Append;
use iris::shard::{Input, ReplyTo};
use iris::stamp::Stamp;
use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};

/// A day in the year 2026, in Unix milliseconds.
pub const TIME_MS: u64 = 1_790_000_000_000;
/// The device that sends, and the one that reads.
pub const DEVICE: &str = "phone";
/// Who sends, when nobody else is named.
pub const SENDER: &str = "sender";

/// A directory that is removed, however the measurement ends.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in `parent`.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn new(parent: &Path, what: &str) -> Result<Self, String> {
        let path = parent.join(format!("iris-bench-{what}-{}.tmp", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| {
            format!(
                "cannot make {}: {error}; give --data DIR that exists and is writable",
                path.display()
            )
        })?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Does `work` for each log, in parallel, as the switch's cores do.
///
/// # Errors
/// The first of what went wrong.
pub fn on_all_logs<T: Send>(
    logs: u32,
    work: impl Fn(u32) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..logs)
            .map(|log| scope.spawn(move || work(log)))
            .collect();
        let ends = threads.into_iter().map(|thread| {
            let end = thread.join();
            end.unwrap_or_else(|_| Err("a thread of the benchmark ended in a panic".to_owned()))
        });
        ends.collect()
    })
}

/// Messages to the users of a data directory.
#[derive(Debug)]
pub struct Traffic {
    key: HashKey,
    shards: u64,
    logs: u64,
    /// Of the users' names.
    prefix: String,
    body: Vec<u8>,
}

impl Traffic {
    /// Messages of so many bytes.
    #[must_use]
    pub fn new(data: &DataDir, body: usize) -> Self {
        Self::to(data, body, "user-")
    }

    /// The same, to users whose names begin with this.
    #[must_use]
    pub fn to(data: &DataDir, body: usize, prefix: &str) -> Self {
        let super_block = data.super_block();
        Self {
            key: HashKey(super_block.hash_key),
            shards: u64::from(super_block.shards),
            logs: u64::from(super_block.logs),
            prefix: prefix.to_owned(),
            body: vec![0x5a; body],
        }
    }

    /// Of the first `users` users those whose inbox is in this log.
    #[must_use]
    pub fn users_of(&self, log: u32, users: u64) -> Vec<u64> {
        let mine = |user: &u64| u64::from(self.place(*user).1.0) % self.logs == u64::from(log);
        (0..users).filter(mine).collect()
    }

    fn place(&self, user: u64) -> (UserHash, ShardId) {
        let hash = user_hash(self.key, &self.name(user));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below the number of shards"
        )]
        let shard = ShardId((hash.0 % self.shards) as u16);
        (hash, shard)
    }

    fn name(&self, user: u64) -> String {
        format!("{}{user}", self.prefix)
    }

    /// Proposes message `n` to a user.
    pub fn send(&self, log: &mut BlockingLog, user: u64, n: u64) {
        self.send_from(log, SENDER, user, n);
    }

    /// Proposes message `n` of this sender to a user.
    pub fn send_from(&self, log: &mut BlockingLog, from: &str, user: u64, n: u64) {
        let recipient = self.name(user);
        let append = Append {
            to: &recipient,
            from,
            device: DEVICE,
            epoch: SendEpoch(1),
            n: SendNumber(n),
            time_ms: TIME_MS,
            seq: Seq(0),
            id: MessageId([7; 16]),
            body: &self.body,
        };
        let mut command = Vec::with_capacity(append.encoded_len());
        append.encode(&mut command);
        let (to, shard) = self.place(user);
        let input = Input::Append {
            to,
            command: &command,
            room: true,
            reply: reply(n),
        };
        log.step(shard, input);
    }

    /// Makes the device of a user known.
    pub fn register(&self, log: &mut BlockingLog, user: u64) {
        self.register_device(log, user, DEVICE);
    }

    /// Makes this device of a user known.
    pub fn register_device(&self, log: &mut BlockingLog, user: u64, device: &str) {
        let (hash, shard) = self.place(user);
        let register = Input::Register {
            hash,
            user: &self.name(user),
            device,
            reply: reply(0),
        };
        log.step(shard, register);
    }

    /// That device has all up to entry `seq`.
    pub fn acknowledge(&self, log: &mut BlockingLog, user: u64, seq: u64) {
        self.acknowledge_device(log, user, DEVICE, seq);
    }

    /// This device has all up to entry `seq`.
    pub fn acknowledge_device(&self, log: &mut BlockingLog, user: u64, device: &str, seq: u64) {
        let acknowledge = Input::Acknowledge {
            user: &self.name(user),
            device,
            seq: Seq(seq),
        };
        log.step(self.place(user).1, acknowledge);
    }
}

/// Where an answer would go.
#[must_use]
pub fn reply(tag: u64) -> ReplyTo {
    ReplyTo {
        core: CoreId(0),
        slot: 0,
        generation: 0,
        tag,
        read: Stamp::default(),
    }
}
