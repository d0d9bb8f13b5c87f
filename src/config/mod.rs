//! One configuration, from four places.
//!
//! ```text
//!  flag  >  IRIS_SECTION__KEY in the environment  >  TOML file  >  default      the first one wins
//! ```
//!
//! - Every setting is a row of `settings::SETTINGS`: section, name, kind, bounds, default, meaning. What
//!   is not there does not exist: an unknown key is an error that names line and column, and so is a
//!   value of the wrong type or out of range.
//! - An environment variable that begins with `IRIS_` and has two underscores after that (`IRIS_A__B`)
//!   claims to be a setting, so it must name one; a misspelt one is an error, not a silence. All other
//!   variables are nobody's business here.
//! - A relative path in the file is relative to the file; in a flag or variable, to the working directory.
//! - `[[auth.keys]]`, the list of keys, comes from the file only (with `--dev`: from the development
//!   identity, see `runtime::dev`). `auth.jwks` names a set of further ones.
//! - A running switch can reload: it takes the settings of `settings::MOVABLE` and the keys anew.
//!
//! `assemble` is a pure function of its inputs; `load` reads the file and the environment for it, and
//! `keyring` reads the key files.

mod admin;
mod exposed;
mod file;
mod settings;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use admin::{Admin, TOKEN_BYTES_MAX, TOKEN_BYTES_MIN};
pub use exposed::Exposed;
use exposed::What;
pub use settings::Complaint;
pub use settings::{CORES_MAX, Cores, Source, describe};
use settings::{MOVABLE, SETTINGS, Setting, Value, find};

use crate::auth::{
    Algorithm, JWKS_BYTES_MAX, JwksError, Key, KeyError, KeySet, Keyring, Rules, Skipped,
};
use crate::runtime::dev::{self, DevFiles};
use crate::shard::retention::Retention;
use zeroize::Zeroizing;

const MS_PER_HOUR: u64 = 60 * 60 * 1_000;

/// Bytes of a configuration file, at most. Over it: an error, nothing is parsed.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of a key file, at most. Over it: an error.
pub const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

const _: () = assert!(KEY_FILE_BYTES_MAX <= JWKS_BYTES_MAX as u64);

/// What the switch runs with. Every value is within its bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--dev`: certificate and keys are the development identity under `server.data`.
    pub dev: bool,
    /// `[server]`
    pub server: Server,
    /// `[tls]`
    pub tls: Tls,
    /// `[auth]`
    pub auth: Auth,
    /// `[limits]`
    pub limits: Limits,
    /// `[storage]`.
    pub storage: Storage,
    /// `[admin]`, if it says where to listen.
    pub admin: Option<Admin>,
    /// `[log]`
    pub log: Log,
    /// The file that it was read from.
    file: Option<PathBuf>,
    settled: Settled,
}

/// `[server]`: where it runs.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The processors to run on, one executor each.
    pub cores: Cores,
    /// The data directory.
    pub data: PathBuf,
    /// Milliseconds that a stopping switch waits for what is in flight.
    pub drain_timeout_ms: u64,
}

/// `[tls]`: who the switch is.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate chain in PEM, the switch's own first.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
    /// Authorities in PEM, of one of which a client must show a certificate. `None`: clients need none.
    pub client_ca: Option<PathBuf>,
}

impl Tls {
    fn settled(settled: &Settled) -> Result<Self, ConfigError> {
        Ok(Self {
            certificate: settled.path("tls.certificate")?,
            key: settled.path("tls.key")?,
            client_ca: settled.optional_path("tls.client_ca")?,
        })
    }
}

/// `[auth]`: whom the switch believes.
#[derive(Clone, Debug)]
pub struct Auth {
    /// What a token must say about issuer and audience, and how far clocks may differ.
    pub rules: Rules,
    /// The keys that tokens may be signed with.
    pub keys: Vec<KeyFile>,
    /// A JSON Web Key Set with further ones.
    pub jwks: Option<PathBuf>,
}

