use super::*;

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
