//! A shard: the inboxes, devices and send streams of a fixed part of the users, as a deterministic
//! state machine fed by a durable log.
//!
//! ```text
//!   Input ──▶ step ──▶ open batch ──▶ (log writes and syncs it) ──▶ Committed ──▶ apply ──▶ Effect
//!               │                                                                    ▲
//!               └─▶ Effect: refused, or accepted long ago               replay ──────┘
//! ```
//!
//! `step` judges a proposal against the applied state plus what is under way, and either answers at
//! once or puts a command into the open batch. `apply` alone changes state. It is a function of
//! (state, entry): no clock, no randomness, no I/O; time travels inside the entry. It is the same for
//! a batch that this process wrote and for one that a replay reads.
//!
//! Invariants, checked where bytes come back from the log:
//! - nothing is answered `Accepted`, and no entry is visible, before its batch is `Committed`;
//! - batches are applied in the order of their index, without a gap.
//!
//! A shard knows no connection (see `session`), stores no body (see `log`), and has no timer.

pub mod command;
mod config;
mod devices;
pub mod pairs;
pub mod retention;
pub mod salvage;
pub mod slot;
pub mod state;
pub mod user;

use std::collections::VecDeque;

use hashbrown::HashMap;
use iris_proto::id::{SendNumber, Seq};
use iris_proto::limits::INBOX_ENTRIES_MAX;
use thiserror::Error;

use crate::log::limits::ITEM_HEADER_BYTES;
use crate::log::{ItemError, item_encode_with, items};
use crate::placement::{CoreId, HashKey, ShardId, UserHash, user_hash};
use crate::planted::{self, Bug};
use crate::stamp::Stamp;
use command::{Append, Command, CommandError};
pub use config::ShardConfig;
use devices::Starting;
use pairs::{Fingerprint, Pairs};
use retention::TRIM_ENTRIES_MIN;
use slot::Slot;
use user::{UserSlot, Users};

/// Bytes of one batch, which is one entry of the log. Full: the next batch is opened behind it.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Emptied batches that a shard keeps for the next ones, and how large each may stay.
const SPARE_BATCHES_MAX: usize = 2;
const SPARE_BATCH_BYTES_MAX: usize = 16 * 1024;
/// The term under which a single node writes. Elections will raise it.
pub const SINGLE_NODE_TERM: u32 = 1;

const MS_PER_DAY: u64 = 24 * 60 * 60 * 1_000;

/// Whom an answer goes to: a session's place on a core, and the tag of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The core that the session lives on.
    pub core: CoreId,
    /// The session's slot there.
    pub slot: u32,
    /// Distinguishes the session from others in the same slot before and after it.
    pub generation: u32,
    /// The client's name for its request.
    pub tag: u64,
    /// When the frame of the request was read.
    pub read: Stamp,
}

/// What can happen to a shard.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Somebody wants a message in an inbox of this shard.
    Append {
        /// Hash of the recipient.
        to: UserHash,
        /// An encoded [`Append`].
        command: &'a [u8],
        /// Whether the log has room for new messages.
        room: bool,
        /// Whom to answer.
        reply: ReplyTo,
    },
    /// A device logs in that may be new.
    Register {
        /// Hash of the user.
        hash: UserHash,
        /// The user.
        user: &'a str,
        /// The device.
        device: &'a str,
        /// Whom to answer.
        reply: ReplyTo,
    },
    /// A device has everything up to `seq`.
    Acknowledge {
        /// The user.
        user: &'a str,
        /// The device.
        device: &'a str,
        /// The last entry it has.
        seq: Seq,
    },
    /// Some time has passed: let history leave that is due, of the next so many users.
    Sweep {
        /// Users to look at.
        users: usize,
    },
    /// The oldest batch taken is on stable storage.
    Committed {
        /// Where in the log its items begin.
        position: u64,
    },
}

