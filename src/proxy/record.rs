//! What is known of one request, from its first byte to the end of its response; counted and logged when dropped.

use std::{
    cell::Cell,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Version,
    header::{REFERER, USER_AGENT},
    request::Parts,
    uri::PathAndQuery,
};

use super::{
    Proxy,
    client::{Client, Expiry, RunningRequest},
    forwarded::Claims,
    in_flight::Place,
};
use crate::{
    route::{Revision, Route},
    telemetry::access_log,
    upstream::{Upstream, limit::Permits},
};

/// The record of one request. Dropping it ends the request: whoever holds it last decides when that is.
pub struct RequestRecord {
    pub(super) proxy: Rc<Proxy>,
    client: Rc<Client>,
    started: Instant,
    /// What only the access log wants.
    line: Option<Line>,
    /// Its place among the requests that run, once it has a route.
    pub(super) place: Option<Place>,
    /// The upstream of the last attempt.
    upstream: Option<Arc<Upstream>>,
    /// The status answered; 499 until there is one (nginx's word for a client that left).
    pub status: u16,
    /// Why, if it went wrong.
    pub reason: Option<&'static str>,
    /// Body bytes received.
    pub request_bytes: Option<Rc<Cell<u64>>>,
    /// Body bytes sent.
    pub response_bytes: u64,
    /// Attempts beyond the first.
    pub retries: u32,
    /// Its places where running requests are limited.
    pub permits: Permits,
    /// The revision of the table that routed it.
    pub revision: Revision,
    /// Since when `upstream` has it, counted from `started`; `None` while it waits here. The first time is as good as
    /// at once, unless it waited: no clock is read for it.
    since: Option<Duration>,
    connect: Option<Duration>,
    first_byte: Option<Duration>,
    _running: RunningRequest,
}

struct Line {
    time: SystemTime,
    /// Who the client is, if trusted proxies say that it is another than who connected.
    behind: Option<IpAddr>,
    method: Method,
    host: Box<str>,
    target: Option<PathAndQuery>,
    version: Version,
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
}

/// The client left before the response head.
const CLIENT_CLOSED: u16 = 499;

impl RequestRecord {
    /// Begins the record of a request that just came.
    pub fn new(proxy: &Rc<Proxy>, client: &Rc<Client>, request: &Parts) -> Box<Self> {
        let line = proxy.access_log.is_some().then(|| {
            let claims = proxy.claims(client, &request.headers);
            Line::new(request, claims)
        });
        Box::new(Self {
            proxy: proxy.clone(),
            client: client.clone(),
            started: Instant::now(),
            line,
            place: None,
            upstream: None,
            status: CLIENT_CLOSED,
            reason: None,
            request_bytes: None,
            response_bytes: 0,
            retries: 0,
            permits: Permits::default(),
            revision: 0,
            since: Some(Duration::ZERO),
            connect: None,
            first_byte: None,
            _running: client.begin_request(),
        })
    }

    /// Notes the canonical host.
    pub fn host(&mut self, host: &str) {
        if let Some(line) = &mut self.line {
            line.host = host.into();
        }
    }

    /// Notes the route that serves it.
    pub fn enter(&mut self, route: Arc<Route>) {
        self.place = Some(self.proxy.in_flight.enter(route));
    }

    /// Notes that another route serves it: the table has changed.
    pub fn reroute(&mut self, route: Arc<Route>) {
        self.permits = Permits::default();
        match &self.place {
            Some(place) => self.proxy.in_flight.reroute(place, route),
            None => self.enter(route),
        }
    }

    /// Notes that it is sent to this member of its route. Until the record's end the member's key is in use.
    pub fn send(&mut self, member: usize, upstream: &Arc<Upstream>) {
        if let Some(place) = &self.place {
            self.proxy.in_flight.send(place, member);
        }
        let before = self.upstream.replace(upstream.clone());
        let Proxy {
            loads, observer, ..
        } = &*self.proxy;
        loads.begin(upstream.slot);
        observer.sent(&upstream.metrics);
        if let Some(before) = before {
            loads.end(before.slot);
            observer.ended(&before.metrics);
        }
        self.goes_on();
    }

