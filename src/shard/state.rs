//! A shard's whole state as bytes: for checkpoints, and for comparing two shards.
//!
//! ```text
//!   shard u16 │ applied u64 │ users u64 │ user … │ pairs u64 │ homes u64 │ pair 20 bytes … │ begins u64
//!   user:   name │ oldest u64 │ slots u64 │ slot 12 bytes … │ devices u64 │ (name │ cursor u64) …
//!   name:   len u64 │ bytes
//! ```
//!
//! `begins`, the last number before an inbox that is new, is there only if a salvage made it more than 0.
//! Equal bytes mean that two shards would answer everything alike. Reading checks every length against
//! what is there before it takes memory, because a checkpoint is a file.

use std::collections::VecDeque;

use iris_proto::id::Seq;
use iris_proto::limits::{DEVICES_PER_USER_MAX, USER_ID_BYTES_MAX};
use thiserror::Error;

use super::pairs::{PAIR_BYTES, Pairs};
use super::slot::{SLOT_BYTES, Slot};
use super::user::User;
use super::{Shard, ShardConfig};
use crate::placement::{HashKey, ShardId, user_hash};
use crate::planted::{self, Bug};

/// The last number that an inbox can come to: a thousand messages a microsecond for 100 years.
const SEQ_MAX: u64 = 1 << 62;
/// Bytes of a user in the state at least: what a claimed count of users is checked against.
const USER_BYTES_MIN: usize = 8 + 1 + 8 + 8 + 8;

/// Why bytes are not a shard's state. They passed their CRC, so it means another version or a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// Fewer bytes than the counts inside say, or more.
    #[error(
        "the state of a shard contradicts the lengths in it; was the checkpoint written by another version?"
    )]
    Length,
    /// A name is not UTF-8 or too long, or there are too many devices.
    #[error(
        "the state of a shard holds a name or a number that cannot be; was the checkpoint written by another version?"
    )]
    Value,
    /// It is the state of another shard.
    #[error("the state is that of shard {found}, not of shard {expected}")]
    OtherShard {
        /// The shard wanted.
        expected: u16,
        /// The shard found.
        found: u16,
    },
}

impl Shard {
    /// Appends the whole state.
    pub fn write_state(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.applied.to_le_bytes());
        out.extend_from_slice(&(self.users.len() as u64).to_le_bytes());
        for user in self.users.iter() {
            write_user(user, out);
        }
        if planted::is(Bug::DedupForgotten) {
            Pairs::default().write_state(out);
        } else if planted::is(Bug::DedupNewer) {
            self.newer_pairs().write_state(out);
        } else {
            self.pairs.write_state(out);
        }
        let begins = self.users.begins().0;
        if begins > 0 {
            out.extend_from_slice(&begins.to_le_bytes());
        }
    }

    /// A planted mistake: the pairs as they will be when all is committed that is under way.
    fn newer_pairs(&self) -> Pairs {
        let mut pairs = self.pairs.clone();
        for (pair, underway) in &self.streams {
            pairs.set(*pair, underway.last, u16::MAX);
        }
        pairs
    }

    /// A shard in the state that [`Shard::write_state`] wrote.
    ///
    /// # Errors
    /// See [`StateError`]; nothing is taken then.
    pub fn read_state(
        id: ShardId,
        key: HashKey,
        config: ShardConfig,
        bytes: &[u8],
    ) -> Result<Self, StateError> {
        let mut reader = Reader { rest: bytes };
        let (expected, found) = (id.0, u16::from_le_bytes(reader.array()?));
        if expected != found {
            return Err(StateError::OtherShard { expected, found });
        }
        let mut shard = Self::new(id, key, config);
        shard.applied = reader.u64()?;
        let users = reader.count(USER_BYTES_MIN)?;
        shard.users.reserve(users);
        for _ in 0..users {
            let user = read_user(&mut reader, key)?;
            if shard
                .users
                .find(user.name(), user_hash(key, user.name()))
                .is_some()
            {
                return Err(StateError::Value);
            }
            shard.users.push(user);
        }
        let pairs = reader.u64()?;
        let homes = usize::try_from(reader.u64()?).map_err(|_| StateError::Length)?;
        let len = usize::try_from(pairs).map_err(|_| StateError::Length)?;
        let table = len.checked_mul(PAIR_BYTES).ok_or(StateError::Length)?;
        let table = reader.take(table)?;
        shard.pairs = Pairs::read_state(len, homes, table).ok_or(StateError::Value)?;
        if reader.rest.is_empty() {
            return Ok(shard);
        }
        let begins = reader.u64()?;
        if !reader.rest.is_empty() {
            return Err(StateError::Length);
        }
        if begins == 0 || begins > SEQ_MAX {
            return Err(StateError::Value);
        }
        shard.users.begin_behind(Seq(begins));
        Ok(shard)
    }
}

