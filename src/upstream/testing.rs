//! Upstreams for tests, as keys would make them.

use std::sync::Arc;

use super::{Endpoint, Identity, Protocol, Registry, Upstream};
use crate::telemetry::metrics::Metrics;

/// This port of this machine.
pub fn local(port: u16) -> Endpoint {
    Endpoint::Tcp {
        address: ([127, 0, 0, 1], port).into(),
        name: None,
    }
}

/// An upstream without options: plain HTTP/1.1.
pub fn plain(endpoint: Endpoint) -> Identity {
    Identity {
        endpoint,
        tls: None,
        protocol: Protocol::Http1,
        pool: None,
        proxy_protocol: None,
    }
}

/// An upstream that no registry keeps.
pub fn alone(identity: &Identity) -> Arc<Upstream> {
    Registry::new(Metrics::new()).upstream(identity)
}
