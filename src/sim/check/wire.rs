//! What passes over the wire, read where it is written: before the network can hide when it was.

use std::collections::BTreeMap;

use iris_proto::client::SEND_ONLY;
use iris_proto::frame::Decoder;
use iris_proto::limits::{FRAME_BYTES_MAX, WINDOW_ENTRIES_MAX};
use iris_proto::v2::GoodbyeReason;
use iris_proto::wire::{ClientFrameRef, ServerFrameRef, decode_client, decode_server};

use super::{Check, body_of};
use crate::sim::disk::FakeDisk;
use crate::sim::model::{MessageNo, message_no};
use crate::sim::net::ConnId;
use crate::sim::world::World;

/// Both directions of one connection.
#[derive(Debug)]
pub struct Tap {
    client: usize,
    from_client: Decoder,
    from_switch: Decoder,
    /// What was sent under a tag, and as which number.
    tags: BTreeMap<u64, (MessageNo, u64)>,
    /// What the Hello asked for.
    asked: Option<u64>,
    /// The last entry pushed, and the last one acknowledged.
    pushed: u64,
    acked: u64,
    welcomed: bool,
}

impl Check {
    /// A connection is made.
    pub fn connected(&mut self, id: ConnId, client: usize) {
        let tap = Tap {
            client,
            from_client: Decoder::new(FRAME_BYTES_MAX),
            from_switch: Decoder::new(FRAME_BYTES_MAX),
            tags: BTreeMap::new(),
            asked: None,
            pushed: 0,
            acked: 0,
            welcomed: false,
        };
        self.taps.insert(id, tap);
    }

    /// A connection is over for both sides.
    pub fn disconnected(&mut self, id: ConnId) {
        self.taps.remove(&id);
    }

    /// A client has written bytes.
    pub fn client_sends(&mut self, world: &mut World, id: ConnId, bytes: &[u8]) {
        let Some(tap) = self.taps.get_mut(&id) else {
            return;
        };
        let mut input = bytes;
        while let Ok(Some(frame)) = tap.from_client.next(&mut input) {
            match decode_client(frame) {
                Ok(ClientFrameRef::Send(send)) => {
                    let Some(no) = message_no(&send.id) else {
                        world.fail(|| format!("{id:?}: a client changed a message's name"));
                        continue;
                    };
                    world.note(|| format!("{id:?} send {no} to {} n {}", send.to, send.n));
                    tap.tags.insert(send.tag, (no, send.n));
                }
                Ok(ClientFrameRef::Ack(seq)) => {
                    world.note(|| format!("{id:?} ack {seq}"));
                    tap.acked = tap.acked.max(seq);
                }
                Ok(ClientFrameRef::Hello(hello)) => {
                    let is_send_only = hello.capabilities.iter().any(|name| name == SEND_ONLY);
                    tap.asked = hello.resume_after.filter(|_| !is_send_only);
                    let (user, device, after) = (hello.token, hello.device, hello.resume_after);
                    world.note(|| format!("{id:?} hello {user}/{device} after {after:?}"));
                }
                Ok(_) => {}
                Err(error) => world.fail(|| format!("{id:?}: a client wrote: {error}")),
            }
        }
    }

    /// The switch has written bytes.
    pub fn switch_sends(&mut self, world: &mut World, _: &[FakeDisk], id: ConnId, bytes: &[u8]) {
        let Some(mut tap) = self.taps.remove(&id) else {
            return;
        };
        let mut input = bytes;
        let mut decoder = std::mem::replace(&mut tap.from_switch, Decoder::new(0));
        while let Ok(Some(frame)) = decoder.next(&mut input) {
            match decode_server(frame) {
                Ok(frame) => self.switch_frame(world, id, &mut tap, &frame),
                Err(error) => world.fail(|| format!("{id:?}: the switch wrote: {error}")),
            }
        }
        tap.from_switch = decoder;
        self.taps.insert(id, tap);
    }

