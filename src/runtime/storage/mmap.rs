//! Read-only maps of segment files: the only `unsafe` of the storage.
//!
//! **Invariant of [`SegmentMap`].** It is never written through, and a caller borrows only bytes
//! that nobody writes again: the log hands out positions below its durable end, and nothing below
//! that end is ever rewritten. While recovery reads, nothing is written at all. Other processes are
//! kept out by the data directory's lock; a file that an operator truncates under a running node
//! ends it by SIGBUS, which is a stop, not a wrong answer.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use memmap2::{Advice, Mmap, MmapOptions};

/// One segment file, mapped read-only and shared with the page cache: what is written to the file
/// is seen here.
#[derive(Debug)]
pub struct SegmentMap {
    map: Option<Mmap>,
}

impl SegmentMap {
    /// Maps the first `len` bytes of `file`; 0 maps nothing. The file must be that long.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only, and by the invariant above no byte changes while a slice of
        // it is borrowed. The file is a segment of a locked data directory and keeps its length:
        // nothing in this program shortens a segment that has been mapped. `map` alone owns the
        // mapping and ends it on drop; slices borrow from `self`, so none outlives it.
        let map = unsafe { MmapOptions::new().len(len).map(file)? };
        Ok(Self { map: Some(map) })
    }

    /// Expects a walk from front to back: the kernel reads far ahead. Advice only: what fails costs
    /// speed.
    pub fn read_sequentially(&self) {
        self.advise(Advice::Sequential);
    }

    /// Expects what the kernel expects by itself.
    pub fn read_normally(&self) {
        self.advise(Advice::Normal);
    }

    fn advise(&self, advice: Advice) {
        if let Some(map) = &self.map {
            let _ = map.advise(advice);
        }
    }

    /// All bytes. See the invariant for what may be borrowed when.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Address of the first byte, for the kernel only.
    pub fn address(&self) -> usize {
        self.bytes().as_ptr() as usize
    }
}

/// Lets the page cache forget a file, but for what it has not written back: the next read shows what
/// the disk has. Advice only.
pub fn drop_cache(file: &File) {
    // SAFETY: the call takes a descriptor, which `file` keeps open during it, and numbers; it touches
    // no memory of this process.
    let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Reserves `len` bytes of disk for `file`, so that a full disk is known before the first write.
pub fn reserve(file: &File, len: u64) -> io::Result<()> {
    let Ok(len) = libc::off_t::try_from(len) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    // SAFETY: the call takes a descriptor, which `file` keeps open during it, and numbers; it
    // touches no memory of this process.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A file system without it (some network and overlay ones): the writes will tell.
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}
