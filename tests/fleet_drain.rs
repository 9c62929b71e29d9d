//! `waypost delete --drain`: what counts as using an upstream, and what happens meanwhile.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::TxnOp;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::watch};
use waypost::{
    barrier::Question,
    fleet::{barrier::Change, reach::Reach},
    source::etcd::Connector,
};

use crate::support::{
    etcd::EtcdCluster,
    fleet::{Begun, assert_nothing_left, id, instance, run},
    gated::{Gated, begin, until_queued},
    http::Wire,
    load::{Client, ask},
    origin::Origin,
    sample::Sample,
    waypost::Waypost,
};

const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const HANDSHAKE: &str =
    "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Of each kind one runs; the drain ends with the last of them, and idle connections don't matter.
#[tokio::test]
async fn requests_streams_and_upgrades_are_waited_for() {
    let etcd = EtcdCluster::start(1).await;
    let origin = Origin::run(async |mut served| {
        while let Some(request) = served.request().await {
            let answer = match request.head.line.split(' ').nth(1) {
                Some("/idle") => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                Some("/body") => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
                Some("/") => SWITCHING,
                _ => "",
            };
            served.send(answer).await;
        }
    })
    .await;
    let upstream = origin.to_string();
    etcd.put(&format!("/hosts/a.test/{upstream}"), "").await;
    let waypost = instance(&etcd).await;
    let address = waypost.address();

    let mut idle = Client::connect(address).await.unwrap();
    assert_eq!(idle.get("a.test", "/idle").await.unwrap().status(), 200);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let mut waiting = Wire::connect(address).await;
    waiting.send(get("/head")).await;
    let mut reading = Wire::connect(address).await;
    reading.send(get("/body")).await;
    reading.take_until("half").await.unwrap();
    let mut upgraded = Wire::connect(address).await;
    upgraded.send(HANDSHAKE).await;
    upgraded.take_until("\r\n\r\n").await.unwrap();
    let mut streams = h2(address).await;
    let (one, two) = (stream(&mut streams, "/1"), stream(&mut streams, "/2"));
    let (one, two) = (tokio::spawn(one), tokio::spawn(two));
    origin.asked(6).await;

    let delete = Begun::new(&etcd, &["delete", "a.test", &upstream, "--drain"]).await;
    let id = id(&waypost).await;
    delete.until_left(&etcd, &id, 5).await;
    assert_eq!(
        ask(address, "a.test", "/").await.status(),
        404,
        "gone already"
    );
    waiting.reset();
    delete.until_left(&etcd, &id, 4).await;
    one.abort();
    delete.until_left(&etcd, &id, 3).await;
    reading.reset();
    delete.until_left(&etcd, &id, 2).await;
    two.abort();
    delete.until_left(&etcd, &id, 1).await;
    upgraded.reset();
    let ended = delete.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.ends_with("\ndrained on 1 instance\n"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr, "");
    assert!(idle.is_open().await);
    assert_nothing_left(&etcd, "/hosts/").await;
}

