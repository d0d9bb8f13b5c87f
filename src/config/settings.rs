//! The table of settings, and how a value is read from text or TOML.

use std::fmt;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use iris_proto::limits::{DEVICES_PER_USER_MAX, INBOX_ENTRIES_MAX};
use toml::de::DeValue;

use crate::auth::LEEWAY_S_MAX;

/// Cores that one process may use: there are 64 shards, so more would idle.
pub const CORES_MAX: usize = 64;
/// The number of the highest processor that can be named: what the kernel's affinity mask holds.
pub const CORE_NUMBER_MAX: usize = 1023;
/// Bytes of a text setting.
const TEXT_BYTES_MAX: usize = 256;

/// One row: a setting that exists.
#[derive(Debug)]
pub(super) struct Setting {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    pub default: Option<&'static str>,
    pub about: &'static str,
}

/// What a setting may be.
#[derive(Debug)]
pub(super) enum Kind {
    Address,
    Cores,
    Path,
    Text,
    Number { min: u64, max: u64 },
    Choice(&'static [&'static str]),
}

const fn row(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    about: &'static str,
) -> Setting {
    Setting {
        section,
        name,
        kind,
        default,
        about,
    }
}

const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max }
}

/// Everything that can be set. `[[auth.keys]]` is the one thing that is no row.
#[rustfmt::skip] // one setting, two lines
pub(super) const SETTINGS: &[Setting] = &[
    row("server", "listen", Kind::Address, Some("127.0.0.1:7447"),
        "address to listen on, IP:PORT; port 0 takes a free one"),
    row("server", "cores", Kind::Cores, Some("all"),
        "processors to run on, one executor each: \"all\" or a list such as [0, 1]"),
    row("server", "data", Kind::Path, Some("iris-data"),
        "data directory; made and formatted when absent"),
    row("server", "drain_timeout_ms", number(0, 600_000), Some("10000"),
        "milliseconds that a stopping switch waits for what is in flight"),
    row("tls", "certificate", Kind::Path, None,
        "certificate chain in PEM, the switch's own first"),
    row("tls", "key", Kind::Path, None,
        "the certificate's private key in PEM"),
    row("tls", "client_ca", Kind::Path, None,
        "authorities in PEM: clients must show a certificate of one of them; none, if not set"),
    row("auth", "issuer", Kind::Text, None,
        "what a token's `iss` must be; any, if not set"),
    row("auth", "audience", Kind::Text, Some("iris"),
        "what a token's `aud` must be or list"),
    row("auth", "leeway_s", number(0, LEEWAY_S_MAX), Some("10"),
        "seconds that the issuer's clock may differ from the switch's"),
    row("auth", "jwks", Kind::Path, None,
        "a JSON Web Key Set with further keys, beside [[auth.keys]]"),
    row("limits", "hello_timeout_ms", number(100, 60_000), Some("5000"),
        "milliseconds from accepting a connection to its valid Hello"),
    row("limits", "inbox_entries", number(1, 1_000_000), Some("10000"),
        "entries of one inbox that some device has not acknowledged"),
    row("limits", "connections_per_core", number(1, 1_000_000), Some("100000"),
        "sessions that one core holds; more are sent away, to come back"),
    row("limits", "handshakes_per_core", number(1, 1_000_000), Some("2048"),
        "connections of one core that have not logged in; more are closed as they come"),
    row("limits", "handshakes_per_address", number(0, 1_000_000), Some("512"),
        "those of them from one IPv4 address or IPv6 /64; 0: any number"),
    row("limits", "sessions_per_user", number(1, 1_000_000), Some("16"),
        "sessions of one user: its devices', and those that only send; more are told to come back later"),
    row("limits", "connections_per_address", number(0, 1_000_000), Some("1000"),
        "connections from one IPv4 address or IPv6 /64; more are closed as they come; 0: any number"),
    row("limits", "failed_logins_per_minute", number(0, 1_000_000), Some("60"),
        "logins from one address that may fail in a minute, and at once; further ones are told to wait; 0: any number"),
    row("limits", "failed_logins_per_user_per_minute", number(0, 1_000_000), Some("10"),
        "those of them in one user's name; 0: any number"),
    row("limits", "messages_per_s", number(0, 1_000_000), Some("5"),
        "messages a second that one user may send, all devices together; 0: any number"),
    row("limits", "messages_burst", number(1, 1_000_000), Some("100"),
        "messages that one user may send at once, after a silence"),
    row("limits", "write_timeout_ms", number(1_000, 600_000), Some("30000"),
        "milliseconds that one send to a client may take before it is cut"),
    row("limits", "frame_timeout_ms", number(1_000, 600_000), Some("30000"),
        "milliseconds from the first byte of a client's frame to its last"),
    row("storage", "segment_bytes", number(2 << 20, 1 << 30), Some("67108864"),
        "bytes of a log segment, a power of two; a data directory keeps what it was made with"),
    row("storage", "checkpoint_bytes", number(64 << 10, 1 << 40), Some("268435456"),
        "bytes that a log grows by between two checkpoints, at least; what a start has to read"),
    row("storage", "clean_bytes_per_s", number(0, 1 << 40), Some("4194304"),
        "bytes a second that cleaning reads of old segments, beside twice what is written"),
    row("storage", "retention_entries", number(0, 10_000_000), Some("10000"),
        "acknowledged entries that an inbox keeps for fetching"),
    row("storage", "retention_bytes", number(0, 1 << 40), Some("268435456"),
        "bytes of an inbox beyond which its oldest acknowledged entries leave"),
    row("storage", "retention_hours", number(0, 876_000), Some("2160"),
        "hours after which acknowledged entries leave"),
    row("admin", "listen", Kind::Address, None,
        "loopback address on which the switch can be asked over HTTP, such as 127.0.0.1:9464; none, if not set"),
    row("admin", "token_file", Kind::Path, None,
        "file with the token that who asks there must show; needed with admin.listen"),
    row("log", "format", Kind::Choice(&["human", "json"]), Some("human"),
        "how a line on standard error is written"),
    row("log", "level", Kind::Choice(&["off", "error", "warn", "info", "debug", "trace"]), Some("info"),
        "the least important line that is written"),
];

