//! The runbooks in the operations guide, as somebody types them in a bad hour: each block runs as it stands
//! there, and prints what is promised.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use iris::auth::SigningKey;
use iris_proto::v2::server_frame::Frame as ServerFrame;

use super::full_disk;
use super::harness::{Identity, Server, all_cores, data_dir};
use super::raw::{Hello, Raw};
use super::small_disk::SmallDisk;
use super::tour::run;

const GUIDE: &str = include_str!("../../docs/OPERATIONS.md");
/// What begins the first line of a runbook's block; its name follows.
const FENCE: &str = "```sh runbook ";
/// What begins a line that says what the commands above it print.
const PRINTS: &str = "# prints ";

/// The script of a runbook, and what it prints, in this order.
fn block(name: &str) -> (String, Vec<&'static str>) {
    let fence = format!("{FENCE}{name}");
    let mut lines = GUIDE.lines().skip_while(|line| *line != fence);
    assert!(lines.next().is_some(), "no runbook {name}");
    let lines = lines.take_while(|line| *line != "```");
    let (prints, script): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with(PRINTS));
    assert!(!prints.is_empty(), "runbook {name} checks nothing");
    let prints = prints.iter().map(|line| &line[PRINTS.len()..]).collect();
    (script.join("\n"), prints)
}

/// A node as the guide's configuration makes one, and whoever operates it.
struct Node {
    directory: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Node {
    fn new(directory: &Path) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        let environment = vec![
            ("CONFIG", path("iris.toml")),
            ("DATA", path("data")),
            ("LOG", path("iris.log")),
            ("BACKUP", path("backup")),
            ("CERTIFICATE", path("certificate.pem")),
            ("KEY", path("key.pem")),
            ("NEW_CERTIFICATE", path("next/dev/certificate.pem")),
            ("NEW_KEY", path("next/dev/key.pem")),
            ("NEW_PUBLIC_KEY", path("next/dev/token-verify.pem")),
        ];
        Self {
            directory: directory.to_owned(),
            environment,
        }
    }

    /// Two identities, the present and the next one, and a configuration with the first.
    fn configure(&self) -> (Identity, Identity) {
        let identity = |name: &str| {
            let directory = self.directory.join(name);
            Server::start(&directory).kill();
            Identity::of(&directory)
        };
        let both = (identity("now"), identity("next"));
        for name in ["certificate.pem", "key.pem"] {
            let from = self.directory.join("now/dev").join(name);
            std::fs::copy(from, self.directory.join(name)).unwrap();
        }
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\ndata = \"data\"\ncores = [{cores}]\n\
             [tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n\
             [auth]\nissuer = \"iris-dev\"\n\
             [[auth.keys]]\nkid = \"dev\"\nalg = \"EdDSA\"\nfile = \"now/dev/token-verify.pem\"\n",
            cores = all_cores(2),
        );
        std::fs::write(self.directory.join("iris.toml"), toml).unwrap();
        both
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Runs a runbook and looks at what it prints.
    fn follow(&self, name: &str) {
        let (script, prints) = block(name);
        let output = run(
            &format!("set -eu\n{script}"),
            &self.directory,
            &self.environment,
        );
        let printed = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let told = format!("runbook {name}:\n{script}\n{printed}{errors}");
        assert!(output.status.success(), "{told}");
        let mut rest = &*printed;
        for wanted in prints {
            let at = rest.find(wanted);
            let at = at.unwrap_or_else(|| panic!("`{wanted}` is not printed by {told}"));
            rest = &rest[at + wanted.len()..];
        }
    }

    /// A line of the lock file.
    fn locked(&self, name: &str) -> Option<String> {
        let lock = std::fs::read_to_string(self.data().join("LOCK")).ok()?;
        let line = lock.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.strip_prefix('=')?.to_owned())
    }

    fn address(&self) -> SocketAddr {
        self.locked("addr").unwrap().parse().unwrap()
    }

    fn login(&self, identity: &Identity, user: &str, device: &str) -> Raw {
        let mut client = Raw::connect(self.address(), identity);
        let hello = Hello {
            device,
            ..Hello::default()
        };
        client.hello(&identity.token(user), &hello);
        client.welcome();
        client
    }

    /// Flips a bit of the message with this body, wherever it lies.
    fn damage(&self, body: &[u8]) {
        for log in ["log-00", "log-01"] {
            for file in std::fs::read_dir(self.data().join(log)).unwrap() {
                let path = file.unwrap().path();
                let mut bytes = std::fs::read(&path).unwrap();
                if let Some(at) = bytes.windows(body.len()).position(|it| it == body) {
                    bytes[at] ^= 1;
                    return std::fs::write(&path, bytes).unwrap();
                }
            }
        }
        panic!("no segment holds the message");
    }
}

