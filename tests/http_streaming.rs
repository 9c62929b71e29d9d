//! Bodies in motion: early answers, aborts, slow sides, and how much of them Waypost holds.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::sync::Notify;

use crate::support::{
    http::{End, Wire, timed},
    origin::Origin,
    waypost::{Waypost, eventually},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

async fn in_front_of(origin: &Origin) -> Waypost {
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", origin, "").await;
    waypost
}

/// The process's resident memory, in KiB.
fn memory(waypost: &Waypost) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", waypost.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_head_and_each_piece_arrive_as_they_are_sent() {
    for (head, pieces) in [
        ("Content-Length: 10\r\n", ["hello", "world"]),
        (
            "Transfer-Encoding: chunked\r\n",
            ["5\r\nhello\r\n", "5\r\nworld\r\n0\r\n\r\n"],
        ),
        ("Content-Type: text/event-stream\r\n", ["hello", "world"]),
    ] {
        let go = Arc::new(Notify::new());
        let origin = Origin::run({
            let go = go.clone();
            move |mut served| {
                let go = go.clone();
                async move {
                    served.request().await;
                    served.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n")).await;
                    for piece in pieces {
                        go.notified().await;
                        served.send(piece).await;
                    }
                }
            }
        })
        .await;
        let waypost = in_front_of(&origin).await;
        let mut client = Wire::connect(waypost.address()).await;
        client.send(GET).await;
        assert_eq!(client.head().await.unwrap().status(), 200, "{head}");
        for piece in ["hello", "world"] {
            let early = String::from_utf8_lossy(client.buffered()).into_owned();
            assert!(!early.contains(piece), "{head}");
            go.notify_one();
            client.take_until(piece).await.unwrap();
        }
    }
}

