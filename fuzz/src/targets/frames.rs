//! Frames of clients and of the switch, and the stream that they come in.
//!
//! The second opinion is prost: what the hand decoder takes, prost takes, and both write the same
//! bytes for it.

use iris_proto::frame::{Decoder, LENGTH_BYTES};
use iris_proto::v2::{self, client_frame, server_frame};
use iris_proto::wire::{
    self, ClientFrameRef, EntryRef, SendRef, ServerFrameRef, decode_client, decode_server,
};
use prost::Message;

use super::{Target, nothing_to_mend};
use crate::measure::measured;

/// Frames that a switch reads: `decode_client`.
pub const CLIENT_FRAME: Target = Target {
    name: "client_frame",
    check: client_frame,
    mend: nothing_to_mend,
    seeds: client_seeds,
};

/// Frames that a client reads: `decode_server`.
pub const SERVER_FRAME: Target = Target {
    name: "server_frame",
    check: server_frame,
    mend: nothing_to_mend,
    seeds: server_seeds,
};

/// A stream of frames, cut anywhere: `Decoder`.
pub const FRAME_STREAM: Target = Target {
    name: "frame_stream",
    check: frame_stream,
    mend: nothing_to_mend,
    seeds: stream_seeds,
};

/// Bytes of memory for one frame that goes through prost: in a frame of nothing but empty strings,
/// two bytes each, every one takes the 24 bytes of a `String`, and the vector of them doubles as it
/// grows (old and new are held at the same time).
const fn prost_bytes_max(len: usize) -> usize {
    36 * len + 1024
}

fn client_frame(data: &[u8]) {
    let (decoded, held) = measured(|| decode_client(data));
    let Ok(frame) = decoded else {
        // A refused Fetch or Goodbye may have been read in part.
        assert!(held <= prost_bytes_max(data.len()), "{held} bytes held");
        return;
    };
    let by_hand = match &frame {
        ClientFrameRef::Hello(hello) => {
            let capabilities: Vec<String> = hello.capabilities.iter().map(Into::into).collect();
            let hello = client_frame::Frame::Hello(v2::Hello {
                token: hello.token.into(),
                device: hello.device.into(),
                send_epoch: hello.send_epoch,
                resume_after: hello.resume_after,
                version_min: hello.version_min,
                version_max: hello.version_max,
                capabilities,
            });
            written(|out| wire::encode_client(out, hello))
        }
        ClientFrameRef::Send(send) => written(|out| wire::encode_send(out, send)),
        ClientFrameRef::Ack(seq) => written(|out| wire::encode_ack(out, *seq)),
        ClientFrameRef::Ping(nonce) => written(|out| wire::encode_ping(out, *nonce)),
        _ => {
            assert!(held <= prost_bytes_max(data.len()), "{held} bytes held");
            Vec::new()
        }
    };
    let by_prost = v2::ClientFrame::decode(data).expect("what is taken by hand, prost takes");
    let by_prost = by_prost.encode_to_vec();
    let again = decode_client(&by_prost).expect("its shortest form is taken");
    if by_hand.is_empty() {
        assert_eq!(again, frame);
        return;
    }
    // What a stranger can send and what comes per message takes no memory at all.
    assert_eq!(held, 0, "bytes held");
    assert_eq!(by_hand[LENGTH_BYTES..], by_prost);
    let twice = decode_client(&by_hand[LENGTH_BYTES..]).map(|frame| format!("{frame:?}"));
    assert_eq!(twice, Ok(format!("{again:?}")));
}

fn server_frame(data: &[u8]) {
    let (decoded, held) = measured(|| decode_server(data));
    assert!(held <= prost_bytes_max(data.len()), "{held} bytes held");
    let Ok(frame) = decoded else { return };
    let by_hand = match &frame {
        ServerFrameRef::Accepted(v2::Accepted { tag, n }) => {
            written(|out| wire::encode_accepted(out, *tag, *n))
        }
        ServerFrameRef::Entry(entry) => written(|out| wire::encode_entry(out, entry)),
        ServerFrameRef::Pong(nonce) => written(|out| wire::encode_pong(out, *nonce)),
        _ => Vec::new(),
    };
    let by_prost = v2::ServerFrame::decode(data).expect("what is taken by hand, prost takes");
    let by_prost = by_prost.encode_to_vec();
    let again = decode_server(&by_prost).expect("its shortest form is taken");
    assert_eq!(again, frame);
    if !by_hand.is_empty() {
        assert_eq!(held, 0, "bytes held");
        assert_eq!(by_hand[LENGTH_BYTES..], by_prost);
    }
}

/// The first byte chooses the limit, the second one the pieces that the rest comes in.
fn frame_stream(data: &[u8]) {
    let Some((&[limit, cuts], stream)) = data.split_first_chunk::<2>() else {
        return;
    };
    let max = usize::from(limit) * 8;
    let wanted = split(stream, max);
    let mut decoder = Decoder::new(max);
    let mut found = Split::default();
    let mut rest = stream;
    let mut lengths = usize::from(cuts);
    while !rest.is_empty() && !found.too_large {
        lengths = lengths.wrapping_mul(31).wrapping_add(17) % 257;
        let (mut piece, later) = rest.split_at((1 + lengths % 40).min(rest.len()));
        rest = later;
        loop {
            let (next, held) =
                measured(|| decoder.next(&mut piece).map(|frame| frame.map(Vec::from)));
            // The decoder's own, which doubles as it grows, and the copy made here.
            assert!(held <= 3 * (max + LENGTH_BYTES) + 64, "{held} bytes held");
            match next {
                Ok(Some(frame)) => found.frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    found.too_large = true;
                    break;
                }
            }
        }
        assert!(decoder.held() <= max + LENGTH_BYTES);
    }
    assert_eq!(found, wanted);
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Split {
    frames: Vec<Vec<u8>>,
    too_large: bool,
}

