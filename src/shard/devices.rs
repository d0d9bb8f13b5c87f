//! How a device becomes known, and where it starts.
//!
//! ```text
//!   Register ──▶ REGISTER [CURSOR] in one entry ──▶ applied: the inbox waits for the device too
//!                   └ from here on its start counts: a send that is judged now commits behind it
//! ```
//! A further device lowers the floor of its inbox. So that no inbox holds more than it may, whatever is
//! under way, sends are judged by the floor as it will be; and the device starts at most half of a full
//! inbox before the head, unless another waits for more.

use iris_proto::id::Seq;
use iris_proto::limits::NEW_DEVICE_ENTRIES;

use super::command::Command;
use super::{Effect, Refusal, ReplyTo, Shard};
use crate::placement::{UserHash, user_hash};
use crate::planted::{self, Bug};

/// Devices of one user that are proposed and not yet known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Starting {
    /// The lowest cursor that one of them may get.
    pub cursor: Seq,
    /// Index of the batch that holds the last one.
    pub index: u64,
}

impl Shard {
    pub(super) fn register(
        &mut self,
        now_ms: u64,
        hash: UserHash,
        user: &str,
        device: &str,
        reply: ReplyTo,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.users.find(user, hash).map(|slot| self.users.get(slot));
        if known.is_some_and(|user| user.device(device).is_some()) {
            effects.push(Effect::Registered { reply });
            return;
        }
        let is_further = known.is_some_and(|user| !user.devices().is_empty());
        let index = self.propose_command(now_ms, Some(reply), &Command::Register { user, device });
        if is_further {
            self.start_device(hash, user, device, index);
        }
    }

    /// A further device is about to be known, by the batch at `index`: where it starts counts from now
    /// on, and no inbox gets full by its coming. Under a low limit that takes a cursor, which is put
    /// right behind it into the same entry: a replay does not know the limit.
    fn start_device(&mut self, hash: UserHash, user: &str, device: &str, index: u64) {
        let Some(slot) = self.users.find(user, hash) else {
            return;
        };
        let history = NEW_DEVICE_ENTRIES.min(self.config.inbox_entries_max / 2);
        let coming = self.appending.get(&hash).copied().unwrap_or(0);
        let known = self.users.get(slot);
        let head = Seq(known.head().0 + coming);
        let floor = self.floor(user, hash);
        let seq = known.start_of_new(floor, history, head);
        let is_moved = seq > known.start_of_new(floor, NEW_DEVICE_ENTRIES, head);
        let cursor = seq.min(floor);
        self.starting.insert(hash, Starting { cursor, index });
        if is_moved {
            let mut bytes = Vec::new();
            Command::Cursor { user, device, seq }.encode(&mut bytes);
            self.put(None, &bytes, None);
        }
    }

    /// The lowest cursor of a user's devices, those included that are about to be known.
    pub(super) fn floor(&self, user: &str, hash: UserHash) -> Seq {
        let known = self.users.find(user, hash);
        let known = known.map_or(Seq(0), |slot| self.users.get(slot).floor());
        let starting = self.starting.get(&hash);
        let starting = starting.filter(|_| !planted::is(Bug::NewDeviceUncounted));
        starting.map_or(known, |starting| known.min(starting.cursor))
    }

    pub(super) fn apply_register(
        &mut self,
        user: &str,
        device: &str,
        reply: Option<ReplyTo>,
        effects: &mut Vec<Effect>,
    ) {
        let slot = self.users.find_or_create(user, user_hash(self.key, user));
        let known = self.users.get_mut(slot).register(device);
        effects.extend(reply.map(|reply| match known {
            true => Effect::Registered { reply },
            false => Effect::Refused {
                reply,
                refusal: Refusal::TooManyDevices,
            },
        }));
    }
}
