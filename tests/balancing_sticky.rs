//! `"sticky"`: a cookie keeps a client at its upstream, for as long as that takes its requests.

use std::collections::BTreeSet;

use hyper::header::SET_COOKIE;
use serde_json::json;
use waypost::upstream::balancer::tokens::Token;

use crate::support::{
    gated::{Gated, HANDSHAKE, limited, settings, until_queued},
    h2_origin::H2Origin,
    http::Wire,
    load::{Answer, Client},
    origin::{Origin, Refusing},
    sample::Sample,
    waypost::Waypost,
};

const HOST: &str = "a.test";
const STICKY: &str = r#"{"sticky": {"cookie": "at"}}"#;

#[tokio::test]
async fn a_client_stays_at_its_upstream_whatever_the_balancer_at_every_instance_and_after_a_restart()
 {
    for balance in ["round-robin", "random", "least-request", "hash"] {
        let first = Waypost::builder().flag("--balance", balance).start().await;
        let samples = three(&first).await;
        let other = Waypost::builder().hosts_dir(first.hosts()).start().await;
        let mut met = BTreeSet::new();
        for _ in 0..12 {
            let answer = ask(&first, "").await;
            let cookie = pair(&answer).expect("a new client gets a cookie");
            let upstream = answer.into_body();
            for waypost in [&first, &other, &first] {
                let answer = ask(waypost, &format!("x=1; {cookie}; y=2")).await;
                assert_eq!(pair(&answer), None, "it has one");
                assert_eq!(answer.into_body(), upstream, "{balance}");
            }
            let value = cookie.strip_prefix("at=").expect(&cookie);
            assert_eq!(value.len(), 16, "{value}");
            assert!(!value.contains(&upstream), "{value}");
            met.insert((upstream, cookie));
        }
        if balance != "hash" {
            assert!(met.len() > 1, "{balance}: {met:?}");
        }
        let hosts = first.hosts().to_owned();
        let restarted = Waypost::builder().hosts_dir(&hosts).start().await;
        for (upstream, cookie) in &met {
            assert_eq!(ask(&restarted, cookie).await.into_body(), *upstream);
        }
        drop(samples);
    }
}

