//! What the log costs: building frames, scanning them at start-up, and the bare disk under it.
//!
//! `cargo bench --bench log_append [-- DIRECTORY]`: the directory (default: the target directory's
//! file system) gets a temporary data directory. Every number is a median of rounds unless it says
//! otherwise; the disk's are per operation.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use iris::log::recovery::{Origin, scan};
use iris::log::{Flush, Writer, WriterStart};
use iris::log::{
    FrameBuilder, FrameKind, Placement, RecordHeader, RecordKind, SegmentSize, item_encode_into,
};
use iris::runtime::storage::{DataDir, Format, Mapped};
use iris::store::recover::Known;

const ROUNDS: usize = 21;
const ITEMS: usize = 1000;
const SCAN_BYTES: u64 = 512 * 1024 * 1024;
const SYNCS: usize = 3000;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // cargo passes `--bench`; what is no flag is the directory.
    let directory = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let directory = directory.map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let temp = tempfile::tempdir_in(&directory)?;
    build(128);
    build(1024);
    sync_rate(temp.path())?;
    let data = temp.path().join("data");
    let data_dir = DataDir::open(&data, &Format::default())?;
    let mut log = Bare::new(&data_dir, &data)?;
    commit_rate(&mut log)?;
    fill(&mut log)?;
    scan_rate(&data_dir, &data)?;
    Ok(())
}

/// A writer and its segments, made when they are wanted, with blocking calls.
struct Bare {
    writer: Writer,
    directory: PathBuf,
    size: SegmentSize,
    files: BTreeMap<u64, File>,
}

impl Bare {
    fn new(data_dir: &DataDir, data: &Path) -> Result<Self, Failure> {
        let super_block = data_dir.super_block();
        let writer = Writer::new(WriterStart {
            identity: data_dir.identity(0),
            incarnation: super_block.incarnation,
            size: super_block.segment_size,
            end: 0,
            prev_crc: 0,
            salt: None,
            unsealed: false,
            heads_max: 1,
        });
        Ok(Self {
            writer,
            directory: data.join("log-00"),
            size: super_block.segment_size,
            files: BTreeMap::new(),
        })
    }

    fn place(&mut self, frame: &mut FrameBuilder) -> Result<Flush, Failure> {
        while let Some(segment) = self.writer.wants_segment() {
            let name = format!("{:016x}.seg", self.size.first_lsn(segment));
            let file = File::create_new(self.directory.join(name))?;
            for at in (0..self.size.bytes()).step_by(4096) {
                file.write_all_at(&[0; 4096], at)?;
            }
            file.sync_all()?;
            self.files.insert(segment, file);
            self.writer.spare_ready(segment, segment + 1);
        }
        Ok(self.writer.place(frame, FrameKind::Data, &[])?)
    }

    fn flush(&mut self, flush: Flush) -> Result<(), Failure> {
        for write in flush.writes.into_iter().flatten() {
            let file = self
                .files
                .get(&write.segment)
                .ok_or("a segment that was not made")?;
            file.write_all_at(&write.bytes, write.offset)?;
            file.sync_data()?;
            self.writer.recycle(write.bytes);
        }
        self.writer.durable(flush.end);
        Ok(())
    }
}

fn record(items: u64) -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Entry,
        flags: 0,
        shard: 1,
        term: 1,
        index: 1,
        a: 0,
        b: items,
    }
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Items with their CRC into a payload, payloads into a frame, the frame sealed.
fn build(body: usize) {
    let message = vec![0x5a; body];
    let (mut builder, mut payload, mut out) = (FrameBuilder::new(), Vec::new(), Vec::new());
    let kind = FrameKind::Data;
    let placement = Placement {
        kind,
        lsn: 4096,
        synced_lsn: 0,
        salt: 1,
        prev_crc: 0,
    };
    let (mut item_times, mut frame_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        payload.clear();
        let started = Instant::now();
        let items = ITEMS.min(900 * 1024 / (body + 8));
        for _ in 0..items {
            item_encode_into(&mut payload, black_box(&message));
        }
        item_times.push(started.elapsed() / items as u32);
        let started = Instant::now();
        builder.record(record(items as u64), &payload);
        out.clear();
        black_box(builder.finish_into(&placement, &mut out));
        frame_times.push(started.elapsed());
        black_box(&out);
    }
    let (item, frame) = (median(item_times), median(frame_times));
    let rate = out.len() as f64 / frame.as_secs_f64() / 1e9;
    println!(
        "build {body} B: item {} ns; frame of {} B {:.1} us ({rate:.1} GB/s)",
        item.as_nanos(),
        out.len(),
        frame.as_secs_f64() * 1e6,
    );
    builder.record(record(1), &payload[..body + 8]);
    let started = Instant::now();
    for _ in 0..ITEMS {
        builder.clear();
        builder.record(record(1), black_box(&payload[..body + 8]));
        out.clear();
        black_box(builder.finish_into(&placement, &mut out));
    }
    println!(
        "build {body} B: frame of one item {} ns",
        started.elapsed().as_nanos() / ITEMS as u128
    );
}

