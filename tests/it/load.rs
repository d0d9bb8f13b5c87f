//! Load that outlives switches, and the account of it.
//!
//! Senders repeat what they do not know the fate of, as a client library does; readers acknowledge
//! now and then. Both keep what they know over any number of switches on the same data, and check
//! every frame against it: answers of one stream in order, inboxes dense, each stream of a sender
//! in an inbox dense from 1, bodies as sent, nothing twice. In the end [`Load::settle`] reads
//! all inboxes to their end: what was accepted is there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iris_proto::v2::{RejectCode, server_frame::Frame as ServerFrame};

use super::harness::{PATIENCE, Random, Server};
use super::raw::{Hello, Raw};

pub const SENDERS: usize = 4;
pub const RECIPIENTS: usize = 6;
/// Sends of one sender that wait for their answer at a time.
const IN_FLIGHT: usize = 16;

/// How long an acknowledgement waits for company: what PROTOCOL.md allows.
const ACK_DELAY_MAX: Duration = Duration::from_millis(100);

/// What one sender knows, over all switches: its numbers are counted per recipient, from 1.
#[derive(Default)]
pub struct Sender {
    /// Per recipient: the last number sent and the last one accepted.
    pub sent: [u64; RECIPIENTS],
    pub accepted: [u64; RECIPIENTS],
}

/// Why a sender or reader came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and everything that it sent has been answered.
    Told,
    /// The switch said Goodbye, or the connection ended.
    Lost(String),
    /// The switch has no room, or takes a disk that is gone for a full one.
    NoRoom,
}

pub fn recipient(i: usize) -> String {
    format!("recipient-{i}")
}

/// The body of a message says which one it is; bytes that follow from that make it up to
/// `bytes_max` long.
pub fn body(sender: usize, to: usize, n: u64, bytes_max: usize) -> Vec<u8> {
    let mut body = format!("from {sender} to {to} number {n}\n").into_bytes();
    let mut random = Random((sender as u64) << 56 | (to as u64) << 48 | n);
    let len = random.below(bytes_max as u64 + 1) as usize;
    while body.len() < len {
        body.extend_from_slice(&random.below(u64::MAX).to_le_bytes());
    }
    body
}

/// The number that a body says.
pub fn number_of(body: &[u8]) -> u64 {
    let line = body.split(|byte| *byte == b'\n').next().unwrap();
    let text = std::str::from_utf8(line).unwrap();
    text.rsplit(' ').next().unwrap().parse().unwrap()
}

fn sender_of(from: &str) -> usize {
    from.strip_prefix("sender-").unwrap().parse().unwrap()
}

/// What all threads of a load look at.
#[derive(Default)]
pub struct Watch {
    /// Messages accepted since it was made.
    pub accepted: AtomicU64,
    /// Set: senders send nothing new, wait for their answers, and come back.
    pub stop: AtomicBool,
    /// Set once the disk is known to refuse everything: what is sent afterwards is never accepted.
    pub disk_gone: AtomicBool,
    /// Senders that have come back.
    back: AtomicUsize,
}

impl Watch {
    /// Waits until so many messages have been accepted, or nobody sends any more.
    pub fn until_accepted(&self, count: u64) {
        self.until(|| self.accepted.load(Ordering::SeqCst) >= count);
    }

    /// Tells the senders to stop, and waits until all of them are back.
    pub fn finish(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.until(|| false);
    }

    fn until(&self, reached: impl Fn() -> bool) {
        let deadline = Instant::now() + 6 * PATIENCE;
        while !reached() && self.back.load(Ordering::SeqCst) < SENDERS {
            assert!(Instant::now() < deadline, "the load stands still");
            std::thread::yield_now();
        }
    }
}

/// Sends of one connection that wait for their answer.
struct Asked {
    /// By tag: recipient, number, and whether the disk was gone before it was sent.
    waiting: BTreeMap<u64, (usize, u64, bool)>,
}

