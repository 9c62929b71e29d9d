//! What rustls accepts with: versions, suites, tickets, and whom it asks for a certificate.

use std::sync::Arc;

use anyhow::Context;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use super::{Resolver, Sources, clients::Authorities};
use crate::config::TlsVersion;

/// The configurations of one listener, which differ in whose order of suites counts.
#[derive(Debug)]
pub(super) struct Configs {
    /// Ours does.
    pub(super) ours: Arc<ServerConfig>,
    /// The client's does.
    pub(super) clients_order: Arc<ServerConfig>,
    /// Who vouches for clients.
    pub(super) authorities: Option<Authorities>,
}

impl Configs {
    /// Suites in our order. SHA-256 runs in hardware where SHA-384 does not, and the handshake hashes a great deal:
    /// with AES-128 first it costs a sixth less. A client that puts ChaCha20 first has no AES hardware: its order counts.
    pub(super) fn new(
        sources: &Sources,
        provider: &Arc<CryptoProvider>,
        resolver: Arc<Resolver>,
        authorities: Option<Authorities>,
    ) -> anyhow::Result<Self> {
        let mut ordered = CryptoProvider::clone(provider);
        // Stable: within a group the library's own order stays.
        ordered.cipher_suites.sort_by_key(|suite| {
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
        let versions = match sources.least_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12][..],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let verifier = match (&sources.clients, &authorities) {
            (Some(clients), Some(authorities)) => authorities.verifier(clients, provider)?,
            _ => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ordered))
            .with_protocol_versions(versions)
            .context("TLS 1.2 and 1.3 are not to be had")?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Tickets hold the session, so workers share no session table. The keys belong to this configuration alone: a
        // session is resumed without asking for a certificate, so one of a listener that asks for none must not be
        // resumed at another that does (nginx's CVE-2025-23419).
        config.ticketer = aws_lc_rs::Ticketer::new().context("cannot make ticket keys")?;
        let clients_order = config.clone();
        config.ignore_client_order = true;
        Ok(Self {
            ours: Arc::new(config),
            clients_order: Arc::new(clients_order),
            authorities,
        })
    }
}

/// Whether the client would rather not do AES.
pub(super) fn prefers_chacha(client: &ClientHello<'_>) -> bool {
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
