//! The values of single flags: text in, final type or a message out. The caller names the flag.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;
use percent_encoding::percent_decode_str;

use super::{AccessLogConfig, AccessLogFormat, CertificateFiles, ListenerConfig, ListenerTls};
use crate::route::settings::Balance;

/// Longest time a flag takes. Far beyond any use, and no clock overflows when it is added to.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// `10.0.0.0/8,192.0.2.1`, or `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

/// `off`, or a format with a path or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogChoice(pub Option<AccessLogConfig>);

/// `http://ADDRESS:PORT` or `https://ADDRESS:PORT?cert=FILE&key=FILE`.
pub fn listener(text: &str) -> Result<ListenerConfig, String> {
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
    let (mut certificate, mut key) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let file = match name {
            "cert" => &mut certificate,
            "key" => &mut key,
            "proxy_protocol" => return Err("proxy_protocol is not supported yet".into()),
            _ => return Err(format!("unknown option {name}: there are cert and key")),
        };
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| format!("{name} is not UTF-8"))?;
        if value.is_empty() {
            return Err(format!("{name} names no file"));
        }
        if file.replace(PathBuf::from(&*value)).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    match (certificate, key, &mut tls) {
        (None, None, _) => {}
        (_, _, None) => return Err("cert and key need https://".into()),
        (Some(certificate), Some(key), Some(tls)) => {
            tls.certificate = Some(CertificateFiles { certificate, key });
        }
        (Some(_), None, _) => return Err("cert needs its private key: add &key=FILE".into()),
        (None, Some(_), _) => return Err("key needs its certificate: add &cert=FILE".into()),
    }
    Ok(ListenerConfig { address, tls })
}

/// `ADDRESS:PORT`, `[IPV6]:PORT`, or `localhost` for the address.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    socket_address(text, None)
}

fn socket_address(text: &str, default_port: Option<u16>) -> Result<SocketAddr, String> {
    // The last colon outside of brackets is the port's.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match (port, default_port) {
        (Some(port), _) => port
            .parse()
            .map_err(|_| format!("the port {port:?} is not a number from 0 to 65535"))?,
        (None, Some(default)) => default,
        (None, None) => return Err("the port is missing, as in 127.0.0.1:9900".into()),
    };
    let ip = match host {
        "localhost" => [127, 0, 0, 1].into(),
        _ => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => v6.parse().map(std::net::IpAddr::V6).ok(),
            None => host.parse().map(std::net::IpAddr::V4).ok(),
        }
        .ok_or_else(|| {
            format!("{host:?} is not an IP address: write 0.0.0.0 for all, [::] for IPv6 too, or localhost")
        })?,
    };
    Ok(SocketAddr::new(ip, port))
}

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let network = |text: &str| {
            let text = text.trim();
            let ip = || text.parse::<std::net::IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| ip()).map_err(|_| {
                format!("{text:?} is not a network: write 10.0.0.0/8, separated by commas, or none")
            })
        };
        text.split(',')
            .map(network)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for AccessLogChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, path) = match text.split_once(':') {
            Some((format, path)) => (format, Some(PathBuf::from(path))),
            None => (text, None),
        };
        let format = match format {
            "off" if path.is_none() => return Ok(Self(None)),
            "json" => AccessLogFormat::Json,
            "combined" => AccessLogFormat::Combined,
            _ => return Err("write off, json or combined; json:FILE for a file".into()),
        };
        if path
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            return Err("no file stands after the colon".into());
        }
        Ok(Self(Some(AccessLogConfig { format, path })))
    }
}

/// `round-robin`, `random`, `least-request` or `hash`.
pub fn balance(text: &str) -> Result<Balance, String> {
    match text {
        "round-robin" => Ok(Balance::RoundRobin),
        "random" => Ok(Balance::Random),
        "least-request" => Ok(Balance::LeastRequest),
        "hash" => Ok(Balance::Hash),
        _ => Err("write round-robin, random, least-request or hash".into()),
    }
}

/// `5s`, `1m30s`, `0`; up to 365 days.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| "write a number and a unit, such as 500ms, 5s or 1m")?;
    if duration > LONGEST {
        return Err("that is over the limit of 365 days".into());
    }
    Ok(duration)
}

/// For flags that are known but don't work in this version.
pub fn not_yet(_text: &str) -> Result<String, String> {
    Err("not supported yet".into())
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
            let address = address.parse().unwrap();
            assert_eq!(
                listener(text),
                Ok(ListenerConfig { address, tls }),
                "{text}"
            );
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
            (
                "https://0.0.0.0:443?proxy_protocol=true",
                "not supported yet",
            ),
            ("https://0.0.0.0:443?certs=a", "unknown option certs"),
        ] {
            let error = listener(text).expect_err(text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_needs_a_port() {
        assert_eq!(address("localhost:0"), Ok(([127, 0, 0, 1], 0).into()));
        assert!(
            address("127.0.0.1")
                .unwrap_err()
                .contains("port is missing")
        );
        assert!(address("[::1]").unwrap_err().contains("port is missing"));
        assert!(address("").is_err());
    }

    #[test]
    fn networks_take_bare_addresses_and_none() {
        let networks: Networks = "10.0.0.0/8, 192.0.2.1,fe80::/10".parse().unwrap();
        let texts: Vec<_> = networks.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8", "192.0.2.1/32", "fe80::/10"]);
        assert_eq!("none".parse(), Ok(Networks::default()));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/8,", "lan"] {
            assert!(bad.parse::<Networks>().is_err(), "{bad}");
        }
    }

    #[test]
    fn access_logs_have_a_format_and_perhaps_a_file() {
        let log = |format, path: Option<&str>| {
            Ok(AccessLogChoice(Some(AccessLogConfig {
                format,
                path: path.map(PathBuf::from),
            })))
        };
        assert_eq!("off".parse(), Ok(AccessLogChoice(None)));
        assert_eq!("json".parse(), log(AccessLogFormat::Json, None));
        let file = log(AccessLogFormat::Combined, Some("/var/log/a:b"));
        assert_eq!("combined:/var/log/a:b".parse(), file);
        for bad in ["", "off:/x", "jsn", "json:"] {
            assert!(bad.parse::<AccessLogChoice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for bad in ["", "5", "-1s", "5 parsecs", "366days", "300000000000years"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
