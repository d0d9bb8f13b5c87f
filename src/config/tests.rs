//! Where each value comes from, and what is refused where.

use super::settings::Kind;
use super::*;
use crate::auth::AuthError;

const PATH: &str = "/etc/iris/iris.toml";

/// The least that starts a switch.
const LEAST: &str = r#"
[tls]
certificate = "certificate.pem"
key = "/secret/key.pem"
[[auth.keys]]
kid = "one"
alg = "EdDSA"
file = "one.pem"
"#;

fn assemble(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[Flag],
) -> Result<Config, ConfigError> {
    let pairs = environment
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    let environment: Vec<_> = pairs.collect();
    let file = Some((Path::new(PATH), text));
    Config::assemble(&Inputs {
        file,
        environment: &environment,
        flags,
        dev: false,
    })
}

fn refused(text: &str) -> String {
    let error = assemble(text, &[], &[]).unwrap_err().to_string();
    assert!(!error.contains('\n'), "more than one line: {error}");
    error
}

fn listen_flag(value: &str) -> Flag {
    Flag {
        key: "server.listen",
        name: "--listen",
        value: value.into(),
    }
}

/// R: E-5
#[test]
fn the_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let file = format!("[server]\nlisten = \"127.0.0.1:2\"\n{LEAST}");
    let variable = [("IRIS_SERVER__LISTEN", "127.0.0.1:3")];
    let flag = [listen_flag("127.0.0.1:4")];
    let port = |config: Result<Config, ConfigError>| config.unwrap().server.listen.port();
    assert_eq!(port(assemble(LEAST, &[], &[])), 7447);
    assert_eq!(port(assemble(&file, &[], &[])), 2);
    assert_eq!(port(assemble(&file, &variable, &[])), 3);
    assert_eq!(port(assemble(&file, &variable, &flag)), 4);
}

/// R: E-5
#[test]
fn an_unknown_key_is_named_with_line_and_column() {
    let error = refused("[server]\nlisten = \"127.0.0.1:1\"\n  lisen = 1\n");
    assert_eq!(
        error,
        "/etc/iris/iris.toml:3:3: unknown key `server.lisen`; did you mean `server.listen`?"
    );
    let error = refused("[limits]\ncolour = 1");
    assert!(
        error.starts_with("/etc/iris/iris.toml:2:1: unknown key `limits.colour`"),
        "{error}"
    );
    assert!(error.contains("[limits] has hello_timeout_ms"), "{error}");
    let error = refused("\n[sever]\n");
    assert_eq!(
        error,
        "/etc/iris/iris.toml:2:2: unknown key `sever`; did you mean [server]?"
    );
    let error = refused("[[auth.keys]]\nkid = \"a\"\nalgorithm = \"x\"");
    assert!(error.starts_with("/etc/iris/iris.toml:3:1: unknown key `auth.keys.algorithm`"));
}

/// What a file says, and what is said of it after its path.
const BAD_VALUES: &[(&str, &str)] = &[
    (
        "[server]\nlisten = 7447",
        "2:10: `server.listen` must be an address in quotes, not an integer",
    ),
    (
        "[server]\nlisten = \"x\"",
        "2:10: `server.listen` must be an address such as",
    ),
    (
        "[server]\ncores = \"some\"",
        "2:9: `server.cores` must be \"all\" or numbers",
    ),
    (
        "[server]\ncores = [0, 0]",
        "2:9: `server.cores` names core 0 twice",
    ),
    ("[server]\ncores = []", "2:9: `server.cores` must be"),
    ("[server]\ncores = [-1]", "2:9: `server.cores` must be"),
    ("[server]\ncores = [99999]", "2:9: `server.cores` must be"),
    ("[server]\ncores = [\"0\"]", "2:9: `server.cores` must be"),
    (
        "[server]\ncores = \"0-64\"",
        "2:9: `server.cores` names 65 cores",
    ),
    (
        "[server]\ndata = \"\"",
        "2:8: `server.data` must have 1 to 256 bytes",
    ),
    (
        "[auth]\nleeway_s = 301",
        "2:12: `auth.leeway_s` must be 0 to 300, not 301",
    ),
    (
        "[auth]\nleeway_s = -1",
        "2:12: `auth.leeway_s` must be 0 to 300, not -1",
    ),
    (
        "[auth]\nleeway_s = \"5\"",
        "2:12: `auth.leeway_s` must be a whole number, not a string",
    ),
    (
        "[auth]\nleeway_s = 1.5",
        "2:12: `auth.leeway_s` must be a whole number, not a float",
    ),
    (
        "[log]\nlevel = \"loud\"",
        "2:9: `log.level` must be one of off, error, warn",
    ),
    (
        "[log]\nlevel = true",
        "2:9: `log.level` must be a text in quotes, not a boolean",
    ),
    (
        "server = 1",
        "1:10: this is not TOML (`server` is a section; write [server])",
    ),
    (
        "[auth]\nkeys = 1",
        "2:8: this is not TOML (`auth.keys` is a list of tables",
    ),
    (
        "[[auth.keys]]\nalg = \"none\"\nkid = \"a\"\nfile = \"f\"",
        "2:7: `auth.keys.alg` must be one",
    ),
    ("[server\n", "1:8: this is not TOML"),
    ("[server]\n\u{e4} = 1 = 2", "2:"),
];

