//! Which upstream a request reaches, and what its target is there.

use serde_json::json;

use crate::support::{
    http::{Wire, ask, get},
    origin::Origin,
    waypost::Waypost,
};

#[tokio::test]
async fn the_most_specific_host_wins_and_then_the_longest_prefix() {
    let names = ["exact", "wild", "deep", "any", "api", "v2"];
    let waypost = Waypost::builder().start().await;
    let routes = [
        "a.test",
        "*.test",
        "*.b.test",
        "*",
        "a.test/api",
        "a.test/api/v2",
    ];
    let mut origins = Vec::new();
    for (name, route) in names.iter().zip(routes) {
        let origin = Origin::named(name).await;
        waypost.put(route, &origin, "").await;
        origins.push(origin);
    }
    for (host, path, name) in [
        ("a.test", "/", "exact"),
        ("A.TEST", "/", "exact"),
        ("a.test.", "/", "exact"),
        ("a.test:8080", "/", "exact"),
        ("c.test", "/", "wild"),
        ("d.c.test", "/", "wild"),
        ("c.b.test", "/", "deep"),
        ("b.test", "/", "wild"),
        ("elsewhere.example", "/", "any"),
        ("127.0.0.1", "/", "any"),
        ("[::1]:80", "/", "any"),
        ("a.test", "/api", "api"),
        ("a.test", "/api/", "api"),
        ("a.test", "/api?x", "api"),
        ("a.test", "/api/v1", "api"),
        ("a.test", "/apix", "exact"),
        ("a.test", "/api/v2/x", "v2"),
        ("a.test", "/%61pi/v2", "v2"),
        ("c.test", "/api", "wild"),
    ] {
        let response = get(waypost.address(), host, path).await;
        assert_eq!(response.status(), 200, "{host}{path}: {response:?}");
        assert_eq!(response.text(), name, "{host}{path}");
    }
}

#[tokio::test]
async fn path_and_query_arrive_byte_for_byte() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    for (sent, arrives) in [
        ("/", "/"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%2fb/../c/./d//e", "/a%2fb/../c/./d//e"),
        ("/?a;b&%zz&c=%2f", "/?a;b&%zz&c=%2f"),
        ("/?", "/?"),
        ("/a?b?c", "/a?b?c"),
        ("/~'()*!$&,;=:@", "/~'()*!$&,;=:@"),
        ("/\"{}|^[]\\", "/\"{}|^[]\\"),
        ("/a#fragment", "/a"),
        ("/a?b#c", "/a?b"),
        ("http://a.test/x?y", "/x?y"),
        ("http://a.test", "/"),
        ("http://A.test:80/x", "/x"),
    ] {
        let response = get(waypost.address(), "a.test", sent).await;
        // Some of these are no URIs; what isn't passed on untouched is refused.
        if response.status() == 400 {
            assert!(sent.contains(['"', '{', '\\']), "{sent}: {response:?}");
            continue;
        }
        assert_eq!(response.status(), 200, "{sent}: {response:?}");
        assert_eq!(origin.latest().head.line, format!("GET {arrives} HTTP/1.1"));
    }
}

#[tokio::test]
async fn an_asterisk_is_asked_of_the_host() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let response = ask(
        waypost.address(),
        "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n",
    )
    .await;
    assert_eq!(response.status(), 200, "{response:?}");
    assert_eq!(origin.latest().head.line, "OPTIONS * HTTP/1.1");
}

