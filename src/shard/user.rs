//! The users of one shard: their inboxes and their devices' cursors.
//!
//! ```text
//!   inbox    oldest … floor … head        floor = lowest cursor of the user's devices
//!                     └ pending ┘         bounded by INBOX_ENTRIES_MAX
//! ```
//!
//! An inbox entry is eight bytes here: the position of its message in the log. Entries that every
//! device has acknowledged are history; the newest `HISTORY_ENTRIES_MAX` of them stay addressable.

use std::collections::VecDeque;

use hashbrown::HashTable;
use iris_proto::id::Seq;
use iris_proto::limits::{DEVICES_PER_USER_MAX, NEW_DEVICE_ENTRIES};

use crate::placement::UserHash;

/// Acknowledged entries of one inbox that can still be fetched. Older ones leave the index.
pub const HISTORY_ENTRIES_MAX: usize = 10_000;

/// Index of a user within its shard. Stable while the process runs, and the same after every replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserSlot(pub u32);

/// One device and its cursor.
#[derive(Debug)]
pub struct Device {
    /// The device's id.
    pub name: Box<str>,
    /// Everything up to here is acknowledged, durably.
    pub cursor: Seq,
    /// Everything up to here is acknowledged, and that is on its way to the log. Not part of the
    /// state: a crash may lose it, which repeats deliveries.
    pub claimed: Seq,
}

impl Device {
    /// Where a session of this device begins unless its client knows better.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.cursor.max(self.claimed)
    }
}

/// One user: inbox and devices.
#[derive(Debug)]
pub struct User {
    name: Box<str>,
    hash: UserHash,
    /// `seq` of the first position kept.
    oldest: u64,
    positions: VecDeque<u64>,
    devices: Vec<Device>,
}

impl User {
    fn new(name: &str, hash: UserHash) -> Self {
        Self {
            name: name.into(),
            hash,
            oldest: 1,
            positions: VecDeque::new(),
            devices: Vec::new(),
        }
    }

    /// The user's id.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The newest entry; zero when nothing ever came.
    #[must_use]
    pub fn head(&self) -> Seq {
        Seq(self.oldest + self.positions.len() as u64 - 1)
    }

    /// The oldest entry that can be read; `head + 1` when there is none.
    #[must_use]
    pub fn oldest(&self) -> Seq {
        Seq(self.oldest)
    }

