//! Every metric, declared once. Handles are resolved when a route or an upstream is built, never per request.
//!
//! Labels are bounded: the first [`OWN_SERIES`] routes (and upstreams) that live at one time have series of their
//! own, further ones share `other`. A series goes when the last holder of its handle does.

mod health;
mod limits;
mod observed;
mod own;
mod route;
mod upstream;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector,
};

pub use self::{
    health::HealthCheckMetrics,
    limits::{Limit, LimitHits},
    observed::{Observed, Observer},
    route::RouteMetrics,
    upstream::UpstreamMetrics,
};
use self::{route::RouteFamily, upstream::UpstreamFamily};
use super::process;

/// How many routes, and how many upstreams, have series of their own.
pub const OWN_SERIES: usize = 1000;

/// Names longer than this are counted as `other`, so that no keys can bloat a scrape beyond 10 MB.
const LONGEST_NAME: usize = 100;

/// The label of everything beyond the bound.
const OTHER: &str = "other";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    /// What the data plane counts process-wide.
    pub data_plane: DataPlaneMetrics,
    /// What the control plane knows of routes and their source.
    pub control_plane: ControlPlaneMetrics,
    /// What health checks found, and how many there are.
    pub health_checks: HealthCheckMetrics,
    /// `waypost_access_log_dropped_total`: lines that were not written, because the log could not keep up.
    pub access_log_dropped: IntCounter,
    process: ProcessMetrics,
    routes: Arc<RouteFamily>,
    other_routes: Arc<RouteMetrics>,
    upstreams: Arc<UpstreamFamily>,
    other_upstreams: Arc<UpstreamMetrics>,
    registry: Registry,
}

/// What the data plane counts process-wide.
#[derive(Debug)]
pub struct DataPlaneMetrics {
    /// `waypost_connections`: open client connections.
    pub connections: IntGauge,
    /// `waypost_max_connections`: how many of them there may be.
    pub max_connections: IntGauge,
    /// `waypost_connections_total`: accepted ones.
    pub accepted: IntCounter,
    /// `waypost_unrouted_requests_total{reason}`: answered without a route: `no_table`, `no_host`, `no_path`, `malformed`.
    pub unrouted: IntCounterVec,
    /// `waypost_retries_total{reason}`: further attempts made, after: `connect`, `stale`, `reset`, `502`, `503`, `504`.
    pub retries: IntCounterVec,
    /// `waypost_retry_budget_exhausted_total`: failures that were not tried again, because too many were.
    pub retry_budget_exhausted: IntCounter,
    /// `waypost_queued_requests`: requests that wait for a place where `max_requests` limits them.
    pub queued_requests: IntGauge,
    /// `waypost_queue_rejected_requests_total{reason}`: those that got none: `full` or `timeout`.
    pub queue_rejected: IntCounterVec,
    /// `waypost_limit_hits_total{limit}`: what clients were refused, or cut off for.
    pub limit_hits: LimitHits,
    /// `waypost_refused_connections_total{reason}`: client connections closed before a request: `untrusted_peer`,
    /// `proxy_header`, `client_certificate`.
    pub refused: IntCounterVec,
    /// `waypost_descriptor_shortages_total`: times a connection could not be opened or accepted at once, because the
    /// process had no file descriptor left.
    pub descriptor_shortages: IntCounter,
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
    /// `waypost_source_silent_watches_total`: watches of etcd given up because they brought nothing of what they should.
    pub silent_watches: IntCounter,
    /// `waypost_source_reconciles_total`: comparisons of what this instance has with what etcd has.
    pub reconciles: IntCounter,
    /// `waypost_source_reconcile_differences_total`: keys that differed in them, each of them a fault of the watch.
    pub reconcile_differences: IntCounter,
    /// `waypost_rejected_keys`: keys that are not in force as written.
    pub rejected_keys: IntGauge,
    /// `waypost_held_deletes`: keys that are served although etcd lacks them, after its history changed.
    pub held_deletes: IntGauge,
    /// `waypost_snapshot_writes_total`: times the snapshot file was written, or only its head was.
    pub snapshot_writes: IntCounter,
    /// `waypost_snapshot_write_failures_total`: times it could not be written.
    pub snapshot_write_failures: IntCounter,
    /// `waypost_snapshot_revision`: the revision that the snapshot file has; 0 before the first write.
    pub snapshot_revision: IntGauge,
    /// `waypost_hosts`: host patterns served.
    pub hosts: IntGauge,
    /// `waypost_routes`: routes served.
    pub routes: IntGauge,
    /// `waypost_table_swaps_total`: tables published.
    pub table_swaps: IntCounter,
    /// `waypost_registered`: 1 while the fleet knows of this instance.
    pub registered: IntGauge,
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
            health_checks: HealthCheckMetrics::new(&registry),
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

