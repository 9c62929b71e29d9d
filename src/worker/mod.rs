//! The data plane: one thread per worker, each with its own sockets, tasks and pools.
//!
//! Nothing on a request's way crosses threads but the table and the counters in upstreams. Kernel-side
//! `SO_REUSEPORT` spreads connections over the workers.

mod admission;
mod connection;
mod http2;
pub mod io;
pub mod listener;
pub mod proxy_protocol;
mod refusals;
mod room;
mod strict;
mod thread;
pub mod tls;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use http::HeaderName;
use tokio::{
    net::TcpStream,
    sync::{oneshot, watch},
};

pub use self::thread::Work;
use self::{admission::Admission, thread::Shared, tls::TlsStore};
use crate::{
    config::Config,
    descriptors::Descriptors,
    gate::Gate,
    live::Live,
    proxy::{forwarded::TrustedProxies, upgrade::CLOSING},
    telemetry::{access_log::AccessLog, metrics::Metrics},
    upstream::{
        dial::{Deny, Dialler},
        load::Loads,
        tls::UpstreamTls,
    },
};

/// All workers of the process.
pub struct DataPlane {
    addresses: Vec<SocketAddr>,
    certificates: Vec<Arc<TlsStore>>,
    stage: watch::Sender<Stage>,
    workers: Vec<Worker>,
    gate: Gate,
    loads: Arc<Loads>,
    dialler: Dialler,
}

struct Worker {
    thread: JoinHandle<()>,
    /// The number of requests that were cut, once the worker has ended.
    ended: oneshot::Receiver<usize>,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It hasn't begun.
    Serving,
    /// Connections are told to leave; new ones are still taken.
    Draining,
    /// No new connections; running requests finish.
    Closing,
    /// What still runs is cut, but for WebSockets: those are told to leave.
    Leaving,
    /// Those that did not are cut too.
    Aborting,
}

/// The sockets of one worker, and how connections on each begin.
struct Accepting {
    socket: TcpListener,
    opening: Opening,
}

/// What comes before a client's first request.
#[derive(Clone)]
struct Opening {
    /// Where the listener is.
    address: SocketAddr,
    /// A PROXY header.
    proxy_protocol: bool,
    /// Then a TLS handshake.
    tls: Option<Arc<TlsStore>>,
}

impl Opening {
    /// Which address of ours a client came to. Where the listener has them all its connection knows.
    fn destination(&self, stream: &TcpStream) -> Option<SocketAddr> {
        match self.address.ip().is_unspecified() {
            true => stream.local_addr().ok(),
            false => Some(self.address),
        }
    }
}

/// How long WebSockets may take to leave: longer than each of them is given.
const LEAVING: Duration = CLOSING.saturating_add(Duration::from_millis(500));
/// How long the workers may take to end once they were told to cut what runs.
const ABORT: Duration = Duration::from_secs(2);

