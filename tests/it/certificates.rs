//! The switch's own certificate as its end comes nearer, and certificates of clients.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iris_proto::v2::server_frame::Frame as ServerFrame;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::admin::{get, sum};
use super::harness::{Identity, Server, data_dir, iris, now_s};
use super::raw::{Hello, Raw, config_with};
use super::reload::{configure, reload, reloaded, start_configured};

const DAY_S: i64 = 24 * 60 * 60;

/// Puts a certificate into the development identity that ends in so many seconds.
fn replace_certificate(data: &Path, ends_in_s: i64) -> u64 {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now_s());
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = now - Duration::from_secs(100 * DAY_S as u64);
    let seconds = Duration::from_secs(ends_in_s.unsigned_abs());
    params.not_after = if ends_in_s < 0 {
        now - seconds
    } else {
        now + seconds
    };
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(data.join("dev/certificate.pem"), certificate.pem()).unwrap();
    std::fs::write(data.join("dev/key.pem"), key.serialize_pem()).unwrap();
    now_s().checked_add_signed(ends_in_s).unwrap()
}

fn status(data: &Path) -> (Option<i32>, String) {
    let output = iris().arg("status").arg("--data").arg(data).output();
    let output = output.unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

/// R: A-1, E-2
#[test]
fn the_end_of_the_certificate_is_told_ahead_in_log_metrics_readiness_and_status() {
    let data = data_dir();
    let data = data.path();
    let server = Server::start(data);
    assert_eq!(get(data, "/readyz"), (200, "ready\n".to_owned()));
    for (days, level, says) in [
        (20, " WARN ", "the certificate ends in 19 days; replace"),
        (3, "ERROR ", "the certificate ends in 2 days; replace"),
        (-2, "ERROR ", "the certificate ended 2 days ago: clients"),
    ] {
        let ends_s = replace_certificate(data, days * DAY_S + if days > 0 { -60 } else { 0 });
        server.hang_up();
        server.log_line("SIGHUP: reloaded");
        let line = server.log_line("the certificate en");
        assert!(line.contains(level) && line.contains(says), "{line}");
        let (code, ready) = get(data, "/readyz");
        assert_eq!(code, 200, "it serves all the same");
        assert!(ready.starts_with("ready\nnote: "), "{ready}");
        assert!(ready.contains(says), "{ready}");
        let (code, table) = status(data);
        assert_eq!(code, Some(0));
        assert!(table.contains(says), "{table}");
        let name = "iris_certificate_not_after_timestamp_seconds";
        let told = sum(&get(data, "/metrics").1, name) / 2; // both cores say it
        assert!(told.abs_diff(ends_s) <= 5, "{told}, not {ends_s}");
    }
    replace_certificate(data, 200 * DAY_S);
    reloaded(&server);
    assert_eq!(get(data, "/readyz"), (200, "ready\n".to_owned()));
}

/// R: A-1
#[test]
fn a_switch_whose_certificate_has_ended_starts_and_says_so_loudly() {
    let data = data_dir();
    Server::start(data.path()).kill(); // makes the identity
    replace_certificate(data.path(), -DAY_S);
    let server = Server::start(data.path());
    let line = server.log_line("the certificate ended 1 day ago");
    assert!(line.contains("ERROR "), "{line}");
    assert_eq!(get(data.path(), "/healthz").0, 200);
    assert_eq!(server.stop().code(), Some(0));
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer }
    }

    /// A client that shows a certificate of this authority.
    fn client(&self, identity: &Identity) -> Arc<ClientConfig> {
        let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        config_with(identity, Some((chain, key)))
    }
}

/// What a login comes to: nothing, or why TLS refused it.
fn refused(server: &Server, config: &Arc<ClientConfig>) -> Option<String> {
    let mut client = Raw::try_connect_with(server.address, config.clone()).unwrap();
    let token = server.identity().token("ann");
    // The client is done with the handshake before the switch has seen its certificate.
    if let Err(error) = client.try_hello(&token, &Hello::default()) {
        return Some(error.to_string());
    }
    match client.try_next() {
        Ok(ServerFrame::Welcome(_)) => None,
        Ok(other) => panic!("{other:?}"),
        Err(why) => Some(why),
    }
}

const AUTH: &str = "[auth]\nissuer = \"iris-dev\"\n\
    [[auth.keys]]\nkid = \"dev\"\nalg = \"EdDSA\"\nfile = \"token-verify.pem\"\n";

/// R: A-1
#[test]
fn with_an_authority_for_clients_only_they_shake_hands_and_a_reload_exchanges_it() {
    let data = data_dir();
    let beside = data_dir();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let ca = beside.path().join("clients.pem");
    std::fs::write(&ca, ours.issuer.pem()).unwrap();
    // The helper ends its text in [tls].
    let with = format!("client_ca = \"{}\"\n{AUTH}", ca.display());
    let server = start_configured(data.path(), 2, &with);
    let identity = server.identity();
    let [none, our, their] = [
        config_with(&identity, None),
        ours.client(&identity),
        theirs.client(&identity),
    ];
    let no_certificate =
        |why: Option<String>| why.is_some_and(|why| why.contains("CertificateRequired"));
    let unknown = |why: Option<String>| why.is_some_and(|why| why.contains("UnknownCA"));
    assert!(no_certificate(refused(&server, &none)));
    let why = refused(&server, &their);
    assert!(unknown(why.clone()), "{why:?}");
    assert_eq!(refused(&server, &our), None);
    assert_eq!(refused(&server, &our), None, "resumed");

    std::fs::write(&ca, theirs.issuer.pem()).unwrap();
    reloaded(&server);
    let why = refused(&server, &our);
    assert!(
        unknown(why.clone()),
        "a ticket from before still holds: {why:?}"
    );
    assert_eq!(refused(&server, &their), None);

    std::fs::write(&ca, "nothing").unwrap();
    let line = reload(&server);
    assert!(
        line.contains("nothing was changed") && line.contains("tls.client_ca"),
        "{line}"
    );
    assert!(no_certificate(refused(&server, &none)));

    configure(data.path(), AUTH);
    reloaded(&server);
    assert_eq!(refused(&server, &none), None);
}