    /// The lowest cursor of the devices; zero while there is no device.
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.devices
            .iter()
            .map(|device| device.cursor)
            .min()
            .unwrap_or_default()
    }

    /// Entries that some device has not acknowledged.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.head().0 - self.floor().0
    }

    /// Where in the log an entry's message lies; `None` outside `oldest..=head`.
    #[must_use]
    pub fn position(&self, seq: Seq) -> Option<u64> {
        let index = usize::try_from(seq.0.checked_sub(self.oldest)?).ok()?;
        self.positions.get(index).copied()
    }

    /// A device by its id.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| &*device.name == name)
    }

    /// Stores an entry and returns its `seq`.
    pub(super) fn append(&mut self, position: u64) -> Seq {
        self.positions.push_back(position);
        self.head()
    }

    /// Makes a device known; false when the user has as many as are allowed. A first device starts
    /// before everything that is kept; a further one a little before the head, but never behind what
    /// the others still wait for.
    pub(super) fn register(&mut self, name: &str) -> bool {
        if self.device(name).is_some() {
            return true;
        }
        if self.devices.len() >= DEVICES_PER_USER_MAX {
            return false;
        }
        let start = self
            .floor()
            .0
            .min(self.head().0.saturating_sub(NEW_DEVICE_ENTRIES));
        let cursor = Seq(start.max(self.oldest - 1));
        self.devices.push(Device {
            name: name.into(),
            cursor,
            claimed: cursor,
        });
        true
    }

    /// Notes that a device's cursor is about to move.
    pub(super) fn claim(&mut self, name: &str, seq: Seq) {
        let head = self.head();
        if let Some(device) = self.devices.iter_mut().find(|device| &*device.name == name) {
            device.claimed = device.claimed.max(seq.min(head));
        }
    }

    /// Moves a device's cursor forward, never back and never past the head, and lets history leave.
    pub(super) fn acknowledge(&mut self, name: &str, seq: Seq) {
        let head = self.head();
        if let Some(device) = self.devices.iter_mut().find(|device| &*device.name == name) {
            device.cursor = device.cursor.max(seq.min(head));
        }
        let acknowledged = (self.floor().0 + 1).saturating_sub(self.oldest);
        let acknowledged = usize::try_from(acknowledged).unwrap_or(usize::MAX);
        let leaving = acknowledged.saturating_sub(HISTORY_ENTRIES_MAX);
        if leaving > 0 {
            self.positions.drain(..leaving);
            self.oldest += leaving as u64;
        }
        assert!(
            self.oldest <= self.floor().0 + 1,
            "an entry left that a device waits for"
        );
    }

    fn write_state(&self, out: &mut Vec<u8>) {
        write_text(out, &self.name);
        out.extend_from_slice(&self.oldest.to_le_bytes());
        out.extend_from_slice(&(self.positions.len() as u64).to_le_bytes());
        for position in &self.positions {
            out.extend_from_slice(&position.to_le_bytes());
        }
        out.extend_from_slice(&(self.devices.len() as u64).to_le_bytes());
        for device in &self.devices {
            write_text(out, &device.name);
            out.extend_from_slice(&device.cursor.0.to_le_bytes());
        }
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// All users of a shard, in the order in which the log first names them.
#[derive(Debug, Default)]
pub struct Users {
    list: Vec<User>,
    by_name: HashTable<u32>,
}

impl Users {
    /// Users known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether no user is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The slot of a user, if the log ever named it.
    #[must_use]
    pub fn find(&self, name: &str, hash: UserHash) -> Option<UserSlot> {
        self.by_name
            .find(hash.0, |&slot| {
                let user = &self.list[slot as usize];
                user.hash == hash && &*user.name == name
            })
            .map(|&slot| UserSlot(slot))
    }

    /// The user in a slot that this table gave out.
    #[must_use]
    pub fn get(&self, slot: UserSlot) -> &User {
        &self.list[slot.0 as usize]
    }

    pub(super) fn get_mut(&mut self, slot: UserSlot) -> &mut User {
        &mut self.list[slot.0 as usize]
    }

    pub(super) fn find_or_create(&mut self, name: &str, hash: UserHash) -> UserSlot {
        if let Some(slot) = self.find(name, hash) {
            return slot;
        }
        #[expect(
            clippy::expect_used,
            reason = "4 billion users of 150 bytes do not fit a machine"
        )]
        let slot = u32::try_from(self.list.len()).expect("fewer than 2^32 users in one shard");
        self.list.push(User::new(name, hash));
        let list = &self.list;
        self.by_name
            .insert_unique(hash.0, slot, |&slot| list[slot as usize].hash.0);
        UserSlot(slot)
    }

    pub(super) fn write_state(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.list.len() as u64).to_le_bytes());
        for user in &self.list {
            user.write_state(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_with(entries: u64) -> User {
        let mut user = User::new("ann", UserHash(1));
        for position in 0..entries {
            user.append(position);
        }
        user
    }

    /// R: B-3
    #[test]
    fn entries_are_numbered_densely_from_one() {
        let mut user = user_with(0);
        assert_eq!(user.head(), Seq(0));
        assert_eq!(
            (1..=5).map(|i| user.append(i * 10).0).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(user.position(Seq(3)), Some(30));
        assert_eq!(user.position(Seq(0)), None);
        assert_eq!(user.position(Seq(6)), None);
    }

    /// R: B-6
    #[test]
    fn the_first_device_starts_before_everything_that_waited_for_it() {
        let mut user = user_with(5_000);
        assert!(user.register("phone"));
        assert_eq!(
            user.device("phone").map(|device| device.cursor),
            Some(Seq(0))
        );
    }

    /// R: B-6
    #[test]
    fn a_further_device_starts_before_the_newest_thousand_and_never_behind_the_others_cursor() {
        let mut user = user_with(5_000);
        user.register("phone");
        user.acknowledge("phone", Seq(5_000));
        user.register("laptop");
        assert_eq!(
            user.device("laptop").map(|device| device.cursor),
            Some(Seq(4_000))
        );
        let mut user = user_with(5_000);
        user.register("phone");
        user.acknowledge("phone", Seq(7));
        user.register("laptop");
        assert_eq!(
            user.device("laptop").map(|device| device.cursor),
            Some(Seq(7))
        );
    }

    #[test]
    fn a_cursor_moves_neither_back_nor_past_the_head() {
        let mut user = user_with(10);
        user.register("phone");
        user.acknowledge("phone", Seq(6));
        user.acknowledge("phone", Seq(2));
        assert_eq!(user.floor(), Seq(6));
        user.acknowledge("phone", Seq(u64::MAX));
        assert_eq!(user.floor(), Seq(10));
    }

    #[test]
    fn a_ninth_device_is_refused_and_a_known_one_is_not() {
        let mut user = user_with(0);
        assert!((0..DEVICES_PER_USER_MAX).all(|i| user.register(&format!("device-{i}"))));
        assert!(!user.register("one-too-many"));
        assert!(user.register("device-0"));
    }

    #[test]
    fn only_history_beyond_its_bound_leaves_the_index() {
        let entries = HISTORY_ENTRIES_MAX as u64 + 500;
        let mut user = user_with(entries);
        user.register("phone");
        user.register("laptop");
        user.acknowledge("phone", Seq(entries));
        assert_eq!(user.oldest(), Seq(1), "the laptop still waits");
        user.acknowledge("laptop", Seq(entries));
        assert_eq!(user.oldest(), Seq(501));
        assert_eq!(user.position(Seq(500)), None);
        assert_eq!(user.position(Seq(501)), Some(500));
        assert_eq!(user.head(), Seq(entries));
    }
}
