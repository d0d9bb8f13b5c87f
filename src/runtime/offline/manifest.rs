//! What a backup consists of, and copying its files.
//!
//! `MANIFEST` is written last and durable before the backup says that it is done: a directory without it
//! is none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the manifest.
const NAME: &str = "MANIFEST";
/// Format of the manifest and of what it lists.
const FORMAT: u32 = 1;
/// Bytes of a manifest that are read at most: over a million files.
const BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Bytes of one read and write.
const COPY_BYTES: usize = 1024 * 1024;

/// Why a manifest or its files are no good.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is none.
    #[error("{path} has no MANIFEST: it is no backup, or one that did not end; make another")]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be read as one.
    #[error("{path} is no manifest of a backup ({reason}); use another backup")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file is not what was copied.
    #[error(
        "{path} is not what was backed up: {found} bytes with crc {found_crc}, not {bytes} with \
         {crc}; use another backup"
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        bytes: u64,
        /// CRC wanted.
        crc: String,
        /// Bytes found.
        found: u64,
        /// CRC found.
        found_crc: String,
    },
    /// The system refused something.
    #[error("cannot {action} {path}: {source}; check the disk and the permissions")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ManifestError {
    let path = path.to_owned();
    move |source| ManifestError::Io {
        action,
        path,
        source,
    }
}

/// A backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    /// Who made it.
    program: String,
    /// How far each log reaches.
    pub logs: Vec<LogPart>,
    /// Its files, but for itself.
    pub files: Vec<Listed>,
}

/// What a backup has of one log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPart {
    /// Its number.
    pub log: u32,
    /// Position behind its last frame.
    pub end: u64,
    /// Position of its newest checkpoint.
    pub checkpoint: Option<u64>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    /// Its path in the backup.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of its bytes, eight hexadecimal digits.
    pub crc32: String,
}

impl Manifest {
    pub fn new() -> Self {
        Self {
            format: FORMAT,
            program: concat!("iris ", env!("CARGO_PKG_VERSION")).to_owned(),
            logs: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|listed| listed.bytes).sum()
    }

    /// Writes it under another name, syncs it, gives it its name, syncs the directory.
    pub fn write(&self, directory: &Path) -> Result<(), ManifestError> {
        let path = directory.join(NAME);
        let unfinished = directory.join("MANIFEST.tmp");
        let write = || {
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            write_new(&unfinished, &text)?;
            fs::rename(&unfinished, &path)?;
            sync_directory(directory)
        };
        write().map_err(failed("write", &path))
    }

    /// Reads it, and every file that it names.
    pub fn read(directory: &Path) -> Result<Self, ManifestError> {
        let path = directory.join(NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = directory.to_owned();
                return Err(ManifestError::Missing { path });
            }
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let mut text = Vec::new();
        file.take(BYTES_MAX)
            .read_to_end(&mut text)
            .map_err(failed("read", &path))?;
        let unreadable = |reason: String| ManifestError::Unreadable {
            path: path.clone(),
            reason,
        };
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(unreadable(format!("its format is {}", manifest.format)));
        }
        for listed in &manifest.files {
            if !is_inside(&listed.file) {
                return Err(unreadable(format!("it names {:?}", listed.file)));
            }
            listed.check(directory)?;
        }
        Ok(manifest)
    }
}

impl Listed {
    fn check(&self, directory: &Path) -> Result<(), ManifestError> {
        let path = directory.join(&self.file);
        let file = File::open(&path).map_err(failed("open", &path))?;
        let mut sink = io::sink();
        let (found, found_crc) = copy(&file, &mut sink).map_err(failed("read", &path))?;
        if (found, &found_crc) == (self.bytes, &self.crc32) {
            return Ok(());
        }
        Err(ManifestError::Differs {
            path,
            bytes: self.bytes,
            crc: self.crc32.clone(),
            found,
            found_crc,
        })
    }
}

/// Whether a path stays inside its directory.
fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Copies a file from its beginning into a new one, and syncs that.
pub(super) fn copy_file(from: &File, to: &Path, name: String) -> Result<Listed, ManifestError> {
    let copied = create(to).and_then(|mut file| {
        let copied = copy(from, &mut file)?;
        file.sync_all()?;
        Ok(copied)
    });
    let (bytes, crc32) = copied.map_err(failed("copy to", to))?;
    Ok(Listed {
        file: name,
        bytes,
        crc32,
    })
}

/// Writes bytes, and zeros up to `len`, into a new file, and syncs it.
pub(super) fn write_padded(
    to: &Path,
    bytes: &[u8],
    len: u64,
    name: String,
) -> Result<Listed, ManifestError> {
    let write = || {
        let mut file = create(to)?;
        file.write_all(bytes)?;
        file.set_len(len)?; // zeros that take no room
        file.sync_all()
    };
    write().map_err(failed("write", to))?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(bytes);
    let zeros = vec![0; COPY_BYTES];
    let mut left = len.saturating_sub(bytes.len() as u64);
    while left > 0 {
        let now = left.min(COPY_BYTES as u64);
        crc.update(&zeros[..now as usize]);
        left -= now;
    }
    Ok(Listed {
        file: name,
        bytes: len,
        crc32: format!("{:08x}", crc.finalize()),
    })
}

/// Writes a new file and syncs it.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A new file that only its owner may read.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Copies from the beginning; bytes and CRC of what was copied.
fn copy(from: &File, to: &mut dyn Write) -> io::Result<(u64, String)> {
    use std::os::unix::fs::FileExt;
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let count = from.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok((offset, format!("{:08x}", crc.finalize())));
        }
        crc.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        offset += count as u64;
    }
}

/// Makes what was created in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_names_nothing_outside_of_its_directory() {
        assert!(is_inside("SUPER.a") && is_inside("log-00/0000000000000000.seg"));
        for path in ["", "/etc/passwd", "../x", "log-00/../../x", "./x"] {
            assert!(!is_inside(path), "{path:?}");
        }
    }

    /// R: D-6
    #[test]
    fn a_file_that_is_not_what_was_copied_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut manifest = Manifest::new();
        let listed = write_padded(
            &path.join("a"),
            b"hello",
            3 * COPY_BYTES as u64 + 1,
            "a".into(),
        );
        manifest.files.push(listed.unwrap());
        let from = File::open(path.join("a")).unwrap();
        let listed = copy_file(&from, &path.join("b"), "b".into()).unwrap();
        assert_eq!(listed.crc32, manifest.files[0].crc32);
        manifest.files.push(listed);
        assert!(matches!(
            Manifest::read(path),
            Err(ManifestError::Missing { .. })
        ));
        manifest.write(path).unwrap();
        assert_eq!(Manifest::read(path).unwrap().files, manifest.files);
        let mut bytes = fs::read(path.join("b")).unwrap();
        bytes[COPY_BYTES] ^= 1;
        fs::write(path.join("b"), &bytes).unwrap();
        let differs = Manifest::read(path);
        assert!(matches!(differs, Err(ManifestError::Differs { path, .. }) if path.ends_with("b")));
        fs::remove_file(path.join("b")).unwrap();
        assert!(matches!(
            Manifest::read(path),
            Err(ManifestError::Io { .. })
        ));
    }
}
