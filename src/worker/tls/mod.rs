//! TLS in front: one [`TlsStore`] per https listener, shared by all workers.
//!
//! The rustls configuration is made once and lives as long as the listener, so tickets stay valid; what a reload
//! swaps is the [`Choice`] inside its resolver. Connections that are open are not touched.

mod certificate;
mod choice;
mod disk;
#[cfg(test)]
pub(crate) mod testing;
mod watch;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{Acceptor, ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

pub use self::{
    certificate::{Certificate, Error as CertificateError, Expiry},
    choice::Choice,
    watch::watch,
};
use crate::config::CertificateFiles;

/// A fatal `unrecognized_name` alert (RFC 6066 section 3) as a whole TLS record.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// The certificates of one https listener and the rustls configuration that serves them.
#[derive(Debug)]
pub struct TlsStore {
    sources: Sources,
    provider: Arc<CryptoProvider>,
    resolver: Arc<Resolver>,
    config: Arc<ServerConfig>,
    /// The same, for clients whose order of suites counts.
    clients_order: Arc<ServerConfig>,
    /// One reload at a time: a signal and the watcher may ask at once, and the older reading must not win.
    reloading: Mutex<()>,
}

/// Where a listener's certificates come from.
#[derive(Debug)]
struct Sources {
    listener: Option<CertificateFiles>,
    tls_dir: Option<PathBuf>,
}

/// What a reload did.
#[derive(Debug, Default)]
pub struct ReloadReport {
    /// Certificates that are new or were replaced.
    pub changed: Vec<Arc<Certificate>>,
    /// The chains of pairs that are gone and no longer served.
    pub removed: Vec<PathBuf>,
    /// What could not be used, each naming its file; what was served for it before stays.
    pub problems: Vec<String>,
}

impl TlsStore {
    /// Reads the listener's own pair (`cert=&key=`) and the pairs of `--tls-dir`.
    ///
    /// A broken pair of the directory is skipped with a warning, so that it doesn't block the others. A broken
    /// pair of the listener, a directory that can't be read, and no certificate at all are errors.
    pub fn load(
        listener: Option<&CertificateFiles>,
        tls_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let sources = Sources {
            listener: listener.cloned(),
            tls_dir: tls_dir.map(Path::to_owned),
        };
        let (choice, problems) = disk::first(&sources, &provider)?;
        for problem in problems {
            tracing::warn!("certificate skipped: {problem}");
        }
        for certificate in choice.all() {
            warn_if_expired(certificate);
        }
        let resolver = Arc::new(Resolver(ArcSwap::from_pointee(choice)));
        let [config, clients_order] = server_configs(&provider, resolver.clone())?;
        Ok(Self {
            sources,
            provider,
            resolver,
            config,
            clients_order,
            reloading: Mutex::new(()),
        })
    }

    /// The configuration to accept with: ALPN `h2` and `http/1.1`, TLS 1.2 and 1.3, stateless tickets.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// The certificates in use now.
    pub fn certificates(&self) -> Arc<Choice> {
        self.resolver.0.load_full()
    }

    /// Does the handshake. A client that asks for a name nobody has a certificate for is told so by an
    /// `unrecognized_name` alert; rustls alone would say `access_denied`. The caller bounds the time it may take.
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
        let config = match prefers_chacha(&client) {
            true => &self.clients_order,
            false => &self.config,
        };
        start.into_stream(config.clone()).await
    }

    /// Reads every file again. Whatever can't be used is reported, and what was served for it before stays.
    /// Blocks on the file system.
    pub fn reload(&self) -> ReloadReport {
        let _one_at_a_time = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let previous = self.resolver.0.load_full();
        let (choice, report) = disk::again(&self.sources, &self.provider, &previous);
        if !report.changed.is_empty() || !report.removed.is_empty() {
            self.resolver.0.store(Arc::new(choice));
        }
        report
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

/// Suites in our order. SHA-256 runs in hardware where SHA-384 does not, and the handshake hashes a great deal:
/// with AES-128 first it costs a sixth less. A client that puts ChaCha20 first has no AES hardware: its order counts.
fn server_configs(
    provider: &CryptoProvider,
    resolver: Arc<Resolver>,
) -> anyhow::Result<[Arc<ServerConfig>; 2]> {
    let mut provider = provider.clone();
    // Stable: within a group the library's own order stays.
    provider.cipher_suites.sort_by_key(|suite| {
        use rustls::CipherSuite::{
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            TLS13_AES_128_GCM_SHA256,
        };
        !matches!(
            suite.suite(),
            TLS13_AES_128_GCM_SHA256
                | TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .context("TLS 1.2 and 1.3 are not to be had")?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets hold the session, so workers share no session table. The keys belong to this configuration alone:
    // a session of one listener must not be resumed at another, which may ask for other things.
    config.ticketer = aws_lc_rs::Ticketer::new().context("cannot make ticket keys")?;
    let clients_order = config.clone();
    config.ignore_client_order = true;
    Ok([Arc::new(config), Arc::new(clients_order)])
}

/// Whether the client would rather not do AES.
fn prefers_chacha(client: &ClientHello<'_>) -> bool {
    use rustls::CipherSuite::{
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS13_CHACHA20_POLY1305_SHA256,
    };
    // Browsers put a reserved value before the first suite they mean (RFC 8701).
    let mut meant = client
        .cipher_suites()
        .iter()
        .filter(|suite| u16::from(**suite) & 0x0f0f != 0x0a0a);
    matches!(
        meant.next(),
        Some(
            TLS13_CHACHA20_POLY1305_SHA256
                | TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                | TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        )
    )
}

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
