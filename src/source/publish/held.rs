//! Deletions that are not believed yet. A cluster that was wiped or restored lacks keys that are served, and nothing
//! tells whether they are wanted. So they stay in force until there was no change among them for a while and they
//! remove under half of the hosts, or until an operator accepts.

use std::{collections::HashSet, future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{Origin, Publisher};
use crate::{
    live::{HeldKeys, Live, Status},
    route::{
        HostPattern,
        key::{self, Key},
    },
    telemetry::metrics::Metrics,
};

/// For so long there must be no change among them, with the source connected, before they are believed: who restores a cluster, or registers with
/// an empty one, should be done.
pub(super) const STILL: Duration = Duration::from_secs(30);

/// How many operators may ask at one time; further ones wait.
const ACCEPTS: usize = 16;

/// Is told how many deletions were applied.
pub(super) type Reply = oneshot::Sender<usize>;

/// How an operator makes the publisher apply the deletions that it holds.
#[derive(Clone, Debug)]
pub struct Acceptance(mpsc::Sender<Reply>);

impl Acceptance {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Reply>) {
        let (sender, receiver) = mpsc::channel(ACCEPTS);
        (Self(sender), receiver)
    }

    /// Applies them; how many there were, once the table without them is in force. `None` if the publisher has ended.
    pub async fn accept(&self) -> Option<usize> {
        let (reply, count) = oneshot::channel();
        self.0.send(reply).await.ok()?;
        count.await.ok()
    }
}

/// The keys that are served although etcd lacks them.
#[derive(Default)]
pub(super) struct Held {
    keys: HeldKeys,
    /// When they are judged; `None` while there are none, or the source is not connected.
    due: Option<Instant>,
    is_connected: bool,
    is_changed: bool,
    /// The log says already that only an operator can help.
    is_operator_called: bool,
}

impl Held {
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn add(&mut self, key: Arc<str>) {
        self.keys.insert(key);
        self.changed();
    }

    /// The key is in etcd again, or deleted for good; whether it was held.
    pub(super) fn release(&mut self, key: &[u8]) -> bool {
        let was_held = !self.keys.is_empty()
            && std::str::from_utf8(key).is_ok_and(|key| self.keys.remove(key).is_some());
        if was_held {
            self.changed();
        }
        was_held
    }

    /// Ends when they are to be judged.
    pub(super) async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => future::pending().await,
        }
    }

    /// Tells readers, if there is news.
    pub(super) fn publish(&mut self, live: &Live, metrics: &Metrics) {
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        live.held.store(Arc::new(self.keys.clone()));
        let count = i64::try_from(self.keys.len()).unwrap_or(i64::MAX);
        metrics.control_plane.held_deletes.set(count);
    }

    fn changed(&mut self) {
        self.is_changed = true;
        self.is_operator_called = false;
        self.begin_anew();
    }

    /// What can't be heard of doesn't count as stillness.
    fn begin_anew(&mut self) {
        let is_running = self.is_connected && !self.keys.is_empty();
        self.due = is_running.then(|| Instant::now() + STILL);
    }

    /// Whether changes reach us is another than before; which it is, `source` tells. Never ends if nobody tells.
    pub(super) async fn connection(&self, source: &mut watch::Receiver<Status>) -> bool {
        let is_news = source.wait_for(|source| source.connected != self.is_connected);
        let is_connected = is_news.await.ok().map(|source| source.connected);
        match is_connected {
            Some(is_connected) => is_connected,
            None => future::pending().await,
        }
    }

    /// Changes reach us from now on, or don't any more.
    pub(super) fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.begin_anew();
    }
}

impl Publisher {
    /// Holds the deletion of these keys, which another history lacks.
    pub(super) fn hold(&mut self, gone: Vec<Arc<str>>) {
        if gone.is_empty() {
            return;
        }
        gone.into_iter().for_each(|key| self.held.add(key));
        warn!(
            keys = self.held.keys.len(),
            "etcd was wiped, restored or exchanged and lacks keys that are served: their deletion is held (`waypost accept --list` names them, `waypost accept` applies it)"
        );
    }

    /// They were still for long enough: applies them, unless they remove too much.
    pub(super) fn judge_held(&mut self) {
        self.build_drafts();
        let (lost, all) = (self.hosts_held(), self.table.counts().hosts);
        if 2 * lost < all {
            let count = self.delete_held();
            info!(
                keys = count,
                hosts = lost,
                "applied the deletions that were held: there was no change among them for a while"
            );
            return;
        }
        self.held.begin_anew();
        if !std::mem::replace(&mut self.held.is_operator_called, true) {
            warn!(
                keys = self.held.keys.len(),
                hosts = lost,
                of_hosts = all,
                "the deletions that are held would remove half of the hosts or more: they wait for `waypost accept`"
            );
        }
    }

    /// An operator accepts them, however many there are.
    pub(super) fn accept_held(&mut self) -> usize {
        let count = self.delete_held();
        info!(
            keys = count,
            "an operator accepted the deletions that were held"
        );
        count
    }

    fn delete_held(&mut self) -> usize {
        let keys = self.held.keys.clone();
        let revision = self.revision.unwrap_or_default();
        for key in &keys {
            let key = Bytes::copy_from_slice(key.as_bytes());
            self.delete(&key, revision, Origin::Snapshot);
        }
        keys.len()
    }

    /// How many hosts would be left without any upstream.
    fn hosts_held(&self) -> usize {
        let host = |key: &Arc<str>| match key::parse(&self.prefix, key.as_bytes()) {
            Ok(Key::Upstream { route, .. } | Key::Settings { route }) => Some(route.host),
            _ => None,
        };
        let hosts: HashSet<HostPattern> = self.held.keys.iter().filter_map(host).collect();
        let is_lost = |host: &&HostPattern| {
            let members = self.table.routes_of(host).iter().flat_map(|r| &r.members);
            members
                .into_iter()
                .all(|member| self.held.has(&member.key.key))
        };
        hosts.iter().filter(is_lost).count()
    }
}
