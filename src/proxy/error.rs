//! Every way a request can end without its upstream's answer, and the one place where that becomes a response.

use std::borrow::Cow;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName},
};

use super::body::ResponseBody;
use crate::{
    telemetry::metrics::Limit,
    upstream::{
        dial::DialError,
        http1::{ExchangeError, head::MalformedHead},
        http2::NoStream,
        request_body::RequestBodyError,
    },
};

/// Why a request was answered by us.
#[derive(Debug)]
pub struct Failure {
    /// The status the client gets.
    pub status: StatusCode,
    /// The RFC 9209 section 2.3 name of what happened.
    pub error: &'static str,
    /// One sentence that tells this case from its neighbours.
    pub details: Cow<'static, str>,
}

impl Failure {
    /// A failure in so many words.
    pub fn new(
        status: StatusCode,
        error: &'static str,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            error,
            details: details.into(),
        }
    }

    /// 400: what came is no request we may pass on.
    pub fn malformed(details: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "http_request_error", details)
    }

    /// 502: a 101 to what was not asked for.
    pub fn switched_unasked() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "http_protocol_error",
            "the upstream switched protocols unasked",
        )
    }

    /// 431, by the number of fields.
    pub fn too_many_fields() -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "http_request_error",
            "too many header fields",
        )
    }

    /// A connection to `upstream` could not be had.
    pub fn dial(error: &DialError, upstream: &str) -> Self {
        let (status, name) = match error {
            // Of descriptors, ports or memory: the upstream has no part in it.
            _ if error.is_ours() => (StatusCode::SERVICE_UNAVAILABLE, "proxy_internal_error"),
            DialError::Unresolved => (StatusCode::BAD_GATEWAY, "dns_error"),
            DialError::Denied => (StatusCode::BAD_GATEWAY, "destination_ip_prohibited"),
            DialError::Own => (StatusCode::BAD_GATEWAY, "proxy_loop_detected"),
            DialError::Connect(error) => match error.kind() {
                std::io::ErrorKind::ConnectionRefused => {
                    (StatusCode::BAD_GATEWAY, "connection_refused")
                }
                std::io::ErrorKind::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
                std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
                    (StatusCode::BAD_GATEWAY, "destination_ip_unroutable")
                }
                _ => (StatusCode::BAD_GATEWAY, "connection_refused"),
            },
            DialError::Header(_) => (StatusCode::BAD_GATEWAY, "connection_terminated"),
            DialError::NoHttp2 => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
            DialError::Http2(_) => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
            DialError::TlsOptions(_) => (StatusCode::BAD_GATEWAY, "proxy_configuration_error"),
            DialError::Handshake(error) => {
                let certificate = error
                    .get_ref()
                    .and_then(|source| source.downcast_ref::<rustls::Error>())
                    .is_some_and(|error| matches!(error, rustls::Error::InvalidCertificate(_)));
                (
                    StatusCode::BAD_GATEWAY,
                    if certificate {
                        "tls_certificate_error"
                    } else {
                        "tls_protocol_error"
                    },
                )
            }
        };
        Self::new(status, name, format!("upstream {upstream}: {error}"))
    }

    /// No connection to `upstream` within `timeouts.connect`.
    pub fn connect_timeout(upstream: &str) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "connection_timeout",
            format!("upstream {upstream}: connecting took too long"),
        )
    }

    /// So many were being connected to `upstream` that its turn did not come within `timeouts.connect`.
    pub fn no_turn(upstream: &str) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "connection_timeout",
            format!("upstream {upstream}: too many connections were being made to it"),
        )
    }

    /// 404: the route was taken out while the request waited for a place.
    pub fn route_gone(route: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "destination_not_found",
            format!("route {route} was taken out"),
        )
    }

    /// 503: `max_requests` leaves no room, and as many requests wait as may.
    pub fn queue_full(route: &str) -> Self {
        let details = format!("route {route} has no room for the request, and a full queue");
        Self::limit_reached(details)
    }

    /// 503: there was no room for `timeouts.queue`.
    pub fn queue_timeout(route: &str) -> Self {
        Self::limit_reached(format!("route {route} had no room for the request in time"))
    }

    fn limit_reached(details: String) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "connection_limit_reached", details)
    }

    /// `upstream` answered so, and nobody else took the request, as it seemed somebody would.
    pub fn discarded(status: StatusCode, upstream: &str) -> Self {
        let details = format!("upstream {upstream} answered {status}");
        Self::new(status, "destination_unavailable", details)
    }

    /// There was no stream for the request on the HTTP/2 connections to `upstream`.
    pub fn no_stream(error: &NoStream, upstream: &str) -> Self {
        match error {
            NoStream::Dial(error) => Self::dial(error, upstream),
            NoStream::Slow => Self::connect_timeout(upstream),
            NoStream::Full => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "connection_limit_reached",
                format!("upstream {upstream}: every stream is taken"),
            ),
        }
    }

    /// 502: a WebSocket, of an upstream that speaks HTTP/2.
    pub fn no_upgrade(upstream: &str) -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "http_upgrade_failed",
            format!("upstream {upstream} takes no WebSockets over HTTP/2"),
        )
    }

    /// 502: `upstream` answered as if it had granted a WebSocket, and has not.
    pub fn no_socket(upstream: &str, why: &str) -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "http_upgrade_failed",
            format!("upstream {upstream} {why}"),
        )
    }

    /// `upstream` gave no (good) response head.
    pub fn exchange(error: &ExchangeError, upstream: &str) -> Self {
        let (status, name) = match error {
            ExchangeError::Terminated(_) | ExchangeError::Reset(_) | ExchangeError::Refused => {
                (StatusCode::BAD_GATEWAY, "connection_terminated")
            }
            ExchangeError::Incomplete => (StatusCode::BAD_GATEWAY, "http_response_incomplete"),
            ExchangeError::Malformed(MalformedHead::TooLarge) => {
                (StatusCode::BAD_GATEWAY, "http_response_header_section_size")
            }
            ExchangeError::Malformed(MalformedHead::Coding) => {
                (StatusCode::BAD_GATEWAY, "http_response_transfer_coding")
            }
            ExchangeError::Malformed(_) => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
            ExchangeError::Timeout => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
            ExchangeError::Client(RequestBodyError::TooLarge) => return Self::body_too_large(),
            ExchangeError::Client(RequestBodyError::Broken) => {
                return Self::malformed("request body broke off");
            }
            ExchangeError::ClientTimeout => {
                return Self::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "http_request_error",
                    "request body stalled",
                );
            }
        };
        Self::new(status, name, format!("upstream {upstream}: {error}"))
    }

    /// 413, by `max_body` of the route.
    pub fn body_too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "http_request_error",
            "request body larger than this route allows",
        )
    }

    /// The limit on clients that the request went beyond, if that is what happened.
    pub fn limit(&self) -> Option<Limit> {
        match self.status {
            StatusCode::REQUEST_TIMEOUT => Some(Limit::Body),
            StatusCode::PAYLOAD_TOO_LARGE => Some(Limit::BodySize),
            StatusCode::URI_TOO_LONG => Some(Limit::TargetSize),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Some(Limit::HeaderSize),
            _ => None,
        }
    }

    /// The response to a request of this method: `Proxy-Status` (RFC 9209) and a short text, of which HEAD gets
    /// the length alone. (Over HTTP/2 hyper would send it all.)
    pub fn into_response(self, method: &Method) -> Response<ResponseBody> {
        let text = format!("{}: {}\n", self.status, self.details);
        let length = HeaderValue::from(text.len());
        let body = match *method {
            Method::HEAD => ResponseBody::empty(),
            _ => ResponseBody::full(Bytes::from(text)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(CONTENT_LENGTH, length);
        self.explain(headers);
        response
    }

    /// Adds `Proxy-Status`.
    pub(super) fn explain(&self, headers: &mut HeaderMap) {
        headers.insert(PROXY_STATUS, self.proxy_status());
    }

    fn proxy_status(&self) -> HeaderValue {
        let mut value = format!("waypost; error={}; details=\"", self.error);
        // A structured-field string (RFC 8941 section 3.3.3): printable ASCII, quote and backslash escaped.
        for character in self.details.chars() {
            match character {
                '"' | '\\' => value.extend(['\\', character]),
                ' '..='~' => value.push(character),
                _ => value.push('?'),
            }
        }
        value.push('"');
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("waypost"))
    }
}

/// `Proxy-Status`.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_status_is_a_structured_field_whatever_the_details() {
        let failure = Failure::malformed("a \"quoted\" \\ bücher\r\n");
        let value = failure.proxy_status();
        assert_eq!(
            value.to_str().expect("ASCII"),
            "waypost; error=http_request_error; details=\"a \\\"quoted\\\" \\\\ b?cher??\""
        );
    }
}
