//! The users of one shard: their inboxes and their devices' cursors.
//!
//! ```text
//!   inbox    oldest … floor … head        floor = lowest cursor of the user's devices
//!                     └ pending ┘         bounded by INBOX_ENTRIES_MAX
//! ```
//!
//! An inbox entry is twelve bytes here, a [`Slot`]: where its message lies in the log. Entries that
//! every device has acknowledged are history; they leave by command, as the [`Retention`] wants it.
//! What a salvage had to skip is one slot however long it is, and none of it is pending.

use std::collections::VecDeque;

use hashbrown::HashTable;
use iris_proto::id::Seq;
use iris_proto::limits::{DEVICES_PER_USER_MAX, NEW_DEVICE_ENTRIES};

use super::retention::Retention;
use super::slot::{RUN_ENTRIES_MAX, Slot};
use crate::placement::UserHash;

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
    /// `seq` of the first entry kept.
    oldest: u64,
    slots: VecDeque<Slot>,
    /// The slots that stand for more than one entry; hardly any inbox has one.
    runs: Option<Box<Runs>>,
    /// Bytes of the entries kept.
    bytes: u64,
    devices: Vec<Device>,
}

/// The runs of gaps of an inbox, in order.
#[derive(Debug, Default)]
struct Runs {
    list: VecDeque<Run>,
}

/// A slot that stands for the entries `first..=first + more`.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    more: u64,
}

