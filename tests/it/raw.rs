//! A client that does exactly what it is told, rules or not. Blocking; every read has a deadline, so
//! a switch that says nothing is a failure and not a hang.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iris_proto::v2::client_frame::Frame as ClientFrame;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{self, GoodbyeReason, RejectCode};
use iris_proto::wire;
use prost::Message;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::harness::{Identity, PATIENCE, Server};

/// One TLS connection.
pub struct Raw {
    stream: StreamOwned<ClientConnection, TcpStream>,
    received: Vec<u8>,
    frames: VecDeque<ServerFrame>,
    tag: u64,
}

/// What a login may choose.
#[derive(Clone)]
pub struct Hello<'a> {
    pub device: &'a str,
    pub epoch: u64,
    pub resume_after: Option<u64>,
    pub send_only: bool,
}

impl Default for Hello<'_> {
    fn default() -> Self {
        Self {
            device: "phone",
            epoch: 1,
            resume_after: None,
            send_only: false,
        }
    }
}

/// A certificate of a client, and its key.
pub type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A client's TLS. Connections that share one resume each other's sessions.
pub fn config(identity: &Identity) -> Arc<ClientConfig> {
    config_with(identity, None)
}

/// The same of a client that shows a certificate.
pub fn config_with(identity: &Identity, shown: Option<Shown>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(identity.roots.clone());
    let mut config = match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"iris/2".to_vec()];
    Arc::new(config)
}

impl Raw {
    /// Connects, without a login.
    pub fn connect(address: SocketAddr, identity: &Identity) -> Self {
        Self::try_connect(address, identity).unwrap()
    }

    /// The same with a switch that may be gone.
    pub fn try_connect(address: SocketAddr, identity: &Identity) -> Option<Self> {
        Self::try_connect_with(address, config(identity))
    }

    pub fn try_connect_with(address: SocketAddr, config: Arc<ClientConfig>) -> Option<Self> {
        Self::over(TcpStream::connect(address).ok()?, config)
    }