/// R: E-5
#[test]
fn a_value_of_the_wrong_type_or_range_is_named_with_line_and_column() {
    for (text, wanted) in BAD_VALUES {
        let error = refused(text);
        assert!(
            error.starts_with(&format!("{PATH}:{wanted}")),
            "{text:?} gave: {error}"
        );
    }
}

/// R: E-5
#[test]
fn both_bounds_of_every_number_are_accepted_and_their_neighbours_refused() {
    for setting in SETTINGS {
        let Kind::Number { min, max } = setting.kind else {
            continue;
        };
        let with = |value: i128| {
            let text = format!("{LEAST}\n[{}]\n{} = {value}", setting.section, setting.name);
            let text = text
                .replace("[auth]\n", "")
                .replace("\n[tls]", "\n[auth]\n[tls]");
            let variable = [(setting.variable(), value.to_string())];
            let variable = [(variable[0].0.as_str(), variable[0].1.as_str())];
            let by_variable = assemble(LEAST, &variable, &[]).is_ok();
            if setting.section != "auth" {
                assert_eq!(
                    assemble(&text, &[], &[]).is_ok(),
                    by_variable,
                    "{}",
                    setting.key()
                );
            }
            by_variable
        };
        assert!(with(min.into()) && with(max.into()), "{}", setting.key());
        assert!(
            !with(i128::from(min) - 1) && !with(i128::from(max) + 1),
            "{}",
            setting.key()
        );
    }
}

/// R: E-5
#[test]
fn a_variable_that_claims_to_be_a_setting_must_be_one() {
    let error = |name| {
        assemble(LEAST, &[(name, "1")], &[])
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error("IRIS_SERVER__LISTN"),
        "environment IRIS_SERVER__LISTN: unknown key `IRIS_SERVER__LISTN`; did you mean \
         IRIS_SERVER__LISTEN?"
    );
    assert!(error("IRIS_COLOUR__SKY").contains("unset it"));
    assert!(error("IRIS_AUTH__KEYS").contains("unknown key"));
    let bad = error("IRIS_SERVER__LISTEN");
    assert!(
        bad.starts_with("environment IRIS_SERVER__LISTEN: `server.listen` must be"),
        "{bad}"
    );
    for other in [
        "IRIS_HOME",
        "IRIS_LOG",
        "IRISH__COFFEE",
        "HOME",
        "iris_server__listen",
    ] {
        assert!(assemble(LEAST, &[(other, "1")], &[]).is_ok(), "{other}");
    }
}

#[test]
fn paths_in_the_file_are_relative_to_the_file() {
    let config = assemble(LEAST, &[("IRIS_SERVER__DATA", "here")], &[]).unwrap();
    assert_eq!(
        config.tls.certificate,
        Path::new("/etc/iris/certificate.pem")
    );
    assert_eq!(config.tls.key, Path::new("/secret/key.pem"));
    assert_eq!(config.auth.keys[0].file, Path::new("/etc/iris/one.pem"));
    assert_eq!(config.server.data, Path::new("here"));
}

#[test]
fn what_a_switch_cannot_do_without_is_asked_for() {
    assert!(refused("").contains("`auth.keys` is not set; add kid, alg and file"));
    let keys = LEAST.split_once("[[").unwrap().1;
    assert!(refused(&format!("[[{keys}")).contains("`tls.certificate` is not set"));
    assert!(refused("[[auth.keys]]\nkid=\"a\"\nalg=\"HS256\"").contains("`auth.keys.file`"));
}

