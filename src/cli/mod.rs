//! The `iris` command line.
//!
//! `--help` of each command is its manual: what it does, examples, environment, files, exit codes. A
//! failure is one line on standard error (what, why, what to do) and exit code 1; wrong usage is exit
//! code 2. A reader that goes away (`iris … | head -1`) ends a command quietly, see `output`.
//!
//! What a command does is elsewhere: this module reads arguments and prints results.

mod admin;
mod audit;
mod backup;
mod chat;
mod completions;
mod config;
mod doctor;
mod hist;
mod log;
mod logging;
pub mod output;
mod recv;
mod remote;
mod revoke;
mod send;
mod serve;
mod status;
mod token;
mod top;
mod trace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use output::Failure;

/// The exit code of every failure, but wrong usage and nothing to ask or to look at.
pub const EXIT_FAILURE: u8 = 1;
/// The exit code of wrong usage, and of a command that found no switch or no data.
pub const EXIT_USAGE: u8 = 2;
/// The data directory of every command that is not told another.
pub const DATA_DEFAULT: &str = "iris-data";
/// Where a switch listens, and clients look for it, unless told otherwise.
pub const ADDRESS_DEFAULT: &str = "127.0.0.1:7447";

const MANUAL: &str = "\
Iris stores a message on disk before it tells the sender `accepted`, and delivers it to every device \
of the recipient exactly once by number, in order, whenever that device comes.

One switch is one process: `iris serve`. Everything else here is a client or a tool.";

const EXAMPLES: &str = "\
Examples:
  iris serve --dev                          a switch with everything made for you, in ./iris-data
  iris token --user alice                   a token for it, good for an hour
  iris serve --config /etc/iris/iris.toml   a switch as configured
  iris status                               whether it is ready, and why not
  iris top                                  what it does, live
  iris doctor                               what this machine lacks, and how to change it
  iris hist                                 how long each stage of a message's way takes
  iris trace --user alice --for 60s         every step of her messages, as they happen
  iris revoke --user alice                  her tokens of before now open nothing any more
  iris audit verify                         whether the audit log is as it was written
  iris config check --config iris.toml      what it would run with, and where each value comes from
  iris log verify                           whether everything on disk is as it was written
  iris backup --to /backup/iris-1           a copy, also while the switch runs
  iris completions bash > /etc/bash_completion.d/iris

Exit codes:
  0  done
  1  failed; standard error has one line: what, why, what to do
  2  wrong usage

Files:
  ./iris-data       data directory of `--dev` and of the clients (another: --data DIR)
  ./iris-data/dev   development certificate and keys: whoever can read them can be anyone";

