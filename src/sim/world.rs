//! What everything in a simulated world shares: the clock, what happens next, chance, the trace.
//!
//! One thread takes the earliest event, lets it happen, and takes the next one. Two events of the
//! same instant happen in the order in which they were announced. Nothing else decides: no real
//! clock, no address, no order of a hash map. So a seed is a world, and [`World::fingerprint`] of two
//! runs of a seed is the same number.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write;

use super::dice::Dice;
use super::net::{ConnId, Side};

/// Unix time at which every world begins, in milliseconds.
pub const UNIX_START_MS: u64 = 1_790_000_000_000;
/// Lines of the trace that are kept up to a failure, unless more are asked for.
pub const TRACE_LINES: usize = 200;

/// Something that will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection's pipe towards this side has something due.
    Net(ConnId, Side),
    /// A connection attempt reaches the switch.
    Connect(ConnId),
    /// A core of the switch, in its so-manieth life, takes a turn.
    Turn {
        /// The switch's life.
        life: u32,
        /// The core.
        core: usize,
    },
    /// A step of a disk operation is done.
    Disk {
        /// The switch's life.
        life: u32,
        /// The log.
        log: usize,
        /// Whose: see `sim::io`.
        hand: usize,
    },
    /// Pages that a session waits for are in memory.
    Pages {
        /// The switch's life.
        life: u32,
        /// The connection.
        conn: ConnId,
    },
    /// The switch starts.
    Start,
    /// A client's session wants to be asked.
    Client {
        /// Which client.
        client: usize,
        /// Its alarm's number; older ones were replaced.
        alarm: u64,
    },
    /// A client's user does something.
    Act(usize),
    /// A client's program starts again.
    Program(usize),
    /// Something bad happens.
    Fault,
    /// From now on nothing bad happens any more.
    Heal,
    /// It is looked whether everything has settled.
    Settle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scheduled {
    at_us: u64,
    number: u64,
    event: Event,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Time, order, chance and the record of what happened.
#[derive(Debug)]
pub struct World {
    now_us: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    announced: u64,
    happened: u64,
    fingerprint: u64,
    /// Chance of everything that has no dice of its own.
    pub dice: Dice,
    /// Milliseconds that the wall clock is ahead of the simulated one.
    pub unix_ahead_ms: u64,
    /// The wall clock was set.
    pub clock_was_set: bool,
    lines_max: usize,
    lines: VecDeque<String>,
    failure: Option<String>,
}

impl World {
    /// A world in which nothing has happened. It remembers the last `lines_max` lines of its trace.
    #[must_use]
    pub fn new(seed: u64, lines_max: usize) -> Self {
        Self {
            now_us: 0,
            queue: BinaryHeap::new(),
            announced: 0,
            happened: 0,
            fingerprint: 0xcbf2_9ce4_8422_2325,
            dice: Dice::new(seed),
            unix_ahead_ms: 0,
            clock_was_set: false,
            lines_max,
            lines: VecDeque::new(),
            failure: None,
        }
    }

    /// Microseconds since the world began.
    #[must_use]
    pub const fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The same in milliseconds: what is monotonic for the programs in it.
    #[must_use]
    pub const fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// What the world's clocks show, in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn unix_ms(&self) -> u64 {
        UNIX_START_MS + self.unix_ahead_ms + self.now_us / 1_000
    }

    /// Announces an event.
    pub fn at(&mut self, at_us: u64, event: Event) {
        let (at_us, number) = (at_us.max(self.now_us), self.announced);
        self.announced += 1;
        self.queue.push(Reverse(Scheduled {
            at_us,
            number,
            event,
        }));
    }

    /// Announces an event `delay_us` from now.
    pub fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    /// Moves the clock to the next event.
    pub fn next_event(&mut self) -> Option<Event> {
        let Reverse(Scheduled {
            at_us,
            number,
            event,
        }) = self.queue.pop()?;
        self.now_us = at_us;
        self.happened += 1;
        self.mix(at_us);
        self.mix(number);
        Some(event)
    }

    /// Events that have happened.
    #[must_use]
    pub const fn happened(&self) -> u64 {
        self.happened
    }

    /// Adds something that was decided to the fingerprint.
    pub const fn mix(&mut self, value: u64) {
        self.fingerprint = (self.fingerprint ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        self.fingerprint ^= self.fingerprint >> 29;
    }

    /// A number that tells two histories apart.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether [`World::note`] remembers anything.
    #[must_use]
    pub const fn is_tracing(&self) -> bool {
        self.lines_max > 0
    }

    /// Adds a line to the trace; the text is made only when somebody will read it.
    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.lines_max == 0 {
            return;
        }
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        let mut line = String::new();
        let _ = write!(line, "{:>12.6}  {}", self.now_us as f64 / 1e6, text());
        self.lines.push_back(line);
    }

    /// Something that must never happen has happened. The first one counts.
    pub fn fail(&mut self, text: impl FnOnce() -> String) {
        if self.failure.is_none() {
            let text = text();
            self.note(|| format!("FAILED: {text}"));
            self.failure = Some(text);
        }
    }

    /// What failed, if anything has.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The last lines of the trace.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_by_their_time_and_then_by_their_announcement() {
        let mut world = World::new(1, TRACE_LINES);
        world.at(30, Event::Heal);
        world.at(10, Event::Start);
        world.at(10, Event::Fault);
        let order: Vec<_> = std::iter::from_fn(|| world.next_event()).collect();
        assert_eq!(order, [Event::Start, Event::Fault, Event::Heal]);
        assert_eq!(world.now_us(), 30);
        world.at(5, Event::Settle);
        world.next_event();
        assert_eq!(world.now_us(), 30, "time never goes back");
    }

    #[test]
    fn the_first_failure_counts_and_ends_the_trace() {
        let mut world = World::new(1, TRACE_LINES);
        world.fail(|| "one".to_owned());
        world.fail(|| "two".to_owned());
        assert_eq!(world.failure(), Some("one"));
        assert_eq!(world.trace().len(), 1);
    }
}
