//! The queue of a route with limits: who waits for what, who goes past, and who is called when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{
    gated::{Gated, HANDSHAKE, begin, limited, patient, settings, until_queued},
    h2_origin::H2Origin,
    http::{Wire, get, timed},
    origin::{Origin, Served},
    waypost::{Waypost, eventually},
};

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\ntheir";
const BACK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nback";

#[tokio::test]
async fn who_waits_for_what_is_full_is_in_nobodys_way() {
    for (value, of_route) in [
        (r#"{"protocol": "h2"}"#, json!(null)),
        (r#"{"protocol": "h2", "max_requests": 5}"#, json!(null)),
        (r#"{"protocol": "h2", "max_requests": 5}"#, json!(5)),
    ] {
        let waypost = Waypost::builder().start().await;
        let mut rules = json!({"max_queue": 2, "timeouts": {"queue": "1m"}});
        if !of_route.is_null() {
            rules["max_requests"] = of_route;
        }
        settings(&waypost, rules).await;
        let (free, full) = (H2Origin::named("free").await, Gated::start().await);
        waypost.put("a.test", &free, value).await;
        limited(&waypost, &full.origin, 1).await;
        // Upgrades can't go over HTTP/2: they all want the same place.
        let mut upgraded = handshake(&waypost).await;
        assert_eq!(upgraded.head().await.unwrap().status(), 101);
        let mut waiting = Vec::new();
        for count in 1..=2 {
            waiting.push(handshake(&waypost).await);
            until_queued(&waypost, count).await;
        }
        for _ in 0..20 {
            let (answer, time) = timed(get(waypost.address(), "a.test", "/")).await;
            assert_eq!((answer.status(), answer.text()), (200, "free"), "{value}");
            assert!(time < Duration::from_secs(5), "{value}: {time:?}");
        }
        until_queued(&waypost, 2).await;
        upgraded.reset();
        let mut next = waiting.remove(0);
        assert_eq!(next.head().await.unwrap().status(), 101);
        until_queued(&waypost, 1).await;
    }
}

#[tokio::test]
async fn who_waits_goes_to_a_member_that_comes_back() {
    let waypost = Waypost::builder().start().await;
    let failed = Arc::<AtomicBool>::default();
    let back = Origin::run(move |mut served: Served| {
        let failed = failed.clone();
        async move {
            while served.request().await.is_some() {
                let is_up = failed.swap(true, Ordering::SeqCst);
                served.send(if is_up { BACK } else { UNAVAILABLE }).await;
            }
        }
    })
    .await;
    settings(
        &waypost,
        json!({"timeouts": {"queue": "1m"}, "outlier": {"consecutive_failures": 1, "ejection": "2s"}}),
    )
    .await;
    waypost.put("a.test", &back, "").await;
    // Ejected, as it fails; while it is alone it would get requests all the same.
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 503);
    let full = Gated::start().await;
    limited(&waypost, &full.origin, 1).await;
    let _running = begin(&waypost, "/").await;
    full.asked(1).await;
    let mut waiting = begin(&waypost, "/").await;
    until_queued(&waypost, 1).await;
    let mut behind = begin(&waypost, "/").await;
    until_queued(&waypost, 2).await;
    // Nobody else comes, and nothing ends.
    for client in [&mut waiting, &mut behind] {
        assert_eq!(client.response("GET").await.text(), "back");
    }
    assert_eq!(full.asks(), 1);
}

#[tokio::test]
async fn the_answer_of_an_upstream_is_kept_where_nobody_else_has_room() {
    let waypost = Waypost::builder().start().await;
    let (full, failing) = (Gated::start().await, Origin::answering(UNAVAILABLE).await);
    let backup = Origin::named("backup").await;
    settings(
        &waypost,
        json!({"max_queue": 0, "retries": {"on": ["503"]}, "outlier": {"consecutive_failures": 0}}),
    )
    .await;
    limited(&waypost, &full.origin, 1).await;
    let _running = begin(&waypost, "/").await;
    full.asked(1).await;
    waypost.put("a.test", &failing, "").await;
    waypost.put("a.test", &backup, r#"{"backup": true}"#).await;
    let answer = get(waypost.address(), "a.test", "/").await;
    assert_eq!((answer.status(), answer.text()), (503, "their"));
    // It would do for the one that is full, but is there for those that are out.
    assert!(backup.requests().is_empty());
    waypost
        .put("a.test", &full.origin, r#"{"weight": 0}"#)
        .await;
    assert_eq!(get(waypost.address(), "a.test", "/").await.text(), "backup");
}

#[tokio::test]
async fn a_second_attempt_does_not_wait_behind_who_waits_for_its_own_place() {
    let waypost = Waypost::builder().start().await;
    settings(
        &waypost,
        json!({"max_requests": 1, "timeouts": {"queue": "1m"}, "retries": {"on": ["503"]}}),
    )
    .await;
    let (failing, backup) = (
        Gated::answering(UNAVAILABLE).await,
        Origin::named("backup").await,
    );
    waypost.put("a.test", &failing.origin, "").await;
    waypost.put("a.test", &backup, r#"{"backup": true}"#).await;
    let mut first = begin(&waypost, "/").await;
    failing.asked(1).await;
    let mut second = begin(&waypost, "/").await;
    until_queued(&waypost, 1).await;
    failing.let_through(2);
    for client in [&mut first, &mut second] {
        assert_eq!(client.response("GET").await.text(), "backup");
    }
}

#[tokio::test]
async fn an_upstream_is_not_blamed_for_the_wait_before_it_was_asked() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    limited(&waypost, &gated.origin, 1).await;
    patient(&waypost).await;
    let since = Instant::now();
    let mut first = begin(&waypost, "/").await;
    gated.asked(1).await;
    let mut second = begin(&waypost, "/").await;
    until_queued(&waypost, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    gated.let_through(2);
    let both = async {
        first.response("GET").await;
        second.response("GET").await;
    };
    let ((), rest) = timed(both).await;
    let all = since.elapsed().as_secs_f64();
    let upstream = gated.origin.to_string();
    let labels = [("upstream", &*upstream)];
    let name = "waypost_upstream_response_seconds_sum";
    let sum = || async { waypost.metric(name, &labels).await };
    eventually("both are counted", async || sum().await > 0.4).await;
    let sum = sum().await;
    assert!(sum < all + rest.as_secs_f64() + 0.2, "{sum} s in {all} s");
}

#[tokio::test]
async fn time_at_an_upstream_is_no_waiting() {
    let waypost = Waypost::builder().start().await;
    settings(&waypost, json!({"timeouts": {"queue": "1s"}})).await;
    let (ends, stays) = (Gated::answering("").await, Gated::start().await);
    limited(&waypost, &ends.origin, 1).await;
    let _first = begin(&waypost, "/").await;
    ends.asked(1).await;
    let mut second = begin(&waypost, "/").await;
    until_queued(&waypost, 1).await;
    // The first is sent once more, then it has failed.
    ends.let_through(2);
    ends.asked(3).await;
    limited(&waypost, &stays.origin, 1).await;
    let _third = begin(&waypost, "/").await;
    stays.asked(1).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    waypost.delete("a.test", &ends.origin).await;
    ends.let_through(1);
    until_queued(&waypost, 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stays.let_through(2);
    assert_eq!(second.response("GET").await.status(), 200);
}

async fn handshake(waypost: &Waypost) -> Wire {
    let mut client = Wire::connect(waypost.address()).await;
    client.send(HANDSHAKE).await;
    client
}
