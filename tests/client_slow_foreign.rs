//! Attackers that others wrote, slowhttptest and h2load, while a well-behaved client asks on: it is always answered, each
//! limit does its part, and memory stays where it was.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::support::{
    command::{Ended, program},
    http::{Wire, get},
    origin::Origin,
    waypost::{Builder, Waypost},
};

/// What the memory may grow by: buffers of what is under way, and what the allocator keeps.
const GROWTH: usize = 48 << 20;
/// No attack takes longer.
const LONGEST: Duration = Duration::from_secs(60);

struct Attacked {
    waypost: Waypost,
    _origins: [Origin; 2],
}

impl Attacked {
    async fn start(builder: Builder) -> Self {
        let waypost = builder.start().await;
        let origin = Origin::named("ok").await;
        let large = "x".repeat(4 << 20);
        let large = Origin::answering(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}",
            large.len()
        ))
        .await;
        // slowhttptest names the address.
        waypost.put("127.0.0.1", &origin, "").await;
        waypost.put("127.0.0.1/large", &large, "").await;
        Self {
            waypost,
            _origins: [origin, large],
        }
    }

    /// Runs it to its end; meanwhile all requests of another client are answered.
    async fn withstands(&self, attacker: &str, arguments: &str) -> Ended {
        let (address, before) = (self.waypost.address(), self.waypost.memory().0);
        let arguments = arguments.replace("URL", &format!("http://{address}"));
        let arguments: Vec<_> = arguments.split(' ').collect();
        let attack = program(attacker, &arguments);
        let mut attack = tokio::spawn(async move {
            let mut attack = attack;
            let output = timeout(LONGEST, attack.output()).await;
            output.expect("it ends").expect("scripts/test installs it")
        });
        let mut asked = 0;
        while !attack.is_finished() {
            let mut client = Wire::connect_from([127, 0, 0, 2], address).await;
            let answer = client
                .ask("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                .await;
            assert_eq!((answer.status(), answer.text()), (200, "ok"), "{asked}");
            asked += 1;
            sleep(Duration::from_millis(10)).await;
        }
        let output = (&mut attack).await.expect("no panic");
        let grown = self.waypost.memory().0.saturating_sub(before);
        eprintln!("{attacker} {arguments:?}: {asked} answers, {grown} bytes more");
        assert!(asked > 10, "{asked}");
        assert!(grown < GROWTH, "{grown} bytes more");
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    async fn hits(&self, limit: &str) -> usize {
        let labels = [("limit", limit)];
        let hits = self.waypost.metric("waypost_limit_hits_total", &labels);
        hits.await as usize
    }
}

/// That the server has closed all connections, as slowhttptest saw it.
const CLOSED: &str = "No open connections left";

#[tokio::test]
async fn slow_heads_of_slowhttptest_are_cut_off() {
    let attacked = Attacked::start(Waypost::builder().flag("--header-timeout", "2s")).await;
    let slow_heads = "-H -c 200 -r 200 -i 1 -l 6 -u URL/";
    let ended = attacked.withstands("slowhttptest", slow_heads).await;
    assert!(ended.stdout.contains(CLOSED), "{ended:?}");
    assert_eq!(attacked.hits("header_timeout").await, 200);
}

#[tokio::test]
async fn slow_bodies_of_slowhttptest_are_cut_off() {
    let attacked = Attacked::start(Waypost::builder().flag("--body-timeout", "2s")).await;
    // The next piece of each body would come after 30 s.
    let slow_bodies = "-B -c 200 -r 200 -i 30 -s 8192 -l 6 -u URL/";
    let ended = attacked.withstands("slowhttptest", slow_bodies).await;
    assert!(ended.stdout.contains(CLOSED), "{ended:?}");
    assert_eq!(attacked.hits("body_timeout").await, 200);
}

#[tokio::test]
async fn slow_readers_of_slowhttptest_are_cut_off() {
    let attacked = Attacked::start(Waypost::builder().flag("--body-timeout", "2s")).await;
    let slow_reads = "-X -c 50 -r 50 -w 512 -y 1024 -n 30 -z 32 -k 3 -l 8 -u URL/large";
    let ended = attacked.withstands("slowhttptest", slow_reads).await;
    assert_eq!(attacked.hits("write_timeout").await, 50, "{ended:?}");
}

#[tokio::test]
async fn ranges_of_slowhttptest_are_the_upstreams_affair() {
    let attacked = Attacked::start(Waypost::builder()).await;
    let ranges = "-R -c 100 -r 100 -a 5 -b 2000 -l 4 -u URL/";
    let ended = attacked.withstands("slowhttptest", ranges).await;
    assert_eq!(attacked.hits("header_size").await, 0, "{ended:?}");
}

#[tokio::test]
async fn floods_of_h2load_are_served_to_the_last_request() {
    let attacked = Attacked::start(Waypost::builder()).await;
    for flood in ["-c 10 -m 10 -n 5000 URL/", "--h1 -c 50 -m 10 -n 5000 URL/"] {
        let ended = attacked.withstands("h2load", flood).await;
        assert!(ended.stdout.contains(" 0 failed, 0 errored"), "{ended:?}");
    }
}

#[tokio::test]
async fn floods_of_connections_by_h2load_leave_room_for_others() {
    let builder = Waypost::builder().flag("--max-connections-per-client", 10);
    let attacked = Attacked::start(builder).await;
    let flood = "-c 100 -m 10 -D 3 URL/";
    attacked.withstands("h2load", flood).await;
    assert!(attacked.hits("connections_per_client").await >= 90);
    let waypost = &attacked.waypost;
    let answer = get(waypost.address(), "127.0.0.1", "/").await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn heads_of_curl_that_are_too_large_are_refused() {
    // curl itself sends no more than 64 KiB over HTTP/2.
    let builder = Waypost::builder().flag("--max-header-bytes", "32KiB");
    let attacked = Attacked::start(builder).await;
    let address = attacked.waypost.address();
    let (field, path) = ("f".repeat(60_000), "p".repeat(30_000));
    let url = format!("http://{address}/");
    for (version, arguments, status) in [
        ("--http1.1", [format!("-Hx: {field}"), url.clone()], "431"),
        (
            "--http2-prior-knowledge",
            [format!("-Hx: {field}"), url.clone()],
            "431",
        ),
        ("--http1.1", ["-s".into(), format!("{url}{path}")], "414"),
        (
            "--http2-prior-knowledge",
            ["-s".into(), format!("{url}{path}")],
            "414",
        ),
    ] {
        let fixed = ["-s", "-o", "/dev/null", "-w", "%{http_code}", version];
        let all: Vec<_> = (fixed.into_iter().map(String::from))
            .chain(arguments)
            .collect();
        let output = program("curl", &all).output().await.expect("curl runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, status, "{version}");
    }
    // Over HTTP/2 the `h2` crate refuses them, and tells nobody.
    assert_eq!(attacked.hits("header_size").await, 1);
    assert_eq!(attacked.hits("target_size").await, 2);
}
