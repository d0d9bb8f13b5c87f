//! Many clients that are logged in and do nothing else, on one thread: they can all be cut at once, and
//! come back.
//!
//! ```text
//!   cut ─▶ session says when ─▶ TCP ─▶ TLS ─▶ Hello ─▶ Welcome: back
//!              ▲                 └──────┴───────┴──▶ failed, refused, too long: once more
//!              └──────────────────────────────────────────┘
//! ```
//!
//! In the manner of [`Manner::Library`] each is the client library's own session (`iris_proto::client`):
//! its backoff with full jitter, the switch's hints, and a ticket to resume with. In that of
//! [`Manner::Aggressive`] it comes back at once, without a ticket, whatever it is told, and gives up on an
//! attempt early to begin another.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use iris::runtime::stream::{BufferId, Event, SocketId, Sockets, SocketsConfig};
use iris::runtime::tls::Tls;
use iris_proto::client::{Config, Disconnect, Event as Told, Session, Step};
use rustls::ClientConfig;

use crate::identity::Identity;
use crate::schedule::Random;

/// Events that one turn takes.
const EVENTS_MAX: usize = 4096;
/// Clients that log in at a time before the storm.
const LOGINS_MAX: u32 = 64;
/// Longest sleep, so that the coordinator's wishes are seen.
const SLEEP_MS_MAX: u64 = 5;
/// Milliseconds that TCP and TLS may take together, as in the client library.
const LINK_MS: u64 = 10_000;
/// Milliseconds before a client that cannot even make a socket tries again.
const NO_SOCKET_MS: u64 = 10;

/// How clients come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As the client library does.
    Library,
    /// At once, again and again; an attempt that takes longer than so many milliseconds is given up.
    Aggressive {
        /// Milliseconds from TCP's first packet to the Welcome.
        give_up_ms: u64,
    },
}

/// What became of connections.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Connections begun.
    pub attempts: u64,
    /// Handshakes done.
    pub full: u64,
    /// Of them with a ticket.
    pub resumed: u64,
    /// Sessions begun.
    pub welcomes: u64,
    /// Attempts that failed, by why.
    pub refusals: BTreeMap<String, u64>,
}

/// What the coordinator and the fleet's thread share.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Clients with a session.
    pub online: AtomicU64,
    /// Set: cut them all, once.
    pub cut: AtomicBool,
    /// They were cut: from here on `online` counts those who are back.
    pub was_cut: AtomicBool,
    /// Nanoseconds between the cut and the moment at which all were back; 0: not yet.
    pub back_ns: AtomicU64,
    /// The thread shall end.
    pub finish: AtomicBool,
}

/// What a fleet saw before the cut, and since.
#[derive(Debug, Default)]
pub struct Ended {
    /// The first logins.
    pub logins: Counts,
    /// Since the cut.
    pub storm: Counts,
    /// Milliseconds after the cut at which each came back, in order.
    pub back_ms: Vec<u64>,
    /// Sessions that ended for good, and why.
    pub gone: BTreeMap<String, u64>,
}

struct Client {
    session: Session,
    tls: Arc<ClientConfig>,
    token: String,
    link: Option<Link>,
    /// The moment for which it stands in `Fleet::due`.
    due_ms: u64,
    is_online: bool,
}

/// One connection.
struct Link {
    socket: SocketId,
    tls: Option<Tls>,
    since_ms: u64,
    wire: Vec<u8>,
}

/// See the module's text. Lives on the thread that made it.
pub struct Fleet {
    address: SocketAddr,
    manner: Manner,
    identity: Arc<Identity>,
    wishes: Arc<Wishes>,
    sockets: Sockets,
    clients: Vec<Client>,
    by_socket: Vec<u32>,
    due: BinaryHeap<Reverse<(u64, u32)>>,
    began: Instant,
    cut_at: Option<Instant>,
    counts: Counts,
    ended: Ended,
    online: u64,
    /// Clients that wait for their first login.
    to_log_in: u32,
    plain: Vec<u8>,
}

