//! The protocol of one connection, against frames made by hand.

use super::*;
use iris_proto::frame::Decoder;
use iris_proto::limits::FRAME_BYTES_MAX;
use iris_proto::wire::ClientFrameRef;

const SIZE: usize = 24;

fn book() -> Book {
    Book {
        sent: Sent::new(4, 4),
        received: Received::new(4, 4),
        violations: Violations::default(),
        counters: Counters::default(),
        snapshot: Snapshot::new(false, 0),
        names: Names::new(1, 4),
        body: crate::message::filler(SIZE),
        is_held: false,
        window: (100, 200),
        sent_ever: 0,
        accepted_ever: 0,
        delivered_ever: 0,
    }
}

fn welcome(cursor: u64) -> ServerFrameRef<'static> {
    ServerFrameRef::Welcome(Box::new(v2::Welcome {
        cursor,
        ..v2::Welcome::default()
    }))
}

fn accepted(tag: u64, n: u64) -> ServerFrameRef<'static> {
    ServerFrameRef::Accepted(v2::Accepted { tag, n })
}

fn rejected(tag: u64, code: v2::RejectCode, expected: u64) -> ServerFrameRef<'static> {
    let code = code.into();
    ServerFrameRef::Rejected(v2::Rejected {
        tag,
        code,
        expected,
        ..v2::Rejected::default()
    })
}

/// A connection of user 0 that is logged in.
fn ready(in_flight: u16, book: &mut Book) -> Connection {
    let mut connection = Connection::new(0, in_flight, 7);
    connection.hello("token".to_owned());
    connection.out.clear();
    assert_eq!(connection.frame(welcome(0), 0, book), Step::Ready);
    connection
}

/// (tag, to, n) of each Send that is ready to go out.
fn sends(connection: &mut Connection) -> Vec<(u64, String, u64)> {
    let bytes = std::mem::take(&mut connection.out);
    let (mut decoder, mut input) = (Decoder::new(FRAME_BYTES_MAX), bytes.as_slice());
    let mut all = Vec::new();
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        if let ClientFrameRef::Send(send) = wire::decode_client(frame).unwrap() {
            all.push((send.tag, send.to.to_owned(), send.n));
        }
    }
    all
}

fn name(user: u32) -> String {
    Names::new(1, 4).name(user).to_owned()
}

/// Delivers message `n` of user `from` as entry `seq`.
fn deliver(connection: &mut Connection, book: &mut Book, seq: u64, from: u32, n: u64) -> Step {
    let mut body = crate::message::filler(SIZE);
    Stamp {
        intended_ns: 120,
        n,
    }
    .write(&mut body);
    let from = name(from);
    let entry = EntryRef {
        seq,
        from: &from,
        from_device: DEVICE,
        id: [0; 16],
        time_ms: 0,
        body: &body,
        fetch_tag: 0,
    };
    connection.frame(ServerFrameRef::Entry(entry), 150, book)
}

#[test]
fn a_slot_is_free_again_when_its_message_is_accepted() {
    let mut book = book();
    let mut connection = ready(2, &mut book);
    assert!(connection.send(1, 110, 110, &mut book));
    assert!(connection.send(1, 110, 110, &mut book));
    assert!(!connection.has_room());
    assert_eq!(sends(&mut connection), [(1, name(1), 1), (2, name(1), 2)]);
    assert_eq!(
        connection.frame(accepted(1, 1), 150, &mut book),
        Step::Freed
    );
    assert!(connection.has_room());
    assert_eq!(book.counters.accepted, 1);
    assert_eq!(book.snapshot.accept.count(), 1);
    assert_eq!(book.violations.count(), 0);
}

/// R: E-7
#[test]
fn latency_counts_by_intended_time_and_throughput_by_the_time_of_the_answer() {
    let mut book = book();
    let mut connection = ready(3, &mut book);
    // Meant before the window, answered in it; meant in it, answered behind it.
    assert!(connection.send(1, 99, 99, &mut book));
    assert!(connection.send(2, 199, 199, &mut book));
    connection.frame(accepted(1, 1), 150, &mut book);
    assert_eq!(
        (book.counters.accepted, book.snapshot.accept.count()),
        (1, 0)
    );
    connection.frame(accepted(2, 1), 700, &mut book);
    assert_eq!(
        (book.counters.accepted, book.snapshot.accept.count()),
        (1, 1)
    );
    assert!((book.snapshot.accept.max_micros() - 0.501).abs() < 0.001);
}

