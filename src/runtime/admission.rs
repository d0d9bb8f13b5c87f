//! Who may come in, by where he comes from: connections held and logins failed, for each address.
//!
//! ```text
//!   accept ──▶ enter(address) ──▶ Guest, for as long as the connection lives, on whatever core
//!   login  ──▶ refused ──▶ may_log_in(address, user) ──▶ log_in_failed(address, user)
//! ```
//!
//! The connections of one address are spread over all cores, so this is the one thing that cores share:
//! tables of atomic numbers, without a lock, of a fixed size, touched when a connection comes, goes or
//! fails to log in and never on a message's way.
//!
//! A table has two rows, and a key one cell in each, by two independent halves of a keyed hash. Strangers
//! may share a cell and then count as one, but hardly both cells: the smaller of the two counts. Nobody who
//! does not know the key can choose addresses that share cells.
//!
//! An IPv6 network of 64 bits counts as one address: whoever has one has them all.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::clock::Clock;
use crate::limit::{Bucket, Rate};

/// Cells in each row of a table.
const CELLS: usize = 1 << 16;
const _: () = assert!(CELLS == 1 << 16); // a u16 names one

/// The two cells of a key.
type Cells = [u16; 2];

/// What all cores know of addresses.
#[derive(Debug)]
pub struct Admission {
    hasher: RandomState,
    /// The clock of all cores begins here.
    began: Instant,
    connections: [Box<[AtomicU32]>; 2],
    failures: [Box<[AtomicU64]>; 2],
    failures_of_users: [Box<[AtomicU64]>; 2],
}

/// How many failed logins are let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureRates {
    /// From one address.
    pub of_address: Option<Rate>,
    /// From one address for one user.
    pub of_user: Option<Rate>,
}

/// Strangers of one core, by address. There are as many addresses here as strangers at most, so this one
/// is exact.
#[derive(Debug, Default)]
pub struct Crowds(BTreeMap<[u8; 16], usize>);

impl Crowds {
    /// Strangers from there.
    #[must_use]
    pub fn of(&self, address: Option<IpAddr>) -> usize {
        let crowd = address.and_then(|address| self.0.get(&network(address)));
        crowd.copied().unwrap_or(0)
    }

    /// One more. Who comes from no address is not counted.
    pub fn enter(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address {
            *self.0.entry(network(address)).or_default() += 1;
        }
    }

    /// One that entered is no stranger any more, or no more.
    pub fn leave(&mut self, address: Option<IpAddr>) {
        let Some(network) = address.map(network) else {
            return;
        };
        let Some(crowd) = self.0.get_mut(&network) else {
            unreachable!("who leaves has entered");
        };
        *crowd -= 1;
        if *crowd == 0 {
            self.0.remove(&network);
        }
    }
}

/// A connection that is counted. Dropping it counts it out.
#[derive(Debug)]
pub struct Guest {
    admission: Arc<Admission>,
    cells: Cells,
    address: IpAddr,
}

fn row<T: Default>() -> Box<[T]> {
    std::iter::repeat_with(T::default).take(CELLS).collect()
}

/// What counts as one address.
fn network(address: IpAddr) -> [u8; 16] {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => (u128::from(v6) >> 64 << 64).to_be_bytes(),
    }
}

impl Admission {
    /// Nobody is here and nobody failed.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            hasher: RandomState::new(),
            began: Clock::read().monotonic,
            connections: [row(), row()],
            failures: [row(), row()],
            failures_of_users: [row(), row()],
        })
    }

    /// Microseconds by the clock that rates go by.
    #[must_use]
    pub fn us_of(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.began);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn cells(&self, key: impl std::hash::Hash) -> Cells {
        let hash = self.hasher.hash_one(key).to_le_bytes();
        [
            u16::from_le_bytes([hash[0], hash[1]]),
            u16::from_le_bytes([hash[2], hash[3]]),
        ]
    }

    /// Counts a connection in; `None` when its address has `max` already.
    #[must_use]
    pub fn enter(self: &Arc<Self>, address: IpAddr, max: u32) -> Option<Guest> {
        let cells = self.cells(network(address));
        let counts = self.connections_in(cells);
        // Two cores may both see the last place: over by as many as there are cores, for a moment.
        if counts
            .iter()
            .all(|count| count.load(Ordering::Relaxed) >= max)
        {
            return None;
        }
        for count in counts {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Some(Guest {
            admission: Arc::clone(self),
            cells,
            address,
        })
    }

    fn connections_in(&self, cells: Cells) -> [&AtomicU32; 2] {
        let [first, second] = &self.connections;
        [
            &first[usize::from(cells[0])],
            &second[usize::from(cells[1])],
        ]
    }

    /// Whether one more login may fail that says it is of `user`.
    ///
    /// # Errors
    /// Too many failed lately: milliseconds until one more may be tried, at least 1.
    pub fn may_log_in(
        &self,
        address: IpAddr,
        user: Option<&str>,
        rates: &FailureRates,
        now_us: u64,
    ) -> Result<(), u64> {
        if let Some(rate) = &rates.of_address {
            let cells = self.cells(network(address));
            emptier(&self.failures, cells).may_take(rate, now_us)?;
        }
        if let (Some(rate), Some(user)) = (&rates.of_user, user) {
            let cells = self.cells((network(address), user));
            emptier(&self.failures_of_users, cells).may_take(rate, now_us)?;
        }
        Ok(())
    }

    /// Counts a login that was refused.
    pub fn log_in_failed(
        &self,
        address: IpAddr,
        user: Option<&str>,
        rates: &FailureRates,
        now_us: u64,
    ) {
        if let Some(rate) = &rates.of_address {
            let cells = self.cells(network(address));
            take(&self.failures, cells, rate, now_us);
        }
        if let (Some(rate), Some(user)) = (&rates.of_user, user) {
            let cells = self.cells((network(address), user));
            take(&self.failures_of_users, cells, rate, now_us);
        }
    }
}

