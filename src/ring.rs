//! The only way from one core to another: a bounded single-producer single-consumer ring for every
//! ordered pair of cores, and the bell that wakes a core which sleeps.
//!
//! ```text
//!   core a                                                        core b
//!   push, push, push ─▶ staged │ publish ─▶ [ring a→b, RING_SLOTS] ─▶ drain
//!                              └─ ring the bell of b, if b said that it sleeps
//! ```
//!
//! A core stages what it has for another one during its turn and publishes once at the turn's end:
//! one store of the ring's index, one fence and at most one wake for the whole turn. At 16 or more a
//! turn a message costs 8 to 10 ns, published one by one 54 (`docs/decisions/0004-rings.md`).
//!
//! Invariants: what is pushed arrives exactly once, in order; staged and published messages together
//! never exceed [`RING_SLOTS`]; a published message never waits for a core that stays asleep
//! ([`Sleeper`], model-tested in `tests/ring_model`).
//!
//! Does not know how a core is woken (the caller passes that) and holds no lock and no `unsafe`: the
//! ring itself is the crate `rtrb`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic;

mod sleeper;

pub use sleeper::Sleeper;

/// Messages between one core and one other, staged or published, that the other has not taken yet.
/// Full: [`Producer::push`] hands the message back and the caller stops reading sockets until there
/// is room; nothing is dropped and nothing grows.
pub const RING_SLOTS: usize = 1024;

/// Messages that a core takes from one ring in one turn, so that no other core can make its turn
/// long. More wait in the ring for the next turn.
pub const RING_DRAIN_MAX: usize = 256;

const _: () = {
    assert!(RING_SLOTS.is_power_of_two());
    assert!(RING_DRAIN_MAX <= RING_SLOTS);
};

/// A message that found no room, handed back whole. Stop producing and try again next turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the ring has {RING_SLOTS} messages that the other core has not taken; stop reading \
             sockets and push again next turn"
        )
    }
}

impl<T> std::error::Error for Full<T> {}

/// Makes the link from one core to another one, whose bell is `sleeper`: one [`Sleeper`] per core,
/// shared by all links that lead to it.
#[must_use]
pub fn link<T>(sleeper: Arc<Sleeper>) -> (Producer<T>, Consumer<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(RING_SLOTS);
    let producer = Producer {
        ring: producer,
        staged: Vec::with_capacity(RING_SLOTS),
        room: RING_SLOTS,
        sleeper,
    };
    (producer, Consumer { ring: consumer })
}

/// The sending end of a link. Belongs to one core.
pub struct Producer<T> {
    ring: rtrb::Producer<T>,
    /// This turn's messages, which the other core cannot see yet.
    staged: Vec<T>,
    /// Free slots when last looked, at least `staged.len()`: only the consumer changes the real
    /// number meanwhile, and only upwards.
    room: usize,
    sleeper: Arc<Sleeper>,
}

impl<T> Producer<T> {
    /// Stages one message for this turn's [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Full`], with the message, when the other core is [`RING_SLOTS`] messages behind.
    #[inline]
    pub fn push(&mut self, message: T) -> Result<(), Full<T>> {
        if self.staged.len() == self.room {
            self.room = self.ring.slots();
            if self.staged.len() == self.room {
                return Err(Full(message));
            }
        }
        self.staged.push(message);
        Ok(())
    }

    /// Messages that [`push`](Self::push) is sure to take now.
    #[must_use]
    pub fn room(&mut self) -> usize {
        self.room = self.ring.slots();
        self.room - self.staged.len()
    }

    /// Whether messages wait for [`publish`](Self::publish).
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Shows the other core everything staged, and wakes it if it sleeps. Call once per turn.
    /// Returns how many messages were published; 0 costs nothing and never wakes.
    #[inline]
    pub fn publish(&mut self, wake: impl FnOnce()) -> usize {
        let count = self.staged.len();
        if count == 0 {
            return 0;
        }
        let Ok(chunk) = self.ring.write_chunk_uninit(count) else {
            unreachable!("push staged more than the ring had room for");
        };
        let written = chunk.fill_from_iter(self.staged.drain(..));
        assert!(written == count, "the ring took less than it had room for");
        self.room -= count;
        self.sleeper.ring(wake);
        count
    }

    /// Whether the other end is gone: its core has ended.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.ring.is_abandoned()
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("staged", &self.staged.len())
            .finish_non_exhaustive()
    }
}

/// The receiving end of a link. Belongs to one core.
pub struct Consumer<T> {
    ring: rtrb::Consumer<T>,
}

impl<T> Consumer<T> {
    /// Takes up to `max` messages, oldest first, and passes each to `take`. The slots are free for
    /// the other core when all have been passed. Returns how many there were.
    #[inline]
    pub fn drain(&mut self, max: usize, take: impl FnMut(T)) -> usize {
        let count = self.ring.slots().min(max);
        if count == 0 {
            return 0;
        }
        let Ok(chunk) = self.ring.read_chunk(count) else {
            unreachable!("only this end takes messages, so those counted are still there");
        };
        chunk.into_iter().for_each(take);
        count
    }

