//! Whether the switch is ready, and if not, why: one line for each reason, with what to do.
//!
//! Ready means that everything is served as it should be. A switch that refuses new messages, or does
//! not serve some of its users, is alive (`/healthz`) and not ready.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::asker::{ANSWER_MAX, Answer};
use crate::runtime::audit::Counts;
use crate::runtime::clock::Clock;
use crate::runtime::report::{CoreReport, LogReport};
use crate::runtime::storage::Space;

/// What is known without asking a core.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub version: &'static str,
    pub pid: u32,
    pub address: SocketAddr,
    /// Where it can be asked over TCP.
    pub admin: Option<SocketAddr>,
    /// What the audit log has taken and lost.
    pub audit: Arc<Counts>,
    /// What it is called among others: its host's name and its port.
    pub node: String,
}

impl Facts {
    pub fn of_this_process(address: SocketAddr, audit: Arc<Counts>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            address,
            admin: None,
            audit,
            node: format!("{}:{}", host_name(), address.port()),
        }
    }
}

/// The name that the kernel knows the machine by.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// How long one stage of a message's way took in the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// The stage, as `iris hist` names it.
    pub stage: String,
    /// On which core; `None`: on all of them.
    pub core: Option<u16>,
    /// How often.
    pub count: u64,
    /// The median, in microseconds.
    pub p50_us: u64,
    /// The 99th percentile, in microseconds.
    pub p99_us: u64,
}

/// All that is known, as `/status` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the program that serves.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where it can be asked over HTTP, with a token.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Whether everything is served.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// What somebody should look at, ready or not.
    #[serde(default)]
    pub notes: Vec<String>,
    /// How long things took in the last seconds.
    #[serde(default)]
    pub latencies: Vec<Latency>,
    /// The cores that answered.
    pub cores: Vec<CoreReport>,
}

impl Status {
    pub(super) fn of(facts: &Facts, answers: &[Answer]) -> Self {
        let reasons = not_ready(answers);
        Self {
            version: facts.version.to_owned(),
            pid: facts.pid,
            address: facts.address,
            admin: facts.admin,
            ready: reasons.is_empty(),
            reasons,
            notes: notes(answers, Clock::read().unix_s()),
            latencies: Vec::new(),
            cores: reports(answers).cloned().collect(),
        }
    }
}

/// What the cores that answered said.
pub(super) fn reports(answers: &[Answer]) -> impl Iterator<Item = &CoreReport> {
    answers.iter().filter_map(|answer| match answer {
        Answer::Report(report) => Some(&**report),
        Answer::Silent | Answer::Ended => None,
    })
}

/// Which cores are not alive.
pub(super) fn not_healthy(answers: &[Answer]) -> Vec<String> {
    let gone = |(core, answer): (usize, &Answer)| match answer {
        Answer::Report(_) => None,
        Answer::Silent => Some(format!(
            "core {core} did not answer within {} ms",
            ANSWER_MAX.as_millis()
        )),
        Answer::Ended => Some(format!("core {core} has ended")),
    };
    answers.iter().enumerate().filter_map(gone).collect()
}

/// Why the switch is not ready; empty: it is.
pub(super) fn not_ready(answers: &[Answer]) -> Vec<String> {
    let mut reasons = not_healthy(answers);
    if reports(answers).any(|report| report.draining) {
        reasons.push("draining: the switch stops and takes no further connections".to_owned());
    }
    let mut logs: Vec<&LogReport> = reports(answers).flat_map(|report| &report.logs).collect();
    logs.sort_by_key(|log| log.log);
    for log in logs {
        reasons.extend(damage(log));
        reasons.extend(rot(log));
        reasons.extend(shortage(log));
    }
    reasons
}

/// What somebody should look at at `now_s`, although it is no reason not to be ready. Said once, for the
/// core whose certificate ends first: a core that is busy may still have an older one.
pub(super) fn notes(answers: &[Answer], now_s: u64) -> Vec<String> {
    let certificates = reports(answers).filter_map(|report| report.certificate);
    let first = certificates.min_by_key(|validity| validity.ends_s);
    first
        .and_then(|validity| validity.note(now_s))
        .into_iter()
        .collect()
}

fn damage(log: &LogReport) -> Option<String> {
    let shards: Vec<String> = log.damaged_shards.iter().map(u16::to_string).collect();
    let number = log.log;
    match shards.as_slice() {
        [] => None,
        [shard] => Some(format!(
            "log {number}: shard {shard} is damaged and not served; run `iris log salvage`"
        )),
        shards => Some(format!(
            "log {number}: shards {} are damaged and not served; run `iris log salvage`",
            shards.join(", ")
        )),
    }
}

