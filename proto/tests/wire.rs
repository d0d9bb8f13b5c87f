//! The hand codec against prost, golden frames, and garbage.

use iris_proto::frame::{Decoder, LENGTH_BYTES};
use iris_proto::v2::{self, client_frame, server_frame};
use iris_proto::wire::{
    ClientFrameRef, DecodeError, EntryRef, SendRef, ServerFrameRef, decode_client, decode_server,
    encode_accepted, encode_ack, encode_client, encode_entry, encode_gap, encode_ping, encode_pong,
    encode_send, encode_server,
};
use proptest::prelude::*;
use prost::Message;

const ID: [u8; 16] = *b"\x01\x93\xa0\x00\x00\x00\x70\x00\x80\x00\x00\x00\x00\x00\x00\x01";

fn hello() -> client_frame::Frame {
    client_frame::Frame::Hello(v2::Hello {
        token: "eyJhbGciOiJFZERTQSJ9.e30.c2ln".into(),
        device: "phone".into(),
        send_epoch: 0x1122_3344_5566_7788,
        resume_after: Some(0),
        version_min: 2,
        version_max: 2,
        capabilities: vec![],
    })
}

fn reauth() -> v2::Reauth {
    v2::Reauth {
        tag: 5,
        token: "eyJhbGciOiJFZERTQSJ9.e30.bmV3".into(),
    }
}

fn welcome() -> server_frame::Frame {
    server_frame::Frame::Welcome(v2::Welcome {
        session: 0x0102_0304_0506_0708,
        version: 2,
        limits: Some(v2::Limits {
            frame_bytes: 66_560,
            body_bytes: 65_536,
            sends_in_flight: 1_024,
            window_entries: 1_024,
            window_bytes: 1_048_576,
            fetch_entries: 1_000,
        }),
        server_time_ms: 1_763_900_000_000,
        head_seq: 7,
        cursor: 6,
        user: "bob".into(),
        device: "phone".into(),
        capabilities: vec![],
        oldest_seq: 1,
        cluster: ID.to_vec(),
    })
}

fn send(tag: u64, n: u64, body: &[u8]) -> Vec<u8> {
    bytes(|out| {
        encode_send(
            out,
            &SendRef {
                tag,
                to: "bob",
                n,
                id: ID,
                body,
            },
        )
    })
}

fn entry(seq: u64, body: &[u8], fetch_tag: u64) -> Vec<u8> {
    let entry = EntryRef {
        seq,
        from: "alice",
        from_device: "laptop",
        id: ID,
        time_ms: 1_763_900_000_123,
        body,
        fetch_tag,
    };
    bytes(|out| encode_entry(out, &entry))
}

fn gap(first: u64, last: u64, reason: v2::GapReason, fetch_tag: u64) -> Vec<u8> {
    let reason = reason.into();
    let gap = v2::Gap {
        first,
        last,
        reason,
        fetch_tag,
    };
    bytes(|out| encode_gap(out, gap))
}

