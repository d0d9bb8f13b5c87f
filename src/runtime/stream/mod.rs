//! Sockets, and the log's writes, on a private io_uring: the hot path of one core.
//!
//! ```text
//!   reactor ──listen/adopt/send/close──▶ Sockets ──entries──▶ ring ──▶ kernel
//!      ▲                                    │                            │
//!      └────────── events, one turn ────────┴────── completions ─────────┘
//! ```
//!
//! One task per core drives it: `turn` submits what was asked for and hands over what has happened,
//! with at most one system call and none when there is nothing to do; when idle, the task sleeps in
//! [`wait`]. Receiving is armed once and completes many times (multishot); the bytes come in buffers of the
//! core ([`BufferId`]), so an idle connection owns none. Accepting goes by allowance
//! ([`Sockets::accept_up_to`]).
//!
//! Invariants:
//! - A descriptor is closed, or handed out by `Detached`, only after every operation on it has
//!   completed; only then is its slot used again, under a new generation. So no completion ever
//!   meets another socket than its own.
//! - What the kernel reads or writes stays where it is: a buffer under way belongs to the slot or
//!   the job, never to the caller.
//! - A socket sends one buffer at a time, whole and in order.
//! - No allocation per completion, except by the caller's own event list.
//!
//! It does not know TLS (see [`super::tls`]), frames or sessions, and it never blocks, except when
//! dropped: then it waits until the kernel has let go of its memory.

mod address;
mod buffers;
mod completion;
mod job;
mod listener;
mod ring;
mod slot;
#[cfg(test)]
mod tests;
mod wake;

pub use address::peer_of;
pub use buffers::BufferId;
pub use wake::{Doorbell, SLEEP_MAX, wait};

use buffers::Buffers;
use completion::{Kind, Tag};
use io_uring::{opcode, types};
use job::Jobs;
use listener::Listener;
use ring::{Completion, REAP_BATCH, Ring};
use slot::{
    CANCEL, CLOSING, CONNECT, CONNECTED, DETACHING, ENDED, PAUSE_TOLD, PAUSED, RECEIVE, SEND,
    STARVED, Slots, Step,
};
use std::fs::File;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Receive buffers of one core; the kernel's own limit. More is refused at start.
pub const BUFFERS_MAX: u16 = 1 << 15;
/// Bytes of one receive buffer. A guess: beyond a TLS record and its overhead there is no gain.
pub const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Sockets of one core: what the tag of a completion can name. Reaching it is a bug, since a
/// process has no more descriptors.
pub const SOCKETS_MAX: usize = 1 << 24;
/// Writes of one job, each followed by a sync of its file. More is the caller's bug.
pub const JOB_WRITES_MAX: usize = 2;
/// Ring entries of one job.
pub(crate) const JOB_ENTRIES_MAX: usize = 2 * JOB_WRITES_MAX;
/// Jobs under way on one core. More is the caller's bug: it has one flush under way, and bounds its
/// cold reads.
pub const JOBS_MAX: usize = 1024;
/// Connections that may be accepted in one turn, at most.
pub const ACCEPTS_MAX: usize = 64;
/// How long accepting rests after an error such as EMFILE, in milliseconds. A guess: short for a
/// person, long for a processor.
pub const ACCEPT_BACKOFF_MS: u32 = 100;

const _: () = {
    assert!(BUFFERS_MAX.is_power_of_two()); // positions wrap by masking
    assert!(JOBS_MAX <= 1 << 16); // a tag has 16 bits for the job, 8 for its write
    assert!(JOB_WRITES_MAX < 1 << 8);
};

/// How large one core's rings and pool are.
#[derive(Clone, Debug)]
pub struct SocketsConfig {
    /// Entries of the submission ring, a power of two; what does not fit waits for the next turn.
    pub entries: u32,
    /// Receive buffers, a power of two up to [`BUFFERS_MAX`].
    pub buffers: u16,
    /// Bytes of each receive buffer, up to [`BUFFER_BYTES_MAX`].
    pub buffer_bytes: usize,
}

impl Default for SocketsConfig {
    fn default() -> Self {
        SocketsConfig {
            entries: 4096,
            buffers: 1024,
            buffer_bytes: 4096,
        }
    }
}

