//! TLS 1.3 without buffers of its own: bytes in, bytes out, no socket.
//!
//! ```text
//!   received bytes ──open──▶ plaintext, appended to `plain`
//!                     └────▶ handshake records, tickets, alerts, appended to `wire`
//!   plaintext ──seal──▶ records, appended to `wire`
//! ```
//!
//! The caller sends whatever is in `wire`, in order, also when `open` fails: an alert then tells
//! the peer why, and the connection is to be closed behind it.
//!
//! Records are decrypted where they were received. What is kept between calls is the beginning of
//! one record, at most [`PARTIAL_BYTES_MAX`], and nothing once it is complete; a byte that dribbles
//! in costs the same whatever lies there already. A [`Tls`] moves between cores with its
//! connection.
//!
//! It offers `iris/2` by ALPN and refuses a peer that does not.

use iris_proto::limits::ALPN;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, UnbufferedServerConnection,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

/// Plaintext bytes of one record (RFC 8446, 5.1).
pub const RECORD_PLAIN_BYTES_MAX: usize = 16 * 1024;
/// Type, version and length (RFC 8446, 5.1).
const RECORD_HEADER_BYTES: usize = 5;
/// Bytes of one record on the wire: header, plaintext, content type and tag, at most (RFC 8446,
/// 5.2).
pub const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + RECORD_PLAIN_BYTES_MAX + 256;
/// Bytes kept of what is not complete. A handshake message that needs more, over several records,
/// is refused: ours are below 4 KiB.
pub const PARTIAL_BYTES_MAX: usize = RECORD_BYTES_MAX;
/// The same in a handshake with a client that shows no certificate: a ClientHello with two key exchanges and
/// a ticket has some 2 KiB.
pub const HANDSHAKE_BYTES_MAX: usize = 4 * 1024;
/// What a record of ours adds to its plaintext: header 5, content type 1, tag 16.
const RECORD_OVERHEAD_BYTES: usize = 22;
/// Room for a handshake or alert record before rustls says how much it needs.
const CLOSE_BYTES: usize = 64;
/// Session tickets per handshake. A client has one connection, but an attempt uses a ticket up as soon as it
/// begins, and one that is refused before TLS is answered brings none: with one ticket the first refusal of
/// a storm would cost it its resumption, and the switch a full handshake.
const TICKETS: usize = 4;

const _: () = {
    const fn movable<T: Send>() {}
    movable::<Tls>(); // a connection moves to its user's core
    movable::<TlsError>();
};

/// Why a TLS connection cannot go on. Send what is in `wire`, then close.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol, or does not trust us.
    #[error("TLS failed: {0}; the peer must speak TLS 1.3 and trust this certificate")]
    Protocol(#[from] rustls::Error),
    /// The peer does not speak `iris/2`.
    #[error("the peer did not agree on the protocol iris/2 by ALPN; it must offer it")]
    NoAlpn,
    /// A handshake message that is larger than anything useful.
    #[error("the peer sent a handshake message that is larger than any that is needed")]
    HandshakeTooLarge,
    /// Sealing before the handshake is done or after the connection was closed.
    #[error("TLS cannot send application data in this state; wait for the handshake, or reconnect")]
    NotReady,
    /// The connection failed before; nothing was done.
    #[error("this TLS connection has failed already; close it")]
    Failed,
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    /// The certificate file is not what it should be.
    #[error("cannot read the certificate chain: {0}; give a PEM file with the server's first")]
    Certificate(rustls::pki_types::pem::Error),
    /// The key file is not what it should be.
    #[error("cannot read the private key: {0}; give a PEM file with one PKCS#8, SEC1 or RSA key")]
    Key(rustls::pki_types::pem::Error),
    /// There is no certificate in the file.
    #[error("the certificate file holds no certificate; give a PEM file with at least one")]
    Empty,
    /// The certificate and the key cannot be used together.
    #[error("cannot use this certificate with this key: {0}; they must belong together")]
    Mismatch(rustls::Error),
    /// The authorities of clients cannot be used.
    #[error(
        "cannot use the authorities of clients ({0}); give a PEM file with CA certificates as tls.client_ca"
    )]
    ClientAuthority(String),
    /// The tickets' keys could not be made, or rustls refuses the settings.
    #[error("cannot set up TLS: {0}; the machine's random source must work")]
    Setup(rustls::Error),
}

