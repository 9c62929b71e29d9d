//! What is counted per route.

use std::sync::Arc;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Registry};

use super::{counters, own::Own, registered};

/// In seconds: half a millisecond to a minute.
const DURATION_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

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
    pub(super) series: Option<(Arc<RouteFamily>, Arc<str>)>,
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

#[derive(Debug)]
pub(super) struct RouteFamily {
    requests: IntCounterVec,
    duration: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    pub(super) own: Own<RouteMetrics>,
}

impl RouteFamily {
    pub(super) fn new(registry: &Registry) -> Self {
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

    pub(super) fn handles(
        &self,
        name: &str,
        series: Option<(Arc<Self>, Arc<str>)>,
    ) -> RouteMetrics {
        RouteMetrics {
            requests: CODES.map(|code| self.requests.with_label_values(&[name, code])),
            duration: self.duration.with_label_values(&[name]),
            request_bytes: self.request_bytes.with_label_values(&[name]),
            response_bytes: self.response_bytes.with_label_values(&[name]),
            series,
        }
    }
}