    /// Notes that the attempt led to nothing: its upstream has nothing to do with what comes.
    pub fn came_back(&mut self) {
        if let Some(place) = &self.place {
            self.proxy.in_flight.came_back(place);
        }
        self.waits();
    }

    /// Notes that it waits, and for nothing that an upstream does.
    pub fn waits(&mut self) {
        self.since = None;
    }

    /// Notes that it waits no longer, if it did.
    pub fn goes_on(&mut self) {
        if self.since.is_none() {
            self.since = Some(self.started.elapsed());
        }
    }

    /// For how long its upstream has it; `None` while it waits here.
    pub fn with_upstream(&self) -> Option<Duration> {
        let since = self.since?;
        Some(self.started.elapsed().saturating_sub(since))
    }

    /// The member it was sent to last, by index, and the version of its route that had it.
    pub fn sent_to(&self) -> Option<(Arc<Route>, usize)> {
        self.proxy.in_flight.sent_to(self.place.as_ref()?)
    }

    /// Notes that a connection was made, begun at `since`.
    pub fn connected(&mut self, since: Instant) {
        self.connect = Some(since.elapsed());
    }

    /// Notes that nobody waits for the rest of the response any more.
    pub fn given_up(&mut self) {
        self.reason.get_or_insert(match self.client.expired() {
            Some(Expiry::Abort) => "shut_down",
            Some(Expiry::Write) => "write_timeout",
            _ => "client_left",
        });
    }

    /// Notes the upstream's response head.
    pub fn head(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        let first_byte = self.started.elapsed();
        self.first_byte = Some(first_byte);
        if let Some(upstream) = &self.upstream {
            let after = first_byte.saturating_sub(self.since.unwrap_or_default());
            self.proxy.observer.answered(&upstream.metrics, after);
        }
    }
}

impl Line {
    fn new(request: &Parts, claims: Claims<'_>) -> Self {
        let is_behind = |client: &IpAddr| *client != claims.connection.to_canonical();
        let field = |headers: &HeaderMap, name| headers.get(name).cloned();
        Self {
            time: SystemTime::now(),
            behind: Some(claims.client()).filter(is_behind),
            method: request.method.clone(),
            host: "".into(),
            target: request.uri.path_and_query().cloned(),
            version: request.version,
            referer: field(&request.headers, REFERER),
            user_agent: field(&request.headers, USER_AGENT),
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.status == CLIENT_CLOSED {
            self.given_up();
        }
        let total = self.started.elapsed();
        let request_bytes = self.request_bytes.as_ref().map_or(0, |bytes| bytes.get());
        if let Some(upstream) = &self.upstream {
            self.proxy.loads.end(upstream.slot);
            self.proxy.observer.ended(&upstream.metrics);
        }
        let place = self.place.take();
        let route = place.map(|place| self.proxy.in_flight.leave(place));
        if let Some(route) = &route {
            let class = usize::from(self.status / 100).clamp(1, 5) - 1;
            route.metrics.requests[class].inc();
            route.metrics.duration.observe(total.as_secs_f64());
            if request_bytes > 0 {
                route.metrics.request_bytes.inc_by(request_bytes);
            }
            route.metrics.response_bytes.inc_by(self.response_bytes);
        }
        if let (Some(log), Some(line)) = (&self.proxy.access_log, &self.line) {
            log.write(&access_log::Record {
                time: line.time,
                client: self.client.address(),
                forwarded_for: line.behind,
                method: &line.method,
                host: &line.host,
                target: line.target.as_ref().map_or("", PathAndQuery::as_str),
                version: line.version,
                referer: line.referer.as_ref(),
                user_agent: line.user_agent.as_ref(),
                status: self.status,
                reason: self.reason,
                route: route.as_ref().map(|route| &*route.name),
                upstream: self.upstream.as_ref().map(|upstream| &*upstream.name),
                request_bytes,
                response_bytes: self.response_bytes,
                total,
                connect: self.connect,
                first_byte: self.first_byte,
                retries: self.retries,
                revision: self.revision,
                tls: self.client.tls,
            });
        }
    }
}
