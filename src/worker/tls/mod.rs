//! TLS in front: one [`TlsStore`] per https listener, shared by all workers.
//!
//! The rustls configuration is made once and lives as long as the listener, so tickets stay valid; what a reload
//! swaps is the [`Choice`] inside its resolver. Other authorities for clients make a new one: a session that an old one
//! vouched for must not be resumed. Connections that are open are not touched.

mod certificate;
mod choice;
mod clients;
mod disk;
mod server;
#[cfg(test)]
pub(crate) mod testing;
mod watch;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig, ServerConnection,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{Acceptor, ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

pub use self::{
    certificate::{Certificate, Error as CertificateError, Expiry},
    choice::Choice,
    clients::refused_certificate,
    watch::watch,
};
use self::{
    clients::Authorities,
    server::{Configs, prefers_chacha},
};
use crate::{
    config::{CertificateFiles, ClientCertificates, ListenerTls, TlsVersion},
    proxy::client::ClientCertificate,
};

/// A fatal `unrecognized_name` alert (RFC 6066 section 3) as a whole TLS record.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// The certificates of one https listener and the rustls configuration that serves them.
#[derive(Debug)]
pub struct TlsStore {
    sources: Sources,
    provider: Arc<CryptoProvider>,
    resolver: Arc<Resolver>,
    configs: ArcSwap<Configs>,
    /// One reload at a time: a signal and the watcher may ask at once, and the older reading must not win.
    reloading: Mutex<()>,
}

/// Where a listener's certificates come from.
#[derive(Debug)]
struct Sources {
    listener: Option<CertificateFiles>,
    tls_dir: Option<PathBuf>,
    clients: Option<ClientCertificates>,
    least_version: TlsVersion,
}

impl Sources {
    fn authorities(&self) -> impl Iterator<Item = &PathBuf> {
        self.clients.iter().map(|clients| &clients.authorities)
    }
}

/// What a reload did.
#[derive(Debug, Default)]
pub struct ReloadReport {
    /// Certificates that are new or were replaced.
    pub changed: Vec<Arc<Certificate>>,
    /// The chains of pairs that are gone and no longer served.
    pub removed: Vec<PathBuf>,
    /// Whether other authorities vouch for clients now.
    pub authorities_changed: bool,
    /// What could not be used, each naming its file; what was served for it before stays.
    pub problems: Vec<String>,
}

impl TlsStore {
    /// Reads the listener's own pair (`cert=&key=`), the pairs of `--tls-dir`, and who vouches for clients.
    ///
    /// A broken pair of the directory is skipped with a warning, so that it doesn't block the others. A broken
    /// pair of the listener, a directory that can't be read, and no certificate at all are errors.
    pub fn load(listener: &ListenerTls, tls_dir: Option<&Path>) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let sources = Sources {
            listener: listener.certificate.clone(),
            tls_dir: tls_dir.map(Path::to_owned),
            clients: listener.clients.clone(),
            least_version: listener.least_version,
        };
        let (choice, problems) = disk::first(&sources, &provider)?;
        for problem in problems {
            tracing::warn!("certificate skipped: {problem}");
        }
        for certificate in choice.all() {
            warn_if_expired(certificate);
        }
        let resolver = Arc::new(Resolver(ArcSwap::from_pointee(choice)));
        let authorities = Authorities::read(&sources)?;
        let configs = Configs::new(&sources, &provider, resolver.clone(), authorities)?;
        Ok(Self {
            sources,
            provider,
            resolver,
            configs: ArcSwap::from_pointee(configs),
            reloading: Mutex::new(()),
        })
    }

