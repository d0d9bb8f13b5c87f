//! Two ends of TLS against each other in memory.

use super::*;
use proptest::prelude::*;

pub(crate) fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let server = server_config(certificate.as_bytes(), key.as_bytes(), None).unwrap();
    (server, client_config(certificate.as_bytes()).unwrap())
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Feeds `bytes` to `tls` in pieces of `piece` bytes; plaintext and answer are appended.
fn feed(
    tls: &mut Tls,
    bytes: &[u8],
    piece: usize,
    plain: &mut Vec<u8>,
    wire: &mut Vec<u8>,
) -> Result<bool, TlsError> {
    let mut closed = false;
    for piece in bytes.chunks(piece) {
        closed = tls.open(&mut piece.to_vec(), plain, wire)?.closed;
        assert!(tls.partial_bytes() <= PARTIAL_BYTES_MAX);
    }
    Ok(closed)
}

/// A pair after its handshake, all bytes delivered in pieces of `piece`.
fn pair(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>, piece: usize) -> (Tls, Tls) {
    let mut server = Tls::server(Arc::clone(server)).unwrap();
    let mut client = Tls::client(Arc::clone(client), name()).unwrap();
    let (mut to_server, mut to_client, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    client.start(&mut to_server).unwrap();
    while !to_server.is_empty() || !to_client.is_empty() {
        let bytes = std::mem::take(&mut to_server);
        feed(&mut server, &bytes, piece, &mut plain, &mut to_client).unwrap();
        let bytes = std::mem::take(&mut to_client);
        feed(&mut client, &bytes, piece, &mut plain, &mut to_server).unwrap();
    }
    assert!(!server.is_handshaking() && !client.is_handshaking() && plain.is_empty());
    assert_eq!((server.partial_bytes(), client.partial_bytes()), (0, 0));
    (server, client)
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// R: A-1
#[test]
fn handshake_and_data_pass_at_every_chunking() {
    let (server, client) = configs();
    for piece in [1, 2, 3, 5, 7, 64, 1000, 4096, 1 << 20] {
        let (mut server, mut client) = pair(&server, &client, piece);
        assert_eq!(server.alpn(), Some(ALPN));
        let (sent, mut wire, mut got) = (pattern(40_000), Vec::new(), Vec::new());
        client.seal(&sent, &mut wire).unwrap();
        feed(&mut server, &wire, piece, &mut got, &mut Vec::new()).unwrap();
        assert_eq!(got, sent);
        assert_eq!(
            server.partial_bytes(),
            0,
            "nothing is kept of complete records"
        );
        assert_eq!(server.partial.capacity(), 0, "not even room for it");
    }
}

#[test]
fn a_large_plaintext_becomes_few_records_with_exact_room() {
    let (server, client) = configs();
    let (mut server, mut client) = pair(&server, &client, 4096);
    for bytes in [
        1,
        RECORD_PLAIN_BYTES_MAX,
        RECORD_PLAIN_BYTES_MAX + 1,
        100 * 1024,
    ] {
        let (sent, mut wire, mut got) = (pattern(bytes), Vec::new(), Vec::new());
        server.seal(&sent, &mut wire).unwrap();
        let records = bytes.div_ceil(RECORD_PLAIN_BYTES_MAX);
        assert_eq!(wire.len(), bytes + records * RECORD_OVERHEAD_BYTES);
        assert_eq!(wire.capacity(), wire.len(), "the room was reserved exactly");
        feed(&mut client, &wire, 4096, &mut got, &mut Vec::new()).unwrap();
        assert_eq!(got, sent);
    }
    server.seal(&[], &mut Vec::new()).unwrap();
}

/// R: A-1
#[test]
fn a_second_connection_resumes_the_session() {
    let (server, client) = configs();
    let (first, _) = pair(&server, &client, 4096);
    assert_eq!(first.resumed(), Some(false));
    let (second, _) = pair(&server, &client, 4096);
    assert_eq!(second.resumed(), Some(true));
    assert_eq!(second.alpn(), Some(ALPN));
}

/// What each end says when the client has these protocols: (server, client after the alert).
fn refusal(protocols: Vec<Vec<u8>>) -> (TlsError, TlsError) {
    let (server, client) = configs();
    let mut client = Arc::unwrap_or_clone(client);
    client.alpn_protocols = protocols;
    let mut server = Tls::server(server).unwrap();
    let mut client = Tls::client(Arc::new(client), name()).unwrap();
    let (mut hello, mut answer, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    client.start(&mut hello).unwrap();
    let ours = feed(&mut server, &hello, 4096, &mut plain, &mut answer).unwrap_err();
    assert!(!answer.is_empty(), "an alert goes out");
    let again = server.open(&mut [0; 10], &mut plain, &mut answer);
    assert!(
        matches!(again, Err(TlsError::Failed)),
        "a failed connection stays so"
    );
    let theirs = feed(&mut client, &answer, 4096, &mut plain, &mut Vec::new()).unwrap_err();
    (ours, theirs)
}

#[test]
fn a_client_without_the_protocol_is_refused_with_an_alert() {
    use rustls::{AlertDescription, Error};
    let (ours, theirs) = refusal(vec![b"http/1.1".to_vec()]);
    assert!(
        matches!(ours, TlsError::Protocol(Error::NoApplicationProtocol)),
        "{ours}"
    );
    let TlsError::Protocol(Error::AlertReceived(alert)) = theirs else {
        panic!("{theirs}")
    };
    assert_eq!(alert, AlertDescription::NoApplicationProtocol);

    let (ours, theirs) = refusal(Vec::new());
    assert!(matches!(ours, TlsError::Protocol(_)), "{ours}");
    let TlsError::Protocol(Error::AlertReceived(alert)) = theirs else {
        panic!("{theirs}")
    };
    assert_eq!(alert, AlertDescription::AccessDenied);
}

#[test]
fn a_server_without_the_protocol_is_refused() {
    let (server, client) = configs();
    let mut server = Arc::unwrap_or_clone(server);
    server.alpn_protocols.clear();
    let mut server = Tls::server(Arc::new(server)).unwrap();
    let mut client = Tls::client(client, name()).unwrap();
    let (mut hello, mut answer, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    client.start(&mut hello).unwrap();
    feed(&mut server, &hello, 4096, &mut plain, &mut answer).unwrap();
    let refused = feed(&mut client, &answer, 4096, &mut plain, &mut hello);
    assert!(matches!(refused, Err(TlsError::NoAlpn)), "{refused:?}");
}

#[test]
fn a_flipped_bit_ends_the_connection_with_an_alert_to_the_peer() {
    let (server, client) = configs();
    let (mut server, mut client) = pair(&server, &client, 4096);
    let (mut wire, mut plain, mut answer) = (Vec::new(), Vec::new(), Vec::new());
    client.seal(b"hello", &mut wire).unwrap();
    *wire.last_mut().unwrap() ^= 1;
    assert!(feed(&mut server, &wire, 4096, &mut plain, &mut answer).is_err());
    assert!(plain.is_empty() && !answer.is_empty());
    assert!(matches!(
        server.seal(b"x", &mut answer),
        Err(TlsError::Failed)
    ));
    assert!(feed(&mut client, &answer, 4096, &mut plain, &mut wire).is_err());
}

#[test]
fn close_notify_reaches_the_peer_after_the_data() {
    let (server, client) = configs();
    for piece in [1, 4096] {
        let (mut server, mut client) = pair(&server, &client, 4096);
        let (mut wire, mut got) = (Vec::new(), Vec::new());
        server.seal(b"goodbye", &mut wire).unwrap();
        server.close(&mut wire);
        let sealed = wire.len();
        server.close(&mut wire);
        assert_eq!(wire.len(), sealed, "one close is enough");
        wire.extend_from_slice(&[0xff; 100]);
        assert!(feed(&mut client, &wire, piece, &mut got, &mut Vec::new()).unwrap());
        assert_eq!(got, b"goodbye");
        assert_eq!(client.partial_bytes(), 0, "what follows the end is ignored");
    }
}

#[test]
fn nothing_can_be_sealed_before_the_handshake() {
    let (server, client) = configs();
    let mut wire = Vec::new();
    let mut server = Tls::server(server).unwrap();
    assert!(matches!(
        server.seal(b"early", &mut wire),
        Err(TlsError::NotReady)
    ));
    server.close(&mut wire);
    assert!(wire.is_empty());
    let mut client = Tls::client(client, name()).unwrap();
    client.start(&mut wire).unwrap();
    let hello = wire.len();
    assert!(matches!(
        client.seal(b"early", &mut wire),
        Err(TlsError::NotReady)
    ));
    assert_eq!(wire.len(), hello);
}

/// A key update asked for by the peer is answered, and both directions go on.
#[test]
fn keys_can_be_updated_under_way() {
    let (server, client) = configs();
    let (mut server, mut client) = pair(&server, &client, 4096);
    for round in 0..5_u8 {
        let (mut wire, mut got) = (Vec::new(), Vec::new());
        let Side::Client(inner) = &mut *client.side else {
            unreachable!()
        };
        match inner.process_tls_records(&mut []).state.unwrap() {
            ConnectionState::WriteTraffic(traffic) => traffic.refresh_traffic_keys().unwrap(),
            other => panic!("{other:?}"),
        }
        client.seal(&[round], &mut wire).unwrap();
        feed(&mut server, &wire, 3, &mut got, &mut Vec::new()).unwrap();
        assert_eq!(got, [round]);
        wire.clear();
        got.clear();
        server.seal(&[round, round], &mut wire).unwrap();
        feed(&mut client, &wire, 3, &mut got, &mut Vec::new()).unwrap();
        assert_eq!(got, [round, round]);
    }
}

/// A record cut anywhere, with sealing and closing in between, which must look at the kept bytes.
#[test]
fn sealing_while_a_record_is_incomplete_disturbs_nothing() {
    let (server, client) = configs();
    let (mut server, mut client) = pair(&server, &client, 4096);
    let (mut wire, mut got, mut back) = (Vec::new(), Vec::new(), Vec::new());
    client.seal(&pattern(300), &mut wire).unwrap();
    for byte in &wire {
        server
            .open(&mut [*byte], &mut got, &mut Vec::new())
            .unwrap();
        server.seal(&[*byte], &mut back).unwrap();
    }
    assert_eq!(got, pattern(300));
    got.clear();
    feed(&mut client, &back, 4096, &mut got, &mut Vec::new()).unwrap();
    assert_eq!(got, wire);
}

/// R: A-5
#[test]
fn a_stranger_makes_us_keep_one_record_at_most() {
    let (server, _) = configs();
    let mut server = Tls::server(server).unwrap();
    // A handshake message of 60,000 bytes, said to come in records of 1,000.
    let mut flight = Vec::new();
    for record in 0..60 {
        flight.extend_from_slice(&[22, 3, 1, 0x03, 0xe8]);
        let start = flight.len();
        flight.resize(start + 1000, 0);
        if record == 0 {
            flight[start..start + 4].copy_from_slice(&[1, 0, 0xea, 0x60]);
        }
    }
    let (mut plain, mut wire) = (Vec::new(), Vec::new());
    let refused = feed(&mut server, &flight, 10, &mut plain, &mut wire);
    assert!(
        matches!(refused, Err(TlsError::HandshakeTooLarge)),
        "{refused:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// R: A-5
    #[test]
    fn garbage_never_panics_and_never_yields_plaintext(
        garbage in proptest::collection::vec(any::<u8>(), 1..2000),
        header in any::<bool>(),
        piece in 1_usize..100,
        after in any::<bool>(),
    ) {
        let (server, client) = configs();
        let mut tls = if after {
            pair(&server, &client, 4096).0
        } else {
            Tls::server(server).unwrap()
        };
        let mut bytes = Vec::new();
        if header {
            bytes.extend_from_slice(&[22, 3, 3]);
            bytes.extend_from_slice(&(garbage.len() as u16).to_be_bytes());
        }
        bytes.extend_from_slice(&garbage);
        let (mut plain, mut wire) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            if tls.open(&mut piece.to_vec(), &mut plain, &mut wire).is_err() {
                break;
            }
            let _ = tls.seal(b"x", &mut wire);
        }
        tls.close(&mut wire);
        prop_assert!(plain.is_empty());
    }
}

/// R: B-7
#[test]
fn whole_records_are_counted_once_however_they_come() {
    let (server, client) = configs();
    let (mut server, mut client) = pair(&server, &client, 1 << 20);
    let mut wire = Vec::new();
    for _ in 0..10 {
        client.seal(b"x", &mut wire).unwrap();
    }
    for piece in [1, 7, 23, 100, 1 << 20] {
        let mut sealed = wire.clone();
        let mut records = 0;
        let mut plain = Vec::new();
        for piece in sealed.chunks_mut(piece) {
            let opened = server.open(piece, &mut plain, &mut Vec::new());
            records += opened.unwrap().records;
        }
        assert_eq!((records, plain.len()), (10, 10), "pieces of {piece}");
        wire.clear();
        for _ in 0..10 {
            client.seal(b"x", &mut wire).unwrap();
        }
    }
}

/// R
#[test]
fn attempts_that_are_refused_before_tls_do_not_cost_a_client_its_resumption() {
    let (server, client) = configs();
    drop(pair(&server, &client, 1 << 20));
    for round in 0..3 {
        for _ in 0..3 {
            let mut refused = Tls::client(Arc::clone(&client), name()).unwrap();
            refused.start(&mut Vec::new()).unwrap(); // it begins, and nobody answers
        }
        let (server, client) = pair(&server, &client, 1 << 20);
        assert_eq!(client.resumed(), Some(true), "round {round}");
        assert_eq!(server.resumed(), Some(true), "round {round}");
    }
}

/// R: A-5
#[test]
fn a_handshake_that_is_bounded_takes_its_bytes_and_no_more() {
    let (server, client) = configs();
    drop(pair(&server, &client, 1 << 20)); // so that there is a ticket to show
    let mut bounded = Tls::server(Arc::clone(&server)).unwrap();
    bounded.bound_handshake(HANDSHAKE_BYTES_MAX);
    let mut tls = Tls::client(Arc::clone(&client), name()).unwrap();
    let (mut hello, mut plain, mut answer) = (Vec::new(), Vec::new(), Vec::new());
    tls.start(&mut hello).unwrap();
    assert!(hello.len() < HANDSHAKE_BYTES_MAX / 2, "{}", hello.len());
    feed(&mut bounded, &hello, 1, &mut plain, &mut answer).unwrap();
    assert!(!answer.is_empty());
    // A record that says it has 16 KiB.
    let mut bounded = Tls::server(server).unwrap();
    bounded.bound_handshake(HANDSHAKE_BYTES_MAX);
    let mut record = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
    record.resize(HANDSHAKE_BYTES_MAX, 0);
    feed(&mut bounded, &record, 100, &mut plain, &mut answer).unwrap();
    let more = feed(&mut bounded, &[0], 1, &mut plain, &mut answer);
    assert!(matches!(more, Err(TlsError::HandshakeTooLarge)), "{more:?}");
}
