//! Connections to upstreams: how long they are kept, how many, and who gets which.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinSet, time::sleep};

use crate::support::{
    http::{Wire, get},
    load::Load,
    origin::{Origin, Served},
    sample::Sample,
    waypost::{Waypost, eventually},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi";

async fn one_worker() -> Waypost {
    Waypost::builder().flag("--workers", 1).start().await
}

/// Answers with the number of the connection.
async fn number(served: Served) {
    let number = served.connection.to_string();
    say(served, &number).await;
}

/// As [`say`], until it is told to end.
async fn say_until(served: Served, text: &'static str, end: Arc<Notify>) {
    tokio::select! {
        () = say(served, text) => {}
        () = end.notified() => {}
    }
}

async fn say(mut served: Served, text: &str) {
    while served.request().await.is_some() {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
        served.send(head + text).await;
    }
}

/// As [`number`], but the first so many connections answer their first request once all of them have one.
async fn numbering_after(together: usize) -> Origin {
    let met = Arc::new(tokio::sync::Barrier::new(together));
    Origin::run(move |mut served| {
        let met = met.clone();
        async move {
            if served.connection <= together {
                served.request().await;
                met.wait().await;
                served
                    .send(format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{}",
                        served.connection
                    ))
                    .await;
            }
            number(served).await;
        }
    })
    .await
}

/// So many requests at one time, each on a connection of its own.
async fn ask_together(waypost: &Waypost, count: usize) {
    let mut asking = JoinSet::new();
    for _ in 0..count {
        let address = waypost.address();
        asking.spawn(async move { get(address, "a.test", "/").await.status() });
    }
    for status in asking.join_all().await {
        assert_eq!(status, 200);
    }
}

async fn idle(waypost: &Waypost, upstream: &Origin) -> f64 {
    let upstream = upstream.to_string();
    let labels = [("upstream", &*upstream)];
    waypost
        .metric("waypost_upstream_idle_connections", &labels)
        .await
}

#[tokio::test]
async fn as_many_connections_are_kept_as_the_value_allows_and_the_metric_tells() {
    for (value, kept) in [("", 3), (r#"{"pool": {"max_idle": 1}}"#, 1)] {
        let origin = numbering_after(3).await;
        let waypost = one_worker().await;
        waypost.put("a.test", &origin, value).await;
        ask_together(&waypost, 3).await;
        origin.closed(3 - kept).await;
        eventually("the idle ones are told", async || {
            idle(&waypost, &origin).await == kept as f64
        })
        .await;
        ask_together(&waypost, 1).await;
        assert_eq!(origin.connections(), 3, "{value}: one of those kept");
        waypost.delete("a.test", &origin).await;
        origin.closed(3).await;
        eventually("the series is gone", async || {
            let (_, text) = waypost.admin_get("/metrics").await;
            !text.contains(&origin.to_string())
        })
        .await;
    }
}

#[tokio::test]
async fn idle_connections_end_when_the_value_says_so() {
    for value in [
        r#"{"pool": {"idle_timeout": "1s"}}"#,
        r#"{"pool": {"lifetime": "1s"}}"#,
    ] {
        let origin = Origin::run(number).await;
        let waypost = one_worker().await;
        waypost.put("a.test", &origin, value).await;
        let mut client = Wire::connect(waypost.address()).await;
        assert_eq!(client.ask(GET).await.text(), "1");
        assert_eq!(client.ask(GET).await.text(), "1", "{value}: not yet");
        origin.closed(1).await;
        assert_eq!(client.ask(GET).await.text(), "2", "{value}");
    }
}

#[tokio::test]
async fn a_lifetime_ends_no_connection_in_the_middle_of_a_request() {
    let answer = Arc::new(Notify::new());
    let origin = Origin::run({
        let answer = answer.clone();
        move |mut served| {
            let answer = answer.clone();
            async move {
                if served.connection == 1 {
                    served.request().await;
                    served
                        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh")
                        .await;
                    answer.notified().await;
                    served.send("i").await;
                }
                number(served).await;
            }
        }
    })
    .await;
    let waypost = one_worker().await;
    let value = r#"{"pool": {"lifetime": "200ms"}}"#;
    waypost.put("a.test", &origin, value).await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send(GET).await;
    origin.asked(1).await;
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_millis(400) {
        get(waypost.address(), "nobody.test", "/").await;
    }
    answer.notify_one();
    assert_eq!(client.response("GET").await.text(), "hi");
    origin.closed(1).await;
    assert_eq!(client.ask(POST).await.text(), "2");
}

#[tokio::test]
async fn requests_get_the_connection_that_was_used_last() {
    let origin = numbering_after(3).await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    ask_together(&waypost, 3).await;
    let mut client = Wire::connect(waypost.address()).await;
    let used = client.ask(GET).await;
    for _ in 0..5 {
        assert_eq!(client.ask(POST).await.text(), used.text());
    }
    assert_eq!(origin.connections(), 3);
}

#[tokio::test]
async fn an_unchanged_upstream_keeps_its_connections_while_others_come_and_go() {
    let waypost = Waypost::builder().start().await;
    let origin = Origin::run(number).await;
    let value = r#"{"weight": 2, "pool": {"idle_timeout": "5m"}}"#;
    waypost.put("a.test", &origin, value).await;
    let load = Load::paced(&[waypost.address()], &["a.test"], Duration::from_millis(2));
    load.more(100).await;
    let others = [Sample::start().await, Sample::start().await];
    for round in 0..10 {
        for other in &others {
            waypost.put("a.test", other, "").await;
        }
        waypost
            .put(
                "a.test",
                "@settings",
                &format!("{{\"max_body\": \"{}KiB\"}}", round + 1),
            )
            .await;
        // The same upstream by another weight, and by another route.
        let value = value.replace('2', &(round + 3).to_string());
        waypost.put("a.test", &origin, &value).await;
        waypost.put("b.test", &origin, &value).await;
        load.more(30).await;
        waypost.delete("b.test", &origin).await;
        for other in &others {
            waypost.delete("a.test", other).await;
        }
    }
    load.finish().await;
    // Six clients, two workers: no worker ever needs more than six at a time.
    assert!(origin.connections() <= 12, "{}", origin.connections());
}

/// How many of our sockets wait for this port to answer their SYN.
fn connecting_to(port: u16) -> usize {
    let table = fs::read_to_string("/proc/self/net/tcp").expect("Linux");
    let remote = format!(":{port:04X}");
    let is_so = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].ends_with(&remote) && fields[3] == "02"
    };
    table.lines().skip(1).filter(is_so).count()
}

