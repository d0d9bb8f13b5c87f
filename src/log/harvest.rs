//! TEMP
use super::format::{FrameHeader, FrameKind, RecordKind, SegmentSize, records};
use super::items::items;
use super::limits::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES};
#[derive(Debug)] pub struct Harvest { pub segment: u64, pub bytes: Vec<u8>, pub items: Vec<(u64, std::ops::Range<usize>)>, pub next: Option<usize>, pub damaged: u32 }
pub fn harvest(size: SegmentSize, segment: u64, bytes: &[u8], from: usize, budget: usize) -> Harvest {
    let mut h = Harvest { segment, bytes: Vec::new(), items: Vec::new(), next: None, damaged: 0 };
    let mut at = if from == 0 { SEGMENT_HEADER_BYTES } else { from };
    let begin = at;
    while let Some(f) = FrameHeader::decode(&bytes[at..]) {
        if at - begin >= budget { h.next = Some(at); return h; }
        if f.kind() == Some(FrameKind::End) { return h; }
        let body = &bytes[at + FRAME_HEADER_BYTES..at + f.frame_len()];
        let _ = records(&f, body, |r, start, payload| {
            if matches!(r.kind, RecordKind::Entry | RecordKind::Reloc) {
                for item in items(payload) { if let Ok((o, b)) = item {
                    let pos = size.first_lsn(segment) + (at + FRAME_HEADER_BYTES + start + o) as u64;
                    let s = h.bytes.len();
                    let from = start + o;
                    h.bytes.extend_from_slice(&body[from..from + 8 + b.len()]);
                    h.items.push((pos, s..h.bytes.len()));
                } else { h.damaged += 1; break; } }
            }
        });
        at += f.frame_len();
    }
    h
}
