//! `iris serve`: runs the switch.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::output::{self, shell_word};
use super::{ADDRESS_DEFAULT, DATA_DEFAULT, Failure, logging};
use crate::config::{Config, ConfigError, Flag, describe};
use crate::runtime::{self, Ready, dev};

const MANUAL: &str = "\
Run the switch in the foreground until SIGTERM or SIGINT. SIGHUP makes it read its configuration again \
and take certificate, keys and some limits anew; whoever is connected stays.

With --config it runs as the file says. With --dev it makes everything that it needs (data directory, \
certificate, signing key) in ./iris-data or --data, and prints three commands to try: for trying and \
testing, since whoever can read that directory can be anyone.

It prints `iris is ready on ADDRESS` to standard output once clients can connect, and logs to standard \
error.";

fn settings_manual() -> String {
    format!(
        "\
Settings, by section of the TOML file [default]:
{}
  [[auth.keys]]        one for each key that tokens may be signed with, file only
                       (needed, unless auth.jwks has some):
  kid                  the name by which a token asks for it
  alg                  HS256, EdDSA, ES256 or RS256
  file                 the public key in PEM; for HS256 the secret, 32 bytes or more

Environment:
  IRIS_SECTION__KEY    overrides a setting, such as IRIS_SERVER__LISTEN=0.0.0.0:7447
                       A name of that form that is no setting is an error.
  A flag wins over the environment, the environment over the file, the file over the default.

Examples:
  iris serve --dev
  iris serve --dev --data /tmp/try --listen 127.0.0.1:0 --cores 0,1
  iris serve --config /etc/iris/iris.toml --log-format json

Exit codes:
  0  stopped as asked
  1  did not start, or could not go on; standard error has one line: what, why, what to do
  2  wrong usage",
        describe()
    )
}

/// Where a configuration comes from: shared by `serve` and `config check`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true)))]
pub(super) struct SourceArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", group = "source")]
    config: Option<PathBuf>,
    /// Make and use a development identity instead of a file
    #[arg(long, group = "source")]
    dev: bool,
    /// Data directory [default: iris-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7447]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Processors to run on: `all`, or numbers and ranges such as 0,2-3 [default: all]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Log lines for people (`human`) or machines (`json`) [default: human]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// The least important log line written: off, error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl SourceArgs {
    pub fn load(&self) -> Result<Config, ConfigError> {
        let rows = [
            ("server.data", "--data", &self.data),
            ("server.listen", "--listen", &self.listen),
            ("server.cores", "--cores", &self.cores),
            ("log.format", "--log-format", &self.log_format),
            ("log.level", "--log-level", &self.log_level),
        ];
        let mut flags = Vec::new();
        for (key, name, value) in rows {
            flags.extend(value.clone().map(|value| Flag { key, name, value }));
        }
        Config::load(self.config.as_deref(), &flags, self.dev)
    }
}

#[derive(Debug, Args)]
#[command(long_about = MANUAL, after_long_help = settings_manual())]
pub(super) struct ServeArgs {
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &ServeArgs, program: &str) -> Result<(), Failure> {
    let config = args.source.load()?;
    logging::start(&config.log);
    if config.dev {
        dev::ensure(&config.server.data)?;
    }
    let dev = config.dev;
    let data = config.server.data.to_string_lossy().into_owned();
    let announce = |ready: Ready| {
        let mut text = format!("iris is ready on {}", ready.addr);
        if dev {
            text.push_str(&next_commands(program, &data, ready));
        }
        // The switch serves on, whether or not somebody reads this.
        let _ = output::print(&text);
    };
    Ok(runtime::serve(config, || args.source.load(), announce)?)
}

/// What to try, as it must be typed here.
fn next_commands(program: &str, data: &str, ready: Ready) -> String {
    let mut where_to = String::new();
    if data != DATA_DEFAULT {
        where_to.push_str(&format!(" --data {}", shell_word(data)));
    }
    let program = shell_word(program);
    let token = format!("{program} token --user alice{where_to}");
    let mut address = ready.addr;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    if address.to_string() != ADDRESS_DEFAULT {
        where_to.push_str(&format!(" --addr {address}"));
    }
    format!(
        "\nData is in {}. Try, in another terminal:\n\n  \
         {program} send --user alice --to bob{where_to} 'hello, bob'\n  \
         {program} recv --user bob --count 1{where_to}\n  \
         {token}\n",
        shell_word(data)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(address: &str) -> Ready {
        Ready {
            addr: address.parse().unwrap(),
        }
    }

    #[test]
    fn the_commands_to_try_say_no_more_than_they_must() {
        let text = next_commands("iris", DATA_DEFAULT, ready(ADDRESS_DEFAULT));
        assert!(
            text.contains("\n  iris send --user alice --to bob 'hello, bob'\n"),
            "{text}"
        );
        assert!(
            text.contains("\n  iris recv --user bob --count 1\n"),
            "{text}"
        );
        assert!(text.contains("\n  iris token --user alice\n"), "{text}");
    }

    #[test]
    fn the_commands_to_try_work_where_the_switch_is() {
        let text = next_commands("target/release/iris", "my data", ready("0.0.0.0:1234"));
        let place = "--data 'my data' --addr 127.0.0.1:1234";
        let recv = format!("target/release/iris recv --user bob --count 1 {place}\n");
        assert!(text.contains(&recv), "{text}");
        assert!(
            text.contains("iris token --user alice --data 'my data'\n"),
            "{text}"
        );
        assert!(next_commands("iris", "d", ready("[::]:9")).contains("--addr [::1]:9"));
    }
}
