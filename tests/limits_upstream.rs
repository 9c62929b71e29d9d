//! `max_requests`, of an upstream and of a route: how many requests run at one time, who waits, and for what.

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    crowd::{Crowd, busy},
    gated::{Gated, HANDSHAKE, begin, limited, patient, settings, until_queued},
    http::{Wire, ask, get},
    load,
    waypost::{Waypost, eventually},
};

/// The statuses that so many clients get who ask at the same time.
async fn crowd_of(waypost: &Waypost, clients: usize) -> Vec<u16> {
    let (address, mut tasks) = (waypost.address(), JoinSet::new());
    for _ in 0..clients {
        tasks.spawn(async move { load::ask(address, "a.test", "/").await.status().as_u16() });
    }
    tasks.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_run_at_an_upstream_than_its_key_says_whatever_the_worker() {
    let waypost = Waypost::builder().start().await;
    let crowd = Crowd::default();
    let origin = busy(&crowd).await;
    limited(&waypost, &origin, 10).await;
    settings(
        &waypost,
        json!({"max_queue": 500, "timeouts": {"queue": "1m"}}),
    )
    .await;
    let statuses = crowd_of(&waypost, 200).await;
    assert!(statuses.iter().all(|&status| status == 200), "{statuses:?}");
    assert_eq!(crowd.most(), 10, "all places are used, and no more");
    // A short queue answers the others at once.
    settings(
        &waypost,
        json!({"max_queue": 20, "timeouts": {"queue": "1m"}}),
    )
    .await;
    let statuses = crowd_of(&waypost, 200).await;
    let (good, refused) = statuses
        .iter()
        .partition::<Vec<_>, _>(|&&status| status == 200);
    assert!(refused.iter().all(|&&status| status == 503), "{statuses:?}");
    assert!(good.len() >= 10, "{statuses:?}");
    assert_eq!(crowd.most(), 10);
    let full = [("reason", "full")];
    let counted = waypost.metric("waypost_queue_rejected_requests_total", &full);
    assert_eq!(counted.await as usize, refused.len());
    until_queued(&waypost, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_run_in_a_route_than_its_settings_say_whatever_the_upstream() {
    let waypost = Waypost::builder().start().await;
    let crowd = Crowd::default();
    let origins = [busy(&crowd).await, busy(&crowd).await];
    for origin in &origins {
        waypost.put("a.test", origin, "").await;
    }
    let limits = json!({"max_requests": 7, "max_queue": 500, "timeouts": {"queue": "1m"}});
    settings(&waypost, limits).await;
    let statuses = crowd_of(&waypost, 100).await;
    assert!(statuses.iter().all(|&status| status == 200), "{statuses:?}");
    assert_eq!(crowd.most(), 7, "of both upstreams together");
    assert!(origins.iter().all(|origin| !origin.requests().is_empty()));
}

#[tokio::test]
async fn who_came_first_has_the_first_turn() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    limited(&waypost, &gated.origin, 1).await;
    patient(&waypost).await;
    let mut clients = vec![begin(&waypost, "/0").await];
    gated.asked(1).await;
    for number in 1..6 {
        clients.push(begin(&waypost, &format!("/{number}")).await);
        until_queued(&waypost, number).await;
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        gated.asked(number + 1).await;
        let line = gated.origin.latest().head.line;
        assert_eq!(line, format!("GET /{number} HTTP/1.1"));
        gated.let_through(1);
        assert_eq!(client.response("GET").await.status(), 200);
    }
}

#[tokio::test]
async fn a_request_that_waits_takes_whichever_upstream_is_free_first() {
    let waypost = Waypost::builder().start().await;
    let gated = [Gated::start().await, Gated::start().await];
    for gated in &gated {
        limited(&waypost, &gated.origin, 1).await;
    }
    patient(&waypost).await;
    let _running = [begin(&waypost, "/").await, begin(&waypost, "/").await];
    for gated in &gated {
        gated.asked(1).await;
    }
    let mut waiting = Vec::new();
    for free in [&gated[1], &gated[0], &gated[0]] {
        let asks = free.asks();
        waiting.push(begin(&waypost, "/").await);
        until_queued(&waypost, 1).await;
        free.let_through(1);
        free.asked(asks + 1).await;
    }
}

#[tokio::test]
async fn clients_that_leave_free_their_places() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    limited(&waypost, &gated.origin, 2).await;
    patient(&waypost).await;
    let mut running = vec![begin(&waypost, "/").await, begin(&waypost, "/").await];
    gated.asked(2).await;
    let mut waiting = Vec::new();
    for count in 1..=20 {
        waiting.push(begin(&waypost, "/").await);
        until_queued(&waypost, count).await;
    }
    // Every other one of those that wait.
    for client in waiting.iter_mut().step_by(2) {
        client.reset();
    }
    until_queued(&waypost, 10).await;
    // Those that run: their places go to the next in turn.
    for mut client in running.drain(..) {
        client.reset();
    }
    gated.asked(4).await;
    until_queued(&waypost, 8).await;
    gated.let_through(20);
    for client in waiting.iter_mut().skip(1).step_by(2) {
        assert_eq!(client.response("GET").await.status(), 200);
    }
    settings(&waypost, json!({"max_queue": 0})).await;
    let mut again = vec![begin(&waypost, "/").await, begin(&waypost, "/").await];
    gated.let_through(2);
    for client in &mut again {
        assert_eq!(
            client.response("GET").await.status(),
            200,
            "both places are free"
        );
    }
}

#[tokio::test]
async fn a_limit_that_changes_holds_for_new_requests_and_counts_those_that_run() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    limited(&waypost, &gated.origin, 1).await;
    patient(&waypost).await;
    let _first = begin(&waypost, "/").await;
    gated.asked(1).await;
    let _second = begin(&waypost, "/").await;
    until_queued(&waypost, 1).await;
    // A change of another key of the route changes nothing.
    waypost
        .put("a.test", "127.0.0.1:9", r#"{"weight": 0}"#)
        .await;
    until_queued(&waypost, 1).await;
    assert_eq!(gated.asks(), 1);
    limited(&waypost, &gated.origin, 2).await;
    gated.asked(2).await;
    limited(&waypost, &gated.origin, 1).await;
    settings(&waypost, json!({"max_queue": 0})).await;
    let refused = get(waypost.address(), "a.test", "/").await;
    assert_eq!(
        (refused.status(), refused.error()),
        (503, "connection_limit_reached")
    );
    gated.let_through(1);
    eventually("one of two has ended", async || {
        let route = &waypost.api("/api/routes?host=a.test").await["routes"][0];
        let members = route["members"].as_array().unwrap();
        members
            .iter()
            .any(|member| member["why"] == "1 of 1 requests run")
    })
    .await;
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 503);
    gated.let_through(1);
    eventually("both have ended", async || {
        gated.let_through(1);
        get(waypost.address(), "a.test", "/").await.status() == 200
    })
    .await;
}

