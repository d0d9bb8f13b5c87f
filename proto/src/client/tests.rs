//! The session against a small model of the switch, with connections that break anywhere.

mod renewal;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::v2::{GapReason, RejectCode, server_frame};
use crate::wire::{
    ClientFrameRef, EntryRef, SendRef, decode_client, encode_accepted, encode_entry, encode_gap,
    encode_pong, encode_server,
};

mod unavailable;

/// A switch with one client: streams by number, and one inbox for the client.
#[derive(Default)]
struct Switch {
    streams: BTreeMap<(u64, String), u64>,
    stored: Vec<(String, Vec<u8>)>,
    inbox: Vec<Vec<u8>>,
    /// Positions whose messages are lost.
    lost: BTreeSet<u64>,
    cursor: u64,
    epoch: u64,
    pushed: u64,
    /// Answers to be given instead of storing, first come.
    refusals: VecDeque<RejectCode>,
    /// Whose data is not served.
    unavailable: BTreeSet<String>,
    cluster: Vec<u8>,
    resumed: Vec<Option<u64>>,
    done: bool,
    /// Seconds that a session is told to have left, at its beginning.
    expiring: Option<u64>,
    /// The tokens that it takes, with the seconds that they last.
    tokens: BTreeMap<String, u64>,
}

impl Switch {
    fn take(&mut self, mut bytes: &[u8], decoder: &mut Decoder, out: &mut Vec<u8>) {
        while let Some(frame) = decoder
            .next(&mut bytes)
            .expect("the client keeps to the limit")
        {
            match decode_client(frame).expect("the client sends whole frames") {
                ClientFrameRef::Hello(hello) => {
                    self.epoch = hello.send_epoch;
                    self.resumed.push(hello.resume_after);
                    let head = self.inbox.len() as u64;
                    self.pushed = hello.resume_after.unwrap_or(self.cursor).min(head);
                    let welcome = v2::Welcome {
                        version: 2,
                        head_seq: head,
                        cursor: self.pushed,
                        oldest_seq: 1,
                        cluster: self.cluster.clone(),
                        ..Default::default()
                    };
                    encode_server(out, server_frame::Frame::Welcome(welcome));
                    if let Some(seconds_left) = self.expiring {
                        let expiring = v2::Expiring { seconds_left };
                        encode_server(out, server_frame::Frame::Expiring(expiring));
                    }
                }
                ClientFrameRef::Send(send) => self.store(&send, out),
                ClientFrameRef::Ack(seq) => self.cursor = self.cursor.max(seq.min(self.pushed)),
                ClientFrameRef::Ping(nonce) => encode_pong(out, nonce),
                ClientFrameRef::Fetch(fetch) => {
                    let (last, more) = (fetch.after, false);
                    let fetched = v2::Fetched {
                        tag: fetch.tag,
                        last,
                        more,
                    };
                    encode_server(out, server_frame::Frame::Fetched(fetched));
                }
                ClientFrameRef::Goodbye(_) => self.done = true,
                ClientFrameRef::Reauth(reauth) => self.reauth(&reauth, out),
            }
        }
        self.push(out);
    }

    fn reauth(&mut self, reauth: &v2::Reauth, out: &mut Vec<u8>) {
        let tag = reauth.tag;
        let frame = match self.tokens.get(&reauth.token) {
            Some(&expires_in_s) => {
                server_frame::Frame::Reauthed(v2::Reauthed { tag, expires_in_s })
            }
            None => server_frame::Frame::Rejected(v2::Rejected {
                tag,
                code: RejectCode::BadToken.into(),
                ..Default::default()
            }),
        };
        encode_server(out, frame);
    }