impl Drop for Node {
    /// A test that failed leaves no switch behind.
    fn drop(&mut self) {
        let is_held = |data: &Path| {
            let lock = std::fs::File::open(data.join("LOCK"));
            lock.is_ok_and(|lock| lock.try_lock().is_err())
        };
        if is_held(&self.data())
            && let Some(pid) = self.locked("pid").and_then(|pid| pid.parse().ok())
        {
            // SAFETY: a system call without pointers; the process holds the lock of our directory.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

fn message(n: u64) -> Vec<u8> {
    format!("message {n} of a node that has seen everything").into_bytes()
}

/// The bodies that a new device of ben gets; none where a gap is.
fn inbox(node: &Node, identity: &Identity, device: &str) -> Vec<Option<Vec<u8>>> {
    let mut ben = node.login(identity, "ben", device);
    let frames = (0..3).map(|_| ben.next());
    let body = |frame| match frame {
        ServerFrame::Entry(entry) => Some(entry.body),
        ServerFrame::Gap(_) => None,
        other => panic!("{other:?}"),
    };
    frames.map(body).collect()
}

/// R: E-8
#[test]
fn every_runbook_does_what_it_says() {
    let directory = data_dir();
    let node = Node::new(directory.path());
    let (identity, next) = node.configure();
    let all: Vec<_> = (1..=3).map(|n| Some(message(n))).collect();

    node.follow("start");
    let mut ann = node.login(&identity, "ann", "phone");
    (1..=3).for_each(|n| ann.send_accepted("ben", n, &message(n)));
    node.follow("backup");
    node.follow("overload");
    node.follow("certificate");
    let new_roots = Identity {
        roots: next.roots.clone(),
        key: identity.key.clone(),
    };
    assert_eq!(inbox(&node, &new_roots, "a"), all, "it shows the new one");
    node.follow("token-keys");
    assert_eq!(inbox(&node, &new_roots, "b"), all, "the old key holds");
    let new_key = Identity {
        key: signing_key(directory.path()),
        ..next
    };
    assert_eq!(inbox(&node, &new_key, "c"), all, "and the new one");
    ann.send_accepted("ann", 1, b"and nobody was thrown out");

    node.follow("stop");
    node.damage(&message(2));
    node.follow("damage");
    node.follow("set-aside");
    node.follow("start");
    let mut with_gap = all.clone();
    with_gap[1] = None;
    assert_eq!(inbox(&node, &new_roots, "d"), with_gap);
    node.follow("stop");
    node.follow("restore");
    node.follow("start");
    assert_eq!(inbox(&node, &new_roots, "e"), all);
    node.follow("stop");
}

/// The issuer's next key under the name that the runbook gives it.
fn signing_key(directory: &Path) -> SigningKey {
    let pem = std::fs::read(directory.join("next/dev/token-signing.pem")).unwrap();
    SigningKey::read("next", &pem).unwrap()
}

/// R: E-8, B-8
#[test]
fn the_runbook_for_a_full_disk_brings_a_switch_back() {
    let Some(disk) = SmallDisk::make(full_disk::DISK_MIB) else {
        return;
    };
    let (server, mut flood) = full_disk::begin(&disk);
    disk.fill(0);
    flood.until_refused();
    let mut node = Node::new(&disk.path());
    let ballast = disk.filler().display().to_string();
    node.environment.push(("BALLAST", ballast));
    node.follow("disk-full");
    flood.all_accepted();
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn every_block_of_a_runbook_is_followed_by_a_test() {
    let source = include_str!("runbooks.rs");
    let names = GUIDE.lines().filter_map(|line| line.strip_prefix(FENCE));
    let names: Vec<_> = names.collect();
    assert!(!names.is_empty());
    for name in names {
        let call = format!("node.follow(\"{name}\")");
        assert!(source.contains(&call), "nothing follows runbook {name}");
    }
}
