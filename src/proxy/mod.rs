//! A request's way: look-up, pick, dial, exchange, answer. One instance per worker; nothing here crosses threads.

pub mod body;
pub mod client;
pub mod error;
pub mod forwarded;
mod headers;
pub mod record;
pub mod retry;
mod target;
pub mod upgrade;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, LOCATION, UPGRADE},
    request::Parts,
};
use hyper::body::Incoming;

use body::{ResponseBody, UpstreamBody};
use client::{Client, ClientLimits};
use error::Failure;
use forwarded::{Scheme, Sender, TrustedProxies, forwarded_proto};
use headers::UpstreamHead;
use record::RequestRecord;
use retry::Attempt;
use smallvec::SmallVec;
use target::Target;
use upgrade::Upgraded;

use crate::{
    live::Live,
    route::{Route, table::Miss},
    sweep::{Deadline, Sweep},
    telemetry::{access_log::AccessLog, metrics::Metrics},
    upstream::{
        Upstream,
        dial::Dialler,
        http1::{
            Connection, ExchangeLimits, StreamingBody,
            body::{UploadLimits, UploadStall},
            decoder::Decoder,
            head::{Framing, MAX_FIELDS, ResponseHead},
            upload::Upload,
        },
        pool::Pools,
        request_body::RequestBody,
    },
};

/// What every request of one worker needs.
pub struct Proxy {
    /// The current table, and how its source is.
    pub live: Arc<Live>,
    /// Process-wide counters.
    pub metrics: Arc<Metrics>,
    /// Where finished requests are written, if anywhere.
    pub access_log: Option<AccessLog>,
    /// Whose `X-Forwarded-*` is believed.
    pub trusted: Arc<TrustedProxies>,
    /// Idle connections to upstreams.
    pub pools: Pools,
    /// Makes new ones.
    pub dialler: Dialler,
    /// The worker's clock.
    pub sweep: Rc<Sweep>,
    /// What clients may take their time for.
    pub limits: ClientLimits,
    /// Set while the process drains: HTTP/1 answers carry `Connection: close`.
    pub draining: Cell<bool>,
    /// Buffers for request heads, used again and again.
    pub buffers: RefCell<Vec<Vec<u8>>>,
}

/// Attempts beyond the first that a request may cost, refused connects apart.
const EXTRA_ATTEMPTS: u32 = 1;
/// How many members a request tries while each refuses the connection.
const MAX_REFUSALS: usize = 8;
/// The most spare head buffers a worker keeps, and the largest it keeps.
const SPARE_BUFFERS: usize = 256;
const SPARE_BUFFER_SIZE: usize = 8 * 1024;

impl Proxy {
    /// Answers one request.
    pub async fn serve(
        self: &Rc<Self>,
        client: &Rc<Client>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let (parts, incoming) = request.into_parts();
        let mut record = RequestRecord::new(self, client, &parts);
        let mut response = match self.forward(client, &parts, incoming, &mut record).await {
            Ok(response) => response,
            Err(failure) => {
                record.status = failure.status.as_u16();
                record.reason = Some(failure.error);
                failure.into_response()
            }
        };
        client.settle_interim();
        if parts.version < Version::HTTP_2 {
            let closes = self.draining.get() || client.has_unread_body();
            if closes && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            client.end_with_upgrade(record);
            return response;
        }
        response.map(|body| body.with_record(record))
    }

