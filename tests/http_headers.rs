//! Which header fields reach the other side, in both directions.

use serde_json::json;

use crate::support::{
    http::{Wire, ask},
    origin::Origin,
    waypost::Waypost,
};

const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Waypost in front of one origin, as host `a.test` with these settings.
async fn in_front_of(origin: &Origin, settings: serde_json::Value) -> Waypost {
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", origin, "").await;
    waypost
        .put("a.test", "@settings", &settings.to_string())
        .await;
    waypost
}

#[tokio::test]
async fn hop_by_hop_fields_stay_behind_on_the_way_in() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = in_front_of(&origin, json!({})).await;
    let response = ask(
        waypost.address(),
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close, X-One, cookie\r\nConnection:\r\n\
         Connection: x-two\r\nX-One: 1\r\nX-Two: 2\r\nCookie: c\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nX-Three: 3\r\n\
         Accept: a\r\nAccept: b\r\n\r\n",
    )
    .await;
    assert_eq!(response.status(), 200);
    let head = origin.latest().head;
    for gone in [
        "connection",
        "x-one",
        "x-two",
        "cookie",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "transfer-encoding",
        "content-length",
        "user-agent",
    ] {
        assert_eq!(head.all(gone), [""; 0], "{gone}");
    }
    assert_eq!(head.one("x-three"), Some("3"));
    assert_eq!(head.one("te"), Some("trailers"));
    assert_eq!(head.all("accept"), ["a", "b"]);
}

#[tokio::test]
async fn hop_by_hop_fields_stay_behind_on_the_way_out() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-One\r\nConnection: x-two\r\nX-One: 1\r\n\
         X-Two: 2\r\nKeep-Alive: timeout=20\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\
         X-Three: 3\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: origin\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let waypost = in_front_of(&origin, json!({})).await;
    let mut client = Wire::connect(waypost.address()).await;
    let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let head = &response.head;
    for gone in [
        "connection",
        "x-one",
        "x-two",
        "keep-alive",
        "proxy-connection",
        "upgrade",
    ] {
        assert_eq!(head.all(gone), [""; 0], "{gone}");
    }
    assert_eq!(head.one("x-three"), Some("3"));
    assert_eq!(head.one("server"), Some("origin"));
    assert_eq!(head.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(head.one("content-length"), Some("2"));
}

#[tokio::test]
async fn forwarded_fields_are_believed_from_trusted_proxies_only() {
    let claims = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 10.1.1.1\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: outer.example\r\n";
    for (trusted, addresses, proto, host) in [
        (None, "127.0.0.1", "http", "a.test:80"),
        (
            Some("127.0.0.0/8"),
            "203.0.113.9, 10.1.1.1, 127.0.0.1",
            "https",
            "outer.example",
        ),
        (Some("10.0.0.0/8"), "127.0.0.1", "http", "a.test:80"),
    ] {
        let origin = Origin::answering(EMPTY).await;
        let mut builder = Waypost::builder();
        if let Some(trusted) = trusted {
            builder = builder.flag("--trusted-proxies", trusted);
        }
        let waypost = builder.start().await;
        waypost.put("a.test", &origin, "").await;
        for connection in ["", "Connection: x-forwarded-for, X-Forwarded-Proto\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nHost: a.test:80\r\n{claims}{connection}\r\n");
            assert_eq!(ask(waypost.address(), request).await.status(), 200);
            let head = origin.latest().head;
            assert_eq!(head.one("x-forwarded-for"), Some(addresses), "{trusted:?}");
            assert_eq!(head.one("x-forwarded-proto"), Some(proto), "{trusted:?}");
            assert_eq!(head.one("x-forwarded-host"), Some(host), "{trusted:?}");
        }
    }
}

