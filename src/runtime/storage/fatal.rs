//! The end of a process whose disk did not keep its word (R: D-4).

use std::fmt::Display;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

const STOPPED: &str = "a log write or sync failed; the process stops here because what is on disk is \
                       unknown; check the disk, then start again";

/// Says that a log is lost, to standard error however little is logged there, and ends the process. When a disk goes, several logs and threads meet it at
/// the same moment: the first one speaks, the others wait for the end.
pub fn stop_at_once(log: &dyn Display, error: &io::Error) -> ! {
    static SAID: AtomicBool = AtomicBool::new(false);
    while SAID.swap(true, Ordering::Relaxed) {
        std::thread::park();
    }
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(%log, %error, "{STOPPED}");
    } else {
        let _ = writeln!(
            io::stderr().lock(),
            "iris: ERROR {STOPPED} log={log} error={error}"
        );
    }
    std::process::abort()
}

/// Whether a disk failed, and not only has no room. What it has of a file is unknown then, and a second
/// attempt that succeeds proves nothing.
pub(super) fn is_lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}
