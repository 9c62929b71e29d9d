//! What is asked of a balancer.

use std::{fmt, time::Duration};

use http::HeaderName;

/// `"balance"`, and `--balance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each in turn, exact over all workers together, in proportion to the weights.
    #[default]
    RoundRobin,
    /// Uniform at random, in proportion to the weights.
    Random,
    /// The less busy of two, by the requests in flight of all workers and the weights.
    LeastRequest,
    /// The same one for the same key (see [`HashOn`]), as long as it can take it.
    Hash,
}

/// `"hash_on"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HashOn {
    /// The client's address, without its port.
    #[default]
    ClientIp,
    /// The value of this field.
    Header(HeaderName),
    /// The value of this cookie.
    Cookie(Box<str>),
    /// The path, without the query.
    Path,
}

impl fmt::Display for HashOn {
    /// In words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientIp => f.write_str("the client's address"),
            Self::Header(name) => write!(f, "the field {name}"),
            Self::Cookie(name) => write!(f, "the cookie {name}"),
            Self::Path => f.write_str("the path"),
        }
    }
}

/// `"sticky"`: the cookie that keeps a client at its upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// Its name.
    pub cookie: Box<str>,
    /// How long the client keeps it; `None`: until it is closed.
    pub ttl: Option<Duration>,
}
