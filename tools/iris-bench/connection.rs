//! One connection's protocol: what it sends, what it does with the answers. No socket, no clock.
//!
//! ```text
//!   slots:   free ─▶ waiting ─▶ (Accepted) free
//!                      ▲ └────▶ (Rejected) refused ─┐
//!                      └────────────────────────────┘ sent again when it is the next of its stream
//! ```
//! Frames to send gather in `out`; the engine seals and sends them once per turn. An acknowledgement
//! goes along with the next frame, or alone after [`ACK_ENTRIES`] entries or [`ACK_DELAY_NS`].

use iris_proto::limits::VERSION;
use iris_proto::v2;
use iris_proto::wire::{self, EntryRef, SendRef, ServerFrameRef};

use crate::message::{Names, STAMP_BYTES, Stamp};
use crate::stats::{Counters, LATE_NS, Snapshot};
use crate::verify::{PairId, Received, Sent, Violation, Violations};

/// Entries after which an acknowledgement goes out on its own.
pub const ACK_ENTRIES: u32 = 64;
/// Time after which an acknowledgement goes out on its own.
pub const ACK_DELAY_NS: u64 = 20_000_000;
/// The device of every user.
pub const DEVICE: &str = "bench";

/// What all connections of a thread write into.
#[derive(Debug)]
pub struct Book {
    /// For verification.
    pub sent: Sent,
    /// For verification.
    pub received: Received,
    /// What was found.
    pub violations: Violations,
    /// What is counted in the measured time.
    pub counters: Counters,
    /// The latencies of this second.
    pub snapshot: Snapshot,
    /// All users.
    pub names: Names,
    /// The body of every message, behind the stamp.
    pub body: Vec<u8>,
    /// When the measurement starts and ends; `u64::MAX` until known.
    pub window: (u64, u64),
    /// The schedule is behind because no connection had room.
    pub is_held: bool,
    /// Messages ever sent, accepted and received.
    pub sent_ever: u64,
    /// See `sent_ever`.
    pub accepted_ever: u64,
    /// See `sent_ever`.
    pub delivered_ever: u64,
}

impl Book {
    fn is_measured(&self, at_ns: u64) -> bool {
        (self.window.0..self.window.1).contains(&at_ns)
    }

    /// Whether a message meant to be sent then belongs into the present snapshot.
    fn is_recorded(&self, intended_ns: u64) -> bool {
        self.snapshot.warmup || self.is_measured(intended_ns)
    }

    /// Time at which a message was meant to be sent and at which its latency ended.
    fn accepted_at(&mut self, intended_ns: u64, now_ns: u64) {
        self.accepted_ever += 1;
        self.counters.accepted += u64::from(self.is_measured(now_ns));
        if self.is_recorded(intended_ns) {
            self.snapshot
                .accept
                .record(now_ns.saturating_sub(intended_ns));
        }
    }

    fn delivered_at(&mut self, intended_ns: u64, now_ns: u64) {
        self.delivered_ever += 1;
        self.counters.delivered += u64::from(self.is_measured(now_ns));
        if self.is_recorded(intended_ns) {
            self.snapshot
                .end_to_end
                .record(now_ns.saturating_sub(intended_ns));
        }
    }
}

/// Where a message of one slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Waiting,
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    pair: PairId,
    n: u64,
    intended_ns: u64,
}