#[tokio::test]
async fn the_standards_field_is_written_and_believed_where_it_is_asked_for() {
    let lie = "Forwarded: for=6.6.6.6;proto=https;host=evil\r\n";
    let x = "X-Forwarded-For: 203.0.113.9, [2001:db8::1]:80, what\r\nX-Forwarded-Proto: https\r\n\
        X-Forwarded-Host: outer.example\r\n";
    let by_proxy = "Forwarded: for=6.6.6.6, for=\"[2001:db8::9]:1\";proto=https\r\nForwarded: for=10.1.1.1\r\n";
    let ours = "for=127.0.0.1;host=\"a.test:80\";proto=http";
    // The flag, whether the sender is trusted, what it claims; `Forwarded` and `X-Forwarded-For` upstream.
    type Case = (
        &'static str,
        bool,
        String,
        Option<String>,
        Option<&'static str>,
    );
    let cases: &[Case] = &[
        // Strangers: whatever they say is dropped.
        ("off", false, format!("{lie}{x}"), None, Some("127.0.0.1")),
        ("beside", false, format!("{lie}{x}"), Some(ours.into()), Some("127.0.0.1")),
        ("instead", false, format!("{lie}{x}"), Some(ours.into()), None),
        // Trusted proxies.
        ("off", true, lie.into(), Some("for=6.6.6.6;proto=https;host=evil".into()), Some("127.0.0.1")),
        (
            "beside",
            true,
            format!("{lie}{x}"),
            Some(
                "for=203.0.113.9;host=outer.example;proto=https, for=\"[2001:db8::1]\", for=unknown, for=127.0.0.1"
                    .into(),
            ),
            Some("203.0.113.9, [2001:db8::1]:80, what, 127.0.0.1"),
        ),
        ("beside", true, lie.into(), Some(ours.into()), Some("127.0.0.1")),
        (
            "instead",
            true,
            format!("{by_proxy}{x}"),
            Some(format!(
                "for=6.6.6.6, for=\"[2001:db8::9]:1\";proto=https, for=10.1.1.1, {ours}"
            )),
            None,
        ),
        ("instead", true, format!("Forwarded: for=\"\r\n{x}"), Some(ours.into()), None),
    ];
    for (how, trusted, claims, forwarded, x_forwarded) in cases {
        let what = format!("{how} {trusted} {claims}");
        let origin = Origin::answering(EMPTY).await;
        let mut builder = Waypost::builder().flag("--forwarded", how);
        if *trusted {
            builder = builder.flag("--trusted-proxies", "127.0.0.0/8");
        }
        let waypost = builder.start().await;
        waypost.put("a.test", &origin, "").await;
        for connection in ["", "Connection: Forwarded\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nHost: a.test:80\r\n{claims}{connection}\r\n");
            assert_eq!(ask(waypost.address(), request).await.status(), 200);
            let head = origin.latest().head;
            // In the first case it goes on as it came, and may be named away.
            if *how != "off" || connection.is_empty() {
                assert_eq!(head.one("forwarded"), forwarded.as_deref(), "{what}");
            }
            assert_eq!(head.one("x-forwarded-for"), *x_forwarded, "{what}");
            let told = x_forwarded.is_some();
            assert_eq!(head.one("x-forwarded-proto").is_some(), told, "{what}");
            assert_eq!(head.one("x-forwarded-host").is_some(), told, "{what}");
        }
    }
}

