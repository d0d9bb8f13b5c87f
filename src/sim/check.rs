//! The promises, watched from outside.
//!
//! ```text
//!   programs ──▶ what was sent and what became of it ─┐
//!   the wire ──▶ every frame that the switch sends ───┼─▶ compared ◀── what is durable (model) ◀── disk
//!   programs ──▶ what arrived, in which order ────────┘       ▲
//!                                                              └── what the switch believes
//! ```
//!
//! Nothing here asks the switch what is durable: the [`Model`] reads the disk. A promise that does not
//! hold ends the run at once, with the event in which it broke as the last one of the trace.

mod compare;
mod damage;
mod salvage;
mod wire;

use std::collections::BTreeMap;

use iris_proto::client::{Entry, SendFailure, Welcomed};
use iris_proto::id::MessageId;

use super::dice::Dice;
use super::disk::FakeDisk;
use super::model::{MessageNo, Model, message_name, message_no};
use super::net::ConnId;
use super::world::World;
use crate::log::SegmentSize;
use crate::placement::{HashKey, Placement, ShardId};
use crate::store::Store;
use crate::store::salvage::{Loss, Unnamed};
pub use damage::Damage;
use wire::Tap;

/// Milliseconds from a message being read to its proposal at most; after that a full disk refuses it.
const FULL_SLACK_MS: u64 = 100;

/// What a salvage of one log found lost, by shard.
#[derive(Clone, Debug)]
struct Losses {
    entries: Vec<(ShardId, Vec<Loss>)>,
    unnamed: Vec<(ShardId, Unnamed)>,
}

/// What became of a message, as its program was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing yet.
    Waiting,
    /// It is stored.
    Accepted,
    /// It is stored nowhere.
    Refused,
    /// Nobody knows.
    InDoubt,
}

/// A message that a program handed over.
#[derive(Clone, Debug)]
pub struct Message {
    /// Which client.
    pub client: usize,
    /// In which life of its program.
    pub life: u32,
    /// The recipient.
    pub to: usize,
    /// Bytes of the body.
    pub len: usize,
    /// What its program knows.
    pub fate: Fate,
    /// Its place in the inbox, once that is durable.
    pub stored: Option<u64>,
}

/// A device and what it has had, over all lives of its program.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The user's name.
    pub user: String,
    /// The device's name.
    pub device: String,
    /// It receives.
    pub has_inbox: bool,
    /// It had a session.
    pub known: bool,
    /// Everything up to here arrived.
    pub upto: u64,
    /// The highest acknowledgement that its programs gave.
    pub acked: u64,
    /// Entries that a Gap stood for.
    pub gaps: u64,
    /// A salvage lost that the device is known, and with that what held its entries.
    pub is_forgotten: bool,
}

/// Bounds that must hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Unacknowledged entries of an inbox.
    pub inbox_entries_max: u64,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What has been counted, to see that runs did something.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Adds those of another run.
            pub const fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    /// Messages handed over.
    sent,
    /// Entries that arrived at programs.
    delivered,
    /// Sends that failed.
    refused,
    /// Starts.
    starts,
    /// Logs recovered from a checkpoint.
    from_checkpoint,
    /// Checkpoints found unusable.
    unusable_checkpoints,
    /// Holes found in logs.
    holes,
    /// Starts that were asked what they would have made of a lost end.
    lost_ends,
    /// Shards found quarantined.
    quarantined,
    /// Bits that rotted.
    rotted,
    /// Messages that could not be read for delivery.
    unreadable,
    /// Logs that were salvaged.
    salvaged,
    /// Entries that were lost in it.
    lost,
    /// Users that were lost in it with all that they had.
    forgotten,
    /// Segments that were removed.
    removed,
    /// Bytes moved by cleaning.
    moved,
    /// Crashes of the process alone.
    kills,
    /// Power losses.
    power_losses,
    /// Orderly stops.
    stops,
    /// Processes that ended themselves after a failed sync.
    aborts,
}