/// One socket of one core. Slots are dense, so `slot` may index a table of the caller's; a table
/// entry is the same socket only if the generation is the same, too. Ids of different [`Sockets`]
/// must not be mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    /// Position in the core's table of sockets.
    pub slot: u32,
    /// How often the slot has been used before.
    pub generation: u32,
}

/// Why nothing more will be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer finished its side.
    Eof,
    /// The connection broke; the errno.
    Error(i32),
}

/// What has happened. Events of one socket come in order. After `close` the only event of a socket
/// is the `Sent` of a send that was under way.
#[derive(Debug)]
pub enum Event {
    /// A connection was accepted. It is the caller's: adopt it, or drop it. See [`peer_of`].
    Accepted {
        /// The new connection.
        socket: OwnedFd,
    },
    /// Accepting failed and rests for [`ACCEPT_BACKOFF_MS`]; then more may be asked for.
    AcceptFailed {
        /// EMFILE: no descriptors left; raise the limit or refuse clients earlier.
        errno: i32,
    },
    /// A `connect` has finished. On success the socket reads and can send; else close it.
    Connected {
        /// The socket that `connect` returned.
        id: SocketId,
        /// The errno of a failure.
        result: Result<(), i32>,
    },
    /// Bytes have arrived; see [`Sockets::data`]. Give the buffer back with [`Sockets::release`].
    Received {
        /// Whose bytes.
        id: SocketId,
        /// Where they are.
        buffer: BufferId,
    },
    /// Nothing more will be received. Sending may still work; close the socket when done.
    Ended {
        /// Which socket.
        id: SocketId,
        /// Why.
        reason: Ended,
    },
    /// A `pause` has taken effect: nothing will be received until `resume`.
    Paused {
        /// Which socket.
        id: SocketId,
    },
    /// A send has finished, wholly or with an error; the buffer is back, as it was given.
    Sent {
        /// Which socket; after `close` it may be gone already.
        id: SocketId,
        /// The buffer of that send.
        buffer: Vec<u8>,
        /// The errno of a failure. How many bytes went out is then not known.
        result: Result<(), i32>,
    },
    /// A `detach` has finished: the core has no more to do with the connection.
    Detached {
        /// The id it had here; it is gone.
        id: SocketId,
        /// The connection, to be adopted elsewhere.
        socket: OwnedFd,
    },
    /// A job of [`Sockets::write_and_sync`] or [`Sockets::populate`] has finished.
    Job {
        /// The number given at its start.
        job: u64,
        /// The errno of the first failure; after it nothing of the job counts as durable.
        result: Result<(), i32>,
        /// The buffers that were written, in order; none for `populate`.
        buffers: Vec<Vec<u8>>,
    },
}

