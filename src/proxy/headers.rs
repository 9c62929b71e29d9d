//! Rewriting heads: the request's is serialised straight into bytes for the upstream, the response's fields are
//! amended in place. Hop-by-hop fields (RFC 9110 section 7.6.1) stay behind in both directions.

mod http2;

use std::{io::Write, net::IpAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, TRAILER, TRANSFER_ENCODING},
    request::Parts,
};
use smallvec::SmallVec;

use super::{
    client::ClientCertificate,
    forwarded::{Scheme, Sender, forwarded_for, forwarded_host, forwarded_proto, hop_address},
    max_forwards, rfc7239,
    target::Target,
    upgrade::Handshake,
};
use crate::{
    config::ForwardedField,
    route::{
        UpstreamTarget,
        settings::{HeaderRules, HostHeader, Settings},
    },
    upstream::{
        Address, Upstream,
        client_fields::{is_spelling_of, tells_of_a_client},
        http1::upload::RequestFraming,
    },
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
    pub path: &'r UpstreamTarget<'r>,
    /// The route's settings.
    pub settings: &'r Settings,
    /// Who it goes to.
    pub upstream: &'r Upstream,
    /// The address of who asks, as text.
    pub client: &'r str,
    /// Its certificate, if upstreams are told of it.
    pub certificate: Option<&'r ClientCertificate>,
    /// What such certificates are told by: no client may send it.
    pub certificate_fields: &'r [HeaderName],
    /// The same as an address.
    pub connection: IpAddr,
    /// By which field the client is told of.
    pub forwarded: ForwardedField,
    /// Whether the client is a trusted proxy.
    pub sender: Sender,
    /// How the client's connection is secured.
    pub scheme: Scheme,
    /// The body's length, if it is known.
    pub length: Option<u64>,
    /// It asks for a WebSocket.
    pub upgrade: Option<&'r Handshake>,
}