    /// Messages that are published and were not taken.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.slots()
    }

    /// Whether nothing is published. The recheck of [`Sleeper::may_sleep`] asks this of every link
    /// that leads to the core.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.slots() == 0
    }

    /// Whether the other end is gone. What it published before is still there to be drained.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.ring.is_abandoned()
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::thread;

    fn pair<T>() -> (Producer<T>, Consumer<T>, Arc<Sleeper>) {
        let sleeper = Arc::new(Sleeper::new());
        let (producer, consumer) = link(Arc::clone(&sleeper));
        (producer, consumer, sleeper)
    }

    fn taken(consumer: &mut Consumer<u32>, max: usize) -> Vec<u32> {
        let mut all = Vec::new();
        consumer.drain(max, |message| all.push(message));
        all
    }

    #[test]
    fn staged_messages_are_invisible_until_they_are_published() {
        let (mut producer, mut consumer, _) = pair();
        producer.push(1).unwrap();
        producer.push(2).unwrap();
        assert!(producer.is_dirty());
        assert!(consumer.is_empty());
        assert_eq!(producer.publish(|| ()), 2);
        assert!(!producer.is_dirty());
        assert_eq!(taken(&mut consumer, 10), [1, 2]);
    }

    #[test]
    fn a_full_ring_hands_the_message_back_and_room_returns_when_it_is_drained() {
        let (mut producer, mut consumer, _) = pair();
        for message in 0..RING_SLOTS as u32 {
            producer.push(message).unwrap();
            if message == 5 {
                producer.publish(|| ());
            }
        }
        assert_eq!(producer.push(7777), Err(Full(7777)));
        producer.publish(|| ());
        assert_eq!(producer.push(7777), Err(Full(7777)));
        assert_eq!(producer.room(), 0);
        assert_eq!(taken(&mut consumer, 3), [0, 1, 2]);
        assert_eq!(producer.room(), 3);
        producer.push(7777).unwrap();
        producer.publish(|| ());
        let rest = taken(&mut consumer, usize::MAX);
        assert_eq!(rest.len(), RING_SLOTS - 3 + 1);
        assert_eq!(rest.last(), Some(&7777));
    }

    #[test]
    fn draining_stops_at_its_bound_and_keeps_the_order() {
        let (mut producer, mut consumer, _) = pair();
        (0..10).for_each(|message| producer.push(message).unwrap());
        producer.publish(|| ());
        assert_eq!(taken(&mut consumer, 4), [0, 1, 2, 3]);
        assert_eq!(taken(&mut consumer, 100), [4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn only_a_sleeping_core_is_woken_and_only_once() {
        let (mut producer, mut consumer, sleeper) = pair();
        let wakes = Cell::new(0);
        let wake = || wakes.set(wakes.get() + 1);
        producer.push(1).unwrap();
        producer.publish(wake);
        assert_eq!(wakes.get(), 0, "the consumer is awake");
        assert!(
            !sleeper.may_sleep(|| !consumer.is_empty()),
            "a message is there"
        );
        producer.push(2).unwrap();
        producer.publish(wake);
        assert_eq!(wakes.get(), 0, "the consumer did not go to sleep");
        taken(&mut consumer, 10);
        assert!(sleeper.may_sleep(|| !consumer.is_empty()));
        assert_eq!(producer.publish(wake), 0);
        assert_eq!(wakes.get(), 0, "nothing was published");
        for message in 3..6 {
            producer.push(message).unwrap();
            producer.publish(wake);
        }
        assert_eq!(wakes.get(), 1);
        sleeper.woke();
        assert_eq!(taken(&mut consumer, 10), [3, 4, 5]);
    }

    #[test]
    fn messages_left_in_a_dropped_link_are_dropped_with_it() {
        let (mut producer, consumer, _) = pair();
        let message = Arc::new(());
        producer.push(Arc::clone(&message)).unwrap();
        producer.publish(|| ());
        producer.push(Arc::clone(&message)).unwrap();
        drop(consumer);
        assert!(producer.is_abandoned());
        drop(producer);
        assert_eq!(Arc::strong_count(&message), 1);
    }

    /// R: H-1
    #[test]
    fn two_threads_that_sleep_and_wake_each_other_lose_nothing_and_never_hang() {
        const MESSAGES: u32 = 200_000;
        let (mut producer, mut consumer, sleeper) = pair();
        let receiver = thread::spawn(move || {
            let mut next = 0;
            while next < MESSAGES {
                if consumer.drain(RING_DRAIN_MAX, |message: u32| {
                    assert_eq!(message, next);
                    next += 1;
                }) == 0
                    && sleeper.may_sleep(|| !consumer.is_empty())
                {
                    thread::park();
                    sleeper.woke();
                }
            }
        });
        let mut message = 0;
        while message < MESSAGES {
            // Turns of uneven length, so that the consumer both keeps up and falls behind.
            for _ in 0..=message % 7 {
                if message < MESSAGES && producer.push(message).is_ok() {
                    message += 1;
                }
            }
            if producer.publish(|| receiver.thread().unpark()) == 0 {
                thread::yield_now();
            }
        }
        receiver.join().unwrap();
    }
}
