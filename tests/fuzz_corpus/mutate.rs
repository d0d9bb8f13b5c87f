//! Mutations by dice: the ones that find most with the least.

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Numbers at which things overflow, end or begin.
const NUMBERS: [u64; 12] = [
    0,
    1,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];
/// Bytes of the longest input.
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// An input of the corpus, changed in one to six places.
pub fn mutated(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut input = corpus[dice.below(corpus.len())].clone();
    for _ in 0..1 + dice.below(6) {
        change(&mut input, corpus, dice);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    if input.is_empty() {
        input.push(dice.next() as u8);
        return;
    }
    let at = dice.below(input.len());
    match dice.below(9) {
        0 => input[at] ^= 1 << dice.below(8),
        1 => input[at] = dice.next() as u8,
        2 => input.truncate(at),
        3 => input.insert(at, dice.next() as u8),
        4 => {
            let to = (at + 1 + dice.below(16)).min(input.len());
            input.drain(at..to);
        }
        5 => {
            let number = NUMBERS[dice.below(NUMBERS.len())];
            let bytes = match dice.below(2) {
                0 => number.to_le_bytes(),
                _ => number.to_be_bytes(),
            };
            let width = [1, 2, 4, 8][dice.below(4)].min(input.len() - at);
            input[at..at + width].copy_from_slice(&bytes[..width]);
        }
        6 => {
            // A piece of the input, once more.
            let to = (at + 1 + dice.below(64)).min(input.len());
            let piece = input[at..to].to_vec();
            let into = dice.below(input.len());
            input.splice(into..into, piece);
        }
        7 => {
            // The beginning of this one, the end of another one.
            let other = &corpus[dice.below(corpus.len())];
            let from = dice.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            // A sector of zeros, as a disk leaves it.
            let from = at / 512 * 512;
            let to = (from + 512).min(input.len());
            input[from..to].fill(0);
        }
    }
}