#[tokio::test]
async fn what_trusted_proxies_say_by_the_standards_field_decides() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = Waypost::builder()
        .flag("--trusted-proxies", "127.0.0.1/32,10.0.0.0/8")
        .flag("--forwarded", "instead")
        .flag("--access-log", "json")
        .start()
        .await;
    waypost.put("a.test", &origin, "").await;
    let settings = json!({"redirect_https": true}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    for (fields, status, client) in [
        (
            "Forwarded: for=192.0.2.1;proto=https\r\n",
            200,
            Some("192.0.2.1"),
        ),
        (
            "Forwarded: for=6.6.6.6;proto=http, for=\"[2001:db8::1]:9\";proto=https, for=10.0.0.1;proto=http\r\n",
            200,
            Some("2001:db8::1"),
        ),
        (
            "Forwarded: for=6.6.6.6;proto=https, for=192.0.2.1;proto=http\r\n",
            308,
            Some("192.0.2.1"),
        ),
        (
            "X-Forwarded-Proto: https\r\nX-Forwarded-For: 6.6.6.6\r\n",
            308,
            None,
        ),
    ] {
        let before = waypost.output().all().len();
        let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
        let response = ask(waypost.address(), request).await;
        assert_eq!(response.status(), status, "{fields}");
        let line = waypost.output().find(|lines| lines.get(before).cloned());
        let line: serde_json::Value = serde_json::from_str(&line.await.expect("a line")).unwrap();
        assert_eq!(line["forwarded_for"].as_str(), client, "{fields}");
    }
}

#[tokio::test]
async fn what_looks_like_a_forwarded_field_is_dropped_from_strangers() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = in_front_of(&origin, json!({})).await;
    let names = [
        "X_Forwarded_For",
        "X-Forwarded_Proto",
        "x_forwarded_host",
        "X-Real-IP",
        "X_Real_IP",
        "Forwarded",
        "X-Forwarded-Port",
    ];
    for name in names {
        let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{name}: 6.6.6.6\r\n\r\n");
        assert_eq!(ask(waypost.address(), request).await.status(), 200);
        let fields = origin.latest().head.fields;
        assert!(
            fields.iter().all(|(_, value)| value != "6.6.6.6"),
            "{name}: {fields:?}"
        );
    }
}

/// Who is trusted for what it says itself may pass on what its clients write.
#[tokio::test]
async fn spellings_of_a_forwarded_field_are_dropped_from_trusted_proxies_too() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = Waypost::builder()
        .flag("--trusted-proxies", "127.0.0.1")
        .start()
        .await;
    waypost.put("a.test", &origin, "").await;
    for (name, expected) in [
        ("X_Forwarded_For", None),
        ("X-Forwarded_Proto", None),
        ("X_Real-IP", None),
        ("X-Real-IP", Some("6.6.6.6")),
        ("X-Forwarded-Port", Some("6.6.6.6")),
        ("X_Forwarder", Some("6.6.6.6")),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{name}: 6.6.6.6\r\n\r\n");
        assert_eq!(ask(waypost.address(), request).await.status(), 200);
        let head = origin.latest().head;
        assert_eq!(head.one(&name.to_lowercase()), expected, "{name}");
    }
}

#[tokio::test]
async fn forwarded_fields_do_not_come_in_by_the_trailers() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = in_front_of(&origin, json!({})).await;
    let response = ask(
        waypost.address(),
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\nX-Forwarded-For: 6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\nX-Sum: 1\r\nHost: b.test\r\n\r\n",
    )
    .await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        origin.latest().trailers,
        [("x-sum".to_owned(), "1".to_owned())]
    );
}

#[tokio::test]
async fn rules_change_the_fields_of_requests() {
    let origin = Origin::answering(EMPTY).await;
    let rules = json!({"request_headers": {
        "set": {"X-Set": "ours", "X-Forwarded-Proto": "https"},
        "add": {"X-Add": "ours"},
        "remove": ["X-Gone", "X-Forwarded-For", "Y_Gone"],
    }});
    let waypost = in_front_of(&origin, rules).await;
    let response = ask(
        waypost.address(),
        "GET / HTTP/1.1\r\nHost: a.test\r\nX-Set: theirs\r\nX-Add: theirs\r\nX-Gone: x\r\nX-Kept: x\r\n\
         X_Set: theirs\r\nx_gone: x\r\nX_Kept: x\r\nY-Gone: x\r\n\r\n",
    )
    .await;
    assert_eq!(response.status(), 200);
    let head = origin.latest().head;
    assert_eq!(head.all("x-set"), ["ours"]);
    assert_eq!(head.all("x-add"), ["theirs", "ours"]);
    assert_eq!(head.all("x-gone"), [""; 0]);
    assert_eq!(head.all("x-kept"), ["x"]);
    assert_eq!(head.all("x_set"), [""; 0]);
    assert_eq!(head.all("x_gone"), [""; 0]);
    assert_eq!(head.all("x_kept"), ["x"]);
    assert_eq!(head.all("y-gone"), [""; 0]);
    assert_eq!(head.all("x-forwarded-for"), [""; 0]);
    assert_eq!(head.all("x-forwarded-proto"), ["https"]);
}

