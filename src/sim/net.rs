//! Connections as a bad network has them: late, cut anywhere, stalled, and broken at any byte.
//!
//! ```text
//!   send ──▶ flying: chunks with a time each, never overtaking ──▶ arrived ──▶ receive
//!            a chunk ends at any byte; the last one may be cut
//! ```
//!
//! Within a connection bytes keep their order, as TCP's do; between connections nothing does. A side
//! that sends more than the socket takes waits until the other side has read.

use std::collections::{BTreeMap, VecDeque};

use super::world::{Event, World};

/// Bytes under way in one direction before the sender waits.
pub const SOCKET_BYTES: usize = 16 * 1024;

/// A connection, numbered in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u32);

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected.
    Client,
    /// Who was connected to.
    Switch,
}

impl Side {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Switch,
            Self::Switch => Self::Client,
        }
    }
}

/// What a side learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// There are bytes to receive.
    Readable,
    /// What was sent has been taken; more may be sent.
    Writable,
    /// The connection is over; nothing more comes.
    Ended,
}

/// How the network is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Microseconds that a chunk takes at least.
    pub delay_min_us: u64,
    /// And at most.
    pub delay_max_us: u64,
    /// Of a million sends so many are cut into chunks of a few bytes.
    pub shreds_ppm: u64,
    /// Of a million sends so many are the last of their connection.
    pub breaks_ppm: u64,
}

/// The bytes on their way to one side.
#[derive(Debug, Default)]
struct Pipe {
    flying: VecDeque<(u64, Vec<u8>)>,
    arrived: Vec<u8>,
    /// When the last chunk arrives.
    last_us: u64,
    /// Nothing arrives before.
    held_until_us: u64,
    in_flight: usize,
    /// The sender has closed; the end comes behind what flies.
    closed: bool,
    /// The end was told.
    told: bool,
    /// The sender waits until there is room.
    sender_waits: bool,
}

#[derive(Debug)]
struct Conn {
    client: usize,
    /// By the side that receives.
    pipes: [Pipe; 2],
    /// Which sides have not closed.
    open: [bool; 2],
}

/// All connections there are.
#[derive(Debug)]
pub struct Net {
    conns: BTreeMap<ConnId, Conn>,
    next: u32,
    /// How it is now.
    pub weather: Weather,
}

impl Net {
    /// A network without connections.
    #[must_use]
    pub const fn new(weather: Weather) -> Self {
        Self {
            conns: BTreeMap::new(),
            next: 1,
            weather,
        }
    }

    /// A client wants a connection: a [`Event::Connect`] reaches the switch.
    pub fn connect(&mut self, world: &mut World, client: usize) -> ConnId {
        let id = ConnId(self.next);
        self.next += 1;
        let pipes = [Pipe::default(), Pipe::default()];
        self.conns.insert(
            id,
            Conn {
                client,
                pipes,
                open: [true; 2],
            },
        );
        let delay = self.delay(world);
        world.after(delay, Event::Connect(id));
        id
    }

    fn delay(&self, world: &mut World) -> u64 {
        world
            .dice
            .skewed(self.weather.delay_min_us, self.weather.delay_max_us)
    }

    /// Whose connection it is.
    #[must_use]
    pub fn client_of(&self, id: ConnId) -> Option<usize> {
        self.conns.get(&id).map(|conn| conn.client)
    }

    /// Whether a side was told that the connection is over.
    #[must_use]
    pub fn is_over(&self, id: ConnId, side: Side) -> bool {
        self.conns
            .get(&id)
            .is_none_or(|conn| conn.pipes[side as usize].told)
    }

    /// The connections there are.
    #[must_use]
    pub fn ids(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }

    /// Whether more may be sent from this side.
    #[must_use]
    pub fn can_send(&self, id: ConnId, from: Side) -> bool {
        self.conns.get(&id).is_some_and(|conn| {
            conn.open[from as usize] && !conn.pipes[from.other() as usize].sender_waits
        })
    }

