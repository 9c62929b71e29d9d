//! Who the client is and what the upstream is told of it: `X-Forwarded-For`, `-Proto` and `-Host`.
//!
//! What a client claims is believed only if it is a trusted proxy; from anyone else such fields, and names that
//! some upstreams read as such, are dropped. Which headers a request has is `headers`' part; these are plain
//! functions over values.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use ipnet::{IpNet, Ipv4Net};

use super::rfc7239::{self, Element};
use crate::config::ForwardedField;

/// `--trusted-proxies`: the networks whose forwarding fields are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Whether this address is in one of the networks. An IPv4 address and its IPv4-mapped IPv6 form are the same.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromIterator<IpNet> for TrustedProxies {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Self {
        Self(networks.into_iter().map(canonical).collect())
    }
}

/// `::ffff:10.0.0.0/104` as `10.0.0.0/8`; others as they are.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(MAPPED_BITS)
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return IpNet::V4(v4);
    }
    network
}

/// Whether what a request's sender says about earlier hops counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// In `--trusted-proxies`.
    Trusted,
    /// Anyone else.
    Unknown,
}

/// What a request says of earlier hops, and how far that counts.
#[derive(Clone, Copy)]
pub struct Claims<'r> {
    /// Its fields.
    pub headers: &'r HeaderMap,
    /// Who sent it.
    pub sender: Sender,
    /// Which field counts.
    pub field: ForwardedField,
    /// Where its sender is.
    pub connection: IpAddr,
    /// Whose word counts.
    pub trusted: &'r TrustedProxies,
}

impl Claims<'_> {
    /// Who the client is: who connected or, behind trusted proxies, the last that they name and that is none of them.
    pub fn client(&self) -> IpAddr {
        match self.field {
            ForwardedField::Instead if self.sender == Sender::Trusted => self.outermost().0,
            _ => client_address(self.headers, self.connection, self.sender, self.trusted),
        }
    }

    /// How the client's connection is secured; ours is so by `connection`.
    pub fn scheme(&self, connection: Scheme) -> Scheme {
        if self.sender == Sender::Unknown {
            return connection;
        }
        match self.field {
            ForwardedField::Instead => {
                let said = self.outermost().1.and_then(|element| element.scheme);
                said.unwrap_or(connection)
            }
            _ => {
                let prior = self.headers.get("x-forwarded-proto");
                forwarded_proto(prior, connection, self.sender)
            }
        }
    }

    fn outermost(&self) -> (IpAddr, Option<Element>) {
        rfc7239::outermost(self.headers, self.connection, self.trusted)
    }
}

/// Writes the `X-Forwarded-For` value: the client's address, after the `prior` values of a trusted sender.
///
/// Several prior lines are joined by `, `, as RFC 9110 section 5.3 allows for lists. `client` is what
/// [`address_text`] makes of it, once per connection.
pub fn forwarded_for<'a>(
    prior: impl Iterator<Item = &'a HeaderValue>,
    client: &str,
    sender: Sender,
    out: &mut Vec<u8>,
) {
    if sender == Sender::Trusted {
        for value in prior {
            let value = value.as_bytes().trim_ascii();
            if !value.is_empty() {
                out.extend_from_slice(value);
                out.extend_from_slice(b", ");
            }
        }
    }
    out.extend_from_slice(client.as_bytes());
}

/// Who the client is: who connected or, behind trusted proxies, the last in `X-Forwarded-For` that is none of them. What
/// is in front of an entry that is no address was written by somebody nobody vouches for.
pub fn client_address(
    headers: &HeaderMap,
    connection: IpAddr,
    sender: Sender,
    trusted: &TrustedProxies,
) -> IpAddr {
    let mut client = connection.to_canonical();
    if sender == Sender::Unknown {
        return client;
    }
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let mut hops = lines.flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
    while trusted.contains(client) {
        let Some(hop) = hops.next().and_then(hop_address) else {
            break;
        };
        client = hop;
    }
    client
}

