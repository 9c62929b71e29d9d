//! Torn reads, from etcd to the client: what one transaction changed is seen together, in requests and in the admin API.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use etcd_client::TxnOp;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::support::{
    etcd::EtcdCluster, load::Client, sample::Sample, soak, waypost, waypost::Waypost,
};

const HOSTS: [&str; 2] = ["one.test", "two.test"];
const CLIENTS: usize = 3;

/// Every transaction moves two hosts to the other of two upstreams and gives both a header that says which transaction
/// it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_move_together_with_their_settings() {
    let etcd = EtcdCluster::start(1).await;
    let sides = [Sample::start().await, Sample::start().await];
    let names = sides.each_ref().map(ToString::to_string);
    etcd.txn(flip(&names, 0)).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut watchers: Vec<JoinHandle<(usize, usize)>> = (0..CLIENTS)
        .map(|_| tokio::spawn(ask(waypost.address(), names.clone(), stop.clone())))
        .collect();
    watchers.push(tokio::spawn(look(
        waypost.admin(),
        names.clone(),
        stop.clone(),
    )));

    let flips = soak::rounds(2_000, 10_000);
    let mut last = 0;
    for flip_number in 1..=flips {
        last = etcd.txn(flip(&names, flip_number)).await;
    }
    waypost.reached(last).await;
    stop.store(true, Ordering::Relaxed);
    for watcher in watchers {
        let (looks, seen) = match watcher.await {
            Ok(counts) => counts,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        assert!(looks >= 100, "only {looks} looks");
        assert!(seen >= 20, "{looks} looks saw only {seen} of {flips} flips");
    }
    let mut client = Client::connect(waypost.address()).await.expect("a client");
    for host in HOSTS {
        let (flip_number, _) = told(&mut client, host, &names).await;
        assert_eq!(flip_number, flips, "{host}");
    }
}

/// The side that a transaction moves the hosts to is told by its number.
fn flip(sides: &[String; 2], number: usize) -> Vec<TxnOp> {
    let (to, from) = (&sides[number % 2], &sides[(number + 1) % 2]);
    let settings = format!(r#"{{"response_headers": {{"set": {{"x-flip": "{number}"}}}}}}"#);
    let operations = HOSTS.iter().flat_map(|host| {
        [
            TxnOp::delete(format!("/hosts/{host}/{from}"), None),
            TxnOp::put(format!("/hosts/{host}/{to}"), "", None),
            TxnOp::put(format!("/hosts/{host}/@settings"), settings.as_str(), None),
        ]
    });
    operations.collect()
}

/// Asks both hosts in turn until told to stop: no reply is of half a transaction, or of an older one than before. How
/// many replies, and how many transactions they were of.
async fn ask(address: SocketAddr, sides: [String; 2], stop: Arc<AtomicBool>) -> (usize, usize) {
    let mut client = Client::connect(address).await.expect("a client");
    let (mut replies, mut seen, mut last) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        for host in HOSTS {
            let (number, body) = told(&mut client, host, &sides).await;
            assert_eq!(body, sides[number % 2], "{host} in flip {number}");
            assert!(number >= last, "{host}: flip {last}, then {number}");
            seen += usize::from(number > last);
            last = number;
            replies += 1;
        }
    }
    (replies, seen)
}

/// The number and the upstream that a reply tells.
async fn told(client: &mut Client, host: &str, sides: &[String; 2]) -> (usize, String) {
    let reply = client.get(host, "/").await.expect("a reply");
    assert_eq!(reply.status(), 200, "{host}: {reply:?}");
    let number = reply.headers()["x-flip"].to_str().expect("text");
    let number = number.parse().expect("a number");
    let side = sides
        .iter()
        .find(|side| reply.body().contains(side.as_str()));
    (number, side.expect("one of the upstreams").clone())
}

/// The same of pages of routes, which name revisions.
async fn look(admin: SocketAddr, sides: [String; 2], stop: Arc<AtomicBool>) -> (usize, usize) {
    let (mut pages, mut seen, mut last) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let (status, page) = waypost::get(admin, "/api/routes").await.expect("a page");
        assert_eq!(status, 200, "{page}");
        let page: Value = serde_json::from_str(&page).expect("JSON");
        let routes = page["routes"].as_array().expect("routes");
        let facts = |route: &Value| {
            let members = route["members"].as_array().expect("members");
            assert_eq!(members.len(), 1, "{page}");
            let revision = members[0]["mod_revision"].as_i64().expect("a revision");
            assert_eq!(
                route["settings_mod_revision"].as_i64(),
                Some(revision),
                "{page}"
            );
            let upstream = members[0]["upstream"].as_str().expect("an upstream");
            assert!(sides.iter().any(|side| side == upstream), "{page}");
            (revision, upstream.to_owned())
        };
        let facts: Vec<_> = routes.iter().map(facts).collect();
        assert_eq!(facts.len(), HOSTS.len(), "{page}");
        assert_eq!(facts[0], facts[1], "{page}");
        let revision = facts[0].0;
        assert!(revision >= last, "revision {last}, then {revision}");
        seen += usize::from(revision > last);
        last = revision;
        pages += 1;
    }
    (pages, seen)
}
