//! Every way a request can end without its upstream's answer, and the one place where that becomes a response.

use std::borrow::Cow;

use bytes::Bytes;
use http::{
    HeaderValue, Method, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName},
};

use super::body::ResponseBody;
use crate::upstream::{
    dial::DialError,
    http1::{ExchangeError, head::MalformedHead},
    request_body::RequestBodyError,
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
            "more than 100 header fields",
        )
    }

    /// A connection to `upstream` could not be had.
    pub fn dial(error: &DialError, upstream: &str) -> Self {
        let (status, name) = match error {
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

    /// `upstream` gave no (good) response head.
    pub fn exchange(error: &ExchangeError, upstream: &str) -> Self {
        let (status, name) = match error {
            ExchangeError::Terminated(_) => (StatusCode::BAD_GATEWAY, "connection_terminated"),
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
        headers.insert(PROXY_STATUS, self.proxy_status());
        response
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
