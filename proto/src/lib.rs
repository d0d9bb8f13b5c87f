//! The `iris/2` protocol, for servers and clients alike.
//!
//! Everything here is a pure function of its arguments: no clock, no socket, no randomness. The crate
//! is `no_std`, so a breach of that rule is a compile error.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod client;
pub mod frame;
pub mod id;
pub mod limits;
pub mod reject;
pub mod wire;

/// The types that `iris.proto` describes, made by prost.
pub mod v2 {
    #![expect(
        clippy::all,
        clippy::pedantic,
        reason = "generated; the schema is the documentation"
    )]
    include!(concat!(env!("OUT_DIR"), "/iris.v2.rs"));
}
