//! The metrics, in Prometheus' text format.
//!
//! One row of a table for each: name, kind, what it means, how it is read from a report. Metrics of a
//! core have the label `core`, those of a log the label `log` alone, so that a log's series goes on when
//! the same data is served by another number of cores. A core that does not answer has no series but
//! `iris_core_up`.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write;

use super::asker::Answer;
use super::readiness::{Facts, not_ready, reports};
use crate::audit::Kind as Event;
use crate::runtime::audit::Counts;
use crate::runtime::report::{CoreReport, LogReport};
use crate::runtime::storage::Space;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Only rises, from 0 at the start of the process; its name ends in `_total`.
    Counter,
    Gauge,
}

struct Metric<T> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    /// `None`: there is no such thing now.
    read: fn(&T) -> Option<u64>,
}

const fn counter<T>(
    name: &'static str,
    help: &'static str,
    read: fn(&T) -> Option<u64>,
) -> Metric<T> {
    Metric {
        name,
        kind: Kind::Counter,
        help,
        read,
    }
}

const fn gauge<T>(
    name: &'static str,
    help: &'static str,
    read: fn(&T) -> Option<u64>,
) -> Metric<T> {
    Metric {
        name,
        kind: Kind::Gauge,
        help,
        read,
    }
}

#[rustfmt::skip] // one metric, two lines
const OF_CORES: &[Metric<CoreReport>] = &[
    gauge("iris_connections", "Sockets of clients, strangers and closing ones included.",
        |core| Some(core.connections)),
    gauge("iris_sessions", "Devices that are logged in.",
        |core| Some(core.sessions)),
    gauge("iris_strangers", "Connections that have not logged in.",
        |core| Some(core.strangers)),
    gauge("iris_core_shed", "What the core sheds: 0 nothing, 1 signals, 2 and fresh receipts, 3 and new connections, 4 and new sends.",
        |core| Some(core.shed)),
    gauge("iris_certificate_not_after_timestamp_seconds", "When the certificate that the core shows ends, since the Unix epoch.",
        |core| core.certificate.map(|validity| validity.ends_s)),
    counter("iris_messages_received_total", "Messages taken from sessions, whatever became of them.",
        |core| Some(core.totals.messages)),
    counter("iris_messages_accepted_total", "Messages whose senders were told that they are accepted.",
        |core| Some(core.totals.accepts)),
    gauge("iris_ring_parcels", "Parcels that waited in other cores' rings for this one, the most of the last one to two seconds.",
        |core| Some(core.peaks.ring_parcels)),
    gauge("iris_core_turn_events", "Completions that the core took in one turn, the most of the last one to two seconds.",
        |core| Some(core.peaks.turn_events)),
    gauge("iris_log_pending_bytes", "Bytes of commands that waited for the core's logs, the most of the last one to two seconds.",
        |core| Some(core.peaks.pending_bytes)),
    gauge("iris_inbox_users", "Users that have an inbox, when they were last looked at.",
        |core| core.inboxes.as_ref().map(|inboxes| inboxes.users)),
    gauge("iris_inbox_pending_entries", "Entries that some device has not acknowledged, when the inboxes were last looked at.",
        |core| core.inboxes.as_ref().map(|inboxes| inboxes.pending)),
    gauge("iris_inbox_pending_entries_max", "The most such entries of one user.",
        |core| core.inboxes.as_ref().map(|inboxes| inboxes.backlogged.first().map_or(0, |user| user.pending))),
    gauge("iris_session_waiting_seconds_max", "How long a connected device has left an entry unacknowledged, the longest, to 16 s.",
        |core| core.inboxes.as_ref().map(|inboxes| inboxes.slowest.first().map_or(0, |user| user.waiting_ms / 1_000))),
    counter("iris_connections_accepted_total", "Connections that were accepted.",
        |core| Some(core.totals.accepted)),
    counter("iris_logins_total", "Sessions that began.",
        |core| Some(core.totals.logins)),
    counter("iris_sessions_revoked_total", "Sessions that ended because their tokens were revoked.",
        |core| Some(core.totals.revoked_sessions)),
    counter("iris_handshakes_failed_total", "Handshakes that broke the rules of TLS.",
        |core| Some(core.totals.failed_handshakes)),
    counter("iris_handshakes_deferred_total", "Handshakes that waited for a later turn of the core.",
        |core| Some(core.totals.deferred_handshakes)),
    counter("iris_sessions_throttled_total", "Times that a session was not read for a while because it talked too much.",
        |core| Some(core.totals.throttled)),
    counter("iris_core_turns_total", "Turns of the core's loop.",
        |core| Some(core.totals.turns)),
    counter("iris_core_sleeps_total", "Times that the core slept for want of work.",
        |core| Some(core.totals.sleeps)),
    counter("iris_core_events_total", "Completions of sockets and disks that the core took.",
        |core| Some(core.totals.events)),
    counter("iris_socket_sends_total", "Sends that were handed to the kernel.",
        |core| Some(core.totals.sends)),
    counter("iris_entries_sent_total", "Entries handed to sessions, repeated ones included.",
        |core| Some(core.totals.entries)),
    counter("iris_commits_total", "Syncs of logs that returned.",
        |core| Some(core.totals.commits)),
    counter("iris_committed_batches_total", "Batches of shards that those syncs made durable.",
        |core| Some(core.totals.committed)),
];

