//! A switch in a process of its own, on a directory of its own, on a port that the kernel chose.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, unbounded};
use iris::auth::{MintRequest, SigningKey, mint};
use iris::runtime::dev;
use iris_proto::id::{DeviceId, UserId};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The audience of development tokens.
pub const AUDIENCE: &str = "iris";

/// The `iris` command.
pub fn iris() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("IRIS_")) {
        command.env_remove(name);
    }
    command
}

/// How a switch is started.
#[derive(Clone)]
pub struct Setup {
    pub cores: String,
    pub environment: Vec<(&'static str, String)>,
    /// A configuration file instead of `--dev`.
    pub config: Option<PathBuf>,
    /// Where it listens; port 0: one that the kernel chooses.
    pub listen: SocketAddr,
}

impl Setup {
    /// The smallest segments, a checkpoint for every MiB, and hardly any history: it rotates,
    /// checkpoints and cleans within seconds.
    pub fn small_storage() -> Self {
        let environment = [
            ("IRIS_STORAGE__SEGMENT_BYTES", "2097152"),
            ("IRIS_STORAGE__CHECKPOINT_BYTES", "1048576"),
            ("IRIS_STORAGE__RETENTION_ENTRIES", "50"),
        ];
        let environment = environment.map(|(name, value)| (name, value.to_owned()));
        Self {
            environment: environment.to_vec(),
            ..Self::default()
        }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            cores: all_cores(2),
            environment: Vec::new(),
            config: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

/// The first `count` processors that this process may use, as a list for `--cores`.
pub fn all_cores(count: usize) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list:"))
        .unwrap();
    let mut cores = Vec::new();
    for range in line.split_whitespace().nth(1).unwrap().split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        cores.extend(from.parse::<usize>().unwrap()..=to.parse::<usize>().unwrap());
    }
    assert!(cores.len() >= count, "this test needs {count} processors");
    cores[..count]
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// A running switch. Killed when dropped.
pub struct Server {
    child: Child,
    /// Lines on its standard error, as they come.
    errors: Receiver<String>,
    /// Those that were passed over or given out already.
    passed: (Sender<String>, Receiver<String>),
    pub address: SocketAddr,
    pub data: PathBuf,
    /// Read when it starts: later the disk may be gone.
    identity: Identity,
}

impl Server {
    /// Starts `iris serve --dev` on two cores and waits until it is ready.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &Setup::default())
    }

    pub fn start_with(data: &Path, setup: &Setup) -> Self {
        let mut command = iris();
        let listen = setup.listen.to_string();
        command.args(["serve", "--listen", &listen, "--cores", &setup.cores]);
        match &setup.config {
            Some(file) => command.arg("--config").arg(file),
            None => command.arg("--dev"),
        };
        command
            .arg("--data")
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.envs(
            setup
                .environment
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let Some(address) = line.trim().strip_prefix("iris is ready on ") else {
            let mut errors = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut errors)
                .unwrap();
            panic!("the switch did not start: {line}{errors}");
        };
        let address = address.parse().unwrap();
        drain(output);
        let errors = drain(child.stderr.take().unwrap());
        Self {
            child,
            errors,
            passed: unbounded(),
            address,
            data: data.to_owned(),
            identity: Identity::of(data),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to reload.
    pub fn hang_up(&self) {
        self.signal(libc::SIGHUP);
    }

    /// The next line of its log that contains `part`; those before it are passed over.
    pub fn log_line(&self, part: &str) -> String {
        loop {
            let line = self.errors.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("`{part}` was not logged: {error}"));
            let _ = self.passed.0.send(line.clone()); // we have its other end
            if line.contains(part) {
                return line;
            }
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to our own child, which has not been waited for: `self` is there.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0);
    }

    /// The end without warning, while others still look at it.
    pub fn kill_now(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Asks for the orderly end, while others still look at it.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Stops it in the middle of whatever it does; returns when all of it stands still.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
        let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
        // SAFETY: plain data, for which zeros are a value.
        let mut seen: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: a child of ours, which is not taken away by this, and a place for the answer.
        let result = unsafe { libc::waitid(libc::P_PID, self.pid(), &mut seen, options) };
        assert_eq!((result, seen.si_code), (0, libc::CLD_STOPPED));
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Waits for the end that it comes to by itself; how it ended, and all that it had said on standard
    /// error.
    pub fn ended(mut self) -> (ExitStatus, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the switch goes on");
            std::thread::yield_now();
        };
        let passed = self.passed.1.try_iter();
        (status, passed.chain(self.errors.iter()).collect())
    }

    /// The end without warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The orderly end.
    pub fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.child.wait().unwrap()
    }

    pub fn identity(&self) -> Identity {
        self.identity.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end on a thread, so that its writer never blocks; shown when a test fails.
fn drain(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (lines, drained) = unbounded();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            println!("switch: {line}");
            let _ = lines.send(line); // nobody may be interested
        }
    });
    drained
}

/// Trust anchor and signing key of a development directory.
#[derive(Clone)]
pub struct Identity {
    pub roots: Arc<RootCertStore>,
    pub key: SigningKey,
}

impl Identity {
    pub fn of(data: &Path) -> Self {
        let files = dev::load(data).unwrap();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&files.ca).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        Self {
            roots: Arc::new(roots),
            key: files.signing_key().unwrap(),
        }
    }

    pub fn token(&self, user: &str) -> String {
        self.token_with(user, None, 3_600)
    }

    pub fn token_with(&self, user: &str, device: Option<&str>, ttl_s: u64) -> String {
        let device = device.map(|device| DeviceId::new(device).unwrap());
        mint_with(&self.key, user, device.as_ref(), ttl_s, now_s())
    }
}

pub fn mint_with(
    key: &SigningKey,
    user: &str,
    device: Option<&DeviceId>,
    ttl_s: u64,
    now_s: u64,
) -> String {
    let request = MintRequest {
        user: &UserId::new(user).unwrap(),
        device,
        ttl_s,
        now_s,
        issuer: Some(dev::ISSUER),
        audience: AUDIENCE,
        jti: None,
    };
    mint(key, &request).unwrap()
}

pub fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

pub fn data_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix("iris-it-")
        .tempdir()
        .unwrap()
}

/// A seed from the environment (`IRIS_TEST_SEED`), or a new one; printed, so that a failure repeats.
pub fn seed() -> u64 {
    let given = std::env::var("IRIS_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| now_s() ^ u64::from(std::process::id()) << 32);
    println!("IRIS_TEST_SEED={seed}");
    seed
}

/// A small generator for tests (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