    /// Sends bytes, in chunks; says whether more may be sent at once. If not, `Writable` comes.
    pub fn send(&mut self, world: &mut World, id: ConnId, from: Side, bytes: &[u8]) -> bool {
        let to = from.other();
        let weather = self.weather;
        let Some(conn) = self.conns.get_mut(&id) else {
            return false;
        };
        if !conn.open[from as usize] || bytes.is_empty() {
            return conn.open[from as usize];
        }
        if conn.pipes[to as usize].closed {
            return true; // the line is cut, and this side has not learned it
        }
        let breaks = world.dice.ppm(weather.breaks_ppm);
        let cut = if breaks {
            world.dice.index(bytes.len() + 1)
        } else {
            bytes.len()
        };
        let mut rest = &bytes[..cut];
        let shreds = world.dice.ppm(weather.shreds_ppm);
        while !rest.is_empty() {
            let len = match shreds {
                true => 1 + world.dice.index(rest.len().min(40)),
                false if rest.len() > 1 && world.dice.percent(10) => {
                    1 + world.dice.index(rest.len())
                }
                false => rest.len(),
            };
            let (chunk, later) = rest.split_at(len);
            rest = later;
            let delay = world
                .dice
                .skewed(weather.delay_min_us, weather.delay_max_us);
            let pipe = &mut conn.pipes[to as usize];
            pipe.last_us = pipe.last_us.max(world.now_us() + delay);
            pipe.in_flight += len;
            pipe.flying.push_back((pipe.last_us, chunk.to_vec()));
            let at_us = pipe.last_us.max(pipe.held_until_us);
            world.at(at_us, Event::Net(id, to));
        }
        if breaks {
            world.note(|| format!("{id:?} breaks {cut} bytes into a send to the {to:?}"));
            self.sever(world, id);
            return false;
        }
        let pipe = &mut conn.pipes[to as usize];
        pipe.sender_waits = pipe.in_flight > SOCKET_BYTES;
        !pipe.sender_waits
    }

    /// What has arrived at a side.
    pub fn receive(&mut self, world: &mut World, id: ConnId, side: Side) -> Vec<u8> {
        let Some(conn) = self.conns.get_mut(&id) else {
            return Vec::new();
        };
        let pipe = &mut conn.pipes[side as usize];
        let bytes = std::mem::take(&mut pipe.arrived);
        pipe.in_flight -= bytes.len();
        if !bytes.is_empty() && pipe.sender_waits {
            world.after(1, Event::Net(id, side.other()));
        }
        bytes
    }

    /// Something may be due on the pipe towards `to`: what that side learns, and what the sender does.
    pub fn due(&mut self, world: &mut World, id: ConnId, to: Side) -> Vec<(Side, Notice)> {
        let mut notices = Vec::new();
        let Some(conn) = self.conns.get_mut(&id) else {
            return notices;
        };
        let now_us = world.now_us();
        let pipe = &mut conn.pipes[to as usize];
        if now_us < pipe.held_until_us {
            world.at(pipe.held_until_us, Event::Net(id, to));
            return notices;
        }
        let before = pipe.arrived.len();
        while let Some((at_us, _)) = pipe.flying.front()
            && *at_us <= now_us
            && let Some((_, chunk)) = pipe.flying.pop_front()
        {
            pipe.arrived.extend_from_slice(&chunk);
        }
        if pipe.arrived.len() > before && conn.open[to as usize] {
            notices.push((to, Notice::Readable));
        }
        if !conn.open[to as usize] {
            pipe.in_flight -= pipe.arrived.len();
            pipe.arrived.clear(); // nobody reads any more
        }
        if pipe.closed && pipe.flying.is_empty() && !std::mem::replace(&mut pipe.told, true) {
            notices.push((to, Notice::Ended));
        }
        // The pipe of what this side sends: it may have room again.
        let outgoing = &mut conn.pipes[to.other() as usize];
        if outgoing.sender_waits && outgoing.in_flight <= SOCKET_BYTES / 2 {
            outgoing.sender_waits = false;
            notices.push((to, Notice::Writable));
        }
        notices
    }

    /// A side closes: the other one learns it behind what flies.
    pub fn close(&mut self, world: &mut World, id: ConnId, side: Side) {
        let delay = self.delay(world);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.open[side as usize] = false;
        if conn.open == [false; 2] {
            self.conns.remove(&id);
            return;
        }
        let incoming = &mut conn.pipes[side as usize];
        (incoming.in_flight, incoming.sender_waits) = (0, false);
        incoming.flying.clear();
        incoming.arrived.clear();
        let outgoing = &mut conn.pipes[side.other() as usize];
        outgoing.closed = true;
        let at_us = outgoing
            .last_us
            .max(world.now_us() + delay)
            .max(outgoing.held_until_us);
        outgoing.last_us = at_us;
        world.at(at_us, Event::Net(id, side.other()));
    }

    /// The line is cut: of what flies some first part still arrives, then both sides learn it.
    pub fn sever(&mut self, world: &mut World, id: ConnId) {
        for side in [Side::Client, Side::Switch] {
            let delay = self.delay(world);
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let pipe = &mut conn.pipes[side as usize];
            let arriving = world.dice.index(pipe.flying.len() + 1);
            for (_, chunk) in pipe.flying.drain(arriving..) {
                pipe.in_flight -= chunk.len();
            }
            pipe.closed = true;
            let at_us = pipe
                .last_us
                .max(world.now_us() + delay)
                .max(pipe.held_until_us);
            world.at(at_us, Event::Net(id, side));
        }
    }

