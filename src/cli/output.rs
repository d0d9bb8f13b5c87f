//! Printing: results to standard output, complaints to standard error.
//!
//! Rust ignores SIGPIPE, so a print after the reader left returns `EPIPE`, and `println!` panics on it.
//! Results go through [`print()`], which turns it into [`Failure::ReaderGone`]: a quiet end.

use std::fmt::{Display, Write as _};
use std::io::{self, Write};

/// Why a command did not finish.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// One line for the user: what, why, what to do. Exit code 1.
    Told(String),
    /// One line, too, of a command that found no switch to ask. Exit code 2.
    NotRunning(String),
    /// One line, too, of a command that found nothing to look at. Exit code 2.
    Nothing(String),
    /// The switch is not ready; the result, which is printed, says why. Exit code 1.
    NotReady,
    /// Something is damaged; the result, which is printed, says what. Exit code 1.
    Damaged,
    /// Whoever read our output left: nothing to tell, exit code 0.
    ReaderGone,
}

impl Failure {
    /// A failure of this text.
    pub fn told(text: impl Display) -> Self {
        Self::Told(text.to_string())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::told(error)
    }
}

/// Prints a result and flushes it, so that a reader sees it now. A newline is added.
pub fn print(text: &str) -> Result<(), Failure> {
    write_to(&mut io::stdout().lock(), text)
}

fn write_to(to: &mut impl Write, text: &str) -> Result<(), Failure> {
    let written = writeln!(to, "{text}").and_then(|()| to.flush());
    written.map_err(not_written)
}

fn not_written(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::Told(format!(
            "cannot write to standard output ({error}); check where it goes"
        )),
    }
}

/// Prints many lines, flushed when it is full and at the end.
#[derive(Debug)]
pub struct Lines {
    to: io::BufWriter<io::StdoutLock<'static>>,
}

impl Lines {
    /// To standard output.
    #[must_use]
    pub fn new() -> Self {
        Self {
            to: io::BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        }
    }

    /// One line more.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.to, "{text}").map_err(not_written)
    }

    /// The end: what is buffered goes out.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.to.flush().map_err(not_written)
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

/// A row of a table.
pub(super) fn cells<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

/// Rows whose columns stand below each other.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for row in rows {
        let cells = row.iter().enumerate();
        let padded: Vec<String> = cells
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column)))
            .collect();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    }
    text
}

/// Prints one line on standard error.
pub fn complain(line: &str) {
    // With nobody to read it there is nothing more to do.
    let _ = writeln!(io::stderr().lock(), "iris: {}", one_line(line));
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `word` as a shell reads it back.
#[must_use]
pub fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,[]".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed(io::ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure_and_a_full_disk_is_one() {
        assert_eq!(
            write_to(&mut Closed(io::ErrorKind::BrokenPipe), "x"),
            Err(Failure::ReaderGone)
        );
        let full = write_to(&mut Closed(io::ErrorKind::StorageFull), "x");
        assert!(matches!(full, Err(Failure::Told(_))));
    }

    #[test]
    fn a_complaint_is_one_line() {
        assert_eq!(one_line("a\n  b\r\n\nc\n"), "a b c");
    }

    #[test]
    fn words_are_quoted_only_where_a_shell_would_split_them() {
        assert_eq!(shell_word("./iris-data"), "./iris-data");
        assert_eq!(shell_word("my data"), "'my data'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
