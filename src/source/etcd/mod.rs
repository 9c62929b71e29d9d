//! The etcd source: reads everything once, then follows one watch, and finds its way back after every fault.
//!
//! [`Etcd::run`] joins the parts. What a response, a page, a failure or a witness *means* is decided by plain functions
//! over values in `assembly`, `backlog`, `reading`, `retry`, `identity` and `known`, and in `vigil` what is asked beside a watch;
//! `session` carries it out over one `connection`, `state` is what is kept from one to the next, and `report` tells the
//! operator. What the keys mean is the publisher's business.

mod assembly;
mod backlog;
pub mod backoff;
mod calls;
mod comparison;
pub mod connection;
mod credentials;
pub mod fault;
mod identity;
mod known;
mod last_good;
mod leases;
mod ledger;
mod past;
mod proof;
mod pulse;
mod reading;
mod reconcile;
mod report;
mod retry;
mod session;
mod state;
#[cfg(test)]
mod tests;
pub mod transport;
mod vigil;

use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::mpsc;

use self::{
    calls::read_everything,
    connection::range_end,
    fault::Fault,
    known::Known,
    reading::Everything,
    report::Report,
    retry::Retry,
    session::Session,
    state::State,
    transport::{Connect, Responses},
    vigil::{Footing, Vigil},
};
pub use self::{
    connection::{Connection, Connector},
    leases::Lease,
    past::{Past, PastChange},
    pulse::Patience,
    vigil::{Pace, pulse_key},
};
use super::{Entry, Update};
use crate::{config::EtcdConfig, live::Live, route::Revision, telemetry::metrics::Metrics};

/// Follows the keys below one prefix of an etcd cluster, which connections of `C` reach.
#[derive(Debug)]
pub struct Etcd<C = Connector> {
    connector: C,
    prefix: Vec<u8>,
    range_end: Vec<u8>,
    state: State,
    retry: Retry,
    vigil: Vigil,
    /// What is known was passed on by nobody here, and no cluster has vouched for it yet.
    is_unvouched: bool,
    metrics: Arc<Metrics>,
    /// For the jitter.
    random: StdRng,
}

impl Etcd {
    /// A source for the keys below `prefix` (normalised, so it ends in `/`). Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Names the certificate file that can't be read or used.
    pub fn new(config: EtcdConfig, prefix: String) -> anyhow::Result<Self> {
        let connector = Connector::new(config)?;
        Ok(Self::over(connector, prefix, rand::random()))
    }

    /// Takes no response of a watch that is larger than this: 64 MiB unless told.
    pub fn taking_at_most(mut self, bytes: usize) -> Self {
        self.connector.limit_responses(bytes);
        self
    }
}

impl<C: Connect> Etcd<C> {
    /// A source for the keys below `prefix`; the same `seed` makes the same choices.
    fn over(connector: C, prefix: String, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self {
            // Not all instances of a fleet on the first member.
            retry: Retry::new(connector.endpoints().len(), random.random()),
            vigil: Vigil::over(prefix.as_bytes(), Pace::default(), random.random()),
            is_unvouched: false,
            metrics: Metrics::new(),
            random,
            connector,
            range_end: range_end(prefix.as_bytes()),
            prefix: prefix.into_bytes(),
            state: State::start(),
        }
    }

    /// Goes on from what this cluster had at this revision, all of which the receiver of the updates has already:
    /// if the cluster vouches for it, the first update says so and up to where what changed since will be brought, else
    /// it is a snapshot.
    pub fn resuming(mut self, cluster_id: u64, revision: Revision, entries: &[Entry]) -> Self {
        let known = Known::of(&self.prefix, cluster_id, revision, entries);
        self.state = State::Watching(known);
        self.is_unvouched = true;
        self
    }

    /// Counts in these metrics.
    pub fn counted_in(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Looks after its watch as often as this.
    pub fn paced(mut self, pace: Pace) -> Self {
        self.vigil = Vigil::over(&self.prefix, pace, self.random.random());
        self
    }

    /// Sends a snapshot, then every change, for as long as somebody receives them; tells `live.status` how things
    /// are. Whatever fails is tried again for ever. May be dropped at any point.
    ///
    /// A slow receiver slows the watch down: at most one response and one revision are held here.
    pub async fn run(mut self, live: Arc<Live>, updates: mpsc::Sender<Update>) {
        tokio::select! {
            biased;
            () = updates.closed() => {}
            () = self.follow(live, &updates) => {}
        }
    }

    async fn follow(&mut self, live: Arc<Live>, updates: &mpsc::Sender<Update>) {
        let mut report = Report::to(live, self.metrics.clone());
        loop {
            let endpoint = self.connector.endpoints()[self.retry.current()].clone();
            let mut session = Session {
                connector: &self.connector,
                endpoint: &endpoint,
                prefix: &self.prefix,
                range_end: &self.range_end,
                state: &mut self.state,
                vigil: &mut self.vigil,
                is_unvouched: &mut self.is_unvouched,
                report: &mut report,
                updates,
                footing: Footing::Resumed,
                responses: Responses::Whole,
                watch_id: None,
                backlog: None,
                watching_since: None,
            };
            let Err(fault) = session.run().await;
            let watched = session.watching_since.map(|since| since.elapsed());
            if fault == Fault::Unwanted {
                return;
            }
            report.disconnected(&endpoint, &fault);
            if let State::CatchingUp { reason, .. } = self.state {
                self.state.read_anew(reason);
            }
            let pause = self.retry.after(&fault, watched, self.random.random());
            tokio::time::sleep(pause).await;
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
