//! The client library, for any tokio program: one device's mailbox, over any number of connections.
//!
//! ```text
//!     Client ── send ─▶ ┌────────┐        ┌─────────────────┐
//!            ── ack ──▶ │ driver │ ◀────▶ │ proto's Session │  what to say, when to connect
//!            ◀─ next ── └───┬────┘        └─────────────────┘
//!                           └── TLS connection · cursor file
//! ```
//!
//! One task per client (the driver) owns the connection; it reconnects by itself with backoff, sends
//! again in order what was not answered, and resumes after the last entry it handed out. A message is
//! accepted once and in order per recipient; an entry comes out of [`Client::next`] once per run, and
//! again in a later run only if it was not acknowledged. Where the switch has entries no more, a
//! [`Gap`] comes out in their place: nothing is passed over in silence.
//! It keeps no messages across a restart of the program: what was not answered then is in doubt.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iris_proto::client::{Backoff, Config, End, SendFailure, Session};
use iris_proto::id::{DeviceId, MessageId, SendNumber, Seq, UserId};
use rustls::RootCertStore;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

mod cursor;
mod driver;
mod link;
#[cfg(test)]
mod tests;

use driver::{Driver, Outgoing};
pub use iris_proto::client::{Entry, Welcomed};
pub use iris_proto::reject::GapReason;
pub use link::LinkError;

/// Messages that may wait on their way to the driver. Full: `send` waits.
const SEND_QUEUE: usize = 64;

/// Why there is no token; its text is for people.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(pub String);

/// Where tokens come from: called for each connection, and when a session's token is about to end, so
/// that it can renew them. It is called on the task of the connection, so it should not take long.
pub type TokenSource = Arc<dyn Fn() -> Result<String, TokenError> + Send + Sync>;

/// How to connect, and as whom.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `host:port` of the switch.
    pub addr: String,
    /// The name in the switch's certificate, when it is not the host of `addr`.
    pub server_name: Option<String>,
    /// Whose certificates to trust.
    pub roots: Arc<RootCertStore>,
    /// The user that the token names; another one is refused, since the cursor is this user's.
    pub user: UserId,
    /// The device; `None`: what the token says.
    pub device: Option<DeviceId>,
    /// The source of tokens.
    pub token: TokenSource,
    /// Only send: receive nothing, and leave the device's receiving session elsewhere alone, if the
    /// switch can do that (else this is a session like any other).
    pub send_only: bool,
    /// Where the cursor is kept; `None`: only the switch keeps one.
    pub state_dir: Option<PathBuf>,
    /// When to connect again.
    pub backoff: Backoff,
    /// How long [`Client::connect`] goes on trying to reach the switch for the first time.
    pub patience: Duration,
}

impl ConnectOptions {
    /// The usual: no state directory, default backoff, 10 s patience.
    #[must_use]
    pub fn new(addr: &str, roots: Arc<RootCertStore>, user: UserId, token: TokenSource) -> Self {
        Self {
            addr: addr.to_owned(),
            server_name: None,
            roots,
            user,
            device: None,
            token,
            send_only: false,
            state_dir: None,
            backoff: Backoff::default(),
            patience: Duration::from_secs(10),
        }
    }
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection within the patience, or none that could ever be.
    #[error(transparent)]
    Link(Arc<LinkError>),
    /// The connections that came up went down again, without a reason, before the switch welcomed us.
    #[error("{addr} did not answer the login in time; try again later")]
    NoWelcome {
        /// Where.
        addr: String,
    },
    /// The switch refused us, or the session ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The TLS settings do not work.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The operating system gives no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(getrandom::Error),
    /// The cursor file cannot be read.
    #[error(
        "cannot read the cursor {path}: {source}; check its permissions or give another --state"
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a client is over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ended {
    /// It was closed, or the switch said that coming back is of no use.
    #[error("{0}")]
    Session(End),
    /// The token names another user than the options.
    #[error("the token is for user {got}, not for {wanted}; use that user's token")]
    WrongUser {
        /// In the options.
        wanted: UserId,
        /// In the token.
        got: String,
    },
    /// The cursor cannot be written, so nothing may be acknowledged any more.
    #[error("cannot write the cursor {path}: {text}; make room or give another --state")]
    State {
        /// The file.
        path: PathBuf,
        /// What the system said.
        text: String,
    },
}

/// Why a message was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// The switch refused it, or its fate is unknown.
    #[error(transparent)]
    Failed(#[from] SendFailure),
    /// It was never taken: the body is over the limit, or the client is closed.
    #[error(transparent)]
    NotTaken(#[from] iris_proto::client::SendError),
}

/// A message is on stable storage in the recipient's inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The message's name.
    pub id: MessageId,
    /// Its number in the stream to this recipient.
    pub n: SendNumber,
}

/// How the client is doing. Reconnecting needs nobody's help; this is for people to see.
#[derive(Clone, Debug)]
pub enum State {
    /// No session yet, or none at the moment.
    Offline {
        /// Why the last attempt failed, if one did.
        error: Option<Arc<LinkError>>,
    },
    /// A session is up.
    Online(Welcomed),
    /// It is over.
    Ended(Ended),
}

/// Messages of the inbox that do not exist any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The position of the first.
    pub first: Seq,
    /// The position of the last; at least `first`.
    pub last: Seq,
    /// Why.
    pub reason: GapReason,
}

