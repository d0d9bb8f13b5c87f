//! What can be had of a shard whose log is damaged, and exactly what cannot.
//!
//! ```text
//!   entries:   1 2 3 │ lost │ 6 7 8         each message in them says whose it is, and its seq
//!   inbox:     … 41 42 │ ? │ 45 46          so 43 and 44 are lost, for certain
//! ```
//!
//! After a hole a message tells by its own `seq` how many of its inbox's entries are missing before it.
//! An inbox that no later message speaks of may have lost entries at its end; nobody can know. Its seqs
//! are then skipped, up to the most that the hole can have held: a `seq` must never be given out twice,
//! or a device that has the first message takes the second one for a repetition.
//!
//! A person decides that this is done (`iris log salvage`); a running switch never does it.

use hashbrown::HashMap;
use iris_proto::id::Seq;

use super::command::{self, Append, Command};
use super::slot::Slot;
use super::user::UserSlot;
use super::{Entry, Shard, day_of};
use crate::log::limits::ITEM_HEADER_BYTES;
use crate::log::{ItemError, item_at};
use crate::placement::user_hash;
use crate::planted::{self, Bug};

/// Entries of one inbox that do not exist any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Whose inbox.
    pub user: String,
    /// The first one.
    pub first: Seq,
    /// The last one.
    pub last: Seq,
    /// Whether they surely existed. If not, they are skipped because they may have.
    pub proven: bool,
}

/// A shard on its way out of the ruins.
#[derive(Debug)]
pub struct Salvage {
    shard: Shard,
    losses: Vec<Loss>,
    /// Messages that all holes so far can have held at most.
    doubted: u64,
    /// What `doubted` was when a message last spoke of a user: before it nothing is in doubt.
    settled: HashMap<UserSlot, u64>,
}

impl Salvage {
    /// Begins with what was provable before the first hole.
    #[must_use]
    pub fn new(shard: Shard) -> Self {
        Self {
            shard,
            losses: Vec::new(),
            doubted: 0,
            settled: HashMap::new(),
        }
    }

    /// A part of the log is missing that can have held up to `messages` messages of this shard.
    pub fn hole(&mut self, messages: u64) {
        self.doubted += messages;
    }

    /// Takes what is whole of an entry, whatever was lost before it. Its number, time and count of items
    /// are proven, its items not: what of them is not whole is lost.
    pub fn entry(&mut self, entry: &Entry<'_>, items: u64) {
        if entry.index <= self.shard.applied {
            return;
        }
        let (mut offset, mut seen) = (0, 0);
        while let Some(rest) = entry.payload.get(offset..).filter(|rest| !rest.is_empty()) {
            match item_at(rest) {
                Ok((bytes, len)) => {
                    self.item(entry, offset, bytes);
                    offset += len;
                }
                Err(ItemError::Crc { .. }) => offset += self.broken_item(entry, rest),
                Err(_) => break,
            }
            seen += 1;
        }
        self.doubted += items.saturating_sub(seen);
        self.shard.applied = entry.index;
    }

    fn item(&mut self, entry: &Entry<'_>, offset: usize, bytes: &[u8]) {
        match command::decode(bytes) {
            Ok(Command::Append(append)) => {
                let position = entry.position + offset as u64;
                let item_bytes = ITEM_HEADER_BYTES + bytes.len();
                let slot = Slot::message(position, item_bytes, entry.time_ms);
                self.append(&append, slot, entry.time_ms);
            }
            Ok(Command::Register { user, device }) => {
                let slot = self.user(user);
                self.shard.users.get_mut(slot).register(device);
            }
            Ok(Command::Cursor { user, device, seq }) => {
                let slot = self.user(user);
                self.shard.users.get_mut(slot).acknowledge(device, seq);
            }
            Ok(Command::Trim { user, oldest }) => self.shard.apply_trim(user, oldest),
            Err(_) => {}
        }
    }

