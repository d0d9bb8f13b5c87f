//! The client's side of the protocol, without any I/O: what to send, when to connect, what happened.
//!
//! ```text
//!   application ── send, ack, fetch, close ──▶ ┌─────────┐ ── write ──▶ bytes to the socket
//!                                              │ Session │ ◀─ received ── bytes from the socket
//!   application ◀── event ──────────────────── └─────────┘ ── step ──▶ connect at t │ run until t │ end
//! ```
//!
//! The program around it owns socket, clock, chance (one seed) and disk. Its loop: ask [`Session::step`],
//! do that, report what happened with the current time (milliseconds from any fixed start, never going
//! back), take the [`Event`]s, ask again. When `step` says anything but `Run`, a connection that is
//! still open is to be dropped.
//!
//! Invariants: a message handed to [`Session::send`] ends in exactly one of `Accepted` or `Failed`; two
//! messages to one recipient are accepted in the order they were handed over; each position of the inbox
//! comes out once, as an entry or within a gap, and in `seq` order for as long as the session lives,
//! whatever happens to connections.
//! Everything held is bounded by `limits`.
//! It does not keep anything across a restart of the process: the cursor is the program's to keep.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use crate::frame::Decoder;
use crate::id::{DeviceId, MessageId, SendEpoch, Seq, UserId};
use crate::limits::{
    CLIENT_ACK_DELAY_MS, CLIENT_ANSWER_MS, CLIENT_PING_AFTER_MS, FRAME_BYTES_MAX,
    SENDS_IN_FLIGHT_MAX, VERSION, WINDOW_BYTES_MAX, WINDOW_ENTRIES_MAX,
};
use crate::reject::{AfterGoodbye, GoodbyeReason};
use crate::v2::{self, client_frame};
use crate::wire::{
    DecodeError, EntryRef, ServerFrameRef, decode_server, encode_ack, encode_client, encode_ping,
};

mod chance;
mod event;
mod outbox;
#[cfg(test)]
mod tests;

pub use chance::Backoff;
use chance::Chance;
pub use event::{Disconnect, End, Entry, Event, SendError, SendFailure, Step, Welcomed};
use outbox::Outbox;

/// The capability of a session without an inbox: nothing is pushed, no device comes into being, and no
/// other session of the device is replaced. A switch that does not know it treats the session as usual.
pub const SEND_ONLY: &str = "send-only";

/// What a session starts with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The device to be; `None`: what the token says.
    pub device: Option<DeviceId>,
    /// The program's own safe position, from an earlier run.
    pub resume_after: Option<Seq>,
    /// The cluster that this position came from.
    pub cluster: Option<[u8; 16]>,
    /// This session only sends: ask the switch for [`SEND_ONLY`].
    pub send_only: bool,
    /// 64 random bits. The same seed makes the same send epoch: never use one twice.
    pub seed: u64,
    /// When to connect again.
    pub backoff: Backoff,
}

/// Names what was handed to [`Session::send`] or [`Session::fetch`], within one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The switch broke the protocol; the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Violation(&'static str);

#[derive(Debug)]
enum Phase {
    Offline {
        retry_at_ms: u64,
        address: Option<Box<str>>,
    },
    /// Connected; Hello is written, Welcome is awaited.
    Greeting {
        since_ms: u64,
    },
    Online,
    End(End),
}

#[derive(Debug)]
struct Fetch {
    ticket: Ticket,
    tag: u64,
}

/// One device's conversation with a switch, over any number of connections. See the module's text.
#[derive(Debug)]
pub struct Session {
    config: Config,
    chance: Chance,
    epoch: SendEpoch,
    phase: Phase,
    closing: bool,
    decoder: Decoder,
    /// Frames that come before all others: Hello, Ping, Fetch, Reauth.
    first: Vec<u8>,
    outbox: Outbox,
    events: VecDeque<Event>,
    next_tag: u64,
    fetch: Option<Fetch>,
    next_fetch: u64,
    /// The tag of a Reauth that was not answered.
    renewal: Option<u64>,
    attempt: u32,
    sends_in_flight: usize,
    /// Entries and gaps up to here were handed out; `None` before the first Welcome of a session without cursor.
    received: Option<Seq>,
    acked: Seq,
    ack_sent: Seq,
    ack_due_ms: Option<u64>,
    /// Bytes of bodies received since the last Ack was sent.
    bytes_since_ack: u64,
    heard_ms: u64,
    ping_sent: bool,
}

