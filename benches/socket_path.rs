//! What a message costs on the socket path: an echo of 64-byte frames over loopback, one server
//! core, one core of clients; plain and with TLS, on the private ring and on glommio's own
//! `TcpStream`.
//!
//! `cargo bench --bench socket_path [-- SECONDS]` prints messages per second and the server
//! thread's processor time (user + system) per message; then the memory of an idle TLS connection,
//! from a server process of its own that holds nothing else.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark measures for a time, by the clock"
)]

use glommio::{LocalExecutorBuilder, Placement};
use iris::runtime::stream::{Event, Sockets, SocketsConfig, wait};
use iris::runtime::tls::{Tls, client_config, server_config};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const FRAME_BYTES: usize = 64;
const EVENTS_MAX: usize = 512;

/// Shared between the two cores and the clock.
#[derive(Default)]
struct Counters {
    messages: AtomicU64,
    server_cpu_ns: AtomicU64,
    server_calls: AtomicU64,
    stop: AtomicBool,
}

impl Counters {
    /// What the server thread has cost so far.
    fn tell(&self, sockets: &Sockets) {
        let calls = sockets.system_calls();
        self.server_cpu_ns.store(thread_cpu_ns(), Ordering::Relaxed);
        self.server_calls.store(calls, Ordering::Relaxed);
    }
}

struct End {
    tls: Option<Tls>,
    plain: Vec<u8>,
    wire: Vec<u8>,
    /// A buffer to send with next time.
    spare: Vec<u8>,
    dirty: bool,
    started: bool,
    id: Option<iris::runtime::stream::SocketId>,
}

impl End {
    fn new(id: iris::runtime::stream::SocketId, tls: Option<Tls>) -> End {
        let (plain, wire, spare) = (Vec::new(), Vec::new(), Vec::new());
        End {
            tls,
            plain,
            wire,
            spare,
            dirty: false,
            started: false,
            id: Some(id),
        }
    }

    /// Takes the bytes in; they are in `plain` then.
    fn open(&mut self, data: &mut [u8]) {
        match &mut self.tls {
            Some(tls) => drop(
                tls.open(data, &mut self.plain, &mut self.wire)
                    .expect("TLS"),
            ),
            None => self.plain.extend_from_slice(data),
        }
    }

    fn ready(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    fn seal(&mut self, plain: &[u8]) {
        match &mut self.tls {
            Some(tls) => tls.seal(plain, &mut self.wire).expect("TLS"),
            None => self.wire.extend_from_slice(plain),
        }
    }

    /// Seals all that came in, once, and sends it.
    fn echo(&mut self, sockets: &mut Sockets) {
        if self.ready() && !self.plain.is_empty() {
            let mut plain = std::mem::take(&mut self.plain);
            self.seal(&plain);
            plain.clear();
            self.plain = plain;
        }
        self.flush(sockets);
    }

    fn flush(&mut self, sockets: &mut Sockets) {
        let Some(id) = self.id else { return };
        if !self.wire.is_empty() && sockets.can_send(id) {
            let spare = std::mem::take(&mut self.spare);
            sockets.send(id, std::mem::replace(&mut self.wire, spare));
        }
    }
}

fn thread_cpu_ns() -> u64 {
    // SAFETY: all-zero is a valid rusage, and the pointer is to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage
    };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    ns(usage.ru_utime) + ns(usage.ru_stime)
}

fn on_core(core: usize, future: impl std::future::Future<Output = ()>) {
    LocalExecutorBuilder::new(Placement::Fixed(core))
        .io_memory(1 << 20)
        .make()
        .expect("an executor")
        .run(future);
}

fn standing_timer(sockets: &Sockets) {
    let doorbell = sockets.doorbell();
    glommio::spawn_local(async move {
        loop {
            glommio::timer::sleep(Duration::from_millis(50)).await;
            doorbell.ring();
        }
    })
    .detach();
}

