//! Iris: a durable message switch, thread per core on io_uring.

#[forbid(unsafe_code)]
pub mod auth;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod client;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod log;
#[forbid(unsafe_code)]
pub mod placement;
#[forbid(unsafe_code)]
pub mod ring;
pub mod runtime;
#[forbid(unsafe_code)]
pub mod session;
#[forbid(unsafe_code)]
pub mod shard;
