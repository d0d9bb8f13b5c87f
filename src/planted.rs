//! Bugs that are planted on purpose, to see that the simulator finds them.
//!
//! A checker that never failed proves nothing. So at the places that matter stands a question,
//! `planted::is(Bug::…)`, and behind it the mistake that somebody will make one day. Without the
//! feature `sim` the answer is a constant `false` and the compiler removes question and mistake; with
//! it one thread can plant one bug, and `iris-sim --prove` shows within how many seeds each is found.

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $seeds:literal;)*) => {
        /// One mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[$doc])* $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Within how many seeds, counted from 1, it must be found.
            #[must_use]
            pub const fn seeds_max(self) -> u64 {
                match self {
                    $(Self::$name => $seeds,)*
                }
            }
        }
    };
}

bugs! {
    /// A sender is told `Accepted` when its message is written, not when it is synced.
    AcceptBeforeSync = "accept-before-sync", 20;
    /// An entry is applied, and so shown to its devices, before it is synced.
    VisibleBeforeSync = "visible-before-sync", 20;
    /// A new segment's directory entry is not synced.
    SegmentDirSync = "segment-dir-sync", 200;
    /// A segment comes into use and the superblock does not say that it was made.
    SegmentUnnoted = "segment-unnoted", 500;
    /// A checkpoint's rename is not synced before older files leave.
    CheckpointDirSync = "checkpoint-dir-sync", 500;
    /// A checkpoint is renamed before its content is synced.
    CheckpointSync = "checkpoint-sync", 500;
    /// A frame is put where it leaves no room for the END behind it.
    SegmentEnd = "segment-end", 500;
    /// A checkpoint does not hold the dedup table.
    DedupForgotten = "dedup-forgotten", 500;
    /// A checkpoint holds a dedup table that is newer than its instant.
    DedupNewer = "dedup-newer", 1000;
    /// A cursor moves when it is proposed, not when it is committed.
    CursorBeforeCommit = "cursor-before-commit", 500;
    /// A frame's body is believed without its CRC.
    TornAccepted = "torn-accepted", 200;
    /// A bad frame is always the end of the log, whatever lies behind it.
    DamageCut = "damage-cut", 500;
    /// Cleaning moves all live messages of a segment but one.
    RelocationDrops = "relocation-drops", 500;
    /// A segment goes although messages in it are live.
    SegmentTooEarly = "segment-too-early", 500;
    /// A repeated send gets a second place in the inbox.
    RetryTwice = "retry-twice", 50;
    /// An acknowledgement that was proposed is forgotten, and the device's claim with it.
    ClaimLost = "claim-lost", 500;
    /// What is lost is stepped over without a word.
    GapSilent = "gap-silent", 1000;
    /// A checkpoint says that the scan begins one frame later than it must.
    ScanTooLate = "scan-too-late", 500;
    /// Replay gives a moved message's place to the entry after it.
    RelocationMisplaced = "relocation-misplaced", 500;
    /// A disk without room takes new messages.
    FullDiskAccepts = "full-disk-accepts", 500;
    /// After a failed sync the process goes on as if it had succeeded.
    SyncIgnored = "sync-ignored", 500;
    /// After a failed sync the next start believes the page cache.
    CacheBelieved = "cache-believed", 1000;
    /// A session that only sends lets an older connection of its own go on.
    SenderNotReplaced = "sender-not-replaced", 10000;
    /// A start does not sync the directories that it found its files in.
    StartDirSync = "start-dir-sync", 5000;
    /// A salvage lets the numbers of an inbox whose name is lost be given out again.
    LostNameAgain = "lost-name-again", 20000;
    /// A device that is about to be known counts for its inbox only when it is.
    NewDeviceUncounted = "new-device-uncounted", 30000;
    /// What recovery found is served before it is synced.
    RecoveredUnsynced = "recovered-unsynced", 1000;
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Bug {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|bug| bug.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|bug| bug.name()).collect();
            format!(
                "no planted bug is called {name}; there are: {}",
                names.join(", ")
            )
        })
    }
}

#[cfg(feature = "sim")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this bug is planted on this thread.
    #[must_use]
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug on this thread, or takes it out again.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}

#[cfg(not(feature = "sim"))]
mod switch {
    use super::Bug;

    /// Never, outside the simulator.
    #[must_use]
    #[inline(always)]
    pub const fn is(_: Bug) -> bool {
        false
    }
}

pub use switch::is;
#[cfg(feature = "sim")]
pub use switch::plant;