/// All checkers.
#[derive(Debug)]
pub struct Check {
    size: SegmentSize,
    key: HashKey,
    placement: Placement,
    bounds: Bounds,
    /// By log.
    models: Vec<Model>,
    /// Since when each log's store knows that its disk has no room for a further segment.
    full_since_ms: Vec<Option<u64>>,
    /// What a start must find, while there is one.
    expected: Vec<Option<Model>>,
    messages: Vec<Message>,
    /// What a salvage has given up, by log, until the start behind it.
    salvages: Vec<Option<Losses>>,
    /// By client.
    seen: Vec<Seen>,
    taps: BTreeMap<ConnId, Tap>,
    /// The last message stored from a client for a user; of one that only sends, in each life.
    last_stored: BTreeMap<(usize, u32, usize), MessageNo>,
    /// What was done to the disks that a switch cannot be blamed for.
    pub damage: Damage,
    /// What happened.
    pub counts: Counts,
}

/// The body of a message: its number decides it.
#[must_use]
pub fn body_of(no: MessageNo, len: usize) -> Vec<u8> {
    let mut dice = Dice::new(u64::from(no) ^ 0x0b0d_1e50_0b0d_1e50);
    let mut body = Vec::with_capacity(len + 8);
    while body.len() < len {
        body.extend_from_slice(&dice.roll().to_le_bytes());
    }
    body.truncate(len);
    body
}

/// The name of a user.
#[must_use]
pub fn user_name(user: usize) -> String {
    format!("user-{user}")
}

fn user_number(name: &str) -> Option<usize> {
    name.strip_prefix("user-")?.parse().ok()
}

impl Check {
    /// Watches a switch of so many logs, and clients whose users and devices are `people`.
    #[must_use]
    pub fn new(
        size: SegmentSize,
        key: HashKey,
        placement: Placement,
        bounds: Bounds,
        people: &[(usize, String, bool)],
    ) -> Self {
        let logs = usize::from(placement.logs());
        let seen = people.iter().map(|(user, device, has_inbox)| Seen {
            user: user_name(*user),
            device: device.clone(),
            has_inbox: *has_inbox,
            known: false,
            upto: 0,
            acked: 0,
            gaps: 0,
            is_forgotten: false,
        });
        Self {
            size,
            key,
            placement,
            bounds,
            models: vec![Model::new(size, bounds.inbox_entries_max); logs],
            full_since_ms: vec![None; logs],
            expected: vec![None; logs],
            salvages: vec![None; logs],
            messages: Vec::new(),
            seen: seen.collect(),
            taps: BTreeMap::new(),
            last_stored: BTreeMap::new(),
            damage: Damage::default(),
            counts: Counts::default(),
        }
    }

    /// Size of the segments.
    #[must_use]
    pub const fn size(&self) -> SegmentSize {
        self.size
    }

    /// What is durable of a log.
    #[must_use]
    pub fn model(&self, log: usize) -> &Model {
        &self.models[log]
    }

    fn model_of(&self, user: &str) -> &Model {
        &self.models[usize::from(self.placement.log_of(self.shard_of(user)).0)]
    }

    fn shard_of(&self, user: &str) -> ShardId {
        self.placement.shard_of(self.placement.user_hash(user))
    }

    /// What a device has had.
    #[must_use]
    pub fn seen(&self, client: usize) -> &Seen {
        &self.seen[client]
    }

    /// A program is about to hand over a message: its name and body.
    pub fn new_message(
        &mut self,
        client: usize,
        life: u32,
        to: usize,
        len: usize,
    ) -> (MessageNo, MessageId, Vec<u8>) {
        let no = self.messages.len() as MessageNo;
        self.messages.push(Message {
            client,
            life,
            to,
            len,
            fate: Fate::Waiting,
            stored: None,
        });
        self.counts.sent += 1;
        (no, MessageId(message_name(no)), body_of(no, len))
    }

    /// The session would not take the message that was made last.
    pub fn not_taken(&mut self, no: MessageNo) {
        self.messages[no as usize].fate = Fate::Refused;
    }

    /// A program was told that its message is stored.
    pub fn accepted(&mut self, world: &mut World, no: MessageNo) {
        let message = &mut self.messages[no as usize];
        message.fate = Fate::Accepted;
        if message.stored.is_none() {
            world.fail(|| format!("message {no} was told to be accepted and is not durable"));
        }
    }

    /// A program was told that its message will not be sent any more.
    pub fn failed(&mut self, world: &mut World, no: MessageNo, reason: &SendFailure) {
        let message = &mut self.messages[no as usize];
        message.fate = match reason {
            SendFailure::InDoubt => Fate::InDoubt,
            SendFailure::Refused { .. } | SendFailure::NotSent => Fate::Refused,
        };
        self.counts.refused += 1;
        // The first message of a stream that was forgotten counts as new when it is repeated.
        let may_repeat = self.damage.may_lose(no) || world.clock_was_set;
        let is_stored = message.stored.is_some() && !may_repeat;
        if message.fate == Fate::Refused && is_stored {
            world.fail(|| format!("message {no} was told to be stored nowhere ({reason})"));
        }
    }

