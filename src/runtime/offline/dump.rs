//! Shows what lies in a log or a checkpoint, one line for each thing, in the order of the log.
//!
//! ```text
//!   segment ─ frame ─ record ─ command … ─ record ─ … ─ frame ─ …          log
//!   checkpoint ─ section … ─ user ─ device … ─ inbox entry …               checkpoint
//! ```
//! It judges nothing: what is no frame is one line that says so, and it goes on at the next one. Bodies are
//! shown as their length and CRC unless they are asked for. The JSON of each line is written down in
//! `docs/LOG_FORMAT.md`; a second reader, written from that page alone, prints the same.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::log::limits::{FRAME_HEADER_BYTES, ITEM_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::log::recovery::Fault;
use crate::log::survey::{Sight, survey};
use crate::log::{
    CheckpointReader, FrameHeader, FrameKind, RecordHeader, RecordKind, Section, SegmentHeader,
    SegmentSize, heads, items, records,
};
use crate::placement::ShardId;
use crate::shard::Shard;
use crate::shard::command::{self, Append, Command};
use crate::shard::user::User;
use crate::store::Setup;

use super::super::storage::DataView;
use super::{OfflineError, logs};

/// What to show.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// One log only.
    pub log: Option<u32>,
    /// Nothing before this position.
    pub from_lsn: u64,
    /// Commands of this user only, and no frames and records.
    pub user: Option<String>,
    /// Bodies too.
    pub bodies: bool,
}

/// Why a dump ended early.
#[derive(Debug, thiserror::Error)]
pub enum DumpError<E> {
    /// Nothing could be looked at.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; check the disk and the permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such checkpoint.
    #[error("there is no {}", which(.lsn))]
    NoCheckpoint {
        /// The one asked for; `None`: any.
        lsn: Option<u64>,
    },
    /// The checkpoint cannot be read.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Whoever takes the lines wants no more.
    #[error("the output ended")]
    Ended(E),
}

fn which(lsn: &Option<u64>) -> String {
    match lsn {
        Some(lsn) => format!("checkpoint {lsn:#x}"),
        None => "checkpoint".to_owned(),
    }
}

/// Bits as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> std::fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn crc(value: u32) -> Hex<4> {
    Hex(value.to_be_bytes())
}

