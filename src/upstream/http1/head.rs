//! Reading a response head (RFC 9112 sections 2 to 7): strict where leniency would let two parsers disagree.

use std::{mem::MaybeUninit, ops::Range, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};
use smallvec::SmallVec;
use thiserror::Error;

/// The largest response head, in bytes, and the largest trailer section.
pub const MAX_HEAD: usize = 64 * 1024;
/// The most fields in a head or trailer section.
pub const MAX_FIELDS: usize = 100;

/// A response head: hop-by-hop fields are taken out and turned into what they mean.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The fields that go on to the client.
    pub headers: HeaderMap,
    /// How the body ends.
    pub framing: Framing,
    /// The connection may carry another request after this response.
    pub reusable: bool,
    /// `Keep-Alive: timeout=N`: the upstream closes an idle connection after N.
    pub keep_alive: Option<Duration>,
    /// `Upgrade`, if `Connection` names it.
    pub upgrade: Option<HeaderValue>,
}

impl ResponseHead {
    /// 100 Continue, from an upstream that says nothing (RFC 9110 section 10.1.1: nobody waits for it for ever).
    pub fn go_on() -> Self {
        Self {
            status: StatusCode::CONTINUE,
            headers: HeaderMap::new(),
            framing: Framing::Length(0),
            reusable: false,
            keep_alive: None,
            upgrade: None,
        }
    }
}

/// How a response body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes; 0 for no body.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// A head that cannot be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MalformedHead {
    /// Not HTTP/1.x, or a field that breaks the grammar.
    #[error("malformed response head")]
    Syntax,
    /// Larger than [`MAX_HEAD`], or more than [`MAX_FIELDS`] fields.
    #[error("response head too large")]
    TooLarge,
    /// A length that is no number, or two that differ.
    #[error("contradictory Content-Length in the response")]
    Length,
    /// A transfer coding other than chunked.
    #[error("unknown Transfer-Encoding in the response")]
    Coding,
}

/// Takes one response head off the front of `buffer`; `None` if it isn't all there yet.
pub fn parse(
    buffer: &mut BytesMut,
    request: &Method,
) -> Result<Option<ResponseHead>, MalformedHead> {
    let mut fields: SmallVec<[Field; 16]> = SmallVec::new();
    let (length, code, http_11) = {
        let mut slots = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            buffer,
            &mut slots,
        );
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(MalformedHead::TooLarge),
            Err(_) => return Err(MalformedHead::Syntax),
        };
        let within = |part: &[u8]| {
            let start = part.as_ptr().addr() - buffer.as_ptr().addr();
            start..start + part.len()
        };
        fields.extend(response.headers.iter().map(|header| Field {
            name: within(header.name.as_bytes()),
            value: within(header.value),
        }));
        let code = response.code.ok_or(MalformedHead::Syntax)?;
        (length, code, response.version == Some(1))
    };
    let status = StatusCode::from_u16(code).map_err(|_| MalformedHead::Syntax)?;
    let bytes = buffer.split_to(length).freeze();
    assemble(status, http_11, &bytes, &fields, request).map(Some)
}

/// Where in the head a field is.
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

fn assemble(
    status: StatusCode,
    http_11: bool,
    bytes: &Bytes,
    fields: &[Field],
    request: &Method,
) -> Result<ResponseHead, MalformedHead> {
    let mut headers = HeaderMap::with_capacity(fields.len() + 2);
    let mut connection = ConnectionOptions::default();
    let mut declared: Option<u64> = None;
    let mut chunked = false;
    let mut keep_alive = None;
    let mut upgrade = None;
    for field in fields {
        let name = HeaderName::from_bytes(&bytes[field.name.clone()])
            .map_err(|_| MalformedHead::Syntax)?;
        let raw = bytes.slice(field.value.clone());
        match name.as_str() {
            "content-length" => {
                let length = content_length(&raw)?;
                if declared.is_some_and(|known| known != length) {
                    return Err(MalformedHead::Length);
                }
                declared = Some(length);
            }
            "transfer-encoding" => {
                // HTTP/1.0 knows no transfer codings: a message that has one anyway is faulty (section 6.1).
                if chunked || !http_11 || !raw.eq_ignore_ascii_case(b"chunked") {
                    return Err(MalformedHead::Coding);
                }
                chunked = true;
            }
            "connection" => connection.read(&raw),
            "keep-alive" => keep_alive = keep_alive_timeout(&raw),
            "upgrade" => upgrade = HeaderValue::from_maybe_shared(raw).ok(),
            "proxy-connection" | "te" => {}
            _ => {
                let value =
                    HeaderValue::from_maybe_shared(raw).map_err(|_| MalformedHead::Syntax)?;
                headers.append(name, value);
            }
        }
    }
    for name in &connection.named {
        headers.remove(name);
    }

    let bodiless = request == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let framing = if bodiless {
        // The length such a head declares is that of another response (section 6.3): it is relayed, not obeyed. For
        // a 204 there is no other (RFC 9110 section 8.6).
        let of_another = !status.is_informational() && status != StatusCode::NO_CONTENT;
        if let Some(length) = declared.filter(|_| !chunked && of_another) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Framing::Length(0)
    } else if chunked {
        Framing::Chunked
    } else {
        declared.map_or(Framing::Close, Framing::Length)
    };
    let persistent = if http_11 {
        !connection.close
    } else {
        connection.keep_alive
    };
    // Both lengths in one head may be an attempt at smuggling: believe the coding, and nothing after it. A 204 that
    // announces a body, which it must not (RFC 9110 section 8.6), may well send it: the next answer would begin there.
    let ambiguous = chunked && declared.is_some()
        || status == StatusCode::NO_CONTENT && (chunked || declared.is_some_and(|n| n > 0));
    Ok(ResponseHead {
        status,
        headers,
        framing,
        reusable: persistent && !ambiguous && framing != Framing::Close,
        keep_alive,
        upgrade: upgrade.filter(|_| connection.upgrade),
    })
}

#[derive(Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    named: SmallVec<[HeaderName; 2]>,
}

impl ConnectionOptions {
    fn read(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if let Ok(name) = HeaderName::from_bytes(option) {
                self.named.push(name);
            }
        }
    }
}

/// `Content-Length`: digits, or a list of the same digits (section 6.3).
fn content_length(raw: &[u8]) -> Result<u64, MalformedHead> {
    let mut length = None;
    for item in raw.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if item.is_empty() || !item.iter().all(u8::is_ascii_digit) {
            return Err(MalformedHead::Length);
        }
        let number = item
            .iter()
            .try_fold(0u64, |sum, digit| {
                sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
            })
            .ok_or(MalformedHead::Length)?;
        if length.is_some_and(|known| known != number) {
            return Err(MalformedHead::Length);
        }
        length = Some(number);
    }
    length.ok_or(MalformedHead::Length)
}

fn keep_alive_timeout(raw: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(raw).ok()?;
    let seconds = text.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("timeout")
            .then(|| value.trim().parse().ok())?
    })?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
