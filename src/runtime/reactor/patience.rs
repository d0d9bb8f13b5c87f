//! How long a core waits for a client: for it to read, and for it to finish what it began.
//!
//! Every connection is looked at once in a while, some at each tick, so that a deadline costs nothing on a
//! message's way but the instant at which it began. A core with 20,000 connections has seen all of them
//! after one second.
//!
//! | a client that | is cut after | costs meanwhile |
//! |---|---|---|
//! | does not read, or a byte a second | `limits.write_timeout_ms` since the send began | one send's buffer and its answers |
//! | sends records with next to nothing in them | some 20 rests in a row, a second or so | some 1,000 records, and 180 each tick |
//! | does not finish a frame or a record | `limits.frame_timeout_ms` since its first byte, and a second for each 512 bytes of it | that frame |
//! | is gone without a word | the kernel's questions, 105 s | the same |
//!
//! A client that talks without saying anything (pings, frames that are refused) is not cut: it is read
//! again when it has earned it, and what it says meanwhile stays with it.

use std::time::Duration;

use iris_proto::v2::GoodbyeReason;

use super::Core;
use super::connection::{Connection, RECORD_WORTH_BYTES, State};
use crate::runtime::stream::SocketId;

/// Connections that a tick looks at.
pub const LOOKS_PER_TICK: usize = 1_024;
/// Frames a second that a session may send beside messages and new acknowledgements.
pub const TALK_PER_S: u64 = 100;
/// The same at once. A guess: no client of good will comes near.
pub const TALK_BURST: u64 = 1_000;

/// Records a second that bring neither a frame nor [`RECORD_WORTH_BYTES`] of one.
pub const IDLE_RECORDS_PER_S: u64 = 100;
/// The same at once. Then the session rests until the next tick; a stranger is sent away.
pub const IDLE_RECORDS_BURST: u64 = 1_000;
/// Rests for that, in a row; one a second is forgiven. More: the session ends, with BAD_FRAME.
pub const RECORD_RESTS_MAX: u64 = 20;
/// Bytes that are opened at once of what came while a connection rested: as many as a buffer has.
const OPENED_AT_ONCE_BYTES: usize = 4_096;

/// Who sends a frame at this rate or faster is never cut: a phone in a bad place sends some 1,500.
pub const SLOW_BYTES_PER_S: usize = 512;

/// Why a client is not waited for any longer.
enum Slow {
    Reader,
    Writer,
}

impl Core {
    /// Notes since when a frame or a record is waited for.
    pub(super) fn note_progress(&mut self, connection: &mut Connection) {
        if connection.decoder.held() == 0 && connection.tls.partial_bytes() == 0 {
            connection.incomplete_since = None;
        } else {
            let now = self.now.monotonic;
            connection.incomplete_since.get_or_insert(now);
        }
    }

    /// A frame that asks nothing of the log. Who sends many rests until the next tick.
    pub(super) fn talk(&mut self, connection: &mut Connection) {
        let now_us = self.now_us();
        let (rate, id) = (self.talk_rate, connection.id);
        let Some(live) = connection.live() else {
            return;
        };
        if live.talk.take(&rate, now_us).is_err() && !std::mem::replace(&mut live.rests, true) {
            self.totals.throttled += 1;
            self.resting.push(id);
        }
    }

    /// Charges what records brought nothing. Who sends many of them rests; who goes on with it leaves.
    pub(super) fn charge_records(&mut self, connection: &mut Connection) {
        let held = connection.decoder.held() + connection.backlog.len();
        let is_waiting = !connection.backlog.is_empty(); // for frames that are not cut yet
        let worth = held / if is_waiting { 1 } else { RECORD_WORTH_BYTES } + 1;
        let idle = connection.work.idle_beyond(worth);
        let now_us = self.now_us();
        let rate = self.idle_rate;
        if (0..idle).all(|_| connection.work.left.take(&rate, now_us).is_ok()) {
            return;
        }
        let rests = connection.work.rests.take(&self.rest_rate, now_us);
        let id = connection.id;
        match &mut connection.state {
            State::Live(live) if rests.is_ok() => {
                if !std::mem::replace(&mut live.rests, true) {
                    self.totals.throttled += 1;
                    self.resting.push(id);
                }
                self.stall(connection);
            }
            State::Leaving(..) | State::Closing => {}
            State::Greeting | State::Entering(_) | State::Live(_) => {
                self.totals.cut_for_records += 1;
                self.leave(connection, GoodbyeReason::BadFrame, 0);
            }
        }
    }

    /// Opens some of what came while a connection rested.
    pub(super) fn open_held(&mut self, mut connection: Box<Connection>) {
        let id = connection.id;
        let some = OPENED_AT_ONCE_BYTES.min(connection.sealed.len());
        let mut data: Vec<u8> = connection.sealed.drain(..some).collect();
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let opened = connection
            .tls
            .open(&mut data, &mut plain, &mut connection.wire);
        self.opened(connection, opened, plain);
        if let Some(mut connection) = self.connections.take(id) {
            if connection.sealed.is_empty() {
                connection.sealed = Vec::new();
            }
            self.retry_later(&mut connection); // what is left, or reading on
            self.connections.put_back(connection);
        }
    }

    /// Those who rested are read again.
    pub(super) fn end_rests(&mut self) {
        for id in std::mem::take(&mut self.resting) {
            let Some(mut connection) = self.connections.take(id) else {
                continue;
            };
            if let Some(live) = connection.live() {
                live.rests = false;
            }
            self.retry_later(&mut connection);
            self.connections.put_back(connection);
        }
    }

    /// Looks at the next connections, and cuts those that were waited for too long.
    pub(super) fn look_around(&mut self) {
        let looks = LOOKS_PER_TICK.min(self.connections.places());
        for _ in 0..looks {
            self.looked_at = (self.looked_at + 1) % self.connections.places();
            let Some(connection) = self.connections.at(self.looked_at) else {
                continue;
            };
            match slow(connection, &self.now.monotonic, &self.policy.limits) {
                Some((Slow::Reader, id)) => {
                    self.totals.write_timeouts += 1;
                    tracing::debug!(core = self.id.0, slot = id.slot, "a client did not read");
                    self.drop_connection(id);
                }
                Some((Slow::Writer, id)) => {
                    self.totals.frame_timeouts += 1;
                    self.say_goodbye(id, GoodbyeReason::BadFrame, 0);
                }
                None => {}
            }
        }
    }
}

fn slow(
    connection: &Connection,
    now: &std::time::Instant,
    limits: &crate::runtime::policy::Limits,
) -> Option<(Slow, SocketId)> {
    let is_over = |since: Option<std::time::Instant>, patience: Duration| {
        since.is_some_and(|since| now.saturating_duration_since(since) > patience)
    };
    if is_over(connection.sending_since, limits.write_timeout) {
        return Some((Slow::Reader, connection.id));
    }
    // A stalled one is not read: what is missing may lie in its socket.
    let is_read = matches!(connection.state, State::Live(_)) && !connection.stalled;
    let held = connection.decoder.held() + connection.tls.partial_bytes();
    let patience = limits.frame_timeout + Duration::from_secs(1) * (held / SLOW_BYTES_PER_S) as u32;
    if is_read && is_over(connection.incomplete_since, patience) {
        return Some((Slow::Writer, connection.id));
    }
    None
}