#[tokio::test]
async fn uploads_are_passed_on_as_they_come() {
    let origin = Origin::named("o").await;
    let waypost = in_front_of(&origin).await;
    let seen = Origin::run(async |mut served| {
        served.wire.head().await.unwrap();
        // Each piece is told back, in an answer that begins before the request ends.
        served
            .send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
            .await;
        for piece in ["a", "b", "c", "d"] {
            served.wire.take_until(piece).await.unwrap();
            served.send(piece).await;
        }
        served.wire.take_until("0\r\n\r\n").await.unwrap();
    })
    .await;
    waypost.put("b.test", &seen, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: b.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    assert_eq!(client.head().await.unwrap().status(), 200);
    for piece in ["a", "b", "c", "d"] {
        client.send(format!("1\r\n{piece}\r\n")).await;
        assert_eq!(client.take(1).await.unwrap(), piece.as_bytes());
    }
}

#[tokio::test]
async fn large_bodies_arrive_intact_both_ways() {
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let echo = Origin::run(async |mut served| {
        while let Some(request) = served.request().await {
            let length = request.body.len();
            served
                .send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
                ))
                .await;
            served.send(&request.body).await;
        }
    })
    .await;
    let waypost = in_front_of(&echo).await;
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..2 {
        let mut request = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(&body);
        let response = client.ask(&request).await;
        assert!(response.body == body);
        let mut request =
            b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in body.chunks(70_001) {
            request.extend(format!("{:X}\r\n", piece.len()).bytes());
            request.extend(piece);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
        let response = client.ask(&request).await;
        assert!(response.body == body);
    }
    assert_eq!(echo.connections(), 1);
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_still_uploads() {
    let origin = Origin::run(async |mut served| {
        let head = served.wire.head().await.unwrap();
        served.note(crate::support::http::Message {
            head,
            ..Default::default()
        });
        served
            .send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
            .await;
        served.wire.take_rest().await;
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 500000\r\n\r\n")
        .await;
    client.send("x".repeat(1000)).await;
    let response = client.response("POST").await;
    assert_eq!((response.status(), response.text()), (401, "no"));
    // What is still sent is never taken for another request.
    client
        .send("GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await;
    client.finish().await;
    assert_eq!(client.end().await, End::Fin);
    origin.closed(1).await;
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn an_early_answer_is_whole_for_a_client_that_reads_it_slowly() {
    const LENGTH: usize = 16 << 20;
    let origin = Origin::run(async |mut served| {
        served.wire.head().await.unwrap();
        let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {LENGTH}\r\n\r\n");
        served.send(head).await;
        served.send(vec![b'x'; LENGTH]).await;
        served.wire.take_rest().await;
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\nsome")
        .await;
    let head = client.head().await.unwrap();
    assert_eq!(head.status(), 403);
    let mut left = LENGTH;
    while left > 0 {
        let piece = left.min(64 * 1024);
        let read = client.skip(piece).await;
        assert!(read.is_ok(), "{read:?} with {left} bytes to come");
        left -= piece;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request_upstream() {
    let waypost = Waypost::builder().start().await;
    for (answered, request) in [
        ("", GET),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhello", GET),
        (
            "",
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 99\r\n\r\nhello",
        ),
    ] {
        let origin = Origin::run(move |mut served| async move {
            let head = served.wire.head().await.unwrap();
            served.note(crate::support::http::Message {
                head,
                ..Default::default()
            });
            served.send(answered).await;
            served.wire.take_rest().await;
        })
        .await;
        waypost.put("a.test", &origin, "").await;
        for leave in [End::Fin, End::Reset] {
            let asked = origin.requests().len() + 1;
            let mut client = Wire::connect(waypost.address()).await;
            client.send(request).await;
            origin.asked(asked).await;
            if !answered.is_empty() {
                client.take_until("hello").await.unwrap();
            }
            match leave {
                End::Fin => drop(client),
                End::Reset => client.reset(),
            }
            let (_, took) = timed(origin.closed(asked)).await;
            assert!(
                took < Duration::from_secs(1),
                "{request} {leave:?}: {took:?}"
            );
        }
        waypost.delete("a.test", &origin).await;
    }
}

#[tokio::test]
async fn an_upstream_that_stalls_in_mid_body_is_cut_off() {
    let origin = Origin::run(async |mut served| {
        served.request().await;
        served
            .send("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhello")
            .await;
        served.wire.take_rest().await;
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let settings = json!({"timeouts": {"idle": "300ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut client = Wire::connect(waypost.address()).await;
    let (response, took) = timed(client.ask(GET)).await;
    assert_eq!((response.text(), response.whole), ("hello", false));
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(2),
        "{took:?}"
    );
    origin.closed(1).await;
}

#[tokio::test]
async fn a_slow_reader_costs_no_memory() {
    const SIZE: usize = 200 << 20;
    let origin = Origin::run(async |mut served| {
        while served.request().await.is_some() {
            served
                .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))
                .await;
            let piece = vec![b'x'; 1 << 20];
            for _ in 0..SIZE >> 20 {
                if !served.send(&piece).await {
                    return;
                }
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut client = Wire::connect(waypost.address()).await;
        client.shrink_window();
        client.send(GET).await;
        client.head().await.unwrap();
        stalled.push(client);
    }
    let before = memory(&waypost);
    // One reads on, with rests, while the others stall.
    let mut client = Wire::connect(waypost.address()).await;
    client.send(GET).await;
    client.head().await.unwrap();
    let mut most = before;
    for _ in 0..50 {
        client.skip(2 << 20).await.unwrap();
        most = most.max(memory(&waypost));
    }
    assert!(most < before + 16 * 1024, "{before} KiB grew to {most}");
}

#[tokio::test]
async fn a_slow_upstream_holds_the_upload_back() {
    let go = Arc::new(Notify::new());
    let origin = Origin::run({
        let go = go.clone();
        move |mut served| {
            let go = go.clone();
            async move {
                served.wire.head().await.unwrap();
                go.notified().await;
                served.wire.take(64 << 20).await.unwrap();
                served
                    .send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .await;
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let before = memory(&waypost);
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n",
            64 << 20
        ))
        .await;
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0;
    // Until it blocks: kernel buffers take a few MiB, Waypost next to nothing.
    while let Ok(true) = tokio::time::timeout(Duration::from_millis(500), client.send(&piece)).await
    {
        sent += 1;
        assert!(sent < 40, "all of it was taken");
    }
    let held = memory(&waypost).saturating_sub(before);
    assert!(held < 8 * 1024, "{held} KiB more");
    drop(go);
}

#[tokio::test]
async fn many_truncated_answers_to_uploads_harm_nothing() {
    let origin = Origin::run(async |mut served| {
        served.wire.head().await.unwrap();
        served
            .send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
            .await;
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let body = Arc::new(vec![b'x'; 6 << 20]);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (address, body) = (waypost.address(), body.clone());
            tokio::spawn(async move {
                let mut client = Wire::connect(address).await;
                client
                    .send(format!(
                        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    ))
                    .await;
                client.send(&*body).await;
                let (answer, _) = client.take_rest().await;
                assert!(!answer.ends_with(b"hello\r\n0\r\n\r\n"));
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let running = async || waypost.admin_get("/livez").await.0 == 200;
    eventually("it lives", running).await;
}
