//! A client may give up its streams, but not without end: each may have cost an upstream's answer by then.

use crate::support::{
    gated::Gated,
    h2_client::{H2Client, collect},
    h2_origin::{
        END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, request,
    },
    h2_raw::{self, ASKING},
    http::get,
    origin::Origin,
    waypost::{Waypost, eventually},
};

const ENHANCE_YOUR_CALM: u32 = 11;

/// How a stream ends without its answer.
#[derive(Clone, Copy, Debug)]
enum GivenUp {
    /// By RST_STREAM (rapid reset, CVE-2023-44487).
    Reset,
    /// By a window beyond 2^31-1, for which the server resets it (RFC 9113 section 6.9.1; MadeYouReset, CVE-2025-8671).
    Overflow,
}

async fn give_up(how: GivenUp, frames: &mut Frames, stream: u32) {
    match how {
        GivenUp::Reset => frames.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await,
        GivenUp::Overflow => {
            let beyond = 0x7fff_ffff_u32.to_be_bytes();
            frames.send(WINDOW_UPDATE, 0, stream, &beyond).await
        }
    };
}

async fn hits(waypost: &Waypost) -> usize {
    let labels = [("limit", "h2_resets")];
    waypost.metric("waypost_limit_hits_total", &labels).await as usize
}

/// What the kernel has from who listens on this port, and the other ends have not taken; in bytes.
fn unacknowledged(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let local = format!(":{port:04X}");
    let lines = table.lines().map(|line| line.split_whitespace());
    lines
        .filter_map(|mut fields| {
            let ours = fields.nth(1)?.ends_with(&local);
            let queues = fields.nth(2)?;
            ours.then(|| u64::from_str_radix(queues.split(':').next()?, 16).ok())?
        })
        .sum()
}

#[tokio::test]
async fn who_gives_up_stream_after_stream_is_sent_away() {
    for (how, path) in [
        (GivenUp::Reset, ""),
        (GivenUp::Overflow, ""),
        (GivenUp::Reset, "/large"),
    ] {
        let waypost = Waypost::builder()
            .flag("--h2-max-streams", 10)
            .flag("--h2-max-resets", 20)
            .start()
            .await;
        let gated = Gated::start().await;
        let large = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}",
            "x".repeat(1_000_000)
        );
        let large = Origin::answering(large).await;
        let good = Origin::named("ok").await;
        let asked = if path.is_empty() {
            &gated.origin
        } else {
            &large
        };
        waypost.put("a.test", asked, "").await;
        waypost.put("a.test/good", &good, "").await;
        let mut frames = h2_raw::connect(waypost.address()).await;
        // Each is being served, or answered, when it is given up: there is no end to it but by the limit.
        for number in 0..21 {
            let stream = 2 * number + 1;
            frames
                .send(HEADERS, END_HEADERS | END_STREAM, stream, ASKING)
                .await;
            asked.asked(number as usize + 1).await;
            if !path.is_empty() {
                frames.take_kind(HEADERS).await.expect("an answer begins");
            }
            assert_eq!(hits(&waypost).await, 0, "{how:?} {number}");
            give_up(how, &mut frames, stream).await;
        }
        assert_eq!(h2_raw::sent_away(&mut frames).await, ENHANCE_YOUR_CALM);
        frames.0.end().await;
        eventually("it is counted", async || hits(&waypost).await == 1).await;
        // It sees that nobody waits any more once it may answer.
        gated.let_through(21);
        asked.closed(21).await;
        assert_eq!(
            get(waypost.address(), "a.test", "/good").await.status(),
            200
        );
    }
}

