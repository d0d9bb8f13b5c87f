//! `iris top`: a running switch, live.
//!
//! ```text
//!   a thread asks /status every interval ─▶ looks ─▶ view (two looks) ─▶ frame (lines) ─▶ terminal
//!                                               keys ─▶ pause, order, end
//! ```
//!
//! What is shown is made of plain text by pure functions; the terminal is touched here alone. It is given
//! back as it was at every end: a key, a signal, a failure, a panic.

mod frame;
mod terminal;
mod view;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, Sender, after, bounded, select};

use super::admin::Target;
use super::{DATA_DEFAULT, Failure, output};
use crate::runtime::admin::{STATUS_PATH, Status};
use frame::{Line, Order, Shape};
use terminal::{Key, Terminal};
use view::View;

/// How often keys are looked for: the longest that a key press waits.
const KEYS_EVERY: Duration = Duration::from_millis(50);
/// Columns of `--once`.
const ONCE_COLUMNS: usize = 80;

#[derive(Debug, Args)]
#[command(long_about = "\
Watch a running switch: per core and together messages, accepts and deliveries a second, how long a sync \
and an accept take, how full the rings between cores are, sessions, what is refused and why, and which \
users are behind. Runs until q.

It asks over the socket DATA/admin.sock, as its user or as root; or, with --addr, over the admin port.

Columns: msg/s messages taken, acc/s accepted, dlv/s entries handed to sessions, sync/s syncs of the logs; \
sync50 and sync99 how long a sync took, acc50 and acc99 how long from a message to its Accepted (median and \
99th percentile of the last seconds); ring the most parcels from other cores that waited; sess sessions; \
shed what an overloaded core turns away.

Keys: q quit, p pause and go on, s order of the users (backlog, waiting).")]
#[command(after_long_help = "\
Examples:
  iris top
  iris top --data /var/lib/iris --interval 2s
  iris top --addr 127.0.0.1:9464 --token-file admin.token
  iris top --once                        one frame as plain text, for scripts

Exit codes:
  0  ended by a key
  1  no sensible answer, or standard output is no terminal; standard error says why
  2  wrong usage, or (with --once) no switch answers")]
pub(super) struct TopArgs {
    /// The data directory of the switch
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// Ask over this admin port instead
    #[arg(
        long,
        value_name = "HOST:PORT",
        requires = "token_file",
        conflicts_with = "data"
    )]
    addr: Option<SocketAddr>,
    /// The file with the admin port's token
    #[arg(long, value_name = "FILE", requires = "addr")]
    token_file: Option<PathBuf>,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print one frame as plain text, after one interval
    #[arg(long)]
    once: bool,
}

/// `2s`, `500ms`: at least a tenth of a second, a minute at most.
fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time between 100ms and 60s, such as 2s or 500ms");
    let ms = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(ms), _) => ms.parse().ok(),
        (None, Some(s)) => s.parse::<u64>().ok().and_then(|s| s.checked_mul(1_000)),
        (None, None) => None,
    };
    let ms = ms
        .filter(|ms| (100..=60_000).contains(ms))
        .ok_or_else(wrong)?;
    Ok(Duration::from_millis(ms))
}

pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    let target = match (&args.addr, &args.token_file) {
        (Some(addr), Some(file)) => Target::port(*addr, file)?,
        _ => Target::Socket(args.data.clone()),
    };
    if args.once {
        return once(&target, args.interval);
    }
    let mut terminal = Terminal::open()?;
    let shown = watch(&mut terminal, target, args.interval);
    drop(terminal);
    shown
}

fn look(target: &Target) -> Result<Status, Failure> {
    let (code, body) = target.get(STATUS_PATH)?;
    if code != 200 {
        return Err(target.no_sense(&body.trim()));
    }
    serde_json::from_str(&body).map_err(|error| target.no_sense(&error))
}

fn once(target: &Target, interval: Duration) -> Result<(), Failure> {
    let before = look(target)?;
    let _ = after(interval).recv(); // it always comes
    let now = look(target)?;
    let shape = Shape {
        columns: ONCE_COLUMNS,
        lines: None,
        order: Order::Backlog,
    };
    let lines = frame::frame(&View::of(Some(&before), &now), shape);
    let lines: Vec<&str> = lines.iter().map(|line| line.text.trim_end()).collect();
    output::print(lines.join("\n").trim_end())
}

