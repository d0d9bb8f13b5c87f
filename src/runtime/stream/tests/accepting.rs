//! Who connects comes when the core says so.

use super::core::{Core, listener, run};
use crate::runtime::stream::*;

/// Turns without allowing more, until `count` connections came or nothing more does.
fn come(core: &mut Core, count: usize) -> usize {
    let mut events = Vec::new();
    for _ in 0..100 {
        core.sockets.turn(&mut events, 256);
        if events.len() >= count {
            break;
        }
    }
    assert!(events.iter().all(|it| matches!(it, Event::Accepted { .. })));
    events.len()
}

/// R: B-7
#[test]
fn no_more_connections_are_taken_than_were_allowed_and_the_others_wait() {
    run(async {
        let mut core = Core::small();
        let (socket, address) = listener();
        core.sockets.listen(socket);
        let connect = |_| std::net::TcpStream::connect(address).unwrap();
        let _peers: Vec<_> = (0..20).map(connect).collect();
        assert_eq!(come(&mut core, 1), 0, "none was allowed");
        let mut taken = 0;
        for allowed in [4, 4, 1, 8] {
            assert!(core.sockets.may_accept_more(allowed));
            core.sockets.accept_up_to(allowed);
            assert!(!core.sockets.may_accept_more(allowed));
            taken += come(&mut core, allowed + 1);
        }
        assert_eq!(taken, 17);
        core.sockets.accept_up_to(8);
        assert_eq!(come(&mut core, 4), 3, "then there are no others");
        assert!(core.sockets.may_accept_more(8) && !core.sockets.may_accept_more(5));
    });
}

#[test]
fn an_accept_error_rests_and_goes_on() {
    run(async {
        let mut core = Core::small();
        let (socket, address) = listener();
        core.sockets.listen(socket);
        core.turn();
        // What the kernel would say when descriptors run out, put in its place: the real thing
        // would starve the tests beside this one.
        let generation = core.sockets.listener.as_ref().unwrap().generation;
        let mut events = Vec::new();
        core.sockets
            .accept_completed(generation, -libc::EMFILE, &mut events);
        assert!(matches!(
            events[..],
            [Event::AcceptFailed {
                errno: libc::EMFILE
            }]
        ));
        assert!(core.sockets.listener.as_ref().unwrap().resting);
        while core.sockets.listener.as_ref().unwrap().resting {
            core.poll().await;
        }
        let _peer = std::net::TcpStream::connect(address).unwrap();
        assert!(matches!(core.next().await, Event::Accepted { .. }));
    });
}
