//! One certificate: a chain and its key read from two PEM files, checked against each other, with the names it
//! vouches for. Which certificate answers which name is [`super::choice`]'s part.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    InconsistentKeys,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::{CertificateFiles, small_file};

/// A certificate that is ready to be served.
#[derive(Debug)]
pub struct Certificate {
    /// Where it was read from.
    pub files: CertificateFiles,
    /// The DNS names of its subjectAltName, lower-case. The common name is not looked at (RFC 9525 section 2).
    pub names: Vec<Box<str>>,
    /// The last moment it is valid at.
    pub expires: Expiry,
    /// The chain and the key, as rustls serves them.
    pub certified: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads and checks a pair. Expiry is no error: clients decide about that, and a server that refuses to start
    /// helps none of them.
    pub fn read(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Self, Error> {
        let chain = read_chain(&files.certificate)?;
        let key = read_key(&files.key)?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| Error::UnusableKey {
                path: files.key.clone(),
                reason: error.to_string(),
            })?;
        let (names, expires) = read_leaf(&files.certificate, &chain[0])?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(Error::Mismatch {
                    certificate: files.certificate.clone(),
                    key: files.key.clone(),
                });
            }
            Err(error) => {
                return Err(Error::Malformed {
                    path: files.certificate.clone(),
                    reason: error.to_string(),
                });
            }
        }
        Ok(Self {
            files: files.clone(),
            names,
            expires,
            certified: Arc::new(certified),
        })
    }

    /// Whether both serve the same chain.
    pub fn same_chain(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

/// When a certificate ends, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(pub i64);

impl Expiry {
    /// Whether that is over.
    pub fn is_past(self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        i64::try_from(now).is_ok_and(|now| self.0 < now)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = u64::try_from(self.0).unwrap_or(0);
        // RFC 5280 allows dates up to 9999-12-31, which is what humantime can print.
        let last = std::time::Duration::from_secs(seconds.min(253_402_300_799));
        humantime::format_rfc3339_seconds(UNIX_EPOCH + last).fmt(f)
    }
}

/// Why a pair can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file isn't there or can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No `CERTIFICATE` section.
    #[error("{} holds no certificate: a PEM file with the chain is expected, leaf first", .0.display())]
    NoCertificate(PathBuf),
    /// No private key section.
    #[error("{} holds no private key: a PEM file in PKCS#8, PKCS#1 or SEC1 form is expected", .0.display())]
    NoKey(PathBuf),
    /// The key asks for a passphrase.
    #[error("the private key in {} is encrypted: decrypt it first (openssl pkey -in FILE -out FILE)", .0.display())]
    EncryptedKey(PathBuf),
    /// Not what PEM or X.509 look like.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A key of a kind we can't sign with.
    #[error("the private key in {} cannot be used: {reason}", path.display())]
    UnusableKey {
        /// The file.
        path: PathBuf,
        /// What the crypto provider said.
        reason: String,
    },
    /// They don't belong together.
    #[error("the key in {} does not belong to the first certificate in {} (the leaf must come first)",
            key.display(), certificate.display())]
    Mismatch {
        /// The chain's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(path, &error))?;
    if chain.is_empty() {
        return Err(Error::NoCertificate(path.to_owned()));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = read(path)?;
    // Both forms of encryption (PKCS#8's own, and OpenSSL's older header) would only read as "no key" or as bad
    // base64, which sends the user looking in the wrong place.
    let encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];
    if encrypted
        .iter()
        .any(|mark| memchr::memmem::find(&text, mark.as_bytes()).is_some())
    {
        return Err(Error::EncryptedKey(path.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => Error::NoKey(path.to_owned()),
        error => malformed(path, &error),
    })
}

fn read_leaf(path: &Path, leaf: &CertificateDer<'_>) -> Result<(Vec<Box<str>>, Expiry), Error> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| malformed(path, &error))?;
    let alternatives = leaf
        .subject_alternative_name()
        .map_err(|error| malformed(path, &error))?;
    let names = alternatives
        .into_iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(
                name.trim_end_matches('.')
                    .to_ascii_lowercase()
                    .into_boxed_str(),
            ),
            _ => None,
        })
        .collect();
    Ok((names, Expiry(leaf.validity().not_after.timestamp())))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = small_file::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(file.bytes)
}

fn malformed(path: &Path, error: &dyn fmt::Display) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    #[test]
    fn names_are_dns_names_of_the_san_in_lower_case() {
        let dir = tempfile::tempdir().unwrap();
        let files = write_pair(
            dir.path(),
            "a",
            &["Blog.Example.com", "*.x.org", "10.0.0.1"],
        );
        let certificate = Certificate::read(&files, &provider()).unwrap();
        assert_eq!(
            certificate.names,
            ["blog.example.com".into(), "*.x.org".into()] as [Box<str>; 2]
        );
        assert!(!certificate.expires.is_past());
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let good = write_pair(dir.path(), "good", &["a.example"]);
        let other = write_pair(dir.path(), "other", &["b.example"]);
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let absent = dir.path().join("absent");
        let empty = file("empty", "");
        let device = PathBuf::from("/dev/null");
        let armour = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let cases = [
            (&absent, &good.key, "absent: No such file"),
            (&good.certificate, &absent, "absent: No such file"),
            (&empty, &good.key, "empty holds no certificate"),
            (&device, &good.key, "/dev/null: it is neither a file nor"),
            (&good.key, &good.key, "good.key holds no certificate"),
            (&good.certificate, &empty, "empty holds no private key"),
            (
                &good.certificate,
                &other.key,
                "other.key does not belong to the first certificate in",
            ),
            (
                &good.certificate,
                &file("pkcs8", &armour("ENCRYPTED PRIVATE KEY", "MIIB")),
                "pkcs8 is encrypted",
            ),
            (
                &good.certificate,
                &file(
                    "old",
                    &armour("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nMIIB"),
                ),
                "old is encrypted",
            ),
            (
                &good.certificate,
                &file("junk", &armour("PRIVATE KEY", "MIIB")),
                "junk cannot be used",
            ),
            (
                &file("cut", &armour("CERTIFICATE", "MIIB")),
                &good.key,
                "cut is malformed",
            ),
            (
                &file("base64", &armour("CERTIFICATE", "!!")),
                &good.key,
                "base64 is malformed",
            ),
        ];
        for (certificate, key, expected) in cases {
            let files = CertificateFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            };
            let error = Certificate::read(&files, &provider())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn an_expired_certificate_is_read_and_known_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let files = write_expired_pair(dir.path(), "old", &["a.example"]);
        let certificate = Certificate::read(&files, &provider()).unwrap();
        assert!(certificate.expires.is_past());
        assert_eq!(certificate.expires.to_string(), "2001-01-01T00:00:00Z");
    }
}
