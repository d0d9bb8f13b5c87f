//! Asks every core how it is, and waits no longer than it must.
//!
//! At most one question waits with each core, however many people ask and however long the core is
//! silent: a core that did not answer is not asked again before it has, and its late answer is as good
//! as a new one. So its control channel always has room for the order to drain.
//!
//! The answers are looked for every [`LOOK_EVERY`] instead of being waited for. A sleeping receiver
//! would have to be woken by the core, through a lock and a system call; this way a core's part is one
//! `try_send` into an empty channel.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::runtime::reactor::Control;
use crate::runtime::report::CoreReport;

/// How long a core may take to answer. A healthy one does within its tick of 50 ms.
pub const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How often answers are looked for while some are missing.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What came from one core; it stands at the core's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// How it is.
    Report(Box<CoreReport>),
    /// Nothing within [`ANSWER_MAX`].
    Silent,
    /// It has ended.
    Ended,
}

/// Somebody who wants to know.
pub(super) type Ask = oneshot::Sender<Arc<Vec<Answer>>>;

/// The way to one core.
pub struct Line {
    control: Sender<Control>,
    ring: Box<dyn Fn() + Send>,
    /// A question that has not been answered yet.
    reply: Option<Receiver<CoreReport>>,
}

impl Line {
    /// A core's control channel, and what wakes the core.
    pub fn new(control: Sender<Control>, ring: impl Fn() + Send + 'static) -> Self {
        Self {
            control,
            ring: Box::new(ring),
            reply: None,
        }
    }

    /// Asks, unless a question waits there already. What is known at once is returned.
    fn ask(&mut self) -> Option<Answer> {
        match self.look() {
            None if self.reply.is_some() => return None, // it will be new when it comes
            Some(Answer::Ended) => return Some(Answer::Ended),
            _ => {} // an answer from before is forgotten
        }
        let (answer, reply) = bounded(1);
        match self.control.try_send(Control::Report(answer)) {
            Ok(()) => {
                self.reply = Some(reply);
                (self.ring)();
                None
            }
            Err(TrySendError::Full(_)) => Some(Answer::Silent),
            Err(TrySendError::Disconnected(_)) => Some(Answer::Ended),
        }
    }

    fn look(&mut self) -> Option<Answer> {
        let answer = match self.reply.as_ref()?.try_recv() {
            Ok(report) => Answer::Report(Box::new(report)),
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Answer::Ended,
        };
        self.reply = None;
        Some(answer)
    }
}

/// Asks all cores, for one round of people at a time.
pub(super) struct Asker {
    lines: Vec<Line>,
    patience: Duration,
}

impl Asker {
    /// `lines` in the order of the cores' numbers.
    pub fn new(lines: Vec<Line>, patience: Duration) -> Self {
        Self { lines, patience }
    }

    /// Serves who asks until nobody can any more. Who comes during a round waits for the next.
    pub async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        while let Some(first) = asked.recv().await {
            let mut waiting = vec![first];
            while let Ok(further) = asked.try_recv() {
                waiting.push(further); // at most what the channel holds
            }
            let answers = Arc::new(self.round().await);
            for ask in waiting {
                let _ = ask.send(Arc::clone(&answers)); // it may have left
            }
        }
    }

    /// What each core says, or that it says nothing.
    async fn round(&mut self) -> Vec<Answer> {
        let deadline = Instant::now() + self.patience;
        let mut answers: Vec<Option<Answer>> = self.lines.iter_mut().map(Line::ask).collect();
        loop {
            for (line, answer) in self.lines.iter_mut().zip(&mut answers) {
                if answer.is_none() {
                    *answer = line.look();
                }
            }
            if answers.iter().all(Option::is_some) || Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let silent = |answer: Option<Answer>| answer.unwrap_or(Answer::Silent);
        answers.into_iter().map(silent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::admin::testing::block_on;

    const SHORT: Duration = Duration::from_millis(20);

    /// A line whose core answers on the spot, when its bell is rung.
    fn quick(core: u16) -> Line {
        let (control, orders) = bounded(4);
        Line::new(control, move || {
            while let Ok(Control::Report(reply)) = orders.try_recv() {
                let report = CoreReport {
                    core,
                    ..CoreReport::default()
                };
                reply.try_send(report).unwrap();
            }
        })
    }

    fn report_of(answer: &Answer) -> u16 {
        let Answer::Report(report) = answer else {
            panic!("no report: {answer:?}")
        };
        report.core
    }

    #[test]
    fn each_core_is_asked_and_answers_stand_in_their_order() {
        let mut asker = Asker::new(vec![quick(0), quick(1)], ANSWER_MAX);
        for _ in 0..3 {
            let answers = block_on(asker.round());
            assert_eq!(answers.iter().map(report_of).collect::<Vec<_>>(), [0, 1]);
        }
    }

    #[test]
    fn a_silent_core_is_named_keeps_room_for_orders_and_is_heard_when_it_speaks_again() {
        let (control, orders) = bounded(4);
        let mut asker = Asker::new(vec![quick(0), Line::new(control.clone(), || ())], SHORT);
        for _ in 0..10 {
            let answers = block_on(asker.round());
            assert_eq!(report_of(&answers[0]), 0);
            assert_eq!(answers[1], Answer::Silent);
        }
        assert_eq!(orders.len(), 1, "one question waits, not ten");
        let Ok(Control::Report(reply)) = orders.try_recv() else {
            panic!("a question")
        };
        reply.try_send(CoreReport::default()).unwrap();
        // That answer is of before; the next question gets its own.
        assert_eq!(block_on(asker.round())[1], Answer::Silent);
        assert_eq!(orders.len(), 1);
    }

    #[test]
    fn a_core_that_has_ended_is_known_at_once() {
        let (control, orders) = bounded(4);
        let mut asker = Asker::new(vec![Line::new(control, || ())], SHORT);
        assert_eq!(block_on(asker.round()), [Answer::Silent]);
        drop(orders.try_iter().last()); // as `Core::run` does at its end
        drop(orders);
        assert_eq!(block_on(asker.round()), [Answer::Ended]);
        assert_eq!(block_on(asker.round()), [Answer::Ended]);
    }

    #[test]
    fn people_who_ask_together_share_one_round() {
        let (control, orders) = bounded(4);
        let rung = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = rung.clone();
        let line = Line::new(control, move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            while let Ok(Control::Report(reply)) = orders.try_recv() {
                reply.try_send(CoreReport::default()).unwrap();
            }
        });
        let (asks, asked) = mpsc::channel(8);
        let answers: Vec<_> = (0..8)
            .map(|_| {
                let (ask, answer) = oneshot::channel();
                asks.try_send(ask).unwrap();
                answer
            })
            .collect();
        drop(asks);
        block_on(Asker::new(vec![line], ANSWER_MAX).run(asked));
        for answer in answers {
            assert_eq!(report_of(&block_on(answer).unwrap()[0]), 0);
        }
        assert_eq!(rung.load(std::sync::atomic::Ordering::SeqCst), 1);
    }
}
