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
    // Both lengths in one head may be an attempt at smuggling: believe the coding, and nothing after it.
    let ambiguous = chunked && declared.is_some();
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
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<ResponseHead>, MalformedHead> {
        parse(&mut BytesMut::from(text), &Method::GET)
    }

    #[test]
    fn framing_follows_rfc_9112() {
        for (text, framing, reusable) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
                Framing::Chunked,
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
                Framing::Chunked,
                false,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Framing::Close, false),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(0),
                true,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
                Framing::Length(0),
                true,
            ),
        ] {
            let head = head(text).expect(text).expect(text);
            assert_eq!((head.framing, head.reusable), (framing, reusable), "{text}");
        }
    }

    #[test]
    fn lies_about_length_are_refused() {
        for (text, error) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
                MalformedHead::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
                MalformedHead::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
                MalformedHead::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
                MalformedHead::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
                MalformedHead::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
                MalformedHead::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                MalformedHead::Coding,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                MalformedHead::Coding,
            ),
            (
                "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                MalformedHead::Coding,
            ),
            (
                "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
                MalformedHead::Syntax,
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", MalformedHead::Syntax),
        ] {
            assert_eq!(head(text).expect_err(text), error, "{text}");
        }
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        let head = head(
            "HTTP/1.1 200 OK\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5, max=9\r\n\
             Proxy-Connection: x\r\nTE: x\r\nUpgrade: h2c\r\nX-Kept: 1\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
        )
        .expect("well-formed")
        .expect("complete");
        // Only the order of values under one name means something (RFC 9110 section 5.3).
        let mut names: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        names.sort_by_key(|(name, _)| *name);
        assert_eq!(
            names,
            [("set-cookie", "a"), ("set-cookie", "b"), ("x-kept", "1")]
        );
        assert_eq!(head.keep_alive, Some(Duration::from_secs(5)));
        assert_eq!(head.upgrade, None, "Connection does not name Upgrade");
    }

    #[test]
    fn a_head_in_pieces_waits_and_a_bomb_does_not() {
        let mut buffer = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Le");
        assert!(
            parse(&mut buffer, &Method::GET)
                .expect("so far so good")
                .is_none()
        );
        buffer.extend_from_slice(b"ngth: 1\r\n\r\nXnext");
        assert!(
            parse(&mut buffer, &Method::GET)
                .expect("well-formed")
                .is_some()
        );
        assert_eq!(&buffer[..], b"Xnext");

        let mut bomb = BytesMut::from("HTTP/1.1 200 OK\r\nX: ");
        bomb.extend_from_slice(&vec![b'a'; MAX_HEAD]);
        assert_eq!(
            parse(&mut bomb, &Method::GET).expect_err("too large"),
            MalformedHead::TooLarge
        );
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_FIELDS + 1)
        );
        assert_eq!(
            super::tests::head(&many).expect_err("too many"),
            MalformedHead::TooLarge
        );
    }

    #[test]
    fn the_length_of_a_head_reply_is_relayed_and_not_obeyed() {
        let mut buffer = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        let head = parse(&mut buffer, &Method::HEAD)
            .expect("well-formed")
            .expect("complete");
        assert_eq!(
            (head.framing, head.headers[CONTENT_LENGTH].as_bytes()),
            (Framing::Length(0), &b"5"[..])
        );
    }
}
