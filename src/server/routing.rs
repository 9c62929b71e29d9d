//! Where routes come from, and what makes tables of them: the source and the publisher of one instance.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    config::{Config, SourceConfig},
    live::{Live, Status},
    source::{
        Update, directory,
        etcd::Etcd,
        publish::{Acceptance, Publisher},
        resolve::Names,
    },
    telemetry::metrics::Metrics,
};

/// Updates that may wait for the publisher; a full channel slows the source down.
const UPDATES: usize = 64;

/// The source and the publisher, ready to be started.
pub(super) struct Routing {
    source: Source,
    publisher: Publisher,
    live: Arc<Live>,
}

impl Routing {
    /// Reads nothing yet.
    ///
    /// # Errors
    ///
    /// Names the flag and the file or directory that can't be used.
    pub(super) fn new(
        config: &Config,
        live: &Arc<Live>,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let source = Source::new(config, metrics)?;
        let publisher = Publisher::new(
            live.clone(),
            metrics.clone(),
            config.prefix.clone(),
            config.balance,
            Names::start(),
        );
        Ok(Self {
            source,
            publisher,
            live: live.clone(),
        })
    }

    /// How an operator makes the publisher apply what it holds.
    pub(super) fn acceptance(&self) -> Acceptance {
        self.publisher.acceptance()
    }

    /// Starts its parts among these tasks; routes are read once `registered` ends.
    pub(super) fn start(
        self,
        registered: Option<impl Future<Output = ()> + Send + 'static>,
        tasks: &mut JoinSet<&'static str>,
    ) {
        let Self {
            source,
            publisher,
            live,
        } = self;
        let (updates, received) = mpsc::channel(UPDATES);
        tasks.spawn(async move {
            publisher.run(received).await;
            "publisher"
        });
        tasks.spawn(async move {
            // Whoever waits for a change waits for all who may have read the routes before it.
            if let Some(registered) = registered {
                registered.await;
            }
            source.run(live, updates).await;
            "source"
        });
    }
}

/// The state of the source before it runs.
pub(super) fn initial_status(source: &SourceConfig) -> Status {
    let (kind, location) = match source {
        SourceConfig::Etcd(etcd) => ("etcd", etcd.endpoints.join(",")),
        SourceConfig::Directory(path) => ("directory", path.display().to_string()),
    };
    Status {
        kind,
        connected: false,
        location,
        stale_since: None,
        observed: None,
        error: None,
    }
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

    async fn run(self, live: Arc<Live>, updates: mpsc::Sender<Update>) {
        match self {
            Self::Etcd(etcd) => etcd.run(live, updates).await,
            Self::Directory(directory) => directory.run(live, updates).await,
        }
    }
}
