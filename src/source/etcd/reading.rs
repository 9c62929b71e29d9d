//! Reading everything below the prefix: in pages, pinned to the revision of the first. Pure: says which page to ask
//! for next and takes the answers in.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::fault::Fault;
use crate::{
    route::Revision,
    source::{Change, Entry},
};

/// The first page only finds out how large entries are.
pub(super) const FIRST_PAGE: i64 = 1_000;
/// Pages of 1,000 keys take twenty times as long for a million keys as pages of 50,000.
const LARGEST_PAGE: i64 = 50_000;
/// What a page should hold: far below what we decode, and soon read within one call's time limit.
const PAGE_BYTES: usize = 8 << 20;
/// Per entry, beside key and value.
const OVERHEAD_BYTES: usize = 40;
/// After so many pages lost to compaction, a pinned read is given up.
const PINNED_RESTARTS: u32 = 2;

/// The next page to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The first key of the range; its end is that of the prefix.
    pub start: Vec<u8>,
    /// How many entries at most.
    pub limit: i64,
    /// At which revision; `None` for the newest.
    pub revision: Option<Revision>,
    /// What of the entries.
    pub content: Content,
}

/// What of the entries a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Entries,
    /// All but the values.
    Keys,
    /// Nothing: the page only says how many there are, for half of what it costs etcd to begin a page.
    Count,
}

/// A page as etcd answers it.
#[derive(Clone, Debug)]
pub struct Page {
    /// Ordered by key.
    pub entries: Vec<Entry>,
    /// Whether there are more behind the last.
    pub more: bool,
    /// How many entries there are in the whole range asked for.
    pub count: i64,
    /// The cluster that answered.
    pub cluster_id: u64,
    /// The store's revision when it answered.
    pub revision: Revision,
}

/// A read under way.
#[derive(Debug)]
pub struct Reading {
    prefix: Vec<u8>,
    /// The one revision that is asked for, whatever the first page's.
    at: Option<Revision>,
    limit: i64,
    restarts: u32,
    entries: Vec<Entry>,
    /// Where each page starts, and the revision it shows.
    pages: Vec<(Bytes, Revision)>,
    cluster_id: u64,
    /// The store's revision when it answered last.
    newest: Revision,
}

/// Everything below the prefix.
#[derive(Debug)]
pub enum Everything {
    /// As it was at one revision.
    Pinned {
        /// Ordered by key.
        entries: Vec<Entry>,
        /// That revision.
        revision: Revision,
        /// The cluster that answered.
        cluster_id: u64,
    },
    /// Each page as it was at its own revision: consistent once what changed meanwhile is added.
    Unpinned(CatchUp),
}

impl Reading {
    /// Starts at the first key below the prefix.
    pub fn below(prefix: &[u8]) -> Self {
        Self {
            prefix: prefix.to_vec(),
            at: None,
            limit: FIRST_PAGE,
            restarts: 0,
            entries: Vec::new(),
            pages: Vec::new(),
            cluster_id: 0,
            newest: 0,
        }
    }

    /// The same, of everything as it was at this revision.
    pub fn at(prefix: &[u8], revision: Revision) -> Self {
        Self {
            at: Some(revision),
            ..Self::below(prefix)
        }
    }

    /// What to ask for next.
    pub fn request(&self) -> PageRequest {
        let pinned = self.restarts <= PINNED_RESTARTS;
        PageRequest {
            start: self.next_start(),
            limit: self.limit,
            revision: self.at.or_else(|| {
                (self.pages.first())
                    .filter(|_| pinned)
                    .map(|(_, revision)| *revision)
            }),
            content: Content::Entries,
        }
    }

    /// Takes a page in; whether it was the last.
    ///
    /// # Errors
    ///
    /// The page does not belong to those before it, as by now another cluster answers.
    pub fn accept(&mut self, page: Page) -> Result<bool, Fault> {
        if !self.pages.is_empty() && page.cluster_id != self.cluster_id {
            return Err(Fault::Unreachable(
                "another cluster answers in the middle of the read".to_owned(),
            ));
        }
        if page.revision < self.newest {
            return Err(Fault::FutureRevision);
        }
        // It would be asked for again and again; and to take it for the last would lose keys.
        if page.more && page.entries.is_empty() {
            return Err(Fault::Unreachable(
                "etcd answers no keys and says that there are more".to_owned(),
            ));
        }
        let first = self.pages.first().map(|(_, revision)| *revision);
        let shows = match first {
            Some(pinned) if self.restarts <= PINNED_RESTARTS => pinned,
            _ => page.revision,
        };
        self.pages.push((self.next_start().into(), shows));
        self.cluster_id = page.cluster_id;
        self.newest = page.revision;
        self.limit = fitting_limit(&page.entries).unwrap_or(self.limit);
        self.entries.extend(page.entries);
        Ok(!page.more)
    }

