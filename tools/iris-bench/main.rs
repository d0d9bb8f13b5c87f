//! The `iris-bench` binary.
fn main() {}
