//! The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt): what a load balancer in front says of the
//! client, before the client's own first byte. Whether it is believed is `connection`'s part.
//!
//! Our own, since what there is takes a header that is not there yet for a broken one or the other way round, takes
//! `PROXYxTCP4` and ports such as `+80`, and checks no checksum; and whoever gets past here chooses its own address.

use std::{
    fmt::Display,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::upstream::proxy_protocol::Origin;

/// The longest header of version 1, its CRLF included.
const MAX_V1: usize = 107;
/// The longest of version 2 that is taken, of the 64 KiB it could have: as much as HAProxy takes. Certificates of clients
/// may be in it.
const MAX_V2: usize = 16 * 1024;

const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and protocol, length.
const V2_FIXED: usize = V2.len() + 4;
/// `PP2_TYPE_CRC32C`.
const CRC32C: u8 = 0x03;

/// What bytes that begin with a header are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header, and perhaps what comes after it.
    Whole(Header),
    /// The beginning of one.
    Incomplete,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How many bytes it has. The client's own come next.
    pub length: usize,
    /// What it says.
    pub origin: Origin,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something else, such as a request or a TLS handshake.
    #[error("it does not begin with a PROXY header")]
    NoHeader,
    /// A line of version 1 that does not end.
    #[error("the PROXY header is longer than 107 bytes")]
    TooLong,
    /// Not as version 1 has it.
    #[error("the PROXY header has no valid {0}")]
    Field(&'static str),
    /// Not version 2, or neither `LOCAL` nor `PROXY`.
    #[error("the PROXY header has an unknown version or command: {0:#04x}")]
    Command(u8),
    /// None of the combinations there are.
    #[error("the PROXY header has an unknown address family or protocol: {0:#04x}")]
    Family(u8),
    /// More than is taken, or less than its addresses need.
    #[error("the PROXY header has an impossible length: {0} bytes")]
    Length(usize),
    /// What stands behind the addresses breaks off.
    #[error("the PROXY header has a broken TLV")]
    Tlv,
    /// The checksum does not fit.
    #[error("the PROXY header has a wrong checksum")]
    Checksum,
}

/// Reads a header, and not a byte of what follows. Takes as long as it takes: the caller bounds it.
///
/// # Errors
/// `UnexpectedEof` where the stream ends first; an [`Error`] as `InvalidData`.
pub async fn read(stream: &mut TcpStream) -> io::Result<Header> {
    let mut bytes = vec![0; 256];
    let mut taken = 0;
    loop {
        if taken == bytes.len() {
            bytes.resize(taken * 2, 0);
        }
        // Looked at before it is taken: what follows the header is for TLS, which reads the stream itself.
        let seen = taken + stream.peek(&mut bytes[taken..]).await?;
        if seen == taken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let parsed = parse(&bytes[..seen])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let end = match parsed {
            Parsed::Whole(header) => header.length,
            Parsed::Incomplete => seen,
        };
        stream.read_exact(&mut bytes[taken..end]).await?;
        taken = end;
        if let Parsed::Whole(header) = parsed {
            return Ok(header);
        }
    }
}

/// What these bytes begin with. More of them never turn an error into a header, and a header never into another one.
///
/// # Errors
/// As soon as no further bytes could make them a header that is valid.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Error> {
    let begins_as = |start: &[u8]| {
        let known = bytes.len().min(start.len());
        bytes[..known] == start[..known]
    };
    if begins_as(V2) {
        parse_v2(bytes)
    } else if begins_as(V1) {
        parse_v1(bytes)
    } else {
        Err(Error::NoHeader)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Error> {
    let longest = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = longest.iter().position(|&byte| byte == b'\n') else {
        return match bytes.len() < MAX_V1 {
            true => Ok(Parsed::Incomplete),
            false => Err(Error::TooLong),
        };
    };
    let line = bytes[V1.len()..end]
        .strip_suffix(b"\r")
        .ok_or(Error::Field("end of line"))?;
    let origin = match line.strip_prefix(b"UNKNOWN") {
        // What else such a line says is to be ignored (section 2.1).
        Some([] | [b' ', ..]) => Origin::Unknown,
        _ => parse_addresses(line)?,
    };
    Ok(Parsed::Whole(Header {
        length: end + 1,
        origin,
    }))
}

/// `TCP4 192.0.2.1 192.0.2.2 56324 443`, with single spaces.
fn parse_addresses(line: &[u8]) -> Result<Origin, Error> {
    let line = std::str::from_utf8(line).map_err(|_| Error::Field("protocol"))?;
    let mut fields = line.split(' ');
    let mut field = || fields.next().unwrap_or_default();
    let is_v4 = match field() {
        "TCP4" => true,
        "TCP6" => false,
        _ => return Err(Error::Field("protocol")),
    };
    let (source, destination) = (field(), field());
    let (source_port, destination_port) = (field(), field());
    if fields.next().is_some() {
        return Err(Error::Field("end of line"));
    }
    let address = |text: &str, what| match is_v4 {
        true => text.parse().map(IpAddr::V4).map_err(|_| Error::Field(what)),
        false => text.parse().map(IpAddr::V6).map_err(|_| Error::Field(what)),
    };
    Ok(Origin::Client {
        source: SocketAddr::new(
            address(source, "source address")?,
            number(source_port).ok_or(Error::Field("source port"))?,
        ),
        destination: SocketAddr::new(
            address(destination, "destination address")?,
            number(destination_port).ok_or(Error::Field("destination port"))?,
        ),
    })
}

/// A number in the one way to write it: no sign, and no zeros in front.
fn number<N: FromStr + Display>(text: &str) -> Option<N> {
    let number: N = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Error> {
    let is_local = match bytes.get(V2.len()) {
        None => return Ok(Parsed::Incomplete),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(&other) => return Err(Error::Command(other)),
    };
    let Some(&[_, family, high, low]) = bytes.get(V2.len()..V2_FIXED) else {
        return Ok(Parsed::Incomplete);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if V2_FIXED + length > MAX_V2 {
        return Err(Error::Length(V2_FIXED + length));
    }
    // Of `LOCAL` even the family is to be ignored (section 2.2).
    let addresses = match family {
        _ if is_local => 0,
        0x00 => 0,
        0x11 | 0x12 => 2 * (4 + 2),
        0x21 | 0x22 => 2 * (16 + 2),
        0x31 | 0x32 => 2 * 108,
        other => return Err(Error::Family(other)),
    };
    if length < addresses {
        return Err(Error::Length(V2_FIXED + length));
    }
    let Some(header) = bytes.get(..V2_FIXED + length) else {
        return Ok(Parsed::Incomplete);
    };
    let (addresses, tlvs) = header[V2_FIXED..].split_at(addresses);
    // Without addresses nobody can say where TLVs would begin.
    if !addresses.is_empty() {
        check(header, tlvs)?;
    }
    Ok(Parsed::Whole(Header {
        length: header.len(),
        origin: match family {
            _ if is_local => Origin::Local,
            0x11 => {
                let (ips, ports) = addresses.split_at(2 * 4);
                let ip = |at: &[u8]| Ipv4Addr::new(at[0], at[1], at[2], at[3]).into();
                client(ip(&ips[..4]), ip(&ips[4..]), ports)
            }
            0x21 => {
                let (ips, ports) = addresses.split_at(2 * 16);
                let ip = |at: &[u8]| {
                    let octets = at.iter().fold(0, |ip, &byte| ip << 8 | u128::from(byte));
                    Ipv6Addr::from_bits(octets).into()
                };
                client(ip(&ips[..16]), ip(&ips[16..]), ports)
            }
            _ => Origin::Unknown,
        },
    }))
}

fn client(source: IpAddr, destination: IpAddr, ports: &[u8]) -> Origin {
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Origin::Client {
        source: SocketAddr::new(source, port(0)),
        destination: SocketAddr::new(destination, port(2)),
    }
}

/// What stands behind the addresses is not looked at, but for a checksum of the whole (section 2.2.3).
fn check(header: &[u8], mut tlvs: &[u8]) -> Result<(), Error> {
    while let [kind, rest @ ..] = tlvs {
        let [high, low, rest @ ..] = rest else {
            return Err(Error::Tlv);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, next) = rest.split_at_checked(length).ok_or(Error::Tlv)?;
        if *kind == CRC32C {
            let said = value.try_into().map_err(|_| Error::Tlv)?;
            let at = header.len() - rest.len();
            // Summed up with zeros in its own place.
            let parts = [&header[..at], &[0; 4], &header[at + 4..]];
            if crc32c(parts.into_iter().flatten()) != u32::from_be_bytes(said) {
                return Err(Error::Checksum);
            }
        }
        tlvs = next;
    }
    Ok(())
}

/// CRC-32C (RFC 9260 appendix A), bit by bit: there is one for a connection, at most.
fn crc32c<'b>(bytes: impl Iterator<Item = &'b u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ (POLYNOMIAL & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests;
