//! Streams of an HTTP/2 client in detail: interim responses, how each ends, and how a connection does.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    time::{Duration, Instant},
};

use h2::Reason;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::time::sleep;

use crate::support::{
    h2_client::{H2Client, collect},
    h2_origin::{
        DATA, END_HEADERS, END_STREAM, Exchange, Frames, GOAWAY, H2Origin, HEADERS, PING,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, head, request,
    },
    http::Wire,
    origin::Origin,
    sample::Sample,
    waypost::{Waypost, eventually},
};

const H2: &str = r#"{"protocol": "h2"}"#;

fn post(length: Option<usize>) -> Request<()> {
    let mut request = request("POST", "/");
    if let Some(length) = length {
        request
            .headers_mut()
            .insert("content-length", length.into());
    }
    request
}

#[tokio::test]
async fn interim_responses_are_relayed_from_either_version() {
    let old = Origin::answering(
        "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let new = H2Origin::each(async |mut exchange| {
        for interim in [head(102, &[]), head(103, &[("link", "</a>")])] {
            exchange.respond.send_informational(interim).unwrap();
        }
        exchange.say("ok");
    })
    .await;
    let waypost = Waypost::builder().start().await;
    let client = H2Client::connect(waypost.address()).await;
    for (upstream, value) in [(old.to_string(), ""), (new.to_string(), H2)] {
        waypost.put("a.test", &upstream, value).await;
        let (mut response, _stream) = client.open(request("GET", "/"), true).await;
        let mut told: Vec<Response<()>> = Vec::new();
        while let Some(interim) = poll_fn(|cx| response.poll_informational(cx)).await {
            told.push(interim.unwrap());
        }
        let statuses: Vec<_> = told.iter().map(|head| head.status().as_u16()).collect();
        assert_eq!(statuses, [102, 103], "{value}");
        let expected: HeaderMap =
            HeaderMap::from_iter([("link".parse().unwrap(), "</a>".parse().unwrap())]);
        assert_eq!(*told[1].headers(), expected);
        assert_eq!(collect(response).await.unwrap().text(), "ok");
        waypost.delete("a.test", &upstream).await;
    }
}

