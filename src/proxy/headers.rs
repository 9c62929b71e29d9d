//! Rewriting heads: the request's is serialised straight into bytes for the upstream, the response's fields are
//! amended in place. Hop-by-hop fields (RFC 9110 section 7.6.1) stay behind in both directions.

use std::{io::Write, net::IpAddr};

use bytes::BytesMut;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
};
use smallvec::SmallVec;

use super::{
    forwarded::{Scheme, Sender, aliases_forwarded, forwarded_for, forwarded_proto},
    target::Target,
};
use crate::{
    route::settings::{HeaderRules, HostHeader, Settings},
    upstream::{Address, Upstream, http1::upload::RequestFraming},
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What a request head upstream is made of.
pub struct UpstreamHead<'r> {
    /// The request as it came.
    pub request: &'r Parts,
    /// Its target.
    pub target: &'r Target<'r>,
    /// The path and query to ask for.
    pub path: Path<'r>,
    /// The route's settings.
    pub settings: &'r Settings,
    /// Who it goes to.
    pub upstream: &'r Upstream,
    /// Who asks.
    pub client: IpAddr,
    /// Whether the client is a trusted proxy.
    pub sender: Sender,
    /// How the client's connection is secured.
    pub scheme: Scheme,
    /// The body's length, if it is known.
    pub length: Option<u64>,
    /// It asks for a WebSocket.
    pub upgrade: bool,
}

/// A path in the pieces it is written in, so that nothing is joined before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path<'r> {
    /// `add_prefix`.
    pub added: &'r str,
    /// The path, or what stripping left of it.
    pub rest: &'r str,
    /// `?` and the query, if there is one.
    pub query: &'r str,
}