impl Fleet {
    /// `count` clients of users `storm-<run>-<number>`.
    ///
    /// # Errors
    /// What io_uring or the token's signing said.
    pub fn new(
        count: u32,
        run: u32,
        address: SocketAddr,
        manner: Manner,
        identity: Arc<Identity>,
        wishes: Arc<Wishes>,
    ) -> Result<Self, String> {
        let sockets = Sockets::new(SocketsConfig::default()).map_err(|error| error.to_string())?;
        let mut random = Random::new(u64::from(run));
        let clients = (0..count).map(|number| {
            let config = Config {
                seed: random.next(),
                ..Config::default()
            };
            Ok(Client {
                session: Session::new(config),
                tls: identity.config(manner == Manner::Library),
                token: identity.token(&format!("storm-{run:08x}-{number}"))?,
                link: None,
                due_ms: 0,
                is_online: false,
            })
        });
        Ok(Self {
            address,
            manner,
            wishes,
            sockets,
            clients: clients.collect::<Result<_, String>>()?,
            identity,
            by_socket: Vec::new(),
            due: BinaryHeap::new(),
            began: crate::run::instant(),
            cut_at: None,
            counts: Counts::default(),
            ended: Ended::default(),
            online: 0,
            to_log_in: count,
            plain: Vec::new(),
        })
    }