#[tokio::test]
async fn continue_is_told_to_who_waits_for_it() {
    let origin = Origin::run(async |mut served| {
        let head = served.wire.head().await.unwrap();
        assert_eq!(head.one("expect"), Some("100-continue"));
        served.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(served.wire.take(5).await.unwrap(), b"hello");
        served
            .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let client = H2Client::connect(waypost.address()).await;
    let mut asking = post(Some(5));
    asking
        .headers_mut()
        .insert("expect", "100-continue".parse().unwrap());
    let (mut response, mut stream) = client.open(asking, false).await;
    let told = poll_fn(|cx| response.poll_informational(cx)).await;
    assert_eq!(told.unwrap().unwrap().status(), StatusCode::CONTINUE);
    stream.send_data("hello".into(), true).unwrap();
    assert_eq!(collect(response).await.unwrap().text(), "ok");
}

/// No upstream of either version says so; what of the client's body waits for it must come all the same.
#[tokio::test]
async fn continue_is_told_by_the_clock_where_the_upstream_says_nothing() {
    let old = Origin::named("ok").await;
    let new = H2Origin::named("ok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("old.test", &old, "").await;
    waypost.put("new.test", &new, H2).await;
    let client = H2Client::connect(waypost.address()).await;
    for host in ["old.test", "new.test"] {
        let asking = Request::post(format!("http://{host}/")).header("expect", "100-continue");
        let (mut response, mut stream) = client.open(asking.body(()).unwrap(), false).await;
        let told = poll_fn(|cx| response.poll_informational(cx)).await;
        assert_eq!(told.unwrap().unwrap().status(), StatusCode::CONTINUE);
        stream.send_data("hello".into(), true).unwrap();
        assert_eq!(collect(response).await.unwrap().text(), "ok");
    }
    assert_eq!(old.latest().text(), "hello");
}

/// Whatever the code of the reset: to take half of a body for all of it would be to act on what nobody sent.
#[tokio::test]
async fn a_body_that_is_given_up_never_looks_whole() {
    let origin = Origin::run(async |mut served| {
        let request = served.wire.request().await.unwrap();
        served.note(request);
        served.wire.take_rest().await;
    })
    .await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let client = H2Client::connect(waypost.address()).await;
    let reasons = [
        Reason::NO_ERROR,
        Reason::CANCEL,
        Reason::INTERNAL_ERROR,
        Reason::REFUSED_STREAM,
    ];
    for (count, reason) in (1..).zip(reasons) {
        let (_response, mut stream) = client.open(post(None), false).await;
        stream.send_data("half of it".into(), false).unwrap();
        let begun = format!("request {count} is begun");
        eventually(&begun, async || origin.connections() == count).await;
        stream.send_reset(reason);
        origin.closed(count).await;
        let arrived = origin.latest();
        assert!(!arrived.whole, "{reason:?}: {arrived:?}");
    }
}

#[tokio::test]
async fn each_end_of_a_stream_has_its_code() {
    let early = H2Origin::each(async |exchange| exchange.say("no, thanks")).await;
    let cut = Origin::closing("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &early, H2).await;
    waypost.put("cut.test", &cut, "").await;
    let client = H2Client::connect(waypost.address()).await;

    // Answered in full, the rest of the request is not needed (RFC 9113 section 8.1).
    let (response, mut stream) = client.open(post(None), false).await;
    stream
        .send_data("much more would follow".into(), false)
        .unwrap();
    assert_eq!(collect(response).await.unwrap().text(), "no, thanks");
    let told = poll_fn(|cx| stream.poll_reset(cx)).await;
    assert_eq!(told.unwrap(), Reason::NO_ERROR);

    let request = Request::get("http://cut.test/").body(()).unwrap();
    let cut = client.ask(request).await;
    assert_eq!(cut.err(), Some(Some(Reason::INTERNAL_ERROR)));

    // Two lengths at once are none (RFC 9113 section 8.1.1).
    let mut lying = post(Some(5));
    lying.headers_mut().append("content-length", 6.into());
    let (response, _stream) = client.open(lying, false).await;
    let told = collect(response).await.err();
    assert_eq!(told, Some(Some(Reason::PROTOCOL_ERROR)));
    // Nor is white space around a value a part of it (section 8.2.1).
    for padded in [" x", "x\t"] {
        let padded_one = Request::get("http://cut.test/").header("x-padded", padded);
        let told = client.ask(padded_one.body(()).unwrap()).await.err();
        assert_eq!(told, Some(Some(Reason::PROTOCOL_ERROR)), "{padded:?}");
    }
    let labels = [("reason", "malformed")];
    let refused = waypost
        .metric("waypost_unrouted_requests_total", &labels)
        .await;
    assert_eq!(refused, 2.0, "`h2` resets the other by itself");
    assert_eq!(early.requests().len(), 1);
}

/// A request head whose fields need no table (RFC 7541): GET of this path from a.test.
fn get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x06a.test");
    block
}

#[tokio::test]
async fn goaway_is_said_twice_and_what_runs_is_finished() {
    let sample = Sample::start().await;
    let mut waypost = Waypost::builder()
        .flag("--drain-delay", "500ms")
        .start()
        .await;
    waypost.put("a.test", &sample, "").await;
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut client = Frames(wire);
    client.send(SETTINGS, 0, 0, &[]).await;
    let ends = END_STREAM | END_HEADERS;
    client.send(HEADERS, ends, 1, &get("/hold")).await;
    sample.until_holding(1).await;

    waypost.signal("TERM");
    let first = client.take_kind(GOAWAY).await.unwrap();
    assert_eq!(
        first.payload[..8],
        *b"\x7f\xff\xff\xff\0\0\0\0",
        "any stream may come yet"
    );
    let ping = client.take_kind(PING).await.unwrap();
    // It was on its way before the first word could be heard, and is served.
    client.send(HEADERS, ends, 3, &get("/hold")).await;
    client.send(PING, 1, 0, &ping.payload).await;
    let second = client.take_kind(GOAWAY).await.unwrap();
    assert_eq!(
        second.payload[..8],
        *b"\0\0\0\x03\0\0\0\0",
        "nothing above 3"
    );
    // Whoever is so late knows by that number that nothing was done about it.
    client.send(HEADERS, ends, 5, &get("/")).await;
    sample.until_holding(2).await;
    sample.release();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let frame = client.take().await.unwrap();
        assert!(frame.stream < 5, "{frame:?}");
        if frame.kind == DATA && frame.flags & END_STREAM != 0 {
            ended.push(frame.stream);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 3]);
    assert_eq!(sample.hits(), 2);
    client.0.take_rest().await;
    assert_eq!(waypost.wait_exit().await, Some(0));
}

/// They are legal, and within their window; who reads them late is none of the other streams' business.
#[tokio::test]
async fn small_frames_that_wait_to_be_read_cost_no_connection() {
    const FRAMES: usize = 10_000;
    let origin = Origin::run(async |mut served| {
        // It never says 100, so that the body waits with us for a while.
        served.wire.head().await.unwrap();
        let body = served.wire.take(FRAMES).await.unwrap();
        assert!(body.iter().all(|byte| *byte == b'x'));
        served
            .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let client = H2Client::connect(waypost.address()).await;
    let mut asking = post(Some(FRAMES));
    let expects = "100-continue".parse().unwrap();
    asking.headers_mut().insert("expect", expects);
    let (response, mut stream) = client.open(asking, false).await;
    for left in (0..FRAMES).rev() {
        stream.send_data("x".into(), left == 0).unwrap();
    }
    assert_eq!(collect(response).await.unwrap().text(), "ok");
    let unrouted = Request::get("http://b.test/").body(()).unwrap();
    let answer = client.ask(unrouted).await;
    assert!(answer.is_ok(), "the connection lives on");
}

/// As at the end of the process: what crosses the first GOAWAY on its way is served.
#[tokio::test]
async fn a_request_that_crosses_the_close_of_an_idle_connection_is_served() {
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder()
        .flag("--idle-timeout", "300ms")
        .start()
        .await;
    waypost.put("a.test", &origin, "").await;
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut client = Frames(wire);
    client.send(SETTINGS, 0, 0, &[]).await;
    let first = client.take_kind(GOAWAY).await.unwrap();
    assert_eq!(first.payload[..4], *b"\x7f\xff\xff\xff");
    let ping = client.take_kind(PING).await.unwrap();
    let ends = END_STREAM | END_HEADERS;
    client.send(HEADERS, ends, 1, &get("/")).await;
    client.send(PING, 1, 0, &ping.payload).await;
    let (mut last, mut body) = (None, None);
    while last.is_none() || body.is_none() {
        let frame = client.take().await.unwrap();
        match frame.kind {
            GOAWAY => last = Some(frame.payload),
            DATA if !frame.payload.is_empty() => body = Some(frame.payload),
            _ => {}
        }
    }
    assert_eq!(last.unwrap()[..8], *b"\0\0\0\x01\0\0\0\0");
    assert_eq!(body.unwrap(), b"ok");
}

#[tokio::test]
async fn a_client_that_leaves_its_window_shut_holds_up_nobody() {
    let large = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{}",
        "x".repeat(200_000)
    ))
    .await;
    let small = Origin::named("ok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &large, "").await;
    waypost.put("b.test", &small, "").await;
    let client = H2Client::connect(waypost.address()).await;
    // Read, and not released: its window stays used up.
    let (response, _stream) = client.open(request("GET", "/"), true).await;
    let mut shut = response.await.unwrap().into_body();
    let mut held = 0;
    while held < 65_535 {
        held += shut.data().await.unwrap().unwrap().len();
    }
    // The connection's own window is used up with it, but for what this needs no room in.
    let request = Request::head("http://b.test/").body(()).unwrap();
    assert_eq!(client.ask(request).await.unwrap().status(), 200);
    let _ = shut.flow_control().release_capacity(held);
    while held < 200_000 {
        let data = shut.data().await.unwrap().unwrap();
        let _ = shut.flow_control().release_capacity(data.len());
        held += data.len();
    }
    assert_eq!(held, 200_000);
}

/// It may work on a message for long; who calls no procedure has the limit of those who don't read.
#[tokio::test]
async fn a_call_whose_client_reads_slowly_is_not_given_up() {
    const LARGE: usize = 200_000;
    let origin = H2Origin::each(async |mut exchange: Exchange| {
        let kind = match exchange.asked.head.uri.path() {
            "/" => "application/grpc",
            _ => "video/mp4",
        };
        let mut sending = exchange.head(200, &[("content-type", kind)], false);
        sending.send_data(vec![0; LARGE].into(), true).unwrap();
        // As long as anybody may want it.
        let _ = poll_fn(|cx| sending.poll_reset(cx)).await;
    })
    .await;
    let waypost = Waypost::builder()
        .flag("--body-timeout", "300ms")
        .start()
        .await;
    waypost.put("a.test", &origin, H2).await;
    let client = H2Client::connect(waypost.address()).await;
    let mut call = request("POST", "/");
    let kind = "application/grpc".parse().unwrap();
    call.headers_mut().insert("content-type", kind);
    // To say that it is a call does not make one of a download.
    let mut download = request("POST", "/film");
    let kind = "application/grpc".parse().unwrap();
    download.headers_mut().insert("content-type", kind);
    let (called, _stream) = client.open(call, true).await;
    let mut others = Vec::new();
    for asking in [request("POST", "/"), download] {
        let (response, stream) = client.open(asking, true).await;
        others.push((response.await.unwrap().into_body(), stream));
    }
    let mut called = called.await.unwrap().into_body();
    // No window opens until the others are given up: as long as that takes, the call waits too.
    for (mut asked, _stream) in others {
        let cut = loop {
            match asked.data().await.expect("no clean end") {
                Ok(_) => {}
                Err(error) => break error.reason(),
            }
        };
        assert_eq!(cut, Some(Reason::CANCEL));
    }
    let mut read = 0;
    while let Some(data) = called.data().await {
        let data = data.expect("not given up");
        let _ = called.flow_control().release_capacity(data.len());
        read += data.len();
    }
    assert_eq!(read, LARGE);
}

#[tokio::test]
async fn a_client_that_never_opens_its_window_is_given_up() {
    let large = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{}",
        "x".repeat(200_000)
    ))
    .await;
    let waypost = Waypost::builder()
        .flag("--body-timeout", "300ms")
        .start()
        .await;
    waypost.put("a.test", &large, "").await;
    let client = H2Client::connect(waypost.address()).await;
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let (response, _stream) = client.open(request("GET", "/"), true).await;
        bodies.push(response.await.unwrap().into_body());
    }
    for mut body in bodies {
        let told = loop {
            match body.data().await.expect("no clean end") {
                Ok(_) => {}
                Err(error) => break error.reason(),
            }
        };
        assert_eq!(told, Some(Reason::CANCEL));
    }
    // One client, one limit.
    let limits = [("limit", "write_timeout")];
    let hits = waypost.metric("waypost_limit_hits_total", &limits).await;
    assert_eq!(hits, 1.0);
    let answer = client.ask(request("HEAD", "/")).await.unwrap();
    assert_eq!(answer.status(), 200, "the connection lives on");
}

