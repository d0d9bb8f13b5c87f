//! Starting and stopping the cores of one node.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use glommio::{LocalExecutorBuilder, Placement as Pin};
use thiserror::Error;
use zeroize::Zeroizing;

use super::admin::{
    Admin, AdminError, HistogramLine, Line, Lines, Opening, RevokeLine, Revoker, WatchLine,
};
use super::admission::Admission;
use super::audit::{Audit, AuditError, Queue};
use super::clock::Clock;
use super::mesh::{Mesh, Parcel, Peer};
use super::notify::Notify;
use super::policy::Policy;
use super::reactor::{Control, Core, CoreParts, Farewells, Hooks};
use super::revocation::{RevocationFile, RevocationFileError};
use super::storage::{DataDir, DataDirError, Files, Format, LogError, Upkeep, open_log};
use super::stream::{Doorbell, Sockets, SocketsConfig, StartError};
use crate::audit::Event;
use crate::auth::Revocations;
use crate::placement::{CoreId, HashKey, LogId, Placement};
use crate::ring::{Consumer, Producer, Sleeper, link};
use crate::shard::ShardConfig;
use crate::store::Store;

/// Connections that the kernel holds for a core that is busy. Full: the kernel refuses new ones.
const LISTEN_BACKLOG: i32 = 4096;
/// Orders that wait for a core: one to drain, one to report, one to hand over histograms, one to
/// watch users, one to adopt a policy, one to revoke, and room. Of all but the first at most one waits with each core, so that an order to drain always finds a
/// place.
const ORDERS_MAX: usize = 7;
/// How long a core may take to adopt a policy before it is called silent. A healthy one does within its
/// tick of 50 ms.
pub const ADOPT_MAX: Duration = Duration::from_secs(2);
/// Memory that glommio pins for its own I/O on each core. The switch's own rings do the work.
const EXECUTOR_IO_MEMORY: usize = 1 << 20;

/// What a node is started with.
#[derive(Clone)]
pub struct Options {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The processors to pin cores to, one executor each.
    pub processors: Vec<usize>,
    /// The data directory.
    pub data: PathBuf,
    /// How the data directory is formatted if it is new.
    pub format: Format,
    /// Certificate, keys and limits: what can be exchanged later.
    pub policy: Arc<Policy>,
    /// What is configured of each shard.
    pub shard: ShardConfig,
    /// When checkpoints are written and how fast old segments are cleaned.
    pub upkeep: Upkeep,
    /// For tests.
    pub hooks: Hooks,
}

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The list of revoked tokens cannot be used.
    #[error(transparent)]
    Revocations(#[from] RevocationFileError),
    /// There can be no audit thread.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A core's rings cannot be set up.
    #[error(transparent)]
    Rings(#[from] StartError),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; stop what uses it, or choose another address with --listen"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An executor cannot be started.
    #[error(
        "cannot start the executor of processor {processor}: {reason}; check `ulimit -l` (locked memory) and that io_uring is allowed"
    )]
    Executor {
        /// The processor.
        processor: usize,
        /// What glommio said.
        reason: String,
    },
}

/// Cores that have not taken an earlier policy yet.
#[derive(Debug, Error)]
#[error("core {0:?} has not taken the one before; look at `iris status`, and try again")]
pub struct SilentCores(pub Vec<usize>);

/// The starter's way to one core.
struct Order {
    control: Sender<Control>,
    doorbell: Doorbell,
    /// A policy that was sent; it ends when the core has taken it.
    adopting: Option<Receiver<()>>,
}

impl Order {
    /// Waits until the core has taken the policy that was sent to it; false when it did not by then.
    fn has_adopted(&mut self, deadline: Instant) -> bool {
        let Some(adopting) = &self.adopting else {
            return true;
        };
        let taken = match adopting.recv_deadline(deadline) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true, // taken, or the core has ended
            Err(RecvTimeoutError::Timeout) => false,
        };
        if taken {
            self.adopting = None;
        }
        taken
    }
}

/// A node that serves.
pub struct Running {
    address: SocketAddr,
    control: Vec<Order>,
    threads: Vec<glommio::ExecutorJoinHandle<Vec<(LogId, u64)>>>,
    /// What the cores started with.
    revoked: (RevocationFile, Arc<Revocations>),
    /// For the starter, and for the admin thread until there is one.
    queues: [Option<Queue>; 2],
    /// Gone before `data`, and after whoever puts something into it.
    audit: Audit,
    /// Gone before `data`, whose lock says that the socket's file is ours.
    admin: Option<Admin>,
    /// Keeps the lock for as long as the cores run.
    data: Arc<DataDir>,
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes the address where tools on this machine find it.
    pub fn publish_address(&self) -> Result<(), DataDirError> {
        self.data.publish_address(&self.address.to_string())
    }

