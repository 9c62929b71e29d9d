//! How many clients may be connected, who gives way, and what the rest is told.

use std::time::Duration;

use serde_json::json;
use tokio::{net::TcpStream, time::timeout};

use crate::support::{
    gated::{Gated, begin},
    h2_origin::{END_HEADERS, END_STREAM, Exchange, H2Origin, HEADERS},
    h2_raw::{self, ASKING},
    http::{End, Wire, get, timed},
    origin::Origin,
    tls::Authority,
    waypost::{Builder, Waypost, eventually},
    websocket::{Echo, Socket},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

async fn serving(builder: Builder) -> (Waypost, Origin) {
    let origin = Origin::named("ok").await;
    let waypost = builder.start().await;
    waypost.put("a.test", &origin, "").await;
    (waypost, origin)
}

async fn hits(waypost: &Waypost, limit: &str) -> usize {
    let labels = [("limit", limit)];
    waypost.metric("waypost_limit_hits_total", &labels).await as usize
}

/// Waits until so many connections are open.
async fn until_open(waypost: &Waypost, count: usize) {
    let what = format!("{count} connections are open");
    eventually(&what, async || {
        waypost.metric("waypost_connections", &[]).await as usize == count
    })
    .await;
}

/// Whether it is turned away without having asked: told so, and closed in order.
async fn is_turned_away(client: &mut Wire) -> bool {
    let Ok(answer) = client.try_response("GET").await else {
        return false;
    };
    assert_eq!(
        (answer.status(), answer.error(), answer.whole),
        (503, "connection_limit_reached", true)
    );
    client.end().await == End::Fin
}

#[tokio::test]
async fn who_comes_when_all_are_at_work_is_turned_away_at_once() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .flag("--max-connections", 4)
        .flag("--max-connections-per-client", "none")
        .start()
        .await;
    let gated = Gated::start().await;
    waypost.put("a.test", &gated.origin, "").await;
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(begin(&waypost, "/").await);
    }
    gated.asked(4).await;
    for round in 1..=20 {
        let mut client = Wire::connect(waypost.address()).await;
        assert!(is_turned_away(&mut client).await);
        assert_eq!(hits(&waypost, "connections").await, round);
    }
    // There are no words for who has to shake hands first.
    let mut tls = Wire::connect(waypost.addresses()[1]).await;
    assert_eq!(tls.end().await, End::Fin);
    until_open(&waypost, 4).await;
    assert_eq!(waypost.metric("waypost_max_connections", &[]).await, 4.0);
    let status = waypost.api("/api/status").await;
    let connections = json!({"open": 4, "max": 4, "accepted": 4});
    assert_eq!(status["connections"], connections);
    assert_eq!(status["limit_hits"]["connections"], 21);

    gated.let_through(5);
    for client in &mut running {
        assert_eq!(client.response("GET").await.status(), 200);
    }
    running.pop();
    // Others may have given way to one of those that were turned away.
    eventually("there is room", async || {
        waypost.metric("waypost_connections", &[]).await <= 3.0
    })
    .await;
    assert_eq!(get(waypost.address(), "a.test", "/").await.status(), 200);
}

#[tokio::test]
async fn who_lies_idle_gives_way() {
    let (waypost, _origin) = serving(
        Waypost::builder()
            .flag("--workers", 1)
            .flag("--max-connections", 3)
            .flag("--max-connections-per-client", "none"),
    )
    .await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut client = Wire::connect(waypost.address()).await;
        assert_eq!(client.ask(GET).await.status(), 200);
        idle.push(client);
    }
    let mut new = Wire::connect(waypost.address()).await;
    assert_eq!(new.ask(GET).await.status(), 200);
    until_open(&waypost, 3).await;
    let mut served = 0;
    for client in &mut idle {
        client.send(GET).await;
        let answer = client.try_response("GET").await;
        served += usize::from(answer.is_ok_and(|answer| answer.status() == 200));
    }
    assert_eq!(served, 2);
    assert_eq!(hits(&waypost, "connections_gave_way").await, 1);
    assert_eq!(hits(&waypost, "connections").await, 0);
}

