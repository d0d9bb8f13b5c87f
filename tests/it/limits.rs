//! Limits, each met by a client that does not keep to it, beside one that does.

use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use iris_proto::v2::client_frame::Frame as ClientFrame;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{self, GoodbyeReason, RejectCode};

use super::admin::{get, sum};
use super::harness::{Server, Setup, all_cores, data_dir};
use super::raw::{Hello, Raw};

const PATIENCE: Duration = Duration::from_secs(30);

fn start(limits: &[(&'static str, &str)]) -> (tempfile::TempDir, Server) {
    let data = data_dir();
    let environment = limits
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let setup = Setup {
        environment: environment.collect(),
        ..Setup::default()
    };
    let server = Server::start_with(data.path(), &setup);
    (data, server)
}

/// One metric, over all its series.
fn metric(server: &Server, name: &str) -> u64 {
    let data: PathBuf = server.data.clone();
    sum(&get(&data, "/metrics").1, name)
}

fn reason(server: &Server, name: &str, reason: &str) -> u64 {
    let text = get(&server.data, "/metrics").1;
    let wanted = format!("reason=\"{reason}\"");
    let lines = text
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(&wanted));
    lines
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// Whether a connection is closed by the switch before anything comes.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    !matches!(stream.read(&mut [0; 1]), Ok(1..))
}

/// R: A-6
#[test]
fn a_user_who_sends_too_much_is_told_when_to_go_on_on_all_devices_and_others_are_not() {
    let (_data, server) = start(&[
        ("IRIS_LIMITS__MESSAGES_PER_S", "1"),
        ("IRIS_LIMITS__MESSAGES_BURST", "20"),
    ]);
    let mut ann = Raw::login(&server, "ann");
    let hello = Hello {
        device: "tablet",
        ..Hello::default()
    };
    let (mut tablet, _) = Raw::login_with(&server, "ann", &hello);
    let began = Instant::now();
    let mut n = 0;
    let refused = loop {
        n += 1;
        let tag = ann.send("ben", n, b"much");
        match ann.next() {
            ServerFrame::Accepted(accepted) => assert_eq!(accepted.tag, tag),
            ServerFrame::Rejected(rejected) => break rejected,
            other => panic!("{other:?}"),
        }
        assert!(n < 20 + 1 + began.elapsed().as_secs(), "{n} were taken");
    };
    assert!(n > 20, "a burst of 20 passes, {n} did");
    assert_eq!(refused.code(), RejectCode::Overloaded);
    assert!((1..=1_000).contains(&refused.retry_after_ms), "{refused:?}");
    assert!(refused.text.contains("user"), "{refused:?}");
    // The other device has nothing left either, but for what time may have given.
    let passed = (1..=10).filter(|n| {
        tablet.send("ben", *n, b"much");
        matches!(tablet.next(), ServerFrame::Accepted(_))
    });
    assert!(passed.count() as u64 <= 1 + began.elapsed().as_secs());
    Raw::login(&server, "carl").send_accepted("ben", 1, b"one");
    assert!(reason(&server, "iris_sends_refused_total", "rate") >= 1);
    // Repeated after the time that was said, it is taken.
    until("the message is taken", || {
        ann.send("ben", n, b"much");
        matches!(ann.next(), ServerFrame::Accepted(_))
    });
}

/// R: A-6
#[test]
fn an_address_holds_so_many_connections_and_one_that_goes_makes_room() {
    let (_data, server) = start(&[("IRIS_LIMITS__CONNECTIONS_PER_ADDRESS", "3")]);
    let mut ann = Raw::login(&server, "ann");
    let _ben = Raw::login(&server, "ben");
    let silent = TcpStream::connect(server.address).unwrap();
    until("all three are counted", || {
        metric(&server, "iris_connections") == 3
    });
    let mut fourth = TcpStream::connect(server.address).unwrap();
    assert!(is_closed(&mut fourth));
    assert_eq!(
        reason(&server, "iris_connections_refused_total", "address"),
        1
    );
    drop(silent);
    until("there is room", || metric(&server, "iris_connections") == 2);
    Raw::login(&server, "carl");
    ann.send_accepted("ben", 1, b"undisturbed");
}

/// R
#[test]
fn strangers_take_no_place_of_a_session_however_many_come() {
    let (_data, server) = start(&[
        ("IRIS_LIMITS__HANDSHAKES_PER_CORE", "4"),
        ("IRIS_LIMITS__HELLO_TIMEOUT_MS", "2000"),
    ]);
    let mut ann = Raw::login(&server, "ann");
    let strangers: Vec<_> = (0..64)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    until("56 are sent away", || {
        reason(&server, "iris_connections_refused_total", "handshakes") == 56
    });
    assert!(metric(&server, "iris_strangers") <= 8);
    ann.send_accepted("ann", 1, b"undisturbed");
    assert!(
        strangers
            .into_iter()
            .all(|mut stranger| is_closed(&mut stranger))
    );
    until("there is room", || metric(&server, "iris_strangers") == 0);
    Raw::login(&server, "ben");
}

/// R: A-6. Else silence would keep out everybody who has something to say.
#[test]
fn strangers_who_say_nothing_make_room_for_those_who_log_in() {
    let (_data, server) = start(&[
        ("IRIS_LIMITS__HANDSHAKES_PER_CORE", "4"),
        ("IRIS_LIMITS__HELLO_TIMEOUT_MS", "60000"),
    ]);
    // Who came before them and is in does not stand in the way.
    let _sessions: Vec<_> = (0..8)
        .map(|number| Raw::login(&server, &format!("user-{number}")))
        .collect();
    let _strangers: Vec<_> = (0..64)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    until("56 are sent away", || {
        reason(&server, "iris_connections_refused_total", "handshakes") >= 56
    });
    let identity = server.identity();
    until("somebody logs in", || {
        let mut client = Raw::connect(server.address, &identity);
        let said = client.try_hello(&identity.token("ann"), &Hello::default());
        said.is_ok() && matches!(client.try_next(), Ok(ServerFrame::Welcome(_)))
    });
}

/// R: B-4, A-5. A client may send right behind its Hello what was not answered on the last connection.
#[test]
fn what_comes_right_behind_a_hello_is_taken_however_much_it_is() {
    let (_data, server) = start(&[]);
    let identity = server.identity();
    for round in 0..8 {
        let user = format!("user-{round}");
        let mut client = Raw::connect(server.address, &identity);
        client.hello(&identity.token(&user), &Hello::default());
        for n in 1..=4 {
            client.send("ann", n, &vec![7; 60_000]);
        }
        client.welcome();
        for _ in 0..4 {
            client.accepted();
        }
    }
}

/// R
#[test]
fn after_too_many_failed_logins_they_are_told_to_wait_and_good_tokens_are_taken() {
    let (_data, server) = start(&[
        ("IRIS_LIMITS__FAILED_LOGINS_PER_USER_PER_MINUTE", "3"),
        ("IRIS_LIMITS__FAILED_LOGINS_PER_MINUTE", "5"),
    ]);
    let identity = server.identity();
    let try_as = |user: &str, is_good: bool| {
        let mut token = identity.token(user);
        if !is_good {
            let end = token.len() - 20;
            let other = if token.as_bytes()[end] == b'A' {
                "B"
            } else {
                "A"
            };
            token.replace_range(end..=end, other);
        }
        let mut client = Raw::connect(server.address, &identity);
        client.hello(&token, &Hello::default());
        match client.next() {
            ServerFrame::Goodbye(goodbye) => Err((goodbye.reason(), goodbye.retry_after_ms)),
            _ => Ok(()),
        }
    };
    for _ in 0..3 {
        assert_eq!(try_as("ann", false), Err((GoodbyeReason::BadToken, 0)));
    }
    // The time is what one of three a minute takes. A good one is taken: whoever has it is no guesser.
    let (reason_said, retry_ms) = try_as("ann", false).unwrap_err();
    assert_eq!(reason_said, GoodbyeReason::Overloaded);
    assert!((1..=20_000).contains(&retry_ms), "{retry_ms}");
    assert_eq!(try_as("ann", true), Ok(()));
    for _ in 0..2 {
        assert_eq!(try_as("carl", false), Err((GoodbyeReason::BadToken, 0)));
    }
    let (reason_said, retry_ms) = try_as("ben", false).unwrap_err();
    assert_eq!(reason_said, GoodbyeReason::Overloaded);
    assert!((1..=12_000).contains(&retry_ms), "{retry_ms}");
    assert_eq!(reason(&server, "iris_logins_refused_total", "token"), 5);
    assert_eq!(reason(&server, "iris_logins_refused_total", "rate"), 2);
}

/// R: B-7, A-5
#[test]
fn a_client_that_asks_and_does_not_read_is_cut_and_costs_others_nothing() {
    let (_data, server) = start(&[("IRIS_LIMITS__WRITE_TIMEOUT_MS", "1000")]);
    let mut ann = Raw::login(&server, "ann");
    let _ben = Raw::with_a_full_socket(&server, "ben");
    until("the client is cut", || {
        ann.send("carl", 1, b"still served");
        assert!(matches!(ann.next(), ServerFrame::Accepted(_)));
        reason(&server, "iris_connections_cut_total", "read") == 1
    });
    until("it is gone", || metric(&server, "iris_sessions") == 1);
}

/// R: A-5, B-7
#[test]
fn a_frame_that_is_begun_and_not_finished_ends_its_session_in_time() {
    let (_data, server) = start(&[("IRIS_LIMITS__FRAME_TIMEOUT_MS", "1000")]);
    let mut ann = Raw::login(&server, "ann");
    let mut ben = Raw::login(&server, "ben");
    ben.write_bytes(&[0, 0]); // half a length
    assert_eq!(ben.goodbye(), GoodbyeReason::BadFrame);
    assert_eq!(reason(&server, "iris_connections_cut_total", "frame"), 1);
    // A record that is never finished is as good as a frame.
    let mut carl = Raw::login(&server, "carl");
    carl.write_unsealed(&[23, 3, 3, 1, 0]);
    assert_eq!(carl.goodbye(), GoodbyeReason::BadFrame);
    assert_eq!(ann.until_pong(), [], "who is silent between frames stays");
}

/// R: A-6, B-7
#[test]
fn a_client_that_floods_pings_is_read_more_slowly_and_gets_every_answer() {
    let (_data, server) = start(&[]);
    let (mut ann, mut ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    const PINGS: u64 = 1_200; // the burst, and what is earned in two seconds
    for nonce in 1..=PINGS {
        ben.write(ClientFrame::Ping(v2::Ping { nonce }));
    }
    ann.send_accepted("ann", 1, b"undisturbed");
    for nonce in 1..=PINGS {
        assert_eq!(ben.next(), ServerFrame::Pong(v2::Pong { nonce }));
    }
    assert!(metric(&server, "iris_sessions_throttled_total") >= 1);
}

/// R. Handshakes beyond a turn's budget wait their turn, and none is lost.
#[test]
fn handshakes_that_come_all_at_once_are_all_done() {
    let (_data, server) = start(&[]);
    let mut ann = Raw::login(&server, "ann");
    let identity = server.identity();
    let clients: Vec<_> = (0..64)
        .map(|number| {
            let mut client = Raw::connect(server.address, &identity);
            client.start_handshake();
            (number, client)
        })
        .collect();
    ann.send_accepted("ann", 1, b"meanwhile");
    for (number, mut client) in clients {
        client.hello(
            &identity.token(&format!("user-{number}")),
            &Hello::default(),
        );
        client.welcome();
    }
    assert!(metric(&server, "iris_handshakes_deferred_total") >= 1);
}

/// Memory of the switch that is its own, in KiB.
fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

/// R: B-7, A-5
#[test]
fn a_client_that_reads_a_byte_now_and_then_is_cut_like_one_that_reads_nothing() {
    let (_data, server) = start(&[("IRIS_LIMITS__WRITE_TIMEOUT_MS", "1000")]);
    let mut ann = Raw::login(&server, "ann");
    for n in 1..=400 {
        ann.send_accepted("ben", n, &vec![7; 60_000]);
    }
    let mut ben = Raw::login(&server, "ben");
    let before = resident_kib(&server);
    let (tag, after, limit) = (7, 0, 1_000);
    ben.write(ClientFrame::Fetch(v2::Fetch { tag, after, limit }));
    until("the client is cut", || {
        ben.read_a_byte_unopened();
        ann.send("carl", 1, b"still served");
        assert!(matches!(ann.next(), ServerFrame::Accepted(_)));
        assert!(resident_kib(&server) < before + 8 * 1024, "24 MB wait");
        reason(&server, "iris_connections_cut_total", "read") == 1
    });
}

/// R: A-5, B-7
#[test]
fn a_frame_that_comes_byte_by_byte_has_no_more_time_than_one_that_stops() {
    let (_data, server) = start(&[("IRIS_LIMITS__FRAME_TIMEOUT_MS", "1000")]);
    let (mut ann, mut ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    ben.write_bytes(&[0, 0, 4, 0]); // a KiB is to follow
    let said = loop {
        ben.write_bytes(&[0x22]);
        match ben.try_next_within(Duration::from_millis(50)) {
            Ok(None) => {}
            said => break said,
        }
    };
    let said = said.unwrap();
    assert!(
        matches!(&said, Some(ServerFrame::Goodbye(it)) if it.reason() == GoodbyeReason::BadFrame),
        "{said:?}"
    );
    assert_eq!(reason(&server, "iris_connections_cut_total", "frame"), 1);
    assert_eq!(ann.until_pong(), []);
}

/// R: B-7
#[test]
fn a_slow_upload_that_goes_on_is_not_cut_however_long_it_takes() {
    let (_data, server) = start(&[("IRIS_LIMITS__FRAME_TIMEOUT_MS", "1000")]);
    let mut ann = Raw::login(&server, "ann");
    let frame = send_frame(7, 1, 6_000);
    let began = Instant::now();
    // 1,500 bytes a second, three times what is asked for, and four times as long as a frame that stops
    // would have. Nothing is waited for but the time that the bytes take.
    let (last, before) = frame.split_last().unwrap();
    for piece in before.chunks(150) {
        ann.write_bytes(piece);
        let said = ann.try_next_within(Duration::from_millis(100)).unwrap();
        assert!(said.is_none(), "after {:?}", began.elapsed());
    }
    ann.write_bytes(&[*last]);
    match ann.next() {
        ServerFrame::Accepted(accepted) => assert_eq!(accepted.tag, 7),
        other => panic!("{other:?}"),
    }
    assert!(
        began.elapsed() > Duration::from_secs(3),
        "slower than the limit"
    );
    assert_eq!(reason(&server, "iris_connections_cut_total", "frame"), 0);
    ann.send_accepted("ben", 2, b"it goes on");
}

/// R: B-7, B-8
#[test]
fn a_client_that_acknowledges_nothing_fills_its_inbox_and_no_memory_and_that_is_counted() {
    let (_data, server) = start(&[("IRIS_LIMITS__INBOX_ENTRIES", "1000")]);
    let (mut ann, mut ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    ann.send_accepted("ben", 1, b"first");
    let before = resident_kib(&server);
    for n in 2..=1_000 {
        ann.send_accepted("ben", n, &[7; 10_000]);
    }
    for _ in 0..10 {
        ann.send("ben", 1_001, &[7; 10_000]);
        assert_eq!(ann.rejected().0, RejectCode::InboxFull);
    }
    assert!(
        resident_kib(&server) < before + 8 * 1024,
        "10 MB are on disk"
    );
    assert_eq!(reason(&server, "iris_sends_refused_total", "inbox"), 10);
    // Its window is one of bytes here, and it is still served.
    ann.send_accepted("carl", 1, b"others are");
    assert!((1..=100).all(|seq| ben.entry().seq == seq));
}

/// R, B-7
#[test]
fn a_client_that_floods_pings_and_reads_no_answer_is_not_read_and_costs_no_memory() {
    let (_data, server) = start(&[]);
    let (mut ann, ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    let before = resident_kib(&server);
    let flood = std::thread::spawn(move || ben.flood_pings_until_cut());
    // Its rate is a hundred a second, so its answers fill no socket: it is not read instead.
    until("it is throttled", || {
        ann.send("ann", 1, b"undisturbed");
        while !matches!(ann.next(), ServerFrame::Accepted(_)) {}
        metric(&server, "iris_sessions_throttled_total") >= 3
    });
    assert!(resident_kib(&server) < before + 8 * 1024);
    drop(server);
    flood.join().unwrap();
}

/// R
#[test]
fn thousands_without_a_token_cost_little_and_nobody_else_anything() {
    let (_data, server) = start(&[("IRIS_LIMITS__HELLO_TIMEOUT_MS", "3000")]);
    let mut ann = Raw::login(&server, "ann");
    let before = resident_kib(&server);
    let mut strangers = Vec::new();
    for n in 1..=5_000 {
        strangers.push(TcpStream::connect(server.address).unwrap());
        if n % 500 == 0 {
            ann.send_accepted("nobody", n / 500, b"undisturbed");
        }
    }
    // Room for 2,048 on each of two cores.
    assert!(metric(&server, "iris_strangers") <= 4_096);
    assert!(resident_kib(&server) < before + 5_000 * 8, "8 KiB for each");
    until("they are gone", || {
        metric(&server, "iris_strangers") == 0 && metric(&server, "iris_connections") == 1
    });
    Raw::login(&server, "ben");
}

/// R: A-6
#[test]
fn a_user_has_so_many_sessions_and_one_that_ends_or_is_replaced_makes_room() {
    let (_data, server) = start(&[("IRIS_LIMITS__SESSIONS_PER_USER", "3")]);
    let identity = server.identity();
    let enter = |device, epoch, send_only| {
        let mut client = Raw::connect(server.address, &identity);
        let hello = Hello {
            device,
            epoch,
            send_only,
            ..Hello::default()
        };
        client.hello(&identity.token("ann"), &hello);
        client
    };
    let mut phone = enter("phone", 1, false);
    phone.welcome();
    let mut first = enter("bot", 2, true);
    first.welcome();
    let mut second = enter("bot", 3, true);
    second.welcome();
    for (device, send_only) in [("bot", true), ("desk", false)] {
        match enter(device, 4, send_only).next() {
            ServerFrame::Goodbye(goodbye) => {
                assert_eq!(goodbye.reason(), GoodbyeReason::TooManySessions);
                assert_eq!(goodbye.retry_after_ms, 10_000);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(reason(&server, "iris_logins_refused_total", "sessions"), 2);
    // One that comes again is no further one.
    let mut again = enter("bot", 3, true);
    again.welcome();
    assert_eq!(second.goodbye(), GoodbyeReason::Replaced);
    let mut phone_again = enter("phone", 1, false);
    phone_again.welcome();
    assert_eq!(phone.goodbye(), GoodbyeReason::Replaced);
    drop(first);
    until("one has ended", || metric(&server, "iris_sessions") == 2);
    enter("bot", 4, true).welcome();
    Raw::login(&server, "ben").send_accepted("ann", 1, b"undisturbed");
}

/// R
#[test]
fn one_address_does_not_fill_the_room_of_strangers() {
    let data = data_dir();
    let setup = Setup {
        cores: all_cores(1),
        environment: vec![
            ("IRIS_LIMITS__HANDSHAKES_PER_ADDRESS", "8".to_owned()),
            ("IRIS_LIMITS__HELLO_TIMEOUT_MS", "60000".to_owned()),
        ],
        ..Setup::default()
    };
    let server = Server::start_with(data.path(), &setup);
    let silent = || TcpStream::connect(server.address).unwrap();
    let strangers: Vec<_> = (0..40).map(|_| silent()).collect();
    let refused = || reason(&server, "iris_connections_refused_total", "crowd");
    until("32 are sent away", || refused() == 32);
    assert_eq!(metric(&server, "iris_strangers"), 8);
    // Every address of 127.0.0.0/8 is this machine: from another one there is room.
    let mut other = Raw::connect_from([127, 0, 0, 2].into(), server.address, &server.identity());
    other.hello(&server.identity().token("ann"), &Hello::default());
    other.welcome();
    drop(strangers);
    until("they are gone", || metric(&server, "iris_strangers") == 0);
    // Who has logged in is no stranger any more.
    let _sessions: Vec<_> = (0..10)
        .map(|number| Raw::login(&server, &format!("user-{number}")))
        .collect();
    assert_eq!(refused(), 32);
}

/// A frame that sends so many bytes.
fn send_frame(tag: u64, n: u64, bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let send = v2::Send {
        tag,
        to: "ben".to_owned(),
        n,
        id: vec![7; 16],
        body: vec![7; bytes],
    };
    iris_proto::wire::encode_client(&mut frame, ClientFrame::Send(send));
    frame
}

/// R: B-7, A-5
#[test]
fn a_client_that_puts_a_byte_into_each_record_is_read_more_slowly_and_then_cut() {
    let (_data, server) = start(&[]);
    let mut ann = Raw::login(&server, "ann");
    // One small frame in each record is nothing, and neither is a large one in many.
    for n in 1..=2_000 {
        ann.write_bytes(&send_frame(n, n, 1));
    }
    for chunk in send_frame(2_001, 2_001, 60_000).chunks(100) {
        ann.write_bytes(chunk);
    }
    for tag in 1..=2_001 {
        match ann.next() {
            ServerFrame::Accepted(accepted) => assert_eq!(accepted.tag, tag),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(metric(&server, "iris_sessions_throttled_total"), 0);
    let mut mallory = Raw::login(&server, "mallory");
    for byte in send_frame(1, 1, 20_000) {
        if !mallory.write_bytes_if_open(&[byte]) {
            break;
        }
    }
    assert_eq!(mallory.goodbye(), GoodbyeReason::BadFrame);
    assert!(metric(&server, "iris_sessions_throttled_total") > 0);
    assert_eq!(reason(&server, "iris_connections_cut_total", "records"), 1);
    ann.send_accepted("ben", 2_002, b"undisturbed");
}

/// R: B-7, A-5
#[test]
fn a_stranger_who_puts_nothing_into_many_records_is_sent_away() {
    let (_data, server) = start(&[]);
    let mut stranger = Raw::connect(server.address, &server.identity());
    stranger.shake_hands();
    let hello = send_frame(1, 1, 8_000);
    for byte in hello {
        if !stranger.write_bytes_if_open(&[byte]) {
            break;
        }
    }
    assert_eq!(stranger.goodbye(), GoodbyeReason::BadFrame);
    assert_eq!(reason(&server, "iris_connections_cut_total", "records"), 1);
}
