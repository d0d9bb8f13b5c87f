//! `iris log salvage`.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal};

use clap::Args;

use super::super::{Failure, output};
use super::{WhichArgs, refused};
use crate::runtime::offline::salvage::{
    Certain, Listing, LogListing, Lost, SalvageError, Unnamed, list, set_aside,
};
use crate::runtime::storage::Access;

#[derive(Debug, Args)]
#[command(long_about = "\
List exactly which entries of whose inboxes a damaged data directory has lost. Without more, nothing is \
changed.

With --set-aside the switch can go on without them: the damaged segments and the checkpoints are kept in \
DATA/salvaged-N, and a new checkpoint is written in which the lost entries are gaps. Every device whose \
user lost something is told so when it logs in. This cannot be undone but by restoring a backup, so it \
wants a phrase that names how much is lost: the listing prints it. Copy the data directory first.")]
#[command(after_long_help = "\
Examples:
  iris log salvage --data /var/lib/iris
  iris log salvage --data /var/lib/iris --set-aside      asks for the phrase, on a terminal
  iris log salvage --data /var/lib/iris --set-aside --confirm 'set aside 3 entries of 1 users'

Proven: the entry existed and cannot be read. Expired or lost: it existed, and it may have left by \
retention before; what would say so may be lost too. Possible: it may have existed, nobody can know; its \
number is skipped, because a number must never be given out twice. \"At most\" is what fits into the bytes \
that are lost, mostly far more than there was.

Exit codes:
  0  nothing is damaged, or it was set aside
  1  something is lost, or was not set aside
  2  wrong usage, no data directory, or it cannot be looked at now")]
pub(super) struct SalvageArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Go on without what is lost
    #[arg(long, conflicts_with = "log")]
    set_aside: bool,
    /// The phrase that the listing prints
    #[arg(long, value_name = "PHRASE", requires = "set_aside")]
    confirm: Option<String>,
    /// Print the listing as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SalvageArgs) -> Result<(), Failure> {
    let listing = {
        let view = args.which.view(Access::Stopped)?;
        list(&view, args.which.log).map_err(refused)?
    };
    if !args.set_aside || listing.confirm.is_none() {
        match args.json {
            true => output::print(&serde_json::to_string(&listing)?)?,
            false => output::print(&text(&listing, &args.which.word()))?,
        }
        return match listing.sound {
            true => Ok(()),
            false => Err(Failure::Damaged),
        };
    }
    let phrase = match &args.confirm {
        Some(phrase) => phrase.clone(),
        None => ask(&listing, &args.which.word())?,
    };
    match set_aside(&args.which.data, phrase.trim()) {
        Ok(Some(done)) => output::print(&format!(
            "Set aside: {} entries of {} users. The damaged segments, the checkpoints and the list of \
             losses are kept in {}.\nNow check with `iris log verify --data {data}`, start the switch, \
             and tell your users. When everything is well, {} may be deleted.",
            done.listing.entries,
            done.listing.users,
            done.directory.display(),
            done.directory.display(),
            data = args.which.word(),
        )),
        Ok(None) => output::print("Nothing is lost; nothing was changed."),
        Err(SalvageError::Offline(error)) => Err(refused(error)),
        Err(error) => Err(Failure::told(error)),
    }
}

