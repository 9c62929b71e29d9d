//! The barriers that stand, passed on behind the swap that covers them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use imbl::OrdMap;
use tracing::warn;

use super::{super::Entry, held::Held, log_limit::LogLimit, rejections::Rejections};
use crate::{
    barrier::{self, OpenBarrier, Question},
    live::Live,
    route::Revision,
};

/// How many are answered at one time; further ones wait until others are gone.
const MOST: usize = 1000;

/// How many wait; of a further one, whoever wrote it hears nothing.
const MOST_WAITING: usize = 4 * MOST;

/// Every barrier that stands, and whether readers know.
#[derive(Default)]
pub(super) struct Barriers {
    open: OrdMap<Arc<str>, Arc<OpenBarrier>>,
    /// Since the last swap, or for want of room; in the order they came.
    new: BTreeMap<(Revision, Arc<str>), OpenBarrier>,
    is_changed: bool,
    log: LogLimit,
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
        if barrier.lease == 0 {
            if self.log.admits() {
                warn!(barrier = %barrier.id, "a barrier without a lease is not acknowledged: the answers would stay for ever");
            }
            return;
        }
        if self.new.len() >= MOST_WAITING {
            if self.log.admits() {
                warn!(barrier = %barrier.id, "{MOST} barriers are being answered and {MOST_WAITING} wait: this one is never acknowledged");
            }
            return;
        }
        let place = (barrier.revision, barrier.id.clone());
        self.new.insert(place, barrier);
    }

    /// Ends when [`publish`](Self::publish) has something to log.
    pub(super) async fn due(&self) {
        self.log.due().await;
    }

    /// One of the fleet's keys is gone.
    pub(super) fn delete(&mut self, prefix: &str, key: &[u8]) {
        let Some(id) = barrier::id(prefix, key) else {
            return;
        };
        self.new.retain(|(_, new), _| **new != *id);
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
        self.new.retain(|(_, id), _| present.contains(&**id));
        let is_gone = |id: &&Arc<str>| !present.contains(&***id);
        let gone: Vec<_> = self.open.keys().filter(is_gone).cloned().collect();
        for id in gone {
            self.open.remove(&id);
            self.is_changed = true;
        }
    }

    /// Tells readers, if there is news; the table that covers it is the current one already.
    pub(super) fn publish(&mut self, live: &Live, rejections: &Rejections, held: &Held) {
        if let Some(barriers) = self.log.take_owed() {
            warn!(barriers, "further barriers are not acknowledged");
        }
        while self.open.len() < MOST
            && let Some((_, mut barrier)) = self.new.pop_first()
        {
            let question = barrier.question.as_ref().ok();
            barrier.rejection = question.and_then(|asked| rejection(asked, rejections, held));
            self.open.insert(barrier.id.clone(), Arc::new(barrier));
            self.is_changed = true;
        }
        if std::mem::take(&mut self.is_changed) {
            live.barriers.send_replace(self.open.clone());
        }
    }
}

