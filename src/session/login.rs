//! From Hello to an identity: the rules between a verified token and a session.
//!
//! The token has been verified before anything here runs; what the client says beside it may narrow
//! the token and never widen it (R: A-4).

use iris_proto::client::SEND_ONLY;
use iris_proto::id::{DEVICE_DEFAULT, DeviceId, SendEpoch};
use iris_proto::limits::{self, VERSION};
use iris_proto::v2::{self, GoodbyeReason};
use iris_proto::wire::HelloRef;

use super::{Identity, Token};
use crate::auth::Claims;
use crate::placement::UserHash;

/// Whether a Hello can be talked to at all; asked before its token is looked at.
pub fn check_version(hello: &HelloRef<'_>) -> Result<(), GoodbyeReason> {
    if (hello.version_min..=hello.version_max).contains(&VERSION) {
        Ok(())
    } else {
        Err(GoodbyeReason::Version)
    }
}

/// Joins what the token says with what the client says.
pub fn identify(
    claims: Claims,
    hello: &HelloRef<'_>,
    hash: UserHash,
) -> Result<Identity, GoodbyeReason> {
    let token = Token::of(&claims);
    let device = match claims.device {
        Some(device) if hello.device.is_empty() || hello.device == device.as_str() => device,
        Some(_) => return Err(GoodbyeReason::DeviceMismatch),
        None if hello.device.is_empty() => named(DEVICE_DEFAULT)?,
        None => named(hello.device)?,
    };
    Ok(Identity {
        user: claims.user,
        hash,
        device,
        epoch: SendEpoch(hello.send_epoch),
        token,
        send_only: hello.capabilities.iter().any(|name| name == SEND_ONLY),
    })
}

/// Whether a session may go on with a further token: one of the same user, and not of another device.
/// It changes the session's end and nothing else, so it widens nothing (R: A-4).
#[must_use]
pub fn may_renew(identity: &Identity, claims: &Claims) -> bool {
    let device = claims.device.as_ref();
    claims.user == identity.user && device.is_none_or(|device| *device == identity.device)
}

/// The second at which a session's alarm goes off first, when its token is taken at `now_s` and ends at
/// `end_s`: to warn it ahead of the end, by [`EXPIRY_WARNING_S`] or a quarter of what is left; at the end
/// itself when that is less than a second.
///
/// [`EXPIRY_WARNING_S`]: limits::EXPIRY_WARNING_S
#[must_use]
pub fn first_alarm_s(end_s: u64, now_s: u64) -> u64 {
    let ahead_s = limits::EXPIRY_WARNING_S.min(end_s.saturating_sub(now_s) / 4);
    end_s - ahead_s
}

