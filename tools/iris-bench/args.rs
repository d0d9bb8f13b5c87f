//! What can be asked on the command line. `iris-bench run --help` is the manual.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use iris_proto::limits::{BODY_BYTES_MAX, SENDS_IN_FLIGHT_MAX};

use crate::fleet::Manner;
use crate::message::STAMP_BYTES;
use crate::pattern::Pattern;

/// Load generator and checker for Iris.
#[derive(Debug, Parser)]
#[command(name = "iris-bench", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put load on a switch, measure it, and verify every message: everybody sends to anybody.
    #[command(visible_alias = "online")]
    Run(RunArgs),
    /// The same with half of the users away: store for them, let them in, and measure how fast they drain.
    Offline(RunArgs),
    /// The same with everybody sending to a few (--targets).
    FanIn(RunArgs),
    /// The same with some of each: to anybody, to a few, and to users who are away for half of the time.
    Mixed(RunArgs),
    /// Measure the memory of idle sessions in a switch on this machine.
    Idle(IdleArgs),
    /// Measure the share of what a bare relay can do on the same machinery that the switch can.
    Limit(LimitArgs),
    /// Compare the results of two sides, each one or several files of `--json`.
    Compare(CompareArgs),
    /// Cut thousands of clients at once and let them come back, beside sessions that go on.
    Storm(StormArgs),
    /// Let clients do everything wrong, kind by kind, beside sessions that go on.
    Hostile(HostileArgs),
    /// Measure the bare disk: 16 KiB write into a pre-zeroed file, then fdatasync, one after another.
    Disk(DiskArgs),
    /// Measure how long a start takes with many entries.
    Recovery(RecoveryArgs),
    /// Measure how much disk a log takes for what is in it, while old messages leave.
    Space(SpaceArgs),
    /// Write a data directory with users, inboxes and history, for a switch to start with.
    Fill(FillArgs),
    /// Do one part of a message's way so many times, for whoever counts instructions (benches/instructions).
    Instructions(InstructionsArgs),
    /// Be the bare relay that `limit` compares with, until a signal comes.
    BareRelay(RelayArgs),
}

