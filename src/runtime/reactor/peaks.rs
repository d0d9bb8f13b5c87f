//! How full a core was lately: the highest value of the last one to two seconds.
//!
//! A depth that is read when somebody asks is that of an instant at which the core had time to answer, so
//! it is nearly always nothing. The highest since the last question would depend on who asks, and how
//! often. This does neither, and costs a comparison a turn.

use crate::runtime::report::Peaks;

/// Microseconds as a shift: 1.05 s.
const SPAN_SHIFT: u32 = 20;

/// The highest value noted in this span of time and in the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peak {
    span: u64,
    now: u64,
    before: u64,
}

impl Peak {
    /// Notes a value.
    #[inline]
    pub fn note(&mut self, now_us: u64, value: u64) {
        let span = now_us >> SPAN_SHIFT;
        if span != self.span {
            self.turn_to(span);
        }
        self.now = self.now.max(value);
    }

    /// The highest of late.
    pub fn read(mut self, now_us: u64) -> u64 {
        self.turn_to(now_us >> SPAN_SHIFT);
        self.now.max(self.before)
    }

    fn turn_to(&mut self, span: u64) {
        self.before = match span.saturating_sub(self.span) {
            0 => return,
            1 => self.now,
            _ => 0,
        };
        (self.span, self.now) = (span, 0);
    }
}

/// What is noted in each turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    pub parcels: Peak,
    pub events: Peak,
    pub pending: Peak,
}

impl Turns {
    pub fn peaks(&self, now_us: u64) -> Peaks {
        Peaks {
            ring_parcels: self.parcels.read(now_us),
            turn_events: self.events.read(now_us),
            pending_bytes: self.pending.read(now_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_remembered_for_one_to_two_spans_however_often_it_is_read() {
        let span = 1 << SPAN_SHIFT;
        let mut peak = Peak::default();
        peak.note(10, 7);
        peak.note(20, 3);
        for _ in 0..3 {
            assert_eq!(peak.read(30), 7);
        }
        peak.note(span + 1, 2);
        assert_eq!(peak.read(2 * span - 1), 7, "of the span before");
        assert_eq!(peak.read(2 * span), 2);
        assert_eq!(peak.read(3 * span), 0);
        peak.note(9 * span, 1);
        assert_eq!(peak.read(9 * span), 1);
    }
}
