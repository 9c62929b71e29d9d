//! Whether a service answers already: its port takes connections, or a path of it answers well.

use std::{io, net::SocketAddr, path::Path, pin::pin, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderValue, Request, header, uri::PathAndQuery};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{self, Instant},
};
use tokio_rustls::TlsConnector;
use tracing::{info, warn};

use crate::{
    route::value::UpstreamOptions,
    upstream::{
        Address, ClientFiles, Endpoint, ProxyProtocol, TlsOptions, proxy_protocol::Origin,
        tls::UpstreamTls,
    },
};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// One attempt may take this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long, and then again and again, the log says what is waited for.
const REMINDER: Duration = Duration::from_secs(15);

/// Asks one address.
pub(super) struct Probe {
    address: Address,
    http: Option<Http>,
}

/// What is asked beyond a connection.
struct Http {
    path: PathAndQuery,
    host: HeaderValue,
    proxy_protocol: Option<ProxyProtocol>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Probe {
    /// Asks whether a connection is accepted.
    pub(super) fn of_port(address: Address) -> Self {
        Self {
            address,
            http: None,
        }
    }

    /// Asks for a path with this `Host`, behind a PROXY header and over TLS if the upstream's options say so. Whose
    /// certificate it is is for the instances to judge, who have the authorities: here any will do.
    ///
    /// # Errors
    ///
    /// Without a name to ask for by TLS.
    pub(super) fn of_path(
        address: Address,
        path: PathAndQuery,
        host: &str,
        upstream: UpstreamOptions,
    ) -> Result<Self> {
        let host = HeaderValue::from_str(host).with_context(|| format!("HOST {host}"))?;
        let tls = match upstream.tls {
            Some(options) => {
                let options = TlsOptions {
                    ca: None,
                    insecure: true,
                    // Those of the instances: they may not be on this machine.
                    client: options.client.clone().filter(are_here),
                    ..(*options).clone()
                };
                Some(UpstreamTls::new().connector(&options, &endpoint(&address))?)
            }
            None => None,
        };
        let http = Some(Http {
            path,
            host,
            proxy_protocol: upstream.proxy_protocol,
            tls,
        });
        Ok(Self { address, http })
    }

    /// Tries again and again.
    pub(super) async fn until_it_answers(&self) {
        let begun = Instant::now();
        let mut reminder = begun + REMINDER;
        loop {
            let attempt = time::timeout(PATIENCE, self.ask()).await;
            let error = match attempt {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs()),
            };
            if Instant::now() >= reminder {
                reminder += REMINDER;
                warn!(address = %self.address, error = format!("{error:#}"), "the service doesn't answer yet");
            }
            time::sleep(PAUSE).await;
        }
        info!(address = %self.address, seconds = begun.elapsed().as_secs_f64(), "the service answers");
    }

    async fn ask(&self) -> Result<()> {
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                self.ask_over(stream).await
            }
            Address::Ip(address) => self.ask_over(connect(*address).await?).await,
            Address::Name(name, port) => {
                let stream = TcpStream::connect((&**name, *port)).await?;
                self.ask_over(stream).await
            }
        }
    }

    async fn ask_over<S>(&self, mut stream: S) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(http) = &self.http else {
            return Ok(());
        };
        if let Some(version) = http.proxy_protocol {
            stream.write_all(&version.header(Origin::Local)).await?;
        }
        match &http.tls {
            Some((connector, name)) => {
                http.ask_over(connector.connect(name.clone(), stream).await?)
                    .await
            }
            None => http.ask_over(stream).await,
        }
    }
}

impl Http {
    async fn ask_over<S>(&self, stream: S) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(self.path.as_str())
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, "waypost-register")
            .body(Empty::<Bytes>::new())?;
        // What ends the connection may come with the answer, and says nothing against it: whether one came, the request
        // knows. The connection ends with this attempt, and is driven no longer.
        let mut answer = pin!(sender.send_request(request));
        let answer = tokio::select! {
            answer = &mut answer => answer?,
            _ = connection => answer.await?,
        };
        let status = answer.status();
        anyhow::ensure!(
            status.is_success() || status.is_redirection(),
            "{} answers {status}",
            self.path
        );
        Ok(())
    }
}

/// Of all ports of this machine, the kernel may take the very one that we connect to for ours, and connect us to
/// ourselves.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    match stream.local_addr()? == stream.peer_addr()? {
        true => Err(io::ErrorKind::ConnectionRefused.into()),
        false => Ok(stream),
    }
}

fn endpoint(address: &Address) -> Endpoint {
    match address {
        Address::Ip(address) => Endpoint::Tcp {
            address: *address,
            name: None,
        },
        Address::Name(name, port) => Endpoint::Unresolved(name.clone(), *port),
        Address::Unix(path) => Endpoint::Unix(path.clone()),
    }
}

/// `--health-path`.
pub(super) fn path(text: &str) -> Result<PathAndQuery, String> {
    if !text.starts_with('/') {
        return Err("a path starts with /, as in /healthz".into());
    }
    text.parse().map_err(|error| format!("no path: {error}"))
}

fn are_here(files: &ClientFiles) -> bool {
    [&files.cert, &files.key].map(|path| Path::new(&**path).is_file()) == [true; 2]
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    /// Asks a service that says this to whoever asks, and closes at once; on one thread, so that the end is there
    /// when the answer is read.
    async fn ask(answer: &'static str) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let service = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let service = tokio::spawn(service);
        let path = "/healthz".parse().unwrap();
        let probe = Probe::of_path(address, path, "a.test", UpstreamOptions::default()).unwrap();
        let asked = time::timeout(PATIENCE, probe.ask()).await;
        service.await.unwrap();
        asked.expect("in time")
    }

    #[tokio::test]
    async fn an_answer_counts_also_if_the_connection_ends_with_it() {
        for answer in [
            "HTTP/1.0 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nwell",
            "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nwell",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwell",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nwell",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ncut",
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        ] {
            // Whichever of the two is asked first.
            for _ in 0..20 {
                let asked = ask(answer).await;
                assert!(asked.is_ok(), "{answer:?}: {asked:?}");
            }
        }
    }

    #[tokio::test]
    async fn who_wants_a_header_gets_one_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let service = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
            heard
        });
        let value = br#"{"proxy_protocol": "v1"}"#;
        let options = UpstreamOptions::parse(value).unwrap();
        let path = "/healthz".parse().unwrap();
        let probe = Probe::of_path(address, path, "a.test", options).unwrap();
        probe.ask().await.unwrap();
        let heard = service.await.unwrap();
        let expected = b"PROXY UNKNOWN\r\nGET /healthz HTTP/1.1\r\n";
        assert!(heard.starts_with(expected), "{}", heard.escape_ascii());
    }

    #[tokio::test]
    async fn a_bad_answer_or_none_does_not_count() {
        for (answer, reason) in [
            ("", "before message completed"),
            ("HTTP/1.1 200 OK\r\nConte", "before message completed"),
            ("SSH-2.0-OpenSSH_9\r\n\r\n", "invalid HTTP version"),
            ("HTTP/1.0 503 Busy\r\n\r\n", "answers 503"),
            (
                "HTTP/1.1 404 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                "answers 404",
            ),
        ] {
            let error = format!("{:#}", ask(answer).await.unwrap_err());
            assert!(error.contains(reason), "{answer:?}: {error}");
        }
    }
}
