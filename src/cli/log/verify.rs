//! `iris log verify`.

use std::fmt::Write as _;

use clap::Args;

use super::super::{Failure, output};
use super::{WhichArgs, refused};
use crate::runtime::offline::verify::{LogVerdict, Verdict, verify};
use crate::runtime::storage::Access;

#[derive(Debug, Args)]
#[command(long_about = "\
Read everything that a data directory holds, past the page cache, and say whether it is as it was \
written: the superblocks, every checkpoint, the log as a start would read it, every message that an \
inbox refers to, and every frame of every segment. Nothing is written, and no switch may run on the \
directory meanwhile.

What nothing needs any more may rot: that is a note, not damage.")]
#[command(after_long_help = "\
Examples:
  iris log verify
  iris log verify --data /var/lib/iris --json

Exit codes:
  0  sound
  1  damaged; standard output says what, with file and offset
  2  wrong usage, no data directory, or it cannot be looked at now")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let view = args.which.view(Access::Stopped)?;
    let verdict = verify(&view, args.which.log).map_err(refused)?;
    match args.json {
        true => output::print(&serde_json::to_string(&verdict)?)?,
        false => output::print(&text(&verdict, &args.which.word()))?,
    }
    match verdict.sound {
        true => Ok(()),
        false => Err(Failure::Damaged),
    }
}

/// For people.
fn text(verdict: &Verdict, data: &str) -> String {
    let word = |sound| if sound { "sound" } else { "DAMAGED" };
    let mut text = format!("{}: {}\n", verdict.data, word(verdict.sound));
    let supers = verdict.superblocks.iter();
    let supers: Vec<_> = supers
        .map(|one| format!("{} {}", one.file, one.state))
        .collect();
    let _ = writeln!(text, "  superblock: {}", supers.join(", "));
    for note in &verdict.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    for log in &verdict.logs {
        let _ = writeln!(text, "\nlog {}: {}", log.log, word(log.sound));
        damage(log, &mut text);
        counts(log, &mut text);
        for note in &log.notes {
            let _ = writeln!(text, "  note: {note}");
        }
    }
    if !verdict.sound {
        let _ = write!(
            text,
            "\nNothing was changed. `iris log salvage --data {data}` lists exactly what is lost; or \
             restore a backup.\n"
        );
    }
    text.trim_end().to_owned()
}

fn damage(log: &LogVerdict, text: &mut String) {
    if let Some(reason) = &log.unusable {
        let _ = writeln!(text, "  it cannot be used at all: {reason}");
    }
    for checkpoint in &log.checkpoints {
        if let Some(damage) = &checkpoint.damage {
            let _ = writeln!(text, "  {} is not whole: {damage}", checkpoint.file);
        }
    }
    for hole in &log.holes {
        let _ = writeln!(
            text,
            "  {} at byte {} (position {:#x}): {}; readable again at {:#x}",
            hole.file, hole.offset, hole.lsn, hole.fault, hole.to
        );
    }
    for shard in &log.shards_damaged {
        let _ = writeln!(
            text,
            "  shard {} would not be served: {}",
            shard.shard, shard.reason
        );
    }
    for lost in &log.unreadable {
        let entries = match lost.first == lost.last {
            true => format!("entry {}", lost.first),
            false => format!("entries {} to {}", lost.first, lost.last),
        };
        let _ = writeln!(
            text,
            "  {entries} of {} (shard {}) cannot be read at {:#x}",
            lost.user, lost.shard, lost.lsn
        );
    }
}

fn counts(log: &LogVerdict, text: &mut String) {
    let (Some(from), Some(end)) = (log.scanned_from, log.end) else {
        return;
    };
    let shards = log.shards_served + log.shards_damaged.len() as u64;
    let _ = writeln!(
        text,
        "  read: {} segments, {} frames, {} messages; a start reads from {from:#x} to {end:#x}",
        log.segments, log.frames, log.messages
    );
    let checkpoints = log.checkpoints.iter();
    let whole = checkpoints.filter(|one| one.damage.is_none()).count();
    let _ = writeln!(
        text,
        "  {whole} whole checkpoints; {} of {shards} shards would be served",
        log.shards_served
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::offline::verify::{Place, ShardVerdict, Unreadable};
    use crate::runtime::storage::SuperState;

    fn verdict() -> Verdict {
        let whole = |file, sequence| SuperState {
            file,
            state: "whole",
            sequence: Some(sequence),
        };
        Verdict {
            data: "iris-data".to_owned(),
            sound: true,
            superblocks: vec![whole("SUPER.a", 3), whole("SUPER.b", 4)],
            notes: vec![],
            logs: vec![LogVerdict {
                sound: true,
                scanned_from: Some(4096),
                end: Some(8192),
                segments: 1,
                frames: 20,
                messages: 7,
                shards_served: 64,
                ..LogVerdict::default()
            }],
        }
    }

    #[test]
    fn a_sound_directory_is_told_in_few_lines() {
        assert_eq!(
            text(&verdict(), "iris-data"),
            "iris-data: sound\n  superblock: SUPER.a whole, SUPER.b whole\n\nlog 0: sound\n  \
             read: 1 segments, 20 frames, 7 messages; a start reads from 0x1000 to 0x2000\n  \
             0 whole checkpoints; 64 of 64 shards would be served"
        );
    }

    #[test]
    fn damage_comes_with_its_place_and_with_what_to_do() {
        let mut verdict = verdict();
        verdict.sound = false;
        let log = &mut verdict.logs[0];
        log.sound = false;
        log.holes = vec![Place {
            file: "log-00/0000000000000000.seg".to_owned(),
            offset: 5000,
            lsn: 5000,
            to: 6000,
            fault: "why".to_owned(),
        }];
        log.shards_served = 63;
        log.shards_damaged = vec![ShardVerdict {
            shard: 9,
            reason: "entry 3 is damaged".to_owned(),
        }];
        log.unreadable = vec![Unreadable {
            shard: 8,
            user: "ben".to_owned(),
            first: 4,
            last: 6,
            lsn: 4100,
        }];
        let text = text(&verdict, "'my data'");
        for wanted in [
            "iris-data: DAMAGED\n",
            "log-00/0000000000000000.seg at byte 5000 (position 0x1388): why",
            "shard 9 would not be served: entry 3 is damaged",
            "entries 4 to 6 of ben (shard 8) cannot be read at 0x1004",
            "63 of 64 shards",
            "iris log salvage --data 'my data'",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }
}
