//! `@settings` of a route: the JSON as written, parsed into final types with the defaults filled in.

mod written;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{HeaderName, HeaderValue};

use super::value::BadValue;

/// The settings of one route, as the request's way reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How members are picked; `None` means the process's `--balance`.
    pub balance: Option<Balance>,
    /// What the upstream gets as Host.
    pub host_header: HostHeader,
    /// Take the route's path prefix off before forwarding.
    pub strip_prefix: bool,
    /// Put before the path, after stripping: starts with `/`, has no trailing one; empty for none.
    pub add_prefix: Box<str>,
    /// Applied to the request, after our own rewriting.
    pub request_headers: HeaderRules,
    /// Applied to the response, after our own rewriting.
    pub response_headers: HeaderRules,
    /// Answer plain requests with 308 to https.
    pub redirect_https: bool,
    /// How long the upstream may take for what.
    pub timeouts: Timeouts,
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

/// `"balance"`, and `--balance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each in turn, exact over all workers together, in proportion to the weights.
    #[default]
    RoundRobin,
    /// Uniform at random, in proportion to the weights.
    Random,
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

/// `"timeouts"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to be there, TLS included. Default 1 s.
    pub connect: Duration,
    /// From the last request byte to the response head. Default 60 s.
    pub response: Duration,
    /// The upstream silent in mid-body, upgraded streams included. Default 5 min.
    pub idle: Duration,
    /// From the first to the last byte of the whole exchange. Default: none.
    pub request: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            response: Duration::from_secs(60),
            idle: Duration::from_secs(300),
            request: None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            balance: None,
            host_header: HostHeader::default(),
            strip_prefix: false,
            add_prefix: "".into(),
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
            redirect_https: false,
            timeouts: Timeouts::default(),
            max_body: None,
        }
    }
}
