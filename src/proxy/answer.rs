//! The upstream's answer as the client gets it: relayed, streamed, or taken over by an upgrade.

use std::{rc::Rc, sync::Arc};

use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, UPGRADE},
    request::Parts,
};

use super::{
    Proxy,
    body::{ResponseBody, UpstreamBody},
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
            Connection, StreamingBody,
            body::{UploadLimits, UploadStall},
            decoder::Decoder,
            head::{Framing, ResponseHead},
            upload::Upload,
        },
    },
};

/// A response head, and what comes with it.
pub struct Answer {
    pub head: ResponseHead,
    pub connection: Connection,
    pub upstream: Arc<Upstream>,
    pub deadline: Deadline,
    /// What of the request was still to be sent.
    pub unsent: Option<Upload>,
    /// The upstream was asked for a WebSocket.
    pub may_switch: bool,
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
            connection,
            upstream,
            deadline,
            unsent,
            may_switch,
        } = answer;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !may_switch {
                return Err(Failure::switched_unasked());
            }
            return self.switch(client, route, head, connection, deadline, record);
        }
        record.head(head.status);
        let mut headers = std::mem::take(&mut head.headers);
        if !route.settings.response_headers.is_empty() {
            headers::apply(&route.settings.response_headers, &mut headers);
        }
        let whole = if unsent.is_none() {
            connection.whole_body(head.framing)
        } else {
            None
        };
        let body = match whole {
            Some(bytes) => {
                if head.reusable {
                    self.pools.put(&upstream, connection, head.keep_alive);
                }
                ResponseBody::full(bytes)
            }
            None => {
                if unsent.is_some() && request.version < Version::HTTP_2 {
                    client.leave_body_unread();
                }
                let decoder = Decoder::new(head.framing);
                let unsent = unsent.map(|upload| {
                    let stall = UploadStall {
                        upstream: route.settings.timeouts.idle,
                        client: self.limits.body,
                    };
                    (
                        upload,
                        UploadLimits {
                            stall,
                            deadline: self.sweep.deadline(),
                        },
                    )
                });
                let idle = route.settings.timeouts.idle;
                // An HTTP/1.0 client gets a body of unknown length up to the close: only a reset can tell a cut.
                let cut_needs_reset = request.version == Version::HTTP_10
                    && !matches!(head.framing, Framing::Length(_));
                ResponseBody::upstream(UpstreamBody {
                    body: StreamingBody::new(
                        connection,
                        decoder,
                        head.reusable,
                        idle,
                        deadline,
                        unsent,
                    ),
                    upstream,
                    proxy: self.clone(),
                    keep_alive: head.keep_alive,
                    request_deadline,
                    cut_needs_reset,
                    client: client.clone(),
                })
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        // Never the upstream's own version: hyper would echo a 1.0, and drop lengthless bodies for others.
        *response.version_mut() = Version::HTTP_11;
        *response.headers_mut() = headers;
        Ok(response)
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
