//! What happens again and again is listed once in an interval, and counted for the rest of it.
//!
//! ```text
//!   refused bad_token 192.0.2.7 ─▶ listed;  again, again, again ─▶ counted ─▶ repeated, count 3
//!   refused bad_token, 65th address of this minute ──────────────▶ counted ─▶ unlisted, count …
//! ```
//!
//! So the log grows by [`LISTED_REFUSALS_MAX`] records of refusals and as many counts a minute at most,
//! whoever knocks and however often.

use std::collections::BTreeMap;

use super::Event;

/// How long repetitions are counted before the count is a record.
pub const INTERVAL_MS: u64 = 60_000;
/// Different refusals (reason and address) that are listed in one interval; further ones are counted by
/// their reason: about 30 KB a minute, 40 MB a day.
pub const LISTED_REFUSALS_MAX: usize = 64;
/// Different users and devices whose logins, renewals or ends are listed in one interval; further ones
/// are counted together.
pub const LISTED_SESSIONS_MAX: usize = 8_192;
/// Different devices of one user among them; what further ones do is counted for all of them, as device
/// [`MANY`]: a name of a device costs nothing.
pub const LISTED_DEVICES_MAX: u32 = 16;
/// Stands for devices that are not listed.
pub const MANY: &str = "*";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Refusal {
        reason: &'static str,
        address: String,
    },
    Session {
        what: &'static str,
        user: String,
        device: String,
    },
}

impl Key {
    fn of(event: &Event) -> Option<Self> {
        let (what, user, device) = match event {
            Event::Refused {
                reason, address, ..
            } => {
                let (reason, address) = (*reason, address.clone());
                return Some(Self::Refusal { reason, address });
            }
            Event::Login { user, device, .. } => ("login", user, device),
            Event::Renewed { user, device, .. } => ("renewed", user, device),
            Event::Ended { user, device } => ("ended", user, device),
            _ => return None,
        };
        Some(Self::Session {
            what,
            user: user.clone(),
            device: device.clone(),
        })
    }
}

/// What was listed in the running interval, and what was counted.
#[derive(Debug, Default)]
pub struct Repeats {
    since_ms: u64,
    listed: BTreeMap<Key, u64>,
    refusals: usize,
    /// By event and user.
    devices: BTreeMap<(&'static str, String), u32>,
    /// By event and reason.
    unlisted: BTreeMap<(&'static str, Option<&'static str>), u64>,
}

impl Repeats {
    /// The event, if it is to be listed; else it has been counted.
    pub fn take(&mut self, now_ms: u64, event: Event) -> Option<Event> {
        let Some(key) = Key::of(&event) else {
            return Some(event);
        };
        if self.listed.is_empty() && self.unlisted.is_empty() {
            self.since_ms = now_ms;
        }
        if let Some(count) = self.listed.get_mut(&key) {
            *count += 1;
            return None;
        }
        let (is_full, kind) = match &key {
            Key::Refusal { reason, .. } => {
                let is_full = self.refusals >= LISTED_REFUSALS_MAX;
                (is_full, ("refused", Some(*reason)))
            }
            Key::Session { what, user, .. } => {
                let of_user = (*what, user.clone());
                if self.devices.get(&of_user).copied() >= Some(LISTED_DEVICES_MAX) {
                    let (user, device) = (user.clone(), MANY.to_owned());
                    let many = Key::Session { what, user, device };
                    *self.listed.entry(many).or_default() += 1;
                    return None;
                }
                let is_full = self.listed.len() - self.refusals >= LISTED_SESSIONS_MAX;
                if !is_full {
                    *self.devices.entry(of_user).or_default() += 1;
                }
                (is_full, (*what, None))
            }
        };
        if is_full {
            *self.unlisted.entry(kind).or_default() += 1;
            return None;
        }
        self.refusals += usize::from(matches!(key, Key::Refusal { .. }));
        self.listed.insert(key, 0);
        Some(event)
    }

    /// Ends the interval, if it is over or `at_once`: what was counted, as events.
    pub fn due(&mut self, now_ms: u64, at_once: bool) -> Vec<Event> {
        let since_ms = self.since_ms;
        // A clock that was set back ends it, too.
        let is_over = now_ms < since_ms || now_ms - since_ms >= INTERVAL_MS;
        if !is_over && !at_once {
            return Vec::new();
        }
        let Self {
            listed, unlisted, ..
        } = std::mem::take(self);
        let repeated = listed.into_iter().filter(|(_, count)| *count > 0);
        let repeated = repeated.map(|(key, count)| match key {
            Key::Refusal { reason, address } => Event::Repeated {
                what: "refused",
                reason: Some(reason),
                address: Some(address),
                user: None,
                device: None,
                count,
                since_ms,
            },
            Key::Session { what, user, device } => Event::Repeated {
                what,
                reason: None,
                address: None,
                user: Some(user),
                device: Some(device),
                count,
                since_ms,
            },
        });
        let unlisted = unlisted.into_iter();
        let unlisted = unlisted.map(|((what, reason), count)| Event::Unlisted {
            what,
            reason,
            count,
            since_ms,
        });
        repeated.chain(unlisted).collect()
    }
}
