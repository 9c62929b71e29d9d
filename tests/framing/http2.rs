//! HTTP/2 requests as raw frames, each field as it is spelled: what no client library would send.

use super::{
    recorder::{Arrived, Framing},
    requests::get,
};
use crate::support::{
    http::{End, Wire},
    waypost::Waypost,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// The static table's `:status: 200`, as a response's first field.
const STATUS_200: u8 = 0x88;

/// A request: its fields, a line each with `name: value`, its body, and its trailers.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    fields: Fields,
    body: Option<&'static [&'static str]>,
    trailers: Option<Fields>,
    /// It is reset with this code in mid-body.
    reset: Option<u8>,
    goes: Goes,
}

/// Whether it goes on to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    Not,
    /// It does, and is answered.
    On,
    /// All that was announced may have gone on before it turns out that more was sent.
    Perhaps,
}

/// What a stream came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// To this body, with 200.
    Answered(String),
    /// To another status, or a reset.
    Refused,
    /// To the end of the connection.
    Ended,
}

type Fields = &'static [(&'static str, &'static str)];

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const AUTHORITY: (&str, &str) = (":authority", "a.test");
const PATH: (&str, &str) = (":path", "/case");

const fn refused(fields: Fields) -> Case {
    Case {
        fields,
        body: None,
        trailers: None,
        reset: None,
        goes: Goes::Not,
    }
}

const fn with_body(fields: Fields, body: &'static [&'static str]) -> Case {
    Case {
        body: Some(body),
        ..refused(fields)
    }
}

macro_rules! field {
    ($name:literal, $value:literal) => {
        refused(&[METHOD, SCHEME, AUTHORITY, PATH, ($name, $value)])
    };
}

const PLAIN: Fields = &[METHOD, SCHEME, AUTHORITY, PATH];

/// Passed on as `GET /case`.
pub const PASSED: &[Case] = &[
    refused(PLAIN).going(Goes::On),
    refused(&[PATH, AUTHORITY, SCHEME, METHOD]).going(Goes::On),
    refused(&[METHOD, SCHEME, PATH, ("host", "a.test")]).going(Goes::On),
    refused(&[METHOD, SCHEME, AUTHORITY, PATH, ("host", "a.test")]).going(Goes::On),
    refused(&[METHOD, SCHEME, AUTHORITY, PATH, ("te", "trailers")]).going(Goes::On),
    with_body(PLAIN, &["hel", "lo"]).going(Goes::On),
    // A pseudo-field has no place in trailers, and is dropped.
    Case {
        trailers: Some(&[(":path", "/other")]),
        ..with_body(PLAIN, &["hello"]).going(Goes::On)
    },
];