/// The same by the simplest means, from the whole stream at once.
fn split(mut stream: &[u8], max: usize) -> Split {
    let mut split = Split::default();
    while let Some((head, rest)) = stream.split_first_chunk::<LENGTH_BYTES>() {
        let len = u32::from_be_bytes(*head) as usize;
        if len > max {
            split.too_large = true;
            break;
        }
        let Some((frame, rest)) = rest.split_at_checked(len) else {
            break;
        };
        split.frames.push(frame.to_vec());
        stream = rest;
    }
    split
}

fn written(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

/// A frame without its length.
fn frame(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    written(encode).split_off(LENGTH_BYTES)
}

const ID: [u8; 16] = *b"sixteen bytes id";

fn client_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let hello = |capabilities: &[&str]| {
        client_frame::Frame::Hello(v2::Hello {
            token: "a.b.c".into(),
            device: "phone".into(),
            send_epoch: 7,
            resume_after: Some(0),
            version_min: 2,
            version_max: 2,
            capabilities: capabilities.iter().map(|name| (*name).into()).collect(),
        })
    };
    let send = SendRef {
        tag: 1,
        to: "bob",
        n: 1,
        id: ID,
        body: b"hi",
    };
    let fetch = client_frame::Frame::Fetch(v2::Fetch {
        tag: 9,
        after: 5,
        limit: 2,
    });
    let goodbye = client_frame::Frame::Goodbye(goodbye());
    let largest = SendRef {
        tag: u64::MAX,
        n: u64::MAX,
        ..send
    };
    vec![
        (
            "send_largest",
            frame(|out| wire::encode_send(out, &largest)),
        ),
        ("hello", frame(|out| wire::encode_client(out, hello(&[])))),
        (
            "hello_capabilities",
            frame(|out| wire::encode_client(out, hello(&["send-only", "x", "y"]))),
        ),
        ("send", frame(|out| wire::encode_send(out, &send))),
        ("ack", frame(|out| wire::encode_ack(out, 300))),
        ("fetch", frame(|out| wire::encode_client(out, fetch))),
        ("ping", frame(|out| wire::encode_ping(out, 0xdead_beef))),
        ("goodbye", frame(|out| wire::encode_client(out, goodbye))),
    ]
}

fn goodbye() -> v2::Goodbye {
    v2::Goodbye {
        reason: v2::GoodbyeReason::ShuttingDown.into(),
        retry_after_ms: 1_500,
        other_address: "b.example:7447".into(),
        text: "going down".into(),
    }
}

fn server_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let entry = |fetch_tag| EntryRef {
        seq: 7,
        from: "alice",
        from_device: "laptop",
        id: ID,
        time_ms: 1_763_900_000_123,
        body: b"hi bob",
        fetch_tag,
    };
    let server = |frame_: server_frame::Frame| frame(|out| wire::encode_server(out, frame_));
    let welcome = v2::Welcome {
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
        capabilities: vec!["send-only".into()],
        oldest_seq: 1,
        cluster: ID.to_vec(),
    };
    let rejected = v2::Rejected {
        tag: 3,
        code: v2::RejectCode::Gap.into(),
        expected: 2,
        retry_after_ms: 250,
        text: "slow down".into(),
    };
    let fetched = v2::Fetched {
        tag: 9,
        last: 7,
        more: true,
    };
    vec![
        ("welcome", server(server_frame::Frame::Welcome(welcome))),
        ("accepted", frame(|out| wire::encode_accepted(out, 1, 1))),
        ("rejected", server(server_frame::Frame::Rejected(rejected))),
        ("entry", frame(|out| wire::encode_entry(out, &entry(0)))),
        (
            "entry_fetched",
            frame(|out| wire::encode_entry(out, &entry(9))),
        ),
        ("fetched", server(server_frame::Frame::Fetched(fetched))),
        ("pong", frame(|out| wire::encode_pong(out, 0xdead_beef))),
        ("goodbye", server(server_frame::Frame::Goodbye(goodbye()))),
    ]
}

fn stream_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let stream = |limit: u8, cuts: u8| {
        let mut stream = vec![limit, cuts];
        wire::encode_ack(&mut stream, 300);
        wire::encode_ping(&mut stream, 1);
        stream.extend_from_slice(&[0; LENGTH_BYTES]);
        wire::encode_accepted(&mut stream, 1, u64::MAX);
        stream
    };
    let mut too_large = stream(2, 3);
    too_large.extend_from_slice(&u32::MAX.to_be_bytes());
    let mut cut = stream(255, 9);
    cut.truncate(cut.len() - 3);
    vec![
        ("whole", stream(16, 0)),
        ("too_large", too_large),
        ("cut", cut),
    ]
}
