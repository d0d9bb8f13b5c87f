//! The orderly stop under load: what was read is answered, everybody is told when to come back, nobody
//! can hold it up, and another switch goes on with the same data. (Restarts of switches with checkpoints
//! and cleaning under load are in `crash`.)

use std::collections::{BTreeSet, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iris::client::{Arrival, Client, ConnectOptions};
use iris::runtime::reactor::SHUTDOWN_RETRY_MS;
use iris_proto::id::{DeviceId, UserId};
use iris_proto::v2::GoodbyeReason;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use tokio::sync::watch;

use super::harness::{PATIENCE, Random, Server, Setup, data_dir, seed};
use super::load::{Load, Watch};
use super::raw::{Hello, Raw};

const SENDERS: usize = 12;
const RECIPIENTS: usize = 8;
/// Sends of one sender that wait for their answer at a time.
const IN_FLIGHT: usize = 64;

/// What one sender was told until its Goodbye: per recipient the messages accepted, and the hint.
struct Told {
    accepted: [u64; RECIPIENTS],
    retry_ms: u64,
}

/// To one, every other round: then one core has all the writing, and the other nothing to wait for but
/// answers.
fn recipients_in(round: u64) -> usize {
    if round.is_multiple_of(2) {
        1
    } else {
        RECIPIENTS
    }
}

/// Sends without a pause until the switch says Goodbye.
fn send_until_goodbye(server: &Server, me: usize, round: u64, count: &AtomicU64) -> Told {
    let recipients = recipients_in(round);
    let hello = Hello {
        send_only: true,
        ..Hello::default()
    };
    let (mut client, _) = Raw::login_with(server, &format!("sender-{round}-{me}"), &hello);
    let (mut sent, mut accepted) = ([0; RECIPIENTS], [0; RECIPIENTS]);
    let mut waiting = VecDeque::new();
    let mut to = me % recipients;
    loop {
        while waiting.len() < IN_FLIGHT {
            to = (to + 1) % recipients;
            sent[to] += 1;
            // A switch that stops may have closed it; what it said before is read all the same.
            let Ok(tag) = client.try_send(&format!("to-{round}-{to}"), sent[to], b"load") else {
                break;
            };
            waiting.push_back((tag, to));
        }
        match client.next() {
            ServerFrame::Accepted(answer) => {
                let at = waiting.iter().position(|(tag, _)| *tag == answer.tag);
                let (_, to) = waiting.remove(at.unwrap()).unwrap();
                accepted[to] += 1;
                assert_eq!(answer.n, accepted[to], "in order");
                count.fetch_add(1, Ordering::SeqCst);
            }
            ServerFrame::Goodbye(goodbye) => {
                assert_eq!(goodbye.reason(), GoodbyeReason::ShuttingDown);
                let retry_ms = goodbye.retry_after_ms;
                return Told { accepted, retry_ms };
            }
            other => panic!("sender {me}: {other:?}"),
        }
    }
}

/// Messages of each sender in an inbox, which holds each sender's from 1 without a hole.
fn stored(server: &Server, round: u64, to: usize) -> [u64; SENDERS] {
    let (mut client, welcome) =
        Raw::login_with(server, &format!("to-{round}-{to}"), &Hello::default());
    let mut last = [0; SENDERS];
    for seq in welcome.cursor + 1..=welcome.head_seq {
        let entry = client.entry();
        let me: usize = entry.from.rsplit('-').next().unwrap().parse().unwrap();
        last[me] += 1;
        assert_eq!(entry.id, vec![last[me] as u8; 16], "in order");
        if seq % 500 == 0 {
            client.ack(seq);
        }
    }
    last
}

/// What was read is on disk and answered; what was not read is neither.
///
/// R: B-1, E-4
#[test]
fn a_stop_under_load_answers_everything_that_it_stored_before_its_goodbye() {
    let data = data_dir();
    // However fast the machine is, no inbox fills before the stop.
    let setup = Setup {
        environment: vec![("IRIS_LIMITS__INBOX_ENTRIES", "1000000".to_owned())],
        ..Setup::default()
    };
    let mut random = Random(seed());
    for round in 0..6 {
        let server = Server::start_with(data.path(), &setup);
        let count = AtomicU64::new(0);
        let until = 200 + random.below(2_000);
        let told: Vec<Told> = std::thread::scope(|scope| {
            let (server, count) = (&server, &count);
            let run = |me| scope.spawn(move || send_until_goodbye(server, me, round, count));
            let threads: Vec<_> = (0..SENDERS).map(run).collect();
            let deadline = Instant::now() + PATIENCE;
            while count.load(Ordering::SeqCst) < until {
                assert!(Instant::now() < deadline, "the load stands still");
                std::thread::yield_now();
            }
            server.terminate();
            let told = threads.into_iter().map(|thread| thread.join().unwrap());
            told.collect()
        });
        let (status, lines) = server.ended();
        assert_eq!(status.code(), Some(0), "{lines:?}");
        let hints: BTreeSet<u64> = told.iter().map(|told| told.retry_ms).collect();
        assert!(hints.last().is_some_and(|hint| *hint < SHUTDOWN_RETRY_MS));
        assert!(hints.len() > SENDERS / 3, "not spread: {hints:?}");
        let server = Server::start_with(data.path(), &setup);
        for to in 0..RECIPIENTS {
            let accepted: Vec<u64> = told.iter().map(|told| told.accepted[to]).collect();
            assert_eq!(
                stored(&server, round, to).as_slice(),
                accepted,
                "round {round}, recipient {to}: stored, and accepted"
            );
        }
        assert_eq!(server.stop().code(), Some(0));
    }
}

/// A switch with much for ben, who asks for it and never reads: his socket is full.
fn with_a_reader_that_does_not_read(drain_timeout_ms: u64) -> (tempfile::TempDir, Server, Raw) {
    let data = data_dir();
    let timeout = (
        "IRIS_SERVER__DRAIN_TIMEOUT_MS",
        drain_timeout_ms.to_string(),
    );
    let setup = Setup {
        environment: vec![timeout],
        ..Setup::default()
    };
    let server = Server::start_with(data.path(), &setup);
    let ben = Raw::with_a_full_socket(&server, "ben");
    (data, server, ben)
}

/// R: E-4, B-7
#[test]
fn a_client_that_never_reads_does_not_hold_a_stop_beyond_its_time() {
    for timeout_ms in [500, 6_000] {
        let (_data, server, _ben) = with_a_reader_that_does_not_read(timeout_ms);
        let mut ann = Raw::login(&server, "ann");
        let began = Instant::now();
        server.terminate();
        assert_eq!(ann.goodbye(), GoodbyeReason::ShuttingDown);
        let (status, lines) = server.ended();
        assert_eq!(status.code(), Some(0), "{lines:?}");
        // Room for a busy machine; a client that holds it up does so for 30 s.
        let most = Duration::from_millis(timeout_ms) + Duration::from_secs(5);
        assert!(began.elapsed() < most, "{:?}", began.elapsed());
    }
}

/// R: E-4
#[test]
fn a_stopping_switch_takes_nobody_and_sends_away_who_is_half_way() {
    let (_data, server, _ben) = with_a_reader_that_does_not_read(60_000);
    let identity = server.identity();
    let mut silent = TcpStream::connect(server.address).unwrap();
    let mut shaking = Raw::connect(server.address, &identity);
    shaking.start_handshake();
    let mut greeting = Raw::connect(server.address, &identity);
    greeting.write_bytes(&[0, 0]); // with keys, and half a length
    let mut ann = Raw::login(&server, "ann"); // the others were accepted before
    server.terminate();
    assert_eq!(ann.goodbye(), GoodbyeReason::ShuttingDown);
    // Ben still holds it.
    for _ in 0..8 {
        let Some(mut late) = Raw::try_connect(server.address, &identity) else {
            continue;
        };
        let token = identity.token("carl");
        if late.try_hello(&token, &Hello::default()).is_ok() {
            let said = late.try_next();
            assert!(!matches!(said, Ok(ServerFrame::Welcome(_))), "{said:?}");
        }
    }
    let said = greeting.try_next();
    assert!(
        matches!(&said, Ok(ServerFrame::Goodbye(it)) if it.reason() == GoodbyeReason::ShuttingDown)
            || said.is_err(), // its core may have met it after its listener was closed
        "{said:?}"
    );
    assert!(shaking.try_next().is_err());
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!(
        std::io::Read::read(&mut silent, &mut [0; 1]),
        Ok(1..)
    ));
    assert_eq!(server.ended().0.code(), Some(0));
}