    async fn forward(
        self: &Rc<Self>,
        client: &Rc<Client>,
        request: &Parts,
        incoming: Incoming,
        record: &mut Box<RequestRecord>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let body_announced = !hyper::body::Body::is_end_stream(&incoming);
        let early = |failure: Failure| {
            if body_announced {
                client.leave_body_unread();
            }
            failure
        };
        // hyper counts those of HTTP/1, and leaves those of HTTP/2 to us.
        if request.headers.len() > MAX_FIELDS {
            self.count_unrouted("malformed");
            return Err(early(Failure::too_many_fields()));
        }
        let target = target::of(request)
            .inspect_err(|_| self.count_unrouted("malformed"))
            .map_err(early)?;
        record.host(&target.host);
        let route = {
            let table = self.live.table.load();
            record.revision = table.revision;
            table.find(&target.host, target.path).cloned()
        };
        let route = route.map_err(|miss| early(self.unrouted(miss, &target)))?;
        record.route = Some(route.clone());

        let sender = match self.trusted.contains(client.address.ip()) {
            true => Sender::Trusted,
            false => Sender::Unknown,
        };
        let scheme = if client.tls {
            Scheme::Https
        } else {
            Scheme::Http
        };
        let settings = &*route.settings;
        if settings.redirect_https
            && forwarded_proto(request.headers.get("x-forwarded-proto"), scheme, sender)
                == Scheme::Http
        {
            if body_announced {
                client.leave_body_unread();
            }
            let response = redirect(&target)?;
            record.status = response.status().as_u16();
            return Ok(response);
        }
        let path = rewritten(&route, &target).map_err(early)?;
        let body = RequestBody::new(incoming, settings.max_body);
        if body.length().is_none() && headers::has_other_coding(&request.headers) {
            return Err(early(Failure::new(
                StatusCode::NOT_IMPLEMENTED,
                "http_request_error",
                "a transfer coding other than chunked",
            )));
        }
        if let (Some(limit), Some(length)) = (settings.max_body, body.length())
            && length > limit
        {
            return Err(early(Failure::body_too_large()));
        }
        record.request_bytes = body.received();

        let journey = Journey {
            proxy: self,
            client,
            request,
            target: &target,
            route: &route,
            path,
            sender,
            scheme,
            wants_upgrade: body.is_end() && headers::asks_for_websocket(request),
        };
        let request_deadline = settings.timeouts.request.map(|limit| {
            let deadline = self.sweep.deadline();
            deadline.arm(limit);
            deadline
        });
        let answered = match &request_deadline {
            None => Some(journey.run(body, record).await),
            Some(deadline) => deadline.limit(journey.run(body, record)).await,
        };
        let outcome = answered.unwrap_or_else(|| {
            Err(Failure::new(
                StatusCode::GATEWAY_TIMEOUT,
                "http_response_timeout",
                "the request took too long",
            ))
        });
        let answer = outcome.map_err(early)?;
        self.respond(client, request, &route, answer, request_deadline, record)
    }

    /// 404, unless there is no table yet: then nobody can say what exists.
    fn unrouted(&self, miss: Miss, target: &Target<'_>) -> Failure {
        if self.live.applied.borrow().is_none() {
            self.count_unrouted("no_table");
            return Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "proxy_internal_error",
                "no routes have been loaded yet",
            );
        }
        let (reason, what) = match miss {
            Miss::Host => ("no_host", format!("no route for host {}", target.host)),
            Miss::Path => (
                "no_path",
                format!("no route for this path of host {}", target.host),
            ),
        };
        self.count_unrouted(reason);
        let stale = self
            .live
            .status
            .borrow()
            .stale_since
            .map(|since| since.elapsed().as_secs());
        let details = match stale {
            Some(seconds) => format!("{what}; routes are stale for {seconds} s"),
            None => what,
        };
        Failure::new(StatusCode::NOT_FOUND, "destination_not_found", details)
    }

    fn count_unrouted(&self, reason: &str) {
        self.metrics
            .data_plane
            .unrouted
            .with_label_values(&[reason])
            .inc();
    }

    /// The upstream's answer as the client gets it.
    fn respond(
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
        } = answer;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(client, route, head, connection, deadline, record, request);
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

    /// A 101: asked for, it takes the connection over; else it is nonsense.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one answer, used once"
    )]
    fn switch(
        &self,
        client: &Rc<Client>,
        route: &Route,
        head: ResponseHead,
        connection: Connection,
        deadline: Deadline,
        record: &mut Box<RequestRecord>,
        request: &Parts,
    ) -> Result<Response<ResponseBody>, Failure> {
        let upgrade = head
            .upgrade
            .filter(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let Some((upgrade, (transport, read))) = upgrade
            .filter(|_| headers::asks_for_websocket(request))
            .zip(connection.into_stream())
        else {
            return Err(Failure::new(
                StatusCode::BAD_GATEWAY,
                "http_protocol_error",
                "the upstream switched protocols unasked",
            ));
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

    fn take_buffer(&self) -> Vec<u8> {
        self.buffers
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(1024))
    }

    fn give_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_BUFFER_SIZE {
            buffers.push(buffer);
        }
    }
}

