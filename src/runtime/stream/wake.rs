//! How a core sleeps and how it is woken: in its own ring.
//!
//! ```text
//!   completions of sockets and disks ──────────┐
//!   doorbells of cores and threads ─▶ eventfd ─┼─▶ the core's ring ─▶ wait returns
//!   SLEEP_MAX ─────────────────────────────────┘
//! ```
//!
//! Every write to the eventfd is a completion of a poll that stands as long as the ring. The executor
//! never parks while a core serves, so its known defect (parking with runnable tasks) cannot strike,
//! and a wake-up that were ever lost would cost [`SLEEP_MAX`] and never a hang.

use super::{Sockets, StartError};
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Makes the eventfd of one core.
pub(super) fn eventfd() -> Result<Arc<File>, StartError> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(StartError::Eventfd {
            source: std::io::Error::last_os_error(),
        });
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(Arc::new(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
}

/// Wakes one core, from any thread. Cloning is cheap; the descriptor lives as long as a clone does.
#[derive(Clone, Debug)]
pub struct Doorbell {
    pub(super) eventfd: Arc<File>,
}

impl Doorbell {
    /// Makes the core's present or next [`wait`] return. Never blocks: the counter would
    /// have to stand at 2^64 - 2. One system call, so ring once per batch, and only if the core
    /// said that it sleeps.
    pub fn ring(&self) {
        let rung = (&*self.eventfd).write(&1u64.to_ne_bytes());
        assert!(
            matches!(rung, Ok(8)),
            "writing to our own eventfd failed: {rung:?}"
        );
    }
}

/// How long a core sleeps at the longest. Deadlines have this grain, and should a wake-up ever be
/// lost, it costs this much and never a hang.
pub const SLEEP_MAX: Duration = Duration::from_millis(50);

/// Returns when `sockets` has work or the core's doorbell has been rung, after [`SLEEP_MAX`], or for
/// nothing. The thread sleeps in its own ring; other tasks of the executor run before it returns.
pub async fn wait(sockets: &mut Sockets) {
    sockets.park(SLEEP_MAX);
    futures_lite::future::yield_now().await;
}
