//! A connection with TLS moves to another core in the middle of its stream.

use super::super::*;
use super::core::*;
use crate::runtime::tls::{Tls, tests::configs};
use std::collections::BTreeMap;

const CONNECTIONS: usize = 4;
const FRAMES: usize = 3000;
/// Plaintext after which a connection moves.
const MOVE_AFTER: usize = 100_000;

/// One end of a TLS connection, with what is to be sent.
struct End {
    tls: Tls,
    plain: Vec<u8>,
    wire: Vec<u8>,
    got: usize,
    leaving: bool,
}

impl End {
    fn new(tls: Tls) -> End {
        End {
            tls,
            plain: Vec::new(),
            wire: Vec::new(),
            got: 0,
            leaving: false,
        }
    }

    /// Takes bytes in; the plaintext lands in `plain`.
    fn open(&mut self, data: &mut [u8]) {
        let before = self.plain.len();
        self.tls
            .open(data, &mut self.plain, &mut self.wire)
            .unwrap();
        self.got += self.plain.len() - before;
    }

    /// Sends what there is, if that is possible now.
    fn flush(&mut self, sockets: &mut Sockets, id: SocketId) {
        if sockets.can_send(id) && !self.wire.is_empty() {
            sockets.send(id, std::mem::take(&mut self.wire));
        }
    }

    fn echo(&mut self, sockets: &mut Sockets, id: SocketId) {
        if !self.tls.is_handshaking() {
            let plain = std::mem::take(&mut self.plain);
            self.tls.seal(&plain, &mut self.wire).unwrap();
        }
        self.flush(sockets, id);
    }
}

type Move = (OwnedFd, End);

/// Accepts, echoes, and gives each connection away; returns when all have gone.
async fn first_core(
    mut core: Core,
    config: std::sync::Arc<rustls::ServerConfig>,
    to: crossbeam_channel::Sender<Move>,
    doorbell: Doorbell,
) {
    let mut ends: BTreeMap<SocketId, End> = BTreeMap::new();
    let mut moved = 0;
    while moved < CONNECTIONS {
        match core.next().await {
            Event::Accepted { socket } => {
                let tls = Tls::server(std::sync::Arc::clone(&config)).unwrap();
                ends.insert(core.sockets.adopt(socket), End::new(tls));
            }
            Event::Received { id, buffer } => {
                let end = ends.get_mut(&id).unwrap();
                end.open(core.sockets.data(&buffer));
                core.sockets.release(buffer);
                end.echo(&mut core.sockets, id);
                if end.got > MOVE_AFTER && !end.leaving {
                    end.leaving = true;
                    core.sockets.detach(id);
                }
            }
            Event::Sent { id, result, .. } => {
                result.unwrap();
                ends.get_mut(&id).unwrap().flush(&mut core.sockets, id);
            }
            Event::Detached { id, socket } => {
                to.send((socket, ends.remove(&id).unwrap())).unwrap();
                doorbell.ring();
                moved += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Takes the connections over and echoes on, to their ends.
async fn second_core(mut core: Core, from: crossbeam_channel::Receiver<Move>) {
    let mut ends: BTreeMap<SocketId, End> = BTreeMap::new();
    let mut ended = 0;
    while ended < CONNECTIONS {
        while let Ok((socket, mut end)) = from.try_recv() {
            assert!(end.got > MOVE_AFTER, "it moved in the middle");
            let id = core.sockets.adopt(socket);
            end.echo(&mut core.sockets, id);
            ends.insert(id, end);
        }
        match core.poll().await {
            None => {}
            Some(Event::Received { id, buffer }) => {
                let end = ends.get_mut(&id).unwrap();
                end.open(core.sockets.data(&buffer));
                core.sockets.release(buffer);
                end.echo(&mut core.sockets, id);
            }
            Some(Event::Sent { id, .. }) => {
                if let Some(end) = ends.get_mut(&id) {
                    end.flush(&mut core.sockets, id);
                }
            }
            Some(Event::Ended { id, .. }) => {
                core.sockets.close(id);
                ends.remove(&id);
                ended += 1;
            }
            Some(other) => panic!("{other:?}"),
        }
    }
}

/// Sends `FRAMES` frames of growing size on each connection, without waiting for their echo.
async fn clients(mut core: Core, config: std::sync::Arc<rustls::ClientConfig>, to: SocketAddr) {
    let mut ends: BTreeMap<SocketId, (End, usize, usize)> = BTreeMap::new();
    for _ in 0..CONNECTIONS {
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let tls = Tls::client(std::sync::Arc::clone(&config), name).unwrap();
        ends.insert(core.sockets.connect(to).unwrap(), (End::new(tls), 0, 0));
    }
    let total: usize = (0..FRAMES).map(frame_bytes).sum();
    let mut finished = 0;
    while finished < CONNECTIONS {
        let event = core.next().await;
        let id = match &event {
            Event::Connected { id, .. } | Event::Sent { id, .. } | Event::Received { id, .. } => {
                *id
            }
            other => panic!("{other:?}"),
        };
        let (end, frame, sent) = ends.get_mut(&id).unwrap();
        match event {
            Event::Connected { result, .. } => {
                result.unwrap();
                end.tls.start(&mut end.wire).unwrap();
            }
            Event::Received { buffer, .. } => {
                let before = end.got;
                end.open(core.sockets.data(&buffer));
                core.sockets.release(buffer);
                assert_eq!(
                    end.plain,
                    stream(before, end.got - before),
                    "at byte {before}"
                );
                end.plain.clear();
                finished += usize::from(before < total && end.got == total);
            }
            _ => {}
        }
        while core.sockets.can_send(id) && !end.tls.is_handshaking() && *frame < FRAMES {
            for _ in 0..16.min(FRAMES - *frame) {
                let bytes = frame_bytes(*frame);
                end.tls.seal(&stream(*sent, bytes), &mut end.wire).unwrap();
                (*frame, *sent) = (*frame + 1, *sent + bytes);
            }
            end.flush(&mut core.sockets, id);
        }
        end.flush(&mut core.sockets, id);
    }
}

fn frame_bytes(frame: usize) -> usize {
    1 + frame % 400
}

/// R: D-1
#[test]
fn a_tls_connection_moves_between_cores_under_load_without_losing_a_byte() {
    let (server, client) = configs();
    let (socket, address) = listener();
    let (to, from) = crossbeam_channel::bounded(CONNECTIONS);
    let (bell_to, bell_from) = crossbeam_channel::bounded(1);
    let second = std::thread::spawn(move || {
        run(async move {
            let core = Core::small();
            bell_to.send(core.sockets.doorbell()).unwrap();
            second_core(core, from).await;
        });
    });
    let first = std::thread::spawn(move || {
        run(async move {
            let mut core = Core::small();
            core.sockets.listen(socket);
            let doorbell = bell_from.recv().unwrap();
            first_core(core, server, to, doorbell).await;
        });
    });
    run(async move { clients(Core::small(), client, address).await });
    first.join().unwrap();
    second.join().unwrap();
}