fn report(name: &str, times: &Histogram<u64>, elapsed: Duration) {
    println!(
        "{name}: p50 {:.0} us, p99 {:.0} us, max {:.0} us, {:.0}/s",
        times.value_at_quantile(0.5) as f64 / 1e3,
        times.value_at_quantile(0.99) as f64 / 1e3,
        times.max() as f64 / 1e3,
        times.len() as f64 / elapsed.as_secs_f64(),
    );
}

/// The bare disk: 16 KiB into zeroed blocks, then fdatasync.
fn sync_rate(directory: &Path) -> Result<(), Failure> {
    let path = directory.join("zeroed");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    for page in 0..64 * 256 {
        file.write_all_at(&[0; 4096], page * 4096)?;
    }
    file.sync_all()?;
    let bytes = [0x5a; 16 * 1024];
    let mut times = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    for number in 0..SYNCS as u64 {
        let one = Instant::now();
        file.write_all_at(&bytes, number * bytes.len() as u64 % (64 << 20))?;
        file.sync_data()?;
        times.record(one.elapsed().as_nanos() as u64)?;
    }
    report(
        "disk: 16 KiB write into zeroed + fdatasync",
        &times,
        started.elapsed(),
    );
    Ok(())
}

/// The same through the log: frames of 16 KiB placed, written, synced.
fn commit_rate(log: &mut Bare) -> Result<(), Failure> {
    let mut frame = FrameBuilder::new();
    let mut payload = Vec::new();
    while payload.len() < 16 * 1024 - 200 {
        item_encode_into(&mut payload, &[0x5a; 150]);
    }
    let (mut places, mut commits) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    let started = Instant::now();
    for _ in 0..SYNCS {
        let one = Instant::now();
        frame.record(record(1), &payload);
        let flush = log.place(&mut frame)?;
        places.record(one.elapsed().as_nanos() as u64)?;
        log.flush(flush)?;
        commits.record(one.elapsed().as_nanos() as u64)?;
    }
    let elapsed = started.elapsed();
    report("log: record + place of 16 KiB", &places, elapsed);
    report("log: 16 KiB frame, written and synced", &commits, elapsed);
    Ok(())
}

/// Fills the log so that a scan has something to walk.
fn fill(log: &mut Bare) -> Result<(), Failure> {
    let mut payload = Vec::new();
    while payload.len() < 200 * 1024 {
        item_encode_into(&mut payload, &[0x5a; 150]);
    }
    let mut frame = FrameBuilder::new();
    let started = Instant::now();
    let from = log.writer.end();
    while log.writer.end() < SCAN_BYTES {
        frame.record(record(1), &payload);
        let flush = log.place(&mut frame)?;
        log.flush(flush)?;
    }
    let rate = (log.writer.end() - from) as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("log: filled with 200 KiB frames, zeroing ahead included: {rate:.0} MB/s");
    Ok(())
}

/// The pure scan, over mapped files and in memory.
fn scan_rate(data_dir: &DataDir, data: &Path) -> Result<(), Failure> {
    let size = data_dir.super_block().segment_size;
    let mut times = Vec::new();
    let mut end = 0;
    for _ in 0..5 {
        let started = Instant::now();
        let mapped = Mapped::open(data, 0, size, false)?;
        let tail = mapped.found(Known::default(), |found| {
            let origin = Origin {
                size,
                identity: data_dir.identity(0),
                lsn: 0,
                durable: 0,
                made: 0,
                prev_crc: 0,
            };
            scan(&origin, found.segments, &mut |seen| {
                black_box(seen);
            })
        });
        end = tail.map_err(|error| format!("{error:?}"))?.end;
        times.push(started.elapsed());
    }
    let time = median(times);
    let rate = end as f64 / time.as_secs_f64() / 1e9;
    println!(
        "map and scan: {} MB in {:.0} ms, {rate:.2} GB/s",
        end >> 20,
        time.as_secs_f64() * 1e3
    );
    let segment = std::fs::read(data.join("log-00/0000000000000000.seg"))?;
    let identity = data_dir.identity(0);
    let origin = Origin {
        size,
        identity,
        lsn: 0,
        durable: 0,
        made: 0,
        prev_crc: 0,
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let tail =
            scan(&origin, &[(0, &segment)], &mut |_| {}).map_err(|error| format!("{error:?}"))?;
        times.push(started.elapsed());
        black_box(tail);
    }
    let rate = segment.len() as f64 / median(times).as_secs_f64() / 1e9;
    println!("scan in memory: one segment, {rate:.2} GB/s");
    let mut zeros = segment.clone();
    zeros.fill(0); // present in memory, unlike fresh zeros
    let started = Instant::now();
    let tail = scan(&origin, &[(0, &zeros), (1, &zeros)], &mut |_| {})
        .map_err(|error| format!("{error:?}"))?;
    black_box(tail);
    let rate = 2.0 * zeros.len() as f64 / started.elapsed().as_secs_f64() / 1e9;
    println!("search for a proof: two segments of zeros, {rate:.2} GB/s");
    Ok(())
}