/// One `[[auth.keys]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// The name by which a token's header asks for it.
    pub kid: String,
    /// The only algorithm that it may be used with.
    pub algorithm: Algorithm,
    /// HS256: the secret, whose one final newline does not count. Else: the public key in PEM.
    pub file: PathBuf,
}

/// `[limits]`: bounds that an operator may move. Those of the protocol are in `iris_proto::limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Milliseconds from accepting a connection to its valid Hello.
    pub hello_timeout_ms: u64,
    /// Entries of one inbox that some device has not acknowledged.
    pub inbox_entries: u64,
    /// Sessions that one core holds.
    pub connections_per_core: u64,
    /// Connections of one core that have not logged in.
    pub handshakes_per_core: u64,
    /// Those of them from one address; 0: any number.
    pub handshakes_per_address: u64,
    /// Sessions of one user.
    pub sessions_per_user: u64,
    /// Connections from one address; 0: any number.
    pub connections_per_address: u64,
    /// Logins from one address that may fail in a minute, and at once; 0: any number.
    pub failed_logins_per_minute: u64,
    /// Those of them that say they are of one user; 0: any number.
    pub failed_logins_per_user_per_minute: u64,
    /// Messages a second that one user may send; 0: any number.
    pub messages_per_s: u64,
    /// Messages that one user may send at once.
    pub messages_burst: u64,
    /// Milliseconds that one send to a client may take.
    pub write_timeout_ms: u64,
    /// Milliseconds from the first byte of a client's frame to its last.
    pub frame_timeout_ms: u64,
}

/// `[storage]`: what is kept, and how a log is kept short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Bytes of a segment of a new data directory.
    pub segment_bytes: u64,
    /// Bytes that a log grows by between two checkpoints, at least.
    pub checkpoint_bytes: u64,
    /// Bytes a second that cleaning reads of old segments, beside twice what is written.
    pub clean_bytes_per_s: u64,
    /// How long acknowledged entries stay.
    pub retention: Retention,
}

/// `[log]`: what the switch writes to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: &'static str,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for a person.
    Human,
    /// One JSON object a line.
    Json,
}

/// One setting from the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The setting, as `section.name`.
    pub key: &'static str,
    /// The flag, as the user typed it.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// Everything that a configuration is made from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inputs<'a> {
    /// The file's path and text.
    pub file: Option<(&'a Path, &'a str)>,
    /// Environment variables; those that are not settings are ignored.
    pub environment: &'a [(String, String)],
    /// Flags.
    pub flags: &'a [Flag],
    /// Whether the development identity stands in for certificate and keys.
    pub dev: bool,
}

/// Why there is no configuration. One line each: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {path} ({source}); check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{path} has more than {max} bytes, so it is not what belongs there; check the path")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        max: u64,
    },
    /// Not TOML.
    #[error("{place}: this is not TOML ({why}); correct the line")]
    Syntax {
        /// Where.
        place: Source,
        /// What the parser said.
        why: String,
    },
    /// A key or section that does not exist.
    #[error("{place}: unknown key `{key}`; {remedy}")]
    UnknownKey {
        /// Where.
        place: Source,
        /// What it says.
        key: String,
        /// What it may have meant.
        remedy: String,
    },
    /// A value that cannot be.
    #[error("{place}: `{key}` {complaint}")]
    BadValue {
        /// Where.
        place: Source,
        /// The setting.
        key: String,
        /// What is wrong and what is right.
        complaint: Complaint,
    },
    /// A setting without which the switch cannot start.
    #[error("`{key}` is not set; {remedy}, or try the switch with `iris serve --dev`")]
    Missing {
        /// The setting.
        key: String,
        /// How to set it.
        remedy: String,
    },
    /// The keys were read and are not usable.
    #[error("[[auth.keys]]: {0}")]
    Key(#[from] KeyError),
    /// The admin token was read and is not usable.
    #[error("admin.token_file {path} {why}; make one with `openssl rand -hex 32`")]
    AdminToken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key set was read and is not usable.
    #[error("{path}: {source}")]
    Jwks {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: JwksError,
    },
}

