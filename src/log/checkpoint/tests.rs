//! Checkpoints as they come back, and as they must not.

use proptest::prelude::*;

use super::*;

const HEADER: CheckpointHeader = CheckpointHeader {
    identity: NodeIdentity {
        cluster_id: [6; 16],
        node_id: 7,
        log: 2,
    },
    incarnation: 3,
    segment_bytes: 1 << 26,
    scan_lsn: 0x1234_5678,
    prev_crc: 0xdead_beef,
    sections: 0,
};

fn section(shard: u16, len: usize) -> Section {
    Section {
        shard,
        applied: 1000 + u64::from(shard),
        bytes: (0..len).map(|at| (at * 31 + len) as u8).collect(),
    }
}

/// The file of these sections, pushed `piece` bytes at a time.
fn written(sections: &[Section], piece: usize) -> Vec<u8> {
    let mut writer = CheckpointWriter::new(&CheckpointHeader {
        sections: sections.len() as u32,
        ..HEADER
    });
    let mut file = Vec::new();
    for section in sections {
        writer.section(section.shard, section.applied, section.bytes.len() as u64);
        for piece in section.bytes.chunks(piece) {
            writer.push(piece);
            let ready = writer.ready_bytes();
            let taken = writer.take_blocks().unwrap_or_default();
            assert_eq!((taken.len(), writer.ready_bytes()), (ready, 0));
            assert!(taken.len().is_multiple_of(CHECKPOINT_BLOCK_BYTES));
            file.extend(taken);
        }
    }
    file.extend(writer.finish());
    file
}

/// All of a file, or the first error.
fn read(file: &[u8]) -> Result<(CheckpointHeader, Vec<Section>), CheckpointError> {
    let (header, mut reader) = CheckpointReader::open(file)?;
    let mut sections = Vec::new();
    while let Some(section) = reader.next_section()? {
        sections.push(section);
    }
    assert_eq!(reader.next_section(), Ok(None), "the end stays the end");
    Ok((header, sections))
}

fn check(sections: &[Section], piece: usize) {
    let (header, found) = read(&written(sections, piece)).unwrap();
    let expected = CheckpointHeader {
        sections: sections.len() as u32,
        ..HEADER
    };
    assert_eq!(header, expected);
    assert!(found == sections, "sections changed");
}

/// R: D-5
#[test]
fn a_checkpoint_comes_back_at_every_length_around_the_edges_of_its_blocks() {
    let fixed = HEADER_BYTES + SECTION_BYTES;
    for block in 1..=3 {
        let edge = block * CHECKPOINT_BLOCK_PAYLOAD_BYTES - fixed;
        for len in edge - TRAILER_BYTES - 2..=edge + 2 {
            check(&[section(4, len)], 10_000);
        }
        // The second section's header lies across the edge.
        for len in edge - SECTION_BYTES - 1..=edge + 1 {
            check(
                &[section(4, len), section(5, 0), section(9, 100)],
                usize::MAX,
            );
        }
    }
    check(&[], 1);
    check(&[section(0, 0), section(u16::MAX, 1)], 1);
}

#[test]
fn every_block_but_the_last_is_full_and_no_block_is_empty() {
    let len = 2 * CHECKPOINT_BLOCK_PAYLOAD_BYTES - HEADER_BYTES - SECTION_BYTES - TRAILER_BYTES;
    assert_eq!(
        written(&[section(1, len)], 999).len(),
        2 * CHECKPOINT_BLOCK_BYTES
    );
    let more = written(&[section(1, len + 1)], 999);
    assert_eq!(
        more.len(),
        2 * CHECKPOINT_BLOCK_BYTES + BLOCK_HEADER_BYTES + 1
    );
}

/// R: D-1, D-5
#[test]
fn every_flipped_bit_is_noticed() {
    let mut file = written(&[section(1, 40), section(2, 0), section(3, 300)], 7);
    for bit in 0..file.len() * 8 {
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&file).is_err(), "bit {bit}");
        file[bit / 8] ^= 1 << (bit % 8);
    }
    let mut long = written(&[section(1, 150_000)], 9999);
    for bit in (0..long.len() * 8).step_by(7919) {
        long[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&long).is_err(), "bit {bit}");
        long[bit / 8] ^= 1 << (bit % 8);
    }
}