/// A durable message switch.
#[derive(Debug, Parser)]
#[command(name = "iris", version, about = "A durable message switch", long_about = MANUAL)]
#[command(after_long_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the switch
    Serve(serve::ServeArgs),
    /// Ask a running switch whether it is ready
    Status(status::StatusArgs),
    /// Watch a running switch, live
    Top(top::TopArgs),
    /// Show how long each stage of a message's way takes
    Hist(hist::HistArgs),
    /// Show every step of a user's messages, as they happen
    Trace(trace::TraceArgs),
    /// Refuse tokens that were good until now
    Revoke(revoke::RevokeArgs),
    /// Verify the audit log
    Audit(audit::AuditArgs),
    /// Make a token, with which a user logs in
    Token(token::TokenArgs),
    /// Send a message
    Send(send::SendArgs),
    /// Print messages
    Recv(recv::RecvArgs),
    /// Talk with another user
    Chat(chat::ChatArgs),
    /// Say what this machine lacks
    Doctor(doctor::DoctorArgs),
    /// Check a configuration
    Config(config::ConfigArgs),
    /// Look into the logs of a data directory; set damage aside
    Log(log::LogArgs),
    /// Copy a data directory, also while a switch serves it
    Backup(backup::BackupArgs),
    /// Make a data directory of a backup
    Restore(backup::RestoreArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Runs the command that `arguments` (the program's name first) ask for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments
        .first()
        .map(|name| name.to_string_lossy().into_owned());
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come here too. Nobody left to read it is no failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let result = match cli.command {
        Command::Serve(args) => serve::run(&args, program.as_deref().unwrap_or("iris")),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Hist(args) => hist::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Revoke(args) => revoke::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Recv(args) => recv::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Log(args) => log::run(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => backup::run_restore(&args),
        Command::Completions(args) => completions::run(&args),
    };
    match result {
        Ok(()) | Err(Failure::ReaderGone) => ExitCode::SUCCESS,
        Err(Failure::Told(line)) => {
            output::complain(&line);
            ExitCode::from(EXIT_FAILURE)
        }
        Err(Failure::NotRunning(line) | Failure::Nothing(line)) => {
            output::complain(&line);
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::NotReady | Failure::Damaged) => ExitCode::from(EXIT_FAILURE),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// R: E-5
    #[test]
    fn help_shows_every_setting_and_the_exit_codes() {
        let mut command = Cli::command();
        let top = command.render_long_help().to_string();
        assert!(top.contains("Exit codes:") && top.contains("iris serve --dev"));
        let serve = command
            .find_subcommand_mut("serve")
            .unwrap()
            .render_long_help()
            .to_string();
        for wanted in [
            "hello_timeout_ms",
            "IRIS_SERVER__LISTEN",
            "[[auth.keys]]",
            "--cores",
        ] {
            assert!(
                serve.contains(wanted),
                "`iris serve --help` does not say {wanted}"
            );
        }
    }

    #[test]
    fn wrong_usage_is_refused_by_name() {
        let refused = |line: &str| {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert!(error.use_stderr());
            error.to_string()
        };
        assert!(refused("iris serve").contains("--config"));
        assert!(refused("iris serve --dev --config x").contains("cannot be used with"));
        assert!(refused("iris token").contains("--user"));
        assert!(refused("iris token --user zo\u{eb}").contains("printable ASCII"));
        assert!(refused("iris token --user a --device dev\u{1}ce").contains("printable ASCII"));
        assert!(refused("iris token --user a --ttl 25h").contains("24h"));
        assert!(refused("iris token --user a --key f").contains("--kid"));
        assert!(refused("iris audit verify --expect 7").contains("64 digits"));
        assert!(refused("iris top --addr 127.0.0.1:9464").contains("--token-file"));
        assert!(refused("iris top --interval 1h").contains("100ms"));
        assert!(refused("iris revoke").contains("--user"));
        assert!(refused("iris revoke --user a --jti b").contains("cannot be used with"));
        assert!(refused("iris revoke --jti b --before 7").contains("cannot be used with"));
        assert!(refused("iris revoke --user a --before yesterday").contains("instant"));
        assert!(refused("iris trace").contains("--user"));
        assert!(refused("iris trace --user a --for 11m").contains("10m"));
        assert!(refused("iris hist --reset --interval 5s").contains("cannot be used with"));
        assert!(refused("iris hist --interval 0s").contains("1s"));
        assert!(refused("iris hist --follow").contains("--interval"));
        assert!(refused("iris hist diff a.json").contains("<B>"));
        assert!(refused("iris log salvage --confirm x").contains("--set-aside"));
        assert!(refused("iris log salvage --set-aside --log 1").contains("cannot be used with"));
        assert!(refused("iris log dump --checkpoint --bodies").contains("cannot be used with"));
        assert!(refused("iris log dump --from-lsn 0xg").contains("position"));
        assert!(refused("iris backup").contains("--to"));
        assert!(refused("iris restore").contains("--from"));
        assert!(refused("iris completions dos").contains("possible values"));
        assert!(refused("iris frobnicate").contains("unrecognized"));
    }
}
