//! Power cuts on real files: every write and sync that the storage issues is recorded, and at many
//! moments the directory is rebuilt as a disk could have left it, opened, and compared with what had been
//! promised by then.
//!
//! The model of the disk is `tests/power_loss`. `IRIS_POWER_CUTS` for more cuts, `IRIS_TEST_SEED` for the
//! same ones.

use std::collections::BTreeMap;

use crossbeam_channel::{Sender, unbounded};

use super::logs::{Rig, body, shard, user};
use super::*;
use crate::runtime::storage::record::{Step, listen};
use crate::shard::Input;
use iris_proto::id::Seq;

#[expect(dead_code, reason = "the model's own tests use more of it")]
#[path = "../../../../tests/power_loss/model.rs"]
mod model;
use model::{Dice, Event};

const UPKEEP: Upkeep = Upkeep {
    checkpoint_bytes: 256 * 1024,
    clean_bytes_per_s: 64 << 20,
};
const USERS: u64 = 6;
const STEPS: u64 = 600;

/// Numbers the files that steps name, and turns the steps into those that the model wants.
#[derive(Default)]
struct Names {
    files: BTreeMap<PathBuf, u64>,
    last: u64,
}

impl Names {
    fn take(&mut self, path: &Path, step: Step<'_>, events: &Sender<Event>) {
        let path = path.to_owned();
        let tell = |event| events.send(event).unwrap();
        match step {
            Step::SyncDirBegins => return tell(Event::SyncDirBegins { path }),
            Step::DirSynced => return tell(Event::DirSynced { path }),
            Step::Rename(to) => {
                let to = path.with_file_name(to.file_name().unwrap());
                if let Some(file) = self.files.remove(&path) {
                    self.files.insert(to.clone(), file);
                }
                return tell(Event::Rename { from: path, to });
            }
            Step::Unlink => {
                self.files.remove(&path);
                return tell(Event::Unlink { path });
            }
            _ => {}
        }
        let known = self.files.get(&path).copied();
        let file = known.unwrap_or_else(|| {
            self.last += 1;
            self.files.insert(path.clone(), self.last);
            self.last
        });
        match (step, known) {
            (Step::Create, None) => return tell(Event::Create { file, path }),
            (_, None) => tell(Event::Open { file, path }),
            (_, Some(_)) => {}
        }
        tell(match step {
            Step::Create => Event::SetLen { file, len: 0 },
            Step::Write(offset, bytes) => Event::Write {
                file,
                offset,
                bytes: bytes.to_vec(),
            },
            Step::Zeros(len) => Event::SetLen { file, len },
            Step::SyncBegins => Event::SyncBegins { file },
            _ => Event::Synced { file },
        });
    }
}

/// Random traffic with checkpoints, rotations and cleaning; `Told` names each accepted message.
fn live(rig: &mut Rig, events: &Sender<Event>, dice: &mut Dice) -> Vec<(u64, u64)> {
    let mut sent = Vec::new();
    let mut heads = [0; USERS as usize];
    for which in 0..USERS / 2 {
        let name = user(rig.key, which);
        rig.register(&name);
    }
    for _ in 0..STEPS {
        let which = dice.below(USERS);
        heads[which as usize] += 1;
        let n = heads[which as usize];
        rig.send(which, n, [0, 3_000, 60_000][dice.below(3) as usize]);
        events.send(Event::Told(sent.len() as u64)).unwrap();
        sent.push((which, n));
        if which < USERS / 2 && dice.chance(70) {
            let (name, device) = (user(rig.key, which), "phone");
            let (user, seq) = (&*name, Seq(n));
            let input = Input::Acknowledge { user, device, seq };
            rig.log.step(shard(rig.key, &name), input);
        }
        rig.log.now.monotonic_us += [0, 1_000, 60_000, 250_000][dice.below(4) as usize];
        rig.log.poll().unwrap();
    }
    sent
}

/// R: D-6, B-1, B-5
#[test]
fn a_power_cut_at_any_moment_loses_nothing_accepted_and_invents_nothing() {
    let cuts = std::env::var("IRIS_POWER_CUTS").map_or(150, |text| text.parse().unwrap());
    let seed = std::env::var("IRIS_TEST_SEED").map_or(20_261_124, |text| text.parse().unwrap());
    println!("IRIS_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open_with(&data_dir, UPKEEP).unwrap();
    rig.log.run_until(|log| log.files.spares() == 2).unwrap();
    let start = model::read(temp.path());
    let (events, recorded) = unbounded();
    let (heard, mut names) = (events.clone(), Names::default());
    let listening = listen(
        temp.path(),
        Box::new(move |path, step| names.take(path, step, &heard)),
    );
    let sent = live(&mut rig, &events, &mut dice);
    let status = rig.log.store.status();
    assert!(status.checkpoint.is_some(), "{status:?}");
    drop(rig);
    drop(listening);
    drop(data_dir);
    drop(events);
    let events: Vec<Event> = recorded.iter().collect();
    for _ in 0..cuts {
        let count = dice.below(events.len() as u64 + 1) as usize;
        let seed = dice.next();
        let told = model::told(&events[..count]);
        let rebuilt = tempfile::tempdir().unwrap();
        model::rebuild(&start, &events, count, seed, rebuilt.path());
        let data_dir = open(rebuilt.path());
        let rig = Rig::open_with(&data_dir, UPKEEP).unwrap();
        let place = format!("cut after {count} of {} steps, seed {seed}", events.len());
        assert_eq!(rig.damaged(), [], "{place}: false damage");
        for which in 0..USERS {
            for (seq, found) in rig.inbox(which) {
                let found = found.unwrap_or_else(|error| panic!("{place}: {error}"));
                assert!(
                    [0, 3_000, 60_000]
                        .iter()
                        .any(|filler| found == body(seq, *filler)),
                    "{place}: user {which} has at {seq} what nobody sent"
                );
            }
            let mine = told.iter().map(|nth| sent[*nth as usize]);
            let accepted = mine.filter(|(to, _)| *to == which).map(|(_, n)| n).max();
            let head = rig.head(which);
            assert!(
                head >= accepted.unwrap_or(0),
                "{place}: user {which} was accepted up to {accepted:?} and has up to {head}"
            );
        }
    }
}
