//! Asks the admin API of an instance, for the commands that show what it does.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time};

/// Longest reply we take: a page of 10,000 routes is a few megabytes.
const LARGEST_REPLY: usize = 256 << 20;

/// Where the instance is.
#[derive(clap::Args, Clone, Debug)]
pub struct AdminArgs {
    /// Admin address of the instance to ask
    #[arg(
        long,
        env = "WAYPOST_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9900"
    )]
    pub admin: String,
}

/// GET of a path; the status and the body, within `patience`.
pub async fn fetch(
    admin: &str,
    path: &str,
    patience: Duration,
) -> anyhow::Result<(StatusCode, Bytes)> {
    ask(admin, Method::GET, path, patience).await
}

/// The same for JSON; an `{"error": "..."}` is an error here.
pub async fn fetch_json(admin: &str, path: &str) -> anyhow::Result<Value> {
    ask_json(admin, Method::GET, path).await
}

/// POST without a body; else as [`fetch_json`].
pub async fn post_json(admin: &str, path: &str) -> anyhow::Result<Value> {
    ask_json(admin, Method::POST, path).await
}

async fn ask(
    admin: &str,
    method: Method,
    path: &str,
    patience: Duration,
) -> anyhow::Result<(StatusCode, Bytes)> {
    time::timeout(patience, exchange(admin, method, path))
        .await
        .unwrap_or_else(|_| bail!("no answer within {}", humantime::format_duration(patience)))
        .with_context(|| {
            format!(
                "could not ask {admin} (is `waypost serve` running? --admin names another address)"
            )
        })
}

async fn ask_json(admin: &str, method: Method, path: &str) -> anyhow::Result<Value> {
    let (status, body) = ask(admin, method, path, Duration::from_secs(30)).await?;
    let value: Value = serde_json::from_slice(&body)
        .with_context(|| format!("{admin} is no admin API of Waypost: its answer is not JSON"))?;
    if !status.is_success() {
        bail!(
            "{admin}: {}",
            value["error"].as_str().unwrap_or(status.as_str())
        );
    }
    Ok(value)
}

async fn exchange(admin: &str, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(admin).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, admin)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST_REPLY)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    connection.abort();
    Ok((status, body.to_bytes()))
}

/// A text as part of a query.
pub fn encoded(text: &str) -> impl std::fmt::Display {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}
