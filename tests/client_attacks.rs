//! Attacks, while a well-behaved client asks on: it is always answered, and the memory of the process stays
//! where it was. In a soak, which runs alone, its 99th percentile stays below 5 times what it was before. Attackers share
//! two cores with Waypost, the client and other tests, so they pause between bursts.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{
    h2_origin::{
        DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
    h2_raw::{self, ASKING},
    http::Wire,
    origin::Origin,
    soak::{is_soak, rounds, seconds},
    tls::Authority,
    waypost::Waypost,
};

const PRIORITY: u8 = 2;
const CONTINUATION: u8 = 9;
/// What the memory may grow by: buffers of what is under way, and what the allocator keeps.
const GROWTH: usize = 48 << 20;
/// Beneath this a ratio says nothing.
const FLOOR: Duration = Duration::from_millis(20);
/// For how long an attack is asked through, where it is not timed.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    SlowHead,
    SlowBody,
    SlowRead,
    HeaderBomb,
    HugeTarget,
    ConnectionFlood,
    HandshakeStall,
    HandshakeGarbage,
    RapidReset,
    MadeYouReset,
    ContinuationFlood,
    EmptyData,
    Settings,
    Ping,
    Priority,
    WindowUpdate,
    HpackBomb,
    ManyFields,
}

use Attack::*;

impl Attack {
    /// So many at one time.
    fn attackers(self) -> usize {
        let short = match self {
            SlowHead | SlowBody | HandshakeStall => 150,
            SlowRead => 20,
            _ => 2,
        };
        rounds(short, 4 * short)
    }

    /// Whether the attacker's connection is ended for it.
    fn is_cut_off(self) -> bool {
        matches!(
            self,
            HeaderBomb | HugeTarget | HandshakeGarbage | ContinuationFlood | EmptyData | ManyFields
        )
    }
}

struct Places {
    plain: SocketAddr,
    tls: SocketAddr,
}

/// What attackers did.
#[derive(Default)]
struct Tally {
    bursts: AtomicUsize,
    cut_off: AtomicUsize,
}

async fn attack_on(what: Attack, places: Arc<Places>, tally: Arc<Tally>) {
    loop {
        burst(what, &places, &tally).await;
        tally.bursts.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(50)).await;
    }
}

/// One connection's worth.
async fn burst(what: Attack, places: &Places, tally: &Tally) {
    let address = match what {
        HandshakeStall | HandshakeGarbage => places.tls,
        _ => places.plain,
    };
    let mut wire = Wire::connect(address).await;
    let over = match what {
        SlowHead => drip(&mut wire, "GET / HTTP/1.1\r\nHost: a.test\r\nX-Slow: ").await,
        SlowBody => {
            let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n";
            drip(&mut wire, head).await
        }
        SlowRead => {
            wire.shrink_window();
            wire.send("GET /large HTTP/1.1\r\nHost: a.test\r\n\r\n")
                .await;
            pause().await;
            false
        }
        HeaderBomb => {
            let fields: String = (0..2000).map(|n| format!("x-{n}: {n}\r\n")).collect();
            let head = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
            wire.send(head).await;
            is_ended(&mut wire).await
        }
        HugeTarget => {
            let head = format!(
                "GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n",
                "p".repeat(1 << 20)
            );
            wire.send(head).await;
            is_ended(&mut wire).await
        }
        ConnectionFlood => false,
        HandshakeStall => {
            wire.send(b"\x16\x03\x01\x02\x00\x01").await;
            pause().await;
            false
        }
        HandshakeGarbage => {
            wire.send([0xa5; 600]).await;
            is_ended(&mut wire).await
        }
        _ => over_http2(what, wire).await,
    };
    tally.cut_off.fetch_add(usize::from(over), Relaxed);
}

/// A little now and then, for as long as the attack lasts.
async fn drip(wire: &mut Wire, begun: &str) -> bool {
    wire.send(begun).await;
    while wire.send("x").await {
        sleep(Duration::from_millis(250)).await;
    }
    true
}

/// Longer than any attack.
async fn pause() {
    sleep(Duration::from_secs(600)).await;
}

/// Whether the other side ends it, whatever it says before.
async fn is_ended(wire: &mut Wire) -> bool {
    timeout(Duration::from_secs(10), wire.take_rest())
        .await
        .is_ok()
}