/// R: D-1, D-5
#[test]
fn every_truncation_and_every_addition_is_noticed() {
    let file = written(&[section(1, 40), section(2, 500)], 64);
    for len in 0..file.len() {
        assert!(read(&file[..len]).is_err(), "{len} bytes");
    }
    let long = written(&[section(1, 3 * CHECKPOINT_BLOCK_PAYLOAD_BYTES)], 9999);
    for blocks in 0..4 {
        let cut = read(&long[..blocks * CHECKPOINT_BLOCK_BYTES]);
        let short = matches!(
            cut,
            Err(CheckpointError::Short { .. } | CheckpointError::Section { .. })
        );
        assert!(short, "{blocks} blocks: {cut:?}");
    }
    for added in [1, 8, 100, CHECKPOINT_BLOCK_BYTES] {
        let mut longer = file.clone();
        longer.resize(file.len() + added, 0);
        assert!(read(&longer).is_err(), "{added} added");
    }
    let edge = 2 * CHECKPOINT_BLOCK_PAYLOAD_BYTES - HEADER_BYTES - SECTION_BYTES - TRAILER_BYTES;
    let mut full = written(&[section(1, edge)], 999);
    full.extend(&file);
    let offset = 2 * CHECKPOINT_BLOCK_BYTES;
    assert_eq!(read(&full), Err(CheckpointError::Long { offset }));
}

/// R: D-1, D-5
#[test]
fn exchanged_blocks_are_noticed() {
    let file = written(&[section(1, 4 * CHECKPOINT_BLOCK_PAYLOAD_BYTES)], 9999);
    let mut exchanged = file.clone();
    let (first, second) = (CHECKPOINT_BLOCK_BYTES, 2 * CHECKPOINT_BLOCK_BYTES);
    exchanged[first..second].copy_from_slice(&file[second..second + CHECKPOINT_BLOCK_BYTES]);
    let found = read(&exchanged).map(|_| ());
    let offset = CHECKPOINT_BLOCK_BYTES;
    assert!(
        matches!(found, Err(CheckpointError::Block { offset: at, .. }) if at == offset),
        "{found:?}"
    );
}

/// One whole block with this payload.
fn block(payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    let mut file = block_crc(0, len, payload).to_le_bytes().to_vec();
    file.extend(len.to_le_bytes());
    file.extend(payload);
    file
}

#[test]
fn a_section_longer_than_the_file_takes_no_memory() {
    let mut file = written(&[section(1, 0)], 1);
    let mut payload = file.split_off(BLOCK_HEADER_BYTES);
    payload[HEADER_BYTES + 16..HEADER_BYTES + 24].copy_from_slice(&u64::MAX.to_le_bytes());
    let found = read(&block(&payload)).map(|_| ());
    let expected = CheckpointError::Section {
        shard: 1,
        len: u64::MAX,
        available: TRAILER_BYTES,
    };
    assert_eq!(found, Err(expected));
}

/// R: D-3
#[test]
fn other_files_and_other_versions_are_refused_by_name() {
    let mut file = written(&[], 1);
    let mut payload = file.split_off(BLOCK_HEADER_BYTES);
    payload[8] = 9;
    let found = read(&block(&payload)).map(|_| ());
    assert_eq!(found, Err(CheckpointError::Version { version: 9 }));
    payload[0] = b'J';
    assert_eq!(
        read(&block(&payload)).map(|_| ()),
        Err(CheckpointError::Magic)
    );
    let last = payload.len() - 1;
    (payload[0], payload[8], payload[last]) = (b'I', CHECKPOINT_VERSION as u8, 1);
    let found = read(&block(&payload)).map(|_| ());
    assert!(
        matches!(found, Err(CheckpointError::Trailer { .. })),
        "{found:?}"
    );
}

proptest! {
    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        is_block in any::<bool>(),
    ) {
        let _ = read(&bytes);
        let header = [&MAGIC[..], &CHECKPOINT_VERSION.to_le_bytes(), &bytes].concat();
        let _ = read(&block(if is_block { &bytes } else { &header }));
    }
}