impl Session {
    /// A session that wants to connect at once.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut chance = Chance::new(config.seed);
        Self {
            epoch: SendEpoch(chance.nonzero()),
            chance,
            phase: Phase::Offline {
                retry_at_ms: 0,
                address: None,
            },
            closing: false,
            decoder: Decoder::new(FRAME_BYTES_MAX),
            first: Vec::new(),
            outbox: Outbox::new(),
            events: VecDeque::new(),
            next_tag: 1,
            fetch: None,
            next_fetch: 1,
            renewal: None,
            attempt: 0,
            sends_in_flight: SENDS_IN_FLIGHT_MAX as usize,
            received: config.resume_after,
            acked: config.resume_after.unwrap_or_default(),
            ack_sent: Seq(0),
            ack_due_ms: None,
            bytes_since_ack: 0,
            heard_ms: 0,
            ping_sent: false,
            config,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn step(&self) -> Step {
        match &self.phase {
            Phase::Offline {
                retry_at_ms,
                address,
            } => Step::Connect {
                at_ms: *retry_at_ms,
                address: address.clone(),
            },
            Phase::Greeting { since_ms } => Step::Run {
                until_ms: since_ms + CLIENT_ANSWER_MS,
            },
            Phase::Online => {
                let answer_ms = if self.ping_sent { CLIENT_ANSWER_MS } else { 0 };
                let heartbeat = self.heard_ms + CLIENT_PING_AFTER_MS + answer_ms;
                let due = [self.ack_due_ms, self.outbox.deadline_ms()];
                Step::Run {
                    until_ms: due.into_iter().flatten().fold(heartbeat, u64::min),
                }
            }
            Phase::End(end) => Step::End(end.clone()),
        }
    }

    /// Is a session up, so that what is sent now goes out now?
    #[must_use]
    pub const fn is_online(&self) -> bool {
        matches!(self.phase, Phase::Online)
    }

    /// The next thing that happened. Take them all after every call that takes `now_ms`.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Messages handed over and neither accepted nor failed.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.outbox.len()
    }

    /// Would [`Self::send`] take a body of `len` bytes for `to` now? `false` only while waiting helps.
    pub fn has_room(&mut self, to: &UserId, len: usize) -> bool {
        self.outbox.has_room(to, len)
    }

    /// Takes a message for `to`. It goes out as soon as there is a connection; what becomes of it is
    /// told by an event with the ticket.
    ///
    /// # Errors
    /// Nothing was taken: see [`SendError`].
    pub fn send(&mut self, to: &UserId, id: MessageId, body: Vec<u8>) -> Result<Ticket, SendError> {
        if self.closing || matches!(self.phase, Phase::End(_)) {
            return Err(SendError::Closed);
        }
        self.outbox.queue(to, id, body)
    }

    /// Everything up to `seq` is safe with the program: it will not be needed again. Beyond what was
    /// received it counts as what was received.
    pub fn ack(&mut self, now_ms: u64, seq: Seq) {
        let seq = seq.min(self.received.unwrap_or_default());
        if seq > self.acked {
            self.acked = seq;
            self.ack_due_ms
                .get_or_insert(now_ms.saturating_add(CLIENT_ACK_DELAY_MS));
        }
    }

