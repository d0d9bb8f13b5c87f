//! The course of one run: connect, warm up, measure, drain, compare.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iris_proto::limits::INBOX_ENTRIES_MAX;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::args::{RunArgs, address};
use crate::connection::Book;
use crate::engine::{Plan, Worker};
use crate::identity::Identity;
use crate::local::{self, Lock};
use crate::message::{Names, filler};
use crate::pattern::Pattern;
use crate::progress::Line;
use crate::report::{Outcome, Usage};
use crate::stats::{Counters, Ended, Latency, Shared, Snapshot};
use crate::verify::{Received, Sent, Violations, reconcile};

/// Where a switch listens that says nothing else.
const DEFAULT_ADDRESS: &str = "127.0.0.1:7447";
/// How often the coordinator looks, when it waits for something to come true.
pub const LOOK: Duration = Duration::from_millis(5);
/// How long to go on listening when everything has arrived: for what should not come.
const LINGER: Duration = Duration::from_millis(200);
/// Messages for each user who is away: so far below what an inbox holds that chance fills none.
const STORED_PER_INBOX: u64 = INBOX_ENTRIES_MAX * 9 / 10;
/// How long to wait for the last ones to be stored.
const STORED_MAX_NS: u64 = 5_000_000_000;

/// Runs the benchmark.
///
/// # Errors
/// A sentence for people, when there is no result at all.
pub fn run(args: &RunArgs) -> Result<Outcome, String> {
    args.pattern.check(args.connections, args.targets)?;
    let lock = Lock::read(&args.data);
    let address = target(args, &lock)?;
    let identity = Arc::new(Identity::load(&args.data, &args.server_name)?);
    let server = lock.pid.filter(|&pid| local::cpu_micros(pid).is_some());
    let mut team = Team::start(args, address, &identity)?;
    let result = team.course(args, server);
    let ended = team.end()?;
    let course = result?;
    Ok(conclude(args, address, team, ended, course))
}

/// As many runs as were asked for, one after the other.
///
/// # Errors
/// A sentence for people, when one has no result at all.
pub fn run_all(args: &RunArgs) -> Result<Vec<Outcome>, String> {
    (0..args.runs).map(|_| run(args)).collect()
}

impl RunArgs {
    /// How many messages are stored at most for those who are away: no inbox is to be full.
    fn stored_max(&self) -> u64 {
        let away = self.connections - self.pattern.away_from(self.connections);
        match self.pattern {
            Pattern::Offline => u64::from(away) * STORED_PER_INBOX,
            _ => u64::MAX,
        }
    }
}

/// Where the switch is.
///
/// # Errors
/// A sentence for people.
pub fn target(args: &RunArgs, lock: &Lock) -> Result<SocketAddr, String> {
    let text = args
        .addr
        .as_deref()
        .or(lock.addr.as_deref())
        .unwrap_or(DEFAULT_ADDRESS);
    address(text)
}

/// What the coordinator found while the threads worked.
struct Course {
    connect_s: f64,
    measured_s: f64,
    drain_s: f64,
    drained: bool,
    /// What those who were away got when they were let in.
    caught_up: Option<CaughtUp>,
    failure: Option<String>,
    usage: Usage,
}

/// How those who were away were served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CaughtUp {
    /// Messages that waited for them.
    pub messages: u64,
    /// Seconds from the moment at which they might log in until all had all.
    pub took_s: f64,
}

/// The threads, and what they report to.
pub struct Team {
    run_id: u32,
    /// With the threads.
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<Ended, String>>>,
    /// What the threads measured, as they go.
    pub snapshots: Receiver<Snapshot>,
    /// Why a thread cannot go on.
    pub errors: Receiver<String>,
    accept: Latency,
    end_to_end: Latency,
}

