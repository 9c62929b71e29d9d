//! What the source told, taken in by the simplest means and held against the history.

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use super::{
    model::{History, Keys},
    random_keys::{Known, Version},
};
use crate::{
    live::Live,
    route::Revision,
    source::{self, Change, Entry, Update},
};

/// How long deletions are held at least.
const HELD: Duration = Duration::from_secs(30);

/// What the source told so far.
#[derive(Default)]
pub struct Mirror {
    /// As it is.
    pub keys: Keys,
    /// As the publisher must know it.
    pub known: Known,
    pub revision: Revision,
    /// Since when there was no change among the keys that are held, if there are any.
    held_since: Option<Instant>,
    /// The first update that was wrong.
    pub wrong: Option<String>,
}

impl Mirror {
    /// After every update, the keys are those of the revision it names, in one of the histories: no revision is ever
    /// split, skipped or mixed with another. And that history is the one from before, unless the update says that it may
    /// be another, or nobody could tell.
    pub fn take(&mut self, update: &Update, histories: &[History]) -> Result<(), String> {
        let before = self.revision;
        let held = self.known.held();
        let keys_before = self.keys.clone();
        match update {
            Update::Snapshot {
                entries,
                revision,
                history,
                last_good,
                ..
            } => {
                self.keys = (entries.iter())
                    .map(|entry| (entry.key.clone(), entry.clone()))
                    .collect();
                for entry in last_good {
                    self.known.put(&entry.key, version(entry));
                }
                let versions = entries.iter().map(|entry| (&*entry.key, version(entry)));
                let is_another = *history == source::History::Another;
                self.known.replace(versions, is_another);
                self.revision = *revision;
            }
            Update::Changes { changes, revision } => {
                changes.iter().for_each(|change| self.follow(change));
                let revisions = changes.iter().map(Change::mod_revision);
                let is_ordered = revisions.clone().is_sorted();
                if !is_ordered || revisions.max() != Some(*revision) {
                    return Err(format!("changes out of order: {update:?}"));
                }
                self.revision = *revision;
            }
            Update::Progress { revision } => self.revision = *revision,
            Update::Vouched { .. } => {}
        }
        let now_held = self.known.held();
        if now_held != held {
            self.held_since = (!now_held.is_empty()).then(Instant::now);
        }
        if self.revision < before && !matches!(update, Update::Snapshot { .. }) {
            return Err(format!("from {before} back to {}", self.revision));
        }
        let may_be_another = match update {
            Update::Snapshot { history, .. } => {
                *history == source::History::Another || self.is_like(&keys_before, before)
            }
            Update::Changes { .. } | Update::Progress { .. } | Update::Vouched { .. } => false,
        };
        let goes_on = |history: &&History| {
            may_be_another || before == 0 || history.at(before) == Some(&keys_before)
        };
        let is_this = |history: &History| history.at(self.revision) == Some(&self.keys);
        if !histories.iter().rev().filter(goes_on).any(is_this) {
            let there = histories
                .last()
                .and_then(|history| history.at(self.revision));
            return Err(format!(
                "{update:?}\nafter {before} left\n{}\nbut at {} there was\n{}",
                listed(Some(&self.keys)),
                self.revision,
                listed(there)
            ));
        }
        Ok(())
    }

    /// Whether these keys may have become of those at that revision: one at least is as it was and newer than every route
    /// that is missing, and none is there that would have been there then, and was not or not so.
    fn is_like(&self, before: &Keys, revision: Revision) -> bool {
        let old = || (self.keys.values()).filter(|entry| entry.mod_revision <= revision);
        let is_missing = |(key, _): &(&Bytes, &Entry)| {
            !key.starts_with(b"/hosts/@") && !self.keys.contains_key(*key)
        };
        let missing = before.iter().filter(is_missing);
        let newest_missing = missing.map(|(_, entry)| entry.mod_revision).max();
        let newest_old = old().map(|entry| entry.mod_revision).max();
        let is_ours = |entry: &Entry| {
            before.get(&entry.key) == Some(entry) || entry.key.starts_with(b"/hosts/@")
        };
        newest_old.is_some() && newest_old >= newest_missing && old().all(is_ours)
    }

    /// The publisher may let go of what it held long enough.
    pub fn see_held(&mut self, live: &Live) {
        let is_due = (self.held_since).is_some_and(|since| since.elapsed() >= HELD);
        if is_due && live.held.load().is_empty() {
            self.let_go();
        }
    }

    pub fn let_go(&mut self) {
        self.known.let_go();
        self.held_since = None;
    }

    fn follow(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => {
                self.keys.insert(entry.key.clone(), entry.clone());
                self.known.put(&entry.key, version(entry));
            }
            Change::Delete { key, .. } => {
                self.keys.remove(key);
                self.known.delete(key);
            }
        }
    }
}

fn version(entry: &Entry) -> Version {
    Version {
        value: entry.value.to_vec(),
        mod_revision: entry.mod_revision,
    }
}

fn listed(keys: Option<&Keys>) -> String {
    let line = |(key, entry): (&Bytes, &Entry)| {
        format!("  {key:?} {:?} {}\n", entry.value, entry.mod_revision)
    };
    keys.into_iter().flatten().map(line).collect()
}
