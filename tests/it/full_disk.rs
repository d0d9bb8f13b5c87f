//! A disk without room: new messages are refused, and nothing else is.

use std::time::Instant;

use iris_proto::v2::{
    self, GoodbyeReason, RejectCode, client_frame::Frame as ClientFrame,
    server_frame::Frame as ServerFrame,
};

use super::harness::{PATIENCE, Server, Setup};
use super::load::body;
use super::raw::{Hello, Raw};
use super::small_disk::SmallDisk;

/// Room for the segments that two logs keep ahead, and for a few more.
pub(super) const DISK_MIB: u64 = 48;
/// Enough for users of both logs.
const USERS: usize = 8;
const BODY_BYTES_MAX: usize = 60_000;

fn user(i: usize) -> String {
    format!("user-{i}")
}

/// One sender to all users, and what was accepted.
pub(super) struct Flood {
    ann: Raw,
    /// Per user: the number of the last message accepted.
    accepted: [u64; USERS],
}

impl Flood {
    fn send(&mut self, to: usize) -> u64 {
        let n = self.accepted[to] + 1;
        self.ann.send(&user(to), n, &body(0, to, n, BODY_BYTES_MAX))
    }

    /// Sends to all users, until each of them was refused for want of room.
    pub(super) fn until_refused(&mut self) {
        let mut asked: Vec<(u64, usize)> = (0..USERS).map(|to| (self.send(to), to)).collect();
        while !asked.is_empty() {
            let answer = self.ann.next();
            let tag = tag_of(&answer);
            let at = asked.iter().position(|(asked, _)| *asked == tag).unwrap();
            let (_, to) = asked.swap_remove(at);
            match answer {
                ServerFrame::Accepted(_) => {
                    self.accepted[to] += 1;
                    asked.push((self.send(to), to));
                }
                answer => assert_no_room(&answer),
            }
        }
    }

    /// Sends to one user until it is accepted. A busy disk takes its time to sync a segment's zeros.
    fn until_accepted(&mut self, to: usize) {
        let deadline = Instant::now() + 3 * PATIENCE;
        loop {
            self.send(to);
            match self.ann.next() {
                ServerFrame::Accepted(_) => break,
                answer => assert_no_room(&answer),
            }
            assert!(Instant::now() < deadline, "space that returned is not used");
        }
        self.accepted[to] += 1;
    }

    pub(super) fn all_accepted(&mut self) {
        (0..USERS).for_each(|to| self.until_accepted(to));
    }

    /// What stands is answered, what is new is refused, and a ping has its pong.
    fn is_refused_politely(&mut self) {
        for to in 0..USERS {
            let n = self.accepted[to];
            self.ann
                .send_accepted(&user(to), n, &body(0, to, n, BODY_BYTES_MAX));
            self.send(to);
            assert_no_room(&self.ann.next());
        }
        assert_eq!(self.ann.until_pong(), []);
    }

    /// Reads and acknowledges everything, by the device that is known.
    fn is_all_there(&self, server: &Server) {
        for (to, accepted) in self.accepted.iter().enumerate() {
            let (mut client, welcome) = Raw::login_with(server, &user(to), &Hello::default());
            assert_eq!(welcome.head_seq, *accepted, "as many as were accepted");
            for seq in welcome.cursor + 1..=welcome.head_seq {
                let entry = client.entry();
                assert_eq!(entry.seq, seq);
                assert!(entry.body == body(0, to, seq, BODY_BYTES_MAX));
                client.ack(seq);
            }
            assert_eq!(client.until_pong(), []);
            fetch(&mut client, to, *accepted);
            drop(client); // leaving makes the cursor durable at once
            until_cursor(server, to, *accepted);
        }
    }
}

fn tag_of(answer: &ServerFrame) -> u64 {
    match answer {
        ServerFrame::Accepted(accepted) => accepted.tag,
        ServerFrame::Rejected(rejected) => rejected.tag,
        other => panic!("no answer: {other:?}"),
    }
}

fn assert_no_room(answer: &ServerFrame) {
    let ServerFrame::Rejected(rejected) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(rejected.code(), RejectCode::DiskFull);
    assert!(rejected.retry_after_ms > 0);
}

