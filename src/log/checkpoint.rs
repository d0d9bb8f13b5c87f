//! A checkpoint's bytes: the state of each shard of a log, and where the log goes on from there.
//!
//! ```text
//!  stream   header │ section: shard, applied, bytes │ section │ … │ trailer
//!  file     ┌───────────┐┌───────────┐┌────┐   blocks: crc │ len │ payload; all but the last full
//! ```
//! **Invariant.** A block's CRC covers its number, and the trailer says how long the stream is: a
//! file that lost, gained, exchanged or changed anything is no checkpoint. There is no half of one:
//! a section is for use when [`CheckpointReader::next_section`] has come to its end without an
//! error.
//!
//! What a section's bytes mean is the shard's business. Writing the file in the background, its
//! sync and its rename are the shell's.

use super::format::{NodeIdentity, u16_at, u32_at, u64_at};
use super::limits::{CHECKPOINT_BLOCK_BYTES, CHECKPOINT_BLOCK_PAYLOAD_BYTES, CHECKPOINT_VERSION};

const MAGIC: [u8; 8] = *b"IRIS-CKP";
const TRAILER_MAGIC: [u8; 8] = *b"IRIS-END";
const HEADER_BYTES: usize = 72;
const SECTION_BYTES: usize = 24;
const TRAILER_BYTES: usize = 20;
const BLOCK_HEADER_BYTES: usize = CHECKPOINT_BLOCK_BYTES - CHECKPOINT_BLOCK_PAYLOAD_BYTES;

/// Whose checkpoint it is, and where the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// Whose log it is.
    pub identity: NodeIdentity,
    /// Start of the process that wrote it.
    pub incarnation: u64,
    /// Bytes of the log's segments.
    pub segment_bytes: u64,
    /// Recovery scans the log from here.
    pub scan_lsn: u64,
    /// Header CRC of the frame before `scan_lsn`.
    pub prev_crc: u32,
    /// Sections: the shards of the log.
    pub sections: u32,
}

/// The state of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The shard.
    pub shard: u16,
    /// Its last ENTRY index that the state contains.
    pub applied: u64,
    /// The state.
    pub bytes: Vec<u8>,
}

/// Why a file is not a checkpoint that can be used. The log from the checkpoint before it on has
/// all that it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// A block that is not what was written, or not in its place.
    #[error(
        "the checkpoint is damaged in the block at byte {offset}: stored crc {stored:#010x}, \
         computed {computed:#010x}; recover from the one before it"
    )]
    Block {
        /// Offset of the block in the file.
        offset: usize,
        /// CRC found.
        stored: u32,
        /// CRC of the bytes.
        computed: u32,
    },
    /// The file ends inside the stream.
    #[error(
        "the checkpoint ends at byte {len} in the middle of its stream: it was not finished or \
         was cut; recover from the one before it"
    )]
    Short {
        /// Bytes of the file.
        len: usize,
    },
    /// Something follows the end of the stream, or of a last block.
    #[error(
        "the checkpoint goes on at byte {offset} behind its end: it was appended to; recover from \
         the one before it"
    )]
    Long {
        /// Offset of the first byte too many.
        offset: usize,
    },
    /// Another kind of file.
    #[error("the file is no checkpoint: its first bytes are others; put it elsewhere")]
    Magic,
    /// A checkpoint of another version.
    #[error(
        "the checkpoint has version {version}, this program knows {CHECKPOINT_VERSION}; run the \
         program that wrote it"
    )]
    Version {
        /// Its version.
        version: u32,
    },
    /// A section that is longer than the rest of the file.
    #[error(
        "the checkpoint claims {len} bytes for shard {shard}, but {available} are left of the \
         file; recover from the one before it"
    )]
    Section {
        /// The shard.
        shard: u16,
        /// Bytes claimed.
        len: u64,
        /// Bytes left.
        available: usize,
    },
    /// The trailer does not fit the stream: the writer had a defect.
    #[error(
        "the checkpoint's trailer counts {sections} sections and {bytes} bytes, its stream has \
         others; recover from the one before it and report this as a defect"
    )]
    Trailer {
        /// Sections by the trailer.
        sections: u32,
        /// Bytes of the stream by the trailer.
        bytes: u64,
    },
}

