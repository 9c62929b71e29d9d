//! An origin that keeps every byte it is sent, takes it apart without mercy, and answers each request with its target.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::support::waypost::eventually;

/// A request as it stood on the wire, if it stood there in the one form that Waypost gives to requests.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Arrived {
    pub line: String,
    /// The fields as they stand, but for those of the forwarding and of the framing.
    pub fields: Vec<String>,
    pub framing: Framing,
    pub body: Vec<u8>,
    pub trailers: Vec<String>,
    /// All of it came.
    pub whole: bool,
}

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            fields,
            framing,
            trailers,
            whole,
            ..
        } = self;
        let body = lossy(&self.body);
        let whole = if *whole { "whole" } else { "cut" };
        write!(
            f,
            "<{line:?} {fields:?} {framing:?} {body:?} {trailers:?} {whole}>"
        )
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    #[default]
    None,
    Length,
    Chunked,
}

/// What came over one connection.
#[derive(Default)]
struct Tape {
    bytes: Vec<u8>,
    /// What of it is taken.
    taken: usize,
    ended: bool,
}

/// The origin; it ends with its owner.
pub struct Recorder {
    address: std::net::SocketAddr,
    tapes: Arc<Mutex<Vec<Tape>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let tapes = Arc::<Mutex<Vec<Tape>>>::default();
        let task = tokio::spawn({
            let tapes = tapes.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let number = {
                        let mut tapes = tapes.lock().unwrap();
                        tapes.push(Tape::default());
                        tapes.len() - 1
                    };
                    tokio::spawn(record(stream, tapes.clone(), number));
                }
            }
        });
        Self {
            address,
            tapes,
            task,
        }
    }

    /// What arrived since the last time, connection by connection: what is not whole is the last of its connection.
    pub fn take(&self) -> Vec<Arrived> {
        let mut all = Vec::new();
        for tape in self.tapes.lock().unwrap().iter_mut() {
            let mut rest = &tape.bytes[tape.taken..];
            while !rest.is_empty() {
                let (arrived, length) = parse(rest).unwrap_or_else(|fault| {
                    panic!("{fault} in what reached the origin: {:?}", lossy(rest))
                });
                rest = &rest[length..];
                all.push(arrived);
            }
            tape.taken = tape.bytes.len();
        }
        all
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.tapes.lock().unwrap().len()
    }

    /// Waits until every connection but the latest is closed.
    pub async fn only_latest_open(&self) {
        eventually("connections that broke are closed", async || {
            let tapes = self.tapes.lock().unwrap();
            let earlier = tapes.len().saturating_sub(1);
            tapes[..earlier].iter().all(|tape| tape.ended)
        })
        .await;
    }
}

impl fmt::Display for Recorder {
    /// As an upstream in a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn record(mut stream: TcpStream, tapes: Arc<Mutex<Vec<Tape>>>, number: usize) {
    let mut answered = 0;
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let mut answers = Vec::new();
        {
            let mut tapes = tapes.lock().unwrap();
            let tape = &mut tapes[number];
            tape.bytes.extend_from_slice(&buffer[..n]);
            while let Ok((arrived, length)) = parse(&tape.bytes[answered..])
                && arrived.whole
            {
                answered += length;
                answers.extend(answer_to(&arrived));
            }
        }
        if stream.write_all(&answers).await.is_err() {
            break;
        }
    }
    drop(stream);
    tapes.lock().unwrap()[number].ended = true;
}

fn answer_to(request: &Arrived) -> Vec<u8> {
    let target = request.line.split(' ').nth(1).unwrap_or_default();
    let length = target.len();
    let body = if request.line.starts_with("HEAD ") {
        ""
    } else {
        target
    };
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// Takes one request apart, and says how long it is. Only what Waypost itself would write passes: CRLF at every line's
/// end, one space where one belongs, one framing.
fn parse(bytes: &[u8]) -> Result<(Arrived, usize), String> {
    let cut = |arrived: Arrived| Ok((arrived, bytes.len()));
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return cut(Arrived {
            line: lossy(bytes),
            ..Arrived::default()
        });
    };
    let mut lines = bytes[..end]
        .split_inclusive(|byte| *byte == b'\n')
        .map(line);
    let mut arrived = Arrived {
        line: lines.next().ok_or("no line")??,
        ..Arrived::default()
    };
    let words: Vec<&str> = arrived.line.split(' ').collect();
    if words.len() != 3 || words[2] != "HTTP/1.1" || words.iter().any(|word| word.is_empty()) {
        return Err(format!("no request line: {:?}", arrived.line));
    }
    let mut length = None;
    let mut forwarded = 0;
    for line in lines {
        let line = line?;
        let (name, value) = line.split_once(": ").ok_or("no colon and space")?;
        if name.is_empty() || !name.bytes().all(is_token) || value.trim() != value {
            return Err(format!("field {line:?}"));
        }
        match name {
            "content-length" if arrived.framing == Framing::None => {
                arrived.framing = Framing::Length;
                length = Some(value.parse::<usize>().map_err(|_| "no length")?);
                if value.starts_with('+') {
                    return Err("a sign".to_owned());
                }
            }
            "transfer-encoding" if arrived.framing == Framing::None && value == "chunked" => {
                arrived.framing = Framing::Chunked;
            }
            "content-length" | "transfer-encoding" => return Err(format!("a second {name}")),
            "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => forwarded += 1,
            _ => arrived.fields.push(line),
        }
    }
    if !(2..=3).contains(&forwarded) {
        return Err(format!("{forwarded} fields of the forwarding"));
    }
    let mut at = end + 4;
    if arrived.framing != Framing::Chunked {
        let length = length.unwrap_or(0);
        let there = length.min(bytes.len() - at);
        arrived.body = bytes[at..at + there].to_vec();
        arrived.whole = there == length;
        return Ok((arrived, at + there));
    }
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return cut(arrived);
        };
        let digits = &bytes[at..at + end];
        at += end + 2;
        let size = std::str::from_utf8(digits).ok();
        let size = size.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let size = size.and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.ok_or_else(|| format!("chunk size {:?}", lossy(digits)))?;
        if size == 0 {
            break;
        }
        let there = size.min(bytes.len() - at);
        arrived.body.extend_from_slice(&bytes[at..at + there]);
        at += there;
        match bytes.get(at..at + 2) {
            None => return cut(arrived),
            Some(b"\r\n") => at += 2,
            Some(_) => return Err("no CRLF behind a chunk".to_owned()),
        }
    }
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return cut(arrived);
        };
        let trailer = line(&bytes[at..at + end + 2])?;
        at += end + 2;
        if trailer.is_empty() {
            arrived.whole = true;
            return Ok((arrived, at));
        }
        arrived.trailers.push(trailer);
    }
}

/// A line without its end, all of whose bytes may stand in one.
fn line(bytes: &[u8]) -> Result<String, String> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if bytes.ends_with(b"\n") && text.len() + 2 != bytes.len() {
        return Err("a bare LF".to_owned());
    }
    if text
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(format!("a control byte in {:?}", lossy(text)));
    }
    Ok(lossy(text))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