fn bytes(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

fn rejected(rejected: v2::Rejected) -> Vec<u8> {
    bytes(|out| encode_server(out, server_frame::Frame::Rejected(rejected)))
}

/// Every golden frame: its file's name and what this crate makes of it.
fn golden() -> Vec<(&'static str, Vec<u8>)> {
    let goodbye =
        |reason: v2::GoodbyeReason, retry_after_ms, other: &str, text: &str| v2::Goodbye {
            reason: reason.into(),
            retry_after_ms,
            other_address: other.into(),
            text: text.into(),
        };
    let normal = goodbye(v2::GoodbyeReason::Normal, 0, "", "");
    let drain = goodbye(
        v2::GoodbyeReason::ShuttingDown,
        1_500,
        "b.example:7447",
        "going down",
    );
    let fetch = v2::Fetch {
        tag: 9,
        after: 5,
        limit: 2,
    };
    vec![
        ("hello", bytes(|out| encode_client(out, hello()))),
        ("send_1", send(1, 1, b"hi bob")),
        ("send_2", send(2, 2, b"still there?")),
        ("send_3", send(3, 3, b"")),
        ("send_2_again", send(4, 2, b"still there?")),
        ("ack", bytes(|out| encode_ack(out, 300))),
        (
            "fetch",
            bytes(|out| encode_client(out, client_frame::Frame::Fetch(fetch))),
        ),
        ("ping", bytes(|out| encode_ping(out, 0xdead_beef))),
        (
            "client_goodbye",
            bytes(|out| encode_client(out, client_frame::Frame::Goodbye(normal))),
        ),
        ("welcome", bytes(|out| encode_server(out, welcome()))),
        ("accepted_1", bytes(|out| encode_accepted(out, 1, 1))),
        ("accepted_2_again", bytes(|out| encode_accepted(out, 4, 2))),
        (
            "rejected_gap",
            rejected(v2::Rejected {
                tag: 3,
                code: v2::RejectCode::Gap.into(),
                expected: 2,
                retry_after_ms: 0,
                text: String::new(),
            }),
        ),
        (
            "rejected_overloaded",
            rejected(v2::Rejected {
                tag: 2,
                code: v2::RejectCode::Overloaded.into(),
                expected: 0,
                retry_after_ms: 250,
                text: "slow down".into(),
            }),
        ),
        ("entry", entry(7, b"hi bob", 0)),
        ("entry_fetched", entry(6, b"earlier", 9)),
        (
            "fetched",
            bytes(|out| {
                let fetched = v2::Fetched {
                    tag: 9,
                    last: 7,
                    more: false,
                };
                encode_server(out, server_frame::Frame::Fetched(fetched));
            }),
        ),
        ("gap", gap(8, 10, v2::GapReason::Lost, 0)),
        ("gap_fetched", gap(4, 5, v2::GapReason::Expired, 9)),
        ("pong", bytes(|out| encode_pong(out, 0xdead_beef))),
        (
            "goodbye",
            bytes(|out| encode_server(out, server_frame::Frame::Goodbye(drain))),
        ),
        (
            "reauth",
            bytes(|out| encode_client(out, client_frame::Frame::Reauth(reauth()))),
        ),
        (
            "reauthed",
            bytes(|out| {
                let (tag, expires_in_s) = (5, 3_600);
                let reauthed = v2::Reauthed { tag, expires_in_s };
                encode_server(out, server_frame::Frame::Reauthed(reauthed));
            }),
        ),
        (
            "expiring",
            bytes(|out| {
                let expiring = v2::Expiring { seconds_left: 60 };
                encode_server(out, server_frame::Frame::Expiring(expiring));
            }),
        ),
    ]
}

fn hex_of(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes
        .chunks(16)
        .map(|line| {
            line.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    lines.join("\n") + "\n"
}

/// Bytes of a dump: hex digits; the rest of a line after `#` is a comment.
fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or("").bytes())
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a hex digit") as u8;
    assert!(digits.len().is_multiple_of(2), "half a byte in a dump");
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn golden_file(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(format!("{name}.hex"))
}

/// R: E-6. With `IRIS_GOLDEN=write` in the environment it writes the files instead.
#[test]
fn golden_frames_are_what_they_were() {
    for (name, frame) in golden() {
        let path = golden_file(name);
        if std::env::var_os("IRIS_GOLDEN").is_some_and(|value| value == "write") {
            std::fs::write(&path, hex_of(&frame)).expect("the golden directory is writable");
        }
        let file = std::fs::read_to_string(&path).expect("a golden file for each frame");
        assert_eq!(hex_of(&bytes_of(&file)), hex_of(&frame), "{name}");
    }
}

#[test]
fn golden_frames_read_and_write_back_through_prost() {
    for (name, frame) in golden() {
        let payload = &frame[LENGTH_BYTES..];
        let again = if CLIENT_GOLDEN.contains(&name) {
            assert!(decode_client(payload).is_ok(), "{name}");
            v2::ClientFrame::decode(payload)
                .expect(name)
                .encode_to_vec()
        } else {
            assert!(decode_server(payload).is_ok(), "{name}");
            v2::ServerFrame::decode(payload)
                .expect(name)
                .encode_to_vec()
        };
        assert_eq!(again, payload, "{name}");
    }
}

/// The golden frames that a client sends; the others are the switch's.
const CLIENT_GOLDEN: [&str; 10] = [
    "hello",
    "send_1",
    "send_2",
    "send_3",
    "send_2_again",
    "ack",
    "fetch",
    "ping",
    "client_goodbye",
    "reauth",
];

/// R: E-6
#[test]
fn every_dump_in_the_specification_is_a_golden_frame() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/PROTOCOL.md")).expect("the specification");
    let frames = golden();
    let mut dumps = 0;
    for block in text.split("```hex ").skip(1) {
        let (name, rest) = block.split_once('\n').expect("a name after the fence");
        let (dump, _) = rest.split_once("```").expect("a closed fence");
        let (_, frame) = frames.iter().find(|(known, _)| *known == name).expect(name);
        assert_eq!(hex_of(&bytes_of(dump)), hex_of(frame), "{name}");
        dumps += 1;
    }
    assert!(
        dumps >= 8,
        "the worked examples are gone from the specification"
    );
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof!["[!-~]{0,64}", any::<String>()]
}

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..300,
        any::<u64>(),
        Just(u64::MAX),
        (0_u32..64).prop_map(|bit| 1 << bit)
    ]
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        proptest::collection::vec(any::<u8>(), 16_300..16_500),
    ]
}

