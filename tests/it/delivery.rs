//! Messages between users, over TLS, through the real switch on two cores.

use iris_proto::v2::client_frame::Frame as ClientFrame;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{self, GoodbyeReason, RejectCode};

use super::harness::{Server, Setup, all_cores, data_dir};
use super::raw::{Hello, Raw};

fn bodies(entries: &[v2::Entry]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| String::from_utf8(entry.body.clone()).unwrap())
        .collect()
}

/// Enough users that both cores have some, with a probability of 1 - 2⁻³⁰.
const USERS: usize = 32;

/// R: B-1, B-3, A-4
#[test]
fn a_message_reaches_users_on_every_core_and_says_who_sent_it() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    for i in 0..USERS {
        let user = format!("user-{i}");
        let mut client = Raw::login(&server, &user);
        ann.send_accepted(&user, 1, b"hello");
        let entry = client.entry();
        assert_eq!(
            (entry.seq, entry.from.as_str(), entry.from_device.as_str()),
            (1, "ann", "phone")
        );
        assert_eq!(
            (entry.body.as_slice(), entry.id.as_slice()),
            (&b"hello"[..], &[1; 16][..])
        );
        client.send_accepted("ann", 1, b"and back");
        let entry = ann.entry();
        assert_eq!((entry.seq, entry.from), (i as u64 + 1, user));
    }
}

/// R: B-6
#[test]
fn what_was_sent_while_a_user_was_away_comes_when_it_logs_in() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    for n in 1..=50 {
        ann.send_accepted("ben", n, format!("message {n}").as_bytes());
    }
    let (mut ben, welcome) = Raw::login_with(&server, "ben", &Hello::default());
    assert_eq!(
        (welcome.head_seq, welcome.cursor, welcome.oldest_seq),
        (50, 0, 1)
    );
    for n in 1..=50 {
        let entry = ben.entry();
        assert_eq!(
            (entry.seq, entry.body),
            (n, format!("message {n}").into_bytes())
        );
    }
}

/// R: B-6
#[test]
fn a_device_goes_on_after_what_it_acknowledged_and_sees_the_rest_again() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let mut ben = Raw::login(&server, "ben");
    for n in 1..=10 {
        ann.send_accepted("ben", n, b"x");
        assert_eq!(ben.entry().seq, n);
    }
    ben.ack(6);
    assert_eq!(ben.until_pong(), []);
    drop(ben);
    let (mut ben, welcome) = Raw::login_with(&server, "ben", &Hello::default());
    assert_eq!(welcome.cursor, 6);
    assert_eq!(
        (7..=10).map(|_| ben.entry().seq).collect::<Vec<_>>(),
        [7, 8, 9, 10]
    );
    let hello = Hello {
        resume_after: Some(2),
        ..Hello::default()
    };
    let (mut ben, welcome) = Raw::login_with(&server, "ben", &hello);
    assert_eq!(
        welcome.cursor, 2,
        "a client that keeps its own position decides"
    );
    assert_eq!(ben.entry().seq, 3);
}

/// R: B-6
#[test]
fn an_acknowledged_cursor_survives_an_orderly_restart() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let mut ben = Raw::login(&server, "ben");
    (1..=3).for_each(|n| ann.send_accepted("ben", n, b"x"));
    assert_eq!((1..=3).map(|_| ben.entry().seq).sum::<u64>(), 6);
    ben.ack(2);
    assert_eq!(ben.until_pong(), []);
    assert!(server.stop().success());
    assert_eq!(ben.goodbye(), GoodbyeReason::ShuttingDown);
    let server = Server::start(data.path());
    let (mut ben, welcome) = Raw::login_with(&server, "ben", &Hello::default());
    assert_eq!(welcome.cursor, 2);
    assert_eq!(ben.entry().seq, 3);
}

