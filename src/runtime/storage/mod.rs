//! The data directory and the log's files: the shell around `crate::log`.
//! ```text
//! data/
//!   LOCK              held by flock; names the process and its address
//!   SUPER.a SUPER.b   the superblock, written alternately
//!   log-00/ 0000000000000000.seg 0000000004000000.seg …     named by their first position
//!   ckpt-00/          reserved for checkpoints
//!   dev/              keys and certificate of `serve --dev`; not the storage's
//! ```
//! A [`Log`] belongs to one core's thread and never blocks it: [`Log::place`] gives a frame its
//! place and returns the writes, which the core submits; [`Log::durable`] takes the answer. A
//! thread per log prepares the segments ahead (see [`spare`]). Start-up reads all, cuts a torn
//! tail, and deletes nothing.

mod data_dir;
mod limits;
mod log;
mod mmap;
mod recover;
pub mod spare;
mod super_block;
#[cfg(test)]
mod tests;

pub use data_dir::{DataDir, DataDirError, Format};
pub use limits::{BLOCK_BYTES, LOGS_MAX, SHARDS_DEFAULT, SHARDS_MAX, SPARES};
pub use log::{Flush, Log, LogError, PlaceError, ReadError, Write};
pub use spare::Space;
pub use super_block::{SUPER_BYTES, SUPER_VERSION, SuperBlock, SuperFault};
