//! Draining and ending, by signals.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use crate::support::{
    load::{Answer, Client, Load, ask, get},
    sample::Sample,
    waypost::{Builder, DEADLINE, Waypost, eventually},
};

#[tokio::test]
async fn after_sigterm_readiness_fails_first_and_accepting_goes_on_for_the_delay() {
    let (mut waypost, _sample) = serving(Waypost::builder().flag("--drain-delay", "2s")).await;
    let load = Load::start(&[waypost.address()], &["a.test"]);
    load.more(100).await;
    let mut kept = Client::connect(waypost.address()).await.unwrap();
    assert_eq!(
        kept.get("a.test", "/")
            .await
            .unwrap()
            .headers()
            .get("connection"),
        None
    );

    waypost.signal("TERM");
    eventually("not ready", async || {
        waypost.admin_get("/readyz").await.0 == 503
    })
    .await;
    assert_eq!(
        waypost.admin_get("/readyz").await.1,
        "not ready, draining\n"
    );
    assert_eq!(waypost.admin_get("/livez").await.0, 200);
    assert_eq!(waypost.api("/api/status").await["draining"], true);
    for answer in [
        ask(waypost.address(), "a.test", "/").await,
        kept.get("a.test", "/").await.unwrap(),
    ] {
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["connection"], "close");
    }
    assert!(!kept.is_open().await, "closed after the answer");
    load.more(100).await;
    // Whoever is in front has noticed by now.
    load.finish().await;

    waypost.log().until("no longer accepting").await;
    assert_eq!(waypost.wait_exit().await, Some(0));
    let error = get(waypost.address(), "a.test", "/").await.unwrap_err();
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn running_requests_finish_while_nothing_new_is_accepted() {
    let (mut waypost, sample) = serving(Waypost::builder().flag("--drain-delay", "0")).await;
    let held = spawn(get(waypost.address(), "a.test", "/hold"));
    let streamed = spawn(get(waypost.address(), "a.test", "/stream"));
    sample.until_holding(2).await;

    waypost.signal("TERM");
    waypost.log().until("no longer accepting").await;
    eventually("refused", async || {
        let error = get(waypost.address(), "a.test", "/").await.err();
        error.is_some_and(|error| error.contains("refused"))
    })
    .await;
    assert_eq!(waypost.admin_get("/readyz").await.0, 503);
    assert!(!held.is_finished() && !streamed.is_finished());
    sample.release();
    let held = answer(held).await.unwrap();
    assert_eq!(held.body(), &sample.to_string());
    assert_eq!(held.headers()["connection"], "close");
    assert_eq!(answer(streamed).await.unwrap().body(), "part\npart\n");
    assert_eq!(waypost.wait_exit().await, Some(0));
    waypost.log().until("every request was finished").await;
}

#[tokio::test]
async fn connections_queued_when_accepting_ends_are_answered() {
    let (mut waypost, _sample) = serving(Waypost::builder().flag("--drain-delay", "0")).await;
    // While it stands still the kernel completes handshakes and takes the requests in.
    waypost.signal("STOP");
    let mut queued = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(waypost.address()).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
        stream.write_all(request).await.unwrap();
        queued.push(stream);
    }
    waypost.signal("TERM");
    waypost.signal("CONT");
    for mut stream in queued {
        let mut text = String::new();
        let read = timeout(DEADLINE, stream.read_to_string(&mut text)).await;
        read.expect("in time").expect("no reset");
        assert!(text.starts_with("HTTP/1.1 200"), "{text:?}");
    }
    assert_eq!(waypost.wait_exit().await, Some(0));
}

#[tokio::test]
async fn the_first_request_of_a_connection_just_accepted_is_answered() {
    let (mut waypost, _sample) = serving(Waypost::builder().flag("--drain-delay", "0")).await;
    let mut begun = TcpStream::connect(waypost.address()).await.unwrap();
    begun.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut new = TcpStream::connect(waypost.address()).await.unwrap();
    waypost.signal("TERM");
    waypost.log().until("no longer accepting").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    new.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    for stream in [&mut begun, &mut new] {
        stream.write_all(b"host: a.test\r\n\r\n").await.unwrap();
        let mut text = String::new();
        let read = timeout(DEADLINE, stream.read_to_string(&mut text)).await;
        read.expect("in time").expect("no reset");
        assert!(text.starts_with("HTTP/1.1 200"), "{text:?}");
    }
    assert_eq!(waypost.wait_exit().await, Some(0));
}

#[tokio::test]
async fn what_outlives_the_drain_timeout_is_cut_and_said() {
    let builder = Waypost::builder().flag("--drain-delay", "0");
    let (mut waypost, sample) = serving(builder.flag("--drain-timeout", "300ms")).await;
    let held = spawn(get(waypost.address(), "a.test", "/hold"));
    let streamed = spawn(get(waypost.address(), "a.test", "/stream"));
    sample.until_holding(2).await;
    waypost.signal("TERM");
    assert_eq!(waypost.wait_exit().await, Some(1));
    let line = waypost.log().until("requests were cut off").await;
    assert!(line.contains("requests=2"), "{line}");
    assert!(answer(held).await.is_err());
    assert!(
        answer(streamed).await.is_err(),
        "a cut body must not look whole"
    );
    sample.until_holding(0).await;
}

