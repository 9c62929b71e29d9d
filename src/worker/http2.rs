//! A client's HTTP/2 connection: its streams are accepted and served side by side, each in a task of its own, until the
//! client leaves, or is sent off by GOAWAY.
//!
//! On `h2` itself and not on hyper's server, which knows neither interim responses nor why a stream is reset, takes a
//! body that the client gave up for one that has ended, and costs more.

mod body;
mod date;
mod resets;
mod socket;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    ext::Protocol,
    server::{Builder, Connection, Handshake, SendResponse},
};
use http::{
    HeaderValue, Method, Request, Response,
    header::{CONTENT_LENGTH, DATE},
};
use http_body::Body;
use tracing::debug;

use self::{body::Sent, resets::Resets};
use super::{connection::LINGER, io::ClientIo};
use crate::{
    config::ClientLimits,
    proxy::{
        Proxy,
        body::ResponseBody,
        client::{Client, Expiry},
        forwarded::Sender,
        stream::Stream,
        upgrade,
    },
    sweep::Deadline,
    upstream::request_body::incoming::Incoming,
};

/// Streams of a connection that were reset for an error of the client's. `h2` counts them for as long as there is the
/// connection, which may be weeks, and refused and malformed ones with them, which cost no exchange: [`Resets`] has what
/// does.
const MAX_ERROR_RESETS: usize = 100_000;
/// How many bytes of a connection are read before others have their turn: `h2` by itself reads on for as long as there is
/// anything, and a byte may stand for a whole field. A frame of the usual size.
const TURN: usize = 16 * 1024;
/// What `h2` charges at most for a small DATA frame that nobody has read yet, in bytes.
const CRUMB: usize = 256;

/// How connections are served.
pub(super) fn builder(limits: &ClientLimits) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.http2.streams)
        .initial_window_size(limits.http2.stream_window)
        .initial_connection_window_size(limits.http2.connection_window)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(64 * 1024)
        // Those that were reset before they were looked at, at one time: whoever leaves gives up all that it has open.
        .max_pending_accept_reset_streams(limits.http2.streams as usize)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        // Two streams full of single bytes: beyond it `h2` ends the connection, which no one stream may bring about by
        // being read slowly. Nor may it be as large as the connection's window, as each frame costs memory.
        .data_frame_budget((limits.http2.stream_window as usize).saturating_mul(2 * CRUMB))
        // WebSockets (RFC 8441 section 3).
        .enable_connect_protocol();
    builder
}

/// Serves one connection to its end.
pub(super) async fn serve(proxy: &Rc<Proxy>, builder: &Builder, client: &Rc<Client>, io: ClientIo) {
    // Behind a load balancer that is trusted are many, who may all give up at once.
    let most = match client.sender(&proxy.trusted) {
        Sender::Trusted => u32::MAX,
        Sender::Unknown => proxy.limits.http2.resets,
    };
    let mut driver = Driver {
        proxy,
        client,
        stage: Stage::Opening(builder.handshake(io)),
        going_away: false,
        gives_way: false,
        closing: None,
        resets: Resets::new(client.clone(), most),
    };
    if let Err(error) = poll_fn(|cx| driver.poll(cx)).await {
        debug!(client = %client.address(), %error, "connection ended");
    }
}

struct Driver<'c> {
    proxy: &'c Rc<Proxy>,
    client: &'c Rc<Client>,
    stage: Stage,
    /// GOAWAY is sent, or will be as soon as anything can be.
    going_away: bool,
    /// What came before that runs by now.
    gives_way: bool,
    /// Watches over the client's way out.
    closing: Option<Deadline>,
    resets: Rc<Resets>,
}

