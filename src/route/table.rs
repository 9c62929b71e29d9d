//! The routing table: an immutable, persistent map from host and path to route. Looking up is pure; editing a clone
//! shares all that did not change, so a change costs microseconds at a million hosts.

use std::{cmp::Ordering, collections::BinaryHeap, sync::Arc};

use foldhash::fast::RandomState;
use imbl::{GenericHashMap, shared_ptr::DefaultSharedPtr};

use super::{HostPattern, PathPrefix, Revision, Route, RouteId, host::is_address, path::normalise};

type Hosts = GenericHashMap<Arc<str>, HostRoutes, RandomState, DefaultSharedPtr>;

/// Which route a request belongs to. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The revision it corresponds to; what the access log says. (`Live::applied` may be ahead: a revision without
    /// a change for us makes no new table.)
    pub revision: Revision,
    exact: Hosts,
    /// By suffix, without `*.`.
    wildcard: Hosts,
    any: Option<HostRoutes>,
    counts: Counts,
}

/// How much a table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Host patterns.
    pub hosts: usize,
    /// Routes: one or more per host.
    pub routes: usize,
    /// Members over all routes.
    pub members: usize,
}

/// Why no route serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// No host pattern fits.
    Host,
    /// The host is known, but none of its path prefixes fits.
    Path,
}

impl Table {
    /// The route of a request. The host is chosen first (exact, then the longest wildcard suffix, then `*`), then
    /// the longest path prefix in it. `host` is canonical (see [`super::host::canonical`]), `raw_path` as it came,
    /// without query.
    ///
    /// # Errors
    /// Says whether the host or only the path is unknown.
    pub fn find(&self, host: &str, raw_path: &str) -> Result<&Arc<Route>, Miss> {
        self.host(host)
            .ok_or(Miss::Host)?
            .find(raw_path)
            .ok_or(Miss::Path)
    }

    fn host(&self, host: &str) -> Option<&HostRoutes> {
        self.exact
            .get(host)
            .or_else(|| self.wildcard(host))
            .or(self.any.as_ref())
    }

    fn wildcard(&self, host: &str) -> Option<&HostRoutes> {
        if self.wildcard.is_empty() || is_address(host) {
            return None;
        }
        let dots = host.match_indices('.');
        dots.map(|(dot, _)| &host[dot + 1..])
            .find_map(|suffix| self.wildcard.get(suffix))
    }

    /// The route of exactly this pattern and prefix.
    pub fn route(&self, id: &RouteId) -> Option<&Arc<Route>> {
        self.routes_of(&id.host)?.at(&id.prefix)
    }

    fn routes_of(&self, host: &HostPattern) -> Option<&HostRoutes> {
        match host {
            HostPattern::Exact(host) => self.exact.get(host),
            HostPattern::Wildcard(suffix) => self.wildcard.get(suffix),
            HostPattern::Any => self.any.as_ref(),
        }
    }

    /// Puts a route in, in place of the one with the same host and prefix.
    pub fn insert(&mut self, route: Arc<Route>) {
        let host = route.host.clone();
        let before = self.routes_of(&host);
        let mut counts = self.counts;
        counts.hosts += usize::from(before.is_none());
        counts.routes += 1;
        counts.members += route.members.len();
        if let Some(replaced) = before.and_then(|routes| routes.at(&route.prefix)) {
            counts.routes -= 1;
            counts.members -= replaced.members.len();
        }
        let after = match before {
            Some(routes) => routes.with(route),
            None => HostRoutes::of(vec![route]),
        };
        self.counts = counts;
        self.replace(host, Some(after));
    }

    /// Takes a route out.
    pub fn remove(&mut self, id: &RouteId) {
        let Some(before) = self.routes_of(&id.host) else {
            return;
        };
        let Some(removed) = before.at(&id.prefix) else {
            return;
        };
        let after = before.without(&id.prefix);
        let mut counts = self.counts;
        counts.hosts -= usize::from(after.is_none());
        counts.routes -= 1;
        counts.members -= removed.members.len();
        self.counts = counts;
        self.replace(id.host.clone(), after);
    }

    fn replace(&mut self, host: HostPattern, routes: Option<HostRoutes>) {
        let (hosts, key) = match host {
            HostPattern::Exact(host) => (&mut self.exact, host),
            HostPattern::Wildcard(suffix) => (&mut self.wildcard, suffix),
            HostPattern::Any => {
                self.any = routes;
                return;
            }
        };
        match routes {
            Some(routes) => hosts.insert(key, routes),
            None => hosts.remove(&key),
        };
    }

