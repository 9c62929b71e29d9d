//! What a reverse proxy does to heads, sentence by sentence, for every client and every upstream (of HTTP/1.1 and of
//! HTTP/2) that a sentence makes sense for. `reverse_proxy_bodies` has those about bodies, and `reverse_proxy_targets` those
//! about what is asked for.
//!
//! "101 gives a two-way byte stream, half-close included, closed by cancellation" is in `http_upgrade`, "103 and 102
//! relayed in order" in `http_interim` and `http2_upstream`.

use bytes::Bytes;
use serde_json::json;

use crate::support::{
    front::{self, Caller, Front},
    h2_raw,
    http::{End, Wire},
    origin::Origin,
    pairs::{Asks, Body, Pairs, Says, Speaks, fields},
    waypost::Waypost,
};

const NO: [&str; 0] = [];

fn asks(path: &'static str, with: &[(&str, &str)]) -> Asks {
    Asks {
        method: "GET",
        path,
        fields: fields(with),
        body: Body::None,
    }
}

fn ok() -> Says {
    Says {
        length: Some(2),
        pieces: vec![Bytes::from("ok")],
        ..Says::default()
    }
}

/// "`Connection`, `Keep-Alive`, `Proxy-Connection`, `Upgrade`, `Te`, `Transfer-Encoding` removed", "every field named by
/// any `Connection` line removed, in both directions, and with an empty `Connection` line too": on the way in. Over
/// HTTP/2 no client may send them.
#[tokio::test]
async fn hop_by_hop_fields_end_at_waypost() {
    let pairs = Pairs::new("{}", ok()).await;
    let asks = Asks {
        method: "POST",
        body: Body::Unknown(Bytes::from("x"), Vec::new()),
        ..asks(
            "/",
            &[
                ("connection", "x-one, close"),
                ("connection", ""),
                ("connection", "X-Two"),
                ("x-one", "1"),
                ("x-two", "2"),
                ("x-three", "3"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("upgrade", "h2c"),
                ("te", "gzip;q=1"),
            ],
        )
    };
    for pair in pairs.all().filter(|pair| pair.front == Speaks::Http1) {
        assert_eq!(pair.ask(&asks).await.line, "200", "{pair:?}");
        let head = pair.latest();
        for gone in [
            "connection",
            "x-one",
            "x-two",
            "keep-alive",
            "proxy-connection",
            "upgrade",
            "te",
        ] {
            assert_eq!(head.all(gone), NO, "{pair:?}: {gone}");
        }
        let coding: &[&str] = match pair.upstream {
            // Of this connection's own body.
            Speaks::Http1 => &["chunked"],
            Speaks::H2 => &[],
        };
        assert_eq!(head.all("transfer-encoding"), coding, "{pair:?}");
        assert_eq!(head.all("x-three"), ["3"], "{pair:?}");
    }
    let before = pairs.all().next().expect("a pair").asked();
    for (name, value) in [
        ("connection", "x-one"),
        ("connection", ""),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
    ] {
        for host in ["one.test", "two.test"] {
            let fields = [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", host),
                (":path", "/"),
                (name, value),
            ];
            let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            let outcome = h2_raw::ask(pairs.waypost.address(), &fields).await;
            assert_eq!(outcome.status(), 400, "{name}: {value} to {host}");
        }
    }
    assert_eq!(pairs.all().next().expect("a pair").asked(), before);
}

/// The same on the way out. No upstream of HTTP/2 may send them.
#[tokio::test]
async fn hop_by_hop_fields_of_answers_end_at_waypost() {
    let says = Says {
        fields: vec![
            ("Connection", "keep-alive, X-One"),
            ("Connection", ""),
            ("Connection", "x-two"),
            ("X-One", "1"),
            ("X-Two", "2"),
            ("X-Three", "3"),
            ("Keep-Alive", "timeout=20"),
            ("Proxy-Connection", "keep-alive"),
            ("Upgrade", "h2c"),
            ("TE", "trailers"),
        ],
        length: None,
        ..ok()
    };
    let pairs = Pairs::new("{}", says).await;
    for pair in pairs.all().filter(|pair| pair.upstream == Speaks::Http1) {
        let answer = pair.ask(&asks("/", &[])).await;
        assert_eq!(
            (&*answer.line, &*answer.body),
            ("200", &b"ok"[..]),
            "{pair:?}"
        );
        for gone in [
            "connection",
            "x-one",
            "x-two",
            "keep-alive",
            "proxy-connection",
            "upgrade",
            "te",
        ] {
            assert_eq!(answer.all(gone), NO, "{pair:?}: {gone}");
        }
        let coding: &[&str] = match pair.front {
            Speaks::Http1 => &["chunked"],
            Speaks::H2 => &[],
        };
        assert_eq!(answer.all("transfer-encoding"), coding, "{pair:?}");
        assert_eq!(answer.all("x-three"), ["3"], "{pair:?}");
    }
}

/// "`TE: trailers` kept, and `Trailer` re-announced": on the way in, with the trailers themselves.
#[tokio::test]
async fn trailers_of_requests_arrive_and_are_announced() {
    let pairs = Pairs::new("{}", ok()).await;
    let asks = Asks {
        method: "POST",
        body: Body::Unknown(Bytes::from("body"), fields(&[("x-sum", "1")])),
        ..asks("/", &[("te", "trailers"), ("trailer", "x-sum")])
    };
    for pair in pairs.all() {
        assert_eq!(pair.ask(&asks).await.line, "200", "{pair:?}");
        let request = pair.latest();
        assert_eq!(request.all("te"), ["trailers"], "{pair:?}");
        assert_eq!(request.all("trailer"), ["x-sum"], "{pair:?}");
        assert_eq!(request.body, "body", "{pair:?}");
        assert_eq!(request.trailers, fields(&[("x-sum", "1")]), "{pair:?}");
    }
}

/// "Announced trailers arrive (HTTP/1.1 clients that sent `TE: trailers`; h2 clients always, unannounced ones too)."
#[tokio::test]
async fn trailers_of_answers_arrive_and_are_announced() {
    let says = Says {
        fields: vec![("trailer", "x-sum")],
        length: None,
        trailers: vec![("x-sum", "1"), ("x-more", "2")],
        ..ok()
    };
    let pairs = Pairs::new("{}", says).await;
    for pair in pairs.all() {
        for te in [&[][..], &[("te", "trailers")]] {
            let mut answer = pair.ask(&asks("/", te)).await;
            assert_eq!(
                (&*answer.line, &*answer.body),
                ("200", &b"ok"[..]),
                "{pair:?}"
            );
            assert_eq!(answer.all("trailer"), ["x-sum"], "{pair:?}");
            let expected: &[(&str, &str)] = match (pair.front, te.is_empty()) {
                (Speaks::Http1, true) => &[],
                (Speaks::Http1, false) => &[("x-sum", "1")],
                (Speaks::H2, _) => &[("x-more", "2"), ("x-sum", "1")],
            };
            answer.trailers.sort();
            assert_eq!(answer.trailers, fields(expected), "{pair:?} {te:?}");
        }
    }
}

/// "Multi-valued fields and `Set-Cookie` kept apart", "an absent User-Agent stays absent".
#[tokio::test]
async fn fields_stay_as_many_as_they_are() {
    let says = Says {
        fields: vec![
            ("set-cookie", "a=1; Path=/"),
            ("x-list", "1, 2"),
            ("set-cookie", "b=2, c"),
            ("x-list", "3"),
        ],
        ..ok()
    };
    let pairs = Pairs::new("{}", says).await;
    let with = [
        ("accept", "a, b"),
        ("x-list", "1"),
        ("accept", "c"),
        ("x-list", ""),
        ("x-list", "2"),
    ];
    for pair in pairs.all() {
        let answer = pair.ask(&asks("/", &with)).await;
        assert_eq!(
            answer.all("set-cookie"),
            ["a=1; Path=/", "b=2, c"],
            "{pair:?}"
        );
        assert_eq!(answer.all("x-list"), ["1, 2", "3"], "{pair:?}");
        let request = pair.latest();
        assert_eq!(request.all("accept"), ["a, b", "c"], "{pair:?}");
        assert_eq!(request.all("x-list"), ["1", "", "2"], "{pair:?}");
        for absent in [
            "user-agent",
            "via",
            "accept-encoding",
            "content-length",
            "content-type",
        ] {
            assert_eq!(request.all(absent), NO, "{pair:?}: {absent}");
        }
    }
}

/// "`X-Forwarded-For` appended to a trusted prior value, and omissible."
#[tokio::test]
async fn the_clients_address_is_appended_to_what_is_trusted_or_left_out() {
    let without = json!({"request_headers": {"remove": ["X-Forwarded-For"]}}).to_string();
    let prior = "203.0.113.9, 10.1.1.1, 127.0.0.1";
    for (trusted, settings, expected) in [
        (None, "{}", Some("127.0.0.1")),
        (Some("127.0.0.0/8"), "{}", Some(prior)),
        (None, &*without, None),
        (Some("127.0.0.0/8"), &without, None),
    ] {
        let mut builder = Waypost::builder();
        if let Some(trusted) = trusted {
            builder = builder.flag("--trusted-proxies", trusted);
        }
        let pairs = Pairs::of(builder, settings, ok()).await;
        let claims = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.1.1.1"),
        ];
        for pair in pairs.all() {
            assert_eq!(pair.ask(&asks("/", &claims)).await.line, "200", "{pair:?}");
            let expected: Vec<_> = expected.into_iter().collect();
            let request = pair.latest();
            assert_eq!(
                request.all("x-forwarded-for"),
                expected,
                "{pair:?} {trusted:?} {settings}"
            );
            assert_eq!(request.all("x-forwarded-proto"), ["http"], "{pair:?}");
            assert_eq!(request.all("x-forwarded-host"), [pair.host()], "{pair:?}");
            assert_eq!(request.host, pair.host(), "{pair:?}");
        }
    }
}