    fn switch_frame(
        &mut self,
        world: &mut World,
        id: ConnId,
        tap: &mut Tap,
        frame: &ServerFrameRef<'_>,
    ) {
        match frame {
            ServerFrameRef::Welcome(welcome) => {
                world.note(|| {
                    format!(
                        "{id:?} welcome after {} of {}",
                        welcome.cursor, welcome.head_seq
                    )
                });
                tap.pushed = welcome.cursor;
                tap.acked = welcome.cursor;
                if std::mem::replace(&mut tap.welcomed, true) {
                    world.fail(|| format!("{id:?}: welcomed twice"));
                }
                let user = &self.seen[tap.client].user;
                let inbox = self.model_of(user).inboxes.get(user);
                let (head, oldest) = inbox.map_or((0, 1), |inbox| (inbox.head(), inbox.oldest));
                let (told, cursor) = (welcome.head_seq, welcome.cursor);
                if told > head {
                    world.fail(|| format!("{id:?}: {told} entries told, {head} durable"));
                }
                if let Some(asked) = tap.asked
                    && cursor != asked.max(oldest - 1)
                {
                    world.fail(|| format!("{id:?}: begins after {cursor}, not {asked}"));
                }
            }
            ServerFrameRef::Accepted(answer) => {
                let Some((no, n)) = tap.tags.remove(&answer.tag) else {
                    return world.fail(|| format!("{id:?}: accepted tag {} of nobody", answer.tag));
                };
                world.note(|| format!("{id:?} accepted {no}"));
                if n != answer.n {
                    world.fail(|| {
                        format!("{id:?}: message {no} went as {n}, accepted {}", answer.n)
                    });
                }
                if self.messages[no as usize].stored.is_none() {
                    world.fail(|| format!("{id:?}: message {no} accepted before it is durable"));
                }
            }
            ServerFrameRef::Rejected(answer) => {
                let no = tap.tags.remove(&answer.tag);
                let (code, n) = (answer.code(), answer.expected);
                world.note(|| format!("{id:?} rejected {no:?}: {code:?} (expected {n})"));
            }
            ServerFrameRef::Entry(entry) => {
                world.note(|| format!("{id:?} entry {} fetch {}", entry.seq, entry.fetch_tag));
                self.entry_leaves(world, id, tap, entry);
            }
            ServerFrameRef::Gap(gap) => {
                world.note(|| format!("{id:?} gap {} to {}", gap.first, gap.last));
                if gap.fetch_tag == 0 {
                    tap.pushed = gap.last;
                }
            }
            ServerFrameRef::Goodbye(goodbye) => self.goodbye(world, id, goodbye.reason()),
            ServerFrameRef::Fetched(_) | ServerFrameRef::Pong(_) => {}
            ServerFrameRef::Expiring(_) | ServerFrameRef::Reauthed(_) => {
                world.fail(|| format!("{id:?}: tokens do not end here, and it wrote {frame:?}"));
            }
        }
    }

    /// No entry leaves before it is durable, none out of order, and not more than the window takes.
    fn entry_leaves(
        &self,
        world: &mut World,
        id: ConnId,
        tap: &mut Tap,
        entry: &iris_proto::wire::EntryRef<'_>,
    ) {
        let user = &self.seen[tap.client].user;
        let stored = self
            .model_of(user)
            .inboxes
            .get(user)
            .and_then(|inbox| inbox.at(entry.seq));
        let no = message_no(&entry.id);
        if stored.is_none() || stored != no {
            return world.fail(|| {
                format!(
                    "{id:?}: entry {} of {user} is message {no:?}, durable is {stored:?}",
                    entry.seq
                )
            });
        }
        let len = no.map_or(0, |no| self.messages[no as usize].len);
        if no.is_some_and(|no| body_of(no, len) != entry.body) {
            world.fail(|| format!("{id:?}: entry {} of {user} has another body", entry.seq));
        }
        if entry.fetch_tag != 0 {
            return;
        }
        if entry.seq != tap.pushed + 1 {
            world.fail(|| format!("{id:?}: entry {} pushed behind {}", entry.seq, tap.pushed));
        }
        tap.pushed = entry.seq;
        if tap.pushed - tap.acked.min(tap.pushed) > u64::from(WINDOW_ENTRIES_MAX) {
            world.fail(|| format!("{id:?}: more entries under way than the window takes"));
        }
    }

    fn goodbye(&self, world: &mut World, id: ConnId, reason: GoodbyeReason) {
        world.note(|| format!("{id:?} goodbye {reason:?}"));
        let is_fine = match reason {
            GoodbyeReason::Normal
            | GoodbyeReason::Replaced
            | GoodbyeReason::ShuttingDown
            | GoodbyeReason::Overloaded
            | GoodbyeReason::HelloTimeout => true,
            GoodbyeReason::Unavailable | GoodbyeReason::Internal => self.damage.was_done(),
            _ => false,
        };
        if !is_fine {
            world.fail(|| format!("{id:?}: the switch said goodbye: {reason:?}"));
        }
    }
}