/// Refused.
pub const REFUSED: &[Case] = &[
    // Values that would be lines of their own in HTTP/1.1, and names that are none.
    field!("x", "a\r\nb: c"),
    field!("x", "a\rb"),
    field!("x", "a\nb"),
    field!("x", "a\0b"),
    field!("x", "\x01"),
    field!("x", "\x7f"),
    field!("x\r\ny", "a"),
    field!("x: y", "a"),
    field!("x y", "a"),
    field!("x\0", "a"),
    field!("", "a"),
    field!("\u{e9}", "a"),
    field!("X", "a"),
    field!("x-Y", "a"),
    // What is of a connection.
    field!("connection", "close"),
    field!("connection", "x"),
    field!("keep-alive", "timeout=5"),
    field!("proxy-connection", "keep-alive"),
    field!("transfer-encoding", "chunked"),
    field!("upgrade", "h2c"),
    field!("te", "gzip"),
    field!("te", "trailers, deflate"),
    // Pseudo-fields: unknown, of a response, twice, behind others, missing.
    field!(":status", "200"),
    field!(":x", "a"),
    field!(":path", "/other"),
    field!(":method", "POST"),
    field!(":scheme", "https"),
    field!(":authority", "a.test"),
    field!(":authority", "b.test"),
    refused(&[METHOD, SCHEME, AUTHORITY, ("x", "a"), PATH]),
    refused(&[("x", "a"), METHOD, SCHEME, AUTHORITY, PATH]),
    refused(&[SCHEME, AUTHORITY, PATH]),
    refused(&[METHOD, AUTHORITY, PATH]),
    refused(&[METHOD, SCHEME, AUTHORITY]),
    refused(&[METHOD, SCHEME, PATH]),
    refused(&[]),
    refused(&[("x", "a")]),
    // Odd ones.
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "case")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "?x")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "*")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "/a b")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "/a\r\nx: y")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "/a\0")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "/a\x7f")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "/ HTTP/1.1\r\nx: ")]),
    refused(&[METHOD, SCHEME, AUTHORITY, (":path", "http://b.test/case")]),
    refused(&[METHOD, (":scheme", ""), AUTHORITY, PATH]),
    refused(&[METHOD, (":scheme", "ftp"), AUTHORITY, PATH]),
    refused(&[METHOD, (":scheme", "ht tp"), AUTHORITY, PATH]),
    refused(&[METHOD, (":scheme", "http://b.test/?"), AUTHORITY, PATH]),
    refused(&[(":method", ""), SCHEME, AUTHORITY, PATH]),
    refused(&[(":method", "GE T"), SCHEME, AUTHORITY, PATH]),
    refused(&[(":method", "GET / HTTP/1.1\r\nx:"), SCHEME, AUTHORITY, PATH]),
    refused(&[(":method", "CONNECT"), AUTHORITY]),
    refused(&[(":method", "CONNECT"), SCHEME, AUTHORITY, PATH]),
    refused(&[METHOD, SCHEME, (":authority", ""), PATH]),
    refused(&[METHOD, SCHEME, (":authority", "u@a.test"), PATH]),
    refused(&[METHOD, SCHEME, (":authority", "a.test/b"), PATH]),
    refused(&[METHOD, SCHEME, (":authority", "a test"), PATH]),
    refused(&[METHOD, SCHEME, (":authority", "a.test\r\nx: y"), PATH]),
    refused(&[METHOD, SCHEME, (":authority", "a.test, b.test"), PATH]),
    field!("host", "b.test"),
    field!("host", ""),
    field!("host", "a.test:81"),
    refused(&[METHOD, SCHEME, PATH, ("host", "a.test"), ("host", "a.test")]),
    refused(&[METHOD, SCHEME, PATH, ("host", "a.test, b.test")]),
    // A length of what is not there.
    field!("content-length", "5"),
    field!("content-length", "x"),
    field!("content-length", "+0"),
];

/// With a body that is not what is said of it: the origin gets the head, and never the end.
pub const BROKEN: &[Case] = &[
    with_body(
        &[METHOD, SCHEME, AUTHORITY, PATH, ("content-length", "5")],
        &["hell"],
    ),
    with_body(
        &[METHOD, SCHEME, AUTHORITY, PATH, ("content-length", "5")],
        &["hello", "!"],
    )
    .going(Goes::Perhaps),
    with_body(
        &[METHOD, SCHEME, AUTHORITY, PATH, ("content-length", "0")],
        &["hello"],
    )
    .going(Goes::Perhaps),
    with_body(
        &[METHOD, SCHEME, AUTHORITY, PATH, ("content-length", "5, 5")],
        &["hello"],
    ),
    with_body(
        &[METHOD, SCHEME, AUTHORITY, PATH, ("content-length", "-5")],
        &["hello"],
    ),
    with_body(
        &[
            METHOD,
            SCHEME,
            AUTHORITY,
            PATH,
            ("content-length", "18446744073709551621"),
        ],
        &["hello"],
    ),
    with_body(
        &[
            METHOD,
            SCHEME,
            AUTHORITY,
            PATH,
            ("content-length", "5"),
            ("content-length", "6"),
        ],
        &["hello"],
    ),
    Case {
        trailers: Some(&[("x\r\ny", "a")]),
        ..with_body(PLAIN, &["hello"])
    },
    Case {
        trailers: Some(&[("x", "a\r\nb: c")]),
        ..with_body(PLAIN, &["hello"])
    },
    Case {
        trailers: Some(&[("connection", "close")]),
        ..with_body(PLAIN, &["hello"])
    },
    // Given up: what came is not all, whatever the code (NO_ERROR, INTERNAL_ERROR, CANCEL).
    Case {
        reset: Some(0),
        ..with_body(PLAIN, &["hello"])
    },
    Case {
        reset: Some(2),
        ..with_body(PLAIN, &["hello"])
    },
    Case {
        reset: Some(8),
        ..with_body(PLAIN, &["hello"])
    },
];

