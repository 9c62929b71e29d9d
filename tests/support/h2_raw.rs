//! An HTTP/2 client that says whatever it is told to, valid or not, as no client library would.

use std::net::SocketAddr;

use super::{
    h2_origin::{DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, SETTINGS},
    http::{End, Wire},
};

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer with this status.
    Status(u16),
    /// Its stream was reset with this code.
    Reset(u32),
    /// The connection was given up with this code.
    Away(u32),
    /// The connection ended.
    Gone,
}

impl Outcome {
    /// The status; what the HTTP/2 layer refuses by itself, as an error of protocol or compression in the stream or in
    /// the connection, is a 400 too.
    pub fn status(self) -> u16 {
        match self {
            Self::Status(status) => status,
            Self::Reset(1) | Self::Away(1 | 9) => 400,
            other => panic!("{other:?}"),
        }
    }
}

/// `GET /` of `a.test` over HTTP, from the static table but for the authority (RFC 7541 appendix A).
pub const ASKING: &[u8] = b"\x82\x86\x84\x41\x06a.test";

/// A connection that begins as one of HTTP/2 does.
pub async fn connect(address: SocketAddr) -> Frames {
    open(Wire::connect(address).await).await
}

/// The same over a connection that there is.
pub async fn open(mut wire: Wire) -> Frames {
    wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut frames = Frames(wire);
    frames.send(SETTINGS, 0, 0, &[]).await;
    frames
}

/// Waits for the GOAWAY that ends a connection, and tells its code.
pub async fn sent_away(frames: &mut Frames) -> u32 {
    let frame = frames.take_kind(GOAWAY).await.expect("a word of farewell");
    code(&frame.payload[4..])
}

/// Asks by exactly these fields, pseudo fields included and in this order, on a connection of its own.
pub async fn ask(address: SocketAddr, fields: &[(&[u8], &[u8])]) -> Outcome {
    let mut frames = connect(address).await;
    let block = block(fields);
    let flags = END_HEADERS | END_STREAM;
    frames.send(HEADERS, flags, 1, &block).await;
    outcome(&mut frames).await.unwrap_or(Outcome::Gone)
}

async fn outcome(frames: &mut Frames) -> Result<Outcome, End> {
    let mut status = None;
    loop {
        let frame = frames.take().await?;
        match frame.kind {
            HEADERS if status.is_none() => status = Some(status_of(&frame.payload)),
            RST_STREAM => return Ok(Outcome::Reset(code(&frame.payload))),
            GOAWAY => return Ok(Outcome::Away(code(&frame.payload[4..]))),
            _ => {}
        }
        if let Some(status) = status
            && matches!(frame.kind, HEADERS | DATA)
            && frame.flags & END_STREAM != 0
        {
            return Ok(Outcome::Status(status));
        }
    }
}

fn code(payload: &[u8]) -> u32 {
    let code = payload[..4].try_into().expect("four bytes");
    u32::from_be_bytes(code)
}

/// As literals that are never indexed, nor compressed (RFC 7541 section 6.2.3).
fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        for text in [name, value] {
            // With a seven-bit prefix (section 5.1).
            match text.len().checked_sub(127) {
                None => block.push(u8::try_from(text.len()).expect("seven bits")),
                Some(mut rest) => {
                    block.push(127);
                    while rest > 127 {
                        block.push(u8::try_from(rest % 128).expect("seven bits") | 128);
                        rest /= 128;
                    }
                    block.push(u8::try_from(rest).expect("seven bits"));
                }
            }
            block.extend_from_slice(text);
        }
    }
    block
}

/// `:status`, which comes first: from the static table, or a literal of digits (RFC 7541 appendices A and B).
fn status_of(block: &[u8]) -> u16 {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // An update of the table's size may stand before it.
    let block = match block[0] >> 5 {
        1 => &block[1..],
        _ => block,
    };
    if let Some(index) = block[0].checked_sub(0x88) {
        return INDEXED[usize::from(index)];
    }
    let length = usize::from(block[1] & 127);
    let text = &block[2..2 + length];
    if block[1] < 128 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    let bits = text
        .iter()
        .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let mut left = length * 8;
    let mut status = 0;
    for _ in 0..3 {
        let at = |count: usize| u16::try_from(bits >> (left - count) & ((1 << count) - 1)).unwrap();
        // Five bits for 0 to 2, six for 3 to 9.
        let (digit, count) = match at(5) {
            digit @ 0..=2 => (digit, 5),
            _ => (at(6) - 0x19 + 3, 6),
        };
        status = status * 10 + digit;
        left -= count;
    }
    status
}
