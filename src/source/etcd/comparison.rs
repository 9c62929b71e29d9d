//! What etcd has and what we have, compared key by key at one revision, page by page. Pure: says which page to ask for
//! next and takes the answers in.

use super::{
    ledger::Ledger,
    reading::{Content, FIRST_PAGE, Page, PageRequest, fitting_limit},
};
use crate::route::Revision;

/// How many keys that differ are named, and how much of each.
const NAMED: usize = 5;
const NAMED_BYTES: usize = 200;

/// A comparison under way. In memory are a copy of the ledger, and one page.
#[derive(Debug)]
pub struct Comparison {
    start: Vec<u8>,
    limit: i64,
    /// At which revision; `None` until the first page says it.
    revision: Option<Revision>,
    /// What we have and no page has shown yet.
    unseen: Ledger,
    differences: Differences,
}

/// The keys in which etcd and we differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// How many etcd has, and we don't, or not as last changed.
    pub missed: usize,
    /// The first of them.
    pub named: Vec<String>,
    /// How many we have, and etcd doesn't.
    pub gone: usize,
}

impl Comparison {
    /// Of what we have with what etcd has below `prefix` at this revision: that of our ledger, or the newest.
    pub fn of(prefix: &[u8], ours: &Ledger, revision: Option<Revision>) -> Self {
        Self {
            start: prefix.to_vec(),
            limit: FIRST_PAGE,
            revision,
            unseen: ours.clone(),
            differences: Differences::default(),
        }
    }

    /// What to ask for next.
    pub fn request(&self) -> PageRequest {
        PageRequest {
            start: self.start.clone(),
            limit: self.limit,
            revision: self.revision,
            content: Content::Keys,
        }
    }

    /// Takes a page in; whether it was the last.
    pub fn accept(&mut self, page: &Page) -> bool {
        self.revision.get_or_insert(page.revision);
        self.limit = fitting_limit(&page.entries).unwrap_or(self.limit);
        for entry in &page.entries {
            if self.unseen.is_fleet(&entry.key) {
                continue;
            }
            if self.unseen.take(&entry.key) != Some(entry.mod_revision) {
                self.differences.miss(&entry.key);
            }
        }
        let Some(last) = page.entries.last() else {
            return true;
        };
        // The smallest key behind the last one.
        self.start = [&last.key[..], b"\0"].concat();
        !page.more
    }

    /// A page was too large or took too long: asks for less, unless there is no less.
    pub fn shrink(&mut self) -> bool {
        let shrunk = (self.limit / 4).max(1);
        std::mem::replace(&mut self.limit, shrunk) != shrunk
    }

    /// The result, after the last page, and the revision it is true of.
    pub fn finish(mut self) -> (Differences, Revision) {
        self.differences.gone = self.unseen.len();
        (self.differences, self.revision.unwrap_or_default())
    }
}

impl Differences {
    /// How many keys differ.
    pub fn count(&self) -> usize {
        self.missed + self.gone
    }

    fn miss(&mut self, key: &[u8]) {
        self.missed += 1;
        if self.named.len() < NAMED {
            let shown = &key[..key.len().min(NAMED_BYTES)];
            self.named.push(String::from_utf8_lossy(shown).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::source::Entry;

    fn entry(key: &str, mod_revision: Revision) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::new(),
            mod_revision,
            lease: 0,
        }
    }

    fn page(entries: &[Entry], more: bool) -> Page {
        Page {
            count: i64::MAX,
            entries: entries.to_vec(),
            more,
            cluster_id: 1,
            revision: 20,
        }
    }

    fn differences(missed: usize, named: &[&str], gone: usize) -> Differences {
        Differences {
            missed,
            named: named.iter().map(|&key| key.to_owned()).collect(),
            gone,
        }
    }

    #[test]
    fn every_kind_of_difference_is_found_whatever_the_pages() {
        let ours = [entry("/h/a", 3), entry("/h/b", 4), entry("/h/c", 5)];
        let ledger = Ledger::of(b"/h/", &ours);
        let fleet = entry("/h/@waypost/pulse", 19);
        let [a, b, c] = ours;
        for (theirs, expected) in [
            (vec![&a, &b, &c], differences(0, &[], 0)),
            (vec![&fleet, &a, &b, &c], differences(0, &[], 0)),
            (vec![&a, &c], differences(0, &[], 1)),
            (vec![], differences(0, &[], 3)),
            (
                vec![&a, &entry("/h/b", 7), &c],
                differences(1, &["/h/b"], 0),
            ),
            (
                vec![&a, &entry("/h/aa", 7), &c],
                differences(1, &["/h/aa"], 1),
            ),
        ] {
            let theirs: Vec<_> = theirs.into_iter().cloned().collect();
            for size in 1..=4 {
                let mut comparison = Comparison::of(b"/h/", &ledger, Some(12));
                let mut pages: Vec<_> = theirs.chunks(size).map(|page| page.to_vec()).collect();
                let last = pages.pop().unwrap_or_default();
                for entries in &pages {
                    assert!(!comparison.accept(&page(entries, true)));
                }
                assert!(comparison.accept(&page(&last, false)));
                assert_eq!(comparison.finish(), (expected.clone(), 12));
            }
        }
    }

    #[test]
    fn pages_follow_one_another_at_one_revision() {
        let mut comparison = Comparison::of(b"/h/", &Ledger::of(b"/h/", &[]), None);
        let first = comparison.request();
        assert_eq!((&first.start[..], first.revision), (&b"/h/"[..], None));
        assert_eq!(first.content, Content::Keys);
        assert!(!comparison.accept(&page(&[entry("/h/a", 3)], true)));
        let second = comparison.request();
        assert_eq!(
            (&second.start[..], second.revision),
            (&b"/h/a\0"[..], Some(20))
        );
        assert!(second.limit > first.limit);
        assert!(comparison.shrink());
        assert!(comparison.request().limit < second.limit);
        assert!(comparison.accept(&page(&[], true)), "or it never ends");
    }

    #[test]
    fn few_of_many_are_named() {
        let mut comparison = Comparison::of(b"/h/", &Ledger::of(b"/h/", &[]), None);
        let entries: Vec<_> = (0..1_000)
            .map(|index| entry(&format!("/h/{index}{}", "x".repeat(4_000)), 3))
            .collect();
        comparison.accept(&page(&entries, false));
        let (differences, _) = comparison.finish();
        assert_eq!(
            (differences.count(), differences.named.len()),
            (1_000, NAMED)
        );
        assert!(differences.named.iter().all(|key| key.len() == NAMED_BYTES));
    }
}