/// Why a core's rings could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// io_uring is missing, forbidden or short of memory.
    #[error(
        "cannot set up io_uring: {source}; Linux 6.1 or newer is needed, and a container's seccomp \
         profile must allow io_uring_setup, io_uring_enter and io_uring_register (sysctl \
         kernel.io_uring_disabled must be 0)"
    )]
    Ring {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The receive buffers could not be registered.
    #[error(
        "cannot register the receive buffers with io_uring: {source}; Linux 6.1 or newer is \
         needed, and the locked-memory limit (ulimit -l) must allow 512 KiB"
    )]
    BufferRing {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The eventfd could not be made or registered.
    #[error("cannot make the eventfd of a core: {source}; raise the open-files limit (ulimit -n)")]
    Eventfd {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The receive buffers do not fit into memory.
    #[error("cannot map {bytes} bytes of receive buffers: {source}; configure fewer")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// All sockets of one core, and its disk jobs. Stays on the thread that made it.
pub struct Sockets {
    // Dropped in this order, after `drop` has drained the ring.
    ring: Ring,
    buffers: Buffers,
    slots: Slots,
    jobs: Jobs,
    listener: Option<Listener>,
    listener_generation: u32,
    eventfd: Arc<File>,
    /// The ring accepts one submitting thread only.
    _not_send: PhantomData<*const ()>,
}

impl Sockets {
    /// Sets the rings up on the calling thread, which must be the one that calls `turn`.
    pub fn new(config: SocketsConfig) -> Result<Sockets, StartError> {
        assert!(config.entries.is_power_of_two() && config.entries as usize >= JOB_ENTRIES_MAX);
        let mut buffers = Buffers::new(config.buffers, config.buffer_bytes)?;
        // Each buffer may sit in one completion, and each entry makes one more.
        let completions = (config.entries.saturating_mul(2)).max(u32::from(config.buffers) * 2);
        let ring = Ring::new(config.entries, completions.next_power_of_two())?;
        let (address, count) = buffers.ring();
        // SAFETY: the mapping holds `count` entries; it is dropped after the ring has been drained.
        unsafe { ring.register_buffers(address, count)? };
        buffers.lend_all();
        let eventfd = wake::eventfd()?;
        let mut sockets = Sockets {
            ring,
            buffers,
            slots: Slots::default(),
            jobs: Jobs::default(),
            listener: None,
            listener_generation: 0,
            eventfd,
            _not_send: PhantomData,
        };
        sockets.arm_doorbell();
        Ok(sockets)
    }

    /// The eventfd that completions and doorbells write to; owned by this object.
    pub fn eventfd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// A handle with which other threads wake this core.
    pub fn doorbell(&self) -> Doorbell {
        Doorbell {
            eventfd: Arc::clone(&self.eventfd),
        }
    }

    /// `io_uring_enter` calls so far: what a message costs shows here.
    pub fn system_calls(&self) -> u64 {
        self.ring.enters()
    }

    /// Sockets of this core, closing ones included.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Takes a connected stream over and starts to read from it.
    pub fn adopt(&mut self, socket: OwnedFd) -> SocketId {
        address::prepare(&socket);
        let id = self.slots.insert(socket);
        self.set(id, CONNECTED);
        id
    }

    /// Starts to connect; [`Event::Connected`] tells the outcome. An error here means that no
    /// socket could be made (EMFILE).
    pub fn connect(&mut self, to: SocketAddr) -> std::io::Result<SocketId> {
        let socket = address::new_socket(to)?;
        address::prepare(&socket);
        let id = self.slots.insert(socket);
        let Some(slot) = self.slots.get(id) else {
            unreachable!("it was just inserted")
        };
        let (address, length) = address::Address::new(to);
        slot.operations |= CONNECT;
        let fd = types::Fd(slot.fd());
        let address = slot.address.insert(Box::new(address)).as_ptr();
        let entry = opcode::Connect::new(fd, address, length)
            .build()
            .user_data(Tag::socket(Kind::Connect, id).pack());
        // SAFETY: the boxed address stays in the slot until the connect has completed.
        unsafe { self.ring.push(entry) };
        Ok(id)
    }

    /// Whether [`Self::send`] may be called: connected, not closing, and no send under way. It can
    /// be true before the `Sent` of the last send has been looked at, so keep what waits to be sent
    /// in one queue per socket, and send from its front only.
    pub fn can_send(&mut self, id: SocketId) -> bool {
        self.slots.get(id).is_some_and(|slot| {
            slot.is(CONNECTED) && !slot.is(CLOSING | DETACHING) && !slot.has(SEND)
        })
    }

    /// Sends all of `buffer`, which must not be empty; [`Event::Sent`] brings it back. One send per
    /// socket at a time: see [`Self::can_send`].
    pub fn send(&mut self, id: SocketId, buffer: Vec<u8>) {
        assert!(!buffer.is_empty() && u32::try_from(buffer.len()).is_ok());
        assert!(
            self.can_send(id),
            "one send per socket at a time, and none after close"
        );
        let Some(slot) = self.slots.get(id) else {
            unreachable!("checked by can_send")
        };
        slot.operations |= SEND;
        slot.sent = 0;
        slot.sending = buffer;
        self.push_send(id);
    }

    /// Stops reading: [`Event::Paused`] follows what had already been received. The peer's sending
    /// fills the kernel's buffers and then stalls.
    pub fn pause(&mut self, id: SocketId) {
        self.set(id, PAUSED);
    }

    /// Reads again.
    pub fn resume(&mut self, id: SocketId) {
        if let Some(slot) = self.slots.get(id) {
            slot.state &= !(PAUSED | PAUSE_TOLD);
            self.slots.unsettle(id);
        }
    }

    /// Gives the connection away: [`Event::Detached`] follows all that was received, and the end of
    /// a send under way (which a peer that does not read can hold up: close it then).
    pub fn detach(&mut self, id: SocketId) {
        self.set(id, DETACHING);
    }

    /// Sends the end of the stream after what has been sent; reading goes on. Wait for the peer's
    /// own end before closing, or bytes under way may be lost. Not while a send is under way.
    pub fn finish(&mut self, id: SocketId) {
        if let Some(slot) = self.slots.get(id) {
            assert!(!slot.has(SEND), "a send is under way");
            if slot.is(CONNECTED) && !slot.is(CLOSING) {
                address::shut_down_writing(slot.fd());
            }
        }
    }

    /// Closes the socket once the kernel has let go of it. Calling it again does nothing.
    pub fn close(&mut self, id: SocketId) {
        self.set(id, CLOSING);
    }

    /// The bytes of a received buffer, as many as arrived, to be decrypted in place.
    pub fn data(&mut self, buffer: &BufferId) -> &mut [u8] {
        self.buffers.data(buffer)
    }

    /// Gives a received buffer back to the kernel.
    pub fn release(&mut self, buffer: BufferId) {
        self.buffers.release(buffer);
    }

    /// Writes and syncs (fdatasync), each before the next, as one linked chain; [`Event::Job`]
    /// comes once at the end. A short write is an error (EIO). At most [`JOB_WRITES_MAX`] writes.
    ///
    /// # Safety
    /// Every descriptor stays open until `Event::Job`, and is of a file that may be written at
    /// these offsets: nobody holds a `&[u8]` into a map of the bytes that are overwritten.
    pub unsafe fn write_and_sync(
        &mut self,
        job: u64,
        writes: impl Iterator<Item = (RawFd, u64, Vec<u8>)>,
    ) {
        // SAFETY: promised by the caller; the buffers stay in the job until it has completed.
        unsafe { self.jobs.write_and_sync(&mut self.ring, job, writes) }
    }

    /// Reads the pages of a mapped file range into memory, off this core; [`Event::Job`] says when.
    /// `addr` is page-aligned.
    ///
    /// # Safety
    /// `addr .. addr + len` lies in a mapping that stays mapped until `Event::Job`.
    pub unsafe fn populate(&mut self, job: u64, addr: usize, len: usize) {
        // SAFETY: promised by the caller.
        unsafe { self.jobs.populate(&mut self.ring, job, addr, len) }
    }

    /// Submits what was asked for and appends what has happened to `events`, without blocking. The
    /// events of earlier turns must have been dealt with: slots that they freed are used again. Stops
    /// when `events` holds `max` (one completion may add up to two beyond); the rest keeps.
    pub fn turn(&mut self, events: &mut Vec<Event>, max: usize) {
        self.slots.begin_turn();
        self.settle_all(events, max);
        self.feed_the_starved(events);
        self.ring.enter(false);
        let mut batch = [Completion::default(); REAP_BATCH];
        while events.len() < max {
            let count = self.ring.reap(&mut batch, max - events.len());
            if count == 0 {
                return;
            }
            for completion in &batch[..count] {
                self.complete(*completion, events);
            }
        }
    }

    /// Whether `turn` would do anything.
    pub fn has_work(&mut self) -> bool {
        self.ring.has_work()
            || self.slots.has_unsettled()
            || (self.slots.has_starved() && self.buffers.available() > 0)
    }

    /// Submits what was asked for and blocks until `turn` has something to do or a [`Doorbell`] rings,
    /// `timeout` at the longest; it may return for nothing. One system call.
    pub fn park(&mut self, timeout: std::time::Duration) {
        if !self.slots.has_unsettled() && self.ring.is_empty() {
            self.ring.wait(timeout);
        }
    }

    /// Has the doorbell heard: every write to the eventfd is a completion.
    fn arm_doorbell(&mut self) {
        let eventfd = types::Fd(self.eventfd.as_raw_fd());
        let entry = opcode::PollAdd::new(eventfd, libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(Tag::DOORBELL.pack());
        // SAFETY: the entry points to nothing; the eventfd is open for as long as the ring.
        unsafe { self.ring.push(entry) };
    }

    fn set(&mut self, id: SocketId, state: u8) {
        if let Some(slot) = self.slots.get(id)
            && !slot.is(state)
        {
            slot.state |= state;
            self.slots.unsettle(id);
        }
    }

    /// The sockets whose wishes changed since the last turn. The queue holds one entry per change
    /// since then, so it is bounded by the caller's own calls.
    fn settle_all(&mut self, events: &mut Vec<Event>, max: usize) {
        while events.len() < max {
            let Some(id) = self.slots.next_unsettled() else {
                return;
            };
            self.settle(id, events);
        }
    }

    /// As many starved sockets read again as buffers are there: each needs at least one.
    fn feed_the_starved(&mut self, events: &mut Vec<Event>) {
        for _ in 0..self.buffers.available() {
            let Some(id) = self.slots.next_starved() else {
                return;
            };
            if let Some(slot) = self.slots.get(id) {
                slot.state &= !STARVED;
                self.settle(id, events);
            }
        }
    }

    /// Takes the next step of a socket, if there is one.
    fn settle(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        match slot.next_step() {
            Step::Nothing => {}
            Step::Receive => {
                slot.operations |= RECEIVE;
                let entry = opcode::RecvMulti::new(types::Fd(slot.fd()), 0)
                    .build()
                    .user_data(Tag::socket(Kind::Receive, id).pack());
                // SAFETY: the entry points to nothing; the buffers belong to the registered pool.
                unsafe { self.ring.push(entry) };
            }
            Step::Cancel(operation) => {
                slot.operations |= CANCEL;
                let kind = match operation {
                    RECEIVE => Kind::Receive,
                    SEND => Kind::Send,
                    _ => Kind::Connect,
                };
                self.push_cancel(Tag::socket(kind, id), id);
            }
            Step::TellPaused => {
                slot.state |= PAUSE_TOLD;
                events.push(Event::Paused { id });
            }
            Step::Detach => events.push(Event::Detached {
                id,
                socket: self.slots.remove(id),
            }),
            Step::Free => drop(self.slots.remove(id)),
        }
    }

    fn push_cancel(&mut self, which: Tag, id: SocketId) {
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::user_data(which.pack()))
            .build()
            .user_data(Tag::socket(Kind::Cancel, id).pack());
        // SAFETY: the entry points to nothing.
        unsafe { self.ring.push(entry) };
    }

    /// Submits what is left of the slot's buffer.
    fn push_send(&mut self, id: SocketId) {
        let Some(slot) = self.slots.get(id) else {
            unreachable!("a socket that sends is there")
        };
        let left = &slot.sending[slot.sent as usize..];
        let entry = opcode::Send::new(types::Fd(slot.fd()), left.as_ptr(), left.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .user_data(Tag::socket(Kind::Send, id).pack());
        // SAFETY: the buffer stays in the slot, untouched, until the send has completed.
        unsafe { self.ring.push(entry) };
    }
}

impl Drop for Sockets {
    /// Cancels everything and waits until the kernel has let go of our memory; a write under way is
    /// finished or cancelled, and nobody is told.
    fn drop(&mut self) {
        let mut batch = [Completion::default(); REAP_BATCH];
        let mut cancelled = false;
        while self.ring.in_flight() > 0 {
            if !cancelled {
                let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any())
                    .build()
                    .user_data(Tag::CANCEL_ALL.pack());
                // SAFETY: the entry points to nothing.
                unsafe { self.ring.push(entry) };
                cancelled = true;
            }
            self.ring.enter(true);
            let count = self.ring.reap(&mut batch, REAP_BATCH);
            for completion in &batch[..count] {
                // What was not submitted when the cancellation ran is cancelled by another one.
                cancelled &= completion.user_data != Tag::CANCEL_ALL.pack();
                completion::close_if_accepted(*completion);
            }
        }
    }
}