/// The upstream is full, and its route has a queue: who waits goes elsewhere.
#[tokio::test]
async fn who_waits_for_a_full_upstream_does_not_hold_up_its_drain_nor_is_lost() {
    let etcd = EtcdCluster::start(1).await;
    let (gone, stays) = (Gated::start().await, Gated::start().await);
    for gated in [&gone, &stays] {
        let key = format!("/hosts/a.test/{}", gated.origin);
        etcd.put(&key, r#"{"max_requests": 1}"#).await;
    }
    let patience = r#"{"timeouts": {"queue": "1m"}}"#;
    etcd.put("/hosts/a.test/@settings", patience).await;
    let waypost = instance(&etcd).await;
    let mut clients = vec![begin(&waypost, "/").await, begin(&waypost, "/").await];
    gone.asked(1).await;
    stays.asked(1).await;
    for count in 1..=8 {
        clients.push(begin(&waypost, "/").await);
        until_queued(&waypost, count).await;
    }
    let upstream = gone.origin.to_string();
    let delete = Begun::new(&etcd, &["delete", "a.test", &upstream, "--drain"]).await;
    delete.until_left(&etcd, &id(&waypost).await, 1).await;
    gone.let_through(9);
    let ended = delete.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    until_queued(&waypost, 8).await;
    stays.let_through(9);
    for client in &mut clients {
        assert_eq!(client.response("GET").await.status(), 200);
    }
    assert_eq!((gone.asks(), stays.asks()), (1, 9));
}

#[tokio::test]
async fn a_drain_is_of_one_key_and_warns_of_others_with_the_same_upstream() {
    let etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    let upstream = sample.to_string();
    etcd.put(&format!("/hosts/a.test/{upstream}"), "").await;
    etcd.put(&format!("/hosts/b.test/{upstream}"), "").await;
    let waypost = instance(&etcd).await;
    let address = waypost.address();
    let held = tokio::spawn(async move { ask(address, "b.test", "/hold").await.status() });
    sample.until_holding(1).await;
    let delete = run(&etcd, &["delete", "a.test", &upstream, "--drain"]).await;
    assert_eq!(delete.code, Some(0), "{delete:?}");
    let warning = format!("stays in use by another key: /hosts/b.test/{upstream}");
    assert!(delete.stderr.contains(&warning), "{delete:?}");
    assert!(!held.is_finished());
    held.abort();
}

#[tokio::test]
async fn a_drain_counts_the_other_keys_of_its_upstream_and_names_some() {
    let etcd = EtcdCluster::start(1).await;
    let upstream = "127.0.0.1:1";
    for host in ["a", "b", "c", "d", "e", "f"] {
        etcd.put(&format!("/hosts/{host}.test/{upstream}"), "")
            .await;
    }
    let (_first, _second) = (instance(&etcd).await, instance(&etcd).await);
    let delete = run(&etcd, &["delete", "a.test", upstream, "--drain"]).await;
    assert_eq!(delete.code, Some(0), "{delete:?}");
    let named = ["b", "c", "d"].map(|host| format!("/hosts/{host}.test/{upstream}"));
    let warning = format!("by 5 other keys: {} and 2 more\n", named.join(", "));
    assert!(delete.stderr.ends_with(&warning), "{delete:?}");
}

#[tokio::test]
async fn a_drain_that_takes_too_long_says_what_is_left() {
    let etcd = EtcdCluster::start(1).await;
    let (sample, waypost) = (Sample::start().await, instance(&etcd).await);
    let upstream = sample.to_string();
    let put = run(&etcd, &["put", "a.test", &upstream, "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let held = hold(&waypost, &sample, 2).await;
    let words = ["delete", "a.test", &upstream, "--drain", "--timeout", "1s"];
    let delete = run(&etcd, &words).await;
    assert_eq!(delete.code, Some(1), "{delete:?}");
    for said in [
        "after 1s 0 of 1 instance acknowledged; missing: instance ",
        " with 2 requests left; the key stays deleted",
    ] {
        assert!(delete.stderr.contains(said), "{said}: {delete:?}");
    }
    assert_nothing_left(&etcd, "/hosts/").await;

    // Put again while they run, the upstream is somebody's again.
    let put = run(&etcd, &["put", "a.test", &upstream, "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let delete = Begun::new(&etcd, &["delete", "a.test", &upstream, "--drain"]).await;
    let again = etcd.put(&format!("/hosts/a.test/{upstream}"), "").await;
    let ended = delete.ended().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = format!("was put again, at revision {again}");
    assert!(ended.stderr.contains(&said), "{ended:?}");
    sample.release();
    for held in held {
        assert_eq!(held.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_drain_that_took_too_long_can_go_on() {
    let etcd = EtcdCluster::start(1).await;
    let (sample, waypost) = (Sample::start().await, instance(&etcd).await);
    let upstream = sample.to_string();
    let put = run(&etcd, &["put", "a.test", &upstream, "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let held = hold(&waypost, &sample, 1).await;
    let words = ["delete", "a.test", &*upstream, "--drain"];
    let late = run(&etcd, &[&words[..], &["--timeout", "300ms"]].concat()).await;
    assert_eq!(late.code, Some(1), "{late:?}");

    let again = Begun::new(&etcd, &words).await;
    again.until_left(&etcd, &id(&waypost).await, 1).await;
    sample.release();
    let ended = again.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "drained on 1 instance\n");
    let said = format!("there is no key /hosts/a.test/{upstream}: nothing deleted");
    assert!(ended.stderr.contains(&said), "{ended:?}");
    for held in held {
        assert_eq!(held.await.unwrap(), 200);
    }

    // It might be a slip.
    let put = run(&etcd, &["put", "b.test", &upstream, "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let slip = run(&etcd, &words).await;
    assert_eq!(slip.code, Some(1), "{slip:?}");
    let said = format!("in use by another key: /hosts/b.test/{upstream}");
    assert!(slip.stderr.contains(&said), "{slip:?}");
    assert_nothing_left(&etcd, "/hosts/").await;
}

/// Nobody is left to wait for at the first look, and the key is there again.
#[tokio::test]
async fn a_key_that_is_put_again_is_not_drained_though_all_have_answered() {
    let etcd = EtcdCluster::start(1).await;
    let key = "/hosts/a.test/a:80";
    let reach = Reach::new(Connector::new(etcd.config()).unwrap());
    let change = Change {
        prefix: "/hosts/",
        conditions: Vec::new(),
        operations: vec![TxnOp::delete(key, None)],
        question: Question {
            key: Some(key.into()),
            drain: true,
        },
        timeout: Duration::from_secs(10),
    };
    let barrier = change.make(&reach).await.unwrap().expect("it is made");
    let again = etcd.put(key, "").await;
    let error = barrier.wait().await.expect_err("it is in use").to_string();
    let said = format!("was put again, at revision {again}");
    assert!(error.contains(&said), "{error}");
}

/// It answers only once its last request has ended, and is no longer registered after that.
#[tokio::test]
async fn an_instance_that_drains_answers_before_it_ends() {
    let etcd = EtcdCluster::start(1).await;
    let (sample, mut waypost) = (Sample::start().await, instance(&etcd).await);
    let upstream = sample.to_string();
    let put = run(&etcd, &["put", "a.test", &upstream, "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let held = hold(&waypost, &sample, 1).await;
    let id = id(&waypost).await;
    waypost.signal("TERM");
    waypost.log().until("no longer accepting").await;
    let delete = Begun::new(&etcd, &["delete", "a.test", &upstream, "--drain"]).await;
    delete.until_left(&etcd, &id, 1).await;
    sample.release();
    let ended = delete.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.ends_with("drained on 1 instance\n"),
        "{ended:?}"
    );
    for held in held {
        assert_eq!(held.await.unwrap(), 200);
    }
    assert_eq!(waypost.wait_exit().await, Some(0));
}

/// A barrier that an instance has not heard of yet when it ends is answered all the same.
#[tokio::test]
async fn an_instance_that_ends_answers_what_it_has_not_heard_of() {
    let etcd = EtcdCluster::start(1).await;
    let mut waypost = instance(&etcd).await;
    waypost.signal("STOP");
    let put = Begun::new(&etcd, &["put", "a.test", "a:80", "--wait"]).await;
    waypost.signal("TERM");
    waypost.signal("INT");
    waypost.signal("CONT");
    let ended = put.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    waypost.wait_exit().await;
    assert_nothing_left(&etcd, "/hosts/").await;
}

/// The upstream it was sent to is taken out while it waits there, and hangs up: the others of the table there was
/// would not do.
#[tokio::test]
async fn a_retry_goes_by_the_table_there_is() {
    let etcd = EtcdCluster::start(1).await;
    let old = Origin::run(async |mut served| {
        served.request().await;
        // The client's next word would be its end.
        served
            .wire
            .is_silent_for(std::time::Duration::from_millis(1))
            .await;
        while !served
            .wire
            .is_silent_for(std::time::Duration::from_secs(1))
            .await
        {}
    })
    .await;
    let new = Sample::start().await;
    etcd.put(&format!("/hosts/a.test/{old}"), "").await;
    let waypost = instance(&etcd).await;
    let address = waypost.address();
    let asked = tokio::spawn(async move { ask(address, "a.test", "/").await.into_body() });
    old.asked(1).await;
    let new_name = new.to_string();
    let put = run(&etcd, &["put", "a.test", &new_name, "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let delete = run(&etcd, &["delete", "a.test", &old.to_string(), "--wait"]).await;
    assert_eq!(delete.code, Some(0), "{delete:?}");
    assert_eq!(asked.await.unwrap(), new_name);
    assert_eq!(old.requests().len(), 1);
}

/// Its upstream hangs up on it while a key of the route changes: that upstream is all there is, then as before.
#[tokio::test]
async fn a_retry_goes_to_the_only_upstream_of_a_route_that_changed() {
    let etcd = EtcdCluster::start(1).await;
    let (hang_up, told) = watch::channel(false);
    let origin = Origin::run(move |mut served| {
        let mut told = told.clone();
        async move {
            served.request().await;
            if served.connection == 1 {
                let _ = told.wait_for(|told| *told).await;
                return;
            }
            served
                .send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
    })
    .await;
    etcd.put(&format!("/hosts/a.test/{origin}"), "").await;
    let waypost = instance(&etcd).await;
    let address = waypost.address();
    let asked = tokio::spawn(async move { ask(address, "a.test", "/").await.status() });
    origin.asked(1).await;
    let settings = r#"{"timeouts": {"response": "9s"}}"#;
    let put = run(&etcd, &["put", "a.test", "@settings", settings, "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    hang_up.send_replace(true);
    assert_eq!(asked.await.unwrap(), 200);
    assert_eq!(origin.requests().len(), 2);
}

async fn h2(address: std::net::SocketAddr) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    sender
}

fn stream(
    streams: &mut http2::SendRequest<Empty<Bytes>>,
    path: &str,
) -> impl Future<Output = ()> + use<> {
    let request = Request::get(format!("http://a.test{path}"));
    let asked = streams.send_request(request.body(Empty::new()).unwrap());
    async move {
        let _ = asked.await.unwrap().into_body().collect().await;
    }
}

/// So many requests for `a.test` that wait at the sample.
async fn hold(
    waypost: &Waypost,
    sample: &Sample,
    count: usize,
) -> Vec<tokio::task::JoinHandle<u16>> {
    let address = waypost.address();
    let held = (0..count)
        .map(|_| {
            tokio::spawn(async move { ask(address, "a.test", "/hold").await.status().as_u16() })
        })
        .collect();
    sample.until_holding(count).await;
    held
}
