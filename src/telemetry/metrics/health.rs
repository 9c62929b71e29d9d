//! What is counted of health checks, of all upstreams together.

use prometheus::{Gauge, IntCounter, IntGauge, Registry};

use super::{counters, gauge, registered};

/// What health checks found, and how many there are.
#[derive(Debug)]
pub struct HealthCheckMetrics {
    /// `waypost_health_checks`: how many are made again and again, each for one upstream and one kind of settings.
    pub checks: IntGauge,
    /// `waypost_health_checks_total{result="good"}`: those that speak for the upstream.
    pub good: IntCounter,
    /// `waypost_health_checks_total{result="bad"}`: those that speak against it.
    pub bad: IntCounter,
    /// `waypost_health_checks_total{result="unknown"}`: those that we could not make, for want of descriptors or memory.
    pub unknown: IntCounter,
    /// `waypost_health_check_stretch`: by how much their intervals are longer than asked for; 1 where they aren't.
    pub stretch: Gauge,
    /// `waypost_health_check_delay_seconds`: how late they begin, on average of the latest hundred or so.
    pub delay_seconds: Gauge,
}

impl HealthCheckMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let results = counters(
            registry,
            "waypost_health_checks_total",
            "Health checks made, by what they say of the upstream.",
            &["result"],
        );
        let ratio = |name, help| registered(registry, Gauge::new(name, help));
        let stretch = ratio(
            "waypost_health_check_stretch",
            "By how much the intervals of health checks are longer than asked for.",
        );
        stretch.set(1.0);
        Self {
            checks: gauge(
                registry,
                "waypost_health_checks",
                "Upstreams to check, each once for each kind of settings.",
            ),
            good: results.with_label_values(&["good"]),
            bad: results.with_label_values(&["bad"]),
            unknown: results.with_label_values(&["unknown"]),
            stretch,
            delay_seconds: ratio(
                "waypost_health_check_delay_seconds",
                "How late health checks begin, on average of the latest.",
            ),
        }
    }
}
