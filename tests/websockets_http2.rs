//! WebSockets over HTTP/2 (RFC 8441), in front and behind, and what else CONNECT may ask for.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use h2::{ext::Protocol, server};
use http::{Method, Request};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::support::{
    foreign,
    h2_client::{H2Client, collect},
    h2_origin::{self, Exchange, H2Origin},
    h2_stream::H2Stream,
    http::{End, Message, Wire},
    origin::Origin,
    waypost::Waypost,
    websocket::Echo,
};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const H2: &str = r#"{"protocol": "h2"}"#;
const REMOVED_FRAME: &[u8] = b"\x88\x12\x03\xe9upstream removed";
/// A client's answer to a Close, masked by zeros.
const ANSWER: &[u8] = b"\x88\x82\0\0\0\0\x03\xe9";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// Says `hello` at once, then echoes until the client ends, and says `bye`.
async fn echo(mut wire: Wire) {
    wire.send("hello").await;
    // What came together goes back together: a peer's `h2` counts small frames that wait to be read.
    while let Ok(bytes) = wire.take(wire.buffered().len().max(1)).await {
        wire.send(&bytes).await;
    }
    wire.send("bye").await;
    wire.finish().await;
}

async fn echo_over_http1() -> Origin {
    Origin::run(async |mut served| {
        let head = served.wire.head().await.unwrap();
        let proof = derive_accept_key(head.one("sec-websocket-key").unwrap().as_bytes());
        served.note(Message {
            head,
            ..Message::default()
        });
        let switching = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: {proof}\r\n\r\n"
        );
        served.send(switching).await;
        echo(std::mem::replace(
            &mut served.wire,
            Wire::over(tokio::io::empty()),
        ))
        .await;
    })
    .await
}

async fn echo_over_http2() -> H2Origin {
    taking_connect(async |mut exchange: Exchange| {
        let fields = [("sec-websocket-protocol", "chat")];
        let sending = exchange.head(200, &fields, false);
        echo(Wire::over(H2Stream::new(exchange.body, sending))).await;
    })
    .await
}

async fn taking_connect<F>(
    script: impl Fn(Exchange) -> F + Copy + Send + Sync + 'static,
) -> H2Origin
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut builder = server::Builder::new();
    builder.enable_connect_protocol();
    H2Origin::run(builder, move |served| served.each(script)).await
}

fn connect(protocol: &'static str) -> Request<()> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://a.test/chat?x=1")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .extension(Protocol::from_static(protocol));
    request.body(()).unwrap()
}

/// A WebSocket, opened on a stream of this connection.
async fn open(client: &H2Client) -> Wire {
    client.until_it_takes_connect().await;
    let (response, sending) = client.open(connect("websocket"), false).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    for (name, expected) in [
        ("sec-websocket-protocol", Some("chat")),
        ("sec-websocket-accept", None),
        ("upgrade", None),
        ("connection", None),
        ("content-length", None),
    ] {
        let value = response.headers().get(name);
        assert_eq!(
            value.map(|value| value.to_str().unwrap()),
            expected,
            "{name}"
        );
    }
    Wire::over(H2Stream::new(response.into_body(), sending))
}

