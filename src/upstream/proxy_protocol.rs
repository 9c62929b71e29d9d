//! The PROXY protocol towards upstreams (HAProxy's proxy-protocol.txt): whose connection it is, said before all else.
//! What load balancers in front say of theirs is read in `worker`.

use std::net::{IpAddr, SocketAddr};

/// `"proxy_protocol"` of an upstream's value: the version of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// That of the load balancer itself, such as a health check: `LOCAL`.
    Local,
    /// That of somebody who has no address that could be said: `UNKNOWN`, `UNSPEC`, a Unix socket, datagrams.
    Unknown,
    /// A client's.
    Client {
        /// Who connected to the load balancer.
        source: SocketAddr,
        /// Where.
        destination: SocketAddr,
    },
}

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPEC: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

impl ProxyProtocol {
    /// As values name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// The header that says so. Version 1 has no word for connections of our own but `UNKNOWN`.
    pub fn header(self, origin: Origin) -> Vec<u8> {
        match self {
            Self::V1 => v1(origin),
            Self::V2 => v2(origin),
        }
    }
}

fn v1(origin: Origin) -> Vec<u8> {
    let Origin::Client {
        source,
        destination,
    } = origin
    else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let (from, to) = of_one_family(source.ip(), destination.ip());
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let ports = (source.port(), destination.port());
    format!("PROXY {family} {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
}

fn v2(origin: Origin) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(2 * (16 + 2));
    let (command, family) = match origin {
        Origin::Local => (LOCAL, UNSPEC),
        Origin::Unknown => (PROXY, UNSPEC),
        Origin::Client {
            source,
            destination,
        } => {
            let (from, to) = of_one_family(source.ip(), destination.ip());
            for ip in [from, to] {
                match ip {
                    IpAddr::V4(ip) => addresses.extend(ip.octets()),
                    IpAddr::V6(ip) => addresses.extend(ip.octets()),
                }
            }
            for port in [source.port(), destination.port()] {
                addresses.extend(port.to_be_bytes());
            }
            let is_v4 = from.is_ipv4();
            (PROXY, if is_v4 { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 })
        }
    };
    let length = u8::try_from(addresses.len()).expect("36 bytes at most");
    [&V2[..], &[command, family, 0, length], &addresses].concat()
}

/// Both as IPv4 where both are, be it in the clothes of IPv6 that a socket of both families gives them; else both as
/// IPv6, as HAProxy has it: a header has room for one family.
fn of_one_family(source: IpAddr, destination: IpAddr) -> (IpAddr, IpAddr) {
    match (source.to_canonical(), destination.to_canonical()) {
        both @ (IpAddr::V4(_), IpAddr::V4(_)) => both,
        (source, destination) => (mapped(source), mapped(destination)),
    }
}

fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        ip @ IpAddr::V6(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(source: &str, destination: &str) -> Origin {
        Origin::Client {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn headers_are_as_the_specification_has_them() {
        let (inet, inet6) = (
            client("192.0.2.1:56324", "198.51.100.2:443"),
            client("[2001:db8::1]:56324", "[2001:db8::2]:443"),
        );
        for (origin, line, rest) in [
            (Origin::Local, "PROXY UNKNOWN\r\n", &b"\x20\x00\0\0"[..]),
            (Origin::Unknown, "PROXY UNKNOWN\r\n", b"\x21\x00\0\0"),
            (
                inet,
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
                b"\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb",
            ),
            (
                inet6,
                "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n",
                b"\x21\x21\0\x24\
                \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\xdc\x04\x01\xbb",
            ),
        ] {
            let header = ProxyProtocol::V1.header(origin);
            assert_eq!(String::from_utf8_lossy(&header), line);
            let header = ProxyProtocol::V2.header(origin);
            assert_eq!(header, [&V2[..], rest].concat(), "{origin:?}");
        }
    }

    #[test]
    fn ipv4_is_said_as_such_unless_the_other_end_is_ipv6() {
        for (source, destination, line) in [
            (
                "[::ffff:192.0.2.1]:1",
                "[::ffff:192.0.2.2]:65535",
                "TCP4 192.0.2.1 192.0.2.2 1 65535",
            ),
            (
                "[::ffff:192.0.2.1]:1",
                "192.0.2.2:2",
                "TCP4 192.0.2.1 192.0.2.2 1 2",
            ),
            (
                "192.0.2.1:1",
                "[2001:db8::2]:2",
                "TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2",
            ),
            (
                "[2001:db8::2]:1",
                "[::ffff:192.0.2.2]:2",
                "TCP6 2001:db8::2 ::ffff:192.0.2.2 1 2",
            ),
            // A zone is of this machine alone.
            ("[fe80::1%3]:1", "[::1]:2", "TCP6 fe80::1 ::1 1 2"),
        ] {
            let header = ProxyProtocol::V1.header(client(source, destination));
            assert_eq!(header, format!("PROXY {line}\r\n").as_bytes());
        }
    }
}
