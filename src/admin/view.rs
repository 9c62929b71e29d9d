//! A route and its members as the API shows them: what their keys say, and what flags add to that.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::state::{self, State};

use crate::{
    moment::Moment,
    route::{Member, Revision, Role, Route, settings::Balance},
    telemetry::metrics::{Observed, UpstreamMetrics},
    upstream::{Endpoint, Protocol, ProxyProtocol, dial::Deny, load::Loads},
};

/// What a view needs beside the route: what flags add to what keys say, and what runs.
pub(super) struct Context {
    /// For routes that don't say.
    pub(super) balance: Balance,
    /// What is never dialled.
    pub(super) deny: Deny,
    /// What is in flight.
    pub(super) loads: Arc<Loads>,
}

impl Context {
    /// How this route balances.
    pub(super) fn balance(&self, route: &Route) -> Balance {
        route.settings.balance.unwrap_or(self.balance)
    }
}

/// A route with its members.
#[derive(Serialize)]
pub(super) struct RouteView {
    pub(super) name: Arc<str>,
    pub(super) host: String,
    pub(super) path_prefix: String,
    pub(super) balance: Balance,
    pub(super) settings_key: Option<Arc<str>>,
    pub(super) settings_mod_revision: Option<Revision>,
    /// Requests that run, where `max_requests` limits those of the route.
    pub(super) running: Option<u32>,
    /// Requests that wait for a place, where `max_requests` limits them anywhere.
    pub(super) queued: Option<usize>,
    pub(super) members: Vec<MemberView>,
}

impl RouteView {
    pub(super) fn of(route: &Route, context: &Context) -> Self {
        let settings_key = route.settings_key.as_deref();
        let limits = route.limits.as_ref();
        let running = limits.and_then(|limits| limits.requests.as_ref());
        let view = |member| MemberView::of(member, route, context);
        let members = route.members.iter().map(view).collect();
        Self {
            name: route.name.clone(),
            host: route.host.to_string(),
            path_prefix: route.prefix.as_str().to_owned(),
            balance: context.balance(route),
            settings_key: settings_key.map(|in_force| in_force.version.key.clone()),
            settings_mod_revision: settings_key.map(|in_force| in_force.version.mod_revision),
            running: running.map(|limit| limit.running()),
            queued: limits.map(|limits| limits.queue.length()),
            members,
        }
    }
}

/// A member and where it comes from.
#[derive(Serialize)]
pub(super) struct MemberView {
    upstream: Arc<str>,
    weight: u32,
    /// `serving`, `backup` or `draining`.
    role: Role,
    protocol: &'static str,
    tls: bool,
    /// The version of the PROXY header that it gets; null if none.
    proxy_protocol: Option<&'static str>,
    /// Whether there is an address to dial.
    resolved: bool,
    /// Whether `--upstream-deny`, or being our own admin address, keeps it from being dialled.
    denied: bool,
    /// The same upstream by another key: gets no requests of its own.
    alias: bool,
    state: State,
    /// Why it is not `healthy`.
    why: Option<String>,
    /// Of its full share of the requests, what it gets while it starts slowly; null otherwise.
    slow_start_percent: Option<u64>,
    /// Requests of all routes that are at the upstream, or on the way to it.
    in_flight: u32,
    /// What was counted since the upstream is known; null where it shares its series with others.
    #[serde(flatten)]
    counts: Option<Counts>,
    key: Arc<str>,
    mod_revision: Revision,
}

/// What was counted of an upstream, in all routes.
#[derive(Serialize)]
struct Counts {
    requests: u64,
    failures: u64,
    connects: u64,
    /// In the pools of all workers, as of about a second ago.
    idle_connections: u64,
    response_seconds: ResponseTimes,
}

/// From the request to the head of the answer; null before the first.
#[derive(Serialize)]
struct ResponseTimes {
    mean: Option<f64>,
    /// Upper bounds, as precise as the buckets of the histogram.
    p50: Option<f64>,
    p99: Option<f64>,
}

impl Counts {
    fn of(metrics: &UpstreamMetrics) -> Option<Self> {
        metrics.are_own().then(|| Self {
            requests: metrics.requests.get(),
            failures: metrics.failures.get(),
            connects: metrics.connects.get(),
            idle_connections: u64::try_from(metrics.idle.get()).unwrap_or(0),
            response_seconds: ResponseTimes::of(&metrics.observed()),
        })
    }
}

impl ResponseTimes {
    fn of(observed: &Observed) -> Self {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        Self {
            mean: seconds(observed.mean()),
            p50: seconds(observed.quantile(0.5)),
            p99: seconds(observed.quantile(0.99)),
        }
    }
}

impl MemberView {
    fn of(member: &Member, route: &Route, context: &Context) -> Self {
        let (state, why) = state::of(member, context);
        let identity = &member.upstream.identity;
        Self {
            upstream: member.upstream.name.clone(),
            weight: member.weight,
            role: member.role,
            protocol: match identity.protocol {
                Protocol::Http1 => "http1",
                Protocol::H2 => "h2",
            },
            tls: identity.tls.is_some(),
            proxy_protocol: identity.proxy_protocol.map(ProxyProtocol::name),
            resolved: member.is_resolved(),
            denied: state == State::Denied,
            state,
            why,
            slow_start_percent: slow_start_percent(member, route, context),
            in_flight: context.loads.of(member.upstream.slot),
            counts: Counts::of(&member.upstream.metrics),
            alias: member.is_alias,
            key: member.key.key.clone(),
            mod_revision: member.key.mod_revision,
        }
    }
}

fn slow_start_percent(member: &Member, route: &Route, context: &Context) -> Option<u64> {
    let over = route.settings.slow_start?;
    let balance = context.balance(route);
    // By a hash requests go where they must.
    let is_starting = balance != Balance::Hash && member.is_usable();
    is_starting
        .then(|| member.share(over, Moment::now))
        .flatten()
        .map(|share| share / 10)
}

/// Whether `--upstream-deny` forbids dialling this member, or it is this Waypost itself.
pub(super) fn is_denied(member: &Member, deny: &Deny) -> bool {
    match member.upstream.identity.endpoint {
        Endpoint::Tcp { address, .. } => deny.verdict(address).is_err(),
        Endpoint::Unresolved(..) | Endpoint::Unix(_) => false,
    }
}
