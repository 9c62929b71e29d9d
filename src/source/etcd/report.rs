//! What the operator is told: the log once per change of state, `live.status` always.

use std::{sync::Arc, time::Instant};

use tracing::{debug, info, warn};

use super::{
    comparison::Differences, fault::Fault, identity::Reread, reading::CatchUp, session::Ending,
};
use crate::{live::Live, route::Revision, telemetry::metrics::Metrics};

/// Tells, and remembers what was told.
pub(super) struct Report {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    told: Told,
    is_pulse_refused: bool,
}

/// What the log knows. One endpoint may refuse us while another can't be reached: each is told once, until changes reach
/// us again.
#[derive(Debug, Default)]
struct Told {
    is_connected: bool,
    is_unreachable: bool,
    is_refused: bool,
    is_catching_up: bool,
}

impl Told {
    /// Changes reach us; whether that is news.
    fn connected(&mut self) -> bool {
        let told = std::mem::take(self);
        self.is_connected = true;
        !told.is_connected
    }

    /// They do, and are late; whether that is news.
    fn catching_up(&mut self) -> bool {
        !std::mem::replace(&mut self.is_catching_up, true)
    }

    /// They don't, because of this; whether that is news.
    fn disconnected(&mut self, fault: &Fault) -> bool {
        self.is_connected = false;
        let told = match fault {
            Fault::Refused(_) => &mut self.is_refused,
            _ => &mut self.is_unreachable,
        };
        !std::mem::replace(told, true)
    }
}

impl Report {
    pub(super) fn to(live: Arc<Live>, metrics: Arc<Metrics>) -> Self {
        Self {
            live,
            metrics,
            told: Told::default(),
            is_pulse_refused: false,
        }
    }

    /// The watch stands, and changes reach us as they happen.
    pub(super) fn connected(&mut self, endpoint: &str, revision: Revision) {
        self.live.status.send_modify(|status| {
            status.connected = true;
            status.location = endpoint.to_owned();
            status.stale_since = None;
            status.error = None;
        });
        if self.told.connected() {
            info!(endpoint, revision, "watching etcd");
        } else {
            debug!(endpoint, revision, "watching etcd anew");
        }
    }

    /// The watch stands, and has brought everything up to this revision; etcd was at `through` when it began.
    pub(super) fn catching_up(&mut self, endpoint: &str, revision: Revision, through: Revision) {
        self.live.status.send_modify(|status| {
            status.connected = false;
            status.location = endpoint.to_owned();
            status.error = Some(format!("catching up with etcd: {revision} of {through}"));
        });
        if self.told.catching_up() {
            info!(endpoint, revision, through, "catching up with etcd");
        }
    }

    /// No changes reach us until the next watch stands.
    pub(super) fn interrupted(&self, ending: &Ending) {
        let because = match ending {
            Ending::Reread(reason) => reason.to_string(),
            Ending::TooLarge => Reread::TooLarge.to_string(),
        };
        self.live.status.send_modify(|status| {
            status.connected = false;
            status.stale_since.get_or_insert_with(Instant::now);
            status.error = Some(because);
        });
    }

    /// Changes don't reach us until it works again.
    pub(super) fn disconnected(&mut self, endpoint: &str, fault: &Fault) {
        self.live.status.send_modify(|status| {
            status.connected = false;
            status.location = endpoint.to_owned();
            status.stale_since.get_or_insert_with(Instant::now);
            status.error = Some(fault.to_string());
        });
        if !self.told.disconnected(fault) {
            debug!(endpoint, error = %fault, "etcd still fails");
            return;
        }
        match fault {
            Fault::Refused(_) => warn!(
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

    /// Pages were read, each of its own revision, and the watch must bring the rest.
    pub(super) fn outrun(&self, endpoint: &str, catch_up: &CatchUp) {
        let (from, through) = (catch_up.from, catch_up.through);
        info!(
            endpoint,
            from,
            through,
            "compaction outran the read of all keys; the watch brings what changed meanwhile"
        );
    }

    /// Everything was read, for this reason. The revision may be lower than before: another history.
    pub(super) fn read(&self, endpoint: &str, reason: Reread, revision: Revision, keys: usize) {
        match reason {
            Reread::Start | Reread::Compacted | Reread::NoWitness | Reread::NoPulse => {
                info!(endpoint, revision, keys, because = %reason, "read all keys");
            }
            Reread::TooLarge
            | Reread::Silent
            | Reread::Difference
            | Reread::OtherCluster
            | Reread::Behind
            | Reread::OtherHistory
            | Reread::Unvouched => {
                warn!(endpoint, revision, keys, because = %reason, "read all keys");
            }
        }
        self.live
            .status
            .send_modify(|status| status.observed = Some(revision));
    }

    /// A pulse was put, or not.
    pub(super) fn pulse(&mut self, result: &Result<Revision, Fault>) {
        let was_refused = self.is_pulse_refused;
        match result {
            Ok(revision) => {
                debug!(revision, "put a pulse");
                self.is_pulse_refused = false;
            }
            Err(Fault::Silent(error)) => debug!(error, "the pulse was not answered"),
            Err(error) => {
                self.is_pulse_refused = true;
                if !was_refused {
                    warn!(
                        %error,
                        "etcd does not take our pulse, by which we know that the watch lives; looking by reads instead (instances should be granted to write below <prefix>@waypost/)"
                    );
                }
            }
        }
    }

    /// A watch brought nothing of what it should have.
    pub(super) fn silent(&self) {
        self.metrics.control_plane.silent_watches.inc();
    }

    /// What we have was compared with what etcd has.
    pub(super) fn reconciled(&self, differences: &Differences) {
        let metrics = &self.metrics.control_plane;
        metrics.reconciles.inc();
        let count = differences.count();
        if count == 0 {
            debug!("what we have is what etcd has");
            return;
        }
        let counted = u64::try_from(count).unwrap_or(u64::MAX);
        metrics.reconcile_differences.inc_by(counted);
        warn!(
            missed = differences.missed,
            gone = differences.gone,
            first = ?differences.named,
            "what we have differs from what etcd has, though the watch stands; reading all keys"
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_told_once() {
        let refused = Fault::Refused("permission denied".to_owned());
        let unreachable = Fault::Unreachable("connection refused".to_owned());
        let mut told = Told::default();
        for _ in 0..2 {
            assert!(told.connected());
            assert!(!told.connected());
            assert!(told.disconnected(&refused));
            assert!(told.disconnected(&unreachable));
            // As with two endpoints, in turn.
            for fault in [&refused, &unreachable, &refused] {
                assert!(!told.disconnected(fault));
            }
        }
    }
}