#[test]
fn cores_are_numbers_and_ranges() {
    let cores = |text: &str| {
        let flag = Flag {
            key: "server.cores",
            name: "--cores",
            value: text.into(),
        };
        assemble(LEAST, &[], &[flag]).map(|config| config.server.cores)
    };
    assert_eq!(cores("all").unwrap(), Cores::All);
    assert_eq!(cores("1").unwrap(), Cores::List(vec![1]));
    assert_eq!(cores("3, 0-1").unwrap(), Cores::List(vec![3, 0, 1]));
    for bad in ["", "a", "1-0", "0,", "-1", "0-1024", "0,0-1"] {
        let error = cores(bad).unwrap_err().to_string();
        assert!(
            error.starts_with("flag --cores: `server.cores` "),
            "{bad:?}: {error}"
        );
    }
}

#[test]
fn the_development_identity_fills_what_is_open_and_no_more() {
    let environment = [("IRIS_TLS__KEY".to_owned(), "mine.pem".to_owned())];
    let flags = [Flag {
        key: "server.data",
        name: "--data",
        value: "d".into(),
    }];
    let inputs = Inputs {
        file: None,
        environment: &environment,
        flags: &flags,
        dev: true,
    };
    let config = Config::assemble(&inputs).unwrap();
    assert!(config.dev);
    assert_eq!(config.tls.certificate, Path::new("d/dev/certificate.pem"));
    assert_eq!(config.tls.key, Path::new("mine.pem"));
    assert_eq!(config.auth.rules.issuer.as_deref(), Some("iris-dev"));
    assert_eq!(
        config.auth.keys[0].file,
        Path::new("d/dev/token-verify.pem")
    );
}

/// R: A-2
#[test]
fn an_embedded_development_switch_reads_its_own_key() {
    let data = tempfile::tempdir().unwrap();
    let files = dev::ensure(data.path()).unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config::dev(data.path(), listen, Cores::List(vec![0, 1])).unwrap();
    assert_eq!(config.server.listen, listen);
    assert_eq!(config.server.cores, Cores::List(vec![0, 1]));
    assert_eq!(config.tls.certificate, files.certificate);
    let (ring, _) = config.keyring().unwrap();
    assert_eq!(ring.verify("x", 0), Err(AuthError::Malformed));
}

/// R: E-5
#[test]
fn the_effective_configuration_is_a_configuration() {
    let text = format!("[server]\nlisten = \"[::1]:9\"\ncores = [1, 0]\ndata = \"/d\"\n{LEAST}");
    let first = assemble(&text, &[("IRIS_AUTH__ISSUER", "a \"b\"")], &[]).unwrap();
    let printed = first.to_string();
    assert!(
        printed.contains("listen = \"[::1]:9\"  # /etc/iris/iris.toml:2:10"),
        "{printed}"
    );
    assert!(
        printed.contains("audience = \"iris\"  # default"),
        "{printed}"
    );
    assert!(
        printed.contains("# environment IRIS_AUTH__ISSUER"),
        "{printed}"
    );
    let second = assemble(&printed, &[], &[]).unwrap();
    let plain = |config: &Config| {
        let text = config.to_string();
        text.lines()
            .map(|line| line.split("  #").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(plain(&first), plain(&second));
}

#[test]
fn every_setting_has_a_section_of_its_own_kin_and_a_meaning() {
    let mut keys: Vec<_> = SETTINGS.iter().map(Setting::key).collect();
    for setting in SETTINGS {
        assert!(describe().contains(setting.about) && !setting.about.is_empty());
        if let Some(default) = setting.default {
            setting.kind.read_text(default).unwrap();
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), SETTINGS.len(), "a key is there twice");
}

#[test]
fn files_that_cannot_be_read_or_are_absurd_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("iris.toml");
    let error = Config::load(Some(&path), &[], false).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    fs::write(&path, b"[server]\n\xff").unwrap();
    let error = Config::load(Some(&path), &[], false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(":2:1: this is not TOML (it is not UTF-8)"),
        "{error}"
    );
    let file = fs::File::create(&path).unwrap();
    file.set_len(FILE_BYTES_MAX + 1).unwrap();
    let error = Config::load(Some(&path), &[], false).unwrap_err();
    assert!(matches!(error, ConfigError::TooLarge { .. }), "{error}");
}

/// R: A-2
#[test]
fn a_secret_file_may_end_with_a_newline() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, format!("{}\n", "s".repeat(31))).unwrap();
    let mut config = assemble(LEAST, &[], &[]).unwrap();
    let key = KeyFile {
        kid: "hs".into(),
        algorithm: Algorithm::Hs256,
        file: secret.clone(),
    };
    config.auth.keys = vec![key];
    let error = config.keyring().unwrap_err().to_string();
    assert!(
        error.contains("31 bytes"),
        "the newline was counted: {error}"
    );
    fs::write(&secret, format!("{}\n", "s".repeat(32))).unwrap();
    config.keyring().unwrap();
}