    /// The configuration to accept with: ALPN `h2` and `http/1.1`, TLS 1.2 and 1.3, stateless tickets.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.configs.load().ours.clone()
    }

    /// What upstreams are told of the client's certificate, if they are and it has one.
    pub fn client_certificate(&self, connection: &ServerConnection) -> Option<ClientCertificate> {
        let header = self.sources.clients.as_ref()?.header.as_ref()?;
        clients::told(header, connection.peer_certificates()?.first()?)
    }

    /// The certificates in use now.
    pub fn certificates(&self) -> Arc<Choice> {
        self.resolver.0.load_full()
    }

    /// Does the handshake. A client that asks for a name nobody has a certificate for is told so by an
    /// `unrecognized_name` alert; rustls alone would say `access_denied`. Who lacks a certificate, or has one that
    /// nobody vouches for, gets rustls' alert ([`refused_certificate`] tells). The caller bounds the time it may take.
    pub async fn accept<IO>(&self, io: IO) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let client = start.client_hello();
        if self.resolver.pick(client.server_name()).is_none() {
            let name = client
                .server_name()
                .unwrap_or("a client that names no host");
            let error = io::Error::other(format!("no certificate for {name}"));
            start.io.write_all(&UNRECOGNIZED_NAME).await?;
            start.io.shutdown().await?;
            return Err(error);
        }
        let configs = self.configs.load_full();
        let config = match prefers_chacha(&client) {
            true => &configs.clients_order,
            false => &configs.ours,
        };
        let accepted = start.into_stream(config.clone()).into_fallible().await;
        match accepted {
            Ok(stream) => Ok(stream),
            Err((error, io)) => {
                if refused_certificate(&error).is_some() {
                    clients::see_off(io).await;
                }
                Err(error)
            }
        }
    }

    /// Reads every file again. Whatever can't be used is reported, and what was served for it before stays.
    /// Blocks on the file system.
    pub fn reload(&self) -> ReloadReport {
        let _one_at_a_time = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let previous = self.resolver.0.load_full();
        let (choice, mut report) = disk::again(&self.sources, &self.provider, &previous);
        match self.reload_authorities() {
            Ok(changed) => report.authorities_changed = changed,
            Err(error) => report.problems.push(format!("{error:#}")),
        }
        if !report.changed.is_empty() || !report.removed.is_empty() {
            self.resolver.0.store(Arc::new(choice));
        }
        report
    }
}

impl TlsStore {
    /// Whether there are others than before.
    fn reload_authorities(&self) -> anyhow::Result<bool> {
        let authorities = Authorities::read(&self.sources)?;
        if authorities == self.configs.load().authorities {
            return Ok(false);
        }
        let resolver = self.resolver.clone();
        let configs = Configs::new(&self.sources, &self.provider, resolver, authorities)?;
        self.configs.store(Arc::new(configs));
        Ok(true)
    }
}

/// Reloads every store, logs what changed, and reports what could not be used; that stays as it was.
/// Blocks on the file system.
pub fn reload_all(stores: &[Arc<TlsStore>]) -> anyhow::Result<()> {
    let problems = reload_each(stores);
    if problems.is_empty() {
        return Ok(());
    }
    let problems = Vec::from_iter(problems).join("; ");
    Err(anyhow::Error::msg(problems).context("certificates that were in use stay in use"))
}

/// As [`reload_all`]; listeners share a directory, so what they report alike is said once.
fn reload_each(stores: &[Arc<TlsStore>]) -> BTreeSet<String> {
    let mut problems = BTreeSet::new();
    let mut said = BTreeSet::new();
    for store in stores {
        let report = store.reload();
        for certificate in report.changed {
            let file = &certificate.files.certificate;
            if !said.insert(file.clone()) {
                continue;
            }
            tracing::info!(
                file = %file.display(),
                names = %certificate.names.join(","),
                expires = %certificate.expires,
                "certificate loaded"
            );
            warn_if_expired(&certificate);
        }
        for file in report.removed {
            if said.insert(file.clone()) {
                tracing::info!(file = %file.display(), "certificate removed");
            }
        }
        if report.authorities_changed {
            for file in store.sources.authorities() {
                tracing::info!(file = %file.display(), "authorities of clients loaded");
            }
        }
        problems.extend(report.problems);
    }
    problems
}

fn warn_if_expired(certificate: &Certificate) {
    if certificate.expires.is_past() {
        tracing::warn!(
            file = %certificate.files.certificate.display(),
            expires = %certificate.expires,
            "certificate has expired: clients will refuse it"
        );
    }
}

/// What a reload swaps.
#[derive(Debug)]
struct Resolver(ArcSwap<Choice>);

impl Resolver {
    fn pick(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        self.0.load().pick(name).cloned()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.pick(client.server_name())
    }
}

#[cfg(test)]
mod tests;