    fn store(&mut self, send: &SendRef<'_>, out: &mut Vec<u8>) {
        if self.unavailable.contains(send.to) {
            let rejected = v2::Rejected {
                tag: send.tag,
                code: RejectCode::Unavailable.into(),
                retry_after_ms: 5_000,
                ..Default::default()
            };
            return encode_server(out, server_frame::Frame::Rejected(rejected));
        }
        let last = self
            .streams
            .entry((self.epoch, send.to.to_string()))
            .or_insert(0);
        let (tag, expected) = (send.tag, *last + 1);
        if send.n < expected {
            return encode_accepted(out, tag, send.n);
        }
        let code = if send.n > expected {
            Some(RejectCode::Gap)
        } else {
            self.refusals.pop_front()
        };
        if let Some(code) = code {
            let rejected = v2::Rejected {
                tag,
                code: code.into(),
                expected,
                ..Default::default()
            };
            return encode_server(out, server_frame::Frame::Rejected(rejected));
        }
        *last += 1;
        self.stored.push((send.to.to_string(), send.body.to_vec()));
        encode_accepted(out, tag, send.n);
    }

    fn push(&mut self, out: &mut Vec<u8>) {
        while let Some(body) = self.inbox.get(self.pushed as usize) {
            self.pushed += 1;
            if self.lost.contains(&self.pushed) {
                let first = self.pushed;
                while self.lost.contains(&(self.pushed + 1)) {
                    self.pushed += 1;
                }
                encode_gap(out, gap(first, self.pushed, 0));
                continue;
            }
            let (from, from_device, id) = ("carol", "main", [1; 16]);
            let (seq, time_ms, fetch_tag) = (self.pushed, 0, 0);
            encode_entry(
                out,
                &EntryRef {
                    seq,
                    from,
                    from_device,
                    id,
                    time_ms,
                    body,
                    fetch_tag,
                },
            );
        }
    }

    fn bodies_to(&self, to: &str) -> Vec<&[u8]> {
        let to_them = self.stored.iter().filter(|(other, _)| other == to);
        to_them.map(|(_, body)| &body[..]).collect()
    }
}

fn gap(first: u64, last: u64, fetch_tag: u64) -> v2::Gap {
    let reason = GapReason::Lost.into();
    v2::Gap {
        first,
        last,
        reason,
        fetch_tag,
    }
}

/// A session and its switch, joined by connections that carry a given number of bytes and break.
struct World {
    session: Session,
    switch: Switch,
    now_ms: u64,
    events: Vec<Event>,
}

impl World {
    fn new(config: Config) -> Self {
        let switch = Switch::default();
        Self {
            session: Session::new(config),
            switch,
            now_ms: 0,
            events: Vec::new(),
        }
    }

    fn send(&mut self, to: &str, body: &[u8]) -> Ticket {
        let to = UserId::new(to).expect("a user");
        self.session
            .send(&to, MessageId([2; 16]), body.to_vec())
            .expect("there is room")
    }

    fn drain(&mut self) {
        while let Some(event) = self.session.event() {
            match &event {
                Event::Entry(entry) => self.session.ack(self.now_ms, entry.seq),
                Event::Gap { last, .. } => self.session.ack(self.now_ms, *last),
                _ => {}
            }
            self.events.push(event);
        }
    }

    /// One connection, which breaks after so many bytes up and down.
    fn connection(&mut self, mut up: usize, mut down: usize) {
        let Step::Connect { at_ms, .. } = self.session.step() else {
            return;
        };
        self.now_ms = self.now_ms.max(at_ms);
        self.session.connected(self.now_ms, "token");
        let mut decoder = Decoder::new(FRAME_BYTES_MAX);
        for _ in 0..100 {
            let mut bytes = Vec::new();
            self.session.write(self.now_ms, &mut bytes);
            bytes.truncate(up);
            up -= bytes.len();
            let mut answer = Vec::new();
            self.switch.take(&bytes, &mut decoder, &mut answer);
            answer.truncate(down);
            down -= answer.len();
            if !answer.is_empty() {
                self.session.received(self.now_ms, &answer);
            }
            self.drain();
            let Step::Run { until_ms } = self.session.step() else {
                return;
            };
            if up == 0 || down == 0 {
                self.session.lost(self.now_ms);
                return self.drain();
            }
            if bytes.is_empty() && answer.is_empty() {
                if until_ms >= self.now_ms + CLIENT_ANSWER_MS {
                    return; // nothing but heartbeats left
                }
                self.now_ms = self.now_ms.max(until_ms);
            }
            self.session.tick(self.now_ms);
        }
    }

