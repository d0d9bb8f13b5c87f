//! From what a client is owed to bytes on its socket: once per connection and turn.
//!
//! ```text
//!   answers ─┐
//!            ├─▶ plaintext (scratch of the core) ─▶ sealed once ─▶ one send under way
//!   entries ─┘   read where they lie in the log's map, CRC checked on every read
//! ```
//!
//! A session pulls only when its socket can take bytes, so what a slow client costs is one send
//! buffer and its answers. An entry whose pages are not in memory is not read: the kernel is asked to
//! bring them, off this core, and the session goes on when they are there.

use iris_proto::frame::LENGTH_BYTES;
use iris_proto::id::Seq;
use iris_proto::limits::FRAME_BYTES_MAX;
use iris_proto::v2::{self, GoodbyeReason};
use iris_proto::wire::{self, EntryRef};

use super::Core;
use super::connection::{Connection, Live, State};
use crate::measure::Waits;
use crate::placement::ShardId;
use crate::runtime::stream::{SOCKETS_MAX, SocketId};
use crate::session::Next;
use crate::shard::command::{self, Command};

/// Plaintext that a session may pull into one send. One entry more may exceed it.
pub const SEND_BYTES_MAX: usize = 64 * 1024;
/// Bytes that one turn sends, by some 100 us each 128 KiB for sealing and for the kernel's copy. One send more may
/// exceed it.
pub const TURN_BYTES_MAX: usize = 256 * 1024;
/// Buffers for sealed bytes kept by a core for the next sends.
const BUFFERS_KEPT_MAX: usize = 256;
/// A buffer that grew beyond this is let go instead of kept.
const BUFFER_BYTES_KEPT_MAX: usize = 16 * 1024;
/// How much of the log behind a position must be in memory before an entry there is read: the largest
/// item, so that its whole length is covered before it is known.
const ENTRY_SPAN_BYTES: usize = FRAME_BYTES_MAX + LENGTH_BYTES;

/// Page-ins of one core under way at the same time; a guess at what a disk takes in parallel. Further
/// sessions wait for one to end.
pub const POPULATES_MAX: usize = 64;

/// Marks the job numbers of page-ins; below it are logs.
const POPULATE_JOB: u64 = 1 << 63;
/// Which of the two counts a page-in is in.
const SECOND_COUNT: u64 = 1 << 62;
const _: () = assert!(SOCKETS_MAX <= 1 << 30); // a slot has the bits below

/// Page-ins under way, in two counts: those that began since the last turn, and those before. Who reads what
/// is cold without a pause never lets their sum be 0, but each of the two soon is.
#[derive(Debug, Default)]
pub(super) struct PageIns {
    under_way: [usize; 2],
    /// The count of those that begin now.
    now: usize,
}

/// In which count a page-in is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageIn(usize);

impl PageIns {
    fn are_full(&self) -> bool {
        self.under_way.iter().sum::<usize>() >= POPULATES_MAX
    }

    fn begin(&mut self) -> PageIn {
        self.under_way[self.now] += 1;
        PageIn(self.now)
    }

    fn end(&mut self, page_in: PageIn) {
        self.under_way[page_in.0] -= 1;
    }

    /// Begins the next count, if all page-ins have ended that began before the last one did: what was
    /// removed from use by then may be unmapped.
    pub fn turn(&mut self) -> bool {
        let is_over = self.under_way[1 - self.now] == 0;
        if is_over {
            self.now = 1 - self.now;
        }
        is_over
    }
}

fn populate_job(id: SocketId, page_in: PageIn) -> u64 {
    let count = if page_in.0 == 0 { 0 } else { SECOND_COUNT };
    POPULATE_JOB | count | (u64::from(id.slot) << 32) | u64::from(id.generation)
}

/// The connection that a finished page-in was for, and its count; `None` for the job of a log.
pub(super) fn populated_for(job: u64) -> Option<(SocketId, PageIn)> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both halves were packed from their types"
    )]
    let id = SocketId {
        slot: (job >> 32) as u32 & 0x3fff_ffff,
        generation: job as u32,
    };
    let page_in = PageIn(usize::from(job & SECOND_COUNT != 0));
    (job & POPULATE_JOB != 0).then_some((id, page_in))
}

