//! What an idle session costs the switch in memory: so many are logged in, left alone, and the process is
//! looked at from outside.
//!
//! The first ones touch what all share, such as the receive buffers of the cores, and are not counted. What
//! the kernel holds for a socket is not the process's and not in it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use crate::args::{Cli, Command, IdleArgs, RunArgs};
use crate::child::{Kind, Served};
use crate::identity::Identity;
use crate::local::{self, Lock};
use crate::run::{self, Team, pause};

/// What one look saw.
#[derive(Clone, Copy, Debug)]
struct Look {
    connections: u32,
    anonymous: u64,
    resident: u64,
    cpu_us: u64,
}

/// What was measured.
#[derive(Debug)]
pub struct Idle {
    empty: Look,
    before: Look,
    all: Look,
    /// Processor time of the switch in a second at the end, in microseconds.
    cpu_us_per_s: f64,
}

/// Logs in, rests, and looks.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &IdleArgs) -> Result<Idle, String> {
    let served = match &args.data {
        Some(_) => None,
        None => {
            let (iris, scratch) = (args.iris.as_deref(), &args.scratch);
            Some(Served::start(
                Kind::Switch,
                iris,
                scratch,
                &args.server_cores,
            )?)
        }
    };
    let data: PathBuf = match (&args.data, &served) {
        (Some(data), _) => data.clone(),
        (None, Some(served)) => served.data().to_owned(),
        (None, None) => unreachable!("one of both is there"),
    };
    let lock = Lock::read(&data);
    let pid = lock
        .pid
        .filter(|&pid| local::anonymous_bytes(pid).is_some())
        .ok_or("no switch of this machine has this data directory; start one, or give no --data")?;
    measure(args, &data, pid)
}

fn measure(args: &IdleArgs, data: &std::path::Path, pid: u32) -> Result<Idle, String> {
    let identity = Arc::new(Identity::load(data, "localhost")?);
    let rest = Duration::from_secs_f64(args.settle);
    pause(rest); // spare segments are being made after a start
    let empty = look(0, pid)?;
    let mut first = login(args, data, args.before, &identity)?;
    pause(rest);
    let before = look(args.before, pid)?;
    let second = login(args, data, args.connections, &identity);
    let all = second.as_ref().map(|_| {
        pause(rest);
        let all = look(args.before + args.connections, pid)?;
        let began = run::instant();
        pause(rest);
        let later = look(all.connections, pid)?;
        let per_s = (later.cpu_us - all.cpu_us) as f64 / began.elapsed().as_secs_f64();
        Ok::<_, String>((later, per_s))
    });
    let measured = all.map_err(Clone::clone).and_then(|all| all);
    if let Ok(mut second) = second {
        second.end()?;
    }
    first.end()?;
    let (all, cpu_us_per_s) = measured?;
    Ok(Idle {
        empty,
        before,
        all,
        cpu_us_per_s,
    })
}

/// So many sessions that do nothing.
fn login(
    args: &IdleArgs,
    data: &std::path::Path,
    connections: u32,
    identity: &Arc<Identity>,
) -> Result<Team, String> {
    let Command::Run(defaults) = Cli::parse_from(["iris-bench", "run", "--rate", "1"]).command
    else {
        unreachable!("run was asked for");
    };
    let args = RunArgs {
        connections,
        in_flight: Some(1),
        data: data.to_owned(),
        connect_timeout: args.connect_timeout,
        ..defaults
    };
    let address = run::target(&args, &Lock::read(data))?;
    let mut team = Team::start(&args, address, identity)?;
    match team.connect(&args) {
        Ok(_) => Ok(team),
        Err(text) => {
            let _ = team.end(); // the first error says why
            Err(format!(
                "{text}; each connection is an open file here and there (ulimit -n)"
            ))
        }
    }
}

fn look(connections: u32, pid: u32) -> Result<Look, String> {
    let gone = || format!("the switch, process {pid}, is gone");
    Ok(Look {
        connections,
        anonymous: local::anonymous_bytes(pid).ok_or_else(gone)?,
        resident: local::resident_bytes(pid).ok_or_else(gone)?,
        cpu_us: local::cpu_micros(pid).ok_or_else(gone)?,
    })
}

impl Idle {
    /// Bytes of each further connection.
    #[must_use]
    pub fn bytes_each(&self) -> f64 {
        let bytes = self.all.anonymous as f64 - self.before.anonymous as f64;
        bytes / f64::from(self.all.connections - self.before.connections)
    }

    /// Bytes of each, with everything that all share.
    fn bytes_each_with_all(&self) -> f64 {
        let bytes = self.all.anonymous as f64 - self.empty.anonymous as f64;
        bytes / f64::from(self.all.connections)
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut out = format!("{}\n\n", local::machine());
        for look in [&self.empty, &self.before, &self.all] {
            out.push_str(&format!(
                "  {:>7} idle sessions: {:>8.1} MiB anonymous, {:>8.1} MiB resident\n",
                look.connections,
                mib(look.anonymous),
                mib(look.resident)
            ));
        }
        out.push_str(&format!(
            "\n  {:.0} bytes for each further session; {:.0} for each with what all share; {:.2} % of a core\n",
            self.bytes_each(),
            self.bytes_each_with_all(),
            self.cpu_us_per_s / 1e4
        ));
        out
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let look = |look: &Look| {
            json!({
                "connections": look.connections, "anonymous_bytes": look.anonymous,
                "resident_bytes": look.resident,
            })
        };
        json!({
            "bytes_each": self.bytes_each(),
            "bytes_each_with_all": self.bytes_each_with_all(),
            "server_cpu_us_per_s": self.cpu_us_per_s,
            "looks": [look(&self.empty), look(&self.before), look(&self.all)],
            "machine": local::machine(),
            "commit": local::commit(),
            "unix_time_s": local::unix_time_s(),
        })
    }
}
