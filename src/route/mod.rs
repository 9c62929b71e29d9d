//! Routes: what a key means, and which route a request belongs to. Pure values; no I/O, no tokio.

pub mod entry;
pub mod host;
mod json;
pub mod key;
pub mod path;
pub mod settings;
pub mod table;
pub mod value;

use std::sync::Arc;

pub use host::HostPattern;
pub use key::RouteId;
pub use path::PathPrefix;
pub use settings::Settings;
pub use table::Table;

use crate::{
    telemetry::metrics::RouteMetrics,
    upstream::{Endpoint, Upstream, balancer::Balancer},
};

/// The etcd revision a table corresponds to (with the directory source: a counter of the process).
pub type Revision = i64;

/// A host plus an optional path prefix; owns members, a balancer and settings. Immutable: a change builds a new one.
#[derive(Debug)]
pub struct Route {
    /// Which hosts it serves.
    pub host: HostPattern,
    /// Which paths of the host it serves; empty for all.
    pub prefix: PathPrefix,
    /// Host and prefix as one text, `blog.example.com/api`: for logs, metrics and `explain`.
    pub name: Arc<str>,
    /// `@settings` of this route, defaults filled in.
    pub settings: Arc<Settings>,
    /// The `@settings` key in force, and those behind it.
    pub settings_key: Option<Box<SettingsKey>>,
    /// Its upstreams, ordered by key.
    pub members: Box<[Member]>,
    /// Picks one of `members` for a request.
    pub balancer: Balancer,
    /// Its counters, resolved once.
    pub metrics: Arc<RouteMetrics>,
}

impl Route {
    /// What a raw path (no query) is asked for as upstream, in two parts: `add_prefix`, and what stripping leaves.
    /// `None` if the prefix is to be stripped and the path, as it is spelled, lacks it.
    pub fn forwarded_path<'r>(&'r self, raw_path: &'r str) -> Option<(&'r str, &'r str)> {
        // The server as a whole (RFC 9110 section 9.3.7): there is no path to change.
        if raw_path == "*" {
            return Some(("", raw_path));
        }
        let rest = match self.settings.strip_prefix {
            true => self.prefix.strip(raw_path)?,
            false => raw_path,
        };
        let added = &*self.settings.add_prefix;
        Some(match (added, rest) {
            ("", "") => ("", "/"),
            parts => parts,
        })
    }

    /// The member to send a request to, by index: none of `tried`, and one whose name has no address yet only if
    /// there is no other. `None`: nobody is left.
    pub fn pick(&self, tried: &[usize]) -> Option<usize> {
        let is_untried = |member: usize| !tried.contains(&member);
        let is_resolved = |member: usize| {
            let identity = &self.members[member].upstream.identity;
            !matches!(identity.endpoint, Endpoint::Unresolved(..))
        };
        let is_good = |member: usize| is_untried(member) && is_resolved(member);
        let picked = match tried {
            [] => self.balancer.pick(is_good),
            _ => self.balancer.pick_again(is_good),
        };
        picked.or_else(|| self.balancer.pick_again(is_untried))
    }

    /// Which route this is.
    pub fn id(&self) -> RouteId {
        RouteId {
            host: self.host.clone(),
            prefix: self.prefix.clone(),
        }
    }
}

/// An upstream as one route sees it.
#[derive(Debug)]
pub struct Member {
    /// The upstream, shared with other routes.
    pub upstream: Arc<Upstream>,
    /// The share of requests it gets, relative to its siblings; 0 gets none.
    pub weight: u32,
    /// Another key of the route, sorted before this one, names the same upstream (`Blog.x` and `blog.x` are one
    /// host). This key keeps it in the route should the other go; it gets no requests of its own.
    pub is_alias: bool,
    /// The key it comes from.
    pub key: KeyVersion,
}

/// The `@settings` key in force: where several spellings of one route (`Blog.x` and `blog.x`) have settings, that is the
/// first in key order.
#[derive(Debug)]
pub struct SettingsKey {
    /// The key.
    pub version: KeyVersion,
    /// The other ones, ordered by key: the next is in force should this one go.
    pub further: Box<[FurtherSettings]>,
}

/// Settings that are not in force, because another key comes before theirs.
#[derive(Debug)]
pub struct FurtherSettings {
    /// Their key.
    pub key: KeyVersion,
    /// What it asks for.
    pub settings: Arc<Settings>,
}

/// A key and the revision that last changed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// The whole key, as stored.
    pub key: Arc<str>,
    /// Its mod_revision.
    pub mod_revision: Revision,
}
