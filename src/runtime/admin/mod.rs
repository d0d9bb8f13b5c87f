//! The admin socket: what a switch says of itself to whoever runs it.
//!
//! ```text
//!   curl, probe, `iris top` ──HTTP/1.1──▶ <data>/admin.sock ─┐
//!   Prometheus, browser ──HTTP, token──▶ 127.0.0.1:PORT ─────┴▶ one thread, tokio and hyper
//!                                                                │ routes ─▶ asker, gatherer, watcher, revoker
//!   every core, in its next tick ◀── Control, doorbell ──────────┘
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
//! The TCP port is there if `[admin]` says so, on loopback. Every user of the machine can reach it, so it
//! asks for a token, says nothing but whether the switch lives to who has none, and takes no orders from
//! anybody. It has connections of its own: a crowd there does not keep the socket's owner waiting.
//!
//! Without the socket, or the port, the switch serves all the same: a file system that has no sockets, or
//! no room, is no reason to turn users away. It is logged.
//!
//! Strangers' bytes are parsed by hyper, with the bounds below. A panic here would end the process like
//! any other, so nothing is asserted about what comes in.

mod asker;
mod gatherer;
mod inboxes;
mod io;
mod latencies;
mod metrics;
mod page;
mod readiness;
mod revoker;
mod routes;
pub mod socket;
mod tcp;
mod watchdog;
mod watcher;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

pub use asker::{ANSWER_MAX, Line};
use asker::{Ask, Asker};
pub use gatherer::HistogramLine;
use gatherer::{Gather, Gatherer};
pub use inboxes::Inboxes;
use latencies::Look;
use readiness::Facts;
pub use readiness::{Latency, Status};
use revoker::Wish;
pub use revoker::{REVOKE_MAX, RevokeLine, Revoked, Revoker};
use routes::Caller;
pub use routes::{
    HISTOGRAMS_PATH, RESET_PATH, REVOKE_PATH, Revocation, STATUS_PATH, TRACE_NEXT_PATH, TRACE_PATH,
    TraceBegin, TraceNext,
};
pub use tcp::TCP_CONNECTIONS_MAX;
use tcp::{Port, Token};
use watcher::Watcher;
pub use watcher::{Traced, WatchLine};

use super::notify::Notify;

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
    /// The TCP port cannot be had.
    #[error(
        "cannot listen on {address} for admin requests: {source}; stop what uses it, or choose another \
         address in [admin] listen"
    )]
    Port {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the admin thread: {source}; check the limit of threads (`ulimit -u`)")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
}

/// What the thread is made from.
pub struct Opening {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The ways to the cores.
    pub lines: Lines,
    /// Who revokes tokens.
    pub revoker: Revoker,
    /// Where to listen beside the socket, and the token to ask for there.
    pub tcp: Option<(SocketAddr, Zeroizing<Vec<u8>>)>,
    /// The effective configuration, as text.
    pub config: String,
    /// The supervisor that wants to know whether the cores answer.
    pub notify: Option<Notify>,
}

/// The ways to the cores, in the order of their numbers.
#[derive(Default)]
pub struct Lines {
    /// For reports.
    pub reports: Vec<Line>,
    /// For histograms.
    pub histograms: Vec<HistogramLine>,
    /// For traces.
    pub traces: Vec<WatchLine>,
}