const RUN_MANUAL: &str = "\
HOW IT MEASURES
  Each connection is a user of its own (bench-<run id>-<number>, device \"bench\"), over TLS 1.3, with a
  token made from the development key in DIR/dev. Each message goes from a random connection to a
  random other one, and carries the time at which it was meant to be sent and its number in the
  stream from that sender to that recipient.

  accept      from the intended time of sending until the sender has its Accepted: the message is on
              stable storage.
  end to end  from the intended time of sending until the recipient has the entry.

  --saturate (the default) keeps W messages in flight on each connection: the intended time is the time
  of sending, and the result is the throughput. --rate R sends R messages a second in all, evenly, come
  what may: the intended time is the schedule's, so a stall of the switch (or of this program) counts
  in full against every message that it held up. That is the mode to read latencies from; \"late\" says
  how many messages left more than 1 ms after their time.

  Warm-up is not counted. Throughput counts answers within the measured time; latency counts messages
  meant to be sent within it, also those answered later.

WHAT IT VERIFIES
  After the measured time the run drains. Then every accepted message must have arrived exactly once
  and in order per pair of sender and recipient, each inbox must have been numbered without a hole
  and without an entry that the switch says is gone, and nothing may have arrived that was not sent.
  Refused messages (a full inbox, overload, data that is not served now) are counted and sent again
  in order.

EXIT CODE
  0  everything was verified     1  it was not, or the run failed     2  wrong usage
  3  the rate that was asked for was not generated

EXAMPLES
  iris-bench run --connections 1000 --duration 20
  iris-bench run --connections 200 --in-flight 16 --json result.json
  iris-bench run --connections 100 --rate 1000 --duration 60 --hdr latency.hlog
  iris-bench run --connections 200 --ramp --p99 10ms --duration 3
  iris-bench offline --connections 200 --in-flight 16
  iris-bench run --connections 50 --reconnect      # while the switch is killed and started again";

/// `iris-bench run`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = RUN_MANUAL)]
pub struct RunArgs {
    /// Connections, each a user of its own.
    #[arg(long, short = 'c', default_value_t = 100, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Messages in flight on each connection at most: sent, and not yet accepted. Without it 1, and with
    /// a rate as many as the protocol allows, so that only the switch can hold the schedule up.
    #[arg(long, short = 'w', value_name = "W",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SENDS_IN_FLIGHT_MAX)))]
    pub in_flight: Option<u32>,
    /// Bytes of each body, 16 at least (time and number).
    #[arg(long, default_value_t = 128, value_name = "B",
          value_parser = clap::value_parser!(u32)
              .range(STAMP_BYTES as i64..=BODY_BYTES_MAX as i64))]
    pub size: u32,
    /// Seconds to measure.
    #[arg(long, short = 'd', default_value_t = 10.0, value_name = "S", value_parser = seconds)]
    pub duration: f64,
    /// Seconds of load before the measurement.
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = seconds_or_none)]
    pub warmup: f64,
    /// Messages per second in all, sent at a constant rate: open loop.
    #[arg(long, short = 'r', value_name = "R", conflicts_with = "saturate", value_parser = rate)]
    pub rate: Option<f64>,
    /// Keep W messages in flight on each connection, always: closed loop (the default).
    #[arg(long)]
    pub saturate: bool,
    /// Messages that one sender sends at one point of the schedule.
    #[arg(long, default_value_t = 1, value_name = "B",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SENDS_IN_FLIGHT_MAX)))]
    pub burst: u32,
    /// Look for the highest rate that keeps --p99, from --rate (or 1000) on.
    #[arg(long, conflicts_with = "saturate")]
    pub ramp: bool,
    /// What the p99 of accept is to stay within, such as 10ms or 800us.
    #[arg(long, default_value = "10ms", value_name = "TIME", value_parser = latency)]
    pub p99: Duration,
    /// Part of the users' names, in hex, for users who were there before (as `fill` made them). Without it a
    /// new one.
    #[arg(long, value_name = "HEX", value_parser = run_id)]
    pub run_id: Option<u32>,
    /// Users that the messages of fan-in, and a part of those of mixed, go to.
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub targets: u32,
    /// Runs to make, one after the other; all are in the JSON.
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub runs: u32,
    /// Where the switch listens. Without it: what the switch wrote into DIR/LOCK, or 127.0.0.1:7447.
    #[arg(long, value_name = "HOST:PORT")]
    pub addr: Option<String>,
    /// The name that the switch's certificate must be good for.
    #[arg(long, default_value = "localhost", value_name = "NAME")]
    pub server_name: String,
    /// The switch's data directory: the trust anchor and the token-signing key are taken from its
    /// `dev` directory, address and process id from its LOCK file.
    #[arg(long, default_value = "./iris-data", value_name = "DIR")]
    pub data: PathBuf,
    /// Threads of the load generator.
    #[arg(long, default_value_t = 1, value_name = "T",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Cores to pin those threads to, in turn, such as 1 or 0,2-3. Without it they are not pinned.
    #[arg(long, value_name = "LIST", value_parser = cores)]
    pub cores: Option<Cores>,
    /// Seed of the random choice of senders and recipients.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the latencies of the measured time to this file, as an HdrHistogram log with an interval for
    /// each run: tags accept and end-to-end, nanoseconds.
    #[arg(long, value_name = "FILE")]
    pub hdr: Option<PathBuf>,
    /// Whether all that was sent and all that came are compared at the end. Without it a lost message goes
    /// unseen, and the result says that it was not verified.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub verify: bool,
    /// Connect again after a lost connection, and go on in order. Without it, losing one fails the run.
    #[arg(long)]
    pub reconnect: bool,
    /// Seconds to wait, after the measurement, for what is still under way.
    #[arg(long, default_value_t = 10.0, value_name = "S", value_parser = seconds)]
    pub drain_timeout: f64,
    /// Seconds that connecting may take in all.
    #[arg(long, default_value_t = 30.0, value_name = "S", value_parser = seconds)]
    pub connect_timeout: f64,
    /// No progress lines.
    #[arg(long, short)]
    pub quiet: bool,
    /// The scenario: the subcommand's.
    #[arg(skip)]
    pub pattern: Pattern,
}

