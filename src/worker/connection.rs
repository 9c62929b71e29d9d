//! One client connection, from accept to close: TLS, HTTP/1.1 or HTTP/2, upgrade, linger.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::Socket;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tracing::debug;

use super::{
    Opening,
    admission::{self, Admitted, Speaks},
    http2,
    io::{ClientIo, ClientStream},
    proxy_protocol,
    refusals::{Refusal, Refusals},
    strict::StrictFraming,
    tls::refused_certificate,
};
use crate::{
    config::ClientLimits,
    proxy::{
        Proxy,
        client::{Client, Expiry, Protocol, Refused},
        upgrade::{self, Upgraded},
    },
    telemetry::metrics::Limit,
    upstream::{proxy_protocol::Origin, request_body::incoming::Incoming},
};

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What hyper may hold beyond a whole head: of a response that the client is slow to read, and of what follows a head.
const BEYOND_HEAD: usize = 16 * 1024;
/// Fields of an HTTP/1.1 head that hyper has room for without allocating.
const FIELDS_ON_STACK: usize = 100;
/// How long, and for how many bytes, a close waits for the client to stop sending.
pub(super) const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// How connections are served; one per worker.
pub struct Protocols {
    http1: http1::Builder,
    http2: h2::server::Builder,
    refusals: Refusals,
}

impl Protocols {
    /// With these limits.
    pub fn new(limits: &ClientLimits) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            // The stamps and the sweep do this: hyper's own would also run while a connection is idle.
            .header_read_timeout(None)
            .max_header_size(limits.head_bytes())
            .max_buf_size(limits.head_bytes() + BEYOND_HEAD)
            .writev(true);
        if limits.header_fields > FIELDS_ON_STACK {
            http1.max_headers(limits.header_fields);
        }
        Self {
            http1,
            http2: http2::builder(limits),
            refusals: Refusals::default(),
        }
    }
}

/// A connection just accepted.
pub struct Arrival<'a> {
    pub stream: TcpStream,
    pub opening: Opening,
    /// Its place among all connections.
    pub admitted: &'a Admitted,
}

/// A connection that HTTP is done with: what it was upgraded to has it now.
pub struct Switched {
    io: ClientIo,
    upgraded: Box<Upgraded>,
}

impl Switched {
    /// Carries it to its end.
    pub async fn splice(self, proxy: &Proxy, client: &Rc<Client>) {
        upgrade::splice(self.io, *self.upgraded, proxy, client).await;
        count_limit(proxy, client);
    }
}

/// Serves one connection to its end, or until it is upgraded.
pub async fn serve(
    proxy: &Rc<Proxy>,
    protocols: &Protocols,
    client: &Rc<Client>,
    arrival: Arrival<'_>,
) -> Option<Switched> {
    let Arrival {
        stream,
        opening,
        admitted,
    } = arrival;
    // Small answers must not wait for the acknowledgement of earlier ones.
    let _ = stream.set_nodelay(true);
    if let Some(destination) = opening.destination(&stream) {
        client.came_to(destination);
    }
    let opened = until_expired(client, open(proxy, client, stream, opening, admitted)).await;
    let (stream, replay, protocol) = match opened {
        Some(Ok(opened)) => opened,
        Some(Err(Closed::Refused(refusal))) => {
            protocols.refusals.note(proxy, client.address(), &refusal);
            return None;
        }
        Some(Err(Closed::TurnedAway)) => return None,
        Some(Err(Closed::Broken(error))) => {
            debug!(client = %client.address(), %error, "connection not opened");
            return None;
        }
        None => {
            count_limit(proxy, client);
            return None;
        }
    };
    client.opened(protocol);
    let strict = || StrictFraming::new(proxy.limits.target_bytes);
    let strict = (protocol == Protocol::Http1).then(strict);
    let io = ClientIo::new(stream, replay, strict, client.clone());
    let switched = match protocol {
        Protocol::Http1 => serve_http1(proxy, protocols, client, io).await,
        // Boxed: connections of HTTP/1.1 would carry the room for it in vain.
        Protocol::Http2 => {
            Box::pin(http2::serve(proxy, &protocols.http2, client, io)).await;
            None
        }
    };
    if switched.is_none() {
        count_limit(proxy, client);
    }
    switched
}

/// Counts the limit that ended the connection, if one did.
fn count_limit(proxy: &Proxy, client: &Client) {
    if let Some(limit) = client.expired().and_then(limit_of) {
        proxy.metrics.data_plane.limit_hits.count(limit);
    }
}

fn limit_of(expiry: Expiry) -> Option<Limit> {
    match expiry {
        Expiry::Opening => Some(Limit::Opening),
        Expiry::Head => Some(Limit::Head),
        Expiry::Idle => Some(Limit::Idle),
        Expiry::Write => Some(Limit::Write),
        Expiry::Resets => Some(Limit::Resets),
        Expiry::Room | Expiry::RoomOfHead => Some(Limit::GaveWay),
        Expiry::Drain | Expiry::Removed | Expiry::Leave | Expiry::Abort => None,
    }
}

/// Why a connection was not opened.
enum Closed {
    /// It ended or broke.
    Broken(std::io::Error),
    /// By us.
    Refused(Refusal),
    /// By us, as its address has as many as it may.
    TurnedAway,
}

impl From<std::io::Error> for Closed {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error)
    }
}

