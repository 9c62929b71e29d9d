//! One connection's life: recognise the cluster, read if need be, watch until something ends it.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Fuse, FusedFuture, FutureExt};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    assembly::{Assembly, Heard, Response},
    backlog::Backlog,
    calls::{ask, read_everything},
    comparison::Differences,
    connection::{CALL_TIME, silent},
    fault::Fault,
    identity::Reread,
    known::Known,
    last_good,
    reading::Everything,
    report::Report,
    state::State,
    transport::{Connect, Responses, Transport, Watch},
    vigil::{Footing, Outcome, Step, Vigil},
};
use crate::{
    route::Revision,
    source::{Change, Entry, Update},
};

/// After an unpinned read, a watch this quiet may have brought what it had, for etcd serves a late watch every 100 ms.
/// Or its member lags, and the pages show what is still to come: only another read tells.
const QUIET: Duration = Duration::from_secs(1);

/// Why a watch is over, though its connection is not.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Everything is to be read.
    Reread(Reread),
    /// It brings more at once than we decode, and is to go on in fragments.
    TooLarge,
}

/// What is done over one connection.
pub(super) struct Session<'a, C> {
    pub(super) connector: &'a C,
    pub(super) endpoint: &'a str,
    pub(super) prefix: &'a [u8],
    pub(super) range_end: &'a [u8],
    pub(super) state: &'a mut State,
    pub(super) vigil: &'a mut Vigil,
    pub(super) is_unvouched: &'a mut bool,
    pub(super) report: &'a mut Report,
    pub(super) updates: &'a mpsc::Sender<Update>,
    /// What the next watch goes on from.
    pub(super) footing: Footing,
    /// How the next watch is asked for.
    pub(super) responses: Responses,
    /// Of the present watch, once it stands.
    pub(super) watch_id: Option<i64>,
    /// What that is late for.
    pub(super) backlog: Option<Backlog>,
    /// Since when a watch stands, if it got so far.
    pub(super) watching_since: Option<Instant>,
}

