//! How WebSockets over HTTP/2 end: by their client, their upstream, or because Waypost says so.

use std::future::poll_fn;

use h2::Reason;
use tokio::{sync::mpsc, time::timeout};

use crate::support::{
    h2_client::H2Client,
    h2_origin::{self, Exchange},
    h2_stream::H2Stream,
    http::{End, Wire},
    origin::Origin,
    sockets::{Version, connect, echo_over_http1, open, taking_connect},
    waypost::{DEADLINE, Waypost},
    websocket::Echo,
};

const H2: &str = r#"{"protocol": "h2"}"#;
const REMOVED_FRAME: &[u8] = b"\x88\x12\x03\xe9upstream removed";
/// A client's answer to a Close, masked by zeros.
const ANSWER: &[u8] = b"\x88\x82\0\0\0\0\x03\xe9";

#[tokio::test]
async fn a_reset_passes_and_ends_one_socket_alone() {
    let waypost = Waypost::builder().start().await;
    let origin = echo_over_http1().await;
    waypost.put("a.test", &origin, "").await;
    let client = H2Client::connect(waypost.address()).await;
    let (mut kept, mut left) = (open(&client).await, open(&client).await);
    for socket in [&mut kept, &mut left] {
        assert_eq!(socket.take(5).await.unwrap(), b"hello");
    }
    drop(left);
    origin.closed(1).await;
    kept.send("here").await;
    assert_eq!(kept.take(4).await.unwrap(), b"here");

    let settings = r#"{"timeouts": {"idle": "300ms"}}"#;
    waypost.put("a.test", "@settings", settings).await;
    let mut silent = open(&client).await;
    assert_eq!(silent.take(5).await.unwrap(), b"hello");
    assert_eq!(silent.end().await, End::Reset);
    kept.send("still").await;
    assert_eq!(kept.take(5).await.unwrap(), b"still");
}

#[tokio::test]
async fn a_socket_whose_upstream_is_taken_out_is_told_and_its_neighbours_live() {
    let waypost = Waypost::builder()
        .flag("--drain-delay", "0")
        .flag("--drain-timeout", "500ms")
        .start()
        .await;
    // It is silent, and answers a Close.
    let closing = async |mut exchange: Exchange| {
        let fields = [("sec-websocket-protocol", "chat")];
        let sending = exchange.head(200, &fields, false);
        let mut wire = Wire::over(H2Stream::new(exchange.body, sending));
        let close = wire.take(REMOVED_FRAME.len() + 4).await.unwrap();
        assert_eq!(close[..2], [0x88, 0x80 | 18], "masked");
        wire.send(b"\x88\x02\x03\xe9").await;
        wire.finish().await;
    };
    let (gone, kept) = (Echo::start().await, taking_connect(closing).await);
    for behind in [Version::Http1, Version::Http2] {
        match behind {
            Version::Http1 => waypost.put("a.test/chat", &gone, "").await,
            Version::Http2 => waypost.put("a.test/chat", &kept, H2).await,
        }
        let origin = Origin::named("ok").await;
        waypost.put("a.test", &origin, "").await;
        let client = H2Client::connect(waypost.address()).await;
        let mut socket = match behind {
            // It agrees on no subprotocol.
            Version::Http1 => {
                client.until_it_takes_connect().await;
                let mut request = connect("websocket");
                request.headers_mut().remove("sec-websocket-protocol");
                let (response, sending) = client.open(request, false).await;
                let response = response.await.unwrap();
                assert_eq!(response.status(), 200);
                Wire::over(H2Stream::new(response.into_body(), sending))
            }
            Version::Http2 => open(&client).await,
        };
        match behind {
            Version::Http1 => waypost.delete("a.test/chat", &gone).await,
            Version::Http2 => waypost.delete("a.test/chat", &kept).await,
        }
        assert_eq!(
            socket.take(REMOVED_FRAME.len()).await.unwrap(),
            REMOVED_FRAME
        );
        socket.send(ANSWER).await;
        assert_eq!(socket.end().await, End::Fin);
        if behind == Version::Http1 {
            assert_eq!(gone.ended(1).await, ["1001 upstream removed"]);
        }
        let answer = client.ask(h2_origin::request("GET", "/")).await.unwrap();
        assert_eq!(answer.text(), "ok", "the connection serves on");
    }
}