/// Why a send was not taken. Nothing of it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The number is not the next one of its stream.
    Gap {
        /// The number that would be taken.
        expected: SendNumber,
    },
    /// The recipient has as many unacknowledged entries as an inbox may have.
    InboxFull,
    /// The disk has no room for new messages.
    DiskFull,
    /// The user has as many devices as are allowed.
    TooManyDevices,
    /// The shard is damaged and not served. Said for it: a shard that is there never says so.
    Unavailable,
    /// The log has more to write than it may hold, and has had for long. Said for the shard, too.
    Overloaded,
}

/// What the shell must do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell a sender that its message is durable.
    Accepted {
        /// Whom to tell.
        reply: ReplyTo,
        /// The message's number.
        n: SendNumber,
        /// Where in the log it lies, if it has just become durable; 0 for one that was before.
        at: u64,
    },
    /// Tell somebody that nothing was done, and why.
    Refused {
        /// Whom to tell.
        reply: ReplyTo,
        /// Why.
        refusal: Refusal,
    },
    /// A device is known, durably.
    Registered {
        /// Who asked.
        reply: ReplyTo,
    },
    /// An inbox has entries that were not there before: let its sessions pull.
    Grown {
        /// Whose inbox.
        user: UserSlot,
    },
}

/// An entry that cannot be applied. The bytes passed their checks, so this is another version's log
/// or a bug; the shard must not go on.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The entry is not the next one.
    #[error(
        "shard {shard} has applied entry {applied} and met entry {index}; restore the log from a backup"
    )]
    Order {
        /// The shard.
        shard: u16,
        /// Index of the last entry applied.
        applied: u64,
        /// Index of the entry met.
        index: u64,
    },
    /// An item's own frame is bad.
    #[error("shard {shard}, entry {index}: {source}")]
    Item {
        /// The shard.
        shard: u16,
        /// Index of the entry.
        index: u64,
        /// What is wrong.
        source: ItemError,
    },
    /// An item is not a command.
    #[error("shard {shard}, entry {index}: {source}")]
    Command {
        /// The shard.
        shard: u16,
        /// Index of the entry.
        index: u64,
        /// What is wrong.
        source: CommandError,
    },
}

/// A batch of commands as the log holds it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Number of the entry in its shard, from 1.
    pub index: u64,
    /// Under which leadership it was written.
    pub term: u32,
    /// When it was opened, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The items.
    pub payload: &'a [u8],
    /// Where in the log `payload` begins.
    pub position: u64,
}

/// Commands on their way to the log, and whom to answer for each.
#[derive(Debug, Default)]
pub struct Batch {
    index: u64,
    time_ms: u64,
    payload: Vec<u8>,
    /// One for each item.
    replies: Vec<Option<ReplyTo>>,
    /// Answers that wait for this batch because they follow a send in it, and behind how many of its
    /// items each one stands.
    answers: Vec<(usize, Effect)>,
}

impl Batch {
    /// Number of the entry in its shard.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// When it was opened, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The items as the log will hold them.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Commands in it.
    #[must_use]
    pub fn items(&self) -> usize {
        self.replies.len()
    }
}

/// What is proposed of a send stream and not yet applied.
#[derive(Clone, Copy, Debug)]
struct Underway {
    last: SendNumber,
    /// Index of the batch that holds `last`.
    index: u64,
}

/// Bytes of messages that came to, or left, a place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where the message's item begins.
    pub position: u64,
    /// Bytes that inboxes refer to there from now on, more or fewer.
    pub bytes: i64,
}