#[tokio::test]
async fn who_lies_idle_over_http2_gives_way_at_once() {
    let (waypost, _origin) = serving(
        Waypost::builder()
            .flag("--workers", 1)
            .flag("--max-connections", 3)
            .flag("--max-connections-per-client", "none"),
    )
    .await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut frames = h2_raw::connect(waypost.address()).await;
        let flags = END_HEADERS | END_STREAM;
        frames.send(HEADERS, flags, 1, ASKING).await;
        assert_eq!(frames.body(1).await.ok(), Some(2));
        idle.push(frames);
    }
    let mut new = Wire::connect(waypost.address()).await;
    assert_eq!(new.ask(GET).await.status(), 200);
    // Nobody waits for the client's word, as when a connection was idle for too long.
    let ((), time) = timed(until_open(&waypost, 3)).await;
    assert!(time < Duration::from_millis(1500), "{time:?}");
    let mut sent_away = 0;
    for frames in &mut idle {
        let word = timeout(Duration::from_millis(200), h2_raw::sent_away(frames)).await;
        if let Ok(code) = word {
            assert_eq!((code, frames.0.take_rest().await.1), (0, End::Fin));
            sent_away += 1;
        }
    }
    assert_eq!(sent_away, 1);
    assert_eq!(hits(&waypost, "connections_gave_way").await, 1);
}

#[tokio::test]
async fn heads_that_do_not_come_in_give_way_before_who_asked_and_lies_idle() {
    let (waypost, _origin) = serving(
        Waypost::builder()
            .flag("--workers", 1)
            .flag("--header-timeout", "10m")
            .flag("--max-connections", 3)
            .flag("--max-connections-per-client", "none"),
    )
    .await;
    let mut good = Wire::connect(waypost.address()).await;
    assert_eq!(good.ask(GET).await.status(), 200);
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut client = Wire::connect(waypost.address()).await;
        client.send("GET /").await;
        slow.push(client);
    }
    until_open(&waypost, 3).await;
    // A second is what a head has; more than that changes nothing.
    for client in &mut slow {
        assert!(client.is_silent_for(Duration::from_secs(1)).await);
    }
    let mut new = Wire::connect(waypost.address()).await;
    assert_eq!(new.ask(GET).await.status(), 200);
    eventually("one gave way", async || {
        hits(&waypost, "connections_gave_way").await == 1
    })
    .await;
    let mut newer = Wire::connect(waypost.address()).await;
    assert_eq!(newer.ask(GET).await.status(), 200);
    for client in &mut slow {
        assert_eq!(client.response("GET").await.status(), 408);
    }
    assert_eq!(good.ask(GET).await.status(), 200);
}

#[tokio::test]
async fn idle_connections_of_other_workers_give_way_too() {
    let (waypost, _origin) = serving(
        Waypost::builder()
            .flag("--workers", 4)
            .flag("--max-connections", 6)
            .flag("--max-connections-per-client", "none"),
    )
    .await;
    // All new ones, until none is left of those that were idle.
    let mut kept = Vec::new();
    for _ in 0..6 {
        let mut client = Wire::connect(waypost.address()).await;
        assert_eq!(client.ask(GET).await.status(), 200);
        kept.push(client);
    }
    for _ in 0..20 {
        let mut client = None;
        eventually("there is room", async || {
            let mut new = Wire::connect(waypost.address()).await;
            new.send(GET).await;
            let status = new
                .try_response("GET")
                .await
                .map_or(0, |answer| answer.status());
            client = (status == 200).then_some(new);
            client.is_some()
        })
        .await;
        kept.extend(client);
    }
    // Whoever gives way is gone a moment after the one who comes is counted.
    eventually("no more than there may be", async || {
        waypost.metric("waypost_connections", &[]).await <= 6.0
    })
    .await;
}

#[tokio::test]
async fn one_client_leaves_room_for_others() {
    let (waypost, _origin) = serving(
        Waypost::builder()
            .flag("--max-connections-per-client", 2)
            .flag("--trusted-proxies", "127.0.0.3"),
    )
    .await;
    let address = waypost.address();
    let mut held = Vec::new();
    for (from, served) in [
        (1, true),
        (1, true),
        (1, false),
        (2, true),
        (3, true),
        (3, true),
        (3, true),
    ] {
        let mut client = Wire::connect_from([127, 0, 0, from], address).await;
        match served {
            true => assert_eq!(client.ask(GET).await.status(), 200, "{from}"),
            false => assert!(is_turned_away(&mut client).await, "{from}"),
        }
        held.push(client);
    }
    assert_eq!(hits(&waypost, "connections_per_client").await, 1);
    drop(held);
    until_open(&waypost, 0).await;
    let mut client = Wire::connect_from([127, 0, 0, 1], address).await;
    assert_eq!(client.ask(GET).await.status(), 200);
}

