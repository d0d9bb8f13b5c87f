//! What the switch believes against what the disk holds.

use iris_proto::id::{SendEpoch, Seq};

use super::Check;
use crate::log::item_at;
use crate::placement::ShardId;
use crate::shard::Shard;
use crate::shard::command::{self, Command};
use crate::shard::pairs::Fingerprint;
use crate::shard::slot::Slot;
use crate::shard::user::User;
use crate::sim::disk::{FakeDisk, Name};
use crate::sim::model::{Inbox, Model, message_no};
use crate::sim::world::World;
use crate::store::Store;
use crate::store::recover::Recovered;

/// Bytes that the table of pairs may take beside 24 a pair: its tail and its first slots.
const PAIRS_SLACK_BYTES: usize = 64 * 20 + 16 * 20;

impl Check {
    /// A log is about to be recovered from this disk: what must come out is put down.
    pub fn before_recovery(&mut self, world: &mut World, log: usize, disk: &FakeDisk) {
        let mut expected = self.models[log].clone();
        expected.news.clear();
        if let Err(fault) = expected.follow(disk, false) {
            world.fail(|| format!("log {log}, at the start: {fault}"));
        }
        self.weigh_checkpoints(log, disk, expected.end());
        let (durable, whole) = (self.models[log].end(), expected.end());
        world.note(|| format!("log {log}: durable to {durable:#x}, whole to {whole:#x}"));
        self.expected[log] = Some(expected);
    }

    /// A log was recovered, and what was cut and synced is.
    pub fn recovered(&mut self, world: &mut World, log: usize, disk: &FakeDisk, found: &Recovered) {
        self.counts.starts += 1;
        self.counts.unusable_checkpoints += found.report.unusable_checkpoints.len() as u64;
        self.counts.holes += found.report.holes.len() as u64;
        self.room(world, log, true);
        self.counts.from_checkpoint += u64::from(found.report.scanned_from > 0);
        self.disk_moved(world, log, disk);
        let Some(expected) = self.expected[log].take() else {
            return;
        };
        let quarantined = found.store.quarantined();
        self.counts.quarantined += quarantined.len() as u64;
        for quarantine in quarantined {
            world.note(|| format!("log {log}: {quarantine:?}"));
            if !self.damage.may_quarantine(log, quarantine.shard) {
                world.fail(|| format!("log {log}: {quarantine:?}, and nothing of it is damaged"));
            }
        }
        if self.models[log].end() != expected.end() {
            let (durable, whole) = (self.models[log].end(), expected.end());
            world.fail(|| {
                format!("log {log} is served up to {whole:#x} and durable up to {durable:#x}")
            });
        }
        let expected = self.adopt(world, log, expected, &found.store);
        self.compare(world, log, &expected, &found.store, Some(disk));
    }

    /// How far a log is durable.
    #[must_use]
    pub fn durable_end(&self, log: usize) -> u64 {
        self.models[log].end()
    }

    /// A start was asked what it would have made of a log whose end is lost: no shard is served that has
    /// lost an entry with it.
    pub fn end_was_lost(&mut self, world: &mut World, log: usize, store: &Store, how: &str) {
        self.counts.lost_ends += 1;
        for id in store.shards() {
            let durable = self.models[log].applied.get(&id.0).copied().unwrap_or(0);
            let served = store.shard(*id).map(Shard::applied);
            if let Some(served) = served.filter(|served| *served < durable) {
                let shard = id.0;
                world.fail(|| {
                    format!(
                        "log {log}, shard {shard}: the last segment was {how}, {durable} entries had been \
                         durable, and it is served with {served}"
                    )
                });
            }
        }
    }

    /// A flush has been taken over by the store.
    pub fn flushed(&mut self, world: &mut World, log: usize, store: &Store) {
        if store.durable_end() > self.models[log].end() {
            let (believed, durable) = (store.durable_end(), self.models[log].end());
            world.fail(|| {
                format!("log {log} counts as durable to {believed:#x}, is to {durable:#x}")
            });
        }
        let model = &self.models[log];
        self.compare(world, log, model, store, None);
    }

    /// Everything about a store that is running, at a quiet moment.
    pub fn examine(&mut self, world: &mut World, log: usize, store: &Store, disk: &FakeDisk) {
        let model = &self.models[log];
        self.compare(world, log, model, store, Some(disk));
    }

    /// Compares the shards of a store with what they must be; with the disk, also where each message
    /// lies and the table of streams.
    fn compare(
        &self,
        world: &mut World,
        log: usize,
        model: &Model,
        store: &Store,
        disk: Option<&FakeDisk>,
    ) {
        for id in store.shards() {
            let Some(shard) = store.shard(*id) else {
                continue;
            };
            if let Err(difference) = self.compare_shard(*id, model, shard, disk) {
                world.fail(|| format!("log {log}, shard {}: {difference}", id.0));
                return;
            }
        }
    }

