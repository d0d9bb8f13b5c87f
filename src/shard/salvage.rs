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
//! or a device that has the first message takes the second one for a repetition. The same goes for
//! inboxes whose very names are lost: those that are new begin behind what such a one can have held.
//! And for the indexes of entries: a start from an older checkpoint must see that something is missing.
//!
//! A hole costs a shard something only if the next that names the shard's index behind it says so.
//! A registration that is lost shows when its device acknowledges behind the hole. A TRIM does not: what
//! then cannot be read may have left before, and is called that.
//!
//! A person decides that this is done (`iris log salvage`); a running switch never does it.

use hashbrown::HashMap;
use iris_proto::id::Seq;

use super::command::{self, Append, Command};
use super::slot::Slot;
use super::user::UserSlot;
use super::{Entry, Shard, day_of};
use crate::log::limits::{ALIGN, ITEM_HEADER_BYTES, RECORD_HEADER_BYTES};
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
    /// What is known of them.
    pub certainty: Certainty,
}

/// What is known of entries that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// They existed, were kept, and are lost.
    Proven,
    /// They existed. They are lost, or had left by retention: what would say so may be lost too.
    ExpiredOrLost,
    /// They may have existed; their numbers are skipped.
    Possible,
}

/// A device whose registration is lost. It acknowledged later, so it is known again, from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostDevice {
    /// Whose device.
    pub user: String,
    /// Its name.
    pub device: String,
}

/// What may be missing of a shard beside entries of inboxes that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unnamed {
    /// Entries that each inbox may have held whose very name is lost, at most.
    pub entries: u64,
    /// Registrations of devices that may be lost, at most, beside `devices`.
    pub registrations: u64,
    /// Registrations that are lost for certain.
    pub devices: Vec<LostDevice>,
}

impl Unnamed {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a part of a log can have held of one shard, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Entries.
    pub entries: u64,
    /// Messages in them.
    pub messages: u64,
    /// Registrations of devices in them.
    pub registrations: u64,
}

/// Bytes that a message takes in the log at least: item header, command head, three names of a byte.
const MESSAGE_BYTES_MIN: u64 = ITEM_HEADER_BYTES as u64 + 56 + 3;
/// Bytes of a registration at least: item header, command head, two names of a byte.
const REGISTER_BYTES_MIN: u64 = ITEM_HEADER_BYTES as u64 + 4 + 2;
/// Bytes of an entry at least: a record with one registration.
const ENTRY_BYTES_MIN: u64 =
    RECORD_HEADER_BYTES as u64 + REGISTER_BYTES_MIN.next_multiple_of(ALIGN as u64);

impl Doubt {
    /// What so many bytes of a log can have held; at least one of each.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Self {
        Self {
            entries: (bytes / ENTRY_BYTES_MIN).max(1),
            messages: (bytes / MESSAGE_BYTES_MIN).max(1),
            registrations: (bytes / REGISTER_BYTES_MIN).max(1),
        }
    }

    /// So many items of an entry whose number is known.
    fn items(items: u64) -> Self {
        Self {
            entries: 0,
            messages: items,
            registrations: items,
        }
    }

    fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.messages += other.messages;
        self.registrations += other.registrations;
    }
}

/// A shard on its way out of the ruins.
#[derive(Debug)]
pub struct Salvage {
    shard: Shard,
    losses: Vec<Loss>,
    devices: Vec<LostDevice>,
    /// What can be lost so far.
    doubted: Doubt,
    /// What the holes can have held behind which nothing has named this shard's index yet.
    holes: Doubt,
    /// The messages in `doubted` before the last hole.
    before_hole: u64,
    /// The messages in `doubted` when a message last spoke of a user: before it nothing is in doubt.
    settled: HashMap<UserSlot, u64>,
}

