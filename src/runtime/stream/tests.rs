//! The sockets of one core against real ones over loopback, inside a glommio executor.

mod accepting;
mod core;
mod disk;
mod echo;
mod ends;
mod handoff;
mod wake;
