//! Data directories and logs on real files, flushed with blocking calls.

mod logs;
mod lost_ends;
mod power_loss;
mod salvaged;
mod upkeep;

use std::fs;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;

const SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
const FORMAT: Format = Format {
    logs: 2,
    shards: 64,
    segment_bytes: SEGMENT_BYTES,
};

fn open(path: &Path) -> DataDir {
    DataDir::open(path, &FORMAT).unwrap_or_else(|error| panic!("{error}"))
}

/// A segment of log 1.
fn segment(path: &Path, index: u64) -> PathBuf {
    path.join(format!("log-01/{:016x}.seg", index * SEGMENT_BYTES))
}

/// Flips a bit of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

/// R: D-3. A process that starts another one shares its files with it for a moment.
#[test]
fn a_dropped_directory_can_be_opened_again_while_a_child_still_shares_its_lock_file() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let _shared = data_dir.held().lock.try_clone().unwrap();
    drop(data_dir);
    open(temp.path());
}

/// Not a test of its own: the other process of the test below.
#[test]
fn holder_of_a_lock_for_another_test() {
    let Ok(path) = std::env::var("IRIS_TEST_HOLD") else {
        return;
    };
    let data_dir = open(Path::new(&path));
    data_dir.publish_address("127.0.0.1:7447").unwrap();
    println!("\nheld");
    io::stdout().flush().unwrap();
    let _ = io::stdin().read_line(&mut String::new()); // until the other side closes it
}

/// R: D-3
#[test]
fn a_directory_held_by_another_process_is_refused_with_its_pid_and_address() {
    let temp = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "runtime::storage::tests::holder_of_a_lock_for_another_test",
        ])
        .args(["--nocapture", "--test-threads=1"])
        .env("IRIS_TEST_HOLD", temp.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap() == "held"),
        "the other process did not get the lock"
    );
    let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
    let text = error.to_string();
    let DataDirError::Locked { pid, address, .. } = error else {
        panic!("{text}")
    };
    assert_eq!(pid, child.id().to_string());
    assert_eq!(address, "127.0.0.1:7447");
    assert!(
        text.contains(&pid) && text.contains("stop that process"),
        "{text}"
    );
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(open(temp.path()).super_block().incarnation, 2);
}

/// R: D-3
#[test]
fn another_version_is_refused_by_name() {
    for version in [1, 9] {
        let temp = tempfile::tempdir().unwrap();
        let mut super_block = open(temp.path()).super_block().clone();
        super_block.format_version = version;
        fs::write(temp.path().join("SUPER.b"), super_block.encode()).unwrap();
        let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
        assert!(
            matches!(error, DataDirError::OtherVersion { found, .. } if found == version),
            "{error}"
        );
    }
}

/// R: D-3
#[test]
fn a_directory_that_is_not_ours_is_refused_and_untouched() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("thesis.txt"), "years of work").unwrap();
    let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
    assert!(matches!(&error, DataDirError::NotEmpty { found, .. } if found == "thesis.txt"));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    let file = temp.path().join("thesis.txt");
    let error = DataDir::open(&file, &FORMAT).unwrap_err();
    assert!(
        matches!(error, DataDirError::NotADirectory { .. }),
        "{error}"
    );
}

/// R: D-3
#[test]
fn logs_without_a_superblock_are_never_formatted_over() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    for name in ["SUPER.a", "SUPER.b"] {
        fs::remove_file(temp.path().join(name)).unwrap();
    }
    // Whatever else lies there, and in whatever order it is listed.
    for number in 0..32 {
        fs::write(temp.path().join(format!("other-{number}")), "").unwrap();
    }
    let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
    assert!(
        matches!(error, DataDirError::SuperMissing { .. }),
        "{error}"
    );
}

/// R: D-3
#[test]
fn one_corrupt_superblock_falls_back_to_the_other_and_two_are_an_error() {
    for corrupt in ["SUPER.a", "SUPER.b"] {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path()).super_block().clone();
        flip(&temp.path().join(corrupt), 40);
        let second = open(temp.path()).super_block().clone();
        assert!(
            second.incarnation > first.incarnation,
            "an incarnation was used twice"
        );
        assert_eq!(
            (second.hash_key, second.cluster_id),
            (first.hash_key, first.cluster_id)
        );
        assert_eq!(
            open(temp.path()).super_block().incarnation,
            second.incarnation + 1
        );
        flip(&temp.path().join("SUPER.a"), 40);
        flip(&temp.path().join("SUPER.b"), 40);
        let error = DataDir::open(temp.path(), &FORMAT).unwrap_err();
        assert!(
            matches!(error, DataDirError::SuperCorrupt { .. }),
            "{error}"
        );
    }
}

/// R: D-3
#[test]
fn the_shape_of_an_existing_directory_rules_and_an_impossible_one_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    let other = Format {
        logs: 7,
        shards: 8,
        segment_bytes: 2 * SEGMENT_BYTES,
    };
    let opened = DataDir::open(temp.path(), &other).unwrap();
    assert_eq!(
        (opened.super_block().logs, opened.super_block().shards),
        (2, 64)
    );
    assert_eq!(opened.super_block().segment_size.bytes(), SEGMENT_BYTES);
    let odd = Format {
        segment_bytes: 3 << 20,
        ..FORMAT
    };
    let error = DataDir::open(&temp.path().join("new"), &odd).unwrap_err();
    assert!(matches!(error, DataDirError::BadFormat { .. }), "{error}");
}

/// R: D-3
#[test]
fn a_directory_that_cannot_be_written_says_so() {
    let error = DataDir::open(Path::new("/sys/iris-data"), &FORMAT).unwrap_err();
    assert!(matches!(error, DataDirError::NotWritable { .. }), "{error}");
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o555)).unwrap();
    match DataDir::open(temp.path(), &FORMAT) {
        Err(error) => assert!(matches!(error, DataDirError::NotWritable { .. }), "{error}"),
        Ok(_) => eprintln!("skipped: this user (root) may write everywhere"),
    }
}

/// R: D-3
#[test]
fn a_log_whose_directory_is_gone_is_not_taken_for_a_new_one() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    fs::remove_dir_all(temp.path().join("log-00")).unwrap();
    let opened = DataDir::open(temp.path(), &FORMAT);
    assert!(matches!(opened, Err(DataDirError::LogMissing { .. })));
}

/// R: D-3. Whoever is refused meanwhile reads that the address is not known, and not that of another process.
#[test]
fn a_lock_that_was_just_taken_says_nothing_of_its_last_holder() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    fs::write(temp.path().join("LOCK"), "pid=1\naddr=192.0.2.1:7447\n").unwrap();
    for name in ["SUPER.a", "SUPER.b"] {
        fs::write(temp.path().join(name), "so that the start ends here").unwrap();
    }
    DataDir::open(temp.path(), &FORMAT).unwrap_err();
    assert_eq!(fs::read(temp.path().join("LOCK")).unwrap(), b"");
}

/// R: D-2
#[test]
fn what_is_noted_of_a_logs_end_stays_and_never_goes_back() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    data_dir.note_durable(1, 500).unwrap();
    data_dir.note_durable(0, 70).unwrap();
    data_dir.note_durable(1, 400).unwrap();
    drop(data_dir);
    assert_eq!(open(temp.path()).super_block().durable_lsn, [70, 500]);
}
