//! Is this still the history we know? A wiped cluster keeps its `cluster_id`, a restored one soon passes our revision,
//! and a lagging follower only looks older. So a witness is asked for: our newest live key, at our revision.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hasher},
};

use bytes::Bytes;

use crate::{
    route::Revision,
    source::{Change, Entry, History},
};

/// How many of the newest live keys are remembered, so that deleting some leaves a witness.
const REMEMBERED: usize = 256;

/// What we know of the cluster that we follow.
#[derive(Debug)]
pub struct Identity {
    /// From the header of the first answer.
    pub cluster_id: u64,
    newest: BTreeMap<(Revision, Bytes), u64>,
    revisions: HashMap<Bytes, Revision>,
    /// Live keys that are not remembered were last changed at this revision or before.
    forgotten: Revision,
}

/// A live key as we know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The whole key.
    pub key: Bytes,
    /// The revision that last changed it.
    pub mod_revision: Revision,
    /// Of its value.
    pub value_hash: u64,
}

/// What etcd said of the witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Testimony {
    /// It was read at our revision.
    Read {
        /// The cluster that answered.
        cluster_id: u64,
        /// The key as it was then, if it was there.
        found: Option<Witness>,
    },
    /// Our revision is compacted away: nothing can be said, and no watch could resume there.
    Compacted,
    /// etcd has not come as far as our revision.
    FutureRevision,
}

/// Why everything is read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reread {
    /// Nothing is known yet.
    #[error("nothing is known yet")]
    Start,
    /// What happened since our revision is compacted away: the same history, with a gap.
    #[error("the changes since our revision are compacted away")]
    Compacted,
    /// What happened since our revision does not fit into an answer of the watch: the same history.
    #[error("the watch brings more at once than we decode")]
    TooLarge,
    /// Two watches, one after the other, brought nothing of what they should: the same history.
    #[error("no watch brings what changes")]
    Silent,
    /// What we have is not what etcd had at our revision: the same history, but the watch lost something.
    #[error("what we have differs from what etcd has")]
    Difference,
    /// Nothing can be put that would show when the watch has brought everything: the same history.
    #[error("no pulse can be put that would show how far the watch is")]
    NoPulse,
    /// No live key is known that could vouch for the history.
    #[error("no key is known that could vouch for it")]
    NoWitness,
    /// Another `cluster_id`.
    #[error("this is another cluster")]
    OtherCluster,
    /// It has not come as far as we have.
    #[error("etcd's revision is below ours: it was wiped or restored")]
    Behind,
    /// Our newest key was never there, or not like that; or another was there that we should know.
    #[error("what we know is not in its history: it was wiped or restored")]
    OtherHistory,
    /// As `Compacted`, and no key is there as it was that is as new as those that are missing.
    #[error(
        "the changes since our revision are compacted away, and no key vouches for what is missing: it may have been wiped or restored"
    )]
    Unvouched,
}

impl Reread {
    /// How what is read for this reason belongs to what was known.
    pub fn history(self) -> History {
        match self {
            Self::Compacted | Self::TooLarge | Self::Silent | Self::Difference | Self::NoPulse => {
                History::Continued
            }
            Self::Start
            | Self::NoWitness
            | Self::OtherCluster
            | Self::Behind
            | Self::OtherHistory
            | Self::Unvouched => History::Another,
        }
    }
}

impl Identity {
    /// Of the cluster that a snapshot came from.
    pub fn of(cluster_id: u64, entries: &[Entry]) -> Self {
        let mut identity = Self {
            cluster_id,
            newest: BTreeMap::new(),
            revisions: HashMap::new(),
            forgotten: 0,
        };
        entries.iter().for_each(|entry| identity.put(entry));
        identity
    }

