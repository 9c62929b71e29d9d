//! What a rollback will do, worked out before anything is done. Pure.

use std::{cmp::Ordering, ops::Range};

use bytes::Bytes;

use crate::{cli::scope::Scope, source::Entry};

/// Keys in one transaction: etcd takes 128 operations by default, and the record of the change is one.
const MOST_KEYS: usize = 127;
/// Bytes in one transaction: etcd takes 1.5 MiB by default.
const MOST_BYTES: usize = 1 << 20;
/// What a key costs beside its own bytes and those of its value.
const OVERHEAD_BYTES: usize = 64;

/// The way from the keys as they are to the keys as they were.
#[derive(Debug)]
pub(super) struct Plan {
    /// In the order they are taken: host by host, puts before deletes.
    pub(super) steps: Vec<Step>,
    /// Keys that differ and are or were bound to this lease: their owner writes them.
    pub(super) left_alone: Vec<(Bytes, i64)>,
}

/// One key to be changed.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) key: Bytes,
    /// As it is; `None` if it is not there.
    pub(super) now: Option<Entry>,
    /// As it was; `None` if it was not there.
    pub(super) then: Option<Entry>,
    host: String,
}

impl Plan {
    /// From `now` to `then`, both ordered by key, as far as `scope` reaches.
    pub(super) fn between(scope: &Scope, now: Vec<Entry>, then: Vec<Entry>) -> Self {
        let mut plan = Self {
            steps: Vec::new(),
            left_alone: Vec::new(),
        };
        let mut now = covered(scope, now).peekable();
        let mut then = covered(scope, then).peekable();
        loop {
            let order = match (now.peek(), then.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(now), Some(then)) => now.key.cmp(&then.key),
            };
            let now = now.next_if(|_| order.is_le());
            let then = then.next_if(|_| order.is_ge());
            plan.add(scope, now, then);
        }
        let place = |step: &Step| (step.host.clone(), step.then.is_none());
        plan.steps.sort_by_cached_key(place);
        plan
    }

    fn add(&mut self, scope: &Scope, now: Option<Entry>, then: Option<Entry>) {
        let value = |entry: &Option<Entry>| entry.as_ref().map(|entry| entry.value.clone());
        let Some(key) = now
            .as_ref()
            .or(then.as_ref())
            .map(|entry| entry.key.clone())
        else {
            return;
        };
        if value(&now) == value(&then) {
            return;
        }
        let leases = [&now, &then].map(|entry| entry.as_ref().map_or(0, |entry| entry.lease));
        if let Some(lease) = leases.into_iter().find(|lease| *lease != 0) {
            self.left_alone.push((key, lease));
            return;
        }
        self.steps.push(Step {
            host: scope.host_of(&key),
            key,
            now,
            then,
        });
    }

    /// Which steps go into which transaction: all into one if they fit. Else whole hosts, as many as fit, and only a
    /// host that is too large by itself is divided.
    pub(super) fn transactions(&self) -> Vec<Range<usize>> {
        let mut transactions = Vec::new();
        let mut current = 0..0;
        let mut host_start = 0;
        for host in self.steps.chunk_by(|a, b| a.host == b.host) {
            let host = host_start..host_start + host.len();
            host_start = host.end;
            if self.fits(current.start..host.end) {
                current.end = host.end;
                continue;
            }
            transactions.push(std::mem::replace(&mut current, host.start..host.start));
            for step in host {
                if !self.fits(current.start..step + 1) {
                    transactions.push(std::mem::replace(&mut current, step..step));
                }
                current.end = step + 1;
            }
        }
        transactions.push(current);
        transactions.retain(|steps| !steps.is_empty());
        transactions
    }

    fn fits(&self, steps: Range<usize>) -> bool {
        let bytes: usize = self.steps[steps.clone()].iter().map(Step::bytes).sum();
        steps.len() <= MOST_KEYS && bytes <= MOST_BYTES
    }
}