#[tokio::test]
async fn waiting_ends_with_503_when_it_takes_too_long() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    limited(&waypost, &gated.origin, 1).await;
    settings(&waypost, json!({"timeouts": {"queue": "200ms"}})).await;
    let mut running = begin(&waypost, "/").await;
    gated.asked(1).await;
    let refused = get(waypost.address(), "a.test", "/").await;
    assert_eq!(
        (refused.status(), refused.error()),
        (503, "connection_limit_reached")
    );
    let late = [("reason", "timeout")];
    let rejected = waypost
        .metric("waypost_queue_rejected_requests_total", &late)
        .await;
    assert_eq!(rejected, 1.0);
    gated.let_through(1);
    assert_eq!(running.response("GET").await.status(), 200);
}

#[tokio::test]
async fn nobody_who_waits_goes_to_an_upstream_that_was_taken_out() {
    let waypost = Waypost::builder().start().await;
    let (gone, stays) = (Gated::start().await, Gated::start().await);
    for gated in [&gone, &stays] {
        limited(&waypost, &gated.origin, 1).await;
    }
    patient(&waypost).await;
    let _running = [begin(&waypost, "/").await, begin(&waypost, "/").await];
    gone.asked(1).await;
    stays.asked(1).await;
    let mut waiting = begin(&waypost, "/").await;
    until_queued(&waypost, 1).await;
    waypost.delete("a.test", &gone.origin).await;
    gone.let_through(1);
    until_queued(&waypost, 1).await;
    stays.let_through(2);
    assert_eq!(waiting.response("GET").await.status(), 200);
    assert_eq!((gone.asks(), stays.asks()), (1, 2));
    // With the last one the queue ends.
    let _running = begin(&waypost, "/").await;
    stays.asked(3).await;
    let mut waiting = begin(&waypost, "/").await;
    until_queued(&waypost, 1).await;
    waypost.delete("a.test", &stays.origin).await;
    assert_eq!(waiting.response("GET").await.status(), 503);
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    limited(&waypost, &gated.origin, 1).await;
    settings(&waypost, json!({"max_queue": 0})).await;
    let mut upgraded = Wire::connect(waypost.address()).await;
    assert_eq!(upgraded.ask(HANDSHAKE).await.status(), 101);
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    assert_eq!(ask(waypost.address(), request).await.status(), 503);
    upgraded.reset();
    gated.let_through(1);
    eventually("its place is free", async || {
        ask(waypost.address(), request).await.status() == 200
    })
    .await;
}
