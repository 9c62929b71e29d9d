//! Every metric, declared once. Handles are resolved when a route or an upstream is built, never per request.
//!
//! Labels are bounded: the first [`OWN_SERIES`] routes (and upstreams) that live at one time have series of their
//! own, further ones share `other`. A series goes when the last holder of its handle does.

mod own;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use self::own::Own;
use super::process;

/// How many routes, and how many upstreams, have series of their own.
pub const OWN_SERIES: usize = 1000;

/// Names longer than this are counted as `other`, so that no keys can bloat a scrape beyond 10 MB.
const LONGEST_NAME: usize = 250;

/// The label of everything beyond the bound.
const OTHER: &str = "other";

/// In seconds: half a millisecond to a minute.
const DURATION_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    /// What the data plane counts process-wide.
    pub data_plane: DataPlaneMetrics,
    /// What the control plane knows of routes and their source.
    pub control_plane: ControlPlaneMetrics,
    /// `waypost_access_log_dropped_total`: lines that were not written, because the log could not keep up.
    pub access_log_dropped: IntCounter,
    process: ProcessMetrics,
    routes: Arc<RouteFamily>,
    other_routes: Arc<RouteMetrics>,
    upstreams: Arc<UpstreamFamily>,
    other_upstreams: Arc<UpstreamMetrics>,
    registry: Registry,
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
    /// Where to take the series away from; `None` for `other`.
    series: Option<(Arc<RouteFamily>, Arc<str>)>,
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
    /// Where to take the series away from; `None` for `other`.
    series: Option<(Arc<UpstreamFamily>, Arc<str>)>,
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

/// What the control plane knows of routes and their source.
#[derive(Debug)]
pub struct ControlPlaneMetrics {
    /// `waypost_revision`: the revision of the table in use.
    pub revision: IntGauge,
    /// `waypost_observed_revision`: the newest revision the source is known to have.
    pub observed_revision: IntGauge,
    /// `waypost_source_connected`: 1 while changes would reach us.
    pub source_connected: IntGauge,
    /// `waypost_source_stale_seconds`: for how long changes would not have reached us; 0 while connected.
    pub stale_seconds: Gauge,
    /// `waypost_rejected_keys`: keys that are not in force as written.
    pub rejected_keys: IntGauge,
    /// `waypost_hosts`: host patterns served.
    pub hosts: IntGauge,
    /// `waypost_routes`: routes served.
    pub routes: IntGauge,
    /// `waypost_table_swaps_total`: tables published.
    pub table_swaps: IntCounter,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let routes = Arc::new(RouteFamily::new(&registry));
        let upstreams = Arc::new(UpstreamFamily::new(&registry));
        let build = IntGaugeVec::new(
            Opts::new("waypost_build_info", "The version that runs; always 1."),
            &["version"],
        );
        registered(&registry, build)
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Arc::new(Self {
            data_plane: DataPlaneMetrics::new(&registry),
            control_plane: ControlPlaneMetrics::new(&registry),
            access_log_dropped: counter(
                &registry,
                "waypost_access_log_dropped_total",
                "Access log lines that were not written, because the log could not keep up.",
            ),
            process: ProcessMetrics::new(&registry),
            other_routes: Arc::new(routes.handles(OTHER, None)),
            routes,
            other_upstreams: Arc::new(upstreams.handles(OTHER, None)),
            upstreams,
            registry,
        })
    }

    /// The handles of a route; beyond a bound of routes, those of `route="other"`.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let build = |name: Arc<str>| {
            let series = (self.routes.clone(), name.clone());
            self.routes.handles(&name, Some(series))
        };
        let own = self.routes.own.claim(name, build);
        own.unwrap_or_else(|| self.other_routes.clone())
    }

    /// The handles of an upstream; beyond a bound, those of `upstream="other"`.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        let build = |name: Arc<str>| {
            let series = (self.upstreams.clone(), name.clone());
            self.upstreams.handles(&name, Some(series))
        };
        let own = self.upstreams.own.claim(name, build);
        own.unwrap_or_else(|| self.other_upstreams.clone())
    }

    /// Everything, in the Prometheus text format.
    pub fn encode(&self) -> String {
        self.process.refresh();
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "could not encode every metric");
        }
        text
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        let Some((family, name)) = &self.series else {
            return;
        };
        family.own.release(name, || {
            for code in CODES {
                let _ = family.requests.remove_label_values(&[name, code]);
            }
            let _ = family.duration.remove_label_values(&[name]);
            let _ = family.request_bytes.remove_label_values(&[name]);
            let _ = family.response_bytes.remove_label_values(&[name]);
        });
    }
}

impl Drop for UpstreamMetrics {
    fn drop(&mut self) {
        let Some((family, name)) = &self.series else {
            return;
        };
        family.own.release(name, || {
            let _ = family.requests.remove_label_values(&[name]);
            let _ = family.failures.remove_label_values(&[name]);
            let _ = family.connects.remove_label_values(&[name]);
        });
    }
}

#[derive(Debug)]
struct RouteFamily {
    requests: IntCounterVec,
    duration: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    own: Own<RouteMetrics>,
}

