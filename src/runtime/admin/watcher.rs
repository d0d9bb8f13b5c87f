//! Watches users: tells the cores whom, and hands what they note to whoever asked.
//!
//! ```text
//!   begin ─▶ watch list ─▶ every core                       (each core answers with what it has noted)
//!   next  ─▶ the same list again ─▶ steps ─▶ each watch's own queue ─▶ the answer
//! ```
//!
//! Who watches comes back for more until its time is over. Who does not come back costs its bounded queue
//! until then; the cores end the watch by themselves. As with reports at most one question waits with each
//! core, and an answer that comes too late is there for the next one.

use std::collections::VecDeque;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use iris_proto::id::UserId;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::runtime::reactor::Control;
use crate::runtime::trace::{Noted, Step, WATCH_MAX, WATCHED_MAX, Watch};

/// How often answers are looked for while some are missing.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Steps that wait for one who watches. More are counted and lost.
pub const STEPS_KEPT_MAX: usize = 16_384;
/// So long after its end a watch can still be asked for the rest.
const REST: Duration = Duration::from_secs(5);

/// What somebody wants.
pub(super) struct Wish {
    pub what: Wanted,
    pub answer: oneshot::Sender<Result<Traced, String>>,
}

/// Of a watch: that it begins, or what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Begin { user: UserId, time: Duration },
    Next { watch: u64 },
}

/// What a watch saw since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// Its number, to be given back.
    pub watch: u64,
    /// The steps, in the order of the clock.
    pub steps: Vec<Step>,
    /// Steps that were too many to be noted.
    pub dropped: u64,
    /// Its time is over, and this is the rest.
    pub over: bool,
}

/// The way to one core.
pub struct WatchLine {
    control: Sender<Control>,
    ring: Box<dyn Fn() + Send>,
    reply: Option<Receiver<Noted>>,
}

impl WatchLine {
    /// A core's control channel, and what wakes the core.
    pub fn new(control: Sender<Control>, ring: impl Fn() + Send + 'static) -> Self {
        Self {
            control,
            ring: Box::new(ring),
            reply: None,
        }
    }

    /// What came of an earlier question; then asks again.
    fn ask(&mut self, watches: &[Watch]) -> Option<Noted> {
        let late = self.look();
        if self.reply.is_some() {
            return late; // it has not taken the list before
        }
        let (reply, answer) = bounded(1);
        let watches = watches.to_vec();
        if let Ok(()) = self.control.try_send(Control::Trace { watches, reply }) {
            self.reply = Some(answer);
            (self.ring)();
        }
        late
    }

    fn look(&mut self) -> Option<Noted> {
        match self.reply.as_ref()?.try_recv() {
            Ok(noted) => {
                self.reply = None;
                Some(noted)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.reply = None;
                None
            }
        }
    }
}

/// One who watches.
struct Session {
    number: u64,
    watch: Watch,
    steps: VecDeque<Step>,
    dropped: u64,
}

impl Session {
    fn take(&mut self, step: &Step) {
        let user = self.watch.user.as_str();
        if step.from != user && step.to != user {
            return;
        }
        if self.steps.len() >= STEPS_KEPT_MAX {
            self.dropped += 1;
        } else {
            self.steps.push_back(step.clone());
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.watch.until <= now.into_std()
    }
}

/// All who watch.
pub(super) struct Watcher {
    lines: Vec<WatchLine>,
    patience: Duration,
    sessions: Vec<Session>,
    next: u64,
}

impl Watcher {
    /// `lines` in the order of the cores' numbers.
    pub fn new(lines: Vec<WatchLine>, patience: Duration) -> Self {
        Self {
            lines,
            patience,
            sessions: Vec::new(),
            next: 1,
        }
    }

    /// Serves who asks until nobody can any more.
    pub async fn run(mut self, mut wishes: mpsc::Receiver<Wish>) {
        while let Some(Wish { what, answer }) = wishes.recv().await {
            let traced = match what {
                Wanted::Begin { user, time } => self.begin(user, time).await,
                Wanted::Next { watch } => self.next(watch).await,
            };
            let _ = answer.send(traced); // who asked may have left
        }
    }

    async fn begin(&mut self, user: UserId, time: Duration) -> Result<Traced, String> {
        let now = Instant::now();
        self.sessions
            .retain(|session| !session.is_over(now.checked_sub(REST).unwrap_or(now)));
        let watched = self.sessions.iter().filter(|session| !session.is_over(now));
        if watched.count() >= WATCHED_MAX {
            return Err(format!(
                "{WATCHED_MAX} users are watched already; try again when one of these traces has ended"
            ));
        }
        if time.is_zero() || time > WATCH_MAX {
            let most = WATCH_MAX.as_secs();
            return Err(format!(
                "a trace lasts from a millisecond to {most} seconds"
            ));
        }
        let number = self.next;
        self.next += 1;
        let until = (now + time).into_std();
        self.sessions.push(Session {
            number,
            watch: Watch { user, until },
            steps: VecDeque::new(),
            dropped: 0,
        });
        self.round().await;
        Ok(Traced {
            watch: number,
            ..Traced::default()
        })
    }