fn block_crc(number: u64, len: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Packs a checkpoint's stream into blocks.
#[derive(Debug)]
pub struct CheckpointWriter {
    /// Finished blocks not yet taken, and the open one.
    out: Vec<u8>,
    /// Where the open block begins in `out`.
    open: usize,
    /// Number of the open block.
    number: u64,
    /// Bytes of the stream so far.
    stream_bytes: u64,
    sections: u32,
    sections_left: u32,
    /// Bytes of the begun section that have yet to come.
    section_left: u64,
}

impl CheckpointWriter {
    /// Begins the stream with its header.
    pub fn new(header: &CheckpointHeader) -> Self {
        let mut writer = Self {
            out: vec![0; BLOCK_HEADER_BYTES],
            open: 0,
            number: 0,
            stream_bytes: 0,
            sections: header.sections,
            sections_left: header.sections,
            section_left: 0,
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&header.identity.log.to_le_bytes());
        bytes[16..32].copy_from_slice(&header.identity.cluster_id);
        bytes[32..40].copy_from_slice(&header.identity.node_id.to_le_bytes());
        bytes[40..48].copy_from_slice(&header.incarnation.to_le_bytes());
        bytes[48..56].copy_from_slice(&header.segment_bytes.to_le_bytes());
        bytes[56..64].copy_from_slice(&header.scan_lsn.to_le_bytes());
        bytes[64..68].copy_from_slice(&header.prev_crc.to_le_bytes());
        bytes[68..72].copy_from_slice(&header.sections.to_le_bytes());
        writer.stream(&bytes);
        writer
    }

    /// Begins the section of a shard, whose `len` bytes are then pushed.
    ///
    /// # Panics
    /// When the section before it is not complete, or the header announced fewer.
    pub fn section(&mut self, shard: u16, applied: u64, len: u64) {
        assert_eq!(self.section_left, 0, "the section before it is complete");
        assert!(self.sections_left > 0, "more sections than announced");
        self.sections_left -= 1;
        self.section_left = len;
        let mut bytes = [0; SECTION_BYTES];
        bytes[0..2].copy_from_slice(&shard.to_le_bytes());
        bytes[8..16].copy_from_slice(&applied.to_le_bytes());
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        self.stream(&bytes);
    }

    /// Adds bytes of the begun section; in as many pieces as is convenient.
    ///
    /// # Panics
    /// When they are more than the section's length.
    pub fn push(&mut self, bytes: &[u8]) {
        let len = bytes.len() as u64;
        assert!(len <= self.section_left, "more bytes than the section has");
        self.section_left -= len;
        self.stream(bytes);
    }

    /// Bytes of finished blocks that can be taken.
    pub fn ready_bytes(&self) -> usize {
        self.open
    }

    /// The finished blocks since the last time, if there are any: to be appended to the file.
    pub fn take_blocks(&mut self) -> Option<Vec<u8>> {
        if self.open == 0 {
            return None;
        }
        let rest = self.out.split_off(self.open);
        self.open = 0;
        Some(std::mem::replace(&mut self.out, rest))
    }

    /// Ends the stream with its trailer; the last bytes of the file.
    ///
    /// # Panics
    /// When a section is missing or not complete.
    pub fn finish(mut self) -> Vec<u8> {
        assert_eq!(self.section_left, 0, "the last section is complete");
        assert_eq!(self.sections_left, 0, "fewer sections than announced");
        let total = self.stream_bytes + TRAILER_BYTES as u64;
        let mut bytes = [0; TRAILER_BYTES];
        bytes[0..8].copy_from_slice(&TRAILER_MAGIC);
        bytes[8..12].copy_from_slice(&self.sections.to_le_bytes());
        bytes[12..20].copy_from_slice(&total.to_le_bytes());
        self.stream(&bytes);
        if self.out.len() > self.open + BLOCK_HEADER_BYTES {
            self.close_block();
        }
        self.out.truncate(self.open);
        self.out
    }

    fn stream(&mut self, mut bytes: &[u8]) {
        self.stream_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.open + CHECKPOINT_BLOCK_BYTES - self.out.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.out.extend_from_slice(now);
            bytes = later;
            if now.len() == room {
                self.close_block();
            }
        }
    }

    /// Writes the header of the open block, and opens the next.
    fn close_block(&mut self) {
        let (header, payload) = self.out[self.open..].split_at_mut(BLOCK_HEADER_BYTES);
        let len = payload.len() as u32; // at most CHECKPOINT_BLOCK_PAYLOAD_BYTES
        header[0..4].copy_from_slice(&block_crc(self.number, len, payload).to_le_bytes());
        header[4..8].copy_from_slice(&len.to_le_bytes());
        self.open = self.out.len();
        self.number += 1;
        self.out.extend_from_slice(&[0; BLOCK_HEADER_BYTES]);
    }
}

