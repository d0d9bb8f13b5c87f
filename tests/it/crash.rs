//! Switches that are killed, stopped in mid-air and restarted under load, again and again on the
//! same data: what was accepted is there, once, in order, and nothing else.
//!
//! 50 kills by default, `IRIS_KILL_ROUNDS` for another number. Senders and readers live through all
//! rounds (see [`super::load`]); the moments come from the printed seed, counted in accepted
//! messages.

use std::path::Path;
use std::time::Duration;

use iris_proto::v2::{
    self, client_frame::Frame as ClientFrame, server_frame::Frame as ServerFrame,
};

use super::harness::{Random, Server, Setup, data_dir, seed};
use super::load::{Ended, Load, RECIPIENTS, SENDERS, Sender, Watch, body, number_of, recipient};
use super::raw::{Hello, Raw};

fn kill_rounds() -> u64 {
    std::env::var("IRIS_KILL_ROUNDS").map_or(50, |text| text.parse().unwrap())
}

/// Reads an inbox from the oldest entry that is kept; every entry must be one that was sent, and each
/// stream dense: from 1, or from where history begins. Returns the last number of each sender.
fn read_inbox(server: &Server, to: usize) -> [u64; SENDERS] {
    let hello = Hello {
        resume_after: Some(0),
        ..Hello::default()
    };
    let (mut client, welcome) = Raw::login_with(server, &recipient(to), &hello);
    assert_eq!(welcome.cursor, welcome.oldest_seq - 1);
    let mut last = [0; SENDERS];
    for seq in welcome.cursor + 1..=welcome.head_seq {
        let entry = client.entry();
        assert_eq!(entry.seq, seq);
        let sender: usize = entry.from.strip_prefix("sender-").unwrap().parse().unwrap();
        let n = match last[sender] {
            0 if welcome.oldest_seq > 1 => number_of(&entry.body),
            before => before + 1,
        };
        assert_eq!(
            entry.body,
            body(sender, to, n, 0),
            "seq {seq} of recipient {to}"
        );
        last[sender] = n;
        if seq % 500 == 0 {
            client.ack(seq);
        }
    }
    assert_eq!(client.until_pong(), []);
    last
}

/// R: B-1, B-4, B-5, B-6, D-6
#[test]
fn killed_under_load_again_and_again_nothing_accepted_is_lost_doubled_or_invented() {
    let rounds = kill_rounds();
    let mut random = Random(seed());
    let data = data_dir();
    let mut senders: [Sender; SENDERS] = Default::default();
    let mut read_seen = [[0; SENDERS]; RECIPIENTS];
    for round in 0..rounds {
        let server = Server::start(data.path());
        let watch = Watch::default();
        // Kill once so many messages of this round have been accepted.
        let until = random.below(400);
        let seeds: Vec<u64> = (0..SENDERS).map(|_| random.below(u64::MAX)).collect();
        std::thread::scope(|scope| {
            for (me, sender) in senders.iter_mut().enumerate() {
                let (server, watch, seed) = (&server, &watch, seeds[me]);
                scope.spawn(move || sender.run(me, server, 0, watch, &mut Random(seed)));
            }
            watch.until_accepted(until);
            server.kill_now();
        });
        drop(server);
        // Every tenth round, and the last, all inboxes are read from a restarted switch.
        if round % 10 == 9 || round + 1 == rounds {
            let server = Server::start(data.path());
            for (to, seen) in read_seen.iter_mut().enumerate() {
                let last = read_inbox(&server, to);
                for (me, sender) in senders.iter().enumerate() {
                    let (accepted, sent) = (sender.accepted[to], sender.sent[to]);
                    assert!(
                        (accepted..=sent).contains(&last[me]),
                        "round {round}: sender {me} to {to}: {accepted} accepted, {sent} sent, {} there",
                        last[me]
                    );
                    assert!(seen[me] <= last[me], "an entry was seen and is gone");
                    seen[me] = last[me];
                }
            }
            server.kill();
        }
    }
    let accepted: u64 = senders.iter().flat_map(|sender| sender.accepted).sum();
    println!("{rounds} rounds, {accepted} messages accepted, none lost, doubled or invented");
    assert!(accepted > 0);
}

fn assert_cut_off(ended: &[Ended]) {
    let lost = |ended: &Ended| matches!(ended, Ended::Lost(_));
    assert!(ended.iter().all(lost), "{ended:?}");
}

/// What a kill left unfinished in a data directory, and what the switch had got to.
#[derive(Debug, Default)]
struct Traces {
    /// Rounds that ended inside a checkpoint: its temporary file is there.
    inside_checkpoint: u64,
    /// Rounds that ended when a segment was just being made: it has not its size yet.
    inside_preparation: u64,
    /// Segments that were begun, over all rounds and logs.
    rotations: u64,
    /// Segments that cleaning had removed.
    removed: u64,
    /// Checkpoints that are there in the end.
    checkpoints: u64,
}

