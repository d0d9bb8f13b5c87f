//! Revokes tokens: makes the list durable first, then gives it to every core, one revocation at a time.
//!
//! At most one list waits with each core, so that its control channel always has room for the order to
//! drain. A core that has not taken the one before is given the newest when it has; who revokes is told
//! which cores that are, and that the revocation is durable all the same.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::audit::{Event, short};
use crate::auth::{Revocations, Revoke, RevokeError};
use crate::runtime::audit::{Counts, Queue};
use crate::runtime::clock::Clock;
use crate::runtime::reactor::Control;
use crate::runtime::revocation::RevocationFile;

/// How long the cores may take to throw out whom a revocation hits. Healthy ones do within a tick of 50
/// ms and some turns.
pub const REVOKE_MAX: Duration = Duration::from_secs(1);
/// How often the cores are looked at while some have not taken a list.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The same, when nobody waits for it.
const LOOK_SELDOM: Duration = Duration::from_millis(50);

/// What came of a revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Of a user: tokens issued before this second are revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_s: Option<u64>,
    /// Revocations that are held now.
    pub held: usize,
    /// Cores that have not yet thrown out whom it hits.
    pub silent: Vec<usize>,
}

/// Why nothing was revoked, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub(super) enum RevokeFailure {
    /// It is not taken.
    #[error(transparent)]
    Refused(#[from] RevokeError),
    /// The file could not be written.
    #[error(
        "the list of revoked tokens cannot be written ({0}); it is not revoked now. Free space or mend \
         the disk, and revoke again"
    )]
    NotDurable(std::io::Error),
}

/// A wish to revoke.
pub(super) struct Wish {
    pub revoke: Wanted,
    pub answer: oneshot::Sender<Result<Revoked, RevokeFailure>>,
}

/// What somebody wants revoked; without an instant it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    User {
        user: iris_proto::id::UserId,
        before_s: Option<u64>,
    },
    Token {
        jti: String,
    },
}

impl Wanted {
    /// Now is the end of this second: what was issued in it counts as issued before.
    fn at(self, now_s: u64) -> Revoke {
        match self {
            Self::User { user, before_s } => Revoke::User {
                user,
                before_s: before_s.unwrap_or(now_s + 1),
            },
            Self::Token { jti } => Revoke::Token { jti },
        }
    }
}

/// The way to one core.
pub struct RevokeLine {
    control: Sender<Control>,
    ring: Box<dyn Fn() + Send>,
    /// A list that was sent and is not taken yet.
    taken: Option<Receiver<()>>,
    /// The newest list that was sent, by its number.
    sent: u64,
}

impl RevokeLine {
    /// A core's control channel, and what wakes the core.
    pub fn new(control: Sender<Control>, ring: impl Fn() + Send + 'static) -> Self {
        Self {
            control,
            ring: Box::new(ring),
            taken: None,
            sent: 0,
        }
    }

    /// Gives the core this list, once it has taken the one before. True: it has taken this one, or has
    /// ended.
    fn push(&mut self, number: u64, list: &Arc<Revocations>) -> bool {
        if let Some(taken) = &self.taken {
            match taken.try_recv() {
                Err(TryRecvError::Empty) => return false,
                Ok(()) | Err(TryRecvError::Disconnected) => self.taken = None,
            }
        }
        if self.sent == number {
            return true;
        }
        let (sender, taken) = bounded(1);
        let list = Arc::clone(list);
        let order = Control::Revoke {
            list,
            taken: sender,
        };
        match self.control.try_send(order) {
            Ok(()) => {
                self.taken = Some(taken);
                self.sent = number;
                (self.ring)();
                false
            }
            Err(TrySendError::Full(_)) => false,
            Err(TrySendError::Disconnected(_)) => true,
        }
    }
}

/// The list, its file, and the ways to the cores.
pub struct Revoker {
    lines: Vec<RevokeLine>,
    file: RevocationFile,
    list: Arc<Revocations>,
    /// Counts the lists of this process; the one that the cores started with is 0.
    number: u64,
    audit: Queue,
}

impl Revoker {
    /// `list` is what the file says and the cores have; `lines` are in the order of their numbers.
    pub fn new(
        file: RevocationFile,
        list: Arc<Revocations>,
        lines: Vec<RevokeLine>,
        audit: Queue,
    ) -> Self {
        Self {
            audit,
            lines,
            file,
            list,
            number: 0,
        }
    }

    /// What the audit log has taken and lost.
    pub(super) fn audit_counts(&self) -> Arc<Counts> {
        self.audit.counts()
    }

    /// Serves who revokes until nobody can any more.
    pub(super) async fn run(mut self, mut wishes: mpsc::Receiver<Wish>) {
        loop {
            let is_behind = !self.push().is_empty();
            let wish = if is_behind {
                match tokio::time::timeout(LOOK_SELDOM, wishes.recv()).await {
                    Ok(wish) => wish,
                    Err(_) => continue,
                }
            } else {
                wishes.recv().await
            };
            let Some(Wish { revoke, answer }) = wish else {
                return;
            };
            let now_s = Clock::read().unix_s();
            let revoke = revoke.at(now_s);
            let outcome = self.revoke(&revoke, now_s).await;
            self.audit(revoke, outcome.as_ref().err());
            let _ = answer.send(outcome); // who asked may have left; it holds all the same
        }
    }

