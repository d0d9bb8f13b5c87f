//! `kill -9` under load, again and again on the same data: what was accepted is there, once, in
//! order, and nothing else.
//!
//! 50 rounds by default, `IRIS_KILL_ROUNDS` for another number. The senders live through all rounds
//! and repeat what they do not know the fate of, as a client library does; the moment of each kill
//! comes from the printed seed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use iris_proto::v2::server_frame::Frame as ServerFrame;

use super::harness::{Random, Server, data_dir, seed};
use super::raw::{Hello, Raw};

const SENDERS: usize = 4;
const RECIPIENTS: usize = 6;
/// Sends of one sender that wait for their answer at a time.
const IN_FLIGHT: usize = 16;

/// What one sender knows, over all rounds: its numbers are counted per recipient, from 1.
#[derive(Default)]
struct Sender {
    /// Per recipient: the last number sent and the last one accepted.
    sent: [u64; RECIPIENTS],
    accepted: [u64; RECIPIENTS],
}

fn recipient(i: usize) -> String {
    format!("recipient-{i}")
}

fn body(sender: usize, to: usize, n: u64) -> Vec<u8> {
    format!("from {sender} to {to} number {n}").into_bytes()
}

impl Sender {
    /// Sends until the connection breaks. Numbers without an answer are repeated first.
    fn run(&mut self, me: usize, server: &Server, total: &AtomicU64, random: &mut Random) {
        let mut client = match connect(server, &format!("sender-{me}")) {
            Some(client) => client,
            None => return,
        };
        let mut asked: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
        for to in 0..RECIPIENTS {
            for n in self.accepted[to] + 1..=self.sent[to] {
                let Ok(tag) = client.try_send(&recipient(to), n, &body(me, to, n)) else {
                    return;
                };
                asked.insert(tag, (to, n));
            }
        }
        loop {
            while asked.len() < IN_FLIGHT {
                let to = random.below(RECIPIENTS as u64) as usize;
                self.sent[to] += 1;
                let n = self.sent[to];
                let Ok(tag) = client.try_send(&recipient(to), n, &body(me, to, n)) else {
                    return;
                };
                asked.insert(tag, (to, n));
            }
            match client.try_next() {
                Ok(ServerFrame::Accepted(accepted)) => {
                    let (to, n) = asked.remove(&accepted.tag).unwrap();
                    assert_eq!(accepted.n, n);
                    assert_eq!(n, self.accepted[to] + 1, "answers of one stream in order");
                    self.accepted[to] = n;
                    total.fetch_add(1, Ordering::SeqCst);
                }
                Ok(ServerFrame::Entry(_)) => panic!("nobody writes to senders"),
                Ok(other) => panic!("sender {me}: {other:?}"),
                Err(_) => return,
            }
        }
    }
}

fn connect(server: &Server, user: &str) -> Option<Raw> {
    let identity = server.identity();
    let mut client = Raw::try_connect(server.address, &identity)?;
    let hello = Hello {
        send_only: true,
        ..Hello::default()
    };
    client.try_hello(&identity.token(user), &hello).ok()?;
    matches!(client.try_next(), Ok(ServerFrame::Welcome(_))).then_some(client)
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
            body(sender, to, n),
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

fn number_of(body: &[u8]) -> u64 {
    let text = std::str::from_utf8(body).unwrap();
    text.rsplit(' ').next().unwrap().parse().unwrap()
}

/// R: B-1, B-4, B-5, B-6, D-6
#[test]
fn killed_under_load_again_and_again_nothing_accepted_is_lost_doubled_or_invented() {
    let rounds = std::env::var("IRIS_KILL_ROUNDS").map_or(50, |text| text.parse().unwrap());
    let mut random = Random(seed());
    let data = data_dir();
    let mut senders: [Sender; SENDERS] = Default::default();
    let mut read_seen = [[0; SENDERS]; RECIPIENTS];
    for round in 0..rounds {
        let server = Server::start(data.path());
        let total = AtomicU64::new(0);
        // Kill once so many messages of this round have been accepted.
        let until = random.below(400);
        let seeds: Vec<u64> = (0..SENDERS).map(|_| random.below(u64::MAX)).collect();
        std::thread::scope(|scope| {
            for (me, sender) in senders.iter_mut().enumerate() {
                let (server, total, seed) = (&server, &total, seeds[me]);
                scope.spawn(move || sender.run(me, server, total, &mut Random(seed)));
            }
            while total.load(Ordering::SeqCst) < until {
                std::thread::yield_now();
            }
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
