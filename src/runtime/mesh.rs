//! What cores say to each other, and how it is packed for the rings.
//!
//! ```text
//!   turn of core a:  message, message, message ─▶ parcel ─▶ ring a→b ─▶ core b reads them in place
//! ```
//!
//! All small messages of one turn for one core share one *parcel*, a byte buffer that crosses the
//! ring as a pointer and comes home empty by the ring in the other direction. So a message costs a
//! copy of its bytes, and the ring's atomics are paid once a turn. Connections that change cores
//! travel by themselves.
//!
//! Bounds: a ring holds `RING_SLOTS` parcels; the open parcel of a core that does not keep up makes
//! this core *congested* at [`PARCEL_BYTES_MAX`], and a congested core reads no sockets. Nothing is
//! dropped. Answers may still grow the open parcel then, but every answer belongs to a send that was
//! read before, and sessions have a bound of those.

use std::collections::VecDeque;

use iris_proto::id::SendNumber;
use iris_proto::v2::RejectCode;

use super::reactor::Handoff;
use crate::placement::{CoreId, UserHash};
use crate::ring::{Consumer, Producer, RING_SLOTS};
use crate::runtime::stream::Doorbell;
use crate::shard::ReplyTo;
use crate::stamp::Stamp;

/// Bytes of messages for one core that may wait for its ring before this core reads no more sockets.
pub const PARCEL_BYTES_MAX: usize = 256 * 1024;
/// Parcels taken from one ring in one turn; the rest waits for the next, after a look at the disk.
pub const PARCELS_PER_TURN_MAX: usize = 8;
/// Empty buffers kept for the next parcels.
const SPARE_BUFFERS_MAX: usize = 8;

/// What crosses a ring.
pub enum Parcel {
    /// Messages, one after the other.
    Messages {
        /// Packed.
        bytes: Vec<u8>,
        /// When they could be seen from the other core.
        published: Stamp,
    },
    /// A connection whose user lives on the other core.
    Connection(Box<Handoff>),
    /// A buffer on its way home.
    Empty(Vec<u8>),
}

/// One small message between cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// For the recipient's shard: store this.
    Append {
        /// Hash of the recipient.
        to: UserHash,
        /// Whom to answer.
        reply: ReplyTo,
        /// An encoded append.
        command: &'a [u8],
    },
    /// For a session: its send is durable.
    Accepted {
        /// The session and its request.
        reply: ReplyTo,
        /// The send's number.
        n: SendNumber,
    },
    /// For a session: its send was refused.
    Rejected {
        /// The session and its request.
        reply: ReplyTo,
        /// Why.
        code: RejectCode,
        /// For a gap, the number expected.
        expected: SendNumber,
        /// When to try again, in milliseconds; 0 = not said.
        retry_after_ms: u64,
    },
}

const HEAD_BYTES: usize = 40;
const KIND_APPEND: u8 = 1;
const KIND_ACCEPTED: u8 = 2;
const KIND_REJECTED: u8 = 3;

impl Message<'_> {
    /// Appends the packed message:
    /// `kind u8 | 0 | core u16 | body_len u32 | slot u32 | generation u32 | tag u64 | a u64 | b u64 | body`.
    fn pack(&self, out: &mut Vec<u8>) {
        let (kind, reply, a, b, body): (u8, &ReplyTo, u64, u64, &[u8]) = match self {
            Self::Append { to, reply, command } => {
                (KIND_APPEND, reply, to.0, reply.read.bits(), command)
            }
            Self::Accepted { reply, n } => (KIND_ACCEPTED, reply, n.0, reply.read.bits(), &[]),
            Self::Rejected {
                reply,
                code,
                expected,
                retry_after_ms,
            } => {
                let [low, ..] = (*code as i32).to_le_bytes(); // codes stay below 256
                let b = (retry_after_ms << 8) | u64::from(low);
                (KIND_REJECTED, reply, expected.0, b, &[])
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "a command is below 70 KiB")]
        let body_len = body.len() as u32;
        let mut head = [0; HEAD_BYTES];
        head[0] = kind;
        head[2..4].copy_from_slice(&reply.core.0.to_le_bytes());
        head[4..8].copy_from_slice(&body_len.to_le_bytes());
        head[8..12].copy_from_slice(&reply.slot.to_le_bytes());
        head[12..16].copy_from_slice(&reply.generation.to_le_bytes());
        head[16..24].copy_from_slice(&reply.tag.to_le_bytes());
        head[24..32].copy_from_slice(&a.to_le_bytes());
        head[32..40].copy_from_slice(&b.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(body);
    }
}

