//! `explain`: what it says of a request is what the request then meets.

use std::future;

use serde_json::{Value, json};

use crate::support::{
    http::Wire,
    load::ask,
    origin::{Origin, Refusing},
    sample::Sample,
    waypost::{Waypost, eventually},
};

const HOST: &str = "a.test";

#[tokio::test]
async fn a_name_without_an_address_is_502() {
    let waypost = Waypost::builder().start().await;
    waypost.put(HOST, "nobody.invalid:80", "").await;
    let explained = explain(&waypost).await;
    let answer = ask(waypost.address(), HOST, "/").await;
    assert_eq!(explained["status"], answer.status().as_u16(), "{explained}");
    assert_eq!(explained["status"], 502);
    says(
        &explained,
        "the name of the one upstream left has no address",
    );
    let sample = Sample::start().await;
    waypost.put(HOST, &sample, "").await;
    says(&explain(&waypost).await, "its one upstream gets it; 1 out");
}

#[tokio::test]
async fn requests_that_would_wait_or_find_the_queue_full_are_told_so() {
    for (of_route, why) in [
        (true, "1 of 1 requests run in the route"),
        (false, "its one upstream is full"),
    ] {
        let waypost = Waypost::builder().start().await;
        let silent = silent().await;
        let limit = |max_queue: u32| match of_route {
            true => json!({"max_requests": 1, "max_queue": max_queue}),
            false => json!({"max_queue": max_queue}),
        };
        let value = match of_route {
            true => "",
            false => r#"{"max_requests": 1}"#,
        };
        waypost.put(HOST, "@settings", &limit(0).to_string()).await;
        waypost.put(HOST, &silent, value).await;
        says(&explain(&waypost).await, "its one upstream gets it");
        let _running = begin(&waypost, &silent).await;
        let explained = explain(&waypost).await;
        assert_eq!(
            (&explained["outcome"], &explained["status"]),
            (&json!("full"), &json!(503))
        );
        says(&explained, why);
        assert_eq!(ask(waypost.address(), HOST, "/").await.status(), 503);

        let patient = json!({"timeouts": {"queue": "1m"}});
        let mut settings = limit(1);
        settings["timeouts"] = patient["timeouts"].clone();
        waypost.put(HOST, "@settings", &settings.to_string()).await;
        let explained = explain(&waypost).await;
        assert_eq!(explained["outcome"], "forward");
        let waits =
            format!("it waits, as {why} (0 of 1 wait already); then its one upstream gets it");
        says(&explained, &waits);
        let mut waiting = Wire::connect(waypost.address()).await;
        waiting.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        eventually("one waits", async || {
            waypost.metric("waypost_queued_requests", &[]).await == 1.0
        })
        .await;
        says(
            &explain(&waypost).await,
            &format!("{why}, and 1 of 1 wait already"),
        );
    }
}

#[tokio::test]
async fn who_is_full_stands_by_or_starts_slowly_is_told_from_who_is_out() {
    let waypost = Waypost::builder().start().await;
    let (silent, refusing) = (silent().await, Refusing::new());
    let backup = Sample::start().await;
    waypost.put(HOST, &silent, r#"{"max_requests": 1}"#).await;
    waypost.put(HOST, &backup, r#"{"backup": true}"#).await;
    let _running = begin(&waypost, &silent).await;
    let outlier = json!({"slow_start": "1h"});
    waypost.put(HOST, "@settings", &outlier.to_string()).await;
    waypost.put(HOST, &refusing, "").await;
    let explained = explain(&waypost).await;
    says(
        &explained,
        "its one upstream gets it; 1 full; 1 standing by",
    );
    assert_eq!(explained["candidates"], json!([refusing.to_string()]));
    let member = |upstream: String| {
        let members = explained["route"]["members"].as_array().expect("members");
        let found = members.iter().find(|member| member["upstream"] == upstream);
        found.expect("a member").clone()
    };
    assert_eq!(member(refusing.to_string())["slow_start_percent"], 10);
    assert_eq!(
        member(silent.to_string())["slow_start_percent"],
        Value::Null
    );
    assert_eq!(member(backup.to_string())["role"], "backup");
    let weightless = Sample::start().await;
    waypost.put(HOST, &weightless, r#"{"weight": 0}"#).await;
    says(
        &explain(&waypost).await,
        "its one upstream gets it; 1 out; 1 full; 1 standing by",
    );
}

#[tokio::test]
async fn what_ties_a_request_to_one_upstream_is_told() {
    let waypost = Waypost::builder().start().await;
    let (one, other) = (Sample::start().await, Sample::start().await);
    waypost.put(HOST, &one, "").await;
    let hash = json!({"balance": "hash", "hash_on": "header:X-User"});
    waypost.put(HOST, "@settings", &hash.to_string()).await;
    says(&explain(&waypost).await, "its one upstream gets it");
    waypost.put(HOST, &other, "").await;
    says(
        &explain(&waypost).await,
        "one of 2 upstreams gets it; by the hash of the field x-user",
    );
    let sticky = json!({"sticky": {"cookie": "home"}});
    waypost.put(HOST, "@settings", &sticky.to_string()).await;
    says(
        &explain(&waypost).await,
        "one of 2 upstreams gets it; who has its cookie home stays where that says",
    );
}

async fn explain(waypost: &Waypost) -> Value {
    waypost.api("/api/explain?url=http://a.test/").await
}

fn says(explained: &Value, expected: &str) {
    let reason = explained["reason"].as_str().expect("a reason");
    assert!(reason.contains(expected), "{reason}");
}

/// Takes requests and answers none.
async fn silent() -> Origin {
    Origin::run(async |mut served| {
        served.request().await;
        future::pending::<()>().await;
    })
    .await
}

/// A request that runs at this origin.
async fn begin(waypost: &Waypost, origin: &Origin) -> Wire {
    let mut client = Wire::connect(waypost.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    origin.asked(1).await;
    client
}
