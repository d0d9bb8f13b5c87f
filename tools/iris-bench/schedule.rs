//! When messages are meant to be sent, and by whom: pure arithmetic.

/// A constant rate, shared evenly by the threads. The intended times depend on nothing that happens:
/// a message that could not be sent in time keeps its time, and those behind it keep theirs.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Nanoseconds between two messages of all threads together.
    interval_ns: f64,
    start_ns: u64,
    end_ns: u64,
    /// Number, among all threads' messages, of this thread's next one.
    next: u64,
    step: u64,
}

impl Schedule {
    /// Thread `thread` of `threads`: its messages are number `thread`, `thread + threads`, … of
    /// `rate` messages per second, from `start_ns` on and before `end_ns`.
    #[must_use]
    pub fn new(rate: f64, start_ns: u64, end_ns: u64, thread: u64, threads: u64) -> Self {
        assert!(rate > 0.0 && thread < threads);
        Self {
            interval_ns: 1e9 / rate,
            start_ns,
            end_ns,
            next: thread,
            step: threads,
        }
    }

    /// The intended time of the next message; none when the schedule is over.
    #[must_use]
    pub fn peek(&self) -> Option<u64> {
        let at = self.start_ns + (self.next as f64 * self.interval_ns) as u64;
        (at < self.end_ns).then_some(at)
    }

    /// The next message has been sent.
    pub fn advance(&mut self) {
        self.next += self.step;
    }

    /// Gives up all that is left; how many of them were meant to be sent from then on.
    pub fn give_up(&mut self, from_ns: u64) -> u64 {
        let mut count = 0;
        while let Some(intended) = self.peek() {
            count += u64::from(intended >= from_ns);
            self.advance();
        }
        count
    }
}

/// A small random generator (xorshift64*), the same numbers for the same seed everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed will do.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // One round of splitmix64, so that near seeds give far numbers; never zero.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0; the bias is below `bound` / 2^32.
    pub fn below(&mut self, bound: u32) -> u32 {
        assert!(bound > 0);
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(mut schedule: Schedule) -> Vec<u64> {
        std::iter::from_fn(|| {
            let at = schedule.peek()?;
            schedule.advance();
            Some(at)
        })
        .collect()
    }

    #[test]
    fn messages_are_evenly_spaced_and_end_with_the_run() {
        let second = 1_000_000_000;
        let all = times(Schedule::new(1000.0, 500, 500 + second, 0, 1));
        assert_eq!(all.len(), 1000);
        assert_eq!(all[..3], [500, 1_000_500, 2_000_500]);
        assert_eq!(all[999], 999_000_500);
    }

    #[test]
    fn threads_share_the_rate_without_overlap() {
        let alone = times(Schedule::new(7.0, 0, 3_000_000_000, 0, 1));
        let mut shared: Vec<u64> = (0..3)
            .flat_map(|thread| times(Schedule::new(7.0, 0, 3_000_000_000, thread, 3)))
            .collect();
        shared.sort_unstable();
        assert_eq!(shared, alone);
    }

    /// R: E-7
    #[test]
    fn a_delay_in_sending_does_not_move_the_messages_behind_it() {
        let mut schedule = Schedule::new(10.0, 0, u64::MAX, 0, 1);
        assert_eq!(schedule.peek(), Some(0));
        // However late `advance` is called: the next intended time is the schedule's.
        schedule.advance();
        assert_eq!(schedule.peek(), Some(100_000_000));
    }

    /// R: E-7
    #[test]
    fn what_is_given_up_is_counted_from_the_measured_time_on() {
        let mut schedule = Schedule::new(10.0, 0, 2_000_000_000, 0, 1);
        schedule.advance();
        assert_eq!(schedule.give_up(1_000_000_000), 10);
        assert_eq!(schedule.peek(), None);
    }

    #[test]
    fn random_numbers_repeat_by_seed_and_cover_their_range() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..1000).map(|_| random.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for digit in 0..10 {
            let count = draw(3).iter().filter(|&&drawn| drawn == digit).count();
            assert!((50..200).contains(&count), "{digit}: {count}");
        }
    }
}