/// Reads a checkpoint's stream out of its blocks, each verified before it is used.
#[derive(Debug)]
pub struct CheckpointReader<'a> {
    bytes: &'a [u8],
    /// Offset of the next block.
    next: usize,
    /// Number of the next block.
    number: u64,
    /// What is left of the block before it.
    block: &'a [u8],
    stream_bytes: u64,
    sections: u32,
    sections_left: u32,
}

impl<'a> CheckpointReader<'a> {
    /// Reads the header; `bytes` are the whole file. Whose checkpoint it is, the caller compares.
    pub fn open(bytes: &'a [u8]) -> Result<(CheckpointHeader, Self), CheckpointError> {
        let mut reader = Self {
            bytes,
            next: 0,
            number: 0,
            block: &[],
            stream_bytes: 0,
            sections: 0,
            sections_left: 0,
        };
        let mut header = [0; HEADER_BYTES];
        reader.read(&mut header)?;
        if header[0..8] != MAGIC {
            return Err(CheckpointError::Magic);
        }
        let version = u32_at(&header, 8);
        if version != CHECKPOINT_VERSION {
            return Err(CheckpointError::Version { version });
        }
        let mut cluster_id = [0; 16];
        cluster_id.copy_from_slice(&header[16..32]);
        let header = CheckpointHeader {
            identity: NodeIdentity {
                cluster_id,
                node_id: u64_at(&header, 32),
                log: u32_at(&header, 12),
            },
            incarnation: u64_at(&header, 40),
            segment_bytes: u64_at(&header, 48),
            scan_lsn: u64_at(&header, 56),
            prev_crc: u32_at(&header, 64),
            sections: u32_at(&header, 68),
        };
        (reader.sections, reader.sections_left) = (header.sections, header.sections);
        Ok((header, reader))
    }

    /// The next section. None: there are no more, and the trailer has said that this was all; only
    /// then may any of them be used.
    pub fn next_section(&mut self) -> Result<Option<Section>, CheckpointError> {
        if self.sections_left == 0 {
            self.trailer()?;
            return Ok(None);
        }
        self.sections_left -= 1;
        let mut header = [0; SECTION_BYTES];
        self.read(&mut header)?;
        let (shard, applied, len) = (u16_at(&header, 0), u64_at(&header, 8), u64_at(&header, 16));
        let available = self.block.len() + (self.bytes.len() - self.next);
        if len > available as u64 {
            return Err(CheckpointError::Section {
                shard,
                len,
                available,
            });
        }
        let mut bytes = vec![0; len as usize];
        self.read(&mut bytes)?;
        Ok(Some(Section {
            shard,
            applied,
            bytes,
        }))
    }

    fn trailer(&mut self) -> Result<(), CheckpointError> {
        if self.bytes.is_empty() {
            return Ok(()); // it has been read already
        }
        let mut trailer = [0; TRAILER_BYTES];
        self.read(&mut trailer)?;
        let (sections, bytes) = (u32_at(&trailer, 8), u64_at(&trailer, 12));
        let fits = sections == self.sections && bytes == self.stream_bytes;
        if trailer[0..8] != TRAILER_MAGIC || !fits {
            return Err(CheckpointError::Trailer { sections, bytes });
        }
        let offset = self.next - self.block.len();
        if offset < self.bytes.len() {
            return Err(CheckpointError::Long { offset });
        }
        (self.bytes, self.next) = (&[], 0);
        Ok(())
    }

    /// Fills `out` from the stream.
    fn read(&mut self, out: &mut [u8]) -> Result<(), CheckpointError> {
        let mut at = 0;
        while at < out.len() {
            if self.block.is_empty() {
                self.open_block()?;
            }
            let (now, later) = self.block.split_at(self.block.len().min(out.len() - at));
            out[at..at + now.len()].copy_from_slice(now);
            at += now.len();
            self.block = later;
        }
        self.stream_bytes += out.len() as u64;
        Ok(())
    }

    fn open_block(&mut self) -> Result<(), CheckpointError> {
        let (offset, len) = (self.next, self.bytes.len());
        let end = len.min(offset + CHECKPOINT_BLOCK_BYTES);
        let Some((header, payload)) = self.bytes[offset..end].split_at_checked(BLOCK_HEADER_BYTES)
        else {
            return Err(CheckpointError::Short { len });
        };
        let (stored, claimed) = (u32_at(header, 0), u32_at(header, 4));
        // A block reaches to the next one, or to the end of the file: its length adds nothing.
        let computed = block_crc(self.number, claimed, payload);
        if stored != computed {
            return Err(CheckpointError::Block {
                offset,
                stored,
                computed,
            });
        }
        if claimed as usize != payload.len() || payload.is_empty() {
            return Err(CheckpointError::Short { len });
        }
        (self.block, self.next) = (payload, end);
        self.number += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
