//! Looking into a data directory, and setting damage aside: the commands as an operator uses them, on what
//! real switches wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use iris::placement::{HashKey, user_hash};
use iris::runtime::storage::{Access, DataView};
use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{GapReason, GoodbyeReason, RejectCode};
use serde_json::Value;

use super::harness::{Random, Server, Setup, data_dir, iris, seed};
use super::load::{Load, RECIPIENTS, Watch};
use super::raw::{Hello, Raw};

/// How long an acknowledgement waits for company.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// Segments of 2 MiB; with `checkpoints`, one for every MiB.
pub(super) fn small(checkpoints: bool) -> Setup {
    let mut environment = vec![
        ("IRIS_STORAGE__SEGMENT_BYTES", "2097152".to_owned()),
        ("IRIS_LIMITS__INBOX_ENTRIES", "1000000".to_owned()),
    ];
    if checkpoints {
        environment.push(("IRIS_STORAGE__CHECKPOINT_BYTES", "1048576".to_owned()));
    }
    Setup {
        environment,
        ..Setup::default()
    }
}

/// The same, and hardly any history: segments are cleaned and removed.
pub(super) fn small_and_busy() -> Setup {
    let mut setup = small(true);
    let retention = ("IRIS_STORAGE__RETENTION_ENTRIES", "50".to_owned());
    setup.environment.push(retention);
    setup
}

pub(super) fn log(command: &str, data: &Path, more: &[&str]) -> Output {
    let mut process = iris();
    process.args(["log", command]).arg("--data").arg(data);
    process.args(more).output().unwrap()
}

fn status(data: &Path) -> Output {
    let mut process = iris();
    process.arg("status").arg("--data").arg(data);
    process.output().unwrap()
}

pub(super) fn text(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    String::from_utf8_lossy(&output.stdout).into_owned() + &errors
}

/// Runs a command that prints one JSON object; its exit code too.
fn json(command: &str, data: &Path, more: &[&str]) -> (i32, Value) {
    let output = log(command, data, &[more, &["--json"]].concat());
    let value = serde_json::from_slice(&output.stdout);
    let value = value.unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    (output.status.code().unwrap(), value)
}

/// Every file below a directory: its bytes and when it was written last.
pub(super) fn files(directory: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            let written = path.metadata().unwrap().modified().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, (written, bytes));
        }
    }
    found
}

pub(super) fn flip_bit(path: &Path, offset: u64) {
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 4;
    file.write_all_at(&byte, offset).unwrap();
}

pub(super) fn shard_of(data: &Path, user: &str) -> u64 {
    let view = DataView::open(data, Access::MayRun).unwrap();
    let found = view.super_block();
    user_hash(HashKey(found.hash_key), user).0 % u64::from(found.shards)
}

/// The segment that holds a position of the log of this shard, and the offset in it.
fn place_of(data: &Path, shard: u64, lsn: u64) -> (PathBuf, u64) {
    let view = DataView::open(data, Access::MayRun).unwrap();
    let size = view.super_block().segment_size;
    let log = (shard % u64::from(view.super_block().logs)) as u32;
    let first = size.first_lsn(size.index_of(lsn));
    let path = view.segments(log).join(format!("{first:016x}.seg"));
    (path, lsn - first)
}

/// Bytes of an item before its body, for this recipient, sender and device.
fn before_body(to: &str, from: &str, device: &str) -> u64 {
    8 + 56 + (to.len() + from.len() + device.len()) as u64
}

/// Flips a bit in the body of an entry of a stopped switch.
fn rot(data: &Path, user: &str, lsn: u64) {
    let (path, offset) = place_of(data, shard_of(data, user), lsn);
    flip_bit(&path, offset + before_body(user, "ann", "phone") + 3);
}

fn bodies(user: &str, seqs: impl IntoIterator<Item = u64>) -> Vec<(u64, Vec<u8>)> {
    let body = |seq| (seq, format!("number {seq} for {user}").into_bytes());
    seqs.into_iter().map(body).collect()
}

/// Load until so many messages are accepted; then `end` says how the switch ends.
pub(super) fn run_load(data: &Path, setup: &Setup, messages: u64, end: impl FnOnce(&Server)) {
    let mut random = Random(seed());
    let server = Server::start_with(data, setup);
    let (watch, mut load) = (Watch::default(), Load::default());
    load.bytes_max = 4_000;
    load.run(&server, &watch, &mut random, || {
        watch.until_accepted(messages);
        end(&server);
    });
    assert!(load.accepted() >= messages);
}