/// The part of a Welcome that follows from who the session is.
#[must_use]
pub fn welcome(identity: &Identity) -> v2::Welcome {
    v2::Welcome {
        version: VERSION,
        limits: Some(bounds()),
        user: identity.user.as_str().to_owned(),
        device: identity.device.as_str().to_owned(),
        capabilities: identity
            .send_only
            .then(|| SEND_ONLY.to_owned())
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

/// The bounds that a Welcome announces.
#[expect(clippy::cast_possible_truncation, reason = "both are far below 4 GiB")]
fn bounds() -> v2::Limits {
    v2::Limits {
        frame_bytes: limits::FRAME_BYTES_MAX as u32,
        body_bytes: limits::BODY_BYTES_MAX as u32,
        sends_in_flight: limits::SENDS_IN_FLIGHT_MAX,
        window_entries: limits::WINDOW_ENTRIES_MAX,
        window_bytes: limits::WINDOW_BYTES_MAX,
        fetch_entries: limits::FETCH_ENTRIES_MAX,
    }
}

fn named(device: &str) -> Result<DeviceId, GoodbyeReason> {
    DeviceId::new(device).map_err(|_| GoodbyeReason::BadFrame)
}

#[cfg(test)]
mod tests {
    use iris_proto::frame;
    use iris_proto::id::UserId;
    use iris_proto::wire::{ClientFrameRef, decode_client};
    use prost::Message;

    use super::*;

    fn with_hello<R>(hello: v2::Hello, check: impl FnOnce(&HelloRef<'_>) -> R) -> R {
        let frame = v2::ClientFrame {
            frame: Some(v2::client_frame::Frame::Hello(hello)),
        };
        let mut bytes = Vec::new();
        frame::append(&mut bytes, |out| frame.encode(out).unwrap());
        let Ok(ClientFrameRef::Hello(hello)) = decode_client(&bytes[frame::LENGTH_BYTES..]) else {
            panic!("a hello was encoded");
        };
        check(&hello)
    }

    fn hello(device: &str) -> v2::Hello {
        v2::Hello {
            device: device.to_owned(),
            send_epoch: 7,
            version_min: 2,
            version_max: 2,
            ..Default::default()
        }
    }

    fn claims(device: Option<&str>) -> Claims {
        Claims {
            user: UserId::new("ann").unwrap(),
            device: device.map(|device| DeviceId::new(device).unwrap()),
            expires_s: 10,
            issued_s: 0,
            jti: None,
        }
    }

    fn device_of(token: Option<&str>, said: &str) -> Result<String, GoodbyeReason> {
        with_hello(hello(said), |hello| {
            identify(claims(token), hello, UserHash(1))
        })
        .map(|identity| identity.device.as_str().to_owned())
    }

    /// R: A-4
    #[test]
    fn a_token_for_one_device_cannot_be_used_by_another() {
        assert_eq!(device_of(Some("phone"), "phone").as_deref(), Ok("phone"));
        assert_eq!(device_of(Some("phone"), "").as_deref(), Ok("phone"));
        assert_eq!(
            device_of(Some("phone"), "laptop"),
            Err(GoodbyeReason::DeviceMismatch)
        );
    }

    #[test]
    fn a_token_for_the_user_leaves_the_device_to_the_client() {
        assert_eq!(device_of(None, "laptop").as_deref(), Ok("laptop"));
        assert_eq!(device_of(None, "").as_deref(), Ok(DEVICE_DEFAULT));
    }

    #[test]
    fn a_client_without_a_common_version_is_told_so() {
        let versions = |version_min, version_max| {
            let hello = v2::Hello {
                version_min,
                version_max,
                ..hello("")
            };
            with_hello(hello, check_version)
        };
        assert_eq!(versions(1, 2), Ok(()));
        assert_eq!(versions(2, 9), Ok(()));
        assert_eq!(versions(3, 9), Err(GoodbyeReason::Version));
        assert_eq!(versions(0, 1), Err(GoodbyeReason::Version));
        assert_eq!(versions(9, 1), Err(GoodbyeReason::Version));
    }

    /// R
    #[test]
    fn a_further_token_must_be_of_the_same_user_and_not_of_another_device() {
        let with = |user: &str, device: Option<&str>| Claims {
            user: UserId::new(user).unwrap(),
            ..claims(device)
        };
        let user = claims(None).user;
        let identity = |device: Option<&str>| {
            with_hello(hello("phone"), |hello| {
                identify(claims(device), hello, UserHash(1)).unwrap()
            })
        };
        for identity in [identity(None), identity(Some("phone"))] {
            assert!(may_renew(&identity, &with(user.as_str(), None)));
            assert!(may_renew(&identity, &with(user.as_str(), Some("phone"))));
            assert!(!may_renew(&identity, &with(user.as_str(), Some("laptop"))));
            assert!(!may_renew(&identity, &with("mallory", None)));
            assert!(!may_renew(&identity, &with("mallory", Some("phone"))));
        }
    }

    #[test]
    fn a_session_is_warned_a_minute_ahead_or_at_a_quarter_of_a_short_token() {
        assert_eq!(first_alarm_s(10_000, 1_000), 9_940);
        assert_eq!(first_alarm_s(1_240, 1_000), 1_180);
        assert_eq!(first_alarm_s(1_040, 1_000), 1_030);
        assert_eq!(first_alarm_s(1_003, 1_000), 1_003);
        assert_eq!(first_alarm_s(1_000, 2_000), 1_000);
    }

    #[test]
    fn a_client_that_only_sends_says_so() {
        let hello = v2::Hello {
            capabilities: vec!["other".to_owned(), "send-only".to_owned()],
            ..hello("")
        };
        let identity = with_hello(hello, |hello| identify(claims(None), hello, UserHash(1)));
        assert!(identity.unwrap().send_only);
    }
}