async fn open_over(version: Version, waypost: &Waypost) -> Wire {
    if version == Version::Http2 {
        return open(&H2Client::connect(waypost.address()).await).await;
    }
    let mut wire = Wire::connect(waypost.address()).await;
    let handshake = format!(
        "GET /chat?x=1 HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    );
    let response = wire.ask(handshake).await;
    assert_eq!(response.status(), 101);
    for (name, expected) in [
        ("sec-websocket-protocol", "chat"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
    ] {
        assert_eq!(response.head.one(name), Some(expected), "{name}");
    }
    wire
}

#[tokio::test]
async fn a_socket_passes_between_every_two_versions() {
    let waypost = Waypost::builder().start().await;
    for front in [Version::Http1, Version::Http2] {
        let (old, new) = (echo_over_http1().await, echo_over_http2().await);
        for behind in [Version::Http1, Version::Http2] {
            let pair = (front, behind);
            match behind {
                Version::Http1 => waypost.put("a.test", &old, "").await,
                Version::Http2 => waypost.put("a.test", &new, H2).await,
            }
            let mut client = open_over(front, &waypost).await;
            assert_eq!(client.take(5).await.unwrap(), b"hello", "{pair:?}");
            for text in ["one", "two", "\0\r\n\r\n"] {
                client.send(text).await;
                assert_eq!(client.take(text.len()).await.unwrap(), text.as_bytes());
            }
            // More than any window holds.
            let large = vec![7; 300_000];
            client.send(&large).await;
            assert!(client.take(large.len()).await.unwrap() == large, "{pair:?}");
            // Half-closed, the other half still carries what the upstream has to say.
            client.finish().await;
            assert_eq!(client.take(3).await.unwrap(), b"bye", "{pair:?}");
            assert_eq!(client.end().await, End::Fin, "{pair:?}");
            match behind {
                Version::Http1 => {
                    let head = old.latest().head;
                    assert_eq!(head.line, "GET /chat?x=1 HTTP/1.1");
                    for (name, value) in [
                        ("upgrade", "websocket"),
                        ("connection", "upgrade"),
                        ("sec-websocket-version", "13"),
                        ("sec-websocket-protocol", "chat"),
                        ("x-forwarded-for", "127.0.0.1"),
                    ] {
                        assert_eq!(head.one(name), Some(value), "{pair:?}");
                    }
                    let key = head.one("sec-websocket-key").unwrap();
                    assert_eq!(key == KEY, front == Version::Http1, "{key}");
                    assert_eq!(STANDARD.decode(key).unwrap().len(), 16);
                    waypost.delete("a.test", &old).await;
                }
                Version::Http2 => {
                    let asked = new.latest();
                    assert_eq!(asked.head.method, Method::CONNECT);
                    assert_eq!(asked.head.uri, "http://a.test/chat?x=1");
                    let protocol = asked.head.extensions.get::<Protocol>().unwrap();
                    assert_eq!(protocol.as_str(), "websocket");
                    for (name, value) in [
                        ("sec-websocket-version", Some("13")),
                        ("sec-websocket-protocol", Some("chat")),
                        ("sec-websocket-key", None),
                        ("upgrade", None),
                        ("x-forwarded-for", Some("127.0.0.1")),
                    ] {
                        assert_eq!(asked.field(name).as_deref(), value, "{pair:?}");
                    }
                    waypost.delete("a.test", &new).await;
                }
            }
        }
    }
}

/// An upstream of HTTP/2 has no key to miss, so nobody but us can refuse these (RFC 6455 section 4.2.1).
#[tokio::test]
async fn a_handshake_without_a_good_key_gets_no_socket_over_http2() {
    let waypost = Waypost::builder().start().await;
    let upstream = echo_over_http2().await;
    waypost.put("a.test", &upstream, H2).await;
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    let version = "Sec-WebSocket-Version: 13\r\n";
    for (what, fields, status) in [
        ("no key", version.to_owned(), 400),
        ("two keys", format!("{key}{key}{version}"), 400),
        (
            "a short key",
            format!("Sec-WebSocket-Key: c2hvcnQ=\r\n{version}"),
            400,
        ),
        (
            "no base64",
            format!("Sec-WebSocket-Key: !\r\n{version}"),
            400,
        ),
        ("no version", key.clone(), 400),
        (
            "another version",
            format!("{key}Sec-WebSocket-Version: 8\r\n"),
            400,
        ),
        ("all of it", format!("{key}{version}"), 101),
    ] {
        let mut wire = Wire::connect(waypost.address()).await;
        let handshake = format!(
            "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{fields}\r\n"
        );
        assert_eq!(wire.ask(handshake).await.status(), status, "{what}");
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn what_is_no_socket_is_refused_and_spares_the_connection() {
    let waypost = Waypost::builder().start().await;
    let plain = H2Origin::named("ok").await;
    let answering = async |text: &str| Origin::closing(text).await;
    let ok = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
    let forbidden = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
    let unproved = answering(&format!("{switching}\r\n")).await;
    let wrong = format!("{switching}Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n");
    let wrong = answering(&wrong).await;
    let client = H2Client::connect(waypost.address()).await;
    client.until_it_takes_connect().await;
    for (upstream, value, status, error) in [
        (plain.to_string(), H2, 502, Some("http_upgrade_failed")),
        (ok.to_string(), "", 502, Some("http_upgrade_failed")),
        (unproved.to_string(), "", 502, Some("http_upgrade_failed")),
        (wrong.to_string(), "", 502, Some("http_upgrade_failed")),
        (forbidden.to_string(), "", 403, None),
    ] {
        waypost.put("a.test", &upstream, value).await;
        let (response, _sending) = client.open(connect("websocket"), false).await;
        let answer = collect(response).await.unwrap();
        let explained = answer.field("proxy-status").map(str::to_owned);
        let expected = error.map(|error| format!("waypost; error={error}"));
        assert_eq!(answer.status(), status, "{explained:?}");
        let told = explained
            .as_deref()
            .and_then(|told| told.split("; details").next());
        assert_eq!(told, expected.as_deref());
        waypost.delete("a.test", &upstream).await;
    }
    let origin = Origin::named("ok").await;
    waypost.put("a.test", &origin, "").await;
    let mut plain_connect = Request::new(());
    *plain_connect.method_mut() = Method::CONNECT;
    *plain_connect.uri_mut() = "a.test:443".parse().unwrap();
    for (request, status) in [(connect("connect-udp"), 501), (plain_connect, 501)] {
        let (response, _sending) = client.open(request, false).await;
        assert_eq!(collect(response).await.unwrap().status(), status);
    }
    assert_eq!(origin.requests().len(), 0);
    let answer = client.ask(h2_origin::request("GET", "/")).await.unwrap();
    assert_eq!(answer.text(), "ok");
}

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

/// Python's h2 and websockets, which know nothing of ours.
#[tokio::test]
async fn a_foreign_client_talks_over_http2() {
    let waypost = Waypost::builder().start().await;
    let server = foreign::Server::start("websocket_server.py", &["deflate"]).await;
    waypost.put("a.test", &server, "").await;
    let port = waypost.address().port().to_string();
    let printed = foreign::run("websocket_over_http2.py", &[&port]).await;
    assert_eq!(printed.lines().last(), Some("closed 4001 bye"), "{printed}");
    server.says("closed 4001 bye").await;
    let stray = tokio::time::timeout(Duration::from_millis(50), server.says("closed 1006"));
    assert!(stray.await.is_err(), "in order");
}
