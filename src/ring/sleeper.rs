//! How a core goes to sleep without missing a message, and how the others wake it only then.
//!
//! ```text
//!   consumer about to park            producer at the end of its turn
//!   sleeping = true                   publish (store of the ring's index)
//!   ── fence ──                       ── fence ──
//!   look at the rings again           is sleeping? then take the flag and wake
//! ```
//!
//! Each side writes, fences, then reads what the other wrote. Without both fences each could read the
//! old value (its own write still in the store buffer): a message waits for a core that nobody wakes.
//! With them at least one side sees the other. `tests/ring_model` runs this very file under loom, and
//! once more without the fences, where it must hang.
//!
//! Every write of the flag is a swap, so that all of them stand in one order that each side knows. With
//! plain stores by the owner, loom finds a run with two producers in which one takes the flag for a
//! sleep that is already over; the owner's swaps are paid once per sleep, not per message.
//!
//! Invariant: after [`Sleeper::may_sleep`] said yes, the next message published to this core calls
//! one wake. A wake too many can happen (the flag was taken while the consumer changed its mind) and
//! costs one empty turn.

use super::atomic::{AtomicBool, Ordering, fence};

/// One core's bell. Shared by all cores that publish to it.
#[derive(Debug)]
#[repr(align(128))] // two cache lines, which the prefetcher fetches as one: a neighbour would slow it
pub struct Sleeper {
    /// Set by the owner before it parks; cleared by the one producer that wakes it, or by the owner.
    sleeping: AtomicBool,
}

impl Sleeper {
    /// The bell of a core that is awake.
    #[must_use]
    pub fn new() -> Self {
        Self {
            sleeping: AtomicBool::new(false),
        }
    }

    /// The owner wants to park. `has_work` must look at every ring that leads to this core.
    /// True: park now, and call [`woke`](Self::woke) afterwards, whatever the reason. False: there is
    /// work; the flag is down again.
    #[must_use = "true obliges the core to park, false to go on"]
    pub fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.sleeping.swap(true, Ordering::AcqRel);
        // Pairs with the fence in `ring`: either `has_work` sees what was published before that
        // fence, or that producer sees `sleeping`.
        fence(Ordering::SeqCst);
        if has_work() {
            self.woke();
            return false;
        }
        true
    }

    /// The owner is awake: from now on nobody needs to ring.
    pub fn woke(&self) {
        self.sleeping.swap(false, Ordering::AcqRel);
    }

    /// A producer has just published. Calls `wake` if the owner sleeps and no other producer has
    /// woken it yet; returns whether it did. While the owner is awake this costs the fence and a
    /// read.
    #[inline]
    pub fn ring(&self, wake: impl FnOnce()) -> bool {
        // Pairs with the fence in `may_sleep`; orders the ring's index before the flag.
        fence(Ordering::SeqCst);
        // The plain read keeps the line shared while the owner is awake; the swap lets only one
        // producer pay for the wake.
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            wake();
            return true;
        }
        false
    }
}

impl Default for Sleeper {
    fn default() -> Self {
        Self::new()
    }
}