    /// A program has ended with messages that it will never hear of again.
    pub fn abandoned(&mut self, messages: impl Iterator<Item = MessageNo>) {
        for no in messages {
            let message = &mut self.messages[no as usize];
            if message.fate == Fate::Waiting {
                message.fate = Fate::InDoubt;
            }
        }
    }

    /// Something on a disk has moved: what has become durable is taken over.
    pub fn disk_moved(&mut self, world: &mut World, log: usize, disk: &FakeDisk) {
        if let Err(fault) = self.models[log].follow(disk, true) {
            world.fail(|| format!("log {log}: {fault}"));
        }
        for (no, seq, read_ms) in std::mem::take(&mut self.models[log].news) {
            self.stored(world, no, seq);
            let full_ms = self.full_since_ms[log].filter(|_| !world.clock_was_set);
            if full_ms.is_some_and(|full_ms| read_ms > full_ms + FULL_SLACK_MS) {
                world.fail(|| format!("message {no} was taken by log {log}, whose disk is full"));
            }
        }
    }

    /// The store of a log was told that there is room for a further segment, or none.
    pub fn room(&mut self, world: &World, log: usize, has_room: bool) {
        let since = &mut self.full_since_ms[log];
        // Messages are dated by the wall clock.
        let is_full = !has_room && !world.clock_was_set;
        *since = is_full.then(|| since.unwrap_or(world.unix_ms()));
    }

    fn stored(&mut self, world: &mut World, no: MessageNo, seq: u64) {
        let Some(message) = self.messages.get_mut(no as usize) else {
            return world.fail(|| format!("message {no} is stored and nobody sent it"));
        };
        let before = message.stored.replace(seq);
        // What is lost may come again, and so may what was first of a stream that was forgotten since.
        let may_repeat = self.damage.may_lose(no) || world.clock_was_set;
        if let Some(before) = before.filter(|_| !may_repeat) {
            world.fail(|| format!("message {no} is stored twice, as seq {before} and {seq}"));
        }
        if message.fate == Fate::Refused && !may_repeat {
            world.fail(|| format!("message {no} is stored, and its sender was told it is not"));
        }
        let has_inbox = self.seen[message.client].has_inbox;
        let life = if has_inbox { 0 } else { message.life };
        let stream = (message.client, life, message.to);
        let last = self.last_stored.insert(stream, no);
        if last.is_some_and(|last| last >= no) && !may_repeat {
            world.fail(|| format!("message {no} is stored behind {last:?} of the same device"));
        }
    }

    /// A device has a session, which begins after `welcome.cursor`; it had asked for `position`.
    pub fn welcomed(
        &mut self,
        world: &mut World,
        client: usize,
        position: Option<u64>,
        welcome: &Welcomed,
    ) {
        let cursor = welcome.cursor.0;
        let (user, device) = (
            self.seen[client].user.clone(),
            self.seen[client].device.clone(),
        );
        let inbox = self.model_of(&user).inboxes.get(&user);
        let Some(registered) = inbox.and_then(|inbox| inbox.device(&device)) else {
            if self.seen[client].is_forgotten {
                return; // said before the salvage that lost it, and on its way until now
            }
            return world
                .fail(|| format!("{user}/{device} has a session and is not known durably"));
        };
        let start = registered.start;
        let seen = &mut self.seen[client];
        if !std::mem::replace(&mut seen.known, true) {
            seen.upto = start;
        }
        if std::mem::take(&mut seen.is_forgotten) {
            seen.upto = seen.upto.max(start);
        }
        let (upto, acked) = (seen.upto, seen.acked.max(start));
        if cursor > upto || position.is_none() && cursor > acked {
            world.fail(|| {
                format!(
                    "{user}/{device} has entries up to {upto}, acknowledged {acked}, asked for \
                     {position:?}, and its session begins after {cursor}"
                )
            });
        }
    }

    /// A program acknowledges.
    pub fn acknowledged(&mut self, client: usize, seq: u64) {
        let seen = &mut self.seen[client];
        seen.acked = seen.acked.max(seq);
    }

