//! The `iris` binary: everything is in [`iris::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    iris::cli::main(std::env::args_os())
}
