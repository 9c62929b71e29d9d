//! Sample upstreams that say who they are.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use axum::{Router, extract::Request};
use tokio::{net::TcpListener, task::JoinSet};

/// Small web servers of this process; they end when this is dropped.
pub(super) struct Upstreams {
    addresses: Vec<SocketAddr>,
    _servers: JoinSet<std::io::Result<()>>,
}

impl Upstreams {
    /// Starts `count` of them on free ports.
    pub(super) async fn start(count: usize) -> anyhow::Result<Self> {
        let mut addresses = Vec::new();
        let mut servers = JoinSet::new();
        for number in 1..=count {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .context("could not start a sample upstream")?;
            let address = listener.local_addr()?;
            let hello = async move |request: Request| {
                let (method, target) = (request.method(), request.uri());
                format!("hello from upstream-{number} ({address}): {method} {target}\n")
            };
            servers.spawn(axum::serve(listener, Router::new().fallback(hello)).into_future());
            addresses.push(address);
        }
        Ok(Self {
            addresses,
            _servers: servers,
        })
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}