impl UpstreamHead<'_> {
    /// Serialises the head into `out`; how the body is to be framed.
    pub fn write(&self, out: &mut Vec<u8>) -> RequestFraming {
        out.clear();
        self.write_request_line(out);
        self.write_host(out);
        let seen = self.write_fields(out);
        self.write_forwarded(out);
        if let Some(ClientCertificate { name, value }) = self.certificate() {
            line(out, name.as_str(), value.as_bytes());
        }
        for (name, value) in rules_added(&self.settings.request_headers) {
            line(out, name.as_str(), value.as_bytes());
        }
        if seen.takes_trailers {
            out.extend_from_slice(b"te: trailers\r\n");
        }
        if let Some(handshake) = self.upgrade {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
            if let Handshake::Connect(key) = handshake {
                line(out, "sec-websocket-key", key.as_bytes());
            }
        }
        let framing = self.write_framing(out, seen.length_announced);
        out.extend_from_slice(b"\r\n");
        framing
    }

    /// Writes the client's own fields that go on, in one pass: look-ups by name would each cost a hash.
    fn write_fields(&self, out: &mut Vec<u8>) -> Seen {
        let headers = &self.request.headers;
        let named = connection_options(headers);
        let rules = &self.settings.request_headers;
        let mut seen = Seen::default();
        for (name, value) in headers {
            match self.fate(name) {
                Fate::Stays => {}
                Fate::Cookie => seen.cookies += 1,
                Fate::Te => seen.takes_trailers |= has_token(value, b"trailers"),
                Fate::ContentLength => seen.length_announced = true,
                _ if named.contains(name) || replaces(rules, name) => {}
                Fate::MaxForwards => {
                    let fewer = max_forwards::one_fewer(value);
                    let value = fewer.as_ref().unwrap_or(value);
                    line(out, name.as_str(), value.as_bytes());
                }
                Fate::GoesOn => line(out, name.as_str(), value.as_bytes()),
            }
        }
        if seen.cookies > 0 && !named.contains(&COOKIE) && !replaces(rules, &COOKIE) {
            write_cookies(out, headers);
        }
        seen
    }

    /// What becomes of a field of this name, whatever the route's rules say.
    fn fate(&self, name: &HeaderName) -> Fate {
        match name.as_str() {
            "host" | "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding"
            | "upgrade" | "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => {
                Fate::Stays
            }
            // CGI and its kin read `_` as `-`: to them these would frame the message.
            "content_length" | "transfer_encoding" => Fate::Stays,
            "forwarded" if self.forwarded != ForwardedField::Off => Fate::Stays,
            "cookie" => Fate::Cookie,
            "te" => Fate::Te,
            "content-length" => Fate::ContentLength,
            // HTTP/1.0 knows no such thing (RFC 9110 section 10.1.1).
            "expect" if self.request.version == Version::HTTP_10 => Fate::Stays,
            "max-forwards" if max_forwards::counts(&self.request.method) => Fate::MaxForwards,
            // Of a handshake of HTTP/1.1 alone, where we are the client.
            "sec-websocket-key" if self.upgrade.is_some_and(Handshake::is_connect) => Fate::Stays,
            // Who is trusted for what it says may pass on a client's spelling of it, which upstreams may take for the name.
            text if (self.sender == Sender::Unknown || text.contains('_'))
                && tells_of_a_client(text) =>
            {
                Fate::Stays
            }
            _ if self.is_of_a_certificate(name) => Fate::Stays,
            _ => Fate::GoesOn,
        }
    }

    /// Whoever sent it: only a handshake with us proves a certificate (RFC 9440 section 2.4).
    fn is_of_a_certificate(&self, name: &HeaderName) -> bool {
        let mut fields = self.certificate_fields.iter();
        fields.any(|field| is_spelling_of(name, field))
    }

    /// The field that tells of the client's certificate, unless the route's rules do without.
    fn certificate(&self) -> Option<&ClientCertificate> {
        let rules = &self.settings.request_headers;
        let told = |certificate: &&ClientCertificate| !replaces(rules, &certificate.name);
        self.certificate.filter(told)
    }

    fn write_request_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.request.method.as_str().as_bytes());
        out.push(b' ');
        for piece in self.path.pieces() {
            out.extend_from_slice(piece.as_bytes());
        }
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

    fn write_forwarded(&self, out: &mut Vec<u8>) {
        let headers = &self.request.headers;
        let rules = &self.settings.request_headers;
        if self.tells_by_rfc7239() {
            out.extend_from_slice(b"forwarded: ");
            self.write_rfc7239(out);
            out.extend_from_slice(b"\r\n");
        }
        if self.forwarded == ForwardedField::Instead {
            return;
        }
        let prior = |name| match self.sender {
            Sender::Trusted => headers.get(name),
            Sender::Unknown => None,
        };
        if !replaces(rules, &X_FORWARDED_FOR) {
            out.extend_from_slice(b"x-forwarded-for: ");
            // Not looked up for what would not be believed.
            let prior = (self.sender == Sender::Trusted).then(|| headers.get_all(X_FORWARDED_FOR));
            let prior = prior.iter().flatten();
            forwarded_for(prior, self.client, self.sender, out);
            out.extend_from_slice(b"\r\n");
        }
        if !replaces(rules, &X_FORWARDED_PROTO) {
            let scheme = forwarded_proto(prior(X_FORWARDED_PROTO), self.scheme, self.sender);
            line(out, "x-forwarded-proto", scheme.as_str().as_bytes());
        }
        if !replaces(rules, &X_FORWARDED_HOST) && !self.target.authority.is_empty() {
            let authority = self.target.authority;
            let host = forwarded_host(prior(X_FORWARDED_HOST), authority, self.sender);
            line(out, "x-forwarded-host", host);
        }
    }

    fn tells_by_rfc7239(&self) -> bool {
        let rules = &self.settings.request_headers;
        self.forwarded != ForwardedField::Off && !replaces(rules, &FORWARDED)
    }

    /// The value of `Forwarded`. Where it stands in place of `X-Forwarded-*`, our element is added to those of a trusted
    /// proxy; beside them it says what they say (RFC 7239 section 7.4), and what a client may have got past a proxy that
    /// does not know of it is not repeated.
    fn write_rfc7239(&self, out: &mut Vec<u8>) {
        let headers = &self.request.headers;
        let authority = self.target.authority;
        let own = Some(self.connection.to_canonical());
        if self.sender == Sender::Unknown || self.forwarded == ForwardedField::Instead {
            if self.sender == Sender::Trusted {
                rfc7239::write_prior(headers, out);
            }
            rfc7239::write_node(own, out);
            return rfc7239::write_rest(authority, self.scheme, out);
        }
        let lines = headers.get_all(X_FORWARDED_FOR).iter();
        let hops = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
        let hops = hops.filter(|hop| !hop.trim_ascii().is_empty());
        for (index, node) in hops.map(hop_address).chain([own]).enumerate() {
            if index > 0 {
                out.extend_from_slice(b", ");
            }
            rfc7239::write_node(node, out);
            if index == 0 {
                let (host, proto) = (
                    headers.get(X_FORWARDED_HOST),
                    headers.get(X_FORWARDED_PROTO),
                );
                let host = forwarded_host(host, authority, self.sender);
                let scheme = forwarded_proto(proto, self.scheme, self.sender);
                rfc7239::write_rest(host, scheme, out);
            }
        }
    }

    fn write_framing(&self, out: &mut Vec<u8>, length_announced: bool) -> RequestFraming {
        match self.length {
            None => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                return RequestFraming::Chunked;
            }
            // Nothing announces the absence of a body but for methods that expect one (RFC 9110 section 8.6).
            Some(0) if !expects_body(&self.request.method) && !length_announced => {}
            Some(length) => {
                out.extend_from_slice(b"content-length: ");
                out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
        RequestFraming::Length
    }
}

