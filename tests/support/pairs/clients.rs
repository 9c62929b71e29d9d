//! How the clients ask, and read answers.

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::time::timeout;

use super::{Asks, Body, Fields, to_map};
use crate::support::{h2_client::H2Client, http::Wire, waypost::DEADLINE};

/// An exchange whose answer is read bit by bit. Dropping it is leaving.
pub enum Opened {
    Http1(Wire),
    H2(
        std::pin::Pin<Box<h2::client::ResponseFuture>>,
        Option<RecvStream>,
    ),
}

impl Opened {
    /// The status of the answer, before any of its body is needed.
    pub async fn head(&mut self) -> u16 {
        match self {
            Self::Http1(wire) => wire.head().await.expect("a head").status(),
            Self::H2(response, body) => {
                let response = timeout(DEADLINE, response.as_mut()).await;
                let (head, rest) = response.expect("in time").expect("a head").into_parts();
                *body = Some(rest);
                head.status.as_u16()
            }
        }
    }

    /// Whether nothing more comes of the body, and what ends it is no end.
    pub async fn is_cut(&mut self) -> bool {
        match self {
            // Its framing asks for more.
            Self::Http1(wire) => wire.take_rest().await.0.trim_ascii().is_empty(),
            Self::H2(_, body) => {
                let data = body.as_mut().expect("the head came").data();
                let data = timeout(DEADLINE, data).await.expect("in time");
                data.is_some_and(|data| data.is_err())
            }
        }
    }

    /// Reads up to and with this text.
    pub async fn body_until(&mut self, text: &str) {
        match self {
            Self::Http1(wire) => {
                wire.take_until(text).await.expect("it comes");
            }
            Self::H2(_, body) => {
                let body = body.as_mut().expect("the head came");
                let mut all = BytesMut::new();
                while !all.ends_with(text.as_bytes()) {
                    let data = timeout(DEADLINE, body.data()).await;
                    let data = data.expect("in time").expect("it comes").expect("whole");
                    let _ = body.flow_control().release_capacity(data.len());
                    all.extend_from_slice(&data);
                }
            }
        }
    }
}

pub(super) fn http1_head(asks: &Asks, host: &str) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", asks.method, asks.path);
    for (name, value) in &asks.fields {
        head += &format!("{name}: {value}\r\n");
    }
    match &asks.body {
        Body::None => {}
        Body::Length(body) => head += &format!("Content-Length: {}\r\n", body.len()),
        Body::Unknown(..) => head += "Transfer-Encoding: chunked\r\n",
    }
    (head + "\r\n").into_bytes()
}

pub(super) fn http1_body(body: &Body) -> Vec<u8> {
    match body {
        Body::None => Vec::new(),
        Body::Length(body) => body.to_vec(),
        Body::Unknown(body, trailers) => [chunk(body), last_chunk(trailers)].concat(),
    }
}

pub(super) fn chunk(data: &[u8]) -> Vec<u8> {
    match data.len() {
        0 => Vec::new(),
        length => [format!("{length:x}\r\n").as_bytes(), data, b"\r\n"].concat(),
    }
}

pub(super) fn last_chunk(trailers: &Fields) -> Vec<u8> {
    let trailers = trailers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("0\r\n{}\r\n", trailers.collect::<String>()).into_bytes()
}

pub(super) async fn open_h2(
    client: &H2Client,
    asks: &Asks,
    host: &str,
) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let uri = format!("http://{host}{}", asks.path);
    let mut request = Request::builder().method(asks.method).uri(uri);
    for (name, value) in &asks.fields {
        request = request.header(name, value);
    }
    if let Body::Length(body) = &asks.body {
        request = request.header("content-length", body.len());
    }
    let request = request.body(()).expect("a request");
    let ends = matches!(asks.body, Body::None);
    let (response, mut stream) = client.open(request, ends).await;
    // It may be over already.
    match &asks.body {
        Body::None => {}
        Body::Length(body) => {
            let _ = stream.send_data(body.clone(), true);
        }
        Body::Unknown(body, trailers) => {
            let _ = stream.send_data(body.clone(), trailers.is_empty());
            if !trailers.is_empty() {
                let _ = stream.send_trailers(to_map(trailers));
            }
        }
    }
    (response, stream)
}