    /// An item whose bytes are not what was written; how many they are. If what they still say names the
    /// very entry that comes next in a known inbox, it is that one; else it may be anybody's.
    fn broken_item(&mut self, entry: &Entry<'_>, rest: &[u8]) -> usize {
        let len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let payload = &rest[ITEM_HEADER_BYTES..ITEM_HEADER_BYTES + len];
        if let Ok(Command::Append(append)) = command::decode(payload)
            && let Some(slot) = self.shard.find(append.to)
            && self.shard.users.get(slot).head().0 + 1 == append.seq.0
        {
            self.skip(slot, append.seq, entry.time_ms);
            self.lose(append.to, append.seq, append.seq, true);
        } else {
            self.doubted += 1;
        }
        ITEM_HEADER_BYTES + len
    }

    /// Entries up to `index` are known to have existed: none of their numbers is given out again.
    pub fn seen(&mut self, index: u64) {
        self.shard.applied = self.shard.applied.max(index);
    }

    /// An entry whose message cannot be read any more.
    pub fn unreadable(&mut self, user: &str, seq: Seq) {
        let slot = self.user(user);
        let inbox = self.shard.users.get_mut(slot);
        let Some(old) = inbox.slot(seq) else { return };
        if old.position().is_some() {
            inbox.replace(seq, Slot::gap(old.time_ms()));
            self.lose(user, seq, seq, true);
        }
    }

    /// The shard as it can go on, and what it has lost. Inboxes whose end is in doubt skip what they may
    /// have lost.
    #[must_use]
    pub fn finish(mut self) -> (Shard, Vec<Loss>) {
        for nth in 0..self.shard.users.len() {
            let slot = self.shard.users.slot(nth);
            let settled = self.settled.get(&slot).copied().unwrap_or(0);
            let messages = (self.doubted - settled).min(self.shard.config.inbox_entries_max);
            if messages == 0 {
                continue;
            }
            let user = self.shard.users.get(slot);
            let name = user.name().to_owned();
            let (first, last) = (Seq(user.head().0 + 1), Seq(user.head().0 + messages));
            self.skip(slot, last, 0);
            self.lose(&name, first, last, false);
        }
        self.shard.changes.clear();
        (self.shard, self.losses)
    }

    /// The shard so far.
    #[must_use]
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// A message was written again elsewhere.
    pub fn relocate(&mut self, append: &Append<'_>, position: u64) {
        if let Some(user) = self.shard.find(append.to) {
            self.shard.relocate(user, append.seq, position);
        }
    }

    fn user(&mut self, name: &str) -> UserSlot {
        let hash = user_hash(self.shard.key, name);
        self.shard.users.find_or_create(name, hash)
    }

    fn append(&mut self, append: &Append<'_>, message: Slot, time_ms: u64) {
        let slot = self.user(append.to);
        let head = self.shard.users.get(slot).head();
        if append.seq <= head {
            return; // it is there already, or its place was given up
        }
        if append.seq.0 > head.0 + 1 {
            let (first, last) = (Seq(head.0 + 1), Seq(append.seq.0 - 1));
            self.skip(slot, last, time_ms);
            self.lose(append.to, first, last, true);
        }
        self.shard.users.get_mut(slot).append(message);
        self.settled.insert(slot, self.doubted);
        let pair = self.shard.fingerprint(append);
        if append.n > self.shard.pairs.last(pair) {
            self.shard.pairs.set(pair, append.n, day_of(time_ms));
        }
    }

    fn skip(&mut self, slot: UserSlot, last: Seq, time_ms: u64) {
        let user = self.shard.users.get_mut(slot);
        while user.head() < last && !planted::is(Bug::GapSilent) {
            user.append(Slot::gap(time_ms));
        }
    }

    fn lose(&mut self, user: &str, first: Seq, last: Seq, proven: bool) {
        if let Some(loss) = self.losses.last_mut()
            && loss.user == user
            && loss.proven == proven
            && loss.last.0 + 1 == first.0
        {
            loss.last = last;
            return;
        }
        self.losses.push(Loss {
            user: user.to_owned(),
            first,
            last,
            proven,
        });
    }
}
