//! What a salvage may give up, and what it may not.
//!
//! A person has decided that a damaged log goes on without what is lost. From then on the model is what
//! the switch says, if it says nothing that is not so: every entry is where it was, or lies in what the
//! damage can have reached and is called lost; no `seq` is given out twice; nothing is newer than it was.

use iris_proto::id::{SendEpoch, Seq};

use super::{Check, Losses};
use crate::placement::ShardId;
use crate::shard::Shard;
use crate::shard::pairs::Fingerprint;
use crate::shard::user::User;
use crate::sim::model::{Inbox, Model, ModelDevice, NOBODY};
use crate::sim::world::World;
use crate::store::salvage::{Certainty, Loss, Salvaged, Unnamed};

impl Check {
    /// A salvage was done on a log.
    pub fn salvaged(&mut self, world: &mut World, log: usize, salvaged: &Salvaged) {
        self.counts.salvaged += 1;
        let losses = Losses {
            entries: salvaged.losses.clone(),
            unnamed: salvaged.unnamed.clone(),
        };
        world.note(|| format!("log {log}: salvaged, lost {losses:?}"));
        self.salvages[log] = Some(losses);
    }

    /// After the start behind a salvage: takes over what the switch has kept, if it may.
    pub(super) fn adopt(
        &mut self,
        world: &mut World,
        log: usize,
        mut expected: Model,
        store: &crate::store::Store,
    ) -> Model {
        let Some(losses) = self.salvages[log].take() else {
            return expected;
        };
        self.damage.settle(log);
        for (id, entries) in &losses.entries {
            let unnamed = losses.unnamed.iter().find(|(shard, _)| shard == id);
            let unnamed = unnamed.map(|(_, unnamed)| unnamed);
            let Some(shard) = store.shard(*id) else {
                world.fail(|| format!("log {log}: {id:?} is not served after a salvage"));
                continue;
            };
            if let Err(fault) = self.adopt_shard(&mut expected, shard, entries, unnamed) {
                world.fail(|| format!("log {log}, shard {}, salvaged: {fault}", id.0));
            }
        }
        expected.news.clear(); // the durable model has told them
        self.models[log] = expected.clone();
        expected
    }

    fn adopt_shard(
        &mut self,
        model: &mut Model,
        shard: &Shard,
        losses: &[Loss],
        unnamed: Option<&Unnamed>,
    ) -> Result<(), String> {
        let id = shard.id();
        let applied = model.applied.insert(id.0, shard.applied()).unwrap_or(0);
        if shard.applied() < applied {
            let next = shard.applied() + 1;
            return Err(format!("entry {next} would be written again, of {applied}"));
        }
        let begins = shard.users().begins().0;
        model.begins.insert(id.0, begins);
        let known = self.devices_known(id);
        let names = model
            .inboxes
            .keys()
            .filter(|name| self.shard_of(name) == id);
        let names: Vec<String> = names.cloned().collect();
        for name in names {
            let Some(inbox) = model.inboxes.remove(&name) else {
                continue;
            };
            let Some(slot) = shard.find(&name) else {
                // Nothing that is left names it. Its messages are gone with its name.
                self.forget(&name, &inbox, begins)?;
                continue;
            };
            let adopted = self.adopt_user(shard.users().get(slot), &inbox, losses)?;
            model.inboxes.insert(name, adopted);
        }
        let forgotten = known - self.devices_known(id);
        let may_forget = unnamed.map_or(0, |unnamed| unnamed.registrations);
        if forgotten > may_forget {
            return Err(format!(
                "{forgotten} devices are not known any more, at most {may_forget} were told"
            ));
        }
        model.streams.retain(|(from, device, epoch, to), last| {
            if self.shard_of(to) != id {
                return true;
            }
            let pair = Fingerprint::of(self.key, from, device, SendEpoch(*epoch), to);
            let known = shard.pairs().last(pair).0;
            last.0 = known.min(last.0);
            known > 0
        });
        Ok(())
    }

    /// Devices of a shard that were known, and are.
    fn devices_known(&self, shard: ShardId) -> u64 {
        let ours = self
            .seen
            .iter()
            .filter(|seen| !seen.is_forgotten && self.shard_of(&seen.user) == shard);
        ours.count() as u64
    }

