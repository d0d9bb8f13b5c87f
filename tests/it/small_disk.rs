//! A small ext4 file system in a file, to be filled up, or cut off in the middle of anything.
//!
//! It is mounted in a mount namespace of the test's own thread, which the switch and the threads
//! started from there inherit: nobody else sees it, and with the last of them it is gone, however
//! the test ends. Needs root, loop devices and `mkfs.ext4`; where one of them is refused, the test
//! says so on standard error and passes.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long the kernel may take to let go of files of a process that has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// `_IOR('X', 125, __u32)`: the file system refuses everything from now on.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;

/// What still reaches the disk when it is cut off.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// Everything that was written: the disk stops between two writes.
    FlushAll = 0,
    /// The journal, but no data.
    FlushJournal = 1,
    /// Nothing more: a power cut.
    Power = 2,
}

/// A mounted file system. Unmounted, and its loop device freed, when dropped.
pub struct SmallDisk {
    scratch: TempDir,
    mounted: bool,
}

impl SmallDisk {
    /// A new file system of `mib` MiB, mounted. None, and a line that says why, where that is not
    /// possible.
    pub fn make(mib: u64) -> Option<Self> {
        match Self::try_make(mib) {
            Ok(disk) => Some(disk),
            Err(why) => {
                // Past libtest's capture, so that it is seen when the test passes.
                let test = std::thread::current();
                let test = test.name().unwrap_or("a test").to_owned();
                let _ = writeln!(io::stderr(), "skipped: {test}: {why}");
                None
            }
        }
    }

    fn try_make(mib: u64) -> Result<Self, String> {
        own_namespace().map_err(|why| format!("no mount namespace of its own: {why}"))?;
        let scratch = tempfile::Builder::new().prefix("iris-disk-").tempdir();
        let mut disk = Self {
            scratch: scratch.map_err(|why| why.to_string())?,
            mounted: false,
        };
        fs::create_dir(disk.path()).map_err(|why| why.to_string())?;
        let image = File::create(disk.image()).map_err(|why| why.to_string())?;
        // Blocks now, so that a full disk of the machine is not taken for one of the switch.
        // SAFETY: a descriptor that `image` keeps open, and numbers.
        if unsafe { libc::fallocate(image.as_raw_fd(), 0, 0, (mib << 20) as libc::off_t) } != 0 {
            return Err(format!("no {mib} MiB: {}", io::Error::last_os_error()));
        }
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-E"]);
        mkfs.args(["nodiscard,lazy_itable_init=0,lazy_journal_init=0"]);
        run(mkfs.arg(disk.image()))?;
        disk.try_mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.scratch.path().join("image")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("mounted")
    }

    /// A directory on it, for a switch.
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    fn try_mount(&mut self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop"]);
        run(mount.arg(self.image()).arg(self.path()))?;
        self.mounted = true;
        Ok(())
    }

    /// Mounts it again, which replays its journal.
    pub fn mount(&mut self) {
        self.try_mount().unwrap();
    }

    /// Unmounts it, as soon as the kernel has let go of the files of processes that ended, and
    /// waits until the loop device is free.
    pub fn unmount(&mut self) {
        let path = c_path(&self.path());
        let deadline = Instant::now() + PATIENCE;
        // SAFETY: a path that ends with a zero, which the call only reads.
        while unsafe { libc::umount2(path.as_ptr(), 0) } != 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
            assert!(Instant::now() < deadline, "the file system stays in use");
            std::thread::yield_now();
        }
        self.mounted = false;
        while loop_devices().contains(&self.image()) {
            assert!(Instant::now() < deadline, "the loop device stays in use");
            std::thread::yield_now();
        }
    }

    /// From now on every write and every sync fails, until it is mounted again.
    pub fn cut_off(&self, cut: Cut) {
        let root = File::open(self.path()).unwrap();
        let flags = cut as u32;
        // SAFETY: the request reads one u32, which outlives the call.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &flags) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Takes all space that is left but for so many bytes: 0, to the last block.
    pub fn fill(&self, but: u64) {
        let path = self.filler();
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).open(path).unwrap();
        let mut piece: libc::off_t = 1 << 30;
        while piece >= 4096 {
            let from = file.metadata().unwrap().len() as libc::off_t;
            // SAFETY: a descriptor that `file` keeps open, and numbers.
            if unsafe { libc::fallocate(file.as_raw_fd(), 0, from, piece) } != 0 {
                piece /= 2;
            }
        }
        while file.write_all(&[1; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(but)).unwrap();
        let _ = file.sync_all(); // without a block left, even this may be refused
    }

    /// The file with which it is filled.
    pub fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.mounted {
            let path = c_path(&self.path());
            // Whoever still holds a file on it is ending; it goes with them.
            // SAFETY: as in `unmount`.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// Gives the calling thread a mount namespace of its own, from which nothing leaks.
fn own_namespace() -> io::Result<()> {
    // SAFETY: takes a number; the thread's view of the mounts becomes its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let (none, root) = (std::ptr::null(), c"/".as_ptr());
    // SAFETY: the path ends with a zero; a change of propagation reads nothing else.
    if unsafe { libc::mount(none, root, none, flags, none.cast()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|why| format!("{name}: {why}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}", text.trim().replace('\n', " ")))
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The files behind all loop devices.
fn loop_devices() -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").unwrap().map(Result::unwrap);
    let backing = devices.map(|device| device.path().join("loop/backing_file"));
    let files = backing.filter_map(|path| fs::read_to_string(path).ok());
    files.map(|text| PathBuf::from(text.trim_end())).collect()
}

/// The guard of every test that uses one.
#[test]
fn a_small_disk_leaves_no_mount_and_no_loop_device_even_after_a_panic() {
    let image = std::thread::spawn(|| {
        let disk = SmallDisk::make(16)?;
        let image = disk.image();
        assert!(loop_devices().contains(&image));
        File::create(disk.path().join("held")).unwrap();
        let failure = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = File::open(disk.path().join("held")).unwrap();
            std::panic::resume_unwind(Box::new("past the hook, which would print it"));
        }));
        failure.map_err(|_| image).err()
    });
    let Some(image) = image.join().unwrap() else {
        return;
    };
    let deadline = Instant::now() + PATIENCE;
    while loop_devices().contains(&image) {
        assert!(Instant::now() < deadline, "the loop device stays in use");
        std::thread::yield_now();
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("iris-disk-"), "{mounts}");
    assert!(!image.exists());
}
