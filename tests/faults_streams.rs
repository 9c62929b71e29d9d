//! Sides that are slower than others, and floods that are well-formed: what Waypost holds of them is bounded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Request, body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{net::TcpStream, sync::Notify, task::JoinSet, time::sleep};

use crate::support::{
    http::Wire,
    origin::{Origin, Served},
    waypost::{DEADLINE, Waypost, eventually},
};

const PAIRS: usize = 1000;
/// What the kernel holds for each side that is not Waypost: it has no room for megabytes of each.
const WINDOW: usize = 64 << 10;
/// What Waypost may hold of one pair: its buffers towards both sides, and what goes with two connections.
const PER_PAIR: usize = 384 << 10;
/// What an allocator keeps, and other people's noise.
const SLACK: usize = 32 << 20;

/// How often each slow side reads some more, and Waypost's memory is looked at.
const ROUNDS: usize = 12;

/// What memory was after each round. Buffers find their size in the first few.
#[derive(Default)]
struct Flat(Vec<usize>);

impl Flat {
    fn note(&mut self, waypost: &Waypost) {
        self.0.push(waypost.memory().0);
    }

    fn assert(&self, idle: usize) {
        let (early, late) = self.0.split_at(ROUNDS / 2);
        let most = |part: &[usize]| part.iter().copied().max().expect("some rounds");
        let is_flat = most(late) < most(early) + SLACK;
        let is_bounded = most(&self.0) < idle + PAIRS * PER_PAIR;
        assert!(is_flat && is_bounded, "{idle} bytes grew to {:?}", self.0);
    }
}

/// Waits until a counter stands still: whoever moves it is held back.
async fn settled(counter: &AtomicUsize) -> usize {
    loop {
        let known = counter.load(Ordering::SeqCst);
        sleep(Duration::from_millis(500)).await;
        if counter.load(Ordering::SeqCst) == known {
            return known;
        }
    }
}