/// The admin socket, open. Dropping it ends the thread and removes the file.
#[derive(Debug)]
pub struct Admin {
    /// The socket, if it could be made.
    path: Option<PathBuf>,
    config: watch::Sender<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Opens the socket in the data directory, whose lock the caller holds for as long as this lives. One
    /// that cannot be opened is logged, and the rest goes on without it.
    pub fn open(data: &Path, opening: Opening) -> Result<Self, AdminError> {
        let listener = socket::listen(data);
        let listener = listener
            .inspect_err(|error| tracing::warn!(%error, "no admin socket: the switch serves, but cannot be asked how it is"))
            .ok();
        let path = listener.as_ref().map(|_| data.join(socket::NAME));
        let port = opening.tcp.and_then(|(address, token)| {
            let opened = Port::open(address, Token::new(&token));
            opened
                .inspect_err(
                    |error| tracing::error!(%error, "the switch serves without its admin port"),
                )
                .ok()
        });
        let (config, configured) = watch::channel(opening.config);
        let (stop, stopped) = oneshot::channel();
        let serving = Serving {
            asker: Asker::new(opening.lines.reports, ANSWER_MAX),
            gatherer: Gatherer::new(opening.lines.histograms, ANSWER_MAX),
            watcher: Watcher::new(opening.lines.traces, ANSWER_MAX),
            facts: Facts {
                admin: port.as_ref().map(Port::address),
                ..Facts::of_this_process(opening.address, opening.revoker.audit_counts())
            },
            revoker: opening.revoker,
            config: configured,
            listener,
            port,
            notify: opening.notify,
            stopped,
        };
        let thread = std::thread::Builder::new().name("iris-admin".to_owned());
        // Here, so that what it opens is open when the switch is ready, and a failure is told.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let spawned = runtime.and_then(|runtime| thread.spawn(move || serving.run(&runtime)));
        let thread = match spawned {
            Ok(thread) => thread,
            Err(source) => {
                path.iter().for_each(|path| socket::remove(path));
                return Err(AdminError::Thread { source });
            }
        };
        Ok(Self {
            path,
            config,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What `/debug/config` says from now on.
    pub fn reconfigured(&self, config: String) {
        let _ = self.config.send_replace(config);
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.path.iter().for_each(|path| socket::remove(path)); // first: who finds it gone knows that nobody will answer
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
    looks: mpsc::Sender<Look>,
    watches: mpsc::Sender<watcher::Wish>,
    wishes: mpsc::Sender<Wish>,
    config: watch::Receiver<String>,
}

/// What the thread starts from.
struct Serving {
    asker: Asker,
    gatherer: Gatherer,
    watcher: Watcher,
    revoker: Revoker,
    facts: Facts,
    config: watch::Receiver<String>,
    port: Option<Port>,
    listener: Option<std::os::unix::net::UnixListener>,
    notify: Option<Notify>,
    stopped: oneshot::Receiver<()>,
}

impl Serving {
    /// The thread's life.
    fn run(self, runtime: &tokio::runtime::Runtime) {
        if let Err(error) = runtime.block_on(self.serve()) {
            tracing::error!(%error, "the admin socket is not served any more; the switch goes on, restart it to get the socket back");
        }
    }

    async fn serve(self) -> std::io::Result<()> {
        let listener = self.listener.map(UnixListener::from_std).transpose()?;
        let port = self.port.map(Port::into_tokio).transpose()?;
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let mut stopped = self.stopped;
        let (mut owners, mut strangers) = (JoinSet::new(), JoinSet::new());
        let asking = self.asker.run(asked);
        let (gathers, gathered) = mpsc::channel(ASKS_MAX);
        let gathering = self.gatherer.run(gathered);
        let (watches, watched) = mpsc::channel(ASKS_MAX);
        let watching = self.watcher.run(watched);
        let (wishes, wished) = mpsc::channel(ASKS_MAX);
        let revoking = self.revoker.run(wished);
        let (looks, looked) = mpsc::channel(ASKS_MAX);
        let looking = latencies::run(gathers.clone(), looked);
        let guarding = watchdog::run(self.notify, asks.clone());
        tokio::pin!(asking, gathering, revoking, looking, guarding, watching);
        let config = self.config;
        let ways = Ways {
            asks,
            gathers,
            looks,
            watches,
            wishes,
            config,
        };
        let facts = self.facts;
        loop {
            tokio::select! {
                _ = &mut stopped => return Ok(()), // open connections are cut
                () = &mut asking => return Ok(()), // never: `ways` lives
                () = &mut gathering => return Ok(()),
                () = &mut watching => return Ok(()),
                () = &mut revoking => return Ok(()),
                () = &mut looking => return Ok(()),
                () = &mut guarding => return Ok(()),
                Some(_) = owners.join_next() => {}
                Some(_) = strangers.join_next() => {}
                accepted = socket::accept(listener.as_ref()), if owners.len() < CONNECTIONS_MAX => match accepted {
                    Ok(stream) => {
                        owners.spawn(connection(stream, Caller::Owner, facts.clone(), ways.clone()));
                    }
                    Err(error) => not_accepted(&error).await,
                },
                accepted = tcp::accept(port.as_ref()), if strangers.len() < TCP_CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, token)) => {
                            let caller = Caller::Stranger(token);
                            strangers.spawn(connection(stream, caller, facts.clone(), ways.clone()));
                        }
                        Err(error) => not_accepted(&error).await,
                    }
                }
            }
        }
    }
}

async fn not_accepted(error: &std::io::Error) {
    tracing::debug!(%error, "an admin connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// One connection: one request, one answer.
async fn connection<S>(stream: S, caller: Caller, facts: Facts, ways: Ways)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| {
        let (caller, facts, ways) = (&caller, &facts, &ways);
        async move { Ok::<_, Infallible>(routes::answer(request, caller, facts, ways).await) }
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
/// What the tests of this directory share.
#[cfg(test)]
mod testing {
    /// Runs a future as the admin thread does.
    pub fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }
}
