//! Clients that do everything wrong but what ends a connection at once, each kind for some seconds beside
//! sessions that behave; how long those wait meanwhile, against the seconds just before.
//!
//! ```text
//!   undisturbed │ kind 1 │ rest │ undisturbed │ kind 2 │ rest │ …
//! ```
//!
//! Not here: a peer that is gone without a word. That takes a network that drops its packets; to the switch
//! it is a client that does not read, until the kernel's keep-alive ends it.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use iris_proto::v2::{self, client_frame::Frame};
use iris_proto::wire;
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};

use crate::args::{HostileArgs, Kind};
use crate::established::{Established, Phase};
use crate::identity::Identity;
use crate::local;
use crate::run::{instant, pause, random};

/// How long a blocking call of a hostile client may take, so that it sees its end.
const CALL_MAX: Duration = Duration::from_millis(200);
/// The grain of those that do something once a second.
const SECOND: Duration = Duration::from_secs(1);
/// Connections without a token that one hostile run opens: so many in all, again when they are closed.
const STRANGERS: usize = 10_000;
/// Bytes of the messages that wait for a client which does not read.
const HOARD_BODY: usize = 60_000;
/// How many of them: far more than the kernel holds for a socket.
const HOARD: u64 = 200;
/// Time between two kinds, for the switch to come to rest.
const REST: Duration = Duration::from_secs(1);

/// What one kind of client did to others.
struct Row {
    kind: Kind,
    undisturbed: Phase,
    during: Phase,
    /// What the hostile clients did: frames, bytes or connections.
    done: u64,
}

/// What was seen.
pub struct Hostile {
    args: HostileArgs,
    rows: Vec<Row>,
}

/// Runs it.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &HostileArgs) -> Result<Hostile, String> {
    local::raise_open_files()?;
    let address = args.place.address()?;
    let identity = Arc::new(Identity::load(&args.place.data, &args.place.server_name)?);
    let run = random()? as u32;
    let mut established = Established::start(&args.place, &identity)?;
    let kinds = match args.kind.as_slice() {
        [] => Kind::ALL.to_vec(),
        some => some.to_vec(),
    };
    let time = Duration::from_secs_f64(args.seconds);
    let mut phases = Vec::new();
    for &kind in &kinds {
        let crowd = Crowd::new(kind, args.clients, run, address, &identity)?;
        established.next_phase(); // what came before, and what preparing it cost
        established.watch(REST)?;
        let undisturbed = established.next_phase();
        established.watch(time)?;
        let during = established.next_phase();
        let crowd = crowd.start(&args.place)?;
        let watched = established.watch(time);
        established.next_phase(); // what ending them and preparing the next costs
        let done = crowd.end()?;
        watched.map_err(|text| format!("beside clients that {}: {text}", kind.what()))?;
        if !args.quiet {
            eprintln!("  {}: {done}", kind.what());
        }
        phases.push((kind, undisturbed, during, done));
    }
    let mut all = established.end()?;
    let mut phase = |number| std::mem::replace(&mut all[number], Phase::new());
    let rows = phases
        .into_iter()
        .map(|(kind, undisturbed, during, done)| Row {
            kind,
            undisturbed: phase(undisturbed),
            during: phase(during),
            done,
        });
    Ok(Hostile {
        args: args.clone(),
        rows: rows.collect(),
    })
}

