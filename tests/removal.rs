//! Upstreams that are taken out while requests run: nothing is lost, nothing is held open, and nothing is sent twice.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::support::{
    etcd::EtcdCluster,
    fleet::{instance, run},
    http::{Wire, timed},
    load::{Load, ask},
    origin::Origin,
    sample::Sample,
    service::{Posts, Service},
    soak,
    waypost::{DEADLINE, Waypost, eventually},
};

/// A hundred a minute.
const PACE: Duration = Duration::from_millis(600);
const HOST: &str = "a.test";

/// Each of them ends as soon as it may: after the command that waits for it, or a moment after it was taken out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstreams_that_come_and_go_and_end_lose_nothing() {
    let (etcd, posts) = (EtcdCluster::start(1).await, Posts::default());
    let waypost = instance(&etcd).await;
    let (mut services, mut endings) = (VecDeque::new(), JoinSet::new());
    for _ in 0..3 {
        services.push_back(add(&etcd, &waypost, &posts).await);
    }
    let load = Load::counted(&[waypost.address()], &[HOST]);
    load.more(200).await;

    let (begun, before) = (Instant::now(), load.tally().good);
    let rounds = soak::rounds(20, 100);
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut ways = Way::ALL.into_iter().cycle();
    for _ in 0..rounds {
        pace.tick().await;
        services.push_back(add(&etcd, &waypost, &posts).await);
        let leaving: Service = services.pop_front().expect("one of four");
        let leaving_key = key(&leaving);
        let way = ways.next().expect("endless");
        remove(&etcd, &waypost, &leaving, way).await;
        endings.spawn(leaving.end());
        if let Way::Value(_) = way {
            waypost.reached(etcd.delete(&leaving_key).await).await;
        }
    }
    let (took, good) = (begun.elapsed(), load.tally().good - before);
    let rate = good as f64 / took.as_secs_f64();
    println!("{rounds} taken out and added in {took:?}, {rate:.0} requests a second");

    endings.join_all().await;
    load.more(100).await;
    let tally = load.finish().await;
    let counts = posts.counts();
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(tally.posted.len() > rounds, "{}", tally.posted.len());
    for post in &tally.posted {
        assert!(counts.contains_key(post), "answered, and nobody got it");
    }
}

/// How an upstream is taken out.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `etcdctl del`.
    Delete,
    /// `waypost delete --drain`.
    DeleteAndDrain,
    /// This value, and deleted while it ends.
    Value(&'static str),
}

impl Way {
    const ALL: [Self; 4] = [
        Self::Delete,
        Self::DeleteAndDrain,
        Self::Value(r#"{"weight": 0}"#),
        Self::Value(r#"{"drain": true}"#),
    ];
}

async fn add(etcd: &EtcdCluster, waypost: &Waypost, posts: &Posts) -> Service {
    let service = Service::start(posts).await;
    waypost.reached(etcd.put(&key(&service), "").await).await;
    service
}

async fn remove(etcd: &EtcdCluster, waypost: &Waypost, service: &Service, way: Way) {
    let key = key(service);
    match way {
        Way::Delete => waypost.reached(etcd.delete(&key).await).await,
        Way::DeleteAndDrain => {
            let words = ["delete", HOST, &service.to_string(), "--drain"];
            let drained = run(etcd, &words).await;
            assert_eq!(drained.code, Some(0), "{drained:?}");
        }
        Way::Value(value) => waypost.reached(etcd.put(&key, value).await).await,
    }
    if !matches!(way, Way::DeleteAndDrain) {
        // Whoever does not wait for what runs leaves it the time to get there: a connect, and the request's bytes.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn key(service: &Service) -> String {
    format!("/hosts/{HOST}/{service}")
}

/// What runs elsewhere was routed when the upstream was still there, and keeps what it knew of it.
#[tokio::test]
async fn idle_connections_of_a_removed_upstream_close_while_other_requests_run() {
    let waypost = Waypost::builder().start().await;
    let (origin, sample) = (Origin::named("idle").await, Sample::start().await);
    waypost.put(HOST, &origin, "").await;
    ask(waypost.address(), HOST, "/").await;
    waypost.put(HOST, &origin, r#"{"weight": 0}"#).await;
    waypost.put(HOST, &sample, "").await;
    let address = waypost.address();
    let held = tokio::spawn(async move { ask(address, HOST, "/hold").await.status() });
    sample.until_holding(1).await;
    waypost.delete(HOST, &origin).await;
    let (_, took) = timed(origin.closed(1)).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    sample.release();
    assert_eq!(held.await.unwrap(), 200);
}

/// Only WebSockets are bounded by the drain timeout: what ends by itself is not.
#[tokio::test]
async fn what_runs_on_a_removed_upstream_takes_its_time() {
    const HALF: usize = 300_000;
    let (go_on, told) = watch::channel(false);
    let origin = Origin::run(move |mut served| {
        let mut told = told.clone();
        async move {
            let head = served.wire.head().await.unwrap();
            if head.line.starts_with("POST") {
                let body = served.wire.take(2 * HALF).await.unwrap();
                assert!(body == vec![7; 2 * HALF]);
                served.note(Default::default());
                served
                    .send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ngot")
                    .await;
                return;
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 2 * HALF);
            served.send(head).await;
            served.send(vec![7; HALF]).await;
            let _ = told.wait_for(|told| *told).await;
            served.send(vec![7; HALF]).await;
        }
    })
    .await;
    let builder = Waypost::builder().flag("--drain-timeout", "100ms");
    let waypost = builder.start().await;
    waypost.put(HOST, &origin, "").await;

    let mut download = Wire::connect(waypost.address()).await;
    download
        .send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    download.take_until("\r\n\r\n").await.unwrap();
    download.skip(HALF).await.unwrap();
    let mut stream = h2_download(&waypost).await;
    assert_eq!(received(&mut stream, HALF).await, HALF);
    let mut upload = Wire::connect(waypost.address()).await;
    let length = 2 * HALF;
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
    upload.send(head).await;
    upload.send(vec![7; HALF]).await;
    eventually("all three are there", async || origin.connections() == 3).await;

    waypost.delete(HOST, &origin).await;
    assert_eq!(ask(waypost.address(), HOST, "/").await.status(), 404);
    assert!(download.is_silent_for(Duration::from_secs(2)).await);
    go_on.send_replace(true);
    download.skip(HALF).await.unwrap();
    assert_eq!(received(&mut stream, usize::MAX).await, HALF);
    upload.send(vec![7; HALF]).await;
    assert_eq!(upload.response("POST").await.text(), "got");
    assert_eq!(origin.requests().len(), 1);
}

async fn h2_download(waypost: &Waypost) -> Incoming {
    let stream = TcpStream::connect(waypost.address()).await.unwrap();
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{HOST}/")).body(Empty::<Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body()
}

/// Reads this much, or to the clean end: how much it was.
async fn received(body: &mut Incoming, most: usize) -> usize {
    let mut received = 0;
    while received < most {
        let frame = timeout(DEADLINE, body.frame()).await.expect("in time");
        let Some(frame) = frame else {
            break;
        };
        received += frame
            .expect("a whole body")
            .data_ref()
            .map_or(0, Bytes::len);
    }
    received
}