    /// Where one more worker notes what it sees of upstreams.
    pub fn observer(&self) -> Observer {
        self.upstreams.observations.observer()
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

impl DataPlaneMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            connections: gauge(registry, "waypost_connections", "Open client connections."),
            max_connections: gauge(
                registry,
                "waypost_max_connections",
                "How many client connections there may be.",
            ),
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
            retries: counters(
                registry,
                "waypost_retries_total",
                "Further attempts made, by what went before.",
                &["reason"],
            ),
            retry_budget_exhausted: counter(
                registry,
                "waypost_retry_budget_exhausted_total",
                "Failures that were not tried again, because too many were.",
            ),
            queued_requests: gauge(
                registry,
                "waypost_queued_requests",
                "Requests that wait for a place where max_requests limits them.",
            ),
            queue_rejected: counters(
                registry,
                "waypost_queue_rejected_requests_total",
                "Requests that got no place, by reason.",
                &["reason"],
            ),
            limit_hits: LimitHits::new(registry),
            refused: counters(
                registry,
                "waypost_refused_connections_total",
                "Client connections refused before a request, by reason.",
                &["reason"],
            ),
            descriptor_shortages: counter(
                registry,
                "waypost_descriptor_shortages_total",
                "Times a connection could not be opened or accepted at once for want of a file descriptor.",
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
            silent_watches: counter(
                registry,
                "waypost_source_silent_watches_total",
                "Watches of etcd given up because they brought nothing of what they should.",
            ),
            reconciles: counter(
                registry,
                "waypost_source_reconciles_total",
                "Comparisons of what this instance has with what etcd has.",
            ),
            reconcile_differences: counter(
                registry,
                "waypost_source_reconcile_differences_total",
                "Keys that differed in them.",
            ),
            rejected_keys: gauge(
                "waypost_rejected_keys",
                "Keys that are not in force as written.",
            ),
            held_deletes: gauge(
                "waypost_held_deletes",
                "Keys served although etcd lacks them, after its history changed.",
            ),
            snapshot_writes: counter(
                registry,
                "waypost_snapshot_writes_total",
                "Times the snapshot file was written, or only its head was.",
            ),
            snapshot_write_failures: counter(
                registry,
                "waypost_snapshot_write_failures_total",
                "Times the snapshot file could not be written.",
            ),
            snapshot_revision: gauge(
                "waypost_snapshot_revision",
                "Revision that the snapshot file has; 0 before the first write.",
            ),
            hosts: gauge("waypost_hosts", "Host patterns served."),
            routes: gauge("waypost_routes", "Routes served."),
            table_swaps: counter(registry, "waypost_table_swaps_total", "Tables published."),
            registered: gauge(
                "waypost_registered",
                "1 while the fleet knows of this instance, so that barriers wait for it.",
            ),
        }
    }
}

/// What `/proc` says of this process, read at each scrape; stays 0 where there is no `/proc`.
#[derive(Debug)]
struct ProcessMetrics {
    cpu: Gauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
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
            max_fds: gauge(
                registry,
                "process_max_fds",
                "The most file descriptors that may be open.",
            ),
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
        self.max_fds.set(usage.max_fds);
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

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

#[cfg(test)]
mod tests;
