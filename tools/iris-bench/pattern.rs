//! Who sends to whom, and who is away: the scenarios, as pure functions of a user's number.
//!
//! ```text
//!   online    everybody to anybody else
//!   offline   the lower half to the upper half, which is away and logs in when all is stored
//!   fan-in    everybody else to the first few
//!   mixed     six of ten to anybody, two of ten to the first few, two of ten to the last eighth,
//!             which is away for the first half of the measured time
//! ```

use crate::schedule::Random;

/// Of ten messages of the mixed scenario those to the first few, and those to who is away.
const MIXED_TENTHS: (u32, u32) = (2, 2);
/// Of the users of the mixed scenario one of so many is away.
const MIXED_AWAY: u32 = 8;

/// A scenario of `iris-bench`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// Everybody is there.
    #[default]
    Online,
    /// Store, then drain.
    Offline,
    /// Many to few.
    FanIn,
    /// Some of each.
    Mixed,
}

impl Pattern {
    /// As on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::FanIn => "fan-in",
            Self::Mixed => "mixed",
        }
    }

    /// The first user that is away, of so many.
    #[must_use]
    pub const fn away_from(self, users: u32) -> u32 {
        match self {
            Self::Online | Self::FanIn => users,
            Self::Offline => users.div_ceil(2),
            Self::Mixed => users - users / MIXED_AWAY,
        }
    }

    /// Whether a user sends: one that is away at first never does.
    #[must_use]
    pub const fn sends(self, user: u32, users: u32, targets: u32) -> bool {
        match self {
            Self::FanIn => user >= targets,
            _ => user < self.away_from(users),
        }
    }

    /// Whether a number of users makes sense.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn check(self, users: u32, targets: u32) -> Result<(), String> {
        let least = match self {
            Self::Online => 1,
            Self::Offline => 2,
            Self::FanIn => targets + 1,
            Self::Mixed => MIXED_AWAY.max(targets + 1),
        };
        if users >= least {
            return Ok(());
        }
        let name = self.name();
        Err(format!(
            "{name} with {targets} --targets needs {least} connections at least; give --connections"
        ))
    }

    /// A random recipient for a sender.
    pub fn recipient(self, random: &mut Random, from: u32, users: u32, targets: u32) -> u32 {
        let away = self.away_from(users);
        match self {
            Self::Online => other(random, from, 0, users),
            Self::Offline => away + random.below(users - away),
            Self::FanIn => random.below(targets),
            Self::Mixed => {
                let (hot, absent) = MIXED_TENTHS;
                match random.below(10) {
                    tenth if tenth < hot => other(random, from, 0, targets),
                    tenth if tenth < hot + absent => away + random.below(users - away),
                    _ => other(random, from, 0, away),
                }
            }
        }
    }
}

/// Anyone of `first..last` but the sender, unless there is nobody else.
fn other(random: &mut Random, from: u32, first: u32, last: u32) -> u32 {
    if !(first..last).contains(&from) {
        return first + random.below(last - first);
    }
    match last - first {
        1 => from,
        // Those from the sender on move up by one.
        count => {
            let drawn = first + random.below(count - 1);
            drawn + u32::from(drawn >= from)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: u32 = 40;
    const TARGETS: u32 = 2;

    fn recipients(pattern: Pattern, from: u32) -> Vec<u32> {
        let mut random = Random::new(9);
        let mut draw = || pattern.recipient(&mut random, from, USERS, TARGETS);
        let mut all: Vec<u32> = (0..5_000).map(|_| draw()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// R: E-7
    #[test]
    fn each_scenario_reaches_exactly_whom_it_should() {
        let everybody_else: Vec<u32> = (0..USERS).filter(|&user| user != 7).collect();
        assert_eq!(recipients(Pattern::Online, 7), everybody_else);
        assert_eq!(recipients(Pattern::Offline, 7), Vec::from_iter(20..USERS));
        assert_eq!(recipients(Pattern::FanIn, 7), [0, 1]);
        assert_eq!(recipients(Pattern::Mixed, 7), everybody_else);
    }

    #[test]
    fn who_is_away_sends_nothing_and_everybody_else_does() {
        let senders = |pattern: Pattern| {
            let sends = |user: &u32| pattern.sends(*user, USERS, TARGETS);
            Vec::from_iter((0..USERS).filter(sends))
        };
        assert_eq!(senders(Pattern::Online), Vec::from_iter(0..USERS));
        assert_eq!(senders(Pattern::Offline), Vec::from_iter(0..20));
        assert_eq!(senders(Pattern::FanIn), Vec::from_iter(2..USERS));
        assert_eq!(senders(Pattern::Mixed), Vec::from_iter(0..35));
    }

    #[test]
    fn too_few_users_for_a_scenario_are_an_error_that_says_how_many_it_takes() {
        assert_eq!(Pattern::Online.check(1, 1), Ok(()));
        let error = Pattern::FanIn.check(3, 3).unwrap_err();
        assert!(error.contains("needs 4 connections"), "{error}");
        assert!(Pattern::Offline.check(1, 1).is_err());
        assert!(Pattern::Mixed.check(7, 1).is_err());
    }
}