#[tokio::test]
async fn a_process_that_drains_tells_sockets_on_streams_too() {
    let mut waypost = Waypost::builder()
        .flag("--drain-delay", "0")
        .flag("--drain-timeout", "1s")
        .start()
        .await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let client = H2Client::connect(waypost.address()).await;
    client.until_it_takes_connect().await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut request = connect("websocket");
        request.headers_mut().remove("sec-websocket-protocol");
        let (response, sending) = client.open(request, false).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        sockets.push(Wire::over(H2Stream::new(response.into_body(), sending)));
    }
    waypost.signal("TERM");
    for socket in &mut sockets {
        let told = socket.take(17).await.unwrap();
        assert_eq!(told, b"\x88\x0f\x03\xe9shutting down");
        socket.send(ANSWER).await;
    }
    let ended = ["1001 shutting down"; 3];
    assert_eq!(echo.ended(3).await, ended);
    assert_eq!(waypost.wait_exit().await, Some(0), "nobody lost anything");
}

/// What the origin tells next.
async fn heard<T>(told: &mut mpsc::UnboundedReceiver<T>) -> Option<T> {
    timeout(DEADLINE, told.recv()).await.expect("it tells")
}

#[tokio::test]
async fn an_upstream_that_was_told_sees_a_clean_end_however_late_its_own_comes() {
    let waypost = Waypost::builder()
        .flag("--drain-delay", "0")
        .flag("--drain-timeout", "500ms")
        .start()
        .await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = taking_connect(move |mut exchange: Exchange| {
        let tell = tell.clone();
        async move {
            let fields = [("sec-websocket-protocol", "chat")];
            let sending = exchange.head(200, &fields, false);
            let mut wire = Wire::over(H2Stream::new(exchange.body, sending));
            wire.take(REMOVED_FRAME.len() + 4).await.unwrap();
            wire.send(b"\x88\x02\x03\xe9").await;
            tell.send(wire.end().await).unwrap();
            wire.finish().await;
        }
    })
    .await;
    waypost.put("a.test", &origin, H2).await;
    let client = H2Client::connect(waypost.address()).await;
    let mut socket = open(&client).await;
    waypost.delete("a.test", &origin).await;
    let said = socket.take(REMOVED_FRAME.len()).await.unwrap();
    assert_eq!(said, REMOVED_FRAME);
    socket.send(ANSWER).await;
    assert_eq!(heard(&mut told).await, Some(End::Fin));
}

/// Neither half is read or written then: the client's has ended, and the upstream has nothing to say.
#[tokio::test]
async fn who_is_gone_after_half_of_it_has_ended_is_gone_on_the_other_side_too() {
    let waypost = Waypost::builder().start().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let silent = taking_connect(move |mut exchange: Exchange| {
        let tell = tell.clone();
        async move {
            let fields = [("sec-websocket-protocol", "chat")];
            let mut sending = exchange.head(200, &fields, false);
            exchange.read().await;
            tell.send(None).unwrap();
            let reason = poll_fn(|cx| sending.poll_reset(cx)).await;
            tell.send(reason.ok()).unwrap();
        }
    })
    .await;
    waypost.put("a.test", &silent, H2).await;
    let client = H2Client::connect(waypost.address()).await;
    let mut socket = open(&client).await;
    socket.finish().await;
    assert_eq!(heard(&mut told).await, Some(None), "the end has come");
    drop(socket);
    assert_eq!(heard(&mut told).await, Some(Some(Reason::CANCEL)));

    // The same for an upstream that is gone.
    let origin = taking_connect(async |mut exchange: Exchange| {
        let fields = [("sec-websocket-protocol", "chat")];
        let mut sending = exchange.head(200, &fields, false);
        sending.send_data("last".into(), true).unwrap();
        // Its client has read that when it answers.
        exchange.body.data().await.unwrap().unwrap();
        sending.send_reset(Reason::INTERNAL_ERROR);
    })
    .await;
    waypost.put("a.test/other", &origin, H2).await;
    let mut request = connect("websocket");
    *request.uri_mut() = "http://a.test/other".parse().unwrap();
    let (response, mut sending) = client.open(request, false).await;
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "last");
    sending.send_data("heard".into(), false).unwrap();
    let reason = timeout(DEADLINE, poll_fn(|cx| sending.poll_reset(cx)));
    let reason = reason.await.expect("it is told");
    assert_eq!(reason.unwrap(), Reason::NO_ERROR, "it has all there is");
}
