//! The routing table: an immutable, persistent map from host and path to route. Looking up is pure; editing a clone
//! shares all that did not change, so a change costs microseconds at a million hosts.

mod hosts;

use std::{borrow::Cow, cmp::Ordering, collections::BinaryHeap, sync::Arc};

use self::hosts::Hosts;
use super::{
    HostPattern, PathPrefix, Revision, Route, RouteId, host::is_address, path::normalise,
    settings::NormalizePath,
};

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
    /// The path belongs to one route as it is spelled, to another or none when it is normalised, and one of the two
    /// has `"normalize_path": "off"`.
    Spelling,
}

impl Table {
    /// The route of a request. The host is chosen first (exact, then the longest wildcard suffix, then `*`), then
    /// the longest path prefix in it. `host` is canonical (see [`super::host::canonical`]), `raw_path` as it came,
    /// without query.
    ///
    /// # Errors
    /// Says whether the host or only the path is unknown, or how the path is spelled forbids an answer.
    pub fn find(&self, host: &str, raw_path: &str) -> Result<&Arc<Route>, Miss> {
        self.host(host).ok_or(Miss::Host)?.find(raw_path)
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
        self.host_routes(&id.host)?.at(&id.prefix)
    }

    /// The route of this one's pattern and prefix: itself, unless it has changed or is gone.
    pub fn successor_of(&self, route: &Route) -> Option<&Arc<Route>> {
        self.host_routes(&route.host)?.at(&route.prefix)
    }

    /// The routes of exactly this pattern, ordered by prefix, and so by name.
    pub fn routes_of(&self, host: &HostPattern) -> &[Arc<Route>] {
        self.host_routes(host).map_or(&[], HostRoutes::as_slice)
    }

    fn host_routes(&self, host: &HostPattern) -> Option<&HostRoutes> {
        match host {
            HostPattern::Exact(host) => self.exact.get(host),
            HostPattern::Wildcard(suffix) => self.wildcard.get(suffix),
            HostPattern::Any => self.any.as_ref(),
        }
    }

    /// Puts a route in, in place of the one with the same host and prefix.
    pub fn insert(&mut self, route: Arc<Route>) {
        let host = route.host.clone();
        let before = self.host_routes(&host);
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
        self.replace(&host, Some(after));
    }

    /// Takes a route out.
    pub fn remove(&mut self, id: &RouteId) {
        let Some(before) = self.host_routes(&id.host) else {
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
        self.replace(&id.host, after);
    }

    fn replace(&mut self, host: &HostPattern, routes: Option<HostRoutes>) {
        match host {
            HostPattern::Exact(host) => self.exact.replace(host, routes),
            HostPattern::Wildcard(suffix) => self.wildcard.replace(suffix, routes),
            HostPattern::Any => self.any = routes,
        }
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
    /// Whether one of the routes goes by how a path is spelled.
    has_spelled: bool,
}

impl HostRoutes {
    fn of(mut routes: Vec<Arc<Route>>) -> Self {
        match &*routes {
            [route] if route.prefix.is_empty() => Self::Whole(route.clone()),
            _ => {
                routes.sort_by(|a, b| a.prefix.cmp(&b.prefix));
                let lengths = routes.iter().map(|route| route.prefix.as_str().len());
                let longest = lengths.max().unwrap_or(0);
                let has_spelled = routes.iter().any(is_spelled);
                Self::Split(Arc::new(Prefixes {
                    routes,
                    longest,
                    has_spelled,
                }))
            }
        }
    }

    /// The host they are of; of a wildcard, its suffix.
    fn host(&self) -> &str {
        let first = self.as_slice().first();
        first.map_or("", |route| route.host.text())
    }

    fn as_slice(&self) -> &[Arc<Route>] {
        match self {
            Self::Whole(route) => std::slice::from_ref(route),
            Self::Split(prefixes) => &prefixes.routes,
        }
    }

    fn find(&self, raw_path: &str) -> Result<&Arc<Route>, Miss> {
        let prefixes = match self {
            Self::Whole(route) => return Ok(route),
            Self::Split(prefixes) => &**prefixes,
        };
        let path = normalise(raw_path);
        let found = prefixes.longest_of(&path);
        // What is borrowed is spelled as it is compared.
        if prefixes.has_spelled && matches!(path, Cow::Owned(_)) {
            let spelled = prefixes.longest_of(raw_path);
            let is_same = found.map(Arc::as_ptr) == spelled.map(Arc::as_ptr);
            // To choose one of the two would let a spelling around a prefix that guards.
            if !is_same && found.into_iter().chain(spelled).any(is_spelled) {
                return Err(Miss::Spelling);
            }
        }
        found.ok_or(Miss::Path)
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

impl Prefixes {
    /// The route of the longest prefix that a path has, segment by segment.
    fn longest_of(&self, path: &str) -> Option<&Arc<Route>> {
        // From the longest prefix the path has down to the empty one. No longer than the longest there is, so that a
        // path of thousands of slashes costs no more than a short one.
        let mut end = path.len();
        loop {
            let candidate = &path[..end];
            if end <= self.longest
                && let Some(route) = at(&self.routes, candidate)
            {
                return Some(route);
            }
            if end == 0 {
                return None;
            }
            end = candidate.rfind('/').unwrap_or(0);
        }
    }
}

fn is_spelled(route: &Arc<Route>) -> bool {
    route.settings.normalize_path == NormalizePath::Off
}

fn at<'r>(sorted: &'r [Arc<Route>], prefix: &str) -> Option<&'r Arc<Route>> {
    sorted
        .binary_search_by(|route| route.prefix.as_str().cmp(prefix))
        .ok()
        .map(|index| &sorted[index])
}

#[cfg(test)]
mod tests;
