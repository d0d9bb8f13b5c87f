//! The task that owns a client's connection: it does what the session says and tells it what happened.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use iris_proto::client::{Disconnect, End, Event, Session, Step, Ticket};
use iris_proto::id::{MessageId, Seq, UserId};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tracing::{debug, warn};

use super::cursor::{self, Cursor};
use super::link;
use super::{Accepted, Arrival, ConnectOptions, Ended, Gap, LinkError, SendError, State, Welcomed};

/// Bytes read from a connection at a time.
const READ_BYTES: usize = 16 * 1024;

/// How long the last bytes of a connection may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// A message on its way to the session.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) to: UserId,
    pub(super) id: MessageId,
    pub(super) body: Vec<u8>,
    pub(super) tell: oneshot::Sender<Result<Accepted, SendError>>,
}

/// What the program wants, as it reaches the driver.
struct Wishes {
    sends: mpsc::Receiver<Outgoing>,
    acks: watch::Receiver<Seq>,
    close: Option<oneshot::Receiver<()>>,
    /// Taken from `sends` while the session had no room.
    waiting: Option<Outgoing>,
}

enum Wish {
    Send(Outgoing),
    Ack(Seq),
    Close,
}

impl Wishes {
    /// The next wish. Cancelling it loses nothing.
    async fn next(&mut self) -> Wish {
        let may_send = self.waiting.is_none();
        let Self {
            sends, acks, close, ..
        } = self;
        let close = async {
            match close {
                Some(close) => drop(close.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(outgoing) = sends.recv(), if may_send => Wish::Send(outgoing),
            Ok(()) = acks.changed() => Wish::Ack(*acks.borrow_and_update()),
            () = close => Wish::Close,
        }
    }
}

pub(super) struct Driver {
    session: Session,
    options: ConnectOptions,
    tls: Arc<ClientConfig>,
    cursor_file: Option<PathBuf>,
    cluster: Option<[u8; 16]>,
    arrivals: mpsc::UnboundedSender<Arrival>,
    state: watch::Sender<State>,
    /// Who waits for an answer.
    unanswered: BTreeMap<Ticket, (MessageId, oneshot::Sender<Result<Accepted, SendError>>)>,
    start: Instant,
    ended: Option<Ended>,
}

impl Driver {
    pub(super) fn new(
        session: Session,
        options: ConnectOptions,
        tls: Arc<ClientConfig>,
        cursor_file: Option<PathBuf>,
        arrivals: mpsc::UnboundedSender<Arrival>,
        state: watch::Sender<State>,
    ) -> Self {
        Self {
            session,
            options,
            tls,
            cursor_file,
            cluster: None,
            arrivals,
            state,
            unanswered: BTreeMap::new(),
            start: Instant::now(),
            ended: None,
        }
    }

    /// Runs until the session ends.
    pub(super) async fn run(
        mut self,
        sends: mpsc::Receiver<Outgoing>,
        acks: watch::Receiver<Seq>,
        close: oneshot::Receiver<()>,
    ) {
        let mut wishes = Wishes {
            sends,
            acks,
            close: Some(close),
            waiting: None,
        };
        loop {
            self.take_events();
            match self.session.step() {
                Step::Connect { at_ms, address } => {
                    self.wait(at_ms, &mut wishes).await;
                    if matches!(self.session.step(), Step::Connect { .. }) {
                        self.connection(address, &mut wishes).await;
                    }
                }
                Step::Run { .. } => self.session.lost(self.now_ms()), // there is no connection
                Step::End(end) => {
                    let ended = self.ended.take().unwrap_or(Ended::Session(end));
                    self.state.send_replace(State::Ended(ended));
                    return;
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn instant(&self, at_ms: u64) -> Instant {
        // A day is longer than anything waits here; it keeps the addition from overflowing.
        let away_ms = at_ms.saturating_sub(self.now_ms()).min(86_400_000);
        Instant::now() + Duration::from_millis(away_ms)
    }

    /// Waits without a connection; wishes are taken meanwhile.
    async fn wait(&mut self, at_ms: u64, wishes: &mut Wishes) {
        let mut sleep = pin!(tokio::time::sleep_until(self.instant(at_ms)));
        loop {
            tokio::select! {
                () = &mut sleep => return,
                wish = wishes.next() => self.grant(wish, wishes).await,
            }
            if !matches!(self.session.step(), Step::Connect { .. }) {
                return;
            }
        }
    }

    /// One connection, from the first packet to the last.
    async fn connection(&mut self, address: Option<Box<str>>, wishes: &mut Wishes) {
        let addr = address.as_deref().unwrap_or(&self.options.addr);
        let opened = match (self.options.token)() {
            Ok(token) => link::open(self.tls.clone(), addr, self.options.server_name.as_deref())
                .await
                .map(|stream| (stream, token)),
            Err(error) => Err(LinkError::Token(error)),
        };
        let (stream, token) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                debug!(%error, "no connection");
                self.state.send_replace(State::Offline {
                    error: Some(Arc::new(error)),
                });
                return self.session.lost(self.now_ms());
            }
        };
        self.session.connected(self.now_ms(), &token);
        let (mut read, mut write) = tokio::io::split(stream);
        let left = self.exchange(&mut read, &mut write, wishes).await;
        let said_goodbye = matches!(self.session.step(), Step::End(End::Closed));
        let farewell = async {
            write.write_all(&left).await?;
            write.shutdown().await?;
            // The switch closes when it has carried out what came before the goodbye.
            let mut ignored = [0; 512];
            while said_goodbye && read.read(&mut ignored).await? != 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await; // there is no more to be done
    }

    /// Reads, writes and obeys until the session wants no more of this connection. Returns what is
    /// still to be written.
    async fn exchange(
        &mut self,
        read: &mut ReadHalf<TlsStream<TcpStream>>,
        write: &mut WriteHalf<TlsStream<TcpStream>>,
        wishes: &mut Wishes,
    ) -> Vec<u8> {
        let mut input = vec![0; READ_BYTES];
        let mut output = Output::default();
        loop {
            self.take_events(); // one of them may ask for a new token
            self.take_waiting(wishes);
            if output.is_written() {
                output.clear();
                self.session.write(self.now_ms(), &mut output.bytes);
            }
            self.take_events();
            let Step::Run { until_ms } = self.session.step() else {
                return output.bytes.split_off(output.written);
            };
            let until = self.instant(until_ms);
            tokio::select! {
                read = receive(read, &mut input) => match read {
                    Ok(len) => self.session.received(self.now_ms(), &input[..len]),
                    Err(error) => self.broken(&error),
                },
                wrote = output.write(write), if !output.is_done() => {
                    if let Err(error) = wrote {
                        self.broken(&error);
                    }
                }
                wish = wishes.next() => self.grant(wish, wishes).await,
                () = tokio::time::sleep_until(until) => self.session.tick(self.now_ms()),
            }
        }
    }

    fn broken(&mut self, error: &io::Error) {
        debug!(%error, "the connection broke");
        self.session.lost(self.now_ms());
    }

    async fn grant(&mut self, wish: Wish, wishes: &mut Wishes) {
        match wish {
            Wish::Send(outgoing) => {
                wishes.waiting = Some(outgoing);
                self.take_waiting(wishes);
            }
            Wish::Ack(seq) => self.acknowledge(seq).await,
            Wish::Close => {
                wishes.close = None;
                // What was handed over before the close goes first.
                wishes.sends.close();
                while let Some(outgoing) = wishes.waiting.take().or(wishes.sends.try_recv().ok()) {
                    self.hand_over(outgoing);
                }
                if wishes.acks.has_changed().unwrap_or(false) {
                    let seq = *wishes.acks.borrow_and_update();
                    self.acknowledge(seq).await;
                }
                self.session.close();
            }
        }
    }

    /// Hands the waiting message to the session, when it has room.
    fn take_waiting(&mut self, wishes: &mut Wishes) {
        let Some(outgoing) = wishes.waiting.take() else {
            return;
        };
        if self.session.has_room(&outgoing.to, outgoing.body.len()) {
            self.hand_over(outgoing);
        } else {
            wishes.waiting = Some(outgoing);
        }
    }

    fn hand_over(&mut self, Outgoing { to, id, body, tell }: Outgoing) {
        match self.session.send(&to, id, body) {
            Ok(ticket) => drop(self.unanswered.insert(ticket, (id, tell))),
            Err(error) => drop(tell.send(Err(SendError::NotTaken(error)))),
        }
    }

    /// First our own file, then the switch: whoever stops between the two gets entries again at worst.
    async fn acknowledge(&mut self, seq: Seq) {
        if let Some(path) = self.cursor_file.clone() {
            let cursor = Cursor {
                seq,
                cluster: self.cluster,
            };
            let file = path.clone();
            let stored = tokio::task::spawn_blocking(move || cursor::store(&file, cursor)).await;
            if let Err(error) = stored.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
                let text = error.to_string();
                self.ended = Some(Ended::State { path, text });
                return self.session.abort();
            }
        }
        self.session.ack(self.now_ms(), seq);
    }

    /// Passes on what happened. Nobody listening is no error: the program may only want to send.
    fn take_events(&mut self) {
        while let Some(event) = self.session.event() {
            match event {
                Event::Welcomed(welcomed) => self.welcomed(*welcomed),
                Event::Accepted { ticket, n, .. } => {
                    if let Some((id, tell)) = self.unanswered.remove(&ticket) {
                        let _ = tell.send(Ok(Accepted { id, n }));
                    }
                }
                Event::Failed { ticket, reason } => {
                    if let Some((_, tell)) = self.unanswered.remove(&ticket) {
                        let _ = tell.send(Err(SendError::Failed(reason)));
                    }
                }
                Event::Entry(entry) => drop(self.arrivals.send(Arrival::Entry(entry))),
                Event::Gap {
                    first,
                    last,
                    reason,
                    ticket: None,
                } => {
                    let gap = Gap {
                        first,
                        last,
                        reason,
                    };
                    drop(self.arrivals.send(Arrival::Gap(gap)));
                }
                Event::Disconnected(why) => self.disconnected(why),
                Event::Expiring { left_s } => self.renew(left_s),
                Event::Renewed { left_s } => debug!(left_s, "the session goes on"),
                Event::RenewFailed { code, .. } => {
                    warn!(%code, "the new token was not taken; another connection will follow");
                }
                Event::FetchedEntry { .. }
                | Event::Gap { .. }
                | Event::Fetched { .. }
                | Event::FetchFailed { .. } => {}
            }
        }
    }

    /// Carries the session on with a new token. Without one it ends with the old one, and the next
    /// connection asks again.
    fn renew(&mut self, left_s: u64) {
        match (self.options.token)() {
            Ok(token) => drop(self.session.renew(&token)),
            Err(error) => warn!(%error, left_s, "no new token for the session, which ends soon"),
        }
    }

    /// What the switch said when it ended the session is for people to see; else the last failed attempt
    /// says why there is none.
    fn disconnected(&self, why: Disconnect) {
        debug!(?why, "disconnected");
        let error = match why {
            Disconnect::Goodbye(reason) => Some(Arc::new(LinkError::Goodbye {
                addr: self.options.addr.clone(),
                reason,
            })),
            _ => None,
        };
        self.state.send_if_modified(|state| {
            let is_news = error.is_some() || matches!(state, State::Online(_));
            if is_news {
                *state = State::Offline { error };
            }
            is_news
        });
    }

    fn welcomed(&mut self, welcomed: Welcomed) {
        if *welcomed.user != *self.options.user.as_str() {
            let (wanted, got) = (self.options.user.clone(), welcomed.user.into());
            self.ended = Some(Ended::WrongUser { wanted, got });
            return self.session.abort();
        }
        if let Some(upto) = welcomed.lost_upto {
            warn!(
                seq = upto.0,
                "entries up to this one are no longer kept by the switch"
            );
        }
        self.cluster = welcomed.cluster;
        self.state.send_replace(State::Online(welcomed));
    }
}

/// Bytes on their way into a connection.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
    /// TLS may hold what it has taken.
    unflushed: bool,
}

impl Output {
    fn is_written(&self) -> bool {
        self.written == self.bytes.len()
    }

    fn is_done(&self) -> bool {
        self.is_written() && !self.unflushed
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }

    /// Takes one step. Cancelling it loses nothing.
    async fn write(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.is_written() {
            to.flush().await?;
            self.unflushed = false;
            return Ok(());
        }
        let len = to.write(&self.bytes[self.written..]).await?;
        if len == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += len;
        self.unflushed = true;
        Ok(())
    }
}

/// Reads something; the end of the stream is an error here.
async fn receive(from: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> io::Result<usize> {
    match from.read(into).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        len => Ok(len),
    }
}
