//! The etcd source: reads everything once, then follows one watch, and finds its way back after every fault.
//!
//! [`Etcd::run`] joins the parts. What a response, a page, a failure or a witness *means* is decided by plain functions
//! over values in `assembly`, `reading`, `retry` and `identity`; `connection` makes the calls; `report` tells
//! the operator. What the keys mean is the publisher's business.

mod assembly;
pub mod connection;
pub mod fault;
mod identity;
mod reading;
mod report;
mod retry;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::timeout};

pub use self::connection::{Connection, Connector};
use self::{
    assembly::{Assembly, Heard},
    connection::{CALL_TIME, range_end, silent},
    fault::Fault,
    identity::{Identity, Reread},
    reading::{CatchUp, Everything, Reading},
    report::Report,
    retry::Retry,
};
use super::{Change, Entry, Live, Update};
use crate::{config::EtcdConfig, route::Revision};

/// After an unpinned read, a watch this quiet has brought what it had: etcd serves a late watch every 100 ms.
const CAUGHT_UP: Duration = Duration::from_secs(1);

/// Follows the keys below one prefix of an etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    connector: Connector,
    prefix: Vec<u8>,
    range_end: Vec<u8>,
    state: State,
    retry: Retry,
}

/// What we have, and so what comes next.
#[derive(Debug)]
enum State {
    /// Nothing that a watch could go on from. Read everything, at whichever endpoint answers; on success
    /// `Watching`, or `CatchingUp` if compaction outran the read. A failure stays here.
    Snapshot(Reread),
    /// Everything, but from several revisions; a watch brings what is missing. On success `Watching`, on any
    /// failure `Snapshot`.
    CatchingUp { catch_up: CatchUp, reason: Reread },
    /// Everything up to this revision was passed on. A lost watch stays here and resumes at it, once the witness has
    /// vouched for the history; compaction and another history lead to `Snapshot`.
    Watching {
        revision: Revision,
        identity: Identity,
    },
}

impl Etcd {
    /// A source for the keys below `prefix` (normalised, so it ends in `/`). Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Names the certificate file that can't be read or used.
    pub fn new(config: EtcdConfig, prefix: String) -> anyhow::Result<Self> {
        let connector = Connector::new(config)?;
        Ok(Self {
            retry: Retry::new(connector.endpoints().len()),
            connector,
            range_end: range_end(prefix.as_bytes()),
            prefix: prefix.into_bytes(),
            state: State::Snapshot(Reread::Start),
        })
    }

    /// Sends a snapshot, then every change, for as long as somebody receives them; tells `live.status` how things
    /// are. Whatever fails is tried again for ever. May be dropped at any point.
    ///
    /// A slow receiver slows the watch down: at most one response, or one fragmented revision, is held here.
    pub async fn run(mut self, live: Arc<Live>, updates: mpsc::Sender<Update>) {
        tokio::select! {
            biased;
            () = updates.closed() => {}
            () = self.follow(live, &updates) => {}
        }
    }

    async fn follow(&mut self, live: Arc<Live>, updates: &mpsc::Sender<Update>) {
        let mut report = Report::to(live);
        loop {
            let endpoint = self.connector.endpoints()[self.retry.current()].clone();
            let mut session = Session {
                connector: &self.connector,
                prefix: &self.prefix,
                range_end: &self.range_end,
                state: &mut self.state,
                report: &mut report,
                updates,
                watching_since: None,
            };
            let Err(fault) = session.run(&endpoint).await;
            let watched = session.watching_since.map(|since| since.elapsed());
            if fault == Fault::Unwanted {
                return;
            }
            report.disconnected(&endpoint, &fault);
            if let State::CatchingUp { reason, .. } = self.state {
                self.state = State::Snapshot(reason);
            }
            tokio::time::sleep(self.retry.after(&fault, watched, rand::random())).await;
        }
    }
}

/// Everything below the prefix, once: from the first endpoint that answers.
///
/// # Errors
///
/// Names the endpoints and why each didn't answer.
pub async fn read_all(config: &EtcdConfig, prefix: &str) -> anyhow::Result<(Vec<Entry>, Revision)> {
    let connector = Connector::new(config.clone())?;
    let end = range_end(prefix.as_bytes());
    let mut failures = Vec::new();
    for endpoint in connector.endpoints() {
        let read = async {
            let connection = connector.connect(endpoint).await?;
            read_everything(&connection, prefix.as_bytes(), &end).await
        };
        match read.await {
            Ok(Everything::Pinned {
                entries, revision, ..
            }) => return Ok((entries, revision)),
            // Good enough for a look at the keys one by one.
            Ok(Everything::Unpinned(catch_up)) => {
                let revision = catch_up.from;
                return Ok((catch_up.into_entries(), revision));
            }
            Err(fault) => failures.push(format!("{endpoint}: {fault}")),
        }
    }
    anyhow::bail!(
        "etcd does not answer: {} (--etcd names the endpoints)",
        failures.join("; ")
    )
}

async fn read_everything(
    connection: &Connection,
    prefix: &[u8],
    range_end: &[u8],
) -> Result<Everything, Fault> {
    let mut reading = Reading::below(prefix);
    loop {
        match connection.page(reading.request(), range_end).await {
            Ok(page) => {
                if reading.accept(page) {
                    return Ok(reading.finish());
                }
            }
            Err(Fault::Compacted) => reading.restart(),
            Err(Fault::TooLarge) if reading.shrink() => {}
            Err(Fault::Silent(_)) if reading.has_begun() && reading.shrink() => {}
            Err(fault) => return Err(fault),
        }
    }
}