/// One reason of several for which something is counted, and how often.
type Reason = (&'static str, fn(&CoreReport) -> u64);

/// A counter of a core with the label `reason`.
struct Reasons {
    name: &'static str,
    help: &'static str,
    of: &'static [Reason],
}

#[rustfmt::skip] // one reason, one line
const OF_CORES_BY_REASON: &[Reasons] = &[
    Reasons {
        name: "iris_connections_refused_total",
        help: "Connections that were closed before a handshake or sent away, by reason.",
        of: &[
            ("address", |core| core.totals.refused_address),
            ("crowd", |core| core.totals.refused_crowd),
            ("draining", |core| core.totals.refused_draining),
            ("full", |core| core.totals.refused_full),
            ("handshakes", |core| core.totals.refused_handshakes),
            ("overload", |core| core.totals.shed_connections),
        ],
    },
    Reasons {
        name: "iris_logins_refused_total",
        help: "Logins that were refused: a bad token, one more after too many, a revoked one, or a user with too many sessions.",
        of: &[
            ("rate", |core| core.totals.refused_logins),
            ("revoked", |core| core.totals.revoked_logins),
            ("sessions", |core| core.totals.refused_sessions),
            ("token", |core| core.totals.failed_logins),
        ],
    },
    Reasons {
        name: "iris_sends_refused_total",
        help: "Messages that were refused, by reason.",
        of: &[
            ("disk", |core| core.totals.refused_disk),
            ("inbox", |core| core.totals.refused_inbox),
            ("overload", |core| core.totals.shed_sends),
            ("rate", |core| core.totals.limited_sends),
        ],
    },
    Reasons {
        name: "iris_connections_cut_total",
        help: "Connections that were ended because the client was too slow, it did not read, or did not finish a frame; or sent records with next to nothing in them.",
        of: &[
            ("frame", |core| core.totals.frame_timeouts),
            ("read", |core| core.totals.write_timeouts),
            ("records", |core| core.totals.cut_for_records),
        ],
    },
];

#[rustfmt::skip] // one metric, two lines
const OF_LOGS: &[Metric<LogReport>] = &[
    gauge("iris_log_end_bytes", "Position behind the last frame that was placed in the log.",
        |log| Some(log.end_lsn)),
    gauge("iris_log_durable_bytes", "Position up to which the log is durable.",
        |log| Some(log.durable_lsn)),
    gauge("iris_log_segments", "Segments with frames; spares are not counted.",
        |log| Some(log.segments)),
    gauge("iris_log_used_bytes", "Bytes of the segments with frames.",
        |log| Some(log.used_bytes)),
    gauge("iris_log_live_bytes", "Bytes that messages which somebody may still want take in the log; 0 while not known.",
        |log| Some(log.live_bytes)),
    gauge("iris_log_space", "Room for further segments: 0 enough, 1 low (new messages are refused), 2 full.",
        |log| Some(space(log.space))),
    gauge("iris_log_damaged_shards", "Shards that are not served because their data is damaged.",
        |log| Some(log.damaged_shards.len() as u64)),
    counter("iris_log_damaged_entries_total", "Entries that could not be read back as they were written.",
        |log| Some(log.damaged_entries)),
    gauge("iris_checkpoint_lsn_bytes", "Position from which a recovery would scan, by the last checkpoint.",
        |log| log.checkpoint_lsn),
    counter("iris_checkpoint_failures_total", "Checkpoints that failed.",
        |log| Some(log.checkpoint_failures)),
];

fn space(space: Space) -> u64 {
    match space {
        Space::Enough => 0,
        Space::Low => 1,
        Space::Full => 2,
    }
}

/// All metrics as text.
pub(super) fn render(facts: &Facts, answers: &[Answer]) -> String {
    let mut text = Exposition::default();
    let build = [([("version", facts.version.to_owned())], 1)];
    text.family(
        "iris_build_info",
        Kind::Gauge,
        "Always 1; the label says which program runs.",
        build,
    );
    let ready = u64::from(not_ready(answers).is_empty());
    text.family(
        "iris_ready",
        Kind::Gauge,
        "1 when everything is served, as /readyz says.",
        [([], ready)],
    );
    text.audit(&facts.audit);
    let up = answers.iter().enumerate().map(|(core, answer)| {
        let up = matches!(answer, Answer::Report(_));
        ([("core", core.to_string())], u64::from(up))
    });
    text.family(
        "iris_core_up",
        Kind::Gauge,
        "1 when the core answered in time.",
        up,
    );
    for metric in OF_CORES {
        let samples = reports(answers).filter_map(|core| {
            (metric.read)(core).map(|value| ([("core", core.core.to_string())], value))
        });
        text.family(metric.name, metric.kind, metric.help, samples);
    }
    for metric in OF_CORES_BY_REASON {
        let samples = reports(answers).flat_map(|core| {
            metric.of.iter().map(move |(reason, read)| {
                let labels = [
                    ("core", core.core.to_string()),
                    ("reason", (*reason).to_owned()),
                ];
                (labels, read(core))
            })
        });
        text.family(metric.name, Kind::Counter, metric.help, samples);
    }
    let mut logs: Vec<&LogReport> = reports(answers).flat_map(|core| &core.logs).collect();
    logs.sort_by_key(|log| log.log);
    for metric in OF_LOGS {
        let samples = logs.iter().filter_map(|log| {
            (metric.read)(log).map(|value| ([("log", log.log.to_string())], value))
        });
        text.family(metric.name, metric.kind, metric.help, samples);
    }
    text.0
}

/// Text of metrics in the making.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    /// Of the audit log, which all cores share.
    fn audit(&mut self, counts: &Counts) {
        let taken =
            Event::ALL.map(|kind| ([("event", kind.name().to_owned())], counts.taken(kind)));
        self.family(
            "iris_audit_events_total",
            Kind::Counter,
            "Events handed to the audit log, by kind; repetitions are events, too.",
            taken,
        );
        let labels = |event: &str, reason: &str| {
            [("event", event.to_owned()), ("reason", reason.to_owned())]
        };
        let lost = Event::ALL.map(|kind| (labels(kind.name(), "queue"), counts.lost(kind)));
        let by_disk = (labels("any", "disk"), counts.lost_by_disk());
        self.family(
            "iris_audit_events_lost_total",
            Kind::Counter,
            "Events that are counted in the audit log and not listed: they came too fast, or the disk did not take them.",
            lost.into_iter().chain([by_disk]),
        );
    }

    /// One metric with all its samples: HELP and TYPE come once, before them. Without samples it is
    /// left out.
    fn family<const N: usize>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let mut is_begun = false;
        for (labels, value) in samples {
            if !std::mem::replace(&mut is_begun, true) {
                let help = help.replace('\\', r"\\").replace('\n', r"\n");
                let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
            }
            self.0.push_str(name);
            for (index, (label, text)) in labels.iter().enumerate() {
                let before = if index == 0 { '{' } else { ',' };
                let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(text));
            }
            let after = if N == 0 { "" } else { "}" };
            let _ = writeln!(self.0, "{after} {value}");
        }
    }
}

