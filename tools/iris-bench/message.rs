//! What a benchmark message says, and what its users are called.
//!
//! ```text
//! body: intended time u64 | number in its stream u64 | filler      little-endian
//! user: bench-<run id, 8 hex>-<number>
//! ```
//! The intended time is nanoseconds since this process began; it never leaves the process.

/// Bytes of the time and the number at the front of a body.
pub const STAMP_BYTES: usize = 16;

/// The front of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// When the message was meant to be sent.
    pub intended_ns: u64,
    /// Its number in the stream from its sender to its recipient: 1, 2, 3 …
    pub n: u64,
}

impl Stamp {
    /// Writes the stamp over the front of `body`.
    pub fn write(self, body: &mut [u8]) {
        body[..8].copy_from_slice(&self.intended_ns.to_le_bytes());
        body[8..STAMP_BYTES].copy_from_slice(&self.n.to_le_bytes());
    }

    /// Reads the stamp from a body of at least [`STAMP_BYTES`].
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let (time, rest) = body.split_first_chunk::<8>()?;
        let (n, _) = rest.split_first_chunk::<8>()?;
        Some(Self {
            intended_ns: u64::from_le_bytes(*time),
            n: u64::from_le_bytes(*n),
        })
    }
}

/// The part after the stamp: bytes that do not compress to nothing and betray a shift.
#[must_use]
pub fn filler(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 131 + 7) as u8).collect()
}

/// What the names of a run's users begin with.
#[must_use]
pub fn prefix(run_id: u32) -> String {
    format!("bench-{run_id:08x}-")
}

/// The users of one run.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
    all: Vec<Box<str>>,
}

impl Names {
    /// Users 0 to `count - 1` of run `run_id`.
    #[must_use]
    pub fn new(run_id: u32, count: u32) -> Self {
        let prefix = prefix(run_id);
        let all = (0..count)
            .map(|i| format!("{prefix}{i}").into_boxed_str())
            .collect();
        Self { prefix, all }
    }

    /// The name of user `i`.
    #[must_use]
    pub fn name(&self, i: u32) -> &str {
        &self.all[i as usize]
    }

    /// How many users there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.all.len() as u32
    }

    /// Which user has this name; none for a stranger.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(self.prefix.as_str())?;
        let i: u32 = digits.parse().ok()?;
        // "007" and "+7" parse, too, but are nobody's name.
        (self.all.get(i as usize).is_some_and(|own| **own == *name)).then_some(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_body() {
        let stamp = Stamp {
            intended_ns: 77,
            n: u64::MAX - 1,
        };
        let mut body = filler(20);
        stamp.write(&mut body);
        assert_eq!(Stamp::read(&body), Some(stamp));
        assert_eq!(body[16..], filler(20)[16..]);
        assert_eq!(Stamp::read(&body[..15]), None);
    }

    #[test]
    fn only_users_of_this_run_are_found() {
        let names = Names::new(0xabc, 12);
        assert_eq!(names.name(11), "bench-00000abc-11");
        assert_eq!(names.find("bench-00000abc-11"), Some(11));
        for stranger in [
            "bench-00000abc-12",
            "bench-00000abd-1",
            "bench-00000abc-01",
            "x",
            "",
        ] {
            assert_eq!(names.find(stranger), None, "{stranger}");
        }
    }
}
