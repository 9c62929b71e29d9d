//! Where routes come from, what makes tables of them, and what keeps them on disk: the source, the publisher and the
//! snapshot of one instance.

use std::{
    future,
    path::Path,
    sync::{Arc, Weak},
    time::Instant,
};

use futures_util::future::BoxFuture;

use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
};
use tracing::{info, warn};

use crate::{
    config::{Config, SourceConfig},
    fleet::instance::Instance,
    live::{Live, Status},
    source::{
        Update, directory,
        etcd::Etcd,
        publish::{Acceptance, Publisher},
        resolve::Names,
        snapshot::{Disk, Stored, Writer},
    },
    telemetry::metrics::Metrics,
    upstream::{
        dial::Dialler,
        health::{Checks, Finding, checker::Checker, probe::Probe},
    },
};

/// Updates that may wait for the publisher; a full channel slows the source down.
const UPDATES: usize = 64;

/// The source, the publisher and the disk, ready to be started.
pub(super) struct Routing {
    source: Source,
    publisher: Publisher,
    disk: Option<Disk>,
    /// What the publisher begins with, if anything, and how many members of etcd may know better.
    restored: Option<(Stored, usize)>,
    /// The health checks that routes ask for.
    checks: mpsc::UnboundedReceiver<Weak<Checks>>,
    live: Arc<Live>,
    metrics: Arc<Metrics>,
}

impl Routing {
    /// Reads what is on disk, and nothing else yet.
    ///
    /// # Errors
    ///
    /// Names the flag and the file or directory that can't be used.
    pub(super) async fn new(
        config: &Config,
        live: &Arc<Live>,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let mut source = Source::new(config, metrics)?;
        let (checker, checks) = mpsc::unbounded_channel();
        let publisher = Publisher::new(
            live.clone(),
            metrics.clone(),
            config.prefix.clone(),
            config.balance,
            Names::start(),
        )
        .checked_by(checker);
        let (mut disk, mut restored) = (None, None);
        if let Some(path) = &config.snapshot {
            let (opened, stored) = read(path, &config.prefix).await?;
            disk = Some(opened);
            if let Some(stored) = stored {
                be_stale(live, &stored);
                source = source.resuming(&stored);
                restored = Some((stored, members(&config.source)));
            }
        }
        Ok(Self {
            source,
            publisher,
            disk,
            restored,
            checks,
            live: live.clone(),
            metrics: metrics.clone(),
        })
    }

    /// How an operator makes the publisher apply what it holds.
    pub(super) fn acceptance(&self) -> Acceptance {
        self.publisher.acceptance()
    }

    /// Starts its parts among these tasks, and what writes the snapshot, if anything does. Nothing is read before the
    /// fleet knows of `instance`, if it can, and what is on disk is not served before etcd could say more: whoever waits
    /// for a change waits for all who may have routes from before it.
    pub(super) fn start(
        self,
        instance: Option<&Instance>,
        dialler: Dialler,
        tasks: &mut JoinSet<&'static str>,
    ) -> Option<Writer> {
        let Self {
            source,
            mut publisher,
            disk,
            restored,
            checks,
            live,
            metrics,
        } = self;
        let checker = Checker::new(probe_by(dialler), metrics.clone());
        tasks.spawn(async move {
            checker.run(checks).await;
            "health checks"
        });
        let mut writer = None;
        if let Some(disk) = disk {
            let (tell, frames) = watch::channel(None);
            publisher = publisher.archiving(tell);
            writer = Some(Writer::start(disk, frames, metrics));
        }
        let (updates, received) = mpsc::channel(UPDATES);
        if let Some((stored, members)) = restored {
            let alone = instance.map(|instance| instance.alone(members));
            publisher = publisher.restoring(stored, async {
                match alone {
                    Some(alone) => alone.await,
                    None => future::pending().await,
                }
            });
        }
        tasks.spawn(async move {
            publisher.run(received).await;
            "publisher"
        });
        let registered = instance.map(Instance::tried);
        tasks.spawn(async move {
            if let Some(registered) = registered {
                registered.await;
            }
            source.run(live, updates).await;
            "source"
        });
        writer
    }
}

