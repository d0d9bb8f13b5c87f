//! One frame as lines of text: what fits, the most important first.

use super::view::{Quantiles, Row, View};
use crate::runtime::report::UserLine;

/// How a line is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    /// A heading.
    Head,
    /// Somebody must act.
    Bad,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub text: String,
    pub look: Look,
}

impl Line {
    pub fn empty() -> Self {
        line("", Look::Plain)
    }

    /// The last line: what can be done.
    pub fn foot(text: &str, columns: usize) -> Self {
        // The last cell stays free: some terminals scroll when it is written.
        let text: String = text.chars().take(columns.saturating_sub(1)).collect();
        line(text, Look::Head)
    }
}

/// What the users are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Backlog,
    Waiting,
}

impl Order {
    pub fn next(self) -> Self {
        match self {
            Self::Backlog => Self::Waiting,
            Self::Waiting => Self::Backlog,
        }
    }
}

/// How a frame is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub columns: usize,
    /// `None`: as many lines as there are.
    pub lines: Option<usize>,
    pub order: Order,
}

/// Widths of the columns of a core.
const CORE_COLUMNS: [(&str, usize); 12] = [
    ("core", 4),
    ("msg/s", 7),
    ("acc/s", 7),
    ("dlv/s", 7),
    ("sync/s", 7),
    ("sync50", 7),
    ("sync99", 7),
    ("acc50", 7),
    ("acc99", 7),
    ("ring", 5),
    ("sess", 6),
    ("shed", 5),
];
/// Lines of users that have room before cores are left out.
const USER_LINES_MIN: usize = 4;

fn line(text: impl Into<String>, look: Look) -> Line {
    let text = text.into();
    Line { text, look }
}

/// The frame of a switch that answered.
pub(super) fn frame(view: &View, shape: Shape) -> Vec<Line> {
    let mut top = Vec::new();
    top.push(line(&view.head, Look::Head));
    top.extend(
        view.complaints
            .iter()
            .map(|why| line(format!("! {why}"), Look::Bad)),
    );
    top.push(line("", Look::Plain));
    let mut bottom = refusals(view);
    bottom.push(line("", Look::Plain));
    bottom.extend(users(view, shape.order));
    let room = shape.lines.unwrap_or(usize::MAX);
    let rest = bottom.len().min(3 + USER_LINES_MIN);
    let room_for_cores = room.saturating_sub(top.len() + 2 + rest).max(1);
    top.push(line(heading(), Look::Head));
    let shown = if view.cores.len() > room_for_cores {
        room_for_cores.saturating_sub(1)
    } else {
        view.cores.len()
    };
    top.extend(view.cores[..shown].iter().map(core));
    if shown < view.cores.len() {
        let more = view.cores.len() - shown;
        top.push(line(format!("     and {more} more cores"), Look::Plain));
    }
    top.push(core(&view.all));
    top.extend(bottom);
    fit(top, shape)
}

/// The frame of a switch that did not answer.
pub(super) fn silence(why: &str, shape: Shape) -> Vec<Line> {
    let mut lines = vec![line("iris top: the switch does not answer", Look::Bad)];
    lines.push(line("", Look::Plain));
    let mut text = String::new();
    for word in why.split_whitespace() {
        if !text.is_empty() && text.len() + 1 + word.len() > shape.columns {
            lines.push(line(std::mem::take(&mut text), Look::Plain));
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(word);
    }
    lines.push(line(text, Look::Plain));
    lines.push(line("", Look::Plain));
    lines.push(line("It is asked again every interval.", Look::Plain));
    fit(lines, shape)
}

/// Cuts what does not fit, and what no terminal should be told.
fn fit(lines: Vec<Line>, shape: Shape) -> Vec<Line> {
    let shown = |letter: char| if letter.is_control() { '?' } else { letter };
    let cut = |line: Line| Line {
        text: line.text.chars().take(shape.columns).map(shown).collect(),
        look: line.look,
    };
    let room = shape.lines.unwrap_or(usize::MAX);
    lines.into_iter().take(room).map(cut).collect()
}

fn cells<const N: usize>(texts: [String; N]) -> String {
    let widths = CORE_COLUMNS.iter().map(|(_, width)| *width);
    let cells = texts.iter().zip(widths);
    let padded: Vec<String> = cells
        .map(|(text, width)| format!("{text:>width$}"))
        .collect();
    padded.concat()
}

fn heading() -> String {
    cells(CORE_COLUMNS.map(|(name, _)| name.to_owned()))
}

fn core(row: &Row) -> Line {
    let rate = |read: fn(&super::view::Rates) -> f64| {
        row.rates
            .as_ref()
            .map_or("-".to_owned(), |rates| number(read(rates)))
    };
    let time = |of: Option<Quantiles>, read: fn(Quantiles) -> u64| {
        of.map_or("-".to_owned(), |of| duration(read(of)))
    };
    let text = cells([
        row.core.map_or("all".to_owned(), |core| core.to_string()),
        rate(|rates| rates.messages),
        rate(|rates| rates.accepts),
        rate(|rates| rates.entries),
        rate(|rates| rates.commits),
        time(row.sync, |of| of.p50_us),
        time(row.sync, |of| of.p99_us),
        time(row.accept, |of| of.p50_us),
        time(row.accept, |of| of.p99_us),
        number(row.ring_parcels as f64),
        number(row.sessions as f64),
        shed(row.shed).to_owned(),
    ]);
    line(text, if row.shed > 0 { Look::Bad } else { Look::Plain })
}

fn shed(step: u64) -> &'static str {
    match step {
        0 => "no",
        1 => "sig",
        2 => "rcpt",
        3 => "conn",
        _ => "send",
    }
}

