//! Logs: stores on real files.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, unbounded};
use iris_proto::id::{MessageId, SendEpoch, SendNumber, Seq};

use super::*;
use crate::log::recovery::Fault;
use crate::placement::{CoreId, HashKey, ShardId, user_hash};
use crate::runtime::storage::spare::{Home, SpareMaker};
use crate::shard::command::{self, Append, Command as ShardCommand};
use crate::shard::{Effect, Input, ReplyTo, ShardConfig};
use crate::stamp::Stamp;
use crate::store::SEAL_AFTER_US;
use crate::store::recover::{Known, recover};

pub(super) const UPKEEP: Upkeep = Upkeep {
    checkpoint_bytes: 1 << 40,
    clean_bytes_per_s: 64 << 20,
};

/// Log 1 of a data directory, and what was sent and accepted.
pub(super) struct Rig {
    pub log: BlockingLog,
    pub key: HashKey,
    sent: u64,
}

/// A user of log 1, each in a shard of its own.
pub(super) fn user(key: HashKey, which: u64) -> String {
    let users = (0..).map(|number| format!("user-{number}"));
    let mut taken = BTreeSet::new();
    let mut mine = users.filter(|name| {
        let id = shard(key, name).0;
        id % 2 == 1 && taken.insert(id)
    });
    mine.nth(which as usize).unwrap()
}

pub(super) fn shard(key: HashKey, user: &str) -> ShardId {
    ShardId((user_hash(key, user).0 % 64) as u16)
}

/// Body number `number`: recognisable, and of varying length.
pub(super) fn body(number: u64, filler: usize) -> Vec<u8> {
    let len = 100 + number % 900 + filler as u64;
    (0..len)
        .map(|at| (number.wrapping_mul(31) + at) as u8)
        .collect()
}

impl Rig {
    pub fn open(data_dir: &DataDir) -> Result<Self, LogError> {
        Self::open_with(data_dir, UPKEEP)
    }

    pub fn open_with(data_dir: &DataDir, upkeep: Upkeep) -> Result<Self, LogError> {
        let config = ShardConfig {
            retention: crate::shard::retention::Retention {
                entries: 3,
                ..Default::default()
            },
            ..ShardConfig::default()
        };
        let setup = data_dir.setup(1, config, upkeep);
        let key = setup.key;
        let mut log = BlockingLog::open(data_dir, 1, setup)?;
        log.now.unix_ms = 1_790_000_000_000;
        Ok(Self { log, key, sent: 0 })
    }

    /// Sends message `n` to a user, flushes it, and sees it accepted.
    pub fn send(&mut self, which: u64, n: u64, filler: usize) {
        let name = user(self.key, which);
        let body = body(n, filler);
        let append = Append {
            to: &name,
            from: "ann",
            device: "phone",
            epoch: SendEpoch(3),
            n: SendNumber(n),
            time_ms: self.log.now.unix_ms,
            seq: Seq(0),
            id: MessageId([5; 16]),
            body: &body,
        };
        let mut command = Vec::new();
        append.encode(&mut command);
        self.sent += 1;
        let reply = ReplyTo {
            core: CoreId(0),
            slot: 0,
            generation: 0,
            tag: self.sent,
            read: Stamp::default(),
        };
        let input = Input::Append {
            to: user_hash(self.key, &name),
            command: &command,
            room: true,
            reply,
        };
        self.log.step(shard(self.key, &name), input);
        self.log.settle().unwrap();
        let accepted = |(_, effect): &(ShardId, Effect)| matches!(effect, Effect::Accepted { reply, .. } if reply.tag == self.sent);
        assert!(
            self.log.effects.iter().any(accepted),
            "message {n} is accepted"
        );
        self.log.effects.clear();
    }

    /// Makes the device `phone` of a user known.
    pub fn register(&mut self, name: &str) {
        let reply = ReplyTo {
            core: CoreId(0),
            slot: 0,
            generation: 0,
            tag: 0,
            read: Stamp::default(),
        };
        let register = Input::Register {
            hash: user_hash(self.key, name),
            user: name,
            device: "phone",
            reply,
        };
        self.log.step(shard(self.key, name), register);
    }

    /// The device `phone` of a user acknowledges all up to an entry.
    pub fn acknowledge(&mut self, which: u64, seq: u64) {
        let (name, device, seq) = (user(self.key, which), "phone", Seq(seq));
        let user = &*name;
        let input = Input::Acknowledge { user, device, seq };
        self.log.step(shard(self.key, user), input);
    }