    /// Nothing arrives at a side for a while.
    pub fn stall(&mut self, world: &mut World, id: ConnId, side: Side, for_us: u64) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.pipes[side as usize].held_until_us = world.now_us() + for_us;
        }
    }

    /// All stalls end.
    pub fn heal(&mut self, world: &mut World) {
        for (id, conn) in &mut self.conns {
            for side in [Side::Client, Side::Switch] {
                conn.pipes[side as usize].held_until_us = 0;
                world.after(1, Event::Net(*id, side));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Weather = Weather {
        delay_min_us: 10,
        delay_max_us: 5_000,
        shreds_ppm: 300_000,
        breaks_ppm: 0,
    };

    /// What each side got, and the order in which the ends came, until nothing happens any more.
    fn run(world: &mut World, net: &mut Net, id: ConnId) -> ([Vec<u8>; 2], Vec<Side>) {
        let mut got = [Vec::new(), Vec::new()];
        let mut ends = Vec::new();
        while let Some(event) = world.next_event() {
            let Event::Net(_, to) = event else { continue };
            for (side, notice) in net.due(world, id, to) {
                match notice {
                    Notice::Readable => {
                        let bytes = net.receive(world, id, side);
                        got[side as usize].extend_from_slice(&bytes);
                    }
                    Notice::Ended => ends.push(side),
                    Notice::Writable => {}
                }
            }
        }
        (got, ends)
    }

    #[test]
    fn bytes_keep_their_order_within_a_connection_however_they_are_cut() {
        for seed in 0..100 {
            let mut world = World::new(seed, 0);
            let mut net = Net::new(BAD);
            let id = net.connect(&mut world, 0);
            let all: Vec<u8> = (0..=255).collect();
            for part in all.chunks(50) {
                net.send(&mut world, id, Side::Client, part);
                net.send(&mut world, id, Side::Switch, part);
            }
            net.stall(&mut world, id, Side::Switch, 20_000);
            net.close(&mut world, id, Side::Client);
            let (got, ends) = run(&mut world, &mut net, id);
            assert_eq!(got[Side::Switch as usize], all, "seed {seed}");
            assert_eq!(got[Side::Client as usize], [0; 0], "it had closed");
            assert_eq!(ends, [Side::Switch], "seed {seed}");
        }
    }

    #[test]
    fn a_broken_connection_delivers_a_first_part_and_tells_both_sides() {
        let mut lengths = Vec::new();
        for seed in 0..100 {
            let mut world = World::new(seed, 0);
            let mut net = Net::new(Weather {
                breaks_ppm: 1_000_000,
                ..BAD
            });
            let id = net.connect(&mut world, 0);
            let all: Vec<u8> = (0..200).collect();
            assert!(!net.send(&mut world, id, Side::Client, &all));
            let (got, mut ends) = run(&mut world, &mut net, id);
            let got = &got[Side::Switch as usize];
            assert_eq!(*got, all[..got.len()], "seed {seed}");
            lengths.push(got.len());
            ends.sort_by_key(|side| *side as usize);
            assert_eq!(ends, [Side::Client, Side::Switch], "seed {seed}");
        }
        lengths.dedup();
        assert!(lengths.len() > 50, "it breaks at all kinds of bytes");
    }

    #[test]
    fn connections_overtake_each_other() {
        let mut first = [0, 0];
        for seed in 0..100 {
            let mut world = World::new(seed, 0);
            let mut net = Net::new(Weather {
                shreds_ppm: 0,
                ..BAD
            });
            let ids = [net.connect(&mut world, 0), net.connect(&mut world, 1)];
            for id in ids {
                net.send(&mut world, id, Side::Client, b"x");
            }
            while let Some(event) = world.next_event() {
                if let Event::Net(id, _) = event {
                    first[usize::from(id == ids[1])] += 1;
                    break;
                }
            }
        }
        assert!(first[0] > 20 && first[1] > 20, "{first:?}");
    }

    #[test]
    fn a_sender_waits_for_a_receiver_that_does_not_read() {
        let mut world = World::new(1, 0);
        let mut net = Net::new(BAD);
        let id = net.connect(&mut world, 0);
        assert!(net.send(&mut world, id, Side::Switch, &[0; SOCKET_BYTES]));
        assert!(!net.send(&mut world, id, Side::Switch, &[0; 1]));
        assert!(!net.can_send(id, Side::Switch));
        while let Some(event) = world.next_event() {
            if let Event::Net(id, to) = event {
                net.due(&mut world, id, to);
            }
        }
        assert!(!net.can_send(id, Side::Switch), "nobody has read");
        assert_eq!(
            net.receive(&mut world, id, Side::Client).len(),
            SOCKET_BYTES + 1
        );
        let Some(Event::Net(_, Side::Switch)) = world.next_event() else {
            panic!("the sender is looked after");
        };
        assert_eq!(
            net.due(&mut world, id, Side::Switch),
            [(Side::Switch, Notice::Writable)]
        );
    }
}