fn client_bytes(frame: client_frame::Frame) -> Vec<u8> {
    bytes(|out| encode_client(out, frame))
}

fn server_bytes(frame: server_frame::Frame) -> Vec<u8> {
    bytes(|out| encode_server(out, frame))
}

proptest! {
    #[test]
    fn send_is_the_same_by_hand_and_by_prost(
        tag in numbers(), to in texts(), n in numbers(), id in any::<[u8; 16]>(), body in bodies(),
    ) {
        let by_hand = bytes(|out| {
            encode_send(out, &SendRef { tag, to: &to, n, id, body: &body });
        });
        let message =
            v2::Send { tag, to: to.clone(), n, id: id.to_vec(), body: body.clone() };
        prop_assert_eq!(&by_hand, &client_bytes(client_frame::Frame::Send(message)));
        match decode_client(&by_hand[LENGTH_BYTES..]) {
            Ok(ClientFrameRef::Send(send)) => {
                prop_assert_eq!(send, SendRef { tag, to: &to, n, id, body: &body });
            }
            other => prop_assert!(
                (tag == 0 || n == 0) && matches!(other, Err(DecodeError::BadField { .. })),
                "{:?}", other
            ),
        }
    }

    #[test]
    fn entry_is_the_same_by_hand_and_by_prost(
        seq in 1_u64.., from in texts(), from_device in texts(), id in any::<[u8; 16]>(),
        time_ms in numbers(), body in bodies(), fetch_tag in numbers(),
    ) {
        let entry = EntryRef {
            seq, from: &from, from_device: &from_device, id, time_ms, body: &body, fetch_tag,
        };
        let by_hand = bytes(|out| encode_entry(out, &entry));
        let message = v2::Entry {
            seq,
            from: from.clone(),
            from_device: from_device.clone(),
            id: id.to_vec(),
            time_ms,
            body: body.clone(),
            fetch_tag,
        };
        prop_assert_eq!(&by_hand, &server_bytes(server_frame::Frame::Entry(message)));
        prop_assert_eq!(decode_server(&by_hand[LENGTH_BYTES..]), Ok(ServerFrameRef::Entry(entry)));
    }

    /// R: D-2
    #[test]
    fn gap_is_the_same_by_hand_and_by_prost(
        first in numbers(), last in numbers(), reason in prop_oneof![0..4, any::<i32>()],
        fetch_tag in numbers(),
    ) {
        let gap = v2::Gap { first, last, reason, fetch_tag };
        let by_hand = bytes(|out| encode_gap(out, gap));
        prop_assert_eq!(&by_hand, &server_bytes(server_frame::Frame::Gap(gap)));
        prop_assert_eq!(decode_server(&by_hand[LENGTH_BYTES..]), Ok(ServerFrameRef::Gap(gap)));
    }

    #[test]
    fn small_frames_are_the_same_by_hand_and_by_prost(a in numbers(), b in numbers()) {
        let by_hand = bytes(|out| {
            encode_ack(out, a);
            encode_ping(out, b);
        });
        let mut by_prost = client_bytes(client_frame::Frame::Ack(v2::Ack { seq: a }));
        by_prost.extend(client_bytes(client_frame::Frame::Ping(v2::Ping { nonce: b })));
        prop_assert_eq!(&by_hand, &by_prost);
        let mut input = &by_hand[..];
        let mut decoder = Decoder::new(100);
        let frame = decoder.next(&mut input).expect("fits").expect("whole");
        prop_assert_eq!(decode_client(frame), Ok(ClientFrameRef::Ack(a)));
        let frame = decoder.next(&mut input).expect("fits").expect("whole");
        prop_assert_eq!(decode_client(frame), Ok(ClientFrameRef::Ping(b)));

        let accepted = v2::Accepted { tag: a, n: b };
        let by_hand = bytes(|out| encode_accepted(out, a, b));
        prop_assert_eq!(
            decode_server(&by_hand[LENGTH_BYTES..]),
            Ok(ServerFrameRef::Accepted(accepted))
        );
        prop_assert_eq!(by_hand, server_bytes(server_frame::Frame::Accepted(accepted)));
        let by_hand = bytes(|out| encode_pong(out, a));
        prop_assert_eq!(decode_server(&by_hand[LENGTH_BYTES..]), Ok(ServerFrameRef::Pong(a)));
        prop_assert_eq!(
            by_hand,
            server_bytes(server_frame::Frame::Pong(v2::Pong { nonce: a }))
        );
    }

    #[test]
    fn hello_by_hand_reads_what_prost_wrote(
        token in texts(), device in "[!-~]{0,32}", send_epoch in 1_u64..,
        resume_after in proptest::option::of(numbers()),
        version_min in any::<u32>(), version_max in any::<u32>(),
        capabilities in proptest::collection::vec("[a-z0-9-]{0,32}", 0..32),
    ) {
        let hello = v2::Hello {
            token, device, send_epoch, resume_after, version_min, version_max, capabilities,
        };
        let frame = client_bytes(client_frame::Frame::Hello(hello.clone()));
        let Ok(ClientFrameRef::Hello(read)) = decode_client(&frame[LENGTH_BYTES..]) else {
            return Err(TestCaseError::fail("not a Hello"));
        };
        prop_assert_eq!(v2::Hello {
            token: read.token.into(),
            device: read.device.into(),
            send_epoch: read.send_epoch,
            resume_after: read.resume_after,
            version_min: read.version_min,
            version_max: read.version_max,
            capabilities: read.capabilities.iter().map(Into::into).collect(),
        }, hello);
    }

    /// What the hand decoder takes, prost takes with the same meaning; it is never the laxer one.
    #[test]
    fn damaged_frames_never_panic_and_never_mean_something_else(
        which in 0_usize..24, flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..6),
        cut in any::<u16>(),
    ) {
        let (_, frame) = golden().swap_remove(which);
        let mut payload = frame[LENGTH_BYTES..].to_vec();
        for (at, to) in flips {
            let at = usize::from(at) % payload.len();
            payload[at] = to;
        }
        if cut % 3 == 0 {
            payload.truncate(usize::from(cut) % (payload.len() + 1));
        }
        if let Ok(frame) = decode_client(&payload) {
            let by_prost = v2::ClientFrame::decode(&payload[..]).expect("prost takes it, too");
            prop_assert!(same_client(&frame, &by_prost), "{:?} {:?}", frame, by_prost);
        }
        if let Ok(frame) = decode_server(&payload) {
            let by_prost = v2::ServerFrame::decode(&payload[..]).expect("prost takes it, too");
            prop_assert!(same_server(&frame, &by_prost), "{:?} {:?}", frame, by_prost);
        }
    }

    #[test]
    fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_client(&payload);
        let _ = decode_server(&payload);
    }
}

