//! A switch or a bare relay of our own, in a scratch data directory, for measurements that need a fresh one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::args::Cores;
use crate::local::Lock;
use crate::run::{LOOK, instant, pause};
use crate::traffic::Scratch;

/// How long it may take until it serves.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end when it is told to; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(20);

/// A process that serves.
#[derive(Debug)]
pub struct Served {
    child: Child,
    /// Gone after the process.
    scratch: Scratch,
}

/// What to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `iris serve --dev`.
    Switch,
    /// `iris-bench bare-relay`.
    Relay,
}

impl Kind {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Relay => "bare relay",
        }
    }
}

impl Served {
    /// Starts one on these cores, and waits until it serves.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn start(
        kind: Kind,
        iris: Option<&Path>,
        parent: &Path,
        cores: &Cores,
    ) -> Result<Self, String> {
        let scratch = Scratch::new(parent, kind.name().split(' ').next_back().unwrap_or(""))?;
        let mut command = command(kind, iris, scratch.path(), cores)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| {
                format!(
                    "cannot start {}: {error}; build it (cargo build --release --bin iris) or give --iris FILE",
                    command.get_program().display()
                )
            })?;
        let mut served = Self { child, scratch };
        served.wait_until_ready()?;
        Ok(served)
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.scratch.path()
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let until = instant() + READY_MAX;
        loop {
            let lock = Lock::read(self.scratch.path());
            let is_ours = lock.pid == Some(self.child.id());
            let serves = lock.addr.is_some_and(|addr| addr.contains(':'));
            if is_ours && serves {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended before it served: {status} (see above)"));
            }
            if instant() > until {
                return Err(format!("it did not serve within {READY_MAX:?}"));
            }
            pause(LOOK);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let pid = self.child.id().cast_signed();
        crate::local::terminate(pid);
        let until = instant() + STOP_MAX;
        while instant() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            pause(LOOK);
        }
        let _ = self.child.kill(); // it has ended meanwhile, or it hears this
        let _ = self.child.wait();
    }
}

fn command(kind: Kind, iris: Option<&Path>, data: &Path, cores: &Cores) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|error| format!("who am I? {error}"))?;
    let list: Vec<String> = cores.0.iter().map(ToString::to_string).collect();
    let command = match kind {
        Kind::Switch => {
            let path = iris.map_or_else(|| own.with_file_name("iris"), PathBuf::from);
            let mut command = Command::new(path);
            command.args([
                "serve",
                "--dev",
                "--listen",
                "127.0.0.1:0",
                "--log-level",
                "error",
            ]);
            command.arg("--cores").arg(list.join(","));
            command
        }
        Kind::Relay => {
            let mut command = Command::new(own);
            let first = list.first().map_or("0", String::as_str);
            command.args(["bare-relay", "--core", first]);
            command
        }
    };
    let mut command = command;
    command.arg("--data").arg(data);
    Ok(command)
}
