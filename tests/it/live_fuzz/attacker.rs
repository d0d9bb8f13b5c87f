//! One attacker: a connection at a time, and some that it left open.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use iris_proto::v2::client_frame::Frame;
use rustls::{ClientConfig, ClientConnection};
use socket2::SockRef;

use super::super::harness::{Random, Server};
use super::super::raw::config;
use super::bytes::{frame, framed, hello, mutate, noise, one_in, pick};

/// Frames of one connection, at most; a flood has [`FLOOD`].
const FRAMES_MAX: u64 = 40;
/// Frames of a flood: more than any window, queue or burst holds.
const FLOOD: u64 = 3_000;
/// Connections that an attacker leaves open at once.
const OPEN_MAX: usize = 8;
/// How long a write to a switch that does not read may take.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// Milliseconds that an attacker listens before it goes on, at most.
const PAUSE_MS: u64 = 30;
/// The users that attackers have tokens of.
const USERS: [&str; 3] = ["mallory0", "mallory1", "mallory2"];

/// Where an attack begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before TLS, or inside its handshake.
    Handshake,
    /// With a connection that has not said who it is.
    Stranger,
    /// With a session.
    Session,
}

impl Stage {
    pub const ALL: [Self; 3] = [Self::Handshake, Self::Stranger, Self::Session];
}

/// How bytes are cut on their way.
#[derive(Clone, Copy)]
enum Cut {
    Whole,
    /// One byte each.
    Bytes,
    Anywhere,
}

pub struct Attacker {
    address: SocketAddr,
    /// Shared by its connections, so that they resume each other's sessions.
    config: Arc<ClientConfig>,
    tokens: Vec<String>,
    random: Random,
    open: VecDeque<Line>,
}

impl Attacker {
    pub fn new(server: &Server, random: Random) -> Self {
        let identity = server.identity();
        Self {
            address: server.address,
            config: config(&identity),
            tokens: USERS.map(|user| identity.token(user)).to_vec(),
            random,
            open: VecDeque::new(),
        }
    }

    /// One connection from its beginning to its end. That the switch ends it is what is to be expected.
    pub fn attack(&mut self) -> Stage {
        let stage = match self.random.below(10) {
            0 => Stage::Handshake,
            1 | 2 => Stage::Stranger,
            _ => Stage::Session,
        };
        let ended = match stage {
            Stage::Handshake => self.disturb_handshake(),
            Stage::Stranger | Stage::Session => self.talk(stage),
        };
        if let Ok(line) = ended {
            self.leave(line);
        }
        stage
    }

    /// Something else than a handshake, or one that was changed on its way.
    fn disturb_handshake(&mut self) -> io::Result<Line> {
        let mut line = Line::connect(self.address, &self.config)?;
        let random = &mut self.random;
        let mut wire = match random.below(3) {
            0 => {
                let length = random.below(600);
                noise(random, length)
            }
            _ => line.sealed()?,
        };
        match random.below(4) {
            0 => {} // the switch waits for what comes behind it
            1 => wire.truncate(random.below(wire.len() as u64 + 1) as usize),
            2 => mutate(random, &mut wire),
            _ => {
                line.write(random, &wire, Cut::Anywhere)?;
                line.listen(PAUSE_MS)?;
                wire = line.sealed()?;
                mutate(random, &mut wire);
            }
        }
        line.write(random, &wire, Cut::Anywhere)?;
        Ok(line)
    }

    /// Frames in any order and shape, before a login or behind one.
    fn talk(&mut self, stage: Stage) -> io::Result<Line> {
        let mut line = Line::connect(self.address, &self.config)?;
        line.shake_hands()?;
        let random = &mut self.random;
        let user = random.below(USERS.len() as u64) as usize;
        let mut token = self.tokens[user].clone();
        let mut script = Vec::new();
        if stage == Stage::Session {
            let mut first = framed(Frame::Hello(hello(random, &token)));
            if one_in(random, 16) {
                mutate(random, &mut first);
            }
            script.extend(first);
            if one_in(random, 2) {
                line.say(random, &std::mem::take(&mut script))?;
                line.listen(1_000)?; // for the answer, whatever it is
            }
        } else if one_in(random, 3) {
            let mut bad = token.into_bytes();
            mutate(random, &mut bad);
            token = String::from_utf8_lossy(&bad).into_owned();
            script.extend(framed(Frame::Hello(hello(random, &token))));
        }
        let flood = one_in(random, 60);
        let count = if flood {
            FLOOD
        } else {
            random.below(FRAMES_MAX)
        };
        let changed = random.below(4); // of four frames
        for turn in 0..count {
            let mut next = frame(random, turn, &token);
            if !flood && random.below(4) < changed {
                mutate(random, &mut next);
            }
            script.extend(next);
        }
        line.say(random, &script)?;
        Ok(line)
    }

