//! A client may give up its streams, but not without end: each may have cost an upstream's answer by then.

use crate::support::{
    gated::Gated,
    h2_client::{H2Client, collect},
    h2_origin::{END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, WINDOW_UPDATE, request},
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