/// What [`Tls::open`] found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handshake is not done: nothing can be sealed yet.
    pub handshaking: bool,
    /// The peer has said that it will send no more (close_notify). Later bytes are ignored.
    pub closed: bool,
    /// Records that became whole: each costs much the same, whatever is in it.
    pub records: usize,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// One TLS connection, either side.
pub struct Tls {
    side: Box<Side>,
    /// The beginning of an incomplete record, or of a handshake message over several records.
    partial: Vec<u8>,
    /// Bytes that are kept of it before the handshake is done.
    handshake_bytes_max: usize,
    agreed: bool,
    closed: bool,
    failed: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("handshaking", &self.is_handshaking())
            .field("partial", &self.partial.len())
            .field("closed", &self.closed)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// Where one step of rustls left us.
enum Next {
    Again,
    /// It needs more from the peer, or waits for us to write.
    Wait,
    Closed,
}

impl Tls {
    /// The accepting side.
    pub fn server(config: Arc<ServerConfig>) -> Result<Tls, TlsError> {
        Ok(Tls::new(Side::Server(UnbufferedServerConnection::new(
            config,
        )?)))
    }

    /// The connecting side; continue with [`Self::start`].
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Tls, TlsError> {
        Ok(Tls::new(Side::Client(UnbufferedClientConnection::new(
            config, name,
        )?)))
    }

    fn new(side: Side) -> Tls {
        let (agreed, closed, failed) = (false, false, false);
        Tls {
            side: Box::new(side),
            partial: Vec::new(),
            handshake_bytes_max: PARTIAL_BYTES_MAX,
            agreed,
            closed,
            failed,
        }
    }

    /// Keeps no more than so many bytes of what is not complete before the handshake is done.
    pub fn bound_handshake(&mut self, bytes: usize) {
        self.handshake_bytes_max = bytes.min(PARTIAL_BYTES_MAX);
    }

    /// Appends the first handshake record. For the client side, once.
    pub fn start(&mut self, wire: &mut Vec<u8>) -> Result<(), TlsError> {
        assert!(matches!(*self.side, Side::Client(_)), "the client starts");
        self.open(&mut [], &mut Vec::new(), wire).map(drop)
    }

    /// Takes received bytes in. Plaintext is appended to `plain`, at most as much as came in; what
    /// is to be sent is appended to `wire`, also on an error. `data` is scratch afterwards.
    pub fn open(
        &mut self,
        data: &mut [u8],
        plain: &mut Vec<u8>,
        wire: &mut Vec<u8>,
    ) -> Result<Opened, TlsError> {
        if self.failed {
            return Err(TlsError::Failed);
        }
        let mut records = 0;
        let opened = if self.partial.is_empty() {
            records += whole_records(data);
            self.process(data, plain, wire)
                .map(|used| self.keep(&data[used..]))
        } else {
            let mut partial = std::mem::take(&mut self.partial);
            partial.extend_from_slice(data);
            records += whole_records(&partial);
            self.process(&mut partial, plain, wire).map(|used| {
                // Keep the vector while a record is under way, so that dribbling does not copy it.
                partial.drain(..used);
                if partial.is_empty() || self.closed {
                    partial = Vec::new();
                }
                self.partial = partial;
            })
        };
        let checked = opened.and_then(|()| self.check(wire));
        self.failed = checked.is_err();
        checked?;
        Ok(Opened {
            handshaking: self.is_handshaking(),
            closed: self.closed,
            records,
        })
    }

    fn keep(&mut self, rest: &[u8]) {
        if !rest.is_empty() && !self.closed {
            self.partial.extend_from_slice(rest);
        }
    }

    /// What must hold after each step: bounded memory, and the right protocol.
    fn check(&mut self, wire: &mut Vec<u8>) -> Result<(), TlsError> {
        let max = match self.is_handshaking() {
            true => self.handshake_bytes_max,
            false => PARTIAL_BYTES_MAX,
        };
        if self.partial.len() > max {
            return Err(TlsError::HandshakeTooLarge);
        }
        if !self.agreed && !self.is_handshaking() {
            if self.alpn() != Some(ALPN) {
                self.close(wire);
                return Err(TlsError::NoAlpn);
            }
            self.agreed = true;
        }
        Ok(())
    }

