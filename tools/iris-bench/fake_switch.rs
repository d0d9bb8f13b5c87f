//! A switch for tests: real sockets, TLS and tokens, everything in memory, and faults on demand.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use iris::auth::{Algorithm, Key, Keyring, Rules};
use iris::runtime::dev;
use iris::runtime::stream::{Event, SocketId, Sockets, SocketsConfig};
use iris::runtime::tls::{Tls, server_config};
use iris_proto::frame::Decoder;
use iris_proto::limits::FRAME_BYTES_MAX;
use iris_proto::v2::{self, server_frame::Frame};
use iris_proto::wire::{self, ClientFrameRef, EntryRef, SendRef};
use rustls::ServerConfig;

/// What the switch does wrong with its message number [`FAULTY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Delivers it twice.
    Duplicate,
    /// Accepts it and forgets it.
    Lose,
    /// Delivers it twice, the second time under an unused number: an invention.
    Invent,
    /// Refuses it and those after it in its stream, once.
    Refuse,
    /// Drops the sender's connection, having stored it, before the answer.
    Disconnect,
}

/// The message, counted over all, at which the fault happens.
const FAULTY: u64 = 50;

struct Entry {
    from: String,
    id: [u8; 16],
    body: Vec<u8>,
}

#[derive(Default)]
struct User {
    socket: Option<SocketId>,
    entries: Vec<Entry>,
    delivered: usize,
}

struct Peer {
    id: SocketId,
    tls: Tls,
    decoder: Decoder,
    user: Option<String>,
    out: Vec<u8>,
    wire: Vec<u8>,
}

