//! What a log holds, by somebody else's reading: the simplest thing that could be right.
//!
//! It follows the medium of a log, frame by frame, and takes a frame when a power loss could not take
//! it back any more. So it knows what is durable whatever the switch believes. Inboxes are lists,
//! streams are a map; there is no replay, no checkpoint, no cleaning. Whatever in the log contradicts
//! what must be is a [`Fault`].

use std::collections::BTreeMap;

use iris_proto::limits::{DEVICES_PER_USER_MAX, NEW_DEVICE_ENTRIES};

use super::disk::{FakeDisk, Name};
use crate::log::limits::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::log::{
    FrameHeader, FrameKind, RecordHeader, RecordKind, SegmentHeader, SegmentSize, heads, items,
    records,
};
use crate::shard::command::{self, Append, Command};
use crate::shard::pairs::PAIR_IDLE_DAYS;

const MS_PER_DAY: u64 = 24 * 60 * 60 * 1_000;

/// A message, by its number in the order in which programs handed them over.
pub type MessageNo = u32;

/// Stands for a message that does not exist.
pub const NOBODY: MessageNo = MessageNo::MAX;

/// Something in a log that must not be.
pub type Fault = String;

/// One device as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDevice {
    /// Its name.
    pub name: String,
    /// Its cursor.
    pub cursor: u64,
    /// Where its cursor began.
    pub start: u64,
}

/// One inbox.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    /// The message of each `seq`, from 1.
    pub entries: Vec<MessageNo>,
    /// The first `seq` that is kept.
    pub oldest: u64,
    /// In the order in which they came.
    pub devices: Vec<ModelDevice>,
    /// A salvage brought acknowledgements back; that it holds more than it may is no fault.
    pub overfull: bool,
    /// The first and last of each run of entries that a salvage skipped.
    pub runs: Vec<(u64, u64)>,
}

impl Inbox {
    /// The newest `seq`.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The lowest cursor.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.devices
            .iter()
            .map(|device| device.cursor)
            .min()
            .unwrap_or(0)
    }

    /// The message of a `seq`.
    #[must_use]
    pub fn at(&self, seq: u64) -> Option<MessageNo> {
        self.entries
            .get(usize::try_from(seq.checked_sub(1)?).ok()?)
            .copied()
    }

    /// A device by its name.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&ModelDevice> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// The skipped run that an entry is one of.
    #[must_use]
    pub fn run_at(&self, seq: u64) -> Option<(u64, u64)> {
        let mut runs = self.runs.iter().copied();
        runs.find(|(first, last)| (*first..=*last).contains(&seq))
    }

    fn register(&mut self, name: &str) {
        if self.device(name).is_some() || self.devices.len() >= DEVICES_PER_USER_MAX {
            return;
        }
        let start = self
            .floor()
            .min(self.head().saturating_sub(NEW_DEVICE_ENTRIES));
        let start = start.max(self.oldest.max(1) - 1);
        // No device is told of what was skipped before all entries.
        let start = start.max(self.run_at(self.oldest).map_or(0, |(_, last)| last));
        self.devices.push(ModelDevice {
            name: name.to_owned(),
            cursor: start,
            start,
        });
    }

    /// A cursor that comes with a device is where it starts: no further device sees less than half of
    /// what an inbox may hold, and than the others wait for.
    fn start_at_cursor(&mut self, name: &str, entries_max: u64) -> Result<(), Fault> {
        let history = NEW_DEVICE_ENTRIES.min(entries_max / 2);
        let others = self.devices.iter().filter(|device| device.name != name);
        let floor = others.map(|device| device.cursor).min().unwrap_or(0);
        let most = floor.min(self.head().saturating_sub(history));
        let Some(device) = self.devices.iter_mut().find(|device| device.name == name) else {
            return Ok(()); // one too many
        };
        if device.cursor > most && device.cursor > device.start {
            return Err(format!("{device:?} starts behind {most}"));
        }
        device.start = device.cursor;
        Ok(())
    }

    fn acknowledge(&mut self, name: &str, seq: u64, entries_max: u64) {
        let head = self.head();
        if let Some(device) = self.devices.iter_mut().find(|device| device.name == name) {
            device.cursor = device.cursor.max(seq.min(head));
        }
        self.overfull &= head - self.floor() > entries_max;
    }
}

/// A stream: sender, device, epoch, recipient.
pub type Stream = (String, String, u64, String);