impl Salvage {
    /// Begins with what was provable before the first hole.
    #[must_use]
    pub fn new(shard: Shard) -> Self {
        Self {
            shard,
            losses: Vec::new(),
            devices: Vec::new(),
            doubted: Doubt::default(),
            holes: Doubt::default(),
            before_hole: 0,
            settled: HashMap::new(),
        }
    }

    /// A part of the log is missing that can have held this of the shard.
    pub fn hole(&mut self, doubt: Doubt) {
        self.before_hole = self.doubted.messages;
        self.holes.add(doubt);
    }

    /// The entry `index` was there. If it follows what is applied, or is applied itself, then the holes
    /// before it held nothing of this shard that is not there. A record `inside` of a hole says nothing of
    /// the rest of it.
    fn named(&mut self, index: u64, inside: bool) {
        let holes = self.holes;
        if index > self.shard.applied + 1 {
            let entries = 0; // their number is known now
            self.doubted.add(Doubt { entries, ..holes });
            self.holes = Doubt {
                entries: holes.entries,
                ..Doubt::default()
            };
        }
        if !inside {
            self.holes = Doubt::default();
            self.before_hole = self.doubted.messages;
        }
    }

    /// Takes what is whole of an entry, whatever was lost before it. Its number, time and count of items
    /// are proven, its items not: what of them is not whole is lost. `inside`: it lies in the last hole.
    pub fn entry(&mut self, entry: &Entry<'_>, items: u64, inside: bool) {
        self.named(entry.index, inside);
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
        self.doubted.add(Doubt::items(items.saturating_sub(seen)));
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
                let inbox = self.shard.users.get_mut(slot);
                if inbox.register_again(device, seq) {
                    self.devices.push(LostDevice {
                        user: user.to_owned(),
                        device: device.to_owned(),
                    });
                }
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
            let (seq, existed) = (append.seq, Certainty::Proven);
            self.lose(append.to, seq, seq, existed);
        } else {
            self.doubted.add(Doubt::items(1));
        }
        ITEM_HEADER_BYTES + len
    }

    /// Entries up to `index` are known to have existed: none of their numbers is given out again.
    /// `inside`: what says so lies in the last hole.
    pub fn seen(&mut self, index: u64, inside: bool) {
        // A head is the last entry, not the next one.
        self.named(index + 1, inside);
        self.shard.applied = self.shard.applied.max(index);
    }

    /// An entry whose message cannot be read any more.
    pub fn unreadable(&mut self, user: &str, seq: Seq) {
        let slot = self.user(user);
        let inbox = self.shard.users.get_mut(slot);
        let Some(old) = inbox.slot(seq) else { return };
        if old.position().is_some() {
            inbox.replace(seq, Slot::gap(old.time_ms()));
            self.lose(user, seq, seq, Certainty::Proven);
        }
    }

    /// The shard as it can go on, what its inboxes have lost, and what else may be missing. Inboxes whose
    /// end is in doubt skip what they may have lost, and so does the shard's index.
    #[must_use]
    pub fn finish(mut self) -> (Shard, Vec<Loss>, Unnamed) {
        self.doubted.add(std::mem::take(&mut self.holes));
        let doubted = self.doubted;
        if doubted.messages > 0 {
            // A command that let entries leave may be lost.
            let losses = self.losses.iter_mut();
            for loss in losses.filter(|loss| loss.certainty == Certainty::Proven) {
                loss.certainty = Certainty::ExpiredOrLost;
            }
        }
        for nth in 0..self.shard.users.len() {
            let slot = self.shard.users.slot(nth);
            let settled = self.settled.get(&slot).copied().unwrap_or(0);
            let messages = doubted.messages - settled;
            if messages == 0 {
                continue;
            }
            let user = self.shard.users.get_mut(slot);
            let name = user.name().to_owned();
            let (first, last) = (Seq(user.head().0 + 1), Seq(user.head().0 + messages));
            if !planted::is(Bug::GapSilent) {
                user.skip(messages);
            }
            self.lose(&name, first, last, Certainty::Possible);
        }
        let begins = self.shard.users.begins().0 + doubted.messages;
        if !planted::is(Bug::LostNameAgain) {
            self.shard.users.begin_behind(Seq(begins));
        }
        self.shard.applied += doubted.entries;
        self.shard.changes.clear();
        let unnamed = Unnamed {
            entries: doubted.messages,
            registrations: doubted.registrations,
            devices: self.devices,
        };
        (self.shard, self.losses, unnamed)
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
            // More than the holes can have held was left out by an earlier salvage.
            let settled = self.settled.get(&slot).copied().unwrap_or(0);
            let missing = last.0 - head.0;
            if missing <= self.doubted.messages + self.holes.messages - settled {
                self.skip(slot, last, time_ms);
                self.lose(append.to, first, last, Certainty::Proven);
            } else {
                self.shard.users.get_mut(slot).skip(missing);
                self.lose(append.to, first, last, Certainty::Possible);
            }
        }
        self.shard.users.get_mut(slot).append(message);
        // The rest of a hole that this lies in may hold another.
        let settled = self.settled.entry(slot).or_insert(0);
        *settled = self.before_hole.max(*settled);
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

    fn lose(&mut self, user: &str, first: Seq, last: Seq, certainty: Certainty) {
        if let Some(loss) = self.losses.last_mut()
            && loss.user == user
            && loss.certainty == certainty
            && loss.last.0 + 1 == first.0
        {
            loss.last = last;
            return;
        }
        self.losses.push(Loss {
            user: user.to_owned(),
            first,
            last,
            certainty,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{HashKey, ShardId};
    use crate::shard::ShardConfig;

    fn salvage() -> Salvage {
        let (id, key) = (ShardId(0), HashKey([3; 16]));
        let mut salvage = Salvage::new(Shard::new(id, key, ShardConfig::default()));
        let user = salvage.user("ann");
        let ann = salvage.shard.users.get_mut(user);
        (1..=3).for_each(|at| {
            ann.append(Slot::message(at * 4096, 100, 0));
        });
        salvage
    }

    fn certainties(salvage: Salvage) -> Vec<Certainty> {
        let (_, losses, _) = salvage.finish();
        losses.iter().map(|loss| loss.certainty).collect()
    }

    /// R: D-2
    #[test]
    fn an_entry_that_cannot_be_read_is_lost_unless_what_let_it_leave_may_be_lost_too() {
        let mut whole = salvage();
        whole.unreadable("ann", Seq(1));
        assert_eq!(certainties(whole), [Certainty::Proven]);
        let mut doubted = salvage();
        doubted.hole(Doubt::of_bytes(100));
        doubted.unreadable("ann", Seq(1));
        let told = [Certainty::ExpiredOrLost, Certainty::Possible];
        assert_eq!(certainties(doubted), told);
    }

    /// R: D-2
    #[test]
    fn a_hole_of_other_shards_costs_nothing_and_one_at_the_end_all_that_fits() {
        let mut salvage = salvage();
        salvage.hole(Doubt::of_bytes(10_000));
        salvage.seen(0, true);
        salvage.hole(Doubt::of_bytes(1_000_000_000));
        salvage.seen(0, false);
        salvage.hole(Doubt::of_bytes(70_000_000));
        let (shard, losses, unnamed) = salvage.finish();
        let messages = 70_000_000 / MESSAGE_BYTES_MIN;
        assert!(messages > 1_000_000);
        assert_eq!(
            (losses[0].first, losses[0].last),
            (Seq(4), Seq(3 + messages))
        );
        assert_eq!(unnamed.entries, messages);
        assert_eq!(shard.applied(), 70_000_000 / ENTRY_BYTES_MIN);
        let mut state = Vec::new();
        shard.write_state(&mut state);
        assert!(state.len() < 500, "{} bytes for one run", state.len());
    }
}
