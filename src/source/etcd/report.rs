//! What the operator is told: the log once per change of state, `live.status` always.

use std::{sync::Arc, time::Instant};

use tracing::{debug, info, warn};

use super::{fault::Fault, identity::Reread};
use crate::{live::Live, route::Revision};

/// Tells, and remembers what was told.
pub(super) struct Report {
    live: Arc<Live>,
    told: Told,
}

/// The last state that the log knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Connected,
    Unreachable,
    Refused,
}

impl Report {
    pub(super) fn to(live: Arc<Live>) -> Self {
        Self {
            live,
            told: Told::Nothing,
        }
    }

    /// The watch stands: changes reach us.
    pub(super) fn connected(&mut self, endpoint: &str, revision: Revision) {
        self.live.status.send_modify(|status| {
            status.connected = true;
            status.location = endpoint.to_owned();
            status.stale_since = None;
            status.error = None;
        });
        if self.told == Told::Connected {
            debug!(endpoint, revision, "watching etcd anew");
        } else {
            info!(endpoint, revision, "watching etcd");
        }
        self.told = Told::Connected;
    }

    /// Changes don't reach us until it works again.
    pub(super) fn disconnected(&mut self, endpoint: &str, fault: &Fault) {
        self.live.status.send_modify(|status| {
            status.connected = false;
            status.location = endpoint.to_owned();
            status.stale_since.get_or_insert_with(Instant::now);
            status.error = Some(fault.to_string());
        });
        let now = match fault {
            Fault::Refused(_) => Told::Refused,
            _ => Told::Unreachable,
        };
        if now == self.told {
            debug!(endpoint, error = %fault, "etcd still fails");
            return;
        }
        self.told = now;
        match now {
            Told::Refused => warn!(
                endpoint,
                error = %fault,
                "etcd refuses us; trying again with a fresh login, the routes stay as they are (see --etcd-user, --etcd-password-file, --etcd-cert and the rights of the user)"
            ),
            _ => warn!(
                endpoint,
                error = %fault,
                "no connection to etcd; trying again for ever, the routes stay as they are"
            ),
        }
    }

    /// Everything was read, for this reason. The revision may be lower than before: another history.
    pub(super) fn read(&self, endpoint: &str, reason: Reread, revision: Revision, keys: usize) {
        match reason {
            Reread::Start | Reread::Compacted | Reread::NoWitness => {
                info!(endpoint, revision, keys, because = %reason, "read all keys");
            }
            Reread::OtherCluster | Reread::Behind | Reread::OtherHistory => {
                warn!(endpoint, revision, keys, because = %reason, "read all keys");
            }
        }
        self.live
            .status
            .send_modify(|status| status.observed = Some(revision));
    }

    /// A header of the watch names this revision of the store.
    pub(super) fn observed(&self, watch_id: i64, revision: Revision) {
        // Answers without a watch are no promise of its events.
        if watch_id < 0 {
            return;
        }
        self.live.status.send_if_modified(|status| {
            let newer = status.observed.is_none_or(|known| revision > known);
            if newer {
                status.observed = Some(revision);
            }
            newer
        });
    }
}