/// One line. Positions are of the log; `lsn` is that of the thing's first byte.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Line<'a> {
    /// The header of a segment in use.
    Segment {
        /// Its position.
        lsn: u64,
        /// The log that it says it belongs to.
        log: u32,
        /// The start of the process that opened it.
        incarnation: u64,
        /// What its frames repeat.
        salt: Hex<8>,
        /// Its size.
        segment_bytes: u64,
        /// CRC of the frame before it.
        prev_crc: Hex<4>,
    },
    /// A whole frame.
    Frame {
        /// Its position.
        lsn: u64,
        /// Bytes with its header.
        bytes: usize,
        /// `data`, `seal`, `checkpoint`, `end` or a number.
        kind: String,
        /// Records in it.
        records: u16,
        /// The log was durable up to here when it was written.
        synced_lsn: u64,
        /// CRC of its header.
        crc: Hex<4>,
        /// CRC of the frame before it.
        prev_crc: Hex<4>,
    },
    /// A record in a frame.
    Record {
        /// Its position.
        lsn: u64,
        /// `entry`, `reloc`, `heads` …
        kind: &'static str,
        /// Its shard; none for a record of no single shard.
        shard: Option<u16>,
        /// Its term.
        term: u32,
        /// Its index.
        index: u64,
        /// Meaning by kind.
        a: u64,
        /// Meaning by kind.
        b: u64,
        /// Bytes of its payload.
        bytes: usize,
    },
    /// One shard of a HEADS record.
    Head {
        /// The shard.
        shard: u16,
        /// Its last entry's index.
        index: u64,
    },
    /// A message, in an ENTRY or written again in a RELOC.
    Append {
        /// Position of its item: what an inbox refers to.
        lsn: u64,
        /// Whose inbox.
        to: &'a str,
        /// Its place there.
        seq: u64,
        /// The sender.
        from: &'a str,
        /// The sender's device.
        device: &'a str,
        /// The device's send epoch.
        epoch: Hex<8>,
        /// Number in the stream.
        n: u64,
        /// When it was taken, Unix milliseconds.
        time_ms: u64,
        /// The sender's name for it.
        id: Hex<16>,
        /// Bytes of the body.
        body_bytes: usize,
        /// CRC of the body.
        body_crc: Hex<4>,
        /// The body, when asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        body_hex: Option<String>,
    },
    /// A device became known.
    Register {
        /// Position of its item.
        lsn: u64,
        /// The user.
        user: &'a str,
        /// The device.
        device: &'a str,
    },
    /// A device acknowledged.
    Cursor {
        /// Position of its item.
        lsn: u64,
        /// The user.
        user: &'a str,
        /// The device.
        device: &'a str,
        /// Everything up to here.
        seq: u64,
    },
    /// History left an inbox.
    Trim {
        /// Position of its item.
        lsn: u64,
        /// The user.
        user: &'a str,
        /// The first entry that stayed.
        oldest: u64,
    },
    /// An item that is none, in a frame whose CRC is right; nothing behind it in its record is shown.
    Unknown {
        /// Its position.
        lsn: u64,
    },
    /// Bytes that are no frame.
    Bad {
        /// Where they begin.
        lsn: u64,
        /// Where they end.
        to: u64,
        /// What is wrong at the beginning, in one word.
        fault: &'static str,
    },
    /// A checkpoint's header.
    Checkpoint {
        /// Where it lets a replay begin.
        lsn: u64,
        /// The log that it says it belongs to.
        log: u32,
        /// The start of the process that wrote it.
        incarnation: u64,
        /// Bytes of the log's segments.
        segment_bytes: u64,
        /// CRC of the frame before that position.
        prev_crc: Hex<4>,
        /// Shards in it.
        sections: u32,
        /// Bytes of the file.
        bytes: usize,
    },
    /// One shard of a checkpoint.
    Section {
        /// The shard.
        shard: u16,
        /// Its last entry that is contained.
        applied: u64,
        /// Bytes of its state.
        bytes: usize,
        /// CRC of its state.
        crc: Hex<4>,
        /// Users.
        users: usize,
        /// Entries of their inboxes.
        entries: u64,
        /// Send streams.
        pairs: usize,
    },
    /// The user asked for.
    User {
        /// Its shard.
        shard: u16,
        /// Its name.
        user: &'a str,
        /// The oldest entry kept.
        oldest: u64,
        /// The newest entry.
        head: u64,
    },
    /// One of its devices.
    Device {
        /// Its name.
        device: &'a str,
        /// How far it has acknowledged.
        cursor: u64,
    },
    /// One entry of its inbox.
    InboxEntry {
        /// Its number.
        seq: u64,
        /// Where its message lies; none: it was set aside.
        lsn: Option<u64>,
        /// About how many bytes.
        bytes: u64,
        /// About when it came, Unix milliseconds.
        time_ms: u64,
    },
}

/// Where the lines go.
struct Sink<'s, E> {
    request: &'s Request,
    take: &'s mut dyn FnMut(&Line<'_>) -> Result<(), E>,
}

impl<E> Sink<'_, E> {
    /// A line about the log's make-up: not shown when only a user is asked for.
    fn make_up(&mut self, line: &Line<'_>) -> Result<(), E> {
        match self.request.user {
            Some(_) => Ok(()),
            None => (self.take)(line),
        }
    }

    /// A line about these users.
    fn about(&mut self, users: &[&str], line: &Line<'_>) -> Result<(), E> {
        match &self.request.user {
            Some(wanted) if !users.contains(&wanted.as_str()) => Ok(()),
            _ => (self.take)(line),
        }
    }
}

/// Shows the logs. A switch may be running: then the last line may be of a frame that was on its way.
///
/// # Errors
/// When a file cannot be read, or when `take` fails.
pub fn dump<E>(
    view: &DataView,
    request: &Request,
    take: &mut dyn FnMut(&Line<'_>) -> Result<(), E>,
) -> Result<(), DumpError<E>> {
    let size = view.super_block().segment_size;
    let mut sink = Sink { request, take };
    for log in logs(view, request.log)? {
        let files = view.segment_files(log).map_err(OfflineError::Log)?;
        for (index, path) in files {
            if size.first_lsn(index + 1) <= request.from_lsn {
                continue;
            }
            if let Some(bytes) = read(&path, size.bytes())? {
                segment(size, index, &bytes, &mut sink).map_err(DumpError::Ended)?;
            }
        }
    }
    Ok(())
}

/// A file's bytes; `None` when it has been removed meanwhile.
fn read<E>(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, DumpError<E>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DumpError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn segment<E>(
    size: SegmentSize,
    index: u64,
    bytes: &[u8],
    sink: &mut Sink<'_, E>,
) -> Result<(), E> {
    let first = size.first_lsn(index);
    let from_lsn = sink.request.from_lsn;
    let mut result = Ok(());
    survey(size, index, bytes, None, &mut |sight| {
        if result.is_err() {
            return;
        }
        result = match sight {
            Sight::Header(header) if first >= from_lsn => sink.make_up(&segment_line(&header)),
            Sight::Frame(header, body) if header.lsn >= from_lsn => frame(&header, body, sink),
            Sight::Bad { from, to, fault } if first + from as u64 >= from_lsn => {
                sink.make_up(&Line::Bad {
                    lsn: first + from as u64,
                    to: first + to as u64,
                    fault: fault_word(fault),
                })
            }
            _ => Ok(()),
        };
    });
    result
}

const fn fault_word(fault: Fault) -> &'static str {
    match fault {
        Fault::SegmentUnused => "segment_unused",
        Fault::SegmentShort => "segment_short",
        Fault::SegmentHeader => "segment_header",
        Fault::SegmentChain => "segment_chain",
        Fault::Zero => "zero",
        Fault::Header => "header",
        Fault::Stale => "stale",
        Fault::Length => "length",
        Fault::Body { .. } => "body",
        Fault::Chain => "chain",
    }
}

fn segment_line(header: &SegmentHeader) -> Line<'static> {
    Line::Segment {
        lsn: header.first_lsn,
        log: header.identity.log,
        incarnation: header.incarnation,
        salt: Hex(header.salt.to_be_bytes()),
        segment_bytes: header.segment_bytes,
        prev_crc: crc(header.prev_crc),
    }
}