/// A byte now and then is no reading: the streams that wait behind it would hold their upstreams for ever.
#[tokio::test]
async fn a_stream_that_is_read_by_the_byte_keeps_no_other() {
    const WINDOW_OF_NOTHING: &[u8] = &[0, 4, 0, 0, 0, 0];
    const CANCEL: &[u8] = &[0, 0, 0, 8];
    let large = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{}",
        "x".repeat(200_000)
    ))
    .await;
    let waypost = Waypost::builder()
        .flag("--body-timeout", "300ms")
        .start()
        .await;
    waypost.put("a.test", &large, "").await;
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut client = Frames(wire);
    client.send(SETTINGS, 0, 0, WINDOW_OF_NOTHING).await;
    for stream in (1..40).step_by(2) {
        let flags = END_STREAM | END_HEADERS;
        client.send(HEADERS, flags, stream, &get("/")).await;
    }
    let begun = Instant::now();
    let mut ended = BTreeSet::new();
    while ended.len() < 19 {
        client.send(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).await;
        let frame = client.take().await.unwrap();
        if frame.kind == RST_STREAM {
            assert_eq!(frame.payload, CANCEL);
            assert!(frame.stream > 1, "it is read");
            ended.insert(frame.stream);
        }
        // As slow readers do.
        sleep(Duration::from_millis(2)).await;
    }
    // Turn for turn it would take six seconds.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}
