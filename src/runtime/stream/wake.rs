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
use glommio::io::BufferedFile;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

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

/// The sleeping half of a core, for the one task that drives its [`Sockets`].
#[derive(Debug)]
pub struct Waiter {
    /// A duplicate of the eventfd, so that glommio's closing of it closes nothing of ours.
    file: BufferedFile,
}

impl Waiter {
    /// Must be called inside the glommio executor of the core that owns `sockets`.
    pub fn new(sockets: &Sockets) -> Result<Waiter, StartError> {
        let own = sockets
            .doorbell()
            .eventfd
            .try_clone()
            .map_err(|source| StartError::Eventfd { source })?;
        // SAFETY: `into_raw_fd` gives the ownership up and `from_raw_fd` takes it over.
        let file = unsafe { BufferedFile::from_raw_fd(own.into_raw_fd()) };
        assert!(file.as_raw_fd() >= 0);
        Ok(Waiter { file })
    }

    /// Returns when `sockets` has work or the core's doorbell has been rung since the last `wait`
    /// returned; at once if so already. It may return for nothing, too.
    ///
    /// Do not drop the future half-way: the ring that it may have consumed would be lost.
    pub async fn wait(&mut self, sockets: &mut Sockets) {
        if !sockets.prepare_to_sleep() {
            return;
        }
        let read = self.file.read_at(0, 8).await;
        assert!(
            read.is_ok(),
            "reading our own eventfd failed: {:?}",
            read.err()
        );
    }
}