/// R: B-6, B-9
#[test]
fn each_device_of_a_user_has_its_own_cursor() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let laptop_hello = Hello {
        device: "laptop",
        ..Hello::default()
    };
    let mut phone = Raw::login(&server, "ben");
    let (mut laptop, _) = Raw::login_with(&server, "ben", &laptop_hello);
    for n in 1..=5 {
        ann.send_accepted("ben", n, b"x");
        assert_eq!((phone.entry().seq, laptop.entry().seq), (n, n));
    }
    phone.ack(5);
    laptop.ack(2);
    assert_eq!((phone.until_pong(), laptop.until_pong()), (vec![], vec![]));
    drop((phone, laptop));
    let (_, phone) = Raw::login_with(&server, "ben", &Hello::default());
    let (mut laptop, welcome) = Raw::login_with(&server, "ben", &laptop_hello);
    assert_eq!((phone.cursor, welcome.cursor), (5, 2));
    assert_eq!(laptop.entry().seq, 3);
}

/// R: B-5
#[test]
fn a_send_repeated_after_reconnect_or_restart_is_accepted_again_and_stored_once() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted("ben", 1, b"once");
    ann.send_accepted("ben", 1, b"once");
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted("ben", 1, b"once");
    server.kill();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted("ben", 1, b"once");
    ann.send_accepted("ben", 2, b"twice");
    let (mut ben, welcome) = Raw::login_with(&server, "ben", &Hello::default());
    assert_eq!(welcome.head_seq, 2);
    assert_eq!(bodies(&[ben.entry(), ben.entry()]), ["once", "twice"]);
}

/// R: B-4
#[test]
fn a_skipped_number_is_refused_with_the_number_expected_and_nothing_is_stored() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let tag = ann.send("ben", 3, b"too early");
    let (code, rejected) = ann.rejected();
    assert_eq!(
        (code, rejected.tag, rejected.expected),
        (RejectCode::Gap, tag, 1)
    );
    ann.send_accepted("ben", 1, b"first");
    ann.send("ben", 3, b"too early");
    assert_eq!(ann.rejected().1.expected, 2);
    let epoch = Hello {
        epoch: 2,
        ..Hello::default()
    };
    let (mut ann, _) = Raw::login_with(&server, "ann", &epoch);
    ann.send("ben", 2, b"a new epoch starts at 1");
    assert_eq!(ann.rejected().1.expected, 1);
    ann.send_accepted("ben", 1, b"second");
    let mut ben = Raw::login(&server, "ben");
    assert_eq!(bodies(&[ben.entry(), ben.entry()]), ["first", "second"]);
}

/// R: B-3, B-4
#[test]
fn pipelined_sends_of_many_senders_to_many_recipients_stay_in_order_for_each_pair() {
    const SENDERS: usize = 6;
    const EACH: u64 = 200;
    let data = data_dir();
    let server = Server::start(data.path());
    let recipients: Vec<_> = (0..SENDERS).map(|i| format!("recipient-{i}")).collect();
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (server, recipients) = (&server, &recipients);
            scope.spawn(move || {
                let mut client = Raw::login(server, &format!("sender-{sender}"));
                for n in 1..=EACH {
                    for to in recipients {
                        client.send(to, n, &n.to_be_bytes());
                    }
                }
                for _ in 0..EACH * SENDERS as u64 {
                    client.accepted();
                }
            });
        }
    });
    for user in &recipients {
        let mut client = Raw::login(&server, user);
        let mut last = std::collections::BTreeMap::new();
        for seq in 1..=EACH * SENDERS as u64 {
            let entry = client.entry();
            assert_eq!(entry.seq, seq);
            let n = u64::from_be_bytes(entry.body.as_slice().try_into().unwrap());
            let before = last.insert(entry.from, n).unwrap_or(0);
            assert_eq!(n, before + 1, "order of one pair");
            if seq % 500 == 0 {
                client.ack(seq);
            }
        }
    }
}

/// R: D-1
#[test]
fn the_same_data_is_served_by_another_number_of_cores() {
    let data = data_dir();
    let users: Vec<_> = (0..USERS).map(|i| format!("user-{i}")).collect();
    let on = |count| Setup {
        cores: all_cores(count),
        ..Setup::default()
    };
    let server = Server::start_with(data.path(), &on(2));
    let mut ann = Raw::login(&server, "ann");
    users
        .iter()
        .for_each(|user| ann.send_accepted(user, 1, b"on two cores"));
    assert!(server.stop().success());
    let server = Server::start_with(data.path(), &on(1));
    let mut ann = Raw::login(&server, "ann");
    for user in &users {
        ann.send_accepted(user, 1, b"on two cores");
        ann.send_accepted(user, 2, b"on one core");
    }
    server.kill();
    let server = Server::start_with(data.path(), &on(2));
    for user in &users {
        let mut client = Raw::login(&server, user);
        assert_eq!(
            bodies(&[client.entry(), client.entry()]),
            ["on two cores", "on one core"]
        );
    }
}