/// A label's value as it stands between quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::readiness::tests::healthy;
    use super::*;

    fn facts() -> Facts {
        Facts {
            version: "1.2.3",
            ..Facts::of_this_process("127.0.0.1:7447".parse().unwrap(), Arc::default())
        }
    }

    fn lines_of<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        let is_sample = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        text.lines().filter(is_sample).collect()
    }

    /// R: E-2
    #[test]
    fn every_metric_has_help_and_type_once_and_before_its_samples() {
        let text = render(
            &facts(),
            &[Answer::Report(healthy(0)), Answer::Report(healthy(1))],
        );
        assert!(text.ends_with('\n'));
        let (mut names, mut series, mut open) = (BTreeSet::new(), BTreeSet::new(), String::new());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap();
                assert!(names.insert(name.to_owned()), "{name} comes twice");
                assert!(words.ends_with('.'), "{words}");
                let kind = lines.next().unwrap();
                let kind = kind.strip_prefix(&format!("# TYPE {name} ")).unwrap();
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                open = name.to_owned();
            } else {
                let (what, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(what.split('{').next().unwrap(), open, "{line}");
                assert!(series.insert(what.to_owned()), "{what} comes twice");
                value.parse::<u64>().unwrap();
            }
        }
        assert_eq!(lines_of(&text, "iris_connections").len(), 2, "one per core");
        assert_eq!(lines_of(&text, "iris_log_space").len(), 4, "one per log");
        assert_eq!(
            lines_of(&text, "iris_checkpoint_lsn_bytes").len(),
            0,
            "none yet"
        );
    }

    #[test]
    fn names_are_of_the_kind_that_prometheus_takes() {
        let names = OF_CORES.iter().map(|metric| metric.name);
        for name in names.chain(OF_LOGS.iter().map(|metric| metric.name)) {
            assert!(name.starts_with("iris_"), "{name}");
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
        }
    }

    #[test]
    fn what_a_log_says_is_what_its_metrics_say() {
        let mut core = healthy(0);
        core.logs[1] = LogReport {
            end_lsn: 10,
            durable_lsn: 9,
            space: Space::Low,
            segments: 8,
            damaged_shards: vec![3, 17],
            checkpoint_lsn: Some(7),
            checkpoint_failures: 6,
            live_bytes: 5,
            used_bytes: 4,
            damaged_entries: 3,
            ..LogReport::new(2)
        };
        let text = render(&facts(), &[Answer::Report(core), Answer::Silent]);
        for wanted in [
            "iris_build_info{version=\"1.2.3\"} 1",
            "iris_ready 0",
            "iris_core_up{core=\"0\"} 1",
            "iris_core_up{core=\"1\"} 0",
            "iris_log_end_bytes{log=\"2\"} 10",
            "iris_log_durable_bytes{log=\"2\"} 9",
            "iris_log_space{log=\"2\"} 1",
            "iris_log_segments{log=\"2\"} 8",
            "iris_log_damaged_shards{log=\"2\"} 2",
            "iris_checkpoint_lsn_bytes{log=\"2\"} 7",
            "iris_checkpoint_failures_total{log=\"2\"} 6",
            "iris_log_live_bytes{log=\"2\"} 5",
            "iris_log_used_bytes{log=\"2\"} 4",
            "iris_log_damaged_entries_total{log=\"2\"} 3",
        ] {
            assert!(text.lines().any(|line| line == wanted), "{wanted}:\n{text}");
        }
    }

    #[test]
    fn labels_and_help_are_escaped() {
        let mut text = Exposition::default();
        let labels = [("one", "a\\b\"c\nd".to_owned()), ("two", "ü".to_owned())];
        text.family("name", Kind::Gauge, "back\\slash\nline", [(labels, 7)]);
        assert_eq!(
            text.0,
            "# HELP name back\\\\slash\\nline\n# TYPE name gauge\n\
             name{one=\"a\\\\b\\\"c\\nd\",two=\"ü\"} 7\n"
        );
    }
}