impl User {
    /// One whose inbox begins behind so many entries that may have existed.
    fn new(name: &str, hash: UserHash, begins: u64) -> Self {
        let mut user = Self {
            name: name.into(),
            hash,
            oldest: 1,
            slots: VecDeque::new(),
            runs: None,
            bytes: 0,
            devices: Vec::new(),
        };
        user.skip(begins);
        user
    }

    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().flat_map(|runs| runs.list.iter().copied())
    }

    /// The user's id.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The newest entry; zero when nothing ever came.
    #[must_use]
    pub fn head(&self) -> Seq {
        let more: u64 = self.runs().map(|run| run.more).sum();
        Seq(self.oldest + self.slots.len() as u64 + more - 1)
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

    /// Entries that some device has not acknowledged, runs of gaps not counted.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.pending_from(self.floor())
    }

    /// Entries behind a cursor, runs of gaps not counted.
    pub(super) fn pending_from(&self, cursor: Seq) -> u64 {
        let cursor = cursor.0.max(self.oldest - 1);
        let skipped = self.runs().map(|run| {
            let last = run.first + run.more;
            last.saturating_sub(cursor.max(run.first - 1))
        });
        self.head().0 - cursor - skipped.sum::<u64>()
    }

    /// Bytes of the entries kept, as the log holds them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is known of an entry; `None` outside `oldest..=head`.
    #[must_use]
    pub fn slot(&self, seq: Seq) -> Option<Slot> {
        self.slots.get(self.index(seq)?).copied()
    }

    /// The last entry of the run of gaps that begins at `seq`; `None` when `seq` is no gap.
    #[must_use]
    pub fn gap_end(&self, seq: Seq) -> Option<Seq> {
        let run = self.slots.range(self.index(seq)?..);
        let run = run.take_while(|slot| slot.position().is_none());
        let len: u64 = run.map(|slot| slot.entries()).sum();
        let mut runs = self.runs();
        let around = runs.find(|run| (run.first..=run.first + run.more).contains(&seq.0));
        let first = around.map_or(seq.0, |run| run.first);
        (len > 0).then(|| Seq(first + len - 1))
    }

    /// All slots kept, in order, each with the first entry that it stands for.
    pub fn slots(&self) -> impl Iterator<Item = (Seq, Slot)> + '_ {
        let mut next = self.oldest;
        self.slots.iter().map(move |slot| {
            let seq = Seq(next);
            next += slot.entries();
            (seq, *slot)
        })
    }

    /// How many slots that are.
    pub(super) fn slots_len(&self) -> usize {
        self.slots.len()
    }

    /// The devices, in the order in which they came.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        let mut index = seq.0.checked_sub(self.oldest)?;
        for run in self.runs().take_while(|run| run.first <= seq.0) {
            index -= run.more.min(seq.0 - run.first);
        }
        let index = usize::try_from(index).ok()?;
        (index < self.slots.len()).then_some(index)
    }

    /// A device by its id.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| &*device.name == name)
    }

    /// Stores an entry and returns its `seq`.
    pub(super) fn append(&mut self, slot: Slot) -> Seq {
        let more = slot.entries() - 1;
        if more > 0 {
            let first = self.head().0 + 1;
            let runs = self.runs.get_or_insert_default();
            runs.list.push_back(Run { first, more });
        }
        self.slots.push_back(slot);
        self.bytes += slot.bytes();
        self.head()
    }

    /// Leaves out so many entries, which may have existed.
    pub(super) fn skip(&mut self, mut entries: u64) {
        while entries > 0 {
            let run = entries.min(RUN_ENTRIES_MAX);
            self.append(Slot::run(run));
            entries -= run;
        }
    }

    /// Puts another slot in an entry's place and returns the one that was there; `None` when the entry
    /// is not kept.
    pub(super) fn replace(&mut self, seq: Seq, slot: Slot) -> Option<Slot> {
        let index = self.index(seq)?;
        let old = std::mem::replace(&mut self.slots[index], slot);
        self.bytes = self.bytes - old.bytes() + slot.bytes();
        Some(old)
    }

    /// Makes a device known; false when the user has as many as are allowed. A first device starts
    /// before everything that is kept; a further one a little before the head, but never behind what
    /// the others still wait for. Neither is told of a run of gaps at the inbox's beginning.
    pub(super) fn register(&mut self, name: &str) -> bool {
        if self.device(name).is_some() {
            return true;
        }
        if self.devices.len() >= DEVICES_PER_USER_MAX {
            return false;
        }
        let cursor = self.start_of_new(self.floor(), NEW_DEVICE_ENTRIES, self.head());
        self.devices.push(Device {
            name: name.into(),
            cursor,
            claimed: cursor,
        });
        true
    }

    /// Where a new device starts when the others' lowest cursor is `floor`, and it is to see so many
    /// entries before `head`.
    pub(super) fn start_of_new(&self, floor: Seq, entries: u64, head: Seq) -> Seq {
        let start = floor.0.min(head.0.saturating_sub(entries));
        let run = self.slots.front().filter(|slot| slot.is_run());
        let run = run.map_or(0, |run| run.entries());
        Seq(start.max(self.oldest - 1 + run))
    }

    /// Makes a device known again, whose cursor was here; false when there are as many as are allowed.
    pub(super) fn register_again(&mut self, name: &str, cursor: Seq) -> bool {
        if self.device(name).is_some() || self.devices.len() >= DEVICES_PER_USER_MAX {
            return false;
        }
        let cursor = cursor.min(self.head()).max(Seq(self.oldest - 1));
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

    /// Moves a device's cursor forward, never back and never past the head.
    pub(super) fn acknowledge(&mut self, name: &str, seq: Seq) {
        let head = self.head();
        if let Some(device) = self.devices.iter_mut().find(|device| &*device.name == name) {
            device.cursor = device.cursor.max(seq.min(head));
        }
    }

    /// The first entry that would stay if history left as `retention` wants it; `None` when all may
    /// stay. Only what every device has acknowledged ever leaves.
    pub(super) fn surplus(&self, retention: &Retention, now_ms: u64) -> Option<Seq> {
        let floor = self.floor().0;
        let mut history = (floor + 1).saturating_sub(self.oldest);
        let mut bytes = self.bytes;
        let mut leaving = 0;
        for slot in &self.slots {
            let is_old = slot.time_ms().saturating_add(retention.age_ms) < now_ms;
            let is_over = history > retention.entries || bytes > retention.bytes || is_old;
            if history == 0 || !is_over {
                break;
            }
            let taken = slot.entries().min(history);
            history -= taken;
            bytes -= slot.bytes();
            leaving += taken;
        }
        (leaving > 0).then(|| Seq(self.oldest + leaving))
    }

    /// Lets the entries before `oldest` leave, as far as every device has acknowledged them.
    pub(super) fn trim(&mut self, oldest: Seq, mut leaves: impl FnMut(Slot)) {
        let upto = oldest.0.min(self.floor().0 + 1);
        while self.oldest < upto {
            let Some(slot) = self.slots.pop_front() else {
                unreachable!("the floor is not above the head");
            };
            let end = self.oldest + slot.entries();
            if slot.entries() > 1 {
                self.runs.as_mut().map(|runs| runs.list.pop_front());
            }
            if end > upto {
                // The rest of a run stays.
                self.put_back(upto, end - upto);
                break;
            }
            self.bytes -= slot.bytes();
            self.oldest = end;
            leaves(slot);
        }
        if self.slots.capacity() > 64 && self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
        assert!(
            self.oldest <= self.floor().0 + 1 || self.devices.is_empty(),
            "an entry left that a device waits for"
        );
    }

    /// A run of so many entries from `oldest` on is the first slot.
    fn put_back(&mut self, oldest: u64, entries: u64) {
        self.oldest = oldest;
        self.slots.push_front(Slot::run(entries));
        if entries > 1 {
            let (first, more) = (oldest, entries - 1);
            let runs = self.runs.get_or_insert_default();
            runs.list.push_front(Run { first, more });
        }
    }

    /// A user as a checkpoint has it.
    pub(super) fn restore(
        name: &str,
        hash: UserHash,
        oldest: u64,
        slots: VecDeque<Slot>,
        devices: Vec<(Box<str>, Seq)>,
    ) -> Self {
        let devices = devices.into_iter();
        let (mut runs, mut first) = (Runs::default(), oldest);
        for slot in &slots {
            let more = slot.entries() - 1;
            if more > 0 {
                runs.list.push_back(Run { first, more });
            }
            first += more + 1;
        }
        Self {
            name: name.into(),
            hash,
            oldest,
            bytes: slots.iter().map(|slot| slot.bytes()).sum(),
            slots,
            runs: (!runs.list.is_empty()).then(|| Box::new(runs)),
            devices: devices
                .map(|(name, cursor)| Device {
                    name,
                    cursor,
                    claimed: cursor,
                })
                .collect(),
        }
    }
}