#[tokio::test]
async fn prefixes_are_stripped_and_added() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    let strip = json!({"strip_prefix": true}).to_string();
    let both = json!({"strip_prefix": true, "add_prefix": "/base"}).to_string();
    let add = json!({"add_prefix": "/base/"}).to_string();
    for (route, settings) in [
        ("strip.test/api", &strip),
        ("both.test/api/v1", &both),
        ("add.test", &add),
    ] {
        waypost.put(route, &origin, "").await;
        waypost.put(route, "@settings", settings).await;
    }
    for (host, sent, arrives) in [
        ("strip.test", "/api", "/"),
        ("strip.test", "/api/", "/"),
        ("strip.test", "/api?q=1", "/?q=1"),
        ("strip.test", "/api/x", "/x"),
        ("strip.test", "/api/x%2Fy?z", "/x%2Fy?z"),
        ("both.test", "/api/v1", "/base"),
        ("both.test", "/api/v1?q", "/base?q"),
        ("both.test", "/api/v1/", "/base/"),
        ("both.test", "/api/v1/x", "/base/x"),
        ("add.test", "/", "/base/"),
        ("add.test", "/x", "/base/x"),
        ("add.test", "/x?y", "/base/x?y"),
    ] {
        let response = get(waypost.address(), host, sent).await;
        assert_eq!(response.status(), 200, "{host}{sent}: {response:?}");
        let line = format!("GET {arrives} HTTP/1.1");
        assert_eq!(origin.latest().head.line, line, "{host}{sent}");
    }
}

#[tokio::test]
async fn a_prefix_that_can_not_be_stripped_as_spelled_is_400() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test/api", &origin, "").await;
    let settings = json!({"strip_prefix": true}).to_string();
    waypost.put("a.test/api", "@settings", &settings).await;
    for path in ["/%61pi/x", "/x/../api/y", "//api/x"] {
        let response = get(waypost.address(), "a.test", path).await;
        match response.status() {
            400 => assert_eq!(response.error(), "http_request_error", "{path}"),
            404 => assert_eq!(response.error(), "destination_not_found", "{path}"),
            _ => {
                let line = origin.latest().head.line;
                assert_eq!(line, "GET /x HTTP/1.1", "{path}");
                assert_eq!(path, "/%61pi/x", "only its spelling differs");
            }
        }
    }
}

#[tokio::test]
async fn the_host_an_upstream_sees_is_a_setting() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    let address = origin.to_string();
    for (host, mode, seen) in [
        ("p.test", json!({}), "p.test:81"),
        ("q.test", json!({"host_header": "preserve"}), "q.test:81"),
        ("u.test", json!({"host_header": "upstream"}), &address),
        (
            "l.test",
            json!({"host_header": "inner.example"}),
            "inner.example",
        ),
    ] {
        waypost.put(host, &origin, "").await;
        waypost.put(host, "@settings", &mode.to_string()).await;
        let response = get(waypost.address(), &format!("{host}:81"), "/").await;
        assert_eq!(response.status(), 200);
        let head = origin.latest().head;
        assert_eq!(head.one("host"), Some(seen), "{mode}");
        assert_eq!(
            head.one("x-forwarded-host"),
            Some(&*format!("{host}:81")),
            "{mode}"
        );
    }
}

#[tokio::test]
async fn requests_are_spread_evenly_and_connections_kept() {
    let origins = [
        Origin::named("0").await,
        Origin::named("1").await,
        Origin::named("2").await,
    ];
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    for origin in &origins {
        waypost.put("a.test", origin, "").await;
    }
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..30 {
        let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(response.status(), 200);
    }
    for origin in &origins {
        assert_eq!(origin.requests().len(), 10);
        assert_eq!(origin.connections(), 1);
    }
}

#[tokio::test]
async fn upstreams_may_be_reached_over_unix_sockets_and_ipv6() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("origin.sock");
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n";
    let local = Origin::run_unix(
        path,
        crate::support::origin::answer_all(format!("{answer}u")),
    )
    .await;
    let six = Origin::run_at(
        "[::1]:0",
        crate::support::origin::answer_all(format!("{answer}6")),
    )
    .await;
    let waypost = Waypost::builder().start().await;
    let upstream = json!({"host_header": "upstream"}).to_string();
    for (host, origin, text, seen) in [
        ("unix.test", &local, "u", "localhost".to_owned()),
        ("six.test", &six, "6", six.to_string()),
    ] {
        waypost.put(host, origin, "").await;
        waypost.put(host, "@settings", &upstream).await;
        let response = get(waypost.address(), host, "/").await;
        assert_eq!(response.text(), text, "{response:?}");
        assert_eq!(origin.latest().head.one("host"), Some(&*seen));
    }
}
