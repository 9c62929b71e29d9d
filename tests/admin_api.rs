//! The admin API of a real instance: what operators, dashboards and scripts rely on.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{etcd::EtcdCluster, load::ask, sample::Sample, waypost::Waypost};

#[tokio::test]
async fn status_says_what_is_served_and_where_it_came_from() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    etcd.put("/hosts/a.test/10.0.0.1:80", "").await;
    etcd.put("/hosts/a.test/api/10.0.0.1:80", "").await;
    etcd.put("/hosts/b.test/nonsense", "").await;
    let revision = etcd.put("/hosts/b.test/10.0.0.2:80", "").await;
    waypost.reached(revision).await;
    let status = waypost.api("/api/status").await;
    for (field, expected) in [
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("ready", json!(true)),
        ("draining", json!(false)),
        ("applied_revision", json!(revision)),
        ("observed_revision", json!(revision)),
        ("source", json!("etcd")),
        ("connected", json!(true)),
        ("stale_seconds", json!(null)),
        ("error", json!(null)),
        ("hosts", json!(2)),
        ("routes", json!(3)),
        ("members", json!(3)),
        ("rejected_keys", json!(1)),
    ] {
        assert_eq!(status[field], expected, "{field} in {status}");
    }
    assert!(status["uptime_seconds"].is_number(), "{status}");
    assert!(
        status["location"]
            .as_str()
            .unwrap()
            .contains(&etcd.endpoints()[0]),
        "{status}"
    );
    for name in status.as_object().unwrap().keys() {
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
            "{name}"
        );
    }
    assert_eq!(
        waypost.metric("waypost_revision", &[]).await as i64,
        revision
    );
}