impl RouteFamily {
    fn new(registry: &Registry) -> Self {
        let duration = HistogramOpts::new(
            "waypost_request_duration_seconds",
            "First byte of the request to last byte of the response.",
        )
        .buckets(DURATION_BUCKETS.to_vec());
        Self {
            requests: counters(
                registry,
                "waypost_requests_total",
                "Requests answered, by route and class of status.",
                &["route", "code"],
            ),
            duration: registered(registry, HistogramVec::new(duration, &["route"])),
            request_bytes: counters(
                registry,
                "waypost_request_body_bytes_total",
                "Body bytes from clients, by route.",
                &["route"],
            ),
            response_bytes: counters(
                registry,
                "waypost_response_body_bytes_total",
                "Body bytes to clients, by route.",
                &["route"],
            ),
            own: Own::default(),
        }
    }

    fn handles(&self, name: &str, series: Option<(Arc<Self>, Arc<str>)>) -> RouteMetrics {
        RouteMetrics {
            requests: CODES.map(|code| self.requests.with_label_values(&[name, code])),
            duration: self.duration.with_label_values(&[name]),
            request_bytes: self.request_bytes.with_label_values(&[name]),
            response_bytes: self.response_bytes.with_label_values(&[name]),
            series,
        }
    }
}

#[derive(Debug)]
struct UpstreamFamily {
    requests: IntCounterVec,
    failures: IntCounterVec,
    connects: IntCounterVec,
    own: Own<UpstreamMetrics>,
}

impl UpstreamFamily {
    fn new(registry: &Registry) -> Self {
        let family = |name, help| counters(registry, name, help, &["upstream"]);
        Self {
            requests: family(
                "waypost_upstream_requests_total",
                "Attempts sent to the upstream.",
            ),
            failures: family(
                "waypost_upstream_failures_total",
                "Attempts that failed: refused, reset, nonsense, too slow.",
            ),
            connects: family(
                "waypost_upstream_connects_total",
                "Connections opened to the upstream.",
            ),
            own: Own::default(),
        }
    }

    fn handles(&self, name: &str, series: Option<(Arc<Self>, Arc<str>)>) -> UpstreamMetrics {
        UpstreamMetrics {
            requests: self.requests.with_label_values(&[name]),
            failures: self.failures.with_label_values(&[name]),
            connects: self.connects.with_label_values(&[name]),
            series,
        }
    }
}

impl DataPlaneMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            connections: gauge(registry, "waypost_connections", "Open client connections."),
            accepted: counter(
                registry,
                "waypost_connections_total",
                "Client connections accepted.",
            ),
            unrouted: counters(
                registry,
                "waypost_unrouted_requests_total",
                "Requests answered without a route, by reason.",
                &["reason"],
            ),
            retries: counter(registry, "waypost_retries_total", "Further attempts made."),
            limit_hits: counters(
                registry,
                "waypost_limit_hits_total",
                "Requests and connections ended by a limit.",
                &["limit"],
            ),
        }
    }
}

impl ControlPlaneMetrics {
    fn new(registry: &Registry) -> Self {
        let gauge = |name, help| gauge(registry, name, help);
        Self {
            revision: gauge("waypost_revision", "Revision of the table in use."),
            observed_revision: gauge(
                "waypost_observed_revision",
                "Newest revision the source is known to have.",
            ),
            source_connected: gauge(
                "waypost_source_connected",
                "1 while changes would reach this instance.",
            ),
            stale_seconds: registered(
                registry,
                Gauge::new(
                    "waypost_source_stale_seconds",
                    "For how long changes would not have reached this instance.",
                ),
            ),
            rejected_keys: gauge(
                "waypost_rejected_keys",
                "Keys that are not in force as written.",
            ),
            hosts: gauge("waypost_hosts", "Host patterns served."),
            routes: gauge("waypost_routes", "Routes served."),
            table_swaps: counter(registry, "waypost_table_swaps_total", "Tables published."),
        }
    }
}

/// What `/proc` says of this process, read at each scrape; stays 0 where there is no `/proc`.
#[derive(Debug)]
struct ProcessMetrics {
    cpu: Gauge,
    open_fds: IntGauge,
    resident_memory: IntGauge,
    threads: IntGauge,
}

impl ProcessMetrics {
    fn new(registry: &Registry) -> Self {
        let start = Gauge::new(
            "process_start_time_seconds",
            "When the process started, since the epoch.",
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        registered(registry, start).set(now.unwrap_or_default().as_secs_f64());
        Self {
            cpu: registered(
                registry,
                Gauge::new("process_cpu_seconds_total", "CPU time used."),
            ),
            open_fds: gauge(registry, "process_open_fds", "Open file descriptors."),
            resident_memory: gauge(
                registry,
                "process_resident_memory_bytes",
                "Resident memory.",
            ),
            threads: gauge(registry, "process_threads", "Threads."),
        }
    }

    fn refresh(&self) {
        let usage = process::usage();
        self.cpu.set(usage.cpu_seconds);
        self.open_fds.set(usage.open_fds);
        self.resident_memory.set(usage.resident_bytes);
        self.threads.set(usage.threads);
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("names, labels and buckets are literals of this file");
    registry
        .register(Box::new(metric.clone()))
        .expect("each name stands in this file once");
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

#[cfg(test)]
mod tests;