impl Step {
    /// The key stands in the condition and in the operation.
    fn bytes(&self) -> usize {
        let value = self.then.as_ref().map_or(0, |entry| entry.value.len());
        2 * self.key.len() + value + OVERHEAD_BYTES
    }
}

fn covered(scope: &Scope, entries: Vec<Entry>) -> impl Iterator<Item = Entry> {
    let covers = |entry: &Entry| scope.covers(&entry.key);
    entries.into_iter().filter(covers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, lease: i64) -> Entry {
        Entry {
            key: format!("/hosts/{key}").into(),
            value: value.to_owned().into(),
            mod_revision: 1,
            lease,
        }
    }

    fn plan(now: &[Entry], then: &[Entry]) -> Plan {
        let scope = Scope::parse("/hosts/", None).unwrap();
        Plan::between(&scope, now.to_vec(), then.to_vec())
    }

    fn told(plan: &Plan) -> Vec<String> {
        let steps = plan.steps.iter().map(|step| {
            let sign = match (&step.now, &step.then) {
                (Some(_), Some(_)) => '~',
                (Some(_), None) => '-',
                (None, _) => '+',
            };
            format!("{sign}{}", String::from_utf8_lossy(&step.key[7..]))
        });
        steps.collect()
    }

    #[test]
    fn the_way_back_is_host_by_host_and_puts_first() {
        let now = [
            entry("@waypost/pulse", "x", 0),
            entry("B/a:80", "", 0),
            entry("a/a:80", "", 0),
            entry("a/c:80", "new", 0),
            entry("a/same:80", "", 0),
        ];
        let then = [
            entry("a/b:80", "", 0),
            entry("a/c:80", "old", 0),
            entry("a/same:80", "", 0),
            entry("b/z:80", "", 0),
        ];
        let plan = plan(&now, &then);
        assert_eq!(
            told(&plan),
            ["+a/b:80", "~a/c:80", "-a/a:80", "+b/z:80", "-B/a:80"]
        );
        assert_eq!(
            plan.transactions().as_slice(),
            std::slice::from_ref(&(0..5))
        );
    }

    #[test]
    fn what_is_or_was_bound_to_a_lease_is_left_alone() {
        let now = [
            entry("a/a:80", "", 7),
            entry("a/c:80", "", 7),
            entry("a/d:80", "", 7),
            entry("a/e:80", "", 0),
        ];
        let then = [
            entry("a/b:80", "", 7),
            entry("a/c:80", "x", 0),
            entry("a/d:80", "", 8),
            entry("a/e:80", "x", 7),
        ];
        let plan = plan(&now, &then);
        assert_eq!(told(&plan), [""; 0]);
        let keys: Vec<_> = plan.left_alone.iter().map(|(key, _)| &key[7..]).collect();
        assert_eq!(keys, [b"a/a:80", b"a/b:80", b"a/c:80", b"a/e:80"]);
        assert!(plan.transactions().is_empty());
    }

    #[test]
    fn transactions_hold_whole_hosts_within_the_limits() {
        for (hosts, value, expected) in [
            (&[127][..], 0, &[127][..]),
            (&[128], 0, &[127, 1]),
            (&[100, 27], 0, &[127]),
            (&[100, 28], 0, &[100, 28]),
            (&[1; 300], 0, &[127, 127, 46]),
            (&[50, 300, 50], 0, &[50, 127, 127, 96]),
            (&[2, 2], 400 << 10, &[2, 2]),
            (&[3], 400 << 10, &[2, 1]),
            (&[1, 1], 1400 << 10, &[1, 1]),
        ] {
            let value = "x".repeat(value);
            let keys = hosts.iter().enumerate().flat_map(|(host, keys)| {
                (0..*keys).map(move |key| format!("h{host:03}/u{key:03}:80"))
            });
            let then: Vec<_> = keys.map(|key| entry(&key, &value, 0)).collect();
            let sizes: Vec<_> = plan(&[], &then)
                .transactions()
                .iter()
                .map(Range::len)
                .collect();
            assert_eq!(sizes, expected, "{hosts:?}");
        }
    }
}
