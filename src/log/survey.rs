//! One segment from its first byte to its last, for people who look into a log.
//!
//! ```text
//!  header │ frame │ frame │ ? ? bad ? ? │ frame │ END        what is whole is shown, what is not is named
//! ```
//! A survey judges bytes, not history: whether a bad place is damage or the torn end of the log is
//! recovery's question (see [`super::recovery`]), and where an inbox refers to is the shards'.

use super::format::{FrameHeader, FrameKind, HeaderFault, SegmentHeader, SegmentSize};
use super::limits::{ALIGN, SEGMENT_HEADER_BYTES};
use super::part::Part;
use super::recovery::Fault;

/// What stands in a segment, in order.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// The segment's header.
    Header(SegmentHeader),
    /// A whole frame and its body.
    Frame(FrameHeader, &'a [u8]),
    /// Bytes that are no frame, from one offset to another; equal when the bytes are whole and do not
    /// continue what was before.
    Bad {
        /// Where they begin.
        from: usize,
        /// Where they end.
        to: usize,
        /// What is wrong at the beginning.
        fault: Fault,
    },
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surveyed {
    /// Whole frames.
    pub frames: u64,
    /// Offset behind the last whole frame; 0: there is none.
    pub end: usize,
    /// Header CRC of the last frame, when it is whole and nothing bad follows: what the next segment
    /// repeats.
    pub last_crc: Option<u32>,
    /// Whether the last frame is an END.
    pub is_sealed: bool,
}

/// Shows what stands in the `bytes` of segment `index`. `before` is what its header has to repeat of the
/// segment before it, if that is known. Of a spare nothing is shown.
pub fn survey<'a>(
    size: SegmentSize,
    index: u64,
    bytes: &'a [u8],
    before: Option<u32>,
    visit: &mut dyn FnMut(Sight<'a>),
) -> Surveyed {
    let header = SegmentHeader::decode(bytes);
    let fault = |fault| match fault {
        HeaderFault::Zero => Fault::SegmentUnused,
        HeaderFault::Invalid | HeaderFault::Version(_) => Fault::SegmentHeader,
    };
    let part = Part::new(size, index, bytes, header.map_err(fault));
    let salt = part.salt();
    match part.header {
        Ok(header) => {
            visit(Sight::Header(header));
            if before.is_some_and(|before| before != header.prev_crc) {
                visit(bad(0, 0, Fault::SegmentChain));
            }
        }
        Err(Fault::SegmentUnused) if salt.is_none() => {}
        Err(fault) => visit(bad(0, SEGMENT_HEADER_BYTES.min(bytes.len()), fault)),
    }
    match salt {
        Some(salt) => frames(&part, salt, visit),
        None => Surveyed::default(),
    }
}

fn bad<'a>(from: usize, to: usize, fault: Fault) -> Sight<'a> {
    Sight::Bad { from, to, fault }
}

fn frames<'a>(part: &Part<'a>, salt: u64, visit: &mut dyn FnMut(Sight<'a>)) -> Surveyed {
    let mut surveyed = Surveyed::default();
    let mut prev_crc = part.header.ok().map(|header| header.prev_crc);
    let mut at = SEGMENT_HEADER_BYTES;
    loop {
        let (fault, frame) = match part.frame_at(at, salt, prev_crc) {
            Ok((frame, body)) => {
                visit(Sight::Frame(frame, body));
                at += frame.frame_len();
                prev_crc = Some(frame.hdr_crc);
                surveyed = Surveyed {
                    frames: surveyed.frames + 1,
                    end: at,
                    last_crc: prev_crc,
                    is_sealed: frame.kind() == Some(FrameKind::End),
                };
                if surveyed.is_sealed {
                    return surveyed;
                }
                continue;
            }
            Err(stop) => stop,
        };
        prev_crc = None;
        if fault == Fault::Chain {
            visit(bad(at, at, fault));
            continue;
        }
        let behind = match frame {
            Some(frame) => Some((at + frame.frame_len()).min(part.bytes.len())),
            None => part
                .find(at + ALIGN, Some(salt), |_| true)
                .map(|frame| part.offset_of(frame.lsn)),
        };
        let to = behind.unwrap_or_else(|| written_end(part.bytes, at));
        if to == at {
            return surveyed; // zeros to the end of the file
        }
        visit(bad(at, to, fault));
        surveyed.last_crc = None;
        at = to;
        surveyed.is_sealed = frame.is_some_and(|frame| frame.kind() == Some(FrameKind::End));
        if behind.is_none() || surveyed.is_sealed {
            return surveyed;
        }
    }
}

/// The offset behind the last byte from `from` on that is not zero.
fn written_end(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let last = rest.iter().rposition(|byte| *byte != 0);
    last.map_or(from, |last| from + last + 1)
}

#[cfg(test)]
mod tests {
    use super::super::crash_trials::{Dice, SIZE, World};
    use super::*;

    fn full(seed: u64) -> World {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        while world.append(&mut dice, FrameKind::Data) {
            world.sync();
        }
        world
    }

    struct Seen {
        frames: Vec<(u64, usize)>,
        bad: Vec<(usize, usize, Fault)>,
        surveyed: Surveyed,
    }

    fn look(index: u64, bytes: &[u8], before: Option<u32>) -> Seen {
        let (mut frames, mut bad) = (Vec::new(), Vec::new());
        let surveyed = survey(SIZE, index, bytes, before, &mut |sight| match sight {
            Sight::Header(_) => {}
            Sight::Frame(frame, body) => {
                assert_eq!(body.len(), frame.body_len as usize);
                frames.push((frame.lsn, frame.frame_len()));
            }
            Sight::Bad { from, to, fault } => bad.push((from, to, fault)),
        });
        Seen {
            frames,
            bad,
            surveyed,
        }
    }

    fn placed(world: &World, segment: u64) -> Vec<(u64, usize)> {
        let frames = world.placed.iter().filter(|placed| placed.kind.is_some());
        let here = frames.filter(|placed| SIZE.index_of(placed.lsn) == segment);
        here.map(|placed| (placed.lsn, placed.len)).collect()
    }

    /// R: D-1
    #[test]
    fn every_frame_of_every_segment_is_shown_once_and_the_segments_chain() {
        for seed in 0..40 {
            let world = full(seed);
            let mut before = Some(0);
            for segment in 0..3 {
                let seen = look(segment, &world.disk[segment as usize], before);
                assert_eq!(seen.frames, placed(&world, segment), "seed {seed}");
                assert_eq!(seen.bad, [], "seed {seed}");
                assert!(seen.surveyed.is_sealed, "seed {seed}");
                before = seen.surveyed.last_crc;
            }
        }
    }

    /// R: D-2
    #[test]
    fn one_flipped_bit_hides_at_most_its_frame_and_is_named() {
        for seed in 0..800 {
            let mut dice = Dice(seed);
            let world = full(seed % 40);
            let segment = dice.below(3) as u64;
            let frames = placed(&world, segment);
            let (lsn, len) = frames[dice.below(frames.len())];
            let offset = SIZE.offset_of(lsn);
            let mut bytes = world.disk[segment as usize].clone();
            bytes[offset + dice.below(len)] ^= 1 << dice.below(8);
            let seen = look(segment, &bytes, None);
            assert_eq!(seen.bad.len(), 1, "seed {seed}: {:?}", seen.bad);
            let (from, to, _) = seen.bad[0];
            assert_eq!(from, offset, "seed {seed}");
            // Behind an END lies what the file's earlier use left; without its header nobody knows.
            let is_last = frames.last() == Some(&(lsn, len));
            assert!(to <= offset + len || is_last, "seed {seed}");
            let others: Vec<_> = frames.into_iter().filter(|one| one.0 != lsn).collect();
            assert_eq!(seen.frames, others, "seed {seed}");
        }
    }

    #[test]
    fn a_spare_shows_nothing_and_a_segment_of_another_log_breaks_the_chain() {
        let spare = vec![0; SIZE.bytes() as usize];
        let seen = look(7, &spare, Some(1));
        assert_eq!((seen.frames, seen.bad), (vec![], vec![]));
        assert_eq!(seen.surveyed, Surveyed::default());
        let world = full(1);
        let seen = look(1, &world.disk[1], Some(0xdead_beef));
        assert_eq!(seen.bad, [(0, 0, Fault::SegmentChain)]);
    }

    #[test]
    fn garbage_in_any_place_never_panics_and_always_ends() {
        for seed in 0..300 {
            let mut dice = Dice(seed);
            let mut bytes = full(seed % 40).disk[0].clone();
            for _ in 0..dice.below(6) {
                let from = dice.below(bytes.len());
                let len = dice.below(3000).min(bytes.len() - from);
                let garbage = dice.bytes(len);
                bytes[from..from + len].copy_from_slice(&garbage);
            }
            bytes.truncate(dice.below(SIZE.bytes() as usize + 1));
            look(0, &bytes, None);
        }
    }
}
