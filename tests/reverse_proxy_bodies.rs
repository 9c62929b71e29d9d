//! What a reverse proxy does to bodies, sentence by sentence, for every client and every upstream (of HTTP/1.1 and of
//! HTTP/2). `reverse_proxy` has the sentences about heads.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use crate::support::{
    http::get,
    origin::Origin,
    pairs::{Asks, Body, Ends, Pairs, Says, Speaks, fields},
};

fn asks(method: &'static str, body: Body) -> Asks {
    Asks {
        method,
        path: "/",
        fields: Vec::new(),
        body,
    }
}

fn ok() -> Says {
    Says {
        length: Some(2),
        pieces: vec![Bytes::from("ok")],
        ..Says::default()
    }
}

/// So many bytes, no two stretches of them alike.
fn pattern(length: u32) -> Bytes {
    let words = (0..length.div_ceil(4)).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_be_bytes());
    words.collect()
}

/// "A GET without a body gets no framing upstream, and one with a body (chunked, or h2 without content-length) arrives
/// whole, as for every method."
#[tokio::test]
async fn bodies_arrive_whole_for_every_method_and_none_stays_none() {
    let pairs = Pairs::new(
        "{}",
        Says {
            length: Some(0),
            ..Says::default()
        },
    )
    .await;
    let text = Bytes::from("a body");
    let bodies = [
        Body::None,
        Body::Length(text.clone()),
        Body::Unknown(text.clone(), Vec::new()),
    ];
    for pair in pairs.all() {
        for method in [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND",
        ] {
            for body in &bodies {
                let what = format!("{pair:?}: {method} {body:?}");
                assert_eq!(
                    pair.ask(&asks(method, body.clone())).await.line,
                    "200",
                    "{what}"
                );
                let request = pair.latest();
                assert_eq!(request.line, format!("{method} /"), "{what}");
                let expects = ["POST", "PUT", "PATCH"].contains(&method);
                let (arrives, length) = match body {
                    Body::None if expects => ("", Some("0")),
                    Body::None => ("", None),
                    Body::Length(_) => ("a body", Some("6")),
                    Body::Unknown(..) => ("a body", None),
                };
                assert_eq!(request.body, arrives, "{what}");
                assert_eq!(
                    request.all("content-length").first().copied(),
                    length,
                    "{what}"
                );
                let coding: &[&str] = match (body, pair.upstream) {
                    (Body::Unknown(..), Speaks::Http1) => &["chunked"],
                    _ => &[],
                };
                assert_eq!(request.all("transfer-encoding"), coding, "{what}");
            }
        }
    }
}

/// "Headers reach the client before the first body byte; unknown length or `text/event-stream` is flushed at once."
#[tokio::test]
async fn heads_and_pieces_arrive_as_they_are_sent() {
    for (length, content_type) in [
        (None, "text/plain"),
        (None, "text/event-stream"),
        (Some(6), "text/event-stream"),
        (Some(6), "text/plain"),
    ] {
        let gate = Arc::new(Semaphore::new(0));
        let says = Says {
            fields: vec![("content-type", content_type)],
            length,
            pieces: vec![Bytes::from("one"), Bytes::from("two")],
            gate: Some(gate.clone()),
            ..Says::default()
        };
        let pairs = Pairs::new("{}", says).await;
        for pair in pairs.all() {
            let mut opened = pair.open(&asks("GET", Body::None)).await;
            assert_eq!(opened.head().await, 200, "{pair:?}");
            gate.add_permits(1);
            opened.body_until("one").await;
            gate.add_permits(1);
            opened.body_until("two").await;
            gate.add_permits(1);
        }
    }
}

/// "Client abort cancels upstream."
#[tokio::test]
async fn a_client_that_leaves_cancels_upstream() {
    let says = Says {
        pieces: vec![Bytes::from("one")],
        ends: Ends::Never,
        ..Says::default()
    };
    let pairs = Pairs::new("{}", says).await;
    for (index, pair) in pairs.all().enumerate() {
        let mut opened = pair.open(&asks("GET", Body::None)).await;
        assert_eq!(opened.head().await, 200, "{pair:?}");
        opened.body_until("one").await;
        drop(opened);
        pair.cancelled(index + 1).await;
    }
}