    /// What the session has to say and what the switch answers, on the connection that is there.
    fn exchange(&mut self) {
        let (mut bytes, mut answer) = (Vec::new(), Vec::new());
        self.session.write(self.now_ms, &mut bytes);
        let mut decoder = Decoder::new(FRAME_BYTES_MAX);
        self.switch.take(&bytes, &mut decoder, &mut answer);
        self.session.received(self.now_ms, &answer);
        self.drain();
    }

    fn accepted(&self) -> Vec<Ticket> {
        let accepted = self.events.iter().filter_map(|event| match event {
            Event::Accepted { ticket, .. } => Some(*ticket),
            _ => None,
        });
        accepted.collect()
    }

    fn failed(&self) -> Vec<(Ticket, SendFailure)> {
        let failed = self.events.iter().filter_map(|event| match event {
            Event::Failed { ticket, reason } => Some((*ticket, reason.clone())),
            _ => None,
        });
        failed.collect()
    }

    fn entries(&self) -> Vec<u64> {
        let entries = self.events.iter().filter_map(|event| match event {
            Event::Entry(entry) => Some(entry.seq.0),
            _ => None,
        });
        entries.collect()
    }
}

const ALL: usize = usize::MAX;

proptest! {
    /// R: B-6, D-2
    #[test]
    fn every_position_comes_out_once_as_an_entry_or_in_a_gap_wherever_connections_break(
        lost in proptest::collection::vec(any::<bool>(), 0..30),
        cuts in proptest::collection::vec(0_usize..400, 0..12),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(Config { seed, ..Default::default() });
        world.switch.inbox = vec![vec![9; 10]; lost.len()];
        world.switch.lost =
            (1..).zip(&lost).filter(|(_, lost)| **lost).map(|(seq, _)| seq).collect();
        for down in cuts {
            world.connection(ALL, down);
        }
        world.session.lost(world.now_ms);
        world.connection(ALL, ALL);

        let mut at = 0;
        for event in &world.events {
            match event {
                Event::Entry(entry) => {
                    prop_assert_eq!(entry.seq.0, at + 1);
                    prop_assert!(!world.switch.lost.contains(&entry.seq.0));
                    at = entry.seq.0;
                }
                Event::Gap { first, last, reason, ticket } => {
                    prop_assert_eq!((first.0, *reason, *ticket), (at + 1, GapReason::Lost, None));
                    prop_assert!((first.0..=last.0).all(|seq| world.switch.lost.contains(&seq)));
                    at = last.0;
                }
                Event::Disconnected(why) => prop_assert_eq!(why, &Disconnect::Lost),
                _ => {}
            }
        }
        prop_assert_eq!(at, lost.len() as u64);
        prop_assert_eq!(world.switch.cursor, at, "gaps are acknowledged as entries are");
    }

    /// R: B-5, D-2
    #[test]
    fn stream_set_back_by_a_salvage_turns_the_epoch_and_only_what_is_in_doubt_fails(
        before in 1_usize..4, broken in 0_usize..4, after in 1_usize..3,
        cut in (0_usize..300, 0_usize..300),
        set_back in 1_u64..6, only_numbers in any::<bool>(), overloads in 0_usize..3,
        seed in any::<u64>(),
    ) {
        let mut world = World::new(Config { seed, ..Default::default() });
        let mut bodies = 0_u8..;
        let mut tickets = BTreeMap::new();
        let mut send_to_both = |world: &mut World, count: usize| {
            for body in bodies.by_ref().take(count) {
                for to in ["ann", "bob"] {
                    tickets.insert(world.send(to, &[body]), (to, body));
                }
            }
        };
        send_to_both(&mut world, before);
        world.connection(ALL, ALL);
        send_to_both(&mut world, broken);
        world.session.lost(world.now_ms);
        world.connection(cut.0, cut.1);
        let safe = world.accepted(); // and bob's may be lost below: that is the gap in bob's inbox
        // Bob's newest entries were damaged and are set aside: the stream to him is shorter.
        let stream = (world.switch.epoch, "bob".to_string());
        let last = world.switch.streams.get_mut(&stream).expect("there is one before");
        *last = last.saturating_sub(set_back);
        let kept = *last as usize;
        let to_bob = |event: &&Event| matches!(event, Event::Accepted { to, .. } if to.as_str() == "bob");
        let safe_to_bob = world.events.iter().filter(to_bob).count();
        if !only_numbers || kept >= safe_to_bob {
            let mut place = 0;
            world.switch.stored.retain(|(to, _)| {
                place += usize::from(to == "bob");
                to != "bob" || place <= kept
            });
        }
        world.session.lost(world.now_ms);
        world.switch.refusals.extend(vec![RejectCode::Overloaded; overloads]);
        send_to_both(&mut world, after);
        for _ in 0..4 {
            world.connection(ALL, ALL); // the old epoch ends, the new one begins
        }

        let accepted: BTreeSet<Ticket> = world.accepted().into_iter().collect();
        let failed: BTreeMap<Ticket, SendFailure> = world.failed().into_iter().collect();
        prop_assert_eq!(accepted.len() + failed.len(), tickets.len());
        prop_assert_eq!(accepted.len(), world.accepted().len(), "each once");
        for (ticket, (to, body)) in &tickets {
            let stored = world.switch.stored.iter()
                .filter(|(other, stored)| other == to && stored[..] == [*body]).count();
            match failed.get(ticket) {
                Some(why) => {
                    prop_assert_eq!(why, &SendFailure::InDoubt);
                    prop_assert_eq!(*to, "bob", "nothing of ann's was forgotten");
                    prop_assert!((before..before + broken).contains(&usize::from(*body)));
                    prop_assert!(stored <= 1);
                }
                None if safe.contains(ticket) && *to == "bob" => prop_assert!(stored <= 1),
                None => prop_assert_eq!(stored, 1, "accepted after the salvage"),
            }
        }
        for to in ["ann", "bob"] {
            prop_assert!(world.switch.bodies_to(to).is_sorted(), "in order");
        }
    }

    /// R: B-4, B-5, B-6, G-1
    #[test]
    fn nothing_is_lost_doubled_or_reordered_wherever_connections_break(
        sends in proptest::collection::vec(0_usize..3, 1..40),
        inbox in 0_usize..30,
        cuts in proptest::collection::vec((0_usize..900, 0_usize..900), 0..12),
        overloads in 0_usize..6,
        seed in any::<u64>(),
    ) {
        let mut world = World::new(Config { seed, ..Default::default() });
        world.switch.refusals.extend(vec![RejectCode::Overloaded; overloads]);
        world.switch.inbox = (0..inbox).map(|at| vec![at as u8; 10]).collect();
        let names = ["ann", "bob", "cat"];
        let mut cuts = cuts.into_iter();
        let mut tickets = Vec::new();
        for (at, to) in sends.iter().enumerate() {
            tickets.push(world.send(names[*to], &[at as u8]));
            if at % 3 == 2 && let Some((up, down)) = cuts.next() {
                world.connection(up, down);
            }
        }
        for (up, down) in cuts {
            world.connection(up, down);
        }
        world.session.lost(world.now_ms);
        world.connection(ALL, ALL);

        let mut accepted = world.accepted();
        accepted.sort();
        prop_assert_eq!(accepted, tickets);
        for (place, name) in names.iter().enumerate() {
            let sent: Vec<Vec<u8>> = (0..sends.len())
                .filter(|at| sends[*at] == place)
                .map(|at| vec![at as u8])
                .collect();
            prop_assert_eq!(world.switch.bodies_to(name), sent);
        }
        prop_assert_eq!(world.entries(), (1..=inbox as u64).collect::<Vec<_>>());
        prop_assert_eq!(world.switch.cursor, inbox as u64, "everything is acknowledged");
    }

    #[test]
    fn garbage_from_the_switch_never_panics(
        pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..100), 1..8),
    ) {
        let mut world = World::new(Config::default());
        world.send("bob", b"x");
        world.session.connected(0, "token");
        for piece in pieces {
            world.session.received(0, &piece);
            world.session.write(0, &mut Vec::new());
            world.drain();
        }
    }
}

