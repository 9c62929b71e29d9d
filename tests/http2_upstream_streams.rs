//! HTTP/2 connections to upstreams: what one stream meets with costs the others on its connection nothing, and what a
//! connection meets with costs new ones nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::client;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{
    h2_client::{self, H2Client},
    h2_origin::{
        DATA, END_HEADERS, END_STREAM, Frame, Frames, HEADERS, OK, PING, RST_STREAM, raw, request,
    },
    http::{End, Wire, get, timed},
    waypost::{DEADLINE, Waypost, eventually},
};

const H2: &str = r#"{"protocol": "h2"}"#;
const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
/// Of a PING that is an answer.
const ACK: u8 = 1;

/// A route to one upstream, for one worker.
async fn in_front_of(origin: impl ToString) -> Waypost {
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    waypost.put("a.test", origin, H2).await;
    waypost
}

/// Waits until all that was sent has been worked on; the frames of this kind that came meanwhile.
async fn settled(frames: &mut Frames, kind: u8) -> Result<Vec<Frame>, End> {
    frames.send(PING, 0, 0, b"settled?").await;
    let mut seen = Vec::new();
    loop {
        let frame = frames.take().await?;
        match (frame.kind, frame.flags) {
            (PING, ACK) => return Ok(seen),
            (known, _) if known == kind => seen.push(frame),
            _ => {}
        }
    }
}

/// A client none of whose streams takes more than this, until [`client::Connection`] says otherwise.
async fn deaf_client(
    waypost: &Waypost,
    window: u32,
) -> (client::SendRequest<Bytes>, client::Connection<TcpStream>) {
    let stream = TcpStream::connect(waypost.address()).await.unwrap();
    let mut builder = client::Builder::new();
    builder.initial_window_size(window);
    builder.initial_connection_window_size(1 << 20);
    builder.handshake(stream).await.unwrap()
}

