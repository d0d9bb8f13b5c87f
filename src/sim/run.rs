//! One world from its beginning to its end.
//!
//! ```text
//!   chaos ───────────────▶ heal ──▶ settle ──▶ one more power loss, one more start
//!   everything goes wrong  nothing does any more: all must arrive
//! ```

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Weather;
use super::check::{Bounds, Check, Counts};
use super::client::{Around, Client};
use super::dice::Dice;
use super::disk::FakeDisk;
use super::net::{ConnId, Net, Notice, Side};
use super::node::{Env, Node, Outcome, Started};
use super::world::{Event, World};
use crate::log::SegmentSize;
use crate::placement::{HashKey, Placement};

/// Microseconds that everything may take to arrive once nothing goes wrong any more.
const SETTLE_MAX_US: u64 = 240_000_000;
/// Events of one world. More: something goes round in circles.
const EVENTS_MAX: u64 = 12_000_000;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What failed.
    pub failure: Option<String>,
    /// The last lines of the trace, when it was asked for.
    pub trace: Vec<String>,
    /// Tells two histories apart.
    pub fingerprint: u64,
    /// Events that happened.
    pub events: u64,
    /// Microseconds that passed in the world.
    pub simulated_us: u64,
    /// What was done.
    pub counts: Counts,
}

struct Run {
    world: World,
    net: Net,
    node: Node,
    disks: Vec<FakeDisk>,
    clients: Vec<Client>,
    check: Check,
    weather: Weather,
    healing: bool,
    heal_at_us: u64,
    settled: bool,
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From here on a panic prints nothing; [`run`] reports it.
pub fn silence_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANIC.with_borrow_mut(|text| *text = panic.to_string().replace('\n', " "));
    }));
}

/// Lives through one seed, remembering so many lines of its trace. A panic inside is a failure like others.
#[must_use]
pub fn run(seed: u64, lines_max: usize) -> Report {
    let mut run = Run::new(seed, lines_max);
    if catch_unwind(AssertUnwindSafe(|| run.live())).is_err() {
        let text = PANIC.take();
        run.world.fail(|| format!("the switch asserted: {text}"));
    }
    Report {
        seed,
        failure: run.world.failure().map(str::to_owned),
        trace: run.world.trace(),
        fingerprint: run.world.fingerprint(),
        events: run.world.happened(),
        simulated_us: run.world.now_us(),
        counts: run.check.counts,
    }
}

impl Run {
    fn new(seed: u64, lines_max: usize) -> Self {
        let mut dice = Dice::new(seed);
        let weather = Weather::draw(&mut dice);
        let size = SegmentSize::small(weather.segment_bytes);
        let key = HashKey([dice.below(256) as u8; 16]);
        let mut world = World::new(dice.roll(), lines_max);
        world.note(|| format!("{weather:?}"));
        let mut clients = Vec::new();
        let mut people = Vec::new();
        for user in 0..weather.users {
            for device in 0..dice.range(1, weather.devices_max) {
                let name = format!("device-{device}");
                let habits = weather.habits.of_one(&mut dice);
                people.push((user, name.clone(), !habits.send_only));
                clients.push(Client::new(
                    clients.len(),
                    user,
                    name,
                    weather.users,
                    habits,
                ));
            }
        }
        let placement = Placement::new(key, weather.shards, weather.logs, 1);
        let bounds = Bounds {
            inbox_entries_max: weather.shard.inbox_entries_max,
        };
        Self {
            net: Net::new(weather.net),
            node: Node::new(&weather, key, size),
            disks: (0..weather.logs).map(|_| FakeDisk::default()).collect(),
            check: Check::new(size, key, placement, bounds, &people),
            world,
            clients,
            weather,
            healing: false,
            heal_at_us: 0,
            settled: false,
        }
    }

