use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::*;
use crate::{
    route::settings::{HashOn, HeaderRules, Retries, RetryOn, Sticky},
    upstream::ejection::Outlier,
};

#[test]
fn an_empty_object_means_defaults() {
    assert_eq!(parse(b"{}"), Ok(Settings::default()));
    assert_eq!(
        parse(br#"{"balance": null, "sticky": null, "timeouts": {"request": null}}"#),
        Ok(Settings::default())
    );
    assert_eq!(parse(br#"{"timeouts": null}"#), Ok(Settings::default()));
}

#[test]
fn what_a_request_is_balanced_by_is_read() {
    let hash_on = |text: &str| parse(text.as_bytes()).expect(text).hash_on;
    for (value, expected) in [
        (r#"{"balance": "hash"}"#, HashOn::ClientIp),
        (r#"{"hash_on": "client-ip"}"#, HashOn::ClientIp),
        (r#"{"hash_on": "path"}"#, HashOn::Path),
        (
            r#"{"hash_on": "header:X-User"}"#,
            HashOn::Header(HeaderName::from_static("x-user")),
        ),
        (r#"{"hash_on": "cookie:Id"}"#, HashOn::Cookie("Id".into())),
    ] {
        assert_eq!(hash_on(value), expected, "{value}");
    }
    let sticky = |text: &str| parse(text.as_bytes()).expect(text).sticky;
    assert_eq!(
        sticky(r#"{"sticky": {"cookie": "waypost", "ttl": "1h"}}"#),
        Some(Sticky {
            cookie: "waypost".into(),
            ttl: Some(Duration::from_secs(3600)),
        })
    );
    let year = sticky(r#"{"sticky": {"cookie": "at", "ttl": "400days"}}"#);
    let days = year.expect("sticky").ttl.expect("a life").as_secs() / 86_400;
    assert_eq!(days, 400, "longer than anything else may be");
    let session = sticky(r#"{"balance": "least-request", "sticky": {"cookie": "at"}}"#);
    assert_eq!(session.expect("sticky").ttl, None);
}

#[test]
fn what_becomes_of_upstreams_that_fail_is_read() {
    let settings = parse(
        br#"{"outlier": {"consecutive_failures": 3, "ejection": "10s", "max_ejected_percent": 30,
                         "failure_percent": 40, "min_requests": 50},
             "panic_percent": 0, "slow_start": "20s"}"#,
    );
    let outlier = Outlier {
        consecutive_failures: 3,
        ejection: Duration::from_secs(10),
        max_ejected_percent: 30,
        failure_percent: std::num::NonZeroU8::new(40),
        min_requests: 50,
    };
    let expected = Settings {
        outlier,
        panic_percent: 0,
        slow_start: Some(Duration::from_secs(20)),
        ..Settings::default()
    };
    assert_eq!(settings, Ok(expected));
    let outlier = parse(br#"{"outlier": {"ejection": "1m"}}"#).map(|settings| settings.outlier);
    let expected = Outlier {
        ejection: Duration::from_secs(60),
        ..Outlier::default()
    };
    assert_eq!(outlier, Ok(expected));
}

#[test]
fn everything_in_force_is_read() {
    let settings = parse(
        br#"{"balance": "random", "host_header": "app.internal:8080", "strip_prefix": true, "add_prefix": "/base/",
             "normalize_path": "forward", "add_query": "key=v%20w&x",
             "request_headers": {"set": {"X-A": "1"}, "add": {"x-b": "2"}, "remove": ["Cookie"]},
             "response_headers": {"remove": ["server"]}, "redirect_https": true,
             "timeouts": {"connect": "250ms", "response": "10s", "idle": "1m", "queue": "3s", "request": "2m", "client_body": "5m"},
             "retries": {"attempts": 2, "on": ["connect", "503"], "budget_percent": 10}, "max_body": "64KiB",
             "max_requests": 1000, "max_queue": 0}"#,
    )
    .expect("valid settings");
    let name = HeaderName::from_static;
    let value = HeaderValue::from_static;
    let expected = Settings {
        balance: Some(Balance::Random),
        host_header: HostHeader::Literal(value("app.internal:8080")),
        normalize_path: NormalizePath::Forward,
        strip_prefix: true,
        add_prefix: "/base".into(),
        add_query: "key=v%20w&x".into(),
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
            queue: Duration::from_secs(3),
            client_body: Some(Duration::from_secs(300)),
            request: Some(Duration::from_secs(120)),
        },
        retries: Retries {
            attempts: 2,
            on: RetryOn {
                connect: true,
                reset: false,
                bad_gateway: false,
                unavailable: true,
                gateway_timeout: false,
            },
            budget_percent: 10,
            keeps_bodies: true,
        },
        max_requests: std::num::NonZeroU32::new(1000),
        max_queue: 0,
        max_body: Some(65536),
        ..Settings::default()
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
        (
            r#"{"timeouts": ["1s"]}"#,
            "timeouts: invalid type: sequence",
        ),
        (
            r#"{"request_headers": [{"a": "b"}]}"#,
            "request_headers: invalid type: sequence",
        ),
        (
            r#"{"sticky": ["c", null]}"#,
            "sticky: invalid type: sequence",
        ),
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
        (
            r#"{"add_query": "?a=b"}"#,
            "add_query: \"?a=b\" starts with \"?\"",
        ),
        (r#"{"add_query": "a b"}"#, "must be percent-encoded"),
        (r#"{"add_query": "a#b"}"#, "must be percent-encoded"),
        (
            r#"{"normalize_path": "on"}"#,
            "normalize_path: unknown variant `on`, expected one of `lookup`, `forward`, `off`",
        ),
        (
            r#"{"normalize_path": true}"#,
            "normalize_path: invalid type: boolean `true`, expected one of \"lookup\", \"forward\" and \"off\"",
        ),
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
        (
            r#"{"health": {"interval": "99ms"}}"#,
            "health.interval: 99ms is not from 100ms to 1h",
        ),
        (r#"{"health": {"interval": "2h"}}"#, "health.interval"),
        (
            r#"{"health": {"timeout": "61s"}}"#,
            "health.timeout: 61s is over the limit of 1 minute",
        ),
        (
            r#"{"health": {"healthy": 0}}"#,
            "health.healthy: invalid value: integer `0`, expected a whole number from 1 to 100",
        ),
        (
            r#"{"health": {"unhealthy": 101}}"#,
            "health.unhealthy: invalid value: integer `101`",
        ),
        (
            r#"{"health": {"path": "healthz"}}"#,
            "health.path: \"healthz\" is no path",
        ),
        (r#"{"health": {"path": "/a b"}}"#, "health.path"),
        (r#"{"health": {"path": "/a#b"}}"#, "health.path"),
        (r#"{"health": {"path": "/a\r\nX: y"}}"#, "health.path"),
        (r#"{"health": {"path": "/ü"}}"#, "health.path"),
        (r#"{"health": {"path": "http://a/b"}}"#, "health.path"),
        (
            r#"{"health": {"path": "/", "expect": "2xx"}}"#,
            "health.expect: \"2xx\" is no list",
        ),
        (
            r#"{"health": {"expect": "200"}}"#,
            "health.expect: statuses come in answer to a path",
        ),
        (
            r#"{"health": {"initial": "dead"}}"#,
            "health.initial: unknown variant `dead`",
        ),
        (r#"{"health": {"port": 80}}"#, "unknown field `port`"),
        (
            r#"{"panic_percent": 101}"#,
            "panic_percent: invalid value: integer `101`, expected a whole number from 0 to 100",
        ),
        (
            r#"{"retries": {"budget_percent": 1000}}"#,
            "retries.budget_percent: invalid value: integer `1000`, expected a whole number from 0 to 100",
        ),
        (
            r#"{"retries": {"attempts": -1}}"#,
            "retries.attempts: invalid type: integer `-1`, expected a whole number from 0 to 10",
        ),
        (
            r#"{"retries": {"on": ["connect", 502]}}"#,
            "retries.on[1]: invalid type: integer `502`, expected one of \"connect\", \"reset\", \"502\", ",
        ),
        (
            r#"{"retries": {"on": ["500"]}}"#,
            "retries.on[0]: unknown variant `500`, expected one of `connect`, `reset`, `502`",
        ),
        (
            r#"{"max_queue": 100001}"#,
            "max_queue: invalid value: integer `100001`, expected a whole number from 0 to 100000",
        ),
        (
            r#"{"outlier": {"consecutive_failures": 5000000000}}"#,
            "outlier.consecutive_failures: invalid value: integer `5000000000`, expected a whole number from 0 to 1000",
        ),
        (
            r#"{"balance": true}"#,
            "balance: invalid type: boolean `true`, expected one of \"round-robin\", \"random\", ",
        ),
        (
            r#"{"health": {"initial": 1}}"#,
            "health.initial: invalid type: integer `1`, expected \"healthy\" or \"unhealthy\"",
        ),
        (
            r#"{"timeouts": {"idle": "1M"}}"#,
            "timeouts.idle: \"1M\" has an \"M\", which would be months",
        ),
        (
            r#"{"sticky": {"cookie": "at", "ttl": "1M"}}"#,
            "sticky.ttl: \"1M\" has an \"M\"",
        ),
        (
            r#"{"sticky": {"cookie": "at", "ttl": "999ms"}}"#,
            "sticky.ttl: \"999ms\" is under 1 second",
        ),
        (
            r#"{"sticky": {"cookie": "at", "ttl": "401days"}}"#,
            "sticky.ttl: \"401days\" is over 400 days",
        ),
    ] {
        let error = parse(value.as_bytes()).expect_err(value).to_string();
        assert!(error.contains(expected), "{value}: {error}");
    }
}

#[test]
fn health_checks_are_what_was_asked_for_or_the_defaults() {
    use crate::upstream::health::{CheckSettings, Initial};
    let health = |value: &str| parse(value.as_bytes()).expect(value).health;
    assert_eq!(health("{}"), None);
    assert_eq!(health(r#"{"health": null}"#), None);
    let default = CheckSettings::default();
    assert_eq!(health(r#"{"health": {}}"#), Some(default.clone().into()));
    let written = r#"{"health": {"path": "/up?deep=1", "interval": "100ms", "timeout": "1m", "healthy": 1,
        "unhealthy": 100, "expect": "200,300-302", "initial": "unhealthy"}}"#;
    let expected = CheckSettings {
        path: Some("/up?deep=1".into()),
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(60),
        healthy: 1,
        unhealthy: 100,
        expect: "200,300-302".parse().unwrap(),
        initial: Initial::Unhealthy,
    };
    assert_eq!(health(written), Some(expected.into()));
}