impl Sender {
    /// Sends until told to stop or until the connection ends. Numbers without an answer are
    /// repeated first.
    pub fn run(
        &mut self,
        me: usize,
        server: &Server,
        bytes_max: usize,
        watch: &Watch,
        random: &mut Random,
    ) -> Ended {
        let Some(mut client) = connect(server, &format!("sender-{me}")) else {
            watch.back.fetch_add(1, Ordering::SeqCst);
            return Ended::Lost("no connection".to_owned());
        };
        let waiting = BTreeMap::new();
        let mut asked = Asked { waiting };
        let result = self.talk(me, &mut client, bytes_max, watch, random, &mut asked);
        watch.back.fetch_add(1, Ordering::SeqCst);
        result.err().unwrap_or(Ended::Told)
    }

    fn talk(
        &mut self,
        me: usize,
        client: &mut Raw,
        bytes_max: usize,
        watch: &Watch,
        random: &mut Random,
        asked: &mut Asked,
    ) -> Result<(), Ended> {
        let send = |to: usize, n: u64, asked: &mut Asked, client: &mut Raw| {
            let doomed = watch.disk_gone.load(Ordering::SeqCst);
            let body = body(me, to, n, bytes_max);
            let tag = client.try_send(&recipient(to), n, &body);
            let tag = tag.map_err(|why| Ended::Lost(why.to_string()))?;
            asked.waiting.insert(tag, (to, n, doomed));
            Ok::<_, Ended>(())
        };
        for to in 0..RECIPIENTS {
            for n in self.accepted[to] + 1..=self.sent[to] {
                send(to, n, asked, client)?;
            }
        }
        loop {
            let stop = watch.stop.load(Ordering::SeqCst);
            while !stop && asked.waiting.len() < IN_FLIGHT {
                let to = random.below(RECIPIENTS as u64) as usize;
                self.sent[to] += 1;
                send(to, self.sent[to], asked, client)?;
            }
            if asked.waiting.is_empty() {
                return Ok(());
            }
            match client.try_next().map_err(Ended::Lost)? {
                ServerFrame::Accepted(accepted) => {
                    let (to, n, doomed) = asked.waiting.remove(&accepted.tag).unwrap();
                    assert_eq!(accepted.n, n);
                    assert_eq!(n, self.accepted[to] + 1, "answers of one stream in order");
                    assert!(!doomed, "accepted, but sent after the disk was gone");
                    self.accepted[to] = n;
                    watch.accepted.fetch_add(1, Ordering::SeqCst);
                }
                ServerFrame::Goodbye(goodbye) => {
                    return Err(Ended::Lost(format!("{:?}", goodbye.reason())));
                }
                ServerFrame::Rejected(why) if why.code() == RejectCode::DiskFull => {
                    return Err(Ended::NoRoom);
                }
                other => panic!("sender {me}: {other:?}"),
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

/// What one reader knows, over all switches.
#[derive(Default)]
pub struct Reader {
    /// Whose message the entry is, by `seq - 1`: sender and number.
    pub seen: Vec<(usize, u64)>,
    /// Per sender: the last number seen.
    pub last: [u64; SENDERS],
    acknowledged: u64,
}

impl Reader {
    /// Reads an inbox until its connection ends, or to where its head was at the login when
    /// `to_head`, and acknowledges after every few entries.
    pub fn run(
        &mut self,
        me: usize,
        server: &Server,
        bytes_max: usize,
        to_head: bool,
        random: &mut Random,
    ) -> Ended {
        let result = self.read(me, server, bytes_max, to_head, random);
        result.map_or_else(Ended::Lost, |()| Ended::Told)
    }

    fn read(
        &mut self,
        me: usize,
        server: &Server,
        bytes_max: usize,
        to_head: bool,
        random: &mut Random,
    ) -> Result<(), String> {
        let identity = server.identity();
        let Some(mut client) = Raw::try_connect(server.address, &identity) else {
            return Err("no connection".to_owned());
        };
        let hello = client.try_hello(&identity.token(&recipient(me)), &Hello::default());
        hello.map_err(|why| why.to_string())?;
        let welcome = match client.try_next()? {
            ServerFrame::Welcome(welcome) => welcome,
            ServerFrame::Goodbye(goodbye) => return Err(format!("{:?}", goodbye.reason())),
            other => panic!("reader {me}: {other:?}"),
        };
        let ahead = "the switch's cursor is ahead of what was acknowledged";
        assert!(welcome.cursor <= self.acknowledged, "reader {me}: {ahead}");
        let gone = "entries that were seen are gone";
        assert!(
            welcome.head_seq >= self.seen.len() as u64,
            "reader {me}: {gone}"
        );
        let mut seq = welcome.cursor;
        let mut told = seq;
        let mut ack_at = seq + 1 + random.below(50);
        while !to_head || seq < welcome.head_seq {
            let frame = match client.try_next_within(ACK_DELAY_MAX)? {
                None if told == seq => Some(client.try_next()?),
                frame => frame,
            };
            match frame {
                Some(ServerFrame::Entry(entry)) => {
                    seq += 1;
                    assert_eq!(entry.seq, seq, "reader {me}: dense");
                    self.note(me, seq, sender_of(&entry.from), &entry.body, bytes_max);
                }
                Some(ServerFrame::Goodbye(goodbye)) => {
                    return Err(format!("{:?}", goodbye.reason()));
                }
                Some(other) => panic!("reader {me}: {other:?}"),
                None => ack_at = seq,
            }
            if seq >= ack_at || to_head && seq == welcome.head_seq {
                self.acknowledged = self.acknowledged.max(seq);
                client.try_ack(seq).map_err(|why| why.to_string())?;
                told = seq;
                ack_at = seq + 1 + random.below(50);
            }
        }
        assert_eq!(
            client.until_pong(),
            [],
            "reader {me}: nothing behind the head"
        );
        Ok(())
    }

    /// An entry that was seen before is the same again; a new one is the next of its stream.
    fn note(&mut self, me: usize, seq: u64, sender: usize, found: &[u8], bytes_max: usize) {
        let n = match self.seen.get(seq as usize - 1) {
            Some((before, n)) => {
                assert_eq!(
                    *before, sender,
                    "reader {me}: entry {seq} is another one now"
                );
                *n
            }
            None => {
                assert_eq!(self.seen.len() as u64, seq - 1);
                self.last[sender] += 1;
                self.seen.push((sender, self.last[sender]));
                self.last[sender]
            }
        };
        let wanted = body(sender, me, n, bytes_max);
        assert!(
            found == wanted,
            "reader {me}: entry {seq} is number {} of sender {sender}, number {n} was due",
            number_of(found)
        );
    }
}

/// Senders and readers.
#[derive(Default)]
pub struct Load {
    pub senders: [Sender; SENDERS],
    pub readers: [Reader; RECIPIENTS],
    /// Bytes of the longest body.
    pub bytes_max: usize,
}

impl Load {
    /// Runs all of it against a switch while `during` does something to that; then waits for all.
    pub fn run(
        &mut self,
        server: &Server,
        watch: &Watch,
        random: &mut Random,
        during: impl FnOnce(),
    ) -> Vec<Ended> {
        let bytes_max = self.bytes_max;
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (me, sender) in self.senders.iter_mut().enumerate() {
                let mut random = Random(random.below(u64::MAX));
                threads.push(
                    scope.spawn(move || sender.run(me, server, bytes_max, watch, &mut random)),
                );
            }
            for (me, reader) in self.readers.iter_mut().enumerate() {
                let mut random = Random(random.below(u64::MAX));
                scope.spawn(move || reader.run(me, server, bytes_max, false, &mut random));
            }
            during();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.collect()
        })
    }

    /// Reads all inboxes to their end: what was accepted is there, and nothing that was not sent.
    pub fn settle(&mut self, server: &Server, random: &mut Random) {
        for (to, reader) in self.readers.iter_mut().enumerate() {
            assert_eq!(
                reader.run(to, server, self.bytes_max, true, random),
                Ended::Told
            );
            for (me, sender) in self.senders.iter().enumerate() {
                let (accepted, sent) = (sender.accepted[to], sender.sent[to]);
                assert!(
                    (accepted..=sent).contains(&reader.last[me]),
                    "sender {me} to {to}: {accepted} accepted, {sent} sent, {} there",
                    reader.last[me]
                );
            }
        }
    }

    pub fn accepted(&self) -> u64 {
        let senders = self.senders.iter();
        senders.flat_map(|sender| sender.accepted).sum()
    }
}