impl UpstreamHead<'_> {
    /// Serialises the head into `out`; how the body is to be framed.
    pub fn write(&self, out: &mut Vec<u8>) -> RequestFraming {
        out.clear();
        self.write_request_line(out);
        self.write_host(out);
        let named = connection_options(&self.request.headers);
        let rules = &self.settings.request_headers;
        let mut cookies = 0;
        for (name, value) in &self.request.headers {
            if *name == COOKIE {
                cookies += 1;
            } else if self.goes_on(name) && !named.contains(name) && !replaces(rules, name) {
                line(out, name, value.as_bytes());
            }
        }
        self.write_cookies(out, cookies, &named);
        self.write_forwarded(out);
        for (name, value) in rules.set.iter().chain(&rules.add) {
            line(out, name, value.as_bytes());
        }
        if asks_for_trailers(&self.request.headers) {
            out.extend_from_slice(b"te: trailers\r\n");
        }
        if self.upgrade {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        }
        let framing = self.write_framing(out);
        out.extend_from_slice(b"\r\n");
        framing
    }

    fn write_request_line(&self, out: &mut Vec<u8>) {
        let Path { added, rest, query } = self.path;
        out.extend_from_slice(self.request.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(added.as_bytes());
        if rest.is_empty() && added.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(rest.as_bytes());
        out.extend_from_slice(query.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    fn write_host(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"host: ");
        match &self.settings.host_header {
            HostHeader::Preserve => out.extend_from_slice(self.target.authority),
            HostHeader::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
            HostHeader::Upstream => match self.upstream.identity.endpoint.written() {
                // A path is no host: say what a client of a local socket conventionally says.
                Address::Unix(_) => out.extend_from_slice(b"localhost"),
                address => write!(out, "{address}").expect("writing to a Vec does not fail"),
            },
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Whether a field of the client's goes on as it is.
    fn goes_on(&self, name: &HeaderName) -> bool {
        const STAYS: [HeaderName; 7] = [
            HOST,
            CONNECTION,
            CONTENT_LENGTH,
            TRANSFER_ENCODING,
            TE,
            UPGRADE,
            X_FORWARDED_FOR,
        ];
        if STAYS.contains(name) || name == "keep-alive" || name == "proxy-connection" {
            return false;
        }
        if *name == EXPECT && self.request.version == Version::HTTP_10 {
            return false;
        }
        match self.sender {
            Sender::Unknown => !aliases_forwarded(name),
            Sender::Trusted => *name != X_FORWARDED_PROTO && *name != X_FORWARDED_HOST,
        }
    }

    /// HTTP/2 splits cookies into crumbs (RFC 9113 section 8.2.3); HTTP/1.1 upstreams expect one line.
    fn write_cookies(&self, out: &mut Vec<u8>, count: usize, named: &[HeaderName]) {
        if count == 0
            || named.contains(&COOKIE)
            || replaces(&self.settings.request_headers, &COOKIE)
        {
            return;
        }
        out.extend_from_slice(b"cookie: ");
        for (index, value) in self.request.headers.get_all(COOKIE).iter().enumerate() {
            if index > 0 {
                out.extend_from_slice(b"; ");
            }
            out.extend_from_slice(value.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }

    fn write_forwarded(&self, out: &mut Vec<u8>) {
        let headers = &self.request.headers;
        let rules = &self.settings.request_headers;
        if !replaces(rules, &X_FORWARDED_FOR) {
            let mut value = BytesMut::new();
            forwarded_for(
                headers.get_all(X_FORWARDED_FOR).iter(),
                self.client,
                self.sender,
                &mut value,
            );
            line(out, &X_FORWARDED_FOR, &value);
        }
        if !replaces(rules, &X_FORWARDED_PROTO) {
            let scheme = forwarded_proto(headers.get(X_FORWARDED_PROTO), self.scheme, self.sender);
            line(out, &X_FORWARDED_PROTO, scheme.as_str().as_bytes());
        }
        if !replaces(rules, &X_FORWARDED_HOST) && !self.target.authority.is_empty() {
            let prior = headers
                .get(X_FORWARDED_HOST)
                .filter(|prior| self.sender == Sender::Trusted && !prior.is_empty());
            line(
                out,
                &X_FORWARDED_HOST,
                prior.map_or(self.target.authority, HeaderValue::as_bytes),
            );
        }
    }

    fn write_framing(&self, out: &mut Vec<u8>) -> RequestFraming {
        match self.length {
            None => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                return RequestFraming::Chunked;
            }
            // Nothing announces the absence of a body but for methods that expect one (RFC 9110 section 8.6).
            Some(0)
                if !expects_body(&self.request.method)
                    && !self.request.headers.contains_key(CONTENT_LENGTH) => {}
            Some(length) => {
                out.extend_from_slice(b"content-length: ");
                out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
        RequestFraming::Length
    }
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn expects_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// Whether the rules take this field away or put another in its place.
fn replaces(rules: &HeaderRules, name: &HeaderName) -> bool {
    rules.remove.contains(name) || rules.set.iter().any(|(set, _)| set == name)
}

/// The fields that `Connection` lines name as hop-by-hop.
fn connection_options(headers: &HeaderMap) -> SmallVec<[HeaderName; 2]> {
    let mut named = SmallVec::new();
    for value in headers.get_all(CONNECTION) {
        for option in value
            .as_bytes()
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
        {
            let usual = [&b"keep-alive"[..], b"close", b"upgrade", b"te"];
            if !usual.iter().any(|usual| option.eq_ignore_ascii_case(usual))
                && let Ok(name) = HeaderName::from_bytes(option)
            {
                named.push(name);
            }
        }
    }
    named
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|item| {
            // Parameters, as of `trailers;q=1`, don't change what is meant.
            let item = item.split(|byte| *byte == b';').next().unwrap_or_default();
            item.trim_ascii().eq_ignore_ascii_case(token)
        })
    })
}

/// Whether a chunked body is more than chunked: such codings are hop-by-hop, and we do not undo them.
pub fn has_other_coding(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(TRANSFER_ENCODING).iter();
    match (lines.next(), lines.next()) {
        (None, _) => false,
        (Some(only), None) => !only.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => true,
    }
}

/// Whether the client takes trailers.
pub fn asks_for_trailers(headers: &HeaderMap) -> bool {
    headers.contains_key(TE) && has_token(headers, &TE, b"trailers")
}

/// Whether the request asks for a WebSocket over HTTP/1.1 (RFC 6455 section 4.1). Other upgrades are not passed on.
pub fn asks_for_websocket(request: &Parts) -> bool {
    request.version == Version::HTTP_11
        && request.headers.contains_key(UPGRADE)
        && request.method == Method::GET
        && has_token(&request.headers, &CONNECTION, b"upgrade")
        && request
            .headers
            .get(UPGRADE)
            .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether the body waits for `100 Continue`; HTTP/1.0 knows no such thing (RFC 9110 section 10.1.1).
pub fn expects_continue(request: &Parts) -> bool {
    request.version != Version::HTTP_10
        && request
            .headers
            .get(EXPECT)
            .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Applies `response_headers`: remove, set, add.
pub fn apply(rules: &HeaderRules, headers: &mut HeaderMap) {
    for name in &rules.remove {
        headers.remove(name);
    }
    for (name, value) in &rules.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &rules.add {
        headers.append(name, value.clone());
    }
}

/// An interim response as HTTP/1.1 sends it.
pub fn interim_head(status: http::StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let reason = status.canonical_reason().unwrap_or("Interim");
    write!(out, "HTTP/1.1 {} {reason}\r\n", status.as_str())
        .expect("writing to a Vec does not fail");
    for (name, value) in headers
        .iter()
        .filter(|(name, _)| *name != CONTENT_LENGTH && *name != TRAILER)
    {
        line(&mut out, name, value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}
