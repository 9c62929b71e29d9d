//! What the responses of one watch mean, put together from fragments. Pure: no etcd needed to test it.

use crate::{route::Revision, source::Change};

/// A watch response, as far as it matters.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Negative in the answer to a requested progress report.
    pub watch_id: i64,
    /// The watch exists now.
    pub created: bool,
    /// The watch is over.
    pub canceled: bool,
    /// Above what was heard: it is over because what lies before this revision is compacted away.
    pub compact_revision: Revision,
    /// Why it is over.
    pub cancel_reason: String,
    /// More of the same revisions follows.
    pub fragment: bool,
    /// Of whom this is; 0 if that is not said, as by a gRPC proxy.
    pub cluster_id: u64,
    /// The store's revision when this was sent.
    pub revision: Revision,
    /// What changed.
    pub events: Vec<Change>,
}

/// What a response amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The watch stands.
    Created,
    /// Nothing to act on (yet).
    Nothing,
    /// These changes, up to this revision; no revision is split.
    Changes(Vec<Change>, Revision),
    /// Nothing changed up to this revision.
    Progress(Revision),
    /// The watch is over: what we miss is compacted away.
    Compacted,
    /// The watch is over, for this reason.
    Canceled(String),
}

/// One watch: where it stands, and the fragments of revisions that are not complete.
///
/// etcd never spreads a revision over two responses unless it marks all but the last of them as fragments, so a
/// response without that mark ends on a whole revision. Events come in the order of their revisions, so a fragment
/// completes every revision but its newest: one alone is held, which is as large as etcd lets a transaction be.
#[derive(Debug)]
pub struct Assembly {
    revision: Revision,
    pending: Vec<Change>,
}

impl Assembly {
    /// A watch from `revision` on, all of which is known already.
    pub fn from(revision: Revision) -> Self {
        Self {
            revision,
            pending: Vec::new(),
        }
    }

    /// The revision up to which everything was passed on.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Takes the next response in.
    pub fn hear(&mut self, response: Response) -> Heard {
        // A refused watch is created and canceled in one response, so this comes first.
        if response.canceled {
            // A watch from behind that revision misses nothing; to read everything for it would never end.
            return if response.compact_revision > self.revision {
                Heard::Compacted
            } else {
                Heard::Canceled(response.cancel_reason)
            };
        }
        if response.created {
            return Heard::Created;
        }
        if response.events.is_empty() {
            return self.hear_progress(response.watch_id, response.revision);
        }
        // The watch starts at the revision we have: one further on would miss a delete that is compacted away.
        let known = self.revision;
        (self.pending).extend(
            response
                .events
                .into_iter()
                .filter(|change| change.mod_revision() > known),
        );
        let newest = self.pending.last().map(Change::mod_revision);
        let incomplete = newest.filter(|_| response.fragment);
        let whole = incomplete.map_or(self.pending.len(), |newest| {
            (self.pending).partition_point(|change| change.mod_revision() < newest)
        });
        let rest = self.pending.split_off(whole);
        let changes = std::mem::replace(&mut self.pending, rest);
        let Some(last) = changes.last() else {
            return Heard::Nothing;
        };
        self.revision = last.mod_revision();
        Heard::Changes(changes, self.revision)
    }

    /// Only timed notices count: the answer to a requested one may claim revisions whose events are still to come.
    fn hear_progress(&mut self, watch_id: i64, revision: Revision) -> Heard {
        if watch_id < 0 || !self.pending.is_empty() || revision <= self.revision {
            return Heard::Nothing;
        }
        self.revision = revision;
        Heard::Progress(revision)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::source::Entry;

    fn put(key: &'static str, mod_revision: Revision) -> Change {
        Change::Put(Entry {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            mod_revision,
            lease: 0,
        })
    }

    fn events(events: &[Change], fragment: bool) -> Response {
        Response {
            events: events.to_vec(),
            fragment,
            revision: 99,
            ..Response::default()
        }
    }

    #[test]
    fn what_a_response_means() {
        for (response, expected) in [
            (
                Response {
                    created: true,
                    revision: 9,
                    ..Response::default()
                },
                Heard::Created,
            ),
            (
                Response {
                    revision: 9,
                    ..Response::default()
                },
                Heard::Progress(9),
            ),
            (
                Response {
                    revision: 5,
                    ..Response::default()
                },
                Heard::Nothing,
            ),
            (
                Response {
                    revision: 9,
                    watch_id: -1,
                    ..Response::default()
                },
                Heard::Nothing,
            ),
            (
                Response {
                    canceled: true,
                    compact_revision: 7,
                    ..Response::default()
                },
                Heard::Compacted,
            ),
            (
                Response {
                    canceled: true,
                    compact_revision: 5,
                    cancel_reason: "odd".to_owned(),
                    ..Response::default()
                },
                Heard::Canceled("odd".to_owned()),
            ),
            (
                Response {
                    canceled: true,
                    created: true,
                    watch_id: -1,
                    cancel_reason: "denied".to_owned(),
                    ..Response::default()
                },
                Heard::Canceled("denied".to_owned()),
            ),
            (events(&[put("/a", 4), put("/b", 5)], false), Heard::Nothing),
            (
                events(&[put("/a", 5), put("/b", 6), put("/c", 8)], false),
                Heard::Changes(vec![put("/b", 6), put("/c", 8)], 8),
            ),
        ] {
            let text = format!("{response:?}");
            assert_eq!(Assembly::from(5).hear(response), expected, "{text}");
        }
    }

    #[test]
    fn a_fragment_completes_all_revisions_but_its_newest() {
        let mut assembly = Assembly::from(5);
        let heard = assembly.hear(events(&[put("/a", 6), put("/b", 7), put("/a", 8)], true));
        let expected = vec![put("/a", 6), put("/b", 7)];
        assert_eq!(heard, Heard::Changes(expected, 7));
        let heard = assembly.hear(events(&[put("/c", 8), put("/a", 9)], true));
        let expected = vec![put("/a", 8), put("/c", 8)];
        assert_eq!(heard, Heard::Changes(expected, 8));
        let heard = assembly.hear(events(&[put("/b", 9)], false));
        let expected = vec![put("/a", 9), put("/b", 9)];
        assert_eq!(heard, Heard::Changes(expected, 9));
    }

    #[test]
    fn what_is_repeated_is_passed_on_once() {
        let mut assembly = Assembly::from(5);
        let response = events(&[put("/a", 6), put("/b", 7)], false);
        assembly.hear(response.clone());
        assert_eq!(assembly.hear(response), Heard::Nothing);
        let heard = assembly.hear(events(&[put("/b", 7), put("/c", 8)], false));
        assert_eq!(heard, Heard::Changes(vec![put("/c", 8)], 8));
    }

    #[test]
    fn fragments_are_held_until_the_last() {
        let mut assembly = Assembly::from(5);
        assert_eq!(assembly.hear(events(&[put("/a", 6)], true)), Heard::Nothing);
        let notice = Response {
            revision: 90,
            watch_id: -1,
            ..Response::default()
        };
        assert_eq!(assembly.hear(events(&[put("/b", 6)], true)), Heard::Nothing);
        assert_eq!(assembly.hear(notice.clone()), Heard::Nothing);
        assert_eq!(assembly.revision(), 5);
        assert_eq!(
            assembly.hear(events(&[put("/c", 6)], false)),
            Heard::Changes(vec![put("/a", 6), put("/b", 6), put("/c", 6)], 6)
        );
        assert_eq!(assembly.hear(notice), Heard::Nothing);
        assert_eq!(
            assembly.revision(),
            6,
            "the revision is that of the events, not of the header"
        );
    }
}
