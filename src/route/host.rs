//! Hosts: the pattern a key names, and the canonical form of what a request asks for. Both end in the same
//! text (lower-case A-labels, no port, no trailing dot), so that looking one up is comparing strings.

use std::{
    borrow::Cow,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

/// Longest host we take: 253 octets are what DNS can carry.
const MAX_HOST: usize = 253;
/// Longest label of it (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// Which hosts a route serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This host alone, in canonical form. IPv6 literals are in brackets.
    Exact(Arc<str>),
    /// Every host below this suffix, at any depth; the suffix is kept without its `*.`.
    Wildcard(Arc<str>),
    /// Every host.
    Any,
}

impl HostPattern {
    /// The host; of a wildcard, its suffix; empty for every host.
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Wildcard(text) => text,
            Self::Any => "",
        }
    }
}

/// Why a text is no host pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// `host:80`.
    #[error("host {0:?} has a port; requests are matched without one, so leave it off")]
    Port(String),
    /// `a.*.b`, `a*.b`, `*a`.
    #[error("host {0:?} has a \"*\" that is neither all of it nor its whole first label")]
    Star(String),
    /// `a..b`, `.a`.
    #[error("host {0:?} has an empty label")]
    EmptyLabel(String),
    /// A label over 63 octets or a host over 253.
    #[error("host {0:?} is too long: 63 bytes a label and 253 in all are the limits of DNS")]
    TooLong(String),
    /// `[::1`, `[zz]`.
    #[error("host {0:?} is no IPv6 address in brackets")]
    Ipv6(String),
    /// Any other character, or a label IDNA refuses.
    #[error("host {0:?} is no valid host name; letters, digits, \"-\", \"_\" and \".\" are")]
    Character(String),
}

impl FromStr for HostPattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix("*.") {
            Some(suffix) => Ok(Self::Wildcard(host_name(suffix, text)?.into())),
            None if text.starts_with('[') => Ok(Self::Exact(ipv6_literal(text)?.into())),
            None => Ok(Self::Exact(host_name(text, text)?.into())),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

fn ipv6_literal(text: &str) -> Result<String, BadPattern> {
    let bad = || BadPattern::Ipv6(text.to_owned());
    let (address, rest) = text[1..].split_once(']').ok_or_else(bad)?;
    if rest.starts_with(':') {
        return Err(BadPattern::Port(text.to_owned()));
    }
    let address: Ipv6Addr = address.parse().map_err(|_| bad())?;
    match rest {
        "" => Ok(format!("[{address}]")),
        _ => Err(bad()),
    }
}

/// `name` in canonical form; `whole` is what the key says, for the error.
fn host_name(name: &str, whole: &str) -> Result<String, BadPattern> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(BadPattern::Empty);
    }
    if name.contains('*') {
        return Err(BadPattern::Star(whole.to_owned()));
    }
    if let Some((_, port)) = name.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(BadPattern::Port(whole.to_owned()));
    }
    let bad_character = || BadPattern::Character(whole.to_owned());
    let lower = name.to_ascii_lowercase();
    let is_plain_ascii = lower.is_ascii() && !lower.contains("xn--");
    let ascii = if is_plain_ascii {
        lower
    } else {
        idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::URL)
            .map_err(|_| bad_character())?
            .into_owned()
    };
    if ascii.len() > MAX_HOST {
        return Err(BadPattern::TooLong(whole.to_owned()));
    }
    for label in ascii.split('.') {
        if label.is_empty() {
            return Err(BadPattern::EmptyLabel(whole.to_owned()));
        }
        if label.len() > MAX_LABEL {
            return Err(BadPattern::TooLong(whole.to_owned()));
        }
        if !label.bytes().all(|byte| CLASS[usize::from(byte)] == PLAIN) {
            return Err(bad_character());
        }
    }
    Ok(ascii)
}

/// What a request says as its host is none: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request's host is not valid")]
pub struct BadHost;

const ILLEGAL: u8 = 0;
/// Stands as it is: a lower-case letter, a digit, `-` or `_`.
const PLAIN: u8 = 1;
/// A letter to be made lower-case.
const UPPER: u8 = 2;
const DOT: u8 = 3;
const COLON: u8 = 4;

const CLASS: [u8; 256] = {
    let mut class = [ILLEGAL; 256];
    let mut byte = 0;
    while byte < 128 {
        class[byte] = match byte as u8 {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => PLAIN,
            b'A'..=b'Z' => UPPER,
            b'.' => DOT,
            b':' => COLON,
            _ => ILLEGAL,
        };
        byte += 1;
    }
    class
};

/// The host of an authority (`Host`, `:authority`) in the form the table is keyed by: lower-case, without port and
/// trailing dot. Called for every request: one pass, and no allocation if it is canonical already.
///
/// # Errors
/// Anything that is no host name, IPv4 address or bracketed IPv6 address with an optional port: userinfo, spaces,
/// control bytes, empty labels, percent triples.
pub fn canonical(authority: &[u8]) -> Result<Cow<'_, str>, BadHost> {
    if authority.first() == Some(&b'[') {
        return canonical_ipv6(authority);
    }
    let mut end = authority.len();
    let mut label = 0;
    let mut has_upper = false;
    // The start counts as a dot: neither may be followed by one.
    let mut previous = DOT;
    for (index, &byte) in authority.iter().enumerate() {
        let class = CLASS[usize::from(byte)];
        match class {
            PLAIN => {}
            UPPER => has_upper = true,
            DOT if previous != DOT && index - label <= MAX_LABEL => label = index + 1,
            COLON => {
                check_port(&authority[index + 1..])?;
                end = index;
                break;
            }
            _ => return Err(BadHost),
        }
        previous = class;
    }
    if previous == DOT && end > 0 {
        end -= 1;
    }
    // With the dot that ends it taken off, the last label is empty, and was looked at.
    if end == 0 || end > MAX_HOST || end.saturating_sub(label) > MAX_LABEL {
        return Err(BadHost);
    }
    let host = std::str::from_utf8(&authority[..end]).map_err(|_| BadHost)?;
    Ok(if has_upper {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    })
}

fn canonical_ipv6(authority: &[u8]) -> Result<Cow<'_, str>, BadHost> {
    let text = std::str::from_utf8(authority).map_err(|_| BadHost)?;
    let (address, rest) = text[1..].split_once(']').ok_or(BadHost)?;
    if !rest.is_empty() {
        check_port(rest.strip_prefix(':').ok_or(BadHost)?.as_bytes())?;
    }
    let parsed: Ipv6Addr = address.parse().map_err(|_| BadHost)?;
    let canonical = format!("[{parsed}]");
    let as_sent = &text[..address.len() + 2];
    Ok(if as_sent == canonical {
        Cow::Borrowed(as_sent)
    } else {
        Cow::Owned(canonical)
    })
}

/// RFC 3986 3.2.3 allows an empty port.
fn check_port(port: &[u8]) -> Result<(), BadHost> {
    if port.len() > 5 {
        return Err(BadHost);
    }
    let mut number = 0_u32;
    for &byte in port {
        if !byte.is_ascii_digit() {
            return Err(BadHost);
        }
        number = number * 10 + u32::from(byte - b'0');
    }
    if number > u32::from(u16::MAX) {
        return Err(BadHost);
    }
    Ok(())
}

/// Whether a canonical host is an address: no wildcard covers those.
pub(crate) fn is_address(host: &str) -> bool {
    host.starts_with('[')
        || host.ends_with(|last: char| last.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests;
