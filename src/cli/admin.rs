//! How a command speaks with the switch of this machine: over the admin socket in its data directory.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::Failure;
use crate::runtime::admin::{REQUEST_MAX, socket};

/// Bytes of an answer that are read at most: the histograms of 64 cores take less than a half of it, and
/// everything else less than a tenth.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// A little more than the switch takes for itself.
const PATIENCE: Duration = REQUEST_MAX.saturating_add(Duration::from_secs(1));

/// Status and body of the switch's answer to a GET.
pub(super) fn get(data: &Path, path: &str) -> Result<(u16, String), Failure> {
    ask(data, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

/// The same of a POST with this body.
pub(super) fn post(data: &Path, path: &str, body: &str) -> Result<(u16, String), Failure> {
    let len = body.len();
    ask(
        data,
        &format!("POST {path} HTTP/1.0\r\nContent-Length: {len}\r\n\r\n{body}"),
    )
}

fn ask(data: &Path, request: &str) -> Result<(u16, String), Failure> {
    let mut stream = socket::connect(data).map_err(|error| not_reached(data, &error))?;
    let answer = exchange(&mut stream, request).map_err(|error| no_sense(data, &error))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| no_sense(data, &"it is cut"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| no_sense(data, &head.lines().next().unwrap_or_default()))?;
    Ok((code, body.to_owned()))
}

/// HTTP/1.0: one request, and the answer ends where the connection does.
fn exchange(stream: &mut UnixStream, request: &str) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
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

pub(super) fn no_sense(data: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::Told(format!(
        "the switch on {} took the question and gave no sensible answer ({why}); look at its log, and \
         restart it if this goes on",
        data.join(socket::NAME).display()
    ))
}
