//! `Forwarded` (RFC 7239), the standard's word for `X-Forwarded-*`: what trusted proxies say by it, and how it is said.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, header::FORWARDED};

use super::forwarded::{Scheme, TrustedProxies};

/// What one proxy said of who connected to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// `for`, if that is an address: it may also be `unknown`, or a name of the proxy's own (section 6).
    pub node: Option<IpAddr>,
    /// `proto`, if it is one we know.
    pub scheme: Option<Scheme>,
    /// `host`.
    pub host: Option<Vec<u8>>,
}

/// The client behind trusted proxies, and the element of the outermost of them, which the client was connected to. What
/// stands in front of that was written by somebody nobody vouches for.
pub fn outermost(
    headers: &HeaderMap,
    connection: IpAddr,
    trusted: &TrustedProxies,
) -> (IpAddr, Option<Element>) {
    let (mut client, mut said) = (connection.to_canonical(), None);
    let lines = headers.get_all(FORWARDED).iter().rev();
    // Behind a line that is broken nobody can tell where its elements begin.
    let lines = lines.map_while(|line| parse(line.as_bytes()));
    for element in lines.flat_map(|elements| elements.into_iter().rev()) {
        if !trusted.contains(client) {
            break;
        }
        let node = element.node;
        said = Some(element);
        let Some(node) = node else { break };
        client = node;
    }
    (client, said)
}

/// Writes the lines that are there already, as far as they make sense, each with a comma behind it.
pub fn write_prior(headers: &HeaderMap, out: &mut Vec<u8>) {
    let lines = || headers.get_all(FORWARDED).iter();
    let sound = lines().rev();
    let sound = sound.take_while(|line| parse(line.as_bytes()).is_some());
    let broken = lines().count() - sound.count();
    for line in lines().skip(broken) {
        let line = line.as_bytes().trim_ascii();
        if !line.is_empty() {
            out.extend_from_slice(line);
            out.extend_from_slice(b", ");
        }
    }
}

/// Writes `for=` and who that is; an address of IPv6 is quoted, in brackets (section 6.1).
pub fn write_node(node: Option<IpAddr>, out: &mut Vec<u8>) {
    let text = match node {
        None => "for=unknown".to_owned(),
        Some(IpAddr::V4(address)) => format!("for={address}"),
        Some(IpAddr::V6(address)) => format!("for=\"[{address}]\""),
    };
    out.extend_from_slice(text.as_bytes());
}

/// Writes `;host=` and `;proto=` behind a node.
pub fn write_rest(host: &[u8], scheme: Scheme, out: &mut Vec<u8>) {
    if !host.is_empty() {
        out.extend_from_slice(b";host=");
        write_value(host, out);
    }
    out.extend_from_slice(b";proto=");
    out.extend_from_slice(scheme.as_str().as_bytes());
}

fn write_value(value: &[u8], out: &mut Vec<u8>) {
    if value.iter().all(|&byte| is_token(byte)) {
        return out.extend_from_slice(value);
    }
    out.push(b'"');
    for &byte in value {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// The elements of one line; `None` if it is not as section 4 has it.
fn parse(line: &[u8]) -> Option<Vec<Element>> {
    let (mut elements, mut element, mut is_empty) = (Vec::new(), Element::default(), true);
    let mut rest = line.trim_ascii();
    loop {
        if !rest.is_empty() && !matches!(rest[0], b',' | b';') {
            let name;
            (name, rest) = token(rest)?;
            let value;
            (value, rest) = value_of(rest.strip_prefix(b"=")?)?;
            element.learn(name, value);
            is_empty = false;
            rest = rest.trim_ascii_start();
        }
        match rest {
            [b';', more @ ..] => rest = more.trim_ascii_start(),
            // Empty elements of a list are nothing (RFC 9110 section 5.6.1).
            [] | [b',', ..] => {
                let whole = std::mem::take(&mut element);
                if !std::mem::replace(&mut is_empty, true) {
                    elements.push(whole);
                }
                match rest {
                    [_, more @ ..] => rest = more.trim_ascii_start(),
                    [] => return Some(elements),
                }
            }
            _ => return None,
        }
    }
}

impl Element {
    fn learn(&mut self, name: &[u8], value: Vec<u8>) {
        if name.eq_ignore_ascii_case(b"for") {
            self.node = node(&value);
        } else if name.eq_ignore_ascii_case(b"proto") {
            self.scheme = Scheme::parse(&value);
        } else if name.eq_ignore_ascii_case(b"host") {
            self.host = Some(value).filter(|host| !host.is_empty());
        }
    }
}

fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|&byte| !is_token(byte));
    let (token, rest) = text.split_at(end.unwrap_or(text.len()));
    (!token.is_empty()).then_some((token, rest))
}

/// A token, or a quoted string without its quotes.
fn value_of(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        return token(text).map(|(token, rest)| (token.to_vec(), rest));
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match byte {
            b'"' => return Some((value, &quoted[at + 1..])),
            b'\\' => value.push(*bytes.next()?.1),
            byte => value.push(byte),
        }
    }
    None
}

