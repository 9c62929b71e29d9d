//! Wires the parts of one instance; starts them in order, and stops them in the opposite one.

mod routing;

use std::{
    future,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time};
use tracing::{error, info, warn};

use self::routing::Routing;
use crate::{
    admin::Admin,
    config::{Config, SourceConfig},
    descriptors::Descriptors,
    fleet::{
        instance::{Instance, Means},
        reach::Reach,
        records::InstanceRecord,
    },
    live::Live,
    source::{etcd::Connector, snapshot},
    telemetry::{access_log::AccessLog, metrics::Metrics},
    worker::{DataPlane, tls},
};

/// How long the last lines of the access log may take.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// How long the control plane may take to end: applying a million keys can't be interrupted, and nobody needs it now.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);

/// What an instance is told while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Drain, with the delay in which whoever is in front can notice; the second time, end at once.
    Terminate,
    /// Drain without the delay; the second time, end at once.
    Interrupt,
    /// Read the certificates again.
    Reload,
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every request was finished.
    Finished,
    /// Requests were cut off: the time to drain was over, or a second signal came.
    Cut,
}

/// A running instance.
pub struct Server {
    admin: Arc<Admin>,
    admin_address: SocketAddr,
    data_plane: DataPlane,
    access_log: Option<AccessLog>,
    live: Arc<Live>,
    /// Admin API, source and publisher; they end when this is dropped.
    control_plane: JoinSet<&'static str>,
    snapshot: Option<snapshot::Writer>,
    instance: Option<Instance>,
    drain_delay: Duration,
    drain_timeout: Duration,
}

impl Server {
    /// Binds every address, then starts to read routes. Until the first table is there, requests get 503.
    ///
    /// # Errors
    ///
    /// Names the flag, the file or the address; whatever was opened is closed again.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let descriptors = Descriptors::raise(metrics.clone());
        let listener = bind_admin(config.admin).await?;
        // With port 0 the real one is to be refused as an upstream.
        config.admin = listener.local_addr()?;
        let live = Live::new(routing::initial_status(&config.source));
        let access_log = match &config.access_log {
            Some(access_log) => Some(AccessLog::open(access_log, metrics.clone())?),
            None => None,
        };
        let routing = Routing::new(&config, &live, &metrics).await?;
        let data_plane = DataPlane::start(
            &config,
            live.clone(),
            metrics.clone(),
            access_log.clone(),
            descriptors,
        )?;
        let instance = join_fleet(&config, &live, &metrics, &data_plane)?;
        let server = Self {
            instance,
            admin: Admin::new(
                &config,
                live.clone(),
                metrics,
                data_plane.loads(),
                routing.acceptance(),
            ),
            admin_address: config.admin,
            control_plane: JoinSet::new(),
            snapshot: None,
            drain_delay: config.drain_delay,
            drain_timeout: config.drain_timeout,
            data_plane,
            access_log,
            live,
        };
        server.announce(&config);
        Ok(server.with_control_plane(listener, routing))
    }

    /// Where requests are accepted, in the order of `--listen`, port 0 resolved.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.data_plane.addresses()
    }

    /// Where the admin API is, port 0 resolved.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The table and the state of the source.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Serves until told to end, or until the sender of `signals` is gone; then drains.
    pub async fn run(mut self, mut signals: mpsc::Receiver<Signal>) -> End {
        let delay = self.until_drain(&mut signals).await;
        self.admin.begin_drain();
        self.data_plane.begin_drain();
        info!(
            delay_seconds = delay.as_secs_f64(),
            timeout_seconds = self.drain_timeout.as_secs_f64(),
            "draining; a second signal ends at once"
        );
        let is_hurried = AtomicBool::new(false);
        let cut = {
            let mut hurry = pin!(async {
                second(&mut signals).await;
                warn!("a second signal: ending at once");
                is_hurried.store(true, Relaxed);
            });
            tokio::select! {
                () = time::sleep(delay) => {}
                () = &mut hurry => {}
            }
            info!("no longer accepting");
            let grace = async {
                time::sleep(self.drain_timeout).await;
                warn!("the time to drain is over");
            };
            let hurry = async {
                if !is_hurried.load(Relaxed) {
                    hurry.await;
                }
            };
            self.data_plane.finish(grace, hurry).await
        };
        match cut {
            0 => info!("every request was finished"),
            cut => warn!(requests = cut, "requests were cut off"),
        }
        // Not before the last request has ended, or is cut: until then barriers are answered.
        if let Some(instance) = self.instance.take() {
            tokio::select! {
                () = instance.leave() => {}
                () = second(&mut signals) => warn!("a further signal: not waiting for etcd"),
            }
        }
        // The source lets go of what it watches before anybody takes that away.
        let _ = time::timeout(CONTROL_PATIENCE, self.control_plane.shutdown()).await;
        if let Some(snapshot) = self.snapshot.take() {
            snapshot.finish().await;
        }
        if let Some(access_log) = &self.access_log {
            let close = {
                let access_log = access_log.clone();
                move || access_log.close(LOG_PATIENCE)
            };
            if !tokio::task::spawn_blocking(close).await.unwrap_or(false) {
                warn!("the last lines of the access log could not be written");
            }
        }
        match (cut, is_hurried.load(Relaxed)) {
            (0, false) => End::Finished,
            _ => End::Cut,
        }
    }

    /// Returns the delay of the drain that was asked for.
    async fn until_drain(&mut self, signals: &mut mpsc::Receiver<Signal>) -> Duration {
        loop {
            tokio::select! {
                signal = signals.recv() => match signal {
                    Some(Signal::Reload) => self.reload(),
                    Some(Signal::Terminate) => return self.drain_delay,
                    Some(Signal::Interrupt) | None => return Duration::ZERO,
                },
                // None of them ends by itself, but a bug in one must not stop the data plane, which needs none.
                Some(ended) = self.control_plane.join_next() => match ended {
                    Ok(part) => error!(part, "a part of the control plane ended; requests are still served"),
                    Err(error) => error!(%error, "a part of the control plane failed; requests are still served"),
                },
            }
        }
    }

    fn reload(&self) {
        match self.data_plane.reload_certificates() {
            Ok(()) => info!("read the certificates again"),
            Err(error) => error!(
                error = format!("{error:#}"),
                "could not read the certificates again; the old ones stay in use"
            ),
        }
    }

    fn announce(&self, config: &Config) {
        // Tests and scripts that bind port 0 read these lines.
        info!(address = %self.admin_address, "serving the admin API");
        for (address, listener) in self.addresses().iter().zip(&config.listeners) {
            info!(%address, tls = listener.tls.is_some(), "listening");
        }
    }

    fn with_control_plane(mut self, listener: TcpListener, routing: Routing) -> Self {
        let admin = self.admin.clone();
        self.control_plane.spawn(async move {
            if let Err(error) = admin.serve(listener).await {
                error!(error = format!("{error:#}"), "the admin API failed");
            }
            "admin API"
        });
        let dialler = self.data_plane.dialler();
        self.snapshot = routing.start(self.instance.as_ref(), dialler, &mut self.control_plane);
        let certificates = self.data_plane.certificates();
        self.control_plane.spawn(async move {
            tls::watch(certificates).await;
            "certificates"
        });
        self
    }
}