/// They last longer than anything else does.
#[tokio::test]
async fn websockets_count_for_as_long_as_they_are_open() {
    let waypost = Waypost::builder()
        .flag("--max-connections-per-client", 2)
        .start()
        .await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let mut sockets = Vec::new();
    for _ in 0..2 {
        sockets.push(Socket::open(waypost.address(), "a.test").await);
    }
    let mut third = Wire::connect(waypost.address()).await;
    assert!(is_turned_away(&mut third).await);
    sockets.pop();
    until_open(&waypost, 1).await;
    sockets.push(Socket::open(waypost.address(), "a.test").await);
    for socket in &mut sockets {
        socket.echo("still here").await;
    }
}

#[tokio::test]
async fn clients_alone_do_not_take_every_descriptor() {
    let waypost = Waypost::builder()
        .flag("--header-timeout", "10m")
        .open_files(160, 160)
        .start()
        .await;
    assert_eq!(waypost.metric("waypost_max_connections", &[]).await, 48.0);
    let origin = Origin::named("ok").await;
    waypost.put("a.test", &origin, "").await;
    let mut attackers = Vec::new();
    for number in 0..300_u16 {
        let from = [127, 0, 0, 1 + (number % 3) as u8];
        let mut client = Wire::connect_from(from, waypost.address()).await;
        client.send("GET /").await;
        attackers.push(client);
    }
    // All of one address, all of all, and those whose heads were on their way for too long.
    eventually("all others are turned away", async || {
        let mut sum = 0;
        for limit in [
            "connections",
            "connections_per_client",
            "connections_gave_way",
        ] {
            sum += hits(&waypost, limit).await;
        }
        sum >= 300 - 48
    })
    .await;
    // They hold on to their places, but not against who comes and asks.
    for _ in 0..3 {
        eventually("there is room", async || {
            let mut good = Wire::connect_from([127, 0, 0, 4], waypost.address()).await;
            good.send(GET).await;
            let answer = good.try_response("GET").await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }
    assert_eq!(waypost.log().count("out of file descriptors"), 0);
}

#[tokio::test]
async fn the_last_accepts_wait_for_descriptors() {
    let (mut waypost, _origin) = serving(
        Waypost::builder()
            .flag("--workers", 1)
            .flag("--max-connections", 10_000)
            .flag("--max-connections-per-client", "none")
            .flag("--drain-delay", "0")
            .open_files(100, 100),
    )
    .await;
    // Over one connection behind, and for good: an idle client, or one that says its request slowly, would give way.
    let holding = H2Origin::each(async |exchange: Exchange| {
        let _unanswered = exchange;
        std::future::pending::<()>().await;
    })
    .await;
    let h2 = r#"{"protocol": "h2"}"#;
    waypost.put("held.test", &holding, h2).await;
    let mut held = Vec::new();
    while waypost.log().count("out of file descriptors") == 0 {
        let mut client = Wire::connect(waypost.address()).await;
        let asking = "GET / HTTP/1.1\r\nHost: held.test\r\n\r\n";
        client.send(asking).await;
        held.push(client);
        tokio::task::yield_now().await;
    }
    let queued = TcpStream::connect(waypost.address())
        .await
        .expect("it listens");
    let mut queued = Wire::tcp(queued);
    queued.send(GET).await;
    waypost.signal("TERM");
    waypost.log().until("no longer accepting").await;
    // Long enough for one more try in vain, which was the last one once.
    assert!(queued.is_silent_for(Duration::from_millis(300)).await);
    drop(held);
    let answer = queued.response("GET").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(waypost.wait_exit().await, Some(0));
}

#[tokio::test]
async fn who_left_is_not_waited_for_whatever_it_said_last() {
    let (waypost, _origin) = serving(Waypost::builder()).await;
    for behind in [
        "",
        "x",
        "GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\n\r\nx",
    ] {
        let mut client = Wire::connect(waypost.address()).await;
        // Without a Host it is refused, and its connection closed.
        client.send(format!("GET / HTTP/1.1\r\n\r\n{behind}")).await;
        assert_eq!(client.response("GET").await.status(), 400);
        drop(client);
        let ((), took) = timed(until_open(&waypost, 0)).await;
        assert!(took < Duration::from_millis(1500), "{behind:?}: {took:?}");
    }
}
