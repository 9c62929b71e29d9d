//! HTTP/2 upstreams: what they are asked, what of their answers arrives, and how requests share connections.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use h2::server::Builder;
use http::HeaderMap;
use serde_json::json;
use tokio::{
    sync::{Barrier, Semaphore},
    task::JoinSet,
};

use crate::support::{
    h2_client::{self, H2Client},
    h2_origin::{Exchange, H2Origin, head, request, trailers},
    http::{Wire, ask, get},
    origin::Origin,
    tls::Authority,
    waypost::{Waypost, eventually},
};

const H2: &str = r#"{"protocol": "h2"}"#;

async fn one_worker() -> Waypost {
    Waypost::builder().flag("--workers", 1).start().await
}

/// GETs at the same time, each on a connection of its own; what they were answered.
async fn crowd(waypost: &Waypost, count: usize) -> Vec<(u16, String)> {
    let address = waypost.address();
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn(async move {
            let answer = get(address, "a.test", "/").await;
            (answer.status(), answer.text().to_owned())
        });
    }
    clients.join_all().await
}

#[tokio::test]
async fn requests_share_a_connection_and_its_dial() {
    let barrier = Arc::new(Barrier::new(60));
    let origin = H2Origin::each(move |exchange| {
        let barrier = barrier.clone();
        async move {
            // Nobody is answered before all have asked.
            barrier.wait().await;
            exchange.say("ok");
        }
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    for _ in 0..2 {
        let answers = crowd(&waypost, 60).await;
        assert!(answers.iter().all(|answer| *answer == (200, "ok".into())));
    }
    assert_eq!(origin.connections(), 1);
    let labels = [("upstream", &*origin.to_string())];
    for (name, value) in [
        ("waypost_upstream_requests_total", 120.0),
        ("waypost_upstream_connects_total", 1.0),
        ("waypost_upstream_failures_total", 0.0),
    ] {
        assert_eq!(waypost.metric(name, &labels).await, value, "{name}");
    }
}

#[tokio::test]
async fn an_upstreams_limit_of_streams_is_kept_and_further_connections_are_opened() {
    let running = Arc::new(Mutex::new(BTreeMap::<usize, usize>::new()));
    let gate = Arc::new(Semaphore::new(0));
    let mut builder = Builder::new();
    builder.max_concurrent_streams(3);
    let origin = H2Origin::run(builder, {
        let (running, gate) = (running.clone(), gate.clone());
        move |served| {
            let (running, gate) = (running.clone(), gate.clone());
            served.each(move |exchange: Exchange| {
                let (running, gate) = (running.clone(), gate.clone());
                async move {
                    let connection = exchange.asked.connection;
                    let count = {
                        let mut running = running.lock().unwrap();
                        let count = running.entry(connection).or_default();
                        *count += 1;
                        *count
                    };
                    gate.acquire().await.unwrap().forget();
                    *running.lock().unwrap().get_mut(&connection).unwrap() -= 1;
                    exchange.say(count.to_string());
                }
            })
        }
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let asking = async { crowd(&waypost, 20).await };
    let answering = async {
        origin.asked(20).await;
        gate.add_permits(20);
    };
    let (answers, ()) = tokio::join!(asking, answering);
    let most = answers.iter().map(|(status, text)| {
        assert_eq!(*status, 200, "{text}");
        text.parse::<usize>().unwrap()
    });
    assert_eq!(most.max(), Some(3));
    assert_eq!(origin.connections(), 7, "20 requests, 3 each");
}

#[tokio::test]
async fn a_request_waits_for_a_stream_no_longer_than_for_a_connection() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(0);
    let origin = H2Origin::run(builder, |served| served.each(async |x| x.say("ok"))).await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let settings = json!({"timeouts": {"connect": "300ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let answer = get(waypost.address(), "a.test", "/").await;
    assert_eq!(
        (answer.status(), answer.error()),
        (503, "connection_limit_reached")
    );
    assert_eq!(origin.connections(), 1, "another would allow no more");
}

#[tokio::test]
async fn heads_arrive_as_http2_has_them() {
    let origin = H2Origin::named("ok").await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let answer = ask(
        waypost.address(),
        "PUT /a%2Fb//c?d=%zz HTTP/1.1\r\nHost: A.test:80\r\nConnection: close, X-Mine\r\n\
         X-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nUpgrade: x\r\nTE: trailers, gzip\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX-Other: a\r\nX-Other: b\r\nCookie: a=1; b=2\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!((answer.status(), answer.text()), (200, "ok"));
    assert_eq!(answer.head.one("content-length"), None);
    let asked = origin.latest();
    assert_eq!(
        (asked.head.method.as_str(), asked.head.uri.to_string()),
        ("PUT", "http://A.test:80/a%2Fb//c?d=%zz".to_owned())
    );
    for (name, value) in [
        ("te", Some("trailers")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("A.test:80")),
        ("x-other", Some("a|b")),
        ("cookie", Some("a=1; b=2")),
        ("x-mine", None),
        ("connection", None),
        ("keep-alive", None),
        ("proxy-connection", None),
        ("upgrade", None),
        ("transfer-encoding", None),
        ("content-length", None),
        ("host", None),
    ] {
        assert_eq!(asked.field(name).as_deref(), value, "{name}");
    }
    let client = H2Client::connect(waypost.address()).await;
    let mut asking = request("POST", "/");
    for crumb in ["a=1", "b=2"] {
        let crumb = crumb.parse().unwrap();
        asking.headers_mut().append("cookie", crumb);
    }
    asking
        .headers_mut()
        .insert("content-length", "0".parse().unwrap());
    client.ask(asking).await.unwrap();
    assert_eq!(origin.latest().field("cookie").as_deref(), Some("a=1|b=2"));
    assert_eq!(
        origin.latest().field("content-length").as_deref(),
        Some("0")
    );
}

#[tokio::test]
async fn the_authority_follows_host_header_and_rules_and_prefixes_apply() {
    let origin = H2Origin::named("ok").await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let own = origin.to_string();
    for (host_header, authority) in [
        ("preserve", "a.test"),
        ("upstream", &*own),
        ("b.test:8", "b.test:8"),
    ] {
        let settings = json!({
            "host_header": host_header, "strip_prefix": true, "add_prefix": "/base",
            "request_headers": {"set": {"x-set": host_header}},
        });
        let settings = settings.to_string();
        waypost.put("a.test", "@settings", &settings).await;
        let answer = get(waypost.address(), "a.test", "/x?y").await;
        assert_eq!(answer.status(), 200, "{host_header}");
        let asked = origin.latest();
        assert_eq!(
            asked.head.uri.to_string(),
            format!("http://{authority}/base/x?y")
        );
        assert_eq!(asked.field("x-set").as_deref(), Some(host_header));
    }
    let answer = ask(waypost.address(), "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn answers_arrive_whole_with_every_framing() {
    let origin = H2Origin::each(async |mut exchange| {
        let path = exchange.asked.head.uri.path().to_owned();
        match path.as_str() {
            "/length" => {
                let length = [
                    ("content-length", "5"),
                    ("set-cookie", "a"),
                    ("set-cookie", "b"),
                ];
                let mut stream = exchange.head(200, &length, false);
                stream.send_data("hello".into(), true).unwrap();
            }
            "/unknown" => exchange.say("hello"),
            "/late-end" => {
                let mut stream = exchange.head(200, &[("content-length", "0")], false);
                stream.send_data(Bytes::new(), true).unwrap();
            }
            "/head" => drop(exchange.head(200, &[("content-length", "99")], true)),
            "/204" => drop(exchange.head(204, &[], true)),
            "/304" => drop(exchange.head(304, &[], true)),
            path => panic!("{path}"),
        }
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let client = H2Client::connect(waypost.address()).await;
    let mut wire = Wire::connect(waypost.address()).await;
    for (method, path, status, length, body) in [
        ("GET", "/length", 200, Some("5"), "hello"),
        ("GET", "/unknown", 200, None, "hello"),
        ("GET", "/late-end", 200, Some("0"), ""),
        ("HEAD", "/head", 200, Some("99"), ""),
        ("GET", "/204", 204, None, ""),
        ("GET", "/304", 304, None, ""),
    ] {
        let answer = client.ask(request(method, path)).await.unwrap();
        assert_eq!((answer.status(), answer.text()), (status, body), "{path}");
        // Over HTTP/2 the end of the stream says that there is nothing.
        let length_2 = length.filter(|&length| length != "0");
        assert_eq!(answer.field("content-length"), length_2, "{path}");
        let asking = format!("{method} {path} HTTP/1.1\r\nHost: a.test\r\n\r\n");
        let answer = wire.ask(asking).await;
        assert_eq!((answer.status(), answer.text()), (status, body), "{path}");
        assert_eq!(answer.head.one("content-length"), length, "{path}");
        assert!(answer.whole, "{path}");
        if path == "/length" {
            assert_eq!(answer.head.all("set-cookie"), ["a", "b"]);
        }
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let origin = H2Origin::each(async |mut exchange| {
        let (body, _) = exchange.read().await;
        let mut stream = exchange.head(200, &[], false);
        stream.send_data(body, true).unwrap();
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut wire = Wire::connect(waypost.address()).await;
    for _ in 0..2 {
        let mut asking = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        asking.extend(&body);
        let answer = wire.ask(asking).await;
        assert!(answer.status() == 200 && answer.body == body);
    }
}

#[tokio::test]
async fn grpc_passes_trailers_and_all_and_streams_both_ways_at_once() {
    let origin = H2Origin::each(async |mut exchange| {
        let grpc = [("content-type", "application/grpc")];
        if exchange.asked.head.uri.path() == "/refused" {
            let ends = [grpc[0], ("grpc-status", "12")];
            exchange.head(200, &ends, true);
            return;
        }
        let mut stream = exchange.head(200, &grpc, false);
        // Each message is answered before the next one comes.
        while let Some(Ok(data)) = exchange.body.data().await {
            let _ = exchange.body.flow_control().release_capacity(data.len());
            stream.send_data(data, false).unwrap();
        }
        let sum = exchange.body.trailers().await.unwrap().unwrap_or_default();
        let sum = sum.get("x-sum").map_or("none", |sum| sum.to_str().unwrap());
        let ends = trailers(&[("grpc-status", "0"), ("x-sum", sum)]);
        stream.send_trailers(ends).unwrap();
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let client = H2Client::connect(waypost.address()).await;
    let with_te = |path| {
        let mut asking = request("POST", path);
        let te = "trailers".parse().unwrap();
        asking.headers_mut().insert("te", te);
        asking
    };
    let (response, mut sending) = client.open(with_te("/talk"), false).await;
    sending.send_data("0".into(), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    for round in 1..20 {
        let echo = body.data().await.unwrap().unwrap();
        assert_eq!(echo, (round - 1).to_string());
        let _ = body.flow_control().release_capacity(echo.len());
        sending.send_data(round.to_string().into(), false).unwrap();
    }
    let mut sum = HeaderMap::new();
    sum.insert("x-sum", "7".parse().unwrap());
    sending.send_trailers(sum).unwrap();
    let (rest, ends) = h2_client::rest(body).await.unwrap();
    assert_eq!(
        (&rest[..], ends["grpc-status"].to_str().unwrap()),
        (&b"19"[..], "0")
    );
    assert_eq!(ends["x-sum"], "7");
    assert_eq!(origin.latest().field("te").as_deref(), Some("trailers"));

    let answer = client.ask(with_te("/refused")).await.unwrap();
    assert_eq!(
        (answer.status(), answer.field("grpc-status")),
        (200, Some("12"))
    );
}

#[tokio::test]
async fn tls_must_choose_http2() {
    let authority = Authority::new();
    let pair = authority.server(&["o.test"]);
    let waypost = one_worker().await;
    let value = |protocol: &str| {
        let tls = json!({"sni": "o.test", "ca": authority.file()});
        json!({"protocol": protocol, "tls": tls}).to_string()
    };
    let good = H2Origin::run_tls(pair.server_config(&["http/1.1", "h2"]), |served| {
        served.each(async |exchange| exchange.say("ok"))
    })
    .await;
    waypost.put("good.test", &good, &value("h2")).await;
    let answer = get(waypost.address(), "good.test", "/").await;
    assert_eq!((answer.status(), answer.text()), (200, "ok"));
    assert_eq!(good.latest().head.uri.scheme_str(), Some("https"));
    for alpn in [&["http/1.1"][..], &[]] {
        let old = Origin::run_tls(pair.server_config(alpn), async |mut served| {
            served.request().await;
        })
        .await;
        waypost.put("old.test", &old, &value("h2")).await;
        let answer = get(waypost.address(), "old.test", "/").await;
        assert_eq!(
            (answer.status(), answer.error()),
            (502, "tls_protocol_error"),
            "{alpn:?}"
        );
        let details = "it does not offer HTTP/2 (\"h2\" by ALPN)";
        assert!(answer.text().contains(details), "{}", answer.text());
        assert_eq!(old.requests().len(), 0);
        waypost.delete("old.test", &old).await;
    }
}

#[tokio::test]
async fn a_websocket_goes_to_an_upstream_that_can_have_it_or_is_told_why_not() {
    let modern = H2Origin::named("ok").await;
    let waypost = one_worker().await;
    waypost.put("a.test", &modern, H2).await;
    let upgrade = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let answer = ask(waypost.address(), upgrade).await;
    assert_eq!(
        (answer.status(), answer.error()),
        (502, "http_upgrade_failed")
    );
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                     Upgrade: websocket\r\n\r\n";
    let old = Origin::answering(switching).await;
    waypost.put("a.test", &old, "").await;
    for _ in 0..4 {
        assert_eq!(ask(waypost.address(), upgrade).await.status(), 101);
    }
    assert_eq!(modern.requests().len(), 0);
    let labels = [("upstream", &*modern.to_string())];
    let failures = waypost.metric("waypost_upstream_failures_total", &labels);
    assert_eq!(failures.await, 0.0, "it did nothing wrong");
}

#[tokio::test]
async fn interim_responses_reach_http1_clients_and_100_lets_the_body_go() {
    let gate = Arc::new(Semaphore::new(0));
    let origin = H2Origin::each({
        let gate = gate.clone();
        move |mut exchange| {
            let gate = gate.clone();
            async move {
                assert!(exchange.asked.field("expect").is_some());
                gate.acquire().await.unwrap().forget();
                let go_on = head(100, &[]);
                exchange.respond.send_informational(go_on).unwrap();
                let (body, _) = exchange.read().await;
                let hints = head(103, &[("link", "</a>")]);
                exchange.respond.send_informational(hints).unwrap();
                exchange.say(body);
            }
        }
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let mut wire = Wire::connect(waypost.address()).await;
    let head =
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    wire.send(head).await;
    origin.asked(1).await;
    // Less than the second after which the body goes unbidden.
    let bidden = wire.is_silent_for(Duration::from_millis(300)).await;
    assert!(bidden, "the body waits for the upstream's 100");
    gate.add_permits(1);
    assert_eq!(wire.head().await.unwrap().status(), 100);
    wire.send("hi").await;
    let answer = wire.response("POST").await;
    assert_eq!((answer.status(), answer.text()), (200, "hi"));
    let statuses: Vec<_> = answer.interim.iter().map(|head| head.status()).collect();
    assert_eq!(statuses, [103]);
    assert_eq!(answer.interim[0].one("link"), Some("</a>"));
}

#[tokio::test]
async fn a_removed_upstreams_connection_ends_after_its_last_stream() {
    let gate = Arc::new(Semaphore::new(0));
    let origin = H2Origin::each({
        let gate = gate.clone();
        move |exchange| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                exchange.say("ok");
            }
        }
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let asking = tokio::spawn({
        let address = waypost.address();
        async move { get(address, "a.test", "/").await }
    });
    origin.asked(1).await;
    waypost.delete("a.test", &origin).await;
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 404);
    gate.add_permits(1);
    assert_eq!(asking.await.unwrap().text(), "ok");
    origin.closed(1).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let origin = H2Origin::each(async |exchange| exchange.say(vec![b'x'; 1 << 20])).await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let mut deaf = Vec::new();
    for _ in 0..60 {
        let mut wire = Wire::connect(waypost.address()).await;
        wire.shrink_window();
        wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        wire.head().await.unwrap();
        deaf.push(wire);
    }
    for _ in 0..5 {
        let answer = get(waypost.address(), "a.test", "/").await;
        assert_eq!((answer.body.len(), answer.whole), (1 << 20, true));
    }
    assert_eq!(origin.connections(), 1);
    let (memory, _) = waypost.memory();
    assert!(memory < 100 << 20, "{memory} bytes for 60 stalled MiB");
    drop(deaf);
    eventually("their streams have ended", async || {
        waypost.metric("waypost_connections", &[]).await == 0.0
    })
    .await;
}

#[tokio::test]
async fn too_large_a_body_is_413_and_its_stream_reset() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let origin = H2Origin::each(move |mut exchange: Exchange| {
        let tell = tell.clone();
        async move {
            while let Some(data) = exchange.body.data().await {
                let Ok(data) = data else {
                    let _ = tell.send(data.unwrap_err().reason());
                    return;
                };
                let _ = exchange.body.flow_control().release_capacity(data.len());
            }
        }
    })
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, H2).await;
    let settings = json!({"max_body": "10B"}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let answer = ask(
        waypost.address(),
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n\
         8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!(answer.status(), 413);
    let reason = tokio::time::timeout(Duration::from_secs(5), told.recv()).await;
    assert_eq!(reason.unwrap().unwrap(), Some(h2::Reason::CANCEL));
}