/// An entry of `X-Forwarded-For`. Some proxies write the port too.
pub(super) fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim_ascii();
    let address = hop.parse::<IpAddr>();
    let address = address.or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// An address as text, an IPv4-mapped one as IPv4.
pub fn address_text(address: IpAddr) -> Box<str> {
    address.to_canonical().to_string().into()
}

/// How the client's connection, or the one a trusted proxy speaks of, is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// As it stands in `X-Forwarded-Proto`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The value for a header field; costs nothing.
    pub fn header_value(self) -> HeaderValue {
        HeaderValue::from_static(self.as_str())
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        if text.eq_ignore_ascii_case(b"https") || text.eq_ignore_ascii_case(b"wss") {
            Some(Self::Https)
        } else if text.eq_ignore_ascii_case(b"http") || text.eq_ignore_ascii_case(b"ws") {
            Some(Self::Http)
        } else {
            None
        }
    }
}

/// The scheme for `X-Forwarded-Proto` and `redirect_https`: what a trusted sender says, else the connection's own.
///
/// Of a list the first entry counts: the proxy next to the client wrote it.
pub fn forwarded_proto(prior: Option<&HeaderValue>, connection: Scheme, sender: Sender) -> Scheme {
    let Some(prior) = prior.filter(|_| sender == Sender::Trusted) else {
        return connection;
    };
    let first = prior.as_bytes().split(|&byte| byte == b',').next();
    first.and_then(Scheme::parse).unwrap_or(connection)
}

