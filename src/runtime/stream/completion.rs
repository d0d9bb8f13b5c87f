//! What completions mean: each names its operation by a tag, and becomes at most a few events.

use super::*;

/// Which operation a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Receive = 1,
    Send,
    Connect,
    Cancel,
    Accept,
    AcceptCancel,
    AcceptTimer,
    Write,
    Sync,
    Populate,
    /// The eventfd was written to; armed for as long as the rings live.
    Doorbell,
    /// The cancellation of everything, when the rings are dropped.
    CancelAll,
}

const KINDS: [Kind; 12] = [
    Kind::Receive,
    Kind::Send,
    Kind::Connect,
    Kind::Cancel,
    Kind::Accept,
    Kind::AcceptCancel,
    Kind::AcceptTimer,
    Kind::Write,
    Kind::Sync,
    Kind::Populate,
    Kind::Doorbell,
    Kind::CancelAll,
];

/// The name of an operation, as it travels through the kernel: `slot 24 | kind 8 | generation 32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) kind: Kind,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Tag {
    pub(super) const CANCEL_ALL: Tag = Tag {
        kind: Kind::CancelAll,
        slot: 0,
        generation: 0,
    };

    pub(super) const DOORBELL: Tag = Tag {
        kind: Kind::Doorbell,
        slot: 0,
        generation: 0,
    };

    pub(super) fn socket(kind: Kind, id: SocketId) -> Tag {
        Tag {
            kind,
            slot: id.slot,
            generation: id.generation,
        }
    }

    pub(super) fn pack(self) -> u64 {
        assert!((self.slot as usize) < SOCKETS_MAX);
        u64::from(self.slot) << 40 | (self.kind as u64) << 32 | u64::from(self.generation)
    }

    pub(super) fn unpack(user_data: u64) -> Tag {
        let number = (user_data >> 32) as u8;
        let Some(&kind) = KINDS.get(usize::from(number).wrapping_sub(1)) else {
            unreachable!("the kernel returned a tag that was never given: {user_data:#x}");
        };
        Tag {
            kind,
            slot: (user_data >> 40) as u32,
            generation: user_data as u32,
        }
    }

    fn id(self) -> SocketId {
        SocketId {
            slot: self.slot,
            generation: self.generation,
        }
    }
}

/// An accepted connection that nobody will hear of is closed.
pub(super) fn close_if_accepted(completion: Completion) {
    if Tag::unpack(completion.user_data).kind == Kind::Accept && completion.result >= 0 {
        drop(accepted(completion.result));
    }
}

pub(super) fn accepted(fd: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A completion's result as success with a count, or an errno.
pub(super) fn outcome(result: i32) -> Result<u32, i32> {
    u32::try_from(result).map_err(|_| -result)
}

impl Sockets {
    /// Takes in one completion.
    pub(super) fn complete(&mut self, completion: Completion, events: &mut Vec<Event>) {
        let tag = Tag::unpack(completion.user_data);
        match tag.kind {
            Kind::Receive => self.received(tag.id(), completion, events),
            Kind::Send => self.sent(tag.id(), completion, events),
            Kind::Connect => self.connected(tag.id(), completion, events),
            Kind::Cancel => self.cancelled(tag.id()),
            Kind::Accept => self.accept_completed(tag.generation, completion.result, events),
            Kind::AcceptCancel => self.accept_cancelled(tag.generation),
            Kind::AcceptTimer => self.accept_rested(tag.generation),
            Kind::Write | Kind::Sync | Kind::Populate => {
                if let Some(event) = self.jobs.complete(tag, completion.result) {
                    events.push(event);
                }
            }
            Kind::Doorbell => {
                if !completion.more() {
                    self.arm_doorbell();
                }
            }
            Kind::CancelAll => unreachable!("only when dropped"),
        }
    }

    fn received(&mut self, id: SocketId, completion: Completion, events: &mut Vec<Event>) {
        let result = outcome(completion.result);
        let buffer = match (completion.buffer(), result) {
            (Some(number), Ok(bytes)) if bytes > 0 => Some(self.buffers.take(number, bytes)),
            (Some(number), _) => {
                self.buffers.return_unused(number);
                None
            }
            (None, _) => None,
        };
        let Some(slot) = self.slots.get(id) else {
            // An old generation: the slot's owner has changed, which the invariant excludes; a
            // buffer is never lost over it.
            debug_assert!(false, "a receive outlived its socket");
            buffer
                .into_iter()
                .for_each(|buffer| self.buffers.release(buffer));
            return;
        };
        if !completion.more() {
            slot.operations &= !RECEIVE;
        }
        let closing = slot.is(CLOSING);
        let mut starved = false;
        match (buffer, result) {
            (Some(buffer), _) if closing => self.buffers.release(buffer),
            (Some(buffer), _) => events.push(Event::Received { id, buffer }),
            (None, Err(libc::ENOBUFS)) => starved = !slot.is(STARVED | ENDED),
            (None, Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN)) => {}
            (None, result) => {
                let told = slot.is(ENDED);
                slot.state |= ENDED;
                if !told && !closing {
                    let reason = result.map_or_else(Ended::Error, |_| Ended::Eof);
                    events.push(Event::Ended { id, reason });
                }
            }
        }
        if starved && let Some(slot) = self.slots.get(id) {
            slot.state |= STARVED;
            self.slots.starve(id);
        }
        if !completion.more() {
            self.settle(id, events);
        }
    }

    fn sent(&mut self, id: SocketId, completion: Completion, events: &mut Vec<Event>) {
        let Some(slot) = self.slots.get(id) else {
            unreachable!("a send outlived its socket")
        };
        assert!(slot.has(SEND));
        let mut result = outcome(completion.result);
        if let Ok(bytes) = result {
            slot.sent += bytes;
            let left = slot.sending.len() - slot.sent as usize;
            if left > 0 && bytes > 0 && !slot.is(CLOSING) {
                // Cut short, by a signal or an error to come: the rest tells which.
                return self.push_send(id);
            }
            if left > 0 {
                result = Err(if slot.is(CLOSING) {
                    libc::ECANCELED
                } else {
                    libc::EPIPE
                });
            }
        }
        slot.operations &= !SEND;
        let buffer = std::mem::take(&mut slot.sending);
        events.push(Event::Sent {
            id,
            buffer,
            result: result.map(|_| ()),
        });
        if self
            .slots
            .get(id)
            .is_some_and(|slot| slot.is(CLOSING | DETACHING))
        {
            self.settle(id, events);
        }
    }

    fn connected(&mut self, id: SocketId, completion: Completion, events: &mut Vec<Event>) {
        let Some(slot) = self.slots.get(id) else {
            unreachable!("a connect outlived its socket")
        };
        assert!(slot.has(CONNECT));
        slot.operations &= !CONNECT;
        slot.address = None;
        let result = outcome(completion.result).map(|_| ());
        slot.state |= if result.is_ok() { CONNECTED } else { ENDED };
        if !slot.is(CLOSING) {
            events.push(Event::Connected { id, result });
        }
        self.settle(id, events);
    }

    /// A cancellation may find its operation just under way and miss it. So look again, but in the
    /// next turn: what it did cancel completes in this one.
    fn cancelled(&mut self, id: SocketId) {
        let Some(slot) = self.slots.get(id) else {
            unreachable!("a cancellation outlived its socket")
        };
        assert!(slot.has(CANCEL));
        slot.operations &= !CANCEL;
        self.slots.unsettle(id);
    }
}