#[test]
fn refused_message_fails_alone_and_those_behind_it_take_its_number() {
    let mut world = World::new(Config::default());
    let tickets: Vec<Ticket> = [b"a", b"b", b"c"]
        .map(|body| world.send("bob", body))
        .to_vec();
    world.switch.refusals.push_back(RejectCode::InboxFull);
    world.connection(ALL, ALL);
    assert_eq!(world.switch.bodies_to("bob"), [b"b", b"c"]);
    assert_eq!(world.accepted(), tickets[1..]);
    let failed = world.failed();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].0, tickets[0]);
    assert!(matches!(
        failed[0].1,
        SendFailure::Refused {
            code: RejectCode::InboxFull,
            ..
        }
    ));
}

/// R: B-5
#[test]
fn forgotten_stream_begins_a_new_epoch_and_what_is_in_doubt_is_not_sent_twice() {
    let mut world = World::new(Config::default());
    let first = world.send("bob", b"1");
    world.connection(ALL, ALL);
    assert_eq!(world.accepted(), [first]);
    let old_epoch = world.switch.epoch;
    // "2" arrives and its answer is lost; then the switch forgets; "3" was never sent.
    let in_doubt = world.send("bob", b"2");
    let mut out = Vec::new();
    world.session.write(world.now_ms, &mut out);
    world
        .switch
        .take(&out, &mut Decoder::new(FRAME_BYTES_MAX), &mut Vec::new());
    world.session.lost(world.now_ms);
    world.switch.streams.clear();
    let never_sent = world.send("bob", b"3");
    let other = world.send("ann", b"4");
    world.connection(ALL, ALL);
    world.connection(ALL, ALL);
    assert_ne!(world.switch.epoch, old_epoch);
    assert_eq!(world.failed(), [(in_doubt, SendFailure::InDoubt)]);
    assert_eq!(
        world.accepted(),
        [first, other, never_sent],
        "ann's stream was not forgotten"
    );
    assert_eq!(world.switch.bodies_to("bob"), [b"1", b"2", b"3"]);
    assert_eq!(world.switch.bodies_to("ann"), [b"4"]);
    assert!(
        world
            .events
            .contains(&Event::Disconnected(Disconnect::NewEpoch))
    );
}

