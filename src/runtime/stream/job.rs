//! Disk work on the same ring: the log's writes with their syncs, and the reading-in of cold pages.
//!
//! One job is one linked chain, `WRITE → FSYNC → WRITE → FSYNC`: a link breaks at the first failure
//! or short write, and what follows is cancelled. So success means that everything happened, in
//! order.

use super::completion::{Kind, Tag};
use super::ring::Ring;
use super::{Event, JOB_WRITES_MAX, JOBS_MAX};
use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;

/// `MADV_POPULATE_READ` of Linux 5.14: fault the pages in, and say if that failed.
const MADV_POPULATE_READ: i32 = 22;

struct Job {
    /// The caller's number.
    number: u64,
    /// Entries that have not completed; 0 = the slot is free.
    left: u32,
    generation: u32,
    result: Result<(), i32>,
    buffers: Vec<Vec<u8>>,
}

#[derive(Default)]
pub(super) struct Jobs {
    jobs: Vec<Job>,
    free: Vec<u32>,
}

impl Jobs {
    fn insert(&mut self, number: u64, entries: u32, buffers: Vec<Vec<u8>>) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(self.jobs.len() < JOBS_MAX, "too many disk jobs under way");
            let (result, buffers) = (Ok(()), Vec::new());
            self.jobs.push(Job {
                number,
                left: 0,
                generation: 0,
                result,
                buffers,
            });
            (self.jobs.len() - 1) as u32
        });
        let job = &mut self.jobs[slot as usize];
        assert!(job.left == 0);
        let generation = job.generation.wrapping_add(1);
        *job = Job {
            number,
            left: entries,
            generation,
            result: Ok(()),
            buffers,
        };
        slot
    }

    fn tag(&self, kind: Kind, slot: u32, write: usize) -> u64 {
        let generation = self.jobs[slot as usize].generation;
        Tag {
            kind,
            slot: slot << 8 | write as u32,
            generation,
        }
        .pack()
    }

    /// See [`super::Sockets::write_and_sync`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn write_and_sync(
        &mut self,
        ring: &mut Ring,
        number: u64,
        writes: impl Iterator<Item = (RawFd, u64, Vec<u8>)>,
    ) {
        let mut places = [(-1, 0); JOB_WRITES_MAX];
        let mut buffers = Vec::with_capacity(JOB_WRITES_MAX);
        for (fd, offset, bytes) in writes {
            assert!(
                buffers.len() < JOB_WRITES_MAX,
                "a job has at most {JOB_WRITES_MAX} writes"
            );
            assert!(!bytes.is_empty() && u32::try_from(bytes.len()).is_ok());
            places[buffers.len()] = (fd, offset);
            buffers.push(bytes);
        }
        let count = buffers.len();
        assert!(count > 0, "a job writes something");
        let slot = self.insert(number, 2 * count as u32, buffers);
        let pair = |jobs: &Jobs, write: usize| {
            let (fd, offset) = places[write];
            let bytes = &jobs.jobs[slot as usize].buffers[write];
            let written = opcode::Write::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
                .offset(offset)
                .build()
                .user_data(jobs.tag(Kind::Write, slot, write))
                .flags(squeue::Flags::IO_LINK);
            let synced = opcode::Fsync::new(types::Fd(fd))
                .flags(types::FsyncFlags::DATASYNC)
                .build()
                .user_data(jobs.tag(Kind::Sync, slot, write));
            [written, synced]
        };
        let [write_0, sync_0] = pair(self, 0);
        // SAFETY: the buffers stay in the job, untouched, until its last entry has completed
        // (moving the job moves no bytes of theirs); the rest is promised by the caller.
        unsafe {
            if count == 1 {
                return ring.push_chain([write_0, sync_0]);
            }
            let [write_1, sync_1] = pair(self, 1);
            ring.push_chain([
                write_0,
                sync_0.flags(squeue::Flags::IO_LINK),
                write_1,
                sync_1,
            ]);
        }
    }

    /// See [`super::Sockets::populate`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn populate(
        &mut self,
        ring: &mut Ring,
        number: u64,
        addr: usize,
        len: usize,
    ) {
        assert!(len > 0 && u32::try_from(len).is_ok());
        let slot = self.insert(number, 1, Vec::new());
        let entry = opcode::Madvise::new(
            std::ptr::without_provenance(addr),
            len as libc::off_t,
            MADV_POPULATE_READ,
        )
        .build()
        .user_data(self.tag(Kind::Populate, slot, 0));
        // SAFETY: promised by the caller; nothing is written through the address.
        unsafe { ring.push(entry) };
    }

    /// Takes in one completion; the event, when it was the job's last.
    pub(super) fn complete(&mut self, tag: Tag, result: i32) -> Option<Event> {
        let (slot, write) = (tag.slot >> 8, (tag.slot & 0xff) as usize);
        let job = &mut self.jobs[slot as usize];
        assert!(
            job.left > 0 && job.generation == tag.generation,
            "a completion of no job"
        );
        job.left -= 1;
        let failure = match tag.kind {
            Kind::Write if result >= 0 && result as usize != job.buffers[write].len() => {
                Some(libc::EIO)
            }
            _ if result < 0 => Some(-result),
            _ => None,
        };
        // The entries behind a failure report that they were cancelled: keep the reason, not them.
        if let (Some(errno), Ok(()) | Err(libc::ECANCELED)) = (failure, job.result) {
            job.result = Err(errno);
        }
        if job.left > 0 {
            return None;
        }
        self.free.push(slot);
        Some(Event::Job {
            job: job.number,
            result: job.result,
            buffers: std::mem::take(&mut job.buffers),
        })
    }
}