/// Why what is asked about is not in force as etcd has it.
fn rejection(question: &Question, rejections: &Rejections, held: &Held) -> Option<String> {
    let what = match &question.key {
        Some(key) if held.has(key) => "its deletion is held",
        Some(key) => return rejections.reason(key.as_bytes()),
        None if held.is_empty() => return None,
        None => "deletions are held",
    };
    Some(format!(
        "{what}, because etcd was wiped, restored or exchanged: `waypost accept` applies it"
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;

    use super::{super::log_limit::LINES, *};
    use crate::{live::Status, telemetry::logging::testing::logged};

    pub(in super::super) fn live() -> Arc<Live> {
        Live::new(Status {
            connected: true,
            ..Status::before("etcd", "")
        })
    }

    fn entry(key: &str, value: &str, mod_revision: i64) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mod_revision,
            lease: 7,
        }
    }

    fn barrier(id: &str) -> Entry {
        entry(&barrier::key("/hosts/", id), "{}", 5)
    }

    fn open(live: &Live) -> Vec<String> {
        let open = live.barriers.borrow();
        open.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn barriers_are_passed_on_with_the_swap_and_taken_back() {
        let (live, rejections) = (live(), Rejections::default());
        let mut barriers = Barriers::default();
        barriers.put("/hosts/", &barrier("a"));
        barriers.put("/hosts/", &barrier("b"));
        barriers.put("/hosts/", &entry("/hosts/@waypost/pulse", "", 5));
        assert!(open(&live).is_empty(), "before the swap");
        barriers.publish(&live, &rejections, &Held::default());
        assert_eq!(open(&live), ["a", "b"]);

        let mut news = live.barriers.subscribe();
        barriers.put("/hosts/", &barrier("a"));
        barriers.publish(&live, &rejections, &Held::default());
        assert!(
            !news.has_changed().unwrap(),
            "a resumed watch repeats itself"
        );
        barriers.delete("/hosts/", &barrier("a").key);
        barriers.put("/hosts/", &barrier("c"));
        barriers.delete("/hosts/", &barrier("c").key);
        barriers.publish(&live, &rejections, &Held::default());
        assert_eq!(open(&live), ["b"]);
        assert!(news.borrow_and_update().contains_key("b"));

        barriers.put("/hosts/", &barrier("d"));
        barriers.retain("/hosts/", &[barrier("e"), entry("/hosts/a/b:80", "", 1)]);
        barriers.put("/hosts/", &barrier("e"));
        barriers.publish(&live, &rejections, &Held::default());
        assert_eq!(open(&live), ["e"], "after a snapshot");
    }

    #[test]
    fn further_ones_wait_until_others_are_gone() {
        let (live, rejections) = (live(), Rejections::default());
        let mut barriers = Barriers::default();
        let numbered = |id: usize| Entry {
            mod_revision: 5 + i64::try_from(id).unwrap(),
            ..barrier(&id.to_string())
        };
        for id in 0..MOST + MOST_WAITING + 5 {
            barriers.put("/hosts/", &numbered(id));
            if id % 100 == 0 {
                barriers.publish(&live, &rejections, &Held::default());
            }
        }
        let publish = |barriers: &mut Barriers| {
            barriers.publish(&live, &rejections, &Held::default());
            open(&live)
        };
        assert_eq!(publish(&mut barriers).len(), MOST);
        assert!(barriers.new.len() <= MOST_WAITING);
        for id in [1, 2, MOST] {
            barriers.delete("/hosts/", &numbered(id).key);
        }
        let open = publish(&mut barriers);
        assert_eq!(open.len(), MOST);
        for (id, is_open) in [
            (1, false),
            (MOST, false),
            (MOST + 1, true),
            (MOST + 2, true),
        ] {
            assert_eq!(open.contains(&id.to_string()), is_open, "{id}");
        }
        barriers.retain("/hosts/", &[numbered(MOST + 9)]);
        assert_eq!(publish(&mut barriers), [(MOST + 9).to_string()]);
    }

    #[test]
    fn without_a_lease_it_is_not_answered() {
        let (live, rejections) = (live(), Rejections::default());
        let mut barriers = Barriers::default();
        let forever = Entry {
            lease: 0,
            ..barrier("a")
        };
        barriers.put("/hosts/", &forever);
        barriers.publish(&live, &rejections, &Held::default());
        assert!(open(&live).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_those_that_are_not_answered_is_a_few_lines() {
        let (live, rejections) = (live(), Rejections::default());
        let mut barriers = Barriers::default();
        let lines = logged(|| {
            for id in 0..500 {
                let forever = Entry {
                    lease: 0,
                    ..barrier(&id.to_string())
                };
                barriers.put("/hosts/", &forever);
                barriers.publish(&live, &rejections, &Held::default());
            }
        });
        assert_eq!(lines.len(), LINES);
        barriers.due().await;
        let lines = logged(|| barriers.publish(&live, &rejections, &Held::default()));
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains("further barriers are not acknowledged barriers=480"));
    }
}