    /// How much it holds; counted as it is edited.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Every route, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let hosts = self.exact.values().chain(self.wildcard.values());
        hosts
            .chain(&self.any)
            .flat_map(|routes| routes.as_slice().iter())
    }

    /// Up to `limit` routes by name, from the first name after `after` (empty: from the start). Looks at every
    /// route, but keeps no more than a page: tens of milliseconds at a million hosts, so not for a worker.
    pub fn page(&self, after: &str, limit: usize) -> Vec<Arc<Route>> {
        let mut page: BinaryHeap<ByName<'_>> = BinaryHeap::new();
        for route in self.routes().filter(|route| &*route.name > after) {
            let is_full = page.len() >= limit;
            if is_full && page.peek().is_none_or(|last| last.0.name <= route.name) {
                continue;
            }
            if is_full {
                page.pop();
            }
            page.push(ByName(route));
        }
        let sorted = page.into_sorted_vec();
        sorted
            .into_iter()
            .map(|ByName(route)| route.clone())
            .collect()
    }
}

struct ByName<'t>(&'t Arc<Route>);

impl Ord for ByName<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

impl PartialOrd for ByName<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByName<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByName<'_> {}

/// The routes of one host. Most hosts have one for all paths, which then costs no allocation of its own.
#[derive(Clone, Debug)]
enum HostRoutes {
    /// One, for every path.
    Whole(Arc<Route>),
    /// One or more, by prefix.
    Split(Arc<Prefixes>),
}

#[derive(Debug)]
struct Prefixes {
    /// Sorted by prefix.
    routes: Vec<Arc<Route>>,
    /// Length of the longest prefix.
    longest: usize,
}

impl HostRoutes {
    fn of(mut routes: Vec<Arc<Route>>) -> Self {
        match &*routes {
            [route] if route.prefix.is_empty() => Self::Whole(route.clone()),
            _ => {
                routes.sort_by(|a, b| a.prefix.cmp(&b.prefix));
                let lengths = routes.iter().map(|route| route.prefix.as_str().len());
                let longest = lengths.max().unwrap_or(0);
                Self::Split(Arc::new(Prefixes { routes, longest }))
            }
        }
    }

    fn as_slice(&self) -> &[Arc<Route>] {
        match self {
            Self::Whole(route) => std::slice::from_ref(route),
            Self::Split(prefixes) => &prefixes.routes,
        }
    }

    fn find(&self, raw_path: &str) -> Option<&Arc<Route>> {
        let Prefixes { routes, longest } = match self {
            Self::Whole(route) => return Some(route),
            Self::Split(prefixes) => &**prefixes,
        };
        let path = normalise(raw_path);
        // From the longest prefix the path has down to the empty one. No longer than the longest there is, so that a
        // path of thousands of slashes costs no more than a short one.
        let mut end = path.len();
        loop {
            let candidate = &path[..end];
            if end <= *longest
                && let Some(route) = at(routes, candidate)
            {
                return Some(route);
            }
            if end == 0 {
                return None;
            }
            end = candidate.rfind('/').unwrap_or(0);
        }
    }

    fn at(&self, prefix: &PathPrefix) -> Option<&Arc<Route>> {
        at(self.as_slice(), prefix.as_str())
    }

    fn with(&self, route: Arc<Route>) -> Self {
        let others = self.as_slice().iter();
        let others = others.filter(|other| other.prefix != route.prefix).cloned();
        Self::of(others.chain([route.clone()]).collect())
    }

    /// `None` when that was the last one.
    fn without(&self, prefix: &PathPrefix) -> Option<Self> {
        let others = self.as_slice().iter();
        let others: Vec<_> = others
            .filter(|route| route.prefix != *prefix)
            .cloned()
            .collect();
        (!others.is_empty()).then(|| Self::of(others))
    }
}

