//! `@settings` as it stands in JSON. Every field of the contract has its real type here, so that a wrong type is
//! told as such.

mod rules;
mod upstreams;
mod values;

use std::{num::NonZeroU32, sync::Arc};

use serde::{Deserialize, de};

use self::{
    rules::{WrittenHeaders, add_prefix, add_query, header_rules, host_header},
    upstreams::{WrittenHealth, WrittenOutlier, WrittenRetries, WrittenSticky, hash_on},
    values::{Percent, Size},
};
use super::{Balance, HostHeader, NormalizePath, Settings, Timeouts};
use crate::route::{
    json::{from_json, optional_object},
    value::{BadValue, MAX_VALUE},
};

pub use self::rules::RESERVED;
pub(in crate::route) use self::values::{Count, IdleSpan, Span, Word, Words};

pub(super) fn parse(value: &[u8]) -> Result<Settings, BadValue> {
    if value.len() > MAX_VALUE {
        return Err(BadValue::TooLong(value.len()));
    }
    match serde_json::from_slice::<de::IgnoredAny>(value) {
        Err(error) => return Err(BadValue::NotAnObject(error.to_string())),
        Ok(_) if value.trim_ascii_start().first() != Some(&b'{') => {
            return Err(BadValue::NotAnObject("it starts with no \"{\"".to_owned()));
        }
        Ok(_) => {}
    }
    from_json::<Written>(value)?.finish()
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    balance: Option<Word<Balance>>,
    hash_on: Option<String>,
    #[serde(deserialize_with = "optional_object")]
    sticky: Option<WrittenSticky>,
    host_header: Option<String>,
    normalize_path: Option<Word<NormalizePath>>,
    strip_prefix: Option<bool>,
    add_prefix: Option<String>,
    add_query: Option<String>,
    #[serde(deserialize_with = "optional_object")]
    request_headers: Option<WrittenHeaders>,
    #[serde(deserialize_with = "optional_object")]
    response_headers: Option<WrittenHeaders>,
    redirect_https: Option<bool>,
    #[serde(deserialize_with = "optional_object")]
    timeouts: Option<WrittenTimeouts>,
    #[serde(deserialize_with = "optional_object")]
    retries: Option<WrittenRetries>,
    #[serde(deserialize_with = "optional_object")]
    health: Option<WrittenHealth>,
    #[serde(deserialize_with = "optional_object")]
    outlier: Option<WrittenOutlier>,
    panic_percent: Option<Percent>,
    slow_start: Option<Span>,
    max_requests: Option<Count<1, { u32::MAX }>>,
    max_queue: Option<Count<0, 100_000>>,
    max_body: Option<Size>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenTimeouts {
    connect: Option<Span>,
    response: Option<Span>,
    idle: Option<Span>,
    queue: Option<Span>,
    request: Option<Span>,
    client_body: Option<Span>,
}

impl Words for Balance {
    const WORDS: &'static str = r#"one of "round-robin", "random", "least-request" and "hash""#;
}

impl Words for NormalizePath {
    const WORDS: &'static str = r#"one of "lookup", "forward" and "off""#;
}

impl Written {
    fn finish(self) -> Result<Settings, BadValue> {
        let default = Settings::default();
        Ok(Settings {
            balance: self.balance.map(|balance| balance.0),
            hash_on: self
                .hash_on
                .as_deref()
                .map_or(Ok(default.hash_on), hash_on)?,
            sticky: self.sticky.map(WrittenSticky::finish).transpose()?,
            host_header: self
                .host_header
                .map_or(Ok(HostHeader::Preserve), host_header)?,
            normalize_path: (self.normalize_path).map_or(default.normalize_path, |word| word.0),
            strip_prefix: self.strip_prefix.unwrap_or(false),
            add_prefix: self.add_prefix.map_or(Ok("".into()), add_prefix)?,
            add_query: self.add_query.map_or(Ok("".into()), add_query)?,
            request_headers: header_rules("request_headers", self.request_headers)?,
            response_headers: header_rules("response_headers", self.response_headers)?,
            redirect_https: self.redirect_https.unwrap_or(false),
            timeouts: self.timeouts.unwrap_or_default().finish(),
            retries: self.retries.map_or(default.retries, WrittenRetries::finish),
            health: self
                .health
                .map(WrittenHealth::finish)
                .transpose()?
                .map(Arc::new),
            outlier: self.outlier.map_or(default.outlier, WrittenOutlier::finish),
            panic_percent: self
                .panic_percent
                .map_or(default.panic_percent, |share| share.0),
            slow_start: self.slow_start.map(|span| span.0),
            max_requests: self.max_requests.and_then(|count| NonZeroU32::new(count.0)),
            max_queue: self.max_queue.map_or(default.max_queue, |count| count.0),
            max_body: self.max_body.map(|size| size.0),
        })
    }
}

impl WrittenTimeouts {
    fn finish(self) -> Timeouts {
        let default = Timeouts::default();
        let or = |span: Option<Span>, default| span.map_or(default, |span| span.0);
        Timeouts {
            connect: or(self.connect, default.connect),
            response: or(self.response, default.response),
            idle: or(self.idle, default.idle),
            queue: or(self.queue, default.queue),
            request: self.request.map(|span| span.0),
            client_body: self.client_body.map(|span| span.0),
        }
    }
}

#[cfg(test)]
mod tests;
