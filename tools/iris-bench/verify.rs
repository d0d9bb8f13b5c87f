//! Whether what was accepted arrived: exactly once, in order, and nothing else.
//!
//! ```text
//!   sender's thread      Sent      pair → sent, accepted          both count 1, 2, 3 …
//!   recipient's thread   Received  pair → arrived
//!   at the end           accepted ≤ arrived ≤ sent, for every pair
//! ```
//! A pair is (sender, recipient). Because each message carries its number in the pair's stream, one
//! counter per pair finds every duplicate, gap, swap and invention at the moment it arrives; what never
//! arrives shows at the end. Memory is one table entry per pair that was used, on each side.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use hashbrown::HashMap;
use iris_proto::reject::GapReason;

/// Violations that are kept with their text; more are only counted.
pub const VIOLATIONS_SHOWN: usize = 20;

/// Pairs that a table makes room for in advance, so that it does not grow during a measurement.
const PAIRS_RESERVED_MAX: usize = 1 << 20;

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A message came again.
    Duplicate {
        from: u32,
        to: u32,
        n: u64,
        expected: u64,
    },
    /// A message came before an earlier one of its stream.
    Gap {
        from: u32,
        to: u32,
        n: u64,
        expected: u64,
    },
    /// The recipient's inbox was not numbered by one more.
    Seq { to: u32, seq: u64, expected: u64 },
    /// The switch says that entries do not exist any more. The users of a run are new, so these were
    /// messages of this run: gone is gone, whether it says so or not.
    Gone {
        to: u32,
        first: u64,
        last: u64,
        reason: GapReason,
    },
    /// An entry from a user who is not of this run, or with a body that is not ours.
    Stranger { to: u32, from: String, bytes: usize },
    /// More has arrived than was sent.
    Invented {
        from: u32,
        to: u32,
        arrived: u64,
        sent: u64,
    },
    /// Accepted, but not arrived.
    Lost {
        from: u32,
        to: u32,
        arrived: u64,
        accepted: u64,
    },
    /// Sent, and never answered.
    Unanswered {
        from: u32,
        to: u32,
        sent: u64,
        accepted: u64,
    },
    /// An answer for something that was not asked, or out of order.
    Answer { from: u32, tag: u64, n: u64 },
    /// A refusal that sending again cannot cure.
    Refused {
        from: u32,
        to: u32,
        n: u64,
        text: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate {
                from,
                to,
                n,
                expected,
            } => write!(
                f,
                "duplicate: message {n} from {from} to {to} arrived again (expected {expected})"
            ),
            Self::Gap {
                from,
                to,
                n,
                expected,
            } => write!(
                f,
                "out of order: message {n} from {from} to {to} arrived before {expected}"
            ),
            Self::Seq { to, seq, expected } => {
                write!(
                    f,
                    "inbox of {to}: entry {seq} arrived where {expected} was due"
                )
            }
            Self::Gone {
                to,
                first,
                last,
                reason,
            } => write!(
                f,
                "inbox of {to}: entries {first} to {last} were {}",
                reason.describe()
            ),
            Self::Stranger { to, from, bytes } => write!(
                f,
                "inbox of {to}: an entry from `{from}` of {bytes} bytes that this run did not send"
            ),
            Self::Invented {
                from,
                to,
                arrived,
                sent,
            } => write!(
                f,
                "invented: {arrived} messages from {from} arrived at {to}, {sent} were sent"
            ),
            Self::Lost {
                from,
                to,
                arrived,
                accepted,
            } => write!(
                f,
                "lost: {accepted} messages from {from} to {to} were accepted, {arrived} arrived"
            ),
            Self::Unanswered {
                from,
                to,
                sent,
                accepted,
            } => write!(
                f,
                "unanswered: {sent} messages from {from} to {to} were sent, {accepted} accepted"
            ),
            Self::Answer { from, tag, n } => {
                write!(
                    f,
                    "answer to {from} for tag {tag}, n {n}, which is not the one due"
                )
            }
            Self::Refused { from, to, n, text } => {
                write!(
                    f,
                    "refused for good: message {n} from {from} to {to}: {text}"
                )
            }
        }
    }
}