    /// What it has acknowledged, durably; `None` when it is not known.
    pub fn cursor(&self, which: u64) -> Option<u64> {
        let name = user(self.key, which);
        let shard = self.log.store.shard(shard(self.key, &name))?;
        let user = shard.users().get(shard.find(&name)?);
        user.device("phone").map(|device| device.cursor.0)
    }

    /// The newest entry of a user's inbox.
    pub fn head(&self, which: u64) -> u64 {
        let name = user(self.key, which);
        let shard = self.log.store.shard(shard(self.key, &name)).unwrap();
        shard
            .find(&name)
            .map_or(0, |slot| shard.users().get(slot).head().0)
    }

    pub fn seal(&mut self) {
        self.log.now.monotonic_us += SEAL_AFTER_US;
        assert!(self.log.poll().unwrap(), "a SEAL is written");
    }

    /// What a user's inbox holds: `seq` and body, read where the index says.
    pub fn inbox(&self, which: u64) -> Vec<(u64, Result<Vec<u8>, ReadError>)> {
        let name = user(self.key, which);
        let shard = self.log.store.shard(shard(self.key, &name)).unwrap();
        let Some(slot) = shard.find(&name) else {
            return Vec::new();
        };
        let slots = shard.users().get(slot).slots();
        let read = |(seq, slot): (Seq, crate::shard::slot::Slot)| {
            let item = self.log.files.item(slot.position().unwrap());
            let body = item.map(|item| {
                let Ok(ShardCommand::Append(append)) = command::decode(item) else {
                    panic!("an index points at what is no message");
                };
                assert_eq!((append.to, append.seq), (&*name, seq));
                append.body.to_vec()
            });
            (seq.0, body)
        };
        slots.map(read).collect()
    }

    pub fn end(&self) -> u64 {
        self.log.store.status().end
    }

    pub fn position(&self, which: u64, seq: u64) -> u64 {
        let name = user(self.key, which);
        let shard = self.log.store.shard(shard(self.key, &name)).unwrap();
        let inbox = shard.users().get(shard.find(&name).unwrap());
        inbox.slot(Seq(seq)).unwrap().position().unwrap()
    }

    pub fn state(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for id in self.log.store.shards() {
            self.log.store.shard(*id).unwrap().write_state(&mut out);
        }
        out
    }

    pub fn damaged(&self) -> Vec<ShardId> {
        let quarantined = self.log.store.quarantined().iter();
        quarantined.map(|one| one.shard).collect()
    }
}

/// R: D-1, B-2
#[test]
fn what_was_flushed_is_there_after_a_reopen_at_the_same_positions() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("new/data");
    let mut positions = Vec::new();
    for round in 0..3 {
        let data_dir = open(&path);
        assert_eq!(data_dir.super_block().incarnation, round + 1);
        let mut rig = Rig::open(&data_dir).unwrap();
        for (seq, position) in (1..).zip(&positions) {
            assert_eq!(rig.position(0, seq), *position);
        }
        for _ in 0..20 {
            let n = positions.len() as u64 + 1;
            rig.send(0, n, 10);
            positions.push(rig.position(0, n));
        }
        for (seq, found) in rig.inbox(0) {
            assert_eq!(found.unwrap(), body(seq, 10));
        }
        let behind = rig.log.files.item(rig.log.store.durable_end());
        assert!(matches!(behind, Err(ReadError::Outside { .. })));
        let beside = rig.log.files.item(positions[0] + 1);
        assert!(matches!(beside, Err(ReadError::Item { .. })), "{beside:?}");
        rig.seal();
        data_dir.record_durable(&[0, rig.end()]).unwrap();
    }
}

/// R: D-1
#[test]
fn the_log_rotates_through_its_spares_and_reads_back_across_segments() {
    let temp = tempfile::tempdir().unwrap();
    let filler = |n: u64| (n as usize * 7919) % 60_000;
    let mut sent = 0;
    let state = {
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        while rig.end() < 4 * SEGMENT_BYTES {
            sent += 1;
            rig.send(sent % 3, sent.div_ceil(3), filler(sent.div_ceil(3)));
        }
        rig.state()
    };
    let data_dir = open(temp.path());
    let before = fs::read_dir(temp.path().join("log-01")).unwrap().count();
    let mut rig = Rig::open(&data_dir).unwrap();
    assert_eq!(rig.state(), state);
    for which in 0..3 {
        for (seq, found) in rig.inbox(which) {
            assert_eq!(found.unwrap(), body(seq, filler(seq)));
        }
    }
    // Four full segments, the open one, and as many spares as there was time to make.
    assert!((5..=4 + 1 + 2).contains(&before), "{before} segments");
    rig.send(7, 1, 0);
    assert!(rig.position(7, 1) > 4 * SEGMENT_BYTES);
}