/// Echoes whatever comes.
async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    config: SocketsConfig,
    counters: Arc<Counters>,
) {
    let mut sockets = Sockets::new(config).expect("sockets");
    standing_timer(&sockets);
    sockets.listen(listener);
    let mut ends: Vec<Option<End>> = Vec::new();
    let (mut events, mut dirty) = (Vec::new(), Vec::new());
    while !counters.stop.load(Ordering::Relaxed) {
        sockets.accept_up_to(1);
        sockets.turn(&mut events, EVENTS_MAX);
        if events.is_empty() {
            wait(&mut sockets).await;
            continue;
        }
        for event in events.drain(..) {
            match event {
                Event::Accepted { socket } => {
                    let id = sockets.adopt(socket);
                    let tls = tls
                        .as_ref()
                        .map(|config| Tls::server(Arc::clone(config)).expect("TLS"));
                    let slot = id.slot as usize;
                    ends.resize_with(ends.len().max(slot + 1), || None);
                    ends[slot] = Some(End::new(id, tls));
                }
                Event::Received { id, buffer } => {
                    if let Some(end) = &mut ends[id.slot as usize] {
                        end.open(sockets.data(&buffer));
                        if !end.dirty {
                            end.dirty = true;
                            dirty.push(id.slot);
                        }
                    }
                    sockets.release(buffer);
                }
                Event::Sent { id, mut buffer, .. } => {
                    if let Some(end) = &mut ends[id.slot as usize] {
                        buffer.clear();
                        // Idle connections keep nothing.
                        if end.plain.is_empty() && counters.messages.load(Ordering::Relaxed) > 0 {
                            end.spare = buffer;
                        }
                        if !end.wire.is_empty() && !end.dirty {
                            end.dirty = true;
                            dirty.push(id.slot);
                        }
                    }
                }
                Event::Ended { id, .. } => {
                    sockets.close(id);
                    ends[id.slot as usize] = None;
                }
                _ => {}
            }
        }
        for slot in dirty.drain(..) {
            if let Some(end) = &mut ends[slot as usize] {
                end.dirty = false;
                end.echo(&mut sockets);
            }
        }
        counters.tell(&sockets);
    }
}