impl Hostile {
    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        crate::report::text(|out| self.write_table(out))
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let place = &self.args.place;
        let (sessions, rate) = (place.established, place.rate);
        let clients = self.args.clients;
        writeln!(
            out,
            "{sessions} sessions, {rate} messages/s, beside {clients} hostile clients"
        )?;
        writeln!(out, "{}\n", local::machine())?;
        out.push_str(&Phase::head());
        for row in &self.rows {
            out.push_str(&row.undisturbed.row("undisturbed"));
            out.push_str(&row.during.row(row.kind.what()));
        }
        writeln!(out)?;
        for row in &self.rows {
            let (what, done) = (row.kind.what(), row.done);
            let ratio = row.during.ratio(&row.undisturbed);
            writeln!(
                out,
                "  p99 {ratio:>6.2} times  {what} ({done} {})",
                row.kind.unit()
            )?;
        }
        Ok(())
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "kind": row.kind.what(), "done": row.done,
                "undisturbed": row.undisturbed.json(), "during": row.during.json(),
                "p99_ratio": row.during.ratio(&row.undisturbed),
            })
        };
        json!({
            "machine": local::machine(),
            "commit": local::commit(),
            "clients": self.args.clients,
            "kinds": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

impl Kind {
    /// All of them, in the order of a run.
    pub const ALL: [Self; 7] = [
        Self::NeverReads,
        Self::ByteASecond,
        Self::NeverAcknowledges,
        Self::FloodsPings,
        Self::WithoutToken,
        Self::DripsFrames,
        Self::TinyRecords,
    ];

    /// What such a client does.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::NeverReads => "never read",
            Self::ByteASecond => "read a byte a second",
            Self::NeverAcknowledges => "never acknowledge",
            Self::FloodsPings => "flood pings",
            Self::WithoutToken => "come without a token",
            Self::DripsFrames => "send a byte of a frame a second",
            Self::TinyRecords => "put a byte into each record",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::NeverReads => "fetches",
            Self::ByteASecond => "bytes",
            Self::NeverAcknowledges => "messages",
            Self::FloodsPings => "pings",
            Self::WithoutToken => "connections",
            Self::DripsFrames | Self::TinyRecords => "bytes",
        }
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// The clients of one kind, prepared.
struct Crowd {
    kind: Kind,
    address: SocketAddr,
    members: Vec<Stream>,
    /// Who sends to those who do not acknowledge.
    sender: Option<(Stream, String)>,
    /// Times that all have had their turn.
    rounds: u64,
}

/// The clients of one kind, at it.
struct AtIt {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Crowd {
    fn new(
        kind: Kind,
        count: u32,
        run: u32,
        address: SocketAddr,
        identity: &Identity,
    ) -> Result<Self, String> {
        let name = |who: &str| format!("hostile-{run:08x}-{kind:?}-{who}").to_lowercase();
        let log_in = |who: &str| log_in(address, identity, &name(who));
        let mut crowd = Self {
            kind,
            address,
            members: Vec::new(),
            sender: None,
            rounds: 0,
        };
        if kind == Kind::WithoutToken {
            return Ok(crowd);
        }
        for member in 0..count {
            let who = member.to_string();
            if matches!(kind, Kind::NeverReads | Kind::ByteASecond) {
                hoard(&mut log_in("sender")?, &name(&who))?;
            }
            crowd.members.push(log_in(&who)?);
        }
        if kind == Kind::NeverAcknowledges {
            crowd.sender = Some((log_in("sender")?, name("0")));
        }
        Ok(crowd)
    }

    fn start(mut self, place: &crate::args::PlaceArgs) -> Result<AtIt, String> {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let core = place.cores.as_ref().and_then(|list| list.0.last().copied());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        let nice = place.nice;
        let body = move || {
            if let Some(core) = core {
                let _ = local::pin(core); // the established sessions' thread could be pinned there
            }
            let _ = local::yield_to_others(nice); // else it only runs more eagerly
            while !stopped.load(Ordering::Relaxed) {
                self.act(&count, &stopped);
            }
        };
        let thread = std::thread::Builder::new()
            .name("hostile".to_owned())
            .spawn(body);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(AtIt { stop, done, thread })
    }

    /// Once round all members.
    fn act(&mut self, done: &AtomicU64, stop: &AtomicBool) {
        let add = |count: usize| done.fetch_add(count as u64, Ordering::Relaxed);
        match self.kind {
            Kind::NeverReads | Kind::ByteASecond => {
                if self.rounds == 0 {
                    for member in &mut self.members {
                        let _ = write(member, fetch()); // the switch may have had enough
                        add(1);
                    }
                }
                if self.kind == Kind::ByteASecond {
                    for member in &mut self.members {
                        add(member.sock.read(&mut [0; 1]).unwrap_or(0));
                    }
                }
                rest(stop);
            }
            Kind::NeverAcknowledges => {
                if let Some((sender, to)) = &mut self.sender {
                    let n = done.load(Ordering::Relaxed) + 1;
                    if write(sender, send(to, n, 100)).is_ok() {
                        add(1);
                    }
                    let _ = read_some(sender);
                }
                for member in &mut self.members {
                    let _ = member.sock.set_nonblocking(true);
                    let _ = read_some(member);
                }
                pause(Duration::from_millis(2));
            }
            Kind::FloodsPings => {
                for member in &mut self.members {
                    let _ = member.sock.set_nonblocking(true);
                    for nonce in 0..64 {
                        if write(member, Frame::Ping(v2::Ping { nonce })).is_err() {
                            break;
                        }
                        add(1);
                    }
                    let _ = read_some(member);
                }
            }
            Kind::WithoutToken => self.stand_around(done, stop),
            Kind::DripsFrames => {
                // A frame of a KiB, so that it never ends here.
                let byte: &[u8] = if self.rounds == 0 {
                    &[0, 0, 4, 0]
                } else {
                    &[0x22]
                };
                for member in &mut self.members {
                    if member.write_all(byte).and_then(|()| member.flush()).is_ok() {
                        add(byte.len());
                    }
                }
                rest(stop);
            }
            Kind::TinyRecords => self.send_tiny_records(done),
        }
        self.rounds += 1;
    }

    /// A frame of 60,000 bytes, 64 records at a time.
    fn send_tiny_records(&mut self, done: &AtomicU64) {
        for member in &mut self.members {
            let _ = member.sock.set_nonblocking(true);
            if self.rounds == 0 {
                let _ = member.write_all(&[0, 0, 0xea, 0x60]);
            }
            for _ in 0..64 {
                match member.write_all(&[0x22]).and_then(|()| member.flush()) {
                    Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                    Err(_) => break, // its socket is full, or it was cut
                };
            }
        }
    }

    /// Opens connections and says nothing on them.
    fn stand_around(&self, done: &AtomicU64, stop: &AtomicBool) {
        let mut strangers = Vec::new();
        while !stop.load(Ordering::Relaxed) && strangers.len() < STRANGERS {
            match TcpStream::connect_timeout(&self.address, CALL_MAX) {
                Ok(stream) => strangers.push(stream),
                Err(_) => break, // no more descriptors or ports: those that there are go, and new ones come
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl AtIt {
    fn end(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| "a hostile thread panicked".to_owned())?;
        Ok(self.done.load(Ordering::Relaxed))
    }
}

/// A second, or until it is enough.
fn rest(stop: &AtomicBool) {
    let until = instant() + SECOND;
    while instant() < until && !stop.load(Ordering::Relaxed) {
        pause(Duration::from_millis(20));
    }
}

fn fetch() -> Frame {
    Frame::Fetch(v2::Fetch {
        tag: 1,
        after: 0,
        limit: 1_000,
    })
}

fn send(to: &str, n: u64, bytes: usize) -> Frame {
    Frame::Send(v2::Send {
        tag: n,
        to: to.to_owned(),
        n,
        id: vec![7; 16],
        body: vec![0x5a; bytes],
    })
}

fn write(stream: &mut Stream, frame: Frame) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    wire::encode_client(&mut bytes, frame);
    stream.write_all(&bytes)?;
    stream.flush()
}

/// What has come, as far as it takes no waiting.
fn read_some(stream: &mut Stream) -> std::io::Result<usize> {
    let mut buffer = [0; 64 * 1024];
    match stream.read(&mut buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

fn log_in(address: SocketAddr, identity: &Identity, user: &str) -> Result<Stream, String> {
    let text = |error: std::io::Error| format!("a hostile client cannot log in: {error}");
    let socket = TcpStream::connect(address).map_err(text)?;
    socket.set_read_timeout(Some(10 * SECOND)).map_err(text)?;
    socket.set_nodelay(true).map_err(text)?;
    let mut stream = StreamOwned::new(identity.blocking()?, socket);
    let hello = v2::Hello {
        token: identity.token(user)?,
        send_epoch: 1,
        version_min: iris_proto::limits::VERSION,
        version_max: iris_proto::limits::VERSION,
        ..v2::Hello::default()
    };
    write(&mut stream, Frame::Hello(hello)).map_err(text)?;
    let mut first = [0; 1];
    stream.read_exact(&mut first).map_err(text)?; // of the Welcome; the rest is of no interest
    stream.sock.set_read_timeout(Some(CALL_MAX)).map_err(text)?;
    stream
        .sock
        .set_write_timeout(Some(CALL_MAX))
        .map_err(text)?;
    Ok(stream)
}

/// Puts messages into a user's inbox.
fn hoard(sender: &mut Stream, to: &str) -> Result<(), String> {
    let text = |error: std::io::Error| format!("messages for a hostile client: {error}");
    for n in 1..=HOARD {
        sender
            .sock
            .set_write_timeout(Some(10 * SECOND))
            .map_err(text)?;
        write(sender, send(to, n, HOARD_BODY)).map_err(text)?;
        sender.sock.set_nonblocking(true).map_err(text)?;
        let _ = read_some(sender);
        sender.sock.set_nonblocking(false).map_err(text)?;
    }
    // The last answers: once the switch is silent for a while, all is stored or refused.
    while sender.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    Ok(())
}
