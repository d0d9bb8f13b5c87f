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
//! | `storm`, `fleet` | thousands of clients that are cut and come back |
//! | `hostile` | clients that do everything wrong |
//! | `traffic`, `recovery`, `space` | logs without a network: how long a start takes, how much disk |
#![deny(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

mod args;
mod connection;
mod disk;
mod engine;
mod established;
mod fleet;
mod hostile;
mod identity;
mod local;
mod message;
mod recovery;
mod report;
mod run;
mod schedule;
mod space;
mod stats;
mod storm;
mod traffic;
mod verify;

use args::{Cli, Command};

fn main() -> ExitCode {
    match execute(&Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("iris-bench: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
fn execute(command: &Command) -> Result<bool, String> {
    match command {
        Command::Run(args) => {
            let outcome = run::run(args)?;
            print!("{}", outcome.table());
            write_json(args.json.as_deref(), || outcome.json())?;
            Ok(outcome.is_good())
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