/// A connection of raw frames.
pub struct Frames {
    wire: Wire,
    next: u32,
}

impl Frames {
    pub async fn open(waypost: &Waypost) -> Self {
        let mut wire = Wire::connect(waypost.address()).await;
        wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let mut frames = Self { wire, next: 1 };
        frames.send(SETTINGS, 0, 0, &[]).await;
        frames
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.wire.send(&frame).await;
    }

    /// Sends one request, and waits for what it comes to.
    pub async fn play(&mut self, case: &Case) -> Came {
        let stream = self.next;
        self.next += 2;
        let pieces = case.body.unwrap_or_default();
        let ends = |last: bool| if last { END_STREAM } else { 0 };
        let head = ends(case.body.is_none() && case.trailers.is_none()) | END_HEADERS;
        self.send(HEADERS, head, stream, &block(case.fields)).await;
        for (index, piece) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len() && case.trailers.is_none() && case.reset.is_none();
            self.send(DATA, ends(last), stream, piece.as_bytes()).await;
        }
        if let Some(trailers) = case.trailers {
            let flags = END_STREAM | END_HEADERS;
            self.send(HEADERS, flags, stream, &block(trailers)).await;
        }
        if let Some(code) = case.reset {
            self.send(RST_STREAM, 0, stream, &[0, 0, 0, code]).await;
            return Came::Refused;
        }
        self.await_end(stream).await
    }

    async fn await_end(&mut self, stream: u32) -> Came {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let Ok((kind, flags, of, payload)) = self.frame().await else {
                return Came::Ended;
            };
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                PING if flags & ACK == 0 => self.send(PING, ACK, 0, &payload).await,
                GOAWAY => return Came::Ended,
                RST_STREAM if of == stream => return Came::Refused,
                HEADERS if of == stream => status = payload[0],
                DATA if of == stream => body.extend(payload),
                _ => {}
            }
            if of == stream && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                return match status {
                    STATUS_200 => Came::Answered(String::from_utf8_lossy(&body).into_owned()),
                    _ => Came::Refused,
                };
            }
        }
    }

    async fn frame(&mut self) -> Result<(u8, u8, u32, Vec<u8>), End> {
        let head = self.wire.take(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Ok((head[3], head[4], stream, self.wire.take(length).await?))
    }
}

/// A header block without compression (RFC 7541 section 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

impl Case {
    pub const fn going(self, goes: Goes) -> Self {
        Self { goes, ..self }
    }

    pub fn goes(&self) -> Goes {
        self.goes
    }

    /// What it is for the origin.
    pub fn arrived(&self) -> Arrived {
        let mut arrived = get();
        if self.fields.contains(&("te", "trailers")) {
            arrived.fields.push("te: trailers".to_owned());
        }
        if let Some(pieces) = self.body {
            arrived.framing = Framing::Chunked;
            arrived.body = pieces.concat().into_bytes();
        }
        arrived
    }
}

/// `GET /after`.
pub const AFTER: Case = refused(&[METHOD, SCHEME, AUTHORITY, (":path", "/after")]);
