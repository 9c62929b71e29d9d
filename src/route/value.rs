//! The value of an upstream's key: nothing, any text (both mean "defaults"), or a JSON object of options.

use std::{fmt, num::NonZeroU32, sync::Arc};

use serde::{Deserialize, Deserializer, de};

use super::{
    Role,
    json::{from_json, is_json_object, optional_object},
    settings::{Count, IdleSpan, Span, Word, Words},
};
use crate::upstream::{ClientFiles, PoolOptions, Protocol, TlsOptions};

/// Longest value we take, of an upstream or of settings, in bytes.
pub(super) const MAX_VALUE: usize = 64 * 1024;
const MAX_WEIGHT: u32 = 65_535;

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
        }
    }
}

/// Why a value that begins like a JSON object is none, and means defaults like any other text: perhaps a slip.
pub fn broken_object(value: &[u8]) -> Option<serde_json::Error> {
    let begins_like_one = value.trim_ascii_start().first() == Some(&b'{');
    let parsed = begins_like_one.then(|| serde_json::from_slice::<de::IgnoredAny>(value));
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    weight: Option<Count<0, MAX_WEIGHT>>,
    #[serde(default)]
    tls: Option<WrittenTls>,
    #[serde(default)]
    protocol: Option<Word<Protocol>>,
    #[serde(default, deserialize_with = "optional_object")]
    pool: Option<WrittenPool>,
    #[serde(default)]
    backup: Option<bool>,
    #[serde(default)]
    drain: Option<bool>,
    #[serde(default)]
    max_requests: Option<Count<1, { u32::MAX }>>,
}

impl Words for Protocol {
    const WORDS: &'static str = r#""http1" or "h2""#;
}

enum WrittenTls {
    Switch(bool),
    Options(WrittenTlsOptions),
}

impl<'de> Deserialize<'de> for WrittenTls {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(TlsVisitor)
    }
}

struct TlsVisitor;

