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
    /// that wasn't is proof of another history, as is one of ours with another value. One that was vouches for the
    /// history up to its own last change, and no further: a backup that was made then and restored now has it, and none
    /// of the keys that came later. So the newest of them must be newer than every key that is missing. That it isn't is
    /// no proof, for what is newer may have been changed or deleted since; but to hold deletions costs little where to
    /// believe them may cost every route.
    ///
    /// What this cannot tell from ours is a history that parted from it, of which no change between there and our
    /// revision is still to be seen, and which deleted only what had been there before.
    ///
    /// The ledger is used up.
    pub fn judge_read(
        &mut self,
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
        let had_none = self.ledger.len() == 0;
        // The newest change that is vouched for.
        let mut vouched = None;
        for entry in entries {
            let known = self.ledger.take(&entry.key);
            if entry.mod_revision > self.revision {
                continue;
            }
            match self.has(entry, known) {
                Some(true) => vouched = vouched.max(Some(entry.mod_revision)),
                Some(false) => return Reread::OtherHistory,
                None => {}
            }
        }
        let is_vouched = vouched.is_some() && vouched >= self.ledger.newest();
        if reason == Reread::Compacted && !had_none && !is_vouched {
            return Reread::Unvouched;
        }
        reason
    }

    /// Whether this live key is one of ours, which was last changed at the revision `known`, as far as that is
    /// remembered.
    fn has(&self, entry: &Entry, known: Option<Revision>) -> Option<bool> {
        if self.ledger.is_fleet(&entry.key) {
            // Of the fleet's own keys some are remembered, and not every pulse finds room in a snapshot.
            let is_known = self.identity.remembers(&entry.key);
            return is_known.then(|| self.identity.confirms(entry)).flatten();
        }
        let confirmed = self.identity.confirms(entry);
        confirmed.or(Some(known == Some(entry.mod_revision)))
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
        let [pulse, a, b] = &ours;
        let [later, rewritten] = &[entry("/h/c", "", 9), entry("/h/b", "", 9)];
        let stranger = &entry("/h/d", "", 7);
        let [older, other] = &[entry("/h/b", "", 4), entry("/h/b", "x", 5)];
        let other_pulse = &entry(PULSE, "two", 6);
        let strange_pulse = &entry("/h/@waypost/strange", "", 2);
        for (reason, cluster_id, revision, entries, expected) in [
            (Compacted, CLUSTER, 9, vec![a, b], Compacted),
            (Compacted, CLUSTER, 9, vec![b, later], Compacted),
            (Compacted, CLUSTER, 9, vec![pulse, later], Compacted),
            // As in a backup that was made before `b` was written.
            (Compacted, CLUSTER, 9, vec![a, later], Unvouched),
            (Compacted, CLUSTER, 9, vec![a, rewritten], Compacted),
            (Silent, CLUSTER, 9, vec![a, later], Silent),
            (Compacted, 2, 9, vec![a, b], OtherCluster),
            (Compacted, CLUSTER, 6, vec![a, b], Behind),
            (Compacted, CLUSTER, 7, vec![], Unvouched),
            (Compacted, CLUSTER, 9, vec![later], Unvouched),
            // Were it our history, we should have it, or have it so.
            (Compacted, CLUSTER, 9, vec![a, stranger], OtherHistory),
            (Compacted, CLUSTER, 9, vec![a, older], OtherHistory),
            (Compacted, CLUSTER, 9, vec![a, other], OtherHistory),
            (Compacted, CLUSTER, 9, vec![a, other_pulse], OtherHistory),
            // Which of the fleet's own keys there are is no proof.
            (Compacted, CLUSTER, 9, vec![b, strange_pulse], Compacted),
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
            let mut known = Known::of(b"/h/", CLUSTER, 7, &ours);
            let judged = known.judge_read(reason, cluster_id, revision, &entries);
            assert_eq!(judged, expected, "{reason:?}, {revision}: {entries:?}");
        }
    }

    #[test]
    fn who_had_no_route_loses_none() {
        let mut known = Known::of(b"/h/", CLUSTER, 7, &[entry(PULSE, "one", 6)]);
        let entries = [entry("/h/c", "", 9)];
        let judged = known.judge_read(Reread::Compacted, CLUSTER, 9, &entries);
        assert_eq!(judged, Reread::Compacted);
    }

    #[test]
    fn keys_that_are_not_among_the_newest_vouch_as_well() {
        let many = (0..2_000).map(|index| entry(&format!("/h/{index}"), "", 2 + index));
        let many: Vec<_> = many.collect();
        let fleet = entry("/h/@waypost/old", "", 1_000);
        let judge = |entries: &[_]| {
            let mut known = Known::of(b"/h/", CLUSTER, 2_001, &many);
            known.judge_read(Reread::Compacted, CLUSTER, 3_000, entries)
        };
        // All but these were written anew.
        let with = |old: &[Entry]| {
            let mut entries = many.clone();
            for entry in &mut entries {
                entry.mod_revision = 2_500;
            }
            entries.retain(|entry| old.iter().all(|old| old.key != entry.key));
            entries.extend_from_slice(old);
            entries
        };
        assert_eq!(judge(&with(&[])), Reread::Unvouched);
        assert_eq!(judge(&with(&many[..1])), Reread::Compacted);
        let older = [entry("/h/0", "", 3)];
        assert_eq!(judge(&with(&older)), Reread::OtherHistory);
        // Of the fleet's own keys only the newest are remembered.
        assert_eq!(judge(&with(&[fleet])), Reread::Unvouched);
        // It is older than those that are missing, and they are not.
        assert_eq!(judge(&many[..1]), Reread::Unvouched);
        assert_eq!(judge(&many[1_999..]), Reread::Compacted);
    }
}