#[test]
fn a_message_that_leaves_late_is_counted() {
    let mut book = book();
    let mut connection = ready(2, &mut book);
    connection.send(1, 150, 150 + LATE_NS, &mut book);
    connection.send(1, 150, 151 + LATE_NS, &mut book);
    assert_eq!(book.counters.late, 1);
}

/// R: B-4
#[test]
fn refused_messages_are_sent_again_one_by_one_in_the_order_of_their_stream() {
    let mut book = book();
    let mut connection = ready(3, &mut book);
    for _ in 0..2 {
        assert!(connection.send(1, 110, 110, &mut book));
    }
    sends(&mut connection);
    let full = rejected(1, v2::RejectCode::InboxFull, 0);
    let again = Step::RetryAfter {
        slot: 0,
        delay_ms: RETRY_MS_MIN,
    };
    assert_eq!(connection.frame(full, 120, &mut book), again);
    connection.frame(rejected(2, v2::RejectCode::Gap, 1), 120, &mut book);
    assert!(
        !connection.send(1, 130, 130, &mut book),
        "it would overtake"
    );
    assert!(
        connection.send(2, 130, 130, &mut book),
        "another recipient is free"
    );
    sends(&mut connection);
    assert!(
        !connection.retry(1, &mut book),
        "the first of the stream comes first"
    );
    assert!(connection.retry(0, &mut book));
    assert_eq!(sends(&mut connection), [(1, name(1), 1)]);
    connection.frame(accepted(1, 1), 140, &mut book);
    assert!(connection.retry(1, &mut book));
    assert_eq!(sends(&mut connection), [(2, name(1), 2)]);
    connection.frame(accepted(2, 2), 140, &mut book);
    assert!(connection.send(1, 150, 150, &mut book));
    assert_eq!(sends(&mut connection), [(2, name(1), 3)]);
    assert_eq!((book.counters.refused, book.violations.count()), (2, 0));
}

#[test]
fn a_refusal_that_repetition_cannot_cure_is_a_violation() {
    for (code, expected) in [
        (v2::RejectCode::BadRecipient, 0),
        (v2::RejectCode::Gap, 0),
        (v2::RejectCode::BadFrame, 0),
    ] {
        let mut book = book();
        let mut connection = ready(1, &mut book);
        connection.send(1, 110, 110, &mut book);
        connection.frame(rejected(1, code, expected), 120, &mut book);
        assert_eq!(book.violations.count(), 1, "{code:?}");
    }
}

/// R: B-5
#[test]
fn after_a_reconnection_everything_unanswered_is_sent_again_in_order() {
    let mut book = book();
    let mut connection = ready(4, &mut book);
    for to in [2, 1, 2, 1] {
        assert!(connection.send(to, 110, 110, &mut book));
    }
    connection.frame(accepted(1, 1), 120, &mut book);
    connection.frame(rejected(2, v2::RejectCode::Overloaded, 0), 120, &mut book);
    deliver(&mut connection, &mut book, 1, 3, 1);
    connection.lost();
    assert!(!connection.has_room());
    connection.hello("again".to_owned());
    let hello = connection.out.clone();
    let ClientFrameRef::Hello(hello) = wire::decode_client(&hello[4..]).unwrap() else {
        unreachable!("a Hello was written");
    };
    assert_eq!((hello.resume_after, hello.send_epoch), (Some(1), 7));
    connection.out.clear();
    connection.frame(welcome(0), 130, &mut book);
    let order = [(3, name(2), 2), (2, name(1), 1), (4, name(1), 2)];
    assert_eq!(sends(&mut connection), order);
    assert!(connection.retry(1, &mut book), "nothing is left to retry");
    assert!(sends(&mut connection).is_empty());
    assert_eq!(book.violations.count(), 0);
}

#[test]
fn an_answer_that_nobody_waits_for_is_a_violation() {
    let mut book = book();
    let mut connection = ready(2, &mut book);
    connection.send(1, 110, 110, &mut book);
    for (tag, n) in [(0, 1), (2, 1), (99, 1), (1, 2)] {
        let before = book.violations.count();
        assert_eq!(
            connection.frame(accepted(tag, n), 120, &mut book),
            Step::Nothing
        );
        assert_eq!(book.violations.count(), before + 1, "{tag} {n}");
    }
}