impl Traces {
    /// Looks at what is there after a kill.
    fn look(&mut self, data: &Path, segment_bytes: u64) {
        (self.rotations, self.removed, self.checkpoints) = (0, 0, 0);
        let (mut in_checkpoint, mut in_preparation) = (false, false);
        for entry in std::fs::read_dir(data).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("ckpt-") {
                let files = std::fs::read_dir(entry.path()).unwrap().map(Result::unwrap);
                for file in files {
                    let whole = file.file_name().to_string_lossy().ends_with(".ckpt");
                    in_checkpoint |= !whole;
                    self.checkpoints += u64::from(whole);
                }
            } else if name.starts_with("log-") {
                let files = std::fs::read_dir(entry.path()).unwrap().map(Result::unwrap);
                let mut indexes = Vec::new();
                for file in files {
                    let name = file.file_name().into_string().unwrap();
                    let digits = name.strip_suffix(".seg").unwrap();
                    indexes.push(u64::from_str_radix(digits, 16).unwrap() / segment_bytes);
                    in_preparation |= file.metadata().unwrap().len() < segment_bytes;
                }
                let last = indexes.iter().max().unwrap();
                self.rotations += last;
                self.removed += last + 1 - indexes.len() as u64;
            }
        }
        self.inside_checkpoint += u64::from(in_checkpoint);
        self.inside_preparation += u64::from(in_preparation);
    }
}

/// R: B-1, B-4, B-5, B-6, D-5, D-6
#[test]
fn killed_while_it_rotates_checkpoints_and_cleans_nothing_accepted_is_lost_doubled_or_invented() {
    let rounds = kill_rounds();
    let mut random = Random(seed());
    let data = data_dir();
    let mut load = Load {
        bytes_max: 16 * 1024,
        ..Load::default()
    };
    let mut traces = Traces::default();
    for round in 0..rounds {
        let server = Server::start_with(data.path(), &Setup::small_storage());
        let watch = Watch::default();
        let until = random.below(400);
        let ended = load.run(&server, &watch, &mut random, || {
            watch.until_accepted(until);
            server.kill_now();
        });
        assert_cut_off(&ended);
        drop(server);
        traces.look(data.path(), 2 << 20);
        if round % 10 == 9 || round + 1 == rounds {
            let server = Server::start_with(data.path(), &Setup::small_storage());
            load.settle(&server, &mut random);
            server.kill();
        }
    }
    println!("{rounds} rounds, {} accepted, {traces:?}", load.accepted());
    if rounds >= 50 {
        assert!(traces.rotations > 10, "the trial rotates too little");
        assert!(traces.removed > 0, "the trial cleans too little");
        assert!(traces.checkpoints > 0, "the trial makes no checkpoints");
        assert!(
            traces.checkpoints <= 6,
            "two for each of two logs are kept, and one more may have come just before the kill"
        );
    }
}

/// R: B-1, B-4, B-5, B-6, E-4
#[test]
fn restarted_in_order_under_load_nothing_accepted_is_lost_and_the_exit_code_is_0() {
    let mut random = Random(seed());
    let data = data_dir();
    let mut load = Load {
        bytes_max: 2_000,
        ..Load::default()
    };
    for _ in 0..10 {
        let server = Server::start_with(data.path(), &Setup::small_storage());
        let watch = Watch::default();
        let until = random.below(1_000);
        let ended = load.run(&server, &watch, &mut random, || {
            watch.until_accepted(until);
            server.terminate();
        });
        assert_cut_off(&ended);
        let (status, lines) = server.ended();
        assert_eq!(status.code(), Some(0), "{lines:?}");
    }
    let server = Server::start_with(data.path(), &Setup::small_storage());
    load.settle(&server, &mut random);
    println!("{} messages accepted", load.accepted());
}

/// The clients notice nothing but the time: no connection ends.
///
/// R: B-1, B-4, B-5, B-6
#[test]
fn stopped_in_mid_air_under_load_it_goes_on_where_it_was_with_the_same_clients() {
    let mut random = Random(seed());
    let data = data_dir();
    let server = Server::start_with(data.path(), &Setup::small_storage());
    let mut load = Load {
        bytes_max: 2_000,
        ..Load::default()
    };
    let watch = Watch::default();
    let mut moments = Random(random.below(u64::MAX));
    let mut witness = Raw::login(&server, "witness");
    let ended = load.run(&server, &watch, &mut random, || {
        let mut until = 0;
        for nonce in 1..=20 {
            until += moments.below(200);
            watch.until_accepted(until);
            server.pause();
            witness.write(ClientFrame::Ping(v2::Ping { nonce }));
            let pause = Duration::from_millis(1 + moments.below(400));
            let said = witness.try_next_within(pause);
            assert_eq!(said, Ok(None), "a stopped switch");
            server.resume();
            assert_eq!(witness.next(), ServerFrame::Pong(v2::Pong { nonce }));
        }
        watch.finish();
        server.kill_now();
    });
    assert_eq!(ended, vec![Ended::Told; SENDERS]);
    drop(server);
    let server = Server::start_with(data.path(), &Setup::small_storage());
    load.settle(&server, &mut random);
    println!("{} messages accepted", load.accepted());
}