/// The settings that a running switch takes anew when it reloads, beside `[[auth.keys]]`. A change of
/// any other one needs a restart.
pub(super) const MOVABLE: [&str; 20] = [
    "server.drain_timeout_ms",
    "tls.certificate",
    "tls.key",
    "tls.client_ca",
    "auth.issuer",
    "auth.audience",
    "auth.leeway_s",
    "auth.jwks",
    "limits.hello_timeout_ms",
    "limits.connections_per_core",
    "limits.handshakes_per_core",
    "limits.handshakes_per_address",
    "limits.sessions_per_user",
    "limits.connections_per_address",
    "limits.failed_logins_per_minute",
    "limits.failed_logins_per_user_per_minute",
    "limits.messages_per_s",
    "limits.messages_burst",
    "limits.write_timeout_ms",
    "limits.frame_timeout_ms",
];

const _: () = {
    assert!(INBOX_ENTRIES_MAX == 10_000); // the defaults above are the protocol's
    assert!(DEVICES_PER_USER_MAX == 8);
};

/// The row of `section.name`.
pub(super) fn find(key: &str) -> Option<usize> {
    let (section, name) = key.split_once('.')?;
    SETTINGS
        .iter()
        .position(|setting| setting.section == section && setting.name == name)
}

/// The table for people: for `--help`.
#[must_use]
pub fn describe() -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in SETTINGS {
        if setting.section != section {
            section = setting.section;
            let _ = writeln!(text, "  [{section}]");
        }
        let default = setting
            .default
            .map_or(String::new(), |default| format!(" [{default}]"));
        let _ = writeln!(text, "  {:<20} {}{default}", setting.name, setting.about);
    }
    text
}

impl Setting {
    pub fn key(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    pub fn variable(&self) -> String {
        format!("IRIS_{}__{}", self.section, self.name).to_ascii_uppercase()
    }
}

/// The processors to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Every one that the process may use.
    All,
    /// These: 1 to [`CORES_MAX`], none twice.
    List(Vec<usize>),
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::List(cores) => {
                let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
                f.write_str(&cores.join(","))
            }
        }
    }
}

