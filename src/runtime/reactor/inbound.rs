//! From received bytes to what they ask for: TLS, frames, and the frames of a session.
//!
//! Every frame passes one gate, [`Core::gate_is_open`]. Closed, the connection *stalls*: what came
//! already is kept, and its socket is not read until the gate opens again. So the whole back-pressure
//! of the switch, from a full ring, a busy disk, a client that reads no answers, or one that asks too
//! much at once, ends in the same place: bytes that stay with whoever sends them.

use iris_proto::frame::{Decoder, FrameError};
use iris_proto::id::{MessageId, SendNumber, Seq, check_user};
use iris_proto::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX};
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire::{self, ClientFrameRef, DecodeError, SendRef};

use super::connection::{Connection, Live, State};
use super::{Core, jitter_ms};
use crate::limit::Shed;
use crate::placement::UserHash;
use crate::runtime::mesh::Message;
use crate::runtime::stream::{BufferId, Ended, SocketId};
use crate::runtime::tls::{Opened, TlsError};
use crate::session::FetchRefusal;
use crate::shard::command::Append;
use crate::shard::{Effect, Input, Refusal, ReplyTo};
use crate::stamp::Stamp;

/// After how many milliseconds a refused Fetch may be repeated. A guess: a page takes less.
const FETCH_RETRY_MS: u64 = 100;
/// After how many milliseconds at least a send may be repeated that was shed; up to twice that by jitter.
const SHED_RETRY_MS: u64 = 1_000;

/// Why a connection is told Goodbye while its frames are processed, and when to come back.
type Leave = (GoodbyeReason, u64);