#[test]
fn an_acknowledgement_goes_along_or_after_its_bound() {
    let mut book = book();
    let mut connection = ready(1, &mut book);
    assert_eq!(deliver(&mut connection, &mut book, 1, 1, 1), Step::AckDue);
    connection.finish_turn();
    assert!(connection.out.is_empty(), "nothing else goes out");
    connection.send(2, 110, 110, &mut book);
    connection.finish_turn();
    let whole = connection.out.len();
    assert_eq!(sends(&mut connection).len(), 1);
    assert!(whole > 0 && !connection.must_ack());
    for n in 2..=u64::from(ACK_ENTRIES) + 1 {
        deliver(&mut connection, &mut book, n, 1, n);
        assert_eq!(connection.must_ack(), n > u64::from(ACK_ENTRIES));
    }
    connection.finish_turn();
    let ClientFrameRef::Ack(seq) = wire::decode_client(&connection.out[4..]).unwrap() else {
        unreachable!("an Ack was due");
    };
    assert_eq!(seq, u64::from(ACK_ENTRIES) + 1);
}

/// R: B-3
#[test]
fn inbox_numbers_must_be_dense_and_entries_ours() {
    let mut book = book();
    let mut connection = ready(1, &mut book);
    deliver(&mut connection, &mut book, 1, 1, 1);
    assert_eq!(book.violations.count(), 0);
    deliver(&mut connection, &mut book, 3, 1, 2);
    let skipped = Violation::Seq {
        to: 0,
        seq: 3,
        expected: 2,
    };
    assert_eq!(book.violations.first(), [skipped]);
    deliver(&mut connection, &mut book, 3, 1, 2);
    assert_eq!(book.violations.count(), 3, "number and message came again");
    let short = EntryRef {
        seq: 4,
        from: "mallory",
        from_device: "",
        id: [0; 16],
        time_ms: 0,
        body: b"x",
        fetch_tag: 0,
    };
    connection.frame(ServerFrameRef::Entry(short), 150, &mut book);
    let stranger = Violation::Stranger {
        to: 0,
        from: "mallory".to_owned(),
        bytes: 1,
    };
    assert_eq!(book.violations.first().last(), Some(&stranger));
}

/// R: D-2
#[test]
fn entries_that_the_switch_says_are_gone_fail_the_run_and_are_acknowledged() {
    let mut book = book();
    let mut connection = ready(1, &mut book);
    deliver(&mut connection, &mut book, 1, 1, 1);
    let gap = v2::Gap {
        first: 2,
        last: 4,
        reason: v2::GapReason::Lost.into(),
        fetch_tag: 0,
    };
    connection.frame(ServerFrameRef::Gap(gap), 150, &mut book);
    let gone = Violation::Gone {
        to: 0,
        first: 2,
        last: 4,
        reason: v2::GapReason::Lost,
    };
    assert_eq!(book.violations.first(), std::slice::from_ref(&gone));
    assert_eq!(
        gone.to_string(),
        "inbox of 0: entries 2 to 4 were damaged on the switch and set aside"
    );
    deliver(&mut connection, &mut book, 5, 2, 1);
    assert_eq!(book.violations.count(), 1, "entry 5 is the next one");
    connection.ack_delay_passed();
    connection.finish_turn();
    let mut expected = Vec::new();
    wire::encode_ack(&mut expected, 5);
    assert_eq!(connection.out, expected);

    let gap = v2::Gap {
        first: 7,
        last: 6,
        ..gap
    };
    connection.frame(ServerFrameRef::Gap(gap), 150, &mut book);
    assert_eq!(
        book.violations.count(),
        3,
        "no range, and not where 6 was due"
    );
}

/// R: D-2
#[test]
fn a_recipient_that_is_not_served_now_is_tried_again() {
    let mut book = book();
    let mut connection = ready(1, &mut book);
    assert!(connection.send(1, 110, 110, &mut book));
    let step = connection.frame(rejected(1, v2::RejectCode::Unavailable, 0), 120, &mut book);
    assert!(matches!(step, Step::RetryAfter { slot: 0, .. }));
    assert_eq!(book.violations.count(), 0);
    assert!(connection.retry(0, &mut book));
}
