//! A strict reader of what HTTP/1.1 clients send, on `httparse` and rules of its own: slow, simple, and of one mind.

/// A request as it is to reach an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method and target.
    pub line: String,
    pub body: Vec<u8>,
}

/// How a stream of requests ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// With its last request.
    Well,
    /// With one that is refused.
    Refused,
    /// Before one is whole.
    Early,
    /// With one that it has no rules for: of a host, a target or a protocol that others have tests for.
    Elsewhere,
}

/// What HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The rest, and what was read before it.
type Read<'b, T> = Result<(T, &'b [u8]), Ends>;

/// The requests at the front of `bytes`, and how they end.
pub fn read(mut bytes: &[u8]) -> (Vec<Request>, Ends) {
    let mut requests = Vec::new();
    if bytes.starts_with(PREFACE) {
        return (requests, Ends::Elsewhere);
    }
    if PREFACE.starts_with(bytes) {
        return (requests, Ends::Early);
    }
    loop {
        match next(bytes, host) {
            Ok(((request, Then::Goes), rest)) => {
                requests.push(request);
                bytes = rest;
            }
            Ok(((request, Then::Stops), _)) => {
                requests.push(request);
                return (requests, Ends::Well);
            }
            Err(ends) => return (requests, ends),
        }
    }
}

/// The first request as an upstream gets it, whatever its host, and what follows it.
///
/// # Errors
/// How else they end.
pub fn one(bytes: &[u8]) -> Read<'_, Request> {
    next(bytes, |_| Ok(())).map(|((request, _), rest)| (request, rest))
}

/// Whether another request may follow.
enum Then {
    Goes,
    Stops,
}

fn next(bytes: &[u8], host: fn(&[u8]) -> Result<(), Ends>) -> Read<'_, (Request, Then)> {
    let (mut rest, mut empty) = (bytes, 0);
    while let (b"", after) = line(rest)? {
        rest = after;
        empty += 1;
        if empty > 4 {
            return Err(Ends::Refused);
        }
    }
    let start = rest;
    while let (1.., after) = line(rest).map(|(line, after)| (line.len(), after))? {
        rest = after;
    }
    let (_, body) = line(rest)?;
    let mut slots = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut slots);
    let whole = &start[..start.len() - body.len()];
    if !matches!(head.parse(whole), Ok(httparse::Status::Complete(length)) if length == whole.len())
    {
        return Err(Ends::Refused);
    }
    let is_new = head.version == Some(1);
    let all = |name: &str| -> Vec<&[u8]> {
        let named = head.headers.iter();
        named
            .filter(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
            .collect()
    };
    let hosts = all("host");
    let (method, target) = (
        head.method.unwrap_or_default(),
        head.path.unwrap_or_default(),
    );
    match hosts[..] {
        [named] => host(named)?,
        [] if !is_new => {}
        _ => return Err(Ends::Refused),
    }
    match (method, target) {
        ("CONNECT", _) => return Err(Ends::Refused),
        ("OPTIONS", "*") => {}
        (_, "*") => return Err(Ends::Refused),
        // How far they go is another matter.
        ("OPTIONS" | "TRACE", _) if !all("max-forwards").is_empty() => return Err(Ends::Elsewhere),
        (_, path) if is_path(path) => {}
        _ => return Err(Ends::Elsewhere),
    }
    let (body, rest) = match (&all("transfer-encoding")[..], &all("content-length")[..]) {
        ([], []) => (Vec::new(), body),
        ([], [first, others @ ..]) => {
            let length = length(first).ok_or(Ends::Refused)?;
            if others
                .iter()
                .any(|other| self::length(other) != Some(length))
            {
                return Err(Ends::Refused);
            }
            let (body, rest) = body.split_at_checked(length).ok_or(Ends::Early)?;
            (body.to_vec(), rest)
        }
        ([coding], []) if is_new && coding.eq_ignore_ascii_case(b"chunked") => chunked(body)?,
        _ => return Err(Ends::Refused),
    };
    // A line that is no text says nothing.
    let mut lines = all("connection");
    lines.retain(|line| line.is_ascii());
    let options = lines.join(&b',');
    let has = |wanted: &[u8]| {
        let mut options = options.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        options.any(|option| option.eq_ignore_ascii_case(wanted))
    };
    let stops = has(b"close") || (!is_new && !has(b"keep-alive"));
    let line = format!("{method} {target}");
    let then = if stops { Then::Stops } else { Then::Goes };
    Ok(((Request { line, body }, then), rest))
}

/// Passes hosts of which there can be no two opinions.
fn host(authority: &[u8]) -> Result<(), Ends> {
    let mut parts = authority.split(|byte| *byte == b':');
    let (host, port) = (parts.next().unwrap_or_default(), parts.next());
    let mut labels = host.split(|byte| *byte == b'.');
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_name = host.len() < 200
        && labels.all(|label| label.iter().all(is_plain) && (1..60).contains(&label.len()))
        && port.is_none_or(|port| length(port).is_some_and(|port| port < 1 << 16))
        && parts.next().is_none();
    is_name.then_some(()).ok_or(Ends::Elsewhere)
}

/// Paths and queries of what RFC 3986 lets stand in them.
fn is_path(target: &str) -> bool {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/?".contains(&byte);
    target.starts_with('/') && target.bytes().all(is_plain)
}

/// A line without its CRLF; whoever wants it judges what else is in it.
fn line(bytes: &[u8]) -> Read<'_, &[u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (line, rest) = bytes.split_at(end.ok_or(Ends::Early)?);
    let line = line.strip_suffix(b"\r").ok_or(Ends::Refused)?;
    Ok((line, &rest[1..]))
}

fn length(text: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(text).ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let length: i64 = digits.parse().ok().filter(|_| is_number)?;
    usize::try_from(length).ok()
}

fn chunked(mut bytes: &[u8]) -> Read<'_, Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (size, rest) = line(bytes)?;
        let digits = size.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let (digits, extension) = size.split_at(digits.count());
        let is_text = |byte: &u8| !byte.is_ascii_control() || *byte == b'\t';
        let begins = extension.trim_ascii_start().first();
        if !(1..=16).contains(&digits.len())
            || !extension.iter().all(is_text)
            || begins.is_some_and(|first| *first != b';')
        {
            return Err(Ends::Refused);
        }
        let size = i64::from_str_radix(&String::from_utf8_lossy(digits), 16);
        let size = size.ok().and_then(|size| usize::try_from(size).ok());
        let size = size.ok_or(Ends::Refused)?;
        bytes = rest;
        if size == 0 {
            break;
        }
        let (data, rest) = bytes.split_at_checked(size).ok_or(Ends::Early)?;
        body.extend_from_slice(data);
        match rest {
            [b'\r', b'\n', rest @ ..] => bytes = rest,
            [] | [b'\r'] => return Err(Ends::Early),
            _ => return Err(Ends::Refused),
        }
    }
    let start = bytes;
    loop {
        let (trailer, rest) = line(bytes)?;
        bytes = rest;
        if trailer.is_empty() {
            break;
        }
    }
    let section = &start[..start.len() - bytes.len()];
    let mut slots = [httparse::EMPTY_HEADER; 100];
    match httparse::parse_headers(section, &mut slots) {
        Ok(httparse::Status::Complete((length, _))) if length == section.len() => Ok((body, bytes)),
        _ => Err(Ends::Refused),
    }
}