impl Core {
    pub(super) fn received(&mut self, id: SocketId, buffer: BufferId) {
        let Some(mut connection) = self.connections.take(id) else {
            self.sockets.release(buffer);
            return;
        };
        if matches!(connection.state, State::Closing) {
            self.sockets.release(buffer); // what comes after our Goodbye is not read
            self.connections.put_back(connection);
            return;
        }
        if connection.shaking || connection.tls.is_handshaking() {
            let data = self.sockets.data(&buffer).to_vec();
            self.sockets.release(buffer);
            if self.wait_for_handshake(&mut connection, &data) {
                self.connections.put_back(connection);
            } else if connection.answered {
                self.take_step(connection, &data);
            } else {
                self.connections.put_back(connection);
                self.drop_connection(id);
            }
            return;
        }
        if connection.holds_sealed() {
            let data = self.sockets.data(&buffer);
            connection.sealed.extend_from_slice(data); // what came before reading it rests
            self.sockets.release(buffer);
            self.stall(&mut connection);
            self.connections.put_back(connection);
            return;
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let data = self.sockets.data(&buffer);
        let opened = connection.tls.open(data, &mut plain, &mut connection.wire);
        self.sockets.release(buffer);
        self.opened(connection, opened, plain);
    }

    /// Goes on with what TLS made of received bytes.
    pub(super) fn opened(
        &mut self,
        mut connection: Box<Connection>,
        opened: Result<Opened, TlsError>,
        plain: Vec<u8>,
    ) {
        let id = connection.id;
        if !connection.wire.is_empty() {
            self.mark_dirty(&mut connection);
        }
        match opened {
            Ok(opened) => {
                self.note_handshake(&mut connection);
                if !opened.handshaking {
                    connection.work.records(opened.records);
                }
                self.process(&mut connection, &plain);
                self.note_progress(&mut connection);
                self.charge_records(&mut connection);
                self.plain = plain;
                self.connections.put_back(connection);
                if opened.closed {
                    self.drop_connection(id);
                }
            }
            Err(error) => {
                tracing::debug!(core = self.id.0, %error, "a connection broke the rules of TLS");
                if connection.is_stranger {
                    self.totals.failed_handshakes += 1;
                    self.audit_refusal("tls", connection.address, None);
                }
                self.plain = plain;
                connection.out = Vec::new(); // nothing can be sealed any more
                self.begin_closing(&mut connection); // the alert in `wire` still goes out
                self.connections.put_back(connection);
            }
        }
    }

    /// Processes plaintext that just came, behind what waits already.
    fn process(&mut self, connection: &mut Connection, plain: &[u8]) {
        if !connection.backlog.is_empty() || !self.gate_is_open(connection) {
            connection.backlog.extend_from_slice(plain);
            if !plain.is_empty() {
                self.stall(connection);
            }
            return;
        }
        let rest = self.process_frames(connection, plain);
        if !rest.is_empty() {
            connection.backlog.extend_from_slice(rest);
            self.stall(connection);
        }
    }

    /// Whether the next frame of a connection may be processed.
    fn gate_is_open(&self, connection: &Connection) -> bool {
        // Who sheds sends reads them, to say so.
        let can_answer = !self.is_congested() || self.ladder.shed() >= Shed::Sends;
        connection.may_process() && can_answer && self.draining.is_none()
    }

    /// Processes frames while the gate is open; what is left of the input.
    fn process_frames<'a>(&mut self, connection: &mut Connection, plain: &'a [u8]) -> &'a [u8] {
        let mut input = plain;
        // Taken out, because a frame may point into it while the connection is changed.
        let mut decoder = std::mem::replace(&mut connection.decoder, Decoder::new(0));
        while !input.is_empty() && self.gate_is_open(connection) {
            let outcome = match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    connection.work.frame(frame.len());
                    self.frame(connection, frame)
                }
                Err(FrameError::TooLarge { .. }) => Err((GoodbyeReason::FrameTooLarge, 0)),
            };
            connection.incomplete_since = None;
            match outcome {
                Ok(()) => {}
                Err((reason, retry_ms)) => {
                    self.leave(connection, reason, retry_ms);
                    return &[];
                }
            }
            if !matches!(connection.state, State::Greeting) {
                decoder.set_max(FRAME_BYTES_MAX);
            }
        }
        connection.decoder = decoder;
        if matches!(connection.state, State::Closing) {
            &[]
        } else {
            input
        }
    }

    fn frame(&mut self, connection: &mut Connection, frame: &[u8]) -> Result<(), Leave> {
        let decoded = wire::decode_client(frame);
        if matches!(connection.state, State::Greeting) {
            return match decoded {
                Ok(ClientFrameRef::Hello(hello)) => self.hello(connection, &hello),
                _ => Err((GoodbyeReason::BadFrame, 0)),
            };
        }
        let State::Live(live) = &mut connection.state else {
            unreachable!("the gate lets frames pass while greeting and while live");
        };
        match decoded {
            Ok(ClientFrameRef::Send(send)) => return self.send(connection, &send),
            Ok(ClientFrameRef::Ack(seq)) => {
                let before = live.session.acknowledged();
                match live.session.acknowledge(Seq(seq)) {
                    Some(seq) => {
                        self.note_acknowledged(live, before, seq);
                        self.cursor_moved(connection);
                    }
                    None => self.talk(connection),
                }
            }
            Ok(ClientFrameRef::Ping(nonce)) => {
                wire::encode_pong(&mut connection.out, nonce);
                self.talk(connection);
            }
            Ok(ClientFrameRef::Fetch(fetch)) => {
                self.fetch(connection, &fetch);
                self.talk(connection);
            }
            Ok(ClientFrameRef::Reauth(reauth)) => {
                self.reauth(connection, &reauth);
                self.talk(connection);
            }
            Ok(ClientFrameRef::Goodbye(_)) => return Err((GoodbyeReason::Normal, 0)),
            Ok(ClientFrameRef::Hello(_)) | Err(DecodeError::Malformed) => {
                return Err((GoodbyeReason::BadFrame, 0));
            }
            Err(DecodeError::UnknownFrame { tag, .. }) => {
                reject(&mut connection.out, tag, RejectCode::UnknownFrame, 0, 0, "");
                self.talk(connection);
            }
            Err(DecodeError::BadField { tag, field }) => {
                reject(&mut connection.out, tag, RejectCode::BadFrame, 0, 0, field);
                self.talk(connection);
            }
        }
        self.mark_dirty(connection);
        Ok(())
    }

    fn send(&mut self, connection: &mut Connection, send: &SendRef<'_>) -> Result<(), Leave> {
        self.totals.messages += 1;
        let State::Live(live) = &mut connection.state else {
            unreachable!("live frames only")
        };
        let refusal = if check_user(send.to).is_err() {
            Some((RejectCode::BadRecipient, "to"))
        } else if send.body.len() > BODY_BYTES_MAX {
            Some((RejectCode::BodyTooLarge, "body"))
        } else {
            None
        };
        if let Some((code, field)) = refusal {
            reject(&mut connection.out, send.tag, code, 0, 0, field);
            self.talk(connection);
            self.mark_dirty(connection);
            return Ok(());
        }
        if let Err((retry_ms, why)) = self.may_send(live.session.identity.hash) {
            let code = RejectCode::Overloaded;
            reject(&mut connection.out, send.tag, code, 0, retry_ms, why);
            self.talk(connection);
            self.mark_dirty(connection);
            return Ok(());
        }
        live.session.send_began();
        let identity = &live.session.identity;
        let append = Append {
            to: send.to,
            from: identity.user.as_str(),
            device: identity.device.as_str(),
            epoch: identity.epoch,
            n: SendNumber(send.n),
            time_ms: self.now.unix_ms,
            seq: Seq(0), // the recipient's shard gives it one
            id: MessageId(send.id),
            body: send.body,
        };
        let mut command = std::mem::take(&mut self.command);
        command.clear();
        append.encode(&mut command);
        let to = self.placement.user_hash(send.to);
        let reply = ReplyTo {
            core: self.id,
            slot: connection.id.slot,
            generation: connection.id.generation,
            tag: send.tag,
            read: Stamp::of(self.now.ns),
        };
        let home = self.placement.core_of(self.placement.shard_of(to));
        self.trace_received(&append, &reply, home != self.id);
        let message = Message::Append {
            to,
            reply,
            command: &command,
        };
        if home == self.id {
            self.deliver(&message);
        } else {
            self.mesh.send(home, &message);
        }
        self.command = command;
        Ok(())
    }

    /// Whether a user's message is taken now.
    ///
    /// # Errors
    /// After how many milliseconds to repeat it, and why.
    fn may_send(&mut self, user: UserHash) -> Result<(), (u64, &'static str)> {
        if self.ladder.shed() >= Shed::Sends {
            self.totals.shed_sends += 1;
            return Err((self.shed_retry_ms(), "the switch cannot keep up"));
        }
        let now_us = self.now_us();
        let Some(rates) = &mut self.rates else {
            return Ok(());
        };
        rates.take(user, now_us).map_err(|retry_ms| {
            self.totals.limited_sends += 1;
            (retry_ms, "too many messages of this user")
        })
    }

    /// When a send may be repeated that was shed.
    pub(super) fn shed_retry_ms(&self) -> u64 {
        SHED_RETRY_MS + jitter_ms(self.totals.shed_sends ^ self.now.unix_ms, SHED_RETRY_MS)
    }

    /// Gives an append to its shard, which is of this core.
    pub(super) fn deliver(&mut self, message: &Message<'_>) {
        let Message::Append { to, reply, command } = *message else {
            unreachable!("only appends go to shards");
        };
        let shard = self.placement.shard_of(to);
        self.trace_proposed(command, &reply);
        if self.ladder.shed() >= Shed::Sends {
            self.totals.shed_sends += 1; // another core did not know
            let refusal = Refusal::Overloaded;
            let refused = Effect::Refused { reply, refusal };
            self.lanes.effects.push_back((shard, refused));
            return;
        }
        let room = self.lanes.has_space(shard);
        let append = Input::Append {
            to,
            command,
            room,
            reply,
        };
        if !self.lanes.step(&self.now, shard, append) {
            // With the shards' answers, when the sender's connection is in its place again: it may be
            // the one whose frames are being read.
            let refusal = Refusal::Unavailable;
            let refused = Effect::Refused { reply, refusal };
            self.lanes.effects.push_back((shard, refused));
        }
    }

    fn fetch(&mut self, connection: &mut Connection, fetch: &v2::Fetch) {
        let State::Live(live) = &mut connection.state else {
            unreachable!("live frames only")
        };
        let Some(user) = live.user else {
            let text = "a session that only sends has no inbox";
            reject(
                &mut connection.out,
                fetch.tag,
                RejectCode::NotFound,
                0,
                0,
                text,
            );
            return;
        };
        let Some(shard) = self.lanes.shard(live.shard) else {
            unreachable!("a session with an inbox is of a shard that is served");
        };
        let oldest = shard.users().get(user).oldest();
        match live
            .session
            .fetch(fetch.tag, Seq(fetch.after), fetch.limit, oldest)
        {
            Ok(()) => {}
            Err(FetchRefusal::Busy) => {
                let (code, retry) = (RejectCode::Overloaded, FETCH_RETRY_MS);
                reject(
                    &mut connection.out,
                    fetch.tag,
                    code,
                    0,
                    retry,
                    "one fetch at a time",
                );
            }
            Err(FetchRefusal::Expired { oldest }) => {
                let code = RejectCode::ExpiredRange;
                reject(&mut connection.out, fetch.tag, code, oldest.0, 0, "");
            }
        }
    }

    fn cursor_moved(&mut self, connection: &mut Connection) {
        let id = connection.id;
        let Some(live) = connection.live() else {
            return;
        };
        if live.session.acknowledged().0 >= live.proposed.0 + super::ACK_GATHER_ENTRIES {
            self.propose_cursor(live);
        } else if !std::mem::replace(&mut live.gathering, true) {
            self.gathering.push(id);
        }
    }

    pub(super) fn propose_cursor(&mut self, live: &mut Live) {
        let seq = live.session.acknowledged();
        if live.user.is_none() || seq <= live.proposed {
            return;
        }
        live.proposed = seq;
        let (user, device) = (&live.session.identity.user, &live.session.identity.device);
        let input = Input::Acknowledge {
            user: user.as_str(),
            device: device.as_str(),
            seq,
        };
        self.lanes.step(&self.now, live.shard, input);
    }

    pub(super) fn gather_cursors(&mut self) {
        for id in std::mem::take(&mut self.gathering) {
            let Some(mut connection) = self.connections.take(id) else {
                continue;
            };
            if let Some(live) = connection.live() {
                live.gathering = false;
                self.propose_cursor(live);
            }
            self.connections.put_back(connection);
        }
    }

    /// Stops reading a connection until its gate opens.
    pub(super) fn stall(&mut self, connection: &mut Connection) {
        if connection.stalled || matches!(connection.state, State::Leaving(..) | State::Closing) {
            return;
        }
        connection.stalled = true;
        connection.incomplete_since = None; // it is not read
        self.sockets.pause(connection.id);
        self.wait_for_the_core(connection);
    }

    /// A stalled connection without an obstacle of its own goes on when the core can.
    fn wait_for_the_core(&mut self, connection: &mut Connection) {
        if connection.may_process() && !std::mem::replace(&mut connection.retrying, true) {
            self.congested.push(connection.id);
        }
    }

    /// A stalled connection's own obstacle may be gone.
    pub(super) fn retry_later(&mut self, connection: &mut Connection) {
        if connection.stalled && !std::mem::replace(&mut connection.retrying, true) {
            self.retry.push(connection.id);
        }
    }

    /// Goes on with connections that were stalled, as far as their gates are open.
    pub(super) fn retry_stalled(&mut self) {
        if self.is_congested() && self.ladder.shed() < Shed::Sends {
            return;
        }
        let mut waiting = std::mem::take(&mut self.congested);
        waiting.append(&mut self.retry);
        for id in waiting {
            let Some(mut connection) = self.connections.take(id) else {
                continue;
            };
            connection.retrying = false;
            self.go_on(&mut connection);
            let may_open = connection.backlog.is_empty() && connection.may_process();
            if may_open && !connection.sealed.is_empty() {
                self.open_held(connection);
            } else {
                self.connections.put_back(connection);
            }
        }
    }

    fn go_on(&mut self, connection: &mut Connection) {
        let rests = matches!(&connection.state, State::Live(live) if live.rests);
        if !connection.stalled || rests || matches!(connection.state, State::Closing) {
            return;
        }
        connection.stalled = false;
        self.now.touch();
        let backlog = std::mem::take(&mut connection.backlog);
        let rest = self.process_frames(connection, &backlog);
        if rest.is_empty() {
            self.note_progress(connection);
            connection.stalled = !connection.sealed.is_empty();
            if !connection.stalled {
                self.sockets.resume(connection.id);
            }
        } else {
            connection.backlog = rest.to_vec();
            connection.stalled = true;
            self.wait_for_the_core(connection);
        }
    }

    pub(super) fn ended(&mut self, id: SocketId, reason: Ended) {
        tracing::debug!(
            core = self.id.0,
            slot = id.slot,
            ?reason,
            "a connection ended"
        );
        self.departures.push_back(id);
    }
}

/// Appends a Rejected.
pub(super) fn reject(
    out: &mut Vec<u8>,
    tag: u64,
    code: RejectCode,
    expected: u64,
    retry_after_ms: u64,
    text: &str,
) {
    let rejected = v2::Rejected {
        tag,
        code: code.into(),
        expected,
        retry_after_ms,
        text: text.to_owned(),
    };
    wire::encode_server(out, v2::server_frame::Frame::Rejected(rejected));
}