/// What comes out of an inbox, in the order of its positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A message.
    Entry(Entry),
    /// None, where some were: tell the user.
    Gap(Gap),
}

impl Arrival {
    /// How far the inbox is with us now: what to [`ack`](Client::ack) when this is safe.
    #[must_use]
    pub const fn upto(&self) -> Seq {
        match self {
            Self::Entry(entry) => entry.seq,
            Self::Gap(gap) => gap.last,
        }
    }
}

/// A message handed over, on its way.
#[derive(Debug)]
pub struct Queued {
    id: MessageId,
    answer: oneshot::Receiver<Result<Accepted, SendError>>,
}

impl Queued {
    /// The message's name.
    #[must_use]
    pub const fn id(&self) -> MessageId {
        self.id
    }

    /// Waits until it is known what became of the message.
    ///
    /// # Errors
    /// It was not accepted: see [`SendError`].
    pub async fn answer(self) -> Result<Accepted, SendError> {
        self.answer
            .await
            .unwrap_or(Err(SendError::Failed(SendFailure::InDoubt)))
    }
}

/// Sends messages; cheap to clone and to give to other tasks.
#[derive(Clone, Debug)]
pub struct Sender {
    sends: mpsc::Sender<Outgoing>,
}

impl Sender {
    /// Hands a message over without waiting for its answer; waits only while too many are unanswered.
    /// Messages handed over one after the other to one recipient arrive in that order.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn send_queued(&self, to: &UserId, body: Vec<u8>) -> Result<Queued, SendError> {
        let id = MessageId(uuid::Uuid::now_v7().into_bytes());
        let (tell, answer) = oneshot::channel();
        let outgoing = Outgoing {
            to: to.clone(),
            id,
            body,
            tell,
        };
        let closed = |_| SendError::NotTaken(iris_proto::client::SendError::Closed);
        self.sends.send(outgoing).await.map_err(closed)?;
        Ok(Queued { id, answer })
    }

    /// Sends a message and waits until it is on stable storage.
    ///
    /// # Errors
    /// It was not accepted: see [`SendError`].
    pub async fn send(&self, to: &UserId, body: Vec<u8>) -> Result<Accepted, SendError> {
        self.send_queued(to, body).await?.answer().await
    }
}