/// Registers the instance, where there is a fleet.
fn join_fleet(
    config: &Config,
    live: &Arc<Live>,
    metrics: &Arc<Metrics>,
    data_plane: &DataPlane,
) -> anyhow::Result<Option<Instance>> {
    let SourceConfig::Etcd(etcd) = &config.source else {
        return Ok(None);
    };
    let record = InstanceRecord::of_this_process(data_plane.addresses(), config.admin);
    let means = Means {
        reach: Reach::new(Connector::new(etcd.clone())?),
        live: live.clone(),
        metrics: metrics.clone(),
        gate: data_plane.gate(),
    };
    Instance::register(&record, &config.prefix, means).map(Some)
}

async fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("--admin: could not listen on {address}; free it or choose another address")
    })
}

/// Ends with the next signal that asks for an end; a sender that is gone asks for nothing any more.
async fn second(signals: &mut mpsc::Receiver<Signal>) {
    loop {
        match signals.recv().await {
            Some(Signal::Terminate | Signal::Interrupt) => return,
            Some(Signal::Reload) => {}
            None => future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::config::{ServeArgs, listener};

    fn config(hosts_dir: &Path) -> Config {
        let mut args = ServeArgs::default();
        args.hosts_dir = Some(hosts_dir.to_owned());
        args.listen = vec![listener::parse("http://127.0.0.1:0").unwrap()];
        args.admin = ([127, 0, 0, 1], 0).into();
        args.workers = Some(1);
        args.drain_delay = Duration::ZERO;
        args.resolve().unwrap()
    }

    /// An upstream that has a request, and holds its answer back.
    async fn request_in_flight(server: &Server, hosts_dir: &Path) -> (TcpStream, TcpStream) {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = upstream.local_addr().unwrap();
        std::fs::create_dir(hosts_dir.join("a.test")).unwrap();
        std::fs::write(hosts_dir.join("a.test").join(address.to_string()), "").unwrap();
        let mut applied = server.live().applied.subscribe();
        while server.live().table.load().counts().routes == 0 {
            applied.changed().await.unwrap();
        }
        let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            .await
            .unwrap();
        let (mut held, _) = upstream.accept().await.unwrap();
        held.read_u8().await.unwrap();
        (client, held)
    }

    #[tokio::test]
    async fn a_running_request_is_finished_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(config(dir.path())).await.unwrap();
        let (mut client, mut held) = request_in_flight(&server, dir.path()).await;
        let (signal, signals) = mpsc::channel(1);
        let admin = server.admin.clone();
        let running = tokio::spawn(server.run(signals));
        signal.send(Signal::Terminate).await.unwrap();
        while !admin.is_draining() {
            tokio::task::yield_now().await;
        }
        held.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await
            .unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        assert!(
            reply.starts_with("HTTP/1.1 200 OK") && reply.ends_with("ok"),
            "{reply}"
        );
        assert_eq!(running.await.unwrap(), End::Finished);
    }

    #[tokio::test]
    async fn a_second_signal_ends_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(config(dir.path())).await.unwrap();
        let (_client, mut held) = request_in_flight(&server, dir.path()).await;
        let (signal, signals) = mpsc::channel(3);
        for sent in [Signal::Reload, Signal::Interrupt, Signal::Terminate] {
            signal.send(sent).await.unwrap();
        }
        let end = time::timeout(Duration::from_secs(10), server.run(signals)).await;
        assert_eq!(end, Ok(End::Cut));
        // Not even what the worker's thread would do after that: the fleet is told that nothing runs.
        let mut rest = Vec::new();
        let cut = time::timeout(Duration::from_secs(10), held.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "the request runs on");
    }

    #[tokio::test]
    async fn a_busy_admin_address_fails_the_start_and_names_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = config(dir.path());
        config.admin = taken.local_addr().unwrap();
        let Err(error) = Server::start(config).await else {
            panic!("the address was taken twice")
        };
        let error = format!("{error:#}");
        assert!(error.contains("--admin"), "{error}");
        assert!(
            error.contains(&taken.local_addr().unwrap().to_string()),
            "{error}"
        );
    }
}
