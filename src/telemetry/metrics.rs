//! Every metric, declared once. Handles are resolved when a route or an upstream is built, never per request.

use std::sync::Arc;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

/// All metrics of the process.
pub struct Metrics {
    /// What the data plane counts process-wide.
    pub data_plane: DataPlaneMetrics,
}

/// What is counted per route.
#[derive(Debug)]
pub struct RouteMetrics {
    /// `waypost_requests_total{route, code="1xx".."5xx"}`; index 0 is 1xx.
    pub requests: [IntCounter; 5],
    /// `waypost_request_duration_seconds{route}`: first byte of the request to last byte of the response.
    pub duration: Histogram,
    /// `waypost_request_body_bytes_total{route}`.
    pub request_bytes: IntCounter,
    /// `waypost_response_body_bytes_total{route}`.
    pub response_bytes: IntCounter,
}

/// What is counted per upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    /// `waypost_upstream_requests_total{upstream}`: attempts sent.
    pub requests: IntCounter,
    /// `waypost_upstream_failures_total{upstream}`: attempts that failed: refused, reset, nonsense, too slow.
    pub failures: IntCounter,
    /// `waypost_upstream_connects_total{upstream}`: connections opened.
    pub connects: IntCounter,
}

/// What the data plane counts process-wide.
#[derive(Debug)]
pub struct DataPlaneMetrics {
    /// `waypost_connections`: open client connections.
    pub connections: IntGauge,
    /// `waypost_connections_total`: accepted ones.
    pub accepted: IntCounter,
    /// `waypost_unrouted_requests_total{reason}`: answered without a route: `no_table`, `no_host`, `no_path`, `malformed`.
    pub unrouted: IntCounterVec,
    /// `waypost_retries_total`: further attempts made.
    pub retries: IntCounter,
    /// `waypost_limit_hits_total{limit}`: `header_timeout`, `idle_timeout`, `body_timeout`, `tls_handshake_timeout`, ...
    pub limit_hits: IntCounterVec,
}

impl Metrics {
    /// The handles of a route; beyond a bound of routes, those of `route="other"`.
    pub fn route(&self, _name: &str) -> Arc<RouteMetrics> {
        todo!()
    }

    /// The handles of an upstream; beyond a bound, those of `upstream="other"`.
    pub fn upstream(&self, _name: &str) -> Arc<UpstreamMetrics> {
        todo!()
    }
}