#[test]
fn other_data_behind_the_switch_voids_the_cursor() {
    let config = Config {
        resume_after: Some(Seq(5)),
        cluster: Some([1; 16]),
        ..Default::default()
    };
    let mut world = World::new(config);
    world.switch.cluster = vec![2; 16];
    world.switch.inbox = vec![vec![9]; 7];
    world.connection(ALL, ALL);
    world.connection(ALL, ALL);
    assert_eq!(world.switch.resumed, [Some(5), None]);
    assert_eq!(world.entries(), [1, 2, 3, 4, 5, 6, 7]);
}

/// R: B-6
#[test]
fn resume_starts_after_the_safe_position_and_says_what_retention_took() {
    let mut world = World::new(Config {
        resume_after: Some(Seq(2)),
        ..Default::default()
    });
    world.switch.inbox = vec![vec![9]; 4];
    world.connection(ALL, ALL);
    assert_eq!(world.entries(), [3, 4]);

    let mut session = Session::new(Config {
        resume_after: Some(Seq(2)),
        ..Default::default()
    });
    session.connected(0, "token");
    let welcome = v2::Welcome {
        head_seq: 9,
        cursor: 6,
        oldest_seq: 7,
        ..Default::default()
    };
    let mut bytes = Vec::new();
    encode_server(&mut bytes, server_frame::Frame::Welcome(welcome));
    session.received(0, &bytes);
    let Some(Event::Welcomed(welcomed)) = session.event() else {
        panic!("no welcome")
    };
    assert_eq!(welcomed.lost_upto, Some(Seq(6)));
}