/// The same on glommio's `TcpStream`, plain: one task per connection.
async fn serve_glommio(listener: TcpListener, counters: Arc<Counters>) {
    use futures_lite::{AsyncReadExt, AsyncWriteExt};
    let address = listener.local_addr().expect("address");
    drop(listener);
    let listener = glommio::net::TcpListener::bind(address).expect("bind");
    let accepting = glommio::spawn_local(async move {
        loop {
            let mut stream = listener.accept().await.expect("accept");
            glommio::spawn_local(async move {
                stream.set_nodelay(true).expect("nodelay");
                let mut buffer = vec![0; 4096];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(bytes) => {
                            if stream.write_all(&buffer[..bytes]).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            })
            .detach();
        }
    });
    while !counters.stop.load(Ordering::Relaxed) {
        glommio::timer::sleep(Duration::from_millis(50)).await;
        counters
            .server_cpu_ns
            .store(thread_cpu_ns(), Ordering::Relaxed);
    }
    accepting.cancel().await;
}

/// `connections` clients, each with `window` frames under way.
async fn drive(
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    connections: usize,
    window: usize,
    counters: Arc<Counters>,
) {
    let config = SocketsConfig {
        buffers: 1024,
        ..SocketsConfig::default()
    };
    let mut sockets = Sockets::new(config).expect("sockets");
    standing_timer(&sockets);
    let mut ends: Vec<End> = Vec::new();
    for _ in 0..connections {
        let id = sockets.connect(address).expect("connect");
        let name = ServerName::try_from("localhost").expect("name");
        let tls = tls
            .as_ref()
            .map(|config| Tls::client(Arc::clone(config), name).expect("TLS"));
        ends.push(End::new(id, tls));
    }
    let frames = vec![7; FRAME_BYTES * window];
    let (mut events, mut dirty) = (Vec::new(), Vec::new());
    while !counters.stop.load(Ordering::Relaxed) {
        sockets.turn(&mut events, EVENTS_MAX);
        if events.is_empty() {
            wait(&mut sockets).await;
            continue;
        }
        for event in events.drain(..) {
            let slot = match event {
                Event::Connected { id, result } => {
                    result.expect("connect");
                    let end = &mut ends[id.slot as usize];
                    if let Some(tls) = &mut end.tls {
                        tls.start(&mut end.wire).expect("TLS");
                    }
                    id.slot
                }
                Event::Received { id, buffer } => {
                    ends[id.slot as usize].open(sockets.data(&buffer));
                    sockets.release(buffer);
                    id.slot
                }
                Event::Sent { id, mut buffer, .. } => {
                    buffer.clear();
                    ends[id.slot as usize].spare = buffer;
                    id.slot
                }
                other => panic!("{other:?}"),
            };
            let end = &mut ends[slot as usize];
            if !end.dirty {
                end.dirty = true;
                dirty.push(slot);
            }
        }
        let mut answered = 0;
        for slot in dirty.drain(..) {
            let end = &mut ends[slot as usize];
            end.dirty = false;
            if end.ready() && !end.started {
                end.started = true;
                end.seal(&frames);
            }
            let whole = end.plain.len() / FRAME_BYTES;
            if whole > 0 {
                end.plain.drain(..whole * FRAME_BYTES);
                end.seal(&frames[..whole * FRAME_BYTES]);
                answered += whole as u64;
            }
            end.flush(&mut sockets);
        }
        counters.messages.fetch_add(answered, Ordering::Relaxed);
    }
}

type Configs = (Arc<ServerConfig>, Arc<ClientConfig>);

fn configs() -> Configs {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let server =
        server_config(certificate.as_bytes(), key.as_bytes(), None).expect("server config");
    (
        server,
        client_config(certificate.as_bytes()).expect("client config"),
    )
}

#[derive(Clone, Copy, PartialEq)]
enum Server {
    Ring,
    RingTls,
    Glommio,
}

fn measure(which: Server, configs: &Configs, shape: (usize, usize), seconds: f64, buffers: u16) {
    let (connections, window) = shape;
    let counters = Arc::new(Counters::default());
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let tls = which == Server::RingTls;
    let server = {
        let (counters, tls) = (Arc::clone(&counters), tls.then(|| Arc::clone(&configs.0)));
        let config = SocketsConfig {
            buffers,
            ..SocketsConfig::default()
        };
        std::thread::spawn(move || match which {
            Server::Glommio => on_core(0, serve_glommio(listener, counters)),
            _ => on_core(0, serve(listener, tls, config, counters)),
        })
    };
    std::thread::sleep(Duration::from_millis(200));
    let client = {
        let (counters, tls) = (Arc::clone(&counters), tls.then(|| Arc::clone(&configs.1)));
        std::thread::spawn(move || on_core(1, drive(address, tls, connections, window, counters)))
    };
    let read = || {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        (
            load(&counters.messages),
            load(&counters.server_cpu_ns),
            load(&counters.server_calls),
        )
    };
    std::thread::sleep(Duration::from_millis(700));
    let (start, (messages, cpu, calls)) = (Instant::now(), read());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let (took, after) = (start.elapsed().as_secs_f64(), read());
    counters.stop.store(true, Ordering::Relaxed);
    client.join().expect("client");
    server.join().expect("server");
    let count = after.0 - messages;
    let name = match which {
        Server::Ring => "private ring",
        Server::RingTls => "private ring, TLS",
        Server::Glommio => "glommio TcpStream",
    };
    println!(
        "{name:18} {connections:4} x {window:2}  {:9.0} msg/s  {:6.2} us CPU/msg  {:.3} enters/msg",
        count / took,
        (after.1 - cpu) / count / 1000.0,
        (after.2 - calls) / count,
    );
}

/// Resident anonymous and file memory of this process, in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("VmRSS");
    let kib: usize = line
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("KiB");
    kib * 1024
}

/// The server half of the memory measurement, in this process; the clients run in a child.
fn idle_memory(connections: usize) {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let config =
        server_config(certificate.as_bytes(), key.as_bytes(), None).expect("server config");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let (to, from) = mpsc::channel();
    std::thread::spawn(move || {
        on_core(0, async move {
            hold(listener, config, connections, to).await;
        });
    });
    let before = from.recv().expect("server");
    let path = std::env::temp_dir().join(format!("iris-bench-{}.pem", std::process::id()));
    std::fs::write(&path, certificate).expect("certificate file");
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--idle-clients",
            &address.to_string(),
            &connections.to_string(),
        ])
        .arg(&path)
        .spawn()
        .expect("clients");
    let after = from.recv().expect("server");
    let _ = child.kill();
    let _ = child.wait();
    let _ = std::fs::remove_file(&path);
    println!(
        "idle TLS connection: {} bytes each ({connections} connections, process grew by {} KiB)",
        after.saturating_sub(before) / connections,
        after.saturating_sub(before) / 1024,
    );
}

