//! Power cuts on real files: every write and sync that the storage issues is recorded, and at many
//! moments the directory is rebuilt as a disk could have left it, opened, and compared with what had been
//! promised by then.
//!
//! ```text
//!   random traffic ─▶ steps, and in between what was promised
//!                       ├─ cut ─▶ directory ─▶ opened, compared, gone on with
//!                       └─ cut ─▶ directory ─▶ opened, its steps recorded too
//!                                                └─ cut ─▶ directory ─▶ opened, compared
//! ```
//! Half of the cuts are anywhere, half are at steps that name, move or remove a file. The model of the disk
//! is `tests/power_loss`. `IRIS_POWER_CUTS` for more cuts, `IRIS_TEST_SEED` for the same traffic; when its
//! threads do something is theirs to say.

use std::collections::{BTreeMap, BTreeSet};

use crossbeam_channel::{Sender, unbounded};
use iris_proto::id::Seq;
use tempfile::TempDir;

use super::logs::{Rig, body, user};
use super::*;
use crate::runtime::storage::record::{Step, listen};

#[expect(dead_code, reason = "the model's own tests use more of it")]
#[path = "../../../../tests/power_loss/model.rs"]
mod model;
use model::{Dice, Disk, Event, Image};

const UPKEEP: Upkeep = Upkeep {
    checkpoint_bytes: 256 * 1024,
    clean_bytes_per_s: 64 << 20,
};
const USERS: usize = 6;
/// Users with a device that acknowledges, sometimes; the others keep all they get.
const READERS: usize = 3;
/// Messages that are sent at least, and at most.
const SENDS_MIN: usize = 400;
const SENDS_MAX: usize = 20_000;
/// After so many cuts there are some of the start after one.
const CUTS_PER_SECOND_CUT: usize = 16;

/// Where directories are rebuilt: in memory if there is such a place.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Numbers the files that steps name, and turns the steps into those that the model wants.
struct Names {
    /// What was there when the recording began.
    there: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, u64>,
    last: u64,
}

impl Names {
    fn new(start: &Image) -> Self {
        Self {
            there: start.keys().cloned().collect(),
            files: BTreeMap::new(),
            last: 0,
        }
    }

    fn take(&mut self, path: &Path, step: Step<'_>, events: &Sender<Event>) {
        let path = path.to_owned();
        let tell = |event| events.send(event).unwrap();
        match step {
            Step::CreateDir => return tell(Event::CreateDir { path }),
            Step::SyncDirBegins => return tell(Event::SyncDirBegins { path }),
            Step::DirSynced => return tell(Event::DirSynced { path }),
            Step::Rename(to) => {
                let to = path.with_file_name(to.file_name().unwrap());
                self.there.remove(&path);
                if let Some(file) = self.files.remove(&path) {
                    self.files.insert(to.clone(), file);
                }
                return tell(Event::Rename { from: path, to });
            }
            Step::Unlink => {
                self.there.remove(&path);
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
        let is_new = known.is_none() && !self.there.contains(&path);
        match (step, known) {
            (Step::Create, None) if is_new => return tell(Event::Create { file, path }),
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
            Step::Len(len) => Event::SetLen { file, len },
            Step::SyncBegins => Event::SyncBegins { file },
            _ => Event::Synced { file },
        });
    }
}

/// What a directory held, and all that happened in it then.
struct Recording {
    start: Image,
    events: Vec<Event>,
}

impl Recording {
    /// Records the steps below `root`, and what `work` sends of its own, while it runs.
    fn of(root: &Path, work: impl FnOnce(&Sender<Event>)) -> Self {
        let start = model::read(root);
        let (events, recorded) = unbounded();
        let (heard, mut names) = (events.clone(), Names::new(&start));
        let take = move |path: &Path, step: Step<'_>| names.take(path, step, &heard);
        let listening = listen(root, Box::new(take));
        work(&events);
        drop((listening, events));
        Self {
            start,
            events: recorded.iter().collect(),
        }
    }

