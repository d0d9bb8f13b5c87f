//! A live switch under a fuzzer that has a valid certificate and valid tokens, beside two users who
//! notice nothing.
//!
//! ```text
//!   attackers ──TLS, tokens, mutated everything──▶ switch ◀── ann sends, ben gets: once each, in order
//!                                                    │
//!            afterwards: alive, ready, no panic in its log, descriptors and memory back, exit code 0
//! ```
//!
//! What an attacker sends is decided by the seed, which is printed (`IRIS_TEST_SEED` gives it again);
//! how the threads and the switch take turns is not. `IRIS_LIVE_FUZZ_SECONDS` says how long.

mod attacker;
mod bytes;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iris_proto::v2::RejectCode;
use iris_proto::v2::server_frame::Frame as ServerFrame;

use super::admin::get;
use super::harness::{PATIENCE, Random, Server, Setup, data_dir, iris, seed};
use super::raw::Raw;
use attacker::{Attacker, Stage};

/// How long it goes on, unless told otherwise: enough to see that it works.
const SECONDS: u64 = 5;
/// Attackers at once. Each has one connection under its hands and some that it left open.
const ATTACKERS: u64 = 6;
/// Messages that ann sends before she waits for the answers, at most.
const BATCH_MAX: u64 = 8;
/// Descriptors that are no sockets, which a log may have opened meanwhile: segments and spares.
const FILES_MAX: usize = 16;
/// What may be left in memory after the attackers of the second phase, beyond what was left after those
/// of the first: further users, devices, send streams and entries that they made, which are kept by
/// design, and what the allocator keeps in pieces.
const GROWTH_KIB_MAX: u64 = 24 * 1024;

fn seconds() -> u64 {
    let given = std::env::var("IRIS_LIVE_FUZZ_SECONDS").ok();
    given.map_or(SECONDS, |text| text.parse().expect("a number of seconds"))
}

/// Two users who talk while others do what they want.
struct Pair {
    ann: Raw,
    ben: Raw,
    /// Messages that have arrived.
    done: u64,
    /// Times that ann was told to send again later.
    deferred: u64,
}

impl Pair {
    fn login(server: &Server) -> Self {
        Self {
            ann: Raw::login(server, "ann"),
            ben: Raw::login(server, "ben"),
            done: 0,
            deferred: 0,
        }
    }

    /// Sends `count` messages, sees each accepted, and sees each arrive once and in order.
    fn exchange(&mut self, count: u64) {
        let (first, end) = (self.done + 1, self.done + count);
        let mut next = first;
        while next <= end {
            for n in next..=end {
                self.ann.send("ben", n, n.to_string().as_bytes());
            }
            next = self.answers(next, end);
        }
        for n in first..=end {
            let entry = self.ben.entry();
            let body = String::from_utf8(entry.body).unwrap();
            assert_eq!((entry.seq, entry.from.as_str()), (n, "ann"));
            assert_eq!(body, n.to_string());
        }
        self.ben.ack(end);
        self.done = end;
    }

    /// Takes the answers to `from..=to`; the first number that is to be sent again.
    fn answers(&mut self, from: u64, to: u64) -> u64 {
        let (mut next, mut wait_ms) = (from, None);
        for n in from..=to {
            match self.ann.next() {
                ServerFrame::Accepted(accepted) => {
                    assert_eq!((accepted.n, n), (n, next), "accepted out of order");
                    next = n + 1;
                }
                ServerFrame::Rejected(rejected) => {
                    let due = wait_ms.map_or(RejectCode::Overloaded, |_| RejectCode::Gap);
                    assert_eq!(rejected.code(), due, "{rejected:?}");
                    wait_ms = wait_ms.or(Some(rejected.retry_after_ms.max(1)));
                }
                other => panic!("an answer was due, {other:?} came"),
            }
        }
        if let Some(wait_ms) = wait_ms {
            self.deferred += 1;
            let said = self.ann.try_next_within(Duration::from_millis(wait_ms));
            assert_eq!(said, Ok(None), "nothing was asked");
        }
        next
    }
}

/// What a phase saw of the attackers.
#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    /// Connections of each stage that an attack got to before it began.
    stages: [AtomicU64; Stage::ALL.len()],
}

