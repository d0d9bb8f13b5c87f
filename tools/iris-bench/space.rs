//! How much of the disk a log takes for what is in it, while it grows, is retained and is cleaned.
//!
//! ```text
//!   segment   0   1   2   3   4 │ 5   6   7
//!             what cleaning     │ what a replay may need: since the older of two checkpoints
//!             may shorten       │
//! ```
//! Users get messages at different rates, the busiest some thirty times as many as the quietest, and
//! acknowledge them; each inbox keeps the last so many. So messages of one segment leave at very different
//! times, which is what makes cleaning necessary. Messages come at a fixed rate: cleaning works beside them,
//! at the pace that the switch gives it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use iris::runtime::storage::{BlockingLog, DataDir, Format, Upkeep};
use iris::shard::ShardConfig;
use iris::shard::retention::Retention;
use serde_json::{Value, json};

use crate::args::SpaceArgs;
use crate::local;
use crate::run::instant;
use crate::traffic::{Scratch, TIME_MS, Traffic, on_all_logs};

/// Commands that are proposed before the log is written.
const COMMANDS_PER_FLUSH: usize = 250;
/// Messages to a user between two acknowledgements.
const ACKNOWLEDGED_EVERY: u64 = 50;

/// What one log takes at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    seconds: f64,
    sent: u64,
    used: u64,
    live: u64,
    replay: u64,
    replay_live: u64,
    moved: u64,
    written: u64,
    disk: u64,
}

/// What was measured.
#[derive(Debug)]
pub struct Space {
    samples: Vec<Sample>,
    entries: u64,
}

/// Drives and measures.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &SpaceArgs) -> Result<Space, String> {
    let scratch = Scratch::new(&args.data, "space")?;
    let format = Format {
        logs: args.logs,
        segment_bytes: args.segment_bytes,
        ..Format::default()
    };
    let data = DataDir::open(scratch.path(), &format).map_err(|error| error.to_string())?;
    let began = instant();
    let of_logs = on_all_logs(args.logs, |log| drive(args, &data, log, began))?;
    let entries = of_logs.iter().map(|(_, entries)| entries).sum();
    let samples = (0..args.samples as usize).map(|nth| {
        let parts = of_logs.iter().filter_map(|(samples, _)| samples.get(nth));
        parts.fold(Sample::default(), |sum, part| sum.with(part))
    });
    Ok(Space {
        samples: samples.collect(),
        entries,
    })
}

impl Sample {
    fn with(self, other: &Self) -> Self {
        Self {
            seconds: self.seconds.max(other.seconds),
            sent: self.sent + other.sent,
            used: self.used + other.used,
            live: self.live + other.live,
            replay: self.replay + other.replay,
            replay_live: self.replay_live + other.replay_live,
            moved: self.moved + other.moved,
            written: self.written + other.written,
            disk: self.disk + other.disk,
        }
    }

    fn amplification(&self) -> f64 {
        self.used as f64 / self.live as f64
    }

    /// Of what cleaning may shorten; `None` when that is nothing.
    fn amplification_before_replay(&self) -> Option<f64> {
        let (used, live) = (self.used - self.replay, self.live - self.replay_live);
        (live > 0).then(|| used as f64 / live as f64)
    }
}

/// One log's course: samples, and the entries that are kept at the end.
fn drive(
    args: &SpaceArgs,
    data: &DataDir,
    log_no: u32,
    began: Instant,
) -> Result<(Vec<Sample>, u64), String> {
    let config = ShardConfig {
        retention: Retention {
            entries: args.keep,
            ..Retention::default()
        },
        ..ShardConfig::default()
    };
    let upkeep = Upkeep {
        checkpoint_bytes: args.checkpoint_bytes,
        ..Upkeep::default()
    };
    let setup = data.setup(log_no, config, upkeep);
    let traffic = Traffic::new(data, args.body);
    let users = traffic.users_of(log_no, args.users);
    let mut log = BlockingLog::open(data, log_no, setup).map_err(|error| error.to_string())?;
    log.now.unix_ms = TIME_MS;
    users
        .iter()
        .for_each(|user| traffic.register(&mut log, *user));
    flush(&mut log, began)?;
    let mut heads = vec![0; users.len()];
    let total = args.keep * users.len() as u64 * args.turns;
    let mut random = 0x9e37_79b9_7f4a_7c15 ^ u64::from(log_no);
    let mut samples = Vec::new();
    for sent in 1..=total {
        let nth = skewed(&mut random, users.len());
        heads[nth] += 1;
        traffic.send(&mut log, users[nth], heads[nth]);
        if heads[nth].is_multiple_of(ACKNOWLEDGED_EVERY) {
            traffic.acknowledge(&mut log, users[nth], heads[nth]);
        }
        if sent.is_multiple_of(COMMANDS_PER_FLUSH as u64) || sent == total {
            flush(&mut log, began)?;
            let due = Duration::from_secs_f64(sent as f64 * f64::from(args.logs) / args.rate);
            work_until(&mut log, began, due)?;
        }
        if sent * u64::from(args.samples) / total > samples.len() as u64 {
            samples.push(sample(&log, data.path(), log_no, sent, began));
        }
    }
    let shards = log.store.shards().iter();
    let shards = shards.filter_map(|id| log.store.shard(*id));
    let kept =
        shards.flat_map(|shard| shard.users().iter().map(|user| user.slots().count() as u64));
    let entries = kept.sum();
    Ok((samples, entries))
}

