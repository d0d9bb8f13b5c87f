//! What the hand codec gains over prost, per hot frame: `cargo bench --bench codec`.
//!
//! Each line is the best of many short rounds, in nanoseconds per frame, one thread, buffers warm: the
//! best is what the code costs; the rest is what else ran on the machine.

use std::hint::black_box;
use std::time::Instant;

use iris_proto::v2::{self, client_frame, server_frame};
use iris_proto::wire::{
    EntryRef, SendRef, decode_client, encode_accepted, encode_client, encode_entry, encode_send,
    encode_server,
};
use prost::Message;

const FRAMES: u32 = 2_000;
const ROUNDS: usize = 500;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn ns_per_frame(mut frame: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        (0..FRAMES).for_each(|_| frame());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(FRAMES)
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn report(name: &str, hand: f64, prost: f64) {
    println!("{name:<28} {hand:>8.1} {prost:>8.1} {:>6.1}x", prost / hand);
}

fn main() {
    println!("{:<28} {:>8} {:>8}", "ns per frame", "hand", "prost");
    for size in [16, 128, 1024, 16 * 1024] {
        let body = vec![7_u8; size];
        decode(&body);
        encode(&body);
    }
    let mut out = Vec::new();
    let hand = ns_per_frame(|| {
        out.clear();
        encode_accepted(&mut out, black_box(300), black_box(7));
        black_box(&out);
    });
    let prost = ns_per_frame(|| {
        out.clear();
        let accepted = v2::Accepted {
            tag: black_box(300),
            n: black_box(7),
        };
        encode_server(&mut out, server_frame::Frame::Accepted(accepted));
        black_box(&out);
    });
    report("encode Accepted", hand, prost);
}

fn decode(body: &[u8]) {
    let mut frame = Vec::new();
    encode_send(
        &mut frame,
        &SendRef {
            tag: 300,
            to: "user-0042",
            n: 7,
            id: [9; 16],
            body,
        },
    );
    let payload = &frame[4..];
    let hand = ns_per_frame(|| {
        black_box(decode_client(black_box(payload)).expect("a whole frame"));
    });
    let prost = ns_per_frame(|| {
        black_box(v2::ClientFrame::decode(black_box(payload)).expect("a whole frame"));
    });
    report(&format!("decode Send, body {}", body.len()), hand, prost);
}

fn encode(body: &[u8]) {
    let mut out = Vec::new();
    let hand = ns_per_frame(|| {
        out.clear();
        let entry = EntryRef {
            seq: 300,
            from: "user-0042",
            from_device: "main",
            id: [9; 16],
            time_ms: 1_763_900_000_123,
            body: black_box(body),
            fetch_tag: 0,
        };
        encode_entry(&mut out, &entry);
        black_box(&out);
    });
    // What prost asks for: owned fields, as they would have to be made from the log's bytes.
    let prost = ns_per_frame(|| {
        out.clear();
        let entry = v2::Entry {
            seq: 300,
            from: "user-0042".into(),
            from_device: "main".into(),
            id: vec![9; 16],
            time_ms: 1_763_900_000_123,
            body: black_box(body).to_vec(),
            fetch_tag: 0,
        };
        encode_server(&mut out, server_frame::Frame::Entry(entry));
        black_box(&out);
    });
    report(&format!("encode Entry, body {}", body.len()), hand, prost);
    let hand = ns_per_frame(|| {
        out.clear();
        let send = SendRef {
            tag: 300,
            to: "user-0042",
            n: 7,
            id: [9; 16],
            body: black_box(body),
        };
        encode_send(&mut out, &send);
        black_box(&out);
    });
    let prost = ns_per_frame(|| {
        out.clear();
        let send = v2::Send {
            tag: 300,
            to: "user-0042".into(),
            n: 7,
            id: vec![9; 16],
            body: black_box(body).to_vec(),
        };
        encode_client(&mut out, client_frame::Frame::Send(send));
        black_box(&out);
    });
    report(&format!("encode Send, body {}", body.len()), hand, prost);
}
