//! What a source told.

use std::collections::BTreeMap;

use bytes::Bytes;
use waypost::source::{Change, Entry, History, Update};

/// As etcd has them.
pub type Keys = BTreeMap<Bytes, Entry>;

/// What the source told, taken in by the simplest means.
#[derive(Default)]
pub struct View {
    pub keys: Keys,
    /// 0 before the first snapshot.
    pub revision: i64,
    /// Of the cluster that the last snapshot came from.
    pub cluster_id: Option<u64>,
    /// How often everything was read anew within one history.
    pub rereads: usize,
}

impl View {
    /// No revision comes twice, or before another. None is said to be of another history if what is as it was tells that
    /// it isn't.
    pub fn take(&mut self, update: Update) -> Result<(), String> {
        let before = self.revision;
        match update {
            Update::Snapshot {
                entries,
                revision,
                cluster_id,
                history,
                ..
            } => {
                self.cluster_id = cluster_id;
                let keyed = entries.into_iter().map(|entry| (entry.key.clone(), entry));
                let keys: Keys = keyed.collect();
                if before > 0 && history != History::Continued && self.is_vouched_for_by(&keys) {
                    return Err(format!("after {before} another history at {revision}"));
                }
                self.rereads += usize::from(before > 0);
                self.keys = keys;
                self.revision = revision;
            }
            Update::Changes { changes, revision } => {
                let revisions: Vec<_> = changes.iter().map(Change::mod_revision).collect();
                let is_news = revisions.first().is_some_and(|first| *first > before);
                if !is_news || !revisions.is_sorted() || revisions.last() != Some(&revision) {
                    return Err(format!("after {before}, up to {revision}: {changes:?}"));
                }
                for change in changes {
                    match change {
                        Change::Put(entry) => self.keys.insert(entry.key.clone(), entry),
                        Change::Delete { key, .. } => self.keys.remove(&key),
                    };
                }
                self.revision = revision;
            }
            Update::Progress { revision } => self.revision = revision,
            Update::Vouched { .. } => {}
        }
        match self.revision >= before {
            true => Ok(()),
            false => Err(format!("from {before} back to {}", self.revision)),
        }
    }

    /// Whether one of these is as it was, and newer than all that are missing.
    fn is_vouched_for_by(&self, keys: &Keys) -> bool {
        let revision = |(_, entry): (&Bytes, &Entry)| entry.mod_revision;
        let kept = (self.keys.iter()).filter(|(key, entry)| keys.get(*key) == Some(*entry));
        let missing = (self.keys.iter()).filter(|(key, _)| !keys.contains_key(*key));
        let newest_kept = kept.map(revision).max();
        newest_kept.is_some() && newest_kept >= missing.map(revision).max()
    }
}