    fn forget(&mut self, name: &str, inbox: &Inbox, begins: u64) -> Result<(), String> {
        if inbox.head() > begins {
            let head = inbox.head();
            return Err(format!(
                "{name} is forgotten with entries up to {head}, and new inboxes begin behind {begins}"
            ));
        }
        for (no, seq) in inbox.entries.iter().zip(1..) {
            if seq >= inbox.oldest && !self.damage.may_lose(*no) {
                return Err(format!("{name} is forgotten, and entry {seq} is whole"));
            }
            self.damage.lose(name, seq);
        }
        for device in &inbox.devices {
            self.forget_device(name, &device.name);
        }
        self.counts.forgotten += 1;
        Ok(())
    }

    fn forget_device(&mut self, user: &str, device: &str) {
        let mut seen = self.seen.iter_mut();
        if let Some(seen) = seen.find(|seen| seen.user == user && seen.device == device) {
            seen.is_forgotten = true;
        }
    }

    fn adopt_user(&mut self, user: &User, inbox: &Inbox, losses: &[Loss]) -> Result<Inbox, String> {
        let (name, head) = (user.name(), user.head().0);
        if head < inbox.head() {
            return Err(format!(
                "{name} had {} entries and has {head}",
                inbox.head()
            ));
        }
        let mut adopted = Inbox {
            oldest: user.oldest().0,
            overfull: true,
            runs: skipped(user),
            ..inbox.clone()
        };
        adopted
            .entries
            .resize(usize::try_from(head).unwrap_or(0), NOBODY);
        for seq in user.oldest().0..=head {
            let is_gap = user
                .slot(Seq(seq))
                .is_some_and(|slot| slot.position().is_none());
            let old = inbox.at(seq);
            if !is_gap {
                if old.is_none() {
                    return Err(format!("{name} has entry {seq}, which never was"));
                }
                continue; // compared with its message when all is compared
            }
            let told =
                |loss: &&Loss| loss.user == name && (loss.first.0..=loss.last.0).contains(&seq);
            let Some(loss) = losses.iter().find(told) else {
                if self.damage.is_lost(name, seq) || inbox.run_at(seq).is_some() {
                    continue; // an earlier salvage's
                }
                return Err(format!("{name} has a gap at {seq}, and nobody was told"));
            };
            match old {
                // What had left already may have lain in a segment that was removed since.
                Some(_) if seq < inbox.oldest && loss.certainty != Certainty::Proven => {}
                Some(_) if seq < inbox.oldest => {
                    return Err(format!("{name} is said to have lost {seq}, which had left"));
                }
                Some(no) if no != NOBODY && !self.damage.may_lose(no) => {
                    return Err(format!(
                        "{name} lost entry {seq}, message {no}, which is whole"
                    ));
                }
                None if loss.certainty != Certainty::Possible => {
                    return Err(format!(
                        "{name} is said to have lost {seq}, which never was"
                    ));
                }
                _ => {}
            }
            self.damage.lose(name, seq);
            self.counts.lost += u64::from(old.is_some());
        }
        adopted.devices = self.adopt_devices(user, inbox)?;
        Ok(adopted)
    }

    /// The devices that a salvaged user has: none is new, and no cursor has moved on.
    fn adopt_devices(&mut self, user: &User, inbox: &Inbox) -> Result<Vec<ModelDevice>, String> {
        let name = user.name();
        let mut devices = Vec::new();
        for device in inbox
            .devices
            .iter()
            .filter(|device| user.device(&device.name).is_none())
        {
            self.forget_device(name, &device.name);
        }
        for device in user.devices() {
            let before = inbox.device(&device.name);
            if before.is_none_or(|before| device.cursor.0 > before.cursor) {
                return Err(format!("{name} has {device:?}, durable was {before:?}"));
            }
            devices.push(ModelDevice {
                name: device.name.to_string(),
                cursor: device.cursor.0,
                start: before.map_or(0, |before| before.start),
            });
        }
        Ok(devices)
    }
}

/// The first and last of each run of entries that was skipped.
fn skipped(user: &User) -> Vec<(u64, u64)> {
    let runs = user.slots().filter(|(_, slot)| slot.is_run());
    runs.map(|(seq, slot)| (seq.0, seq.0 + slot.entries() - 1))
        .collect()
}