/// Asks again and again until nobody wants to know any more.
fn ask(
    target: &Target,
    interval: Duration,
    looks: &Sender<Result<Status, Failure>>,
    stop: &Receiver<()>,
) {
    loop {
        if looks.send(look(target)).is_err() {
            return;
        }
        select! {
            recv(stop) -> _ => return,
            recv(after(interval)) -> _ => {}
        }
    }
}

/// What is on the screen, and what it is made of.
struct Screen {
    before: Option<Status>,
    last: Option<Result<Status, String>>,
    order: Order,
    paused: bool,
    interval: Duration,
}

fn watch(terminal: &mut Terminal, target: Target, interval: Duration) -> Result<(), Failure> {
    let (looks, looked) = bounded(1);
    let (_stop, stopped) = bounded(0); // its end is the sign
    std::thread::spawn(move || ask(&target, interval, &looks, &stopped));
    let mut screen = Screen {
        before: None,
        last: None,
        order: Order::Backlog,
        paused: false,
        interval,
    };
    loop {
        let mut changed = match terminal.key(KEYS_EVERY)? {
            Some(Key::Quit) => return Ok(()),
            Some(key) => {
                screen.take_key(key);
                true
            }
            None => false,
        };
        if let Ok(look) = looked.try_recv() {
            changed |= screen.take_look(look)?;
        }
        if changed {
            let (columns, lines) = terminal.size()?;
            terminal.draw(&screen.lines(columns, lines))?;
        }
    }
}

impl Screen {
    fn take_key(&mut self, key: Key) {
        match key {
            Key::Pause => self.paused = !self.paused,
            Key::Order => self.order = self.order.next(),
            Key::Quit | Key::Resized => {}
        }
    }

    /// Whether there is something new to show. A switch that is gone is told on the screen.
    fn take_look(&mut self, look: Result<Status, Failure>) -> Result<bool, Failure> {
        if self.paused {
            return Ok(false);
        }
        let look = match look {
            Ok(status) => Ok(status),
            Err(Failure::Told(why) | Failure::NotRunning(why)) => Err(why),
            Err(other) => return Err(other),
        };
        self.before = match self.last.take() {
            Some(Ok(status)) => Some(status),
            _ => None,
        };
        self.last = Some(look);
        Ok(true)
    }

    fn lines(&self, columns: usize, lines: usize) -> Vec<Line> {
        let shape = Shape {
            columns,
            lines: Some(lines.saturating_sub(1)),
            order: self.order,
        };
        let mut shown = match &self.last {
            Some(Ok(status)) => frame::frame(&View::of(self.before.as_ref(), status), shape),
            Some(Err(why)) => frame::silence(why, shape),
            None => Vec::new(),
        };
        shown.resize(lines.saturating_sub(1), Line::empty());
        if lines > 0 {
            shown.push(Line::foot(&self.foot(), columns));
        }
        shown
    }

    fn foot(&self) -> String {
        let state = if self.paused { "PAUSED" } else { "live" };
        let ms = self.interval.as_millis();
        format!("{state}, every {ms} ms   q quit   p pause   s order of users")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_a_unit_and_bounds() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        for bad in [
            "",
            "2",
            "s",
            "99ms",
            "61s",
            "-1s",
            "1h",
            "18446744073709551615s",
        ] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    fn screen() -> Screen {
        Screen {
            before: None,
            last: None,
            order: Order::Backlog,
            paused: false,
            interval: Duration::from_secs(1),
        }
    }

    /// R: E-2
    #[test]
    fn a_switch_that_is_gone_is_told_in_words_and_one_that_is_back_is_shown() {
        let mut screen = screen();
        let gone = Failure::NotRunning("no switch answers on x; start one".to_owned());
        assert_eq!(screen.take_look(Err(gone)), Ok(true));
        let lines = screen.lines(80, 24);
        assert_eq!(lines.len(), 24);
        assert!(lines[0].text.contains("does not answer"));
        assert!(lines[2].text.contains("start one"));
        assert_eq!(screen.take_look(Ok(view::tests::status(3))), Ok(true));
        assert!(screen.lines(80, 24)[0].text.contains("iris 1.2.3"));
    }

    #[test]
    fn a_pause_keeps_what_is_shown_and_the_order_still_changes() {
        let mut screen = screen();
        screen.take_look(Ok(view::tests::status(3))).unwrap();
        screen.take_key(Key::Pause);
        let before = screen.lines(80, 24);
        assert_eq!(screen.take_look(Ok(view::tests::status(9))), Ok(false));
        assert_eq!(screen.lines(80, 24), before);
        assert!(before[23].text.starts_with("PAUSED"));
        screen.take_key(Key::Order);
        assert_ne!(screen.lines(80, 24), before);
    }
}
