//! What each limit on clients leads to: a prompt answer that says why, a count, and nobody else's harm.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use crate::support::{
    h2_client::H2Client,
    h2_origin::request,
    http::{End, Message, Wire, ask, get, timed},
    origin::Origin,
    tls::Authority,
    waypost::{Builder, Waypost, eventually},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// How long a client waits that no limit is to cut off.
const LONG: &str = "10m";

/// In front of an origin that answers all with `ok`.
async fn serving(builder: Builder) -> (Waypost, Origin) {
    let origin = Origin::named("ok").await;
    let waypost = builder.start().await;
    waypost.put("a.test", &origin, "").await;
    (waypost, origin)
}

async fn hits(waypost: &Waypost, limit: &str) -> usize {
    let labels = [("limit", limit)];
    waypost.metric("waypost_limit_hits_total", &labels).await as usize
}

/// Waits until this limit was hit so often.
async fn until_hit(waypost: &Waypost, limit: &str, times: usize) {
    let what = format!("{limit} was hit {times} times");
    eventually(&what, async || hits(waypost, limit).await == times).await;
}

/// A request with so many fields beside `Host`.
fn with_fields(count: usize) -> String {
    let fields: String = (0..count).map(|n| format!("x-{n}: 1\r\n")).collect();
    format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")
}

/// A request with a field, and a target, of so many bytes.
fn of_size(field: usize, target: usize) -> String {
    let (field, path) = ("f".repeat(field), "p".repeat(target.saturating_sub(1)));
    format!("GET /{path} HTTP/1.1\r\nHost: a.test\r\nx-field: {field}\r\n\r\n")
}

fn assert_refused(answer: &Message, status: u16) {
    assert_eq!(
        (answer.status(), answer.error()),
        (status, "http_request_error")
    );
    assert_eq!(answer.head.one("connection"), Some("close"));
}

/// On a connection of its own: the status, and whether the connection ended in order after a refusal.
async fn outcome(waypost: &Waypost, request: &str) -> u16 {
    let mut client = Wire::connect(waypost.address()).await;
    let answer = client.ask(request).await;
    let status = answer.status();
    if status != 200 {
        assert_eq!(answer.error(), "http_request_error");
    }
    if answer.head.one("connection") == Some("close") {
        assert_eq!(client.end().await, End::Fin, "{status}");
    }
    status
}

#[tokio::test]
async fn heads_beyond_the_defaults_are_431_and_414() {
    let (waypost, origin) = serving(Waypost::builder()).await;
    let kib = 1024;
    for (request, status, limit) in [
        (with_fields(99), 200, ""),
        (with_fields(100), 431, "header_size"),
        (with_fields(20_000), 431, "header_size"),
        (of_size(63 * kib, 10), 200, ""),
        (of_size(90 * kib, 10), 431, "header_size"),
        // All of it at once, and a piece at a time.
        (of_size(4 << 20, 10), 431, "header_size"),
        (of_size(10, 16 * kib), 200, ""),
        (of_size(10, 16 * kib + 1), 414, "target_size"),
        (of_size(10, 70 * kib), 414, "target_size"),
        (of_size(10, 200 * kib), 414, "target_size"),
        (of_size(10, 4 << 20), 414, "target_size"),
        // Both are too much, and the target comes first.
        (of_size(70 * kib, 70 * kib), 414, "target_size"),
        // What follows is another request.
        (with_fields(150) + "GET /next", 431, "header_size"),
        (of_size(85 * kib, 10) + "GET /next", 431, "header_size"),
    ] {
        let before = hits(&waypost, limit).await;
        let length = request.len();
        assert_eq!(outcome(&waypost, &request).await, status, "{length} bytes");
        if status != 200 {
            until_hit(&waypost, limit, before + 1).await;
        }
    }
    assert_eq!(origin.requests().len(), 3);
    // Over HTTP/2 as over HTTP/1.1.
    let client = H2Client::connect(waypost.address()).await;
    for (fields, target, status) in [(98, 10, 200), (150, 10, 431), (1, 16 * kib + 1, 414)] {
        let mut asking = request("GET", &format!("/{}", "p".repeat(target - 1)));
        for n in 0..fields {
            let name: http::HeaderName = format!("x-{n}").parse().expect("a name");
            asking
                .headers_mut()
                .insert(name, "1".parse().expect("a value"));
        }
        let answer = client.ask(asking).await.expect("an answer");
        assert_eq!(answer.status(), status, "{fields} fields, {target} bytes");
    }
}

