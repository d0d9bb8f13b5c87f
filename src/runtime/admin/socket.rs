//! The socket's file: made, found, removed.
//!
//! A Unix socket's path has 107 bytes at most, a data directory's may have more. A longer one is
//! reached through a descriptor of the directory (`/proc/self/fd/N/admin.sock`), by the switch and by
//! `iris status` alike; other programs must then do the same, or change into the directory.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::AdminError;

/// Its name in the data directory.
pub const NAME: &str = "admin.sock";
/// Bytes of a path in the kernel's `sockaddr_un`, without the final zero.
const PATH_BYTES_MAX: usize = 107;
/// Connections that the kernel holds while others are served. Full: the next one is refused or waits.
const BACKLOG: i32 = 32;
/// Only the switch's user may ask.
const MODE: u32 = 0o600;

/// Connects to the switch that serves `data`.
pub fn connect(data: &Path) -> io::Result<UnixStream> {
    let place = Place::of(data)?;
    UnixStream::connect(&place.path)
}

/// Listens in `data`, in place of whatever a killed process left.
pub(super) fn listen(data: &Path) -> Result<UnixListener, AdminError> {
    let path = data.join(NAME);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.file_type().is_socket() => remove(&path),
        Ok(_) => return Err(AdminError::NotASocket { path }),
        Err(_) => {} // not there; whatever else it is, binding will say it
    }
    let bound = Place::of(data).and_then(|place| bind(&place.path));
    bound.map_err(|source| AdminError::Socket { path, source })
}

/// Nobody can connect before `listen`, and by then the mode is set.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// The next connection; never, without a socket.
pub(super) async fn accept(
    listener: Option<&tokio::net::UnixListener>,
) -> io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Removes the socket's file. What cannot be removed is found and replaced by the next start.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "the admin socket cannot be removed");
    }
}

/// A path that fits, good for as long as this lives.
struct Place {
    path: PathBuf,
    _directory: Option<File>,
}

impl Place {
    fn of(data: &Path) -> io::Result<Self> {
        let path = data.join(NAME);
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self {
                path,
                _directory: None,
            });
        }
        let directory = File::open(data)?;
        Ok(Self {
            path: format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()).into(),
            _directory: Some(directory),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_made_for_its_owner_alone_and_replaces_a_stale_one() {
        let data = tempfile::tempdir().unwrap();
        drop(listen(data.path()).unwrap()); // leaves its file behind, as a killed process does
        assert!(connect(data.path()).is_err());
        let _listener = listen(data.path()).unwrap();
        connect(data.path()).unwrap();
        let mode = fs::metadata(data.path().join(NAME)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o7777, MODE);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join(NAME), "mine").unwrap();
        let refused = listen(data.path()).unwrap_err();
        assert!(matches!(refused, AdminError::NotASocket { .. }));
        assert_eq!(fs::read_to_string(data.path().join(NAME)).unwrap(), "mine");
    }

    #[test]
    fn a_directory_whose_path_is_longer_than_a_sockets_may_be_has_one_too() {
        let data = tempfile::tempdir().unwrap();
        let deep = data.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let _listener = listen(&deep).unwrap();
        connect(&deep).unwrap();
        remove(&deep.join(NAME));
        assert!(!deep.join(NAME).exists());
    }
}
