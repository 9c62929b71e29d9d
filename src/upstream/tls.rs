//! TLS towards upstreams: whom to trust and which name to ask for. Connecting is the dialler's part.

mod verify;

use std::{
    collections::HashMap,
    fmt, io,
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, ServerName,
        pem::{self, PemObject},
    },
};
use tokio_rustls::TlsConnector;

use self::verify::{AcceptAnyone, Authorities};
use super::{Endpoint, TlsOptions};

/// How many rustls configurations are kept. One serves every upstream with the same trust, so a handful is usual.
const LIMIT: usize = 64;
/// How often to look whether a file of authorities was replaced.
const RECHECK: Duration = Duration::from_secs(10);

/// The rustls configurations of the process's upstream connections, one per way of trusting. Each has its own session
/// store: a session that was verified loosely is never resumed where more is asked for.
pub struct UpstreamTls {
    provider: Arc<CryptoProvider>,
    state: Mutex<State>,
}

impl UpstreamTls {
    /// Loads nothing yet: the system's authorities are read when the first upstream needs them, or by
    /// [`preload`](Self::preload).
    pub fn new() -> Self {
        Self {
            provider: Arc::new(aws_lc_rs::default_provider()),
            state: Mutex::default(),
        }
    }

    /// Reads the system's authorities, which takes up to tens of milliseconds: called off the workers, so that none
    /// of them stands still at its first dial. Without any, only the upstreams that need them will fail, and say so.
    pub fn preload(&self) {
        let roots = load_system_roots();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.system_roots.get_or_insert(SystemRoots::read(roots));
    }

    /// What a dialler needs for the handshake with this upstream, which speaks HTTP/1.1 by ALPN. After the first
    /// call for some options this is a look-up; the first one reads files.
    pub fn connector(
        &self,
        options: &TlsOptions,
        endpoint: &Endpoint,
    ) -> Result<(TlsConnector, ServerName<'static>), TlsError> {
        let name = server_name(options, endpoint)?;
        Ok((TlsConnector::from(self.client_config(options)?), name))
    }

    /// The configuration for these options. A replaced `ca` file is noticed within seconds; one that broke leaves
    /// what was read before in force.
    pub fn client_config(&self, options: &TlsOptions) -> Result<Arc<ClientConfig>, TlsError> {
        let trust = Trust::of(options);
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = state.configs.get_mut(&trust) {
            entry.used = now;
            if !entry.is_outdated(&trust, now) {
                return Ok(entry.config.clone());
            }
        }
        let modified = trust.modified();
        match state.build(&trust, &self.provider) {
            Ok(config) => {
                let entry = Entry {
                    config: config.clone(),
                    modified,
                    checked: now,
                    used: now,
                };
                state.insert(trust, entry);
                Ok(config)
            }
            Err(error) => match state.configs.get(&trust) {
                Some(old) => {
                    tracing::warn!("the authorities read before stay in use: {error}");
                    Ok(old.config.clone())
                }
                None => Err(error),
            },
        }
    }
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls").finish_non_exhaustive()
    }
}

/// Why TLS with an upstream can't even begin.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The `ca` file can't be read.
    #[error("cannot read {path} (\"ca\"): {source}")]
    Read {
        /// The file.
        path: Box<str>,
        /// What the system said.
        source: io::Error,
    },
    /// The `ca` file isn't what it should be.
    #[error("{path} (\"ca\") is no PEM file with certificates: {reason}")]
    Malformed {
        /// The file.
        path: Box<str>,
        /// What the parser said.
        reason: String,
    },
    /// The system has no certificate authorities.
    #[error(
        "this machine has no certificate authorities to verify upstreams by ({0}): \
         install them (the package ca-certificates), or give the upstream a \"ca\""
    )]
    NoSystemRoots(String),
    /// There is no name to verify.
    #[error(
        "{0} is no host name or IP address that a certificate could be for: give the upstream an \"sni\""
    )]
    Name(String),
    /// rustls refused the configuration.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// The part of [`TlsOptions`] that decides what is believed; the name asked for is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    System,
    Authorities(Box<str>),
    Anyone,
}

impl Trust {
    fn of(options: &TlsOptions) -> Self {
        match &options.ca {
            _ if options.insecure => Self::Anyone,
            Some(path) => Self::Authorities(path.clone()),
            None => Self::System,
        }
    }

