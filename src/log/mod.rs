//! The log: what its bytes mean, and what may be believed of them after a crash.
//!
//! The log is the message store. A position in it (`lsn`) is absolute: segments are files of one
//! size, the k-th begins at `k × size`, and a byte's lsn is its segment's first lsn plus offset.
//! ```text
//!  segment k                                         segment k+1
//!  ┌────────┬───────┬───────┬──────┬─────┬─────┐     ┌────────┬───────┬───
//!  │ header │ DATA  │ DATA  │ SEAL │ END │zeros│     │ header │ DATA  │ …
//!  │ 4 KiB  │ frame │ frame │      │     │     │     │  salt  │       │
//!  └────────┴───────┴───────┴──────┴─────┴─────┘     └────────┴───────┴───
//!              └─ records, 8-byte aligned ─ items: `len | crc | payload`
//! ```
//! **Invariant.** A frame says where it belongs (`lsn`), which use of the file it belongs to
//! (`salt`), what came before it (`prev_crc`), and how far the log was known durable when it was
//! written (`synced_lsn`). From the last follows the whole recovery rule (see [`recovery`]).
//!
//! Everything here is a function of bytes: no file, no clock, no randomness. The files are in
//! `runtime::storage`; the bytes, in tables, are in `docs/LOG_FORMAT.md`. What an item's payload
//! means is the shard's business.

mod builder;
mod checkpoint;
#[cfg(test)]
mod crash_trials;
#[cfg(test)]
mod damage_trials;
mod format;
mod harvest;
mod items;
pub mod limits;
mod part;
pub mod recovery;
pub mod survey;
mod writer;

pub use builder::FrameBuilder;
pub use checkpoint::{
    CheckpointError, CheckpointHeader, CheckpointReader, CheckpointWriter, Section,
};
pub use format::{
    FrameHeader, FrameKind, HeaderFault, HeadsError, NodeIdentity, Placement, RecordFault,
    RecordHeader, RecordKind, SegmentHeader, SegmentSize, heads, heads_encode, records,
};
pub use harvest::{Harvest, harvest};
pub use items::{ItemError, Items, item_at, item_encode_into, item_encode_with, items};
pub use writer::{Flush, PlaceError, Space, Write, Writer, WriterStart};
