//! How much memory a call takes: an allocator that counts, per thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;

/// Bytes that a measured call may hold before the process is aborted, so that a bug is a short
/// report and not a machine without memory.
const HARD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// To be made a binary's global allocator.
pub struct Counting;

thread_local! {
    /// Bytes that this thread holds more than at the beginning of the measurement; below 0 when it
    /// let go of older ones.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn changed(by: isize) {
    // A thread that is ending has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + by);
        let _ = PEAK.try_with(|peak| {
            peak.set(peak.get().max(held.get()));
            if peak.get() > HARD_BYTES_MAX as isize {
                let _ = std::io::stderr().write_all(b"a call holds 256 MiB and more\n");
                std::process::abort();
            }
        });
    });
}

// SAFETY: every call is the system allocator's own; counting touches plain numbers of the thread,
// which are there from the start and never dropped, so it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        changed(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        changed(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Calls `f`; its result, and the most bytes that it held at a time.
pub fn measured<T>(f: impl FnOnce() -> T) -> (T, usize) {
    HELD.set(0);
    PEAK.set(0);
    let result = f();
    (result, PEAK.get() as usize)
}

/// Whether [`Counting`] is the allocator: without it every measurement would pass.
pub fn is_counting() -> bool {
    measured(|| std::hint::black_box(vec![1_u8; 1000])).1 == 1000
}