/// Patient with connects, of which there are many at once.
async fn in_front_of(origin: &Origin) -> Waypost {
    let waypost = Waypost::builder().start().await;
    let settings = json!({"timeouts": {"connect": "15s"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    waypost.put("a.test", origin, "").await;
    waypost
}

/// Says `piece` for ever behind `head`, and counts it.
async fn endless(head: &'static str, piece: &'static [u8], sent: &Arc<AtomicUsize>) -> Origin {
    let sent = sent.clone();
    Origin::run(move |mut served: Served| {
        let sent = sent.clone();
        async move {
            served.wire.hold_at_most(WINDOW);
            served.request().await;
            served.send(head).await;
            while served.send(piece).await {
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_that_read_slowly_cost_flat_memory() {
    let sent = Arc::default();
    let piece = Box::leak(vec![b'x'; 16 << 10].into_boxed_slice());
    let origin = endless("HTTP/1.1 200 OK\r\n\r\n", piece, &sent).await;
    let waypost = in_front_of(&origin).await;
    let (idle, _) = waypost.memory();
    let taken = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..PAIRS {
        let (address, taken) = (waypost.address(), taken.clone());
        clients.spawn(async move {
            let mut client = Wire::connect(address).await;
            client.hold_at_most(WINDOW);
            client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            // Never silent for so long that the kernels' own patience with a closed window counts.
            while client.skip(WINDOW).await.is_ok() {
                taken.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(500)).await;
            }
        });
    }
    let mut flat = Flat::default();
    for round in 1..=ROUNDS {
        eventually("each took some more", async || {
            taken.load(Ordering::SeqCst) >= PAIRS * round
        })
        .await;
        flat.note(&waypost);
    }
    flat.assert(idle);
    assert!(clients.try_join_next().is_none(), "each has more to come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_upstreams_that_read_slowly_cost_flat_memory() {
    let (go, taken) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let origin = Origin::run({
        let (go, taken) = (go.clone(), taken.clone());
        move |mut served| {
            let (go, taken) = (go.clone(), taken.clone());
            async move {
                served.wire.hold_at_most(WINDOW);
                loop {
                    let woken = go.notified();
                    taken.fetch_add(1, Ordering::SeqCst);
                    woken.await;
                    if served.wire.skip(WINDOW).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let (idle, _) = waypost.memory();
    let sent = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..PAIRS {
        let (address, sent) = (waypost.address(), sent.clone());
        clients.spawn(async move {
            let mut client = Wire::connect(address).await;
            client.hold_at_most(WINDOW);
            let head = format!(
                "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n",
                1_u64 << 40
            );
            client.send(head).await;
            let piece = vec![b'x'; 16 << 10];
            while client.send(&piece).await {
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        });
    }
    // Not when they are accepted: the first round would come before some listen to it.
    let so_many = async |count| {
        eventually("each took some", async || {
            taken.load(Ordering::SeqCst) >= count
        })
        .await;
    };
    so_many(PAIRS).await;
    let mut flat = Flat::default();
    for round in 1..=ROUNDS {
        go.notify_waiters();
        so_many(PAIRS * (round + 1)).await;
        settled(&sent).await;
        flat.note(&waypost);
    }
    flat.assert(idle);
}

/// An HTTP/2 client that asks for `/` of `a.test` on 100 streams, with windows as large as they get, and reads nothing.
async fn deaf_http2_client(waypost: &Waypost) -> Wire {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("a small frame");
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let mut client = Wire::connect(waypost.address()).await;
    client.shrink_window();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let window = 0x7fff_ffff_u32;
    let initial = [&[0, 4][..], &window.to_be_bytes()].concat();
    client.send(frame(4, 0, 0, &initial)).await;
    client
        .send(frame(8, 0, 0, &(window - 65_535).to_be_bytes()))
        .await;
    // GET, http, / from HPACK's static table, and `:authority: a.test`.
    let head = [&[0x82, 0x86, 0x84, 0x01, 6][..], b"a.test"].concat();
    for stream in 0..100 {
        client.send(frame(1, 5, 2 * stream + 1, &head)).await;
    }
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_tiny_chunks_to_a_deaf_client_is_held_in_bounds() {
    let sent = Arc::default();
    let piece = b"1\r\nx\r\n".repeat(2000).leak();
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let origin = endless(head, piece, &sent).await;
    let waypost = in_front_of(&origin).await;
    let (idle, _) = waypost.memory();
    let _client = deaf_http2_client(&waypost).await;
    eventually("all are asked for", async || origin.connections() >= 100).await;
    settled(&sent).await;
    let (full, _) = waypost.memory();
    // 64 KiB of each stream, and the buffers that its connection upstream reads into.
    assert!(
        full < idle + 100 * (512 << 10),
        "{idle} bytes grew to {full}"
    );
}

#[tokio::test]
async fn an_early_refusal_reaches_an_http2_client_that_still_uploads() {
    let refusal = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno";
    let origin = Origin::refusing_early(refusal).await;
    let good = Origin::named("good").await;
    let waypost = in_front_of(&origin).await;
    waypost.put("good.test", &good, "").await;
    let stream = TcpStream::connect(waypost.address()).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    // A piece now and then, and no end.
    let pieces = futures_util::stream::unfold((), |()| async {
        sleep(Duration::from_millis(1)).await;
        let piece = Bytes::from(vec![b'x'; 16 << 10]);
        Some((Ok::<_, std::convert::Infallible>(Frame::data(piece)), ()))
    });
    let uploading = Request::post("http://a.test/").body(StreamBody::new(pieces).boxed_unsync());
    let response = sender.send_request(uploading.unwrap()).await.unwrap();
    assert_eq!(response.status(), 413);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"no");
    let next = Request::get("http://good.test/").body(http_body_util::Empty::new().boxed_unsync());
    let next = tokio::time::timeout(DEADLINE, sender.send_request(next.unwrap())).await;
    assert_eq!(next.unwrap().unwrap().status(), 200);
    // The upload has an end, and with it the connection that it went over.
    origin.closed(1).await;
    assert_eq!(origin.requests().len(), 1);
}