#[tokio::test]
async fn rules_change_the_fields_of_responses() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nX-Set: theirs\r\nX-Add: theirs\r\nX-Gone: x\r\nX-Kept: x\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let rules = json!({"response_headers": {
        "set": {"X-Set": "ours"}, "add": {"X-Add": "ours"}, "remove": ["X-Gone"],
    }});
    let waypost = in_front_of(&origin, rules).await;
    let head = ask(waypost.address(), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .head;
    assert_eq!(head.all("x-set"), ["ours"]);
    assert_eq!(head.all("x-add"), ["theirs", "ours"]);
    assert_eq!(head.all("x-gone"), [""; 0]);
    assert_eq!(head.all("x-kept"), ["x"]);
}

#[tokio::test]
async fn plain_requests_are_redirected_to_https_where_a_route_says_so() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = Waypost::builder()
        .flag("--trusted-proxies", "127.0.0.1/32")
        .start()
        .await;
    waypost.put("a.test", &origin, "").await;
    let settings = json!({"redirect_https": true}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut client = Wire::connect(waypost.address()).await;
    let response = client
        .ask("GET /x?y=%20 HTTP/1.1\r\nHost: A.test:3000\r\n\r\n")
        .await;
    assert_eq!(response.status(), 308);
    assert_eq!(
        response.head.one("location"),
        Some("https://a.test/x?y=%20")
    );
    let https = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Proto: https\r\n\r\n";
    assert_eq!(client.ask(https).await.status(), 200);
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn an_upstreams_400_is_passed_on_as_it_is() {
    for body in ["", "why"] {
        let length = body.len();
        let answer = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {length}\r\n\r\n{body}");
        let origin = Origin::answering(answer).await;
        let waypost = in_front_of(&origin, json!({})).await;
        let mut client = Wire::connect(waypost.address()).await;
        for _ in 0..2 {
            let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            assert_eq!((response.status(), response.text()), (400, body));
            assert_eq!(response.head.all("proxy-status"), [""; 0]);
        }
    }
}

#[tokio::test]
async fn odd_but_valid_heads_pass_both_ways() {
    let origin = Origin::answering(
        b"HTTP/1.1 299 Quite Fine\r\nX-Latin: \xe4\xf6\r\nX-Empty:\r\nX-Space:  a  b \t\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let waypost = in_front_of(&origin, json!({})).await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send(b"BREW / HTTP/1.1\r\nhOST: a.test\r\nX-Latin: \xe4\xf6\r\nX-Empty:\r\nX-Space:  a  b \t\r\n\r\n")
        .await;
    let answered = client.response("BREW").await;
    assert_eq!(answered.status(), 299);
    let asked = origin.latest();
    assert_eq!(asked.head.line, "BREW / HTTP/1.1");
    for head in [&asked.head, &answered.head] {
        assert_eq!(head.one("x-latin"), Some("\u{fffd}\u{fffd}"));
        assert_eq!(head.one("x-empty"), Some(""));
        assert_eq!(head.one("x-space"), Some("a  b"));
    }
}

#[tokio::test]
async fn lines_before_a_request_are_no_part_of_it() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = in_front_of(&origin, json!({})).await;
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..2 {
        let response = client
            .ask("\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            .await;
        assert_eq!(response.status(), 200);
        assert_eq!(origin.latest().head.line, "GET / HTTP/1.1");
    }
}
