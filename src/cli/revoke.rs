//! `iris revoke`: tokens that are good are refused from now on.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use iris_proto::id::UserId;

use super::remote::user;
use super::{DATA_DEFAULT, Failure, admin, output};
use crate::runtime::admin::{REVOKE_PATH, Revocation, Revoked};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true)))]
#[command(long_about = "\
Revoke tokens on the switch that serves a data directory: all of a user's that were issued before an \
instant, or one by its id (`jti`). When this says `revoked`, it is on disk, and sessions with such tokens \
have ended. The switch tells them why, and refuses new logins with such tokens.

The issuer's clock may be ahead by the switch's `auth.leeway_s`: of a user everything is refused that was \
issued before the instant and that many seconds. So after `iris revoke --user U` the user gets in again \
with a token that was issued 11 seconds later, if the leeway is 10. A token that does not say when it was \
issued (`iat`) is always refused. Revocations are kept for 24 hours and 15 minutes; no token lives longer.")]
#[command(after_long_help = "\
Examples:
  iris revoke --user alice
  iris revoke --user alice --before 2026-11-24T12:00:00Z
  iris revoke --jti 0b0f4a3e --data /var/lib/iris

Exit codes:
  0  revoked; it is on disk, and no core has such a session
  1  not revoked, or not yet everywhere; standard error says which
  2  wrong usage, or no switch runs on that directory")]
pub(super) struct RevokeArgs {
    /// The user whose tokens are revoked
    #[arg(long, value_name = "USER", value_parser = user, group = "what")]
    user: Option<UserId>,
    /// Of that user, those issued before this: 2026-11-24T12:00:00Z, or seconds since 1970
    /// [default: now]
    #[arg(long, value_name = "INSTANT", value_parser = instant, conflicts_with = "jti")]
    before: Option<u64>,
    /// The id (`jti`) of the one token that is revoked
    #[arg(long, value_name = "ID", group = "what")]
    jti: Option<String>,
    /// The data directory of the switch
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RevokeArgs) -> Result<(), Failure> {
    let revocation = Revocation {
        user: args.user.as_ref().map(|user| user.as_str().to_owned()),
        before_s: args.before,
        jti: args.jti.clone(),
    };
    let body = serde_json::to_string(&revocation)?;
    let body = match admin::post(&args.data, REVOKE_PATH, &body)? {
        (200, body) => body,
        // An older switch knows no such path; what else it says is meant for people.
        (_, why) => return Err(Failure::told(format!("not revoked: {}", why.trim_end()))),
    };
    let revoked: Revoked =
        serde_json::from_str(&body).map_err(|error| admin::no_sense(&args.data, &error))?;
    output::print(&if args.json {
        body.trim_end().to_owned()
    } else {
        sentence(args, &revoked)
    })?;
    if revoked.silent.is_empty() {
        return Ok(());
    }
    Err(Failure::Told(format!(
        "the revocation is on disk, but core {:?} has not ended such sessions yet; it will when it goes \
         on. Look at `iris status`",
        revoked.silent
    )))
}

fn sentence(args: &RevokeArgs, revoked: &Revoked) -> String {
    let what = match (&args.user, revoked.before_s, &args.jti) {
        (Some(user), Some(before_s), _) => {
            format!("tokens of {user} issued before {}", written(before_s))
        }
        (_, _, Some(jti)) => format!("the token {jti:?}"),
        _ => "nothing".to_owned(),
    };
    format!("revoked: {what}; revocations held: {}", revoked.held)
}

const DAY_S: u64 = 86_400;

/// Days from 1970-01-01 to a date of the Gregorian calendar, by years that begin in March.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    365 * year + leap_days + day_of_year - 719_468
}

fn month_days(year: u64, month: u64) -> u64 {
    let (next_year, next) = if month == 12 {
        (year + 1, 1)
    } else {
        (year, month + 1)
    };
    days(next_year, next, 1) - days(year, month, 1)
}

/// A second as RFC 3339 writes it.
pub(super) fn written(unix_s: u64) -> String {
    let (day, second) = (unix_s / DAY_S, unix_s % DAY_S);
    let mut year = 1970 + day / 366;
    while year < 9999 && days(year + 1, 1, 1) <= day {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days(year, month + 1, 1) <= day {
        month += 1;
    }
    let of_month = day - days(year, month, 1) + 1;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Seconds since 1970 out of a number, or of RFC 3339 in UTC, a fraction rounded up.
fn instant(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no instant; write it as 2026-11-24T12:00:00Z");
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number(text) {
        return text.parse().map_err(|_| wrong());
    }
    let (whole, rest) = text.split_at_checked(19).ok_or_else(wrong)?;
    let fraction = rest.strip_suffix('Z').ok_or_else(wrong)?;
    let is_later = match fraction.strip_prefix('.') {
        Some(digits) if is_number(digits) => digits.bytes().any(|byte| byte != b'0'),
        None if fraction.is_empty() => false,
        _ => return Err(wrong()),
    };
    let shape = whole.bytes().zip("0000-00-00T00:00:00".bytes());
    let fits = shape.fold(true, |fits, (byte, wanted)| {
        fits && if wanted == b'0' {
            byte.is_ascii_digit()
        } else {
            byte == wanted
        }
    });
    if !fits {
        return Err(wrong());
    }
    let number = |from: usize, to: usize| whole[from..to].parse::<u64>().map_err(|_| wrong());
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let is_date = year >= 1970 && (1..=12).contains(&month) && day >= 1;
    if !is_date || day > month_days(year, month) || hour > 23 || minute > 59 || second > 59 {
        return Err(wrong());
    }
    let of_day = hour * 3_600 + minute * 60 + second;
    Ok(days(year, month, day) * DAY_S + of_day + u64::from(is_later))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_read_as_it_is_written() {
        for (text, unix_s) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1972-02-29T23:59:59Z", 68_255_999),
            ("2000-03-01T00:00:00Z", 951_868_800),
            ("2026-11-24T12:00:00Z", 1_795_521_600),
            ("2100-02-28T00:00:00Z", 4_107_456_000),
            ("2400-02-29T12:30:45Z", 13_574_608_245),
        ] {
            assert_eq!(instant(text), Ok(unix_s), "{text}");
            assert_eq!(written(unix_s), text);
        }
        let mut unix_s = 0;
        while unix_s < 20_000_000_000 {
            assert_eq!(instant(&written(unix_s)), Ok(unix_s));
            unix_s += 1_234_567;
        }
        assert_eq!(instant("1795521600"), Ok(1_795_521_600));
        assert_eq!(instant("2026-11-24T12:00:00.0Z"), Ok(1_795_521_600));
        assert_eq!(instant("2026-11-24T12:00:00.25Z"), Ok(1_795_521_601));
    }

    #[test]
    fn what_is_no_instant_in_utc_is_refused() {
        for text in [
            "",
            "now",
            "-1",
            "2026-11-24",
            "2026-11-24T12:00:00",
            "2026-11-24T12:00:00+01:00",
            "2026-11-24 12:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T12:60:00Z",
            "2026-11-24T12:00:00.Z",
            "1969-12-31T23:59:59Z",
            "2026-11-24T12:00:0\u{e9}Z",
            "99999999999999999999",
        ] {
            assert!(instant(text).is_err(), "{text}");
        }
    }
}
