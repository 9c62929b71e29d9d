//! What clients were refused, or cut off for, by limit.

use prometheus::{IntCounter, Registry};

use super::counters;

/// A limit on clients that was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `--tls-handshake-timeout`.
    Opening,
    /// `--header-timeout`: 408.
    Head,
    /// `--idle-timeout`.
    Idle,
    /// `--body-timeout`, of a client that does not send: 408.
    Body,
    /// `--body-timeout`, of a client that does not read.
    Write,
    /// `--max-header-bytes` or `--max-header-fields`: 431.
    HeaderSize,
    /// `--max-target-bytes`: 414.
    TargetSize,
    /// `max_body` of a route: 413.
    BodySize,
    /// `--max-connections`: turned away.
    Connections,
    /// `--max-connections-per-client`: turned away.
    ConnectionsPerClient,
    /// `--max-connections`: idle, and closed to make room for another.
    GaveWay,
    /// `--h2-max-resets`.
    Resets,
}

/// `waypost_limit_hits_total{limit}`.
#[derive(Debug)]
pub struct LimitHits([IntCounter; Limit::ALL.len()]);

impl Limit {
    /// In the order of their values.
    const ALL: [Self; 12] = [
        Self::Opening,
        Self::Head,
        Self::Idle,
        Self::Body,
        Self::Write,
        Self::HeaderSize,
        Self::TargetSize,
        Self::BodySize,
        Self::Connections,
        Self::ConnectionsPerClient,
        Self::GaveWay,
        Self::Resets,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Opening => "tls_handshake_timeout",
            Self::Head => "header_timeout",
            Self::Idle => "idle_timeout",
            Self::Body => "body_timeout",
            Self::Write => "write_timeout",
            Self::HeaderSize => "header_size",
            Self::TargetSize => "target_size",
            Self::BodySize => "body_size",
            Self::Connections => "connections",
            Self::ConnectionsPerClient => "connections_per_client",
            Self::GaveWay => "connections_gave_way",
            Self::Resets => "h2_resets",
        }
    }
}

impl LimitHits {
    pub(super) fn new(registry: &Registry) -> Self {
        let hits = counters(
            registry,
            "waypost_limit_hits_total",
            "Requests and connections of clients that a limit refused or ended.",
            &["limit"],
        );
        Self(Limit::ALL.map(|limit| hits.with_label_values(&[limit.label()])))
    }

    /// How often each was hit so far, by the name that the metric has.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(IntCounter::get);
        Limit::ALL.map(Limit::label).into_iter().zip(counts)
    }

    /// One more.
    pub fn count(&self, limit: Limit) {
        self.0[limit as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_a_series_of_its_own() {
        let hits = LimitHits::new(&Registry::new());
        for (index, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, index);
            hits.count(limit);
        }
        assert!(hits.0.iter().all(|counter| counter.get() == 1));
    }
}
