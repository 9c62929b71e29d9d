//! `retries` of a route: what is tried again, how often, within which budget, and with which body.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    http::{Message, Wire, ask, timed},
    load::Client,
    origin::{Origin, Refusing, Served},
    waypost::{Waypost, eventually},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const BUSY: &str =
    "HTTP/1.1 503 Service Unavailable\r\nx-why: busy\r\ncontent-length: 4\r\n\r\nbusy";

async fn one_worker() -> Waypost {
    Waypost::builder()
        .flag("--workers", 1)
        .flag("--access-log", "json")
        .start()
        .await
}

async fn retries(waypost: &Waypost, retries: Value) {
    // Nobody is to be left out while attempts are counted.
    let outlier = json!({"consecutive_failures": 0});
    let settings = json!({"retries": retries, "outlier": outlier}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
}

/// On all that can be asked for.
async fn everything(waypost: &Waypost, attempts: u32) {
    let on = ["connect", "reset", "502", "503", "504"];
    retries(waypost, json!({"attempts": attempts, "on": on})).await;
}

/// Reads each request and resets its connection.
async fn resetting() -> Origin {
    Origin::run(async |mut served| {
        served.request().await;
        served.wire.reset();
    })
    .await
}

fn answer(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} So\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn put(body: &str) -> String {
    let length = body.len();
    format!("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// What each of these was asked.
fn counts(origins: &[&Origin]) -> Vec<usize> {
    origins
        .iter()
        .map(|origin| origin.requests().len())
        .collect()
}

#[tokio::test]
async fn an_answer_that_retries_name_is_asked_of_another_upstream() {
    for status in [502, 503, 504] {
        let busy = Origin::answering(answer(status, "busy")).await;
        let origin = Origin::named("ok").await;
        let waypost = one_worker().await;
        waypost.put("a.test", &busy, "").await;
        waypost.put("a.test", &origin, "").await;
        let mut client = Wire::connect(waypost.address()).await;
        let mut answers = Vec::new();
        for _ in 0..2 {
            answers.push(client.ask(GET).await.status());
        }
        answers.sort_unstable();
        assert_eq!(answers, [200, status], "nobody asked for retries yet");
        retries(&waypost, json!({"on": [status.to_string()]})).await;
        for _ in 0..6 {
            assert_eq!(client.ask(GET).await.text(), "ok");
        }
        assert_eq!(counts(&[&busy, &origin]), [4, 7]);
        assert_eq!(busy.connections(), 1, "its connection serves on");
        let reason = status.to_string();
        let labels = [("reason", &*reason)];
        let retried = waypost.metric("waypost_retries_total", &labels).await;
        assert_eq!(retried, 3.0);
        let is_logged = |lines: &[String]| {
            let retried = lines.iter().filter(|line| line.contains(r#""retries":1,"#));
            (retried.count() == 3).then_some(())
        };
        assert_eq!(waypost.output().find(is_logged).await, Some(()));
        // A POST was answered, so it may have been acted on.
        let mut answers = Vec::new();
        for _ in 0..2 {
            let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi";
            answers.push(client.ask(post).await.status());
        }
        answers.sort_unstable();
        assert_eq!(answers, [200, status]);
    }
}

#[tokio::test]
async fn what_is_left_of_a_discarded_answer_is_read_if_it_is_little() {
    let chunked = "HTTP/1.1 503 So\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbusy\r\n";
    let late = "0\r\n\r\n";
    let large = answer(503, &"x".repeat(1 << 20));
    for (first, second, reused) in [(chunked, late, true), (&large[..], "", false)] {
        let (first, second) = (first.to_owned(), second.to_owned());
        let busy = Origin::run(move |mut served: Served| {
            let (first, second) = (first.clone(), second.clone());
            async move {
                while served.request().await.is_some() {
                    served.send(&first).await;
                    // In a packet of its own, as a chunk that is made later.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if !served.send(&second).await {
                        return;
                    }
                }
            }
        })
        .await;
        let origin = Origin::named("ok").await;
        let waypost = one_worker().await;
        waypost.put("a.test", &busy, "").await;
        waypost.put("a.test", &origin, "").await;
        everything(&waypost, 1).await;
        let mut client = Wire::connect(waypost.address()).await;
        let mut asked = 0;
        // A request may come before the end of the answer to the one before was read.
        eventually("the connection is used again, or closed", async || {
            for _ in 0..2 {
                assert_eq!(client.ask(GET).await.text(), "ok");
            }
            asked += 1;
            match reused {
                true => busy.requests().len() > busy.connections(),
                false => asked > 5,
            }
        })
        .await;
        if !reused {
            assert_eq!(busy.connections(), busy.requests().len());
        }
    }
}

#[tokio::test]
async fn the_last_answer_is_relayed_as_it_is() {
    let only = Origin::answering(BUSY).await;
    let waypost = one_worker().await;
    waypost.put("a.test", &only, "").await;
    everything(&waypost, 3).await;
    let is_relayed = |answer: &Message| {
        assert_eq!(
            (answer.status(), answer.head.one("x-why"), answer.text()),
            (503, Some("busy"), "busy")
        );
        assert_eq!(answer.head.one("proxy-status"), None, "it is not ours");
    };
    is_relayed(&ask(waypost.address(), GET).await);
    assert_eq!(counts(&[&only]), [1], "nobody else can be asked");

    let others = [Origin::answering(BUSY).await, Origin::answering(BUSY).await];
    for other in &others {
        waypost.put("a.test", other, "").await;
    }
    is_relayed(&ask(waypost.address(), GET).await);
    let all = [&only, &others[0], &others[1]];
    assert_eq!(counts(&all).iter().sum::<usize>(), 1 + 3, "each once");
    everything(&waypost, 1).await;
    is_relayed(&ask(waypost.address(), GET).await);
    assert_eq!(counts(&all).iter().sum::<usize>(), 4 + 2, "one more try");
}

#[tokio::test]
async fn attempts_are_what_a_request_may_cost_beyond_the_first() {
    for (attempts, expected) in [(0, 1), (1, 2), (3, 4), (10, 11)] {
        let origins = [resetting().await, resetting().await];
        let waypost = one_worker().await;
        for origin in &origins {
            waypost.put("a.test", origin, "").await;
        }
        retries(&waypost, json!({"attempts": attempts})).await;
        let (answer, took) = timed(ask(waypost.address(), GET)).await;
        assert_eq!(
            (answer.status(), answer.error()),
            (502, "connection_terminated")
        );
        let counts = counts(&[&origins[0], &origins[1]]);
        assert_eq!(counts.iter().sum::<usize>(), expected, "{counts:?}");
        if expected > 1 {
            assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
        }
        // Once each has had it, every further try waits 10 ms at least.
        let waits = u64::saturating_sub(expected as u64, 2);
        assert!(took >= Duration::from_millis(10 * waits), "{took:?}");
    }
}

#[tokio::test]
async fn what_retries_do_not_name_is_not_tried_again() {
    let (refusing, resetting) = (Refusing::new(), resetting().await);
    let origin = Origin::named("ok").await;
    for (upstream, kind) in [
        (refusing.to_string(), "connect"),
        (resetting.to_string(), "reset"),
    ] {
        let waypost = one_worker().await;
        waypost.put("a.test", &upstream, "").await;
        waypost.put("a.test", &origin, "").await;
        for (settings, is_retried) in [
            (json!({"on": [kind]}), true),
            (json!({"on": ["502", "503", "504"]}), false),
            (json!({"on": []}), false),
            (json!({"attempts": 0, "on": [kind]}), false),
        ] {
            retries(&waypost, settings.clone()).await;
            let mut answers = Vec::new();
            for _ in 0..2 {
                answers.push(ask(waypost.address(), GET).await.status());
            }
            answers.sort_unstable();
            let expected = if is_retried { [200, 200] } else { [200, 502] };
            assert_eq!(answers, expected, "{kind}: {settings}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_is_too_slow_is_left_for_another_if_504_is_named() {
    let stalling = Origin::run(async |mut served| while served.request().await.is_some() {}).await;
    let origin = Origin::named("ok").await;
    let waypost = one_worker().await;
    waypost.put("a.test", &stalling, "").await;
    waypost.put("a.test", &origin, "").await;
    let mut settings =
        json!({"retries": {"on": ["connect", "504"]}, "timeouts": {"response": "100ms"}});
    waypost
        .put("a.test", "@settings", &settings.to_string())
        .await;
    for _ in 0..4 {
        assert_eq!(ask(waypost.address(), GET).await.text(), "ok");
    }
    assert_eq!(counts(&[&stalling, &origin]), [2, 4]);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
        answers.push(ask(waypost.address(), post).await.status());
    }
    answers.sort_unstable();
    assert_eq!(answers, [200, 504]);
    // What all attempts take together is bounded by `request`.
    waypost.delete("a.test", &origin).await;
    let others = [(); 3].map(|()| Refusing::new());
    for other in &others {
        waypost.put("a.test", other, "").await;
    }
    settings["timeouts"] = json!({"response": "1h", "request": "300ms"});
    waypost
        .put("a.test", "@settings", &settings.to_string())
        .await;
    let answer = ask(waypost.address(), GET).await;
    assert_eq!(answer.status(), 504);
    assert!(answer.text().contains("the request took too long"));
}

#[tokio::test]
async fn retries_stay_inside_their_budget_when_everybody_fails() {
    let origins = [Origin::answering(BUSY).await, Origin::answering(BUSY).await];
    let waypost = one_worker().await;
    for origin in &origins {
        waypost.put("a.test", origin, "").await;
    }
    let healthy = Origin::named("ok").await;
    waypost.put("b.test", &origins[0], "").await;
    waypost.put("b.test", &healthy, "").await;
    everything(&waypost, 5).await;
    let b = json!({"retries": {"on": ["503"]}}).to_string();
    waypost.put("b.test", "@settings", &b).await;

    const REQUESTS: usize = 800;
    let begun = Instant::now();
    let mut client = Client::connect(waypost.address()).await.unwrap();
    for _ in 0..REQUESTS {
        let answer = client.get("a.test", "/").await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..]),
            (503, "busy")
        );
    }
    let windows = 1 + begun.elapsed().as_secs() as usize / 10;
    let retried = counts(&[&origins[0], &origins[1]]).iter().sum::<usize>() - REQUESTS;
    // A fifth of them, as the default says; 100 in 10 s are the floor.
    assert!(
        (100..=REQUESTS / 5 + 100 * (windows - 1)).contains(&retried),
        "{retried}"
    );
    let metric = async |name| waypost.metric(name, &[]).await as usize;
    assert_eq!(metric("waypost_retries_total").await, retried);
    let exhausted = metric("waypost_retry_budget_exhausted_total").await;
    assert_eq!(exhausted, REQUESTS - retried, "each other one was relayed");
    // Another route has a budget of its own.
    for _ in 0..10 {
        assert_eq!(client.get("b.test", "/").await.unwrap().body(), "ok");
    }
}

#[tokio::test]
async fn a_small_body_is_sent_again_where_a_route_asks_for_retries() {
    let (resetting, busy) = (resetting().await, Origin::answering(BUSY).await);
    let chunked =
        "PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n";
    let chunks = "3\r\nhel\r\n2\r\nlo\r\n0\r\nx-sum: 1\r\n\r\n";
    let full = "x".repeat(64 * 1024);
    let larger = "x".repeat(64 * 1024 + 1);
    let post = put("hello").replace("PUT", "POST");
    for broken in [&resetting, &busy] {
        for (request, body, trailers, is_repeated) in [
            (put("hello"), "hello", 0, true),
            (format!("{chunked}{chunks}"), "hello", 1, true),
            (format!("{chunked}0\r\n\r\n"), "", 0, true),
            (put(&full), &full[..], 0, true),
            (put(&larger), &larger[..], 0, false),
            (post.clone(), "hello", 0, false),
        ] {
            let origin = Origin::named("ok").await;
            let waypost = one_worker().await;
            waypost.put("a.test", broken, "").await;
            waypost.put("a.test", &origin, "").await;
            everything(&waypost, 1).await;
            let mut answers = Vec::new();
            for _ in 0..2 {
                answers.push(ask(waypost.address(), &request).await.status());
            }
            let what = format!("{:?}: {answers:?}", &request[..request.len().min(120)]);
            assert_eq!(
                answers.iter().all(|&status| status == 200),
                is_repeated,
                "{what}"
            );
            for request in origin.requests() {
                assert_eq!(request.text(), body, "{what}");
                assert_eq!(request.trailers.len(), trailers, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_still_coming_goes_on_where_it_is_sent_again() {
    // Answers as soon as it has seen the first bytes.
    let hasty = Origin::run(async |mut served| {
        if served.wire.take_until("first").await.is_ok() {
            served.send(BUSY).await;
            served.wire.take_rest().await;
        }
    })
    .await;
    // A connection for each request tells when one has come.
    let origin = Origin::closing(answer(200, "ok")).await;
    let waypost = one_worker().await;
    waypost.put("a.test", &hasty, "").await;
    waypost.put("a.test", &origin, "").await;
    let settings = json!({"retries": {"on": ["503"]}, "max_body": "20B"});
    waypost
        .put("a.test", "@settings", &settings.to_string())
        .await;
    let begin =
        "PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    for (rest, status) in [
        ("6\r\nsecond\r\n0\r\n\r\n", 200),
        ("10\r\n0123456789abcdef\r\n0\r\n\r\n", 413),
    ] {
        for _ in 0..2 {
            let before = origin.connections();
            let mut client = Wire::connect(waypost.address()).await;
            client.send(begin).await;
            // Be it at first, or after the other one's answer.
            eventually("the good one has it", async || {
                origin.connections() > before
            })
            .await;
            client.send(rest).await;
            assert_eq!(client.response("PUT").await.status(), status);
        }
    }
    assert!(hasty.connections() > 0);
    let bodies: Vec<_> = origin
        .requests()
        .iter()
        .map(|request| request.text().to_owned())
        .collect();
    assert_eq!(&bodies[..2], ["firstsecond", "firstsecond"]);
}
