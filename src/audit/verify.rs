//! Whether audit files are as they were written.
//!
//! A file is read from its first byte to its last; every byte is part of a record's text or hash, or of
//! what stands between the two, so none can change unnoticed. What is found is named by file and record.
//! After damage the rest is read on, as far as it makes sense, so that all of it is found.

use serde::Deserialize;

use super::{Chain, END, HASH_KEY, HEX_LEN, Hash, RECORD_BYTES_MAX, hash_of, hex, unhex};

/// Findings that are listed; further ones are counted.
pub const FINDINGS_MAX: usize = 100;

/// What a verification has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What is not as it was written, one line each.
    pub findings: Vec<String>,
    /// Further findings, which are not listed.
    pub more: usize,
    /// What is in order, and worth knowing.
    pub notes: Vec<String>,
    /// Records that are whole.
    pub records: u64,
    /// Number of the first record.
    pub first: Option<u64>,
    /// The last record that is whole.
    pub last: Option<Chain>,
}

impl Verdict {
    /// Whether all is as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    fn finding(&mut self, text: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(text);
        } else {
            self.more += 1;
        }
    }
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With a whole record.
    Whole,
    /// With a part of one, which no newline ends, behind so many bytes.
    Torn {
        /// Bytes that are whole.
        good: u64,
        /// Bytes of the part.
        bytes: u64,
    },
    /// Something in it is not as it was written.
    Damaged,
}

/// What is read of a record's text.
#[derive(Deserialize)]
struct Known {
    n: u64,
    event: String,
    prev: Option<String>,
    after_damage: Option<bool>,
    last: Option<u64>,
}

/// One record of a chain that goes on from `prev`.
fn record(prev: &Hash, line: &[u8]) -> Result<(Known, Hash), &'static str> {
    const WRONG: &str = "is no record";
    if line.len() > RECORD_BYTES_MAX {
        return Err("is longer than any record");
    }
    let line = line.strip_suffix(END.as_bytes()).ok_or(WRONG)?;
    let (text, hash) = line
        .split_at_checked(line.len().wrapping_sub(HEX_LEN))
        .ok_or(WRONG)?;
    let text = text.strip_suffix(HASH_KEY.as_bytes()).ok_or(WRONG)?;
    let hash = std::str::from_utf8(hash)
        .ok()
        .and_then(unhex)
        .ok_or(WRONG)?;
    let known: Known = serde_json::from_slice(&[text, b"}"].concat()).map_err(|_| WRONG)?;
    // Where the chain begins anew the record itself says from what.
    let begin = known.prev.as_deref().filter(|_| known.event == "begin");
    let from = begin.and_then(unhex).unwrap_or(*prev);
    if hash_of(&from, text) != hash {
        return Err("has not the hash that belongs to it and to the one before");
    }
    Ok((known, hash))
}

/// Reads files in their order.
#[derive(Debug, Default)]
pub struct Verifier {
    verdict: Verdict,
    chain: Option<Chain>,
    /// The last record that was removed, as the log itself says.
    removed: u64,
    torn: Option<(String, u64)>,
}

