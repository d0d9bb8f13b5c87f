//! What an attacker says: frames with wild values, and bytes that once were frames.

use std::ops::Range;

use iris_proto::v2;
use iris_proto::v2::client_frame::Frame;
use prost::Message;

use super::super::harness::Random;

/// Numbers at which something ends.
const WILD: [u64; 16] = [
    0,
    1,
    2,
    127,
    128,
    199,
    255,
    65_535,
    65_536,
    1 << 31,
    u32::MAX as u64,
    1 << 53,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];
/// Lengths of frames around the limits of the protocol, which are 8,192 and 66,560.
const LENGTHS: [u32; 12] = [
    0,
    1,
    3,
    8_191,
    8_192,
    8_193,
    66_559,
    66_560,
    66_561,
    1 << 24,
    i32::MAX as u32,
    u32::MAX,
];
/// Whom attackers write to: few, so that what the switch must remember of them is soon all there.
const RECIPIENTS: [&str; 6] = ["mallory0", "mallory1", "mallory2", "x", "~", "nobody"];

/// `bound` is not reached.
pub fn one_in(random: &mut Random, bound: u64) -> bool {
    random.below(bound) == 0
}

pub fn pick<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[random.below(of.len() as u64) as usize]
}

fn number(random: &mut Random) -> u64 {
    match random.below(3) {
        0 => pick(random, &WILD),
        1 => random.below(50),
        _ => random.below(u64::MAX),
    }
}

pub fn noise(random: &mut Random, length: u64) -> Vec<u8> {
    (0..length).map(|_| random.below(256) as u8).collect()
}

fn some_noise(random: &mut Random, lengths: Range<u64>) -> Vec<u8> {
    let length = lengths.start + random.below(lengths.end - lengths.start);
    noise(random, length)
}

fn text(random: &mut Random) -> String {
    match random.below(5) {
        0 => String::new(),
        1 => "é\u{0}\u{1b}[2J\n".to_owned(),
        2 => "a".repeat(random.below(300) as usize),
        _ => pick(random, &RECIPIENTS).to_owned(),
    }
}

/// A frame as it travels.
pub fn framed(frame: Frame) -> Vec<u8> {
    let message = v2::ClientFrame { frame: Some(frame) };
    enclose(&message.encode_to_vec())
}

fn enclose(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&length.to_be_bytes()[..], message].concat()
}

pub fn hello(random: &mut Random, token: &str) -> v2::Hello {
    let is_wild = one_in(random, 4);
    v2::Hello {
        token: token.to_owned(),
        device: match is_wild && one_in(random, 2) {
            true => text(random),
            false => format!("device{}", random.below(3)),
        },
        send_epoch: match is_wild {
            true => number(random),
            false => 1 + random.below(4),
        },
        resume_after: one_in(random, 3).then(|| number(random)),
        version_min: if is_wild && one_in(random, 4) {
            number(random) as u32
        } else {
            2
        },
        version_max: if is_wild && one_in(random, 4) {
            number(random) as u32
        } else {
            2
        },
        capabilities: match random.below(6) {
            0 => vec!["send-only".to_owned()],
            1 => (0..random.below(40)).map(|_| text(random)).collect(),
            _ => Vec::new(),
        },
    }
}

fn send(random: &mut Random, turn: u64) -> v2::Send {
    let is_wild = one_in(random, 4);
    v2::Send {
        tag: if is_wild { number(random) } else { turn + 1 },
        to: if is_wild {
            text(random)
        } else {
            pick(random, &RECIPIENTS).to_owned()
        },
        n: if is_wild {
            number(random)
        } else {
            1 + random.below(3)
        },
        id: some_noise(random, if is_wild { 0..20 } else { 16..17 }),
        body: match random.below(40) {
            0 => some_noise(random, 65_530..65_542),
            _ => some_noise(random, 0..64),
        },
    }
}

/// Any frame that a client can send; `turn` counts those of a connection.
pub fn frame(random: &mut Random, turn: u64, token: &str) -> Vec<u8> {
    let frame = match random.below(12) {
        0..=3 => Frame::Send(send(random, turn)),
        4 | 5 => Frame::Ack(v2::Ack {
            seq: number(random),
        }),
        6 | 7 => Frame::Fetch(v2::Fetch {
            tag: if one_in(random, 3) {
                number(random)
            } else {
                turn + 1
            },
            after: number(random),
            limit: number(random) as u32,
        }),
        8 => Frame::Ping(v2::Ping {
            nonce: number(random),
        }),
        9 => Frame::Reauth(v2::Reauth {
            tag: number(random),
            token: if one_in(random, 2) {
                token.to_owned()
            } else {
                text(random)
            },
        }),
        10 if one_in(random, 4) => Frame::Goodbye(v2::Goodbye {
            reason: number(random) as i32,
            retry_after_ms: number(random),
            other_address: text(random),
            text: text(random),
        }),
        10 => Frame::Hello(hello(random, token)),
        _ => return strange(random),
    };
    framed(frame)
}

/// Well framed, and nothing that the specification has: other fields, other types, ends that lie.
fn strange(random: &mut Random) -> Vec<u8> {
    let mut message = Vec::new();
    for _ in 0..random.below(6) {
        varint(&mut message, number(random)); // field and type
        match random.below(4) {
            0 => varint(&mut message, number(random)),
            1 => message.extend([0xff; 11]), // a number without an end
            2 => {
                let length = random.below(30);
                varint(&mut message, length + random.below(3));
                message.extend(noise(random, length));
            }
            _ => {}
        }
    }
    if one_in(random, 4) {
        message = [0x0b; 200].to_vec(); // groups in groups
    }
    enclose(&message)
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Changes a few bytes, or where something begins and ends.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = pick(random, &[0, 0x7f, 0x80, 0xff]),
            2 => bytes.truncate(at),
            3 => {
                let count = random.below(20);
                let more = noise(random, count);
                bytes.splice(at..at, more);
            }
            4 => {
                let end = (at + random.below(20) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let end = (at + random.below(200) as usize).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => lie(random, bytes),
        }
    }
}

/// Another length in the head of the frame.
fn lie(random: &mut Random, bytes: &mut [u8]) {
    let Some(head) = bytes.first_chunk_mut::<4>() else {
        return;
    };
    let near = u32::from_be_bytes(*head)
        .wrapping_add(random.below(5) as u32)
        .wrapping_sub(2);
    let length = if one_in(random, 2) {
        near
    } else {
        pick(random, &LENGTHS)
    };
    *head = length.to_be_bytes();
}