    /// Opens the admin socket in the data directory, until the node has ended; and with an address and a
    /// token that port, too. `config` is what it shows as its configuration; `notify` hears from it that the
    /// cores answer.
    pub fn open_admin(
        &mut self,
        tcp: Option<(SocketAddr, Zeroizing<Vec<u8>>)>,
        config: String,
        notify: Option<Notify>,
    ) -> Result<(), AdminError> {
        let lines = self.control.iter().map(|order| {
            let doorbell = order.doorbell.clone();
            Line::new(order.control.clone(), move || doorbell.ring())
        });
        let reports = lines.collect();
        let address = self.address;
        let gathering = self.control.iter().map(|order| {
            let doorbell = order.doorbell.clone();
            HistogramLine::new(order.control.clone(), move || doorbell.ring())
        });
        let tracing = self.control.iter().map(|order| {
            let doorbell = order.doorbell.clone();
            WatchLine::new(order.control.clone(), move || doorbell.ring())
        });
        let lines = Lines {
            reports,
            histograms: gathering.collect(),
            traces: tracing.collect(),
        };
        let revoking = self.control.iter().map(|order| {
            let doorbell = order.doorbell.clone();
            RevokeLine::new(order.control.clone(), move || doorbell.ring())
        });
        let (file, list) = self.revoked.clone();
        let Some(queue) = self.queues[1].take() else {
            return Ok(()); // it has been opened
        };
        let revoker = Revoker::new(file, list, revoking.collect(), queue);
        let opening = Opening {
            address,
            lines,
            revoker,
            tcp,
            config,
            notify,
        };
        self.admin = Some(Admin::open(self.data.path(), opening)?);
        Ok(())
    }

    /// The configuration was read anew and taken.
    pub fn reconfigured(&self, config: String) {
        if let Some(admin) = &self.admin {
            admin.reconfigured(config);
        }
    }

    /// Notes something in the audit log.
    pub fn audit(&mut self, event: Event) {
        if let Some(queue) = &mut self.queues[0] {
            queue.put(Clock::read().unix_ms, event);
        }
    }

    /// Tells every core to say goodbye, finish and end, within `patience`; returns at once.
    pub fn drain(&self, patience: Duration) {
        #[expect(clippy::disallowed_methods, reason = "a deadline begins here")]
        let deadline = Instant::now() + patience;
        for order in &self.control {
            // A core that has ended already needs no order. There is room: reports and policies wait
            // for at most one place each (`ORDERS_MAX`), so a full channel holds this order already.
            let _ = order.control.try_send(Control::Drain { deadline });
            order.doorbell.ring();
        }
    }

    /// Gives every core a new policy, and waits until they have taken it. It is for all of them or for
    /// none: while a core has not taken an earlier one, an error, and nothing was sent. A core that has
    /// not taken this one within `ADOPT_MAX` is named; it will, before all else, once it goes on.
    pub fn adopt(&mut self, policy: &Arc<Policy>) -> Result<Vec<usize>, SilentCores> {
        #[expect(clippy::disallowed_methods, reason = "a deadline begins here")]
        let deadline = Instant::now() + ADOPT_MAX;
        let silent = self.silent(deadline);
        if !silent.is_empty() {
            return Err(SilentCores(silent));
        }
        for order in &mut self.control {
            let (taken, adopting) = bounded(1);
            let policy = Arc::clone(policy);
            // There is room, or the core has ended.
            let _ = order.control.try_send(Control::Adopt { policy, taken });
            order.adopting = Some(adopting);
            order.doorbell.ring();
        }
        Ok(self.silent(deadline))
    }

    /// The cores that have not taken what was sent to them by then.
    fn silent(&mut self, deadline: Instant) -> Vec<usize> {
        let cores = self.control.iter_mut().enumerate();
        cores
            .filter_map(|(core, order)| (!order.has_adopted(deadline)).then_some(core))
            .collect()
    }

    /// Waits until all cores have ended, and notes how far the logs reach: should a later start find
    /// less, it knows that something was lost.
    pub fn wait(mut self) -> Result<(), DataDirError> {
        let mut ends = self.data.super_block().durable_lsn.clone();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(durable) => {
                    for (log, end) in durable {
                        ends[usize::from(log.0)] = end;
                    }
                }
                Err(error) => tracing::error!(%error, "a core ended in an error"),
            }
        }
        drop(self.admin.take());
        self.audit(Event::Stop);
        drop(self.audit); // all is written, and synced
        self.data.record_durable(&ends)
    }
}

