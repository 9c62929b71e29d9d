//! Limits on clients: what each may take of this instance. docs/http.md has what is answered beyond them.
//!
//! [`LimitArgs`] is what was typed, [`ClientLimits`] what it means: read by every request, changed by none.

use std::{fmt, ops::RangeInclusive, time::Duration};

use clap::builder::RangedU64ValueParser;

use super::{Usage, values};

/// The flags of `serve` that limit clients.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Limits on clients")]
pub struct LimitArgs {
    /// The most bytes of header fields in a request; 431 beyond
    #[arg(
        long,
        env = "WAYPOST_MAX_HEADER_BYTES",
        value_name = "SIZE",
        default_value = "64KiB",
        value_parser = header_bytes
    )]
    pub max_header_bytes: usize,
    /// The most header fields in a request, 1 to 4096; 431 beyond
    #[arg(
        long,
        env = "WAYPOST_MAX_HEADER_FIELDS",
        value_name = "N",
        default_value_t = 100,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096)
    )]
    pub max_header_fields: usize,
    /// The longest request target (path and query); 414 beyond
    #[arg(
        long,
        env = "WAYPOST_MAX_TARGET_BYTES",
        value_name = "SIZE",
        default_value = "16KiB",
        value_parser = target_bytes
    )]
    pub max_target_bytes: usize,
    /// How long a request's head may take, from its first byte; 408 then
    #[arg(
        long,
        env = "WAYPOST_HEADER_TIMEOUT",
        value_name = "TIME",
        default_value = "10s",
        value_parser = patience
    )]
    pub header_timeout: Duration,
    /// How long a TLS handshake may take; without TLS, the first byte
    #[arg(
        long,
        env = "WAYPOST_TLS_HANDSHAKE_TIMEOUT",
        value_name = "TIME",
        default_value = "10s",
        value_parser = patience
    )]
    pub tls_handshake_timeout: Duration,
    /// How long a connection may lie idle between requests
    #[arg(
        long,
        env = "WAYPOST_IDLE_TIMEOUT",
        value_name = "TIME",
        default_value = "75s",
        value_parser = patience
    )]
    pub idle_timeout: Duration,
    /// How long a client may neither send of the body it announced (408 then) nor read of the response
    #[arg(
        long,
        env = "WAYPOST_BODY_TIMEOUT",
        value_name = "TIME",
        default_value = "60s",
        value_parser = patience
    )]
    pub body_timeout: Duration,
    /// The most client connections at one time [default: half of the file descriptors that the process may have]
    #[arg(
        long,
        env = "WAYPOST_MAX_CONNECTIONS",
        value_name = "N",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000_000)
    )]
    pub max_connections: Option<usize>,
    /// The same of one client, which is an IPv4 address or a /64 network of IPv6: a number, half (of all), or none for
    /// no limit. --trusted-proxies have none
    #[arg(
        long,
        env = "WAYPOST_MAX_CONNECTIONS_PER_CLIENT",
        value_name = "N",
        default_value = "half",
        value_parser = per_client
    )]
    pub max_connections_per_client: PerClient,
    /// The most streams that a client may have open at one time in one HTTP/2 connection, 1 to 10000
    #[arg(
        long,
        env = "WAYPOST_H2_MAX_STREAMS",
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub h2_max_streams: u32,
    /// How many of its HTTP/2 streams a client may give up at once, and as many again every 30 s; the connection ends
    /// beyond. One more for each stream that is answered in full [default: 1000, or --h2-max-streams if that is more]
    #[arg(
        long,
        env = "WAYPOST_H2_MAX_RESETS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub h2_max_resets: Option<u32>,
    /// How much of a request body may be on its way in one HTTP/2 stream
    #[arg(
        long,
        env = "WAYPOST_H2_STREAM_WINDOW",
        value_name = "SIZE",
        default_value = "64KiB",
        value_parser = stream_window
    )]
    pub h2_stream_window: u32,
    /// The same of all streams of an HTTP/2 connection
    #[arg(
        long,
        env = "WAYPOST_H2_CONNECTION_WINDOW",
        value_name = "SIZE",
        default_value = "1MiB",
        value_parser = connection_window
    )]
    pub h2_connection_window: u32,
}

