//! What is fuzzed, and what must hold: see [`targets`].
//!
//! The log's pure module is compiled in from its source, so that a fuzzer needs neither the runtime
//! nor TLS, and every line of what is fuzzed counts towards its coverage.

pub mod measure;
pub mod targets;

#[path = "../../src/log/mod.rs"]
pub mod log;
