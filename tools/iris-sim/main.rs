//! `iris-sim`: lives through simulated worlds and says which promise broke in which.
//!
//! ```text
//!   iris-sim --seeds 1000            seeds 1 to 1000
//!   iris-sim --forever               until one fails
//!   iris-sim --seed 17 --trace       one world, and what happened in it
//!   iris-sim --prove                 plants each bug and shows the seed that finds it
//! ```
//!
//! A failing seed prints the command that replays it and the end of its trace, and the exit code is 1.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use iris::planted::{Bug, plant};
use iris::sim::check::Counts;
use iris::sim::run::{Report, run, silence_panics};
use iris::sim::world::TRACE_LINES;

/// Lives through simulated worlds, one for each seed.
#[derive(Debug, Parser)]
#[command(name = "iris-sim", disable_version_flag = true)]
struct Args {
    /// One seed.
    #[arg(long, conflicts_with_all = ["seeds", "forever", "seconds", "prove"])]
    seed: Option<u64>,
    /// With --seed: print the end of what happened, also when nothing failed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Lines of that end.
    #[arg(long, default_value_t = TRACE_LINES)]
    lines: usize,
    /// So many seeds.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Threads, each with a world of its own.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Seeds until one fails.
    #[arg(long)]
    forever: bool,
    /// Seeds for so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Go on after a failing seed, and list all of them.
    #[arg(long)]
    keep_going: bool,
    /// Plant each bug and look for the first seed that finds it.
    #[arg(long)]
    prove: bool,
    /// With --prove: give up on a bug after so many seeds instead of its own number.
    #[arg(long, requires = "prove")]
    seeds_max: Option<u64>,
    /// Plant this bug.
    #[arg(long)]
    bug: Option<Bug>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    silence_panics();
    if args.prove {
        return prove(&args);
    }
    if let Some(seed) = args.seed {
        plant(args.bug);
        let report = run(seed, args.lines);
        if args.trace || report.failure.is_some() {
            report.trace.iter().for_each(|line| println!("{line}"));
        }
        println!("{}", summary(&report));
        return exit(report.failure.is_none());
    }
    many(&args)
}

fn exit(is_fine: bool) -> ExitCode {
    if is_fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn summary(report: &Report) -> String {
    let Report {
        seed,
        events,
        fingerprint,
        counts,
        ..
    } = report;
    let seconds = report.simulated_us as f64 / 1e6;
    let end = report.failure.as_deref().unwrap_or("nothing failed");
    format!(
        "seed {seed}: {end}\n  {events} events, {seconds:.1} s simulated, fingerprint \
         {fingerprint:016x}\n  {counts:?}"
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "seeds per minute are of the real clock"
)]
fn clock() -> Instant {
    Instant::now()
}

/// Many seeds on some threads.
fn many(args: &Args) -> ExitCode {
    let count = match (args.seeds, args.forever || args.seconds.is_some()) {
        (Some(seeds), _) => seeds,
        (None, true) => u64::MAX,
        (None, false) => 100,
    };
    let end = args.from.saturating_add(count);
    let deadline = args
        .seconds
        .map(|seconds| clock() + Duration::from_secs(seconds));
    let (next, stop) = (AtomicU64::new(args.from), AtomicBool::new(false));
    let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let begun = clock();
    let (counted, counts) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            let counted = counted.clone();
            let (next, stop, done, failed) = (&next, &stop, &done, &failed);
            scope.spawn(move || {
                plant(args.bug);
                let mut total = Counts::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = deadline.is_some_and(|deadline| clock() >= deadline);
                    if seed >= end || is_over || stop.load(Ordering::Relaxed) {
                        let _ = counted.send(total);
                        return;
                    }
                    let report = run(seed, 0);
                    total.add(&report.counts);
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if report.failure.is_some() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        fail(args, seed);
                        stop.fetch_or(!args.keep_going, Ordering::Relaxed);
                    }
                    if done.is_multiple_of(1_000) {
                        println!("{}", rate(done, begun));
                    }
                }
            });
        }
    });
    println!("{}", rate(done.load(Ordering::Relaxed), begun));
    let mut total = Counts::default();
    counts.try_iter().for_each(|counts| total.add(&counts));
    println!("{total:?}");
    let failed = failed.load(Ordering::Relaxed);
    if failed > 0 {
        println!("{failed} failed");
    }
    exit(failed == 0)
}

fn rate(done: u64, begun: Instant) -> String {
    let seconds = begun.elapsed().as_secs_f64();
    let per_minute = done as f64 * 60.0 / seconds;
    format!("{done} seeds in {seconds:.1} s, {per_minute:.0} a minute")
}

/// Prints how to see a failure again, and the end of its trace.
fn fail(args: &Args, seed: u64) {
    let report = run(seed, args.lines);
    let mut text = String::new();
    if !args.keep_going {
        for line in &report.trace {
            text.push_str(line);
            text.push('\n');
        }
    }
    let bug = args
        .bug
        .map_or(String::new(), |bug| format!(" --bug {bug}"));
    text.push_str(&summary(&report));
    text.push_str(
        "\nto see it again:\n  cargo run --profile sim --features sim --bin iris-sim -- ",
    );
    text.push_str(&format!("--seed {seed}{bug}"));
    println!("{text}");
}

/// Plants each bug, and looks for the first seed that finds it.
fn prove(args: &Args) -> ExitCode {
    let bugs: Vec<Bug> = match args.bug {
        Some(bug) => vec![bug],
        None => Bug::ALL.to_vec(),
    };
    let next = AtomicU64::new(0);
    let results: Vec<AtomicU64> = bugs.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(bug) = bugs.get(nth) else { return };
                    plant(Some(*bug));
                    let max = args.seeds_max.unwrap_or(bug.seeds_max());
                    let mut seeds = args.from..args.from + max;
                    let found = seeds.find_map(|seed| {
                        let report = run(seed, 0);
                        report.failure.map(|failure| (seed, failure))
                    });
                    plant(None);
                    match found {
                        Some((seed, failure)) => {
                            results[nth].store(seed - args.from + 1, Ordering::Relaxed);
                            println!("{bug:22} seed {seed:>5} of {max:>5}: {failure}");
                        }
                        None => println!("{bug:22} NOT FOUND within {max} seeds"),
                    }
                }
            });
        }
    });
    let missing = results
        .iter()
        .filter(|found| found.load(Ordering::Relaxed) == 0)
        .count();
    println!(
        "{} bugs planted, {} found",
        bugs.len(),
        bugs.len() - missing
    );
    exit(missing == 0)
}