impl RunArgs {
    /// Slots of each connection.
    #[must_use]
    pub fn slots(&self) -> u32 {
        let is_open = self.rate.is_some() || self.ramp;
        let most = if is_open { SENDS_IN_FLIGHT_MAX } else { 1 };
        self.in_flight.unwrap_or(most)
    }
}

/// Where the switch is, and the sessions that go on meanwhile.
#[derive(Args, Clone, Debug)]
pub struct PlaceArgs {
    /// Sessions that exchange messages all the time: each message from a random one to a random other.
    #[arg(long, default_value_t = 100, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub established: u32,
    /// Their messages per second in all, at a constant rate.
    #[arg(long, short = 'r', default_value_t = 500.0, value_name = "R", value_parser = rate)]
    pub rate: f64,
    /// Where the switch listens. Without it: what the switch wrote into DIR/LOCK, or 127.0.0.1:7447.
    #[arg(long, value_name = "HOST:PORT")]
    pub addr: Option<String>,
    /// The name that the switch's certificate must be good for.
    #[arg(long, default_value = "localhost", value_name = "NAME")]
    pub server_name: String,
    /// The switch's data directory, for its development identity and its LOCK file.
    #[arg(long, default_value = "./iris-data", value_name = "DIR")]
    pub data: PathBuf,
    /// Cores to pin to: the first for the sessions, the last for the others, which yield to them. Without
    /// it they are not pinned.
    #[arg(long, value_name = "LIST", value_parser = cores)]
    pub cores: Option<Cores>,
    /// By how many steps of niceness the others yield to the sessions, which they share a core with. 19 on a
    /// machine where nothing else runs; where something does, that starves them.
    #[arg(long, default_value_t = 5, value_name = "STEPS", value_parser = clap::value_parser!(i32).range(0..=19))]
    pub nice: i32,
    /// Seed of the random choice of senders and recipients.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `iris-bench storm`.
#[derive(Args, Clone, Debug)]
pub struct StormArgs {
    /// Clients that are cut and come back. Each takes an open file, here and in the switch.
    #[arg(long, short = 'n', default_value_t = 5_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// They come back at once and without a ticket, again and again, whatever they are told; without it, as
    /// the client library does: backoff with full jitter, the switch's hints, tickets.
    #[arg(long)]
    pub aggressive: bool,
    /// Milliseconds after which an aggressive client gives an attempt up and begins another.
    #[arg(long, default_value_t = 2_000, value_name = "MS",
          value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub give_up_ms: u64,
    /// Seconds to measure without a disturbance, before the storm and after it.
    #[arg(long, default_value_t = 5.0, value_name = "S", value_parser = seconds)]
    pub undisturbed: f64,
    /// Seconds of rest between the first logins and that.
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = seconds_or_none)]
    pub settle: f64,
    /// Seconds within which all must be logged in, and within which all must be back.
    #[arg(long, default_value_t = 120.0, value_name = "S", value_parser = seconds)]
    pub timeout: f64,
    /// No progress lines.
    #[arg(long, short)]
    pub quiet: bool,
    /// The switch and the sessions that go on.
    #[command(flatten)]
    pub place: PlaceArgs,
}

impl StormArgs {
    /// How they come back.
    #[must_use]
    pub const fn manner(&self) -> Manner {
        match self.aggressive {
            false => Manner::Library,
            true => Manner::Aggressive {
                give_up_ms: self.give_up_ms,
            },
        }
    }
}