/// What a core tells the starter once it could serve.
type Prepared = Result<Doorbell, NodeError>;

/// What a core needs of the others, and its listener.
struct Go {
    mesh: Mesh,
    listener: TcpListener,
}

/// Starts a node: returns when it accepts connections.
pub fn start(options: Options) -> Result<Running, NodeError> {
    let data = Arc::new(DataDir::open(&options.data, &options.format)?);
    let super_block = data.super_block();
    let revoked = revocations(&data)?;
    let (audit, mut queues) = Audit::start(data.path(), options.processors.len() + 2)?;
    let queues_of_ours = [queues.pop(), queues.pop()];
    let cores = u16::try_from(options.processors.len()).unwrap_or(u16::MAX);
    // Both are below 65,536: a super block with more is refused when it is read.
    let narrow = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let (shards, logs) = (narrow(super_block.shards), narrow(super_block.logs));
    let placement = Placement::new(HashKey(super_block.hash_key), shards, logs, cores);
    let (address, listeners) = bind(options.listen, options.processors.len())?;
    let sleepers: Vec<_> = (0..cores).map(|_| Arc::new(Sleeper::new())).collect();
    let (admission, farewells) = (Admission::new(), Farewells::new(usize::from(cores)));
    let mut starting = Vec::new();
    let both = options.processors.iter().zip(queues);
    for (index, (&processor, audit)) in both.enumerate() {
        let (control, orders) = bounded(ORDERS_MAX);
        let seed = Seed {
            #[expect(clippy::cast_possible_truncation, reason = "counted as u16 above")]
            id: CoreId(index as u16),
            placement,
            cluster: super_block.data_name(),
            options: options.clone(),
            revoked: Arc::clone(&revoked.1),
            audit,
            data: data.clone(),
            admission: admission.clone(),
            farewells: farewells.clone(),
            sleeper: sleepers[index].clone(),
            orders,
        };
        starting.push((seed.plant(processor)?, control));
    }
    let mut doorbells = Vec::new();
    for (started, _) in &starting {
        doorbells.push(started.doorbell()?);
    }
    let meshes = weave(&sleepers, &doorbells);
    let mut running = Running {
        address,
        control: Vec::new(),
        threads: Vec::new(),
        revoked,
        queues: queues_of_ours,
        audit,
        admin: None,
        data,
    };
    let rest = meshes.into_iter().zip(listeners).zip(doorbells);
    for ((started, control), ((mesh, listener), doorbell)) in starting.into_iter().zip(rest) {
        // A core that is gone has sent its error above.
        let _ = started.go.send(Go { mesh, listener });
        running.control.push(Order {
            control,
            doorbell,
            adopting: None,
        });
        running.threads.push(started.thread);
    }
    running.audit(Event::Start {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    });
    Ok(running)
}

/// The list of revoked tokens that the cores start with, and its file.
fn revocations(data: &DataDir) -> Result<(RevocationFile, Arc<Revocations>), NodeError> {
    let was_used = data.super_block().incarnation > 1;
    let (file, mut revoked) = RevocationFile::open(data.path(), was_used)?;
    revoked.expire(Clock::read().unix_s());
    Ok((file, Arc::new(revoked)))
}

/// A core whose thread has been started.
struct Started {
    processor: usize,
    thread: glommio::ExecutorJoinHandle<Vec<(LogId, u64)>>,
    prepared: Receiver<Prepared>,
    go: Sender<Go>,
}

impl Started {
    /// Waits until the core could serve.
    fn doorbell(&self) -> Prepared {
        let prepared = self.prepared.recv();
        prepared.map_err(|_| NodeError::Executor {
            processor: self.processor,
            reason: "it ended before it was ready".to_owned(),
        })?
    }
}

/// One listener per core on the same address: the kernel spreads connections over them.
fn bind(address: SocketAddr, count: usize) -> Result<(SocketAddr, Vec<TcpListener>), NodeError> {
    use socket2::{Domain, Protocol, Socket, Type};
    let mut actual = address;
    let mut listeners = Vec::new();
    for _ in 0..count {
        let open = || {
            let socket = Socket::new(
                Domain::for_address(actual),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&actual.into())?;
            socket.listen(LISTEN_BACKLOG)?;
            let listener = TcpListener::from(socket);
            listener.local_addr().map(|address| (address, listener))
        };
        let (bound, listener) = open().map_err(|source| NodeError::Listen {
            address: actual,
            source,
        })?;
        actual = bound;
        listeners.push(listener);
    }
    Ok((actual, listeners))
}