/// The state machine of one shard.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    key: HashKey,
    config: ShardConfig,
    // State: changed by `apply` alone.
    users: Users,
    pairs: Pairs,
    applied: u64,
    // Under way: forgotten by a restart, and then nobody was answered.
    open: VecDeque<Batch>,
    open_bytes: usize,
    taken: VecDeque<Batch>,
    spare: Vec<Batch>,
    scratch: Vec<u8>,
    streams: HashMap<Fingerprint, Underway>,
    appending: HashMap<UserHash, u64>,
    /// Where the devices start that are about to be known, the lowest of each user, and the index of the
    /// batch that makes the last of them known: from now on their inboxes wait for these too.
    starting: HashMap<UserHash, Starting>,
    /// Where messages came to lie and ceased to be needed, since it was last asked.
    changes: Vec<Change>,
    /// Users whose cursors moved in the entry at hand.
    acknowledged: Vec<UserSlot>,
    /// The user that the next sweep begins with.
    swept: usize,
    /// Messages in applied entries that did not follow what was before them, and are not stored.
    strayed: u64,
}

impl Shard {
    /// An empty shard.
    #[must_use]
    pub fn new(id: ShardId, key: HashKey, config: ShardConfig) -> Self {
        let ShardConfig {
            inbox_entries_max,
            batch_bytes_max,
            ..
        } = config;
        assert!(inbox_entries_max > 0 && inbox_entries_max <= INBOX_ENTRIES_MAX * 100);
        assert!(batch_bytes_max > 0 && batch_bytes_max <= BATCH_BYTES_MAX);
        Self {
            id,
            key,
            config,
            users: Users::default(),
            pairs: Pairs::default(),
            applied: 0,
            open: VecDeque::new(),
            open_bytes: 0,
            taken: VecDeque::new(),
            spare: Vec::new(),
            scratch: Vec::new(),
            streams: HashMap::new(),
            appending: HashMap::new(),
            starting: HashMap::new(),
            changes: Vec::new(),
            acknowledged: Vec::new(),
            swept: 0,
            strayed: 0,
        }
    }

    /// Takes one input to its end. Never blocks, never fails. `now_ms` is in milliseconds since the
    /// Unix epoch.
    pub fn step(&mut self, now_ms: u64, input: Input<'_>, effects: &mut Vec<Effect>) {
        match input {
            Input::Append {
                to,
                command,
                room,
                reply,
            } => {
                self.append(now_ms, to, command, room, reply, effects);
            }
            Input::Register {
                hash,
                user,
                device,
                reply,
            } => {
                self.register(now_ms, hash, user, device, reply, effects);
            }
            Input::Acknowledge { user, device, seq } => {
                if let Some(slot) = self.users.find(user, user_hash(self.key, user)) {
                    self.users.get_mut(slot).claim(device, seq);
                    if planted::is(Bug::CursorBeforeCommit) {
                        self.users.get_mut(slot).acknowledge(device, seq);
                    }
                    if planted::is(Bug::ClaimLost) && seq == self.users.get(slot).head() {
                        return;
                    }
                }
                self.propose_command(now_ms, None, &Command::Cursor { user, device, seq });
            }
            Input::Sweep { users } => self.sweep(now_ms, users),
            Input::Committed { position } => self.committed(now_ms, position, effects),
        }
    }

    /// The shard's number.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The users of this shard.
    #[must_use]
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Active send streams remembered.
    #[must_use]
    pub fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    /// Index of the last entry applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Messages in applied entries that did not follow what was before them, and are not stored. While
    /// one node writes alone there is none, unless entries are applied to a state that is not theirs.
    #[must_use]
    pub fn strayed(&self) -> u64 {
        self.strayed
    }

    /// Bytes of all batches that have not been taken.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    /// Bytes of the next batch to write, if there is one.
    #[must_use]
    pub fn ready_bytes(&self) -> Option<usize> {
        self.open.front().map(|batch| batch.payload.len())
    }

    /// Hands out the next batch for the log. It stays here, taken, until it is committed.
    pub fn take(&mut self) -> Option<&Batch> {
        let batch = self.open.pop_front()?;
        self.open_bytes -= batch.payload.len();
        self.taken.push_back(batch);
        self.taken.back()
    }