/// "HTTP/1.0 without a body works."
#[tokio::test]
async fn http_1_0_without_a_body_works() {
    for length in [Some(2), None] {
        let pairs = Pairs::new("{}", Says { length, ..ok() }).await;
        for pair in pairs.all().filter(|pair| pair.front == Speaks::Http1) {
            let mut client = Wire::connect(pairs.waypost.address()).await;
            client
                .send(format!("GET /x HTTP/1.0\r\nHost: {}\r\n\r\n", pair.host()))
                .await;
            let (answer, end) = client.take_rest().await;
            let answer = String::from_utf8(answer).expect("text");
            assert!(answer.starts_with("HTTP/1.0 200 "), "{pair:?}: {answer}");
            assert!(answer.ends_with("\r\n\r\nok"), "{pair:?}: {answer}");
            assert_eq!(end, End::Fin, "{pair:?}");
            assert_eq!(pair.latest().line, "GET /x", "{pair:?}");
        }
    }
}

/// "A late 1xx never touches a finished response": of an HTTP/1.1 upstream, to clients of both kinds.
#[tokio::test]
async fn what_comes_after_an_answer_is_no_part_of_the_next() {
    let late = "HTTP/1.1 103 Early Hints\r\nLink: </late>\r\n\r\n";
    let answer = |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{text}");
    let stray = answer("bad");
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    for (front, host) in [(Front::Http11, "one.test"), (Front::H2, "two.test")] {
        let (first, second) = (format!("{}{late}{stray}", answer("one")), answer("two"));
        let origin = Origin::run(move |mut served| {
            let (first, second) = (first.clone(), second.clone());
            async move {
                let number = served.connection;
                while served.request().await.is_some() {
                    served
                        .send(if number == 1 { &first } else { &second })
                        .await;
                }
            }
        })
        .await;
        waypost.put(host, &origin, "").await;
        let mut client = Caller::new(front, waypost.address()).await;
        for expected in ["one", "two", "two"] {
            let asks = front::Asks {
                method: "GET",
                host,
                path: "/",
                body: None,
            };
            let seen = client.ask(asks).await;
            assert_eq!(
                (seen.status, &*seen.body),
                (Some(200), expected),
                "{front:?}"
            );
        }
        assert_eq!(origin.connections(), 2, "{front:?}: the first was dropped");
    }
}
