//! A worker's thread: its runtime, its accept loops, its sweep, and its end.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use slab::Slab;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{error, warn};

use super::{Accepting, Stage, connection, tls::TlsStore};
use crate::{
    gate::Question,
    live::Live,
    proxy::{
        Proxy,
        client::{Client, ClientLimits, Expiry},
        forwarded::TrustedProxies,
        in_flight::InFlight,
    },
    sweep::{Sweep, TICK},
    telemetry::{access_log::AccessLog, metrics::Metrics},
    upstream::{
        dial::{Deny, Dialler},
        pool::Pools,
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
    pub deny: Arc<Deny>,
    pub tls: Arc<UpstreamTls>,
    pub limits: ClientLimits,
}

/// Client connections are checked against their limits every so many ticks, pools less often.
const CHECK_EVERY: u32 = 4;
const POOLS_EVERY: u32 = 20;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// More than a listening socket's queue holds: who still comes then would keep the process from ending.
const MOST_QUEUED: usize = 8192;
/// How long idle connections may take to close, once nothing runs any more.
const LAST_CLOSES: Duration = Duration::from_secs(3);

/// Runs one worker until the process has drained; then tells how many requests were cut.
pub(super) fn run(
    shared: Shared,
    accepting: Vec<Accepting>,
    stage: watch::Receiver<Stage>,
    questions: mpsc::Receiver<Question>,
    tell: oneshot::Sender<usize>,
) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => return error!(%error, "a worker's runtime could not be built"),
    };
    let cut = runtime.block_on(work(shared, accepting, stage, questions));
    drop(runtime);
    // The other side may have given up waiting.
    let _ = tell.send(cut);
}

/// What the tasks of one worker share.
struct Local {
    proxy: Rc<Proxy>,
    protocols: connection::Protocols,
    connections: RefCell<Slab<Rc<Client>>>,
}

async fn work(
    shared: Shared,
    accepting: Vec<Accepting>,
    mut stage: watch::Receiver<Stage>,
    questions: mpsc::Receiver<Question>,
) -> usize {
    let sweep = Rc::new(Sweep::default());
    let local = Rc::new(Local {
        proxy: Rc::new(Proxy {
            live: shared.live,
            metrics: shared.metrics,
            access_log: shared.access_log,
            trusted: shared.trusted,
            in_flight: InFlight::default(),
            pools: Pools::new(sweep.clone()),
            dialler: Dialler::new(shared.deny, shared.tls),
            sweep,
            limits: shared.limits,
            draining: Cell::new(false),
            buffers: RefCell::default(),
        }),
        protocols: connection::Protocols::default(),
        connections: RefCell::default(),
    });
    tokio::task::spawn_local(sweep_for_ever(local.clone()));
    tokio::task::spawn_local(answer(local.clone(), questions));
    let mut accept_loops = Vec::new();
    for Accepting { socket, tls } in accepting {
        match TcpListener::from_std(socket) {
            Ok(listener) => {
                accept_loops.push(tokio::task::spawn_local(accept(
                    local.clone(),
                    listener,
                    tls,
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

    fn unfinished(&self) -> usize {
        let connections = self.connections.borrow();
        connections
            .iter()
            .map(|(_, client)| client.unfinished())
            .sum()
    }

    fn is_busy(&self) -> bool {
        let connections = self.connections.borrow();
        connections.iter().any(|(_, client)| client.is_busy())
    }

    fn expire_all(&self, expiry: Expiry) {
        for (_, client) in self.connections.borrow().iter() {
            client.expire(expiry);
        }
    }

    /// Waits for running requests, then closes idle connections; how many requests were cut.
    async fn finish(&self, stage: watch::Receiver<Stage>) -> usize {
        let mut ticks = interval(TICK);
        let mut closing_since: Option<Instant> = None;
        loop {
            ticks.tick().await;
            if self.connections.borrow().is_empty() {
                return 0;
            }
            if *stage.borrow() >= Stage::Aborting {
                break;
            }
            if self.is_busy() {
                closing_since = None;
                continue;
            }
            let since = *closing_since.get_or_insert_with(Instant::now);
            self.expire_all(Expiry::Drain);
            if since.elapsed() > LAST_CLOSES {
                break;
            }
        }
        let cut = self.unfinished();
        self.expire_all(Expiry::Abort);
        // Lets the tasks see it and drop what they hold, so that resets and log lines go out.
        ticks.tick().await;
        ticks.tick().await;
        cut
    }

    fn open(self: &Rc<Self>, stream: TcpStream, address: SocketAddr, tls: Option<&Arc<TlsStore>>) {
        let data_plane = &self.proxy.metrics.data_plane;
        data_plane.accepted.inc();
        data_plane.connections.inc();
        let client = Client::new(address, tls.is_some(), self.proxy.sweep.clone());
        if self.proxy.draining.get() {
            client.drain();
        }
        let open = OpenConnection {
            key: self.connections.borrow_mut().insert(client.clone()),
            local: self.clone(),
            client,
        };
        let tls = tls.cloned();
        tokio::task::spawn_local(async move {
            let OpenConnection { local, client, .. } = &open;
            connection::serve(&local.proxy, &local.protocols, client, stream, tls).await;
        });
    }
}

/// An entry among the connections; gone with its task, however that ends.
struct OpenConnection {
    local: Rc<Local>,
    client: Rc<Client>,
    key: usize,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        // An upgrade that nobody took over holds its request's record, and that the client: neither would ever end.
        drop(self.client.take_upgrade());
        self.local.connections.borrow_mut().remove(self.key);
        self.local.proxy.metrics.data_plane.connections.dec();
    }
}

async fn accept(
    local: Rc<Local>,
    listener: TcpListener,
    tls: Option<Arc<TlsStore>>,
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
            Ok((stream, address)) => local.open(stream, address, tls.as_ref()),
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                warn!(%error, "accepting failed; trying again shortly");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        if closing {
            break;
        }
    }
    // What the kernel has queued was promised to the client: a close would reset it.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    for _ in 0..MOST_QUEUED {
        let Ok((stream, address)) = listener.accept() else {
            break;
        };
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            local.open(stream, address, tls.as_ref());
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
            local.proxy.pools.sweep();
        }
    }
}
