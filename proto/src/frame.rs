//! Frames in a byte stream: a 4-byte big-endian length, then that many bytes.
//!
//! ```text
//!     received bytes ─▶ Decoder::next ─▶ whole frame: borrowed from the input, nothing copied
//!                                    └▶ cut frame: kept inside until the rest arrives
//! ```
//!
//! Invariant: the decoder never holds more than one frame, never more than the limit it was given, and
//! between frames it holds no memory at all. A length over the limit is refused before anything is
//! taken for it. It does not know what is inside a frame (see [`crate::wire`]).

use alloc::vec::Vec;
use core::fmt;

/// Bytes of the length in front of each frame.
pub const LENGTH_BYTES: usize = 4;

/// Why a byte stream cannot be split into frames any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The announced length is over the limit. Say `Goodbye(FRAME_TOO_LARGE)` and close.
    TooLarge {
        /// Bytes announced.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { len, max } => write!(
                f,
                "a frame of {len} bytes was announced, at most {max} are allowed; close the connection"
            ),
        }
    }
}

impl core::error::Error for FrameError {}

/// Splits received bytes into frames. See the module's text.
#[derive(Debug)]
pub struct Decoder {
    max: usize,
    /// The length and as much of the payload as has arrived, of a frame that was cut.
    partial: Vec<u8>,
    /// `partial` was handed out by the last call and is over.
    taken: bool,
}

impl Decoder {
    /// A decoder that refuses frames of more than `max` bytes.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self {
            max,
            partial: Vec::new(),
            taken: false,
        }
    }

    /// Sets another limit, from the next frame's length on. A session starts with
    /// [`HELLO_FRAME_BYTES_MAX`](crate::limits::HELLO_FRAME_BYTES_MAX) and goes on with
    /// [`FRAME_BYTES_MAX`](crate::limits::FRAME_BYTES_MAX).
    pub const fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Bytes held of a frame that is not whole yet.
    #[must_use]
    pub const fn held(&self) -> usize {
        if self.taken { 0 } else { self.partial.len() }
    }

    /// Takes the next frame from the front of `input` and moves `input` past what was used. `None`:
    /// all of `input` was used and the frame is not whole. Call it until it says `None`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; the stream cannot go on after it.
    pub fn next<'d, 'i: 'd>(
        &'d mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<&'d [u8]>, FrameError> {
        if self.taken {
            self.partial = Vec::new(); // an idle connection holds no buffer
            self.taken = false;
        }
        if !self.partial.is_empty() {
            return self.complete(input);
        }
        let Some((head, rest)) = input.split_first_chunk::<LENGTH_BYTES>() else {
            self.keep(input, input.len());
            return Ok(None);
        };
        let len = self.check(*head)?;
        let Some((frame, rest)) = rest.split_at_checked(len) else {
            self.keep(input, input.len());
            return Ok(None);
        };
        *input = rest;
        Ok(Some(frame))
    }

    /// Goes on with the frame that was cut.
    fn complete<'d>(&'d mut self, input: &mut &[u8]) -> Result<Option<&'d [u8]>, FrameError> {
        self.keep(input, LENGTH_BYTES.saturating_sub(self.partial.len()));
        let Some(head) = self.partial.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len = self.check(*head)?;
        self.keep(input, LENGTH_BYTES + len - self.partial.len());
        if self.partial.len() < LENGTH_BYTES + len {
            return Ok(None);
        }
        self.taken = true;
        Ok(self.partial.get(LENGTH_BYTES..))
    }

    const fn check(&self, head: [u8; LENGTH_BYTES]) -> Result<usize, FrameError> {
        let len = u32::from_be_bytes(head) as usize;
        if len > self.max {
            return Err(FrameError::TooLarge { len, max: self.max });
        }
        Ok(len)
    }

    /// Moves up to `wanted` bytes from the front of `input` to the end of `partial`.
    fn keep(&mut self, input: &mut &[u8], wanted: usize) {
        let (now, later) = input.split_at(wanted.min(input.len()));
        self.partial.extend_from_slice(now);
        *input = later;
    }
}

