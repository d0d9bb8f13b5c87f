//! The receive buffers of one core: a pool that the kernel draws from when bytes arrive.
//!
//! An idle connection owns no buffer. The kernel takes one from this ring when a socket has bytes,
//! the caller reads it where it lies and gives it back.
//!
//! ```text
//!   kernel's  ──(completion names the buffer)──▶  held by the caller  ──(release)──▶  kernel's
//! ```
//!
//! Invariant: a buffer is in exactly one of these hands. `held[id] > 0` says that it is ours and
//! how many bytes arrived; only then is its memory touched, and only then can it be released.

use super::StartError;
use io_uring::types::BufRingEntry;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// One receive buffer, held by the caller. It cannot be copied: whoever has it must give it to
/// [`super::Sockets::release`], or the pool is one buffer smaller for good.
#[must_use = "an unreleased buffer is lost to the pool"]
#[derive(Debug, PartialEq, Eq)]
pub struct BufferId(pub(super) u16);

/// Pages from the kernel, unmapped on drop.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Result<Mapping, StartError> {
        assert!(bytes > 0);
        // SAFETY: an anonymous private mapping at an address that the kernel chooses touches
        // nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(StartError::Memory {
                bytes,
                source: std::io::Error::last_os_error(),
            });
        }
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            unreachable!("mmap without MAP_FIXED never maps page zero");
        };
        Ok(Mapping { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `new` mapped, and this is its only owner. The kernel is
        // done with it: `Sockets` drains its ring before its fields are dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The pool and the ring through which it is lent to the kernel.
pub(super) struct Buffers {
    ring: Mapping,
    memory: Mapping,
    count: u16,
    bytes: usize,
    /// Next position to publish in the ring; wraps, masked by `count - 1`.
    tail: u16,
    /// Bytes that arrived in each buffer; 0 = the kernel's.
    held: Box<[u32]>,
    held_count: u16,
}

impl Buffers {
    /// Maps the pool; nothing is lent until [`Self::lend_all`]. Pages cost memory once touched.
    pub(super) fn new(count: u16, bytes: usize) -> Result<Buffers, StartError> {
        assert!(count.is_power_of_two() && count <= super::BUFFERS_MAX);
        assert!(bytes > 0 && bytes <= super::BUFFER_BYTES_MAX);
        Ok(Buffers {
            ring: Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?,
            memory: Mapping::new(usize::from(count) * bytes)?,
            count,
            bytes,
            tail: 0,
            held: vec![0; usize::from(count)].into_boxed_slice(),
            held_count: 0,
        })
    }

    /// Where the ring lies and how many entries it has, for its registration.
    pub(super) fn ring(&self) -> (u64, u16) {
        (self.ring.start.as_ptr() as u64, self.count)
    }

    /// Lends every buffer to the kernel. Once, after registration.
    pub(super) fn lend_all(&mut self) {
        assert!(
            self.tail == 0 && self.held_count == 0,
            "the pool is lent once"
        );
        for id in 0..self.count {
            self.publish(id);
        }
    }

    /// Takes over a buffer that a completion named, with `bytes` in it.
    pub(super) fn take(&mut self, id: u16, bytes: u32) -> BufferId {
        assert!(
            bytes > 0 && bytes as usize <= self.bytes,
            "the kernel wrote past a buffer"
        );
        let held = &mut self.held[usize::from(id)];
        assert!(
            *held == 0,
            "the kernel used a buffer that it had not been lent"
        );
        *held = bytes;
        self.held_count += 1;
        BufferId(id)
    }

    /// Buffers that the kernel has at this moment, or has used without our having seen it yet.
    pub(super) fn available(&self) -> usize {
        usize::from(self.count - self.held_count)
    }

    /// The bytes that arrived.
    pub(super) fn data(&mut self, buffer: &BufferId) -> &mut [u8] {
        let bytes = self.held[usize::from(buffer.0)] as usize;
        assert!(bytes > 0, "this buffer belongs to another pool");
        // SAFETY: `held > 0` (checked above), so the kernel gave this buffer to us and will not
        // touch it before `publish`; `take` bounded `bytes` by the buffer's size, and the index is
        // below `count` because `held` has `count` elements. The borrow of `self` excludes others.
        unsafe {
            let start = self
                .memory
                .start
                .as_ptr()
                .add(usize::from(buffer.0) * self.bytes);
            std::slice::from_raw_parts_mut(start, bytes)
        }
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn release(&mut self, buffer: BufferId) {
        let held = &mut self.held[usize::from(buffer.0)];
        assert!(*held > 0, "this buffer belongs to another pool");
        *held = 0;
        self.held_count -= 1;
        self.publish(buffer.0);
    }

    /// Gives back a buffer that a completion named without bytes in it.
    pub(super) fn return_unused(&mut self, id: u16) {
        assert!(
            self.held[usize::from(id)] == 0,
            "the kernel used a buffer it had not been lent"
        );
        self.publish(id);
    }

    fn publish(&mut self, id: u16) {
        assert!(id < self.count);
        let slot = usize::from(self.tail & (self.count - 1));
        let entries = self.ring.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the mapping holds `count` entries and `slot < count`. Every buffer is in the ring
        // at most once (module invariant), so `tail - head < count` and the kernel has left this
        // slot; it will look at it again only after the Release store of the tail. The tail shares
        // its memory with a field of entry 0 that the kernel does not read, and that no setter
        // writes.
        unsafe {
            let entry = &mut *entries.add(slot);
            entry.set_addr(self.memory.start.as_ptr().add(usize::from(id) * self.bytes) as u64);
            entry.set_len(self.bytes as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
