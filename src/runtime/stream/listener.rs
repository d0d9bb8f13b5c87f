//! Accepting connections, no more at a time than the caller asks for.
//!
//! Each connection is taken by an operation of its own, and [`Sockets::accept_up_to`] says how many of them
//! are under way. So whoever connects waits in the kernel until the core has time for it: an operation that
//! takes all that come would hand over thousands in one turn, for which every session of the core waits.

use super::completion::{accepted, outcome};
use super::*;

/// Accepting rests this long after an error. Static, since the kernel reads it at submission.
static BACKOFF: types::Timespec = types::Timespec::new().nsec(ACCEPT_BACKOFF_MS * 1_000_000);

/// Where the listening socket stands.
pub(super) struct Listener {
    socket: TcpListener,
    pub(super) generation: u32,
    /// Accepts that the kernel has.
    pub(super) under_way: usize,
    /// After an error, until a timer ends.
    pub(super) resting: bool,
    cancelling: bool,
    stopping: bool,
}

impl Listener {
    fn tag(&self, kind: Kind) -> Tag {
        Tag {
            kind,
            slot: 0,
            generation: self.generation,
        }
    }
}

impl Sockets {
    /// Listens on `socket` until [`Self::stop_listening`]. One listener at a time. Connections are taken as
    /// far as [`Self::accept_up_to`] allows.
    pub fn listen(&mut self, socket: TcpListener) {
        assert!(self.listener.is_none(), "one listener at a time");
        // The ring waits for connections; a non-blocking listener would answer EAGAIN instead. If
        // this fails, accepting reports EAGAIN as `AcceptFailed`.
        let _ = socket.set_nonblocking(false);
        self.listener_generation = self.listener_generation.wrapping_add(1);
        self.listener = Some(Listener {
            socket,
            generation: self.listener_generation,
            under_way: 0,
            resting: false,
            cancelling: false,
            stopping: false,
        });
    }

    /// The next connections may be accepted, `count` of them with those that were allowed before and have
    /// not come; up to [`ACCEPTS_MAX`]. Whoever comes beyond waits in the kernel's queue.
    pub fn accept_up_to(&mut self, count: usize) {
        assert!(count <= ACCEPTS_MAX);
        while self.may_accept_more(count) {
            let Some(listener) = &mut self.listener else {
                return;
            };
            listener.under_way += 1;
            let entry = opcode::Accept::new(
                types::Fd(listener.socket.as_raw_fd()),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(listener.tag(Kind::Accept).pack());
            // SAFETY: the entry points to nothing.
            unsafe { self.ring.push(entry) };
        }
    }

    /// Whether fewer than `count` connections may still come, and the listener would take more.
    pub fn may_accept_more(&self, count: usize) -> bool {
        let listener = self.listener.as_ref();
        listener.is_some_and(|it| !it.stopping && !it.resting && it.under_way < count)
    }

    /// Stops accepting and closes the listener, once the kernel has let go of it. Connections that
    /// were accepted before are still reported.
    pub fn stop_listening(&mut self) {
        if let Some(listener) = &mut self.listener {
            listener.stopping = true;
            self.wind_down_listener();
        }
    }

    /// Whether a listener is open.
    pub fn is_listening(&self) -> bool {
        self.listener.is_some()
    }

    /// Closes a stopping listener as soon as nothing of it is under way.
    fn wind_down_listener(&mut self) {
        let Some(listener) = &mut self.listener else {
            return;
        };
        if !listener.stopping || listener.cancelling {
            return;
        }
        if listener.under_way == 0 {
            self.listener = None;
            return;
        }
        listener.cancelling = true;
        let accepts = types::CancelBuilder::user_data(listener.tag(Kind::Accept).pack()).all();
        let entry = opcode::AsyncCancel2::new(accepts)
            .build()
            .user_data(listener.tag(Kind::AcceptCancel).pack());
        // SAFETY: the entry points to nothing.
        unsafe { self.ring.push(entry) };
    }

    pub(super) fn accept_completed(
        &mut self,
        generation: u32,
        result: i32,
        events: &mut Vec<Event>,
    ) {
        let outcome = outcome(result);
        if outcome.is_ok() {
            let socket = accepted(result);
            events.push(Event::Accepted { socket });
        }
        let Some(listener) = self.listener_of(generation) else {
            unreachable!("an accept outlived its listener")
        };
        assert!(listener.under_way > 0, "an accept that was not started");
        listener.under_way -= 1;
        if listener.stopping {
            return self.wind_down_listener();
        }
        match outcome {
            // The peer gave up between its SYN and our accept: not our trouble.
            Ok(_) | Err(libc::ECONNABORTED | libc::EINTR) => {}
            Err(_) if listener.resting => {}
            Err(errno) => {
                listener.resting = true;
                let entry = opcode::Timeout::new(&raw const BACKOFF)
                    .build()
                    .user_data(listener.tag(Kind::AcceptTimer).pack());
                events.push(Event::AcceptFailed { errno });
                // SAFETY: the entry points to a static.
                unsafe { self.ring.push(entry) };
            }
        }
    }

    pub(super) fn accept_cancelled(&mut self, generation: u32) {
        if let Some(listener) = self.listener_of(generation) {
            listener.cancelling = false;
            self.wind_down_listener();
        }
    }

    pub(super) fn accept_rested(&mut self, generation: u32) {
        if let Some(listener) = self.listener_of(generation) {
            listener.resting = false;
        }
    }

    fn listener_of(&mut self, generation: u32) -> Option<&mut Listener> {
        self.listener
            .as_mut()
            .filter(|listener| listener.generation == generation)
    }
}
