//! The upstream's answer as the client gets it: relayed, streamed, or taken over by an upgrade.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SET_COOKIE, UPGRADE},
    request::Parts,
};
use hyper::ext::ReasonPhrase;

use super::{
    Proxy,
    attempt::Sent,
    body::{ResponseBody, StreamingBody, UpstreamBody},
    client::Client,
    error::Failure,
    headers,
    record::RequestRecord,
    stream::Stream,
    upgrade::{FarEnd, Handshake, Upgraded},
};
use crate::{
    route::Route,
    sweep::Deadline,
    upstream::{
        Upstream,
        http1::{
            self, Connection,
            body::{UploadLimits, UploadStall},
            decoder::Decoder,
            head::{Framing, ResponseHead},
        },
        http2,
    },
};

/// A response head, and what comes with it.
pub struct Answer {
    pub head: ResponseHead,
    pub rest: Rest,
    pub upstream: Arc<Upstream>,
    pub deadline: Deadline,
    /// What makes the client stick to its upstream.
    pub cookie: Option<HeaderValue>,
}

/// What comes behind a response head, and from where.
pub enum Rest {
    /// Over a connection of its own.
    Http1 {
        connection: Connection,
        /// How much of the request was sent.
        sent: Sent,
    },
    /// Over a stream of a shared one.
    Http2(http2::Exchange),
}

impl Rest {
    fn is_sending(&self) -> bool {
        match self {
            Self::Http1 { sent, .. } => matches!(sent, Sent::Partly(_)),
            Self::Http2(exchange) => exchange.is_sending(),
        }
    }
}

/// The body behind a head.
enum Behind {
    /// All of it is here.
    Whole(Bytes),
    Streaming(StreamingBody),
}

impl Proxy {
    /// The upstream's answer as the client gets it.
    pub(super) fn respond(
        self: &Rc<Self>,
        asked: &Asked<'_>,
        route: &Route,
        answer: Answer,
        request_deadline: Option<Deadline>,
        record: &mut Box<RequestRecord>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let Answer {
            mut head,
            rest,
            upstream,
            deadline,
            cookie,
        } = answer;
        if let Some(handshake) = asked.handshake {
            if rest.grants_socket(&head) {
                let far_end = rest.into_socket(&head, handshake, &upstream)?;
                record.head(head.status);
                let response = asked.switch(handshake, route, head, far_end, deadline);
                // Each version grants it in its own way.
                record.status = response.status().as_u16();
                return Ok(sticking(response, cookie));
            }
            if handshake.is_connect() && head.status.is_success() {
                // To the client it would be the WebSocket that it is not (RFC 9113 section 8.5).
                let why = format!("answered {} and no WebSocket", head.status);
                return Err(Failure::no_socket(&upstream.name, &why));
            }
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::switched_unasked());
        }
        record.head(head.status);
        let mut headers = std::mem::take(&mut head.headers);
        if !route.settings.response_headers.is_empty() {
            headers::apply(&route.settings.response_headers, &mut headers);
        }
        let Asked {
            client, request, ..
        } = asked;
        if rest.is_sending() && request.version < Version::HTTP_2 {
            client.leave_body_unread();
        }
        let behind = match rest {
            Rest::Http1 { connection, sent } => {
                self.body_of_http1(connection, sent, &head, &upstream, route, deadline)
            }
            Rest::Http2(exchange) => {
                let patience = self.patience(request, route);
                self.body_of_http2(exchange, &head, route, deadline, patience)
            }
        };
        let body = match behind {
            Behind::Whole(bytes) => {
                record.upstream_finished();
                ResponseBody::full(bytes)
            }
            Behind::Streaming(body) => {
                if let Some(stream) = asked.stream {
                    stream.be_patient(self.patience_with_reader(request, &headers, route));
                }
                ResponseBody::upstream(UpstreamBody {
                    body,
                    upstream,
                    proxy: self.clone(),
                    keep_alive: head.keep_alive,
                    request_deadline,
                    is_out_of_time: false,
                    // An HTTP/1.0 client gets a body of unknown length up to the close: only a reset can tell a cut.
                    cut_needs_reset: request.version == Version::HTTP_10
                        && !matches!(head.framing, Framing::Length(_)),
                    client: (*client).clone(),
                    broken: None,
                })
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        // Never the upstream's own version: hyper would echo a 1.0, and drop lengthless bodies for others.
        *response.version_mut() = Version::HTTP_11;
        *response.headers_mut() = headers;
        if head.status.canonical_reason().is_none() {
            // hyper has a word of its own for those that it knows none for, and a phrase may be empty (RFC 9112 section 4).
            response
                .extensions_mut()
                .insert(ReasonPhrase::from_static(b""));
        }
        Ok(sticking(response, cookie))
    }

    fn body_of_http1(
        &self,
        connection: Connection,
        sent: Sent,
        head: &ResponseHead,
        upstream: &Arc<Upstream>,
        route: &Route,
        deadline: Deadline,
    ) -> Behind {
        let unsent = match sent {
            Sent::All(_) => None,
            Sent::Partly(mut upload) => {
                upload.forget();
                Some(upload)
            }
        };
        let whole = match unsent {
            None => connection.whole_body(head.framing),
            Some(_) => None,
        };
        if let Some(bytes) = whole {
            if head.reusable {
                self.pools.put(upstream, connection, head.keep_alive);
            }
            return Behind::Whole(bytes);
        }
        Behind::Streaming(StreamingBody::Http1(http1::StreamingBody::new(
            connection,
            Decoder::new(head.framing),
            head.reusable,
            route.settings.timeouts.idle,
            deadline,
            unsent.map(|upload| (upload, self.upload_limits(route, self.body_timeout(route)))),
        )))
    }

    fn body_of_http2(
        &self,
        mut exchange: http2::Exchange,
        head: &ResponseHead,
        route: &Route,
        deadline: Deadline,
        patience: Duration,
    ) -> Behind {
        exchange.forget();
        if head.framing == Framing::Length(0) {
            exchange.settle(deadline);
            return Behind::Whole(Bytes::new());
        }
        let is_sending = exchange.is_sending();
        Behind::Streaming(StreamingBody::Http2(http2::StreamingBody::new(
            exchange,
            head.framing,
            route.settings.timeouts.idle,
            deadline,
            is_sending.then(|| self.upload_limits(route, patience)),
        )))
    }

    fn upload_limits(&self, route: &Route, client: Duration) -> UploadLimits {
        UploadLimits {
            stall: UploadStall {
                upstream: route.settings.timeouts.idle,
                client,
            },
            deadline: self.sweep.deadline(),
        }
    }
}

impl Rest {
    /// Whether what was asked for a WebSocket has granted it.
    fn grants_socket(&self, head: &ResponseHead) -> bool {
        match self {
            Self::Http1 { .. } => head.status == StatusCode::SWITCHING_PROTOCOLS,
            // Any success (RFC 9113 section 8.5).
            Self::Http2(_) => head.status.is_success(),
        }
    }

