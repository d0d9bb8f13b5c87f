//! To come.
#[forbid(unsafe_code)]
pub mod dev;
