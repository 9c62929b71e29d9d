//! What proves to etcd who we are, and to us who etcd is: read anew for every connection, so that it can be rotated.

use std::path::Path;

use anyhow::Context;
use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::fault::Fault;
use crate::config::{
    EtcdConfig, Password,
    small_file::{self, SmallFile},
};

/// How to speak TLS with etcd.
///
/// # Errors
///
/// Names the flag and the file that can't be used.
pub(super) fn tls_options(config: &EtcdConfig) -> anyhow::Result<TlsOptions> {
    let mut tls = TlsOptions::new();
    tls = match &config.ca {
        Some(path) => {
            let pem = read("--etcd-ca", path)?;
            let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
            check_pem(
                "--etcd-ca",
                "a certificate",
                path,
                found.map(|list| !list.is_empty()),
            )?;
            tls.ca_certificate(Certificate::from_pem(pem))
        }
        None => tls.with_native_roots(),
    };
    if let Some(files) = &config.client_certificate {
        let certificate = read("--etcd-cert", &files.certificate)?;
        let found = CertificateDer::from_pem_slice(&certificate).map(|_| true);
        check_pem("--etcd-cert", "a certificate", &files.certificate, found)?;
        let key = read("--etcd-key", &files.key)?;
        let found = PrivateKeyDer::from_pem_slice(&key).map(|_| true);
        check_pem("--etcd-key", "a private key", &files.key, found)?;
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Ok(tls)
}

/// The password as it is now.
pub(super) async fn read_password(password: &Password) -> Result<String, Fault> {
    match password {
        Password::Text(text) => Ok(text.clone()),
        Password::File(path) => {
            let name = path.display().to_string();
            let path = path.clone();
            let read = move || small_file::read(&path).and_then(SmallFile::text);
            let read = tokio::task::spawn_blocking(read).await;
            match read.unwrap_or_else(|ended| Err(ended.into())) {
                Ok(text) => Ok(Password::of_file(&text)),
                Err(error) => Err(Fault::Refused(format!(
                    "--etcd-password-file {name}: {error}"
                ))),
            }
        }
    }
}

fn read(flag: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = small_file::read(path).with_context(|| format!("{flag} {}", path.display()))?;
    Ok(file.bytes)
}

fn check_pem(
    flag: &str,
    wanted: &str,
    path: &Path,
    found: Result<bool, rustls::pki_types::pem::Error>,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        found.unwrap_or(false),
        "{flag} {}: holds no PEM of {wanted}",
        path.display()
    );
    Ok(())
}
