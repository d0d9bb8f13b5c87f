//! The `iris/2` protocol, for servers and clients alike.
//!
//! Everything here is a pure function of its arguments: no clock, no socket, no randomness. The crate
//! is `no_std`, so a breach of that rule is a compile error.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod id;
pub mod limits;