    /// Lets rustls work through `data`; how many bytes are done with.
    fn process(
        &mut self,
        data: &mut [u8],
        plain: &mut Vec<u8>,
        wire: &mut Vec<u8>,
    ) -> Result<usize, TlsError> {
        let mut used = 0;
        loop {
            let (discard, next) = match &mut *self.side {
                Side::Server(it) => step(it.process_tls_records(&mut data[used..]), plain, wire),
                Side::Client(it) => step(it.process_tls_records(&mut data[used..]), plain, wire),
            };
            used += discard;
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Wait) => return Ok(used),
                Ok(Next::Closed) => {
                    self.closed = true;
                    return Ok(used);
                }
                Err(error) => {
                    self.alert(wire);
                    return Err(error);
                }
            }
        }
    }

    /// After an error: what rustls has queued for the peer, the alert last. It hands that out
    /// before it looks at any input, so it is given none; and it must not be asked for more, or it
    /// would work on after the error.
    fn alert(&mut self, wire: &mut Vec<u8>) {
        let mut plain = Vec::new();
        loop {
            let (_, next) = match &mut *self.side {
                Side::Server(it) if it.wants_write() => {
                    step(it.process_tls_records(&mut []), &mut plain, wire)
                }
                Side::Client(it) if it.wants_write() => {
                    step(it.process_tls_records(&mut []), &mut plain, wire)
                }
                _ => return,
            };
            if next.is_err() {
                return;
            }
        }
    }

    /// Appends `plain` to `wire` in as few records as possible.
    pub fn seal(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.failed {
            return Err(TlsError::Failed);
        }
        if plain.is_empty() {
            return Ok(());
        }
        let records = plain.len().div_ceil(RECORD_PLAIN_BYTES_MAX);
        let room = plain.len() + records * RECORD_OVERHEAD_BYTES;
        self.write(room, wire, |traffic, out| traffic.encrypt(plain, out))
    }

    /// Appends the close_notify, after which nothing can be sealed. Without effect before the
    /// handshake is done, when there is nobody to tell.
    pub fn close(&mut self, wire: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        // NotReady: the handshake is not done.
        let _ = self.write(CLOSE_BYTES, wire, |traffic, out| {
            traffic.queue_close_notify(out)
        });
    }

    /// Runs `write` on the tail of `wire`, grown by `room` bytes, or by what rustls asks for.
    fn write(
        &mut self,
        room: usize,
        wire: &mut Vec<u8>,
        mut write: impl FnMut(&mut dyn Traffic, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        loop {
            let partial = &mut self.partial;
            let mut plain = Vec::new();
            // rustls must see the incomplete bytes again: its handshake state points into them.
            let next = match &mut *self.side {
                Side::Server(it) => write_step(
                    it.process_tls_records(partial),
                    room,
                    wire,
                    &mut plain,
                    &mut write,
                ),
                Side::Client(it) => write_step(
                    it.process_tls_records(partial),
                    room,
                    wire,
                    &mut plain,
                    &mut write,
                ),
            };
            assert!(plain.is_empty(), "plaintext was left behind by open");
            match next {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the handshake is still going on.
    pub fn is_handshaking(&self) -> bool {
        match &*self.side {
            Side::Server(it) => it.is_handshaking(),
            Side::Client(it) => it.is_handshaking(),
        }
    }

    /// Whether the handshake resumed an earlier session; `None` before that is known.
    pub fn resumed(&self) -> Option<bool> {
        let kind = match &*self.side {
            Side::Server(it) => it.handshake_kind(),
            Side::Client(it) => it.handshake_kind(),
        };
        kind.map(|kind| kind == rustls::HandshakeKind::Resumed)
    }

    /// The protocol agreed on; `iris/2` once the handshake is done.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &*self.side {
            Side::Server(it) => it.alpn_protocol(),
            Side::Client(it) => it.alpn_protocol(),
        }
    }

    /// Bytes kept of an incomplete record.
    pub fn partial_bytes(&self) -> usize {
        self.partial.len()
    }
}

/// The records that end in these bytes, which begin with one.
fn whole_records(mut bytes: &[u8]) -> usize {
    let mut records = 0;
    while let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER_BYTES) {
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let Some(rest) = rest.get(len..) else {
            break;
        };
        records += 1;
        bytes = rest;
    }
    records
}

/// One state of rustls: its output appended, and how many input bytes are done with.
fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    plain: &mut Vec<u8>,
    wire: &mut Vec<u8>,
) -> (usize, Result<Next, TlsError>) {
    let UnbufferedStatus { mut discard, state } = status;
    let next = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut result = Ok(Next::Again);
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    Err(error) => result = Err(error.into()),
                }
            }
            result
        }
        Ok(ConnectionState::EncodeTlsData(mut record)) => {
            append(wire, CLOSE_BYTES, |out| match record.encode(out) {
                Err(EncodeError::InsufficientSize(needed)) => Err(Some(needed.required_size)),
                result => result.map_err(|_| None),
            })
            .map(|()| Next::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Next::Again)
        }
        Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => Ok(Next::Wait),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Next::Closed),
        // Early data is not enabled, and no other state exists in this version.
        Ok(_) => Err(TlsError::NotReady),
        Err(error) => Err(error.into()),
    };
    (discard, next)
}

