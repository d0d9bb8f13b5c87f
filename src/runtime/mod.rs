//! To come.
pub mod storage;
