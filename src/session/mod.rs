//! A session: one authenticated connection of one device, as a position in an inbox.
//!
//! ```text
//!     acknowledged ≤ pushed ≤ head of the inbox          checked after every step
//!                  └ window ┘
//! ```
//!
//! There is no queue of a client's own that could overflow: a session *pulls* the next entry whenever
//! its window is open and its socket takes bytes. Live push and catching up after a month are the
//! same code. Everything a session needs to know about a slow client is these few numbers (R: B-7).
//! Entries that do not exist any more go as one Gap, which stands for all of them (R: D-2).
//!
//! Does not know sockets, shards or clocks.

pub mod login;
pub mod window;

use iris_proto::id::{DeviceId, SendEpoch, Seq, UserId};
use iris_proto::limits::{FETCH_ENTRIES_MAX, SENDS_IN_FLIGHT_MAX};

use crate::auth::Claims;
use crate::placement::UserHash;
use window::Window;

/// Who a session is, as its token and Hello said. Nothing in a later frame changes it (R: A-4), but that
/// a further token moves its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The user's hash under this data directory's key.
    pub hash: UserHash,
    /// The device.
    pub device: DeviceId,
    /// The device's send epoch.
    pub epoch: SendEpoch,
    /// The token that it goes on with.
    pub token: Token,
    /// The session only sends: it has no cursor, gets no entries, and holds back nobody's inbox.
    pub send_only: bool,
}

/// What a session keeps of its token: when it ends, and what it could be revoked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// When it ends, in seconds since the Unix epoch.
    pub expires_s: u64,
    /// When it was issued; 0: it does not say.
    pub issued_s: u64,
    /// Its own id.
    pub jti: Option<Box<str>>,
}

impl Token {
    /// Out of a verified token.
    #[must_use]
    pub fn of(claims: &Claims) -> Self {
        Self {
            expires_s: claims.expires_s,
            issued_s: claims.issued_s,
            jti: claims.jti.as_deref().map(Box::from),
        }
    }
}

/// Part of the answer to a Fetch that is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The client's name for the request.
    pub tag: u64,
    /// The last entry answered.
    pub last: Seq,
    /// Entries still wanted.
    pub left: u32,
}

/// Why a Fetch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchRefusal {
    /// Another one is being answered.
    Busy,
    /// The entries right after its position are no longer kept.
    Expired {
        /// The oldest entry that is.
        oldest: Seq,
    },
}

/// What goes to the client next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This entry, as part of the answer to the Fetch with this tag.
    Fetched(Seq, u64),
    /// The end of the answer to the Fetch with this tag.
    FetchEnd {
        /// The client's name for the request.
        tag: u64,
        /// The last entry answered.
        last: Seq,
        /// Whether there are entries after it.
        more: bool,
    },
    /// This entry, pushed.
    Push(Seq),
}

/// One session's positions and counts.
#[derive(Debug)]
pub struct Session {
    /// Who it is.
    pub identity: Identity,
    window: Window,
    /// What the device has acknowledged, in this session or before: only its Acks move it, never
    /// where a session chose to begin.
    acknowledged: Seq,
    fetch: Option<Fetch>,
    sends_in_flight: u32,
}

impl Session {
    /// A session of a device whose cursor is `cursor` and whose first push is the entry after
    /// `start`.
    #[must_use]
    pub fn new(identity: Identity, cursor: Seq, start: Seq) -> Self {
        Self {
            identity,
            window: Window::new(start),
            acknowledged: cursor,
            fetch: None,
            sends_in_flight: 0,
        }
    }

    /// Where a session begins: after what the client says it has, else after the device's cursor;
    /// never before what is kept, never after the head.
    #[must_use]
    pub fn start(resume_after: Option<u64>, cursor: Seq, oldest: Seq, head: Seq) -> Seq {
        let wanted = resume_after.map_or(cursor, Seq);
        Seq(wanted.0.max(oldest.0.saturating_sub(1)).min(head.0))
    }

    /// Whether a further Send may be read. At the limit the socket is not read.
    #[must_use]
    pub fn may_send(&self) -> bool {
        self.sends_in_flight < SENDS_IN_FLIGHT_MAX
    }

    /// Whether a Send that was read has no answer yet.
    #[must_use]
    pub fn awaits_answers(&self) -> bool {
        self.sends_in_flight > 0
    }