/// All users of a shard, in the order in which the log first names them.
#[derive(Debug, Default)]
pub struct Users {
    list: Vec<User>,
    by_name: HashTable<u32>,
    /// The last `seq` that somebody may have had whom nothing names since a salvage; inboxes that are
    /// new begin behind it.
    begins: u64,
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

    /// The last `seq` before an inbox that is new.
    #[must_use]
    pub fn begins(&self) -> Seq {
        Seq(self.begins)
    }

    /// Lets inboxes that are new begin behind `seq`.
    pub(super) fn begin_behind(&mut self, seq: Seq) {
        self.begins = seq.0;
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

    /// The `nth` user's slot.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn slot(&self, nth: usize) -> UserSlot {
        assert!(nth < self.list.len(), "a user beyond the last");
        UserSlot(nth as u32)
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
        self.push(User::new(name, hash, self.begins));
        UserSlot(slot)
    }

    /// Adds a user that is not there yet.
    pub(super) fn push(&mut self, user: User) {
        let (slot, hash) = (self.list.len() as u32, user.hash);
        self.list.push(user);
        let list = &self.list;
        self.by_name
            .insert_unique(hash.0, slot, |&slot| list[slot as usize].hash.0);
    }

    /// Makes room for so many users more.
    pub(super) fn reserve(&mut self, users: usize) {
        self.list.reserve(users);
        let list = &self.list;
        self.by_name
            .reserve(users, |&slot| list[slot as usize].hash.0);
    }

