//! What is remembered of all that was passed on, so that a watch can go on from there.

use super::{
    identity::{Identity, Reread},
    ledger::Ledger,
};
use crate::{
    route::Revision,
    source::{Change, Entry, History},
};

/// Everything up to one revision, as far as it is remembered.
#[derive(Debug)]
pub struct Known {
    /// That revision.
    pub revision: Revision,
    /// Which history it is part of.
    pub identity: Identity,
    /// Which keys there are.
    pub ledger: Ledger,
}

impl Known {
    /// Everything below `prefix`, as this cluster had it at this revision.
    pub fn of(prefix: &[u8], cluster_id: u64, revision: Revision, entries: &[Entry]) -> Self {
        Self {
            revision,
            identity: Identity::of(cluster_id, entries),
            ledger: Ledger::of(prefix, entries),
        }
    }

    /// Follows the changes up to and including `revision`.
    pub fn follow(&mut self, changes: &[Change], revision: Revision) {
        self.identity.follow(changes);
        self.ledger.follow(changes);
        self.revision = revision;
    }
    /// Why everything was read, now that it is there: `reason`, unless what was read cannot be what became of this, or
    /// nothing tells that it is.
    ///
    /// A witness that was asked has vouched already. One whose revision is compacted away has not, and then these must:
    /// within one history a live key that was last changed at our revision or before was there then, just so. One key
    /// that wasn't is proof of another history, as is one of ours with another value. That none was is no proof, for all
    /// of them may have been changed or deleted since; but nothing tells that from a cluster that was wiped, and to hold
    /// deletions costs little where to believe them may cost every route.
    ///
    /// What this cannot tell from ours is a history that parted from it, and of which no change between there and our
    /// revision is still to be seen.
    pub fn judge_read(
        &self,
        reason: Reread,
        cluster_id: u64,
        revision: Revision,
        entries: &[Entry],
    ) -> Reread {
        if reason.history() == History::Another {
            return reason;
        }
        if cluster_id != self.identity.cluster_id {
            return Reread::OtherCluster;
        }
        if revision < self.revision {
            return Reread::Behind;
        }
        // The witness has vouched, and that we lack keys is why we read.
        if reason == Reread::Difference {
            return reason;
        }
        let mut is_vouched = reason != Reread::Compacted || self.ledger.len() == 0;
        let old = (entries.iter()).filter(|entry| entry.mod_revision <= self.revision);
        for is_ours in old.filter_map(|entry| self.has(entry)) {
            if !is_ours {
                return Reread::OtherHistory;
            }
            is_vouched = true;
        }
        if is_vouched {
            reason
        } else {
            Reread::Unvouched
        }
    }

    /// Whether this live key is one of ours, as far as that is remembered.
    fn has(&self, entry: &Entry) -> Option<bool> {
        let confirmed = self.identity.confirms(entry);
        if confirmed.is_some() || self.ledger.is_fleet(&entry.key) {
            return confirmed;
        }
        Some(self.ledger.revision_of(&entry.key) == Some(entry.mod_revision))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const CLUSTER: u64 = 1;
    const PULSE: &str = "/h/@waypost/pulse";

    fn entry(key: &str, value: &str, mod_revision: Revision) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mod_revision,
            lease: 0,
        }
    }

    #[test]
    fn a_read_is_judged_by_what_is_known() {
        use Reread::{
            Behind, Compacted, Difference, NoWitness, OtherCluster, OtherHistory, Silent, Unvouched,
        };
        let ours = [
            entry(PULSE, "one", 6),
            entry("/h/a", "", 3),
            entry("/h/b", "", 5),
        ];
        let known = Known::of(b"/h/", CLUSTER, 7, &ours);
        let [pulse, a, b] = &ours;
        let later = &entry("/h/c", "", 9);
        let stranger = &entry("/h/d", "", 7);
        let [older, other] = &[entry("/h/b", "", 4), entry("/h/b", "x", 5)];
        let other_pulse = &entry(PULSE, "two", 6);
        let strange_pulse = &entry("/h/@waypost/strange", "", 2);
        for (reason, cluster_id, revision, entries, expected) in [
            (Compacted, CLUSTER, 9, vec![a, b], Compacted),
            (Compacted, CLUSTER, 9, vec![a, later], Compacted),
            (Compacted, CLUSTER, 9, vec![pulse, later], Compacted),
            (Compacted, 2, 9, vec![a, b], OtherCluster),
            (Compacted, CLUSTER, 6, vec![a, b], Behind),
            (Compacted, CLUSTER, 7, vec![], Unvouched),
            (Compacted, CLUSTER, 9, vec![later], Unvouched),
            // Were it our history, we should have it, or have it so.
            (Compacted, CLUSTER, 9, vec![a, stranger], OtherHistory),
            (Compacted, CLUSTER, 9, vec![a, older], OtherHistory),
            (Compacted, CLUSTER, 9, vec![a, other], OtherHistory),
            (Compacted, CLUSTER, 9, vec![a, other_pulse], OtherHistory),
            (Compacted, CLUSTER, 9, vec![a, strange_pulse], OtherHistory),
            (Silent, CLUSTER, 9, vec![later], Silent),
            (Silent, CLUSTER, 9, vec![older], OtherHistory),
            // We are known to lack keys.
            (Difference, CLUSTER, 9, vec![older], Difference),
            (Difference, 2, 9, vec![a], OtherCluster),
            (Difference, CLUSTER, 6, vec![a], Behind),
            (NoWitness, CLUSTER, 9, vec![a, b], NoWitness),
            (OtherHistory, CLUSTER, 9, vec![a, b], OtherHistory),
        ] {
            let entries: Vec<_> = entries.into_iter().cloned().collect();
            let judged = known.judge_read(reason, cluster_id, revision, &entries);
            assert_eq!(judged, expected, "{reason:?}, {revision}: {entries:?}");
        }
    }

    #[test]
    fn who_had_no_route_loses_none() {
        let known = Known::of(b"/h/", CLUSTER, 7, &[entry(PULSE, "one", 6)]);
        let entries = [entry("/h/c", "", 9)];
        let judged = known.judge_read(Reread::Compacted, CLUSTER, 9, &entries);
        assert_eq!(judged, Reread::Compacted);
    }

    #[test]
    fn keys_that_are_not_among_the_newest_vouch_as_well() {
        let many = (0..2_000).map(|index| entry(&format!("/h/{index}"), "", 2 + index));
        let many: Vec<_> = many.collect();
        let fleet = entry("/h/@waypost/old", "", 1_000);
        let known = Known::of(b"/h/", CLUSTER, 2_001, &many);
        let judge = |entries: &[_]| known.judge_read(Reread::Compacted, CLUSTER, 3_000, entries);
        assert_eq!(judge(&many[..1]), Reread::Compacted);
        assert_eq!(judge(&[entry("/h/0", "", 3)]), Reread::OtherHistory);
        // Of the fleet's own keys only the newest are remembered.
        assert_eq!(judge(std::slice::from_ref(&fleet)), Reread::Unvouched);
        assert_eq!(judge(&[fleet, many[5].clone()]), Reread::Compacted);
    }
}
