//! What a gRPC client gets instead of a response of ours: a status in its own words, as a response of trailers only
//! ("PROTOCOL-HTTP2" of gRPC, Responses). A 503 with a text would tell it no more than that something is broken.

use std::{fmt::Write, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header::CONTENT_TYPE,
    request::Parts,
};

use super::{Proxy, body::ResponseBody, error::Failure};
use crate::route::Route;

/// The code of the status.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Its text, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is a gRPC call: over HTTP/2, of `application/grpc` or `application/grpc+proto` and the like.
pub fn is_call(request: &Parts) -> bool {
    request.version == Version::HTTP_2 && is_grpc(&request.headers)
}

fn is_grpc(fields: &HeaderMap) -> bool {
    const KIND: &[u8] = b"application/grpc";
    let kind = fields.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let split = kind.and_then(|kind| kind.split_at_checked(KIND.len()));
    split.is_some_and(|(kind, rest)| {
        // Media types know no case (RFC 9110 section 8.3.1).
        kind.eq_ignore_ascii_case(KIND) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
    })
}

impl Proxy {
    /// How long a client may be silent in mid-body.
    pub(super) fn body_timeout(&self, route: &Route) -> Duration {
        let of_route = route.settings.timeouts.client_body;
        of_route.unwrap_or(self.limits.body)
    }

    /// The same of who makes this request: a call may have nothing to say for as long as its upstream may.
    pub(super) fn patience(&self, request: &Parts, route: &Route) -> Duration {
        let timeouts = &route.settings.timeouts;
        match timeouts.client_body {
            None if is_call(request) => self.limits.body.max(timeouts.idle),
            _ => self.body_timeout(route),
        }
    }

    /// How long a client may leave its window shut that asked for this, and is answered with these fields.
    pub(super) fn patience_with_reader(
        &self,
        request: &Parts,
        answer: &HeaderMap,
        route: &Route,
    ) -> Duration {
        // The client's word alone would make a call of any download.
        match is_call(request) && is_grpc(answer) {
            // It may work on what it has for as long as its upstream may be silent.
            true => self.patience(request, route).max(self.limits.body),
            false => self.limits.body,
        }
    }
}

impl Failure {
    /// The response to a gRPC call: 200, and the status as gRPC maps it.
    pub fn into_grpc(self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::empty());
        *response.version_mut() = Version::HTTP_11;
        let fields: &mut HeaderMap = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(GRPC_STATUS, HeaderValue::from(code(self.status)));
        let text = format!("{}: {}", self.status, self.details);
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&text)) {
            fields.insert(GRPC_MESSAGE, message);
        }
        self.explain(fields);
        response
    }
}

/// `http-grpc-status-mapping` of gRPC.
fn code(status: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const PERMISSION_DENIED: u16 = 7;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing to a String does not fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_call_is_told_by_its_media_type() {
        for (version, kind, expected) in [
            (Version::HTTP_2, "application/grpc", true),
            (Version::HTTP_2, "Application/GRPC+proto", true),
            (Version::HTTP_2, "application/grpc; a=b", true),
            (Version::HTTP_2, "application/grpc ;a=b", true),
            (Version::HTTP_2, "application/grpc-web", false),
            (Version::HTTP_2, "application/grp", false),
            (Version::HTTP_2, "application/json", false),
            (Version::HTTP_11, "application/grpc", false),
        ] {
            let request = Request::post("/").version(version);
            let request = request.header(CONTENT_TYPE, kind).body(()).unwrap();
            assert_eq!(is_call(&request.into_parts().0), expected, "{kind}");
        }
    }

    #[test]
    fn messages_are_percent_encoded_where_fields_need_it() {
        assert_eq!(
            percent_encoded("100% of bücher\r\n"),
            "100%25 of b%C3%BCcher%0D%0A"
        );
    }
}