    /// The pinned revision was compacted away: from the start again, and in the end without a pin.
    pub fn restart(&mut self) {
        self.restarts += 1;
        self.newest = 0;
        self.entries.clear();
        self.pages.clear();
    }

    /// A page was too large or took too long: asks for less, unless there is no less.
    pub fn shrink(&mut self) -> bool {
        let shrunk = (self.limit / 4).max(1);
        std::mem::replace(&mut self.limit, shrunk) != shrunk
    }

    /// Whether the next page is asked for at a revision.
    pub fn is_pinned(&self) -> bool {
        self.request().revision.is_some()
    }

    /// Whether etcd has answered at all, so that silence may be the page's fault.
    pub fn has_begun(&self) -> bool {
        !self.pages.is_empty()
    }

    /// The result, after the last page.
    pub fn finish(self) -> Everything {
        let revisions = || self.pages.iter().map(|(_, revision)| *revision);
        let from = revisions().next().unwrap_or_default();
        let through = revisions().max().unwrap_or_default();
        if from == through {
            return Everything::Pinned {
                entries: self.entries,
                revision: from,
                cluster_id: self.cluster_id,
            };
        }
        Everything::Unpinned(CatchUp {
            from,
            through,
            cluster_id: self.cluster_id,
            pages: self.pages,
            entries: (self.entries.into_iter())
                .map(|entry| (entry.key.clone(), entry))
                .collect(),
        })
    }

    /// What was read, as of the revision that was asked for.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    fn next_start(&self) -> Vec<u8> {
        match self.entries.last() {
            // The smallest key behind the last one.
            Some(last) => [&last.key[..], b"\0"].concat(),
            None => self.prefix.clone(),
        }
    }
}

/// An unpinned read, to be completed by the changes that a watch from `from` brings.
#[derive(Debug)]
pub struct CatchUp {
    /// The first page's revision: where the watch starts.
    pub from: Revision,
    /// The last page's revision: consistent from there on.
    pub through: Revision,
    /// The cluster that answered.
    pub cluster_id: u64,
    pages: Vec<(Bytes, Revision)>,
    entries: BTreeMap<Bytes, Entry>,
}

impl CatchUp {
    /// Adds changes, each unless the page of its key shows it already.
    pub fn add(&mut self, changes: Vec<Change>) {
        for change in changes {
            let page = self
                .pages
                .partition_point(|(start, _)| start <= change.key());
            let shown = page.checked_sub(1).map_or(0, |index| self.pages[index].1);
            if change.mod_revision() <= shown {
                continue;
            }
            match change {
                Change::Put(entry) => {
                    self.entries.insert(entry.key.clone(), entry);
                }
                Change::Delete { key, .. } => {
                    self.entries.remove(&key);
                }
            }
        }
    }

    /// Everything, ordered by key.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries.into_values().collect()
    }
}

