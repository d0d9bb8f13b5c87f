//! The data directory and the log's files: the shell around `crate::log`.
//! ```text
//! data/
//!   LOCK              held by flock; names the process and its address
//!   SUPER.a SUPER.b   the superblock, written alternately
//!   log-00/ 0000000000000000.seg 0000000004000000.seg …     named by their first position
//!   ckpt-00/ 0000000010003a40.ckpt …   named by the position that a replay begins at
//!   dev/              keys and certificate of `serve --dev`; not the storage's
//! ```
//! What happens to them is the store's decision (`crate::store`); [`Files`] does it. It belongs to one
//! core's thread and never blocks it: flushes go through the core's ring, and two threads per log do
//! what takes long (see [`spare`] and `keeper`). Start-up reads what a replay needs, cuts a torn tail,
//! and deletes no data.

mod bare;
mod blocking;
mod data_dir;
mod data_view;
mod fatal;
mod files;
mod keeper;
mod limits;
mod mmap;
mod open;
mod record;
pub mod spare;
mod super_block;
#[cfg(test)]
mod tests;

pub use crate::log::Space;
pub use bare::BareLog;
pub use blocking::BlockingLog;
pub use data_dir::{DataDir, DataDirError, Format, Upkeep};
pub use data_view::{Access, DataView, SuperState};
pub use fatal::stop_at_once;
pub use files::{FileWrite, Files, ReadError};
pub use limits::{BLOCK_BYTES, LOGS_MAX, SHARDS_DEFAULT, SHARDS_MAX};
pub(super) use mmap::SegmentMap;
pub use open::{LogError, Mapped, open_log};
pub use super_block::{SUPER_BYTES, SUPER_VERSION, SuperBlock, SuperFault};