    async fn revoke(&mut self, revoke: &Revoke, now_s: u64) -> Result<Revoked, RevokeFailure> {
        let list = Arc::new(self.list.with(revoke, now_s)?);
        let (file, written) = (self.file.clone(), Arc::clone(&list));
        let write = tokio::task::spawn_blocking(move || file.write(&written));
        let write = write.await.unwrap_or_else(|error| Err(error.into()));
        write.map_err(RevokeFailure::NotDurable)?;
        self.list = list;
        self.number += 1;
        let deadline = Instant::now() + REVOKE_MAX;
        let silent = loop {
            let silent = self.push();
            if silent.is_empty() || Instant::now() >= deadline {
                break silent;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        if !silent.is_empty() {
            tracing::warn!(cores = ?silent, "a revocation is durable, and these cores are busy and will act on it when they go on");
        }
        let before_s = match revoke {
            Revoke::User { before_s, .. } => Some(*before_s),
            Revoke::Token { .. } => None,
        };
        let held = self.list.len();
        Ok(Revoked {
            before_s,
            held,
            silent,
        })
    }

    fn audit(&mut self, revoke: Revoke, failure: Option<&RevokeFailure>) {
        let outcome = failure.map_or_else(|| "done".to_owned(), |why| short(&why.to_string()));
        let (user, before_s, jti) = match revoke {
            Revoke::User { user, before_s } => {
                (Some(user.as_str().to_owned()), Some(before_s), None)
            }
            Revoke::Token { jti } => (None, None, Some(short(&jti))),
        };
        let event = Event::Revoke {
            user,
            before_s,
            jti,
            outcome,
        };
        self.audit.put(Clock::read().unix_ms, event);
    }

    /// Gives the newest list to every core that has room for it; those that have not taken it.
    fn push(&mut self) -> Vec<usize> {
        let (number, list) = (self.number, &self.list);
        let lines = self.lines.iter_mut().enumerate();
        lines
            .filter_map(|(core, line)| (!line.push(number, list)).then_some(core))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::admin::testing::block_on;
    use crate::runtime::audit::Audit;

    fn token(jti: &str) -> Revoke {
        let jti = jti.to_owned();
        Revoke::Token { jti }
    }

    fn list_of(order: Control) -> (Arc<Revocations>, Sender<()>) {
        match order {
            Control::Revoke { list, taken } => (list, taken),
            other => panic!("{other:?}"),
        }
    }

    /// A line whose core takes every list on the spot, when its bell is rung.
    fn quick() -> RevokeLine {
        let (control, orders) = bounded(4);
        RevokeLine::new(control, move || {
            while let Ok(order) = orders.try_recv() {
                list_of(order).1.try_send(()).unwrap();
            }
        })
    }

    /// R: A-3
    #[test]
    fn a_silent_core_is_named_keeps_room_for_orders_and_gets_the_newest_list_when_it_goes_on() {
        let data = tempfile::tempdir().unwrap();
        let (file, list) = RevocationFile::open(data.path(), false).unwrap();
        let (control, orders) = bounded(4);
        let lines = vec![quick(), RevokeLine::new(control, || ())];
        let (_audit, mut queues) = Audit::start(data.path(), 1).unwrap();
        let mut revoker = Revoker::new(file, Arc::new(list), lines, queues.remove(0));
        let outcome = block_on(revoker.revoke(&token("one"), 1_000)).unwrap();
        assert_eq!((outcome.held, outcome.silent), (1, vec![1]));
        let outcome = block_on(revoker.revoke(&token("two"), 1_000)).unwrap();
        assert_eq!((outcome.held, outcome.silent), (2, vec![1]));
        assert_eq!(orders.len(), 1, "one list waits, not two");
        let (list, taken) = list_of(orders.try_recv().unwrap());
        assert_eq!(list.len(), 1);
        taken.try_send(()).unwrap();
        assert_eq!(revoker.push(), [1], "it has not taken the second one yet");
        let (list, taken) = list_of(orders.try_recv().unwrap());
        assert_eq!(list.len(), 2);
        taken.try_send(()).unwrap();
        assert_eq!(revoker.push(), [0; 0]);
        let kept = RevocationFile::open(data.path(), true).unwrap().1;
        assert_eq!(kept.len(), 2, "durable, whatever the core did");
    }

    /// R: A-3
    #[test]
    fn a_core_that_has_ended_holds_up_nobody() {
        let data = tempfile::tempdir().unwrap();
        let (file, list) = RevocationFile::open(data.path(), false).unwrap();
        let (control, orders) = bounded(4);
        let lines = vec![RevokeLine::new(control, || ())];
        let (_audit, mut queues) = Audit::start(data.path(), 1).unwrap();
        let mut revoker = Revoker::new(file, Arc::new(list), lines, queues.remove(0));
        drop(orders);
        let outcome = block_on(revoker.revoke(&token("one"), 1_000)).unwrap();
        assert_eq!(outcome.silent, [0; 0]);
    }
}