    fn compare_shard(
        &self,
        id: ShardId,
        model: &Model,
        shard: &Shard,
        disk: Option<&FakeDisk>,
    ) -> Result<(), String> {
        let applied = model.applied.get(&id.0).copied().unwrap_or(0);
        if shard.applied() != applied {
            return Err(format!(
                "{} entries applied, {applied} durable",
                shard.applied()
            ));
        }
        for user in shard.users().iter() {
            let Some(inbox) = model.inboxes.get(user.name()) else {
                return Err(format!(
                    "{} is known and the log never named it",
                    user.name()
                ));
            };
            self.compare_user(user, inbox, disk)?;
        }
        let known = model
            .inboxes
            .keys()
            .filter(|name| self.shard_of(name) == id)
            .count();
        if known != shard.users().len() {
            return Err(format!(
                "{} users known, {known} in the log",
                shard.users().len()
            ));
        }
        let pairs = shard.pairs();
        if pairs.bytes() > 24 * pairs.len() + PAIRS_SLACK_BYTES {
            return Err(format!("{} bytes for {} pairs", pairs.bytes(), pairs.len()));
        }
        if disk.is_some() {
            self.compare_streams(id, model, shard)?;
        }
        Ok(())
    }

    fn compare_user(
        &self,
        user: &User,
        inbox: &Inbox,
        disk: Option<&FakeDisk>,
    ) -> Result<(), String> {
        let name = user.name();
        let ends = (user.oldest().0, user.head().0);
        if ends != (inbox.oldest, inbox.head()) {
            let (oldest, head) = (inbox.oldest, inbox.head());
            return Err(format!(
                "{name} has entries {ends:?}, durable are {:?}",
                (oldest, head)
            ));
        }
        let max = self.bounds.inbox_entries_max;
        if user.pending() > max && !inbox.overfull {
            return Err(format!(
                "{name} has {} entries pending, at most {max}",
                user.pending()
            ));
        }
        let same = user.devices().len() == inbox.devices.len()
            && user
                .devices()
                .iter()
                .zip(&inbox.devices)
                .all(|(device, durable)| {
                    *device.name == *durable.name && device.cursor.0 == durable.cursor
                });
        if !same {
            let devices = user.devices();
            return Err(format!(
                "{name} has {devices:?}, durable are {:?}",
                inbox.devices
            ));
        }
        let Some(disk) = disk else {
            return Ok(());
        };
        for (seq, slot) in user.slots() {
            self.compare_entry(name, seq, slot, inbox, disk)?;
        }
        Ok(())
    }

    /// An entry must lead to its own message.
    fn compare_entry(
        &self,
        name: &str,
        seq: Seq,
        slot: Slot,
        inbox: &Inbox,
        disk: &FakeDisk,
    ) -> Result<(), String> {
        let Some(position) = slot.position() else {
            let last = seq.0 + slot.entries() - 1;
            let is_lost = |seq| {
                self.damage.is_lost(name, seq) || slot.is_run() && inbox.run_at(seq).is_some()
            };
            return match (seq.0..=last).all(is_lost) {
                true => Ok(()),
                false => Err(format!(
                    "{name} has a gap at {}, and nothing of it is lost",
                    seq.0
                )),
            };
        };
        let segment = Name::Segment(self.size.index_of(position));
        let Some(bytes) = disk.read(segment) else {
            return Err(format!(
                "entry {} of {name} lies in {segment:?}, which is gone",
                seq.0
            ));
        };
        let rest = bytes
            .get(self.size.offset_of(position)..)
            .unwrap_or_default();
        let item = match item_at(rest) {
            Ok((item, _)) => item,
            Err(_) if self.damage.hits(self.size, segment, position) => return Ok(()),
            Err(error) => {
                return Err(format!(
                    "entry {} of {name} at {position:#x}: {error}",
                    seq.0
                ));
            }
        };
        let Ok(Command::Append(append)) = command::decode(item) else {
            return Err(format!(
                "entry {} of {name} at {position:#x} is no message",
                seq.0
            ));
        };
        let there = (append.to, append.seq, message_no(&append.id.0));
        if there != (name, seq, inbox.at(seq.0)) {
            return Err(format!(
                "entry {} of {name} at {position:#x} is {there:?}",
                seq.0
            ));
        }
        Ok(())
    }

    fn compare_streams(&self, id: ShardId, model: &Model, shard: &Shard) -> Result<(), String> {
        let (mut streams, mut forgotten) = (0, 0);
        for ((from, device, epoch, to), (last, since)) in &model.streams {
            if self.shard_of(to) != id {
                continue;
            }
            streams += 1;
            let pair = Fingerprint::of(self.key, from, device, SendEpoch(*epoch), to);
            let known = shard.pairs().last(pair).0;
            if known == 0 && model.may_forget(id.0, *since) {
                forgotten += 1;
            } else if known != *last {
                return Err(format!(
                    "number {last} of {from}/{device} to {to} is durable, {known} is remembered"
                ));
            }
        }
        let known = shard.pairs().len();
        if known != streams - forgotten {
            return Err(format!(
                "{known} streams remembered, {streams} durable, {forgotten} forgotten"
            ));
        }
        Ok(())
    }
}