fn write_user(user: &User, out: &mut Vec<u8>) {
    write_name(out, user.name());
    out.extend_from_slice(&user.oldest().0.to_le_bytes());
    out.extend_from_slice(&(user.slots_len() as u64).to_le_bytes());
    for (_, slot) in user.slots() {
        out.extend_from_slice(&slot.to_bytes());
    }
    out.extend_from_slice(&(user.devices().len() as u64).to_le_bytes());
    for device in user.devices() {
        write_name(out, &device.name);
        out.extend_from_slice(&device.cursor.0.to_le_bytes());
    }
}

fn write_name(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn read_user(reader: &mut Reader<'_>, key: HashKey) -> Result<User, StateError> {
    let name = reader.name()?;
    let oldest = reader.u64()?;
    let count = reader.count(SLOT_BYTES)?;
    let mut end = oldest;
    let mut slots = VecDeque::with_capacity(count);
    for bytes in reader.take(count * SLOT_BYTES)?.chunks_exact(SLOT_BYTES) {
        let mut slot = [0; SLOT_BYTES];
        slot.copy_from_slice(bytes);
        let slot = Slot::from_bytes(slot);
        end = end.saturating_add(slot.entries());
        if slot.entries() == 0 {
            return Err(StateError::Value);
        }
        slots.push_back(slot);
    }
    if oldest == 0 || end - 1 > SEQ_MAX {
        return Err(StateError::Value);
    }
    let head = end - 1;
    let devices = reader.count(1)?;
    if devices > DEVICES_PER_USER_MAX {
        return Err(StateError::Value);
    }
    let mut list: Vec<(Box<str>, Seq)> = Vec::with_capacity(devices);
    for _ in 0..devices {
        let device = reader.name()?;
        let cursor = reader.u64()?;
        let is_known = list.iter().any(|(name, _)| **name == *device);
        if is_known || cursor > head || cursor + 1 < oldest {
            return Err(StateError::Value);
        }
        list.push((device.into(), Seq(cursor)));
    }
    let hash = user_hash(key, name);
    Ok(User::restore(name, hash, oldest, slots, list))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(StateError::Length)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        self.take(N)?.try_into().map_err(|_| StateError::Length)
    }

    fn u64(&mut self) -> Result<u64, StateError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things of at least `each` bytes: no more than there are bytes for.
    fn count(&mut self, each: usize) -> Result<usize, StateError> {
        let count = usize::try_from(self.u64()?).map_err(|_| StateError::Length)?;
        if count > self.rest.len() / each {
            return Err(StateError::Length);
        }
        Ok(count)
    }

    fn name(&mut self) -> Result<&'a str, StateError> {
        let len = self.count(1)?;
        if len > USER_ID_BYTES_MAX {
            return Err(StateError::Value);
        }
        std::str::from_utf8(self.take(len)?).map_err(|_| StateError::Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R: D-2
    #[test]
    fn an_inbox_that_ends_where_no_inbox_gets_is_refused() {
        let (id, key) = (ShardId(0), HashKey([5; 16]));
        let with_oldest = |oldest: u64| {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&id.0.to_le_bytes());
            bytes.extend_from_slice(&[0; 8]); // applied
            bytes.extend_from_slice(&1_u64.to_le_bytes());
            write_name(&mut bytes, "ann");
            bytes.extend_from_slice(&oldest.to_le_bytes());
            bytes.extend_from_slice(&1_u64.to_le_bytes());
            bytes.extend_from_slice(&Slot::gap(0).to_bytes());
            bytes.extend_from_slice(&[0; 8]); // devices
            Pairs::default().write_state(&mut bytes);
            Shard::read_state(id, key, ShardConfig::default(), &bytes)
        };
        let head = |shard: Shard| shard.users().iter().next().map(|user| user.head().0);
        assert_eq!(with_oldest(SEQ_MAX).map(head), Ok(Some(SEQ_MAX)));
        for oldest in [SEQ_MAX + 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(with_oldest(oldest).map(head), Err(StateError::Value));
        }
    }
}