impl<C: Connect> Session<'_, C> {
    /// Goes as far as it can; what ends it says how to go on.
    pub(super) async fn run(&mut self) -> Result<Infallible, Fault> {
        let mut connection = Arc::new(self.connector.connect(self.endpoint).await?);
        loop {
            // By now another cluster may be behind this endpoint, and why the watch ended be that.
            self.recognise(&*connection).await?;
            if let State::Snapshot { .. } = self.state {
                self.read(&*connection).await?;
            }
            let ending;
            (ending, connection) = self.watch(connection).await?;
            self.report.interrupted(&ending);
            match ending {
                Ending::Reread(reason) => {
                    self.responses = Responses::Whole;
                    self.state.read_anew(reason);
                }
                Ending::TooLarge => self.responses = Responses::InFragments,
            }
        }
    }

    /// Before a watch is resumed, or everything read: is this the history that we know? A witness that knows nothing of
    /// it, or none to ask, and everything is read anew.
    async fn recognise(&mut self, connection: &impl Transport) -> Result<(), Fault> {
        let Some(known) = self.state.known() else {
            return Ok(());
        };
        let verdict = match known.identity.witness() {
            Some(witness) => {
                let testimony = connection.ask(&witness, known.revision).await?;
                known.identity.judge(&witness, &testimony)
            }
            None => Err(Reread::NoWitness),
        };
        self.state.judged(verdict);
        if let State::Watching(_) = self.state
            && *self.is_unvouched
        {
            return self.vouch(connection).await;
        }
        Ok(())
    }

    /// What is known goes on here. How far the store is must be told by something that the watch will bring, as it says
    /// nothing of revisions that touched other keys: so by a pulse, or where none can be put, by reading everything.
    async fn vouch(&mut self, connection: &impl Transport) -> Result<(), Fault> {
        let (key, value) = self.vigil.pulse();
        match connection.put(&key, value).await {
            Ok(through) => {
                self.send(Update::Vouched { through }).await?;
                *self.is_unvouched = false;
            }
            // A fresh login may help, or another member.
            Err(fault @ Fault::Refused(_)) if !fault.is_want_of_rights() => return Err(fault),
            Err(fault) if !fault.is_refusal() => return Err(fault),
            refused => {
                self.report.pulse(&refused);
                self.state.read_anew(Reread::NoPulse);
            }
        }
        Ok(())
    }

    async fn read(&mut self, connection: &impl Transport) -> Result<(), Fault> {
        match read_everything(connection, self.prefix, self.range_end).await? {
            Everything::Pinned {
                entries,
                revision,
                cluster_id,
            } => {
                let last_good = match &*self.state {
                    // Whoever has known anything has known these.
                    State::Snapshot { known: None, .. } => {
                        last_good::find(connection, self.prefix, &entries).await
                    }
                    _ => Vec::new(),
                };
                (self.publish_snapshot(entries, last_good, revision, cluster_id)).await
            }
            Everything::Unpinned(catch_up) => {
                self.report.outrun(self.endpoint, &catch_up);
                if let State::Snapshot { reason, known } = self.state.take() {
                    *self.state = State::CatchingUp {
                        catch_up,
                        reason,
                        known,
                    };
                }
                Ok(())
            }
        }
    }

    async fn publish_snapshot(
        &mut self,
        entries: Vec<Entry>,
        last_good: Vec<Entry>,
        revision: Revision,
        cluster_id: u64,
    ) -> Result<(), Fault> {
        let reason = match &mut *self.state {
            State::Snapshot { reason, known } | State::CatchingUp { reason, known, .. } => {
                let judge =
                    |known: &mut Known| known.judge_read(*reason, cluster_id, revision, &entries);
                known.as_mut().map_or(*reason, judge)
            }
            State::Watching(_) => return Ok(()),
        };
        (self.report).read(self.endpoint, reason, revision, entries.len());
        let known = Known::of(self.prefix, cluster_id, revision, &entries);
        self.send(Update::Snapshot {
            entries,
            revision,
            history: reason.history(),
            cluster_id: Some(cluster_id),
            last_good,
        })
        .await?;
        self.footing = Footing::Read;
        self.vigil.standing(Instant::now(), self.footing, &known);
        *self.state = State::Watching(known);
        *self.is_unvouched = false;
        Ok(())
    }

    /// One watch, until it ends or everything must be read anew, and the connection to go on with.
    async fn watch(
        &mut self,
        connection: Arc<C::Transport>,
    ) -> Result<(Ending, Arc<C::Transport>), Fault> {
        let from = match &self.state {
            State::Watching(known) => known.revision,
            State::CatchingUp { catch_up, .. } => catch_up.from,
            State::Snapshot { .. } => {
                return Err(Fault::Unreachable("nothing to watch from".to_owned()));
            }
        };
        let mut watch =
            (connection.watch(self.prefix, self.range_end, from, self.responses)).await?;
        self.watch_id = None;
        self.backlog = None;
        let mut assembly = Assembly::from(from);
        let mut calls = connection;
        let mut asked = pin!(Fuse::terminated());
        loop {
            let alarm = if asked.is_terminated() {
                self.wakes_at()
            } else {
                None
            };
            let step = tokio::select! {
                biased;
                (outcome, used) = &mut asked => {
                    calls = used;
                    self.answered(outcome)
                }
                response = watch.response() => {
                    if let Err(Fault::TooLarge) = response {
                        return Ok((self.too_large(), calls));
                    }
                    let response = response?;
                    if self.watch_id.is_some_and(|ours| response.watch_id != ours) {
                        self.hear_another(&mut watch, &response).await?;
                    } else if let Some(reason) = self.hear(response, &mut assembly).await? {
                        return Ok((Ending::Reread(reason), calls));
                    }
                    Step::Rest
                }
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {
                    self.ring()?
                }
            };
            self.look_behind(&mut watch, assembly.revision()).await?;
            match step {
                Step::Rest => {}
                Step::Ask(task) => {
                    let asking = ask(self.connector, self.endpoint, calls.clone(), task);
                    asked.set(asking.fuse());
                }
                Step::Reconciled => self.report.reconciled(&Differences::default()),
                Step::Differs(differences) => {
                    self.report.reconciled(&differences);
                    return Ok((Ending::Reread(Reread::Difference), calls));
                }
                Step::Renew(fault) => {
                    if matches!(fault, Fault::Silent(_)) {
                        self.report.silent();
                    }
                    return Err(fault);
                }
                Step::Reread(reason) => {
                    // One that is to complete a read and brings nothing owes nothing: perhaps nothing happened.
                    if let State::Watching(_) = self.state {
                        self.report.silent();
                    }
                    return Ok((Ending::Reread(reason), calls));
                }
            }
        }
    }

    /// What to do about a response over our limit. No smaller ones than fragments can be asked for.
    fn too_large(&self) -> Ending {
        match self.responses {
            Responses::Whole => Ending::TooLarge,
            Responses::InFragments => Ending::Reread(Reread::TooLarge),
        }
    }

    /// Finds out whether the watch has brought all that happened before it stood, and tells.
    async fn look_behind(
        &mut self,
        watch: &mut impl Watch,
        revision: Revision,
    ) -> Result<(), Fault> {
        let Some(backlog) = &mut self.backlog else {
            return Ok(());
        };
        let known = match &self.state {
            State::Watching(known) if backlog.is_over(revision, Instant::now()) => {
                self.backlog = None;
                self.report.connected(self.endpoint, known.revision);
                return Ok(());
            }
            State::Watching(known) => Some(known),
            State::Snapshot { .. } | State::CatchingUp { .. } => None,
        };
        (self.report).catching_up(self.endpoint, revision, backlog.end());
        if !backlog.is_owed_an_answer()
            && let Some(witness) = known.and_then(|known| known.identity.witness())
        {
            watch.ask(&witness.key, witness.mod_revision).await?;
            backlog.asked();
        }
        Ok(())
    }

    /// When silence means something.
    fn wakes_at(&self) -> Option<Instant> {
        match &self.state {
            _ if self.watch_id.is_none() => Some(Instant::now() + CALL_TIME),
            State::CatchingUp { .. } => Some(Instant::now() + QUIET),
            State::Watching(_) => {
                let backlog = self.backlog.as_ref().map(Backlog::silence_ends);
                backlog.into_iter().chain(self.vigil.wakes_at()).min()
            }
            State::Snapshot { .. } => None,
        }
    }

    /// The watch was silent until now.
    fn ring(&mut self) -> Result<Step, Fault> {
        match &self.state {
            _ if self.watch_id.is_none() => Err(silent("starting the watch")),
            State::CatchingUp { reason, .. } => Ok(Step::Reread(*reason)),
            State::Watching(known) => Ok(self.vigil.ring(Instant::now(), known)),
            State::Snapshot { .. } => Ok(Step::Rest),
        }
    }

    fn answered(&mut self, outcome: Outcome) -> Step {
        if let Outcome::Put(result) = &outcome {
            self.report.pulse(result);
        }
        match &self.state {
            State::Watching(known) => self.vigil.answered(Instant::now(), outcome, known),
            State::Snapshot { .. } | State::CatchingUp { .. } => Step::Rest,
        }
    }

    /// Takes a response to another watch than ours in.
    async fn hear_another(
        &mut self,
        watch: &mut impl Watch,
        response: &Response,
    ) -> Result<(), Fault> {
        let backlog = self.backlog.as_mut();
        match backlog.and_then(|backlog| backlog.answered(response)) {
            Some(answered) => watch.take_back(answered).await,
            None => Ok(()),
        }
    }

    /// Takes a response of the watch in; why everything must be read, if it must.
    async fn hear(
        &mut self,
        response: Response,
        assembly: &mut Assembly,
    ) -> Result<Option<Reread>, Fault> {
        self.check_cluster(response.cluster_id)?;
        self.report.observed(response.watch_id, response.revision);
        let Response {
            watch_id,
            revision: there,
            fragment: more_follows,
            ..
        } = response;
        match assembly.hear(response) {
            Heard::Created => {
                let now = Instant::now();
                self.watch_id = Some(watch_id);
                self.watching_since = Some(now);
                self.backlog = Some(Backlog::through(there, now));
                if let State::Watching(known) = &self.state {
                    self.vigil.standing(now, self.footing, known);
                }
                return Ok(None);
            }
            Heard::Nothing if !more_follows => return Ok(None),
            Heard::Nothing => {}
            Heard::Changes(changes, revision) => {
                debug!(revision, changes = changes.len(), "etcd changed");
                self.apply(changes, revision).await?;
            }
            Heard::Progress(revision) => self.progress(revision).await?,
            Heard::Compacted => return Ok(Some(Reread::Compacted)),
            Heard::Canceled(reason) => {
                return Err(Fault::Refused(format!("etcd ended the watch: {reason}")));
            }
        }
        let now = Instant::now();
        self.vigil.heard(now);
        if let Some(backlog) = &mut self.backlog {
            backlog.heard(now);
        }
        Ok(None)
    }

    /// Behind the same connection there may be another cluster, when something in between connects it anew.
    fn check_cluster(&self, cluster_id: u64) -> Result<(), Fault> {
        let known = match &self.state {
            State::Watching(known) => known.identity.cluster_id,
            State::CatchingUp { catch_up, .. } => catch_up.cluster_id,
            State::Snapshot { .. } => return Ok(()),
        };
        match cluster_id {
            0 => Ok(()),
            _ if cluster_id == known => Ok(()),
            _ => Err(Fault::Unreachable("another cluster answers".to_owned())),
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
                self.catch_up(up_to).await
            }
            State::Snapshot { .. } => Ok(()),
        }
    }

    async fn progress(&mut self, up_to: Revision) -> Result<(), Fault> {
        match self.state {
            State::Watching(known) => {
                known.revision = up_to;
                self.send(Update::Progress { revision: up_to }).await
            }
            State::CatchingUp { .. } => self.catch_up(up_to).await,
            State::Snapshot { .. } => Ok(()),
        }
    }

    /// The watch has brought everything up to this revision. Passed on is what no page shows more of.
    async fn catch_up(&mut self, revision: Revision) -> Result<(), Fault> {
        let (catch_up, reason, known) = match self.state.take() {
            State::CatchingUp {
                catch_up,
                reason,
                known,
            } if catch_up.through <= revision => (catch_up, reason, known),
            state => {
                *self.state = state;
                return Ok(());
            }
        };
        *self.state = State::Snapshot { reason, known };
        let cluster_id = catch_up.cluster_id;
        self.publish_snapshot(catch_up.into_entries(), Vec::new(), revision, cluster_id)
            .await
    }

    async fn send(&self, update: Update) -> Result<(), Fault> {
        self.updates.send(update).await.map_err(|_| Fault::Unwanted)
    }
}

#[cfg(test)]
mod tests;
