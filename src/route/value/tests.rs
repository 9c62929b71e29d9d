//! What values say, and what is said of those that are wrong.

use std::time::Duration;

use super::*;
use crate::upstream::ClientFiles;

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
fn a_proxy_header_is_asked_for_by_its_version() {
    for (value, expected) in [
        ("{}", None),
        (r#"{"proxy_protocol": null, "protocol": "h2"}"#, None),
        (r#"{"proxy_protocol": "v1"}"#, Some(ProxyProtocol::V1)),
        (
            r#"{"proxy_protocol": "v2", "protocol": "http1", "tls": true}"#,
            Some(ProxyProtocol::V2),
        ),
    ] {
        let options = UpstreamOptions::parse(value.as_bytes()).expect(value);
        assert_eq!(options.proxy_protocol, expected, "{value}");
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
            "unknown field `wieght`, expected one of `weight`, `tls`, `protocol`, `pool`, `proxy_protocol`, `backup`, `drain`, `max_requests` at line 1",
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
            r#"{"proxy_protocol": "v3"}"#,
            "proxy_protocol: unknown variant `v3`, expected `v1` or `v2` at line 1",
        ),
        (
            r#"{"proxy_protocol": true}"#,
            "proxy_protocol: invalid type: boolean `true`, expected \"v1\" or \"v2\"",
        ),
        (
            r#"{"proxy_protocol": "v2", "protocol": "h2"}"#,
            "proxy_protocol: it tells of one client, and with \"protocol\": \"h2\" many share a connection",
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
