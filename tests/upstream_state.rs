//! What the admin API and the metrics say of each upstream: whether it gets requests and why not, and what it does.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{
    http,
    origin::Origin,
    waypost::{Waypost, eventually},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn what_is_in_flight_and_what_was_answered_is_shown() {
    let waypost = Waypost::builder().start().await;
    let let_go = Arc::new(Semaphore::new(0));
    let origin = Origin::run({
        let let_go = let_go.clone();
        move |mut served| {
            let let_go = let_go.clone();
            async move {
                while served.request().await.is_some() {
                    let_go.acquire().await.unwrap().forget();
                    served.send(OK).await;
                }
            }
        }
    })
    .await;
    let name = origin.to_string();
    waypost.put("a.test", &name, "").await;
    let fresh = member(&waypost, &name).await;
    assert_eq!(fresh["state"], "healthy", "{fresh}");
    assert_eq!(
        (
            &fresh["in_flight"],
            &fresh["requests"],
            &fresh["response_seconds"]["mean"]
        ),
        (&json!(0), &json!(0), &json!(null)),
        "{fresh}"
    );

    let address = waypost.address();
    let requests: Vec<_> = (0..3)
        .map(|_| tokio::spawn(http::get(address, "a.test", "/")))
        .collect();
    origin.asked(3).await;
    let busy = member(&waypost, &name).await;
    assert_eq!(
        (&busy["in_flight"], &busy["requests"]),
        (&json!(3), &json!(3)),
        "{busy}"
    );
    let labels = [("upstream", name.as_str())];
    assert_eq!(
        waypost.metric("waypost_upstream_in_flight", &labels).await,
        3.0
    );

    let_go.add_permits(3);
    for request in requests {
        assert_eq!(request.await.unwrap().status(), 200);
    }
    eventually("nothing is in flight", async || {
        member(&waypost, &name).await["in_flight"] == 0
    })
    .await;
    let done = member(&waypost, &name).await;
    let times = &done["response_seconds"];
    assert!(
        times["mean"].as_f64().is_some_and(|mean| mean > 0.0),
        "{done}"
    );
    assert!(times["p99"].as_f64() >= times["p50"].as_f64(), "{done}");
    eventually("their connections are idle", async || {
        member(&waypost, &name).await["idle_connections"] == 3
    })
    .await;
    let count = waypost.metric("waypost_upstream_response_seconds_count", &labels);
    assert_eq!(count.await, 3.0);
}

#[tokio::test]
async fn explain_tells_the_candidates_from_those_that_are_out() {
    let waypost = Waypost::builder()
        .flag("--upstream-deny", "169.254.0.0/16")
        .start()
        .await;
    let (serving, draining) = (Origin::answering(OK).await, Origin::answering(OK).await);
    let [serving, draining] = [&serving, &draining].map(|origin| origin.to_string());
    waypost.put("a.test", &serving, "").await;
    waypost.put("a.test", &draining, r#"{"drain": true}"#).await;
    waypost
        .put("a.test", "127.0.0.9:9", r#"{"weight": 0}"#)
        .await;
    let explained = waypost.api("/api/explain?url=http://a.test/").await;
    assert_eq!(explained["candidates"], json!([serving]), "{explained}");
    assert_eq!(
        explained["reason"], "its one upstream gets it; 2 out",
        "{explained}"
    );
    for (upstream, state, why) in [
        (draining.as_str(), "draining", "its key says \"drain\""),
        ("127.0.0.9:9", "weightless", "its key says \"weight\": 0"),
    ] {
        let outs = explained["out"].as_array().unwrap();
        let out = outs.iter().find(|out| out["upstream"] == upstream);
        let out = out.unwrap_or_else(|| panic!("{upstream} in {explained}"));
        assert_eq!(out["state"], state, "{out}");
        assert!(out["why"].as_str().unwrap().starts_with(why), "{out}");
        assert_eq!(member(&waypost, upstream).await["state"], state);
    }
}

/// The member of route a.test, as `/api/routes` shows it.
async fn member(waypost: &Waypost, upstream: &str) -> Value {
    let page = waypost.api("/api/routes?host=a.test").await;
    let members = page["routes"][0]["members"].as_array().unwrap().clone();
    let is_it = |member: &Value| member["upstream"] == upstream;
    members
        .into_iter()
        .find(is_it)
        .unwrap_or_else(|| panic!("{upstream} in {page}"))
}
