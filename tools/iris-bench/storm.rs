//! A reconnect storm: thousands of clients are cut at once and come back, beside sessions that were there
//! before and go on.
//!
//! ```text
//!   log in ─▶ undisturbed ─▶ cut ─▶ storm ─▶ all back ─▶ after ─▶ verify
//! ```

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::args::StormArgs;
use crate::established::{Established, Phase};
use crate::fleet::{Counts, Ended, Fleet, Manner, Wishes};
use crate::identity::Identity;
use crate::local::{self, Lock};
use crate::report::Usage;
use crate::run::{LOOK, instant, random};

/// Descriptors beside those of clients.
const FILES_BESIDE: u64 = 256;
/// How long the storm's phase goes on behind the last client, for messages that were held up.
const LINGER: Duration = Duration::from_millis(300);

/// What a storm showed.
pub struct Storm {
    args: StormArgs,
    login_s: f64,
    login_cpu_us: Option<u64>,
    back_s: Option<f64>,
    online: u64,
    storm_cpu_us: Option<u64>,
    fleet: Ended,
    undisturbed: Phase,
    during: Phase,
    after: Phase,
}

/// Runs it.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &StormArgs) -> Result<Storm, String> {
    let allowed = local::raise_open_files()?;
    let wanted = u64::from(args.clients) + u64::from(args.place.established) + FILES_BESIDE;
    if allowed < wanted {
        return Err(format!(
            "{} clients need {wanted} open files, and {allowed} are allowed; raise the hard limit \
             (ulimit -Hn), or give fewer --clients",
            args.clients
        ));
    }
    let address = args.place.address()?;
    let identity = Arc::new(Identity::load(&args.place.data, &args.place.server_name)?);
    let server = Lock::read(&args.place.data).pid;
    let server = server.filter(|&pid| local::cpu_micros(pid).is_some());
    let mut established = Established::start(&args.place, &identity)?;
    let wishes = Arc::new(Wishes::default());
    let thread = {
        let (wishes, identity) = (Arc::clone(&wishes), Arc::clone(&identity));
        let (count, run, manner) = (args.clients, random()? as u32, args.manner());
        let core = args
            .place
            .cores
            .as_ref()
            .and_then(|list| list.0.last().copied());
        let nice = args.place.nice;
        let body = move || {
            core.map_or(Ok(()), local::pin)?;
            local::yield_to_others(nice)?; // the established sessions' thread shall not wait for this one
            let fleet = Fleet::new(count, run, address, manner, identity, wishes)?;
            Ok::<Ended, String>(fleet.run())
        };
        let thread = std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(body);
        thread.map_err(|error| format!("cannot start a thread: {error}"))?
    };
    let course = course(args, &mut established, &wishes, server, || {
        thread.is_finished()
    });
    established.next_phase(); // all go, at once: nobody's measurement
    wishes.finish.store(true, Ordering::Relaxed);
    let fleet = thread
        .join()
        .map_err(|_| "the fleet's thread panicked".to_owned())?;
    let (course, fleet) = (course?, fleet?);
    let mut phases = established.end()?;
    let mut phase = |number| std::mem::replace(&mut phases[number], Phase::new());
    Ok(Storm {
        args: args.clone(),
        login_s: course.login_s,
        login_cpu_us: course.login_cpu_us,
        back_s: course.back_s,
        online: course.online,
        storm_cpu_us: course.storm_cpu_us,
        fleet,
        undisturbed: phase(course.phases[0]),
        during: phase(course.phases[1]),
        after: phase(course.phases[2]),
    })
}

struct Course {
    /// When all were back, or none was waited for any longer.
    online: u64,
    login_s: f64,
    login_cpu_us: Option<u64>,
    back_s: Option<f64>,
    storm_cpu_us: Option<u64>,
    /// Undisturbed, during, after.
    phases: [usize; 3],
}

fn course(
    args: &StormArgs,
    established: &mut Established,
    wishes: &Wishes,
    server: Option<u32>,
    has_ended: impl Fn() -> bool,
) -> Result<Course, String> {
    let timeout = Duration::from_secs_f64(args.timeout);
    let say = |text: String| {
        if !args.quiet {
            eprintln!("  {text}");
        }
    };
    let wait = |established: &mut Established, done: &dyn Fn() -> bool| {
        let until = instant() + timeout;
        while !done() {
            if instant() > until || has_ended() {
                return Ok(false);
            }
            established.watch(LOOK)?;
        }
        Ok::<bool, String>(true)
    };
    let (clients, began, before) = (u64::from(args.clients), instant(), Usage::now(server));
    let are_online = || wishes.online.load(Ordering::Relaxed) == clients;
    if !wait(established, &are_online)? {
        let online = wishes.online.load(Ordering::Relaxed);
        return Err(format!(
            "{online} of {clients} clients logged in; give more --timeout"
        ));
    }
    let login_s = began.elapsed().as_secs_f64();
    let login_cpu_us = Usage::since(&before, server).server_cpu_us;
    say(format!("{clients} clients logged in after {login_s:.2} s"));
    established.next_phase(); // what logging in left behind
    established.watch(Duration::from_secs_f64(args.settle))?;
    let undisturbed = established.next_phase();
    established.watch(Duration::from_secs_f64(args.undisturbed))?;
    let during = established.next_phase();
    let before = Usage::now(server);
    wishes.cut.store(true, Ordering::Release);
    let was_cut = || wishes.was_cut.load(Ordering::Acquire);
    let is_back = || wishes.back_ns.load(Ordering::Acquire) > 0;
    let is_over = wait(established, &was_cut)? && wait(established, &is_back)?;
    let storm_cpu_us = Usage::since(&before, server).server_cpu_us;
    let online = wishes.online.load(Ordering::Relaxed);
    established.watch(LINGER)?;
    let back_s = is_over.then(|| wishes.back_ns.load(Ordering::Acquire) as f64 / 1e9);
    say(match back_s {
        Some(back_s) => format!("all back {back_s:.2} s after the cut"),
        None => "not all came back".to_owned(),
    });
    let after = established.next_phase();
    established.watch(Duration::from_secs_f64(args.undisturbed))?;
    Ok(Course {
        online,
        login_s,
        login_cpu_us,
        back_s,
        storm_cpu_us,
        phases: [undisturbed, during, after],
    })
}

