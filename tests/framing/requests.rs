//! What clients send to be taken for something else than it is, and what is to become of it.

use super::recorder::{Arrived, Framing};

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Answered so, and closed; nothing of it goes on.
    Refused(u16),
    /// Goes on as this; the connection is kept, or not.
    Passed(Arrived, Then),
    /// Goes on up to where its body breaks; the client is refused, or cut off.
    Broken(Arrived),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Kept,
    Closed,
}

/// One request, to the last byte.
#[derive(Clone, Debug)]
pub struct Case {
    pub bytes: Vec<u8>,
    pub fate: Fate,
}

/// In a table: what becomes of what is spelled as its first column has it.
enum Is {
    /// 400.
    Bad,
    /// This status.
    Status(u16),
    /// Passed on; what it is in the canonical form depends on the table.
    As(&'static str),
    /// As `As`, and the connection ends.
    Last(&'static str),
    /// Its body breaks after these bytes.
    Cut(&'static str),
}
use Is::{As, Bad, Cut, Last, Status};

/// Request lines, in front of `Host: a.test`; what the line is to be without its version.
const LINES: &[(&str, Is)] = &[
    ("GET /case HTTP/1.1", As("GET /case")),
    ("get /case HTTP/1.1", As("get /case")),
    ("M-SEARCH /case HTTP/1.1", As("M-SEARCH /case")),
    (
        "!#$%&'*+-.^_`|~ /case HTTP/1.1",
        As("!#$%&'*+-.^_`|~ /case"),
    ),
    ("G@T /case HTTP/1.1", Bad),
    ("GE:T /case HTTP/1.1", Bad),
    ("GE\"T /case HTTP/1.1", Bad),
    ("GE(T /case HTTP/1.1", Bad),
    ("GE\0T /case HTTP/1.1", Bad),
    ("G\u{c9}T /case HTTP/1.1", Bad),
    (" GET /case HTTP/1.1", Bad),
    ("\tGET /case HTTP/1.1", Bad),
    ("GET  /case HTTP/1.1", Bad),
    ("GET /case  HTTP/1.1", Bad),
    ("GET\t/case HTTP/1.1", Bad),
    ("GET /case\tHTTP/1.1", Bad),
    ("GET\x0b/case HTTP/1.1", Bad),
    ("GET /case HTTP/1.1 ", Bad),
    ("GET /case HTTP/1.1\t", Bad),
    ("GET /case HTTP/1.1 x", Bad),
    ("GET /ca se HTTP/1.1", Bad),
    ("GET /ca\0se HTTP/1.1", Bad),
    ("GET /ca\x01se HTTP/1.1", Bad),
    ("GET /ca\x7fse HTTP/1.1", Bad),
    ("GET /ca\rse HTTP/1.1", Bad),
    ("GET /case\r HTTP/1.1", Bad),
    // HTTP/0.9, and what is no version of HTTP/1.
    ("GET /case", Bad),
    ("GET", Bad),
    ("GET /case ", Bad),
    ("GET /case HTTP/0.9", Bad),
    ("GET /case HTTP/1.2", Bad),
    ("GET /case HTTP/1", Bad),
    ("GET /case HTTP/1.", Bad),
    ("GET /case HTTP/1.10", Bad),
    ("GET /case HTTP/1.01", Bad),
    ("GET /case HTTP/01.1", Bad),
    ("GET /case HTTP/1,1", Bad),
    ("GET /case HTTP/+1.1", Bad),
    ("GET /case HTTP/2", Bad),
    ("GET /case HTTP/2.0", Bad),
    ("GET /case HTTP/3.0", Bad),
    ("GET /case http/1.1", Bad),
    ("GET /case HTTP /1.1", Bad),
    ("GET /case HTTPS/1.1", Bad),
    ("GET /case XTTP/1.1", Bad),
    ("PRI * HTTP/2.0", Bad),
    ("GET /case HTTP/1.0", Last("GET /case")),
    // Targets: one meaning, or none.
    ("GET /case?a=b&c HTTP/1.1", As("GET /case?a=b&c")),
    ("GET /case?a=/../;%zz HTTP/1.1", As("GET /case?a=/../;%zz")),
    (
        "GET /a/../case//%2e%2F;x HTTP/1.1",
        As("GET /a/../case//%2e%2F;x"),
    ),
    ("GET /case#fragment HTTP/1.1", As("GET /case")),
    ("GET //b.test/case HTTP/1.1", As("GET //b.test/case")),
    ("GET http://a.test/case HTTP/1.1", As("GET /case")),
    ("GET http://a.test HTTP/1.1", As("GET /")),
    ("GET http://b.test/case HTTP/1.1", Bad),
    ("GET http://u@a.test/case HTTP/1.1", Bad),
    ("GET http:///case HTTP/1.1", Bad),
    ("GET http:/case HTTP/1.1", Bad),
    ("GET http: HTTP/1.1", Bad),
    ("GET case HTTP/1.1", Bad),
    ("GET * HTTP/1.1", Bad),
    ("OPTIONS * HTTP/1.1", As("OPTIONS *")),
    ("GET /<case> HTTP/1.1", Bad),
    ("GET /` HTTP/1.1", Bad),
    ("GET \\case HTTP/1.1", Bad),
    ("CONNECT a.test:80 HTTP/1.1", Status(501)),
];

/// Field lines behind `Host`; what they are to be.
const FIELDS: &[(&str, Is)] = &[
    ("X: 1", As("x: 1")),
    ("X:1", As("x: 1")),
    ("X:\t 1 \t", As("x: 1")),
    ("X:", As("x: ")),
    ("X: 1\r\nX: 2", As("x: 1\nx: 2")),
    ("X: a\tb\"c\\d", As("x: a\tb\"c\\d")),
    ("X: \u{e9}", As("x: \u{e9}")),
    ("!#$%&'*+-.^_`|~: 1", As("!#$%&'*+-.^_`|~: 1")),
    ("Connection: x\r\nX: 1", As("")),
    // White space, and nothing, where a name belongs.
    ("X : 1", Bad),
    ("X\t: 1", Bad),
    ("X\x0b: 1", Bad),
    ("X y: 1", Bad),
    (" X: 1", Bad),
    ("\tX: 1", Bad),
    (": 1", Bad),
    (" : 1", Bad),
    (":", Bad),
    ("X", Bad),
    ("\"X\": 1", Bad),
    ("(X): 1", Bad),
    ("X@: 1", Bad),
    ("X/y: 1", Bad),
    ("X\0: 1", Bad),
    ("\0: 1", Bad),
    ("\u{e9}: 1", Bad),
    ("X\u{ff1a} 1", Bad),
    ("\u{feff}X: 1", Bad),
    // Control bytes in values.
    ("X: \0", Bad),
    ("X: a\0b", Bad),
    ("X: \x01", Bad),
    ("X: \x08", Bad),
    ("X: \x0b", Bad),
    ("X: \x0c1", Bad),
    ("X: \x1b[0m", Bad),
    ("X: 1\x7f", Bad),
    // Line ends that are none, and folded lines.
    ("X: a\rb", Bad),
    ("X: a\r", Bad),
    ("X: 1\rY: 2", Bad),
    ("X: 1\r\r\nY: 2", Bad),
    ("X: 1\nY: 2", Bad),
    ("X: 1\n", Bad),
    ("\nX: 1", Bad),
    ("\rX: 1", Bad),
    ("X: 1\n\rY: 2", Bad),
    ("X\r\n: 1", Bad),
    ("X\n: 1", Bad),
    ("X:\r\n 1", Bad),
    ("X: 1\r\n 2", Bad),
    ("X: 1\r\n\t2", Bad),
    ("X: 1\r\n \r\nY: 2", Bad),
    ("X: 1\n 2", Bad),
    ("X: a\nContent-Length: 5", Bad),
    ("X: a\nTransfer-Encoding: chunked", Bad),
    ("X: a\rTransfer-Encoding: chunked", Bad),
    // Names that a server behind may take for those that frame.
    ("Content_Length: 5", As("")),
    ("Transfer_Encoding: chunked", As("")),
    ("Content-Encoding: chunked", As("content-encoding: chunked")),
];

/// All of the head's fields.
const HOSTS: &[(&str, Is)] = &[
    ("Host: a.test", As("a.test")),
    ("hOsT:a.test", As("a.test")),
    ("Host: A.Test", As("A.Test")),
    ("Host: a.test:8080", As("a.test:8080")),
    ("Host: a.test:", As("a.test:")),
    ("Host: a.test.", As("a.test.")),
    ("Host: a_b.test", As("a_b.test")),
    ("Host: 127.0.0.1", As("127.0.0.1")),
    ("Host: [::1]:80", As("[::1]:80")),
    ("X: 1", Bad),
    ("Host:", Bad),
    ("Host: .", Bad),
    ("Host: :80", Bad),
    ("Host: a.test\r\nHost: a.test", Bad),
    ("Host: a.test\r\nHost: b.test", Bad),
    ("Host: a.test\r\nHost:", Bad),
    ("Host: a.test\r\n Host: b.test", Bad),
    ("Host: a.test\nHost: b.test", Bad),
    ("Host: a.test, b.test", Bad),
    ("Host: a.test b.test", Bad),
    ("Host: a.test;b.test", Bad),
    ("Host: u@a.test", Bad),
    ("Host: a.test@b.test", Bad),
    ("Host: a.test/", Bad),
    ("Host: a.test#", Bad),
    ("Host: a.test?x", Bad),
    ("Host: a.test\\b", Bad),
    ("Host: http://a.test", Bad),
    ("Host: a..test", Bad),
    ("Host: .a.test", Bad),
    ("Host: a.test:80:80", Bad),
    ("Host: a.test:99999", Bad),
    ("Host: a.test:+80", Bad),
    ("Host: a.test:8o", Bad),
    ("Host: %61.test", Bad),
    ("Host: *.test", Bad),
    ("Host: \u{e4}.test", Bad),
    ("Host: [::1", Bad),
    ("Host: ::1", Bad),
    ("Host: [::1%25lo]", Bad),
];

/// Values of `Content-Length`, in front of `hello`.
const LENGTHS: &[(&str, Is)] = &[
    ("5", As("hello")),
    ("5 ", As("hello")),
    ("\t5", As("hello")),
    ("0005", As("hello")),
    ("00000000000000000000000000000005", As("hello")),
    ("5\r\nContent-Length: 5", As("hello")),
    ("5\r\nConnection: content-length", As("hello")),
    ("", Bad),
    ("+5", Bad),
    ("-5", Bad),
    ("-0", Bad),
    ("0x5", Bad),
    ("5.0", Bad),
    ("5e0", Bad),
    ("5h", Bad),
    ("five", Bad),
    ("5 5", Bad),
    ("5,5", Bad),
    ("5, 5", Bad),
    ("5, 6", Bad),
    (",5", Bad),
    ("5,", Bad),
    ("5;", Bad),
    ("\"5\"", Bad),
    ("(5)", Bad),
    ("5\x0b", Bad),
    ("\x0c5", Bad),
    ("5\0", Bad),
    ("\u{665}", Bad),
    ("\u{a0}5", Bad),
    ("5\r\n 6", Bad),
    ("5\n6", Bad),
    ("5\rContent-Length: 0", Bad),
    ("5\r\nContent-Length: 6", Bad),
    ("5\r\nContent-Length: 0", Bad),
    ("0\r\nContent-Length: 5", Bad),
    ("5\r\nContent-Length: 5, 5", Bad),
    ("5\r\nContent-Length:", Bad),
    ("5\r\nContent-Length : 6", Bad),
    // The largest that is held by something, one more, and what overflows to 5.
    ("4294967301\r\nContent-Length: 5", Bad),
    ("9223372036854775808", Bad),
    ("18446744073709551615", Bad),
    ("18446744073709551616", Bad),
    ("18446744073709551621", Bad),
    ("99999999999999999999999999", Bad),
];

/// Values of `Transfer-Encoding`, in front of `hello` in one chunk.
const CODINGS: &[(&str, Is)] = &[
    ("chunked", As("hello")),
    ("CHUNKED", As("hello")),
    ("\tchunked ", As("hello")),
    // More white space than is kept of a line.
    (
        "                                                                                                              chunked",
        Bad,
    ),
    ("chunked\r\nConnection: transfer-encoding", As("hello")),
    ("gzip, chunked", Status(501)),
    ("identity, chunked", Status(501)),
    (", chunked", Status(501)),
    ("chunked, chunked", Status(501)),
    ("chunked\r\nTransfer-Encoding: chunked", Status(501)),
    ("gzip\r\nTransfer-Encoding: chunked", Status(501)),
    ("\r\nTransfer-Encoding: chunked", Status(501)),
    ("", Bad),
    ("gzip", Bad),
    ("identity", Bad),
    ("xchunked", Bad),
    ("chunk", Bad),
    ("chunkedx", Bad),
    ("chunked, gzip", Bad),
    ("chunked, identity", Bad),
    ("chunked,", Bad),
    ("chunked;q=1", Bad),
    ("chunked chunked", Bad),
    ("\"chunked\"", Bad),
    ("'chunked'", Bad),
    ("chunked\0", Bad),
    ("chunked\x7f", Bad),
    ("\x0bchunked", Bad),
    ("\x0cchunked", Bad),
    ("chunked\u{a0}", Bad),
    ("chun\u{212a}ed", Bad),
    ("chunked\r\nTransfer-Encoding: identity", Bad),
    ("chunked\r\nTransfer-Encoding: x", Bad),
    ("chunked\r\nTransfer-Encoding:", Bad),
    ("chunked\r\nTransfer-Encoding : x", Bad),
    ("\r\n chunked", Bad),
    ("\n chunked", Bad),
    ("chunked\r\n , identity", Bad),
    ("chunked\nX: 1", Bad),
    // With a length, in whatever order and spelling.
    ("chunked\r\nContent-Length: 5", Bad),
    ("chunked\r\nContent-Length: 15", Bad),
    ("chunked\r\nContent-Length: 0", Bad),
    ("chunked\r\nContent-Length: x", Bad),
    ("chunked\r\nContent-Length:", Bad),
    ("identity\r\nContent-Length: 15", Bad),
    ("gzip, chunked\r\nContent-Length: 15", Bad),
    (
        "chunked\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        Bad,
    ),
];

/// Heads to the last byte: two framings, line ends, and what stands before the request line.
const HEADS: &[(&str, Is)] = &[
    (
        "POST /case HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Bad,
    ),
    (
        "POST /case HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Bad,
    ),
    (
        "POST /case HTTP/1.1\r\nContent-Length: 5\r\nHost: a.test\r\ntransfer-ENCODING:chunked\r\n\r\n0\r\n\r\n",
        Bad,
    ),
    (
        "POST /case HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        Bad,
    ),
    (
        "POST /case HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Bad,
    ),
    (
        "POST /case HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: identity\r\n\r\n",
        Bad,
    ),
    (
        "POST /case HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        Bad,
    ),
    (
        "POST /case HTTP/1.0\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
        Last("hello"),
    ),
    (
        "POST /case HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        As("hello"),
    ),
    (
        "POST /case HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        Last("hello"),
    ),
    ("GET /case HTTP/1.1\nHost: a.test\r\n\r\n", Bad),
    ("GET /case HTTP/1.1\r\nHost: a.test\n\r\n", Bad),
    ("GET /case HTTP/1.1\r\nHost: a.test\r\n\n", Bad),
    ("GET /case HTTP/1.1\nHost: a.test\n\n", Bad),
    ("GET /case HTTP/1.1\r\nHost: a.test\r\n\r\r\n", Bad),
    ("GET /case HTTP/1.1\r\r\nHost: a.test\r\n\r\n", Bad),
    ("GET /case HTTP/1.1\r\n\nHost: a.test\r\n\r\n", Bad),
    ("GET /case HTTP/1.1\r\n\r\nHost: a.test\r\n\r\n", Bad),
    ("GET /case HTTP/1.1\r\n Host: a.test\r\n\r\n", Bad),
    ("\r\nGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", As("")),
    ("\r\n\r\nGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", As("")),
    (
        "\r\n\r\n\r\n\r\n\r\n\r\nGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n",
        Bad,
    ),
    ("\nGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", Bad),
    ("\r\n\nGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", Bad),
    ("\rGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", Bad),
    ("\r\r\nGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", Bad),
    ("\0GET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", Bad),
    ("\u{feff}GET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", Bad),
    ("0\r\n\r\nGET /case HTTP/1.1\r\nHost: a.test\r\n\r\n", Bad),
    ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Bad),
    ("\x16\x03\x01\x02\r\n\r\n", Bad),
    ("SSH-2.0-OpenSSH_9.2\r\n\r\n", Bad),
    // An upgrade that nobody answers with 101 is a request like another (h2c smuggling; Pingora CVE-2026-2833).
    (
        "GET /case HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        As(""),
    ),
    (
        "GET /case HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        As(""),
    ),
    (
        "GET /case HTTP/1.1\r\nHost: a.test\r\nUpgrade: TLS/1.3\r\n\r\n",
        As(""),
    ),
    (
        "GET /case HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        As(""),
    ),
    (
        "POST /case HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello",
        As("hello"),
    ),
    (
        "POST /case HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
        As("hello"),
    ),
    // Whatever the method, a body is one.
    (
        "GET /case HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
        As("hello"),
    ),
    (
        "DELETE /case HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n",
        As(""),
    ),
    (
        "TRACE /case HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
        As("hello"),
    ),
];

/// Behind a head that says `chunked`: what is decoded, then a line for each trailer.
const CHUNKS: &[(&str, Is)] = &[
    ("5\r\nhello\r\n0\r\n\r\n", As("hello")),
    ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", As("hello")),
    ("0\r\n\r\n", As("")),
    ("0000\r\n\r\n", As("")),
    ("A\r\nhellohello\r\n000\r\n\r\n", As("hellohello")),
    ("0000000000000005\r\nhello\r\n0\r\n\r\n", As("hello")),
    ("5;a\r\nhello\r\n0;b=c\r\n\r\n", As("hello")),
    ("5 ; a = \"b;\\\"c\"\r\nhello\r\n0\r\n\r\n", As("hello")),
    ("5 \t\r\nhello\r\n0\r\n\r\n", As("hello")),
    ("5;\u{e9}\r\nhello\r\n0\r\n\r\n", As("hello")),
    ("7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", As("\r\n0\r\n\r\n")),
    // Sizes.
    ("\r\nhello\r\n0\r\n\r\n", Cut("")),
    (";a\r\nhello\r\n0\r\n\r\n", Cut("")),
    (" 5\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("\t5\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("+5\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("-5\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("0x5\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5h\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5 5\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5,\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5\0\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("\u{665}\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("00000000000000005\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("8000000000000000\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("ffffffffffffffff\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("fffffffffffffffe\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("10000000000000000\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("10000000000000005\r\nhello\r\n0\r\n\r\n", Cut("")),
    (
        "f0000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        Cut(""),
    ),
    // Line ends.
    ("5\nhello\r\n0\r\n\r\n", Cut("")),
    ("5\rhello\r\n0\r\n\r\n", Cut("")),
    ("5\r\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5\n\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5\r\nhello\n0\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r0\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n\r\n0\r\n\r\n", Cut("hello")),
    ("5\r\nhello0\r\n\r\n", Cut("hello")),
    ("4\r\nhello\r\n0\r\n\r\n", Cut("hell")),
    ("6\r\nhello\r\n0\r\n\r\n", Cut("hello\r")),
    ("7\r\nhello\r\n0\r\n\r\n", Cut("hello\r\n")),
    ("5\r\nhelloworld\r\n0\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\n\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\n\r\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\r\n\r\n", Cut("hello")),
    // Extensions.
    ("5;\n\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5;a\nb\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5;a\rb\r\nhello\r\n0\r\n\r\n", Cut("")),
    (
        "5;a=\"\r\n0\r\n\r\n\"\r\nhello\r\n0\r\n\r\n",
        Cut("0\r\n\r\n"),
    ),
    ("5;a\0\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5;a\x7f\r\nhello\r\n0\r\n\r\n", Cut("")),
    ("5\r\nhello\r\n0;\x1b\r\n\r\n", Cut("hello")),
    // Trailers: what frames, routes or says who asks is dropped.
    (
        "5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Sum:2\r\n\r\n",
        As("hello\nx-sum: 1\nx-sum: 2"),
    ),
    (
        "5\r\nhello\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\n\r\n",
        As("hello"),
    ),
    (
        "0\r\nConnection: close\r\nTrailer: x\r\nUpgrade: x\r\nTE: x\r\nKeep-Alive: x\r\nProxy-Connection: x\r\n\r\n",
        As(""),
    ),
    (
        "0\r\nAuthorization: x\r\nContent-Encoding: x\r\nForwarded: x\r\nX-Real-IP: x\r\nX_Forwarded_For: x\r\n\r\n",
        As(""),
    ),
    (
        "0\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\n\r\n",
        As(""),
    ),
    ("5\r\nhello\r\n0\r\nx\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\n: x\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\nx : 1\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\n x: 1\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\nx: 1\r\n 2\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\nx: \0\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\nx: a\rb\r\n\r\n", Cut("hello")),
    ("5\r\nhello\r\n0\r\nx: a\nb: c\r\n\r\n", Cut("hello")),
    // hyper alone takes all that follows, up to an empty line, for trailers, and drops it.
    (
        "5\r\nhello\r\n0\r\nx: 1\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
        Cut("hello"),
    ),
    (
        "5\r\nhello\r\n0\r\nx: 1\n\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
        Cut("hello"),
    ),
    (
        "5\r\nhello\r\n0\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
        Cut("hello"),
    ),
];

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |bytes: String, fate: Fate| {
        let bytes = bytes.into_bytes();
        cases.push(Case { bytes, fate });
    };
    for (line, is) in LINES {
        let host = "Host: a.test\r\n\r\n";
        let line_of = |canonical: &str| Arrived {
            line: format!("{canonical} HTTP/1.1"),
            ..get()
        };
        add(format!("{line}\r\n{host}"), is.fate(line_of));
    }
    for (fields, is) in FIELDS {
        let bytes = format!("GET /case HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n\r\n");
        let with_fields = |canonical: &str| {
            let mut arrived = get();
            arrived.fields.extend(canonical.lines().map(str::to_owned));
            arrived
        };
        add(bytes, is.fate(with_fields));
    }
    for (fields, is) in HOSTS {
        let of_host = |host: &str| Arrived {
            fields: vec![format!("host: {host}")],
            ..get()
        };
        let bytes = format!("GET /case HTTP/1.1\r\n{fields}\r\n\r\n");
        add(bytes, is.fate(of_host));
    }
    const POST: &str = "POST /case HTTP/1.1\r\nHost: a.test\r\n";
    for (length, is) in LENGTHS {
        let bytes = format!("{POST}Content-Length: {length}\r\n\r\nhello");
        add(bytes, is.fate(|body| post(Framing::Length, body)));
    }
    for (coding, is) in CODINGS {
        let bytes = format!("{POST}Transfer-Encoding: {coding}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        add(bytes, is.fate(|body| post(Framing::Chunked, body)));
    }
    for (bytes, is) in HEADS {
        let of_head = |body: &str| {
            let line = bytes.trim_start().lines().next().unwrap_or_default();
            let announced = bytes.contains("Content-Length");
            let framing = [Framing::None, Framing::Length][usize::from(announced)];
            Arrived {
                line: line.replace("HTTP/1.0", "HTTP/1.1"),
                ..post(framing, body)
            }
        };
        add((*bytes).to_owned(), is.fate(of_head));
    }
    for (body, is) in CHUNKS {
        let decoded = |text: &str| {
            // What follows a line feed alone are trailers.
            let mut lines = text.split("\nx-");
            let mut arrived = post(Framing::Chunked, lines.next().unwrap_or_default());
            arrived.trailers = lines.map(|rest| format!("x-{rest}")).collect();
            arrived
        };
        let bytes = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{body}");
        add(bytes, is.fate(decoded));
    }
    cases
}

impl Is {
    fn fate(&self, canonical: impl FnOnce(&str) -> Arrived) -> Fate {
        match self {
            Bad => Fate::Refused(400),
            Status(status) => Fate::Refused(*status),
            As(text) => Fate::Passed(canonical(text), Then::Kept),
            Last(text) => Fate::Passed(canonical(text), Then::Closed),
            Cut(text) => Fate::Broken(Arrived {
                whole: false,
                ..canonical(text)
            }),
        }
    }
}

/// `GET /case` as it goes on; another path by `line`.
pub fn get() -> Arrived {
    Arrived {
        line: "GET /case HTTP/1.1".to_owned(),
        fields: vec!["host: a.test".to_owned()],
        whole: true,
        ..Arrived::default()
    }
}

fn post(framing: Framing, body: &str) -> Arrived {
    Arrived {
        line: "POST /case HTTP/1.1".to_owned(),
        framing,
        body: body.as_bytes().to_vec(),
        ..get()
    }
}
