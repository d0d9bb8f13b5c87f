//! What is fuzzed, and what must hold: see [`targets`].
//!
//! The pure modules are compiled in from their sources, so that a fuzzer needs neither the runtime nor
//! TLS, and every line of what is fuzzed counts towards its coverage.

pub mod measure;
pub mod targets;

#[path = "../../src/log/mod.rs"]
pub mod log;
#[path = "../../src/placement.rs"]
pub mod placement;
#[path = "../../src/planted.rs"]
pub mod planted;
#[path = "../../src/shard/mod.rs"]
pub mod shard;
#[path = "../../src/stamp.rs"]
pub mod stamp;
#[path = "../../src/store/mod.rs"]
pub mod store;