/// The last entries once more, beside the push.
fn fetch(client: &mut Raw, to: usize, head: u64) {
    let after = head.saturating_sub(3);
    client.write(ClientFrame::Fetch(v2::Fetch {
        tag: 1 << 40,
        after,
        limit: 10,
    }));
    for seq in after + 1..=head {
        let entry = client.entry();
        assert_eq!((entry.seq, entry.fetch_tag), (seq, 1 << 40));
        assert!(entry.body == body(0, to, seq, BODY_BYTES_MAX));
    }
    let fetched = v2::Fetched {
        tag: 1 << 40,
        last: head,
        more: false,
    };
    assert_eq!(client.next(), ServerFrame::Fetched(fetched));
}

/// What was acknowledged is known at a later login; the earlier connection's end may take a moment.
fn until_cursor(server: &Server, to: usize, acknowledged: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, welcome) = Raw::login_with(server, &user(to), &Hello::default());
        if welcome.cursor == acknowledged {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the cursor stays at {}",
            welcome.cursor
        );
    }
}

/// A switch on a disk of its own, whose users' devices are known and have a message each.
pub(super) fn begin(disk: &SmallDisk) -> (Server, Flood) {
    let server = Server::start_with(&disk.data(), &Setup::small_storage());
    for to in 0..USERS {
        Raw::login(&server, &user(to)); // its device is known from now on
    }
    let mut flood = Flood {
        ann: Raw::login(&server, "ann"),
        accepted: [0; USERS],
    };
    flood.all_accepted();
    (server, flood)
}

/// R: B-8, B-1, B-6
#[test]
fn a_full_disk_refuses_new_messages_serves_the_rest_and_takes_them_again_when_space_returns() {
    let Some(disk) = SmallDisk::make(DISK_MIB) else {
        return;
    };
    let (server, mut flood) = begin(&disk);
    for _ in 0..2 {
        disk.fill(0);
        flood.until_refused();
        disk.fill(0);
        flood.is_refused_politely();
        flood.is_all_there(&server);
        flood.is_refused_politely();
        a_new_device_is_told_to_come_later(&server);
        disk.free();
        flood.all_accepted();
        flood.is_all_there(&server);
    }
    assert_eq!(server.stop().code(), Some(0));
    println!("accepted: {:?}", flood.accepted);
}

/// Kills a switch on a full disk and starts it again there, with so many bytes left.
fn killed_and_started_on_a_full_disk(bytes_left: u64) {
    let Some(disk) = SmallDisk::make(DISK_MIB) else {
        return;
    };
    let (server, mut flood) = begin(&disk);
    disk.fill(0);
    flood.until_refused();
    server.kill();
    disk.fill(bytes_left);
    let server = Server::start_with(&disk.data(), &Setup::small_storage());
    flood.ann = Raw::login(&server, "ann");
    // Until it has tried to make a segment, it takes what fits the open one.
    flood.until_refused();
    flood.is_refused_politely();
    flood.is_all_there(&server);
    a_new_device_is_told_to_come_later(&server);
    disk.free();
    flood.all_accepted();
    flood.is_all_there(&server);
    assert_eq!(server.stop().code(), Some(0));
}

/// R: B-8, B-1, B-6, D-6
#[test]
fn killed_on_a_disk_with_hardly_any_room_it_starts_there_again_serves_all_and_recovers() {
    killed_and_started_on_a_full_disk(64 * 1024);
}

/// R: B-8, B-1, B-6, D-6
#[test]
fn killed_on_a_disk_without_a_block_left_it_starts_there_again_serves_all_and_recovers() {
    killed_and_started_on_a_full_disk(0);
}

/// R: B-8, E-4
#[test]
fn stopped_on_a_disk_without_a_block_left_it_ends_in_order_with_exit_code_0() {
    let Some(disk) = SmallDisk::make(DISK_MIB) else {
        return;
    };
    let (server, mut flood) = begin(&disk);
    disk.fill(0);
    flood.until_refused();
    disk.fill(0);
    server.terminate();
    let (status, lines) = server.ended();
    assert_eq!(status.code(), Some(0), "{lines:?}");
}

fn a_new_device_is_told_to_come_later(server: &Server) {
    for to in 0..USERS {
        let identity = server.identity();
        let mut client = Raw::connect(server.address, &identity);
        let hello = Hello {
            device: "tablet",
            ..Hello::default()
        };
        client.hello(&identity.token(&user(to)), &hello);
        assert_eq!(client.goodbye(), GoodbyeReason::Overloaded);
    }
}