    async fn next(&mut self, number: u64) -> Result<Traced, String> {
        let is_over = Instant::now();
        self.round().await;
        let place = self.sessions.iter().position(|one| one.number == number);
        let Some(place) = place else {
            return Err(format!(
                "there is no trace {number}, or no more; begin a new one"
            ));
        };
        let session = &mut self.sessions[place];
        let traced = Traced {
            watch: number,
            steps: session.steps.drain(..).collect(),
            dropped: std::mem::take(&mut session.dropped),
            over: session.is_over(is_over), // at the last question, all of it was asked for
        };
        if traced.over {
            self.sessions.remove(place);
        }
        Ok(traced)
    }

    /// Tells the cores whom to watch, and takes what they have noted.
    async fn round(&mut self) {
        let now = Instant::now();
        let watched = self.sessions.iter().filter(|session| !session.is_over(now));
        let watches: Vec<Watch> = watched.map(|session| session.watch.clone()).collect();
        let deadline = now + self.patience;
        let mut noted: Vec<Noted> = self
            .lines
            .iter_mut()
            .filter_map(|line| line.ask(&watches))
            .collect();
        loop {
            noted.extend(self.lines.iter_mut().filter_map(WatchLine::look));
            let is_whole = self.lines.iter().all(|line| line.reply.is_none());
            if is_whole || Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let dropped: u64 = noted.iter().map(|one| one.dropped).sum();
        let mut steps: Vec<Step> = noted.into_iter().flat_map(|one| one.steps).collect();
        steps.sort_by_key(|step| (step.clock_ns, step.what));
        for session in &mut self.sessions {
            steps.iter().for_each(|step| session.take(step));
            session.dropped += dropped; // of whom, nobody knows
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::admin::testing::block_on;
    use crate::runtime::trace::What;

    const SHORT: Duration = Duration::from_millis(20);

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn step(from: &str, to: &str, clock_ns: u64) -> Step {
        Step {
            trace: "t".to_owned(),
            what: What::Received,
            at_us: 0,
            clock_ns,
            since_us: None,
            core: 0,
            from: from.to_owned(),
            to: to.to_owned(),
            n: 1,
            seq: None,
            device: None,
        }
    }

    /// A core that notes one step of ann's to ben at each question, and how many users it watches.
    fn line(clock_ns: u64) -> WatchLine {
        let (control, orders) = bounded(4);
        WatchLine::new(control, move || {
            while let Ok(Control::Trace { watches, reply }) = orders.try_recv() {
                let noted = Noted {
                    steps: vec![step("ann", "ben", clock_ns)],
                    dropped: watches.len() as u64,
                };
                reply.try_send(noted).unwrap();
            }
        })
    }

    /// R: E-2
    #[test]
    fn who_watches_a_user_gets_the_steps_of_its_messages_in_the_order_of_the_clock() {
        let mut watcher = Watcher::new(vec![line(20), line(10)], SHORT);
        let minute = Duration::from_secs(60);
        let of_ben = block_on(watcher.begin(user("ben"), minute)).unwrap();
        let of_cat = block_on(watcher.begin(user("cat"), minute)).unwrap();
        let seen = block_on(watcher.next(of_ben.watch)).unwrap();
        let clocks: Vec<u64> = seen.steps.iter().map(|step| step.clock_ns).collect();
        assert_eq!(clocks, [10, 20, 10, 20, 10, 20], "of three rounds");
        assert_eq!(seen.dropped, 2 + 4 + 4);
        assert!(!seen.over);
        assert!(
            block_on(watcher.next(of_cat.watch))
                .unwrap()
                .steps
                .is_empty()
        );
        assert!(block_on(watcher.next(99)).unwrap_err().contains("99"));
    }

    /// R: E-2
    #[test]
    fn so_many_users_are_watched_for_so_long_and_no_more() {
        let mut watcher = Watcher::new(Vec::new(), SHORT);
        let long = WATCH_MAX + Duration::from_secs(1);
        assert!(block_on(watcher.begin(user("ann"), long)).is_err());
        assert!(block_on(watcher.begin(user("ann"), Duration::ZERO)).is_err());
        for _ in 0..WATCHED_MAX {
            block_on(watcher.begin(user("ann"), WATCH_MAX)).unwrap();
        }
        let refused = block_on(watcher.begin(user("ann"), WATCH_MAX)).unwrap_err();
        assert!(refused.contains("already"), "{refused}");
    }

    /// R: E-2
    #[test]
    fn a_watch_whose_time_is_over_says_so_with_the_rest_and_is_gone() {
        let mut watcher = Watcher::new(vec![line(1)], SHORT);
        let begun = block_on(watcher.begin(user("ann"), Duration::from_millis(1))).unwrap();
        let rest = block_on(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            watcher.next(begun.watch).await
        });
        let rest = rest.unwrap();
        assert!(rest.over && !rest.steps.is_empty(), "{rest:?}");
        assert!(block_on(watcher.next(begun.watch)).is_err());
    }

    #[test]
    fn steps_that_nobody_fetches_are_bounded_and_counted() {
        let mut session = Session {
            number: 1,
            watch: Watch {
                user: user("ann"),
                until: Instant::now().into_std(),
            },
            steps: VecDeque::new(),
            dropped: 0,
        };
        for clock_ns in 0..STEPS_KEPT_MAX as u64 + 3 {
            session.take(&step("ann", "ben", clock_ns));
        }
        session.take(&step("cat", "dan", 1));
        assert_eq!((session.steps.len(), session.dropped), (STEPS_KEPT_MAX, 3));
    }
}
