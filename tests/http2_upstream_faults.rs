//! HTTP/2 upstreams that refuse, go away, cut, stall and lie: nothing is lost that may be asked again, and nothing is
//! asked twice that may not.

mod left_alone;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{Reason, server::Builder};
use serde_json::json;
use tokio::{
    sync::{Mutex, Semaphore, mpsc},
    task::JoinSet,
    time::sleep,
};

use crate::support::{
    h2_client::{self, H2Client},
    h2_origin::{
        self, DATA, END_HEADERS, END_STREAM, Exchange, Frames, H2Origin, HEADERS, OK, PING,
        RST_STREAM, WINDOW_UPDATE, raw, request,
    },
    http::{End, Message, Wire, ask, get, timed},
    origin::Origin,
    waypost::{Waypost, within},
};

const H2: &str = r#"{"protocol": "h2"}"#;

async fn one_worker() -> Waypost {
    Waypost::builder().flag("--workers", 1).start().await
}

/// A route to one upstream.
async fn in_front_of(origin: impl ToString) -> Waypost {
    let waypost = one_worker().await;
    waypost.put("a.test", origin, H2).await;
    waypost
}

/// A request without a body, on a connection of its own.
async fn send(waypost: &Waypost, method: &str) -> Message {
    let head = format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n");
    ask(waypost.address(), head).await
}

