//! SIGHUP: certificate, keys and limits are exchanged, and nobody is thrown out.

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iris::auth::SigningKey;
use iris_proto::v2::GoodbyeReason;
use rustls::RootCertStore;

use super::harness::{Identity, PATIENCE, Server, Setup, all_cores, data_dir, mint_with, now_s};
use super::raw::{Hello, Raw, config};

/// A certificate that signs itself, and its key, in PEM.
fn certificate() -> (String, String, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem(), roots)
}

/// A key pair for tokens under the name of the development key, and the public half in PEM.
fn token_key() -> (SigningKey, String) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let key = SigningKey::read("dev", pair.serialize_pem().as_bytes()).unwrap();
    (key, pair.public_key_pem())
}

/// Makes it reload; the line that says what came of it.
pub fn reload(server: &Server) -> String {
    server.hang_up();
    server.log_line("SIGHUP: ")
}

pub fn reloaded(server: &Server) {
    let line = reload(server);
    assert!(line.contains("SIGHUP: reloaded"), "{line}");
}

/// What a login with this token comes to: none is a Welcome.
fn refusal(server: &Server, identity: &Identity, token: &str) -> Option<GoodbyeReason> {
    let mut client = Raw::connect(server.address, identity);
    let hello = Hello {
        device: "other",
        ..Hello::default()
    };
    client.hello(token, &hello);
    match client.next() {
        iris_proto::v2::server_frame::Frame::Welcome(_) => None,
        iris_proto::v2::server_frame::Frame::Goodbye(goodbye) => Some(goodbye.reason()),
        other => panic!("Welcome or Goodbye was due, {other:?} came"),
    }
}

fn token(key: &SigningKey) -> String {
    mint_with(key, "ann", None, 3_600, now_s())
}

/// R: A-1, E-4
#[test]
fn a_new_certificate_is_for_new_handshakes_and_sessions_stay() {
    let data = data_dir();
    let server = Server::start(data.path());
    let before = server.identity();
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted("ben", 1, b"before");
    let (certificate, key, roots) = certificate();
    let dev = data.path().join("dev");
    std::fs::write(dev.join("certificate.pem"), certificate).unwrap();
    std::fs::write(dev.join("key.pem"), key).unwrap();
    reloaded(&server);
    let mut old = Raw::connect(server.address, &before);
    let failed = old.try_hello(&token(&before.key), &Hello::default());
    assert!(failed.is_err(), "the old certificate is still shown");
    let after = Identity {
        roots: Arc::new(roots),
        key: server.identity().key,
    };
    assert_eq!(refusal(&server, &after, &token(&after.key)), None);
    ann.send_accepted("ben", 2, b"after");
    assert_eq!(server.stop().code(), Some(0));
}

/// R: A-1
#[test]
fn tickets_outlive_a_reload_unless_the_certificate_is_another() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let (certificate, key, mut roots) = certificate();
    roots.extend(identity.roots.roots.iter().cloned());
    let both = config(&Identity {
        roots: Arc::new(roots),
        key: server.identity().key,
    });
    let resumed = || {
        let mut client = Raw::try_connect_with(server.address, both.clone()).unwrap();
        client.hello(&token(&identity.key), &Hello::default());
        client.welcome(); // the ticket has come before it
        client.resumed()
    };
    assert!(!resumed(), "the first handshake is a full one");
    assert!(resumed());
    reloaded(&server);
    assert!(resumed(), "nothing has changed");
    std::fs::write(data.path().join("dev/certificate.pem"), certificate).unwrap();
    std::fs::write(data.path().join("dev/key.pem"), key).unwrap();
    reloaded(&server);
    assert!(!resumed(), "a ticket brought the old certificate back");
    assert!(resumed());
}

/// R: A-2, E-4
#[test]
fn a_new_token_key_opens_sessions_and_the_old_one_none_and_sessions_stay() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let mut ann = Raw::login(&server, "ann");
    let (key, public) = token_key();
    let bad = Some(GoodbyeReason::BadToken);
    assert_eq!(refusal(&server, &identity, &token(&key)), bad);
    std::fs::write(data.path().join("dev/token-verify.pem"), public).unwrap();
    reloaded(&server);
    // Connections are spread over the cores: each has the new key.
    for _ in 0..16 {
        assert_eq!(refusal(&server, &identity, &token(&identity.key)), bad);
        assert_eq!(refusal(&server, &identity, &token(&key)), None);
    }
    ann.send_accepted("ann", 1, b"still here");
}

