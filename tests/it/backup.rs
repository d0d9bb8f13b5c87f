//! Copies of a data directory, also of a running switch's, and what is restored from them.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::harness::{Random, Server, data_dir, iris, seed};
use super::load::{Ended, RECIPIENTS, Reader, SENDERS, Sender, Watch};
use super::offline::{files, flip_bit, log, run_load, shard_of, small, small_and_busy, text};
use super::raw::{Hello, Raw};

fn backup(data: &Path, to: &Path) -> Output {
    let mut process = iris();
    process
        .arg("backup")
        .arg("--data")
        .arg(data)
        .arg("--to")
        .arg(to);
    process.output().unwrap()
}

fn restore(from: &Path, data: &Path) -> Output {
    let mut process = iris();
    process
        .arg("restore")
        .arg("--from")
        .arg(from)
        .arg("--data")
        .arg(data);
    process.output().unwrap()
}

/// R: D-6
#[test]
fn a_backup_taken_under_load_has_all_that_was_accepted_before_it_began() {
    const BYTES_MAX: usize = 4_000;
    let mut random = Random(seed());
    let (data, copies) = (data_dir(), data_dir());
    let server = Server::start_with(data.path(), &small(true));
    let cluster = Raw::login_with(&server, "ann", &Hello::default()).1.cluster;
    let mut senders: [Sender; SENDERS] = Default::default();
    let mut before = [[0; RECIPIENTS]; SENDERS];
    let mut accepted_before = 0;
    let last = copies.path().join("5");
    for round in 0..2 {
        let watch = Watch::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&mut senders)
                .map(|(me, sender)| {
                    let mut random = Random(random.below(u64::MAX));
                    let (server, watch) = (&server, &watch);
                    scope.spawn(move || sender.run(me, server, BYTES_MAX, watch, &mut random))
                })
                .collect();
            watch.until_accepted(1_500);
            for nth in 1..=5 * round {
                let accepted = watch.accepted.load(Ordering::SeqCst);
                let output = backup(data.path(), &copies.path().join(nth.to_string()));
                assert_eq!(output.status.code(), Some(0), "{}", text(&output));
                accepted_before = accepted;
                watch.until_accepted(accepted + 500);
            }
            watch.finish();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), Ended::Told);
            }
        });
        if round == 0 {
            before = std::array::from_fn(|me| senders[me].accepted);
        }
    }
    let accepted_before = accepted_before + before.iter().flatten().sum::<u64>();
    drop(server);

    let restored = data_dir();
    let output = restore(&last, &restored.path().join("data"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        !restored.path().join("data/dev").exists(),
        "no keys in a backup"
    );
    let server = Server::start_with(&restored.path().join("data"), &small(true));
    let mut there = 0;
    for to in 0..RECIPIENTS {
        let mut reader = Reader::default();
        let ended = reader.run(to, &server, BYTES_MAX, true, &mut random);
        assert_eq!(ended, Ended::Told);
        let known = before.iter().zip(&senders);
        for (me, (before, sender)) in known.enumerate() {
            let range = before[to]..=sender.sent[to];
            assert!(range.contains(&reader.last[me]), "sender {me} to {to}");
        }
        there += reader.seen.len() as u64;
    }
    println!("{accepted_before} accepted before the last backup began, {there} restored");
    assert!(there >= accepted_before);
    let (mut ann, welcome) = Raw::login_with(&server, "ann", &Hello::default());
    assert_ne!(welcome.cluster, cluster, "clients must notice");
    assert_eq!(welcome.cluster.len(), 16);
    ann.send_accepted("ben", 1, b"goes on");
    assert!(server.stop().success());
    let verified = log("verify", &restored.path().join("data"), &[]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified));
}

/// R: D-5, D-6. A backup verifies itself, so each one that ends is sound.
#[test]
fn backups_are_sound_while_segments_are_cleaned_and_removed_and_checkpoints_replaced() {
    let (data, copies) = (data_dir(), data_dir());
    run_load(data.path(), &small_and_busy(), 6_000, |server| {
        for nth in 0..10 {
            let output = backup(&server.data, &copies.path().join(nth.to_string()));
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        }
        server.kill_now();
    });
    let first = files(&data.path().join("log-00"))
        .into_keys()
        .next()
        .unwrap();
    println!("the first segment left is {}", first.display());
    let ends = |nth: &str| {
        let manifest = std::fs::read(copies.path().join(nth).join("MANIFEST")).unwrap();
        serde_json::from_slice::<Value>(&manifest).unwrap()["logs"].to_string()
    };
    assert_ne!(ends("0"), ends("9"), "the load went on");
}

/// R: D-6
#[test]
fn a_backup_that_is_not_whole_is_refused_and_so_is_a_target_that_holds_something() {
    let (data, copies) = (data_dir(), data_dir());
    let has = |names: &[PathBuf], part: &str| {
        names
            .iter()
            .any(|path| path.to_string_lossy().contains(part))
    };
    let mut names = Vec::new();
    while !has(&names, ".ckpt") {
        run_load(data.path(), &small(true), 1_500, Server::terminate); // a stop waits for no checkpoint
        names = files(data.path()).into_keys().collect();
    }
    let copy = copies.path().join("copy");
    let output = backup(data.path(), &copy);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let again = backup(data.path(), &copy);
    assert_eq!(again.status.code(), Some(1), "the target holds a backup");
    let full = restore(&copy, data.path());
    assert_eq!(full.status.code(), Some(1), "the target holds data");
    let names: Vec<PathBuf> = files(&copy).into_keys().collect();
    let is_copied = |part: &str| has(&names, part);
    assert!(is_copied(".seg") && is_copied(".ckpt") && is_copied("SUPER."));
    assert!(!is_copied("LOCK") && !is_copied("dev/") && !is_copied("admin.sock"));

    let new = copies.path().join("new");
    for path in names.iter().filter(|path| !path.ends_with("MANIFEST")) {
        let len = path.metadata().unwrap().len();
        flip_bit(path, len / 3);
        let refused = restore(&copy, &new);
        assert_eq!(refused.status.code(), Some(1), "{}", path.display());
        let line = text(&refused);
        assert!(line.contains(&path.display().to_string()), "{line}");
        assert!(!new.exists(), "nothing is made");
        flip_bit(path, len / 3);
    }
    std::fs::rename(copy.join("MANIFEST"), copies.path().join("MANIFEST")).unwrap();
    assert_eq!(restore(&copy, &new).status.code(), Some(2), "no backup");
    std::fs::rename(copies.path().join("MANIFEST"), copy.join("MANIFEST")).unwrap();
    assert_eq!(restore(&copy, &new).status.code(), Some(0));
    assert_eq!(log("verify", &new, &[]).status.code(), Some(0));

    // What is damaged cannot be backed up.
    let log_no = shard_of(data.path(), "recipient-0") % 2;
    let segments = files(&data.path().join(format!("log-{log_no:02}")));
    let segment = segments.into_keys().next().unwrap();
    (4_100..400_000)
        .step_by(50)
        .for_each(|offset| flip_bit(&segment, offset));
    let refused = backup(data.path(), &copies.path().join("damaged"));
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(!copies.path().join("damaged/MANIFEST").exists());
}
