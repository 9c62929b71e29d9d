//! `max_requests` where requests are streams of HTTP/2, of clients and to upstreams.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    crowd::{Crowd, busy},
    gated::{Gated, limited, patient, settings, until_queued},
    h2_client::{H2Client, collect},
    h2_origin::{Exchange, H2Origin, request},
    waypost::Waypost,
};

/// Takes its time for each stream.
async fn busy_over_http2(crowd: &Crowd) -> H2Origin {
    let crowd = crowd.clone();
    H2Origin::each(move |exchange: Exchange| {
        let crowd = crowd.clone();
        async move {
            crowd.enter();
            tokio::time::sleep(Duration::from_millis(5)).await;
            crowd.leave();
            exchange.say("ok");
        }
    })
    .await
}

/// The statuses of so many streams at one time, of two connections.
async fn streams(waypost: &Waypost, count: usize) -> Vec<u16> {
    let clients = [
        H2Client::connect(waypost.address()).await,
        H2Client::connect(waypost.address()).await,
    ];
    let mut tasks = JoinSet::new();
    for client in clients.iter().cycle().take(count) {
        let client = client.clone();
        tasks.spawn(async move {
            let answer = client.ask(request("GET", "/")).await;
            answer.expect("an answer").status()
        });
    }
    tasks.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_counted_each_and_wait_in_turn() {
    let (crowd, other) = (Crowd::default(), Crowd::default());
    let plain = busy(&crowd).await;
    let over_http2 = busy_over_http2(&other).await;
    let http2 = r#"{"protocol": "h2", "max_requests": 3}"#;
    for (upstream, value, crowd) in [
        (plain.to_string(), r#"{"max_requests": 3}"#, &crowd),
        (over_http2.to_string(), http2, &other),
    ] {
        let waypost = Waypost::builder().start().await;
        waypost.put("a.test", &upstream, value).await;
        settings(&waypost, json!({"timeouts": {"queue": "1m"}})).await;
        let statuses = streams(&waypost, 60).await;
        assert!(statuses.iter().all(|&status| status == 200), "{statuses:?}");
        assert_eq!(crowd.most(), 3, "{value}");
        settings(&waypost, json!({"max_queue": 0})).await;
        let statuses = streams(&waypost, 60).await;
        let is_good = |status: &u16| *status == 200;
        let (good, refused): (Vec<_>, Vec<_>) = statuses.iter().copied().partition(is_good);
        assert!(good.len() >= 3 && !refused.is_empty(), "{statuses:?}");
        assert!(refused.iter().all(|&status| status == 503), "{statuses:?}");
        assert_eq!(crowd.most(), 3, "{value}");
    }
}

#[tokio::test]
async fn streams_that_are_reset_leave_the_queue_and_free_their_places() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    limited(&waypost, &gated.origin, 1).await;
    patient(&waypost).await;
    let client = H2Client::connect(waypost.address()).await;
    let running = client.open(request("GET", "/0"), true).await;
    gated.asked(1).await;
    let mut waiting = Vec::new();
    for number in 1..=3 {
        waiting.push(
            client
                .open(request("GET", &format!("/{number}")), true)
                .await,
        );
        until_queued(&waypost, number).await;
    }
    // Who waits first, on the same connection as those that stay.
    drop(waiting.remove(0));
    until_queued(&waypost, 2).await;
    assert_eq!(gated.asks(), 1);
    drop(running);
    gated.asked(2).await;
    assert_eq!(gated.origin.latest().head.line, "GET /2 HTTP/1.1");
    gated.let_through(3);
    for (response, _stream) in waiting {
        assert_eq!(collect(response).await.expect("an answer").status(), 200);
    }
}
