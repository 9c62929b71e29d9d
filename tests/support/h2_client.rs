//! An HTTP/2 client on the `h2` crate, which shows a stream's every event.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use h2::{
    Reason, RecvStream, SendStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, Response};
use tokio::{net::TcpStream, time::timeout};

use super::waypost::{DEADLINE, eventually};

/// One connection.
#[derive(Clone)]
pub struct H2Client(SendRequest<Bytes>);

/// A whole answer.
pub struct Answer {
    pub head: Response<()>,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

/// Why there is no whole answer.
pub type Cut = Option<Reason>;

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let value = self.head.headers().get(name)?;
        Some(value.to_str().expect("text"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl H2Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it accepts");
        stream.set_nodelay(true).expect("a socket");
        let (sender, connection) = client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request's head; the body is left to the caller unless `ends`.
    pub async fn open(
        &self,
        request: Request<()>,
        ends: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut sender = self.0.clone().ready().await.expect("it is open");
        sender.send_request(request, ends).expect("it is open")
    }

    /// Waits until the server has said that it takes extended CONNECT (RFC 8441 section 3).
    pub async fn until_it_takes_connect(&self) {
        let is_taken = async || self.0.is_extended_connect_protocol_enabled();
        eventually("its settings have come", is_taken).await;
    }

    /// A request without a body.
    pub async fn ask(&self, request: Request<()>) -> Result<Answer, Cut> {
        let (response, _stream) = self.open(request, true).await;
        collect(response).await
    }
}

/// The whole of an answer.
pub async fn collect(response: ResponseFuture) -> Result<Answer, Cut> {
    let collecting = async {
        let response = response.await.map_err(|error| error.reason())?;
        let (head, body) = response.into_parts();
        let (body, trailers) = rest(body).await?;
        Ok(Answer {
            head: Response::from_parts(head, ()),
            body,
            trailers,
        })
    };
    timeout(DEADLINE, collecting).await.expect("it is answered")
}

/// The whole of a body, and its trailers.
pub async fn rest(mut body: RecvStream) -> Result<(Bytes, HeaderMap), Cut> {
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| error.reason())?;
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.map_err(|error| error.reason())?;
    Ok((all.freeze(), trailers.unwrap_or_default()))
}