    /// Asks for up to `limit` entries after `after`. One at a time: while one is under way, or without
    /// a connection, there is none to be had.
    pub fn fetch(&mut self, after: Seq, limit: u32) -> Option<Ticket> {
        if !self.is_online() || self.fetch.is_some() || self.closing {
            return None;
        }
        let ticket = Ticket(self.next_fetch);
        self.next_fetch += 1;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.fetch = Some(Fetch { ticket, tag });
        let fetch = v2::Fetch {
            tag,
            after: after.0,
            limit,
        };
        encode_client(&mut self.first, client_frame::Frame::Fetch(fetch));
        Some(ticket)
    }

    /// Gives the running session a new token, so that it does not end with the one before: what to do at
    /// [`Event::Expiring`]. The answer is [`Event::Renewed`] or [`Event::RenewFailed`], or none when the
    /// connection ends first. One at a time: while one is under way, or without a connection, nothing is
    /// done, and this is `false`.
    pub fn renew(&mut self, token: &str) -> bool {
        if !self.is_online() || self.renewal.is_some() {
            return false;
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        self.renewal = Some(tag);
        let token = token.into();
        let reauth = v2::Reauth { tag, token };
        encode_client(&mut self.first, client_frame::Frame::Reauth(reauth));
        true
    }

    /// No more messages come. What was handed over is still sent and answered; then the session says
    /// goodbye and ends.
    pub fn close(&mut self) {
        self.closing = true;
        self.end_if_idle();
    }

    /// Ends at once; what was not answered fails.
    pub fn abort(&mut self) {
        self.end(End::Closed);
    }

    /// A connection is up (TLS done, ALPN agreed). `token` says who we are.
    pub fn connected(&mut self, now_ms: u64, token: &str) {
        if !matches!(self.phase, Phase::Offline { .. }) {
            return;
        }
        self.decoder = Decoder::new(FRAME_BYTES_MAX);
        self.first.clear();
        let hello = v2::Hello {
            token: token.into(),
            device: self
                .config
                .device
                .as_ref()
                .map_or_else(String::new, |id| id.as_str().into()),
            send_epoch: self.epoch.0,
            resume_after: self.received.map(|seq| seq.0),
            version_min: VERSION,
            version_max: VERSION,
            capabilities: self
                .config
                .send_only
                .then(|| SEND_ONLY.into())
                .into_iter()
                .collect(),
        };
        encode_client(&mut self.first, client_frame::Frame::Hello(hello));
        self.phase = Phase::Greeting { since_ms: now_ms };
        self.heard_ms = now_ms;
        self.ping_sent = false;
    }

    /// The connection ended, or could not be made.
    pub fn lost(&mut self, now_ms: u64) {
        self.disconnect(now_ms, Disconnect::Lost, 0, None);
    }

    /// Time has passed.
    pub fn tick(&mut self, now_ms: u64) {
        match self.phase {
            Phase::Greeting { since_ms } if now_ms >= since_ms + CLIENT_ANSWER_MS => {
                self.disconnect(now_ms, Disconnect::Silent, 0, None);
            }
            Phase::Online if now_ms >= self.heard_ms + CLIENT_PING_AFTER_MS => {
                if now_ms >= self.heard_ms + CLIENT_PING_AFTER_MS + CLIENT_ANSWER_MS {
                    self.disconnect(now_ms, Disconnect::Silent, 0, None);
                } else if !self.ping_sent {
                    self.ping_sent = true;
                    encode_ping(&mut self.first, self.chance.next());
                }
            }
            _ => {}
        }
    }

    /// Appends what is to be written now, up to about
    /// [`CLIENT_OUTPUT_BYTES_MAX`](crate::limits::CLIENT_OUTPUT_BYTES_MAX). Call it again when that is
    /// written, until it appends nothing. What it appended goes out even when `step` then says `End`.
    pub fn write(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        self.turn_epoch(now_ms);
        if !matches!(self.phase, Phase::Greeting { .. } | Phase::Online) {
            return;
        }
        out.append(&mut self.first);
        if !self.is_online() {
            return;
        }
        self.write_ack(now_ms, out);
        self.outbox
            .transmit(now_ms, self.sends_in_flight, &mut self.next_tag, out);
        if self.closing && self.outbox.is_empty() {
            self.write_ack(u64::MAX, out);
            let reason = GoodbyeReason::Normal.into();
            let goodbye = v2::Goodbye {
                reason,
                ..Default::default()
            };
            encode_client(out, client_frame::Frame::Goodbye(goodbye));
            self.end(End::Closed);
        }
    }

    /// An Ack goes out when it has waited for company, or when the window needs it.
    fn write_ack(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        let due = self.ack_due_ms.is_some_and(|due| due <= now_ms);
        let entries = self.acked.0.saturating_sub(self.ack_sent.0);
        let urgent = entries >= u64::from(WINDOW_ENTRIES_MAX / 4)
            || self.bytes_since_ack >= WINDOW_BYTES_MAX / 4;
        if self.acked > self.ack_sent && (due || urgent) {
            encode_ack(out, self.acked.0);
            self.ack_sent = self.acked;
            self.ack_due_ms = None;
            self.bytes_since_ack = 0;
        }
    }

    /// Bytes came from the switch.
    pub fn received(&mut self, now_ms: u64, bytes: &[u8]) {
        self.heard_ms = now_ms;
        self.ping_sent = false;
        let mut decoder = core::mem::replace(&mut self.decoder, Decoder::new(FRAME_BYTES_MAX));
        let mut input = bytes;
        while matches!(self.phase, Phase::Greeting { .. } | Phase::Online) {
            let frame = match decoder.next(&mut input) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return self.violated(now_ms, Violation("a frame is over the limit")),
            };
            let outcome = match decode_server(frame) {
                Ok(frame) => self.frame(now_ms, frame),
                Err(DecodeError::UnknownFrame { .. }) => Ok(()), // from a later version
                Err(_) => Err(Violation("bytes that are not a frame")),
            };
            if let Err(violation) = outcome {
                return self.violated(now_ms, violation);
            }
        }
        self.decoder = decoder;
        self.turn_epoch(now_ms);
    }