/// The messages of one parcel, in order.
pub struct Messages<'a>(&'a [u8]);

/// Reads a parcel's messages.
#[must_use]
pub fn messages(parcel: &[u8]) -> Messages<'_> {
    Messages(parcel)
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (head, rest) = self.0.split_first_chunk::<HEAD_BYTES>()?;
        let u32_at =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | (u64::from(u32_at(at + 4)) << 32);
        let (body, rest) = rest.split_at(u32_at(4) as usize);
        self.0 = rest;
        let core = CoreId(u16::from_le_bytes([head[2], head[3]]));
        let reply = ReplyTo {
            core,
            slot: u32_at(8),
            generation: u32_at(12),
            tag: u64_at(16),
            read: match head[0] {
                KIND_REJECTED => Stamp::default(), // `b` is taken, and nobody measures refusals
                _ => Stamp::of(u64_at(32)),
            },
        };
        let (a, b) = (u64_at(24), u64_at(32));
        Some(match head[0] {
            KIND_APPEND => Message::Append {
                to: UserHash(a),
                reply,
                command: body,
            },
            KIND_ACCEPTED => Message::Accepted {
                reply,
                n: SendNumber(a),
            },
            KIND_REJECTED => Message::Rejected {
                reply,
                code: RejectCode::try_from(i32::from(b.to_le_bytes()[0])).unwrap_or_default(),
                expected: SendNumber(a),
                retry_after_ms: b >> 8,
            },
            kind => unreachable!("message kind {kind} between two cores of one process"),
        })
    }
}

/// One other core: both directions and its bell.
pub struct Peer {
    /// Its number.
    pub core: CoreId,
    /// To it.
    pub producer: Producer<Parcel>,
    /// From it.
    pub consumer: Consumer<Parcel>,
    /// Wakes it.
    pub doorbell: Doorbell,
    open: Vec<u8>,
    leaving: VecDeque<Handoff>,
    /// Read buffers of this peer, to travel home with the next parcel: never a reason to wake it.
    read: Vec<Vec<u8>>,
}

impl Peer {
    /// A peer with nothing under way.
    #[must_use]
    pub fn new(
        core: CoreId,
        producer: Producer<Parcel>,
        consumer: Consumer<Parcel>,
        doorbell: Doorbell,
    ) -> Self {
        Self {
            core,
            producer,
            consumer,
            doorbell,
            open: Vec::new(),
            leaving: VecDeque::new(),
            read: Vec::new(),
        }
    }
}

/// All other cores, as one core sees them.
#[derive(Default)]
pub struct Mesh {
    peers: Vec<Peer>,
    spare: Vec<Vec<u8>>,
}

impl Mesh {
    /// The mesh of a core with these peers.
    #[must_use]
    pub fn new(peers: Vec<Peer>) -> Self {
        Self {
            peers,
            spare: Vec::new(),
        }
    }

    /// Packs a message for another core. It leaves with [`publish`](Self::publish).
    pub fn send(&mut self, core: CoreId, message: &Message<'_>) {
        message.pack(&mut self.peer(core).open);
    }

    /// Sends a connection to another core. It leaves with [`publish`](Self::publish).
    pub fn hand_over(&mut self, core: CoreId, handoff: Handoff) {
        self.peer(core).leaving.push_back(handoff);
    }