fn same_client(frame: &ClientFrameRef<'_>, by_prost: &v2::ClientFrame) -> bool {
    use client_frame::Frame;
    match (frame, by_prost.frame.as_ref()) {
        (ClientFrameRef::Hello(a), Some(Frame::Hello(b))) => {
            a.token == b.token && a.device == b.device && a.send_epoch == b.send_epoch
        }
        (ClientFrameRef::Send(a), Some(Frame::Send(b))) => {
            (a.tag, a.to, a.n, &a.id[..], a.body) == (b.tag, &*b.to, b.n, &b.id[..], &b.body[..])
        }
        (ClientFrameRef::Ack(a), Some(Frame::Ack(b))) => *a == b.seq,
        (ClientFrameRef::Fetch(a), Some(Frame::Fetch(b))) => a == b,
        (ClientFrameRef::Ping(a), Some(Frame::Ping(b))) => *a == b.nonce,
        (ClientFrameRef::Goodbye(a), Some(Frame::Goodbye(b))) => a == b,
        (ClientFrameRef::Reauth(a), Some(Frame::Reauth(b))) => a == b,
        _ => false,
    }
}

fn same_server(frame: &ServerFrameRef<'_>, by_prost: &v2::ServerFrame) -> bool {
    use server_frame::Frame;
    match (frame, by_prost.frame.as_ref()) {
        (ServerFrameRef::Welcome(a), Some(Frame::Welcome(b))) => **a == *b,
        (ServerFrameRef::Accepted(a), Some(Frame::Accepted(b))) => a == b,
        (ServerFrameRef::Rejected(a), Some(Frame::Rejected(b))) => a == b,
        (ServerFrameRef::Entry(a), Some(Frame::Entry(b))) => {
            (
                a.seq,
                a.from,
                a.from_device,
                &a.id[..],
                a.time_ms,
                a.body,
                a.fetch_tag,
            ) == (
                b.seq,
                &*b.from,
                &*b.from_device,
                &b.id[..],
                b.time_ms,
                &b.body[..],
                b.fetch_tag,
            )
        }
        (ServerFrameRef::Fetched(a), Some(Frame::Fetched(b))) => a == b,
        (ServerFrameRef::Gap(a), Some(Frame::Gap(b))) => a == b,
        (ServerFrameRef::Pong(a), Some(Frame::Pong(b))) => *a == b.nonce,
        (ServerFrameRef::Goodbye(a), Some(Frame::Goodbye(b))) => a == b,
        (ServerFrameRef::Reauthed(a), Some(Frame::Reauthed(b))) => a == b,
        (ServerFrameRef::Expiring(a), Some(Frame::Expiring(b))) => a == b,
        _ => false,
    }
}

