//! Upstreams that lie, or speak what is almost HTTP: lengths, codings, versions and bodies that are not what they are said
//! to be. What two parsers could take for two things is refused, or said anew in one way; and what is left over of one
//! answer is never the next one.

use std::sync::Arc;

use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::support::{
    front::{
        Asks, Caller, Front,
        Sees::{self, Cut, Error, Whole},
    },
    misbehaving::{Step, misbehaving},
    origin::Origin,
    waypost::{Waypost, write},
};

const NONSENSE: Sees = Error(502, &["http_protocol_error"]);
const CODING: Sees = Error(502, &["http_response_transfer_coding"]);
const HELLO: Sees = Whole(200, "hello");

/// What becomes of the upstream's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Closed,
    Kept,
}
use Then::{Closed, Kept};

type Row = (&'static str, Sees, Then);

/// Instead of a status line. Where there is a body behind them, it is `hello`.
const STATUS_LINES: &[Row] = &[
    ("HTTP/1.1 099 Odd", NONSENSE, Closed),
    ("HTTP/1.1 000 Odd", NONSENSE, Closed),
    ("HTTP/1.1 1000 Odd", NONSENSE, Closed),
    ("HTTP/1.1 20 Odd", NONSENSE, Closed),
    ("HTTP/1.1 2x0 Odd", NONSENSE, Closed),
    ("HTTP/1.1 -20 Odd", NONSENSE, Closed),
    ("HTTP/1.1  200 OK", NONSENSE, Closed),
    ("HTTP/1.1\t200 OK", NONSENSE, Closed),
    ("HTTP/1.1200 OK", NONSENSE, Closed),
    ("HTTP/0.9 200 OK", NONSENSE, Closed),
    ("HTTP/1.2 200 OK", NONSENSE, Closed),
    ("HTTP/3.0 200 OK", NONSENSE, Closed),
    ("http/1.1 200 OK", NONSENSE, Closed),
    ("ICY 200 OK", NONSENSE, Closed),
    ("<p>HTTP/0.9 has no head</p>", NONSENSE, Closed),
    ("HTTP/1.1 200 O\0K", NONSENSE, Closed),
    ("HTTP/1.1 200 O\x1bK", NONSENSE, Closed),
    ("HTTP/1.1 200 O\rK", NONSENSE, Closed),
    ("HTTP/1.1 200", HELLO, Kept),
    ("HTTP/1.1 200 \u{fc}blich", HELLO, Kept),
    ("HTTP/1.1 999 Odd", Whole(999, "hello"), Kept),
    ("HTTP/1.1 101 Odd", NONSENSE, Closed),
    (
        "HTTP/1.1 101 Odd\r\nConnection: upgrade\r\nUpgrade: h2c",
        NONSENSE,
        Closed,
    ),
    (
        "HTTP/1.1 101 Odd\r\nConnection: upgrade\r\nUpgrade: websocket",
        NONSENSE,
        Closed,
    ),
    ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", HELLO, Kept),
    // The body of what has none is no head.
    (
        "HTTP/1.1 103 Hints\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK",
        NONSENSE,
        Closed,
    ),
    ("HTTP/1.1 200OK", NONSENSE, Closed),
    ("HTTP/1.1 200\tOK", NONSENSE, Closed),
    ("HTTP/1.1 +200 OK", NONSENSE, Closed),
    ("HTTP/1.1 2000 OK", NONSENSE, Closed),
    ("HTTP/1.1", NONSENSE, Closed),
    ("HTTP/2 200 OK", NONSENSE, Closed),
    ("HTTP/2.0 200 OK", NONSENSE, Closed),
    (" HTTP/1.1 200 OK", NONSENSE, Closed),
    ("\0HTTP/1.1 200 OK", NONSENSE, Closed),
    ("\u{feff}HTTP/1.1 200 OK", NONSENSE, Closed),
    ("GET / HTTP/1.1", NONSENSE, Closed),
    ("220 mail ready", NONSENSE, Closed),
    ("0\r\n\r\nHTTP/1.1 200 OK", NONSENSE, Closed),
    ("HTTP/1.0 200 OK", HELLO, Closed),
    // Empty lines before it, as behind the body of an old server.
    ("\r\nHTTP/1.1 200 OK", HELLO, Kept),
];

/// Between a status line and `Content-Length: 5`.
const FIELDS: &[Row] = &[
    (": x", NONSENSE, Closed),
    ("x", NONSENSE, Closed),
    (" x: 1", NONSENSE, Closed),
    ("x\t: 1", NONSENSE, Closed),
    ("x\0: 1", NONSENSE, Closed),
    ("x: 1\x7f", NONSENSE, Closed),
    ("x: 1\r", NONSENSE, Closed),
    ("x: 1\r\n folded", NONSENSE, Closed),
    ("x: 1\r\n\tfolded", NONSENSE, Closed),
    // A line may end in LF alone (RFC 9112 section 2.2): we write it anew.
    ("x: 1\ny: 2", HELLO, Kept),
    (
        "Keep-Alive: timeout=99999999999999999999\r\nUpgrade: h2c\r\nTE: x",
        HELLO,
        Kept,
    ),
    // What frames the message is obeyed, whoever says that it is for one hop only.
    ("Connection: content-length", HELLO, Kept),
    ("\tx: 1", NONSENSE, Closed),
    ("x : 1", NONSENSE, Closed),
    ("x y: 1", NONSENSE, Closed),
    ("\u{e9}: 1", NONSENSE, Closed),
    ("x: a\0b", NONSENSE, Closed),
    ("x: \x01", NONSENSE, Closed),
    ("x: a\rb", NONSENSE, Closed),
    ("x: a\r\r\ny: b", NONSENSE, Closed),
    ("Transfer-Encoding : chunked", NONSENSE, Closed),
    ("Transfer-Encoding\n: chunked", NONSENSE, Closed),
    ("x: a\nContent-Length: 4", NONSENSE, Closed),
    ("x: \u{e9}", HELLO, Kept),
];

/// Values of `Content-Length`.
const LENGTHS: &[Row] = &[
    ("5,", NONSENSE, Closed),
    (",5", NONSENSE, Closed),
    ("5 5", NONSENSE, Closed),
    ("5, 4", NONSENSE, Closed),
    ("5\r\ncontent-length: 4", NONSENSE, Closed),
    ("1e1", NONSENSE, Closed),
    ("5;", NONSENSE, Closed),
    ("5.0", NONSENSE, Closed),
    ("\"5\"", NONSENSE, Closed),
    ("\u{665}", NONSENSE, Closed),
    ("18446744073709551621", NONSENSE, Closed),
    ("5\r\n folded", NONSENSE, Closed),
    ("18446744073709551615", Cut, Closed),
    ("0", Whole(200, ""), Closed),
    ("5\r\nContent-Length: 5, 5", HELLO, Kept),
    ("0005", HELLO, Kept),
    ("", NONSENSE, Closed),
    ("+5", NONSENSE, Closed),
    ("-5", NONSENSE, Closed),
    ("0x5", NONSENSE, Closed),
    ("5\x0b", NONSENSE, Closed),
    ("\u{a0}5", NONSENSE, Closed),
    ("5\r\nContent-Length:", NONSENSE, Closed),
    ("99999999999999999999", NONSENSE, Closed),
];

/// Values of `Transfer-Encoding`, in front of `hello` in one chunk.
const CODINGS: &[Row] = &[
    ("identity", CODING, Closed),
    ("chunked, identity", CODING, Closed),
    ("xchunked", CODING, Closed),
    ("chunked;q=1", CODING, Closed),
    ("chunked,", CODING, Closed),
    ("\"chunked\"", CODING, Closed),
    ("\x0bchunked", NONSENSE, Closed),
    ("", CODING, Closed),
    ("chunked\r\nTransfer-Encoding: identity", CODING, Closed),
    ("chunked\r\nContent-Length: 3", HELLO, Closed),
    ("chunked\r\nConnection: transfer-encoding", HELLO, Kept),
    ("gzip, chunked", CODING, Closed),
    ("chunked, chunked", CODING, Closed),
    (", chunked", CODING, Closed),
    ("'chunked'", CODING, Closed),
    ("chunked\u{a0}", CODING, Closed),
    ("chunked\0", NONSENSE, Closed),
    ("chunked\r\n , identity", NONSENSE, Closed),
    ("CHUNKED", HELLO, Kept),
    ("\tchunked ", HELLO, Kept),
];

/// Behind a head that says `chunked`.
const CHUNKS: &[Row] = &[
    ("5;a=\"b;c\"\r\nhello\r\n00000;x\r\n\r\n", HELLO, Kept),
    (
        "5\r\nhello\r\n0\r\nContent-Length: 3\r\nTransfer-Encoding: x\r\nHost: b\r\n\r\n",
        HELLO,
        Kept,
    ),
    (
        "5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 Evil\r\n\r\n",
        HELLO,
        Closed,
    ),
    ("10000000000000005\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("ffffffffffffffff\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("+5\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    (" 5\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("0x5\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("5\nhello\n0\n\n", Cut, Closed),
    ("5\rXhello\r\n0\r\n\r\n", Cut, Closed),
    ("5;\n\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("5\r\nhello0\r\n\r\n", Cut, Closed),
    ("5\r\nhelloworld\r\n0\r\n\r\n", Cut, Closed),
    ("5\r\nhello\r\n\r\n0\r\n\r\n", Cut, Closed),
    ("5\r\nhello\r\n0\r\nx: 1\r\n folded\r\n\r\n", Cut, Closed),
    ("5\r\nhello\r\n0\r\nx: 1\0\r\n\r\n", Cut, Closed),
    ("5 ;a\r\nhello\r\n0\r\n\r\n", HELLO, Kept),
    ("0000000000000005\r\nhello\r\n0\r\n\r\n", HELLO, Kept),
    ("00000000000000005\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("-5\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("5h\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("5;a\0\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("5;a\rb\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("4\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("6\r\nhello\r\n0\r\n\r\n", Cut, Closed),
    ("5\r\nhello\n0\r\n\r\n", Cut, Closed),
    ("5\r\nhello\r\n0\r\n: 1\r\n\r\n", Cut, Closed),
    ("5\r\nhello\r\n0\r\nx : 1\r\n\r\n", Cut, Closed),
    ("5\r\nhello\r\n0\r\nx\r\n\r\n", Cut, Closed),
];

/// Answers without a body, and what comes behind them all the same.
const BODILESS: &[(&str, &str, Sees, Then)] = &[
    (
        "HEAD",
        "200 OK\r\nContent-Length: 5, 4\r\n\r\n",
        NONSENSE,
        Closed,
    ),
    (
        "HEAD",
        "200 OK\r\nContent-Length: 5\r\n\r\nhello",
        Whole(200, ""),
        Closed,
    ),
    (
        "HEAD",
        "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Whole(200, ""),
        Closed,
    ),
    (
        "GET",
        "304 Same\r\nContent-Length: 5\r\n\r\nhello",
        Whole(304, ""),
        Closed,
    ),
    (
        "GET",
        "304 Same\r\nContent-Length: 5\r\n\r\n",
        Whole(304, ""),
        Kept,
    ),
    (
        "GET",
        "204 None\r\nContent-Length: 5\r\n\r\nhello",
        Whole(204, ""),
        Closed,
    ),
    (
        "GET",
        "204 None\r\nContent-Length: 5\r\n\r\n",
        Whole(204, ""),
        Closed,
    ),
    (
        "GET",
        "204 None\r\nTransfer-Encoding: chunked\r\n\r\n",
        Whole(204, ""),
        Closed,
    ),
];

/// The method, the answer to it, what a client sees, and what becomes of the connection.
type Lie = (&'static str, String, Sees, Then);

fn every_lie() -> Vec<Lie> {
    const HELLO: &str = "Content-Length: 5\r\n\r\nhello";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding";
    let spelled = |rows: &[Row], spell: &dyn Fn(&str) -> String| -> Vec<_> {
        let lies = rows.iter();
        lies.map(|&(lie, sees, then)| ("GET", spell(lie), sees, then))
            .collect()
    };
    let bodiless = BODILESS
        .iter()
        .map(|&(method, answer, sees, then)| (method, format!("HTTP/1.1 {answer}"), sees, then));
    [
        spelled(STATUS_LINES, &|line| format!("{line}\r\n{HELLO}")),
        spelled(FIELDS, &|line| {
            format!("HTTP/1.1 200 OK\r\n{line}\r\n{HELLO}")
        }),
        spelled(LENGTHS, &|length| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhello")
        }),
        spelled(CODINGS, &|coding| {
            format!("{CHUNKED}: {coding}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        }),
        spelled(CHUNKS, &|body| format!("{CHUNKED}: chunked\r\n\r\n{body}")),
        // HTTP/1.0 knows no such thing.
        vec![(
            "GET",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            CODING,
            Closed,
        )],
        bodiless.collect(),
    ]
    .concat()
}

/// So many at a time.
const AT_ONCE: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_be_taken_for_two_things_is_refused_or_said_anew() {
    play(Front::Http11, every_lie(), usize::MAX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_for_clients_of_http_1_0() {
    play(Front::Http10, every_lie(), usize::MAX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_for_clients_of_http_2() {
    play(Front::H2, every_lie(), usize::MAX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_byte_by_byte() {
    let mut lies = every_lie();
    // Of bytes that come behind a whole answer nobody knows whether they do so before the next request.
    lies.retain(|(_, _, sees, then)| *then == Kept || !matches!(sees, Whole(..)));
    play(Front::Http11, lies, 1).await;
}

/// Each lie, in pieces of `step` bytes.
async fn play(front: Front, lies: Vec<Lie>, step: usize) {
    let hosts = tempfile::tempdir().unwrap();
    let good = Origin::named("good").await;
    write(&hosts.path().join(format!("good.test/{good}")), "");
    let settings = json!({"timeouts": {"idle": "1s"}}).to_string();
    let mut liars = Vec::new();
    for (method, answer, sees, then) in lies {
        let pieces = answer.as_bytes().chunks(step);
        let said = pieces.map(|piece| Step::Say(piece.to_vec()));
        let script: Vec<Step> = [Step::Request].into_iter().chain(said).collect();
        let liar = misbehaving(vec![script; 20].concat(), None).await;
        let route = hosts.path().join(format!("{}.test", liars.len()));
        write(&route.join(liar.to_string()), "");
        write(&route.join("@settings"), &settings);
        liars.push((method, answer, sees, then, liar));
    }
    let waypost = Waypost::builder()
        .hosts_dir(hosts.path())
        .flag("--workers", 1)
        .start()
        .await;
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for (number, (method, answer, sees, then, liar)) in liars.into_iter().enumerate() {
        let (address, turns) = (waypost.address(), turns.clone());
        running.spawn(async move {
            let _turn = turns.acquire_owned().await.expect("never closed");
            let mut caller = Caller::new(front, address).await;
            let host = format!("{number}.test");
            for _ in 0..2 {
                let asks = Asks {
                    method,
                    host: &host,
                    path: "/",
                    body: None,
                };
                let seen = caller.ask(asks).await;
                assert!(
                    sees.is(&seen),
                    "{front:?} {method} {answer:?}: {sees:?} expected, {seen:?}"
                );
                let good = Asks {
                    method: "GET",
                    host: "good.test",
                    ..asks
                };
                let seen = caller.ask(good).await;
                assert_eq!(
                    (seen.status, &*seen.body),
                    (Some(200), "good"),
                    "{answer:?}"
                );
            }
            let connections = match then {
                Kept => 1,
                Closed => 2,
            };
            assert_eq!(liar.connections(), connections, "{front:?} {answer:?}");
            if then == Closed {
                liar.closed(2).await;
            }
        });
    }
    let mut failures = Vec::new();
    while let Some(played) = running.join_next().await {
        failures.extend(played.err().map(|error| error.to_string()));
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
