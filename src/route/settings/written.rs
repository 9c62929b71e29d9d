//! `@settings` as it stands in JSON. Every field of the contract has its real type here, so that a wrong type is
//! told as such; those not in force yet are refused by name.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, de};

use super::{Balance, HeaderRules, HostHeader, Settings, Timeouts};
use crate::route::{
    host,
    value::{BadValue, MAX_VALUE, from_json},
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
    balance: Option<WrittenBalance>,
    hash_on: Option<String>,
    sticky: Option<Sticky>,
    host_header: Option<String>,
    strip_prefix: Option<bool>,
    add_prefix: Option<String>,
    request_headers: Option<WrittenHeaders>,
    response_headers: Option<WrittenHeaders>,
    redirect_https: Option<bool>,
    timeouts: WrittenTimeouts,
    retries: Option<Retries>,
    health: Option<Health>,
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
            timeouts: self.timeouts.finish(),
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
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_means_defaults() {
        assert_eq!(parse(b"{}"), Ok(Settings::default()));
        assert_eq!(
            parse(br#"{"balance": null, "sticky": null, "timeouts": {"request": null}}"#),
            Ok(Settings::default())
        );
    }

    #[test]
    fn everything_in_force_is_read() {
        let settings = parse(
            br#"{"balance": "random", "host_header": "app.internal:8080", "strip_prefix": true, "add_prefix": "/base/",
                 "request_headers": {"set": {"X-A": "1"}, "add": {"x-b": "2"}, "remove": ["Cookie"]},
                 "response_headers": {"remove": ["server"]}, "redirect_https": true,
                 "timeouts": {"connect": "250ms", "response": "10s", "idle": "1m", "request": "2m"}, "max_body": "64KiB"}"#,
        )
        .expect("valid settings");
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let expected = Settings {
            balance: Some(Balance::Random),
            host_header: HostHeader::Literal(value("app.internal:8080")),
            strip_prefix: true,
            add_prefix: "/base".into(),
            request_headers: HeaderRules {
                set: vec![(name("x-a"), value("1"))],
                add: vec![(name("x-b"), value("2"))],
                remove: vec![name("cookie")],
            },
            response_headers: HeaderRules {
                remove: vec![name("server")],
                ..HeaderRules::default()
            },
            redirect_https: true,
            timeouts: Timeouts {
                connect: Duration::from_millis(250),
                response: Duration::from_secs(10),
                idle: Duration::from_secs(60),
                request: Some(Duration::from_secs(120)),
            },
            max_body: Some(65536),
        };
        assert_eq!(settings, expected);
        let upstream = parse(br#"{"host_header": "upstream", "add_prefix": "/"}"#).expect("valid");
        assert_eq!(
            (upstream.host_header, &*upstream.add_prefix),
            (HostHeader::Upstream, "")
        );
    }

    #[test]
    fn bad_settings_are_rejected_by_name() {
        for (value, expected) in [
            ("", "no JSON object"),
            ("random", "no JSON object"),
            ("[]", "no JSON object"),
            ("{\"a\": 1", "no JSON object"),
            (r#"{"balanse": "random"}"#, "unknown field `balanse`"),
            (r#"{"balance": "rr"}"#, "balance: unknown variant `rr`"),
            (r#"{"strip_prefix": "yes"}"#, "strip_prefix: invalid type"),
            (r#"{"host_header": "a b"}"#, "host_header: \"a b\""),
            (r#"{"host_header": "a\r\nX: y"}"#, "host_header"),
            (
                r#"{"add_prefix": "base"}"#,
                "add_prefix: \"base\" does not start",
            ),
            (r#"{"add_prefix": "/a?b"}"#, "add_prefix"),
            (r#"{"add_prefix": "/a//b"}"#, "add_prefix"),
            (r#"{"add_prefix": "/a/../b"}"#, "add_prefix"),
            (
                r#"{"request_headers": {"set": {"Host": "x"}}}"#,
                "request_headers.set: Host may not",
            ),
            (
                r#"{"request_headers": {"remove": ["Transfer-Encoding"]}}"#,
                "request_headers.remove: Transfer-Encoding",
            ),
            (
                r#"{"response_headers": {"add": {"Connection": "x"}}}"#,
                "response_headers.add: Connection",
            ),
            (
                r#"{"response_headers": {"add": {"X-A": "a\r\nb"}}}"#,
                "control characters",
            ),
            (
                r#"{"response_headers": {"add": {"X A": "a"}}}"#,
                "\"X A\" is no header name",
            ),
            (
                r#"{"response_headers": {"set": {"X-A": "a", "x-a": "b"}}}"#,
                "x-a stands there twice",
            ),
            (
                r#"{"response_headers": {"append": {}}}"#,
                "response_headers.append: unknown field",
            ),
            (
                r#"{"timeouts": {"connect": 5}}"#,
                "timeouts.connect: invalid type: integer `5`, expected a duration",
            ),
            (
                r#"{"timeouts": {"connect": "-5s"}}"#,
                "timeouts.connect: \"-5s\"",
            ),
            (
                r#"{"timeouts": {"idle": "0s"}}"#,
                "timeouts.idle: \"0s\" is zero",
            ),
            (
                r#"{"timeouts": {"request": "9999999h"}}"#,
                "timeouts.request: \"9999999h\" is over",
            ),
            (r#"{"timeouts": {"total": "5s"}}"#, "unknown field `total`"),
            (r#"{"max_body": "lots"}"#, "max_body: \"lots\" is no size"),
            (r#"{"max_body": "-1"}"#, "max_body"),
            (r#"{"max_body": "0"}"#, "max_body: \"0\" is zero"),
            (
                r#"{"sticky": {"ttl": "1h"}}"#,
                "sticky: missing field `cookie`",
            ),
            (
                r#"{"health": {"interval": 5}}"#,
                "health.interval: invalid type",
            ),
            (r#"{"panic_percent": 101}"#, "panic_percent: 101 is over"),
        ] {
            let error = parse(value.as_bytes()).expect_err(value).to_string();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }

    #[test]
    fn what_is_not_in_force_is_refused_and_not_ignored() {
        for (value, field) in [
            (
                r#"{"balance": "least-request"}"#,
                "\"balance\": \"least-request\"",
            ),
            (
                r#"{"balance": "hash", "hash_on": "path"}"#,
                "\"balance\": \"hash\"",
            ),
            (r#"{"hash_on": "path"}"#, "\"hash_on\""),
            (
                r#"{"sticky": {"cookie": "waypost", "ttl": "1h"}}"#,
                "\"sticky\"",
            ),
            (
                r#"{"retries": {"attempts": 2, "on": ["connect"], "budget_percent": 20}}"#,
                "\"retries\"",
            ),
            (
                r#"{"health": {"path": "/healthz", "interval": "5s", "expect": "200-399"}}"#,
                "\"health\"",
            ),
            (
                r#"{"outlier": {"consecutive_failures": 5, "ejection": "30s"}}"#,
                "\"outlier\"",
            ),
            (r#"{"panic_percent": 50}"#, "\"panic_percent\""),
            (r#"{"slow_start": "30s"}"#, "\"slow_start\""),
            (r#"{"max_requests": 1000}"#, "\"max_requests\""),
        ] {
            let error = parse(value.as_bytes()).expect_err(value).to_string();
            assert_eq!(
                error,
                format!("{field} is not supported yet; leave it out"),
                "{value}"
            );
        }
    }
}
