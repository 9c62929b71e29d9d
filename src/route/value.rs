//! The value of an upstream's key: nothing, any text (both mean "defaults"), or a JSON object of options.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::json::{from_json, is_json_object, object};
use crate::upstream::{Protocol, TlsOptions};

/// Longest value we take, of an upstream or of settings, in bytes.
pub(super) const MAX_VALUE: usize = 64 * 1024;
const MAX_WEIGHT: u32 = 65_535;

/// Fields and variants that are [not supported yet](BadValue::NotSupportedYet).
const LATER: [&str; 3] = ["backup", "max_requests", "h2"];

/// The options of one upstream in one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamOptions {
    /// Its share of the requests, relative to its siblings; 0 (also: `drain`) gets none.
    pub weight: u32,
    /// TLS towards it.
    pub tls: Option<TlsOptions>,
    /// The HTTP version spoken to it.
    pub protocol: Protocol,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            weight: 1,
            tls: None,
            protocol: Protocol::Http1,
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
    pub(super) fn not_yet(feature: &str) -> Self {
        Self::NotSupportedYet(feature.to_owned())
    }

    pub(super) fn field(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::Field(format!("{field}: {problem}"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    weight: Option<Weight>,
    #[serde(default)]
    tls: Option<WrittenTls>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    backup: Option<bool>,
    #[serde(default)]
    drain: Option<bool>,
    #[serde(default)]
    max_requests: Option<u32>,
}

/// 0 to [`MAX_WEIGHT`].
struct Weight(u32);

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct WeightVisitor;

        impl de::Visitor<'_> for WeightVisitor {
            type Value = Weight;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 0 to {MAX_WEIGHT}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Weight, E> {
                match u32::try_from(number) {
                    Ok(weight) if weight <= MAX_WEIGHT => Ok(Weight(weight)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(number), &self)),
                }
            }
        }

        json.deserialize_u64(WeightVisitor)
    }
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected true, false, or an object of \"sni\", \"ca\" and \"insecure\""
)]
enum WrittenTls {
    Switch(bool),
    Options(#[serde(deserialize_with = "object")] WrittenTlsOptions),
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
}

impl UpstreamOptions {
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
        from_json::<Written>(value, &LATER)?.finish()
    }
}

impl Written {
    fn finish(self) -> Result<UpstreamOptions, BadValue> {
        if self.protocol == Some(Protocol::H2) {
            return Err(BadValue::not_yet("\"protocol\": \"h2\""));
        }
        if self.backup == Some(true) {
            return Err(BadValue::not_yet("\"backup\""));
        }
        if self.max_requests.is_some() {
            return Err(BadValue::not_yet("\"max_requests\""));
        }
        let weight = self.weight.map_or(1, |weight| weight.0);
        Ok(UpstreamOptions {
            weight: if self.drain == Some(true) { 0 } else { weight },
            tls: match self.tls {
                None | Some(WrittenTls::Switch(false)) => None,
                Some(WrittenTls::Switch(true)) => Some(TlsOptions::default()),
                Some(WrittenTls::Options(options)) => Some(options.finish()?),
            },
            protocol: Protocol::Http1,
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
        if self.ca.as_deref() == Some("") {
            return Err(BadValue::field("tls.ca", "expected the path of a PEM file"));
        }
        Ok(TlsOptions {
            sni: self.sni,
            ca: self.ca,
            insecure: self.insecure.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
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
        for (value, weight, tls) in [
            (r#"{"weight": 5}"#, 5, None),
            (r#"{"weight": 0}"#, 0, None),
            (r#"{"weight": 5, "drain": true}"#, 0, None),
            (r#"{"weight": 5, "drain": false}"#, 5, None),
            (r#"{"tls": true}"#, 1, Some(TlsOptions::default())),
            (
                r#"{"tls": {"sni": "a.example", "ca": "/ca.pem", "insecure": true}, "protocol": "http1"}"#,
                1,
                Some(TlsOptions {
                    sni: Some("a.example".into()),
                    ca: Some("/ca.pem".into()),
                    insecure: true,
                }),
            ),
        ] {
            let options = UpstreamOptions::parse(value.as_bytes()).expect(value);
            assert_eq!((options.weight, options.tls), (weight, tls), "{value}");
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
                "unknown field `wieght`, expected one of `weight`, `tls`, `protocol`, `drain` at line 1",
            ),
            (r#"{"weight": 1, "weight": 2}"#, "duplicate field `weight`"),
            (r#"{"tls": 5}"#, "tls: expected true, false"),
            (r#"{"tls": []}"#, "tls: expected true, false"),
            (
                r#"{"tls": [null, null, true]}"#,
                "tls: expected true, false",
            ),
            (
                r#"{"tls": {"sni": "a b"}}"#,
                "tls.sni: \"a b\" is no host name",
            ),
            (r#"{"tls": {"cert": "x"}}"#, "tls: expected true, false"),
            (
                r#"{"protocol": "h3"}"#,
                "protocol: unknown variant `h3`, expected `http1` at line 1",
            ),
            (
                r#"{"a, expected `b`": 5}"#,
                "unknown field `a, expected `b``, expected one of `weight`",
            ),
            (
                r#"{"protocol": "h2"}"#,
                "\"protocol\": \"h2\" is not supported yet",
            ),
            (r#"{"backup": true}"#, "\"backup\" is not supported yet"),
            (r#"{"backup": 1}"#, "backup: invalid type"),
            (
                r#"{"max_requests": 5}"#,
                "\"max_requests\" is not supported yet",
            ),
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