/// What is done over one connection.
struct Session<'a> {
    connector: &'a Connector,
    prefix: &'a [u8],
    range_end: &'a [u8],
    state: &'a mut State,
    report: &'a mut Report,
    updates: &'a mpsc::Sender<Update>,
    watching_since: Option<Instant>,
}

impl Session<'_> {
    async fn run(&mut self, endpoint: &str) -> Result<Infallible, Fault> {
        let connection = self.connector.connect(endpoint).await?;
        self.recognise(&connection).await?;
        loop {
            if let State::Snapshot(reason) = *self.state {
                self.read(&connection, endpoint, reason).await?;
            }
            match self.watch(&connection, endpoint).await {
                Err(Fault::Compacted) => *self.state = State::Snapshot(Reread::Compacted),
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Before a watch is resumed: is this the history that we know? A witness that knows nothing of it, or none to
    /// ask, and everything is read anew.
    async fn recognise(&mut self, connection: &Connection) -> Result<(), Fault> {
        let State::Watching { revision, identity } = &self.state else {
            return Ok(());
        };
        let verdict = match identity.witness() {
            Some(witness) => identity.judge(&witness, &connection.ask(&witness, *revision).await?),
            None => Err(Reread::NoWitness),
        };
        if let Err(reason) = verdict {
            *self.state = State::Snapshot(reason);
        }
        Ok(())
    }

    async fn read(
        &mut self,
        connection: &Connection,
        endpoint: &str,
        reason: Reread,
    ) -> Result<(), Fault> {
        match read_everything(connection, self.prefix, self.range_end).await? {
            Everything::Pinned {
                entries,
                revision,
                cluster_id,
            } => {
                self.report.read(endpoint, reason, revision, entries.len());
                self.publish_snapshot(entries, revision, cluster_id).await
            }
            Everything::Unpinned(catch_up) => {
                self.report
                    .read(endpoint, reason, catch_up.from, catch_up.len());
                *self.state = State::CatchingUp { catch_up, reason };
                Ok(())
            }
        }
    }

    async fn publish_snapshot(
        &mut self,
        entries: Vec<Entry>,
        revision: Revision,
        cluster_id: u64,
    ) -> Result<(), Fault> {
        let identity = Identity::of(cluster_id, &entries);
        self.send(Update::Snapshot { entries, revision }).await?;
        *self.state = State::Watching { revision, identity };
        Ok(())
    }

    /// One watch, until it ends.
    async fn watch(
        &mut self,
        connection: &Connection,
        endpoint: &str,
    ) -> Result<Infallible, Fault> {
        let from = match &self.state {
            State::Watching { revision, .. } => *revision,
            State::CatchingUp { catch_up, .. } => catch_up.from,
            State::Snapshot(_) => {
                return Err(Fault::Unreachable("nothing to watch from".to_owned()));
            }
        };
        let mut watch = connection.watch(self.prefix, self.range_end, from).await?;
        let mut assembly = Assembly::from(from);
        let mut standing = false;
        loop {
            let next = watch.response();
            let response = match &self.state {
                _ if !standing => {
                    let first = timeout(CALL_TIME, next).await;
                    first.map_err(|_| silent("starting the watch"))??
                }
                State::CatchingUp { .. } => match timeout(CAUGHT_UP, next).await {
                    Ok(response) => response?,
                    Err(_) => {
                        self.publish_caught_up(assembly.revision()).await?;
                        continue;
                    }
                },
                _ => next.await?,
            };
            self.report.observed(response.watch_id, response.revision);
            match assembly.hear(response) {
                Heard::Created => {
                    standing = true;
                    self.watching_since = Some(Instant::now());
                    self.report.connected(endpoint, from);
                }
                Heard::Nothing => {}
                Heard::Changes(changes, revision) => self.apply(changes, revision).await?,
                Heard::Progress(revision) => self.progress(revision).await?,
                Heard::Compacted => return Err(Fault::Compacted),
                Heard::Canceled(reason) => {
                    return Err(Fault::Refused(format!("etcd ended the watch: {reason}")));
                }
            }
        }
    }

    async fn apply(&mut self, changes: Vec<Change>, up_to: Revision) -> Result<(), Fault> {
        match self.state {
            State::Watching { revision, identity } => {
                identity.follow(&changes);
                *revision = up_to;
                self.send(Update::Changes {
                    changes,
                    revision: up_to,
                })
                .await
            }
            State::CatchingUp { catch_up, .. } => {
                catch_up.add(changes);
                if up_to >= catch_up.through {
                    self.publish_caught_up(up_to).await?;
                }
                Ok(())
            }
            State::Snapshot(_) => Ok(()),
        }
    }

    async fn progress(&mut self, up_to: Revision) -> Result<(), Fault> {
        match self.state {
            State::Watching { revision, .. } => {
                *revision = up_to;
                self.send(Update::Progress { revision: up_to }).await
            }
            // A notice comes only once the watch has nothing left to bring.
            State::CatchingUp { .. } => self.publish_caught_up(up_to).await,
            State::Snapshot(_) => Ok(()),
        }
    }

    async fn publish_caught_up(&mut self, revision: Revision) -> Result<(), Fault> {
        let state = std::mem::replace(self.state, State::Snapshot(Reread::Start));
        let State::CatchingUp { catch_up, .. } = state else {
            *self.state = state;
            return Ok(());
        };
        let cluster_id = catch_up.cluster_id;
        self.publish_snapshot(catch_up.into_entries(), revision, cluster_id)
            .await
    }

    async fn send(&self, update: Update) -> Result<(), Fault> {
        self.updates.send(update).await.map_err(|_| Fault::Unwanted)
    }
}
