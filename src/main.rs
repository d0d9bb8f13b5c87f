//! The `iris` binary.
fn main() {}