fn frame<E>(header: &FrameHeader, body: &[u8], sink: &mut Sink<'_, E>) -> Result<(), E> {
    let kind = match header.kind() {
        Some(FrameKind::Data) => "data".to_owned(),
        Some(FrameKind::Seal) => "seal".to_owned(),
        Some(FrameKind::Checkpoint) => "checkpoint".to_owned(),
        Some(FrameKind::End) => "end".to_owned(),
        None => header.kind_code.to_string(),
    };
    sink.make_up(&Line::Frame {
        lsn: header.lsn,
        bytes: header.frame_len(),
        kind,
        records: header.records,
        synced_lsn: header.synced_lsn,
        crc: crc(header.hdr_crc),
        prev_crc: crc(header.prev_crc),
    })?;
    let mut result = Ok(());
    let body_lsn = header.lsn + FRAME_HEADER_BYTES as u64;
    let divided = records(header, body, |header, offset, payload| {
        if result.is_ok() {
            result = record(&header, body_lsn + offset as u64, payload, sink);
        }
    });
    result?;
    match divided {
        Ok(()) => Ok(()),
        Err(_) => sink.make_up(&Line::Bad {
            lsn: header.lsn,
            to: header.lsn + header.frame_len() as u64,
            fault: "records",
        }),
    }
}

const fn word(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Entry => "entry",
        RecordKind::HardState => "hard_state",
        RecordKind::Snapshot => "snapshot",
        RecordKind::Compact => "compact",
        RecordKind::Reloc => "reloc",
        RecordKind::Conf => "conf",
        RecordKind::Heads => "heads",
    }
}