/// One device of one user. See the module's text. Dropping it ends it at once; [`Client::close`] ends
/// it in good order.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    acked: watch::Sender<Seq>,
    state: watch::Receiver<State>,
    close: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    welcomed: Welcomed,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Connects and logs in. Returns when the switch has welcomed us.
    ///
    /// # Errors
    /// The switch is out of reach for longer than the patience, or it refuses us.
    pub async fn connect(options: ConnectOptions) -> Result<Self, ConnectError> {
        let tls = link::tls_config(options.roots.clone())?;
        let file = options.state_dir.as_ref().map(|directory| {
            cursor::file_in(
                directory,
                &options.addr,
                &options.user,
                options.device.as_ref(),
            )
        });
        let cursor = match &file {
            Some(path) => cursor::load(path).map_err(|source| ConnectError::State {
                path: path.clone(),
                source,
            })?,
            None => None,
        };
        let session = Session::new(Config {
            device: options.device.clone(),
            resume_after: cursor.map(|cursor| cursor.seq),
            cluster: cursor.and_then(|cursor| cursor.cluster),
            send_only: options.send_only,
            seed: getrandom::u64().map_err(ConnectError::Random)?,
            backoff: options.backoff,
        });
        let (sends, outgoing) = mpsc::channel(SEND_QUEUE);
        let (tell_arrivals, arrivals) = mpsc::unbounded_channel();
        let (acked, acks) = watch::channel(Seq(0));
        let (tell_state, mut state) = watch::channel(State::Offline { error: None });
        let (close, closing) = oneshot::channel();
        let (patience, addr) = (options.patience, options.addr.clone());
        let driver = Driver::new(session, options, tls, file, tell_arrivals, tell_state);
        let task = tokio::spawn(driver.run(outgoing, acks, closing));
        let welcomed = match first_welcome(&mut state, patience, &addr).await {
            Ok(welcomed) => welcomed,
            Err(error) => {
                task.abort();
                return Err(error);
            }
        };
        let (sender, close) = (Sender { sends }, Some(close));
        Ok(Self {
            sender,
            arrivals,
            acked,
            state,
            close,
            task,
            welcomed,
        })
    }

    /// What the switch said at the first login.
    #[must_use]
    pub const fn welcomed(&self) -> &Welcomed {
        &self.welcomed
    }

    /// How it is going, now and later.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Something to send with from other tasks.
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// It was not accepted: see [`SendError`].
    pub async fn send(&self, to: &UserId, body: Vec<u8>) -> Result<Accepted, SendError> {
        self.sender.send(to, body).await
    }

    /// See [`Sender::send_queued`].
    ///
    /// # Errors
    /// The client is closed.
    pub async fn send_queued(&self, to: &UserId, body: Vec<u8>) -> Result<Queued, SendError> {
        self.sender.send_queued(to, body).await
    }

    /// What comes next out of the inbox. What is not acknowledged closes the switch's window: so much
    /// may wait here, and no more. Cancelling it loses nothing.
    ///
    /// # Errors
    /// The client is over, and everything that came was handed out.
    pub async fn next(&mut self) -> Result<Arrival, Ended> {
        if let Some(arrival) = self.arrivals.recv().await {
            return Ok(arrival);
        }
        match &*self.state.borrow() {
            State::Ended(ended) => Err(ended.clone()),
            _ => Err(Ended::Session(End::Closed)),
        }
    }

    /// Everything up to `seq` is safe with the program: it will not come again. The cursor file is
    /// written before the switch is told.
    pub fn ack(&self, seq: Seq) {
        self.acked.send_if_modified(|acked| {
            let moves = seq > *acked;
            *acked = seq.max(*acked);
            moves
        });
    }

    /// Waits until everything handed over is answered, tells the switch what was acknowledged and says
    /// goodbye; gives up after `patience`. `true`: all of that was done.
    pub async fn close(mut self, patience: Duration) -> bool {
        if let Some(close) = self.close.take() {
            let _ = close.send(()); // an ended driver needs no telling
        }
        tokio::time::timeout(patience, &mut self.task).await.is_ok()
    }
}

/// Waits for the first Welcome, or for the reason why there will be none.
async fn first_welcome(
    state: &mut watch::Receiver<State>,
    patience: Duration,
    addr: &str,
) -> Result<Welcomed, ConnectError> {
    let welcome = async {
        loop {
            match &*state.borrow_and_update() {
                State::Online(welcomed) => return Ok(welcomed.clone()),
                State::Ended(ended) => return Err(ConnectError::Ended(ended.clone())),
                State::Offline { error: Some(error) } if error.is_hopeless() => {
                    return Err(ConnectError::Link(error.clone()));
                }
                State::Offline { .. } => {}
            }
            if state.changed().await.is_err() {
                return Err(ConnectError::Ended(Ended::Session(End::Closed)));
            }
        }
    };
    if let Ok(outcome) = tokio::time::timeout(patience, welcome).await {
        return outcome;
    }
    match &*state.borrow() {
        State::Offline { error: Some(error) } => Err(ConnectError::Link(error.clone())),
        _ => Err(ConnectError::NoWelcome {
            addr: addr.to_owned(),
        }),
    }
}
