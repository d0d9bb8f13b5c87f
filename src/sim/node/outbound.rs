//! From what a client is owed to bytes on its connection, as `runtime::reactor::outbound` does it.
//!
//! Entries are read from where they lie on the fake disk, below what is durable, and each item's CRC is
//! checked at every read.

use iris_proto::id::Seq;
use iris_proto::v2::{self, GapReason, GoodbyeReason};
use iris_proto::wire::{self, EntryRef};

use super::connection::{Connection, Live, State};
use super::{Core, Env};
use crate::log::item_at;
use crate::placement::ShardId;
use crate::session::Next;
use crate::shard::command::{self, Command};
use crate::sim::disk::Name;
use crate::sim::net::{ConnId, Side};
use crate::sim::world::Event;

/// Bytes that a session may pull into one send. One entry more may exceed it.
pub const SEND_BYTES_MAX: usize = 64 * 1024;

/// How far a session's pulling came.
enum Pulled {
    /// Nothing is owed, its window is closed, or the send is full.
    Done,
    /// Pages are on their way.
    Waits,
    /// The next entry cannot be served.
    Damaged,
}

impl Core {
    /// Sends to every connection that may have something to be sent.
    pub(super) fn send_dirty(&mut self, env: &mut Env<'_>) {
        for id in std::mem::take(&mut self.dirty) {
            let Some(mut connection) = self.connections.remove(&id) else {
                continue;
            };
            connection.dirty = false;
            if connection.sending {
                self.connections.insert(id, connection); // `sent` marks it dirty again
                continue;
            }
            if let Some(connection) = self.send_one(env, connection) {
                self.put_back(env, connection);
            }
        }
    }

    /// Sends what a connection is owed, as far as one send goes. It is gone when that was its last.
    fn send_one(
        &mut self,
        env: &mut Env<'_>,
        mut connection: Box<Connection>,
    ) -> Option<Box<Connection>> {
        let id = connection.id;
        let mut plain = std::mem::take(&mut connection.out);
        if !plain.is_empty() {
            self.retry_later(&mut connection);
        }
        let mut damaged = false;
        if let State::Live(live) = &mut connection.state
            && !connection.populating
        {
            match self.pull(env, id, live, &mut plain) {
                Pulled::Done => {}
                Pulled::Waits => connection.populating = true,
                Pulled::Damaged => damaged = true,
            }
        }
        if damaged {
            self.leave(env, &mut connection, GoodbyeReason::Internal, 0);
            plain.append(&mut connection.out);
        }
        if !plain.is_empty() {
            env.check.switch_sends(env.world, env.disks, id, &plain);
            connection.sending = true;
            if env.net.send(env.world, id, Side::Switch, &plain) {
                self.sent.push(id);
            }
            return Some(connection);
        }
        match connection.state {
            State::Closing => {
                env.net.close(env.world, id, Side::Switch);
                None
            }
            State::Leaving(..) => {
                self.detached(*connection);
                None
            }
            _ => Some(connection),
        }
    }

    /// Appends the frames of what a session is owed, as much as fits into one send.
    fn pull(
        &mut self,
        env: &mut Env<'_>,
        id: ConnId,
        live: &mut Live,
        plain: &mut Vec<u8>,
    ) -> Pulled {
        let (Some(user), Some(shard)) = (live.user, self.shard(live.shard)) else {
            return Pulled::Done;
        };
        let head = shard.users().get(user).head();
        while let Some(next) = live.session.next(head) {
            if plain.len() >= SEND_BYTES_MAX {
                return Pulled::Done;
            }
            let (seq, tag) = match next {
                Next::Push(seq) => (seq, 0),
                Next::Fetched(seq, tag) => (seq, tag),
                Next::FetchEnd { tag, last, more } => {
                    let fetched = v2::Fetched {
                        tag,
                        last: last.0,
                        more,
                    };
                    wire::encode_server(plain, v2::server_frame::Frame::Fetched(fetched));
                    live.session.went(next, 0);
                    continue;
                }
            };
            let Some(shard) = self.shard(live.shard) else {
                return Pulled::Done;
            };
            let Some(slot) = shard.users().get(user).slot(seq) else {
                // History left the index behind this session's back.
                if tag == 0 {
                    return Pulled::Damaged;
                }
                live.session.cut_fetch();
                continue;
            };
            let Some(position) = slot.position() else {
                let last = shard.users().get(user).gap_end(seq).unwrap_or(seq);
                let gap = v2::Gap {
                    first: seq.0,
                    last: last.0,
                    reason: GapReason::Lost.into(),
                    fetch_tag: tag,
                };
                wire::encode_gap(plain, gap);
                live.session.skipped(next, last);
                continue;
            };
            if env.world.dice.ppm(env.weather.cold_ppm) {
                let delay = env.world.dice.skewed(20, 20_000);
                env.world.after(
                    delay,
                    Event::Pages {
                        life: self.life,
                        conn: id,
                    },
                );
                return Pulled::Waits;
            }
            match self.encode_entry(env, live.shard, position, seq, tag, plain) {
                Some(bytes) => live.session.went(next, bytes),
                None => return Pulled::Damaged,
            }
        }
        Pulled::Done
    }

    /// Appends one entry's frame from where it lies in the log; its body's bytes. `None` when the bytes
    /// there are not what was written: they are never sent.
    fn encode_entry(
        &mut self,
        env: &mut Env<'_>,
        shard: ShardId,
        position: u64,
        seq: Seq,
        fetch_tag: u64,
        plain: &mut Vec<u8>,
    ) -> Option<usize> {
        let log = usize::from(self.placement.log_of(shard).0);
        let durable = self.store_mut(shard)?.durable_end();
        let size = env.check.size();
        let segment = Name::Segment(size.index_of(position));
        let Some(bytes) = env.disks[log].read(segment) else {
            env.world.fail(|| {
                format!("{shard:?} seq {seq:?}: its segment {segment:?} is gone from log {log}")
            });
            return None;
        };
        let first = size.first_lsn(size.index_of(position));
        let readable = usize::try_from(durable.saturating_sub(first)).unwrap_or(usize::MAX);
        let rest = bytes.get(size.offset_of(position)..readable.min(bytes.len()));
        let Ok((item, _)) = item_at(rest.unwrap_or_default()) else {
            env.check.unreadable(env.world, env.disks, log, position);
            return None;
        };
        let Ok(Command::Append(append)) = command::decode(item) else {
            env.world
                .fail(|| format!("{shard:?} seq {seq:?}: position {position:#x} is no message"));
            return None;
        };
        let entry = EntryRef {
            seq: seq.0,
            from: append.from,
            from_device: append.device,
            id: append.id.0,
            time_ms: append.time_ms,
            body: append.body,
            fetch_tag,
        };
        wire::encode_entry(plain, &entry);
        Some(append.body.len())
    }

    /// Pages that a connection waited for are in memory.
    pub(super) fn populated(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.populating = false;
            if !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(id);
            }
        }
    }

    /// A send was taken by the socket.
    pub(super) fn send_taken(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.sending = false;
            if !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(id);
            }
        }
    }
}