/// Takes no connection more than its queue holds: further ones are met with silence.
fn stalled() -> (TcpListener, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a free port");
    socket.listen(1).expect("a listener");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_upstream_costs_few_sockets_and_nobody_waits_longer_than_a_connect_may_take() {
    let waypost = one_worker().await;
    let (listener, address) = stalled();
    // So long that a busy machine looks at the sockets before the first has timed out.
    let patience = r#"{"timeouts": {"connect": "3s"}}"#;
    waypost.put("a.test", "@settings", patience).await;
    waypost.put("a.test", address, "").await;
    let mut asking = JoinSet::new();
    for _ in 0..300 {
        let waypost = waypost.address();
        asking.spawn(async move {
            let begun = Instant::now();
            let answer = get(waypost, "a.test", "/").await;
            (answer.status(), answer.error().to_owned(), begun.elapsed())
        });
    }
    // Until the first have timed out: then sockets close and open while the kernel lists them.
    let (mut most, mut answered) = (0, 0);
    while answered < 290 {
        if answered == 0 {
            most = most.max(connecting_to(address.port()));
        }
        while let Some(answer) = asking.try_join_next() {
            let (status, error, took) = answer.unwrap();
            assert_eq!((status, &*error), (504, "connection_timeout"));
            assert!(took < Duration::from_secs(6), "{took:?}");
            answered += 1;
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!((32..=64).contains(&most), "{most} connects at a time");
    // Who waited for a turn to connect has seen nothing of it.
    let failures = waypost.metric("waypost_upstream_failures_total", &[]).await;
    assert!((32.0..=64.0).contains(&failures), "{failures} failures");
    // Those that the queue took were sent the request, and would wait for its answer.
    asking.shutdown().await;
    // Once it takes connections again all is well.
    let origin = tokio::net::TcpListener::from_std({
        listener.set_nonblocking(true).unwrap();
        listener
    })
    .unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = origin.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::tcp(stream);
                while wire.request().await.is_some() {
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            });
        }
    });
    eventually("it is served again", async || {
        get(waypost.address(), "a.test", "/").await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_may_dial_are_all_served() {
    let waypost = one_worker().await;
    let origin = Sample::start().await;
    waypost.put("a.test", &origin, "").await;
    ask_together(&waypost, 500).await;
    assert_eq!(origin.hits(), 500);
}

#[tokio::test]
async fn connections_to_a_socket_file_are_kept_and_limited_like_any_others() {
    let directory = tempfile::tempdir().unwrap();
    let waypost = one_worker().await;
    for (name, value, second) in [
        ("kept", "", "1"),
        ("closed", r#"{"pool": {"max_idle": 0}}"#, "2"),
    ] {
        let origin = Origin::run_unix(directory.path().join(name), number).await;
        waypost.put("a.test", &origin, value).await;
        let mut client = Wire::connect(waypost.address()).await;
        assert_eq!(client.ask(POST).await.text(), "1", "{name}");
        assert_eq!(client.ask(POST).await.text(), second, "{name}");
        waypost.delete("a.test", &origin).await;
        origin.closed(second.parse().unwrap()).await;
    }
}

#[tokio::test]
async fn a_socket_file_may_be_missing_or_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let waypost = one_worker().await;
    let upstream = format!("unix:{}", path.display().to_string().replace('/', "%2F"));
    waypost.put("a.test", &upstream, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    let missing = async |client: &mut Wire| {
        let answer = client.ask(GET).await;
        assert_eq!(
            (answer.status(), answer.error()),
            (502, "connection_refused")
        );
        assert!(answer.text().contains("No such file"), "{answer:?}");
    };
    missing(&mut client).await;

    let end = Arc::new(Notify::new());
    let saying = |text: &'static str| {
        let end = end.clone();
        Origin::run_unix(path.clone(), move |served| {
            say_until(served, text, end.clone())
        })
    };
    let first = saying("first").await;
    assert_eq!(client.ask(POST).await.text(), "first");
    assert_eq!(client.ask(POST).await.text(), "first");
    // A deploy: the file is another one, then the old process closes what it has.
    fs::remove_file(&path).unwrap();
    let second = saying("second").await;
    assert_eq!(
        client.ask(POST).await.text(),
        "first",
        "as long as it is open"
    );
    end.notify_waiters();
    first.closed(1).await;
    assert_eq!(client.ask(GET).await.text(), "second");
    assert_eq!((first.connections(), second.connections()), (1, 1));

    fs::remove_file(&path).unwrap();
    end.notify_waiters();
    second.closed(1).await;
    missing(&mut client).await;
}