fn cells_of(table: &[Box<[AtomicU64]>; 2], cells: Cells) -> [&AtomicU64; 2] {
    let [first, second] = table;
    [
        &first[usize::from(cells[0])],
        &second[usize::from(cells[1])],
    ]
}

/// The fuller bucket of two is the one that fewer share.
fn emptier(table: &[Box<[AtomicU64]>; 2], cells: Cells) -> Bucket {
    let us = cells_of(table, cells).map(|cell| cell.load(Ordering::Relaxed));
    Bucket::from_us(us[0].min(us[1]))
}

fn take(table: &[Box<[AtomicU64]>; 2], cells: Cells, rate: &Rate, now_us: u64) {
    for cell in cells_of(table, cells) {
        let taken = |us| {
            let mut bucket = Bucket::from_us(us);
            bucket.take(rate, now_us).ok().map(|()| bucket.as_us())
        };
        // An empty bucket stays as it is: who goes on failing waits no longer for it.
        let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
    }
}

impl Guest {
    /// Where the connection comes from.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for count in self.admission.connections_in(self.cells) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rates() -> FailureRates {
        FailureRates {
            of_address: Rate::new(1, 1, 4),
            of_user: Rate::new(1, 1, 2),
        }
    }

    /// R: A-6
    #[test]
    fn an_address_has_so_many_connections_and_each_that_goes_makes_room() {
        let admission = Admission::new();
        let ann = address("192.0.2.1");
        let mut guests: Vec<_> = (0..3).map(|_| admission.enter(ann, 3).unwrap()).collect();
        assert!(admission.enter(ann, 3).is_none());
        assert!(admission.enter(address("192.0.2.2"), 3).is_some());
        guests.pop();
        assert!(admission.enter(ann, 3).is_some());
    }

    /// R: A-6
    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_ipv4_address_is_itself() {
        let admission = Admission::new();
        let _guest = admission.enter(address("2001:db8:0:7::1"), 1).unwrap();
        assert!(
            admission
                .enter(address("2001:db8:0:7:ffff::2"), 1)
                .is_none()
        );
        assert!(admission.enter(address("2001:db8:0:8::1"), 1).is_some());
        let _mapped = admission.enter(address("::ffff:192.0.2.7"), 1).unwrap();
        assert!(admission.enter(address("192.0.2.7"), 1).is_none());
        assert!(admission.enter(address("192.0.2.8"), 1).is_some());
    }

    /// R: A-6
    #[test]
    fn strangers_are_counted_by_address_and_nothing_is_left_of_those_who_went() {
        let mut crowds = Crowds::default();
        let (ann, ben) = (Some(address("2001:db8::1")), Some(address("192.0.2.1")));
        let neighbour = Some(address("2001:db8::2"));
        for one in [ann, neighbour, ben, None] {
            crowds.enter(one);
        }
        assert_eq!((crowds.of(ann), crowds.of(ben), crowds.of(None)), (2, 1, 0));
        for one in [ann, neighbour, ben, None] {
            crowds.leave(one);
        }
        assert!(crowds.0.is_empty());
    }

    /// R: A-6. 20,000 addresses in 65,536 cells: many share one, hardly any both.
    #[test]
    fn strangers_who_share_a_cell_do_not_count_for_each_other() {
        let admission = Admission::new();
        let far = |number: u32| IpAddr::from(number.to_be_bytes());
        let guests: Vec<_> = (0..20_000)
            .map(|number| admission.enter(far(number), 1))
            .collect();
        let refused = guests.iter().filter(|guest| guest.is_none()).count();
        assert!(refused < 2_000, "{refused}");
        drop(guests);
        let zero = |row: &[AtomicU32]| row.iter().all(|count| count.load(Ordering::Relaxed) == 0);
        assert!(admission.connections.iter().all(|row| zero(row)));
    }

    /// R: A-6
    #[test]
    fn failed_logins_shut_out_an_address_until_it_waited() {
        let admission = Admission::new();
        let (bad, good, rates) = (address("192.0.2.1"), address("192.0.2.2"), rates());
        for n in 0..4 {
            assert_eq!(admission.may_log_in(bad, None, &rates, 10), Ok(()), "{n}");
            admission.log_in_failed(bad, None, &rates, 10);
        }
        assert_eq!(admission.may_log_in(bad, None, &rates, 10), Err(1_000));
        assert_eq!(admission.may_log_in(good, None, &rates, 10), Ok(()));
        assert_eq!(admission.may_log_in(bad, None, &rates, 1_000_010), Ok(()));
    }

    /// R: A-6. Else anybody could shut out anybody, with tokens that say they are his.
    #[test]
    fn failed_logins_in_a_users_name_shut_the_user_out_from_there_alone() {
        let admission = Admission::new();
        let (bad, good, rates) = (address("192.0.2.1"), address("192.0.2.2"), rates());
        for _ in 0..2 {
            admission.log_in_failed(bad, Some("ann"), &rates, 10);
        }
        assert_eq!(
            admission.may_log_in(bad, Some("ann"), &rates, 10),
            Err(1_000)
        );
        assert_eq!(admission.may_log_in(bad, Some("bob"), &rates, 10), Ok(()));
        assert_eq!(admission.may_log_in(good, Some("ann"), &rates, 10), Ok(()));
    }
}
