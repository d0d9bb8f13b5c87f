//! `iris-bench`: puts load on a switch, measures it without coordinated omission, and verifies that
//! every accepted message arrived exactly once and in order.
//!
//! | file | what |
//! |---|---|
//! | `args` | the command line, which is the manual |
//! | `run` | the course of a run, on the main thread |
//! | `engine` | one thread's connections: sockets, TLS, turns |
//! | `connection` | one connection's protocol, without a socket |
//! | `schedule`, `message`, `verify`, `stats` | pure: when, what, whether it was right, how long it took |
//! | `report`, `disk`, `local`, `identity` | result, bare disk, this machine, keys and tokens |
//! | `established` | sessions that go on while something else is done to the switch |
//! | `pattern` | pure: the scenarios, who sends to whom and who is away |
//! | `ramp`, `compare` | the highest rate that keeps a promise; two sides of results |
//! | `idle` | what idle sessions cost the switch in memory |
//! | `limit`, `relay`, `child` | the switch beside a bare relay on the same machinery; processes of our own |
//! | `instructions` | parts of a message's way, for counting instructions |
//! | `progress`, `hdr` | the line while it runs; HdrHistogram logs |
//! | `storm`, `fleet` | thousands of clients that are cut and come back |
//! | `hostile` | clients that do everything wrong |
//! | `traffic`, `recovery`, `space`, `fill` | logs without a network: how long a start takes, how much disk, a past |
#![deny(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

mod args;
mod child;
mod compare;
mod connection;
mod disk;
mod engine;
mod established;
mod fill;
mod fleet;
mod hdr;
mod hostile;
mod identity;
mod idle;
mod instructions;
mod limit;
mod local;
mod message;
mod pattern;
mod progress;
mod ramp;
mod recovery;
mod relay;
mod report;
mod run;
mod schedule;
mod space;
mod stats;
mod storm;
mod traffic;
mod verify;

use args::{Cli, Command, RunArgs};
use pattern::Pattern;

/// What the exit code says of a rate that was not generated.
const EXIT_REFUSED: u8 = 3;

fn main() -> ExitCode {
    match execute(&Cli::parse().command) {
        Ok(End::Good) => ExitCode::SUCCESS,
        Ok(End::Bad) => ExitCode::FAILURE,
        Ok(End::Refused) => ExitCode::from(EXIT_REFUSED),
        Err(text) => {
            eprintln!("iris-bench: {text}");
            ExitCode::FAILURE
        }
    }
}

/// How it ended.
enum End {
    Good,
    Bad,
    /// A rate was asked for that was not generated.
    Refused,
}

impl From<bool> for End {
    fn from(is_good: bool) -> Self {
        if is_good { Self::Good } else { Self::Bad }
    }
}

/// Whether all was well.
fn execute(command: &Command) -> Result<End, String> {
    match command {
        Command::Run(args) => scenario(args, Pattern::Online),
        Command::Offline(args) => scenario(args, Pattern::Offline),
        Command::FanIn(args) => scenario(args, Pattern::FanIn),
        Command::Mixed(args) => scenario(args, Pattern::Mixed),
        Command::BareRelay(args) => relay::run(args).map(|()| End::Good),
        Command::Instructions(args) => instructions::run(args).map(|()| End::Good),
        _ => measurement(command).map(End::from),
    }
}

fn scenario(args: &RunArgs, pattern: Pattern) -> Result<End, String> {
    let args = RunArgs {
        pattern,
        ..args.clone()
    };
    if args.ramp {
        let ramp = ramp::run(&args)?;
        print!("{}", ramp.table());
        write_json(args.json.as_deref(), || ramp.json())?;
        return Ok(ramp.is_good().into());
    }
    let outcomes = run::run_all(&args)?;
    for outcome in &outcomes {
        print!("{}", outcome.table());
    }
    write_json(args.json.as_deref(), || match &outcomes[..] {
        [outcome] => outcome.json(),
        _ => {
            serde_json::json!({"runs": Vec::from_iter(outcomes.iter().map(report::Outcome::json))})
        }
    })?;
    if let Some(path) = &args.hdr {
        hdr::write(path, &outcomes)?;
    }
    let is_good = outcomes.iter().all(report::Outcome::is_good);
    let is_refused = outcomes.iter().any(|outcome| outcome.shortfall().is_some());
    Ok(match (is_good, is_refused) {
        (false, _) => End::Bad,
        (true, true) => End::Refused,
        (true, false) => End::Good,
    })
}

/// The subcommands that are no load of messages between users, or more than one.
fn measurement(command: &Command) -> Result<bool, String> {
    match command {
        Command::Idle(args) => {
            let idle = idle::run(args)?;
            print!("{}", idle.table());
            write_json(args.json.as_deref(), || idle.json())?;
            Ok(true)
        }
        Command::Fill(args) => {
            let filled = fill::run(args)?;
            print!("{}", filled.table());
            write_json(args.json.as_deref(), || filled.json())?;
            Ok(true)
        }
        Command::Limit(args) => {
            let limit = limit::run(args)?;
            print!("{}", limit.table());
            write_json(args.json.as_deref(), || limit.json())?;
            Ok(limit.is_good())
        }
        Command::Compare(args) => {
            let comparison = compare::run(args)?;
            print!("{}", comparison.table());
            write_json(args.json.as_deref(), || comparison.json())?;
            Ok(comparison.is_good())
        }
        Command::Storm(args) => {
            let storm = storm::run(args)?;
            print!("{}", storm.table());
            write_json(args.place.json.as_deref(), || storm.json())?;
            Ok(storm.is_good())
        }
        Command::Hostile(args) => {
            let hostile = hostile::run(args)?;
            print!("{}", hostile.table());
            write_json(args.place.json.as_deref(), || hostile.json())?;
            Ok(true)
        }
        Command::Disk(args) => {
            let disk = disk::run(args)?;
            print!("{}", disk.table());
            write_json(args.json.as_deref(), || disk.json())?;
            Ok(true)
        }
        Command::Recovery(args) => {
            let recovery = recovery::run(args)?;
            print!("{}", recovery.table());
            write_json(args.json.as_deref(), || recovery.json())?;
            Ok(true)
        }
        Command::Space(args) => {
            let space = space::run(args)?;
            print!("{}", space.table());
            write_json(args.json.as_deref(), || space.json())?;
            Ok(true)
        }
        Command::Run(_)
        | Command::Offline(_)
        | Command::FanIn(_)
        | Command::Mixed(_)
        | Command::Instructions(_)
        | Command::BareRelay(_) => unreachable!("done above"),
    }
}

fn write_json(path: Option<&Path>, json: impl FnOnce() -> serde_json::Value) -> Result<(), String> {
    let Some(path) = path else {
        return Ok(());
    };
    std::fs::write(path, format!("{:#}\n", json())).map_err(|error| {
        format!(
            "cannot write {}: {error}; give another --json",
            path.display()
        )
    })
}

#[cfg(test)]
mod fake_switch;
#[cfg(test)]
mod tests;
