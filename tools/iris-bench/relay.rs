//! The bare relay: the least that a durable relay over TLS can do on the switch's own machinery, as the
//! measure for what the switch adds.
//!
//! ```text
//!   Send ─▶ open batch ─▶ one frame, written and synced, one under way at a time ─▶ Accepted to the sender
//!                                                                                └▶ Entry to the recipient
//! ```
//! It runs on the switch's executor, sockets, TLS, codec and log files, and cuts batches by the switch's
//! rule (`COMMIT_DELAY_MAX_US`). It has no shards, no inboxes, no windows, no check of numbers, no limits
//! of users and no back-pressure: a message goes from the batch in memory to whoever has the recipient's
//! connection now, or nowhere. Tokens are verified at the Hello, so that both take the same clients.
//! It runs on one core: between cores there would be a mesh, which is a part of the switch.
//!
//! Unbounded by design: what waits is what the load generator keeps in flight, which has a bound.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use glommio::{LocalExecutorBuilder, Placement};
use hashbrown::HashMap;
use iris::auth::{Algorithm, Key, Keyring, Rules};
use iris::log::item_encode_with;
use iris::log::limits::ITEM_HEADER_BYTES;
use iris::runtime::dev;
use iris::runtime::storage::{BareLog, DataDir, Format};
use iris::runtime::stream::{BufferId, Event, SocketId, Sockets, SocketsConfig, wait};
use iris::runtime::tls::{Tls, server_config};
use iris::shard::command::{self, Append, Command};
use iris::store::COMMIT_DELAY_MAX_US;
use iris_proto::frame::Decoder;
use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};
use iris_proto::limits::{FRAME_BYTES_MAX, VERSION};
use iris_proto::v2::{self, server_frame::Frame};
use iris_proto::wire::{self, ClientFrameRef, EntryRef, SendRef};
use rustls::ServerConfig;

use crate::args::RelayArgs;
use crate::connection::DEVICE;

/// As the switch's reactor has it.
const EVENTS_PER_TURN: usize = 512;
/// As the switch's executors have it.
const EXECUTOR_IO_MEMORY: usize = 1 << 20;
/// Buffers for sealed bytes that are kept, and the bytes of each, as in the switch.
const BUFFERS_KEPT: (usize, usize) = (256, 16 * 1024);
/// Connections that one turn accepts at most.
const ACCEPTS_AT_ONCE: usize = 16;
/// The only job there is.
const FLUSH_JOB: u64 = 0;

/// Serves until a signal comes.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &RelayArgs) -> Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| format!("cannot wait for signals: {error}"))?;
    }
    serve(&args.data, args.core, stop)
}

/// Serves until `stop`, which is looked at whenever the core wakes.
///
/// # Errors
/// A sentence for people.
pub fn serve(data: &Path, core: usize, stop: Arc<AtomicBool>) -> Result<(), String> {
    let format = Format {
        logs: 1,
        ..Format::default()
    };
    let data = DataDir::open(data, &format).map_err(|error| error.to_string())?;
    let (tls, keyring) = identity(data.path())?;
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let log = BareLog::begin(&data).map_err(|error| format!("cannot begin the log: {error}"))?;
    let executor = LocalExecutorBuilder::new(Placement::Fixed(core))
        .io_memory(EXECUTOR_IO_MEMORY)
        .make()
        .map_err(|error| format!("cannot start an executor on core {core}: {error}"))?;
    executor.run(async move {
        let mut sockets =
            Sockets::new(SocketsConfig::default()).map_err(|error| error.to_string())?;
        let doorbell = sockets.doorbell();
        log.on_done(move || doorbell.ring());
        sockets.listen(listener);
        data.publish_address(&address.to_string())
            .map_err(|error| error.to_string())?;
        println!("the bare relay is ready on {address}");
        Relay::new(sockets, log, tls, keyring).run(&stop).await
    })
}