/// What the log of one number holds.
#[derive(Clone, Debug)]
pub struct Model {
    size: SegmentSize,
    inbox_entries_max: u64,
    /// Where the next frame is awaited.
    at: u64,
    prev_crc: u32,
    salt: u64,
    /// The last entry of each shard that has any.
    pub applied: BTreeMap<u16, u64>,
    /// The last number before inboxes that are new, of each shard that was salvaged.
    pub begins: BTreeMap<u16, u64>,
    /// The inboxes of the users of this log.
    pub inboxes: BTreeMap<String, Inbox>,
    /// The last number of each stream, and the day on which it came.
    pub streams: BTreeMap<Stream, (u64, u64)>,
    /// The latest day of any entry of each shard.
    pub days: BTreeMap<u16, u64>,
    /// Frames read.
    pub frames: u64,
    /// Up to here some durable frame says that the log is durable.
    pub watermark: u64,
    /// Messages stored since somebody last took them: which, as what `seq`, and when they were read.
    pub news: Vec<(MessageNo, u64, u64)>,
}

/// Reads a message's number out of its name, and checks that a program made the name.
#[must_use]
pub fn message_no(id: &[u8; 16]) -> Option<MessageNo> {
    let (no, check) = id.split_at(8);
    let no = u64::from_le_bytes(no.try_into().ok()?);
    let check = u64::from_le_bytes(check.try_into().ok()?);
    (check == name_check(no)).then_some(no as MessageNo)
}

/// The name of a message.
#[must_use]
pub fn message_name(no: MessageNo) -> [u8; 16] {
    let no = u64::from(no);
    let mut name = [0; 16];
    name[..8].copy_from_slice(&no.to_le_bytes());
    name[8..].copy_from_slice(&name_check(no).to_le_bytes());
    name
}

