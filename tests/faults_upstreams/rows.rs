//! The tables: what may happen at which point, and what is to come of it.

use crate::support::{
    front::Sees::{self, Cut, Error, Whole},
    misbehaving::{
        Act::{self, Close, Flood, Reset, Say, Stall},
        Point::{
            self, Accept, AfterHead, AfterInterim, AfterResponse, BeforeHead, BeforeLastChunk,
            BeforeRequest, ChunkHeader, Handshake, InBody, InChunk, InEndless, InHead, RequestHead,
            StatusLine, Trailers, Upload,
        },
    },
};

/// Which requests go to another upstream instead, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Never,
    /// Those that may be repeated.
    Idempotent,
    /// Those, and others too where nothing had left.
    Perhaps,
    /// All: nothing had left.
    All,
}
pub use Again::{All, Idempotent, Never, Perhaps};

/// Where it happens, what, what the client sees of it, and what is tried again.
type Row = (Point, Act, Sees, Again);

const ENDED: Sees = Error(502, &["connection_terminated"]);
const INCOMPLETE: Sees = Error(502, &["http_response_incomplete"]);
const NONSENSE: Sees = Error(502, &["http_protocol_error"]);
const TOO_LARGE: Sees = Error(502, &["http_response_header_section_size"]);
const SILENT: Sees = Error(504, &["http_response_timeout"]);
const UNSAFE: Sees = Error(502, &["tls_protocol_error"]);
const OK: Sees = Whole(200, "helloworld");

/// Of an upstream without TLS.
pub const PLAIN: &[Row] = &[
    // A reset may be there before the connect is over.
    (Accept, Close, ENDED, Perhaps),
    (
        Accept,
        Reset,
        Error(502, &["connection_terminated", "connection_refused"]),
        Perhaps,
    ),
    (Accept, Stall, SILENT, Never),
    (Accept, Say("SSH-2.0-OpenSSH_9.2\r\n"), NONSENSE, Never),
    // In order, as a body of unknown length ends.
    (InEndless, Close, Whole(200, "hello"), Never),
];

/// Of an upstream with TLS.
pub const TLS: &[Row] = &[
    (Accept, Close, UNSAFE, All),
    (
        Accept,
        Reset,
        Error(502, &["tls_protocol_error", "connection_refused"]),
        All,
    ),
    (Accept, Stall, Error(504, &["connection_timeout"]), All),
    (Handshake, Close, UNSAFE, All),
    (Handshake, Reset, UNSAFE, All),
    (Handshake, Stall, Error(504, &["connection_timeout"]), All),
    (
        Handshake,
        Say("HTTP/1.1 400 Bad Request\r\n\r\n"),
        UNSAFE,
        All,
    ),
    (Handshake, Flood("\x16\x03\x03\x3f\x7f"), UNSAFE, All),
    (BeforeRequest, Close, ENDED, Perhaps),
    (BeforeRequest, Reset, ENDED, Perhaps),
    (BeforeRequest, Stall, SILENT, Never),
    // Without TLS's word of goodbye anybody could have cut it.
    (InEndless, Close, Cut, Never),
];

/// Of both.
pub const BOTH: &[Row] = &[
    (RequestHead, Close, ENDED, Idempotent),
    (RequestHead, Reset, ENDED, Idempotent),
    (RequestHead, Stall, SILENT, Never),
    (Upload, Close, ENDED, Never),
    (Upload, Reset, ENDED, Never),
    (Upload, Stall, SILENT, Never),
    (BeforeHead, Close, ENDED, Idempotent),
    (BeforeHead, Reset, ENDED, Idempotent),
    (BeforeHead, Stall, SILENT, Never),
    (BeforeHead, Flood("\r\n"), TOO_LARGE, Never),
    (BeforeHead, Flood("x"), NONSENSE, Never),
    (
        BeforeHead,
        Flood("HTTP/1.1 103 Early Hints\r\n\r\n"),
        TOO_LARGE,
        Never,
    ),
    (AfterInterim, Close, ENDED, Idempotent),
    (AfterInterim, Reset, ENDED, Idempotent),
    (AfterInterim, Stall, SILENT, Never),
    (StatusLine, Close, INCOMPLETE, Never),
    (StatusLine, Reset, INCOMPLETE, Never),
    (StatusLine, Stall, SILENT, Never),
    (StatusLine, Flood("0"), NONSENSE, Never),
    (StatusLine, Flood("0 O"), TOO_LARGE, Never),
    (InHead, Close, INCOMPLETE, Never),
    (InHead, Reset, INCOMPLETE, Never),
    (InHead, Stall, SILENT, Never),
    (InHead, Flood("x"), TOO_LARGE, Never),
    (InHead, Flood(": 1\r\nx"), TOO_LARGE, Never),
    (AfterHead, Close, Cut, Never),
    (AfterHead, Reset, Cut, Never),
    (AfterHead, Stall, Cut, Never),
    (InBody, Close, Cut, Never),
    (InBody, Reset, Cut, Never),
    (InBody, Stall, Cut, Never),
    (InEndless, Reset, Cut, Never),
    (InEndless, Stall, Cut, Never),
    (ChunkHeader, Close, Cut, Never),
    (ChunkHeader, Reset, Cut, Never),
    (ChunkHeader, Stall, Cut, Never),
    (ChunkHeader, Flood(";"), Cut, Never),
    (ChunkHeader, Flood("0"), Cut, Never),
    (ChunkHeader, Say("\nworld\n0\n\n"), Cut, Never),
    (InChunk, Close, Cut, Never),
    (InChunk, Reset, Cut, Never),
    (InChunk, Stall, Cut, Never),
    (InChunk, Flood("x"), Cut, Never),
    (BeforeLastChunk, Close, Cut, Never),
    (BeforeLastChunk, Reset, Cut, Never),
    (BeforeLastChunk, Stall, Cut, Never),
    (BeforeLastChunk, Say("-0\r\n\r\n"), Cut, Never),
    (Trailers, Close, Cut, Never),
    (Trailers, Reset, Cut, Never),
    (Trailers, Stall, Cut, Never),
    (Trailers, Flood("x"), Cut, Never),
    (Trailers, Flood(": 1\r\nx"), Cut, Never),
    (Trailers, Say(" : 1\r\n\r\n"), Cut, Never),
    (AfterResponse, Close, OK, Never),
    (AfterResponse, Reset, OK, Never),
    (AfterResponse, Flood("x"), OK, Never),
    (
        AfterResponse,
        Say("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"),
        OK,
        Never,
    ),
];
