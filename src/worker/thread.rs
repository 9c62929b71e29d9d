//! A worker's thread: its runtime, its accept loops, its sweep, and its end.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::HeaderName;
use slab::Slab;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{error, warn};

use super::{
    Accepting, Opening, Stage,
    admission::{self, Admission, Admitted, Speaks},
    connection::{self, Arrival},
    room::Room,
};
use crate::{
    config::{ClientLimits, ForwardedField},
    descriptors::{self, Descriptors, Episode},
    gate::Question,
    live::Live,
    moment::Moment,
    proxy::{
        Proxy,
        budget::RetryBudgets,
        client::{Client, Expiry},
        ejections::Ejections,
        forwarded::TrustedProxies,
        in_flight::InFlight,
        upgrade::Ties,
    },
    sweep::{Sweep, TICK},
    telemetry::{access_log::AccessLog, metrics::Metrics},
    upstream::{
        dial::{Deny, Dialler},
        http2,
        load::WorkerLoads,
        pool::Pools,
        request_body::replay::ReplayRoom,
        tls::UpstreamTls,
    },
};

/// What all workers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub live: Arc<Live>,
    pub metrics: Arc<Metrics>,
    pub access_log: Option<AccessLog>,
    pub trusted: Arc<TrustedProxies>,
    pub forwarded: ForwardedField,
    pub certificate_fields: Arc<[HeaderName]>,
    pub deny: Arc<Deny>,
    pub tls: Arc<UpstreamTls>,
    pub limits: ClientLimits,
    pub drain_timeout: Duration,
    pub descriptors: Arc<Descriptors>,
    pub admission: Arc<Admission>,
    /// The most idle connections to upstreams that a worker keeps.
    pub most_idle: usize,
}

impl Shared {
    pub(super) fn dialler(&self) -> Dialler {
        let dialler = Dialler::new(self.deny.clone(), self.tls.clone());
        dialler.relieved_by(self.descriptors.clone())
    }
}

/// Client connections are checked against their limits every so many ticks, pools less often.
const CHECK_EVERY: u32 = 4;
const POOLS_EVERY: u32 = 20;
/// How long accepting pauses when the machine is out of memory or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// More than a listening socket's queue holds: who still comes then would keep the process from ending.
const MOST_QUEUED: usize = 8192;
/// How often accepting what is queued at the end is tried again in vain.
const LAST_ACCEPTS: u32 = 100;
/// How many idle connections a worker closes at once for the sake of others.
const GIVEN: usize = 16;
/// How long idle connections may take to close, once nothing runs any more.
const LAST_CLOSES: Duration = Duration::from_secs(3);

/// A worker whose sockets listen, and which nobody runs yet.
pub struct Work {
    pub(super) shared: Shared,
    pub(super) loads: WorkerLoads,
    pub(super) accepting: Vec<Accepting>,
    pub(super) stage: watch::Receiver<Stage>,
    pub(super) questions: mpsc::Receiver<Question>,
}

impl Work {
    /// Has a thread to itself until the process has drained; then tells how many requests were cut.
    pub(super) fn run(self, tell: oneshot::Sender<usize>) {
        let runtime = match Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
        {
            Ok(runtime) => runtime,
            Err(error) => return error!(%error, "a worker's runtime could not be built"),
        };
        let cut = runtime.block_on(work(self));
        drop(runtime);
        // The other side may have given up waiting.
        let _ = tell.send(cut);
    }

    /// The same on the caller's thread, in a `LocalRuntime` or a `LocalSet` that may have other tasks: in a test nothing
    /// then happens at the same time as anything else.
    pub async fn here(self) -> usize {
        work(self).await
    }
}

/// What the tasks of one worker share.
struct Local {
    proxy: Rc<Proxy>,
    protocols: connection::Protocols,
    connections: RefCell<Slab<Rc<Client>>>,
    descriptors: Arc<Descriptors>,
    admission: Arc<Admission>,
    room: Room,
    accept_failures: RefCell<Episode>,
    most_idle: usize,
}

