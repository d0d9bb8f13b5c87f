//! How far one device has everything, kept in a small file across runs of a program.
//!
//! The file is replaced as a whole (written beside, then renamed), so a reader sees the old or the new
//! one. It is not synced: a file that a power cut took or tore counts as absent, and then the switch's
//! own cursor is used, which is never ahead. So the worst is that entries come again.

use std::fs;
use std::hash::Hasher;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use iris_proto::id::{DeviceId, Seq, UserId};
use siphasher::sip::SipHasher13;

/// Bytes of a cursor file at most; a longer one is not ours.
const FILE_BYTES_MAX: u64 = 256;

/// The first line; another format gets another number.
const FORMAT: &str = "iris-cursor 1";

/// What a cursor file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) seq: Seq,
    /// The data that the position belongs to.
    pub(super) cluster: Option<[u8; 16]>,
}

/// The file of one address, user and device in a state directory.
pub(super) fn file_in(
    directory: &Path,
    addr: &str,
    user: &UserId,
    device: Option<&DeviceId>,
) -> PathBuf {
    let mut hasher = SipHasher13::new();
    hasher.write(addr.as_bytes());
    let device = device.map_or("-", DeviceId::as_str);
    let (user, device) = (file_name_of(user.as_str()), file_name_of(device));
    directory
        .join(format!("{:016x}", hasher.finish()))
        .join(format!("{user}@{device}.cursor"))
}

/// `text` with everything but letters, digits, `-` and `_` as `%` and two hex digits.
fn file_name_of(text: &str) -> String {
    let mut name = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

/// Reads a cursor; what is absent or not whole is `None`.
pub(super) fn load(path: &Path) -> io::Result<Option<Cursor>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    Ok(parse(&String::from_utf8_lossy(&fs::read(path)?)))
}

fn parse(text: &str) -> Option<Cursor> {
    let mut lines = text.lines();
    (lines.next()? == FORMAT).then_some(())?;
    let seq = Seq(lines.next()?.strip_prefix("seq=")?.parse().ok()?);
    let cluster = match lines.next()?.strip_prefix("cluster=")? {
        "" => None,
        hex => Some(u128::from_str_radix(hex, 16).ok()?.to_be_bytes()),
    };
    (lines.next()? == "end").then_some(Cursor { seq, cluster })
}

/// Replaces the file, and makes its directory (for this user only) when it is not there.
pub(super) fn store(path: &Path, cursor: Cursor) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let cluster = cursor.cluster.map_or_else(String::new, |cluster| {
        format!("{:032x}", u128::from_be_bytes(cluster))
    });
    let beside = path.with_extension(format!("cursor.{}", std::process::id()));
    let text = format!("{FORMAT}\nseq={}\ncluster={cluster}\nend\n", cursor.seq.0);
    fs::File::create(&beside)?.write_all(text.as_bytes())?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R: G-1
    #[test]
    fn cursor_survives_and_a_torn_file_counts_as_absent() {
        let directory = tempfile::tempdir().expect("a directory");
        let user = UserId::new("a/../b c%".replace(' ', "_").as_str()).expect("a user");
        let path = file_in(directory.path(), "host:1", &user, None);
        assert!(path.starts_with(directory.path()) && !path.to_string_lossy().contains(".."));
        assert_eq!(load(&path).expect("readable"), None);
        let cursor = Cursor {
            seq: Seq(77),
            cluster: Some([0x0f; 16]),
        };
        store(&path, cursor).expect("writable");
        assert_eq!(load(&path).expect("readable"), Some(cursor));
        let whole = fs::read(&path).expect("readable");
        for cut in 0..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).expect("writable");
            assert_eq!(load(&path).expect("readable"), None, "cut at {cut}");
        }
        let other = file_in(directory.path(), "host:2", &user, None);
        assert_ne!(other, path);
    }
}
