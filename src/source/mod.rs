//! Where routes come from: etcd or a directory. Both end in the same [`Update`]s, and share all that follows.

pub mod directory;
pub mod etcd;
pub mod publish;
pub mod resolve;
pub mod snapshot;

use bytes::Bytes;

use crate::route::Revision;

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

/// How a snapshot belongs to what was told before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// It goes on: what is gone was deleted.
    Continued,
    /// Nothing vouches for that, as after a cluster was wiped or restored: what is gone may be wanted, so that its
    /// deletion is held.
    Another,
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
        /// How it belongs to what was told before.
        history: History,
        /// The cluster that it was read from; `None` of a directory.
        cluster_id: Option<u64>,
        /// Versions from before those among `entries` that can't be used: to be in force in their place.
        last_good: Vec<Entry>,
    },
    /// Changes in the order they were made, up to and including `revision`.
    Changes {
        /// The changes.
        changes: Vec<Change>,
        /// The revision after the last of them.
        revision: Revision,
    },
    /// The history of what the publisher had from elsewhere goes on: what follows brings the rest, as far as this at
    /// least.
    Vouched {
        /// The revision of the store when it said so.
        through: Revision,
    },
    /// Nothing below the prefix changed up to `revision`.
    Progress {
        /// That revision.
        revision: Revision,
    },
}
