//! Printing: results to standard output, complaints to standard error.
//!
//! Rust ignores SIGPIPE, so a print after the reader left returns `EPIPE`, and `println!` panics on it.
//! Results go through [`print()`], which turns it into [`Failure::ReaderGone`]: a quiet end.

use std::fmt::Display;
use std::io::{self, Write};

/// Why a command did not finish.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// One line for the user: what, why, what to do. Exit code 1.
    Told(String),
    /// One line, too, of a command that found no switch to ask. Exit code 2.
    NotRunning(String),
    /// The switch is not ready; the result, which is printed, says why. Exit code 1.
    NotReady,
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
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::Told(format!(
            "cannot write to standard output ({error}); check where it goes"
        )),
    })
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
