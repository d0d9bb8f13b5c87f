//! Files that somebody else on this machine could read or change, and should not.
//!
//! Whoever reads an HS256 secret can be any user, whoever reads the certificate's key can be the switch;
//! whoever can write the configuration or a public key can let himself in. It is a warning and no
//! refusal: what a group is for, and whether `other` exists at all (a container), only the operator knows.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Any permission of group or others.
const NOT_MINE: u32 = 0o077;
/// Write permission of group or others.
const NOT_MINE_TO_WRITE: u32 = 0o022;

/// A file whose permissions are too loose for what is in it. Its text is one line: what, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    what: What,
    /// Its permission bits.
    mode: u32,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Nobody else may read it.
    PrivateKey,
    /// Nobody else may read it.
    Secret,
    /// Nobody else may read it.
    AdminToken,
    /// Nobody else may change it.
    Trusted,
}

impl Exposed {
    /// Looks at one file; one that cannot be looked at is somebody else's error.
    pub(super) fn look(path: &Path, what: What) -> Option<Self> {
        let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
        let forbidden = match what {
            What::PrivateKey | What::Secret | What::AdminToken => NOT_MINE,
            What::Trusted => NOT_MINE_TO_WRITE,
        };
        let path = path.to_owned();
        (mode & forbidden != 0).then_some(Self { path, what, mode })
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, mode) = (self.path.display(), self.mode);
        match self.what {
            What::PrivateKey | What::Secret | What::AdminToken => {
                let what = match self.what {
                    What::PrivateKey => "the certificate's private key",
                    What::AdminToken => "the token of the admin endpoint",
                    _ => "a secret that signs tokens",
                };
                write!(
                    f,
                    "{path} holds {what} and has mode {mode:04o}, so others than its owner may use it; run `chmod 600` on it"
                )
            }
            What::Trusted => write!(
                f,
                "{path} decides who is let in and has mode {mode:04o}, so others than its owner may change it; run `chmod go-w` on it"
            ),
        }
    }
}