/// What the engine has to do after a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// The connection is logged in.
    Ready,
    /// A slot is free again.
    Freed,
    /// Call [`Connection::retry`] for this slot after so many milliseconds.
    RetryAfter {
        /// Which slot.
        slot: u16,
        /// When.
        delay_ms: u64,
    },
    /// The first entry since the last acknowledgement: see [`ACK_DELAY_NS`].
    AckDue,
    /// The switch ends the session; not before so many milliseconds may it be asked again.
    Goodbye {
        /// Why, for people.
        text: String,
        /// When to come back.
        retry_after_ms: u64,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Connection {
    /// Which user this is.
    pub user: u32,
    send_epoch: u64,
    ready: bool,
    welcomed_before: bool,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// The last entry received, and how many are not acknowledged.
    seq: u64,
    unacknowledged: u32,
    ack_now: bool,
    /// Frames for the next send, not sealed.
    pub out: Vec<u8>,
}

impl Connection {
    /// User `user`, with `in_flight` slots. The epoch must be new for this run.
    #[must_use]
    pub fn new(user: u32, in_flight: u16, send_epoch: u64) -> Self {
        assert!(send_epoch != 0 && in_flight > 0);
        Self {
            user,
            send_epoch,
            ready: false,
            welcomed_before: false,
            slots: Vec::with_capacity(usize::from(in_flight)),
            free: (0..in_flight).rev().collect(),
            seq: 0,
            unacknowledged: 0,
            ack_now: false,
            out: Vec::new(),
        }
    }

    /// Logged in.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether [`send`](Self::send) may be called.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ready && !self.free.is_empty()
    }

    /// Whether an acknowledgement should go out even if nothing else does.
    #[must_use]
    pub const fn must_ack(&self) -> bool {
        self.ack_now && self.unacknowledged > 0
    }

    /// The delay of [`Step::AckDue`] has passed.
    pub const fn ack_delay_passed(&mut self) {
        self.ack_now = true;
    }

    /// Writes the first frame of a connection, also of a repeated one.
    pub fn hello(&mut self, token: String) {
        self.out.clear();
        let hello = v2::Hello {
            token,
            device: DEVICE.to_owned(),
            send_epoch: self.send_epoch,
            resume_after: self.welcomed_before.then_some(self.seq),
            version_min: VERSION,
            version_max: VERSION,
            ..v2::Hello::default()
        };
        wire::encode_client(&mut self.out, v2::client_frame::Frame::Hello(hello));
    }

    /// The connection is gone: what waits is sent again after the next Welcome.
    pub fn lost(&mut self) {
        self.ready = false;
        self.out.clear();
        self.unacknowledged = 0;
        self.ack_now = false;
    }

    /// Writes one new message into a free slot. False, and nothing done, when an earlier message to
    /// this recipient was refused and waits.
    pub fn send(&mut self, to: u32, intended_ns: u64, now_ns: u64, book: &mut Book) -> bool {
        let pair = book.sent.pair(self.user, to);
        if book.sent.is_held_up(pair) {
            return false;
        }
        let Some(slot) = self.free.pop() else {
            return false;
        };
        let n = book.sent.next(pair);
        let message = Slot {
            state: State::Waiting,
            pair,
            n,
            intended_ns,
        };
        match self.slots.get_mut(usize::from(slot)) {
            Some(free) => *free = message,
            None => self.slots.push(message), // slots are first used in order
        }
        book.sent_ever += 1;
        if book.is_measured(intended_ns) && now_ns.saturating_sub(intended_ns) > LATE_NS {
            book.counters.late += 1;
            book.counters.held += u64::from(book.is_held);
            book.snapshot.late += 1;
        }
        self.write(slot, to, book);
        true
    }

    fn write(&mut self, slot: u16, to: u32, book: &mut Book) {
        let message = self.slots[usize::from(slot)];
        let stamp = Stamp {
            intended_ns: message.intended_ns,
            n: message.n,
        };
        stamp.write(&mut book.body);
        let mut id = [0; 16];
        id[..4].copy_from_slice(&self.user.to_be_bytes());
        id[4..8].copy_from_slice(&to.to_be_bytes());
        id[8..].copy_from_slice(&message.n.to_be_bytes());
        let send = SendRef {
            tag: u64::from(slot) + 1,
            to: book.names.name(to),
            n: message.n,
            id,
            body: &book.body,
        };
        wire::encode_send(&mut self.out, &send);
    }

    /// Adds the acknowledgement that is due, if anything goes out or it must.
    pub fn finish_turn(&mut self) {
        if self.unacknowledged == 0 || !self.ready || (self.out.is_empty() && !self.ack_now) {
            return;
        }
        wire::encode_ack(&mut self.out, self.seq);
        self.unacknowledged = 0;
        self.ack_now = false;
    }

    /// Takes one frame from the switch.
    pub fn frame(&mut self, frame: ServerFrameRef<'_>, now_ns: u64, book: &mut Book) -> Step {
        match frame {
            ServerFrameRef::Entry(entry) => self.entry(&entry, now_ns, book),
            ServerFrameRef::Gap(gap) => self.gap(gap, book),
            ServerFrameRef::Accepted(accepted) => {
                self.accepted(accepted.tag, accepted.n, now_ns, book)
            }
            ServerFrameRef::Rejected(rejected) => self.rejected(&rejected, book),
            ServerFrameRef::Welcome(welcome) => self.welcome(&welcome, book),
            ServerFrameRef::Goodbye(goodbye) => Step::Goodbye {
                text: format!("{:?}: {}", goodbye.reason(), goodbye.text),
                retry_after_ms: goodbye.retry_after_ms,
            },
            ServerFrameRef::Fetched(_)
            | ServerFrameRef::Pong(_)
            | ServerFrameRef::Reauthed(_)
            | ServerFrameRef::Expiring(_) => Step::Nothing,
        }
    }

    fn welcome(&mut self, welcome: &v2::Welcome, book: &mut Book) -> Step {
        if !self.welcomed_before {
            self.seq = welcome.cursor;
        }
        self.welcomed_before = true;
        self.ready = true;
        let mut again: Vec<u16> = (0..self.slots.len() as u16)
            .filter(|&slot| self.slots[usize::from(slot)].state != State::Free)
            .collect();
        again.sort_unstable_by_key(|&slot| {
            let message = self.slots[usize::from(slot)];
            (message.pair, message.n)
        });
        for slot in again {
            self.repeat(slot, book);
        }
        Step::Ready
    }

    /// Sends a message once more.
    fn repeat(&mut self, slot: u16, book: &mut Book) {
        let message = &mut self.slots[usize::from(slot)];
        if message.state == State::Refused {
            book.sent.set_refused(message.pair, false);
        }
        message.state = State::Waiting;
        let (_, to) = book.sent.users(message.pair);
        self.write(slot, to, book);
    }

    /// Sends a refused message again, if it is the next of its stream. False: ask again later.
    pub fn retry(&mut self, slot: u16, book: &mut Book) -> bool {
        let message = self.slots[usize::from(slot)];
        if message.state != State::Refused || !self.ready {
            return true; // a reconnection has sent it already, or will
        }
        let is_next = book.sent.is_next(message.pair, message.n);
        if is_next {
            self.repeat(slot, book);
        }
        is_next
    }

    /// The slot that waits for the answer with this tag.
    fn waiting(&self, tag: u64) -> Option<u16> {
        let slot = u16::try_from(tag.checked_sub(1)?).ok()?;
        let message = self.slots.get(usize::from(slot))?;
        (message.state == State::Waiting).then_some(slot)
    }

    fn accepted(&mut self, tag: u64, n: u64, now_ns: u64, book: &mut Book) -> Step {
        let from = self.user;
        let Some(slot) = self.waiting(tag) else {
            book.violations.add(Violation::Answer { from, tag, n });
            return Step::Nothing;
        };
        let message = &mut self.slots[usize::from(slot)];
        if message.n != n || !book.sent.accepted(message.pair, n) {
            book.violations.add(Violation::Answer { from, tag, n });
            return Step::Nothing;
        }
        message.state = State::Free;
        self.free.push(slot);
        book.accepted_at(message.intended_ns, now_ns);
        Step::Freed
    }

    fn rejected(&mut self, rejected: &v2::Rejected, book: &mut Book) -> Step {
        use v2::RejectCode::{DiskFull, Gap, InboxFull, Overloaded, Unavailable};
        let from = self.user;
        let Some(slot) = self.waiting(rejected.tag) else {
            book.violations.add(Violation::Answer {
                from,
                tag: rejected.tag,
                n: 0,
            });
            return Step::Nothing;
        };
        let message = &mut self.slots[usize::from(slot)];
        let expected_gap =
            rejected.code() == Gap && rejected.expected > book.sent.highest_accepted(message.pair);
        let code = rejected.code();
        if !expected_gap && !matches!(code, InboxFull | DiskFull | Overloaded | Unavailable) {
            let (from, to) = book.sent.users(message.pair);
            let text = format!("{code:?}: {}", rejected.text);
            book.violations.add(Violation::Refused {
                from,
                to,
                n: message.n,
                text,
            });
        }
        message.state = State::Refused;
        book.sent.set_refused(message.pair, true);
        book.counters.refused += 1;
        Step::RetryAfter {
            slot,
            delay_ms: rejected.retry_after_ms.max(RETRY_MS_MIN),
        }
    }

    fn entry(&mut self, entry: &EntryRef<'_>, now_ns: u64, book: &mut Book) -> Step {
        let to = self.user;
        let expected = self.seq + 1;
        if entry.seq != expected || entry.fetch_tag != 0 {
            book.violations.add(Violation::Seq {
                to,
                seq: entry.seq,
                expected,
            });
        }
        let step = self.received(entry.seq);
        let whole = entry.body.len() == book.body.len()
            && entry.body[STAMP_BYTES..] == book.body[STAMP_BYTES..];
        let stamp = Stamp::read(entry.body).filter(|_| whole);
        match book.names.find(entry.from).zip(stamp) {
            Some((from, stamp)) => match book.received.arrived(from, to, stamp.n) {
                Ok(()) => book.delivered_at(stamp.intended_ns, now_ns),
                Err(violation) => book.violations.add(violation),
            },
            None => {
                let (from, bytes) = (entry.from.to_owned(), entry.body.len());
                book.violations.add(Violation::Stranger { to, from, bytes });
            }
        }
        step
    }

    /// Entries that do not exist any more: they count as received, and fail the run.
    fn gap(&mut self, gap: v2::Gap, book: &mut Book) -> Step {
        let (to, expected) = (self.user, self.seq + 1);
        let (first, last, reason) = (gap.first, gap.last, gap.reason());
        if first != expected || last < first || gap.fetch_tag != 0 {
            book.violations.add(Violation::Seq {
                to,
                seq: first,
                expected,
            });
        }
        book.violations.add(Violation::Gone {
            to,
            first,
            last,
            reason,
        });
        self.received(last)
    }

    /// The inbox is here up to `seq`.
    fn received(&mut self, seq: u64) -> Step {
        self.seq = self.seq.max(seq);
        self.unacknowledged += 1;
        if self.unacknowledged >= ACK_ENTRIES {
            self.ack_now = true;
        }
        if self.unacknowledged == 1 {
            Step::AckDue
        } else {
            Step::Nothing
        }
    }
}

/// Milliseconds before a refused message is tried again, unless the switch asks for more.
const RETRY_MS_MIN: u64 = 2;

#[cfg(test)]
mod tests;