/// What each row of [`SETTINGS`] is, in the same order, and where that was said.
#[derive(Clone, Debug)]
struct Settled(Vec<Option<(Value, Source)>>);

impl Settled {
    fn defaults() -> Result<Self, ConfigError> {
        let mut settled = Self(vec![None; SETTINGS.len()]);
        for (index, setting) in SETTINGS.iter().enumerate() {
            if let Some(text) = setting.default {
                settled.put_text(index, text, Source::Default)?;
            }
        }
        Ok(settled)
    }

    fn put(&mut self, index: usize, value: Value, source: Source) {
        self.0[index] = Some((value, source));
    }

    fn put_text(&mut self, index: usize, text: &str, source: Source) -> Result<(), ConfigError> {
        let setting = &SETTINGS[index];
        match setting.kind.read_text(text) {
            Ok(value) => self.put(index, value, source),
            Err(complaint) => {
                let key = setting.key();
                return Err(ConfigError::BadValue {
                    place: source,
                    key,
                    complaint,
                });
            }
        }
        Ok(())
    }

    fn get(&self, key: &'static str) -> Option<&Value> {
        let index = find(key);
        assert!(
            index.is_some(),
            "the code asks for `{key}`, which is no setting"
        );
        self.0[index?].as_ref().map(|(value, _)| value)
    }

    fn need(&self, key: &'static str) -> Result<&Value, ConfigError> {
        self.get(key).ok_or_else(|| missing(key))
    }

    fn number(&self, key: &'static str) -> Result<u64, ConfigError> {
        match self.need(key)? {
            Value::Number(number) => Ok(*number),
            other => panic!("`{key}` is a number in the table, not {other:?}"),
        }
    }

    fn path(&self, key: &'static str) -> Result<PathBuf, ConfigError> {
        match self.need(key)? {
            Value::Path(path) => Ok(path.clone()),
            other => panic!("`{key}` is a path in the table, not {other:?}"),
        }
    }

    fn optional_path(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        self.get(key).map(|_| self.path(key)).transpose()
    }

    fn text(&self, key: &'static str) -> Option<String> {
        self.get(key).map(|value| match value {
            Value::Text(text) => text.clone(),
            other => panic!("`{key}` is a text in the table, not {other:?}"),
        })
    }

    fn choice(&self, key: &'static str) -> Result<&'static str, ConfigError> {
        match self.need(key)? {
            Value::Choice(choice) => Ok(choice),
            other => panic!("`{key}` is a choice in the table, not {other:?}"),
        }
    }
}

fn missing(key: &str) -> ConfigError {
    let (section, name) = key.split_once('.').unwrap_or(("", key));
    let remedy = format!("set `{name}` under [{section}] in the file");
    ConfigError::Missing {
        key: key.to_owned(),
        remedy,
    }
}

impl Config {
    /// The configuration that `inputs` add up to.
    pub fn assemble(inputs: &Inputs<'_>) -> Result<Self, ConfigError> {
        let mut settled = Settled::defaults()?;
        let mut keys = Vec::new();
        if let Some((path, text)) = inputs.file {
            keys = file::read(path, text, &mut settled)?;
        }
        for (name, value) in inputs.environment {
            take_variable(name, value, &mut settled)?;
        }
        for flag in inputs.flags {
            let index = find(flag.key);
            assert!(
                index.is_some(),
                "flag {} sets `{}`, which is no setting",
                flag.name,
                flag.key
            );
            let Some(index) = index else { continue };
            settled.put_text(index, &flag.value, Source::Flag(flag.name))?;
        }
        if inputs.dev {
            keys = settle_dev(&mut settled)?;
        }
        if keys.is_empty() && settled.get("auth.jwks").is_none() {
            let remedy = "add kid, alg and file of a key under [[auth.keys]] in the file".into();
            return Err(ConfigError::Missing {
                key: "auth.keys".into(),
                remedy,
            });
        }
        Self::from_settled(settled, keys, inputs.dev)
    }

