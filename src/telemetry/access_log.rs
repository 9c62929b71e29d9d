//! The access log: one line per request, written when its body ends or is dropped. Never blocks a worker.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Method, Version};

/// What is known of a finished request.
#[derive(Debug)]
pub struct Record<'a> {
    /// When its first byte came.
    pub time: SystemTime,
    /// Who sent it.
    pub client: SocketAddr,
    /// Its method.
    pub method: &'a Method,
    /// Its canonical host; empty if it had none.
    pub host: &'a str,
    /// Path and query as they came.
    pub target: &'a str,
    /// The version the client spoke.
    pub version: Version,
    /// `Referer`.
    pub referer: Option<&'a HeaderValue>,
    /// `User-Agent`.
    pub user_agent: Option<&'a HeaderValue>,
    /// The status answered; 499 when the client left before the head.
    pub status: u16,
    /// Why, if not from the upstream, or how the body broke off: an RFC 9209 error name or our own word.
    pub reason: Option<&'static str>,
    /// The route that served it.
    pub route: Option<&'a str>,
    /// The upstream of the last attempt.
    pub upstream: Option<&'a str>,
    /// Body bytes from the client.
    pub request_bytes: u64,
    /// Body bytes to the client.
    pub response_bytes: u64,
    /// First byte of the request to the end of the response.
    pub total: Duration,
    /// Spent connecting to the upstream; `None` on a pooled connection.
    pub connect: Option<Duration>,
    /// To the upstream's response head.
    pub first_byte: Option<Duration>,
    /// Attempts beyond the first.
    pub retries: u32,
    /// The revision of the table it was routed by.
    pub revision: i64,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// A handle to the log; cheap to clone, one per worker.
#[derive(Clone, Debug)]
pub struct AccessLog {}

impl AccessLog {
    /// Queues one line; drops (and counts) it when the queue is full.
    pub fn write(&self, _record: &Record<'_>) {}
}