    fn append(
        &mut self,
        now_ms: u64,
        to: UserHash,
        command: &[u8],
        room: bool,
        reply: ReplyTo,
        effects: &mut Vec<Effect>,
    ) {
        let Ok(Command::Append(append)) = command::decode(command) else {
            unreachable!("the session encoded an append");
        };
        let pair = self.fingerprint(&append);
        let n = append.n;
        let accepted = self.pairs.last(pair);
        let proposed = self
            .streams
            .get(&pair)
            .map_or(accepted, |underway| underway.last);
        let refused = |refusal| Effect::Refused { reply, refusal };
        let answer = if n.0 == 0 || n.0 > proposed.0 + 1 || n.0 > pairs::SEND_NUMBER_MAX {
            refused(Refusal::Gap {
                expected: SendNumber(proposed.0 + 1),
            })
        } else if n <= proposed && !(planted::is(Bug::RetryTwice) && n == accepted) {
            Effect::Accepted { reply, n, at: 0 }
        } else if !room {
            refused(Refusal::DiskFull)
        } else if self.inbox_is_full(append.to, to) {
            refused(Refusal::InboxFull)
        } else {
            let coming = self.appending.get(&to).copied().unwrap_or(0);
            let seq = Seq(self.head(append.to, to).0 + coming + 1);
            let early = planted::is(Bug::AcceptBeforeSync);
            if early {
                effects.push(Effect::Accepted { reply, n, at: 0 });
            }
            let reply = Some(reply).filter(|_| !early);
            let index = self.propose(now_ms, reply, command, Some(seq));
            self.streams.insert(pair, Underway { last: n, index });
            self.appending.insert(to, coming + 1);
            return;
        };
        // Answers of one stream keep its order: behind sends under way, this one waits for them. A
        // repetition of a send under way is among these, and so is never answered too early.
        match self.streams.get(&pair) {
            None => effects.push(answer),
            Some(underway) => {
                let index = underway.index;
                let batch = self.batch_mut(index);
                batch.answers.push((batch.replies.len(), answer));
            }
        }
    }

    fn head(&self, user: &str, hash: UserHash) -> Seq {
        self.users
            .find(user, hash)
            .map_or(self.users.begins(), |slot| self.users.get(slot).head())
    }

    fn inbox_is_full(&self, user: &str, hash: UserHash) -> bool {
        let floor = self.floor(user, hash);
        let stored = self
            .users
            .find(user, hash)
            .map_or(0, |slot| self.users.get(slot).pending_from(floor));
        let coming = self.appending.get(&hash).copied().unwrap_or(0);
        stored + coming >= self.config.inbox_entries_max
    }

    fn batch_mut(&mut self, index: u64) -> &mut Batch {
        let batch = self
            .taken
            .iter_mut()
            .chain(&mut self.open)
            .find(|batch| batch.index == index);
        let Some(batch) = batch else {
            unreachable!("a stream is under way in a batch that is neither open nor taken");
        };
        batch
    }

    fn propose_command(
        &mut self,
        now_ms: u64,
        reply: Option<ReplyTo>,
        command: &Command<'_>,
    ) -> u64 {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        command.encode(&mut bytes);
        let index = self.propose(now_ms, reply, &bytes, None);
        self.scratch = bytes;
        index
    }

    /// Puts a command into the open batch, or into a new one, and returns the batch's index. `seq` is
    /// the place in the inbox that an append gets.
    fn propose(
        &mut self,
        now_ms: u64,
        reply: Option<ReplyTo>,
        command: &[u8],
        seq: Option<Seq>,
    ) -> u64 {
        if self
            .open
            .back()
            .is_none_or(|batch| batch.payload.len() >= self.config.batch_bytes_max)
        {
            let mut batch = self.spare.pop().unwrap_or_default();
            batch.index = self.applied + (self.taken.len() + self.open.len()) as u64 + 1;
            batch.time_ms = now_ms;
            self.open.push_back(batch);
        }
        self.put(reply, command, seq)
    }