impl LimitArgs {
    /// What the flags mean together.
    ///
    /// # Errors
    ///
    /// [`Usage`] for flags that contradict each other.
    pub(super) fn resolve(&self) -> anyhow::Result<ClientLimits> {
        if self.h2_connection_window < self.h2_stream_window {
            return Err(Usage::error(
                "--h2-connection-window is smaller than --h2-stream-window: no stream could use its own",
            ));
        }
        let resets = self.h2_max_resets;
        let resets = resets.unwrap_or(self.h2_max_streams.max(MAX_RESETS));
        if resets < self.h2_max_streams {
            return Err(Usage::error(
                "--h2-max-resets is smaller than --h2-max-streams: a client that gives up all of its streams at once, as a \
                 browser does that leaves a page, would be cut off",
            ));
        }
        Ok(ClientLimits {
            header_bytes: self.max_header_bytes,
            header_fields: self.max_header_fields,
            target_bytes: self.max_target_bytes,
            opening: self.tls_handshake_timeout,
            idle: self.idle_timeout,
            head: self.header_timeout,
            body: self.body_timeout,
            connections: ConnectionLimits {
                process: self.max_connections,
                per_client: self.max_connections_per_client,
            },
            http2: Http2Limits {
                streams: self.h2_max_streams,
                resets,
                stream_window: self.h2_stream_window,
                connection_window: self.h2_connection_window,
            },
        })
    }
}

/// What one client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Bytes of header fields in a request.
    pub header_bytes: usize,
    /// Header fields in a request.
    pub header_fields: usize,
    /// Bytes of a request's target.
    pub target_bytes: usize,
    /// For the TLS handshake, and for the first bytes where there is none.
    pub opening: Duration,
    /// Between requests.
    pub idle: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Without reading a byte of what we have for it, or sending a byte of the body it announced.
    pub body: Duration,
    /// How many connections there may be.
    pub connections: ConnectionLimits,
    /// What is HTTP/2's own.
    pub http2: Http2Limits,
}

impl ClientLimits {
    /// The most bytes of a whole HTTP/1.1 request head: its fields, and its target.
    pub fn head_bytes(&self) -> usize {
        self.header_bytes + self.target_bytes
    }
}

/// How many clients may be connected at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// All of them; `None`: as many as the file descriptors allow.
    pub process: Option<usize>,
    /// Those of one address.
    pub per_client: PerClient,
}

/// `--max-connections-per-client`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerClient {
    /// Half of all that there may be.
    Half,
    /// So many.
    AtMost(usize),
    /// As many as there may be at all.
    Unlimited,
}

/// What one client may take over HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Limits {
    /// Streams at one time in a connection.
    pub streams: u32,
    /// Streams that may be given up at once.
    pub resets: u32,
    /// Bytes of a body that may be under way in a stream.
    pub stream_window: u32,
    /// The same in a connection.
    pub connection_window: u32,
}

/// What the flags default to, whatever the environment says.
impl Default for ClientLimits {
    fn default() -> Self {
        let args = super::ServeArgs::default().limits;
        args.resolve()
            .expect("the defaults do not contradict each other")
    }
}

/// As nghttp2 has it, and so whoever is built on it: ten times what is open at one time.
const MAX_RESETS: u32 = 1000;
/// Less is no limit but a fault: a busy machine may take as long.
const SHORTEST: Duration = Duration::from_millis(100);

fn patience(text: &str) -> Result<Duration, String> {
    let patience = values::duration(text)?;
    if patience < SHORTEST {
        return Err("that is under 100ms: clients would be cut off at random".into());
    }
    Ok(patience)
}

fn per_client(text: &str) -> Result<PerClient, String> {
    match text {
        "half" => Ok(PerClient::Half),
        "none" => Ok(PerClient::Unlimited),
        _ => match text.parse() {
            Ok(count @ 1..=10_000_000) => Ok(PerClient::AtMost(count)),
            _ => Err("write a number from 1 to 10000000, half, or none".into()),
        },
    }
}

fn header_bytes(text: &str) -> Result<usize, String> {
    size(text, &(Size(1 << 10)..=Size(1 << 20)))
}

/// The `http` crate parses none of 64 KiB.
fn target_bytes(text: &str) -> Result<usize, String> {
    size(text, &(Size(256)..=Size(60 << 10)))
}

fn stream_window(text: &str) -> Result<u32, String> {
    size(text, &(Size(16 << 10)..=Size(64 << 20)))
}

/// It begins with 65,535 bytes, and cannot be made smaller (RFC 9113 section 6.9.2).
fn connection_window(text: &str) -> Result<u32, String> {
    size(text, &(Size(64 << 10)..=Size(1 << 30)))
}

/// Bytes, written so that they can be read.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            bytes if bytes % (1 << 30) == 0 => (bytes >> 30, "GiB"),
            bytes if bytes % (1 << 20) == 0 => (bytes >> 20, "MiB"),
            bytes if bytes % (1 << 10) == 0 => (bytes >> 10, "KiB"),
            bytes => (bytes, "B"),
        };
        write!(f, "{number}{unit}")
    }
}

fn size<T: TryFrom<u64>>(text: &str, range: &RangeInclusive<Size>) -> Result<T, String> {
    let bytes: bytesize::ByteSize = text
        .parse()
        .map_err(|_| "write a number and a unit, such as 64KiB or 1MiB")?;
    T::try_from(bytes.as_u64())
        .ok()
        .filter(|_| range.contains(&Size(bytes.as_u64())))
        .ok_or_else(|| format!("it may be from {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests;
