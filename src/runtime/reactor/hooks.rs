//! Where a test may reach into a running switch. Production passes nothing here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Holds back the news of finished syncs, as a disk would that takes its time: the bytes are in the
/// file, and the shards have not heard that they are durable.
#[derive(Debug, Default)]
pub struct SyncGate {
    closed: AtomicBool,
    held: AtomicU64,
}

impl SyncGate {
    /// From now on no sync is reported.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Syncs are reported again, those held back first. Each core notices within 50 ms.
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Syncs that have been held back since the start.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether a sync that just finished must be held back; counts it if so.
    pub(super) fn holds(&self) -> bool {
        let closed = self.is_closed();
        if closed {
            self.held.fetch_add(1, Ordering::SeqCst);
        }
        closed
    }
}

/// What a test may pass to [`crate::runtime::start`].
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Delays what syncs report.
    pub sync_gate: Option<std::sync::Arc<SyncGate>>,
}
