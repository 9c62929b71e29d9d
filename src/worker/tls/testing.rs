//! Certificates for the tests of this folder and of its neighbours.

use std::{path::Path, sync::Arc};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::config::CertificateFiles;

/// The provider that the process uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Writes a self-signed pair `NAME.crt` and `NAME.key`.
pub fn write_pair(dir: &Path, name: &str, sans: &[&str]) -> CertificateFiles {
    write(dir, name, params(sans))
}

/// As [`write_pair`], valid through the year 2000.
pub fn write_expired_pair(dir: &Path, name: &str, sans: &[&str]) -> CertificateFiles {
    let mut params = params(sans);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2001, 1, 1);
    write(dir, name, params)
}

fn params(sans: &[&str]) -> CertificateParams {
    let sans: Vec<String> = sans.iter().map(|&san| san.to_owned()).collect();
    CertificateParams::new(sans).unwrap()
}

fn write(dir: &Path, name: &str, params: CertificateParams) -> CertificateFiles {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let files = CertificateFiles {
        certificate: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
    };
    // By rename, as tools do it: a reader never meets half a file.
    for (path, text) in [
        (&files.key, key.serialize_pem()),
        (&files.certificate, certificate.pem()),
    ] {
        let draft = path.with_added_extension("new");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, path).unwrap();
    }
    files
}
