//! Log lines: to standard error, for people or for machines.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;

use crate::config::{Log, LogFormat};

/// Starts logging as `log` says. A second call in one process changes nothing.
pub fn start(log: &Log) {
    let level = level(log.level);
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr);
    // The only error is that a subscriber is there already.
    let _ = match log.format {
        LogFormat::Human => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

fn level(name: &str) -> LevelFilter {
    name.parse().unwrap_or(LevelFilter::INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_of_the_configuration_is_one() {
        for name in ["off", "error", "warn", "info", "debug", "trace"] {
            assert_eq!(name.parse::<LevelFilter>().unwrap(), level(name));
        }
    }
}
