//! One connection as a simulated core sees it.

use iris_proto::frame::Decoder;
use iris_proto::id::Seq;

use crate::placement::ShardId;
use crate::session::{Identity, Session};
use crate::shard::user::UserSlot;
use crate::sim::net::ConnId;

/// Bytes of answers that wait for a socket. At the limit the connection is not read.
pub const OUT_BYTES_MAX: usize = 64 * 1024;

/// A Hello on its way to a session.
#[derive(Debug)]
pub struct Login {
    pub identity: Identity,
    pub resume_after: Option<u64>,
    pub session: u64,
    /// When its Hello was read: of two connections of a device the later one stays.
    pub at_us: u64,
}

/// A session and where its inbox is.
#[derive(Debug)]
pub struct Live {
    pub session: Session,
    pub at_us: u64,
    pub shard: ShardId,
    /// `None` for a session that only sends.
    pub user: Option<UserSlot>,
    /// The cursor last proposed to the shard.
    pub proposed: Seq,
    /// The core will propose the cursor at the next gathering.
    pub gathering: bool,
}

/// Where a connection is in its life.
#[derive(Debug)]
pub enum State {
    Greeting,
    /// On its way to its user's core.
    Leaving(Box<Login>, usize),
    /// Waits until its device is known durably.
    Entering(Box<Login>),
    Live(Box<Live>),
    /// Goodbye is said.
    Closing,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    pub id: ConnId,
    pub decoder: Decoder,
    pub state: State,
    /// Bytes that wait until frames may be processed again.
    pub backlog: Vec<u8>,
    /// Frames that wait to be sent.
    pub out: Vec<u8>,
    pub dirty: bool,
    pub stalled: bool,
    pub retrying: bool,
    /// Pages are being read for its next entry.
    pub populating: bool,
    /// A send is under way.
    pub sending: bool,
}

impl Connection {
    pub fn new(id: ConnId, decoder: Decoder, backlog: Vec<u8>) -> Self {
        Self {
            id,
            decoder,
            state: State::Greeting,
            backlog,
            out: Vec::new(),
            dirty: false,
            stalled: false,
            retrying: false,
            populating: false,
            sending: false,
        }
    }

    pub fn live(&mut self) -> Option<&mut Live> {
        match &mut self.state {
            State::Live(live) => Some(live),
            _ => None,
        }
    }

    /// Whether the next frame may be processed, as far as this connection is concerned.
    pub fn may_process(&self) -> bool {
        match &self.state {
            State::Greeting => true,
            State::Live(live) => live.session.may_send() && self.out.len() < OUT_BYTES_MAX,
            State::Leaving(..) | State::Entering(_) | State::Closing => false,
        }
    }
}

/// A connection between two cores.
#[derive(Debug)]
pub struct Handoff {
    pub id: ConnId,
    pub decoder: Decoder,
    pub login: Box<Login>,
    pub backlog: Vec<u8>,
}