/// Either side's permission to write.
trait Traffic {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError>;
    fn queue_close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<D> Traffic for WriteTraffic<'_, D> {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::encrypt(self, plain, out)
    }

    fn queue_close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::queue_close_notify(self, out)
    }
}

/// One state of rustls on the way to a write; whether the write has been done.
fn write_step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    room: usize,
    wire: &mut Vec<u8>,
    plain: &mut Vec<u8>,
    write: &mut impl FnMut(&mut dyn Traffic, &mut [u8]) -> Result<usize, EncryptError>,
) -> Result<bool, TlsError> {
    if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state {
        assert!(
            status.discard == 0,
            "open has worked through all that was complete"
        );
        append(wire, room, |out| match write(&mut traffic, out) {
            Err(EncryptError::InsufficientSize(needed)) => Err(Some(needed.required_size)),
            result => result.map_err(|_| None),
        })?;
        return Ok(true);
    }
    match step(status, plain, wire) {
        (_, Ok(Next::Again)) => Ok(false),
        (_, Err(error)) => Err(error),
        (_, Ok(Next::Wait | Next::Closed)) => Err(TlsError::NotReady),
    }
}

/// Grows `wire` by `room`, lets `write` fill it, and cuts it to what was written. `Err(Some(n))`
/// from `write` means that it needs n bytes.
fn append(
    wire: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), TlsError> {
    let start = wire.len();
    let mut room = room;
    loop {
        wire.reserve_exact(room);
        wire.resize(start + room, 0);
        match write(&mut wire[start..]) {
            Ok(written) => {
                wire.truncate(start + written);
                return Ok(());
            }
            Err(Some(needed)) if needed > room => {
                wire.truncate(start);
                room = needed;
            }
            Err(_) => {
                wire.truncate(start);
                return Err(TlsError::NotReady);
            }
        }
    }
}

/// Our one certificate. A client that offers no protocol at all is refused here: rustls itself
/// refuses only one that offers another.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.alpn().map(|_| Arc::clone(&self.0))
    }
}

/// aws-lc-rs, preferring the key exchange that a later quantum computer cannot undo: 20 µs more per
/// handshake, and recorded traffic stays closed.
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
    let kx_groups = vec![X25519MLKEM768, X25519, SECP256R1];
    Arc::new(CryptoProvider {
        kx_groups,
        ..aws_lc_rs::default_provider()
    })
}

/// The server's TLS: TLS 1.3 only, ALPN `iris/2` required, several stateless session tickets. With `clients`
/// a peer must show a certificate of one of these authorities, or the handshake fails.
pub fn server_config(
    certificate_pem: &[u8],
    key_pem: &[u8],
    clients: Option<&[CertificateDer<'static>]>,
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let chain = certificates(certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(TlsConfigError::Key)?;
    let provider = provider();
    let certified =
        CertifiedKey::from_der(chain, key, &provider).map_err(TlsConfigError::Mismatch)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsConfigError::Setup)?
        .with_client_cert_verifier(client_verifier(clients)?)
        .with_cert_resolver(Arc::new(OneCertificate(Arc::new(certified))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsConfigError::Setup)?;
    config.send_tls13_tickets = TICKETS;
    config.max_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}

/// Who may shake hands: everybody, or whoever one of these authorities vouches for.
fn client_verifier(
    authorities: Option<&[CertificateDer<'static>]>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsConfigError> {
    let Some(authorities) = authorities else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        let added = roots.add(certificate.clone());
        added.map_err(|error| TlsConfigError::ClientAuthority(error.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| TlsConfigError::ClientAuthority(error.to_string()))
}

/// A client's TLS that trusts the certificates in `ca_pem` and nothing else.
pub fn client_config(ca_pem: &[u8]) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        roots.add(certificate).map_err(TlsConfigError::Mismatch)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsConfigError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let all = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(TlsConfigError::Certificate)?;
    if all.is_empty() {
        Err(TlsConfigError::Empty)
    } else {
        Ok(all)
    }
}

#[cfg(test)]
pub(crate) mod tests;
