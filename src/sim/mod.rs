//! A simulated world for the switch: same code, fake network, disk and clock, one seed.
//!
//! ```text
//!   seed ─▶ Weather ─▶ Run: one event after the other ─▶ failure and trace, or none
//!            │          │
//!            │          ├ client   the real client session, as programs drive it
//!            │          ├ net      late, cut anywhere, stalled, broken
//!            │          ├ node     the real stores, shards and sessions, crashed at any event
//!            │          ├ io, disk what was not synced is kept, dropped or torn
//!            │          └ check, model   the promises, watched from outside
//!            └ how many, how large, how bad
//! ```
//!
//! Everything is decided by the seed: two runs of it are the same, event by event. What it finds is
//! found again by `iris-sim --seed`. Which mistakes it would find is shown by planting them
//! ([`crate::planted`]).
//!
//! Not simulated: TLS, tokens, the rings' memory order, the kernel. Those have tests of their own.

pub mod check;
pub mod client;
pub mod dice;
pub mod disk;
pub mod io;
pub mod model;
pub mod net;
pub mod node;
pub mod run;
pub mod world;

use client::Habits;
use dice::Dice;

use crate::shard::ShardConfig;
use crate::shard::retention::Retention;

/// How a world is: drawn from its seed, so that every seed tries something else.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Logs of the switch.
    pub logs: u16,
    /// Shards of the switch.
    pub shards: u16,
    /// Users.
    pub users: usize,
    /// Devices of a user, at most.
    pub devices_max: u64,
    /// Bytes of a segment: a power of two.
    pub segment_bytes: u64,
    /// What is configured of the shards.
    pub shard: ShardConfig,
    /// Bytes of a log between two checkpoints.
    pub checkpoint_bytes: u64,
    /// Bytes a second that cleaning may read.
    pub clean_bytes_per_s: u64,
    /// The network.
    pub net: net::Weather,
    /// Microseconds of a sync at least.
    pub sync_min_us: u64,
    /// And at most.
    pub sync_max_us: u64,
    /// Of a million syncs so many fail.
    pub sync_fails_ppm: u64,
    /// Of a million reads so many wait for their pages.
    pub cold_ppm: u64,
    /// Of a million steps of a start so many are its last.
    pub start_crash_ppm: u64,
    /// Microseconds until everything heals.
    pub chaos_us: u64,
    /// Microseconds between two faults, at most.
    pub fault_max_us: u64,
    /// What a fault is: how often each kind comes among all.
    pub faults: Faults,
    /// What devices do; each has its own variant.
    pub habits: Habits,
}

/// Weights of the kinds of faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The process is killed.
    pub kill: u64,
    /// The power goes.
    pub power: u64,
    /// The process is asked to stop.
    pub stop: u64,
    /// All connections are cut.
    pub sever: u64,
    /// A disk fills up, or has room again.
    pub full: u64,
    /// A bit rots.
    pub rot: u64,
    /// The wall clock is set to another day.
    pub clock: u64,
    /// What rotted is set aside.
    pub salvage: u64,
    /// Nothing.
    pub nothing: u64,
}

impl Weather {
    /// The weather of a seed.
    #[must_use]
    pub fn draw(dice: &mut Dice) -> Self {
        let logs = dice.range(1, 3) as u16;
        let shards = logs + dice.below(6) as u16;
        let segment_bytes = *dice.pick(&[16 * 1024, 32 * 1024, 64 * 1024]);
        let often = |dice: &mut Dice, percent, weight| {
            if dice.percent(percent) {
                dice.range(1, weight)
            } else {
                0
            }
        };
        let faults = Faults {
            kill: often(dice, 60, 10),
            power: often(dice, 70, 10),
            stop: often(dice, 30, 5),
            sever: often(dice, 30, 5),
            full: often(dice, 30, 10),
            rot: often(dice, 25, 15),
            clock: often(dice, 15, 5),
            salvage: often(dice, 50, 10),
            nothing: 3,
        };
        let delay_min_us = dice.range(10, 500);
        let history = *dice.pick(&[0, 5, 50, 10_000]);
        Self {
            logs,
            shards,
            users: dice.range(2, 8) as usize,
            devices_max: dice.range(1, 3),
            segment_bytes,
            shard: ShardConfig {
                inbox_entries_max: *dice.pick(&[20, 100, 10_000]),
                batch_bytes_max: dice.range(500, 4_000) as usize,
                retention: Retention {
                    entries: history,
                    bytes: *dice.pick(&[4_000, 1_000_000]),
                    age_ms: *dice.pick(&[2_000, 1_000_000_000]),
                },
            },
            checkpoint_bytes: segment_bytes * dice.range(1, 6) / 2,
            clean_bytes_per_s: *dice.pick(&[0, 100_000, 10_000_000]),
            net: net::Weather {
                delay_min_us,
                delay_max_us: delay_min_us + *dice.pick(&[1_000, 20_000, 300_000]),
                shreds_ppm: *dice.pick(&[0, 10_000, 200_000]),
                breaks_ppm: *dice.pick(&[0, 1_000, 20_000]),
            },
            sync_min_us: 50,
            sync_max_us: *dice.pick(&[500, 5_000, 50_000]),
            sync_fails_ppm: *dice.pick(&[0, 0, 0, 1_000, 5_000]),
            cold_ppm: *dice.pick(&[0, 10_000, 300_000]),
            start_crash_ppm: *dice.pick(&[0, 10_000, 100_000]),
            chaos_us: dice.range(1_000_000, 12_000_000),
            fault_max_us: *dice.pick(&[300_000, 1_000_000, 4_000_000]),
            faults,
            habits: Habits {
                act_max_us: *dice.pick(&[40_000, 150_000, 600_000]),
                burst_max: *dice.pick(&[1, 4, 12]),
                body_max: *dice.pick(&[20, 300, 1_500]),
                prompt_percent: 0,
                acknowledges: true,
                restart_percent: *dice.pick(&[0, 1, 5]),
                cut_percent: *dice.pick(&[0, 1, 5]),
                away_max_us: *dice.pick(&[200_000, 5_000_000]),
                forget_percent: *dice.pick(&[0, 10, 50]),
                send_only: false,
            },
        }
    }
}

impl Habits {
    /// This habit as one device has it.
    #[must_use]
    pub fn of_one(self, dice: &mut Dice) -> Self {
        Self {
            prompt_percent: *dice.pick(&[0, 5, 50, 100]),
            acknowledges: dice.percent(85),
            send_only: dice.percent(8),
            ..self
        }
    }
}
