//! Taking a body out of its framing (RFC 9112 sections 6 and 7), piece by piece, without copying.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;

use super::head::{Framing, MAX_FIELDS, MAX_HEAD};

/// The longest chunk-size line: 16 hex digits and whatever extensions fit. Extensions are read and forgotten.
const MAX_CHUNK_LINE: usize = 4096;
/// Chunks below this are gathered into one piece, if they came together: each piece costs the client's side a frame, and
/// the room that it takes until the client reads, of which a byte is but a small part.
const SMALL_CHUNK: usize = 1024;
/// The largest piece that is gathered.
const MAX_GATHERED: usize = 16 * 1024;

/// Where in a body the reading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// This many bytes are left.
    Length(u64),
    /// Before a chunk-size line.
    ChunkSize,
    /// This many bytes of the chunk are left, then its CRLF.
    ChunkData(u64),
    /// Before the CRLF that ends a chunk's data.
    ChunkEnd,
    /// After the last chunk: the trailer section.
    Trailers,
    /// Until the connection ends.
    Close,
    /// All read.
    Done,
}

/// What the front of a buffer gives.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// A piece of the body.
    Data(Bytes),
    /// The trailer section; the body is over.
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// More bytes are needed.
    NeedMore,
}

/// A body that breaks its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed chunked body")]
pub struct MalformedBody;

impl Decoder {
    /// At the start of a body framed so.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::ChunkSize,
            Framing::Close => Self::Close,
        }
    }

    /// Whether all of the body was read.
    pub fn is_done(self) -> bool {
        self == Self::Done
    }

    /// Takes the next piece off the front of `buffer`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Piece, MalformedBody> {
        loop {
            match *self {
                Self::Done => return Ok(Piece::End),
                _ if buffer.is_empty() => return Ok(Piece::NeedMore),
                Self::Close => return Ok(Piece::Data(buffer.split().freeze())),
                Self::Length(left) => {
                    let (data, left) = take(buffer, left);
                    *self = if left == 0 {
                        Self::Done
                    } else {
                        Self::Length(left)
                    };
                    return Ok(Piece::Data(data));
                }
                Self::ChunkData(left) => {
                    let (data, left) = take(buffer, left);
                    *self = if left == 0 {
                        Self::ChunkEnd
                    } else {
                        Self::ChunkData(left)
                    };
                    return Ok(Piece::Data(self.gather(data, buffer)));
                }
                Self::ChunkEnd => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        *self = Self::ChunkSize;
                    }
                    None if buffer[0] == b'\r' => return Ok(Piece::NeedMore),
                    _ => return Err(MalformedBody),
                },
                Self::ChunkSize => match chunk_size(buffer)? {
                    None => return Ok(Piece::NeedMore),
                    Some(0) => *self = Self::Trailers,
                    Some(size) => *self = Self::ChunkData(size),
                },
                Self::Trailers => {
                    let Some(trailers) = trailers(buffer)? else {
                        return Ok(Piece::NeedMore);
                    };
                    *self = Self::Done;
                    return Ok(if trailers.is_empty() {
                        Piece::End
                    } else {
                        Piece::Trailers(trailers)
                    });
                }
            }
        }
    }
}

impl Decoder {
    /// `data`, a piece of a chunk, with the small chunks that follow it in `buffer`.
    fn gather(&mut self, data: Bytes, buffer: &mut BytesMut) -> Bytes {
        if data.len() >= SMALL_CHUNK || !self.reach_small_chunk(buffer) {
            return data;
        }
        let mut gathered = BytesMut::with_capacity((data.len() + buffer.len()).min(MAX_GATHERED));
        gathered.extend_from_slice(&data);
        while let Self::ChunkData(left) = *self
            && left < SMALL_CHUNK as u64
            && gathered.len() + SMALL_CHUNK <= MAX_GATHERED
        {
            let (data, left) = take(buffer, left);
            gathered.extend_from_slice(&data);
            *self = if left == 0 {
                Self::ChunkEnd
            } else {
                Self::ChunkData(left)
            };
            if !self.reach_small_chunk(buffer) {
                break;
            }
        }
        gathered.freeze()
    }

    /// Goes on to the next chunk, if its size line is there. What is malformed stays where it is, and
    /// [`Self::decode`] meets it next.
    fn reach_small_chunk(&mut self, buffer: &mut BytesMut) -> bool {
        if *self == Self::ChunkEnd && buffer.starts_with(b"\r\n") {
            buffer.advance(2);
            *self = Self::ChunkSize;
        }
        if *self == Self::ChunkSize
            && let Ok(Some(size)) = chunk_size(buffer)
        {
            *self = match size {
                0 => Self::Trailers,
                size => Self::ChunkData(size),
            };
        }
        matches!(*self, Self::ChunkData(left) if left < SMALL_CHUNK as u64) && !buffer.is_empty()
    }
}

fn take(buffer: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let n = usize::try_from(left)
        .unwrap_or(usize::MAX)
        .min(buffer.len());
    (buffer.split_to(n).freeze(), left - n as u64)
}

