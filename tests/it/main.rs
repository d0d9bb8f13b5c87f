//! The switch as its users meet it: the real binary, real processes, TLS sockets, files and signals.

mod crash;
mod delivery;
mod gate;
mod harness;
mod hygiene;
mod login;
mod raw;
mod start;
mod tour;
