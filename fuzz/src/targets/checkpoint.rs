//! Loading an arbitrary checkpoint: `log::CheckpointReader`.
//!
//! What is accepted to its end is written again, by the writer, to a file of the same length that says
//! the same. One bit, one byte less or one byte more, and nothing is accepted.

use super::Target;
use super::segments::{IDENTITY, put};
use crate::log::{CheckpointError, CheckpointHeader, CheckpointReader, CheckpointWriter, Section};
use crate::measure::measured;

/// See the module's text.
pub const CHECKPOINT: Target = Target {
    name: "checkpoint",
    check,
    mend,
    seeds,
};

const BLOCK_BYTES: usize = 64 * 1024;

/// Bytes of memory for a file of so many: each section once.
const fn checkpoint_bytes_max(len: usize) -> usize {
    len + 1024
}

type Read = Result<(CheckpointHeader, Vec<Section>), CheckpointError>;

fn read(file: &[u8]) -> Read {
    let (header, mut reader) = CheckpointReader::open(file)?;
    let mut sections = Vec::with_capacity(file.len() / 24); // the reader's memory is what counts
    let (result, held) = measured(|| {
        while let Some(section) = reader.next_section()? {
            sections.push(section);
        }
        Ok(())
    });
    let most = checkpoint_bytes_max(file.len());
    assert!(held <= most, "{held} bytes held, {most} would do");
    result.map(|()| (header, sections))
}

fn check(data: &[u8]) {
    let Ok((header, sections)) = read(data) else {
        return;
    };
    assert_eq!(header.sections as usize, sections.len());
    let again = written(&header, &sections);
    assert_eq!(
        again.len(),
        data.len(),
        "a file of another length says the same"
    );
    assert_eq!(read(&again), Ok((header, sections)));

    let chance = crc32fast::hash(data) as usize;
    let mut hurt = data.to_vec();
    let bit = chance % (data.len() * 8);
    hurt[bit / 8] ^= 1 << (bit % 8);
    assert!(read(&hurt).is_err(), "bit {bit} flipped, and accepted");
    assert!(
        read(&data[..chance % data.len()]).is_err(),
        "cut, and accepted"
    );
    let more = [data, &[chance as u8]].concat();
    assert!(read(&more).is_err(), "longer, and accepted");
}

fn written(header: &CheckpointHeader, sections: &[Section]) -> Vec<u8> {
    let mut writer = CheckpointWriter::new(header);
    for section in sections {
        writer.section(section.shard, section.applied, section.bytes.len() as u64);
        writer.push(&section.bytes);
    }
    let mut file = writer.take_blocks().unwrap_or_default();
    file.extend(writer.finish());
    file
}

/// Makes the blocks' lengths and CRCs fit again; one in eight is left as it is.
fn mend(data: &mut [u8], seed: u64) -> usize {
    for (number, block) in data.chunks_mut(BLOCK_BYTES).enumerate() {
        if block.len() < 9 || seed >> (3 * number % 60) & 7 == 0 {
            continue;
        }
        let len = block.len() as u32 - 8;
        put(block, 4, len.to_le_bytes());
        let number = (number as u64).to_le_bytes();
        let crc = crc32fast::hash(&[&number[..], &block[4..]].concat());
        put(block, 0, crc.to_le_bytes());
    }
    data.len()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let file = |lengths: &[usize]| {
        let sections: Vec<Section> = lengths
            .iter()
            .enumerate()
            .map(|(number, len)| Section {
                shard: number as u16 * 2,
                applied: 1000 + number as u64,
                bytes: vec![number as u8 + 1; *len],
            })
            .collect();
        let header = CheckpointHeader {
            identity: IDENTITY,
            incarnation: 3,
            segment_bytes: 1 << 26,
            scan_lsn: 0x1234_5678,
            prev_crc: 0xdead_beef,
            sections: sections.len() as u32,
        };
        written(&header, &sections)
    };
    vec![
        ("none", file(&[])),
        ("three", file(&[10, 0, 300])),
        ("two_blocks", file(&[100, 65_600])),
        // The stream ends exactly with its first block.
        ("full_block", file(&[65_528 - 72 - 24 - 20])),
    ]
}