impl Storm {
    /// Whether everybody came back.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.back_s.is_some()
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        crate::report::text(|out| self.write_table(out))
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let args = &self.args;
        let manner = match args.manner() {
            Manner::Library => "as the client library does (backoff, jitter, tickets)".to_owned(),
            Manner::Aggressive { give_up_ms } => {
                format!("at once, without pause or ticket, attempts given up after {give_up_ms} ms")
            }
        };
        let (clients, established) = (args.clients, args.place.established);
        writeln!(out, "{clients} clients cut at once, coming back {manner};")?;
        let rate = args.place.rate;
        writeln!(out, "{established} established sessions, {rate} messages/s")?;
        writeln!(out, "{}\n", local::machine())?;
        let logins = &self.fleet.logins;
        write_handshakes(
            out,
            "logging in",
            logins,
            Some(self.login_s),
            self.login_cpu_us,
        )?;
        let storm = &self.fleet.storm;
        write_handshakes(out, "coming back", storm, self.back_s, self.storm_cpu_us)?;
        let back = &self.fleet.back_ms;
        let part = |part: usize| back.get((back.len() * part / 100).min(back.len().max(1) - 1));
        if let (Some(half), Some(most)) = (part(50), part(99)) {
            writeln!(out, "  back after {half} ms (half), {most} ms (99 of 100)")?;
        }
        for (why, count) in &storm.refusals {
            writeln!(out, "  attempts ended: {count:>8}  {why}")?;
        }
        for (why, count) in &self.fleet.gone {
            writeln!(out, "  ended for good: {count:>8}  {why}")?;
        }
        write!(out, "\n{}", Phase::head())?;
        for (name, phase) in self.phases() {
            out.push_str(&phase.row(name));
        }
        writeln!(
            out,
            "\n  p99 end to end: {:.2} times the undisturbed during the storm, {:.2} after it",
            self.during.ratio(&self.undisturbed),
            self.after.ratio(&self.undisturbed)
        )?;
        match self.back_s {
            Some(back_s) => writeln!(out, "  all {clients} back after {back_s:.2} s"),
            None => writeln!(out, "  FAILED: {} of {clients} are back", self.online),
        }
    }

    fn phases(&self) -> [(&'static str, &Phase); 3] {
        [
            ("undisturbed", &self.undisturbed),
            ("during the storm", &self.during),
            ("after it", &self.after),
        ]
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let counts = |counts: &Counts, cpu_us: Option<u64>| {
            json!({
                "attempts": counts.attempts, "full": counts.full, "resumed": counts.resumed,
                "welcomes": counts.welcomes, "refusals": counts.refusals, "server_cpu_us": cpu_us,
            })
        };
        let phases: serde_json::Map<String, Value> = self
            .phases()
            .into_iter()
            .map(|(name, phase)| (name.to_owned(), phase.json()))
            .collect();
        json!({
            "ok": self.is_good(),
            "machine": local::machine(),
            "commit": local::commit(),
            "clients": self.args.clients,
            "aggressive": self.args.aggressive,
            "login_s": self.login_s,
            "back_s": self.back_s,
            "logins": counts(&self.fleet.logins, self.login_cpu_us),
            "storm": counts(&self.fleet.storm, self.storm_cpu_us),
            "gone": self.fleet.gone,
            "established": phases,
            "p99_ratio": self.during.ratio(&self.undisturbed),
        })
    }
}

/// A line of what handshakes were done in how long, and for how much of the switch's processor time.
fn write_handshakes(
    out: &mut String,
    name: &str,
    counts: &Counts,
    took_s: Option<f64>,
    cpu_us: Option<u64>,
) -> std::fmt::Result {
    let Counts {
        attempts,
        full,
        resumed,
        ..
    } = counts;
    write!(
        out,
        "  {name:<12}{attempts} attempts, {full} full and {resumed} resumed handshakes"
    )?;
    let all = (full + resumed) as f64;
    if let Some(took_s) = took_s {
        write!(out, " in {took_s:.2} s: {:.0}/s", all / took_s)?;
    }
    if let Some(cpu_s) = cpu_us
        .map(|us| us as f64 / 1e6)
        .filter(|&cpu_s| cpu_s > 0.0)
    {
        write!(
            out,
            "; {cpu_s:.2} s of the switch's processor time: {:.0}/s of a core",
            all / cpu_s
        )?;
    }
    writeln!(out)
}
