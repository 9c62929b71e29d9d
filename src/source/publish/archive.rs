//! What is to be on disk, kept up to date: the keys as etcd has them, and what is in force in place of some.

use std::{collections::HashSet, time::SystemTime};

use bytes::Bytes;
use tokio::sync::watch;

use super::{Origin, held::Held, is_seen};
use crate::{
    route::Revision,
    source::{
        Entry,
        etcd::pulse_key,
        snapshot::{Frame, Version},
    },
};

/// The raw keys, if somebody writes them to a disk; without anybody it keeps nothing.
#[derive(Default)]
pub(super) struct Archive {
    frames: Option<watch::Sender<Option<Frame>>>,
    pulse: Vec<u8>,
    next: Frame,
    /// What readers know: version, revision, time.
    told: Option<(u64, Revision, SystemTime)>,
}

impl Archive {
    /// Tells what of the keys below `prefix` is to be written here.
    pub(super) fn telling(frames: watch::Sender<Option<Frame>>, prefix: &str) -> Self {
        Self {
            frames: Some(frames),
            pulse: pulse_key(prefix.as_bytes()),
            ..Self::default()
        }
    }

    /// The source says that this is how far it goes now, of this cluster if it is another one.
    pub(super) fn confirm(&mut self, revision: Revision, cluster_id: Option<u64>) {
        self.next.revision = revision;
        self.next.confirmed = SystemTime::now();
        if let Some(cluster_id) = cluster_id
            && cluster_id != self.next.cluster_id
        {
            self.next.cluster_id = cluster_id;
            self.next.version += 1;
        }
    }

    /// All there is comes from the disk: that is as old as before, and is not written again.
    pub(super) fn restored(&mut self, confirmed: SystemTime) {
        self.next.confirmed = confirmed;
        self.told = Some(self.mark());
    }

    /// The key is in force as etcd has it, or is one of the fleet's.
    pub(super) fn put(&mut self, entry: &Entry) {
        if *entry.key == *self.pulse {
            self.next.pulse = Some(version_of(entry));
        } else if self.frames.is_some() {
            self.keep(&entry.key, None);
            self.insert(entry);
        }
    }

    /// The key is rejected as etcd has it; the version before may be in force in its place.
    pub(super) fn reject(&mut self, entry: &Entry, last_good_in_force: bool) {
        if self.frames.is_none() {
            return;
        }
        let good = (last_good_in_force).then(|| self.in_force(&entry.key));
        self.keep(&entry.key, good.flatten());
        self.insert(entry);
    }

    /// The key is gone, unless that is older than what is known of it.
    pub(super) fn delete(&mut self, key: &[u8], mod_revision: Revision, origin: Origin) {
        let pulse = (self.next.pulse.as_ref()).filter(|_| *key == *self.pulse);
        let known = self.next.entries.get(key).or(pulse);
        if is_seen(
            origin,
            known.map(|version| version.mod_revision),
            mod_revision,
        ) {
            return;
        }
        if *key == *self.pulse {
            self.next.pulse = None;
        }
        let was_there = self.next.entries.remove(key).is_some();
        let was_kept = self.next.kept.remove(key).is_some();
        self.changed(was_there || was_kept);
    }

    /// Of other keys than these there are none any more, though some are held.
    pub(super) fn retain(&mut self, entries: &[Entry], held: &Held) {
        self.next.pulse = None;
        if self.next.entries.is_empty() && self.next.kept.is_empty() {
            return;
        }
        let known = self.next.entries.keys().chain(self.next.kept.keys());
        let present: HashSet<&[u8]> = entries.iter().map(|entry| &*entry.key).collect();
        let absent: Vec<Bytes> = (known.filter(|key| !present.contains(&***key)))
            .cloned()
            .collect();
        for key in absent {
            let is_held = std::str::from_utf8(&key).is_ok_and(|key| held.has(key));
            let good = is_held.then(|| self.in_force(&key));
            self.keep(&key, good.flatten());
            let was_there = self.next.entries.remove(&key).is_some();
            self.changed(was_there);
        }
    }

    /// Tells readers, if there is news; the source has told all up to its last revision.
    pub(super) fn publish(&mut self) {
        let mark = self.mark();
        if let Some(frames) = &self.frames
            && self.told != Some(mark)
        {
            self.told = Some(mark);
            frames.send_replace(Some(self.next.clone()));
        }
    }

    fn mark(&self) -> (u64, Revision, SystemTime) {
        let Frame {
            version,
            revision,
            confirmed,
            ..
        } = self.next;
        (version, revision, confirmed)
    }

    /// The version of a key that is in force, where one is.
    fn in_force(&self, key: &[u8]) -> Option<Version> {
        let kept = self.next.kept.get(key);
        kept.or_else(|| self.next.entries.get(key)).cloned()
    }

    fn keep(&mut self, key: &Bytes, good: Option<Version>) {
        let is_news = self.next.kept.get(key) != good.as_ref();
        if is_news {
            match good {
                Some(good) => self.next.kept.insert(key.clone(), good),
                None => self.next.kept.remove(key),
            };
        }
        self.changed(is_news);
    }

    fn insert(&mut self, entry: &Entry) {
        let version = version_of(entry);
        let is_news = self.next.entries.get(&entry.key) != Some(&version);
        if is_news {
            self.next.entries.insert(entry.key.clone(), version);
        }
        self.changed(is_news);
    }

    fn changed(&mut self, is_changed: bool) {
        self.next.version += u64::from(is_changed);
    }
}

fn version_of(entry: &Entry) -> Version {
    Version {
        value: entry.value.clone(),
        mod_revision: entry.mod_revision,
        lease: entry.lease,
    }
}
