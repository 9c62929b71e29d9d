//! The answers to a stream of requests, as they stand on the wire.

use super::reference::Request;

/// One of them; interim ones don't count.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// What an upstream says to a request.
pub fn to(request: &Request) -> Vec<u8> {
    let length = request.line.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    [head.into_bytes(), body_for(request)].concat()
}

/// The body of that.
pub fn body_for(request: &Request) -> Vec<u8> {
    match request.line.starts_with("HEAD ") {
        true => Vec::new(),
        false => request.line.clone().into_bytes(),
    }
}

/// Those that are whole among `bytes`, to these requests and to whatever came behind them.
///
/// # Errors
/// What is no answer.
pub fn read(mut bytes: &[u8], requests: &[Request]) -> Result<Vec<Answer>, String> {
    let mut answers = Vec::new();
    loop {
        let mut slots = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut slots);
        let parsed = head.parse(bytes);
        let shown = || format!("{:?} is no answer", String::from_utf8_lossy(bytes));
        let httparse::Status::Complete(length) = parsed.map_err(|_| shown())? else {
            return Ok(answers);
        };
        let status = head.code.unwrap_or_default();
        bytes = &bytes[length..];
        if status < 200 {
            continue;
        }
        let fields = head.headers.iter();
        let mut lengths = fields.filter(|field| field.name.eq_ignore_ascii_case("content-length"));
        let length = lengths.next().ok_or_else(shown)?;
        let length = std::str::from_utf8(length.value).ok();
        let length: usize = length
            .and_then(|length| length.parse().ok())
            .ok_or_else(shown)?;
        let to = requests.get(answers.len());
        let has_body = !to.is_some_and(|request| request.line.starts_with("HEAD "));
        let Some((body, rest)) = bytes.split_at_checked(if has_body { length } else { 0 }) else {
            return Ok(answers);
        };
        let body = body.to_vec();
        answers.push(Answer { status, body });
        bytes = rest;
    }
}