    /// An entry has arrived at a program.
    pub fn delivered(&mut self, world: &mut World, client: usize, entry: &Entry) {
        self.counts.delivered += 1;
        let seq = entry.seq.0;
        self.is_true(world, client, entry);
        let seen = &mut self.seen[client];
        if seq > seen.upto + 1 {
            let (user, device, upto) = (&seen.user, &seen.device, seen.upto);
            world.fail(|| format!("{user}/{device} got {seq} behind {upto}"));
        }
        seen.upto = seen.upto.max(seq);
    }

    /// Entries do not exist any more, a program was told.
    pub fn gap(&mut self, world: &mut World, client: usize, first: u64, last: u64) {
        let seen = &mut self.seen[client];
        let (user, upto) = (seen.user.clone(), seen.upto);
        if first > upto + 1 || last < first {
            world.fail(|| format!("{user} got a gap {first} to {last} behind {upto}"));
        }
        seen.gaps += last.saturating_sub(upto);
        seen.upto = seen.upto.max(last);
        let inbox = self.model_of(&user).inboxes.get(&user);
        let was_skipped = |seq| inbox.is_some_and(|inbox| inbox.run_at(seq).is_some());
        for seq in first..=last {
            if !self.damage.is_lost(&user, seq) && !was_skipped(seq) {
                world.fail(|| format!("{user} got a gap {first} to {last}, and {seq} is not lost"));
            }
        }
    }

    /// Whether an entry that arrived is what was sent.
    pub fn is_true(&self, world: &mut World, client: usize, entry: &Entry) {
        let user = &self.seen[client].user;
        let seq = entry.seq.0;
        let Some(no) = message_no(&entry.id.0) else {
            return world.fail(|| format!("{user} got {seq}, which nobody sent"));
        };
        let stored = self
            .model_of(user)
            .inboxes
            .get(user)
            .and_then(|inbox| inbox.at(seq));
        if stored != Some(no) {
            return world.fail(|| format!("{user} got message {no} as {seq}, which is {stored:?}"));
        }
        let message = &self.messages[no as usize];
        let sender = &self.seen[message.client];
        let named = *entry.from == *sender.user && *entry.from_device == *sender.device;
        if !named || user_number(user) != Some(message.to) {
            return world.fail(|| format!("message {no} arrived at {user} with other names"));
        }
        if entry.body != body_of(no, message.len) {
            world.fail(|| format!("the body of message {no} is not what was sent"));
        }
    }

    /// What keeps the world from having settled, if anything does.
    #[must_use]
    pub fn unsettled(&self) -> Option<String> {
        let receiving = self
            .seen
            .iter()
            .enumerate()
            .filter(|(_, seen)| seen.has_inbox);
        for (client, seen) in receiving {
            let inbox = self.model_of(&seen.user).inboxes.get(&seen.user);
            let head = inbox.map_or(0, super::model::Inbox::head);
            if !seen.known || seen.upto != head {
                return Some(format!(
                    "{}/{} (client {client}) has entries up to {} of {head}",
                    seen.user, seen.device, seen.upto
                ));
            }
            let cursor = inbox.and_then(|inbox| inbox.device(&seen.device));
            let cursor = cursor.map_or(0, |device| device.cursor);
            if cursor != head {
                return Some(format!(
                    "{}/{} (client {client}) has its cursor at {cursor} of {head}",
                    seen.user, seen.device
                ));
            }
        }
        let waiting = self
            .messages
            .iter()
            .position(|message| message.fate == Fate::Waiting);
        waiting.map(|no| format!("message {no} was not answered"))
    }

    /// At the end: what was accepted is stored, what was refused is not.
    pub fn settle(&self, world: &mut World) {
        for (no, message) in self.messages.iter().enumerate() {
            let wrong = match message.fate {
                Fate::Accepted => message.stored.is_none(),
                Fate::Refused => {
                    let may_repeat = self.damage.may_lose(no as MessageNo) || world.clock_was_set;
                    message.stored.is_some() && !may_repeat
                }
                Fate::Waiting | Fate::InDoubt => false,
            };
            if wrong {
                let (fate, stored) = (&message.fate, message.stored);
                world.fail(|| format!("message {no} was {fate:?} and is stored as {stored:?}"));
            }
        }
    }

    /// What a store did since it began, for the counts.
    pub fn account(&mut self, store: &Store) {
        let status = store.status();
        self.counts.removed += status.removed_segments;
        self.counts.moved += status.moved_bytes;
    }
}
