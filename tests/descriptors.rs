//! File descriptors: how many there may be, and what happens when they are used up.

use std::{fs, net::SocketAddr};

use tokio::{net::TcpStream, task::JoinSet};

use crate::support::{
    h2_origin::H2Origin,
    http::{Wire, get},
    origin::Origin,
    waypost::{Waypost, eventually},
};

/// What the log says when there are none left.
const OUT: &str = "out of file descriptors";

/// How many there are where they are used up.
const LIMIT: usize = 160;

async fn limited(soft: usize, hard: usize, workers: usize) -> Waypost {
    Waypost::builder()
        .flag("--workers", workers)
        // More than there can be: left alone, clients get half of the descriptors.
        .flag("--max-connections", 10_000)
        .open_files(soft, hard)
        .start()
        .await
}

/// How many of its first `LIMIT` descriptors the process has open: it may have inherited others beyond.
fn open(waypost: &Waypost) -> usize {
    let directory = format!("/proc/{}/fd", waypost.id());
    let all = fs::read_dir(directory).expect("it runs");
    let numbers = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter(|&number: &usize| number < LIMIT).count()
}

/// Clients that say nothing, until so few descriptors are left.
async fn use_up(waypost: &Waypost, left: usize) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    let mut looks = 0;
    eventually("all are in use, and stay so", async || {
        // What was asked of the admin API may still have one.
        if open(waypost) + left < LIMIT {
            let client = TcpStream::connect(waypost.address()).await;
            clients.push(client.expect("it listens"));
            looks = 0;
        }
        looks += 1;
        looks > 10
    })
    .await;
    clients
}

async fn ask(client: &mut Wire, host: &str) -> crate::support::http::Message {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.ask(request).await
}

async fn failures(waypost: &Waypost) -> f64 {
    waypost.metric("waypost_upstream_failures_total", &[]).await
}

#[tokio::test]
async fn more_connections_than_descriptors_are_warned_of() {
    let said = "--max-connections is more than there are file descriptors";
    for (most, is_too_many) in [(5000, true), (4500, false)] {
        let waypost = Waypost::builder()
            .open_files(5000, 5000)
            .flag("--max-connections", most)
            .start()
            .await;
        let count = waypost.log().count(said);
        assert_eq!(count, usize::from(is_too_many), "{most}");
    }
}

#[tokio::test]
async fn the_limit_is_raised_as_far_as_it_goes() {
    let waypost = limited(200, 900, 1).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", waypost.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = line.expect("a limit").split_whitespace().collect();
    assert_eq!(words[3..5], ["900", "900"]);
    let said = waypost.log().until("few file descriptors").await;
    assert!(
        said.contains("limit=900") && said.contains("LimitNOFILE"),
        "{said}"
    );
    assert_eq!(waypost.metric("process_max_fds", &[]).await, 900.0);
}

#[tokio::test]
async fn more_upstreams_than_descriptors_lose_nothing() {
    const UPSTREAMS: usize = 400;
    let origin = Origin::run_at("0.0.0.0:0", |mut served| async move {
        while served.request().await.is_some() {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
            served.send(answer).await;
        }
    })
    .await;
    let port = origin.to_string();
    let port = port.rsplit_once(':').expect("an address").1;
    let waypost = limited(LIMIT, LIMIT, 2).await;
    let settings = r#"{"retries": {"attempts": 0, "on": []}}"#;
    waypost.put("a.test", "@settings", settings).await;
    let directory = waypost.hosts().join("a.test");
    for number in 0..UPSTREAMS {
        let (third, fourth) = (number / 250, number % 250 + 1);
        let key = directory.join(format!("127.0.{third}.{fourth}:{port}"));
        fs::write(key, "").expect("a key");
    }
    eventually("all are known", async || {
        let page = waypost.api("/api/routes?host=a.test&limit=10000").await;
        let members = page["routes"][0]["members"].as_array();
        members.is_some_and(|members| members.len() == UPSTREAMS)
    })
    .await;

    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..UPSTREAMS {
        let answer = ask(&mut client, "a.test").await;
        assert_eq!(answer.status(), 200, "{}", answer.error());
    }
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let address: SocketAddr = waypost.address();
        asking.spawn(async move {
            let mut client = Wire::connect(address).await;
            for _ in 0..60 {
                let answer = ask(&mut client, "a.test").await;
                assert_eq!(answer.status(), 200, "{}", answer.error());
            }
        });
    }
    asking.join_all().await;
    eventually("a quarter at most lies idle", async || {
        let idle = waypost.metric("waypost_upstream_idle_connections", &[]);
        let idle = idle.await;
        0.0 < idle && idle <= LIMIT as f64 / 4.0
    })
    .await;
    assert_eq!(waypost.log().count(OUT), 0, "there were always some left");
    assert_eq!(failures(&waypost).await, 0.0);
}

