//! What attackers do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::support::{
    h2_origin::{
        DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
    h2_raw::{self, ASKING},
    http::Wire,
    soak::rounds,
};

const PRIORITY: u8 = 2;
const CONTINUATION: u8 = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    SlowHead,
    SlowBody,
    SlowRead,
    HeaderBomb,
    HugeTarget,
    ConnectionFlood,
    HandshakeStall,
    HandshakeGarbage,
    KeyUpdate,
    RapidReset,
    MadeYouReset,
    Malformed,
    LeftOpen,
    ZeroWindow,
    Unread,
    Interims,
    Crumbs,
    ContinuationFlood,
    EmptyData,
    EmptyHeaders,
    Settings,
    SettingsUnread,
    Ping,
    PingUnread,
    Priority,
    WindowUpdate,
    WindowOverflow,
    HpackBomb,
    ManyFields,
}

use Attack::*;

impl Attack {
    /// So many at one time.
    pub fn attackers(self) -> usize {
        let short = match self {
            SlowHead | SlowBody | HandshakeStall => 150,
            SlowRead => 20,
            // Each stream that is left open costs what it may, some 14 KiB: their number is what bounds that.
            LeftOpen => return 20,
            ZeroWindow | Crumbs => 5,
            Interims => 1,
            _ => 2,
        };
        rounds(short, 4 * short)
    }

    /// Whether the attacker's connection is ended for it.
    pub fn is_cut_off(self) -> bool {
        matches!(
            self,
            HeaderBomb
                | HugeTarget
                | HandshakeGarbage
                | RapidReset
                | MadeYouReset
                | ContinuationFlood
                | EmptyData
                | WindowOverflow
                | ManyFields
        )
    }
}

/// Where to.
pub struct Places {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    pub trusting: Arc<ClientConfig>,
}

/// What attackers did.
#[derive(Default)]
pub struct Tally {
    pub bursts: AtomicUsize,
    pub cut_off: AtomicUsize,
}

/// Burst upon burst.
pub async fn attack_on(what: Attack, places: Arc<Places>, tally: Arc<Tally>) {
    loop {
        burst(what, &places, &tally).await;
        tally.bursts.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(50)).await;
    }
}

/// One connection's worth.
async fn burst(what: Attack, places: &Places, tally: &Tally) {
    let address = match what {
        HandshakeStall | HandshakeGarbage | KeyUpdate => places.tls,
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
        KeyUpdate => update_keys(places).await,
        ZeroWindow | Crumbs | LeftOpen | Unread | Interims => {
            hold_streams(what, wire).await;
            false
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

/// Each record but the last asks for new keys (RFC 8446 section 4.6.3).
async fn update_keys(places: &Places) -> bool {
    let stream = TcpStream::connect(places.tls).await.expect("it accepts");
    let name = "a.test".try_into().expect("a name");
    let connecting = TlsConnector::from(places.trusting.clone()).connect(name, stream);
    let Ok(mut stream) = connecting.await else {
        return true;
    };
    for _ in 0..200 {
        let updated = stream.get_mut().1.refresh_traffic_keys();
        if updated.is_err() || stream.flush().await.is_err() {
            return true;
        }
    }
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let mut answer = [0; 12];
    let answered = asked.await.is_ok() && stream.read_exact(&mut answer).await.is_ok();
    !answered
}

/// As many streams as there may be, whose answers are not read, or which do not end.
async fn hold_streams(what: Attack, wire: Wire) {
    let is_unread = matches!(what, Unread | Interims);
    if is_unread {
        wire.hold_at_most(4096);
    }
    let mut frames = h2_raw::open(wire).await;
    // SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 section 6.5.2).
    let window: u32 = if is_unread { 1 << 30 } else { 0 };
    let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
    frames.send(SETTINGS, 0, 0, &setting).await;
    // Of the static table: `GET`, or `POST`, and `:path`, `cookie` (RFC 7541 appendix A).
    let (method, flags, crumbs) = match what {
        LeftOpen => (0x83, END_HEADERS, 0),
        Crumbs => (0x82, END_HEADERS | END_STREAM, 90),
        _ => (0x82, END_HEADERS | END_STREAM, 0),
    };
    let mut block = vec![method, 0x86];
    let path = if what == Interims {
        b"/early"
    } else {
        b"/large"
    };
    block.extend([&b"\x04\x06"[..], path, b"\x41\x06a.test"].concat());
    block.extend(b"\x0f\x11\x01a".repeat(crumbs));
    for number in 0..100 {
        frames.send(HEADERS, flags, 2 * number + 1, &block).await;
    }
    pause().await;
}

async fn over_http2(what: Attack, wire: Wire) -> bool {
    let mut frames = h2_raw::open(wire).await;
    let asks = END_HEADERS | END_STREAM;
    if matches!(what, SettingsUnread | PingUnread) {
        frames.0.hold_at_most(4096);
    }
    let count = match what {
        // They are paid back over time, and so have no end on a slow machine unless they are many.
        RapidReset | MadeYouReset => 5000,
        SettingsUnread | PingUnread | Malformed => 20_000,
        _ => 200,
    };
    for number in 0..count {
        let stream = 2 * number + 1;
        // What floods leaves the cores to others now and then.
        if number % 100 == 99 {
            sleep(Duration::from_millis(5)).await;
        }
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
            // Without a path.
            Malformed => frames.send(HEADERS, asks, stream, b"\x82\x86").await,
            // Trailers of no field, but the first.
            EmptyHeaders if number == 0 => frames.send(HEADERS, END_HEADERS, 1, ASKING).await,
            EmptyHeaders => frames.send(HEADERS, END_HEADERS, 1, b"").await,
            // RFC 9113 section 6.9.1.
            WindowOverflow => {
                let beyond = 0x7fff_ffff_u32.to_be_bytes();
                frames.send(WINDOW_UPDATE, 0, 0, &beyond).await
            }
            ContinuationFlood if number == 0 => frames.send(HEADERS, 0, 1, ASKING).await,
            ContinuationFlood => frames.send(CONTINUATION, 0, 1, b"").await,
            EmptyData if number == 0 => frames.send(HEADERS, END_HEADERS, 1, ASKING).await,
            EmptyData => frames.send(DATA, 0, 1, b"").await,
            Settings | SettingsUnread => frames.send(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff").await,
            Ping | PingUnread => frames.send(PING, 0, 0, b"12345678").await,
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
