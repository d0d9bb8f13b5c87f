//! The protocol as it is, on loom's atomics.

mod atomic {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../../src/ring/sleeper.rs"]
pub mod sleeper;
