//! `@settings` as it stands in JSON. Every field of the contract has its real type here, so that a wrong type is
//! told as such; those not in force yet are refused by name.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, de};

use super::{Balance, HeaderRules, HostHeader, Settings, Timeouts};
use crate::route::{
    host,
    json::{from_json, optional_object},
    value::{BadValue, MAX_VALUE},
};

/// Longer than any request lives; catches `5d` written for `5s`.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What frames a message or names its host is ours alone: a rule on it could smuggle requests.
const RESERVED: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-connection",
];

/// Fields and variants that are [not supported yet](BadValue::NotSupportedYet).
const LATER: [&str; 10] = [
    "least-request",
    "hash",
    "hash_on",
    "sticky",
    "retries",
    "health",
    "outlier",
    "panic_percent",
    "slow_start",
    "max_requests",
];

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
    from_json::<Written>(value, &LATER)?.finish()
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    balance: Option<WrittenBalance>,
    hash_on: Option<String>,
    #[serde(deserialize_with = "optional_object")]
    sticky: Option<Sticky>,
    host_header: Option<String>,
    strip_prefix: Option<bool>,
    add_prefix: Option<String>,
    #[serde(deserialize_with = "optional_object")]
    request_headers: Option<WrittenHeaders>,
    #[serde(deserialize_with = "optional_object")]
    response_headers: Option<WrittenHeaders>,
    redirect_https: Option<bool>,
    #[serde(deserialize_with = "optional_object")]
    timeouts: Option<WrittenTimeouts>,
    #[serde(deserialize_with = "optional_object")]
    retries: Option<Retries>,
    #[serde(deserialize_with = "optional_object")]
    health: Option<Health>,
    #[serde(deserialize_with = "optional_object")]
    outlier: Option<Outlier>,
    panic_percent: Option<Percent>,
    slow_start: Option<Span>,
    max_requests: Option<u32>,
    max_body: Option<Size>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WrittenBalance {
    RoundRobin,
    Random,
    LeastRequest,
    Hash,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenHeaders {
    set: BTreeMap<String, String>,
    add: BTreeMap<String, String>,
    remove: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenTimeouts {
    connect: Option<Span>,
    response: Option<Span>,
    idle: Option<Span>,
    request: Option<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for its types; not in force yet")]
struct Sticky {
    cookie: String,
    ttl: Option<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for its types; not in force yet")]
struct Retries {
    attempts: Option<u32>,
    on: Option<Vec<String>>,
    budget_percent: Option<Percent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for its types; not in force yet")]
struct Health {
    path: Option<String>,
    interval: Option<Span>,
    timeout: Option<Span>,
    healthy: Option<u32>,
    unhealthy: Option<u32>,
    expect: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for its types; not in force yet")]
struct Outlier {
    consecutive_failures: Option<u32>,
    ejection: Option<Span>,
    max_ejected_percent: Option<Percent>,
}

impl Written {
    fn finish(self) -> Result<Settings, BadValue> {
        self.refuse_what_is_not_in_force()?;
        Ok(Settings {
            balance: match self.balance {
                Some(WrittenBalance::RoundRobin) => Some(Balance::RoundRobin),
                Some(WrittenBalance::Random) => Some(Balance::Random),
                _ => None,
            },
            host_header: self
                .host_header
                .map_or(Ok(HostHeader::Preserve), host_header)?,
            strip_prefix: self.strip_prefix.unwrap_or(false),
            add_prefix: self.add_prefix.map_or(Ok("".into()), add_prefix)?,
            request_headers: header_rules("request_headers", self.request_headers)?,
            response_headers: header_rules("response_headers", self.response_headers)?,
            redirect_https: self.redirect_https.unwrap_or(false),
            timeouts: self.timeouts.unwrap_or_default().finish(),
            max_body: self.max_body.map(|size| size.0),
        })
    }

    fn refuse_what_is_not_in_force(&self) -> Result<(), BadValue> {
        let not_in_force = [
            (
                "\"balance\": \"least-request\"",
                matches!(self.balance, Some(WrittenBalance::LeastRequest)),
            ),
            (
                "\"balance\": \"hash\"",
                matches!(self.balance, Some(WrittenBalance::Hash)),
            ),
            ("\"hash_on\"", self.hash_on.is_some()),
            ("\"sticky\"", self.sticky.is_some()),
            ("\"retries\"", self.retries.is_some()),
            ("\"health\"", self.health.is_some()),
            ("\"outlier\"", self.outlier.is_some()),
            ("\"panic_percent\"", self.panic_percent.is_some()),
            ("\"slow_start\"", self.slow_start.is_some()),
            ("\"max_requests\"", self.max_requests.is_some()),
        ];
        match not_in_force.iter().find(|(_, is_asked_for)| *is_asked_for) {
            Some((field, _)) => Err(BadValue::not_yet(field)),
            None => Ok(()),
        }
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
            request: self.request.map(|span| span.0),
        }
    }
}

fn host_header(text: String) -> Result<HostHeader, BadValue> {
    match text.as_str() {
        "preserve" => return Ok(HostHeader::Preserve),
        "upstream" => return Ok(HostHeader::Upstream),
        _ => {}
    }
    host::canonical(text.as_bytes())
        .ok()
        .and_then(|_| HeaderValue::from_str(&text).ok())
        .map(HostHeader::Literal)
        .ok_or_else(|| {
            let problem = format!("{text:?} is neither \"preserve\", \"upstream\" nor a host");
            BadValue::field("host_header", problem)
        })
}

fn add_prefix(text: String) -> Result<Box<str>, BadValue> {
    let bad = |problem: &str| Err(BadValue::field("add_prefix", format!("{text:?} {problem}")));
    let Some(segments) = text.strip_prefix('/') else {
        return bad("does not start with \"/\"");
    };
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    if !text.bytes().all(|byte| byte.is_ascii_graphic())
        || text.contains(['?', '#', '<', '>', '"', '`', '\\', '^', '{', '|', '}'])
    {
        return bad("has a character that must be percent-encoded in a path");
    }
    if segments.is_empty() {
        return Ok("".into());
    }
    if segments
        .split('/')
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return bad("has an empty, \".\" or \"..\" segment");
    }
    Ok(format!("/{segments}").into())
}

fn header_rules(field: &str, written: Option<WrittenHeaders>) -> Result<HeaderRules, BadValue> {
    let Some(written) = written else {
        return Ok(HeaderRules::default());
    };
    let fields = |rule: &str, fields: BTreeMap<String, String>| {
        let place = format!("{field}.{rule}");
        let mut parsed: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            let name = header_name(&place, &name)?;
            let value = HeaderValue::from_str(&value).map_err(|_| {
                BadValue::field(
                    &place,
                    format_args!("the value of {name} has control characters"),
                )
            })?;
            if parsed.iter().any(|(other, _)| *other == name) {
                return Err(BadValue::field(
                    &place,
                    format_args!("{name} stands there twice"),
                ));
            }
            parsed.push((name, value));
        }
        Ok(parsed)
    };
    Ok(HeaderRules {
        set: fields("set", written.set)?,
        add: fields("add", written.add)?,
        remove: {
            let place = format!("{field}.remove");
            let names = written.remove.iter().map(|name| header_name(&place, name));
            names.collect::<Result<_, _>>()?
        },
    })
}

fn header_name(place: &str, name: &str) -> Result<HeaderName, BadValue> {
    let parsed: HeaderName = name
        .parse()
        .map_err(|_| BadValue::field(place, format_args!("{name:?} is no header name")))?;
    if RESERVED.contains(&parsed.as_str()) {
        return Err(BadValue::field(
            place,
            format_args!("{name} may not be changed by a rule (for Host there is \"host_header\")"),
        ));
    }
    Ok(parsed)
}

/// `"5s"`: over zero, up to [`MAX_DURATION`].
struct Span(Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = humantime::parse_duration(text).map_err(|error| {
            format!("{text:?} is no duration such as \"5s\" or \"250ms\": {error}")
        })?;
        if duration.is_zero() {
            return Err(format!(
                "{text:?} is zero; leave the field out for the default"
            ));
        }
        if duration > MAX_DURATION {
            return Err(format!("{text:?} is over the limit of 7 days"));
        }
        Ok(Self(duration))
    }
}

/// `"64KiB"`: over zero, in bytes.
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: bytesize::ByteSize = text
            .parse()
            .map_err(|_| format!("{text:?} is no size such as \"64KiB\" or \"10MB\""))?;
        match size.as_u64() {
            0 => Err(format!(
                "{text:?} is zero; leave the field out for no limit"
            )),
            bytes => Ok(Self(bytes)),
        }
    }
}

/// 0 to 100.
struct Percent;

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        match u8::deserialize(json)? {
            0..=100 => Ok(Self),
            more => Err(de::Error::custom(format_args!(
                "{more} is over 100 percent"
            ))),
        }
    }
}

/// A text that is parsed further.
struct Text<T>(std::marker::PhantomData<T>, &'static str);

impl<T: FromStr<Err = String>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(Text(std::marker::PhantomData, "a duration such as \"5s\""))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(Text(std::marker::PhantomData, "a size such as \"64KiB\""))
    }
}

#[cfg(test)]
mod tests;
