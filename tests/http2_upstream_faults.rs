//! HTTP/2 upstreams that refuse, go away, cut, stall and lie: nothing is lost that may be asked again, and nothing is
//! asked twice that may not.

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

#[tokio::test]
async fn a_refused_stream_is_tried_again_whatever_its_method_and_a_reset_one_if_it_may() {
    for (reason, method, status, asked) in [
        (Reason::REFUSED_STREAM, "GET", 200, 2),
        (Reason::REFUSED_STREAM, "POST", 200, 2),
        (Reason::INTERNAL_ERROR, "GET", 200, 2),
        (Reason::INTERNAL_ERROR, "POST", 502, 1),
        (Reason::CANCEL, "PATCH", 502, 1),
    ] {
        let first = Arc::new(Semaphore::new(1));
        let origin = H2Origin::each(move |mut exchange: Exchange| {
            let first = first.clone();
            async move {
                match first.try_acquire() {
                    Ok(permit) => {
                        permit.forget();
                        exchange.respond.send_reset(reason);
                    }
                    Err(_) => exchange.say("ok"),
                }
            }
        })
        .await;
        let waypost = in_front_of(&origin).await;
        let answer = send(&waypost, method).await;
        assert_eq!(answer.status(), status, "{method} {reason}");
        assert_eq!(origin.requests().len(), asked, "{method} {reason}");
        assert_eq!(origin.connections(), 1, "{method} {reason}");
        if status == 502 {
            assert_eq!(answer.error(), "connection_terminated");
            let told = answer.text().contains("stream reset before the response");
            assert!(told, "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_everything_is_asked_four_times_and_is_not_at_fault() {
    let origin = H2Origin::each(async |mut exchange| {
        exchange.respond.send_reset(Reason::REFUSED_STREAM);
    })
    .await;
    let waypost = in_front_of(&origin).await;
    strictly(&waypost).await;
    let answer = send(&waypost, "POST").await;
    assert_eq!(
        (answer.status(), answer.error()),
        (502, "connection_terminated")
    );
    assert_eq!(origin.requests().len(), 4);
    assert_eq!(ejections(&waypost).await, 0.0);
}

/// One failure ejects.
async fn strictly(waypost: &Waypost) {
    let settings = json!({"outlier": {"consecutive_failures": 1}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
}

async fn ejections(waypost: &Waypost) -> f64 {
    waypost
        .metric("waypost_upstream_ejections_total", &[])
        .await
}

/// How an upstream says that it did nothing about a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Vouches {
    ByReset,
    ByGoaway,
}

/// Refuses its first request, be it when the head is there or when all of it is, and answers further ones by how long
/// their bodies are.
async fn refuses(
    first: Arc<Semaphore>,
    mut frames: Frames,
    how: Vouches,
    late: bool,
) -> Result<(), End> {
    let window = (1_u32 << 20).to_be_bytes();
    frames.send(WINDOW_UPDATE, 0, 0, &window).await;
    loop {
        let stream = frames.take_kind(HEADERS).await?.stream;
        let refused = first.try_acquire().map(|permit| permit.forget()).is_ok();
        let length = match refused && !late {
            true => 0,
            false => frames.body(stream).await?,
        };
        match how {
            _ if !refused => frames.answer(stream, &length.to_string()).await,
            Vouches::ByReset => {
                let code = u32::from(Reason::REFUSED_STREAM).to_be_bytes();
                frames.send(RST_STREAM, 0, stream, &code).await;
            }
            Vouches::ByGoaway => {
                frames.go_away(0, 0).await;
                return frames.take_kind(u8::MAX).await.map(drop);
            }
        }
    }
}

#[tokio::test]
async fn what_an_upstream_vouches_to_have_left_alone_goes_out_again_with_its_body() {
    for how in [Vouches::ByReset, Vouches::ByGoaway] {
        for (late, size, status) in [
            (false, 1, 200),
            (true, 1, 200),
            (false, 60 << 10, 200),
            (true, 60 << 10, 200),
            (false, (64 << 10) + 1, 502),
        ] {
            let first = Arc::new(Semaphore::new(1));
            let origin = raw(move |frames, _| refuses(first.clone(), frames, how, late)).await;
            let waypost = in_front_of(&origin).await;
            strictly(&waypost).await;
            let body = "x".repeat(size);
            let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {size}\r\n\r\n");
            let answer = ask(waypost.address(), head + &body).await;
            let what = format!("{how:?}, late: {late}, {size}: {}", answer.text());
            assert_eq!(answer.status(), status, "{what}");
            if status == 200 {
                assert_eq!(answer.text(), size.to_string(), "{what}");
            }
            assert_eq!(ejections(&waypost).await, 0.0, "{what}");
        }
    }
}

#[tokio::test]
async fn streams_above_a_goaways_last_go_out_again_and_those_below_finish() {
    for method in ["GET", "POST"] {
        let came_again = Arc::new(Semaphore::new(0));
        let origin = raw(move |mut frames: Frames, connection| {
            let came_again = came_again.clone();
            async move {
                let first = frames.take_kind(HEADERS).await?.stream;
                if connection == 2 {
                    came_again.add_permits(1);
                    frames.answer(first, "second").await;
                    return frames.take_kind(u8::MAX).await.map(drop);
                }
                let second = frames.take_kind(HEADERS).await?.stream;
                assert!(second > first);
                frames.go_away(first, 0).await;
                let _ = came_again.acquire().await;
                frames.answer(first, "first").await;
                frames.take_kind(u8::MAX).await.map(drop)
            }
        })
        .await;
        let waypost = in_front_of(&origin).await;
        let (first, second) = tokio::join!(send(&waypost, method), send(&waypost, method));
        let mut answers = [first, second].map(|answer| answer.text().to_owned());
        answers.sort();
        assert_eq!(answers, ["first", "second"], "{method}");
        assert_eq!(origin.connections(), 2, "{method}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_under_requests_loses_only_what_may_not_be_asked_again() {
    for (method, goes_away, status) in [
        ("GET", false, 200),
        ("GET", true, 200),
        ("POST", false, 502),
        // It was below the GOAWAY's last stream: perhaps it was worked on.
        ("POST", true, 502),
    ] {
        let origin = raw(move |mut frames: Frames, connection| async move {
            let stream = frames.take_kind(HEADERS).await?.stream;
            if connection == 1 {
                if goes_away {
                    frames.go_away(stream, 0).await;
                }
                return Ok(());
            }
            frames.answer(stream, "ok").await;
            frames.take_kind(u8::MAX).await.map(drop)
        })
        .await;
        let waypost = in_front_of(&origin).await;
        let answer = send(&waypost, method).await;
        assert_eq!(answer.status(), status, "{method} {goes_away}");
        let connections = if status == 200 { 2 } else { 1 };
        assert_eq!(origin.connections(), connections, "{method} {goes_away}");
    }
}

#[tokio::test]
async fn a_thousand_requests_survive_a_goaway_after_each_hundred() {
    let origin = H2Origin::run(Builder::new(), async |mut served| {
        let mut tasks = JoinSet::new();
        let mut count = 0;
        while let Some(exchange) = served.accept().await {
            tasks.spawn(async move {
                sleep(Duration::from_millis(2)).await;
                exchange.say("ok");
            });
            count += 1;
            if count == 100 {
                served.connection.graceful_shutdown();
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let left = Arc::new(Mutex::new(1000));
    let mut clients = JoinSet::new();
    for number in 0..30 {
        let (left, address) = (left.clone(), waypost.address());
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        clients.spawn(async move {
            let mut wire = Wire::connect(address).await;
            loop {
                {
                    let mut left = left.lock().await;
                    if *left == 0 {
                        return;
                    }
                    *left -= 1;
                }
                let head =
                    format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n");
                let answer = wire.ask(head).await;
                assert_eq!((answer.status(), answer.text()), (200, "ok"), "{method}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("nothing is lost");
    }
    assert_eq!(origin.requests().len(), 1000, "none was asked twice");
    let connections = origin.connections();
    assert!((8..=10).contains(&connections), "{connections}");
}

#[tokio::test]
async fn a_goaway_without_warning_loses_no_request_that_was_not_worked_on() {
    // As servers do that count requests: whatever comes after the tenth is never looked at.
    let origin = raw(async |mut frames: Frames, _| {
        for _ in 0..10 {
            let stream = frames.take_kind(HEADERS).await?.stream;
            frames.answer(stream, "ok").await;
            if stream == 19 {
                frames.go_away(stream, 0).await;
            }
        }
        frames.take_kind(u8::MAX).await.map(drop)
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let address = waypost.address();
        clients.spawn(async move {
            let mut wire = Wire::connect(address).await;
            for _ in 0..25 {
                let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
                let answer = wire.ask(post).await;
                assert_eq!((answer.status(), answer.text()), (200, "ok"), "{answer:?}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("nothing is lost");
    }
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