#[tokio::test]
async fn the_cookie_is_safe_and_leaves_those_of_the_upstream_alone() {
    let waypost = Waypost::builder()
        .flag("--trusted-proxies", "127.0.0.2")
        .start()
        .await;
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: at=theirs\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    waypost.put(HOST, &origin, "").await;
    for (ttl, from, proto, attributes) in [
        ("", 1, "http", "; Path=/; HttpOnly; SameSite=Lax"),
        ("", 1, "https", "; Path=/; HttpOnly; SameSite=Lax"),
        ("", 2, "https", "; Path=/; HttpOnly; SameSite=Lax; Secure"),
        (
            r#", "ttl": "1h""#,
            1,
            "http",
            "; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600",
        ),
    ] {
        let settings = format!(r#"{{"sticky": {{"cookie": "at"{ttl}}}}}"#);
        waypost.put(HOST, "@settings", &settings).await;
        let from = [127, 0, 0, from].into();
        let mut client = Client::connect_from(from, waypost.address()).await.unwrap();
        let fields = [("x-forwarded-proto", proto), ("cookie", "a=1; at=0000")];
        let answer = client.ask_with("GET", HOST, "/", &fields).await.unwrap();
        let cookies: Vec<_> = answer.headers().get_all(SET_COOKIE).iter().collect();
        assert_eq!(cookies[..2], ["a=1", "at=theirs"]);
        let ours = cookies[2].to_str().unwrap();
        assert!(
            ours.starts_with("at=") && ours[19..] == *attributes,
            "{ours}"
        );
        assert_eq!(cookies.len(), 3, "{cookies:?}");
        // Cookies go on as they came.
        assert_eq!(origin.latest().head.one("cookie"), Some("a=1; at=0000"));
    }
}

#[tokio::test]
async fn a_draining_upstream_keeps_its_clients_and_gets_no_others() {
    let waypost = Waypost::builder().start().await;
    let samples = three(&waypost).await;
    let (cookie, own) = new_client(&waypost, &samples).await;
    waypost.put(HOST, own, r#"{"drain": true}"#).await;
    let before = own.hits();
    for _ in 0..30 {
        ask(&waypost, "").await;
    }
    assert_eq!(own.hits(), before, "new clients go elsewhere");
    for _ in 0..5 {
        let answer = ask(&waypost, &cookie).await;
        assert_eq!((pair(&answer), answer.into_body()), (None, own.to_string()));
    }

    // Weight 0 means no request at all.
    waypost.put(HOST, own, r#"{"weight": 0}"#).await;
    let answer = ask(&waypost, &cookie).await;
    let moved = pair(&answer).expect("a cookie of its new upstream");
    assert_ne!((&moved, answer.body()), (&cookie, &own.to_string()));
    assert_eq!(ask(&waypost, &moved).await.body(), answer.body());

    waypost.put(HOST, own, "").await;
    assert_eq!(
        ask(&waypost, &moved).await.body(),
        answer.body(),
        "it stays"
    );
    assert_eq!(ask(&waypost, &cookie).await.into_body(), own.to_string());
}

#[tokio::test]
async fn a_client_whose_upstream_is_gone_or_refuses_gets_another_and_its_cookie() {
    let waypost = Waypost::builder().start().await;
    let samples = three(&waypost).await;
    let (cookie, own) = new_client(&waypost, &samples).await;
    waypost.delete(HOST, own).await;
    let answer = ask(&waypost, &cookie).await;
    let moved = pair(&answer).expect("a cookie of its new upstream");
    assert_ne!(*answer.body(), own.to_string());
    for _ in 0..5 {
        let again = ask(&waypost, &moved).await;
        assert_eq!((pair(&again), again.body()), (None, answer.body()));
    }

    // From when it still answered.
    let refusing = Refusing::new();
    waypost.put(HOST, &refusing, "").await;
    let cookie = format!("at={}", Token::of(&refusing.to_string()));
    let answer = ask(&waypost, &cookie).await;
    let moved = pair(&answer).expect("a cookie of its new upstream");
    assert_eq!(ask(&waypost, &moved).await.body(), answer.body());
}

#[tokio::test]
async fn the_answer_to_an_upgrade_has_the_cookie_too() {
    let waypost = Waypost::builder().start().await;
    let origin = Origin::answering(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    .await;
    waypost.put(HOST, &origin, "").await;
    waypost.put(HOST, "@settings", STICKY).await;
    let mut wire = Wire::connect(waypost.address()).await;
    let request =
        "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    wire.send(request).await;
    let head = wire.head().await.expect("an answer");
    assert_eq!(head.status(), 101);
    assert!(
        head.one("set-cookie")
            .is_some_and(|cookie| cookie.starts_with("at=")),
        "{head:?}"
    );
}

#[tokio::test]
async fn a_client_waits_for_its_upstream_while_that_is_full_and_others_go_past() {
    let waypost = Waypost::builder().start().await;
    let own = Gated::start().await;
    limited(&waypost, &own.origin, 1).await;
    let other = Origin::named("other").await;
    waypost.put(HOST, &other, r#"{"max_requests": 5}"#).await;
    let rules = |queue: &str, most: u32| json!({"sticky": {"cookie": "at"}, "timeouts": {"queue": queue}, "max_queue": most});
    settings(&waypost, rules("1m", 2)).await;
    let cookie = format!("at={}", Token::of(&own.origin.to_string()));
    let mut running = begin_sticky(&waypost, &cookie).await;
    own.asked(1).await;
    let mut waiting = Vec::new();
    for count in 1..=2 {
        waiting.push(begin_sticky(&waypost, &cookie).await);
        until_queued(&waypost, count).await;
    }
    // Who sticks elsewhere, or nowhere, has nothing to do with them, be the queue full.
    let others = format!("at={}", Token::of(&other.to_string()));
    for cookie in [&others, ""] {
        assert_eq!(ask(&waypost, cookie).await.into_body(), "other");
    }
    // No room to wait: it is sent elsewhere, and stays where it is.
    let answer = ask(&waypost, &cookie).await;
    assert_eq!((pair(&answer), &**answer.body()), (None, "other"));
    own.let_through(3);
    for client in [&mut running].into_iter().chain(&mut waiting) {
        let answer = client.response("GET").await;
        assert_eq!((answer.text(), answer.head.one("set-cookie")), ("ok", None));
    }
    assert_eq!(own.asks(), 3);

    // Nor for ever.
    settings(&waypost, rules("200ms", 2)).await;
    let _running = begin_sticky(&waypost, &cookie).await;
    own.asked(4).await;
    let answer = ask(&waypost, &cookie).await;
    assert_eq!((pair(&answer), &**answer.body()), (None, "other"));
    let rejected = waypost.metric("waypost_queue_rejected_requests_total", &[]);
    assert_eq!(rejected.await, 0.0);
}

#[tokio::test]
async fn a_client_keeps_its_upstream_when_that_cant_do_one_of_its_requests() {
    let waypost = Waypost::builder().start().await;
    let (own, other) = (H2Origin::named("own").await, Gated::start().await);
    waypost.put(HOST, &own, r#"{"protocol": "h2"}"#).await;
    waypost.put(HOST, &other.origin, "").await;
    waypost.put(HOST, "@settings", STICKY).await;
    let cookie = format!("at={}", Token::of(&own.to_string()));
    let mut wire = Wire::connect(waypost.address()).await;
    let handshake = HANDSHAKE.replace("\r\n\r\n", &format!("\r\nCookie: {cookie}\r\n\r\n"));
    wire.send(handshake).await;
    let head = wire.head().await.expect("an answer");
    assert_eq!((head.status(), head.one("set-cookie")), (101, None));
    // A new client is the other's from then on.
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send(HANDSHAKE).await;
    let head = wire.head().await.expect("an answer");
    assert!(head.one("set-cookie").is_some(), "{head:?}");
}

async fn begin_sticky(waypost: &Waypost, cookie: &str) -> Wire {
    let mut client = Wire::connect(waypost.address()).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCookie: {cookie}\r\n\r\n");
    client.send(request).await;
    client
}

async fn three(waypost: &Waypost) -> Vec<Sample> {
    let mut samples = Vec::new();
    for _ in 0..3 {
        let sample = Sample::start().await;
        waypost.put(HOST, &sample, "").await;
        samples.push(sample);
    }
    waypost.put(HOST, "@settings", STICKY).await;
    samples
}

#[tokio::test]
async fn routes_of_one_host_have_cookies_of_the_same_name_side_by_side() {
    let waypost = Waypost::builder().start().await;
    let api = format!("{HOST}/api");
    let mut samples = Vec::new();
    for route in [HOST, &api] {
        waypost.put(route, "@settings", STICKY).await;
        for _ in 0..3 {
            let sample = Sample::start().await;
            waypost.put(route, &sample, "").await;
            samples.push(sample);
        }
    }
    for _ in 0..6 {
        let mut jar = Vec::new();
        for (path, attribute) in [("/", "; Path=/;"), ("/api/x", "; Path=/api;")] {
            let answer = ask_at(&waypost, path, &jar.join("; ")).await;
            let set = answer.headers()[SET_COOKIE].to_str().expect("text");
            assert!(set.contains(attribute), "{set}");
            let cookie = pair(&answer).expect("ours");
            // What a client has for the longer path comes first.
            jar.insert(0, cookie);
            for _ in 0..3 {
                let again = ask_at(&waypost, path, &jar.join("; ")).await;
                assert_eq!((pair(&again), again.body()), (None, answer.body()));
            }
        }
        // Whatever the order, as of a client that has never heard of it.
        jar.reverse();
        let answer = ask_at(&waypost, "/api", &jar.join("; ")).await;
        assert_eq!(pair(&answer), None, "its own is found");
        jar.reverse();
        let answer = ask_at(&waypost, "/elsewhere", &jar[1]).await;
        assert_eq!(pair(&answer), None);
    }
}

/// Its cookie, and its upstream.
async fn new_client<'s>(waypost: &Waypost, samples: &'s [Sample]) -> (String, &'s Sample) {
    let answer = ask(waypost, "").await;
    let cookie = pair(&answer).expect("a new client gets a cookie");
    let own = samples
        .iter()
        .find(|sample| sample.to_string() == *answer.body());
    (cookie, own.expect("one of ours"))
}

/// On a connection of its own.
async fn ask(waypost: &Waypost, cookies: &str) -> Answer {
    ask_at(waypost, "/", cookies).await
}

async fn ask_at(waypost: &Waypost, path: &str, cookies: &str) -> Answer {
    let mut client = Client::connect(waypost.address()).await.unwrap();
    let fields = [("cookie", cookies)];
    let fields = if cookies.is_empty() {
        &[][..]
    } else {
        &fields[..]
    };
    let answer = client.ask_with("GET", HOST, path, fields).await.unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer
}

/// The cookie of ours that an answer sets, without its attributes.
fn pair(answer: &Answer) -> Option<String> {
    let cookies = answer.headers().get_all(SET_COOKIE).iter();
    let mut texts = cookies.map(|cookie| cookie.to_str().expect("text"));
    let ours = texts.find(|text| text.starts_with("at="))?;
    ours.split(';').next().map(str::to_owned)
}
