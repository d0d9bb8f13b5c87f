//! `iris completions`: a script that teaches a shell the commands and flags.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, output};

#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  iris completions bash > /etc/bash_completion.d/iris
  iris completions zsh  > ~/.zfunc/_iris
  iris completions fish > ~/.config/fish/completions/iris.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "iris", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end())
}
