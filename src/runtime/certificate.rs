//! From when to when the switch's certificate is valid, and who is told before it is not.
//!
//! ```text
//!   PEM chain ─▶ Validity ─▶ log: at the start, at each reload, once a day
//!                   └─▶ each core's report ─▶ /metrics, notes of /readyz and of `iris status`
//! ```
//!
//! A certificate that is not valid is a loud warning and no reason not to start, and the switch stays
//! ready: sessions that are there go on, clients decide for themselves what they trust, and a clock that
//! is wrong at boot would otherwise keep a whole fleet down.
//!
//! Only the dates are read here, by hand: where they stand in a certificate is fixed (RFC 5280, 4.1), and
//! TLS has checked the rest. What cannot be read has no dates, and is said to have none.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::clock::Clock;

const DAY_S: u64 = 24 * 60 * 60;
/// So long before the end it is a warning.
pub const WARN_S: u64 = 30 * DAY_S;
/// So long before the end it is an error: someone must act.
pub const ALARM_S: u64 = 7 * DAY_S;
/// How often the log says so again.
const AGAIN: Duration = Duration::from_secs(DAY_S);

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// The version's own tag; version 1 leaves it out.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When all certificates of a chain are valid, in seconds since the Unix epoch; before 1970: 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// From then on.
    pub begins_s: u64,
    /// Up to then.
    pub ends_s: u64,
}

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// For a while.
    Fine,
    /// It ends within [`WARN_S`].
    Ending,
    /// It ends within [`ALARM_S`].
    EndingSoon,
    /// It has ended.
    Ended,
    /// It has not begun, or a clock is wrong.
    NotYet,
}

impl Validity {
    /// Of a whole chain; `None` when the dates of one cannot be read.
    #[must_use]
    pub fn of_chain(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let mut all = chain.iter().map(|certificate| Self::of(certificate));
        let first = all.next()??;
        all.try_fold(first, |so_far, next| {
            let next = next?;
            Some(Self {
                begins_s: so_far.begins_s.max(next.begins_s),
                ends_s: so_far.ends_s.min(next.ends_s),
            })
        })
    }

    /// Of one certificate in DER.
    fn of(certificate: &[u8]) -> Option<Self> {
        let mut input = certificate;
        let mut content = take(&mut input, SEQUENCE)?;
        let mut signed = take(&mut content, SEQUENCE)?;
        if signed.first() == Some(&VERSION) {
            take(&mut signed, VERSION)?;
        }
        take(&mut signed, INTEGER)?; // serial number
        take(&mut signed, SEQUENCE)?; // algorithm
        take(&mut signed, SEQUENCE)?; // issuer
        let mut dates = take(&mut signed, SEQUENCE)?;
        Some(Self {
            begins_s: instant(&mut dates)?,
            ends_s: instant(&mut dates)?,
        })
    }

    /// How it stands at `now_s`.
    #[must_use]
    pub fn outlook(self, now_s: u64) -> Outlook {
        let left_s = self.ends_s.saturating_sub(now_s);
        match left_s {
            _ if now_s < self.begins_s => Outlook::NotYet,
            0 => Outlook::Ended,
            1..=ALARM_S => Outlook::EndingSoon,
            _ if left_s <= WARN_S => Outlook::Ending,
            _ => Outlook::Fine,
        }
    }

    /// What there is to say at `now_s`, with what to do; nothing while all is well.
    #[must_use]
    pub fn note(self, now_s: u64) -> Option<String> {
        let days = |seconds: u64| match seconds / DAY_S {
            0 => "less than a day".to_owned(),
            1 => "1 day".to_owned(),
            days => format!("{days} days"),
        };
        let what = match self.outlook(now_s) {
            Outlook::Fine => return None,
            Outlook::Ending | Outlook::EndingSoon => {
                format!("ends in {}", days(self.ends_s - now_s))
            }
            Outlook::Ended => format!(
                "ended {} ago: clients that check it do not connect",
                days(now_s - self.ends_s)
            ),
            Outlook::NotYet => format!(
                "begins in {}: clients that check it do not connect, or the clock of this machine \
                 is wrong",
                days(self.begins_s - now_s)
            ),
        };
        Some(format!(
            "the certificate {what}; replace tls.certificate and tls.key, and reload (SIGHUP)"
        ))
    }
}

