//! Tells the supervisor that the switch lives, for as long as all of its cores answer.

use tokio::sync::{mpsc, oneshot};

use super::asker::Ask;
use super::readiness::not_healthy;
use crate::runtime::notify::Notify;

/// Pings for ever; returns when nobody can be asked any more.
pub(super) async fn run(notify: Option<Notify>, asks: mpsc::Sender<Ask>) {
    let wanted = notify.and_then(|notify| Some((notify.every()?, notify)));
    let Some((every, notify)) = wanted else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (ask, answers) = oneshot::channel();
        if asks.send(ask).await.is_err() {
            return;
        }
        let Ok(answers) = answers.await else {
            return;
        };
        let silent = not_healthy(&answers);
        if silent.is_empty() {
            notify.alive();
        } else {
            tracing::warn!(
                reasons = silent.join("; "),
                "the supervisor's watchdog is not told that the switch lives"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::asker::Answer;
    use super::super::readiness::tests::healthy;
    use super::*;
    use crate::runtime::notify::tests::{heard, supervisor};

    /// R: E-5
    #[test]
    fn a_silent_core_keeps_the_watchdog_from_being_told_and_one_that_speaks_again_does_not() {
        let (_directory, socket, notify) = supervisor(Duration::from_millis(2));
        let fine = || Answer::Report(healthy(0));
        let rounds = [
            vec![fine(), fine()],
            vec![fine(), Answer::Silent],
            vec![Answer::Ended, fine()],
            vec![fine(), fine()],
        ];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (asks, mut asked) = mpsc::channel::<Ask>(1);
            let answering = async {
                for round in rounds {
                    let _ = asked.recv().await.unwrap().send(Arc::new(round));
                }
                let _ = asked.recv().await; // all four were judged
                drop(asked);
            };
            tokio::join!(run(Some(notify), asks), answering);
        });
        socket.set_nonblocking(true).unwrap();
        assert_eq!(
            (heard(&socket), heard(&socket)),
            ("WATCHDOG=1\n".into(), "WATCHDOG=1\n".into())
        );
        let mut more = [0; 16];
        assert!(
            socket.recv(&mut more).is_err(),
            "it was told more than twice"
        );
    }
}
