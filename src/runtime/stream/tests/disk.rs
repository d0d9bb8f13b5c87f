//! Writes with their syncs, and pages read in, through the ring of the sockets.

use super::super::*;
use super::core::*;
use std::os::unix::fs::FileExt;

async fn job(core: &mut Core) -> (u64, Result<(), i32>, Vec<Vec<u8>>) {
    match core.next().await {
        Event::Job {
            job,
            result,
            buffers,
        } => (job, result, buffers),
        other => panic!("{other:?}"),
    }
}

/// R: D-1
#[test]
fn a_job_writes_in_order_and_gives_its_buffers_back() {
    run(async {
        let mut core = Core::small();
        let (one, two) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for number in 0..50_u64 {
            let first = stream(number as usize, 3000);
            let second = stream(number as usize, 200_000);
            let writes = [
                (one.as_raw_fd(), number * 100, first.clone()),
                (two.as_raw_fd(), number * 5, second.clone()),
            ];
            // SAFETY: both files stay open to the end of the test, and are not mapped.
            unsafe { core.sockets.write_and_sync(number, writes.into_iter()) };
            assert_eq!(
                job(&mut core).await,
                (number, Ok(()), vec![first, second.clone()])
            );
            let mut back = vec![0; second.len()];
            two.read_exact_at(&mut back, number * 5).unwrap();
            assert_eq!(back, second);
        }
        assert_eq!(one.metadata().unwrap().len(), 49 * 100 + 3000);
    });
}

/// R: D-4
#[test]
fn a_failed_write_fails_the_job_and_nothing_after_it_happens() {
    run(async {
        let mut core = Core::small();
        let file = tempfile::tempfile().unwrap();
        let read_only = std::fs::File::open("/proc/self/exe").unwrap();
        for (bad, errno) in [(-1, libc::EBADF), (read_only.as_raw_fd(), libc::EBADF)] {
            let writes = [(bad, 0, vec![1; 100]), (file.as_raw_fd(), 0, vec![2; 100])];
            // SAFETY: the file stays open and is not mapped; the others cannot be written.
            unsafe { core.sockets.write_and_sync(7, writes.into_iter()) };
            let (number, result, buffers) = job(&mut core).await;
            assert_eq!((number, result), (7, Err(errno)));
            assert_eq!(buffers, [vec![1; 100], vec![2; 100]]);
            assert_eq!(
                file.metadata().unwrap().len(),
                0,
                "the chain broke at its first link"
            );
        }
        // A sync that fails: sockets can be written, not synced.
        let (ours, _theirs) = pair();
        let writes = [(ours.as_raw_fd(), 0, vec![1; 100])];
        // SAFETY: the socket stays open.
        unsafe { core.sockets.write_and_sync(8, writes.into_iter()) };
        let (number, result, _) = job(&mut core).await;
        assert!(number == 8 && result.is_err(), "{result:?}");
    });
}

#[test]
fn a_short_write_is_an_error() {
    run(async {
        let mut core = Core::small();
        // A pipe of one page takes one page: the write comes back short, or waits for a reader.
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let writes = [(full.as_raw_fd(), 0, vec![1; 100])];
        // SAFETY: the device stays open.
        unsafe { core.sockets.write_and_sync(1, writes.into_iter()) };
        assert_eq!(job(&mut core).await.1, Err(libc::ENOSPC));
        let mut jobs = job::Jobs::default();
        let mut ring = Ring::new(8, 16).unwrap();
        let writes = [(full.as_raw_fd(), 0, vec![1; 100])];
        // SAFETY: the device stays open; nothing is submitted before the ring is dropped.
        unsafe { jobs.write_and_sync(&mut ring, 2, writes.into_iter()) };
        let tag = |kind| Tag {
            kind,
            slot: 0,
            generation: 1,
        };
        assert!(jobs.complete(tag(Kind::Write), 99).is_none());
        let event = jobs.complete(tag(Kind::Sync), -libc::ECANCELED);
        assert!(
            matches!(
                event,
                Some(Event::Job {
                    result: Err(libc::EIO),
                    ..
                })
            ),
            "{event:?}"
        );
    });
}

/// R: D-4
#[test]
fn a_job_that_does_not_fit_into_the_ring_is_not_torn() {
    run(async {
        let config = SocketsConfig {
            entries: 4,
            buffers: 4,
            buffer_bytes: 512,
        };
        let mut core = Core::new(config);
        let (good, kept) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for round in 0..10 {
            let fits = [(good.as_raw_fd(), 0, vec![1; 100])];
            let torn = [(-1, 0, vec![2; 100]), (kept.as_raw_fd(), 0, vec![3; 100])];
            // SAFETY: the files stay open and are not mapped.
            unsafe {
                core.sockets.write_and_sync(round, fits.into_iter());
                core.sockets.write_and_sync(100 + round, torn.into_iter());
            }
            for _ in 0..2 {
                let (number, result, _) = job(&mut core).await;
                assert_eq!(
                    result,
                    if number == round {
                        Ok(())
                    } else {
                        Err(libc::EBADF)
                    }
                );
            }
        }
        assert_eq!(
            kept.metadata().unwrap().len(),
            0,
            "the second write hangs on the first"
        );
    });
}

/// How many pages of a map are in memory.
fn resident(map: &memmap2::Mmap) -> usize {
    let mut pages = vec![0_u8; map.len().div_ceil(4096)];
    let start = map.as_ptr().cast_mut().cast();
    // SAFETY: the map has `len` bytes, and the vector a byte for each of its pages.
    assert_eq!(
        unsafe { libc::mincore(start, map.len(), pages.as_mut_ptr()) },
        0
    );
    pages.iter().filter(|page| **page & 1 == 1).count()
}

#[test]
fn populate_brings_a_mapped_range_into_memory() {
    const BYTES: usize = 1 << 20;
    run(async {
        let mut core = Core::small();
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&stream(0, BYTES), 0).unwrap();
        file.sync_all().unwrap();
        // SAFETY: advice about a file that nobody else uses.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        // SAFETY: the file is private to this test and does not change while it is mapped.
        let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
        // SAFETY: the map lives to the end of this block.
        unsafe { core.sockets.populate(3, map.as_ptr() as usize, BYTES) };
        assert_eq!(job(&mut core).await, (3, Ok(()), vec![]));
        assert_eq!(resident(&map), BYTES / 4096);
        assert_eq!(map[..], stream(0, BYTES));
        // SAFETY: page zero is never mapped, which is what the kernel will say; nothing is touched.
        unsafe { core.sockets.populate(4, 0, 4096) };
        assert_eq!(job(&mut core).await, (4, Err(libc::ENOMEM), vec![]));
    });
}