/// A value of a setting, within its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Address(SocketAddr),
    Cores(Cores),
    Path(PathBuf),
    Text(String),
    Number(u64),
    Choice(&'static str),
}

/// As TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "\"{address}\""),
            Self::Cores(Cores::All) => write!(f, "\"all\""),
            Self::Cores(Cores::List(cores)) => write!(f, "{cores:?}"),
            Self::Path(path) => f.write_str(&quoted(&path.to_string_lossy())),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Number(number) => write!(f, "{number}"),
            Self::Choice(choice) => write!(f, "\"{choice}\""),
        }
    }
}

pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Who said a value, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody: it is the default.
    Default,
    /// `--dev`.
    Dev,
    /// A place in the file, counted from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The character in the line.
        column: usize,
    },
    /// A variable.
    Environment(String),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::Dev => write!(f, "--dev"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// What is wrong with a value. Reads on after the setting's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Complaint {
    /// Another type than the setting's.
    #[error("must be {expected}, not {found}")]
    WrongType {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A number out of its bounds.
    #[error("must be {min} to {max}, not {found}")]
    OutOfRange {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
        /// What it is.
        found: String,
    },
    /// None of the possible words.
    #[error("must be one of {choices}, not `{found}`")]
    NotAChoice {
        /// The words.
        choices: String,
        /// What it is.
        found: String,
    },
    /// No address.
    #[error("must be an address such as 127.0.0.1:7447 or [::1]:7447, not `{found}`")]
    NotAnAddress {
        /// What it is.
        found: String,
    },
    /// No list of cores.
    #[error("must be \"all\" or numbers of processors such as 0,1 or 0-3, not `{found}`")]
    NotCores {
        /// What it is.
        found: String,
    },
    /// A core twice.
    #[error("names core {core} twice; an executor needs a core of its own")]
    CoreTwice {
        /// The core.
        core: usize,
    },
    /// More cores than can be used.
    #[error("names {found} cores; a switch has 64 shards, so at most {CORES_MAX} cores have work")]
    TooManyCores {
        /// Cores named.
        found: usize,
    },
    /// Empty, or longer than any such value.
    #[error("must have 1 to {TEXT_BYTES_MAX} bytes, it has {len}")]
    BadLength {
        /// Its bytes.
        len: usize,
    },
    /// An address that others than this machine can reach.
    #[error(
        "must be a loopback address such as 127.0.0.1:9464, not `{found}`: what is said there is not \
         encrypted; let a proxy with TLS in front of it serve other machines"
    )]
    NotLoopback {
        /// What it is.
        found: SocketAddr,
    },
    /// Not UTF-8.
    #[error("is not UTF-8 text; set it to text")]
    NotText,
}

impl Kind {
    /// Reads a value as flags, variables and defaults write it.
    pub fn read_text(&self, text: &str) -> Result<Value, Complaint> {
        let found = || text.to_owned();
        match self {
            Self::Address => address(text).map(Value::Address),
            Self::Cores => cores_from_text(text).map(Value::Cores),
            Self::Path => bounded(text).map(|text| Value::Path(text.into())),
            Self::Text => bounded(text).map(|text| Value::Text(text.into())),
            Self::Number { min, max } => match text.parse::<u64>() {
                Ok(number) if (*min..=*max).contains(&number) => Ok(Value::Number(number)),
                Err(_) if text.parse::<i128>().is_err() => Err(Complaint::WrongType {
                    expected: "a whole number",
                    found: format!("`{text}`"),
                }),
                _ => Err(Complaint::OutOfRange {
                    min: *min,
                    max: *max,
                    found: found(),
                }),
            },
            Self::Choice(choices) => match choices.iter().find(|choice| **choice == text) {
                Some(choice) => Ok(Value::Choice(choice)),
                None => Err(Complaint::NotAChoice {
                    choices: choices.join(", "),
                    found: found(),
                }),
            },
        }
    }

