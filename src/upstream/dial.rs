//! Connecting to an upstream.

mod race;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(super) use self::race::Alternative;
use super::{
    Endpoint, Protocol, Upstream,
    http1::Connection,
    proxy_protocol::Origin,
    tls::{TlsError, UpstreamTls},
    transport::Transport,
};
use crate::descriptors::Descriptors;

/// Connects to upstreams; one per worker, and one for health checks.
#[derive(Clone)]
pub struct Dialler {
    deny: Arc<Deny>,
    tls: Arc<UpstreamTls>,
    /// Where a connection finds its descriptor when there is none left.
    descriptors: Option<Arc<Descriptors>>,
}

/// Addresses that are never dialled, whatever a key says: who may write keys must not reach what only we can.
#[derive(Debug)]
pub struct Deny {
    networks: Vec<IpNet>,
    /// Where this Waypost itself listens.
    own: Vec<SocketAddr>,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The name has no address.
    #[error("the name does not resolve")]
    Unresolved,
    /// `--upstream-deny`.
    #[error("the address is denied by --upstream-deny")]
    Denied,
    /// The admin API, or a listener: a request would come back to us, again and again.
    #[error("the address is this Waypost's own")]
    Own,
    /// The connect failed.
    #[error("connecting failed: {0}")]
    Connect(#[source] io::Error),
    /// It was connected, and then the PROXY header could not be sent.
    #[error("sending the PROXY header failed: {0}")]
    Header(#[source] io::Error),
    /// The TLS options are unusable.
    #[error(transparent)]
    TlsOptions(#[from] TlsError),
    /// The TLS handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// The handshake chose another protocol than HTTP/2, or none.
    #[error("it does not offer HTTP/2 (\"h2\" by ALPN)")]
    NoHttp2,
    /// It answered the HTTP/2 preface with something else, or not at all.
    #[error("it does not speak HTTP/2: {0}")]
    Http2(#[source] io::Error),
}

impl DialError {
    /// Whether something is lacking here (descriptors, ports, memory), which says nothing of the upstream.
    pub fn is_ours(&self) -> bool {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
            NetworkUnreachable, NotFound, PermissionDenied, TimedOut, WouldBlock,
        };
        let Self::Connect(error) = self else {
            return false;
        };
        // The last two are what sockets in the file system say: there is none, and its queue is full.
        let is_theirs = matches!(
            error.kind(),
            ConnectionRefused
                | ConnectionReset
                | ConnectionAborted
                | TimedOut
                | HostUnreachable
                | NetworkUnreachable
                | PermissionDenied
                | NotFound
                | WouldBlock
        );
        !is_theirs
    }
}

impl Deny {
    /// Denies these networks, and what this Waypost listens on itself: the admin address and the listeners.
    pub fn new(networks: Vec<IpNet>, own: Vec<SocketAddr>) -> Self {
        Self { networks, own }
    }

    /// Why `address` must not be dialled, if it must not.
    pub fn verdict(&self, address: SocketAddr) -> Result<(), DialError> {
        // Connecting to 0.0.0.0 or [::] reaches this machine, so what keeps loopback out must keep these out too.
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let is_own = |own: &SocketAddr| {
            let own_ip = own.ip().to_canonical();
            own.port() == address.port()
                && (own_ip == ip
                    || own_ip.is_unspecified() && ip.is_loopback()
                    || address.ip().is_unspecified() && own_ip.is_loopback())
        };
        if self.own.iter().any(is_own) {
            return Err(DialError::Own);
        }
        match self.networks.iter().any(|network| network.contains(&ip)) {
            true => Err(DialError::Denied),
            false => Ok(()),
        }
    }

    /// Whether a connection made has come back to us by another address of this machine: then both its ends have
    /// that address, and a listener takes all.
    fn is_own(&self, peer: SocketAddr, stream: &TcpStream) -> bool {
        let takes_all = |own: &SocketAddr| own.port() == peer.port() && own.ip().is_unspecified();
        self.own.iter().any(takes_all)
            && stream
                .local_addr()
                .is_ok_and(|local| local.ip() == peer.ip())
    }
}

impl Dialler {
    /// Dials anything but what `deny` holds.
    pub fn new(deny: Arc<Deny>, tls: Arc<UpstreamTls>) -> Self {
        Self {
            deny,
            tls,
            descriptors: None,
        }
    }

    /// The same, but with no descriptor left it has idle connections make way, and dials again.
    pub fn relieved_by(self, descriptors: Arc<Descriptors>) -> Self {
        Self {
            descriptors: Some(descriptors),
            ..self
        }
    }

    /// A new connection for HTTP/1.1, for requests of this origin. Takes as long as it takes: the caller bounds it.
    pub async fn dial(&self, upstream: &Upstream, origin: Origin) -> Result<Connection, DialError> {
        upstream.metrics.connects.inc();
        self.connect(upstream, origin).await.map(Connection::new)
    }

    /// A new stream, on which the upstream expects its protocol; it counts as nobody's connection. Takes as long as it
    /// takes: the caller bounds it.
    pub async fn connect(
        &self,
        upstream: &Upstream,
        origin: Origin,
    ) -> Result<Transport, DialError> {
        let transport = match &upstream.identity.endpoint {
            Endpoint::Unresolved(..) => return Err(DialError::Unresolved),
            Endpoint::Unix(path) => {
                let stream = self.open(|| UnixStream::connect(path)).await;
                let mut stream = stream.map_err(DialError::Connect)?;
                introduce(&mut stream, upstream, origin).await?;
                Transport::Unix(stream)
            }
            Endpoint::Tcp { address, .. } => {
                let mut stream = self.connect_either(upstream, *address).await?;
                introduce(&mut stream, upstream, origin).await?;
                match &upstream.identity.tls {
                    None => Transport::Tcp(stream),
                    Some(options) => {
                        let (connector, name): (_, ServerName<'static>) =
                            self.tls.connector(options, &upstream.identity.endpoint)?;
                        Transport::Tls(Box::new(match upstream.identity.protocol {
                            Protocol::Http1 => connector
                                .connect(name, stream)
                                .await
                                .map_err(DialError::Handshake)?,
                            Protocol::H2 => handshake_http2(connector, name, stream).await?,
                        }))
                    }
                }
            }
        };
        Ok(transport)
    }

    async fn open<T, F>(&self, open: impl Fn() -> F) -> io::Result<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        match &self.descriptors {
            Some(descriptors) => descriptors.open(open).await,
            None => open().await,
        }
    }
}

/// Tells the upstream whose connection it is, if it is to be told: before TLS, as whoever is told need not be who ends
/// that. Nothing was sent before, so the kernel has room for all of it.
async fn introduce(
    stream: &mut (impl AsyncWrite + Unpin),
    upstream: &Upstream,
    origin: Origin,
) -> Result<(), DialError> {
    let Some(version) = upstream.identity.proxy_protocol else {
        return Ok(());
    };
    let header = version.header(origin);
    stream.write_all(&header).await.map_err(DialError::Header)
}

/// A handshake that ends with HTTP/2 chosen, or not at all.
async fn handshake_http2(
    connector: TlsConnector,
    name: ServerName<'static>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, DialError> {
    use rustls::{AlertDescription::NoApplicationProtocol, Error::AlertReceived};
    let alpn = vec![b"h2".to_vec()];
    let stream = connector.with_alpn(alpn).connect(name, stream).await;
    let stream = stream.map_err(|error| {
        let source = error.get_ref().and_then(|source| source.downcast_ref());
        match source {
            Some(AlertReceived(NoApplicationProtocol)) => DialError::NoHttp2,
            _ => DialError::Handshake(error),
        }
    })?;
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Ok(stream),
        _ => Err(DialError::NoHttp2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_header_that_is_not_taken_is_no_connection() {
        use crate::upstream::{Identity, ProxyProtocol, testing};
        let upstream = |proxy_protocol| {
            testing::alone(&Identity {
                proxy_protocol,
                ..testing::plain(Endpoint::Unix("/nowhere".into()))
            })
        };
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let (mut near, far) = UnixStream::pair().expect("a pair of sockets");
            drop(far);
            let said = introduce(&mut near, &upstream(Some(version)), Origin::Unknown).await;
            let error = said.expect_err("nobody takes it");
            assert!(matches!(error, DialError::Header(_)), "{error}");
            assert!(!error.is_ours());
            let said = introduce(&mut near, &upstream(None), Origin::Unknown).await;
            assert!(said.is_ok(), "there was nothing to say");
        }
    }

    #[test]
    fn denied_networks_and_the_admin_address_are_not_dialled() {
        let deny = Deny::new(
            ["169.254.0.0/16", "127.1.0.0/16", "::1/128"]
                .map(|network| network.parse().expect("a network"))
                .into(),
            ["127.0.0.1:9900", "0.0.0.0:3000", "10.0.0.1:443"]
                .map(|own| own.parse().expect("an address"))
                .into(),
        );
        for (address, denied) in [
            ("169.254.169.254:80", true),
            ("[::ffff:169.254.169.254]:80", true),
            ("127.0.0.1:9900", true),
            ("[::ffff:127.0.0.1]:9900", true),
            ("0.0.0.0:9900", true),
            ("[::]:80", true),
            ("127.1.2.3:80", true),
            ("127.0.0.1:3000", true),
            ("0.0.0.0:3000", true),
            ("10.0.0.1:443", true),
            ("10.0.0.2:443", false),
            ("127.0.0.1:9901", false),
            ("10.0.0.1:9900", false),
        ] {
            assert_eq!(
                deny.verdict(address.parse().expect(address)).is_err(),
                denied,
                "{address}"
            );
        }
    }
}
