//! The upstream's answer as the client gets it: relayed, streamed, or taken over by an upgrade.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, SET_COOKIE, UPGRADE},
    request::Parts,
};

use super::{
    Proxy,
    attempt::Sent,
    body::{ResponseBody, StreamingBody, UpstreamBody},
    client::Client,
    error::Failure,
    headers,
    record::RequestRecord,
    upgrade::Upgraded,
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
    /// The upstream was asked for a WebSocket.
    pub may_switch: bool,
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
        client: &Rc<Client>,
        request: &Parts,
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
            may_switch,
            cookie,
        } = answer;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return match rest {
                Rest::Http1 { connection, .. } if may_switch => {
                    let response = self.switch(client, route, head, connection, deadline, record);
                    response.map(|response| sticking(response, cookie))
                }
                _ => Err(Failure::switched_unasked()),
            };
        }
        record.head(head.status);
        let mut headers = std::mem::take(&mut head.headers);
        if !route.settings.response_headers.is_empty() {
            headers::apply(&route.settings.response_headers, &mut headers);
        }
        if rest.is_sending() && request.version < Version::HTTP_2 {
            client.leave_body_unread();
        }
        let behind = match rest {
            Rest::Http1 { connection, sent } => {
                self.body_of_http1(connection, sent, &head, &upstream, route, deadline)
            }
            Rest::Http2(exchange) => self.body_of_http2(exchange, &head, route, deadline),
        };
        let body = match behind {
            Behind::Whole(bytes) => {
                record.upstream_finished();
                ResponseBody::full(bytes)
            }
            Behind::Streaming(body) => ResponseBody::upstream(UpstreamBody {
                body,
                upstream,
                proxy: self.clone(),
                keep_alive: head.keep_alive,
                request_deadline,
                is_out_of_time: false,
                // An HTTP/1.0 client gets a body of unknown length up to the close: only a reset can tell a cut.
                cut_needs_reset: request.version == Version::HTTP_10
                    && !matches!(head.framing, Framing::Length(_)),
                client: client.clone(),
            }),
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        // Never the upstream's own version: hyper would echo a 1.0, and drop lengthless bodies for others.
        *response.version_mut() = Version::HTTP_11;
        *response.headers_mut() = headers;
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
            unsent.map(|upload| (upload, self.upload_limits(route))),
        )))
    }

    fn body_of_http2(
        &self,
        mut exchange: http2::Exchange,
        head: &ResponseHead,
        route: &Route,
        deadline: Deadline,
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
            is_sending.then(|| self.upload_limits(route)),
        )))
    }

    fn upload_limits(&self, route: &Route) -> UploadLimits {
        let timeouts = &route.settings.timeouts;
        UploadLimits {
            stall: UploadStall {
                upstream: timeouts.idle,
                client: timeouts.client_body.unwrap_or(self.limits.body),
            },
            deadline: self.sweep.deadline(),
        }
    }

    /// A 101 takes the connection over, if it is to what was asked for.
    fn switch(
        &self,
        client: &Rc<Client>,
        route: &Route,
        head: ResponseHead,
        connection: Connection,
        deadline: Deadline,
        record: &mut Box<RequestRecord>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let upgrade = head
            .upgrade
            .filter(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let Some((upgrade, (transport, read))) = upgrade.zip(connection.into_stream()) else {
            return Err(Failure::switched_unasked());
        };
        record.head(head.status);
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        headers::apply(&route.settings.response_headers, response.headers_mut());
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, upgrade);
        client.upgrade(Upgraded {
            transport,
            read: read.freeze(),
            idle: route.settings.timeouts.idle,
            deadline,
            record: None,
        });
        Ok(response)
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