/// R: B-7
#[test]
fn a_client_that_acknowledges_nothing_is_pushed_its_window_and_then_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let (mut ben, welcome) = Raw::login_with(&server, "ben", &Hello::default());
    let window = u64::from(welcome.limits.unwrap().window_entries);
    let total = window + 100;
    for first in (1..=total).step_by(100) {
        let batch = first..(first + 100).min(total + 1);
        for n in batch.clone() {
            ann.send("ben", n, b"x");
        }
        for _ in batch {
            ann.accepted();
        }
    }
    (1..=window).for_each(|seq| assert_eq!(ben.entry().seq, seq));
    assert_eq!(ben.until_pong(), [], "the window is closed");
    ben.ack(10);
    (window + 1..=window + 10).for_each(|seq| assert_eq!(ben.entry().seq, seq));
    assert_eq!(ben.until_pong(), []);
}

/// R: B-8
#[test]
fn a_full_inbox_refuses_with_its_code_and_keeps_what_it_has() {
    let data = data_dir();
    let environment = vec![("IRIS_LIMITS__INBOX_ENTRIES", "100".to_owned())];
    let server = Server::start_with(
        data.path(),
        &Setup {
            environment,
            ..Setup::default()
        },
    );
    let mut ann = Raw::login(&server, "ann");
    (1..=100).for_each(|n| ann.send_accepted("ben", n, b"x"));
    ann.send("ben", 101, b"one too many");
    assert_eq!(ann.rejected().0, RejectCode::InboxFull);
    let mut ben = Raw::login(&server, "ben");
    (1..=100).for_each(|seq| assert_eq!(ben.entry().seq, seq));
    ben.ack(100);
    drop(ben); // leaving makes its cursor durable at once
    let mut ben = Raw::login(&server, "ben");
    loop {
        ann.send("ben", 101, b"one more");
        match ann.next() {
            ServerFrame::Accepted(_) => break,
            ServerFrame::Rejected(rejected) => assert_eq!(rejected.code(), RejectCode::InboxFull),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ben.entry().seq, 101);
}

/// R: B-10
#[test]
fn a_fetch_reads_a_range_beside_the_push_and_moves_no_cursor() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    (1..=20).for_each(|n| ann.send_accepted("ben", n, b"x"));
    let mut ben = Raw::login(&server, "ben");
    (1..=20).for_each(|seq| assert_eq!(ben.entry().seq, seq));
    ben.ack(20);
    ben.write(ClientFrame::Fetch(v2::Fetch {
        tag: 7,
        after: 4,
        limit: 3,
    }));
    for seq in 5..=7 {
        let entry = ben.entry();
        assert_eq!((entry.seq, entry.fetch_tag), (seq, 7));
    }
    let end = v2::Fetched {
        tag: 7,
        last: 7,
        more: true,
    };
    assert_eq!(ben.next(), ServerFrame::Fetched(end));
    ben.write(ClientFrame::Fetch(v2::Fetch {
        tag: 8,
        after: 18,
        limit: 0,
    }));
    assert_eq!((ben.entry().seq, ben.entry().seq), (19, 20));
    let end = v2::Fetched {
        tag: 8,
        last: 20,
        more: false,
    };
    assert_eq!(ben.next(), ServerFrame::Fetched(end));
    assert_eq!(ben.until_pong(), []);
}

#[test]
fn a_session_that_only_sends_gets_no_entries_and_is_no_device() {
    let data = data_dir();
    let server = Server::start(data.path());
    let hello = Hello {
        device: "sender",
        send_only: true,
        ..Hello::default()
    };
    let (mut ann, welcome) = Raw::login_with(&server, "ann", &hello);
    assert_eq!(welcome.capabilities, ["send-only"]);
    ann.send_accepted("ann", 1, b"to myself");
    assert_eq!(ann.until_pong(), []);
    let (mut phone, welcome) = Raw::login_with(&server, "ann", &Hello::default());
    assert_eq!(
        welcome.cursor, 0,
        "the first device starts before everything"
    );
    assert_eq!(phone.entry().seq, 1);
}

