//! The mutant: the same protocol whose fences do nothing.

mod atomic {
    pub use loom::sync::atomic::{AtomicBool, Ordering};

    pub fn fence(_: Ordering) {}
}

#[path = "../../src/ring/sleeper.rs"]
pub mod sleeper;