/// Appends one frame to `out`: the length, then what `payload` appends.
///
/// # Panics
/// When the payload has 4 GiB or more, which is far over any limit of ours.
pub fn append(out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    payload(out);
    let len = out.len() - start - LENGTH_BYTES;
    assert!(u32::try_from(len).is_ok(), "a frame has 4 GiB or more");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    out[start..start + LENGTH_BYTES].copy_from_slice(&(len as u32).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn stream_of(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for payload in payloads {
            append(&mut stream, |out| out.extend_from_slice(payload));
        }
        stream
    }

    fn feed(decoder: &mut Decoder, mut piece: &[u8], frames: &mut Vec<Vec<u8>>) {
        while let Some(frame) = decoder.next(&mut piece).expect("within the limit") {
            frames.push(frame.to_vec());
        }
        assert!(piece.is_empty());
    }

    #[test]
    fn frames_come_out_whole_at_every_split() {
        let payloads = [vec![1; 5], vec![], vec![2; 300], vec![3]];
        let stream = stream_of(&payloads);
        for split in 0..=stream.len() {
            let mut decoder = Decoder::new(300);
            let mut frames = Vec::new();
            feed(&mut decoder, &stream[..split], &mut frames);
            feed(&mut decoder, &stream[split..], &mut frames);
            assert_eq!(frames, payloads, "split at {split}");
            assert_eq!(decoder.held(), 0);
        }
    }

    #[test]
    fn frames_come_out_whole_byte_by_byte() {
        let payloads = [vec![1; 5], vec![], vec![2; 300]];
        let mut decoder = Decoder::new(300);
        let mut frames = Vec::new();
        for byte in stream_of(&payloads) {
            feed(&mut decoder, &[byte], &mut frames);
        }
        assert_eq!(frames, payloads);
    }

    /// R: A-5
    #[test]
    fn length_over_the_limit_is_refused_before_memory_is_taken() {
        let mut head = &[0xff, 0xff, 0xff, 0xff, 0][..];
        let mut decoder = Decoder::new(100);
        let max = 100;
        let len = u32::MAX as usize;
        assert_eq!(
            decoder.next(&mut head),
            Err(FrameError::TooLarge { len, max })
        );
        assert_eq!(decoder.partial.capacity(), 0);

        let mut decoder = Decoder::new(100);
        assert_eq!(decoder.next(&mut &[0xff, 0xff][..]), Ok(None));
        assert_eq!(
            decoder.next(&mut &[0xff, 0xff, 9][..]),
            Err(FrameError::TooLarge { len, max })
        );
        assert!(decoder.partial.capacity() < 64);
    }

    #[test]
    fn frame_at_the_limit_passes_and_one_byte_more_does_not() {
        let mut decoder = Decoder::new(100);
        let mut frames = Vec::new();
        feed(&mut decoder, &stream_of(&[vec![7; 100]]), &mut frames);
        assert_eq!(frames.len(), 1);
        let over = stream_of(&[vec![7; 101]]);
        assert!(decoder.next(&mut &over[..]).is_err());
    }

    #[test]
    fn whole_frame_is_borrowed_and_idle_decoder_holds_no_memory() {
        let stream = stream_of(&[vec![1; 50], vec![2; 50]]);
        let mut decoder = Decoder::new(100);
        let mut input = &stream[..];
        let frame = decoder.next(&mut input).expect("fits").expect("whole");
        assert!(stream.as_ptr_range().contains(&frame.as_ptr()));
        let mut input = &stream[..70];
        let mut frames = 0;
        while decoder.next(&mut input).expect("fits").is_some() {
            frames += 1;
        }
        assert_eq!((frames, decoder.held()), (1, 70 - 54));
        let mut input = &stream[70..];
        assert!(decoder.next(&mut input).expect("fits").is_some());
        assert!(decoder.next(&mut input).expect("fits").is_none());
        assert_eq!(decoder.partial.capacity(), 0);
    }

    proptest! {
        #[test]
        fn garbage_never_panics_nor_is_more_held_than_the_limit(
            pieces in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..40), 0..20),
        ) {
            let mut decoder = Decoder::new(64);
            'stream: for piece in &pieces {
                let mut input = &piece[..];
                loop {
                    match decoder.next(&mut input) {
                        Ok(Some(frame)) => prop_assert!(frame.len() <= 64),
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
                prop_assert!(decoder.held() <= 64 + LENGTH_BYTES);
            }
        }

        #[test]
        fn any_frames_survive_any_splitting(
            payloads in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..60), 0..10),
            cuts in proptest::collection::vec(1_usize..50, 1..40),
        ) {
            let stream = stream_of(&payloads);
            let mut decoder = Decoder::new(64);
            let mut frames = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (piece, later) = rest.split_at((*cut).min(rest.len()));
                feed(&mut decoder, piece, &mut frames);
                rest = later;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(frames, payloads);
        }
    }
}
