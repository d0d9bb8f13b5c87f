//! Bytes there and back: chunkings, back-pressure, and too few buffers.

use super::super::*;
use super::core::*;
use std::collections::BTreeMap;
use std::io::{Read, Write};

const CLIENTS: usize = 64;

#[derive(Default)]
struct Client {
    chunk: usize,
    sent: usize,
    got: usize,
}

/// Runs `CLIENTS` connections of this core against its own echo; each sends `total(chunk)` bytes.
async fn echo(core: &mut Core, chunks: impl Fn(usize) -> usize, total: impl Fn(usize) -> usize) {
    let (socket, address) = listener();
    core.sockets.listen(socket);
    let mut clients = BTreeMap::new();
    for number in 0..CLIENTS {
        let id = core.sockets.connect(address).unwrap();
        clients.insert(
            id,
            Client {
                chunk: chunks(number),
                ..Client::default()
            },
        );
    }
    let mut backlog: BTreeMap<SocketId, Vec<u8>> = BTreeMap::new();
    let mut unfinished = CLIENTS;
    while unfinished > 0 {
        match core.next().await {
            Event::Accepted { socket } => {
                assert!(peer_of(&socket).is_some_and(|peer| peer.ip() == address.ip()));
                backlog.insert(core.sockets.adopt(socket), Vec::new());
            }
            Event::Connected { id, result } => {
                result.unwrap();
                core.sockets.send(id, stream(0, clients[&id].chunk));
            }
            Event::Sent { id, buffer, result } => {
                result.unwrap();
                if let Some(client) = clients.get_mut(&id) {
                    client.sent += buffer.len();
                    if client.sent < total(client.chunk) {
                        core.sockets.send(id, stream(client.sent, client.chunk));
                    }
                } else {
                    pass_on(core, &mut backlog, id);
                }
            }
            Event::Received { id, buffer } => {
                let bytes = core.bytes(buffer);
                if let Some(client) = clients.get_mut(&id) {
                    assert_eq!(bytes, stream(client.got, bytes.len()));
                    client.got += bytes.len();
                    unfinished -= usize::from(client.got >= total(client.chunk));
                } else {
                    backlog.get_mut(&id).unwrap().extend(bytes);
                    pass_on(core, &mut backlog, id);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    core.sockets.stop_listening();
    clients
        .keys()
        .chain(backlog.keys())
        .for_each(|id| core.sockets.close(*id));
    core.drain().await;
    assert!(!core.sockets.is_listening());
}

/// Sends what there is for this socket, if it can.
fn pass_on(core: &mut Core, backlog: &mut BTreeMap<SocketId, Vec<u8>>, id: SocketId) {
    let bytes = backlog.get_mut(&id).unwrap();
    if !bytes.is_empty() && core.sockets.can_send(id) {
        core.sockets.send(id, std::mem::take(bytes));
    }
}

#[test]
fn sixty_four_sockets_echo_every_chunking() {
    run(async {
        let mut core = Core::small();
        // 64 rounds of 1 to 64 bytes, so that the receiver sees every split of every chunk.
        echo(&mut core, |number| number + 1, |chunk| chunk * 64).await;
        // And the same core again, on slots that were used before.
        echo(&mut core, |number| 1 + number * 1_777, |chunk| chunk * 4).await;
    });
}

#[test]
fn a_send_larger_than_the_kernel_takes_at_once_arrives_whole() {
    run(async {
        let mut core = Core::small();
        let (id, mut peer) = core.pair();
        let bytes = 32 << 20;
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; bytes];
            peer.read_exact(&mut got).unwrap();
            (got == stream(0, bytes), peer)
        });
        core.sockets.send(id, stream(0, bytes));
        assert!(!core.sockets.can_send(id));
        match core.next().await {
            Event::Sent { buffer, result, .. } => {
                assert_eq!((buffer.len(), result), (bytes, Ok(())))
            }
            other => panic!("{other:?}"),
        }
        assert!(core.sockets.can_send(id));
        assert!(reader.join().unwrap().0, "every byte in its place");
    });
}

#[test]
fn a_send_cut_short_goes_on_where_it_stopped() {
    run(async {
        let mut core = Core::small();
        let (id, mut peer) = core.pair();
        let slot = core.sockets.slots.get(id).unwrap();
        (slot.operations, slot.sending) = (SEND, stream(0, 100));
        // What the kernel says after a signal in the middle of a send.
        let short = Completion {
            user_data: Tag::socket(Kind::Send, id).pack(),
            result: 10,
            ..Completion::default()
        };
        let mut events = Vec::new();
        core.sockets.complete(short, &mut events);
        assert!(events.is_empty());
        let event = core.next().await;
        let Event::Sent {
            buffer,
            result: Ok(()),
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(buffer, stream(0, 100), "the buffer comes back whole");
        let mut rest = [0; 90];
        peer.read_exact(&mut rest).unwrap();
        assert_eq!(rest[..], stream(10, 90));
    });
}

/// Writes until the kernel takes no more; how many bytes it took.
fn fill(peer: &mut std::net::TcpStream, from: usize) -> usize {
    let mut written = 0;
    loop {
        match peer.write(&stream(from + written, 16 * 1024)) {
            Ok(bytes) => written += bytes,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                return written;
            }
        }
    }
}

/// R: B-7
#[test]
fn a_paused_socket_stops_its_peer_and_loses_nothing() {
    run(async {
        let mut core = Core::small();
        let (id, mut peer) = core.pair();
        peer.set_nonblocking(true).unwrap();
        let (mut written, mut got) = (0, 0);
        for _ in 0..20 {
            // Pause while bytes are under way: what had arrived still comes, then nothing.
            written += peer.write(&stream(written, 5000)).unwrap();
            core.turn();
            core.sockets.pause(id);
            loop {
                match core.next().await {
                    Event::Received { buffer, .. } => {
                        let bytes = core.bytes(buffer);
                        assert_eq!(bytes, stream(got, bytes.len()));
                        got += bytes.len();
                    }
                    Event::Paused { id: paused } if paused == id => break,
                    other => panic!("{other:?}"),
                }
            }
            // The peer runs into its own full buffers: that is the back-pressure.
            written += fill(&mut peer, written);
            core.turn();
            assert!(core.take().is_none(), "nothing is read while paused");
            assert!(!core.sockets.has_work());
            core.sockets.resume(id);
            while got < written {
                let Event::Received { buffer, .. } = core.next().await else {
                    panic!()
                };
                let bytes = core.bytes(buffer);
                assert_eq!(bytes, stream(got, bytes.len()));
                got += bytes.len();
            }
        }
    });
}

#[test]
fn pausing_and_resuming_in_any_order_keeps_reading() {
    run(async {
        let mut core = Core::small();
        let (id, mut peer) = core.pair();
        let mut seed = 1_u64;
        let (mut written, mut got) = (0, 0);
        for _ in 0..2000 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            match seed >> 61 {
                0 | 1 => core.sockets.pause(id),
                2 | 3 => core.sockets.resume(id),
                4 => written += peer.write(&stream(written, 100)).unwrap(),
                _ => core.turn(),
            }
            while let Some(event) = core.take() {
                if let Event::Received { buffer, .. } = event {
                    let bytes = core.bytes(buffer);
                    assert_eq!(bytes, stream(got, bytes.len()));
                    got += bytes.len();
                }
            }
        }
        core.sockets.resume(id);
        while got < written {
            if let Event::Received { buffer, .. } = core.next().await {
                got += core.bytes(buffer).len();
            }
        }
        assert_eq!(got, written);
    });
}

