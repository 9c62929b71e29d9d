//! What one publisher writes and everybody else reads: the current table, and the state of its source.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use arc_swap::ArcSwap;
use imbl::{OrdMap, OrdSet};
use tokio::sync::watch;

use crate::{
    barrier::OpenBarrier,
    route::{Revision, Table},
};

/// The current table, and the news of each swap. One writer (the publisher), any number of cheap readers.
pub struct Live {
    /// The current table; loaded once per request.
    pub table: ArcSwap<Table>,
    /// The revision of the current table; `None` before the first one. Sent after the swap.
    pub applied: watch::Sender<Option<Revision>>,
    /// Whether `applied` comes from a file and etcd has not said yet that it is of its history. Changed together with it.
    pub is_unvouched: AtomicBool,
    /// Which keys are rejected now, and why; replaced when it changes.
    pub rejected: ArcSwap<RejectedKeys>,
    /// Which keys are served although etcd lacks them; replaced when it changes.
    pub held: ArcSwap<HeldKeys>,
    /// The state of the source.
    pub status: watch::Sender<Status>,
    /// The barriers that stand, by id. Sent after the swap that covers them.
    pub barriers: watch::Sender<OrdMap<Arc<str>, Arc<OpenBarrier>>>,
    /// Whether the fleet knows of this instance.
    pub registration: watch::Sender<Registration>,
}

/// The keys that are not in force as written.
#[derive(Clone, Debug, Default)]
pub struct RejectedKeys {
    /// The first of them, by key; a whole bad prefix may be more than anybody reads.
    pub shown: Vec<Arc<Rejected>>,
    /// How many there are, shown or not.
    pub total: usize,
}

/// Whether the fleet knows of this instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// The id it goes by; `None` without a fleet.
    pub instance: Option<Arc<str>>,
    /// Whether it is registered now.
    pub is_registered: bool,
    /// Why not, in words.
    pub error: Option<String>,
}

/// A key that is not in force as written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rejected {
    /// The key, with what is not UTF-8 replaced.
    pub key: String,
    /// What is wrong and what to do.
    pub reason: String,
    /// The revision that brought it.
    pub mod_revision: Revision,
    /// Whether an earlier version of the key stays in force.
    pub last_good_in_force: bool,
}

/// Keys whose deletion is held, because it came with another history: see [`crate::source::History::Another`].
pub type HeldKeys = OrdSet<Arc<str>>;

/// How the source is.
#[derive(Clone, Debug)]
pub struct Status {
    /// `etcd` or `directory`.
    pub kind: &'static str,
    /// Whether changes would reach us now.
    pub connected: bool,
    /// The etcd endpoint or the directory in use.
    pub location: String,
    /// Since when changes would not have reached us; `None` while connected.
    pub stale_since: Option<Instant>,
    /// The newest revision the source is known to have.
    pub observed: Option<Revision>,
    /// Why the source is not connected, in words.
    pub error: Option<String>,
}

impl Status {
    /// Of a source of this kind that was not heard of yet.
    pub fn before(kind: &'static str, location: impl Into<String>) -> Self {
        Self {
            kind,
            connected: false,
            location: location.into(),
            stale_since: None,
            observed: None,
            error: None,
        }
    }
}

impl Live {
    /// No table yet: requests get 503, `/readyz` fails.
    pub fn new(status: Status) -> Arc<Self> {
        Arc::new(Self {
            table: ArcSwap::from_pointee(Table::default()),
            applied: watch::Sender::new(None),
            is_unvouched: AtomicBool::new(false),
            rejected: ArcSwap::default(),
            held: ArcSwap::default(),
            status: watch::Sender::new(status),
            barriers: watch::Sender::default(),
            registration: watch::Sender::default(),
        })
    }
}