    /// Follows the changes, so that the witness stays the newest live key.
    pub fn follow(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete { key, .. } => self.forget(key),
            }
        }
    }

    /// The newest live key.
    pub fn witness(&self) -> Option<Witness> {
        let ((mod_revision, key), value_hash) = self.newest.last_key_value()?;
        Some(Witness {
            key: key.clone(),
            mod_revision: *mod_revision,
            value_hash: *value_hash,
        })
    }

    /// Whether the history that gave this answer is ours; else why everything must be read anew.
    pub fn judge(&self, witness: &Witness, testimony: &Testimony) -> Result<(), Reread> {
        match testimony {
            Testimony::Compacted => Err(Reread::Compacted),
            Testimony::FutureRevision => Err(Reread::Behind),
            Testimony::Read { cluster_id, .. } if *cluster_id != self.cluster_id => {
                Err(Reread::OtherCluster)
            }
            Testimony::Read { found, .. } if found.as_ref() != Some(witness) => {
                Err(Reread::OtherHistory)
            }
            Testimony::Read { .. } => Ok(()),
        }
    }

    /// Whether this key is among the newest, live, and known.
    pub fn remembers(&self, key: &Bytes) -> bool {
        self.revisions.contains_key(key)
    }

    /// Whether this key, last changed at our revision or before, is live as far as we know, with this value; `None` if
    /// it is not among the newest, of which alone that is known.
    pub fn confirms(&self, entry: &Entry) -> Option<bool> {
        if entry.mod_revision <= self.forgotten {
            return None;
        }
        let known = self.newest.get(&(entry.mod_revision, entry.key.clone()));
        Some(known.is_some_and(|known| *known == hash(&entry.value)))
    }

    fn put(&mut self, entry: &Entry) {
        self.forget(&entry.key);
        let full = self.newest.len() >= REMEMBERED;
        if full
            && (self.newest.first_key_value())
                .is_some_and(|((oldest, _), _)| entry.mod_revision <= *oldest)
        {
            self.forgotten = self.forgotten.max(entry.mod_revision);
            return;
        }
        self.newest
            .insert((entry.mod_revision, entry.key.clone()), hash(&entry.value));
        self.revisions.insert(entry.key.clone(), entry.mod_revision);
        if full && let Some(((mod_revision, key), _)) = self.newest.pop_first() {
            self.revisions.remove(&key);
            self.forgotten = self.forgotten.max(mod_revision);
        }
    }

    fn forget(&mut self, key: &Bytes) {
        if let Some(mod_revision) = self.revisions.remove(key) {
            self.newest.remove(&(mod_revision, key.clone()));
        }
    }
}

impl From<&Entry> for Witness {
    fn from(entry: &Entry) -> Self {
        Self {
            key: entry.key.clone(),
            mod_revision: entry.mod_revision,
            value_hash: hash(&entry.value),
        }
    }
}

/// Values may be large and the witness is kept for long, so only a hash of its value is.
fn hash(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, mod_revision: Revision) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mod_revision,
            lease: 0,
        }
    }

    fn delete(key: &str, mod_revision: Revision) -> Change {
        Change::Delete {
            key: Bytes::copy_from_slice(key.as_bytes()),
            mod_revision,
        }
    }

    #[test]
    fn the_witness_is_the_newest_live_key() {
        let mut identity = Identity::of(1, &[entry("/a", "", 3), entry("/b", "", 2)]);
        assert_eq!(identity.witness().unwrap().key, "/a");
        identity.follow(&[Change::Put(entry("/b", "x", 4)), delete("/a", 5)]);
        assert_eq!(
            identity.witness(),
            Some(Witness::from(&entry("/b", "x", 4)))
        );
        identity.follow(&[delete("/b", 6)]);
        assert_eq!(identity.witness(), None);
    }

    #[test]
    fn only_the_newest_are_remembered() {
        let count = Revision::try_from(REMEMBERED).unwrap();
        let entries: Vec<_> = (1..=2 * count)
            .rev()
            .map(|revision| entry(&format!("/{revision}"), "", revision))
            .collect();
        let mut identity = Identity::of(1, &entries);
        assert_eq!(
            (identity.newest.len(), identity.revisions.len()),
            (REMEMBERED, REMEMBERED)
        );
        assert_eq!(identity.witness().unwrap().mod_revision, 2 * count);
        for revision in count + 1..=2 * count {
            assert!(identity.witness().is_some());
            identity.follow(&[delete(&format!("/{revision}"), 1000 + revision)]);
        }
        assert_eq!(
            identity.witness(),
            None,
            "older ones are not known to be the newest"
        );
    }

    #[test]
    fn another_history_is_noticed() {
        let known = entry("/a", "v", 7);
        let identity = Identity::of(1, std::slice::from_ref(&known));
        let witness = identity.witness().unwrap();
        let read = |cluster_id, found: Option<Entry>| Testimony::Read {
            cluster_id,
            found: found.as_ref().map(Witness::from),
        };
        for (testimony, expected) in [
            (read(1, Some(known.clone())), Ok(())),
            (read(2, Some(known.clone())), Err(Reread::OtherCluster)),
            (read(1, None), Err(Reread::OtherHistory)),
            (
                read(1, Some(entry("/a", "v", 8))),
                Err(Reread::OtherHistory),
            ),
            (
                read(1, Some(entry("/a", "w", 7))),
                Err(Reread::OtherHistory),
            ),
            (Testimony::FutureRevision, Err(Reread::Behind)),
            (Testimony::Compacted, Err(Reread::Compacted)),
        ] {
            assert_eq!(
                identity.judge(&witness, &testimony),
                expected,
                "{testimony:?}"
            );
        }
    }
}