/// The `X-Forwarded-Host` value: what a trusted sender says, else the request's own authority.
pub fn forwarded_host<'a>(
    prior: Option<&'a HeaderValue>,
    authority: &'a [u8],
    sender: Sender,
) -> &'a [u8] {
    prior
        .filter(|prior| sender == Sender::Trusted && !prior.is_empty())
        .map_or(authority, HeaderValue::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_by_network_and_ipv4_is_the_same_when_mapped() {
        let networks = ["10.0.0.0/8", "2001:db8::/32", "::ffff:192.0.2.0/120"];
        let trusted: TrustedProxies = networks.iter().map(|text| text.parse().unwrap()).collect();
        let cases = [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("::ffff:11.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
            ("192.0.2.77", true),
            ("::ffff:192.0.2.77", true),
            ("192.0.3.1", false),
        ];
        for (address, expected) in cases {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(trusted.contains(address), expected, "{address}");
        }
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn everything_is_trusted_by_a_network_of_everything() {
        let trusted = TrustedProxies::from_iter(["::/0".parse().unwrap()]);
        assert!(trusted.contains("2001:db8::1".parse().unwrap()));
        // `::/0` is IPv6 only, as in a firewall; IPv4 wants `0.0.0.0/0`.
        assert!(!trusted.contains("::ffff:10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn forwarded_for_appends_to_trusted_values_only() {
        use Sender::{Trusted, Unknown};
        let cases: &[(&[&str], &str, Sender, &str)] = &[
            (&[], "192.0.2.1", Unknown, "192.0.2.1"),
            (&[], "192.0.2.1", Trusted, "192.0.2.1"),
            (&["203.0.113.9"], "192.0.2.1", Unknown, "192.0.2.1"),
            (
                &["203.0.113.9"],
                "192.0.2.1",
                Trusted,
                "203.0.113.9, 192.0.2.1",
            ),
            (
                &["a, b", " ", "c"],
                "192.0.2.1",
                Trusted,
                "a, b, c, 192.0.2.1",
            ),
            (&[], "::ffff:192.0.2.1", Unknown, "192.0.2.1"),
            (&["x"], "2001:db8::1", Trusted, "x, 2001:db8::1"),
        ];
        for (prior, client, sender, expected) in cases {
            let prior: Vec<_> = prior
                .iter()
                .map(|&text| HeaderValue::from_static(text))
                .collect();
            let mut out = Vec::new();
            let client = address_text(client.parse().unwrap());
            forwarded_for(prior.iter(), &client, *sender, &mut out);
            assert_eq!(out, expected.as_bytes(), "{prior:?} {client} {sender:?}");
        }
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_no_trusted_proxy() {
        let trusted = TrustedProxies::from_iter(["10.0.0.0/8".parse().unwrap()]);
        let cases: &[(&[&str], &str, &str)] = &[
            (&[], "192.0.2.1", "192.0.2.1"),
            (&[], "10.0.0.1", "10.0.0.1"),
            (&["203.0.113.9"], "192.0.2.1", "192.0.2.1"),
            (&["203.0.113.9"], "10.0.0.1", "203.0.113.9"),
            (&["203.0.113.9"], "::ffff:10.0.0.1", "203.0.113.9"),
            (&["1.1.1.1, 203.0.113.9"], "10.0.0.1", "203.0.113.9"),
            (&["203.0.113.9, 10.0.0.2"], "10.0.0.1", "203.0.113.9"),
            (&["203.0.113.9", "10.0.0.2"], "10.0.0.1", "203.0.113.9"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.1", "10.0.0.3"),
            (&["203.0.113.9:4711"], "10.0.0.1", "203.0.113.9"),
            (&["[2001:db8::1]:4711"], "10.0.0.1", "2001:db8::1"),
            (&["2001:db8::1"], "10.0.0.1", "2001:db8::1"),
            (&["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.1", "10.0.0.2"),
            (&["1.1.1.1,"], "10.0.0.1", "10.0.0.1"),
            (&["\u{e9}"], "10.0.0.1", "10.0.0.1"),
        ];
        for (lines, connection, expected) in cases {
            let mut headers = HeaderMap::new();
            for line in *lines {
                let value = HeaderValue::from_bytes(line.as_bytes()).unwrap();
                headers.append("x-forwarded-for", value);
            }
            let by = connection.parse().unwrap();
            let client = client_address(&headers, by, Sender::Trusted, &trusted);
            assert_eq!(client.to_string(), *expected, "{lines:?} by {connection}");
            let client = client_address(&headers, by, Sender::Unknown, &trusted);
            assert_eq!(client, by.to_canonical(), "{lines:?} by a stranger");
        }
    }

    #[test]
    fn forwarded_proto_is_the_connections_unless_a_trusted_sender_says_better() {
        use Scheme::{Http, Https};
        use Sender::{Trusted, Unknown};
        let cases = [
            (None, Http, Trusted, Http),
            (None, Https, Unknown, Https),
            (Some("https"), Http, Trusted, Https),
            (Some("HTTPS"), Http, Trusted, Https),
            (Some("http"), Https, Trusted, Http),
            (Some("https, http"), Http, Trusted, Https),
            (Some("wss"), Http, Trusted, Https),
            (Some("https"), Http, Unknown, Http),
            (Some("gopher"), Https, Trusted, Https),
            (Some(""), Https, Trusted, Https),
        ];
        for (prior, connection, sender, expected) in cases {
            let value = prior.map(HeaderValue::from_static);
            assert_eq!(
                forwarded_proto(value.as_ref(), connection, sender),
                expected,
                "{prior:?} {connection:?} {sender:?}"
            );
        }
        assert_eq!(Https.header_value(), "https");
    }

    #[test]
    fn forwarded_host_is_the_authority_unless_a_trusted_sender_says_better() {
        use Sender::{Trusted, Unknown};
        let authority = b"inner.example:8080";
        let cases = [
            (None, Trusted, "inner.example:8080"),
            (Some("outer.example"), Trusted, "outer.example"),
            (Some("outer.example"), Unknown, "inner.example:8080"),
            (Some(""), Trusted, "inner.example:8080"),
        ];
        for (prior, sender, expected) in cases {
            let prior = prior.map(HeaderValue::from_static);
            let host = forwarded_host(prior.as_ref(), authority, sender);
            assert_eq!(host, expected.as_bytes(), "{prior:?} {sender:?}");
        }
    }
}