/// Whether a page-in that failed so means that the bytes are not there (madvise(2): EFAULT stands for a
/// SIGBUS at access, which is what a read behind a file's end or a failed read gives).
const fn is_damage(errno: i32) -> bool {
    matches!(errno, libc::EFAULT | libc::EIO | libc::EHWPOISON)
}

/// What a client is told of entries whose messages were set aside.
fn lost(first: Seq, last: Seq, fetch_tag: u64) -> v2::Gap {
    v2::Gap {
        first: first.0,
        last: last.0,
        reason: v2::GapReason::Lost.into(),
        fetch_tag,
    }
}

/// How far a session's pulling came.
enum Pulled {
    /// Nothing is owed, or its window is closed.
    All,
    /// The send is full; more is owed.
    More,
    /// The pages behind this position are on their way.
    Waits(u64),
    /// The next entry cannot be served.
    Damaged,
}

impl Core {
    /// Sends to connections that may have something to be sent, those who waited longest first, up to
    /// [`TURN_BYTES_MAX`]: a thousand full sends at once would keep all others waiting.
    pub(super) fn send_dirty(&mut self) {
        let mut left = self.dirty.len(); // who becomes dirty by it is for the next turn
        self.sent_bytes = 0;
        while left > 0 && self.sent_bytes < TURN_BYTES_MAX {
            left -= 1;
            let Some(mut connection) = self
                .dirty
                .pop_front()
                .and_then(|id| self.connections.take(id))
            else {
                continue;
            };
            let id = connection.id;
            connection.dirty = false;
            let is_sound = !self.sockets.can_send(id) || self.send_one(&mut connection);
            self.connections.put_back(connection);
            if !is_sound {
                tracing::error!(core = self.id.0, "a TLS session could not seal; it is cut");
                self.drop_connection(id);
            }
        }
    }

    /// Sends what a connection is owed, as far as one send goes; false when it cannot be sealed.
    fn send_one(&mut self, connection: &mut Connection) -> bool {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let had_out = !connection.out.is_empty();
        plain.append(&mut connection.out);
        if plain.capacity() < SEND_BYTES_MAX {
            plain.reserve(SEND_BYTES_MAX);
        }
        connection.out = Vec::new();
        if had_out {
            self.retry_later(connection);
        }
        let id = connection.id;
        let mut entries = Waits::default();
        let mut damaged = false;
        if let State::Live(live) = &mut connection.state
            && connection.populating.is_none()
        {
            match self.pull(id, live, &mut plain, &mut entries) {
                Pulled::All | Pulled::More => {} // Sent marks it dirty again
                Pulled::Waits(position) => connection.populating = Some((live.shard, position)),
                Pulled::Damaged => damaged = true,
            }
        }
        if damaged {
            self.leave(connection, GoodbyeReason::Internal, 0);
            plain.append(&mut connection.out);
        }
        let is_sound = self.seal_and_send(connection, &plain);
        self.note_written(connection, entries);
        self.plain = plain;
        is_sound
    }

    fn seal_and_send(&mut self, connection: &mut Connection, plain: &[u8]) -> bool {
        let id = connection.id;
        let mut sealed = match connection.wire.is_empty() {
            true => self.buffers.pop().unwrap_or_default(),
            false => std::mem::take(&mut connection.wire),
        };
        if !plain.is_empty() && connection.tls.seal(plain, &mut sealed).is_err() {
            return false;
        }
        let is_closing = matches!(connection.state, State::Closing);
        if is_closing && !connection.finished {
            connection.tls.close(&mut sealed);
        }
        if !sealed.is_empty() && !connection.finished {
            connection.finished = is_closing;
            connection.sending_since = Some(self.now.monotonic);
            self.totals.sends += 1;
            self.sent_bytes += sealed.len();
            self.sockets.send(id, sealed);
            return true;
        }
        if is_closing && !connection.finished {
            connection.finished = true;
            self.sockets.finish(id);
        } else if matches!(connection.state, State::Leaving(..)) {
            self.sockets.detach(id);
        }
        self.keep_buffer(sealed);
        true
    }

