//! What the core knows about one socket: which operations the kernel still has, and what the caller
//! wants. The slot decides the next step; [`super::Sockets`] carries it out.

use super::SocketId;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Operations under way, one bit each. The descriptor stays open until none is left.
pub(super) const RECEIVE: u8 = 1;
pub(super) const SEND: u8 = 2;
pub(super) const CONNECT: u8 = 4;
pub(super) const CANCEL: u8 = 8;

/// What is true of the socket or wanted of it, one bit each.
pub(super) const CONNECTED: u8 = 1;
/// The peer ended the stream, or it broke: nothing will be read again.
pub(super) const ENDED: u8 = 2;
pub(super) const PAUSED: u8 = 4;
/// `Event::Paused` has been given for this pause.
pub(super) const PAUSE_TOLD: u8 = 8;
pub(super) const DETACHING: u8 = 16;
pub(super) const CLOSING: u8 = 32;
/// Waits for a receive buffer, in the queue of the starved.
pub(super) const STARVED: u8 = 64;

/// What to do next with a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Receive,
    /// Cancel this operation, one of the bits above. By its name: to find all of a descriptor, the kernel
    /// looks at everything that the ring has under way, so that thousands of sockets which close at once
    /// would cost the square of their number.
    Cancel(u8),
    TellPaused,
    Detach,
    Free,
}

#[derive(Default)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) socket: Option<OwnedFd>,
    pub(super) operations: u8,
    pub(super) state: u8,
    /// Bytes of `sending` that the kernel has taken.
    pub(super) sent: u32,
    pub(super) sending: Vec<u8>,
    /// Where to connect to, while `CONNECT` is under way.
    pub(super) address: Option<Box<super::address::Address>>,
}

impl Slot {
    pub(super) fn has(&self, operation: u8) -> bool {
        self.operations & operation != 0
    }

    pub(super) fn is(&self, state: u8) -> bool {
        self.state & state != 0
    }

    /// The descriptor of a slot in use.
    pub(super) fn fd(&self) -> RawFd {
        let Some(socket) = &self.socket else {
            unreachable!("a slot in use has a descriptor");
        };
        socket.as_raw_fd()
    }

    /// The one place that decides; everything else only sets bits and asks.
    pub(super) fn next_step(&self) -> Step {
        if self.is(CLOSING) || self.is(DETACHING) {
            return self.step_to_the_end();
        }
        if self.is(PAUSED) {
            return match (self.has(RECEIVE), self.is(PAUSE_TOLD)) {
                (true, _) if self.has(CANCEL) => Step::Nothing,
                (true, _) => Step::Cancel(RECEIVE),
                (false, false) => Step::TellPaused,
                (false, true) => Step::Nothing,
            };
        }
        let idle = !self.has(RECEIVE) && !self.is(ENDED) && !self.is(STARVED);
        if self.is(CONNECTED) && idle {
            Step::Receive
        } else {
            Step::Nothing
        }
    }

    fn step_to_the_end(&self) -> Step {
        if self.operations == 0 {
            return if self.is(CLOSING) {
                Step::Free
            } else {
                Step::Detach
            };
        }
        if self.has(CANCEL) {
            return Step::Nothing;
        }
        if self.is(CLOSING) {
            // One after the other; most sockets have no more than one.
            let under_way = [RECEIVE, SEND, CONNECT]
                .into_iter()
                .find(|it| self.has(*it));
            return under_way.map_or(Step::Nothing, Step::Cancel);
        }
        // A send must finish before its socket can leave: its bytes are part of the stream.
        if self.has(RECEIVE) {
            Step::Cancel(RECEIVE)
        } else {
            Step::Nothing
        }
    }
}

/// All sockets of one core. Dense: a freed slot is used again, under a new generation.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots freed in this turn: the caller may not have seen the event that says so, and may have
    /// something of its own under this number, so they are used again from the next turn on.
    released: Vec<u32>,
    /// Sockets whose next step is to be looked at in the next turn.
    unsettled: VecDeque<SocketId>,
    /// Sockets that found no receive buffer, longest waiting first.
    starved: VecDeque<SocketId>,
}

impl Slots {
    pub(super) fn insert(&mut self, socket: OwnedFd) -> SocketId {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(
                self.slots.len() < super::SOCKETS_MAX,
                "more sockets than descriptors exist"
            );
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        assert!(entry.operations == 0 && entry.state == 0 && entry.socket.is_none());
        entry.socket = Some(socket);
        SocketId {
            slot,
            generation: entry.generation,
        }
    }

    /// None: the socket has gone, this is an old id.
    pub(super) fn get(&mut self, id: SocketId) -> Option<&mut Slot> {
        self.slots
            .get_mut(id.slot as usize)
            .filter(|slot| slot.generation == id.generation && slot.socket.is_some())
    }

    /// Frees the slot; its descriptor is the caller's, to keep or to close.
    pub(super) fn remove(&mut self, id: SocketId) -> OwnedFd {
        let slot = &mut self.slots[id.slot as usize];
        assert!(slot.generation == id.generation && slot.operations == 0);
        let generation = slot.generation.wrapping_add(1);
        let old = std::mem::replace(
            slot,
            Slot {
                generation,
                ..Slot::default()
            },
        );
        self.released.push(id.slot);
        let Some(socket) = old.socket else {
            unreachable!("a slot in use has a descriptor");
        };
        socket
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len() - self.released.len()
    }

    /// The caller has seen all events of the turns before.
    pub(super) fn begin_turn(&mut self) {
        self.free.append(&mut self.released);
    }

    /// Slots ever in use at the same time.
    #[cfg(test)]
    pub(super) fn table_len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn unsettle(&mut self, id: SocketId) {
        self.unsettled.push_back(id);
    }

    pub(super) fn next_unsettled(&mut self) -> Option<SocketId> {
        self.unsettled.pop_front()
    }

    pub(super) fn has_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    pub(super) fn starve(&mut self, id: SocketId) {
        self.starved.push_back(id);
    }

    pub(super) fn next_starved(&mut self) -> Option<SocketId> {
        self.starved.pop_front()
    }

    pub(super) fn has_starved(&self) -> bool {
        !self.starved.is_empty()
    }
}
