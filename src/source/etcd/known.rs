//! What is remembered of all that was passed on, so that a watch can go on from there.

use super::{identity::Identity, ledger::Ledger};
use crate::{
    route::Revision,
    source::{Change, Entry},
};

/// Everything up to one revision, as far as it is remembered.
#[derive(Debug)]
pub struct Known {
    /// That revision.
    pub revision: Revision,
    /// Which history it is part of.
    pub identity: Identity,
    /// Which keys there are.
    pub ledger: Ledger,
}

impl Known {
    /// Everything below `prefix`, as this cluster had it at this revision.
    pub fn of(prefix: &[u8], cluster_id: u64, revision: Revision, entries: &[Entry]) -> Self {
        Self {
            revision,
            identity: Identity::of(cluster_id, entries),
            ledger: Ledger::of(prefix, entries),
        }
    }

    /// Follows the changes up to and including `revision`.
    pub fn follow(&mut self, changes: &[Change], revision: Revision) {
        self.identity.follow(changes);
        self.ledger.follow(changes);
        self.revision = revision;
    }
}