    fn frame(&mut self, now_ms: u64, frame: ServerFrameRef<'_>) -> Result<(), Violation> {
        match (&self.phase, frame) {
            (_, ServerFrameRef::Goodbye(goodbye)) => self.goodbye(now_ms, &goodbye),
            (_, ServerFrameRef::Pong(_)) => {}
            (Phase::Greeting { .. }, ServerFrameRef::Welcome(welcome)) => {
                self.welcomed(now_ms, &welcome);
            }
            (Phase::Online, ServerFrameRef::Accepted(answer)) => {
                self.attempt = 0;
                self.outbox.accepted(answer, &mut self.events)?;
            }
            (Phase::Online, ServerFrameRef::Rejected(answer)) => self.rejected(now_ms, &answer)?,
            (Phase::Online, ServerFrameRef::Entry(entry)) => self.entry(&entry)?,
            (Phase::Online, ServerFrameRef::Gap(gap)) => self.gap(gap)?,
            (Phase::Online, ServerFrameRef::Fetched(answer)) => self.fetched(&answer),
            (Phase::Online, ServerFrameRef::Expiring(expiring)) => {
                let left_s = expiring.seconds_left;
                self.events.push_back(Event::Expiring { left_s });
            }
            (Phase::Online, ServerFrameRef::Reauthed(answer)) => {
                if self.renewal.take_if(|tag| *tag == answer.tag).is_some() {
                    let left_s = answer.expires_in_s;
                    self.events.push_back(Event::Renewed { left_s });
                }
            }
            _ => return Err(Violation("a frame where it must not be")),
        }
        Ok(())
    }

