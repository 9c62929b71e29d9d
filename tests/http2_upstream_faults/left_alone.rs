//! What an upstream refused, or left alone when it went away, goes out again.

use super::*;

#[tokio::test]
async fn a_refused_stream_is_tried_again_whatever_its_method_and_a_reset_one_if_it_may() {
    for (reason, method, status, asked) in [
        (Reason::REFUSED_STREAM, "GET", 200, 2),
        (Reason::REFUSED_STREAM, "POST", 200, 2),
        (Reason::INTERNAL_ERROR, "GET", 200, 2),
        (Reason::INTERNAL_ERROR, "POST", 502, 1),
        (Reason::CANCEL, "PATCH", 502, 1),
    ] {
        let first = Arc::new(Semaphore::new(1));
        let origin = H2Origin::each(move |mut exchange: Exchange| {
            let first = first.clone();
            async move {
                match first.try_acquire() {
                    Ok(permit) => {
                        permit.forget();
                        exchange.respond.send_reset(reason);
                    }
                    Err(_) => exchange.say("ok"),
                }
            }
        })
        .await;
        let waypost = in_front_of(&origin).await;
        let answer = send(&waypost, method).await;
        assert_eq!(answer.status(), status, "{method} {reason}");
        assert_eq!(origin.requests().len(), asked, "{method} {reason}");
        assert_eq!(origin.connections(), 1, "{method} {reason}");
        if status == 502 {
            assert_eq!(answer.error(), "connection_terminated");
            let told = answer.text().contains("stream reset before the response");
            assert!(told, "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_everything_is_asked_four_times_and_is_not_at_fault() {
    let origin = H2Origin::each(async |mut exchange| {
        exchange.respond.send_reset(Reason::REFUSED_STREAM);
    })
    .await;
    let waypost = in_front_of(&origin).await;
    strictly(&waypost).await;
    let answer = send(&waypost, "POST").await;
    assert_eq!(
        (answer.status(), answer.error()),
        (502, "connection_terminated")
    );
    assert_eq!(origin.requests().len(), 4);
    assert_eq!(ejections(&waypost).await, 0.0);
}

/// One failure ejects.
async fn strictly(waypost: &Waypost) {
    let settings = json!({"outlier": {"consecutive_failures": 1}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
}

async fn ejections(waypost: &Waypost) -> f64 {
    waypost
        .metric("waypost_upstream_ejections_total", &[])
        .await
}

/// How an upstream says that it did nothing about a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Vouches {
    ByReset,
    ByGoaway,
}

/// Refuses its first request, be it when the head is there or when all of it is, and answers further ones by how long
/// their bodies are.
async fn refuses(
    first: Arc<Semaphore>,
    mut frames: Frames,
    how: Vouches,
    late: bool,
) -> Result<(), End> {
    let window = (1_u32 << 20).to_be_bytes();
    frames.send(WINDOW_UPDATE, 0, 0, &window).await;
    loop {
        let stream = frames.take_kind(HEADERS).await?.stream;
        let refused = first.try_acquire().map(|permit| permit.forget()).is_ok();
        let length = match refused && !late {
            true => 0,
            false => frames.body(stream).await?,
        };
        match how {
            _ if !refused => frames.answer(stream, &length.to_string()).await,
            Vouches::ByReset => {
                let code = u32::from(Reason::REFUSED_STREAM).to_be_bytes();
                frames.send(RST_STREAM, 0, stream, &code).await;
            }
            Vouches::ByGoaway => {
                frames.go_away(0, 0).await;
                return frames.take_kind(u8::MAX).await.map(drop);
            }
        }
    }
}

#[tokio::test]
async fn what_an_upstream_vouches_to_have_left_alone_goes_out_again_with_its_body() {
    for how in [Vouches::ByReset, Vouches::ByGoaway] {
        for (late, size, status) in [
            (false, 1, 200),
            (true, 1, 200),
            (false, 60 << 10, 200),
            (true, 60 << 10, 200),
            (false, (64 << 10) + 1, 502),
        ] {
            let first = Arc::new(Semaphore::new(1));
            let origin = raw(move |frames, _| refuses(first.clone(), frames, how, late)).await;
            let waypost = in_front_of(&origin).await;
            strictly(&waypost).await;
            let body = "x".repeat(size);
            let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {size}\r\n\r\n");
            let answer = ask(waypost.address(), head + &body).await;
            let what = format!("{how:?}, late: {late}, {size}: {}", answer.text());
            assert_eq!(answer.status(), status, "{what}");
            if status == 200 {
                assert_eq!(answer.text(), size.to_string(), "{what}");
            }
            assert_eq!(ejections(&waypost).await, 0.0, "{what}");
        }
    }
}

#[tokio::test]
async fn streams_above_a_goaways_last_go_out_again_and_those_below_finish() {
    for method in ["GET", "POST"] {
        let came_again = Arc::new(Semaphore::new(0));
        let origin = raw(move |mut frames: Frames, connection| {
            let came_again = came_again.clone();
            async move {
                let first = frames.take_kind(HEADERS).await?.stream;
                if connection == 2 {
                    came_again.add_permits(1);
                    frames.answer(first, "second").await;
                    return frames.take_kind(u8::MAX).await.map(drop);
                }
                let second = frames.take_kind(HEADERS).await?.stream;
                assert!(second > first);
                frames.go_away(first, 0).await;
                let _ = came_again.acquire().await;
                frames.answer(first, "first").await;
                frames.take_kind(u8::MAX).await.map(drop)
            }
        })
        .await;
        let waypost = in_front_of(&origin).await;
        let (first, second) = tokio::join!(send(&waypost, method), send(&waypost, method));
        let mut answers = [first, second].map(|answer| answer.text().to_owned());
        answers.sort();
        assert_eq!(answers, ["first", "second"], "{method}");
        assert_eq!(origin.connections(), 2, "{method}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_under_requests_loses_only_what_may_not_be_asked_again() {
    for (method, goes_away, status) in [
        ("GET", false, 200),
        ("GET", true, 200),
        ("POST", false, 502),
        // It was below the GOAWAY's last stream: perhaps it was worked on.
        ("POST", true, 502),
    ] {
        let origin = raw(move |mut frames: Frames, connection| async move {
            let stream = frames.take_kind(HEADERS).await?.stream;
            if connection == 1 {
                if goes_away {
                    frames.go_away(stream, 0).await;
                }
                return Ok(());
            }
            frames.answer(stream, "ok").await;
            frames.take_kind(u8::MAX).await.map(drop)
        })
        .await;
        let waypost = in_front_of(&origin).await;
        let answer = send(&waypost, method).await;
        assert_eq!(answer.status(), status, "{method} {goes_away}");
        let connections = if status == 200 { 2 } else { 1 };
        assert_eq!(origin.connections(), connections, "{method} {goes_away}");
    }
}

#[tokio::test]
async fn a_thousand_requests_survive_a_goaway_after_each_hundred() {
    let origin = H2Origin::run(Builder::new(), async |mut served| {
        let mut tasks = JoinSet::new();
        let mut count = 0;
        while let Some(exchange) = served.accept().await {
            tasks.spawn(async move {
                sleep(Duration::from_millis(2)).await;
                exchange.say("ok");
            });
            count += 1;
            if count == 100 {
                served.connection.graceful_shutdown();
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let left = Arc::new(Mutex::new(1000));
    let mut clients = JoinSet::new();
    for number in 0..30 {
        let (left, address) = (left.clone(), waypost.address());
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        clients.spawn(async move {
            let mut wire = Wire::connect(address).await;
            loop {
                {
                    let mut left = left.lock().await;
                    if *left == 0 {
                        return;
                    }
                    *left -= 1;
                }
                let head =
                    format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n");
                let answer = wire.ask(head).await;
                assert_eq!((answer.status(), answer.text()), (200, "ok"), "{method}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("nothing is lost");
    }
    assert_eq!(origin.requests().len(), 1000, "none was asked twice");
    let connections = origin.connections();
    assert!((8..=10).contains(&connections), "{connections}");
}

#[tokio::test]
async fn a_goaway_without_warning_loses_no_request_that_was_not_worked_on() {
    // As servers do that count requests: whatever comes after the tenth is never looked at.
    let origin = raw(async |mut frames: Frames, _| {
        for _ in 0..10 {
            let stream = frames.take_kind(HEADERS).await?.stream;
            frames.answer(stream, "ok").await;
            if stream == 19 {
                frames.go_away(stream, 0).await;
            }
        }
        frames.take_kind(u8::MAX).await.map(drop)
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let address = waypost.address();
        clients.spawn(async move {
            let mut wire = Wire::connect(address).await;
            for _ in 0..25 {
                let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
                let answer = wire.ask(post).await;
                assert_eq!((answer.status(), answer.text()), (200, "ok"), "{answer:?}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("nothing is lost");
    }
}
