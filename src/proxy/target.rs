//! Which host and path a request is for: one canonical answer, or 400 (RFC 9112 section 3.2, RFC 9113 section 8.3.1).

use std::borrow::Cow;

use http::{HeaderValue, Method, Version, header::HOST, request::Parts};

use super::error::Failure;
use crate::route::host;

/// The longest request target, in bytes; 414 beyond.
pub const MAX_TARGET: usize = 16 * 1024;

/// Where a request wants to go.
#[derive(Debug)]
pub struct Target<'r> {
    /// The host in the form the table is keyed by; empty for an HTTP/1.0 request without one.
    pub host: Cow<'r, str>,
    /// The authority as the client wrote it, for `Host` upstream.
    pub authority: &'r [u8],
    /// The path as it came, without query.
    pub path: &'r str,
    /// Path and query as they came.
    pub path_and_query: &'r str,
}

/// The target of a request.
pub fn of(request: &Parts) -> Result<Target<'_>, Failure> {
    if request.method == Method::CONNECT {
        return Err(Failure::new(
            http::StatusCode::METHOD_NOT_ALLOWED,
            "http_request_denied",
            "CONNECT is not served here",
        ));
    }
    let path_and_query = request
        .uri
        .path_and_query()
        .map_or("/", |path_and_query| path_and_query.as_str());
    if path_and_query == "*" && request.method != Method::OPTIONS {
        return Err(Failure::malformed("the target * is for OPTIONS alone"));
    }
    if path_and_query.len() > MAX_TARGET {
        return Err(Failure::new(
            http::StatusCode::URI_TOO_LONG,
            "http_request_error",
            "request target longer than 16 KiB",
        ));
    }
    let mut hosts = request.headers.get_all(HOST).iter();
    let named = hosts.next();
    if hosts.next().is_some() {
        return Err(Failure::malformed("more than one Host"));
    }
    let (authority, canonical) = match (request.uri.authority(), named) {
        (Some(authority), named) => {
            let authority = authority.as_str().as_bytes();
            let canonical = canonical(authority)?;
            // A Host beside it is redundant or a try at confusing the next hop.
            if named.is_some_and(|named| !agrees(named, &canonical)) {
                return Err(Failure::malformed(
                    "Host differs from the request's authority",
                ));
            }
            (authority, canonical)
        }
        (None, Some(named)) => (named.as_bytes(), canonical(named.as_bytes())?),
        (None, None) if request.version == Version::HTTP_10 => (&b""[..], Cow::Borrowed("")),
        (None, None) => return Err(Failure::malformed("no Host")),
    };
    Ok(Target {
        host: canonical,
        authority,
        path: request.uri.path(),
        path_and_query,
    })
}

fn canonical(authority: &[u8]) -> Result<Cow<'_, str>, Failure> {
    host::canonical(authority).map_err(|_| Failure::malformed("malformed Host"))
}

fn agrees(named: &HeaderValue, canonical: &str) -> bool {
    host::canonical(named.as_bytes()).is_ok_and(|named| named == canonical)
}