/// The development certificate, and who verifies the tokens of the development key.
fn identity(data: &Path) -> Result<(Arc<ServerConfig>, Keyring), String> {
    let files = dev::ensure(data).map_err(|error| error.to_string())?;
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let tls = server_config(&read(&files.certificate)?, &read(&files.key)?, None)
        .map_err(|error| error.to_string())?;
    let key = Key {
        kid: dev::KID.to_owned(),
        algorithm: Algorithm::EdDsa,
        material: read(&files.token_verify)?.into(),
    };
    let rules = Rules {
        issuer: Some(dev::ISSUER.to_owned()),
        audience: "iris".to_owned(),
        leeway_s: 5,
    };
    let keyring = Keyring::from_keys(vec![key], rules).map_err(|error| error.to_string())?;
    Ok((tls, keyring))
}

/// A connection.
struct Peer {
    id: SocketId,
    tls: Tls,
    decoder: Decoder,
    name: Box<str>,
    /// The last entry that it was sent.
    seq: u64,
    /// Frames that wait to be sealed.
    out: Vec<u8>,
    /// Sealed bytes of the handshake.
    wire: Vec<u8>,
    dirty: bool,
}

/// A message that waits for its sync.
struct Pending {
    from: SocketId,
    tag: u64,
    n: u64,
    /// Where its command begins and ends in the batch.
    command: (u32, u32),
}

/// Messages that are made durable together.
#[derive(Default)]
struct Batch {
    payload: Vec<u8>,
    messages: Vec<Pending>,
}

struct Relay {
    sockets: Sockets,
    tls: Arc<ServerConfig>,
    keyring: Keyring,
    log: BareLog,
    peers: Vec<Option<Box<Peer>>>,
    /// Who has a user's connection.
    users: HashMap<Box<str>, SocketId>,
    /// Batches that wait; all but the last are full.
    open: VecDeque<Batch>,
    /// Since when the first of them waits.
    open_since: Option<Instant>,
    flying: Batch,
    /// Empty batches, for their memory.
    spare: Vec<Batch>,
    dirty: Vec<SocketId>,
    plain: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    now: Instant,
    now_ms: u64,
}

impl Relay {
    fn new(sockets: Sockets, log: BareLog, tls: Arc<ServerConfig>, keyring: Keyring) -> Self {
        Self {
            sockets,
            tls,
            keyring,
            log,
            peers: Vec::new(),
            users: HashMap::new(),
            open: VecDeque::new(),
            open_since: None,
            flying: Batch::default(),
            spare: Vec::new(),
            dirty: Vec::new(),
            plain: Vec::new(),
            buffers: Vec::new(),
            now: crate::run::instant(),
            now_ms: 0,
        }
    }

    async fn run(mut self, stop: &AtomicBool) -> Result<(), String> {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        while !stop.load(Ordering::Relaxed) {
            self.now = crate::run::instant();
            self.now_ms = crate::local::unix_time_ms();
            self.sockets.accept_up_to(ACCEPTS_AT_ONCE);
            self.sockets.turn(&mut events, EVENTS_PER_TURN);
            let is_idle = events.is_empty();
            for event in events.drain(..) {
                self.event(event)?;
            }
            self.begin_flush();
            self.send_dirty();
            if is_idle && !self.sockets.has_work() {
                self.log.look();
                wait(&mut self.sockets).await;
            }
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Accepted { socket } => {
                let tls = Tls::server(Arc::clone(&self.tls)).map_err(|error| error.to_string())?;
                let id = self.sockets.adopt(socket);
                let slot = id.slot as usize;
                self.peers
                    .resize_with(self.peers.len().max(slot + 1), || None);
                self.peers[slot] = Some(Box::new(Peer::new(id, tls)));
            }
            Event::Received { id, buffer } => self.received(id, buffer),
            Event::Ended { id, .. } => self.gone(id),
            Event::Sent {
                id,
                mut buffer,
                result,
            } => {
                buffer.clear();
                if self.buffers.len() < BUFFERS_KEPT.0 && buffer.capacity() <= BUFFERS_KEPT.1 {
                    self.buffers.push(buffer);
                }
                match result {
                    Ok(()) => mark_dirty(&mut self.peers, &mut self.dirty, id),
                    Err(_) => self.gone(id),
                }
            }
            Event::Job {
                result, buffers, ..
            } => {
                result.map_err(|errno| {
                    let error = std::io::Error::from_raw_os_error(errno);
                    format!("the log could not be written: {error}")
                })?;
                self.durable(buffers);
            }
            _ => {}
        }
        Ok(())
    }

