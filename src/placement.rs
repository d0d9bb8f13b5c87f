//! Where a user lives: user → shard → log → core.
//!
//! ```text
//!   hash = SipHash-1-3(key of this data directory, user id)
//!   shard = hash mod shards      fixed when the data directory is formatted
//!   log   = shard mod logs       fixed when the data directory is formatted
//!   core  = log mod cores        dealt out anew at every start
//! ```
//!
//! The key is secret and random per cluster, so a stranger who may choose user ids cannot pile them
//! onto one shard. Nothing here has state or fails.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// The secret under which user ids and send streams are hashed. Random at format time, kept in the
/// super block, never changed: placement and the pairs table depend on it.
#[derive(Clone, Copy)]
pub struct HashKey(pub [u8; 16]);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

/// Keyed hash of a user id. Equal ids have equal hashes within one data directory; across data
/// directories the values mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserHash(pub u64);

/// Number of a shard, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Number of a log, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u16);

/// Number of a core as the configuration lists them, from 0; not the number of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// The map from users to cores of one running node.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    key: HashKey,
    shards: u16,
    logs: u16,
    cores: u16,
}

impl Placement {
    /// A map for a data directory of `shards` shards on `logs` logs, served by `cores` cores.
    #[must_use]
    pub fn new(key: HashKey, shards: u16, logs: u16, cores: u16) -> Self {
        assert!(shards > 0, "a data directory has at least one shard");
        assert!(
            logs > 0 && logs <= shards,
            "every log serves at least one shard"
        );
        assert!(cores > 0, "a node has at least one core");
        Self {
            key,
            shards,
            logs,
            cores,
        }
    }

    /// Hashes a user id.
    #[must_use]
    pub fn user_hash(&self, user: &str) -> UserHash {
        user_hash(self.key, user)
    }

    /// The shard that owns a user.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the remainder is below a u16"
    )]
    pub fn shard_of(&self, user: UserHash) -> ShardId {
        ShardId((user.0 % u64::from(self.shards)) as u16)
    }

    /// The log that a shard writes to.
    #[must_use]
    pub fn log_of(&self, shard: ShardId) -> LogId {
        LogId(shard.0 % self.logs)
    }

    /// The core that serves a log.
    #[must_use]
    pub fn core_of_log(&self, log: LogId) -> CoreId {
        CoreId(log.0 % self.cores)
    }

    /// The core that owns a shard.
    #[must_use]
    pub fn core_of(&self, shard: ShardId) -> CoreId {
        self.core_of_log(self.log_of(shard))
    }

    /// Shards of the data directory.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Logs of the data directory.
    #[must_use]
    pub fn logs(&self) -> u16 {
        self.logs
    }

    /// Cores of this node.
    #[must_use]
    pub fn cores(&self) -> u16 {
        self.cores
    }
}

/// Hashes a user id under `key`.
#[must_use]
pub fn user_hash(key: HashKey, user: &str) -> UserHash {
    let mut hasher = SipHasher13::new_with_key(&key.0);
    hasher.write(user.as_bytes());
    UserHash(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey = HashKey([7; 16]);

    /// R: D-1
    #[test]
    fn a_users_shard_and_log_do_not_depend_on_the_number_of_cores() {
        for user in ["ann", "ben", "a-much-longer-name@example.org"] {
            let one = Placement::new(KEY, 64, 2, 1);
            let two = Placement::new(KEY, 64, 2, 2);
            let shard = one.shard_of(one.user_hash(user));
            assert_eq!(shard, two.shard_of(two.user_hash(user)));
            assert_eq!(one.log_of(shard), two.log_of(shard));
        }
    }

    #[test]
    fn every_shard_has_a_core_and_every_core_with_a_log_has_shards() {
        for (logs, cores) in [(1, 1), (2, 2), (2, 1), (1, 2), (5, 3)] {
            let placement = Placement::new(KEY, 64, logs, cores);
            let mut shards_of_core = vec![0; usize::from(cores)];
            for shard in 0..64 {
                shards_of_core[usize::from(placement.core_of(ShardId(shard)).0)] += 1;
            }
            let busy = shards_of_core.iter().filter(|&&shards| shards > 0).count();
            assert_eq!(
                busy,
                usize::from(cores.min(logs)),
                "{logs} logs on {cores} cores"
            );
        }
    }

    #[test]
    fn another_key_places_users_elsewhere() {
        let (a, b) = (HashKey([1; 16]), HashKey([2; 16]));
        let moved = (0..64).filter(|i| {
            let user = format!("user-{i}");
            user_hash(a, &user).0 % 64 != user_hash(b, &user).0 % 64
        });
        assert!(moved.count() > 32);
    }
}