/// What hostile clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Ask for everything and read nothing.
    NeverReads,
    /// The same, and read a byte a second.
    ByteASecond,
    /// Read everything and acknowledge nothing, while they are sent more.
    NeverAcknowledges,
    /// Send pings as fast as they are taken.
    FloodsPings,
    /// Open 10,000 connections and say nothing, again and again.
    WithoutToken,
    /// Send one byte of a frame a second.
    DripsFrames,
    /// Send frames as fast as they are taken, each byte in a TLS record of its own, until they are cut.
    TinyRecords,
}

/// `iris-bench hostile`.
#[derive(Args, Clone, Debug)]
pub struct HostileArgs {
    /// Hostile clients of each kind.
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub clients: u32,
    /// The kinds; without it all.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kind: Vec<Kind>,
    /// Seconds to measure without, and then beside, each kind.
    #[arg(long, short = 'd', default_value_t = 5.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// No progress lines.
    #[arg(long, short)]
    pub quiet: bool,
    /// The switch and the sessions that go on.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `iris-bench disk`.
#[derive(Args, Clone, Debug)]
pub struct DiskArgs {
    /// The directory whose disk to measure; a scratch file is made in it and removed.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub data: PathBuf,
    /// Seconds to measure.
    #[arg(long, short = 'd', default_value_t = 5.0, value_name = "S", value_parser = seconds)]
    pub duration: f64,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `iris-bench recovery`.
#[derive(Args, Clone, Debug)]
pub struct RecoveryArgs {
    /// The directory to make a scratch data directory in; it is removed.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub data: PathBuf,
    /// Entries to write and recover; a multiple of --users.
    #[arg(long, default_value_t = 10_000_000, value_name = "N")]
    pub entries: u64,
    /// Users that they are spread over.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub users: u64,
    /// Bytes of each body.
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    pub body: usize,
    /// Logs, opened in parallel as by as many cores.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub logs: u32,
    /// Starts to measure.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub starts: u32,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `iris-bench space`.
#[derive(Args, Clone, Debug)]
pub struct SpaceArgs {
    /// The directory to make a scratch data directory in; it is removed.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub data: PathBuf,
    /// Users that the messages are for.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    pub users: u64,
    /// Entries that an inbox keeps (as storage.retention_entries).
    #[arg(long, default_value_t = 2_500, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub keep: u64,
    /// Messages in all: so many times what all inboxes keep.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub turns: u64,
    /// Bytes of each body.
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    pub body: usize,
    /// Logs, driven in parallel as by as many cores.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub logs: u32,
    /// Messages a second, all logs together.
    #[arg(long, default_value_t = 100_000.0, value_name = "R", value_parser = rate)]
    pub rate: f64,
    /// Bytes of a segment (as storage.segment_bytes).
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    pub segment_bytes: u64,
    /// Bytes of the log between two checkpoints (as storage.checkpoint_bytes).
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    pub checkpoint_bytes: u64,
    /// Rows of the table.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub samples: u32,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `iris-bench idle`.
#[derive(Args, Clone, Debug)]
pub struct IdleArgs {
    /// Connections, each an authenticated TLS session of a device of its own. Each takes an open file, here
    /// and in the switch.
    #[arg(long, short = 'c', default_value_t = 5_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Connections before that, which stay: they touch the buffers that all share.
    #[arg(long, default_value_t = 500, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub before: u32,
    /// Seconds of rest before each look.
    #[arg(long, default_value_t = 5.0, value_name = "S", value_parser = seconds)]
    pub settle: f64,
    /// Cores of the switch.
    #[arg(long, default_value = "0", value_name = "LIST", value_parser = cores)]
    pub server_cores: Cores,
    /// The switch: a program file. Without it `iris` beside this one.
    #[arg(long, value_name = "FILE")]
    pub iris: Option<PathBuf>,
    /// Measure the switch that runs with this data directory, and start none.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The directory to make a scratch data directory in; it is removed.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub scratch: PathBuf,
    /// Seconds that connecting may take in all.
    #[arg(long, default_value_t = 120.0, value_name = "S", value_parser = seconds)]
    pub connect_timeout: f64,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `iris-bench limit`.
#[derive(Args, Clone, Debug)]
pub struct LimitArgs {
    /// Connections.
    #[arg(long, short = 'c', default_value_t = 200, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub connections: u32,
    /// Messages in flight on each, at saturation; at half load so many leave together.
    #[arg(long, short = 'w', default_value_t = 16, value_name = "W",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SENDS_IN_FLIGHT_MAX)))]
    pub in_flight: u32,
    /// Bytes of each body.
    #[arg(long, default_value_t = 128, value_name = "B",
          value_parser = clap::value_parser!(u32)
              .range(STAMP_BYTES as i64..=BODY_BYTES_MAX as i64))]
    pub size: u32,
    /// Seconds of each measurement.
    #[arg(long, short = 'd', default_value_t = 4.0, value_name = "S", value_parser = seconds)]
    pub duration: f64,
    /// Seconds of load before each.
    #[arg(long, default_value_t = 1.0, value_name = "S", value_parser = seconds_or_none)]
    pub warmup: f64,
    /// Rounds, each of both, in turn the one and the other first.
    #[arg(long, default_value_t = 5, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Messages per second at half load. Without it half of the switch's throughput of the first round.
    #[arg(long, value_name = "R", value_parser = rate)]
    pub half_rate: Option<f64>,
    /// The core of the switch and of the bare relay.
    #[arg(long, default_value_t = 0, value_name = "CORE",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=CORE_MAX as u64))]
    pub server_core: usize,
    /// The core of the generator.
    #[arg(long, default_value_t = 1, value_name = "CORE",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=CORE_MAX as u64))]
    pub client_core: usize,
    /// The switch: a program file. Without it `iris` beside this one.
    #[arg(long, value_name = "FILE")]
    pub iris: Option<PathBuf>,
    /// The directory to make scratch data directories in; they are removed.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub scratch: PathBuf,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `iris-bench compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// The first side: files of `--json`, separated by commas.
    #[arg(
        value_name = "A.json",
        required = true,
        num_args = 1,
        value_delimiter = ','
    )]
    pub before: Vec<PathBuf>,
    /// The second side.
    #[arg(
        value_name = "B.json",
        required = true,
        num_args = 1,
        value_delimiter = ','
    )]
    pub after: Vec<PathBuf>,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `iris-bench fill`.
