//! How connections end: in every state, ten thousand times, without a descriptor left behind.

use super::super::*;
use super::core::*;
use std::io::{Read, Write};

/// The one operation that is always under way.
const DOORBELL: usize = 1;

/// Reset instead of an orderly end.
fn reset(peer: std::net::TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let value = (&raw const linger).cast();
    let length = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the option's value outlives the call.
    unsafe {
        libc::setsockopt(
            peer.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            value,
            length,
        )
    };
    drop(peer);
}

#[test]
fn the_end_of_the_stream_comes_after_its_bytes_and_sending_still_works() {
    run(async {
        let mut core = Core::small();
        let (id, mut peer) = core.pair();
        peer.write_all(b"last words").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let Event::Received { buffer, .. } = core.next().await else {
            panic!()
        };
        assert_eq!(core.bytes(buffer), b"last words");
        let event = core.next().await;
        assert!(
            matches!(
                event,
                Event::Ended {
                    reason: Ended::Eof,
                    ..
                }
            ),
            "{event:?}"
        );
        core.sockets.send(id, b"answer".to_vec());
        assert!(matches!(
            core.next().await,
            Event::Sent { result: Ok(()), .. }
        ));
        core.sockets.finish(id);
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"answer");
    });
}

#[test]
fn a_reset_is_told_once_with_its_errno() {
    run(async {
        let mut core = Core::small();
        let (id, peer) = core.pair();
        core.turn();
        reset(peer);
        let event = core.next().await;
        let expected = Ended::Error(libc::ECONNRESET);
        assert!(
            matches!(event, Event::Ended { reason, .. } if reason == expected),
            "{event:?}"
        );
        core.turn();
        assert!(core.take().is_none());
        core.sockets.send(id, vec![1; 10]);
        let event = core.next().await;
        assert!(
            matches!(
                event,
                Event::Sent {
                    result: Err(libc::EPIPE),
                    ..
                }
            ),
            "{event:?}"
        );
    });
}

#[test]
fn a_send_under_way_when_its_connection_breaks_or_closes_gives_its_buffer_back() {
    run(async {
        for close in [true, false] {
            let mut core = Core::small();
            let (id, peer) = core.pair();
            let bytes = 32 << 20;
            core.sockets.send(id, vec![7; bytes]);
            core.turn();
            assert!(
                core.take().is_none(),
                "nobody reads, so it cannot have finished"
            );
            if close {
                core.sockets.close(id)
            } else {
                reset(peer)
            }
            loop {
                match core.next().await {
                    Event::Sent {
                        id: sent,
                        buffer,
                        result: Err(_),
                    } => {
                        assert_eq!((sent, buffer.len()), (id, bytes));
                        break;
                    }
                    Event::Ended { .. } => assert!(!close),
                    other => panic!("{other:?}"),
                }
            }
            core.sockets.close(id);
            core.drain().await;
        }
    });
}