/// A response head, and what comes with it.
struct Answer {
    head: ResponseHead,
    connection: Connection,
    upstream: Arc<Upstream>,
    deadline: Deadline,
    /// What of the request was still to be sent.
    unsent: Option<Upload>,
}

/// Where an attempt takes its connection from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// An idle one, if there is one.
    Pool,
    /// A new one: what broke a pooled connection broke its siblings too.
    Dial,
}

/// An attempt without a response head.
struct Failed {
    failure: Failure,
    may_repeat: bool,
    body: RequestBody,
    at: FailedAt,
}

enum FailedAt {
    Connecting,
    PooledConnection,
    FreshConnection,
}

/// One request on its way to some upstream of its route.
struct Journey<'r> {
    proxy: &'r Rc<Proxy>,
    client: &'r Rc<Client>,
    request: &'r Parts,
    target: &'r Target<'r>,
    route: &'r Route,
    path: headers::Path<'r>,
    sender: Sender,
    scheme: Scheme,
    wants_upgrade: bool,
}

impl Journey<'_> {
    /// Tries members until one answers, or trying on would not be safe or of use.
    async fn run(
        &self,
        mut body: RequestBody,
        record: &mut RequestRecord,
    ) -> Result<Answer, Failure> {
        let proxy = self.proxy;
        let deadline = proxy.sweep.deadline();
        let mut tried: SmallVec<[usize; 4]> = SmallVec::new();
        let mut extra = EXTRA_ATTEMPTS;
        let mut index = self.route.pick(&tried).ok_or_else(|| self.nobody())?;
        let mut from = From::Pool;
        loop {
            let upstream = &self.route.members[index].upstream;
            record.upstream = Some(upstream.clone());
            let failed = match self.attempt(upstream, from, body, &deadline, record).await {
                Ok((head, connection, unsent)) => {
                    return Ok(Answer {
                        head,
                        connection,
                        upstream: upstream.clone(),
                        deadline,
                        unsent,
                    });
                }
                Err(failed) => failed,
            };
            upstream.metrics.failures.inc();
            if !failed.may_repeat {
                return Err(failed.failure);
            }
            body = failed.body;
            (index, from) = match failed.at {
                // The upstream closed it as we took it: a fresh connection is as good as any, and costs no attempt.
                FailedAt::PooledConnection => (index, From::Dial),
                FailedAt::Connecting => {
                    tried.push(index);
                    match self.route.pick(&tried) {
                        Some(other) if tried.len() < MAX_REFUSALS => (other, From::Pool),
                        _ => return Err(failed.failure),
                    }
                }
                FailedAt::FreshConnection if extra > 0 => {
                    extra -= 1;
                    tried.push(index);
                    self.route
                        .pick(&tried)
                        .map_or((index, From::Dial), |other| (other, From::Pool))
                }
                FailedAt::FreshConnection => return Err(failed.failure),
            };
            record.retries += 1;
            proxy.metrics.data_plane.retries.inc();
        }
    }

    /// One attempt at one upstream: the head of its answer, or what may be done about its absence.
    async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        from: From,
        body: RequestBody,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<(ResponseHead, Connection, Option<Upload>), Failed> {
        let proxy = self.proxy;
        let pooled = match from {
            From::Pool => proxy.pools.take(upstream),
            From::Dial => None,
        };
        let (connection, at) = match pooled {
            Some(connection) => (connection, FailedAt::PooledConnection),
            None => match self.dial(upstream, deadline, record).await {
                Ok(connection) => (connection, FailedAt::FreshConnection),
                Err(failure) => {
                    let may_repeat = retry::is_safe(&self.request.method, Attempt::Dial);
                    return Err(Failed {
                        failure,
                        may_repeat,
                        body,
                        at: FailedAt::Connecting,
                    });
                }
            },
        };

        upstream.metrics.requests.inc();
        let mut buffer = proxy.take_buffer();
        let framing = self.head(upstream, body.length()).write(&mut buffer);
        let mut upload = Upload::new(
            buffer,
            body,
            framing,
            headers::expects_continue(self.request),
        );
        let limits = ExchangeLimits {
            response: self.route.settings.timeouts.response,
            idle: self.route.settings.timeouts.idle,
            client_body: proxy.limits.body,
        };
        let relay = |head: &ResponseHead| {
            if self.request.version == Version::HTTP_11 {
                self.client
                    .send_interim(&headers::interim_head(head.status, &head.headers));
            }
        };
        match connection
            .exchange(&mut upload, &self.request.method, &limits, deadline, relay)
            .await
        {
            Ok(head) if upload.is_done() => {
                proxy.give_buffer(upload.into_parts().0);
                Ok((head, connection, None))
            }
            Ok(head) => Ok((head, connection, Some(upload))),
            Err(error) => {
                let attempt = Attempt::Exchange {
                    error: &error,
                    written: upload.written(),
                    body_untouched: upload.is_body_untouched(),
                };
                let may_repeat = retry::is_safe(&self.request.method, attempt);
                let (buffer, body) = upload.into_parts();
                proxy.give_buffer(buffer);
                Err(Failed {
                    failure: Failure::exchange(&error, &upstream.name),
                    may_repeat,
                    body,
                    at,
                })
            }
        }
    }

    fn nobody(&self) -> Failure {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            format!(
                "route {} has no upstream that takes requests",
                self.route.name
            ),
        )
    }

    async fn dial(
        &self,
        upstream: &Upstream,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<Connection, Failure> {
        let begun = Instant::now();
        deadline.arm(self.route.settings.timeouts.connect);
        let dialled = deadline.limit(self.proxy.dialler.dial(upstream)).await;
        deadline.disarm();
        match dialled {
            Some(Ok(connection)) => {
                record.connected(begun);
                Ok(connection)
            }
            Some(Err(error)) => Err(Failure::dial(&error, &upstream.name)),
            None => Err(Failure::connect_timeout(&upstream.name)),
        }
    }

    fn head<'u>(&'u self, upstream: &'u Upstream, length: Option<u64>) -> UpstreamHead<'u> {
        UpstreamHead {
            request: self.request,
            target: self.target,
            path: self.path,
            settings: &self.route.settings,
            upstream,
            client: self.client.address.ip(),
            sender: self.sender,
            scheme: self.scheme,
            length,
            upgrade: self.wants_upgrade,
        }
    }
}

/// `redirect_https`: 308 to the same place on port 443.
fn redirect(target: &Target<'_>) -> Result<Response<ResponseBody>, Failure> {
    if target.host.is_empty() {
        return Err(Failure::malformed("no Host to redirect to"));
    }
    let location = format!("https://{}{}", target.host, target.path_and_query);
    let location = HeaderValue::try_from(location)
        .map_err(|_| Failure::malformed("malformed request target"))?;
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// The path to ask the upstream for: strip, then add.
fn rewritten<'r>(route: &'r Route, target: &Target<'r>) -> Result<headers::Path<'r>, Failure> {
    let query = &target.path_and_query[target
        .path_and_query
        .find('?')
        .unwrap_or(target.path_and_query.len())..];
    let settings = &*route.settings;
    if target.path == "*" {
        return Ok(headers::Path {
            added: "",
            rest: "*",
            query,
        });
    }
    let rest = if settings.strip_prefix {
        route.prefix.strip(target.path).ok_or_else(|| {
            Failure::malformed("the path is spelled so that its prefix cannot be stripped without changing the rest")
        })?
    } else {
        target.path
    };
    Ok(headers::Path {
        added: &settings.add_prefix,
        rest,
        query,
    })
}