    fn gone(&mut self, id: SocketId) {
        if let Some(peer) = self.take(id) {
            if self.users.get(&peer.name) == Some(&id) {
                self.users.remove(&peer.name);
            }
            self.sockets.close(id);
        }
    }

    fn take(&mut self, id: SocketId) -> Option<Box<Peer>> {
        self.peers
            .get_mut(id.slot as usize)?
            .take_if(|peer| peer.id == id)
    }

    fn received(&mut self, id: SocketId, buffer: BufferId) {
        let Some(mut peer) = self.take(id) else {
            return self.sockets.release(buffer);
        };
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let data = self.sockets.data(&buffer);
        let opened = peer.tls.open(data, &mut plain, &mut peer.wire);
        self.sockets.release(buffer);
        let is_over = match opened {
            Ok(opened) => opened.closed || self.frames(&mut peer, &plain).is_none(),
            Err(_) => true,
        };
        self.plain = plain;
        if !peer.wire.is_empty() || !peer.out.is_empty() {
            peer.mark_dirty(&mut self.dirty);
        }
        self.peers[id.slot as usize] = Some(peer);
        if is_over {
            self.gone(id);
        }
    }

    /// Takes the frames in received plaintext. `None`: they are not what they should be.
    fn frames(&mut self, peer: &mut Peer, mut plain: &[u8]) -> Option<()> {
        let mut decoder = std::mem::replace(&mut peer.decoder, Decoder::new(0));
        while let Some(frame) = decoder.next(&mut plain).ok()? {
            match wire::decode_client(frame).ok()? {
                ClientFrameRef::Send(send) => self.send(peer, &send),
                ClientFrameRef::Hello(hello) => {
                    let claims = self.keyring.verify(hello.token, self.now_ms / 1_000).ok()?;
                    peer.name = claims.user.as_str().into();
                    self.users.insert(peer.name.clone(), peer.id);
                    let welcome = v2::Welcome {
                        version: VERSION,
                        ..v2::Welcome::default()
                    };
                    wire::encode_server(&mut peer.out, Frame::Welcome(welcome));
                }
                _ => {} // acknowledgements, for one: nothing is kept that they could release
            }
        }
        peer.decoder = decoder;
        Some(())
    }

    /// Puts a message into the batch.
    fn send(&mut self, peer: &Peer, send: &SendRef<'_>) {
        let append = Append {
            to: send.to,
            from: &peer.name,
            device: DEVICE,
            epoch: SendEpoch(1),
            n: SendNumber(send.n),
            time_ms: self.now_ms,
            seq: Seq(0),
            id: MessageId(send.id),
            body: send.body,
        };
        let bytes = ITEM_HEADER_BYTES + append.encoded_len();
        let fits = |batch: &Batch| self.log.fits(batch.payload.len() + bytes);
        if !self.open.back().is_some_and(fits) {
            self.open.push_back(self.spare.pop().unwrap_or_default());
            self.open_since.get_or_insert(self.now);
        }
        let Some(batch) = self.open.back_mut() else {
            unreachable!("one was put there");
        };
        let from = (batch.payload.len() + ITEM_HEADER_BYTES) as u32;
        item_encode_with(&mut batch.payload, |out| append.encode(out));
        batch.messages.push(Pending {
            from: peer.id,
            tag: send.tag,
            n: send.n,
            command: (from, batch.payload.len() as u32),
        });
    }

