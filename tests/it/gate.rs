//! What leaves the switch while a sync is under way: nothing that depends on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iris::config::{Config, Cores};
use iris::runtime::{Hooks, Running, SyncGate, dev, options, start};

use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{GoodbyeReason, RejectCode};
use tempfile::TempDir;

use super::harness::{Identity, all_cores, data_dir};
use super::raw::{Hello, Raw};

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::yield_now();
    }
}

/// A switch in this process whose syncs can be held back.
fn gated() -> (TempDir, Running, Identity, Arc<SyncGate>) {
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
    (data, node, identity, gate)
}

fn login(node: &Running, identity: &Identity, user: &str) -> Raw {
    let mut client = Raw::connect(node.address(), identity);
    client.hello(&identity.token(user), &Hello::default());
    client.welcome();
    client
}

/// R: B-1, B-2
#[test]
fn neither_accepted_nor_an_entry_leaves_before_the_sync_has_completed() {
    let (_data, node, identity, gate) = gated();
    let login = |user: &str| login(&node, &identity, user);
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

/// R: A-6, B-1. A disk that stalls: what is on its way waits and is accepted in the end, what comes after
/// a second is refused, and so is who comes.
#[test]
fn while_a_disk_stalls_sends_and_logins_are_refused_in_time_and_what_was_taken_is_accepted() {
    let (_data, node, identity, gate) = gated();
    let mut ann = login(&node, &identity, "ann");
    gate.close();
    let body = vec![7; 60_000];
    let mut sent = Vec::new();
    let refused = loop {
        // A session has so many sends on its way at most; further ones stay in its socket.
        if sent.len() < 300 {
            sent.push(ann.send("ann", sent.len() as u64 + 1, &body));
        }
        match ann.try_next_within(Duration::from_millis(1)) {
            Ok(None) => {}
            Ok(Some(ServerFrame::Rejected(rejected))) => break rejected,
            other => panic!("nothing is accepted while the disk stalls: {other:?}"),
        }
    };
    assert_eq!(refused.code(), RejectCode::Overloaded);
    assert!(
        (1_000..=2_000).contains(&refused.retry_after_ms),
        "{refused:?}"
    );
    // Closed before TLS where the core that accepts is the one that stalls, else told there.
    let mut tablet = Raw::connect(node.address(), &identity);
    let hello = Hello {
        device: "tablet",
        ..Hello::default()
    };
    let said = tablet.try_hello(&identity.token("ann"), &hello);
    match said
        .map_err(|error| error.to_string())
        .and_then(|()| tablet.try_next())
    {
        Err(_) => {}
        Ok(ServerFrame::Goodbye(goodbye)) => {
            assert_eq!(goodbye.reason(), GoodbyeReason::Overloaded)
        }
        Ok(other) => panic!("a login while the disk stalls: {other:?}"),
    }
    gate.open();
    let (mut accepted, mut answered) = (0, 1);
    while answered < sent.len() {
        match ann.next() {
            ServerFrame::Accepted(_) => accepted += 1,
            ServerFrame::Rejected(_) => {}
            _ => continue,
        }
        answered += 1;
    }
    let first = sent.iter().position(|tag| *tag == refused.tag).unwrap();
    assert_eq!(
        accepted, first,
        "all before the first refused, and none behind it"
    );
    node.drain(Duration::from_secs(5));
    node.wait().unwrap();
}
