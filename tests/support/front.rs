//! Clients of each kind that Waypost has in front, which tell what they saw in the same words.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::{
    Request,
    body::Frame,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::timeout};

use super::{http::Wire, waypost::DEADLINE};

/// What is spoken to Waypost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Http10,
    Http11,
    H2,
}

/// A client, with its connection while it has one.
pub struct Caller {
    address: SocketAddr,
    connection: Connection,
}

enum Connection {
    Http10,
    Http11(Option<Wire>),
    H2(SendRequest<BoxBody<Bytes, Infallible>>),
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asks<'a> {
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    /// The length of its body; none for no body.
    pub body: Option<usize>,
}

/// What a client saw of its answer.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `None` if it broke off before there was one.
    pub status: Option<u16>,
    /// The `error` of `Proxy-Status`.
    pub error: Option<String>,
    pub body: String,
    /// All of it came, as far as its framing tells.
    pub whole: bool,
    /// Whether the connection was to be closed after it, or was.
    pub closed: bool,
}

/// What a client is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// An answer of Waypost's own: its status, and one of these as its reason.
    Error(u16, &'static [&'static str]),
    /// An answer that breaks off, and looks it.
    Cut,
    /// All of an answer with this status and body.
    Whole(u16, &'static str),
}

impl Sees {
    /// Whether this is what was seen.
    pub fn is(self, seen: &Seen) -> bool {
        match self {
            Self::Error(status, reasons) => {
                let reason = seen.error.as_deref().unwrap_or_default();
                seen.status == Some(status) && reasons.contains(&reason) && seen.whole
            }
            // The cut may overtake the head.
            Self::Cut => {
                matches!(seen.status, None | Some(200)) && !seen.whole && seen.error.is_none()
            }
            Self::Whole(status, body) => {
                seen.status == Some(status) && seen.body == body && seen.whole
            }
        }
    }
}

impl Caller {
    pub async fn new(front: Front, address: SocketAddr) -> Self {
        let connection = match front {
            Front::Http10 => Connection::Http10,
            Front::Http11 => Connection::Http11(None),
            Front::H2 => {
                let stream = TcpStream::connect(address).await.expect("it accepts");
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                        .await
                        .expect("HTTP/2");
                tokio::spawn(connection);
                Connection::H2(sender)
            }
        };
        Self {
            address,
            connection,
        }
    }

    /// Asks, over the connection of the last time if that is still of use, and tells what came of it.
    pub async fn ask(&mut self, asks: Asks<'_>) -> Seen {
        let address = self.address;
        let asking = async {
            match &mut self.connection {
                Connection::Http10 => {
                    let mut wire = Wire::connect(address).await;
                    wire.send(asks.whole("1.0")).await;
                    asks.seen_by(&mut wire).await
                }
                Connection::Http11(kept) => {
                    let mut wire = match kept.take() {
                        Some(wire) => wire,
                        None => Wire::connect(address).await,
                    };
                    wire.send(asks.whole("1.1")).await;
                    let seen = asks.seen_by(&mut wire).await;
                    if !seen.closed {
                        *kept = Some(wire);
                    }
                    seen
                }
                Connection::H2(sender) => asks.over_h2(sender).await,
            }
        };
        let seen = timeout(DEADLINE, asking).await;
        seen.unwrap_or_else(|_| panic!("{asks:?}: no end of it"))
    }
}

/// How much of a body goes into one frame.
const PIECE: usize = 16 * 1024;

impl Asks<'_> {
    fn whole(&self, version: &str) -> Vec<u8> {
        let Self {
            method, path, host, ..
        } = self;
        let length = self.body.map(|n| format!("Content-Length: {n}\r\n"));
        let length = length.unwrap_or_default();
        let head = format!("{method} {path} HTTP/{version}\r\nHost: {host}\r\n{length}\r\n");
        let mut request = head.into_bytes();
        request.resize(request.len() + self.body.unwrap_or(0), b'x');
        request
    }

    async fn seen_by(&self, wire: &mut Wire) -> Seen {
        let Ok(message) = wire.try_response(self.method).await else {
            return Seen {
                closed: true,
                ..Seen::default()
            };
        };
        let is_old = message.head.line.starts_with("HTTP/1.0");
        Seen {
            status: Some(message.status()),
            error: message
                .head
                .one("proxy-status")
                .map(|_| message.error().to_owned()),
            body: String::from_utf8_lossy(&message.body).into_owned(),
            // What ends with the connection is whole if that ends in order: a client of HTTP/1.0 has nothing else to
            // tell by.
            whole: message.whole,
            closed: is_old
                || message.end.is_some()
                || message.head.one("connection") == Some("close"),
        }
    }

    async fn over_h2(&self, sender: &mut SendRequest<BoxBody<Bytes, Infallible>>) -> Seen {
        let body = match self.body {
            None => Empty::new().boxed(),
            Some(length) => {
                let frames = (0..length).step_by(PIECE).map(move |at| {
                    let piece = vec![b'x'; PIECE.min(length - at)];
                    Ok(Frame::data(Bytes::from(piece)))
                });
                StreamBody::new(futures_util::stream::iter(frames)).boxed()
            }
        };
        let request = Request::builder()
            .method(self.method)
            .uri(format!("http://{}{}", self.host, self.path))
            .body(body)
            .expect("a request");
        let ready = sender.ready().await;
        ready.expect("the connection outlives what its streams meet");
        let Ok(response) = sender.send_request(request).await else {
            return Seen::default();
        };
        let error = response.headers().get("proxy-status").map(|value| {
            let value = value.to_str().expect("ASCII");
            let error = value.strip_prefix("waypost; error=").expect("ours");
            error.split(';').next().unwrap_or_default().to_owned()
        });
        let status = Some(response.status().as_u16());
        let (mut body, mut whole) = (Vec::new(), true);
        let mut incoming = response.into_body();
        while let Some(frame) = incoming.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => body.extend_from_slice(&data),
                Ok(Err(_trailers)) => {}
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Seen {
            status,
            error,
            body: String::from_utf8_lossy(&body).into_owned(),
            whole,
            closed: false,
        }
    }
}