#[tokio::test]
async fn sigint_skips_the_delay() {
    let (mut waypost, _sample) = serving(Waypost::builder().flag("--drain-delay", "10m")).await;
    waypost.signal("INT");
    assert_eq!(waypost.wait_exit().await, Some(0));
}

#[tokio::test]
async fn idle_connections_are_closed_in_order_and_hold_up_nothing() {
    let (mut waypost, _sample) = serving(Waypost::builder().flag("--drain-delay", "0")).await;
    let mut fresh = TcpStream::connect(waypost.address()).await.unwrap();
    let mut kept = TcpStream::connect(waypost.address()).await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\r\n\r\n127.0.0.1:") {
        assert_ne!(kept.read_buf(&mut answer).await.unwrap(), 0);
    }
    waypost.signal("TERM");
    for idle in [&mut fresh, &mut kept] {
        let mut rest = Vec::new();
        let end = timeout(DEADLINE, idle.read_to_end(&mut rest)).await;
        end.expect("in time").expect("an end, no reset");
    }
    drop((fresh, kept));
    assert_eq!(waypost.wait_exit().await, Some(0));
    waypost.log().until("every request was finished").await;
}

#[tokio::test]
async fn an_instance_that_never_had_routes_ends_as_well() {
    let nobody = ["http://127.0.0.1:1".to_owned()];
    let mut waypost = Waypost::builder().etcd(&nobody).spawn().await;
    waypost.signal("INT");
    assert_eq!(waypost.wait_exit().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [("TERM", "TERM"), ("TERM", "INT"), ("INT", "INT")] {
        let builder = Waypost::builder().flag("--drain-delay", "10m");
        let (mut waypost, sample) = serving(builder.flag("--drain-timeout", "10m")).await;
        let held = spawn(get(waypost.address(), "a.test", "/hold"));
        sample.until_holding(1).await;
        waypost.signal(first);
        waypost.log().until("draining").await;
        waypost.signal("HUP");
        waypost.signal(second);
        assert_eq!(waypost.wait_exit().await, Some(1), "{first} {second}");
        waypost.log().until("a second signal").await;
        assert!(answer(held).await.is_err());
    }
}

#[tokio::test]
async fn sighup_ends_nothing() {
    let (waypost, _sample) = serving(Waypost::builder()).await;
    let load = Load::start(&[waypost.address()], &["a.test"]);
    load.more(50).await;
    waypost.signal("HUP");
    waypost.log().until("read the certificates again").await;
    load.more(100).await;
    load.finish().await;
}

#[tokio::test]
async fn http2_clients_are_told_to_go_away_and_their_streams_finish() {
    let (mut waypost, sample) = serving(Waypost::builder().flag("--drain-delay", "1s")).await;
    let stream = TcpStream::connect(waypost.address()).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = |path: &str| {
        let url = format!("http://a.test{path}");
        Request::get(url).body(Empty::<Bytes>::new()).unwrap()
    };
    let running = {
        let (mut sender, request) = (sender.clone(), request("/hold"));
        spawn(async move {
            let response = sender.send_request(request).await;
            let (head, body) = response.map_err(|error| error.to_string())?.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?;
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            Ok(Answer::from_parts(head, body))
        })
    };
    sample.until_holding(1).await;
    waypost.signal("TERM");
    waypost.log().until("draining").await;
    eventually("no more streams are taken", async || {
        let mut sender = sender.clone();
        sender.send_request(request("/")).await.is_err()
    })
    .await;
    assert!(!running.is_finished());
    sample.release();
    assert_eq!(answer(running).await.unwrap().body(), &sample.to_string());
    timeout(DEADLINE, connection)
        .await
        .expect("it closes")
        .unwrap()
        .unwrap();
    assert_eq!(waypost.wait_exit().await, Some(0));
}

/// An instance with a sample upstream for `a.test`.
async fn serving(builder: Builder) -> (Waypost, Sample) {
    let (waypost, sample) = tokio::join!(builder.start(), Sample::start());
    waypost.put("a.test", &sample, "").await;
    (waypost, sample)
}

type Pending = JoinHandle<Result<Answer, String>>;

fn spawn(asking: impl Future<Output = Result<Answer, String>> + Send + 'static) -> Pending {
    tokio::spawn(asking)
}

async fn answer(pending: Pending) -> Result<Answer, String> {
    let patience = DEADLINE + Duration::from_secs(1);
    timeout(patience, pending)
        .await
        .expect("an end in time")
        .expect("no panic")
}
