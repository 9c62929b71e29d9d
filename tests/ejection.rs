//! Upstreams that fail too often are left out for a while, and come back by themselves.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use serde_json::json;

use crate::support::{
    http::Wire,
    load::{Client, Load},
    origin::{Origin, Refusing},
    sample::Sample,
    waypost::{Waypost, eventually, write},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// What an origin does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Mood {
    Good,
    /// Answers 500.
    Error,
    /// Resets the connection.
    Reset,
    /// Speaks no HTTP.
    Nonsense,
    /// Doesn't answer.
    Stall,
    /// Ends in the middle of the body.
    Cut,
    /// Switches protocols, though nobody asked.
    Switch,
}

const BAD: [Mood; 6] = [
    Mood::Error,
    Mood::Reset,
    Mood::Nonsense,
    Mood::Stall,
    Mood::Cut,
    Mood::Switch,
];

/// An origin whose mood changes.
struct Moody {
    origin: Origin,
    mood: Arc<AtomicU8>,
}

impl Moody {
    async fn start(mood: Mood) -> Self {
        let mood = Arc::new(AtomicU8::new(mood as u8));
        let script = {
            let mood = mood.clone();
            move |mut served: crate::support::origin::Served| {
                let mood = mood.clone();
                async move {
                    while served.request().await.is_some() {
                        let mood = mood.load(Ordering::Relaxed);
                        let is = |other| mood == other as u8;
                        let answer = match () {
                            () if is(Mood::Reset) => return served.wire.reset(),
                            () if is(Mood::Stall) => continue,
                            () if is(Mood::Error) => "500 Oh\r\ncontent-length: 0\r\n\r\n",
                            () if is(Mood::Nonsense) => "is this the library?\r\n\r\n",
                            () if is(Mood::Cut) => "200 OK\r\ncontent-length: 9\r\n\r\nhalf",
                            () if is(Mood::Switch) => {
                                "101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                            }
                            () => "200 OK\r\ncontent-length: 2\r\n\r\nok",
                        };
                        if !served.send(format!("HTTP/1.1 {answer}")).await || is(Mood::Cut) {
                            return;
                        }
                    }
                }
            }
        };
        let origin = Origin::run(script).await;
        Self { origin, mood }
    }

    fn becomes(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }

    fn hits(&self) -> usize {
        self.origin.requests().len()
    }
}

async fn one_worker() -> Waypost {
    Waypost::builder().flag("--workers", 1).start().await
}

async fn ejections(waypost: &Waypost, upstream: impl ToString) -> f64 {
    let label = upstream.to_string();
    let labels = [("upstream", &*label)];
    let name = "waypost_upstream_ejections_total";
    waypost.metric(name, &labels).await
}

async fn ejected(waypost: &Waypost) -> f64 {
    waypost.metric("waypost_upstream_ejected", &[]).await
}

/// So many requests, each on its own connection; how many were answered 200.
async fn good(waypost: &Waypost, host: &str, count: usize) -> usize {
    let mut good = 0;
    for _ in 0..count {
        let mut client = Client::connect(waypost.address()).await.unwrap();
        let answer = client.get(host, "/").await;
        good += usize::from(answer.is_ok_and(|answer| answer.status() == 200));
    }
    good
}

#[tokio::test]
async fn five_failures_in_a_row_eject_an_upstream_and_the_others_serve() {
    let waypost = one_worker().await;
    for mood in BAD {
        let host = format!("{mood:?}.test").to_lowercase();
        let bad = Moody::start(mood).await;
        let others = [Sample::start().await, Sample::start().await];
        let settings = json!({"timeouts": {"response": "100ms"}}).to_string();
        if mood == Mood::Stall {
            waypost.put(&host, "@settings", &settings).await;
        }
        waypost.put(&host, &bad.origin, "").await;
        for other in &others {
            waypost.put(&host, other, "").await;
        }
        good(&waypost, &host, 15).await;
        assert_eq!(ejections(&waypost, &bad.origin).await, 1.0, "{mood:?}");
        if mood == Mood::Stall {
            // On a busy machine the others may take that long too.
            waypost.delete(&host, "@settings").await;
        }
        assert_eq!((bad.hits(), good(&waypost, &host, 20).await), (5, 20));
        assert_eq!(bad.hits(), 5, "{mood:?}");
        let hits = others.each_ref().map(Sample::hits);
        assert!(hits.iter().all(|&hits| hits >= 10), "{mood:?}: {hits:?}");
    }
    assert_eq!(ejected(&waypost).await, BAD.len() as f64);
    let page = waypost.api("/api/routes?host=error.test").await;
    let members = page["routes"][0]["members"].as_array().unwrap();
    let out = members.iter().find(|member| member["state"] == "ejected");
    let why = out.unwrap()["why"].as_str().unwrap();
    assert!(why.contains("at last by: status 500; for "), "{why}");
    waypost.log().until("upstream ejected: status 500").await;
}

#[tokio::test]
async fn an_upstream_that_refuses_is_not_even_dialled_while_it_is_out() {
    let waypost = one_worker().await;
    let (refusing, origin) = (Refusing::new(), Origin::named("ok").await);
    waypost.put("a.test", &refusing, "").await;
    waypost.put("a.test", &origin, "").await;
    assert_eq!(good(&waypost, "a.test", 40).await, 40);
    let name = refusing.to_string();
    let dials = waypost
        .metric("waypost_upstream_connects_total", &[("upstream", &name)])
        .await;
    assert_eq!((dials, ejections(&waypost, &refusing).await), (5.0, 1.0));
}

#[tokio::test]
async fn it_comes_back_by_itself_and_proves_itself_with_its_first_answer() {
    let waypost = one_worker().await;
    let (bad, origin) = (Moody::start(Mood::Error).await, Origin::named("ok").await);
    let settings = json!({"outlier": {"consecutive_failures": 2, "ejection": "300ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    waypost.put("a.test", &bad.origin, "").await;
    waypost.put("a.test", &origin, "").await;
    eventually("it is ejected twice", async || {
        good(&waypost, "a.test", 1).await;
        ejections(&waypost, &bad.origin).await == 2.0
    })
    .await;
    assert_eq!(bad.hits(), 3, "once it was back, one was enough");
    bad.becomes(Mood::Good);
    eventually("it serves again", async || {
        assert_eq!(good(&waypost, "a.test", 1).await, 1);
        bad.hits() > 10
    })
    .await;
    eventually("nobody is out", async || ejected(&waypost).await == 0.0).await;
    waypost.log().until("upstream is used again").await;
    assert_eq!(ejections(&waypost, &bad.origin).await, 2.0);
}

#[tokio::test]
async fn a_good_answer_in_between_makes_a_new_start() {
    let waypost = one_worker().await;
    let origin = Moody::start(Mood::Error).await;
    waypost.put("a.test", &origin.origin, "").await;
    for _ in 0..4 {
        good(&waypost, "a.test", 4).await;
        origin.becomes(Mood::Good);
        assert_eq!(good(&waypost, "a.test", 1).await, 1);
        origin.becomes(Mood::Cut);
        good(&waypost, "a.test", 4).await;
        origin.becomes(Mood::Good);
        assert_eq!(good(&waypost, "a.test", 1).await, 1);
        origin.becomes(Mood::Error);
    }
    assert_eq!(ejections(&waypost, &origin.origin).await, 0.0);
    good(&waypost, "a.test", 5).await;
    assert_eq!(ejections(&waypost, &origin.origin).await, 1.0);
}

#[tokio::test]
async fn what_clients_do_and_stale_connections_eject_nobody() {
    let waypost = one_worker().await;
    let settings = json!({"max_body": "10B", "outlier": {"consecutive_failures": 1}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    // Waits for each body, answers each connection's first request, and ends it at its second.
    let origin = Origin::run(async |mut served| {
        served.request().await;
        served
            .send("HTTP/1.1 501 No\r\ncontent-length: 2\r\n\r\nok")
            .await;
        served.request().await;
    })
    .await;
    waypost.put("a.test", &origin, "").await;
    for text in [
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nhalf",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nall of\r\n7\r\nit is l\r\n",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ] {
        let before = origin.connections();
        let mut client = Wire::connect(waypost.address()).await;
        client.send(text).await;
        eventually("it is sent on", async || origin.connections() > before).await;
        drop(client);
        origin.closed(before + 1).await;
    }
    for _ in 0..10 {
        let mut client = Wire::connect(waypost.address()).await;
        assert_eq!(client.ask(GET).await.status(), 501);
        assert_eq!(client.ask(GET).await.status(), 501, "on a fresh connection");
    }
    assert_eq!(ejections(&waypost, &origin).await, 0.0);
    let name = "waypost_upstream_failures_total";
    assert_eq!(waypost.metric(name, &[]).await, 0.0, "as the metric has it");
    // Nobody is left to be at fault, and a refused POST is nobody else's.
    drop(origin);
    good(&waypost, "a.test", 1).await;
    assert_eq!(waypost.metric("waypost_upstream_ejected", &[]).await, 1.0);
}

#[tokio::test]
async fn no_more_are_ejected_than_allowed_and_none_where_that_is_asked_for() {
    let waypost = one_worker().await;
    let mut all = Vec::new();
    for mood in [Mood::Error, Mood::Error, Mood::Error, Mood::Good] {
        all.push(Moody::start(mood).await);
    }
    for (host, outlier, expected) in [
        ("half.test", json!({}), 2.0),
        ("one.test", json!({"max_ejected_percent": 10}), 1.0),
        ("none.test", json!({"max_ejected_percent": 0}), 0.0),
        ("off.test", json!({"consecutive_failures": 0}), 0.0),
        ("all.test", json!({"max_ejected_percent": 75}), 3.0),
    ] {
        let settings = json!({"outlier": outlier}).to_string();
        waypost.put(host, "@settings", &settings).await;
        for origin in &all {
            waypost.put(host, &origin.origin, "").await;
        }
        let before = ejected(&waypost).await;
        good(&waypost, host, 60).await;
        assert_eq!(ejected(&waypost).await - before, expected, "{host}");
    }
}

#[tokio::test]
async fn when_all_are_out_all_are_used() {
    let waypost = one_worker().await;
    let both = [
        Moody::start(Mood::Error).await,
        Moody::start(Mood::Error).await,
    ];
    let settings = json!({"outlier": {"max_ejected_percent": 100}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    for origin in &both {
        waypost.put("a.test", &origin.origin, "").await;
    }
    good(&waypost, "a.test", 10).await;
    assert_eq!(ejected(&waypost).await, 2.0);
    for origin in &both {
        origin.becomes(Mood::Good);
    }
    assert_eq!(good(&waypost, "a.test", 40).await, 40);
    assert!(both.iter().all(|origin| origin.hits() > 5 + 4));
    let explained = waypost.api("/api/explain?url=http://a.test/").await;
    let reason = explained["reason"].as_str().unwrap();
    assert!(reason.contains("as too few are in"), "{reason}");
}

#[tokio::test]
async fn with_too_few_in_all_are_used_unless_the_route_says_otherwise() {
    let waypost = one_worker().await;
    let (mut bad, origin) = (Vec::new(), Origin::named("ok").await);
    for _ in 0..3 {
        bad.push(Moody::start(Mood::Error).await);
    }
    // For minutes that differ, so that each finds out for itself.
    for (host, ejection, panic_percent, are_used) in [
        ("default.test", "5m", json!(null), true),
        ("quarter.test", "6m", json!(25), false),
        ("never.test", "7m", json!(0), false),
    ] {
        let settings = json!({
            "panic_percent": panic_percent,
            "outlier": {"max_ejected_percent": 75, "consecutive_failures": 2, "ejection": ejection},
        });
        waypost.put(host, "@settings", &settings.to_string()).await;
        for bad in &bad {
            waypost.put(host, &bad.origin, "").await;
        }
        waypost.put(host, &origin, "").await;
        let before = ejected(&waypost).await;
        eventually("three are out", async || {
            good(&waypost, host, 1).await;
            ejected(&waypost).await - before == 3.0
        })
        .await;
        let hits = || bad.iter().map(Moody::hits).sum::<usize>();
        // What was worked out before the third went out holds for 50 ms.
        eventually("that is known", async || {
            let before = hits();
            good(&waypost, host, 8).await;
            (hits() > before) == are_used
        })
        .await;
        let before = hits();
        let good = good(&waypost, host, 40).await;
        let (expected, others) = if are_used { (10, 30) } else { (40, 0) };
        assert_eq!((good, hits() - before), (expected, others), "{host}");
    }
}

#[tokio::test]
async fn without_panic_a_route_whose_upstreams_are_all_out_answers_503_at_once() {
    let waypost = one_worker().await;
    let stalling = Moody::start(Mood::Stall).await;
    let settings = json!({"panic_percent": 0, "timeouts": {"response": "100ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    waypost.put("a.test", &stalling.origin, "").await;
    good(&waypost, "a.test", 5).await;
    for _ in 0..10 {
        let mut client = Wire::connect(waypost.address()).await;
        let answer = client.ask(GET).await;
        assert_eq!(
            (answer.status(), answer.error()),
            (503, "destination_unavailable")
        );
        assert!(answer.text().contains("ejected"), "{}", answer.text());
    }
    assert_eq!(stalling.hits(), 5, "nobody waits for it");
}

/// A tenth of a share against two whole ones is 14 of 300, with a standard deviation of 3.7; a whole one is 100.
const A_TENTH: std::ops::RangeInclusive<usize> = 1..=50;

#[tokio::test]
async fn who_is_new_starts_slowly_and_who_was_there_does_not() {
    let waypost = one_worker().await;
    let samples = [
        Sample::start().await,
        Sample::start().await,
        Sample::start().await,
    ];
    let more = async |sample: &Sample| {
        let before = sample.hits();
        assert_eq!(good(&waypost, "a.test", 300).await, 300);
        sample.hits() - before
    };
    waypost.put("a.test", &samples[0], "").await;
    waypost.put("a.test", &samples[1], "").await;
    let slowly = json!({"slow_start": "10m"}).to_string();
    waypost.put("a.test", "@settings", &slowly).await;
    assert_eq!(more(&samples[1]).await, 150, "it was there");
    waypost.put("a.test", &samples[2], "").await;
    let hits = more(&samples[2]).await;
    assert!(A_TENTH.contains(&hits), "{hits}");
    // A change of the table is no new start, and no end of it.
    waypost.put("a.test", &samples[1], r#"{"weight": 1}"#).await;
    let hits = more(&samples[2]).await;
    assert!(A_TENTH.contains(&hits), "{hits}");
    let quickly = json!({"slow_start": "50ms"}).to_string();
    waypost.put("a.test", "@settings", &quickly).await;
    eventually("it has its whole share", async || {
        more(&samples[2]).await == 100
    })
    .await;
}

#[tokio::test]
async fn nobody_is_new_to_a_waypost_that_starts() {
    let hosts = tempfile::tempdir().unwrap();
    let samples = [Sample::start().await, Sample::start().await];
    // So many that the route is built from its first key before the second one is read.
    for number in 0..1023 {
        let host = hosts.path().join(format!("a{number}.test"));
        write(&host.join("10.0.0.1:80"), "");
    }
    let directory = hosts.path().join("b.test");
    write(&directory.join("@settings"), r#"{"slow_start": "10m"}"#);
    for sample in &samples {
        write(&directory.join(sample.to_string()), "");
    }
    let waypost = Waypost::builder().hosts_dir(hosts.path()).start().await;
    assert_eq!(good(&waypost, "b.test", 100).await, 100);
    assert_eq!(samples.each_ref().map(Sample::hits), [50, 50]);
}

#[tokio::test]
async fn who_comes_back_starts_slowly() {
    let waypost = one_worker().await;
    let (bad, origin) = (
        Moody::start(Mood::Error).await,
        [Sample::start().await, Sample::start().await],
    );
    let settings = json!({"slow_start": "10m", "outlier": {"ejection": "500ms"}}).to_string();
    waypost.put("a.test", &bad.origin, "").await;
    for origin in &origin {
        waypost.put("a.test", origin, "").await;
    }
    // After them: who comes under it is new.
    waypost.put("a.test", "@settings", &settings).await;
    eventually("it is ejected", async || {
        good(&waypost, "a.test", 1).await;
        ejected(&waypost).await == 1.0
    })
    .await;
    bad.becomes(Mood::Good);
    eventually("it is back", async || ejected(&waypost).await == 0.0).await;
    let before = bad.hits();
    assert_eq!(good(&waypost, "a.test", 300).await, 300);
    let hits = bad.hits() - before;
    assert!(A_TENTH.contains(&hits), "{hits}");
}

#[tokio::test]
async fn an_upstream_that_fails_more_than_the_others_is_ejected_though_not_in_a_row() {
    let waypost = one_worker().await;
    let settings = json!({"outlier": {"failure_percent": 30, "min_requests": 10}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    // Waypost keeps the connection: each other request on it fails.
    let flaky = Origin::answering_in_turn(&[
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
    ])
    .await;
    waypost.put("a.test", &flaky, "").await;
    let others = [Sample::start().await, Sample::start().await];
    for other in &others {
        waypost.put("a.test", other, "").await;
    }
    good(&waypost, "a.test", 60).await;
    assert_eq!(ejections(&waypost, &flaky).await, 1.0);
    let hits = flaky.requests().len();
    assert!((10..=14).contains(&hits), "{hits}");
    waypost
        .log()
        .until("upstream ejected: 50 % of its latest requests failed")
        .await;
    assert_eq!(good(&waypost, "a.test", 20).await, 20);
}

/// DESIGN section 2: nginx fails none here, HAProxy 32, Envoy, Traefik, Caddy, Pingora and Go some 4,500 each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_of_two_killed_four_times_under_load_fails_no_request() {
    let waypost = Waypost::builder().flag("--workers", 2).start().await;
    let steady = Sample::start().await;
    let mut killed = Sample::start().await;
    for sample in [&steady, &killed] {
        waypost.put("a.test", sample, "").await;
    }
    let gets = Load::start(&[waypost.address()], &["a.test"]);
    let posts = Load::of_short_posts(&[waypost.address()], &["a.test"]);
    for _ in 0..4 {
        gets.more(200).await;
        let address = killed.address();
        drop(killed);
        gets.more(200).await;
        killed = Sample::start_at(address).await;
    }
    gets.more(200).await;
    let tally = gets.finish().await;
    assert!(tally.good > 1500, "{tally:?}");
    // What was at the upstream when it died may have been acted on, and each client had at most one there. Of a connect
    // refused, or a connection closed while idle, no POST hears.
    let tally = posts.tally();
    assert!(tally.failures.len() <= 4 * 6, "{tally:?}");
    for failure in &tally.failures {
        assert!(failure.contains("connection_terminated"), "{failure}");
    }
}