    /// Ends a connection in one of the ways in which they end, or does not.
    fn leave(&mut self, mut line: Line) {
        let random = &mut self.random;
        let _ = match random.below(7) {
            0 => SockRef::from(&line.socket).set_linger(Some(Duration::ZERO)), // reset
            1 => {
                line.tls.send_close_notify();
                line.flush(random, Cut::Whole)
            }
            2 => {
                let half = line.socket.shutdown(Shutdown::Write);
                half.and_then(|()| line.listen(PAUSE_MS))
            }
            3 => line.socket.shutdown(Shutdown::Read),
            4 => {
                let garbage = noise(random, 50);
                line.write(random, &garbage, Cut::Whole) // behind good records
            }
            5 => {
                self.open.push_back(line); // silent from now on, and never read
                if self.open.len() > OPEN_MAX {
                    self.open.pop_front();
                }
                return;
            }
            _ => Ok(()),
        };
    }
}

/// A connection whose records and segments are cut at will.
struct Line {
    socket: TcpStream,
    tls: ClientConnection,
}

impl Line {
    fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(WRITE_MAX))?;
        let name = "localhost".try_into().map_err(io::Error::other)?;
        let tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(Self { socket, tls })
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        self.socket.set_read_timeout(Some(WRITE_MAX))?;
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.socket)?;
        }
        Ok(())
    }

    /// What TLS wants to send.
    fn sealed(&mut self) -> io::Result<Vec<u8>> {
        let mut wire = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut wire)?;
        }
        Ok(wire)
    }

    /// Seals `plain` in records of any size, and sends them in segments of any size.
    fn say(&mut self, random: &mut Random, plain: &[u8]) -> io::Result<()> {
        let (records, segments) = (cut(random), cut(random));
        let mut rest = plain;
        while !rest.is_empty() {
            let (record, more) = rest.split_at(piece(random, records, rest.len()));
            self.tls.writer().write_all(record)?;
            rest = more;
            if one_in(random, 8) {
                self.flush(random, segments)?;
            }
            if one_in(random, 64) {
                self.listen(random.below(PAUSE_MS))?;
            }
        }
        self.flush(random, segments)
    }

    fn flush(&mut self, random: &mut Random, segments: Cut) -> io::Result<()> {
        let mut wire = self.sealed()?;
        if one_in(random, 200) {
            mutate(random, &mut wire);
        }
        self.write(random, &wire, segments)
    }

    fn write(&mut self, random: &mut Random, wire: &[u8], segments: Cut) -> io::Result<()> {
        let mut rest = wire;
        while !rest.is_empty() {
            let (segment, more) = rest.split_at(piece(random, segments, rest.len()));
            self.socket.write_all(segment)?;
            rest = more;
        }
        Ok(())
    }

    /// Reads whatever comes first within so long; nothing is fine, too. What it says is of no interest.
    fn listen(&mut self, time_ms: u64) -> io::Result<()> {
        let time = Duration::from_millis(time_ms.max(1));
        self.socket.set_read_timeout(Some(time))?;
        match self.tls.read_tls(&mut self.socket) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        self.tls.process_new_packets().map_err(io::Error::other)?;
        let mut plain = [0; 16 * 1024];
        while matches!(self.tls.reader().read(&mut plain), Ok(1..)) {}
        Ok(())
    }
}

fn cut(random: &mut Random) -> Cut {
    pick(random, &[Cut::Whole, Cut::Whole, Cut::Anywhere, Cut::Bytes])
}

/// The length of the next piece of `rest` bytes, at least 1. Single bytes end after a while: a record for
/// each of 100,000 would be a test of patience.
fn piece(random: &mut Random, cut: Cut, rest: usize) -> usize {
    const BYTES_MAX: usize = 4_096;
    match cut {
        Cut::Bytes if rest <= BYTES_MAX => 1,
        Cut::Whole => rest,
        Cut::Bytes => rest - BYTES_MAX,
        Cut::Anywhere => 1 + random.below(rest as u64) as usize,
    }
}