async fn work(work: Work) -> usize {
    let Work {
        shared,
        loads,
        accepting,
        mut stage,
        questions,
    } = work;
    let sweep = Rc::new(Sweep::default());
    let dialler = Rc::new(shared.dialler());
    let local = Rc::new(Local {
        proxy: Rc::new(Proxy {
            live: shared.live,
            observer: shared.metrics.observer(),
            metrics: shared.metrics,
            access_log: shared.access_log,
            trusted: shared.trusted.clone(),
            forwarded: shared.forwarded,
            certificate_fields: shared.certificate_fields,
            in_flight: InFlight::default(),
            loads,
            ties: Ties::new(shared.drain_timeout),
            cut: Cell::new(0),
            ejections: Ejections::default(),
            pools: Pools::new(sweep.clone()).keeping(shared.most_idle),
            http2: http2::Pools::new(sweep.clone(), dialler.clone()),
            dialler,
            sweep,
            limits: shared.limits,
            draining: Cell::new(false),
            buffers: RefCell::default(),
            retry_budgets: RetryBudgets::default(),
            replay_room: ReplayRoom::default(),
        }),
        protocols: connection::Protocols::new(&shared.limits),
        connections: RefCell::default(),
        descriptors: shared.descriptors,
        admission: shared.admission,
        room: Room::sparing(shared.trusted),
        accept_failures: RefCell::default(),
        most_idle: shared.most_idle,
    });
    tokio::task::spawn_local(sweep_for_ever(local.clone()));
    tokio::task::spawn_local(make_way(local.clone()));
    tokio::task::spawn_local(make_room(local.clone()));
    tokio::task::spawn_local(answer(local.clone(), questions));
    let mut accept_loops = Vec::new();
    for Accepting { socket, opening } in accepting {
        match TcpListener::from_std(socket) {
            Ok(listener) => {
                accept_loops.push(tokio::task::spawn_local(accept(
                    local.clone(),
                    listener,
                    opening,
                    stage.clone(),
                )));
            }
            Err(error) => error!(%error, "a listening socket could not be used"),
        }
    }

    // The sender lives as long as the data plane; without it there is nothing left to serve for.
    let _ = stage.wait_for(|stage| *stage >= Stage::Draining).await;
    local.drain();
    let _ = stage.wait_for(|stage| *stage >= Stage::Closing).await;
    for accept_loop in accept_loops {
        let _ = accept_loop.await;
    }
    local.drain();
    local.finish(stage).await
}

impl Local {
    fn drain(&self) {
        self.proxy.draining.set(true);
        for (_, client) in self.connections.borrow().iter() {
            client.drain();
        }
    }

    /// Cuts what runs, but for WebSockets, which are told that it is time to leave, and for what shares a connection
    /// with one; how many requests were cut.
    fn cut_requests(&self) -> usize {
        let mut cut = 0;
        for (_, client) in self.connections.borrow().iter() {
            if client.is_upgraded() || client.carries() {
                client.expire(Expiry::Leave);
            } else {
                cut += client.unfinished();
                client.expire(Expiry::Abort);
            }
        }
        cut
    }

    /// Cuts whatever there is; how many requests were cut.
    fn cut_all(&self) -> usize {
        let connections = self.connections.borrow();
        let unfinished = connections.iter().map(|(_, client)| client.unfinished());
        let cut = unfinished.sum();
        for (_, client) in connections.iter() {
            client.expire(Expiry::Abort);
        }
        cut
    }

    /// Memory or the like is lacking, and will be for a while.
    fn note_accept_failure(&self, error: &std::io::Error) {
        let noted = self
            .accept_failures
            .borrow_mut()
            .note(std::time::Instant::now());
        if let Some(times) = noted {
            warn!(%error, times, "accepting failed; trying again, twenty times a second");
        }
    }

    fn is_busy(&self) -> bool {
        let connections = self.connections.borrow();
        connections.iter().any(|(_, client)| client.is_busy())
    }