    /// By the switch's rule: at once when there is nothing else to read, or after its delay.
    fn begin_flush(&mut self) {
        let Some(since) = self.open_since else { return };
        if self.log.is_flushing() {
            return;
        }
        let waited = self.now.duration_since(since).as_micros();
        if self.sockets.has_work() && waited < u128::from(COMMIT_DELAY_MAX_US) {
            return;
        }
        let Some(batch) = self.open.front() else {
            return;
        };
        let items = batch.messages.len() as u64;
        let Some(writes) = self.log.write(&batch.payload, items) else {
            return; // the next segment is being made; its thread wakes the core
        };
        let writes = writes.into_iter().flatten();
        let writes = writes.map(|write| (write.fd, write.offset, write.bytes));
        // SAFETY: the log keeps its files open, and nobody reads them.
        #[expect(unsafe_code, reason = "the switch's own way to its disk")]
        unsafe {
            self.sockets.write_and_sync(FLUSH_JOB, writes);
        }
        self.flying = self.open.pop_front().unwrap_or_default();
        self.open_since = (!self.open.is_empty()).then_some(self.now);
    }

    /// Everything that flew is on disk: the senders hear it, the recipients have it.
    fn durable(&mut self, buffers: Vec<Vec<u8>>) {
        self.log.written(buffers);
        let mut batch = std::mem::take(&mut self.flying);
        for message in batch.messages.drain(..) {
            if let Some(peer) = peer_of(&mut self.peers, message.from) {
                wire::encode_accepted(&mut peer.out, message.tag, message.n);
                peer.mark_dirty(&mut self.dirty);
            }
            let (from, to) = message.command;
            let command = command::decode(&batch.payload[from as usize..to as usize]);
            let Ok(Command::Append(append)) = command else {
                unreachable!("it was encoded a moment ago");
            };
            let recipient = self.users.get(append.to).copied();
            let Some(peer) = recipient.and_then(|id| peer_of(&mut self.peers, id)) else {
                continue;
            };
            peer.seq += 1;
            let entry = EntryRef {
                seq: peer.seq,
                from: append.from,
                from_device: append.device,
                id: append.id.0,
                time_ms: append.time_ms,
                body: append.body,
                fetch_tag: 0,
            };
            wire::encode_entry(&mut peer.out, &entry);
            peer.mark_dirty(&mut self.dirty);
        }
        batch.payload.clear();
        self.spare.push(batch);
    }

    /// One seal and one send for each connection that has something and can send.
    fn send_dirty(&mut self) {
        for id in std::mem::take(&mut self.dirty) {
            let Some(peer) = peer_of(&mut self.peers, id) else {
                continue;
            };
            peer.dirty = false;
            if !self.sockets.can_send(id) {
                continue; // `Sent` marks it dirty again
            }
            let mut sealed = match peer.wire.is_empty() {
                true => self.buffers.pop().unwrap_or_default(),
                false => std::mem::take(&mut peer.wire),
            };
            if !peer.out.is_empty() && !peer.tls.is_handshaking() {
                // An error: the connection has failed before, and its end is told as an event.
                let _ = peer.tls.seal(&peer.out, &mut sealed);
                peer.out.clear();
            }
            match sealed.is_empty() {
                true => self.buffers.push(sealed),
                false => self.sockets.send(id, sealed),
            }
        }
    }
}

impl Peer {
    fn new(id: SocketId, tls: Tls) -> Self {
        Self {
            id,
            tls,
            decoder: Decoder::new(FRAME_BYTES_MAX),
            name: "".into(),
            seq: 0,
            out: Vec::new(),
            wire: Vec::new(),
            dirty: false,
        }
    }

    fn mark_dirty(&mut self, dirty: &mut Vec<SocketId>) {
        if !std::mem::replace(&mut self.dirty, true) {
            dirty.push(self.id);
        }
    }
}

fn peer_of(peers: &mut [Option<Box<Peer>>], id: SocketId) -> Option<&mut Peer> {
    let peer = peers.get_mut(id.slot as usize)?.as_deref_mut()?;
    (peer.id == id).then_some(peer)
}

/// `Sent` came: whatever gathered meanwhile may go.
fn mark_dirty(peers: &mut [Option<Box<Peer>>], dirty: &mut Vec<SocketId>, id: SocketId) {
    if let Some(peer) = peer_of(peers, id)
        && !(peer.out.is_empty() && peer.wire.is_empty())
    {
        peer.mark_dirty(dirty);
    }
}
