//! The switch as its users meet it: the real binary, real processes, TLS sockets, files and signals.

#![expect(
    clippy::disallowed_methods,
    reason = "a test waits for the event itself, with a deadline by the clock"
)]

mod admin;
mod admin_port;
mod audit;
mod backup;
mod bench;
mod certificates;
mod crash;
mod dashboards;
mod delivery;
mod doctor;
mod drain;
mod failed_sync;
mod full_disk;
mod gate;
mod half_open;
mod harness;
mod hist;
mod hygiene;
mod limits;
mod live_fuzz;
mod load;
mod login;
mod offline;
mod page;
mod raw;
mod reauth;
mod reload;
mod revoke;
mod runbooks;
mod secrets;
mod small_disk;
mod start;
mod supervisor;
mod top;
mod tour;
mod trace;
