//! The shell: what touches the kernel.

pub mod stream;
pub mod tls;
