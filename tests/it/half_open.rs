//! Peers that are gone without a word: no FIN, no RST, no answer to anything.
//!
//! ```text
//!   namespace of the test: switch, ann ── iris0 ═ veth ═ iris1 ── namespace of the peers: ben, carl, …
//!                                                  └ taken down: whatever is sent there is lost
//! ```
//!
//! Network namespaces take a privilege. Without it there is nothing to see here, and the test says so.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::admin::{get, sum};
use super::harness::{Server, Setup, data_dir};
use super::raw::{Hello, Raw};

/// 60 s of silence, 90 s until a question or a byte is given up, and what a busy machine adds.
const GONE_WITHIN: Duration = Duration::from_secs(160);
/// Where the switch listens.
const HOST: [u8; 4] = [10, 187, 0, 1];
const INTERFACE: &str = "iris1";

/// A namespace that lives as long as a process in it.
struct Namespace(Child);

impl Namespace {
    /// `None`: it is not permitted.
    fn new() -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped());
        let namespace = Self(command.stdout(Stdio::null()).spawn().ok()?);
        let own = std::fs::read_link("/proc/thread-self/ns/net").ok()?;
        let path = format!("/proc/{}/ns/net", namespace.0.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        // It is there when `unshare` has entered it.
        while std::fs::read_link(&path).ok()? == own {
            if Instant::now() > deadline {
                return None;
            }
            std::thread::yield_now();
        }
        Some(namespace)
    }

    /// Puts the calling thread, and what it starts from now on, into it.
    fn enter(&self) {
        let file = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        // SAFETY: a system call without pointers; the descriptor is open.
        assert_eq!(
            unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) },
            0
        );
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `ip` in the namespace of this thread; whether it did what it was told.
fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}

/// Puts the calling thread into a namespace of its own that has a cable to another one.
fn namespaces() -> Option<(Namespace, Namespace)> {
    let (ours, theirs) = (Namespace::new()?, Namespace::new()?);
    ours.enter();
    let pid = theirs.pid();
    let is_there = ip("link set lo up")
        && ip(&format!(
            "link add iris0 type veth peer name {INTERFACE} netns {pid}"
        ))
        && ip("addr add 10.187.0.1/24 dev iris0")
        && ip("link set iris0 up");
    is_there.then_some((ours, theirs))
}

/// R: B-7. What of a peer that is owed nothing, of one that is owed a message which fits into its socket,
/// and of one that is half way into the house.
#[test]
fn peers_that_are_gone_without_a_word_are_let_go_and_make_room() {
    // A thread of its own: it stays in its namespace.
    let thread = std::thread::spawn(|| {
        let Some((_ours, theirs)) = namespaces() else {
            println!("SKIPPED: network namespaces are not permitted here, or there is no `ip`");
            return;
        };
        let data = data_dir();
        let setup = Setup {
            listen: SocketAddr::from((HOST, 0)),
            environment: vec![("IRIS_LIMITS__SESSIONS_PER_USER", "1".to_owned())],
            ..Setup::default()
        };
        let server = Server::start_with(data.path(), &setup);
        let mut ann = Raw::login(&server, "ann");
        let peers = std::thread::scope(|scope| {
            let peers = scope.spawn(|| {
                theirs.enter();
                assert!(ip(&format!("addr add 10.187.0.2/24 dev {INTERFACE}")));
                assert!(ip(&format!("link set {INTERFACE} up")));
                let (ben, carl) = (Raw::login(&server, "ben"), Raw::login(&server, "carl"));
                let stranger = TcpStream::connect(server.address).unwrap();
                let half_way = Raw::connect(server.address, &server.identity());
                // Nothing passes from now on, and who is here does not know it.
                assert!(ip(&format!("link set {INTERFACE} down")));
                (ben, carl, stranger, half_way)
            });
            peers.join().unwrap()
        });
        let began = Instant::now();
        ann.send_accepted("carl", 1, b"which he never reads");
        let count = |name| sum(&get(data.path(), "/metrics").1, name);
        assert_eq!(count("iris_sessions"), 3);
        let hello = Hello {
            device: "other",
            ..Hello::default()
        };
        let deadline = began + GONE_WITHIN;
        while count("iris_sessions") > 1 {
            assert!(Instant::now() < deadline, "they are still here");
            // It is no heartbeat of the switch's own that ends them.
            assert_eq!(ann.until_pong(), []);
            std::thread::park_timeout(Duration::from_millis(200));
        }
        println!("gone after {:?}", began.elapsed());
        assert_eq!(count("iris_strangers"), 0);
        assert_eq!(count("iris_connections"), 1);
        for user in ["ben", "carl"] {
            Raw::login_with(&server, user, &hello); // each may have one session
        }
        drop(peers);
    });
    thread.join().unwrap();
}
