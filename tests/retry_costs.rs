//! Which failed attempts are free, and which count against `attempts`.

use std::time::Duration;

use h2::server::Builder;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::support::{
    deaf::Deaf,
    h2_origin::H2Origin,
    http::{Wire, get},
    origin::Origin,
    waypost::Waypost,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const H2: &str = r#"{"protocol": "h2"}"#;

/// Longer than a connection may take to end that was closed when it was taken.
const A_WHILE: Duration = Duration::from_millis(1300);

async fn one_worker() -> Waypost {
    Waypost::builder().flag("--workers", 1).start().await
}

async fn attempts(waypost: &Waypost, attempts: u32) {
    let settings = json!({
        "retries": {"attempts": attempts},
        "timeouts": {"connect": "200ms"},
        // Nobody is to be left out while attempts are counted.
        "outlier": {"consecutive_failures": 0},
    });
    let settings = settings.to_string();
    waypost.put("a.test", "@settings", &settings).await;
}

async fn retries(waypost: &Waypost, reason: &str) -> f64 {
    let labels = [("reason", reason)];
    waypost.metric("waypost_retries_total", &labels).await
}

/// Answers the first request of its first connection; that ends, a while into the second.
async fn dies_at_work() -> Origin {
    Origin::run(async |mut served| {
        if served.connection == 1 {
            served.request().await;
            served.send(OK).await;
            served.request().await;
            sleep(A_WHILE).await;
            return;
        }
        while served.request().await.is_some() {
            served.send(OK).await;
        }
    })
    .await
}

/// The same by HTTP/2.
async fn dies_at_work_by_http2() -> H2Origin {
    H2Origin::run(Builder::new(), async |mut served| {
        if served.number > 1 {
            return served.each(async |exchange| exchange.say("ok")).await;
        }
        if let Some(exchange) = served.accept().await {
            exchange.say("ok");
        }
        let _second = served.accept().await;
        let _ = timeout(A_WHILE, served.accept()).await;
    })
    .await
}

#[tokio::test]
async fn an_upstream_that_dies_while_it_works_costs_an_attempt() {
    let (one, two) = (dies_at_work().await, dies_at_work_by_http2().await);
    for (origin, value) in [(one.to_string(), ""), (two.to_string(), H2)] {
        let waypost = one_worker().await;
        waypost.put("a.test", &origin, value).await;
        attempts(&waypost, 0).await;
        let mut client = Wire::connect(waypost.address()).await;
        assert_eq!(client.ask(GET).await.text(), "ok");
        let answer = client.ask(GET).await;
        assert_eq!(
            (answer.status(), answer.error()),
            (502, "connection_terminated"),
            "{value}"
        );
        let labels = [("upstream", &*origin)];
        let failures = waypost.metric("waypost_upstream_failures_total", &labels);
        assert_eq!(failures.await, 1.0, "{value}");
    }
    let (one, two) = (dies_at_work().await, dies_at_work_by_http2().await);
    for (origin, value) in [(one.to_string(), ""), (two.to_string(), H2)] {
        let waypost = one_worker().await;
        waypost.put("a.test", &origin, value).await;
        attempts(&waypost, 1).await;
        let mut client = Wire::connect(waypost.address()).await;
        for _ in 0..2 {
            assert_eq!(client.ask(GET).await.text(), "ok");
        }
        let counted = (
            retries(&waypost, "reset").await,
            retries(&waypost, "stale").await,
        );
        assert_eq!(counted, (1.0, 0.0), "{value}");
    }
}

#[tokio::test]
async fn who_met_a_stale_connection_takes_no_kept_one_again() {
    // Both read their second request and end the connection at once, as a request does that kills them.
    let dying = async || {
        Origin::run(async |mut served| {
            served.request().await;
            if served.connection == 1 {
                served.send(OK).await;
                served.request().await;
            }
        })
        .await
    };
    let both = [dying().await, dying().await];
    let waypost = one_worker().await;
    attempts(&waypost, 1).await;
    for origin in &both {
        waypost.put("a.test", origin, "").await;
    }
    for _ in 0..2 {
        assert_eq!(get(waypost.address(), "a.test", "/").await.text(), "ok");
    }
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 502);
    let counts = both.each_ref().map(|origin| origin.requests().len() - 1);
    assert_eq!(counts.iter().sum::<usize>(), 3, "stale, fresh, the other");
}

#[tokio::test]
async fn an_upstream_that_takes_its_time_over_a_connection_costs_an_attempt() {
    let mut deaf = Vec::new();
    let mut insecure = Vec::new();
    let mut full = Vec::new();
    for _ in 0..4 {
        deaf.push(Deaf::new());
        let hangs_up = Origin::run(async |mut served| {
            let _hello = served.wire.fill().await;
        });
        insecure.push(hangs_up.await);
        let mut builder = Builder::new();
        builder.max_concurrent_streams(0);
        let none = H2Origin::run(builder, |served| served.each(async |x| x.say("ok")));
        full.push(none.await);
    }
    let deaf = deaf.iter().map(ToString::to_string);
    let insecure = insecure.iter().map(ToString::to_string);
    let full = full.iter().map(ToString::to_string);
    for (upstreams, value, status, error) in [
        (deaf.collect::<Vec<_>>(), "", 504, "connection_timeout"),
        (
            insecure.collect(),
            r#"{"tls": {"insecure": true}}"#,
            502,
            "tls_protocol_error",
        ),
        (full.collect(), H2, 503, "connection_limit_reached"),
    ] {
        let waypost = one_worker().await;
        for upstream in &upstreams {
            waypost.put("a.test", upstream, value).await;
        }
        let mut before = 0.0;
        for extra in [0, 1, 2] {
            attempts(&waypost, extra).await;
            let answer = get(waypost.address(), "a.test", "/").await;
            assert_eq!((answer.status(), answer.error()), (status, error));
            let after = retries(&waypost, "connect").await;
            assert_eq!(after - before, f64::from(extra), "{error}");
            before = after;
        }
    }
}
