//! `--listen URL`: text in, a listener or a message out.

use std::path::PathBuf;

use http::HeaderName;
use percent_encoding::percent_decode_str;

use super::{
    CertificateFiles, CertificateFormat, CertificateHeader, ClientAuth, ClientCertificates,
    ListenerConfig, ListenerTls,
    TlsVersion::{Tls12, Tls13},
    values::socket_address,
};
use crate::route::settings::RESERVED;

/// `http://ADDRESS:PORT` or `https://ADDRESS:PORT?cert=FILE&key=FILE`, with `proxy_protocol=true` or without.
pub fn parse(text: &str) -> Result<ListenerConfig, String> {
    let (scheme, rest) = text
        .split_once("://")
        .ok_or("it must start with http:// or https://, as in http://0.0.0.0:3000")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !path.is_empty() {
        return Err(format!("a listener has no path: leave out /{path}"));
    }
    let (default_port, mut tls) = match scheme {
        "http" => (80, None),
        "https" => (443, Some(ListenerTls::default())),
        _ => return Err(format!("{scheme}:// is neither http:// nor https://")),
    };
    let address = socket_address(authority, Some(default_port))?;
    let mut options = Options::read(query)?;
    let certificate = match (options.file("cert")?, options.file("key")?) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (Some(_), None) => return Err("cert needs its private key: add &key=FILE".into()),
        (None, Some(_)) => return Err("key needs its certificate: add &cert=FILE".into()),
    };
    let clients = clients(&mut options)?;
    let least_version = options.word("min_tls", &[("1.2", Tls12), ("1.3", Tls13)])?;
    let proxy_protocol = options.word("proxy_protocol", &[("true", true), ("false", false)])?;
    let proxy_protocol = proxy_protocol.unwrap_or(false);
    options.none_left()?;
    match &mut tls {
        Some(tls) => {
            *tls = ListenerTls {
                certificate,
                clients,
                least_version: least_version.unwrap_or_default(),
            };
        }
        None if certificate.is_some() => return Err("cert and key need https://".into()),
        None if clients.is_some() => return Err("client_ca needs https://".into()),
        None if least_version.is_some() => return Err("min_tls needs https://".into()),
        None => {}
    }
    Ok(ListenerConfig {
        address,
        tls,
        proxy_protocol,
    })
}

fn clients(options: &mut Options) -> Result<Option<ClientCertificates>, String> {
    let authorities = options.file("client_ca")?;
    let demand = [
        ("required", ClientAuth::Required),
        ("optional", ClientAuth::Optional),
    ];
    let demand = options.word("client_auth", &demand)?;
    let name = options.take("client_cert_header");
    let format = [
        ("rfc9440", CertificateFormat::Rfc9440),
        ("pem", CertificateFormat::Pem),
    ];
    let format = options.word("client_cert_format", &format)?;
    let Some(authorities) = authorities else {
        let lonely = match (demand, &name, format) {
            (Some(_), ..) => "client_auth",
            (_, Some(_), _) => "client_cert_header",
            (.., Some(_)) => "client_cert_format",
            _ => return Ok(None),
        };
        return Err(format!(
            "{lonely} needs the authorities that vouch for clients: add &client_ca=FILE"
        ));
    };
    let header = match name {
        None if format.is_some() => {
            return Err("client_cert_format needs the field: add &client_cert_header=NAME".into());
        }
        None => None,
        Some(name) => Some(CertificateHeader {
            name: certificate_field(&name)?,
            format: format.unwrap_or_default(),
        }),
    };
    Ok(Some(ClientCertificates {
        authorities,
        demand: demand.unwrap_or_default(),
        header,
    }))
}

/// A field of this name is ours alone: one that clients need, or that frames a message, can't be.
fn certificate_field(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::try_from(text).map_err(|_| {
        format!("client_cert_header: {text:?} is no field name; write Client-Cert, or the like")
    })?;
    let is_taken = ["cookie", "expect", "authorization", "forwarded"].contains(&name.as_str())
        || ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].contains(&name.as_str())
        || RESERVED.contains(&name.as_str());
    match is_taken {
        true => Err(format!(
            "client_cert_header: {name} has another meaning; write Client-Cert, or the like"
        )),
        false => Ok(name),
    }
}

/// What stands behind the `?`; each option is taken out as it is read.
struct Options(Vec<(String, String)>);