impl<'de> de::Visitor<'de> for TlsVisitor {
    type Value = WrittenTls;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"true, false, or an object of "sni", "ca", "insecure", "cert" and "key""#)
    }

    fn visit_bool<E>(self, switch: bool) -> Result<WrittenTls, E> {
        Ok(WrittenTls::Switch(switch))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<WrittenTls, A::Error> {
        let map = de::value::MapAccessDeserializer::new(map);
        WrittenTlsOptions::deserialize(map).map(WrittenTls::Options)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTlsOptions {
    #[serde(default)]
    sni: Option<Box<str>>,
    #[serde(default)]
    ca: Option<Box<str>>,
    #[serde(default)]
    insecure: Option<bool>,
    #[serde(default)]
    cert: Option<Box<str>>,
    #[serde(default)]
    key: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPool {
    #[serde(default)]
    idle_timeout: Option<IdleSpan>,
    #[serde(default)]
    max_idle: Option<Count<0, { u16::MAX as u32 }>>,
    #[serde(default)]
    lifetime: Option<Span>,
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

impl Written {
    fn finish(self) -> Result<UpstreamOptions, BadValue> {
        Ok(UpstreamOptions {
            weight: self.weight.map_or(1, |weight| weight.0),
            role: match (self.drain, self.backup) {
                (Some(true), _) => Role::Draining,
                (_, Some(true)) => Role::Backup,
                _ => Role::Serving,
            },
            max_requests: self.max_requests.and_then(|most| NonZeroU32::new(most.0)),
            tls: match self.tls {
                None | Some(WrittenTls::Switch(false)) => None,
                Some(WrittenTls::Switch(true)) => Some(Arc::default()),
                Some(WrittenTls::Options(options)) => Some(Arc::new(options.finish()?)),
            },
            protocol: self.protocol.map(|protocol| protocol.0).unwrap_or_default(),
            pool: self.pool.and_then(WrittenPool::finish),
        })
    }
}

impl WrittenTlsOptions {
    fn finish(self) -> Result<TlsOptions, BadValue> {
        if let Some(sni) = &self.sni
            && rustls::pki_types::ServerName::try_from(&**sni).is_err()
        {
            return Err(BadValue::field(
                "tls.sni",
                format_args!("{sni:?} is no host name"),
            ));
        }
        for (field, path) in [
            ("tls.ca", &self.ca),
            ("tls.cert", &self.cert),
            ("tls.key", &self.key),
        ] {
            if path.as_deref() == Some("") {
                return Err(BadValue::field(field, "expected the path of a PEM file"));
            }
        }
        let client = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some(ClientFiles { cert, key }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(BadValue::field(
                    "tls.cert",
                    "it needs its \"key\" beside it",
                ));
            }
            (None, Some(_)) => {
                return Err(BadValue::field(
                    "tls.key",
                    "it needs its \"cert\" beside it",
                ));
            }
        };
        Ok(TlsOptions {
            sni: self.sni,
            ca: self.ca,
            insecure: self.insecure.unwrap_or(false),
            client,
        })
    }
}

impl WrittenPool {
    /// `None` if that is the defaults: then it is the same upstream as without.
    fn finish(self) -> Option<Arc<PoolOptions>> {
        let default = PoolOptions::default();
        let options = PoolOptions {
            idle_timeout: self
                .idle_timeout
                .map_or(default.idle_timeout, |span| span.0),
            max_idle: self
                .max_idle
                .and_then(|most| u16::try_from(most.0).ok())
                .unwrap_or(default.max_idle),
            lifetime: self.lifetime.map(|span| span.0),
        };
        (options != default).then(|| Arc::new(options))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_no_json_object_means_defaults() {
        for value in [
            &b""[..],
            b" ",
            b"up",
            b"true",
            b"5",
            b"null",
            b"[1]",
            b"\"{}\"",
            b"{",
            b"{weight: 5}",
            b"{} x",
            b"\xff\xfe",
            b"{}",
            b" {} ",
            b"{\"weight\": null, \"backup\": false, \"tls\": false}",
        ] {
            assert_eq!(
                UpstreamOptions::parse(value),
                Ok(UpstreamOptions::default()),
                "{}",
                value.escape_ascii()
            );
        }
    }

    #[test]
    fn a_value_that_begins_like_an_object_and_is_none_is_told_apart() {
        for (value, problem) in [
            ("", None),
            ("up", None),
            ("[1", None),
            ("{}", None),
            (" {\"weight\": 5}", None),
            (
                " {weight: 5}",
                Some("key must be a string at line 1 column 3"),
            ),
            ("{\n\"weight\": 5", Some("line 2")),
            ("{} x", Some("trailing characters")),
        ] {
            let found = broken_object(value.as_bytes()).map(|error| error.to_string());
            let is_so = match (&found, problem) {
                (Some(found), Some(problem)) => found.contains(problem),
                (found, problem) => found.is_none() && problem.is_none(),
            };
            assert!(is_so, "{value}: {found:?}");
        }
    }

    #[test]
    fn options_are_read() {
        for (value, weight, role, tls) in [
            (r#"{"weight": 5}"#, 5, Role::Serving, None),
            (r#"{"weight": 0}"#, 0, Role::Serving, None),
            (r#"{"weight": 5, "drain": true}"#, 5, Role::Draining, None),
            (r#"{"weight": 5, "drain": false}"#, 5, Role::Serving, None),
            (r#"{"backup": true}"#, 1, Role::Backup, None),
            (
                r#"{"backup": true, "drain": true}"#,
                1,
                Role::Draining,
                None,
            ),
            (
                r#"{"tls": true}"#,
                1,
                Role::Serving,
                Some(TlsOptions::default()),
            ),
            (
                r#"{"tls": {"sni": "a.example", "ca": "/ca.pem", "insecure": true}, "protocol": "http1"}"#,
                1,
                Role::Serving,
                Some(TlsOptions {
                    sni: Some("a.example".into()),
                    ca: Some("/ca.pem".into()),
                    insecure: true,
                    client: None,
                }),
            ),
            (
                r#"{"tls": {"cert": "/us.pem", "key": "/us.key"}}"#,
                1,
                Role::Serving,
                Some(TlsOptions {
                    client: Some(ClientFiles {
                        cert: "/us.pem".into(),
                        key: "/us.key".into(),
                    }),
                    ..TlsOptions::default()
                }),
            ),
        ] {
            let options = UpstreamOptions::parse(value.as_bytes()).expect(value);
            let read = (options.weight, options.role, options.tls);
            assert_eq!(read, (weight, role, tls.map(Arc::new)), "{value}");
        }
    }

    #[test]
    fn the_protocol_is_http1_unless_the_value_says_otherwise() {
        for (value, protocol) in [
            ("", Protocol::Http1),
            ("{}", Protocol::Http1),
            (r#"{"protocol": null}"#, Protocol::Http1),
            (r#"{"protocol": "http1"}"#, Protocol::Http1),
            (r#"{"protocol": "h2"}"#, Protocol::H2),
        ] {
            let options = UpstreamOptions::parse(value.as_bytes()).expect(value);
            assert_eq!(options.protocol, protocol, "{value}");
        }
    }

    #[test]
    fn pool_options_are_read_and_the_defaults_are_none() {
        let default = PoolOptions::default();
        for (value, expected) in [
            (r#"{"pool": null}"#, None),
            (r#"{"pool": {}}"#, None),
            (
                r#"{"pool": {"idle_timeout": "60s", "max_idle": 1024, "lifetime": null}}"#,
                None,
            ),
            (
                r#"{"pool": {"max_idle": 0}}"#,
                Some(PoolOptions {
                    max_idle: 0,
                    ..default.clone()
                }),
            ),
            (
                r#"{"pool": {"idle_timeout": "5s", "lifetime": "1h"}}"#,
                Some(PoolOptions {
                    idle_timeout: Duration::from_secs(5),
                    lifetime: Some(Duration::from_secs(3600)),
                    ..default
                }),
            ),
        ] {
            let options = UpstreamOptions::parse(value.as_bytes()).expect(value);
            assert_eq!(options.pool.as_deref(), expected.as_ref(), "{value}");
        }
    }

    #[test]
    fn bad_options_are_rejected_by_name() {
        for (value, expected) in [
            (
                r#"{"weight": -1}"#,
                "weight: invalid type: integer `-1`, expected a whole number from 0 to 65535",
            ),
            (r#"{"weight": 1.5}"#, "weight: invalid type"),
            (r#"{"weight": "5"}"#, "weight: invalid type"),
            (
                r#"{"weight": 65536}"#,
                "weight: invalid value: integer `65536`, expected a whole number",
            ),
            (
                r#"{"wieght": 5}"#,
                "unknown field `wieght`, expected one of `weight`, `tls`, `protocol`, `pool`, `backup`, `drain`, `max_requests` at line 1",
            ),
            (r#"{"weight": 1, "weight": 2}"#, "duplicate field `weight`"),
            (
                r#"{"tls": 5}"#,
                "tls: invalid type: integer `5`, expected true, false, or an object of \"sni\"",
            ),
            (
                r#"{"tls": []}"#,
                "tls: invalid type: sequence, expected true",
            ),
            (
                r#"{"tls": [null, null, true]}"#,
                "tls: invalid type: sequence, expected true",
            ),
            (
                r#"{"tls": {"insecure": "true"}}"#,
                "tls.insecure: invalid type: string \"true\", expected a boolean",
            ),
            (
                r#"{"tls": {"verify": false}}"#,
                "tls.verify: unknown field `verify`, expected one of `sni`, `ca`, `insecure`, `cert`, `key`",
            ),
            (
                r#"{"tls": {"sni": "a b"}}"#,
                "tls.sni: \"a b\" is no host name",
            ),
            (
                r#"{"pool": []}"#,
                "pool: invalid type: sequence, expected an object",
            ),
            (
                r#"{"pool": {"size": 5}}"#,
                "unknown field `size`, expected one of `idle_timeout`",
            ),
            (
                r#"{"pool": {"max_idle": 65536}}"#,
                "pool.max_idle: invalid value: integer `65536`, expected a whole number from 0 to 65535",
            ),
            (
                r#"{"pool": {"lifetime": "0s"}}"#,
                "pool.lifetime: \"0s\" is zero",
            ),
            (
                r#"{"pool": {"idle_timeout": "0s"}}"#,
                "pool.idle_timeout: \"0s\" is zero; \"max_idle\": 0 keeps none",
            ),
            (
                r#"{"pool": {"idle_timeout": 5}}"#,
                "pool.idle_timeout: invalid type",
            ),
            (
                r#"{"tls": {"cert": "x"}}"#,
                "tls.cert: it needs its \"key\"",
            ),
            (r#"{"tls": {"key": "x"}}"#, "tls.key: it needs its \"cert\""),
            (
                r#"{"tls": {"cert": "x", "key": ""}}"#,
                "tls.key: expected the path",
            ),
            (
                r#"{"protocol": "h3"}"#,
                "protocol: unknown variant `h3`, expected `http1` or `h2` at line 1",
            ),
            (
                r#"{"protocol": 2}"#,
                "protocol: invalid type: integer `2`, expected \"http1\" or \"h2\"",
            ),
            (
                r#"{"max_requests": 0}"#,
                "max_requests: invalid value: integer `0`, expected a whole number from 1 to 4294967295",
            ),
            (
                r#"{"a, expected `b`": 5}"#,
                "unknown field `a, expected `b``, expected one of `weight`",
            ),
            (r#"{"backup": 1}"#, "backup: invalid type"),
            (r#"{"max_requests": "5"}"#, "max_requests: invalid type"),
        ] {
            let error = UpstreamOptions::parse(value.as_bytes())
                .expect_err(value)
                .to_string();
            assert!(error.contains(expected), "{value}: {error}");
        }
        assert!(matches!(
            UpstreamOptions::parse(&vec![b'x'; MAX_VALUE + 1]),
            Err(BadValue::TooLong(_))
        ));
    }
}
