//! `Max-Forwards`: how far OPTIONS and TRACE go (RFC 9110 section 7.6.2).

use http::{HeaderValue, Method, Response, StatusCode, header::MAX_FORWARDS, request::Parts};

use super::{body::ResponseBody, error::Failure};

/// Whether it means something with this method.
pub fn counts(method: &Method) -> bool {
    matches!(*method, Method::OPTIONS | Method::TRACE)
}

/// Whether the request is not to be forwarded any more.
pub fn ends_here(request: &Parts) -> bool {
    counts(&request.method)
        && (request.headers.get(MAX_FORWARDS)).is_some_and(|value| hops(value) == Some(0))
}

/// The answer to a request that ends here.
///
/// # Errors
/// 501 for TRACE, whose answer would show the client's cookies to whoever can read it.
pub fn answer(method: &Method) -> Result<Response<ResponseBody>, Failure> {
    match *method {
        Method::OPTIONS => Ok(Response::new(ResponseBody::empty())),
        _ => Err(Failure::new(
            StatusCode::NOT_IMPLEMENTED,
            "http_request_denied",
            "TRACE is not answered here, where its Max-Forwards ends it",
        )),
    }
}

/// What the next hop gets; `None`: the same, as it is no number.
pub fn one_fewer(value: &HeaderValue) -> Option<HeaderValue> {
    hops(value)?.checked_sub(1).map(HeaderValue::from)
}

fn hops(value: &HeaderValue) -> Option<u32> {
    let digits = value.to_str().ok()?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}