/// R: D-1
#[test]
fn blocks_are_cold_until_written_or_marked_by_this_process() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    (1..=10).for_each(|n| rig.send(0, n, 60_000));
    let first = rig.position(0, 1);
    assert_eq!(rig.log.files.cold_range(first, 300_000), None);
    drop(rig);
    let mut rig = Rig::open(&data_dir).unwrap();
    let files = &mut rig.log.files;
    let (address, len) = files.cold_range(first + 70_000, 100_000).unwrap();
    assert_eq!((address % 4096, len), (0, 2 * BLOCK_BYTES));
    files.mark_resident(first + 70_000, 1);
    let half = Some((address + BLOCK_BYTES, BLOCK_BYTES));
    assert_eq!(files.cold_range(first + 70_000, 100_000), half);
    files.mark_resident(first + 70_000, 100_000);
    assert_eq!(files.cold_range(first + 70_000, 100_000), None);
}

/// The image of a log whose last flush is under way; the position of that flush.
fn with_a_last_flush(path: &Path) -> u64 {
    let data_dir = open(path);
    let mut rig = Rig::open(&data_dir).unwrap();
    (1..=5).for_each(|n| rig.send(0, n, 3_000));
    let end = rig.end();
    rig.send(0, 6, 9_000);
    end
}

/// R: D-6, D-2
#[test]
fn a_last_flush_that_stopped_anywhere_is_cut_and_the_log_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let last = with_a_last_flush(temp.path()) as usize;
    let file = segment(temp.path(), 0);
    let image = fs::read(&file).unwrap();
    let len = 9_000;
    for round in 0..24_usize {
        let mut torn = image.clone();
        match round % 3 {
            0 => torn[last + round * 350..last + len + 1_000].fill(0),
            1 => torn[last + round * 350] ^= 0x10,
            _ => {
                torn[last + 512 * (round / 3)..last + len].rotate_left(round);
                torn[last + 4_000..].fill(0);
            }
        }
        fs::write(&file, &torn).unwrap();
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        assert_eq!(
            (rig.inbox(0).len(), rig.damaged()),
            (5, vec![]),
            "round {round}"
        );
        assert_eq!(rig.end(), last as u64, "round {round}");
        rig.send(0, 6, 100);
        let state = rig.state();
        drop(rig);
        let rig = Rig::open(&data_dir).unwrap();
        assert_eq!(rig.state(), state, "round {round}");
        drop(rig);
        fs::write(&file, &image).unwrap();
    }
}

/// R: D-2, D-3
#[test]
fn a_rotten_bit_stops_its_shard_alone_and_nothing_is_changed() {
    let temp = tempfile::tempdir().unwrap();
    let at = {
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        (1..=5).for_each(|n| (0..4).for_each(|which| rig.send(which, n, 500)));
        rig.seal();
        rig.position(2, 3)
    };
    let file = segment(temp.path(), 0);
    flip(&file, at as usize + 100);
    let image = fs::read(&file).unwrap();
    let data_dir = open(temp.path());
    for _ in 0..2 {
        let (rig, lines) = listened_to(|| Rig::open(&data_dir).unwrap());
        let damaged = shard(rig.key, &user(rig.key, 2));
        assert_eq!(rig.damaged(), [damaged]);
        // The frame begins less than a message before the place of the bit, and is what is named.
        let hole = lines
            .iter()
            .find(|line| line.contains("log segment is damaged"));
        let hole = hole.unwrap_or_else(|| panic!("{lines:?}"));
        assert!(hole.contains(&file.display().to_string()), "{hole}");
        let offset = hole.split("offset=").nth(1).unwrap();
        let offset: u64 = offset.split(' ').next().unwrap().parse().unwrap();
        assert!((at - 1_000..at).contains(&offset), "{hole}, not {at}");
        let named = format!("shard={}", damaged.0);
        assert!(lines.iter().any(|line| line.contains(&named)), "{lines:?}");
        for which in [0, 1, 3] {
            let inbox = rig.inbox(which);
            assert_eq!(inbox.len(), 5);
            assert!(
                inbox
                    .iter()
                    .all(|(seq, found)| *found == Ok(body(*seq, 500)))
            );
        }
        assert_eq!(fs::read(&file).unwrap(), image);
    }
    let mut rig = Rig::open(&data_dir).unwrap();
    rig.send(0, 6, 0);
    drop(rig);
    let rig = Rig::open(&data_dir).unwrap();
    assert_eq!((rig.damaged().len(), rig.inbox(0).len()), (1, 6));
}