    fn close_idle(&self) {
        for (_, client) in self.connections.borrow().iter() {
            client.expire(Expiry::Drain);
        }
    }

    /// Waits for running requests, then closes idle connections; how many requests were cut.
    async fn finish(&self, stage: watch::Receiver<Stage>) -> usize {
        let mut ticks = interval(TICK);
        let mut closing_since: Option<Instant> = None;
        let mut cut = None;
        loop {
            ticks.tick().await;
            if self.connections.borrow().is_empty() {
                return cut.unwrap_or(0) + self.proxy.cut.get();
            }
            let stage = *stage.borrow();
            if stage >= Stage::Aborting {
                break;
            }
            if stage == Stage::Leaving && cut.is_none() {
                cut = Some(self.cut_requests());
            }
            if self.is_busy() {
                closing_since = None;
                continue;
            }
            let since = *closing_since.get_or_insert_with(Instant::now);
            self.close_idle();
            if since.elapsed() > LAST_CLOSES {
                break;
            }
        }
        let cut = cut.unwrap_or(0) + self.cut_all();
        // Lets the tasks see it and drop what they hold, so that resets and log lines go out.
        ticks.tick().await;
        ticks.tick().await;
        cut + self.proxy.cut.get()
    }

    /// Idle connections of both protocols together stay below their share of the file descriptors: those of HTTP/2
    /// get half of it at most, those of HTTP/1.1 what these leave.
    fn sweep_pools(&self) {
        let Proxy { pools, http2, .. } = &*self.proxy;
        pools.sweep();
        http2.sweep();
        let idle = http2.keep_idle_at_most(self.most_idle / 2);
        pools.keep_at_most(self.most_idle - idle);
    }

    /// Closes a connection that nothing runs on for the sake of another, which comes from there; whether there was one.
    fn make_room(&self, newcomer: Option<IpAddr>) -> bool {
        let connections = self.connections.borrow();
        let now = self.proxy.sweep.now();
        self.room.make(&connections, now, newcomer)
    }

    /// Whoever comes next may find what other workers give up; who comes now does not.
    fn ask_for_room(&self) -> bool {
        self.admission.ask_for_room();
        false
    }

    fn open(self: &Rc<Self>, stream: TcpStream, address: SocketAddr, opening: &Opening) {
        let make_room = || self.make_room(Some(address.ip())) || self.ask_for_room();
        let Some(admitted) = self.admission.admit(address.ip(), make_room) else {
            return admission::turn_away(&stream, Speaks::of(opening));
        };
        let data_plane = &self.proxy.metrics.data_plane;
        data_plane.accepted.inc();
        data_plane.connections.inc();
        let client = Client::new(address, opening.tls.is_some(), self.proxy.sweep.clone());
        if self.proxy.draining.get() {
            client.drain();
        }
        let open = OpenConnection {
            key: self.connections.borrow_mut().insert(client.clone()),
            local: self.clone(),
            client,
            admitted,
        };
        let opening = opening.clone();
        tokio::task::spawn_local(async move {
            let OpenConnection {
                local,
                client,
                admitted,
                ..
            } = &open;
            let arrival = Arrival {
                stream,
                opening,
                admitted,
            };
            let serving = connection::serve(&local.proxy, &local.protocols, client, arrival);
            let Some(switched) = serving.await else {
                return;
            };
            // In a task of its own: this one has room for all that HTTP may ever need, which would stay taken.
            tokio::task::spawn_local(async move {
                let OpenConnection { local, client, .. } = &open;
                switched.splice(&local.proxy, client).await;
            });
        });
    }
}

/// An entry among the connections; gone with its task, however that ends.
struct OpenConnection {
    local: Rc<Local>,
    client: Rc<Client>,
    /// Its place among all connections, which is free again with it.
    admitted: Admitted,
    key: usize,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        // An upgrade that nobody took over holds its request's record, and that the client: neither would ever end.
        drop(self.client.take_upgrade());
        if let Some(owner) = self.client.owner() {
            self.local.proxy.pools.leave(owner);
        }
        self.local.connections.borrow_mut().remove(self.key);
        self.local.proxy.metrics.data_plane.connections.dec();
    }
}

