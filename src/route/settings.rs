//! `@settings` of a route: the JSON as written, parsed into final types with the defaults filled in.

mod written;

use std::{
    num::NonZeroU32,
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{HeaderName, HeaderValue};

pub use self::written::RESERVED;
pub use crate::upstream::balancer::{Balance, HashOn, Sticky};

pub(super) use self::written::{Count, IdleSpan, Span, Word, Words};
use super::value::BadValue;
use crate::upstream::{ejection::Outlier, health::CheckSettings};

/// The settings of one route, as the request's way reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How members are picked; `None` means the process's `--balance`.
    pub balance: Option<Balance>,
    /// What [`Balance::Hash`] hashes.
    pub hash_on: HashOn,
    /// The cookie that keeps a client at its upstream; `None`: there is none.
    pub sticky: Option<Sticky>,
    /// What the upstream gets as Host.
    pub host_header: HostHeader,
    /// What of a path is normalised.
    pub normalize_path: NormalizePath,
    /// Take the route's path prefix off before forwarding.
    pub strip_prefix: bool,
    /// Put before the path, after stripping: starts with `/`, has no trailing one; empty for none.
    pub add_prefix: Box<str>,
    /// Put before the query of the request: without `?`; empty for none.
    pub add_query: Box<str>,
    /// Applied to the request, after our own rewriting.
    pub request_headers: HeaderRules,
    /// Applied to the response, after our own rewriting.
    pub response_headers: HeaderRules,
    /// Answer plain requests with 308 to https.
    pub redirect_https: bool,
    /// How long the upstream may take for what.
    pub timeouts: Timeouts,
    /// What is tried again, and how often.
    pub retries: Retries,
    /// How its upstreams are checked; `None`: they aren't.
    pub health: Option<Arc<CheckSettings>>,
    /// Which failures eject an upstream, and for how long.
    pub outlier: Outlier,
    /// When fewer of the members than this, in percent, can be used, all are.
    pub panic_percent: u8,
    /// How long a member takes to its full share, once it is new or back; `None`: no time.
    pub slow_start: Option<Duration>,
    /// How many requests may run in this route at one time; `None`: no limit.
    pub max_requests: Option<NonZeroU32>,
    /// How many requests may wait for a place, where there are limits. Default 100.
    pub max_queue: u32,
    /// The largest request body, in bytes; 413 beyond. `None`: no limit.
    pub max_body: Option<u64>,
}

impl Settings {
    /// What a `@settings` key's value asks for.
    ///
    /// # Errors
    /// What is no JSON object, an unknown field, a bad type, a value out of range, or a feature of a later version.
    pub fn parse(value: &[u8]) -> Result<Self, BadValue> {
        written::parse(value)
    }

    /// The defaults, shared by every route without a `@settings` key.
    pub fn shared_default() -> Arc<Self> {
        static DEFAULT: LazyLock<Arc<Settings>> = LazyLock::new(Arc::default);
        DEFAULT.clone()
    }
}

/// `"host_header"`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum HostHeader {
    /// The client's own.
    #[default]
    Preserve,
    /// The upstream's address as its key writes it.
    Upstream,
    /// This text.
    Literal(HeaderValue),
}

/// `"normalize_path"`: what `.`, `..`, empty segments and percent triples of a request's path count for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormalizePath {
    /// Resolved and decoded where prefixes are compared; what is forwarded stays as it came.
    #[default]
    LookUp,
    /// Forwarded so, too.
    Forward,
    /// Nothing: the prefix has to stand in the path as it is spelled, and what belongs to another route when it is
    /// normalised is refused.
    Off,
}

/// `"request_headers"` and `"response_headers"`; applied in this order: remove, set, add.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderRules {
    /// Replace whatever is there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Append to whatever is there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Take away.
    pub remove: Vec<HeaderName>,
}

impl HeaderRules {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// `"retries"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Attempts beyond the first; 0: nothing is tried again. Default 1. Refused connections have a bound of their own.
    pub attempts: u32,
    /// What is tried again.
    pub on: RetryOn,
    /// How many of the requests of the last 10 s may be retries, in percent; 10 per second and worker always may.
    /// Default 20.
    pub budget_percent: u8,
    /// Small bodies are kept while they are sent, so that they can be sent again. On where a route asks for retries
    /// in so many words, off by default.
    pub keeps_bodies: bool,
}

/// `"on"` of `"retries"`: what is tried again, where the request may be repeated safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// No connection.
    pub connect: bool,
    /// A connection that ended before the response.
    pub reset: bool,
    /// 502 from the upstream.
    pub bad_gateway: bool,
    /// 503 from the upstream.
    pub unavailable: bool,
    /// 504 from the upstream, or no answer within `timeouts.response`.
    pub gateway_timeout: bool,
}

impl RetryOn {
    /// Nothing.
    pub const NOTHING: Self = Self {
        connect: false,
        reset: false,
        bad_gateway: false,
        unavailable: false,
        gateway_timeout: false,
    };
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: RetryOn {
                connect: true,
                reset: true,
                bad_gateway: false,
                unavailable: false,
                gateway_timeout: false,
            },
            budget_percent: 20,
            keeps_bodies: false,
        }
    }
}

/// `"timeouts"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to be there, TLS included. Default 1 s.
    pub connect: Duration,
    /// From the last request byte to the response head. Default 60 s.
    pub response: Duration,
    /// The upstream silent in mid-body, upgraded streams included. Default 5 min.
    pub idle: Duration,
    /// For a place among the requests that run, where their number is limited. Default 1 s.
    pub queue: Duration,
    /// From the first to the last byte of the whole exchange. Default: none.
    pub request: Option<Duration>,
    /// The client silent in mid-body. `None` means the process's `--body-timeout`.
    pub client_body: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            response: Duration::from_secs(60),
            idle: Duration::from_secs(300),
            queue: Duration::from_secs(1),
            request: None,
            client_body: None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            balance: None,
            hash_on: HashOn::ClientIp,
            sticky: None,
            host_header: HostHeader::default(),
            normalize_path: NormalizePath::default(),
            strip_prefix: false,
            add_prefix: "".into(),
            add_query: "".into(),
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
            redirect_https: false,
            timeouts: Timeouts::default(),
            retries: Retries::default(),
            health: None,
            outlier: Outlier::default(),
            panic_percent: 50,
            slow_start: None,
            max_requests: None,
            max_queue: 100,
            max_body: None,
        }
    }
}