    fn welcomed(&mut self, now_ms: u64, welcome: &v2::Welcome) {
        let cluster: Option<[u8; 16]> = welcome.cluster.as_slice().try_into().ok();
        if cluster.is_some() && self.config.cluster.is_some() && cluster != self.config.cluster {
            self.config.cluster = cluster;
            (self.received, self.acked) = (None, Seq(0));
            self.new_epoch();
            return self.disconnect_now(now_ms, Disconnect::OtherCluster);
        }
        self.config.cluster = self.config.cluster.or(cluster);
        let cursor = Seq(welcome.cursor);
        let asked = self.received.replace(cursor);
        self.acked = self.acked.min(cursor);
        self.ack_sent = Seq(0);
        self.ack_due_ms = (self.acked > Seq(0)).then_some(now_ms);
        self.bytes_since_ack = 0;
        self.phase = Phase::Online;
        let limit = welcome
            .limits
            .as_ref()
            .map_or(0, |limits| limits.sends_in_flight);
        let limit = if limit == 0 {
            SENDS_IN_FLIGHT_MAX
        } else {
            limit
        };
        self.sends_in_flight = limit.min(SENDS_IN_FLIGHT_MAX) as usize;
        self.events.push_back(Event::Welcomed(Box::new(Welcomed {
            session: welcome.session,
            user: welcome.user.as_str().into(),
            device: welcome.device.as_str().into(),
            head: Seq(welcome.head_seq),
            cursor,
            oldest: Seq(welcome.oldest_seq),
            lost_upto: asked.filter(|asked| *asked < cursor).map(|_| cursor),
            cluster,
            server_time_ms: welcome.server_time_ms,
        })));
    }

    fn rejected(&mut self, now_ms: u64, answer: &v2::Rejected) -> Result<(), Violation> {
        if let Some(fetch) = self.fetch.take_if(|fetch| fetch.tag == answer.tag) {
            let (code, oldest) = (Some(answer.code()), Seq(answer.expected));
            self.events.push_back(Event::FetchFailed {
                ticket: fetch.ticket,
                code,
                oldest,
            });
            return Ok(());
        }
        if self.renewal.take_if(|tag| *tag == answer.tag).is_some() {
            let (code, retry_after_ms) = (answer.code(), answer.retry_after_ms);
            self.events.push_back(Event::RenewFailed {
                code,
                retry_after_ms,
            });
            return Ok(());
        }
        self.outbox.rejected(now_ms, answer, &mut self.events)
    }

    fn entry(&mut self, entry: &EntryRef<'_>) -> Result<(), Violation> {
        if entry.fetch_tag != 0 {
            if let Some(fetch) = &self.fetch
                && fetch.tag == entry.fetch_tag
            {
                let (ticket, entry) = (fetch.ticket, Entry::from(*entry));
                self.events.push_back(Event::FetchedEntry { ticket, entry });
            }
            return Ok(());
        }
        let received = self.received.unwrap_or_default().0;
        if entry.seq <= received {
            return Ok(()); // again; it was handed out already
        }
        if entry.seq != received + 1 {
            return Err(Violation("an entry is missing before the one that came"));
        }
        self.attempt = 0;
        self.received = Some(Seq(entry.seq));
        self.bytes_since_ack += entry.body.len() as u64;
        self.events.push_back(Event::Entry(Entry::from(*entry)));
        Ok(())
    }

    fn gap(&mut self, gap: v2::Gap) -> Result<(), Violation> {
        let (first, last, reason) = (Seq(gap.first), Seq(gap.last), gap.reason());
        if first == Seq(0) || last < first {
            return Err(Violation("a gap that is no range"));
        }
        let mut ticket = None;
        if gap.fetch_tag != 0 {
            match &self.fetch {
                Some(fetch) if fetch.tag == gap.fetch_tag => ticket = Some(fetch.ticket),
                _ => return Ok(()),
            }
        } else if first.0 - 1 != self.received.unwrap_or_default().0 {
            return Err(Violation("a gap does not begin after what came before it"));
        } else {
            self.attempt = 0;
            self.received = Some(last);
        }
        self.events.push_back(Event::Gap {
            first,
            last,
            reason,
            ticket,
        });
        Ok(())
    }