/// "1 MiB POST intact."
#[tokio::test]
async fn a_mebibyte_is_posted_intact() {
    let answer = pattern(1 << 20);
    let says = Says {
        length: None,
        pieces: vec![answer.clone()],
        ..Says::default()
    };
    let pairs = Pairs::new("{}", says).await;
    let upload = pattern((1 << 20) + 1);
    for pair in pairs.all() {
        for body in [
            Body::Length(upload.clone()),
            Body::Unknown(upload.clone(), fields(&[("x-end", "1")])),
        ] {
            let seen = pair.ask(&asks("POST", body)).await;
            assert_eq!(seen.line, "200", "{pair:?}");
            assert!(
                seen.body == answer,
                "{pair:?}: {} bytes came",
                seen.body.len()
            );
            let request = pair.latest();
            assert!(
                request.body == upload,
                "{pair:?}: {} bytes arrived",
                request.body.len()
            );
        }
    }
}

/// "6 MiB POSTs against truncated replies, concurrently, crash nothing."
#[tokio::test]
async fn large_uploads_against_cut_answers_harm_nothing() {
    let fine = Origin::named("fine").await;
    for (length, early) in [(Some(100_000), true), (None, true), (Some(100_000), false)] {
        let says = Says {
            length,
            early,
            pieces: vec![Bytes::from("some")],
            ends: Ends::Cut,
            ..Says::default()
        };
        let pairs = Pairs::new("{}", says).await;
        pairs.waypost.put("fine.test", &fine, "").await;
        let upload = asks("POST", Body::Length(Bytes::from(vec![b'x'; 6 << 20])));
        let pairs_of_all: Vec<_> = pairs.all().chain(pairs.all()).collect();
        let answers = join_all(pairs_of_all.iter().map(|pair| pair.ask(&upload))).await;
        for (pair, seen) in pairs_of_all.iter().zip(answers) {
            // The reset of an early answer may overtake it; what it may not be is whole.
            let is_error = seen.whole && seen.line == "502";
            assert!(
                is_error || !seen.whole,
                "{pair:?} {length:?} {early}: {seen:?}"
            );
        }
        assert_eq!(
            get(pairs.waypost.address(), "fine.test", "/").await.text(),
            "fine"
        );
    }
}

/// "A hang-up upstream is 502."
#[tokio::test]
async fn an_upstream_that_hangs_up_is_502() {
    let pairs = Pairs::new(
        "{}",
        Says {
            ends: Ends::HangsUp,
            ..ok()
        },
    )
    .await;
    for pair in pairs.all() {
        for (method, body) in [
            ("GET", Body::None),
            ("POST", Body::Length(Bytes::from("x"))),
        ] {
            let seen = pair.ask(&asks(method, body)).await;
            assert_eq!(
                (&*seen.line, seen.whole),
                ("502", true),
                "{pair:?} {method}: {seen:?}"
            );
            let status = seen.all("proxy-status").concat();
            assert!(
                status.contains("error=connection_terminated"),
                "{pair:?}: {status}"
            );
        }
    }
}

/// "A short upstream body is an error for the client."
#[tokio::test]
async fn a_short_body_is_an_error_for_the_client() {
    for length in [Some(100), None] {
        let gate = Arc::new(Semaphore::new(0));
        let says = Says {
            length,
            pieces: vec![Bytes::from("some")],
            ends: Ends::Cut,
            gate: Some(gate.clone()),
            ..Says::default()
        };
        let pairs = Pairs::new("{}", says).await;
        for pair in pairs.all() {
            let mut opened = pair.open(&asks("GET", Body::None)).await;
            gate.add_permits(1);
            assert_eq!(opened.head().await, 200, "{pair:?} {length:?}");
            opened.body_until("some").await;
            gate.add_permits(1);
            assert!(opened.is_cut().await, "{pair:?} {length:?}");
        }
    }
}