/// `192.0.2.1`, `192.0.2.1:80`, `[2001:db8::1]`, `[2001:db8::1]:80`; the port may be a name of the proxy's own.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let is_whole = port.is_empty() || port.starts_with(':');
        return is_whole.then(|| IpAddr::V6(address).to_canonical());
    }
    let address = text.split_once(':').map_or(text, |(address, _)| address);
    address.parse().map(|address: Ipv4Addr| address.into()).ok()
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Lines, the client they lead to, and what the outermost trusted proxy says of its `proto` and `host`.
    type Case<'c> = (&'c [&'c str], &'c str, Option<(&'c str, &'c str)>);

    fn headers(lines: &[&str]) -> HeaderMap {
        let line = |line: &&str| (FORWARDED, HeaderValue::from_str(line).unwrap());
        lines.iter().map(line).collect()
    }

    #[test]
    fn the_client_and_what_it_asked_are_the_outermost_trusted_proxys_word() {
        let trusted = TrustedProxies::from_iter([
            "10.0.0.0/8".parse().unwrap(),
            "2001:db8:1::/48".parse().unwrap(),
        ]);
        let cases: &[Case<'_>] = &[
            (&[], "10.0.0.1", None),
            (&[""], "10.0.0.1", None),
            (
                &["for=192.0.2.9;proto=https;host=a.test"],
                "192.0.2.9",
                Some(("https", "a.test")),
            ),
            (
                &["For=\"192.0.2.9:80\" ; Proto=HTTPS; host=\"a.test:80\""],
                "192.0.2.9",
                Some(("https", "a.test:80")),
            ),
            (
                &["for=\"[2001:db8::9]:_p\";proto=http"],
                "2001:db8::9",
                Some(("http", "")),
            ),
            (&["for=\"[2001:db8::9]\""], "2001:db8::9", Some(("", ""))),
            // In front of the client's address stands what the client sent.
            (
                &["for=6.6.6.6;proto=https;host=evil, for=192.0.2.9;proto=http"],
                "192.0.2.9",
                Some(("http", "")),
            ),
            (
                &[
                    "for=6.6.6.6;host=evil",
                    "for=192.0.2.9;host=a.test, for=10.0.0.2;host=inner",
                ],
                "192.0.2.9",
                Some(("", "a.test")),
            ),
            (
                &["for=10.0.0.3;proto=https, for=\"[2001:db8:1::2]\""],
                "10.0.0.3",
                Some(("https", "")),
            ),
            (
                &["for=6.6.6.6, for=unknown;proto=https"],
                "10.0.0.1",
                Some(("https", "")),
            ),
            (
                &["for=6.6.6.6, for=_hidden;proto=https"],
                "10.0.0.1",
                Some(("https", "")),
            ),
            (
                &["for=6.6.6.6, proto=https"],
                "10.0.0.1",
                Some(("https", "")),
            ),
            (
                &["for=192.0.2.9;;ext=\"a\\\",for=6.6.6.6\",,"],
                "192.0.2.9",
                Some(("", "")),
            ),
            // Of a broken line nothing is believed, nor of what is in front of it.
            (&["for=6.6.6.6, for=\""], "10.0.0.1", None),
            (&["for=6.6.6.6 for=7.7.7.7"], "10.0.0.1", None),
            (&["for =6.6.6.6"], "10.0.0.1", None),
            (&["for=[2001:db8::9]"], "10.0.0.1", None),
            (
                &["for=6.6.6.6", "for=\"", "for=10.0.0.2"],
                "10.0.0.2",
                Some(("", "")),
            ),
        ];
        for (lines, client, expected) in cases {
            let (found, said) = outermost(&headers(lines), "10.0.0.1".parse().unwrap(), &trusted);
            assert_eq!(found.to_string(), *client, "{lines:?}");
            let said = said.map(|said| {
                let host = String::from_utf8(said.host.unwrap_or_default()).unwrap();
                (said.scheme.map_or("", Scheme::as_str), host)
            });
            let expected = expected.map(|(scheme, host)| (scheme, host.to_owned()));
            assert_eq!(said, expected, "{lines:?}");
        }
        let (stranger, said) = outermost(
            &headers(&["for=6.6.6.6"]),
            "192.0.2.1".parse().unwrap(),
            &trusted,
        );
        assert_eq!((stranger.to_string().as_str(), said), ("192.0.2.1", None));
    }

    #[test]
    fn what_is_written_is_quoted_where_it_must_be() {
        for (node, host, expected) in [
            (
                Some("192.0.2.1"),
                "a.test",
                "for=192.0.2.1;host=a.test;proto=https",
            ),
            (
                Some("192.0.2.1"),
                "a.test:80",
                "for=192.0.2.1;host=\"a.test:80\";proto=https",
            ),
            (Some("2001:db8::1"), "", "for=\"[2001:db8::1]\";proto=https"),
            (
                None,
                "a\"b\\",
                "for=unknown;host=\"a\\\"b\\\\\";proto=https",
            ),
        ] {
            let mut out = Vec::new();
            write_node(node.map(|node| node.parse().unwrap()), &mut out);
            write_rest(host.as_bytes(), Scheme::Https, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        let mut out = Vec::new();
        write_prior(
            &headers(&["for=1.1.1.1", "for=\"", "", "for=2.2.2.2", "for=_x"]),
            &mut out,
        );
        assert_eq!(out, b"for=2.2.2.2, for=_x, ");
    }
}