    fn fetched(&mut self, answer: &v2::Fetched) {
        if let Some(fetch) = self.fetch.take_if(|fetch| fetch.tag == answer.tag) {
            let (last, more) = (Seq(answer.last), answer.more);
            self.events.push_back(Event::Fetched {
                ticket: fetch.ticket,
                last,
                more,
            });
        }
    }

    fn goodbye(&mut self, now_ms: u64, goodbye: &v2::Goodbye) {
        let reason = goodbye.reason();
        // The token that was just got is no good: to come back with the same one would never end.
        let is_hopeless =
            reason == GoodbyeReason::Revoked && !self.is_online() && goodbye.retry_after_ms == 0;
        let next_step = if is_hopeless {
            AfterGoodbye::Stop
        } else {
            reason.next_step()
        };
        match next_step {
            AfterGoodbye::Stop => {
                self.end(End::Goodbye {
                    reason,
                    text: goodbye.text.as_str().into(),
                });
            }
            AfterGoodbye::RenewToken | AfterGoodbye::Reconnect => {
                let address = goodbye.other_address.as_str();
                let address = (!address.is_empty()).then(|| address.into());
                let hint_ms = goodbye.retry_after_ms;
                self.disconnect(now_ms, Disconnect::Goodbye(reason), hint_ms, address);
            }
        }
    }

    fn violated(&mut self, now_ms: u64, Violation(what): Violation) {
        self.disconnect(now_ms, Disconnect::Violation(what), 0, None);
    }

    fn disconnect(
        &mut self,
        now_ms: u64,
        why: Disconnect,
        hint_ms: u64,
        address: Option<Box<str>>,
    ) {
        if matches!(self.phase, Phase::End(_)) {
            return;
        }
        let delay_ms = self
            .config
            .backoff
            .delay_ms(self.attempt, hint_ms, &mut self.chance);
        self.attempt = self.attempt.saturating_add(1);
        self.go_offline(now_ms.saturating_add(delay_ms), address, why);
    }

    /// Ends the connection for reasons of ours: there is nothing to wait for.
    fn disconnect_now(&mut self, now_ms: u64, why: Disconnect) {
        self.go_offline(now_ms, None, why);
    }

    fn go_offline(&mut self, retry_at_ms: u64, address: Option<Box<str>>, why: Disconnect) {
        self.phase = Phase::Offline {
            retry_at_ms,
            address,
        };
        self.first.clear();
        self.ack_due_ms = None;
        self.renewal = None;
        self.outbox.disconnected();
        if let Some(Fetch { ticket, .. }) = self.fetch.take() {
            let (code, oldest) = (None, Seq(0));
            self.events.push_back(Event::FetchFailed {
                ticket,
                code,
                oldest,
            });
        }
        self.events.push_back(Event::Disconnected(why));
        self.end_if_idle();
    }

    /// Begins a new send epoch when the old one has to go and can.
    fn turn_epoch(&mut self, now_ms: u64) {
        if !self.outbox.epoch_is_over() || matches!(self.phase, Phase::End(_)) {
            return;
        }
        self.new_epoch();
        if !matches!(self.phase, Phase::Offline { .. }) {
            self.disconnect_now(now_ms, Disconnect::NewEpoch);
        }
    }

    fn new_epoch(&mut self) {
        self.epoch = SendEpoch(self.chance.nonzero());
        self.outbox.start_epoch(&mut self.events);
    }

    /// A closing session with nothing left to do needs no further connection.
    fn end_if_idle(&mut self) {
        if self.closing && self.outbox.is_empty() && !self.is_online() {
            self.end(End::Closed);
        }
    }

    fn end(&mut self, end: End) {
        if matches!(self.phase, Phase::End(_)) {
            return;
        }
        self.outbox.abandon(&mut self.events);
        if let Some(Fetch { ticket, .. }) = self.fetch.take() {
            let (code, oldest) = (None, Seq(0));
            self.events.push_back(Event::FetchFailed {
                ticket,
                code,
                oldest,
            });
        }
        self.phase = Phase::End(end);
    }
}