/// Links every core with every other one.
fn weave(sleepers: &[Arc<Sleeper>], doorbells: &[Doorbell]) -> Vec<Mesh> {
    let count = sleepers.len();
    let mut producers: Vec<Vec<Option<Producer<Parcel>>>> = Vec::new();
    let mut consumers: Vec<Vec<Option<Consumer<Parcel>>>> = Vec::new();
    for _ in 0..count {
        producers.push((0..count).map(|_| None).collect());
        consumers.push((0..count).map(|_| None).collect());
    }
    for from in 0..count {
        for to in (0..count).filter(|&to| to != from) {
            let (producer, consumer) = link(sleepers[to].clone());
            producers[from][to] = Some(producer);
            consumers[to][from] = Some(consumer);
        }
    }
    let ends = producers.into_iter().zip(consumers);
    ends.map(|(producers, consumers)| {
        let both = producers.into_iter().zip(consumers).enumerate();
        let peers = both.filter_map(|(other, (producer, consumer))| {
            let core = CoreId(u16::try_from(other).ok()?);
            Some(Peer::new(
                core,
                producer?,
                consumer?,
                doorbells[other].clone(),
            ))
        });
        Mesh::new(peers.collect())
    })
    .collect()
}

/// What a core's thread starts from.
struct Seed {
    id: CoreId,
    placement: Placement,
    cluster: [u8; 16],
    options: Options,
    revoked: Arc<Revocations>,
    audit: Queue,
    data: Arc<DataDir>,
    admission: Arc<Admission>,
    farewells: Arc<Farewells>,
    sleeper: Arc<Sleeper>,
    orders: Receiver<Control>,
}

impl Seed {
    /// Starts the core's thread on its processor.
    fn plant(self, processor: usize) -> Result<Started, NodeError> {
        let (prepared, is_prepared) = bounded(1);
        let (go, may_go) = bounded(1);
        let builder = LocalExecutorBuilder::new(Pin::Fixed(processor));
        let thread = builder
            .name(&format!("iris-core-{}", self.id.0))
            .io_memory(EXECUTOR_IO_MEMORY)
            .spawn(move || self.run(prepared, may_go))
            .map_err(|error| NodeError::Executor {
                processor,
                reason: error.to_string(),
            })?;
        Ok(Started {
            processor,
            thread,
            prepared: is_prepared,
            go,
        })
    }

    /// The life of one core.
    async fn run(self, prepared: Sender<Prepared>, may_go: Receiver<Go>) -> Vec<(LogId, u64)> {
        let ready = self.recover().and_then(|logs| {
            let sockets = Sockets::new(SocketsConfig::default())?;
            Ok((logs, sockets))
        });
        let (mut logs, sockets) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                let _ = prepared.send(Err(error)); // the starter waits for exactly this
                return Vec::new();
            }
        };
        let doorbell = sockets.doorbell();
        let _ = prepared.send(Ok(doorbell));
        // Blocks this thread, which has nothing to do yet. An error: another core did not start.
        let Ok(Go { mesh, listener }) = may_go.recv() else {
            return Vec::new();
        };
        for (_, _, files) in &mut logs {
            let doorbell = sockets.doorbell();
            files.on_done(move || doorbell.ring());
        }
        let parts = CoreParts {
            id: self.id,
            placement: self.placement,
            policy: self.options.policy,
            revoked: self.revoked,
            audit: self.audit,
            admission: self.admission,
            farewells: self.farewells,
            cluster: self.cluster,
            logs,
            mesh,
            sleeper: self.sleeper,
            control: self.orders,
            hooks: self.options.hooks,
        };
        let mut core = Core::new(parts, sockets);
        core.listen(listener);
        core.run().await
    }

    /// Opens this core's logs.
    fn recover(&self) -> Result<Vec<(LogId, Store, Files)>, NodeError> {
        let placement = self.placement;
        let mut logs = Vec::new();
        for log in (0..placement.logs()).map(LogId) {
            if placement.core_of_log(log) != self.id {
                continue;
            }
            let options = &self.options;
            let setup = self
                .data
                .setup(u32::from(log.0), options.shard, options.upkeep);
            let (store, files) = open_log(&self.data, u32::from(log.0), setup)?;
            logs.push((log, store, files));
        }
        Ok(logs)
    }
}
