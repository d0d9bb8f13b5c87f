//! Every interleaving of the sleep-flag protocol of `src/ring/sleeper.rs`, by loom.
//!
//! The file itself is compiled twice into this test: [`whole`] with loom's atomics, [`without_fences`]
//! with the same atomics and a fence that does nothing. The first must never hang, the second must
//! (loom reports it as a deadlock), or the model would prove nothing. No `--cfg loom` is needed, which
//! would reach into tokio and crossbeam and break them.
//!
//! Run with `cargo test --test ring_model`.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::sync::Arc; // loom's own would panic again while a hanging model unwinds, and abort

mod whole;
#[expect(
    clippy::duplicate_mod,
    reason = "the same source on purpose, on other atomics"
)]
mod without_fences;

/// Times that loom takes the processor from a thread in the middle, per run. Without this bound the
/// model of two producers passes too, but takes 9 minutes.
const PREEMPTIONS_MAX: usize = 3;

/// What wakes a core: a written eventfd stays readable until it is read.
struct EventFd {
    written: Mutex<bool>,
    readable: Condvar,
}

impl EventFd {
    fn new() -> Self {
        Self {
            written: Mutex::new(false),
            readable: Condvar::new(),
        }
    }

    fn write(&self) {
        *self.written.lock().unwrap() = true;
        self.readable.notify_one();
    }

    fn read(&self) {
        let mut written = self.written.lock().unwrap();
        while !*written {
            written = self.readable.wait(written).unwrap();
        }
        *written = false;
    }
}

/// Runs `$producers` cores that publish one message each and one core that takes all of them and
/// sleeps whenever it may, with the `Sleeper` of module `$variant`. `$recheck` false: the consumer
/// does not look at its rings again. Hangs (a panic of loom) when a wake-up is lost.
macro_rules! model {
    ($variant:ident, $producers:expr, $recheck:expr) => {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(PREEMPTIONS_MAX);
        model.check(|| {
            let sleeper = Arc::new($variant::sleeper::Sleeper::new());
            let eventfd = Arc::new(EventFd::new());
            // What a ring is to this protocol: an index that its producer stores with Release.
            let rings: Vec<_> = (0..$producers)
                .map(|_| Arc::new(AtomicUsize::new(0)))
                .collect();
            for ring in &rings {
                let (ring, sleeper, eventfd) = (ring.clone(), sleeper.clone(), eventfd.clone());
                thread::spawn(move || {
                    ring.store(1, Ordering::Release);
                    sleeper.ring(|| eventfd.write());
                });
            }
            let published = || rings.iter().map(|ring| ring.load(Ordering::Acquire)).sum();
            let mut taken: usize = 0;
            while taken < $producers {
                let seen: usize = published();
                if seen > taken {
                    taken = seen;
                } else if sleeper.may_sleep(|| $recheck && published() > taken) {
                    eventfd.read();
                    sleeper.woke();
                }
            }
        });
    };
}

/// R: H-1
#[test]
fn a_message_published_while_the_core_goes_to_sleep_always_wakes_it() {
    model!(whole, 1, true);
}

/// R: H-1
#[test]
fn two_producers_and_one_bell_lose_no_wake_up() {
    model!(whole, 2, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fences_a_wake_up_is_lost() {
    model!(without_fences, 1, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_looking_again_a_wake_up_is_lost() {
    model!(whole, 1, false);
}
