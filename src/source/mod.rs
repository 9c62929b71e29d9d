//! Where routes come from: etcd or a directory. Both end in the same [`Update`]s, and share all that follows.

pub mod directory;
pub mod etcd;
pub mod publish;
pub mod resolve;

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;

use crate::route::{Revision, Table};

/// One key as the source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key, prefix included; need not be UTF-8.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The revision that last changed it.
    pub mod_revision: Revision,
    /// The lease it is bound to; 0 for none.
    pub lease: i64,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has this value now.
    Put(Entry),
    /// The key is gone, since `mod_revision`.
    Delete {
        /// The whole key.
        key: Bytes,
        /// The revision of the deletion.
        mod_revision: Revision,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn mod_revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

/// What a source tells the publisher. Never splits a revision; may cover several.
#[derive(Clone, Debug)]
pub enum Update {
    /// All there is at `revision`: applied as a difference, so that what did not change is left alone.
    Snapshot {
        /// Every key below the prefix.
        entries: Vec<Entry>,
        /// The revision it was read at.
        revision: Revision,
    },
    /// Changes in the order they were made, up to and including `revision`.
    Changes {
        /// The changes.
        changes: Vec<Change>,
        /// The revision after the last of them.
        revision: Revision,
    },
    /// Nothing below the prefix changed up to `revision`.
    Progress {
        /// That revision.
        revision: Revision,
    },
}

/// The current table, and the news of each swap. One writer (the publisher), any number of cheap readers.
pub struct Live {
    /// The current table; loaded once per request.
    pub table: ArcSwap<Table>,
    /// The revision of the current table; `None` before the first one. Sent after the swap.
    pub applied: watch::Sender<Option<Revision>>,
    /// Which keys are rejected now, and why; replaced when it changes.
    pub rejected: ArcSwap<Vec<Rejected>>,
    /// The state of the source.
    pub status: watch::Sender<Status>,
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

impl Live {
    /// No table yet: requests get 503, `/readyz` fails.
    pub fn new(status: Status) -> Arc<Self> {
        Arc::new(Self {
            table: ArcSwap::from_pointee(Table::default()),
            applied: watch::Sender::new(None),
            rejected: ArcSwap::default(),
            status: watch::Sender::new(status),
        })
    }
}
