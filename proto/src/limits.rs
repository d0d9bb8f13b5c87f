//! Every bound of the protocol, by name. A field over its limit is refused by a typed error before
//! memory is taken for it.

/// Bytes of a user id.
pub const USER_ID_BYTES_MAX: usize = 64;
/// Bytes of a device id.
pub const DEVICE_ID_BYTES_MAX: usize = 32;
/// Bytes of a message body. Over it: `Rejected(BODY_TOO_LARGE)`, the session goes on.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one frame after its 4-byte length, once the session is authenticated: a body and 1 KiB of
/// everything else. Over it: `Goodbye(FRAME_TOO_LARGE)` and close.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + 1024;
/// Bytes of the first frame (Hello, with its token), which a stranger may make us hold.
/// Over it: `Goodbye(FRAME_TOO_LARGE)` and close.
pub const HELLO_FRAME_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a token inside Hello.
pub const TOKEN_BYTES_MAX: usize = 4 * 1024;
/// Seconds before its end that a session is told so, at most; a quarter of what its token had left when
/// it was taken, if that is less.
pub const EXPIRY_WARNING_S: u64 = 60;
/// Milliseconds between two Reauths of one session, each of which costs a signature check. Sooner:
/// `Rejected(OVERLOADED)`.
pub const REAUTH_PAUSE_MS: u64 = 1_000;
/// Capabilities that a Hello may list.
pub const CAPABILITIES_MAX: usize = 32;
/// Bytes of one capability's name.
pub const CAPABILITY_BYTES_MAX: usize = 32;
/// Entries that one Fetch may ask for. More: the answer stops here and says that there is more.
pub const FETCH_ENTRIES_MAX: u32 = 1_000;
/// Fetches of one session that may wait for their answer. More: `Rejected(OVERLOADED)`.
pub const FETCHES_IN_FLIGHT_MAX: u32 = 1;
/// Bytes of the text for people in Rejected and Goodbye. A longer one is cut by its writer.
pub const TEXT_BYTES_MAX: usize = 256;
/// Bytes of the other address in Goodbye: a host name of 253 bytes, a colon and a port.
pub const ADDRESS_BYTES_MAX: usize = 259;
/// Sends of one session that may wait for their answer. At the limit the server stops reading that
/// session's socket until answers leave.
pub const SENDS_IN_FLIGHT_MAX: u32 = 1_024;
/// Entries pushed to one session and not yet acknowledged. At the limit the session stops pulling
/// from the inbox until an Ack arrives.
pub const WINDOW_ENTRIES_MAX: u32 = 1_024;
/// Bytes of bodies pushed to one session and not yet acknowledged; the window is open while fewer are
/// under way, so one entry may exceed it.
pub const WINDOW_BYTES_MAX: u64 = 1024 * 1024;
/// Entries of one inbox that some device has not acknowledged. Full: `Rejected(INBOX_FULL)`.
pub const INBOX_ENTRIES_MAX: u64 = 10_000;
/// Devices of one user. More: `Goodbye(TOO_MANY_DEVICES)`.
pub const DEVICES_PER_USER_MAX: usize = 8;
/// Entries before the head that a user's further device starts with, so that it is not empty.
pub const NEW_DEVICE_ENTRIES: u64 = 1_000;
/// Messages that one client session holds until they are answered. Full: the caller waits.
pub const CLIENT_UNANSWERED_MAX: usize = SENDS_IN_FLIGHT_MAX as usize;
/// Bytes of bodies that one client session holds until they are answered. Full: the caller waits.
pub const CLIENT_UNANSWERED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Recipients of one send epoch that a client counts for. Full: it starts a new epoch.
pub const CLIENT_STREAMS_MAX: usize = 65_536;
/// Bytes of output that a client session makes at a time, before the last frame that it begins.
pub const CLIENT_OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Milliseconds that an Ack waits for later ones to join it (a guess; far below a person's notice).
pub const CLIENT_ACK_DELAY_MS: u64 = 20;
/// Milliseconds for which a client repeats sends to a recipient that is `UNAVAILABLE`, counted from the
/// first such answer since something was accepted there. Then they fail, and so does each further one
/// at its first such answer: what waits for an operator must not fill the room for everybody else. A
/// restart of the switch takes less. A guess.
pub const CLIENT_UNAVAILABLE_MS: u64 = 60_000;
/// Milliseconds without a byte from the switch after which a client sends a Ping.
pub const CLIENT_PING_AFTER_MS: u64 = 20_000;
/// Milliseconds that a client waits for anything after its Ping, or for Welcome after its Hello. Then
/// the connection counts as lost.
pub const CLIENT_ANSWER_MS: u64 = 10_000;
/// Milliseconds of the first reconnect's upper bound, when the configuration does not say.
pub const BACKOFF_BASE_MS: u64 = 250;
/// Milliseconds that the upper bound of a reconnect's delay grows to, when the configuration does
/// not say.
pub const BACKOFF_MAX_MS: u64 = 30_000;
/// The protocol version of this crate.
pub const VERSION: u32 = 2;
/// The ALPN name of the protocol.
pub const ALPN: &[u8] = b"iris/2";

const _: () = {
    assert!(USER_ID_BYTES_MAX <= u8::MAX as usize); // one length byte in the log and on the rings
    assert!(DEVICE_ID_BYTES_MAX <= u8::MAX as usize);
    assert!(
        HELLO_FRAME_BYTES_MAX
            >= TOKEN_BYTES_MAX + CAPABILITIES_MAX * (CAPABILITY_BYTES_MAX + 2) + 256
    );
    assert!(NEW_DEVICE_ENTRIES <= INBOX_ENTRIES_MAX); // a new device never fills the inbox by coming
    assert!(CLIENT_UNANSWERED_BYTES_MAX >= BODY_BYTES_MAX); // an empty queue takes any message
    assert!(BACKOFF_BASE_MS <= BACKOFF_MAX_MS);
    assert!(CLIENT_ACK_DELAY_MS < CLIENT_ANSWER_MS);
    assert!((WINDOW_ENTRIES_MAX as u64) < INBOX_ENTRIES_MAX); // a slow device's window fills first
};