    /// A Send is on its way to its shard.
    pub fn send_began(&mut self) {
        assert!(
            self.may_send(),
            "a send was read beyond the session's limit"
        );
        self.sends_in_flight += 1;
    }

    /// The answer to a Send is on its way to the client.
    pub fn send_ended(&mut self) {
        assert!(
            self.sends_in_flight > 0,
            "an answer came to a session that asked nothing"
        );
        self.sends_in_flight -= 1;
    }

    /// The client has everything up to `seq`, or claims so: it cannot have more than was pushed.
    /// Returns the position to make durable when it moved.
    pub fn acknowledge(&mut self, seq: Seq) -> Option<Seq> {
        let seq = seq.min(self.window.pushed());
        self.window.acknowledge(seq);
        if seq <= self.acknowledged {
            return None;
        }
        self.acknowledged = seq;
        Some(seq)
    }

    /// The last entry that the device acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> Seq {
        self.acknowledged
    }

    /// The client wants stored entries.
    pub fn fetch(
        &mut self,
        tag: u64,
        after: Seq,
        limit: u32,
        oldest: Seq,
    ) -> Result<(), FetchRefusal> {
        if self.fetch.is_some() {
            return Err(FetchRefusal::Busy);
        }
        if after.0.saturating_add(1) < oldest.0 {
            return Err(FetchRefusal::Expired { oldest });
        }
        let left = if limit == 0 {
            FETCH_ENTRIES_MAX
        } else {
            limit.min(FETCH_ENTRIES_MAX)
        };
        self.fetch = Some(Fetch {
            tag,
            last: after,
            left,
        });
        Ok(())
    }

    /// The rest of the running Fetch cannot be answered: its end is due next.
    pub fn cut_fetch(&mut self) {
        if let Some(fetch) = &mut self.fetch {
            fetch.left = 0;
        }
    }

    /// What the client is owed next, given where its inbox ends; `None` when it must wait, for an
    /// entry or for room in its window.
    #[must_use]
    pub fn next(&self, head: Seq) -> Option<Next> {
        if let Some(Fetch { tag, last, left }) = self.fetch {
            return Some(if left > 0 && last < head {
                Next::Fetched(Seq(last.0 + 1), tag)
            } else {
                Next::FetchEnd {
                    tag,
                    last,
                    more: last < head,
                }
            });
        }
        if self.identity.send_only || !self.window.is_open() || self.window.pushed() >= head {
            return None;
        }
        Some(Next::Push(Seq(self.window.pushed().0 + 1)))
    }

    /// What `next` named is on its way to the client, with so many bytes of body.
    pub fn went(&mut self, next: Next, body_bytes: usize) {
        match (next, &mut self.fetch) {
            (Next::Push(seq), _) => {
                let bytes = u32::try_from(body_bytes).unwrap_or(u32::MAX);
                self.window.push(seq, bytes);
            }
            (Next::Fetched(seq, _), Some(fetch)) => {
                fetch.last = seq;
                fetch.left -= 1;
            }
            (Next::FetchEnd { .. }, _) => self.fetch = None,
            (Next::Fetched(..), None) => unreachable!("an answer to no fetch"),
        }
    }

    /// The entries from the one that `next` named up to `last` do not exist any more: one Gap is on its
    /// way to the client in their place. `last` is at most the inbox's head. In a window the gap counts
    /// as one entry; of a Fetch it answers as many as it names.
    pub fn skipped(&mut self, next: Next, last: Seq) {
        match (next, &mut self.fetch) {
            (Next::Push(first), _) => self.window.skip(first, last),
            (Next::Fetched(first, tag), Some(fetch)) => {
                assert_eq!(
                    (first.0, tag),
                    (fetch.last.0 + 1, fetch.tag),
                    "a gap answers out of order"
                );
                assert!(first <= last, "a gap ends before it begins");
                let gone = u32::try_from(last.0 - fetch.last.0).unwrap_or(u32::MAX);
                fetch.last = last;
                fetch.left = fetch.left.saturating_sub(gone);
            }
            (Next::Fetched(..), None) => unreachable!("a gap in the answer to no fetch"),
            (Next::FetchEnd { .. }, _) => unreachable!("a gap after the end of an answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use iris_proto::limits::WINDOW_ENTRIES_MAX;
    use proptest::prelude::*;

    use super::*;

    fn session(send_only: bool) -> Session {
        let identity = Identity {
            user: UserId::new("ann").unwrap(),
            hash: UserHash(1),
            device: DeviceId::new("phone").unwrap(),
            epoch: SendEpoch(1),
            token: Token {
                expires_s: 0,
                issued_s: 0,
                jti: None,
            },
            send_only,
        };
        Session::new(identity, Seq(10), Seq(10))
    }

    fn drain(session: &mut Session, head: Seq) -> Vec<Next> {
        let mut all = Vec::new();
        while let Some(next) = session.next(head) {
            session.went(next, 1);
            all.push(next);
        }
        all
    }

    /// R: B-6
    #[test]
    fn a_session_begins_where_the_client_says_within_what_is_kept() {
        let start = |resume, cursor| Session::start(resume, Seq(cursor), Seq(5), Seq(20)).0;
        assert_eq!(start(None, 7), 7);
        assert_eq!(start(None, 0), 4);
        assert_eq!(start(Some(9), 7), 9);
        assert_eq!(start(Some(0), 7), 4);
        assert_eq!(start(Some(u64::MAX), 7), 20);
        assert_eq!(Session::start(None, Seq(0), Seq(1), Seq(0)), Seq(0));
    }

    /// R: B-6
    #[test]
    fn where_a_session_begins_acknowledges_nothing_and_an_ack_of_it_does() {
        let identity = session(false).identity;
        let mut session = Session::new(identity, Seq(3), Seq(10));
        assert_eq!(session.acknowledged(), Seq(3));
        assert_eq!(session.acknowledge(Seq(2)), None);
        assert_eq!(session.acknowledge(Seq(10)), Some(Seq(10)));
        assert_eq!(session.acknowledge(Seq(99)), None, "nothing was pushed yet");
    }

    /// R: B-3
    #[test]
    fn entries_are_pushed_in_order_without_a_gap_as_the_inbox_grows() {
        let mut session = session(false);
        assert_eq!(session.next(Seq(10)), None);
        assert_eq!(
            drain(&mut session, Seq(12)),
            [Next::Push(Seq(11)), Next::Push(Seq(12))]
        );
        assert_eq!(drain(&mut session, Seq(13)), [Next::Push(Seq(13))]);
    }

    #[test]
    fn a_fetch_is_answered_beside_the_push_and_ends_with_where_to_go_on() {
        let mut session = session(false);
        session.fetch(9, Seq(3), 2, Seq(1)).unwrap();
        assert_eq!(
            session.fetch(10, Seq(3), 2, Seq(1)),
            Err(FetchRefusal::Busy)
        );
        let all = drain(&mut session, Seq(11));
        let end = Next::FetchEnd {
            tag: 9,
            last: Seq(5),
            more: true,
        };
        let expected = [Next::Fetched(Seq(4), 9), Next::Fetched(Seq(5), 9), end];
        assert_eq!(all[..3], expected);
        assert_eq!(all[3..], [Next::Push(Seq(11))]);
    }

    #[test]
    fn a_fetch_at_the_end_of_the_inbox_is_answered_by_its_end_alone() {
        let mut session = session(false);
        session.fetch(9, Seq(10), 0, Seq(1)).unwrap();
        let end = Next::FetchEnd {
            tag: 9,
            last: Seq(10),
            more: false,
        };
        assert_eq!(drain(&mut session, Seq(10)), [end]);
    }

    #[test]
    fn a_fetch_of_what_is_gone_names_the_oldest_entry() {
        let refused = session(false).fetch(1, Seq(3), 0, Seq(5));
        assert_eq!(refused, Err(FetchRefusal::Expired { oldest: Seq(5) }));
        assert_eq!(session(false).fetch(1, Seq(4), 0, Seq(5)), Ok(()));
        let mut session = session(false);
        session.fetch(1, Seq(u64::MAX), 0, Seq(5)).unwrap();
        let end = Next::FetchEnd {
            tag: 1,
            last: Seq(u64::MAX),
            more: false,
        };
        assert_eq!(drain(&mut session, Seq(10)), [end]);
    }

    /// R: D-2
    #[test]
    fn a_gap_goes_in_the_place_of_its_entries_and_is_acknowledged_like_them() {
        let mut session = session(false);
        let next = session.next(Seq(99)).unwrap();
        session.skipped(next, Seq(14));
        assert_eq!(session.next(Seq(99)), Some(Next::Push(Seq(15))));
        assert_eq!(session.acknowledge(Seq(12)), Some(Seq(12)));
        assert_eq!(session.acknowledge(Seq(99)), Some(Seq(14)));
    }

    /// R: D-2
    #[test]
    fn a_gap_in_a_fetch_counts_as_many_entries_as_it_names_and_may_go_beyond_the_limit() {
        let mut session = session(false);
        session.fetch(9, Seq(3), 4, Seq(1)).unwrap();
        session.skipped(Next::Fetched(Seq(4), 9), Seq(6));
        assert_eq!(session.next(Seq(20)), Some(Next::Fetched(Seq(7), 9)));
        session.skipped(Next::Fetched(Seq(7), 9), Seq(10));
        let end = Next::FetchEnd {
            tag: 9,
            last: Seq(10),
            more: true,
        };
        assert_eq!(session.next(Seq(20)), Some(end));
    }

    proptest! {
        /// R: B-6, B-7, D-2
        #[test]
        fn every_position_goes_once_to_push_and_fetch_alike_whatever_is_gone(
            gone in prop::collection::vec(0u64..400, 1..40),
            acks in prop::collection::vec(0u64..3_000, 0..40),
            (after, limit) in (0u64..500, 0u32..1_200),
        ) {
            // Runs of entries that are gone and that are there, in turn.
            let runs = gone.iter().scan(10, |at, len| { *at += len; Some(*at) });
            let ends: Vec<u64> = runs.collect();
            let head = Seq(*ends.last().unwrap());
            let is_gone = |seq: u64| ends.iter().take_while(|end| **end < seq).count() % 2 == 0;
            let wanted = if limit == 0 { 1_000 } else { u64::from(limit.min(1_000)) };
            let mut session = session(false);
            session.fetch(9, Seq(after), limit, Seq(1)).unwrap();
            let (mut pushed, mut fetched, mut under_way) = (10, after, Vec::new());
            let mut acks = acks.into_iter().chain(std::iter::repeat(u64::MAX));
            loop {
                let Some(next) = session.next(head) else {
                    let before = session.acknowledged();
                    if before == head { break; }
                    let ack = acks.next().unwrap().max(before.0 + 1);
                    session.acknowledge(Seq(ack));
                    under_way.retain(|upto| *upto > session.acknowledged().0);
                    continue;
                };
                let (seq, at) = match next {
                    Next::Push(seq) => (seq, &mut pushed),
                    Next::Fetched(seq, 9) => {
                        prop_assert!(seq.0 <= after + wanted, "more than were asked for");
                        (seq, &mut fetched)
                    }
                    Next::FetchEnd { tag: 9, last, more } => {
                        prop_assert_eq!((last.0, more), (fetched, fetched < head.0));
                        let whole = fetched >= after + wanted || fetched >= head.0;
                        prop_assert!(whole, "fewer than were asked for");
                        session.went(next, 0);
                        continue;
                    }
                    other => return Err(TestCaseError::fail(format!("{other:?}"))),
                };
                prop_assert_eq!(seq.0, *at + 1);
                let last = match is_gone(seq.0) {
                    true => (seq.0..=head.0).take_while(|seq| is_gone(*seq)).last().unwrap(),
                    false => seq.0,
                };
                match is_gone(seq.0) {
                    true => session.skipped(next, Seq(last)),
                    false => session.went(next, 1),
                }
                *at = last;
                if matches!(next, Next::Push(_)) {
                    under_way.push(last);
                    prop_assert!(under_way.len() <= WINDOW_ENTRIES_MAX as usize);
                }
            }
            prop_assert_eq!(pushed, head.0, "all were pushed");
        }
    }

    #[test]
    fn a_session_that_only_sends_is_pushed_nothing() {
        assert_eq!(session(true).next(Seq(100)), None);
    }

    #[test]
    fn sends_are_read_up_to_the_limit_and_again_after_an_answer() {
        let mut session = session(false);
        for _ in 0..SENDS_IN_FLIGHT_MAX {
            assert!(session.may_send());
            session.send_began();
        }
        assert!(!session.may_send());
        session.send_ended();
        assert!(session.may_send());
    }
}