/// A running switch; ends when dropped.
pub struct FakeSwitch {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeSwitch {
    /// Starts it with the development identity under `data`, and writes LOCK there.
    pub fn start(data: &Path, fault: Fault) -> Self {
        let files = dev::ensure(data).unwrap();
        let read = |path: &Path| std::fs::read(path).unwrap();
        let tls = server_config(&read(&files.certificate), &read(&files.key), None).unwrap();
        let key = Key {
            kid: dev::KID.to_owned(),
            algorithm: Algorithm::EdDsa,
            material: read(&files.token_verify).into(),
        };
        let rules = Rules {
            issuer: Some(dev::ISSUER.to_owned()),
            audience: "iris".to_owned(),
            leeway_s: 5,
        };
        let keyring = Keyring::from_keys(vec![key], rules).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let lock = format!("pid={}\naddr={address}\n", std::process::id());
        std::fs::write(data.join("LOCK"), lock).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let config = SocketsConfig {
                entries: 256,
                buffers: 256,
                buffer_bytes: 4096,
            };
            let mut sockets = Sockets::new(config).unwrap();
            sockets.listen(listener);
            let peers = BTreeMap::new();
            let (users, streams) = (BTreeMap::new(), BTreeMap::new());
            let count = 0;
            Switch {
                sockets,
                tls,
                keyring,
                fault,
                peers,
                users,
                streams,
                count,
            }
            .run(&stopped);
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for FakeSwitch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Switch {
    sockets: Sockets,
    tls: Arc<ServerConfig>,
    keyring: Keyring,
    fault: Fault,
    peers: BTreeMap<u32, Peer>,
    users: BTreeMap<String, User>,
    /// (from, to) → last number.
    streams: BTreeMap<(String, String), u64>,
    count: u64,
}

impl Switch {
    fn run(mut self, stop: &AtomicBool) {
        let mut events = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            self.sockets.accept_up_to(16);
            self.sockets.turn(&mut events, 256);
            for event in events.drain(..) {
                self.event(event);
            }
            self.deliver();
            self.flush();
            self.sockets.park(Duration::from_millis(2));
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Accepted { socket } => {
                let id = self.sockets.adopt(socket);
                let tls = Tls::server(Arc::clone(&self.tls)).unwrap();
                let decoder = Decoder::new(FRAME_BYTES_MAX);
                let (out, wire) = (Vec::new(), Vec::new());
                self.peers.insert(
                    id.slot,
                    Peer {
                        id,
                        tls,
                        decoder,
                        user: None,
                        out,
                        wire,
                    },
                );
            }
            Event::Received { id, buffer } => {
                let mut plain = Vec::new();
                if let Some(peer) = self.peers.get_mut(&id.slot).filter(|peer| peer.id == id) {
                    let data = self.sockets.data(&buffer);
                    peer.tls.open(data, &mut plain, &mut peer.wire).unwrap();
                }
                self.sockets.release(buffer);
                self.frames(id, &plain);
            }
            Event::Ended { id, .. } => self.drop_peer(id),
            _ => {}
        }
    }

    fn drop_peer(&mut self, id: SocketId) {
        if let Some(peer) = self.peers.remove(&id.slot)
            && let Some(user) = peer.user.and_then(|name| self.users.get_mut(&name))
            && user.socket == Some(id)
        {
            user.socket = None;
        }
        self.sockets.close(id);
    }

    fn frames(&mut self, id: SocketId, mut plain: &[u8]) {
        while let Some(peer) = self.peers.get_mut(&id.slot) {
            let Some(frame) = peer.decoder.next(&mut plain).unwrap() else {
                return;
            };
            let frame = frame.to_vec();
            match wire::decode_client(&frame).unwrap() {
                ClientFrameRef::Hello(hello) => {
                    let now = crate::local::unix_time_s();
                    let claims = self.keyring.verify(hello.token, now).unwrap();
                    let name = claims.user.as_str().to_owned();
                    let user = self.users.entry(name.clone()).or_default();
                    user.socket = Some(id);
                    user.delivered = hello.resume_after.unwrap_or(0) as usize;
                    peer.user = Some(name);
                    let cursor = user.delivered as u64;
                    let welcome = v2::Welcome {
                        cursor,
                        ..v2::Welcome::default()
                    };
                    wire::encode_server(&mut peer.out, Frame::Welcome(welcome));
                }
                ClientFrameRef::Send(send) => self.send(id, &send),
                _ => {}
            }
        }
    }

    fn send(&mut self, id: SocketId, send: &SendRef<'_>) {
        let from = self.peers[&id.slot].user.clone().unwrap();
        let stream = (from.clone(), send.to.to_owned());
        let last = self.streams.entry(stream).or_insert(0);
        let mut rejected = None;
        if send.n > *last + 1 {
            rejected = Some((v2::RejectCode::Gap, *last + 1));
        } else if send.n == *last + 1 {
            self.count += 1;
            let faulty = self.count == FAULTY;
            if faulty && self.fault == Fault::Refuse {
                rejected = Some((v2::RejectCode::InboxFull, 0));
            } else {
                *last += 1;
                let user = self.users.entry(send.to.to_owned()).or_default();
                let entry = || Entry {
                    from: from.clone(),
                    id: send.id,
                    body: send.body.to_vec(),
                };
                if !(faulty && self.fault == Fault::Lose) {
                    user.entries.push(entry());
                }
                if faulty && self.fault == Fault::Duplicate {
                    user.entries.push(entry());
                }
                if faulty && self.fault == Fault::Invent {
                    let mut invented = entry();
                    invented.body[8..16].copy_from_slice(&(send.n + 1).to_le_bytes());
                    user.entries.push(invented);
                }
                if faulty && self.fault == Fault::Disconnect {
                    return self.drop_peer(id);
                }
            }
        }
        let Some(peer) = self.peers.get_mut(&id.slot) else {
            return;
        };
        match rejected {
            None => wire::encode_accepted(&mut peer.out, send.tag, send.n),
            Some((code, expected)) => {
                let (tag, code) = (send.tag, code.into());
                let rejected = v2::Rejected {
                    tag,
                    code,
                    expected,
                    ..v2::Rejected::default()
                };
                wire::encode_server(&mut peer.out, Frame::Rejected(rejected));
            }
        }
    }

    fn deliver(&mut self) {
        for user in self.users.values_mut() {
            let Some(peer) = user.socket.and_then(|id| self.peers.get_mut(&id.slot)) else {
                continue;
            };
            for entry in &user.entries[user.delivered..] {
                user.delivered += 1;
                let entry = EntryRef {
                    seq: user.delivered as u64,
                    from: &entry.from,
                    from_device: crate::connection::DEVICE,
                    id: entry.id,
                    time_ms: 0,
                    body: &entry.body,
                    fetch_tag: 0,
                };
                wire::encode_entry(&mut peer.out, &entry);
            }
        }
    }

    fn flush(&mut self) {
        for peer in self.peers.values_mut() {
            if !self.sockets.can_send(peer.id) {
                continue;
            }
            if !peer.tls.is_handshaking() {
                peer.tls.seal(&peer.out, &mut peer.wire).unwrap();
                peer.out.clear();
            }
            if !peer.wire.is_empty() {
                self.sockets.send(peer.id, std::mem::take(&mut peer.wire));
            }
        }
    }
}