    fn from_settled(settled: Settled, keys: Vec<KeyFile>, dev: bool) -> Result<Self, ConfigError> {
        let listen = match settled.need("server.listen")? {
            Value::Address(address) => *address,
            other => panic!("`server.listen` is an address in the table, not {other:?}"),
        };
        let cores = match settled.need("server.cores")? {
            Value::Cores(cores) => cores.clone(),
            other => panic!("`server.cores` is a list of cores in the table, not {other:?}"),
        };
        let rules = Rules {
            issuer: settled.text("auth.issuer"),
            audience: settled
                .text("auth.audience")
                .ok_or_else(|| missing("auth.audience"))?,
            leeway_s: settled.number("auth.leeway_s")?,
        };
        let json = settled.choice("log.format")? == "json";
        Ok(Self {
            dev,
            server: Server {
                listen,
                cores,
                data: settled.path("server.data")?,
                drain_timeout_ms: settled.number("server.drain_timeout_ms")?,
            },
            tls: Tls::settled(&settled)?,
            auth: Auth {
                rules,
                keys,
                jwks: settled.optional_path("auth.jwks")?,
            },
            limits: limits(&settled)?,
            storage: Storage {
                segment_bytes: settled.number("storage.segment_bytes")?,
                checkpoint_bytes: settled.number("storage.checkpoint_bytes")?,
                clean_bytes_per_s: settled.number("storage.clean_bytes_per_s")?,
                retention: Retention {
                    entries: settled.number("storage.retention_entries")?,
                    bytes: settled.number("storage.retention_bytes")?,
                    age_ms: settled.number("storage.retention_hours")? * MS_PER_HOUR,
                },
            },
            admin: Admin::settled(&settled)?,
            log: Log {
                format: if json {
                    LogFormat::Json
                } else {
                    LogFormat::Human
                },
                level: settled.choice("log.level")?,
            },
            file: None,
            settled,
        })
    }

