//! What a client has sent and what has not been answered: exactly once and in order, per recipient.
//!
//! ```text
//!     one stream per recipient:   accepted │ sent on this connection │ not sent yet
//!                                 number ≤ a    a+1 …                  …
//! ```
//!
//! A message's number is not stored: it is `accepted + 1 + place in the queue`. So numbers are
//! contiguous by construction, also after a message in the middle was refused for good.
//!
//! Invariant: at most the first `sent` messages of a stream have a tag under way; what was under way
//! when a connection ended is *in doubt* until the same number is answered. A message in doubt is
//! never put into another epoch, where the switch could not recognise it: it fails, and the application
//! is told that its fate is unknown.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::{Event, SendError, SendFailure, Ticket, Violation};
use crate::id::{MessageId, SendNumber, UserId};
use crate::limits::{
    BODY_BYTES_MAX, CLIENT_OUTPUT_BYTES_MAX, CLIENT_STREAMS_MAX, CLIENT_UNANSWERED_BYTES_MAX,
    CLIENT_UNANSWERED_MAX, CLIENT_UNAVAILABLE_MS,
};
use crate::reject::{AfterReject, RejectCode};
use crate::v2;
use crate::wire::{SendRef, encode_send};

/// Milliseconds to wait after `OVERLOADED` without a hint (a guess).
const HOLD_MS: u64 = 100;

#[derive(Debug)]
struct Message {
    stream: usize,
    id: MessageId,
    body: Vec<u8>,
    /// Its tag, while it is under way on this connection.
    tag: Option<u64>,
    /// It was under way on an earlier connection, and its number was not answered since.
    in_doubt: bool,
}