/// Lets a person type the phrase.
fn ask(listing: &Listing, data: &str) -> Result<String, Failure> {
    output::print(&text(listing, data))?;
    if !io::stdin().is_terminal() {
        return Err(Failure::told(
            "nobody is there to confirm; give the phrase that the listing prints with --confirm",
        ));
    }
    output::print("\nType the phrase to set this aside:")?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

/// For people.
fn text(listing: &Listing, data: &str) -> String {
    if listing.sound {
        return format!("{}: nothing is lost, and nothing is damaged", listing.data);
    }
    let mut text = format!(
        "{}: {} entries of {} users are lost\n",
        listing.data, listing.entries, listing.users
    );
    for log in &listing.logs {
        log_text(log, &mut text);
    }
    match &listing.confirm {
        Some(phrase) => {
            let _ = write!(
                text,
                "\nTo go on without them, copy {data} first, and then:\n  \
                 iris log salvage --data {data} --set-aside --confirm '{phrase}'\n\
                 Or restore a backup. Nothing was changed.\n"
            );
        }
        None if listing.entries > 0 || has_damaged_shards(listing) => text.push_str(
            "\nThis is one log; list all of them, without --log, to set aside what is lost. Nothing was \
             changed.\n",
        ),
        None => text.push_str(
            "\nNo inbox has lost anything, so there is nothing to set aside: start the switch, and its \
             next checkpoint leaves the damaged places behind. Nothing was changed.\n",
        ),
    }
    text.trim_end().to_owned()
}

fn has_damaged_shards(listing: &Listing) -> bool {
    let mut logs = listing.logs.iter();
    logs.any(|log| !log.shards_damaged.is_empty())
}

fn log_text(log: &LogListing, text: &mut String) {
    let is_sound = log.unusable.is_none()
        && log.shards_damaged.is_empty()
        && log.segments_damaged.is_empty()
        && log.losses.is_empty();
    if is_sound {
        return;
    }
    let _ = writeln!(text, "\nlog {}", log.log);
    if let Some(reason) = &log.unusable {
        let _ = writeln!(text, "  it cannot be used at all: {reason}");
    }
    for segment in &log.segments_damaged {
        let _ = writeln!(text, "  {segment} is damaged");
    }
    for shard in &log.shards_damaged {
        let _ = writeln!(
            text,
            "  shard {} is not served: {}",
            shard.shard, shard.reason
        );
    }
    for lost in &log.losses {
        let _ = writeln!(text, "  {}", loss(lost));
    }
    for unnamed in &log.unnamed {
        unnamed_text(unnamed, text);
    }
}

fn unnamed_text(unnamed: &Unnamed, text: &mut String) {
    let shard = unnamed.shard;
    for lost in &unnamed.devices {
        let _ = writeln!(
            text,
            "  proven: the registration of device {} of {} (shard {shard}); it is known again, from what \
             it acknowledged later",
            lost.device, lost.user
        );
    }
    if unnamed.registrations > 0 {
        let _ = writeln!(
            text,
            "  possible: at most {} registrations of devices (shard {shard}); these register again when \
             they log in",
            unnamed.registrations
        );
    }
    if unnamed.entries > 0 {
        let _ = writeln!(
            text,
            "  possible: at most {} entries of each user that nothing names any more (shard {shard}); \
             inboxes that are new begin behind so many",
            unnamed.entries
        );
    }
}

fn loss(lost: &Lost) -> String {
    let entries = match lost.first == lost.last {
        true => format!("entry {}", lost.first),
        false => format!("entries {} to {}", lost.first, lost.last),
    };
    let certainty = match lost.certainty {
        Certain::Proven => "proven",
        Certain::ExpiredOrLost => "expired or lost",
        Certain::Possible => "possible",
    };
    format!(
        "{certainty}: {entries} of {} (shard {})",
        lost.user, lost.shard
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(lost: Vec<Lost>, confirm: Option<&str>) -> Listing {
        Listing {
            data: "iris-data".to_owned(),
            sound: false,
            entries: lost.iter().map(|lost| lost.last - lost.first + 1).sum(),
            users: lost.len() as u64,
            confirm: confirm.map(str::to_owned),
            logs: vec![LogListing {
                log: 1,
                unusable: None,
                shards_damaged: Vec::new(),
                segments_damaged: vec!["log-01/0000000000000000.seg".to_owned()],
                checkpoints_damaged: Vec::new(),
                losses: lost,
                unnamed: Vec::new(),
            }],
        }
    }

    fn lost(user: &str, first: u64, last: u64, certainty: Certain) -> Lost {
        Lost {
            shard: 9,
            user: user.to_owned(),
            first,
            last,
            proven: certainty == Certain::Proven,
            certainty,
        }
    }

    #[test]
    fn every_loss_is_a_line_and_the_command_to_go_on_comes_last() {
        let losses = vec![
            lost("ben", 3, 3, Certain::Proven),
            lost("eve", 7, 9, Certain::Possible),
            lost("joe", 1, 2, Certain::ExpiredOrLost),
        ];
        let phrase = "set aside 6 entries of 3 users";
        let text = text(&listing(losses, Some(phrase)), "'my data'");
        for wanted in [
            "iris-data: 6 entries of 3 users are lost\n\nlog 1\n",
            "  log-01/0000000000000000.seg is damaged\n",
            "  proven: entry 3 of ben (shard 9)\n",
            "  possible: entries 7 to 9 of eve (shard 9)\n",
            "--data 'my data' --set-aside --confirm 'set aside 6 entries of 3 users'\n",
            "  expired or lost: entries 1 to 2 of joe (shard 9)\n",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }

    #[test]
    fn without_a_loss_or_with_one_log_no_command_is_offered() {
        let nothing = text(&listing(vec![], None), "d");
        assert!(nothing.contains("nothing to set aside"), "{nothing}");
        let one_log = text(
            &listing(vec![lost("ben", 3, 3, Certain::Proven)], None),
            "d",
        );
        assert!(one_log.contains("without --log"), "{one_log}");
        assert!(!(nothing + &one_log).contains("--confirm"));
    }
}