/// R: E-4
#[test]
fn further_signals_and_a_reload_at_the_same_time_do_not_disturb_a_stop() {
    let mut random = Random(seed());
    let data = data_dir();
    let mut load = Load::default();
    for round in 0..4 {
        let server = Server::start(data.path());
        let watch = Watch::default();
        let until = random.below(300);
        load.run(&server, &watch, &mut random, || {
            watch.until_accepted(until);
            if round % 2 == 0 {
                server.hang_up();
            }
            server.terminate();
            server.terminate();
            server.hang_up();
        });
        let (status, lines) = server.ended();
        assert_eq!(status.code(), Some(0), "round {round}: {lines:?}");
    }
    let server = Server::start(data.path());
    load.settle(&server, &mut random);
    assert!(load.accepted() > 0);
}

/// A port that stays ours while no switch listens on it.
fn reserved_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

const USERS: usize = 4;

/// What the tasks of all users share with the test.
struct Shared {
    accepted: AtomicU64,
    stop: AtomicBool,
    /// What each user has sent in all, once it sends no more.
    sent: Vec<watch::Sender<Option<u64>>>,
}

/// Sends numbered messages until it is told to stop; the longest time without an answer.
async fn send_on(sender: iris::client::Sender, me: usize, shared: Arc<Shared>) -> Duration {
    let to = UserId::new(&format!("user-{}", (me + 1) % USERS)).unwrap();
    let (mut waiting, mut sent) = (VecDeque::new(), 0_u64);
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    loop {
        if !shared.stop.load(Ordering::SeqCst) && waiting.len() < 32 {
            sent += 1;
            let body = sent.to_be_bytes().to_vec();
            waiting.push_back(sender.send_queued(&to, body).await.unwrap());
            continue;
        }
        let Some(queued) = waiting.pop_front() else {
            shared.sent[me].send_replace(Some(sent));
            return longest;
        };
        queued.answer().await.unwrap();
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
}

/// One user: sends to the next one, and reads all that the one before sends, in order.
async fn live(me: usize, options: ConnectOptions, shared: Arc<Shared>) -> (u64, Duration) {
    let mut client = Client::connect(options).await.unwrap();
    let sending = tokio::spawn(send_on(client.sender(), me, shared.clone()));
    let mut total = shared.sent[(me + USERS - 1) % USERS].subscribe();
    let mut read = 0;
    while *total.borrow_and_update() != Some(read) {
        tokio::select! {
            arrival = client.next() => match arrival.unwrap() {
                Arrival::Entry(entry) => {
                    read += 1;
                    assert_eq!(entry.body, u64::to_be_bytes(read), "user {me}: in order");
                    client.ack(entry.seq);
                }
                Arrival::Gap(gap) => panic!("user {me}: {gap:?}"),
            },
            changed = total.changed() => changed.unwrap(),
        }
    }
    let longest = sending.await.unwrap();
    assert!(client.close(PATIENCE).await);
    (read, longest)
}

/// R: B-1, B-4, B-5, E-4, G-1
#[test]
fn switches_exchanged_under_load_are_a_pause_to_the_client_library_and_no_loss() {
    let data = data_dir();
    let (_reserved, listen) = reserved_port();
    let setup = Setup {
        listen,
        ..Setup::default()
    };
    let mut server = Server::start_with(data.path(), &setup);
    let identity = server.identity();
    let shared = Arc::new(Shared {
        accepted: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        sent: (0..USERS).map(|_| watch::channel(None).0).collect(),
    });
    let options = |me: usize| {
        let (name, identity) = (format!("user-{me}"), identity.clone());
        let (user, roots) = (UserId::new(&name).unwrap(), identity.roots.clone());
        let token = Arc::new(move || Ok(identity.token(&name)));
        let mut options = ConnectOptions::new(&listen.to_string(), roots, user, token);
        options.server_name = Some("localhost".to_owned());
        options.device = Some(DeviceId::new("phone").unwrap());
        options
    };
    let options: Vec<_> = (0..USERS).map(options).collect();
    let told = shared.clone();
    let clients = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let users = options.into_iter().enumerate();
            let users = users.map(|(me, options)| tokio::spawn(live(me, options, told.clone())));
            let users: Vec<_> = users.collect();
            let mut ends = Vec::new();
            for user in users {
                let end = tokio::time::timeout(6 * PATIENCE, user).await;
                ends.push(end.expect("all is read in time").unwrap());
            }
            ends
        })
    });
    let mut until = 0;
    for _ in 0..3 {
        until += 500;
        let deadline = Instant::now() + 3 * PATIENCE;
        while shared.accepted.load(Ordering::SeqCst) < until {
            assert!(Instant::now() < deadline, "the load stands still");
            assert!(!clients.is_finished(), "a client has ended");
            std::thread::yield_now();
        }
        server.terminate();
        let (status, lines) = server.ended();
        assert_eq!(status.code(), Some(0), "{lines:?}");
        server = Server::start_with(data.path(), &setup);
        until = shared.accepted.load(Ordering::SeqCst);
    }
    shared.stop.store(true, Ordering::SeqCst);
    let ends = clients.join().unwrap();
    let read: u64 = ends.iter().map(|(read, _)| read).sum();
    assert_eq!(read, shared.accepted.load(Ordering::SeqCst));
    let pause = ends.iter().map(|(_, longest)| longest).max().unwrap();
    println!("{read} messages, each accepted and read once and in order; longest pause {pause:?}");
    assert_eq!(server.stop().code(), Some(0));
}