    /// Whether some core is so far behind that this one must stop reading sockets.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        let behind =
            |peer: &Peer| peer.open.len() >= PARCEL_BYTES_MAX || peer.leaving.len() >= RING_SLOTS;
        self.peers.iter().any(behind)
    }

    /// Shows the other cores what this turn made, and wakes those that sleep.
    pub fn publish(&mut self, now: Stamp) {
        for peer in &mut self.peers {
            while peer.producer.room() > 0
                && let Some(handoff) = peer.leaving.pop_front()
            {
                let pushed = peer.producer.push(Parcel::Connection(Box::new(handoff)));
                assert!(pushed.is_ok(), "a ring with room takes a connection");
            }
            if !peer.open.is_empty() && peer.producer.room() > SPARE_BUFFERS_MAX {
                let next = self.spare.pop().unwrap_or_default();
                let parcel = std::mem::replace(&mut peer.open, next);
                let read = peer.read.drain(..).map(Parcel::Empty);
                let parcel = Parcel::Messages {
                    bytes: parcel,
                    published: now,
                };
                for parcel in std::iter::once(parcel).chain(read) {
                    let pushed = peer.producer.push(parcel);
                    assert!(pushed.is_ok(), "a ring with room takes a parcel");
                }
            }
            peer.producer.publish(|| peer.doorbell.ring());
        }
    }

    /// Takes parcels from all rings, a bounded number from each, and passes each to `take`.
    pub fn receive(&mut self, mut take: impl FnMut(CoreId, Parcel)) {
        let spare = &mut self.spare;
        for peer in &mut self.peers {
            let core = peer.core;
            peer.consumer
                .drain(PARCELS_PER_TURN_MAX, |parcel| match parcel {
                    Parcel::Empty(buffer) if spare.len() < SPARE_BUFFERS_MAX => spare.push(buffer),
                    Parcel::Empty(_) => {}
                    parcel => take(core, parcel),
                });
        }
    }

    /// Keeps a read parcel's buffer to send it home, or lets it go when there are many.
    pub fn give_back(&mut self, core: CoreId, mut buffer: Vec<u8>) {
        buffer.clear();
        let peer = self.peer(core);
        if buffer.capacity() <= PARCEL_BYTES_MAX && peer.read.len() < SPARE_BUFFERS_MAX {
            peer.read.push(buffer);
        }
    }

    /// Parcels that wait in the rings to this core.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.peers.iter().map(|peer| peer.consumer.len()).sum()
    }

    /// Whether a peer has published something that was not taken.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        self.peers.iter().any(|peer| !peer.consumer.is_empty())
    }

    /// Whether something waits for room in a ring.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.peers
            .iter()
            .any(|peer| !peer.open.is_empty() || !peer.leaving.is_empty())
    }

    fn peer(&mut self, core: CoreId) -> &mut Peer {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.core == core) else {
            unreachable!("core {} is no peer of this one", core.0);
        };
        peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_of_a_parcel_as_they_went_in() {
        let reply = ReplyTo {
            core: CoreId(3),
            slot: 77,
            generation: 0xdead_beef,
            tag: u64::MAX,
            read: Stamp::of((1 << 48) - 2),
        };
        let all = [
            Message::Append {
                to: UserHash(5),
                reply,
                command: b"some command",
            },
            Message::Accepted {
                reply,
                n: SendNumber(1 << 40),
            },
            Message::Append {
                to: UserHash(6),
                reply,
                command: b"",
            },
            Message::Rejected {
                reply: ReplyTo {
                    read: Stamp::default(),
                    ..reply
                },
                code: RejectCode::InboxFull,
                expected: SendNumber(9),
                retry_after_ms: 1_500,
            },
        ];
        let mut parcel = Vec::new();
        for message in &all {
            message.pack(&mut parcel);
        }
        assert_eq!(messages(&parcel).collect::<Vec<_>>(), all);
    }
}
