//! The request's head for an HTTP/2 upstream (RFC 9113 section 8.3): the fields that HTTP/1.1 would get, without what
//! is of a connection.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request,
    header::{CONTENT_LENGTH, FORWARDED, SEC_WEBSOCKET_KEY, TE},
    uri::{Authority, PathAndQuery, Scheme as UriScheme, Uri},
};

use super::{
    Fate, Seen, UpstreamHead, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO,
    connection_options, expects_body, has_token, replaces, rules_added,
};
use crate::{
    config::ForwardedField,
    proxy::{
        client::ClientCertificate,
        error::Failure,
        forwarded::{Sender, forwarded_for, forwarded_host, forwarded_proto},
        max_forwards,
    },
    route::settings::HostHeader,
    upstream::Address,
};

impl UpstreamHead<'_> {
    /// The head as HTTP/2 has it.
    ///
    /// # Errors
    /// 400 if the client's `Host` can't be said as an authority.
    pub fn http2(&self) -> Result<Request<()>, Failure> {
        let mut request = Request::new(());
        *request.method_mut() = self.request.method.clone();
        *request.uri_mut() = self.uri()?;
        if self.upgrade.is_some() {
            // RFC 8441 section 4.
            *request.method_mut() = Method::CONNECT;
            let protocol = h2::ext::Protocol::from_static("websocket");
            request.extensions_mut().insert(protocol);
        }
        let fields = request.headers_mut();
        fields.reserve(self.request.headers.len() + 4);
        let seen = self.copy_fields(fields);
        self.add_forwarded(fields);
        if let Some(ClientCertificate { name, value }) = self.certificate() {
            fields.insert(name, value.clone());
        }
        for (name, value) in rules_added(&self.settings.request_headers) {
            fields.append(name, value.clone());
        }
        if seen.takes_trailers {
            fields.insert(TE, HeaderValue::from_static("trailers"));
        }
        let announces =
            |length| length > 0 || expects_body(&self.request.method) || seen.length_announced;
        if self.upgrade.is_some() {
            // It has no meaning there (RFC 8441 section 5), nor does a length.
            fields.remove(SEC_WEBSOCKET_KEY);
            return Ok(request);
        }
        if let Some(length) = self.length.filter(|&length| announces(length)) {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(request)
    }

    fn uri(&self) -> Result<Uri, Failure> {
        let path = Bytes::from(self.path.pieces().concat());
        let path = PathAndQuery::from_maybe_shared(path)
            .map_err(|_| Failure::malformed("malformed request target"))?;
        let scheme = match self.upstream.identity.tls {
            Some(_) => UriScheme::HTTPS,
            None => UriScheme::HTTP,
        };
        let uri = Uri::builder().scheme(scheme).path_and_query(path);
        uri.authority(self.authority()?)
            .build()
            .map_err(|_| Failure::malformed("malformed request target"))
    }

    fn authority(&self) -> Result<Authority, Failure> {
        let written = match &self.settings.host_header {
            // A client of HTTP/1.0 may name no host.
            HostHeader::Preserve if self.target.authority.is_empty() => self.upstream_authority(),
            HostHeader::Preserve => match self.request.uri.authority() {
                Some(authority) => return Ok(authority.clone()),
                None => Bytes::copy_from_slice(self.target.authority),
            },
            HostHeader::Literal(literal) => Bytes::copy_from_slice(literal.as_bytes()),
            HostHeader::Upstream => self.upstream_authority(),
        };
        // What is no authority as it is written, such as a name in other letters than ASCII, is one as routes know it.
        Authority::from_maybe_shared(written)
            .or_else(|_| Authority::try_from(&*self.target.host))
            .map_err(|_| Failure::malformed("this Host cannot be said over HTTP/2"))
    }

    fn upstream_authority(&self) -> Bytes {
        match self.upstream.identity.endpoint.written() {
            Address::Unix(_) => Bytes::from_static(b"localhost"),
            address => Bytes::from(address.to_string()),
        }
    }

    fn copy_fields(&self, fields: &mut HeaderMap) -> Seen {
        let named = connection_options(&self.request.headers);
        let rules = &self.settings.request_headers;
        let mut seen = Seen::default();
        for (name, value) in &self.request.headers {
            match self.fate(name) {
                Fate::Stays => continue,
                Fate::Te => seen.takes_trailers |= has_token(value, b"trailers"),
                Fate::ContentLength => seen.length_announced = true,
                _ if named.contains(name) || replaces(rules, name) => {}
                Fate::MaxForwards => {
                    let fewer = max_forwards::one_fewer(value);
                    fields.append(name, fewer.unwrap_or_else(|| value.clone()));
                }
                // Crumbs stay crumbs: the upstream joins them (section 8.2.3).
                Fate::Cookie | Fate::GoesOn => {
                    fields.append(name, value.clone());
                }
            }
        }
        seen
    }

    fn add_forwarded(&self, fields: &mut HeaderMap) {
        let headers = &self.request.headers;
        let rules = &self.settings.request_headers;
        let prior = |name| match self.sender {
            Sender::Trusted => headers.get(name),
            Sender::Unknown => None,
        };
        // Made of what are field values already, or of addresses.
        let mut add = |name, value: Vec<u8>| {
            if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
                fields.insert(name, value);
            }
        };
        if self.tells_by_rfc7239() {
            let mut value = Vec::with_capacity(64);
            self.write_rfc7239(&mut value);
            add(FORWARDED, value);
        }
        if self.forwarded == ForwardedField::Instead {
            return;
        }
        if !replaces(rules, &X_FORWARDED_FOR) {
            let mut value = Vec::with_capacity(48);
            let known = headers.get_all(X_FORWARDED_FOR);
            forwarded_for(known.iter(), self.client, self.sender, &mut value);
            add(X_FORWARDED_FOR, value);
        }
        if !replaces(rules, &X_FORWARDED_PROTO) {
            let scheme = forwarded_proto(prior(X_FORWARDED_PROTO), self.scheme, self.sender);
            add(X_FORWARDED_PROTO, scheme.as_str().into());
        }
        if !replaces(rules, &X_FORWARDED_HOST) && !self.target.authority.is_empty() {
            let authority = self.target.authority;
            let host = forwarded_host(prior(X_FORWARDED_HOST), authority, self.sender);
            add(X_FORWARDED_HOST, host.into());
        }
    }
}
