//! The admin socket: what a switch says of itself to whoever runs it.
//!
//! ```text
//!   curl, probe, `iris status` ──HTTP/1.1──▶ <data>/admin.sock ─▶ one thread, tokio and hyper
//!                                                                  │ routes ─▶ asker, gatherer, revoker
//!   every core, in its next tick ◀── Control, doorbell ────────────┘
//! ```
//!
//! One ordinary thread, pinned to no processor, at work only while somebody asks. **It never holds up a
//! core**: a core finds a question in its control channel, answers by one `try_send`, and waits for
//! nobody; who asks waits here, [`ANSWER_MAX`] at the longest.
//!
//! The socket's file belongs to the switch's user alone (mode 0600), and is as safe as the data
//! directory: whoever can open it may ask everything. The directory's lock proves that no other switch
//! lives there, so a file left by a killed process is replaced; an orderly stop removes it, before the
//! lock is given back.
//!
//! Without the socket the switch serves all the same: a file system that has no sockets, or no room, is
//! no reason to turn users away. It is logged.
//!
//! Strangers' bytes are parsed by hyper, with the bounds below. A panic here would end the process like
//! any other, so nothing is asserted about what comes in.

mod asker;
mod gatherer;
mod io;
mod metrics;
mod readiness;
mod revoker;
mod routes;
pub mod socket;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub use asker::{ANSWER_MAX, Line};
use asker::{Ask, Asker};
pub use gatherer::HistogramLine;
use gatherer::{Gather, Gatherer};
use readiness::Facts;
pub use readiness::Status;
use revoker::Wish;
pub use revoker::{REVOKE_MAX, RevokeLine, Revoked, Revoker};
pub use routes::{HISTOGRAMS_PATH, RESET_PATH, REVOKE_PATH, Revocation, STATUS_PATH};

/// Connections at a time. Further ones wait in the kernel until one of these ends.
pub const CONNECTIONS_MAX: usize = 8;
/// From accepting a connection, which carries one request, to the end of its answer. Cut at the limit.
pub const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Bytes of a request's line and headers. More are answered 431 (414, if it is the path).
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Headers of a request. More are answered 431.
pub const HEADERS_MAX: usize = 32;
/// Questions that wait for the cores at once; connections wait behind them.
const ASKS_MAX: usize = CONNECTIONS_MAX;
/// Pause after a connection that could not be accepted: mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const _: () = {
    // A question may find a round under way and wait for the next one.
    assert!(2 * ANSWER_MAX.as_millis() < REQUEST_MAX.as_millis());
    // So may a revocation; the rest is for the disk. One that waits for longer is cut, and holds.
    assert!(3 * REVOKE_MAX.as_millis() < REQUEST_MAX.as_millis());
};

/// Why there is no admin socket.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The socket cannot be made.
    #[error(
        "cannot listen on the admin socket {path}: {source}; check that the file system of the data \
         directory allows Unix sockets and has room"
    )]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else has its name.
    #[error("{path} is no socket; move it away, the admin socket belongs there")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The thread cannot be started.
    #[error("cannot start the admin thread: {source}; check the limit of threads (`ulimit -u`)")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
}

/// The admin socket, open. Dropping it ends the thread and removes the file.
#[derive(Debug)]
pub struct Admin {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Opens the socket in the data directory, whose lock the caller holds for as long as this lives.
    pub fn open(
        data: &Path,
        address: SocketAddr,
        (lines, histogram_lines): (Vec<Line>, Vec<HistogramLine>),
        revoker: Revoker,
    ) -> Result<Self, AdminError> {
        let path = data.join(socket::NAME);
        let listener = socket::listen(data)?;
        let (stop, stopped) = oneshot::channel();
        let serving = Serving {
            asker: Asker::new(lines, ANSWER_MAX),
            gatherer: Gatherer::new(histogram_lines, ANSWER_MAX),
            revoker,
            facts: Facts::of_this_process(address),
            listener,
            stopped,
        };
        let thread = std::thread::Builder::new().name("iris-admin".to_owned());
        let thread = match thread.spawn(move || serving.run()) {
            Ok(thread) => thread,
            Err(source) => {
                socket::remove(&path);
                return Err(AdminError::Thread { source });
            }
        };
        Ok(Self {
            path,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        socket::remove(&self.path); // first: who finds it gone knows that nobody will answer
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // it has ended by itself, and has said so
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been reported by itself
        }
    }
}

/// Where requests go.
#[derive(Clone)]
struct Ways {
    asks: mpsc::Sender<Ask>,
    gathers: mpsc::Sender<Gather>,
    wishes: mpsc::Sender<Wish>,
}

/// What the thread starts from.
struct Serving {
    asker: Asker,
    gatherer: Gatherer,
    revoker: Revoker,
    facts: Facts,
    listener: std::os::unix::net::UnixListener,
    stopped: oneshot::Receiver<()>,
}

impl Serving {
    /// The thread's life.
    fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let served = runtime.and_then(|runtime| runtime.block_on(self.serve()));
        if let Err(error) = served {
            tracing::error!(%error, "the admin socket is not served any more; the switch goes on, restart it to get the socket back");
        }
    }

    async fn serve(self) -> std::io::Result<()> {
        let listener = UnixListener::from_std(self.listener)?;
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let mut stopped = self.stopped;
        let mut connections = JoinSet::new();
        let asking = self.asker.run(asked);
        let (gathers, gathered) = mpsc::channel(ASKS_MAX);
        let gathering = self.gatherer.run(gathered);
        let (wishes, wished) = mpsc::channel(ASKS_MAX);
        let revoking = self.revoker.run(wished);
        tokio::pin!(asking, gathering, revoking);
        let ways = Ways {
            asks,
            gathers,
            wishes,
        };
        loop {
            tokio::select! {
                _ = &mut stopped => return Ok(()), // open connections are cut
                () = &mut asking => return Ok(()), // never: `ways` lives
                () = &mut gathering => return Ok(()),
                () = &mut revoking => return Ok(()),
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(stream, self.facts.clone(), ways.clone()));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an admin connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

/// One connection: one request, one answer.
async fn connection(stream: UnixStream, facts: Facts, ways: Ways) {
    let service = service_fn(|request| {
        let (facts, ways) = (&facts, &ways);
        async move { Ok::<_, Infallible>(routes::answer(request, facts, ways).await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .half_close(true) // a client may say that it has nothing more to say
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .header_read_timeout(None) // the deadline is of the whole request
        .serve_connection(io::Io(stream), service);
    match tokio::time::timeout(REQUEST_MAX, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin request failed"),
        Err(_) => tracing::debug!("an admin request was cut at its deadline"),
    }
}