/// R: E-4
#[test]
fn a_reload_that_fails_changes_nothing_and_says_why_in_one_line() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let dev = data.path().join("dev");
    let keep = |name: &str| std::fs::read(dev.join(name)).unwrap();
    let names = ["certificate.pem", "key.pem", "token-verify.pem"];
    let originals = names.map(keep);
    let (new_certificate, new_key, _) = certificate();
    let (key, public) = token_key();
    let private = originals[1].clone();
    let breaks: [(&str, Vec<u8>, &str); 5] = [
        ("certificate.pem", b"nothing".to_vec(), "certificate"),
        (
            "certificate.pem",
            new_certificate.into_bytes(),
            "belong together",
        ),
        ("key.pem", new_key.into_bytes(), "belong together"),
        ("key.pem", Vec::new(), "private key"),
        ("token-verify.pem", private, "is a private key"),
    ];
    for (name, bytes, why) in breaks {
        // A good new key beside the broken file is not taken either.
        std::fs::write(dev.join("token-verify.pem"), &public).unwrap();
        std::fs::write(dev.join(name), bytes).unwrap();
        let line = reload(&server);
        assert!(
            line.contains("nothing was changed") && line.contains(why),
            "{name}: {line}"
        );
        assert_eq!(
            refusal(&server, &identity, &token(&identity.key)),
            None,
            "{name}"
        );
        let new = refusal(&server, &identity, &token(&key));
        assert_eq!(new, Some(GoodbyeReason::BadToken), "{name}");
        for (name, bytes) in names.iter().zip(&originals) {
            std::fs::write(dev.join(name), bytes).unwrap();
        }
    }
    std::fs::remove_file(dev.join("key.pem")).unwrap();
    assert!(reload(&server).contains("key.pem"));
    std::fs::write(dev.join("key.pem"), &originals[1]).unwrap();
    reloaded(&server);
}

/// A configuration file beside the development identity, which it uses for TLS.
pub fn configure(data: &Path, more: &str) -> PathBuf {
    let path = data.join("dev").join("iris.toml");
    let tls = "[tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n";
    std::fs::write(&path, format!("{tls}{more}")).unwrap();
    path
}

pub fn start_configured(data: &Path, cores: usize, more: &str) -> Server {
    Server::start(data).kill(); // makes the identity
    let setup = Setup {
        config: Some(configure(data, more)),
        cores: all_cores(cores),
        ..Setup::default()
    };
    Server::start_with(data, &setup)
}

/// A set with one key, whose 32 bytes of secret are `A` in base64url, and one of an unknown kind.
fn key_set(kid: &str) -> String {
    let k = "A".repeat(43);
    format!(
        r#"{{"keys": [{{"kty": "oct", "kid": "{kid}", "alg": "HS256", "k": "{k}"}},
            {{"kty": "later", "kid": "unknown"}}]}}"#
    )
}

/// R: A-2, E-4
#[test]
fn a_key_set_is_read_and_read_again() {
    let data = data_dir();
    let beside = data_dir();
    let set = beside.path().join("keys.json");
    std::fs::write(&set, key_set("first")).unwrap();
    let auth = format!(
        "[auth]\nissuer = \"iris-dev\"\njwks = \"{}\"\n",
        set.display()
    );
    let server = start_configured(data.path(), 2, &auth);
    let identity = server.identity();
    let first = SigningKey::read("first", &[0; 32]).unwrap();
    let second = SigningKey::read("second", &[0; 32]).unwrap();
    let bad = Some(GoodbyeReason::BadToken);
    assert_eq!(refusal(&server, &identity, &token(&first)), None);
    assert_eq!(refusal(&server, &identity, &token(&second)), bad);
    assert_eq!(refusal(&server, &identity, &token(&identity.key)), bad);
    std::fs::write(&set, key_set("second")).unwrap();
    reloaded(&server);
    assert_eq!(refusal(&server, &identity, &token(&first)), bad);
    assert_eq!(refusal(&server, &identity, &token(&second)), None);
    std::fs::write(&set, "{\"keys\": [{\"alg\": \"HS256\"}]}").unwrap();
    let line = reload(&server);
    assert!(
        line.contains("nothing was changed") && line.contains("keys.json"),
        "{line}"
    );
    assert_eq!(refusal(&server, &identity, &token(&second)), None);
}

/// R: A-5, E-4
#[test]
fn limits_that_can_move_do_and_a_change_of_others_is_named() {
    let data = data_dir();
    let with = |limits: &str| {
        format!(
            "[auth]\nissuer = \"iris-dev\"\n[limits]\n{limits}\n\
             [[auth.keys]]\nkid = \"dev\"\nalg = \"EdDSA\"\nfile = \"token-verify.pem\"\n"
        )
    };
    let server = start_configured(data.path(), 1, &with("hello_timeout_ms = 60000"));
    let connect = || {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let is_closed = |mut stream: TcpStream| stream.read(&mut [0; 1]).is_ok_and(|got| got == 0);
    let silent = connect();
    let mut ann = Raw::login(&server, "ann");
    configure(
        data.path(),
        &with("hello_timeout_ms = 200\ninbox_entries = 9"),
    );
    server.hang_up();
    let line = server.log_line("need a restart");
    assert!(line.contains("limits.inbox_entries"), "{line}");
    server.log_line("SIGHUP: reloaded");
    assert!(is_closed(silent), "it may wait for as long as when it came");
    // Ann has the only place.
    configure(
        data.path(),
        &with("hello_timeout_ms = 60000\nconnections_per_core = 1"),
    );
    reloaded(&server);
    assert!(is_closed(connect()), "a second connection was let in");
    ann.send_accepted("ann", 1, b"still here");
}
