//! `iris config check`: what a switch would run with, and where each value comes from.

use clap::{Args, Subcommand};

use super::serve::SourceArgs;
use super::{Failure, output};
use crate::config::Config;
use crate::runtime::Policy;
use crate::runtime::clock::Clock;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the effective configuration with the source of each value
    #[command(long_about = "\
Print the effective configuration as TOML, with the source of each value as a comment, after reading \
the file, the environment and the key files as `iris serve` would. Files with loose permissions and a \
certificate that ends soon are named in comments. Nothing is started or changed.")]
    #[command(after_long_help = "\
Examples:
  iris config check --config iris.toml
  IRIS_SERVER__LISTEN=0.0.0.0:7447 iris config check --config iris.toml

Exit codes:
  0  a switch would start or reload with it, as far as files can tell
  1  it would not; standard error says why, with line and column
  2  wrong usage")]
    Check(SourceArgs),
}

pub(super) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let ConfigCommand::Check(source) = &args.command;
    let config = source.load()?;
    let mut text = config.to_string().trim_end().to_owned();
    for note in check_files(&config)? {
        text.push_str(&format!("\n# {note}"));
    }
    output::print(&text)
}

/// The development identity is made at the start, so its files need not be there yet.
fn check_files(config: &Config) -> Result<Vec<String>, Failure> {
    if config.dev && !config.tls.certificate.exists() {
        return Ok(Vec::new());
    }
    let (_, skipped) = config.keyring()?;
    config.admin_token()?;
    let policy = Policy::read(config, None)?;
    let now_s = Clock::read().unix_s();
    let skipped = skipped
        .iter()
        .map(|skipped| format!("auth.jwks: {skipped}"));
    let ending = policy.validity.and_then(|validity| validity.note(now_s));
    let exposed = config.exposed();
    let warnings = exposed.iter().map(ToString::to_string).chain(ending);
    Ok(skipped
        .chain(warnings.map(|warning| format!("warning: {warning}")))
        .collect())
}
