//! The list of revoked tokens on disk: `REVOKED` in the data directory (R: A-3).
//!
//! ```text
//!   list ─▶ REVOKED.tmp, synced ─▶ renamed to REVOKED ─▶ directory synced ─▶ done may be said
//! ```
//!
//! The file is replaced whole, so it is never torn: a crash leaves the list before or the list after, and
//! an unfinished one under its own name, which is nobody's. One that does not read back is damage, and
//! the switch does not start on it, since it would let in again whoever was thrown out. A directory that
//! was in use and has none is warned of: it may have been lost.
//!
//! Only ever touched by threads that are no core's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::auth::{ListFault, REVOCATIONS_BYTES_MAX, Revocations};

/// Name of the file.
pub const NAME: &str = "REVOKED";
const UNFINISHED: &str = "REVOKED.tmp";
/// Only the switch's user reads whom it has thrown out.
const MODE: u32 = 0o600;

/// Why the list cannot be used.
#[derive(Debug, Error)]
pub enum RevocationFileError {
    /// It is damaged.
    #[error(
        "the list of revoked tokens {path} is damaged ({fault}); nothing is done with it, since revoked \
         tokens would be taken again. Restore the file from a backup, or move it away, start the \
         switch, and revoke again what was revoked in the last 25 hours"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: ListFault,
    },
    /// It cannot be read.
    #[error("cannot read the list of revoked tokens {path}: {source}; check disk and permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The file of one data directory, whose lock is held by whoever has this.
#[derive(Clone, Debug)]
pub struct RevocationFile {
    directory: PathBuf,
}

impl RevocationFile {
    /// Reads the list of a data directory. `was_used`: it has been opened before this start.
    ///
    /// # Errors
    /// When the list is damaged or cannot be read. A list that is not there is no error.
    pub fn open(
        directory: &Path,
        was_used: bool,
    ) -> Result<(Self, Revocations), RevocationFileError> {
        let file = Self {
            directory: directory.to_owned(),
        };
        let path = directory.join(NAME);
        if let Some(list) = read(&path)? {
            return Ok((file, list));
        }
        if was_used {
            tracing::warn!(path = %path.display(), "this data directory was used before and has no list of revoked tokens; if tokens were revoked in the last 25 hours, restore it, or revoke them again");
        }
        let list = Revocations::default();
        if let Err(error) = file.write(&list) {
            tracing::warn!(path = %path.display(), %error, "an empty list of revoked tokens could not be written; revoking will fail until it can be");
        }
        Ok((file, list))
    }

    /// Replaces the list, durably. After an error the file is what it was, or, if only the last step
    /// failed, may be the new one.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self, list: &Revocations) -> io::Result<()> {
        let unfinished = self.directory.join(UNFINISHED);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(MODE);
        let mut file = options.open(&unfinished)?;
        file.write_all(list.encode().as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, self.directory.join(NAME))?;
        File::open(&self.directory)?.sync_all()
    }
}

/// The list in a file, if there is a file.
///
/// # Errors
/// As for [`RevocationFile::open`].
pub fn read(path: &Path) -> Result<Option<Revocations>, RevocationFileError> {
    let unreadable = |source| RevocationFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = Vec::new();
    let most = REVOCATIONS_BYTES_MAX as u64 + 1;
    file.take(most).read_to_end(&mut text).map_err(unreadable)?;
    let list = Revocations::decode(&text).map_err(|fault| RevocationFileError::Damaged {
        path: path.to_owned(),
        fault,
    })?;
    Ok(Some(list))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Revoke;

    fn one() -> Revocations {
        let jti = "one".to_owned();
        let revoke = Revoke::Token { jti };
        Revocations::default().with(&revoke, 1_000).unwrap()
    }

    /// R: A-3
    #[test]
    fn a_list_that_was_written_is_read_and_an_unfinished_one_is_nobodys() {
        let data = tempfile::tempdir().unwrap();
        let (file, list) = RevocationFile::open(data.path(), false).unwrap();
        assert!(list.is_empty());
        file.write(&one()).unwrap();
        fs::write(data.path().join(UNFINISHED), "iris revo").unwrap();
        let (file, list) = RevocationFile::open(data.path(), true).unwrap();
        assert_eq!(list, one());
        file.write(&Revocations::default()).unwrap();
        assert!(
            RevocationFile::open(data.path(), true)
                .unwrap()
                .1
                .is_empty()
        );
    }

    /// R: A-3
    #[test]
    fn a_damaged_list_is_refused_and_left_as_it_is() {
        let data = tempfile::tempdir().unwrap();
        let (file, _) = RevocationFile::open(data.path(), false).unwrap();
        file.write(&one()).unwrap();
        let path = data.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for damaged in [
                &whole[..at],
                &[&whole[..at], b"~", &whole[at + 1..]].concat(),
            ] {
                fs::write(&path, damaged).unwrap();
                let refused = RevocationFile::open(data.path(), true).unwrap_err();
                let text = refused.to_string();
                assert!(
                    text.contains("damaged") && text.contains("REVOKED"),
                    "{text}"
                );
                assert_eq!(fs::read(&path).unwrap(), damaged);
            }
        }
    }

    #[test]
    fn a_list_that_cannot_be_written_leaves_the_one_before() {
        let data = tempfile::tempdir().unwrap();
        let (file, _) = RevocationFile::open(data.path(), false).unwrap();
        file.write(&one()).unwrap();
        fs::create_dir(data.path().join(UNFINISHED)).unwrap(); // in the way
        file.write(&Revocations::default()).unwrap_err();
        assert_eq!(RevocationFile::open(data.path(), true).unwrap().1, one());
    }
}