/// How the checker asks an upstream.
fn probe_by(dialler: Dialler) -> impl Fn(Arc<Checks>) -> BoxFuture<'static, Finding> {
    let probe = Arc::new(Probe::new(dialler));
    move |checks| {
        let probe = probe.clone();
        Box::pin(async move { probe.ask(&checks.upstream, &checks.settings).await })
    }
}

fn members(source: &SourceConfig) -> usize {
    match source {
        SourceConfig::Etcd(etcd) => etcd.endpoints.len(),
        SourceConfig::Directory(_) => 0,
    }
}

/// The disk, and what it has, if that is of any use.
async fn read(path: &Path, prefix: &str) -> anyhow::Result<(Disk, Option<Stored>)> {
    let (path, prefix) = (path.to_owned(), prefix.to_owned());
    let (disk, read) = spawn_blocking(move || {
        let disk = Disk::open(&path, &prefix)?;
        let read = disk.read();
        anyhow::Ok((disk, read))
    })
    .await??;
    let file = disk.path().display();
    let stored = match read {
        Ok(Some(stored)) => {
            info!(
                %file,
                revision = stored.revision,
                keys = stored.entries.len(),
                age_seconds = stored.age().as_secs(),
                "read the snapshot; its routes are served with what changed since, or as they are if etcd doesn't tell"
            );
            Some(stored)
        }
        Ok(None) => {
            info!(%file, "there is no snapshot yet");
            None
        }
        Err(error) => {
            warn!(%file, "the snapshot is passed over and will be replaced: {error}");
            None
        }
    };
    Ok((disk, stored))
}

/// Until etcd is heard of, the routes are as old as they are on disk.
fn be_stale(live: &Live, stored: &Stored) {
    live.status.send_modify(|status| {
        let now = Instant::now();
        status.stale_since = Some(now.checked_sub(stored.age()).unwrap_or(now));
        status.observed = Some(stored.revision);
        status.error = Some(
            "etcd was not heard of yet; until then the routes are those of --snapshot".to_owned(),
        );
    });
}

/// The state of the source before it runs.
pub(super) fn initial_status(source: &SourceConfig) -> Status {
    let (kind, location) = match source {
        SourceConfig::Etcd(etcd) => ("etcd", etcd.endpoints.join(",")),
        SourceConfig::Directory(path) => ("directory", path.display().to_string()),
    };
    Status::before(kind, location)
}

enum Source {
    Etcd(Box<Etcd>),
    Directory(Box<directory::Directory>),
}

impl Source {
    fn new(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        let prefix = config.prefix.clone();
        Ok(match &config.source {
            SourceConfig::Etcd(etcd) => {
                let etcd = Etcd::new(etcd.clone(), prefix)?.counted_in(metrics.clone());
                Self::Etcd(Box::new(etcd))
            }
            SourceConfig::Directory(path) => {
                let directory = directory::Directory::open(path.clone(), &prefix)?;
                Self::Directory(Box::new(directory))
            }
        })
    }

    /// Goes on from what is on disk. A directory has nothing there.
    fn resuming(self, stored: &Stored) -> Self {
        match self {
            Self::Etcd(etcd) => {
                let (cluster_id, revision) = (stored.cluster_id, stored.revision);
                Self::Etcd(Box::new(etcd.resuming(
                    cluster_id,
                    revision,
                    &stored.entries,
                )))
            }
            Self::Directory(_) => self,
        }
    }

    async fn run(self, live: Arc<Live>, updates: mpsc::Sender<Update>) {
        match self {
            Self::Etcd(etcd) => etcd.run(live, updates).await,
            Self::Directory(directory) => directory.run(live, updates).await,
        }
    }
}
