//! What a route asks of its upstreams, as written: retries, checks, ejection, stickiness.

use std::{num::NonZeroU8, ops::RangeInclusive, time::Duration};

use http::{HeaderName, uri::PathAndQuery};
use serde::Deserialize;

use super::values::{CookieLife, Count, Percent, Span, Word, Words};
use crate::{
    route::{
        settings::{Retries, RetryOn},
        value::BadValue,
    },
    upstream::{
        balancer::{HashOn, Sticky},
        ejection::Outlier,
        health::{CheckSettings, Initial},
    },
};

/// What separates the name and the attributes of a cookie, or may not stand in it (RFC 6265 section 4.1.1).
const NOT_IN_COOKIE_NAMES: &str = "()<>@,;:\\\"/[]?={} \t";

pub(super) fn hash_on(text: &str) -> Result<HashOn, BadValue> {
    let bad = || {
        let problem = format!(
            "{text:?} is neither \"client-ip\", \"path\", \"header:NAME\" nor \"cookie:NAME\""
        );
        BadValue::field("hash_on", problem)
    };
    match text.split_once(':') {
        None if text == "client-ip" => Ok(HashOn::ClientIp),
        None if text == "path" => Ok(HashOn::Path),
        Some(("header", name)) => {
            let name: HeaderName = name.parse().map_err(|_| bad())?;
            Ok(HashOn::Header(name))
        }
        Some(("cookie", name)) if is_cookie_name(name) => Ok(HashOn::Cookie(name.into())),
        _ => Err(bad()),
    }
}

fn is_cookie_name(name: &str) -> bool {
    let may_stand = |c: char| c.is_ascii_graphic() && !NOT_IN_COOKIE_NAMES.contains(c);
    !name.is_empty() && name.len() <= 128 && name.chars().all(may_stand)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenSticky {
    cookie: String,
    ttl: Option<CookieLife>,
}

impl WrittenSticky {
    pub(super) fn finish(self) -> Result<Sticky, BadValue> {
        if !is_cookie_name(&self.cookie) {
            let problem = format!("{:?} is no cookie name", self.cookie);
            return Err(BadValue::field("sticky.cookie", problem));
        }
        Ok(Sticky {
            cookie: self.cookie.into(),
            ttl: self.ttl.map(|ttl| ttl.0),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenRetries {
    attempts: Option<Count<0, 10>>,
    on: Option<Vec<Word<Cause>>>,
    budget_percent: Option<Percent>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
enum Cause {
    #[serde(rename = "connect")]
    Connect,
    #[serde(rename = "reset")]
    Reset,
    #[serde(rename = "502")]
    BadGateway,
    #[serde(rename = "503")]
    Unavailable,
    #[serde(rename = "504")]
    GatewayTimeout,
}

impl Words for Cause {
    const WORDS: &'static str = r#"one of "connect", "reset", "502", "503" and "504""#;
}

impl WrittenRetries {
    pub(super) fn finish(self) -> Retries {
        let default = Retries::default();
        let on = self.on.map(|causes| {
            let has = |cause| causes.iter().any(|Word(other)| *other == cause);
            RetryOn {
                connect: has(Cause::Connect),
                reset: has(Cause::Reset),
                bad_gateway: has(Cause::BadGateway),
                unavailable: has(Cause::Unavailable),
                gateway_timeout: has(Cause::GatewayTimeout),
            }
        });
        let attempts = self.attempts.map_or(default.attempts, |count| count.0);
        Retries {
            attempts,
            keeps_bodies: attempts > 0,
            on: match attempts {
                0 => RetryOn::NOTHING,
                _ => on.unwrap_or(default.on),
            },
            budget_percent: self
                .budget_percent
                .map_or(default.budget_percent, |share| share.0),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenHealth {
    path: Option<String>,
    interval: Option<Span>,
    timeout: Option<Span>,
    healthy: Option<Count<1, 100>>,
    unhealthy: Option<Count<1, 100>>,
    expect: Option<String>,
    initial: Option<Word<WrittenInitial>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenInitial {
    Healthy,
    Unhealthy,
}

impl Words for WrittenInitial {
    const WORDS: &'static str = r#""healthy" or "unhealthy""#;
}

/// Between two checks of one upstream. A longer interval would not notice much, a shorter one would be an attack.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// What one check may take at most: until then it keeps a connection.
const LONGEST_CHECK: Duration = Duration::from_secs(60);

/// The longest path of a check, in bytes.
const LONGEST_PATH: usize = 1024;

impl WrittenHealth {
    pub(super) fn finish(self) -> Result<CheckSettings, BadValue> {
        let default = CheckSettings::default();
        if self.path.is_none() && self.expect.is_some() {
            let problem = "statuses come in answer to a path; without one a connection is enough";
            return Err(BadValue::field("health.expect", problem));
        }
        let expect = match self.expect {
            Some(text) => text
                .parse()
                .map_err(|problem: String| BadValue::field("health.expect", problem))?,
            None => default.expect,
        };
        let interval = self.interval.map_or(default.interval, |span| span.0);
        if !INTERVALS.contains(&interval) {
            let problem = format!("{interval:?} is not from 100ms to 1h");
            return Err(BadValue::field("health.interval", problem));
        }
        let timeout = self.timeout.map_or(default.timeout, |span| span.0);
        if timeout > LONGEST_CHECK {
            let problem = format!("{timeout:?} is over the limit of 1 minute");
            return Err(BadValue::field("health.timeout", problem));
        }
        Ok(CheckSettings {
            path: self.path.map(check_path).transpose()?,
            interval,
            timeout,
            healthy: self.healthy.map_or(default.healthy, |count| count.0),
            unhealthy: self.unhealthy.map_or(default.unhealthy, |count| count.0),
            expect,
            initial: match self.initial {
                None | Some(Word(WrittenInitial::Healthy)) => Initial::Healthy,
                Some(Word(WrittenInitial::Unhealthy)) => Initial::Unhealthy,
            },
        })
    }
}

/// A path and maybe a query, as they can stand in a request of any HTTP version.
fn check_path(text: String) -> Result<Box<str>, BadValue> {
    let is_path = |text: &str| {
        let parsed: Option<PathAndQuery> = text.parse().ok();
        text.starts_with('/')
            && text.is_ascii()
            && text.len() <= LONGEST_PATH
            // What it takes away, as `#` and what follows, was not meant.
            && parsed.is_some_and(|parsed| parsed.as_str() == text)
    };
    match is_path(&text) {
        true => Ok(text.into()),
        false => {
            let problem = format!("{text:?} is no path such as \"/healthz\"");
            Err(BadValue::field("health.path", problem))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenOutlier {
    consecutive_failures: Option<Count<0, 1000>>,
    ejection: Option<Span>,
    max_ejected_percent: Option<Percent>,
    failure_percent: Option<Percent>,
    min_requests: Option<Count<1, 1_000_000>>,
}

impl WrittenOutlier {
    pub(super) fn finish(self) -> Outlier {
        let default = Outlier::default();
        Outlier {
            consecutive_failures: (self.consecutive_failures)
                .map_or(default.consecutive_failures, |count| count.0),
            ejection: self.ejection.map_or(default.ejection, |span| span.0),
            max_ejected_percent: (self.max_ejected_percent)
                .map_or(default.max_ejected_percent, |share| share.0),
            failure_percent: self
                .failure_percent
                .and_then(|share| NonZeroU8::new(share.0)),
            min_requests: (self.min_requests).map_or(default.min_requests, |count| count.0),
        }
    }
}