/// Begins a body of 50 bytes and breaks it off, as the path says.
async fn break_off(mut served: h2_origin::Served, head_read: Arc<Semaphore>) {
    while let Some(mut exchange) = served.accept().await {
        let path = exchange.asked.head.uri.path().to_owned();
        let mut stream = exchange.head(200, &[("content-length", "50")], false);
        let head_read = head_read.clone();
        if path == "/close" {
            stream.send_data("hello".into(), false).unwrap();
            tokio::select! {
                _ = served.accept() => {}
                _ = head_read.acquire() => {}
            }
            return;
        }
        tokio::spawn(async move {
            let _ = stream.send_data("hello".into(), false);
            let _ = head_read.acquire().await;
            match path.as_str() {
                "/reset" => stream.send_reset(Reason::INTERNAL_ERROR),
                "/quiet-reset" => stream.send_reset(Reason::NO_ERROR),
                "/short" => drop(stream.send_data(Bytes::new(), true)),
                _ => std::future::pending().await,
            }
        });
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_seen_to() {
    // How it breaks off, and what the access log says of it.
    for (path, reason) in [
        ("/reset", "http_response_incomplete"),
        ("/quiet-reset", "http_response_incomplete"),
        ("/short", "http_protocol_error"),
        ("/close", "http_response_incomplete"),
        ("/stall", "connection_read_timeout"),
    ] {
        let head_read = Arc::new(Semaphore::new(0));
        let origin = H2Origin::run(Builder::new(), {
            let head_read = head_read.clone();
            move |served| break_off(served, head_read.clone())
        })
        .await;
        let waypost = Waypost::builder()
            .flag("--workers", 1)
            .flag("--access-log", "json")
            .start()
            .await;
        waypost.put("a.test", &origin, H2).await;
        let settings = json!({"timeouts": {"idle": "300ms"}}).to_string();
        waypost.put("a.test", "@settings", &settings).await;
        let mut wire = Wire::connect(waypost.address()).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"))
            .await;
        assert_eq!(wire.head().await.unwrap().one("content-length"), Some("50"));
        head_read.add_permits(2);
        let (rest, _) = wire.take_rest().await;
        assert!(rest.len() < 50, "{path}: {rest:?}");
        let line = waypost.output().until("\"reason\"").await;
        assert!(line.contains(reason), "{path}: {line}");
        let labels = [("upstream", &*origin.to_string())];
        let failures = waypost.metric("waypost_upstream_failures_total", &labels);
        assert_eq!(failures.await, 1.0, "{path}");
        if path != "/close" {
            let client = H2Client::connect(waypost.address()).await;
            let cut = client.ask(request("GET", path)).await;
            assert!(cut.is_err(), "{path}");
        }
    }
}

#[tokio::test]
async fn a_silent_upstream_is_504_its_stream_reset_and_its_connection_kept() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = H2Origin::each(move |mut exchange: Exchange| {
        let tell = tell.clone();
        async move {
            match exchange.asked.head.uri.path() {
                "/silent" => {
                    let reset = std::future::poll_fn(|cx| exchange.respond.poll_reset(cx)).await;
                    let _ = tell.send(reset.ok());
                }
                _ => exchange.say("ok"),
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let settings = json!({"timeouts": {"response": "300ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let answer = get(waypost.address(), "a.test", "/silent").await;
    assert_eq!(
        (answer.status(), answer.error()),
        (504, "http_response_timeout")
    );
    assert_eq!(told.recv().await, Some(Some(Reason::CANCEL)));
    assert_eq!(get(waypost.address(), "a.test", "/").await.text(), "ok");
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_stream_within_a_second() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = H2Origin::each(move |mut exchange: Exchange| {
        let tell = tell.clone();
        async move {
            let path = exchange.asked.head.uri.path().to_owned();
            let mut stream = match path.as_str() {
                "/after-head" => Some(exchange.head(200, &[], false)),
                _ => None,
            };
            // Nothing of a body is read: what was sent and what was not both wait.
            let reset = std::future::poll_fn(|cx| match &mut stream {
                Some(stream) => stream.poll_reset(cx),
                None => exchange.respond.poll_reset(cx),
            });
            let _ = tell.send(reset.await.ok());
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let client = H2Client::connect(waypost.address()).await;
    for (number, path) in ["/before-head", "/after-head", "/upload"]
        .iter()
        .enumerate()
    {
        let uploads = *path == "/upload";
        let (response, mut sending) = client.open(request("POST", path), !uploads).await;
        if uploads {
            // More than the windows have room for.
            let body = Bytes::from(vec![b'x'; 500_000]);
            sending.send_data(body, false).unwrap();
        }
        origin.asked(number + 1).await;
        match *path {
            "/after-head" => drop(response.await.unwrap()),
            _ => drop(response),
        }
        drop(sending);
        let (reset, time) = timed(told.recv()).await;
        assert_eq!(reset, Some(Some(Reason::CANCEL)), "{path}");
        assert!(time < Duration::from_secs(1), "{path}: {time:?}");
    }
    // And one whose whole connection ends.
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send("GET /after-head HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await;
    wire.head().await.unwrap();
    drop(wire);
    let (reset, time) = timed(told.recv()).await;
    assert_eq!(reset, Some(Some(Reason::CANCEL)));
    assert!(time < Duration::from_secs(1), "{time:?}");
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn an_answer_before_the_upload_is_over_is_relayed_though_the_rest_is_refused() {
    let origin = H2Origin::each(async |mut exchange| {
        let mut stream = exchange.head(403, &[], false);
        stream.send_data("no".into(), true).unwrap();
        // The stream is dropped unread: the `h2` crate resets it with NO_ERROR.
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let client = H2Client::connect(waypost.address()).await;
    let (response, mut sending) = client.open(request("POST", "/"), false).await;
    sending
        .send_data(Bytes::from(vec![b'x'; 500_000]), false)
        .unwrap();
    let answer = h2_client::collect(response).await.unwrap();
    assert_eq!((answer.status(), answer.text()), (403, "no"));
    assert_eq!(answer.trailers.len(), 0);
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 500000\r\n\r\nhello")
        .await;
    let answer = wire.response("POST").await;
    assert_eq!((answer.status(), answer.text()), (403, "no"));
    assert_eq!(answer.head.one("connection"), Some("close"));
}

#[tokio::test]
async fn what_is_no_answer_is_502() {
    let waypost = one_worker().await;
    let bomb = "x".repeat(70_000);
    let origin = H2Origin::each(move |mut exchange: Exchange| {
        let bomb = bomb.clone();
        async move {
            let path = exchange.asked.head.uri.path().to_owned();
            match path.as_str() {
                "/fields" => {
                    let mut head = h2_origin::head(200, &[]);
                    for n in 0..150 {
                        let name: http::HeaderName = format!("x-{n}").parse().unwrap();
                        head.headers_mut().insert(name, "1".parse().unwrap());
                    }
                    let _ = exchange.respond.send_response(head, true);
                }
                "/bomb" => drop(exchange.head(200, &[("x", &bomb)], true)),
                "/interim" => {
                    for _ in 0..20 {
                        let hints = h2_origin::head(103, &[]);
                        let _ = exchange.respond.send_informational(hints);
                    }
                    exchange.say("ok");
                }
                "/101" => {
                    let _ = exchange
                        .respond
                        .send_informational(h2_origin::head(101, &[]));
                    exchange.say("ok");
                }
                "/length" => {
                    let lengths = [("content-length", "5"), ("content-length", "6")];
                    let _stream = exchange.head(200, &lengths, false);
                    std::future::pending::<()>().await;
                }
                _ => exchange.say("ok"),
            }
        }
    })
    .await;
    waypost.put("a.test", &origin, H2).await;
    for (path, error) in [
        ("/fields", "http_response_header_section_size"),
        ("/bomb", "http_protocol_error"),
        ("/interim", "http_response_header_section_size"),
        ("/101", "http_protocol_error"),
        ("/length", "http_protocol_error"),
    ] {
        let answer = get(waypost.address(), "a.test", path).await;
        assert_eq!((answer.status(), answer.error()), (502, error), "{path}");
        let answer = get(waypost.address(), "a.test", "/").await;
        assert_eq!(answer.text(), "ok", "after {path}");
    }
    assert_eq!(origin.connections(), 1, "a bad stream spoils no other");

    let old = Origin::answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    let closing = Origin::run(async |mut served| drop(served.wire.take(24).await)).await;
    for origin in [&old, &closing] {
        waypost.put("b.test", origin, H2).await;
        let answer = get(waypost.address(), "b.test", "/").await;
        let told = answer.text().contains("it does not speak HTTP/2");
        assert_eq!((answer.status(), told), (502, true), "{answer:?}");
        assert_eq!(answer.error(), "http_protocol_error");
        waypost.delete("b.test", origin).await;
    }
    let mute = Origin::run(async |mut served| drop(served.wire.take_rest().await)).await;
    waypost.put("b.test", &mute, H2).await;
    let answer = get(waypost.address(), "b.test", "/").await;
    assert_eq!(
        (answer.status(), answer.error()),
        (504, "connection_timeout")
    );
}

#[tokio::test]
async fn a_flood_of_interim_responses_costs_no_memory() {
    let origin = raw(async |mut frames: Frames, _| {
        let stream = frames.take_kind(HEADERS).await?.stream;
        // `:status: 103` as a literal that the table keeps, then its index: 10 bytes each.
        let literal = b"\x48\x03103";
        frames.send(HEADERS, END_HEADERS, stream, literal).await;
        let mut flood = Vec::new();
        for _ in 0..100_000 {
            flood.extend([0, 0, 1, HEADERS, END_HEADERS]);
            flood.extend(stream.to_be_bytes());
            flood.push(0xbe);
        }
        for _ in 0..10 {
            if !frames.0.send(&flood).await {
                break;
            }
        }
        frames.take_kind(RST_STREAM).await.map(drop)
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let answer = get(waypost.address(), "a.test", "/").await;
    assert_eq!(
        (answer.status(), answer.error()),
        (502, "http_response_header_section_size")
    );
    origin.closed(1).await;
    let (_, most) = waypost.memory();
    assert!(most < 80 << 20, "{most} bytes");
}

#[tokio::test]
async fn an_upstream_that_vanished_is_noticed_by_a_ping() {
    let origin = raw(async |mut frames: Frames, connection| {
        let stream = frames.take_kind(HEADERS).await?.stream;
        if connection == 1 {
            frames.take_kind(PING).await?;
            // From here on nobody is there.
            sleep(Duration::from_secs(60)).await;
        }
        frames.send(HEADERS, END_HEADERS, stream, OK).await;
        frames.send(DATA, END_STREAM, stream, b"ok").await;
        frames.take_kind(u8::MAX).await.map(drop)
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let asking = async {
        let mut wire = Wire::connect(waypost.address()).await;
        wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let given_up = async || origin.connections() == 2;
        within(Duration::from_secs(40), "it is given up", given_up).await;
        wire.response("GET").await
    };
    // The first ping goes out after 10 s of silence, and has 10 s.
    let (answer, time) = timed(asking).await;
    assert_eq!(answer.text(), "ok");
    assert!(time > Duration::from_secs(15), "{time:?}");
}
