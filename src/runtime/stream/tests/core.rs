//! What the tests share: one core with its loop, and a listener on a free port.

use super::super::*;
use glommio::{LocalExecutorBuilder, Placement};
use std::future::Future;
use std::time::Duration;

/// How often the standing timer of a test core rings, as a real core's does.
const STANDING_TIMER: Duration = Duration::from_millis(50);

/// Runs `future` in an executor of its own on this thread.
pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .make()
        .expect("an executor")
        .run(future)
}

/// One core: sockets, its waiter, and events taken one at a time.
pub(super) struct Core {
    pub(super) sockets: Sockets,
    events: std::collections::VecDeque<Event>,
    batch: Vec<Event>,
}

impl Core {
    pub(super) fn new(config: SocketsConfig) -> Core {
        let sockets = Sockets::new(config).unwrap();
        let doorbell = sockets.doorbell();
        glommio::spawn_local(async move {
            loop {
                glommio::timer::sleep(STANDING_TIMER).await;
                doorbell.ring();
            }
        })
        .detach();
        Core {
            sockets,
            events: Default::default(),
            batch: Vec::new(),
        }
    }

    pub(super) fn small() -> Core {
        Core::new(SocketsConfig {
            entries: 64,
            buffers: 64,
            buffer_bytes: 2048,
        })
    }

    /// One turn, without waiting.
    pub(super) fn turn(&mut self) {
        self.sockets.accept_up_to(ACCEPTS_MAX);
        self.sockets.turn(&mut self.batch, 256);
        self.events.extend(self.batch.drain(..));
    }

    /// What has happened already, if anything.
    pub(super) fn take(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// One turn, after waiting for something to do, if there was nothing; `None` if it was for
    /// nothing, or for the doorbell.
    pub(super) async fn poll(&mut self) -> Option<Event> {
        if self.events.is_empty() {
            self.turn();
        }
        if self.events.is_empty() {
            wait(&mut self.sockets).await;
            self.turn();
        }
        self.events.pop_front()
    }

    /// The next event, however long it takes.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.poll().await {
                return event;
            }
        }
    }

    /// The bytes of a received buffer, which goes back.
    pub(super) fn bytes(&mut self, buffer: BufferId) -> Vec<u8> {
        let bytes = self.sockets.data(&buffer).to_vec();
        self.sockets.release(buffer);
        bytes
    }

    /// Turns until no socket is left.
    pub(super) async fn drain(&mut self) {
        while self.sockets.count() > 0 {
            if let Some(Event::Received { buffer, .. }) = self.poll().await {
                self.sockets.release(buffer);
            }
        }
    }

    /// A connected pair: ours, adopted, and the peer's, blocking.
    pub(super) fn pair(&mut self) -> (SocketId, std::net::TcpStream) {
        let (ours, theirs) = pair();
        (self.sockets.adopt(ours), theirs)
    }
}

pub(super) fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Two ends of a TCP connection.
pub(super) fn pair() -> (OwnedFd, std::net::TcpStream) {
    let (listener, address) = listener();
    let theirs = std::net::TcpStream::connect(address).unwrap();
    (listener.accept().unwrap().0.into(), theirs)
}

/// The byte at each position of a test stream; its period is prime, so that a shift shows.
pub(super) fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

pub(super) fn stream(from: usize, bytes: usize) -> Vec<u8> {
    (from..from + bytes).map(pattern).collect()
}

/// The name of a descriptor's object, unique while the machine runs: `socket:[12345]`.
pub(super) fn object(fd: &impl AsRawFd) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
}

/// Which of `objects` this process still has open.
pub(super) fn still_open(objects: &[std::path::PathBuf]) -> Vec<std::path::PathBuf> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    open.filter(|object| objects.contains(object)).collect()
}