    /// Reads a value as the file writes it.
    pub fn read_toml(&self, value: &DeValue<'_>) -> Result<Value, Complaint> {
        match (self, value) {
            (Self::Number { min, max }, DeValue::Integer(integer)) => {
                let number = u64::from_str_radix(integer.as_str(), integer.radix());
                match number {
                    Ok(number) if (*min..=*max).contains(&number) => Ok(Value::Number(number)),
                    _ => {
                        let found = integer.to_string();
                        Err(Complaint::OutOfRange {
                            min: *min,
                            max: *max,
                            found,
                        })
                    }
                }
            }
            (Self::Cores, DeValue::Array(items)) => {
                let mut cores = Vec::new();
                for item in items.iter() {
                    cores.push(core_from_toml(item.get_ref())?);
                }
                check_cores(cores).map(Value::Cores)
            }
            (Self::Number { .. }, other) => Err(wrong_type(self, other)),
            (_, DeValue::String(text)) => self.read_text(text),
            (_, other) => Err(wrong_type(self, other)),
        }
    }

    const fn expected(&self) -> &'static str {
        match self {
            Self::Address => "an address in quotes",
            Self::Cores => "\"all\" or a list of numbers",
            Self::Path => "a path in quotes",
            Self::Text | Self::Choice(_) => "a text in quotes",
            Self::Number { .. } => "a whole number",
        }
    }
}

fn wrong_type(kind: &Kind, found: &DeValue<'_>) -> Complaint {
    let name = found.type_str();
    let article = if name.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    };
    Complaint::WrongType {
        expected: kind.expected(),
        found: format!("{article} {name}"),
    }
}

fn bounded(text: &str) -> Result<&str, Complaint> {
    let len = text.len();
    if len == 0 || len > TEXT_BYTES_MAX {
        return Err(Complaint::BadLength { len });
    }
    Ok(text)
}

fn address(text: &str) -> Result<SocketAddr, Complaint> {
    let local = text
        .strip_prefix("localhost:")
        .and_then(|port| port.parse().ok());
    match local {
        Some(port) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().map_err(|_| Complaint::NotAnAddress {
            found: text.to_owned(),
        }),
    }
}

fn core_from_toml(value: &DeValue<'_>) -> Result<usize, Complaint> {
    let DeValue::Integer(integer) = value else {
        return Err(Complaint::NotCores {
            found: format!("a list with a {}", value.type_str()),
        });
    };
    let core = usize::from_str_radix(integer.as_str(), integer.radix()).ok();
    core.filter(|core| *core <= CORE_NUMBER_MAX)
        .ok_or_else(|| Complaint::NotCores {
            found: integer.to_string(),
        })
}

/// `all`, or numbers and ranges with commas between.
fn cores_from_text(text: &str) -> Result<Cores, Complaint> {
    if text == "all" {
        return Ok(Cores::All);
    }
    let not_cores = || Complaint::NotCores {
        found: text.to_owned(),
    };
    let number = |text: &str| {
        text.trim()
            .parse::<usize>()
            .ok()
            .filter(|n| *n <= CORE_NUMBER_MAX)
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first = number(first).ok_or_else(not_cores)?;
        let last = number(last)
            .filter(|last| *last >= first)
            .ok_or_else(not_cores)?;
        cores.extend(first..=last);
    }
    check_cores(cores)
}

fn check_cores(cores: Vec<usize>) -> Result<Cores, Complaint> {
    if cores.is_empty() {
        return Err(Complaint::NotCores {
            found: "an empty list".into(),
        });
    }
    for (index, core) in cores.iter().enumerate() {
        if cores[..index].contains(core) {
            return Err(Complaint::CoreTwice { core: *core });
        }
    }
    if cores.len() > CORES_MAX {
        return Err(Complaint::TooManyCores { found: cores.len() });
    }
    Ok(Cores::List(cores))
}

/// The candidate that `name` is probably a misspelling of.
pub(super) fn nearest(name: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    const EDITS_MAX: usize = 3;
    let scored = candidates.map(|candidate| (edits(name, &candidate), candidate));
    let best = scored.min_by_key(|(edits, _)| *edits)?;
    (best.0 <= EDITS_MAX.min(name.len() / 2)).then_some(best.1)
}

/// Insertions, deletions and replacements from one to the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, left) in from.chars().enumerate() {
        let mut diagonal = line;
        row[0] = line + 1;
        for (column, right) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}
