//! Where an upstream is: the address as its key writes it, and the endpoint it resolves to.

use std::{
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

/// Longest path of a Unix socket on Linux (`sun_path` less its terminator).
const MAX_SOCKET_PATH: usize = 107;

/// An upstream as the last segment of a key writes it: `ip:port`, `[ipv6]:port`, `name:port`, or `unix:` and a
/// percent-encoded path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address that needs no resolving.
    Ip(SocketAddr),
    /// A name to resolve, lower-case, and its port.
    Name(Box<str>, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// Why a text is no upstream's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// No `:port` at the end.
    #[error(
        "{0:?} is no upstream: expected ip:port, [ipv6]:port, name:port, or unix: and a percent-encoded path"
    )]
    Shape(String),
    /// `10.0.0.7`, which lacks its port.
    #[error("upstream {0:?} lacks its port: write {0}:80, or whichever it is")]
    NoPort(String),
    /// Not 1 to 65535.
    #[error("upstream {0:?} has no valid port: 1 to 65535 are")]
    Port(String),
    /// `::1:80`.
    #[error("upstream {0:?} is ambiguous: write an IPv6 address in brackets, [ipv6]:port")]
    Brackets(String),
    /// `[zz]:80`.
    #[error("upstream {0:?} has no valid IPv6 address in its brackets")]
    Ipv6(String),
    /// A name that DNS could not carry.
    #[error("upstream {0:?} has no valid name or IPv4 address before its port")]
    Name(String),
    /// `unix:run/app.sock`.
    #[error("upstream {0:?} needs an absolute path, percent-encoded: unix:%2Frun%2Fapp.sock")]
    SocketPath(String),
    /// A path the kernel refuses.
    #[error("upstream {0:?} has a path over 107 bytes, which no socket can have")]
    SocketPathLength(String),
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path, text);
        }
        let (host, port) = text
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .ok_or_else(|| without_port(text))?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(BadAddress::Brackets(text.to_owned()));
        }
        let port = parse_port(port).ok_or_else(|| BadAddress::Port(text.to_owned()))?;
        if let Some(address) = host.strip_prefix('[') {
            let address = address
                .strip_suffix(']')
                .and_then(|address| address.parse().ok())
                .ok_or_else(|| BadAddress::Ipv6(text.to_owned()))?;
            return Ok(Self::Ip(SocketAddr::new(IpAddr::V6(address), port)));
        }
        name(host)
            .map(|host| match host.parse() {
                Ok(address) => Self::Ip(SocketAddr::new(IpAddr::V4(address), port)),
                Err(_) => Self::Name(host, port),
            })
            .ok_or_else(|| BadAddress::Name(text.to_owned()))
    }
}

/// The text a key would hold, in one spelling.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write_unix(f, path),
        }
    }
}

/// Only what is certainly a host: any other word may be meant as something else.
fn without_port(text: &str) -> BadAddress {
    match text.parse::<Ipv4Addr>() {
        Ok(_) => BadAddress::NoPort(text.to_owned()),
        Err(_) => BadAddress::Shape(text.to_owned()),
    }
}

/// Digits alone: the `+80` that `u16` would parse is none.
fn parse_port(text: &str) -> Option<u16> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|&port: &u16| is_number && port != 0)
}

/// A lower-case name of labels DNS can carry, or an IPv4 address.
fn name(text: &str) -> Option<Box<str>> {
    let lower = match text.is_ascii() {
        true => text.to_ascii_lowercase(),
        false => idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::URL)
            .ok()?
            .into_owned(),
    };
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // `1.2.3` or `300.1.1.1`: meant as an IPv4 address, and no top-level domain is a number.
    let last_is_number = name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    let is_ipv4 = name.parse::<Ipv4Addr>().is_ok();
    let is_valid = name.len() <= 253 && name.split('.').all(is_label);
    (is_valid && (is_ipv4 || !last_is_number)).then(|| name.into())
}

fn unix(path: &str, whole: &str) -> Result<Address, BadAddress> {
    let path: Vec<u8> = percent_decode_str(path).collect();
    if path.first() != Some(&b'/') || path.contains(&0) || path.len() == 1 {
        return Err(BadAddress::SocketPath(whole.to_owned()));
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(BadAddress::SocketPathLength(whole.to_owned()));
    }
    Ok(Address::Unix(PathBuf::from(OsString::from_vec(path))))
}

fn write_unix(f: &mut fmt::Formatter<'_>, path: &Path) -> fmt::Result {
    const ENCODED: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b' ');
    let path = percent_encode(path.as_os_str().as_bytes(), ENCODED);
    write!(f, "unix:{path}")
}

/// What is dialled: an [`Address`] after resolving. Each address behind a name is an endpoint of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP. `name` is kept for SNI and for `host_header: upstream`.
    Tcp {
        /// Where to connect.
        address: SocketAddr,
        /// The `name` of `name:port` this address came from.
        name: Option<Box<str>>,
    },
    /// A name without any known address yet: every dial fails.
    Unresolved(Box<str>, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => address.fmt(f),
            Self::Unresolved(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write_unix(f, path),
        }
    }
}

impl Endpoint {
    /// The address its key wrote, apart from which of a name's addresses this is.
    pub fn written(&self) -> Address {
        match self {
            Self::Tcp {
                address,
                name: None,
            } => Address::Ip(*address),
            Self::Tcp {
                address,
                name: Some(name),
            } => Address::Name(name.clone(), address.port()),
            Self::Unresolved(name, port) => Address::Name(name.clone(), *port),
            Self::Unix(path) => Address::Unix(path.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_to_one_spelling() {
        for (text, expected) in [
            ("10.0.0.7:4000", "10.0.0.7:4000"),
            ("[::1]:80", "[::1]:80"),
            ("[0:0::1]:80", "[::1]:80"),
            ("App.Internal.:8080", "app.internal:8080"),
            ("localhost:1", "localhost:1"),
            ("my_app:65535", "my_app:65535"),
            ("bücher.example:80", "xn--bcher-kva.example:80"),
            ("unix:%2Frun%2Fapp.sock", "unix:%2Frun%2Fapp.sock"),
            ("unix:%2frun%2Fa%20b", "unix:%2Frun%2Fa%20b"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), expected, "{text}");
            assert_eq!(expected.parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn bad_addresses_are_refused_with_what_is_wrong() {
        for (text, expected) in [
            ("", "no upstream"),
            ("api", "no upstream"),
            (":80", "no upstream"),
            ("10.0.0.7:0", "port"),
            ("10.0.0.7:99999", "port"),
            ("10.0.0.7:", "port"),
            ("10.0.0.7:+80", "port"),
            ("10.0.0.7:http", "port"),
            ("::1:80", "brackets"),
            ("[::1:80", "brackets"),
            ("[10.0.0.7]:80", "brackets"),
            ("1.2.3:80", "IPv4"),
            ("300.1.1.1:80", "IPv4"),
            ("a..b:80", "name"),
            ("a b:80", "name"),
            ("a/b:80", "name"),
            ("unix:", "absolute"),
            ("unix:run.sock", "absolute"),
            ("unix:%2F", "absolute"),
            ("unix:%2Fa%00b", "absolute"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let long = format!("unix:%2F{}", "a".repeat(107));
        assert!(matches!(
            long.parse::<Address>(),
            Err(BadAddress::SocketPathLength(_))
        ));
    }
}