impl Verifier {
    /// Reads the next file; how it ends.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> Tail {
        if let Some((torn, _)) = self.torn.take() {
            let text =
                format!("{torn}: its last record is not finished, and records follow in {name}");
            self.verdict.finding(text);
        }
        let before = self.verdict.findings.len() + self.verdict.more;
        let (whole, part) = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => bytes.split_at(end + 1),
            None => (&[][..], bytes),
        };
        let mut prev = self.chain.map_or([0; 32], |chain| chain.hash);
        let mut is_known = true;
        for (index, line) in whole.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let place = format!("{name}, line {}", index + 1);
            match record(&prev, &line[..line.len() - 1]) {
                Ok((known, hash)) => {
                    self.take(&place, index, &known, hash);
                    (prev, is_known) = (hash, true);
                }
                Err(why) => {
                    // What follows is only judged if this line still says where the chain is.
                    if is_known {
                        self.verdict.finding(format!("{place} {why}"));
                    }
                    let claimed = claimed_hash(line);
                    is_known = claimed.is_some();
                    prev = claimed.unwrap_or(prev);
                    if let Some(chain) = &mut self.chain {
                        chain.last += 1;
                    }
                }
            }
        }
        if bytes.is_empty() {
            self.verdict.finding(format!("{name} is empty"));
        }
        if self.verdict.findings.len() + self.verdict.more > before {
            return Tail::Damaged;
        }
        if part.is_empty() {
            return Tail::Whole;
        }
        let (good, bytes) = (whole.len() as u64, part.len() as u64);
        self.torn = Some((name.to_owned(), bytes));
        Tail::Torn { good, bytes }
    }

    fn take(&mut self, place: &str, index: usize, known: &Known, hash: Hash) {
        let begins = known.event == "begin";
        if begins != (index == 0) {
            let text = "a file's first record, and no other, says what it goes on from";
            self.verdict.finding(format!("{place}: {text}"));
        }
        let prev = known.prev.as_deref().and_then(unhex);
        if known.after_damage == Some(true) && begins {
            let text = "the switch found what is before this record damaged, and began a new chain";
            self.verdict.finding(format!("{place}: {text}"));
        } else if let Some(chain) = self.chain {
            if begins && prev != Some(chain.hash) {
                let text = "does not go on from the record before: some are missing";
                self.verdict.finding(format!("{place} {text}"));
            } else if known.n != chain.last + 1 {
                let (n, last) = (known.n, chain.last);
                self.verdict.finding(format!(
                    "{place} is record {n}, and the one before is {last}"
                ));
            }
        }
        self.verdict.first.get_or_insert(known.n);
        self.verdict.records += 1;
        if known.event == "removed" {
            self.removed = self.removed.max(known.last.unwrap_or(0));
        }
        let chain = Chain {
            last: known.n,
            hash,
        };
        self.chain = Some(chain);
        self.verdict.last = Some(chain);
    }

    /// Where the chain ends, as far as was read.
    #[must_use]
    pub fn chain(&self) -> Option<Chain> {
        self.chain
    }

    /// The verdict about all files, which end no sooner than each of `ends` says, if they are whole.
    #[must_use]
    pub fn finish(mut self, ends: &[(&str, Chain)]) -> Verdict {
        let last = self.verdict.last.map_or(0, |chain| chain.last);
        let is_short = ends.iter().any(|(_, end)| end.last > last);
        if let Some((name, bytes)) = self.torn.take() {
            let text = format!("{name}: the last {bytes} bytes are a record that is not finished");
            if is_short {
                self.verdict.finding(format!("{text}, and it had been"));
            } else {
                let why = "a crash leaves that, or it is being written; the next start cuts it";
                self.verdict.notes.push(format!("{text}: {why}"));
            }
        }
        for (whose, end) in ends {
            if end.last > last {
                let n = end.last;
                let text = format!(
                    "the end is missing: {whose} names record {n}, the last here is {last}"
                );
                self.verdict.finding(text);
            } else if let Some(chain) = self.verdict.last.filter(|chain| chain.last == end.last)
                && chain.hash != end.hash
            {
                let (n, hash) = (end.last, hex(&end.hash));
                let text =
                    format!("record {n} is another one than {whose} names, with hash {hash}");
                self.verdict.finding(text);
            }
        }
        if let Some(first) = self.verdict.first.filter(|first| *first > 1) {
            let gone = first - 1;
            if self.removed >= gone {
                let text =
                    format!("records 1 to {gone} were removed by the switch, as the log says");
                self.verdict.notes.push(text);
            } else {
                let text = format!(
                    "records 1 to {gone} are missing, and nothing says that they were removed"
                );
                self.verdict.finding(text);
            }
        }
        self.verdict
    }
}

/// The hash that a line ends in, if it looks like one.
fn claimed_hash(line: &[u8]) -> Option<Hash> {
    let line = line.strip_suffix(b"\n")?.strip_suffix(END.as_bytes())?;
    let at = line.len().checked_sub(HEX_LEN)?;
    std::str::from_utf8(&line[at..]).ok().and_then(unhex)
}
