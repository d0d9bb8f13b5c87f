//! `iris send`: sends one message and waits until it is safe.

use std::io::Read;
use std::time::Duration;

use clap::Args;
use iris_proto::id::UserId;
use iris_proto::limits::BODY_BYTES_MAX;

use super::remote::{FAREWELL, RemoteArgs, block_on, user};
use super::{Failure, output};
use crate::client::Client;

#[derive(Debug, Args)]
#[command(long_about = "\
Send one message and wait until the switch has it on stable storage in the recipient's inbox. If the \
connection breaks meanwhile, it is sent again, and stored once.")]
#[command(after_long_help = "\
Examples:
  iris send --user alice --to bob hello there
  date | iris send --user alice --to bob
  iris send --user alice --to bob --addr chat.example.org:7447 --ca ca.pem --token @alice.jwt hi

Output:
  accepted ID        the message's id; with --json {\"id\":ID,\"to\":USER,\"n\":NUMBER}

Exit codes:
  0  accepted: it is on disk and will be delivered
  1  refused, or not known; standard error says which
  2  wrong usage")]
pub(crate) struct SendArgs {
    /// Who sends it
    #[arg(long, value_name = "USER", value_parser = user)]
    user: UserId,
    /// Who gets it
    #[arg(long, value_name = "USER", value_parser = user)]
    to: UserId,
    /// The message; several words are joined by spaces [default: what standard input has]
    #[arg(value_name = "TEXT")]
    text: Vec<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// How many seconds to go on trying
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(args: &SendArgs) -> Result<(), Failure> {
    let body = body(args)?;
    if body.len() > BODY_BYTES_MAX {
        return Err(Failure::Told(format!(
            "the message has more than {BODY_BYTES_MAX} bytes; send it in parts"
        )));
    }
    block_on(send(args, body))
}

fn body(args: &SendArgs) -> Result<Vec<u8>, Failure> {
    if !args.text.is_empty() {
        return Ok(args.text.join(" ").into_bytes());
    }
    let mut body = Vec::new();
    std::io::stdin()
        .lock()
        .take(BODY_BYTES_MAX as u64 + 1)
        .read_to_end(&mut body)?;
    Ok(body)
}

async fn send(args: &SendArgs, body: Vec<u8>) -> Result<(), Failure> {
    let mut options = args.remote.options(&args.user)?;
    options.send_only = true;
    options.patience = options.patience.min(Duration::from_secs(args.timeout));
    let client = Client::connect(options).await?;
    let answer = client.send(&args.to, body);
    let Ok(answer) = tokio::time::timeout(Duration::from_secs(args.timeout), answer).await else {
        return Err(Failure::Told(format!(
            "no answer within {} s; it may be stored or not, look before you send it again",
            args.timeout
        )));
    };
    let accepted = answer?;
    let id = uuid::Uuid::from_bytes(accepted.id.0);
    let printed = if args.json {
        let line = serde_json::json!({ "id": id.to_string(), "to": args.to.as_str(),
                                       "n": accepted.n.0 });
        output::print(&line.to_string())
    } else {
        output::print(&format!("accepted {id}"))
    };
    client.close(FAREWELL).await;
    printed
}