fn at<'r>(sorted: &'r [Arc<Route>], prefix: &str) -> Option<&'r Arc<Route>> {
    sorted
        .binary_search_by(|route| route.prefix.as_str().cmp(prefix))
        .ok()
        .map(|index| &sorted[index])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{route::Settings, telemetry::metrics::Metrics, upstream::balancer::Balancer};

    fn id(name: &str) -> RouteId {
        let (host, prefix) = name.split_once('/').unwrap_or((name, ""));
        RouteId {
            host: host.parse().expect(name),
            prefix: prefix.parse().expect(name),
        }
    }

    fn table(names: &[&str]) -> Table {
        let metrics = Metrics::new();
        let mut table = Table::default();
        for name in names {
            let RouteId { host, prefix } = id(name);
            table.insert(Arc::new(Route {
                host,
                prefix,
                name: (*name).into(),
                settings: Settings::shared_default(),
                settings_key: None,
                members: Vec::new(),
                balancer: Balancer::Nobody,
                metrics: metrics.route(name),
            }));
        }
        table
    }

    #[test]
    fn the_host_is_chosen_first_and_then_the_longest_prefix() {
        let table = table(&[
            "a.example.com",
            "a.example.com/api",
            "a.example.com/api/v1",
            "a.example.com/api-x",
            "*.example.com",
            "*.b.example.com/only",
            "split.example.com/api",
            "127.0.0.1",
            "*.0.0.1",
            "[::1]",
        ]);
        for (host, path, expected) in [
            ("a.example.com", "/", Ok("a.example.com")),
            ("a.example.com", "", Ok("a.example.com")),
            ("a.example.com", "*", Ok("a.example.com")),
            ("a.example.com", "/apix", Ok("a.example.com")),
            ("a.example.com", "/api", Ok("a.example.com/api")),
            ("a.example.com", "/api/", Ok("a.example.com/api")),
            ("a.example.com", "/api/v10", Ok("a.example.com/api")),
            ("a.example.com", "/api/v1/x/y", Ok("a.example.com/api/v1")),
            ("a.example.com", "/api-x/v1", Ok("a.example.com/api-x")),
            ("a.example.com", "/%61pi/v1", Ok("a.example.com/api/v1")),
            ("a.example.com", "/api%2Fv1", Ok("a.example.com")),
            (
                "a.example.com",
                "//api/./x/../v1",
                Ok("a.example.com/api/v1"),
            ),
            ("a.example.com", "/api/../x", Ok("a.example.com")),
            ("x.example.com", "/api", Ok("*.example.com")),
            ("x.y.example.com", "/", Ok("*.example.com")),
            ("example.com", "/", Err(Miss::Host)),
            ("xexample.com", "/", Err(Miss::Host)),
            ("x.b.example.com", "/only/x", Ok("*.b.example.com/only")),
            ("x.b.example.com", "/", Err(Miss::Path)),
            ("split.example.com", "/api", Ok("split.example.com/api")),
            ("split.example.com", "/", Err(Miss::Path)),
            ("127.0.0.1", "/", Ok("127.0.0.1")),
            ("10.0.0.1", "/", Err(Miss::Host)),
            ("[::1]", "/", Ok("[::1]")),
            ("", "/", Err(Miss::Host)),
        ] {
            let found = table.find(host, path).map(|route| &*route.name);
            assert_eq!(found, expected, "{host} {path}");
        }
    }

    #[test]
    fn any_host_serves_the_rest() {
        let table = table(&["*", "a.example/x"]);
        for (host, path, expected) in [
            ("b.example", "/", Ok("*")),
            ("10.0.0.1", "/", Ok("*")),
            ("", "/", Ok("*")),
            ("a.example", "/", Err(Miss::Path)),
        ] {
            let found = table.find(host, path).map(|route| &*route.name);
            assert_eq!(found, expected, "{host} {path}");
        }
    }

    #[test]
    fn edits_of_a_clone_leave_the_original_and_are_counted() {
        let before = table(&["a.example", "a.example/x", "*.b.example"]);
        let mut after = before.clone();
        after.remove(&id("a.example"));
        after.remove(&id("nobody.example"));
        after.remove(&id("a.example/nothing"));
        assert_eq!(after.find("a.example", "/").err(), Some(Miss::Path));
        after.remove(&id("a.example/x"));
        after.remove(&id("*.b.example"));
        assert_eq!(after.counts(), Counts::default());
        assert_eq!(after.find("a.example", "/x").err(), Some(Miss::Host));
        let counts = before.counts();
        assert_eq!((counts.hosts, counts.routes), (2, 3));
        assert!(before.find("a.example", "/").is_ok());
    }

    #[test]
    fn pages_are_in_order_and_miss_nobody() {
        let names: Vec<String> = (0..100)
            .map(|n| format!("h{:03}.example", n * 37 % 100))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let table = table(&[&names[..], &["*", "h000.example/api"]].concat());
        let mut seen: Vec<String> = Vec::new();
        loop {
            let page = table.page(seen.last().map_or("", String::as_str), 7);
            assert!(page.len() <= 7);
            if page.is_empty() {
                break;
            }
            seen.extend(page.iter().map(|route| route.name.to_string()));
        }
        assert!(seen.is_sorted());
        assert_eq!(seen.len(), 102);
        assert!(table.page("", 0).is_empty());
    }
}