/// R: A-2
#[test]
fn a_key_set_stands_beside_or_instead_of_the_list_of_keys() {
    let text = "[tls]\ncertificate = \"c\"\nkey = \"k\"\n[auth]\njwks = \"keys.json\"\n";
    let mut config = assemble(text, &[], &[]).unwrap();
    assert_eq!(config.auth.jwks, Some("/etc/iris/keys.json".into()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    config.auth.jwks = Some(path.clone());
    let secret =
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let set = format!(
        "{{\"keys\": [{{\"kty\": \"oct\", \"kid\": \"a\", \"alg\": \"HS256\", \"k\": \"{secret}\"}},\
         {{\"kty\": \"new\", \"kid\": \"b\"}}]}}"
    );
    fs::write(&path, set).unwrap();
    let (ring, skipped) = config.keyring().unwrap();
    assert_eq!(ring.kids().collect::<Vec<_>>(), ["a"]);
    assert_eq!(skipped.len(), 1);
    fs::write(&path, "{}").unwrap();
    let error = config.keyring().unwrap_err().to_string();
    assert!(
        error.contains("keys.json: this is not a JSON Web Key Set"),
        "{error}"
    );
    fs::write(&path, " ".repeat(64 * 1024 + 1)).unwrap();
    let error = config.keyring().unwrap_err().to_string();
    assert!(error.contains("has more than 65536 bytes"), "{error}");
}

/// R: E-4
#[test]
fn a_reload_names_the_settings_that_it_cannot_take() {
    let before = assemble(LEAST, &[], &[]).unwrap();
    let after = format!(
        "[limits]\nhello_timeout_ms = 700\ninbox_entries = 5\n[log]\nlevel = \"warn\"\n\
         [auth]\naudience = \"other\"\n{}",
        LEAST.replace("certificate.pem", "other.pem")
    );
    let after = assemble(&after, &[], &[]).unwrap();
    assert_eq!(
        before.fixed_changes(&after),
        ["limits.inbox_entries", "log.level"]
    );
    assert_eq!(before.fixed_changes(&before.clone()), [""; 0]);
}

/// R: A-6
#[test]
fn a_development_switch_limits_nobody_by_user_or_address_unless_it_is_told_to() {
    let addresses = "127.0.0.1:0".parse().unwrap();
    let dev = Config::dev(std::path::Path::new("d"), addresses, Cores::All).unwrap();
    let limits = dev.limits;
    let lifted = [
        limits.messages_per_s,
        limits.connections_per_address,
        limits.failed_logins_per_minute,
        limits.failed_logins_per_user_per_minute,
    ];
    assert_eq!(lifted, [0; 4]);
}

/// R: E-2
#[test]
fn the_admin_endpoint_is_on_loopback_alone_and_has_a_token() {
    let with = |lines: &str| format!("[admin]\n{lines}\n{LEAST}");
    assert_eq!(assemble(LEAST, &[], &[]).unwrap().admin, None);
    let found = assemble(
        &with("listen = \"[::1]:9464\"\ntoken_file = \"admin.token\""),
        &[],
        &[],
    );
    let admin = found.unwrap().admin.unwrap();
    assert_eq!(admin.listen.port(), 9464);
    assert_eq!(admin.token_file, Path::new("/etc/iris/admin.token"));
    for open in ["0.0.0.0:9464", "10.0.0.1:9464", "[::]:9464"] {
        let why = refused(&with(&format!("listen = \"{open}\"\ntoken_file = \"t\"")));
        assert!(
            why.starts_with("/etc/iris/iris.toml:2:10: `admin.listen` must be a loopback"),
            "{why}"
        );
    }
    let why = refused(&with("listen = \"127.0.0.1:9464\""));
    assert!(why.starts_with("`admin.token_file` is not set"), "{why}");
}

/// R: E-2
#[test]
fn an_admin_token_is_one_long_word() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let text = format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = {file:?}\n{LEAST}");
    let config = assemble(&text, &[], &[]).unwrap();
    let read = |text: &str| {
        fs::write(&file, text).unwrap();
        let token = config.admin_token().map_err(|error| error.to_string());
        token.map(|token| token.unwrap().to_vec())
    };
    let good = "0123456789abcdef0123456789abcdef";
    assert_eq!(read(good), Ok(good.as_bytes().to_vec()));
    assert_eq!(read(&format!("{good}\n")), Ok(good.as_bytes().to_vec()));
    for bad in [
        "",
        "short",
        &good[1..],
        &good.replace('0', " "),
        &good.repeat(9),
    ] {
        let why = read(bad).unwrap_err();
        assert!(why.contains("openssl rand -hex 32"), "{why}");
    }
}
