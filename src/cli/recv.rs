//! `iris recv`: prints a user's messages.
//!
//! A message is printed and flushed before it is acknowledged: whoever pulls the plug in between sees
//! it twice, never not at all.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use iris_proto::id::UserId;
use tokio::sync::watch;

use super::remote::{FAREWELL, RemoteArgs, block_on, printable, state_dir, user};
use super::{Failure, output};
use crate::client::{Arrival, Client, Entry, Gap, LinkError, State};

/// Sessions that the switch ends, with nothing new between them, before `recv` gives up: an entry that
/// cannot be read ends every session that comes to it.
const GOODBYES_MAX: u32 = 3;

#[derive(Debug, Args)]
#[command(long_about = "\
Print the messages of a user's inbox, oldest first, each once: what was printed is acknowledged and does \
not come again to this device. Without --count and --follow it prints what is there and ends.")]
#[command(after_long_help = "\
Examples:
  iris recv --user bob                    what is there
  iris recv --user bob --follow           what is there and what comes, until Ctrl-C
  iris recv --user bob --count 1 --json   the next one, waiting for it

Output, one line for each message:
  [SEQ] FROM: TEXT   control characters are written out, as \\n or \\u{1b}
  with --json        {\"seq\":1,\"from\":\"alice\",\"id\":\"0193…\",\"text\":\"hello\"}
                     and \"body_base64\" when the body is not UTF-8
and one line for messages that the switch does not have any more (--count does not count it):
  [3-5] lost: these messages were damaged on the switch and set aside
  [3-5] expired: these messages were removed by the rules of retention
  with --json        {\"gap\":{\"first\":3,\"last\":5,\"reason\":\"lost\"}}

Files:
  STATE/…/USER@DEVICE.cursor   how far this device has everything; without it the switch's own record
                               counts (STATE: $XDG_STATE_HOME/iris, else ~/.local/state/iris)

Exit codes:
  0  done, also when the reader of the output went away
  1  failed; standard error says why
  2  wrong usage")]
pub(crate) struct RecvArgs {
    /// Whose messages
    #[arg(long, value_name = "USER", value_parser = user)]
    user: UserId,
    /// End after so many messages, waiting for them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Go on with what comes
    #[arg(long)]
    follow: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Where to keep the cursor [default: $XDG_STATE_HOME/iris, else ~/.local/state/iris]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(args: &RecvArgs) -> Result<(), Failure> {
    block_on(receive(args))
}

async fn receive(args: &RecvArgs) -> Result<(), Failure> {
    let mut options = args.remote.options(&args.user)?;
    options.state_dir = Some(state_dir(args.state.as_deref())?);
    let mut client = Client::connect(options).await?;
    let received = print_entries(args, &mut client).await;
    client.close(FAREWELL).await;
    received
}

async fn print_entries(args: &RecvArgs, client: &mut Client) -> Result<(), Failure> {
    let welcomed = client.welcomed();
    let (head, mut at) = (welcomed.head, welcomed.cursor);
    let mut printed = 0;
    let mut state = client.state();
    loop {
        let done = match args.count {
            Some(count) => printed >= count,
            None => !args.follow && at >= head,
        };
        if done {
            return Ok(());
        }
        let arrival = tokio::select! {
            biased;
            arrival = client.next() => arrival?,
            error = turned_away(&mut state), if !args.follow => return Err(Failure::told(error)),
        };
        let line = match &arrival {
            Arrival::Entry(entry) if args.json => json(entry),
            Arrival::Entry(entry) => plain(entry),
            Arrival::Gap(gap) if args.json => json_gap(*gap),
            Arrival::Gap(gap) => plain_gap(*gap),
        };
        output::print(&line)?;
        at = arrival.upto();
        client.ack(at);
        printed += u64::from(matches!(arrival, Arrival::Entry(_)));
    }
}

/// Waits until there is no use in waiting: the switch has damaged data, or has ended [`GOODBYES_MAX`]
/// sessions one after the other, each before anything new came.
async fn turned_away(state: &mut watch::Receiver<State>) -> Arc<LinkError> {
    let mut goodbyes = 0;
    loop {
        if let State::Offline { error: Some(error) } = &*state.borrow_and_update()
            && matches!(**error, LinkError::Goodbye { .. })
        {
            goodbyes += 1;
            if error.is_hopeless() || goodbyes >= GOODBYES_MAX {
                return error.clone();
            }
        }
        if state.changed().await.is_err() {
            return std::future::pending().await; // the client is over: its inbox says why
        }
    }
}

/// What people read in the place of messages that are gone.
pub(super) fn plain_gap(gap: Gap) -> String {
    let (reason, why) = (gap.reason, gap.reason.describe());
    if gap.first == gap.last {
        return format!("[{}] {reason}: this message was {why}", gap.first.0);
    }
    let (first, last) = (gap.first.0, gap.last.0);
    format!("[{first}-{last}] {reason}: these messages were {why}")
}

fn json_gap(gap: Gap) -> String {
    serde_json::json!({ "gap": {
        "first": gap.first.0,
        "last": gap.last.0,
        "reason": gap.reason.word(),
    }})
    .to_string()
}

fn plain(entry: &Entry) -> String {
    let text = printable(&String::from_utf8_lossy(&entry.body));
    format!("[{}] {}: {text}", entry.seq.0, entry.from)
}

fn json(entry: &Entry) -> String {
    let mut object = serde_json::json!({
        "seq": entry.seq.0,
        "from": &*entry.from,
        "id": uuid::Uuid::from_bytes(entry.id.0).to_string(),
        "text": String::from_utf8_lossy(&entry.body),
    });
    if std::str::from_utf8(&entry.body).is_err() {
        object["body_base64"] = base64(&entry.body).into();
    }
    object.to_string()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use iris_proto::id::{MessageId, Seq};

    use super::*;
    use crate::client::GapReason;

    /// R: D-2
    #[test]
    fn lost_messages_are_a_line_of_their_own() {
        let mut gap = Gap {
            first: Seq(3),
            last: Seq(5),
            reason: GapReason::Lost,
        };
        assert_eq!(
            plain_gap(gap),
            "[3-5] lost: these messages were damaged on the switch and set aside"
        );
        let read: serde_json::Value = serde_json::from_str(&json_gap(gap)).unwrap();
        let lost = serde_json::json!({"gap": {"first": 3, "last": 5, "reason": "lost"}});
        assert_eq!(read, lost);
        gap.last = gap.first;
        assert_eq!(
            plain_gap(gap),
            "[3] lost: this message was damaged on the switch and set aside"
        );
        gap.reason = GapReason::Expired;
        assert_eq!(
            plain_gap(gap),
            "[3] expired: this message was removed by the rules of retention"
        );
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn json_has_the_body_itself_only_when_it_is_not_text() {
        let mut entry = Entry {
            seq: Seq(3),
            from: "alice".into(),
            from_device: "main".into(),
            id: MessageId([0x11; 16]),
            time_ms: 0,
            body: b"a\"b\n".to_vec(),
        };
        let line = json(&entry);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(read["text"], "a\"b\n");
        assert_eq!(read["id"], "11111111-1111-1111-1111-111111111111");
        assert_eq!(
            (read["seq"].as_u64(), read.get("body_base64")),
            (Some(3), None)
        );
        assert_eq!(plain(&entry), "[3] alice: a\"b\\n");
        entry.body = vec![0xff];
        let read: serde_json::Value = serde_json::from_str(&json(&entry)).unwrap();
        assert_eq!(read["body_base64"], "/w==");
    }
}