/// What `work` returns, and the lines that it logs.
fn listened_to<R>(work: impl FnOnce() -> R) -> (R, Vec<String>) {
    struct Lines(Sender<String>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let line = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(line).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, lines) = unbounded();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Lines(sender.clone()))
        .finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    (result, lines.try_iter().collect())
}

/// R: D-2
#[test]
fn a_seal_puts_even_the_last_data_frame_beyond_doubt() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    rig.send(0, 1, 100);
    rig.seal();
    let at = rig.position(0, 1);
    drop(rig);
    flip(&segment(temp.path(), 0), at as usize + 9);
    assert_eq!(Rig::open(&data_dir).unwrap().damaged().len(), 1);
}

/// R: D-2. The first frame of a segment vouches for the END before it, written after its sync: a rotten
/// END is noticed, and costs nothing, for it holds no entry.
#[test]
fn a_rotten_end_is_noticed_and_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    let (mut end, mut n) = (0, 0);
    while rig.end() < SEGMENT_BYTES {
        end = rig.end();
        n += 1;
        rig.send(0, n, 60_000);
    }
    drop(rig);
    flip(&segment(temp.path(), 0), end as usize + 20);
    let mapped = Mapped::open(temp.path(), 1, data_dir.super_block().segment_size, false).unwrap();
    let setup = data_dir.setup(1, ShardConfig::default(), UPKEEP);
    let recovered = mapped.found(Known::default(), |found| recover(setup, found));
    let holes = recovered.unwrap().report.holes;
    assert_eq!(
        holes.iter().map(|hole| hole.from).collect::<Vec<_>>(),
        [end]
    );
    assert!(matches!(holes[0].fault, Fault::Header), "{holes:?}");
    let rig = Rig::open(&data_dir).unwrap();
    assert_eq!((rig.damaged(), rig.inbox(0).len() as u64), (vec![], n));
}

/// R: D-2, D-3
#[test]
fn a_log_that_lost_its_end_is_damaged_and_not_taken_for_a_shorter_one() {
    let temp = tempfile::tempdir().unwrap();
    {
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        rig.send(0, 1, 100);
        data_dir.record_durable(&[0, rig.end()]).unwrap();
    }
    let file = segment(temp.path(), 0);
    let image = fs::read(&file).unwrap();
    fs::write(&file, vec![0; image.len()]).unwrap();
    // Nothing says which shards wrote there, so none of this log is believed.
    assert_eq!(Rig::open(&open(temp.path())).unwrap().damaged().len(), 32);
    assert_eq!(Rig::open(&open(temp.path())).unwrap().damaged().len(), 32);
    fs::write(&file, image).unwrap();
    let rig = Rig::open(&open(temp.path())).unwrap();
    assert_eq!((rig.damaged(), rig.inbox(0).len()), (vec![], 1));
}

/// R: D-2
#[test]
fn a_segment_that_is_gone_stops_the_shards_that_lost_something_and_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    let mut n = 0;
    let mut fill = |rig: &mut Rig, end: u64| {
        while rig.end() < end {
            n += 1;
            rig.send(0, n, 60_000);
        }
    };
    rig.send(1, 1, 0);
    rig.send(3, 1, 0);
    fill(&mut rig, SEGMENT_BYTES);
    rig.send(2, 1, 0);
    fill(&mut rig, 2 * SEGMENT_BYTES);
    rig.send(1, 2, 0);
    rig.seal();
    let mut lost = [0, 2].map(|which| shard(rig.key, &user(rig.key, which)));
    lost.sort_unstable();
    drop(rig);
    fs::remove_file(segment(temp.path(), 1)).unwrap();
    let kept = [0, 2].map(|index| fs::read(segment(temp.path(), index)).unwrap());
    for _ in 0..2 {
        let rig = Rig::open(&data_dir).unwrap();
        assert_eq!(rig.damaged(), lost);
        assert_eq!(rig.inbox(1), [1, 2].map(|n| (n, Ok(body(n, 0)))));
        assert_eq!(rig.inbox(3), [(1, Ok(body(1, 0)))]);
        drop(rig);
        let now = [0, 2].map(|index| fs::read(segment(temp.path(), index)).unwrap());
        assert!(now == kept, "a damaged log was changed");
        assert!(!segment(temp.path(), 1).exists(), "made anew, as if empty");
    }
}

