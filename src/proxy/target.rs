//! Which host and path a request is for: one canonical answer, or 400 (RFC 9112 section 3.2, RFC 9113 section 8.3.1).

use std::borrow::Cow;

use http::{HeaderValue, Method, StatusCode, Version, header::HOST, request::Parts, uri::Scheme};
use memchr::memchr;

use super::error::Failure;
use crate::route::host;

/// Where a request wants to go.
#[derive(Debug)]
pub struct Target<'r> {
    /// The host in the form the table is keyed by; empty for an HTTP/1.0 request without one.
    pub host: Cow<'r, str>,
    /// The authority as the client wrote it, for `Host` upstream.
    pub authority: &'r [u8],
    /// The path as it came, without query: starts with `/`, or is `*`.
    pub path: &'r str,
    /// `?` and the query as they came; empty if there is none.
    pub query: &'r str,
}

/// The target of a request, of at most `longest` bytes.
pub fn of(request: &Parts, longest: usize) -> Result<Target<'_>, Failure> {
    // For no resource at all: 405 would have to say which methods are allowed (RFC 9110 sections 9.1 and 15.5.6).
    if request.method == Method::CONNECT {
        return Err(Failure::new(
            StatusCode::NOT_IMPLEMENTED,
            "http_request_denied",
            "CONNECT is not served here",
        ));
    }
    let (path, query) = path_and_query(request, longest)?;
    let (authority, host) = host_of(request)?;
    Ok(Target {
        host,
        authority,
        path,
        query,
    })
}

/// The path, and what of the target follows it.
fn path_and_query(request: &Parts, longest: usize) -> Result<(&str, &str), Failure> {
    // A host and nothing else is for CONNECT alone (RFC 9112 section 3.2.3).
    let Some(both) = request.uri.path_and_query() else {
        return Err(Failure::malformed(
            "the target is neither a path nor a whole URL",
        ));
    };
    let (path, both) = (both.path(), both.as_str());
    if request.method == Method::OPTIONS && names_no_path(request, both) {
        return Ok(("*", ""));
    }
    if both.len() > longest {
        return Err(Failure::new(
            StatusCode::URI_TOO_LONG,
            "http_request_error",
            "request target too long",
        ));
    }
    if path == "*" && request.method != Method::OPTIONS {
        return Err(Failure::malformed("the target * is for OPTIONS alone"));
    }
    let query = match both.strip_prefix(path) {
        Some(query) => query,
        // `http://a.test?x`: the path that isn't written is `/`. HTTP/2 has to write it (RFC 9113 section 8.3.1).
        None if request.version < Version::HTTP_2 => both,
        None => return Err(Failure::malformed(":path does not start with /")),
    };
    // What else no URI may have was refused with the head, and so was a backtick in the path (RFC 3986 section 2).
    match memchr(b'`', query.as_bytes()) {
        None => Ok((path, query)),
        Some(_) => Err(Failure::malformed("the query has a backtick")),
    }
}

/// Whether the target is a URL that ends with its authority: the server as a whole is meant (RFC 9112 section 3.2.4).
/// `http` reads a `/` there; one that was written lies in the same bytes, right behind the authority.
fn names_no_path(request: &Parts, path_and_query: &str) -> bool {
    let authority = request.uri.authority().filter(|_| {
        // HTTP/2 has a field for each, and writes `*` (RFC 9113 section 8.3.1).
        request.version < Version::HTTP_2 && path_and_query == "/"
    });
    authority.is_some_and(|authority| {
        let written = authority.as_str().as_bytes().as_ptr_range();
        written.end != path_and_query.as_ptr()
    })
}

/// The authority that counts, as it was written, and its host.
fn host_of(request: &Parts) -> Result<(&[u8], Cow<'_, str>), Failure> {
    let own_port = match request.uri.scheme().map(own_port) {
        None => 80,
        Some(Some(port)) => port,
        Some(None) => {
            return Err(Failure::malformed("the scheme is neither http nor https"));
        }
    };
    let mut hosts = request.headers.get_all(HOST).iter();
    let named = hosts.next();
    if hosts.next().is_some() {
        return Err(Failure::malformed("more than one Host"));
    }
    match (request.uri.authority(), named) {
        // Even beside a whole URL (RFC 9112 section 3.2).
        (_, None) if request.version == Version::HTTP_11 => Err(Failure::malformed("no Host")),
        (Some(authority), named) => {
            let authority = authority.as_str().as_bytes();
            let canonical = canonical(authority)?;
            // A Host beside it is redundant or a try at confusing the next hop.
            if named.is_some_and(|named| !agrees(named, authority, &canonical, own_port)) {
                return Err(Failure::malformed(
                    "Host differs from the request's authority",
                ));
            }
            Ok((authority, canonical))
        }
        (None, Some(named)) => Ok((named.as_bytes(), canonical(named.as_bytes())?)),
        (None, None) if request.version == Version::HTTP_10 => Ok((b"", Cow::Borrowed(""))),
        (None, None) => Err(Failure::malformed("no Host")),
    }
}

fn canonical(authority: &[u8]) -> Result<Cow<'_, str>, Failure> {
    host::canonical(authority).map_err(|_| Failure::malformed("malformed Host"))
}

/// Whether `Host` means the same as the authority: the host, and the port too, which may be left out if it is the
/// scheme's own (RFC 9110 section 4.2.3).
fn agrees(named: &HeaderValue, authority: &[u8], host: &str, own_port: u16) -> bool {
    let port = |authority| port(authority).unwrap_or(own_port);
    host::canonical(named.as_bytes()).is_ok_and(|named| named == host)
        && port(named.as_bytes()) == port(authority)
}

/// The port of an authority whose host is canonical; `None` if it has none, or an empty one.
fn port(authority: &[u8]) -> Option<u16> {
    let behind_address = authority.rsplit(|&byte| byte == b']').next()?;
    let colon = behind_address.iter().position(|&byte| byte == b':')?;
    let digits = std::str::from_utf8(&behind_address[colon + 1..]).ok()?;
    digits.parse().ok()
}

/// The port that a URL of this scheme means without one; `None` for schemes that are not served. HTTP/2 leaves their
/// case to the client.
fn own_port(scheme: &Scheme) -> Option<u16> {
    [("http", 80), ("https", 443)]
        .into_iter()
        .find_map(|(ours, port)| scheme.as_str().eq_ignore_ascii_case(ours).then_some(port))
}