/// Takes a chunk-size line off `buffer`: hex digits, then extensions (section 7.1.1), then CRLF.
fn chunk_size(buffer: &mut BytesMut) -> Result<Option<u64>, MalformedBody> {
    let window = &buffer[..buffer.len().min(MAX_CHUNK_LINE)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if buffer.len() >= MAX_CHUNK_LINE {
            Err(MalformedBody)
        } else {
            Ok(None)
        };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(MalformedBody)?;
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    if digits == 0 || digits > 16 {
        return Err(MalformedBody);
    }
    let rest = line[digits..].trim_ascii_start();
    let is_extension = rest.first().is_none_or(|first| *first == b';');
    let is_text = |byte: &u8| !byte.is_ascii_control() || *byte == b'\t';
    if !is_extension || !rest.iter().all(is_text) {
        return Err(MalformedBody);
    }
    let size = line[..digits].iter().fold(0u64, |size, digit| {
        size << 4
            | u64::from(
                (*digit as char)
                    .to_digit(16)
                    .expect("a hex digit, as counted above"),
            )
    });
    buffer.advance(end + 1);
    Ok(Some(size))
}

/// Takes the trailer section off `buffer`, the empty line that ends it included.
fn trailers(buffer: &mut BytesMut) -> Result<Option<HeaderMap>, MalformedBody> {
    if buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut map = HeaderMap::new();
    let length = match httparse::parse_headers(buffer, &mut slots) {
        Ok(httparse::Status::Complete((length, fields))) => {
            for field in fields {
                let name =
                    HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| MalformedBody)?;
                map.append(
                    name,
                    HeaderValue::from_bytes(field.value).map_err(|_| MalformedBody)?,
                );
            }
            length
        }
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => return Err(MalformedBody),
    };
    buffer.advance(length);
    Ok(Some(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of `step` bytes; the data, the trailers, and what was left over.
    fn run(
        framing: Framing,
        text: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), MalformedBody> {
        let (mut decoder, mut buffer, mut data, mut trailers) = (
            Decoder::new(framing),
            BytesMut::new(),
            Vec::new(),
            HeaderMap::new(),
        );
        for piece in text.chunks(step) {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer)? {
                    Piece::Data(bytes) => data.extend_from_slice(&bytes),
                    Piece::Trailers(map) => trailers = map,
                    Piece::End | Piece::NeedMore => break,
                }
            }
        }
        assert!(
            decoder.is_done() || framing == Framing::Close,
            "not done after {text:?}"
        );
        Ok((data, trailers, buffer.to_vec()))
    }

    #[test]
    fn every_framing_is_read_whatever_the_pieces() {
        for step in [1, 2, 3, 7, 100] {
            let (data, _, rest) = run(Framing::Length(5), b"hellonext", step).expect("well-formed");
            assert_eq!((&data[..], &rest[..]), (&b"hello"[..], &b"next"[..]));
            let (data, trailers, rest) = run(
                Framing::Chunked,
                b"5;ext=\"x\"\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\nnext",
                step,
            )
            .expect("well-formed");
            assert_eq!((&data[..], &rest[..]), (&b"hello world"[..], &b"next"[..]));
            assert_eq!(trailers["x-sum"], "1");
            let (data, _, _) = run(Framing::Close, b"hello", step).expect("well-formed");
            assert_eq!(&data[..], b"hello");
        }
    }

    #[test]
    fn small_chunks_that_came_together_are_one_piece_and_large_ones_are_not_copied() {
        let large = "y".repeat(SMALL_CHUNK);
        let text = format!(
            "{}{SMALL_CHUNK:x}\r\n{large}\r\n1\r\nz\r\n2\r\nab",
            "1\r\nx\r\n".repeat(3)
        );
        let mut buffer = BytesMut::from(&*text);
        let mut decoder = Decoder::new(Framing::Chunked);
        for piece in ["xxx", &large, "zab"] {
            let piece = Piece::Data(Bytes::copy_from_slice(piece.as_bytes()));
            assert_eq!(decoder.decode(&mut buffer), Ok(piece));
        }
        assert_eq!(decoder.decode(&mut buffer), Ok(Piece::NeedMore));
        assert_eq!(decoder, Decoder::ChunkEnd);

        let mut many = BytesMut::from(&*"1\r\nx\r\n".repeat(MAX_GATHERED));
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut lengths = Vec::new();
        while let Ok(Piece::Data(data)) = decoder.decode(&mut many) {
            lengths.push(data.len());
        }
        assert_eq!(lengths.iter().sum::<usize>(), MAX_GATHERED);
        assert!(lengths.len() == 2 && lengths.iter().all(|length| *length <= MAX_GATHERED));
    }

    #[test]
    fn broken_chunks_are_refused() {
        for text in [
            &b"+5\r\nhello\r\n0\r\n\r\n"[..],
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello",
            b"5\nhello\r\n0\r\n\r\n",
            b"5 hello\r\n",
            b"5\r\nhelloX\r\n",
            b"11111111111111111\r\nx",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"0\r\nbad name: x\r\n\r\n",
        ] {
            assert_eq!(
                run(Framing::Chunked, text, 100),
                Err(MalformedBody),
                "{:?}",
                String::from_utf8_lossy(text)
            );
        }
        let endless = [b"5;", &vec![b'x'; MAX_CHUNK_LINE][..]].concat();
        assert_eq!(run(Framing::Chunked, &endless, 100), Err(MalformedBody));
    }
}
