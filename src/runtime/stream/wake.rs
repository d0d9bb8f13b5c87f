//! How a core sleeps and how it is woken: one eventfd, read through glommio.
//!
//! ```text
//!   completions of the private ring ─┐
//!   doorbells of other cores ────────┼─▶ eventfd ─▶ glommio's ring ─▶ Waiter::wait returns
//!   doorbells of other threads ──────┘
//! ```
//!
//! While the core is awake its completions do not write to the eventfd at all; `wait` switches that
//! on, looks once more whether there is work, and only then sleeps. Whoever rings a [`Doorbell`]
//! wakes a sleeping core, or makes its next `wait` return at once.
//!
//! The executor has a known defect: it may park although a task is runnable, and then sleeps until
//! the next I/O, timer or wake. Keep one standing timer per executor (50 ms), so that a lost
//! wake-up costs milliseconds and never a hang.

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
    /// Makes the core's present or next [`Waiter::wait`] return. Never blocks: the counter would
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
