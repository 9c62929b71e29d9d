//! What counts as a failure of an upstream, and what is no fault of its.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::poll_fn;
use serde_json::json;

use crate::support::{
    h2_origin::{Exchange, H2Origin},
    http::{Wire, get},
    load::Client,
    origin::{Origin, Served},
    waypost::Waypost,
};

const H2: &str = r#"{"protocol": "h2"}"#;
const WEBSOCKET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\n\
                         Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

async fn one_worker() -> Waypost {
    Waypost::builder()
        .flag("--workers", 1)
        .flag("--access-log", "json")
        .start()
        .await
}

async fn stalling() -> Origin {
    Origin::run(async |mut served| while served.request().await.is_some() {}).await
}

async fn ejections(waypost: &Waypost) -> f64 {
    waypost
        .metric("waypost_upstream_ejections_total", &[])
        .await
}

/// How many of so many requests, one after the other, are answered whole.
async fn whole(waypost: &Waypost, count: usize) -> usize {
    let mut whole = 0;
    for _ in 0..count {
        let mut client = Client::connect(waypost.address()).await.unwrap();
        whole += usize::from(client.get("a.test", "/").await.is_ok());
    }
    whole
}

#[tokio::test]
async fn cut_bodies_with_whole_ones_between_eject_nobody() {
    let chunked = "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
    for end in ["0\r\n\r\n", "0\r\nx-sum: 1\r\n\r\n", ""] {
        let good = match end {
            "" => "\r\nup to the close".to_owned(),
            end => format!("{chunked}{end}"),
        };
        let origin = Origin::run(move |mut served: Served| {
            let answer = match served.connection % 2 {
                0 => good.clone(),
                _ => chunked.to_owned(),
            };
            async move {
                served.request().await;
                served
                    .send(format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{answer}"))
                    .await;
            }
        })
        .await;
        let waypost = one_worker().await;
        waypost.put("a.test", &origin, "").await;
        assert_eq!(whole(&waypost, 20).await, 10, "{end:?}");
        assert_eq!(ejections(&waypost).await, 0.0, "{end:?}");
    }
}

/// How an HTTP/2 upstream ends its good bodies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    /// By a frame without data.
    Apart,
    /// As above, and the length was told.
    Told,
    /// It doesn't, but all bytes that it told of are there.
    Late,
}

#[tokio::test]
async fn cut_bodies_of_http2_with_whole_ones_between_eject_nobody() {
    for ends in [Ends::Apart, Ends::Told, Ends::Late] {
        let count = Arc::new(AtomicUsize::new(0));
        let origin = H2Origin::each(move |mut exchange: Exchange| {
            let is_good = count.fetch_add(1, Ordering::Relaxed) % 2 == 1;
            async move {
                if !is_good {
                    let mut stream = exchange.head(200, &[("content-length", "9")], false);
                    let _ = stream.send_data("half".into(), true);
                    return;
                }
                let told = [("content-length", "2")];
                let fields = if ends == Ends::Apart { &[][..] } else { &told };
                let mut stream = exchange.head(200, fields, false);
                let _ = stream.send_data("ok".into(), false);
                if ends == Ends::Late {
                    let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
                }
                let _ = stream.send_data("".into(), true);
            }
        })
        .await;
        let waypost = one_worker().await;
        waypost.put("a.test", &origin, H2).await;
        assert_eq!(whole(&waypost, 20).await, 10, "{ends:?}");
        assert_eq!(ejections(&waypost).await, 0.0, "{ends:?}");
        assert_eq!(waypost.output().count("client_left"), 0, "{ends:?}");
    }
}

/// One failure ejects.
fn strictly(timeouts: serde_json::Value) -> String {
    let outlier = json!({"consecutive_failures": 1, "max_ejected_percent": 100});
    let retries = json!({"on": ["connect", "504"]});
    json!({"outlier": outlier, "timeouts": timeouts, "retries": retries}).to_string()
}

#[tokio::test]
async fn a_request_that_runs_out_of_time_in_our_queue_is_nobodys_fault() {
    let waypost = one_worker().await;
    let (modern, full) = (H2Origin::named("ok").await, stalling().await);
    waypost.put("a.test", &full, r#"{"max_requests": 1}"#).await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    full.asked(1).await;
    let settings = strictly(json!({"queue": "10s", "request": "300ms"}));
    waypost.put("a.test", "@settings", &settings).await;
    waypost.put("a.test", &modern, H2).await;
    let mut other = Wire::connect(waypost.address()).await;
    other.send(WEBSOCKET).await;
    // It can't go to the one, and waits for the other.
    assert_eq!(other.response("GET").await.status(), 504);
    assert_eq!(ejections(&waypost).await, 0.0);
}

#[tokio::test]
async fn who_had_a_request_too_shortly_is_not_blamed_for_its_time() {
    let waypost = one_worker().await;
    let both = [stalling().await, stalling().await];
    let settings = strictly(json!({"response": "500ms", "request": "800ms"}));
    waypost.put("a.test", "@settings", &settings).await;
    for origin in &both {
        waypost.put("a.test", origin, "").await;
    }
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 504);
    assert!(both.iter().all(|origin| origin.requests().len() == 1));
    assert_eq!(ejections(&waypost).await, 1.0, "the first one alone");
    let settings = strictly(json!({"response": "1h", "request": "300ms"}));
    waypost.put("a.test", "@settings", &settings).await;
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 504);
    assert_eq!(ejections(&waypost).await, 2.0, "it had all of the time");
}