    /// Puts a command into the newest batch, which is open.
    fn put(&mut self, reply: Option<ReplyTo>, command: &[u8], seq: Option<Seq>) -> u64 {
        let Some(batch) = self.open.back_mut() else {
            unreachable!("a command follows one that was just put into a batch")
        };
        let before = batch.payload.len();
        item_encode_with(&mut batch.payload, |payload| {
            let at = payload.len();
            payload.extend_from_slice(command);
            if let Some(seq) = seq {
                command::set_seq(&mut payload[at..], seq);
            }
        });
        self.open_bytes += batch.payload.len() - before;
        batch.replies.push(reply);
        batch.index
    }

    fn committed(&mut self, now_ms: u64, position: u64, effects: &mut Vec<Effect>) {
        let Some(mut batch) = self.taken.pop_front() else {
            unreachable!("the log committed what was never taken");
        };
        let entry = Entry {
            index: batch.index,
            term: SINGLE_NODE_TERM,
            time_ms: batch.time_ms,
            payload: &batch.payload,
            position,
        };
        if let Err(error) = self.apply_all(&entry, &batch.replies, &batch.answers, effects) {
            unreachable!("a batch of this process is not applicable: {error}");
        }
        batch.answers.clear();
        if self.spare.len() < SPARE_BATCHES_MAX {
            batch.payload.clear();
            batch.payload.shrink_to(SPARE_BATCH_BYTES_MAX);
            batch.replies.clear();
            self.spare.push(batch);
        }
        while let Some(slot) = self.acknowledged.pop() {
            self.propose_trim(now_ms, slot, TRIM_ENTRIES_MIN);
        }
    }