/// R: D-2. What proves a damage may lie in the torn tail behind it.
#[test]
fn a_torn_tail_behind_damage_is_zeroed_only_when_it_is_noted_what_had_been_durable() {
    let temp = tempfile::tempdir().unwrap();
    let (first, end, second) = {
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        rig.send(0, 1, 500);
        let end = rig.end();
        rig.send(1, 1, 500);
        (rig.position(0, 1), end, rig.position(1, 1))
    };
    let file = segment(temp.path(), 0);
    flip(&file, first as usize + 100);
    flip(&file, second as usize + 100);
    for round in 0..3 {
        let data_dir = open(temp.path());
        let rig = Rig::open(&data_dir).unwrap();
        let damaged = shard(rig.key, &user(rig.key, 0));
        assert!(rig.damaged().contains(&damaged), "start {round}");
        assert_eq!(rig.end(), end);
        drop((rig, data_dir));
        assert_eq!(fs::read(&file).unwrap()[end as usize..][..100], [0; 100]);
        assert_eq!(open(temp.path()).super_block().durable_lsn, [0, end]);
    }
}

/// R: D-2. The spares behind it were made later, so it was there.
#[test]
fn a_log_whose_newest_segment_is_gone_is_damaged_and_not_taken_for_a_shorter_one() {
    let temp = tempfile::tempdir().unwrap();
    {
        let data_dir = open(temp.path());
        let mut rig = Rig::open(&data_dir).unwrap();
        let mut n = 0;
        while rig.end() < SEGMENT_BYTES {
            n += 1;
            rig.send(0, n, 60_000);
        }
    }
    let file = segment(temp.path(), 1);
    let image = fs::read(&file).unwrap();
    assert!(segment(temp.path(), 2).exists(), "there is a spare");
    fs::remove_file(&file).unwrap();
    for _ in 0..2 {
        assert_eq!(Rig::open(&open(temp.path())).unwrap().damaged().len(), 32);
    }
    fs::write(&file, image).unwrap();
    let rig = Rig::open(&open(temp.path())).unwrap();
    assert_eq!(rig.damaged(), vec![]);
}

/// R: D-1. A spare that was interrupted, or that an interrupted rotation wrote into, is used again.
#[test]
fn unfinished_and_soiled_spares_are_zeroed_and_used() {
    let temp = tempfile::tempdir().unwrap();
    with_a_last_flush(temp.path());
    let mut soiled = vec![0; SEGMENT_BYTES as usize];
    soiled[5_000..9_000].fill(0xee);
    fs::write(segment(temp.path(), 1), soiled).unwrap();
    fs::write(segment(temp.path(), 2), vec![0; 12_345]).unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    assert_eq!(rig.inbox(0).len(), 6);
    let mut n = 6;
    while rig.end() < 3 * SEGMENT_BYTES {
        n += 1;
        rig.send(0, n, 60_000);
    }
    let state = rig.state();
    drop(rig);
    assert_eq!(Rig::open(&data_dir).unwrap().state(), state);
}

/// R: B-8. ENOSPC is reported at once, and space that returns is found without a restart.
#[test]
fn a_full_disk_is_reported_and_recovered_from() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    rig.log.run_until(|log| log.files.spares() == 2).unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let seen_by_thread = Arc::clone(&full);
    let reserve = Box::new(
        move |_: &fs::File, _| match seen_by_thread.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        },
    );
    let maker = SpareMaker::start_with(Home::of(&data_dir, 1), reserve);
    rig.log.replace_maker(maker.unwrap());
    let mut n = 0;
    // The spares that were made before go, and then there is no room; what was promised stays.
    while rig.log.store.has_room() {
        n += 1;
        rig.send(0, n, 60_000);
        rig.log.poll().unwrap();
    }
    assert_ne!(rig.log.store.status().space, Space::Enough);
    assert_eq!(rig.inbox(0).len() as u64, n);
    full.store(false, Ordering::Relaxed);
    rig.log.run_until(|log| log.store.has_room()).unwrap();
    rig.send(0, n + 1, 0);
}

/// R: D-3
#[test]
fn files_named_by_a_position_that_no_log_reaches_are_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open(&data_dir).unwrap();
    rig.send(0, 1, 100);
    drop(rig);
    let names = [
        "log-01/ffffffffffe00000.seg",
        "log-01/0040000000000000.seg",
        "ckpt-01/ffffffffffe01000.ckpt",
    ];
    for name in names {
        fs::write(temp.path().join(name), b"what is this?").unwrap();
    }
    let rig = Rig::open(&data_dir).unwrap();
    assert_eq!((rig.head(0), rig.damaged()), (1, vec![]));
    drop(rig);
    for name in names {
        let bytes = fs::read(temp.path().join(name)).unwrap();
        assert_eq!(bytes, b"what is this?", "{name}");
    }
}
