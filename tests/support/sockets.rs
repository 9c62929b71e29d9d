//! WebSockets as streams of bytes, over either HTTP (RFC 6455, RFC 8441): how they are opened, and origins that take them.

use h2::{ext::Protocol, server};
use http::{Method, Request};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    h2_client::H2Client,
    h2_origin::{Exchange, H2Origin},
    h2_stream::H2Stream,
    http::{Message, Wire},
    origin::Origin,
};

/// Which HTTP carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
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

pub async fn echo_over_http1() -> Origin {
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

pub async fn echo_over_http2() -> H2Origin {
    taking_connect(async |mut exchange: Exchange| {
        let fields = [("sec-websocket-protocol", "chat")];
        let sending = exchange.head(200, &fields, false);
        echo(Wire::over(H2Stream::new(exchange.body, sending))).await;
    })
    .await
}

/// An origin that takes extended CONNECT, and answers each request by `script`.
pub async fn taking_connect<F>(
    script: impl Fn(Exchange) -> F + Clone + Send + Sync + 'static,
) -> H2Origin
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut builder = server::Builder::new();
    builder.enable_connect_protocol();
    H2Origin::run(builder, move |served| served.each(script.clone())).await
}

/// Asks for it.
pub fn connect(protocol: &'static str) -> Request<()> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://a.test/chat?x=1")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .extension(Protocol::from_static(protocol));
    request.body(()).unwrap()
}

/// A WebSocket, opened on a stream of this connection.
pub async fn open(client: &H2Client) -> Wire {
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