    /// Cuts at `count` moments, in order: the disk then, how many steps it had taken, and a seed for
    /// what it makes of the rest.
    fn cut(&self, count: usize, dice: &mut Dice, mut judge: impl FnMut(&Disk, usize, u64)) {
        let names_change = |event: &Event| {
            use Event::{Create, CreateDir, DirSynced, Rename, SyncDirBegins, Unlink};
            matches!(
                event,
                Create { .. }
                    | CreateDir { .. }
                    | Rename { .. }
                    | Unlink { .. }
                    | SyncDirBegins { .. }
                    | DirSynced { .. }
            )
        };
        let places = self.events.iter().enumerate();
        let places: Vec<usize> = places
            .filter(|(_, event)| names_change(event))
            .map(|(place, _)| place)
            .collect();
        let mut moments: Vec<usize> = (0..count)
            .map(|nth| match nth % 2 == 0 || places.is_empty() {
                true => dice.below(self.events.len() as u64 + 1) as usize,
                // Just before a step or just behind it, or behind the next one.
                false => {
                    let near = places[dice.below(places.len() as u64) as usize];
                    (near + dice.below(3) as usize).min(self.events.len())
                }
            })
            .collect();
        moments.sort_unstable();
        let (mut disk, mut applied) = (Disk::holding(&self.start), 0);
        for moment in moments {
            let next = &self.events[applied..moment];
            next.iter().for_each(|event| disk.apply(event));
            applied = moment;
            judge(&disk, moment, dice.next());
        }
    }
}

/// One thing that happened to a user; `Told` events number them.
#[derive(Clone, Copy)]
enum Act {
    /// Message `n` is going to be sent, its body so much longer.
    Sends(u64, usize),
    /// It was accepted.
    Accepted(u64),
    /// The device is going to acknowledge up to here.
    Acknowledges(u64),
    /// Its cursor stands here, durably.
    Acknowledged(u64),
}

/// All that happened, in order, and to whom.
#[derive(Default)]
struct Story {
    acts: Vec<(usize, Act)>,
    bodies: [Vec<Vec<u8>>; USERS],
}

impl Story {
    fn tell(&mut self, which: usize, act: Act, events: &Sender<Event>) {
        if let Act::Sends(n, filler) = act {
            self.bodies[which].push(body(n, filler));
        }
        events.send(Event::Told(self.acts.len() as u64)).unwrap();
        self.acts.push((which, act));
    }

    /// Random traffic, until segments were removed too.
    fn live(&mut self, rig: &mut Rig, events: &Sender<Event>, dice: &mut Dice) {
        let mut cursors = [0; READERS];
        for which in 0..READERS {
            let name = user(rig.key, which as u64);
            rig.register(&name);
        }
        for sends in 0.. {
            let status = rig.log.store.status();
            let is_enough = status.removed_segments > 2 && status.moved_bytes > 0;
            if sends >= SENDS_MIN && is_enough && status.checkpoint.is_some() {
                return;
            }
            assert!(sends < SENDS_MAX, "nothing is cleaned: {status:?}");
            let which = dice.below(USERS as u64) as usize;
            let n = self.bodies[which].len() as u64 + 1;
            // Who reads gets large messages, too, which go; who does not, gets few bytes, which stay.
            let filler = [0, 3_000, 60_000][dice.below(3) as usize];
            let filler = if which < READERS { filler } else { filler / 60 };
            self.tell(which, Act::Sends(n, filler), events);
            rig.send(which as u64, n, filler);
            self.tell(which, Act::Accepted(n), events);
            if which < READERS && dice.chance(70) {
                self.tell(which, Act::Acknowledges(n), events);
                rig.acknowledge(which as u64, n);
            }
            rig.log.now.monotonic_us += [0, 1_000, 60_000, 250_000][dice.below(4) as usize];
            rig.log.poll().unwrap();
            for (which, known) in cursors.iter_mut().enumerate() {
                let cursor = rig.cursor(which as u64).unwrap_or(0);
                if cursor > *known {
                    *known = cursor;
                    self.tell(which, Act::Acknowledged(cursor), events);
                }
            }
        }
    }

    /// Checks a log that was opened after a cut against what had been told by then, and goes on with it.
    fn judge(&self, rig: &mut Rig, told: &[u64], place: &str) {
        assert_eq!(rig.damaged(), [], "{place}: false damage");
        for which in 0..USERS {
            let mine = told.iter().map(|nth| self.acts[*nth as usize]);
            let mine = mine.filter(|(to, _)| *to == which);
            let (mut sent, mut accepted, mut claimed, mut acknowledged) = (0, 0, 0, 0);
            for (_, act) in mine {
                match act {
                    Act::Sends(n, _) => sent = n,
                    Act::Accepted(n) => accepted = n,
                    Act::Acknowledges(n) => claimed = n,
                    Act::Acknowledged(n) => acknowledged = n,
                }
            }
            let place = format!("{place}: user {which}");
            let head = rig.head(which as u64);
            assert!(
                (accepted..=sent).contains(&head),
                "{place}: {accepted} were accepted, {sent} sent, and there are {head}"
            );
            let cursor = rig.cursor(which as u64).unwrap_or(0);
            assert!(
                (acknowledged..=claimed).contains(&cursor),
                "{place}: the cursor stands at {cursor}, {acknowledged} was known, {claimed} asked for"
            );
            let inbox = rig.inbox(which as u64);
            let first = inbox.first().map_or(head + 1, |(seq, _)| *seq);
            assert!(
                first <= cursor + 1,
                "{place}: begins at {first}, acknowledged is {cursor}"
            );
            let seqs = inbox.iter().map(|(seq, _)| *seq);
            assert!(seqs.eq(first..=head), "{place}: an entry is missing");
            for (seq, found) in inbox {
                let expected = &self.bodies[which][seq as usize - 1];
                assert_eq!(found.as_ref(), Ok(expected), "{place}: message {seq}");
            }
            self.go_on(rig, which, head, &place);
        }
    }

