//! Which keys there are and which revision last changed each, in little memory: to compare with what etcd has. Pure.

use std::{collections::BTreeMap, hash::BuildHasher};

use foldhash::quality::RandomState;

use crate::{
    route::Revision,
    source::{Change, Entry},
};

/// The keys below the prefix, without the fleet's own (`<prefix>@...`), which change all the time.
///
/// Keys are told apart by 64 bits of hash, so that a million of them take 20 MB. Two of one hash (once in 36 million
/// ledgers of a million keys) look like a difference; whoever then reads everything makes a ledger of another seed.
#[derive(Clone, Debug)]
pub struct Ledger {
    fleet: Vec<u8>,
    seed: RandomState,
    revisions: BTreeMap<u64, Revision>,
}

impl Ledger {
    /// Of everything below `prefix`.
    pub fn of(prefix: &[u8], entries: &[Entry]) -> Self {
        let mut ledger = Self {
            fleet: fleet_prefix(prefix),
            seed: RandomState::default(),
            revisions: BTreeMap::new(),
        };
        // All at once: a tree made of a sorted sequence has full nodes.
        ledger.revisions = (entries.iter())
            .filter(|entry| !ledger.is_fleet(&entry.key))
            .map(|entry| (ledger.seed.hash_one(&*entry.key), entry.mod_revision))
            .collect();
        ledger
    }

    /// Follows the changes.
    pub fn follow(&mut self, changes: &[Change]) {
        for change in changes {
            if self.is_fleet(change.key()) {
                continue;
            }
            match change {
                Change::Put(entry) => {
                    let hash = self.seed.hash_one(&*entry.key);
                    self.revisions.insert(hash, entry.mod_revision);
                }
                Change::Delete { key, .. } => {
                    self.take(key);
                }
            }
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.revisions.len()
    }

    /// The revision that changed one of them last, if there are any.
    pub fn newest(&self) -> Option<Revision> {
        self.revisions.values().max().copied()
    }

    /// Takes a key out: the revision that last changed it.
    pub fn take(&mut self, key: &[u8]) -> Option<Revision> {
        self.revisions.remove(&self.seed.hash_one(key))
    }

    /// Whether this key is one of the fleet's own.
    pub fn is_fleet(&self, key: &[u8]) -> bool {
        key.starts_with(&self.fleet)
    }
}

/// What the keys of the fleet start with, and no route's.
pub fn fleet_prefix(prefix: &[u8]) -> Vec<u8> {
    [prefix, b"@"].concat()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(key: &'static str, mod_revision: Revision) -> Entry {
        Entry {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            mod_revision,
            lease: 0,
        }
    }

    #[test]
    fn it_follows_puts_and_deletes_and_leaves_the_fleet_out() {
        let entries = [
            entry("/h/@waypost/pulse", 9),
            entry("/h/a/a:1", 3),
            entry("/h/b/b:1", 4),
        ];
        let mut ledger = Ledger::of(b"/h/", &entries);
        assert_eq!(ledger.len(), 2);
        ledger.follow(&[
            Change::Put(entry("/h/a/a:1", 10)),
            Change::Put(entry("/h/@waypost/pulse", 11)),
            Change::Put(entry("/h/c/c:1", 12)),
            Change::Delete {
                key: Bytes::from_static(b"/h/b/b:1"),
                mod_revision: 13,
            },
        ]);
        let keys = ["/h/a/a:1", "/h/b/b:1", "/h/c/c:1", "/h/@waypost/pulse"];
        assert_eq!(
            keys.map(|key| ledger.take(key.as_bytes())),
            [Some(10), None, Some(12), None]
        );
        assert_eq!(ledger.len(), 0);
    }
}
