//! The private io_uring of one core: submission with a queue behind it, and batched reaping.
//!
//! Entries go to the submission ring, or behind it into `overflow` when it is full; order is kept,
//! and the entries of one linked chain enter the kernel together or not at all. Nothing here knows
//! what an operation means.
//!
//! `overflow` is bounded by construction: a socket has at most one receive, one send or connect,
//! and one cancellation under way, a listener two, and a job at most [`super::JOB_ENTRIES_MAX`]; so
//! it never holds more than three entries per socket, plus the jobs that the caller started.

use super::StartError;
use io_uring::{IoUring, cqueue, squeue, types};
use std::collections::VecDeque;
use std::time::Duration;

/// Completions copied out of the ring at a time (16 bytes each, on the stack). A guess: one page.
pub(super) const REAP_BATCH: usize = 128;

/// What the kernel said about one operation.
#[derive(Clone, Copy, Default)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completion {
    /// Whether the same operation will complete again.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that was used.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// An entry that waits for room; `chain` entries from here on must be submitted together.
struct Waiting {
    entry: squeue::Entry,
    chain: u16,
}

pub(super) struct Ring {
    uring: IoUring,
    overflow: VecDeque<Waiting>,
    /// Operations pushed whose last completion has not been reaped.
    in_flight: usize,
    /// System calls made.
    enters: u64,
}

impl Ring {
    pub(super) fn new(entries: u32, completions: u32) -> Result<Ring, StartError> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completions)
            .build(entries)
            .map_err(|source| StartError::Ring { source })?;
        assert!(
            uring.params().is_feature_nodrop(),
            "a kernel with DEFER_TASKRUN has NODROP"
        );
        Ok(Ring {
            uring,
            overflow: VecDeque::new(),
            in_flight: 0,
            enters: 0,
        })
    }

    /// Registers the ring of provided buffers as group 0.
    ///
    /// # Safety
    /// The memory at `address` holds `entries` ring entries and outlives the last operation.
    pub(super) unsafe fn register_buffers(
        &self,
        address: u64,
        entries: u16,
    ) -> Result<(), StartError> {
        // SAFETY: promised by the caller.
        unsafe {
            self.uring
                .submitter()
                .register_buf_ring_with_flags(address, entries, 0, 0)
        }
        .map_err(|source| StartError::BufferRing { source })
    }

    /// Queues one operation.
    ///
    /// # Safety
    /// What the entry points to stays valid, and is not touched by us if the kernel writes it,
    /// until its last completion (one without MORE) has been reaped.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: promised by the caller.
        unsafe { self.push_chain([entry]) }
    }

    /// Queues operations that are linked to each other: all but the last carry `IO_LINK`.
    ///
    /// # Safety
    /// As for [`Self::push`], for every entry.
    pub(super) unsafe fn push_chain<const N: usize>(&mut self, entries: [squeue::Entry; N]) {
        const { assert!(N <= super::JOB_ENTRIES_MAX) };
        self.in_flight += N;
        if self.overflow.is_empty() {
            // SAFETY: promised by the caller.
            if unsafe { self.uring.submission().push_multiple(&entries) }.is_ok() {
                return;
            }
        }
        let mut chain = N as u16;
        for entry in entries {
            self.overflow.push_back(Waiting { entry, chain });
            chain -= 1;
        }
    }

    /// Moves what waited into the submission ring, as far as there is room for whole chains.
    fn refill(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(first) = self.overflow.front() {
            let chain = usize::from(first.chain);
            if queue.capacity() - queue.len() < chain {
                return;
            }
            for waiting in self.overflow.drain(..chain) {
                // SAFETY: promised by whoever called `push`; there is room (checked above).
                let pushed = unsafe { queue.push(&waiting.entry) };
                assert!(pushed.is_ok(), "room for the chain was checked");
            }
        }
    }

    /// Submits what is queued and lets the kernel do what it put off; at most one system call, and
    /// none when there is nothing for it to do. With `wait`, blocks for one completion.
    pub(super) fn enter(&mut self, wait: bool) {
        if !self.overflow.is_empty() {
            self.refill();
        }
        let queue = self.uring.submission();
        let submit = queue.len() as u32;
        let needed = submit > 0 || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if !needed && !wait {
            return;
        }
        self.enters += 1;
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument structure is passed; the entries were vouched for when pushed.
        let entered = unsafe {
            self.uring
                .submitter()
                .enter::<libc::sigset_t>(submit, u32::from(wait), GETEVENTS, None)
        };
        if let Err(error) = entered {
            // Interrupted, short of memory, or completions to be reaped first: the next turn tries
            // again, what was not taken is still queued. Anything else is a bug of ours.
            let passing = matches!(
                error.raw_os_error(),
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
            );
            assert!(passing, "io_uring_enter refused our ring: {error}");
        }
    }

    /// Submits what is queued and blocks for one completion, `timeout` at the longest.
    pub(super) fn wait(&mut self, timeout: Duration) {
        self.refill();
        self.enters += 1;
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        if let Err(error) = self.uring.submitter().submit_with_args(1, &arguments) {
            let passing = matches!(
                error.raw_os_error(),
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
            );
            assert!(passing, "io_uring_enter refused our ring: {error}");
        }
    }

    /// Copies up to `limit` completions out; how many.
    pub(super) fn reap(&mut self, out: &mut [Completion; REAP_BATCH], limit: usize) -> usize {
        let mut count = 0;
        for (entry, slot) in self
            .uring
            .completion()
            .take(limit.min(REAP_BATCH))
            .zip(out.iter_mut())
        {
            *slot = Completion {
                user_data: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
            };
            count += 1;
            if !slot.more() {
                assert!(
                    self.in_flight > 0,
                    "a completion for an operation that was not started"
                );
                self.in_flight -= 1;
            }
        }
        count
    }

    /// Whether a turn would find something: entries to submit, completions, or put-off kernel work.
    pub(super) fn has_work(&mut self) -> bool {
        if !self.overflow.is_empty() || !self.uring.completion().is_empty() {
            return true;
        }
        let queue = self.uring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// System calls made so far.
    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    /// Whether no completion waits to be reaped.
    pub(super) fn is_empty(&mut self) -> bool {
        self.uring.completion().is_empty()
    }

    /// Operations whose last completion has not been reaped.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}
