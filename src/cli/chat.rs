//! `iris chat`: two people, line by line.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use iris_proto::id::UserId;
use iris_proto::limits::BODY_BYTES_MAX;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::recv::plain_gap;
use super::remote::{RemoteArgs, block_on, printable, state_dir, user};
use super::{Failure, output};
use crate::client::{Accepted, Arrival, Client, Entry, SendError, State};

/// Lines typed ahead of what the client takes. Full: the keyboard waits.
const LINES_AHEAD: usize = 16;
/// How long the end waits for the last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(long_about = "\
Talk with another user: each line you type is a message, each message that comes is a line. Messages \
of others are shown with their names. It reconnects by itself. Ctrl-D ends it when everything is sent.")]
#[command(after_long_help = "\
Examples:
  iris chat --user alice bob
  iris chat --user bob alice --addr chat.example.org:7447 --ca ca.pem --token @bob.jwt

Exit codes:
  0  ended by you
  1  failed; standard error says why
  2  wrong usage")]
pub(crate) struct ChatArgs {
    /// Who you are
    #[arg(long, value_name = "USER", value_parser = user)]
    user: UserId,
    /// Whom to talk with
    #[arg(value_name = "USER", value_parser = user)]
    with: UserId,
    /// Where to keep the cursor [default: $XDG_STATE_HOME/iris, else ~/.local/state/iris]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(args: &ChatArgs) -> Result<(), Failure> {
    block_on(chat(args))
}

async fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let mut options = args.remote.options(&args.user)?;
    options.state_dir = Some(state_dir(args.state.as_deref())?);
    let mut client = Client::connect(options).await?;
    output::complain(&format!("connected as {}; Ctrl-D ends", args.user));
    let mut answers = JoinSet::new();
    let talked = talk(args, &mut client, &mut answers).await;
    client.close(LAST_ANSWERS).await;
    while let Some(answer) = answers.join_next().await {
        complain_of(answer);
    }
    talked
}

type Answer = Result<Accepted, SendError>;

/// Until the keyboard ends or the client does.
async fn talk(
    args: &ChatArgs,
    client: &mut Client,
    answers: &mut JoinSet<Answer>,
) -> Result<(), Failure> {
    let mut lines = keyboard();
    let mut state = client.state();
    let sender = client.sender();
    loop {
        tokio::select! {
            arrival = client.next() => {
                let arrival = arrival?;
                let line = match &arrival {
                    Arrival::Entry(entry) => line(args, entry),
                    Arrival::Gap(gap) => plain_gap(*gap),
                };
                output::print(&line)?;
                client.ack(arrival.upto());
            }
            line = lines.recv() => match line {
                None => return Ok(()),
                Some(line) if line.is_empty() => {}
                Some(line) if line.len() > BODY_BYTES_MAX => {
                    output::complain(&format!("not sent: over {BODY_BYTES_MAX} bytes"));
                }
                Some(line) => {
                    let queued = sender.send_queued(&args.with, line).await?;
                    answers.spawn(queued.answer());
                }
            },
            Some(answer) = answers.join_next() => complain_of(answer),
            Ok(()) = state.changed() => match &*state.borrow_and_update() {
                State::Online(_) => output::complain("connected again"),
                State::Offline { error: Some(error) } => output::complain(&error.to_string()),
                State::Offline { error: None } => output::complain("connection lost, trying again"),
                State::Ended(_) => {} // `next` says so
            },
        }
    }
}

fn line(args: &ChatArgs, entry: &Entry) -> String {
    let text = printable(&String::from_utf8_lossy(&entry.body));
    if *entry.from == *args.with.as_str() {
        format!("{}: {text}", entry.from)
    } else {
        format!("({}): {text}", entry.from)
    }
}

fn complain_of(answer: Result<Answer, tokio::task::JoinError>) {
    if let Ok(Err(error)) = answer {
        output::complain(&format!("a message was not delivered: {error}"));
    }
}

/// Lines from standard input, read by a thread of its own: reading a terminal cannot be cancelled.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (typed, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match input.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            while matches!(line.last(), Some(b'\n' | b'\r')) {
                line.pop();
            }
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
