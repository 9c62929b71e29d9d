//! Routes by host, in a persistent map.
//!
//! A B+ tree over hashes of the hosts: its leaves are two thirds full, 45 bytes a host. imbl's hash trie, which looks
//! up as fast, is sparse: its nodes have room for sixteen or thirty-two, and a million hosts took 225 bytes each.

use std::{hash::BuildHasher, sync::Arc};

use foldhash::fast::RandomState;
use imbl::OrdMap;

use super::HostRoutes;

/// The routes of every host. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts<S = RandomState> {
    by_hash: OrdMap<u64, Bucket>,
    seed: S,
}

/// The hosts of one hash.
#[derive(Clone, Debug)]
enum Bucket {
    One(HostRoutes),
    /// Once in 36 million tables of a million hosts, and of no use to an attacker: the seed is random.
    Several(Arc<Vec<HostRoutes>>),
}

impl<S: BuildHasher> Hosts<S> {
    pub(super) fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// The routes of this host.
    pub(super) fn get(&self, host: &str) -> Option<&HostRoutes> {
        let bucket = self.by_hash.get(&self.seed.hash_one(host))?;
        bucket
            .as_slice()
            .iter()
            .find(|routes| routes.host() == host)
    }

    /// Every host's routes, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &HostRoutes> {
        self.by_hash.values().flat_map(Bucket::as_slice)
    }

    /// Puts the routes of a host in place of those it has, if any; `None` takes the host out.
    pub(super) fn replace(&mut self, host: &str, routes: Option<HostRoutes>) {
        let hash = self.seed.hash_one(host);
        let bucket = self.by_hash.get(&hash).map_or(&[][..], Bucket::as_slice);
        let others = bucket.iter().filter(|other| other.host() != host);
        match Bucket::of(others.cloned().chain(routes).collect()) {
            Some(bucket) => self.by_hash.insert(hash, bucket),
            None => self.by_hash.remove(&hash),
        };
    }
}

impl Bucket {
    /// `None` if there is nothing to hold.
    fn of(mut hosts: Vec<HostRoutes>) -> Option<Self> {
        if hosts.len() > 1 {
            return Some(Self::Several(Arc::new(hosts)));
        }
        hosts.pop().map(Self::One)
    }

    fn as_slice(&self) -> &[HostRoutes] {
        match self {
            Self::One(routes) => std::slice::from_ref(routes),
            Self::Several(hosts) => hosts,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, Hasher};

    use super::{
        super::tests::{id, route},
        *,
    };

    /// Everything collides.
    #[derive(Default)]
    struct Constant;

    impl Hasher for Constant {
        fn finish(&self) -> u64 {
            7
        }

        fn write(&mut self, _: &[u8]) {}
    }

    fn put<S: BuildHasher>(hosts: &mut Hosts<S>, name: &str) {
        let routes = HostRoutes::of(vec![route(name)]);
        let host = routes.host().to_owned();
        hosts.replace(&host, Some(routes));
    }

    fn names<S: BuildHasher>(hosts: &Hosts<S>) -> Vec<&str> {
        let mut names: Vec<&str> = hosts.values().map(HostRoutes::host).collect();
        names.sort_unstable();
        names
    }

    fn edits<S: BuildHasher + Clone + Default>() {
        let mut hosts = Hosts::<S>::default();
        assert!(hosts.is_empty());
        for name in ["a", "b", "c/x", "b"] {
            put(&mut hosts, name);
        }
        let before = hosts.clone();
        put(&mut hosts, "b/new");
        hosts.replace("a", None);
        hosts.replace("nobody", None);
        assert_eq!(names(&before), ["a", "b", "c"]);
        assert_eq!(names(&hosts), ["b", "c"]);
        assert!(hosts.get("a").is_none() && hosts.get("nobody").is_none());
        let found = hosts.get("b").expect("it is there").as_slice();
        assert_eq!(found[0].id(), id("b/new"));
        hosts.replace("b", None);
        hosts.replace("c", None);
        assert!(hosts.is_empty());
    }

    #[test]
    fn hosts_are_put_in_replaced_and_taken_out() {
        edits::<RandomState>();
    }

    #[test]
    fn hosts_of_one_hash_are_told_apart() {
        edits::<BuildHasherDefault<Constant>>();
    }

    /// What a million hosts cost depends on it.
    #[test]
    fn a_host_takes_two_words_in_the_tree() {
        assert_eq!(size_of::<Bucket>(), 16);
    }
}