    /// All users, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(position: u64) -> Slot {
        Slot::message(position, 100, 1_000_000)
    }

    fn user_with(entries: u64) -> User {
        let mut user = User::new("ann", UserHash(1), 0);
        for position in 0..entries {
            user.append(slot(position));
        }
        user
    }

    /// R: B-3
    #[test]
    fn entries_are_numbered_densely_from_one() {
        let mut user = user_with(0);
        assert_eq!(user.head(), Seq(0));
        assert_eq!(
            (1..=5)
                .map(|i| user.append(slot(i * 10)).0)
                .collect::<Vec<_>>(),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(user.slot(Seq(3)), Some(slot(30)));
        assert_eq!(user.slot(Seq(0)), None);
        assert_eq!(user.slot(Seq(6)), None);
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

    const KEEP_ALL: Retention = Retention {
        entries: u64::MAX,
        bytes: u64::MAX,
        age_ms: u64::MAX,
    };

    /// R: B-10
    #[test]
    fn only_what_every_device_acknowledged_leaves_by_count() {
        let retention = Retention {
            entries: 100,
            ..KEEP_ALL
        };
        let mut user = user_with(150);
        user.register("phone");
        user.register("laptop");
        user.acknowledge("phone", Seq(150));
        assert_eq!(user.surplus(&retention, 0), None, "the laptop still waits");
        user.acknowledge("laptop", Seq(120));
        assert_eq!(user.surplus(&retention, 0), Some(Seq(21)));
        let mut left = 0;
        user.trim(Seq(140), |_| left += 1);
        assert_eq!(
            (user.oldest(), left),
            (Seq(121), 120),
            "no further than the floor"
        );
        assert_eq!(user.slot(Seq(120)), None);
        assert_eq!(user.slot(Seq(121)), Some(slot(120)));
        assert_eq!(user.head(), Seq(150));
    }

    /// R: B-10
    #[test]
    fn history_leaves_by_age_and_by_size() {
        let mut user = user_with(0);
        (0..10).for_each(|hour| {
            user.append(Slot::message(hour, 1_000, hour * 3_600_000));
        });
        user.register("phone");
        user.acknowledge("phone", Seq(8));
        let by_age = Retention {
            age_ms: 2 * 3_600_000,
            ..KEEP_ALL
        };
        assert_eq!(user.surplus(&by_age, 5 * 3_600_000 + 20_000), Some(Seq(5)));
        let by_size = Retention {
            bytes: 7_500,
            ..KEEP_ALL
        };
        assert_eq!(user.surplus(&by_size, 0), Some(Seq(4)));
        assert_eq!(
            user.surplus(
                &Retention {
                    bytes: 0,
                    ..KEEP_ALL
                },
                0
            ),
            Some(Seq(9))
        );
    }

    #[test]
    fn a_run_of_gaps_is_known_from_each_of_its_entries() {
        let mut user = user_with(5);
        user.replace(Seq(2), Slot::gap(0));
        user.replace(Seq(3), Slot::gap(0));
        assert_eq!(user.gap_end(Seq(1)), None);
        assert_eq!(user.gap_end(Seq(2)), Some(Seq(3)));
        assert_eq!(user.gap_end(Seq(3)), Some(Seq(3)));
        assert_eq!(user.bytes(), 3 * 104);
        assert_eq!(user.replace(Seq(6), slot(0)), None);
    }

    /// R: D-2
    #[test]
    fn a_run_of_gaps_takes_one_slot_keeps_every_number_and_is_not_pending() {
        let mut user = user_with(3);
        user.skip(1_000_000);
        assert_eq!(user.append(slot(77)), Seq(1_000_004));
        assert_eq!((user.pending(), user.slots_len()), (4, 5));
        assert_eq!(user.slot(Seq(3)), Some(slot(2)));
        assert_eq!(user.slot(Seq(1_000_004)), Some(slot(77)));
        assert_eq!(user.slot(Seq(1_000_005)), None);
        for seq in [4, 500_000, 1_000_003] {
            assert_eq!(user.slot(Seq(seq)).and_then(Slot::position), None);
            assert_eq!(user.gap_end(Seq(seq)), Some(Seq(1_000_003)));
        }
        user.replace(Seq(3), Slot::gap(0));
        assert_eq!(user.gap_end(Seq(3)), Some(Seq(1_000_003)));
        let firsts: Vec<u64> = user.slots().map(|(seq, _)| seq.0).collect();
        assert_eq!(firsts, [1, 2, 3, 4, 1_000_004]);
        user.register("phone");
        user.acknowledge("phone", Seq(10));
        user.trim(Seq(20), |_| {});
        assert_eq!((user.oldest(), user.head()), (Seq(11), Seq(1_000_004)));
        assert_eq!(user.gap_end(Seq(11)), Some(Seq(1_000_003)));
        assert_eq!(user.pending(), 1);
        user.acknowledge("phone", Seq(1_000_004));
        let none = Retention {
            entries: 0,
            ..KEEP_ALL
        };
        assert_eq!(user.surplus(&none, 0), Some(Seq(1_000_005)));
        user.trim(Seq(1_000_005), |_| {});
        assert_eq!((user.slots_len(), user.head()), (0, Seq(1_000_004)));
        assert_eq!(user.append(slot(1)), Seq(1_000_005));
    }

    #[test]
    fn a_device_is_not_told_of_a_run_of_gaps_before_all_entries() {
        let mut user = User::new("ann", UserHash(1), 500);
        assert_eq!(user.append(slot(0)), Seq(501));
        user.register("phone");
        assert_eq!(user.device("phone").map(|one| one.cursor), Some(Seq(500)));
        assert_eq!(
            user.gap_end(Seq(2)),
            Some(Seq(500)),
            "one that was there before asks"
        );
    }
}
