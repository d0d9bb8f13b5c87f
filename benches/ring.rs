//! What a message between two cores costs, by each way that was considered.
//!
//! Run with `cargo bench --bench ring`. Two threads, pinned to two cores where there are two; a message
//! has 64 bytes; a link holds 1,024. "ns" is wall time per message, which is what the slower side
//! costs. The best of many short runs, because the machine may be shared: noise only ever adds.
#![expect(clippy::disallowed_methods, reason = "a benchmark needs a clock")]

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use iris::ring::{Consumer, Producer, RING_DRAIN_MAX, RING_SLOTS, Sleeper, link};

/// Like the real ones: a routed send is a few words and a buffer.
type Message = [u64; 8];

/// Few, so that one run fits between two interruptions by other work.
const MESSAGES: u64 = 200_000;
const RUNS: usize = 200;

fn message(number: u64) -> Message {
    [number; 8]
}

/// Runs both sides at once; nanoseconds per message.
fn race(producer: impl FnOnce() + Send, consumer: impl FnOnce() -> u64 + Send) -> f64 {
    let began = Instant::now();
    let sum = thread::scope(|scope| {
        scope.spawn(|| {
            pin(0);
            producer();
        });
        let consumer = scope.spawn(|| {
            pin(1);
            consumer()
        });
        consumer.join().expect("the consumer ends")
    });
    assert_eq!(sum, MESSAGES * (MESSAGES - 1) / 2, "every message once");
    began.elapsed().as_nanos() as f64 / MESSAGES as f64
}

fn pin(core: usize) {
    // A machine with one core runs unpinned.
    let _ = set_affinity(core);
}

fn set_affinity(core: usize) -> std::io::Result<()> {
    // SAFETY: a plain structure of bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is 0 or 1, within the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set outlives the call, and its size is given.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Our link, published after every `turn` messages.
fn ring(turn: u64) -> f64 {
    let (mut producer, mut consumer): (Producer<Message>, Consumer<Message>) =
        link(Arc::new(Sleeper::new()));
    race(
        move || {
            let mut number = 0;
            while number < MESSAGES {
                let end = (number + turn).min(MESSAGES);
                while number < end && producer.push(message(number)).is_ok() {
                    number += 1;
                }
                if producer.publish(|| ()) == 0 {
                    std::hint::spin_loop();
                }
            }
        },
        move || {
            let (mut sum, mut count) = (0, 0);
            while count < MESSAGES {
                let taken = consumer.drain(RING_DRAIN_MAX, |message| sum += message[0]);
                count += taken as u64;
                if taken == 0 {
                    std::hint::spin_loop();
                }
            }
            sum
        },
    )
}

/// `rtrb` as it comes, one push and one pop per message.
fn rtrb_alone() -> f64 {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<Message>::new(RING_SLOTS);
    race(
        move || {
            for number in 0..MESSAGES {
                while producer.push(message(number)).is_err() {
                    std::hint::spin_loop();
                }
            }
        },
        move || {
            let (mut sum, mut count) = (0, 0);
            while count < MESSAGES {
                if let Ok(message) = consumer.pop() {
                    sum += message[0];
                    count += 1;
                }
            }
            sum
        },
    )
}

/// A queue for many producers and consumers.
fn array_queue() -> f64 {
    let queue = &ArrayQueue::<Message>::new(RING_SLOTS);
    race(
        move || {
            for number in 0..MESSAGES {
                while queue.push(message(number)).is_err() {
                    std::hint::spin_loop();
                }
            }
        },
        move || {
            let (mut sum, mut count) = (0, 0);
            while count < MESSAGES {
                if let Some(message) = queue.pop() {
                    sum += message[0];
                    count += 1;
                }
            }
            sum
        },
    )
}

/// The bounded channel of crossbeam, without blocking.
fn channel() -> f64 {
    let (sender, receiver) = crossbeam_channel::bounded::<Message>(RING_SLOTS);
    race(
        move || {
            for number in 0..MESSAGES {
                while sender.try_send(message(number)).is_err() {
                    std::hint::spin_loop();
                }
            }
        },
        move || {
            let (mut sum, mut count) = (0, 0);
            while count < MESSAGES {
                if let Ok(message) = receiver.try_recv() {
                    sum += message[0];
                    count += 1;
                }
            }
            sum
        },
    )
}

/// The bell of a core that is awake: what every published turn pays.
fn bell() -> f64 {
    let sleeper = Sleeper::new();
    let began = Instant::now();
    for _ in 0..MESSAGES {
        std::hint::black_box(&sleeper).ring(|| ());
    }
    began.elapsed().as_nanos() as f64 / MESSAGES as f64
}

fn report(name: &str, run: impl Fn() -> f64) {
    let best = (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min);
    println!("{name:<44}{best:>8.1} ns/message{:>10.1} M/s", 1e3 / best);
}

fn main() {
    println!("64-byte messages, {RING_SLOTS} slots, best of {RUNS} runs of {MESSAGES}");
    for turn in [1, 4, 16, 64, 256] {
        report(&format!("iris::ring, published every {turn}"), || {
            ring(turn)
        });
    }
    report("rtrb, one by one", rtrb_alone);
    report("crossbeam ArrayQueue", array_queue);
    report("crossbeam bounded channel", channel);
    report("Sleeper::ring, the core being awake", bell);
}