impl Team {
    /// Begins to connect.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn start(
        args: &RunArgs,
        address: SocketAddr,
        identity: &Arc<Identity>,
    ) -> Result<Self, String> {
        let threads = args.threads.min(args.connections);
        let run_id = match args.run_id {
            Some(run_id) => run_id,
            None => random()? as u32,
        };
        let send_epoch = random()? | 1;
        let shared = Arc::new(Shared::new(threads as usize));
        let (snapshot_sender, snapshots) = unbounded();
        let (error_sender, errors) = bounded(16);
        let names = Names::new(run_id, args.connections);
        let mut team = Self {
            run_id,
            shared,
            threads: Vec::new(),
            snapshots,
            errors,
            accept: Latency::new(),
            end_to_end: Latency::new(),
        };
        for thread in 0..threads {
            let plan = Plan {
                thread,
                threads,
                address,
                rate: args.rate,
                burst: args.burst,
                pattern: args.pattern,
                targets: args.targets,
                in_flight: args.slots() as u16,
                reconnect: args.reconnect,
                seed: args.seed,
                send_epoch,
            };
            let core = args
                .cores
                .as_ref()
                .map(|list| list.0[thread as usize % list.0.len()]);
            let book = book(args, &names, threads);
            let senders = (snapshot_sender.clone(), error_sender.clone());
            let spawned = team.spawn(plan, core, Arc::clone(identity), book, senders)?;
            team.threads.push(spawned);
        }
        Ok(team)
    }

    fn spawn(
        &self,
        plan: Plan,
        core: Option<usize>,
        identity: Arc<Identity>,
        book: Book,
        (snapshots, errors): (Sender<Snapshot>, Sender<String>),
    ) -> Result<JoinHandle<Result<Ended, String>>, String> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name(format!("load-{}", plan.thread))
            .spawn(move || {
                let flag = Arc::clone(&shared);
                let made = core
                    .map_or(Ok(()), local::pin)
                    .and_then(|()| Worker::new(plan, identity, shared, book, snapshots, errors));
                match made {
                    Ok(worker) => Ok(worker.run()),
                    Err(text) => {
                        flag.failed.store(true, Ordering::Relaxed);
                        Err(text)
                    }
                }
            })
            .map_err(|error| format!("cannot start a thread: {error}"))
    }

    /// Everything up to the end of the drain.
    fn course(&mut self, args: &RunArgs, server: Option<u32>) -> Result<Course, String> {
        let connect_ns = self.connect(args)?;
        let cap = args.stored_max();
        let shared = Arc::clone(&self.shared);
        let load_from = shared.now_ns() + LOOK.as_nanos() as u64;
        let measure_from = load_from + nanos(args.warmup);
        let measure_until = measure_from + nanos(args.duration);
        shared.measure_from.store(measure_from, Ordering::Relaxed);
        shared.measure_until.store(measure_until, Ordering::Relaxed);
        shared.load_from.store(load_from, Ordering::Release);

        self.watch(args, load_from, measure_from, cap);
        let before = Usage::now(server);
        let began_ns = shared.now_ns();
        if args.pattern == Pattern::Mixed {
            self.watch(
                args,
                load_from,
                u64::midpoint(measure_from, measure_until),
                cap,
            );
            shared.let_in.store(true, Ordering::Relaxed);
        }
        self.watch(args, load_from, measure_until, cap);
        let usage = Usage::since(&before, server);
        let ended_ns = shared.now_ns();
        if !args.quiet {
            Line::end();
        }

        let stored = (args.pattern == Pattern::Offline).then(|| self.let_in());
        let drained_ns = (!self.has_failed()).then(|| self.drain(args)).flatten();
        let caught_up = stored
            .zip(drained_ns)
            .map(|((at, messages), until)| CaughtUp {
                messages,
                took_s: seconds(until - at),
            });
        Ok(Course {
            connect_s: seconds(connect_ns),
            measured_s: seconds(ended_ns - began_ns),
            drain_s: seconds(shared.now_ns() - ended_ns),
            drained: drained_ns.is_some(),
            caught_up,
            failure: self.errors.try_recv().ok(),
            usage,
        })
    }

    /// Whether a thread cannot go on.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Waits until all connections are logged in; how long it took.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn connect(&self, args: &RunArgs) -> Result<u64, String> {
        let wanted = u64::from(args.pattern.away_from(args.connections));
        let began = self.shared.now_ns();
        let limit = began + nanos(args.connect_timeout);
        loop {
            let ready = self.shared.sum(|thread| &thread.ready);
            let now = self.shared.now_ns();
            if ready >= wanted {
                if !args.quiet {
                    let took = seconds(now - began);
                    eprintln!("  {wanted} connections logged in after {took:.2} s");
                }
                return Ok(now - began);
            }
            if self.has_failed() {
                let text = self
                    .errors
                    .recv_timeout(LOOK)
                    .unwrap_or_else(|_| "failed".to_owned());
                return Err(text);
            }
            if now > limit {
                return Err(format!(
                    "{ready} of {wanted} connections logged in within {} s; give \
                     --connect-timeout more, or fewer --connections",
                    args.connect_timeout
                ));
            }
            pause(LOOK);
        }
    }

    /// Waits until what was sent is accepted, or refused for now, and lets those in who were away: when,
    /// and how many messages wait for them.
    fn let_in(&mut self) -> (u64, u64) {
        let shared = Arc::clone(&self.shared);
        shared.stop.store(true, Ordering::Relaxed);
        let limit = shared.now_ns() + STORED_MAX_NS;
        while shared.now_ns() < limit && !self.has_failed() {
            pause(LOOK);
            if shared.sum(|thread| &thread.sent) == shared.sum(|thread| &thread.accepted) {
                break;
            }
        }
        let stored = shared.sum(|thread| &thread.accepted);
        let waiting = stored.saturating_sub(shared.sum(|thread| &thread.delivered));
        // What they get does not belong to the measured time, which goes on when enough was stored early.
        let measured = shared.measure_until.load(Ordering::Relaxed);
        while shared.now_ns() < measured && !self.has_failed() {
            pause(LOOK);
        }
        shared.let_in.store(true, Ordering::Relaxed);
        (shared.now_ns(), waiting)
    }

    /// Gathers snapshots and shows a line each second, until that time, or until so many messages are
    /// accepted: then nothing more is sent.
    fn watch(&mut self, args: &RunArgs, load_from: u64, until: u64, cap: u64) {
        let shared = Arc::clone(&self.shared);
        let mut line = Line::new(&shared);
        let mut next = shared.now_ns() + SECOND_NS;
        loop {
            let now = shared.now_ns();
            if now >= until || self.has_failed() {
                return;
            }
            if shared.sum(|thread| &thread.accepted) >= cap {
                shared.stop.store(true, Ordering::Relaxed);
                return;
            }
            if now >= next {
                if !args.quiet {
                    let until = shared.measure_until.load(Ordering::Relaxed);
                    line.print(&shared, load_from, now, until);
                }
                line.reset(&shared, now);
                next += SECOND_NS;
            }
            let wake = shared.instant(until.min(next).min(now + 50_000_000));
            match self.snapshots.recv_deadline(wake) {
                Ok(snapshot) => {
                    line.add(&snapshot);
                    self.keep(&snapshot);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn keep(&mut self, snapshot: &Snapshot) {
        if !snapshot.warmup {
            self.accept.add(&snapshot.accept);
            self.end_to_end.add(&snapshot.end_to_end);
        }
    }

    /// Waits until everything sent is accepted and everything accepted has arrived; since when that is
    /// so. `None`: it did not come to that.
    pub fn drain(&mut self, args: &RunArgs) -> Option<u64> {
        let shared = Arc::clone(&self.shared);
        let limit = shared.now_ns() + nanos(args.drain_timeout);
        let mut quiet_since = None;
        loop {
            let now = shared.now_ns();
            let sent = shared.sum(|thread| &thread.sent);
            let accepted = shared.sum(|thread| &thread.accepted);
            let delivered = shared.sum(|thread| &thread.delivered);
            if sent == accepted && accepted <= delivered {
                let since = *quiet_since.get_or_insert(now);
                if now - since >= LINGER.as_nanos() as u64 {
                    return Some(since);
                }
            } else {
                quiet_since = None;
            }
            if now > limit || self.has_failed() {
                return None;
            }
            pause(LOOK);
            while let Ok(snapshot) = self.snapshots.try_recv() {
                self.keep(&snapshot);
            }
        }
    }

    /// Ends the threads, whatever has happened.
    ///
    /// # Errors
    /// What a thread said, or that it panicked.
    pub fn end(&mut self) -> Result<Vec<Ended>, String> {
        self.shared.finish.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(ended) => all.push(ended?),
                Err(_) => return Err("a thread of the generator panicked (see above)".to_owned()),
            }
        }
        while let Ok(snapshot) = self.snapshots.try_recv() {
            self.keep(&snapshot);
        }
        Ok(all)
    }
}

fn book(args: &RunArgs, names: &Names, threads: u32) -> Book {
    let local = args.connections.div_ceil(threads);
    Book {
        sent: Sent::new(local, args.connections),
        received: Received::new(local, args.connections),
        violations: Violations::default(),
        counters: Counters::default(),
        snapshot: Snapshot::new(true, 0),
        names: names.clone(),
        body: filler(args.size as usize),
        window: (u64::MAX, u64::MAX),
        is_held: false,
        sent_ever: 0,
        accepted_ever: 0,
        delivered_ever: 0,
    }
}

fn conclude(
    args: &RunArgs,
    address: SocketAddr,
    mut team: Team,
    ended: Vec<Ended>,
    course: Course,
) -> Outcome {
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let mut violations = Violations::default();
    let mut counters = Counters::default();
    for thread in ended {
        team.keep(&thread.snapshot);
        counters.add(&thread.counters);
        violations.merge(thread.violations);
        sent.push(thread.sent);
        received.push(thread.received);
    }
    if args.verify {
        reconcile(&sent, &received, &mut violations);
    }
    Outcome {
        args: args.clone(),
        address,
        run_id: team.run_id,
        connect_s: course.connect_s,
        measured_s: course.measured_s,
        drain_s: course.drain_s,
        drained: course.drained,
        caught_up: course.caught_up,
        failure: course.failure,
        verified: team.shared.sum(|thread| &thread.delivered),
        counters,
        accept: team.accept,
        end_to_end: team.end_to_end,
        usage: course.usage,
        violations,
    }
}

const SECOND_NS: u64 = 1_000_000_000;

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Sleeps.
#[expect(
    clippy::disallowed_methods,
    reason = "the coordinator only looks now and then"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// 64 random bits.
///
/// # Errors
/// The kernel has none.
pub fn random() -> Result<u64, String> {
    getrandom::u64().map_err(|error| format!("the kernel has no randomness: {error}"))
}

/// The present instant.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the generator's clock")]
pub fn instant() -> Instant {
    Instant::now()
}
