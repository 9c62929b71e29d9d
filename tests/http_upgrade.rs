//! WebSocket and other upgrades: a stream of bytes both ways, or no upgrade at all.

use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{
    http::{End, Message, Wire, timed},
    origin::Origin,
    tls::Authority,
    waypost::Waypost,
};

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn in_front_of(origin: &Origin) -> Waypost {
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", origin, "").await;
    waypost
}

/// Switches, says `hello` at once, then echoes until the client ends, and says `bye`.
async fn echo() -> Origin {
    Origin::run(async |mut served| {
        let head = served.wire.head().await.unwrap();
        served.note(Message {
            head,
            ..Message::default()
        });
        served.send(format!("{SWITCHING}hello")).await;
        while let Ok(byte) = served.wire.take(1).await {
            served.send(&byte).await;
        }
        served.send("bye").await;
    })
    .await
}

#[tokio::test]
async fn an_upgrade_is_a_stream_of_bytes_both_ways() {
    let origin = echo().await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    // The client's first bytes come with its handshake, the upstream's with its answer.
    client.send(format!("{HANDSHAKE}early")).await;
    let response = client.response("GET").await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.head.one("upgrade"), Some("websocket"));
    assert_eq!(response.head.one("connection"), Some("upgrade"));
    assert_eq!(
        response.head.one("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(client.take(10).await.unwrap(), b"helloearly");
    for text in ["one", "two", "\0\r\n\r\n"] {
        client.send(text).await;
        assert_eq!(client.take(text.len()).await.unwrap(), text.as_bytes());
    }
    // Half-closed, the other half still carries what the upstream has to say.
    client.finish().await;
    assert_eq!(client.take(3).await.unwrap(), b"bye");
    assert_eq!(client.end().await, End::Fin);
    let head = origin.latest().head;
    assert_eq!(head.line, "GET /chat HTTP/1.1");
    assert_eq!(head.one("upgrade"), Some("websocket"));
    assert_eq!(head.one("connection"), Some("upgrade"));
    assert_eq!(head.one("sec-websocket-version"), Some("13"));
    assert_eq!(head.one("x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn early_bytes_are_kept_behind_requests_that_came_along() {
    let (origin, plain) = (echo().await, Origin::named("plain").await);
    let waypost = in_front_of(&origin).await;
    waypost.put("b.test", &plain, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    let first = "GET / HTTP/1.1\r\nHost: b.test\r\n\r\n";
    // As HTTP it would be refused.
    let early = "early\n\0";
    client.send(format!("{first}{HANDSHAKE}{early}")).await;
    assert_eq!(client.response("GET").await.text(), "plain");
    assert_eq!(client.response("GET").await.status(), 101);
    let echoed = format!("hello{early}");
    assert_eq!(client.take(echoed.len()).await.unwrap(), echoed.as_bytes());
}

#[tokio::test]
async fn either_end_closes_both() {
    let origin = echo().await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send(HANDSHAKE).await;
    client.take_until("hello").await.unwrap();
    client.reset();
    let (_, took) = timed(origin.closed(1)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");

    let closing = Origin::closing(format!("{SWITCHING}bye")).await;
    waypost.put("b.test", &closing, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send(HANDSHAKE.replace("a.test", "b.test")).await;
    client.take_until("\r\n\r\nbye").await.unwrap();
    assert_eq!(client.end().await, End::Fin);
}

#[tokio::test]
async fn a_rejected_upgrade_is_an_ordinary_response() {
    for status in ["200 OK", "400 Bad Request", "426 Upgrade Required"] {
        let origin =
            Origin::answering(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno")).await;
        let waypost = in_front_of(&origin).await;
        let mut client = Wire::connect(waypost.address()).await;
        for _ in 0..2 {
            let response = client.ask(HANDSHAKE).await;
            assert_eq!(response.head.line, format!("HTTP/1.1 {status}"));
            assert_eq!(response.text(), "no");
        }
    }
}

#[tokio::test]
async fn only_websocket_upgrades_are_passed_on() {
    let origin = Origin::named("plain").await;
    let waypost = in_front_of(&origin).await;
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: foo\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let mut client = Wire::connect(waypost.address()).await;
        let response = client
            .ask(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n"))
            .await;
        assert_eq!(response.text(), "plain", "{fields}");
        let head = origin.latest().head;
        for gone in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(head.all(gone), [""; 0], "{fields}");
        }
    }
}

#[tokio::test]
async fn a_switch_to_something_else_than_asked_is_502() {
    let origin = Origin::closing(SWITCHING.replace("websocket", "h2c")).await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    let response = client.ask(HANDSHAKE).await;
    assert_eq!(
        (response.status(), response.error()),
        (502, "http_protocol_error")
    );
}

#[tokio::test]
async fn a_silent_upgrade_ends_after_the_idle_timeout() {
    let origin = echo().await;
    let waypost = in_front_of(&origin).await;
    let settings = json!({"timeouts": {"idle": "300ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut client = Wire::connect(waypost.address()).await;
    // The time runs from the upstream's last byte, which is not before this.
    let ended = async {
        client.send(HANDSHAKE).await;
        client.take_until("hello").await.unwrap();
        client.end().await
    };
    let (_, took) = timed(ended).await;
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(2),
        "{took:?}"
    );
    origin.closed(1).await;
}

#[tokio::test]
async fn much_flows_both_ways_at_once() {
    const SIZE: usize = 4 << 20;
    let origin = Origin::run(async |mut served| {
        served.wire.head().await.unwrap();
        served.send(SWITCHING).await;
        let mut left = SIZE;
        while left > 0 {
            let n = left.min(64 * 1024);
            let piece = served.wire.take(n).await.unwrap();
            served.send(&piece).await;
            left -= n;
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send(HANDSHAKE).await;
    client.take_until("\r\n\r\n").await.unwrap();
    let piece: Vec<u8> = (0..64 * 1024).map(|n| (n % 251) as u8).collect();
    for _ in 0..SIZE / piece.len() {
        client.send(&piece).await;
        assert!(client.take(piece.len()).await.unwrap() == piece);
    }
    assert_eq!(client.end().await, End::Fin);
}

#[tokio::test]
async fn an_upgrade_works_over_tls() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let origin = echo().await;
    let waypost = Waypost::builder()
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    waypost.put("a.test", &origin, "").await;
    let stream = TcpStream::connect(waypost.address()).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let connector = TlsConnector::from(authority.client_config(&["http/1.1"]));
    let mut client = Wire::over(connector.connect(name, stream).await.unwrap());
    client.send(HANDSHAKE).await;
    client.take_until("\r\n\r\nhello").await.unwrap();
    for text in ["one", "two"] {
        client.send(text).await;
        assert_eq!(client.take(3).await.unwrap(), text.as_bytes());
    }
    client.finish().await;
    assert_eq!(client.take(3).await.unwrap(), b"bye");
    assert_eq!(client.end().await, End::Fin);
}

#[tokio::test]
async fn a_request_with_a_body_is_not_upgraded() {
    let origin = Origin::run(async |mut served| {
        served.request().await;
        served.send(SWITCHING).await;
        served.wire.take_rest().await;
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let request = HANDSHAKE.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello");
    let mut client = Wire::connect(waypost.address()).await;
    let response = client.ask(request).await;
    assert_eq!(origin.latest().head.all("upgrade"), [""; 0]);
    assert_eq!(
        (response.status(), response.error()),
        (502, "http_protocol_error")
    );
}