/// A user, the first ones more often: the busiest of a thousand gets three messages of a hundred.
fn skewed(random: &mut u64, users: usize) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let unit = (*random >> 11) as f64 / (1u64 << 53) as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below the number of users"
    )]
    let nth = (unit * unit * users as f64) as usize;
    nth.min(users - 1)
}

fn flush(log: &mut BlockingLog, began: Instant) -> Result<(), String> {
    read_clock(log, began);
    log.settle().map_err(cannot_write)?;
    log.effects.clear();
    Ok(())
}

/// Looks whenever a thread has done something, as a core does, until so long after the beginning.
fn work_until(log: &mut BlockingLog, began: Instant, due: Duration) -> Result<(), String> {
    loop {
        read_clock(log, began);
        log.poll().map_err(cannot_write)?;
        let Some(left) = due.checked_sub(began.elapsed()) else {
            return Ok(());
        };
        log.wait(left);
    }
}

fn read_clock(log: &mut BlockingLog, began: Instant) {
    let elapsed_us = began.elapsed().as_micros() as u64;
    log.now.monotonic_us = log.now.monotonic_us.max(elapsed_us);
}

fn cannot_write(error: std::io::Error) -> String {
    format!("cannot write the log: {error}")
}

fn sample(log: &BlockingLog, data: &Path, log_no: u32, sent: u64, began: Instant) -> Sample {
    let status = log.store.status();
    let directories = [format!("log-{log_no:02}"), format!("ckpt-{log_no:02}")];
    let on_disk = directories.iter().map(|name| allocated(&data.join(name)));
    Sample {
        seconds: began.elapsed().as_secs_f64(),
        sent,
        used: status.used_bytes,
        live: status.live_bytes,
        replay: status.replay_bytes,
        replay_live: status.replay_live_bytes,
        moved: status.moved_bytes,
        written: status.end,
        disk: on_disk.sum(),
    }
}

/// Bytes that the files of a directory take, spares and checkpoints too.
fn allocated(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten();
    let blocks = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks()));
    blocks.sum::<u64>() * 512
}

impl Space {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut out = "   seconds      sent  live MiB  used MiB  replay MiB  used/live  \
                       before replay  on disk MiB  moved/written\n"
            .to_owned();
        for sample in &self.samples {
            let before = sample.amplification_before_replay();
            out += &format!(
                "{:>10.1}{:>10}{:>10.0}{:>10.0}{:>12.0}{:>11.2}{:>15}{:>13.0}{:>15.2}\n",
                sample.seconds,
                sample.sent,
                mib(sample.live),
                mib(sample.used),
                mib(sample.replay),
                sample.amplification(),
                before.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
                mib(sample.disk),
                sample.moved as f64 / sample.written as f64,
            );
        }
        out + &format!("{} entries kept\n{}\n", self.entries, local::machine())
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let samples = self.samples.iter().map(|sample| {
            json!({
                "seconds": sample.seconds,
                "sent": sample.sent,
                "live_bytes": sample.live,
                "used_bytes": sample.used,
                "replay_bytes": sample.replay,
                "replay_live_bytes": sample.replay_live,
                "disk_bytes": sample.disk,
                "moved_bytes": sample.moved,
                "written_bytes": sample.written,
            })
        });
        json!({
            "entries": self.entries,
            "samples": samples.collect::<Vec<_>>(),
            "machine": local::machine(),
            "unix_time_s": local::unix_time_s(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_counted_and_the_scratch_directory_removed() {
        let directory = tempfile::tempdir().unwrap();
        let args = SpaceArgs {
            data: directory.path().to_owned(),
            users: 20,
            keep: 200,
            body: 64,
            logs: 2,
            rate: 1e6,
            turns: 4,
            samples: 4,
            segment_bytes: 2 << 20,
            checkpoint_bytes: 1 << 20,
            json: None,
        };
        let space = run(&args).unwrap();
        assert_eq!(space.samples.len(), 4);
        let last = space.samples[3];
        assert_eq!(last.sent, 4 * 20 * 200);
        assert!(last.live > 0 && last.used >= last.live && last.disk >= last.used);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn users_get_messages_at_rates_that_differ_and_each_gets_some() {
        let mut counts = vec![0; 100];
        let mut random = 7;
        (0..100_000).for_each(|_| counts[skewed(&mut random, 100)] += 1);
        assert!(counts.iter().all(|count| *count > 300), "{counts:?}");
        assert!(counts[0] > 5 * counts[99], "{counts:?}");
    }
}