const fn name_check(no: u64) -> u64 {
    (no ^ 0x5bd1_e995_9d1b_54a5).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Model {
    /// An empty log.
    #[must_use]
    pub const fn new(size: SegmentSize, inbox_entries_max: u64) -> Self {
        Self {
            size,
            inbox_entries_max,
            at: 0,
            prev_crc: 0,
            salt: 0,
            applied: BTreeMap::new(),
            begins: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            streams: BTreeMap::new(),
            days: BTreeMap::new(),
            frames: 0,
            watermark: 0,
            news: Vec::new(),
        }
    }

    /// Where the next frame is awaited: everything before is durable.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.at
    }

    /// Takes the frames that have become durable; or, to see what a start would find, all that are
    /// whole.
    pub fn follow(&mut self, disk: &FakeDisk, durable_only: bool) -> Result<(), Fault> {
        while self.step(disk, durable_only)? {}
        Ok(())
    }

    fn step(&mut self, disk: &FakeDisk, durable_only: bool) -> Result<bool, Fault> {
        let index = self.size.index_of(self.at);
        let name = Name::Segment(index);
        let Some(bytes) = disk.read(name) else {
            return Ok(false);
        };
        let first_lsn = self.size.first_lsn(index);
        let (mut lsn, mut salt) = (self.at, self.salt);
        let mut from = self.size.offset_of(lsn);
        if from == 0 {
            let Ok(header) = SegmentHeader::decode(bytes) else {
                return Ok(false);
            };
            if header.prev_crc != self.prev_crc || header.first_lsn != first_lsn {
                return Ok(false);
            }
            (lsn, salt) = (first_lsn + SEGMENT_HEADER_BYTES as u64, header.salt);
            from = 0;
        }
        let offset = self.size.offset_of(lsn);
        let Some(frame) = bytes.get(offset..).and_then(FrameHeader::decode) else {
            return Ok(false);
        };
        let belongs = frame.salt == salt && frame.lsn == lsn && frame.prev_crc == self.prev_crc;
        let Some(body) = bytes.get(offset + FRAME_HEADER_BYTES..offset + frame.frame_len()) else {
            return Ok(false);
        };
        if !belongs || crc32fast::hash(body) != frame.body_crc {
            return Ok(false);
        }
        if durable_only && !disk.is_durable(name, from..offset + frame.frame_len()) {
            return Ok(false);
        }
        self.frame(&frame, body)?;
        self.salt = salt;
        self.prev_crc = frame.hdr_crc;
        self.at = match frame.kind() {
            Some(FrameKind::End) => first_lsn + self.size.bytes(),
            _ => lsn + frame.frame_len() as u64,
        };
        self.frames += 1;
        self.watermark = self.watermark.max(frame.synced_lsn);
        Ok(true)
    }

    fn frame(&mut self, frame: &FrameHeader, body: &[u8]) -> Result<(), Fault> {
        let mut result = Ok(());
        let visited = records(frame, body, |record, _, payload| {
            if result.is_ok() {
                result = self.record(&record, payload);
            }
        });
        if let Err(fault) = visited {
            return Err(format!(
                "the frame at {:#x} has bad records: {fault:?}",
                frame.lsn
            ));
        }
        result.map_err(|fault| format!("in the frame at {:#x}: {fault}", frame.lsn))
    }

    fn record(&mut self, record: &RecordHeader, payload: &[u8]) -> Result<(), Fault> {
        match record.kind {
            RecordKind::Entry => self.entry(record, payload),
            RecordKind::Reloc => self.relocated(payload),
            RecordKind::Heads => self.heads(payload),
            other => Err(format!("a record of kind {other:?}")),
        }
    }

    fn entry(&mut self, record: &RecordHeader, payload: &[u8]) -> Result<(), Fault> {
        let applied = self.applied.entry(record.shard).or_insert(0);
        if record.index != *applied + 1 {
            return Err(format!(
                "shard {} has entry {} behind entry {applied}",
                record.shard, record.index
            ));
        }
        *applied = record.index;
        let day = record.a / MS_PER_DAY;
        let latest = self.days.entry(record.shard).or_insert(0);
        *latest = day.max(*latest);
        // The device that the item before made known.
        let mut newcomer: Option<(&str, &str)> = None;
        for item in items(payload) {
            let (_, bytes) = item.map_err(|error| error.to_string())?;
            let before = newcomer.take();
            match command::decode(bytes).map_err(|error| error.to_string())? {
                Command::Append(append) => self.append(&append, record.shard, day)?,
                Command::Register { user, device } => {
                    self.inbox(record.shard, user).register(device);
                    newcomer = Some((user, device));
                }
                Command::Cursor { user, device, seq } => {
                    let entries_max = self.inbox_entries_max;
                    let inbox = self.inbox(record.shard, user);
                    inbox.acknowledge(device, seq.0, entries_max);
                    if before == Some((user, device)) {
                        inbox.start_at_cursor(device, entries_max)?;
                    }
                }
                Command::Trim { user, oldest } => {
                    let inbox = self.inbox(record.shard, user);
                    inbox.oldest = inbox.oldest.max(oldest.0.min(inbox.floor() + 1));
                }
            }
        }
        Ok(())
    }

    /// Whether a shard may have forgotten a stream that was last used on that day.
    #[must_use]
    pub fn may_forget(&self, shard: u16, since: u64) -> bool {
        let latest = self.days.get(&shard).copied().unwrap_or(0);
        latest > since + u64::from(PAIR_IDLE_DAYS)
    }

    fn inbox(&mut self, shard: u16, user: &str) -> &mut Inbox {
        if !self.inboxes.contains_key(user) {
            let begins = self.begins.get(&shard).copied().unwrap_or(0);
            let inbox = Inbox {
                oldest: 1,
                entries: vec![NOBODY; usize::try_from(begins).unwrap_or(0)],
                runs: (begins > 0).then_some((1, begins)).into_iter().collect(),
                ..Inbox::default()
            };
            self.inboxes.insert(user.to_owned(), inbox);
        }
        self.inboxes
            .get_mut(user)
            .unwrap_or_else(|| unreachable!("it was just put there"))
    }

    fn append(&mut self, append: &Append<'_>, shard: u16, day: u64) -> Result<(), Fault> {
        let no = message_no(&append.id.0)
            .ok_or_else(|| format!("a message that nobody sent is stored for {}", append.to))?;
        let stream = (
            append.from.to_owned(),
            append.device.to_owned(),
            append.epoch.0,
            append.to.to_owned(),
        );
        let (last, since) = self.streams.get(&stream).copied().unwrap_or((0, day));
        // A stream that was idle for long may be forgotten; then it begins again, if it does.
        let begins_again = append.n.0 == 1 && self.may_forget(shard, since);
        if append.n.0 != last + 1 && !begins_again {
            return Err(format!(
                "message {no} is number {} of its stream and stands behind number {last}",
                append.n.0
            ));
        }
        self.streams.insert(stream, (append.n.0, day));
        let inbox = self.inbox(shard, append.to);
        if append.seq.0 != inbox.head() + 1 {
            return Err(format!(
                "message {no} for {} says seq {} and is seq {}",
                append.to,
                append.seq.0,
                inbox.head() + 1
            ));
        }
        inbox.entries.push(no);
        self.news.push((no, append.seq.0, append.time_ms));
        Ok(())
    }

    fn relocated(&self, payload: &[u8]) -> Result<(), Fault> {
        for item in items(payload) {
            let (_, bytes) = item.map_err(|error| error.to_string())?;
            let Ok(Command::Append(append)) = command::decode(bytes) else {
                return Err("something was moved that is no message".to_owned());
            };
            let no = message_no(&append.id.0);
            let kept = self
                .inboxes
                .get(append.to)
                .and_then(|inbox| inbox.at(append.seq.0));
            if no.is_none() || no != kept {
                return Err(format!(
                    "message {no:?} was moved as seq {} of {}, which is message {kept:?}",
                    append.seq.0, append.to
                ));
            }
        }
        Ok(())
    }

    fn heads(&self, payload: &[u8]) -> Result<(), Fault> {
        let heads = heads(payload).map_err(|error| format!("{error:?}"))?;
        for (shard, index) in heads {
            let applied = self.applied.get(&shard).copied().unwrap_or(0);
            if index != applied {
                return Err(format!(
                    "the head of shard {shard} is told as {index}, not {applied}"
                ));
            }
        }
        Ok(())
    }
}