    /// Appends the frames of what a session is owed, as much as fits into one send.
    fn pull(
        &mut self,
        id: SocketId,
        live: &mut Live,
        plain: &mut Vec<u8>,
        entries: &mut Waits,
    ) -> Pulled {
        let Some(user) = live.user else {
            return Pulled::All;
        };
        let shard = live.shard;
        let Some(inbox) = self.lanes.shard(shard) else {
            return Pulled::Damaged;
        };
        let head = inbox.users().get(user).head();
        while let Some(next) = live.session.next(head) {
            if plain.len() >= SEND_BYTES_MAX {
                return Pulled::More;
            }
            let (seq, tag) = match next {
                Next::Push(seq) => (seq, 0),
                Next::Fetched(seq, tag) => (seq, tag),
                Next::FetchEnd { tag, last, more } => {
                    let fetched = v2::Fetched {
                        tag,
                        last: last.0,
                        more,
                    };
                    wire::encode_server(plain, v2::server_frame::Frame::Fetched(fetched));
                    live.session.went(next, 0);
                    continue;
                }
            };
            let inbox = self.lanes.shard(shard).map(|shard| shard.users().get(user));
            let Some(slot) = inbox.and_then(|inbox| inbox.slot(seq)) else {
                // History left the index behind this session's back. A fetch ends early, and asking
                // on tells its client where history begins now; a push can only begin again.
                if tag == 0 {
                    return Pulled::Damaged;
                }
                live.session.cut_fetch();
                continue;
            };
            let Some(position) = slot.position() else {
                let last = inbox.and_then(|inbox| inbox.gap_end(seq));
                let last = last.unwrap_or(seq);
                wire::encode_gap(plain, lost(seq, last, tag));
                live.session.skipped(next, last);
                continue;
            };
            if self.page_in(id, shard, position) {
                return Pulled::Waits(position);
            }
            let user = live.session.identity.user.as_str();
            match self.encode_entry(shard, position, (user, seq), tag, plain) {
                Some(bytes) => {
                    self.totals.entries += 1;
                    if tag == 0 {
                        self.note_pushed(live, position, entries);
                        self.trace_pushed(id, live, position);
                    }
                    live.session.went(next, bytes);
                }
                None => return Pulled::Damaged,
            }
        }
        Pulled::All
    }

    /// Whether the pages behind a position are not in memory; then they are on their way, or it is waited
    /// for room to begin with them.
    fn page_in(&mut self, id: SocketId, shard: ShardId, position: u64) -> bool {
        let log = self.lanes.files_mut(shard);
        let Some((address, bytes)) = log.cold_range(position, ENTRY_SPAN_BYTES) else {
            return false;
        };
        if self.page_ins.are_full() {
            self.waiting_to_populate.push(id);
            return true;
        }
        let job = populate_job(id, self.page_ins.begin());
        // SAFETY: the range lies in a map of this core's log. What is removed is unmapped when the
        // page-ins have ended that began before (`PageIns`), and the rest when the log is dropped,
        // which is after `sockets` has drained its jobs.
        unsafe { self.sockets.populate(job, address, bytes) };
        true
    }

    /// Appends one entry's frame from where the entry lies in the log; its body's bytes. `None` when
    /// the bytes there are not this entry as it was written: they are never sent.
    fn encode_entry(
        &mut self,
        shard: ShardId,
        position: u64,
        (user, seq): (&str, Seq),
        fetch_tag: u64,
        plain: &mut Vec<u8>,
    ) -> Option<usize> {
        let found = self.lanes.files_mut(shard).item(position);
        let append = match found.map(command::decode) {
            Ok(Ok(Command::Append(append))) if append.to == user && append.seq == seq => append,
            other => {
                let error = other.err().map(|error| error.to_string());
                let error = error.unwrap_or_else(|| "another message lies there".to_owned());
                tracing::error!(shard = shard.0, seq = seq.0, lsn = position, %error, "an entry is damaged and was not delivered; stop the switch, look with `iris log verify`, then restore a backup or set it aside with `iris log salvage`");
                self.lanes.met_damage(shard);
                return None;
            }
        };
        wire::encode_entry(
            plain,
            &EntryRef {
                seq: seq.0,
                from: append.from,
                from_device: append.device,
                id: append.id.0,
                time_ms: append.time_ms,
                body: append.body,
                fetch_tag,
            },
        );
        Some(append.body.len())
    }

