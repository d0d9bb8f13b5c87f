//! Recipients whose data the switch does not serve.

use super::*;
use crate::limits::CLIENT_UNAVAILABLE_MS;

fn is_unavailable(failure: &SendFailure) -> bool {
    matches!(failure, SendFailure::Refused { code, .. } if *code == RejectCode::Unavailable)
}

/// R: B-5, D-2
#[test]
fn sends_to_who_stays_unavailable_fail_in_order_after_a_time_and_the_next_ones_at_once() {
    let mut world = World::new(Config::default());
    world.switch.unavailable.insert("bob".into());
    let tickets = [world.send("bob", b"1"), world.send("bob", b"2")];
    let other = world.send("ann", b"3");
    world.connection(ALL, ALL);
    assert_eq!(world.accepted(), [other]);
    let failed = world.failed();
    assert_eq!([failed[0].0, failed[1].0], tickets);
    assert!(failed.iter().all(|(_, failure)| is_unavailable(failure)));
    assert!((CLIENT_UNAVAILABLE_MS..70_000).contains(&world.now_ms));
    let (late, before) = (world.send("bob", b"4"), world.now_ms);
    world.session.lost(before);
    world.connection(ALL, ALL);
    assert_eq!(world.failed()[2].0, late);
    assert!(world.now_ms < before + 5_000);
    world.switch.unavailable.clear();
    let served = world.send("bob", b"5");
    world.session.lost(world.now_ms);
    world.connection(ALL, ALL);
    assert_eq!(world.accepted(), [other, served]);
    assert_eq!(world.switch.bodies_to("bob"), [b"5"]);
}

/// R: B-5, D-2. The number of a message in doubt may be stored: no other message may get it.
#[test]
fn what_is_in_doubt_with_who_stays_unavailable_fails_as_such_and_its_number_is_not_used_again() {
    let mut world = World::new(Config::default());
    let in_doubt = world.send("bob", b"1");
    let mut out = Vec::new();
    world.connection(ALL, 0);
    world.session.connected(world.now_ms, "token");
    world.session.write(world.now_ms, &mut out);
    let (mut answer, mut decoder) = (Vec::new(), Decoder::new(FRAME_BYTES_MAX));
    world.switch.take(&out, &mut decoder, &mut answer);
    world.session.received(world.now_ms, &answer);
    (out, answer) = (Vec::new(), Vec::new());
    world.session.write(world.now_ms, &mut out);
    world.switch.take(&out, &mut decoder, &mut answer); // stored, and the answer is lost
    world.session.lost(world.now_ms);
    world.switch.unavailable.insert("bob".into());
    for _ in 0..3 {
        world.connection(ALL, ALL);
    }
    assert_eq!(world.failed(), [(in_doubt, SendFailure::InDoubt)]);
    world.switch.unavailable.clear();
    let next = world.send("bob", b"2");
    world.session.lost(world.now_ms);
    world.connection(ALL, ALL);
    assert_eq!(world.accepted(), [next]);
    assert_eq!(world.switch.bodies_to("bob"), [b"1", b"2"]);
}