    /// When its file was last written, as far as that is known.
    fn modified(&self) -> Option<SystemTime> {
        let Self::Authorities(path) = self else {
            return None;
        };
        std::fs::metadata(Path::new(&**path)).ok()?.modified().ok()
    }
}

#[derive(Default)]
struct State {
    configs: HashMap<Trust, Entry>,
    system_roots: Option<SystemRoots>,
}

/// What reading the system's authorities came to. A failure is remembered for [`RECHECK`], or every dial would read
/// the disk.
struct SystemRoots {
    outcome: Result<Arc<RootCertStore>, String>,
    read: Instant,
}

impl SystemRoots {
    fn read(outcome: Result<Arc<RootCertStore>, String>) -> Self {
        let read = Instant::now();
        Self { outcome, read }
    }

    fn is_outdated(&self) -> bool {
        self.outcome.is_err() && self.read.elapsed() >= RECHECK
    }
}

struct Entry {
    config: Arc<ClientConfig>,
    modified: Option<SystemTime>,
    checked: Instant,
    used: Instant,
}

impl Entry {
    fn is_outdated(&mut self, trust: &Trust, now: Instant) -> bool {
        if now.duration_since(self.checked) < RECHECK {
            return false;
        }
        self.checked = now;
        trust.modified() != self.modified
    }
}

impl State {
    fn insert(&mut self, trust: Trust, entry: Entry) {
        if self.configs.len() >= LIMIT && !self.configs.contains_key(&trust) {
            let oldest = self.configs.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(trust, _)| trust.clone()) {
                self.configs.remove(&oldest);
            }
        }
        self.configs.insert(trust, entry);
    }

    fn build(
        &mut self,
        trust: &Trust,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = match trust {
            Trust::System => builder.with_root_certificates(self.system_roots()?),
            Trust::Authorities(path) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(read_authorities(path, provider)?)),
            Trust::Anyone => {
                let verifier = AcceptAnyone(provider.signature_verification_algorithms);
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn system_roots(&mut self) -> Result<Arc<RootCertStore>, TlsError> {
        if self
            .system_roots
            .as_ref()
            .is_some_and(SystemRoots::is_outdated)
        {
            self.system_roots = None;
        }
        let roots = self
            .system_roots
            .get_or_insert_with(|| SystemRoots::read(load_system_roots()));
        roots.outcome.clone().map_err(TlsError::NoSystemRoots)
    }
}

fn load_system_roots() -> Result<Arc<RootCertStore>, String> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        let reason = loaded.errors.first().map(ToString::to_string);
        return Err(reason.unwrap_or_else(|| "none found".to_owned()));
    }
    Ok(Arc::new(roots))
}

/// The bytes of a file of sane size. A key may name anything: opening a pipe would wait for ever, and a device may
/// never end.
fn read_file(path: &str) -> io::Result<Vec<u8>> {
    const LARGEST: u64 = 1 << 20;
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(LARGEST)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_authorities(path: &str, provider: &Arc<CryptoProvider>) -> Result<Authorities, TlsError> {
    let malformed = |reason: String| TlsError::Malformed {
        path: path.into(),
        reason,
    };
    let text = read_file(path).map_err(|source| TlsError::Read {
        path: path.into(),
        source,
    })?;
    let listed = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(error.to_string()))?;
    if listed.is_empty() {
        return Err(malformed(pem::Error::NoItemsFound.to_string()));
    }
    Authorities::new(listed, provider).map_err(malformed)
}

/// The name sent as SNI and verified. An IP address is verified against the certificate's addresses, and not sent.
fn server_name(options: &TlsOptions, endpoint: &Endpoint) -> Result<ServerName<'static>, TlsError> {
    let name = match (&options.sni, endpoint) {
        (Some(sni), _) => sni,
        (
            None,
            Endpoint::Tcp {
                name: Some(name), ..
            }
            | Endpoint::Unresolved(name, _),
        ) => name,
        (None, Endpoint::Tcp { address, .. }) => {
            return Ok(ServerName::from(address.ip().to_canonical()));
        }
        (None, Endpoint::Unix(_)) => return Err(TlsError::Name(endpoint.to_string())),
    };
    ServerName::try_from(name.to_string()).map_err(|_| TlsError::Name(name.to_string()))
}

#[cfg(test)]
mod tests;