/// How many entries like these a page should hold.
pub(super) fn fitting_limit(entries: &[Entry]) -> Option<i64> {
    let bytes: usize = (entries.iter())
        .map(|entry| entry.key.len() + entry.value.len() + OVERHEAD_BYTES)
        .sum();
    let each = bytes.checked_div(entries.len())?;
    let fitting = i64::try_from(PAGE_BYTES / each.max(1)).unwrap_or(LARGEST_PAGE);
    Some(fitting.clamp(1, LARGEST_PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, size: usize, mod_revision: Revision) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: vec![b'x'; size].into(),
            mod_revision,
            lease: 0,
        }
    }

    fn page(entries: Vec<Entry>, more: bool, revision: Revision) -> Page {
        Page {
            count: i64::MAX,
            entries,
            more,
            cluster_id: 1,
            revision,
        }
    }

    fn keys(entries: &[Entry]) -> Vec<&[u8]> {
        entries.iter().map(|entry| &entry.key[..]).collect()
    }

    #[test]
    fn pages_follow_one_another_at_the_first_ones_revision() {
        let mut reading = Reading::below(b"/h/");
        let first = reading.request();
        assert_eq!((&first.start[..], first.revision), (&b"/h/"[..], None));
        assert_eq!(
            reading.accept(page(vec![entry("/h/a", 0, 3)], true, 7)),
            Ok(false)
        );
        let second = reading.request();
        assert_eq!(
            (&second.start[..], second.revision),
            (&b"/h/a\0"[..], Some(7))
        );
        assert_eq!(
            reading.accept(page(vec![entry("/h/b", 0, 4)], false, 9)),
            Ok(true)
        );
        let Everything::Pinned {
            entries,
            revision,
            cluster_id,
        } = reading.finish()
        else {
            panic!("not pinned")
        };
        assert_eq!(
            (keys(&entries), revision, cluster_id),
            (vec![&b"/h/a"[..], b"/h/b"], 7, 1)
        );
    }

    #[test]
    fn the_page_size_follows_the_size_of_entries() {
        for (size, expected) in [(0, 50_000), (1_000, 8_000), (1 << 20, 7), (100 << 20, 1)] {
            let limit = fitting_limit(&[entry("/h/a", size, 1)]).unwrap();
            assert!(
                limit >= expected && limit <= expected + expected / 10,
                "{size}: {limit}"
            );
        }
        let mut reading = Reading::below(b"/h/");
        assert!(reading.shrink());
        assert_eq!(reading.request().limit, FIRST_PAGE / 4);
        while reading.shrink() {}
        assert_eq!(reading.request().limit, 1);
    }

    #[test]
    fn a_page_that_does_not_fit_fails_the_read() {
        let first = || page(vec![entry("/h/a", 0, 3)], true, 7);
        let empty = |more| page(vec![], more, 8);
        let of_another = Page {
            cluster_id: 2,
            ..empty(false)
        };
        let older = page(vec![entry("/h/b", 0, 2)], false, 6);
        for (second, is_fitting) in [
            (empty(false), true),
            (empty(true), false),
            (of_another, false),
            (older, false),
        ] {
            let mut reading = Reading::below(b"/h/");
            assert_eq!(reading.accept(first()), Ok(false));
            let accepted = reading.accept(second.clone());
            assert_eq!(accepted.is_ok(), is_fitting, "{second:?}: {accepted:?}");
        }
        assert_eq!(Reading::below(b"/h/").accept(empty(false)), Ok(true));
    }

    #[test]
    fn a_read_that_begins_anew_may_begin_elsewhere() {
        let mut reading = Reading::below(b"/h/");
        assert_eq!(
            reading.accept(page(vec![entry("/h/a", 0, 3)], true, 7)),
            Ok(false)
        );
        reading.restart();
        let other = Page {
            cluster_id: 2,
            ..page(vec![], false, 2)
        };
        assert_eq!(reading.accept(other), Ok(true));
    }

    #[test]
    fn after_two_restarts_the_pin_is_given_up() {
        let mut reading = Reading::below(b"/h/");
        for restarts in 1..=3 {
            reading
                .accept(page(vec![entry("/h/a", 0, 3)], true, 7))
                .expect("it fits");
            assert_eq!(reading.request().revision, Some(7), "restart {restarts}");
            reading.restart();
            assert_eq!(reading.request().start, b"/h/");
        }
        reading
            .accept(page(vec![entry("/h/a", 0, 3)], true, 7))
            .expect("it fits");
        assert_eq!(reading.request().revision, None);
    }

    /// Page 1 (keys a to c) is read at 7 and page 2 (from d) at 9; transactions at 8 and 10 touched both.
    #[test]
    fn an_unpinned_read_is_completed_by_the_changes_since_each_page() {
        let mut reading = Reading::below(b"/h/");
        (0..3).for_each(|_| reading.restart());
        reading
            .accept(page(
                vec![entry("/h/a", 1, 3), entry("/h/c", 1, 3)],
                true,
                7,
            ))
            .expect("it fits");
        reading
            .accept(page(
                vec![entry("/h/d", 2, 8), entry("/h/e", 1, 3)],
                false,
                9,
            ))
            .expect("it fits");
        let Everything::Unpinned(mut catch_up) = reading.finish() else {
            panic!("pinned")
        };
        assert_eq!((catch_up.from, catch_up.through), (7, 9));
        let delete = |key: &str, mod_revision| Change::Delete {
            key: Bytes::copy_from_slice(key.as_bytes()),
            mod_revision,
        };
        catch_up.add(vec![
            Change::Put(entry("/h/a", 2, 8)),
            delete("/h/d", 8), // deleted and put again in between: the page shows the later
            Change::Put(entry("/h/b", 2, 10)),
            delete("/h/e", 10),
        ]);
        let found: Vec<_> = (catch_up.into_entries().iter())
            .map(|entry| {
                (
                    String::from_utf8_lossy(&entry.key).into_owned(),
                    entry.mod_revision,
                )
            })
            .collect();
        let expected = [("/h/a", 8), ("/h/b", 10), ("/h/c", 3), ("/h/d", 8)];
        assert_eq!(
            found,
            expected.map(|(key, revision)| (key.to_owned(), revision))
        );
    }
}
