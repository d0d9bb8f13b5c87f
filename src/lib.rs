//! Iris: a durable message switch, thread per core on io_uring.
//!
//! One idea carries it: **a shard is a deterministic state machine fed by a durable log.** That a
//! message is on disk is an input of the shard, and only the answer to that input can say
//! `Accepted` or make an entry visible.
//!
//! # A message's way
//!
//! ```text
//!   socket ─▶ frame ─▶ session ─▶ route ─▶ ring ─▶ SHARD ─▶ log ─▶ sync ─▶ Committed ─▶ apply
//!                                                                                        │
//!   Accepted ◀─ ring ◀───────────────────────────────────────────────────────────────────┤
//!   Entry    ◀─ the recipient's session pulls ◀──────────────────────────────────────────┘
//! ```
//!
//! | | step | where |
//! |---|---|---|
//! | 1 | bytes arrive in a buffer of the core | [`runtime::stream`] |
//! | 2 | TLS opens them | [`runtime::tls`] |
//! | 3 | frames are cut, their lengths checked first, and decoded without copying | [`iris_proto::frame`], [`iris_proto::wire`] |
//! | 4 | the gate of back-pressure; limits; the sender's name is the session's | [`runtime::reactor`] (`inbound`), [`session`] |
//! | 5 | user → shard → log → core | [`placement`] |
//! | 6 | to the recipient's core: packed, published once a turn, one wake if it sleeps | [`runtime::mesh`], [`ring`] |
//! | 7 | the shard judges the number and puts the command into its open batch | [`shard`] (`step`), [`shard::pairs`] |
//! | 8 | one frame for all shards of a log: written and synced, one under way at a time | [`store`], [`log`], [`runtime::reactor`] (`lanes`), [`runtime::storage`] |
//! | 9 | `Committed`: the entry is applied, the inbox grows | [`shard`] (`apply`), [`shard::user`] |
//! | 10 | `Accepted` goes back to the sender's session | [`runtime::reactor`] (`answers`) |
//! | 11 | the recipient's sessions pull what their windows allow, from where it lies in the log | [`session::window`], [`runtime::reactor`] (`outbound`) |
//! | 12 | sealed once and sent once per connection and turn | [`runtime::tls`], [`runtime::stream`] |
//!
//! # Invariants
//!
//! - Nothing is `Accepted` and no entry is visible before its batch is committed ([`shard`]).
//! - Entries are applied in the order of their index, without a gap; the same entries give the same
//!   state, byte for byte ([`shard`]).
//! - Below a log's `durable` position nothing is written again, at or above it nothing is handed
//!   out ([`log`], [`runtime::storage`]). A failed write or sync ends the process.
//! - A segment is removed only when no inbox refers to it and no replay needs it; a damaged shard is
//!   not served, and nothing that could save it is removed ([`store`]).
//! - `acknowledged ≤ pushed ≤ head`, and entries are pushed without a gap ([`session`]).
//! - A descriptor is closed, or moves to another core, only when no operation on it is under way
//!   ([`runtime::stream`]).
//! - A published message never waits for a core that stays asleep ([`ring`]).
//! - Every queue, loop and retry has a named bound; at the bound, sockets are not read.
//!
//! A broken one is a bug of ours, so it is asserted, in release too, and ends the process: the
//! state that counts is on disk.
//!
//! # Layers
//!
//! ```text
//!   edges ─▶ shell ─▶ ring ─▶ pure
//!   │        │                └ audit auth limit measure session placement stamp store shard log
//!   │        └ runtime
//!   └ cli client config
//! ```
//!
//! Dependence goes to the right only; `tests/tidy.rs` reads the sources and fails on a breach. The
//! pure modules read no clock, draw no randomness and touch no file or socket: what the world
//! answers comes back as the next input. `unsafe` is in [`runtime`] alone, as the attributes below
//! say.
//!
//! More: `docs/ARCHITECTURE.md`, with every bound; `docs/PROTOCOL.md` and `docs/LOG_FORMAT.md`, the
//! bytes; `docs/decisions/`, the reasons.

#[forbid(unsafe_code)]
pub mod audit;
#[forbid(unsafe_code)]
pub mod auth;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod client;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod limit;
#[forbid(unsafe_code)]
pub mod log;
#[forbid(unsafe_code)]
pub mod measure;
#[forbid(unsafe_code)]
pub mod placement;
#[forbid(unsafe_code)]
pub mod planted;
#[forbid(unsafe_code)]
pub mod ring;
pub mod runtime;
#[forbid(unsafe_code)]
pub mod session;
#[forbid(unsafe_code)]
pub mod shard;
#[cfg(feature = "sim")]
#[forbid(unsafe_code)]
pub mod sim;
#[forbid(unsafe_code)]
pub mod stamp;
#[forbid(unsafe_code)]
pub mod store;