#[test]
fn four_buffers_serve_a_hundred_sockets() {
    const SOCKETS: usize = 100;
    const BYTES: usize = 3000;
    run(async {
        let config = SocketsConfig {
            entries: 64,
            buffers: 4,
            buffer_bytes: 512,
        };
        let mut core = Core::new(config);
        let mut peers: Vec<_> = (0..SOCKETS).map(|_| core.pair()).collect();
        for (_, peer) in &mut peers {
            peer.write_all(&stream(0, BYTES)).unwrap();
        }
        let mut got: BTreeMap<SocketId, usize> = BTreeMap::new();
        let mut held: Vec<(SocketId, BufferId)> = Vec::new();
        while got.values().sum::<usize>() < SOCKETS * BYTES {
            // Hold all that comes until nothing more can: then the pool is empty.
            while held.len() < 4 && (held.is_empty() || core.sockets.has_work()) {
                match core.poll().await {
                    Some(Event::Received { id, buffer }) => held.push((id, buffer)),
                    None => {}
                    Some(other) => panic!("{other:?}"),
                }
            }
            for (id, buffer) in held.drain(..) {
                let bytes = core.bytes(buffer);
                let at = got.entry(id).or_default();
                assert_eq!(bytes, stream(*at, bytes.len()));
                *at += bytes.len();
            }
        }
        assert!(got.values().all(|bytes| *bytes == BYTES));
    });
}

#[test]
fn more_operations_than_the_ring_has_entries_all_happen() {
    run(async {
        let config = SocketsConfig {
            entries: 4,
            buffers: 8,
            buffer_bytes: 512,
        };
        let mut core = Core::new(config);
        echo(&mut core, |_| 300, |chunk| chunk * 20).await;
    });
}
