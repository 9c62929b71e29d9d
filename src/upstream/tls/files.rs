//! The PEM files that an upstream's `"tls"` names: authorities, and who we are.

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error, PemObject},
    },
};

use super::{TlsError, verify::Authorities};
use crate::upstream::ClientFiles;

/// The certificates of `"ca"`.
pub(super) fn authorities(
    path: &str,
    provider: &Arc<CryptoProvider>,
) -> Result<Authorities, TlsError> {
    let listed = certificates(path, "ca")?;
    Authorities::new(listed, provider).map_err(|reason| TlsError::Malformed {
        path: path.into(),
        option: "ca",
        wanted: "certificates",
        reason,
    })
}

/// Our certificate with its chain, and its key.
pub(super) fn client(
    files: &ClientFiles,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&files.cert, "cert")?;
    let text = read(&files.key, "key")?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| TlsError::Malformed {
        path: files.key.clone(),
        option: "key",
        wanted: "an unencrypted private key",
        reason: error.to_string(),
    })?;
    Ok((chain, key))
}

/// When the file was last written, as far as that is known.
pub(super) fn modified(path: &str) -> Option<SystemTime> {
    std::fs::metadata(Path::new(path)).ok()?.modified().ok()
}

fn certificates(
    path: &str,
    option: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path, option)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let found = found.and_then(|found| match found.is_empty() {
        true => Err(Error::NoItemsFound),
        false => Ok(found),
    });
    found.map_err(|error| TlsError::Malformed {
        path: path.into(),
        option,
        wanted: "certificates",
        reason: error.to_string(),
    })
}

/// The bytes of a file of sane size. A key may name anything: opening a pipe would wait for ever, and a device may
/// never end.
fn read(path: &str, option: &'static str) -> Result<Vec<u8>, TlsError> {
    const LARGEST: u64 = 1 << 20;
    let read = || {
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
    };
    read().map_err(|source| TlsError::Read {
        path: path.into(),
        option,
        source,
    })
}