    /// What the upstream's end of the WebSocket is read from and written to, and what was read of it.
    fn into_socket(
        self,
        head: &ResponseHead,
        handshake: &Handshake,
        upstream: &Upstream,
    ) -> Result<(FarEnd, Bytes), Failure> {
        let connection = match self {
            Self::Http2(exchange) => {
                return Ok((
                    FarEnd::Http2(Box::new(exchange.into_socket())),
                    Bytes::new(),
                ));
            }
            Self::Http1 { connection, .. } => connection,
        };
        let protocol = head.upgrade.as_ref();
        if !protocol.is_some_and(|named| named.as_bytes().eq_ignore_ascii_case(b"websocket")) {
            return Err(Failure::switched_unasked());
        }
        if !handshake.is_proved_by(&head.headers) {
            let why = "switched without the proof that it speaks WebSocket";
            return Err(Failure::no_socket(&upstream.name, why));
        }
        let (transport, read) = connection
            .into_stream()
            .ok_or_else(Failure::switched_unasked)?;
        Ok((FarEnd::Http1(transport), read.freeze()))
    }
}

/// Who asked, and how.
pub struct Asked<'r> {
    pub client: &'r Rc<Client>,
    pub request: &'r Parts,
    /// It asks for a WebSocket.
    pub handshake: Option<&'r Handshake>,
    /// The stream that it came on, over HTTP/2.
    pub stream: Option<&'r Stream>,
}

impl Asked<'_> {
    /// The client's connection, or its stream, belongs to a WebSocket from now on; this is what tells it so.
    fn switch(
        &self,
        handshake: &Handshake,
        route: &Route,
        head: ResponseHead,
        (far_end, read): (FarEnd, Bytes),
        deadline: Deadline,
    ) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::empty());
        let came_over_http2 = matches!(far_end, FarEnd::Http2(_));
        *response.headers_mut() = head.headers;
        let headers = response.headers_mut();
        headers::apply(&route.settings.response_headers, headers);
        let upgraded = Upgraded {
            far_end,
            read,
            idle: route.settings.timeouts.idle,
            deadline,
            record: None,
        };
        match self.stream {
            Some(stream) => {
                headers.remove(SEC_WEBSOCKET_ACCEPT);
                *response.status_mut() = StatusCode::OK;
                stream.upgrade(upgraded);
            }
            None => {
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(
                    UPGRADE,
                    head.upgrade
                        .unwrap_or(HeaderValue::from_static("websocket")),
                );
                if let (true, Some(proof)) = (came_over_http2, handshake.proof()) {
                    headers.insert(SEC_WEBSOCKET_ACCEPT, proof);
                }
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                self.client.upgrade(upgraded);
            }
        }
        response
    }
}

/// Beside whatever cookies the upstream sets.
fn sticking(
    mut response: Response<ResponseBody>,
    cookie: Option<HeaderValue>,
) -> Response<ResponseBody> {
    if let Some(cookie) = cookie {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}
