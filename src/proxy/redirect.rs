//! `redirect_https`: 308 to the same place on port 443.

use http::{HeaderValue, Response, StatusCode, header::LOCATION};

use super::{body::ResponseBody, error::Failure, target::Target};

/// The redirect of a plain request.
///
/// # Errors
/// 400 if it names no host, or nothing that a URL can say.
pub fn to_https(target: &Target<'_>) -> Result<Response<ResponseBody>, Failure> {
    if target.host.is_empty() {
        return Err(Failure::malformed("no Host to redirect to"));
    }
    // The server as a whole is its URL without a path (RFC 9112 section 3.2.4): a `*` would be one more letter of its host.
    let path = match target.path {
        "*" => "",
        path => path,
    };
    let location = format!("https://{}{path}{}", target.host, target.query);
    let location = HeaderValue::try_from(location)
        .map_err(|_| Failure::malformed("malformed request target"))?;
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}