#[tokio::test]
async fn routes_are_paged_without_gaps() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let puts: Vec<_> = (0..25)
        .map(|n| etcd_client::TxnOp::put(format!("/hosts/h{n:02}.test/10.0.0.1:80"), "", None))
        .collect();
    waypost.reached(etcd.txn(puts).await).await;
    let (mut seen, mut path) = (Vec::new(), "/api/routes?limit=10".to_owned());
    let mut pages = 0;
    loop {
        let page = waypost.api(&path).await;
        pages += 1;
        for route in page["routes"].as_array().unwrap() {
            seen.push(route["name"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/api/routes?limit=10&after={next}");
    }
    let expected: Vec<_> = (0..25).map(|n| format!("h{n:02}.test")).collect();
    assert_eq!((pages, seen), (3, expected));

    let page = waypost.api("/api/routes?host=H07.test.").await;
    let route = &page["routes"][0];
    assert_eq!(page["routes"].as_array().unwrap().len(), 1);
    for (field, expected) in [
        ("name", json!("h07.test")),
        ("host", json!("h07.test")),
        ("balance", json!("round-robin")),
        ("settings_key", json!(null)),
    ] {
        assert_eq!(route[field], expected, "{field} in {route}");
    }
    for (field, expected) in [
        ("upstream", json!("10.0.0.1:80")),
        ("key", json!("/hosts/h07.test/10.0.0.1:80")),
        ("weight", json!(1)),
        ("role", json!("serving")),
        ("protocol", json!("http1")),
        ("tls", json!(false)),
        ("proxy_protocol", json!(null)),
        ("resolved", json!(true)),
    ] {
        assert_eq!(route["members"][0][field], expected, "{field} in {route}");
    }
}

#[tokio::test]
async fn explain_says_what_a_request_then_meets() {
    let waypost = Waypost::builder().start().await;
    let sample = Sample::start().await;
    let settings = r#"{"strip_prefix": true, "add_prefix": "/base", "host_header": "upstream"}"#;
    waypost.put("a.test/api", &sample, "").await;
    waypost.put("a.test/api", "@settings", settings).await;
    waypost.put("secure.test", &sample, "").await;
    waypost
        .put("secure.test", "@settings", r#"{"redirect_https": true}"#)
        .await;
    waypost.put("empty.test", &sample, r#"{"weight": 0}"#).await;
    for (url, outcome, status) in [
        ("http://a.test/api/x?y=1", "forward", None),
        ("a.test/api", "forward", None),
        ("http://secure.test/x", "redirect", Some(308)),
        ("http://a.test/other", "no_path", Some(404)),
        ("http://b.test/", "no_host", Some(404)),
        ("http://empty.test/", "no_upstream", Some(503)),
    ] {
        let explained = waypost
            .api(&format!("/api/explain?url={}", encoded(url)))
            .await;
        assert_eq!(explained["outcome"], outcome, "{url}: {explained}");
        assert_eq!(explained["status"], json!(status), "{url}: {explained}");
        assert!(explained["reason"].is_string(), "{explained}");
        let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap();
        let answer = ask(waypost.address(), host, &format!("/{path}")).await;
        assert_eq!(answer.status(), status.unwrap_or(200), "{url} as explained");
    }
    let explained = waypost
        .api(&format!(
            "/api/explain?url={}",
            encoded("http://a.test/api/x?y=1")
        ))
        .await;
    assert_eq!(explained["forward"]["target"], "/base/x?y=1");
    assert_eq!(explained["forward"]["host"], sample.to_string());
    assert_eq!(
        explained["route"]["settings_key"],
        "/hosts/a.test/api/@settings"
    );
}

#[tokio::test]
async fn wait_answers_when_the_revision_is_applied_or_in_time() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let next = waypost.api("/api/status").await["applied_revision"]
        .as_i64()
        .unwrap()
        + 1;
    let path = format!("/api/wait?revision={next}&timeout=10s");
    let (waited, put) = tokio::join!(
        waypost.admin_get(&path),
        etcd.put("/hosts/a.test/10.0.0.1:80", "")
    );
    assert_eq!((waited.0, put), (200, next));
    let waited: Value = serde_json::from_str(&waited.1).unwrap();
    assert_eq!(waited["applied"], next);
    let (status, body) = waypost
        .admin_get("/api/wait?revision=99999&timeout=50ms")
        .await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 504);
    assert!(body["error"].as_str().unwrap().contains("99999"), "{body}");
}

#[tokio::test]
async fn wrong_requests_get_a_status_and_a_reason_in_json() {
    let waypost = Waypost::builder().start().await;
    for (request, status) in [
        ("GET /nothing", 404),
        ("GET /api", 404),
        ("GET /api/routes/a.test", 404),
        ("POST /api/status", 405),
        ("DELETE /metrics", 405),
        ("GET /api/routes?limit=0", 400),
        ("GET /api/routes?limit=ten", 400),
        ("GET /api/routes?limit=10001", 400),
        ("GET /api/routes?host=a%20b", 400),
        ("GET /api/routes?page=2", 400),
        ("GET /api/explain", 400),
        ("GET /api/explain?url=ftp://a.test/", 400),
        ("GET /api/explain?url=http://", 400),
        ("GET /api/wait", 400),
        ("GET /api/wait?revision=soon", 400),
        ("GET /api/wait?revision=1&timeout=5", 400),
    ] {
        let (answered, head, body) = raw(&waypost, request).await;
        assert_eq!(answered, status, "{request}: {body}");
        assert!(
            head.contains("content-type: application/json"),
            "{request}: {head}"
        );
        let body: Value = serde_json::from_str(&body).expect(request);
        assert!(
            body["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty()),
            "{request}"
        );
        if status == 405 {
            assert!(head.contains("\r\nallow: get"), "{request}: {head}");
        }
    }
}

#[tokio::test]
async fn metrics_parse_and_count_what_happened() {
    let waypost = Waypost::builder().start().await;
    let sample = Sample::start().await;
    waypost.put("a.test", &sample, "").await;
    for _ in 0..5 {
        ask(waypost.address(), "a.test", "/").await;
    }
    ask(waypost.address(), "b.test", "/").await;
    let (_, head, text) = raw(&waypost, "GET /metrics").await;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let (mut typed, mut helped) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.split(' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap().to_owned());
            assert!(
                name.starts_with("waypost_") || name.starts_with("process_"),
                "{line}"
            );
            if kind == "TYPE" && words.next() == Some("counter") {
                assert!(name.ends_with("_total"), "{line}");
            }
            match kind {
                "TYPE" => assert!(typed.insert(name), "{line} twice"),
                _ => assert!(helped.insert(name), "{line} twice"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        value.parse::<f64>().expect(line);
        let name = series.split('{').next().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|ending| {
            name.strip_suffix(ending)
                .is_some_and(|name| typed.contains(name))
        });
        assert!(typed.contains(name) || of_histogram, "{line} has no type");
    }
    assert_eq!(typed, helped);
    for (name, labels, expected) in [
        (
            "waypost_requests_total",
            &[("route", "a.test"), ("code", "2xx")][..],
            5.0,
        ),
        (
            "waypost_request_duration_seconds_count",
            &[("route", "a.test")],
            5.0,
        ),
        (
            "waypost_response_body_bytes_total",
            &[("route", "a.test")],
            5.0 * sample.to_string().len() as f64,
        ),
        ("waypost_unrouted_requests_total", &[], 1.0),
        ("waypost_connections_total", &[], 6.0),
        ("waypost_hosts", &[], 1.0),
        ("waypost_routes", &[], 1.0),
        ("waypost_rejected_keys", &[], 0.0),
        ("waypost_source_connected", &[], 1.0),
        ("waypost_source_stale_seconds", &[], 0.0),
    ] {
        assert_eq!(waypost.metric(name, labels).await, expected, "{name}");
    }
    let requests = waypost.metric("waypost_upstream_requests_total", &[]).await;
    assert_eq!(requests, 5.0);
}

#[tokio::test]
async fn the_status_page_is_whole_in_itself() {
    let waypost = Waypost::builder().start().await;
    let (status, head, body) = raw(&waypost, "GET /").await;
    assert_eq!(status, 200);
    assert!(
        head.contains("text/html") && head.contains("content-security-policy"),
        "{head}"
    );
    assert!(
        body.contains("Waypost") && body.contains("/api/status"),
        "{body}"
    );
    for elsewhere in ["src=\"http", "href=\"http", "@import"] {
        assert!(!body.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn the_admin_address_is_never_an_upstream() {
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", waypost.admin(), "").await;
    let answer = ask(waypost.address(), "a.test", "/api/status").await;
    assert!(matches!(answer.status().as_u16(), 502 | 503), "{answer:?}");
    assert!(!answer.body().contains("applied_revision"), "{answer:?}");
    let named = format!("localhost:{}", waypost.admin().port());
    waypost.put("b.test", named, "").await;
    let answer = ask(waypost.address(), "b.test", "/api/status").await;
    assert!(!answer.body().contains("applied_revision"), "{answer:?}");
}

/// `METHOD PATH`: status, head in lower case, and body.
async fn raw(waypost: &Waypost, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(waypost.admin()).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

fn encoded(text: &str) -> String {
    let set = percent_encoding::NON_ALPHANUMERIC;
    percent_encoding::utf8_percent_encode(text, set).to_string()
}