#[test]
fn a_refused_connect_is_told_and_its_socket_can_be_closed() {
    run(async {
        let mut core = Core::small();
        let (listener, address) = listener();
        drop(listener);
        let id = core.sockets.connect(address).unwrap();
        assert!(!core.sockets.can_send(id));
        let event = core.next().await;
        let Event::Connected { result, .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!(result, Err(libc::ECONNREFUSED));
        core.sockets.close(id);
        core.drain().await;
    });
}

/// Brings a new socket into the state of that number.
fn bring_into_state(core: &mut Core, state: usize, address: SocketAddr) -> SocketId {
    if state == 0 {
        return core.sockets.connect(address).unwrap();
    }
    let (id, mut peer) = core.pair();
    match state {
        1 => return id, // not even armed
        2 => core.turn(),
        3 => core.sockets.pause(id),
        4 => {
            core.turn();
            core.sockets.pause(id);
            core.turn();
        }
        5 => {
            core.sockets.send(id, vec![0; 32 << 20]);
            core.turn();
        }
        6 => {
            core.turn();
            core.sockets.detach(id);
        }
        7 => {
            peer.write_all(&[0; 10_000]).unwrap();
            core.turn();
        }
        8 => {
            core.turn();
            core.sockets.pause(id);
            core.sockets.resume(id);
        }
        _ => {
            core.turn();
            reset(peer);
            return id;
        }
    }
    // The peer stays open, so that nothing but our close ends the connection.
    std::mem::forget(peer);
    id
}

/// R: H-3
#[test]
fn closing_in_every_state_leaves_no_descriptor() {
    run(async {
        let config = SocketsConfig {
            entries: 64,
            buffers: 4,
            buffer_bytes: 512,
        };
        let mut core = Core::new(config);
        let (_listener, address) = listener();
        for turns_before in 0..3 {
            for state in 0..10 {
                let id = bring_into_state(&mut core, state, address);
                let ours = object(core.sockets.slots.get(id).unwrap().socket.as_ref().unwrap());
                for _ in 0..turns_before {
                    core.turn();
                }
                core.sockets.close(id);
                core.sockets.close(id);
                core.drain().await;
                // Detached between the turns: it came out as an event, and goes with it.
                while let Some(event) = core.take() {
                    if let Event::Received { buffer, .. } = event {
                        core.sockets.release(buffer);
                    }
                }
                assert!(still_open(&[ours]).is_empty(), "state {state}");
                assert!(!core.sockets.can_send(id));
                core.sockets.close(id);
                assert_eq!(core.sockets.ring.in_flight(), DOORBELL, "state {state}");
                assert_eq!(core.sockets.buffers.available(), 4, "state {state}");
            }
        }
    });
}

#[test]
fn bytes_that_come_after_close_are_dropped_and_their_buffer_is_not() {
    run(async {
        let mut core = Core::small();
        let (mut first, mut second) = (core.pair(), core.pair());
        core.turn();
        for (_, peer) in [&mut first, &mut second] {
            peer.write_all(b"hello").unwrap();
        }
        // One event of two: the other's completion waits in the ring while its socket is closed.
        let mut events = Vec::new();
        while events.is_empty() {
            core.sockets.turn(&mut events, 1);
        }
        let Some(Event::Received { id, buffer }) = events.pop() else {
            panic!("{events:?}")
        };
        core.sockets.release(buffer);
        core.sockets
            .close(if id == first.0 { second.0 } else { first.0 });
        while core.sockets.count() > 1 {
            assert!(core.poll().await.is_none());
        }
        assert_eq!(core.sockets.buffers.available(), 64);
    });
}

#[test]
fn dropping_the_core_closes_everything_and_waits_for_the_kernel() {
    run(async {
        let mut core = Core::small();
        let (socket, address) = listener();
        core.sockets.listen(socket);
        let mut objects = Vec::new();
        let mut peers = Vec::new();
        for _ in 0..20 {
            let (id, peer) = core.pair();
            objects.push(object(
                core.sockets.slots.get(id).unwrap().socket.as_ref().unwrap(),
            ));
            core.sockets.send(id, vec![0; 8 << 20]);
            peers.push((peer, std::net::TcpStream::connect(address).unwrap()));
        }
        core.turn();
        drop(core);
        assert!(still_open(&objects).is_empty());
    });
}

/// R: A-5
#[test]
fn ten_thousand_connections_that_abort_give_everything_back() {
    const ROUNDS: usize = 100;
    const AT_ONCE: usize = 100;
    run(async {
        let mut core = Core::small();
        let (socket, address) = listener();
        core.sockets.listen(socket);
        let mut ended = 0;
        for round in 0..ROUNDS {
            for number in 0..AT_ONCE {
                let mut peer = std::net::TcpStream::connect(address).unwrap();
                if number % 3 == 0 {
                    peer.write_all(&[1; 100]).unwrap();
                }
                if number % 2 == 0 {
                    reset(peer)
                } else {
                    drop(peer)
                }
            }
            while ended < (round + 1) * AT_ONCE {
                match core.next().await {
                    Event::Accepted { socket } => drop(core.sockets.adopt(socket)),
                    Event::Received { buffer, .. } => core.sockets.release(buffer),
                    Event::Ended { id, .. } => {
                        core.sockets.close(id);
                        ended += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        core.drain().await;
        assert_eq!(core.sockets.buffers.available(), 64, "every buffer is back");
        assert!(
            core.sockets.slots.table_len() <= 2 * AT_ONCE,
            "slots are used again"
        );
        assert_eq!(
            core.sockets.ring.in_flight(),
            DOORBELL + ACCEPTS_MAX,
            "accepts alone are under way"
        );
        core.sockets.stop_listening();
        while core.sockets.is_listening() {
            core.poll().await;
        }
        assert!(std::net::TcpStream::connect(address).is_err());
    });
}
