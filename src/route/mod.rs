//! Routes: what a key means, and which route a request belongs to. Pure values; no I/O, no tokio.

pub mod entry;
pub mod host;
mod json;
pub mod key;
pub mod outcome;
pub mod panic;
pub mod path;
pub mod pick;
pub mod settings;
mod slow_start;
pub mod table;
#[cfg(test)]
pub mod testing;
pub mod upstream_target;
pub mod value;

use std::{num::NonZeroU32, sync::Arc};

pub use host::HostPattern;
pub use key::RouteId;
use panic::Panic;
pub use path::PathPrefix;
pub use settings::Settings;
pub use table::Table;
pub use upstream_target::UpstreamTarget;

use crate::{
    telemetry::metrics::RouteMetrics,
    upstream::{
        Upstream,
        balancer::{Balancer, tokens::Tokens},
        limit::{Limit, queue::Queue},
        standing::Standing,
    },
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
    /// Picks one of the serving `members` for a request.
    pub balancer: Balancer,
    /// Picks one of the backups, where there are any.
    pub backups: Option<Box<Balancer>>,
    /// Whom sticky cookies mean, where the settings ask for such.
    pub tokens: Option<Box<Tokens>>,
    /// Where its settings or one of its keys limit the requests that run; `None`: nowhere.
    pub limits: Option<RouteLimits>,
    /// Whether a member is asked by HTTP/2.
    pub speaks_http2: bool,
    /// Whether so few of the members are in that all are used.
    pub panic: Panic,
    /// Its counters, resolved once.
    pub metrics: Arc<RouteMetrics>,
}

impl Route {
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
    /// Which requests it gets.
    pub role: Role,
    /// How many of the route's requests may run at it at one time; `None`: no limit.
    pub max_requests: Option<NonZeroU32>,
    /// Those that run at it, where they are limited.
    pub limit: Option<Arc<Limit>>,
    /// What the route's settings say of it beyond the defaults; `None`: nothing.
    pub standing: Option<Box<Standing>>,
    /// Another key of the route, sorted before this one, names the same upstream (`Blog.x` and `blog.x` are one
    /// host). This key keeps it in the route should the other go; it gets no requests of its own.
    pub is_alias: bool,
    /// The key it comes from.
    pub key: KeyVersion,
}

/// Which requests run in a route with limits, and which wait.
#[derive(Clone, Debug)]
pub struct RouteLimits {
    /// Those of all members; `None`: only members have limits.
    pub requests: Option<Arc<Limit>>,
    /// Requests that wait for a place, in the route or at any member.
    pub queue: Arc<Queue>,
}

/// Which requests a member gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its share of all.
    #[default]
    Serving,
    /// Those that no serving member can take.
    Backup,
    /// No new ones, only those of clients that stick to it.
    Draining,
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
