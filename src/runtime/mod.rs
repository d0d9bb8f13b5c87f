//! The shell: executors, sockets, files, signals and the clock around the pure core.
//!
//! ```text
//!   start:  data directory ─▶ one thread per core: recover its logs, set up its rings ─▶ all ready
//!           ─▶ mesh them ─▶ listen
//!           ─▶ admin socket, on a thread of its own
//!   reload: SIGHUP ─▶ read configuration, keys and certificate ─▶ every core takes the new policy
//!   stop:   signal ─▶ every core drains ─▶ threads end ─▶ exit 0
//! ```
//!
//! Every core starts by itself and nothing serves before all have recovered, so a damaged log or a
//! missing limit is an error at start and never a surprise later.

pub mod admin;
pub mod admission;
pub mod audit;
pub mod certificate;
pub mod clock;
pub mod dev;
pub mod doctor;
pub mod mesh;
pub mod notify;
pub mod offline;
pub mod policy;
pub mod preflight;
pub mod reactor;
pub mod report;
pub mod revocation;
mod serve;
mod start;
pub mod storage;
pub mod stream;
pub mod tls;
pub mod trace;

pub use policy::{Policy, PolicyError};
pub use reactor::{Hooks, SyncGate};
pub use serve::{Ready, ServeError, options, serve};
pub use start::{NodeError, Options, Running, SilentCores, start};
