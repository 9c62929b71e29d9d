//! TLS towards upstreams: whom to trust and which name to ask for. Connecting is the dialler's part.

mod files;
mod verify;

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
};
use tokio_rustls::TlsConnector;

use self::{files::modified, verify::AcceptAnyone};
use super::{ClientFiles, Endpoint, TlsOptions};

/// How many rustls configurations are kept. One serves every upstream with the same terms, so a handful is usual.
const LIMIT: usize = 256;
/// How often to look whether a file was replaced.
const RECHECK: Duration = Duration::from_secs(10);
/// How long an error is the answer before the files are read again: a dial each must not do that, one after the other.
const REREAD: Duration = Duration::from_secs(1);
/// Of how many upstreams with the same terms sessions are remembered.
const MOST_SESSIONED: usize = 1024;
/// How many sessions with one upstream are remembered: a full set of TLS 1.3 tickets for each of two names.
const SESSIONS: usize = 16;

/// The rustls configurations of the process's upstream connections, one per `Terms`. Sessions are remembered for each
/// and for each upstream by itself: one that was verified loosely, or begun as somebody else, is never resumed where
/// more is asked for; and of several upstreams with one name none is offered, in vain, the tickets of another.
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
        Ok((
            TlsConnector::from(self.client_config(options, endpoint)?),
            name,
        ))
    }

    /// Reads the files that these options name, if they name any, for nothing but the error.
    ///
    /// # Errors
    /// A file that can't be read, or holds something else.
    pub fn try_files(&self, options: &TlsOptions) -> Result<(), TlsError> {
        let mut terms = Terms::of(options);
        if terms.trust == Trust::System {
            terms.trust = Trust::Anyone;
        }
        State::default().build(&terms, &self.provider).map(drop)
    }

    /// The configuration for this upstream. A replaced file is noticed within seconds; one that broke leaves what was
    /// read before in force.
    ///
    /// # Errors
    /// A file that can't be read, or holds something else; no system authorities where they are needed.
    pub fn client_config(
        &self,
        options: &TlsOptions,
        endpoint: &Endpoint,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let terms = Terms::of(options);
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = state.configs.get_mut(&terms) {
            entry.used = now;
            if !entry.is_outdated(&terms, now) {
                return Ok(entry.sessioned(endpoint, now));
            }
        }
        if let Some(failed) = state.failed.get(&terms)
            && now.duration_since(failed.at) < REREAD
        {
            return Err(TlsError::Known(failed.error.clone()));
        }
        let modified = terms.modified();
        match state.build(&terms, &self.provider) {
            Ok(config) => {
                let mut entry = Entry {
                    config,
                    modified,
                    checked: now,
                    used: now,
                    sessioned: HashMap::new(),
                };
                let config = entry.sessioned(endpoint, now);
                state.failed.remove(&terms);
                state.insert(terms, entry);
                Ok(config)
            }
            Err(error) => match state.configs.get_mut(&terms) {
                Some(old) => {
                    tracing::warn!("what was read before stays in use: {error}");
                    Ok(old.sessioned(endpoint, now))
                }
                None => Err(state.fail(terms, error)),
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
    /// A file can't be read.
    #[error("cannot read {path} (\"{option}\"): {source}")]
    Read {
        /// The file.
        path: Box<str>,
        /// Which option names it.
        option: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file isn't what it should be.
    #[error("{path} (\"{option}\") is no PEM file with {wanted}: {reason}")]
    Malformed {
        /// The file.
        path: Box<str>,
        /// Which option names it.
        option: &'static str,
        /// What it should hold.
        wanted: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// Our certificate and the key are not a pair, or of no use.
    #[error("{cert} (\"cert\") and {key} (\"key\") are no pair to present: {reason}")]
    Pair {
        /// The certificate's file.
        cert: Box<str>,
        /// The key's file.
        key: Box<str>,
        /// What rustls said.
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
    /// As a moment ago.
    #[error(transparent)]
    Known(Arc<Self>),
}

/// The part of [`TlsOptions`] that decides what is believed and who we are; the name asked for is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Terms {
    trust: Trust,
    client: Option<ClientFiles>,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    System,
    Authorities(Box<str>),
    Anyone,
}

/// When each file of some terms was last written, as far as that is known: `ca`, `cert` and `key`.
type Modified = [Option<SystemTime>; 3];

impl Terms {
    fn of(options: &TlsOptions) -> Self {
        Self {
            trust: match &options.ca {
                _ if options.insecure => Trust::Anyone,
                Some(path) => Trust::Authorities(path.clone()),
                None => Trust::System,
            },
            client: options.client.clone(),
        }
    }

    fn modified(&self) -> Modified {
        let ca = match &self.trust {
            Trust::Authorities(path) => Some(path),
            Trust::System | Trust::Anyone => None,
        };
        let client = self.client.as_ref();
        [
            ca,
            client.map(|client| &client.cert),
            client.map(|client| &client.key),
        ]
        .map(|path| modified(path?))
    }
}

#[derive(Default)]
struct State {
    configs: HashMap<Terms, Entry>,
    failed: HashMap<Terms, Failed>,
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

/// Terms for which there is no configuration.
struct Failed {
    error: Arc<TlsError>,
    at: Instant,
}

struct Entry {
    config: ClientConfig,
    modified: Modified,
    checked: Instant,
    used: Instant,
    /// The same configuration for each upstream, with its own sessions, and when it was used last.
    sessioned: HashMap<Endpoint, (Arc<ClientConfig>, Instant)>,
}

impl Entry {
    /// The configuration for this upstream.
    fn sessioned(&mut self, endpoint: &Endpoint, now: Instant) -> Arc<ClientConfig> {
        if let Some((config, used)) = self.sessioned.get_mut(endpoint) {
            *used = now;
            return config.clone();
        }
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let config = Arc::new(config);
        make_room(&mut self.sessioned, MOST_SESSIONED, |(_, used)| *used);
        self.sessioned
            .insert(endpoint.clone(), (config.clone(), now));
        config
    }

    fn is_outdated(&mut self, terms: &Terms, now: Instant) -> bool {
        if now.duration_since(self.checked) < RECHECK {
            return false;
        }
        self.checked = now;
        terms.modified() != self.modified
    }
}

impl State {
    fn insert(&mut self, terms: Terms, entry: Entry) {
        if !self.configs.contains_key(&terms) {
            make_room(&mut self.configs, LIMIT, |entry| entry.used);
        }
        self.configs.insert(terms, entry);
    }

    /// Remembers the error for those who ask next.
    fn fail(&mut self, terms: Terms, error: TlsError) -> TlsError {
        let error = Arc::new(error);
        let failed = Failed {
            error: error.clone(),
            at: Instant::now(),
        };
        if !self.failed.contains_key(&terms) {
            make_room(&mut self.failed, LIMIT, |failed| failed.at);
        }
        self.failed.insert(terms, failed);
        TlsError::Known(error)
    }

    fn build(
        &mut self,
        terms: &Terms,
        provider: &Arc<CryptoProvider>,
    ) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = match &terms.trust {
            Trust::System => builder.with_root_certificates(self.system_roots()?),
            Trust::Authorities(path) => {
                let authorities = files::authorities(path, provider)?;
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(authorities))
            }
            Trust::Anyone => {
                let verifier = AcceptAnyone(provider.signature_verification_algorithms);
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = match &terms.client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let (chain, key) = files::client(client)?;
                let config = builder.with_client_auth_cert(chain, key);
                config.map_err(|error| TlsError::Pair {
                    cert: client.cert.clone(),
                    key: client.key.clone(),
                    reason: error.to_string(),
                })?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
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

/// Lets go of what was not used for the longest time, if there is no room for one more.
fn make_room<K: Clone + Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    most: usize,
    used: impl Fn(&V) -> Instant,
) {
    if map.len() >= most {
        let oldest = map.iter().min_by_key(|(_, value)| used(value));
        if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
            map.remove(&oldest);
        }
    }
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
