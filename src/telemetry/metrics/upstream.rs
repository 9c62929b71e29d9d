//! What is counted per upstream.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{
    counters, gauges,
    observed::{Observations, Observed, Row},
    own::Own,
};

/// What is counted per upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    /// `waypost_upstream_requests_total{upstream}`: attempts sent.
    pub requests: IntCounter,
    /// `waypost_upstream_failures_total{upstream}`: attempts that failed, and bodies cut short, by the upstream's fault:
    /// refused, reset, nonsense, too slow. Statuses are answers.
    pub failures: IntCounter,
    /// `waypost_upstream_connects_total{upstream}`: connections opened.
    pub connects: IntCounter,
    /// `waypost_upstream_idle_connections{upstream}`: those in the pools of all workers, as of their latest sweep, which
    /// each makes once a second.
    pub idle: IntGauge,
    /// What workers see with every request.
    pub(super) row: Row,
    /// `waypost_upstream_ejections_total{upstream}`: times it was ejected.
    pub ejections: IntCounter,
    /// `waypost_upstream_ejected{upstream}`: ejections in force; more than 1 where routes have outlier settings of their own.
    pub ejected: IntGauge,
    /// `waypost_upstream_unhealthy{upstream}`: how many of its health checks find it unhealthy.
    pub unhealthy: IntGauge,
    /// Where to take the series away from; `None` for `other`.
    pub(super) series: Option<(Arc<UpstreamFamily>, Arc<str>)>,
}

impl UpstreamMetrics {
    /// What all workers have seen of it so far.
    pub fn observed(&self) -> Observed {
        self.row.observed()
    }

    /// Whether these are the upstream's own, and not those of all that share `other`.
    pub fn are_own(&self) -> bool {
        self.series.is_some()
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
            let _ = family.idle.remove_label_values(&[name]);
            let _ = family.ejections.remove_label_values(&[name]);
            let _ = family.ejected.remove_label_values(&[name]);
            let _ = family.unhealthy.remove_label_values(&[name]);
        });
    }
}

#[derive(Debug)]
pub(super) struct UpstreamFamily {
    requests: IntCounterVec,
    failures: IntCounterVec,
    connects: IntCounterVec,
    idle: IntGaugeVec,
    pub(super) observations: Observations,
    ejections: IntCounterVec,
    ejected: IntGaugeVec,
    unhealthy: IntGaugeVec,
    pub(super) own: Own<UpstreamMetrics>,
}

impl UpstreamFamily {
    pub(super) fn new(registry: &Registry) -> Self {
        let observations = Observations::new();
        (registry.register(Box::new(observations.clone()))).expect("its names stand nowhere else");
        let family = |name, help| counters(registry, name, help, &["upstream"]);
        Self {
            requests: family(
                "waypost_upstream_requests_total",
                "Attempts sent to the upstream.",
            ),
            failures: family(
                "waypost_upstream_failures_total",
                "Attempts and bodies that failed by the upstream's fault: refused, reset, nonsense, too slow.",
            ),
            connects: family(
                "waypost_upstream_connects_total",
                "Connections opened to the upstream.",
            ),
            idle: gauges(
                registry,
                "waypost_upstream_idle_connections",
                "Idle connections to the upstream, of all workers.",
                &["upstream"],
            ),
            observations,
            ejections: family(
                "waypost_upstream_ejections_total",
                "Times the upstream was ejected for its failures.",
            ),
            ejected: gauges(
                registry,
                "waypost_upstream_ejected",
                "Ejections of the upstream that are in force.",
                &["upstream"],
            ),
            unhealthy: gauges(
                registry,
                "waypost_upstream_unhealthy",
                "Health checks of the upstream that find it unhealthy.",
                &["upstream"],
            ),
            own: Own::default(),
        }
    }

    pub(super) fn handles(
        &self,
        name: &str,
        series: Option<(Arc<Self>, Arc<str>)>,
    ) -> UpstreamMetrics {
        UpstreamMetrics {
            requests: self.requests.with_label_values(&[name]),
            failures: self.failures.with_label_values(&[name]),
            connects: self.connects.with_label_values(&[name]),
            idle: self.idle.with_label_values(&[name]),
            row: self.observations.row(name),
            ejections: self.ejections.with_label_values(&[name]),
            ejected: self.ejected.with_label_values(&[name]),
            unhealthy: self.unhealthy.with_label_values(&[name]),
            series,
        }
    }
}
