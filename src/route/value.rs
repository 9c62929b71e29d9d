//! The value of an upstream's key: nothing, any text (both mean "defaults"), or a JSON object of options.

mod written;

use std::{num::NonZeroU32, sync::Arc};

use serde::de::IgnoredAny;

use self::written::Written;
use super::{
    Role,
    json::{from_json, is_json_object},
};
use crate::upstream::{PoolOptions, Protocol, ProxyProtocol, TlsOptions};

/// Longest value we take, of an upstream or of settings, in bytes.
pub(super) const MAX_VALUE: usize = 64 * 1024;

/// The options of one upstream in one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamOptions {
    /// Its share of the requests, relative to its siblings; 0 gets none.
    pub weight: u32,
    /// `"backup"` and `"drain"`; who drains is no backup.
    pub role: Role,
    /// How many requests of the route may run at it at one time; `None`: no limit.
    pub max_requests: Option<NonZeroU32>,
    /// TLS towards it.
    pub tls: Option<Arc<TlsOptions>>,
    /// The HTTP version spoken to it.
    pub protocol: Protocol,
    /// How its connections are kept; `None`: by the defaults.
    pub pool: Option<Arc<PoolOptions>>,
    /// The header that tells it of clients; `None`: none.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            weight: 1,
            role: Role::Serving,
            max_requests: None,
            tls: None,
            protocol: Protocol::Http1,
            pool: None,
            proxy_protocol: None,
        }
    }
}

/// Why a value that begins like a JSON object is none, and means defaults like any other text: perhaps a slip.
pub fn broken_object(value: &[u8]) -> Option<serde_json::Error> {
    let begins_like_one = value.trim_ascii_start().first() == Some(&b'{');
    let parsed = begins_like_one.then(|| serde_json::from_slice::<IgnoredAny>(value));
    parsed?.err()
}

/// Why a value is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// Longer than any value we take.
    #[error("the value has {0} bytes; 65536 are the limit")]
    TooLong(usize),
    /// An unknown field, a bad type, a value out of range.
    #[error("{0}")]
    Field(String),
    /// Settings that are no JSON object.
    #[error("the value is no JSON object, such as {{\"balance\": \"random\"}}: {0}")]
    NotAnObject(String),
    /// A feature of a later version.
    #[error("{0} is not supported yet; leave it out")]
    NotSupportedYet(String),
}

impl BadValue {
    pub(super) fn field(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::Field(format!("{field}: {problem}"))
    }
}

impl UpstreamOptions {
    /// Whether it may get requests that are nobody's in particular.
    pub fn takes_new_requests(&self) -> bool {
        self.weight > 0 && self.role != Role::Draining
    }

    /// What a value asks for. What is not a JSON object asks for nothing.
    ///
    /// # Errors
    /// A JSON object with an unknown field, a bad type, a value out of range, or a feature of a later version.
    pub fn parse(value: &[u8]) -> Result<Self, BadValue> {
        if value.len() > MAX_VALUE {
            return Err(BadValue::TooLong(value.len()));
        }
        if !is_json_object(value) {
            return Ok(Self::default());
        }
        from_json::<Written>(value)?.finish()
    }
}

#[cfg(test)]
mod tests;
