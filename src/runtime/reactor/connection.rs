//! One connection as its core sees it, and the table of them.
//!
//! ```text
//!   Greeting ──Hello──▶ Leaving ──ring──▶ (other core) ──▶ Entering ──device durable──▶ Live
//!       │                                                                             │
//!       └──────────────────────── any refusal, or the end ──▶ Closing ◀───────────────┘
//! ```
//!
//! A connection owns no buffer while it is idle: what cannot be processed or sent at once is kept in
//! `backlog` and `out`, which go back to nothing when they are empty.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use iris_proto::frame::Decoder;
use iris_proto::id::Seq;
use iris_proto::limits::HELLO_FRAME_BYTES_MAX;

use crate::limit::Bucket;
use crate::measure::Waits;
use crate::placement::{CoreId, ShardId};
use crate::runtime::admission::Guest;
use crate::runtime::stream::SocketId;
use crate::runtime::tls::Tls;
use crate::session::{Identity, Session};
use crate::shard::user::UserSlot;
use crate::stamp::Stamp;

/// Bytes of answers that wait for a socket which does not take them. At the limit the connection is
/// not read until they are gone.
pub const OUT_BYTES_MAX: usize = 64 * 1024;

/// A verified Hello, on its way to a session.
pub struct Login {
    pub identity: Identity,
    pub resume_after: Option<u64>,
    pub session: u64,
    /// When its Hello was read: of two connections of a device the later one stays.
    pub at: Instant,
    /// The same, for measuring.
    pub read: Stamp,
}

/// A session and where its inbox is.
pub struct Live {
    pub session: Session,
    /// When its Hello was read.
    pub at: Instant,
    /// The same, for measuring: what is older than the session is no matter of its speed.
    pub since: Stamp,
    /// When the frames were read whose answers wait in `out`.
    pub answers: Waits,
    pub shard: ShardId,
    /// `None` for a session that only sends.
    pub user: Option<UserSlot>,
    /// The cursor last proposed to the shard.
    pub proposed: Seq,
    /// Whether the core will propose the cursor at the next gathering.
    pub gathering: bool,
    /// The second at which it is to be warned of its end, or ended.
    pub alarm_s: u64,
    /// The next Reauth is taken from then on.
    pub reauth_from: Instant,
    /// What is left of its rate of frames that ask nothing of the log.
    pub talk: Bucket,
    /// It has talked too much, or in too many records, and is not read until the next tick.
    pub rests: bool,
}

impl Live {
    /// A session of a device whose durable cursor is `cursor`. Its alarm is not set yet.
    pub fn new(
        session: Session,
        (at, since): (Instant, Stamp),
        shard: ShardId,
        user: Option<UserSlot>,
        cursor: Seq,
    ) -> Self {
        Self {
            session,
            at,
            since,
            answers: Waits::default(),
            shard,
            user,
            proposed: cursor,
            gathering: false,
            alarm_s: 0,
            reauth_from: at,
            talk: Bucket::default(),
            rests: false,
        }
    }
}

/// A record costs much the same, whatever is in it. It is worth it if it brings a frame, or so many bytes
/// of one.
pub const RECORD_WORTH_BYTES: usize = 512;

/// Records that a connection sent, against what they brought.
#[derive(Default)]
pub struct RecordWork {
    /// Those that brought nothing yet.
    ahead: usize,
    /// What is left of its rate of those that never will.
    pub left: Bucket,
    /// What is left of its rate of rests for having used that up.
    pub rests: Bucket,
}

impl RecordWork {
    /// Records became whole.
    pub fn records(&mut self, records: usize) {
        self.ahead += records;
    }

    /// A frame of so many bytes was cut out of them.
    pub fn frame(&mut self, bytes: usize) {
        self.ahead = self.ahead.saturating_sub(1 + bytes / RECORD_WORTH_BYTES);
    }

    /// Those beyond what others may still be worth; they are forgotten.
    pub fn idle_beyond(&mut self, worth: usize) -> usize {
        let idle = self.ahead.saturating_sub(worth);
        self.ahead -= idle;
        idle
    }
}

/// Where a connection is in its life.
pub enum State {
    /// TLS handshake and Hello.
    Greeting,
    /// On its way to its user's core: nothing is processed here any more.
    Leaving(Box<Login>, CoreId),
    /// Waits until its device is known durably.
    Entering(Box<Login>),
    /// A session.
    Live(Box<Live>),
    /// Goodbye is said; it is waited for the peer to close.
    Closing,
}

/// One connection.
pub struct Connection {
    pub id: SocketId,
    pub tls: Tls,
    pub decoder: Decoder,
    pub state: State,
    /// Plaintext that waits until frames may be processed again.
    pub backlog: Vec<u8>,
    /// Received bytes that are not opened before the connection has rested.
    pub sealed: Vec<u8>,
    /// What its records cost.
    pub work: RecordWork,
    /// Frames that wait to be sealed.
    pub out: Vec<u8>,
    /// Sealed bytes (handshake, alerts) that wait to be sent.
    pub wire: Vec<u8>,
    /// In the core's list of connections that may have something to send.
    pub dirty: bool,
    /// Reading is paused; `backlog` may hold frames.
    pub stalled: bool,
    /// In the core's list of stalled connections to try again.
    pub retrying: bool,
    /// Where in a shard's log pages are being read for its next entry.
    pub populating: Option<(ShardId, u64)>,
    /// `finish` was called: nothing more can be sent.
    pub finished: bool,
    /// Since when the send under way is under way.
    pub sending_since: Option<Instant>,
    /// Since when the rest of a frame or of a TLS record is waited for.
    pub incomplete_since: Option<Instant>,
    /// It counts as a stranger: its Hello was not taken.
    pub is_stranger: bool,
    /// Its ClientHello was answered.
    pub answered: bool,
    /// When it was accepted, until its TLS handshake has ended.
    pub came: Stamp,
    /// In the core's list of handshakes that wait; `backlog` holds what is to be opened.
    pub shaking: bool,
    /// Where it comes from. `None`: from no IP address.
    pub address: Option<IpAddr>,
    /// Its place among those of its address.
    pub guest: Option<Guest>,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn greeting(
        id: SocketId,
        tls: Tls,
        (address, guest): (Option<IpAddr>, Option<Guest>),
        came: Stamp,
    ) -> Self {
        let decoder = Decoder::new(HELLO_FRAME_BYTES_MAX);
        Self {
            is_stranger: true,
            came,
            address,
            guest,
            ..Self::new(id, tls, decoder, State::Greeting, Vec::new())
        }
    }

