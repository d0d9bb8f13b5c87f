//! The TCP port: on loopback, behind a token.

use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use hyper::header::{AUTHORIZATION, HeaderMap};
use tokio::net::{TcpListener, TcpStream};

use super::AdminError;

/// Connections at a time over TCP: a browser opens some ahead. Further ones wait in the kernel.
pub const TCP_CONNECTIONS_MAX: usize = 16;
/// How the header begins that shows the token; the word counts in any case.
const SCHEME: &str = "bearer ";

/// The token, as a digest: what is compared has one length, and the token itself is not kept.
#[derive(Debug)]
pub(super) struct Token(Digest);

impl Token {
    pub fn new(token: &[u8]) -> Self {
        Self(digest(&SHA256, token))
    }

    /// Whether a request shows it, in exactly one header. How long this takes says nothing of the token.
    pub fn is_shown_in(&self, headers: &HeaderMap) -> bool {
        let mut shown = headers.get_all(AUTHORIZATION).into_iter();
        let (Some(header), None) = (shown.next(), shown.next()) else {
            return false;
        };
        let Some((scheme, token)) = header.as_bytes().split_at_checked(SCHEME.len()) else {
            return false;
        };
        let shown = digest(&SHA256, token);
        scheme.eq_ignore_ascii_case(SCHEME.as_bytes())
            && verify_slices_are_equal(shown.as_ref(), self.0.as_ref()).is_ok()
    }
}

/// The port, taken.
#[derive(Debug)]
pub(super) struct Port {
    listener: StdListener,
    address: SocketAddr,
    token: Token,
}

impl Port {
    pub fn open(address: SocketAddr, token: Token) -> Result<Self, AdminError> {
        assert!(address.ip().is_loopback(), "the configuration was checked");
        let bound = StdListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let (listener, address) = bound.map_err(|source| AdminError::Port { address, source })?;
        tracing::info!(%address, "admin requests are answered over HTTP");
        Ok(Self {
            listener,
            address,
            token,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn into_tokio(self) -> io::Result<(TcpListener, Arc<Token>)> {
        Ok((TcpListener::from_std(self.listener)?, Arc::new(self.token)))
    }
}

/// The next connection, and the token that it must show; never, without a port.
pub(super) async fn accept(
    port: Option<&(TcpListener, Arc<Token>)>,
) -> io::Result<(TcpStream, Arc<Token>)> {
    let Some((listener, token)) = port else {
        return pending().await;
    };
    let (stream, _) = listener.accept().await?;
    Ok((stream, Arc::clone(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    /// R: E-2
    #[test]
    fn a_token_is_shown_once_whole_and_as_bearer() {
        let token = Token::new(b"0123456789abcdef");
        let is_shown = |values: &[&str]| token.is_shown_in(&headers(values));
        assert!(is_shown(&["Bearer 0123456789abcdef"]));
        assert!(is_shown(&["bearer 0123456789abcdef"]));
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer  0123456789abcdef",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!is_shown(&[bad]), "{bad}");
        }
        assert!(!is_shown(&[]));
        let good = "Bearer 0123456789abcdef";
        assert!(!is_shown(&[good, good]), "which of them?");
    }
}
