//! The superblock: what a data directory is, in 4 KiB.
//!
//! Magic, version and the CRC in the last four bytes keep their place in every version, so that
//! "another version" and "broken" can be told apart for ever.

use crate::log::{NodeIdentity, SegmentSize};

use super::limits::{LOGS_MAX, SHARDS_MAX};

/// Bytes of a superblock file.
pub const SUPER_BYTES: usize = 4096;
/// Version of the data directory that this program reads and writes.
pub const SUPER_VERSION: u32 = 2;

/// Names of the two superblock files.
pub(super) const SUPER_NAMES: [&str; 2] = ["SUPER.a", "SUPER.b"];
const MAGIC: [u8; 8] = *b"IRIS-SUP";
const CRC_AT: usize = SUPER_BYTES - 4;
const LOGS_AT: usize = 128;
const LOG_ENTRY_BYTES: usize = 16;

const _: () = assert!(LOGS_AT + LOGS_MAX as usize * LOG_ENTRY_BYTES <= CRC_AT);

/// Identity and shape of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperBlock {
    /// Version of the data directory.
    pub format_version: u32,
    /// Drawn when the cluster's first data directory was formatted.
    pub cluster_id: [u8; 16],
    /// Drawn when this data directory was formatted.
    pub node_id: u64,
    /// Counts the opens; a process sees its own.
    pub incarnation: u64,
    /// Counts the writes of the superblock; the file with the higher one is the newer.
    pub sequence: u64,
    /// Shards that the users are split over; never changes.
    pub shards: u32,
    /// Logs that the shards are split over; never changes.
    pub logs: u32,
    /// Size of every segment; never changes.
    pub segment_size: SegmentSize,
    /// Key of the hash that maps a user to a shard; never changes.
    pub hash_key: [u8; 16],
    /// Drawn when the directory was restored from a backup, whose positions may lie behind what clients
    /// saw; zero before that. See [`SuperBlock::data_name`].
    pub data_id: [u8; 16],
    /// Per log: position up to which it was known durable when this was written. A log that ends
    /// before it has lost data.
    pub durable_lsn: Vec<u64>,
    /// Per log: position behind the newest segment that was made, at its full size, noted before anything
    /// was written to it. A log that goes on in one of them that is not there, or whose file is shorter,
    /// has lost data. Zero: nothing was noted (by the first programs of this version).
    pub made_lsn: Vec<u64>,
}

/// Why bytes are not a superblock that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperFault {
    /// Not whole: wrong length, magic, CRC or a field out of range.
    Corrupt,
    /// Whole, of another version.
    Version(u32),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        out
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

impl SuperBlock {
    /// What clients know the data by (`Welcome.cluster`): when it changes, they forget their positions.
    #[must_use]
    pub fn data_name(&self) -> [u8; 16] {
        if self.data_id == [0; 16] {
            return self.cluster_id;
        }
        self.data_id
    }

    /// What the headers of the segments of log `log` say.
    #[must_use]
    pub fn identity(&self, log: u32) -> NodeIdentity {
        NodeIdentity {
            cluster_id: self.cluster_id,
            node_id: self.node_id,
            log,
        }
    }

    /// The file that it is written to: odd sequences to SUPER.a, even ones to SUPER.b, so that the newest
    /// is never the one replaced.
    #[must_use]
    pub fn file_name(&self) -> &'static str {
        SUPER_NAMES[usize::from(self.sequence.is_multiple_of(2))]
    }

    /// The 4 KiB to be written.
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.durable_lsn.len(), self.logs as usize);
        assert_eq!(self.made_lsn.len(), self.logs as usize);
        let mut out = Vec::with_capacity(SUPER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.format_version.to_le_bytes());
        out.extend_from_slice(&self.logs.to_le_bytes());
        out.extend_from_slice(&self.cluster_id);
        out.extend_from_slice(&self.node_id.to_le_bytes());
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.shards.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.segment_size.bytes().to_le_bytes());
        out.extend_from_slice(&self.hash_key);
        out.extend_from_slice(&self.data_id);
        out.resize(LOGS_AT, 0);
        for (durable, made) in self.durable_lsn.iter().zip(&self.made_lsn) {
            out.extend_from_slice(&durable.to_le_bytes());
            out.extend_from_slice(&made.to_le_bytes());
        }
        out.resize(CRC_AT, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a superblock file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperFault> {
        if bytes.len() != SUPER_BYTES || bytes[..8] != MAGIC {
            return Err(SuperFault::Corrupt);
        }
        let mut reader = Reader { bytes, at: CRC_AT };
        if reader.u32() != crc32fast::hash(&bytes[..CRC_AT]) {
            return Err(SuperFault::Corrupt);
        }
        reader.at = 8;
        let format_version = reader.u32();
        if format_version != SUPER_VERSION {
            return Err(SuperFault::Version(format_version));
        }
        let logs = reader.u32();
        let cluster_id = reader.take();
        let (node_id, incarnation, sequence) = (reader.u64(), reader.u64(), reader.u64());
        let shards = reader.u32();
        reader.at += 4;
        let segment_size = SegmentSize::new(reader.u64()).ok_or(SuperFault::Corrupt)?;
        let (hash_key, data_id) = (reader.take(), reader.take());
        if !(1..=LOGS_MAX).contains(&logs) || !(1..=SHARDS_MAX).contains(&shards) {
            return Err(SuperFault::Corrupt);
        }
        reader.at = LOGS_AT;
        let (durable_lsn, made_lsn) = (0..logs).map(|_| (reader.u64(), reader.u64())).unzip();
        Ok(Self {
            format_version,
            cluster_id,
            node_id,
            incarnation,
            sequence,
            shards,
            logs,
            segment_size,
            hash_key,
            data_id,
            durable_lsn,
            made_lsn,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SuperBlock {
        SuperBlock {
            format_version: SUPER_VERSION,
            cluster_id: [7; 16],
            node_id: 8,
            incarnation: 9,
            sequence: 10,
            shards: 64,
            logs: 2,
            segment_size: SegmentSize::new(2 * 1024 * 1024).unwrap(),
            hash_key: [11; 16],
            data_id: [15; 16],
            durable_lsn: vec![12, 13],
            made_lsn: vec![0, 14],
        }
    }

    #[test]
    fn a_superblock_reads_back_as_written() {
        assert_eq!(SuperBlock::decode(&example().encode()), Ok(example()));
    }

    /// R: D-3
    #[test]
    fn one_flipped_bit_anywhere_makes_it_corrupt() {
        let bytes = example().encode();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            assert_eq!(
                SuperBlock::decode(&bytes),
                Err(SuperFault::Corrupt),
                "byte {at}"
            );
        }
    }

    #[test]
    fn data_is_known_by_its_cluster_until_it_is_restored() {
        let restored = example();
        assert_eq!(restored.data_name(), [15; 16]);
        let first = SuperBlock {
            data_id: [0; 16],
            ..restored
        };
        assert_eq!(first.data_name(), [7; 16]);
    }

    /// R: D-3
    #[test]
    fn another_version_is_not_taken_for_corruption() {
        let other = SuperBlock {
            format_version: 3,
            ..example()
        };
        assert_eq!(
            SuperBlock::decode(&other.encode()),
            Err(SuperFault::Version(3))
        );
    }
}
