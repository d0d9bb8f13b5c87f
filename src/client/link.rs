//! One connection: TCP, TLS 1.3, and the agreement to speak `iris/2`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use iris_proto::limits::ALPN;
use iris_proto::reject::GoodbyeReason;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long TCP and TLS may take together.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers there.
    #[error("cannot reach {addr}: {source}; is the switch running, and is the address right?")]
    Unreachable {
        /// Where.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("no TLS connection to {addr} within {} s; is it an iris switch?", LINK_TIMEOUT.as_secs())]
    Timeout {
        /// Where.
        addr: String,
    },
    /// TLS failed, for example because the certificate is not trusted.
    #[error("no TLS connection to {addr}: {source}; give the right CA certificate and host name")]
    Tls {
        /// Where.
        addr: String,
        /// What TLS said.
        source: io::Error,
    },
    /// The other side speaks TLS but not this protocol.
    #[error("{addr} does not speak iris/2; connect to the port of an iris switch")]
    OtherProtocol {
        /// Where.
        addr: String,
    },
    /// The host's name cannot be in a certificate.
    #[error("`{name}` is no host name or IP address; give HOST:PORT")]
    BadName {
        /// The name.
        name: String,
    },
    /// The switch ended the session; it may be tried again.
    #[error("{addr} ended the session: {reason}")]
    Goodbye {
        /// Where.
        addr: String,
        /// What the switch said.
        reason: GoodbyeReason,
    },
    /// There is no token to log in with.
    #[error("no token: {0}")]
    Token(super::TokenError),
}

impl LinkError {
    /// Trying again without a person's help is of no use.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => false,
            // The peer may vanish in the middle of a handshake; a verdict on it comes as InvalidData.
            Self::Tls { source, .. } => source.kind() == io::ErrorKind::InvalidData,
            // Damaged data is served again when a person has seen to it.
            Self::Goodbye { reason, .. } => *reason == GoodbyeReason::Unavailable,
            Self::OtherProtocol { .. } | Self::BadName { .. } | Self::Token(_) => true,
        }
    }
}

/// The TLS settings of all connections: 1.3 only, only `iris/2`, sessions resumed.
pub(super) fn tls_config(roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Connects to `addr` (`host:port`) and expects a certificate for `server_name` (the host by default).
pub(super) async fn open(
    config: Arc<ClientConfig>,
    addr: &str,
    server_name: Option<&str>,
) -> Result<TlsStream<TcpStream>, LinkError> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = server_name
        .unwrap_or(host)
        .trim_start_matches('[')
        .trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|_| LinkError::BadName {
        name: host.to_owned(),
    })?;
    let link = async {
        let unreachable = |source| LinkError::Unreachable {
            addr: addr.to_owned(),
            source,
        };
        let socket = TcpStream::connect(addr).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let stream = TlsConnector::from(config).connect(name, socket).await;
        stream.map_err(|source| LinkError::Tls {
            addr: addr.to_owned(),
            source,
        })
    };
    let timeout = |_| LinkError::Timeout {
        addr: addr.to_owned(),
    };
    let stream = tokio::time::timeout(LINK_TIMEOUT, link)
        .await
        .map_err(timeout)??;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(LinkError::OtherProtocol {
            addr: addr.to_owned(),
        });
    }
    Ok(stream)
}