#[tokio::test]
async fn who_leaves_and_comes_back_gives_up_all_streams_at_once_and_is_served_on() {
    let waypost = Waypost::builder().start().await;
    let gated = Gated::start().await;
    waypost.put("a.test", &gated.origin, "").await;
    let client = H2Client::connect(waypost.address()).await;
    // More than may be given up at once, in all: those that are answered make up for it.
    for round in 0..12 {
        for kept in [false, true] {
            let mut streams = Vec::new();
            for _ in 0..100 {
                streams.push(client.open(request("GET", "/"), true).await);
            }
            gated
                .asked(200 * round + 100 * (1 + usize::from(kept)))
                .await;
            if !kept {
                drop(streams);
                eventually("they are given up", async || {
                    waypost.metric("waypost_upstream_in_flight", &[]).await == 0.0
                })
                .await;
                gated.let_through(100);
                continue;
            }
            gated.let_through(100);
            for (response, _stream) in streams {
                assert_eq!(collect(response).await.expect("an answer").status(), 200);
            }
        }
    }
    assert_eq!(hits(&waypost).await, 0);
}

#[tokio::test]
async fn streams_that_are_given_up_before_they_are_looked_at_end_no_connection() {
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let origin = Origin::named("ok").await;
    waypost.put("a.test", &origin, "").await;
    let mut frames = h2_raw::connect(waypost.address()).await;
    let mut all = Vec::new();
    for stream in (1..200).step_by(2) {
        all.extend(Frames::bytes(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            ASKING,
        ));
        all.extend(Frames::bytes(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    all.extend(Frames::bytes(
        HEADERS,
        END_HEADERS | END_STREAM,
        201,
        ASKING,
    ));
    // In one segment, so that nothing is looked at in between.
    frames.0.send(all).await;
    let answer = frames.take_kind(HEADERS).await.expect("an answer");
    assert_eq!(answer.stream, 201);
}

/// It hears no GOAWAY, and has no more time than who hears one.
#[tokio::test]
async fn who_reads_nothing_and_gives_up_too_much_is_cut() {
    const WIDE: &[u8] = &[0, 4, 0x7f, 0xff, 0xff, 0xff];
    let large = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n{}",
        "x".repeat(30_000_000)
    ))
    .await;
    let waypost = Waypost::builder()
        .flag("--h2-max-resets", 20)
        .flag("--h2-max-streams", 10)
        .start()
        .await;
    waypost.put("a.test", &large, "").await;
    let mut frames = h2_raw::connect(waypost.address()).await;
    frames.send(SETTINGS, 0, 0, WIDE).await;
    let all = 0x7fff_0000_u32.to_be_bytes();
    frames.send(WINDOW_UPDATE, 0, 0, &all).await;
    let ends = END_HEADERS | END_STREAM;
    frames.send(HEADERS, ends, 1, ASKING).await;
    let (mut before, mut looks) = (0, 0);
    eventually("the socket is full", async || {
        let now = unacknowledged(waypost.address().port());
        looks = if now == before && now > 0 {
            looks + 1
        } else {
            0
        };
        before = now;
        looks == 20
    })
    .await;
    for number in 1..=21 {
        let stream = 2 * number + 1;
        frames.send(HEADERS, ends, stream, ASKING).await;
        // Those that nobody has looked at are another limit's, of `h2`.
        large.asked(number as usize + 1).await;
        frames.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await;
    }
    eventually("it is cut", async || {
        waypost.metric("waypost_connections", &[]).await == 0.0
    })
    .await;
    assert_eq!(hits(&waypost).await, 1);
}

/// Behind it are many clients, of which each may give up what it asked for.
#[tokio::test]
async fn a_trusted_proxy_gives_up_as_much_as_its_clients_do() {
    let waypost = Waypost::builder()
        .flag("--h2-max-resets", 10)
        .flag("--h2-max-streams", 10)
        .flag("--trusted-proxies", "127.0.0.1")
        .start()
        .await;
    let gated = Gated::start().await;
    let good = Origin::named("ok").await;
    waypost.put("a.test", &gated.origin, "").await;
    waypost.put("b.test", &good, "").await;
    let client = H2Client::connect(waypost.address()).await;
    for number in 1..=30 {
        let (response, mut stream) = client.open(request("GET", "/"), true).await;
        gated.asked(number).await;
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
    }
    let asking = http::Request::get("http://b.test/").body(()).unwrap();
    assert_eq!(client.ask(asking).await.unwrap().text(), "ok");
    assert_eq!(hits(&waypost).await, 0);
}
