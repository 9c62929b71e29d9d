//! What is counted per upstream.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::{counters, own::Own};

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
    pub(super) series: Option<(Arc<UpstreamFamily>, Arc<str>)>,
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
pub(super) struct UpstreamFamily {
    requests: IntCounterVec,
    failures: IntCounterVec,
    connects: IntCounterVec,
    pub(super) own: Own<UpstreamMetrics>,
}

impl UpstreamFamily {
    pub(super) fn new(registry: &Registry) -> Self {
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

    pub(super) fn handles(
        &self,
        name: &str,
        series: Option<(Arc<Self>, Arc<str>)>,
    ) -> UpstreamMetrics {
        UpstreamMetrics {
            requests: self.requests.with_label_values(&[name]),
            failures: self.failures.with_label_values(&[name]),
            connects: self.connects.with_label_values(&[name]),
            series,
        }
    }
}