#[test]
fn entry_after_a_missing_one_is_not_handed_out() {
    let mut world = World::new(Config::default());
    world.connection(ALL, ALL);
    let mut bytes = Vec::new();
    let (from, from_device, id, body) = ("a", "b", [0; 16], &b""[..]);
    let entry = EntryRef {
        seq: 2,
        from,
        from_device,
        id,
        time_ms: 0,
        body,
        fetch_tag: 0,
    };
    encode_entry(&mut bytes, &entry);
    world.session.received(world.now_ms, &bytes);
    world.drain();
    assert_eq!(world.entries(), []);
    assert!(matches!(world.session.step(), Step::Connect { .. }));
}

/// R: B-6
#[test]
fn entry_that_comes_again_is_not_handed_out_again() {
    let mut world = World::new(Config::default());
    world.switch.inbox = vec![vec![9]; 2];
    world.connection(ALL, ALL);
    let mut bytes = Vec::new();
    let (from, from_device, id, body) = ("a", "b", [0; 16], &b""[..]);
    let entry = EntryRef {
        seq: 2,
        from,
        from_device,
        id,
        time_ms: 0,
        body,
        fetch_tag: 0,
    };
    encode_entry(&mut bytes, &entry);
    world.session.received(world.now_ms, &bytes);
    world.drain();
    assert_eq!(world.entries(), [1, 2]);
    assert!(world.session.is_online());
}

#[test]
fn silent_switch_is_pinged_and_then_given_up() {
    let mut world = World::new(Config::default());
    world.connection(ALL, ALL);
    let Step::Run { until_ms } = world.session.step() else {
        panic!("not connected")
    };
    world.session.tick(until_ms);
    let mut out = Vec::new();
    world.session.write(until_ms, &mut out);
    assert!(matches!(
        decode_client(&out[4..]),
        Ok(ClientFrameRef::Ping(_))
    ));
    let Step::Run { until_ms } = world.session.step() else {
        panic!("given up too early")
    };
    world.session.tick(until_ms);
    world.drain();
    assert_eq!(
        world.events.last(),
        Some(&Event::Disconnected(Disconnect::Silent))
    );
}

#[test]
fn goodbye_decides_between_coming_back_and_ending() {
    let meet = |reason: GoodbyeReason| {
        let mut world = World::new(Config::default());
        world.connection(ALL, ALL);
        let goodbye = v2::Goodbye {
            reason: reason.into(),
            retry_after_ms: 5_000,
            other_address: "other:1".into(),
            ..Default::default()
        };
        let mut bytes = Vec::new();
        encode_server(&mut bytes, server_frame::Frame::Goodbye(goodbye));
        world.session.received(1_000, &bytes);
        world.session.step()
    };
    for reason in [
        GoodbyeReason::ShuttingDown,
        GoodbyeReason::Unavailable,
        GoodbyeReason::TooManySessions,
    ] {
        let Step::Connect { at_ms, address } = meet(reason) else {
            panic!("it does not come back")
        };
        assert!((6_000..=6_000 + crate::limits::BACKOFF_BASE_MS).contains(&at_ms));
        assert_eq!(address.as_deref(), Some("other:1"));
    }
    for reason in [
        GoodbyeReason::BadToken,
        GoodbyeReason::Replaced,
        GoodbyeReason::Version,
    ] {
        assert!(
            matches!(meet(reason), Step::End(End::Goodbye { reason: why, .. }) if why == reason)
        );
    }
}

#[test]
fn close_waits_for_answers_acknowledges_and_says_goodbye() {
    let mut world = World::new(Config::default());
    world.switch.inbox = vec![vec![9]; 3];
    let ticket = world.send("bob", b"last");
    world.session.close();
    world.connection(ALL, ALL);
    assert_eq!(world.accepted(), [ticket]);
    assert_eq!(world.switch.cursor, 3);
    assert!(world.switch.done);
    assert_eq!(world.session.step(), Step::End(End::Closed));
    let to = UserId::new("bob").expect("a user");
    assert_eq!(
        world.session.send(&to, MessageId([0; 16]), vec![]),
        Err(SendError::Closed)
    );
}