enum Stage {
    /// Preface and settings. Next: `Open`.
    Opening(Handshake<ClientIo, Bytes>),
    /// Streams come and go. Next: none; the connection ends here.
    Open(Connection<ClientIo, Bytes>),
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let client = self.client;
        client.watch(cx);
        client.begin_turn(TURN);
        if !self.going_away && (client.is_draining() || client.expired().is_some()) {
            self.going_away = true;
            if let Stage::Open(connection) = &mut self.stage {
                connection.graceful_shutdown();
            }
        }
        if let (Some(Expiry::Resets), Stage::Open(connection)) = (client.expired(), &mut self.stage)
        {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
        if let Poll::Ready(ended) = self.poll_connection(cx) {
            return Poll::Ready(ended);
        }
        if client.expired() == Some(Expiry::Abort) {
            return Poll::Ready(Ok(()));
        }
        // Whoever needs the room has it already, so the client's word is not waited for.
        if client.expired() == Some(Expiry::Room) && client.unfinished() == 0 {
            if self.gives_way {
                return Poll::Ready(Ok(()));
            }
            self.gives_way = true;
            cx.waker().wake_by_ref();
        }
        // The way out ends with the client's word, for which nobody waits for ever.
        if client.expired().is_some() {
            let closing = self.closing.get_or_insert_with(|| {
                let closing = self.proxy.sweep.deadline();
                closing.arm(LINGER);
                closing
            });
            while closing.poll(cx).is_ready() {
                // Who gave up too much is owed nothing, and may not even read that.
                if client.unfinished() == 0 || client.expired() == Some(Expiry::Resets) {
                    return Poll::Ready(Ok(()));
                }
                closing.arm(LINGER);
            }
        }
        Poll::Pending
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let Stage::Opening(handshake) = &mut self.stage {
            let mut connection = ready!(Pin::new(handshake).poll(cx))?;
            if self.going_away {
                connection.graceful_shutdown();
            }
            self.stage = Stage::Open(connection);
        }
        let Stage::Open(connection) = &mut self.stage else {
            return Poll::Pending;
        };
        while let Some(accepted) = ready!(connection.poll_accept(cx)) {
            let (request, respond) = accepted?;
            let (proxy, client) = (self.proxy.clone(), self.client.clone());
            let resets = self.resets.clone();
            tokio::task::spawn_local(serve_stream(proxy, client, resets, request, respond));
        }
        Poll::Ready(Ok(()))
    }
}

/// Serves one stream to its end. When the client resets it, whatever is done for it is dropped where it stands.
async fn serve_stream(
    proxy: Rc<Proxy>,
    client: Rc<Client>,
    resets: Rc<Resets>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (mut parts, received) = request.into_parts();
    if parts.headers.values().any(is_padded) {
        debug!(client = %client.address(), "a value begins or ends with white space");
        proxy.count_unrouted("malformed");
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    }
    let (body, socket) = if asks_for_websocket(&parts) {
        // From here on it is what RFC 6455 has, and the extension tells it from that of HTTP/1.1.
        parts.method = Method::GET;
        (Incoming::Nothing, Some(received))
    } else {
        match Incoming::of_stream(received, &parts.headers) {
            Some(body) => (body, None),
            // Malformed (RFC 9113 section 8.1.1).
            None => {
                proxy.count_unrouted("malformed");
                return respond.send_reset(Reason::PROTOCOL_ERROR);
            }
        }
    };
    let stream = Stream::new(respond, socket);
    let response = {
        let mut serving = pin!(proxy.serve(&client, parts, body, Some(&stream)));
        poll_fn(|cx| match stream.poll_reset(cx) {
            // First: to what serves it, the reset is a body that breaks off.
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => serving.as_mut().poll(cx).map(Some),
        })
        .await
    };
    let Some(response) = response else {
        return resets.count();
    };
    match stream.take_upgrade() {
        Some((upgraded, received)) => {
            let head = response.map(|_| ());
            if let Ok(sending) = stream.respond(dated(head), false) {
                drop(stream);
                let io = socket::Socket::new(received, sending);
                let socket = client.carry();
                // Boxed: most streams carry the room for it in vain.
                Box::pin(upgrade::splice(io, *upgraded, &proxy, socket.client())).await;
            }
        }
        None => match answer(&proxy, &client, &stream, response).await {
            Sent::Whole => resets.make_good(),
            Sent::InPart => {}
            Sent::GivenUp => resets.count(),
        },
    }
}

/// White space around a value makes the message malformed (RFC 9113 section 8.2.1).
fn is_padded(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    is_space(bytes.first()) || is_space(bytes.last())
}

/// RFC 8441 section 4.
fn asks_for_websocket(request: &http::request::Parts) -> bool {
    request.method == Method::CONNECT
        && (request.extensions.get::<Protocol>())
            .is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

async fn answer(
    proxy: &Rc<Proxy>,
    client: &Client,
    stream: &Stream,
    response: Response<ResponseBody>,
) -> Sent {
    let (parts, body) = response.into_parts();
    let mut head = dated(Response::from_parts(parts, ()));
    let ends = body.is_end_stream();
    if !ends
        && let Some(length) = body.size_hint().exact()
        && !head.headers().contains_key(CONTENT_LENGTH)
    {
        head.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    match stream.respond(head, ends) {
        Ok(_) if ends => Sent::Whole,
        Ok(sending) => {
            let patience = stream.patience().unwrap_or(proxy.limits.body);
            body::send(proxy, client, patience, body, sending).await
        }
        Err(_) => Sent::InPart,
    }
}

/// With a `Date`, if there is none (RFC 9110 section 6.6.1).
fn dated(mut head: Response<()>) -> Response<()> {
    if let http::header::Entry::Vacant(entry) = head.headers_mut().entry(DATE) {
        entry.insert(date::now());
    }
    head
}
