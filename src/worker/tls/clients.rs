//! Certificates of clients: who vouches for them, what a client is told that has none, and what upstreams are told.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::CertificateDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{Sources, certificate::read_chain};
use crate::{
    config::{CertificateFormat, CertificateHeader, ClientAuth, ClientCertificates},
    proxy::client::ClientCertificate,
};

/// How long a client that is refused may go on talking: bytes unread would make a reset of the close, and that may
/// overtake the alert.
const PATIENCE: Duration = Duration::from_secs(1);

/// What nginx escapes in a certificate: `+`, `=`, `/`, spaces and line ends.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The authorities of `client_ca=`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authorities {
    file: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Those of a listener that asks for certificates.
    pub(super) fn read(sources: &Sources) -> anyhow::Result<Option<Self>> {
        let Some(clients) = &sources.clients else {
            return Ok(None);
        };
        let file = clients.authorities.clone();
        let certificates = read_chain(&file).context("client_ca")?;
        let authorities = Self { file, certificates };
        authorities.roots()?;
        Ok(Some(authorities))
    }

    /// What asks clients for a certificate of theirs.
    pub(super) fn verifier(
        &self,
        clients: &ClientCertificates,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let verifier = match clients.demand {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        verifier.build().with_context(|| self.unusable())
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.certificates {
            let added = roots.add(certificate.clone());
            added.map_err(|error| anyhow!("{}: {error}", self.unusable()))?;
        }
        Ok(roots)
    }

    fn unusable(&self) -> String {
        format!(
            "client_ca: {} holds a certificate that is no authority",
            self.file.display()
        )
    }
}

/// Why a handshake failed, if it was for the client's certificate or the lack of one.
pub fn refused_certificate(error: &io::Error) -> Option<&rustls::Error> {
    let error = error.get_ref()?.downcast_ref()?;
    use rustls::Error::{InvalidCertificate, NoCertificatesPresented};
    matches!(error, NoCertificatesPresented | InvalidCertificate(_)).then_some(error)
}

/// Ends a connection so that the alert that was written arrives.
pub(super) async fn see_off(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let until_gone = async {
        io.shutdown().await?;
        let mut sink = [0; 1024];
        while io.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    // Who is still there then has had its time.
    let _ = timeout(PATIENCE, until_gone).await;
}

/// The field that tells upstreams of this certificate.
pub(super) fn told(
    header: &CertificateHeader,
    certificate: &CertificateDer<'_>,
) -> Option<ClientCertificate> {
    let base64 = BASE64_STANDARD.encode(certificate);
    let value = match header.format {
        CertificateFormat::Rfc9440 => format!(":{base64}:"),
        CertificateFormat::Pem => {
            let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
            for line in base64.as_bytes().chunks(64) {
                pem.extend(line.iter().copied().map(char::from));
                pem.push('\n');
            }
            pem.push_str("-----END CERTIFICATE-----\n");
            utf8_percent_encode(&pem, ESCAPED).to_string()
        }
    };
    Some(ClientCertificate {
        name: header.name.clone(),
        value: HeaderValue::try_from(value).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn a_certificate_is_told_as_its_header_has_it() {
        let der = CertificateDer::from([&[0xfb; 50][..], b"x"].concat());
        for (format, starts, ends) in [
            (CertificateFormat::Rfc9440, ":+/v7+/v7", "+/t4:"),
            (
                CertificateFormat::Pem,
                "-----BEGIN%20CERTIFICATE-----%0A%2B%2Fv7%2B",
                "%2Ft4%0A-----END%20CERTIFICATE-----%0A",
            ),
        ] {
            let name = HeaderName::from_static("client-cert");
            let told = told(&CertificateHeader { name, format }, &der).unwrap();
            let value = told.value.to_str().unwrap();
            assert!(
                value.starts_with(starts) && value.ends_with(ends),
                "{value}"
            );
        }
    }
}