fn refusals(view: &View) -> Vec<Line> {
    let strangers = view.all.strangers;
    let mut lines = vec![line("", Look::Plain)];
    if view.refusals.is_empty() {
        lines.push(line(
            format!("refused: nothing; {strangers} connections have not logged in"),
            Look::Plain,
        ));
        return lines;
    }
    lines.push(line(
        "refused, by reason        a second    since start",
        Look::Head,
    ));
    lines.extend(view.refusals.iter().map(|refusal| {
        let rate = refusal.rate.map_or("-".to_owned(), number);
        let look = if refusal.rate.is_some_and(|rate| rate > 0.0) {
            Look::Bad
        } else {
            Look::Plain
        };
        let text = format!("{:<24}{rate:>10}{:>15}", refusal.reason, refusal.count);
        line(text, look)
    }));
    lines
}

fn users(view: &View, order: Order) -> Vec<Line> {
    let Some(inboxes) = &view.inboxes else {
        let text = "inboxes: the cores are looking at them";
        return vec![line(text, Look::Plain)];
    };
    let (list, by) = match order {
        Order::Backlog => (&inboxes.backlogged, "most unacknowledged first"),
        Order::Waiting => (&inboxes.slowest, "connected, longest waiting first"),
    };
    let text = format!(
        "inboxes: {} users, {} entries not acknowledged; {by}",
        inboxes.users, inboxes.pending
    );
    let mut lines = vec![line(text, Look::Head)];
    if list.is_empty() {
        lines.push(line("nobody", Look::Plain));
        return lines;
    }
    let heading = "user                       shard  sessions   pending    behind   waiting";
    lines.push(line(heading, Look::Head));
    lines.extend(list.iter().map(|user| line(user_line(user), Look::Plain)));
    lines
}

fn user_line(user: &UserLine) -> String {
    let mut name: String = user.user.chars().take(24).collect();
    if name.len() < user.user.len() {
        name.push('~');
    }
    let waiting = match user.waiting_ms {
        0 => "-".to_owned(),
        ms => format!(">{}s", ms / 1_000),
    };
    format!(
        "{name:<25}{:>7}{:>10}{:>10}{:>10}{waiting:>10}",
        user.shard, user.sessions, user.pending, user.behind
    )
}

/// A number in six letters at most.
fn number(value: f64) -> String {
    match value {
        value if value < 9.95 && value.fract() > 0.05 => format!("{value:.1}"),
        value if value < 99_999.5 => format!("{value:.0}"),
        value if value < 9_999_500.0 => format!("{:.0}k", value / 1e3),
        value => format!("{:.0}M", value / 1e6),
    }
}

/// A time in six letters at most.
fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..10_000 => format!("{:.1}ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{}ms", us / 1_000),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::status;
    use super::*;

    const SMALL: Shape = Shape {
        columns: 80,
        lines: Some(23),
        order: Order::Backlog,
    };

    fn text(lines: &[Line]) -> String {
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        texts.join("\n")
    }

    /// R: E-2
    #[test]
    fn a_frame_fits_a_terminal_of_80_by_24_and_shows_cores_refusals_and_users() {
        let view = View::of(Some(&status(10)), &status(12));
        let lines = frame(&view, SMALL);
        assert!(lines.len() <= 23, "{}", lines.len());
        assert!(lines.iter().all(|line| line.text.len() <= 80));
        let shown = text(&lines);
        for wanted in [
            "iris 1.2.3  ready",
            "core  msg/s",
            "   0   1000",
            " all   2000   2000",
            "900us   12ms",
            "send: inbox full",
            "2 users, 14 entries",
            "user-0",
        ] {
            assert!(shown.contains(wanted), "no {wanted:?} in\n{shown}");
        }
    }

    #[test]
    fn many_cores_leave_room_for_the_total_and_the_users() {
        let mut many = status(12);
        many.cores = (0..64)
            .map(|core| crate::runtime::report::CoreReport {
                core,
                ..many.cores[0].clone()
            })
            .collect();
        let lines = frame(&View::of(None, &many), SMALL);
        let shown = text(&lines);
        assert!(lines.len() <= 23 && shown.contains("more cores"), "{shown}");
        assert!(
            shown.contains("\n all ") && shown.contains("64 users"),
            "{shown}"
        );
    }

    #[test]
    fn a_tiny_terminal_is_no_reason_to_panic() {
        let view = View::of(Some(&status(10)), &status(12));
        for (columns, lines) in [(0, 0), (1, 1), (10, 3), (300, 5)] {
            let shape = Shape {
                columns,
                lines: Some(lines),
                order: Order::Waiting,
            };
            assert!(frame(&view, shape).len() <= lines);
            assert!(silence("no switch answers", shape).len() <= lines);
        }
    }

    #[test]
    fn what_comes_from_elsewhere_cannot_command_the_terminal() {
        let lines = fit(vec![line("a\u{1b}[2Jb", Look::Plain)], SMALL);
        assert_eq!(lines[0].text, "a?[2Jb");
    }

    #[test]
    fn numbers_and_times_take_six_letters_at_most() {
        let said = [0.0, 0.25, 9.0, 12.7, 99_999.0, 123_456.0, 12_345_678.0].map(number);
        assert_eq!(said, ["0", "0.2", "9", "13", "99999", "123k", "12M"]);
        let said = [0, 999, 1_000, 9_999, 10_000, 999_999, 1_000_000].map(duration);
        let wanted = ["0us", "999us", "1.0ms", "10.0ms", "10ms", "999ms", "1.0s"];
        assert_eq!(said, wanted);
    }
}
