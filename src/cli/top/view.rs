//! What two looks at a switch say together: rates, and what stands.

use crate::runtime::admin::{Latency, Status};
use crate::runtime::report::{CoreReport, InboxReport, Totals};

/// A core between two looks, or all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// Which core; `None`: all together.
    pub core: Option<u16>,
    /// Per second; `None` while there is no look before.
    pub rates: Option<Rates>,
    pub sync: Option<Quantiles>,
    pub accept: Option<Quantiles>,
    pub ring_parcels: u64,
    pub pending_bytes: u64,
    pub sessions: u64,
    pub strangers: u64,
    pub shed: u64,
}

/// Times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub messages: f64,
    pub accepts: f64,
    pub entries: f64,
    pub commits: f64,
}

impl Rates {
    fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            accepts: self.accepts + other.accepts,
            entries: self.entries + other.entries,
            commits: self.commits + other.commits,
        }
    }
}

/// Median and 99th percentile, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantiles {
    pub p50_us: u64,
    pub p99_us: u64,
}

/// One reason for which something is refused: since the start, and a second.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub reason: &'static str,
    pub count: u64,
    pub rate: Option<f64>,
}

/// Everything that is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub head: String,
    /// Why it is not ready, and what somebody should look at.
    pub complaints: Vec<String>,
    pub cores: Vec<Row>,
    pub all: Row,
    /// Those that happened at all.
    pub refusals: Vec<Refusal>,
    /// `None`: no core has looked at its users yet.
    pub inboxes: Option<InboxReport>,
}

impl View {
    /// `before` is an earlier look at the same switch, if there is one.
    pub fn of(before: Option<&Status>, now: &Status) -> Self {
        let before = before.filter(|before| before.pid == now.pid);
        let pairs: Vec<_> = now
            .cores
            .iter()
            .map(|core| (old(before, core), core))
            .collect();
        let cores: Vec<Row> = pairs
            .iter()
            .map(|pair| row(*pair, &now.latencies))
            .collect();
        let found: Vec<_> = now
            .cores
            .iter()
            .filter_map(|core| core.inboxes.as_ref())
            .collect();
        let inboxes = (!found.is_empty()).then(|| {
            found
                .into_iter()
                .fold(InboxReport::default(), InboxReport::merged)
        });
        let notes = now.notes.iter().map(|note| format!("note: {note}"));
        Self {
            head: head(now),
            complaints: now.reasons.iter().cloned().chain(notes).collect(),
            all: all(&cores, &now.latencies),
            cores,
            refusals: refusals(&pairs),
            inboxes,
        }
    }
}

fn old<'a>(before: Option<&'a Status>, core: &CoreReport) -> Option<&'a CoreReport> {
    let of_it = before?.cores.iter().find(|old| old.core == core.core)?;
    (of_it.at_us < core.at_us).then_some(of_it)
}

fn head(now: &Status) -> String {
    let up_s = now.cores.iter().map(|core| core.at_us / 1_000_000).max();
    let ready = if now.ready { "ready" } else { "NOT READY" };
    format!(
        "iris {}  {ready}  {}  process {}  up {}",
        now.version,
        now.address,
        now.pid,
        up(up_s.unwrap_or(0))
    )
}

