//! The fuzz targets: for each, bytes that a stranger or a bad disk could have made, and what must
//! hold for all of them. No panic, no more memory than is said here, and nothing accepted that is
//! not what it claims to be.

mod checkpoint;
mod frames;
mod harvest;
mod log_scan;
mod recover;
mod segments;
mod shard_state;
mod writer;

/// One target.
pub struct Target {
    /// The name of its directory in `fuzz/corpus`.
    pub name: &'static str,
    /// Panics when what must hold does not.
    pub check: fn(&[u8]),
    /// Makes CRCs fit again after a mutation, or some of them, as `seed` says: arbitrary bytes would
    /// never come past the first. Returns the new length.
    pub mend: fn(&mut [u8], u64) -> usize,
    /// Inputs made by the real encoders, by name.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    frames::CLIENT_FRAME,
    frames::SERVER_FRAME,
    frames::FRAME_STREAM,
    log_scan::LOG_SCAN,
    harvest::HARVEST,
    checkpoint::CHECKPOINT,
    shard_state::SHARD_STATE,
    recover::RECOVER,
];

/// For targets without CRCs.
fn nothing_to_mend(data: &mut [u8], _seed: u64) -> usize {
    data.len()
}

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