#[derive(Debug)]
struct Stream {
    to: UserId,
    /// The highest number known to be accepted in this epoch.
    accepted: u64,
    queue: VecDeque<Ticket>,
    /// So many of the queue are under way.
    sent: usize,
    /// Not before this instant may it send; 0: no hold.
    held_until_ms: u64,
    /// After a setback: one at a time until something is accepted.
    careful: bool,
    /// The switch has forgotten it, or what is in doubt was given up; it waits for the new epoch.
    forgotten: bool,
    /// When the recipient was first `UNAVAILABLE` since something was accepted.
    unavailable_since_ms: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Outbox {
    streams: Vec<Stream>,
    by_name: BTreeMap<Box<str>, usize>,
    messages: BTreeMap<Ticket, Message>,
    /// May be sent now, oldest first.
    ready: BTreeSet<Ticket>,
    under_way: BTreeMap<u64, Ticket>,
    /// Streams that wait for an instant.
    held: BTreeSet<(u64, usize)>,
    bytes: usize,
    next_ticket: u64,
    new_epoch_wanted: bool,
}

impl Outbox {
    pub(super) const fn new() -> Self {
        Self {
            streams: Vec::new(),
            by_name: BTreeMap::new(),
            messages: BTreeMap::new(),
            ready: BTreeSet::new(),
            under_way: BTreeMap::new(),
            held: BTreeSet::new(),
            bytes: 0,
            next_ticket: 1,
            new_epoch_wanted: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Takes a message, or says why not.
    pub(super) fn queue(
        &mut self,
        to: &UserId,
        id: MessageId,
        body: Vec<u8>,
    ) -> Result<Ticket, SendError> {
        let len = body.len();
        if len > BODY_BYTES_MAX {
            return Err(SendError::BodyTooLarge {
                len,
                max: BODY_BYTES_MAX,
            });
        }
        if !self.has_room(to, len) {
            return Err(SendError::Full);
        }
        let stream = self.stream(to);
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.bytes += len;
        self.messages.insert(
            ticket,
            Message {
                stream,
                id,
                body,
                tag: None,
                in_doubt: false,
            },
        );
        self.streams[stream].queue.push_back(ticket);
        self.make_ready(stream);
        Ok(ticket)
    }

    /// Is there room for a body of `len` bytes to `to`? A body over its limit counts as room: waiting
    /// does not help it.
    pub(super) fn has_room(&mut self, to: &UserId, len: usize) -> bool {
        let known = self.by_name.contains_key(to.as_str());
        if !known && self.streams.len() >= CLIENT_STREAMS_MAX {
            self.new_epoch_wanted = true; // and then there is room
            return false;
        }
        self.messages.len() < CLIENT_UNANSWERED_MAX
            && self.bytes + len.min(BODY_BYTES_MAX) <= CLIENT_UNANSWERED_BYTES_MAX
    }

    fn stream(&mut self, to: &UserId) -> usize {
        if let Some(&stream) = self.by_name.get(to.as_str()) {
            return stream;
        }
        let stream = self.streams.len();
        self.by_name.insert(to.as_str().into(), stream);
        self.streams.push(Stream {
            to: to.clone(),
            accepted: 0,
            queue: VecDeque::new(),
            sent: 0,
            held_until_ms: 0,
            careful: false,
            forgotten: false,
            unavailable_since_ms: None,
        });
        stream
    }

    /// Puts what may be sent of a stream among the ready.
    fn make_ready(&mut self, stream: usize) {
        let Stream {
            queue,
            sent,
            held_until_ms,
            careful,
            forgotten,
            ..
        } = &self.streams[stream];
        if *held_until_ms != 0 || *forgotten {
            return;
        }
        let upto = if *careful { 1 } else { queue.len() };
        self.ready.extend(queue.iter().take(upto).skip(*sent));
    }

    /// Appends Send frames until there is nothing more to send now, or enough for one write.
    pub(super) fn transmit(
        &mut self,
        now_ms: u64,
        in_flight_max: usize,
        next_tag: &mut u64,
        out: &mut Vec<u8>,
    ) {
        self.release(now_ms);
        let mut skipped = Vec::new();
        while out.len() < CLIENT_OUTPUT_BYTES_MAX && self.under_way.len() < in_flight_max {
            let Some(ticket) = self.ready.pop_first() else {
                break;
            };
            let Some(message) = self.messages.get_mut(&ticket) else {
                continue;
            };
            if self.new_epoch_wanted && !message.in_doubt {
                skipped.push(ticket); // it goes with the new epoch
                continue;
            }
            let stream = &mut self.streams[message.stream];
            assert_eq!(
                stream.queue.get(stream.sent),
                Some(&ticket),
                "sent out of order"
            );
            let tag = *next_tag;
            *next_tag += 1;
            let n = stream.accepted + 1 + stream.sent as u64;
            let (to, id) = (stream.to.as_str(), message.id.0);
            encode_send(
                out,
                &SendRef {
                    tag,
                    to,
                    n,
                    id,
                    body: &message.body,
                },
            );
            stream.sent += 1;
            message.tag = Some(tag);
            self.under_way.insert(tag, ticket);
        }
        self.ready.extend(skipped);
    }

    /// Ends the holds whose time has come.
    fn release(&mut self, now_ms: u64) {
        while let Some(&(until, stream)) = self.held.first()
            && until <= now_ms
        {
            self.held.pop_first();
            self.streams[stream].held_until_ms = 0;
            self.make_ready(stream);
        }
    }

    /// The next instant at which [`Self::transmit`] has something new.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.held.first().map(|&(until, _)| until)
    }

    /// The switch accepted a Send. Unknown tags are answers to what was given up; they are true, and
    /// the message's next round will say the same.
    pub(super) fn accepted(
        &mut self,
        answer: v2::Accepted,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let Some(&ticket) = self.under_way.get(&answer.tag) else {
            return Ok(());
        };
        let (stream, place) = self.place(ticket);
        if self.streams[stream].accepted + 1 + place as u64 != answer.n {
            return Err(Violation(
                "Accepted names another number than the Send with its tag",
            ));
        }
        if place != 0 {
            return Err(Violation("answers of one recipient came out of order"));
        }
        self.remove(ticket);
        let stream_state = &mut self.streams[stream];
        stream_state.accepted += 1;
        stream_state.careful = false;
        stream_state.unavailable_since_ms = None;
        let to = stream_state.to.clone();
        self.make_ready(stream);
        events.push_back(Event::Accepted {
            ticket,
            to,
            n: SendNumber(answer.n),
        });
        Ok(())
    }

    /// The switch refused a Send. Says whether the tag was one of ours.
    pub(super) fn rejected(
        &mut self,
        now_ms: u64,
        answer: &v2::Rejected,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let Some(&ticket) = self.under_way.get(&answer.tag) else {
            return Ok(());
        };
        let (stream, place) = self.place(ticket);
        let code = answer.code();
        match code.next_step() {
            AfterReject::Rewind => {
                let accepted = self.streams[stream].accepted;
                if answer.expected == 0 || answer.expected > accepted + place as u64 {
                    return Err(Violation("Gap expects a number that was not skipped"));
                }
                if answer.expected <= accepted {
                    self.streams[stream].forgotten = true;
                    self.new_epoch_wanted = true;
                }
                self.rewind(stream, 0);
            }
            AfterReject::Repeat if self.is_hopeless(now_ms, ticket, code) => {
                self.give_up_stream(stream, &refusal(code, answer), events);
            }
            AfterReject::Repeat => {
                self.rewind(
                    stream,
                    now_ms.saturating_add(answer.retry_after_ms.max(HOLD_MS)),
                );
            }
            AfterReject::GiveUp => {
                self.rewind(stream, 0);
                self.give_up(ticket, refusal(code, answer), events);
            }
        }
        Ok(())
    }

    /// Counts everything under way in a stream as not sent; what is answered to it later is ignored.
    fn rewind(&mut self, stream: usize, held_until_ms: u64) {
        let state = &mut self.streams[stream];
        for ticket in &state.queue {
            self.ready.remove(ticket);
            let tag = self
                .messages
                .get_mut(ticket)
                .and_then(|message| message.tag.take());
            if let Some(tag) = tag {
                self.under_way.remove(&tag);
            }
        }
        state.sent = 0;
        state.careful = true;
        if held_until_ms != 0 {
            self.held.remove(&(state.held_until_ms, stream));
            state.held_until_ms = held_until_ms;
            self.held.insert((held_until_ms, stream));
        }
        self.make_ready(stream);
    }

    /// Whether the recipient has been unavailable for so long that repeating is no use. With a message in
    /// doubt the others wait for nothing else when there is to be a new epoch.
    fn is_hopeless(&mut self, now_ms: u64, ticket: Ticket, code: RejectCode) -> bool {
        if code != RejectCode::Unavailable {
            return false;
        }
        let message = &self.messages[&ticket];
        let since = &mut self.streams[message.stream].unavailable_since_ms;
        let waited_ms = now_ms.saturating_sub(*since.get_or_insert(now_ms));
        waited_ms >= CLIENT_UNAVAILABLE_MS || self.new_epoch_wanted && message.in_doubt
    }

    /// Fails all messages of a stream, in order. The number of one in doubt may be stored, so no other
    /// message may have it: these fail with the epoch.
    fn give_up_stream(
        &mut self,
        stream: usize,
        reason: &SendFailure,
        events: &mut VecDeque<Event>,
    ) {
        self.rewind(stream, 0);
        for ticket in self.streams[stream].queue.clone() {
            if self.messages[&ticket].in_doubt {
                self.streams[stream].forgotten = true;
                self.new_epoch_wanted = true;
                self.ready.remove(&ticket);
            } else {
                self.give_up(ticket, reason.clone(), events);
            }
        }
    }

    fn give_up(&mut self, ticket: Ticket, reason: SendFailure, events: &mut VecDeque<Event>) {
        let (stream, _) = self.place(ticket);
        self.remove(ticket);
        self.make_ready(stream);
        events.push_back(Event::Failed { ticket, reason });
    }

    /// The connection is gone: what was under way is in doubt, and everything is to be sent again.
    pub(super) fn disconnected(&mut self) {
        self.under_way.clear();
        self.held.clear();
        self.ready.clear();
        for message in self.messages.values_mut() {
            message.in_doubt |= message.tag.take().is_some();
        }
        for stream in 0..self.streams.len() {
            let state = &mut self.streams[stream];
            (state.sent, state.held_until_ms, state.careful) = (0, 0, false);
            self.make_ready(stream);
        }
    }

    /// A new epoch is wanted, and no message's fate hangs on the old one any more.
    pub(super) fn epoch_is_over(&self) -> bool {
        let open = |message: &Message| message.in_doubt && !self.streams[message.stream].forgotten;
        self.new_epoch_wanted && self.under_way.is_empty() && !self.messages.values().any(open)
    }

    /// Starts all streams again at 1, for a new epoch. Fails what is in doubt.
    pub(super) fn start_epoch(&mut self, events: &mut VecDeque<Event>) {
        self.disconnected();
        let in_doubt = |(ticket, message): (&Ticket, &Message)| message.in_doubt.then_some(*ticket);
        let in_doubt: Vec<Ticket> = self.messages.iter().filter_map(in_doubt).collect();
        for ticket in in_doubt {
            self.give_up(ticket, SendFailure::InDoubt, events);
        }
        self.new_epoch_wanted = false;
        self.by_name.clear();
        self.ready.clear();
        let old = core::mem::take(&mut self.streams);
        for mut stream in old.into_iter().filter(|stream| !stream.queue.is_empty()) {
            let place = self.streams.len();
            for ticket in &stream.queue {
                if let Some(message) = self.messages.get_mut(ticket) {
                    message.stream = place;
                }
            }
            (stream.accepted, stream.forgotten) = (0, false);
            self.by_name.insert(stream.to.as_str().into(), place);
            self.streams.push(stream);
            self.make_ready(place);
        }
    }

    /// Fails everything that is left.
    pub(super) fn abandon(&mut self, events: &mut VecDeque<Event>) {
        self.disconnected();
        let left: Vec<(Ticket, bool)> = self
            .messages
            .iter()
            .map(|(ticket, message)| (*ticket, message.in_doubt))
            .collect();
        for (ticket, in_doubt) in left {
            let reason = if in_doubt {
                SendFailure::InDoubt
            } else {
                SendFailure::NotSent
            };
            self.give_up(ticket, reason, events);
        }
    }

    /// A message's stream and place in its queue.
    fn place(&self, ticket: Ticket) -> (usize, usize) {
        let stream = self.messages[&ticket].stream;
        let place = self.streams[stream]
            .queue
            .iter()
            .position(|other| *other == ticket);
        #[expect(
            clippy::expect_used,
            reason = "messages and queues change together only"
        )]
        (stream, place.expect("a message is in its stream's queue"))
    }

    fn remove(&mut self, ticket: Ticket) {
        let (stream, place) = self.place(ticket);
        let state = &mut self.streams[stream];
        state.queue.remove(place);
        if place < state.sent {
            state.sent -= 1;
        }
        self.ready.remove(&ticket);
        if let Some(message) = self.messages.remove(&ticket) {
            self.bytes -= message.body.len();
            if let Some(tag) = message.tag {
                self.under_way.remove(&tag);
            }
        }
    }
}

fn refusal(code: RejectCode, answer: &v2::Rejected) -> SendFailure {
    SendFailure::Refused {
        code,
        retry_after_ms: answer.retry_after_ms,
        text: answer.text.as_str().into(),
    }
}