    /// Reads `file` and the environment of this process, and assembles.
    pub fn load(file: Option<&Path>, flags: &[Flag], dev: bool) -> Result<Self, ConfigError> {
        let text = file
            .map(|path| read_bounded(path, FILE_BYTES_MAX))
            .transpose()?;
        let text = text.map(String::from_utf8).transpose().map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let path = file.unwrap_or(Path::new("")).to_owned();
            let line = 1 + error.as_bytes()[..at]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            let place = Source::File {
                path,
                line,
                column: 1,
            };
            ConfigError::Syntax {
                place,
                why: "it is not UTF-8".into(),
            }
        })?;
        let environment = environment()?;
        let mut config = Self::assemble(&Inputs {
            file: file.zip(text.as_deref()),
            environment: &environment,
            flags,
            dev,
        })?;
        config.file = file.map(Path::to_owned);
        Ok(config)
    }

    /// The configuration of `iris serve --dev` with nothing from file or environment: for tests and
    /// for whoever embeds the switch. `runtime::dev::ensure` makes the files that it names.
    pub fn dev(data: &Path, listen: SocketAddr, cores: Cores) -> Result<Self, ConfigError> {
        let flag = |key, name, value| Flag { key, name, value };
        let flags = [
            flag("server.listen", "--listen", listen.to_string()),
            flag("server.cores", "--cores", cores.to_string()),
        ];
        let mut config = Self::assemble(&Inputs {
            flags: &flags,
            dev: true,
            ..Inputs::default()
        })?;
        // A path need not be text, so it does not go through the flags.
        let files = DevFiles::at(data);
        config.server.data = data.to_owned();
        config.tls = Tls {
            certificate: files.certificate,
            key: files.key,
            client_ca: None,
        };
        config.auth.keys = vec![dev_key(files.token_verify)];
        Ok(config)
    }

    /// Reads the key files and the key set; with what was passed over in the set.
    pub fn keyring(&self) -> Result<(Keyring, Vec<Skipped>), ConfigError> {
        let mut keys = Vec::with_capacity(self.auth.keys.len());
        for KeyFile {
            kid,
            algorithm,
            file,
        } in &self.auth.keys
        {
            let mut material = read_secret(file)?;
            if *algorithm == Algorithm::Hs256 {
                strip_newline(&mut material);
            }
            keys.push(Key {
                kid: kid.clone(),
                algorithm: *algorithm,
                material,
            });
        }
        let mut set = KeySet::default();
        if let Some(path) = &self.auth.jwks {
            let text = read_secret(path)?;
            set = KeySet::read(&text).map_err(|source| ConfigError::Jwks {
                path: path.clone(),
                source,
            })?;
        }
        let skipped = std::mem::take(&mut set.skipped);
        let keyring = Keyring::new(keys, set, self.auth.rules.clone())?;
        Ok((keyring, skipped))
    }

    /// The files whose permissions are too loose for what is in them, in order of their settings.
    #[must_use]
    pub fn exposed(&self) -> Vec<Exposed> {
        let mut files = vec![(&self.tls.key, What::PrivateKey)];
        files.extend(self.file.iter().map(|file| (file, What::Trusted)));
        files.push((&self.tls.certificate, What::Trusted));
        files.extend(self.tls.client_ca.iter().map(|file| (file, What::Trusted)));
        files.extend(self.auth.keys.iter().map(|key| match key.algorithm {
            Algorithm::Hs256 => (&key.file, What::Secret),
            _ => (&key.file, What::Trusted),
        }));
        let admin = self.admin.iter();
        files.extend(admin.map(|admin| (&admin.token_file, What::AdminToken)));
        files.extend(self.auth.jwks.iter().map(|file| {
            let text = read_secret(file).ok();
            let set = text.and_then(|text| KeySet::read(&text).ok());
            let has_secrets = set.is_some_and(|set| set.has_secrets());
            (
                file,
                if has_secrets {
                    What::Secret
                } else {
                    What::Trusted
                },
            )
        }));
        let files = files.into_iter();
        files
            .filter_map(|(path, what)| Exposed::look(path, what))
            .collect()
    }

    /// The settings in which `newer` differs and which a running switch cannot take anew.
    #[must_use]
    pub fn fixed_changes(&self, newer: &Self) -> Vec<String> {
        let rows = SETTINGS.iter().zip(&self.settled.0).zip(&newer.settled.0);
        let value = |settled: &Option<(Value, Source)>| settled.as_ref().map(|it| it.0.clone());
        rows.filter(|((_, old), new)| value(old) != value(new))
            .map(|((setting, _), _)| setting.key())
            .filter(|key| !MOVABLE.contains(&key.as_str()))
            .collect()
    }
}

fn limits(settled: &Settled) -> Result<Limits, ConfigError> {
    Ok(Limits {
        hello_timeout_ms: settled.number("limits.hello_timeout_ms")?,
        inbox_entries: settled.number("limits.inbox_entries")?,
        connections_per_core: settled.number("limits.connections_per_core")?,
        handshakes_per_core: settled.number("limits.handshakes_per_core")?,
        handshakes_per_address: settled.number("limits.handshakes_per_address")?,
        sessions_per_user: settled.number("limits.sessions_per_user")?,
        connections_per_address: settled.number("limits.connections_per_address")?,
        failed_logins_per_minute: settled.number("limits.failed_logins_per_minute")?,
        failed_logins_per_user_per_minute: settled
            .number("limits.failed_logins_per_user_per_minute")?,
        messages_per_s: settled.number("limits.messages_per_s")?,
        messages_burst: settled.number("limits.messages_burst")?,
        write_timeout_ms: settled.number("limits.write_timeout_ms")?,
        frame_timeout_ms: settled.number("limits.frame_timeout_ms")?,
    })
}

/// Writes the effective configuration as TOML, each value with its source.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut section = "";
        for (setting, settled) in SETTINGS.iter().zip(&self.settled.0) {
            if setting.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = setting.section;
                writeln!(f, "{gap}[{section}]")?;
            }
            let Setting { name, .. } = setting;
            match settled {
                Some((value, source)) => writeln!(f, "{name} = {value}  # {source}")?,
                None => writeln!(f, "# {name} is not set")?,
            }
        }
        for KeyFile {
            kid,
            algorithm,
            file,
        } in &self.auth.keys
        {
            let (kid, file) = (
                settings::quoted(kid),
                settings::quoted(&file.to_string_lossy()),
            );
            write!(
                f,
                "\n[[auth.keys]]\nkid = {kid}\nalg = \"{algorithm}\"\nfile = {file}\n"
            )?;
        }
        Ok(())
    }
}