/// What becomes of a client's field.
enum Fate {
    /// It is of the client's connection, or ours to say.
    Stays,
    GoesOn,
    Cookie,
    Te,
    ContentLength,
    MaxForwards,
}

/// What the fields of a request say, noted while they were written.
#[derive(Default)]
struct Seen {
    cookies: usize,
    takes_trailers: bool,
    length_announced: bool,
}

/// HTTP/2 splits cookies into crumbs (RFC 9113 section 8.2.3); HTTP/1.1 upstreams expect one line.
fn write_cookies(out: &mut Vec<u8>, headers: &HeaderMap) {
    out.extend_from_slice(b"cookie: ");
    for (index, value) in headers.get_all(COOKIE).iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn rules_added(rules: &HeaderRules) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
    rules.set.iter().chain(&rules.add)
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn expects_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// Whether the rules take this field away or put another in its place. What some upstreams read as its name goes too.
fn replaces(rules: &HeaderRules, name: &HeaderName) -> bool {
    if rules.remove.is_empty() && rules.set.is_empty() {
        return false;
    }
    let mut replaced = rules
        .remove
        .iter()
        .chain(rules.set.iter().map(|(set, _)| set));
    replaced.any(|replaced| replaced == name || is_spelling_of(name, replaced))
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

fn has_token(value: &HeaderValue, token: &[u8]) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|item| {
        // Parameters, as of `trailers;q=1`, don't change what is meant.
        let item = item.split(|byte| *byte == b';').next().unwrap_or_default();
        item.trim_ascii().eq_ignore_ascii_case(token)
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

/// Whether `Connection` has this option.
pub fn connection_has(headers: &HeaderMap, option: &[u8]) -> bool {
    let mut lines = headers.get_all(CONNECTION).iter();
    lines.any(|value| has_token(value, option))
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
        line(&mut out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}