/// R: D-2, D-3
#[test]
fn a_healthy_directory_is_sound_and_no_look_changes_a_byte_of_it() {
    let data = data_dir();
    run_load(data.path(), &small_and_busy(), 3_000, Server::kill_now);
    let before = files(data.path());
    let (code, verdict) = json("verify", data.path(), &[]);
    assert_eq!(
        (code, &verdict["sound"]),
        (0, &Value::Bool(true)),
        "{verdict}"
    );
    let logs = verdict["logs"].as_array().unwrap();
    assert_eq!(logs.len(), 2);
    assert!(logs.iter().any(|log| log["messages"].as_u64() > Some(0)));
    assert_eq!(log("verify", data.path(), &[]).status.code(), Some(0));
    let (code, stat) = json("stat", data.path(), &[]);
    assert_eq!(code, 0);
    let sum = |name: &str| -> u64 {
        let logs = stat["logs"].as_array().unwrap().iter();
        logs.map(|log| log[name].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("users"), RECIPIENTS as u64, "{stat}");
    assert!(sum("entries") > 0 && sum("frames") > 0 && sum("live_bytes") > 0);
    assert_eq!(stat["largest"].as_array().unwrap().len(), RECIPIENTS);
    for command in [&["dump"][..], &["dump", "--checkpoint"], &["salvage"]] {
        let output = log(command[0], data.path(), &command[1..]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    let again = files(data.path());
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        again.keys().collect::<Vec<_>>()
    );
    for (path, found) in &before {
        assert!(again[path] == *found, "{} was touched", path.display());
    }
}

/// R: D-3
#[test]
fn a_directory_in_use_is_refused_but_to_who_says_that_a_switch_runs() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &small(false));
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted("ben", 1, b"hello");
    for command in ["verify", "stat", "dump", "salvage"] {
        let output = log(command, data.path(), &[]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains(&server.pid().to_string()), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let (code, stat) = json("stat", data.path(), &["--running"]);
    assert_eq!(code, 0);
    assert_eq!(stat["largest"][0]["user"], "ben", "{stat}");
    let dumped = log("dump", data.path(), &["--running", "--user", "ben"]);
    assert!(text(&dumped).contains("append"), "{}", text(&dumped));
    for missing in [data.path().join("no"), data.path().join("dev")] {
        let output = log("verify", &missing, &[]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    }
    assert_eq!(
        log("dump", data.path(), &["--running", "--log", "9"])
            .status
            .code(),
        Some(2)
    );
}

/// R: D-1
#[test]
fn the_reader_written_from_the_format_page_alone_sees_the_same_in_every_byte() {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        println!("skipped: there is no python3 here");
        return;
    }
    let data = data_dir();
    run_load(data.path(), &small_and_busy(), 5_000, Server::kill_now);
    let second = |more: &[&str]| {
        let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/log_reader.py");
        let output = Command::new("python3")
            .arg(reader)
            .arg(data.path())
            .args(more)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut kinds = BTreeSet::new();
    for more in [
        &["--bodies"][..],
        &["--log", "1"],
        &["--user", "recipient-2"],
        &["--checkpoint"],
        &["--checkpoint", "--user", "recipient-3"],
    ] {
        let output = log("dump", data.path(), &[more, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let (ours, theirs) = (String::from_utf8(output.stdout).unwrap(), second(more));
        for (line, (one, other)) in (1..).zip(ours.lines().zip(theirs.lines())) {
            assert_eq!(one, other, "{more:?}, line {line}");
            let parsed: Value = serde_json::from_str(one).unwrap();
            kinds.insert(parsed["what"].as_str().unwrap().to_owned());
        }
        assert_eq!(ours.lines().count(), theirs.lines().count(), "{more:?}");
    }
    for wanted in [
        "segment",
        "frame",
        "record",
        "head",
        "append",
        "cursor",
        "trim",
        "checkpoint",
        "section",
        "user",
        "device",
        "inbox_entry",
    ] {
        assert!(kinds.contains(wanted), "no {wanted} among {kinds:?}");
    }
}

/// R: D-1. Where bytes are damaged the two readers name the same places.
#[test]
fn both_readers_name_the_same_bad_places() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3 here");
        return;
    }
    let mut random = Random(seed());
    let data = data_dir();
    run_load(data.path(), &small(true), 2_000, Server::kill_now);
    let view = DataView::open(data.path(), Access::MayRun).unwrap();
    let segments = [
        view.segment_files(0).unwrap(),
        view.segment_files(1).unwrap(),
    ]
    .concat();
    for (_, path) in &segments {
        for _ in 0..3 {
            flip_bit(path, random.below(512 * 1024));
        }
    }
    flip_bit(&segments[0].1, 30);
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/log_reader.py");
    let theirs = Command::new("python3")
        .arg(reader)
        .arg(data.path())
        .output()
        .unwrap();
    let ours = log("dump", data.path(), &["--json"]);
    let bad = |output: &Output| -> Vec<String> {
        let lines = String::from_utf8(output.stdout.clone()).unwrap();
        let bad = lines
            .lines()
            .filter(|line| line.contains(r#""what":"bad""#));
        bad.map(str::to_owned).collect()
    };
    assert!(!bad(&ours).is_empty());
    assert_eq!(bad(&ours), bad(&theirs));
    assert_eq!(ours.stdout, theirs.stdout);
}

/// Entries and gaps.
type Received = (Vec<(u64, Vec<u8>)>, Vec<(u64, u64)>);

/// What a device gets from its position on, until nothing more comes. What it has it acknowledges only
/// while the switch waits for that.
fn receive(server: &Server, user: &str) -> Received {
    let (mut client, welcome) = Raw::login_with(server, user, &Hello::default());
    let (mut entries, mut gaps, mut at) = (Vec::new(), Vec::new(), welcome.cursor);
    while at < welcome.head_seq {
        match client.try_next_within(ACK_DELAY).unwrap() {
            Some(ServerFrame::Entry(entry)) => {
                assert_eq!(entry.seq, at + 1, "dense");
                at = entry.seq;
                entries.push((entry.seq, entry.body));
            }
            Some(ServerFrame::Gap(gap)) => {
                assert_eq!((gap.first, gap.reason()), (at + 1, GapReason::Lost));
                at = gap.last;
                gaps.push((gap.first, gap.last));
            }
            Some(other) => panic!("{user}: {other:?}"),
            None => client.ack(at),
        }
    }
    assert_eq!(client.until_pong(), []);
    (entries, gaps)
}

/// Position of an entry's message, as a dump of the log says it.
fn logged_at(data: &Path, user: &str, seq: u64) -> u64 {
    let output = log("dump", data, &["--json", "--user", user]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut appends = lines.filter(|line| line["what"] == "append" && line["to"] == user);
    let found = appends.find(|line| line["seq"] == seq).unwrap();
    found["lsn"].as_u64().unwrap()
}

/// The only loss of a listing.
fn only_loss(listing: &Value) -> &Value {
    let logs = listing["logs"].as_array().unwrap();
    let losses: Vec<&Value> = logs
        .iter()
        .flat_map(|log| log["losses"].as_array().unwrap())
        .collect();
    assert_eq!(losses.len(), 1, "{listing}");
    losses[0]
}

fn assert_lost(listing: &Value, user: &str, seq: u64) {
    let lost = only_loss(listing);
    assert_eq!(lost["user"], user, "{listing}");
    assert_eq!(
        (&lost["first"], &lost["last"]),
        (&seq.into(), &seq.into()),
        "{listing}"
    );
    assert_eq!(lost["proven"], true, "{listing}");
    assert_eq!(listing["confirm"], "set aside 1 entries of 1 users");
}

/// Lists, is refused without the right words, and sets aside.
fn set_aside(data: &Path, user: &str, seq: u64) {
    let before = files(data);
    let (code, listing) = json("salvage", data, &[]);
    assert_eq!(code, 1);
    assert_lost(&listing, user, seq);
    let told = text(&log("salvage", data, &[]));
    assert!(
        told.contains(&format!("proven: entry {seq} of {user}")),
        "{told}"
    );
    assert!(
        told.contains("--confirm 'set aside 1 entries of 1 users'"),
        "{told}"
    );
    for wrong in ["yes", "set aside 2 entries of 1 users", ""] {
        let refused = log("salvage", data, &["--set-aside", "--confirm", wrong]);
        assert_eq!(refused.status.code(), Some(1), "{wrong}");
        assert!(
            text(&refused).contains("nothing was changed"),
            "{}",
            text(&refused)
        );
    }
    let nobody = log("salvage", data, &["--set-aside"]);
    assert_eq!(nobody.status.code(), Some(1), "nobody is at the terminal");
    assert!(files(data) == before, "something was changed");
    let right = "set aside 1 entries of 1 users";
    let done = log("salvage", data, &["--set-aside", "--confirm", right]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    let kept = files(&data.join("salvaged-1"));
    let kept: Vec<String> = kept.keys().map(|path| path.display().to_string()).collect();
    assert!(kept.iter().any(|path| path.ends_with(".seg")), "{kept:?}");
    assert!(
        kept.iter().any(|path| path.ends_with("losses.json")),
        "{kept:?}"
    );
    let verified = log("verify", data, &[]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified));
    let sound = log("salvage", data, &["--set-aside", "--confirm", right]);
    assert_eq!(sound.status.code(), Some(0), "what is sound is left alone");
    assert!(!data.join("salvaged-2").exists());
}

/// R: D-2
#[test]
fn a_rotten_message_stops_its_shard_alone_until_a_person_sets_it_aside_and_its_device_is_told() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &small(false));
    let mut ann = Raw::login(&server, "ann");
    let users: Vec<String> = (0..12).map(|nth| format!("user-{nth}")).collect();
    for seq in 1..=5 {
        for user in &users {
            let body = &bodies(user, [seq])[0].1;
            ann.send_accepted(user, seq, body);
        }
    }
    let shard = |user: &str| shard_of(data.path(), user);
    let victim = users
        .iter()
        .find(|user| shard(user) != shard("ann"))
        .unwrap();
    let (hurt, lsn) = (
        shard(victim),
        logged_at_after(server, data.path(), victim, 3),
    );
    rot(data.path(), victim, lsn);

    let (code, verdict) = json("verify", data.path(), &[]);
    assert_eq!(code, 1);
    let logs = verdict["logs"].as_array().unwrap();
    let damaged: Vec<u64> = logs
        .iter()
        .flat_map(|log| log["shards_damaged"].as_array().unwrap())
        .map(|one| one["shard"].as_u64().unwrap())
        .collect();
    assert_eq!(damaged, [hurt], "{verdict}");
    let told = text(&log("verify", data.path(), &[]));
    assert!(
        told.contains(&format!("shard {hurt} would not be served")),
        "{told}"
    );
    assert!(told.contains(".seg at byte"), "{told}");

    let server = Server::start_with(data.path(), &small(false));
    let told = complains(data.path());
    assert!(told.contains(&format!("shard {hurt} ")), "{told}");
    let identity = server.identity();
    let mut turned_away = Raw::connect(server.address, &identity);
    turned_away.hello(&identity.token(victim), &Hello::default());
    assert_eq!(turned_away.goodbye(), GoodbyeReason::Unavailable);
    for more in [&[][..], &["--count", "1"]] {
        let told = recv_fails(data.path(), victim, more);
        assert!(told.contains("the user's data is damaged"), "{told}");
    }
    let mut ann = Raw::login(&server, "ann");
    for user in &users {
        if shard(user) == hurt {
            ann.send(user, 6, b"refused");
            assert_eq!(ann.rejected().0, RejectCode::Unavailable);
        } else {
            ann.send_accepted(user, 6, &bodies(user, [6])[0].1);
            assert_eq!(receive(&server, user), (bodies(user, 1..=6), vec![]));
        }
    }
    assert!(server.stop().success());

    set_aside(data.path(), victim, 3);
    let server = Server::start_with(data.path(), &small(false));
    let status = status(data.path());
    assert_eq!(status.status.code(), Some(0), "{}", text(&status));
    for user in &users {
        let last = if shard(user) == hurt { 5 } else { 6 };
        let (entries, gaps) = receive(&server, user);
        if user == victim {
            assert_eq!(gaps, [(3, 3)]);
            assert_eq!(entries, bodies(user, [1, 2, 4, 5]));
        } else {
            assert_eq!((entries, gaps), (bodies(user, 1..=last), vec![]), "{user}");
        }
    }
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted(victim, 6, &bodies(victim, [6])[0].1);
}

/// Stops the switch, and looks.
fn logged_at_after(server: Server, data: &Path, user: &str, seq: u64) -> u64 {
    server.kill();
    logged_at(data, user, seq)
}

/// What `iris recv` says of an inbox that it cannot have.
fn recv_fails(data: &Path, user: &str, more: &[&str]) -> String {
    let state = data_dir();
    let mut recv = iris();
    recv.args(["recv", "--user", user, "--state"]);
    recv.arg(state.path()).arg("--data").arg(data).args(more);
    let output = recv.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(told.lines().count(), 1, "{told}");
    told
}

/// Messages that [`fill_old_segments`] sends to ben.
const MESSAGES: u64 = 5_000;

/// The body of one of them.
fn long_body(seq: u64) -> Vec<u8> {
    let mut body = bodies("ben", [seq]).remove(0).1;
    body.resize(1_200, b'.');
    body
}

/// Fills segments, stops the switch, and says where a message lies of one that no start reads.
fn fill_old_segments(data: &Path, seq: u64) -> u64 {
    let server = Server::start_with(data, &small(true));
    let mut ann = Raw::login(&server, "ann");
    for first in (1..=MESSAGES).step_by(500) {
        for n in first..first + 500 {
            ann.send("ben", n, &long_body(n));
        }
        for n in first..first + 500 {
            assert_eq!(ann.accepted().n, n);
        }
    }
    assert!(server.stop().success());
    let log_no = (shard_of(data, "ben") % 2).to_string();
    let more = ["--json", "--checkpoint", "--user", "ben", "--log", &log_no];
    let checkpoint = log("dump", data, &more);
    let lines = String::from_utf8(checkpoint.stdout).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let entry = |line: &&Value| line["what"] == "inbox_entry" && line["seq"] == seq;
    let lsn = lines.iter().find(entry).unwrap()["lsn"].as_u64().unwrap();
    let scanned_from = lines[0]["lsn"].as_u64().unwrap();
    assert!(
        lsn / 2_097_152 < scanned_from / 2_097_152,
        "in a segment that no start reads"
    );
    lsn
}

/// Whether `iris status` has something to complain of.
fn complains(data: &Path) -> String {
    let status = status(data);
    assert_eq!(status.status.code(), Some(1), "{}", text(&status));
    text(&status)
}

/// R: D-2. What a file does not have any more is no other damage than a bit that turned.
#[test]
fn a_segment_that_is_cut_short_under_a_running_switch_counts_as_damage() {
    let data = data_dir();
    let lsn = fill_old_segments(data.path(), 10);
    let server = Server::start_with(data.path(), &small(true));
    let (path, offset) = place_of(data.path(), shard_of(data.path(), "ben"), lsn);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(offset).unwrap();
    let (mut ben, _) = Raw::login_with(&server, "ben", &Hello::default());
    assert_eq!(ben.goodbye(), GoodbyeReason::Internal);
    let told = complains(data.path());
    assert!(told.contains("damaged places were met"), "{told}");
    assert!(server.stop().success());
}

/// R: D-2
#[test]
fn a_bit_that_rotted_in_an_old_segment_is_never_sent_out() {
    let data = data_dir();
    let rotten = 10;
    let lsn = fill_old_segments(data.path(), rotten);
    rot(data.path(), "ben", lsn);

    let server = Server::start_with(data.path(), &small(true));
    let (mut ben, _) = Raw::login_with(&server, "ben", &Hello::default());
    for seq in 1..rotten {
        assert_eq!(ben.entry().body, long_body(seq));
    }
    assert_eq!(
        ben.goodbye(),
        GoodbyeReason::Internal,
        "and nothing before it"
    );
    let told = recv_fails(data.path(), "ben", &[]);
    assert!(
        told.contains("something is wrong with the switch"),
        "{told}"
    );
    complains(data.path());
    assert!(server.stop().success());

    let (code, verdict) = json("verify", data.path(), &[]);
    assert_eq!(code, 1);
    let logs = verdict["logs"].as_array().unwrap();
    let unreadable: Vec<&Value> = logs
        .iter()
        .flat_map(|log| log["unreadable"].as_array().unwrap())
        .collect();
    assert_eq!(unreadable.len(), 1, "{verdict}");
    assert_eq!(
        (&unreadable[0]["user"], &unreadable[0]["first"]),
        (&"ben".into(), &rotten.into())
    );
    set_aside(data.path(), "ben", rotten);
    let server = Server::start_with(data.path(), &small(true));
    let (entries, gaps) = receive(&server, "ben");
    assert_eq!(gaps, [(rotten, rotten)]);
    let wanted = (1..=MESSAGES).filter(|seq| *seq != rotten);
    assert!(
        entries
            .into_iter()
            .eq(wanted.map(|seq| (seq, long_body(seq))))
    );
}