/// A record and what is in it; `lsn` is that of its payload.
fn record<E>(
    header: &RecordHeader,
    lsn: u64,
    payload: &[u8],
    sink: &mut Sink<'_, E>,
) -> Result<(), E> {
    sink.make_up(&Line::Record {
        lsn: lsn - RECORD_HEADER_BYTES as u64,
        kind: word(header.kind),
        shard: (header.shard != crate::store::NO_SHARD).then_some(header.shard),
        term: header.term,
        index: header.index,
        a: header.a,
        b: header.b,
        bytes: payload.len(),
    })?;
    match header.kind {
        RecordKind::Entry | RecordKind::Reloc => commands(lsn, payload, sink),
        RecordKind::Heads => {
            for (shard, index) in heads(payload).into_iter().flatten() {
                sink.make_up(&Line::Head { shard, index })?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn commands<E>(lsn: u64, payload: &[u8], sink: &mut Sink<'_, E>) -> Result<(), E> {
    let mut at = lsn;
    for item in items(payload) {
        let Ok((offset, bytes)) = item else {
            return sink.make_up(&Line::Unknown { lsn: at });
        };
        let here = lsn + offset as u64;
        at = here + (ITEM_HEADER_BYTES + bytes.len()) as u64;
        match command::decode(bytes) {
            Ok(command) => command_line(here, &command, sink)?,
            Err(_) => sink.make_up(&Line::Unknown { lsn: here })?,
        }
    }
    Ok(())
}

fn command_line<E>(lsn: u64, command: &Command<'_>, sink: &mut Sink<'_, E>) -> Result<(), E> {
    match *command {
        Command::Append(append) => {
            let line = append_line(lsn, &append, sink.request.bodies);
            sink.about(&[append.to, append.from], &line)
        }
        Command::Register { user, device } => {
            sink.about(&[user], &Line::Register { lsn, user, device })
        }
        Command::Cursor { user, device, seq } => {
            let seq = seq.0;
            let line = Line::Cursor {
                lsn,
                user,
                device,
                seq,
            };
            sink.about(&[user], &line)
        }
        Command::Trim { user, oldest } => {
            let oldest = oldest.0;
            sink.about(&[user], &Line::Trim { lsn, user, oldest })
        }
    }
}

fn append_line<'a>(lsn: u64, append: &Append<'a>, bodies: bool) -> Line<'a> {
    Line::Append {
        lsn,
        to: append.to,
        seq: append.seq.0,
        from: append.from,
        device: append.device,
        epoch: Hex(append.epoch.0.to_be_bytes()),
        n: append.n.0,
        time_ms: append.time_ms,
        id: Hex(append.id.0),
        body_bytes: append.body.len(),
        body_crc: crc(crc32fast::hash(append.body)),
        body_hex: bodies.then(|| hex(append.body)),
    }
}

/// Shows a checkpoint of each log that has one: the newest, or that of one position.
///
/// # Errors
/// When there is none, when it cannot be read, or when `take` fails.
pub fn dump_checkpoint<E>(
    view: &DataView,
    request: &Request,
    lsn: Option<u64>,
    take: &mut dyn FnMut(&Line<'_>) -> Result<(), E>,
) -> Result<(), DumpError<E>> {
    let mut found_any = false;
    for log in logs(view, request.log)? {
        let files = view.checkpoint_files(log).map_err(OfflineError::Log)?;
        let mut files = files.into_iter().rev();
        let file = files.find(|(found, _)| lsn.is_none_or(|wanted| wanted == *found));
        let Some((_, path)) = file else {
            continue;
        };
        if let Some(bytes) = read(&path, u64::MAX)? {
            found_any = true;
            checkpoint(&view.setup(log), &path, &bytes, request, take)?;
        }
    }
    match found_any {
        true => Ok(()),
        false => Err(DumpError::NoCheckpoint { lsn }),
    }
}

fn checkpoint<E>(
    setup: &Setup,
    path: &Path,
    bytes: &[u8],
    request: &Request,
    take: &mut dyn FnMut(&Line<'_>) -> Result<(), E>,
) -> Result<(), DumpError<E>> {
    let failed = |reason: String| DumpError::Checkpoint {
        path: path.to_owned(),
        reason,
    };
    let opened = CheckpointReader::open(bytes);
    let (header, mut reader) = opened.map_err(|error| failed(error.to_string()))?;
    take(&Line::Checkpoint {
        lsn: header.scan_lsn,
        log: header.identity.log,
        incarnation: header.incarnation,
        segment_bytes: header.segment_bytes,
        prev_crc: crc(header.prev_crc),
        sections: header.sections,
        bytes: bytes.len(),
    })
    .map_err(DumpError::Ended)?;
    let next = |reader: &mut CheckpointReader<'_>| reader.next_section();
    while let Some(found) = next(&mut reader).map_err(|error| failed(error.to_string()))? {
        let id = ShardId(found.shard);
        let shard = Shard::read_state(id, setup.key, setup.shard, &found.bytes);
        let shard = shard.map_err(|error| failed(error.to_string()))?;
        section(&found, &shard, request, take).map_err(DumpError::Ended)?;
    }
    Ok(())
}

fn section<E>(
    section: &Section,
    shard: &Shard,
    request: &Request,
    take: &mut dyn FnMut(&Line<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (users, entries, pairs) = crate::store::salvage::counts(shard);
    take(&Line::Section {
        shard: section.shard,
        applied: section.applied,
        bytes: section.bytes.len(),
        crc: crc(crc32fast::hash(&section.bytes)),
        users,
        entries,
        pairs,
    })?;
    let slot = request.user.as_deref().and_then(|user| shard.find(user));
    match slot {
        Some(slot) => user(section.shard, shard.users().get(slot), take),
        None => Ok(()),
    }
}

fn user<E>(
    shard: u16,
    user: &User,
    take: &mut dyn FnMut(&Line<'_>) -> Result<(), E>,
) -> Result<(), E> {
    take(&Line::User {
        shard,
        user: user.name(),
        oldest: user.oldest().0,
        head: user.head().0,
    })?;
    for device in user.devices() {
        take(&Line::Device {
            device: &device.name,
            cursor: device.cursor.0,
        })?;
    }
    for (seq, slot) in user.slots() {
        take(&Line::InboxEntry {
            seq: seq.0,
            lsn: slot.position(),
            bytes: slot.bytes(),
            time_ms: slot.time_ms(),
        })?;
    }
    Ok(())
}
