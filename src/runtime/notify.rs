//! What the switch tells the supervisor that started it, by systemd's protocol: ready, alive, stopping.
//!
//! ```text
//!   serve ── READY=1, STOPPING=1 ──▶ datagrams to $NOTIFY_SOCKET
//!   admin thread, every half of $WATCHDOG_USEC: have all cores answered? ── WATCHDOG=1 ──▶
//! ```
//!
//! A core that hangs keeps the thread from pinging, and the supervisor kills and restarts the process:
//! its state is on disk. Nothing here waits for the supervisor, and without one nothing is sent.
//!
//! Protocol: <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// Shorter watchdog times are taken as this: a core answers in its tick, 50 ms.
const WATCHDOG_MIN: Duration = Duration::from_millis(200);

/// The way to the supervisor.
#[derive(Clone, Debug)]
pub struct Notify {
    socket: Arc<UnixDatagram>,
    to: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As this process's environment says. `None`: nobody wants to know.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let text = |name| std::env::var(name).ok();
        let watchdog = watchdog(
            text("WATCHDOG_USEC"),
            text("WATCHDOG_PID"),
            std::process::id(),
        );
        let opened = Self::open(&socket, watchdog);
        let failed = |error: &io::Error| {
            tracing::warn!(socket = %socket.display(), %error, "the supervisor cannot be told how it goes; check NOTIFY_SOCKET");
        };
        opened.inspect_err(failed).ok()
    }

    /// A path, or a name in the abstract space that begins with `@`.
    fn open(to: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let to = match to.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(to)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Arc::new(socket),
            to,
            watchdog,
        })
    }

    /// How often it wants to hear that all is well.
    #[must_use]
    pub fn every(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// Clients can connect.
    pub fn ready(&self, address: std::net::SocketAddr) {
        self.send(&format!("READY=1\nSTATUS=serving on {address}\n"));
    }

    /// All cores have answered.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// The orderly end has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=finishing what is under way\n");
    }

    /// A supervisor that does not listen misses it.
    fn send(&self, text: &str) {
        if let Err(error) = self.socket.send_to_addr(text.as_bytes(), &self.to) {
            tracing::warn!(%error, text, "the supervisor was not told");
        }
    }
}

/// The time within which it must be heard of, if that is meant for this process.
fn watchdog(usec: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    let is_mine = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let usec: u64 = usec
        .filter(|_| is_mine)?
        .parse()
        .ok()
        .filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec).max(WATCHDOG_MIN))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A supervisor, and the way to it.
    pub fn supervisor(watchdog: Duration) -> (tempfile::TempDir, UnixDatagram, Notify) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::open(path.as_os_str(), Some(watchdog)).unwrap();
        (directory, socket, notify)
    }

    pub fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    /// R: E-5
    #[test]
    fn a_supervisor_hears_what_was_said_and_nobody_else_is_needed() {
        let (directory, socket, notify) = supervisor(Duration::from_secs(10));
        notify.ready("127.0.0.1:7447".parse().unwrap());
        assert_eq!(
            heard(&socket),
            "READY=1\nSTATUS=serving on 127.0.0.1:7447\n"
        );
        assert_eq!(notify.every(), Some(Duration::from_secs(5)));
        drop((directory, socket));
        notify.alive(); // is missed
    }

    #[test]
    fn a_name_in_the_abstract_space_is_one_too() {
        let name = format!("iris-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let notify = Notify::open(OsStr::new(&format!("@{name}")), None).unwrap();
        notify.alive();
        assert_eq!(heard(&socket), "WATCHDOG=1\n");
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let text = |text: &str| Some(text.to_owned());
        let ten = Some(Duration::from_secs(10));
        assert_eq!(watchdog(text("10000000"), None, 7), ten);
        assert_eq!(watchdog(text("10000000"), text("7"), 7), ten);
        assert_eq!(watchdog(text("10000000"), text("8"), 7), None);
        assert_eq!(watchdog(None, None, 7), None);
        assert_eq!(watchdog(text("0"), None, 7), None);
        assert_eq!(watchdog(text("1"), None, 7), Some(WATCHDOG_MIN));
    }
}