impl Seen {
    fn count(&self, stage: Stage) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.stages[stage as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Lets attackers loose for so long, while the pair talks; the attackers' connections are gone then.
fn attack(server: &Server, pair: &mut Pair, random: &mut Random, time: Duration) -> Seen {
    let (seen, over) = (Seen::default(), AtomicBool::new(false));
    let deadline = Instant::now() + time;
    thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            let attacker = Attacker::new(server, Random(random.below(u64::MAX)));
            let (seen, over) = (&seen, &over);
            scope.spawn(move || {
                let mut attacker = attacker;
                while !over.load(Ordering::Relaxed) {
                    seen.count(attacker.attack());
                }
            });
        }
        // Ends the attackers when the pair fails, too.
        let ends = Ends(&over);
        while Instant::now() < deadline {
            pair.exchange(1 + random.below(BATCH_MAX));
        }
        drop(ends);
    });
    seen
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sockets and other descriptors of a process.
fn descriptors(pid: u32) -> (usize, usize) {
    let (mut sockets, mut others) = (0, 0);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // It may have been closed since the directory was read.
        match std::fs::read_link(entry.unwrap().path()) {
            Ok(target) if target.to_string_lossy().starts_with("socket:") => sockets += 1,
            Ok(_) => others += 1,
            Err(_) => {}
        }
    }
    (sockets, others)
}

/// Memory of its own, without the pages of files: the log is mapped, and what of it the kernel keeps in
/// memory is up to the kernel.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let value = line.unwrap().split_whitespace().nth(1).unwrap();
    value.parse().unwrap()
}

/// Waits until the attackers' connections are gone from the switch: the pair's chatter is its clock.
fn settle(server: &Server, pair: &mut Pair, sockets: usize) {
    let deadline = Instant::now() + PATIENCE;
    while descriptors(server.pid()).0 > sockets {
        let (_, metrics) = get(&server.data, "/metrics");
        assert!(
            Instant::now() < deadline,
            "connections of attackers stay:\n{metrics}"
        );
        pair.exchange(1);
    }
}

fn setup() -> Setup {
    let more = [
        // What an attacker leaves open is closed within seconds.
        ("IRIS_LIMITS__HELLO_TIMEOUT_MS", "1000"),
        ("IRIS_LIMITS__FRAME_TIMEOUT_MS", "1000"),
        ("IRIS_LIMITS__WRITE_TIMEOUT_MS", "1000"),
    ];
    let more = more.map(|(name, value)| (name, value.to_owned()));
    let mut setup = Setup::small_storage();
    setup.environment.extend(more);
    setup
}

fn assert_ready(data: &Path) {
    assert_eq!(get(data, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(data, "/readyz"), (200, "ready\n".to_owned()));
    let status = iris().arg("status").arg("--data").arg(data).output();
    assert_eq!(status.unwrap().status.code(), Some(0));
}

/// R: A-5, B-7
#[test]
fn a_fuzzer_with_certificate_and_token_disturbs_nobody_and_leaves_nothing_behind() {
    let mut random = Random(seed());
    let time = Duration::from_secs(seconds());
    let data = data_dir();
    let server = Server::start_with(data.path(), &setup());
    let mut pair = Pair::login(&server);
    pair.exchange(BATCH_MAX);
    let (sockets, files) = descriptors(server.pid());

    let first = attack(&server, &mut pair, &mut random, time / 3);
    settle(&server, &mut pair, sockets);
    let resident = resident_kib(server.pid());
    let second = attack(&server, &mut pair, &mut random, time - time / 3);
    settle(&server, &mut pair, sockets);
    let grown = resident_kib(server.pid()).saturating_sub(resident);
    let files_after = descriptors(server.pid()).1;
    println!(
        "{} + {} connections {:?}, {} messages beside them, {} deferrals; {resident} + {grown} KiB, \
         {files} files, then {files_after}",
        first.total(),
        second.total(),
        second.stages,
        pair.done,
        pair.deferred,
    );
    assert!(
        second
            .stages
            .iter()
            .all(|stage| stage.load(Ordering::Relaxed) > 0),
        "too few"
    );
    assert!(
        grown <= GROWTH_KIB_MAX,
        "{grown} KiB more than after the first third"
    );
    assert!(
        files_after <= files + FILES_MAX,
        "{files} files, then {files_after}"
    );

    assert_ready(data.path());
    server.terminate();
    let (status, log) = server.ended();
    assert_eq!(status.code(), Some(0));
    let bad: Vec<&String> = log.iter().filter(|line| is_bad(line)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// A line that no client may make a switch write.
fn is_bad(line: &str) -> bool {
    line.contains("panicked") || line.contains(" ERROR ")
}