    /// The last message that is there is not stored again, and the next one is.
    fn go_on(&self, rig: &mut Rig, which: usize, head: u64, place: &str) {
        for n in [head, head + 1] {
            if n > 0 {
                rig.send(which as u64, n, 0);
            }
            assert_eq!(rig.head(which as u64), n, "{place}: message {n} sent again");
        }
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// R: D-6, B-1, B-5
#[test]
fn a_power_cut_at_any_moment_loses_nothing_accepted_and_invents_nothing() {
    let cuts = from_environment("IRIS_POWER_CUTS", 1_000) as usize;
    let seed = from_environment("IRIS_TEST_SEED", 20_261_124);
    println!("IRIS_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let temp = tempfile::tempdir().unwrap();
    let data_dir = open(temp.path());
    let mut rig = Rig::open_with(&data_dir, UPKEEP).unwrap();
    rig.log.run_until(|log| log.files.spares() == 2).unwrap();
    let mut story = Story::default();
    let recording = Recording::of(temp.path(), |events| {
        story.live(&mut rig, events, &mut dice);
        drop(rig);
    });
    drop(data_dir);
    let steps = recording.events.len();
    let (mut nth, mut second_dice) = (0, Dice(seed ^ 1));
    recording.cut(cuts, &mut dice, |disk, moment, seed| {
        let told = model::told(&recording.events[..moment]);
        let place = format!("cut after {moment} of {steps} steps, seed {seed}");
        let image = disk.crash(&mut Dice(seed));
        nth += 1;
        if nth % CUTS_PER_SECOND_CUT == 0 {
            cut_the_start(&image, &mut second_dice, |image, second| {
                check(image, &story, &told, &format!("{place}, {second}"));
            });
        }
        check(&image, &story, &told, &place);
    });
}

fn check(image: &Image, story: &Story, told: &[u64], place: &str) {
    let rebuilt = scratch();
    model::write(image, rebuilt.path());
    let opened = DataDir::open(rebuilt.path(), &FORMAT);
    let data_dir = opened.unwrap_or_else(|error| panic!("{place}: {error}"));
    let rig = Rig::open_with(&data_dir, UPKEEP);
    let mut rig = rig.unwrap_or_else(|error| panic!("{place}: {error}"));
    story.judge(&mut rig, told, place);
}

/// Starts on what a cut has left, and cuts that start at some moments.
fn cut_the_start(image: &Image, dice: &mut Dice, mut judge: impl FnMut(&Image, String)) {
    let rebuilt = scratch();
    model::write(image, rebuilt.path());
    let recording = Recording::of(rebuilt.path(), |_| {
        let data_dir = open(rebuilt.path());
        drop(Rig::open_with(&data_dir, UPKEEP).unwrap());
    });
    let steps = recording.events.len();
    recording.cut(4, dice, |disk, moment, seed| {
        let place = format!("the start after {moment} of {steps} steps, seed {seed}");
        judge(&disk.crash(&mut Dice(seed)), place);
    });
}

/// R: D-3, D-6
#[test]
fn a_power_cut_while_a_directory_is_made_leaves_one_that_is_made_anew_or_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let path = PathBuf::from("new/data");
    let recording = Recording::of(temp.path(), |events| {
        let data_dir = open(&temp.path().join(&path));
        let mut rig = Rig::open_with(&data_dir, UPKEEP).unwrap();
        rig.send(0, 1, 0);
        events.send(Event::Told(0)).unwrap();
    });
    let mut incarnations = BTreeSet::new();
    for moment in 0..=recording.events.len() {
        let mut disk = Disk::holding(&recording.start);
        let done = &recording.events[..moment];
        done.iter().for_each(|event| disk.apply(event));
        for seed in 0..8 {
            let rebuilt = scratch();
            model::write(&disk.crash(&mut Dice(seed)), rebuilt.path());
            let place = format!("cut after {moment} steps, seed {seed}");
            let opened = DataDir::open(&rebuilt.path().join(&path), &FORMAT);
            let data_dir = opened.unwrap_or_else(|error| panic!("{place}: {error}"));
            incarnations.insert(data_dir.super_block().incarnation);
            let mut rig = Rig::open_with(&data_dir, UPKEEP).unwrap();
            assert_eq!(rig.damaged(), [], "{place}");
            let promised = model::told(done).len() as u64;
            assert!((promised..=1).contains(&rig.head(0)), "{place}");
            let next = Seq(rig.head(0) + 1);
            rig.send(0, next.0, 0);
            assert_eq!(rig.head(0), next.0, "{place}");
        }
    }
    assert!(incarnations.len() > 1, "some were made anew, some went on");
}