impl DataPlane {
    /// Binds every listener and starts the workers. A busy port or a bad certificate fails it: whatever was opened
    /// is closed again, and the error names the address or the file.
    pub fn start(
        config: &Config,
        live: Arc<Live>,
        metrics: Arc<Metrics>,
        access_log: Option<AccessLog>,
        descriptors: Arc<Descriptors>,
    ) -> anyhow::Result<Self> {
        let (mut data_plane, works) =
            Self::prepare(config, live, metrics, access_log, descriptors)?;
        for (index, work) in works.into_iter().enumerate() {
            let (tell, ended) = oneshot::channel();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || work.run(tell))
                .context("starting a worker thread")?;
            data_plane.workers.push(Worker { thread, ended });
        }
        Ok(data_plane)
    }

    /// Binds every listener, and leaves it to the caller to run the workers: their requests end with this, and nothing
    /// waits for them.
    ///
    /// # Errors
    ///
    /// As [`DataPlane::start`].
    pub fn prepare(
        config: &Config,
        live: Arc<Live>,
        metrics: Arc<Metrics>,
        access_log: Option<AccessLog>,
        descriptors: Arc<Descriptors>,
    ) -> anyhow::Result<(Self, Vec<Work>)> {
        let certificates = config
            .listeners
            .iter()
            .map(|listener| {
                let Some(tls) = &listener.tls else {
                    return Ok(None);
                };
                TlsStore::load(tls, config.tls_dir.as_deref())
                    .map(|store| Some(Arc::new(store)))
                    .with_context(|| format!("--listen https://{}", listener.address))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let sockets = listener::bind_all(&config.listeners, config.workers)?;
        let addresses = sockets
            .iter()
            .map(|sockets| {
                sockets[0]
                    .local_addr()
                    .context("reading the address of a listener")
            })
            .collect::<anyhow::Result<Vec<_>>>()?;

        let upstream_tls = Arc::new(UpstreamTls::new());
        let preloading = upstream_tls.clone();
        std::thread::Builder::new()
            .name("authorities".to_owned())
            .spawn(move || preloading.preload())
            .context("starting a thread")?;
        let own = addresses.iter().copied().chain([config.admin]).collect();
        let trusted = config.trusted_proxies.iter().copied();
        let trusted = Arc::new(trusted.collect::<TrustedProxies>());
        if let Some(most) = config.limits.connections.process {
            descriptors.look_at(most);
        }
        let admission = Admission::new(
            &config.limits.connections,
            descriptors.client_share(),
            trusted.clone(),
            metrics.clone(),
        );
        let shared = Shared {
            live,
            metrics,
            access_log,
            trusted,
            admission,
            forwarded: config.forwarded,
            certificate_fields: certificate_fields(config),
            deny: Arc::new(Deny::new(config.upstream_deny.clone(), own)),
            tls: upstream_tls,
            limits: config.limits,
            drain_timeout: config.drain_timeout,
            most_idle: descriptors.idle_share(config.workers),
            descriptors,
        };
        let mut by_worker: Vec<Vec<Accepting>> = (0..config.workers).map(|_| Vec::new()).collect();
        let openings = config.listeners.iter().zip(&addresses).zip(&certificates);
        let openings = openings.map(|((listener, address), store)| Opening {
            address: *address,
            proxy_protocol: listener.proxy_protocol,
            tls: store.clone(),
        });
        for (sockets, opening) in sockets.into_iter().zip(openings) {
            for (accepting, socket) in by_worker.iter_mut().zip(sockets) {
                let opening = opening.clone();
                accepting.push(Accepting { socket, opening });
            }
        }
        let stage = watch::Sender::new(Stage::Serving);
        let (gate, questions) = Gate::over(config.workers);
        let (loads, worker_loads) = Loads::over(config.workers);
        let works = by_worker.into_iter().zip(questions).zip(worker_loads);
        let works = works.map(|((accepting, questions), loads)| Work {
            shared: shared.clone(),
            loads,
            accepting,
            stage: stage.subscribe(),
            questions,
        });
        let works = works.collect();
        let data_plane = Self {
            addresses,
            certificates: certificates.into_iter().flatten().collect(),
            stage,
            workers: Vec::with_capacity(config.workers),
            gate,
            loads,
            dialler: shared.dialler(),
        };
        Ok((data_plane, works))
    }

    /// The addresses that were bound, in the order of the listeners (port 0 resolved).
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// Where the workers can be asked what they do.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// What is in flight to each upstream.
    pub fn loads(&self) -> Arc<Loads> {
        self.loads.clone()
    }

    /// What dials as the workers do.
    pub fn dialler(&self) -> Dialler {
        self.dialler.clone()
    }

    /// The certificates of the listeners, to be watched for changes.
    pub fn certificates(&self) -> Vec<Arc<TlsStore>> {
        self.certificates.clone()
    }

    /// Reads every certificate again; on an error the old ones stay in use. Blocks on the file system.
    pub fn reload_certificates(&self) -> anyhow::Result<()> {
        tls::reload_all(&self.certificates)
    }

    /// From now on HTTP/1 answers carry `Connection: close` and HTTP/2 connections get GOAWAY; accepting goes on.
    pub fn begin_drain(&self) {
        self.stage.send_replace(Stage::Draining);
    }

    /// Accepts what is queued, closes the listening sockets, and waits until the last request ended or `grace` did;
    /// what still runs then is cut off, WebSockets only if they don't leave when told to. With the end of `hurry` nothing
    /// is waited for. Returns how many requests were cut.
    pub async fn finish(
        self,
        grace: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> usize {
        self.stage.send_replace(Stage::Closing);
        let stage = self.stage;
        let leave = async {
            grace.await;
            stage.send_replace(Stage::Leaving);
            tokio::time::sleep(LEAVING).await;
        };
        let abort = async {
            tokio::select! {
                () = leave => {}
                () = hurry => {}
            }
            stage.send_replace(Stage::Aborting);
            tokio::time::sleep(ABORT).await;
        };
        let mut workers = self.workers;
        let (mut cut, mut told) = (0, 0);
        let all_ended = async {
            for worker in &mut workers {
                cut += (&mut worker.ended).await.unwrap_or(0);
                told += 1;
            }
        };
        tokio::select! {
            () = all_ended => {}
            () = abort => {}
        }
        // A worker that hangs cannot tell; whatever it hangs in was not finished.
        for worker in &mut workers[told..] {
            cut += worker.ended.try_recv().unwrap_or(1);
        }
        if told == workers.len() {
            for worker in workers {
                // It has told its end, so this does not wait; a panic in it was logged by the hook.
                let _ = worker.thread.join();
            }
        }
        cut
    }
}

/// The fields by which upstreams are told of clients' certificates, whatever the listener; and those that would tell of
/// the rest of the chain, which we don't, and which nobody else may (RFC 9440 section 2.4).
fn certificate_fields(config: &Config) -> Arc<[HeaderName]> {
    let listeners = config.listeners.iter();
    let clients = listeners.filter_map(|listener| listener.tls.as_ref()?.clients.as_ref());
    let headers = clients.filter_map(|clients| clients.header.as_ref());
    let names = headers.flat_map(|header| {
        let chain = HeaderName::try_from(format!("{}-chain", header.name));
        [Some(header.name.clone()), chain.ok()]
    });
    names.flatten().collect()
}