    /// The same from one of the addresses of this machine.
    pub fn connect_from(from: IpAddr, address: SocketAddr, identity: &Identity) -> Self {
        let SocketAddr::V4(to) = address else {
            panic!("the switch of a test listens on IPv4");
        };
        let IpAddr::V4(from) = from else {
            panic!("{from} is not of IPv4");
        };
        let sockets = [from, *to.ip()].map(u32::from).map(u32::to_be);
        let ports = [0, to.port().to_be()];
        let places = [0, 1].map(|side| libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: ports[side],
            sin_addr: libc::in_addr {
                s_addr: sockets[side],
            },
            sin_zero: [0; 8],
        });
        let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: a new descriptor, or -1.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0);
        // SAFETY: it was just made, and nobody else has it.
        let socket = unsafe { TcpStream::from_raw_fd(fd) };
        let [from, to] = &places;
        // SAFETY: an address of this family and its length.
        assert_eq!(
            unsafe { libc::bind(fd, std::ptr::from_ref(from).cast(), len) },
            0
        );
        // SAFETY: as above.
        assert_eq!(
            unsafe { libc::connect(fd, std::ptr::from_ref(to).cast(), len) },
            0
        );
        Self::over(socket, config(identity)).unwrap()
    }

    fn over(socket: TcpStream, config: Arc<ClientConfig>) -> Option<Self> {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let name = "localhost".try_into().unwrap();
        let tls = ClientConnection::new(config, name).unwrap();
        let stream = StreamOwned::new(tls, socket);
        Some(Self {
            stream,
            received: Vec::new(),
            frames: VecDeque::new(),
            tag: 0,
        })
    }

    /// Whether the handshake, which is done, resumed an earlier session.
    pub fn resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// Connects and logs in as `user` on device `phone`.
    pub fn login(server: &Server, user: &str) -> Self {
        Self::login_with(server, user, &Hello::default()).0
    }

    pub fn login_with(server: &Server, user: &str, hello: &Hello<'_>) -> (Self, v2::Welcome) {
        let identity = server.identity();
        let mut client = Self::connect(server.address, &identity);
        client.hello(&identity.token(user), hello);
        let welcome = client.welcome();
        (client, welcome)
    }

    /// Does the handshake now, and not with the first frame.
    pub fn shake_hands(&mut self) {
        while self.stream.conn.is_handshaking() {
            let (conn, sock) = (&mut self.stream.conn, &mut self.stream.sock);
            conn.complete_io(sock).unwrap();
        }
    }

    /// A session of `user`, who has far more to get than the kernel holds for a socket and asked for all of
    /// it: unless it reads, its socket is full.
    pub fn with_a_full_socket(server: &Server, user: &str) -> Self {
        let mut sender = Self::login(server, "sender");
        for n in 1..=400 {
            sender.send_accepted(user, n, &vec![7; 60_000]);
        }
        let mut client = Self::login(server, user);
        client.write(ClientFrame::Fetch(v2::Fetch {
            tag: 7,
            after: 0,
            limit: 1_000,
        }));
        client
    }

    /// Sends the ClientHello and waits for nothing.
    pub fn start_handshake(&mut self) {
        self.stream.conn.write_tls(&mut self.stream.sock).unwrap();
    }

    pub fn hello(&mut self, token: &str, hello: &Hello<'_>) {
        self.try_hello(token, hello).unwrap();
    }

    pub fn try_hello(&mut self, token: &str, hello: &Hello<'_>) -> io::Result<()> {
        self.try_write(ClientFrame::Hello(v2::Hello {
            token: token.to_owned(),
            device: hello.device.to_owned(),
            send_epoch: hello.epoch,
            resume_after: hello.resume_after,
            version_min: 2,
            version_max: 2,
            capabilities: match hello.send_only {
                true => vec!["send-only".to_owned()],
                false => Vec::new(),
            },
        }))
    }

    pub fn welcome(&mut self) -> v2::Welcome {
        match self.next() {
            ServerFrame::Welcome(welcome) => welcome,
            other => panic!("a Welcome was due, {other:?} came"),
        }
    }

    pub fn write(&mut self, frame: ClientFrame) {
        self.try_write(frame).unwrap();
    }

    fn try_write(&mut self, frame: ClientFrame) -> io::Result<()> {
        let mut bytes = Vec::new();
        wire::encode_client(&mut bytes, frame);
        self.stream.write_all(&bytes)?;
        self.stream.flush()
    }

    /// Writes to a switch that may have said Goodbye and closed.
    pub fn write_if_open(&mut self, frame: ClientFrame) {
        let _ = self.try_write(frame);
    }

    pub fn write_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// The same to a switch that may have said Goodbye and closed; whether it had not.
    pub fn write_bytes_if_open(&mut self, bytes: &[u8]) -> bool {
        let written = self.stream.write_all(bytes);
        written.and_then(|()| self.stream.flush()).is_ok()
    }

    /// Writes past TLS, straight to the socket. The switch may have closed it.
    pub fn write_unsealed(&mut self, bytes: &[u8]) {
        let _ = self.stream.sock.write_all(bytes);
    }

    /// Takes a byte from the socket and throws it away, if one is there. Nothing can be read after that.
    pub fn read_a_byte_unopened(&mut self) {
        self.stream.sock.set_nonblocking(true).unwrap();
        let _ = self.stream.sock.read(&mut [0; 1]); // it may have been cut
        self.stream.sock.set_nonblocking(false).unwrap();
    }

    /// Sends pings, and reads nothing, until the connection ends.
    pub fn flood_pings_until_cut(mut self) {
        self.stream.sock.set_write_timeout(None).unwrap();
        while self
            .try_write(ClientFrame::Ping(v2::Ping { nonce: 1 }))
            .is_ok()
        {}
    }

    /// Sends without waiting; the tag of the request.
    pub fn send(&mut self, to: &str, n: u64, body: &[u8]) -> u64 {
        self.try_send(to, n, body).unwrap()
    }

    /// The same with a switch that may be gone.
    pub fn try_send(&mut self, to: &str, n: u64, body: &[u8]) -> io::Result<u64> {
        self.tag += 1;
        let tag = self.tag;
        self.try_write(ClientFrame::Send(v2::Send {
            tag,
            to: to.to_owned(),
            n,
            id: vec![n as u8; 16],
            body: body.to_vec(),
        }))?;
        Ok(tag)
    }

    /// Sends and waits until it is accepted.
    pub fn send_accepted(&mut self, to: &str, n: u64, body: &[u8]) {
        let tag = self.send(to, n, body);
        assert_eq!(self.accepted(), v2::Accepted { tag, n });
    }

    pub fn ack(&mut self, seq: u64) {
        self.try_ack(seq).unwrap();
    }

    /// The same with a switch that may be gone.
    pub fn try_ack(&mut self, seq: u64) -> io::Result<()> {
        self.try_write(ClientFrame::Ack(v2::Ack { seq }))
    }

    /// The next frame of any kind.
    pub fn next(&mut self) -> ServerFrame {
        self.try_next()
            .unwrap_or_else(|why| panic!("a frame was due: {why}"))
    }

    /// The next frame; an error at the end of the connection or of patience.
    pub fn try_next(&mut self) -> Result<ServerFrame, String> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            let mut buffer = [0; 64 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("the connection ended".to_owned()),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(error.to_string()),
            }
            let mut at = 0;
            while let Some(head) = self.received.get(at..at + 4) {
                let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
                let Some(frame) = self.received.get(at + 4..at + 4 + len) else {
                    break;
                };
                let frame = v2::ServerFrame::decode(frame).unwrap().frame.unwrap();
                self.frames.push_back(frame);
                at += 4 + len;
            }
            self.received.drain(..at);
        }
    }

    /// Brings a further token; the tag of the request.
    pub fn reauth(&mut self, token: &str) -> u64 {
        self.tag += 1;
        let (tag, token) = (self.tag, token.to_owned());
        self.write(ClientFrame::Reauth(v2::Reauth { tag, token }));
        tag
    }

    pub fn entry(&mut self) -> v2::Entry {
        match self.next() {
            ServerFrame::Entry(entry) => entry,
            other => panic!("an Entry was due, {other:?} came"),
        }
    }

    pub fn accepted(&mut self) -> v2::Accepted {
        match self.next() {
            ServerFrame::Accepted(accepted) => accepted,
            other => panic!("an Accepted was due, {other:?} came"),
        }
    }

    pub fn rejected(&mut self) -> (RejectCode, v2::Rejected) {
        match self.next() {
            ServerFrame::Rejected(rejected) => (rejected.code(), rejected),
            other => panic!("a Rejected was due, {other:?} came"),
        }
    }

    /// The Goodbye that is due, and then the end of the connection.
    pub fn goodbye(&mut self) -> GoodbyeReason {
        let reason = match self.next() {
            ServerFrame::Goodbye(goodbye) => goodbye.reason(),
            other => panic!("a Goodbye was due, {other:?} came"),
        };
        assert!(self.try_next().is_err(), "something came after a Goodbye");
        reason
    }

    /// The next frame if one comes within so long; an error at the end of the connection.
    pub fn try_next_within(&mut self, time: Duration) -> Result<Option<ServerFrame>, String> {
        let deadline = Instant::now() + time;
        self.stream.sock.set_read_timeout(Some(time)).unwrap();
        let said = self.try_next();
        self.stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
        match said {
            Err(_) if Instant::now() >= deadline => Ok(None),
            said => said.map(Some),
        }
    }

    /// Everything that the switch sends before it answers a Ping sent now: what is not in it had not
    /// been sent by then.
    pub fn until_pong(&mut self) -> Vec<ServerFrame> {
        self.tag += 1;
        let nonce = self.tag;
        self.write(ClientFrame::Ping(v2::Ping { nonce }));
        let mut before = Vec::new();
        loop {
            match self.next() {
                ServerFrame::Pong(pong) if pong.nonce == nonce => return before,
                frame => before.push(frame),
            }
        }
    }
}