#[tokio::test]
async fn small_frames_that_nobody_reads_end_no_other_stream_and_cost_little() {
    const DEAF: usize = 8;
    /// All of a stream's window, a byte at a time.
    const FRAMES: usize = 64_000;
    let hear = Arc::new(Semaphore::new(0));
    let origin = raw({
        let hear = hear.clone();
        move |mut frames: Frames, _| {
            let hear = hear.clone();
            async move {
                let mut deaf = Vec::new();
                while deaf.len() < DEAF {
                    let stream = frames.take_kind(HEADERS).await?.stream;
                    frames.send(HEADERS, END_HEADERS, stream, OK).await;
                    deaf.push(stream);
                }
                let other = frames.take_kind(HEADERS).await?.stream;
                for stream in &deaf {
                    let mut flood = Vec::with_capacity(10 * FRAMES);
                    for number in 0..FRAMES {
                        flood.extend([0, 0, 1, DATA, 0]);
                        flood.extend(stream.to_be_bytes());
                        flood.push((number % 251) as u8);
                    }
                    frames.0.send(&flood).await;
                    settled(&mut frames, u8::MAX).await?;
                }
                frames.answer(other, "ok").await;
                let _ = hear.acquire().await;
                for stream in deaf {
                    frames.send(DATA, END_STREAM, stream, b"!").await;
                }
                frames.take_kind(u8::MAX).await.map(drop)
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let (mut sender, mut connection) = deaf_client(&waypost, 1000).await;
    let (widen, mut widened) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::select! {
            _ = &mut connection => return,
            _ = &mut widened => {}
        }
        connection.set_initial_window_size(1 << 20).unwrap();
        let _ = connection.await;
    });
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        sender = sender.ready().await.unwrap();
        let (response, _) = sender.send_request(request("GET", "/"), true).unwrap();
        deaf.push(response.await.unwrap().into_body());
    }
    let answer = get(waypost.address(), "a.test", "/").await;
    assert_eq!((answer.status(), answer.text()), (200, "ok"));
    assert_eq!(origin.connections(), 1);
    let (_, most) = waypost.memory();
    assert!(most < 80 << 20, "{most} bytes");
    // What was kept for them is whole, and in order.
    hear.add_permits(1);
    let _ = widen.send(());
    for body in deaf {
        let (body, _) = h2_client::rest(body).await.unwrap();
        assert_eq!(body.len(), FRAMES + 1);
        let bytes = body[..FRAMES].iter().enumerate();
        let is_ordered = bytes.clone().all(|(n, &byte)| usize::from(byte) == n % 251);
        assert!(is_ordered && body.ends_with(b"!"));
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_is_502_though_a_connection_that_closes_lives_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let waypost = in_front_of(listener.local_addr().unwrap()).await;
    let settings = json!({"timeouts": {"connect": "30s"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut watching = Wire::connect(waypost.address()).await;
    watching.send(GET).await;
    let (stream, _) = listener.accept().await.unwrap();
    let mut frames = Frames::accept(Wire::tcp(stream)).await.unwrap();
    let stream = frames.take_kind(HEADERS).await.unwrap().stream;
    // As a server does that is told to end.
    drop(listener);
    frames.go_away(stream, 0).await;
    frames.send(HEADERS, END_HEADERS, stream, OK).await;
    watching.head().await.unwrap();
    let (answer, time) = timed(get(waypost.address(), "a.test", "/")).await;
    assert_eq!(
        (answer.status(), answer.error()),
        (502, "connection_refused")
    );
    assert!(time < Duration::from_secs(10), "{time:?}");
    frames.send(DATA, END_STREAM, stream, b"whole").await;
    watching.take_until("whole").await.unwrap();
}

#[tokio::test]
async fn connections_that_close_take_no_new_ones_place() {
    let origin = raw(async |mut frames: Frames, _| {
        let stream = frames.take_kind(HEADERS).await?.stream;
        frames.go_away(stream, 0).await;
        frames.send(HEADERS, END_HEADERS, stream, OK).await;
        frames.take_kind(u8::MAX).await.map(drop)
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut watching = Vec::new();
    for number in 1..=70 {
        let mut wire = Wire::connect(waypost.address()).await;
        wire.send(GET).await;
        let head = wire.head().await.unwrap();
        assert_eq!(head.status(), 200, "{number}");
        watching.push(wire);
    }
    assert_eq!(origin.connections(), 70);
}

#[tokio::test]
async fn a_body_of_known_length_is_whole_before_its_stream_ends() {
    // By whether the upstream ends the stream at all.
    for ends in [true, false] {
        let (read, over) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let origin = raw({
            let (read, over) = (read.clone(), over.clone());
            move |mut frames: Frames, _| {
                let (read, over) = (read.clone(), over.clone());
                async move {
                    let stream = frames.take_kind(HEADERS).await?.stream;
                    // `content-length: 5`, as a literal named by the static table.
                    let head = [OK, b"\x0f\x0d\x015"].concat();
                    frames.send(HEADERS, END_HEADERS, stream, &head).await;
                    frames.send(DATA, 0, stream, b"hello").await;
                    let _ = read.acquire().await;
                    if ends {
                        frames.send(DATA, END_STREAM, stream, b"").await;
                        let resets = settled(&mut frames, RST_STREAM).await?;
                        assert_eq!(resets, [], "it is no answer that nobody wanted");
                    } else {
                        frames.take_kind(RST_STREAM).await?;
                    }
                    over.add_permits(1);
                    let stream = frames.take_kind(HEADERS).await?.stream;
                    frames.answer(stream, "again").await;
                    frames.take_kind(u8::MAX).await.map(drop)
                }
            }
        })
        .await;
        let waypost = Waypost::builder()
            .flag("--workers", 1)
            .flag("--access-log", "json")
            .start()
            .await;
        waypost.put("a.test", &origin, H2).await;
        let answer = get(waypost.address(), "a.test", "/").await;
        assert_eq!((answer.status(), answer.text()), (200, "hello"));
        let line = waypost.output().until("\"reason\"").await;
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["reason"], Value::Null, "{ends}: {line}");
        read.add_permits(1);
        let _ = timeout(DEADLINE, over.acquire()).await.expect("it ends");
        let answer = get(waypost.address(), "a.test", "/").await;
        assert_eq!(answer.text(), "again", "{ends}");
        assert_eq!(origin.connections(), 1, "{ends}");
    }
}

/// Opens this many streams and resets them, some at a time.
async fn cancel(waypost: &Waypost, count: usize) {
    let mut client = H2Client::connect(waypost.address()).await;
    let mut cancelled = JoinSet::new();
    for number in 0..count {
        if cancelled.len() >= 50 {
            cancelled.join_next().await;
        }
        if number % 500 == 499 {
            client = H2Client::connect(waypost.address()).await;
        }
        let client = client.clone();
        cancelled.spawn(async move {
            let (response, _) = client.open(request("POST", "/"), true).await;
            // Answered once, so that it is known to have gone out.
            drop(response.await);
        });
    }
    cancelled.join_all().await;
}

#[tokio::test]
async fn what_comes_late_for_streams_given_up_ends_no_connection() {
    const CANCELLED: usize = 1_100;
    let origin = raw(async |mut frames: Frames, _| {
        let running = frames.take_kind(HEADERS).await?.stream;
        let mut reset = Vec::new();
        while reset.len() < CANCELLED {
            let frame = frames.take().await?;
            match frame.kind {
                HEADERS => {
                    frames.send(HEADERS, END_HEADERS, frame.stream, OK).await;
                }
                RST_STREAM => reset.push(frame.stream),
                _ => {}
            }
        }
        // As long as an upstream may take that was busy with something else.
        sleep(Duration::from_millis(1500)).await;
        for stream in reset {
            frames.send(DATA, 0, stream, b"late").await;
        }
        assert_eq!(settled(&mut frames, RST_STREAM).await?, []);
        frames.answer(running, "ok").await;
        frames.take_kind(u8::MAX).await.map(drop)
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send(GET).await;
    eventually("it is asked", async || origin.connections() == 1).await;
    cancel(&waypost, CANCELLED).await;
    let answer = wire.response("GET").await;
    assert_eq!((answer.status(), answer.text()), (200, "ok"));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_connection_whose_streams_were_given_up_often_makes_way_for_another() {
    let leave = Arc::new(Semaphore::new(0));
    let origin = raw({
        let leave = leave.clone();
        move |mut frames: Frames, connection| {
            let leave = leave.clone();
            async move {
                let running = match connection {
                    1 => Some(frames.take_kind(HEADERS).await?.stream),
                    _ => None,
                };
                loop {
                    let asked = tokio::select! {
                        asked = frames.take_kind(HEADERS) => asked?,
                        Ok(permit) = leave.acquire(), if running.is_some() => {
                            permit.forget();
                            frames.answer(running.unwrap(), "whole").await;
                            continue;
                        }
                    };
                    // `:method: POST` by the static table: who asks so leaves.
                    match asked.payload[0] {
                        0x83 => drop(frames.send(HEADERS, END_HEADERS, asked.stream, OK).await),
                        _ => frames.answer(asked.stream, &connection.to_string()).await,
                    }
                }
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send(GET).await;
    eventually("it is asked", async || origin.connections() == 1).await;
    assert_eq!(get(waypost.address(), "a.test", "/").await.text(), "1");
    cancel(&waypost, 4_200).await;
    eventually("another connection is opened", async || {
        get(waypost.address(), "a.test", "/").await.text() == "2"
    })
    .await;
    leave.add_permits(1);
    assert_eq!(wire.response("GET").await.text(), "whole");
    assert_eq!(origin.connections(), 2);
}
