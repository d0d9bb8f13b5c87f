//! What measuring costs a core for one message, beside the message itself: the clock, the stamps, the
//! histograms. The least of several rounds, in nanoseconds; divide by the switch's CPU time for a message
//! (`iris-bench run`, `server_cpu_us_per_message`) for its share.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and here it is what is measured"
)]

use std::hint::black_box;
use std::time::Instant;

use iris::measure::{Histograms, Places, Stage, Waits};
use iris::stamp::Stamp;

const MESSAGES: u64 = 1_000_000;
const ROUNDS: usize = 7;
/// Bytes of the log from one message to the next.
const STRIDE: u64 = 224;

fn main() {
    let began = Instant::now();
    let clock = || u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut set = Histograms::new(0);
    let mut places = Places::default();
    report("one reading of the clock", || {
        black_box(clock());
    });
    let mut ns = 1;
    report("one value recorded", || {
        ns = ns % 4_000_000 + 137; // like latencies, over many counters
        set.record(Stage::Sync, ns);
    });
    let mut position = 4_096;
    let mut ns = 1;
    // As under load: of 16 messages in a receive, a send and so on, each pays a sixteenth of the readings.
    report("a message, sixteen sharing each reading", || {
        position += STRIDE;
        ns = ns % 4_000_000 + 137;
        message(&mut set, &mut places, position, position * 40, ns);
        if (position / STRIDE).is_multiple_of(16) {
            readings(clock);
        }
    });
    report("a message with all readings for itself", || {
        position += STRIDE;
        ns = ns % 4_000_000 + 137;
        message(&mut set, &mut places, position, position * 40, ns);
        readings(clock);
    });
}

/// The readings that messages share: receive, write, sync, commit, send of the answer, send of the entry,
/// receive of the acknowledgement.
fn readings(clock: impl Fn() -> u64) {
    for _ in 0..7 {
        black_box(clock());
    }
}

/// All that is done for one message from its frame to its acknowledgement.
fn message(set: &mut Histograms, places: &mut Places, position: u64, now_ns: u64, took: u64) {
    let read = Stamp::of(now_ns);
    set.record(Stage::Batch, took / 3);
    places.put(0, position, read, now_ns + took);
    let mut answers = Waits::default();
    answers.note(read);
    answers.end(|read, count| set.record_n(Stage::Accept, read.elapsed(now_ns + took), count));
    let mut entries = Waits::default();
    if let Some((_, durable)) = places.get(0, position) {
        entries.note(durable);
    }
    entries.end(|at, count| set.record_n(Stage::Deliver, at.elapsed(now_ns + 2 * took), count));
    if let Some((read, _)) = places.get(0, position) {
        set.record(Stage::E2e, read.elapsed(now_ns + 3 * took));
    }
}

fn report(what: &str, mut once: impl FnMut()) {
    let round = |_| {
        let began = Instant::now();
        (0..MESSAGES).for_each(|_| once());
        began.elapsed().as_nanos() as f64 / MESSAGES as f64
    };
    let least = (0..ROUNDS).map(round).fold(f64::MAX, f64::min);
    println!("{what:45} {least:7.1} ns");
}