async fn over_http2(what: Attack, wire: Wire) -> bool {
    let mut frames = h2_raw::open(wire).await;
    let asks = END_HEADERS | END_STREAM;
    for number in 0..200_u32 {
        let stream = 2 * number + 1;
        let is_sent = match what {
            RapidReset => {
                frames.send(HEADERS, asks, stream, ASKING).await
                    && frames
                        .send(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
                        .await
            }
            // A window beyond 2^31-1 makes the server reset the stream (RFC 9113 section 6.9.1).
            MadeYouReset => {
                let beyond = 0x7fff_ffff_u32.to_be_bytes();
                frames.send(HEADERS, asks, stream, ASKING).await
                    && frames.send(WINDOW_UPDATE, 0, stream, &beyond).await
            }
            ContinuationFlood if number == 0 => frames.send(HEADERS, 0, 1, ASKING).await,
            ContinuationFlood => frames.send(CONTINUATION, 0, 1, b"").await,
            EmptyData if number == 0 => frames.send(HEADERS, END_HEADERS, 1, ASKING).await,
            EmptyData => frames.send(DATA, 0, 1, b"").await,
            Settings => frames.send(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff").await,
            Ping => frames.send(PING, 0, 0, b"12345678").await,
            Priority => frames.send(PRIORITY, 0, stream, b"\0\0\0\0\x10").await,
            WindowUpdate => frames.send(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).await,
            HpackBomb => {
                // A field of 4,000 bytes, once in the table, and then a byte for each more of it.
                let mut block = ASKING.to_vec();
                if number == 0 {
                    block.extend(b"\x40\x01x\x7f\xa1\x1e");
                    block.extend([b'v'; 4000]);
                }
                block.extend([0xbe; 8000]);
                frames.send(HEADERS, asks, stream, &block).await
            }
            // 30,000 of them, in a HEADERS frame and those that go on.
            ManyFields => {
                let block = b"\x10\x01x\x01y".repeat(3000);
                let all = [ASKING, &block].concat();
                match number {
                    0 => frames.send(HEADERS, END_STREAM, 1, &all).await,
                    1..=9 => frames.send(CONTINUATION, 0, 1, &block).await,
                    _ => frames.send(CONTINUATION, END_HEADERS, 1, &block).await,
                }
            }
            other => panic!("{other:?} is no attack of HTTP/2"),
        };
        if !is_sent {
            return true;
        }
    }
    what.is_cut_off() && is_ended(&mut frames.0).await
}

/// The 99th percentile of what a well-behaved client waits, on connections that it keeps for a while.
async fn p99(address: SocketAddr) -> Duration {
    let mut waited = Vec::new();
    let (begun, time) = (Instant::now(), seconds(0, 10));
    let is_enough = |asked: usize| match is_soak() {
        true => begun.elapsed() >= time && asked >= 1000,
        // A slow machine asks less often, but not for longer.
        false => asked >= 60 || (asked > 0 && begun.elapsed() > PATIENCE),
    };
    while !is_enough(waited.len()) {
        let mut client = Wire::connect(address).await;
        for _ in 0..20 {
            if !waited.is_empty() && !is_soak() && begun.elapsed() > PATIENCE {
                break;
            }
            let asked = Instant::now();
            let answer = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            assert_eq!((answer.status(), answer.text()), (200, "ok"));
            waited.push(asked.elapsed());
            sleep(Duration::from_millis(1)).await;
        }
    }
    waited.sort();
    waited[waited.len() * 99 / 100]
}

async fn withstands(attacks: &[Attack]) {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let origin = Origin::named("ok").await;
    let large = "x".repeat(4 << 20);
    let large = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    ))
    .await;
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    waypost.put("a.test", &origin, "").await;
    waypost.put("a.test/large", &large, "").await;
    let places = Arc::new(Places {
        plain: waypost.addresses()[0],
        tls: waypost.addresses()[1],
    });
    let quiet = p99(places.plain).await;
    for &attack in attacks {
        let before = waypost.memory().0;
        let tally = Arc::new(Tally::default());
        let mut attackers = JoinSet::new();
        for _ in 0..attack.attackers() {
            attackers.spawn(attack_on(attack, places.clone(), tally.clone()));
        }
        let during = p99(places.plain).await;
        if attack.is_cut_off() {
            let begun = Instant::now();
            while tally.cut_off.load(Relaxed) == 0 {
                assert!(
                    begun.elapsed() < Duration::from_secs(12),
                    "{attack:?} goes on"
                );
                sleep(Duration::from_millis(10)).await;
            }
        }
        let grown = waypost.memory().0.saturating_sub(before);
        attackers.shutdown().await;
        let (bursts, cut) = (tally.bursts.load(Relaxed), tally.cut_off.load(Relaxed));
        eprintln!(
            "{attack:?}: quiet {quiet:?}, during {during:?}, {grown} bytes more, {bursts} bursts, {cut} cut off"
        );
        // Beside other tests it is their noise: there each request is answered, and that is all.
        let is_bearable = !is_soak() || during < FLOOR.max(5 * quiet);
        assert!(is_bearable, "{attack:?}: {during:?}, before {quiet:?}");
        assert!(grown < GROWTH, "{attack:?}: {grown} bytes more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_and_large_heads_harm_nobody_else() {
    withstands(&[SlowHead, SlowBody, SlowRead, HeaderBomb, HugeTarget]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_connections_and_handshakes_harm_nobody_else() {
    withstands(&[ConnectionFlood, HandshakeStall, HandshakeGarbage]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_frames_harm_nobody_else() {
    withstands(&[
        EmptyData,
        Settings,
        Ping,
        Priority,
        WindowUpdate,
        ContinuationFlood,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuses_of_http2_streams_harm_nobody_else() {
    withstands(&[RapidReset, MadeYouReset]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_of_http2_fields_harm_nobody_else() {
    withstands(&[HpackBomb, ManyFields]).await;
}
