//! Gathers the histograms of all cores.
//!
//! As with reports at most one question waits with each core, and answers are looked for instead of being
//! waited for. A core is given the memory that it fills, so it asks for none. What a core hands over in a
//! reset is lost to the core: when its answer comes too late for who asked, it is kept for the next one.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::measure::Histograms;
use crate::runtime::reactor::Control;

/// How often answers are looked for while some are missing.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What came from the cores, at their numbers; `None` from one that said nothing in time.
pub(super) type Gathered = Vec<Option<Box<Histograms>>>;

/// Somebody who wants the histograms.
pub(super) struct Gather {
    /// Whether they begin anew.
    pub reset: bool,
    pub answer: oneshot::Sender<Gathered>,
}

/// A question that was not answered yet.
struct Asked {
    reply: Receiver<Box<Histograms>>,
    reset: bool,
}

/// The way to one core.
pub struct HistogramLine {
    control: Sender<Control>,
    ring: Box<dyn Fn() + Send>,
    asked: Option<Asked>,
    /// Handed over too late, in a reset.
    kept: Option<Box<Histograms>>,
}

impl HistogramLine {
    /// A core's control channel, and what wakes the core.
    pub fn new(control: Sender<Control>, ring: impl Fn() + Send + 'static) -> Self {
        Self {
            control,
            ring: Box::new(ring),
            asked: None,
            kept: None,
        }
    }

    fn ask(&mut self, reset: bool) {
        let late = self.asked.as_ref().is_some_and(|asked| asked.reset);
        if let Some(histograms) = self.look(late)
            && late
        {
            self.kept = Some(histograms);
        }
        if self.asked.is_some() {
            return; // the answer to that question comes first
        }
        let (reply, answer) = bounded(1);
        let order = Control::Histograms {
            empty: Box::new(Histograms::new(0)),
            reset,
            reply,
        };
        match self.control.try_send(order) {
            Ok(()) => {
                let reply = answer;
                self.asked = Some(Asked { reply, reset });
                (self.ring)();
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// The answer to a question of this kind, with what was kept before it.
    fn look(&mut self, reset: bool) -> Option<Box<Histograms>> {
        let asked = self.asked.as_ref().filter(|asked| asked.reset == reset)?;
        match asked.reply.try_recv() {
            Ok(mut histograms) => {
                self.asked = None;
                if let Some(kept) = &self.kept {
                    histograms.add(kept);
                }
                if reset {
                    self.kept = None;
                }
                Some(histograms)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.asked = None;
                None
            }
        }
    }
}

/// Asks all cores, for one at a time.
pub(super) struct Gatherer {
    lines: Vec<HistogramLine>,
    patience: Duration,
}

impl Gatherer {
    /// `lines` in the order of the cores' numbers.
    pub fn new(lines: Vec<HistogramLine>, patience: Duration) -> Self {
        Self { lines, patience }
    }

    /// Serves who asks until nobody can any more.
    pub async fn run(mut self, mut asked: mpsc::Receiver<Gather>) {
        while let Some(Gather { reset, answer }) = asked.recv().await {
            let gathered = self.round(reset).await;
            if let Err(gathered) = answer.send(gathered)
                && reset
            {
                self.keep(gathered);
            }
        }
    }

    async fn round(&mut self, reset: bool) -> Gathered {
        let deadline = Instant::now() + self.patience;
        self.lines.iter_mut().for_each(|line| line.ask(reset));
        let mut gathered: Gathered = self.lines.iter().map(|_| None).collect();
        loop {
            for (line, place) in self.lines.iter_mut().zip(&mut gathered) {
                if place.is_none() {
                    *place = line.look(reset);
                }
            }
            let waits = |line: &HistogramLine| {
                line.asked
                    .as_ref()
                    .is_some_and(|asked| asked.reset == reset)
            };
            let is_whole = !self.lines.iter().any(waits);
            if is_whole || Instant::now() >= deadline {
                return gathered;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Who asked has left: it is for the next one.
    fn keep(&mut self, gathered: Gathered) {
        for (line, histograms) in self.lines.iter_mut().zip(gathered) {
            line.kept = histograms.or_else(|| line.kept.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Stage;
    use crate::runtime::admin::testing::block_on;

    const SHORT: Duration = Duration::from_millis(20);

    /// A core's answer: `count` syncs.
    fn answer(orders: &Receiver<Control>, count: u64) {
        let Ok(Control::Histograms {
            mut empty, reply, ..
        }) = orders.try_recv()
        else {
            panic!("a question")
        };
        empty.record_n(Stage::Sync, 1_000, count);
        reply.try_send(empty).unwrap();
    }

    fn syncs(gathered: &Gathered) -> Vec<Option<u64>> {
        let count = |histograms: &Histograms| histograms.of(Stage::Sync).len();
        gathered
            .iter()
            .map(|one| one.as_deref().map(count))
            .collect()
    }

    /// R: E-1
    #[test]
    fn what_a_silent_core_hands_over_too_late_is_kept_for_the_next_who_asks() {
        let (control, orders) = bounded(4);
        let line = HistogramLine::new(control, || ());
        let mut gatherer = Gatherer::new(vec![line], SHORT);
        for _ in 0..3 {
            assert_eq!(syncs(&block_on(gatherer.round(true))), [None]);
        }
        assert_eq!(orders.len(), 1, "one question waits, not three");
        answer(&orders, 5);
        let quick = orders.clone();
        gatherer.lines[0].ring = Box::new(move || answer(&quick, 2));
        assert_eq!(syncs(&block_on(gatherer.round(false))), [Some(7)]);
        assert_eq!(syncs(&block_on(gatherer.round(true))), [Some(7)]);
        assert_eq!(syncs(&block_on(gatherer.round(true))), [Some(2)]);
    }

    #[test]
    fn a_late_copy_is_forgotten_and_a_core_that_has_ended_is_not_waited_for() {
        let (control, orders) = bounded(4);
        let mut gatherer = Gatherer::new(vec![HistogramLine::new(control, || ())], SHORT);
        assert_eq!(syncs(&block_on(gatherer.round(false))), [None]);
        answer(&orders, 5);
        let quick = orders.clone();
        gatherer.lines[0].ring = Box::new(move || answer(&quick, 6));
        assert_eq!(syncs(&block_on(gatherer.round(false))), [Some(6)]);
        gatherer.lines[0].ring = Box::new(|| ());
        drop(orders);
        gatherer.patience = Duration::from_secs(60);
        let began = Instant::now();
        // The line's own clone of the orders goes with its bell.
        assert_eq!(syncs(&block_on(gatherer.round(false))), [None]);
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_reset_whose_asker_has_left_is_not_lost() {
        let (control, orders) = bounded(4);
        let quick = orders.clone();
        let line = HistogramLine::new(control, move || answer(&quick, 3));
        let (asks, asked) = mpsc::channel(4);
        let (gone, _) = oneshot::channel();
        let (here, answered) = oneshot::channel();
        for answer in [gone, here] {
            let gather = Gather {
                reset: true,
                answer,
            };
            assert!(asks.try_send(gather).is_ok());
        }
        drop(asks);
        block_on(Gatherer::new(vec![line], SHORT).run(asked));
        assert_eq!(syncs(&block_on(answered).unwrap()), [Some(6)]);
        drop(orders);
    }
}
