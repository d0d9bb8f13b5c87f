//! What leaves the switch while a sync is under way: nothing that depends on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iris::config::{Config, Cores};
use iris::runtime::{Hooks, SyncGate, dev, options, start};

use super::harness::{Identity, all_cores, data_dir};
use super::raw::{Hello, Raw};

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::yield_now();
    }
}

/// R: B-1, B-2
#[test]
fn neither_accepted_nor_an_entry_leaves_before_the_sync_has_completed() {
    let data = data_dir();
    dev::ensure(data.path()).unwrap();
    let cores: Vec<usize> = all_cores(2)
        .split(',')
        .map(|core| core.parse().unwrap())
        .collect();
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = Config::dev(data.path(), listen, Cores::List(cores.clone())).unwrap();
    let gate = Arc::new(SyncGate::default());
    let mut options = options(&config, cores).unwrap();
    options.hooks = Hooks {
        sync_gate: Some(gate.clone()),
    };
    let node = start(options).unwrap();
    let identity = Identity::of(data.path());
    let login = |user: &str| {
        let mut client = Raw::connect(node.address(), &identity);
        client.hello(&identity.token(user), &Hello::default());
        client.welcome();
        client
    };
    let (mut ann, mut ben) = (login("ann"), login("ben"));
    ann.send_accepted("ben", 1, b"while the gate is open");
    assert_eq!(ben.entry().seq, 1);

    gate.close();
    let before = gate.held();
    let tag = ann.send("ben", 2, b"while it is closed");
    wait_until("the sync of the message is held back", || {
        gate.held() > before
    });
    // The bytes are in the file. Pongs prove that both sessions are served meanwhile.
    for _ in 0..50 {
        assert_eq!(ann.until_pong(), []);
        assert_eq!(ben.until_pong(), []);
    }
    let repeated = ann.send("ben", 2, b"while it is closed");
    assert_eq!(ann.until_pong(), [], "not for a repetition either");

    gate.open();
    assert_eq!((ann.accepted().tag, ann.accepted().tag), (tag, repeated));
    assert_eq!(ben.entry().seq, 2);
    assert_eq!(ben.until_pong(), [], "once");
    node.drain(Duration::from_secs(5));
    node.wait().unwrap();
}