    /// Runs until the coordinator says that it is enough.
    pub fn run(mut self) -> Ended {
        let mut events = Vec::new();
        for _ in 0..LOGINS_MAX {
            self.log_in_one();
        }
        while !self.wishes.finish.load(Ordering::Relaxed) {
            self.sockets.turn(&mut events, EVENTS_MAX);
            for event in events.drain(..) {
                self.event(event);
            }
            if self.cut_at.is_none() && self.wishes.cut.load(Ordering::Acquire) {
                self.cut();
            }
            self.look_at_due();
            self.sleep();
        }
        self.ended.storm = self.counts;
        self.ended
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn log_in_one(&mut self) {
        if self.to_log_in > 0 && self.cut_at.is_none() {
            self.to_log_in -= 1;
            self.look_at(self.to_log_in, 0);
        }
    }

    /// All sockets are closed, without a word.
    fn cut(&mut self) {
        let now = self.now_ms();
        self.to_log_in = 0;
        self.ended.logins = std::mem::take(&mut self.counts);
        self.due.clear();
        self.cut_at = Some(crate::run::instant());
        for at in 0..self.clients.len() as u32 {
            let client = &mut self.clients[at as usize];
            client.is_online = false;
            if let Some(link) = client.link.take() {
                self.sockets.close(link.socket);
            }
            client.session.lost(now);
            self.schedule(at);
        }
        self.online = 0;
        self.wishes.online.store(0, Ordering::Relaxed);
        self.wishes.was_cut.store(true, Ordering::Release);
    }

    /// Notes when a client is to be looked at again.
    fn schedule(&mut self, at: u32) {
        while self.clients[at as usize].session.event().is_some() {} // told above
        let now = self.now_ms();
        let client = &mut self.clients[at as usize];
        let due = match (client.session.step(), &client.link) {
            (Step::Connect { .. }, Some(link)) => link.since_ms + self.manner.link_ms(),
            (Step::Connect { at_ms, .. }, None) => match self.manner {
                Manner::Library => at_ms,
                Manner::Aggressive { .. } => now,
            },
            (Step::Run { until_ms }, link) => match (self.manner, link) {
                (Manner::Aggressive { give_up_ms }, Some(link)) if !client.is_online => {
                    until_ms.min(link.since_ms + give_up_ms)
                }
                _ => until_ms,
            },
            (Step::End(end), _) => {
                *self.ended.gone.entry(end.to_string()).or_default() += 1;
                return;
            }
        };
        self.look_at(at, due);
    }

    fn look_at(&mut self, at: u32, due_ms: u64) {
        self.clients[at as usize].due_ms = due_ms;
        self.due.push(Reverse((due_ms, at)));
    }

    fn look_at_due(&mut self) {
        let now = self.now_ms();
        while let Some(&Reverse((due, at))) = self.due.peek() {
            if due > now {
                return;
            }
            self.due.pop();
            if self.clients[at as usize].due_ms == due {
                self.clients[at as usize].due_ms = u64::MAX;
                self.look(at, now);
            }
        }
    }

    /// Something is due: to connect, to give up, or to say something.
    fn look(&mut self, at: u32, now: u64) {
        let client = &mut self.clients[at as usize];
        let Some(link) = &client.link else {
            return self.connect(at, now);
        };
        let is_late = now >= link.since_ms + self.manner.link_ms();
        let is_linking = matches!(client.session.step(), Step::Connect { .. });
        let is_hasty = matches!(self.manner, Manner::Aggressive { .. });
        if is_late && (is_linking || is_hasty && !client.is_online) {
            return self.lose(at, "took too long");
        }
        client.session.tick(now);
        self.after(at, now);
    }

    fn connect(&mut self, at: u32, now: u64) {
        self.counts.attempts += 1;
        let Ok(socket) = self.sockets.connect(self.address) else {
            self.refused("no socket");
            return self.look_at(at, now + NO_SOCKET_MS);
        };
        let slot = socket.slot as usize;
        if self.by_socket.len() <= slot {
            self.by_socket.resize(slot + 1, u32::MAX);
        }
        self.by_socket[slot] = at;
        self.clients[at as usize].link = Some(Link {
            socket,
            tls: None,
            since_ms: now,
            wire: Vec::new(),
        });
        self.look_at(at, now + self.manner.link_ms());
    }

    fn refused(&mut self, why: &str) {
        *self.counts.refusals.entry(why.to_owned()).or_default() += 1;
    }

    /// The connection is over.
    fn lose(&mut self, at: u32, why: &str) {
        let now = self.now_ms();
        let client = &mut self.clients[at as usize];
        if let Some(link) = client.link.take() {
            self.sockets.close(link.socket);
        }
        if std::mem::take(&mut client.is_online) {
            self.online -= 1;
            self.wishes.online.store(self.online, Ordering::Relaxed);
        }
        client.session.lost(now);
        self.refused(why);
        self.schedule(at);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Received { id, buffer } => {
                if let Some(at) = self.client_of(id) {
                    self.received(at, &buffer);
                }
                self.sockets.release(buffer);
            }
            Event::Sent { id, result, .. } => match (self.client_of(id), result) {
                (Some(at), Ok(())) => self.flush(at),
                (Some(at), Err(_)) => self.lose(at, "sending failed"),
                (None, _) => {}
            },
            Event::Connected { id, result } => {
                if let Some(at) = self.client_of(id) {
                    self.connected(at, result);
                }
            }
            Event::Ended { id, .. } => {
                if let Some(at) = self.client_of(id) {
                    let client = &self.clients[at as usize];
                    let tls = client.link.as_ref().and_then(|link| link.tls.as_ref());
                    let why = match tls.is_some_and(|tls| !tls.is_handshaking()) {
                        true => "closed after the handshake",
                        false => "closed before or in the handshake",
                    };
                    self.lose(at, why);
                }
            }
            _ => {}
        }
    }

    fn client_of(&self, id: SocketId) -> Option<u32> {
        let at = *self.by_socket.get(id.slot as usize)?;
        let link = self.clients.get(at as usize)?.link.as_ref()?;
        (link.socket == id).then_some(at)
    }

    fn connected(&mut self, at: u32, result: Result<(), i32>) {
        if let Err(errno) = result {
            let error = std::io::Error::from_raw_os_error(errno);
            return self.lose(at, &format!("no connection: {}", error.kind()));
        }
        let client = &mut self.clients[at as usize];
        let Some(link) = &mut client.link else { return };
        let mut wire = std::mem::take(&mut link.wire);
        let started = self.identity.tls_with(&client.tls).and_then(|mut tls| {
            tls.start(&mut wire).map_err(|error| error.to_string())?;
            Ok(tls)
        });
        link.wire = wire;
        match started {
            Ok(tls) => link.tls = Some(tls),
            Err(text) => return self.lose(at, &text),
        }
        self.flush(at);
    }

