//! The barriers that stand, passed on behind the swap that covers them.

use std::{collections::HashSet, sync::Arc};

use imbl::OrdMap;
use tracing::warn;

use super::{super::Entry, rejections::Rejections};
use crate::{
    barrier::{self, OpenBarrier},
    live::Live,
};

/// How many may stand at one time; whoever waits for a further one waits in vain.
const MOST: usize = 1000;

/// Every barrier that stands, and whether readers know.
#[derive(Default)]
pub(super) struct Barriers {
    open: OrdMap<Arc<str>, Arc<OpenBarrier>>,
    /// Since the last swap.
    new: Vec<OpenBarrier>,
    is_changed: bool,
}

impl Barriers {
    /// Takes one of the fleet's keys in.
    pub(super) fn put(&mut self, prefix: &str, entry: &Entry) {
        let Some(barrier) = barrier::parse(prefix, entry) else {
            return;
        };
        let known = self.open.get(&barrier.id);
        if known.is_some_and(|known| known.revision >= barrier.revision) {
            return;
        }
        if self.open.len() + self.new.len() >= MOST {
            warn!(barrier = %barrier.id, "more than {MOST} barriers stand; this one is not acknowledged");
            return;
        }
        self.new.push(barrier);
    }

    /// One of the fleet's keys is gone.
    pub(super) fn delete(&mut self, prefix: &str, key: &[u8]) {
        let Some(id) = barrier::id(prefix, key) else {
            return;
        };
        self.new.retain(|barrier| *barrier.id != *id);
        self.is_changed |= self.open.remove(id).is_some();
    }

    /// Every key that is not among these is gone.
    pub(super) fn retain(&mut self, prefix: &str, entries: &[Entry]) {
        if self.open.is_empty() && self.new.is_empty() {
            return;
        }
        let ids = entries
            .iter()
            .filter_map(|entry| barrier::id(prefix, &entry.key));
        let present: HashSet<&str> = ids.collect();
        self.new.retain(|barrier| present.contains(&*barrier.id));
        let is_gone = |id: &&Arc<str>| !present.contains(&***id);
        let gone: Vec<_> = self.open.keys().filter(is_gone).cloned().collect();
        for id in gone {
            self.open.remove(&id);
            self.is_changed = true;
        }
    }

    /// Tells readers, if there is news; the table that covers it is the current one already.
    pub(super) fn publish(&mut self, live: &Live, rejections: &Rejections) {
        self.is_changed |= !self.new.is_empty();
        for mut barrier in self.new.drain(..) {
            let key = barrier
                .question
                .as_ref()
                .ok()
                .and_then(|question| question.key.as_ref());
            barrier.rejection = key.and_then(|key| rejections.reason(key.as_bytes()));
            self.open.insert(barrier.id.clone(), Arc::new(barrier));
        }
        if std::mem::take(&mut self.is_changed) {
            live.barriers.send_replace(self.open.clone());
        }
    }
}
