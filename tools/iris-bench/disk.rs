//! The bare disk: what group commit can hope for at most.
//!
//! One 16 KiB write into a pre-zeroed file, then fdatasync, one after another: what the log does for
//! one flush, without everything else.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::args::DiskArgs;
use crate::local;
use crate::run::instant;
use crate::stats::Latency;

/// Bytes of one write.
const WRITE_BYTES: usize = 16 * 1024;
/// Bytes of the file; writing starts over at its end.
const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes that the file is zeroed with, as the log does it: larger writes make larger pages in the
/// cache, of which one dirty byte writes the whole.
const ZERO_BYTES: usize = 4096;

/// What the disk does.
#[derive(Debug)]
pub struct Disk {
    latency: Latency,
    seconds: f64,
}

/// Removes the scratch file, however the measurement ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Measures the disk under `args.data`.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &DiskArgs) -> Result<Disk, String> {
    let path = args
        .data
        .join(format!("iris-bench-disk-{}.tmp", std::process::id()));
    measure(&path, args.duration).map_err(|error| {
        format!(
            "cannot measure the disk at {}: {error}; give --data DIR that exists, is writable and \
             has {} MiB free",
            args.data.display(),
            FILE_BYTES >> 20
        )
    })
}

fn measure(path: &Path, duration_s: f64) -> io::Result<Disk> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let _scratch = Scratch(path.to_owned());
    zero(&file)?;
    let mut latency = Latency::new();
    let block = vec![0xA5; WRITE_BYTES];
    let began = instant();
    let mut offset = 0;
    let seconds = loop {
        let start = instant();
        file.write_all_at(&block, offset)?;
        file.sync_data()?;
        latency.record(start.elapsed().as_nanos() as u64);
        offset = (offset + WRITE_BYTES as u64) % FILE_BYTES;
        let elapsed = began.elapsed().as_secs_f64();
        if elapsed >= duration_s {
            break elapsed;
        }
    };
    Ok(Disk { latency, seconds })
}

fn zero(file: &File) -> io::Result<()> {
    let zeros = [0; ZERO_BYTES];
    for offset in (0..FILE_BYTES).step_by(ZERO_BYTES) {
        file.write_all_at(&zeros, offset)?;
    }
    file.sync_all()
}

impl Disk {
    fn per_second(&self) -> f64 {
        self.latency.count() as f64 / self.seconds
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let micros = |quantile| self.latency.micros(quantile);
        format!(
            "{} KiB write + fdatasync, pre-zeroed file: {:.0}/s, p50 {:.0}, p90 {:.0}, p99 {:.0}, \
             p99.9 {:.0}, max {:.0} microseconds\n{}\n",
            WRITE_BYTES / 1024,
            self.per_second(),
            micros(0.5),
            micros(0.9),
            micros(0.99),
            micros(0.999),
            self.latency.max_micros(),
            local::machine(),
        )
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "write_bytes": WRITE_BYTES,
            "syncs_per_s": self.per_second(),
            "sync_us": {
                "p50": self.latency.micros(0.5),
                "p90": self.latency.micros(0.9),
                "p99": self.latency.micros(0.99),
                "p99.9": self.latency.micros(0.999),
                "max": self.latency.max_micros(),
            },
            "machine": local::machine(),
            "unix_time_s": local::unix_time_s(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_measured_and_the_scratch_file_removed() {
        let directory = tempfile::tempdir().unwrap();
        let args = DiskArgs {
            data: directory.path().to_owned(),
            duration: 0.01,
            json: None,
        };
        let disk = run(&args).unwrap();
        assert!(disk.per_second() > 0.0);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let args = DiskArgs {
            data: "/nonexistent/x".into(),
            duration: 0.01,
            json: None,
        };
        assert!(run(&args).unwrap_err().contains("/nonexistent/x"));
    }
}
