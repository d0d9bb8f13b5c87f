//! A session whose token is about to end.

use super::*;

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
