//! Where the storage's writes and syncs can be recorded, for a test that rebuilds what a power cut leaves.
//!
//! In a program these are empty functions. In this crate's tests they tell a recorder, if one listens for
//! a directory above the path. A step is told before it is done; that a sync has returned, after.

use std::path::Path;

/// One step.
#[cfg_attr(not(test), expect(dead_code, reason = "only tests listen"))]
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    /// A directory was made.
    CreateDir,
    /// The file was made empty, or made so.
    Create,
    /// Bytes are written at an offset.
    Write(u64, &'a [u8]),
    /// The file has this length, and what it did not have before is zeros.
    Len(u64),
    /// A sync of the file begins.
    SyncBegins,
    /// It has returned.
    Synced,
    /// The file gets this name instead.
    Rename(&'a Path),
    /// The name goes.
    Unlink,
    /// A sync of the directory begins.
    SyncDirBegins,
    /// It has returned.
    DirSynced,
}

#[cfg(not(test))]
#[inline]
pub(super) fn note(_path: &Path, _step: Step<'_>) {}

#[cfg(test)]
pub(super) use listening::{listen, note};

#[cfg(test)]
mod listening {
    use std::path::{Path, PathBuf};

    use super::Step;

    type Listener = Box<dyn FnMut(&Path, Step<'_>) + Send>;

    #[expect(clippy::disallowed_types, reason = "only tests listen")]
    static LISTENERS: std::sync::Mutex<Vec<(PathBuf, Listener)>> =
        std::sync::Mutex::new(Vec::new());

    pub fn note(path: &Path, step: Step<'_>) {
        let mut listeners = LISTENERS.lock().unwrap();
        for (root, listener) in listeners.iter_mut() {
            if let Ok(below) = path.strip_prefix(root) {
                listener(below, step);
            }
        }
    }

    /// From now on `listener` hears of every step below `root`, until what is returned is dropped.
    pub fn listen(root: &Path, listener: Listener) -> Listening {
        LISTENERS.lock().unwrap().push((root.to_owned(), listener));
        Listening(root.to_owned())
    }

    pub struct Listening(PathBuf);

    impl Drop for Listening {
        fn drop(&mut self) {
            LISTENERS
                .lock()
                .unwrap()
                .retain(|(root, _)| *root != self.0);
        }
    }
}
