//! Certificates for the tests: an authority, and what it signs, as PEM files in a directory of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::CertificateDer;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tempfile::TempDir;

/// A certificate authority; its files vanish with it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A chain and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "Waypost's tests";
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A server's pair for these names and addresses, in the authority's directory.
    pub fn server(&self, names: &[&str]) -> Pair {
        self.server_in(self.dir.path(), names)
    }

    /// As [`Self::server`], in `dir`: `NAME.crt` and `NAME.key` after the first name, replaced by rename.
    pub fn server_in(&self, dir: &Path, names: &[&str]) -> Pair {
        self.sign(dir, names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's pair, in the authority's directory.
    pub fn client(&self, name: &str) -> Pair {
        self.sign(
            self.dir.path(),
            &[name],
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    /// A client that trusts this authority alone, and offers these protocols.
    pub fn client_config(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// The same, but for what it shows of itself and the versions it speaks.
    pub fn client_config_showing(
        &self,
        pair: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match pair {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_file(&pair.certificate).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }

    fn sign(&self, dir: &Path, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Pair {
        let sans: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(sans).unwrap();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // A wildcard or an IPv6 address makes an awkward file name.
        let stem = names[0].replace(['*', ':'], "_");
        let pair = Pair {
            certificate: dir.join(format!("{stem}.crt")),
            key: dir.join(format!("{stem}.key")),
        };
        replace(&pair.key, &key.serialize_pem());
        replace(&pair.certificate, &certificate.pem());
        pair
    }
}

impl Pair {
    /// The query of a `--listen https://...` URL.
    pub fn query(&self) -> String {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        format!("cert={certificate}&key={key}")
    }

    /// A server, such as an origin, that answers with this pair and speaks these protocols.
    pub fn server_config(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        self.server_config_for(WebPkiClientVerifier::no_client_auth(), alpn)
    }

    /// The same for clients that this authority vouches for alone.
    pub fn server_config_for_clients(&self, authority: &Authority) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.issuer.der().clone()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        self.server_config_for(clients.unwrap(), &["http/1.1"])
    }

    fn server_config_for(
        &self,
        clients: Arc<dyn ClientCertVerifier>,
        alpn: &[&str],
    ) -> Arc<ServerConfig> {
        let chain = vec![CertificateDer::from_pem_file(&self.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// By rename, so that a reader never meets half a file.
fn replace(path: &Path, text: &str) {
    let draft = path.with_added_extension("new");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, path).unwrap();
}