    fn received(&mut self, at: u32, buffer: &BufferId) {
        let now = self.now_ms();
        let client = &mut self.clients[at as usize];
        let Some((link, tls)) = client.link.as_mut().and_then(|link| {
            let tls = link.tls.take()?;
            Some((link, tls))
        }) else {
            return;
        };
        let mut tls = tls;
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let was_handshaking = tls.is_handshaking();
        let opened = tls.open(self.sockets.data(buffer), &mut plain, &mut link.wire);
        let resumed = tls.resumed();
        link.tls = Some(tls);
        if let Err(error) = opened {
            self.plain = plain;
            return self.lose(at, &error.to_string());
        }
        let is_done = opened.is_ok_and(|opened| !opened.handshaking);
        if was_handshaking && is_done {
            match resumed {
                Some(true) => self.counts.resumed += 1,
                _ => self.counts.full += 1,
            }
            client.session.connected(now, &client.token);
        }
        if !plain.is_empty() {
            client.session.received(now, &plain);
        }
        self.plain = plain;
        self.after(at, now);
    }

    /// The session may have news, something to write, or an end.
    fn after(&mut self, at: u32, now: u64) {
        while let Some(told) = self.clients[at as usize].session.event() {
            match told {
                Told::Welcomed(_) => self.welcomed(at),
                Told::Disconnected(Disconnect::Goodbye(reason)) => {
                    self.refused(&format!("Goodbye: {reason:?}"));
                }
                Told::Disconnected(why) => self.refused(&format!("{why:?}")),
                _ => {}
            }
        }
        let client = &mut self.clients[at as usize];
        if !matches!(client.session.step(), Step::Run { .. })
            && client.link.as_ref().is_some_and(|link| {
                let tls = link.tls.as_ref();
                tls.is_some_and(|tls| !tls.is_handshaking())
            })
        {
            // The session has had enough of this connection, and counted it.
            if let Some(link) = client.link.take() {
                self.sockets.close(link.socket);
            }
            if std::mem::take(&mut client.is_online) {
                self.online -= 1;
                self.wishes.online.store(self.online, Ordering::Relaxed);
            }
            return self.schedule(at);
        }
        let mut out = Vec::new();
        client.session.write(now, &mut out);
        if let Some(link) = &mut client.link
            && let Some(tls) = &mut link.tls
            && !out.is_empty()
            && let Err(error) = tls.seal(&out, &mut link.wire)
        {
            return self.lose(at, &error.to_string());
        }
        self.flush(at);
        self.schedule(at);
    }

    fn welcomed(&mut self, at: u32) {
        self.counts.welcomes += 1;
        self.online += 1;
        self.clients[at as usize].is_online = true;
        self.wishes.online.store(self.online, Ordering::Relaxed);
        if let Some(cut) = self.cut_at {
            let passed = cut.elapsed();
            self.ended.back_ms.push(passed.as_millis() as u64);
            if self.online == self.clients.len() as u64 {
                let ns = (passed.as_nanos() as u64).max(1);
                let _ = self.wishes.back_ns.compare_exchange(
                    0,
                    ns,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
            }
        }
        self.log_in_one();
    }

    fn flush(&mut self, at: u32) {
        if let Some(link) = &mut self.clients[at as usize].link
            && !link.wire.is_empty()
            && self.sockets.can_send(link.socket)
        {
            let wire = std::mem::take(&mut link.wire);
            self.sockets.send(link.socket, wire);
        }
    }

    fn sleep(&mut self) {
        let now = self.now_ms();
        let next = self.due.peek().map_or(u64::MAX, |&Reverse((due, _))| due);
        let until = next.min(now + SLEEP_MS_MAX);
        if until > now {
            self.sockets
                .park(std::time::Duration::from_millis(until - now));
        }
    }
}

impl Manner {
    /// Milliseconds after which a connection that is not up is given up.
    const fn link_ms(self) -> u64 {
        match self {
            Self::Library => LINK_MS,
            Self::Aggressive { give_up_ms } => give_up_ms,
        }
    }
}