/// R: E-6
#[test]
fn unknown_frames_are_named_with_their_tag_and_unknown_fields_are_ignored() {
    // variant 8, field 1 = 42
    assert_eq!(
        decode_client(&[0x42, 2, 0x08, 42]),
        Err(DecodeError::UnknownFrame { number: 8, tag: 42 })
    );
    assert_eq!(
        decode_client(&[]),
        Err(DecodeError::UnknownFrame { number: 0, tag: 0 })
    );
    // an Ack with an unknown field 15 inside, and an unknown field 100 beside it
    let payload = [0x1a, 4, 0x08, 5, 0x78, 9, 0xa0, 0x06, 1];
    assert_eq!(decode_client(&payload), Ok(ClientFrameRef::Ack(5)));
    // two variants
    assert_eq!(
        decode_client(&[0x1a, 0, 0x1a, 0]),
        Err(DecodeError::Malformed)
    );
}

#[test]
fn a_reauth_without_a_tag_could_not_be_answered() {
    let tagless = v2::Reauth { tag: 0, ..reauth() };
    let frame = client_bytes(client_frame::Frame::Reauth(tagless));
    let field = "tag";
    assert_eq!(
        decode_client(&frame[LENGTH_BYTES..]),
        Err(DecodeError::BadField { tag: 0, field })
    );
}

