//! `--listen URL`: text in, a listener or a message out.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use super::{CertificateFiles, ListenerConfig, ListenerTls, values::socket_address};

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
    let proxy_protocol = options.switch("proxy_protocol")?;
    options.none_left()?;
    match &mut tls {
        Some(tls) => tls.certificate = certificate,
        None if certificate.is_some() => return Err("cert and key need https://".into()),
        None => {}
    }
    Ok(ListenerConfig {
        address,
        tls,
        proxy_protocol,
    })
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

    fn switch(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(format!("{name} is true or false, not {other:?}")),
        }
    }

    fn none_left(&self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!(
                "unknown option {name}: there are cert, key and proxy_protocol"
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
            ("http://0.0.0.0:80?proxy_protocol", "true or false"),
            ("http://0.0.0.0:80?proxy_protocol=yes", "true or false"),
            ("https://0.0.0.0:443?certs=a", "unknown option certs"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