impl Options {
    fn read(query: &str) -> Result<Self, String> {
        let mut options: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| format!("{name} is not UTF-8"))?;
            if options.iter().any(|(other, _)| other == name) {
                return Err(format!("{name} is given twice"));
            }
            options.push((name.to_owned(), value.into_owned()));
        }
        Ok(Self(options))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(at).1)
    }

    fn file(&mut self, name: &str) -> Result<Option<PathBuf>, String> {
        match self.take(name) {
            Some(file) if file.is_empty() => Err(format!("{name} names no file")),
            file => Ok(file.map(PathBuf::from)),
        }
    }

    /// One of two words, and what it means.
    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T); 2]) -> Result<Option<T>, String> {
        let Some(text) = self.take(name) else {
            return Ok(None);
        };
        let known = words.iter().find(|(word, _)| *word == text);
        let [(one, _), (other, _)] = words;
        let known = known.ok_or_else(|| format!("{name} is {one} or {other}, not {text:?}"))?;
        Ok(Some(known.1))
    }

    fn none_left(&self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!(
                "unknown option {name}: there are cert, key, client_ca, client_auth, \
                 client_cert_header, client_cert_format, min_tls and proxy_protocol"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_parsed() {
        let files = |certificate: &str, key: &str| ListenerTls {
            certificate: Some(CertificateFiles {
                certificate: certificate.into(),
                key: key.into(),
            }),
            ..ListenerTls::default()
        };
        let cases = [
            ("http://0.0.0.0:3000", "0.0.0.0:3000", None),
            ("http://0.0.0.0:3000/", "0.0.0.0:3000", None),
            ("http://[::]:80", "[::]:80", None),
            ("http://[::1]", "[::1]:80", None),
            ("http://localhost:3000", "127.0.0.1:3000", None),
            ("http://127.0.0.1:0", "127.0.0.1:0", None),
            (
                "https://10.0.0.1",
                "10.0.0.1:443",
                Some(ListenerTls::default()),
            ),
            (
                "https://0.0.0.0:443?cert=/a%20b/c.pem&key=k.pem",
                "0.0.0.0:443",
                Some(files("/a b/c.pem", "k.pem")),
            ),
        ];
        for (text, address, tls) in cases {
            let expected = ListenerConfig {
                address: address.parse().unwrap(),
                tls,
                proxy_protocol: false,
            };
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        let text = "https://[::]?client_ca=a%26b&min_tls=1.3&client_auth=optional\
            &client_cert_header=X-Client-Cert&client_cert_format=pem";
        let expected = ListenerTls {
            certificate: None,
            clients: Some(ClientCertificates {
                authorities: "a&b".into(),
                demand: ClientAuth::Optional,
                header: Some(CertificateHeader {
                    name: HeaderName::from_static("x-client-cert"),
                    format: CertificateFormat::Pem,
                }),
            }),
            least_version: Tls13,
        };
        assert_eq!(parse(text).map(|listener| listener.tls), Ok(Some(expected)));
        for (text, expected) in [
            ("http://[::]:80?proxy_protocol=true", true),
            ("http://[::]:80?proxy_protocol=false", false),
            ("https://[::]?cert=a&proxy_protocol=true&key=b", true),
        ] {
            let proxy_protocol = parse(text).map(|listener| listener.proxy_protocol);
            assert_eq!(proxy_protocol, Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_listeners_are_refused_with_what_to_do() {
        for (text, message) in [
            ("0.0.0.0:3000", "must start with http://"),
            ("ftp://0.0.0.0:3000", "ftp://"),
            ("http://0.0.0.0:99999", "99999"),
            ("http://0.0.0.0:", "port"),
            ("http://:3000", "not an IP address"),
            ("http://example.com:3000", "example.com"),
            ("http://[::1:80", "not an IP address"),
            ("http://::1:80", "not an IP address"),
            ("http://0.0.0.0:80/x", "no path"),
            ("http://0.0.0.0:80?cert=a&key=b", "need https://"),
            ("https://0.0.0.0:443?cert=a", "add &key="),
            ("https://0.0.0.0:443?key=a", "add &cert="),
            ("https://0.0.0.0:443?cert=&key=b", "cert names no file"),
            ("https://0.0.0.0:443?cert=a&cert=b&key=c", "twice"),
            ("http://0.0.0.0:80?client_ca=a", "client_ca needs https://"),
            ("http://0.0.0.0:80?min_tls=1.3", "min_tls needs https://"),
            ("https://0.0.0.0:443?min_tls=1.1", "1.2 or 1.3"),
            ("https://0.0.0.0:443?client_ca=", "client_ca names no file"),
            (
                "https://0.0.0.0:443?client_auth=optional",
                "add &client_ca=",
            ),
            (
                "https://0.0.0.0:443?client_cert_header=X",
                "add &client_ca=",
            ),
            (
                "https://0.0.0.0:443?client_cert_format=pem",
                "add &client_ca=",
            ),
            (
                "https://0.0.0.0:443?client_ca=a&client_cert_format=pem",
                "add &client_cert_header=",
            ),
            (
                "https://0.0.0.0:443?client_ca=a&client_auth=maybe",
                "required or optional",
            ),
            (
                "https://0.0.0.0:443?client_ca=a&client_cert_header=a%20b",
                "no field name",
            ),
            (
                "https://0.0.0.0:443?client_ca=a&client_cert_header=Host",
                "another meaning",
            ),
            ("http://0.0.0.0:80?proxy_protocol", "true or false"),
            ("http://0.0.0.0:80?proxy_protocol=yes", "true or false"),
            ("https://0.0.0.0:443?certs=a", "unknown option certs"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