    fn live(&mut self) {
        self.world.at(0, Event::Start);
        for client in 0..self.clients.len() {
            let delay = self.world.dice.skewed(0, self.weather.habits.away_max_us);
            self.world.after(delay, Event::Program(client));
        }
        let delay = self.world.dice.range(1, self.weather.fault_max_us);
        self.world.after(delay, Event::Fault);
        self.world.at(self.weather.chaos_us, Event::Heal);
        while self.world.failure().is_none() && !self.settled {
            if self.world.happened() > EVENTS_MAX {
                self.world
                    .fail(|| format!("{EVENTS_MAX} events and no end"));
            }
            match self.world.next_event() {
                Some(event) => self.happen(event),
                None => self.world.fail(|| "nothing happens any more".to_owned()),
            }
        }
        if self.world.failure().is_none() {
            self.end();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start => self.start(),
            Event::Connect(id) => self.connect(id),
            Event::Net(id, to) => {
                for (side, notice) in self.net.due(&mut self.world, id, to) {
                    self.notice(id, side, notice);
                }
            }
            Event::Turn { life, core } => self.turn(life, core),
            Event::Disk { life, log, hand } => {
                let (node, mut env) = self.split();
                if let Some(process) = node.process.as_mut().filter(|p| p.life() == life) {
                    process.disk(&mut env, log, hand);
                }
            }
            Event::Pages { life, conn } => {
                let (node, env) = self.split();
                if let Some(process) = node.process.as_mut().filter(|p| p.life() == life) {
                    process.pages(env.world, conn);
                }
            }
            Event::Client { client, alarm } => {
                let (clients, mut around) = self.around();
                clients[client].alarm(&mut around, alarm);
            }
            Event::Act(client) => {
                let (clients, mut around) = self.around();
                clients[client].act(&mut around);
            }
            Event::Program(client) => {
                let (clients, mut around) = self.around();
                clients[client].start(&mut around);
            }
            Event::Fault => self.fault(),
            Event::Heal => self.heal(),
            Event::Settle => self.settle(),
        }
    }

    fn split(&mut self) -> (&mut Node, Env<'_>) {
        let env = Env {
            world: &mut self.world,
            net: &mut self.net,
            disks: &mut self.disks,
            check: &mut self.check,
            weather: &self.weather,
        };
        (&mut self.node, env)
    }

    fn around(&mut self) -> (&mut [Client], Around<'_>) {
        let around = Around {
            world: &mut self.world,
            net: &mut self.net,
            check: &mut self.check,
        };
        (&mut self.clients, around)
    }

    fn start(&mut self) {
        if self.node.process.is_some() {
            return;
        }
        let cores = self.world.dice.range(1, 3) as u16;
        let (node, mut env) = self.split();
        match node.start(&mut env, cores) {
            Started::Up => {}
            Started::Crashed => {
                if env.world.dice.percent(50) {
                    node.lose_power(&mut env);
                }
                self.start_later();
            }
            Started::Refused => {
                // Somebody restores what rotted.
                self.check.damage.heal(&mut self.disks);
                self.start_later();
            }
        }
    }

    fn start_later(&mut self) {
        let delay = self.world.dice.skewed(100, 500_000);
        self.world.after(delay, Event::Start);
    }

    fn connect(&mut self, id: ConnId) {
        let Some(client) = self.net.client_of(id) else {
            return; // given up on the way
        };
        let (node, mut env) = self.split();
        let is_up = match &mut node.process {
            Some(process) => {
                env.check.connected(id, client);
                process.connected(env.world, id);
                true
            }
            None => {
                env.net.close(env.world, id, Side::Switch);
                env.net.close(env.world, id, Side::Client);
                false
            }
        };
        let _ = &mut env;
        let (clients, mut around) = self.around();
        clients[client].connected(&mut around, id, is_up);
    }

    fn notice(&mut self, id: ConnId, side: Side, notice: Notice) {
        if side == Side::Client {
            if let Some(client) = self.net.client_of(id) {
                let (clients, mut around) = self.around();
                clients[client].notice(&mut around, id, notice);
            }
            return;
        }
        let (node, env) = self.split();
        let is_owned = node
            .process
            .as_mut()
            .is_some_and(|process| process.owns(id));
        match &mut node.process {
            Some(process) if is_owned => process.notice(env.world, id, notice),
            _ if notice == Notice::Ended => env.net.close(env.world, id, Side::Switch),
            _ => {}
        }
    }

    fn turn(&mut self, life: u32, core: usize) {
        let (node, mut env) = self.split();
        let Some(process) = node
            .process
            .as_mut()
            .filter(|process| process.life() == life)
        else {
            return;
        };
        match process.turn(&mut env, core) {
            Outcome::Runs => return,
            Outcome::Aborts(why) => {
                env.world.note(|| format!("the process aborts: {why}"));
                env.check.counts.aborts += 1;
                node.crash(&mut env);
                if env.world.dice.percent(30) {
                    node.lose_power(&mut env);
                }
            }
            Outcome::Stopped => {
                env.world.note(|| "the process has stopped".to_owned());
                node.stopped(&mut env);
                if env.world.dice.percent(30) {
                    node.lose_power(&mut env);
                }
            }
        }
        self.start_later();
    }

