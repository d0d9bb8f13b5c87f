//! When the message at a place in the log was read, and when it became durable.
//!
//! An inbox knows where its messages lie, and nothing else of them in memory. So the times of the newest
//! ones are kept by place: a fixed table, in which a message of a later place takes the room of an earlier
//! one. Whoever asks for one that is gone gets nothing, and nothing is recorded: a message that waits for
//! so long waits for its recipient.

use crate::stamp::Stamp;

/// Rooms of the table, 512 KiB: those of the newest 2 MiB of a log, which are 20 ms at 100 MB/s. A power of
/// two, and no more than the caches of a core can bear: each message writes to another line.
pub const PLACES: usize = 1 << 15;
/// Bytes of a log that share a room. No message is smaller, so two never meet.
pub const PLACE_BYTES: u64 = 64;
/// Grain of the time between read and durable; with 32 bits, 275 seconds.
const GRAIN_NS: u64 = 64;
/// Marks a room that is taken.
const TAKEN: u32 = 1 << 16;

const _: () = assert!(PLACES.is_power_of_two());

/// The table.
#[derive(Debug)]
pub struct Places {
    /// Key, time from read to durable, and the stamp with the mark. Plain numbers, so that the kernel's
    /// zeros are an empty table and unused rooms take no memory.
    rooms: Vec<[u32; 4]>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            rooms: vec![[0; 4]; PLACES],
        }
    }
}

impl Places {
    /// A message at `position` of a log was read at `read` and is durable at `durable_ns`.
    #[inline]
    pub fn put(&mut self, log: u16, position: u64, read: Stamp, durable_ns: u64) {
        let key = key(log, position);
        let units = read.elapsed(durable_ns) / GRAIN_NS;
        let took = u32::try_from(units).unwrap_or(u32::MAX);
        let bits = read.bits();
        self.rooms[key as usize & (PLACES - 1)] =
            [key, took, bits as u32, (bits >> 32) as u32 | TAKEN];
    }

    /// When the message there was read and when it became durable, if that is still known.
    #[must_use]
    #[inline]
    pub fn get(&self, log: u16, position: u64) -> Option<(Stamp, Stamp)> {
        let key = key(log, position);
        let [found, took, low, high] = self.rooms[key as usize & (PLACES - 1)];
        if found != key || high & TAKEN == 0 {
            return None;
        }
        let read = u64::from(low) | (u64::from(high & !TAKEN) << 32);
        let durable = read + u64::from(took) * GRAIN_NS;
        Some((Stamp::of(read), Stamp::of(durable)))
    }
}

/// The logs of one core share its table; their positions are all alike.
fn key(log: u16, position: u64) -> u32 {
    ((position / PLACE_BYTES) as u32).wrapping_add(u32::from(log).wrapping_mul(0x9e37_79b1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_the_newest_messages_are_found_by_their_places() {
        let mut places = Places::default();
        assert_eq!(places.get(0, 0), None, "an empty table knows nothing");
        places.put(1, 4_096, Stamp::of(1_000), 1_000 + 640_000);
        let times = (Stamp::of(1_000), Stamp::of(641_000));
        assert_eq!(places.get(1, 4_096), Some(times));
        assert_eq!(places.get(2, 4_096), None, "of another log");
        assert_eq!(places.get(1, 4_096 + PLACE_BYTES), None);
        let later = 4_096 + PLACES as u64 * PLACE_BYTES;
        assert_eq!(places.get(1, later), None);
        places.put(1, later, Stamp::of(5), 5);
        assert_eq!(places.get(1, 4_096), None, "a later one has its room");
    }

    #[test]
    fn a_message_that_took_minutes_to_become_durable_counts_as_the_most_that_can_be_told() {
        let mut places = Places::default();
        places.put(0, 64, Stamp::of(1), 1 << 46);
        let (read, durable) = places.get(0, 64).unwrap();
        assert_eq!(read, Stamp::of(1));
        assert_eq!(durable.bits() - 1, u64::from(u32::MAX) * GRAIN_NS);
    }
}
