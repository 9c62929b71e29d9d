//! What a start has from the disk: put together at once, but served only if etcd can't say more. A table from before a
//! drain that has ended since would send requests to an upstream that may be gone.

use std::{
    future::{self, Future},
    pin::Pin,
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::Publisher;
use crate::{
    route::Revision,
    source::{History, snapshot::Stored},
};

/// For so long what is on disk waits for etcd to bring the rest.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Ends when no member of etcd can be reached.
type Alone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is on disk, and when to serve it as it is.
pub(super) type Restored = (Stored, Alone);

/// What was restored and is not served yet.
pub(super) struct Waiting {
    alone: Alone,
    deadline: Instant,
    /// Up to here everything is to be brought; `None` until etcd was asked.
    goal: Option<Revision>,
}

/// Why it waits no longer for etcd.
#[derive(Clone, Copy)]
pub(super) enum GivenUp {
    Alone,
    Late,
}

impl Waiting {
    /// Ends when waiting is in vain; never, if nothing waits.
    pub(super) async fn in_vain(waiting: &mut Option<Self>) -> GivenUp {
        let Some(waiting) = waiting else {
            return future::pending().await;
        };
        tokio::select! {
            () = &mut waiting.alone => GivenUp::Alone,
            () = sleep_until(waiting.deadline) => GivenUp::Late,
        }
    }
}

impl Publisher {
    /// Begins with this: what was in force stays so, though etcd lacked or rejected it. It is published together with
    /// what the source has up to the revision that its cluster was at; or alone, once `alone` ends, which tells that no
    /// member can be reached, or after 10 s.
    pub fn restoring(
        mut self,
        stored: Stored,
        alone: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.live.is_unvouched.store(true, Ordering::Relaxed);
        self.restored = Some((stored, Box::pin(alone)));
        self
    }

    /// As if etcd had gone, with what was in force, from one history to another: that is what is not known now.
    pub(super) fn restore(&mut self) {
        let Some((stored, alone)) = self.restored.take() else {
            return;
        };
        self.waiting = Some(Waiting {
            alone,
            deadline: Instant::now() + PATIENCE,
            goal: None,
        });
        let Stored {
            cluster_id,
            revision,
            confirmed,
            entries,
            kept,
        } = stored;
        for (entries, history) in [(kept, History::Continued), (entries, History::Another)] {
            self.apply_snapshot(&entries, revision, history, &[]);
            self.revision = Some(revision);
            self.archive.confirm(revision, Some(cluster_id));
        }
        self.archive.restored(confirmed);
    }

    /// It is served as it is.
    pub(super) fn give_up_waiting(&mut self, why: GivenUp) {
        self.waiting = None;
        if let GivenUp::Late = why {
            warn!(
                "etcd has not brought the routes up to date within {} s; those of the snapshot are served as they are",
                PATIENCE.as_secs()
            );
        }
    }

    /// Its history goes on, and etcd is at this revision.
    pub(super) fn vouched(&mut self, through: Revision) {
        self.is_vouched = true;
        if let Some(waiting) = &mut self.waiting {
            waiting.goal.get_or_insert(through);
        }
        self.see_whether_caught_up();
    }

    /// Everything is as etcd has it.
    pub(super) fn replaced(&mut self) {
        self.is_vouched = true;
        self.waiting = None;
    }

    pub(super) fn see_whether_caught_up(&mut self) {
        let goal = self.waiting.as_ref().and_then(|waiting| waiting.goal);
        if goal.is_some_and(|goal| self.revision >= Some(goal)) {
            self.waiting = None;
        }
    }
}