/// Completes handshakes until all are there, and one message each; tells the memory before and
/// after.
async fn hold(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    connections: usize,
    to: mpsc::Sender<usize>,
) {
    let mut sockets = Sockets::new(SocketsConfig::default()).expect("sockets");
    standing_timer(&sockets);
    sockets.listen(listener);
    let mut ends: Vec<Option<Tls>> = Vec::with_capacity(connections);
    let (mut events, mut plain, mut wire) = (Vec::new(), Vec::new(), Vec::new());
    // The pool of receive buffers is the core's, not a connection's: count it before.
    to.send(resident_bytes()).expect("main");
    let (mut heard, mut used) = (0, std::collections::HashSet::new());
    while heard < connections {
        sockets.turn(&mut events, EVENTS_MAX);
        if events.is_empty() {
            wait(&mut sockets).await;
        }
        for event in events.drain(..) {
            match event {
                Event::Accepted { socket } => {
                    let id = sockets.adopt(socket);
                    ends.resize_with(ends.len().max(id.slot as usize + 1), || None);
                    ends[id.slot as usize] = Tls::server(Arc::clone(&config)).ok();
                }
                Event::Received { id, buffer } => {
                    let tls = ends[id.slot as usize].as_mut().expect("a connection");
                    tls.open(sockets.data(&buffer), &mut plain, &mut wire)
                        .expect("TLS");
                    used.insert(format!("{buffer:?}"));
                    sockets.release(buffer);
                    heard += usize::from(!plain.is_empty());
                    plain.clear();
                    if !wire.is_empty() {
                        sockets.send(id, wire.clone());
                        wire.clear();
                    }
                }
                Event::Ended { id, reason } => panic!("{id:?} ended: {reason:?}"),
                _ => {}
            }
        }
    }
    drop(events);
    let pool = used.len() * SocketsConfig::default().buffer_bytes;
    drop(used);
    to.send(resident_bytes() - pool).expect("main");
    glommio::timer::sleep(Duration::from_secs(60)).await;
}

/// The client half: connects, says one word on each connection, and stays.
fn idle_clients(address: &str, connections: usize, ca: &str) {
    let config = client_config(&std::fs::read(ca).expect("certificate")).expect("client config");
    let mut keep = Vec::new();
    for _ in 0..connections {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).expect("connect");
        let name = ServerName::try_from("localhost").expect("name");
        let mut tls = Tls::client(Arc::clone(&config), name).expect("TLS");
        let (mut wire, mut plain, mut buffer) = (Vec::new(), Vec::new(), vec![0; 16 * 1024]);
        tls.start(&mut wire).expect("TLS");
        while tls.is_handshaking() {
            stream.write_all(&wire).expect("write");
            wire.clear();
            let bytes = stream.read(&mut buffer).expect("read");
            tls.open(&mut buffer[..bytes], &mut plain, &mut wire)
                .expect("TLS");
        }
        tls.seal(&[1; 100], &mut wire).expect("TLS");
        stream.write_all(&wire).expect("write");
        keep.push((stream, tls));
    }
    std::thread::sleep(Duration::from_secs(60));
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    if let [flag, address, connections, ca] = &arguments[..]
        && flag == "--idle-clients"
    {
        return idle_clients(address, connections.parse().expect("a number"), ca);
    }
    let seconds = arguments
        .first()
        .and_then(|it| it.parse().ok())
        .unwrap_or(2.0);
    let buffers = std::env::var("BUFFERS")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(4096);
    let configs = configs();
    for shape in [(64, 1), (512, 1), (64, 16)] {
        for which in [Server::Glommio, Server::Ring, Server::RingTls] {
            measure(which, &configs, shape, seconds, buffers);
        }
    }
    idle_memory(5000);
}