    fn fault(&mut self) {
        if self.healing {
            return;
        }
        let delay = self.world.dice.range(1, self.weather.fault_max_us);
        self.world.after(delay, Event::Fault);
        let faults = self.weather.faults;
        let weights = [
            faults.kill,
            faults.power,
            faults.stop,
            faults.sever,
            faults.full,
            faults.rot,
            faults.salvage,
            faults.clock,
            faults.nothing,
        ];
        let mut roll = self.world.dice.below(weights.iter().sum());
        let kind = weights.iter().position(|weight| {
            let hit = roll < *weight;
            roll = roll.saturating_sub(*weight);
            hit
        });
        let is_up = self.node.process.is_some();
        match kind {
            Some(0) if is_up => self.crash(false),
            Some(1) if is_up => self.crash(true),
            Some(2) => {
                self.world.note(|| "the switch is asked to stop".to_owned());
                let (node, mut env) = self.split();
                if let Some(process) = &mut node.process {
                    process.drain(&mut env);
                }
            }
            Some(3) => {
                for id in self.net.ids() {
                    self.net.sever(&mut self.world, id);
                }
            }
            Some(4) => self.change_capacity(),
            Some(5) => self.rot(),
            Some(6) => self.salvage(),
            Some(7) => {
                self.world.unix_ahead_ms = self.world.dice.below(40 * 24 * 60 * 60 * 1_000);
                self.world.clock_was_set = true;
                let unix_ms = self.world.unix_ms();
                self.world.note(|| format!("the clock shows {unix_ms} ms"));
            }
            _ => {}
        }
    }

    fn crash(&mut self, is_power: bool) {
        let (node, mut env) = self.split();
        if is_power {
            env.world.note(|| "the power goes".to_owned());
            node.lose_power(&mut env);
        } else {
            env.world.note(|| "the process is killed".to_owned());
            node.crash(&mut env);
        }
        self.start_later();
    }

    fn change_capacity(&mut self) {
        let log = self.world.dice.index(self.disks.len());
        let disk = &mut self.disks[log];
        disk.capacity = match disk.capacity {
            u64::MAX => disk.used() + self.world.dice.below(self.weather.segment_bytes * 2),
            _ => u64::MAX,
        };
        let capacity = disk.capacity;
        self.world
            .note(|| format!("log {log}: room for {capacity} bytes"));
    }

    fn rot(&mut self) {
        if self.check.damage.is_there() {
            return; // one at a time can be judged
        }
        let log = self.world.dice.index(self.disks.len());
        self.check
            .do_damage(&mut self.world, log, &mut self.disks[log]);
    }

    /// Somebody stops the switch, sets aside what is damaged, and starts it again.
    fn salvage(&mut self) {
        let logs = self.check.damage.logs();
        if logs.is_empty() || self.node.process.is_none() {
            return;
        }
        self.crash(false);
        for log in logs {
            let (node, mut env) = self.split();
            node.salvage(&mut env, log as u16);
        }
    }

    /// From here on nothing goes wrong any more.
    fn heal(&mut self) {
        self.world.note(|| "everything heals".to_owned());
        self.healing = true;
        self.heal_at_us = self.world.now_us();
        self.weather.sync_fails_ppm = 0;
        self.weather.start_crash_ppm = 0;
        self.net.weather.breaks_ppm = 0;
        self.net.heal(&mut self.world);
        for disk in &mut self.disks {
            disk.capacity = u64::MAX;
        }
        if self.check.damage.was_done() {
            self.check.damage.heal(&mut self.disks);
            self.crash(false); // what was quarantined comes back by a start
        }
        let (clients, mut around) = self.around();
        for client in clients {
            client.calm(&mut around);
        }
        self.world.after(500_000, Event::Settle);
    }

    fn settle(&mut self) {
        let is_up = self.node.process.is_some();
        let unsettled = match is_up {
            true => self.check.unsettled(),
            false => Some("the switch is down".to_owned()),
        };
        let Some(unsettled) = unsettled else {
            self.settled = true;
            return;
        };
        if self.world.now_us() - self.heal_at_us > SETTLE_MAX_US {
            return self
                .world
                .fail(|| format!("it does not settle: {unsettled}"));
        }
        self.world.after(500_000, Event::Settle);
    }

    /// All has arrived: a last look at everything, and at what one more start makes of it.
    fn end(&mut self) {
        self.check.settle(&mut self.world);
        let (node, env) = self.split();
        if let Some(process) = &node.process {
            // What is durable, and not yet told to the store, makes no difference that counts.
            for (log, store) in process.stores().filter(|(_, store)| !store.is_flushing()) {
                env.check.examine(env.world, log, store, &env.disks[log]);
            }
        }
        self.crash(true);
        self.start();
        if self.node.process.is_none() {
            self.world
                .fail(|| "the switch does not start any more".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_history_and_another_seed_another() {
        for seed in [17, 201, 26_821] {
            let (one, two) = (run(seed, 0), run(seed, 0));
            assert_eq!(one.failure, None, "seed {seed}");
            assert_eq!(
                (one.fingerprint, one.events, one.simulated_us),
                (two.fingerprint, two.events, two.simulated_us),
                "seed {seed}"
            );
            assert_ne!(run(seed + 1, 0).fingerprint, one.fingerprint, "seed {seed}");
        }
    }
}