/// R: A-5
#[test]
fn bad_fields_of_a_send_are_named_with_its_tag() {
    let frame = |send: v2::Send| client_bytes(client_frame::Frame::Send(send))[4..].to_vec();
    let good = v2::Send {
        tag: 8,
        to: "bob".into(),
        n: 1,
        id: ID.to_vec(),
        body: vec![],
    };
    assert!(decode_client(&frame(good.clone())).is_ok());
    let bad = |tag, field| Err(DecodeError::BadField { tag, field });
    let short_id = v2::Send {
        id: vec![1; 15],
        ..good.clone()
    };
    assert_eq!(decode_client(&frame(short_id)), bad(8, "id"));
    let no_number = v2::Send {
        n: 0,
        ..good.clone()
    };
    assert_eq!(decode_client(&frame(no_number)), bad(8, "n"));
    let no_tag = v2::Send { tag: 0, ..good };
    assert_eq!(decode_client(&frame(no_tag)), bad(0, "tag"));
    let mut not_text = vec![0x12, 25, 0x08, 8, 0x18, 1, 0x12, 1, 0xff, 0x22, 16];
    not_text.extend([0; 16]);
    assert_eq!(decode_client(&not_text), bad(8, "to"));
    // A recipient that stands twice: the last one counts, and both must be text.
    let twice = |first: u8| {
        let mut twice = vec![
            0x12, 28, 0x08, 8, 0x18, 1, 0x12, 1, first, 0x12, 1, b'b', 0x22, 16,
        ];
        twice.extend([0; 16]);
        decode_client(&twice).map(|frame| match frame {
            ClientFrameRef::Send(send) => send.to.to_owned(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(twice(b'a'), Ok("b".to_owned()));
    assert_eq!(
        twice(0xff),
        Err(DecodeError::BadField {
            tag: 8,
            field: "to"
        })
    );
}

/// R: A-5
#[test]
fn hello_over_a_limit_is_refused() {
    let hello = v2::Hello {
        send_epoch: 1,
        ..Default::default()
    };
    let read = |hello: v2::Hello| {
        let frame = client_bytes(client_frame::Frame::Hello(hello));
        decode_client(&frame[LENGTH_BYTES..]).map(|_| ())
    };
    let bad = |field| Err(DecodeError::BadField { tag: 0, field });
    assert_eq!(read(hello.clone()), Ok(()));
    assert_eq!(
        read(v2::Hello {
            send_epoch: 0,
            ..hello.clone()
        }),
        bad("send_epoch")
    );
    let device = "d".repeat(33);
    assert_eq!(
        read(v2::Hello {
            device,
            ..hello.clone()
        }),
        bad("device")
    );
    let capabilities = vec![String::new(); 33];
    assert_eq!(
        read(v2::Hello {
            capabilities,
            ..hello.clone()
        }),
        bad("capabilities")
    );
    let capabilities = vec!["c".repeat(33)];
    assert_eq!(
        read(v2::Hello {
            capabilities,
            ..hello
        }),
        bad("capabilities")
    );
}