#[tokio::test]
async fn the_limits_of_a_head_are_what_the_flags_say() {
    let (waypost, _origin) = serving(
        Waypost::builder()
            .flag("--max-header-fields", 150)
            .flag("--max-header-bytes", "128KiB")
            .flag("--max-target-bytes", "1KiB"),
    )
    .await;
    for (request, status) in [
        (with_fields(149), 200),
        (with_fields(150), 431),
        (of_size(120 << 10, 10), 200),
        (of_size(140 << 10, 10), 431),
        (of_size(10, 1 << 10), 200),
        (of_size(10, (1 << 10) + 1), 414),
    ] {
        let length = request.len();
        assert_eq!(outcome(&waypost, &request).await, status, "{length} bytes");
    }
    let (waypost, _origin) = serving(Waypost::builder().flag("--max-header-fields", 5)).await;
    assert_eq!(outcome(&waypost, &with_fields(4)).await, 200);
    assert_eq!(outcome(&waypost, &with_fields(5)).await, 431);
}

/// Times of clients, all short: the requests of well-behaved ones take far less.
fn impatient(flag: &str) -> Builder {
    let all = [
        "--header-timeout",
        "--tls-handshake-timeout",
        "--idle-timeout",
        "--body-timeout",
    ];
    all.into_iter().fold(Waypost::builder(), |builder, each| {
        builder.flag(each, if each == flag { "500ms" } else { LONG })
    })
}

