//! A request's way: look-up, then its journey to an upstream, then the answer. One instance per worker;
//! nothing here crosses threads.

mod affinity;
mod answer;
mod attempt;
pub mod body;
pub mod budget;
mod claim;
pub mod client;
mod connect;
mod cookies;
mod discard;
pub mod ejections;
pub mod error;
pub mod forwarded;
pub mod grpc;
mod headers;
pub mod in_flight;
mod journey;
mod max_forwards;
mod outcome;
pub mod record;
mod redirect;
pub mod retry;
mod rfc7239;
mod setback;
pub mod stream;
mod target;
mod tries;
pub mod upgrade;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, UPGRADE},
    request::Parts,
};

use affinity::Affinity;
use answer::Asked;
use body::ResponseBody;
use budget::RetryBudgets;
use client::Client;
use ejections::Ejections;
use error::Failure;
use forwarded::{Claims, Scheme, TrustedProxies};
use in_flight::InFlight;
use journey::{Journey, Stop, Trip};
use record::RequestRecord;
use stream::Stream;
use target::Target;
use upgrade::{Handshake, Ties};

use crate::{
    config::{ClientLimits, ForwardedField},
    live::Live,
    route::{Route, UpstreamTarget, table::Miss},
    sweep::{self, Sweep},
    telemetry::{
        access_log::AccessLog,
        metrics::{Metrics, Observer},
    },
    upstream::{
        dial::Dialler,
        http2,
        load::WorkerLoads,
        pool::Pools,
        request_body::{RequestBody, incoming::Incoming, replay::ReplayRoom},
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
    /// By which field upstreams are told of clients.
    pub forwarded: ForwardedField,
    /// By which fields upstreams are told of clients' certificates: no client may send them.
    pub certificate_fields: Arc<[HeaderName]>,
    /// The requests that run.
    pub in_flight: InFlight,
    /// What is in flight to each upstream, and this worker's part of it.
    pub loads: WorkerLoads,
    /// Where this worker notes what it sees of upstreams.
    pub observer: Observer,
    /// What ties the upgraded connections to the table.
    pub ties: Ties,
    /// Upgraded connections that were cut when the process ended.
    pub cut: Cell<usize>,
    /// Upstreams that this worker ejected.
    pub ejections: Ejections,
    /// Idle connections to upstreams.
    pub pools: Pools,
    /// Connections to upstreams of HTTP/2, shared by requests.
    pub http2: http2::Pools,
    /// Makes new ones.
    pub dialler: Rc<Dialler>,
    /// The worker's clock.
    pub sweep: Rc<Sweep>,
    /// What each client may take.
    pub limits: ClientLimits,
    /// Set while the process drains: HTTP/1 answers carry `Connection: close`.
    pub draining: Cell<bool>,
    /// Buffers for request heads, used again and again.
    pub buffers: RefCell<Vec<Vec<u8>>>,
    /// How many requests of each route may be tried again.
    pub retry_budgets: RetryBudgets,
    /// Room for bodies that may have to be sent again.
    pub replay_room: ReplayRoom,
}

/// The most spare head buffers a worker keeps, and the largest it keeps.
const SPARE_BUFFERS: usize = 256;
const SPARE_BUFFER_SIZE: usize = 8 * 1024;

impl Proxy {
    /// Answers one request; over HTTP/2 it came on a stream.
    pub async fn serve(
        self: &Rc<Self>,
        client: &Rc<Client>,
        parts: Parts,
        incoming: Incoming,
        stream: Option<&Stream>,
    ) -> Response<ResponseBody> {
        let mut record = RequestRecord::new(self, client, &parts);
        let has_body = !incoming.is_end();
        let mut response = match self
            .forward(client, &parts, incoming, stream, &mut record)
            .await
        {
            Ok(response) => response,
            Err(failure) => {
                record.status = failure.status.as_u16();
                record.reason = Some(failure.error);
                if let Some(limit) = failure.limit() {
                    self.metrics.data_plane.limit_hits.count(limit);
                }
                match grpc::is_call(&parts) {
                    true => failure.into_grpc(),
                    false => failure.into_response(&parts.method),
                }
            }
        };
        client.settle_interim();
        // It may be a later request, sent along with this one, that reading waits for.
        if client.is_reading_paused() && !has_body && parts.headers.contains_key(UPGRADE) {
            client.resume_reading();
        }
        if parts.version < Version::HTTP_2 {
            // What a passed limit ends is closed behind this answer, so the answer says so.
            let closes =
                self.draining.get() || client.has_unread_body() || client.expired().is_some();
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
        let record = match stream {
            Some(stream) => stream.end_with_upgrade(record),
            None => Some(record),
        };
        match record {
            Some(record) => response.map(|body| body.with_record(record)),
            None => response,
        }
    }

    async fn forward(
        self: &Rc<Self>,
        client: &Rc<Client>,
        request: &Parts,
        incoming: Incoming,
        stream: Option<&Stream>,
        record: &mut Box<RequestRecord>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let body_announced = !incoming.is_end();
        let early = |failure: Failure| {
            if body_announced {
                client.leave_body_unread();
            }
            failure
        };
        // Who sends what is no request is not listened to any more, as after what hyper refuses.
        let refuse = |failure: Failure| {
            self.count_unrouted("malformed");
            client.leave_body_unread();
            failure
        };
        // hyper counts up to a hundred of HTTP/1, and leaves all else to us.
        if request.headers.len() > self.limits.header_fields {
            return Err(refuse(Failure::too_many_fields()));
        }
        let target = target::of(request, self.limits.target_bytes).map_err(refuse)?;
        record.host(&target.host);
        let route = {
            let table = self.live.table.load();
            record.revision = table.revision;
            table.find(&target.host, target.path).cloned()
        };
        let mut route = route.map_err(|miss| early(self.unrouted(miss, &target)))?;
        record.enter(route.clone());
        self.retry_budgets.count(&route);

        let sender = client.sender(&self.trusted);
        let scheme = if client.tls {
            Scheme::Https
        } else {
            Scheme::Http
        };
        let settings = &*route.settings;
        let claims = || self.claims(client, &request.headers);
        if settings.redirect_https && claims().scheme(scheme) == Scheme::Http {
            if body_announced {
                client.leave_body_unread();
            }
            let response = redirect::to_https(&target)?;
            record.status = response.status().as_u16();
            return Ok(response);
        }
        if max_forwards::ends_here(request) {
            if body_announced {
                client.leave_body_unread();
            }
            let response = max_forwards::answer(&request.method)?;
            record.status = response.status().as_u16();
            return Ok(response);
        }
        let mut path = rewritten(&route, &target).map_err(early)?;
        let mut body = RequestBody::new(incoming, settings.max_body);
        if !self.certificate_fields.is_empty() {
            body.leave_out(self.certificate_fields.clone());
        }
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
        // With HTTP/2, be it a POST: its upstream may vouch for having left it alone.
        let may_go_again = route.speaks_http2
            || (settings.retries.keeps_bodies && retry::is_idempotent(&request.method));
        if may_go_again
            && !body.is_end()
            && let Some(replay) = self.replay_room.reserve(body.length())
        {
            body.keep_in(replay);
        }

        let has_no_body = body.is_end();
        let upgrade = if has_no_body {
            Handshake::of(request)
        } else {
            None
        };
        let request_deadline = settings.timeouts.request.map(|limit| {
            let deadline = self.sweep.deadline();
            deadline.arm(limit);
            deadline
        });
        let mut trip = Trip::new(body, settings.retries.attempts);
        let answer = loop {
            let journey = Journey {
                proxy: self,
                client,
                request,
                target: &target,
                route: &route,
                path,
                sender,
                scheme,
                upgrade: upgrade.as_ref(),
                stream,
                affinity: Affinity::default(),
            }
            .tied();
            let run = journey.run(trip, record);
            match sweep::limit(request_deadline.as_ref(), run).await {
                Some(Ok(answer)) => break answer,
                Some(Err(Stop::Failed(failure))) => return Err(early(failure)),
                Some(Err(Stop::Rerouted(rerouted))) => {
                    (route, trip) = *rerouted;
                    record.reroute(route.clone());
                    path = rewritten(&route, &target).map_err(early)?;
                }
                None => {
                    // With a body to send it may have been the client that took its time.
                    if let (true, Some(limit)) = (has_no_body, route.settings.timeouts.request) {
                        record.ran_out(limit);
                    }
                    return Err(early(Failure::new(
                        StatusCode::GATEWAY_TIMEOUT,
                        "http_response_timeout",
                        "the request took too long",
                    )));
                }
            }
        };
        let asked = Asked {
            client,
            request,
            handshake: upgrade.as_ref(),
            stream,
        };
        self.respond(&asked, &route, answer, request_deadline, record)
            .map_err(early)
    }

    /// What a request of this client says of earlier hops.
    fn claims<'r>(&'r self, client: &Client, headers: &'r HeaderMap) -> Claims<'r> {
        Claims {
            headers,
            sender: client.sender(&self.trusted),
            field: self.forwarded,
            connection: client.address().ip(),
            trusted: &self.trusted,
        }
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
            Miss::Spelling => {
                self.count_unrouted("malformed");
                return Failure::malformed(
                    "the path means one route as it is spelled, and another when it is normalised",
                );
            }
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

    /// Counts a request that was answered without a route.
    pub fn count_unrouted(&self, reason: &str) {
        self.metrics
            .data_plane
            .unrouted
            .with_label_values(&[reason])
            .inc();
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

/// What to ask the upstream for.
fn rewritten<'r>(route: &'r Route, target: &Target<'r>) -> Result<UpstreamTarget<'r>, Failure> {
    let rewritten = route.upstream_target(target.path, target.query);
    rewritten.map_err(|bad| Failure::malformed(bad.to_string()))
}