/// Takes the value of a DER element with this tag from the front of `input`.
fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&[found, first], mut rest) = input.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        length = bytes
            .iter()
            .fold(0, |so_far, byte| so_far << 8 | usize::from(*byte));
        rest = after;
    }
    let (value, after) = rest.split_at_checked(length)?;
    *input = after;
    Some(value)
}

/// `YYMMDDHHMMSSZ`, where years from 50 on are of the last century, or `YYYYMMDDHHMMSSZ` (RFC 5280,
/// 4.1.2.5), as seconds since the Unix epoch.
fn instant(input: &mut &[u8]) -> Option<u64> {
    let (year, rest) = match *input.first()? {
        UTC_TIME => {
            let (year, rest) = digits(take(input, UTC_TIME)?, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        _ => digits(take(input, GENERALIZED_TIME)?, 4)?,
    };
    let (month, rest) = digits(rest, 2)?;
    let (day, rest) = digits(rest, 2)?;
    let (hour, rest) = digits(rest, 2)?;
    let (minute, rest) = digits(rest, 2)?;
    let (second, rest) = digits(rest, 2)?;
    let is_date = (1..=12).contains(&month) && (1..=31).contains(&day) && rest == b"Z";
    let seconds = hour * 3_600 + minute * 60 + second;
    let days = is_date.then(|| days_from_epoch(year, month, day))?;
    Some(u64::try_from(days * 86_400 + seconds).unwrap_or(0))
}

fn digits(text: &[u8], count: usize) -> Option<(i64, &[u8])> {
    let (digits, rest) = text.split_at_checked(count)?;
    let mut number = 0;
    for digit in digits {
        number = number * 10 + i64::from(char::from(*digit).to_digit(10)?);
    }
    Some((number, rest))
}

/// Days from 1970-01-01 in the Gregorian calendar. Years count from March, so that a leap day is a
/// year's last.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let days_before_month = (153 * ((month + 9) % 12) + 2) / 5;
    let days_before_year = 365 * year + year / 4 - year / 100 + year / 400;
    const MARCH_OF_YEAR_0: i64 = 719_468; // days before 1970-01-01
    days_before_year + days_before_month + day - 1 - MARCH_OF_YEAR_0
}

/// Says at once how the certificate stands, and once a day from then on. Dropping it ends its thread.
#[derive(Debug)]
pub struct Watch {
    changes: Sender<Option<Validity>>,
}

impl Watch {
    /// Starts with the dates of a certificate; `None`: they could not be read.
    #[must_use]
    pub fn start(validity: Option<Validity>) -> Self {
        tell(validity);
        let (changes, changed) = bounded(1);
        let thread = std::thread::Builder::new().name("iris-certificate".to_owned());
        if let Err(error) = thread.spawn(move || watch(validity, &changed)) {
            tracing::warn!(%error, "the end of the certificate is not watched: no thread could be started; check the limit of threads (`ulimit -u`)");
        }
        Self { changes }
    }

    /// Another certificate, or the same one again.
    pub fn renew(&self, validity: Option<Validity>) {
        tell(validity);
        let _ = self.changes.send(validity); // taken at once, or there is no thread
    }
}

fn watch(mut validity: Option<Validity>, changed: &Receiver<Option<Validity>>) {
    loop {
        match changed.recv_timeout(AGAIN) {
            Ok(newer) => validity = newer,
            Err(RecvTimeoutError::Timeout) => tell(validity),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn tell(validity: Option<Validity>) {
    let Some(validity) = validity else {
        tracing::warn!(
            "the dates of the certificate cannot be read, so nobody will be told of its end; is it an X.509 certificate?"
        );
        return;
    };
    let now_s = Clock::read().unix_s();
    let Some(note) = validity.note(now_s) else {
        return;
    };
    let not_after = validity.ends_s;
    if validity.outlook(now_s) == Outlook::Ending {
        tracing::warn!(not_after, "{note}");
    } else {
        tracing::error!(not_after, "{note}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(begins: (i32, u8, u8), ends: (i32, u8, u8)) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(begins.0, begins.1, begins.2);
        params.not_after = rcgen::date_time_ymd(ends.0, ends.1, ends.2);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_dates_of_a_certificate_are_read_in_both_of_their_forms() {
        // Up to 2049 they are written with two digits of the year, from then on with four.
        let dates = [
            ((1970, 1, 1), 0),
            ((1999, 12, 31), 946_598_400),
            ((2000, 2, 29), 951_782_400),
            ((2026, 11, 24), 1_795_478_400),
            ((2049, 12, 31), 2_524_521_600),
            ((2050, 1, 1), 2_524_608_000),
            ((2400, 2, 29), 13_574_563_200),
        ];
        for (ends, ends_s) in dates {
            let validity = Validity::of_chain(&[made((1970, 1, 1), ends)]).unwrap();
            assert_eq!(
                (validity.begins_s, validity.ends_s),
                (0, ends_s),
                "{ends:?}"
            );
        }
    }

    #[test]
    fn a_chain_is_valid_while_all_of_it_is() {
        let chain = [
            made((2020, 1, 1), (2030, 1, 1)),
            made((2021, 1, 1), (2029, 1, 1)),
        ];
        let both = Validity::of_chain(&chain).unwrap();
        let [first, second] = chain.each_ref().map(|one| Validity::of(one).unwrap());
        assert_eq!(
            (both.begins_s, both.ends_s),
            (second.begins_s, second.ends_s)
        );
        assert!(first.begins_s < both.begins_s && both.ends_s < first.ends_s);
        assert_eq!(Validity::of_chain(&[]), None);
        let nonsense = CertificateDer::from(b"nonsense".to_vec());
        assert_eq!(Validity::of_chain(&[chain[0].clone(), nonsense]), None);
    }

    #[test]
    fn what_is_cut_or_changed_anywhere_never_panics() {
        let whole = made((2020, 1, 1), (2030, 1, 1)).to_vec();
        for at in 0..whole.len() {
            let _ = Validity::of(&whole[..at]);
            for byte in [0, 0x7f, 0x80, 0x84, 0x89, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = Validity::of(&changed);
            }
        }
    }

    #[test]
    fn a_month_ahead_it_warns_and_a_week_ahead_it_alarms() {
        let validity = Validity {
            begins_s: 1_000,
            ends_s: 1_000 + 90 * DAY_S,
        };
        let left = |days: u64| validity.ends_s - days * DAY_S;
        let outlooks = [
            (999, Outlook::NotYet),
            (1_000, Outlook::Fine),
            (left(30) - 1, Outlook::Fine),
            (left(30), Outlook::Ending),
            (left(7) - 1, Outlook::Ending),
            (left(7), Outlook::EndingSoon),
            (left(0) - 1, Outlook::EndingSoon),
            (left(0), Outlook::Ended),
            (u64::MAX, Outlook::Ended),
        ];
        for (now_s, outlook) in outlooks {
            assert_eq!(validity.outlook(now_s), outlook, "{now_s}");
            let note = validity.note(now_s);
            assert_eq!(note.is_none(), outlook == Outlook::Fine);
            assert!(note.is_none_or(|note| note.contains("; replace tls.certificate")));
        }
        assert!(
            validity
                .note(left(30))
                .unwrap()
                .contains("ends in 30 days;")
        );
        assert!(
            validity
                .note(left(0) + DAY_S)
                .unwrap()
                .contains("ended 1 day ago")
        );
    }
}
