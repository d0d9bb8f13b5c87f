//! How a command speaks with the switch of this machine: over the admin socket in its data directory, or
//! over its admin port.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::Failure;
use crate::config::{read_secret, strip_newline};
use crate::runtime::admin::{REQUEST_MAX, socket};

/// Bytes of an answer that are read at most: the histograms of 64 cores take less than a half of it, and
/// everything else less than a tenth.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// A little more than the switch takes for itself.
const PATIENCE: Duration = REQUEST_MAX.saturating_add(Duration::from_secs(1));

/// Where a switch is asked.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// Over the socket in this data directory.
    Socket(PathBuf),
    /// Over its admin port, with the header that shows the token.
    Port(SocketAddr, Zeroizing<String>),
}

impl Target {
    /// The admin port, with the token in this file.
    pub fn port(address: SocketAddr, token_file: &Path) -> Result<Self, Failure> {
        let mut token = read_secret(token_file)?;
        strip_newline(&mut token);
        let Some(token) = std::str::from_utf8(&token)
            .ok()
            .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
        else {
            return Err(Failure::Told(format!(
                "{} holds no token: one word of printable ASCII; use the file that the switch has \
                 in [admin] token_file",
                token_file.display()
            )));
        };
        let header = format!("Authorization: Bearer {token}\r\n");
        Ok(Self::Port(address, Zeroizing::new(header)))
    }

    /// Status and body of the switch's answer to a GET.
    pub fn get(&self, path: &str) -> Result<(u16, String), Failure> {
        let header = match self {
            Self::Socket(_) => "",
            Self::Port(_, header) => header,
        };
        self.ask(&format!("GET {path} HTTP/1.0\r\n{header}\r\n"))
    }

    fn ask(&self, request: &str) -> Result<(u16, String), Failure> {
        let answer = match self {
            Self::Socket(data) => {
                let stream = socket::connect(data).map_err(|error| not_reached(data, &error))?;
                let set = stream.set_read_timeout(Some(PATIENCE));
                set.and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
                    .and_then(|()| exchange(stream, request))
            }
            Self::Port(address, _) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE);
                let stream = stream.map_err(|error| port_not_reached(*address, &error))?;
                let set = stream.set_read_timeout(Some(PATIENCE));
                set.and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
                    .and_then(|()| exchange(stream, request))
            }
        };
        let answer = answer.map_err(|error| self.no_sense(&error))?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or_else(|| self.no_sense(&"it is cut"))?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let first = head.lines().next().unwrap_or_default();
        let code = code.ok_or_else(|| self.no_sense(&first))?;
        Ok((code, body.to_owned()))
    }

    /// An answer that cannot be understood.
    pub fn no_sense(&self, why: &dyn std::fmt::Display) -> Failure {
        let place = match self {
            Self::Socket(data) => data.join(socket::NAME).display().to_string(),
            Self::Port(address, _) => address.to_string(),
        };
        Failure::Told(format!(
            "the switch on {place} took the question and gave no sensible answer ({why}); look at its \
             log, and restart it if this goes on"
        ))
    }
}

/// Status and body of the switch's answer to a GET.
pub(super) fn get(data: &Path, path: &str) -> Result<(u16, String), Failure> {
    Target::Socket(data.to_owned()).get(path)
}

/// The same of a POST with this body.
pub(super) fn post(data: &Path, path: &str, body: &str) -> Result<(u16, String), Failure> {
    let len = body.len();
    let request = format!("POST {path} HTTP/1.0\r\nContent-Length: {len}\r\n\r\n{body}");
    Target::Socket(data.to_owned()).ask(&request)
}

/// HTTP/1.0: one request, and the answer ends where the connection does.
fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

fn port_not_reached(address: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::NotRunning(format!(
        "no switch answers on {address} ({error}): none runs with `[admin] listen` there, or it is still \
         reading its logs; check the address"
    ))
}

fn not_reached(data: &Path, error: &std::io::Error) -> Failure {
    let place = data.join(socket::NAME);
    let place = place.display();
    Failure::NotRunning(match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
            "no switch answers on {place} ({error}): none runs on that directory, or it is still \
             reading its logs; start one with `iris serve`, or give another directory with --data"
        ),
        ErrorKind::PermissionDenied => format!(
            "may not ask the switch on {place} ({error}); run this as the switch's user or as root"
        ),
        _ => {
            format!("cannot ask the switch on {place} ({error}); check the path given with --data")
        }
    })
}

/// An answer that cannot be understood.
pub(super) fn no_sense(data: &Path, why: &dyn std::fmt::Display) -> Failure {
    Target::Socket(data.to_owned()).no_sense(why)
}
