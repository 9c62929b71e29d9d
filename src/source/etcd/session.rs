//! One connection's life: recognise the cluster, read if need be, watch until something ends it.

use std::{convert::Infallible, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    State,
    assembly::{Assembly, Heard},
    connection::{CALL_TIME, silent},
    fault::Fault,
    identity::Reread,
    known::Known,
    reading::{Everything, Reading},
    report::Report,
    transport::{Connect, Transport, Watch},
};
use crate::{
    route::Revision,
    source::{Change, Entry, Update},
};

/// After an unpinned read, a watch this quiet has brought what it had: etcd serves a late watch every 100 ms.
const CAUGHT_UP: Duration = Duration::from_secs(1);

/// What is done over one connection.
pub(super) struct Session<'a, C> {
    pub(super) connector: &'a C,
    pub(super) prefix: &'a [u8],
    pub(super) range_end: &'a [u8],
    pub(super) state: &'a mut State,
    pub(super) report: &'a mut Report,
    pub(super) updates: &'a mpsc::Sender<Update>,
    /// Since when the watch stands, if it got so far.
    pub(super) watching_since: Option<Instant>,
}

impl<C: Connect> Session<'_, C> {
    /// Goes as far as it can; what ends it says how to go on.
    pub(super) async fn run(&mut self, endpoint: &str) -> Result<Infallible, Fault> {
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
    async fn recognise(&mut self, connection: &impl Transport) -> Result<(), Fault> {
        let State::Watching(known) = &self.state else {
            return Ok(());
        };
        let verdict = match known.identity.witness() {
            Some(witness) => {
                let testimony = connection.ask(&witness, known.revision).await?;
                known.identity.judge(&witness, &testimony)
            }
            None => Err(Reread::NoWitness),
        };
        if let Err(reason) = verdict {
            *self.state = State::Snapshot(reason);
        }
        Ok(())
    }

    async fn read(
        &mut self,
        connection: &impl Transport,
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
                self.publish_snapshot(entries, revision, cluster_id, reason)
                    .await
            }
            Everything::Unpinned(catch_up) => {
                self.report
                    .read(endpoint, reason, catch_up.from, catch_up.keys());
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
        reason: Reread,
    ) -> Result<(), Fault> {
        let known = Known::of(self.prefix, cluster_id, revision, &entries);
        self.send(Update::Snapshot {
            entries,
            revision,
            history: reason.history(),
        })
        .await?;
        *self.state = State::Watching(known);
        Ok(())
    }

    /// One watch, until it ends.
    async fn watch(
        &mut self,
        connection: &impl Transport,
        endpoint: &str,
    ) -> Result<Infallible, Fault> {
        let from = match &self.state {
            State::Watching(known) => known.revision,
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
                Heard::Changes(changes, revision) => {
                    debug!(revision, changes = changes.len(), "etcd changed");
                    self.apply(changes, revision).await?;
                }
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
            State::Watching(known) => {
                known.follow(&changes, up_to);
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
            State::Watching(known) => {
                known.revision = up_to;
                self.send(Update::Progress { revision: up_to }).await
            }
            // A notice comes only once the watch has nothing left to bring.
            State::CatchingUp { .. } => self.publish_caught_up(up_to).await,
            State::Snapshot(_) => Ok(()),
        }
    }

    async fn publish_caught_up(&mut self, revision: Revision) -> Result<(), Fault> {
        let state = std::mem::replace(self.state, State::Snapshot(Reread::Start));
        let State::CatchingUp { catch_up, reason } = state else {
            *self.state = state;
            return Ok(());
        };
        let cluster_id = catch_up.cluster_id;
        self.publish_snapshot(catch_up.into_entries(), revision, cluster_id, reason)
            .await
    }

    async fn send(&self, update: Update) -> Result<(), Fault> {
        self.updates.send(update).await.map_err(|_| Fault::Unwanted)
    }
}

/// Everything below the prefix, in as many pages as it takes.
pub(super) async fn read_everything(
    connection: &impl Transport,
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