async fn accept(
    local: Rc<Local>,
    listener: TcpListener,
    opening: Opening,
    mut stage: watch::Receiver<Stage>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = stage.wait_for(|stage| *stage >= Stage::Closing) => break,
        };
        // Under a flood there is always one more to accept, and the select above would never look further.
        let closing = *stage.borrow() >= Stage::Closing;
        match accepted {
            Ok((stream, address)) => local.open(stream, address, &opening),
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) if descriptors::are_lacking(&error) => {
                local.descriptors.relief(&error).await;
            }
            Err(error) => {
                local.note_accept_failure(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        if closing {
            break;
        }
    }
    if let Ok(listener) = listener.into_std() {
        accept_queued(&local, &listener, &opening, &stage).await;
    }
}

/// What the kernel has queued was promised to the client: a close would reset it. Where descriptors are lacking, idle
/// connections give theirs, and what runs ends; but not once the time is over for what runs, too.
async fn accept_queued(
    local: &Rc<Local>,
    listener: &std::net::TcpListener,
    opening: &Opening,
    stage: &watch::Receiver<Stage>,
) {
    let mut patience = LAST_ACCEPTS;
    for _ in 0..MOST_QUEUED {
        match listener.accept() {
            Ok((stream, address)) => {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    local.open(stream, address, opening);
                }
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock || patience == 0 => break,
            Err(_) if *stage.borrow() >= Stage::Leaving => break,
            Err(error) if descriptors::are_lacking(&error) => {
                patience -= 1;
                local.make_room(None);
                local.descriptors.relief(&error).await;
            }
            Err(error) => {
                patience -= 1;
                local.note_accept_failure(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of a connection that broke while queued (accept(2)), as opposed to ours.
fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable
    )
}

/// Answers what is asked at the gate. While this runs no other task of the worker does, and a request is routed and
/// sent in one go: so each is either counted here, or has yet to load its table.
async fn answer(local: Rc<Local>, mut questions: mpsc::Receiver<Question>) {
    while let Some(Question { key, answer }) = questions.recv().await {
        let requests = key.map_or(0, |key| local.proxy.in_flight.count(&key));
        // Whoever asked may have given up.
        let _ = answer.send(requests);
    }
}

/// Closes idle connections whenever file descriptors are used up, whichever worker needs them.
async fn make_way(local: Rc<Local>) {
    let mut wanted = local.descriptors.wanted();
    while wanted.changed().await.is_ok() {
        let Proxy { pools, http2, .. } = &*local.proxy;
        if pools.make_way() + http2.make_way() > 0 {
            // Connections of HTTP/2 are closed by their own tasks.
            tokio::task::yield_now().await;
            local.descriptors.freed();
        }
    }
}

/// Closes idle connections when another worker has none, and clients that would need their room.
async fn make_room(local: Rc<Local>) {
    let mut crowded = local.admission.crowded();
    while crowded.changed().await.is_ok() {
        for _ in 0..GIVEN {
            if !local.admission.give(|| local.make_room(None)) {
                break;
            }
        }
        // A flood asks for each of its connections.
        tokio::time::sleep(TICK).await;
    }
}

async fn sweep_for_ever(local: Rc<Local>) {
    let begun = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now =
            u32::try_from(begun.elapsed().as_millis() / TICK.as_millis()).unwrap_or(u32::MAX - 1);
        let sweep = &local.proxy.sweep;
        let passed = |every: u32| now / every != sweep.now() / every;
        let (check, pools) = (passed(CHECK_EVERY), passed(POOLS_EVERY));
        sweep.advance(now);
        if check {
            for (_, client) in local.connections.borrow().iter() {
                client.check(&local.proxy.limits);
            }
        }
        if pools {
            local.sweep_pools();
            local.proxy.retry_budgets.advance();
            local.proxy.ejections.sweep(Moment::now);
        }
        local.proxy.ties.look(&local.proxy.live.table.load(), now);
    }
}