fn assert_in_time(took: Duration) {
    assert!(
        took >= Duration::from_millis(500) && took < Duration::from_secs(8),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_head_that_takes_too_long_is_408() {
    let (waypost, _origin) = serving(impatient("--header-timeout")).await;
    let mut idle = Wire::connect(waypost.address()).await;
    assert_eq!(idle.ask(GET).await.status(), 200);
    for (round, begun) in ["G", "GET / HTTP/1.1\r\nHost: a.test\r\nX-"]
        .into_iter()
        .enumerate()
    {
        let mut client = Wire::connect(waypost.address()).await;
        // One that has to say something already, and one that had.
        if round == 1 {
            assert_eq!(client.ask(GET).await.status(), 200);
        }
        client.send(begun).await;
        let (answer, took) = timed(client.response("GET")).await;
        assert_refused(&answer, 408);
        assert_in_time(took);
        assert_eq!(client.end().await, End::Fin);
        until_hit(&waypost, "header_timeout", round + 1).await;
    }
    // Who has asked for nothing takes no time for it.
    assert_eq!(idle.ask(GET).await.status(), 200);
}

#[tokio::test]
async fn empty_lines_begin_no_request() {
    let (waypost, _origin) = serving(impatient("--header-timeout")).await;
    let mut asked = Wire::connect(waypost.address()).await;
    assert_eq!(asked.ask(GET).await.status(), 200);
    let new = Wire::connect(waypost.address()).await;
    for mut client in [asked, new] {
        client.send("\r\n").await;
        assert!(client.is_silent_for(Duration::from_millis(1200)).await);
        client.send("\r\n").await;
        assert_eq!(client.ask(GET).await.status(), 200);
        // Behind one a head has no more time than any other.
        client.send("\r\nG").await;
        assert_refused(&client.response("GET").await, 408);
    }
}

#[tokio::test]
async fn who_says_nothing_at_first_is_cut_off() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let (waypost, _origin) = serving(
        impatient("--tls-handshake-timeout")
            .listen("http://127.0.0.1:0")
            .listen(&format!("https://127.0.0.1:0?{}", pair.query())),
    )
    .await;
    let mut idle = Wire::connect(waypost.address()).await;
    assert_eq!(idle.ask(GET).await.status(), 200);
    let [plain, tls] = waypost.addresses() else {
        panic!("two listeners");
    };
    // A record that is never completed, for the one with TLS.
    let cases = [
        (plain, ""),
        (plain, "PRI * HT"),
        (tls, ""),
        (tls, "\x16\x03\x01\x02\x00\x01"),
    ];
    for (round, (address, begun)) in cases.into_iter().enumerate() {
        let mut client = Wire::connect(*address).await;
        client.send(begun).await;
        let ((), took) = timed(async {
            let (rest, _) = client.take_rest().await;
            assert!(rest.is_empty(), "{rest:?}");
        })
        .await;
        assert_in_time(took);
        until_hit(&waypost, "tls_handshake_timeout", round + 1).await;
    }
    assert_eq!(idle.ask(GET).await.status(), 200);
}

#[tokio::test]
async fn who_asks_for_nothing_more_is_closed() {
    let (waypost, _origin) = serving(impatient("--idle-timeout")).await;
    let mut client = Wire::connect(waypost.address()).await;
    assert_eq!(client.ask(GET).await.status(), 200);
    let (end, took) = timed(client.end()).await;
    assert_eq!(end, End::Fin);
    assert_in_time(took);
    until_hit(&waypost, "idle_timeout", 1).await;
}

#[tokio::test]
async fn who_stops_in_mid_body_is_408() {
    let (waypost, _origin) = serving(impatient("--body-timeout")).await;
    let upload = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nhalf";
    let (answer, took) = timed(ask(waypost.address(), upload)).await;
    assert_refused(&answer, 408);
    assert_in_time(took);
    until_hit(&waypost, "body_timeout", 1).await;
    let client = H2Client::connect(waypost.address()).await;
    let (response, _stream) = client.open(request("POST", "/"), false).await;
    let answer = crate::support::h2_client::collect(response).await;
    assert_eq!(answer.expect("an answer").status(), 408);
    until_hit(&waypost, "body_timeout", 2).await;

    // A route may be more patient, or less.
    let settings = json!({"timeouts": {"client_body": LONG}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut slow = Wire::connect(waypost.address()).await;
    slow.send(upload).await;
    assert!(slow.is_silent_for(Duration::from_millis(1500)).await);
    slow.send("whole").await;
    assert_eq!(slow.response("POST").await.text(), "ok");
    assert_eq!(hits(&waypost, "body_timeout").await, 2);
}

#[tokio::test]
async fn who_does_not_read_is_cut_off() {
    let origin = Origin::answering(&format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
        16 << 20,
        "x".repeat(16 << 20)
    ))
    .await;
    let waypost = impatient("--body-timeout").start().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    client.shrink_window();
    client.send(GET).await;
    until_hit(&waypost, "write_timeout", 1).await;
    eventually("its connection is gone", async || {
        waypost.metric("waypost_connections", &[]).await == 0.0
    })
    .await;
    // By a reset: what the kernel holds for it is gone too.
    assert_eq!(client.take_rest().await.1, End::Reset);
    origin.closed(1).await;
}

#[tokio::test]
async fn a_body_beyond_what_its_route_takes_is_counted() {
    let (waypost, _origin) = serving(Waypost::builder()).await;
    let settings = json!({"max_body": "4B"}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let upload = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nnine bytes";
    assert_refused(&ask(waypost.address(), upload).await, 413);
    until_hit(&waypost, "body_size", 1).await;
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 200);
}

#[tokio::test]
async fn streams_and_windows_of_http2_are_what_the_flags_say() {
    let builder = Waypost::builder()
        .flag("--h2-max-streams", 7)
        .flag("--h2-stream-window", "32KiB")
        .flag("--h2-connection-window", "128KiB")
        .flag("--max-header-bytes", "8KiB");
    let waypost = builder.start().await;
    let stream = TcpStream::connect(waypost.address())
        .await
        .expect("it accepts");
    let mut client = Wire::tcp(stream);
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.send(b"\0\0\0\x04\0\0\0\0\0").await;
    let mut settings = std::collections::BTreeMap::new();
    let mut window = 65_535;
    // Its SETTINGS, the WINDOW_UPDATE of the connection, and the acknowledgement of ours, in any order.
    for _ in 0..3 {
        let head = client.take(9).await.expect("a frame");
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let payload = client.take(length).await.expect("a frame");
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u32::from(byte))
        };
        match head[3] {
            4 => settings.extend(
                payload
                    .chunks(6)
                    .map(|pair| (number(&pair[..2]), number(&pair[2..]))),
            ),
            8 => window += number(&payload),
            other => panic!("a frame of type {other}"),
        }
    }
    // SETTINGS_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE and _MAX_HEADER_LIST_SIZE (RFC 9113 section 6.5.2).
    let said = [3, 4, 6].map(|name| settings.get(&name).copied());
    assert_eq!(
        said,
        [Some(7), Some(32 << 10), Some(8 << 10)],
        "{settings:?}"
    );
    assert_eq!(window, 128 << 10);
}
