//! The terminal: taken, drawn on, and given back as it was.

use std::io::{self, IsTerminal, Stdout, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read};
use crossterm::style::{Attribute, Color, Print, SetAttribute, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{cursor, execute, queue};
use rustix::event::{PollFd, PollFlags, Timespec, poll as poll_files};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::frame::{Line, Look};
use crate::cli::Failure;

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Pause,
    Order,
    /// The terminal has another size.
    Resized,
}

/// The terminal, taken. Dropping it gives it back.
pub(super) struct Terminal {
    out: Stdout,
    ended: Arc<AtomicBool>,
}

impl Terminal {
    pub fn open() -> Result<Self, Failure> {
        let out = io::stdout();
        if !out.is_terminal() || !io::stdin().is_terminal() {
            return Err(Failure::told(
                "standard input and output are no terminal; use --once for plain text",
            ));
        }
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(failed)?;
        }
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back(); // first, so that the report can be read
            report(panic);
        }));
        enable_raw_mode().map_err(failed)?;
        let mut terminal = Self { out, ended };
        let taken = execute!(terminal.out, EnterAlternateScreen, cursor::Hide);
        taken.map_err(failed)?;
        Ok(terminal)
    }

    /// Columns and lines.
    pub fn size(&self) -> Result<(usize, usize), Failure> {
        let (columns, lines) = size().map_err(failed)?;
        Ok((usize::from(columns), usize::from(lines)))
    }

    /// What came within this time.
    pub fn key(&self, patience: Duration) -> Result<Option<Key>, Failure> {
        let has_gone = |patience| wait_for_input(patience) || self.ended.load(Ordering::Relaxed);
        if has_gone(Duration::ZERO) {
            return Ok(Some(Key::Quit));
        }
        // What was read before and not looked at comes first.
        if !poll(Duration::ZERO).map_err(failed)? {
            if has_gone(patience) {
                return Ok(Some(Key::Quit));
            }
            if !poll(Duration::ZERO).map_err(failed)? {
                return Ok(None);
            }
        }
        Ok(match read().map_err(failed)? {
            Event::Resize(..) => Some(Key::Resized),
            Event::Key(key) if key.kind == KeyEventKind::Release => None,
            Event::Key(key) => match key.code {
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    Some(Key::Quit)
                }
                KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
                KeyCode::Char('p' | ' ') => Some(Key::Pause),
                KeyCode::Char('s') => Some(Key::Order),
                _ => None,
            },
            _ => None,
        })
    }

    /// Shows these lines from the top, all at once where the terminal can.
    pub fn draw(&mut self, lines: &[Line]) -> Result<(), Failure> {
        self.draw_lines(lines).map_err(failed)
    }

    fn draw_lines(&mut self, lines: &[Line]) -> io::Result<()> {
        queue!(self.out, BeginSynchronizedUpdate)?;
        for (row, line) in (0..).zip(lines) {
            queue!(self.out, cursor::MoveTo(0, row))?;
            match line.look {
                Look::Plain => {}
                Look::Head => queue!(self.out, SetAttribute(Attribute::Bold))?,
                Look::Bad => queue!(self.out, SetForegroundColor(Color::Red))?,
            }
            queue!(
                self.out,
                Print(&line.text),
                SetAttribute(Attribute::Reset),
                SetForegroundColor(Color::Reset),
                Clear(ClearType::UntilNewLine)
            )?;
        }
        queue!(self.out, EndSynchronizedUpdate)?;
        self.out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// Waits until something was typed, a signal came, or this time is over. True: the terminal is gone. Waited
/// for here because the library, once it reads, reads a terminal that is gone for ever.
fn wait_for_input(patience: Duration) -> bool {
    let input = std::io::stdin();
    let mut input = [PollFd::new(&input, PollFlags::IN)];
    let patience = Timespec::try_from(patience).ok();
    let _ = poll_files(&mut input, patience.as_ref()); // interrupted: a signal came
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    input[0].revents().intersects(gone)
}

/// As it was. What cannot be undone cannot be told either.
fn give_back() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn failed(error: io::Error) -> Failure {
    Failure::told(format!(
        "the terminal cannot be used ({error}); use --once for plain text"
    ))
}