/// R: B-4, B-5
#[test]
fn a_session_that_only_sends_replaces_an_older_one_of_its_own_epoch_and_no_other() {
    let data = data_dir();
    let server = Server::start(data.path());
    let sender = |epoch| Hello {
        device: "sender",
        epoch,
        send_only: true,
        ..Hello::default()
    };
    let (mut older, _) = Raw::login_with(&server, "ann", &sender(1));
    let (mut other, _) = Raw::login_with(&server, "ann", &sender(2));
    older.send_accepted("ben", 1, b"one");
    let (mut newer, _) = Raw::login_with(&server, "ann", &sender(1));
    assert_eq!(older.goodbye(), GoodbyeReason::Replaced);
    newer.send_accepted("ben", 1, b"one");
    newer.send_accepted("ben", 2, b"two");
    other.send_accepted("ben", 1, b"of another epoch");
    let mut ben = Raw::login(&server, "ben");
    let bodies: Vec<Vec<u8>> = (0..3).map(|_| ben.entry().body).collect();
    assert_eq!(bodies, [&b"one"[..], b"two", b"of another epoch"]);
    assert_eq!(ben.until_pong(), []);
}

/// R: A-5
#[test]
fn bodies_up_to_the_limit_pass_and_one_byte_more_is_refused() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let mut ben = Raw::login(&server, "ben");
    let body: Vec<u8> = (0..64 * 1024).map(|i| (i % 251) as u8).collect();
    ann.send_accepted("ben", 1, &body);
    assert_eq!(ben.entry().body, body);
    ann.send_accepted("ben", 2, b"");
    assert_eq!(ben.entry().body, b"");
    let tag = ann.send("ben", 3, &[body.as_slice(), b"!"].concat());
    let (code, rejected) = ann.rejected();
    assert_eq!((code, rejected.tag), (RejectCode::BodyTooLarge, tag));
    ann.send_accepted("ben", 3, b"the session goes on");
    ann.send("not a user id", 1, b"x");
    assert_eq!(ann.rejected().0, RejectCode::BadRecipient);
    ann.send(&"x".repeat(65), 1, b"x");
    assert_eq!(ann.rejected().0, RejectCode::BadRecipient);
}

/// R: B-6
#[test]
fn where_a_session_begins_acknowledges_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    Raw::login(&server, "ben");
    (1..=5).for_each(|n| ann.send_accepted("ben", n, b"x"));
    let hello = Hello {
        resume_after: Some(5),
        ..Hello::default()
    };
    let (mut ben, _) = Raw::login_with(&server, "ben", &hello);
    assert_eq!(ben.until_pong(), []);
    drop(ben);
    let (mut ben, welcome) = Raw::login_with(&server, "ben", &Hello::default());
    assert_eq!(welcome.cursor, 0, "nothing was acknowledged");
    (1..=5).for_each(|seq| assert_eq!(ben.entry().seq, seq));
}

/// R: H-4
#[test]
fn thousands_of_users_who_come_back_at_once_after_a_restart_all_get_what_waited() {
    const USERS: usize = 2_500;
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let users: Vec<_> = (0..USERS).map(|i| format!("user-{i}")).collect();
    for some in users.chunks(500) {
        for user in some {
            ann.send(user, 1, user.as_bytes());
        }
        for _ in some {
            ann.accepted();
        }
    }
    server.kill();
    let server = Server::start(data.path());
    let identity = server.identity();
    // All say Hello before anybody reads, so that their pages are wanted at the same time.
    let mut clients: Vec<_> = users
        .iter()
        .map(|user| {
            let mut client = Raw::connect(server.address, &identity);
            client.hello(&identity.token(user), &Hello::default());
            client
        })
        .collect();
    for (client, user) in clients.iter_mut().zip(&users) {
        client.welcome();
        assert_eq!(client.entry().body, user.as_bytes());
    }
}