#[derive(Args, Clone, Debug)]
pub struct FillArgs {
    /// The data directory to make.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Users, each with the device of this program.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub users: u64,
    /// Entries in the inbox of each.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub entries: u64,
    /// Users that these came from, for each recipient.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub senders: u64,
    /// A second device of each user has acknowledged none of them.
    #[arg(long)]
    pub pending: bool,
    /// Bytes of each body.
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    pub body: usize,
    /// Logs: as many as the switch is to have cores.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub logs: u32,
    /// Part of the users' names, in hex, as a run's.
    #[arg(long, default_value = "f111ed", value_name = "HEX", value_parser = run_id)]
    pub run_id: u32,
    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A part of a message's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Frames.
    Codec,
    /// Between two cores.
    Ring,
    /// A shard's state machine.
    Shard,
    /// The log's bytes.
    Log,
}

/// `iris-bench instructions`.
#[derive(Args, Clone, Debug)]
pub struct InstructionsArgs {
    /// Which part.
    #[arg(long)]
    pub work: Work,
    /// How often.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    pub turns: u64,
}

/// `iris-bench bare-relay`.
#[derive(Args, Clone, Debug)]
pub struct RelayArgs {
    /// Its data directory, which must be new.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Its core.
    #[arg(long, default_value_t = 0, value_name = "CORE",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=CORE_MAX as u64))]
    pub core: usize,
}

