//! Sleeping and waking, against the executor's known defect.

use super::super::*;
use super::core::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Ping-pong: each side waits until the ball is its own, then passes it and rings. A round that the
/// doorbell loses is saved by the standing timer; a hang is what must not be.
async fn play(core: &mut PingPong) {
    while core.ball.load(Ordering::SeqCst) < ROUNDS {
        let ball = core.ball.load(Ordering::SeqCst);
        if ball % 2 == core.side {
            core.ball.store(ball + 1, Ordering::SeqCst);
            core.other.ring();
        } else if core.core.poll().await.is_some() {
            panic!("there is no socket here");
        }
    }
    core.other.ring();
}

const ROUNDS: u64 = 20_000;

struct PingPong {
    core: Core,
    other: Doorbell,
    ball: Arc<AtomicU64>,
    side: u64,
}

#[test]
fn two_executors_play_ping_pong_and_never_hang() {
    let ball = Arc::new(AtomicU64::new(0));
    let (mut tos, mut froms) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (to, from) = crossbeam_channel::bounded::<Doorbell>(1);
        tos.push(to);
        froms.push(from);
    }
    froms.reverse();
    let players = tos
        .into_iter()
        .zip(froms)
        .zip(0..)
        .map(|((to, from), side)| {
            let ball = Arc::clone(&ball);
            std::thread::spawn(move || {
                run(async move {
                    let core = Core::small();
                    to.send(core.sockets.doorbell()).unwrap();
                    let other = from.recv().unwrap();
                    play(&mut PingPong {
                        core,
                        other,
                        ball,
                        side,
                    })
                    .await;
                });
            })
        });
    let players: Vec<_> = players.collect();
    players
        .into_iter()
        .for_each(|player| player.join().unwrap());
    assert_eq!(ball.load(Ordering::SeqCst), ROUNDS);
}

#[test]
fn a_doorbell_rung_before_the_wait_is_not_lost() {
    run(async {
        let mut sockets = Sockets::new(SocketsConfig::default()).unwrap();
        for _ in 0..100 {
            sockets.doorbell().ring();
            sockets.doorbell().ring();
            wait(&mut sockets).await;
        }
    });
}

#[test]
fn a_wait_with_work_at_hand_returns_at_once() {
    use std::io::Write;
    run(async {
        let mut sockets = Sockets::new(SocketsConfig::default()).unwrap();
        let (ours, mut theirs) = pair();
        sockets.adopt(ours);
        // Nothing rings here, and there is no timer: whoever sleeps, sleeps for ever.
        wait(&mut sockets).await;
        let mut events = Vec::new();
        for _ in 0..1000 {
            sockets.turn(&mut events, 10);
            assert!(events.is_empty());
            // Arrives while completions do not ring.
            theirs.write_all(b"x").unwrap();
            while events.is_empty() {
                wait(&mut sockets).await;
                sockets.turn(&mut events, 10);
            }
            let Some(Event::Received { buffer, .. }) = events.pop() else {
                panic!("{events:?}")
            };
            sockets.release(buffer);
        }
    });
}

#[test]
fn a_turn_with_nothing_to_do_makes_no_system_call() {
    run(async {
        let mut core = Core::small();
        let (_id, _peer) = core.pair();
        core.turn();
        let before = core.sockets.ring.enters();
        for _ in 0..100 {
            core.turn();
        }
        assert!(!core.sockets.has_work());
        assert_eq!(core.sockets.ring.enters(), before);
    });
}
