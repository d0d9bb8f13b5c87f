//! A session whose token is about to end.

use super::*;

fn revoked(retry_after_ms: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let goodbye = v2::Goodbye {
        reason: GoodbyeReason::Revoked.into(),
        retry_after_ms,
        ..Default::default()
    };
    encode_server(&mut bytes, server_frame::Frame::Goodbye(goodbye));
    bytes
}

/// R: A-3
#[test]
fn a_revoked_session_comes_back_with_another_token_and_stops_when_that_one_is_revoked_too() {
    let mut world = World::new(Config::default());
    world.connection(usize::MAX, usize::MAX);
    assert!(world.session.is_online());
    world.session.received(world.now_ms, &revoked(0));
    world.drain();
    assert!(matches!(world.session.step(), Step::Connect { .. }));
    let reconnect = |world: &mut World| {
        let Step::Connect { at_ms, .. } = world.session.step() else {
            panic!("it does not come back");
        };
        world.now_ms = world.now_ms.max(at_ms);
        world.session.connected(world.now_ms, "another");
        at_ms
    };
    reconnect(&mut world);
    let from_ms = world.now_ms;
    world.session.received(world.now_ms, &revoked(7_000));
    let at_ms = reconnect(&mut world);
    assert!(at_ms >= from_ms + 7_000, "it comes back when it is told to");
    world.session.received(world.now_ms, &revoked(0));
    let Step::End(End::Goodbye { reason, .. }) = world.session.step() else {
        panic!("it would come back for ever");
    };
    assert_eq!(reason, GoodbyeReason::Revoked);
}

/// R: A-2
#[test]
fn a_session_that_is_told_its_end_goes_on_with_a_new_token() {
    let mut world = World::new(Config::default());
    world.switch.expiring = Some(60);
    world.switch.tokens.insert("new".to_string(), 3_600);
    assert!(!world.session.renew("new"), "there is no session yet");
    world.connection(usize::MAX, usize::MAX);
    assert!(world.events.contains(&Event::Expiring { left_s: 60 }));
    assert!(world.session.renew("new"));
    assert!(!world.session.renew("new"), "one is under way");
    world.exchange();
    assert_eq!(world.events.last(), Some(&Event::Renewed { left_s: 3_600 }));
    assert!(world.session.renew("refused"));
    world.exchange();
    let (code, retry_after_ms) = (RejectCode::BadToken, 0);
    assert_eq!(
        world.events.last(),
        Some(&Event::RenewFailed {
            code,
            retry_after_ms
        })
    );
    assert!(world.session.is_online(), "it goes on all the same");
    assert!(world.session.renew("new"));
    world.session.lost(world.now_ms);
    world.drain();
    world.connection(usize::MAX, usize::MAX);
    assert!(
        world.session.renew("new"),
        "what the broken connection owed is forgotten"
    );
}