fn rot(log: &LogReport) -> Option<String> {
    let (number, places) = (log.log, log.damaged_entries);
    (places > 0).then(|| {
        format!(
            "log {number}: {places} damaged places were met in old segments, their messages are not              delivered; stop the switch and run `iris log verify`, then `iris log salvage`"
        )
    })
}

fn shortage(log: &LogReport) -> Option<String> {
    let number = log.log;
    match log.space {
        Space::Enough => None,
        Space::Low => Some(format!(
            "log {number}: the disk has no room for a further segment, new messages are refused; \
             free space"
        )),
        Space::Full => Some(format!(
            "log {number}: the disk is full, new messages are refused and acknowledgements wait; \
             free space"
        )),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::runtime::certificate::Validity;

    /// A core with two logs that have nothing to complain of.
    pub fn healthy(core: u16) -> Box<CoreReport> {
        Box::new(CoreReport {
            core,
            connections: 5,
            logs: vec![LogReport::new(core), LogReport::new(core + 2)],
            ..CoreReport::default()
        })
    }

    fn one_log(change: impl FnOnce(&mut LogReport)) -> Vec<Answer> {
        let mut report = healthy(0);
        change(&mut report.logs[0]);
        vec![Answer::Report(report)]
    }

    #[test]
    fn a_switch_without_a_reason_is_ready() {
        let answers = [Answer::Report(healthy(0)), Answer::Report(healthy(1))];
        assert_eq!(not_ready(&answers), [""; 0]);
        assert_eq!(not_healthy(&answers), [""; 0]);
    }

    #[test]
    fn a_core_that_is_silent_or_gone_is_named() {
        let answers = [Answer::Report(healthy(0)), Answer::Silent, Answer::Ended];
        let reasons = ["core 1 did not answer within 1000 ms", "core 2 has ended"];
        assert_eq!(not_healthy(&answers), reasons);
        assert_eq!(not_ready(&answers), reasons);
    }

    #[test]
    fn draining_is_said_once_and_is_no_illness() {
        let draining = CoreReport {
            draining: true,
            ..*healthy(0)
        };
        let answers = [draining.clone(), draining].map(|report| Answer::Report(Box::new(report)));
        let reasons = not_ready(&answers);
        assert_eq!(reasons.len(), 1);
        assert!(reasons[0].starts_with("draining"), "{reasons:?}");
        assert_eq!(not_healthy(&answers), [""; 0]);
    }

    #[test]
    fn a_certificate_that_ends_soon_is_noted_once_and_is_no_reason_not_to_be_ready() {
        let with = |ends_s| {
            let certificate = Some(Validity {
                begins_s: 0,
                ends_s,
            });
            Answer::Report(Box::new(CoreReport {
                certificate,
                ..*healthy(0)
            }))
        };
        let now_s = 1_000_000_000;
        assert_eq!(notes(&[with(u64::MAX)], now_s), [""; 0]);
        let answers = [with(u64::MAX), with(now_s + 90_000), with(now_s)];
        let said = notes(&answers, now_s);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("ended less than a day ago"), "{said:?}");
        assert_eq!(not_ready(&answers), [""; 0]);
    }

    #[test]
    fn damaged_shards_are_listed_with_what_to_do() {
        assert_eq!(
            not_ready(&one_log(|log| log.damaged_shards = vec![3, 17])),
            ["log 0: shards 3, 17 are damaged and not served; run `iris log salvage`"]
        );
        assert_eq!(
            not_ready(&one_log(|log| log.damaged_shards = vec![3])),
            ["log 0: shard 3 is damaged and not served; run `iris log salvage`"]
        );
    }

    #[test]
    fn a_disk_without_room_is_a_reason_and_logs_come_in_order() {
        let (mut one, mut two) = (healthy(0), healthy(1));
        one.logs[1].space = Space::Full; // log 2
        two.logs[0].space = Space::Low; // log 1
        let reasons = not_ready(&[Answer::Report(one), Answer::Report(two)]);
        assert_eq!(reasons.len(), 2);
        assert!(
            reasons[0].starts_with("log 1: the disk has no room"),
            "{reasons:?}"
        );
        assert!(
            reasons[1].starts_with("log 2: the disk is full"),
            "{reasons:?}"
        );
    }
}