#[tokio::test]
async fn idle_connections_make_way_when_descriptors_are_used_up() {
    let waypost = limited(LIMIT, LIMIT, 1).await;
    let (one, other) = (Origin::named("one").await, Origin::named("other").await);
    let (shared, lonely) = (
        H2Origin::named("shared").await,
        Origin::named("lonely").await,
    );
    waypost.put("one.test", &one, "").await;
    waypost.put("other.test", &other, "").await;
    waypost.put("lonely.test", &lonely, "").await;
    waypost
        .put("shared.test", &shared, r#"{"protocol": "h2"}"#)
        .await;

    let mut client = Wire::connect(waypost.address()).await;
    let clients = use_up(&waypost, 1).await;
    // The last one.
    assert_eq!(ask(&mut client, "one.test").await.status(), 200);
    let answer = ask(&mut client, "other.test").await;
    assert_eq!(answer.status(), 200, "{}", answer.error());
    one.closed(1).await;
    waypost.log().until(OUT).await;

    // A client is accepted, which takes what an upstream would need: it is told so, and not left waiting.
    let late = get(waypost.address(), "other.test", "/");
    assert_eq!(late.await.status(), 503);
    other.closed(1).await;

    // What lies idle on HTTP/2 makes way as well.
    eventually("there is one left", async || open(&waypost) < LIMIT).await;
    assert_eq!(ask(&mut client, "shared.test").await.status(), 200);
    let answer = ask(&mut client, "lonely.test").await;
    assert_eq!(answer.status(), 200, "{}", answer.error());
    shared.closed(1).await;

    assert_eq!(waypost.log().count(OUT), 1, "{}", waypost.log().text());
    drop(clients);
    eventually("there are some left", async || open(&waypost) < LIMIT / 2).await;
    let times = waypost.metric("waypost_descriptor_shortages_total", &[]);
    assert!(times.await >= 3.0);
}

#[tokio::test]
async fn no_upstream_is_blamed_for_want_of_descriptors() {
    let waypost = limited(LIMIT, LIMIT, 1).await;
    let origin = Origin::named("origin").await;
    let shared = H2Origin::named("shared").await;
    waypost.put("a.test", &origin, "").await;
    waypost
        .put("b.test", &shared, r#"{"protocol": "h2"}"#)
        .await;
    let mut client = Wire::connect(waypost.address()).await;
    let clients = use_up(&waypost, 0).await;
    // Five failures in a row would eject it.
    for host in ["a.test", "b.test"].repeat(6) {
        let answer = ask(&mut client, host).await;
        let status = answer.head.one("proxy-status").expect("it says why");
        assert_eq!(answer.status(), 503, "{status}");
        assert!(
            status.contains("proxy_internal_error") && status.contains("Too many open files"),
            "{status}"
        );
    }
    drop(clients);
    eventually("there are some left", async || open(&waypost) < LIMIT / 2).await;
    for host in ["a.test", "b.test"] {
        assert_eq!(ask(&mut client, host).await.status(), 200, "{host}");
    }
    assert_eq!(failures(&waypost).await, 0.0);
    let ejections = waypost.metric("waypost_upstream_ejections_total", &[]);
    assert_eq!(ejections.await, 0.0);
    assert_eq!(waypost.log().count(OUT), 1, "{}", waypost.log().text());
}