/// How long it has been up, in two units.
fn up(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn row((old, core): (Option<&CoreReport>, &CoreReport), latencies: &[Latency]) -> Row {
    let rates = old.map(|old| {
        let per_s = |read: fn(&Totals) -> u64| per_s(old, core, read);
        Rates {
            messages: per_s(|totals| totals.messages),
            accepts: per_s(|totals| totals.accepts),
            entries: per_s(|totals| totals.entries),
            commits: per_s(|totals| totals.commits),
        }
    });
    Row {
        core: Some(core.core),
        rates,
        sync: quantiles(latencies, "sync", Some(core.core)),
        accept: quantiles(latencies, "accept", Some(core.core)),
        ring_parcels: core.peaks.ring_parcels,
        pending_bytes: core.peaks.pending_bytes,
        sessions: core.sessions,
        strangers: core.strangers,
        shed: core.shed,
    }
}

fn per_s(old: &CoreReport, new: &CoreReport, read: impl Fn(&Totals) -> u64) -> f64 {
    let seconds = (new.at_us - old.at_us) as f64 / 1e6;
    read(&new.totals).saturating_sub(read(&old.totals)) as f64 / seconds
}

fn quantiles(latencies: &[Latency], stage: &str, core: Option<u16>) -> Option<Quantiles> {
    let is_it = |latency: &&Latency| latency.stage == stage && latency.core == core;
    let found = latencies.iter().find(is_it)?;
    (found.count > 0).then_some(Quantiles {
        p50_us: found.p50_us,
        p99_us: found.p99_us,
    })
}

fn all(cores: &[Row], latencies: &[Latency]) -> Row {
    let rates: Option<Vec<Rates>> = cores.iter().map(|row| row.rates).collect();
    let sum = |read: fn(&Row) -> u64| cores.iter().map(read).sum();
    let most = |read: fn(&Row) -> u64| cores.iter().map(read).max().unwrap_or(0);
    Row {
        core: None,
        rates: rates.map(|rates| rates.into_iter().fold(Rates::default(), Rates::plus)),
        sync: quantiles(latencies, "sync", None),
        accept: quantiles(latencies, "accept", None),
        ring_parcels: most(|row| row.ring_parcels),
        pending_bytes: most(|row| row.pending_bytes),
        sessions: sum(|row| row.sessions),
        strangers: sum(|row| row.strangers),
        shed: most(|row| row.shed),
    }
}

fn refusals(pairs: &[(Option<&CoreReport>, &CoreReport)]) -> Vec<Refusal> {
    let mut list = Vec::new();
    for (nth, (reason, _)) in Totals::default().refusals().into_iter().enumerate() {
        let read = |totals: &Totals| totals.refusals()[nth].1;
        let count: u64 = pairs.iter().map(|(_, core)| read(&core.totals)).sum();
        let rates = pairs
            .iter()
            .map(|(old, new)| Some(per_s((*old)?, new, read)));
        let rate: Option<f64> = rates.sum();
        if count > 0 {
            list.push(Refusal {
                reason,
                count,
                rate,
            });
        }
    }
    list
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::runtime::report::{Peaks, UserLine};

    fn core(number: u16, at_us: u64, messages: u64) -> CoreReport {
        let totals = Totals {
            messages,
            accepts: messages,
            refused_inbox: messages / 10,
            ..Totals::default()
        };
        let peaks = Peaks {
            ring_parcels: 3,
            ..Peaks::default()
        };
        let mut inboxes = InboxReport::default();
        let line = UserLine {
            pending: 7,
            behind: 7,
            sessions: 1,
            waiting_ms: 61_000,
            ..UserLine::default()
        };
        inboxes.add(line, || format!("user-{number}"));
        CoreReport {
            core: number,
            at_us,
            totals,
            peaks,
            sessions: 5,
            inboxes: Some(inboxes),
            ..CoreReport::default()
        }
    }

    /// A switch of two cores after so many seconds, at a thousand messages a second and core.
    pub fn status(seconds: u64) -> Status {
        let latency = |core| Latency {
            stage: "sync".to_owned(),
            core,
            count: 10,
            p50_us: 900,
            p99_us: 12_345,
        };
        Status {
            version: "1.2.3".to_owned(),
            pid: 7,
            address: "127.0.0.1:7447".parse().unwrap(),
            admin: None,
            ready: true,
            reasons: Vec::new(),
            notes: Vec::new(),
            latencies: vec![latency(Some(0)), latency(Some(1)), latency(None)],
            cores: vec![
                core(0, seconds * 1_000_000, seconds * 1_000),
                core(1, seconds * 1_000_000, seconds * 1_000),
            ],
        }
    }

    /// R: E-2
    #[test]
    fn rates_are_by_the_cores_own_clock_and_the_total_is_their_sum() {
        let view = View::of(Some(&status(10)), &status(12));
        assert_eq!(view.cores[1].rates.unwrap().messages, 1_000.0);
        assert_eq!(view.all.rates.unwrap().accepts, 2_000.0);
        assert_eq!((view.all.sessions, view.all.ring_parcels), (10, 3));
        let quantiles = Quantiles {
            p50_us: 900,
            p99_us: 12_345,
        };
        assert_eq!((view.all.sync, view.all.accept), (Some(quantiles), None));
        let refusal = &view.refusals[0];
        assert_eq!((refusal.reason, refusal.count), ("send: inbox full", 2_400));
        assert_eq!(refusal.rate, Some(200.0));
        assert_eq!(view.inboxes.unwrap().pending, 14);
        assert!(view.head.contains("ready") && view.head.ends_with("up 12 s"));
    }

    #[test]
    fn another_process_or_no_look_before_gives_no_rates() {
        let mut other = status(10);
        other.pid = 8;
        for before in [None, Some(&other), Some(&status(12))] {
            let view = View::of(before, &status(12));
            assert_eq!((view.all.rates, view.refusals[0].rate), (None, None));
        }
    }

    #[test]
    fn the_time_up_has_two_units() {
        let said = [59, 61, 3_700, 90_000].map(up);
        assert_eq!(said, ["59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
