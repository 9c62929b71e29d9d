//! The data plane: one thread per worker, each with its own sockets, tasks and pools.

pub mod listener;
pub mod tls;

use std::{sync::Arc, time::Duration};

use crate::{
    config::Config,
    source::Live,
    telemetry::{access_log::AccessLog, metrics::Metrics},
};

/// All workers of the process.
pub struct DataPlane {}

impl DataPlane {
    /// Binds every listener and starts the workers. A busy port or a bad certificate fails it: whatever was opened
    /// is closed again, and the error names the address or the file.
    pub fn start(
        _config: &Config,
        _live: Arc<Live>,
        _metrics: Arc<Metrics>,
        _access_log: Option<AccessLog>,
    ) -> anyhow::Result<Self> {
        todo!()
    }

    /// The addresses that were bound, in the order of the listeners (port 0 resolved).
    pub fn addresses(&self) -> Vec<std::net::SocketAddr> {
        todo!()
    }

    /// Reads every certificate again; on an error the old ones stay in use.
    pub fn reload_certificates(&self) -> anyhow::Result<()> {
        todo!()
    }

    /// From now on HTTP/1 answers carry `Connection: close` and HTTP/2 connections get GOAWAY; accepting goes on.
    pub fn begin_drain(&self) {
        todo!()
    }

    /// Accepts what is queued, closes the listening sockets, and waits until the last request ended or `grace` is
    /// over; what still runs then is cut off. Returns how many requests were cut.
    pub async fn finish(self, _grace: Duration) -> usize {
        todo!()
    }
}
