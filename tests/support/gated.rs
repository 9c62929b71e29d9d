//! An origin that answers when it is let, and clients of the host `a.test` that wait for it.

use std::{fmt, sync::Arc};

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    http::Wire,
    origin::{Origin, Served},
    waypost::{Waypost, eventually},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
/// Of a WebSocket, which is opened at once.
pub const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Answers each request when it is let.
pub struct Gated {
    pub origin: Origin,
    gate: Arc<Semaphore>,
}

impl Gated {
    /// Nothing is let yet, but WebSockets at `/ws`.
    pub async fn start() -> Self {
        Self::answering(OK).await
    }

    /// With this, once they are let; with nothing, the connection ends.
    pub async fn answering(response: &'static str) -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let origin = Origin::run({
            let gate = gate.clone();
            move |mut served: Served| {
                let gate = gate.clone();
                async move {
                    while let Some(request) = served.request().await {
                        if request.head.line.starts_with("GET /ws ") {
                            served.send(SWITCHING).await;
                            continue;
                        }
                        gate.acquire().await.expect("never closed").forget();
                        if response.is_empty() || !served.send(response).await {
                            return;
                        }
                    }
                }
            }
        })
        .await;
        Self { origin, gate }
    }

    /// So many more are answered.
    pub fn let_through(&self, count: usize) {
        self.gate.add_permits(count);
    }

    /// Waits until it has had so many requests.
    pub async fn asked(&self, count: usize) {
        self.origin.asked(count).await;
    }

    /// How many requests it has had.
    pub fn asks(&self) -> usize {
        self.origin.requests().len()
    }
}

/// The upstream is asked for so much at one time at most.
pub async fn limited(waypost: &Waypost, origin: impl fmt::Display, most: usize) {
    let value = json!({ "max_requests": most }).to_string();
    waypost.put("a.test", origin, &value).await;
}

/// The settings of the route.
pub async fn settings(waypost: &Waypost, settings: Value) {
    waypost
        .put("a.test", "@settings", &settings.to_string())
        .await;
}

/// Nobody waits longer than a test.
pub async fn patient(waypost: &Waypost) {
    settings(waypost, json!({"timeouts": {"queue": "1m"}})).await;
}

/// A request of a client of its own.
pub async fn begin(waypost: &Waypost, path: &str) -> Wire {
    let mut client = Wire::connect(waypost.address()).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n");
    client.send(request).await;
    client
}

/// Waits until so many wait.
pub async fn until_queued(waypost: &Waypost, count: usize) {
    let what = format!("{count} requests wait");
    eventually(&what, async || {
        waypost.metric("waypost_queued_requests", &[]).await as usize == count
    })
    .await;
}
