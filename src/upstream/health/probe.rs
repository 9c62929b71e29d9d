//! Asks one upstream once: a connection of its own, and what is said on it.

use std::{future::poll_fn, io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Uri, uri};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use super::{CheckSettings, Finding};
use crate::upstream::{
    Address, Identity, Protocol, Upstream,
    dial::{DialError, Dialler},
    http1::{
        MAX_INTERIM,
        head::{self, MAX_HEAD, MalformedHead},
    },
    http2::Sips,
    proxy_protocol::Origin,
    transport::Transport,
};

/// Who we say we are.
const USER_AGENT: &str = concat!("waypost/", env!("CARGO_PKG_VERSION"), " health-check");

/// How much of a body is read so that the upstream can finish it, and for how long. What was asked is known by then.
const MOST_BODY: usize = 4 * 1024;
const PARTING: Duration = Duration::from_millis(250);

/// Asks upstreams, by the same ways as requests take.
pub struct Probe {
    dialler: Dialler,
}

/// Why there is no status.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("it closed the connection before an answer")]
    Closed,
    #[error("no answer: {0}")]
    Broken(#[source] io::Error),
    #[error(transparent)]
    Malformed(#[from] MalformedHead),
    #[error("more than {MAX_INTERIM} interim responses")]
    Interim,
    #[error("no answer over HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    #[error("cannot ask for the path: {0}")]
    Request(#[from] http::Error),
}

impl Probe {
    /// Connects by this dialler.
    pub fn new(dialler: Dialler) -> Self {
        Self { dialler }
    }

    /// Asks once. Takes no longer than `timeout`.
    pub async fn ask(&self, upstream: &Upstream, settings: &CheckSettings) -> Finding {
        let deadline = Instant::now() + settings.timeout;
        let answered = timeout_at(deadline, self.exchange(upstream, settings)).await;
        let (finding, transport) = match answered {
            Ok(Ok(answered)) => answered,
            Ok(Err(failure)) => return failure.finding(),
            Err(_) => {
                let limit = humantime::format_duration(settings.timeout);
                return Finding::failed(format_args!("no answer within {limit}"));
            }
        };
        if let Some(transport) = transport {
            let until = deadline.min(Instant::now() + PARTING);
            // Whatever comes of it, the answer stands.
            let _ = timeout_at(until, part(transport, settings.path.is_some())).await;
        }
        finding
    }

    /// What was found, and the connection, if it is to be closed with care.
    async fn exchange(
        &self,
        upstream: &Upstream,
        settings: &CheckSettings,
    ) -> Result<(Finding, Option<Transport>), Failure> {
        let mut transport = self.dialler.connect(upstream, Origin::Local).await?;
        if is_ourselves(&transport) {
            let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
            return Err(DialError::Connect(refused).into());
        }
        let Some(path) = &settings.path else {
            return Ok((Finding::Connected, Some(transport)));
        };
        let (status, transport) = match upstream.identity.protocol {
            Protocol::Http1 => {
                let status = ask_http1(&mut transport, &upstream.identity, path).await?;
                (status, Some(transport))
            }
            Protocol::H2 => (ask_http2(transport, &upstream.identity, path).await?, None),
        };
        let is_good = settings.expect.holds(status);
        Ok((Finding::Status(status, is_good), transport))
    }
}

impl Failure {
    fn finding(&self) -> Finding {
        match self {
            // No upstream is to be taken out for what we lack.
            Self::Dial(error) if error.is_ours() => Finding::unknown(error),
            _ => Finding::failed(self),
        }
    }
}

/// Of all ports of this machine, the kernel may take the very one that we connect to for ours, and connect us to
/// ourselves: nobody listens there.
fn is_ourselves(transport: &Transport) -> bool {
    let Transport::Tcp(stream) = transport else {
        return false;
    };
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(local), Ok(peer)) if local == peer)
}

/// The upstream's address as its key writes it.
fn host(identity: &Identity) -> String {
    match identity.endpoint.written() {
        // A path is no host: say what a client of a local socket conventionally says.
        Address::Unix(_) => "localhost".to_owned(),
        address => address.to_string(),
    }
}

/// The status. The body is left where it is.
async fn ask_http1(
    transport: &mut Transport,
    identity: &Identity,
    path: &str,
) -> Result<u16, Failure> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: {USER_AGENT}\r\naccept: */*\r\nconnection: close\r\n\r\n",
        host(identity)
    );
    let sent = async {
        transport.write_all(request.as_bytes()).await?;
        transport.flush().await
    };
    // What an upstream does not take it may have answered.
    let unsent = sent.await.err();
    let mut read = BytesMut::new();
    let mut interim = 0;
    loop {
        if let Some(head) = head::parse(&mut read, &Method::GET)? {
            if !head.status.is_informational() || head.status == 101 {
                return Ok(head.status.as_u16());
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(Failure::Interim);
            }
            continue;
        }
        debug_assert!(read.len() < MAX_HEAD);
        read.reserve(4 * 1024);
        match transport.read_buf(&mut read).await {
            Ok(0) => return Err(unsent.map_or(Failure::Closed, Failure::Broken)),
            Ok(_) => {}
            Err(error) => return Err(Failure::Broken(error)),
        }
    }
}

/// The same over HTTP/2, on a connection that ends with it.
async fn ask_http2(transport: Transport, identity: &Identity, path: &str) -> Result<u16, Failure> {
    let scheme = match identity.tls {
        Some(_) => uri::Scheme::HTTPS,
        None => uri::Scheme::HTTP,
    };
    let uri = Uri::builder().scheme(scheme).authority(host(identity));
    let request = Request::get(uri.path_and_query(path).build()?)
        .header(http::header::USER_AGENT, USER_AGENT)
        .header(http::header::ACCEPT, "*/*")
        .body(())?;
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(MAX_HEAD as u32)
        .handshake::<_, Bytes>(Sips::from(transport))
        .await?;
    let answer = async {
        let (mut response, _) = sender.ready().await?.send_request(request, true)?;
        let mut interims = 0;
        while let Some(interim) = poll_fn(|cx| response.poll_informational(cx)).await {
            interim?;
            interims += 1;
            if interims > MAX_INTERIM {
                return Err(Failure::Interim);
            }
        }
        Ok(response.await?.status().as_u16())
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        status = &mut answer => status,
        // What ends the connection may come with the answer, and says nothing against it.
        _ = connection => answer.await,
    }
}

/// Closes a connection so that the upstream need not see it break: after the rest of a short answer, and in order.
async fn part(mut transport: Transport, has_answer: bool) -> io::Result<()> {
    let mut rest = [0; 1024];
    let mut read = 0;
    while has_answer && read < MOST_BODY {
        match transport.read(&mut rest).await? {
            0 => break,
            some => read += some,
        }
    }
    transport.shutdown().await
}

#[cfg(test)]
mod tests;