/// The environment's part that claims to be settings.
fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let mut settings = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if !claims_to_be_a_setting(&name) {
            continue;
        }
        let place = || Source::Environment(name.clone());
        let value = value.into_string().map_err(|_| ConfigError::BadValue {
            place: place(),
            key: name.clone(),
            complaint: Complaint::NotText,
        })?;
        settings.push((name, value));
    }
    settings.sort();
    Ok(settings)
}

fn claims_to_be_a_setting(name: &str) -> bool {
    name.strip_prefix("IRIS_")
        .is_some_and(|rest| rest.contains("__"))
}

fn take_variable(name: &str, value: &str, settled: &mut Settled) -> Result<(), ConfigError> {
    if !claims_to_be_a_setting(name) {
        return Ok(());
    }
    let place = Source::Environment(name.to_owned());
    match SETTINGS
        .iter()
        .position(|setting| setting.variable() == name)
    {
        Some(index) => settled.put_text(index, value, place),
        None => {
            let known = SETTINGS.iter().map(Setting::variable);
            let remedy = match settings::nearest(name, known) {
                Some(near) => format!("did you mean {near}?"),
                None => "unset it, or see `iris serve --help` for the settings".to_owned(),
            };
            Err(ConfigError::UnknownKey {
                place,
                key: name.to_owned(),
                remedy,
            })
        }
    }
}

/// Points what is still open to the development identity. Whoever develops sends from one machine, and
/// measures: nothing is limited by user or address then, if nobody says so.
fn settle_dev(settled: &mut Settled) -> Result<Vec<KeyFile>, ConfigError> {
    let files = DevFiles::at(&settled.path("server.data")?);
    let values = [
        ("tls.certificate", Value::Path(files.certificate)),
        ("tls.key", Value::Path(files.key)),
        ("auth.issuer", Value::Text(dev::ISSUER.to_owned())),
        ("limits.messages_per_s", Value::Number(0)),
        ("limits.connections_per_address", Value::Number(0)),
        ("limits.handshakes_per_address", Value::Number(0)),
        ("limits.failed_logins_per_minute", Value::Number(0)),
        ("limits.failed_logins_per_user_per_minute", Value::Number(0)),
    ];
    for (key, value) in values {
        let is_open = |index: &usize| match &settled.0[*index] {
            None | Some((_, Source::Default)) => true,
            Some(_) => false,
        };
        let open = find(key).filter(is_open);
        if let Some(index) = open {
            settled.put(index, value, Source::Dev);
        }
    }
    Ok(vec![dev_key(files.token_verify)])
}

fn dev_key(file: PathBuf) -> KeyFile {
    KeyFile {
        kid: dev::KID.to_owned(),
        algorithm: Algorithm::EdDsa,
        file,
    }
}

/// Takes one final newline off a secret: editors and `echo` put it there.
pub fn strip_newline(secret: &mut Vec<u8>) {
    if secret.last() == Some(&b'\n') {
        secret.pop();
    }
}

/// A file's bytes, unless it is larger than a file of its kind can be.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    read_into(&mut bytes, path, max)?;
    Ok(bytes)
}

/// A key file's bytes, which are wiped when they go. Room for all is taken at once, so that none are left
/// behind where the buffer was before it grew.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let room = usize::try_from(KEY_FILE_BYTES_MAX + 1).unwrap_or(usize::MAX);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    read_into(&mut bytes, path, KEY_FILE_BYTES_MAX)?;
    Ok(bytes)
}

fn read_into(bytes: &mut Vec<u8>, path: &Path, max: u64) -> Result<(), ConfigError> {
    use io::Read;
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    fs::File::open(path)
        .map_err(failed)?
        .take(max + 1)
        .read_to_end(bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            max,
        });
    }
    Ok(())
}