/// A list of processor cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// Cores beyond this number are not believed.
const CORE_MAX: usize = 1023;

fn cores(text: &str) -> Result<Cores, String> {
    let number = |part: &str| {
        part.trim()
            .parse::<usize>()
            .ok()
            .filter(|&core| core <= CORE_MAX)
            .ok_or_else(|| format!("`{part}` is not a core (0 to {CORE_MAX}); write 1 or 0,2-3"))
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => list.extend(number(first)?..=number(last)?),
            None => list.push(number(part)?),
        }
    }
    if list.is_empty() {
        return Err(format!("`{text}` names no core; write 1 or 0,2-3"));
    }
    Ok(Cores(list))
}

/// Seconds beyond which a run is a typing error: one day.
const SECONDS_MAX: f64 = 86_400.0;

fn seconds_or_none(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if (0.0..=SECONDS_MAX).contains(&value) {
        Ok(value)
    } else {
        Err(format!("give 0 to {SECONDS_MAX} seconds"))
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    seconds_or_none(text).and_then(|value| {
        if value > 0.0 {
            Ok(value)
        } else {
            Err("give more than 0 seconds".to_owned())
        }
    })
}

fn run_id(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 16).map_err(|error| format!("`{text}` is no hex number: {error}"))
}

fn latency(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time; write 10ms, 800us or 1s");
    let unit_at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => return Err(wrong()),
    };
    if seconds > 0.0 && seconds <= SECONDS_MAX {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(wrong())
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of messages"))?;
    if (0.001..=1e9).contains(&value) {
        Ok(value)
    } else {
        Err("give 0.001 to 1,000,000,000 messages a second".to_owned())
    }
}

/// The address in a text `host:port`, resolved.
///
/// # Errors
/// A sentence for people, when there is none.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    text.to_socket_addrs()
        .map_err(|error| format!("cannot resolve `{text}`: {error}; give --addr HOST:PORT"))?
        .next()
        .ok_or_else(|| format!("`{text}` has no address; give --addr HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cores_are_numbers_and_ranges() {
        assert_eq!(cores("1"), Ok(Cores(vec![1])));
        assert_eq!(cores("0,2-4"), Ok(Cores(vec![0, 2, 3, 4])));
        for bad in ["", "x", "1-", "3-1", "99999"] {
            assert!(cores(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(latency("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(latency("800us"), Ok(Duration::from_micros(800)));
        assert_eq!(latency("1.5s"), Ok(Duration::from_millis(1_500)));
        for bad in ["", "10", "ms", "-1ms", "0ms", "3min"] {
            assert!(latency(bad).is_err(), "{bad}");
        }
    }

    /// R: E-7
    #[test]
    fn an_open_loop_may_have_all_in_flight_that_the_protocol_allows_unless_told_otherwise() {
        let slots = |more: &[&str]| {
            let line = ["iris-bench", "run"].iter().chain(more).copied();
            match Cli::parse_from(line).command {
                Command::Run(args) => args.slots(),
                _ => unreachable!("run was asked for"),
            }
        };
        assert_eq!(slots(&[]), 1);
        assert_eq!(slots(&["--rate", "10"]), SENDS_IN_FLIGHT_MAX);
        assert_eq!(slots(&["--ramp"]), SENDS_IN_FLIGHT_MAX);
        assert_eq!(slots(&["--rate", "10", "-w", "4"]), 4);
    }

    #[test]
    fn rate_and_saturate_exclude_each_other() {
        let parse = |args: &[&str]| Cli::try_parse_from(args);
        assert!(parse(&["iris-bench", "run", "--rate", "10", "--saturate"]).is_err());
        assert!(parse(&["iris-bench", "run", "--rate", "0"]).is_err());
        assert!(parse(&["iris-bench", "run", "--size", "15"]).is_err());
        assert!(parse(&["iris-bench", "run", "--rate", "1000", "--size", "16"]).is_ok());
    }
}
