//! Upstreams that cannot be connected to, and connections that end just as they are used again.

use std::{collections::HashMap, time::Duration};

use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use crate::support::{
    deaf::Deaf,
    front::{Asks, Caller, Front},
    http::{Wire, timed},
    origin::{Origin, Refusing},
    waypost::Waypost,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_upstream_out_of_reach_costs_nobody_a_request() {
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let (refusing, deaf, good) = (Refusing::new(), Deaf::new(), Origin::named("good").await);
    let settings = json!({"timeouts": {"connect": "200ms"}}).to_string();
    for (n, (upstream, status, error)) in [
        (refusing.to_string(), 502, "connection_refused"),
        (deaf.to_string(), 504, "connection_timeout"),
        // TCP goes to no multicast address: the kernel says so at once.
        ("224.0.0.1:80".to_owned(), 502, "destination_ip_unroutable"),
        ("nobody.invalid:80".to_owned(), 502, "dns_error"),
    ]
    .into_iter()
    .enumerate()
    {
        let (alone, both) = (format!("alone-{n}.test"), format!("both-{n}.test"));
        for host in [&alone, &both] {
            waypost.put(host, "@settings", &settings).await;
            waypost.put(host, &upstream, "").await;
        }
        waypost.put(&both, &good, "").await;
        for front in [Front::Http11, Front::H2] {
            let mut caller = Caller::new(front, waypost.address()).await;
            for method in ["GET", "POST"] {
                let asks = |host| Asks {
                    method,
                    host,
                    path: "/",
                    body: (method == "POST").then_some(5),
                };
                let (seen, took) = timed(caller.ask(asks(&alone))).await;
                let told = (seen.status, seen.error.as_deref());
                assert_eq!(told, (Some(status), Some(error)), "{upstream}");
                assert!(took < Duration::from_secs(2), "{upstream}: {took:?}");
                for _ in 0..4 {
                    let seen = caller.ask(asks(&both)).await;
                    assert_eq!(
                        (seen.status, &*seen.body),
                        (Some(200), "good"),
                        "{upstream}"
                    );
                }
            }
        }
    }
    assert_eq!(good.requests().len(), 4 * 2 * 2 * 4);
}

/// How an origin ends its connections, some time after an answer.
#[derive(Clone, Copy, Debug)]
enum Ends {
    InOrder,
    ByReset,
}

/// Answers, and ends the connection unless it is asked again within some hundred microseconds at most: as long as a
/// request takes to come back.
async fn impatient(ends: Ends) -> Origin {
    Origin::run(move |mut served| async move {
        for n in 0.. {
            let patience = Duration::from_micros((served.connection + n) as u64 % 16 * 60);
            let asked = if n == 0 {
                served.request().await
            } else {
                tokio::select! {
                    biased;
                    () = spin(patience) => None,
                    asked = served.request() => asked,
                }
            };
            // Now and then it dies over a request that it has read: who sends that again is found out.
            let dies = n > 0 && (served.connection + n) % 8 == 7;
            if asked.is_none() || dies || !served.send(OK).await {
                break;
            }
        }
        if let Ends::ByReset = ends {
            served.wire.reset();
        }
    })
    .await
}

/// Finer than a timer.
async fn spin(time: Duration) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < time {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_as_it_is_taken_costs_no_get_and_doubles_no_post() {
    const ROUNDS: usize = 400;
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let mut races = 0.0;
    for ends in [Ends::InOrder, Ends::ByReset] {
        let origin = impatient(ends).await;
        let host = format!("{ends:?}.test").to_lowercase();
        waypost.put(&host, &origin, "").await;
        let mut clients = JoinSet::new();
        for client in 0..4 {
            let (address, host) = (waypost.address(), host.clone());
            clients.spawn(async move {
                let (mut wire, mut refused) = (Wire::connect(address).await, 0);
                for round in 0..ROUNDS {
                    let method = if round % 2 == 0 { "GET" } else { "POST" };
                    let path = format!("/{client}/{round}");
                    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
                    let body = if method == "POST" {
                        "Content-Length: 2\r\n\r\nhi"
                    } else {
                        "\r\n"
                    };
                    let response = wire.ask(format!("{head}{body}")).await;
                    match (method, response.status()) {
                        (_, 200) => assert_eq!(response.text(), "ok"),
                        ("POST", 502) => {
                            assert_eq!(response.error(), "connection_terminated");
                            refused += 1;
                        }
                        _ => panic!("{ends:?} {method}: {response:?}"),
                    }
                    if response.head.one("connection") == Some("close") {
                        wire = Wire::connect(address).await;
                    }
                    sleep(Duration::from_micros(round as u64 % 7 * 100)).await;
                }
                refused
            });
        }
        let mut refused = 0;
        while let Some(client) = clients.join_next().await {
            refused += client.expect("every answer is one that may be");
        }
        let mut arrivals = HashMap::new();
        for request in origin.requests() {
            if request.head.line.starts_with("POST") {
                *arrivals.entry(request.head.line).or_insert(0) += 1;
            }
        }
        let doubled: Vec<_> = arrivals.iter().filter(|(_, times)| **times > 1).collect();
        assert!(doubled.is_empty(), "{ends:?}: {doubled:?}");
        // One that was refused may have arrived; one that was answered has.
        assert!(arrivals.len() + refused >= 4 * ROUNDS / 2, "{ends:?}");
        races += refused as f64;
    }
    races += waypost.metric("waypost_retries_total", &[]).await;
    assert!(races > 0.0, "not one connection ended as it was taken");
}