/// The first violations, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Violations {
    first: Vec<Violation>,
    count: u64,
}

impl Violations {
    /// Takes note of one.
    pub fn add(&mut self, violation: Violation) {
        self.count += 1;
        if self.first.len() < VIOLATIONS_SHOWN {
            self.first.push(violation);
        }
    }

    /// Takes over another thread's.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        let room = VIOLATIONS_SHOWN - self.first.len();
        self.first.extend(other.first.into_iter().take(room));
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The first [`VIOLATIONS_SHOWN`] of them.
    #[must_use]
    pub fn first(&self) -> &[Violation] {
        &self.first
    }
}

/// One multiplication: the keys are our own small numbers, nobody attacks them.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("pairs are hashed as one u64");
    }

    fn write_u64(&mut self, key: u64) {
        let product = u128::from(key ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

type Pairs<V> = HashMap<u64, V, BuildHasherDefault<PairHasher>>;

const fn key(from: u32, to: u32) -> u64 {
    (from as u64) << 32 | to as u64
}

const fn unkey(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

fn reserve(local: u32, all: u32) -> usize {
    (local as usize)
        .saturating_mul(all as usize)
        .min(PAIRS_RESERVED_MAX)
}

/// Names a pair within one [`Sent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairId(u32);

#[derive(Clone, Copy, Debug)]
struct SentPair {
    key: u64,
    sent: u64,
    accepted: u64,
    /// Messages that were refused and wait to be sent again.
    refused: u32,
}

/// What one thread's users have sent.
#[derive(Debug)]
pub struct Sent {
    index: Pairs<u32>,
    pairs: Vec<SentPair>,
}

impl Sent {
    /// For `local` users of `all`.
    #[must_use]
    pub fn new(local: u32, all: u32) -> Self {
        let room = reserve(local, all);
        let index = Pairs::with_capacity_and_hasher(room, BuildHasherDefault::default());
        Self {
            index,
            pairs: Vec::with_capacity(room),
        }
    }

    /// The pair of these users.
    pub fn pair(&mut self, from: u32, to: u32) -> PairId {
        let key = key(from, to);
        let next = self.pairs.len() as u32;
        let id = *self.index.entry(key).or_insert(next);
        if id == next {
            self.pairs.push(SentPair {
                key,
                sent: 0,
                accepted: 0,
                refused: 0,
            });
        }
        PairId(id)
    }

    /// The number of the next message; it counts as sent.
    pub fn next(&mut self, id: PairId) -> u64 {
        let pair = &mut self.pairs[id.0 as usize];
        assert!(pair.refused == 0, "a message would overtake a refused one");
        pair.sent += 1;
        pair.sent
    }

    /// Message `n` was accepted. False: it is not the next of its stream.
    #[must_use]
    pub fn accepted(&mut self, id: PairId, n: u64) -> bool {
        let pair = &mut self.pairs[id.0 as usize];
        let in_order = n == pair.accepted + 1 && n <= pair.sent;
        if in_order {
            pair.accepted = n;
        }
        in_order
    }

    /// Whether message `n` is the next that the switch can accept.
    #[must_use]
    pub fn is_next(&self, id: PairId, n: u64) -> bool {
        self.pairs[id.0 as usize].accepted + 1 == n
    }

    /// The highest number accepted.
    #[must_use]
    pub fn highest_accepted(&self, id: PairId) -> u64 {
        self.pairs[id.0 as usize].accepted
    }

    /// One message of the pair was refused and waits (true), or has been sent again (false). While
    /// one waits, nothing new may be sent to this recipient.
    pub fn set_refused(&mut self, id: PairId, waits: bool) {
        let refused = &mut self.pairs[id.0 as usize].refused;
        if waits {
            *refused += 1;
        } else {
            assert!(*refused > 0, "no message of this pair was refused");
            *refused -= 1;
        }
    }

    /// Whether a message of this pair was refused and waits.
    #[must_use]
    pub fn is_held_up(&self, id: PairId) -> bool {
        self.pairs[id.0 as usize].refused > 0
    }

    /// Who sends to whom.
    #[must_use]
    pub fn users(&self, id: PairId) -> (u32, u32) {
        unkey(self.pairs[id.0 as usize].key)
    }

    fn sent(&self, key: u64) -> u64 {
        self.index
            .get(&key)
            .map_or(0, |&id| self.pairs[id as usize].sent)
    }
}

/// What one thread's users have received.
#[derive(Debug)]
pub struct Received {
    arrived: Pairs<u64>,
}

impl Received {
    /// For `local` users of `all`.
    #[must_use]
    pub fn new(local: u32, all: u32) -> Self {
        let room = reserve(local, all);
        Self {
            arrived: Pairs::with_capacity_and_hasher(room, BuildHasherDefault::default()),
        }
    }

    /// Message `n` of a stream has arrived.
    ///
    /// # Errors
    /// What is wrong with that.
    pub fn arrived(&mut self, from: u32, to: u32, n: u64) -> Result<(), Violation> {
        let last = self.arrived.entry(key(from, to)).or_insert(0);
        let expected = *last + 1;
        if n < expected {
            return Err(Violation::Duplicate {
                from,
                to,
                n,
                expected,
            });
        }
        *last = n;
        if n > expected {
            return Err(Violation::Gap {
                from,
                to,
                n,
                expected,
            });
        }
        Ok(())
    }
}

/// Compares what all threads sent with what all threads received. User `i` belongs to thread
/// `i % threads`, on both sides.
pub fn reconcile(sent: &[Sent], received: &[Received], violations: &mut Violations) {
    assert!(!sent.is_empty() && sent.len() == received.len());
    let threads = sent.len();
    for pair in sent.iter().flat_map(|thread| &thread.pairs) {
        let (from, to) = unkey(pair.key);
        let home = &received[to as usize % threads];
        let arrived = home.arrived.get(&pair.key).copied().unwrap_or(0);
        let (sent, accepted) = (pair.sent, pair.accepted);
        if arrived < accepted {
            violations.add(Violation::Lost {
                from,
                to,
                arrived,
                accepted,
            });
        }
        if accepted < sent {
            violations.add(Violation::Unanswered {
                from,
                to,
                sent,
                accepted,
            });
        }
    }
    for (&key, &arrived) in received.iter().flat_map(|thread| &thread.arrived) {
        let (from, to) = unkey(key);
        let sent = sent[from as usize % threads].sent(key);
        if arrived > sent {
            violations.add(Violation::Invented {
                from,
                to,
                arrived,
                sent,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books() -> (Sent, Received) {
        (Sent::new(4, 4), Received::new(4, 4))
    }

    fn send_and_accept(sent: &mut Sent, from: u32, to: u32, count: u64) {
        let pair = sent.pair(from, to);
        for expected in 1..=count {
            let n = sent.next(pair);
            assert_eq!(n, expected);
            assert!(sent.accepted(pair, n));
        }
    }

    fn found(sent: Sent, received: Received) -> Vec<Violation> {
        let mut violations = Violations::default();
        reconcile(&[sent], &[received], &mut violations);
        violations.first
    }

    #[test]
    fn a_faithful_run_has_no_violations() {
        let (mut sent, mut received) = books();
        send_and_accept(&mut sent, 1, 2, 3);
        send_and_accept(&mut sent, 2, 1, 1);
        for n in 1..=3 {
            assert_eq!(received.arrived(1, 2, n), Ok(()));
        }
        assert_eq!(received.arrived(2, 1, 1), Ok(()));
        assert_eq!(found(sent, received), []);
    }

    /// R: B-5
    #[test]
    fn a_duplicate_is_found_when_it_arrives() {
        let (_, mut received) = books();
        assert_eq!(received.arrived(1, 2, 1), Ok(()));
        assert_eq!(received.arrived(1, 2, 2), Ok(()));
        for n in [1, 2] {
            let duplicate = Violation::Duplicate {
                from: 1,
                to: 2,
                n,
                expected: 3,
            };
            assert_eq!(received.arrived(1, 2, n), Err(duplicate));
        }
        assert_eq!(received.arrived(1, 2, 3), Ok(()));
    }

    /// R: B-4
    #[test]
    fn two_swapped_messages_are_found_as_gap_and_late_comer() {
        let (_, mut received) = books();
        let gap = Violation::Gap {
            from: 1,
            to: 2,
            n: 2,
            expected: 1,
        };
        assert_eq!(received.arrived(1, 2, 2), Err(gap));
        let late = Violation::Duplicate {
            from: 1,
            to: 2,
            n: 1,
            expected: 3,
        };
        assert_eq!(received.arrived(1, 2, 1), Err(late));
    }

    /// R: B-1
    #[test]
    fn an_accepted_message_that_never_arrives_is_found_at_the_end() {
        let (mut sent, mut received) = books();
        send_and_accept(&mut sent, 1, 2, 2);
        send_and_accept(&mut sent, 3, 0, 1);
        received.arrived(1, 2, 1).unwrap();
        assert_eq!(
            found(sent, received),
            [
                Violation::Lost {
                    from: 1,
                    to: 2,
                    arrived: 1,
                    accepted: 2
                },
                Violation::Lost {
                    from: 3,
                    to: 0,
                    arrived: 0,
                    accepted: 1
                },
            ]
        );
    }

    #[test]
    fn a_message_that_nobody_sent_is_found() {
        let (mut sent, mut received) = books();
        send_and_accept(&mut sent, 1, 2, 1);
        received.arrived(1, 2, 1).unwrap();
        received.arrived(1, 2, 2).unwrap();
        let invented = Violation::Invented {
            from: 1,
            to: 2,
            arrived: 2,
            sent: 1,
        };
        assert_eq!(found(sent, received), [invented]);
        let (sent, mut received) = books();
        received.arrived(3, 3, 1).unwrap();
        let invented = Violation::Invented {
            from: 3,
            to: 3,
            arrived: 1,
            sent: 0,
        };
        assert_eq!(found(sent, received), [invented]);
    }

    #[test]
    fn what_was_never_answered_is_found_even_if_it_arrived() {
        let (mut sent, mut received) = books();
        let pair = sent.pair(1, 2);
        sent.next(pair);
        received.arrived(1, 2, 1).unwrap();
        let unanswered = Violation::Unanswered {
            from: 1,
            to: 2,
            sent: 1,
            accepted: 0,
        };
        assert_eq!(found(sent, received), [unanswered]);
    }

    #[test]
    fn answers_must_come_in_the_order_of_their_stream() {
        let (mut sent, _) = books();
        let pair = sent.pair(1, 2);
        sent.next(pair);
        sent.next(pair);
        assert!(!sent.accepted(pair, 2));
        assert!(!sent.accepted(pair, 0));
        assert!(sent.accepted(pair, 1));
        assert!(sent.is_next(pair, 2));
        assert!(!sent.accepted(pair, 1));
        assert!(sent.accepted(pair, 2));
        assert!(!sent.accepted(pair, 3), "never sent");
    }

    #[test]
    fn pairs_of_different_threads_find_each_other() {
        let mut sent = [Sent::new(2, 4), Sent::new(2, 4)];
        let mut received = [Received::new(2, 4), Received::new(2, 4)];
        for (from, to) in [(0, 1), (1, 0), (2, 0), (3, 1)] {
            send_and_accept(&mut sent[from % 2], from as u32, to as u32, 1);
            received[to % 2].arrived(from as u32, to as u32, 1).unwrap();
        }
        let mut violations = Violations::default();
        reconcile(&sent, &received, &mut violations);
        assert_eq!(violations.first(), []);
    }

    #[test]
    fn violations_are_all_counted_but_only_the_first_kept() {
        let mut violations = Violations::default();
        for seq in 0..100 {
            violations.add(Violation::Seq {
                to: 0,
                seq,
                expected: 0,
            });
        }
        let mut all = Violations::default();
        all.merge(violations.clone());
        all.merge(violations);
        assert_eq!((all.count(), all.first().len()), (200, VIOLATIONS_SHOWN));
    }
}
