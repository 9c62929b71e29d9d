//! WebSockets over HTTP/2 (RFC 8441), in front and behind, and what else CONNECT may ask for.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use h2::ext::Protocol;
use http::{Method, Request};

use crate::support::{
    foreign,
    h2_client::{H2Client, collect},
    h2_origin::{self, H2Origin},
    http::{End, Wire},
    origin::Origin,
    sockets::{Version, connect, echo_over_http1, echo_over_http2, open},
    waypost::Waypost,
};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const H2: &str = r#"{"protocol": "h2"}"#;

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
