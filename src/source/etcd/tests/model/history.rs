//! What etcd's store holds: every revision there was.

use bytes::Bytes;
use imbl::OrdMap;

use super::super::super::fault::Fault;
use super::super::random_keys::Operation;
use crate::{
    route::Revision,
    source::{Change, Entry},
};

/// The keys below the prefix, as they were at one revision. Others are not kept, though they move the revision.
pub type Keys = OrdMap<Bytes, Entry>;

/// The revisions of one cluster, from 1 on.
#[derive(Clone)]
pub struct History {
    pub cluster_id: u64,
    /// Reading before it fails.
    pub compacted: Revision,
    commits: Vec<Commit>,
}

#[derive(Clone, Default)]
struct Commit {
    keys: Keys,
    changes: Vec<Change>,
}

impl History {
    pub fn new(cluster_id: u64) -> Self {
        Self {
            cluster_id,
            compacted: 0,
            commits: vec![Commit::default()],
        }
    }

    /// As a backup made at this revision brings it back.
    pub fn restored(&self, revision: Revision) -> Self {
        let kept = usize::try_from(revision).expect("not negative");
        Self {
            cluster_id: self.cluster_id,
            compacted: self.compacted.min(revision),
            commits: self.commits[..kept].to_vec(),
        }
    }

    pub fn revision(&self) -> Revision {
        Revision::try_from(self.commits.len()).expect("few")
    }

    pub fn newest(&self) -> &Keys {
        &self.commits.last().expect("there always is one").keys
    }

    /// What was there at a revision, whether compacted or not.
    pub fn at(&self, revision: Revision) -> Option<&Keys> {
        Some(&self.commit_at(revision)?.keys)
    }

    /// What a range read at a revision is answered from.
    pub fn read(&self, revision: Option<Revision>) -> Result<&Keys, Fault> {
        let revision = revision.unwrap_or(self.revision());
        if revision < self.compacted {
            return Err(Fault::Compacted);
        }
        self.at(revision).ok_or(Fault::FutureRevision)
    }

    /// What a revision changed, in key order.
    pub fn changes(&self, revision: Revision) -> &[Change] {
        (self.commit_at(revision)).map_or(&[], |commit| &commit.changes)
    }

    /// One transaction; one that changes nothing is no revision.
    pub fn commit(&mut self, operations: &[Operation], lease: i64) {
        let mod_revision = self.revision() + 1;
        let changes = operations.iter().filter_map(|operation| match operation {
            Operation::Put(key, value) => Some(Change::Put(Entry {
                key: Bytes::from_static(key),
                value: value.clone().into(),
                mod_revision,
                lease,
            })),
            Operation::Delete(key) if self.newest().contains_key(*key) => Some(Change::Delete {
                key: Bytes::from_static(key),
                mod_revision,
            }),
            Operation::Delete(_) => None,
        });
        let changes: Vec<_> = changes.collect();
        if !changes.is_empty() {
            self.push(changes);
        }
    }

    /// One key, without a lease.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.push(vec![Change::Put(Entry {
            key: Bytes::copy_from_slice(key),
            value: value.into(),
            mod_revision: self.revision() + 1,
            lease: 0,
        })]);
    }

    /// A key outside the prefix changes.
    pub fn commit_elsewhere(&mut self) {
        self.push(Vec::new());
    }

    /// A lease ends, and with it its keys: all in one revision.
    pub fn expire(&mut self, lease: i64) {
        let mod_revision = self.revision() + 1;
        let bound = self.newest().values().filter(|entry| entry.lease == lease);
        let changes: Vec<_> = bound
            .map(|entry| Change::Delete {
                key: entry.key.clone(),
                mod_revision,
            })
            .collect();
        if !changes.is_empty() {
            self.push(changes);
        }
    }

    fn push(&mut self, mut changes: Vec<Change>) {
        changes.sort_by(|a, b| a.key().cmp(b.key()));
        let mut keys = self.newest().clone();
        for change in &changes {
            match change {
                Change::Put(entry) => keys.insert(entry.key.clone(), entry.clone()),
                Change::Delete { key, .. } => keys.remove(key),
            };
        }
        self.commits.push(Commit { keys, changes });
    }

    fn commit_at(&self, revision: Revision) -> Option<&Commit> {
        self.commits.get(usize::try_from(revision - 1).ok()?)
    }
}
