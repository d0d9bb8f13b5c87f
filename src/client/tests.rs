//! The client against a small switch on a real TLS socket, which drops connections at awkward moments.

#![expect(
    clippy::disallowed_types,
    reason = "the tasks of a test share its switch"
)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use iris_proto::frame::Decoder;
use iris_proto::limits::{ALPN, FRAME_BYTES_MAX};
use iris_proto::reject::{GoodbyeReason, RejectCode};
use iris_proto::v2::{self, server_frame};
use iris_proto::wire::{
    ClientFrameRef, EntryRef, SendRef, decode_client, encode_accepted, encode_entry, encode_gap,
    encode_pong, encode_server,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;

#[derive(Default)]
struct Switch {
    streams: BTreeMap<(u64, String), u64>,
    stored: Vec<(String, Vec<u8>)>,
    /// An empty body: its message is lost.
    inbox: Vec<Vec<u8>>,
    cursor: u64,
    /// Bytes (up, down) after which the next connections break, and then no more.
    cuts: VecDeque<(usize, usize)>,
    connections: usize,
    said_goodbye: bool,
    /// What each login is answered with, until there is none.
    turned_away: Option<GoodbyeReason>,
    /// Seconds that each session is told to have left, at its beginning.
    expiring: Option<u64>,
    /// The tokens that sessions brought later.
    renewed: Vec<String>,
}

/// One connection's part of the switch.
#[derive(Default)]
struct Link {
    epoch: u64,
    pushed: u64,
}

impl Switch {
    fn take(&mut self, link: &mut Link, frame: &[u8], out: &mut Vec<u8>) {
        match decode_client(frame).expect("the client sends whole frames") {
            ClientFrameRef::Hello(hello) if hello.token != "token-of-bob" => {
                let reason = GoodbyeReason::BadToken.into();
                let goodbye = v2::Goodbye {
                    reason,
                    ..Default::default()
                };
                encode_server(out, server_frame::Frame::Goodbye(goodbye));
            }
            ClientFrameRef::Hello(_) if self.turned_away.is_some() => {
                let goodbye = v2::Goodbye {
                    reason: self.turned_away.unwrap_or_default().into(),
                    retry_after_ms: 60_000,
                    ..Default::default()
                };
                encode_server(out, server_frame::Frame::Goodbye(goodbye));
            }
            ClientFrameRef::Hello(hello) => {
                let head_seq = self.inbox.len() as u64;
                link.epoch = hello.send_epoch;
                link.pushed = hello.resume_after.unwrap_or(self.cursor).min(head_seq);
                let welcome = v2::Welcome {
                    head_seq,
                    cursor: link.pushed,
                    oldest_seq: 1,
                    user: "bob".to_owned(),
                    device: "main".to_owned(),
                    cluster: vec![7; 16],
                    ..Default::default()
                };
                encode_server(out, server_frame::Frame::Welcome(welcome));
                if let Some(seconds_left) = self.expiring {
                    let expiring = v2::Expiring { seconds_left };
                    encode_server(out, server_frame::Frame::Expiring(expiring));
                }
                self.push(link, out);
            }
            ClientFrameRef::Send(send) => self.store(link, &send, out),
            ClientFrameRef::Ack(seq) => self.cursor = self.cursor.max(seq.min(link.pushed)),
            ClientFrameRef::Ping(nonce) => encode_pong(out, nonce),
            ClientFrameRef::Goodbye(_) => self.said_goodbye = true,
            ClientFrameRef::Fetch(_) => {}
            ClientFrameRef::Reauth(reauth) => {
                self.renewed.push(reauth.token);
                let (tag, expires_in_s) = (reauth.tag, 3_600);
                let reauthed = v2::Reauthed { tag, expires_in_s };
                encode_server(out, server_frame::Frame::Reauthed(reauthed));
            }
        }
    }

    fn store(&mut self, link: &Link, send: &SendRef<'_>, out: &mut Vec<u8>) {
        let last = self
            .streams
            .entry((link.epoch, send.to.to_owned()))
            .or_insert(0);
        if send.n > *last + 1 {
            let (tag, code, expected) = (send.tag, RejectCode::Gap.into(), *last + 1);
            let rejected = v2::Rejected {
                tag,
                code,
                expected,
                ..Default::default()
            };
            return encode_server(out, server_frame::Frame::Rejected(rejected));
        }
        if send.n == *last + 1 {
            *last += 1;
            self.stored.push((send.to.to_owned(), send.body.to_vec()));
        }
        encode_accepted(out, send.tag, send.n);
    }

    fn push(&self, link: &mut Link, out: &mut Vec<u8>) {
        while let Some(body) = self.inbox.get(usize::try_from(link.pushed).expect("small")) {
            link.pushed += 1;
            if body.is_empty() {
                let gap = v2::Gap {
                    first: link.pushed,
                    last: link.pushed,
                    reason: GapReason::Lost.into(),
                    fetch_tag: 0,
                };
                encode_gap(out, gap);
                continue;
            }
            let (from, from_device, id) = ("carol", "main", [1; 16]);
            let (seq, time_ms, fetch_tag) = (link.pushed, 0, 0);
            encode_entry(
                out,
                &EntryRef {
                    seq,
                    from,
                    from_device,
                    id,
                    time_ms,
                    body,
                    fetch_tag,
                },
            );
        }
    }
}

/// The switch, listening, and what a client needs to trust it.
struct Fixture {
    switch: Arc<Mutex<Switch>>,
    addr: String,
    roots: Arc<RootCertStore>,
}

impl Fixture {
    async fn start(switch: Switch) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a trust anchor");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a key that fits");
        config.alpn_protocols = vec![ALPN.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let switch = Arc::new(Mutex::new(switch));
        let shared = switch.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), socket, shared.clone()));
            }
        });
        Self {
            switch,
            addr: format!("localhost:{port}"),
            roots: Arc::new(roots),
        }
    }

    fn options(&self) -> ConnectOptions {
        let token: TokenSource = Arc::new(|| Ok("token-of-bob".to_owned()));
        let mut options = ConnectOptions::new(&self.addr, self.roots.clone(), user("bob"), token);
        options.backoff = Backoff {
            base_ms: 1,
            max_ms: 4,
        };
        options
    }

    fn look<T>(&self, at: impl FnOnce(&Switch) -> T) -> T {
        at(&self.switch.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves one connection until it ends or its cut is reached.
async fn serve(acceptor: TlsAcceptor, socket: TcpStream, switch: Arc<Mutex<Switch>>) {
    let lock = || switch.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(mut stream) = acceptor.accept(socket).await else {
        return;
    };
    let (mut up, mut down) = {
        let mut switch = lock();
        switch.connections += 1;
        switch.cuts.pop_front().unwrap_or((usize::MAX, usize::MAX))
    };
    let (mut link, mut decoder) = (Link::default(), Decoder::new(FRAME_BYTES_MAX));
    let mut input = [0; 4096];
    while up > 0 && down > 0 {
        let len = stream.read(&mut input).await.unwrap_or(0);
        if len == 0 {
            return;
        }
        let mut bytes = &input[..len.min(up)];
        up -= bytes.len();
        let mut out = Vec::new();
        while let Some(frame) = decoder.next(&mut bytes).expect("within the limit") {
            lock().take(&mut link, frame, &mut out);
        }
        if lock().said_goodbye {
            return;
        }
        out.truncate(down);
        down -= out.len();
        if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user")
}

const PATIENCE: Duration = Duration::from_secs(20);

/// R: B-4, B-5, B-6, G-1
#[tokio::test]
async fn nothing_is_lost_doubled_or_reordered_when_connections_break() {
    let inbox: Vec<Vec<u8>> = (0..60_u8).map(|at| vec![at; 20]).collect();
    // Within Hello, within Welcome, among the first messages, among the entries, and later.
    let cuts = [
        (5, 99),
        (60, 3),
        (400, 9_999),
        (9_999, 300),
        (200, 200),
        (99, 1_000),
        (700, 40),
    ];
    let cuts = cuts
        .into_iter()
        .chain((0..20).map(|at| (150 + 83 * at, 3_000 - 140 * at)))
        .collect();
    let fixture = Fixture::start(Switch {
        inbox,
        cuts,
        ..Default::default()
    })
    .await;
    let mut client = Client::connect(fixture.options()).await.expect("a client");
    let sender = client.sender();
    let sending = tokio::spawn(async move {
        let mut queued = Vec::new();
        for at in 0..120_u8 {
            let to = user(if at % 3 == 0 { "ann" } else { "cat" });
            queued.push(
                sender
                    .send_queued(&to, vec![at])
                    .await
                    .expect("it is taken"),
            );
        }
        for message in queued {
            message.answer().await.expect("it is accepted");
        }
    });
    for seq in 1..=60 {
        let Ok(Arrival::Entry(entry)) = client.next().await else {
            panic!("entry {seq} is due");
        };
        assert_eq!((entry.seq, entry.body[0]), (Seq(seq), seq as u8 - 1));
        client.ack(entry.seq);
    }
    sending.await.expect("all are accepted");
    assert!(client.close(PATIENCE).await);
    fixture.look(|switch| {
        for (name, rest) in [("ann", 0..1), ("cat", 1..3)] {
            let to_them = switch.stored.iter().filter(|(to, _)| to == name);
            let got: Vec<u8> = to_them.map(|(_, body)| body[0]).collect();
            let sent: Vec<u8> = (0..120).filter(|at| rest.contains(&(at % 3))).collect();
            assert_eq!(got, sent, "{name}");
        }
        assert!(
            switch.connections > 5,
            "too few connections broke to show anything"
        );
        assert_eq!(switch.cursor, 60);
    });
}

/// R: B-6, G-1
#[tokio::test]
async fn cursor_is_kept_from_run_to_run() {
    let inbox = (0..6_u8).map(|at| vec![at]).collect();
    let fixture = Fixture::start(Switch {
        inbox,
        ..Default::default()
    })
    .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut options = fixture.options();
    options.state_dir = Some(state.path().to_owned());
    let mut client = Client::connect(options.clone()).await.expect("a client");
    for _ in 0..4 {
        client.next().await.expect("an entry");
    }
    client.ack(Seq(3));
    assert!(client.close(PATIENCE).await);
    assert_eq!(fixture.look(|switch| switch.cursor), 3);
    // The switch has lost its own idea; the file has not.
    fixture.switch.lock().expect("whole").cursor = 0;
    fixture.switch.lock().expect("whole").said_goodbye = false;
    let mut client = Client::connect(options).await.expect("a client");
    assert_eq!(client.next().await.expect("an entry").upto(), Seq(4));
}

/// R: B-6, D-2
#[tokio::test]
async fn lost_messages_are_told_once_and_the_cursor_goes_past_them() {
    let fixture = Fixture::start(Switch {
        inbox: vec![vec![1], vec![], vec![3]],
        ..Default::default()
    })
    .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut options = fixture.options();
    options.state_dir = Some(state.path().to_owned());
    let mut client = Client::connect(options.clone()).await.expect("a client");
    assert!(matches!(client.next().await, Ok(Arrival::Entry(entry)) if entry.seq == Seq(1)));
    let (first, last, reason) = (Seq(2), Seq(2), GapReason::Lost);
    let gap = Arrival::Gap(Gap {
        first,
        last,
        reason,
    });
    assert_eq!(client.next().await.expect("a gap"), gap);
    client.ack(gap.upto());
    assert!(client.close(PATIENCE).await);
    assert_eq!(fixture.look(|switch| switch.cursor), 2);
    fixture.switch.lock().expect("whole").cursor = 0;
    fixture.switch.lock().expect("whole").said_goodbye = false;
    let mut client = Client::connect(options).await.expect("a client");
    assert!(matches!(client.next().await, Ok(Arrival::Entry(entry)) if entry.seq == Seq(3)));
}

#[tokio::test]
async fn close_waits_for_answers_and_says_goodbye() {
    let fixture = Fixture::start(Switch::default()).await;
    let client = Client::connect(fixture.options()).await.expect("a client");
    let queued = client
        .send_queued(&user("ann"), b"last".to_vec())
        .await
        .expect("taken");
    assert!(client.close(PATIENCE).await);
    assert_eq!(queued.answer().await.expect("accepted").n, SendNumber(1));
    assert!(fixture.look(|switch| switch.said_goodbye && switch.stored.len() == 1));
}

/// R: A-1
#[tokio::test]
async fn untrusted_switch_is_refused_at_once() {
    let fixture = Fixture::start(Switch::default()).await;
    let stranger = Fixture::start(Switch::default()).await;
    let mut options = fixture.options();
    options.roots = stranger.roots;
    let error = Client::connect(options)
        .await
        .expect_err("it must not be trusted");
    assert!(
        matches!(&error, ConnectError::Link(link) if link.is_hopeless()),
        "{error}"
    );
    assert_eq!(fixture.look(|switch| switch.connections), 0);
}

/// R: A-2
#[tokio::test]
async fn a_client_that_is_told_its_end_asks_for_another_token_and_stays() {
    let switch = Switch {
        expiring: Some(60),
        inbox: vec![b"behind it".to_vec()],
        ..Switch::default()
    };
    let fixture = Fixture::start(switch).await;
    let mut options = fixture.options();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    options.token = Arc::new(move || match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Ok("token-of-bob".to_owned()),
        _ => Ok("another-of-bob".to_owned()),
    });
    let mut client = Client::connect(options).await.expect("a client");
    assert!(matches!(client.next().await, Ok(Arrival::Entry(entry)) if entry.seq == Seq(1)));
    // Its Reauth goes ahead of what it sends now.
    client
        .send(&user("ann"), b"still here".to_vec())
        .await
        .expect("accepted");
    fixture.look(|switch| {
        assert_eq!(switch.renewed, ["another-of-bob"]);
        assert_eq!(switch.connections, 1);
    });
}

/// R: A-2
#[tokio::test]
async fn refused_token_and_wrong_user_end_the_client() {
    let fixture = Fixture::start(Switch::default()).await;
    let mut options = fixture.options();
    options.token = Arc::new(|| Ok("stale".to_owned()));
    let error = Client::connect(options)
        .await
        .expect_err("the token is bad")
        .to_string();
    assert_eq!(error, "the token was refused; get a new one");
    let mut options = fixture.options();
    options.user = user("ann");
    let error = Client::connect(options).await.expect_err("bob is not ann");
    assert!(
        matches!(error, ConnectError::Ended(Ended::WrongUser { .. })),
        "{error}"
    );
}

/// R: D-2. A person reads what the switch said, not that it said nothing.
#[tokio::test]
async fn a_switch_that_ends_the_login_with_a_reason_is_quoted() {
    for (reason, at_once) in [
        (GoodbyeReason::Unavailable, true),
        (GoodbyeReason::Overloaded, false),
    ] {
        let fixture = Fixture::start(Switch {
            turned_away: Some(reason),
            ..Switch::default()
        })
        .await;
        let mut options = fixture.options();
        options.patience = match at_once {
            true => Duration::from_secs(60), // it is not waited for
            false => Duration::from_millis(300),
        };
        let error = Client::connect(options)
            .await
            .expect_err("nobody is let in");
        assert_eq!(
            error.to_string(),
            format!("{} ended the session: {reason}", fixture.addr)
        );
    }
}

#[tokio::test]
async fn unreachable_switch_is_reported_when_patience_ends() {
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port")
        .local_addr()
        .expect("bound");
    let token: TokenSource = Arc::new(|| Ok(String::new()));
    let roots = Arc::new(RootCertStore::empty());
    let mut options = ConnectOptions::new(&port.to_string(), roots, user("bob"), token);
    options.patience = Duration::from_millis(50);
    let error = Client::connect(options)
        .await
        .expect_err("nobody is there")
        .to_string();
    assert!(error.starts_with("cannot reach 127.0.0.1:"), "{error}");
}