    /// Where messages came to lie and ceased to be needed since the last call.
    pub fn changes(&mut self) -> std::vec::Drain<'_, Change> {
        self.changes.drain(..)
    }

    /// Applies one entry: the only place where state changes. `replies` has one place for each item,
    /// or is empty on a replay, where nobody waits.
    pub fn apply(
        &mut self,
        entry: &Entry<'_>,
        replies: &[Option<ReplyTo>],
        effects: &mut Vec<Effect>,
    ) -> Result<(), ApplyError> {
        self.apply_all(entry, replies, &[], effects)
    }

    /// The same, with further answers, each behind so many of the items.
    fn apply_all(
        &mut self,
        entry: &Entry<'_>,
        replies: &[Option<ReplyTo>],
        answers: &[(usize, Effect)],
        effects: &mut Vec<Effect>,
    ) -> Result<(), ApplyError> {
        let mut answers = answers.iter().peekable();
        let (shard, index) = (self.id.0, entry.index);
        if index != self.applied + 1 {
            return Err(ApplyError::Order {
                shard,
                applied: self.applied,
                index,
            });
        }
        for (number, item) in items(entry.payload).enumerate() {
            let (offset, bytes) = item.map_err(|source| ApplyError::Item {
                shard,
                index,
                source,
            })?;
            let command = command::decode(bytes).map_err(|source| ApplyError::Command {
                shard,
                index,
                source,
            })?;
            let reply = replies.get(number).copied().flatten();
            match command {
                Command::Append(append) => {
                    let position = entry.position + offset as u64;
                    let item_bytes = ITEM_HEADER_BYTES + bytes.len();
                    let slot = Slot::message(position, item_bytes, entry.time_ms);
                    self.apply_append(entry, &append, slot, reply, effects);
                }
                Command::Register { user, device } => {
                    self.apply_register(user, device, reply, effects);
                }
                Command::Cursor { user, device, seq } => {
                    let slot = self.users.find_or_create(user, user_hash(self.key, user));
                    self.users.get_mut(slot).acknowledge(device, seq);
                    if !replies.is_empty() {
                        self.acknowledged.push(slot);
                    }
                }
                Command::Trim { user, oldest } => self.apply_trim(user, oldest),
            }
            let is_due = |(behind, _): &&(usize, Effect)| *behind <= number + 1;
            while let Some((_, answer)) = answers.next_if(is_due) {
                effects.push(*answer);
            }
        }
        self.starting.retain(|_, starting| starting.index != index);
        self.applied = index;
        Ok(())
    }

    /// A message has been written again elsewhere: its entry refers to the new place, if it is still
    /// kept. Applied twice it changes nothing more. Not part of the replicated state.
    pub fn relocate(&mut self, user: UserSlot, seq: Seq, position: u64) {
        let user = self.users.get_mut(user);
        let Some(slot) = user.slot(seq) else { return };
        let Some(old) = slot.position() else { return };
        let bytes = slot.bytes().cast_signed();
        user.replace(seq, slot.moved(position));
        self.changes.push(Change { position, bytes });
        self.changes.push(Change {
            position: old,
            bytes: -bytes,
        });
    }

    /// A user of this shard by name.
    #[must_use]
    pub fn find(&self, user: &str) -> Option<UserSlot> {
        self.users.find(user, user_hash(self.key, user))
    }

    /// The entry whose message is this append, if the inbox refers to it at `position`.
    #[must_use]
    pub fn entry_at(&self, append: &Append<'_>, position: u64) -> Option<UserSlot> {
        let found = self.users.find(append.to, user_hash(self.key, append.to))?;
        let slot = self.users.get(found).slot(append.seq)?;
        (slot.position() == Some(position)).then_some(found)
    }

    fn apply_append(
        &mut self,
        entry: &Entry<'_>,
        append: &Append<'_>,
        slot: Slot,
        reply: Option<ReplyTo>,
        effects: &mut Vec<Effect>,
    ) {
        let hash = user_hash(self.key, append.to);
        let pair = self.fingerprint(append);
        self.forget_underway(pair, hash, entry.index);
        let last = self.pairs.last(pair);
        // A stream idle for long may have been forgotten after this was proposed: what came between made
        // the table grow. It was the next number then, and the numbers of others stand behind it.
        let is_next = (1..=pairs::SEND_NUMBER_MAX).contains(&append.n.0)
            && (append.n.0 == last.0 + 1 || last.0 == 0 || planted::is(Bug::RetryTwice));
        if is_next && append.seq.0 == self.head(append.to, hash).0 + 1 {
            let user = self.users.find_or_create(append.to, hash);
            self.users.get_mut(user).append(slot);
            self.note(slot);
            self.pairs.set(pair, append.n, day_of(entry.time_ms));
            let at = slot.position().unwrap_or(0);
            effects.extend(reply.map(|reply| Effect::Accepted {
                reply,
                n: append.n,
                at,
            }));
            effects.push(Effect::Grown { user });
            return;
        }
        self.strayed += 1;
        if let Some(reply) = reply {
            // Another leader's entries came between proposal and commit.
            effects.push(if append.n <= last {
                Effect::Accepted {
                    reply,
                    n: append.n,
                    at: 0,
                }
            } else {
                let expected = SendNumber(last.0 + 1);
                Effect::Refused {
                    reply,
                    refusal: Refusal::Gap { expected },
                }
            });
        }
    }

    /// Notes where a message has come to lie.
    fn note(&mut self, slot: Slot) {
        let bytes = slot.bytes().cast_signed();
        let position = slot.position();
        self.changes
            .extend(position.map(|position| Change { position, bytes }));
    }

    fn forget_underway(&mut self, pair: Fingerprint, to: UserHash, index: u64) {
        if self
            .streams
            .get(&pair)
            .is_some_and(|underway| underway.index == index)
        {
            self.streams.remove(&pair);
        }
        if let Some(coming) = self.appending.get_mut(&to) {
            *coming -= 1;
            if *coming == 0 {
                self.appending.remove(&to);
            }
        }
    }

    fn fingerprint(&self, append: &Append<'_>) -> Fingerprint {
        Fingerprint::of(
            self.key,
            append.from,
            append.device,
            append.epoch,
            append.to,
        )
    }
}

/// Days since the Unix epoch; in the year 2149 it stays at the last one.
fn day_of(time_ms: u64) -> u16 {
    u16::try_from(time_ms / MS_PER_DAY).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