#[test]
fn queue_is_bounded_and_abort_tells_the_fate_of_everything_in_it() {
    let mut world = World::new(Config::default());
    for _ in 0..crate::limits::CLIENT_UNANSWERED_MAX {
        world.send("bob", b"x");
    }
    let to = UserId::new("bob").expect("a user");
    let over = world.session.send(&to, MessageId([0; 16]), vec![]);
    assert_eq!(over, Err(SendError::Full));
    let large = world.session.send(&to, MessageId([0; 16]), vec![0; 65_537]);
    assert_eq!(
        large,
        Err(SendError::BodyTooLarge {
            len: 65_537,
            max: 65_536
        })
    );
    world.session.abort();
    world.drain();
    let failed = world.failed();
    assert_eq!(failed.len(), crate::limits::CLIENT_UNANSWERED_MAX);
    assert!(
        failed
            .iter()
            .all(|(_, reason)| *reason == SendFailure::NotSent)
    );
}

/// R: D-2
#[test]
fn gap_that_does_not_follow_what_came_before_ends_the_connection_and_moves_nothing() {
    for (first, last) in [(2, 4), (3, 4), (5, 6), (4, 3), (0, 4), (0, 0)] {
        let mut world = World::new(Config::default());
        world.switch.inbox = vec![vec![9]; 3];
        world.connection(ALL, ALL);
        let mut bytes = Vec::new();
        encode_gap(&mut bytes, gap(first, last, 0));
        world.session.received(world.now_ms, &bytes);
        world.drain();
        let last_event = world.events.last();
        assert!(
            matches!(
                last_event,
                Some(Event::Disconnected(Disconnect::Violation(_)))
            ),
            "{first} to {last}: {last_event:?}"
        );
        world.connection(ALL, ALL);
        assert_eq!(world.switch.resumed, [None, Some(3)]);
    }
}

/// R: D-2
#[test]
fn gap_in_the_answer_to_a_fetch_moves_no_position() {
    let mut world = World::new(Config::default());
    world.switch.inbox = vec![vec![9]; 3];
    world.connection(ALL, ALL);
    let ticket = world.session.fetch(Seq(0), 2).expect("connected");
    let tag = world.session.fetch.as_ref().expect("under way").tag;
    let mut bytes = Vec::new();
    encode_gap(&mut bytes, gap(1, 2, tag + 7)); // of nobody's fetch
    encode_gap(&mut bytes, gap(1, 2, tag));
    let (last, more) = (2, true);
    let fetched = v2::Fetched { tag, last, more };
    encode_server(&mut bytes, server_frame::Frame::Fetched(fetched));
    encode_gap(&mut bytes, gap(4, 9, 0)); // pushed, in between
    world.session.received(world.now_ms, &bytes);
    world.events.clear();
    world.drain();
    let (reason, last) = (GapReason::Lost, Seq(2));
    let expected = [
        Event::Gap {
            first: Seq(1),
            last,
            reason,
            ticket: Some(ticket),
        },
        Event::Fetched { ticket, last, more },
        Event::Gap {
            first: Seq(4),
            last: Seq(9),
            reason,
            ticket: None,
        },
    ];
    assert_eq!(world.events, expected);
}

/// R: D-2
#[test]
fn what_is_not_served_now_is_sent_again_in_order() {
    let mut world = World::new(Config::default());
    world
        .switch
        .refusals
        .extend([RejectCode::Unavailable, RejectCode::Unavailable]);
    let tickets = [world.send("bob", b"1"), world.send("bob", b"2")];
    world.connection(ALL, ALL);
    assert_eq!(world.accepted(), tickets);
    assert_eq!(world.switch.bodies_to("bob"), [b"1", b"2"]);
    assert_eq!(world.failed(), []);
}
