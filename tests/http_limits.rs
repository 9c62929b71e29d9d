//! Time limits of clients and settings of routes that no other file is about.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    http::{End, Message, Wire, get, timed},
    origin::{Origin, Refusing},
    waypost::Waypost,
};

#[tokio::test]
async fn a_slow_but_steady_request_is_served() {
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    for byte in b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nby pieces" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.response("POST").await.text(), "ok");
    assert_eq!(origin.latest().text(), "by pieces");
}

#[tokio::test]
async fn the_limit_on_the_whole_request_cuts_a_body_too() {
    let origin = Origin::run(async |mut served| {
        served.request().await;
        served
            .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        // Never silent for long, and never done.
        while served.send("1\r\nx\r\n").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let settings = json!({"timeouts": {"request": "300ms", "idle": "5s"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let (response, took) = timed(get(waypost.address(), "a.test", "/")).await;
    assert_eq!((response.status(), response.whole), (200, false));
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(2),
        "{took:?}"
    );
    origin.closed(1).await;
}

#[tokio::test]
async fn a_slow_upload_is_no_slow_upstream() {
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    // The response's time begins with the last byte of the request.
    let settings = json!({"timeouts": {"response": "200ms", "idle": "200ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nab")
        .await;
    assert!(client.is_silent_for(Duration::from_millis(700)).await);
    client.send("cd").await;
    assert_eq!(client.response("POST").await.text(), "ok");
}

#[tokio::test]
async fn settings_that_change_hold_from_the_next_request_on() {
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    for value in ["1", "2"] {
        let settings = json!({"response_headers": {"set": {"X-Version": value}}}).to_string();
        waypost.put("a.test", "@settings", &settings).await;
        let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(response.head.one("x-version"), Some(value));
    }
    // What is not understood is rejected, and what was in force stays so.
    waypost
        .put("a.test", "@settings", "{\"max_body\": -1}")
        .await;
    let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(response.head.one("x-version"), Some("2"));
    waypost.delete("a.test", "@settings").await;
    let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(response.head.one("x-version"), None);
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn upstreams_come_and_go_under_requests_without_losing_any() {
    let waypost = Waypost::builder().start().await;
    let first = Origin::named("ok").await;
    waypost.put("a.test", &first, "").await;
    let address = waypost.address();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut client = Wire::connect(address).await;
                let mut answered = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
                    assert_eq!((response.status(), response.text()), (200, "ok"));
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let refusing = Refusing::new();
    for _ in 0..5 {
        let other = Origin::named("ok").await;
        waypost.put("a.test", &other, "").await;
        waypost.put("a.test", &refusing, "").await;
        waypost.delete("a.test", &other).await;
        waypost.delete("a.test", &refusing).await;
        // Nothing is left of it once it is removed: its idle connections are closed.
        other.closed(other.connections()).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn connections_that_say_nothing_or_half_a_preface_cost_nobody_else() {
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    waypost.put("a.test", &origin, "").await;
    let mut silent = Vec::new();
    for text in ["", "P", "PRI * HTTP/2.0\r\n", "GET"] {
        let mut client = Wire::connect(waypost.address()).await;
        client.send(text).await;
        silent.push(client);
    }
    assert_eq!(get(waypost.address(), "a.test", "/").await.text(), "ok");
    // `P` may still become a POST.
    silent[1]
        .send("OST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert_eq!(silent[1].response("POST").await.text(), "ok");
    silent[3].finish().await;
    assert_eq!(silent[3].end().await, End::Fin);
}

#[tokio::test]
async fn an_upstream_that_takes_no_more_of_an_upload_is_504() {
    let origin = Origin::run(async |mut served| {
        let head = served.wire.head().await.unwrap();
        served.note(Message {
            head,
            ..Message::default()
        });
        // Reads no more, and stays.
        std::future::pending::<()>().await;
    })
    .await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let settings = json!({"timeouts": {"idle": "300ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n",
            64 << 20
        ))
        .await;
    let (mut reading, mut writing) = client.split();
    let upload =
        tokio::spawn(async move { while writing.write_all(&[0; 64 * 1024]).await.is_ok() {} });
    let response = reading.response("POST").await;
    assert_eq!(
        (response.status(), response.error()),
        (504, "http_response_timeout")
    );
    upload.abort();
}