    pub(super) fn populated(&mut self, id: SocketId, page_in: PageIn, result: Result<(), i32>) {
        self.page_ins.end(page_in);
        if let Err(errno) = result {
            self.not_populated(id, errno);
        }
        if result.is_ok()
            && let Some(connection) = self.connections.get(id)
            && let Some((shard, position)) = connection.populating
        {
            self.lanes
                .files_mut(shard)
                .mark_resident(position, ENTRY_SPAN_BYTES);
        }
        self.pull_again(id);
        // All of them: whoever finds its pages in memory by now needs no page-in, the others queue.
        for waiting in std::mem::take(&mut self.waiting_to_populate) {
            self.pull_again(waiting);
        }
    }

    /// The pages of an entry cannot be had. Where the file ends before them, or the disk or the memory has
    /// them no more, that is damage as much as a bit that turned.
    fn not_populated(&mut self, id: SocketId, errno: i32) {
        let error = std::io::Error::from_raw_os_error(errno);
        let connection = self.connections.get(id);
        let place = connection.and_then(|connection| connection.populating);
        match place.filter(|_| is_damage(errno)) {
            Some((shard, position)) => {
                tracing::error!(shard = shard.0, lsn = position, %error, "a part of the log cannot be read, its file ends too early or its disk fails, and an entry was not delivered; stop the switch, look with `iris log verify`, then restore a backup or set it aside with `iris log salvage`");
                self.lanes.met_damage(shard);
            }
            None => {
                tracing::error!(core = self.id.0, %error, "log pages could not be read; the session ends");
            }
        }
        self.say_goodbye(id, GoodbyeReason::Internal, 0);
    }

    /// Lets a connection pull again that waited for pages.
    fn pull_again(&mut self, id: SocketId) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        connection.populating = None;
        if !std::mem::replace(&mut connection.dirty, true) {
            self.dirty.push_back(id);
        }
    }

    pub(super) fn sent(&mut self, id: SocketId, buffer: Vec<u8>, result: Result<(), i32>) {
        self.keep_buffer(buffer);
        let Some(mut connection) = self.connections.take(id) else {
            return;
        };
        connection.sending_since = None;
        if result.is_err() {
            self.connections.put_back(connection);
            self.drop_connection(id);
            return;
        }
        if connection.finished {
            self.sockets.finish(id);
        } else {
            self.mark_dirty(&mut connection);
        }
        self.connections.put_back(connection);
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        let is_useful = (1..=BUFFER_BYTES_KEPT_MAX).contains(&buffer.capacity());
        if is_useful && self.buffers.len() < BUFFERS_KEPT_MAX {
            self.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// R: D-5. A segment that was removed keeps its space on the disk for as long as it is mapped.
    #[test]
    fn readers_who_never_pause_do_not_keep_removed_segments_mapped_and_none_goes_too_soon() {
        let mut page_ins = PageIns::default();
        let mut under_way: VecDeque<(u64, PageIn)> = VecDeque::new();
        // When what is removed now was removed, and since when it has waited for one more turn.
        let (mut doomed, mut condemned) = (None, None);
        let mut unmapped = 0;
        for time in 0..10_000_u64 {
            under_way.push_back((time, page_ins.begin()));
            if time >= 40 {
                let (_, oldest) = under_way.pop_front().unwrap();
                page_ins.end(oldest);
            }
            assert!(time < 40 || under_way.len() == 40);
            doomed = doomed.or(Some(time)); // something is removed all the time
            let newest_doomed = time;
            if time % 7 == 0 && page_ins.turn() {
                if let Some((first, last)) = condemned.take() {
                    let oldest = under_way.front().unwrap().0;
                    assert!(oldest > last, "a page-in of {oldest} may be into it");
                    assert!(time - first <= 200, "it waited since {first}");
                    unmapped += 1;
                }
                condemned = doomed.take().map(|first| (first, newest_doomed));
            }
        }
        assert!(unmapped > 50, "{unmapped}");
    }

    #[test]
    fn the_number_of_a_page_in_says_whose_it_is() {
        let id = SocketId {
            slot: SOCKETS_MAX as u32 - 1,
            generation: u32::MAX,
        };
        for page_in in [PageIn(0), PageIn(1)] {
            assert_eq!(
                populated_for(populate_job(id, page_in)),
                Some((id, page_in))
            );
        }
        assert_eq!(populated_for(7), None);
    }
}