async fn open(
    proxy: &Proxy,
    client: &Client,
    mut stream: TcpStream,
    opening: Opening,
    admitted: &Admitted,
) -> Result<(ClientStream, Bytes, Protocol), Closed> {
    if opening.proxy_protocol {
        introduce(proxy, client, &mut stream).await?;
        if !admitted.counts_for(client.address().ip()) {
            let speaks = Speaks::of(&opening);
            admission::turn_away(&stream, speaks);
            return Err(Closed::TurnedAway);
        }
    }
    match opening.tls {
        Some(store) => {
            let accepted = store.accept(stream).await;
            let stream = accepted.map_err(|error| match refused_certificate(&error) {
                Some(_) => Closed::Refused(Refusal::Certificate(error)),
                None => Closed::Broken(error),
            })?;
            if let Some(certificate) = store.client_certificate(stream.get_ref().1) {
                client.is_certified(certificate);
            }
            let protocol = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Protocol::Http2,
                _ => Protocol::Http1,
            };
            Ok((ClientStream::Tls(Box::new(stream)), Bytes::new(), protocol))
        }
        None => {
            let (replay, protocol, stream) = sniff(stream).await?;
            Ok((ClientStream::Plain(stream), replay, protocol))
        }
    }
}

/// Learns from the PROXY header who the client is. Who may not send one is not read from: whatever it says, be it no
/// header at all, would be taken for somebody else's word, or for a client that came round the load balancer.
async fn introduce(proxy: &Proxy, client: &Client, stream: &mut TcpStream) -> Result<(), Closed> {
    if !proxy.trusted.contains(client.address().ip()) {
        return Err(Closed::Refused(Refusal::Peer));
    }
    let header = proxy_protocol::read(stream).await.map_err(|error| {
        let refused = error.get_ref().and_then(|error| error.downcast_ref());
        match refused {
            Some(refused) => Closed::Refused(Refusal::Header(*refused)),
            None => Closed::Broken(error),
        }
    })?;
    match header.origin {
        Origin::Local => {}
        Origin::Unknown => client.is_somebody(),
        Origin::Client {
            source,
            destination,
        } => client.is_at(source, destination),
    }
    Ok(())
}

/// Reads as much as it takes to tell the HTTP/2 preface from anything else.
async fn sniff(mut stream: TcpStream) -> std::io::Result<(Bytes, Protocol, TcpStream)> {
    let mut read = BytesMut::with_capacity(1024);
    loop {
        let known = read.len().min(PREFACE.len());
        if read[..known] != PREFACE[..known] {
            return Ok((read.freeze(), Protocol::Http1, stream));
        }
        if known == PREFACE.len() {
            return Ok((read.freeze(), Protocol::Http2, stream));
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// `future`'s output, or `None` once a limit of the connection has passed.
async fn until_expired<F: Future>(client: &Client, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        client.watch(cx);
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if client.expired().is_some() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn serve_http1(
    proxy: &Rc<Proxy>,
    protocols: &Protocols,
    client: &Rc<Client>,
    io: ClientIo,
) -> Option<Switched> {
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
        let (parts, body) = request.into_parts();
        Ok::<_, Infallible>(
            proxy
                .serve(client, parts, Incoming::Http1(body), None)
                .await,
        )
    });
    // hyper's own shutdown is what makes it write out all that it holds; `without_shutdown` may end before that.
    let mut connection = protocols.http1.serve_connection(TokioIo::new(io), service);
    let ended = poll_fn(|cx| {
        client.watch(cx);
        match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            // Everything else the stream itself turns into an end.
            Poll::Pending if client.expired() == Some(Expiry::Abort) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    match ended {
        Some(Ok(())) => {
            let parts = connection.into_parts();
            let mut io = parts.io.into_inner();
            match client.take_upgrade() {
                Some(upgraded) => {
                    io.unread(parts.read_buf);
                    return Some(Switched { io, upgraded });
                }
                None => close(proxy, client, io).await,
            }
        }
        Some(Err(error)) => {
            debug!(client = %client.address(), %error, "connection ended");
            if let Some(Refused { socket, limit }) = client.take_refused() {
                proxy.count_unrouted("malformed");
                if let Some(limit) = limit {
                    proxy.metrics.data_plane.limit_hits.count(limit);
                }
                if let Some(socket) = socket {
                    close_refused(proxy, socket).await;
                }
            }
        }
        None => {}
    }
    None
}

/// Ends our half, then waits a little for the client to end its own: a close with bytes unread would be a reset,
/// and a reset may overtake the answer it follows.
async fn close(proxy: &Rc<Proxy>, client: &Client, mut io: ClientIo) {
    let lingers = !io.read_eof && (client.has_unread_body() || client.is_draining());
    let deadline = proxy.sweep.deadline();
    deadline.arm(LINGER);
    deadline
        .limit(async {
            if io.shutdown().await.is_ok() && lingers {
                io.read_on();
                read_out(&mut io).await;
            }
        })
        .await;
}

/// The same after an error that hyper answered, which keeps the stream: over a descriptor of our own.
async fn close_refused(proxy: &Rc<Proxy>, socket: Socket) {
    let Ok(mut stream) = TcpStream::from_std(socket.into()) else {
        return;
    };
    let deadline = proxy.sweep.deadline();
    deadline.arm(LINGER);
    deadline
        .limit(async {
            if stream.shutdown().await.is_ok() {
                read_out(&mut stream).await;
            }
        })
        .await;
}

async fn read_out(stream: &mut (impl AsyncRead + Unpin)) {
    // On the heap: every connection's task has room for all that it may ever hold.
    let mut sink = vec![0; 4096];
    let mut left = LINGER_BYTES;
    while let Ok(n @ 1..) = stream.read(&mut sink).await {
        left = left.saturating_sub(n);
        if left == 0 {
            return;
        }
    }
}