    /// A connection that came from another core, about to [`State::Entering`].
    pub fn entering(id: SocketId, luggage: Luggage) -> (Self, Box<Login>) {
        let Luggage {
            tls,
            decoder,
            login,
            backlog,
            address,
            guest,
        } = luggage;
        let connection = Self {
            address,
            guest,
            ..Self::new(id, tls, decoder, State::Greeting, backlog)
        };
        (connection, login)
    }

    fn new(id: SocketId, tls: Tls, decoder: Decoder, state: State, backlog: Vec<u8>) -> Self {
        Self {
            id,
            tls,
            decoder,
            state,
            backlog,
            sealed: Vec::new(),
            work: RecordWork::default(),
            out: Vec::new(),
            wire: Vec::new(),
            dirty: false,
            stalled: false,
            retrying: false,
            populating: None,
            finished: false,
            sending_since: None,
            incomplete_since: None,
            is_stranger: false,
            answered: false,
            came: Stamp::default(),
            shaking: false,
            address: None,
            guest: None,
        }
    }

    /// Its session, if it has one.
    pub fn live(&mut self) -> Option<&mut Live> {
        match &mut self.state {
            State::Live(live) => Some(live),
            _ => None,
        }
    }

    /// Whether what comes is kept as it is until the connection has rested.
    pub fn holds_sealed(&self) -> bool {
        let rests = matches!(&self.state, State::Live(live) if live.rests);
        rests || !self.sealed.is_empty()
    }

    /// Whether the next frame may be processed, as far as this connection is concerned.
    pub fn may_process(&self) -> bool {
        match &self.state {
            State::Greeting => true,
            State::Live(live) => {
                live.session.may_send() && self.out.len() < OUT_BYTES_MAX && !live.rests
            }
            State::Leaving(..) | State::Entering(_) | State::Closing => false,
        }
    }
}

/// A connection between two cores.
pub struct Handoff {
    /// The connection itself.
    pub socket: OwnedFd,
    /// What goes with it.
    pub luggage: Luggage,
}

/// What a connection takes along to another core.
pub struct Luggage {
    /// Its keys.
    pub tls: Tls,
    /// A frame cut in the middle may be inside.
    pub decoder: Decoder,
    /// Who it is.
    pub login: Box<Login>,
    /// Plaintext that came after the Hello.
    pub backlog: Vec<u8>,
    /// Where it comes from.
    pub address: Option<IpAddr>,
    /// Its place among those of its address.
    pub guest: Option<Guest>,
}

/// The connections of one core, by the slot of their socket.
#[derive(Default)]
pub struct Connections {
    slots: Vec<Option<Box<Connection>>>,
}

impl Connections {
    /// Adds a connection; its slot is free because its socket's is.
    pub fn insert(&mut self, connection: Box<Connection>) {
        let slot = connection.id.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        assert!(self.slots[slot].is_none(), "two connections in one slot");
        self.slots[slot] = Some(connection);
    }

    /// Takes a connection out to work on it; put it back, or let it go.
    pub fn take(&mut self, id: SocketId) -> Option<Box<Connection>> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.as_ref()?.id != id {
            return None;
        }
        slot.take()
    }

    /// Puts a connection back where it was taken from.
    pub fn put_back(&mut self, connection: Box<Connection>) {
        let slot = &mut self.slots[connection.id.slot as usize];
        assert!(slot.is_none(), "two connections in one slot");
        *slot = Some(connection);
    }

    /// A connection, where it is.
    pub fn get(&mut self, id: SocketId) -> Option<&mut Connection> {
        let connection = self.slots.get_mut(id.slot as usize)?.as_mut()?;
        (connection.id == id).then_some(&mut **connection)
    }

    /// A connection's session, where it is.
    pub fn live(&self, id: SocketId) -> Option<&Live> {
        let connection = self.at(id.slot as usize)?;
        match &connection.state {
            State::Live(live) if connection.id == id => Some(live),
            _ => None,
        }
    }

    /// Places of the table, free ones included. It never shrinks.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// Takes out whoever has this place.
    pub fn take_at(&mut self, place: usize) -> Option<Box<Connection>> {
        self.slots.get_mut(place)?.take()
    }

    /// Who is at a place.
    pub fn at(&self, place: usize) -> Option<&Connection> {
        self.slots.get(place)?.as_deref()
    }

    /// The ids of all connections.
    pub fn ids(&self) -> Vec<SocketId> {
        self.slots
            .iter()
            .flatten()
            .map(|connection| connection.id)
            .collect()
    }

    /// Whether every send that was read of every session is answered.
    pub fn are_answered(&self) -> bool {
        self.slots.iter().flatten().all(|connection| {
            !matches!(&connection.state, State::Live(live) if live.session.awaits_answers())
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }
}
